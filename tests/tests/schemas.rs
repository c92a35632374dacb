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

/// A value at a key, and whether it may stand there.
#[test]
fn what_is_misspelt_or_of_the_wrong_type_is_refused() {
    let cases = [
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
        ("portmap", json!({"capabilities": {"portMappings": "yes"}}), false),
        ("bandwidth", json!({"ingressRate": 8, "ingressBurst": 8}), true),
        ("bandwidth", json!({"ingresRate": 8, "ingressBurst": 8}), false),
        ("bandwidth", json!({"ingressRate": -8}), false),
        ("bandwidth", json!({"latency": 0}), false),
        ("firewall", json!({"backend": ""}), true),
        ("firewall", json!({"ingressPolicy": "closed"}), false),
        ("firewall", json!({"hostChains": "inet filter forward"}), false),
        ("firewall", json!({"ingresPolicy": "open"}), false),
        ("tuning", json!({"sysctl": {"net.core.somaxconn": 512, "net.ipv4.conf.IFNAME.arp_notify": "1"}}), true),
        ("tuning", json!({"sysctl": {"net.core.somaxconn": [512]}}), false),
        ("tuning", json!({"sysctls": {"net.core.somaxconn": "512"}}), false),
        ("tuning", json!({"mtu": "1400"}), false),
        ("tuning", json!({"args": {"cni": {"mtu": "1400"}}}), false),
        ("tuning", json!({"x-vendor": [1], "example.org/key": 1, "$schema": "tuning.schema.json"}), true),
    ];
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
        let unread = ["type", "capabilities", "ipam", "ipMasq", "dns", "args", "runtimeConfig", "prevResult"];
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
