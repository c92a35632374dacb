//! Records: what each attachment owns, as lines of one verdict map that no packet ever sees.
//!
//! A line is an element. Its key is the attachment's [`RecordKey`] and the line's number; its verdict jumps to something
//! shared, which the kernel so counts; its comment is text: the owner's label on the first line, its origin on the
//! second, its ports on those after it, as [`publication`]s behind the container's address. DEL finds here what it has to
//! remove, and the transaction that removes it fails as a whole if the lines are gone.
//!
//! One chain for each attachment would say the same more simply, but each transaction of anybody in the namespace looks
//! at every chain there is (`nf_tables_commit`): with 10,000 of them, for longer than all the rest of an ADD takes.

use std::collections::BTreeMap;

use common::nft::{Data, DataType, Element, KEYS_AT_ONCE, NftSocket, Set, Value, Verdict};
use common::{Attachment, Result};

use crate::origin::Origin;
use crate::publication;
use crate::rules::{self, ATTACHMENTS, Claim, TABLE};

/// Bytes of a line's text: what every nft takes for a comment.
const TEXT_MAX: usize = 120;

/// As many lines as a record has as a rule: they are asked for at once.
const USUAL_LINES: u32 = 8;

/// The map with all records.
pub fn map() -> Set {
    Set::vmap("records", [DataType::Mark; 5]).comment("network (2), attachment (2), line: its text, what it needs")
}

/// Two words for the network, two for the attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey([u32; 4]);

impl RecordKey {
    /// Of this attachment.
    pub fn of(attachment: &Attachment) -> RecordKey {
        let key = attachment.key();
        let (network, own) = key.split_once('-').unwrap_or_default();
        let [a, b] = words(network);
        let [c, d] = words(own);
        RecordKey([a, b, c, d])
    }

    /// Whether it is one of this network's.
    pub fn is_of(&self, network: &str) -> bool {
        self.0.starts_with(&words(&Attachment::network_key(network)))
    }

    fn line(self, number: u32) -> Vec<Value> {
        self.0.into_iter().chain([number]).map(Value::Mark).collect()
    }

    fn of_line(key: &[Value]) -> Option<(RecordKey, u32)> {
        match key {
            [Value::Mark(a), Value::Mark(b), Value::Mark(c), Value::Mark(d), Value::Mark(line)] => {
                Some((RecordKey([*a, *b, *c, *d]), *line))
            }
            _ => None,
        }
    }
}

/// The first 16 digits as two words.
fn words(hex: &str) -> [u32; 2] {
    [0, 8].map(|at| hex.get(at..at + 8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default())
}

/// What an attachment owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The owner, briefly.
    pub key: RecordKey,
    /// The owner's label.
    pub label: String,
    /// Since when, and how to tell whether the owner is alive.
    pub origin: Option<Origin>,
    /// The chains of shared things it counts in.
    pub jumps: Vec<String>,
    /// The ports.
    pub claims: Vec<Claim>,
}

impl Record {
    /// As elements of the map.
    pub fn lines(&self) -> Vec<Element> {
        let mut texts = vec![self.label.clone(), self.origin.as_ref().map(Origin::to_string).unwrap_or_default()];
        texts.extend(publication::lines(&self.claims, TEXT_MAX));
        let mut jumps = [ATTACHMENTS.to_owned()].into_iter().chain(self.jumps.iter().cloned()).map(Verdict::Jump);
        let mut texts = texts.into_iter();
        let lines = std::iter::from_fn(|| match (texts.next(), jumps.next()) {
            (None, None) => None,
            (text, jump) => Some((text.filter(|t| !t.is_empty()), jump.unwrap_or(Verdict::Continue))),
        });
        let element = |(number, (text, verdict))| {
            let line = Element::verdict(self.key.line(number), verdict);
            Element { comment: text, ..line }
        };
        (0..).zip(lines).map(element).collect()
    }

    /// All its elements but the lines, set by set.
    pub fn elements(&self) -> Vec<(Set, Vec<Element>)> {
        rules::elements(&self.label, &self.claims, &self.jumps)
    }
}

/// A record as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// What it says.
    pub record: Record,
    /// As it stands.
    pub lines: Vec<Element>,
}

impl Recorded {
    /// The attachment's record, if there is one.
    pub fn read(socket: &mut NftSocket, attachment: &Attachment) -> Result<Option<Recorded>> {
        let recorded = Recorded::read_key(socket, RecordKey::of(attachment))?;
        Ok(recorded.filter(|r| r.record.label == attachment.label()))
    }

    /// The record with this key, if there is one.
    pub fn read_key(socket: &mut NftSocket, key: RecordKey) -> Result<Option<Recorded>> {
        let mut lines: Vec<Element> = Vec::new();
        let mut asked = 0..USUAL_LINES;
        loop {
            let keys: Vec<_> = asked.clone().map(|line| key.line(line)).collect();
            let found = socket.elements_until_missing(&TABLE, &map(), &keys)?;
            let is_end = found.len() < keys.len();
            lines.extend(found);
            if is_end {
                break;
            }
            asked = asked.end..asked.end.saturating_add(KEYS_AT_ONCE as u32);
        }
        Ok(Recorded::of_lines(key, lines))
    }

    fn of_lines(key: RecordKey, lines: Vec<Element>) -> Option<Recorded> {
        let mut texts = lines.iter().map(|line| line.comment.as_deref().unwrap_or_default());
        let label = texts.next()?.to_owned();
        let origin = texts.next().and_then(Origin::read);
        let claims = texts.flat_map(publication::read).collect();
        let jump = |line: &Element| match &line.data {
            Some(Data::Verdict(Verdict::Jump(chain))) if chain != ATTACHMENTS => Some(chain.clone()),
            _ => None,
        };
        let jumps = lines.iter().filter_map(jump).collect();
        Some(Recorded { record: Record { key, label, origin, jumps, claims }, lines })
    }

    /// All records whose keys are wanted: one look through the map.
    pub fn all(socket: &mut NftSocket, wanted: impl Fn(&RecordKey) -> bool) -> Result<Vec<Recorded>> {
        let mut records: BTreeMap<RecordKey, BTreeMap<u32, Element>> = BTreeMap::new();
        for line in socket.elements(&TABLE, &map())? {
            if let Some((key, number)) = RecordKey::of_line(&line.key).filter(|(key, _)| wanted(key)) {
                records.entry(key).or_default().insert(number, line);
            }
        }
        let recorded = |(key, lines): (_, BTreeMap<_, _>)| Recorded::of_lines(key, lines.into_values().collect());
        Ok(records.into_iter().filter_map(recorded).collect())
    }

    /// The record of the owner that an element names, if it can be found.
    pub fn of_label(socket: &mut NftSocket, label: &str) -> Result<Option<Recorded>> {
        if let [network, container, ifname] = label.split('/').collect::<Vec<_>>().as_slice() {
            let attachment = Attachment::new(*network, *container, *ifname);
            if let Some(recorded) = Recorded::read(socket, &attachment)? {
                return Ok(Some(recorded));
            }
        }
        // A label that had to be shortened does not give the key.
        Ok(Recorded::all(socket, |_| true)?.into_iter().find(|r| r.record.label == label))
    }
}
