//! The model's text is `nft list`'s text.

use common::nft::*;
use netns_tests::Netns;

use super::everything::everything;
use super::{TABLE, ip, ports_map, tcp, v4};

/// `nft` sorts the elements of anonymous sets in its own way.
pub(super) fn without_order(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| {
            let mut words: Vec<&str> = line.split([' ', ',']).collect();
            if line.contains("{ ") {
                words.sort_unstable();
            }
            words.join(" ")
        })
        .collect()
}

pub(super) fn without_marker(listing: &str) -> String {
    let Some(start) = listing.find("\tset skeleton {") else { panic!("no marker in {listing}") };
    let end = start + listing[start..].find("\t}\n\n").unwrap() + 4;
    format!("{}{}", &listing[..start], &listing[end..])
}

/// Applies a skeleton and compares its text with what `nft` lists.
fn assert_listed_as_printed(skeleton: &Skeleton) {
    let netns = Netns::new("nft");
    netns.inside(|| NftSocket::new().commit_on(&[skeleton], &Transaction::new()).unwrap());
    let listing = without_marker(&netns.run(&format!("nft list table {}", skeleton.table)));
    assert_eq!(without_order(&skeleton.to_string()), without_order(&listing), "{skeleton}\n{listing}");
}

#[test]
fn nft_lists_what_the_model_prints() {
    assert_listed_as_printed(&everything());
}

#[test]
fn other_families_are_listed_as_printed() {
    use HookKind::Filter;
    use HookPoint::{Forward, Output, Prerouting};
    let rules = |version| {
        let address = if version == IpVersion::V4 { "192.0.2.1" } else { "2001:db8::1" };
        vec![
            Rule::new([Statement::is(Selector::Saddr(version), v4(address)), Statement::DROP]),
            Rule::new([
                Statement::is(Selector::Dport(Transport::Tcp), Value::Port(80)),
                Statement::to_subnet(ip(address), 31),
            ]),
            Rule::new([Statement::is(Selector::Iifname, Value::Ifname("cni0".into())), Statement::RETURN]),
        ]
    };
    let [v4_rules, v6_rules] = IpVersion::ALL.map(rules);
    for (family, rules) in [
        (Family::Ip, v4_rules.clone()),
        (Family::Ip6, v6_rules.clone()),
        (Family::Bridge, [v4_rules, v6_rules].concat()),
    ] {
        let bridge = family == Family::Bridge;
        let mut rules = rules;
        if bridge {
            rules.push(Rule::new([Statement::is(Selector::Protocol, Value::Protocol(0x0806)), Statement::ACCEPT]));
        }
        let chain = |name, point, priority, rules| Chain::base(name, Filter, point, priority, rules);
        assert_listed_as_printed(&Skeleton {
            table: Table::new(family, "t"),
            comment: None,
            sets: vec![Set::vmap("links", [DataType::Ifname])],
            chains: vec![
                chain("forwarding", Forward, if bridge { -200 } else { 0 }, rules),
                chain("before", Prerouting, if bridge { -305 } else { -105 }, vec![]),
                chain("out", Output, if bridge { 100 } else { -100 }, vec![]),
            ],
        });
    }
}

#[test]
fn elements_are_listed_as_printed() {
    let netns = Netns::new("nft");
    let cases = [
        (ports_map(), Element::verdict(tcp(8080), Verdict::Jump("c".into())).comment("net/id/eth0")),
        (Set::vmap("a4", [DataType::Ipv4Addr]), Element::verdict([v4("192.0.2.1")], Verdict::Goto("c".into()))),
        (Set::vmap("a6", [DataType::Ipv6Addr]), Element::verdict([v4("2001:db8::1")], Verdict::Drop)),
        (
            Set::vmap("ap6", [DataType::Ipv6Addr, DataType::InetProto, DataType::InetService]),
            Element::verdict([v4("2001:db8::1"), Value::Proto(132), Value::Port(53)], Verdict::Return),
        ),
        (Set::of("names", [DataType::Ifname]), Element::key([Value::Ifname("veth0123456789a".into())])),
        (Set::of("stars", [DataType::Ifname]), Element::key([Value::Ifname("a*".into())])),
        (Set::of("marks", [DataType::Mark]), Element::key([Value::Mark(0x2000)]).comment("quoted \\ comment")),
        (Set::of("subnets", [DataType::Ipv4Addr]).interval(), Element::prefix(ip("10.1.2.3"), 8)),
        (Set::of("ranges", [DataType::Ipv6Addr]).interval(), Element::range(v4("fd00::1"), v4("fd00::ff"))),
        (Set::of("last", [DataType::Ipv4Addr]).interval(), Element::prefix(ip("255.0.0.0"), 8)),
        (Set::of("hosts", [DataType::Ipv4Addr]).interval(), Element::prefix(ip("192.0.2.1"), 32)),
        (
            Set::map("to", [DataType::InetService], [DataType::Ipv4Addr, DataType::InetService]),
            Element::values([Value::Port(80)], [v4("10.0.0.2"), Value::Port(8080)]).comment("x"),
        ),
        (
            Set::map("classes", [DataType::Ifname], [DataType::Mark]),
            Element::values([Value::Ifname("eth0".into())], [Value::Mark(7)]),
        ),
        (Set::of("macs", [DataType::EtherAddr]), Element::key([Value::Ether([2, 0, 0, 0, 0, 0x1f])])),
        (Set::of("states", [DataType::CtState]), Element::key([Value::CtState(Value::NEW)])),
    ];
    netns.inside(|| {
        let mut nft = NftSocket::new();
        for (set, element) in &cases {
            let mut transaction = Transaction::new();
            transaction.push(Command::AddTable(TABLE, None));
            transaction.push(Command::AddChain(TABLE, Chain::regular("c", vec![])));
            transaction.push(Command::AddSet(TABLE, set.clone()));
            transaction.add_elements(&TABLE, &set.name, Presence::Exclusive, vec![element.clone()]);
            nft.commit(&transaction).unwrap_or_else(|e| panic!("{element}: {e:?}"));
            let listing = netns.run(&format!("nft list {} inet t {}", set.keyword(), set.name));
            assert!(listing.contains(&format!("elements = {{ {element} }}")), "{element} in\n{listing}");
            let read = nft.elements(&TABLE, set).unwrap();
            assert_eq!(read.iter().map(Element::to_string).collect::<Vec<_>>(), [element.to_string()]);
            assert_eq!(nft.set(&TABLE, &set.name).unwrap().unwrap().set.as_ref(), Some(set));
        }
    });
}

#[test]
fn a_transaction_prints_as_a_script_that_nft_takes() {
    let mut skeleton = everything();
    for chain in &mut skeleton.chains {
        // Listed, but not taken by nft.
        chain.rules.retain(|rule| !rule.statements.is_empty());
    }
    let mut transaction = Transaction::new();
    transaction.push(Command::AddTable(TABLE, skeleton.comment.clone()));
    for set in skeleton.sets.clone() {
        transaction.push(Command::AddSet(TABLE, set));
    }
    for chain in &skeleton.chains {
        transaction.push(Command::AddChain(TABLE, Chain { rules: vec![], ..chain.clone() }));
    }
    for chain in &skeleton.chains {
        transaction.push(Command::AddRules(TABLE, chain.clone()));
    }
    transaction.add_elements(
        &TABLE,
        "ports",
        Presence::Exclusive,
        vec![
            Element::verdict(tcp(1), Verdict::Jump("other".into())).comment("a"),
            Element::verdict(tcp(2), Verdict::Drop),
        ],
    );
    let script = transaction.to_string();
    let by_script = Netns::new("script");
    by_script.nft(&script);
    let by_batch = Netns::new("batch");
    by_batch.inside(|| NftSocket::new().commit(&transaction).unwrap());
    // nft doesn't list a pair of ports as it was written.
    let [a, b] = [by_script, by_batch]
        .map(|n| without_order(&n.run("nft list ruleset").replace("@th,0,32 0x350035", "th sport 53 th dport 53")));
    assert_eq!(a, b, "{script}");
    let elsewhere = Netns::new("reader");
    elsewhere.nft(&script);
    elsewhere.inside(|| assert_eq!(NftSocket::new().differences(&skeleton).unwrap(), []));
}

#[test]
fn iptables_reads_the_rule_that_admits_marked_packets() {
    let netns = Netns::new("iptables");
    netns.run("iptables-nft -N CNI-FORWARD");
    let rule = Rule::new([Statement::has_mark(0x100_0000), Statement::Counter, Statement::ACCEPT]).comment("admitted");
    let filter = Table::new(Family::Ip, "filter");
    netns.inside(|| {
        let mut transaction = Transaction::new();
        transaction.add_rule(&filter, "CNI-FORWARD", Position::Top, rule.clone());
        let mut nft = NftSocket::new();
        nft.commit(&transaction).unwrap();
        assert_eq!(nft.rules(&filter, "CNI-FORWARD").unwrap()[0].rule().as_ref(), Some(&rule));
    });
    let saved = netns.run("iptables-nft -S CNI-FORWARD");
    assert!(saved.contains("--mark 0x1000000/0x1000000") && saved.contains("-j ACCEPT"), "{saved}");
    assert!(netns.run("iptables-nft-save").contains("--comment admitted"));
}
