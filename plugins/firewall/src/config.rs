//! What may be written in the configuration, and what is meant by it.
//!
//! Everything that can be refused is refused here, before anything is done: an unknown backend or policy never ends in
//! a firewall that is half the way set up.

use std::fmt;
use std::str::FromStr;

use common::{Error, Result};
use serde::Deserialize;

/// The keys of the firewall plugin as they may stand in a configuration.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Written {
    /// `iptables`, `firewalld`, `nftables`, or nothing.
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["", "iptables", "firewalld", "nftables"])))]
    backend: String,
    /// The chain for the administrator's overrides.
    #[cfg_attr(
        feature = "schema",
        schemars(
            regex(pattern = "^(?:[#-&(-,.-~][!#-&(-~]{0,27})?$"),
            extend("not" = {"enum": taken_names()})
        )
    )]
    iptables_admin_chain_name: String,
    /// firewalld's zone for the container's addresses.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[!#-~]{0,64}$")))]
    firewalld_zone: String,
    /// `open`, `same-bridge` or `isolated`.
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["", "open", "same-bridge", "isolated"])))]
    ingress_policy: String,
    /// Chains of other tables that must accept admitted packets, each as `FAMILY TABLE CHAIN`.
    #[cfg_attr(feature = "schema", schemars(inner(regex(pattern = host_chain_shape()))))]
    host_chains: Vec<String>,
    /// The bit of the packet mark by which admitted packets are known, 0 to 31.
    #[cfg_attr(feature = "schema", schemars(range(max = 31)))]
    mark_admit_bit: Option<u64>,
    /// Whether the container may send from its own addresses only.
    anti_spoof: bool,
}

/// Who guards the host's forwarding, and so has to let the container's packets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// firewalld where it runs, else iptables (the reference's choice).
    Detect,
    /// The filter tables of iptables.
    Iptables,
    /// firewalld's zones.
    Firewalld,
    /// Our own table; iptables' filter tables only where somebody else has put a FORWARD chain into them.
    Nftables,
}

/// What may reach the container from other containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressPolicy {
    /// No restriction of ours.
    Open,
    /// Bridges with this policy don't talk to each other.
    SameBridge,
    /// As [`IngressPolicy::SameBridge`], and the containers on the bridge don't talk to each other either.
    Isolated,
}

impl fmt::Display for IngressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IngressPolicy::Open => "open",
            IngressPolicy::SameBridge => "same-bridge",
            IngressPolicy::Isolated => "isolated",
        })
    }
}

/// A family of nftables in which a chain can see forwarded IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostFamily {
    /// `inet`
    Inet,
    /// `ip`
    Ip,
    /// `ip6`
    Ip6,
}

/// A chain of somebody else's that must accept admitted packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostChain {
    /// The family of its table.
    pub family: HostFamily,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

/// What is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who guards the host's forwarding.
    pub backend: Backend,
    /// The chain for the administrator's overrides.
    pub admin_chain: String,
    /// firewalld's zone for the container's addresses.
    pub zone: String,
    /// What may reach the container from other containers.
    pub policy: IngressPolicy,
    /// Chains of other tables that must accept admitted packets, without duplicates.
    pub host_chains: Vec<HostChain>,
    /// The one bit of the packet mark by which admitted packets are known.
    pub admit_mark: u32,
    /// Whether the container may send from its own addresses only.
    pub anti_spoof: bool,
}

/// The reference's default for `iptablesAdminChainName`.
pub const ADMIN_CHAIN: &str = "CNI-ADMIN";

/// The chain by which the reference hooks itself into FORWARD, and so do we.
pub const FORWARD_CHAIN: &str = "CNI-FORWARD";

/// The reference's default for `firewalldZone`.
pub const ZONE: &str = "trusted";

/// Bit 12 (0x1000) collides with none of the marks that are known to be taken: 0x80 (AWS VPC CNI), 0x0f00 (Cilium),
/// 0x2000 (portmap), 0x4000 and 0x8000 (kube-proxy), 0xffff0000 (Calico).
pub const ADMIT_BIT: u64 = 12;

/// Bytes of a chain name in iptables (`XT_EXTENSION_MAXNAMELEN` less the NUL; include/uapi/linux/netfilter/x_tables.h).
const IPTABLES_NAME_MAX: usize = 28;

/// Bytes of a name in nf_tables (`NFT_NAME_MAXLEN` less the NUL; include/uapi/linux/netfilter/nf_tables.h).
const NFT_NAME_MAX: usize = 255;

impl Written {
    /// What is meant, if it can be meant.
    pub fn validate(self) -> Result<Config> {
        let admin_chain = admin_chain(self.iptables_admin_chain_name)?;
        let host_chains = host_chains(&self.host_chains)?;
        if let Some((i, chain)) = host_chains.iter().enumerate().find(|(_, chain)| chain.is_of_iptables(&admin_chain)) {
            return Err(Error::invalid(format!("hostChains.{i}"), format!("\"{chain}\""), FROM_IPTABLES));
        }
        Ok(Config {
            backend: backend(&self.backend)?,
            admin_chain,
            zone: zone(self.firewalld_zone)?,
            policy: policy(&self.ingress_policy)?,
            host_chains,
            admit_mark: admit_mark(self.mark_admit_bit)?,
            anti_spoof: self.anti_spoof,
        })
    }
}

/// podman writes `"backend": ""` for a backend that isn't given.
fn backend(written: &str) -> Result<Backend> {
    match written {
        "" => Ok(Backend::Detect),
        "iptables" => Ok(Backend::Iptables),
        "firewalld" => Ok(Backend::Firewalld),
        "nftables" => Ok(Backend::Nftables),
        other => Err(Error::invalid(
            "backend",
            format!("\"{other}\""),
            "unknown backend: it is \"iptables\", \"firewalld\", \"nftables\" or absent",
        )),
    }
}

fn policy(written: &str) -> Result<IngressPolicy> {
    match written {
        "" | "open" => Ok(IngressPolicy::Open),
        "same-bridge" => Ok(IngressPolicy::SameBridge),
        "isolated" => Ok(IngressPolicy::Isolated),
        other => Err(Error::invalid(
            "ingressPolicy",
            format!("\"{other}\""),
            "unknown ingress policy: it is \"open\", \"same-bridge\", \"isolated\" or absent",
        )),
    }
}

/// A name that iptables takes for a user's chain, and to which CNI-FORWARD can jump without harm.
fn admin_chain(written: String) -> Result<String> {
    let name = if written.is_empty() { ADMIN_CHAIN.to_owned() } else { written };
    let refuse =
        |reason: &str| Err(Error::invalid("iptablesAdminChainName", format!("\"{}\"", name.escape_debug()), reason));
    if name.len() > IPTABLES_NAME_MAX {
        return refuse("a chain's name in iptables has at most 28 bytes");
    }
    if !name.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\'') || name.starts_with(['-', '!']) {
        return refuse("a chain's name has no blanks, quotes or special characters, and doesn't begin with '-' or '!'");
    }
    match name.as_str() {
        built_in if BUILT_IN.contains(&built_in) => refuse("it is a built-in chain of iptables"),
        verdict if VERDICTS.contains(&verdict) => refuse("it is a verdict of iptables, not a chain"),
        target if targets().any(|taken| taken == target) => {
            refuse("it is a target of iptables, which makes no chain of that name")
        }
        FORWARD_CHAIN => refuse("it is the chain that jumps to it"),
        _ => Ok(name),
    }
}

/// The chains that iptables' tables begin with.
const BUILT_IN: [&str; 5] = ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"];

/// What iptables' rules can jump to without its being a chain.
const VERDICTS: [&str; 4] = ["ACCEPT", "DROP", "QUEUE", "RETURN"];

/// iptables' targets (iptables-extensions(8), the obsolete ones included): `iptables -N REJECT` is refused, and `-A REJECT`
/// would never find the chain.
const TARGETS: &str = "AUDIT CHECKSUM CLASSIFY CLUSTERIP CONNMARK CONNSECMARK CT DNAT DNPT DSCP ECN HL HMARK IDLETIMER LED \
    LOG MARK MASQUERADE MIRROR NETMAP NFLOG NFQUEUE NOTRACK RATEEST REDIRECT REJECT SAME SECMARK SET \
    SNAT SNPT SYNPROXY TARPIT TCPMSS TCPOPTSTRIP TEE TOS TPROXY TRACE TTL ULOG ERROR standard";

fn targets() -> impl Iterator<Item = &'static str> {
    TARGETS.split(' ')
}

/// The names that no chain for the administrator's overrides can have.
#[cfg(feature = "schema")]
fn taken_names() -> Vec<&'static str> {
    BUILT_IN.into_iter().chain(VERDICTS).chain(targets()).chain([FORWARD_CHAIN]).collect()
}

/// The chains of iptables' filter tables in which an acceptance would stand in front of the administrator's overrides;
/// what these tables need is put in without being asked for.
const TAKEN_CARE_OF: [&str; 3] = ["FORWARD", FORWARD_CHAIN, ADMIN_CHAIN];

/// What [`HostChain`] reads, as a regular expression of JSON Schema.
#[cfg(feature = "schema")]
fn host_chain_shape() -> String {
    let (blank, name) = ("[ \\t\\n\\f\\r]", format!("[!-~]{{1,{NFT_NAME_MAX}}}"));
    let ours = format!("cni_chain_|filter{blank}+(?:{}){blank}*$", TAKEN_CARE_OF.join("|"));
    let of = |families: &str, not: &str| format!("{families}{blank}+(?!{not})");
    let families = [of("inet", "cni_chain_"), of("ip6?", &ours)].join("|");
    format!("^{blank}*(?:{families}){name}{blank}+{name}{blank}*$")
}

/// Bytes of a zone's name: more than firewalld takes (17), and little enough for a comment.
const ZONE_MAX: usize = 64;

/// firewalld says itself whether it has the zone; here only what can't be a name is refused.
fn zone(written: String) -> Result<String> {
    if written.is_empty() {
        return Ok(ZONE.to_owned());
    }
    if written.len() > ZONE_MAX || !written.bytes().all(|b| b.is_ascii_graphic() && b != b'"') {
        let shown = format!("\"{}\"", written.escape_debug());
        return Err(Error::invalid("firewalldZone", shown, "a zone's name has at most 64 letters, digits and signs"));
    }
    Ok(written)
}

fn host_chains(written: &[String]) -> Result<Vec<HostChain>> {
    let mut chains = Vec::with_capacity(written.len());
    for (i, text) in written.iter().enumerate() {
        let chain: HostChain = text.parse().map_err(|reason: &str| {
            Error::invalid(format!("hostChains.{i}"), format!("\"{}\"", text.escape_debug()), reason)
        })?;
        if !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    Ok(chains)
}

fn admit_mark(bit: Option<u64>) -> Result<u32> {
    let bit = bit.unwrap_or(ADMIT_BIT);
    u32::try_from(bit)
        .ok()
        .and_then(|b| 1u32.checked_shl(b))
        .ok_or_else(|| Error::invalid("markAdmitBit", bit, "a packet's mark has the bits 0 to 31"))
}

/// Why no chain of iptables' that leads to the administrator's is one.
const FROM_IPTABLES: &str =
    "iptables' filter tables get what they need without being named, behind the administrator's chain";

impl HostChain {
    /// Whether it is one of iptables' filter tables that are taken care of.
    fn is_of_iptables(&self, admin_chain: &str) -> bool {
        let is_filter = matches!(self.family, HostFamily::Ip | HostFamily::Ip6) && self.table == "filter";
        is_filter && (TAKEN_CARE_OF.contains(&self.chain.as_str()) || self.chain == admin_chain)
    }
}

impl FromStr for HostChain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str =
            "it is \"FAMILY TABLE CHAIN\" as nft lists it, family inet, ip or ip6: \"inet filter forward\"";
        let mut words = text.split_ascii_whitespace();
        let (Some(family), Some(table), Some(chain), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(SHAPE);
        };
        let family = match family {
            "inet" => HostFamily::Inet,
            "ip" => HostFamily::Ip,
            "ip6" => HostFamily::Ip6,
            _ => return Err(SHAPE),
        };
        if [table, chain].iter().any(|name| name.len() > NFT_NAME_MAX || !name.bytes().all(|b| b.is_ascii_graphic())) {
            return Err("names in nftables have at most 255 printable characters");
        }
        if table.starts_with("cni_chain_") {
            return Err("it is one of our own tables");
        }
        Ok(HostChain { family, table: table.to_owned(), chain: chain.to_owned() })
    }
}

impl fmt::Display for HostFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HostFamily::Inet => "inet",
            HostFamily::Ip => "ip",
            HostFamily::Ip6 => "ip6",
        })
    }
}

impl fmt::Display for HostChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cni::network::Network;

    fn read(keys: &str) -> Result<Config> {
        let stdin = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"firewall"{keys}}}"#);
        let json = Network::parse(stdin.as_bytes())?;
        let network = Network::read(json, common::cni::env::Verb::Add)?;
        let (written, _) = network.own_keys::<Written>()?;
        written.validate()
    }

    fn refusal(keys: &str) -> (u32, String) {
        let error = read(keys).unwrap_err();
        (error.code(), error.to_string())
    }

    #[test]
    fn an_empty_configuration_means_the_references_defaults() {
        let config = read("").unwrap();
        assert_eq!(
            config,
            Config {
                backend: Backend::Detect,
                admin_chain: "CNI-ADMIN".into(),
                zone: "trusted".into(),
                policy: IngressPolicy::Open,
                host_chains: vec![],
                admit_mark: 0x1000,
                anti_spoof: false,
            }
        );
        let podman = read(r#","backend":"","iptablesAdminChainName":"","firewalldZone":"","ingressPolicy":"""#);
        assert_eq!(podman.unwrap(), config, "empty means not given");
    }

    #[test]
    fn every_key_is_read_in_any_case() {
        let config = read(
            r#","Backend":"nftables","iptablesAdminChainName":"MINE","FirewalldZone":"podzone","ingressPolicy":"isolated",
               "hostChains":["inet filter forward","ip  nat  x","inet filter forward"],"markAdmitBit":31,"antiSpoof":true"#,
        )
        .unwrap();
        assert_eq!(config.backend, Backend::Nftables);
        assert_eq!((config.admin_chain.as_str(), config.zone.as_str()), ("MINE", "podzone"));
        assert_eq!(config.policy, IngressPolicy::Isolated);
        let chains: Vec<String> = config.host_chains.iter().map(HostChain::to_string).collect();
        assert_eq!(chains, ["inet filter forward", "ip nat x"]);
        assert_eq!(config.admit_mark, 0x8000_0000);
        assert!(config.anti_spoof);
    }

    #[test]
    fn an_unknown_backend_or_policy_is_refused_by_name() {
        for (keys, named) in [
            (r#","backend":"ipfw""#, "\"ipfw\""),
            (r#","backend":"IPTABLES""#, "\"IPTABLES\""),
            (r#","ingressPolicy":"closed""#, "\"closed\""),
        ] {
            let (code, message) = refusal(keys);
            assert_eq!(code, 7, "{message}");
            assert!(message.contains(named) && message.contains("unknown"), "{message}");
        }
    }

    #[test]
    fn an_admin_chain_that_iptables_would_not_take_is_refused() {
        for name in ["-x", "!x", "a b", "FORWARD", "ACCEPT", "CNI-FORWARD", "a\\u0000b", "ü", "\\\"", &"x".repeat(29)]
        {
            let (code, message) = refusal(&format!(r#","iptablesAdminChainName":"{name}""#));
            assert_eq!(code, 7, "{name}: {message}");
        }
        assert!(read(&format!(r#","iptablesAdminChainName":"{}""#, "x".repeat(28))).is_ok());
    }

    #[test]
    fn a_zone_that_can_not_be_one_is_refused() {
        for zone in ["a b", "a\\u0000", "\\\"", &"x".repeat(65)] {
            assert_eq!(refusal(&format!(r#","firewalldZone":"{zone}""#)).0, 7, "{zone}");
        }
    }

    #[test]
    fn host_chains_are_three_words() {
        for text in ["", "inet filter", "inet a b c", "bridge a b", "inet cni_chain_firewall forward"] {
            let (code, message) = refusal(&format!(r#","hostChains":["{text}"]"#));
            assert_eq!(code, 7, "{text}: {message}");
            assert!(message.contains("hostChains.0"), "{message}");
        }
    }

    #[test]
    fn chains_in_front_of_the_administrators_are_no_host_chains() {
        for text in [
            "ip filter FORWARD",
            "ip6 filter FORWARD",
            "ip filter CNI-FORWARD",
            "ip6 filter CNI-ADMIN",
            "ip filter MINE",
        ] {
            let keys = format!(r#","iptablesAdminChainName":"MINE","hostChains":["inet a b"," {text} "]"#);
            let (code, message) = refusal(&keys);
            assert_eq!(code, 7, "{text}: {message}");
            assert!(message.contains("hostChains.1") && message.contains(text), "{message}");
        }
        for text in [
            "inet filter FORWARD",
            "ip filter forward",
            "ip filter DOCKER-USER",
            "ip nat CNI-ADMIN",
            "ip filter FORWARD2",
        ] {
            assert!(read(&format!(r#","hostChains":["{text}"]"#)).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_target_of_iptables_is_no_admin_chain() {
        for name in [
            "REJECT",
            "LOG",
            "DNAT",
            "SNAT",
            "MARK",
            "MASQUERADE",
            "REDIRECT",
            "NFQUEUE",
            "CT",
            "TPROXY",
            "TCPMSS",
            "NOTRACK",
        ] {
            let (code, message) = refusal(&format!(r#","iptablesAdminChainName":"{name}""#));
            assert!(code == 7 && message.contains("target"), "{name}: {message}");
        }
        assert!(read(r#","iptablesAdminChainName":"reject""#).is_ok());
    }

    #[test]
    fn a_mark_bit_is_between_0_and_31() {
        assert_eq!(read(r#","markAdmitBit":0"#).unwrap().admit_mark, 1);
        assert_eq!(refusal(r#","markAdmitBit":32"#).0, 7);
        assert_eq!(refusal(r#","markAdmitBit":18446744073709551615"#).0, 7);
        assert_eq!(refusal(r#","markAdmitBit":-1"#).0, 6);
        assert_eq!(refusal(r#","markAdmitBit":"12""#).0, 6);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused() {
        for keys in [r#","backend":1"#, r#","hostChains":"inet filter forward""#, r#","antiSpoof":"yes""#] {
            assert_eq!(refusal(keys).0, 6, "{keys}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_validation_panic(a in ".*", b in ".*", c in ".*", d in ".*", bit: Option<u64>) {
            let written = Written {
                backend: a.clone(), iptables_admin_chain_name: b.clone(), firewalld_zone: c.clone(), ingress_policy: a,
                host_chains: vec![b, c, d], mark_admit_bit: bit, anti_spoof: false,
            };
            let _ = written.validate();
        }
    }
}
