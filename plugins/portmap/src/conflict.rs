//! A port that somebody else has: who, and whether they are still there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::nft::{CommitError, Element, IpVersion, NftSocket, RecordKey};
use common::{Attachment, Error, Result};
use nix::errno::Errno;

use crate::liveness::why_dead;
use crate::origin::id_of;
use crate::record::{Record, Recorded};
use crate::rules::{self, Claim, Place, Share, TABLE};
use crate::{remains, removal, stale};

/// An owner that is certainly gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// What it owns.
    pub recorded: Recorded,
    /// Why it is gone.
    why: String,
}

impl Dead {
    /// Says in the log what was taken.
    fn warn(&self) {
        log::warn!("the host ports of {} were taken from it: {}", self.recorded.record.label, self.why);
    }
}

/// What an ADD may take out of its way: the living's is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InTheWay {
    /// They go with all they own.
    pub dead: Vec<Dead>,
    /// Ports that are in no record of the owner they name, or name none: as records without lines.
    pub orphans: Vec<Recorded>,
    /// What other attachments of the same container have, and keep as long as they are there.
    pub kept: BTreeSet<Place>,
    /// These attachments.
    pub keepers: Vec<Recorded>,
}

impl InTheWay {
    /// What goes.
    pub fn leaving(&self) -> impl Iterator<Item = &Recorded> {
        self.dead.iter().map(|dead| &dead.recorded).chain(&self.orphans)
    }

    /// Says in the log what was taken.
    pub fn warn(&self) {
        self.dead.iter().for_each(Dead::warn);
        for keeper in self.keepers.iter().map(|keeper| &keeper.record.label).collect::<BTreeSet<_>>() {
            log::info!("ports stay {keeper}'s, of the same container, as long as that is there");
        }
        self.orphans.iter().for_each(warn_of_orphan);
    }
}

fn warn_of_orphan(orphan: &Recorded) {
    let Record { label, claims, .. } = &orphan.record;
    let named = if label.is_empty() { "nobody" } else { label };
    log::warn!("ports replaced because they are in nobody's record: {}, of {named}", claims.len());
}

/// Whether a transaction was refused because a key was there, with whatever data.
pub fn is_conflict(refused: &CommitError) -> bool {
    // Kernels before 5.? answer EBUSY for a key with other data.
    matches!(refused.errno(), Some(Errno::EEXIST | Errno::EBUSY))
}

/// Who or what has the ports of the share, beside what the attachment had `before`. A port of the dead for which somebody
/// living waits goes to that one even so, who had nothing of it until then.
///
/// Only after a conflict are the maps asked: in the way of an ADD that succeeds there is no such question.
pub fn who_is_in_the_way(socket: &mut NftSocket, share: &Share, before: Option<&Recorded>) -> Result<InTheWay> {
    let mut found = InTheWay::default();
    let mut owners = Owners::beside(share);
    // Whose elements go with their records.
    let mut leaving = Places::default();
    before.iter().for_each(|own| leaving.add(&own.record));
    for (map, claims) in rules::by_map(&share.claims) {
        let keys: Vec<_> = claims.iter().map(|claim| claim.key()).collect();
        let elements = socket.elements_at(&TABLE, &map, &keys)?;
        for (claim, element) in claims.into_iter().zip(elements).filter_map(|(c, e)| Some((c, e?))) {
            if leaving.have(claim, &element) {
                continue;
            }
            match owners.of(socket, claim, &element)? {
                Owner::Gone(recorded, why) => {
                    let dead = Dead { recorded: recorded.clone(), why: why.to_owned() };
                    if let Some(heir) = owners.living_heir(socket, claim, &dead.recorded.record)? {
                        let gone = BTreeMap::from([(dead.recorded.record.key, dead)]);
                        stale::forget_after_del(&take_from(socket, &owners, &gone, &[])?);
                        return Err(taken(claim, &heir));
                    }
                    leaving.add(&dead.recorded.record);
                    found.dead.push(dead);
                }
                Owner::Living(owner) if is_of_container(&owner.record, &share.attachment.container) => {
                    found.kept.insert(claim.place());
                    if found.keepers.iter().all(|keeper| keeper.record.key != owner.record.key) {
                        found.keepers.push(owner.clone());
                    }
                }
                Owner::Nobody => remains::gather(&mut found.orphans, &element),
                Owner::Living(owner) => return Err(taken(claim, &owner.record)),
            }
        }
    }
    remains::find_all_kinds(socket, &mut found.orphans)?;
    Ok(found)
}

/// The ports of some records, by their labels.
#[derive(Default)]
struct Places(BTreeMap<String, BTreeSet<Place>>);

impl Places {
    fn add(&mut self, record: &Record) {
        self.0.entry(record.label.clone()).or_default().extend(record.claims.iter().map(Claim::place));
    }

    /// Whether the element at this claim's key is one of them, wherever it leads.
    fn have(&self, claim: &Claim, element: &Element) -> bool {
        let of_owner = element.comment.as_ref().and_then(|label| self.0.get(label));
        of_owner.is_some_and(|places| places.contains(&claim.place()))
    }
}

/// What is known of the owner that an element names.
enum Owner<'a> {
    /// No record of it has this port.
    Nobody,
    /// It is certainly gone, and why.
    Gone(&'a Recorded, &'a str),
    /// It may be there.
    Living(&'a Recorded),
}

/// The owners of elements in a share's way. Each is looked up once: a single one may have tens of thousands of ports.
struct Owners<'a> {
    share: &'a Share,
    /// The addresses that the share's ports lead to.
    targets: BTreeSet<IpAddr>,
    /// By their labels; none if there is no record.
    known: BTreeMap<String, Option<Known>>,
}

/// An owner that was looked up.
struct Known {
    recorded: Recorded,
    /// Its ports, and the address that each leads to.
    places: BTreeMap<Place, IpAddr>,
    /// Why it is certainly gone, by the addresses that were asked for.
    gone: BTreeMap<IpAddr, Option<String>>,
}

impl<'a> Owners<'a> {
    fn beside(share: &'a Share) -> Owners<'a> {
        let targets = share.claims.iter().map(|claim| claim.target).collect();
        Owners { share, targets, known: BTreeMap::new() }
    }

    /// The owner of an element at a claim's key.
    fn of(&mut self, socket: &mut NftSocket, claim: &Claim, element: &Element) -> Result<Owner<'_>> {
        let Some(label) = &element.comment else { return Ok(Owner::Nobody) };
        if !self.known.contains_key(label) {
            let known = Recorded::of_label(socket, label)?.map(Known::of);
            self.known.insert(label.clone(), known);
        }
        let (share, targets) = (self.share, &self.targets);
        let Some(Some(known)) = self.known.get_mut(label) else { return Ok(Owner::Nobody) };
        let Some(target) = known.places.get(&claim.place()).copied() else { return Ok(Owner::Nobody) };
        if !known.gone.contains_key(&target) {
            let why = why_gone(share, targets, &known.recorded.record, target)?;
            known.gone.insert(target, why);
        }
        Ok(match known.gone.get(&target) {
            Some(Some(why)) => Owner::Gone(&known.recorded, why),
            _ => Owner::Living(&known.recorded),
        })
    }

    /// Who is alive, of another container, and waits for a dead one's port.
    fn living_heir(&self, socket: &mut NftSocket, claim: &Claim, dead: &Record) -> Result<Option<Record>> {
        let own = &self.share.attachment.container;
        for heir in &dead.heirs {
            let Some(Recorded { record, .. }) = Recorded::read_key(socket, heir.key)? else { continue };
            let Some(theirs) = record.claims.iter().find(|c| c.place() == claim.place()) else { continue };
            let is_dead = || why_gone(self.share, &self.targets, &record, theirs.target).map(|why| why.is_some());
            if !is_of_container(&record, own) && !is_dead()? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }
}

impl Known {
    fn of(recorded: Recorded) -> Known {
        let mut places = BTreeMap::new();
        for claim in &recorded.record.claims {
            places.entry(claim.place()).or_insert(claim.target);
        }
        Known { recorded, places, gone: BTreeMap::new() }
    }
}

/// Why the owner of ports that lead to `theirs` is certainly gone, where the share's lead to `targets`. One container may have
/// one address on two networks.
fn why_gone(share: &Share, targets: &BTreeSet<IpAddr>, record: &Record, theirs: IpAddr) -> Result<Option<String>> {
    let own = &share.attachment.container;
    if targets.contains(&theirs) && !is_of_container(record, own) && !Attachment::is_label_of(&record.label, own) {
        return Ok(Some(format!("its address {theirs} is {}'s now", share.attachment)));
    }
    match &record.origin {
        Some(origin) => why_dead(origin),
        None => Ok(None),
    }
}

/// Whether the record is certainly of this container: neither of two whose names are cut to the same may get the other's ports.
fn is_of_container(record: &Record, container: &str) -> bool {
    match record.label.split('/').nth(1) {
        Some(named) if named == container => true,
        _ => record.origin.as_ref().is_some_and(|origin| origin.id.is_some() && origin.id == id_of(container)),
    }
}

fn taken(claim: &Claim, record: &Record) -> Error {
    let owner = match record.label.split('/').collect::<Vec<_>>().as_slice() {
        [network, container, ifname] => {
            // Behind a `~` are the digits that tell labels apart whose names were cut.
            let network = network.rsplit_once('~').map_or(*network, |(name, _)| name);
            format!("container {container}, interface {ifname}, of network {network}")
        }
        _ => record.label.clone(),
    };
    let since = record.origin.as_ref().map(|o| format!(" since {}", o.since())).unwrap_or_default();
    Error::PortTaken { claim: claim.to_string(), owner: format!("{owner}{since}") }
}

/// Same ports at one address and at all: the one at one address goes first, whoever came first. It is taken from those who
/// are certainly gone, and removed where it is in nobody's record, or else these would go before a container that is there;
/// the log names the others.
///
/// `specific` are those versions of IP of which there are ports at one address: there is one look through these, and
/// mostly there are none. Gives what was taken.
pub fn settle_overlaps(socket: &mut NftSocket, share: &Share, specific: &[IpVersion]) -> Result<Vec<Recorded>> {
    if log::log_enabled!(log::Level::Info)
        && let Err(error) = tell_of_wildcards(socket, share)
    {
        log::info!("{error}");
    }
    let mut owners = Owners::beside(share);
    let mut gone: BTreeMap<RecordKey, Dead> = BTreeMap::new();
    let mut unowned: Vec<Claim> = Vec::new();
    let everywhere: Vec<Claim> = share.claims.iter().filter(|c| c.address.is_none()).copied().collect();
    for version in specific {
        let own: BTreeMap<_, _> = everywhere.iter().filter(|c| c.version() == *version).map(|c| (c.key(), c)).collect();
        if own.is_empty() {
            continue;
        }
        for element in socket.elements(&TABLE, &rules::ports_map(*version, true))? {
            if !element.key.get(1..).is_some_and(|key| own.contains_key(key)) {
                continue;
            }
            let Some(theirs) = Claim::of_element(&element) else { continue };
            match owners.of(socket, &theirs, &element)? {
                Owner::Gone(recorded, why) => {
                    let dead = || Dead { recorded: recorded.clone(), why: why.to_owned() };
                    gone.entry(recorded.record.key).or_insert_with(dead);
                }
                Owner::Living(other) if other.record.key != RecordKey::of(&share.attachment) => {
                    let (other, own) = (&other.record.label, share.attachment.label());
                    log::info!("{theirs} stays {other}'s; at all other addresses the port is {own}'s");
                }
                Owner::Living(_) => {}
                Owner::Nobody => unowned.push(theirs),
            }
        }
    }
    take_from(socket, &owners, &gone, &unowned)
}

/// Removes what the dead own, and ports that are in nobody's record; whoever has been added anew since then is alive.
fn take_from(
    socket: &mut NftSocket,
    owners: &Owners<'_>,
    gone: &BTreeMap<RecordKey, Dead>,
    unowned: &[Claim],
) -> Result<Vec<Recorded>> {
    if gone.is_empty() && unowned.is_empty() {
        return Ok(Vec::new());
    }
    let removed = removal::remove(socket, |socket| {
        let mut dead = Vec::new();
        for key in gone.keys() {
            let Some(recorded) = Recorded::read_key(socket, *key)? else { continue };
            let theirs: BTreeSet<IpAddr> = recorded.record.claims.iter().map(|claim| claim.target).collect();
            let mut why = None;
            for address in theirs {
                why = why.or(why_gone(owners.share, &owners.targets, &recorded.record, address)?);
            }
            dead.extend(why.map(|_| recorded));
        }
        dead.extend(still_unowned(socket, owners.share, unowned)?);
        Ok(dead)
    })?;
    for recorded in &removed.records {
        match gone.get(&recorded.record.key) {
            _ if recorded.lines.is_empty() => warn_of_orphan(recorded),
            dead => dead.into_iter().for_each(Dead::warn),
        }
    }
    if let Some(error) = removed.left_open {
        log::warn!("{error}");
    }
    Ok(removed.records)
}

/// Those ports of these that are there and in nobody's record now, as records without lines.
fn still_unowned(socket: &mut NftSocket, share: &Share, ports: &[Claim]) -> Result<Vec<Recorded>> {
    let mut orphans = Vec::new();
    let mut owners = Owners::beside(share);
    for (map, claims) in rules::by_map(ports) {
        let keys: Vec<_> = claims.iter().map(|claim| claim.key()).collect();
        let elements = socket.elements_at(&TABLE, &map, &keys)?;
        for (claim, element) in claims.into_iter().zip(elements).filter_map(|(c, e)| Some((c, e?))) {
            if matches!(owners.of(socket, claim, &element)?, Owner::Nobody) {
                remains::gather(&mut orphans, &element);
            }
        }
    }
    remains::find_all_kinds(socket, &mut orphans)?;
    Ok(orphans)
}

/// Says in the log whose a port stays at all the addresses at which it isn't the share's.
fn tell_of_wildcards(socket: &mut NftSocket, share: &Share) -> Result<()> {
    let own = share.attachment.label();
    for (_, claims) in rules::by_map(&share.claims) {
        let Some(first) = claims.first().filter(|claim| claim.address.is_some()) else { continue };
        let map = rules::ports_map(first.version(), false);
        let keys: Vec<_> = claims.iter().map(|claim| Claim { address: None, ..**claim }.key()).collect();
        for (claim, found) in claims.into_iter().zip(socket.elements_at(&TABLE, &map, &keys)?) {
            if let Some(other) = found.and_then(|f| f.comment).filter(|c| *c != own) {
                log::info!("{claim} is {own}'s; at all other addresses the port stays {other}'s");
            }
        }
    }
    Ok(())
}
