//! What an attachment owns, read back from its record: DEL and GC need nothing else.

use std::net::IpAddr;

use common::Result;
use common::nft::{Chain, Element, NftSocket, Pattern, Rule, Selector, Set, Statement, Table, Value, Verdict};

use crate::plan::{Share, WITHOUT_BRIDGE_FAMILY};
use crate::rules::{self, ATTACHMENTS, BRIDGE_POLICIES, BridgePolicy, IN_ZONE, PORT_GUARDS, PortGuard, TABLE};

/// An attachment's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name of its chain.
    pub name: String,
    /// Whether there is such a chain.
    pub is_in_kernel: bool,
    /// Whether the kernel counts its jumps: not if it is known from elsewhere.
    pub is_counted: bool,
    /// `None` stands for a rule that nobody of us has written.
    rules: Vec<Option<Rule>>,
}

/// An address that an attachment has had, and the zone of firewalld it was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedAddress {
    /// The address.
    pub address: IpAddr,
    /// The zone.
    pub zone: Option<String>,
}

/// An element with its place.
pub type Placed = (Table, Set, Element);

/// To whom an element belongs that was an attachment's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The attachment.
    Itself,
    /// Somebody who came after it.
    Another,
    /// It isn't there.
    Nobody,
}

impl Record {
    /// Reads the record of the attachment with this key; `None` if there is none.
    pub fn read(socket: &mut NftSocket, key: &str) -> Result<Option<Record>> {
        let name = rules::record_name(key);
        if socket.chain(&TABLE, &name)?.is_none() {
            return Ok(None);
        }
        let rules = socket.rules(&TABLE, &name)?.into_iter().map(|info| info.rule).collect();
        Ok(Some(Record { name, is_in_kernel: true, is_counted: true, rules }))
    }

    /// The record that a share has had.
    pub fn of(share: &Share, is_in_kernel: bool) -> Record {
        let Chain { name, rules, .. } = share.record();
        Record { name, is_in_kernel, is_counted: false, rules: rules.into_iter().map(Some).collect() }
    }

    /// Whether it says this and nothing else.
    pub fn says(&self, chain: &Chain) -> bool {
        self.rules.iter().map(Option::as_ref).eq(chain.rules.iter().map(Some))
    }

    /// The comment of the attachment's elements. A record that has lost it (`nft flush table`) says nothing.
    pub fn label(&self) -> Option<&str> {
        let first = self.rules().next()?;
        (first.statements == [Statement::jump(ATTACHMENTS)]).then_some(first.comment.as_deref()?)
    }

    /// The addresses it has had.
    pub fn addresses(&self) -> Vec<RecordedAddress> {
        self.rules().filter_map(recorded_address).collect()
    }

    /// The elements it has had; they are the attachment's own as long as they bear its label.
    pub fn elements(&self) -> Vec<Placed> {
        let addresses: Vec<IpAddr> = self.addresses().into_iter().map(|a| a.address).collect();
        let mut elements: Vec<Placed> =
            addresses.iter().map(|a| rules::address_element(*a)).map(|(set, element)| (TABLE, set, element)).collect();
        for (guard, port) in self.rules().filter_map(recorded_port) {
            let of_port = guard.elements(&port, &addresses).into_iter();
            elements.extend(of_port.map(|(set, element)| (guard.table.clone(), set, element)));
        }
        elements
    }

    /// Its elements, each with whom it belongs to now.
    pub fn held_elements(&self, socket: &mut NftSocket) -> Result<Vec<(Placed, Holder)>> {
        let mut held = Vec::new();
        for (table, set, element) in self.elements() {
            let holder = match socket.element(&table, &set, &element.key)? {
                None => Holder::Nobody,
                Some(found) if found.comment.as_deref() == self.label() => Holder::Itself,
                Some(_) => Holder::Another,
            };
            held.push(((table, set, element), holder));
        }
        Ok(held)
    }

    /// The policies it needs, each with its bridge.
    pub fn policies(&self) -> Vec<(BridgePolicy, String)> {
        self.rules().filter_map(recorded_policy).collect()
    }

    /// Whether its isolation had to do without the bridge family.
    pub fn is_without_bridge_family(&self) -> bool {
        self.rules().any(|rule| rule.comment.as_deref() == Some(WITHOUT_BRIDGE_FAMILY))
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().flatten()
    }
}

/// Whether some attachment of ours has this address.
pub fn is_ours(socket: &mut NftSocket, address: IpAddr) -> Result<bool> {
    let (set, element) = rules::address_element(address);
    Ok(socket.element(&TABLE, &set, &element.key)?.is_some())
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

fn recorded_address(rule: &Rule) -> Option<RecordedAddress> {
    let sent = |statement: &Statement| match tested(statement)? {
        (Selector::Saddr(_), value) => address(value),
        _ => None,
    };
    let address = rule.statements.iter().find_map(sent)?;
    let zone = rule.comment.as_deref().and_then(|comment| comment.strip_prefix(IN_ZONE)).map(str::to_owned);
    Some(RecordedAddress { address, zone })
}

/// A rule that sends what comes from an interface to a chain that counts.
fn counted(rule: &Rule) -> Option<(&str, &str)> {
    match rule.statements.as_slice() {
        [test, Statement::Verdict(Verdict::Jump(chain))] => match tested(test)? {
            (Selector::Iifname, Value::Ifname(name)) => Some((name, chain)),
            _ => None,
        },
        _ => None,
    }
}

fn recorded_policy(rule: &Rule) -> Option<(BridgePolicy, String)> {
    let (bridge, chain) = counted(rule)?;
    let policy = BRIDGE_POLICIES.into_iter().find(|policy| policy.chain_for(bridge) == chain)?;
    Some((policy, bridge.to_owned()))
}

fn recorded_port(rule: &Rule) -> Option<(PortGuard, String)> {
    let (port, chain) = counted(rule)?;
    let guard = PORT_GUARDS.into_iter().find(|guard| guard.counter == chain)?;
    Some((guard, port.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::HostPart;
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

    #[test]
    fn what_the_record_says_is_what_was_planned() {
        let share = share();
        let record = Record::of(&share, true);
        assert_eq!(record.label(), Some("n/c/eth0"));
        assert!(record.says(&share.record()));
        let zone = Some("trusted".to_owned());
        let addresses = share.addresses.iter().map(|a| RecordedAddress { address: *a, zone: zone.clone() });
        assert_eq!(record.addresses(), addresses.collect::<Vec<_>>());
        assert_eq!(record.policies(), [(ISOLATED, "br@7".to_owned())]);
        let unlabelled = |(table, set, element): Placed| (table, set, Element { comment: None, ..element });
        let planned: Vec<_> = share.own_elements().into_iter().map(unlabelled).collect();
        assert_eq!(planned.len(), 2 + 2 + 2 * 3);
        assert_eq!(record.elements(), planned);
    }

    #[test]
    fn isolation_without_the_bridge_family_is_remembered() {
        assert!(!Record::of(&share(), true).is_without_bridge_family());
        let reduced = share().without_bridge_family();
        let record = Record::of(&reduced, true);
        assert!(record.is_without_bridge_family());
        assert!(reduced.guards.iter().all(|(guard, _)| *guard != NEIGHBOURS));
        assert_eq!(record.policies(), [(ISOLATED, "br@7".to_owned())]);
    }

    #[test]
    fn a_strangers_rule_is_no_record() {
        let rules = vec![None, Some(Rule::new([Statement::DROP])), Some(Rule::new([]))];
        let record = Record { name: "record-x".into(), is_in_kernel: true, is_counted: true, rules };
        assert_eq!((record.label(), record.addresses(), record.policies()), (None, vec![], vec![]));
        assert_eq!(record.elements(), []);
    }
}
