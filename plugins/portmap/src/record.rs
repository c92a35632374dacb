//! Records: what each attachment owns, as [lines of a map](common::nft::records).
//!
//! The owner's label is the first line's text, its origin the second's; those behind them are its ports, as
//! [`publication`]s behind the container's address, and its [heirs](crate::heirs). The last line goes where others jump, or returns: so a line that
//! somebody has removed is missed.

use std::collections::BTreeSet;

use common::nft::records::{TEXT_MAX, jumps, number};
use common::nft::{Data, Element, NftSocket, RecordKey, Set, Verdict};
use common::{Attachment, Result};

use crate::heirs::Heir;
use crate::origin::{Origin, Trace};
use crate::publication;
use crate::remains::is_of;
use crate::rules::{self, ATTACHMENTS, Claim, LOOPBACK_PREFIX, Place, TABLE};

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
    /// Who gets those that it claims, too, when this one goes.
    pub heirs: Vec<Heir>,
}

impl Record {
    /// As elements of the map.
    pub fn lines(&self) -> Vec<Element> {
        let mut texts = vec![self.label.clone(), self.origin.as_ref().map(Origin::to_string).unwrap_or_default()];
        texts.extend(publication::lines(&self.claims, TEXT_MAX));
        texts.extend(self.heirs.iter().map(Heir::line));
        let jumps = [ATTACHMENTS.to_owned()].into_iter().chain(self.jumps.iter().cloned());
        let mut lines = self.key.lines(texts, jumps);
        if let Some(Data::Verdict(verdict)) = lines.last_mut().and_then(|last| last.data.as_mut()) {
            *verdict = match std::mem::replace(verdict, Verdict::Return) {
                Verdict::Jump(chain) => Verdict::Goto(chain),
                _ => Verdict::Return,
            };
        }
        lines
    }

    /// The same without the ports at these places.
    pub fn without(&self, places: &BTreeSet<Place>) -> Record {
        let claims = self.claims.iter().filter(|claim| !places.contains(&claim.place()));
        Record { claims: claims.copied().collect(), ..self.clone() }
    }

    /// What remains of it until a link can be given its value back; `None` if it counts in none.
    pub fn only_links(&self) -> Option<Record> {
        let jumps: Vec<String> = self.jumps.iter().filter(|name| name.starts_with(LOOPBACK_PREFIX)).cloned().collect();
        (!jumps.is_empty()).then(|| Record { jumps, claims: Vec::new(), heirs: Vec::new(), ..self.clone() })
    }

    /// The chain that counts the users of the link that is this container's own.
    pub fn own_link(&self) -> Option<String> {
        match self.origin.as_ref()?.trace {
            Trace::Link(_, index) => Some(rules::loopback_name(index)),
            Trace::Netns(_) | Trace::None => None,
        }
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
        let lines = socket.record(&TABLE, key)?;
        match lines.last() {
            None => Ok(None),
            Some(last) if is_last(last) => Ok(Some(Recorded::of_lines(key, lines))),
            // Somebody has removed the next: there may be more behind it.
            Some(_) => Recorded::scattered(socket, key, ""),
        }
    }

    /// Of lines in their order, some of which may be missing.
    fn of_lines(key: RecordKey, lines: Vec<Element>) -> Recorded {
        let text = |line: &Element| line.comment.clone().unwrap_or_default();
        let at = |place| lines.iter().find(|line| number(line) == Some(place)).map(text);
        let (label, origin) = (at(0).unwrap_or_default(), at(1).and_then(|text| Origin::read(&text)));
        let ports = lines.iter().filter(|line| number(line) > Some(1));
        let claims = ports.clone().flat_map(|line| publication::read(&text(line))).collect();
        let heirs = ports.filter_map(|line| Heir::read(&text(line))).collect();
        let jumps = jumps(&lines).filter(|chain| *chain != ATTACHMENTS).map(str::to_owned).collect();
        Recorded { record: Record { key, label, origin, jumps, claims, heirs }, lines }
    }

    /// All records whose keys are wanted: one look through the map.
    pub fn all(socket: &mut NftSocket, wanted: impl Fn(&RecordKey) -> bool) -> Result<Vec<Recorded>> {
        let all = socket.all_records(&TABLE, wanted)?;
        Ok(all.into_iter().map(|(key, lines)| Recorded::of_lines(key, lines)).collect())
    }

    /// The record of the owner that an element names, if it can be found.
    pub fn of_label(socket: &mut NftSocket, label: &str) -> Result<Option<Recorded>> {
        if let [network, container, ifname] = label.split('/').collect::<Vec<_>>().as_slice() {
            let attachment = Attachment::new(*network, *container, *ifname);
            if let Some(recorded) = Recorded::read(socket, &attachment)? {
                return Ok(Some(recorded));
            }
        }
        // A label that had to be cut does not give the key; the line with the label may have been removed.
        let all = Recorded::all(socket, |_| true)?;
        let mut unnamed = None;
        for found in all {
            if found.record.label == label {
                return Ok(Some(found));
            }
            if found.record.label.is_empty() && is_of(label, found.record.key) {
                unnamed = Some(found.record.key);
            }
        }
        unnamed.map_or(Ok(None), |key| Recorded::scattered(socket, key, label))
    }
}

/// Whether a record ends with this line.
pub fn is_last(line: &Element) -> bool {
    matches!(line.data, Some(Data::Verdict(Verdict::Goto(_) | Verdict::Return)))
}
