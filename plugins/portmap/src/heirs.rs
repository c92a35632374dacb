//! One port that two attachments of one container want: podman gives a container's ports to each of its networks.
//!
//! The first has it. The other's record claims it all the same, and a line of the first's record names the other as its
//! *heir*: when the first goes, the port goes to its heir in the same transaction. Nothing is ever looked for: whoever
//! goes finds its heirs in its own record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::nft::records::{self, TEXT_MAX};
use common::nft::{NftSocket, Presence, RecordKey, SetData, Transaction};
use common::{Attachment, Result};

use crate::liveness::why_dead;
use crate::record::{Record, Recorded};
use crate::rules::{self, Claim, Place, Share, TABLE};

/// What the line of an heir begins with.
const THEN: &str = "then ";

/// An attachment of the same container that gets ports when their owner goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heir {
    /// Whose record claims them.
    pub key: RecordKey,
    /// For people; cut where the line is too short for it.
    label: String,
}

impl Heir {
    /// This attachment.
    pub fn of(attachment: &Attachment) -> Heir {
        Heir { key: RecordKey::of(attachment), label: attachment.label() }
    }

    /// As a line of the owner's record.
    pub fn line(&self) -> String {
        let whole = self.to_string();
        whole.get(..TEXT_MAX).map(str::to_owned).unwrap_or(whole)
    }

    /// Reads [`Heir::line`].
    pub fn read(line: &str) -> Option<Heir> {
        let (key, label) = line.strip_prefix(THEN)?.split_once(' ')?;
        Some(Heir { key: key.parse().ok()?, label: label.to_owned() })
    }
}

impl fmt::Display for Heir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{THEN}{} {}", self.key, self.label)
    }
}

/// Records of others whose heirs change.
#[derive(Debug, Default)]
pub struct Rewrites(BTreeMap<RecordKey, (Recorded, Record)>);

impl Rewrites {
    /// Changes the heirs of a record.
    pub fn change(&mut self, recorded: &Recorded, change: impl FnOnce(&mut Vec<Heir>)) {
        let entry = self.0.entry(recorded.record.key);
        let (_, record) = entry.or_insert_with(|| (recorded.clone(), recorded.record.clone()));
        change(&mut record.heirs);
    }

    /// Has the transaction write them anew.
    pub fn put(&mut self, transaction: &mut Transaction) {
        let map = records::map().name;
        for (before, record) in std::mem::take(&mut self.0).into_values().filter(|(before, now)| before.record != *now)
        {
            transaction.delete_elements(&TABLE, &map, before.lines);
            transaction.add_elements(&TABLE, &map, Presence::Exclusive, record.lines());
        }
    }
}

/// Gives what has become free to the heirs of the record that goes, in their order, but not to those that go as well, nor to
/// the dead: at one address their port would go before a living one's at all.
pub fn hand_over(
    socket: &mut NftSocket,
    record: &Record,
    mut free: BTreeSet<Place>,
    leaving: &BTreeSet<RecordKey>,
    rewrites: &mut Rewrites,
    transaction: &mut Transaction,
) -> Result<()> {
    let mut rest = record.heirs.iter().filter(|heir| !leaving.contains(&heir.key));
    while let Some(heir) = rest.next().filter(|_| !free.is_empty()) {
        let Some(recorded) = living(Recorded::read_key(socket, heir.key)?)? else { continue };
        let heir = &recorded.record;
        let claims: Vec<Claim> = heir.claims.iter().filter(|claim| free.remove(&claim.place())).copied().collect();
        if claims.is_empty() {
            continue;
        }
        log::info!("{} ports of {} are {}'s now", claims.len(), record.label, heir.label);
        // Whoever waits behind it waits for it from now on.
        let behind: Vec<Heir> = rest.clone().cloned().collect();
        let behind = waiting_for(socket, &behind, &claims)?;
        add_elements(transaction, &Record { claims, ..heir.clone() });
        rewrites.change(&recorded, |heirs| {
            let new = behind.into_iter().filter(|new| heirs.iter().all(|heir| heir.key != new.key));
            let new: Vec<Heir> = new.collect();
            heirs.extend(new);
        });
    }
    Ok(())
}

/// Those of the heirs that want any of these ports.
pub fn waiting_for(socket: &mut NftSocket, heirs: &[Heir], claims: &[Claim]) -> Result<Vec<Heir>> {
    let mut waiting = Vec::new();
    if heirs.is_empty() {
        return Ok(waiting);
    }
    let places: BTreeSet<Place> = claims.iter().map(Claim::place).collect();
    for heir in heirs {
        let recorded = Recorded::read_key(socket, heir.key)?;
        if recorded.is_some_and(|heir| heir.record.claims.iter().any(|claim| places.contains(&claim.place()))) {
            waiting.push(heir.clone());
        }
    }
    Ok(waiting)
}

/// Adds a record's elements. In a map, somebody else's claim must fail; in the sets beside it there is nobody's claim.
pub fn add_elements(transaction: &mut Transaction, record: &Record) {
    for (set, elements) in record.elements() {
        let presence = if set.data == SetData::None { Presence::Shared } else { Presence::Exclusive };
        transaction.add_elements(&TABLE, &set.name, presence, elements);
    }
}

/// Those of the share's ports that another attachment of the container has, with the share's for its heir. Behind the dead
/// nobody waits.
pub fn waiting(socket: &mut NftSocket, share: &Share) -> Result<BTreeSet<Place>> {
    let (own, label) = (RecordKey::of(&share.attachment), share.attachment.label());
    // Each owner's ports, if the share is to have them when it goes.
    let mut owners: BTreeMap<String, BTreeSet<Place>> = BTreeMap::new();
    let mut waiting = BTreeSet::new();
    for (map, claims) in rules::by_map(&share.claims) {
        let keys: Vec<_> = claims.iter().map(|claim| claim.key()).collect();
        for (claim, element) in claims.into_iter().zip(socket.elements_at(&TABLE, &map, &keys)?) {
            let Some(other) = element.and_then(|e| e.comment).filter(|other| *other != label) else { continue };
            if !owners.contains_key(&other) {
                let owner = living(Recorded::of_label(socket, &other)?)?.map(|owner| owner.record);
                let owner = owner.filter(|owner| owner.heirs.iter().any(|heir| heir.key == own));
                let places = owner.iter().flat_map(|owner| &owner.claims).map(Claim::place).collect();
                owners.insert(other.clone(), places);
            }
            if owners.get(&other).is_some_and(|places| places.contains(&claim.place())) {
                waiting.insert(claim.place());
            }
        }
    }
    Ok(waiting)
}

fn living(recorded: Option<Recorded>) -> Result<Option<Recorded>> {
    let origin = recorded.as_ref().and_then(|recorded| recorded.record.origin.as_ref());
    let is_dead = origin.map(why_dead).transpose()?.flatten().is_some();
    Ok(recorded.filter(|_| !is_dead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_heir_comes_back_from_its_line() {
        let id = "0123456789abcdef".repeat(4);
        for attachment in
            [Attachment::new("net2", &id, "eth1"), Attachment::new("n".repeat(100), &id, "0123456789abcde")]
        {
            let heir = Heir::of(&attachment);
            let line = heir.line();
            assert!(line.len() <= TEXT_MAX, "{line}");
            let read = Heir::read(&line).unwrap();
            assert_eq!((read.key, read.line()), (heir.key, line));
        }
        for text in ["", "then", "then x", "then 0-1 net/c/eth0", "10.88.0.2 8080:80/tcp"] {
            assert_eq!(Heir::read(text), None, "{text}");
        }
    }
}
