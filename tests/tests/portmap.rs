//! Host ports: who reaches the container, who doesn't, and that nothing stays behind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use netns_tests::{Container, Fetch, Lab, Netns, Outcome, Plugin, Proto, Verb, serve};
use serde_json::{Value, json};

const TABLE: &str = "inet cni_chain_portmap";

/// `[[hostPort, containerPort, protocol], …]` for both of [`Proto`] or given ones.
fn ports(mappings: Value) -> Value {
    json!({"runtimeConfig": {"portMappings": mappings}})
}

/// One port, tcp and udp.
fn port(host: u16, container: u16) -> Value {
    ports(json!([
        {"hostPort": host, "containerPort": container, "protocol": "tcp"},
        {"hostPort": host, "containerPort": container, "protocol": "udp"},
    ]))
}

fn config(container: &Container, keys: &Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap", "capabilities": {"portMappings": true},
        "prevResult": container.prev_result("1.1.0"),
    });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[track_caller]
fn call(lab: &Lab, verb: Verb, container: &Container, keys: &Value) -> Outcome {
    Plugin::ours("portmap").call(&lab.host, verb, &config(container, keys), &container.target())
}

#[track_caller]
fn add(lab: &Lab, container: &Container, keys: &Value) -> Value {
    call(lab, Verb::Add, container, keys).succeeds()
}

#[track_caller]
fn check(lab: &Lab, container: &Container, keys: &Value) {
    call(lab, Verb::Check, container, keys).succeeds();
}

#[track_caller]
fn del(lab: &Lab, container: &Container, keys: &Value) {
    call(lab, Verb::Del, container, keys).succeeds();
}

#[allow(dead_code)]
fn rules(lab: &Lab) -> String {
    lab.host.run(&format!("nft list table {TABLE}"))
}

/// Asks by both transports at each of these addresses.
#[track_caller]
fn all_reach(from: &Netns, addresses: &[&str], token: &str) {
    for address in addresses {
        for proto in Proto::ALL {
            Fetch::new(proto, address).expect(from, token);
        }
    }
}

#[track_caller]
fn none_reach(from: &Netns, addresses: &[&str]) {
    for address in addresses {
        for proto in Proto::ALL {
            Fetch::new(proto, address).expect_nothing(from);
        }
    }
}

const FROM_OUTSIDE: [&str; 2] = ["192.0.2.1:8080", "[2001:db8:2::1]:8080"];

#[test]
fn a_host_port_leads_into_the_container_until_del() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let before = lab.host.snapshot();
    let result = add(&lab, &container, &port(8080, 80));
    assert_eq!(result["ips"], container.prev_result("1.1.0")["ips"]);
    all_reach(&lab.client, &FROM_OUTSIDE, "inside");
    check(&lab, &container, &port(8080, 80));
    del(&lab, &container, &port(8080, 80));
    none_reach(&lab.client, &FROM_OUTSIDE);
    lab.host.assert_same_as(&before);
}

#[test]
fn the_container_sees_who_asks_from_outside() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    add(&lab, &container, &port(8080, 80));
    let peers = FROM_OUTSIDE.map(|a| Fetch::new(Proto::Tcp, a).expect(&lab.client, "inside").peer.ip().to_string());
    assert_eq!(peers, netns_tests::lab::CLIENT);
}

#[test]
fn the_host_reaches_its_own_port_by_any_of_its_addresses() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    add(&lab, &container, &port(8080, 80));
    let own = [
        "127.0.0.1:8080",
        "127.1.2.3:8080",
        "192.0.2.1:8080",
        "10.88.0.1:8080",
        "[2001:db8:2::1]:8080",
        "[fd00:88::1]:8080",
    ];
    all_reach(&lab.host, &own, "inside");
}

/// Whether frames between ports of a bridge go through iptables and nftables, as Kubernetes asks for.
fn bridged_frames_are_filtered(lab: &Lab, on: bool) {
    for family in ["iptables", "ip6tables"] {
        lab.host.set_sysctl(&format!("net/bridge/bridge-nf-call-{family}"), if on { "1" } else { "0" });
    }
}

#[test]
fn a_container_reaches_itself_and_its_neighbour_by_the_hosts_address() {
    for filtered in [false, true] {
        let lab = Lab::new();
        bridged_frames_are_filtered(&lab, filtered);
        let (container, neighbour) = (lab.container(2), lab.container(3));
        if filtered {
            // Then the kernel changes the destination while the frame is in the bridge, and the frame has to go back
            // through the port it came from: that is the main plugin's `hairpinMode`.
            lab.host.run(&format!("bridge link set dev {} hairpin on", container.host_ifname));
        }
        let _server = serve(&container.netns, 80, "inside");
        add(&lab, &container, &port(8080, 80));
        for from in [&container.netns, &neighbour.netns] {
            all_reach(from, &FROM_OUTSIDE, "inside");
            all_reach(from, &["10.88.0.1:8080", "[fd00:88::1]:8080"], "inside");
        }
    }
}
