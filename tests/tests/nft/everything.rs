//! A model with one of each: every selector, pattern, statement, data type and kind of chain.

use common::nft::DataType::*;
use common::nft::IpVersion::{V4, V6};
use common::nft::Pattern::*;
use common::nft::Statement as S;
use common::nft::*;

use super::{TABLE, ip, v4};

const TCP: Value = Value::Proto(6);
const PORTS: [Selector; 2] = [Selector::L4proto, Selector::ThDport];

/// One of each statement, selector and pattern.
pub(super) fn everything() -> Skeleton {
    use HookKind::{Filter, Nat};
    use HookPoint::{Forward, Output, Postrouting, Prerouting};
    let mut drop = Chain::base("forwarding", Filter, Forward, -5, of_connections());
    drop.hook.as_mut().unwrap().policy = Policy::Drop;
    let prerouting = [of_lookups(), of_sets(), of_interfaces()].concat();
    Skeleton {
        table: TABLE,
        comment: Some("one of each".into()),
        sets: sets(),
        chains: vec![
            Chain::regular("nat", of_addresses()).comment("net/container/eth0"),
            Chain::regular("other", vec![]),
            Chain::base("prerouting", Nat, Prerouting, -95, prerouting),
            Chain::base("output", Nat, Output, -95, vec![]).comment("base chains have comments too"),
            Chain::base("postrouting", Nat, Postrouting, 100, of_marks()),
            drop,
            Chain::base("raw", Filter, Prerouting, -300, vec![]),
            Chain::base("far", Filter, Prerouting, 11, vec![]),
        ],
    }
}

fn not(selector: Selector, pattern: Pattern) -> Statement {
    S::Match { selector, negated: true, pattern }
}

fn inline(selectors: &[Selector], elements: Vec<Element>) -> Statement {
    S::InSet { selectors: selectors.to_vec(), negated: false, set: SetSource::Inline(elements) }
}

fn dnat(address: &str, port: Option<u16>) -> Statement {
    S::Dnat { version: IpVersion::of(ip(address)), target: DnatTarget::Address(ip(address), port) }
}

fn dnat_by_map(version: IpVersion, address: &str) -> Statement {
    let element = Element::values([TCP, Value::Port(8080)], [v4(address), Value::Port(80)]);
    S::Dnat { version, target: DnatTarget::Map(PORTS.to_vec(), SetSource::Inline(vec![element])) }
}

fn of_addresses() -> Vec<Rule> {
    vec![
        Rule::new([S::from_subnet(ip("10.88.0.0"), 16), S::add_mark(0x2000)]).comment("hairpin"),
        Rule::new([S::from_subnet(ip("127.0.0.0"), 8), S::clear_mark(0x2000)]),
        Rule::new([S::from_subnet(ip("fd00::"), 8), S::Counter]),
        Rule::new([S::to_subnet(ip("fd00::1"), 128), S::to_subnet(ip("fd00::1"), 127), S::ACCEPT]),
        Rule::new([S::SetMark { of: MarkOf::Packet, keep: 0xffff_0000, bits: 0x2000 }]),
        Rule::new([S::SetMark { of: MarkOf::Connection, keep: !1, bits: 1 }]),
        Rule::new([S::SetMark { of: MarkOf::Packet, keep: 0, bits: 3 }]),
        Rule::new([S::CopyMark { to: MarkOf::Packet }]),
        Rule::new([S::CopyMark { to: MarkOf::Connection }]),
        Rule::new([dnat_by_map(V4, "10.88.0.2")]),
        Rule::new([dnat_by_map(V6, "fd00::2")]),
        Rule::new([S::is(Selector::L4proto, TCP), dnat("10.0.0.1", Some(80))]),
        Rule::new([S::is(Selector::L4proto, TCP), dnat("fd00::1", Some(80))]),
        Rule::new([dnat("10.0.0.1", None)]),
    ]
}

fn of_lookups() -> Vec<Rule> {
    vec![
        Rule::new([S::is(Selector::FibDaddrType, Value::LOCAL), S::jump("nat")]),
        Rule::new([S::is_not(Selector::FibSaddrType, Value::LOCAL), S::goto("nat")]),
        Rule::new([S::is(Selector::Nfproto, Value::Nfproto(V4)), S::vmap(PORTS, "ports")]),
        Rule::new([S::vmap([Selector::Daddr(V4), PORTS[0], PORTS[1]], "addr_ports4")]),
        Rule::new([S::vmap([Selector::Daddr(V6), PORTS[0], PORTS[1]], "addr_ports6")]),
        Rule::new([S::vmap([Selector::Saddr(V4)], "by_address")]),
        Rule::new([
            S::is_not(Selector::Saddr(V4), v4("10.0.0.1")),
            S::is(Selector::Dport(Transport::Tcp), Value::Port(80)),
        ]),
        Rule::new([S::matches(Selector::Sport(Transport::Udp), Range(Value::Port(80), Value::Port(90)))]),
        Rule::new([not(Selector::Dport(Transport::Sctp), Range(Value::Port(80), Value::Port(90)))]),
        Rule::new([S::is(Selector::ThSport, Value::Port(53)), S::is(Selector::ThDport, Value::Port(53))]),
        Rule::new([S::matches(Selector::Saddr(V4), Range(v4("10.0.0.1"), v4("10.0.0.9"))), S::RETURN]),
        Rule::new([not(Selector::Saddr(V4), Prefix(ip("10.0.0.0"), 8)), S::ACCEPT]),
    ]
}

fn of_sets() -> Vec<Rule> {
    vec![
        Rule::new([S::in_set([Selector::Saddr(V4)], "ranges")]),
        Rule::new([S::InSet {
            selectors: vec![Selector::Saddr(V4)],
            negated: true,
            set: SetSource::Named("ranges".into()),
        }]),
        Rule::new([inline(
            &[Selector::Dport(Transport::Tcp)],
            vec![Element::range(Value::Port(1000), Value::Port(2000)), Element::key([Value::Port(80)])],
        )]),
        Rule::new([inline(
            &[Selector::Saddr(V4)],
            vec![Element::prefix(ip("10.0.0.0"), 8), Element::key([v4("192.0.2.1")])],
        )]),
        Rule::new([inline(
            &[Selector::Saddr(V4), Selector::Dport(Transport::Tcp)],
            vec![Element::key([v4("10.0.0.1"), Value::Port(80)])],
        )]),
        Rule::new([inline(&[Selector::L4proto], vec![Element::key([TCP]), Element::key([Value::Proto(17)])])]),
    ]
}

fn of_interfaces() -> Vec<Rule> {
    vec![
        Rule::new([
            S::matches(Selector::Iifname, Begins("veth".into())),
            not(Selector::Oifname, Begins("eth".into())),
            S::DROP,
        ]),
        Rule::new([
            S::in_set([Selector::Iifname], "links"),
            S::is_not(Selector::Oifname, Value::Ifname("eth0".into())),
        ]),
        Rule::new([S::Vmap {
            selectors: vec![Selector::Iifname, Selector::Oifname],
            map: SetSource::Inline(vec![Element::verdict(
                [Value::Ifname("a".into()), Value::Ifname("b".into())],
                Verdict::Drop,
            )]),
        }]),
        Rule::new([S::Vmap {
            selectors: vec![Selector::Iifname],
            map: SetSource::Inline(vec![Element::verdict([Value::Ifname("cni0".into())], Verdict::Goto("nat".into()))]),
        }]),
        Rule::default().comment("nothing but a comment"),
    ]
}

fn of_marks() -> Vec<Rule> {
    vec![
        Rule::new([S::has_mark(0x2000), S::Masquerade]),
        Rule::new([
            S::matches(Selector::Mark, Masked { mask: Value::Mark(0x2000), value: Value::Mark(0) }),
            S::Counter,
            S::ACCEPT,
        ]),
        Rule::new([not(Selector::CtMark, Masked { mask: Value::Mark(1), value: Value::Mark(1) })]),
        Rule::new([S::is(Selector::Mark, Value::Mark(0x2000)), S::is_not(Selector::CtMark, Value::Mark(7))]),
    ]
}

fn of_connections() -> Vec<Rule> {
    vec![
        Rule::new([S::ct_state(Value::ESTABLISHED | Value::RELATED), S::ACCEPT]),
        Rule::new([S::ct_state(Value::NEW)]),
        Rule::new([not(Selector::CtState, Any(Value::CtState(Value::ESTABLISHED | Value::RELATED | Value::INVALID)))]),
        Rule::new([S::ct_status(Value::DNAT), S::ACCEPT]),
        Rule::new([not(Selector::CtStatus, Any(Value::CtStatus(Value::SNAT)))]),
        Rule::new([
            S::is(Selector::CtDirection, Value::CtReply(true)),
            S::is(Selector::CtOriginalDaddr(V4), v4("10.0.0.1")),
        ]),
        Rule::new([
            S::is(Selector::CtDirection, Value::CtReply(false)),
            S::is(Selector::CtOriginalSaddr(V4), v4("10.0.0.1")),
        ]),
        Rule::new([
            S::is(Selector::CtOriginalSaddr(V6), v4("fd00::1")),
            S::is(Selector::CtReplySaddr(V6), v4("fd00::1")),
        ]),
        Rule::new([S::is(Selector::L4proto, TCP), S::is(Selector::CtOriginalDport, Value::Port(80))]),
        Rule::new([S::is(Selector::L4proto, Value::Proto(17)), S::is(Selector::CtOriginalSport, Value::Port(80))]),
        Rule::new([S::is_not(Selector::L4proto, Value::Proto(253)), S::is(Selector::Nfproto, Value::Nfproto(V6))]),
        Rule::new([S::is(Selector::PktType, Value::PktType(1)), S::is(Selector::Skuid, Value::Uid(12345))]),
        Rule::new([S::is(Selector::Skgid, Value::Gid(12345)), S::Counter, S::goto("other")]),
    ]
}

fn sets() -> Vec<Set> {
    vec![
        Set::vmap("ports", [InetProto, InetService]).comment("who has which port"),
        Set::vmap("addr_ports4", [Ipv4Addr, InetProto, InetService]),
        Set::vmap("addr_ports6", [Ipv6Addr, InetProto, InetService]),
        Set::vmap("by_address", [Ipv4Addr]),
        Set::of("ranges", [Ipv4Addr]).interval(),
        Set::of("links", [Ifname]),
        Set::map("targets", [InetService], [Ipv4Addr, InetService]),
        Set::map("marks", [Ifname], [Mark]),
        Set::of("odd", [CtState, CtStatus, CtDir, PktType, Uid]),
        Set::of("others", [Gid, FibAddrType, IfaceIndex, NfProto, EtherAddr]),
    ]
}
