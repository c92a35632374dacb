//! A port that somebody else has: who, and whether they are still there.

use std::collections::BTreeMap;
use std::fmt;

use common::nft::{CommitError, Data, Element, NftSocket, Set, Transaction, Value};
use common::{Error, Result};
use nix::errno::Errno;

use crate::liveness::why_dead;
use crate::record::{Record, RecordKey, Recorded};
use crate::rules::{self, Claim, Share, TABLE};

/// An owner that is certainly gone, or elements without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// What the elements name as their owner.
    label: String,
    /// Whose record it is.
    record: Option<RecordKey>,
    /// Elements that no record knows.
    orphans: Vec<(Set, Element)>,
    /// Why it is gone.
    why: String,
}

impl fmt::Display for Dead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host ports of {} were taken from it: {}", self.label, self.why)
    }
}

impl Dead {
    /// What is there of it now; elements without a record go at once.
    pub fn read_again(&self, socket: &mut NftSocket, transaction: &mut Transaction) -> Result<Option<Recorded>> {
        for (set, orphan) in &self.orphans {
            if socket.element(&TABLE, set, &orphan.key)?.as_ref() == Some(orphan) {
                transaction.delete_elements(&TABLE, &set.name, vec![orphan.clone()]);
            }
        }
        match self.record {
            Some(key) => Recorded::read_key(socket, key),
            None => Ok(None),
        }
    }
}

/// After a refused transaction: the dead in the way, if any are left, or the error that names the living.
///
/// Only here are the maps asked who has a port: in the way of an ADD that succeeds there is no such question.
pub fn who_is_in_the_way(
    socket: &mut NftSocket,
    share: &Share,
    refused: &CommitError,
    evicted: &[Dead],
) -> Result<Vec<Dead>> {
    // Kernels before 5.? answer EBUSY for a key with other data.
    if !matches!(refused.errno(), Some(Errno::EEXIST | Errno::EBUSY)) {
        return Err(refused.clone().into());
    }
    let mut dead: Vec<Dead> = Vec::new();
    for (map, claims) in rules::by_map(&share.claims) {
        let keys: Vec<_> = claims.iter().map(|claim| claim.key()).collect();
        let found = socket.elements_at(&TABLE, &map, &keys)?;
        for (claim, element) in claims.into_iter().zip(found).filter_map(|(c, f)| Some((c, f?))) {
            let label = element.comment.clone().unwrap_or_else(|| "nobody".into());
            if dead.iter().chain(evicted).any(|d| d.label == label && d.record.is_some()) {
                continue;
            }
            dead.push(owner(socket, share, claim, (&map, element), label)?);
        }
    }
    Ok(dead)
}

/// The owner of an element if it is dead; the living's is the error.
fn owner(
    socket: &mut NftSocket,
    share: &Share,
    claim: &Claim,
    (map, element): (&Set, Element),
    label: String,
) -> Result<Dead> {
    match Recorded::of_label(socket, &label)? {
        Some(Recorded { record, .. }) if record.claims.iter().any(|c| c.key() == claim.key() && c.map() == *map) => {
            match why_gone(share, &record, &element)? {
                Some(why) => Ok(Dead { label, record: Some(record.key), orphans: Vec::new(), why }),
                None => Err(taken(claim, &record)),
            }
        }
        _ => {
            let orphans = vec![(map.clone(), element)];
            Ok(Dead { label, record: None, orphans, why: "no record knows of it".into() })
        }
    }
}

/// Why the owner of an element is certainly gone.
fn why_gone(share: &Share, record: &Record, element: &Element) -> Result<Option<String>> {
    let target = match &element.data {
        Some(Data::Values(values)) => values.first(),
        _ => None,
    };
    if share.claims.iter().any(|c| Some(&Value::ip(c.target)) == target) {
        return Ok(Some(format!(
            "its address {} is {}'s now",
            target.map(Value::to_string).unwrap_or_default(),
            share.attachment
        )));
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
