//! The share removed: by DEL for one attachment, by GC for all the dead ones of a network.
//!
//! What is to go is read from the attachment's record, and of that, what is still its own: a newer container may have the
//! address by now. The transaction is refused if anything has changed since, and thought out anew.

use std::collections::BTreeSet;

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
    let shelf = Shelf::open()?;
    let mut removed = Vec::new();
    let mut told = false;
    repeat(|| {
        let generation = socket.generation()?;
        let Some(record) = known_record(socket, shelf.as_ref(), key)? else { return Ok(()) };
        let held = record.held_elements(socket)?;
        removed = record.addresses();
        removed.retain(|a| !is_anothers(&held, a));
        // First, because without the record nobody would know what firewalld must forget.
        if !told {
            forget_sources(&removed)?;
            told = true;
        }
        let own = held.into_iter().filter(|(_, holder)| *holder == Holder::Itself).map(|(element, _)| element);
        let transaction = removal(socket, &record, own)?;
        // Of two that go at once the last must be seen to be the last; and nobody else's element may be taken.
        socket.commit_at(&transaction, generation)
    })?;
    shelf.map_or(Ok(()), |shelf| shelf.remove(key))?;
    Ok(removed)
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

fn removal(socket: &mut NftSocket, record: &Record, own: impl Iterator<Item = Placed>) -> Result<Transaction> {
    let mut transaction = Transaction::new();
    for (table, set, element) in own {
        transaction.delete_elements(&table, &set.name, vec![element]);
    }
    if record.is_in_kernel {
        transaction.remove_chain(&TABLE, &record.name);
    }
    for (policy, bridge) in record.policies() {
        release_policy(socket, policy, &bridge, u32::from(record.is_counted), &mut transaction)?;
    }
    Ok(transaction)
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
    let dead = keys.difference(live);
    let mut errors: Vec<Error> = dead.filter_map(|key| remove(socket, key).err()).collect();
    errors.extend(collect_policies(socket).err());
    Error::gather(errors)
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
