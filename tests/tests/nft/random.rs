//! Whatever the model can say, the kernel takes, `nft` lists as printed, and is read back as it was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::nft::*;
use netns_tests::Netns;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::TABLE;
use super::printing::without_order;

fn selector() -> impl Strategy<Value = Selector> {
    use IpVersion::{V4, V6};
    use Selector::*;
    select(vec![
        Nfproto,
        L4proto,
        Iifname,
        Oifname,
        Iifkind,
        Mark,
        PktType,
        Skuid,
        Skgid,
        Saddr(V4),
        Saddr(V6),
        Daddr(V4),
        Daddr(V6),
        ThSport,
        ThDport,
        Sport(Transport::Tcp),
        Dport(Transport::Udp),
        Dport(Transport::Sctp),
        CtState,
        CtStatus,
        CtMark,
        CtDirection,
        CtOriginalSaddr(V4),
        CtOriginalDaddr(V6),
        CtReplySaddr(V4),
        FibDaddrType,
        FibSaddrType,
    ])
}

fn value(data_type: DataType) -> BoxedStrategy<Value> {
    match data_type {
        DataType::NfProto => select(IpVersion::ALL.to_vec()).prop_map(Value::Nfproto).boxed(),
        DataType::Ipv4Addr => any::<u32>().prop_map(|a| Value::V4(a.into())).boxed(),
        DataType::Ipv6Addr => any::<u128>().prop_map(|a| Value::V6(a.into())).boxed(),
        DataType::EtherAddr => any::<[u8; 6]>().prop_map(Value::Ether).boxed(),
        DataType::EtherType => any::<u16>().prop_map(Value::Protocol).boxed(),
        DataType::InetProto => select(vec![6u8, 17, 132, 1, 253]).prop_map(Value::Proto).boxed(),
        DataType::InetService => any::<u16>().prop_map(Value::Port).boxed(),
        DataType::Mark => any::<u32>().prop_map(Value::Mark).boxed(),
        DataType::IfaceIndex => any::<u32>().prop_map(Value::Ifindex).boxed(),
        DataType::Ifname => "[a-z][a-z0-9@._-]{0,14}".prop_map(Value::Ifname).boxed(),
        DataType::Uid => (100_000u32..).prop_map(Value::Uid).boxed(),
        DataType::Gid => (100_000u32..).prop_map(Value::Gid).boxed(),
        DataType::CtState => select(vec![1u32, 2, 4, 8, 64]).prop_map(Value::CtState).boxed(),
        DataType::CtStatus => select(vec![1u32, 2, 4, 8, 16, 32]).prop_map(Value::CtStatus).boxed(),
        DataType::CtDir => any::<bool>().prop_map(Value::CtReply).boxed(),
        DataType::Icmpv6Type => (133u8..138).prop_map(Value::Icmpv6Type).boxed(),
        DataType::PktType => (0u8..4).prop_map(Value::PktType).boxed(),
        DataType::FibAddrType => (1u32..9).prop_map(Value::AddrType).boxed(),
    }
}

fn address(data_type: DataType, bits: u128) -> Option<IpAddr> {
    match data_type {
        DataType::Ipv4Addr => Some(IpAddr::V4(Ipv4Addr::from(bits as u32))),
        DataType::Ipv6Addr => Some(IpAddr::V6(Ipv6Addr::from(bits))),
        _ => None,
    }
}

/// A test that `nft` prints as the model does. (Bits of `ct state` compared as a whole it prints in its own way.)
fn pattern(selector: Selector) -> BoxedStrategy<Pattern> {
    let data_type = selector.data_type();
    let one = value(data_type).prop_map(Pattern::Is);
    match data_type {
        DataType::Ipv4Addr | DataType::Ipv6Addr => {
            let most = if data_type == DataType::Ipv4Addr { 31u8 } else { 127 };
            let subnet =
                (any::<u128>(), 1..=most).prop_map(move |(a, l)| Pattern::Prefix(address(data_type, a).unwrap(), l));
            prop_oneof![one, subnet, range(data_type)].boxed()
        }
        DataType::InetService => prop_oneof![one, range(data_type)].boxed(),
        DataType::Mark => {
            let masked = (1u32.., any::<u32>()).prop_map(|(mask, value)| Pattern::Masked {
                mask: Value::Mark(mask),
                value: Value::Mark(value & mask),
            });
            prop_oneof![one, masked].boxed()
        }
        DataType::CtState | DataType::CtStatus => value(data_type).prop_map(Pattern::Any).boxed(),
        DataType::Ifname => prop_oneof![one, "[a-z]{1,15}".prop_map(Pattern::Begins)].boxed(),
        _ => one.boxed(),
    }
}

fn range(data_type: DataType) -> BoxedStrategy<Pattern> {
    (value(data_type), value(data_type))
        .prop_filter("a range of two that is no subnet", |(a, b)| a != b)
        .prop_map(|(a, b)| if a < b { Pattern::Range(a, b) } else { Pattern::Range(b, a) })
        .boxed()
}

fn test() -> impl Strategy<Value = Statement> {
    (selector(), any::<bool>()).prop_flat_map(|(selector, negated)| {
        pattern(selector).prop_map(move |pattern| Statement::Match { selector, negated, pattern })
    })
}

/// Keys of these selectors with these data; `nft` shows one-element sets without braces.
fn elements(selectors: &[Selector], data: Option<BoxedStrategy<Data>>) -> BoxedStrategy<Vec<Element>> {
    let fields: Vec<BoxedStrategy<Value>> = selectors.iter().map(|s| value(s.data_type())).collect();
    btree_set(fields, 2..6)
        .prop_flat_map(move |keys| {
            let count = keys.len();
            let data = match &data {
                Some(data) => vec(data.clone().prop_map(Some), count).boxed(),
                None => Just(vec![None; count]).boxed(),
            };
            data.prop_map(move |data| {
                keys.iter().zip(data).map(|(key, data)| Element { data, ..Element::key(key.clone()) }).collect()
            })
        })
        .boxed()
}

fn selectors() -> impl Strategy<Value = Vec<Selector>> {
    use IpVersion::{V4, V6};
    use Selector::*;
    select(vec![
        vec![Saddr(V4)],
        vec![ThDport],
        vec![L4proto, ThDport],
        vec![Daddr(V4), L4proto, ThDport],
        vec![Daddr(V6), L4proto, ThDport],
        vec![Iifname],
        vec![Iifname, Oifname],
        vec![Saddr(V6), Dport(Transport::Tcp)],
        vec![Mark],
    ])
}

fn verdict() -> impl Strategy<Value = Verdict> {
    use Verdict::*;
    select(vec![Accept, Drop, Return, Jump("other".into()), Goto("other".into())])
}

fn look_up() -> impl Strategy<Value = Statement> {
    selectors().prop_flat_map(|selectors| {
        let (s, t) = (selectors.clone(), selectors.clone());
        let in_set = (elements(&selectors, None), any::<bool>()).prop_map(move |(elements, negated)| {
            Statement::InSet { selectors: s.clone(), negated, set: SetSource::Inline(elements) }
        });
        let verdicts = verdict().prop_map(Data::Verdict).boxed();
        let vmap = elements(&selectors, Some(verdicts))
            .prop_map(move |elements| Statement::Vmap { selectors: t.clone(), map: SetSource::Inline(elements) });
        prop_oneof![in_set, vmap]
    })
}

fn dnat() -> impl Strategy<Value = Statement> {
    select(IpVersion::ALL.to_vec()).prop_flat_map(|version| {
        let data_type = version.address_type();
        let selectors = vec![Selector::L4proto, Selector::ThDport];
        let to = [value(data_type), value(DataType::InetService)];
        let data = to.prop_map(|to| Data::Values(to.into())).boxed();
        let map = elements(&selectors, Some(data))
            .prop_map(move |e| DnatTarget::Map(selectors.clone(), SetSource::Inline(e)));
        let fixed = any::<u128>().prop_map(move |a| DnatTarget::Address(address(data_type, a).unwrap(), None));
        prop_oneof![map, fixed].prop_map(move |target| Statement::Dnat { version, target })
    })
}

fn action() -> impl Strategy<Value = Vec<Statement>> {
    let mark = (select(vec![MarkOf::Packet, MarkOf::Connection]), 1u32.., any::<bool>())
        .prop_map(|(of, bits, set)| vec![Statement::SetMark { of, keep: !bits, bits: if set { bits } else { 0 } }]);
    prop_oneof![
        verdict().prop_map(|v| vec![Statement::Verdict(v)]),
        verdict().prop_map(|v| vec![Statement::Counter, Statement::Verdict(v)]),
        mark,
        dnat().prop_map(|s| vec![s]),
        look_up().prop_map(|s| vec![s]),
        Just(vec![Statement::Masquerade]),
        Just(vec![Statement::CopyMark { to: MarkOf::Packet }]),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let comment = proptest::option::of("[ -!#-~]{1,125}");
    (vec(test(), 0..4), action(), comment)
        .prop_filter("tests that contradict each other, nft lists in its own way", |(tests, action, _)| {
            plainly_listed(tests, action)
        })
        .prop_map(|(tests, action, comment)| Rule { statements: [tests, action].concat(), comment })
}

/// Packets of both versions, or of two protocols, there are none, and `nft` gets confused; it also joins and leaves out
/// tests of the protocol and the family (`meta nfproto ipv4` before ICMP, say) in ways that change with its version.
fn plainly_listed(tests: &[Statement], action: &[Statement]) -> bool {
    let all = || {
        tests.iter().chain(action).flat_map(|statement| match statement {
            Statement::Match { selector, .. } => vec![*selector],
            Statement::InSet { selectors, .. } | Statement::Vmap { selectors, .. } => selectors.clone(),
            Statement::Dnat { version, target } => {
                let mut all = vec![Selector::Saddr(*version)];
                if let DnatTarget::Map(selectors, _) = target {
                    all.extend(selectors);
                }
                all
            }
            _ => vec![],
        })
    };
    let versions: std::collections::BTreeSet<_> = all().filter_map(Selector::version).collect();
    let transports: std::collections::HashSet<_> = all().filter_map(Selector::transport).collect();
    let says = |s| all().any(|a| a == s);
    let icmp =
        tests.iter().any(|test| matches!(test, Statement::Match { pattern: Pattern::Is(Value::Proto(1 | 58)), .. }));
    versions.len() <= 1
        && transports.len() <= 1
        && !((icmp || !versions.is_empty()) && says(Selector::Nfproto))
        && !(says(Selector::L4proto)
            && (!transports.is_empty() || says(Selector::ThSport) || says(Selector::ThDport))
            && !tests.is_empty())
        && (transports.is_empty() || !(says(Selector::ThSport) || says(Selector::ThDport)))
}

#[test]
fn random_rules_are_taken_listed_and_read_back() {
    let netns = Netns::new("nft");
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let rules = vec(rule(), 1..40);
    let outcome = runner.run(&rules, |rules| {
        let chain = Chain::regular("c", rules);
        let mut transaction = Transaction::new();
        transaction.destroy_table(&TABLE);
        transaction.push(Command::AddTable(TABLE, None));
        transaction.push(Command::AddChain(TABLE, Chain::regular("other", vec![])));
        transaction.add_chain(&TABLE, chain.clone());
        let read = netns.inside(|| {
            let mut nft = NftSocket::new();
            nft.commit(&transaction).unwrap_or_else(|e| panic!("{e:?}\n{transaction}"));
            assert_eq!(nft.chain_differences(&TABLE, &chain).unwrap(), []);
            nft.rules(&TABLE, "c").unwrap()
        });
        for (rule, read) in chain.rules.iter().zip(&read) {
            prop_assert!(read.rule().is_some(), "{rule} is read back as {}", read.text());
            prop_assert_eq!(without_order(&rule.to_string()), without_order(&read.text()));
        }
        let listing = netns.run("nft list chain inet t c");
        let printed = format!("table inet t {{\n{chain}}}\n");
        for (ours, theirs) in without_order(&printed).iter().zip(&without_order(&listing)) {
            prop_assert_eq!(ours, theirs);
        }
        Ok::<(), TestCaseError>(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}
