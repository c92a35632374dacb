//! The shares of all other attachments, put in again by the ADD that finds our tables gone.

use std::collections::HashSet;

use common::Result;
use common::nft::{Command, NftSocket, Presence, RecordKey, Table};

use crate::host;
use crate::plan::{HostPart, Share};
use crate::record::{Record, place_name};
use crate::rules::TABLE;
use crate::state::{self, Changes};
use crate::stored::Shelf;

/// Where the elements of a share are.
fn places(share: &Share) -> HashSet<String> {
    share.own_elements().iter().map(place_name).collect()
}

/// What others have lost.
#[derive(Debug, Default)]
pub struct Others {
    /// The latest first: of two that had one address, the latest has it.
    shares: Vec<Share>,
    /// What they need of the host's own filters, each once.
    hosts: Vec<HostPart>,
}

impl Others {
    /// All but this one. What can't be known of them is no reason for this one's ADD to fail.
    pub fn of(own: &Share) -> Others {
        let all = Shelf::open().and_then(|shelf| shelf.map_or(Ok(Vec::new()), |shelf| shelf.all()));
        let mut shares = all.unwrap_or_else(|error| {
            log::warn!("{error}; what other containers may have lost comes back only with an ADD of their own");
            Vec::new()
        });
        shares.retain(|share| share.attachment != own.attachment);
        // Whatever mark they were put in with: the rules know one, that of the latest ADD.
        shares.iter_mut().for_each(|share| share.host.mark = own.host.mark);
        let mut known = HashSet::new();
        for share in shares.iter_mut().rev() {
            let places = places(share);
            share.notes.shared |= places.iter().any(|place| known.contains(place));
            known.extend(places);
        }
        let mut hosts: Vec<HostPart> = Vec::new();
        for host in shares.iter().map(|share| &share.host) {
            if !hosts.contains(host) {
                hosts.push(host.clone());
            }
        }
        let mend = |host: &HostPart| {
            host::mend_legacy(host).map(|mended| mended.host).unwrap_or_else(|error| {
                log::warn!("{error}; this concerns other containers");
                Vec::new()
            })
        };
        Others { shares, hosts: hosts.iter().flat_map(mend).collect() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Whether one of them has had something that is this one's now.
    pub fn claim_any_of(&self, own: &Share) -> bool {
        let own = places(own);
        self.shares.iter().flat_map(places).any(|place| own.contains(&place))
    }

    /// Adds what isn't there and nobody else has by now.
    pub fn put_in(&self, socket: &mut NftSocket, own: &Share, changes: &mut Changes) -> Result<()> {
        let mut taken = places(own);
        let mut known: Vec<Table> = own.skeletons().into_iter().map(|skeleton| skeleton.table).collect();
        for share in &self.shares {
            let unknown = share.skeletons().into_iter().filter(|skeleton| !known.contains(&skeleton.table));
            let unknown: Vec<_> = unknown.collect();
            known.extend(unknown.iter().map(|skeleton| skeleton.table.clone()));
            changes.rebuilding.extend(state::damaged_skeletons(socket, &unknown, false)?);
            state::add_shared(share, &mut changes.transaction);
            for place in share.own_elements() {
                let is_free = taken.insert(place_name(&place));
                let (table, set, element) = place;
                if is_free && socket.element(&table, &set, &element.key)?.is_none() {
                    changes.transaction.add_elements(&table, &set.name, Presence::Exclusive, vec![element]);
                }
            }
            let record = Record::read(socket, RecordKey::of(&share.attachment))?;
            state::add_record(share, record.as_ref(), &mut changes.transaction);
        }
        log::debug!("{} other attachments are put into {TABLE} again", self.shares.len());
        Ok(())
    }

    /// What puts the host's own filters right for them.
    pub fn host_mending(&self, socket: &mut NftSocket) -> Vec<Command> {
        let mend = |host: &HostPart| {
            host::mending(socket, std::slice::from_ref(host), &[]).unwrap_or_else(|error| {
                log::warn!("{error}; this concerns other containers");
                Vec::new()
            })
        };
        self.hosts.iter().flat_map(mend).collect()
    }
}
