//! The bandwidth plugin in namespaces, with real traffic.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod interrupted;
mod meddled;
mod owners;
mod rates;

use common::Attachment;
use common::link::attributes::mac_text;
use netns_tests::{
    Container, End, Lab, Measured, Netns, Outcome, Plugin, Proto, Snapshot, Target, Verb, connect, throughput,
};
use serde_json::{Value, json};

/// containerd's filler for a burst that nobody has set.
const SENTINEL: u64 = u32::MAX as u64;

/// Payload of a full TCP segment over its frame with header: 1448 of 1514 bytes.
const TCP_SHARE: f64 = 1448.0 / 1514.0;

/// Payload of the harness's datagrams over their frames: 1400 of 1442 bytes.
const UDP_SHARE: f64 = 1400.0 / 1442.0;

/// A remote network beside the lab's client's.
const OTHER: [&str; 2] = ["198.51.100.2", "2001:db8:51::2"];

/// A lab with one container and a configuration for it.
struct Case {
    lab: Lab,
    container: Container,
    keys: Value,
}

impl Case {
    #[track_caller]
    fn new(keys: Value) -> Case {
        let lab = Lab::new();
        let container = lab.container(2);
        Case { lab, container, keys }
    }

    fn both(rate: u64, burst: u64) -> Case {
        Case::new(limits(rate, burst))
    }

    /// The same container with other keys.
    fn keyed(mut self, keys: Value) -> Case {
        self.keys = keys;
        self
    }

    fn config(&self) -> Value {
        config("1.1.0", &self.keys, Some(self.container.prev_result("1.1.0")))
    }

    #[track_caller]
    fn call(&self, verb: Verb) -> Outcome {
        self.call_with(verb, &self.config(), &self.container.target())
    }

    #[track_caller]
    fn call_with(&self, verb: Verb, config: &Value, target: &Target) -> Outcome {
        Plugin::ours("bandwidth").call(&self.lab.host, verb, config, target)
    }

    /// DEL, and then the host is as it was before.
    #[track_caller]
    fn del_leaves(&self, before: &Snapshot) {
        self.call(Verb::Del).succeeds();
        self.lab.host.assert_same_as(before);
    }

    /// GC with these living attachments.
    #[track_caller]
    fn gc(&self, live: Value) {
        let mut config = config("1.1.0", &json!({}), None);
        config["cni.dev/valid-attachments"] = live;
        self.call_with(Verb::Gc, &config, &Target::new("", "", "")).succeeds();
    }

    #[track_caller]
    fn tc(&self, what: &str) -> String {
        self.lab.host.run(&format!("tc {what}"))
    }

    #[track_caller]
    fn ingress(&self, proto: Proto, seconds: u32) -> Measured {
        let address = format!("{}:5001", self.container.addresses[0]);
        throughput(&self.lab.client, &self.container.netns, proto, &address, seconds)
    }

    #[track_caller]
    fn egress(&self, proto: Proto, seconds: u32) -> Measured {
        throughput(&self.container.netns, &self.lab.client, proto, "192.0.2.2:5002", seconds)
    }

    /// A machine in another network behind the host.
    #[track_caller]
    fn other_remote(&self) -> Netns {
        let other = Netns::new("other");
        let host = ["198.51.100.1/24", "2001:db8:51::1/64"];
        let own = ["198.51.100.2/24", "2001:db8:51::2/64"];
        connect(End::new(&self.lab.host, "ext1", &host), End::new(&other, "eth0", &own));
        other.route("default", "198.51.100.1");
        other.route("default", "2001:db8:51::1");
        other
    }

    /// Throughput of one second by TCP with `remote`, whose addresses are given: both directions in both families.
    #[track_caller]
    fn four_ways(&self, remote: &Netns, addresses: [&str; 2]) -> [f64; 4] {
        let bracket = |address: &str, port: u16| match address.contains(':') {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        };
        let container = &self.container;
        let [v4, v6] = addresses;
        let [own_v4, own_v6] = &container.addresses;
        let into =
            |own: &str| throughput(remote, &container.netns, Proto::Tcp, &bracket(own, 5003), 1).bits_per_second();
        let out = |of: &str| throughput(&container.netns, remote, Proto::Tcp, &bracket(of, 5004), 1).bits_per_second();
        [into(own_v4), into(own_v6), out(v4), out(v6)]
    }
}

fn limits(rate: u64, burst: u64) -> Value {
    json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst})
}

fn config(version: &str, keys: &Value, prev: Option<Value>) -> Value {
    let mut config = json!({"cniVersion": version, "name": "net", "type": "bandwidth"});
    let object = config.as_object_mut().unwrap();
    object.extend(keys.as_object().cloned().unwrap_or_default());
    object.extend(prev.map(|prev| ("prevResult".to_string(), prev)));
    config
}

/// The name of the ifb in a result.
#[track_caller]
fn ifb(result: &Value) -> String {
    let interfaces = result["interfaces"].as_array().unwrap();
    let ifb = interfaces.iter().find(|i| i["name"].as_str().unwrap().starts_with("bwp"));
    ifb.unwrap_or_else(|| panic!("no ifb in {result}"))["name"].as_str().unwrap().to_owned()
}

/// Above, the rate holds to a few per cent; below, there is room for a machine on which the sender seldom has its turn: what
/// waits lasts for 25 ms only.
#[track_caller]
fn holds(measured: &Measured, rate: f64, share: f64) {
    let (mean, first) = (measured.bits_per_second() / (rate * share), measured.first_second() / (rate * share));
    assert!((0.3..=1.03).contains(&mean), "mean is {mean:.3} of the wire rate: {measured:?}");
    assert!(first <= 1.10, "the first second has {first:.3} of the wire rate: {measured:?}");
}

#[test]
fn a_limit_holds_in_both_directions_from_the_first_second_with_the_runtimes_filler_burst() {
    let case = Case::both(10_000_000, SENTINEL);
    case.call(Verb::Add).succeeds();
    holds(&case.ingress(Proto::Tcp, 3), 10e6, TCP_SHARE);
    holds(&case.egress(Proto::Tcp, 3), 10e6, TCP_SHARE);
    holds(&case.ingress(Proto::Udp, 3), 10e6, UDP_SHARE);
    holds(&case.egress(Proto::Udp, 3), 10e6, UDP_SHARE);
}

#[test]
fn directions_have_limits_of_their_own() {
    let case = Case::new(json!({"runtimeConfig": {"bandwidth": {
        "IngressRate": 2_000_000, "IngressBurst": SENTINEL, "EgressRate": 40_000_000, "EgressBurst": SENTINEL,
    }}}));
    case.call(Verb::Add).succeeds();
    holds(&case.ingress(Proto::Udp, 3), 2e6, UDP_SHARE);
    holds(&case.egress(Proto::Udp, 2), 40e6, UDP_SHARE);
}

#[test]
fn a_burst_that_someone_has_set_is_honoured() {
    // 100 kB at 400 kbit/s: two seconds' worth at once.
    let case = Case::both(400_000, 800_000);
    case.call(Verb::Add).succeeds();
    let measured = case.ingress(Proto::Udp, 2);
    let first = measured.first_second() / (4e5 * UDP_SHARE);
    assert!((2.5..=3.3).contains(&first), "the burst and a second's rate: {first:.2} of the rate: {measured:?}");
}

#[test]
fn del_restores_the_host_and_may_be_repeated() {
    let case = Case::both(10_000_000, 400_000);
    let before = case.lab.host.snapshot();
    let result = case.call(Verb::Add).succeeds();
    assert!(case.lab.host.has_link(&ifb(&result)));
    case.call(Verb::Check).succeeds();
    case.call(Verb::Del).succeeds();
    case.lab.host.assert_same_as(&before);
    case.call(Verb::Del).succeeds();
    case.lab.host.assert_same_as(&before);
}

#[test]
fn del_without_netns_and_prev_result_leaves_a_living_veth_as_it_was() {
    for keys in [
        limits(10_000_000, SENTINEL),
        json!({"ingressRate": 1_000_000, "ingressBurst": 80_000}),
        json!({"egressRate": 1_000_000, "egressBurst": 80_000, "unshapedSubnets": ["198.51.100.0/24"]}),
    ] {
        let case = Case::new(keys);
        let before = case.lab.host.snapshot();
        case.call(Verb::Add).succeeds();
        let config = config("1.1.0", &case.keys, None);
        case.call_with(Verb::Del, &config, &case.container.target().without_netns()).succeeds();
        case.lab.host.assert_same_as(&before);
        assert!(case.egress(Proto::Tcp, 1).bits_per_second() > 50e6, "nothing limits, and nothing swallows");
    }
}

#[test]
fn a_link_that_somebody_else_has_labelled_keeps_its_label_and_is_found_all_the_same() {
    let case = Case::both(10_000_000, SENTINEL);
    case.lab.host.run("ip link set veth2 alias somebody's");
    let before = case.lab.host.snapshot();
    case.call(Verb::Add).succeeds();
    case.call(Verb::Add).succeeds();
    case.call(Verb::Check).succeeds();
    let config = config("1.1.0", &case.keys, None);
    case.call_with(Verb::Del, &config, &case.container.target().without_netns()).succeeds();
    case.lab.host.assert_same_as(&before);
}

#[test]
fn del_of_a_configuration_that_no_longer_validates_removes_all() {
    let case = Case::both(10_000_000, 400_000);
    let before = case.lab.host.snapshot();
    case.call(Verb::Add).succeeds();
    let case = case.keyed(json!({"ingressRate": 1, "ingressBurst": 0, "latency": 0}));
    case.call(Verb::Del).succeeds();
    case.lab.host.assert_same_as(&before);
}

#[test]
fn del_after_the_veth_has_gone_removes_the_ifb() {
    let case = Case::both(10_000_000, 400_000);
    let result = case.call(Verb::Add).succeeds();
    case.lab.host.run("ip link delete veth2");
    case.call_with(Verb::Del, &config("1.1.0", &json!({}), None), &case.container.target().without_netns()).succeeds();
    assert!(!case.lab.host.has_link(&ifb(&result)));
}

#[test]
fn no_limits_pass_the_prev_result_through_and_open_nothing() {
    let case = Case::new(json!({"ingressRate": 0, "ingressBurst": 0}));
    // A namespace that can't be opened: nothing is looked up.
    let target = Target::new("c", "/nonexistent/netns", "eth0");
    let result = case.call_with(Verb::Add, &case.config(), &target).succeeds();
    let prev = case.container.prev_result("1.1.0");
    assert_eq!(result["interfaces"], prev["interfaces"]);
    assert_eq!(result["ips"], prev["ips"]);
    case.call_with(Verb::Check, &case.config(), &target).succeeds();
}

#[test]
fn the_ifb_is_added_to_the_result_as_the_reference_names_it() {
    let case = Case::both(10_000_000, 400_000);
    let ours = case.call(Verb::Add).succeeds();
    let ours = ours["interfaces"].as_array().unwrap().last().unwrap().clone();
    case.call(Verb::Del).succeeds();
    let old = config("1.0.0", &case.keys, Some(case.container.prev_result("1.0.0")));
    let theirs = Plugin::reference("bandwidth").call(&case.lab.host, Verb::Add, &old, &case.container.target());
    assert_eq!(ours["name"], theirs.succeeds()["interfaces"].as_array().unwrap().last().unwrap()["name"]);
    let shown = case.lab.host.run(&format!("ip link show {}", ours["name"].as_str().unwrap()));
    assert_eq!(ours.as_object().unwrap().len(), 2, "name and mac: {ours}");
    assert!(shown.contains("mtu 1500"), "{shown}");
}

#[test]
fn the_mac_in_the_result_is_the_ifbs() {
    let case = Case::both(10_000_000, 400_000);
    let result = case.call(Verb::Add).succeeds();
    let shown = case.lab.host.run(&format!("ip link show {}", ifb(&result)));
    let mac = result["interfaces"].as_array().unwrap().last().unwrap()["mac"].as_str().unwrap().to_owned();
    assert!(shown.contains(&mac), "{mac} in {shown}");
}

#[test]
fn repeating_add_changes_the_rate_in_place_without_dropping_the_queue() {
    let case = Case::both(5_000_000, SENTINEL);
    let result = case.call(Verb::Add).succeeds();
    case.ingress(Proto::Udp, 1);
    let sent = |case: &Case| {
        let shown = case.tc("-s qdisc show dev veth2 root");
        let sent = shown.split_once("Sent ").unwrap().1.split_once(' ').unwrap().0.parse::<u64>().unwrap();
        (sent, shown)
    };
    // Upwards, with another wait as well, and between bursts that are larger than any packet.
    let next = [
        limits(20_000_000, SENTINEL),
        with(limits(20_000_000, SENTINEL), "latency", json!(50)),
        limits(1_000_000_000, SENTINEL),
        limits(200_000_000, SENTINEL),
    ];
    let (mut case, mut before) = (case, 300_000);
    for keys in next {
        case = case.keyed(keys);
        assert_eq!(case.call(Verb::Add).succeeds(), result);
        case.call(Verb::Check).succeeds();
        let (after, shown) = sent(&case);
        assert!(after >= before, "a new qdisc counts from 0: {shown}");
        before = after;
    }
    case = case.keyed(limits(5_000_000, SENTINEL));
    case.call(Verb::Add).succeeds();
    case.call(Verb::Check).succeeds();
    holds(&case.ingress(Proto::Udp, 2), 5e6, UDP_SHARE);
    holds(&case.egress(Proto::Udp, 2), 5e6, UDP_SHARE);
}

#[test]
fn there_is_no_moment_without_a_limit_while_it_is_changed() {
    let case = Case::both(10_000_000, SENTINEL);
    case.call(Verb::Add).succeeds();
    let variants = [
        limits(10_000_000, SENTINEL),
        with(limits(10_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24", "2001:db8:51::/64"])),
        with(limits(9_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.0.0/16"])),
        with(limits(10_000_000, SENTINEL), "shapedSubnets", json!(["192.0.2.0/24"])),
    ];
    let configs: Vec<Value> =
        variants.iter().map(|keys| config("1.1.0", keys, Some(case.container.prev_result("1.1.0")))).collect();
    let (measured, changed) = std::thread::scope(|scope| {
        let flow = scope.spawn(|| case.ingress(Proto::Udp, 3));
        let mut changed = 0;
        while !flow.is_finished() {
            let config = &configs[changed % configs.len()];
            case.call_with(Verb::Add, config, &case.container.target()).succeeds();
            changed += 1;
            std::thread::sleep(std::time::Duration::from_millis(60));
        }
        (flow.join().unwrap(), changed)
    });
    assert!(changed > 8, "{changed}");
    // Each change may grant a new bucket of 12.5 kB, a tenth of the rate's 100 ms each.
    let most = *measured.buckets.iter().max().unwrap() as f64 * 80.0 / 10e6;
    assert!(most < 2.0, "100 ms had {most:.2} times the rate in {changed} changes: {measured:?}");
}

fn with(mut keys: Value, key: &str, value: Value) -> Value {
    keys[key] = value;
    keys
}

#[test]
fn unshaped_subnets_keep_line_rate_and_all_else_is_limited() {
    let keys = with(limits(8_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24", "2001:db8:51::/64"]));
    let case = Case::new(keys);
    let before = case.lab.host.snapshot();
    let other = case.other_remote();
    case.call(Verb::Add).succeeds();
    case.call(Verb::Check).succeeds();
    let exempt = case.four_ways(&other, OTHER);
    assert!(exempt.iter().all(|rate| *rate > 80e6), "{exempt:?}");
    let limited = case.four_ways(&case.lab.client, netns_tests::lab::CLIENT);
    assert!(limited.iter().all(|rate| (4e6..9.5e6).contains(rate)), "{limited:?}");
    case.call(Verb::Del).succeeds();
    case.lab.host.run("ip link delete ext1");
    case.lab.host.assert_same_as(&before);
}

#[test]
fn shaped_subnets_are_limited_and_all_else_keeps_line_rate() {
    let keys = with(limits(8_000_000, SENTINEL), "shapedSubnets", json!(["198.51.100.0/24", "2001:db8:51::/64"]));
    let case = Case::new(keys);
    let other = case.other_remote();
    case.call(Verb::Add).succeeds();
    case.call(Verb::Check).succeeds();
    let limited = case.four_ways(&other, OTHER);
    assert!(limited.iter().all(|rate| (4e6..9.5e6).contains(rate)), "{limited:?}");
    let free = case.four_ways(&case.lab.client, netns_tests::lab::CLIENT);
    assert!(free.iter().all(|rate| *rate > 80e6), "{free:?}");
}

#[test]
fn a_second_interface_of_a_container_on_the_network_has_limits_of_its_own() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    let first = case.call(Verb::Add).succeeds();
    let second = ["10.89.0.1/24", "fd00:89::1/64"];
    connect(End::new(&case.lab.host, "vethb", &second), End::new(&case.container.netns, "eth1", &["10.89.0.2/24"]));
    let target = Target { ifname: "eth1".into(), ..case.container.target() };
    let keys = limits(4_000_000, SENTINEL);
    let config = config("1.1.0", &keys, Some(json!({"cniVersion": "1.1.0", "interfaces": [{"name": "vethb"}]})));
    let other = case.call_with(Verb::Add, &config, &target).succeeds();
    assert_ne!(ifb(&first), ifb(&other));
    holds(&throughput(&case.container.netns, &case.lab.host, Proto::Udp, "10.89.0.1:5005", 2), 4e6, UDP_SHARE);
    holds(&case.egress(Proto::Udp, 2), 10e6, UDP_SHARE);
    case.call_with(Verb::Del, &config, &target).succeeds();
    case.call_with(Verb::Del, &config, &target).succeeds();
    case.call(Verb::Check).succeeds();
    holds(&case.egress(Proto::Udp, 2), 10e6, UDP_SHARE);
    // The second again, the first away: each keeps its own.
    case.call_with(Verb::Add, &config, &target).succeeds();
    case.call(Verb::Del).succeeds();
    case.call_with(Verb::Check, &config, &target).succeeds();
    case.call_with(Verb::Add, &config, &target).succeeds();
    case.call_with(Verb::Del, &config, &target).succeeds();
    case.lab.host.run("ip link delete vethb");
    case.lab.host.assert_same_as(&before);
}

#[test]
fn hooks_and_filters_of_others_are_used_and_left() {
    for hooks in ["clsact", "ingress"] {
        let case = Case::both(10_000_000, SENTINEL);
        let host = &case.lab.host;
        host.run(&format!("tc qdisc add dev veth2 {hooks}"));
        // Another's filter that looks at every packet and lets it go on to the next.
        host.run("ip link add sink type ifb");
        host.run("ip link set sink up");
        host.run(
            "tc filter add dev veth2 ingress prio 7 protocol ip u32 match u32 0 0 action mirred egress mirror dev sink continue",
        );
        // And kinds that can't be understood here: a program that matches nothing, a hash table.
        host.write("/run/match-nothing", "1,6 0 0 0,\n");
        host.run("tc filter add dev veth2 ingress prio 8 protocol all bpf bytecode-file /run/match-nothing");
        host.run("tc filter add dev veth2 ingress prio 9 protocol ip handle 1: u32 divisor 16");
        let before = host.snapshot();
        let add = case.call(Verb::Add);
        add.succeeds();
        assert_eq!(add.stderr, "");
        case.call(Verb::Check).succeeds();
        holds(&case.egress(Proto::Udp, 2), 10e6, UDP_SHARE);
        assert!(case.tc("filter show dev veth2 ingress").contains("pref 7 "));
        case.call(Verb::Del).succeeds();
        host.assert_same_as(&before);
        assert!(case.tc("filter show dev veth2 ingress").contains("pref 7 "), "another's filter is left");
    }
}

/// The kernel gives to whoever names no priority one just below the lowest that is there: ours.
#[test]
fn a_filter_of_somebody_else_that_comes_later_is_left_with_the_hooks() {
    let case = Case::both(10_000_000, SENTINEL);
    case.call(Verb::Add).succeeds();
    case.tc("filter add dev veth2 ingress protocol ip u32 match ip dst 192.0.2.77 flowid 1:5");
    for verb in [Verb::Check, Verb::Add, Verb::Check, Verb::Del, Verb::Add, Verb::Del] {
        case.call(verb).succeeds();
        let shown = case.tc("filter show dev veth2 ingress");
        assert!(shown.contains("flowid 1:5"), "after {verb:?}: {shown}");
    }
}

#[test]
fn a_root_qdisc_of_somebody_else_is_named_and_left() {
    let case = Case::both(10_000_000, SENTINEL);
    // Not htb: it counts packets in its options.
    case.tc("qdisc add dev veth2 root handle 8001: bfifo limit 100000");
    let before = case.lab.host.snapshot();
    let error = case.call(Verb::Add).fails_with(105);
    assert!(error.msg.contains("veth2") && error.msg.contains("bfifo 8001:"), "{error:?}");
    case.lab.host.assert_same_as(&before);
}

#[test]
fn a_bucket_made_by_hand_in_the_references_place_is_named_and_left_by_add_and_del() {
    let case = Case::both(10_000_000, 400_000);
    case.tc("qdisc add dev veth2 root handle 1: tbf rate 20mbit burst 50000 limit 100000");
    let before = case.lab.host.snapshot();
    let error = case.call(Verb::Add).fails_with(105);
    assert!(error.msg.contains("veth2") && error.msg.contains("tbf rate 20Mbit"), "{error:?}");
    case.lab.host.assert_same_as(&before);
    case.call(Verb::Del).succeeds();
    case.lab.host.assert_same_as(&before);
    // Beside limits of ours, too.
    let egress = case.keyed(json!({"egressRate": 5_000_000, "egressBurst": 400_000}));
    egress.call(Verb::Add).succeeds();
    egress.keyed(limits(10_000_000, 400_000)).del_leaves(&before);
}

#[test]
fn hooks_go_with_del_even_if_the_filters_in_them_were_deleted_by_hand() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    for repaired in [false, true] {
        case.call(Verb::Add).succeeds();
        case.tc("filter delete dev veth2 ingress");
        if repaired {
            case.call(Verb::Add).succeeds();
            case.tc("filter delete dev veth2 ingress");
        }
        case.call(Verb::Del).succeeds();
        case.lab.host.assert_same_as(&before);
    }
    // Those of somebody else stay.
    case.tc("qdisc add dev veth2 clsact");
    let before = case.lab.host.snapshot();
    case.call(Verb::Add).succeeds();
    case.tc("filter delete dev veth2 ingress");
    case.del_leaves(&before);
}

/// Whether the limits are inside or outside, after a change of mind there is one set of them.
#[test]
fn limits_that_move_into_the_container_or_out_of_it_leave_nothing_where_they_were() {
    let case = Case::both(10_000_000, SENTINEL);
    let (host, netns) = (&case.lab.host, &case.container.netns);
    let before = (host.snapshot(), netns.snapshot());
    let prev = || Some(case.container.prev_result("1.1.0"));
    let outside = config("1.1.0", &case.keys, prev());
    let inside = config("1.1.0", &with(case.keys.clone(), "inContainer", json!(true)), prev());
    let call = |verb, config: &Value| case.call_with(verb, config, &case.container.target());
    for [first, second] in [[&outside, &inside], [&inside, &outside]] {
        call(Verb::Add, first).succeeds();
        let error = call(Verb::Check, second).fails_with(101);
        assert!(error.details.contains("expected no limits, found those of \"net/container-2/eth0\""), "{error:?}");
        call(Verb::Add, second).succeeds();
        call(Verb::Check, second).succeeds();
        match second == &inside {
            true => host.assert_same_as(&before.0),
            false => netns.assert_same_as(&before.1),
        }
        holds(&case.ingress(Proto::Udp, 2), 10e6, UDP_SHARE);
        holds(&case.egress(Proto::Udp, 2), 10e6, UDP_SHARE);
        call(Verb::Del, second).succeeds();
        host.assert_same_as(&before.0);
        netns.assert_same_as(&before.1);
    }
}

#[test]
fn an_ingress_qdisc_can_not_exempt_what_the_link_transmits_and_that_is_said() {
    let case = Case::new(with(limits(10_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24"])));
    case.tc("qdisc add dev veth2 ingress");
    let before = case.lab.host.snapshot();
    let error = case.call(Verb::Add).fails_with(105);
    assert!(error.msg.contains("clsact"), "{error:?}");
    case.lab.host.assert_same_as(&before);
}

#[test]
fn an_add_that_fails_halfway_leaves_nothing() {
    let case = Case::both(10_000_000, SENTINEL);
    // Another's filters sit where ours go, for another protocol: the kernel refuses ours, the last step but one.
    case.tc("qdisc add dev veth2 clsact");
    for priority in (0..16).map(|bank| 0xf102 + bank * 0x10) {
        case.tc(&format!(
            "filter add dev veth2 ingress prio {priority} protocol arp u32 match u32 0 0 action mirred egress mirror dev ext0"
        ));
    }
    let before = case.lab.host.snapshot();
    let error = case.call(Verb::Add).fails_with(102);
    assert!(error.msg.contains("filter"), "{error:?}");
    case.lab.host.assert_same_as(&before);
    // The same over limits that are in force: they stay as they were.
    let ingress_only = Case { keys: json!({"ingressRate": 5_000_000, "ingressBurst": 400_000}), ..case };
    ingress_only.call(Verb::Add).succeeds();
    let before = ingress_only.lab.host.snapshot();
    let both = config("1.1.0", &limits(10_000_000, SENTINEL), Some(ingress_only.container.prev_result("1.1.0")));
    ingress_only.call_with(Verb::Add, &both, &ingress_only.container.target()).fails_with(102);
    ingress_only.lab.host.assert_same_as(&before);
}

#[test]
fn check_names_every_deviation_and_add_repairs_it() {
    let case = Case::new(json!({
        "ingressRate": 10_000_000, "ingressBurst": 400_000, "egressRate": 20_000_000, "egressBurst": 400_000,
    }));
    let ifb = ifb(&case.call(Verb::Add).succeeds());
    let deviations = [
        (
            "tc qdisc delete dev veth2 root",
            "root qdisc of link veth2 (ingress): expected tbf rate 10Mbit burst 50000b limit 81250b, found nothing",
        ),
        (
            "tc qdisc change dev veth2 root handle MAJOR: tbf rate 11mbit burst 50000 limit 81250",
            "expected tbf rate 10Mbit burst 50000b limit 81250b, found tbf rate 11Mbit",
        ),
        (
            "tc qdisc change dev veth2 root handle MAJOR: tbf rate 10mbit burst 60000 limit 81250",
            "expected tbf rate 10Mbit burst 50000b limit 81250b, found tbf rate 10Mbit burst 6",
        ),
        (
            "tc qdisc change dev veth2 root handle MAJOR: tbf rate 10mbit burst 50000 limit 81251",
            "found tbf rate 10Mbit burst 50000b limit 81251b",
        ),
        ("ip link delete IFB", "link IFB (egress): expected an ifb of \"net/container-2/eth0\", found nothing"),
        ("ip link set IFB alias EMPTY", "alias of link IFB (egress): expected \"net/container-2/eth0\", found nothing"),
        ("ip link set veth2 alias EMPTY", "alias of link veth2: expected \"net/container-2/eth0\", found nothing"),
        ("ip link set IFB down", "link IFB (egress): expected up, found down"),
        (
            "tc qdisc delete dev IFB root",
            "root qdisc of link IFB (egress): expected tbf rate 20Mbit burst 50000b limit 112500b, found nothing",
        ),
        (
            "tc qdisc replace dev IFB root handle 7: htb default 1",
            "expected tbf rate 20Mbit burst 50000b limit 112500b, found htb 7:",
        ),
        (
            "tc filter delete dev veth2 ingress",
            "filter of link veth2 on ingress (egress): expected all redirect to IFB, found nothing",
        ),
        ("tc qdisc delete dev veth2 clsact", "expected all redirect to IFB, found nothing"),
    ];
    for (command, expected) in deviations {
        case.call(Verb::Check).succeeds();
        let shown = case.tc("qdisc show dev veth2 root");
        let major = if shown.contains("tbf 6277:") { "6277" } else { "6278" };
        let command = command.replace("IFB", &ifb).replace("MAJOR", major);
        let words = command.split(' ').map(|word| if word == "EMPTY" { "" } else { word }).collect::<Vec<_>>();
        assert!(case.lab.host.command(words[0]).args(&words[1..]).status().unwrap().success(), "{command}");
        let error = case.call(Verb::Check).fails_with(101);
        assert!(error.details.contains(&expected.replace("IFB", &ifb)), "{command}: {error:?}");
        case.call(Verb::Add).succeeds();
    }
    case.call(Verb::Check).succeeds();
    // By these GC knows whose they are.
    for link in ["veth2", &ifb] {
        assert!(case.lab.host.run(&format!("ip link show {link}")).contains("alias net/container-2/eth0"), "{link}");
    }
    case.lab.host.run("ip link add elsewhere type ifb");
    case.tc("filter delete dev veth2 ingress");
    case.tc("filter add dev veth2 ingress u32 match u32 0 0 action mirred egress redirect dev elsewhere");
    let error = case.call(Verb::Check).fails_with(101);
    assert!(error.details.contains("found a redirect to index"), "{error:?}");
}

#[test]
fn check_sees_exemptions_that_were_changed() {
    let keys = with(limits(8_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24"]));
    let case = Case::new(keys);
    case.call(Verb::Add).succeeds();
    let error = Case { keys: limits(8_000_000, SENTINEL), ..case };
    let details = error.call(Verb::Check).fails_with(101).details;
    assert!(details.contains("expected nothing, found dst 198.51.100.0/24 pass"), "{details}");
    let more = with(limits(8_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24", "fd00::/8"]));
    let details = error.keyed(more).call(Verb::Check).fails_with(101).details;
    assert!(details.contains("expected src fd00::/8 pass, found nothing"), "{details}");
}

#[test]
fn any_subnet_reads_back_as_it_was_written() {
    let lists = [
        json!(["0.0.0.0/0", "::/0"]),
        json!(["0.0.0.0/1", "8000::/1", "255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]),
        json!(["10.0.0.0/9", "2001:db8::/33", "2001:db8:0:1::/65", "2001:db8::2:0:0/97"]),
    ];
    let case = Case::new(json!({}));
    for (list, key) in lists.iter().flat_map(|list| ["shapedSubnets", "unshapedSubnets"].map(|key| (list, key))) {
        let keys = with(limits(10_000_000, SENTINEL), key, list.clone());
        let config = config("1.1.0", &keys, Some(case.container.prev_result("1.1.0")));
        case.call_with(Verb::Add, &config, &case.container.target()).succeeds();
        case.call_with(Verb::Check, &config, &case.container.target()).succeeds();
    }
}

#[test]
fn any_rate_and_burst_reads_back_as_it_was_written() {
    let case = Case::both(8, 12_112);
    let rates = [1_000, 12_345_678, 34_359_738_359, 34_359_738_360, 100_000_000_000, 400_000_000_000, u64::MAX];
    let bursts = [12_112, 400_000, (1 << 31) - 8, SENTINEL, (1 << 35) - 17, (1 << 35) - 9];
    for (rate, burst) in rates.into_iter().flat_map(|rate| bursts.map(|burst| (rate, burst))) {
        let keys = with(limits(rate, burst), "burst", json!("given"));
        let config = config("1.1.0", &keys, Some(case.container.prev_result("1.1.0")));
        case.call_with(Verb::Add, &config, &case.container.target()).succeeds();
        case.call_with(Verb::Check, &config, &case.container.target()).succeeds();
    }
}

#[test]
fn a_burst_below_a_frame_is_refused_with_the_least_that_is_not() {
    let case = Case::both(10_000_000, 12_104);
    let before = case.lab.host.snapshot();
    let error = case.call(Verb::Add).fails_with(7);
    assert!(error.msg.contains("ingressBurst = 12104 bits") && error.msg.contains("12112 bits"), "{error:?}");
    case.lab.host.assert_same_as(&before);
    case.keyed(limits(10_000_000, 12_112)).call(Verb::Add).succeeds();
}

#[test]
fn gc_keeps_the_living_and_other_networks_and_removes_the_dead() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    let (living, dead) = (case.lab.container(3), case.lab.container(4));
    let ingress_only = json!({"ingressRate": 1_000_000, "ingressBurst": 80_000});
    let calls = [
        (&case.container, "net", case.keys.clone()),
        (&living, "net", case.keys.clone()),
        (&dead, "net", ingress_only),
    ];
    for (container, network, keys) in calls {
        let mut config = config("1.1.0", &keys, Some(container.prev_result("1.1.0")));
        config["name"] = network.into();
        case.call_with(Verb::Add, &config, &container.target()).succeeds();
    }
    // The same container on another network whose name begins alike.
    let mut foreign = config("1.1.0", &case.keys, Some(json!({"cniVersion": "1.1.0"})));
    foreign["name"] = "net2".into();
    connect(End::new(&case.lab.host, "vethx", &[]), End::new(&case.container.netns, "eth9", &[]));
    let foreign_target = Target { ifname: "eth9".into(), ..case.container.target() };
    case.call_with(Verb::Add, &foreign, &foreign_target).succeeds();

    case.gc(json!([{"containerID": "container-3", "ifname": "eth0"}]));
    let living_config = config("1.1.0", &case.keys, Some(living.prev_result("1.1.0")));
    case.call_with(Verb::Check, &living_config, &living.target()).succeeds();
    case.call_with(Verb::Check, &foreign, &foreign_target).succeeds();
    let shown = case.tc("qdisc show dev veth4") + &case.tc("qdisc show dev veth2");
    assert!(!shown.contains("tbf") && !shown.contains("clsact"), "{shown}");
    assert!(case.egress(Proto::Tcp, 1).bits_per_second() > 50e6, "the dead one's veth lives and swallows nothing");

    case.gc(json!([]));
    case.call_with(Verb::Del, &foreign, &foreign_target).succeeds();
    for link in ["veth3", "veth4", "vethx"] {
        case.lab.host.run(&format!("ip link delete {link}"));
    }
    case.lab.host.assert_same_as(&before);
}

/// Many go at once; what goes with them must be what is dead, whatever group it was in.
#[test]
fn gc_removes_more_than_one_datagram_of_dead_ifbs_and_nobody_elses() {
    let case = Case::new(with(limits(10_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24"])));
    let host = &case.lab.host;
    host.run("ip link add sink type ifb");
    host.run("ip link set sink group 7");
    case.call(Verb::Add).succeeds();
    let before = host.snapshot();
    for number in 0..70 {
        let [mac, _] = bandwidth::plan::Owner::of(&Attachment::new("net", format!("dead-{number}"), "eth0")).macs;
        host.run(&format!("ip link add dead{number} address {} type ifb", mac_text(&mac)));
        host.run(&format!("ip link set dead{number} alias net/dead-{number}/eth0"));
    }
    case.gc(json!([{"containerID": "container-2", "ifname": "eth0"}]));
    host.assert_same_as(&before);
    case.call(Verb::Check).succeeds();
}

#[test]
fn names_too_long_for_a_label_are_told_apart_all_the_same() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    let (network, twin) =
        (format!("{}x{}", "n".repeat(60), "m".repeat(60)), format!("{}y{}", "n".repeat(60), "m".repeat(60)));
    let mut config = case.config();
    config["name"] = network.clone().into();
    case.call_with(Verb::Add, &config, &case.container.target()).succeeds();
    let gc = |name: &str| {
        let gc = json!({"cniVersion": "1.1.0", "name": name, "type": "bandwidth", "cni.dev/valid-attachments": []});
        case.call_with(Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
    };
    gc(&twin);
    case.call_with(Verb::Check, &config, &case.container.target()).succeeds();
    gc(&network);
    case.lab.host.assert_same_as(&before);
}

#[test]
fn status_makes_nothing_and_says_what_is_missing() {
    let case = Case::new(json!({}));
    let before = case.lab.host.snapshot();
    let status = config("1.1.0", &case.keys, None);
    case.call_with(Verb::Status, &status, &Target::new("", "", "")).succeeds();
    case.lab.host.assert_same_as(&before);
    // Without the right to administer the network.
    let mut command = case.lab.host.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]).arg(Plugin::ours("bandwidth").path());
    command.env("CNI_COMMAND", "STATUS").env("CNI_PATH", "/").stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), status.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 50, "{error}");
    assert!(error["details"].as_str().unwrap().contains("CAP_NET_ADMIN"), "{error}");
}

#[test]
fn what_has_no_host_side_is_explained_and_can_be_limited_in_the_container() {
    let case = Case::new(json!({
        "ingressRate": 4_000_000, "ingressBurst": SENTINEL, "egressRate": 10_000_000, "egressBurst": SENTINEL,
    }));
    let (host, client) = (&case.lab.host, &case.lab.client);
    host.run(&format!(
        "ip link add link ext0 name mac0 netns {} type macvlan mode bridge",
        case.container.netns.path()
    ));
    let netns = &case.container.netns;
    netns.run("ip link set mac0 up");
    netns.address("mac0", "192.0.2.77/24");
    let target = Target { ifname: "mac0".into(), ..case.container.target() };
    let before = (host.snapshot(), netns.snapshot());
    let error = case.call_with(Verb::Add, &case.config(), &target).fails_with(105);
    assert!(error.msg.contains("mac0 has no veth peer: it is a macvlan"), "{error:?}");
    assert!(error.msg.contains("\"inContainer\": true"), "{error:?}");

    let config = config(
        "1.1.0",
        &with(case.keys.clone(), "inContainer", json!(true)),
        Some(case.container.prev_result("1.1.0")),
    );
    let result = case.call_with(Verb::Add, &config, &target).succeeds();
    assert_eq!(result["interfaces"].as_array().unwrap().last().unwrap()["sandbox"], json!(netns.path()));
    host.assert_same_as(&before.0);
    case.call_with(Verb::Check, &config, &target).succeeds();
    holds(&throughput(client, netns, Proto::Udp, "192.0.2.77:5006", 2), 4e6, UDP_SHARE);
    holds(&throughput(netns, client, Proto::Udp, "192.0.2.2:5007", 2), 10e6, UDP_SHARE);
    case.call_with(Verb::Del, &config, &target).succeeds();
    host.assert_same_as(&before.0);
    netns.assert_same_as(&before.1);
}

#[test]
fn a_peer_that_is_somewhere_else_is_not_taken_for_the_hosts_link_of_that_index() {
    let case = Case::both(10_000_000, SENTINEL);
    let elsewhere = Netns::new("elsewhere");
    connect(End::new(&elsewhere, "far", &[]), End::new(&case.container.netns, "eth5", &[]));
    let before = case.lab.host.snapshot();
    let target = Target { ifname: "eth5".into(), ..case.container.target() };
    let error = case.call_with(Verb::Add, &case.config(), &target).fails_with(105);
    assert!(error.msg.contains("found in host ns"), "{error:?}");
    let error = case.call_with(Verb::Add, &case.config(), &Target { ifname: "eth6".into(), ..target }).fails_with(105);
    assert!(error.msg.contains("eth6"), "{error:?}");
    case.lab.host.assert_same_as(&before);
}

#[test]
fn what_the_reference_has_made_passes_check_and_is_removed_and_taken_over() {
    let case = Case::both(10_000_000, 400_000);
    let (host, target) = (&case.lab.host, case.container.target());
    let before = host.snapshot();
    let old = config("1.0.0", &case.keys, Some(case.container.prev_result("1.0.0")));
    let reference = |verb| Plugin::reference("bandwidth").call(host, verb, &old, &target).succeeds();
    reference(Verb::Add);
    case.call_with(Verb::Check, &old, &target).succeeds();
    case.call_with(Verb::Del, &old, &target).succeeds();
    host.assert_same_as(&before);

    reference(Verb::Add);
    let bare = config("1.0.0", &json!({}), None);
    case.call_with(Verb::Del, &bare, &target.without_netns()).succeeds();
    host.assert_same_as(&before);
    assert!(case.egress(Proto::Tcp, 1).bits_per_second() > 50e6, "the redirect has gone with its ifb");

    reference(Verb::Add);
    case.call(Verb::Add).succeeds();
    case.call(Verb::Check).succeeds();
    holds(&case.egress(Proto::Udp, 2), 10e6, UDP_SHARE);
    case.call(Verb::Del).succeeds();
    host.assert_same_as(&before);
}

#[test]
fn a_del_of_the_second_interface_spares_what_the_reference_made_for_the_first() {
    let case = Case::both(10_000_000, 400_000);
    let target = case.container.target();
    let old = config("1.0.0", &case.keys, Some(case.container.prev_result("1.0.0")));
    Plugin::reference("bandwidth").call(&case.lab.host, Verb::Add, &old, &target).succeeds();
    connect(End::new(&case.lab.host, "vethb", &[]), End::new(&case.container.netns, "eth1", &[]));
    let second = Target { ifname: "eth1".into(), ..target.clone() };
    case.call_with(Verb::Del, &old, &second).succeeds();
    case.call_with(Verb::Check, &old, &target).succeeds();
}

#[test]
fn containers_added_at_once_all_get_their_limits() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    let containers: Vec<Container> = (10..18).map(|n| case.lab.container(n)).collect();
    let each = |verb: Verb| {
        std::thread::scope(|scope| {
            for container in &containers {
                let case = &case;
                scope.spawn(move || {
                    let config = config("1.1.0", &case.keys, Some(container.prev_result("1.1.0")));
                    case.call_with(verb, &config, &container.target()).succeeds();
                });
            }
        });
    };
    [Verb::Add, Verb::Check, Verb::Del].into_iter().for_each(each);
    for container in &containers {
        case.lab.host.run(&format!("ip link delete {}", container.host_ifname));
    }
    case.lab.host.assert_same_as(&before);
}
