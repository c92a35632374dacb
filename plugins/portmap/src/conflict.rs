//! A port that somebody else has: who, and whether they are still there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::nft::{CommitError, Element, IpVersion, NftSocket, Set, Transaction};
use common::{Error, Result};
use nix::errno::Errno;

use crate::config::Protocol;
use crate::liveness::why_dead;
use crate::record::{Record, Recorded};
use crate::rules::{self, Claim, Share, TABLE};

/// An owner that is certainly gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// What it owns.
    pub recorded: Recorded,
    /// Why it is gone.
    why: String,
}

/// What an ADD may take out of its way: the living's is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InTheWay {
    /// They go with all they own.
    pub dead: Vec<Dead>,
    /// Elements that are in no record of the owner they name.
    orphans: Vec<(Set, Element)>,
}

impl InTheWay {
    /// Has the transaction remove the elements that are in no record.
    pub fn remove_orphans(&self, transaction: &mut Transaction) {
        for (map, orphan) in &self.orphans {
            transaction.delete_elements(&TABLE, &map.name, vec![orphan.clone()]);
        }
    }

    /// Says in the log what was taken.
    pub fn warn(&self) {
        for Dead { recorded, why } in &self.dead {
            log::warn!("the host ports of {} were taken from it: {why}", recorded.record.label);
        }
        if let Some((map, first)) = self.orphans.first() {
            let count = self.orphans.len();
            log::warn!(
                "elements replaced because they are in nobody's record: {count}, first in map {}: {first}",
                map.name
            );
        }
    }
}

/// Whether a transaction was refused because a key was there, with whatever data.
pub fn is_conflict(refused: &CommitError) -> bool {
    // Kernels before 5.? answer EBUSY for a key with other data.
    matches!(refused.errno(), Some(Errno::EEXIST | Errno::EBUSY))
}

/// Who or what has the ports of the share, beside what the attachment had `before`.
///
/// Only after a conflict are the maps asked: in the way of an ADD that succeeds there is no such question.
pub fn who_is_in_the_way(socket: &mut NftSocket, share: &Share, before: Option<&Recorded>) -> Result<InTheWay> {
    let mut found = InTheWay::default();
    // Whose elements go with their records.
    let mut leaving: Vec<Owned> = before.map(|own| Owned::of(&own.record)).into_iter().collect();
    for (map, claims) in rules::by_map(&share.claims) {
        let keys: Vec<_> = claims.iter().map(|claim| claim.key()).collect();
        let elements = socket.elements_at(&TABLE, &map, &keys)?;
        for (claim, element) in claims.into_iter().zip(elements).filter_map(|(c, e)| Some((c, e?))) {
            if leaving.iter().any(|owned| owned.has(claim, &element)) {
                continue;
            }
            match owner(socket, share, claim, &element)? {
                Some(dead) => {
                    leaving.push(Owned::of(&dead.recorded.record));
                    found.dead.push(dead);
                }
                None => found.orphans.push((map.clone(), element)),
            }
        }
    }
    Ok(found)
}

/// A record's ports, to be looked up.
struct Owned {
    label: String,
    places: BTreeSet<Place>,
}

type Place = (IpVersion, Option<IpAddr>, Protocol, u16);

fn place(claim: &Claim) -> Place {
    (claim.version(), claim.address, claim.protocol, claim.port)
}

impl Owned {
    fn of(record: &Record) -> Owned {
        Owned { label: record.label.clone(), places: record.claims.iter().map(place).collect() }
    }

    /// Whether the element at this claim's key is the record's, wherever it leads.
    fn has(&self, claim: &Claim, element: &Element) -> bool {
        element.comment.as_deref() == Some(&*self.label) && self.places.contains(&place(claim))
    }
}

/// The owner of an element if it is dead, or `None` if it has none; the living's is the error.
fn owner(socket: &mut NftSocket, share: &Share, claim: &Claim, element: &Element) -> Result<Option<Dead>> {
    let Some(label) = &element.comment else { return Ok(None) };
    let Some(recorded) = Recorded::of_label(socket, label)? else { return Ok(None) };
    let Some(theirs) = recorded.record.claims.iter().find(|c| place(c) == place(claim)) else { return Ok(None) };
    match why_gone(share, &recorded.record, theirs)? {
        Some(why) => Ok(Some(Dead { recorded, why })),
        None => Err(taken(claim, &recorded.record)),
    }
}

/// Why the owner of a claim is certainly gone.
fn why_gone(share: &Share, record: &Record, theirs: &Claim) -> Result<Option<String>> {
    if share.claims.iter().any(|own| own.target == theirs.target) {
        return Ok(Some(format!("its address {} is {}'s now", theirs.target, share.attachment)));
    }
    match &record.origin {
        Some(origin) => why_dead(origin),
        None => Ok(None),
    }
}

fn taken(claim: &Claim, record: &Record) -> Error {
    let owner = match record.label.split('/').collect::<Vec<_>>().as_slice() {
        [network, container, ifname] => format!("container {container}, interface {ifname}, of network {network}"),
        _ => record.label.clone(),
    };
    let since = record.origin.as_ref().map(|o| format!(" since {}", o.since())).unwrap_or_default();
    Error::PortTaken { claim: claim.to_string(), owner: format!("{owner}{since}") }
}

/// Says in the log which other containers have the same port at another address: the one at a single address goes
/// first, whoever came first.
pub fn tell_of_overlaps(socket: &mut NftSocket, share: &Share) {
    if !log::log_enabled!(log::Level::Info) {
        return;
    }
    if let Err(error) = overlaps(socket, share) {
        log::info!("{error}");
    }
}

fn overlaps(socket: &mut NftSocket, share: &Share) -> Result<()> {
    let own = share.attachment.label();
    let (specific, everywhere): (Vec<Claim>, Vec<Claim>) = share.claims.iter().partition(|c| c.address.is_some());
    let everywhere_too: Vec<Claim> = specific.iter().map(|claim| Claim { address: None, ..*claim }).collect();
    for (map, claims) in rules::by_map(&everywhere_too) {
        let keys: Vec<_> = claims.iter().map(|claim| claim.key()).collect();
        for (claim, found) in claims.into_iter().zip(socket.elements_at(&TABLE, &map, &keys)?) {
            if let Some(other) = found.and_then(|f| f.comment).filter(|c| *c != own) {
                log::info!("{claim} at one address is {own}'s; at all others it stays {other}'s");
            }
        }
    }
    for (_, claims) in rules::by_map(&everywhere) {
        let Some(version) = claims.first().map(|claim| claim.version()) else { continue };
        let claims: BTreeMap<_, _> = claims.into_iter().map(|claim| (claim.key(), claim)).collect();
        for element in socket.elements(&TABLE, &rules::ports_map(version, true))? {
            let claim = element.key.get(1..).and_then(|key| claims.get(key));
            if let (Some(claim), Some(other)) = (claim, element.comment.as_ref().filter(|c| **c != own)) {
                log::info!("{claim} is {own}'s; at one address it stays {other}'s: {element}");
            }
        }
    }
    Ok(())
}
