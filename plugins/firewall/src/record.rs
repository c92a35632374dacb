//! What an attachment owns, read back from its own chains: DEL and GC need nothing else.

use std::net::IpAddr;

use common::Result;
use common::nft::{
    Data, Element, IpVersion, NftSocket, Pattern, Rule, Selector, Set, Statement, Table, Value, Verdict,
};

use crate::plan::WITHOUT_BRIDGE_FAMILY;
use crate::rules::{self, BRIDGE_POLICIES, BridgePolicy, IN_ZONE, PORT_GUARDS, TABLE};

/// Rules with their handles; `None` stands for a rule that nobody of us has written.
pub type RecordedRules = Vec<(u64, Option<Rule>)>;

/// One chain of an attachment as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedChain {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: String,
    /// Its rules.
    pub rules: RecordedRules,
}

/// An attachment's chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Those that are there.
    pub chains: Vec<RecordedChain>,
}

/// An address that an attachment has had, and the zone of firewalld it was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedAddress {
    /// The address.
    pub address: IpAddr,
    /// The zone.
    pub zone: Option<String>,
}

/// An element that an attachment has had: it is the attachment's as long as it leads to its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedElement {
    /// Its table.
    pub table: Table,
    /// Its map.
    pub map: &'static str,
    /// Its key.
    pub key: Element,
    /// The chain it leads to.
    pub chain: String,
}

impl RecordedElement {
    /// Whether it leads to that chain.
    pub fn is_owned(&self, socket: &mut NftSocket) -> Result<bool> {
        Ok(owner_of(socket, &self.table, self.map, &self.key)?.as_ref() == Some(&self.chain))
    }
}

impl Record {
    /// Reads the chains of the attachment with this key; `None` if there are none.
    pub fn read(socket: &mut NftSocket, key: &str) -> Result<Option<Record>> {
        let mut record = Record::default();
        let guards = PORT_GUARDS.map(|guard| (guard.chain_name(key), guard.table));
        for (name, table) in [(rules::chain_name(key), TABLE)].into_iter().chain(guards) {
            if let Some(rules) = rules_of(socket, &table, &name)? {
                record.chains.push(RecordedChain { table, name, rules });
            }
        }
        Ok((!record.chains.is_empty()).then_some(record))
    }

    /// The addresses it has had; those that a newer attachment has taken over are no longer in the record.
    pub fn addresses(&self) -> Vec<RecordedAddress> {
        self.main_rules().filter_map(recorded_address).collect()
    }

    /// The elements it has had, of addresses and of ports.
    pub fn elements(&self) -> Vec<RecordedElement> {
        let mut elements = Vec::new();
        for RecordedChain { table, name, rules } in &self.chains {
            let element = |map, key| RecordedElement { table: table.clone(), map, key, chain: name.clone() };
            if *table == TABLE {
                elements
                    .extend(self.addresses().into_iter().map(|a| address_key(a.address)).map(|(m, k)| element(m, k)));
                continue;
            }
            let guard = PORT_GUARDS.into_iter().find(|g| g.table == *table && name.starts_with(g.prefix));
            let Some(guard) = guard else { continue };
            let mut ports: Vec<String> = known(rules).filter_map(|r| interface(r, Selector::Iifname)).collect();
            ports.dedup();
            elements.extend(ports.iter().map(|port| element(guard.map, Element::key([rules::ifname(port)]))));
        }
        elements
    }

    /// The policies it needs, each with its bridge.
    pub fn policies(&self) -> Vec<(BridgePolicy, String)> {
        self.main_rules().filter_map(recorded_policy).collect()
    }

    /// Whether its isolation had to do without the bridge family.
    pub fn is_without_bridge_family(&self) -> bool {
        self.main_rules().any(|rule| rule.comment.as_deref() == Some(WITHOUT_BRIDGE_FAMILY))
    }

    fn main_rules(&self) -> impl Iterator<Item = &Rule> {
        self.chains.iter().filter(|chain| chain.table == TABLE).flat_map(|chain| known(&chain.rules))
    }
}

fn known(rules: &RecordedRules) -> impl Iterator<Item = &Rule> {
    rules.iter().filter_map(|(_, rule)| rule.as_ref())
}

/// A chain's rules, if there is such a chain.
pub fn rules_of(socket: &mut NftSocket, table: &Table, chain: &str) -> Result<Option<RecordedRules>> {
    if socket.chain(table, chain)?.is_none() {
        return Ok(None);
    }
    Ok(Some(socket.rules(table, chain)?.into_iter().map(|info| (info.handle, info.rule)).collect()))
}

/// A rule's test, if it is for equality.
fn tested(statement: &Statement) -> Option<(Selector, &Value)> {
    match statement {
        Statement::Match { selector, negated: false, pattern: Pattern::Is(value) } => Some((*selector, value)),
        _ => None,
    }
}

/// An address, if the value is one.
pub fn address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::V4(v4) => Some((*v4).into()),
        Value::V6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// Whether a rule tests for the address or the port of this element.
pub fn concerns(rule: &Rule, key: &Element) -> bool {
    rule.statements.iter().filter_map(tested).any(|(_, value)| key.key == [value.clone()])
}

fn recorded_address(rule: &Rule) -> Option<RecordedAddress> {
    let sent = |statement: &Statement| match tested(statement)? {
        (Selector::Saddr(_), value) => address(value),
        _ => None,
    };
    let address = rule.statements.iter().find_map(sent)?;
    let zone = rule.comment.as_deref().and_then(|comment| comment.strip_prefix(IN_ZONE)).map(str::to_owned);
    Some(RecordedAddress { address, zone })
}

fn interface(rule: &Rule, side: Selector) -> Option<String> {
    rule.statements.iter().filter_map(tested).find_map(|(selector, value)| match value {
        Value::Ifname(name) if selector == side => Some(name.clone()),
        _ => None,
    })
}

fn recorded_policy(rule: &Rule) -> Option<(BridgePolicy, String)> {
    let bridge = interface(rule, Selector::Iifname)?;
    let Some(Statement::Verdict(Verdict::Jump(chain))) = rule.statements.last() else { return None };
    let policy = BRIDGE_POLICIES.into_iter().find(|policy| policy.chain_for(&bridge) == *chain)?;
    Some((policy, bridge))
}

/// A set or map of ours by its name.
pub fn set_named(name: &str) -> Set {
    let ours = rules::skeleton(0).sets.into_iter().chain(rules::bridge_skeleton().sets);
    ours.into_iter().find(|set| set.name == name).unwrap_or_else(|| Set::of(name.to_owned(), []))
}

/// The chain that an element leads to, if it is there.
pub fn owner_of(socket: &mut NftSocket, table: &Table, map: &str, element: &Element) -> Result<Option<String>> {
    let found = socket.element(table, &set_named(map), &element.key)?;
    Ok(found.and_then(|element| match element.data {
        Some(Data::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => Some(chain),
        _ => None,
    }))
}

/// The key of an address's element, and its map.
pub fn address_key(address: IpAddr) -> (&'static str, Element) {
    (rules::addresses(IpVersion::of(address)), Element::key([Value::ip(address)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{HostPart, Share};
    use crate::rules::{BRIDGE_SOURCES, ISOLATED, NEIGHBOURS};
    use common::Attachment;

    fn share() -> Share {
        let ports = || vec!["veth2".to_owned(), "br@7".to_owned()];
        Share {
            attachment: Attachment::new("n", "c", "eth0"),
            addresses: vec!["10.88.0.2".parse().unwrap(), "fd00:88::2".parse().unwrap()],
            zone: Some("trusted".into()),
            policy: Some((ISOLATED, "br@7".into())),
            guards: vec![(NEIGHBOURS, ports()), (BRIDGE_SOURCES, ports())],
            without_bridge_family: false,
            host: HostPart { mark: 1, versions: vec![], make: true, admin_chain: String::new(), chains: vec![] },
        }
    }

    fn record(share: &Share) -> Record {
        let key = share.attachment.key();
        let own = share.chains().into_iter().filter(|(_, chain)| chain.name.ends_with(&key));
        let chains = own.map(|(table, chain)| {
            let rules = chain.rules.into_iter().zip(1..).map(|(rule, handle)| (handle, Some(rule))).collect();
            RecordedChain { table, name: chain.name, rules }
        });
        Record { chains: chains.collect() }
    }

    #[test]
    fn what_the_chains_say_is_what_was_planned() {
        let share = share();
        let record = record(&share);
        let zone = Some("trusted".to_owned());
        let addresses = share.addresses.iter().map(|a| RecordedAddress { address: *a, zone: zone.clone() });
        assert_eq!(record.addresses(), addresses.collect::<Vec<_>>());
        assert_eq!(record.policies(), [(ISOLATED, "br@7".to_owned())]);
        let planned = share.elements().into_iter().filter(|(_, map, _)| *map != ISOLATED.map && *map != ISOLATED.set);
        let planned: Vec<_> = planned.map(|(table, map, element)| (table, map, element.key)).collect();
        let recorded: Vec<_> = record.elements().into_iter().map(|e| (e.table, e.map, e.key.key)).collect();
        assert_eq!(recorded, planned);
    }

    #[test]
    fn isolation_without_the_bridge_family_is_remembered() {
        assert!(!record(&share()).is_without_bridge_family());
        let reduced = share().without_bridge_family();
        assert!(record(&reduced).is_without_bridge_family());
        assert!(reduced.guards.iter().all(|(guard, _)| *guard != NEIGHBOURS));
        assert_eq!(record(&reduced).policies(), [(ISOLATED, "br@7".to_owned())]);
    }

    #[test]
    fn a_strangers_rule_is_no_record() {
        let rules = vec![(1, None), (2, Some(Rule::new([Statement::DROP])))];
        let record = Record { chains: vec![RecordedChain { table: TABLE, name: "attach-x".into(), rules }] };
        assert_eq!(record.addresses(), []);
        assert_eq!(record.policies(), []);
        assert_eq!(record.elements(), []);
    }
}
