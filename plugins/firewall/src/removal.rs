//! The share removed: by DEL for one attachment, by GC for all the dead ones of a network.
//!
//! What is to go is read from the attachment's own chain. It goes in one transaction, in which every rule of that chain
//! is named by its handle: if a newer attachment takes an address over in between, it takes the rules for it too, and
//! the whole transaction comes to nothing and is thought out anew.

use std::collections::BTreeSet;

use common::nft::{Element, NftSocket, Table, Transaction};
use common::{Error, Result};

use crate::firewalld::Firewalld;
use crate::plan::Share;
use crate::record::{self, Record, RecordedAddress};
use crate::rules::{self, BRIDGE_POLICIES, BRIDGE_TABLE, BridgePolicy, TABLE};
use crate::state::repeat;

/// Removes everything that belongs to the chain of this name; nothing to remove is success. Gives the addresses that
/// went.
pub fn remove_chain(socket: &mut NftSocket, chain: &str) -> Result<Vec<RecordedAddress>> {
    let mut removed = Vec::new();
    let mut told = false;
    repeat(|| {
        let generation = socket.generation()?;
        let Some(record) = Record::read(socket, chain)? else { return Ok(()) };
        removed = owned_addresses(socket, &record)?;
        // First, because without the record nobody would know what firewalld must forget.
        if !told {
            forget_sources(&removed)?;
            told = true;
        }
        let transaction = removal(socket, &record, &removed)?;
        // Of two that go at once the last must be seen to be the last.
        let guarded = !record.policies().is_empty();
        socket.commit_rebuilding(&[], &transaction, guarded.then_some(generation))
    })?;
    Ok(removed)
}

/// Those of its addresses that still lead to it.
fn owned_addresses(socket: &mut NftSocket, record: &Record) -> Result<Vec<RecordedAddress>> {
    let mut owned = Vec::new();
    for recorded in record.addresses() {
        let (map, key) = record::address_key(recorded.address);
        if record::owner_of(socket, &TABLE, map, &key)?.as_deref() == Some(&record.chain) {
            owned.push(recorded);
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

fn removal(socket: &mut NftSocket, record: &Record, owned: &[RecordedAddress]) -> Result<Transaction> {
    let mut transaction = Transaction::new();
    for recorded in owned {
        let (map, key) = record::address_key(recorded.address);
        transaction.delete_elements(&TABLE, map, vec![key]);
    }
    for port in record.ports() {
        let (map, key) = record::port_key(&port);
        if record::owner_of(socket, &BRIDGE_TABLE, map, &key)?.as_deref() == Some(&record.chain) {
            transaction.delete_elements(&BRIDGE_TABLE, map, vec![key]);
        }
    }
    let chains = [(TABLE, record.exists.then_some(&record.rules)), (BRIDGE_TABLE, record.port_rules.as_ref())];
    for (table, rules) in chains {
        let Some(rules) = rules else { continue };
        for (handle, _) in rules {
            transaction.delete_rule(&table, &record.chain, *handle);
        }
        transaction.push(common::nft::Command::DeleteChain(table, record.chain.clone()));
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

/// Removes what the dead attachments of a network own; `live` are the names of the living ones' chains.
pub fn collect(socket: &mut NftSocket, network: &str, live: &BTreeSet<String>) -> Result<()> {
    let prefix = format!("{}{}-", rules::ATTACHMENT_CHAIN, common::Attachment::network_key(network));
    let mut names: Vec<String> = Vec::new();
    for table in [TABLE, BRIDGE_TABLE] {
        names.extend(socket.chains(&table)?.into_iter().map(|chain| chain.name));
    }
    names.retain(|name| name.starts_with(&prefix) && !live.contains(name));
    names.sort();
    names.dedup();
    let mut errors: Vec<Error> = names.iter().filter_map(|name| remove_chain(socket, name).err()).collect();
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
                if let Some(common::nft::Value::Ifname(bridge)) = element.key.first() {
                    release_policy(socket, policy, bridge, 0, &mut transaction)?;
                }
            }
        }
        socket.commit_rebuilding(&[], &transaction, Some(generation))
    })
}
