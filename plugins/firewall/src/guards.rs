//! Other filters at the forward hook: base chains of somebody else's that will drop what we admit.
//!
//! Our mark says nothing to them unless a rule of theirs asks for it (`"hostChains"`). Nothing is changed here: they are
//! named, so that an administrator knows which chain it is that drops a container's packets.

use std::fmt;

use common::Result;
use common::nft::{
    Data, Element, Family, Hook, HookPoint, IpVersion, NftSocket, Pattern, Policy, RuleInfo, Selector, SetSource,
    Statement, Table, Value, Verdict,
};

use crate::plan::HostPart;

/// A chain that drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    table: Table,
    chain: String,
    /// Whether none of its rules can accept a new connection: then it drops all of them.
    pub certainly: bool,
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Guard { table, chain, certainly } = self;
        if *certainly {
            write!(f, "chain {table} {chain} drops all new forwarded connections")
        } else {
            write!(f, "chain {table} {chain} drops what none of its rules accepts")
        }
    }
}

impl Guard {
    /// What an administrator can do about it.
    pub fn remedy(&self) -> String {
        if self.table == FIREWALLD {
            return "leave \"backend\" out or set it to \"firewalld\"".into();
        }
        format!("add \"hostChains\": [\"{} {}\"] to the firewall plugin's configuration", self.table, self.chain)
    }
}

/// firewalld's table.
const FIREWALLD: Table = Table::new(Family::Inet, "firewalld");

/// Whom else a container's packets meet, and who of them is taken care of.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// What is put into the host's own filters.
    pub host: &'a HostPart,
    /// Whether firewalld is told.
    pub firewalld: bool,
}

/// Chains that are found so often that they are looked for even where a list of all would cost too much.
const USUAL: [(Table, &str); 5] = [
    (FIREWALLD, "filter_FORWARD"),
    (Table::new(Family::Inet, "filter"), "forward"),
    (Table::new(Family::Inet, "filter"), "FORWARD"),
    (Table::new(Family::Ip, "filter"), "forward"),
    (Table::new(Family::Ip6, "filter"), "forward"),
];

/// The usual ones only: all looked up at once.
pub fn usual(socket: &mut NftSocket, scope: Scope<'_>) -> Result<Vec<Guard>> {
    let mut guards = Vec::new();
    for ((table, name), info) in USUAL.into_iter().zip(socket.chains_at(&USUAL)?) {
        let Some(info) = info else { continue };
        guards.extend(guard(socket, scope, table, name, info.hook)?);
    }
    Ok(guards)
}

/// All of them; the time grows with the number of chains there are.
pub fn all(socket: &mut NftSocket, scope: Scope<'_>) -> Result<Vec<Guard>> {
    let mut guards = Vec::new();
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        for (table, info) in socket.base_chains(family)? {
            guards.extend(guard(socket, scope, table, &info.name, info.hook)?);
        }
    }
    Ok(guards)
}

fn guard(
    socket: &mut NftSocket,
    scope: Scope<'_>,
    table: Table,
    name: &str,
    hook: Option<Hook>,
) -> Result<Option<Guard>> {
    let Some(hook) = hook.filter(|hook| hook.point == HookPoint::Forward) else { return Ok(None) };
    if !concerns(scope.host, &table) || is_told(scope, &table, name) {
        return Ok(None);
    }
    let rules = socket.rules(&table, name)?;
    let drops = hook.policy == Policy::Drop || rules.last().is_some_and(refuses_the_rest);
    let certainly = table == FIREWALLD || !rules.iter().any(may_accept);
    Ok(drops.then(|| Guard { table, chain: name.to_owned(), certainly }))
}

fn concerns(host: &HostPart, table: &Table) -> bool {
    let has = |version| host.versions.contains(&version);
    match table.family {
        Family::Inet => !host.versions.is_empty(),
        Family::Ip => has(IpVersion::V4),
        Family::Ip6 => has(IpVersion::V6),
        _ => false,
    }
}

/// Chains that are taken care of: our own, iptables', firewalld's if it is told, those of `hostChains`.
fn is_told(scope: Scope<'_>, table: &Table, name: &str) -> bool {
    let iptables = matches!(table.family, Family::Ip | Family::Ip6) && table.name == "filter" && name == "FORWARD";
    iptables
        || table.name.starts_with("cni_chain_")
        || (scope.firewalld && *table == FIREWALLD)
        || scope.host.chains.iter().any(|chain| chain.table() == *table && chain.chain == name)
}

/// A rule without a condition that drops or rejects, as firewalld's last.
pub fn refuses_the_rest(info: &RuleInfo) -> bool {
    match info.rule() {
        Some(rule) => rule.statements.iter().filter(|s| **s != Statement::Counter).eq([&Statement::DROP]),
        None => is_reject(info) && expressions(&info.text()).all(|e| e == "counter" || REJECTS.contains(&e)),
    }
}

/// nft's own, and iptables'.
const REJECTS: [&str; 2] = ["reject", "target REJECT"];

fn is_reject(info: &RuleInfo) -> bool {
    expressions(&info.text()).any(|e| REJECTS.contains(&e))
}

/// Of a rule that the model has no words for, what it is made of: `[counter] [reject] comment "…"`.
fn expressions(text: &str) -> impl Iterator<Item = &str> {
    let text = text.split(" comment \"").next().unwrap_or_default();
    text.trim_matches(['[', ']']).split("] [")
}

/// Whether a rule may let new connections through; replies and published ports aside.
fn may_accept(info: &RuleInfo) -> bool {
    let Some(rule) = info.rule() else { return !is_reject(info) };
    !rule.statements.iter().any(is_about_others) && rule.statements.iter().any(leads_on)
}

/// Whether a statement's verdict may be to accept.
fn leads_on(statement: &Statement) -> bool {
    match statement {
        Statement::Verdict(verdict) => may_accept_by(verdict),
        Statement::Vmap { selectors, map: SetSource::Inline(elements) } if *selectors == [Selector::CtState] => {
            elements.iter().any(accepts_new)
        }
        Statement::Vmap { .. } => true,
        _ => false,
    }
}

fn may_accept_by(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Accept | Verdict::Jump(_) | Verdict::Goto(_))
}

fn accepts_new(element: &Element) -> bool {
    let verdict = matches!(&element.data, Some(Data::Verdict(verdict)) if may_accept_by(verdict));
    verdict && !element.key.first().is_some_and(is_reply)
}

const REPLY: u32 = Value::ESTABLISHED | Value::RELATED | Value::INVALID;

fn is_reply(value: &Value) -> bool {
    matches!(value, Value::CtState(bits) if bits & !REPLY == 0)
}

/// A test that new connections of containers don't pass: replies, published ports, the loopback interface.
fn is_about_others(statement: &Statement) -> bool {
    match statement {
        Statement::Match { negated: false, pattern: Pattern::Any(value) | Pattern::Is(value), selector } => {
            is_reply(value)
                || *value == Value::CtStatus(Value::DNAT)
                || *selector == Selector::Iifname && *value == Value::Ifname("lo".into())
        }
        Statement::InSet { selectors, negated: false, set: SetSource::Inline(elements) } => {
            *selectors == [Selector::CtState] && elements.iter().all(|e| e.key.first().is_some_and(is_reply))
        }
        _ => false,
    }
}
