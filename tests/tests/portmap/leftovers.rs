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

/// A container whose main plugin names no interface of the host's: only its namespace tells whether it is there.
fn known_by_its_namespace(container: &Container, keys: &Value) -> (Value, Target) {
    let (path, mut config) = (format!("/run/netns/{}", container.id), config(container, keys));
    config["prevResult"]["interfaces"] = json!([{"name": "eth0", "sandbox": path}]);
    for n in 0..2 {
        config["prevResult"]["ips"][n]["interface"] = 0.into();
    }
    (config, Target::new(&container.id, &path, "eth0"))
}

#[test]
fn who_does_not_see_an_owner_s_namespace_takes_nothing_from_it() {
    let lab = Lab::new();
    let (owner, other) = (lab.container(2), lab.container(3));
    let _server = serve(&owner.netns, 80, "owner");
    lab.host.run(&format!("ip netns add {}", owner.id));
    let (of_owner, target) = known_by_its_namespace(&owner, &port(8080, 80));
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &of_owner, &target).succeeds();
    let blindfolds = [
        "umount /run/netns/container-2",
        "umount /run/netns/container-2; mount -t tmpfs none /run/netns; : >/run/netns/container-2",
        "mount -t tmpfs none /run; mkdir /run/netns",
        "mount -t tmpfs none /run",
        "echo 11111111-2222-3333-4444-555555555555 >/run/id; mount --bind /run/id /proc/sys/kernel/random/boot_id",
    ];
    for blindfold in blindfolds {
        let script = format!("{blindfold}; exec \"$0\" \"$@\"");
        let wrapper = ["unshare", "-m", "sh", "-c", &script];
        let config = config(&other, &port(8080, 80));
        let outcome = Plugin::ours("portmap").call_under(&wrapper, &lab.host, Verb::Add, &config, &other.target());
        assert_eq!(outcome.exit, 1, "{blindfold}: {}", outcome.call());
        outcome.fails_with(100);
        all_reach(&lab.client, &FROM_OUTSIDE, "owner");
    }
    Plugin::ours("portmap").call(&lab.host, Verb::Check, &of_owner, &target).succeeds();
}

#[test]
fn ports_of_a_container_whose_namespace_is_gone_go_to_the_next() {
    let lab = Lab::new();
    let (crashed, next) = (lab.container(2), lab.container(3));
    let _server = serve(&next.netns, 80, "next");
    lab.host.run(&format!("ip netns add {}", crashed.id));
    let (config, target) = known_by_its_namespace(&crashed, &port(8080, 80));
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    call(&lab, Verb::Add, &next, &port(8080, 80)).fails_with(100);
    lab.host.run(&format!("ip netns delete {}", crashed.id));
    let outcome = call(&lab, Verb::Add, &next, &port(8080, 80));
    outcome.succeeds();
    assert!(outcome.stderr.contains("namespace /run/netns/container-2 is gone"), "{}", outcome.stderr);
    all_reach(&lab.client, &FROM_OUTSIDE, "next");
}

#[test]
fn what_is_from_before_the_last_boot_is_gone_whatever_has_its_interface_s_number_now() {
    for (since, is_gone) in [("2001-02-03T04:05:06Z", true), ("9001-02-03T04:05:06Z", false)] {
        let lab = Lab::new();
        let (owner, next) = (lab.container(2), lab.container(3));
        add(&lab, &owner, &port(8080, 80));
        // As a restored ruleset would have it.
        let listed = lab.host.run(&format!("nft list map {TABLE} records"));
        let line = listed.lines().find(|line| line.contains("\"since ")).unwrap();
        let line = line
            .trim_start_matches(|c: char| !c.is_ascii_digit())
            .trim_start_matches("elements = {")
            .trim_end_matches([',', ' ', '}']);
        let (key, rest) = line.split_once(" comment ").unwrap();
        let trace = rest.split_once(" link ").unwrap().1;
        lab.host.nft(&format!(
            "delete element {TABLE} records {{ {key} }}; \
             add element {TABLE} records {{ {key} comment \"since {since} boot 00000000 link {trace} }}"
        ));
        let outcome = call(&lab, Verb::Add, &next, &port(8080, 80));
        if is_gone {
            outcome.succeeds();
            assert!(outcome.stderr.contains("before the last boot"), "{}", outcome.stderr);
        } else {
            outcome.fails_with(100);
        }
    }
}

/// The longest names that there are: neither the network's nor the container's is whole in a label.
#[test]
fn a_container_whose_names_are_cut_is_the_same_on_its_second_network() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let (mut container, other) = (lab.container(2), lab.container(3));
    container.id = "0123456789abcdef".repeat(8);
    let _server = serve(&container.netns, 80, "inside");
    let keys = port(8080, 80);
    let (mut second, target) = second_network(&lab, &container, 1, &keys);
    let mut first = config(&container, &keys);
    for (config, n) in [(&mut first, "A"), (&mut second, "B")] {
        config["name"] = format!("very-long-project-name-in-{n}-compose-file-number-one-default-network-x").into();
    }
    let plugin = Plugin::ours("portmap");
    for verb in [Verb::Add, Verb::Check] {
        plugin.call(&lab.host, verb, &first, &container.target()).succeeds();
        plugin.call(&lab.host, verb, &second, &target).succeeds();
    }
    call(&lab, Verb::Add, &other, &keys).fails_with(100);
    plugin.call(&lab.host, Verb::Del, &first, &container.target()).succeeds();
    plugin.call(&lab.host, Verb::Check, &second, &target).succeeds();
}

/// A port at one address comes first; where it is in nobody's record, nobody removes it but GC.
#[test]
fn a_port_at_one_address_that_is_in_nobody_s_record_shadows_nobody() {
    let names_nobody = "flush map TABLE records; delete element TABLE addr_ports4 { 192.0.2.1 . tcp . 8080 }; \
                        add element TABLE addr_ports4 { 192.0.2.1 . tcp . 8080 : 10.88.0.2 . 80 }";
    for damage in ["flush map TABLE records", names_nobody] {
        let lab = Lab::new();
        let (lost, next) = (lab.container(2), lab.container(3));
        let _servers = [serve(&lost.netns, 80, "lost"), serve(&next.netns, 80, "next")];
        let before = lab.host.snapshot();
        add(&lab, &lost, &at("192.0.2.1", 8080));
        lab.host.nft(&damage.replace("TABLE", TABLE));
        let outcome = call(&lab, Verb::Add, &next, &port(8080, 80));
        outcome.succeeds();
        assert!(outcome.stderr.contains("nobody's record"), "{}", outcome.stderr);
        all_reach(&lab.client, &FROM_OUTSIDE, "next");
        check(&lab, &next, &port(8080, 80));
        del(&lab, &lost, &json!({}));
        all_reach(&lab.client, &FROM_OUTSIDE, "next");
        del(&lab, &next, &json!({}));
        lab.host.assert_same_as(&before);
    }
}

/// Where both the network's and the container's name are cut, two containers look the same.
#[test]
fn a_container_whose_name_is_cut_to_another_s_gets_none_of_its_ports() {
    let lab = Lab::new();
    let (mut first, mut second) = (lab.container(2), lab.container(3));
    first.id = format!("{}a{}", "f".repeat(50), "f".repeat(29));
    second.id = format!("{}b{}", "f".repeat(50), "f".repeat(29));
    let mut keys = port(8080, 80);
    keys["name"] = "n".repeat(60).into();
    let _server = serve(&first.netns, 80, "first");
    add(&lab, &first, &keys);
    call(&lab, Verb::Add, &second, &keys).fails_with(100);
    del(&lab, &second, &json!({"name": keys["name"]}));
    all_reach(&lab.client, &FROM_OUTSIDE, "first");
}
