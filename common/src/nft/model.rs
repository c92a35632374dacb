//! Tables, chains, rules, sets and elements as values: compared with `==`, printed as `nft list` prints them.
//!
//! A plugin's plan is made of these; nothing here opens a socket.

use std::borrow::Cow;
use std::net::IpAddr;

use super::value::{DataType, IpVersion, Value};

/// A table's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// ARP.
    Arp = 3,
    /// Ingress and egress of a device.
    Netdev = 5,
    /// Bridges.
    Bridge = 7,
    /// IPv6.
    Ip6 = 10,
}

/// A table, by what identifies it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: Cow<'static, str>,
}

impl Table {
    /// A table whose name is known at compile time.
    pub const fn new(family: Family, name: &'static str) -> Table {
        Table { family, name: Cow::Borrowed(name) }
    }
}

/// The kind of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookKind {
    /// `filter`: sees every packet.
    Filter,
    /// `nat`: sees the first packet of a connection.
    Nat,
    /// `route`: packets whose changes lead to another route.
    Route,
}

/// Where a base chain sits (NF_INET_…, include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum HookPoint {
    /// Everything that arrives.
    Prerouting = 0,
    /// What is for this host.
    Input = 1,
    /// What is for others.
    Forward = 2,
    /// What this host makes.
    Output = 3,
    /// Everything that leaves.
    Postrouting = 4,
}

/// A base chain's verdict on what its rules let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// NF_ACCEPT
    Accept,
    /// NF_DROP
    Drop,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hook {
    /// Its kind.
    pub kind: HookKind,
    /// Where it sits.
    pub point: HookPoint,
    /// Its order among the chains there: lower comes first.
    pub priority: i32,
    /// Its verdict at the end.
    pub policy: Policy,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name, at most 255 bytes.
    pub name: String,
    /// What makes it a base chain.
    pub hook: Option<Hook>,
    /// Its comment, at most [`COMMENT_MAX`] bytes (more is cut).
    pub comment: Option<String>,
    /// Its rules, first to last.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that others jump to.
    pub fn regular(name: impl Into<String>, rules: Vec<Rule>) -> Chain {
        Chain { name: name.into(), hook: None, comment: None, rules }
    }

    /// A chain that the kernel calls, with policy accept.
    pub fn base(name: impl Into<String>, kind: HookKind, point: HookPoint, priority: i32, rules: Vec<Rule>) -> Chain {
        let hook = Hook { kind, point, priority, policy: Policy::Accept };
        Chain { name: name.into(), hook: Some(hook), comment: None, rules }
    }

    /// The same with a comment.
    pub fn comment(mut self, comment: impl Into<String>) -> Chain {
        self.comment = Some(comment.into());
        self
    }

    /// Whether, in a skeleton, its rules come with the attachments: it has a place and a name, and no rules of its own.
    pub fn is_filled_by_attachments(&self) -> bool {
        self.hook.is_none() && self.rules.is_empty()
    }
}

/// Bytes of a comment (libnftnl's NFTNL_UDATA_COMMENT_MAXLEN is 128 with two bytes of head and a NUL).
pub const COMMENT_MAX: usize = crate::attachment::LABEL_MAX;

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What it tests and does, in order.
    pub statements: Vec<Statement>,
    /// Its comment, at most [`COMMENT_MAX`] bytes (more is cut).
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(statements: impl IntoIterator<Item = Statement>) -> Rule {
        Rule { statements: statements.into_iter().collect(), comment: None }
    }

    /// The same with a comment.
    pub fn comment(mut self, comment: impl Into<String>) -> Rule {
        self.comment = Some(comment.into());
        self
    }
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp = 6,
    Udp = 17,
    Dccp = 33,
    Sctp = 132,
    Udplite = 136,
}

/// A property of a packet or its connection: the left side of a test.
///
/// Those of one IP version or one transport test the packet's version or protocol first, as in nft: the compiler adds
/// that test once a rule, and `nft list` leaves it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// `meta nfproto`
    Nfproto,
    /// `meta protocol`: the EtherType
    Protocol,
    /// `meta l4proto`
    L4proto,
    /// `iif`, by index
    Iif,
    /// `oif`, by index
    Oif,
    /// `iifname`
    Iifname,
    /// `oifname`
    Oifname,
    /// `meta iifkind`: the kind of a virtual link; of another there is none, and no test of it holds
    Iifkind,
    /// `meta mark`
    Mark,
    /// `meta pkttype`
    PktType,
    /// `meta skuid`
    Skuid,
    /// `meta skgid`
    Skgid,
    /// `ip saddr`, `ip6 saddr`
    Saddr(IpVersion),
    /// `ip daddr`, `ip6 daddr`
    Daddr(IpVersion),
    /// `th sport`: of whatever protocol
    ThSport,
    /// `th dport`: of whatever protocol
    ThDport,
    /// `tcp sport` and so on
    Sport(Transport),
    /// `tcp dport` and so on
    Dport(Transport),
    /// `arp saddr ip`: whose address the sender says it has; behind a test of the EtherType
    ArpSaddr,
    /// `icmpv6 type`; behind a test of the transport protocol
    Icmpv6Type,
    /// The target of a neighbour solicitation or advertisement, `@th,64,128`; behind a test of the type
    NdTarget,
    /// `ct state`
    CtState,
    /// `ct status`
    CtStatus,
    /// `ct mark`
    CtMark,
    /// `ct direction`
    CtDirection,
    /// `ct original ip saddr`
    CtOriginalSaddr(IpVersion),
    /// `ct original ip daddr`
    CtOriginalDaddr(IpVersion),
    /// `ct reply ip saddr`
    CtReplySaddr(IpVersion),
    /// `ct original proto-src`
    CtOriginalSport,
    /// `ct original proto-dst`: nft lists it only behind a test of the protocol
    CtOriginalDport,
    /// `fib daddr type`
    FibDaddrType,
    /// `fib saddr type`
    FibSaddrType,
}

/// The right side of a test.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// This value.
    Is(Value),
    /// `selector & mask == value`
    Masked {
        /// The bits that count.
        mask: Value,
        /// What they must be.
        value: Value,
    },
    /// An address within a subnet: `10.0.0.0/8`. Bits beyond the prefix are ignored.
    Prefix(IpAddr, u8),
    /// An interface name that begins so: `"veth*"`.
    Begins(String),
    /// From the first to the last, both included.
    Range(Value, Value),
    /// `ct state`, `ct status`: any of these bits.
    Any(Value),
}

/// A set or a map: one of the table's by name, or one of the rule's own, `{ … }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SetSource {
    /// A set of the table.
    Named(String),
    /// An anonymous, constant one with these elements.
    Inline(Vec<Element>),
}

/// Where a `dnat` sends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DnatTarget {
    /// One address.
    Address(IpAddr, Option<u16>),
    /// `meta l4proto . th dport map …`: address and port by a map whose data are `addr . port`.
    Map(Vec<Selector>, SetSource),
}

/// Whose mark is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MarkOf {
    /// `meta mark`
    Packet,
    /// `ct mark`
    Connection,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It leaves this base chain; those after it still see it.
    Accept,
    /// It is gone.
    Drop,
    /// On with the next rule of the chain that jumped here.
    Return,
    /// On with the next rule.
    Continue,
    /// On in that chain, and back here.
    Jump(String),
    /// On in that chain, and not back here.
    Goto(String),
}

/// One test or action of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// A test of one property.
    Match {
        /// Which.
        selector: Selector,
        /// `!=`
        negated: bool,
        /// Against what.
        pattern: Pattern,
    },
    /// A test of one or several properties against a set.
    InSet {
        /// Which, concatenated.
        selectors: Vec<Selector>,
        /// `!=`
        negated: bool,
        /// Against which set.
        set: SetSource,
    },
    /// The verdict that a map has for these properties; none: on with the next statement.
    Vmap {
        /// Which, concatenated.
        selectors: Vec<Selector>,
        /// The map.
        map: SetSource,
    },
    /// `dnat ip to …`
    Dnat {
        /// Whose packets.
        version: IpVersion,
        /// Where to.
        target: DnatTarget,
    },
    /// `masquerade`
    Masquerade,
    /// `meta mark set meta mark & keep | bits` (what `bits` has is set whether kept or not)
    SetMark {
        /// Whose.
        of: MarkOf,
        /// The bits that stay.
        keep: u32,
        /// The bits that are set.
        bits: u32,
    },
    /// `ct mark set meta mark` or back: the whole mark of one becomes the other's.
    CopyMark {
        /// Who gets it.
        to: MarkOf,
    },
    /// `counter`; its values belong to the kernel and are never compared.
    Counter,
    /// The end.
    Verdict(Verdict),
}

impl Statement {
    /// `selector value`
    pub fn is(selector: Selector, value: Value) -> Statement {
        Statement::Match { selector, negated: false, pattern: Pattern::Is(value) }
    }

    /// `selector != value`
    pub fn is_not(selector: Selector, value: Value) -> Statement {
        Statement::Match { selector, negated: true, pattern: Pattern::Is(value) }
    }

    /// `selector pattern`
    pub fn matches(selector: Selector, pattern: Pattern) -> Statement {
        Statement::Match { selector, negated: false, pattern }
    }

    /// `meta mark & bits == bits`
    pub fn has_mark(bits: u32) -> Statement {
        let (mask, value) = (Value::Mark(bits), Value::Mark(bits));
        Statement::matches(Selector::Mark, Pattern::Masked { mask, value })
    }

    /// `meta mark set meta mark | bits`
    pub fn add_mark(bits: u32) -> Statement {
        Statement::SetMark { of: MarkOf::Packet, keep: !bits, bits }
    }

    /// `meta mark set meta mark & ~bits`
    pub fn clear_mark(bits: u32) -> Statement {
        Statement::SetMark { of: MarkOf::Packet, keep: !bits, bits: 0 }
    }

    /// `ip saddr 10.0.0.0/8` or `ip6 saddr …`
    pub fn from_subnet(address: IpAddr, prefix_len: u8) -> Statement {
        let selector = Selector::Saddr(IpVersion::of(address));
        Statement::matches(selector, Pattern::Prefix(address, prefix_len))
    }

    /// `ip daddr 10.0.0.0/8` or `ip6 daddr …`
    pub fn to_subnet(address: IpAddr, prefix_len: u8) -> Statement {
        let selector = Selector::Daddr(IpVersion::of(address));
        Statement::matches(selector, Pattern::Prefix(address, prefix_len))
    }

    /// `ct state established,related`: `bits` of [`Value::ESTABLISHED`] and so on.
    pub fn ct_state(bits: u32) -> Statement {
        Statement::matches(Selector::CtState, Pattern::Any(Value::CtState(bits)))
    }

    /// `ct status dnat`: `bits` of [`Value::DNAT`] and so on.
    pub fn ct_status(bits: u32) -> Statement {
        Statement::matches(Selector::CtStatus, Pattern::Any(Value::CtStatus(bits)))
    }

    /// `selectors vmap @map`
    pub fn vmap(selectors: impl Into<Vec<Selector>>, map: impl Into<String>) -> Statement {
        Statement::Vmap { selectors: selectors.into(), map: SetSource::Named(map.into()) }
    }

    /// `selectors @set`
    pub fn in_set(selectors: impl Into<Vec<Selector>>, set: impl Into<String>) -> Statement {
        Statement::InSet { selectors: selectors.into(), negated: false, set: SetSource::Named(set.into()) }
    }

    /// `jump chain`
    pub fn jump(chain: impl Into<String>) -> Statement {
        Statement::Verdict(Verdict::Jump(chain.into()))
    }

    /// `goto chain`
    pub fn goto(chain: impl Into<String>) -> Statement {
        Statement::Verdict(Verdict::Goto(chain.into()))
    }

    /// `accept`
    pub const ACCEPT: Statement = Statement::Verdict(Verdict::Accept);
    /// `drop`
    pub const DROP: Statement = Statement::Verdict(Verdict::Drop);
    /// `return`
    pub const RETURN: Statement = Statement::Verdict(Verdict::Return);
}

/// What a set's elements lead to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SetData {
    /// Nothing: it is a set.
    None,
    /// A verdict: it is a verdict map.
    Verdict,
    /// Values, concatenated if there are several.
    Values(Vec<DataType>),
}

/// A named set or map, without its elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The fields of a key.
    pub key: Vec<DataType>,
    /// What keys lead to.
    pub data: SetData,
    /// Whether elements may be ranges (single-field keys only).
    pub interval: bool,
    /// Its comment.
    pub comment: Option<String>,
}

impl Set {
    /// A set.
    pub fn of(name: impl Into<String>, key: impl Into<Vec<DataType>>) -> Set {
        Set { name: name.into(), key: key.into(), data: SetData::None, interval: false, comment: None }
    }

    /// A verdict map.
    pub fn vmap(name: impl Into<String>, key: impl Into<Vec<DataType>>) -> Set {
        Set { data: SetData::Verdict, ..Set::of(name, key) }
    }

    /// A map to values.
    pub fn map(name: impl Into<String>, key: impl Into<Vec<DataType>>, data: impl Into<Vec<DataType>>) -> Set {
        Set { data: SetData::Values(data.into()), ..Set::of(name, key) }
    }

    /// The same with a comment.
    pub fn comment(mut self, comment: impl Into<String>) -> Set {
        self.comment = Some(comment.into());
        self
    }

    /// The same with ranges allowed.
    pub fn interval(mut self) -> Set {
        self.interval = true;
        self
    }
}

/// What an element of a map leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    /// A verdict.
    Verdict(Verdict),
    /// Values.
    Values(Vec<Value>),
}

/// One element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// Its key's fields.
    pub key: Vec<Value>,
    /// If it is a range: its last key.
    pub upper: Option<Value>,
    /// What it leads to.
    pub data: Option<Data>,
    /// Its comment, at most [`COMMENT_MAX`] bytes (more is cut).
    pub comment: Option<String>,
}

impl Element {
    /// A set's element.
    pub fn key(key: impl Into<Vec<Value>>) -> Element {
        Element { key: key.into(), upper: None, data: None, comment: None }
    }

    /// A verdict map's element.
    pub fn verdict(key: impl Into<Vec<Value>>, verdict: Verdict) -> Element {
        Element { data: Some(Data::Verdict(verdict)), ..Element::key(key) }
    }

    /// A map's element.
    pub fn values(key: impl Into<Vec<Value>>, values: impl Into<Vec<Value>>) -> Element {
        Element { data: Some(Data::Values(values.into())), ..Element::key(key) }
    }

    /// A range of an interval set.
    pub fn range(from: Value, to: Value) -> Element {
        Element { upper: Some(to), ..Element::key([from]) }
    }

    /// A subnet of an interval set.
    pub fn prefix(address: IpAddr, prefix_len: u8) -> Element {
        let (first, last) = super::prefix::bounds(address, prefix_len);
        Element::range(Value::ip(first), Value::ip(last))
    }

    /// The same with a comment.
    pub fn comment(mut self, comment: impl Into<String>) -> Element {
        self.comment = Some(comment.into());
        self
    }
}

impl Element {
    /// As the kernel returns it: a range of one key is that key, comments are cut.
    pub(super) fn normalise(&mut self) {
        if self.upper.as_ref() == self.key.first() {
            self.upper = None;
        }
        if let Some(comment) = &mut self.comment {
            comment.truncate(super::userdata::comment_end(comment));
        }
    }
}

/// Everything static in a table of ours: what is there before the first attachment and after the last.
///
/// Put in by the ADD that finds it missing or of another version, in that ADD's own transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Skeleton {
    /// The table.
    pub table: Table,
    /// Its comment.
    pub comment: Option<String>,
    /// Its sets and maps; their elements come with the attachments.
    pub sets: Vec<Set>,
    /// Its static chains.
    pub chains: Vec<Chain>,
}
