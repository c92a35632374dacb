//! Taking records out of the tables, with everything that nobody else needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use common::nft::records;
use common::nft::{ChainInfo, Command, Element, NftSocket, Presence, RecordKey, RuleInfo, Set, Transaction, Value};
use common::{Error, Result};

use crate::heirs::{Rewrites, hand_over};
use crate::localnet::{self, Link};
use crate::record::{Record, Recorded};
use crate::remains::has_others_ports;
use crate::rules::{
    self, ATTACHMENTS, Claim, HOSTPORTS, LOOPBACK_PREFIX, MARK_PREFIX, MASQUERADE, Place, TABLE, is_kind,
};
use crate::stale;
use crate::transact::{came_too_late, transact};

/// More rules than a shared chain ever has.
const MOST_RULES: u32 = 8;

/// With so many records others' damage is looked for. Where there are more, that would take longer than all the rest of a DEL
/// (16 ms at 1,500).
const FEW_RECORDS: u32 = 100;

/// What came of a removal.
#[derive(Debug, Default)]
pub struct Removed {
    /// What was removed.
    pub records: Vec<Recorded>,
    /// Why route_localnet could not be given back. Whoever had it then keeps a record of that alone, so that the link stays
    /// guarded and the next call can try again.
    pub left_open: Option<Error>,
}

impl Removed {
    /// Forgets the flows that led to what is gone, and tells what could not be done.
    pub fn settle(self) -> Result<()> {
        stale::forget_after_del(&self.records);
        self.left_open.map_or(Ok(()), Err)
    }
}

/// Removes what `find` finds, all in one transaction; where nothing is found and nobody has anything any more, the table.
pub fn remove(
    socket: &mut NftSocket,
    mut find: impl FnMut(&mut NftSocket) -> Result<Vec<Recorded>>,
) -> Result<Removed> {
    let mut unanswered = None;
    transact(socket, |socket, generation| {
        let records = find(socket)?;
        if records.is_empty() {
            let attachments = socket.chain(&TABLE, ATTACHMENTS)?;
            if attachments.is_none() {
                localnet::close_unguarded(socket)?;
            }
            if attachments.is_none_or(|chain| chain.uses > 0) {
                return Ok(ControlFlow::Break(unanswered.take().unwrap_or_default()));
            }
        }
        let mut removal = Removal::of(socket, &records)?;
        // The sysctls first: whoever needs one anew between now and the transaction makes it fail, and whoever comes
        // after it finds the value of before and writes his own.
        let left_open = removal.restore_loopback().err();
        if left_open.is_some() {
            removal = Removal::of_all_but_links(socket, &records)?;
        }
        match socket.commit_at(&removal.transaction, generation) {
            Ok(()) => {
                let left_open = left_open.or(removal.keep_closed(socket).err());
                removal.keep_open(socket);
                Ok(ControlFlow::Break(Removed { records, left_open }))
            }
            // What has become of it is seen by whether the records are there.
            Err(error) if error.is_unanswered() && unanswered.is_none() => {
                unanswered = Some(Removed { records, left_open });
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
/// nothing else of ours does. What is there of records without a first line, and ports without a record, belongs to others.
fn chains_if_all(socket: &mut NftSocket, records: &[Recorded]) -> Result<Option<Vec<ChainInfo>>> {
    let attachments = socket.chain(&TABLE, ATTACHMENTS)?;
    // Somebody else may have rules that lead there.
    let most = records.len() + MOST_RULES as usize;
    if !attachments.is_some_and(|chain| usize::try_from(chain.uses).is_ok_and(|uses| uses <= most)) {
        return Ok(None);
    }
    let own: BTreeSet<RecordKey> = records.iter().map(|r| r.record.key).collect();
    if !socket.all_records(&TABLE, |key| !own.contains(key))?.is_empty() {
        return Ok(None);
    }
    let labels: BTreeSet<&str> = records.iter().map(|r| r.record.label.as_str()).collect();
    let chains = socket.chains(&TABLE)?;
    let are_all = !has_others_ports(socket, &chains, &labels)?;
    Ok(are_all.then_some(chains))
}

/// A transaction that removes, and the sysctls that go with it.
#[derive(Debug, Default)]
pub struct Removal {
    /// What is sent.
    pub transaction: Transaction,
    /// Links whose route_localnet nobody needs any more, with the value of before.
    loopback: Vec<(Link, String)>,
    /// The indices of links that others need it on.
    needed: BTreeSet<u32>,
    /// Handles of rules that are removed.
    rules: BTreeSet<u64>,
    /// How many elements are removed from each set.
    members: BTreeMap<String, usize>,
    /// Records that stay.
    pub rewrites: Rewrites,
}

impl Removal {
    /// Of these records, or of the table if they are all that there is.
    fn of(socket: &mut NftSocket, records: &[Recorded]) -> Result<Removal> {
        let mut removal = Removal::default();
        if let Some(chains) = chains_if_all(socket, records)? {
            removal.whole_table(&chains);
        } else {
            removal.records(socket, records, &[], &BTreeSet::new())?;
            removal.finish();
        }
        Ok(removal)
    }

    /// Of these records, of which remains what counts users of links.
    fn of_all_but_links(socket: &mut NftSocket, records: &[Recorded]) -> Result<Removal> {
        let mut removal = Removal::default();
        let rests: Vec<Record> = records.iter().filter_map(|recorded| recorded.record.only_links()).collect();
        let links: Vec<String> = rests.iter().flat_map(|rest| rest.jumps.clone()).collect();
        removal.records(socket, records, &links, &BTreeSet::new())?;
        removal.finish();
        for rest in rests {
            let (map, lines) = (records::map().name, rest.lines());
            removal.transaction.add_elements(&TABLE, &map, Presence::Exclusive, lines);
        }
        Ok(removal)
    }

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
        counts.retain(|name, _| !keep.contains(name));
        self.release_all(socket, records, &counts)
    }

    /// Removes what is shared if records, as many as are counted, were all its users.
    fn release_all(
        &mut self,
        socket: &mut NftSocket,
        records: &[Recorded],
        counts: &BTreeMap<String, u32>,
    ) -> Result<()> {
        let mut uncounted = false;
        for (name, count) in counts.iter().filter(|(name, _)| is_kind(name)) {
            if let Some(last) = self.last_use(socket, name, *count)? {
                uncounted |= !self.release_kind(socket, last)?;
            }
        }
        // Nobody else is on a container's own link.
        let own_links: BTreeSet<String> = records.iter().filter_map(|recorded| recorded.record.own_link()).collect();
        let mut has_uncounted = None;
        for (name, count) in counts.iter().filter(|(name, _)| !is_kind(name)) {
            let Some(last) = self.last_use(socket, name, *count)? else {
                self.needed.extend(rules::loopback_index(name));
                continue;
            };
            if !own_links.contains(name) {
                let known = match has_uncounted {
                    Some(known) => known,
                    None => *has_uncounted.insert(uncounted || has_uncounted_users(socket, records, counts)?),
                };
                if known {
                    continue;
                }
            }
            self.release(last);
        }
        Ok(())
    }

    /// A shared chain with its entrances, if `count` records were all its users.
    fn last_use(&self, socket: &mut NftSocket, name: &str, count: u32) -> Result<Option<LastUse>> {
        let Some(chain) = socket.chain(&TABLE, name)? else { return Ok(None) };
        if chain.uses > count + MOST_RULES {
            return Ok(None);
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
        let is_last = usize::try_from(chain.uses.saturating_sub(count)) == Ok(rules + entrances.len());
        let entrances = parent.map(|parent| (parent, entrances));
        Ok(is_last.then_some(LastUse { chain, entrances }))
    }

    /// Removes a kind of publication with its set; whether nobody has ports in it any more.
    fn release_kind(&mut self, socket: &mut NftSocket, last: LastUse) -> Result<bool> {
        let name = last.chain.name.clone();
        // Whoever has damaged records has made some users uncounted; their ports are there.
        if let Some(set) = rules::kind_set_of(&name)
            && socket.elements(&TABLE, &set)?.len() > self.members.get(&name).copied().unwrap_or_default()
        {
            return Ok(false);
        }
        self.release(last);
        self.transaction.push(Command::DeleteSet(TABLE, name));
        Ok(true)
    }

    fn release(&mut self, last: LastUse) {
        if let Some((parent, entrances)) = last.entrances {
            entrances.iter().for_each(|entrance| self.rule(parent, entrance.handle));
        }
        self.transaction.remove_chain(&TABLE, &last.chain.name);
        self.loopback.extend(loopback_of(&last.chain));
    }

    /// Takes keys of the record's ports out of the sets of all these kinds but its own, where nothing else of the transaction
    /// does.
    pub fn strays<'a>(
        &mut self,
        socket: &mut NftSocket,
        kinds: impl Iterator<Item = &'a str>,
        record: &Record,
    ) -> Result<()> {
        let strays = strays(socket, kinds, record)?;
        let deleted: BTreeSet<(&str, &[Value])> = self.transaction.commands().iter().flat_map(deleted).collect();
        let is_due = |set: &Set, element: &Element| !deleted.contains(&(set.name.as_str(), element.key.as_slice()));
        let due: Vec<_> = strays.into_iter().filter(|(set, element)| is_due(set, element)).collect();
        for (set, element) in due {
            self.transaction.delete_elements(&TABLE, &set.name, vec![element]);
        }
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
        let closed = self.loopback.iter().map(|(link, before)| localnet::close(link, before));
        Error::gather(closed.filter_map(Result::err).collect())
    }

    /// Looks once more at the links that were closed, now that nobody is their user: whoever had seen one before the
    /// transaction may have opened it again.
    fn keep_closed(&self, socket: &mut NftSocket) -> Result<()> {
        let closed = self.loopback.iter().map(|(link, before)| localnet::close_again(socket, link, before));
        Error::gather(closed.filter_map(Result::err).collect())
    }

    /// Opens links that others need open. Where that fails, what was to be removed is gone all the same.
    fn keep_open(&self, socket: &mut NftSocket) {
        for index in &self.needed {
            localnet::reopen(socket, *index);
        }
    }

    /// Takes [`Removal::restore_loopback`] back where the transaction has come to nothing.
    pub fn settle_loopback(&self, socket: &mut NftSocket) -> Result<()> {
        self.loopback.iter().try_for_each(|(link, before)| localnet::settle(socket, link, before))
    }
}

/// A shared chain that is in nobody's use any more.
struct LastUse {
    chain: ChainInfo,
    /// The rules that lead to it, and in which chain they are.
    entrances: Option<(&'static str, Vec<RuleInfo>)>,
}

/// Whether somebody has damaged a record, these aside: then what it counted in is in use. Lines of it are missing, or there are
/// ports in a kind of publication that no record counts in.
fn has_uncounted_users(socket: &mut NftSocket, records: &[Recorded], counts: &BTreeMap<String, u32>) -> Result<bool> {
    let leaving: BTreeSet<RecordKey> = records.iter().map(|recorded| recorded.record.key).collect();
    if socket.chain(&TABLE, ATTACHMENTS)?.is_some_and(|chain| chain.uses > FEW_RECORDS) {
        return Ok(false);
    }
    if !Recorded::all(socket, |key| !leaving.contains(key))?.iter().all(Recorded::is_whole) {
        return Ok(true);
    }
    let rules = socket.table_rules(&TABLE, &|chain| chain == HOSTPORTS || is_kind(chain))?;
    for chain in socket.chains(&TABLE)?.iter().filter(|chain| is_kind(&chain.name) && !counts.contains_key(&chain.name))
    {
        let entrances = rules.of(HOSTPORTS).iter().filter(|info| info.target() == Some(&chain.name)).count();
        let is_counted = usize::try_from(chain.uses) != Ok(rules.of(&chain.name).len() + entrances);
        if let Some(set) = rules::kind_set_of(&chain.name).filter(|_| !is_counted)
            && !socket.elements(&TABLE, &set)?.is_empty()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Keys of the record's ports in sets of kinds that aren't its own: those kinds' conditions would be asked, and not its own.
pub fn strays<'a>(
    socket: &mut NftSocket,
    kinds: impl Iterator<Item = &'a str>,
    record: &Record,
) -> Result<Vec<(Set, Element)>> {
    let mut asked = Vec::new();
    for kind in kinds.filter(|kind| !record.jumps.iter().any(|own| own == kind)) {
        let Some(set) = rules::kind_set_of(kind) else { continue };
        let keys = record.claims.iter().filter(|claim| claim.is_of_kind(kind)).map(Claim::key);
        asked.extend(keys.map(|key| (set.clone(), key)));
    }
    let table = TABLE;
    let places: Vec<_> = asked.iter().map(|(set, key)| (&table, set, key.as_slice())).collect();
    let found = socket.elements_in(&places)?;
    Ok(asked.into_iter().zip(found).filter_map(|((set, _), element)| Some((set, element?))).collect())
}

/// The set and the key of all that a command deletes.
fn deleted(command: &Command) -> Vec<(&str, &[Value])> {
    match command {
        Command::DeleteElements(_, set, elements) => {
            elements.iter().map(|element| (set.as_str(), element.key.as_slice())).collect()
        }
        _ => Vec::new(),
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
    /// The ports that the record claims and nobody else has.
    claims: Vec<Claim>,
    /// The record's elements as they are there, wherever they lead by now, as far as the port bears its label or none: whoever
    /// has emptied the maps by hand may have made room for another owner of the same port. Of a port that is in no map the
    /// keys remain, and would let past the conditions of whoever publishes it next.
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
                    Some(element) if element.comment.as_ref().is_none_or(|label| *label == record.label) => {
                        own.claims.push(*claim);
                        elements.push(element);
                    }
                    Some(other) => own.owners.extend(other.comment),
                    None => own.claims.push(*claim),
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
