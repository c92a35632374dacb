//! Records: what each attachment owns, as lines of one verdict map that no packet ever sees.
//!
//! A line is an element. Its key is the attachment's [`RecordKey`] and the line's number, its comment is text, and its
//! verdict jumps to something that several attachments share, which the kernel so counts. DEL finds in the lines what it
//! has to remove, and the transaction that removes it fails as a whole if they are gone.
//!
//! One chain for each attachment would say the same more simply, but each transaction of anybody in the namespace looks
//! at every chain there is (`nf_tables_commit`, net/netfilter/nf_tables_api.c): with 10,000 of them, for longer than all
//! the rest of an ADD takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::dump::KEYS_AT_ONCE;
use super::kernel::NftSocket;
use super::model::{Data, Element, Set, Table, Verdict};
use super::value::{DataType, Value};
use crate::attachment::Attachment;
use crate::cni::error::Result;

/// Bytes of a line's text: what every nft takes for a comment.
pub const TEXT_MAX: usize = 120;

/// As many lines as a record has as a rule: they are asked for at once.
const USUAL_LINES: u32 = 8;

/// Two words for the network, two for the attachment: the beginnings of the halves of [`Attachment::key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey([u32; 4]);

impl RecordKey {
    /// Of this attachment.
    pub fn of(attachment: &Attachment) -> RecordKey {
        thread_local! {
            /// A call asks for its own attachment's again and again.
            static LAST: RefCell<Option<(Attachment, RecordKey)>> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| match last {
            Some((known, key)) if known == attachment => *key,
            _ => {
                let [network, own] = [Attachment::network_digest(&attachment.network), attachment.own_digest()];
                let ([a, b], [c, d]) = (first_words(&network), first_words(&own));
                let key = RecordKey([a, b, c, d]);
                *last = Some((attachment.clone(), key));
                key
            }
        })
    }

    /// Of its network.
    pub fn network(&self) -> NetworkKey {
        let [a, b, ..] = self.0;
        NetworkKey([a, b])
    }

    /// Of the attachment whose line has this key in the kernel's form: all words are in the host's order.
    fn of_bytes(line: &[u8]) -> Option<RecordKey> {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(line.chunks(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(RecordKey(words))
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

    /// A record's lines: as many as it takes for all texts and all jumps.
    pub fn lines(
        self,
        texts: impl IntoIterator<Item = String>,
        jumps: impl IntoIterator<Item = String>,
    ) -> Vec<Element> {
        let (mut texts, mut jumps) = (texts.into_iter(), jumps.into_iter().map(Verdict::Jump));
        let lines = std::iter::from_fn(|| match (texts.next(), jumps.next()) {
            (None, None) => None,
            (text, jump) => Some((text.filter(|text| !text.is_empty()), jump.unwrap_or(Verdict::Continue))),
        });
        let element =
            |(number, (comment, verdict))| Element { comment, ..Element::verdict(self.line(number), verdict) };
        (0..).zip(lines).map(element).collect()
    }
}

/// What the keys of all attachments of one network have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkKey([u32; 2]);

impl NetworkKey {
    /// Of this network.
    pub fn of(network: &str) -> NetworkKey {
        NetworkKey(first_words(&Attachment::network_digest(network)))
    }

    /// Whether an attachment is on it.
    pub fn has(&self, attachment: &RecordKey) -> bool {
        attachment.network() == *self
    }
}

/// What the first 16 digits of a key say.
fn first_words([a, b, c, d, e, f, g, h, ..]: &[u8; 64]) -> [u32; 2] {
    [u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h])]
}

/// The first 16 digits as two words.
fn words(hex: &str) -> Option<[u32; 2]> {
    let word = |at| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok();
    Some([word(0)?, word(8)?])
}

/// As it is in the names of files.
impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a:08x}{b:08x}-{c:08x}{d:08x}")
    }
}

impl FromStr for RecordKey {
    type Err = ();

    fn from_str(text: &str) -> Result<RecordKey, ()> {
        let halves = text.split_once('-').and_then(|(network, own)| Some((words(network)?, words(own)?)));
        let ([a, b], [c, d]) = halves.ok_or(())?;
        let key = RecordKey([a, b, c, d]);
        if key.to_string() == text { Ok(key) } else { Err(()) }
    }
}

/// The map with all records.
pub fn map() -> Set {
    Set::vmap("records", [DataType::Mark; 5]).comment("network (2), attachment (2), line: its text, what it needs")
}

/// The texts of lines, empty ones included.
pub fn texts(lines: &[Element]) -> impl Iterator<Item = &str> {
    lines.iter().map(|line| line.comment.as_deref().unwrap_or_default())
}

/// A line's place in its record.
pub fn number(line: &Element) -> Option<u32> {
    RecordKey::of_line(&line.key).map(|(_, number)| number)
}

/// The chains that lines jump or go to.
pub fn jumps(lines: &[Element]) -> impl Iterator<Item = &str> {
    lines.iter().filter_map(|line| match &line.data {
        Some(Data::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => Some(chain.as_str()),
        _ => None,
    })
}

impl NftSocket {
    /// The lines of the record with this key; none if there is no such record.
    pub fn record(&mut self, table: &Table, key: RecordKey) -> Result<Vec<Element>> {
        let mut lines: Vec<Element> = Vec::new();
        let mut asked = 0..USUAL_LINES;
        loop {
            let keys: Vec<_> = asked.clone().map(|line| key.line(line)).collect();
            let found = self.elements_until_missing(table, &map(), &keys)?;
            let is_end = found.len() < keys.len();
            lines.extend(found);
            if is_end {
                return Ok(lines);
            }
            asked = asked.end..asked.end.saturating_add(KEYS_AT_ONCE as u32);
        }
    }

    /// Whether there is any of the lines that a record has as a rule behind this one: whoever has removed a line has made
    /// those behind it invisible to [`NftSocket::record`].
    pub fn has_usual_line_behind(&mut self, table: &Table, key: RecordKey, missing: usize) -> Result<bool> {
        let map = map();
        let keys: Vec<_> = (0..USUAL_LINES).skip(missing + 1).map(|line| key.line(line)).collect();
        let places: Vec<_> = keys.iter().map(|key| (table, &map, key.as_slice())).collect();
        Ok(self.elements_in(&places)?.iter().any(Option::is_some))
    }

    /// The lines of all records whose keys are wanted: one look through the map.
    pub fn all_records(
        &mut self,
        table: &Table,
        wanted: impl Fn(&RecordKey) -> bool,
    ) -> Result<BTreeMap<RecordKey, Vec<Element>>> {
        let mut all: BTreeMap<RecordKey, BTreeMap<u32, Element>> = BTreeMap::new();
        let is_wanted = |line: &[u8]| RecordKey::of_bytes(line).is_some_and(|key| wanted(&key));
        for line in self.elements_where(table, &map(), is_wanted)? {
            if let Some((key, number)) = RecordKey::of_line(&line.key) {
                all.entry(key).or_default().insert(number, line);
            }
        }
        Ok(all.into_iter().map(|(key, lines)| (key, lines.into_values().collect())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_its_network_and_comes_back_from_its_name() {
        let key = RecordKey::of(&Attachment::new("net", "c1", "eth0"));
        assert!(NetworkKey::of("net").has(&key) && !NetworkKey::of("other").has(&key));
        assert_ne!(key, RecordKey::of(&Attachment::new("net", "c2", "eth0")));
        assert_eq!(key.to_string().parse(), Ok(key));
        // The beginnings of the halves.
        let whole = Attachment::new("net", "c1", "eth0").key();
        assert_eq!(Some(key.to_string().as_str()), whole.get(..33));
        let longer = Attachment::new("net", "c1", "eth0").key();
        for name in ["", "-", "garbage", "0-1", longer.as_str(), &key.to_string().to_uppercase()] {
            assert_eq!(name.parse::<RecordKey>(), Err(()), "{name}");
        }
    }

    #[test]
    fn lines_are_as_many_as_texts_or_jumps() {
        let key = RecordKey([1, 2, 3, 4]);
        let texts_of = |lines: &[Element]| texts(lines).map(str::to_owned).collect::<Vec<_>>();
        let more_texts = key.lines(["a".into(), String::new(), "b".into()], ["x".into()]);
        assert_eq!(texts_of(&more_texts), ["a", "", "b"]);
        assert_eq!(jumps(&more_texts).collect::<Vec<_>>(), ["x"]);
        let more_jumps = key.lines(["a".into()], ["x".into(), "y".into()]);
        assert_eq!(texts_of(&more_jumps), ["a", ""]);
        assert_eq!(jumps(&more_jumps).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(RecordKey::of_line(&more_jumps[1].key), Some((key, 1)));
        let bytes: Vec<u8> = more_jumps[1].key.iter().flat_map(Value::bytes).collect();
        assert_eq!(RecordKey::of_bytes(&bytes), Some(key));
    }
}
