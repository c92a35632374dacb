//! 127.0.0.1 stays this host's own, whatever its links are called.

use super::*;

/// A lab with a server that listens on the host's 127.0.0.1 only, and a neighbour who asks for it on the wire.
fn under_attack() -> (Lab, Container, Container, impl Drop) {
    let lab = Lab::new();
    let (container, attacker) = (lab.container(2), lab.container(3));
    let at_loopback = ["127.0.0.1:7777".parse().unwrap()];
    let server = netns_tests::traffic::serve_at(&lab.host, &at_loopback, &Proto::ALL, "secret");
    sends_loopback_to_the_wire(&attacker.netns, "10.88.0.1", "10.88.0.3");
    (lab, container, attacker, server)
}

fn route_localnet(lab: &Lab, link: &str) -> String {
    lab.host.sysctl(&format!("net/ipv4/conf/{link}/route_localnet"))
}

#[test]
fn another_name_of_a_link_opens_nothing_and_leaves_nothing_open() {
    let (lab, container, attacker, _server) = under_attack();
    let _inside = serve(&container.netns, 80, "inside");
    add(&lab, &container, &port(8080, 80));
    lab.host.run("ip link set cni0 name bridge0");
    none_reach(&attacker.netns, &["127.0.0.1:7777"]);
    all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    check(&lab, &container, &port(8080, 80));
    // Under its new name it is the same link, and one that the last to go gives its value back.
    add(&lab, &attacker, &port(9090, 80));
    del(&lab, &container, &port(8080, 80));
    assert_eq!(route_localnet(&lab, "bridge0"), "1");
    lab.host.run("ip link set bridge0 name bridge1");
    del(&lab, &attacker, &port(9090, 80));
    assert_eq!(route_localnet(&lab, "bridge1"), "0");
    none_reach(&attacker.netns, &["127.0.0.1:7777"]);
    assert!(lab.host.try_run("ls /run/cni/portmap/*").is_err());
}

#[test]
fn a_link_that_was_renamed_after_its_guard_was_flushed_is_closed_by_whoever_comes_next() {
    let (lab, container, attacker, _server) = under_attack();
    add(&lab, &container, &port(8080, 80));
    lab.host.run("ip link set cni0 name bridge0");
    lab.host.nft("flush ruleset");
    assert_eq!(route_localnet(&lab, "bridge0"), "1");
    del(&lab, &attacker, &json!({}));
    assert_eq!(route_localnet(&lab, "bridge0"), "0");
    none_reach(&attacker.netns, &["127.0.0.1:7777"]);
}

/// A bridge may get its address behind ADD: then there is no route, so the link to be opened isn't known.
#[test]
fn an_add_that_finds_no_route_says_so_and_the_next_one_opens_the_link() {
    let lab = Lab::new();
    let (container, other) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    lab.host.run("ip addr del 10.88.0.1/24 dev cni0");
    let outcome = call(&lab, Verb::Add, &container, &port(8080, 80));
    outcome.succeeds();
    assert!(outcome.stderr.contains("no route to 10.88.0.2"), "{outcome:?}");
    assert_eq!(route_localnet(&lab, "cni0"), "0");
    lab.host.run("ip addr add 10.88.0.1/24 dev cni0");
    none_reach(&lab.host, &["127.0.0.1:8080"]);
    assert_eq!(call(&lab, Verb::Add, &container, &port(8080, 80)).stderr, "");
    all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    // What is not to be reached there needs no route.
    lab.host.run("ip addr del 10.88.0.1/24 dev cni0");
    let elsewhere = json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]);
    assert_eq!(call(&lab, Verb::Add, &other, &ports(elsewhere)).stderr, "");
}

/// As a DEL leaves it that is killed between the sysctl and its transaction, when somebody else's ADD came before that.
#[test]
fn a_link_that_is_closed_while_somebody_needs_it_is_opened_by_whoever_goes_next() {
    let lab = Lab::new();
    let (container, going) = (lab.container(2), lab.container(3));
    let _server = serve(&container.netns, 80, "inside");
    let close = || lab.host.run("sysctl -qw net.ipv4.conf.cni0.route_localnet=0");
    add(&lab, &container, &port(8080, 80));
    for by_gc in [false, true] {
        add(&lab, &going, &port(9090, 80));
        close();
        none_reach(&lab.host, &["127.0.0.1:8080"]);
        if by_gc {
            gc(&lab, "other", json!([])).succeeds();
        } else {
            del(&lab, &going, &json!({}));
        }
        all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    }
    del(&lab, &going, &json!({}));
    del(&lab, &container, &json!({}));
    assert_eq!(route_localnet(&lab, "cni0"), "0");
}

/// A GC that sees the link's last user between the sysctl of its DEL and the transaction takes the link for one that somebody
/// has closed.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_link_stays_closed_whoever_looks_while_its_last_user_goes() {
    use netns_tests::faults::{Run, Side, changes, held};

    let lab = Lab::new();
    let (container, other, watcher) = (lab.container(2), lab.container(3), lab.container(4));
    let elsewhere = json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]);
    let (plugin, target) = (Plugin::ours("portmap"), container.target());
    let config = config(&container, &port(8080, 80));
    let mut times_held = 0;
    for with_other in [true, false] {
        // The table stays where somebody else has ports that need no link.
        if with_other {
            add(&lab, &other, &ports(elsewhere.clone()));
        } else {
            del(&lab, &other, &json!({}));
        }
        add(&lab, &container, &port(8080, 80));
        let del = Run { plugin: &plugin, host: &lab.host, verb: Verb::Del, config: &config, target: &target };
        let (all, outcome) = changes(&del);
        outcome.succeeds();
        for (n, side) in (0..all.len()).flat_map(|n| [(n, Side::Before), (n, Side::Behind)]) {
            add(&lab, &container, &port(8080, 80));
            assert_eq!(route_localnet(&lab, "cni0"), "1");
            let (met, outcome) = held(&del, n, side, &mut |_| drop(gc(&lab, "another", json!([])).succeeds()));
            outcome.succeeds();
            times_held += usize::from(met.is_some());
            assert_eq!(route_localnet(&lab, "cni0"), "0", "GC while DEL was held {side:?} {met:?}");
            let noted = lab.host.try_run("ls /run/cni/portmap/*");
            assert!(noted.is_err(), "GC while DEL was held {side:?} {met:?} has left {noted:?}");
        }
    }
    assert!(times_held > 8, "{times_held}");
    sends_loopback_to_the_wire(&watcher.netns, "10.88.0.1", "10.88.0.4");
    let at_loopback = ["127.0.0.1:7777".parse().unwrap()];
    let _server = netns_tests::traffic::serve_at(&lab.host, &at_loopback, &Proto::ALL, "secret");
    none_reach(&watcher.netns, &["127.0.0.1:7777"]);
}

/// A host may have many networks, each with a bridge of its own and one container on it. Of each, the kernel lists the rules that lead
/// to its kind of publication, among which those are that go.
#[test]
fn the_last_user_of_a_link_goes_without_a_look_at_all_the_others() {
    const ENTRANCES_BYTES: u64 = 1_000;
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let mut others = 1..;
    let mut more = |count| {
        for n in others.by_ref().take(count) {
            lab.host.run(&format!("ip link add other{n} type bridge"));
            lab.host.run(&format!("ip addr add 10.99.{n}.1/24 dev other{n}"));
            lab.host.run(&format!("ip link set other{n} up"));
            let mut config = config(&container, &port(10_000 + n, 80));
            config["name"] = format!("net-{n}").into();
            config["prevResult"]["ips"] = json!([{"interface": 2, "address": format!("10.99.{n}.2/24")}]);
            Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &container.target()).succeeds();
        }
    };
    let received = || -> u64 {
        add(&lab, &container, &port(8080, 80));
        all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
        let wrapper = ["strace", "-e", "trace=recvfrom", "-o", "/run/strace"];
        let (config, target) = (config(&container, &port(8080, 80)), container.target());
        Plugin::ours("portmap").call_under(&wrapper, &lab.host, Verb::Del, &config, &target).succeeds();
        assert_eq!((route_localnet(&lab, "cni0"), route_localnet(&lab, "other1")), ("0".into(), "1".into()));
        let trace = lab.host.read("/run/strace");
        trace.lines().filter_map(|line| line.rsplit_once("= ")?.1.parse::<u64>().ok()).sum()
    };
    more(105);
    let with_105 = received();
    more(100);
    let with_205 = received();
    assert!(
        with_105 > 0 && with_205 < with_105 + 100 * ENTRANCES_BYTES,
        "bytes from the kernel: {with_105}, {with_205}"
    );
}

/// What can't be closed keeps its guard, and isn't opened by the call that could not close it.
#[test]
fn gc_opens_nothing_that_it_could_not_close() {
    let lab = Lab::new();
    let container = lab.container(2);
    add(&lab, &container, &port(8080, 80));
    for command in ["mount --bind /run/cni/portmap /run/cni/portmap", "mount -o remount,ro,bind /run/cni/portmap"] {
        lab.host.run(command);
    }
    call(&lab, Verb::Del, &container, &json!({})).fails();
    assert_eq!(route_localnet(&lab, "cni0"), "0");
    gc(&lab, "net", json!([])).fails();
    assert_eq!(route_localnet(&lab, "cni0"), "0");
    lab.host.run("umount /run/cni/portmap");
    gc(&lab, "net", json!([])).succeeds();
    assert!(lab.host.try_run("ls /run/cni/portmap/*").is_err());
}

/// Without the file nobody knows after a flush which link was open: who can't write it says so.
#[test]
fn where_nothing_can_be_noted_of_a_link_add_and_status_say_so() {
    let lab = Lab::new();
    let container = lab.container(2);
    let keys = port(8080, 80);
    let warning = "neither DEL nor GC would set back route_localnet";
    for obstacle in ["ln -s /nowhere /run/cni/portmap", "mkdir -m 777 /run/cni/portmap"] {
        for command in ["mkdir -p -m 755 /run/cni", "rm -rf /run/cni/portmap", obstacle] {
            lab.host.run(command);
        }
        for verb in [Verb::Status, Verb::Add] {
            let outcome = call(&lab, verb, &container, &keys);
            outcome.succeeds();
            assert!(outcome.stderr.contains("warn") && outcome.stderr.contains(warning), "{obstacle}: {outcome:?}");
        }
        del(&lab, &container, &keys);
        assert_eq!(route_localnet(&lab, "cni0"), "0");
    }
    lab.host.run("rm -rf /run/cni/portmap");
    for verb in [Verb::Status, Verb::Add] {
        assert_eq!(call(&lab, verb, &container, &keys).stderr, "");
    }
}

/// After a reboot the indices of a ruleset that was saved are those of other links.
#[test]
fn a_restored_ruleset_changes_nothing_of_a_link_that_has_another_s_index_now() {
    let (lab, container, ..) = under_attack();
    add(&lab, &container, &port(8080, 80));
    let saved =
        rules(&lab).replace(&format!("loopback-{}", index(&lab, "cni0")), &format!("loopback-{}", index(&lab, "ext0")));
    lab.host.nft("flush ruleset");
    lab.host.nft(&saved);
    lab.host.set_sysctl("net/ipv4/conf/ext0/route_localnet", "1");
    del(&lab, &container, &json!({}));
    assert_eq!(route_localnet(&lab, "ext0"), "1", "it was the administrator's");
}

#[test]
fn links_may_be_called_anything_and_the_ruleset_be_saved() {
    for (bridge, ifname) in [("b*", "eth0"), ("b\"r", "e\"h0"), (".br", "eth0"), ("veth*", "e*"), ("-", "-")] {
        let lab = Lab::new();
        let mut container = lab.container(2);
        let _inside = serve(&container.netns, 80, "inside");
        container.ifname = ifname.into();
        lab.host.run(&format!("ip link set dev cni0 name {bridge}"));
        lab.host.run(&format!("ip link set dev {} name v{bridge}", container.host_ifname));
        container.host_ifname = format!("v{bridge}");
        let before = lab.host.snapshot();
        add(&lab, &container, &port(8080, 80));
        assert_eq!(route_localnet(&lab, bridge), "1");
        check(&lab, &container, &port(8080, 80));
        let saved = lab.host.run("nft list ruleset");
        lab.host.nft(&format!("flush ruleset\n{saved}"));
        all_reach(&lab.client, &FROM_OUTSIDE, "inside");
        all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
        check(&lab, &container, &port(8080, 80));
        add(&lab, &container, &port(9090, 80));
        gc(&lab, "net", json!([{"containerID": container.id, "ifname": ifname}])).succeeds();
        all_reach(&lab.client, &["192.0.2.1:9090"], "inside");
        none_reach(&lab.client, &FROM_OUTSIDE);
        lab.host.nft("flush ruleset");
        del(&lab, &container, &json!({}));
        lab.host.assert_same_as(&before);
    }
}

/// As in a container whose manager protects the kernel's settings.
#[test]
fn del_closes_the_ports_where_the_link_can_t_be_closed_and_the_next_del_does_the_rest() {
    let one_at_an_address = json!([{"hostPort": 9000, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]);
    for beside in [None, Some(ports(one_at_an_address))] {
        let (lab, container, attacker, _server) = under_attack();
        let _inside = serve(&container.netns, 80, "inside");
        if let Some(keys) = &beside {
            add(&lab, &attacker, keys);
        }
        let before = lab.host.snapshot();
        add(&lab, &container, &port(8080, 80));
        let script = "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys; exec \"$0\" \"$@\"";
        let wrapper = ["unshare", "-m", "sh", "-c", script];
        let config = config(&container, &json!({}));
        let plugin = Plugin::ours("portmap");
        let error = plugin.call_under(&wrapper, &lab.host, Verb::Del, &config, &container.target()).fails_with(102);
        assert!(error.msg.contains("route_localnet"), "{error:?}");
        none_reach(&lab.client, &FROM_OUTSIDE);
        none_reach(&attacker.netns, &["127.0.0.1:7777"]);
        del(&lab, &container, &json!({}));
        assert_eq!(route_localnet(&lab, "cni0"), "0");
        lab.host.assert_same_as(&before);
    }
}

fn index(lab: &Lab, link: &str) -> String {
    lab.host.run(&format!("cat /sys/class/net/{link}/ifindex")).trim().to_owned()
}

/// Containers with a network namespace and the host's /run, and those who test, share the directory.
#[test]
fn what_is_kept_of_open_links_is_of_their_own_namespace() {
    let (lab, container, attacker, _server) = under_attack();
    add(&lab, &container, &port(8080, 80));
    let script = format!(
        "sysctl=/proc/sys/net/ipv4/conf/k0/route_localnet; ip link add name k0 index {} type veth peer name k1; \
         echo 1 >$sysctl; \"$0\" \"$@\"; echo \"theirs is $(cat $sysctl)\" >&2",
        index(&lab, "cni0")
    );
    let wrapper = ["unshare", "-n", "sh", "-c", &script];
    let config = config(&attacker, &json!({}));
    let there = Plugin::ours("portmap").call_under(&wrapper, &lab.host, Verb::Del, &config, &attacker.target());
    assert!(there.stderr.contains("theirs is 1"), "{}", there.stderr);
    lab.host.nft("flush ruleset");
    del(&lab, &container, &json!({}));
    assert_eq!(route_localnet(&lab, "cni0"), "0");
}

#[test]
fn a_link_that_got_the_index_of_one_that_is_gone_is_left_alone() {
    for flushed in [true, false] {
        let (lab, container, ..) = under_attack();
        add(&lab, &container, &port(8080, 80));
        let index = index(&lab, "cni0");
        lab.host.run("ip link delete cni0");
        lab.host.run(&format!("ip link add name d0 index {index} type veth peer name d1"));
        lab.host.set_sysctl("net/ipv4/conf/d0/route_localnet", "1");
        if flushed {
            lab.host.nft("flush ruleset");
        }
        del(&lab, &container, &json!({}));
        assert_eq!(route_localnet(&lab, "d0"), "1", "it was the administrator's");
        assert!(lab.host.try_run("ls /run/cni/portmap/*").is_err());
    }
}

#[test]
fn what_the_host_sends_to_itself_passes_whatever_its_own_link_is_called() {
    let (lab, container, attacker, _server) = under_attack();
    let _inside = serve(&container.netns, 80, "inside");
    lab.host.run("ip link set lo down");
    lab.host.run("ip link set lo name loop0 up");
    add(&lab, &container, &port(8080, 80));
    all_reach(&lab.host, &["127.0.0.1:7777"], "secret");
    all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
    none_reach(&attacker.netns, &["127.0.0.1:7777"]);
    check(&lab, &container, &port(8080, 80));
}
