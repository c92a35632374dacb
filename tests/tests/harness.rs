//! The harness keeps what it promises: without that, no other test here means anything.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::process::Command;

use netns_tests::namespace::{End, connect};
use netns_tests::traffic::wire::throughput_on_the_wire;
use netns_tests::traffic::{BRIEFLY, serve_at};
use netns_tests::{
    Chain, Fetch, Host, Lab, Netns, NoReply, Plugin, Proto, Target, Verb, bridge_conf, fetch, ptp_conf, serve,
    throughput,
};
use serde_json::json;

fn link(path: &str) -> String {
    std::fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_namespace_is_not_the_machines_and_is_empty() {
    let netns = Netns::new("a");
    assert_ne!(netns.inside(|| link("/proc/thread-self/ns/net")), link("/proc/self/ns/net"));
    assert_eq!(netns.run("ip -o link show").lines().count(), 1);
    assert!(netns.run("ip -o link show dev lo").contains("UP"));
    let child = netns.command("readlink").arg("/proc/self/ns/net").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&child.stdout).trim(), netns.inside(|| link("/proc/thread-self/ns/net")));
}

#[test]
fn another_process_can_open_a_namespace_by_its_path() {
    let netns = Netns::new("a");
    netns.run("ip link add marker0 type bridge");
    let mut child = Command::new("nsenter");
    child.arg(format!("--net={}", netns.path())).args(["ip", "link", "show", "marker0"]);
    assert!(child.status().unwrap().success());
}

#[test]
fn a_namespace_goes_with_its_value_and_takes_its_veth_along() {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    connect(End::new(&a, "eth0", &[]), End::new(&b, "eth0", &[]));
    assert!(a.has_link("eth0"));
    drop(b);
    a.wait_until("the other end has gone", || !a.has_link("eth0"));
}

#[test]
fn a_host_writes_nothing_on_the_machine() {
    let host = Host::new();
    for dir in ["/run", "/var/lib/cni", "/etc/cni"] {
        host.write(&format!("{dir}/of-a-test/file"), "x");
        assert_eq!(host.read(&format!("{dir}/of-a-test/file")), "x");
        assert!(!std::path::Path::new(&format!("{dir}/of-a-test")).exists(), "{dir} is the machine's");
    }
    // What stood beside the private directories is still there.
    assert!(host.read("/etc/passwd").contains("root"));
    assert!(std::fs::read_to_string("/proc/self/mounts").unwrap().lines().all(|l| !l.contains("/var/lib/cni")));
}

#[test]
#[should_panic(expected = "is the machine's")]
fn a_host_refuses_to_write_elsewhere() {
    Host::new().write("/tmp/of-a-test", "x");
}

#[test]
fn sysfs_of_a_host_shows_its_own_links() {
    let host = Host::new();
    host.run("ip link add onlyhere type bridge");
    let listing = host.run("ls /sys/class/net");
    let mut links: Vec<&str> = listing.split_whitespace().collect();
    links.sort_unstable();
    assert_eq!(links, ["lo", "onlyhere"]);
}

#[test]
fn a_host_forwards_only_if_told_to() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "t");
    lab.host.forward(false);
    Fetch::new(Proto::Tcp, "10.88.0.2:80").expect_nothing(&lab.client);
    Fetch::new(Proto::Udp, "[fd00:88::2]:80").expect_nothing(&lab.client);
    lab.host.forward(true);
    Fetch::new(Proto::Tcp, "10.88.0.2:80").expect(&lab.client, "t");
    Fetch::new(Proto::Udp, "[fd00:88::2]:80").expect(&lab.client, "t");
}

#[test]
fn tokens_come_back_over_every_protocol_and_family_with_the_peer() {
    let lab = Lab::new();
    let (container, other) = (lab.container(2), lab.container(3));
    let (_one, _two) = (serve(&container.netns, 80, "two"), serve(&other.netns, 80, "three"));
    for proto in Proto::ALL {
        for (address, peer) in [("10.88.0.2:80", "192.0.2.2"), ("[fd00:88::2]:80", "2001:db8:2::2")] {
            let reply = fetch(&lab.client, proto, address).unwrap();
            assert_eq!((reply.token.as_str(), reply.peer.ip().to_string().as_str()), ("two", peer));
        }
        assert_eq!(fetch(&lab.client, proto, "10.88.0.3:80").unwrap().token, "three");
    }
}

#[test]
fn a_source_address_and_port_can_be_chosen() {
    let lab = Lab::new();
    let _server = serve(&lab.host, 80, "t");
    for proto in Proto::ALL {
        let reply = Fetch::new(proto, "192.0.2.1:80").source("192.0.2.2:4711").expect(&lab.client, "t");
        assert_eq!(reply.peer, "192.0.2.2:4711".parse::<SocketAddr>().unwrap());
    }
}

#[test]
fn silence_and_refusal_are_told_apart() {
    let lab = Lab::new();
    for proto in Proto::ALL {
        assert_eq!(Fetch::new(proto, "192.0.2.1:81").expect_nothing(&lab.client), NoReply::Refused);
    }
    lab.host.nft("table ip t { chain c { type filter hook input priority 0; meta l4proto { tcp, udp } drop; }; }");
    for proto in Proto::ALL {
        let error = Fetch::new(proto, "192.0.2.1:81").within(BRIEFLY).from(&lab.client);
        assert_eq!(error, Err(NoReply::TimedOut), "{proto}");
        let with_source = Fetch::new(proto, "192.0.2.1:81").source("192.0.2.2:0").within(BRIEFLY).from(&lab.client);
        assert_eq!(with_source, Err(NoReply::TimedOut), "{proto}");
    }
}

#[test]
#[should_panic(expected = "must not be answered")]
fn an_answer_that_must_not_come_fails_the_test() {
    let lab = Lab::new();
    let _server = serve(&lab.host, 80, "t");
    let fetch = Fetch::new(Proto::Udp, "192.0.2.1:80");
    // Neighbours are known and the server is awake, so that the next answer comes at once.
    fetch.expect(&lab.client, "t");
    fetch.expect_nothing(&lab.client);
}

#[test]
fn a_server_frees_its_port_when_dropped() {
    let host = Host::new();
    let at: SocketAddr = "127.0.0.1:80".parse().unwrap();
    drop(serve_at(&host, &[at], &Proto::ALL, "one"));
    let _two = serve_at(&host, &[at], &Proto::ALL, "two");
    for proto in Proto::ALL {
        Fetch::new(proto, "127.0.0.1:80").expect(&host, "two");
    }
}

#[test]
fn throughput_sees_a_limit_and_only_a_limit() {
    let lab = Lab::without_bridge();
    let free = throughput(&lab.client, &lab.host, Proto::Tcp, "192.0.2.1:5001", 1).bits_per_second();
    assert!(free > 100e6, "without a limit only {free} bit/s");
    lab.client.run("tc qdisc add dev eth0 root tbf rate 10mbit burst 20kb latency 50ms");
    for (proto, address) in [(Proto::Tcp, "192.0.2.1:5001"), (Proto::Udp, "[2001:db8:2::1]:5001")] {
        let measured = throughput(&lab.client, &lab.host, proto, address, 2);
        measured.assert_limited(10e6, 20e3 * 8.0);
        assert_eq!(measured.buckets.len(), 20);
    }
    let held_to_less = std::panic::catch_unwind(|| {
        throughput(&lab.client, &lab.host, Proto::Tcp, "192.0.2.1:5001", 1).assert_limited(5e6, 20e3 * 8.0);
    });
    assert!(held_to_less.is_err(), "10 Mbit/s are more than 5 Mbit/s");
    // The other direction has no limit.
    let free = throughput(&lab.host, &lab.client, Proto::Tcp, "192.0.2.2:5001", 1).bits_per_second();
    assert!(free > 100e6, "without a limit only {free} bit/s");
}

#[test]
fn what_is_counted_on_the_wire_is_what_a_limit_has_let_through() {
    let lab = Lab::without_bridge();
    lab.client.run("tc qdisc add dev eth0 root tbf rate 20mbit burst 20kb latency 50ms");
    let sent = || {
        let shown = lab.client.run("tc -s qdisc show dev eth0 root");
        shown.split_once("Sent ").unwrap().1.split_once(' ').unwrap().0.parse::<f64>().unwrap()
    };
    for (proto, address) in [(Proto::Tcp, "192.0.2.1:5001"), (Proto::Udp, "[2001:db8:2::1]:5001")] {
        let before = sent();
        let frames = throughput_on_the_wire(&lab.client, &lab.host, proto, address, 2);
        // The flow lasts a little longer than it is watched.
        let share = frames.bits_per_second() * 2.0 / ((sent() - before) * 8.0);
        assert!((0.85..=1.0).contains(&share), "{proto}: {share}");
        assert!((0.5..1.02).contains(&(frames.fullest_second() / 20e6)), "{proto}: {}", frames.fullest_second());
    }
}

#[test]
fn a_snapshot_is_equal_until_something_changes_whatever_the_traffic() {
    let lab = Lab::new();
    let container = lab.container(2);
    lab.host.nft("table ip t { chain c { type filter hook forward priority 0; counter; }; }");
    lab.host.drop_forwarded();
    lab.host.run("iptables -P FORWARD ACCEPT");
    let before = lab.host.snapshot();
    let _server = serve(&container.netns, 80, "t");
    fetch(&lab.client, Proto::Tcp, "10.88.0.2:80").unwrap();
    lab.host.assert_same_as(&before);
}

#[test]
fn a_snapshot_sees_every_kind_of_change() {
    let host = Host::new();
    host.run("ip link add br0 type bridge");
    host.run("tc qdisc add dev lo clsact");
    host.run("ip link add br1 type bridge");
    host.run("tc qdisc add dev br1 ingress");
    let changes: [(&str, &dyn Fn()); 10] = [
        ("nft", &|| host.nft("add table inet left_behind")),
        ("iptables", &|| drop(host.run("iptables -A INPUT -j ACCEPT -m comment --comment left_behind"))),
        ("qdisc", &|| drop(host.run("tc qdisc add dev br0 root tbf rate 1mbit burst 20kb latency 50ms"))),
        ("filter", &|| {
            host.run("tc filter add dev br1 parent ffff: protocol all u32 match u32 0 0 flowid 1:1");
        }),
        ("filter of clsact", &|| {
            host.run("tc filter add dev lo egress protocol all u32 match u32 0 0 flowid 1:1");
        }),
        ("link", &|| drop(host.run("ip link add left_behind type ifb"))),
        ("alias", &|| drop(host.run("ip link set br0 alias left_behind"))),
        ("address", &|| drop(host.run("ip address add 203.0.113.1/32 dev lo"))),
        ("sysctl", &|| host.set_sysctl("net/ipv4/conf/br0/route_localnet", "1")),
        ("file", &|| host.write("/run/cni/left_behind", "x")),
    ];
    for (kind, change) in changes {
        let before = host.snapshot();
        host.assert_same_as(&before);
        change();
        let diff = before.diff(&host.snapshot());
        assert!(!diff.is_empty(), "{kind} wasn't seen");
    }
}

#[test]
fn a_diff_of_a_long_line_shows_the_words_that_differ() {
    let host = Host::new();
    host.run("ip link add br0 type bridge");
    let before = host.snapshot();
    host.run("ip link set br0 type bridge ageing_time 100");
    let diff = before.diff(&host.snapshot());
    assert!(diff.contains("ageing_time [- 30000] [+ 100]"), "{diff}");
    assert!(diff.len() < 200, "{diff}");
}

fn main_plugin_makes_a_reachable_container(conf: serde_json::Value) {
    let (lab, netns) = (Lab::without_bridge(), Netns::new("container"));
    let target = Target::new("container-1", &netns.path(), "eth0");
    let mut chain = Chain::of("1.0.0", "net", &[conf]);
    let result = chain.add(&lab.host, &target);
    netns.settle();
    let _server = serve(&netns, 80, "t");
    for address in ["10.99.0.2:80", "[fd00:99::2]:80"] {
        Fetch::new(Proto::Tcp, address).expect(&lab.client, "t");
    }
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(2));
    chain.check(&lab.host, &target).iter().for_each(|outcome| drop(outcome.succeeds()));
    chain.del(&lab.host, &target);
    assert!(!netns.has_link("eth0"));
}

#[test]
fn the_bridge_plugin_makes_a_reachable_container() {
    main_plugin_makes_a_reachable_container(bridge_conf("cni0", &["10.99.0.0/24", "fd00:99::/64"]));
}

#[test]
fn the_ptp_plugin_makes_a_reachable_container() {
    main_plugin_makes_a_reachable_container(ptp_conf(&["10.99.0.0/24", "fd00:99::/64"]));
}

#[test]
fn a_labs_container_passes_a_real_chained_plugin() {
    let lab = Lab::new();
    let container = lab.container(2);
    let portmap = Plugin::reference("portmap");
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "portmap", "backend": "iptables",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": container.prev_result("1.0.0"),
    });
    portmap.call(&lab.host, Verb::Add, &config, &container.target()).succeeds();
    let _server = serve(&container.netns, 80, "t");
    for address in ["192.0.2.1:8080", "[2001:db8:2::1]:8080"] {
        Fetch::new(Proto::Tcp, address).expect(&lab.client, "t");
    }
}

#[test]
fn nothing_outlives_a_killed_process() {
    // The test binary runs itself: `hold_a_host_until_killed` makes a host and says which namespace it is.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_a_host_until_killed", "--nocapture"])
        .env("NETNS_TESTS_HOLD", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let inode = lines.find_map(|line| line.unwrap().split_once("holding ").map(|(_, inode)| inode.to_owned())).unwrap();
    assert!(namespaces().contains(&inode), "{inode} is there while the process lives");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!namespaces().contains(&inode), "{inode} is still there");
}

#[test]
fn hold_a_host_until_killed() {
    if std::env::var_os("NETNS_TESTS_HOLD").is_none() {
        return;
    }
    let host = Host::new();
    println!("holding {}", host.inside(|| link("/proc/thread-self/ns/net")));
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// Every network namespace that a process on this machine is in or holds a descriptor of, as `net:[inode]`.
fn namespaces() -> std::collections::BTreeSet<String> {
    let below = |dir: std::path::PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    below("/proc".into())
        .flat_map(|process| below(process.join("fd")).chain(below(process.join("ns"))))
        .filter_map(|entry| std::fs::read_link(entry).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| target.starts_with("net:["))
        .collect()
}
