//! What somebody has done to ours: renamed it, put something above, below or beside it, or written the like.

use super::*;
use bandwidth::plan::Owner;

impl Case {
    /// Gives an ifb another name, as a daemon would: down, renamed, up.
    #[track_caller]
    fn rename(&self, from: &str, to: &str) {
        for command in [format!("set {from} down"), format!("set {from} name {to}"), format!("set {to} up")] {
            self.lab.host.run(&format!("ip link {command}"));
        }
    }

    #[track_caller]
    fn add_by_the_reference(&self) {
        let old = config("1.0.0", &self.keys, Some(self.container.prev_result("1.0.0")));
        let target = self.container.target();
        Plugin::reference("bandwidth").call(&self.lab.host, Verb::Add, &old, &target).succeeds();
    }

    /// Everything at the container's link and the ifbs as tc tells it.
    #[track_caller]
    fn shown(&self) -> String {
        let filters = ["ingress", "egress"].map(|hook| self.tc(&format!("filter show dev veth2 {hook}")));
        self.tc("qdisc show") + &filters.concat()
    }
}

#[test]
fn an_ifb_that_somebody_has_renamed_goes_on_limiting_and_is_changed_and_removed() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    let ifb = ifb(&case.call(Verb::Add).succeeds());
    case.rename(&ifb, "theirs");
    case.call(Verb::Check).succeeds();
    let case = case.keyed(limits(5_000_000, SENTINEL));
    let result = case.call(Verb::Add).succeeds();
    assert_eq!(result["interfaces"].as_array().unwrap().last().unwrap()["name"], "theirs");
    case.call(Verb::Check).succeeds();
    holds(&case.egress(Proto::Udp, 2), 5e6, UDP_SHARE);
    // Also if no filter leads there any more.
    case.tc("filter delete dev veth2 ingress");
    case.call(Verb::Check).fails_with(101);
    assert_eq!(case.call(Verb::Add).succeeds(), result);
    case.call(Verb::Check).succeeds();
    case.del_leaves(&before);
}

#[test]
fn a_renamed_ifb_goes_by_del_with_and_without_netns_and_by_gc() {
    let subnets = with(limits(10_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24"]));
    for keys in [limits(10_000_000, SENTINEL), subnets] {
        let case = Case::new(keys);
        let before = case.lab.host.snapshot();
        let bare = case.container.target().without_netns();
        let without_netns = || drop(case.call_with(Verb::Del, &config("1.1.0", &json!({}), None), &bare).succeeds());
        let ways: [(&str, &dyn Fn()); 3] = [
            ("DEL", &|| drop(case.call(Verb::Del).succeeds())),
            ("DEL without netns", &without_netns),
            ("GC", &|| case.gc(json!([]))),
        ];
        for (way, remove) in ways {
            for (unfiltered, renamed) in [(false, 2), (true, 2), (false, 1), (true, 1)] {
                case.call(Verb::Add).succeeds();
                let shown = case.lab.host.run("ip -o link show type ifb");
                let names: Vec<&str> = shown.lines().filter_map(|line| line.split(": ").nth(1)).collect();
                let which = names.iter().rev().take(renamed).enumerate();
                which.for_each(|(number, ifb)| case.rename(ifb, &format!("theirs{number}")));
                if unfiltered {
                    case.tc("filter delete dev veth2 ingress");
                }
                remove();
                assert_eq!(case.lab.host.run("ip -o link show type ifb"), "", "{way}, {unfiltered}, {renamed}");
                case.lab.host.assert_same_as(&before);
            }
        }
    }
    // By its filter alone: a configuration without limits lets nobody look for marks.
    let case = Case::both(10_000_000, SENTINEL);
    case.rename(&ifb(&case.call(Verb::Add).succeeds()), "theirs");
    case.call_with(Verb::Del, &config("1.1.0", &json!({}), None), &case.container.target()).succeeds();
    assert!(!case.lab.host.has_link("theirs"));
    let case = Case::both(10_000_000, SENTINEL);
    case.rename(&ifb(&case.call(Verb::Add).succeeds()), "theirs");
    case.lab.host.run("ip link delete veth2");
    case.call_with(Verb::Del, &config("1.1.0", &json!({}), None), &case.container.target().without_netns()).succeeds();
    assert!(!case.lab.host.has_link("theirs"));
}

/// The kernel chooses the index, so none is in the way.
#[test]
fn a_link_that_has_the_index_which_an_ifb_had_is_in_nobodys_way_and_stays_as_it_is() {
    let case = Case::both(10_000_000, SENTINEL);
    let ifb = ifb(&case.call(Verb::Add).succeeds());
    let index = case.lab.host.run(&format!("ip -o link show {ifb}")).split(':').next().unwrap().to_owned();
    case.call(Verb::Del).succeeds();
    case.lab.host.run(&format!("ip link add sink index {index} type ifb"));
    let before = case.lab.host.snapshot();
    case.call(Verb::Add).succeeds();
    case.call(Verb::Check).succeeds();
    assert!(!case.lab.host.run("ip link show sink").contains("alias"));
    case.del_leaves(&before);
}

/// Each is a list of commands, and what CHECK says then.
#[test]
fn what_changes_a_limit_without_changing_its_numbers_is_named_by_check_and_repaired_by_add() {
    let case = Case::new(json!({
        "ingressRate": 10_000_000, "ingressBurst": 400_000, "egressRate": 10_000_000, "egressBurst": 400_000,
    }));
    let ifb = ifb(&case.call(Verb::Add).succeeds());
    let redirect = "protocol all u32 match u32 0 0 action mirred egress redirect dev IFB";
    let mut deviations = Vec::new();
    for link in ["veth2", "IFB"] {
        let bucket = "root handle 6277: tbf rate 10mbit burst 50000 limit 81250";
        for (more, said) in [
            ("mpu 1000", "limit 81250b mpu 1000"),
            ("overhead 1", "limit 81250b overhead 1"),
            ("peakrate 20mbit mtu 2000", "limit 81250b peakrate 20Mbit"),
            ("", "the same with its owner's mark taken away (6277:)"),
        ] {
            deviations.push((vec![format!("qdisc change dev {link} {bucket} {more}")], said));
        }
        let child = format!("qdisc replace dev {link} parent 6277:1 handle 7:");
        deviations.push((vec![format!("{child} pfifo limit 1")], "limit 81250b above pfifo 7:"));
        deviations.push((vec![format!("{child} bfifo limit 900000")], "limit 81250b above bfifo 7:"));
        let by_hand = "root handle 1: tbf rate 10mbit burst 50000 limit 81250";
        if link == "IFB" {
            let said = "the same with a handle that is not ours (1:)";
            deviations.push((vec![format!("qdisc replace dev {link} {by_hand}")], said));
        }
    }
    let delete = "filter delete dev veth2 ingress".to_owned();
    let in_table = "filter add dev veth2 ingress pref 61698 protocol all handle 9: u32 divisor 1";
    deviations.push((
        vec![delete.clone(), format!("filter add dev veth2 ingress chain 1 pref 61698 {redirect}")],
        "expected all redirect to IFB, found nothing",
    ));
    let into_table = redirect.replace("match", "ht 9: match");
    deviations.push((
        vec![delete, in_table.to_owned(), format!("filter add dev veth2 ingress pref 61698 {into_table}")],
        "expected all redirect to IFB, found nothing",
    ));
    for (commands, said) in deviations {
        case.call(Verb::Check).succeeds();
        commands.iter().for_each(|command| drop(case.tc(&command.replace("IFB", &ifb))));
        let error = case.call(Verb::Check).fails_with(101);
        assert!(error.details.contains(&said.replace("IFB", &ifb)), "{commands:?}: {error:?}");
        case.call(Verb::Add).succeeds();
        // The next begins with a bucket in its first place.
        if !case.tc(&format!("qdisc show dev {ifb}")).contains("tbf 6277:") {
            case.call(Verb::Del).succeeds();
            case.call(Verb::Add).succeeds();
        }
    }
    case.call(Verb::Check).succeeds();
}

#[test]
fn a_bucket_made_by_hand_with_our_numbers_is_no_limit_of_ours_to_check_either() {
    let case = Case::new(json!({"ingressRate": 10_000_000, "ingressBurst": 400_000}));
    case.tc("qdisc add dev veth2 root handle 1: tbf rate 10mbit burst 50000 limit 81250");
    case.call(Verb::Add).fails_with(105);
    let error = case.call(Verb::Check).fails_with(101);
    assert!(error.details.contains("a handle that is not ours (1:)"), "{error:?}");
}

#[test]
fn filters_of_others_at_our_priority_and_at_the_references_outlive_ours() {
    let theirs = |priority: u16| {
        format!(
            "filter add dev veth2 ingress pref {priority} protocol all u32 match u32 0 0 action mirred egress mirror dev sink"
        )
    };
    let case = Case::both(10_000_000, SENTINEL);
    case.lab.host.run("ip link add sink type ifb");
    let left = |case: &Case| {
        let shown = case.tc("filter show dev veth2 ingress");
        (shown.matches("Egress Mirror to device sink").count(), shown.matches("Redirect").count())
    };
    // With other subnets, without limits for this direction, and by DEL.
    let subnets = with(limits(10_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24"]));
    let ingress = json!({"ingressRate": 10_000_000, "ingressBurst": 400_000});
    for keys in [subnets, ingress, json!({})] {
        case.call(Verb::Add).succeeds();
        case.tc(&theirs(0xf102));
        assert_eq!(left(&case), (1, 1));
        let after = config("1.1.0", &keys, Some(case.container.prev_result("1.1.0")));
        let limits_egress = keys.get("egressRate").is_some();
        let verb = if keys == json!({}) { Verb::Del } else { Verb::Add };
        case.call_with(verb, &after, &case.container.target()).succeeds();
        assert_eq!(left(&case), (1, usize::from(limits_egress)), "{keys}");
        case.call(Verb::Del).succeeds();
        assert_eq!(left(&case), (1, 0));
        case.tc("qdisc delete dev veth2 clsact");
    }
    let case = Case { keys: limits(10_000_000, 400_000), ..case };
    case.add_by_the_reference();
    case.tc(&theirs(1));
    case.call(Verb::Add).succeeds();
    assert_eq!(left(&case), (1, 1));
    case.call(Verb::Del).succeeds();
    assert_eq!(left(&case), (1, 0));
}

fn del_of_another_changes_nothing(case: &Case) {
    let with_limits = case.lab.host.snapshot();
    let another = Target { container: "another".into(), ..case.container.target() };
    case.call_with(Verb::Del, &case.config(), &another).succeeds();
    case.lab.host.assert_same_as(&with_limits);
}

#[test]
fn an_alias_that_only_looks_like_a_label_keeps_nobody_from_his_own() {
    let case = Case::new(json!({"ingressRate": 10_000_000, "ingressBurst": 400_000}));
    case.lab.host.run("ip link set veth2 alias a/b/c");
    let before = case.lab.host.snapshot();
    case.add_by_the_reference();
    case.del_leaves(&before);
    // Ours, of another attachment: its mark is there.
    case.call(Verb::Add).succeeds();
    del_of_another_changes_nothing(&case);
    case.del_leaves(&before);
}

#[test]
fn gc_leaves_links_that_have_an_alias_like_a_label_and_nothing_of_ours() {
    let case = Case::both(10_000_000, SENTINEL);
    case.lab.host.run("ip link set veth2 alias net/foo/bar");
    case.lab.host.run("ip link add sink type ifb");
    case.lab.host.run("ip link set sink alias net/foo/bar");
    case.tc("qdisc add dev veth2 root handle 1: tbf rate 5mbit burst 5000 limit 10000");
    case.tc("qdisc add dev veth2 clsact");
    let before = case.lab.host.snapshot();
    case.gc(json!([]));
    case.lab.host.assert_same_as(&before);
}

#[test]
fn what_the_reference_made_for_ingress_alone_is_found_without_netns_by_name_and_address() {
    let case = Case::new(json!({"ingressRate": 10_000_000, "ingressBurst": 400_000}));
    let bare = case.container.target().without_netns();
    let del = || case.call_with(Verb::Del, &case.config(), &bare).succeeds();
    case.add_by_the_reference();
    let with_limits = case.lab.host.snapshot();
    // The name is another's by now.
    del();
    case.lab.host.assert_same_as(&with_limits);
    case.lab.host.run("ip link set veth2 address 02:00:00:00:88:02");
    del();
    assert!(!case.shown().contains("tbf"), "{}", case.shown());
}

#[test]
fn limits_are_lowered_and_raised_without_losing_what_comes_meanwhile() {
    let case = Case::both(100_000_000, SENTINEL);
    case.call(Verb::Add).succeeds();
    let of = |rate| config("1.1.0", &limits(rate, SENTINEL), Some(case.container.prev_result("1.1.0")));
    let configs = [of(90_000_000), of(100_000_000)];
    let echoes = format!("ping -q -i 0.001 -c 2000 {}", case.container.addresses[0]);
    let (said, changed) = std::thread::scope(|scope| {
        let flow = scope.spawn(|| case.lab.client.run(&echoes));
        let mut changed = 0;
        while !flow.is_finished() {
            case.call_with(Verb::Add, &configs[changed % 2], &case.container.target()).succeeds();
            changed += 1;
        }
        (flow.join().unwrap(), changed)
    });
    assert!(changed > 20, "{changed}");
    assert!(said.contains(" 0% packet loss"), "{changed} changes: {said}");
}

/// An ifb gets its label with the second datagram only.
#[test]
fn gc_removes_an_ifb_that_was_not_finished_and_leaves_those_of_the_living_and_of_others() {
    let case = Case::both(10_000_000, SENTINEL);
    let host = &case.lab.host;
    let half_made = |name: &str, network: &str, container: &str| {
        let [mac, _] = Owner::of(&Attachment::new(network, container, "eth0")).macs;
        host.run(&format!("ip link add {name} address {} type ifb", mac_text(&mac)));
    };
    half_made("bwp000000000001", "net2", "dead");
    half_made("bwp000000000002", "net", "container-2");
    host.run("ip link add bwp000000000003 type ifb");
    let before = host.snapshot();
    half_made("bwp000000000004", "net", "dead");
    case.gc(json!([{"containerID": "container-2", "ifname": "eth0"}]));
    host.assert_same_as(&before);
}

#[test]
fn del_goes_on_where_a_limit_is_a_number_that_nothing_can_hold() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    case.call(Verb::Add).succeeds();
    let text = config("1.1.0", &limits(1234, 1234), None).to_string().replace(":1234", ":-1e400");
    let plugin = Plugin::ours("bandwidth");
    plugin.call_raw(&case.lab.host, "CHECK", text.as_bytes(), &case.container.target()).fails_with(6);
    plugin.call_raw(&case.lab.host, "DEL", text.as_bytes(), &case.container.target()).succeeds();
    case.lab.host.assert_same_as(&before);
}

#[test]
fn gc_keeps_every_one_of_several_living() {
    let case = Case::both(10_000_000, SENTINEL);
    let second = case.lab.container(3);
    let second_config = config("1.1.0", &case.keys, Some(second.prev_result("1.1.0")));
    case.call(Verb::Add).succeeds();
    case.call_with(Verb::Add, &second_config, &second.target()).succeeds();
    let before = case.lab.host.snapshot();
    case.gc(
        json!([{"containerID": "container-2", "ifname": "eth0"}, {"containerID": "container-3", "ifname": "eth0"}]),
    );
    case.lab.host.assert_same_as(&before);
}

/// Nobody can change its address (`ifb_netdev_ops`, drivers/net/ifb.c).
#[test]
fn gc_knows_an_ifb_that_has_lost_its_alias() {
    let case = Case::both(10_000_000, SENTINEL);
    let before = case.lab.host.snapshot();
    let ifb = ifb(&case.call(Verb::Add).succeeds());
    case.lab.host.command("ip").args(["link", "set", &ifb, "alias", ""]).status().unwrap();
    case.gc(json!([]));
    case.lab.host.assert_same_as(&before);
}

#[test]
fn a_bucket_without_a_mark_stays_with_whom_the_alias_names() {
    let case = Case::new(json!({"ingressRate": 10_000_000, "ingressBurst": 400_000}));
    let before = case.lab.host.snapshot();
    case.call(Verb::Add).succeeds();
    let another = Target { container: "another".into(), ..case.container.target() };
    let error = case.call_with(Verb::Check, &case.config(), &another).fails_with(101);
    assert!(error.details.contains("another attachment's mark (6277:)"), "{error:?}");
    case.tc("qdisc change dev veth2 root handle 6277: tbf rate 10mbit burst 50000 limit 81250");
    let unmarked = case.lab.host.snapshot();
    case.call_with(Verb::Del, &case.config(), &another).succeeds();
    case.lab.host.assert_same_as(&unmarked);
    case.del_leaves(&before);
}

#[test]
fn what_the_reference_made_goes_with_nobody_but_whose_filters_are_beside_it() {
    let case = Case::new(json!({"ingressRate": 10_000_000, "ingressBurst": 400_000}));
    let before = case.lab.host.snapshot();
    case.add_by_the_reference();
    let case = case.keyed(json!({"egressRate": 10_000_000, "egressBurst": 400_000}));
    case.call(Verb::Add).succeeds();
    del_of_another_changes_nothing(&case);
    case.del_leaves(&before);
}

#[test]
fn an_ifb_has_the_mtu_of_its_link_after_the_next_add_and_goes_when_no_limit_needs_it() {
    let subnets = with(limits(10_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24"]));
    let case = Case::new(subnets);
    let ifbs = |case: &Case| case.lab.host.run("ip -o link show type ifb");
    case.call(Verb::Add).succeeds();
    assert_eq!(ifbs(&case).matches("mtu 1500").count(), 2);
    case.lab.host.run("ip link set veth2 mtu 1400");
    case.call(Verb::Add).succeeds();
    assert_eq!(ifbs(&case).matches("mtu 1400").count(), 2, "{}", ifbs(&case));
    let case = case.keyed(json!({"egressRate": 10_000_000, "egressBurst": 400_000}));
    case.call(Verb::Add).succeeds();
    assert_eq!(ifbs(&case).lines().count(), 1, "{}", ifbs(&case));
    let case = case.keyed(json!({"ingressRate": 10_000_000, "ingressBurst": 400_000}));
    case.call(Verb::Add).succeeds();
    assert_eq!(ifbs(&case), "");
}

#[test]
fn an_ifb_whose_alias_somebody_has_replaced_goes_on_limiting_and_is_removed() {
    for remove in ["DEL", "DEL without netns", "GC"] {
        let case = Case::both(10_000_000, SENTINEL);
        let before = case.lab.host.snapshot();
        let result = case.call(Verb::Add).succeeds();
        let replace = || drop(case.lab.host.run(&format!("ip link set {} alias uplink", ifb(&result))));
        replace();
        assert_eq!(case.call(Verb::Add).succeeds(), result);
        case.call(Verb::Check).succeeds();
        replace();
        match remove {
            "DEL" => drop(case.call(Verb::Del).succeeds()),
            "GC" => case.gc(json!([])),
            _ => {
                let bare = case.container.target().without_netns();
                case.call_with(Verb::Del, &case.config(), &bare).succeeds();
            }
        }
        case.lab.host.assert_same_as(&before);
    }
}

#[test]
fn gc_leaves_a_bucket_without_a_mark_to_whom_only_an_alias_gives_it() {
    let case = Case::both(10_000_000, SENTINEL);
    case.lab.host.run("ip link set veth2 alias net/foo/bar");
    case.tc("qdisc add dev veth2 root handle 6277: tbf rate 5mbit burst 5000 limit 10000");
    let before = case.lab.host.snapshot();
    case.gc(json!([]));
    case.lab.host.assert_same_as(&before);
}

#[test]
fn hooks_that_share_their_filters_with_other_links_are_named() {
    let case = Case::new(json!({"egressRate": 10_000_000, "egressBurst": 400_000}));
    case.tc("qdisc add dev veth2 ingress_block 22 egress_block 23 clsact");
    let before = case.lab.host.snapshot();
    let error = case.call(Verb::Add).fails_with(105);
    assert!(error.msg.contains("from a block that is shared"), "{error:?}");
    case.lab.host.assert_same_as(&before);
}
