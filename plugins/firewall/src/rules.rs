//! The rules, before they are built: what a packet meets, where, and because of what.
//!
//! ```text
//!            prerouting        routing         forward                                            postrouting
//! packet ──► nat: portmap ───► for a     ┌──────────────────────────────────────────────────────┐   nat ──►
//!            DNATs to the      container │ -5  OURS     0   iptables     10 firewalld   200 OURS │
//!            container         or beyond │ decide, ──►  CNI-FORWARD  ──► hostChains ──► clear    │
//!                                        │ mark         CNI-ADMIN, then                 the mark │
//!                                        │              mark → accept                            │
//!                                        └──────────────────────────────────────────────────────┘
//!
//! table inet cni_chain_firewall
//!   forward (-5)   a mark from elsewhere admits nothing: clear it
//!     │            iifname  ──► from_same_bridge, from_isolated ──► same-bridge-BR, isolated-BR: drop or go on
//!     │            ip saddr ──► addresses4/6 ──► attach-KEY   from the container             ──► admitted
//!     ▼            ip daddr ──► addresses4/6 ──► attach-KEY   a reply, or a published port   ──► admitted
//!   (host's own filter decides about all the rest)
//!   admitted       set the mark, accept
//!   cleared (200)  clear the mark
//!
//! table bridge cni_chain_firewall (only where a network is isolated)
//!   forward        from or to the port of an isolated container: drop
//! ```
//!
//! * **forward, priority -5**: because `accept` in one table can't override `drop` in another, all that our table can do
//!   for a packet is to mark it; and the mark must be there before `iptables`' FORWARD (priority 0) looks.
//! * **the mark**: because a set lookup or a native `ct state` inside `ip filter` makes `iptables-save` refuse the whole
//!   table; a comparison of the mark is what iptables-nft writes itself. One rule for all containers, so a packet's
//!   cost doesn't grow with their number.
//! * **policies before admission**: because the reference's isolation rules stand before its acceptance; and by
//!   interface name, because an isolated container must not get out by choosing another source address.
//! * **cleared, priority 200**: because the mark is nobody's business after the last filter (firewalld's, at 10;
//!   security, at 50), and routing or masquerading by mark come later still.
//! * **the bridge family**: because frames between the ports of one bridge don't pass the IP hooks unless
//!   `net.bridge.bridge-nf-call-iptables` is on.
//!
//! An address belongs to the attachment whose chain its element leads to. The chain is at the same time the record of
//! what the attachment owns: DEL reads it and nothing else.

use std::net::IpAddr;

use common::Attachment;
use common::nft::{
    Chain, DataType, Element, Family, HookKind, HookPoint, IpVersion, Rule, Selector, Set, Skeleton, Statement, Table,
    Value, Verdict,
};

use crate::config::IngressPolicy;

/// Our table of the IP hooks.
pub const TABLE: Table = Table::new(Family::Inet, "cni_chain_firewall");

/// Our table of the bridges' hooks.
pub const BRIDGE_TABLE: Table = Table::new(Family::Bridge, "cni_chain_firewall");

/// Before iptables' FORWARD, after everything else that is usual there.
const DECIDE: i32 = -5;

/// After the last filter at the forward hook.
const CLEAR: i32 = 200;

/// The verdict map from the ports of isolated containers to their attachments' chains, in [`BRIDGE_TABLE`].
pub const ISOLATED_PORTS: &str = "isolated_ports";

/// The chain that marks.
const ADMITTED: &str = "admitted";

/// The chain that keeps bridges apart.
const BETWEEN_BRIDGES: &str = "between_bridges";

/// The verdict map from the addresses of one version to their owners' chains.
pub const fn addresses(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "addresses4",
        IpVersion::V6 => "addresses6",
    }
}

/// A policy that restricts, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgePolicy {
    /// The beginning of the name of a bridge's chain.
    pub chain: &'static str,
    /// The verdict map from bridges to their chains.
    pub map: &'static str,
    /// The set of bridges that no other such bridge may reach.
    pub set: &'static str,
}

/// Bridges don't talk to each other.
pub const SAME_BRIDGE: BridgePolicy =
    BridgePolicy { chain: "same-bridge-", map: "from_same_bridge", set: "same_bridge" };

/// Nor do the containers on one.
pub const ISOLATED: BridgePolicy = BridgePolicy { chain: "isolated-", map: "from_isolated", set: "isolated" };

/// Both. Two networks may use one bridge with different policies: then both are in force, as in the reference.
pub const BRIDGE_POLICIES: [BridgePolicy; 2] = [SAME_BRIDGE, ISOLATED];

impl BridgePolicy {
    /// What restricts under this policy, if anything does.
    pub fn of(policy: IngressPolicy) -> Option<BridgePolicy> {
        match policy {
            IngressPolicy::Open => None,
            IngressPolicy::SameBridge => Some(SAME_BRIDGE),
            IngressPolicy::Isolated => Some(ISOLATED),
        }
    }

    /// The chain of this policy for one bridge; its `use` counter counts the attachments that need it.
    pub fn chain_for(&self, bridge: &str) -> String {
        format!("{}{}", self.chain, identifier(bridge))
    }

    /// That chain.
    pub fn bridge_chain(&self, bridge: &str) -> Chain {
        let within = Rule::new([Statement::is(Selector::Oifname, ifname(bridge)), Statement::RETURN]);
        let between = Rule::new([Statement::goto(BETWEEN_BRIDGES)]);
        let rules = if *self == SAME_BRIDGE { vec![within, between] } else { vec![between] };
        Chain::regular(self.chain_for(bridge), rules)
    }

    /// The map element that leads there.
    pub fn from_element(&self, bridge: &str) -> Element {
        Element::verdict([ifname(bridge)], Verdict::Jump(self.chain_for(bridge)))
    }

    /// The set element that makes it unreachable for others.
    pub fn to_element(&self, bridge: &str) -> Element {
        Element::key([ifname(bridge)])
    }
}

/// An interface's name as a part of a chain's name: literally where nft can read that, else in hexadecimal.
fn identifier(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.bytes().all(plain) {
        return name.to_owned();
    }
    name.bytes().fold(String::from("/"), |hex, byte| format!("{hex}{byte:02x}"))
}

/// An interface's name as a value.
pub fn ifname(name: &str) -> Value {
    Value::Ifname(name.to_owned())
}

/// What is static in [`TABLE`].
pub fn skeleton(admit_mark: u32) -> Skeleton {
    let versions = IpVersion::ALL;
    let mut sets: Vec<Set> = Vec::from(versions.map(|v| Set::vmap(addresses(v), [v.address_type()])));
    for policy in BRIDGE_POLICIES {
        sets.push(Set::vmap(policy.map, [DataType::Ifname]));
        sets.push(Set::of(policy.set, [DataType::Ifname]));
    }
    Skeleton {
        table: TABLE,
        comment: Some("CNI firewall plugin".into()),
        sets,
        chains: vec![admitted(admit_mark), between_bridges(), forward(admit_mark), cleared(admit_mark)],
    }
}

fn admitted(mark: u32) -> Chain {
    Chain::regular(ADMITTED, vec![Rule::new([Statement::add_mark(mark), Statement::ACCEPT])])
}

fn between_bridges() -> Chain {
    let refuse =
        |policy: BridgePolicy| Rule::new([Statement::in_set([Selector::Oifname], policy.set), Statement::DROP]);
    Chain::regular(BETWEEN_BRIDGES, BRIDGE_POLICIES.map(refuse).into())
}

fn forward(mark: u32) -> Chain {
    let mut rules = vec![unmark(mark).comment("a mark from elsewhere admits nothing")];
    rules.extend(BRIDGE_POLICIES.map(|p| Rule::new([Statement::vmap([Selector::Iifname], p.map)])));
    for direction in [Selector::Saddr, Selector::Daddr] {
        rules.extend(IpVersion::ALL.map(|v| Rule::new([Statement::vmap([direction(v)], addresses(v))])));
    }
    Chain::base("forward", HookKind::Filter, HookPoint::Forward, DECIDE, rules)
}

fn cleared(mark: u32) -> Chain {
    Chain::base("cleared", HookKind::Filter, HookPoint::Forward, CLEAR, vec![unmark(mark)])
}

fn unmark(mark: u32) -> Rule {
    Rule::new([Statement::has_mark(mark), Statement::clear_mark(mark)])
}

/// What is static in [`BRIDGE_TABLE`].
pub fn bridge_skeleton() -> Skeleton {
    let rules =
        [Selector::Iifname, Selector::Oifname].map(|s| Rule::new([Statement::vmap([s], ISOLATED_PORTS)])).into();
    Skeleton {
        table: BRIDGE_TABLE,
        comment: Some("CNI firewall plugin".into()),
        sets: vec![Set::vmap(ISOLATED_PORTS, [DataType::Ifname])],
        chains: vec![Chain::base("forward", HookKind::Filter, HookPoint::Forward, DECIDE, rules)],
    }
}

/// The beginning of the name of every attachment's chain.
pub const ATTACHMENT_CHAIN: &str = "attach-";

/// The chain of an attachment.
pub fn chain_name(attachment: &Attachment) -> String {
    format!("{ATTACHMENT_CHAIN}{}", attachment.key())
}

/// The element by which the address belongs to the attachment.
pub fn address_element(address: IpAddr, attachment: &Attachment) -> Element {
    Element::verdict([Value::ip(address)], Verdict::Jump(chain_name(attachment))).comment(attachment.label())
}

/// What may pass for one address: the reference's rules, and published ports.
///
/// The zone of firewalld that the address was bound to is remembered in a comment.
pub fn address_rules(address: IpAddr, zone: Option<&str>) -> Vec<Rule> {
    let version = IpVersion::of(address);
    let from = Statement::is(Selector::Saddr(version), Value::ip(address));
    let to = Statement::is(Selector::Daddr(version), Value::ip(address));
    let admit = || Statement::goto(ADMITTED);
    let sent = Rule::new([from, admit()]);
    vec![
        match zone {
            Some(zone) => sent.comment(format!("{IN_ZONE}{zone}")),
            None => sent,
        },
        Rule::new([to.clone(), Statement::ct_state(Value::ESTABLISHED | Value::RELATED), admit()]),
        Rule::new([to, Statement::ct_status(Value::DNAT), admit()]).comment("published port"),
    ]
}

/// What keeps the frames of an isolated container from the other ports of its bridges, in [`BRIDGE_TABLE`]: the chain of
/// the attachment there, which is the record of its ports as well.
pub fn port_chain(attachment: &Attachment, ports: &[String]) -> Chain {
    let refuse = |port: &str, s: Selector| Rule::new([Statement::is(s, ifname(port)), Statement::DROP]);
    let rules = ports.iter().flat_map(|p| [Selector::Iifname, Selector::Oifname].map(|s| refuse(p, s))).collect();
    Chain::regular(chain_name(attachment), rules).comment(attachment.label())
}

/// The element by which the port belongs to the attachment.
pub fn port_element(attachment: &Attachment, port: &str) -> Element {
    Element::verdict([ifname(port)], Verdict::Jump(chain_name(attachment))).comment(attachment.label())
}

/// The beginning of a comment that names a zone of firewalld.
pub const IN_ZONE: &str = "in firewalld's zone ";

/// The attachment's need of a bridge's policy. What is admitted doesn't come here; the jump is what keeps the policy's
/// chain in use.
pub fn policy_rule(policy: BridgePolicy, bridge: &str) -> Rule {
    Rule::new([Statement::is(Selector::Iifname, ifname(bridge)), Statement::jump(policy.chain_for(bridge))])
}

/// The one rule for the host's own filter.
pub fn accept_rule(mark: u32) -> Rule {
    Rule::new([Statement::has_mark(mark), Statement::Counter, Statement::ACCEPT]).comment(ACCEPT_COMMENT)
}

/// By this comment an accepting rule of ours is known, whatever its mark.
pub const ACCEPT_COMMENT: &str = "CNI firewall plugin: admitted";
