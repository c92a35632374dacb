//! What others do to the table: it costs nobody else a port, opens nothing, and goes.

use super::*;

/// A container's first ADD, which has nothing of its own to compare with, says yes only if packets come through.
#[test]
fn a_first_add_works_whatever_was_done_to_the_table_before() {
    let damages = [
        (
            "another rule in the place of each of ours",
            "flush chain TABLE prerouting; add rule TABLE prerouting counter; add rule TABLE prerouting counter",
        ),
        (
            "a rule of ours in the other's place",
            "flush chain TABLE output; add rule TABLE output ip daddr 127.0.0.0/8 return",
        ),
        (
            "a hook in another place",
            "delete chain TABLE output; add chain TABLE output { type nat hook output priority 77; }; add rule TABLE output fib daddr type local jump hostports",
        ),
        (
            "a chain that drops",
            "add chain TABLE loopback_guard { type filter hook prerouting priority -300; policy drop; }",
        ),
        ("another guard", "flush chain TABLE loopback_forged; add rule TABLE loopback_forged accept"),
    ];
    for (what, text) in damages {
        let lab = Lab::new();
        let (first, next) = (lab.container(2), lab.container(3));
        let _server = serve(&next.netns, 80, "next");
        add(&lab, &first, &port(8080, 80));
        lab.host.nft(&text.replace("TABLE", TABLE));
        add(&lab, &next, &port(9090, 80));
        check(&lab, &next, &port(9090, 80));
        assert!(!rules(&lab).contains("counter"), "{what}: {}", rules(&lab));
        all_reach(&lab.client, &["192.0.2.1:9090"], "next");
        all_reach(&lab.host, &["192.0.2.1:9090", "127.0.0.1:9090"], "next");
    }
}

/// A port only for one address, which the client doesn't have.
fn for_somebody_else(host: u16) -> Value {
    let mut keys = port(host, 80);
    keys["conditionsV4"] = json!(["-s", "192.0.2.77"]);
    keys
}

#[test]
fn a_port_whose_owner_s_record_is_lost_leaves_nothing_to_the_next() {
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let (first, next) = (lab.container(2), lab.container(3));
    let _server = serve(&next.netns, 80, "next");
    let without_snat = |mut keys: Value| {
        keys["snat"] = false.into();
        keys
    };
    let cases = [(port(8080, 80), for_somebody_else(8080)), (without_snat(port(8080, 80)), port(8080, 80))];
    for (before, keys) in cases {
        add(&lab, &first, &before);
        lab.host.nft(&format!("flush map {TABLE} records"));
        add(&lab, &next, &keys);
        check(&lab, &next, &keys);
        if keys["conditionsV4"].is_null() {
            all_reach(&first.netns, &["192.0.2.1:8080"], "next");
            all_reach(&lab.host, &["127.0.0.1:8080"], "next");
        } else {
            none_reach(&lab.client, &["192.0.2.1:8080"]);
        }
        del(&lab, &next, &json!({}));
        assert!(lab.host.try_run(&format!("nft list table {TABLE}")).is_err(), "the table is gone: {}", rules(&lab));
    }
}

#[test]
fn a_port_in_another_kind_s_set_is_seen_and_mended() {
    let lab = Lab::new();
    let (first, other) = (lab.container(2), lab.container(3));
    let _server = serve(&first.netns, 80, "first");
    let keys = for_somebody_else(8080);
    add(&lab, &other, &port(9090, 80));
    add(&lab, &first, &keys);
    let listed = rules(&lab);
    for set in listed.lines().filter_map(|line| line.trim().strip_prefix("set ")?.strip_suffix(" {")) {
        if set.starts_with("wildcard4-") {
            lab.host.nft(&format!("add element {TABLE} {set} {{ tcp . 8080 }}"));
        }
    }
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "first");
    call(&lab, Verb::Check, &first, &keys).fails_with(101);
    add(&lab, &first, &keys);
    check(&lab, &first, &keys);
    check(&lab, &other, &port(9090, 80));
    none_reach(&lab.client, &["192.0.2.1:8080"]);
    assert_eq!(lines_of(&rules(&lab)), lines_of(&listed));
}

#[test]
fn sets_that_somebody_removed_are_there_again_with_the_next_add() {
    let lab = Lab::new();
    let [first, second, next] = [2, 3, 4].map(|n| lab.container(n));
    let _server = serve(&next.netns, 80, "next");
    add(&lab, &first, &port(8080, 80));
    add(&lab, &second, &port(9090, 80));
    for object in ["map TABLE records", "set TABLE self4"] {
        lab.host.nft(&format!("delete {}", object.replace("TABLE", TABLE)));
        let mut alone = config(&next, &port(7070, 80));
        alone["prevResult"]["ips"][0]["address"] = "10.88.0.4/32".into();
        let call = |verb| Plugin::ours("portmap").call(&lab.host, verb, &alone, &next.target()).succeeds();
        call(Verb::Add);
        call(Verb::Check);
        all_reach(&lab.client, &["192.0.2.1:7070"], "next");
        add(&lab, &first, &port(8080, 80));
        check(&lab, &first, &port(8080, 80));
        call(Verb::Del);
        none_reach(&lab.client, &["192.0.2.1:7070"]);
    }
}

#[test]
fn del_finds_its_ports_where_nobody_has_a_record_any_more() {
    for damage in ["delete map TABLE records", "flush map TABLE records"] {
        let lab = Lab::new();
        let (first, second) = (lab.container(2), lab.container(3));
        let _servers = [serve(&first.netns, 80, "first"), serve(&second.netns, 80, "second")];
        let before = lab.host.snapshot();
        add(&lab, &first, &port(8080, 80));
        add(&lab, &second, &port(9090, 80));
        lab.host.nft(&damage.replace("TABLE", TABLE));
        del(&lab, &first, &json!({}));
        none_reach(&lab.client, &["192.0.2.1:8080"]);
        all_reach(&lab.client, &["192.0.2.1:9090"], "second");
        all_reach(&lab.host, &["127.0.0.1:9090"], "second");
        del(&lab, &second, &json!({}));
        none_reach(&lab.client, &["192.0.2.1:9090"]);
        lab.host.assert_same_as(&before);
    }
}

#[test]
fn a_port_that_names_no_owner_goes_with_gc_or_with_the_last_owner() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let _server = serve(&second.netns, 80, "second");
    let before = lab.host.snapshot();
    for (comment, by_gc) in [("", true), ("comment \"hello\"", true), ("", false), ("comment \"a/b\"", false)] {
        add(&lab, &first, &port(8080, 80));
        let listed = rules(&lab);
        let kind = listed.split_whitespace().find(|word| word.starts_with("wildcard4-")).unwrap().trim_end_matches(',');
        lab.host.nft(&format!(
            "add element {TABLE} {kind} {{ tcp . 7070 }}; \
             add element {TABLE} ports4 {{ tcp . 7070 {comment} : 10.88.0.3 . 80 }}; \
             delete element {TABLE} ports4 {{ tcp . 8080 }}; \
             add element {TABLE} ports4 {{ tcp . 8080 : 10.88.0.3 . 80 }}; \
             add chain {TABLE} theirs; add rule {TABLE} theirs jump attachments"
        ));
        Fetch::new(Proto::Tcp, "192.0.2.1:7070").expect(&lab.client, "second");
        if by_gc {
            gc(&lab, "net", json!([{"containerID": first.id, "ifname": "eth0"}])).succeeds();
            Fetch::new(Proto::Tcp, "192.0.2.1:7070").expect_nothing(&lab.client);
        }
        del(&lab, &first, &json!({}));
        for port in [7070, 8080] {
            Fetch::new(Proto::Tcp, &format!("192.0.2.1:{port}")).expect_nothing(&lab.client);
        }
        lab.host.assert_same_as(&before);
    }
}

#[test]
fn a_port_that_was_led_elsewhere_without_an_owner_goes_with_del_of_its_own() {
    let lab = Lab::new();
    let (first, second) = (lab.container(2), lab.container(3));
    let _server = serve(&second.netns, 80, "second");
    add(&lab, &second, &port(9090, 80));
    let alone = lab.host.snapshot();
    add(&lab, &first, &port(8080, 80));
    lab.host.nft(&format!(
        "delete element {TABLE} ports4 {{ tcp . 8080 }}; add element {TABLE} ports4 {{ tcp . 8080 : 10.88.0.3 . 80 }}"
    ));
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "second");
    del(&lab, &first, &json!({}));
    none_reach(&lab.client, &["192.0.2.1:8080"]);
    lab.host.assert_same_as(&alone);
}

/// What several share is counted by their records' lines.
#[test]
fn who_has_lost_a_record_keeps_what_it_shares_with_those_who_go() {
    for keys_of_other in [port(9090, 80), for_somebody_else(9090)] {
        let lab = Lab::new();
        bridged_frames_are_filtered(&lab, false);
        let (first, other) = (lab.container(2), lab.container(3));
        let _server = serve(&first.netns, 80, "first");
        let before = lab.host.snapshot();
        add(&lab, &first, &port(8080, 80));
        add(&lab, &other, &keys_of_other);
        remove_lines(&lab, &first.id, &(0..5).collect::<Vec<_>>());
        del(&lab, &other, &json!({}));
        all_reach(&other.netns, &["192.0.2.1:8080"], "first");
        all_reach(&lab.host, &["127.0.0.1:8080"], "first");
        all_reach(&lab.client, &FROM_OUTSIDE, "first");
        del(&lab, &first, &json!({}));
        lab.host.assert_same_as(&before);
    }
}

/// Whoever lacks a line may be the one that nobody counts as the link's user.
#[test]
fn who_has_lost_any_line_keeps_what_it_shares_with_those_who_go() {
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
    ]);
    let lab = Lab::new();
    bridged_frames_are_filtered(&lab, false);
    let (first, other) = (lab.container(2), lab.container(3));
    let _server = serve(&first.netns, 80, "first");
    let before = lab.host.snapshot();
    let mut cut = 0;
    for line in 0..20 {
        add(&lab, &first, &ports(mappings.clone()));
        add(&lab, &other, &port(9090, 80));
        if !has_line(&lab, &first.id, line) {
            break;
        }
        remove_lines(&lab, &first.id, &[line]);
        cut += 1;
        del(&lab, &other, &json!({}));
        let tcp = |at: &str| Fetch::new(Proto::Tcp, at);
        tcp("127.0.0.1:8080").expect(&lab.host, "first");
        for at in ["192.0.2.1:8080", "192.0.2.1:8081"] {
            tcp(at).expect(&lab.client, "first");
            tcp(at).expect(&other.netns, "first");
        }
        del(&lab, &first, &json!({}));
        lab.host.assert_same_as(&before);
    }
    assert!(cut > 5, "a record has its label, its origin, its ports and what it counts in: {cut}");
}

/// The keys of a port that is in no map any more go with their owner, or the next one's packets would come by them.
#[test]
fn a_port_that_somebody_took_out_of_its_map_leaves_nothing_to_the_next_owner() {
    let without_snat = |host| {
        let mut keys = port(host, 80);
        keys["snat"] = false.into();
        keys
    };
    let cases = [
        (port(8080, 80), port(9090, 80), for_somebody_else(8080)),
        (without_snat(8080), without_snat(9090), port(8080, 80)),
    ];
    for (keys, keys_of_other, keys_of_next) in cases {
        let lab = Lab::new();
        bridged_frames_are_filtered(&lab, false);
        let [first, other, next] = [2, 3, 4].map(|n| lab.container(n));
        let _server = serve(&next.netns, 80, "next");
        add(&lab, &other, &keys_of_other);
        let alone = lab.host.snapshot();
        add(&lab, &first, &keys);
        lab.host.nft(&format!("delete element {TABLE} ports4 {{ tcp . 8080, udp . 8080 }}"));
        del(&lab, &first, &json!({}));
        lab.host.assert_same_as(&alone);
        add(&lab, &next, &keys_of_next);
        check(&lab, &next, &keys_of_next);
        if keys_of_next["conditionsV4"].is_null() {
            all_reach(&other.netns, &["192.0.2.1:8080"], "next");
            all_reach(&lab.host, &["127.0.0.1:8080"], "next");
        } else {
            none_reach(&lab.client, &["192.0.2.1:8080"]);
        }
    }
}

#[test]
fn a_port_that_somebody_took_out_of_its_map_goes_over_to_the_next_network() {
    let lab = Lab::new();
    let container = lab.container(2);
    let _server = serve(&container.netns, 80, "inside");
    let (config, target) = second_network(&lab, &container, 1, &port(8080, 80));
    add(&lab, &container, &port(8080, 80));
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &target).succeeds();
    lab.host.nft(&format!("flush map {TABLE} ports4"));
    del(&lab, &container, &json!({}));
    Plugin::ours("portmap").call(&lab.host, Verb::Check, &config, &target).succeeds();
    all_reach(&lab.host, &["127.0.0.1:8080"], "inside");
}
