//! Whose is it: what the reference has left, other interfaces, other attachments, and what somebody has made by hand.

use super::*;

const SUBNETS: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/64"];

impl Case {
    #[track_caller]
    fn reference(&self, verb: Verb) -> Outcome {
        let old = config("1.0.0", &self.keys, Some(self.container.prev_result("1.0.0")));
        Plugin::reference("bandwidth").call(&self.lab.host, verb, &old, &self.container.target())
    }

    /// A second interface of the container, `eth1`, whose other end is `vethb`.
    #[track_caller]
    fn second_interface(&self) -> Target {
        let (host, inner) = (["10.89.0.1/24"], ["10.89.0.2/24"]);
        connect(End::new(&self.lab.host, "vethb", &host), End::new(&self.container.netns, "eth1", &inner));
        Target { ifname: "eth1".into(), ..self.container.target() }
    }

    #[track_caller]
    fn flows_freely(&self) {
        assert!(self.egress(Proto::Tcp, 1).bits_per_second() > 50e6, "nothing limits, and nothing swallows");
    }
}

#[test]
fn what_the_references_del_leaves_on_a_living_veth_is_named_by_check_and_removed_by_add_and_del() {
    for keys in [limits(10_000_000, 400_000), json!({"ingressRate": 10_000_000, "ingressBurst": 400_000})] {
        let case = Case::both(10_000_000, 400_000);
        let before = case.lab.host.snapshot();
        let leave = || {
            case.reference(Verb::Add).succeeds();
            case.reference(Verb::Del).succeeds();
        };
        leave();
        case.call(Verb::Del).succeeds();
        case.lab.host.assert_same_as(&before);
        case.flows_freely();

        leave();
        let config = config("1.1.0", &keys, Some(case.container.prev_result("1.1.0")));
        let call = |verb| case.call_with(verb, &config, &case.container.target());
        let error = call(Verb::Check).fails_with(101);
        assert!(error.details.contains("a redirect of all to a link that has gone"), "{error:?}");
        call(Verb::Add).succeeds();
        call(Verb::Check).succeeds();
        let egress = case.egress(Proto::Udp, 1);
        match keys.get("egressRate") {
            Some(_) => assert!(egress.bits_per_second() < 11e6, "{egress:?}"),
            None => assert!(egress.bits_per_second() > 50e6, "{egress:?}"),
        }
        call(Verb::Del).succeeds();
        case.lab.host.assert_same_as(&before);
    }
}

#[test]
fn the_references_ifb_of_another_interface_is_left_in_force() {
    let case = Case::both(10_000_000, 400_000);
    case.reference(Verb::Add).succeeds();
    let second = case.second_interface();
    let result = case.call_with(Verb::Add, &case.config(), &second).succeeds();
    let old = config("1.0.0", &case.keys, Some(case.container.prev_result("1.0.0")));
    case.call_with(Verb::Check, &old, &case.container.target()).succeeds();
    case.call_with(Verb::Check, &case.config(), &second).succeeds();
    let reference = case.reference(Verb::Check).succeeds();
    assert_ne!(Some(ifb(&result).as_str()), reference["interfaces"][3]["name"].as_str());
    holds(&case.egress(Proto::Udp, 3), 10e6, UDP_SHARE);
    holds(&throughput(&case.container.netns, &case.lab.host, Proto::Udp, "10.89.0.1:5005", 3), 10e6, UDP_SHARE);
}

#[test]
fn subnets_follow_what_the_reference_has_made() {
    let case = Case::both(8_000_000, 400_000);
    let before = case.lab.host.snapshot();
    let other = case.other_remote();
    case.reference(Verb::Add).succeeds();
    let case = case.keyed(with(limits(8_000_000, SENTINEL), "unshapedSubnets", json!(SUBNETS)));
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
fn one_direction_after_the_references_two_removes_the_other() {
    for direction in ["ingress", "egress"] {
        let case = Case::both(10_000_000, 400_000);
        let before = case.lab.host.snapshot();
        case.reference(Verb::Add).succeeds();
        let case = case.keyed(json!({format!("{direction}Rate"): 5_000_000, format!("{direction}Burst"): 400_000}));
        case.call(Verb::Add).succeeds();
        case.call(Verb::Check).succeeds();
        let shown = case.tc("qdisc show dev veth2");
        assert_eq!((shown.contains("tbf"), shown.contains("ffff:")), (direction == "ingress", direction == "egress"));
        let (limited, free) = match direction {
            "ingress" => (case.ingress(Proto::Udp, 1), case.egress(Proto::Udp, 1)),
            _ => (case.egress(Proto::Udp, 1), case.ingress(Proto::Udp, 1)),
        };
        assert!(limited.bits_per_second() < 6e6 && free.bits_per_second() > 50e6, "{limited:?} {free:?}");
        case.call(Verb::Del).succeeds();
        case.lab.host.assert_same_as(&before);
    }
}

#[test]
fn a_bucket_made_by_hand_outlives_limits_of_the_other_direction() {
    let case = Case::new(json!({"egressRate": 5_000_000, "egressBurst": 400_000}));
    case.tc("qdisc add dev veth2 root handle 1: tbf rate 20mbit burst 50000 limit 100000");
    for _ in 0..3 {
        case.call(Verb::Add).succeeds();
        case.call(Verb::Check).succeeds();
        let shown = case.tc("qdisc show dev veth2 root");
        assert!(shown.contains("tbf 1: root") && shown.contains("rate 20Mbit"), "{shown}");
    }
}

#[test]
fn del_of_another_owner_leaves_the_living_ones_limits() {
    for keys in [limits(10_000_000, SENTINEL), json!({"ingressRate": 5_000_000, "ingressBurst": 400_000})] {
        for alias in ["", "somebody's"] {
            let case = Case::new(keys.clone());
            if !alias.is_empty() {
                case.lab.host.run(&format!("ip link set veth2 alias {alias}"));
            }
            case.call(Verb::Add).succeeds();
            let before = case.lab.host.snapshot();
            let other = Target { container: "another".into(), ..case.container.target() };
            case.call_with(Verb::Del, &case.config(), &other).succeeds();
            case.lab.host.assert_same_as(&before);
            let error = case.call_with(Verb::Add, &case.config(), &other).fails_with(105);
            let owner = if alias.is_empty() { "net/container-2/eth0" } else { alias };
            assert!(error.msg.contains(owner), "{error:?}");
            case.lab.host.assert_same_as(&before);
            case.call(Verb::Check).succeeds();
            assert!(case.ingress(Proto::Udp, 1).bits_per_second() < 12e6);
        }
    }
}

#[test]
fn del_without_netns_of_a_configuration_without_limits_removes_those_that_were_set() {
    for keys in [
        limits(10_000_000, SENTINEL),
        json!({"ingressRate": 1_000_000, "ingressBurst": 80_000}),
        json!({"egressRate": 1_000_000, "egressBurst": 80_000}),
    ] {
        let case = Case::new(keys);
        let before = case.lab.host.snapshot();
        case.call(Verb::Add).succeeds();
        let config = config("1.1.0", &json!({}), None);
        case.call_with(Verb::Del, &config, &case.container.target().without_netns()).succeeds();
        case.lab.host.assert_same_as(&before);
        case.flows_freely();
    }
}

#[test]
fn two_interfaces_added_to_a_network_at_once_both_get_their_limits() {
    let case = Case::both(10_000_000, SENTINEL);
    let first = case.container.target();
    let second = case.second_interface();
    let has_link_local = || case.lab.host.run("ip -6 address show dev vethb").contains("fe80:");
    case.lab.host.wait_until("the kernel has given vethb an address", has_link_local);
    let before = case.lab.host.snapshot();
    for _ in 0..20 {
        let names = std::thread::scope(|scope| {
            let case = &case;
            let add = |target| scope.spawn(move || ifb(&case.call_with(Verb::Add, &case.config(), target).succeeds()));
            [&first, &second].map(add).map(|call| call.join().unwrap())
        });
        assert_ne!(names[0], names[1]);
        for target in [&first, &second] {
            case.call_with(Verb::Check, &case.config(), target).succeeds();
        }
        // One goes while the other comes.
        case.call_with(Verb::Del, &case.config(), &first).succeeds();
        case.call_with(Verb::Del, &case.config(), &second).succeeds();
        case.call_with(Verb::Add, &case.config(), &first).succeeds();
        std::thread::scope(|scope| {
            scope.spawn(|| case.call_with(Verb::Del, &case.config(), &first).succeeds());
            scope.spawn(|| case.call_with(Verb::Add, &case.config(), &second).succeeds());
        });
        case.call_with(Verb::Check, &case.config(), &second).succeeds();
        case.call_with(Verb::Del, &case.config(), &second).succeeds();
        case.lab.host.assert_same_as(&before);
    }
}

#[test]
fn del_of_an_attachment_that_two_living_links_have_leaves_no_filter_that_leads_to_nothing() {
    let case = Case::new(json!({"egressRate": 10_000_000, "egressBurst": 400_000}));
    let second = case.lab.container(3);
    let before = case.lab.host.snapshot();
    let target = Target { container: case.container.target().container, ..second.target() };
    let of_second = config("1.1.0", &case.keys, Some(second.prev_result("1.1.0")));
    for alias in ["", "somebody's"] {
        case.lab.host.command("ip").args(["link", "set", "veth2", "alias", alias]).status().unwrap();
        case.call(Verb::Add).succeeds();
        case.call_with(Verb::Add, &of_second, &target).succeeds();
        case.call_with(Verb::Del, &of_second, &target).succeeds();
        case.lab.client.run(&format!("ping -c 1 -W 2 {}", case.container.addresses[0]));
        case.lab.client.run(&format!("ping -c 1 -W 2 {}", second.addresses[0]));
    }
    case.lab.host.command("ip").args(["link", "set", "veth2", "alias", ""]).status().unwrap();
    case.lab.host.assert_same_as(&before);
}

#[test]
fn two_adds_of_an_attachment_at_once_that_want_limits_in_different_places_both_succeed() {
    let case = Case::both(5_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    let of = |keys| config("1.1.0", &keys, Some(case.container.prev_result("1.1.0")));
    let configs = [
        of(limits(20_000_000, SENTINEL)),
        of(with(limits(10_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24"]))),
    ];
    for _ in 0..60 {
        case.call(Verb::Add).succeeds();
        std::thread::scope(|scope| {
            let case = &case;
            let add =
                |config| scope.spawn(move || case.call_with(Verb::Add, config, &case.container.target()).succeeds());
            configs.each_ref().map(add).into_iter().for_each(|call| drop(call.join().unwrap()));
        });
        case.del_leaves(&before);
    }
}
