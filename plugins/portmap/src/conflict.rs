//! A port that somebody else has: who, and whether they are still there.

use std::fmt;

use common::nft::{CommitError, Data, Element, NftSocket, Set, Transaction, Value};
use common::{Error, Result};
use nix::errno::Errno;

use crate::liveness::why_dead;
use crate::record::Recorded;
use crate::rules::{self, Claim, Share, TABLE};

/// An owner that is certainly gone, or elements without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// What the elements name as their owner.
    label: String,
    /// Its record.
    record: Option<String>,
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
        match &self.record {
            Some(name) => Recorded::read(socket, name),
            None => Ok(None),
        }
    }
}

/// After a refused transaction: the dead in the way, or the error that names the living.
///
/// Only here are the maps asked who has a port: in the way of an ADD that succeeds there is no such question.
pub fn who_is_in_the_way(
    socket: &mut NftSocket,
    share: &Share,
    refused: CommitError,
    evicted: &[Dead],
) -> Result<Vec<Dead>> {
    // Kernels before 5.? answer EBUSY for a key with other data.
    if !matches!(refused.errno(), Some(Errno::EEXIST | Errno::EBUSY)) {
        return Err(refused.into());
    }
    let mut dead: Vec<Dead> = Vec::new();
    for claim in &share.claims {
        let set = claim.map();
        let Some(found) = socket.element(&TABLE, &set, &claim.key())? else { continue };
        let label = found.comment.clone().unwrap_or_else(|| "nobody".into());
        if dead.iter().chain(evicted).any(|d| d.label == label && d.record.is_some()) {
            continue;
        }
        let recorded = Recorded::of_label(socket, &label)?;
        match recorded {
            Some(recorded) if recorded.claims.iter().any(|c| c.key() == claim.key() && c.map() == set) => {
                let why = why_gone(share, &recorded, &found)?;
                let Some(why) = why else { return Err(taken(claim, &recorded)) };
                dead.push(Dead { label, record: Some(recorded.name), orphans: Vec::new(), why });
            }
            _ => {
                let why = "no record knows of it".to_owned();
                dead.push(Dead { label, record: None, orphans: vec![(set, found)], why });
            }
        }
    }
    if dead.is_empty() { Err(refused.into()) } else { Ok(dead) }
}

/// Why the owner of an element is certainly gone.
fn why_gone(share: &Share, recorded: &Recorded, element: &Element) -> Result<Option<String>> {
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
    match &recorded.origin {
        Some(origin) => why_dead(origin),
        None => Ok(None),
    }
}

fn taken(claim: &Claim, recorded: &Recorded) -> Error {
    let owner = match recorded.label.split('/').collect::<Vec<_>>().as_slice() {
        [network, container, ifname] => format!("container {container}, interface {ifname}, of network {network}"),
        _ => recorded.label.clone(),
    };
    let since = recorded.origin.as_ref().map(|o| format!(" since {}", o.since())).unwrap_or_default();
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
    for claim in &share.claims {
        let version = claim.version();
        if claim.address.is_some() {
            let everywhere = Claim { address: None, ..*claim };
            let found = socket.element(&TABLE, &everywhere.map(), &everywhere.key())?;
            if let Some(other) = found.and_then(|f| f.comment).filter(|c| *c != own) {
                log::info!("{claim} is {own}'s; {everywhere} at all other addresses stays {other}'s");
            }
            continue;
        }
        for element in socket.elements(&TABLE, &rules::ports_map(version, true))? {
            let same = element.key.get(1..) == Some(claim.key().as_slice());
            match &element.comment {
                Some(other) if same && *other != own => {
                    log::info!("{claim} is {own}'s; at one address it stays {other}'s: {element}");
                }
                _ => {}
            }
        }
    }
    Ok(())
}
