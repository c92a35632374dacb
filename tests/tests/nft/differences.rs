//! What is read back is what was applied; what somebody changed is reported, and nothing else.

use common::Difference;
use common::nft::*;
use netns_tests::Netns;

use super::everything::everything;
use super::printing::without_order;
use super::{TABLE, attachment, ip, ports_map, tcp, v4};

#[test]
fn what_was_applied_is_read_back_without_differences() {
    let netns = Netns::new("nft");
    let skeleton = everything();
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&skeleton], &Transaction::new()).unwrap();
        assert_eq!(nft.differences(&skeleton).unwrap(), []);
        for chain in &skeleton.chains {
            let read: Vec<RuleInfo> = nft.rules(&TABLE, &chain.name).unwrap();
            for (rule, read) in chain.rules.iter().zip(&read) {
                assert!(read.rule().is_some(), "{rule} is read back as {}", read.text());
                assert_eq!(without_order(&read.text()), without_order(&rule.to_string()));
            }
            let info = nft.chain(&TABLE, &chain.name).unwrap().unwrap();
            assert_eq!((info.hook, info.comment), (chain.hook, chain.comment.clone()));
        }
        let names: Vec<String> = nft.chains(&TABLE).unwrap().into_iter().map(|c| c.name).collect();
        assert_eq!(names, skeleton.chains.iter().map(|c| c.name.clone()).collect::<Vec<_>>());
        assert_eq!(nft.tables().unwrap(), [TABLE]);
    });
}

/// `broken` is done to the table of [`everything`]; gives what is reported then, "expected | found" a line.
fn reported(broken: &str) -> Vec<String> {
    let netns = Netns::new("nft");
    let skeleton = everything();
    netns.inside(|| NftSocket::new().commit_on(&[&skeleton], &Transaction::new()).unwrap());
    let handles = netns.run("nft -a list table inet t");
    // `@{text}` stands for the handle of the rule with this text.
    let mut script = broken.to_owned();
    while let Some((before, rest)) = script.split_once("@{") {
        let (text, after) = rest.split_once('}').unwrap();
        let line =
            handles.lines().find(|l| l.trim_start().starts_with(text)).unwrap_or_else(|| panic!("{text}\n{handles}"));
        let handle = line.rsplit(' ').next().unwrap();
        script = format!("{before}{handle}{after}");
    }
    netns.nft(&script);
    let differences = netns.inside(|| NftSocket::new().differences(&skeleton).unwrap());
    differences.iter().map(Difference::to_string).collect()
}

#[test]
fn each_change_of_the_static_rules_is_reported_alone() {
    let rule = |chain: &str| format!("rule of chain {chain} of table inet t: ");
    let marked = "meta mark & 0x00002000 == 0x00002000 masquerade";
    reported_alone(vec![
        ("flush chain inet t raw", vec![]),
        (
            "delete rule inet t postrouting handle @{meta mark & 0x00002000 == 0x00002000}",
            vec![rule("postrouting") + &format!("expected {marked}, found nothing")],
        ),
        (
            "replace rule inet t postrouting handle @{meta mark & 0x00002000 == 0x00002000} meta mark 0x2000 masquerade",
            vec![rule("postrouting") + &format!("expected {marked}, found meta mark 0x00002000 masquerade")],
        ),
        (
            "replace rule inet t postrouting handle @{meta mark & 0x00002000 == 0x00002000} \
             meta mark & 0x2000 == 0x2000 masquerade random",
            vec![
                rule("postrouting")
                    + &format!(
                        "expected {marked}, found [meta mark] [& 0x00200000 ^ 0x00000000] [== 0x00200000] [masq]"
                    ),
            ],
        ),
        (
            "insert rule inet t forwarding tcp dport { 22, 23 } drop",
            vec![rule("forwarding") + "expected nothing, found tcp dport { 22, 23 } drop"],
        ),
        (
            "add rule inet t output limit rate 1/second log",
            vec![rule("output") + "expected nothing, found [limit] [log]"],
        ),
        (
            "replace rule inet t nat handle @{dnat ip to meta l4proto} \
             dnat ip to meta l4proto . th dport map { tcp . 8080 : 10.88.0.3 . 80 }",
            vec![
                rule("nat")
                    + "expected dnat ip to meta l4proto . th dport map { tcp . 8080 : 10.88.0.2 . 80 }, \
                   found dnat ip to meta l4proto . th dport map { tcp . 8080 : 10.88.0.3 . 80 }",
            ],
        ),
        (
            "replace rule inet t nat handle @{ip saddr 10.88.0.0/16} ip saddr 10.88.0.0/16 meta mark set meta mark | 0x2000",
            vec![
                rule("nat")
                    + "expected ip saddr 10.88.0.0/16 meta mark set meta mark | 0x00002000 comment \"hairpin\", \
                   found ip saddr 10.88.0.0/16 meta mark set meta mark | 0x00002000",
            ],
        ),
    ]);
}

#[test]
fn each_change_of_chains_and_sets_is_reported_alone() {
    reported_alone(vec![
        (
            "delete chain inet t raw; add chain inet t raw { type filter hook prerouting priority -299; }",
            vec![
                "chain raw of table inet t: expected type filter hook prerouting priority -300; policy accept;, \
                  found type filter hook prerouting priority -299; policy accept;"
                    .into(),
            ],
        ),
        (
            "add chain inet t raw { policy drop; }",
            vec![
                "chain raw of table inet t: expected type filter hook prerouting priority -300; policy accept;, \
                  found type filter hook prerouting priority -300; policy drop;"
                    .into(),
            ],
        ),
        ("delete chain inet t raw", vec!["chain raw of table inet t: expected the chain, found nothing".into()]),
        (
            "delete chain inet t raw; add chain inet t raw",
            vec![
                "chain raw of table inet t: expected type filter hook prerouting priority -300; policy accept;, \
                  found no hook"
                    .into(),
            ],
        ),
        (
            "delete chain inet t output; \
             add chain inet t output { comment \"mine\"; type nat hook output priority -95; }",
            vec![
                "chain output of table inet t: expected comment \"base chains have comments too\", \
                  found comment \"mine\""
                    .into(),
            ],
        ),
        (
            "delete map inet t targets",
            vec![
                "map targets of table inet t: expected type inet_service : ipv4_addr . inet_service, found nothing"
                    .into(),
            ],
        ),
        (
            "delete map inet t marks; add set inet t marks { type ifname; }",
            vec!["map marks of table inet t: expected type ifname : mark, found type ifname".into()],
        ),
        (
            "delete map inet t marks; add map inet t marks { type ifname : mark; flags timeout; }",
            vec!["map marks of table inet t: expected type ifname : mark, found a set of other types".into()],
        ),
        ("delete table inet t", vec!["table inet t: expected the table, found nothing".into()]),
        // What others put beside ours in our table isn't ours to judge.
        ("add chain inet t mine; add rule inet t mine drop; add set inet t own { type mark; }", vec![]),
    ]);
}

fn reported_alone(cases: Vec<(&str, Vec<String>)>) {
    for (broken, expected) in cases {
        assert_eq!(reported(broken), expected, "{broken}");
    }
}

#[test]
fn a_flushed_chain_lacks_each_rule() {
    let rules = everything().chains.iter().find(|c| c.name == "postrouting").unwrap().rules.len();
    let report = reported("flush chain inet t postrouting");
    assert_eq!(report.len(), rules);
    assert!(report.iter().all(|line| line.ends_with("found nothing")), "{report:?}");
}

#[test]
fn counting_packets_is_no_difference() {
    let report = reported(
        "replace rule inet t nat handle @{ip6 saddr fd00::/8} ip6 saddr fd00::/8 counter packets 12 bytes 3456",
    );
    assert_eq!(report, [""; 0]);
}

#[test]
fn each_change_of_an_element_is_reported_alone() {
    let mine = |port| Element::verdict(tcp(port), Verdict::Jump("a".into())).comment("net/a/eth0");
    let cases = [
        ("", None),
        ("delete element inet t ports { tcp . 2 }", Some("nothing")),
        (
            "delete element inet t ports { tcp . 2 }; add element inet t ports { tcp . 2 comment \"net/a/eth0\" : jump b }",
            Some("tcp . 2 comment \"net/a/eth0\" : jump b"),
        ),
        (
            "delete element inet t ports { tcp . 2 }; add element inet t ports { tcp . 2 : jump a }",
            Some("tcp . 2 : jump a"),
        ),
        ("add element inet t ports { udp . 2 : drop }", None),
    ];
    for (broken, found) in cases {
        let netns = Netns::new("nft");
        let differences = netns.inside(|| {
            let mut nft = NftSocket::new();
            nft.commit_on(&[&super::small()], &attachment("a", [1, 2, 3])).unwrap();
            netns.nft("add chain inet t b");
            netns.nft(broken);
            nft.element_differences(&TABLE, &ports_map(), &[mine(1), mine(2), mine(3)]).unwrap()
        });
        let expected: Vec<Difference> = found
            .map(|found| Difference::other("element of map ports of table inet t", mine(2).to_string(), found))
            .into_iter()
            .collect();
        assert_eq!(differences, expected, "{broken}");
    }
}

#[test]
fn a_flushed_map_lacks_each_element() {
    let netns = Netns::new("nft");
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&super::small()], &attachment("a", 1..=4)).unwrap();
        netns.nft("flush map inet t ports");
        let wanted: Vec<Element> = (1..=4).map(|p| Element::verdict(tcp(p), Verdict::Jump("a".into()))).collect();
        assert_eq!(nft.element_differences(&TABLE, &ports_map(), &wanted).unwrap().len(), 4);
    });
}

#[test]
fn ranges_come_back_as_they_were() {
    let netns = Netns::new("nft");
    let elements = [
        Element::prefix(ip("0.0.0.0"), 8),
        Element::prefix(ip("1.0.0.0"), 8),
        Element::range(v4("10.0.0.1"), v4("10.0.0.9")),
        Element::key([v4("192.0.2.1")]),
        Element::prefix(ip("255.255.0.0"), 16),
    ];
    let rule = Rule::new([Statement::InSet {
        selectors: vec![Selector::Saddr(IpVersion::V4)],
        negated: true,
        set: SetSource::Inline(elements.to_vec()),
    }]);
    netns.inside(|| {
        let mut nft = NftSocket::new();
        let chain = Chain::regular("c", vec![rule.clone()]);
        let mut transaction = Transaction::new();
        transaction.push(Command::AddTable(TABLE, None));
        transaction.add_chain(&TABLE, chain.clone());
        nft.commit(&transaction).unwrap();
        assert_eq!(nft.rules(&TABLE, "c").unwrap()[0].rule().as_ref(), Some(&rule));
        assert_eq!(nft.chain_differences(&TABLE, &chain).unwrap(), []);
    });
    let text = "ip saddr != { 0.0.0.0/8, 1.0.0.0/8, 10.0.0.1-10.0.0.9, 192.0.2.1, 255.255.0.0/16 }";
    assert!(netns.run("nft list ruleset").contains(text), "{}", netns.run("nft list ruleset"));
}

#[test]
fn chains_asked_for_together_come_in_the_order_of_their_names() {
    let netns = Netns::new("nft");
    let skeleton = everything();
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&skeleton], &Transaction::new()).unwrap();
        let absent = Table::new(Family::Ip6, "t");
        let (first, second) = (skeleton.chains[0].name.as_str(), skeleton.chains[1].name.as_str());
        let asked = [(TABLE, second), (TABLE, "absent"), (absent.clone(), first), (TABLE, first), (absent, second)];
        let found = nft.chains_at(&asked).unwrap().into_iter().map(|chain| chain.map(|c| c.name));
        let wanted = [Some(second), None, None, Some(first), None].map(|name| name.map(str::to_owned));
        assert_eq!(found.collect::<Vec<_>>(), wanted);
        assert_eq!(nft.chains_at(&[]).unwrap(), []);
    });
}
