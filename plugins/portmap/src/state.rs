//! The share in the kernel: put in with one transaction for both versions of IP, compared, taken out.

use std::ops::ControlFlow;

use common::nft::records;
use common::nft::{Chain, Command, NftSocket, Presence, Rule, SetData, Transaction};
use common::{Attachment, Call, Difference, Result, State};

use crate::conflict::{InTheWay, is_conflict, who_is_in_the_way};
use crate::record::{Record, Recorded};
use crate::removal::{self, Removal, entrances, undone};
use crate::rules::{self, Entrance, Share, Shared, TABLE, loopback_name};
use crate::transact::{came_too_late, transact};
use crate::{conflict, listeners, stale};

impl State for Share {
    fn apply(&self, _call: &Call) -> Result<()> {
        let mut socket = NftSocket::open()?;
        if self.claims.is_empty() {
            log::info!("{}: no mapping is for a version of IP that the container has", self.attachment);
            return remove_own(&mut socket, &self.attachment);
        }
        let before = self.put_in(&mut socket)?;
        if let Err(error) = self.open_loopback() {
            return Err(undone(error, remove_own(&mut socket, &self.attachment)));
        }
        conflict::tell_of_overlaps(&mut socket, self);
        stale::forget_after_add(&mut socket, &self.claims, before.as_ref());
        listeners::warn_of(&self.claims);
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
        differences.extend(self.own_differences(&mut socket, recorded.as_ref())?);
        Ok(differences)
    }
}

fn remove_own(socket: &mut NftSocket, own: &Attachment) -> Result<()> {
    removal::remove(socket, |socket| Ok(Recorded::read(socket, own)?.into_iter().collect())).map(drop)
}

fn object_of_record() -> String {
    format!("map {} of table {TABLE}", records::map().name)
}

impl Share {
    /// Puts the share in; gives what the attachment had before.
    fn put_in(&self, socket: &mut NftSocket) -> Result<Option<Recorded>> {
        let mut contested = false;
        transact(socket, |socket, generation| {
            let before = Recorded::read(socket, &self.attachment)?;
            let in_place = socket.is_in_place(&self.skeleton)?;
            if before.is_some() && in_place && self.own_differences(socket, before.as_ref())?.is_empty() {
                return Ok(ControlFlow::Break(before));
            }
            let in_the_way =
                if contested { who_is_in_the_way(socket, self, before.as_ref())? } else { InTheWay::default() };
            let mut removal = Removal::default();
            in_the_way.remove_orphans(&mut removal.transaction);
            let dead = in_the_way.dead.iter().map(|dead| &dead.recorded);
            let leaving: Vec<Recorded> = before.iter().chain(dead).cloned().collect();
            let keep: Vec<String> = self.shared_names().collect();
            removal.records(socket, &leaving, &keep)?;
            // Whoever has emptied the static chains has emptied the others too.
            let mend = before.is_some() || !in_place;
            self.add(socket, before.as_ref(), mend, &mut removal.transaction)?;
            removal.restore_loopback()?;
            let missing = if in_place { &[] } else { std::slice::from_ref(&self.skeleton) };
            let Err(error) = socket.commit_rebuilding(missing, &removal.transaction, Some(generation)) else {
                in_the_way.warn();
                return Ok(ControlFlow::Break(before));
            };
            removal.open_loopback_again()?;
            if !came_too_late(&error) {
                // Whoever was in the way of this very generation has been asked for already: it is something else.
                if contested || !is_conflict(&error) {
                    return Err(error.into());
                }
                contested = true;
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn shared_names(&self) -> impl Iterator<Item = String> {
        let names: Vec<String> = self.shared.iter().map(|s| s.chain.name.clone()).collect();
        names.into_iter().chain(self.loopback.iter().map(|link| loopback_name(link)))
    }

    fn add(
        &self,
        socket: &mut NftSocket,
        before: Option<&Recorded>,
        mend: bool,
        transaction: &mut Transaction,
    ) -> Result<()> {
        for shared in &self.shared {
            add_shared(socket, shared, mend, transaction)?;
        }
        if let Some(link) = &self.loopback {
            // Read after the generation's number: see `removal::remove`.
            let value = removal::read_loopback(link)?.unwrap_or_else(|| "0".into());
            add_shared(socket, &rules::loopback(link, &value), mend, transaction)?;
        }
        let record = self.record_since(before);
        transaction.add_elements(&TABLE, &records::map().name, Presence::Exclusive, record.lines());
        for (set, elements) in record.elements() {
            // In a map, somebody else's claim must fail; in the sets beside it there is nobody's claim.
            let presence = if set.data == SetData::None { Presence::Shared } else { Presence::Exclusive };
            transaction.add_elements(&TABLE, &set.name, presence, elements);
        }
        Ok(())
    }

    /// The record, with the time of the first ADD; the boot may have been unknown then.
    fn record_since(&self, before: Option<&Recorded>) -> Record {
        let mut record = self.record();
        if let (Some(first), Some(origin)) = (before.and_then(|b| b.record.origin.as_ref()), &mut record.origin) {
            origin.since = first.since;
            if first.boot.is_empty() {
                origin.boot.clear();
            }
        }
        record
    }

    /// route_localnet is on when ADD answers; its guard is in place before.
    fn open_loopback(&self) -> Result<()> {
        self.loopback.iter().try_for_each(|link| removal::write_loopback(link, "1").map(drop))
    }
}

/// Adds what attachments share, if it isn't there. If it is, `mend` looks whether it is whole.
fn add_shared(socket: &mut NftSocket, shared: &Shared, mend: bool, transaction: &mut Transaction) -> Result<()> {
    let name = &shared.chain.name;
    let found = socket.chain(&TABLE, name)?;
    if found.is_some() && !mend {
        return Ok(());
    }
    if let Some(set) = &shared.set {
        transaction.push(Command::AddSet(TABLE, set.clone()));
    }
    if found.is_none() {
        transaction.add_chain(&TABLE, shared.chain.clone());
    } else if !shared_chain_differences(socket, shared)?.is_empty() {
        transaction.push(Command::FlushChain(TABLE, name.clone()));
        transaction.push(Command::AddRules(TABLE, shared.chain.clone()));
    }
    match &shared.entrance {
        Entrance::Element(set, element) => {
            transaction.add_elements(&TABLE, set, Presence::Shared, vec![element.clone()]);
        }
        Entrance::Rule(parent, position, rule) => {
            if found.is_none() || entrances(socket.rules(&TABLE, parent)?, name).is_empty() {
                transaction.add_rule(&TABLE, parent, *position, rule.clone());
            }
        }
    }
    Ok(())
}

/// What CHECK compares beside the static part of the table. The comment of a chain that counts is its own.
fn shared_chain_differences(socket: &mut NftSocket, shared: &Shared) -> Result<Vec<Difference>> {
    socket.chain_differences(&TABLE, &Chain { comment: None, ..shared.chain.clone() })
}

impl Share {
    /// Where the attachment's own share, and what it shares with others, isn't as planned.
    pub(crate) fn own_differences(
        &self,
        socket: &mut NftSocket,
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
        let record = self.record_since(recorded);
        let lines = record.lines();
        for line in recorded.iter().flat_map(|r| r.lines.iter().skip(lines.len())) {
            differences.push(Difference::other(object_of_record(), "no such line", line.to_string()));
        }
        for (set, elements) in [(records::map(), lines)].into_iter().chain(record.elements()) {
            differences.extend(socket.element_differences(&TABLE, &set, &elements)?);
        }
        Ok(differences)
    }
}

/// Packets must come to the chain by exactly its rule.
fn entrance_difference(socket: &mut NftSocket, shared: &Shared) -> Result<Option<Difference>> {
    let Entrance::Rule(parent, _, wanted) = &shared.entrance else { return Ok(None) };
    let object = format!("rule of chain {parent} of table {TABLE}");
    let found = entrances(socket.rules(&TABLE, parent)?, &shared.chain.name);
    let same = |rule: &Rule| rule == wanted || rule.to_string() == wanted.to_string();
    Ok(match found.as_slice() {
        [] => Some(Difference::missing(object, wanted.to_string())),
        [only] if only.rule.as_ref().is_some_and(same) => None,
        [other, ..] => Some(Difference::other(object, wanted.to_string(), other.text.clone())),
    })
}

fn loopback_differences(socket: &mut NftSocket, link: &str) -> Result<Vec<Difference>> {
    let shared = rules::loopback(link, "0");
    let mut differences = shared_chain_differences(socket, &shared)?;
    let guard = [rules::loopback_element(link)];
    differences.extend(socket.element_differences(&TABLE, &rules::loopback_set(), &guard)?);
    let value = removal::read_loopback(link)?.unwrap_or_else(|| "no such link".into());
    if value != "1" {
        differences.push(Difference::other(format!("sysctl net.ipv4.conf.{link}.route_localnet"), "1", value));
    }
    Ok(differences)
}
