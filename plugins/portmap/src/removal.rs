//! Taking records out of the tables, with everything that nobody else needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use common::nft::records;
use common::nft::{ChainInfo, Command, Element, NftSocket, RecordKey, RuleInfo, Set, Transaction};
use common::{Error, Result};

use crate::heirs::{Rewrites, hand_over};
use crate::localnet::{self, Link};
use crate::record::{Record, Recorded};
use crate::remains::has_others_ports;
use crate::rules::{
    self, ATTACHMENTS, Claim, HOSTPORTS, LOOPBACK_PREFIX, MARK_PREFIX, MASQUERADE, Place, TABLE, is_kind,
};
use crate::transact::{came_too_late, transact};

/// More rules than a shared chain ever has.
const MOST_RULES: u32 = 8;

/// Removes what `find` finds, all in one transaction; gives what was removed.
pub fn remove(
    socket: &mut NftSocket,
    mut find: impl FnMut(&mut NftSocket) -> Result<Vec<Recorded>>,
) -> Result<Vec<Recorded>> {
    let mut unanswered = None;
    transact(socket, |socket, generation| {
        let records = find(socket)?;
        if records.is_empty() {
            if socket.chain(&TABLE, ATTACHMENTS)?.is_none() {
                localnet::close_unguarded(socket)?;
            }
            return Ok(ControlFlow::Break(unanswered.take().unwrap_or_default()));
        }
        let mut removal = Removal::default();
        if let Some(chains) = chains_if_all(socket, &records)? {
            removal.whole_table(&chains);
        } else {
            removal.records(socket, &records, &[], &BTreeSet::new())?;
            removal.finish();
        }
        // The sysctls first: whoever needs one anew between now and the transaction makes it fail, and whoever comes
        // after it finds the value of before and writes his own.
        removal.restore_loopback()?;
        match socket.commit_at(&removal.transaction, generation) {
            Ok(()) => Ok(ControlFlow::Break(records)),
            // What has become of it is seen by whether the records are there.
            Err(error) if error.is_unanswered() && unanswered.is_none() => {
                unanswered = Some(records);
                Ok(ControlFlow::Continue(()))
            }
            Err(error) => {
                removal.settle_loopback(socket)?;
                if came_too_late(&error) { Ok(ControlFlow::Continue(())) } else { Err(error.into()) }
            }
        }
    })
}

/// The table's chains, if these are all the records that there are: the first line of each jumps to `attachments`, and
/// nothing else does. What is there of records without a first line, and ports without a record, belongs to others.
fn chains_if_all(socket: &mut NftSocket, records: &[Recorded]) -> Result<Option<Vec<ChainInfo>>> {
    let attachments = socket.chain(&TABLE, ATTACHMENTS)?;
    if !attachments.is_some_and(|chain| usize::try_from(chain.uses).is_ok_and(|uses| uses <= records.len())) {
        return Ok(None);
    }
    let own: BTreeSet<RecordKey> = records.iter().map(|r| r.record.key).collect();
    let labels: BTreeSet<&str> = records.iter().map(|r| r.record.label.as_str()).collect();
    let chains = socket.chains(&TABLE)?;
    let are_all = socket.all_records(&TABLE, |key| !own.contains(key))?.is_empty()
        && !has_others_ports(socket, &chains, &labels)?;
    Ok(are_all.then_some(chains))
}

/// A transaction that removes, and the sysctls that go with it.
#[derive(Debug, Default)]
pub struct Removal {
    /// What is sent.
    pub transaction: Transaction,
    /// Links whose route_localnet nobody needs any more, with the value of before.
    loopback: Vec<(Link, String)>,
    /// Handles of rules that are removed.
    rules: BTreeSet<u64>,
    /// How many elements are removed from each set.
    members: BTreeMap<String, usize>,
    /// Records that stay.
    pub rewrites: Rewrites,
}

impl Removal {
    /// Everything.
    fn whole_table(&mut self, chains: &[ChainInfo]) {
        self.transaction.push(Command::DeleteTable(TABLE));
        self.loopback.extend(chains.iter().filter_map(loopback_of));
    }

    /// These records and what only they need. What is named in `keep` stays: somebody new needs it. What is `taken` goes to
    /// that one, not to heirs.
    pub fn records(
        &mut self,
        socket: &mut NftSocket,
        records: &[Recorded],
        keep: &[String],
        taken: &BTreeSet<Place>,
    ) -> Result<()> {
        let leaving: BTreeSet<RecordKey> = records.iter().map(|r| r.record.key).collect();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for Recorded { record, lines } in records {
            let Own { claims, elements, owners } = Own::of(socket, record)?;
            for (set, elements) in elements {
                *self.members.entry(set.name.clone()).or_default() += elements.len();
                self.transaction.delete_elements(&TABLE, &set.name, elements);
            }
            self.transaction.delete_elements(&TABLE, &records::map().name, lines.clone());
            for jump in records::jumps(lines).filter(|chain| *chain != ATTACHMENTS) {
                *counts.entry(jump.to_owned()).or_default() += 1;
            }
            if !record.heirs.is_empty() {
                let free = claims.iter().map(Claim::place).filter(|place| !taken.contains(place)).collect();
                hand_over(socket, record, free, &leaving, &mut self.rewrites, &mut self.transaction)?;
            }
            for owner in owners {
                let Some(owner) = Recorded::of_label(socket, &owner)? else { continue };
                if !leaving.contains(&owner.record.key) {
                    self.rewrites.change(&owner, |heirs| heirs.retain(|heir| heir.key != record.key));
                }
            }
        }
        if !records.iter().all(Recorded::is_whole) {
            // What lines that are missing were the last to jump to is in nobody's use.
            for chain in socket.chains(&TABLE)?.into_iter().filter(|chain| is_shared(&chain.name)) {
                counts.entry(chain.name).or_default();
            }
        }
        for (name, count) in counts {
            if !keep.contains(&name) {
                self.release(socket, &name, count)?;
            }
        }
        Ok(())
    }

    /// Removes a shared chain if `count` records were all its users.
    fn release(&mut self, socket: &mut NftSocket, name: &str, count: u32) -> Result<()> {
        let Some(chain) = socket.chain(&TABLE, name)? else { return Ok(()) };
        if chain.uses > count + MOST_RULES {
            return Ok(());
        }
        let parent = if is_kind(name) {
            Some(HOSTPORTS)
        } else if name.starts_with(MARK_PREFIX) {
            Some(MASQUERADE)
        } else {
            None
        };
        let entrances = match parent {
            Some(parent) => entrances(socket.rules(&TABLE, parent)?, name),
            None => Vec::new(),
        };
        let rules = socket.rules(&TABLE, name)?.len();
        if usize::try_from(chain.uses.saturating_sub(count)) != Ok(rules + entrances.len()) {
            return Ok(());
        }
        // Whoever has damaged records has made some users uncounted; their ports are there.
        if let Some(set) = rules::kind_set_of(name)
            && socket.elements(&TABLE, &set)?.len() > self.members.get(name).copied().unwrap_or_default()
        {
            return Ok(());
        }
        for (parent, entrance) in parent.iter().flat_map(|p| entrances.iter().map(move |e| (p, e))) {
            self.rule(parent, entrance.handle);
        }
        self.transaction.remove_chain(&TABLE, name);
        if is_kind(name) {
            self.transaction.push(Command::DeleteSet(TABLE, name.to_owned()));
        }
        self.loopback.extend(loopback_of(&chain));
        Ok(())
    }

    /// The last of what the transaction gets.
    pub fn finish(&mut self) {
        self.rewrites.put(&mut self.transaction);
    }

    /// One rule, whoever else has it removed.
    pub fn rule(&mut self, chain: &str, handle: u64) {
        if self.rules.insert(handle) {
            self.transaction.delete_rule(&TABLE, chain, handle);
        }
    }

    /// Gives the links back the value they had before their first user.
    pub fn restore_loopback(&self) -> Result<()> {
        self.loopback.iter().try_for_each(|(link, before)| localnet::close(link, before))
    }

    /// Takes [`Removal::restore_loopback`] back where the transaction has come to nothing.
    pub fn settle_loopback(&self, socket: &mut NftSocket) -> Result<()> {
        self.loopback.iter().try_for_each(|(link, before)| localnet::settle(socket, link, before))
    }
}

/// Whether this is the name of something that attachments share.
fn is_shared(chain: &str) -> bool {
    is_kind(chain) || chain.starts_with(MARK_PREFIX) || chain.starts_with(LOOPBACK_PREFIX)
}

/// The rules among these that lead to the chain `name`.
pub fn entrances(rules: Vec<RuleInfo>, name: &str) -> Vec<RuleInfo> {
    rules.into_iter().filter(|info| info.target() == Some(name)).collect()
}

fn loopback_of(chain: &ChainInfo) -> Option<(Link, String)> {
    let (before, link) = rules::read_loopback(&chain.name, chain.comment.as_deref()?)?;
    Some((link, before))
}

/// What a record's owner has.
#[derive(Default)]
struct Own {
    /// Its ports, of those that the record claims.
    claims: Vec<Claim>,
    /// The record's elements as they are there, wherever they lead by now, as far as they bear its label: whoever has
    /// emptied the maps by hand may have made room for another owner of the same port.
    elements: Vec<(Set, Vec<Element>)>,
    /// Who has the others.
    owners: BTreeSet<String>,
}

impl Own {
    fn of(socket: &mut NftSocket, record: &Record) -> Result<Own> {
        let mut own = Own::default();
        let mut in_maps: BTreeMap<String, Vec<Element>> = BTreeMap::new();
        for (map, claims) in rules::by_map(&record.claims) {
            let keys: Vec<_> = claims.iter().map(|claim| claim.key()).collect();
            let mut elements = Vec::with_capacity(claims.len());
            for (claim, element) in claims.into_iter().zip(socket.elements_at(&TABLE, &map, &keys)?) {
                match element {
                    Some(element) if element.comment.as_ref() == Some(&record.label) => {
                        own.claims.push(*claim);
                        elements.push(element);
                    }
                    other => own.owners.extend(other.and_then(|other| other.comment)),
                }
            }
            in_maps.insert(map.name, elements);
        }
        own.elements = rules::elements(&record.label, &own.claims, &record.jumps);
        for (set, elements) in &mut own.elements {
            match in_maps.remove(&set.name) {
                Some(found) => *elements = found,
                None => {
                    let keys: Vec<_> = elements.iter().map(|element| element.key.clone()).collect();
                    *elements = socket.elements_at(&TABLE, set, &keys)?.into_iter().flatten().collect();
                }
            }
        }
        Ok(own)
    }
}

/// A failure that leaves nothing behind must still be told with what could not be undone.
pub fn undone(error: Error, undoing: Result<()>) -> Error {
    match undoing {
        Ok(()) => error,
        Err(second) => Error::Several { errors: vec![error, second] },
    }
}
