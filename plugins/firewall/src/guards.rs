//! Other filters at the forward hook: base chains of somebody else's that will drop what we admit.
//!
//! Our mark says nothing to them unless a rule of theirs asks for it (`"hostChains"`). Nothing is changed here: they are
//! named, so that an administrator knows which chain it is that drops a container's packets.

use std::fmt;

use common::Result;
use common::nft::{
    ChainInfo, Data, Element, Family, HookPoint, IpVersion, NftSocket, Pattern, RuleInfo, Selector, SetSource,
    Statement, Table, Value, Verdict,
};

use crate::hostfilter::FoundRule;
use crate::obstacles::Surroundings;
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
    /// Whether it drops packets of this IP version.
    pub fn concerns(&self, version: IpVersion) -> bool {
        match self.table.family {
            Family::Ip => version == IpVersion::V4,
            Family::Ip6 => version == IpVersion::V6,
            _ => true,
        }
    }

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

/// All of them. What is listed for that is all chains there are, by one request.
pub fn all(socket: &mut NftSocket, scope: Scope<'_>) -> Result<Vec<Guard>> {
    let mut guards = Vec::new();
    for (table, info) in socket.base_chains()? {
        guards.extend(guard(socket, scope, table, &info)?);
    }
    Ok(guards)
}

fn guard(socket: &mut NftSocket, scope: Scope<'_>, table: Table, info: &ChainInfo) -> Result<Option<Guard>> {
    let name = info.name.as_str();
    let is_at_forward = info.hook.is_some_and(|hook| hook.point == HookPoint::Forward);
    if !is_at_forward || !concerns(scope.host, &table) || is_told(scope, &table, name) {
        return Ok(None);
    }
    let mut rules = socket.rules(&table, name)?;
    let refuses_at_its_end = match rules.last() {
        Some(last) => refuses(socket, &table, last.clone())?,
        None => false,
    };
    if refuses_at_its_end {
        rules.pop();
    }
    let certainly = table == FIREWALLD || !rules.iter().any(may_accept);
    Ok((info.drops() || refuses_at_its_end).then(|| Guard { table, chain: name.to_owned(), certainly }))
}

/// Whether the rule drops or rejects every packet, as firewalld's last, or leads it to where that happens.
fn refuses(socket: &mut NftSocket, table: &Table, rule: RuleInfo) -> Result<bool> {
    let rule = [FoundRule::from(rule)];
    let mut around = Surroundings::default();
    around.follow(socket, table, rule.iter(), &[])?;
    Ok(around.end_refuses(&rule))
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

/// Whether a rule that the model has no words for rejects every packet.
pub fn rejects_all(info: &RuleInfo) -> bool {
    is_reject(info) && expressions(&info.text()).all(|e| e == "counter" || REJECTS.contains(&e))
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
