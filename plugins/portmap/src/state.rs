//! The share in the kernel: put in with one transaction for both versions of IP, compared, taken out.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use common::nft::records;
use common::nft::{
    Chain, Command, IpVersion, NftSocket, Presence, RecordKey, RuleInfo, Table, TableRules, Transaction,
};
use common::{Attachment, Call, Difference, Result, State};
use nix::errno::Errno;

use crate::conflict::{InTheWay, is_conflict, who_is_in_the_way};
use crate::foreign::{self, Filled};
use crate::heirs::{self, Heir, add_elements};
use crate::localnet::Link;
use crate::record::{Record, Recorded};
use crate::removal::{self, Removal, Removed, entrances, undone};
use crate::rules::{self, Claim, Entrance, HOSTPORTS, Place, Share, Shared, TABLE, loopback_name};
use crate::transact::{came_too_late, transact};
use crate::{conflict, listeners, localnet, stale};

impl State for Share {
    fn apply(&self, _call: &Call) -> Result<()> {
        let mut socket = NftSocket::open()?;
        if self.claims.is_empty() {
            if self.is_wanted {
                log::warn!(
                    "nothing is published: {} has no address in prevResult that a mapping is for",
                    self.attachment
                );
            }
            return remove_own(&mut socket, &self.attachment)?.settle();
        }
        let mut found = self.put_in(&mut socket)?;
        // On when ADD answers; its guard is in place before.
        if let Err(error) = self.loopback.iter().try_for_each(localnet::open) {
            return Err(undone(error, remove_own(&mut socket, &self.attachment).and_then(Removed::settle)));
        }
        match conflict::settle_overlaps(&mut socket, self, &found.specific) {
            Ok(taken) => found.gone.extend(taken),
            Err(error) => log::warn!("whether the dead have ports of {} at one address: {error}", self.attachment),
        }
        stale::forget_after_add(&mut socket, &self.claims, &found.gone);
        listeners::warn_of(&self.claims);
        if let Some(address) = self.unreachable {
            log::warn!(
                "127.0.0.1 leads to no port of {}: there is no route to {address} (its bridge may be down, or without its \
                 address as yet); an ADD that finds one opens it, of this container for good",
                self.attachment
            );
        }
        Ok(())
    }

    fn differences(&self, _call: &Call) -> Result<Vec<Difference>> {
        let mut socket = NftSocket::open()?;
        let recorded = Recorded::read(&mut socket, &self.attachment)?;
        if self.claims.is_empty() {
            let told =
                |r: Recorded| Difference::other(object_of_record(), "nothing", format!("ports of {}", r.record.label));
            return Ok(recorded.map(told).into_iter().collect());
        }
        let mut differences = socket.differences(&self.skeleton)?;
        differences.extend(foreign::differences(&mut socket, &self.skeleton)?);
        differences.extend(self.own_differences(&mut socket, recorded.as_ref())?);
        Ok(differences)
    }
}

/// Removes what the attachment has.
pub fn remove_own(socket: &mut NftSocket, own: &Attachment) -> Result<Removed> {
    removal::remove(socket, |socket| {
        let whole = Recorded::read(socket, own)?;
        let found = if whole.is_some() { whole } else { Recorded::headless(socket, own)? };
        Ok(found.into_iter().collect())
    })
}

fn object_of_record() -> String {
    format!("map {} of table {TABLE}", records::map().name)
}

/// What was there when a share was put in.
#[derive(Default)]
struct Found {
    /// What the attachment had before, and what the dead had that were in the way.
    gone: Vec<Recorded>,
    /// The versions of IP of which there were ports at one address.
    specific: Vec<IpVersion>,
}

impl Found {
    fn of(before: Option<Recorded>, in_the_way: InTheWay, filled: &[Filled]) -> Found {
        let leaving: Vec<Recorded> = before.into_iter().chain(in_the_way.leaving().cloned()).collect();
        let has_specific = |version: &IpVersion| {
            let mut kinds = filled.iter().flat_map(|chain| &chain.own).filter_map(RuleInfo::target);
            kinds.any(|kind| rules::is_kind_of(kind, *version, true))
        };
        let specific = IpVersion::ALL.into_iter().filter(has_specific).collect();
        Found { gone: leaving, specific }
    }
}

impl Share {
    /// Puts the share in.
    fn put_in(&self, socket: &mut NftSocket) -> Result<Found> {
        let (mut contested, mut lacking, mut unanswered) = (false, false, None);
        transact(socket, |socket, generation| {
            let before = match contested {
                true => Recorded::remains(socket, &self.attachment)?,
                false => Recorded::read(socket, &self.attachment)?,
            };
            let in_place = self.is_table_in_place(socket, before.is_some())?;
            let (filled, rules) = Filled::all(socket, &|chain| self.needs(chain))?;
            let in_place = in_place && !lacking && self.static_rules_are_in_place(&rules);
            let is_clean = filled.iter().all(|chain| chain.foreign.is_empty());
            if before.is_some() && in_place && is_clean && self.is_as_planned(socket, before.as_ref(), &filled)? {
                let found = Found::of(before, InTheWay::default(), &filled);
                return Ok(ControlFlow::Break(unanswered.take().unwrap_or(found)));
            }
            let in_the_way =
                if contested { who_is_in_the_way(socket, self, before.as_ref())? } else { InTheWay::default() };
            let mut removal = self.removal(socket, before.as_ref(), &in_the_way, &filled)?;
            // Whoever has emptied the static chains has emptied the others too.
            let mend = before.is_some() || !in_place;
            let seen = Seen { filled: &filled, rules: &rules, mend };
            self.add(socket, before.as_ref(), &seen, &in_the_way.kept, &mut removal.transaction)?;
            removal.finish();
            removal.restore_loopback()?;
            let missing = if in_place { &[] } else { std::slice::from_ref(&self.skeleton) };
            let Err(error) = socket.commit_rebuilding(missing, &removal.transaction, Some(generation)) else {
                in_the_way.warn();
                filled.iter().for_each(Filled::warn);
                if let Some(error) = (!in_place).then(|| localnet::close_unguarded(socket)).and_then(Result::err) {
                    log::warn!("route_localnet may be on without a guard somewhere: {error}");
                }
                let found = Found::of(before, in_the_way, &filled);
                return Ok(ControlFlow::Break(unanswered.take().unwrap_or(found)));
            };
            // What has become of it is seen by whether the share is there.
            if error.is_unanswered() && unanswered.is_none() {
                unanswered = Some(Found::of(before, in_the_way, &filled));
                return Ok(ControlFlow::Continue(()));
            }
            removal.settle_loopback(socket)?;
            match error.errno() {
                _ if came_too_late(&error) => {}
                // Somebody has taken a set away, which is put in with all else that is static.
                Some(Errno::ENOENT) if !lacking => lacking = true,
                // Whoever was in the way of this very generation has been asked for already: then it is something else.
                _ if is_conflict(&error) && !contested => contested = true,
                _ => return Err(error.into()),
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Whether the static part of the table is there and in effect. Of a container that is added anew `all` is asked; else
    /// only what can be counted.
    fn is_table_in_place(&self, socket: &mut NftSocket, all: bool) -> Result<bool> {
        Ok(socket.is_in_place(&self.skeleton)?
            && (!all
                || socket.differences(&self.skeleton)?.is_empty()
                    && foreign::hooks(socket, &self.skeleton)?.is_empty()))
    }

    /// The chains whose rules are the table's own.
    fn static_chains(&self) -> impl Iterator<Item = &Chain> {
        self.skeleton.chains.iter().filter(|chain| !chain.is_filled_by_attachments())
    }

    /// Whether packets for its ports come to this chain on their way.
    fn needs(&self, chain: &str) -> bool {
        self.shared.iter().map(|shared| &shared.chain).chain(self.static_chains()).any(|own| own.name == chain)
    }

    /// Whether nobody has changed any of the static chains.
    fn static_rules_are_in_place(&self, rules: &TableRules) -> bool {
        self.static_chains().all(|chain| rules.look_like(chain))
    }

    /// Takes out what the attachment had, what is in the way, and what is not ours.
    fn removal(
        &self,
        socket: &mut NftSocket,
        before: Option<&Recorded>,
        in_the_way: &InTheWay,
        filled: &[Filled],
    ) -> Result<Removal> {
        let mut removal = Removal::default();
        for Filled { chain, foreign, .. } in filled {
            foreign.iter().for_each(|info| removal.rule(chain, info.handle));
        }
        let leaving: Vec<Recorded> = before.into_iter().chain(in_the_way.leaving()).cloned().collect();
        let keep: Vec<String> = self.shared_names().collect();
        let taken = self.claims.iter().map(Claim::place).collect();
        removal.records(socket, &leaving, &keep, &taken)?;
        if !leaving.is_empty() {
            removal.strays(socket, kinds(filled), &self.record().without(&in_the_way.kept))?;
        }
        for keeper in &in_the_way.keepers {
            removal.rewrites.change(keeper, |heirs| {
                if heirs.iter().all(|heir| heir.key != RecordKey::of(&self.attachment)) {
                    heirs.push(Heir::of(&self.attachment));
                }
            });
        }
        Ok(removal)
    }

    fn shared_names(&self) -> impl Iterator<Item = String> {
        let names: Vec<String> = self.shared.iter().map(|s| s.chain.name.clone()).collect();
        names.into_iter().chain(self.loopback.iter().map(|link| loopback_name(link.index)))
    }

    fn add(
        &self,
        socket: &mut NftSocket,
        before: Option<&Recorded>,
        seen: &Seen<'_>,
        kept: &BTreeSet<Place>,
        transaction: &mut Transaction,
    ) -> Result<()> {
        let names: Vec<String> = self.shared_names().collect();
        let asked: Vec<(Table, &str)> = names.iter().map(|name| (TABLE, name.as_str())).collect();
        let is_there: Vec<bool> = socket.chains_at(&asked)?.iter().map(Option::is_some).collect();
        for (shared, is_there) in self.shared.iter().zip(&is_there) {
            add_shared(socket, shared, *is_there, seen, transaction)?;
        }
        if let (Some(link), Some(is_there)) = (&self.loopback, is_there.last()) {
            // Read after the generation's number: see `removal::remove`. What the chain says counts, if there is one.
            let before = if *is_there { String::new() } else { localnet::before(link)? };
            add_shared(socket, &rules::loopback(link, &before), *is_there, seen, transaction)?;
        }
        let mut record = self.record_since(before);
        let owned = record.without(kept);
        // Other ports than before may be ones that nobody waits for.
        record.heirs = heirs::waiting_for(socket, &record.heirs, &owned.claims)?;
        transaction.add_elements(&TABLE, &records::map().name, Presence::Exclusive, record.lines());
        add_elements(transaction, &owned);
        Ok(())
    }

    /// The record, with the time of the first ADD; the boot may have been unknown then.
    fn record_since(&self, before: Option<&Recorded>) -> Record {
        let mut record = self.record();
        record.heirs = before.map(|b| b.record.heirs.clone()).unwrap_or_default();
        if let (Some(first), Some(origin)) = (before.and_then(|b| b.record.origin.as_ref()), &mut record.origin) {
            origin.since = first.since;
            if first.boot.is_empty() {
                origin.boot.clear();
            }
        }
        record
    }
}

/// What an ADD has seen of the table's rules.
struct Seen<'a> {
    filled: &'a [Filled],
    rules: &'a TableRules,
    /// Whether there may be more that is broken than rules.
    mend: bool,
}

/// Adds what attachments share, if it isn't there. If it is, its rules must be whole, or else somebody has emptied it.
fn add_shared(
    socket: &mut NftSocket,
    shared: &Shared,
    is_there: bool,
    seen: &Seen<'_>,
    transaction: &mut Transaction,
) -> Result<()> {
    let name = &shared.chain.name;
    let mend = seen.mend || !seen.rules.look_like(&shared.chain);
    if !is_there || mend {
        if let Some(set) = &shared.set {
            transaction.push(Command::AddSet(TABLE, set.clone()));
        }
        if !is_there {
            transaction.add_chain(&TABLE, shared.chain.clone());
        } else if !shared_chain_differences(socket, shared)?.is_empty() {
            transaction.push(Command::FlushChain(TABLE, name.clone()));
            transaction.push(Command::AddRules(TABLE, shared.chain.clone()));
        }
    }
    let Some(Entrance { parent, position, rule }) = &shared.entrance else { return Ok(()) };
    let is_led_to = seen.filled.iter().any(|filled| filled.chain == *parent && filled.leads_to(name));
    // Another call may just be putting it in: a second one would only be in the way.
    if !is_led_to && (!is_there || !Filled::read(socket, parent)?.leads_to(name)) {
        transaction.add_rule(&TABLE, parent, *position, rule.clone());
    }
    Ok(())
}

/// What CHECK compares beside the static part of the table. The comment of a chain that counts is its own.
fn shared_chain_differences(socket: &mut NftSocket, shared: &Shared) -> Result<Vec<Difference>> {
    socket.chain_differences(&TABLE, &Chain { comment: None, ..shared.chain.clone() })
}

impl Share {
    /// Whether nothing of [`Share::own_differences`] is there. The ports are looked up only if the record has the same.
    fn is_as_planned(&self, socket: &mut NftSocket, recorded: Option<&Recorded>, filled: &[Filled]) -> Result<bool> {
        let record = self.record_since(recorded);
        Ok(self.record_differences(socket, &record, recorded)?.is_empty()
            && self.port_differences(socket, &record, filled)?.is_empty())
    }

    /// Where the attachment's own share, and what it shares with others, isn't as planned.
    fn own_differences(&self, socket: &mut NftSocket, recorded: Option<&Recorded>) -> Result<Vec<Difference>> {
        // By which trace the container was found at its ADD is no state: links get other names, and paths lead to one place.
        let origin = recorded.and_then(|r| r.record.origin.clone()).unwrap_or_else(|| self.origin.clone());
        let record = Record { origin: Some(origin), ..self.record_since(recorded) };
        let mut differences = self.record_differences(socket, &record, recorded)?;
        let filled = [Filled::read(socket, HOSTPORTS)?];
        differences.extend(self.port_differences(socket, &record, &filled)?);
        Ok(differences)
    }

    /// The part of the lines, and of what they count in.
    fn record_differences(
        &self,
        socket: &mut NftSocket,
        record: &Record,
        recorded: Option<&Recorded>,
    ) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        for shared in &self.shared {
            differences.extend(shared_chain_differences(socket, shared)?);
            differences.extend(entrance_difference(socket, shared)?);
        }
        if let Some(link) = &self.loopback {
            differences.extend(loopback_differences(socket, link)?);
        }
        let lines = record.lines();
        let wanted: BTreeSet<_> = lines.iter().map(|line| &line.key).collect();
        for line in recorded.iter().flat_map(|r| &r.lines).filter(|line| !wanted.contains(&line.key)) {
            differences.push(Difference::other(object_of_record(), "no such line", line.to_string()));
        }
        differences.extend(socket.element_differences(&TABLE, &records::map(), &lines)?);
        Ok(differences)
    }

    /// The part of the ports, without those that it waits for.
    fn port_differences(&self, socket: &mut NftSocket, record: &Record, filled: &[Filled]) -> Result<Vec<Difference>> {
        let mut differences = element_differences(socket, record)?;
        let waiting = if differences.is_empty() { BTreeSet::new() } else { heirs::waiting(socket, self)? };
        let without_those = (!waiting.is_empty()).then(|| record.without(&waiting));
        if let Some(record) = &without_those {
            differences = element_differences(socket, record)?;
        }
        let record = without_those.as_ref().unwrap_or(record);
        for (set, stray) in removal::strays(socket, kinds(filled), record)? {
            let object = format!("element of set {} of table {TABLE}", set.name);
            differences.push(Difference::other(object, "no port of another kind", stray.to_string()));
        }
        Ok(differences)
    }
}

/// The kinds of publication that packets come to.
fn kinds(filled: &[Filled]) -> impl Iterator<Item = &str> {
    filled.iter().filter(|chain| chain.chain == HOSTPORTS).flat_map(|chain| &chain.own).filter_map(RuleInfo::target)
}

fn element_differences(socket: &mut NftSocket, record: &Record) -> Result<Vec<Difference>> {
    let mut differences = Vec::new();
    for (set, elements) in record.elements() {
        differences.extend(socket.element_differences(&TABLE, &set, &elements)?);
    }
    Ok(differences)
}

/// Packets must come to the chain by exactly its rule.
fn entrance_difference(socket: &mut NftSocket, shared: &Shared) -> Result<Option<Difference>> {
    let Some(Entrance { parent, rule: wanted, .. }) = &shared.entrance else { return Ok(None) };
    let found = entrances(socket.rules(&TABLE, parent)?, &shared.chain.name);
    // One too many, and one of another form, is somebody else's.
    let is_there = found.iter().any(|info| info.is(wanted));
    let missing = || Difference::missing(format!("rule of chain {parent} of table {TABLE}"), wanted.to_string());
    Ok((!is_there).then(missing))
}

fn loopback_differences(socket: &mut NftSocket, link: &Link) -> Result<Vec<Difference>> {
    let mut differences = shared_chain_differences(socket, &rules::loopback(link, "0"))?;
    let Link { name: link, .. } = link;
    let value = localnet::read(link)?.unwrap_or_else(|| "no such link".into());
    if value != "1" {
        differences.push(Difference::other(format!("sysctl net.ipv4.conf.{link}.route_localnet"), "1", value));
    }
    Ok(differences)
}
