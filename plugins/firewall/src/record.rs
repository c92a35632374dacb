//! What an attachment owns, as [lines of a map](common::nft::records): DEL and GC need nothing else.
//!
//! The owner's label is the first line's text; the lines behind it hold words:
//!
//! * `10.88.0.2`: an address that is admitted;
//! * `zone=trusted`: where firewalld was told of them;
//! * `isolated_port=veth2`: what stands at the host's end of an interface;
//! * `without_bridge_family`, `shared`: see [`Notes`].
//!
//! The policy of a bridge that it needs is a chain that the first line jumps to.

use std::net::IpAddr;

use common::nft::records::{TEXT_MAX, jumps, number, texts};
use common::nft::{Element, NftSocket, RecordKey, Set, Table, Value};
use common::{Attachment, Result};

use crate::plan::{Notes, Share};
use crate::rules::{self, BRIDGE_POLICIES, BridgePolicy, PORT_GUARDS, PortGuard, TABLE};
use crate::stored::{Shelf, Source};

/// An attachment's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose it is, briefly.
    pub key: RecordKey,
    /// The comment of the attachment's elements. Empty if the first line is lost.
    pub label: String,
    /// The addresses it has had.
    pub addresses: Vec<IpAddr>,
    /// The zone of firewalld they were put in.
    pub zone: Option<String>,
    /// The policies it needs, each with its bridge.
    pub policies: Vec<(BridgePolicy, String)>,
    /// What stands at the host's ends of its interfaces, one by one.
    pub guards: Vec<(PortGuard, String)>,
    /// What was found at its ADD.
    pub notes: Notes,
    /// As it stands in the kernel; empty if it is known from elsewhere.
    pub lines: Vec<Element>,
}

/// An element with its place.
pub type Placed = (Table, Set, Element);

/// Where an element is, in a word.
pub fn place_name((table, set, element): &Placed) -> String {
    format!("{table} {} {}", set.name, Element::key(element.key.clone()))
}

/// To whom an element belongs that was an attachment's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The attachment.
    Itself,
    /// Somebody who came after it, by his label.
    Another(String),
    /// It isn't there.
    Nobody,
}

const ZONE: &str = "zone";
const WITHOUT_BRIDGE_FAMILY: &str = "without_bridge_family";
const SHARED: &str = "shared";

/// The lines that say what a share is.
pub fn lines(share: &Share) -> Vec<Element> {
    let mut words: Vec<String> = share.addresses.iter().map(IpAddr::to_string).collect();
    words.extend(share.zone.iter().map(|zone| format!("{ZONE}={zone}")));
    for (guard, ports) in &share.guards {
        words.extend(ports.iter().map(|port| format!("{}={port}", guard.name)));
    }
    let Notes { without_bridge_family, shared } = share.notes;
    words.extend(without_bridge_family.then(|| WITHOUT_BRIDGE_FAMILY.to_owned()));
    words.extend(shared.then(|| SHARED.to_owned()));
    let texts = [share.attachment.label()].into_iter().chain(joined(words));
    RecordKey::of(&share.attachment).lines(texts, share.policy.iter().map(|(policy, bridge)| policy.chain_for(bridge)))
}

/// As many words to a text as it holds.
fn joined(words: Vec<String>) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for word in words {
        match texts.last_mut().filter(|text| text.len() + 1 + word.len() <= TEXT_MAX) {
            Some(text) => {
                text.push(' ');
                text.push_str(&word);
            }
            None => texts.push(word),
        }
    }
    texts
}

impl Record {
    /// Reads the record with this key; `None` if there is none.
    pub fn read(socket: &mut NftSocket, key: RecordKey) -> Result<Option<Record>> {
        let lines = socket.record(&TABLE, key)?;
        Ok((!lines.is_empty()).then(|| Record::of_lines(key, lines)))
    }

    /// The same where somebody may have removed lines by hand: all that are left, by a look through the map.
    pub fn scattered(socket: &mut NftSocket, key: RecordKey) -> Result<Option<Record>> {
        Ok(Record::all(socket, |other| *other == key)?.pop())
    }

    /// The record of the attachment that has this label.
    pub fn of_label(socket: &mut NftSocket, label: &str) -> Result<Option<Record>> {
        if let [network, container, ifname] = label.split('/').collect::<Vec<_>>()[..] {
            let found = Record::read(socket, RecordKey::of(&Attachment::new(network, container, ifname)))?;
            if found.as_ref().is_some_and(|record| record.label == label) {
                return Ok(found);
            }
        }
        // Names that were cut don't say which key that is.
        if !label.contains('~') {
            return Ok(None);
        }
        Ok(Record::all(socket, |_| true)?.into_iter().find(|record| record.label == label))
    }

    /// What an attachment may have at these interfaces and addresses, if all that was written down of it is lost. Whatever
    /// doesn't bear its label is another's.
    pub fn guessed(
        attachment: &Attachment,
        addresses: Vec<IpAddr>,
        interfaces: &[String],
        zone: Option<String>,
    ) -> Record {
        let at = |guard: PortGuard| interfaces.iter().map(move |interface| (guard.clone(), interface.clone()));
        Record {
            key: RecordKey::of(attachment),
            label: attachment.label(),
            addresses,
            zone,
            policies: Vec::new(),
            guards: PORT_GUARDS.into_iter().flat_map(at).collect(),
            notes: Notes::default(),
            lines: Vec::new(),
        }
    }

    /// All records whose keys are wanted: one look through the map.
    pub fn all(socket: &mut NftSocket, wanted: impl Fn(&RecordKey) -> bool) -> Result<Vec<Record>> {
        let all = socket.all_records(&TABLE, wanted)?;
        Ok(all.into_iter().map(|(key, lines)| Record::of_lines(key, lines)).collect())
    }

    /// The record that a share has had.
    pub fn of(share: &Share) -> Record {
        let record = Record::of_lines(RecordKey::of(&share.attachment), lines(share));
        Record { lines: Vec::new(), ..record }
    }

    fn of_lines(key: RecordKey, lines: Vec<Element>) -> Record {
        let policy = |chain| BRIDGE_POLICIES.into_iter().find_map(|policy| Some((policy, policy.bridge_of(chain)?)));
        let is_labelled = lines.first().and_then(number) == Some(0);
        let mut texts = texts(&lines);
        let label = if is_labelled { texts.next() } else { None };
        let mut record = Record {
            key,
            label: label.unwrap_or_default().to_owned(),
            addresses: Vec::new(),
            zone: None,
            policies: jumps(&lines).filter_map(policy).collect(),
            guards: Vec::new(),
            notes: Notes::default(),
            lines: Vec::new(),
        };
        texts.flat_map(|text| text.split(' ')).for_each(|word| record.take(word));
        Record { lines, ..record }
    }

    /// Whether a line is missing, as far as those that are left show it: one between them, the label, or all that say an address.
    pub fn is_cut(&self) -> bool {
        let in_order = self.lines.iter().zip(0..).all(|(line, place)| number(line) == Some(place));
        !in_order || self.label.is_empty() || self.addresses.is_empty()
    }

    /// The same with what another account of the same attachment says besides.
    pub fn completed_by(mut self, other: Record) -> Record {
        fn add<T: PartialEq>(known: &mut Vec<T>, more: Vec<T>) {
            for one in more {
                if !known.contains(&one) {
                    known.push(one);
                }
            }
        }
        if self.label.is_empty() {
            self.label = other.label;
        }
        add(&mut self.addresses, other.addresses);
        add(&mut self.policies, other.policies);
        add(&mut self.guards, other.guards);
        self.zone = self.zone.or(other.zone);
        self.notes.without_bridge_family |= other.notes.without_bridge_family;
        self.notes.shared |= other.notes.shared;
        self
    }

    /// Takes a word in; one that isn't of ours says nothing.
    fn take(&mut self, word: &str) {
        if let Ok(address) = word.parse() {
            self.addresses.push(address);
        } else if let Some((name, of)) = word.split_once('=') {
            if name == ZONE {
                self.zone = Some(of.to_owned());
            }
            let guard = PORT_GUARDS.into_iter().find(|guard| guard.name == name);
            self.guards.extend(guard.map(|guard| (guard, of.to_owned())));
        }
        self.notes.without_bridge_family |= word == WITHOUT_BRIDGE_FAMILY;
        self.notes.shared |= word == SHARED;
    }

    /// What firewalld was told of it.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        let zone = self.zone.iter();
        zone.flat_map(|zone| self.addresses.iter().map(move |address| (zone.clone(), *address)))
    }

    /// The elements it has had; they are the attachment's own as long as they bear its label.
    pub fn elements(&self) -> Vec<Placed> {
        let address = |address: &IpAddr| rules::address_element(*address);
        let mut elements: Vec<Placed> =
            self.addresses.iter().map(address).map(|(set, element)| (TABLE, set, element)).collect();
        for (guard, port) in &self.guards {
            let of_port = guard.elements(port, &self.addresses).into_iter();
            elements.extend(of_port.map(|(set, element)| (guard.table.clone(), set, element)));
        }
        elements
    }

    /// Whether it claims what is at this place.
    pub fn claims(&self, (table, set, element): &Placed) -> bool {
        self.elements().iter().any(|(t, s, e)| t == table && s.name == set.name && e.key == element.key)
    }

    /// Its elements, each with whom it belongs to now.
    pub fn held_elements(&self, socket: &mut NftSocket) -> Result<Vec<(Placed, Holder)>> {
        let places = self.elements();
        let asked: Vec<_> = places.iter().map(|(table, set, element)| (table, set, element.key.as_slice())).collect();
        let found = socket.elements_in(&asked)?;
        let holder = |found: Option<Element>| match found {
            None => Holder::Nobody,
            Some(found) if found.comment.as_ref() == Some(&self.label) => Holder::Itself,
            Some(found) => Holder::Another(found.comment.unwrap_or_default()),
        };
        Ok(places.into_iter().zip(found.into_iter().map(holder)).collect())
    }
}

/// Whether the element at this place, which bears this label, is another's who says that it shares it: then whoever had
/// it before loses nothing by that.
pub fn is_shared(socket: &mut NftSocket, place: &Placed, label: &str) -> Result<bool> {
    let holder = Record::of_label(socket, label)?;
    Ok(holder.is_some_and(|holder| holder.notes.shared && holder.claims(place)))
}

/// Whether an attachment of ours has told firewalld that the address belongs to the zone. All records are looked through.
pub fn have_told(socket: &mut NftSocket, zone: &str, address: IpAddr) -> Result<bool> {
    let told = |record: &Record| record.zone.as_deref() == Some(zone) && record.addresses.contains(&address);
    if Record::all(socket, |_| true)?.iter().any(told) {
        return Ok(true);
    }
    // `nft flush ruleset` takes the records, and leaves firewalld's sources.
    let Some(shelf) = Shelf::open()? else { return Ok(false) };
    Ok(shelf.all()?.iter().any(|share| told(&Record::of(share))) || shelf.is_telling(&(zone.to_owned(), address))?)
}

/// Whether some attachment of ours has this address.
pub fn is_ours(socket: &mut NftSocket, address: IpAddr) -> Result<bool> {
    let (set, element) = rules::address_element(address);
    Ok(socket.element(&TABLE, &set, &element.key)?.is_some())
}

/// An address, if the value is one.
pub fn address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::V4(v4) => Some((*v4).into()),
        Value::V6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::HostPart;
    use crate::rules::{BRIDGE_SOURCES, ISOLATED, NEIGHBOURS};

    fn share() -> Share {
        let ports = || vec!["veth2".to_owned(), "br@=7".to_owned()];
        Share {
            attachment: Attachment::new("n", "c", "eth0"),
            addresses: vec!["10.88.0.2".parse().unwrap(), "fd00:88::2".parse().unwrap()],
            zone: Some("trusted".into()),
            policy: Some((ISOLATED, "br@7".into())),
            guards: vec![(NEIGHBOURS, ports()), (BRIDGE_SOURCES, ports())],
            notes: Notes::default(),
            interfaces: vec![],
            host: HostPart { mark: 1, versions: vec![], make: true, admin_chain: String::new(), chains: vec![] },
        }
    }

    #[test]
    fn what_the_record_says_is_what_was_planned() {
        let share = share();
        let record = Record::of(&share);
        assert_eq!(record.label, "n/c/eth0");
        assert_eq!((&record.addresses, &record.zone), (&share.addresses, &share.zone));
        assert_eq!(record.policies, [(ISOLATED, "br@7".to_owned())]);
        assert_eq!(record.notes, Notes::default());
        let unlabelled = |(table, set, element): Placed| (table, set, Element { comment: None, ..element });
        let planned: Vec<_> = share.own_elements().into_iter().map(unlabelled).collect();
        assert_eq!(planned.len(), 2 + 2 + 2 * 3);
        assert_eq!(record.elements(), planned);
        assert!(planned.iter().all(|place| record.claims(place)));
    }

    #[test]
    fn what_was_found_at_add_is_remembered() {
        let both = Notes { without_bridge_family: true, shared: true };
        assert_eq!(Record::of(&Share { notes: both, ..share() }).notes, both);
        let reduced = share().noting(Notes { without_bridge_family: true, shared: false });
        assert!(reduced.guards.iter().all(|(guard, _)| *guard != NEIGHBOURS));
        let record = Record::of(&reduced);
        assert!(record.notes.without_bridge_family && !record.notes.shared);
        assert_eq!(record.policies, [(ISOLATED, "br@7".to_owned())]);
    }

    #[test]
    fn each_account_says_what_the_other_has_lost() {
        let (share, lines) = (share(), lines(&share()));
        let whole = Record::of(&share);
        let of = |lines: &[Element]| Record { lines: Vec::new(), ..Record::of_lines(whole.key, lines.to_vec()) };
        let (label, rest) = lines.split_at(1);
        assert_eq!((of(rest).label.as_str(), &of(rest).addresses), ("", &share.addresses));
        for part in [label, rest, &[]] {
            assert_eq!(of(part).completed_by(whole.clone()), whole);
            assert_eq!(whole.clone().completed_by(of(part)), whole);
        }
        assert_eq!(of(label).completed_by(of(rest)), whole);
    }

    #[test]
    fn as_many_words_to_a_line_as_it_holds() {
        let mut share = share();
        share.zone = Some("z".repeat(64));
        share.addresses =
            (0..40).map(|n| format!("fd00:1234:5678:9abc:def0:1234:5678:{n:x}").parse().unwrap()).collect();
        let lines = lines(&share);
        assert!(texts(&lines).all(|text| text.len() <= TEXT_MAX));
        assert!(lines.len() < 20, "{}", lines.len());
        let record = Record::of(&share);
        assert_eq!((record.addresses, record.zone), (share.addresses, share.zone));
    }

    #[test]
    fn a_strangers_line_is_no_record() {
        let key = RecordKey::of(&Attachment::new("n", "c", "eth0"));
        let lines = key.lines(["".into(), "whatever=1 10.0.0.300 zone".into()], ["attachments".into()]);
        let record = Record::of_lines(key, lines);
        assert_eq!((record.label.as_str(), record.addresses.len(), record.policies.len()), ("", 0, 0));
        assert_eq!(record.elements(), []);
    }
}
