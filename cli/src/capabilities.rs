//! Capability arguments: what a runtime adds to a configuration for one container (CONVENTIONS.md, "Dynamic Plugin
//! specific fields").
//!
//! A runtime knows what its user asked for (`--publish`, an annotation), a conflist says which plugin wants to hear it
//! (`"capabilities": {"portMappings": true}`). What no plugin wants reaches nobody.

use std::net::IpAddr;
use std::str::FromStr;

use common::cni::Json;
use ipnet::IpNet;
use serde_json::Number;

/// The burst that stands for "none was given": containerd sends it whenever a pod has a rate (2^32−1 bits).
pub const NO_BURST: u64 = u32::MAX as u64;

/// Values by capability name, in the order they were given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capabilities(Vec<(String, Json)>);

impl Capabilities {
    /// From a JSON object whose keys are the capabilities, as `CAP_ARGS` and the result cache have it.
    pub fn from_json(json: Json) -> Result<Capabilities, String> {
        match json {
            Json::Null => Ok(Capabilities::default()),
            Json::Object(pairs) => {
                let mut all = Capabilities::default();
                pairs.into_iter().for_each(|(name, value)| all.set(name, value));
                Ok(all)
            }
            other => Err(format!("capability arguments must be an object, not {}", other.kind())),
        }
    }

    /// As a JSON object.
    pub fn to_json(&self) -> Json {
        Json::Object(self.0.clone())
    }

    /// Sets one, in the place of an earlier value.
    pub fn set(&mut self, name: impl Into<String>, value: Json) {
        let name = name.into();
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, value));
    }

    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Those that a plugin declares, as its `runtimeConfig` (libcni's `injectRuntimeConfig`).
    pub fn declared_by(&self, declared: &[String]) -> Vec<(String, Json)> {
        self.0.iter().filter(|(name, _)| declared.contains(name)).cloned().collect()
    }
}

/// One published port, `[hostIP:]hostPort:containerPort[/proto]`, an IPv6 hostIP in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    host_ip: Option<IpAddr>,
    host_port: u16,
    container_port: u16,
    protocol: String,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Port, String> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(format!("protocol \"{protocol}\" is none of tcp, udp and sctp"));
        }
        let (host, container) =
            ports.rsplit_once(':').ok_or("it has the form [hostIP:]hostPort:containerPort[/proto]")?;
        let (host_ip, host_port) = match host.rsplit_once(':') {
            None => (None, host),
            Some((ip, port)) => (Some(host_address(ip)?), port),
        };
        Ok(Port { host_ip, host_port: port(host_port)?, container_port: port(container)?, protocol })
    }
}

fn host_address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let address: Option<IpAddr> = match bare {
        Some(v6) => v6.parse().ok().filter(IpAddr::is_ipv6),
        None => text.parse().ok().filter(IpAddr::is_ipv4),
    };
    address.ok_or_else(|| format!("hostIP \"{text}\" is neither an IPv4 address nor an IPv6 address in brackets"))
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("\"{text}\" is not a port between 1 and 65535")),
        Ok(port) => Ok(port),
    }
}

/// Capability `portMappings` of these ports, as podman writes it.
pub fn port_mappings(ports: &[Port]) -> Json {
    let mapping = |port: &Port| {
        let mut pairs = vec![
            ("hostPort".to_owned(), number(port.host_port.into())),
            ("containerPort".to_owned(), number(port.container_port.into())),
            ("protocol".to_owned(), Json::String(port.protocol.clone())),
        ];
        pairs.extend(port.host_ip.map(|ip| ("hostIP".to_owned(), Json::String(ip.to_string()))));
        Json::Object(pairs)
    };
    Json::Array(ports.iter().map(mapping).collect())
}

/// A quantity in bits (per second): a number, possibly with a fraction, and a unit: k, M, G, T by thousands, Ki, Mi, Gi, Ti
/// by 1024; `bit` may follow. Kubernetes' annotations and tc(8) are both understood.
pub fn bits(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let bare = lower.strip_suffix("bit").unwrap_or(&lower);
    let split = bare.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(bare.len());
    let (amount, unit) = bare.split_at(split);
    let factor: u64 = match unit.trim() {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        "t" => 1_000_000_000_000,
        "ki" => 1 << 10,
        "mi" => 1 << 20,
        "gi" => 1 << 30,
        "ti" => 1 << 40,
        other => return Err(format!("\"{other}\" is no unit of bits: there are k, M, G, T, Ki, Mi, Gi and Ti")),
    };
    scaled(amount, factor).ok_or_else(|| format!("\"{text}\" is not a positive number of bits, as 10M or 2.5G"))
}

/// `amount` × `factor` in integers, since a rate of 18 digits must not go through a float.
fn scaled(amount: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, "0"));
    let whole: u128 = whole.parse().ok()?;
    let tenths = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction: u128 = fraction.parse().ok()?;
    let total = whole.checked_mul(tenths)?.checked_add(fraction)?.checked_mul(factor.into())? / tenths;
    u64::try_from(total).ok().filter(|total| *total > 0)
}

/// One direction's limit, from the container's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits; none is sent as [`NO_BURST`].
    pub burst: Option<u64>,
}

/// Capability `bandwidth`; the members of a direction without a limit are left out.
pub fn bandwidth(ingress: Option<Limit>, egress: Option<Limit>) -> Json {
    let directions = [("ingress", ingress), ("egress", egress)];
    let pairs = directions.into_iter().filter_map(|(name, limit)| Some((name, limit?))).flat_map(|(name, limit)| {
        let burst = limit.burst.unwrap_or(NO_BURST);
        [(format!("{name}Rate"), number(limit.rate)), (format!("{name}Burst"), number(burst))]
    });
    Json::Object(pairs.collect())
}

/// Capability `mac`, after a look at its form.
pub fn mac(text: &str) -> Result<String, String> {
    let octets: Vec<&str> = text.split([':', '-']).collect();
    let is_octet = |o: &&str| o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit());
    if octets.len() == 6 && octets.iter().all(is_octet) {
        Ok(text.to_owned())
    } else {
        Err("a hardware address has six octets, as 02:00:5e:10:00:01".into())
    }
}

/// One address of capability `ips`, with or without a prefix length.
pub fn ip(text: &str) -> Result<String, String> {
    if text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("it is neither an address nor an address/prefix".into())
    }
}

/// `NAME=JSON`.
pub fn raw(text: &str) -> Result<(String, Json), String> {
    let (name, json) = text.split_once('=').filter(|(n, _)| !n.is_empty()).ok_or("it has the form NAME=JSON")?;
    let value = serde_json::from_str(json).map_err(|e| format!("the value of {name} is not JSON: {e}"))?;
    Ok((name.to_owned(), value))
}

fn number(n: u64) -> Json {
    Json::Number(Number::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &Json) -> String {
        serde_json::to_string(json).unwrap()
    }

    #[test]
    fn ports_are_read_in_all_their_forms() {
        let ports: Vec<Port> =
            ["8080:80", "53:5353/UDP", "127.0.0.1:1:2/tcp", "[::1]:3:4/sctp"].map(|p| p.parse().unwrap()).into();
        assert_eq!(
            text(&port_mappings(&ports)),
            r#"[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},"#.to_owned()
                + r#"{"hostPort":53,"containerPort":5353,"protocol":"udp"},"#
                + r#"{"hostPort":1,"containerPort":2,"protocol":"tcp","hostIP":"127.0.0.1"},"#
                + r#"{"hostPort":3,"containerPort":4,"protocol":"sctp","hostIP":"::1"}]"#
        );
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        for bad in
            ["", "80", "0:80", "80:0", "65536:1", "a:b", "80:80/icmp", "::1:80:80", "[127.0.0.1]:1:2", "x:1:2", ":1:2"]
        {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_bits_in_tcs_and_kubernetes_units() {
        for (written, meant) in [
            ("1", 1),
            ("10M", 10_000_000),
            ("10mbit", 10_000_000),
            ("1.5G", 1_500_000_000),
            ("64Ki", 65_536),
            ("2.5gbit", 2_500_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(bits(written), Ok(meant), "{written}");
        }
        for bad in ["", "0", "0.0M", "-1", "10X", "M", "1.2.3", "18446744073709551616", "99999999999T", "1e9", "."] {
            assert!(bits(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_without_a_burst_is_sent_as_containerd_sends_it() {
        let json = bandwidth(Some(Limit { rate: 5, burst: None }), Some(Limit { rate: 6, burst: Some(7) }));
        assert_eq!(text(&json), r#"{"ingressRate":5,"ingressBurst":4294967295,"egressRate":6,"egressBurst":7}"#);
        assert_eq!(
            text(&bandwidth(None, Some(Limit { rate: 6, burst: Some(7) }))),
            r#"{"egressRate":6,"egressBurst":7}"#
        );
    }

    #[test]
    fn a_plugin_hears_only_what_it_declares() {
        let mut all = Capabilities::default();
        all.set("mac", Json::String("a".into()));
        all.set("ips", Json::Null);
        all.set("mac", Json::String("b".into()));
        assert_eq!(all.declared_by(&["mac".to_owned()]), [("mac".to_owned(), Json::String("b".into()))]);
        assert_eq!(all.names().collect::<Vec<_>>(), ["ips", "mac"]);
    }

    #[test]
    fn raw_values_macs_and_addresses_are_checked_for_form() {
        assert_eq!(raw("x={\"a\":1}").map(|(n, v)| (n, text(&v))), Ok(("x".into(), r#"{"a":1}"#.into())));
        assert!(raw("x").is_err() && raw("=1").is_err() && raw("x=nope").is_err());
        assert!(mac("02:00:5E:10:00:01").is_ok() && mac("02:00").is_err() && mac("zz:00:00:00:00:00").is_err());
        assert!(ip("10.0.0.1").is_ok() && ip("fd00::1/64").is_ok() && ip("10.0.0.1/99").is_err());
    }
}
