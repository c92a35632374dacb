//! DEL goes on after a failure: what can be removed is removed, and all that failed is told.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Seek, Write};

use netns_tests::faults::{Fault, Run, Times, Which, answered};
use netns_tests::lab::Container;
use netns_tests::{CniError, Lab, Plugin, Verb};
use nix::errno::Errno;
use serde_json::{Value, json};

/// A host with one container, whose DEL is looked at.
struct Stage {
    plugin: Plugin,
    lab: Lab,
    container: Container,
    config: Value,
}

impl Stage {
    fn new(plugin: &str, keys: Value) -> Stage {
        let lab = Lab::new();
        let container = lab.container(2);
        let prev = container.prev_result("1.0.0");
        let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": plugin, "prevResult": prev});
        keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        Stage { plugin: Plugin::ours(plugin), lab, container, config }
    }

    #[track_caller]
    fn add(&self, plugin: &Plugin) {
        plugin.call(&self.lab.host, Verb::Add, &self.config, &self.container.target()).succeeds();
    }

    #[track_caller]
    fn del(&self) {
        self.plugin.call(&self.lab.host, Verb::Del, &self.config, &self.container.target()).succeeds();
    }

    /// The kernel refuses some of what DEL asks for: what is told of it.
    #[track_caller]
    fn refused(&self, which: Which, times: Times) -> CniError {
        let target = self.container.target();
        let (plugin, host, config) = (&self.plugin, &self.lab.host, &self.config);
        let run = Run { plugin, host, verb: Verb::Del, config, target: &target };
        let error = answered(&run, Fault::Refused(Errno::EPERM, which), times).0.fails_with(107);
        assert!(error.msg.starts_with("2 failures, the first: "), "{error:?}");
        assert_eq!(error.details.matches("the kernel refused to").count(), 2, "{error:?}");
        error
    }
}

/// The kernel gets all in one datagram, and works on behind a message that it refuses.
#[test]
fn of_bandwidth_removes_what_it_can() {
    let limits =
        json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000});
    let stage = Stage::new("bandwidth", limits);
    stage.add(&stage.plugin);
    let host = &stage.lab.host;
    let left = || {
        let (qdiscs, links) = (host.run("tc qdisc show dev veth2"), host.run("ip link"));
        [qdiscs.contains("tbf"), qdiscs.contains("ffff:"), links.contains("bwp")]
    };
    assert_eq!(left(), [true, true, true]);
    let error = stage.refused(Which::Both, Times::AtChanges(0, 0));
    let all_told = ["hooks of link veth2", "alias of link veth2"].iter().all(|what| error.details.contains(what));
    assert!(all_told, "{error:?}");
    assert_eq!(left(), [false, true, false]);
    stage.del();
    assert_eq!(left(), [false, false, false]);
}

/// What the reference has left goes in a transaction of its own.
#[test]
fn of_portmap_removes_what_it_can() {
    let ports =
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    let stage = Stage::new("portmap", ports);
    let left = || {
        let rules = stage.lab.host.run("nft list ruleset");
        [rules.contains("tcp . 8080"), rules.contains("CNI-DN-")]
    };
    let set_up = || {
        stage.add(&Plugin::reference("portmap"));
        stage.add(&stage.plugin);
        assert_eq!(left(), [true, true]);
    };
    set_up();
    stage.refused(Which::First, Times::AtChanges(0, 1));
    assert_eq!(left(), [true, true]);
    stage.del();
    assert_eq!(left(), [false, false]);
    set_up();
    let target = stage.container.target();
    let (plugin, host, config) = (&stage.plugin, &stage.lab.host, &stage.config);
    let run = Run { plugin, host, verb: Verb::Del, config, target: &target };
    answered(&run, Fault::Refused(Errno::EPERM, Which::First), Times::AtChanges(0, 0)).0.fails_with(102);
    assert_eq!(left(), [true, false]);
    stage.del();
}

/// The reference's rules go in a transaction of each version of IP.
#[test]
fn of_firewall_removes_what_it_can() {
    let stage = Stage::new("firewall", json!({}));
    let left = || {
        let rules = |table: &str| stage.lab.host.run(&format!("nft list table {table}"));
        let own = rules("inet cni_chain_firewall").contains("10.88.0.2");
        [own, rules("ip filter").contains("10.88.0.2"), rules("ip6 filter").contains("fd00:88::2")]
    };
    stage.add(&Plugin::reference("firewall"));
    stage.add(&stage.plugin);
    assert_eq!(left(), [true, true, true]);
    stage.refused(Which::First, Times::AtChanges(0, 1));
    assert_eq!(left(), [true, true, false]);
    stage.del();
    assert_eq!(left(), [false, false, false]);
}

/// What can stand where a plugin's directory was, so that it can't be opened, and the way back.
const OBSTACLES: [(&str, &str); 4] = [
    ("rm -r DIRECTORY; touch DIRECTORY", "rm DIRECTORY"),
    ("rm -r DIRECTORY; mkfifo DIRECTORY", "rm DIRECTORY"),
    ("rm -r DIRECTORY; ln -s DIRECTORY DIRECTORY", "rm DIRECTORY"),
    ("mv /run/cni /run/before; touch /run/cni", "rm /run/cni; mv /run/before /run/cni"),
];

/// DEL, or GC, removes what `is_left` sees, and says that there is a directory into which it can't look; then STATUS says no.
fn goes_without_its_directory(stage: &Stage, is_left: &dyn Fn() -> bool) {
    let host = &stage.lab.host;
    let directory = format!("/run/cni/{}", stage.config["type"].as_str().unwrap());
    let own = |verb: Verb| {
        let mut config = stage.config.clone();
        config["cniVersion"] = "1.1.0".into();
        config["cni.dev/valid-attachments"] = json!([]);
        stage.plugin.call(host, verb, &config, &stage.container.target())
    };
    for (obstacle, way_back) in
        OBSTACLES.map(|(to, back)| (to.replace("DIRECTORY", &directory), back.replace("DIRECTORY", &directory)))
    {
        for verb in [Verb::Del, Verb::Gc] {
            stage.add(&stage.plugin);
            assert!(is_left());
            host.pipe("sh", &obstacle).unwrap();
            for _ in 0..2 {
                let error = own(verb).fails_with(106);
                assert!(error.msg.contains(&directory) && error.msg.contains("can't be opened"), "{error:?}");
                assert!(!is_left(), "{verb:?} behind `{obstacle}`: {}", host.run("nft list ruleset"));
            }
            let error = own(Verb::Status).fails_with(50);
            assert!(error.msg.contains(&directory) && error.details.contains("DEL"), "{error:?}");
            host.pipe("sh", &way_back).unwrap();
            stage.del();
            own(Verb::Gc).succeeds();
            own(Verb::Status).succeeds();
            assert!(!host.run("nft list ruleset").contains(&stage.container.id), "{obstacle}");
            let files = host.pipe("sh", &format!("ls -A {directory} 2>/dev/null || true")).unwrap();
            assert_eq!(files, "", "{obstacle}");
        }
    }
}

#[test]
fn of_firewall_needs_no_directory_to_take_a_container_s_addresses_out() {
    let stage = Stage::new("firewall", json!({"ingressPolicy": "same-bridge", "antiSpoof": true}));
    goes_without_its_directory(&stage, &|| stage.lab.host.run("nft list ruleset").contains(&stage.container.id));
}

#[test]
fn of_portmap_needs_no_directory_to_close_ports_and_links() {
    let ports =
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    let stage = Stage::new("portmap", ports);
    let is_left = || {
        let host = &stage.lab.host;
        host.run("nft list ruleset").contains("tcp . 8080") || host.sysctl("net/ipv4/conf/cni0/route_localnet") != "0"
    };
    goes_without_its_directory(&stage, &is_left);
}

/// A value that can't be put back is a warning, as in the reference: the file is kept, and the next DEL has another try.
#[test]
fn of_tuning_puts_back_what_it_can_and_keeps_the_file_for_the_next() {
    let keys = json!({"mtu": 1400, "sysctl": {
        "net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.arp_notify": "1",
    }});
    let stage = Stage::new("tuning", keys);
    stage.lab.host.run("mkdir -p /run/cni/tuning");
    let (host, netns) = (&stage.lab.host, &stage.container.netns);
    let before = (host.snapshot(), netns.snapshot());
    stage.add(&stage.plugin);
    let held = ["net/core/somaxconn", "net/ipv4/conf/eth0/arp_filter"];
    let mut stdin = tempfile::tempfile().unwrap();
    write!(stdin, "{}", stage.config).unwrap();
    stdin.rewind().unwrap();
    let mut strace = host.command("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=openat2:error=EIO"]);
    strace.args(held.iter().flat_map(|name| ["-P".to_owned(), format!("/proc/sys/{name}")]));
    strace.arg(stage.plugin.path()).env("CNI_COMMAND", "DEL").env("CNI_NETNS", netns.path());
    let output =
        strace.env("CNI_CONTAINERID", &stage.container.id).env("CNI_IFNAME", "eth0").stdin(stdin).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    for name in held {
        let told =
            |line: &str| line.contains("warn: ") && line.contains(name) && line.ends_with("kept for the next DEL");
        assert!(stderr.lines().any(told), "{name}: {stderr}");
        assert_ne!(netns.sysctl(name), "0");
    }
    assert_eq!(netns.sysctl("net/ipv4/conf/eth0/arp_notify"), "0");
    assert!(netns.run("ip link show eth0").contains("mtu 1500"));
    stage.del();
    netns.assert_same_as(&before.1);
    host.assert_same_as(&before.0);
}
