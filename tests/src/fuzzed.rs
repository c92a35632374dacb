//! What must hold of any input at all: the fuzzing targets of `tests/fuzz`, which `tests/fuzzed.rs` repeats with every
//! seed and every finding.
//!
//! Nothing here opens a socket or a file: a plan is made from facts that stand still.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use common::cni::env::{Args, Environment, Verb, is_identifier, validate_ifname};
use common::cni::network::Network;
use common::cni::version::Family;
use common::cni::{CniResult, Error, Json, Version};
use common::link::device::{Device, ETHERNET_HEADER};
use common::sysctl::Content;
use common::{Attachment, Call, Plugin};

/// A name, and what runs one input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by its name.
pub const TARGETS: [Target; 6] = [
    ("portmap", portmap),
    ("bandwidth", bandwidth),
    ("firewall", firewall),
    ("tuning", tuning),
    ("environment", environment),
    ("result", result),
];

/// stdin → configuration → plan of portmap.
pub fn portmap(stdin: &[u8]) {
    configuration::<portmap::Portmap>(stdin, |config, call, prev| {
        portmap::rules::plan(config, call, prev, portmap::rules::Facts::default()).map(|share| share.to_string())
    });
}

/// stdin → configuration → plan of bandwidth.
pub fn bandwidth(stdin: &[u8]) {
    configuration::<bandwidth::Bandwidth>(stdin, |config, call, _| {
        let link = Device {
            name: "veth1".into(),
            kind: "veth".into(),
            index: 7,
            mtu: 1500,
            header: ETHERNET_HEADER,
            ..Device::default()
        };
        let facts = bandwidth::plan::Facts {
            link,
            named: Vec::new(),
            in_container: config.in_container,
            ..bandwidth::plan::Facts::default()
        };
        bandwidth::plan::plan(config, &call.attachment, facts).map(|shaping| shaping.to_string())
    });
}

/// stdin → configuration → plan of firewall.
pub fn firewall(stdin: &[u8]) {
    configuration::<firewall::Firewall>(stdin, |config, call, prev| {
        let facts = firewall::plan::Facts {
            firewalld: call.attachment.container.len() % 2 == 1,
            bridges: vec!["cni0".into()],
            ports: vec!["veth1".into()],
            routed_port: None,
        };
        firewall::plan::plan(config, &call.attachment, prev, &facts).map(|share| share.to_string())
    });
}

/// stdin → configuration → plan of tuning.
pub fn tuning(stdin: &[u8]) {
    configuration::<tuning::Tuning>(stdin, |config, call, _| {
        let found = |setting: &tuning::config::Setting| match setting.key.names().first() {
            Some(name) => tuning::plan::Found::There {
                name: name.clone(),
                content: Content::Value("0".into()),
                followers: Vec::new(),
            },
            None => tuning::plan::Found::Missing { on_host: None },
        };
        let sysctls = config.sysctls.iter().map(found).collect();
        let facts = tuning::plan::Facts { sysctls, ..tuning::plan::Facts::default() };
        let steps = tuning::plan::steps(config, &call.attachment.ifname, &facts)?;
        Ok(steps.iter().map(|step| format!("{step}\n")).collect())
    });
}

/// A configuration for every verb: it is refused in the protocol's words, or gives the same plan each time.
fn configuration<P: Plugin>(stdin: &[u8], plan: impl Fn(&P::Config, &Call, &CniResult) -> common::Result<String>) {
    if let Ok(json) = Network::parse(stdin) {
        let text = serde_json::to_string(&json).expect("what was read can be written");
        assert_eq!(serde_json::from_str::<Json>(&text).ok(), Some(json), "JSON comes back");
    }
    for verb in Verb::ALL {
        let env = Environment {
            verb,
            container: "c1".into(),
            netns: Some("/run/netns/c1".into()),
            ifname: "eth0".into(),
            args: Args::default(),
            netns_override: false,
        };
        let (call, config, prev) = match common::plugin::interpret::<P>(env, stdin) {
            Ok(interpreted) => interpreted,
            Err(error) => {
                is_spoken(&error);
                continue;
            }
        };
        is_a_name(&call.attachment);
        if let (Verb::Add, Some(prev), false) = (verb, &prev, P::is_idle(&config)) {
            let first = plan(&config, &call, prev);
            assert_eq!(first, plan(&config, &call, prev), "a plan is a function");
            first.err().iter().for_each(is_spoken);
        }
    }
}

/// An environment, one variable a line: it is refused, or names a container.
pub fn environment(text: &[u8]) {
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let lookup = |name: &str| {
        let value = |line: &&[u8]| line.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        lines.iter().rev().find_map(value).map(OsString::from_vec)
    };
    for verb in Verb::ALL {
        let env = match Environment::read(verb, &lookup) {
            Ok(env) => env,
            Err(error) => {
                assert_eq!(error.code(), 4, "{error}");
                is_spoken(&error);
                continue;
            }
        };
        for (key, value) in env.args.iter() {
            assert!(!key.contains([';', '=']) && !value.contains(';'), "{key:?} {value:?}");
            assert_eq!(env.args.get(key), Some(value));
        }
        if matches!(verb, Verb::Add | Verb::Check | Verb::Del) {
            assert!(is_identifier(&env.container) && validate_ifname(&env.ifname).is_ok(), "{env:?}");
            assert!(env.netns.is_some() || verb == Verb::Del, "{env:?}");
            is_a_name(&Attachment::new("net", env.container, env.ifname));
        }
    }
}

/// A result in every version: it is refused, or comes back in each version as far as that can hold it.
pub fn result(text: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Json>(text) else { return };
    for version in Version::ALL {
        let read = match CniResult::read(&json, version) {
            Ok(read) => read,
            Err(error) => {
                assert!(matches!(error.code(), 6 | 7), "{error}");
                is_spoken(&error);
                continue;
            }
        };
        for other in Version::ALL {
            comes_back(&read, other);
        }
    }
}

/// A result written in a version reads as what that version can hold of it, and is then written the same way.
fn comes_back(result: &CniResult, version: Version) {
    let document = match result.to_document(version) {
        Ok(document) => serde_json::to_string(&document).expect("a result can be written"),
        Err(error) => {
            assert_eq!(version.family(), Family::Ip4Ip6, "{error}");
            return is_spoken(&error);
        }
    };
    let json: Json = serde_json::from_str(&document).expect("what is written is JSON");
    let again = CniResult::read(&json, version).expect("what is written can be read");
    match version.family() {
        Family::Plain => assert_eq!(again, *result),
        Family::VersionedIps => {
            assert_eq!((&again.ips, &again.routes, &again.dns), (&result.ips, &result.routes, &result.dns));
        }
        Family::Ip4Ip6 => assert_eq!(again.dns, result.dns),
    }
    let twice = serde_json::to_string(&again.to_document(version).expect("it was written once")).ok();
    assert_eq!(twice, Some(document));
}

fn is_spoken(error: &Error) {
    let document = serde_json::to_value(error.to_document(Version::LATEST.as_str())).expect("an error can be written");
    assert!(error.code() != 199 && document["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{document}");
}

fn is_a_name(attachment: &Attachment) {
    assert_eq!(attachment.key().len(), 41);
    assert!(attachment.label().len() <= common::attachment::LABEL_MAX);
    assert!(!attachment.label().chars().any(char::is_control), "{:?}", attachment.label());
}
