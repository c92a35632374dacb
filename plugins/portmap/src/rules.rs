//! What a published port is made of: one attachment's share of table `inet cni_chain_portmap`, and the table around it.
//!
//! ```text
//!  from outside, from containers                                from this host's processes
//!        │                                                            │
//!  prerouting, raw (−300) ── loopback_guard                     output, −95 ── output
//!        │  because 127.0.0.1 on the wire is never this host:         │
//!        │  route_localnet lets it in where it is on (CVE-2020-8558), │
//!        │  and what is led elsewhere escapes the kernel's check      │
//!  prerouting, −95 ── prerouting                                      │
//!        │  because a published port is one of this host's: fib daddr type local, on both ways
//!        │                                                            │
//!        └──────────────────────► hostports ◄────────────────────────┘
//!                                     │  one rule for each kind of publication; those at one address come first
//!              ip daddr . meta l4proto . th dport @specific4-… jump specific4-…
//!                         meta l4proto . th dport @wildcard4-… jump wildcard4-…
//!                                     │  because subnet, conditions and marks are common to many ports
//!                           the kind's chain: [conditions] [a source that needs masquerading] mark it, goto dnat_ports4
//!                           [conditions] goto dnat_ports4
//!                                     │  because whoever adds a rule that looks into a map makes the kernel walk through it
//!                           dnat_ports4: dnat ip to meta l4proto . th dport map @ports4
//!                                     │  because one look-up costs the same for 1 and for 65,535 ports
//!                       routing, forward, the container's link
//!                                     │
//!  postrouting, 105 ── masquerading ── masquerade_marked
//!           because the container would answer its own subnet, and 127.0.0.1, past this host
//! ```
//!
//! −95 is behind kube-proxy and all others at `dstnat` (−100), so that a service's own rules come first and there is no
//! tie. `nat` chains see a connection's first packet only; everything after it is connection tracking's.
//!
//! What belongs to one attachment:
//!
//! * elements in the maps `ports4`, `ports6`, `addr_ports4`, `addr_ports6`, with its label for comment. The kernel takes
//!   a key once: a second claim on a port fails there, whoever makes it;
//! * the same keys in the set of their kind;
//! * its *record*: elements of the verdict map `records`, which no rule looks into. They name its ports and jump to what
//!   it shares with others. DEL finds there what it has to remove, without looking through the maps, and the transaction
//!   that removes the record removes the ports: if the record is gone, nothing is removed. The kernel counts the jumps
//!   (`use`), so that the last attachment takes the shared things with it, the table at the end.
//!
//! There is no chain of an attachment, no anonymous set, and no verdict in a map that packets see. At each transaction the
//! kernel looks at every chain that there is (`nf_tables_commit`), walks through every chain that is reachable from a
//! hook, and through every element of every verdict map on the way (`nft_chain_validate`): one chain for each container
//! would make ADD cost more with every container. And when a rule is added that looks into a map, it walks through that
//! map (`nf_tables_bind_set`): the rules that do are static.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use common::attachment::reference_hash_name;
use common::cni::CniResult;
use common::nft::records;
use common::nft::{
    Chain, Data, DataType, DnatTarget, Element, Family, HookKind, HookPoint, IpVersion, Position, RecordKey, Rule,
    Selector, Set, SetSource, Skeleton, Statement, Table, Value,
};
use common::{Attachment, Call, Error, Result};
use ipnet::IpNet;

use crate::config::{Config, HostIp, MARK_BIT, Mapping, Mark, Masquerade, Protocol};
use crate::localnet::Link;
use crate::origin::Origin;
use crate::record::Record;

/// Our table, nobody else's.
pub const TABLE: Table = Table::new(Family::Inet, "cni_chain_portmap");
/// The chain that leads to each kind of publication.
pub const HOSTPORTS: &str = "hostports";
/// The chain that masquerades what is marked, one rule for each mark in use.
pub const MASQUERADE: &str = "masquerade_marked";
/// The chain that every record's first line jumps to: its count of uses is the number of attachments.
pub const ATTACHMENTS: &str = "attachments";
/// What the name of the chain that counts a link's users of route_localnet begins with.
pub const LOOPBACK_PREFIX: &str = "loopback-";
/// What the name of the chain that counts a mark's users begins with.
pub const MARK_PREFIX: &str = "mark-";

/// What must be looked up on this host before planning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The link behind which the container's IPv4 address is, as the routing tables say.
    pub link: Option<Link>,
    /// That address, if they have no route to it.
    pub unreachable: Option<IpAddr>,
    /// The bits that `externalSetMarkChain` sets, if they can be known.
    pub external_mark: Option<u32>,
    /// Since when, and how a later ADD can tell whether the container is still there.
    pub origin: Origin,
}

/// One published port of one version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The one address of this host at which it is published; `None` for all of the version.
    pub address: Option<IpAddr>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on this host.
    pub port: u16,
    /// The container's address; its version is the claim's.
    pub target: IpAddr,
    /// The port in the container.
    pub target_port: u16,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, "{}/{}", self.port, self.protocol),
            Some(IpAddr::V4(v4)) => write!(f, "{v4}:{}/{}", self.port, self.protocol),
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}/{}", self.port, self.protocol),
        }
    }
}

/// What only one can have: a version of IP, one address or all, a protocol and a port.
pub type Place = (IpVersion, Option<IpAddr>, Protocol, u16);

impl Claim {
    /// What it claims, wherever it leads.
    pub fn place(&self) -> Place {
        (self.version(), self.address, self.protocol, self.port)
    }

    /// The version of IP.
    pub fn version(&self) -> IpVersion {
        IpVersion::of(self.target)
    }

    /// Whether this is the name of a kind of publication that it could be of.
    pub fn is_of_kind(&self, chain: &str) -> bool {
        is_kind_of(chain, self.version(), self.address.is_some())
    }

    /// The map that leads it to the container.
    pub fn map(&self) -> Set {
        ports_map(self.version(), self.address.is_some())
    }

    /// The key of its kind's set and of its map.
    pub fn key(&self) -> Vec<Value> {
        let address = self.address.map(Value::ip);
        address.into_iter().chain([Value::Proto(self.protocol.number()), Value::Port(self.port)]).collect()
    }

    /// Its element in the map, with its owner's label.
    pub fn element(&self, label: &str) -> Element {
        Element::values(self.key(), [Value::ip(self.target), Value::Port(self.target_port)]).comment(label)
    }

    /// Reads [`Claim::element`].
    pub fn of_element(element: &Element) -> Option<Claim> {
        let address = |value: &Value| match value {
            Value::V4(v4) => Some(IpAddr::V4(*v4)),
            Value::V6(v6) => Some(IpAddr::V6(*v6)),
            _ => None,
        };
        let (at, protocol, port) = match element.key.as_slice() {
            [Value::Proto(protocol), Value::Port(port)] => (None, protocol, port),
            [at, Value::Proto(protocol), Value::Port(port)] => (Some(address(at)?), protocol, port),
            _ => return None,
        };
        match &element.data {
            Some(Data::Values(values)) => match values.as_slice() {
                [target, Value::Port(target_port)] => Some(Claim {
                    address: at,
                    protocol: Protocol::from_number(*protocol)?,
                    port: *port,
                    target: address(target)?,
                    target_port: *target_port,
                }),
                _ => None,
            },
            _ => None,
        }
    }

    /// Its element in its [`self_set`]: the container itself comes to its own port.
    fn self_element(&self) -> Element {
        let mut key = self.key();
        key.insert(0, Value::ip(self.target));
        Element::key(key)
    }
}

/// What is published in one and the same way: one set of ports, one chain.
fn kind_name(version: IpVersion, specific: bool) -> &'static str {
    match (specific, version) {
        (false, IpVersion::V4) => "wildcard4-",
        (false, IpVersion::V6) => "wildcard6-",
        (true, IpVersion::V4) => "specific4-",
        (true, IpVersion::V6) => "specific6-",
    }
}

/// What follows in the name of a kind whose containers have no subnet: they are in a [`self_set`].
const SELF: &str = "self-";

/// Whether this is the name of a kind of publication.
pub fn is_kind(chain: &str) -> bool {
    both_versions().any(|(version, specific)| is_kind_of(chain, version, specific))
}

/// Whether this is the name of a kind of publication of this version, at one address or at all.
pub fn is_kind_of(chain: &str, version: IpVersion, specific: bool) -> bool {
    chain.starts_with(kind_name(version, specific))
}

/// Every version, at one address and at all.
pub fn both_versions() -> impl Iterator<Item = (IpVersion, bool)> {
    // Specific ones first, as in the chain `hostports`.
    [true, false].into_iter().flat_map(|specific| IpVersion::ALL.into_iter().map(move |version| (version, specific)))
}

fn key_types(version: IpVersion, specific: bool) -> Vec<DataType> {
    let address = specific.then_some(version.address_type());
    address.into_iter().chain([DataType::InetProto, DataType::InetService]).collect()
}

fn key_selectors(version: IpVersion, specific: bool) -> Vec<Selector> {
    let address = specific.then_some(Selector::Daddr(version));
    address.into_iter().chain([Selector::L4proto, Selector::ThDport]).collect()
}

/// As `ports4`, `addr_ports6`.
fn name_of(what: &str, version: IpVersion, specific: bool) -> String {
    let at = if specific { "addr_" } else { "" };
    let digit = match version {
        IpVersion::V4 => 4,
        IpVersion::V6 => 6,
    };
    format!("{at}{what}{digit}")
}

/// The map from host ports to the container's address and port.
pub fn ports_map(version: IpVersion, specific: bool) -> Set {
    let name = name_of("ports", version, specific);
    Set::map(name, key_types(version, specific), [version.address_type(), DataType::InetService])
}

/// The set of a kind's keys.
pub fn kind_set(name: &str, version: IpVersion, specific: bool) -> Set {
    Set::of(name, key_types(version, specific))
}

/// The set of the kind of this name; `None` if this isn't one's name.
pub fn kind_set_of(name: &str) -> Option<Set> {
    let (version, specific) = both_versions().find(|(version, specific)| is_kind_of(name, *version, *specific))?;
    Some(kind_set(name, version, specific))
}

/// The set of those containers that come to their own ports and have no subnet to tell them by: the container's address
/// before the key of the port. So each element is of one port, and goes with its owner, whoever else has had the address.
pub fn self_set(version: IpVersion, specific: bool) -> Set {
    let name = name_of("self", version, specific);
    let types: Vec<DataType> = [version.address_type()].into_iter().chain(key_types(version, specific)).collect();
    Set::of(name, types)
}

/// The table without any attachment, its nat hooks at `priority`.
pub fn skeleton(priority: i32) -> Skeleton {
    let local = || Rule::new([Statement::is(Selector::FibDaddrType, Value::LOCAL), Statement::jump(HOSTPORTS)]);
    let nat = |name, point, priority, rules| Chain::base(name, HookKind::Nat, point, priority, rules);
    let published = Rule::new([Statement::ct_status(Value::DNAT), Statement::jump(MASQUERADE)]);
    let sets = both_versions().map(|(version, specific)| ports_map(version, specific));
    let selves = both_versions().map(|(version, specific)| self_set(version, specific));
    Skeleton {
        table: TABLE,
        comment: Some("host ports led to containers, by the CNI plugin portmap of cni-chain".into()),
        sets: sets.chain(selves).chain([records::map()]).collect(),
        chains: [ATTACHMENTS, HOSTPORTS, MASQUERADE]
            .map(|name| Chain::regular(name, Vec::new()))
            .into_iter()
            .chain(both_versions().map(|(version, specific)| dnat_chain(version, specific)))
            .chain([
                loopback_forged(),
                loopback_guard(),
                nat("prerouting", HookPoint::Prerouting, priority, vec![local()]),
                nat("output", HookPoint::Output, priority, vec![local()]),
                nat("masquerading", HookPoint::Postrouting, BEHIND_SRCNAT, vec![published]),
            ])
            .collect(),
    }
}

/// The name of the chain with the only rule that looks into this map.
fn dnat_name(map: &Set) -> String {
    format!("dnat_{}", map.name)
}

fn dnat_chain(version: IpVersion, specific: bool) -> Chain {
    let map = ports_map(version, specific);
    let name = dnat_name(&map);
    let target = DnatTarget::Map(key_selectors(version, specific), SetSource::Named(map.name));
    Chain::regular(name, vec![Rule::new([Statement::Dnat { version, target }])])
}

/// Behind `srcnat` (100, NF_IP_PRI_NAT_SRC), so that whoever else masquerades by a mark of his own goes first.
const BEHIND_SRCNAT: i32 = 105;
/// `raw`: NF_IP_PRI_RAW, before connection tracking.
const RAW: i32 = -300;
/// Of every namespace's `lo`, whatever it is called (`LOOPBACK_IFINDEX`, include/net/flow.h).
pub const LOOPBACK_INDEX: u32 = 1;
const LOOPBACK_NET: (IpAddr, u8) = (IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 0)), 8);

/// Where what claims to be 127.0.0.0/8 and comes by a link goes.
const FORGED: &str = "loopback_forged";

/// The kernel drops 127.0.0.0/8 on the wire, in both directions, where route_localnet is off, but only where it looks for a
/// route (`ip_route_input_slow`, net/ipv4/route.c): what `prerouting` leads to a container is for the container by then, so that
/// a port at 127.0.0.1 would be open to all neighbours. This drops it on all links, whatever they are called by now, before
/// anybody leads it anywhere. Answers to published ports never bear these addresses on the wire, because they are masqueraded:
/// whatever does is forged. What this host itself sends there has been led in `output`, and comes by `lo`.
fn loopback_guard() -> Chain {
    let (net, len) = LOOPBACK_NET;
    let by_a_link = || Statement::is_not(Selector::Iif, Value::Ifindex(LOOPBACK_INDEX));
    let forged = |test| Rule::new([test, by_a_link(), Statement::goto(FORGED)]);
    let rules = vec![forged(Statement::to_subnet(net, len)), forged(Statement::from_subnet(net, len))];
    Chain::base("loopback_guard", HookKind::Filter, HookPoint::Prerouting, RAW, rules)
}

/// A VRF's device is the loopback of what runs within it (Documentation/networking/vrf.rst), and what comes from the wire
/// has been here with its own link before it comes again with that device.
fn loopback_forged() -> Chain {
    let of_a_vrf = Statement::is(Selector::Iifkind, Value::Ifname("vrf".into()));
    Chain::regular(FORGED, vec![Rule::new([of_a_vrf, Statement::RETURN]), Rule::new([Statement::DROP])])
}

/// How packets come to a chain that attachments share: by a rule in another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// The other chain.
    pub parent: &'static str,
    /// Where in it.
    pub position: Position,
    /// The rule.
    pub rule: Rule,
}

/// What several attachments have in common: there as long as one of them is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The chain that records jump to, so that the kernel counts them.
    pub chain: Chain,
    /// The set beside it, of the same name.
    pub set: Option<Set>,
    /// How packets come there; `None` if none do, and only users are counted.
    pub entrance: Option<Entrance>,
}

/// One attachment's share of kernel state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Whose it is.
    pub attachment: Attachment,
    /// Since when, and how to tell whether it is alive.
    pub origin: Origin,
    /// Whether anything was to be published. It may be for addresses that the container doesn't have.
    pub is_wanted: bool,
    /// What is published.
    pub claims: Vec<Claim>,
    /// The kinds of publication and the marks it uses.
    pub shared: Vec<Shared>,
    /// The link on which route_localnet is needed.
    pub loopback: Option<Link>,
    /// The container's address, if 127.0.0.1 is to lead there and there is no route to it.
    pub unreachable: Option<IpAddr>,
    /// The table.
    pub skeleton: Skeleton,
}

/// The attachment's share. Pure.
pub fn plan(config: &Config, call: &Call, prev: &CniResult, facts: Facts) -> Result<Share> {
    let own_bit = match config.mark {
        Mark::Bit(bit) => 1 << bit,
        Mark::As(_) => 1 << MARK_BIT,
    };
    let marking = Marking { own: own_bit, all: own_bit | facts.external_mark.unwrap_or_default() };
    let mut share = Share {
        attachment: call.attachment.clone(),
        is_wanted: config.mappings.as_ref().is_some_and(|mappings| !mappings.is_empty()),
        origin: facts.origin,
        claims: Vec::new(),
        shared: Vec::new(),
        loopback: None,
        unreachable: None,
        skeleton: skeleton(config.priority),
    };
    for version in IpVersion::ALL {
        let mut addresses = prev.ips.iter().filter(|ip| prev.is_on(ip, &call.attachment.ifname)).map(|ip| ip.address);
        let Some(address) = addresses.find(|a| IpVersion::of(a.addr()) == version) else { continue };
        let claims = claims(config.mappings.as_deref().unwrap_or_default(), address.addr())?;
        share.publish(config, &marking, address, claims);
    }
    if config.masquerade != Masquerade::Nobody && !share.claims.is_empty() {
        share.shared.push(marking.shared());
    }
    if config.masquerade != Masquerade::Nobody && share.claims.iter().any(Claim::is_reachable_by_loopback) {
        share.loopback = facts.link;
        share.unreachable = facts.unreachable;
    }
    Ok(share)
}

impl Share {
    fn publish(&mut self, config: &Config, marking: &Marking, address: IpNet, claims: Vec<Claim>) {
        for specific in [true, false] {
            if claims.iter().any(|c| c.address.is_some() == specific) {
                self.shared.push(kind(config, marking, address, specific));
            }
        }
        self.claims.extend(claims);
    }

    /// The record that the kernel is to hold.
    pub fn record(&self) -> Record {
        let counted = self.shared.iter().map(|s| s.chain.name.clone());
        Record {
            key: RecordKey::of(&self.attachment),
            label: self.attachment.label(),
            origin: Some(self.origin.clone()),
            jumps: counted.chain(self.loopback.iter().map(|link| loopback_name(link.index))).collect(),
            claims: self.claims.clone(),
            heirs: Vec::new(),
        }
    }
}

/// The claims by the map that they are in.
pub fn by_map(claims: &[Claim]) -> impl Iterator<Item = (Set, Vec<&Claim>)> {
    both_versions().filter_map(|(version, specific)| {
        let these = claims.iter().filter(|c| c.version() == version && c.address.is_some() == specific);
        let these: Vec<&Claim> = these.collect();
        (!these.is_empty()).then(|| (ports_map(version, specific), these))
    })
}

/// The elements of claims: in their maps, in the sets of their kinds (of which there is at most one for each version,
/// wildcard and specific), and beside them in the [`self_set`]s for kinds that look there.
pub fn elements(label: &str, claims: &[Claim], kinds: &[String]) -> Vec<(Set, Vec<Element>)> {
    let mut all: Vec<(Set, Vec<Element>)> = Vec::new();
    for (version, specific) in both_versions() {
        let these: Vec<&Claim> =
            claims.iter().filter(|c| c.version() == version && c.address.is_some() == specific).collect();
        if these.is_empty() {
            continue;
        }
        all.push((ports_map(version, specific), these.iter().map(|c| c.element(label)).collect()));
        let prefix = kind_name(version, specific);
        let Some(kind) = kinds.iter().find(|k| k.starts_with(prefix)) else { continue };
        let keys = these.iter().map(|c| Element::key(c.key())).collect();
        all.push((kind_set(kind, version, specific), keys));
        if kind.get(prefix.len()..).is_some_and(|rest| rest.starts_with(SELF)) {
            all.push((self_set(version, specific), these.iter().map(|c| c.self_element()).collect()));
        }
    }
    all
}

impl Claim {
    /// 127.0.0.1 leads to it.
    fn is_reachable_by_loopback(&self) -> bool {
        self.version() == IpVersion::V4 && self.address.is_none_or(|a| a.is_loopback())
    }
}

/// Whether the prefix says nothing about neighbours.
fn is_host(address: IpNet) -> bool {
    address.prefix_len() == address.max_prefix_len()
}

/// What the mappings claim for the container's `target`. What is meant for the other version is left out; the same
/// twice is once.
fn claims(mappings: &[Mapping], target: IpAddr) -> Result<Vec<Claim>> {
    let version = IpVersion::of(target);
    let mut seen: BTreeMap<(Option<IpAddr>, Protocol, u16), u16> = BTreeMap::new();
    let mut claims = Vec::with_capacity(mappings.len());
    for (i, mapping) in mappings.iter().enumerate() {
        let address = match mapping.host_ip {
            HostIp::Any => None,
            HostIp::AnyOf(of) if of == version => None,
            HostIp::One(address) if IpVersion::of(address) == version => Some(address),
            HostIp::AnyOf(_) | HostIp::One(_) => continue,
        };
        let Mapping { host_port: port, container_port: target_port, protocol, .. } = *mapping;
        match seen.insert((address, protocol, port), target_port) {
            None => claims.push(Claim { address, protocol, port, target, target_port }),
            Some(before) if before == target_port => {}
            Some(before) => {
                return Err(Error::invalid(
                    format!("runtimeConfig.portMappings.{i}.hostPort"),
                    port,
                    format!(
                        "another mapping leads {protocol} port {port} at the same address to container port {before}, \
                         this one to {target_port}"
                    ),
                ));
            }
        }
    }
    Ok(claims)
}

/// How packets are marked that are to be masqueraded.
struct Marking {
    /// The bit that our own chain looks for.
    own: u32,
    /// With those that somebody else looks for.
    all: u32,
}

impl Marking {
    /// The rule that masquerades what bears the mark. The mark goes, so that a packet that is encapsulated and comes by
    /// again is left alone; a packet that nobody has led elsewhere is never touched, whoever marked it.
    fn shared(&self) -> Shared {
        let rules = vec![Rule::new([Statement::clear_mark(self.own), Statement::Masquerade])];
        Shared {
            chain: Chain::regular(format!("{MARK_PREFIX}0x{:x}", self.own), rules),
            set: None,
            entrance: Some(Entrance { parent: MASQUERADE, position: Position::End, rule: entrance_by_mark(self.own) }),
        }
    }
}

fn entrance_by_mark(mark: u32) -> Rule {
    Rule::new([Statement::has_mark(mark), Statement::goto(format!("{MARK_PREFIX}0x{mark:x}"))])
}

/// The rule by which packets come to a mark's chain; `None` if this isn't one's name.
pub fn mark_entrance(chain: &str) -> Option<Rule> {
    let mark = chain.strip_prefix(MARK_PREFIX)?.strip_prefix("0x")?;
    u32::from_str_radix(mark, 16).ok().map(entrance_by_mark)
}

/// The rule by which packets come to the chain of a kind of publication; `None` if this isn't one's name.
pub fn kind_entrance(chain: &str) -> Option<Rule> {
    let (version, specific) =
        both_versions().find(|(version, specific)| chain.starts_with(kind_name(*version, *specific)))?;
    // `ip daddr` says the version itself.
    let test = (!specific).then(|| Statement::is(Selector::Nfproto, Value::Nfproto(version)));
    let member = Statement::in_set(key_selectors(version, specific), chain.to_owned());
    Some(Rule::new(test.into_iter().chain([member, Statement::jump(chain.to_owned())])))
}

/// The kind of publication: its chain is named by its contents, so that attachments that want the same share it and one
/// with other conditions has another.
fn kind(config: &Config, marking: &Marking, address: IpNet, specific: bool) -> Shared {
    let version = IpVersion::of(address.addr());
    let conditions = || config.conditions.get(version).statements.clone();
    let dnat = Statement::goto(dnat_name(&ports_map(version, specific)));
    let led = |how: Vec<Statement>| Rule::new(conditions().into_iter().chain(how).chain([dnat.clone()]));
    let mark = || Statement::add_mark(marking.all);
    // Whoever is marked is led by the same rule: conditions on marks are asked once, and never see ours.
    let rules = match config.masquerade {
        Masquerade::Nobody => vec![led(Vec::new())],
        Masquerade::Everybody => vec![led(vec![mark()])],
        Masquerade::WhereNeeded => {
            let loopback = Statement::from_subnet(LOOPBACK_NET.0, LOOPBACK_NET.1);
            let from_loopback = (version == IpVersion::V4).then(|| led(vec![loopback, mark()]));
            let from_neighbours = led(vec![neighbours(address, specific), mark()]);
            [from_neighbours].into_iter().chain(from_loopback).chain([led(Vec::new())]).collect()
        }
    };
    let text: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
    let looks_for_itself = config.masquerade == Masquerade::WhereNeeded && is_host(address);
    let prefix = format!("{}{}", kind_name(version, specific), if looks_for_itself { SELF } else { "" });
    let name = reference_hash_name(prefix.len() + 16, &prefix, &text);
    let chain = Chain::regular(name.clone(), rules);
    let position = if specific { Position::Top } else { Position::End };
    let entrance = kind_entrance(&name).map(|rule| Entrance { parent: HOSTPORTS, position, rule });
    let set = Some(kind_set(&name, version, specific));
    Shared { chain, set, entrance }
}

/// Those whom the container would answer past this host: its subnet, or itself alone.
fn neighbours(address: IpNet, specific: bool) -> Statement {
    let version = IpVersion::of(address.addr());
    if is_host(address) {
        let source = [Selector::Saddr(version)].into_iter();
        let selectors: Vec<Selector> = source.chain(key_selectors(version, specific)).collect();
        return Statement::in_set(selectors, self_set(version, specific).name);
    }
    Statement::from_subnet(address.network(), address.prefix_len())
}

/// The name of the chain that counts who needs route_localnet on the link of this index, which is its own whatever it is
/// called.
pub fn loopback_name(index: u32) -> String {
    format!("{LOOPBACK_PREFIX}{index}")
}

/// The index of the link whose users this chain counts.
pub fn loopback_index(chain: &str) -> Option<u32> {
    chain.strip_prefix(LOOPBACK_PREFIX)?.parse().ok()
}

/// What the users of route_localnet on a link share. `before` is the sysctl's value before the first of them.
pub fn loopback(link: &Link, before: &str) -> Shared {
    // nft can't write a quotation mark so that it could read it again.
    let comment = format!("route_localnet {before} on {}", link.name.replace('"', "?"));
    let chain = Chain::regular(loopback_name(link.index), Vec::new()).comment(comment);
    Shared { chain, set: None, entrance: None }
}

/// The value of route_localnet before us, and the link, from the name and the comment of the chain that counts.
pub fn read_loopback(chain: &str, comment: &str) -> Option<(String, Link)> {
    let index = loopback_index(chain)?;
    let (before, name) = comment.strip_prefix("route_localnet ")?.split_once(" on ")?;
    Some((before.to_owned(), Link { index, name: name.to_owned(), known_by: None }))
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for shared in &self.shared {
            if let Some(set) = &shared.set {
                write!(f, "{set}")?;
            }
            write!(f, "{}", shared.chain)?;
            if let Some(Entrance { parent, position, rule }) = &shared.entrance {
                let action = if *position == Position::Top { "insert" } else { "add" };
                writeln!(f, "\t{action} rule {parent} {rule}")?;
            }
        }
        if let Some(link) = &self.loopback {
            writeln!(f, "\troute_localnet on {}, guarded", link.name)?;
        }
        let record = self.record();
        for (set, elements) in [(records::map(), record.lines())].into_iter().chain(record.elements()) {
            for element in elements {
                writeln!(f, "\tadd element {} {{ {element} }}", set.name)?;
            }
        }
        Ok(())
    }
}
