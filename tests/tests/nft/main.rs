//! The nftables door against the kernel and against `nft`: what is applied is what `nft` lists, what is read back is what
//! was applied, and what doesn't apply leaves no trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::too_many_lines)]

mod concurrency;
mod differences;
mod everything;
mod printing;
mod random;
mod skeleton;
mod transactions;

use std::net::IpAddr;

use common::nft::*;
use netns_tests::Netns;

/// The table of most tests.
const TABLE: Table = Table::new(Family::Inet, "t");

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v4(text: &str) -> Value {
    Value::ip(ip(text))
}

/// A skeleton with a verdict map `ports` and a chain that looks into it: what a plugin has.
fn small() -> Skeleton {
    let ports = [Selector::L4proto, Selector::ThDport];
    let look = Rule::new([Statement::vmap(ports, "ports")]);
    Skeleton {
        table: TABLE,
        comment: None,
        sets: vec![ports_map()],
        chains: vec![
            Chain::regular("hostports", vec![look]),
            Chain::base(
                "prerouting",
                HookKind::Nat,
                HookPoint::Prerouting,
                -95,
                vec![Rule::new([Statement::is(Selector::FibDaddrType, Value::LOCAL), Statement::jump("hostports")])],
            ),
        ],
    }
}

fn ports_map() -> Set {
    Set::vmap("ports", [DataType::InetProto, DataType::InetService])
}

fn tcp(port: u16) -> [Value; 2] {
    [Value::Proto(6), Value::Port(port)]
}

/// An attachment's chain with its ports in the map.
fn attachment(name: &str, ports: impl IntoIterator<Item = u16>) -> Transaction {
    let chain = Chain::regular(name, vec![Rule::new([Statement::Counter])]).comment(format!("net/{name}/eth0"));
    let claim = |port| Element::verdict(tcp(port), Verdict::Jump(name.into())).comment(format!("net/{name}/eth0"));
    let mut transaction = Transaction::new();
    transaction.add_chain(&TABLE, chain);
    transaction.add_elements(&TABLE, "ports", Presence::Exclusive, ports.into_iter().map(claim).collect());
    transaction
}

/// Everything in the namespace, without handles and counters.
fn ruleset(netns: &Netns) -> String {
    netns.run("nft -s list ruleset")
}
