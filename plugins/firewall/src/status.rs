//! Whether ADD can succeed on this host, and whether what it admits gets through.

use common::nft::{IpVersion, NftSocket, Skeleton};
use common::{Difference, Error, Result};

use crate::config::Config;
use crate::guards::{self, Guard, Scope};
use crate::host;
use crate::hostchain;
use crate::legacy;
use crate::observe;
use crate::plan::HostPart;
use crate::rules::{self, TABLE};
use crate::stored::Shelf;

/// What to do about a directory that can't be opened.
const IN_THE_WAY: &str = "remove what stands there: as long as it does, ADD succeeds and DEL doesn't";

/// More often the tables don't change while somebody looks.
const TRIES: usize = 20;

/// STATUS.
pub fn status(config: &Config) -> Result<()> {
    let unavailable = |error: Error| Error::NotAvailable { reason: error.to_string(), next: error.details() };
    let firewalld = observe::firewalld(config.backend).map_err(unavailable)?.is_some();
    Shelf::look().map_err(|error| Error::NotAvailable { reason: error.to_string(), next: IN_THE_WAY.into() })?;
    let mut socket = NftSocket::new();
    socket.has_table(&TABLE).map_err(unavailable)?;
    let host = HostPart::of(config, firewalld, IpVersion::ALL.into());
    hostchain::look(&mut socket, &host.chains).map_err(unavailable)?;
    for (version, part) in host.each_version() {
        weigh(version, legacy::can_mend(version, &part).map_err(unavailable))?;
    }
    look_for_other_marks(&mut socket, &host)?;
    compare_own_tables(&mut socket, host.mark)?;
    for version in IpVersion::ALL {
        let before = host::dropped_before(&mut socket, &host, version)?;
        weigh(version, before.first().map_or(Ok(()), |blocked| Err(limited(blocked, REMEDY))))?;
    }
    let guards = guards::all(&mut socket, Scope { host: &host, firewalld })?;
    let drops = |version| guards.iter().find(|guard| guard.certainly && guard.concerns(version));
    IpVersion::ALL.into_iter().try_for_each(|version| weigh(version, drops(version).map_or(Ok(()), |g| Err(g.into()))))
}

/// STATUS isn't told which IP versions a network has, and hardly any is without IPv4. So what would only concern IPv6 is
/// said, and is no error.
fn weigh(version: IpVersion, outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if version == IpVersion::V6 => {
            log::warn!("{error}; {}; this concerns IPv6 only", error.details());
            Ok(())
        }
        outcome => outcome,
    }
}

const REMEDY: &str = "take that rule out, or put it behind ours";

fn limited(found: &Difference, next: &str) -> Error {
    Error::LimitedConnectivity { reason: found.to_string(), next: next.into() }
}

impl From<&Guard> for Error {
    fn from(guard: &Guard) -> Error {
        Error::LimitedConnectivity { reason: guard.to_string(), next: guard.remedy() }
    }
}

/// Before the first ADD with another bit, all have the former one; after it, none may have it.
fn look_for_other_marks(socket: &mut NftSocket, host: &HostPart) -> Result<()> {
    if !socket.has_skeleton(&rules::skeleton(host.mark))? {
        return Ok(());
    }
    match host::acceptances_of_others(socket, host, &IpVersion::ALL)?.first() {
        Some(found) => Err(limited(found, "repeat the ADD of a container with this configuration")),
        None => Ok(()),
    }
}

/// An ADD counts the rules of our tables and doesn't read them: what has the right number and is none of ours is found here. What the
/// next ADD sees is no reason to say no, because who hears that makes no ADD.
fn compare_own_tables(socket: &mut NftSocket, mark: u32) -> Result<()> {
    for skeleton in [rules::skeleton(mark), rules::bridge_skeleton(), rules::sources_skeleton()] {
        // One that isn't there, or is another version's, comes with the ADD that needs it.
        if !socket.has_skeleton(&skeleton)? {
            continue;
        }
        let Some(found) = settled_differences(socket, &skeleton)?.into_iter().next() else { continue };
        let table = &skeleton.table;
        if !is_mended_by_any_add(socket, &skeleton)? {
            let next = format!(
                "repeat the ADD of a container with this configuration, or `nft delete table {table}` and any ADD: that \
                 puts in again what all containers have there"
            );
            return Err(limited(&found, &next));
        }
        log::warn!("{found}; the next ADD that needs table {table} puts it right");
    }
    Ok(())
}

/// What is read while another call puts the table in may be of before and after it.
fn settled_differences(socket: &mut NftSocket, skeleton: &Skeleton) -> Result<Vec<Difference>> {
    for _ in 0..TRIES {
        let before = socket.generation()?;
        let found = socket.differences(skeleton)?;
        if found.is_empty() || socket.generation()? == before {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// A missing set makes the kernel refuse the ADD's transaction, which is then thought out with everything read.
fn is_mended_by_any_add(socket: &mut NftSocket, skeleton: &Skeleton) -> Result<bool> {
    if !socket.is_whole(skeleton)? {
        return Ok(true);
    }
    for set in &skeleton.sets {
        if socket.set(&skeleton.table, &set.name)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}
