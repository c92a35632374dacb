//! What the dead have left: it goes, it shadows nobody, and it takes nothing of the living along.

use super::*;

/// One port at one address of the host, by both transports.
fn at(address: &str, host: u16) -> Value {
    let one = |protocol| json!({"hostPort": host, "containerPort": 80, "protocol": protocol, "hostIP": address});
    ports(json!([one("tcp"), one("udp")]))
}

#[test]
fn a_port_of_the_dead_does_not_go_to_another_of_the_dead_s_networks() {
    let lab = Lab::new();
    let (crashed, next) = (lab.container(2), lab.container(3));
    let _server = serve(&next.netns, 80, "next");
    let keys = at("192.0.2.1", 8080);
    let (config, target) = second_network(&lab, &crashed, 1, &keys);
    add(&lab, &crashed, &keys);
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    for link in [&crashed.host_ifname, "veth2-1"] {
        lab.host.run(&format!("ip link delete {link}"));
    }
    add(&lab, &next, &port(8080, 80));
    all_reach(&lab.client, &FROM_OUTSIDE, "next");
    assert!(!lab.host.run(&format!("nft list map {TABLE} addr_ports4")).contains("container-2"), "{}", rules(&lab));
    check(&lab, &next, &port(8080, 80));
}

#[test]
fn del_hands_no_port_to_a_dead_network_of_its_container() {
    let lab = Lab::new();
    let (container, next) = (lab.container(2), lab.container(3));
    let _server = serve(&next.netns, 80, "next");
    let (config, target) = second_network(&lab, &container, 1, &port(8080, 80));
    add(&lab, &container, &port(8080, 80));
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    lab.host.run("ip link delete veth2-1");
    del(&lab, &container, &port(8080, 80));
    assert!(!lab.host.run(&format!("nft list map {TABLE} ports4")).contains("container-2"), "{}", rules(&lab));
    let outcome = call(&lab, Verb::Add, &next, &port(8080, 80));
    outcome.succeeds();
    assert!(!outcome.stderr.contains("taken"), "nobody had it: {}", outcome.stderr);
    all_reach(&lab.client, &FROM_OUTSIDE, "next");
}

/// A container whose addresses say nothing about neighbours.
fn alone(container: &Container, addresses: &[String; 2], keys: &Value) -> Value {
    let mut config = config(container, keys);
    for (n, (address, length)) in addresses.iter().zip([32, 128]).enumerate() {
        config["prevResult"]["ips"][n]["address"] = format!("{address}/{length}").into();
    }
    config
}

/// The addresses of the crashed are the next one's; what it has at its addresses stays, whoever removes the crashed.
#[test]
fn what_the_dead_leave_takes_nothing_from_who_has_their_addresses_now() {
    let plugin = Plugin::ours("portmap");
    let gone = |lab: &Lab, live: &Container| {
        gc(lab, "net", json!([{"containerID": live.id, "ifname": "eth0"}])).succeeds();
    };
    type Remover<'a> = &'a dyn Fn(&Lab, &Container, &Container);
    let removers: [(&str, Value, Remover<'_>); 3] = [
        ("the ADD itself", port(8080, 80), &|_, _, _| {}),
        ("a late DEL", at("192.0.2.5", 8080), &|lab, crashed, _| del(lab, crashed, &json!({}))),
        ("GC", at("192.0.2.5", 8080), &|lab, _, next| gone(lab, next)),
    ];
    for (who, keys, remove) in removers {
        let lab = Lab::new();
        bridged_frames_are_filtered(&lab, false);
        lab.host.address("ext0", "192.0.2.5/24");
        let (crashed, next) = (lab.container(2), lab.container(3));
        let _server = serve(&next.netns, 80, "next");
        let config = alone(&crashed, &next.addresses, &at("192.0.2.1", 8080));
        plugin.call(&lab.host, Verb::Add, &config, &crashed.target()).succeeds();
        lab.host.run(&format!("ip link delete {}", crashed.host_ifname));
        let config = alone(&next, &next.addresses, &keys);
        plugin.call(&lab.host, Verb::Add, &config, &next.target()).succeeds();
        remove(&lab, &crashed, &next);
        assert!(!rules(&lab).contains("container-2"), "{who}: {}", rules(&lab));
        all_reach(&next.netns, &["192.0.2.5:8080"], "next");
        plugin.call(&lab.host, Verb::Check, &config, &next.target()).succeeds();
    }
}
