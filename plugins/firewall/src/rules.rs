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
//!     │            iifname  in isolated, same_bridge ──► to a bridge with a policy: drop, or go on
//!     │            ip saddr in addresses4/6          ──► admitted
//!     ▼            ip daddr in addresses4/6          ──► to_container: a reply, or a published port ──► admitted
//!   (host's own filter decides about all the rest)
//!   admitted       set the mark, accept
//!   cleared (200)  clear the mark
//!   map records    no packet is looked up here: what each attachment owns
//!
//! table bridge cni_chain_firewall (only where a network is isolated or a container is on a bridge with antiSpoof)
//!   forward        iifname, oifname in isolated_ports: drop
//!   prerouting     iifname in guarded_ports ──► sources: an address that isn't its own in IP, ARP or ND: drop
//!
//! table inet cni_chain_sources (only where an antiSpoof container is on no bridge)
//!   prerouting     the same for IP
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
//! * **prerouting, priority -300**: because a packet with a false source address must not reach connection tracking or
//!   the host itself.
//! * **sets, and no verdict of an attachment's own**: because at each transaction the kernel walks through every chain
//!   that is reachable from a hook, and through every element of every verdict map on the way (`nft_chain_validate`,
//!   net/netfilter/nf_tables_api.c): one reachable chain per container would make ADD cost more with every container.
//!
//! An element belongs to the attachment whose label is its comment. The attachment's *record*, lines of a map that no
//! packet meets, says what it owns: DEL reads that and nothing else. What several attachments share (a bridge's policy) is
//! a chain that their records jump to: the kernel's count of its uses is the number of those who need it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::nft::records;
use common::nft::{
    Chain, DataType, Element, Family, HookKind, HookPoint, IpVersion, Pattern, Rule, Selector, Set, Skeleton,
    Statement, Table, Value,
};

use crate::config::IngressPolicy;

/// Our table of the IP hooks.
pub const TABLE: Table = Table::new(Family::Inet, "cni_chain_firewall");

/// Our table of the bridges' hooks.
pub const BRIDGE_TABLE: Table = Table::new(Family::Bridge, "cni_chain_firewall");

/// Our table for what comes from containers that are on no bridge. One of its own, so that hosts without such containers
/// have no hook there.
pub const SOURCES_TABLE: Table = Table::new(Family::Inet, "cni_chain_sources");

/// Before iptables' FORWARD, after everything else that is usual there.
pub const DECIDE: i32 = -5;

/// After the last filter at the forward hook.
pub const CLEAR: i32 = 200;

/// Before connection tracking.
const RAW: i32 = -300;

/// The chain that marks.
const ADMITTED: &str = "admitted";

/// The chain for what goes to a container.
const TO_CONTAINER: &str = "to_container";

/// The chain that keeps bridges apart.
const BETWEEN_BRIDGES: &str = "between_bridges";

/// The set of the containers' addresses of one version.
pub fn addresses(version: IpVersion) -> Set {
    let name = match version {
        IpVersion::V4 => "addresses4",
        IpVersion::V6 => "addresses6",
    };
    Set::of(name, [version.address_type()])
}

/// A policy that restricts, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgePolicy {
    /// The beginning of the name of the chain that counts who needs it for one bridge.
    pub chain: &'static str,
    /// The set of bridges that have it.
    pub set: &'static str,
    /// The chain for what comes from such a bridge.
    from: &'static str,
}

/// Bridges don't talk to each other.
pub const SAME_BRIDGE: BridgePolicy =
    BridgePolicy { chain: "same-bridge-", set: "same_bridge", from: "from_same_bridge" };

/// Nor do the containers on one.
pub const ISOLATED: BridgePolicy = BridgePolicy { chain: "isolated-", set: "isolated", from: BETWEEN_BRIDGES };

/// Both. Two networks may use one bridge with different policies: then both are in force, as in the reference.
pub const BRIDGE_POLICIES: [BridgePolicy; 2] = [ISOLATED, SAME_BRIDGE];

/// A bridge with policy same-bridge, twice: what goes from it to itself is none of the policy's business.
const WITHIN: &str = "within_same_bridge";

impl BridgePolicy {
    /// What restricts under this policy, if anything does.
    pub fn of(policy: IngressPolicy) -> Option<BridgePolicy> {
        match policy {
            IngressPolicy::Open => None,
            IngressPolicy::SameBridge => Some(SAME_BRIDGE),
            IngressPolicy::Isolated => Some(ISOLATED),
        }
    }

    /// The chain whose uses are those who need this policy for one bridge.
    pub fn chain_for(&self, bridge: &str) -> String {
        format!("{}{}", self.chain, identifier(bridge))
    }

    /// The bridge that such a chain is for.
    pub fn bridge_of(&self, chain: &str) -> Option<String> {
        let rest = chain.strip_prefix(self.chain)?;
        let Some(hex) = rest.strip_prefix('/') else { return Some(rest.to_owned()) };
        let byte = |i| hex.get(i..i + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
        String::from_utf8(bytes?).ok()
    }

    /// The elements that put it in force for one bridge.
    pub fn elements(&self, bridge: &str) -> Vec<(Set, Element)> {
        let mut elements = vec![(self.bridges(), Element::key([ifname(bridge)]))];
        if *self == SAME_BRIDGE {
            elements.push((within(), Element::key([ifname(bridge), ifname(bridge)])));
        }
        elements
    }

    fn bridges(&self) -> Set {
        Set::of(self.set, [DataType::Ifname])
    }
}

fn within() -> Set {
    Set::of(WITHIN, [DataType::Ifname, DataType::Ifname])
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
    let policies = BRIDGE_POLICIES.map(|policy| policy.bridges());
    let sets = IpVersion::ALL.map(addresses).into_iter().chain(policies).chain([within(), records::map()]);
    Skeleton {
        table: TABLE,
        comment: Some("CNI firewall plugin".into()),
        sets: sets.collect(),
        chains: vec![
            admitted(admit_mark),
            to_container(),
            between_bridges(),
            from_same_bridge(),
            forward(admit_mark),
            cleared(admit_mark),
        ],
    }
}

fn admitted(mark: u32) -> Chain {
    Chain::regular(ADMITTED, vec![Rule::new([Statement::add_mark(mark), Statement::ACCEPT])])
}

/// The reference admits replies; and to a published port comes only whom somebody has sent here.
fn to_container() -> Chain {
    let replies = Statement::ct_state(Value::ESTABLISHED | Value::RELATED);
    let published = Rule::new([Statement::ct_status(Value::DNAT), Statement::goto(ADMITTED)]);
    Chain::regular(
        TO_CONTAINER,
        vec![Rule::new([replies, Statement::goto(ADMITTED)]), published.comment("published port")],
    )
}

fn between_bridges() -> Chain {
    let refuse =
        |policy: BridgePolicy| Rule::new([Statement::in_set([Selector::Oifname], policy.set), Statement::DROP]);
    Chain::regular(BETWEEN_BRIDGES, BRIDGE_POLICIES.map(refuse).into())
}

fn from_same_bridge() -> Chain {
    let within = Statement::in_set([Selector::Iifname, Selector::Oifname], WITHIN);
    let rules = vec![Rule::new([within, Statement::RETURN]), Rule::new([Statement::goto(BETWEEN_BRIDGES)])];
    Chain::regular(SAME_BRIDGE.from, rules)
}

fn forward(mark: u32) -> Chain {
    let mut rules = vec![unmark(mark).comment("a mark from elsewhere admits nothing")];
    let policy = |p: BridgePolicy| Rule::new([Statement::in_set([Selector::Iifname], p.set), Statement::jump(p.from)]);
    rules.extend(BRIDGE_POLICIES.map(policy));
    let look = |end: Selector, version: IpVersion, chain: &str| {
        Rule::new([Statement::in_set([end], addresses(version).name), Statement::goto(chain)])
    };
    rules.extend(IpVersion::ALL.map(|v| look(Selector::Saddr(v), v, ADMITTED)));
    rules.extend(IpVersion::ALL.map(|v| look(Selector::Daddr(v), v, TO_CONTAINER)));
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
    let apart = |side| Rule::new([Statement::in_set([side], NEIGHBOURS.ports), Statement::DROP]);
    let neighbours = [Selector::Iifname, Selector::Oifname].map(apart);
    Skeleton {
        table: BRIDGE_TABLE,
        comment: Some("CNI firewall plugin".into()),
        sets: [NEIGHBOURS.port_set()].into_iter().chain(source_sets(&BRIDGE_SOURCES)).collect(),
        chains: vec![
            adverts(),
            bridged_sources(),
            Chain::base("forward", HookKind::Filter, HookPoint::Forward, DECIDE, neighbours.into()),
            arriving(&BRIDGE_SOURCES),
        ],
    }
}

/// What is static in [`SOURCES_TABLE`].
pub fn sources_skeleton() -> Skeleton {
    let mut rules = own_sources();
    rules.push(Rule::new([Statement::DROP]));
    Skeleton {
        table: SOURCES_TABLE,
        comment: Some("CNI firewall plugin".into()),
        sets: source_sets(&ROUTED_SOURCES),
        chains: vec![Chain::regular(SOURCES, rules), arriving(&ROUTED_SOURCES)],
    }
}

/// The chain for what comes from a container that may send from its own addresses only.
const SOURCES: &str = "sources";

/// The chain for what containers say about who is where (RFC 4861, 4.4).
const ADVERTS: &str = "adverts";

/// ETH_P_ARP (include/uapi/linux/if_ether.h)
const ARP: Value = Value::Protocol(0x0806);

/// ICMPv6 types of RFC 4861.
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;

fn source_sets(guard: &PortGuard) -> Vec<Set> {
    [guard.port_set()].into_iter().chain(IpVersion::ALL.map(sources)).collect()
}

/// The set of ports, each with an address that may be used there.
fn sources(version: IpVersion) -> Set {
    let name = match version {
        IpVersion::V4 => "sources4",
        IpVersion::V6 => "sources6",
    };
    Set::of(name, [DataType::Ifname, version.address_type()])
}

fn arriving(guard: &PortGuard) -> Chain {
    let look = Rule::new([Statement::in_set([Selector::Iifname], guard.ports), Statement::goto(SOURCES)]);
    Chain::base("prerouting", HookKind::Filter, HookPoint::Prerouting, RAW, vec![look])
}

fn is_own(selector: Selector, version: IpVersion) -> Statement {
    Statement::in_set([Selector::Iifname, selector], sources(version).name)
}

fn returns(test: Statement) -> Rule {
    Rule::new([test, Statement::RETURN])
}

/// Besides its own addresses, a container may send from none (DHCP, duplicate address detection) and, in IPv6, from any
/// link-local one, which it makes for itself.
fn own_sources() -> Vec<Rule> {
    let unspecified = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let own = IpVersion::ALL.map(|v| returns(is_own(Selector::Saddr(v), v)));
    let none = unspecified.map(|a| returns(Statement::is(Selector::Saddr(IpVersion::of(a)), Value::ip(a))));
    let mut rules: Vec<Rule> = own.into_iter().chain(none).collect();
    rules.push(returns(link_local(Selector::Saddr(IpVersion::V6))));
    rules
}

fn link_local(selector: Selector) -> Statement {
    Statement::matches(selector, Pattern::Prefix(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10))
}

/// On a bridge, neighbours believe what ARP and neighbour discovery tell them, so these may speak of own addresses only;
/// and a container that may not send for others is no router (CVE-2020-10749).
fn bridged_sources() -> Chain {
    let arp = |test: Option<Statement>, end: Statement| {
        Rule::new([Statement::is(Selector::Protocol, ARP)].into_iter().chain(test).chain([end]))
    };
    let nobody = Statement::is(Selector::ArpSaddr, Value::V4(Ipv4Addr::UNSPECIFIED));
    let mut rules = vec![
        arp(Some(is_own(Selector::ArpSaddr, IpVersion::V4)), Statement::RETURN),
        arp(Some(nobody), Statement::RETURN),
        arp(None, Statement::DROP),
        icmpv6(NEIGHBOUR_ADVERT, Statement::jump(ADVERTS)),
        icmpv6(ROUTER_ADVERT, Statement::DROP),
        icmpv6(REDIRECT, Statement::DROP),
    ];
    rules.extend(own_sources());
    // A bridge carries more than IP.
    let ip =
        |v: IpVersion| Rule::new([Statement::is(Selector::Protocol, Value::Protocol(v.ether_type())), Statement::DROP]);
    rules.extend(IpVersion::ALL.map(ip));
    Chain::regular(SOURCES, rules)
}

fn icmpv6(kind: u8, end: Statement) -> Rule {
    let protocol = Statement::is(Selector::L4proto, Value::Proto(58));
    Rule::new([protocol, Statement::is(Selector::Icmpv6Type, Value::Icmpv6Type(kind)), end])
}

fn adverts() -> Chain {
    let own = is_own(Selector::NdTarget, IpVersion::V6);
    Chain::regular(ADVERTS, vec![returns(own), returns(link_local(Selector::NdTarget)), Rule::new([Statement::DROP])])
}

/// Something that stands at the host's end of a container's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGuard {
    /// Its table.
    pub table: Table,
    /// The set of the interfaces at which it stands.
    pub ports: &'static str,
    /// What records call it.
    pub name: &'static str,
    /// Whether it lets only a container's own addresses pass.
    by_source: bool,
}

/// Keeps the frames of isolated containers from the other ports of their bridges.
pub const NEIGHBOURS: PortGuard =
    PortGuard { table: BRIDGE_TABLE, ports: "isolated_ports", name: "isolated_port", by_source: false };

/// Keeps containers on a bridge to their own addresses.
pub const BRIDGE_SOURCES: PortGuard =
    PortGuard { table: BRIDGE_TABLE, ports: "guarded_ports", name: "guarded_port", by_source: true };

/// Keeps containers on no bridge to their own source addresses.
pub const ROUTED_SOURCES: PortGuard =
    PortGuard { table: SOURCES_TABLE, ports: "guarded_ports", name: "guarded_routed_port", by_source: true };

/// All of them.
pub const PORT_GUARDS: [PortGuard; 3] = [NEIGHBOURS, BRIDGE_SOURCES, ROUTED_SOURCES];

impl PortGuard {
    /// The set of the interfaces at which it stands.
    pub fn port_set(&self) -> Set {
        Set::of(self.ports, [DataType::Ifname])
    }

    /// The sets of ports with an address that may be used there, if it goes by that.
    pub fn source_sets(&self) -> Vec<Set> {
        IpVersion::ALL.into_iter().filter(|_| self.by_source).map(sources).collect()
    }

    /// The sets in which its elements are.
    pub fn sets(&self) -> Vec<Set> {
        [self.port_set()].into_iter().chain(self.source_sets()).collect()
    }

    /// The elements for one port of a container with these addresses.
    pub fn elements(&self, port: &str, addresses: &[IpAddr]) -> Vec<(Set, Element)> {
        let own =
            |address: &IpAddr| (sources(IpVersion::of(*address)), Element::key([ifname(port), Value::ip(*address)]));
        let own = addresses.iter().filter(|_| self.by_source).map(own);
        [(self.port_set(), Element::key([ifname(port)]))].into_iter().chain(own).collect()
    }
}

/// The element of one address.
pub fn address_element(address: IpAddr) -> (Set, Element) {
    (addresses(IpVersion::of(address)), Element::key([Value::ip(address)]))
}

/// The one rule for the host's own filter.
pub fn accept_rule(mark: u32) -> Rule {
    Rule::new([Statement::has_mark(mark), Statement::Counter, Statement::ACCEPT]).comment(ACCEPT_COMMENT)
}

/// By this comment an accepting rule of ours is known, whatever its mark.
pub const ACCEPT_COMMENT: &str = "CNI firewall plugin: admitted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policys_chain_names_its_bridge() {
        for bridge in ["cni0", "br@7", "brücke", "a/b", "-"] {
            for policy in BRIDGE_POLICIES {
                assert_eq!(policy.bridge_of(&policy.chain_for(bridge)).as_deref(), Some(bridge));
            }
        }
        for chain in ["record-x", "same-bridge-/zz", "same-bridge-/6", "isolated-/ff"] {
            assert_eq!(BRIDGE_POLICIES.iter().find_map(|p| p.bridge_of(chain)), None, "{chain}");
        }
    }
}
