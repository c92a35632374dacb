//! The model as text: nft syntax, as `nft list` (1.0.6) prints it.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use super::model::{
    Chain, Data, DnatTarget, Element, Family, Hook, HookKind, HookPoint, MarkOf, Pattern, Policy, Rule, Selector, Set,
    SetData, SetSource, Skeleton, Statement, Table, Transport, Verdict,
};
use super::prefix;
use super::transaction::{Command, Position, Presence, Transaction};
use super::value::{DataType, Value};

/// The items with a text between them.
struct Joined<'a, T>(&'a [T], &'static str);

impl<T: Display> Display for Joined<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(self.1)?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Arp => "arp",
            Family::Netdev => "netdev",
            Family::Bridge => "bridge",
            Family::Ip6 => "ip6",
        })
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl Display for DataType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Continue => f.write_str("continue"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Transport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Dccp => "dccp",
            Transport::Sctp => "sctp",
            Transport::Udplite => "udplite",
        })
    }
}

impl Display for Selector {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Nfproto => f.write_str("meta nfproto"),
            Selector::Protocol => f.write_str("meta protocol"),
            Selector::L4proto => f.write_str("meta l4proto"),
            Selector::Iif => f.write_str("iif"),
            Selector::Oif => f.write_str("oif"),
            Selector::Iifname => f.write_str("iifname"),
            Selector::Oifname => f.write_str("oifname"),
            Selector::Iifkind => f.write_str("meta iifkind"),
            Selector::Mark => f.write_str("meta mark"),
            Selector::PktType => f.write_str("meta pkttype"),
            Selector::Skuid => f.write_str("meta skuid"),
            Selector::Skgid => f.write_str("meta skgid"),
            Selector::Saddr(version) => write!(f, "{} saddr", version.keyword()),
            Selector::Daddr(version) => write!(f, "{} daddr", version.keyword()),
            Selector::ThSport => f.write_str("th sport"),
            Selector::ThDport => f.write_str("th dport"),
            Selector::Sport(transport) => write!(f, "{transport} sport"),
            Selector::Dport(transport) => write!(f, "{transport} dport"),
            Selector::ArpSaddr => f.write_str("arp saddr ip"),
            Selector::Icmpv6Type => f.write_str("icmpv6 type"),
            Selector::NdTarget => f.write_str("@th,64,128"),
            Selector::CtState => f.write_str("ct state"),
            Selector::CtStatus => f.write_str("ct status"),
            Selector::CtMark => f.write_str("ct mark"),
            Selector::CtDirection => f.write_str("ct direction"),
            Selector::CtOriginalSaddr(version) => write!(f, "ct original {} saddr", version.keyword()),
            Selector::CtOriginalDaddr(version) => write!(f, "ct original {} daddr", version.keyword()),
            Selector::CtReplySaddr(version) => write!(f, "ct reply {} saddr", version.keyword()),
            Selector::CtOriginalSport => f.write_str("ct original proto-src"),
            Selector::CtOriginalDport => f.write_str("ct original proto-dst"),
            Selector::FibDaddrType => f.write_str("fib daddr type"),
            Selector::FibSaddrType => f.write_str("fib saddr type"),
        }
    }
}

impl Display for SetSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            SetSource::Named(name) => write!(f, "@{name}"),
            SetSource::Inline(elements) => write!(f, "{{ {} }}", Joined(elements, ", ")),
        }
    }
}

impl Display for Data {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Data::Verdict(verdict) => verdict.fmt(f),
            Data::Values(values) => Joined(values, " . ").fmt(f),
        }
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (&self.upper, self.key.first()) {
            (Some(last), Some(first)) => write_range(f, first, last)?,
            _ => Joined(&self.key, " . ").fmt(f)?,
        }
        if let Some(comment) = &self.comment {
            write!(f, " comment \"{comment}\"")?;
        }
        match &self.data {
            Some(data) => write!(f, " : {data}"),
            None => Ok(()),
        }
    }
}

fn write_range(f: &mut Formatter<'_>, first: &Value, last: &Value) -> fmt::Result {
    let subnet = match (first, last) {
        (Value::V4(a), Value::V4(b)) => prefix::of_range(IpAddr::V4(*a), IpAddr::V4(*b)),
        (Value::V6(a), Value::V6(b)) => prefix::of_range(IpAddr::V6(*a), IpAddr::V6(*b)),
        _ => None,
    };
    match subnet {
        _ if first == last => first.fmt(f),
        Some(len) => write!(f, "{first}/{len}"),
        None => write!(f, "{first}-{last}"),
    }
}

fn write_match(f: &mut Formatter<'_>, selector: Selector, negated: bool, pattern: &Pattern) -> fmt::Result {
    let not = if negated { " !=" } else { "" };
    match pattern {
        Pattern::Is(Value::Ifname(name)) if name.ends_with('*') => {
            // Unescaped it would stand for any rest.
            write!(f, "{selector}{not} \"{}\\*\"", name.strip_suffix('*').unwrap_or(name))
        }
        Pattern::Is(value) => write!(f, "{selector}{not} {value}"),
        Pattern::Masked { mask, value } => {
            write!(f, "{selector} & {mask} {} {value}", if negated { "!=" } else { "==" })
        }
        Pattern::Prefix(address, len) => {
            let network = prefix::bounds(*address, *len).0;
            let full = if network.is_ipv4() { 32 } else { 128 };
            if *len >= full {
                write!(f, "{selector}{not} {network}")
            } else {
                write!(f, "{selector}{not} {network}/{len}")
            }
        }
        Pattern::Begins(name) => write!(f, "{selector}{not} \"{name}*\""),
        Pattern::Range(first, last) => {
            write!(f, "{selector}{not} ")?;
            write_range(f, first, last)
        }
        Pattern::Any(bits) if negated => write!(f, "{selector} ! {bits}"),
        Pattern::Any(bits) => write!(f, "{selector} {bits}"),
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Statement::Match { selector, negated, pattern } => write_match(f, *selector, *negated, pattern),
            Statement::InSet { selectors, negated, set } => {
                write!(f, "{}{} {set}", Joined(selectors, " . "), if *negated { " !=" } else { "" })
            }
            Statement::Vmap { selectors, map } => write!(f, "{} vmap {map}", Joined(selectors, " . ")),
            Statement::Dnat { version, target } => match target {
                DnatTarget::Address(address, port) => {
                    write!(f, "dnat {} to ", version.keyword())?;
                    match (address, port) {
                        (address, None) => address.fmt(f),
                        (IpAddr::V4(v4), Some(port)) => write!(f, "{v4}:{port}"),
                        (IpAddr::V6(v6), Some(port)) => write!(f, "[{v6}]:{port}"),
                    }
                }
                DnatTarget::Map(selectors, map) => {
                    write!(f, "dnat {} to {} map {map}", version.keyword(), Joined(selectors, " . "))
                }
            },
            Statement::Masquerade => f.write_str("masquerade"),
            Statement::SetMark { of, keep, bits } => write_set_mark(f, *of, *keep, *bits),
            Statement::CopyMark { to } => write!(f, "{to} set {}", to.other()),
            Statement::Counter => f.write_str("counter packets 0 bytes 0"),
            Statement::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

impl MarkOf {
    /// The other of the two.
    pub const fn other(self) -> MarkOf {
        match self {
            MarkOf::Packet => MarkOf::Connection,
            MarkOf::Connection => MarkOf::Packet,
        }
    }
}

impl Display for MarkOf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MarkOf::Packet => "meta mark",
            MarkOf::Connection => "ct mark",
        })
    }
}

/// nft (1.0.6) shows `(mark & keep) ^ bits` by what it comes to: nothing kept, only set, only cleared, or both.
fn write_set_mark(f: &mut Formatter<'_>, of: MarkOf, keep: u32, bits: u32) -> fmt::Result {
    if keep == 0 {
        return write!(f, "{of} set 0x{bits:08x}");
    }
    match (keep | bits, bits) {
        (_, 0) => write!(f, "{of} set {of} & 0x{keep:08x}"),
        (u32::MAX, _) => write!(f, "{of} set {of} | 0x{bits:08x}"),
        (kept, _) => write!(f, "{of} set {of} & 0x{kept:08x} | 0x{bits:08x}"),
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (i, statement) in self.statements.iter().enumerate() {
            if is_said_by_the_next(statement, self.statements.get(i + 1)) {
                continue;
            }
            write!(f, "{separator}{statement}")?;
            separator = " ";
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

/// nft leaves out `meta nfproto ipv4` before `ip saddr`, and `meta l4proto tcp` before `tcp dport`.
fn is_said_by_the_next(statement: &Statement, next: Option<&Statement>) -> bool {
    let Statement::Match { negated: false, pattern: Pattern::Is(value), .. } = statement else { return false };
    let first = match next {
        Some(Statement::Match { selector, .. }) => Some(selector),
        Some(Statement::InSet { selectors, .. } | Statement::Vmap { selectors, .. }) => selectors.first(),
        _ => None,
    };
    match (value, first) {
        (Value::Nfproto(version), Some(first)) => first.version() == Some(*version),
        (Value::Protocol(number), Some(first)) => first.version().is_some_and(|v| v.ether_type() == *number),
        (Value::Proto(number), Some(first)) => first.transport().is_some_and(|t| t as u8 == *number),
        _ => false,
    }
}

impl Selector {
    /// The IP version that packets must have for this to be there, as far as the packet itself is concerned.
    pub const fn version(self) -> Option<super::IpVersion> {
        match self {
            Selector::Saddr(version) | Selector::Daddr(version) => Some(version),
            _ => None,
        }
    }

    /// The transport protocol that packets must have for this to be there.
    pub const fn transport(self) -> Option<Transport> {
        match self {
            Selector::Sport(transport) | Selector::Dport(transport) => Some(transport),
            _ => None,
        }
    }
}

impl Display for HookKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HookKind::Filter => "filter",
            HookKind::Nat => "nat",
            HookKind::Route => "route",
        })
    }
}

impl Display for HookPoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
        })
    }
}

impl Display for Policy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        })
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Hook { kind, point, priority, policy } = self;
        write!(f, "type {kind} hook {point} priority {priority}; policy {policy};")
    }
}

/// A hook as `nft list` prints it: a priority within 10 of a standard one by that one's name (`std_prios` and
/// `bridge_std_prios` in nft's src/rule.c).
struct InFamily<'a, T>(&'a T, Family);

impl Display for InFamily<'_, Hook> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let InFamily(Hook { kind, point, priority, policy }, family) = self;
        write!(f, "type {kind} hook {point} priority ")?;
        if *family == Family::Bridge {
            write_priority(f, &BRIDGE_PRIORITIES, *point, *priority)?;
        } else {
            write_priority(f, &PRIORITIES, *point, *priority)?;
        }
        write!(f, "; policy {policy};")
    }
}

type Standard = (i32, &'static str, Option<HookPoint>);

const BRIDGE_PRIORITIES: [Standard; 4] = [
    (-300, "dstnat", Some(HookPoint::Prerouting)),
    (-200, "filter", None),
    (100, "out", Some(HookPoint::Output)),
    (300, "srcnat", Some(HookPoint::Postrouting)),
];

const PRIORITIES: [Standard; 6] = [
    (-300, "raw", None),
    (-150, "mangle", None),
    (-100, "dstnat", Some(HookPoint::Prerouting)),
    (0, "filter", None),
    (50, "security", None),
    (100, "srcnat", Some(HookPoint::Postrouting)),
];

fn write_priority(f: &mut Formatter<'_>, names: &[Standard], point: HookPoint, priority: i32) -> fmt::Result {
    let near = names.iter().find(|(standard, _, only)| {
        priority.saturating_sub(*standard).abs() <= 10 && only.is_none_or(|only| only == point)
    });
    match near {
        None => priority.fmt(f),
        Some((standard, name, _)) if *standard == priority => f.write_str(name),
        Some((standard, name, _)) if priority > *standard => write!(f, "{name} + {}", priority - standard),
        Some((standard, name, _)) => write!(f, "{name} - {}", standard - priority),
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        InFamily(self, Family::Inet).fmt(f)
    }
}

impl Display for InFamily<'_, Chain> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let InFamily(chain, family) = self;
        writeln!(f, "\tchain {} {{", chain.name)?;
        if let Some(comment) = &chain.comment {
            writeln!(f, "\t\tcomment \"{comment}\"")?;
        }
        if let Some(hook) = &chain.hook {
            writeln!(f, "\t\t{}", InFamily(hook, *family))?;
        }
        for rule in &chain.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Set {
    /// `set` or `map`.
    pub const fn keyword(&self) -> &'static str {
        match self.data {
            SetData::None => "set",
            SetData::Verdict | SetData::Values(_) => "map",
        }
    }

    /// What it is, on one line.
    pub(super) fn signature(&self) -> String {
        let data = match &self.data {
            SetData::None => String::new(),
            SetData::Verdict => " : verdict".to_owned(),
            SetData::Values(types) => format!(" : {}", Joined(types, " . ")),
        };
        format!("type {}{data}{}", Joined(&self.key, " . "), if self.interval { "; flags interval" } else { "" })
    }

    fn write_properties(&self, f: &mut Formatter<'_>, before: &str, after: &str) -> fmt::Result {
        write!(f, "{before}type {}", Joined(&self.key, " . "))?;
        match &self.data {
            SetData::None => {}
            SetData::Verdict => f.write_str(" : verdict")?,
            SetData::Values(types) => write!(f, " : {}", Joined(types, " . "))?,
        }
        f.write_str(after)?;
        if self.interval {
            write!(f, "{before}flags interval{after}")?;
        }
        match &self.comment {
            Some(comment) => write!(f, "{before}comment \"{comment}\"{after}"),
            None => Ok(()),
        }
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\t{} {} {{", self.keyword(), self.name)?;
        self.write_properties(f, "\t\t", "\n")?;
        writeln!(f, "\t}}")
    }
}

impl Display for Skeleton {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.table)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        let mut separator = "";
        for set in &self.sets {
            write!(f, "{separator}{set}")?;
            separator = "\n";
        }
        for chain in &self.chains {
            write!(f, "{separator}{}", InFamily(chain, self.table.family))?;
            separator = "\n";
        }
        writeln!(f, "}}")
    }
}

impl Display for Position {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Position::Top | Position::End => Ok(()),
            Position::Before(handle) | Position::After(handle) => write!(f, " handle {handle}"),
        }
    }
}

impl Display for Command {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Command::AddTable(table, None) => write!(f, "add table {table}"),
            Command::AddTable(table, Some(comment)) => {
                write!(f, "add table {table} {{ comment \"{comment}\"; }}")
            }
            Command::DeleteTable(table) => write!(f, "delete table {table}"),
            Command::AddSet(table, set) => {
                write!(f, "add {} {table} {} {{ ", set.keyword(), set.name)?;
                set.write_properties(f, "", "; ")?;
                f.write_str("}")
            }
            Command::DeleteSet(table, set) => write!(f, "delete set {table} {set}"),
            Command::FlushSet(table, set) => write!(f, "flush set {table} {set}"),
            Command::AddChain(table, chain) => write_add_chain(f, table, chain),
            Command::UseChain(table, chain) => {
                write!(f, "add chain {table} {}", chain.name)?;
                let Some(Hook { kind, point, priority, .. }) = chain.hook else { return Ok(()) };
                write!(f, " {{ type {kind} hook {point} priority {priority}; }}")
            }
            Command::AddRules(table, chain) => {
                let mut rules = chain.rules.iter();
                rules.try_for_each(|rule| writeln!(f, "add rule {table} {} {rule}", chain.name))
            }
            Command::DeleteChain(table, chain) => write!(f, "delete chain {table} {chain}"),
            Command::FlushChain(table, chain) => write!(f, "flush chain {table} {chain}"),
            Command::AddRule(table, chain, position, rule) => {
                let verb = if matches!(position, Position::Top | Position::Before(_)) { "insert" } else { "add" };
                write!(f, "{verb} rule {table} {chain}{position} {rule}")
            }
            Command::DeleteRule(table, chain, handle) => write!(f, "delete rule {table} {chain} handle {handle}"),
            Command::AddElements(table, set, presence, elements) => {
                let verb = if *presence == Presence::Exclusive { "create" } else { "add" };
                write!(f, "{verb} element {table} {set} {{ {} }}", Joined(elements, ", "))
            }
            Command::DeleteElements(table, set, elements) => {
                write!(f, "delete element {table} {set} {{ {} }}", Joined(elements, ", "))
            }
        }
    }
}

fn write_add_chain(f: &mut Formatter<'_>, table: &Table, chain: &Chain) -> fmt::Result {
    write!(f, "add chain {table} {}", chain.name)?;
    if chain.hook.is_some() || chain.comment.is_some() {
        f.write_str(" { ")?;
        if let Some(hook) = &chain.hook {
            write!(f, "{hook} ")?;
        }
        if let Some(comment) = &chain.comment {
            write!(f, "comment \"{comment}\"; ")?;
        }
        f.write_str("}")?;
    }
    for rule in &chain.rules {
        write!(f, "\nadd rule {table} {} {rule}", chain.name)?;
    }
    Ok(())
}

impl Display for Transaction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for command in self.commands() {
            writeln!(f, "{command}")?;
        }
        Ok(())
    }
}
