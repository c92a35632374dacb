//! Results in every version's shape, and the conversions between them.
//!
//! Inside, a result is always the 1.1.0 one. Nothing that the reference keeps is lost on the way: 0.3.x to 1.0.0
//! documents may carry the newer route fields, because libcni reads and writes them with one Go type.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::decode::{Json, Misspelt};
use super::error::{Error, Result};
use super::version::{Family, Version};

/// What a chain of plugins has made so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces, on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container's interfaces.
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
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
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Route {
    /// Destination.
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
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
    if !matches!(json, Json::Object(_)) {
        return Err(Error::WrongType {
            key: "prevResult".into(),
            reason: format!("must be an object, not {}", json.kind()),
        });
    }
    json.read(ignored).map_err(|e| Error::WrongType {
        key: format!("prevResult.{}", e.key()).trim_end_matches('.').to_owned(),
        reason: e.reason().to_owned(),
    })
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
    ip: IpNet,
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<OldRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct OldRoute {
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
