//! The configuration common to all plugins: what stands on stdin besides a plugin's own keys.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::decode::{Json, Misspelt, fields_of};
use super::env::{Verb, is_identifier};
use super::error::{Error, Result};
use super::result::CniResult;
use super::version::Version;

/// Bytes of stdin that are read at the most: 65,535 port mappings take about 7 MiB.
pub const STDIN_MAX: usize = 16 << 20;

/// The keys that every plugin's configuration may have (SPEC.md, "Plugin configuration objects").
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Written {
    /// The version of the specification that configuration and result are of.
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", null])))]
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
    /// The network's name; it begins with a letter or digit, then letters, digits, `_`, `.` and `-` follow.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$")))]
    name: Option<String>,
    /// The plugin's name.
    #[serde(rename = "type")]
    _type: Option<String>,
    /// What the runtime may put into `runtimeConfig`.
    #[serde(rename = "capabilities")]
    _capabilities: BTreeMap<String, Option<bool>>,
    /// Of main plugins; ignored here.
    #[serde(rename = "ipam")]
    _ipam: Ipam,
    /// Of main plugins; ignored here.
    #[cfg_attr(feature = "schema", schemars(with = "bool"))]
    #[serde(rename = "ipMasq")]
    _ip_masq: IgnoredAny,
    /// Of main plugins; ignored here.
    #[serde(rename = "dns")]
    _dns: Dns,
    /// Labels and arguments of whoever called the runtime.
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Map<String, serde_json::Value>"))]
    #[serde(rename = "args")]
    _args: IgnoredAny,
    /// What the runtime adds, by capability.
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Map<String, serde_json::Value>"))]
    #[serde(rename = "runtimeConfig")]
    _runtime_config: IgnoredAny,
    /// What the plugins before have made; the runtime puts it in.
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Map<String, serde_json::Value>"))]
    #[serde(rename = "prevResult")]
    _prev_result: IgnoredAny,
    /// GC: who is alive; the runtime puts it in.
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same in libcni's older spelling.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
}

/// `ipam` as far as libcni's `types.IPAM` reads it.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("additionalProperties" = true)))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ipam {
    /// The name of the plugin that gives addresses.
    #[serde(rename = "type")]
    _type: Option<String>,
}

/// `dns` as libcni's `types.DNS` reads it.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("additionalProperties" = true)))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Dns {
    /// Name servers, by priority.
    #[serde(rename = "nameservers")]
    _nameservers: Vec<Option<String>>,
    /// The local domain.
    #[serde(rename = "domain")]
    _domain: Option<String>,
    /// Search list.
    #[serde(rename = "search")]
    _search: Vec<Option<String>>,
    /// Resolver options.
    #[serde(rename = "options")]
    _options: Vec<Option<String>>,
}

/// The keys without which nothing can go on, not even DEL and GC.
const NEEDED: [&str; 4] = ["cniVersion", "name", "cni.dev/valid-attachments", "cni.dev/attachments"];

/// An attachment that GC must leave alone.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ValidAttachment {
    /// Its CNI_CONTAINERID.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Its CNI_IFNAME.
    pub ifname: String,
}

/// A configuration as far as the protocol goes; a plugin reads its own keys from [`Network::json`].
#[derive(Debug)]
pub struct Network {
    /// The version of the configuration and of the result.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// What the plugins before have made.
    pub prev_result: Option<CniResult>,
    /// GC: who is alive; `None` if the configuration doesn't say.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The whole document.
    pub json: Json,
}

impl Network {
    /// Parses the JSON of stdin.
    pub fn parse(stdin: &[u8]) -> Result<Json> {
        let json: Json = serde_json::from_slice(stdin).map_err(|e| Error::NotJson { reason: e.to_string() })?;
        match json {
            Json::Object(_) => Ok(json),
            Json::Excess(how) => Err(Error::NotJson { reason: format!("it has {how}") }),
            other => Err(Error::NotJson { reason: format!("it must be an object, not {}", other.kind()) }),
        }
    }

    /// Validates what the protocol asks of every configuration, in the order of the reference: name, version, verb,
    /// prevResult.
    pub fn read(json: Json, verb: Verb) -> Result<Network> {
        let (written, unreadable) = read_written(&json)?;
        let name = match written.name {
            Some(name) if !name.is_empty() => name,
            _ => return Err(Error::MissingName),
        };
        if !is_identifier(&name) {
            return Err(Error::invalid(
                "name",
                format!("\"{name}\""),
                "invalid characters found in network name: it begins with a letter or digit, then letters, digits, \
                 '_', '.' and '-' follow",
            ));
        }
        let version = read_version(written.cni_version)?;
        allow(verb, version)?;
        match unreadable {
            // They must do what they can, and need none of these keys.
            Some(error) if matches!(verb, Verb::Del | Verb::Gc) => log::warn!("{error}; going on without it"),
            Some(error) => return Err(error),
            None => {}
        }
        let prev_result = match json.get("prevResult") {
            None | Some(Json::Null) => None,
            Some(prev) => match CniResult::read(prev, version) {
                // DEL must do what it can without a prevResult, so an unreadable one is as good as none.
                Err(error) if verb == Verb::Del => {
                    log::warn!("{error}; going on without it");
                    None
                }
                result => Some(result?),
            },
        };
        Ok(Network {
            version,
            name,
            prev_result,
            valid_attachments: written.valid_attachments.or(written.attachments),
            json,
        })
    }

    /// A plugin's own keys, and a warning for each key that is nearly one.
    pub fn own_keys<T: serde::de::DeserializeOwned>(&self) -> Result<(T, Vec<Misspelt>)> {
        let mut misspelt = Vec::new();
        let own = self.json.read_beside(common_keys(), &mut misspelt)?;
        Ok((own, misspelt))
    }

    /// A plugin's own keys, as if those whose value has a wrong type had not been written: what DEL and GC go by where ADD
    /// would refuse.
    pub fn readable_keys<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.json.readable_by::<T>().read().ok()
    }
}

/// The keys that every configuration may have.
pub fn common_keys() -> &'static [&'static str] {
    fields_of::<Written>()
}

/// The version that a configuration names, whether it is spoken or not: an answer that is no result names the same
/// (SPEC.md, "Error" and "VERSION Success").
pub fn named_version(json: &Json) -> Option<&str> {
    json.get("cniVersion").and_then(Json::as_str).filter(|version| Version::is_well_formed(version))
}

/// Reads the keys that every configuration may have, with the types that libcni's `types.NetConf` gives them; and the error
/// of one that isn't needed for what follows.
fn read_written(json: &Json) -> Result<(Written, Option<Error>)> {
    let error = match json.read(&mut Vec::new()) {
        Ok(written) => return Ok((written, None)),
        Err(error) => Error::from(error),
    };
    let readable = json.readable_by::<Written>();
    // Of a key that stands there twice the last counts, even if the first alone could be read.
    let is_lost = |key: &&str| json.get(key) != readable.get(key);
    if NEEDED.iter().any(is_lost) {
        return Err(error);
    }
    Ok((readable.read()?, Some(error)))
}

fn read_version(written: Option<String>) -> Result<Version> {
    let text = match written {
        None => return Ok(Version::V0_1_0),
        Some(text) if text.is_empty() => return Ok(Version::V0_1_0),
        Some(text) => text,
    };
    match Version::from_exact(&text) {
        Some(version) => Ok(version),
        None if Version::is_well_formed(&text) => Err(Error::IncompatibleVersion { config: text }),
        None => Err(Error::MalformedVersion { version: text }),
    }
}

fn allow(verb: Verb, version: Version) -> Result<()> {
    let since = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => return Ok(()),
    };
    if version < since { Err(Error::VerbNotInVersion { verb: verb.as_str(), version }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Own {
        #[serde(rename = "ingressRate")]
        _ingress_rate: IgnoredAny,
    }

    #[test]
    fn misspelt_keys_are_named_whoever_reads_them() {
        let text = br#"{"name":"n","capabilites":{},"prevResul":{},"ingresRate":1,"ipMasq":true,"bridge":"b","mtu":1}"#;
        let net = Network::read(Network::parse(text).unwrap(), Verb::Del).unwrap();
        let (_, misspelt) = net.own_keys::<Own>().unwrap();
        let meant: Vec<&str> = misspelt.iter().map(|m| m.meant).collect();
        assert_eq!(meant, ["capabilities", "prevResult", "ingressRate"]);
    }
}
