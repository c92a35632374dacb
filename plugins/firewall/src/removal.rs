//! The share removed: by DEL for one attachment, by GC for all the dead ones of a network.
//!
//! What is to go is read from the attachment's record, and of that, what is still its own: a newer container may have the
//! address by now. The transaction is refused if anything has changed since, and thought out anew.

use std::collections::{BTreeMap, BTreeSet};

use common::nft::{NftSocket, Transaction};
use common::{Attachment, Error, Result};

use crate::firewalld::Firewalld;
use crate::plan::Share;
use crate::record::{Holder, Placed, Record, RecordedAddress};
use crate::rules::{self, BRIDGE_POLICIES, BridgePolicy, RECORD, TABLE};
use crate::state::repeat;
use crate::stored::Shelf;

/// Removes everything that belongs to the attachment with this key; nothing to remove is success. Gives the addresses
/// that went.
pub fn remove(socket: &mut NftSocket, key: &str) -> Result<Vec<RecordedAddress>> {
    remove_all(socket, &BTreeSet::from([key]))
}

/// Removes everything that belongs to the attachments with these keys, in one transaction, because each that deletes waits
/// for a grace period of the kernel. What can't be read, or what firewalld doesn't forget, stays for the next time, and
/// the rest goes.
fn remove_all(socket: &mut NftSocket, keys: &BTreeSet<&str>) -> Result<Vec<RecordedAddress>> {
    let shelf = Shelf::open()?;
    let mut removed = Vec::new();
    let mut forgotten = BTreeSet::new();
    let mut errors: BTreeMap<&str, Error> = BTreeMap::new();
    repeat(|| {
        let generation = socket.generation()?;
        removed.clear();
        let mut removal = Removal::default();
        for key in keys.iter().filter(|key| !errors.contains_key(*key)).copied().collect::<Vec<&str>>() {
            let (record, own, addresses) = match read_own(socket, shelf.as_ref(), key) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    errors.insert(key, error);
                    continue;
                }
            };
            // First, because without the record nobody would know what firewalld must forget.
            if !forgotten.contains(key)
                && let Err(error) = forget_sources(&addresses)
            {
                errors.insert(key, error);
                continue;
            }
            forgotten.insert(key);
            removal.take_out(&record, own);
            removed.extend(addresses);
        }
        removal.release_policies(socket)?;
        // Of two that go at once the last must be seen to be the last; and nobody else's element may be taken.
        socket.commit_at(&removal.transaction, generation)
    })?;
    let gone = keys.iter().filter(|key| !errors.contains_key(*key));
    let left = shelf.iter().flat_map(|shelf| gone.clone().filter_map(|key| shelf.remove(key).err()));
    let left: Vec<Error> = left.collect();
    Error::gather(errors.into_values().chain(left).collect()).map(|()| removed)
}

/// An attachment's record, the elements that are its own, and the addresses that are no other's.
type Own = (Record, Vec<Placed>, Vec<RecordedAddress>);

fn read_own(socket: &mut NftSocket, shelf: Option<&Shelf>, key: &str) -> Result<Option<Own>> {
    let Some(record) = known_record(socket, shelf, key)? else { return Ok(None) };
    let held = record.held_elements(socket)?;
    let mut addresses = record.addresses();
    addresses.retain(|a| !is_anothers(&held, a));
    let own = held.into_iter().filter(|(_, holder)| *holder == Holder::Itself).map(|(element, _)| element);
    Ok(Some((record, own.collect(), addresses)))
}

/// What the kernel says; if it has lost that (`nft flush ruleset`), what was put on the shelf.
fn known_record(socket: &mut NftSocket, shelf: Option<&Shelf>, key: &str) -> Result<Option<Record>> {
    let found = Record::read(socket, key)?;
    if found.as_ref().is_some_and(|record| record.label().is_some()) {
        return Ok(found);
    }
    let is_in_kernel = found.is_some();
    let stored = shelf.and_then(|shelf| shelf.read(key)).map(|share| Record::of(&share, is_in_kernel));
    Ok(stored.or(found))
}

fn is_anothers(held: &[(Placed, Holder)], recorded: &RecordedAddress) -> bool {
    let (_, element) = rules::address_element(recorded.address);
    held.iter().any(|((table, _, e), holder)| *table == TABLE && *e == element && *holder == Holder::Another)
}

fn forget_sources(addresses: &[RecordedAddress]) -> Result<()> {
    if addresses.iter().all(|a| a.zone.is_none()) {
        return Ok(());
    }
    // A firewalld that doesn't run remembers nothing.
    let Some(firewalld) = Firewalld::find()? else { return Ok(()) };
    let zones = addresses.iter().filter_map(|a| a.zone.as_deref().map(|zone| (zone, a.address)));
    Error::gather(zones.filter_map(|(zone, address)| firewalld.remove_source(zone, address).err()).collect())
}

/// What goes, and what is released by it.
#[derive(Debug, Default)]
struct Removal {
    transaction: Transaction,
    /// Elements that are in the transaction: the kernel refuses to delete one twice.
    elements: BTreeSet<String>,
    /// Policies that were needed, each with its bridge and how many of the kernel's references go.
    policies: Vec<(BridgePolicy, String, u32)>,
}

impl Removal {
    fn take_out(&mut self, record: &Record, own: Vec<Placed>) {
        for (table, set, element) in own {
            if self.elements.insert(format!("{table} {} {:?}", set.name, element.key)) {
                self.transaction.delete_elements(&table, &set.name, vec![element]);
            }
        }
        if record.is_in_kernel {
            self.transaction.remove_chain(&TABLE, &record.name);
        }
        for (policy, bridge) in record.policies() {
            let references = u32::from(record.is_counted);
            match self.policies.iter_mut().find(|(p, b, _)| (*p, b) == (policy, &bridge)) {
                Some((_, _, count)) => *count += references,
                None => self.policies.push((policy, bridge, references)),
            }
        }
    }

    fn release_policies(&mut self, socket: &mut NftSocket) -> Result<()> {
        let transaction = &mut self.transaction;
        self.policies.iter().try_for_each(|(policy, bridge, references)| {
            release_policy(socket, *policy, bridge, *references, transaction)
        })
    }
}

/// The policies that the attachment needed at an earlier ADD and no longer needs. Whether there were any.
pub fn release_stale_policies(
    socket: &mut NftSocket,
    share: &Share,
    record: &Record,
    transaction: &mut Transaction,
) -> Result<bool> {
    let mut any = false;
    for (policy, bridge) in record.policies() {
        if share.policy.as_ref() != Some(&(policy, bridge.clone())) {
            release_policy(socket, policy, &bridge, 1, transaction)?;
            any = true;
        }
    }
    Ok(any)
}

/// Removes a bridge's policy if nobody needs it besides the `references` that this very transaction removes.
///
/// The kernel counts: the `use` of the policy's chain is the number of rules that jump to it. Should another attachment
/// come to need it in between, the kernel refuses to delete the chain, and with it the whole transaction.
fn release_policy(
    socket: &mut NftSocket,
    policy: BridgePolicy,
    bridge: &str,
    references: u32,
    transaction: &mut Transaction,
) -> Result<()> {
    let chain = policy.chain_for(bridge);
    if socket.chain(&TABLE, &chain)?.is_none_or(|found| found.uses > references) {
        return Ok(());
    }
    for (set, element) in policy.elements(bridge) {
        if socket.element(&TABLE, &set, &element.key)?.is_some() {
            transaction.delete_elements(&TABLE, &set.name, vec![element]);
        }
    }
    transaction.remove_chain(&TABLE, &chain);
    Ok(())
}

/// Removes what the dead attachments of a network own; `live` are the keys of the living ones.
pub fn collect(socket: &mut NftSocket, network: &str, live: &BTreeSet<String>) -> Result<()> {
    let prefix = format!("{}-", Attachment::network_key(network));
    let mut keys: BTreeSet<String> = match Shelf::open()? {
        Some(shelf) => shelf.keys()?,
        None => BTreeSet::new(),
    };
    keys.extend(socket.chains(&TABLE)?.iter().filter_map(|chain| chain.name.strip_prefix(RECORD)).map(str::to_owned));
    keys.retain(|key| key.starts_with(&prefix));
    let dead = keys.difference(live).map(String::as_str).collect();
    let removed = remove_all(socket, &dead).map(drop);
    let policies = collect_policies(socket);
    Error::gather([removed, policies].into_iter().filter_map(Result::err).collect())
}

/// Policies that no attachment needs: what a record removed by hand leaves behind.
fn collect_policies(socket: &mut NftSocket) -> Result<()> {
    repeat(|| {
        let generation = socket.generation()?;
        let mut transaction = Transaction::new();
        for chain in socket.chains(&TABLE)? {
            for policy in BRIDGE_POLICIES {
                if let Some(bridge) = policy.bridge_of(&chain.name) {
                    release_policy(socket, policy, &bridge, 0, &mut transaction)?;
                }
            }
        }
        socket.commit_at(&transaction, generation)
    })
}
