//! A prevResult passes through each plugin in every version with all that the version, or the reference, keeps of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use common::cni::Version;
use common::cni::version::Family;
use netns_tests::lab::Container;
use netns_tests::{Lab, Plugin, Verb};
use serde_json::{Value, json};

const PLUGINS: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

/// Every field of 1.1.0, of the container's main interface and of others; and fields that no version has.
fn everything(container: &Container) -> Value {
    let [v4, v6] = &container.addresses;
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "02:00:00:00:88:01", "mtu": 1450},
            {"name": container.host_ifname, "mac": "02:00:00:00:88:02", "mtu": 1450},
            {"name": container.ifname, "mac": "02:00:00:00:88:03", "mtu": 1450, "sandbox": container.netns.path()},
            {"name": "vf0", "socketPath": "/run/vhost.sock", "pciID": "0000:00:1f.6", "sandbox": container.netns.path()},
        ],
        "ips": [
            {"interface": 2, "address": format!("{v4}/24"), "gateway": "10.88.0.1"},
            {"interface": 2, "address": format!("{v6}/64"), "gateway": "fd00:88::1"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.88.0.1", "mtu": 1400, "advmss": 1360, "priority": 10, "table": 100, "scope": 0},
            {"dst": "::/0", "gw": "fd00:88::1"},
            {"dst": "10.0.0.0/8"},
        ],
        "dns": {"nameservers": ["10.88.0.1", "fd00:88::1"], "domain": "example.org", "search": ["a.example", "b.example"],
                "options": ["ndots:5"]},
    })
}

/// The same as `version` can say it: what a main plugin of that version would have handed on.
fn in_version(result: &Value, version: Version) -> Value {
    let mut result = result.clone();
    result["cniVersion"] = version.as_str().into();
    match version.family() {
        Family::Plain => {}
        Family::VersionedIps => {
            for (ip, family) in result["ips"].as_array_mut().unwrap().iter_mut().zip(["4", "6"]) {
                ip["version"] = family.into();
            }
        }
        Family::Ip4Ip6 => {
            let of_family = |n: usize, routes: Value| {
                let ip = &result["ips"][n];
                json!({"ip": ip["address"], "gateway": ip["gateway"], "routes": routes})
            };
            let v4 = of_family(0, json!([{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}, {"dst": "10.0.0.0/8"}]));
            let v6 = of_family(1, json!([{"dst": "::/0", "gw": "fd00:88::1"}]));
            result = json!({"cniVersion": version.as_str(), "ip4": v4, "ip6": v6, "dns": result["dns"]});
        }
    }
    result
}

/// What may come out: before 1.0.0 interfaces have no more than name, mac and sandbox.
fn due(prev: &Value, version: Version) -> Value {
    let mut due = prev.clone();
    if version.family() == Family::VersionedIps {
        for interface in due["interfaces"].as_array_mut().unwrap() {
            interface.as_object_mut().unwrap().retain(|key, _| ["name", "mac", "sandbox"].contains(&key.as_str()));
        }
    }
    due
}

/// Without anything to do, and with something: what the plugin adds to a result is its own test's.
fn keys(plugin: &str) -> [Value; 2] {
    let busy = match plugin {
        "portmap" => {
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}})
        }
        "bandwidth" => json!({"egressRate": 8_000_000, "egressBurst": 800_000}),
        "tuning" => json!({"sysctl": {"net.core.somaxconn": "512"}}),
        _ => json!({"ingressPolicy": "same-bridge"}),
    };
    [json!({}), busy]
}

fn everything_comes_back(plugin: &str) {
    let lab = Lab::new();
    let container = lab.container(2);
    let target = container.target();
    for version in Version::ALL {
        let prev = in_version(&everything(&container), version);
        // With fields of tomorrow, which the reference's types drop too. Whoever has nothing to do hands on what he was given.
        let mut given = prev.clone();
        given["x-tomorrow"] = json!({"any": 1});
        if let Some(interface) = given.pointer_mut("/interfaces/0") {
            interface["x-tomorrow"] = json!([1]);
        }
        for keys in keys(plugin) {
            let busy = keys.as_object().is_some_and(|keys| !keys.is_empty());
            // Before 0.3.0 a result has no interfaces, and bandwidth nothing to find the host's end by.
            if busy && plugin == "firewall" && version.family() == Family::Ip4Ip6 {
                continue;
            }
            let mut config =
                json!({"cniVersion": version.as_str(), "name": "net", "type": plugin, "prevResult": given});
            keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
            let mut result = Plugin::ours(plugin).call(&lab.host, Verb::Add, &config, &target).succeeds();
            if plugin == "bandwidth" && busy && version.family() != Family::Ip4Ip6 {
                let added = result["interfaces"].as_array_mut().unwrap().pop().unwrap();
                assert!(added["name"].as_str().unwrap().starts_with("bwp"), "{added}");
            }
            let due = if busy || plugin == "firewall" { due(&prev, version) } else { given.clone() };
            assert_eq!(result, due, "{plugin} {version} {keys}");
            Plugin::ours(plugin).call(&lab.host, Verb::Del, &config, &target).succeeds();
        }
    }
}

/// The Go plugin's answer to the same prevResult, in the versions that Debian's release speaks and of which it knows all
/// fields.
#[test]
fn what_the_reference_keeps_is_kept() {
    let lab = Lab::new();
    let container = lab.container(2);
    let mut everything = everything(&container);
    for interface in everything["interfaces"].as_array_mut().unwrap() {
        interface.as_object_mut().unwrap().retain(|key, _| ["name", "mac", "sandbox"].contains(&key.as_str()));
    }
    for route in everything["routes"].as_array_mut().unwrap() {
        route.as_object_mut().unwrap().retain(|key, _| ["dst", "gw"].contains(&key.as_str()));
    }
    for version in Version::ALL.into_iter().filter(|v| *v < Version::V1_1_0) {
        let prev = in_version(&everything, version);
        let config = json!({"cniVersion": version.as_str(), "name": "net", "type": "tuning", "prevResult": prev});
        let call = |plugin: Plugin| {
            let mut result = plugin.call(&lab.host, Verb::Add, &config, &container.target()).succeeds();
            result.as_object_mut().unwrap().retain(|key, value| key != "dns" || *value != json!({}));
            result
        };
        assert_eq!(call(Plugin::ours("tuning")), call(Plugin::reference("tuning")), "{version}");
    }
}

#[test]
fn everything_comes_back_from_portmap() {
    everything_comes_back("portmap");
}

#[test]
fn everything_comes_back_from_bandwidth() {
    everything_comes_back("bandwidth");
}

#[test]
fn everything_comes_back_from_firewall() {
    everything_comes_back("firewall");
}

#[test]
fn everything_comes_back_from_tuning() {
    everything_comes_back("tuning");
}

#[test]
fn no_plugin_is_left_out() {
    assert_eq!(PLUGINS.map(|plugin| keys(plugin).len()), [2; 4]);
}
