//! Results in every version's shape, and the conversions between them.
//!
//! Inside, a result is always the 1.1.0 one. Nothing that the reference keeps is lost on the way: 0.3.x to 1.0.0
//! documents may carry the newer route fields, because libcni reads and writes them with one Go type.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::decode::{Json, Misspelt, at_most, cidr};
use super::error::{Error, Result};
use super::version::{Family, Version};

/// Entries of one list of a result: no container has as many addresses or routes.
const LIST_MAX: usize = 4096;

fn few<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    at_most::<LIST_MAX, D, T>(deserializer)
}

/// What a chain of plugins has made so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces, on the host and in the container.
    #[serde(deserialize_with = "few")]
    pub interfaces: Vec<Interface>,
    /// Addresses of the container's interfaces.
    #[serde(deserialize_with = "few")]
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    #[serde(deserialize_with = "few")]
    pub routes: Vec<Route>,
    /// Name resolution for the container.
    pub dns: Dns,
}

/// One network interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as the plugin that made it wrote it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1.0).
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: i64,
    /// The namespace or sandbox it is in; empty for the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The path of a socket that stands for the interface (1.1.0).
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI address of the device (1.1.0).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// One address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct IpConfig {
    /// Index into the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    /// Address with prefix length.
    #[serde(deserialize_with = "network")]
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Route {
    /// Destination.
    #[serde(deserialize_with = "network")]
    pub dst: IpNet,
    /// Next hop; absent means the address's gateway.
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: i64,
    /// Advertised maximal segment size in bytes (1.1.0).
    #[serde(default, rename = "advmss", skip_serializing_if = "is_zero")]
    pub adv_mss: i64,
    /// Metric (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<i64>,
    /// Scope (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<i64>,
}

/// Name resolution of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers, by priority.
    #[serde(deserialize_with = "few", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(deserialize_with = "few", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(deserialize_with = "few", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn network<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    let text = String::deserialize(deserializer)?;
    cidr(&text).ok_or_else(|| serde::de::Error::custom(format!("invalid CIDR address: {text}")))
}

/// An address, or the empty string that Go writes for none.
fn optional_address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => {
            text.parse().map(Some).map_err(|_| serde::de::Error::custom(format!("invalid IP address: {text}")))
        }
    }
}

impl CniResult {
    /// Reads a prevResult that came in a configuration of `version`.
    ///
    /// Its own `cniVersion` may be absent or of the same family; another family is refused, as libcni does.
    pub fn read(json: &Json, version: Version) -> Result<CniResult> {
        let own = match json.get("cniVersion") {
            None | Some(Json::Null) => version,
            Some(Json::String(text)) if text.is_empty() => version,
            Some(Json::String(text)) => match Version::from_exact(text) {
                Some(own) if own.family() == version.family() => own,
                _ => return Err(foreign_version(text, version)),
            },
            Some(other) => {
                return Err(Error::WrongType {
                    key: "prevResult.cniVersion".into(),
                    reason: format!("must be a string, not {}", other.kind()),
                });
            }
        };
        let mut ignored = Vec::new();
        match own.family() {
            Family::Ip4Ip6 => decode::<Ip4Ip6>(json, &mut ignored).map(CniResult::from),
            Family::VersionedIps | Family::Plain => decode::<CniResult>(json, &mut ignored),
        }
    }

    /// The document in the shape of `version`.
    pub fn to_document(&self, version: Version) -> Result<Document<'_>> {
        match version.family() {
            Family::Ip4Ip6 => {
                Ip4Ip6::try_from(self).map(|r| Document::Ip4Ip6(Versioned { cni_version: version.as_str(), result: r }))
            }
            Family::VersionedIps => Ok(Document::VersionedIps(Versioned {
                cni_version: version.as_str(),
                result: VersionedIps::from(self),
            })),
            Family::Plain => {
                Ok(Document::Plain(Versioned { cni_version: version.as_str(), result: Plain::from(self) }))
            }
        }
    }

    /// Whether the address at `ip` is on the container's interface `ifname`, as the reference decides it: its
    /// interface is not given, out of range, or the one in a sandbox with this name.
    pub fn is_on(&self, ip: &IpConfig, ifname: &str) -> bool {
        let interface = ip.interface.and_then(|i| usize::try_from(i).ok()).and_then(|i| self.interfaces.get(i));
        interface.is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
    }
}

fn foreign_version(own: &str, version: Version) -> Error {
    let supported: Vec<&str> = Version::of_family(version.family()).map(Version::as_str).collect();
    Error::BadPrevResult {
        reason: format!("result type supports [{}] but its cniVersion is \"{own}\"", supported.join(" ")),
    }
}

fn decode<T: serde::de::DeserializeOwned>(json: &Json, ignored: &mut Vec<Misspelt>) -> Result<T> {
    json.read(ignored).map_err(|error| error.within("prevResult").into())
}

/// A result as it stands on stdout.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Document<'a> {
    /// 0.1.0 and 0.2.0.
    Ip4Ip6(Versioned<Ip4Ip6>),
    /// 0.3.0 to 0.4.0.
    VersionedIps(Versioned<VersionedIps<'a>>),
    /// 1.0.0 and newer.
    Plain(Versioned<Plain<'a>>),
}

/// A shape with its `cniVersion` in front.
#[derive(Debug, Serialize)]
pub struct Versioned<T> {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    #[serde(flatten)]
    result: T,
}

/// The shape of 1.0.0 and newer; empty members are left out, as libcni does.
#[derive(Debug, Serialize)]
pub struct Plain<'a> {
    #[serde(skip_serializing_if = "slice_is_empty")]
    interfaces: &'a [Interface],
    #[serde(skip_serializing_if = "slice_is_empty")]
    ips: &'a [IpConfig],
    #[serde(skip_serializing_if = "slice_is_empty")]
    routes: &'a [Route],
    #[serde(skip_serializing_if = "Dns::is_empty")]
    dns: &'a Dns,
}

fn slice_is_empty<T>(slice: &&[T]) -> bool {
    slice.is_empty()
}

impl<'a> From<&'a CniResult> for Plain<'a> {
    fn from(r: &'a CniResult) -> Self {
        Plain { interfaces: &r.interfaces, ips: &r.ips, routes: &r.routes, dns: &r.dns }
    }
}

/// The shape of 0.3.0 to 0.4.0: addresses say their family, interfaces know name, mac and sandbox, and `dns` is always
/// there.
#[derive(Debug, Serialize)]
pub struct VersionedIps<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<OldInterface<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<VersionedIp<'a>>,
    #[serde(skip_serializing_if = "slice_is_empty")]
    routes: &'a [Route],
    dns: &'a Dns,
}

#[derive(Debug, Serialize)]
struct OldInterface<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
}

#[derive(Debug, Serialize)]
struct VersionedIp<'a> {
    version: &'static str,
    #[serde(flatten)]
    ip: &'a IpConfig,
}

impl<'a> From<&'a CniResult> for VersionedIps<'a> {
    fn from(r: &'a CniResult) -> Self {
        let interface = |i: &'a Interface| OldInterface { name: &i.name, mac: &i.mac, sandbox: &i.sandbox };
        let versioned = |ip: &'a IpConfig| VersionedIp { version: if is_v4(&ip.address) { "4" } else { "6" }, ip };
        VersionedIps {
            interfaces: r.interfaces.iter().map(interface).collect(),
            ips: r.ips.iter().map(versioned).collect(),
            routes: &r.routes,
            dns: &r.dns,
        }
    }
}

const fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// The shape of 0.1.0 and 0.2.0: one address of each family, with its routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Ip4Ip6 {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<OldIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<OldIp>,
    dns: Dns,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct OldIp {
    #[serde(deserialize_with = "network")]
    ip: IpNet,
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "few", skip_serializing_if = "Vec::is_empty")]
    routes: Vec<OldRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct OldRoute {
    #[serde(deserialize_with = "network")]
    dst: IpNet,
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
}

impl From<Ip4Ip6> for CniResult {
    fn from(old: Ip4Ip6) -> Self {
        let mut new = CniResult { dns: old.dns, ..CniResult::default() };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            new.ips.push(IpConfig { interface: None, address: ip.ip, gateway: ip.gateway });
            new.routes.extend(ip.routes.into_iter().map(|r| Route {
                dst: r.dst,
                gw: r.gw,
                mtu: 0,
                adv_mss: 0,
                priority: 0,
                table: None,
                scope: None,
            }));
        }
        new
    }
}

impl TryFrom<&CniResult> for Ip4Ip6 {
    type Error = Error;

    fn try_from(new: &CniResult) -> Result<Self> {
        let first = |v4: bool| {
            let ip = new.ips.iter().find(|ip| is_v4(&ip.address) == v4)?;
            let routes = new.routes.iter().filter(|r| is_v4(&r.dst) == v4);
            Some(OldIp {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes.map(|r| OldRoute { dst: r.dst, gw: r.gw }).collect(),
            })
        };
        let old = Ip4Ip6 { ip4: first(true), ip6: first(false), dns: new.dns.clone() };
        if old.ip4.is_none() && old.ip6.is_none() {
            return Err(Error::BadPrevResult { reason: "cannot convert: no valid IP addresses".into() });
        }
        Ok(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str, version: Version) -> Result<CniResult> {
        CniResult::read(&serde_json::from_str(text).unwrap(), version)
    }

    fn write(result: &CniResult, version: Version) -> serde_json::Value {
        serde_json::to_value(result.to_document(version).unwrap()).unwrap()
    }

    /// `in` and `out` are JSON of the same version: what came in must come out.
    fn comes_back(text: &str, version: Version) {
        let result = read(text, version).unwrap();
        assert_eq!(write(&result, version), serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    const FULL: &str = r#"{"cniVersion":"1.1.0",
        "interfaces":[{"name":"cni0","mac":"12:dc:04:cf:71:6b","mtu":1450},
                      {"name":"eth0","sandbox":"/run/netns/x","socketPath":"/run/vhost.sock","pciID":"0000:00:1f.6"}],
        "ips":[{"interface":1,"address":"10.44.0.3/24","gateway":"10.44.0.1"},{"address":"fd00:44::3/64"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.44.0.1","mtu":1400,"advmss":1360,"priority":10,"table":0,"scope":0},
                  {"dst":"::/0"}],
        "dns":{"nameservers":["10.1.0.1"],"domain":"example.org","search":["a","b"],"options":["ndots:5"]}}"#;

    #[test]
    fn every_field_of_1_1_0_survives() {
        comes_back(FULL, Version::V1_1_0);
    }

    #[test]
    fn fields_newer_than_1_0_0_survive_it() {
        comes_back(&FULL.replace("1.1.0", "1.0.0"), Version::V1_0_0);
    }

    #[test]
    fn versions_of_a_family_convert_and_an_absent_one_is_the_configurations() {
        let old = r#"{"interfaces":[{"name":"eth0"}],"ips":[{"version":"4","address":"10.0.0.2/24"}]}"#;
        let result = read(old, Version::V0_3_1).unwrap();
        let written = write(&result, Version::V0_4_0);
        assert_eq!(written["cniVersion"], "0.4.0");
        assert_eq!(written["ips"][0]["version"], "4");
        assert_eq!(written["dns"], serde_json::json!({}), "0.3.x and 0.4.0 always have dns");
        assert!(read(&FULL.replace("1.1.0", "1.0.0"), Version::V1_1_0).is_ok());
    }

    #[test]
    fn a_list_that_no_container_has_is_refused_by_its_key_and_the_bound() {
        let many = |key: &str, entry: &str, n: usize| format!(r#"{{"{key}":[{}]}}"#, vec![entry; n].join(","));
        let entries = [
            ("interfaces", r#"{"name":"x"}"#),
            ("ips", r#"{"address":"10.0.0.2/24"}"#),
            ("routes", r#"{"dst":"10.0.0.0/8"}"#),
        ];
        for (key, entry) in entries {
            assert!(read(&many(key, entry, LIST_MAX), Version::V1_1_0).is_ok());
            let error = read(&many(key, entry, LIST_MAX + 1), Version::V1_1_0).unwrap_err();
            assert_eq!(error.code(), 7);
            let text = error.to_string();
            assert!(
                text.contains(&format!("prevResult.{key} = 4097 entries")) && text.contains("at most 4096"),
                "{text}"
            );
        }
        let routes = many("routes", r#"{"dst":"10.0.0.0/8"}"#, LIST_MAX + 1);
        let old = format!(r#"{{"ip4":{{"ip":"10.0.0.2/24",{}}}"#, routes.trim_start_matches('{'));
        assert!(read(&old, Version::V0_2_0).unwrap_err().to_string().contains("prevResult.ip4.routes"));
    }

    #[test]
    fn another_family_is_refused() {
        for (own, version) in [("0.4.0", Version::V1_0_0), ("1.0.0", Version::V0_4_0), ("0.2.0", Version::V0_3_0)] {
            let text = format!(r#"{{"cniVersion":"{own}","ips":[]}}"#);
            let error = read(&text, version).unwrap_err();
            assert!(matches!(&error, Error::BadPrevResult { reason } if reason.contains(own)), "{error}");
        }
    }

    #[test]
    fn ip4_and_ip6_with_their_routes_come_back() {
        comes_back(
            r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]},
                "ip6":{"ip":"fd00::2/64","routes":[{"dst":"::/0","gw":"fd00::1"}]},"dns":{}}"#,
            Version::V0_2_0,
        );
    }

    #[test]
    fn without_any_address_there_is_no_old_result() {
        let error = CniResult::default().to_document(Version::V0_1_0).unwrap_err();
        assert!(error.to_string().contains("cannot convert: no valid IP addresses"));
    }

    #[test]
    fn a_bad_address_is_named() {
        let error = read(r#"{"ips":[{"address":"10.0.0.300/24"}]}"#, Version::V1_0_0).unwrap_err();
        assert_eq!(error.code(), 6);
        assert!(error.to_string().contains("prevResult.ips.0.address"), "{error}");
        assert!(read("[]", Version::V1_0_0).is_err());
    }

    #[test]
    fn an_address_belongs_to_the_containers_interface_unless_it_says_otherwise() {
        let result = read(FULL, Version::V1_1_0).unwrap();
        let at = |interface| IpConfig { interface, address: "10.0.0.2/24".parse().unwrap(), gateway: None };
        assert!(result.is_on(&at(None), "eth0"));
        assert!(result.is_on(&at(Some(99)), "eth0"));
        assert!(result.is_on(&at(Some(-1)), "eth0"));
        assert!(result.is_on(&at(Some(1)), "eth0"));
        assert!(!result.is_on(&at(Some(1)), "eth1"));
        assert!(!result.is_on(&at(Some(0)), "cni0"), "cni0 is on the host");
    }

    fn network() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, p)| IpNet::new(IpAddr::from(a), p).unwrap()),
            (any::<[u16; 8]>(), 0..=128u8).prop_map(|(a, p)| IpNet::new(IpAddr::from(a), p).unwrap()),
        ]
    }

    fn address() -> impl Strategy<Value = Option<IpAddr>> {
        proptest::option::of(network().prop_map(|n| n.addr()))
    }

    prop_compose! {
        fn interface()(name in "[a-z0-9]{1,15}", mac in "([0-9a-f]{2}:){0,5}", mtu in any::<i64>(),
                       sandbox in "(/[a-z]{0,5})?", socket_path in "[a-z]{0,3}", pci_id in "[0-9]{0,3}") -> Interface {
            Interface { name, mac, mtu, sandbox, socket_path, pci_id }
        }
    }

    prop_compose! {
        fn route()(dst in network(), gw in address(), n in any::<[i64; 3]>(),
                   table in any::<Option<i64>>(), scope in any::<Option<i64>>()) -> Route {
            Route { dst, gw, mtu: n[0], adv_mss: n[1], priority: n[2], table, scope }
        }
    }

    prop_compose! {
        fn result()(
            interfaces in proptest::collection::vec(interface(), 0..4),
            ips in proptest::collection::vec((any::<Option<i64>>(), network(), address()), 0..4),
            routes in proptest::collection::vec(route(), 0..4),
            lists in proptest::collection::vec(proptest::collection::vec("[ -~]{0,8}", 0..3), 3),
            domain in "[a-z.]{0,9}",
        ) -> CniResult {
            let ips = ips.into_iter().map(|(interface, address, gateway)| IpConfig { interface, address, gateway });
            let [nameservers, search, options] = <[Vec<String>; 3]>::try_from(lists).unwrap();
            CniResult { interfaces, ips: ips.collect(), routes, dns: Dns { nameservers, domain, search, options } }
        }
    }

    /// What of a result a version's shape can hold.
    fn as_held_by(result: &CniResult, version: Version) -> CniResult {
        let mut held = result.clone();
        if version.family() == Family::VersionedIps {
            for i in &mut held.interfaces {
                *i = Interface {
                    name: i.name.clone(),
                    mac: i.mac.clone(),
                    sandbox: i.sandbox.clone(),
                    ..Interface::default()
                };
            }
        }
        held
    }

    proptest! {
        #[test]
        fn any_result_comes_back_from_any_newer_version(result in result()) {
            for version in Version::ALL.into_iter().filter(|v| v.family() != Family::Ip4Ip6) {
                let text = serde_json::to_string(&result.to_document(version).unwrap()).unwrap();
                prop_assert_eq!(read(&text, version).unwrap(), as_held_by(&result, version));
            }
        }

        #[test]
        fn an_old_document_is_a_fixed_point(result in result()) {
            if let Ok(document) = result.to_document(Version::V0_2_0) {
                let text = serde_json::to_string(&document).unwrap();
                let again = read(&text, Version::V0_2_0).unwrap();
                prop_assert_eq!(serde_json::to_string(&again.to_document(Version::V0_2_0).unwrap()).unwrap(), text);
            }
        }
    }
}
