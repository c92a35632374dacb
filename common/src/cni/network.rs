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

fn object(read: serde_json::Result<Json>) -> Result<Json> {
    match read.map_err(|e| Error::NotJson { reason: e.to_string() })? {
        json @ Json::Object(_) => Ok(json),
        Json::Excess(how) => Err(Error::NotJson { reason: format!("it has {how}") }),
        other => Err(Error::NotJson { reason: format!("it must be an object, not {}", other.kind()) }),
    }
}

/// The document with the greatest number in the place of the one that an error is about.
fn limited(json: &[u8], error: &serde_json::Error) -> Vec<u8> {
    let lines = json.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let at = lines.map(<[u8]>::len).sum::<usize>() + error.column();
    let (before, behind) = json.split_at(at.min(json.len()));
    let is_of_number = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let head = before.len() - before.iter().rev().take_while(is_of_number).count();
    let tail = behind.iter().take_while(is_of_number).count();
    [before.get(..head).unwrap_or_default(), b"1e308", behind.get(tail..).unwrap_or_default()].concat()
}

/// serde_json's words for a number that it can't hold; it has no code for them.
const OUT_OF_RANGE: &str = "number out of range";

/// How many such numbers are looked for: each takes a reading of the whole.
const NUMBERS_MAX: usize = 16;

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
        object(serde_json::from_slice(stdin))
    }

    /// The same of a document in which numbers may be greater than any that can be read: they become the greatest, which no
    /// key takes, so that those who must go on without the key (DEL, GC) can.
    pub fn parse_whatever_its_numbers(stdin: &[u8]) -> Result<Json> {
        let (mut read, mut bytes) = (serde_json::from_slice(stdin), Vec::new());
        for _ in 0..NUMBERS_MAX {
            match &read {
                Err(error) if error.to_string().starts_with(OUT_OF_RANGE) => {
                    bytes = limited(if bytes.is_empty() { stdin } else { &bytes }, error);
                    read = serde_json::from_slice(&bytes);
                }
                _ => break,
            }
        }
        object(read)
    }

    /// The prevResult with everything that stands in it, of the configuration's version: what a plugin passes on that adds
    /// nothing to it. `None` if something in it was too large to be kept.
    pub fn prev_result_as_written(&self) -> Option<Json> {
        let mut pairs = match self.json.get("prevResult").filter(|json| json.is_whole())? {
            Json::Object(pairs) => pairs.clone(),
            _ => return None,
        };
        pairs.retain(|(key, _)| !key.eq_ignore_ascii_case("cniVersion"));
        pairs.insert(0, ("cniVersion".to_owned(), Json::String(self.version.as_str().to_owned())));
        Some(Json::Object(pairs))
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
    #[test]
    fn numbers_beyond_all_bounds_are_read_where_a_call_must_go_on() {
        let text = br#"{"name":"n",
            "ingressRate":1e400,"a":[-1E+4000,2]}"#;
        assert!(Network::parse(text).is_err());
        let json = Network::parse_whatever_its_numbers(text).unwrap();
        assert_eq!(json.get("ingressRate"), Network::parse(br#"{"a":1e308}"#).unwrap().get("a"));
        let Some(Json::Array(items)) = json.get("a") else { panic!("{json:?}") };
        assert_eq!(items.len(), 2);
        for text in ["{\"a\":1e400", "1e400", "{\"a\":[1e400,]}", &format!("[{}1]", "1e400,".repeat(40))] {
            assert!(Network::parse_whatever_its_numbers(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_prev_result_is_passed_on_with_all_its_keys_and_the_configurations_version() {
        let text = br#"{"cniVersion":"1.1.0","name":"n","prevResult":{"x":{"y":[1.5,null]},"cniversion":"1.0.0"}}"#;
        let net = Network::read(Network::parse(text).unwrap(), Verb::Add).unwrap();
        let written = serde_json::to_string(&net.prev_result_as_written().unwrap()).unwrap();
        assert_eq!(written, r#"{"cniVersion":"1.1.0","x":{"y":[1.5,null]}}"#);
        let many =
            format!(r#"{{"name":"n","prevResult":{{"x":[[{}0]]}}}}"#, "0,".repeat(super::super::decode::ENTRIES_MAX));
        let net = Network::read(Network::parse(many.as_bytes()).unwrap(), Verb::Add).unwrap();
        assert_eq!(net.prev_result_as_written(), None);
    }
}
