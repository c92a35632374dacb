//! What `tuning` does to a container's namespace, and that it takes it back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use netns_tests::namespace::{End, connect};
use netns_tests::{CniError, Host, Netns, Outcome, Plugin, Snapshot, Target, Verb};
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

    fn state_files(&self) -> Vec<String> {
        self.host.run(&format!("ls -A {DATA_DIR}")).split_whitespace().map(str::to_owned).collect()
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
