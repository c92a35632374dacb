//! The JSON Schemas in `conflists/schema/` are those of the types, and say what the plugins say.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use common::Plugin;
use common::cni::Error;
use common::cni::env::Environment;
use common::cni::network::Network;
use jsonschema::{Retrieve, Uri, Validator};
use netns_tests::mutation::mutations;
use netns_tests::recorded::{Call, recordings};
use netns_tests::schema;
use proptest::prelude::*;
use serde_json::{Value, json};

const PLUGINS: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

/// Finds the schemas that a schema refers to, in the folder.
struct Folder;

impl Retrieve for Folder {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let path = schema::folder().join(uri.path().as_str().trim_start_matches('/'));
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }
}

/// The schema in the folder, as any validator would read it.
fn validator(of: &str) -> Validator {
    let file = schema::folder().join(format!("{of}.schema.json"));
    let schema: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    jsonschema::options().with_base_uri("file:///").with_retriever(Folder).build(&schema).unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, what: &str, instance: &Value) {
    let errors: Vec<String> = validator.iter_errors(instance).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{what}: {}\n{instance}", errors.join("\n"));
}

#[test]
fn the_schemas_are_those_of_the_types() {
    let current = schema::all();
    let kept: BTreeMap<String, String> = std::fs::read_dir(schema::folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap()))
        .collect();
    assert_eq!(kept.keys().collect::<Vec<_>>(), current.keys().collect::<Vec<_>>(), "run `make schemas`");
    for (file, schema) in &current {
        assert!(kept[file] == schema::text(schema), "{file} is stale: run `make schemas`");
        assert!(jsonschema::meta::is_valid(schema), "{file} is no JSON Schema");
    }
}

#[test]
fn every_conflist_is_valid() {
    let validator = validator("conflist");
    let mut seen = 0;
    for entry in std::fs::read_dir(schema::folder().join("..")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "conflist") {
            let list = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            assert_valid(&validator, &path.display().to_string(), &list);
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn every_recorded_configuration_is_valid() {
    let validators = PLUGINS.map(|plugin| (plugin, validator(plugin)));
    for call in recorded() {
        let (_, validator) = validators.iter().find(|(plugin, _)| *plugin == call.plugin).unwrap();
        assert_valid(validator, &call.name, &call.config());
    }
}

fn recorded() -> impl Iterator<Item = Call> {
    let calls = recordings().into_iter().flat_map(|recording| Call::all(&recording));
    calls
        .filter(|call| PLUGINS.contains(&call.plugin.as_str()) && call.stdin.trim_start().starts_with('{'))
        .filter(|call| call.verb() != "VERSION")
}

fn mapping(key: &str, value: Value) -> Value {
    let mut mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    mapping[key] = value;
    mapping
}

/// A plugin, a value at a key, and whether it may stand there.
type Case = (&'static str, Value, bool);

fn of_portmap() -> Vec<Case> {
    vec![
        ("portmap", json!({"snat": true}), true),
        ("portmap", json!({"SNAT": true}), true),
        ("portmap", json!({"snat": null}), true),
        ("portmap", json!({"snatt": true}), false),
        ("portmap", json!({"snat": "yes"}), false),
        ("portmap", json!({"markMasqBit": 32}), false),
        ("portmap", json!({"priority": -100}), false),
        ("portmap", json!({"backend": "ipvs"}), false),
        (
            "portmap",
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "TCP"}]}}),
            true,
        ),
        (
            "portmap",
            json!({"runtimeConfig": {"portMappings": [{"HostPort": 1, "ContainerPort": 1, "Protocol": "tcp"}]}}),
            true,
        ),
        (
            "portmap",
            json!({"runtimeConfig": {"portMappings": [{"HostPrt": 1, "ContainerPort": 1, "Protocol": "tcp"}]}}),
            false,
        ),
        (
            "portmap",
            json!({"runtimeConfig": {"portMappings": [{"HostPort": "1", "ContainerPort": 1, "Protocol": "tcp"}]}}),
            false,
        ),
        ("portmap", json!({"runtimeConfig": {"portMappings": [{"containerPort": 1, "protocol": "tcp"}]}}), false),
        ("portmap", json!({"runtimeConfig": {"portMappings": [mapping("hostPort", json!(null))]}}), false),
        ("portmap", json!({"runtimeConfig": {"portMappings": [mapping("protocol", json!(null))]}}), false),
        ("portmap", json!({"runtimeConfig": {"portMappings": [mapping("hostIP", json!(null))]}}), true),
        ("portmap", json!({"runtimeConfig": {"portMappings": [mapping("hostIP", json!("zz"))]}}), false),
        ("portmap", json!({"externalSetMarkChain": "a b"}), false),
        ("portmap", json!({"capabilities": {"portMappings": "yes"}}), false),
        ("portmap", json!({"dns": {"search": "example.org"}}), false),
        ("portmap", json!({"ipam": {"type": "host-local", "ranges": []}}), true),
        ("portmap", json!({"ipam": "host-local"}), false),
    ]
}

#[test]
fn what_is_misspelt_or_of_the_wrong_type_is_refused() {
    let cases = [
        ("bandwidth", json!({"ingressRate": 8, "ingressBurst": 8}), true),
        ("bandwidth", json!({"ingresRate": 8, "ingressBurst": 8}), false),
        ("bandwidth", json!({"ingressRate": -8}), false),
        ("bandwidth", json!({"latency": 0}), false),
        ("bandwidth", json!({"ingressRate": 0, "ingressBurst": 0}), true),
        ("bandwidth", json!({"ingressRate": 7, "ingressBurst": 8}), false),
        ("bandwidth", json!({"egressRate": 8, "egressBurst": 34_359_738_359_u64}), true),
        ("bandwidth", json!({"egressRate": 8, "egressBurst": 34_359_738_360_u64}), false),
        ("bandwidth", json!({"runtimeConfig": {"bandwidth": {"egressRate": 7, "egressBurst": 8}}}), false),
        ("bandwidth", json!({"shapedSubnets": ["10.0.0.0/33"]}), false),
        ("firewall", json!({"backend": ""}), true),
        ("firewall", json!({"ingressPolicy": "closed"}), false),
        ("firewall", json!({"hostChains": "inet filter forward"}), false),
        ("firewall", json!({"ingresPolicy": "open"}), false),
        ("firewall", json!({"iptablesAdminChainName": "INPUT"}), false),
        ("firewall", json!({"iptablesAdminChainName": "-x"}), false),
        ("firewall", json!({"firewalldZone": "a b"}), false),
        ("firewall", json!({"hostChains": ["inet filter"]}), false),
        ("tuning", json!({"sysctl": {"net.core.somaxconn": 512, "net.ipv4.conf.IFNAME.arp_notify": "1"}}), true),
        ("tuning", json!({"sysctl": {"net.core.somaxconn": [512]}}), false),
        ("tuning", json!({"sysctls": {"net.core.somaxconn": "512"}}), false),
        ("tuning", json!({"mtu": "1400"}), false),
        ("tuning", json!({"mac": "zz"}), false),
        ("tuning", json!({"sysctl": {"kernel.hostname": "x"}}), false),
        ("tuning", json!({"args": {"cni": {"mtu": "1400"}}}), false),
        ("tuning", json!({"x-vendor": [1], "example.org/key": 1, "$schema": "tuning.schema.json"}), true),
    ];
    are_judged_so(cases.into_iter().chain(of_portmap()));
}

fn are_judged_so(cases: impl IntoIterator<Item = Case>) {
    let conflist = validator("conflist");
    for (plugin, mut config, valid) in cases {
        config["type"] = plugin.into();
        assert_eq!(validator(plugin).is_valid(&config), valid, "{config}");
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "any": 1}, config]});
        assert_eq!(conflist.is_valid(&list), valid, "{list}");
        assert!(!validator(plugin).is_valid(&json!({"type": "other"})));
    }
}

/// What the plugin makes of a configuration: its error, or nothing, and whether it ignored a key.
fn plugins_word<P: Plugin>(config: &Value) -> (Option<Error>, bool) {
    let lookup = |name: &str| match name {
        "CNI_CONTAINERID" => Some("c1".into()),
        "CNI_NETNS" => Some("/run/netns/x".into()),
        "CNI_IFNAME" => Some("eth0".into()),
        _ => None,
    };
    let env = Environment::read(common::cni::env::Verb::Add, &lookup).unwrap();
    let stdin = config.to_string();
    let ignored = Network::parse(stdin.as_bytes())
        .and_then(|json| Network::read(json, env.verb))
        .and_then(|net| net.own_keys::<P::Written>())
        .is_ok_and(|(_, misspelt)| !misspelt.is_empty());
    (common::plugin::interpret::<P>(env, stdin.as_bytes()).err(), ignored)
}

/// Of every recorded configuration and of all that it can be spoilt to: a value of the wrong type is one to both the schema and
/// the plugin, and what the schema refuses the plugin refuses, or ignores.
fn schema_and_plugin_agree<P: Plugin>() {
    let validator = validator(P::NAME);
    let mut calls: Vec<Call> = recorded().filter(|call| call.plugin == P::NAME && call.verb() == "ADD").collect();
    calls.sort_by_key(|call| std::cmp::Reverse(call.stdin.len()));
    calls.truncate(3);
    let mut tried = BTreeMap::<&str, usize>::new();
    for mutant in calls.iter().flat_map(|call| mutations(&call.config())) {
        let valid = validator.is_valid(&mutant);
        let (error, ignored) = plugins_word::<P>(&mutant);
        // What the plugins before have made is for the plugin alone to judge, and so is what it doesn't read.
        let of_prev = error.as_ref().is_some_and(|e| e.to_string().contains("prevResult"));
        let wrong_type = matches!(&error, Some(Error::WrongType { .. })) && !of_prev;
        assert!(!(valid && wrong_type), "the schema takes what the plugin refuses: {error:?}\n{mutant}");
        let unread = ["type", "ipMasq", "args", "runtimeConfig", "prevResult"];
        let of_unread = || {
            validator.iter_errors(&mutant).all(|e| {
                unread.iter().any(|key| e.instance_path().as_str().starts_with(&format!("/{key}")))
                    || e.instance_path().as_str().is_empty()
            })
        };
        assert!(
            valid || error.is_some() || ignored || of_unread(),
            "the schema refuses what the plugin takes: {:?}\n{mutant}",
            validator.iter_errors(&mutant).map(|e| e.to_string()).collect::<Vec<_>>()
        );
        *tried
            .entry(if valid {
                "valid"
            } else if wrong_type {
                "of the wrong type"
            } else {
                "otherwise refused"
            })
            .or_default() += 1;
    }
    assert!(tried.len() == 3 && tried.values().all(|n| *n > 10), "{tried:?}");
}

#[test]
fn the_schema_of_portmap_agrees_with_the_plugin() {
    schema_and_plugin_agree::<portmap::Portmap>();
}

#[test]
fn the_schema_of_bandwidth_agrees_with_the_plugin() {
    schema_and_plugin_agree::<bandwidth::Bandwidth>();
}

#[test]
fn the_schema_of_firewall_agrees_with_the_plugin() {
    schema_and_plugin_agree::<firewall::Firewall>();
}

#[test]
fn the_schema_of_tuning_agrees_with_the_plugin() {
    schema_and_plugin_agree::<tuning::Tuning>();
}

/// What a conflist is to a runtime, without its plugins' keys.
#[test]
fn a_conflist_has_a_version_and_plugins() {
    let plugins = json!([{"type": "bridge"}, {"type": "portmap"}]);
    let cases = [
        (json!({"cniVersion": "1.0.0", "plugins": plugins}), true),
        (json!({"cniVersions": ["1.0.0", "1.2.0"], "plugins": plugins}), true),
        (json!({"cniVersion": "9.9", "plugins": plugins}), false),
        (json!({"cniVersion": null, "plugins": plugins}), false),
        (json!({"cniVersions": ["9.9.9"], "plugins": plugins}), false),
        (json!({"cniVersions": ["one"], "cniVersion": "1.0.0", "plugins": plugins}), false),
        (json!({"plugins": plugins}), false),
        (json!({"cniVersion": "1.0.0"}), false),
        (json!({"cniVersion": "1.0.0", "plugins": []}), false),
        (json!({"cniVersion": "1.0.0", "plugins": [{}]}), false),
        (json!({"cniVersion": "1.0.0", "loadOnlyInlinedPlugins": false}), true),
        (json!({"cniVersion": "1.0.0", "loadOnlyInlinedPlugins": true}), false),
    ];
    let validator = validator("conflist");
    for (mut list, valid) in cases {
        list["name"] = "n".into();
        assert_eq!(validator.is_valid(&list), valid, "{list}");
    }
}

/// One text at one key: the schema takes what the plugin takes, to the letter.
fn takes_the_same<P: Plugin>(
    validator: &Validator,
    keys: Value,
    but_for: fn(&Error) -> bool,
) -> Result<(), TestCaseError> {
    let mut config = json!({"cniVersion": "1.0.0", "name": "n", "type": P::NAME});
    keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    let (error, _) = plugins_word::<P>(&config);
    let valid = validator.is_valid(&config);
    let excused = valid && error.as_ref().is_some_and(but_for);
    prop_assert!(valid == error.is_none() || excused, "the schema says {valid}, the plugin {error:?}: {config}");
    Ok(())
}

/// Of nobody.
const NOBODY: fn(&Error) -> bool = |_| false;

thread_local! {
    static VALIDATORS: BTreeMap<&'static str, Validator> = PLUGINS.map(|plugin| (plugin, validator(plugin))).into();
}

macro_rules! texts {
    ($($name:ident of $plugin:ty, like $($shape:literal)|+, but for $but:expr, at $keys:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(2000))]
            $(#[test]
            fn $name(text in prop_oneof![$($shape),+]) {
                let keys: fn(&str) -> Value = $keys;
                VALIDATORS.with(|v| takes_the_same::<$plugin>(&v[<$plugin>::NAME], keys(&text), $but))?;
            })*
        }
    };
}

texts! {
    an_admin_chain_is_one_to_both of firewall::Firewall,
        like "[!-~ é]{0,4}" | "(INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING|ACCEPT|DROP|QUEUE|RETURN|CNI-FORWARD)x?"
            | "[-!A-Z\"']X{26,29}", but for NOBODY,
        at |text| json!({"iptablesAdminChainName": text});
    a_zone_is_one_to_both of firewall::Firewall,
        like "[!-~ é]{0,4}" | "[z\"]Z{62,66}", but for NOBODY,
        at |text| json!({"firewalldZone": text});
    a_host_chain_is_one_to_both of firewall::Firewall,
        like "[ \t\u{b}]{0,2}(inet|ip|ip6|bridge)[ \t\u{b}\u{a0}]{1,2}(cni_chain_)?[a-zé]{1,2}[ ]{1,2}[!-~]{1,2}[ \n]?( x)?"
            | "ip t{250,260} c{250,260}", but for NOBODY,
        at |text| json!({"hostChains": [text]});
    a_mark_chain_is_one_to_both of portmap::Portmap,
        like "[!-~ é]{0,4}" | "[a-z ]K{26,29}", but for NOBODY,
        at |text| json!({"externalSetMarkChain": text});
    a_host_ip_is_one_to_both of portmap::Portmap,
        like "[0-9]{1,3}\\.[0-9]{1,3}\\.(0|255|256|00|1)\\.[0-9]{1,3}" | "([0-9a-fA-F]{0,5}:){1,8}[0-9a-f]{0,4}"
            | "(:|::|[0-9a-f]{1,4}:|[fF][fF]0[0-9]:){1,7}(1\\.2\\.3\\.4|[0-9a-f]{1,4})(%eth0)?" | "::[fF]{4}:(1|224)\\.0\\.0\\.1"
            | "([0-9a-f]{1,2}:){0,7}:(:?[0-9a-f]{1,2}){0,7}" | "[0-9.:a-f]{0,8}",
        // One in the other family's form.
        but for |error| error.to_string().contains("::") && error.to_string().contains("multicast"),
        at |text| json!({"runtimeConfig": {"portMappings": [mapping("hostIP", text.into())]}});
    a_protocol_is_one_to_both of portmap::Portmap,
        like "[tT][cC][pP]|[uU][dD][pP]|[sS][cC][tT][pP]" | "[tcpudsi]{0,4}", but for NOBODY,
        at |text| json!({"runtimeConfig": {"portMappings": [mapping("protocol", text.into())]}});
    a_subnet_is_one_to_both of bandwidth::Bandwidth,
        like "[0-9]{1,3}\\.(0|255|256|00|01)\\.0\\.[0-9]{1,2}/[0-9]{0,3}" | "(::|[0-9a-f]{1,5}::)([0-9a-f]{1,4})?/[0-9]{0,4}"
            | "([0-9a-f]{1,2}:){0,7}:(:?[0-9a-f]{1,2}){0,7}/[0-9]{1,3}" | "[0-9.:/a-f]{0,8}" | "10.0.0.0/[-+ 08]{0,2}8",
        but for NOBODY,
        at |text| json!({"shapedSubnets": [text]});
    a_mac_is_one_to_both of tuning::Tuning,
        like "([0-9a-fA-F]{2}:){4,8}[0-9a-g]{2}" | "([0-9a-f]{2}-){5}[0-9a-f]{1,2}" | "([0-9a-f]{4}\\.){1,3}[0-9a-f]{4}"
            | "([0-9a-f]{2}[:-]){19}[0-9a-f]{2}" | "(00[:-]){5}0[01]" | "0000.0000.000[01]" | "[0-9a-f:.-]{0,17}",
        but for NOBODY,
        at |text| json!({"mac": text, "args": {"cni": {"mac": text}}, "runtimeConfig": {"mac": text}});
    a_sysctl_is_one_to_both of tuning::Tuning,
        like "[./]{0,2}(net|kernel|Net)([./]{1,3}[net.x]{0,3}){0,3}" | "[net./]{0,9}" | "net.[x\u{0}\n]{1,3}" | "(\\.\\./|\\./)?net/core/x",
        but for NOBODY,
        at |text| json!({"sysctl": {text: "1"}});
    a_sysctls_value_is_one_to_both of tuning::Tuning,
        like "[x\u{0}\n]{0,3}", but for NOBODY,
        at |text| json!({"sysctl": {"net.core.somaxconn": text}});
}

/// Every key of a plugin's own has a word of explanation in its schema.
#[test]
fn every_key_is_explained() {
    for (file, schema) in schema::all() {
        if file.starts_with("conflist") {
            continue;
        }
        for (key, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].is_string(), "{file}: {key} has no description");
        }
    }
}
