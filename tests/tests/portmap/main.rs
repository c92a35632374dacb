//! Host ports: who reaches the container, who doesn't, and that nothing stays behind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod damage;
mod leftovers;
mod loopback;

use netns_tests::{Container, End, Fetch, Lab, Netns, Outcome, Plugin, Proto, Target, Verb, connect, serve};
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

#[test]
fn a_taken_port_is_refused_and_the_owner_is_named() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let _servers = [serve(&first.netns, 80, "first"), serve(&second.netns, 80, "second")];
    add(&lab, &first, &port(8080, 80));
    let before = lab.host.snapshot();
    let wanted = ports(json!([
        {"hostPort": 9090, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    ]));
    let error = call(&lab, Verb::Add, &second, &wanted).fails_with(100);
    for part in ["8080/tcp", "container-2", "eth0", "network net", "since 20"] {
        assert!(error.msg.contains(part), "{part}: {error:?}");
    }
    lab.host.assert_same_as(&before);
    all_reach(&lab.client, &FROM_OUTSIDE, "first");
    del(&lab, &second, &wanted);
    lab.host.assert_same_as(&before);
    all_reach(&lab.client, &FROM_OUTSIDE, "first");
    check(&lab, &first, &port(8080, 80));
}

#[test]
fn ports_of_a_container_whose_interface_is_gone_go_to_the_next() {
    let lab = Lab::new();
    let (crashed, next) = (lab.container(2), lab.container(3));
    let _server = serve(&next.netns, 80, "next");
    add(
        &lab,
        &crashed,
        &ports(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
            {"hostPort": 9999, "containerPort": 80, "protocol": "tcp"},
        ])),
    );
    lab.host.run(&format!("ip link delete {}", crashed.host_ifname));
    let outcome = call(&lab, Verb::Add, &next, &port(8080, 80));
    outcome.succeeds();
    assert!(outcome.stderr.contains("container-2") && outcome.stderr.contains("gone"), "{}", outcome.stderr);
    all_reach(&lab.client, &FROM_OUTSIDE, "next");
    check(&lab, &next, &port(8080, 80));
    assert!(!rules(&lab).contains("container-2"), "nothing of it is left, its other port neither: {}", rules(&lab));
    del(&lab, &crashed, &port(8080, 80));
    all_reach(&lab.client, &FROM_OUTSIDE, "next");
}

/// A container's second network: a bridge, an interface, and what its portmap is called with.
fn second_network(lab: &Lab, container: &Container, n: u8, keys: &Value) -> (Value, Target) {
    let (bridge, ifname, subnet) = (format!("cni{n}"), format!("eth{n}"), format!("10.{}.0", 88 + n));
    lab.host.run(&format!("ip link add {bridge} type bridge"));
    lab.host.run(&format!("ip link set {bridge} up"));
    lab.host.address(&bridge, &format!("{subnet}.1/24"));
    let host_end = format!("{}-{n}", container.host_ifname);
    let address = format!("{subnet}.2/24");
    connect(End::new(&lab.host, &host_end, &[]), End::new(&container.netns, &ifname, &[&address]));
    lab.host.run(&format!("ip link set {host_end} master {bridge}"));
    let mut config = config(container, keys);
    config["name"] = format!("net{n}").into();
    config["prevResult"]["interfaces"][1]["name"] = host_end.into();
    config["prevResult"]["interfaces"][2]["name"] = ifname.clone().into();
    config["prevResult"]["ips"] = json!([{"interface": 2, "address": address}]);
    (config, Target::new(&container.id, &container.netns.path(), &ifname))
}

/// podman gives all ports of a container to each of its networks.
#[test]
fn a_container_s_port_goes_over_to_its_next_network() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let (container, other) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    let plugin = Plugin::ours("portmap");
    let keys = port(8080, 80);
    add(&lab, &container, &keys);
    let networks = [1, 2].map(|n| second_network(&lab, &container, n, &keys));
    let local_address = || Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "inside").local.unwrap().ip();
    for (config, target) in &networks {
        for verb in [Verb::Add, Verb::Check, Verb::Add, Verb::Check] {
            plugin.call(&lab.host, verb, config, target).succeeds();
        }
    }
    all_reach(&lab.client, &FROM_OUTSIDE, "inside");
    assert_eq!(local_address().to_string(), "10.88.0.2");
    check(&lab, &container, &keys);
    add(&lab, &container, &keys);
    check(&lab, &container, &keys);
    call(&lab, Verb::Add, &other, &keys).fails_with(100);
    // Each network is disconnected, the first that came first.
    let links = [&container.host_ifname, "veth2-1"];
    let dels = [(config(&container, &keys), container.target()), networks[0].clone()];
    for (n, ((config, target), link)) in dels.iter().zip(links).enumerate() {
        plugin.call(&lab.host, Verb::Del, config, target).succeeds();
        lab.host.run(&format!("ip link delete {link}"));
        container.netns.route("default", &format!("10.{}.0.1", 89 + n));
        all_reach(&lab.client, &["192.0.2.1:8080"], "inside");
        all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
        assert_eq!(local_address().to_string(), format!("10.{}.0.2", 89 + n));
        call(&lab, Verb::Add, &other, &keys).fails_with(100);
        for (config, target) in &networks[n..] {
            plugin.call(&lab.host, Verb::Check, config, target).succeeds();
        }
    }
    plugin.call(&lab.host, Verb::Del, &networks[1].0, &networks[1].1).succeeds();
    none_reach(&lab.client, &FROM_OUTSIDE);
    assert!(lab.host.try_run(&format!("nft list table {TABLE}")).is_err(), "the table is gone");
}

#[test]
fn a_network_that_waits_for_a_port_leaves_nothing_when_it_goes_first() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let keys = port(8080, 80);
    add(&lab, &container, &keys);
    let (config, target) = second_network(&lab, &container, 1, &keys);
    let alone = lab.host.snapshot();
    for verb in [Verb::Add, Verb::Del] {
        Plugin::ours("portmap").call(&lab.host, verb, &config, &target).succeeds();
        all_reach(&lab.client, &FROM_OUTSIDE, "inside");
        check(&lab, &container, &keys);
    }
    lab.host.assert_same_as(&alone);
    // The first one has other ports: what it noted of the other goes, too.
    add(&lab, &container, &port(8081, 80));
    let alone = lab.host.snapshot();
    add(&lab, &container, &keys);
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    add(&lab, &container, &port(8081, 80));
    Plugin::ours("portmap").call(&lab.host, Verb::Del, &config, &target).succeeds();
    lab.host.assert_same_as(&alone);
    add(&lab, &container, &keys);
    // Whatever way the first one goes.
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    gc(&lab, "net", json!([])).succeeds();
    lab.host.run(&format!("ip link delete {}", container.host_ifname));
    container.netns.route("default", "10.89.0.1");
    all_reach(&lab.client, &["192.0.2.1:8080"], "inside");
    Plugin::ours("portmap").call(&lab.host, Verb::Check, &config, &target).succeeds();
    gc(&lab, "net1", json!([])).succeeds();
    assert!(lab.host.try_run(&format!("nft list table {TABLE}")).is_err(), "the table is gone");
}

/// Networks that wait for different ports of the first one don't wait for each other when they have them.
#[test]
fn a_network_that_gets_its_port_is_followed_by_those_alone_that_want_it() {
    let lab = Lab::new();
    let container = lab.container(2);
    let [first, second] = [8080, 8081].map(|n| json!({"hostPort": n, "containerPort": 80, "protocol": "tcp"}));
    let keys = ports(json!([first, second]));
    add(&lab, &container, &keys);
    for (n, keys) in [(1, ports(json!([first]))), (2, ports(json!([second]))), (3, ports(json!([first])))] {
        let (config, target) = second_network(&lab, &container, n, &keys);
        Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    }
    del(&lab, &container, &keys);
    let rules = rules(&lab);
    let waiting: Vec<&str> = rules.split("\"then ").skip(1).filter_map(|then| then.split('"').next()).collect();
    assert!(waiting.len() == 1 && waiting[0].ends_with("net3/container-2/eth3"), "{waiting:?} in {rules}");
}

#[test]
fn a_dead_network_s_port_is_its_container_s_other_network_s_and_nobody_else_s() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let (container, other) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    let keys = port(8080, 80);
    add(&lab, &container, &keys);
    let (config, target) = second_network(&lab, &container, 1, &keys);
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    lab.host.run(&format!("ip link delete {}", container.host_ifname));
    container.netns.route("default", "10.89.0.1");
    Plugin::ours("portmap").call(&lab.host, Verb::Check, &config, &target).fails_with(101);
    let error = call(&lab, Verb::Add, &other, &keys).fails_with(100);
    assert!(error.msg.contains("network net1"), "{error:?}");
    // Whoever wanted it has found out that the first is gone; it needs no ADD of the next one's.
    Plugin::ours("portmap").call(&lab.host, Verb::Check, &config, &target).succeeds();
    all_reach(&lab.client, &["192.0.2.1:8080"], "inside");
    assert!(!rules(&lab).contains("net/container-2/eth0"), "{}", rules(&lab));
}

#[test]
fn a_port_of_the_dead_at_one_address_does_not_go_before_the_same_port_at_all() {
    let lab = Lab::new();
    lab.host.address("ext0", "192.0.2.3/24");
    let (crashed, alive, next) = (lab.container(2), lab.container(3), lab.container(4));
    let _servers = [serve(&next.netns, 80, "next"), serve(&alive.netns, 80, "alive")];
    let at = |address: &str| {
        let one = |port: u16, protocol| json!({"hostPort": port, "containerPort": 80, "protocol": protocol, "hostIP": address});
        ports(json!([one(8080, "tcp"), one(8080, "udp"), one(9999, "tcp")]))
    };
    add(&lab, &crashed, &at("192.0.2.1"));
    add(&lab, &alive, &at("192.0.2.3"));
    lab.host.run(&format!("ip link delete {}", crashed.host_ifname));
    let outcome = call(&lab, Verb::Add, &next, &port(8080, 80));
    outcome.succeeds();
    assert!(outcome.stderr.contains("container-2") && outcome.stderr.contains("gone"), "{}", outcome.stderr);
    all_reach(&lab.client, &FROM_OUTSIDE, "next");
    all_reach(&lab.client, &["192.0.2.3:8080"], "alive");
    assert!(!rules(&lab).contains("container-2"), "nothing of it is left: {}", rules(&lab));
    check(&lab, &next, &port(8080, 80));
    check(&lab, &alive, &at("192.0.2.3"));
}

#[test]
fn flows_to_the_dead_whose_ports_are_taken_are_forgotten() {
    let lab = Lab::new();
    lab.host.keep_conntrack();
    let (crashed, next) = (lab.container(2), lab.container(3));
    let one = |port: u16, protocol| json!({"hostPort": port, "containerPort": 53, "protocol": protocol});
    let server = serve(&crashed.netns, 53, "crashed");
    add(&lab, &crashed, &ports(json!([one(8080, "tcp"), one(5353, "udp")])));
    Fetch::new(Proto::Udp, "192.0.2.1:5353").source("192.0.2.2:4444").expect(&lab.client, "crashed");
    drop(server);
    lab.host.run(&format!("ip link delete {}", crashed.host_ifname));
    let flows = || lab.host.run("conntrack -L -p udp").matches(" src=10.88.0.2 ").count();
    assert_eq!(flows(), 1);
    add(&lab, &next, &ports(json!([one(8080, "tcp")])));
    assert_eq!(flows(), 0);
}

#[test]
fn who_has_the_port_at_the_other_addresses_is_told_with_the_address() {
    let lab = Lab::new();
    let (specific, wildcard) = (lab.container(2), lab.container(3));
    let one = |address| json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": address});
    let at_one = ports(json!([one("192.0.2.1"), one("2001:db8:2::1")]));
    let told = |container: &Container, keys: &Value| {
        let (config, target) = (config(container, keys), container.target());
        let log = ["env", "CNI_CHAIN_LOG=info"];
        let outcome = Plugin::ours("portmap").call_under(&log, &lab.host, Verb::Add, &config, &target);
        outcome.succeeds();
        outcome.stderr
    };
    told(&specific, &at_one);
    let said = told(&wildcard, &port(8080, 80));
    del(&lab, &specific, &at_one);
    let said_the_other_way = told(&specific, &at_one);
    for (said, verb) in [(said, "stays"), (said_the_other_way, "is")] {
        for address in ["192.0.2.1", "[2001:db8:2::1]"] {
            let expected = format!("{address}:8080/tcp {verb} net/container-2/eth0's");
            assert_eq!(said.matches(&expected).count(), 1, "{expected}: {said}");
        }
    }
}

#[test]
fn ports_of_a_container_whose_address_is_given_anew_go_with_it() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let mut forgotten = container.target();
    forgotten.container = "forgotten".into();
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config(&container, &port(8080, 80)), &forgotten).succeeds();
    add(&lab, &container, &port(8080, 80));
    check(&lab, &container, &port(8080, 80));
    assert!(!rules(&lab).contains("forgotten"), "{}", rules(&lab));
    // The late DEL of the old container leaves the new one alone.
    Plugin::ours("portmap").call(&lab.host, Verb::Del, &config(&container, &port(8080, 80)), &forgotten).succeeds();
    all_reach(&lab.client, &FROM_OUTSIDE, "inside");
    check(&lab, &container, &port(8080, 80));
}

#[test]
fn a_repeated_add_keeps_its_ports_and_takes_those_of_the_dead() {
    for with_v6 in [true, false] {
        let lab = Lab::new();
        let (container, crashed) = (lab.container(2), lab.container(3));
        let _server = serve(&container.netns, 80, "inside");
        let both = ports(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp"},
        ]));
        let call = |verb, container: &Container, keys: &Value| {
            let mut config = config(container, keys);
            if !with_v6 {
                config["prevResult"]["ips"].as_array_mut().unwrap().truncate(1);
            }
            let outcome = Plugin::ours("portmap").call(&lab.host, verb, &config, &container.target());
            outcome.succeeds();
            outcome.stderr
        };
        call(Verb::Add, &container, &port(8080, 80));
        call(Verb::Add, &crashed, &port(8081, 80));
        lab.host.run(&format!("ip link delete {}", crashed.host_ifname));
        let said = call(Verb::Add, &container, &both);
        assert!(said.contains("container-3") && said.contains("gone"), "{said}");
        assert!(!said.contains("container-2"), "nothing is taken from itself: {said}");
        for host_port in [8080, 8081] {
            Fetch::new(Proto::Tcp, &format!("192.0.2.1:{host_port}")).expect(&lab.client, "inside");
        }
        call(Verb::Check, &container, &both);
        assert!(!rules(&lab).contains("container-3"), "{}", rules(&lab));
        call(Verb::Del, &container, &both);
        assert!(lab.host.try_run(&format!("nft list table {TABLE}")).is_err(), "the table is gone");
    }
}

/// Containers without a subnet stand in `self4` with their address and port, the dead one with the same.
#[test]
fn a_repeated_add_takes_ports_of_the_dead_that_had_its_address() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let mut forgotten = container.target();
    forgotten.container = "forgotten".into();
    let everywhere = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let at_one = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"});
    let call = |verb, target: &netns_tests::Target, mappings: Value| {
        let mut config = config(&container, &ports(mappings));
        config["prevResult"]["ips"][0]["address"] = "10.88.0.2/32".into();
        Plugin::ours("portmap").call(&lab.host, verb, &config, target).succeeds();
    };
    call(Verb::Add, &container.target(), json!([everywhere]));
    call(Verb::Add, &forgotten, json!([at_one]));
    call(Verb::Add, &container.target(), json!([everywhere, at_one]));
    call(Verb::Check, &container.target(), json!([everywhere, at_one]));
    for from in [&lab.client, &container.netns] {
        Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(from, "inside");
    }
}

#[test]
fn second_del_leaves_the_new_owner_alone() {
    let lab = Lab::new();
    let (old, new) = (lab.container(2), lab.container(3));
    let _server = serve(&new.netns, 80, "new");
    add(&lab, &old, &port(8080, 80));
    del(&lab, &old, &port(8080, 80));
    add(&lab, &new, &port(8080, 80));
    let before = lab.host.snapshot();
    // As containerd sends it: no namespace, no prevResult, no ports.
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap"});
    Plugin::ours("portmap").call(&lab.host, Verb::Del, &bare, &old.target().without_netns()).succeeds();
    lab.host.assert_same_as(&before);
    all_reach(&lab.client, &FROM_OUTSIDE, "new");
}

#[test]
fn del_needs_neither_namespace_nor_prev_result_nor_ports() {
    let lab = Lab::new();
    let container = lab.container(2);
    let before = lab.host.snapshot();
    add(&lab, &container, &port(8080, 80));
    let bare = json!({"cniVersion": "0.3.1", "name": "net", "type": "portmap", "markMasqBit": 99});
    Plugin::ours("portmap").call(&lab.host, Verb::Del, &bare, &container.target().without_netns()).succeeds();
    lab.host.assert_same_as(&before);
}

#[test]
fn each_network_and_each_interface_keeps_its_own_ports() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _servers = [serve(&container.netns, 80, "inside")];
    let plugin = Plugin::ours("portmap");
    let on = |network: &str, host_port: u16| {
        let mut config = config(&container, &port(host_port, 80));
        config["name"] = network.into();
        config
    };
    let mut other_interface = container.target();
    other_interface.ifname = "eth1".into();
    let mut as_eth1 = on("net", 8082);
    as_eth1["prevResult"]["interfaces"][2]["name"] = "eth1".into();
    let calls =
        [(on("net", 8080), container.target()), (on("other", 8081), container.target()), (as_eth1, other_interface)];
    for (config, target) in &calls {
        plugin.call(&lab.host, Verb::Add, config, target).succeeds();
    }
    for gone in 0..calls.len() {
        let (config, target) = &calls[gone];
        plugin.call(&lab.host, Verb::Del, config, target).succeeds();
        for (i, (config, target)) in calls.iter().enumerate() {
            let address = format!("192.0.2.1:{}", 8080 + i);
            if i <= gone {
                Fetch::new(Proto::Tcp, &address).expect_nothing(&lab.client);
            } else {
                Fetch::new(Proto::Tcp, &address).expect(&lab.client, "inside");
                plugin.call(&lab.host, Verb::Check, config, target).succeeds();
            }
        }
    }
}

/// Labels have at most 125 bytes, and names in the middle of long ones are cut.
#[test]
fn owners_with_long_names_are_told_apart() {
    let lab = Lab::new();
    let (first, second, third) = (lab.container(2), lab.container(3), lab.container(4));
    let _servers = [serve(&first.netns, 80, "first"), serve(&second.netns, 80, "second")];
    let plugin = Plugin::ours("portmap");
    let id = "0123456789abcdef".repeat(4);
    let network = |c| format!("very-long-project-name-in-{c}-compose-file-number-one-default-network-x");
    let long = |c| format!("{0}{c}{0}", "x".repeat(60));
    let of = |network: &str, container: &Container, id: &str, host_port: u16| {
        let mut config = config(container, &port(host_port, 80));
        config["name"] = network.into();
        let mut target = container.target();
        target.container = id.into();
        (config, target)
    };
    for [(network_a, id_a), (network_b, id_b)] in [
        [(network("A"), id.clone()), (network("B"), id.clone())],
        [("net".into(), long("A")), ("net".into(), long("B"))],
    ] {
        let (a, b) = (of(&network_a, &first, &id_a, 8081), of(&network_b, &second, &id_b, 8082));
        let before = lab.host.snapshot();
        for (config, target) in [&a, &b] {
            plugin.call(&lab.host, Verb::Add, config, target).succeeds();
        }
        for host_port in [8081, 8082] {
            let error = call(&lab, Verb::Add, &third, &port(host_port, 80)).fails_with(100);
            assert!(error.msg.contains("since 20"), "{error:?}");
            assert!(network_a != "net" || error.msg.contains("of network net since"), "{error:?}");
        }
        let (wants_more, target) = of(&network_b, &second, &id_b, 8081);
        if id_a != id_b {
            plugin.call(&lab.host, Verb::Add, &wants_more, &target).fails_with(100);
        }
        for (host_port, token, (config, target)) in [(8081, "first", &a), (8082, "second", &b)] {
            all_reach(&lab.client, &[&format!("192.0.2.1:{host_port}")], token);
            plugin.call(&lab.host, Verb::Check, config, target).succeeds();
        }
        plugin.call(&lab.host, Verb::Del, &a.0, &a.1).succeeds();
        all_reach(&lab.client, &["192.0.2.1:8082"], "second");
        none_reach(&lab.client, &["192.0.2.1:8081"]);
        plugin.call(&lab.host, Verb::Check, &b.0, &b.1).succeeds();
        plugin.call(&lab.host, Verb::Del, &b.0, &b.1).succeeds();
        lab.host.assert_same_as(&before);
    }
}

#[test]
fn add_may_be_repeated() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    add(&lab, &container, &port(8080, 80));
    let before = lab.host.snapshot();
    add(&lab, &container, &port(8080, 80));
    lab.host.assert_same_as(&before);
    all_reach(&lab.client, &FROM_OUTSIDE, "inside");
}

#[test]
fn a_repeated_add_with_other_ports_takes_the_old_ones_back() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let before = lab.host.snapshot();
    add(&lab, &container, &port(8080, 80));
    add(&lab, &container, &port(8081, 80));
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect_nothing(&lab.client);
    all_reach(&lab.client, &["192.0.2.1:8081", "[2001:db8:2::1]:8081"], "inside");
    check(&lab, &container, &port(8081, 80));
    call(&lab, Verb::Check, &container, &port(8080, 80)).fails_with(101);
    del(&lab, &container, &port(8081, 80));
    lab.host.assert_same_as(&before);
}

#[test]
fn a_repeated_add_mends_what_was_broken() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    for breakage in [
        "flush ruleset",
        "flush table inet cni_chain_portmap",
        "flush chain inet cni_chain_portmap hostports",
        "flush map inet cni_chain_portmap ports4",
        "delete chain inet cni_chain_portmap prerouting",
        "add table inet cni_chain_portmap { flags dormant; }",
        "flush map inet cni_chain_portmap records",
    ] {
        add(&lab, &container, &port(8080, 80));
        lab.host.nft(breakage);
        call(&lab, Verb::Check, &container, &port(8080, 80)).fails_with(101);
        add(&lab, &container, &port(8080, 80));
        check(&lab, &container, &port(8080, 80));
        all_reach(&lab.client, &FROM_OUTSIDE, "inside");
        all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    }
}

#[test]
fn a_repeated_add_mends_an_element_that_was_changed() {
    let lab = Lab::new();
    let (container, other) = (lab.container(2), lab.container(3));
    let _servers = [serve(&container.netns, 80, "inside"), serve(&other.netns, 80, "other")];
    let keys = ports(json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8090, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
    ]));
    let (own, others) = ("net/container-2/eth0", "net/container-3/eth0");
    let before = lab.host.snapshot();
    add(&lab, &other, &port(8081, 80));
    for (map, key) in [("ports4", "tcp . 8080"), ("addr_ports4", "192.0.2.1 . tcp . 8090")] {
        for value in [
            format!("{key} comment \"{own}\" : 10.88.0.3 . 80"),
            format!("{key} : 10.88.0.3 . 80"),
            format!("{key} comment \"{others}\" : 10.88.0.2 . 80"),
        ] {
            add(&lab, &container, &keys);
            lab.host.nft(&format!("delete element {TABLE} {map} {{ {key} }}; add element {TABLE} {map} {{ {value} }}"));
            call(&lab, Verb::Check, &container, &keys).fails_with(101);
            let outcome = call(&lab, Verb::Add, &container, &keys);
            outcome.succeeds();
            assert!(!outcome.stderr.contains("taken from"), "{value}: {}", outcome.stderr);
            check(&lab, &container, &keys);
            for address in ["192.0.2.1:8080", "192.0.2.1:8090", "[2001:db8:2::1]:8080"] {
                Fetch::new(Proto::Tcp, address).expect(&lab.client, "inside");
            }
        }
    }
    check(&lab, &other, &port(8081, 80));
    all_reach(&lab.client, &["192.0.2.1:8081"], "other");
    del(&lab, &container, &keys);
    del(&lab, &other, &port(8081, 80));
    lab.host.assert_same_as(&before);
}

/// The key of a container's record, and the map as it is listed.
fn record_key(lab: &Lab, container: &str) -> (String, String) {
    let listed = lab.host.run(&format!("nft list map {TABLE} records"));
    let first = listed.lines().find(|line| line.contains(&format!("\"net/{container}/eth0\""))).unwrap();
    let key = first.trim().trim_start_matches("elements = { ").split(" . 0x00000000").next().unwrap();
    (key.to_owned(), listed)
}

/// Whether a container's record has this line.
fn has_line(lab: &Lab, container: &str, line: u32) -> bool {
    let (key, listed) = record_key(lab, container);
    listed.contains(&format!("{key} . {line:#010x}"))
}

/// Removes lines of a container's record by hand.
fn remove_lines(lab: &Lab, container: &str, lines: &[u32]) {
    let (key, _) = record_key(lab, container);
    for line in lines {
        lab.host.nft(&format!("delete element {TABLE} records {{ {key} . {line} }}"));
    }
}

#[test]
fn a_record_without_its_first_line_goes_with_its_owner_and_with_nobody_else() {
    for (removed, by_gc) in [(vec![0], false), (vec![0], true), (vec![0, 1], false), (vec![1, 2], true)] {
        let lab = Lab::new();
        let (damaged, other, third) = (lab.container(2), lab.container(3), lab.container(4));
        let with_links = lab.host.snapshot();
        let _servers = [serve(&damaged.netns, 80, "damaged"), serve(&other.netns, 80, "other")];
        add(&lab, &damaged, &port(8081, 80));
        add(&lab, &other, &port(8082, 80));
        remove_lines(&lab, "container-2", &removed);
        // Its ports are its own all the same.
        call(&lab, Verb::Add, &third, &port(8081, 80)).fails_with(100);
        del(&lab, &other, &port(8082, 80));
        all_reach(&lab.client, &["192.0.2.1:8081"], "damaged");
        all_reach(&lab.host, &["127.0.0.1:8081"], "damaged");
        add(&lab, &other, &port(8082, 80));
        if by_gc {
            gc(&lab, "net", json!([{"containerID": "container-3", "ifname": "eth0"}])).succeeds();
        } else {
            del(&lab, &damaged, &port(8081, 80));
        }
        none_reach(&lab.client, &["192.0.2.1:8081"]);
        all_reach(&lab.client, &["192.0.2.1:8082"], "other");
        assert!(!rules(&lab).contains("8081"), "{}", rules(&lab));
        check(&lab, &other, &port(8082, 80));
        del(&lab, &other, &port(8082, 80));
        lab.host.assert_same_as(&with_links);
    }
}

#[test]
fn gc_removes_ports_that_are_in_nobody_s_record() {
    for with_another in [true, false] {
        let lab = Lab::new();
        let (alive, dead, another) = (lab.container(2), lab.container(3), lab.container(4));
        let before = lab.host.snapshot();
        let _servers = [serve(&alive.netns, 80, "alive"), serve(&dead.netns, 80, "dead")];
        add(&lab, &alive, &port(8081, 80));
        add(&lab, &dead, &port(8082, 80));
        lab.host.nft(&format!("flush map {TABLE} records"));
        if with_another {
            add(&lab, &another, &port(8083, 80));
            del(&lab, &another, &port(8083, 80));
            all_reach(&lab.client, &["192.0.2.1:8081"], "alive");
        }
        gc(&lab, "net", json!([{"containerID": "container-2", "ifname": "eth0"}])).succeeds();
        all_reach(&lab.client, &["192.0.2.1:8081"], "alive");
        none_reach(&lab.client, &["192.0.2.1:8082"]);
        assert!(!rules(&lab).contains("8082"), "{}", rules(&lab));
        add(&lab, &alive, &port(8081, 80));
        check(&lab, &alive, &port(8081, 80));
        if with_another {
            lab.host.nft(&format!("flush map {TABLE} records"));
            gc(&lab, "net", json!([])).succeeds();
        } else {
            del(&lab, &alive, &port(8081, 80));
        }
        lab.host.assert_same_as(&before);
    }
}

#[test]
fn del_takes_an_element_of_its_owner_s_whose_target_was_changed() {
    let lab = Lab::new();
    let (container, next) = (lab.container(2), lab.container(3));
    let _server = serve(&next.netns, 80, "next");
    let before = lab.host.snapshot();
    add(&lab, &next, &port(8081, 80));
    add(&lab, &container, &port(8080, 80));
    lab.host.nft(&format!(
        "delete element {TABLE} ports4 {{ tcp . 8080 }}; \
         add element {TABLE} ports4 {{ tcp . 8080 comment \"net/container-2/eth0\" : 10.88.0.3 . 80 }}"
    ));
    del(&lab, &container, &port(8080, 80));
    assert!(!rules(&lab).contains("container-2"), "{}", rules(&lab));
    none_reach(&lab.client, &FROM_OUTSIDE);
    del(&lab, &next, &port(8081, 80));
    lab.host.assert_same_as(&before);
}

#[test]
fn an_add_mends_the_table_for_a_new_container_too() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let _server = serve(&second.netns, 80, "second");
    add(&lab, &first, &port(8080, 80));
    lab.host.nft("flush table inet cni_chain_portmap");
    add(&lab, &second, &port(8081, 80));
    check(&lab, &second, &port(8081, 80));
    all_reach(&lab.client, &["192.0.2.1:8081"], "second");
}

#[test]
fn an_add_mends_what_its_container_shares_with_others() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let (first, second) = (lab.container(2), lab.container(3));
    let _servers = [serve(&first.netns, 80, "first"), serve(&second.netns, 80, "second")];
    add(&lab, &first, &port(8080, 80));
    let kinds: Vec<String> = rules(&lab)
        .lines()
        .filter_map(|line| {
            line.trim().strip_prefix("chain wildcard")?.strip_suffix(" {").map(|k| format!("wildcard{k}"))
        })
        .collect();
    assert_eq!(kinds.len(), 2);
    for chain in ["dnat_ports4", "dnat_ports6", "mark-0x2000", "loopback_guard", "hostports"]
        .into_iter()
        .chain(kinds.iter().map(String::as_str))
    {
        lab.host.nft(&format!("flush chain {TABLE} {chain}"));
        add(&lab, &second, &port(8081, 80));
        let both = ["192.0.2.1:8081", "[2001:db8:2::1]:8081"];
        for from in [&lab.client, &first.netns, &second.netns, &lab.host] {
            all_reach(from, &both, "second");
        }
        check(&lab, &second, &port(8081, 80));
        if chain != "hostports" {
            all_reach(&lab.client, &FROM_OUTSIDE, "first");
        }
        del(&lab, &second, &port(8081, 80));
        add(&lab, &first, &port(8080, 80));
    }
}

#[test]
fn a_port_at_one_address_goes_before_the_same_port_at_all() {
    for specific_first in [true, false] {
        let lab = Lab::new();
        lab.host.address("ext0", "192.0.2.3/24");
        let (specific, wildcard) = (lab.container(2), lab.container(3));
        let _servers = [serve(&specific.netns, 80, "specific"), serve(&wildcard.netns, 80, "wildcard")];
        let at_one = ports(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.3"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.3"},
        ]));
        if specific_first {
            add(&lab, &specific, &at_one);
        }
        add(&lab, &wildcard, &port(8080, 80));
        if !specific_first {
            add(&lab, &specific, &at_one);
        }
        all_reach(&lab.client, &["192.0.2.3:8080"], "specific");
        all_reach(&lab.client, &FROM_OUTSIDE, "wildcard");
        check(&lab, &specific, &at_one);
        check(&lab, &wildcard, &port(8080, 80));
        call(&lab, Verb::Add, &lab.container(4), &at_one).fails_with(100);
        del(&lab, &specific, &at_one);
        all_reach(&lab.client, &["192.0.2.3:8080"], "wildcard");
    }
}

#[test]
fn both_may_be_the_same_container_s() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _servers = [serve(&container.netns, 80, "eighty"), serve(&container.netns, 81, "eighty-one")];
    let both = ports(json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 81, "protocol": "tcp", "hostIP": "127.0.0.1"},
    ]));
    add(&lab, &container, &both);
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "eighty");
    Fetch::new(Proto::Tcp, "127.0.0.1:8080").expect(&lab.host, "eighty-one");
    check(&lab, &container, &both);
}

/// CVE-2025-67499: the reference's nftables backend took a host port's traffic wherever it was going.
#[test]
fn only_traffic_to_the_nodes_own_addresses_is_taken() {
    let lab = Lab::new();
    let container = lab.container(2);
    let remote = Netns::new("remote");
    connect(
        End::new(&lab.host, "ext1", &["198.51.100.1/24", "2001:db8:51::1/64"]),
        End::new(&remote, "eth0", &["198.51.100.2/24", "2001:db8:51::2/64"]),
    );
    ["198.51.100.1", "2001:db8:51::1"].iter().for_each(|gateway| remote.route("default", gateway));
    let _servers = [serve(&container.netns, 80, "inside"), serve(&remote, 8080, "remote")];
    for keys in [
        port(8080, 80),
        ports(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "198.51.100.2"}])),
    ] {
        add(&lab, &container, &keys);
        for from in [&lab.client, &container.netns, &lab.host] {
            all_reach(from, &["198.51.100.2:8080", "[2001:db8:51::2]:8080"], "remote");
        }
    }
}

/// Has a machine whose default route is the host ask it for 127.0.0.1: its own loopback is elsewhere.
fn sends_loopback_to_the_wire(machine: &Netns, gateway: &str, own: &str) {
    machine.run("ip address flush dev lo");
    machine.set_sysctl("net/ipv4/conf/all/route_localnet", "1");
    machine.run(&format!("ip route add 127.0.0.1/32 via {gateway} src {own}"));
}

/// CVE-2020-8558: route_localnet lets neighbours on the link reach services that listen on 127.0.0.1 only.
#[test]
fn the_hosts_loopback_stays_closed_to_its_links() {
    let lab = Lab::new();
    let (container, attacker) = (lab.container(2), lab.container(3));
    let _servers = [
        serve(&container.netns, 80, "inside"),
        netns_tests::traffic::serve_at(&lab.host, &["127.0.0.1:7777".parse().unwrap()], &Proto::ALL, "secret"),
    ];
    add(&lab, &container, &port(8080, 80));
    assert_eq!(lab.host.sysctl("net/ipv4/conf/cni0/route_localnet"), "1");
    all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    sends_loopback_to_the_wire(&attacker.netns, "10.88.0.1", "10.88.0.3");
    none_reach(&attacker.netns, &["127.0.0.1:7777"]);
    // That it would work without the guard shows that the attack is one.
    lab.host.nft("flush chain inet cni_chain_portmap loopback_guard");
    all_reach(&attacker.netns, &["127.0.0.1:7777"], "secret");
    call(&lab, Verb::Check, &container, &port(8080, 80)).fails_with(101);
}

/// CVE-2020-8558 again, without route_localnet: what is led to a container escapes the kernel's check of 127.0.0.0/8.
#[test]
fn a_port_at_the_hosts_loopback_stays_closed_to_every_link() {
    let lab = Lab::new();
    let (container, neighbour) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    let mut keys = port(8080, 80);
    for protocol in ["tcp", "udp"] {
        let at_loopback = json!({"hostPort": 9000, "containerPort": 80, "protocol": protocol, "hostIP": "127.0.0.1"});
        keys["runtimeConfig"]["portMappings"].as_array_mut().unwrap().push(at_loopback);
    }
    add(&lab, &container, &keys);
    let at_loopback = ["127.0.0.1:9000", "127.0.0.1:8080"];
    sends_loopback_to_the_wire(&lab.client, "192.0.2.1", "192.0.2.2");
    sends_loopback_to_the_wire(&neighbour.netns, "10.88.0.1", "10.88.0.3");
    none_reach(&lab.client, &at_loopback);
    none_reach(&neighbour.netns, &at_loopback);
    all_reach(&lab.host, &at_loopback, "inside");
    all_reach(&lab.client, &["192.0.2.1:8080"], "inside");
    all_reach(&neighbour.netns, &["192.0.2.1:8080"], "inside");
    check(&lab, &container, &keys);
    // That it would work without the guard shows that the attack is one.
    lab.host.nft(&format!("flush chain {TABLE} loopback_guard"));
    all_reach(&lab.client, &at_loopback, "inside");
    call(&lab, Verb::Check, &container, &keys).fails_with(101);
}

#[test]
fn route_localnet_is_on_for_as_long_as_somebody_needs_it() {
    let lab = Lab::new();
    let (first, second, third) = (lab.container(2), lab.container(3), lab.container(4));
    let value = || lab.host.sysctl("net/ipv4/conf/cni0/route_localnet");
    assert_eq!(value(), "0");
    let at_one =
        |p: u16| ports(json!([{"hostPort": p, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]));
    add(&lab, &third, &at_one(9000));
    assert_eq!(value(), "0", "a port that isn't at 127.0.0.1 does not need it");
    add(&lab, &first, &port(8080, 80));
    add(&lab, &second, &port(8081, 80));
    assert_eq!(value(), "1");
    del(&lab, &first, &port(8080, 80));
    assert_eq!(value(), "1");
    del(&lab, &second, &port(8081, 80));
    assert_eq!(value(), "0");
    assert!(!rules(&lab).contains("loopback-"), "{}", rules(&lab));
    del(&lab, &third, &at_one(9000));
    lab.host.set_sysctl("net/ipv4/conf/cni0/route_localnet", "1");
    add(&lab, &first, &port(8080, 80));
    del(&lab, &first, &port(8080, 80));
    assert_eq!(value(), "1", "it was the administrator's");
}

#[test]
fn without_snat_nobody_is_masqueraded() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let mut keys = port(8080, 80);
    keys["snat"] = false.into();
    add(&lab, &container, &keys);
    assert_eq!(lab.host.sysctl("net/ipv4/conf/cni0/route_localnet"), "0");
    lab.host.nft(
        "table inet marked { chain post { type filter hook postrouting priority 0; tcp dport 80 meta mark != 0 counter; }; \
         chain own { ct mark set 0; }; }",
    );
    let reply = Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "inside");
    assert_eq!(reply.peer.ip().to_string(), "192.0.2.2");
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.host, "inside");
    let marked = lab.host.run("nft list chain inet marked post");
    assert!(marked.contains("packets 0"), "no packet is marked for anybody: {marked}");
    Fetch::new(Proto::Tcp, "127.0.0.1:8080").expect_nothing(&lab.host);
    check(&lab, &container, &keys);
}

#[test]
fn masq_all_masquerades_everybody() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let mut keys = port(8080, 80);
    keys["masqAll"] = true.into();
    add(&lab, &container, &keys);
    for (address, gateway) in FROM_OUTSIDE.iter().zip(netns_tests::lab::GATEWAY) {
        let reply = Fetch::new(Proto::Tcp, address).expect(&lab.client, "inside");
        assert_eq!(reply.peer.ip().to_string(), gateway);
    }
    all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    // What was never led by a port keeps its source.
    lab.client.route("10.88.0.0/24", "192.0.2.1");
    let reply = Fetch::new(Proto::Tcp, "10.88.0.2:80").expect(&lab.client, "inside");
    assert_eq!(reply.peer.ip().to_string(), "192.0.2.2");
    check(&lab, &container, &keys);
}

#[test]
fn another_mark_bit_does_the_same() {
    let lab = Lab::new();
    let (container, neighbour) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    let mut keys = port(8080, 80);
    keys["markMasqBit"] = 4.into();
    bridged_frames_are_filtered(&lab, false);
    let before = lab.host.snapshot();
    add(&lab, &container, &keys);
    assert!(rules(&lab).contains("0x00000010") && !rules(&lab).contains("0x00002000"), "{}", rules(&lab));
    all_reach(&neighbour.netns, &FROM_OUTSIDE, "inside");
    all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    check(&lab, &container, &keys);
    del(&lab, &container, &keys);
    lab.host.assert_same_as(&before);
}

#[test]
fn an_external_mark_chain_s_owner_sees_its_mark() {
    let lab = Lab::new();
    let (container, neighbour) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    bridged_frames_are_filtered(&lab, false);
    // As kube-proxy: mark, and masquerade what is marked. Here it gives another source, so that it can be told.
    lab.host.run("iptables -w -t nat -N KUBE-MARK-MASQ");
    lab.host.run("iptables -w -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000");
    lab.host.run("iptables -w -t nat -I POSTROUTING -m mark --mark 0x4000/0x4000 -j SNAT --to-source 192.0.2.1");
    let mut keys = port(8080, 80);
    keys["externalSetMarkChain"] = "KUBE-MARK-MASQ".into();
    add(&lab, &container, &keys);
    let reply = Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&neighbour.netns, "inside");
    assert_eq!(reply.peer.ip().to_string(), "192.0.2.1");
    check(&lab, &container, &keys);
    // Where nobody masquerades by that mark, we do.
    lab.host.run("iptables -w -t nat -F");
    all_reach(&neighbour.netns, &["192.0.2.1:8080"], "inside");
}

#[test]
fn what_an_external_mark_chain_sets_is_read_from_iptables() {
    let lab = Lab::new();
    let container = lab.container(2);
    for (chain, target, bits) in [
        ("MARK-800", "--or-mark 0x800", 0x2800),
        ("MARK-10", "--set-xmark 0x10/0x30", 0x2010),
        ("MARK-4", "--set-mark 0x4", 0x2004),
        ("NO-MARK", "--xor-mark 0x800", 0x2000),
        ("KUBE-MARK-MASQ", "--or-mark 0x8", 0x2008),
    ] {
        lab.host.run(&format!("iptables -w -t nat -N {chain}"));
        lab.host.run(&format!("iptables -w -t nat -A {chain} -j MARK {target}"));
        let mut keys = port(8080, 80);
        keys["externalSetMarkChain"] = chain.into();
        add(&lab, &container, &keys);
        let set = format!("mark set meta mark | 0x{bits:08x} goto");
        let set_by_old_nft = format!("mark set mark | 0x{bits:08x} goto");
        assert!(
            rules(&lab).contains(&set) || rules(&lab).contains(&set_by_old_nft),
            "{target}: {set}: {}",
            rules(&lab)
        );
        check(&lab, &container, &keys);
    }
}

#[test]
fn conditions_are_the_attachment_s_own() {
    let lab = Lab::new();
    let (office, all) = (lab.container(2), lab.container(3));
    let _servers = [serve(&office.netns, 80, "office"), serve(&all.netns, 80, "all")];
    for (v4, v6) in [
        (json!(["ip", "saddr", "!=", "192.0.2.2"]), json!(["ip6 saddr != 2001:db8:2::2"])),
        (json!(["!", "-s", "192.0.2.2"]), json!(["!", "-s", "2001:db8:2::2/128"])),
    ] {
        let mut keys = port(8080, 80);
        keys["conditionsV4"] = v4;
        keys["conditionsV6"] = v6;
        add(&lab, &office, &keys);
        add(&lab, &all, &port(8081, 80));
        none_reach(&lab.client, &FROM_OUTSIDE);
        all_reach(&lab.host, &["192.0.2.1:8080", "127.0.0.1:8080"], "office");
        all_reach(&lab.client, &["192.0.2.1:8081", "[2001:db8:2::1]:8081"], "all");
        check(&lab, &office, &keys);
        del(&lab, &all, &port(8081, 80));
        none_reach(&lab.client, &FROM_OUTSIDE);
        del(&lab, &office, &keys);
    }
}

#[test]
fn a_condition_on_marks_does_not_see_the_mark_of_masquerading() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let (container, neighbour) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    for (v4, v6) in [
        (json!(["-m", "mark", "--mark", "0"]), json!(["meta mark 0"])),
        (json!(["meta mark & 0x2000 == 0"]), json!(["-m", "mark", "!", "--mark", "0x2000/0x2000"])),
    ] {
        for masq_all in [false, true] {
            let mut keys = port(8080, 80);
            (keys["conditionsV4"], keys["conditionsV6"], keys["masqAll"]) = (v4.clone(), v6.clone(), masq_all.into());
            add(&lab, &container, &keys);
            for from in [&lab.client, &neighbour.netns, &container.netns] {
                all_reach(from, &FROM_OUTSIDE, "inside");
            }
            all_reach(&lab.host, &["127.0.0.1:8080", "192.0.2.1:8080"], "inside");
            check(&lab, &container, &keys);
            del(&lab, &container, &keys);
        }
    }
}

#[test]
fn a_list_of_a_condition_is_what_it_says_however_its_values_overlap() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let from = |source: &str| Fetch::new(Proto::Tcp, "192.0.2.1:8080").source(source);
    for (conditions, taken, not_taken) in [
        (json!(["-s", "192.0.2.0/24,192.0.2.2"]), Some("192.0.2.2:0"), None),
        (json!(["-s", "0.0.0.0/0,10.0.0.0/8"]), Some("192.0.2.2:0"), None),
        (json!(["-s", "10.0.0.0/8,255.0.0.0/8,254.0.0.0/8"]), None, Some("192.0.2.2:0")),
        (json!(["tcp sport != { 1024-65535, 40000 }"]), Some("192.0.2.2:1000"), Some("192.0.2.2:45000")),
        (json!(["-m", "tcp", "--sport", "2000:2010"]), Some("192.0.2.2:2001"), Some("192.0.2.2:30002")),
        (json!(["-m", "multiport", "--sports", "2020,2021"]), Some("192.0.2.2:2021"), Some("192.0.2.2:30003")),
        (json!(["tcp sport { 2000-2010, 40000-65535, 40100 }"]), Some("192.0.2.2:45001"), Some("192.0.2.2:30001")),
        (
            json!(["-p", "tcp", "-m", "multiport", "!", "--sports", "1024:65535,40000"]),
            Some("192.0.2.2:1001"),
            Some("192.0.2.2:45002"),
        ),
    ] {
        let mut keys = ports(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
        keys["conditionsV4"] = conditions;
        add(&lab, &container, &keys);
        taken.into_iter().for_each(|source| drop(from(source).expect(&lab.client, "inside")));
        not_taken.into_iter().for_each(|source| drop(from(source).expect_nothing(&lab.client)));
        check(&lab, &container, &keys);
        del(&lab, &container, &keys);
    }
}

#[test]
fn an_unknown_condition_is_refused_before_anything_changes() {
    let lab = Lab::new();
    let container = lab.container(2);
    let before = lab.host.snapshot();
    let mut keys = port(8080, 80);
    keys["conditionsV4"] = json!(["-m", "set", "--match-set", "office", "src"]);
    let error = call(&lab, Verb::Add, &container, &keys).fails_with(7);
    assert!(error.msg.contains("conditionsV4") && error.msg.contains("\"set\""), "{error:?}");
    lab.host.assert_same_as(&before);
}

#[test]
fn a_condition_that_does_not_hold_at_one_address_leaves_the_packet_to_the_port_at_all() {
    let lab = Lab::new();
    let (specific, wildcard) = (lab.container(2), lab.container(3));
    let _servers = [serve(&specific.netns, 80, "specific"), serve(&wildcard.netns, 80, "wildcard")];
    let mut at_one = ports(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]));
    at_one["conditionsV4"] = json!(["ip saddr != 192.0.2.2"]);
    add(&lab, &specific, &at_one);
    add(&lab, &wildcard, &port(8080, 80));
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "wildcard");
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.host, "specific");
}

#[test]
fn a_service_at_dstnat_goes_first() {
    let lab = Lab::new();
    let (container, pod) = (lab.container(2), lab.container(3));
    let _servers = [serve(&container.netns, 80, "host port"), serve(&pod.netns, 80, "service")];
    add(&lab, &container, &port(8080, 80));
    lab.host.nft("table ip kube { chain pre { type nat hook prerouting priority -100; ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.88.0.3:80; }; }");
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "service");
    let mut keys = port(8080, 80);
    keys["priority"] = (-105).into();
    add(&lab, &container, &keys);
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "host port");
    check(&lab, &container, &keys);
}

/// TABLE, KIND (a kind of publication for IPv4) and LINE (the key of the record's second line) stand for their names.
const DAMAGES: [(&str, &str); 25] = [
    (
        "another target",
        "delete element TABLE ports4 { tcp . 8080 }; add element TABLE ports4 { tcp . 8080 : 10.88.0.9 . 80 }",
    ),
    (
        "another port",
        "delete element TABLE ports6 { udp . 8080 }; add element TABLE ports6 { udp . 8080 : fd00:88::2 . 81 }",
    ),
    ("a missing element", "delete element TABLE ports6 { udp . 8080 }"),
    ("a missing member", "delete element TABLE KIND { tcp . 8080 }"),
    ("a removed hook", "delete chain TABLE output"),
    ("a removed jump", "flush chain TABLE prerouting"),
    ("a removed entrance", "flush chain TABLE hostports"),
    ("a flushed table", "flush table TABLE"),
    ("a removed table", "delete table TABLE"),
    ("a sleeping table", "add table TABLE { flags dormant; }"),
    ("no masquerading", "flush chain TABLE masquerade_marked"),
    ("another masquerading", "flush chain TABLE mark-0x2000"),
    ("no guard", "flush chain TABLE loopback_guard"),
    ("a rule in the way", "insert rule TABLE prerouting accept"),
    ("a rule in the way of host ports", "insert rule TABLE hostports accept"),
    ("a rule behind host ports", "add rule TABLE hostports counter"),
    ("a rule in the way of masquerading", "insert rule TABLE masquerade_marked meta l4proto tcp accept"),
    ("a rule where users are counted", "add rule TABLE attachments counter"),
    ("a second entrance", "add rule TABLE hostports meta nfproto ipv4 meta l4proto . th dport @KIND jump KIND"),
    ("a hook of somebody else", "add chain TABLE theirs { type filter hook prerouting priority 0; }"),
    ("another kind", "flush chain TABLE KIND"),
    ("no record", "flush map TABLE records"),
    ("a missing line", "delete element TABLE records { LINE }"),
    ("another line", "delete element TABLE records { LINE }; add element TABLE records { LINE : continue }"),
    ("a line too many", "add element TABLE records { NEXT comment \"10.88.0.2 1:1/tcp\" : continue }"),
];

fn damage(lab: &Lab, text: &str) {
    let listed = rules(lab);
    let kind = listed.lines().find_map(|l| l.trim().strip_prefix("chain wildcard4-")).unwrap().trim_end_matches(" {");
    let line = &listed[listed.find(" . 0x00000001 comment").unwrap() - 4 * 13 + 3..][..5 * 13 - 3];
    let next = line.replace("0x00000001", "0x00000005");
    let names = [("TABLE", TABLE), ("KIND", &format!("wildcard4-{kind}")), ("LINE", line), ("NEXT", &next)];
    lab.host.nft(&names.iter().fold(text.to_owned(), |text, (name, it)| text.replace(name, it)));
}

#[test]
fn check_sees_every_kind_of_damage_and_a_repeated_add_mends_it() {
    let lab = Lab::new();
    let container = lab.container(2);
    let keys = port(8080, 80);
    let before = lab.host.snapshot();
    add(&lab, &container, &keys);
    let undamaged = rules(&lab);
    for (what, text) in DAMAGES {
        check(&lab, &container, &keys);
        damage(&lab, text);
        let outcome = call(&lab, Verb::Check, &container, &keys);
        assert_eq!(outcome.exit, 1, "CHECK overlooked {what}: {}", outcome.call());
        outcome.fails_with(101);
        let outcome = call(&lab, Verb::Add, &container, &keys);
        assert_eq!(outcome.exit, 0, "ADD did not mend {what}: {}", outcome.call());
        assert_eq!(lines_of(&rules(&lab)), lines_of(&undamaged), "after {what}");
    }
    check(&lab, &container, &keys);
    del(&lab, &container, &keys);
    lab.host.assert_same_as(&before);
    add(&lab, &container, &keys);
    lab.host.set_sysctl("net/ipv4/conf/cni0/route_localnet", "0");
    let error = call(&lab, Verb::Check, &container, &keys).fails_with(101);
    assert!(error.msg.contains("route_localnet"), "{error:?}");
}

/// Sets come in the order in which they were made, and a container's first ADD can have been a moment ago.
fn lines_of(listed: &str) -> Vec<String> {
    let without_time = |line: &str| line.split(" boot ").last().unwrap().trim_matches([' ', '\t', ',']).to_owned();
    let mut lines: Vec<String> = listed.lines().map(without_time).collect();
    lines.sort();
    lines
}

#[test]
fn a_rule_of_somebody_else_in_our_chains_goes_with_the_next_add_of_anyone() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let _servers = [serve(&first.netns, 80, "first"), serve(&second.netns, 80, "second")];
    add(&lab, &first, &port(8080, 80));
    lab.host.nft(&format!("insert rule {TABLE} hostports accept; insert rule {TABLE} masquerade_marked accept"));
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect_nothing(&lab.client);
    let outcome = call(&lab, Verb::Add, &second, &port(8081, 80));
    outcome.succeeds();
    assert_eq!(outcome.stderr.matches("a rule of somebody else").count(), 2, "{}", outcome.stderr);
    all_reach(&lab.client, &FROM_OUTSIDE, "first");
    all_reach(&lab.client, &["192.0.2.1:8081"], "second");
    all_reach(&lab.host, &["127.0.0.1:8080"], "first");
    check(&lab, &first, &port(8080, 80));
}

#[test]
fn an_entrance_that_was_removed_is_there_again_after_the_next_add_of_its_kind() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let _servers = [serve(&first.netns, 80, "first"), serve(&second.netns, 80, "second")];
    add(&lab, &first, &port(8080, 80));
    lab.host.nft(&format!("flush chain {TABLE} hostports; flush chain {TABLE} masquerade_marked"));
    add(&lab, &second, &port(8081, 80));
    all_reach(&lab.client, &FROM_OUTSIDE, "first");
    all_reach(&lab.host, &["127.0.0.1:8080"], "first");
    check(&lab, &first, &port(8080, 80));
}

#[test]
fn del_leaves_nothing_of_a_record_that_lacks_a_line() {
    let lab = Lab::new();
    let (container, other) = (lab.container(2), lab.container(3));
    let before = lab.host.snapshot();
    for key in ["0x00000001", "0x00000002", "0x00000003"] {
        add(&lab, &other, &port(8081, 80));
        add(&lab, &container, &port(8080, 80));
        let listed = rules(&lab);
        let at = listed.find("comment \"10.88.0.2 8080:80").unwrap();
        let line = listed[..at].rsplit([',', '{']).next().unwrap().trim().replace("0x00000002", key);
        lab.host.nft(&format!("delete element {TABLE} records {{ {line} }}"));
        del(&lab, &container, &port(8080, 80));
        assert!(!rules(&lab).contains("container-2"), "without {key}: {}", rules(&lab));
        check(&lab, &other, &port(8081, 80));
        add(&lab, &container, &port(8080, 80));
        check(&lab, &container, &port(8080, 80));
        del(&lab, &container, &port(8080, 80));
        del(&lab, &other, &port(8081, 80));
        lab.host.assert_same_as(&before);
    }
}

/// Whoever empties the maps by hand makes room for others, and the record of the first says that the port is its own.
#[test]
fn del_after_a_flush_by_hand_leaves_what_is_somebody_else_s_by_now() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let _server = serve(&second.netns, 80, "second");
    let before = lab.host.snapshot();
    for address in ["0.0.0.0", "192.0.2.1"] {
        let keys = ports(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": address}]));
        add(&lab, &first, &keys);
        let map = if address == "0.0.0.0" { "ports4" } else { "addr_ports4" };
        lab.host.nft(&format!("flush map {TABLE} {map}"));
        add(&lab, &second, &keys);
        del(&lab, &first, &keys);
        Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "second");
        check(&lab, &second, &keys);
        del(&lab, &second, &keys);
        lab.host.assert_same_as(&before);
    }
}

/// Every restart of Debian's nftables service flushes the ruleset, and with it the guard of what stays on.
#[test]
fn route_localnet_without_its_guard_is_closed_by_whoever_comes_next() {
    let lab = Lab::new();
    let (container, other) = (lab.container(2), lab.container(3));
    let value = || lab.host.sysctl("net/ipv4/conf/cni0/route_localnet");
    let before = lab.host.snapshot();
    let at_one = ports(json!([{"hostPort": 9000, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]));
    let calls: [(&str, &dyn Fn()); 4] = [
        ("its own DEL", &|| del(&lab, &container, &port(8080, 80))),
        ("a DEL of nobody's", &|| del(&lab, &other, &json!({}))),
        ("GC", &|| drop(gc(&lab, "net", json!([])).succeeds())),
        ("an ADD that does not need it", &|| drop(add(&lab, &other, &at_one))),
    ];
    for (who, next) in calls {
        add(&lab, &container, &port(8080, 80));
        assert_eq!(value(), "1");
        lab.host.nft("flush ruleset");
        assert_eq!(value(), "1", "nobody could do anything about it yet");
        next();
        assert_eq!(value(), "0", "after {who}");
        del(&lab, &other, &json!({}));
        lab.host.assert_same_as(&before);
    }
    // Whoever needs it has it, with a guard and with what it was before.
    add(&lab, &container, &port(8080, 80));
    lab.host.nft("flush ruleset");
    add(&lab, &container, &port(8080, 80));
    assert_eq!(value(), "1");
    check(&lab, &container, &port(8080, 80));
    del(&lab, &container, &port(8080, 80));
    lab.host.assert_same_as(&before);
}

#[test]
fn an_add_with_an_empty_list_takes_the_ports_back() {
    let lab = Lab::new();
    let container = lab.container(2);
    let before = lab.host.snapshot();
    let none = ports(json!([]));
    add(&lab, &container, &none);
    check(&lab, &container, &none);
    lab.host.assert_same_as(&before);
    add(&lab, &container, &port(8080, 80));
    let error = call(&lab, Verb::Check, &container, &none).fails_with(101);
    assert!(error.details.contains("net/container-2/eth0"), "{error:?}");
    // Nothing said of ports is no wish.
    add(&lab, &container, &json!({}));
    check(&lab, &container, &port(8080, 80));
    let outcome = call(&lab, Verb::Add, &container, &none);
    outcome.succeeds();
    assert_eq!(outcome.stderr, "");
    lab.host.assert_same_as(&before);
}

#[test]
fn ports_of_a_container_without_an_address_are_told_of() {
    let lab = Lab::new();
    let container = lab.container(2);
    let before = lab.host.snapshot();
    let mut config = config(&container, &port(8080, 80));
    config["prevResult"]["ips"] = json!([]);
    let outcome = Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &container.target());
    outcome.succeeds();
    assert!(outcome.stderr.contains("nothing is published"), "{}", outcome.stderr);
    lab.host.assert_same_as(&before);
}

#[test]
fn check_changes_nothing() {
    let lab = Lab::new();
    let container = lab.container(2);
    let before = lab.host.snapshot();
    call(&lab, Verb::Check, &container, &port(8080, 80)).fails_with(101);
    lab.host.assert_same_as(&before);
}

fn gc(lab: &Lab, network: &str, live: Value) -> Outcome {
    let config = json!({"cniVersion": "1.1.0", "name": network, "type": "portmap", "cni.dev/valid-attachments": live});
    Plugin::ours("portmap").call(&lab.host, Verb::Gc, &config, &Target::new("", "", ""))
}

#[test]
fn gc_keeps_the_living_and_other_networks() {
    let lab = Lab::new();
    let containers = [lab.container(2), lab.container(3), lab.container(4)];
    let _servers: Vec<_> = containers.iter().map(|c| serve(&c.netns, 80, &c.id)).collect();
    let before = lab.host.snapshot();
    for (container, host_port) in containers.iter().zip(8080..) {
        add(&lab, container, &port(host_port, 80));
    }
    let mut elsewhere = config(&containers[0], &port(8090, 80));
    elsewhere["name"] = "other".into();
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &elsewhere, &containers[0].target()).succeeds();
    gc(&lab, "net", json!([{"containerID": "container-3", "ifname": "eth0"}])).succeeds();
    for (address, token) in [("192.0.2.1:8081", "container-3"), ("192.0.2.1:8090", "container-2")] {
        Fetch::new(Proto::Tcp, address).expect(&lab.client, token);
    }
    none_reach(&lab.client, &["192.0.2.1:8080", "192.0.2.1:8082"]);
    check(&lab, &containers[1], &port(8081, 80));
    gc(&lab, "net", json!([])).succeeds();
    gc(&lab, "other", json!([])).succeeds();
    lab.host.assert_same_as(&before);
}

#[test]
fn thirty_adds_at_once_all_succeed() {
    let lab = Lab::new();
    let before = lab.host.snapshot();
    let container = lab.container(2);
    let with_link = lab.host.snapshot();
    let plugin = Plugin::ours("portmap");
    let calls: Vec<(Value, Target)> = (0..30u16)
        .map(|i| {
            let mut keys = config(&container, &port(8000 + i, 80));
            keys["prevResult"]["ips"][0]["address"] = format!("10.88.0.{}/24", 100 + i).into();
            keys["prevResult"]["ips"][1]["address"] = format!("fd00:88::{:x}/64", 256 + i).into();
            let mut target = container.target();
            target.container = format!("many-{i}");
            (keys, target)
        })
        .collect();
    for verb in [Verb::Add, Verb::Check, Verb::Del] {
        std::thread::scope(|scope| {
            for (keys, target) in &calls {
                let (plugin, lab) = (&plugin, &lab);
                scope.spawn(move || plugin.call(&lab.host, verb, keys, target).succeeds());
            }
        });
    }
    lab.host.assert_same_as(&with_link);
    drop(before);
}

#[test]
fn a_thousand_ports_of_one_container() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _servers = [serve(&container.netns, 1000, "first"), serve(&container.netns, 1999, "last")];
    let before = lab.host.snapshot();
    let mappings: Vec<Value> =
        (0..1000).map(|i| json!({"hostPort": 20000 + i, "containerPort": 1000 + i, "protocol": "tcp"})).collect();
    let keys = ports(mappings.into());
    add(&lab, &container, &keys);
    Fetch::new(Proto::Tcp, "192.0.2.1:20000").expect(&lab.client, "first");
    Fetch::new(Proto::Tcp, "[2001:db8:2::1]:20999").expect(&lab.client, "last");
    check(&lab, &container, &keys);
    del(&lab, &container, &keys);
    lab.host.assert_same_as(&before);
}

#[test]
fn a_udp_client_that_was_there_before_reaches_the_container_and_then_the_next() {
    let lab = Lab::new();
    lab.host.keep_conntrack();
    let remote = Netns::new("remote");
    connect(End::new(&lab.host, "ext1", &["198.51.100.1/24"]), End::new(&remote, "eth0", &["198.51.100.2/24"]));
    remote.route("default", "198.51.100.1");
    let (first, second) = (lab.container(2), lab.container(3));
    let _servers =
        [serve(&first.netns, 53, "first"), serve(&second.netns, 53, "second"), serve(&remote, 5353, "remote")];
    let keys = ports(json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]));
    let ask = |address: &str| Fetch::new(Proto::Udp, address).source("192.0.2.2:4444");
    let through = || Fetch::new(Proto::Udp, "198.51.100.2:5353").source("192.0.2.2:4445");
    let ask_v6 = || Fetch::new(Proto::Udp, "[2001:db8:2::1]:5353").source("[2001:db8:2::2]:4444");
    ask("192.0.2.1:5353").expect_nothing(&lab.client);
    ask_v6().expect_nothing(&lab.client);
    through().expect(&lab.client, "remote");
    let flows = || lab.host.run("conntrack -L -p udp");
    assert!(flows().contains("dst=192.0.2.1 sport=4444 dport=5353"), "{}", flows());
    add(&lab, &first, &keys);
    assert!(flows().contains("dst=198.51.100.2 sport=4445"), "what passes through stays: {}", flows());
    ask("192.0.2.1:5353").expect(&lab.client, "first");
    ask_v6().expect(&lab.client, "first");
    del(&lab, &first, &keys);
    assert!(!flows().contains("dport=5353 src=10.88.0.2"), "{}", flows());
    assert!(flows().contains("dst=198.51.100.2 sport=4445"), "{}", flows());
    add(&lab, &second, &keys);
    ask("192.0.2.1:5353").expect(&lab.client, "second");
    ask_v6().expect(&lab.client, "second");
}

/// Few flows are read as text, many from a dump, of one port or of all.
/// AnyIP: no link has the address, and the host answers for it all the same.
#[test]
fn a_udp_client_of_an_address_that_is_the_hosts_by_a_route_reaches_the_container() {
    let lab = Lab::new();
    lab.host.keep_conntrack();
    let container = lab.container(2);
    lab.host.run("ip route add local 203.0.113.0/24 dev lo");
    lab.host.run("ip -6 route add local 2001:db8:113::/64 dev lo");
    // What IPv4 binds to without being asked.
    lab.host.set_sysctl("net/ipv6/ip_nonlocal_bind", "1");
    let at = ["203.0.113.7:5353", "[2001:db8:113::7]:5353"];
    let addresses = at.map(|address| address.parse().unwrap());
    let _servers = [
        serve(&container.netns, 53, "inside"),
        netns_tests::traffic::serve_at(&lab.host, &addresses, &Proto::ALL, "host"),
    ];
    let sources = ["192.0.2.2:4444", "[2001:db8:2::2]:4444"];
    let all_get = |token: &str| {
        for (address, source) in at.iter().zip(sources) {
            Fetch::new(Proto::Udp, address).source(source).expect(&lab.client, token);
        }
    };
    all_get("host");
    add(&lab, &container, &ports(json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}])));
    all_get("inside");
}

#[test]
fn flows_to_a_container_that_is_gone_are_forgotten_among_few_and_among_many() {
    for (count, others) in [(1, 0), (2, 0), (1, 6000), (200, 6000)] {
        let lab = Lab::new();
        lab.host.keep_conntrack();
        let (first, second) = (lab.container(2), lab.container(3));
        let _servers = [serve(&first.netns, 53, "first"), serve(&second.netns, 53, "second")];
        let ports_from = |from: u16| {
            let one = |n| json!({"hostPort": from + n, "containerPort": 53, "protocol": "udp"});
            ports((0..count).map(one).collect())
        };
        add(&lab, &first, &ports_from(5000));
        add(&lab, &second, &ports_from(6000));
        let ask = |address: &str, port: u16, token| {
            Fetch::new(Proto::Udp, &format!("{address}:{port}")).expect(&lab.client, token);
        };
        for address in ["192.0.2.1", "[2001:db8:2::1]"] {
            ask(address, 5000, "first");
            if count > 1 {
                ask(address, 5000 + count - 1, "first");
            }
            ask(address, 6000, "second");
        }
        let flows = |family: &str, source: &str| {
            lab.host.run(&format!("conntrack -L -f {family} -p udp")).matches(&format!(" src={source} ")).count()
        };
        lab.host.inside(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            (0..others).for_each(|n| drop(socket.send_to(b"", ("127.0.0.1", 20_000 + n))));
        });
        assert!(lab.host.sysctl("net/netfilter/nf_conntrack_count").parse::<u16>().unwrap() >= others);
        let asked = if count == 1 { 1 } else { 2 };
        assert_eq!([flows("ipv4", "10.88.0.2"), flows("ipv4", "10.88.0.3")], [asked, 1]);
        assert_eq!([flows("ipv6", "fd00:88::2"), flows("ipv6", "fd00:88::3")], [asked, 1]);
        del(&lab, &first, &ports_from(5000));
        assert_eq!([flows("ipv4", "10.88.0.2"), flows("ipv4", "10.88.0.3")], [0, 1], "{count} ports");
        assert_eq!([flows("ipv6", "fd00:88::2"), flows("ipv6", "fd00:88::3")], [0, 1], "{count} ports");
        // One that began before the port was published.
        let there = || lab.host.run("conntrack -L -p udp").matches("dst=192.0.2.1 sport=4444").count();
        Fetch::new(Proto::Udp, "192.0.2.1:5000").source("192.0.2.2:4444").expect_nothing(&lab.client);
        assert_eq!(there(), 1);
        add(&lab, &first, &ports_from(5000));
        assert_eq!(there(), 0, "{count} ports");
    }
}

#[test]
fn a_flow_to_somebody_s_port_at_one_address_survives_the_same_port_at_all() {
    let lab = Lab::new();
    lab.host.keep_conntrack();
    let (specific, wildcard) = (lab.container(2), lab.container(3));
    let _server = serve(&specific.netns, 53, "specific");
    let at_one = ports(json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}]));
    add(&lab, &specific, &at_one);
    Fetch::new(Proto::Udp, "192.0.2.1:5353").source("192.0.2.2:4444").expect(&lab.client, "specific");
    add(&lab, &wildcard, &ports(json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}])));
    let flows = lab.host.run("conntrack -L -p udp");
    assert!(flows.contains("sport=4444 dport=5353 src=10.88.0.2"), "{flows}");
}

#[test]
fn a_process_that_listens_on_a_published_port_is_told_of() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _servers = [serve(&container.netns, 80, "inside"), serve(&lab.host, 8080, "host")];
    let outcome = call(&lab, Verb::Add, &container, &port(8080, 80));
    outcome.succeeds();
    let pid = std::process::id().to_string();
    for said in ["listens on tcp 0.0.0.0:8080", "listens on udp 0.0.0.0:8080", &pid] {
        assert!(outcome.stderr.contains(said), "{said}: {}", outcome.stderr);
    }
    all_reach(&lab.client, &FROM_OUTSIDE, "inside");
}

#[test]
fn a_container_without_a_subnet_reaches_itself() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let mut config = config(&container, &port(8080, 80));
    config["prevResult"]["ips"][0]["address"] = "10.88.0.2/32".into();
    config["prevResult"]["ips"][1]["address"] = "fd00:88::2/128".into();
    let call = |verb| Plugin::ours("portmap").call(&lab.host, verb, &config, &container.target()).succeeds();
    call(Verb::Add);
    all_reach(&container.netns, &FROM_OUTSIDE, "inside");
    let reply = Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "inside");
    assert_eq!(reply.peer.ip().to_string(), "192.0.2.2");
    call(Verb::Check);
    call(Verb::Del);
    assert!(lab.host.try_run(&format!("nft list table {TABLE}")).is_err(), "the table is gone");
}

#[test]
fn a_version_of_ip_that_the_container_lacks_is_left_out() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let mut config = config(
        &container,
        &ports(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "2001:db8:2::1"},
        ])),
    );
    config["prevResult"]["ips"].as_array_mut().unwrap().truncate(1);
    let call = |verb| Plugin::ours("portmap").call(&lab.host, verb, &config, &container.target()).succeeds();
    call(Verb::Add);
    call(Verb::Check);
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "inside");
    Fetch::new(Proto::Tcp, "[2001:db8:2::1]:8080").expect_nothing(&lab.client);
    call(Verb::Del);
}

#[test]
fn what_the_reference_left_with_iptables_goes_with_del_and_gc() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let reference = Plugin::reference("portmap");
    for (container, host_port) in [(&first, 8080), (&second, 8081)] {
        let mut config = config(container, &port(host_port, 80));
        config["cniVersion"] = "0.4.0".into();
        config["prevResult"] = container.prev_result("0.4.0");
        reference.call(&lab.host, Verb::Add, &config, &container.target()).succeeds();
    }
    let chains = || {
        lab.host.run("iptables-save -t nat").matches(":CNI-DN-").count()
            + lab.host.run("ip6tables-save -t nat").matches(":CNI-DN-").count()
    };
    assert_eq!(chains(), 4);
    del(&lab, &first, &port(8080, 80));
    assert_eq!(chains(), 2);
    gc(&lab, "net", json!([{"containerID": "container-3", "ifname": "eth0"}])).succeeds();
    assert_eq!(chains(), 2);
    gc(&lab, "other", json!([])).succeeds();
    assert_eq!(chains(), 2);
    gc(&lab, "net", json!([])).succeeds();
    assert_eq!(chains(), 0);
    assert!(!lab.host.run("iptables-save -t nat").contains("dnat name"), "the jumps are gone too");
}

#[test]
fn what_the_reference_left_with_nftables_goes_with_del_and_gc() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let left = |family: &str, container: &Container, address: &str| {
        let (id, dnat) =
            (&container.id, if family == "ip" { format!("{address}:80") } else { format!("[{address}]:80") });
        lab.host.nft(&format!(
            "table {family} cni_hostport {{ chain hostports {{ tcp dport 8080 dnat to {dnat} comment \"{id}\"; }}; \
             chain masquerading {{ type nat hook postrouting priority srcnat; {family} saddr {address} {family} daddr {address} masquerade comment \"{id}\"; }}; }}"
        ));
    };
    for container in [&first, &second] {
        left("ip", container, &container.addresses[0]);
        left("ip6", container, &container.addresses[1]);
    }
    let of = |container: &Container| {
        lab.host.run("nft list ruleset").matches(&format!("comment \"{}\"", container.id)).count()
    };
    assert_eq!((of(&first), of(&second)), (4, 4));
    // The same container on another network has another address.
    let mut elsewhere = config(&first, &port(8080, 80));
    elsewhere["prevResult"]["ips"] = json!([{"address": "10.99.0.2/24"}]);
    Plugin::ours("portmap").call(&lab.host, Verb::Del, &elsewhere, &first.target()).succeeds();
    assert_eq!((of(&first), of(&second)), (4, 4));
    del(&lab, &first, &port(8080, 80));
    assert_eq!((of(&first), of(&second)), (0, 4));
    gc(&lab, "net", json!([])).succeeds();
    assert_eq!(of(&second), 4, "nobody knows whether it is dead");
    lab.host.write("/var/lib/cni/results/other-container-3-eth0", "");
    gc(&lab, "net", json!([])).succeeds();
    assert_eq!(of(&second), 4, "it is alive on another network");
    lab.host.run("rm /var/lib/cni/results/other-container-3-eth0");
    gc(&lab, "net", json!([])).succeeds();
    assert_eq!(of(&second), 0);
}

/// Who libcni knows stands in a directory, of whose list the rest may be missing.
#[cfg(target_arch = "x86_64")]
#[test]
fn what_the_reference_left_stays_where_it_can_t_be_known_who_is_alive() {
    use netns_tests::faults::{Fault, Run, Times, answered, answers};
    use nix::errno::Errno;

    let lab = Lab::new();
    let container = lab.container(2);
    let left = || {
        lab.host.nft(
            "table ip cni_hostport { chain hostports { tcp dport 8080 dnat to 10.88.0.2:80 comment \"container-2\"; }; }",
        );
    };
    let is_there = || lab.host.run("nft list ruleset").contains("container-2");
    lab.host.write("/var/lib/cni/results/other-container-2-eth0", "");
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "cni.dev/valid-attachments": []});
    let (plugin, target) = (Plugin::ours("portmap"), container.target());
    let run = Run { plugin: &plugin, host: &lab.host, verb: Verb::Gc, config: &config, target: &target };
    left();
    let (calls, outcome) = answers(&run);
    outcome.succeeds();
    assert!(is_there(), "it is alive on another network");
    let lists: Vec<usize> = (0..calls.len()).filter(|n| calls[*n].what.contains("getdents")).collect();
    assert!(!lists.is_empty(), "{calls:?}");
    for (n, errno) in lists.iter().flat_map(|n| [(*n, Errno::EIO), (*n, Errno::EPERM)]) {
        let (_, told) = answered(&run, Fault::Fails(errno), Times::At(n));
        assert_eq!(told, 1);
        assert!(is_there(), "the list could not be read: {errno}");
    }
}

#[test]
fn an_add_without_ports_opens_no_socket() {
    let lab = Lab::new();
    let container = lab.container(2);
    let config = config(&container, &json!({})).to_string();
    let mut strace = lab.host.command("strace");
    strace.args(["-f", "-e", "trace=%network", "-o", "/run/strace"]).arg(Plugin::ours("portmap").path());
    strace.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
    strace.env("CNI_NETNS", container.netns.path()).env("CNI_PATH", "/usr/lib/cni");
    strace.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = strace.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.as_bytes()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    let trace = lab.host.read("/run/strace");
    assert!(trace.contains("exited with 0") && !trace.contains("socket("), "{trace}");
}

#[test]
fn the_table_explains_itself() {
    let lab = Lab::new();
    let container = lab.container(2);
    add(
        &lab,
        &container,
        &ports(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 9999, "containerPort": 9, "protocol": "sctp", "hostIP": "192.0.2.1"},
        ])),
    );
    let listed = rules(&lab);
    for part in [
        "tcp . 8080 comment \"net/container-2/eth0\" : 10.88.0.2 . 80",
        "10.88.0.2 8080:80/tcp 192.0.2.1:9999:9/sctp\" : jump",
        "192.0.2.1 . sctp . 9999",
        "comment \"net/container-2/eth0\"",
        "link veth2#",
        "fib daddr type local jump hostports",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    // What nft lists, nft can read.
    let again = Netns::new("again");
    again.nft(&listed);
}

/// By what a later call would know that the container is gone is no state of the table.
#[test]
fn check_asks_what_is_published_not_by_what_the_container_is_known() {
    let lab = Lab::new();
    let container = lab.container(2);
    add(&lab, &container, &port(8080, 80));
    lab.host.run(&format!("ip link set {} name other0", container.host_ifname));
    check(&lab, &container, &port(8080, 80));

    let second = lab.container(3);
    let mut config = config(&second, &port(9090, 80));
    config["prevResult"]["interfaces"] = json!([{"name": "eth0", "sandbox": second.netns.path()}]);
    for ip in config["prevResult"]["ips"].as_array_mut().unwrap() {
        ip["interface"] = 0.into();
    }
    let plugin = Plugin::ours("portmap");
    plugin.call(&lab.host, Verb::Add, &config, &second.target()).succeeds();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("netns");
    std::os::unix::fs::symlink(second.netns.path(), &path).unwrap();
    let target = Target::new(&second.id, path.to_str().unwrap(), "eth0");
    plugin.call(&lab.host, Verb::Check, &config, &target).succeeds();
}
