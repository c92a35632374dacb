//! The share removed: by DEL for one attachment, by GC for all the dead ones of a network.
//!
//! What is to go is read from the attachment's record, and of that, what is still its own: a newer container may have the
//! address by now. What an older one had before, and still claims, it gets back. The transaction is refused if anything has
//! changed since, and thought out anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use common::nft::records::{self, NetworkKey};
use common::nft::{Element, IpVersion, NftSocket, Presence, RecordKey, Set, Table, Transaction};
use common::{Attachment, Error, Result};

use crate::firewalld::Sought;
use crate::plan::Share;
use crate::policies;
use crate::record::{self, Holder, Placed, Record, place_name};
use crate::rules::{self, BridgePolicy, PORT_GUARDS, TABLE};
use crate::state::repeat;
use crate::stored::{Opened, Shelf, Source};

/// What is to go, by its owner; `None` where nothing is known of it but that it may have a file.
type Leaving = BTreeMap<RecordKey, Option<Record>>;

/// Removes everything that belongs to the attachment; nothing to remove is success. Gives the addresses that went.
///
/// What it may have by its prevResult is `guessed`, for where what was written down of it is lost, or a part of that.
pub fn remove(socket: &mut NftSocket, attachment: &Attachment, guessed: Option<&Record>) -> Result<BTreeSet<IpAddr>> {
    remove_all(socket, |socket, opened| {
        let key = RecordKey::of(attachment);
        let found = Record::read(socket, key)?;
        insist_on_file(opened, key, found.as_ref())?;
        let shelf = Shelf::within(opened);
        let known = known_whole(socket, attachment, found, shelf, false)?;
        let is_whole = known.as_ref().is_some_and(|known| known.is_whole);
        let known = known.map(|known| known.record);
        let known = match guessed.filter(|_| !is_whole) {
            None => known,
            Some(guessed) => {
                // Whose addresses are known is known to have told firewalld nothing else.
                let has_addresses = known.as_ref().is_some_and(|record| !record.addresses.is_empty());
                let zone = guessed.zone.clone().filter(|_| !has_addresses);
                completed(known, Some(Record { zone, ..guessed.clone() }))
            }
        };
        Ok(BTreeMap::from([(key, known)]))
    })
}

/// What is known of an attachment.
pub struct Known {
    /// By all accounts.
    pub record: Record,
    /// Whether nothing of it is lost.
    pub is_whole: bool,
}

/// All that is known of an attachment. That the record is as the file says is what shows that no line of it is lost; otherwise
/// it may be that each of them knows something that the other doesn't. `found` is the record as it is read line by line; if it
/// `is_cut`, lines behind it are known to be there.
pub fn known_whole(
    socket: &mut NftSocket,
    attachment: &Attachment,
    mut found: Option<Record>,
    shelf: Option<&Shelf>,
    is_cut: bool,
) -> Result<Option<Known>> {
    let key = RecordKey::of(attachment);
    let share = shelf.and_then(|shelf| shelf.read(key));
    let lines = found.as_ref().map(|record| record.lines.as_slice()).unwrap_or_default();
    if share.as_ref().is_some_and(|share| record::lines(share) == lines) {
        return Ok(found.map(|record| Known { record, is_whole: true }));
    }
    if is_cut || share.is_some() || socket.has_usual_line_behind(&TABLE, key, lines.len())? {
        found = Record::scattered(socket, key)?;
    }
    let known = completed(found, share.as_ref().map(Record::of));
    let labelled = known.map(|record| Record { label: attachment.label(), ..record });
    Ok(labelled.map(|record| Known { record, is_whole: false }))
}

fn completed(found: Option<Record>, other: Option<Record>) -> Option<Record> {
    match (found, other) {
        (Some(found), Some(other)) => Some(found.completed_by(other)),
        (found, other) => found.or(other),
    }
}

/// Removes what the dead attachments of a network own.
pub fn collect(socket: &mut NftSocket, name: &str, alive: &BTreeSet<Attachment>) -> Result<()> {
    let network = NetworkKey::of(name);
    let live: BTreeSet<RecordKey> = alive.iter().map(RecordKey::of).collect();
    let is_dead = |key: &RecordKey| network.has(key) && !live.contains(key);
    let removed = remove_all(socket, |socket, opened| {
        let shelf = Shelf::within(opened);
        let found = Record::all(socket, is_dead)?.into_iter().map(|record| (record.key, Some(record)));
        let mut found: Leaving = found.collect();
        for key in shelf.map(Shelf::keys).transpose()?.into_iter().flatten().filter(is_dead) {
            found.entry(key).or_default();
        }
        found.iter().try_for_each(|(key, record)| insist_on_file(opened, *key, record.as_ref()))?;
        Ok(found.into_iter().map(|(key, record)| (key, known_record(key, record, shelf))).collect())
    });
    // Whose file could not be read hasn't lost what bears its label.
    let orphans = if removed.is_ok() { collect_orphans(socket, name, alive) } else { Ok(()) };
    let policies = policies::collect(socket);
    Error::gather([removed.map(drop), orphans, policies].into_iter().filter_map(Result::err).collect())
}

/// Removes elements that bear the label of an attachment of the network which isn't alive and has no record.
fn collect_orphans(socket: &mut NftSocket, network: &str, alive: &BTreeSet<Attachment>) -> Result<()> {
    repeat(|| {
        let generation = socket.generation()?;
        let mut suspects: Vec<Placed> = Vec::new();
        for (table, set) in sets_of_owners() {
            let is_of_network = |e: &Element| e.comment.as_deref().is_some_and(|l| Attachment::is_label_on(l, network));
            let elements = socket.elements(&table, &set)?.into_iter().filter(is_of_network);
            suspects.extend(elements.map(|element| (table.clone(), set.clone(), element)));
        }
        let mut known: HashSet<String> = alive.iter().map(Attachment::label).collect();
        if suspects.iter().any(|(_, _, element)| !known.contains(element.comment.as_deref().unwrap_or_default())) {
            known.extend(Record::all(socket, |_| true)?.into_iter().map(|record| record.label));
        }
        let mut transaction = Transaction::new();
        for (table, set, element) in suspects {
            if !known.contains(element.comment.as_deref().unwrap_or_default()) {
                log::info!("{element} is taken out of set {} of table {table}: its owner has no record", set.name);
                transaction.delete_elements(&table, &set.name, vec![Element::key(element.key)]);
            }
        }
        socket.commit_at(&transaction, generation)
    })
}

/// The sets whose elements bear labels.
fn sets_of_owners() -> Vec<(Table, Set)> {
    let mut sets: Vec<(Table, Set)> = IpVersion::ALL.into_iter().map(|v| (TABLE, rules::addresses(v))).collect();
    sets.extend(PORT_GUARDS.iter().flat_map(|guard| guard.sets().into_iter().map(|set| (guard.table.clone(), set))));
    sets
}

/// What the kernel says, and what was put on the shelf: either may be lost, or a part of what the kernel has (`nft flush
/// ruleset`, somebody's hand).
fn known_record(key: RecordKey, found: Option<Record>, shelf: Option<&Shelf>) -> Option<Record> {
    completed(found, shelf.and_then(|shelf| shelf.read(key)).as_ref().map(Record::of))
}

/// Fails where the file can't be read without which it isn't known what is the attachment's: its record has lost a line, or all.
fn insist_on_file(opened: &Opened, key: RecordKey, found: Option<&Record>) -> Result<()> {
    if found.is_some_and(|record| !record.is_cut()) {
        return Ok(());
    }
    let again = if opened.is_err() { Shelf::open()? } else { None };
    let shelf = opened.as_ref().map_or(again.as_ref(), Option::as_ref);
    shelf.map_or(Ok(()), |shelf| shelf.look_up(key).map(drop))
}

/// Removes what `find` finds in one transaction, because each that deletes waits for a grace period of the kernel. What
/// firewalld doesn't forget stays for the next time, and the rest goes.
fn remove_all(
    socket: &mut NftSocket,
    find: impl Fn(&mut NftSocket, &Opened) -> Result<Leaving>,
) -> Result<BTreeSet<IpAddr>> {
    let opened = Shelf::open();
    let shelf = Shelf::within(&opened);
    let firewalld = Sought::default();
    let (mut keys, mut removed, mut left) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut forgotten: BTreeMap<RecordKey, Vec<IpAddr>> = BTreeMap::new();
    let mut errors: BTreeMap<RecordKey, Error> = BTreeMap::new();
    repeat(|| {
        let generation = socket.generation()?;
        let mut leaving = find(socket, &opened)?;
        leaving.retain(|key, _| !errors.contains_key(key));
        let heirs = Heirs::of(socket, leaving.values().flatten(), &opened)?;
        let mut removal = Removal::default();
        removed.clear();
        for record in leaving.values().flatten() {
            let own = Own::read(socket, record, &heirs)?;
            // First, because without the record nobody would know what firewalld must forget.
            let zone = record.zone.as_deref();
            let outcome = match forgotten.get(&record.key) {
                None => own.forget_sources(zone, &firewalld),
                Some(addresses) => own.remember_sources(addresses, zone, &firewalld),
            };
            // Whose record says nothing of firewalld has told it nothing: the file needn't be read.
            let more = if record.zone.is_some() { telling(record.key, shelf) } else { BTreeSet::new() };
            let more = more.into_iter().filter(|source| record.sources().all(|own| own != *source)).collect();
            if let Err(error) = outcome.and_then(|()| forget(socket, record, more, &opened, &firewalld)) {
                errors.insert(record.key, error);
                continue;
            }
            forgotten.entry(record.key).or_insert_with(|| own.addresses.clone());
            removal.take_out(record, &own);
            removed.extend(own.addresses);
        }
        leaving.retain(|key, _| !errors.contains_key(key));
        keys = leaving.keys().copied().collect();
        left = leaving.into_values().flatten().chain(heirs.by_file).collect();
        removal.release_policies(socket, &opened, &keys)?;
        // Of two that go at once the last must be seen to be the last; and nobody else's element may be taken.
        socket.commit_at(&removal.transaction, generation)
    })?;
    let undeleted = shelf.iter().flat_map(|shelf| keys.iter().filter_map(|key| shelf.remove(*key).err()));
    let mut failures: Vec<Error> = std::mem::take(&mut errors).into_values().chain(undeleted).collect();
    failures.extend(settle(socket, &opened, left).err());
    Error::gather(failures.into_iter().chain(opened.err()).collect()).map(|()| removed)
}

/// So many records are read one by one, more by a look through the map.
const FEW: usize = 16;

/// Looks again once files have gone. Whoever leaves at the same time and finds the file of one whose record has gone takes that
/// one for somebody whose record was lost, and leaves an address or a policy to it. So whoever goes looks, after its file has
/// gone, whether it was left something; and whoever has left something looks whether the file has gone meanwhile.
pub fn settle(socket: &mut NftSocket, opened: &Opened, mut left: Vec<Record>) -> Result<()> {
    while !left.is_empty() {
        left = settle_once(socket, opened, &left)?;
    }
    Ok(())
}

/// Gives those to whom something was left by this.
fn settle_once(socket: &mut NftSocket, opened: &Opened, left: &[Record]) -> Result<Vec<Record>> {
    let firewalld = Sought::default();
    let mut left_to = Vec::new();
    repeat(|| {
        let generation = socket.generation()?;
        let gone = gone(socket, opened, left)?;
        let heirs = Heirs::of(socket, gone.iter(), opened)?;
        let mut removal = Removal::default();
        for record in &gone {
            let own = Own::read(socket, record, &heirs)?;
            if !own.elements.is_empty() {
                own.forget_sources(record.zone.as_deref(), &firewalld)?;
            }
            removal.take_out(record, &own);
        }
        let keys = gone.iter().map(|record| record.key).collect();
        for (policy, bridge, _) in std::mem::take(&mut removal.policies) {
            policies::release_unused(socket, opened, (policy, &bridge), &keys, &mut removal.transaction)?;
        }
        left_to = heirs.by_file;
        socket.commit_at(&removal.transaction, generation)
    })?;
    Ok(left_to)
}

/// Those of whom there is neither a record nor a file.
fn gone(socket: &mut NftSocket, opened: &Opened, left: &[Record]) -> Result<Vec<Record>> {
    let Ok(shelf) = opened else { return Ok(Vec::new()) };
    let asked: BTreeSet<RecordKey> = left.iter().map(|record| record.key).collect();
    let recorded: BTreeSet<RecordKey> = if asked.len() > FEW {
        Record::all(socket, |key| asked.contains(key))?.into_iter().map(|record| record.key).collect()
    } else {
        let records: Result<Vec<_>> = asked.iter().map(|key| Record::read(socket, *key)).collect();
        records?.into_iter().flatten().map(|record| record.key).collect()
    };
    let mut gone = Vec::new();
    for record in left.iter().filter(|record| !recorded.contains(&record.key)) {
        if shelf.as_ref().map(|shelf| shelf.look_up(record.key)).transpose()?.flatten().is_none() {
            gone.push(Record { lines: Vec::new(), ..record.clone() });
        }
    }
    Ok(gone)
}

/// Who had before what somebody has taken over, and still claims it: by the place.
#[derive(Debug, Default)]
pub struct Heirs {
    by_place: HashMap<String, Heir>,
    /// Those of them of whom only the file says so.
    pub by_file: Vec<Record>,
}

#[derive(Clone, Debug)]
struct Heir {
    label: String,
    zone: Option<String>,
}

impl Heirs {
    /// Of these. All records are looked through, and all files, because a record that has lost a line doesn't say what its
    /// attachment claims; but only if one of these says that it has taken something over. A directory that can't be opened keeps
    /// them from going only where a record is seen to have lost a line.
    pub fn of<'a>(socket: &mut NftSocket, leaving: impl Iterator<Item = &'a Record>, opened: &Opened) -> Result<Heirs> {
        let leaving: BTreeMap<RecordKey, &Record> = leaving.map(|record| (record.key, record)).collect();
        let shared = leaving.values().filter(|record| record.notes.shared);
        let places: HashSet<String> = shared.flat_map(|record| record.elements()).map(|p| place_name(&p)).collect();
        if places.is_empty() {
            return Ok(Heirs::default());
        }
        let is_leaving = |key: &RecordKey| leaving.contains_key(key);
        let found = Record::all(socket, |key| !is_leaving(key))?;
        let again = if opened.is_err() && found.iter().any(Record::is_cut) { Shelf::open()? } else { None };
        let shelf = opened.as_ref().map_or(again.as_ref(), Option::as_ref);
        let mut known: BTreeMap<RecordKey, Record> = found.into_iter().map(|record| (record.key, record)).collect();
        let filed = shelf.map(|shelf| shelf.of(|key| !is_leaving(key))).transpose()?;
        let mut by_file = Vec::new();
        for record in filed.iter().flatten().map(Record::of) {
            let key = record.key;
            if !known.contains_key(&key) {
                by_file.push(record.clone());
            }
            let all = completed(known.remove(&key), Some(record));
            known.extend(all.map(|record| (key, record)));
        }
        let mut others: Vec<Record> = known.into_values().filter(|other| !other.label.is_empty()).collect();
        // Who has taken it over himself knows that there may be another heir after him: he comes last, and stays.
        others.sort_by_key(|other| other.notes.shared);
        let mut by_place = HashMap::new();
        for other in others {
            let heir = Heir { label: other.label.clone(), zone: other.zone.clone() };
            let elements = other.elements();
            let claimed = elements.iter().map(place_name).filter(|place| places.contains(place));
            by_place.extend(claimed.map(|place| (place, heir.clone())));
        }
        by_file.retain(|record| by_place.values().any(|heir: &Heir| heir.label == record.label));
        Ok(Heirs { by_place, by_file })
    }

    fn of_place(&self, place: &Placed) -> Option<&Heir> {
        self.by_place.get(&place_name(place))
    }

    fn of_address(&self, address: IpAddr) -> Option<&Heir> {
        let (set, element) = rules::address_element(address);
        self.of_place(&(TABLE, set, element))
    }

    /// Takes an element away from whom it belongs to, and gives it to its heir.
    pub fn pass_on(&self, place: &Placed, transaction: &mut Transaction) {
        let (table, set, element) = place;
        transaction.delete_elements(table, &set.name, vec![element.clone()]);
        if let Some(heir) = self.of_place(place) {
            let back = element.clone().comment(&heir.label);
            transaction.add_elements(table, &set.name, Presence::Exclusive, vec![back]);
        }
    }
}

/// What is an attachment's own, and nobody else's.
struct Own<'a> {
    elements: Vec<Placed>,
    /// Without those that another has by now, or gets back, in the same zone.
    addresses: Vec<IpAddr>,
    heirs: &'a Heirs,
}

impl<'a> Own<'a> {
    fn read(socket: &mut NftSocket, record: &Record, heirs: &'a Heirs) -> Result<Own<'a>> {
        let held = record.held_elements(socket)?;
        let mut addresses = Vec::new();
        // Its addresses are the first of its elements.
        for (address, of_address) in record.addresses.iter().copied().zip(&held) {
            let stays = match of_address {
                // Whoever has told another firewalld zone, or none, doesn't need this one.
                (_, Holder::Another(label)) if record.zone.is_some() => {
                    Record::of_label(socket, label)?.is_none_or(|holder| holder.zone == record.zone)
                }
                (_, Holder::Another(_)) => true,
                (place, _) => heirs.of_place(place).is_some_and(|heir| heir.zone == record.zone),
            };
            if !stays {
                addresses.push(address);
            }
        }
        let elements =
            held.into_iter().filter(|(_, holder)| *holder == Holder::Itself).map(|(place, _)| place).collect();
        Ok(Own { elements, addresses, heirs })
    }

    fn forget_sources(&self, zone: Option<&str>, firewalld: &Sought) -> Result<()> {
        let Some(zone) = zone.filter(|_| !self.addresses.is_empty()) else { return Ok(()) };
        // A firewalld that doesn't run remembers nothing.
        let Some(firewalld) = firewalld.get()? else { return Ok(()) };
        let forgotten = self.addresses.iter().map(|address| {
            firewalld.remove_source(zone, *address)?;
            match self.heirs.of_address(*address).and_then(|heir| heir.zone.as_deref()) {
                Some(theirs) => firewalld.add_source(theirs, *address).map(drop),
                None => Ok(()),
            }
        });
        Error::gather(forgotten.filter_map(Result::err).collect())
    }

    /// Tells firewalld again of those addresses that it was to forget and that turn out to be somebody else's by now.
    fn remember_sources(&self, forgotten: &[IpAddr], zone: Option<&str>, firewalld: &Sought) -> Result<()> {
        let Some(zone) = zone else { return Ok(()) };
        for address in forgotten.iter().filter(|address| !self.addresses.contains(address)) {
            if let Some(firewalld) = firewalld.get()? {
                firewalld.add_source(zone, *address)?;
            }
        }
        Ok(())
    }
}

/// Takes out of firewalld what an attachment had told it at its former ADDs and tells it no longer. The file is read only where
/// firewalld is told, or was.
pub fn forget_stale_sources(
    socket: &mut NftSocket,
    share: &Share,
    former: Option<&Record>,
    opened: &Opened,
) -> Result<()> {
    let key = RecordKey::of(&share.attachment);
    let is_told = share.zone.is_some() || former.is_some_and(|former| former.zone.is_some());
    let shelf = Shelf::within(opened).filter(|_| is_told);
    let Some(former) = known_record(key, former.cloned(), shelf) else { return Ok(()) };
    let told: BTreeSet<Source> = Record::of(share).sources().collect();
    let stale = former.sources().chain(telling(key, shelf)).filter(|source| !told.contains(source)).collect();
    forget(socket, &former, stale, opened, &Sought::default())
}

/// What an attachment's file says that firewalld was told; of an ADD that did not come to its end, nothing else says it.
fn telling(key: RecordKey, shelf: Option<&Shelf>) -> BTreeSet<Source> {
    let Some((share, telling)) = shelf.and_then(|shelf| shelf.read_telling(key)) else { return BTreeSet::new() };
    Record::of(&share).sources().chain(telling).collect()
}

/// Takes sources out of firewalld that were an attachment's, but for those that are another's now.
fn forget(
    socket: &mut NftSocket,
    owner: &Record,
    sources: BTreeSet<Source>,
    opened: &Opened,
    firewalld: &Sought,
) -> Result<()> {
    let mut by_zone: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (zone, address) in sources {
        by_zone.entry(zone).or_default().push(address);
    }
    for (zone, addresses) in by_zone {
        let told = Record { addresses, zone: Some(zone), guards: Vec::new(), ..owner.clone() };
        let heirs = Heirs::of(socket, std::iter::once(&told), opened)?;
        Own::read(socket, &told, &heirs)?.forget_sources(told.zone.as_deref(), firewalld)?;
    }
    Ok(())
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
    fn take_out(&mut self, record: &Record, own: &Own<'_>) {
        for place in &own.elements {
            if self.elements.insert(place_name(place)) {
                own.heirs.pass_on(place, &mut self.transaction);
            }
        }
        self.transaction.delete_elements(&TABLE, &records::map().name, record.lines.clone());
        for (policy, bridge) in &record.policies {
            let references = policies::references(record, *policy, bridge);
            match self.policies.iter_mut().find(|(p, b, _)| (p, b) == (policy, bridge)) {
                Some((_, _, count)) => *count += references,
                None => self.policies.push((*policy, bridge.clone(), references)),
            }
        }
    }

    fn release_policies(
        &mut self,
        socket: &mut NftSocket,
        opened: &Opened,
        leaving: &BTreeSet<RecordKey>,
    ) -> Result<()> {
        for (policy, bridge, references) in &self.policies {
            policies::release(socket, opened, (*policy, bridge), *references, leaving, &mut self.transaction)?;
        }
        Ok(())
    }
}
