//! The share removed: by DEL for one attachment, by GC for all the dead ones of a network.
//!
//! What is to go is read from the attachment's own chain. It goes in one transaction, in which every rule of that chain
//! is named by its handle: if a newer attachment takes an address over in between, it takes the rules for it too, and
//! the whole transaction comes to nothing and is thought out anew.

use std::collections::BTreeSet;

use common::nft::{Command, Element, NftSocket, Table, Transaction, Value};
use common::{Attachment, Error, Result};

use crate::firewalld::Firewalld;
use crate::plan::Share;
use crate::record::{self, Record, RecordedAddress, RecordedChain, RecordedElement};
use crate::rules::{self, ATTACHMENT_CHAIN, BRIDGE_POLICIES, BridgePolicy, PORT_GUARDS, TABLE};
use crate::state::repeat;

/// Removes everything that belongs to the attachment with this key; nothing to remove is success. Gives the addresses
/// that went.
pub fn remove(socket: &mut NftSocket, key: &str) -> Result<Vec<RecordedAddress>> {
    let mut removed = Vec::new();
    let mut told = false;
    repeat(|| {
        let generation = socket.generation()?;
        let Some(record) = Record::read(socket, key)? else { return Ok(()) };
        let owned = owned_elements(socket, &record)?;
        removed = record.addresses();
        removed.retain(|a| owned.iter().any(|element| element.key == record::address_key(a.address).1));
        // First, because without the record nobody would know what firewalld must forget.
        if !told {
            forget_sources(&removed)?;
            told = true;
        }
        let transaction = removal(socket, &record, owned)?;
        // Of two that go at once the last must be seen to be the last.
        let guarded = !record.policies().is_empty();
        socket.commit_rebuilding(&[], &transaction, guarded.then_some(generation))
    })?;
    Ok(removed)
}

/// Those of its elements that still lead to it.
fn owned_elements(socket: &mut NftSocket, record: &Record) -> Result<Vec<RecordedElement>> {
    let mut owned = Vec::new();
    for element in record.elements() {
        if element.is_owned(socket)? {
            owned.push(element);
        }
    }
    Ok(owned)
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

fn removal(socket: &mut NftSocket, record: &Record, owned: Vec<RecordedElement>) -> Result<Transaction> {
    let mut transaction = Transaction::new();
    for RecordedElement { table, map, key, .. } in owned {
        transaction.delete_elements(&table, map, vec![key]);
    }
    for RecordedChain { table, name, rules } in &record.chains {
        for (handle, _) in rules {
            transaction.delete_rule(table, name, *handle);
        }
        transaction.push(Command::DeleteChain(table.clone(), name.clone()));
    }
    for (policy, bridge) in record.policies() {
        release_policy(socket, policy, &bridge, 1, &mut transaction)?;
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
/// The kernel counts: a chain's `use` is its rules and whatever leads to it. Should another attachment come to need it
/// in between, the kernel refuses to delete the chain, and with it the whole transaction.
fn release_policy(
    socket: &mut NftSocket,
    policy: BridgePolicy,
    bridge: &str,
    references: u32,
    transaction: &mut Transaction,
) -> Result<()> {
    let chain = policy.chain_for(bridge);
    let Some(info) = socket.chain(&TABLE, &chain)? else { return Ok(()) };
    let rules = u32::try_from(socket.rules(&TABLE, &chain)?.len()).unwrap_or(u32::MAX);
    let key = Element::key([rules::ifname(bridge)]);
    let led_to = record::owner_of(socket, &TABLE, policy.map, &key)?.as_deref() == Some(&chain);
    if info.uses > rules.saturating_add(u32::from(led_to)).saturating_add(references) {
        return Ok(());
    }
    if led_to {
        transaction.delete_elements(&TABLE, policy.map, vec![key.clone()]);
    }
    if is_there(socket, &TABLE, policy.set, &key)? {
        transaction.delete_elements(&TABLE, policy.set, vec![key]);
    }
    transaction.remove_chain(&TABLE, &chain);
    Ok(())
}

fn is_there(socket: &mut NftSocket, table: &Table, set: &str, key: &Element) -> Result<bool> {
    Ok(socket.element(table, &record::set_named(set), &key.key)?.is_some())
}

/// Removes what the dead attachments of a network own; `live` are the keys of the living ones.
pub fn collect(socket: &mut NftSocket, network: &str, live: &BTreeSet<String>) -> Result<()> {
    let prefix = format!("{}-", Attachment::network_key(network));
    let mut keys = BTreeSet::new();
    let guards = PORT_GUARDS.map(|guard| (guard.table, guard.prefix));
    for (table, kind) in [(TABLE, ATTACHMENT_CHAIN)].into_iter().chain(guards) {
        let chains = socket.chains(&table)?;
        let own =
            chains.iter().filter_map(|chain| chain.name.strip_prefix(kind).filter(|key| key.starts_with(&prefix)));
        keys.extend(own.map(str::to_owned));
    }
    let dead = keys.difference(live);
    let mut errors: Vec<Error> = dead.filter_map(|key| remove(socket, key).err()).collect();
    errors.extend(collect_policies(socket).err());
    Error::gather(errors)
}

/// Policies that no attachment needs: what a chain removed by hand leaves behind.
fn collect_policies(socket: &mut NftSocket) -> Result<()> {
    repeat(|| {
        let generation = socket.generation()?;
        let mut transaction = Transaction::new();
        for policy in BRIDGE_POLICIES {
            for element in socket.elements(&TABLE, &record::set_named(policy.map))? {
                if let Some(Value::Ifname(bridge)) = element.key.first() {
                    release_policy(socket, policy, bridge, 0, &mut transaction)?;
                }
            }
        }
        socket.commit_rebuilding(&[], &transaction, Some(generation))
    })
}
