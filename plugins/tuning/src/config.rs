//! The configuration: as it may be written, and what was meant by it.
//!
//! A value can come from four places. From the strongest: `args.cni`, `runtimeConfig`, `CNI_ARGS`, the configuration
//! itself; `sysctl` is merged key by key.

use std::fmt;
use std::path::PathBuf;

use common::cni::env::{Args, Verb};
#[cfg(feature = "schema")]
use common::cni::shape;
use common::link::attributes::LinkAttributes;
use common::sysctl::{self, Key};
use common::{Call, Error, Result};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

/// Where state files are kept unless `dataDir` says otherwise, as in the reference.
pub const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";

/// The keys as they may be written.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Written {
    /// Where state files are kept (`/run/cni/tuning`).
    #[serde(rename = "dataDir")]
    data_dir: Option<String>,
    /// Keys of /proc/sys/net, with dots or slashes, and their values; `IFNAME` stands for the interface's name.
    sysctl: Pairs,
    /// The hardware address: 6, 8 or 20 bytes.
    #[cfg_attr(
        feature = "schema",
        schemars(regex(pattern = shape::mac()), extend("not" = {"type": "string", "pattern": shape::nobodys_mac()}))
    )]
    mac: Option<String>,
    /// Whether the interface takes every packet.
    promisc: Option<bool>,
    /// Bytes; 0 leaves the interface's own.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = u32::MAX)))]
    mtu: Option<i64>,
    /// Whether the interface takes every multicast packet.
    allmulti: Option<bool>,
    /// Packets.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = u32::MAX)))]
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<i64>,
    /// What the runtime adds.
    #[serde(rename = "runtimeConfig")]
    runtime_config: RuntimeConfig,
    /// Labels and arguments of whoever called the runtime.
    args: CniArgs,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("additionalProperties" = true)))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    /// Of the capability `mac`.
    #[cfg_attr(
        feature = "schema",
        schemars(regex(pattern = shape::mac()), extend("not" = {"type": "string", "pattern": shape::nobodys_mac()}))
    )]
    mac: Option<String>,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("additionalProperties" = true)))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    /// The same keys, each winning over the configuration's.
    cni: Overrides,
}

/// `args.cni`: the same keys, each winning over the configuration's.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("additionalProperties" = true)))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Overrides {
    /// Keys of /proc/sys/net, with dots or slashes, and their values; `IFNAME` stands for the interface's name.
    sysctl: Pairs,
    /// The hardware address: 6, 8 or 20 bytes.
    #[cfg_attr(
        feature = "schema",
        schemars(regex(pattern = shape::mac()), extend("not" = {"type": "string", "pattern": shape::nobodys_mac()}))
    )]
    mac: Option<String>,
    /// Whether the interface takes every packet.
    promisc: Option<bool>,
    /// Bytes; 0 leaves the interface's own.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = u32::MAX)))]
    mtu: Option<i64>,
    /// Whether the interface takes every multicast packet.
    allmulti: Option<bool>,
    /// Packets.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = u32::MAX)))]
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<i64>,
}

/// The pairs of `sysctl`, in the order written and with their duplicates.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(extend("maxProperties" = MOST_SYSCTLS, "propertyNames" = {"pattern": shape::sysctl_key(), "not": {"pattern": shape::sysctl_key_with_a_step_aside()}}))
)]
#[derive(Debug, Default)]
struct Pairs(
    #[cfg_attr(feature = "schema", schemars(with = "std::collections::BTreeMap<String, Option<Value>>"))]
    Vec<(String, String)>,
);

/// A sysctl's value: a string, or a number or boolean that becomes one.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("type" = ["string", "integer", "boolean"], "minimum" = i64::MIN, "maximum" = u64::MAX, "pattern" = "^[^\\u0000\\n]*\\n?$")))]
struct Value(String);

/// What was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where state files are kept.
    pub data_dir: PathBuf,
    /// Sysctls in the order in which they are written.
    pub sysctls: Vec<Setting>,
    /// Attributes of the container's interface; `promisc` is never `Some(false)`, which asks for nothing.
    pub link: LinkAttributes,
}

/// One sysctl to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Which.
    pub key: Key,
    /// To what.
    pub value: String,
}

impl Config {
    /// What was meant by `written`; of a verb that only removes, the state directory is all that matters.
    pub fn validate(written: Written, call: &Call) -> Result<Config> {
        let data_dir = written.data_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or(DEFAULT_DATA_DIR).into();
        if matches!(call.verb, Verb::Del | Verb::Gc) {
            return Ok(Config { data_dir, sysctls: Vec::new(), link: LinkAttributes::default() });
        }
        let link = link_attributes(&written, &call.args)?;
        Ok(Config { data_dir, sysctls: settings(written, &call.attachment.ifname)?, link })
    }

    /// Whether nothing is asked for.
    pub fn is_idle(&self) -> bool {
        self.sysctls.is_empty() && self.link.is_empty()
    }
}

fn link_attributes(written: &Written, args: &Args) -> Result<LinkAttributes> {
    let over = &written.args.cni;
    let promisc = over.promisc.or(written.promisc).unwrap_or(false);
    Ok(LinkAttributes {
        mac: mac(written, args)?,
        mtu: mtu(over.mtu.or(written.mtu))?,
        promisc: promisc.then_some(true),
        allmulti: over.allmulti.or(written.allmulti),
        tx_queue_len: over.tx_queue_len.or(written.tx_queue_len).map(tx_queue_len).transpose()?,
    })
}

/// The strongest source that gives a mac; an empty one in `args.cni` asks for none, elsewhere it is not given.
fn mac(written: &Written, args: &Args) -> Result<Option<Vec<u8>>> {
    fn given(text: Option<&str>) -> Option<&str> {
        text.filter(|t| !t.is_empty())
    }
    let from_args = mac_of_args(args)?;
    let runtime = written.runtime_config.mac.as_deref();
    let sources = [
        (given(runtime), "runtimeConfig.mac"),
        (given(from_args), "CNI_ARGS MAC"),
        (given(written.mac.as_deref()), "mac"),
    ];
    let chosen = match written.args.cni.mac.as_deref() {
        Some(text) => given(Some(text)).map(|t| (t, "args.cni.mac")),
        None => sources.into_iter().find_map(|(text, source)| text.map(|t| (t, source))),
    };
    let Some((text, source)) = chosen else { return Ok(None) };
    parse_mac(text).map(Some).map_err(|reason| {
        Error::invalid(source, format!("\"{text}\""), format!("invalid args {text} for MAC addr: {reason}"))
    })
}

/// `MAC` of CNI_ARGS. A key that is not known fails unless `IgnoreUnknown` is set, as libcni's `LoadArgs` has it.
fn mac_of_args(args: &Args) -> Result<Option<&str>> {
    let refuse = |value: String, reason: &str| Error::InvalidEnvironment {
        variable: "CNI_ARGS",
        value,
        reason: reason.to_owned(),
    };
    let lenient = match args.get("IgnoreUnknown").map(str::to_ascii_lowercase).as_deref() {
        Some("1" | "true") => true,
        None | Some("0" | "false") => false,
        Some(other) => return Err(refuse(format!("IgnoreUnknown={other}"), "it is 1 or true, 0 or false")),
    };
    let unknown = args.iter().find(|(key, _)| !matches!(*key, "IgnoreUnknown" | "MAC"));
    if let Some((key, value)) = unknown.filter(|_| !lenient) {
        return Err(refuse(
            format!("{key}={value}"),
            "unknown args: known are MAC and IgnoreUnknown=1, which allows others",
        ));
    }
    Ok(args.well_formed()?.get("MAC"))
}

/// A hardware address as Go's `net.ParseMAC` reads it: 6, 8 or 20 bytes, in pairs after colons or dashes or in fours
/// after dots.
pub fn parse_mac(text: &str) -> std::result::Result<Vec<u8>, &'static str> {
    const FORM: &str = "it is 6, 8 or 20 bytes as 02:00:00:00:00:01, 02-00-00-00-00-01 or 0200.0000.0001";
    let separator = text.chars().find(|c| matches!(c, ':' | '-' | '.')).ok_or(FORM)?;
    let digits = if separator == '.' { 4 } else { 2 };
    let mut mac = Vec::with_capacity(20);
    for group in text.split(separator) {
        if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(FORM);
        }
        let number = u16::from_str_radix(group, 16).map_err(|_| FORM)?.to_be_bytes();
        mac.extend(number.get(2 - digits / 2..).unwrap_or_default());
    }
    match mac.as_slice() {
        [first, _, _, _, _, _] if first & 1 == 1 => Err("a multicast address can't be an interface's own"),
        [0, 0, 0, 0, 0, 0] => Err("an address of noughts can't be an interface's own"),
        bytes if matches!(bytes.len(), 6 | 8 | 20) => Ok(mac),
        _ => Err(FORM),
    }
}

/// In bytes; 0 leaves it, as in the reference.
fn mtu(written: Option<i64>) -> Result<Option<u32>> {
    match written {
        None | Some(0) => Ok(None),
        Some(bytes) => u32::try_from(bytes)
            .map(Some)
            .map_err(|_| Error::invalid("mtu", bytes, "it is a number of bytes; 0 leaves the interface's own")),
    }
}

fn tx_queue_len(written: i64) -> Result<u32> {
    u32::try_from(written).map_err(|_| Error::invalid("txQLen", written, "it is a number of packets, 0 or more"))
}

/// More sysctls than a namespace has (some 600, and 110 for each interface); each is compared with all the others.
const MOST_SYSCTLS: usize = 4096;

/// The configuration's sysctls with those of `args.cni` in their place, or behind them.
fn settings(written: Written, ifname: &str) -> Result<Vec<Setting>> {
    // STATUS speaks of no interface: the placeholder then stands for itself.
    let ifname = if ifname.is_empty() { sysctl::PLACEHOLDER } else { ifname };
    for (source, pairs) in [("sysctl", &written.sysctl), ("args.cni.sysctl", &written.args.cni.sysctl)] {
        if pairs.0.len() > MOST_SYSCTLS {
            let number = format!("{} sysctls", pairs.0.len());
            return Err(Error::invalid(source, number, format!("{MOST_SYSCTLS} is the most")));
        }
    }
    let mut settings = settings_of("sysctl", &written.sysctl, ifname)?;
    for new in settings_of("args.cni.sysctl", &written.args.cni.sysctl, ifname)? {
        match settings.iter_mut().find(|s| s.key.means_the_same(&new.key)) {
            None => settings.push(new),
            Some(old) => *old = new,
        }
    }
    Ok(settings)
}

/// The sysctls of one source, each of them once.
fn settings_of(source: &str, pairs: &Pairs, ifname: &str) -> Result<Vec<Setting>> {
    let mut settings: Vec<Setting> = Vec::with_capacity(pairs.0.len());
    for (key, value) in &pairs.0 {
        let new = setting(source, key, value, ifname)?;
        match settings.iter().find(|s| s.key.means_the_same(&new.key)) {
            None => settings.push(new),
            // Two spellings of one key that agree are one setting.
            Some(old) if old.key != new.key && sysctl::same_value(&old.value, &new.value) => {}
            Some(old) => return Err(duplicated(source, old, &new)),
        }
    }
    Ok(settings)
}

fn duplicated(source: &str, old: &Setting, new: &Setting) -> Error {
    let both = format!("\"{}\" = \"{}\" and \"{}\" = \"{}\"", old.key, old.value, new.key, new.value);
    Error::invalid(source, both, "duplicated sysctl keys are not allowed")
}

fn setting(source: &str, key: &str, value: &str, ifname: &str) -> Result<Setting> {
    let parsed = Key::parse(key, ifname).map_err(|reason| Error::invalid(source, format!("\"{key}\""), reason))?;
    let refuse = |reason| Err(Error::invalid(format!("{source}.{key}"), format!("{value:?}"), reason));
    if value.contains('\0') {
        return refuse("a value has no NUL in it");
    }
    // What the kernel makes of a second line differs from sysctl to sysctl: mostly it drops it and says nothing.
    let line = value.strip_suffix('\n').unwrap_or(value);
    if line.contains('\n') {
        return refuse("a value is one line");
    }
    Ok(Setting { key: parsed, value: line.to_owned() })
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of sysctl keys and their values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Option<Value>>()? {
                    pairs.extend(value.map(|v| (key, v.0)));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ValueVisitor;

        impl Visitor<'_> for ValueVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string (or a whole number or a boolean)")
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Value, E> {
                Ok(Value(text.to_owned()))
            }
            fn visit_u64<E>(self, number: u64) -> std::result::Result<Value, E> {
                Ok(Value(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> std::result::Result<Value, E> {
                Ok(Value(number.to_string()))
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> std::result::Result<Value, E> {
                Ok(Value(if on { "1" } else { "0" }.to_owned()))
            }
        }

        deserializer.deserialize_any(ValueVisitor)
    }
}
