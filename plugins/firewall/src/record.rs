//! What an attachment owns, read back from its own chain: DEL and GC need nothing else.

use std::net::IpAddr;

use common::Result;
use common::nft::{
    Data, Element, IpVersion, NftSocket, Pattern, Rule, Selector, Set, Statement, Table, Value, Verdict,
};

use crate::plan::WITHOUT_BRIDGE_FAMILY;
use crate::rules::{self, BRIDGE_POLICIES, BRIDGE_TABLE, BridgePolicy, IN_ZONE, ISOLATED_PORTS, TABLE};

/// Rules with their handles; `None` stands for a rule that nobody of us has written.
pub type RecordedRules = Vec<(u64, Option<Rule>)>;

/// An attachment's chains as they are in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The name of its chain, in both tables.
    pub chain: String,
    /// Its rules in [`TABLE`].
    pub rules: RecordedRules,
    /// Whether the chain is in [`TABLE`].
    pub exists: bool,
    /// Its rules in [`BRIDGE_TABLE`], if it has a chain there.
    pub port_rules: Option<RecordedRules>,
}

/// An address that an attachment has had, and the zone of firewalld it was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedAddress {
    /// The address.
    pub address: IpAddr,
    /// The zone.
    pub zone: Option<String>,
}

impl Record {
    /// Reads the chains of this name; `None` if there are none.
    pub fn read(socket: &mut NftSocket, chain: &str) -> Result<Option<Record>> {
        let rules = rules_of(socket, &TABLE, chain)?;
        let port_rules = rules_of(socket, &BRIDGE_TABLE, chain)?;
        if rules.is_none() && port_rules.is_none() {
            return Ok(None);
        }
        let exists = rules.is_some();
        Ok(Some(Record { chain: chain.to_owned(), rules: rules.unwrap_or_default(), exists, port_rules }))
    }

    /// The addresses it has had; those that a newer attachment has taken over are no longer in the record.
    pub fn addresses(&self) -> Vec<RecordedAddress> {
        self.known_rules().filter_map(|(_, rule)| recorded_address(rule)).collect()
    }

    /// The handles of the rules for one address or one port, by its table and the key of its element.
    pub fn handles_for(&self, table: &Table, key: &Element) -> Vec<u64> {
        let rules = if *table == TABLE { Some(&self.rules) } else { self.port_rules.as_ref() };
        let concerned = rules.into_iter().flat_map(known).filter(|(_, rule)| concerns(rule, &key.key));
        concerned.map(|(handle, _)| handle).collect()
    }

    /// The policies it needs, each with its bridge.
    pub fn policies(&self) -> Vec<(BridgePolicy, String)> {
        self.known_rules().filter_map(|(_, rule)| recorded_policy(rule)).collect()
    }

    /// The ports by which it is on a bridge.
    pub fn ports(&self) -> Vec<String> {
        let rules = self.port_rules.iter().flatten().filter_map(|(_, rule)| rule.as_ref());
        rules.filter_map(|rule| interface(rule, Selector::Iifname)).collect()
    }

    /// Whether its isolation had to do without the bridge family.
    pub fn is_without_bridge_family(&self) -> bool {
        self.known_rules().any(|(_, rule)| rule.comment.as_deref() == Some(WITHOUT_BRIDGE_FAMILY))
    }

    fn known_rules(&self) -> impl Iterator<Item = (u64, &Rule)> {
        known(&self.rules)
    }
}

fn known(rules: &RecordedRules) -> impl Iterator<Item = (u64, &Rule)> {
    rules.iter().filter_map(|(handle, rule)| rule.as_ref().map(|rule| (*handle, rule)))
}

fn rules_of(socket: &mut NftSocket, table: &Table, chain: &str) -> Result<Option<RecordedRules>> {
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

fn address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::V4(v4) => Some((*v4).into()),
        Value::V6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn concerns(rule: &Rule, key: &[Value]) -> bool {
    rule.statements.iter().filter_map(tested).any(|(_, value)| key == [value.clone()])
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

/// The key of an address's element.
pub fn address_key(address: IpAddr) -> (&'static str, Element) {
    (rules::addresses(IpVersion::of(address)), Element::key([Value::ip(address)]))
}

/// The key of a port's element.
pub fn port_key(port: &str) -> (&'static str, Element) {
    (ISOLATED_PORTS, Element::key([rules::ifname(port)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::Attachment;

    fn record(rules: Vec<Rule>) -> Record {
        let rules = rules.into_iter().zip(1..).map(|(rule, handle)| (handle, Some(rule))).collect();
        Record { chain: "attach-x".into(), rules, exists: true, port_rules: None }
    }

    #[test]
    fn what_the_rules_say_is_what_was_planned() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.88.0.2".parse().unwrap(), "fd00:88::2".parse().unwrap());
        let mut rules = rules::address_rules(v4, Some("trusted"));
        rules.extend(rules::address_rules(v6, None));
        rules.push(rules::policy_rule(rules::ISOLATED, "br@7"));
        let record = record(rules);
        assert_eq!(
            record.addresses(),
            [
                RecordedAddress { address: v4, zone: Some("trusted".into()) },
                RecordedAddress { address: v6, zone: None }
            ]
        );
        assert_eq!(record.policies(), [(rules::ISOLATED, "br@7".to_owned())]);
        assert_eq!(record.handles_for(&TABLE, &address_key(v6).1), [4, 5, 6]);
    }

    #[test]
    fn ports_are_read_back() {
        let chain = rules::port_chain(&Attachment::new("n", "c", "eth0"), &["veth2".into(), "veth3".into()]);
        let port_rules = Some(chain.rules.into_iter().map(|rule| (1, Some(rule))).collect());
        let record = Record { port_rules, ..Record::default() };
        assert_eq!(record.ports(), ["veth2", "veth3"]);
    }

    #[test]
    fn isolation_without_the_bridge_family_is_remembered() {
        let share = crate::plan::Share {
            attachment: Attachment::new("n", "c", "eth0"),
            addresses: vec![],
            zone: None,
            policy: Some((rules::ISOLATED, "cni0".into())),
            isolated_ports: vec!["veth2".into()],
            without_bridge_family: false,
            host: crate::plan::HostPart {
                mark: 1,
                versions: vec![],
                make: true,
                admin_chain: String::new(),
                chains: vec![],
            },
        };
        assert!(!record(share.chain().rules).is_without_bridge_family());
        let reduced = share.without_bridge_family();
        assert!(record(reduced.chain().rules).is_without_bridge_family());
        assert!(reduced.chains().iter().all(|(table, _)| *table == TABLE));
        assert_eq!(record(reduced.chain().rules).policies(), [(rules::ISOLATED, "cni0".to_owned())]);
    }

    #[test]
    fn a_strangers_rule_is_no_record() {
        let record = Record { rules: vec![(1, None), (2, Some(Rule::new([Statement::DROP])))], ..Record::default() };
        assert_eq!(record.addresses(), []);
        assert_eq!(record.policies(), []);
    }
}
