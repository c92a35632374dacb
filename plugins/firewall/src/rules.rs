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
//!   prerouting     from the port of an antiSpoof container, with a source address that isn't its own: drop
//!
//! table inet cni_chain_sources (only where an antiSpoof container is on no bridge)
//!   prerouting     the same
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
//! * **prerouting, priority -300**: because a packet with a false source address must not reach connection tracking or
//!   the host itself.
//!
//! An address belongs to the attachment whose chain its element leads to. The chain is at the same time the record of
//! what the attachment owns: DEL reads it and nothing else.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::Attachment;
use common::nft::{
    Chain, DataType, Element, Family, HookKind, HookPoint, IpVersion, Pattern, Rule, Selector, Set, SetSource,
    Skeleton, Statement, Table, Value, Verdict,
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

/// Our table for what comes from containers that are on no bridge. One of its own, so that hosts without such containers
/// have no hook there.
pub const SOURCES_TABLE: Table = Table::new(Family::Inet, "cni_chain_sources");

/// Before connection tracking.
const RAW: i32 = -300;

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
    let neighbours = [Selector::Iifname, Selector::Oifname].map(|side| by_port(side, NEIGHBOURS.map));
    Skeleton {
        table: BRIDGE_TABLE,
        comment: Some("CNI firewall plugin".into()),
        sets: [NEIGHBOURS, BRIDGE_SOURCES].map(|guard| Set::vmap(guard.map, [DataType::Ifname])).into(),
        chains: vec![
            Chain::base("forward", HookKind::Filter, HookPoint::Forward, DECIDE, neighbours.into()),
            sources_chain(BRIDGE_SOURCES.map),
        ],
    }
}

/// What is static in [`SOURCES_TABLE`].
pub fn sources_skeleton() -> Skeleton {
    Skeleton {
        table: SOURCES_TABLE,
        comment: Some("CNI firewall plugin".into()),
        sets: vec![Set::vmap(ROUTED_SOURCES.map, [DataType::Ifname])],
        chains: vec![sources_chain(ROUTED_SOURCES.map)],
    }
}

fn sources_chain(map: &'static str) -> Chain {
    Chain::base("prerouting", HookKind::Filter, HookPoint::Prerouting, RAW, vec![by_port(Selector::Iifname, map)])
}

fn by_port(side: Selector, map: &'static str) -> Rule {
    Rule::new([Statement::vmap([side], map)])
}

/// Something that stands at the host's end of a container's interface: a verdict map from interfaces to the chains of
/// their attachments, which are the record of the interfaces as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGuard {
    /// Its table.
    pub table: Table,
    /// The beginning of the names of its attachments' chains.
    pub prefix: &'static str,
    /// Its map.
    pub map: &'static str,
}

/// Keeps the frames of isolated containers from the other ports of their bridges.
pub const NEIGHBOURS: PortGuard = PortGuard { table: BRIDGE_TABLE, prefix: ATTACHMENT_CHAIN, map: "isolated_ports" };

/// Keeps containers on a bridge to their own source addresses.
pub const BRIDGE_SOURCES: PortGuard = PortGuard { table: BRIDGE_TABLE, prefix: "source-", map: "guarded_ports" };

/// Keeps containers on no bridge to their own source addresses.
pub const ROUTED_SOURCES: PortGuard = PortGuard { table: SOURCES_TABLE, prefix: "source-", map: "guarded_ports" };

/// All of them.
pub const PORT_GUARDS: [PortGuard; 3] = [NEIGHBOURS, BRIDGE_SOURCES, ROUTED_SOURCES];

impl PortGuard {
    /// The chain of an attachment, by the attachment's key.
    pub fn chain_name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The chain of an attachment with these ports and addresses.
    pub fn chain(&self, attachment: &Attachment, ports: &[String], addresses: &[IpAddr]) -> Chain {
        let rules = ports.iter().flat_map(|port| {
            if *self == NEIGHBOURS { not_to_neighbours(port) } else { only_own_sources(port, addresses) }
        });
        Chain::regular(self.chain_name(&attachment.key()), rules.collect()).comment(attachment.label())
    }

    /// The element by which a port belongs to an attachment.
    pub fn element(&self, attachment: &Attachment, port: &str) -> Element {
        let verdict = Verdict::Jump(self.chain_name(&attachment.key()));
        Element::verdict([ifname(port)], verdict).comment(attachment.label())
    }
}

fn not_to_neighbours(port: &str) -> Vec<Rule> {
    [Selector::Iifname, Selector::Oifname].map(|s| Rule::new([Statement::is(s, ifname(port)), Statement::DROP])).into()
}

/// Besides its own addresses, a container may send from none (DHCP, duplicate address detection) and, in IPv6, from any
/// link-local one, which it makes for itself.
fn only_own_sources(port: &str, addresses: &[IpAddr]) -> Vec<Rule> {
    let from_port = || Statement::is(Selector::Iifname, ifname(port));
    let own = |version: IpVersion| {
        let unspecified = match version {
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpVersion::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let of_version = addresses.iter().copied().filter(|a| IpVersion::of(*a) == version);
        let all: BTreeSet<IpAddr> = of_version.chain([unspecified]).collect();
        let set = SetSource::Inline(all.into_iter().map(|a| Element::key([Value::ip(a)])).collect());
        Statement::InSet { selectors: vec![Selector::Saddr(version)], negated: true, set }
    };
    let link_local = Statement::Match {
        selector: Selector::Saddr(IpVersion::V6),
        negated: true,
        pattern: Pattern::Prefix(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    };
    vec![
        Rule::new([from_port(), own(IpVersion::V4), Statement::DROP]),
        Rule::new([from_port(), own(IpVersion::V6), link_local, Statement::DROP]),
    ]
}

/// The beginning of the name of every attachment's chain.
pub const ATTACHMENT_CHAIN: &str = "attach-";

/// The chain of an attachment in [`TABLE`], by the attachment's key.
pub fn chain_name(key: &str) -> String {
    format!("{ATTACHMENT_CHAIN}{key}")
}

/// The element by which the address belongs to the attachment.
pub fn address_element(address: IpAddr, attachment: &Attachment) -> Element {
    Element::verdict([Value::ip(address)], Verdict::Jump(chain_name(&attachment.key()))).comment(attachment.label())
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
