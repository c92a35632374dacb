//! The keys of a configuration: as written, and as meant.

use std::fmt;
use std::net::IpAddr;

use common::cni::env::Verb;
#[cfg(feature = "schema")]
use common::cni::shape;
use common::nft::IpVersion;
use common::{Call, Error, Result};
use serde::Deserialize;

use crate::conditions::Conditions;

/// The mark bit that asks for masquerading unless `markMasqBit` says otherwise, as in the reference: kube-proxy has 14
/// and 15, Calico 16 to 31.
pub const MARK_BIT: u8 = 13;

/// The priority of our nat hooks unless `priority` says otherwise: right after kube-proxy and every other user of
/// `dstnat` (−100), so that a service's own rules come first and there is never a tie.
pub const PRIORITY: i32 = -95;

/// netfilter's `dstnat`: `NF_IP_PRI_NAT_DST` (include/uapi/linux/netfilter_ipv4.h).
const DSTNAT: i32 = -100;

/// The priorities that a destination nat hook can have: after connection tracking (`NF_IP_PRI_CONNTRACK`, −200; the
/// kernel refuses the rest), before filtering (`NF_IP_PRI_FILTER`, 0), which must see the container's address.
const PRIORITIES: std::ops::RangeInclusive<i32> = -199..=-1;

/// The configuration as it may be written.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Written {
    /// `iptables` or `nftables`, in whose words the conditions are; either way the rules are in nftables.
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["", "iptables", "nftables", null])))]
    backend: Option<String>,
    /// Whether the source of connections from the container itself and from the host's loopback is replaced (true).
    snat: Option<bool>,
    /// Whether every source is replaced.
    masq_all: bool,
    /// The bit of the packet mark that asks for that, 0 to 31 (13); not together with `externalSetMarkChain`.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 31)))]
    mark_masq_bit: Option<i64>,
    /// An iptables chain whose mark is set instead, as `KUBE-MARK-MASQ`.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[!-~]{0,28}$")))]
    external_set_mark_chain: Option<String>,
    /// What else a packet to an IPv4 address must fulfil, in words of iptables or nft.
    #[serde(rename = "conditionsV4")]
    conditions_v4: Vec<String>,
    /// The same for IPv6.
    #[serde(rename = "conditionsV6")]
    conditions_v6: Vec<String>,
    /// The priority of the nat hooks, -199 to -1 but for -100 (-95).
    #[cfg_attr(feature = "schema", schemars(range(min = -199, max = -1), extend("not" = { "const": -100 })))]
    priority: Option<i64>,
    /// What the runtime adds.
    runtime_config: WrittenRuntime,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("additionalProperties" = true)))]
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenRuntime {
    /// Of the capability `portMappings`. An empty list takes back what an earlier ADD has published.
    // No list of any configuration is longer than every port of every protocol: `common::cni::decode::ENTRIES_MAX`.
    #[cfg_attr(feature = "schema", schemars(length(max = 196_605)))]
    port_mappings: Option<Vec<WrittenMapping>>,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("required" = ["hostPort", "containerPort", "protocol"])))]
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenMapping {
    /// The port on the host.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    host_port: i64,
    /// The port in the container.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 65535)))]
    container_port: i64,
    /// `tcp`, `udp` or `sctp`, in any letter case.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^(?:[tT][cC][pP]|[uU][dD][pP]|[sS][cC][tT][pP])$")))]
    protocol: String,
    /// The host's address at which it is published; empty for every one.
    #[cfg_attr(
        feature = "schema",
        schemars(regex(pattern = shape::address()), extend("not" = {"type": "string", "pattern": shape::multicast()}))
    )]
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// What was meant: a value that can't be wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The ports to publish, in the order given; `None` where nothing is said of any. An empty list takes back what an
    /// earlier ADD has published.
    pub mappings: Option<Vec<Mapping>>,
    /// Whose source address is replaced by the host's.
    pub masquerade: Masquerade,
    /// How a packet is marked for that.
    pub mark: Mark,
    /// What else a packet must fulfil.
    pub conditions: ByVersion<Conditions>,
    /// The priority of the nat hooks.
    pub priority: i32,
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The port on the host, 1 to 65535.
    pub host_port: u16,
    /// The port in the container, 1 to 65535.
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The host's addresses at which it is published.
    pub host_ip: HostIp,
}

/// The transport protocols with ports that the kernel's nat knows and the reference accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// Its name in nft and in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    /// Its number (IANA, "Protocol Numbers").
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol of this number.
    pub fn from_number(number: u8) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// At which of the host's addresses a port is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostIp {
    /// At all of both families.
    Any,
    /// At all of one family: `0.0.0.0` or `::`.
    AnyOf(IpVersion),
    /// At this one.
    One(IpAddr),
}

/// Whose source address is replaced by the host's on the way to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Nobody's (`snat: false`).
    Nobody,
    /// Theirs to whom the container would answer past the host: its own subnet's, and the host's loopback's.
    WhereNeeded,
    /// Everybody's (`masqAll`).
    Everybody,
}

/// How a packet that is to be masqueraded is marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// By this bit (`markMasqBit`).
    Bit(u8),
    /// As this chain of iptables marks it (`externalSetMarkChain`).
    As(String),
}

/// One thing for each version of IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByVersion<T> {
    /// For IPv4.
    pub v4: T,
    /// For IPv6.
    pub v6: T,
}

impl<T> ByVersion<T> {
    /// That of `version`.
    pub const fn get(&self, version: IpVersion) -> &T {
        match version {
            IpVersion::V4 => &self.v4,
            IpVersion::V6 => &self.v6,
        }
    }
}

impl Config {
    /// From what was written to what was meant.
    pub fn validate(written: Written, call: &Call) -> Result<Config> {
        let mark = mark(written.mark_masq_bit, written.external_set_mark_chain.clone())?;
        require_backend(&written)?;
        let priority = priority(written.priority)?;
        let mapped = |written: Vec<WrittenMapping>| {
            let mapped = |(i, m)| mapping(m, &format!("runtimeConfig.portMappings.{i}"));
            written.iter().enumerate().map(mapped).collect::<Result<Vec<Mapping>>>()
        };
        let mappings = written.runtime_config.port_mappings.map(mapped).transpose()?;
        // As in the reference, conditions matter to those who publish something: a container without ports passes a
        // configuration whose conditions can't be understood. STATUS says it all the same.
        let publishes = mappings.as_ref().is_some_and(|mappings| !mappings.is_empty());
        let conditions = if !publishes && call.verb != Verb::Status {
            ByVersion::default()
        } else {
            ByVersion {
                v4: Conditions::parse("conditionsV4", IpVersion::V4, &written.conditions_v4)?,
                v6: Conditions::parse("conditionsV6", IpVersion::V6, &written.conditions_v6)?,
            }
        };
        let masquerade = match (written.snat.unwrap_or(true), written.masq_all) {
            (false, _) => Masquerade::Nobody,
            (true, false) => Masquerade::WhereNeeded,
            (true, true) => Masquerade::Everybody,
        };
        Ok(Config { mappings, masquerade, mark, conditions, priority })
    }
}

fn mark(bit: Option<i64>, external: Option<String>) -> Result<Mark> {
    match (bit, external.filter(|chain| !chain.is_empty())) {
        (Some(bit), Some(chain)) => Err(Error::invalid(
            "externalSetMarkChain",
            format!("\"{chain}\""),
            format!("Cannot specify externalSetMarkChain and markMasqBit (which is {bit}); leave one out"),
        )),
        (bit, None) => match u8::try_from(bit.unwrap_or(i64::from(MARK_BIT))) {
            Ok(bit @ 0..=31) => Ok(Mark::Bit(bit)),
            _ => Err(Error::invalid("markMasqBit", bit.unwrap_or_default(), "MasqMarkBit must be between 0 and 31")),
        },
        // A name longer than 28 characters can't be an iptables chain (XT_EXTENSION_MAXNAMELEN).
        (None, Some(chain)) if chain.len() > 28 || !chain.chars().all(|c| c.is_ascii_graphic()) => Err(Error::invalid(
            "externalSetMarkChain",
            format!("{chain:?}"),
            "it must be the name of an iptables chain: at most 28 printable characters",
        )),
        (None, Some(chain)) => Ok(Mark::As(chain)),
    }
}

fn require_backend(written: &Written) -> Result<()> {
    let backend = match written.backend.as_deref() {
        // podman writes "" for a key that nobody gave.
        None | Some("") => return Ok(()),
        Some(known @ ("iptables" | "nftables")) => known,
        Some(other) => {
            return Err(Error::invalid(
                "backend",
                format!("\"{other}\""),
                format!("unrecognized backend \"{other}\"; iptables and nftables are known"),
            ));
        }
    };
    let mut of_iptables = Vec::new();
    let mut of_nftables = Vec::new();
    if written.external_set_mark_chain.as_deref().is_some_and(|chain| !chain.is_empty()) {
        of_iptables.push("externalSetMarkChain");
    }
    for (key, words) in [("conditionsV4", &written.conditions_v4), ("conditionsV6", &written.conditions_v6)] {
        match words.first().and_then(|w| w.trim_start().chars().next()) {
            None => {}
            Some('-' | '!') => of_iptables.push(key),
            Some(_) => of_nftables.push(key),
        }
    }
    let (other, foreign) = if backend == "iptables" { ("nftables", of_nftables) } else { ("iptables", of_iptables) };
    if foreign.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(
        "backend",
        format!("\"{backend}\""),
        format!(
            "{backend} backend was requested but configuration contains {other}-specific options [{}]; \
             leave backend out, then both are understood",
            foreign.join(" ")
        ),
    ))
}

fn priority(written: Option<i64>) -> Result<i32> {
    let Some(written) = written else { return Ok(PRIORITY) };
    match i32::try_from(written) {
        Ok(DSTNAT) => Err(Error::invalid(
            "priority",
            written,
            "kube-proxy and iptables have this priority (dstnat), and who is first in a tie is chance; -101 is before \
             them, -99 behind them",
        )),
        Ok(priority) if PRIORITIES.contains(&priority) => Ok(priority),
        _ => Err(Error::invalid(
            "priority",
            written,
            "a nat hook's priority lies between -199 (after connection tracking) and -1 (before filtering)",
        )),
    }
}

fn mapping(written: &WrittenMapping, key: &str) -> Result<Mapping> {
    let container_port = port(written.container_port, &format!("{key}.containerPort"), "container")?;
    let host_port = port(written.host_port, &format!("{key}.hostPort"), "host")?;
    let protocol =
        Protocol::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(&written.protocol)).ok_or_else(|| {
            Error::invalid(
                format!("{key}.protocol"),
                format!("{:?}", written.protocol),
                "it must be tcp, udp or sctp, in any letter case",
            )
        })?;
    Ok(Mapping { host_port, container_port, protocol, host_ip: host_ip(&written.host_ip, key)? })
}

fn port(written: i64, key: &str, whose: &str) -> Result<u16> {
    match u16::try_from(written) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Error::invalid(key, written, format!("Invalid {whose} port number: {written}; 1 to 65535 are ports"))),
    }
}

fn host_ip(written: &str, key: &str) -> Result<HostIp> {
    if written.is_empty() {
        return Ok(HostIp::Any);
    }
    let address: IpAddr = written.parse().map_err(|_| {
        Error::invalid(
            format!("{key}.hostIP"),
            format!("{written:?}"),
            "it must be one of this host's addresses, 0.0.0.0 or :: for all of a family, or left out for all",
        )
    })?;
    // `::ffff:192.0.2.1` is 192.0.2.1, as in Go.
    let address = address.to_canonical();
    if address.is_unspecified() {
        return Ok(HostIp::AnyOf(IpVersion::of(address)));
    }
    let kind = match address {
        _ if address.is_multicast() => "multicast",
        IpAddr::V4(v4) if v4.is_broadcast() => "broadcast",
        _ => return Ok(HostIp::One(address)),
    };
    Err(Error::invalid(
        format!("{key}.hostIP"),
        format!("{written:?}"),
        format!("a {kind} address is not an address of this host, so nothing could ever arrive there"),
    ))
}
