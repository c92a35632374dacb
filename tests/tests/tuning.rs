//! What `tuning` does to a container's namespace, and that it takes it back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, Write};

use netns_tests::namespace::{End, connect};
use netns_tests::snapshot::Part;
use netns_tests::{CniError, Host, Netns, Outcome, Plugin, Snapshot, Target, Verb};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// Where state files are, unless a test says otherwise.
const DATA_DIR: &str = "/run/cni/tuning";

/// A host with one container, whose `eth0` has its other end on the host.
struct Bench {
    host: Host,
    container: Netns,
    target: Target,
}

impl Bench {
    #[track_caller]
    fn new() -> Bench {
        Bench::with_interface("eth0")
    }

    #[track_caller]
    fn with_interface(ifname: &str) -> Bench {
        let (host, container) = (Host::new(), Netns::new("container"));
        connect(End::new(&host, "veth0", &[]), End::new(&container, ifname, &["10.0.0.2/24", "fd00::2/64"]));
        // The kernel gives it by and by; a snapshot would be without.
        for (netns, ifname) in [(&*host, "veth0"), (&container, ifname)] {
            let own = format!("ip -6 address show dev {ifname} scope link");
            netns.wait_until("the link has its own address", || !netns.run(&own).trim().is_empty());
        }
        // Made beforehand, so that snapshots of the host show files only.
        host.run(&format!("mkdir -p {DATA_DIR}"));
        let target = Target::new("c1", &container.path(), ifname);
        Bench { host, container, target }
    }

    /// A configuration of the network `net` with these keys.
    fn config(&self, keys: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "tuning",
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [
                    {"name": "veth0", "mac": "02:00:00:00:00:aa"},
                    {"name": self.target.ifname, "mac": "02:00:00:00:00:bb", "mtu": 1500, "sandbox": self.target.netns},
                ],
                "ips": [{"interface": 1, "address": "10.0.0.2/24"}],
            },
        });
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    #[track_caller]
    fn call(&self, verb: Verb, keys: &Value) -> Outcome {
        Plugin::ours("tuning").call(&self.host, verb, &self.config(keys.clone()), &self.target)
    }

    /// A call whose sysctls stand in just this order; an object of serde_json sorts them.
    #[track_caller]
    fn call_in_order(&self, verb: Verb, sysctls: [(&str, &str); 2]) -> Outcome {
        let pairs = sysctls.map(|(key, value)| format!("\"{key}\":\"{value}\"")).join(",");
        let config = self.config(json!({"sysctl": {}})).to_string();
        let config = config.replace("\"sysctl\":{}", &format!("\"sysctl\":{{{pairs}}}"));
        Plugin::ours("tuning").call_raw(&self.host, verb.as_str(), config.as_bytes(), &self.target)
    }

    /// A call under strace(1) with these options, which put an answer in the place of the kernel's.
    fn call_under_strace(&self, verb: Verb, keys: &Value, options: &[&str]) -> std::process::Output {
        let mut stdin = tempfile::tempfile().unwrap();
        write!(stdin, "{}", self.config(keys.clone())).unwrap();
        stdin.rewind().unwrap();
        let mut strace = self.host.command("strace");
        strace.args(["-f", "-qq"]).args(options).arg(Plugin::ours("tuning").path()).env("CNI_COMMAND", verb.as_str());
        strace.env("CNI_CONTAINERID", &self.target.container).env("CNI_IFNAME", &self.target.ifname);
        strace.env("CNI_NETNS", &self.target.netns).stdin(stdin).output().unwrap()
    }

    #[track_caller]
    fn add(&self, keys: &Value) -> Value {
        self.call(Verb::Add, keys).succeeds()
    }

    #[track_caller]
    fn check(&self, keys: &Value) {
        self.call(Verb::Check, keys).succeeds();
    }

    #[track_caller]
    fn check_fails(&self, keys: &Value) -> CniError {
        self.call(Verb::Check, keys).fails_with(101)
    }

    #[track_caller]
    fn del(&self, keys: &Value) {
        self.call(Verb::Del, keys).succeeds();
    }

    fn link(&self) -> String {
        self.container.run(&format!("ip -d link show {}", self.target.ifname))
    }

    fn snapshot(&self) -> (Snapshot, Snapshot) {
        (self.host.snapshot(), self.container.snapshot())
    }

    /// Both namespaces and the host's files are as they were.
    #[track_caller]
    fn assert_same_as(&self, before: &(Snapshot, Snapshot)) {
        self.host.assert_same_as(&before.0);
        self.container.assert_same_as(&before.1);
    }

    /// What is noted of files, in hidden directories, goes with the last of them.
    fn state_files(&self) -> Vec<String> {
        let all = self.host.run(&format!("ls -A {DATA_DIR}"));
        let (notes, files): (Vec<&str>, Vec<&str>) = all.split_whitespace().partition(|name| name.starts_with(".in-"));
        let there = if files.is_empty() { notes } else { files };
        there.into_iter().map(str::to_owned).collect()
    }
}

/// Every key at once.
fn everything() -> Value {
    json!({
        "mac": "02:AA:00:00:00:01", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 50,
        "sysctl": {"net.core.somaxconn": "777", "net.ipv4.conf.IFNAME.arp_notify": "1"},
    })
}

#[test]
fn add_sets_everything_check_agrees_and_del_takes_it_back() {
    let bench = Bench::new();
    let before = bench.snapshot();
    bench.add(&everything());
    let link = bench.link();
    for part in ["mtu 1400", "qlen 50", "link/ether 02:aa:00:00:00:01", "PROMISC", "ALLMULTI"] {
        assert!(link.contains(part), "{part} is missing in {link}");
    }
    assert_eq!(bench.container.sysctl("net/core/somaxconn"), "777");
    assert_eq!(bench.container.sysctl("net/ipv4/conf/eth0/arp_notify"), "1");
    bench.check(&everything());
    bench.del(&everything());
    bench.assert_same_as(&before);
    bench.del(&everything());
    bench.assert_same_as(&before);
}

#[test]
fn check_names_every_value_that_has_changed() {
    let bench = Bench::new();
    bench.add(&everything());
    bench.container.set_sysctl("net/core/somaxconn", "5");
    bench.container.run("ip link set eth0 mtu 1300 txqueuelen 7 promisc off");
    let error = bench.check_fails(&everything());
    for part in [
        "sysctl net/core/somaxconn: expected \"777\", found \"5\"",
        "link eth0: expected mtu 1400, promisc on, txQLen 50, found mtu 1300, promisc off, txQLen 7",
    ] {
        assert!(error.details.contains(part), "{part} is missing in {error:?}");
    }
    assert!(!error.details.contains("mac"), "{error:?}");
}

#[test]
fn repeated_adds_keep_the_original() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for _ in 0..3 {
        bench.add(&everything());
    }
    assert_eq!(bench.state_files(), ["c1_eth0.json"]);
    for _ in 0..3 {
        bench.del(&everything());
        bench.assert_same_as(&before);
    }
}

#[test]
fn two_tunings_in_one_chain_end_at_the_original() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let first = json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "100"}});
    let second = json!({"mtu": 1300, "mac": "02:00:00:00:00:05",
        "sysctl": {"net.core.somaxconn": "200", "net.ipv4.conf.all.arp_announce": "2"}});
    bench.add(&first);
    bench.add(&second);
    bench.check(&second);
    bench.del(&second);
    bench.del(&first);
    bench.assert_same_as(&before);
}

#[test]
fn a_value_that_the_kernel_refuses_undoes_what_was_written_before_it() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let keys = json!({"mtu": 1400, "promisc": true, "sysctl": {
        "net.core.somaxconn": "777", "net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "abc",
    }});
    let error = bench.call(Verb::Add, &keys).fails_with(2);
    assert!(error.msg.contains("net/ipv4/conf/all/rp_filter = \"abc\""), "{error:?}");
    bench.assert_same_as(&before);
}

#[test]
fn a_link_that_refuses_an_attribute_undoes_the_sysctls() {
    let bench = Bench::new();
    // A macvlan refuses the address of the link below it (EADDRINUSE).
    bench.container.run("ip link add link eth0 name mv0 type macvlan mode bridge");
    let mac = mac_of(&bench.container, "eth0");
    let before = bench.snapshot();
    let target = Target::new("c1", &bench.container.path(), "mv0");
    let keys = json!({"mac": mac, "mtu": 1400, "txQLen": 5, "sysctl": {"net.core.somaxconn": "777"}});
    let outcome = Plugin::ours("tuning").call(&bench.host, Verb::Add, &bench.config(keys), &target);
    let error = outcome.fails_with(102);
    assert!(error.msg.contains("mv0") && error.msg.contains(&mac), "{error:?}");
    bench.assert_same_as(&before);
}

#[test]
fn a_failed_second_tuning_leaves_the_first_and_its_original() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let first = json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "100"}});
    bench.add(&first);
    let between = bench.snapshot();
    let second = json!({"mtu": 1300, "sysctl": {"net.core.somaxconn": "200", "net.ipv4.conf.all.rp_filter": "abc"}});
    bench.call(Verb::Add, &second).fails();
    bench.assert_same_as(&between);
    bench.check(&first);
    bench.del(&second);
    bench.del(&first);
    bench.assert_same_as(&before);
}

#[test]
fn nothing_is_written_where_a_later_key_is_known_to_fail() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for wrong in [
        json!({"sysctl": {"net.core.somaxconn": "777", "net.core.no_such_key": "1"}}),
        json!({"sysctl": {"net.core.somaxconn": "777", "kernel.hostname": "x"}}),
        json!({"sysctl": {"net.core.somaxconn": "777", "net.ipv4.conf.nothere0.rp_filter": "1"}}),
        json!({"sysctl": {"net.core.somaxconn": "777"}, "mtu": 70000}),
        json!({"sysctl": {"net.core.somaxconn": "777"}, "mac": "02:00:00:00:00:00:00:01"}),
        json!({"sysctl": {"net.core.somaxconn": "777"}, "dataDir": "/proc/nowhere"}),
    ] {
        bench.call(Verb::Add, &wrong).fails();
        bench.assert_same_as(&before);
    }
}

#[test]
fn what_the_kernel_writes_along_is_put_back_too() {
    let bench = Bench::new();
    bench.container.set_sysctl("net/ipv4/conf/eth0/forwarding", "1");
    bench.container.set_sysctl("net/ipv6/conf/eth0/forwarding", "1");
    let before = bench.snapshot();
    for keys in [
        json!({"sysctl": {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}}),
        json!({"sysctl": {"net.ipv4.conf.all.forwarding": "1", "net.ipv4.conf.IFNAME.forwarding": "0"}}),
        json!({"sysctl": {"net.ipv6.conf.all.disable_policy": "1"}}),
    ] {
        bench.add(&keys);
        bench.check(&keys);
        bench.del(&keys);
        bench.assert_same_as(&before);
    }
}

#[test]
fn an_ipv6_mtu_sysctl_follows_the_mtu_in_both_directions() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for (mtu, v6) in [(9000, "8000"), (1400, "1300")] {
        let keys = json!({"sysctl": {"net.ipv6.conf.IFNAME.mtu": v6}, "mtu": mtu});
        bench.add(&keys);
        bench.check(&keys);
        assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/mtu"), v6);
        bench.del(&keys);
        bench.assert_same_as(&before);
    }
}

#[test]
fn neighbours_hear_of_the_new_mac_when_arp_notify_is_set_beside_it() {
    let bench = Bench::new();
    bench.host.address("veth0", "10.0.0.1/24");
    bench.host.set_sysctl("net/ipv4/conf/veth0/arp_accept", "1");
    bench.add(&json!({"mac": "02:aa:00:00:00:01", "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}));
    bench.host.wait_until("the host knows the new address", || {
        bench.host.run("ip neigh show dev veth0").contains("10.0.0.2 lladdr 02:aa:00:00:00:01")
    });
}

#[test]
fn keys_are_written_as_sysctl8_writes_them_even_with_dots_in_the_interface() {
    let bench = Bench::with_interface("eth0.100");
    let before = bench.snapshot();
    let keys = json!({"sysctl": {
        "net.ipv4.conf.IFNAME.arp_notify": "1",
        "net/ipv4/conf/eth0.100/arp_announce": "2",
        "net.ipv4.conf.eth0/100.arp_ignore": "1",
        "net.ipv4.conf.eth0.100.log_martians": "1",
        "/net/ipv4/conf/all/log_martians": true,
        "net.ipv4/conf.default/log_martians": 1,
    }});
    bench.add(&keys);
    let of_link = |leaf: &str| bench.container.sysctl(&format!("net/ipv4/conf/eth0.100/{leaf}"));
    assert_eq!(["arp_notify", "arp_announce", "arp_ignore", "log_martians"].map(of_link), ["1", "2", "1", "1"]);
    assert_eq!(bench.container.sysctl("net/ipv4/conf/all/log_martians"), "1");
    assert_eq!(bench.container.sysctl("net/ipv4/conf/default/log_martians"), "1");
    bench.check(&keys);
    bench.del(&keys);
    bench.assert_same_as(&before);
}

#[test]
fn check_compares_values_not_texts() {
    let bench = Bench::new();
    let keys = json!({"mac": "02-AA-00-00-00-0F", "sysctl": {
        "net.ipv4.tcp_rmem": "4096  131072 6291456", "net.core.somaxconn": "0x100",
        // The kernel joins ranges, and drops what it can't keep of a time.
        "net.ipv4.ip_local_reserved_ports": "8081,8080", "net.ipv4.neigh.IFNAME.base_reachable_time_ms": "30001",
    }});
    bench.add(&keys);
    assert_eq!(bench.container.sysctl("net/ipv4/ip_local_reserved_ports"), "8080-8081");
    bench.check(&keys);
    bench.container.set_sysctl("net/ipv4/ip_local_reserved_ports", "8080");
    let error = bench.check_fails(&keys);
    assert!(error.msg.contains("ip_local_reserved_ports: expected \"8081,8080\", found \"8080\""), "{error:?}");
}

#[test]
fn check_leaves_another_ones_promiscuity_alone_and_del_too() {
    let bench = Bench::new();
    let before = bench.snapshot();
    // As a sniffer does, a bridge counts its wish on its ports; it is not the link's own flag.
    bench.container.run("ip link add br0 type bridge");
    bench.container.run("ip link set eth0 master br0");
    assert!(bench.link().contains("promiscuity 1"), "{}", bench.link());
    let keys = json!({"promisc": false, "mtu": 1400});
    bench.add(&keys);
    bench.check(&keys);
    bench.del(&keys);
    bench.add(&json!({"promisc": true}));
    assert!(bench.link().contains("promiscuity 2"), "{}", bench.link());
    bench.del(&json!({"promisc": true}));
    assert!(bench.link().contains("promiscuity 1"), "{}", bench.link());
    bench.container.run("ip link del br0");
    bench.assert_same_as(&before);
}

#[test]
fn a_sysctl_that_can_only_be_written_is_written() {
    let bench = Bench::new();
    let keys = json!({"sysctl": {"net.ipv4.route.flush": "1"}});
    bench.add(&keys);
    bench.check(&keys);
    bench.del(&keys);
    assert!(bench.state_files().is_empty());
}

#[test]
fn a_value_of_many_pages_comes_back_whole() {
    let bench = Bench::new();
    let every_second: Vec<String> = (10_000..30_000).step_by(2).map(|port: u16| port.to_string()).collect();
    let many = json!({"sysctl": {"net.ipv4.ip_local_reserved_ports": every_second.join(",")}});
    bench.add(&many);
    bench.check(&many);
    let before = bench.container.snapshot();
    // Its own state directory: as if another had set them before.
    let few = json!({"sysctl": {"net.ipv4.ip_local_reserved_ports": "8080"}, "dataDir": "/run/few"});
    bench.add(&few);
    assert_eq!(bench.container.sysctl("net/ipv4/ip_local_reserved_ports"), "8080");
    bench.del(&few);
    bench.container.assert_same_as(&before);
    bench.check(&many);
    bench.del(&many);
    assert_eq!(bench.container.sysctl("net/ipv4/ip_local_reserved_ports"), "");
}

#[test]
fn the_result_shows_the_new_mac_and_mtu_on_the_sandboxes_interface_only() {
    let bench = Bench::new();
    let mut config = bench.config(json!({"mac": "02:AA:00:00:00:01", "mtu": 1400}));
    // A host interface of the same name, and another sandbox's.
    let mut interfaces = config["prevResult"]["interfaces"].as_array().cloned().unwrap();
    interfaces.push(json!({"name": "eth0", "mac": "02:00:00:00:00:cc", "mtu": 1500}));
    interfaces.push(json!({"name": "eth0", "mac": "02:00:00:00:00:dd", "mtu": 1500, "sandbox": "/elsewhere"}));
    config["prevResult"]["interfaces"] = Value::Array(interfaces.clone());
    let result = Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &bench.target).succeeds();
    interfaces[1]["mac"] = "02:aa:00:00:00:01".into();
    interfaces[1]["mtu"] = 1400.into();
    assert_eq!(result["interfaces"], Value::Array(interfaces));
}

#[test]
fn a_sandbox_in_another_spelling_is_still_the_containers_and_the_host_is_not() {
    let bench = Bench::new();
    let interfaces = json!([
        {"name": "eth0", "mac": "02:00:00:00:00:cc"},
        {"name": "eth0", "mac": "02:00:00:00:00:bb", "sandbox": "/var/run/netns/spelt-otherwise"},
    ]);
    let prev = json!({"cniVersion": "1.1.0", "interfaces": interfaces});
    let result = bench.add(&json!({"mac": "02:aa:00:00:00:01", "prevResult": prev}));
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:cc");
    assert_eq!(result["interfaces"][1]["mac"], "02:aa:00:00:00:01");
}

#[test]
fn results_of_older_versions_keep_their_shape() {
    let bench = Bench::new();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let config = json!({
            "cniVersion": version, "name": "net", "type": "tuning", "mtu": 1400, "mac": "02:aa:00:00:00:01",
            "prevResult": {"cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": bench.target.netns}]},
        });
        let result = Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &bench.target).succeeds();
        let interface = json!([{"name": "eth0", "mac": "02:aa:00:00:00:01", "sandbox": bench.target.netns}]);
        assert_eq!(result["interfaces"], interface, "{version}");
    }
}

#[test]
fn nothing_configured_passes_the_result_on_and_opens_nothing() {
    let bench = Bench::new();
    let config = bench.config(json!({"promisc": false, "mtu": 0, "sysctl": {}}));
    let target = Target::new("c1", "/nowhere", "eth0");
    let result = Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &target).succeeds();
    assert_eq!(result, config["prevResult"]);
    assert!(bench.state_files().is_empty());
}

#[test]
fn a_mac_comes_from_the_strongest_source() {
    let bench = Bench::new();
    let args = bench.target.with_args("IgnoreUnknown=1;K8S_POD_NAME=p;MAC=02:00:00:00:00:02");
    let mut keys = json!({"mac": "02:00:00:00:00:01"});
    let mut is = |key: &str, value: Value, mac: &str| {
        if !key.is_empty() {
            keys[key] = value;
        }
        let config = bench.config(keys.clone());
        Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &args).succeeds();
        assert_eq!(mac_of(&bench.container, "eth0"), mac);
    };
    is("", Value::Null, "02:00:00:00:00:02");
    is("runtimeConfig", json!({"mac": "02:00:00:00:00:03"}), "02:00:00:00:00:03");
    is("args", json!({"cni": {"mac": "02:00:00:00:00:04"}}), "02:00:00:00:00:04");
}

#[test]
fn each_side_restores_what_the_reference_and_we_saved() {
    let keys = json!({"mac": "02:aa:00:00:00:01", "mtu": 1400, "promisc": true, "allmulti": true});
    for (adds, deletes) in [("theirs", "ours"), ("ours", "theirs")] {
        let plugin = |who: &str| if who == "ours" { Plugin::ours("tuning") } else { Plugin::reference("tuning") };
        let bench = Bench::new();
        let before = bench.snapshot();
        let mut config = bench.config(keys.clone());
        // The reference of Debian 12 speaks no 1.1.0.
        config["cniVersion"] = "1.0.0".into();
        config["prevResult"]["cniVersion"] = "1.0.0".into();
        plugin(adds).call(&bench.host, Verb::Add, &config, &bench.target).succeeds();
        assert!(bench.link().contains("mtu 1400"));
        plugin(deletes).call(&bench.host, Verb::Del, &config, &bench.target).succeeds();
        bench.container.assert_same_as(&before.1);
        assert!(!bench.state_files().contains(&"c1_eth0.json".to_owned()), "{:?}", bench.state_files());
        // What ours has noted of the file beside it, the reference does not know; our DEL and GC do.
        if adds == "ours" {
            let again = format!("cp -a {DATA_DIR} /run/again");
            bench.host.run(&again);
            let gc = json!({"dataDir": "/run/again", "cni.dev/valid-attachments": []});
            bench.call(Verb::Gc, &gc).succeeds();
            assert_eq!(bench.host.run("ls -A /run/again"), "");
            bench.host.run("rmdir /run/again");
        }
        bench.del(&keys);
        bench.assert_same_as(&before);
    }
}

/// The reference's file names no namespace, so what was noted of ours under the same name is not found by it.
#[test]
fn what_was_noted_of_our_file_goes_with_the_references() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let mut config = bench.config(json!({"mtu": 1400}));
    config["cniVersion"] = "1.0.0".into();
    config["prevResult"]["cniVersion"] = "1.0.0".into();
    let (ours, theirs) = (Plugin::ours("tuning"), Plugin::reference("tuning"));
    let nowhere = Target::new("c1", "", "eth0");
    for target in [&bench.target, &nowhere] {
        ours.call(&bench.host, Verb::Add, &config, &bench.target).succeeds();
        for verb in [Verb::Del, Verb::Add] {
            theirs.call(&bench.host, verb, &config, &bench.target).succeeds();
        }
        ours.call(&bench.host, Verb::Del, &config, target).succeeds();
        assert!(bench.state_files().is_empty(), "{:?}", bench.state_files());
        bench.container.run("ip link set eth0 mtu 1500");
    }
    bench.assert_same_as(&before);
}

#[test]
fn a_state_file_goes_with_its_namespace_and_with_its_interface() {
    let bench = Bench::new();
    let before = bench.host.snapshot();
    bench.add(&everything());
    let gone = bench.target.without_netns();
    Plugin::ours("tuning").call(&bench.host, Verb::Del, &bench.config(everything()), &gone).succeeds();
    bench.host.assert_same_as(&before);

    bench.add(&everything());
    let gone = Target { netns: "/run/netns/gone".into(), ..bench.target.clone() };
    Plugin::ours("tuning").call(&bench.host, Verb::Del, &bench.config(everything()), &gone).succeeds();
    bench.host.assert_same_as(&before);

    bench.add(&everything());
    bench.container.run("ip link del eth0");
    bench.del(&everything());
    assert!(bench.state_files().is_empty());
}

#[test]
fn del_without_a_usable_configuration_takes_everything_back() {
    let bench = Bench::new();
    let before = bench.snapshot();
    bench.add(&everything());
    let broken = json!({"sysctl": {"kernel.hostname": "x"}, "mac": "garbage", "mtu": "many"});
    bench.del(&broken);
    bench.assert_same_as(&before);
}

#[test]
fn a_late_del_leaves_the_next_interface_of_the_name_alone() {
    let bench = Bench::new();
    bench.add(&everything());
    // A new container under the old identifier, whose state is its own.
    let next = Netns::new("next container");
    connect(End::new(&bench.host, "veth1", &[]), End::new(&next, "eth0", &["10.0.0.3/24"]));
    let before = next.snapshot();
    let target = Target::new("c1", &next.path(), "eth0");
    Plugin::ours("tuning").call(&bench.host, Verb::Del, &bench.config(everything()), &target).succeeds();
    next.assert_same_as(&before);
    assert!(bench.state_files().is_empty());
}

#[test]
fn a_del_leaves_a_new_interface_of_the_name_alone() {
    let bench = Bench::new();
    bench.add(&everything());
    bench.container.run("ip link del eth0");
    bench.container.run("ip link add eth0 mtu 1300 type veth peer name other0");
    let link = bench.link();
    bench.del(&everything());
    assert_eq!(bench.link(), link);
}

#[test]
fn an_add_for_a_new_container_saves_anew() {
    let bench = Bench::new();
    bench.add(&json!({"mtu": 1400}));
    let next = Netns::new("next container");
    connect(End::new(&bench.host, "veth1", &[]), End::new(&next, "eth0", &["10.0.0.3/24"]));
    next.run("ip link set eth0 mtu 1350");
    let before = next.snapshot();
    let target = Target::new("c1", &next.path(), "eth0");
    let config = bench.config(json!({"mtu": 1400}));
    Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &target).succeeds();
    Plugin::ours("tuning").call(&bench.host, Verb::Del, &config, &target).succeeds();
    next.assert_same_as(&before);
}

#[test]
fn two_networks_on_one_interface_keep_their_own_originals() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let first = bench.config(json!({"mtu": 1400, "name": "first"}));
    let second = bench.config(json!({"mtu": 1300, "name": "second"}));
    let call = |verb, config| Plugin::ours("tuning").call(&bench.host, verb, config, &bench.target).succeeds();
    call(Verb::Add, &first);
    let between = bench.snapshot();
    call(Verb::Add, &second);
    assert_eq!(bench.state_files().len(), 2);
    call(Verb::Del, &second);
    bench.assert_same_as(&between);
    call(Verb::Check, &first);
    call(Verb::Del, &first);
    bench.assert_same_as(&before);
}

#[test]
fn attachments_whose_file_names_meet_keep_their_own_originals() {
    let bench = Bench::with_interface("b_c");
    bench.container.run("ip link add c type veth peer name c_peer");
    let before = bench.snapshot();
    let config = bench.config(json!({"mtu": 1400}));
    let targets = [("a", "b_c"), ("a_b", "c")].map(|(id, ifname)| Target::new(id, &bench.container.path(), ifname));
    for target in &targets {
        Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, target).succeeds();
    }
    assert_eq!(bench.state_files().len(), 2);
    for target in &targets {
        Plugin::ours("tuning").call(&bench.host, Verb::Del, &config, target).succeeds();
    }
    bench.assert_same_as(&before);
}

#[test]
fn a_very_long_container_id_has_a_state_file_too() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let target = Target::new(&"x".repeat(300), &bench.container.path(), "eth0");
    let config = bench.config(everything());
    Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &target).succeeds();
    Plugin::ours("tuning").call(&bench.host, Verb::Del, &config, &target).succeeds();
    bench.assert_same_as(&before);
}

#[test]
fn a_spoilt_state_file_is_removed_and_no_symlink_is_followed() {
    let bench = Bench::new();
    let before = bench.host.snapshot();
    let file = format!("{DATA_DIR}/c1_eth0.json");
    for content in ["", "{", "[]", "{\"mtu\": \"many\"}", "{\"sysctls\": 7}"] {
        bench.host.write(&file, content);
        bench.del(&everything());
        bench.host.assert_same_as(&before);

        bench.host.write(&file, content);
        let outcome = bench.call(Verb::Add, &everything());
        outcome.succeeds();
        assert!(outcome.stderr.contains(&format!("warn: state file {file}: ")), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("it is replaced"), "{}", outcome.stderr);
        bench.del(&everything());
        bench.host.assert_same_as(&before);
    }
    bench.host.write("/run/precious", "untouched");
    let before = bench.host.snapshot();
    for verb in [Verb::Del, Verb::Add] {
        bench.host.run(&format!("ln -s /run/precious {file}"));
        bench.call(verb, &everything()).succeeds();
        bench.del(&everything());
        bench.host.assert_same_as(&before);
    }
}

#[test]
fn a_state_file_that_others_can_write_is_not_believed() {
    let bench = Bench::new();
    let file = format!("{DATA_DIR}/c1_eth0.json");
    bench.host.write(&file, "{\"mtu\": 1300, \"sysctls\": [{\"name\": \"net/core/somaxconn\", \"before\": \"1\"}]}");
    bench.host.run(&format!("chmod 666 {file}"));
    let before = bench.container.snapshot();
    bench.del(&everything());
    bench.container.assert_same_as(&before);
    assert!(bench.state_files().is_empty());
}

#[test]
fn no_state_file_reaches_beyond_net() {
    let bench = Bench::new();
    let hostname = bench.host.run("cat /proc/sys/kernel/hostname");
    for name in ["kernel/hostname", "net/../kernel/hostname", "/proc/sys/kernel/hostname"] {
        let content = json!({"sysctls": [{"name": name, "before": "owned"}]}).to_string();
        bench.host.write(&format!("{DATA_DIR}/c1_eth0.json"), &content);
        bench.del(&everything());
        assert_eq!(bench.host.run("cat /proc/sys/kernel/hostname"), hostname);
    }
}

#[test]
fn gc_removes_the_dead_of_its_own_network_only() {
    let bench = Bench::new();
    let call = |verb, network: &str, id: &str, keys: Value| {
        let mut config = bench.config(keys);
        config["name"] = network.into();
        let target = Target::new(id, &bench.container.path(), "eth0");
        Plugin::ours("tuning").call(&bench.host, verb, &config, &target).succeeds()
    };
    for (mtu, (network, id)) in
        (1400..).zip([("net", "dead"), ("net", "alive"), ("other", "elsewhere"), ("other", "alive")])
    {
        call(Verb::Add, network, id, json!({"mtu": mtu}));
    }
    // What the reference left, and what is no state file at all, is nobody's.
    bench.host.write(&format!("{DATA_DIR}/theirs_eth0.json"), "{\"mtu\": 1500}");
    bench.host.write(&format!("{DATA_DIR}/notes.txt"), "x");
    assert_eq!(bench.state_files().len(), 6);
    call(Verb::Gc, "net", "", json!({"cni.dev/valid-attachments": [{"containerID": "alive", "ifname": "eth0"}]}));
    let left = bench.state_files();
    assert_eq!(left.len(), 5, "{left:?}");
    assert!(!left.contains(&"dead_eth0.json".to_owned()), "{left:?}");
    call(Verb::Gc, "net", "", json!({"cni.dev/valid-attachments": []}));
    call(Verb::Gc, "net", "", json!({"cni.dev/valid-attachments": []}));
    let left = bench.state_files();
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(
        left.contains(&"elsewhere_eth0.json".to_owned()) && !left.contains(&"alive_eth0.json".to_owned()),
        "{left:?}"
    );
}

#[test]
fn the_allowlist_of_the_host_decides_on_add_and_status() {
    let bench = Bench::new();
    bench.host.write("/etc/cni/tuning/allowlist.conf", "# ours\n\n^net.core.somaxconn$\nipv4.conf.IFNAME\n");
    let before = bench.snapshot();
    let allowed = json!({"sysctl": {"net.core.somaxconn": "777", "net.ipv4.conf.IFNAME.arp_notify": "1"}});
    let refused = json!({"sysctl": {"net.core.somaxconn": "777", "net.ipv4.ip_forward": "1"}});
    let outcome = bench.call(Verb::Add, &allowed);
    outcome.succeeds();
    assert!(outcome.stderr.contains("line 4") && outcome.stderr.contains("not anchored"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("line 3"), "{}", outcome.stderr);
    bench.del(&allowed);
    let error = bench.call(Verb::Add, &refused).fails();
    assert!(error.msg.contains("Sysctl net.ipv4.ip_forward is not allowed"), "{error:?}");
    bench.assert_same_as(&before);
    let status = bench.call(Verb::Status, &allowed);
    status.succeeds();
    assert!(status.stderr.contains("not anchored"), "{}", status.stderr);
    bench.call(Verb::Status, &refused).fails_with(50);
    bench.assert_same_as(&before);
}

#[test]
fn status_names_a_state_directory_that_can_not_be_and_makes_none() {
    let bench = Bench::new();
    bench.host.write("/run/file", "");
    let before = bench.snapshot();
    for wrong in ["/proc/nowhere", "/sys/nowhere", "/run/file", "/run/file/below"] {
        let error = bench.call(Verb::Status, &json!({"mtu": 1400, "dataDir": wrong})).fails_with(50);
        assert!(error.msg.contains(wrong), "{error:?}");
        bench.call(Verb::Add, &json!({"mtu": 1400, "dataDir": wrong})).fails_with(106);
        bench.assert_same_as(&before);
    }
    bench.call(Verb::Status, &json!({"mtu": 1400, "dataDir": "/run/not/yet/there"})).succeeds();
    bench.assert_same_as(&before);
}

/// Who can exchange a state file could have anything "put back".
#[test]
fn a_state_directory_that_others_can_write_takes_no_files() {
    let bench = Bench::new();
    let keys = json!({"mtu": 1400});
    let before = bench.snapshot();
    for exposed in [format!("chmod 777 {DATA_DIR}"), format!("chown 65534 {DATA_DIR}")] {
        bench.add(&keys);
        bench.host.run(&exposed);
        let error = bench.call(Verb::Status, &keys).fails_with(50);
        assert!(error.msg.contains("the directory") && error.msg.contains("0700"), "{error:?}");
        // What is there is put back all the same, with a warning.
        let outcome = bench.call(Verb::Del, &keys);
        outcome.succeeds();
        assert!(outcome.stderr.contains(&format!("warn: {DATA_DIR}: ")), "{}", outcome.stderr);
        bench.container.assert_same_as(&before.1);
        bench.call(Verb::Add, &keys).fails_with(106);
        bench.container.assert_same_as(&before.1);
        bench.host.run(&format!("chown 0 {DATA_DIR}"));
        bench.host.run(&format!("chmod 755 {DATA_DIR}"));
        bench.host.assert_same_as(&before.0);
    }
    bench.host.run(&format!("chmod 1777 {DATA_DIR}"));
    bench.call(Verb::Status, &keys).succeeds();
    bench.add(&keys);
    bench.del(&keys);
}

#[test]
fn what_is_no_single_sysctl_is_said_to_be_none() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for (key, value, code, reason) in [
        ("net.ipv4.conf.IFNAME", "1", 2, "is a directory of sysctls"),
        ("net/core", "1", 2, "is a directory of sysctls"),
        ("net.core.somaxconn", "1 2 3", 2, "the kernel takes 1 of these numbers"),
        ("net.ipv4.tcp_rmem", "4096 131072 6291456 8", 2, "the kernel takes 3 of these numbers"),
        ("../net/core/somaxconn", "1", 7, "\".\" and \"..\" are not taken"),
        ("./net/core/somaxconn", "1", 7, "\".\" and \"..\" are not taken"),
    ] {
        let keys = json!({"sysctl": {"net.ipv4.conf.all.arp_notify": "1", (key): value}});
        let error = bench.call(Verb::Add, &keys).fails_with(code);
        assert!(error.msg.contains(reason), "{key}: {error:?}");
        bench.assert_same_as(&before);
    }
    let error = bench.check_fails(&json!({"sysctl": {"net.ipv4.conf.IFNAME": "1"}}));
    assert!(error.details.contains("found a directory"), "{error:?}");
}

/// A kernel without namespace cookies (before Linux 5.14), openat2(2) (5.6) and a file system without nameless files.
#[test]
fn older_kernels_and_other_file_systems_do_as_well() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let keys = json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}});
    let trace = tempfile::NamedTempFile::new().unwrap();
    let path = trace.path().to_str().unwrap();
    assert!(bench.call_under_strace(Verb::Add, &keys, &["-e", "trace=openat", "-o", path]).status.success());
    bench.del(&keys);
    let opened = std::fs::read_to_string(path).unwrap();
    let nameless = opened.lines().position(|line| line.contains("O_TMPFILE")).unwrap() + 1;
    let lacks = [
        "inject=getsockopt:error=ENOPROTOOPT",
        "inject=openat2:error=ENOSYS",
        &format!("inject=openat:error=EOPNOTSUPP:when={nameless}"),
        &format!("inject=openat:error=EISDIR:when={nameless}"),
    ];
    for lack in lacks {
        let options = ["-e", lack, "-o", path];
        let output = bench.call_under_strace(Verb::Add, &keys, &options);
        assert!(output.status.success(), "{lack}: {output:?}");
        assert!(std::fs::read_to_string(path).unwrap().contains("(INJECTED)"), "{lack}: nothing was put in its place");
        let file = format!("{DATA_DIR}/c1_eth0.json");
        assert_eq!(bench.host.run(&format!("stat -c %a {file}")).trim(), "600", "{lack}");
        assert_eq!(bench.state_files().len(), 1, "{lack}: {:?}", bench.state_files());
        let record: Value = serde_json::from_str(&bench.host.read(&file)).unwrap();
        assert_eq!(record["place"]["cookie"].is_null(), lack.contains("getsockopt"), "{lack}: {record}");
        bench.check(&keys);
        let output = bench.call_under_strace(Verb::Del, &keys, &options[..if lack.contains("when") { 0 } else { 4 }]);
        assert!(output.status.success(), "{lack}: {output:?}");
        bench.assert_same_as(&before);
    }
}

/// What can't be found out is not "there is none": the container would keep what was to be put back.
#[test]
fn a_namespace_or_an_interface_that_can_not_be_identified_is_an_error() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let keys = json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}});
    for (lack, said) in [
        ("inject=getsockopt:error=EPERM", "the kernel refused to identify the network namespace"),
        ("inject=ioctl:error=ENOBUFS", "the kernel refused to look up interface eth0"),
    ] {
        let fails = |verb| {
            let output = bench.call_under_strace(verb, &keys, &["-o", "/dev/null", "-e", lack]);
            let error: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(error["code"] == 102 && error["msg"].as_str().unwrap().contains(said), "{error}");
        };
        fails(Verb::Add);
        bench.assert_same_as(&before);
        bench.add(&keys);
        fails(Verb::Del);
        bench.check(&keys);
        bench.del(&keys);
        bench.assert_same_as(&before);
    }
}

#[test]
fn del_finds_its_state_directory_whatever_else_has_become_invalid() {
    let bench = Bench::new();
    let data_dir = "/run/elsewhere";
    bench.host.run(&format!("mkdir {data_dir}"));
    let before = bench.snapshot();
    bench.add(&json!({"mtu": 1400, "dataDir": data_dir, "sysctl": {"net.core.somaxconn": "777"}}));
    bench.del(&json!({"mtu": "many", "promisc": 7, "args": "x", "sysctl": [], "dataDir": data_dir}));
    bench.assert_same_as(&before);
}

#[test]
fn a_read_only_proc_is_named_by_status_and_by_add() {
    let bench = Bench::new();
    bench.host.run("mount --bind /proc/sys /proc/sys");
    bench.host.run("mount -o remount,bind,ro /proc/sys");
    let before = bench.snapshot();
    let keys = json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "777"}});
    let error = bench.call(Verb::Status, &keys).fails_with(50);
    assert!(error.msg.contains("read-only"), "{error:?}");
    bench.call(Verb::Status, &json!({"mtu": 1400})).succeeds();
    let error = bench.call(Verb::Add, &keys).fails_with(2);
    assert!(error.msg.contains("read-only"), "{error:?}");
    bench.assert_same_as(&before);
}

#[test]
fn containers_that_come_and_go_at_once_do_not_meet() {
    let bench = Bench::new();
    let before = bench.host.snapshot();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let bench = &bench;
            scope.spawn(move || {
                let container = Netns::new(&format!("container {n}"));
                container.run("ip link add eth0 type veth peer name peer0");
                let before = container.snapshot();
                let target = Target::new(&format!("at-once-{n}"), &container.path(), "eth0");
                for _ in 0..3 {
                    let config = bench.config(json!({"mtu": 1300 + n, "sysctl": {"net.core.somaxconn": n + 1}}));
                    for verb in [Verb::Add, Verb::Check, Verb::Del] {
                        Plugin::ours("tuning").call(&bench.host, verb, &config, &target).succeeds();
                    }
                    container.assert_same_as(&before);
                }
            });
        }
    });
    bench.host.assert_same_as(&before);
}

/// IPv6 state that the kernel drops with `disable_ipv6` and with an MTU below 1280: a second address, routes over a gateway
/// and over two links, and settings of the interface's own.
fn with_routes_of_its_own(bench: &Bench) {
    bench.host.address("veth0", "fd00::1/64");
    let container = &bench.container;
    container.run("ip link add eth9 type veth peer name peer9");
    container.run("ip link set eth9 up");
    container.run("ip link set peer9 up");
    container.address("eth9", "fd09::2/64");
    container.address("eth0", "fd00::3/64");
    container.route("default", "fd00::1");
    container.run("ip -6 route add fd01::/64 via fd00::9 metric 7");
    container.run("ip -6 route add fd02::/64 dev eth0 table 100");
    container.run("ip -6 route add fd03::/64 nexthop via fd00::9 weight 3 nexthop via fd09::9 weight 2");
    container.set_sysctl("net/ipv6/conf/eth0/accept_ra", "0");
    container.set_sysctl("net/ipv6/conf/eth0/hop_limit", "33");
    container.set_sysctl("net/ipv6/neigh/eth0/delay_first_probe_time", "7");
    container.settle();
    container.run("ping -6 -c 1 -W 5 fd00::1");
}

/// The container's namespace holds the same lines as before; the kernel lists routes by age.
#[track_caller]
fn assert_same_in_any_order(container: &Netns, before: &Snapshot) {
    let after = container.snapshot();
    for ((name, before), (_, after)) in before.sections().zip(after.sections()) {
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(after), sorted(before), "{name}");
    }
}

#[test]
fn ipv6_addresses_and_routes_come_back_with_del_and_after_a_failed_add() {
    let bench = Bench::new();
    with_routes_of_its_own(&bench);
    let before = bench.container.snapshot();
    for keys in [
        json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}}),
        json!({"sysctl": {"net.ipv6.conf.all.disable_ipv6": true}}),
        json!({"mtu": 1000}),
        json!({"mtu": 1200, "mac": "02:aa:00:00:00:01", "sysctl": {"net.core.somaxconn": "777"}}),
    ] {
        let outcome = bench.call(Verb::Add, &keys);
        outcome.succeeds();
        assert!(outcome.stderr.contains("fd00::2/64"), "{}", outcome.stderr);
        assert!(!bench.container.run("ip -6 address show dev eth0").contains("fd00::2"));
        bench.check(&keys);
        bench.add(&keys);
        bench.del(&keys);
        bench.container.settle();
        assert_same_in_any_order(&bench.container, &before);
        bench.container.run("ping -6 -c 1 -W 5 fd00::1");
    }
    let fails = json!({"mtu": 1000, "sysctl": {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv4.conf.all.tag": "abc"}});
    bench.call(Verb::Add, &fails).fails();
    bench.container.settle();
    assert_same_in_any_order(&bench.container, &before);
    bench.container.run("ping -6 -c 1 -W 5 fd00::1");
    assert!(bench.state_files().is_empty());
}

#[test]
fn ipv6_that_the_interface_keeps_while_all_others_lose_it_works_on() {
    let bench = Bench::new();
    with_routes_of_its_own(&bench);
    let before = bench.container.snapshot();
    let keys = json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "0", "net.ipv6.conf.all.disable_ipv6": "1"}});
    bench.add(&keys);
    bench.check(&keys);
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/disable_ipv6"), "0");
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth9/disable_ipv6"), "1");
    bench.container.run("ping -6 -c 1 -W 5 fd00::1");
    assert!(bench.container.run("ip -6 route show").contains("fd01::/64 via fd00::9"));
    bench.del(&keys);
    bench.container.settle();
    assert_same_in_any_order(&bench.container, &before);
}

#[test]
fn a_key_of_the_interface_holds_beside_one_of_all_in_any_order() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for (all, own) in [
        ("net.ipv4.conf.all.forwarding", "net.ipv4.conf.IFNAME.forwarding"),
        ("net.ipv4.ip_forward", "net.ipv4.conf.IFNAME.forwarding"),
        ("net.ipv6.conf.all.forwarding", "net.ipv6.conf.IFNAME.forwarding"),
        ("net.ipv6.conf.all.addr_gen_mode", "net.ipv6.conf.IFNAME.addr_gen_mode"),
        ("net.ipv6.conf.all.disable_policy", "net.ipv6.conf.default.disable_policy"),
    ] {
        for sysctls in [[(all, "1"), (own, "0")], [(own, "0"), (all, "1")]] {
            for verb in [Verb::Add, Verb::Check, Verb::Del] {
                bench.call_in_order(verb, sysctls).succeeds();
            }
            bench.assert_same_as(&before);
        }
    }
}

#[test]
fn what_another_key_overwrites_is_written_again() {
    let bench = Bench::new();
    // The secret switches the mode to 2; libcni's order puts it last.
    let keys = json!({"sysctl": {
        "net.ipv6.conf.IFNAME.addr_gen_mode": "1", "net.ipv6.conf.IFNAME.stable_secret": "2001:db8::1",
    }});
    bench.add(&keys);
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/addr_gen_mode"), "1");
    bench.check(&keys);
    bench.del(&keys);
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/addr_gen_mode"), "0");
    assert!(bench.state_files().is_empty());
}

#[test]
fn keys_that_can_not_both_hold_are_both_named_and_undone() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for (one, other) in [
        (("net.ipv4.ip_forward", "1"), ("net.ipv4.conf.all.forwarding", "0")),
        (("net.ipv4.neigh.IFNAME.unres_qlen", "50"), ("net.ipv4.neigh.IFNAME.unres_qlen_bytes", "400000")),
        (("net.ipv6.neigh.IFNAME.retrans_time_ms", "5000"), ("net.ipv6.neigh.IFNAME.retrans_time", "700")),
    ] {
        for [(first, x), (second, y)] in [[one, other], [other, one]] {
            let keys = json!({"mtu": 1400, "sysctl": {(first): x, "net.core.somaxconn": "777", (second): y}});
            let error = bench.call(Verb::Add, &keys).fails_with(2);
            for key in [first, second] {
                let path = key.replace("IFNAME", "eth0").replace('.', "/");
                assert!(error.msg.contains(&path), "{path} is missing in {error:?}");
            }
            bench.assert_same_as(&before);
        }
    }
    let agreed = json!({"sysctl": {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.forwarding": "1"}});
    bench.add(&agreed);
    bench.check(&agreed);
    bench.del(&agreed);
    bench.assert_same_as(&before);
}

#[test]
fn a_value_whose_bound_comes_later_is_written_after_it() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let keys = json!({"sysctl": {
        "net.ipv4.ip_local_port_range": "80 60999", "net.ipv4.ip_unprivileged_port_start": "0",
    }});
    bench.add(&keys);
    bench.check(&keys);
    bench.del(&keys);
    bench.assert_same_as(&before);
}

#[test]
fn settings_in_two_units_come_back_in_both() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for key in ["unres_qlen", "base_reachable_time", "retrans_time"] {
        let keys = json!({"sysctl": {(format!("net.ipv4.neigh.IFNAME.{key}")): "50"}});
        bench.add(&keys);
        bench.check(&keys);
        bench.del(&keys);
        bench.assert_same_as(&before);
    }
    let keys = json!({"sysctl": {"net.ipv4.conf.default.rp_filter": "2"}});
    bench.container.run("ip link add bare0 type veth peer name bare1");
    let before = bench.snapshot();
    bench.add(&keys);
    assert_eq!(bench.container.sysctl("net/ipv4/conf/bare0/rp_filter"), "2");
    bench.del(&keys);
    bench.assert_same_as(&before);
}

#[test]
fn ipv6_settings_are_set_together_with_the_mtu_that_makes_them_possible() {
    let bench = Bench::new();
    bench.container.run("ip link set eth0 mtu 1200");
    let before = bench.snapshot();
    let keys = json!({"mtu": 1500, "sysctl": {"net.ipv6.conf.IFNAME.accept_ra": "0", "net.ipv6.conf.IFNAME.mtu": "1400",
        "net.ipv6.neigh.IFNAME.app_solicit": "4"}});
    bench.add(&keys);
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/accept_ra"), "0");
    bench.check(&keys);
    bench.del(&keys);
    bench.assert_same_as(&before);
    let error =
        bench.call(Verb::Add, &json!({"mtu": 1500, "sysctl": {"net.ipv6.conf.IFNAME.no_such": "0"}})).fails_with(2);
    assert!(error.msg.contains("no such sysctl"), "{error:?}");
    bench.assert_same_as(&before);
}

#[test]
fn an_ipv6_mtu_that_was_lower_than_the_links_comes_back() {
    let bench = Bench::new();
    bench.container.set_sysctl("net/ipv6/conf/eth0/mtu", "1300");
    let before = bench.snapshot();
    let keys = json!({"mtu": 9000});
    bench.add(&keys);
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/mtu"), "9000");
    bench.del(&keys);
    bench.assert_same_as(&before);
    // Where IPv6 is switched on again the kernel takes the interface's.
    for scope in ["all", "IFNAME"] {
        for last in [json!({}), json!({"net.ipv4.conf.all.tag": "abc"})] {
            let mut keys = json!({"sysctl": last});
            keys["sysctl"][format!("net.ipv6.conf.{scope}.disable_ipv6")] = "1".into();
            assert_eq!(bench.call(Verb::Add, &keys).exit == 0, last == json!({}), "{keys}");
            bench.del(&keys);
            bench.container.settle();
            assert_same_in_any_order(&bench.container, &before.1);
        }
    }
}

/// A second interface of the container, as a runtime attaches another network to it.
fn second_attachment(bench: &Bench) -> Target {
    connect(End::new(&bench.host, "veth1", &[]), End::new(&bench.container, "eth1", &["10.1.0.2/24"]));
    Target::new("c1", &bench.container.path(), "eth1")
}

#[test]
fn attachments_that_set_the_same_end_at_the_original_in_any_order_and_never_break_the_other() {
    let bench = Bench::new();
    let second_target = second_attachment(&bench);
    let before = bench.snapshot();
    let first = json!({"sysctl": {"net.core.somaxconn": "100", "net.ipv4.conf.all.forwarding": "1",
        "net.ipv4.conf.IFNAME.forwarding": "0"}});
    let second = json!({"name": "second", "sysctl": {"net.core.somaxconn": "200", "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.IFNAME.forwarding": "0"}});
    let call = |verb, keys: &Value, target: &Target| {
        Plugin::ours("tuning").call(&bench.host, verb, &bench.config(keys.clone()), target).succeeds()
    };
    for forward in [true, false] {
        call(Verb::Add, &first, &bench.target);
        call(Verb::Add, &second, &second_target);
        call(Verb::Add, &second, &second_target);
        call(Verb::Check, &second, &second_target);
        let (gone, gone_target, stays, stays_target) = if forward {
            (&first, &bench.target, &second, &second_target)
        } else {
            (&second, &second_target, &first, &bench.target)
        };
        call(Verb::Del, gone, gone_target);
        call(Verb::Check, stays, stays_target);
        assert_eq!(bench.container.sysctl("net/ipv4/ip_forward"), "1");
        call(Verb::Del, gone, gone_target);
        call(Verb::Check, stays, stays_target);
        call(Verb::Del, stays, stays_target);
        bench.assert_same_as(&before);
    }
}

#[test]
fn ipv6_stays_off_while_another_attachment_wants_it_off_and_comes_back_with_the_last() {
    let bench = Bench::new();
    let second_target = second_attachment(&bench);
    with_routes_of_its_own(&bench);
    let before = bench.container.snapshot();
    let keys = json!({"sysctl": {"net.ipv6.conf.all.disable_ipv6": "1"}});
    let call = |verb, name: &str, target: &Target| {
        let mut config = bench.config(keys.clone());
        config["name"] = name.into();
        Plugin::ours("tuning").call(&bench.host, verb, &config, target).succeeds()
    };
    call(Verb::Add, "first", &bench.target);
    call(Verb::Add, "second", &second_target);
    call(Verb::Del, "first", &bench.target);
    assert!(!bench.container.run("ip -6 address show dev eth0").contains("fd00::2"));
    call(Verb::Check, "second", &second_target);
    call(Verb::Del, "second", &second_target);
    bench.container.settle();
    assert_same_in_any_order(&bench.container, &before);
    assert!(bench.state_files().is_empty());
}

#[test]
fn a_new_interface_of_the_name_gets_none_of_the_old_ones_values_and_the_namespace_gets_its_own() {
    let bench = Bench::new();
    let before = bench.container.sysctl("net/core/somaxconn");
    let keys = json!({"sysctl": {"net.core.somaxconn": "777", "net.ipv4.conf.IFNAME.arp_announce": "2"}});
    let again = |bench: &Bench| {
        bench.container.run("ip link del eth0");
        connect(End::new(&bench.host, "veth0", &[]), End::new(&bench.container, "eth0", &["10.0.0.2/24"]));
        bench.container.set_sysctl("net/ipv4/conf/eth0/arp_announce", "1");
    };
    bench.add(&keys);
    again(&bench);
    bench.del(&keys);
    assert_eq!(bench.container.sysctl("net/ipv4/conf/eth0/arp_announce"), "1");
    assert_eq!(bench.container.sysctl("net/core/somaxconn"), before);

    // An ADD in between keeps the namespace's original and takes the new interface's.
    bench.add(&keys);
    again(&bench);
    bench.add(&keys);
    bench.del(&keys);
    assert_eq!(bench.container.sysctl("net/ipv4/conf/eth0/arp_announce"), "1");
    assert_eq!(bench.container.sysctl("net/core/somaxconn"), before);
}

#[test]
fn a_namespace_that_got_anothers_number_is_another_one() {
    let bench = Bench::new();
    let keys = json!({"mtu": 1400});
    bench.add(&keys);
    let file = format!("{DATA_DIR}/c1_eth0.json");
    let mut record: Value = serde_json::from_str(&bench.host.read(&file)).unwrap();
    let cookie = record["place"]["cookie"].as_u64().expect("the kernel has cookies since Linux 5.14");
    record["place"]["cookie"] = (cookie + 1).into();
    bench.host.write(&file, record.to_string());
    bench.del(&keys);
    assert!(bench.link().contains("mtu 1400"), "{}", bench.link());
    assert!(bench.state_files().is_empty());
}

#[test]
fn an_add_behind_the_references_keeps_the_references_original() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let mut config = bench.config(json!({"mac": "02:aa:00:00:00:01", "mtu": 1400}));
    config["cniVersion"] = "1.0.0".into();
    config["prevResult"]["cniVersion"] = "1.0.0".into();
    Plugin::reference("tuning").call(&bench.host, Verb::Add, &config, &bench.target).succeeds();
    // Another value than the reference's: what an ADD finds set already it does not write, nor save.
    config["mtu"] = 1300.into();
    Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &bench.target).succeeds();
    bench.del(&json!({}));
    bench.assert_same_as(&before);

    // One that an earlier container of this name has left behind says nothing about this one.
    bench.host.write(&format!("{DATA_DIR}/c1_eth0.json"), "{\"mtu\": 1333}");
    bench.host.run(&format!("touch -d 2001-01-01 {DATA_DIR}/c1_eth0.json"));
    Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &bench.target).succeeds();
    bench.del(&json!({}));
    bench.assert_same_as(&before);
}

#[test]
fn an_interface_that_goes_back_to_the_host_is_as_it_came() {
    let bench = Bench::new();
    bench.container.set_sysctl("net/core/somaxconn", "300");
    let (link, sysctls) = (bench.link(), bench.container.snapshot());
    bench.add(&everything());
    bench.add(&json!({"mtu": 1300, "promisc": true}));
    bench.del(&json!({"mtu": 1300}));
    bench.del(&everything());
    assert_eq!(bench.link(), link);
    bench.container.assert_same_as(&sysctls);
    // As host-device does it.
    bench.container.run(&format!("ip link set eth0 netns {}", bench.host.path()));
    let moved = bench.host.run("ip -d link show eth0");
    let mac = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(moved.contains("mtu 1500") && moved.contains("qlen 1000") && moved.contains(mac), "{moved}");
    assert!(!moved.contains("PROMISC") && !moved.contains("ALLMULTI"), "{moved}");
}

#[test]
fn gc_puts_back_what_the_dead_have_changed_in_a_living_namespace() {
    let bench = Bench::new();
    let second_target = second_attachment(&bench);
    let before = bench.snapshot();
    let keys = json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "100"}});
    let add = |target: &Target, value: &str| {
        let config = bench.config(json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": value}}));
        Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, target).succeeds();
    };
    let gc = |living: Value| {
        let config = bench.config(json!({"cni.dev/valid-attachments": living}));
        Plugin::ours("tuning").call(&bench.host, Verb::Gc, &config, &bench.target).succeeds()
    };
    add(&bench.target, "100");
    add(&second_target, "200");
    gc(json!([{"containerID": "c1", "ifname": "eth0"}]));
    bench.check(&keys);
    assert!(bench.container.run("ip link show eth1").contains("mtu 1500"));
    add(&second_target, "200");
    gc(json!([]));
    bench.assert_same_as(&before);
}

fn mac_of(netns: &Netns, ifname: &str) -> String {
    let link = netns.run(&format!("ip link show {ifname}"));
    link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

/// The names and lifetimes of the addresses of an interface.
fn ipv6_addresses(netns: &Netns, ifname: &str, scope: &str) -> Vec<String> {
    let shown = netns.run(&format!("ip -6 -o address show dev {ifname} scope {scope}"));
    let address = |line: &str| line.split_whitespace().nth(3).unwrap_or_default().to_owned();
    let mut addresses: Vec<String> = shown.lines().map(address).collect();
    addresses.sort();
    addresses
}

#[test]
fn a_repeated_add_takes_no_key_from_the_attachment_that_set_it_last() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let second = json!({"mtu": 1300, "sysctl": {"net.core.somaxconn": "20"}});
    let call = |verb, network: &str, keys: &Value| {
        let mut config = bench.config(keys.clone());
        config["name"] = network.into();
        Plugin::ours("tuning").call(&bench.host, verb, &config, &bench.target).succeeds()
    };
    for order in [["first", "second"], ["second", "first"]] {
        call(Verb::Add, "first", &json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "10"}}));
        call(Verb::Add, "second", &second);
        call(Verb::Add, "first", &json!({"txQLen": 7, "sysctl": {"net.ipv4.ip_default_ttl": "60"}}));
        call(Verb::Add, "third", &json!({"mtu": 1350, "sysctl": {"net.core.somaxconn": "30"}}));
        call(Verb::Del, "third", &json!({}));
        call(Verb::Check, "second", &second);
        order.iter().for_each(|network| drop(call(Verb::Del, network, &json!({}))));
        bench.assert_same_as(&before);
    }
}

#[test]
fn ipv6_addresses_come_back_with_what_is_left_of_their_lifetimes() {
    let bench = Bench::new();
    let container = &bench.container;
    container.run("ip address add fd00::9/64 dev eth0 nodad preferred_lft 0");
    container.run("ip address add fd00::a/64 dev eth0 nodad valid_lft 5000 preferred_lft 3000");
    container.run("ip address add fd00::b/64 dev eth0 nodad valid_lft 2 preferred_lft 1");
    let seconds = |line: &str, key: &str| -> u32 {
        let text = line.split(key).nth(1).unwrap().split("sec").next().unwrap();
        text.trim().parse().unwrap()
    };
    let off = json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}});
    let fails = json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1", "net.ipv4.conf.all.tag": "abc"}});
    for keys in [&fails, &off] {
        let outcome = bench.call(Verb::Add, keys);
        if keys == &off {
            outcome.succeeds();
            std::thread::sleep(std::time::Duration::from_millis(3100));
            bench.del(keys);
        }
        let shown = container.run("ip -6 -o address show dev eth0 scope global");
        let of = |address: &str| shown.lines().find(|l| l.contains(address)).unwrap_or_else(|| panic!("{shown}"));
        assert!(of("fd00::9/").contains("deprecated"), "{shown}");
        assert!(!of("fd00::2/").contains("deprecated"), "{shown}");
        let (valid, preferred) = (seconds(of("fd00::a/"), "valid_lft"), seconds(of("fd00::a/"), "preferred_lft"));
        let most = if keys == &off { 4997 } else { 5000 };
        assert!((4900..=most).contains(&valid) && (2900..=most - 2000).contains(&preferred), "{shown}");
        assert!(keys == &fails || !shown.contains("fd00::b/"), "what has ended meanwhile is back: {shown}");
    }
}

#[test]
fn an_interface_that_was_given_another_name_gets_its_values_back() {
    let bench = Bench::new();
    let attributes = |link: &str| {
        let words: Vec<&str> = link.split_whitespace().collect();
        let after = |word: &str| words.iter().position(|w| *w == word).map(|at| words[at + 1].to_owned());
        ([after("mtu"), after("qlen"), after("link/ether")], link.contains("PROMISC"), link.contains("ALLMULTI"))
    };
    let before = attributes(&bench.link());
    bench.add(&everything());
    bench.container.run("ip link set eth0 down");
    bench.container.run("ip link set eth0 name other0");
    bench.container.run("ip link add eth0 mtu 1300 type veth peer name peer0");
    let namesake = attributes(&bench.link());
    bench.del(&everything());
    assert_eq!(attributes(&bench.container.run("ip -d link show other0")), before);
    assert_eq!(bench.container.sysctl("net/ipv4/conf/other0/arp_notify"), "0");
    assert_eq!(attributes(&bench.link()), namesake);
    assert!(bench.state_files().is_empty());
}

#[test]
fn an_mtu_with_which_the_interface_would_lose_ipv4_is_refused() {
    let bench = Bench::new();
    let target = Target::new("c1", &bench.container.path(), "lo");
    let before = bench.snapshot();
    let call = |mtu: u32| {
        let config = bench.config(json!({"mtu": mtu, "sysctl": {"net.core.somaxconn": "777"}}));
        Plugin::ours("tuning").call(&bench.host, Verb::Add, &config, &target)
    };
    let error = call(67).fails_with(7);
    assert!(error.msg.contains("IPv4") && error.msg.contains("68"), "{error:?}");
    bench.assert_same_as(&before);
    call(68).succeeds();
    assert!(bench.container.run("ip -4 address show dev lo").contains("127.0.0.1"));
}

/// Nobody holds it by its file, so whoever opens that sees a new one.
#[test]
fn what_the_reference_saved_is_believed_in_a_namespace_that_only_a_process_holds() {
    let host = Host::new();
    let mut process = host.command("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", process.id());
    host.wait_until("it has a namespace of its own", || {
        std::fs::read_link(&path).unwrap() != host.inside(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap())
    });
    let inside = |line: &str| host.run(&format!("nsenter --net={path} {line}"));
    let config = |mtu: u32| {
        json!({"cniVersion": "1.0.0", "name": "net", "type": "tuning", "mtu": mtu,
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "lo", "sandbox": path}]}})
    };
    let target = Target::new("c1", &path, "lo");
    Plugin::reference("tuning").call(&host, Verb::Add, &config(1400), &target).succeeds();
    Plugin::ours("tuning").call(&host, Verb::Add, &config(1300), &target).succeeds();
    Plugin::ours("tuning").call(&host, Verb::Del, &config(1300), &target).succeeds();
    let link = inside("ip link show lo");
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(link.contains("mtu 65536"), "{link}");
}

#[test]
fn a_directory_in_the_place_of_a_state_file_stops_neither_add_nor_del() {
    let bench = Bench::new();
    let before = bench.snapshot();
    for name in ["c1_eth0.json", ".c1_eth0.json.new"] {
        let place = format!("{DATA_DIR}/{name}");
        bench.host.run(&format!("mkdir {place}"));
        bench.del(&everything());
        bench.assert_same_as(&before);
        bench.host.run(&format!("mkdir {place}"));
        bench.add(&everything());
        bench.check(&everything());
        bench.del(&everything());
        bench.assert_same_as(&before);
    }
    bench.host.run(&format!("mkdir -p {DATA_DIR}/c1_eth0.json/somebodys"));
    let before = bench.snapshot();
    let outcome = bench.call(Verb::Del, &everything());
    outcome.succeeds();
    assert!(outcome.stderr.contains(&format!("warn: state file {DATA_DIR}/c1_eth0.json: ")), "{}", outcome.stderr);
    bench.add(&everything());
    bench.check(&everything());
    bench.del(&everything());
    bench.assert_same_as(&before);
}

#[test]
fn status_warns_of_the_allowlist_also_where_sysctls_come_with_the_call_only() {
    let bench = Bench::new();
    bench.host.write("/etc/cni/tuning/allowlist.conf", "net.core\nnet.[\n");
    let status = bench.call(Verb::Status, &json!({"mtu": 1400}));
    status.succeeds();
    for warning in ["line 1", "not anchored", "line 2", "is not a regular expression"] {
        assert!(status.stderr.contains(warning), "{warning}: {}", status.stderr);
    }
}

#[test]
fn two_values_for_one_key_are_refused_from_every_source() {
    let bench = Bench::new();
    let twice = json!({"net.core.somaxconn": "1", "net/core/somaxconn": "2"});
    for keys in [json!({"sysctl": twice}), json!({"args": {"cni": {"sysctl": twice}}})] {
        let error = bench.call(Verb::Add, &keys).fails_with(7);
        assert!(error.msg.contains("duplicated sysctl keys are not allowed"), "{error:?}");
    }
    let over = json!({"sysctl": {"net.core.somaxconn": "1"}, "args": {"cni": {"sysctl": {"net/core/somaxconn": "2"}}}});
    bench.add(&over);
    assert_eq!(bench.container.sysctl("net/core/somaxconn"), "2");
}

/// Who can exchange a directory on the way could have anything "put back".
#[test]
fn a_state_directory_below_one_that_others_can_write_takes_no_files() {
    let bench = Bench::new();
    for line in [
        "mkdir -p /run/theirs/ours /run/open/ours /run/sticky/ours /run/sticky/theirs /run/real/ours",
        "chown 65534 /run/theirs /run/sticky/theirs",
        "chmod 777 /run/open",
        "chmod 1777 /run/sticky",
        "ln -s /run/theirs/ours /run/to-theirs",
        "ln -s ../run/real /run/to-real",
        "ln -s /run/real/ours /run/sticky/link",
        "chown -h 65534 /run/sticky/link",
        "ln -s /run/loop /run/loop",
    ] {
        bench.host.run(line);
    }
    let keys = |path: &str| json!({"mtu": 1400, "dataDir": path});
    let before = bench.snapshot();
    for wrong in [
        "/run/theirs/ours",
        "/run/theirs/new",
        "/run/theirs/new/below",
        "/run/open/ours",
        "/run/open/new",
        "/run/sticky/theirs/ours",
        "/run/sticky/link",
        "/run/to-theirs",
        "/run/real/../theirs/ours",
        "/run/loop/ours",
    ] {
        let error = bench.call(Verb::Status, &keys(wrong)).fails_with(50);
        assert!(error.msg.contains(wrong), "{error:?}");
        bench.call(Verb::Add, &keys(wrong)).fails_with(106);
        bench.assert_same_as(&before);
    }
    for fine in ["/run/sticky/ours", "/run/to-real/ours", "/run/to-real/../real/ours", "/run/sticky/new/below"] {
        bench.call(Verb::Status, &keys(fine)).succeeds();
        bench.add(&keys(fine));
        bench.del(&keys(fine));
        bench.container.assert_same_as(&before.1);
    }
}

#[test]
fn a_pipe_is_no_namespace_and_nobody_waits_for_it() {
    let bench = Bench::new();
    bench.host.run("mkfifo /run/pipe");
    bench.host.write("/run/file", "");
    let call = |verb, path: &str| {
        let target = Target::new("c1", path, "eth0");
        Plugin::ours("tuning").call(&bench.host, verb, &bench.config(everything()), &target)
    };
    assert_eq!(call(Verb::Add, "/run/pipe").fails().code, call(Verb::Add, "/run/file").fails().code);
    call(Verb::Del, "/run/pipe").succeeds();
}

#[test]
fn no_link_local_address_is_left_of_a_hardware_address_or_mode_that_passed() {
    let bench = Bench::new();
    let second = second_attachment(&bench);
    let container = &bench.container;
    container.wait_until("eth1 has its own address", || !ipv6_addresses(container, "eth1", "link").is_empty());
    let all = || ["eth0", "eth1"].map(|ifname| ipv6_addresses(container, ifname, "link"));
    let before = all();
    let call = |verb, network: &str, keys: Value, target: &Target| {
        let mut config = bench.config(keys);
        config["name"] = network.into();
        Plugin::ours("tuning").call(&bench.host, verb, &config, target)
    };
    let off = || json!({"sysctl": {"net.ipv6.conf.all.disable_ipv6": "1"}});
    let mac = || json!({"mac": "02:00:00:00:00:20"});

    // A second tuning that fails, over a mac of the first.
    bench.add(&mac());
    let fails = json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1", "net.ipv4.conf.all.tag": "abc"}});
    bench.call(Verb::Add, &fails).fails();
    assert_eq!(all(), before, "after a failed second tuning");
    bench.del(&json!({}));
    assert_eq!(all(), before, "after its DEL");

    // Another way of making addresses.
    for scope in ["IFNAME", "all"] {
        bench.add(&json!({"sysctl": {(format!("net.ipv6.conf.{scope}.addr_gen_mode")): "3"}}));
        bench.del(&json!({}));
        assert_eq!(all(), before, "{scope}.addr_gen_mode");
    }

    // Where the kernel makes none there is none to come back, whatever way new interfaces have.
    container.run(&format!("ip address del {} dev eth0", before[0][0]));
    container.set_sysctl("net/ipv6/conf/eth0/addr_gen_mode", "1");
    for keys in [json!({"mtu": 1200}), json!({"sysctl": {"net.ipv6.conf.IFNAME.addr_gen_mode": "0"}})] {
        bench.add(&keys);
        bench.add(&keys);
        bench.del(&json!({}));
        assert_eq!(all(), [Vec::new(), before[1].clone()], "none, {keys}");
        let mut fails = keys.clone();
        fails["sysctl"]["net.ipv4.conf.all.tag"] = "abc".into();
        bench.call(Verb::Add, &fails).fails();
        assert_eq!(all(), [Vec::new(), before[1].clone()], "none, failed, {keys}");
    }
    container.set_sysctl("net/ipv6/conf/eth0/addr_gen_mode", "0");
    container.wait_until("eth0 has its own address again", || all() == before);

    // One attachment's switch and another's mac, in either order.
    let and_on = json!({"mac": "02:00:00:00:00:20", "sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "0"}});
    for (order, mac) in [(["first", "second"], mac()), (["second", "first"], mac()), (["second", "first"], and_on)] {
        let target = |network: &str| if network == "first" { &bench.target } else { &second };
        for network in order {
            let keys = if network == "first" { off() } else { mac.clone() };
            call(Verb::Add, network, keys, target(network)).succeeds();
        }
        for network in ["first", "second"] {
            call(Verb::Del, network, json!({}), target(network)).succeeds();
        }
        assert_eq!(all(), before, "{order:?}");
    }
}

#[test]
fn an_address_of_a_mode_that_another_attachment_has_set_stays() {
    let bench = Bench::new();
    let call = |verb, network: &str, keys: Value| {
        let mut config = bench.config(keys);
        config["name"] = network.into();
        Plugin::ours("tuning").call(&bench.host, verb, &config, &bench.target).succeeds()
    };
    let before = ipv6_addresses(&bench.container, "eth0", "link");
    let mode = json!({"net.ipv6.conf.IFNAME.addr_gen_mode": "3"});
    for (off, other) in [
        (json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}}), json!({"sysctl": mode})),
        (json!({"mtu": 1000}), json!({"sysctl": mode, "mtu": 1400})),
    ] {
        call(Verb::Add, "first", off);
        call(Verb::Add, "second", other);
        call(Verb::Del, "first", json!({}));
        let between = ipv6_addresses(&bench.container, "eth0", "link");
        assert!(between.len() >= 2 && between.contains(&before[0]), "{between:?}");
        call(Verb::Del, "second", json!({}));
        assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/addr_gen_mode"), "0");
        assert_eq!(ipv6_addresses(&bench.container, "eth0", "link"), before);
    }
}

#[test]
fn a_value_of_two_lines_and_a_key_that_can_only_be_read_are_refused() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let two_lines = json!({"sysctl": {"net.ipv4.tcp_congestion_control": "reno\ncubic"}});
    let error = bench.call(Verb::Add, &two_lines).fails_with(7);
    assert!(error.msg.contains("one line"), "{error:?}");
    let error = bench.call(Verb::Add, &json!({"sysctl": {"net.ipv4.tcp_available_congestion_control": "reno"}}));
    let error = error.fails_with(2);
    assert!(error.msg.contains("can only be read"), "{error:?}");
    bench.assert_same_as(&before);
    // A newline at the end is how a file of values ends.
    bench.add(&json!({"sysctl": {"net.core.somaxconn": "777\n"}}));
    assert_eq!(bench.container.sysctl("net/core/somaxconn"), "777");
}

/// What an ADD and a DEL of one container read does not grow with the number of the others.
#[test]
fn the_files_of_other_containers_are_not_listed() {
    let bench = Bench::new();
    bench.host.inside(|| {
        for n in 0..2000 {
            let owner = format!("{{\"network\": \"net\", \"container\": \"other{n}\", \"ifname\": \"eth0\"}}");
            let file = format!("{{\"owner\": {owner}, \"place\": {{\"netns\": \"4:9\"}}}}");
            std::fs::write(format!("{DATA_DIR}/other{n}_eth0.json"), file).unwrap();
        }
    });
    let before = bench.snapshot();
    let trace = tempfile::NamedTempFile::new().unwrap();
    for verb in [Verb::Add, Verb::Add, Verb::Check, Verb::Del, Verb::Del] {
        let options = ["-e", "trace=getdents64", "-o", trace.path().to_str().unwrap()];
        assert!(bench.call_under_strace(verb, &everything(), &options).status.success());
        let traced = std::fs::read_to_string(trace.path()).unwrap();
        let bytes = traced.lines().filter_map(|line| line.rsplit("= ").next()?.trim().parse::<u32>().ok());
        let bytes: u32 = bytes.sum();
        assert!(bytes < 2000, "{verb:?} reads {bytes} bytes of directories: {traced}");
    }
    bench.assert_same_as(&before);
}

/// Seconds of a processor, not of a clock: 5,000 attachments took 37 when each was compared with all others.
#[test]
fn gc_of_many_attachments_of_one_namespace_is_linear() {
    let bench = Bench::new();
    let before = bench.container.snapshot();
    bench.add(&everything());
    let record: Value = serde_json::from_str(&bench.host.read(&format!("{DATA_DIR}/c1_eth0.json"))).unwrap();
    bench.host.inside(|| {
        for n in 0..3000 {
            let (mut record, container) = (record.clone(), format!("many{n}"));
            record["owner"]["container"] = container.clone().into();
            record["order"] = n.into();
            std::fs::write(format!("{DATA_DIR}/{container}_eth0.json"), record.to_string()).unwrap();
        }
    });
    let config = bench.config(json!({"cni.dev/valid-attachments": []}));
    let limit = ["prlimit", "--cpu=6"];
    Plugin::ours("tuning").call_under(&limit, &bench.host, Verb::Gc, &config, &bench.target).succeeds();
    assert!(bench.state_files().is_empty());
    bench.container.assert_same_as(&before);
}

#[test]
fn static_neighbours_survive_a_new_mac_and_come_back_with_ipv6() {
    let bench = Bench::new();
    let container = &bench.container;
    container.run("ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    container.run("ip -6 neigh add fd00::ff lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    container.run("ip -6 neigh add proxy fd00::aa dev eth0");
    let shown = || ["ip -4 neigh show nud permanent", "ip -6 neigh show nud permanent", "ip -6 neigh show proxy"];
    let shown = || shown().map(|line| container.run(line).trim().to_owned());
    let before = shown();
    assert!(before.iter().all(|text| text.contains("dev eth0")), "{before:?}");
    for (keys, keeps_ipv6) in [
        (json!({"mac": "02:aa:00:00:00:01"}), true),
        (json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}}), false),
        (json!({"mtu": 1200, "mac": "02:aa:00:00:00:01"}), false),
        (json!({"mac": "02:aa:00:00:00:01", "sysctl": {"net.ipv6.conf.all.disable_ipv6": "1"}}), false),
    ] {
        bench.add(&keys);
        let between = shown();
        assert_eq!(between[0], before[0], "{keys}");
        assert_eq!(between[1].is_empty(), !keeps_ipv6, "{keys}: {between:?}");
        bench.del(&keys);
        assert_eq!(shown(), before, "{keys}");
    }
    let fails = json!({"mac": "02:aa:00:00:00:01", "sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1",
        "net.ipv4.conf.all.tag": "abc"}});
    bench.call(Verb::Add, &fails).fails();
    assert_eq!(shown(), before);
}

#[test]
fn an_add_that_gives_ipv6_again_gives_back_what_an_earlier_one_took() {
    let switch = |value: &str| json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": value}});
    let of_all = |value: &str| json!({"sysctl": {"net.ipv6.conf.all.disable_ipv6": value}});
    let mtu = |bytes: u32| json!({"mtu": bytes});
    for (off, on) in [(mtu(1200), mtu(1400)), (switch("1"), switch("0")), (of_all("1"), of_all("0"))] {
        for second in ["c1", "c2"] {
            let bench = Bench::new();
            let container = &bench.container;
            container.run("ip -6 route add default via fd00::1 dev eth0");
            container.run("ip -6 neigh add fd00::ff lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
            let shown = || {
                [
                    "ip -6 -o addr show dev eth0 scope global",
                    "ip -6 route show default",
                    "ip -6 neigh show nud permanent",
                ]
                .map(|line| container.run(line).split_whitespace().take(5).collect::<Vec<_>>().join(" "))
            };
            let (before, all) = (shown(), bench.snapshot());
            assert!(before.iter().all(|text| !text.is_empty()), "{before:?}");
            let target = Target::new(second, &container.path(), "eth0");
            let call = |verb, target: &Target, keys: &Value| {
                Plugin::ours("tuning").call(&bench.host, verb, &bench.config(keys.clone()), target).succeeds()
            };
            call(Verb::Add, &bench.target, &off);
            assert_ne!(shown(), before, "{off}");
            call(Verb::Add, &target, &on);
            assert_eq!(shown(), before, "{on} behind {off}");
            call(Verb::Check, &target, &on);
            call(Verb::Del, &bench.target, &off);
            assert_eq!(shown(), before, "{on} behind {off}, DEL of the first");
            call(Verb::Del, &target, &on);
            bench.assert_same_as(&all);
        }
    }
}

/// Nothing waits for ever for a call that hangs; and what one that has ended had locked is free.
#[test]
fn a_lock_that_somebody_keeps_is_told_of_and_changes_nothing() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let keys = json!({"mtu": 1400});
    bench.add(&keys);
    let between = bench.snapshot();
    let files = bench.host.run(&format!("ls -A {DATA_DIR}"));
    let group = files.split_whitespace().find(|name| name.starts_with(".in-")).unwrap();
    let group = format!("{DATA_DIR}/{group}");
    let lock = || Flock::lock(File::open(&group).unwrap(), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno);
    let held = bench.host.inside(lock).unwrap();
    let error = bench.call(Verb::Del, &keys).fails_with(11);
    assert!(error.msg.contains(&group), "{}", error.msg);
    bench.call(Verb::Check, &keys).succeeds();
    bench.assert_same_as(&between);
    drop(held);
    bench.del(&keys);
    bench.assert_same_as(&before);
}

/// A runtime would not wait for as many times as there are namespaces.
#[test]
fn a_gc_waits_once_for_locks_that_somebody_keeps_and_goes_on_with_the_others() {
    let bench = Bench::new();
    let keys = json!({"sysctl": {"net.core.somaxconn": "100"}});
    let others = [(); 3].map(|()| Netns::new("container"));
    let groups = || {
        let files = bench.host.run(&format!("ls -A {DATA_DIR}"));
        files.split_whitespace().filter(|name| name.starts_with(".in-")).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    bench.add(&keys);
    for (n, other) in others.iter().enumerate() {
        let target = Target::new(&format!("c{}", n + 2), &other.path(), "lo");
        Plugin::ours("tuning").call(&bench.host, Verb::Add, &bench.config(keys.clone()), &target).succeeds();
    }
    let all = groups();
    assert_eq!(all.len(), 4);
    let open = |group: &String| File::open(format!("{DATA_DIR}/{group}")).unwrap();
    let lock = |group: &String| Flock::lock(open(group), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno);
    let held: Vec<_> = bench.host.inside(|| all.iter().take(3).map(|group| lock(group).unwrap()).collect());
    let nobody = json!({"cni.dev/valid-attachments": []});
    let error = bench.call(Verb::Gc, &nobody).fails_with(107);
    assert_eq!(error.details.matches(" for 10 s;").count(), 1, "{}", error.details);
    assert!(all.iter().take(3).all(|group| error.details.contains(group)), "{}", error.details);
    assert_eq!(groups(), all.iter().take(3).cloned().collect());
    drop(held);
    bench.call(Verb::Gc, &nobody).succeeds();
    assert!(bench.state_files().is_empty());
}

/// Between the new mac and the neighbours' coming back there is a moment in which only the plugin, or its file, knows them.
#[test]
#[cfg(target_arch = "x86_64")]
fn static_neighbours_outlive_a_call_that_is_killed_or_refused_with_a_new_mac() {
    use netns_tests::faults::{Fault, Run, Side, Times, Which, answered, changes, killed};
    let bench = Bench::new();
    let container = &bench.container;
    let keys = json!({"mac": "02:aa:00:00:00:01"});
    let (config, plugin) = (bench.config(keys.clone()), Plugin::ours("tuning"));
    let run = |verb| Run { plugin: &plugin, host: &bench.host, verb, config: &config, target: &bench.target };
    let neighbours = [("-4", "10.0.0.9"), ("-6", "fd00::ff")];
    let set = || {
        for (family, address) in neighbours {
            container
                .run(&format!("ip {family} neigh replace {address} lladdr 02:00:00:00:00:77 dev eth0 nud permanent"));
        }
    };
    let shown = || neighbours.map(|(family, _)| container.run(&format!("ip {family} neigh show nud permanent")));
    set();
    let before = (shown(), container.run("ip -o link show eth0"));
    let is_as_before = |story: &str| {
        assert_eq!((shown(), container.run("ip -o link show eth0")), before, "{story}");
        assert!(bench.state_files().is_empty(), "{story}");
    };
    for (verb, ending) in [
        (Verb::Add, &[Verb::Del][..]),
        (Verb::Add, &[Verb::Add, Verb::Check, Verb::Del]),
        (Verb::Add, &[Verb::Gc]),
        (Verb::Del, &[Verb::Del]),
        (Verb::Del, &[Verb::Gc]),
    ] {
        let prepare = || {
            set();
            if verb == Verb::Del {
                bench.add(&keys);
            }
        };
        prepare();
        let (all, outcome) = changes(&run(verb));
        outcome.succeeds();
        bench.del(&keys);
        for (n, side) in (0..all.len()).flat_map(|n| [(n, Side::Before), (n, Side::Behind)]) {
            prepare();
            let met = killed(&run(verb), n, side);
            let story = format!("{verb:?} killed {side:?} {n} ({met:?}), then {ending:?}");
            for next in ending {
                let gc = json!({"cni.dev/valid-attachments": []});
                bench.call(*next, if *next == Verb::Gc { &gc } else { &keys }).succeeds();
                assert_eq!(shown(), before.0, "{story}: {next:?}");
            }
            is_as_before(&story);
        }
    }
    // Of the two changes of an ADD, the mac and the neighbours, either is refused.
    for n in 0..2 {
        set();
        let (outcome, told) =
            answered(&run(Verb::Add), Fault::Refused(nix::errno::Errno::ENOBUFS, Which::First), Times::AtChanges(n, n));
        assert_eq!(told, 1, "change {n}");
        outcome.fails();
        is_as_before(&format!("change {n} refused"));
    }
    // Whoever removes one that has come back does not see it again.
    bench.add(&keys);
    container.run("ip neigh del 10.0.0.9 dev eth0");
    bench.del(&keys);
    assert_eq!(shown()[0], "");
}

/// A pod's shared namespace: whose file it is does not matter, only where its values are.
#[test]
fn containers_that_share_a_namespace_end_at_the_original_in_any_order() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let config = |value: &str| bench.config(json!({"sysctl": {"net.core.somaxconn": value}}));
    let target = |container: &str| Target::new(container, &bench.container.path(), "eth0");
    let call = |verb, container: &str, value: &str| {
        Plugin::ours("tuning").call(&bench.host, verb, &config(value), &target(container)).succeeds()
    };
    for [gone, stays] in [[("one", "100"), ("two", "200")], [("two", "200"), ("one", "100")]] {
        call(Verb::Add, "one", "100");
        call(Verb::Add, "two", "200");
        call(Verb::Del, gone.0, gone.1);
        call(Verb::Check, stays.0, stays.1);
        call(Verb::Del, stays.0, stays.1);
        bench.assert_same_as(&before);
    }
}

/// The interface's MTU changes other values along with it: the MTU of IPv6, and below 1280 bytes all that IPv6 has there. Whoever
/// found the MTU set already puts those back all the same, if he is the last to go.
#[test]
fn attachments_with_the_same_mtu_end_at_the_original_in_any_order() {
    let bench = Bench::new();
    with_routes_of_its_own(&bench);
    // Nothing of this is what the kernel begins with.
    let own = ipv6_addresses(&bench.container, "eth0", "link").remove(0);
    bench.container.set_sysctl("net/ipv6/conf/eth0/addr_gen_mode", "1");
    bench.container.set_sysctl("net/ipv6/conf/eth0/mtu", "1290");
    bench.container.run(&format!("ip address del {own} dev eth0"));
    let before = bench.snapshot();
    let call = |verb, keys: &Value, (network, container): (&str, &str)| {
        let mut config = bench.config(keys.clone());
        config["name"] = network.into();
        let target = Target::new(container, &bench.container.path(), "eth0");
        let outcome = Plugin::ours("tuning").call(&bench.host, verb, &config, &target);
        outcome.succeeds();
        assert!(!outcome.stderr.contains("next DEL"), "{}", outcome.call());
    };
    let gc = |network: &str, living: Value| {
        call(Verb::Gc, &json!({"cni.dev/valid-attachments": living}), (network, "c1"));
    };
    for keys in [
        json!({"mtu": 1400}),
        json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "500", "net.ipv6.conf.IFNAME.disable_ipv6": "1"}}),
        json!({"mtu": 1200}),
    ] {
        for [gone, stays] in [
            [("net", "one"), ("net", "two")],
            [("net", "two"), ("net", "one")],
            [("net", "one"), ("other", "one")],
            [("other", "one"), ("net", "one")],
        ] {
            for collected in [false, true] {
                for attachment in if gone < stays { [gone, stays] } else { [stays, gone] } {
                    call(Verb::Add, &keys, attachment);
                }
                if collected {
                    let living = json!([{"containerID": stays.1, "ifname": "eth0"}]);
                    gc(gone.0, if gone.0 == stays.0 { living } else { json!([]) });
                } else {
                    call(Verb::Del, &keys, gone);
                }
                call(Verb::Check, &keys, stays);
                if collected {
                    gc(stays.0, json!([]))
                } else {
                    call(Verb::Del, &keys, stays)
                }
                bench.container.settle();
                bench.host.assert_same_as(&before.0);
                assert_same_in_any_order(&bench.container, &before.1);
            }
        }
    }
}

/// The MTU of IPv6 can't be greater than the interface's: what goes back to a value that the interface can't carry any more, by
/// another attachment's wish or by somebody else's, goes as near to it as it can.
#[test]
fn an_ipv6_mtu_goes_back_as_far_as_the_interface_lets_it() {
    let bench = Bench::new();
    bench.container.run("ip link set eth0 mtu 1400");
    let before = bench.snapshot();
    let call = |verb, container: &str, keys: Value| {
        let target = Target::new(container, &bench.container.path(), "eth0");
        let outcome = Plugin::ours("tuning").call(&bench.host, verb, &bench.config(keys), &target);
        outcome.succeeds();
        assert!(!outcome.stderr.contains("next DEL"), "{}", outcome.call());
    };
    call(Verb::Add, "one", json!({"mtu": 1500}));
    call(Verb::Add, "two", json!({"sysctl": {"net.ipv6.conf.IFNAME.mtu": "1450"}}));
    call(Verb::Del, "one", json!({}));
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/mtu"), "1400");
    call(Verb::Del, "two", json!({}));
    bench.assert_same_as(&before);
    call(Verb::Add, "one", json!({"sysctl": {"net.ipv6.conf.IFNAME.mtu": "1290"}}));
    bench.container.run("ip link set eth0 mtu 1350");
    bench.container.set_sysctl("net/ipv6/conf/eth0/mtu", "1290");
    call(Verb::Del, "one", json!({}));
    assert_eq!(bench.container.sysctl("net/ipv6/conf/eth0/mtu"), "1350");
    assert!(bench.state_files().is_empty(), "{:?}", bench.state_files());
}

/// Its file stays for the next DEL, but it holds nothing any more against those that go after it.
#[test]
fn an_attachment_whose_del_could_not_put_everything_back_keeps_no_other_from_doing_so() {
    let bench = Bench::new();
    let before = bench.snapshot();
    let target = |container: &str| Target::new(container, &bench.container.path(), "eth0");
    let config = |value: &str| bench.config(json!({"sysctl": {"net.core.somaxconn": value}}));
    let call = |verb, container: &str, value: &str| {
        Plugin::ours("tuning").call(&bench.host, verb, &config(value), &target(container)).succeeds()
    };
    for again in [false, true] {
        call(Verb::Add, "one", "100");
        call(Verb::Add, "two", "200");
        let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\"";
        let wrapper = ["unshare", "--mount", "sh", "-c", script];
        let outcome =
            Plugin::ours("tuning").call_under(&wrapper, &bench.host, Verb::Del, &config("200"), &target("two"));
        outcome.succeeds();
        assert!(outcome.stderr.contains("next DEL"), "{}", outcome.call());
        if again {
            call(Verb::Add, "two", "300");
            call(Verb::Del, "one", "100");
            call(Verb::Check, "two", "300");
        } else {
            call(Verb::Del, "one", "100");
            bench.container.assert_same_as(&before.1);
        }
        call(Verb::Del, "two", "200");
        bench.assert_same_as(&before);
    }
}

/// What an ADD would have to put back, should it fail later, it must be able to.
#[test]
fn an_add_that_could_not_put_ipv6_back_changes_nothing() {
    let bench = Bench::new();
    let second_target = second_attachment(&bench);
    // On this one the kernel makes none, and would.
    bench.container.set_sysctl("net/ipv6/conf/eth1/addr_gen_mode", "1");
    for own in ipv6_addresses(&bench.container, "eth1", "link") {
        bench.container.run(&format!("ip address del {own} dev eth1"));
    }
    let before = bench.snapshot();
    let mode = |mode: &str| json!({"txQLen": 7, "sysctl": {"net.ipv6.conf.IFNAME.addr_gen_mode": mode}});
    for (keys, target) in [
        json!({"mtu": 1400, "sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}}),
        json!({"mac": "02:aa:00:00:00:01", "sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}}),
        json!({"sysctl": {"net.ipv6.conf.all.disable_ipv6": "1"}}),
        mode("3"),
    ]
    .into_iter()
    .map(|keys| (keys, &bench.target))
    .chain([(mode("0"), &second_target)])
    {
        let wrapper = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
        let config = bench.config(keys);
        let outcome = Plugin::ours("tuning").call_under(&wrapper, &bench.host, Verb::Add, &config, target);
        let error = outcome.fails_with(105);
        assert!(error.msg.contains("CAP_NET_ADMIN"), "{error:?}");
        bench.assert_same_as(&before);
    }
}

/// As an ADD leaves it that was killed between the two.
#[test]
fn a_state_file_that_was_not_noted_is_noted_by_the_next_add() {
    let bench = Bench::new();
    let second_target = second_attachment(&bench);
    let before = bench.snapshot();
    let first = json!({"sysctl": {"net.core.somaxconn": "100"}});
    let second = bench.config(json!({"name": "second", "sysctl": {"net.core.somaxconn": "200"}}));
    let call = |verb| Plugin::ours("tuning").call(&bench.host, verb, &second, &second_target).succeeds();
    bench.add(&first);
    bench.host.run(&format!("find {DATA_DIR} -name .in-* -exec rm -r {{}} +"));
    bench.add(&first);
    call(Verb::Add);
    bench.del(&first);
    call(Verb::Check);
    call(Verb::Del);
    bench.assert_same_as(&before);
}

/// What the kernel changes along must be known before: where it can't be listed, nothing is written.
#[test]
fn what_can_not_be_listed_is_an_error_before_the_first_write() {
    let bench = Bench::new();
    for leaf in ["ipv6/conf/eth0/forwarding", "ipv4/conf/eth0/forwarding", "ipv6/conf/eth0/accept_ra"] {
        bench.container.set_sysctl(&format!("net/{leaf}"), if leaf.ends_with("accept_ra") { "2" } else { "1" });
    }
    let of_all = json!({"sysctl": {"net.ipv6.conf.all.forwarding": "1", "net.ipv4.ip_forward": "1"}});
    let calls = ["getdents64", "openat"];
    let before = bench.snapshot();
    for (keys, call) in
        [of_all, json!({"mtu": 1200})].into_iter().flat_map(|keys| calls.map(|call| (keys.clone(), call)))
    {
        let mut refused = 0;
        for n in 1.. {
            let [trace, inject] = [format!("trace={call}"), format!("inject={call}:error=EIO:when={n}")];
            let outcome = bench.call_under_strace(Verb::Add, &keys, &["-e", &trace, "-e", &inject]);
            let error = String::from_utf8_lossy(&outcome.stdout);
            refused += usize::from(error.contains("refused to list sysctls below net/ipv"));
            if outcome.status.success() {
                bench.del(&keys);
            }
            bench.container.assert_same_as(&before.1);
            if !String::from_utf8_lossy(&outcome.stderr).contains("(INJECTED)") {
                break;
            }
        }
        assert!(refused > 0, "{keys} {call}");
    }
    bench.assert_same_as(&before);
}

/// An address, a route and a neighbour of `eth0` that go with IPv6, and what is shown of them.
fn with_ipv6_to_lose(container: &Netns) -> impl Fn() -> [String; 3] {
    container.run("ip -6 route add default via fd00::1 dev eth0");
    container.run("ip -6 neigh add fd00::ff lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    let lines =
        ["ip -6 -o addr show dev eth0 scope global", "ip -6 route show default", "ip -6 neigh show nud permanent"];
    move || lines.map(|line| container.run(line).split_whitespace().take(5).collect::<Vec<_>>().join(" "))
}

/// IPv6 is on again, and only the files know what the interface had.
#[test]
#[cfg(target_arch = "x86_64")]
fn an_add_that_is_killed_while_it_gives_ipv6_again_gives_the_rest_when_it_is_repeated() {
    use netns_tests::faults::{Run, Side, changes, killed};
    let switch = |value: &str| json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": value}});
    let both = json!({"sysctl": {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.IFNAME.disable_ipv6": "0"}});
    let cases = [(None, both), (Some(switch("1")), switch("0")), (Some(json!({"mtu": 1200})), json!({"mtu": 1400}))];
    let plugin = Plugin::ours("tuning");
    for ((off, on), second) in cases.iter().flat_map(|case| ["c1", "c2"].map(|second| (case, second))) {
        let bench = Bench::new();
        let shown = with_ipv6_to_lose(&bench.container);
        let (before, target, config) =
            (shown(), Target::new(second, &bench.container.path(), "eth0"), bench.config(on.clone()));
        let run = Run { plugin: &plugin, host: &bench.host, verb: Verb::Add, config: &config, target: &target };
        let call = |verb| plugin.call(&bench.host, verb, &config, &target).succeeds();
        let begin = || drop(off.as_ref().map(|off| bench.add(off)));
        let end = || {
            call(Verb::Del);
            off.iter().for_each(|off| bench.del(off));
        };
        begin();
        let (all, outcome) = changes(&run);
        outcome.succeeds();
        end();
        for (n, side) in (0..all.len()).flat_map(|n| [(n, Side::Before), (n, Side::Behind)]) {
            begin();
            let met = killed(&run, n, side);
            let story = format!("{second}: {on} behind {off:?}, killed {side:?} {n} ({met:?})");
            call(Verb::Add);
            assert_eq!(shown(), before, "{story}");
            call(Verb::Check);
            // Whoever removes one that has come back does not see it again.
            bench.container.run("ip -6 neigh del fd00::ff dev eth0");
            call(Verb::Add);
            assert_eq!(shown()[2], "", "{story}");
            end();
            bench.container.run("ip -6 neigh replace fd00::ff lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
            assert_eq!(shown(), before, "{story}, DEL");
            assert!(bench.state_files().is_empty(), "{story}");
        }
    }
}

/// What an ADD would have to give back together with IPv6, it must be able to.
#[test]
fn an_add_that_could_not_give_ipv6_again_as_it_was_changes_nothing() {
    let bench = Bench::new();
    let switch = |value: &str| json!({"sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": value}});
    bench.add(&switch("1"));
    let between = bench.snapshot();
    let wrapper = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    for container in ["c1", "c2"] {
        let target = Target::new(container, &bench.container.path(), "eth0");
        let outcome =
            Plugin::ours("tuning").call_under(&wrapper, &bench.host, Verb::Add, &bench.config(switch("0")), &target);
        let error = outcome.fails_with(105);
        assert!(error.msg.contains("CAP_NET_ADMIN"), "{error:?}");
        bench.assert_same_as(&between);
    }
}

/// The runtime may come back with another configuration.
#[test]
#[cfg(target_arch = "x86_64")]
fn static_neighbours_of_an_add_that_was_killed_outlive_an_add_that_names_no_mac() {
    use netns_tests::faults::{Run, Side, changes, killed};
    let bench = Bench::new();
    let container = &bench.container;
    let plugin = Plugin::ours("tuning");
    let (keys, mac_and_no_ipv6) = (
        json!({"mac": "02:aa:00:00:00:01"}),
        json!({"mac": "02:aa:00:00:00:02", "sysctl": {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}}),
    );
    let config = bench.config(keys.clone());
    let add = Run { plugin: &plugin, host: &bench.host, verb: Verb::Add, config: &config, target: &bench.target };
    let neighbours = [("-4", "10.0.0.9"), ("-6", "fd00::ff")];
    let set = || {
        for (family, address) in neighbours {
            let at = format!("{address} lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
            container.run(&format!("ip {family} neigh replace {at}"));
        }
    };
    let shown = || neighbours.map(|(family, _)| container.run(&format!("ip {family} neigh show nud permanent")));
    set();
    let (before, had) = (bench.snapshot(), shown());
    let (all, outcome) = changes(&add);
    outcome.succeeds();
    bench.del(&keys);
    let nexts = [
        json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}),
        json!({"mtu": 1400}),
        json!({"mtu": 1200}),
        json!({}),
        mac_and_no_ipv6,
    ];
    for (next, n, side) in nexts
        .iter()
        .flat_map(|next| (0..all.len()).flat_map(move |n| [(next, n, Side::Before), (next, n, Side::Behind)]))
    {
        let met = killed(&add, n, side);
        let story = format!("killed {side:?} {n} ({met:?}), then {next}");
        bench.add(next);
        bench.add(next);
        bench.del(next);
        assert_eq!(shown(), had, "{story}");
        bench.assert_same_as(&before);
        // Whoever removes one that has not gone does not see it again.
        killed(&add, n, side);
        let is_there = !shown()[0].is_empty();
        bench.add(next);
        if is_there && *next != json!({}) {
            container.run("ip neigh del 10.0.0.9 dev eth0");
            bench.add(next);
            bench.add(&keys);
            assert_eq!(shown()[0], "", "{story}");
        }
        bench.del(&keys);
        set();
        bench.assert_same_as(&before);
    }
}

/// A DEL, or a GC, that puts the mac back costs the interface its neighbours as an ADD does.
#[test]
fn static_neighbours_that_could_not_be_put_back_are_kept_for_the_next_time() {
    let bench = Bench::new();
    let container = &bench.container;
    container.run("ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    container.run("ip -6 neigh add fd00::ff lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    let shown = || ["-4", "-6"].map(|family| container.run(&format!("ip {family} neigh show nud permanent")));
    let (before, neighbours) = (bench.snapshot(), shown());
    let (keys, nobody) = (json!({"mac": "02:aa:00:00:00:01"}), json!({"cni.dev/valid-attachments": []}));
    for (verb, given) in [(Verb::Del, &keys), (Verb::Gc, &nobody)] {
        let mut lost = 0;
        for n in 1.. {
            bench.add(&keys);
            let inject = format!("inject=sendto:error=EPERM:when={n}");
            let outcome = bench.call_under_strace(verb, given, &["-e", "trace=sendto", "-e", &inject]);
            lost += usize::from(shown() != neighbours);
            bench.call(verb, given).succeeds();
            assert_eq!(shown(), neighbours, "{verb:?} refused at {n}");
            bench.assert_same_as(&before);
            if !String::from_utf8_lossy(&outcome.stderr).contains("(INJECTED)") {
                break;
            }
        }
        assert!(lost > 0, "{verb:?}");
    }
}

/// Between a call that was killed and the next one somebody may have set a neighbour anew, or the interface may have gone.
#[test]
#[cfg(target_arch = "x86_64")]
fn of_the_neighbours_of_a_call_that_was_killed_none_takes_the_place_of_a_newer_one() {
    use netns_tests::faults::{Run, Side, killed};
    let bench = Bench::new();
    let (keys, plugin) = (json!({"mac": "02:aa:00:00:00:01"}), Plugin::ours("tuning"));
    let config = bench.config(keys.clone());
    let add = Run { plugin: &plugin, host: &bench.host, verb: Verb::Add, config: &config, target: &bench.target };
    let neighbours = [("-4", "10.0.0.9"), ("-6", "fd00::ff")];
    let set = |mac: &str| {
        for (family, address) in neighbours {
            bench.container.run(&format!("ip {family} neigh replace {address} lladdr {mac} dev eth0 nud permanent"));
        }
    };
    let shown = || neighbours.map(|(family, _)| bench.container.run(&format!("ip {family} neigh show nud permanent")));
    // The change that costs them.
    let costs = |n: &usize| {
        set("02:00:00:00:00:77");
        assert!(killed(&add, *n, Side::Behind).is_some());
        let are_lost = shown() == ["", ""];
        bench.del(&keys);
        are_lost
    };
    let n = (0..).find(costs).unwrap();
    for (side, ending) in [Side::Before, Side::Behind]
        .into_iter()
        .flat_map(|side| [&[Verb::Add, Verb::Del][..], &[Verb::Del]].map(|ending| (side, ending)))
    {
        set("02:00:00:00:00:77");
        assert!(killed(&add, n, side).is_some());
        set("02:00:00:00:00:88");
        for verb in ending {
            bench.call(*verb, &keys).succeeds();
            assert!(shown().iter().all(|text| text.contains("02:00:00:00:00:88")), "{side:?} {verb:?}: {:?}", shown());
        }
    }
    set("02:00:00:00:00:77");
    assert!(killed(&add, n, Side::Behind).is_some());
    assert_eq!(shown(), ["", ""]);
    bench.container.run("ip link del eth0");
    bench.del(&keys);
    assert!(bench.state_files().is_empty());
}

/// Whoever writes to `all` while an interface has no IPv6 writes that interface's, too, once it has it again.
#[test]
fn what_is_written_for_all_leaves_no_trace_on_an_interface_that_had_no_ipv6_meanwhile() {
    for leaf in ["forwarding", "addr_gen_mode", "disable_policy", "ignore_routes_with_linkdown", "disable_ipv6"] {
        let bench = Bench::new();
        let second_target = second_attachment(&bench);
        let own = format!("net/ipv6/conf/eth0/{leaf}");
        let shared = Target::new("c2", &bench.container.path(), "eth0");
        for (value, first_goes_first, other) in ["0", "1"]
            .into_iter()
            .flat_map(|value| [true, false].map(|first| (value, first)))
            .flat_map(|(value, first)| [&shared, &second_target].map(|other| (value, first, other)))
            .filter(|(value, _, _)| leaf != "disable_ipv6" || *value == "0")
        {
            bench.container.set_sysctl(&own, value);
            let story = format!("{leaf}, its own {value}, {} first, {other:?}", first_goes_first);
            let addresses = || ["global", "link"].map(|scope| ipv6_addresses(&bench.container, "eth0", scope));
            let sysctls = || bench.container.glance(&[Part::Sysctls]);
            let (before, had) = (sysctls(), addresses());
            let low = json!({"mtu": 1200});
            let all = bench.config(json!({"name": "second", "sysctl": {format!("net.ipv6.conf.all.{leaf}"): "1"}}));
            let call = |verb| Plugin::ours("tuning").call(&bench.host, verb, &all, other).succeeds();
            bench.add(&low);
            call(Verb::Add);
            if first_goes_first {
                bench.del(&low);
                call(Verb::Check);
                assert_eq!(bench.container.sysctl(&own), "1", "{story}, between");
                call(Verb::Del);
            } else {
                call(Verb::Del);
                bench.del(&low);
            }
            assert_eq!(before.diff(&sysctls()), "", "{story}");
            assert_eq!(addresses(), had, "{story}");
            assert!(bench.state_files().is_empty(), "{story}");
        }
    }
}
