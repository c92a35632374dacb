//! Records: what each attachment owns, as [lines of a map](common::nft::records).
//!
//! The owner's label is the first line's text, its origin the second's; those behind them are its ports, as
//! [`publication`]s behind the container's address.

use common::nft::records::{TEXT_MAX, jumps, texts};
use common::nft::{Element, NftSocket, RecordKey, Set};
use common::{Attachment, Result};

use crate::origin::Origin;
use crate::publication;
use crate::rules::{self, ATTACHMENTS, Claim, TABLE};

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
        let jumps = [ATTACHMENTS.to_owned()].into_iter().chain(self.jumps.iter().cloned());
        self.key.lines(texts, jumps)
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
        Ok(Recorded::of_lines(key, socket.record(&TABLE, key)?))
    }

    fn of_lines(key: RecordKey, lines: Vec<Element>) -> Option<Recorded> {
        let mut texts = texts(&lines);
        let label = texts.next()?.to_owned();
        let origin = texts.next().and_then(Origin::read);
        let claims = texts.flat_map(publication::read).collect();
        let jumps = jumps(&lines).filter(|chain| *chain != ATTACHMENTS).map(str::to_owned).collect();
        Some(Recorded { record: Record { key, label, origin, jumps, claims }, lines })
    }

    /// All records whose keys are wanted: one look through the map.
    pub fn all(socket: &mut NftSocket, wanted: impl Fn(&RecordKey) -> bool) -> Result<Vec<Recorded>> {
        let all = socket.all_records(&TABLE, wanted)?;
        Ok(all.into_iter().filter_map(|(key, lines)| Recorded::of_lines(key, lines)).collect())
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
