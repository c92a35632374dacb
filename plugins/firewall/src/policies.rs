//! Who needs a bridge's policy, and what is to be done when nobody does.
//!
//! The kernel counts: the `use` of the policy's chain is the number of records' lines that jump to it, with the rules that
//! somebody else has put into it, and those by which somebody else jumps to it. What is counted of others is subtracted.

use std::collections::BTreeSet;

use common::Result;
use common::nft::records::{NetworkKey, jumps};
use common::nft::{Command, NftSocket, RecordKey, TableRules, Transaction};

use crate::plan::Share;
use crate::record::Record;
use crate::rules::{BRIDGE_POLICIES, BridgePolicy, TABLE};
use crate::state::repeat;
use crate::stored::{Opened, Shelf};

/// The rules of our table, read when they are first asked for: nobody's share makes any that concerns a policy's chain.
#[derive(Debug, Default)]
pub struct Strangers(Option<TableRules>);

/// What the chain of a policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Uses {
    /// How many records need it.
    records: u32,
    /// Whether somebody else's rules are in it.
    has_rules: bool,
    /// Whether somebody else's rules lead to it.
    is_led_to: bool,
}

impl Strangers {
    /// Of a policy's chain; `None` if there is none. Beyond the `expected` uses the rules of the table are read.
    fn uses(&mut self, socket: &mut NftSocket, chain: &str, expected: u32) -> Result<Option<Uses>> {
        let Some(found) = socket.chain(&TABLE, chain)? else { return Ok(None) };
        if found.uses <= expected {
            return Ok(Some(Uses { records: found.uses, has_rules: false, is_led_to: false }));
        }
        let rules = match self.0.take() {
            Some(rules) => rules,
            None => socket.table_rules(&TABLE, &|_| true)?,
        };
        let (inside, leading) = rules.uses_of(chain);
        self.0 = Some(rules);
        let records = found.uses.saturating_sub(inside).saturating_sub(leading);
        Ok(Some(Uses { records, has_rules: inside > 0, is_led_to: leading > 0 }))
    }

    /// Whether anybody needs the policy: by the records, and where they say nothing, by the shelf.
    pub fn is_needed(&mut self, socket: &mut NftSocket, policy: BridgePolicy, bridge: &str) -> Result<bool> {
        match self.uses(socket, &policy.chain_for(bridge), 0)? {
            None => Ok(false),
            Some(uses) if uses.records > 0 => Ok(true),
            Some(_) => is_filed(&Shelf::open(), policy, bridge, |_| true),
        }
    }
}

/// How often the kernel has counted that a record needs a policy.
pub fn references(record: &Record, policy: BridgePolicy, bridge: &str) -> u32 {
    let chain = policy.chain_for(bridge);
    u32::from(jumps(&record.lines).any(|jump| jump == chain))
}

/// Whether any of these attachments needs the policy by the shelf; one that can't be opened may say so.
fn is_filed(
    opened: &Opened,
    policy: BridgePolicy,
    bridge: &str,
    is_asked: impl Fn(&RecordKey) -> bool,
) -> Result<bool> {
    let Ok(shelf) = opened else { return Ok(true) };
    let asked = shelf.as_ref().map(|shelf| shelf.of(is_asked)).transpose()?;
    let needs = |share: &Share| share.policy.as_ref().is_some_and(|(p, b)| *p == policy && b == bridge);
    Ok(asked.iter().flatten().any(needs))
}

/// The policies that the attachment needed at an earlier ADD and no longer needs. Whether there were any.
pub fn release_stale(
    socket: &mut NftSocket,
    share: &Share,
    record: &Record,
    transaction: &mut Transaction,
) -> Result<bool> {
    let stale = |(policy, bridge): &&(BridgePolicy, String)| share.policy.as_ref() != Some(&(*policy, bridge.clone()));
    let mut stale = record.policies.iter().filter(stale).peekable();
    if stale.peek().is_none() {
        return Ok(false);
    }
    let (opened, own) = (Shelf::open(), BTreeSet::from([record.key]));
    for (policy, bridge) in stale {
        let references = references(record, *policy, bridge);
        release(socket, &opened, (*policy, bridge), references, &own, transaction)?;
    }
    Ok(true)
}

/// Removes a bridge's policy if nobody needs it besides those that are leaving, with the `references` that this very transaction
/// removes. The shelf is asked as well: what isn't counted may have been lost. A bridge is one network's as a rule, and a host may
/// have many: other networks' files are opened only where nothing is counted, so that the lines of those that are leaving are lost, too.
pub fn release(
    socket: &mut NftSocket,
    opened: &Opened,
    (policy, bridge): (BridgePolicy, &str),
    references: u32,
    leaving: &BTreeSet<RecordKey>,
    transaction: &mut Transaction,
) -> Result<()> {
    let Some(uses) = Strangers::default().uses(socket, &policy.chain_for(bridge), references)? else { return Ok(()) };
    if uses.records > references {
        return Ok(());
    }
    let networks: BTreeSet<NetworkKey> = leaving.iter().map(RecordKey::network).collect();
    let may_need = |key: &RecordKey| references == 0 || networks.contains(&key.network());
    if is_filed(opened, policy, bridge, |key| may_need(key) && !leaving.contains(key))? {
        return Ok(());
    }
    remove(socket, policy, bridge, uses, transaction)
}

/// Removes a bridge's policy that no record counts any more and that no file asks for but those of who has left.
pub fn release_unused(
    socket: &mut NftSocket,
    opened: &Opened,
    (policy, bridge): (BridgePolicy, &str),
    left: &BTreeSet<RecordKey>,
    transaction: &mut Transaction,
) -> Result<()> {
    let Some(uses) = Strangers::default().uses(socket, &policy.chain_for(bridge), 0)? else { return Ok(()) };
    if uses.records > 0 || is_filed(opened, policy, bridge, |key| !left.contains(key))? {
        return Ok(());
    }
    remove(socket, policy, bridge, uses, transaction)
}

/// Takes a bridge's policy away. Should an attachment come to need it in between, the kernel refuses to delete the chain, and with it the whole
/// transaction. A chain to which somebody else's rule leads can't be deleted; it stays, empty, and restricts nothing.
fn remove(
    socket: &mut NftSocket,
    policy: BridgePolicy,
    bridge: &str,
    uses: Uses,
    transaction: &mut Transaction,
) -> Result<()> {
    let chain = policy.chain_for(bridge);
    for (set, element) in policy.elements(bridge) {
        if socket.element(&TABLE, &set, &element.key)?.is_some() {
            transaction.delete_elements(&TABLE, &set.name, vec![element]);
        }
    }
    if !uses.is_led_to {
        transaction.remove_chain(&TABLE, &chain);
    } else if uses.has_rules {
        transaction.push(Command::FlushChain(TABLE, chain));
    }
    Ok(())
}

/// Takes somebody else's rules out of the chain of an attachment's policy.
pub fn clear_chain(socket: &mut NftSocket, share: &Share, transaction: &mut Transaction) -> Result<()> {
    let Some(chain) = share.policy_chain() else { return Ok(()) };
    if !socket.rules(&TABLE, &chain.name)?.is_empty() {
        log::info!("the rules of chain {} of table {TABLE} are taken out: nobody needs them", chain.name);
        transaction.push(Command::FlushChain(TABLE, chain.name));
    }
    Ok(())
}

/// Policies that no attachment needs: what a record removed by hand leaves behind. Where nobody can say that, they stay, without
/// what somebody else has put into their chains.
pub fn collect(socket: &mut NftSocket) -> Result<()> {
    let opened = Shelf::open();
    repeat(|| {
        let generation = socket.generation()?;
        let mut transaction = Transaction::new();
        let mut strangers = Strangers::default();
        for chain in socket.chains(&TABLE)? {
            for policy in BRIDGE_POLICIES {
                let Some(bridge) = policy.bridge_of(&chain.name) else { continue };
                let Some(uses) = strangers.uses(socket, &chain.name, 0)? else { continue };
                if uses.records == 0 && !is_filed(&opened, policy, &bridge, |_| true)? {
                    remove(socket, policy, &bridge, uses, &mut transaction)?;
                } else if uses.has_rules {
                    transaction.push(Command::FlushChain(TABLE, chain.name.clone()));
                }
            }
        }
        socket.commit_at(&transaction, generation)
    })
}
