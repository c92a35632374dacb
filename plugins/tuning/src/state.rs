//! The state files, and what is done with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::cni::CniResult;
use common::cni::version::Version;
use common::link::attributes::mac_text;
use common::link::ipv6::Entry;
use common::netns::{self, Netns};
use common::store::{Directory, GroupLock, Stored};
use common::sysctl;
use common::{Attachment, Call, Difference, Error, Result, State};

use crate::allowlist;
use crate::config::{Config, DEFAULT_DATA_DIR};
use crate::container::{self, Container, Outcome, group_of, may_administer_networks, read_allowlist};
use crate::plan::{self, Facts, Step};
use crate::record::{Held, Original, Place, Record, file_names};

/// What the plugin makes of a container: what is to be written, and where.
pub struct Adjustment {
    /// What is meant.
    pub config: Config,
    /// What was found.
    pub facts: Facts,
    /// What is to be written.
    pub steps: Vec<Step>,
    /// Where.
    pub container: Container,
    /// What keeps others from the namespace until all is written.
    pub claim: Option<Claim>,
}

/// The directory of the state files, and the lock of a namespace's.
///
/// Containers may share a namespace (a pod's), and a runtime that runs one operation at a time for a container (SPEC.md,
/// "Lifecycle & Ordering") may run those of several at once. What one finds and writes down must not change before it has written
/// its own: so ADD holds the lock from its first look on, and DEL and GC hold it while they put back.
pub struct Claim {
    directory: Directory,
    _lock: GroupLock,
}

impl Claim {
    /// For an ADD. A directory that can't be used is none yet: nothing may have to be written in the end, and if something has,
    /// writing the file says what is wrong.
    pub fn of_add(config: &Config, container: &Container) -> Result<Option<Claim>> {
        let claimed = Directory::create(&config.data_dir).and_then(|directory| {
            let lock = directory.lock(&container.place.netns)?;
            Ok(Claim { directory, _lock: lock })
        });
        unless_held(claimed)
    }
}

/// The neighbours that an ADD of this attachment that was killed may have left without.
pub fn awaited_neighbours(claim: &Claim, attachment: &Attachment, place: &Place) -> Result<Vec<Entry>> {
    let found = find_record(&claim.directory, attachment, false)?;
    let is_ours = |record: &Record| record.is_of_netns(place) && record.ifindex() == place.ifindex;
    Ok(found.map(|(_, record)| record).filter(is_ours).map(|record| record.awaited_neighbours()).unwrap_or_default())
}

/// A lock, or none where there can't be any; that somebody else holds it is an error.
fn unless_held<T>(lock: Result<T>) -> Result<Option<T>> {
    match lock {
        Ok(lock) => Ok(Some(lock)),
        Err(error @ Error::TryAgain { .. }) => Err(error),
        Err(error) => {
            log::debug!("without a lock: {error}");
            Ok(None)
        }
    }
}

/// The lock of the namespace that a record speaks of; one of the reference's does not say, and the call has to.
fn lock_of(directory: &Directory, record: &Record, call: Option<&Call>) -> Result<Option<GroupLock>> {
    let noted = record.place().map(|place| place.netns.clone()).filter(|group| !group.is_empty());
    let given = || call?.netns.as_deref().and_then(netns::identity).map(|(device, inode)| group_of(device, inode));
    match noted.or_else(given) {
        Some(group) => unless_held(directory.lock(&group)),
        None => Ok(None),
    }
}

impl State for Adjustment {
    fn apply(&self, call: &Call) -> Result<()> {
        let place = &self.container.place;
        if self.steps.is_empty() && self.facts.neighbours.is_empty() && self.has_no_record(call)? {
            return Ok(());
        }
        let made;
        let directory = match &self.claim {
            Some(claim) => &claim.directory,
            None => {
                made = Directory::create(&self.config.data_dir)?;
                &made
            }
        };
        let others = records_beside(directory, &call.attachment, place)?;
        let mut slot = Slot::choose(directory, &call.attachment)?;
        if let Some(reason) = &slot.spoilt {
            let path = directory.path_of(&slot.name);
            log::warn!("state file {}: {reason}; it is replaced, nothing can be put back from it", path.display());
        }
        let mut record = slot.take_record(directory, call, self)?;
        let mut regaining = plan::regaining_ipv6(&self.steps, &self.facts);
        regaining.extend(others.iter().chain([&record]).flat_map(Record::regaining_ipv6));
        let returning = returning(others.iter().chain([&record]), &regaining);
        container::require_giving_back(&self.facts, &returning)?;
        record.remember(&self.steps, &self.config.link, &self.facts, &others);
        regaining.extend(plan::interrupting_ipv6(&self.steps, &self.facts));
        record.await_ipv6(regaining);
        if let Err(error) = slot.fill(directory, &record, place) {
            // It may stand there whole, if only its being on the disk for good has failed.
            slot.revert(directory, place).unwrap_or_else(|second| log::debug!("{second}"));
            return Err(error);
        }
        match self.container.write(&self.steps, &self.facts, &returning) {
            Ok(outcome) => {
                self.note(&outcome, record, directory, &slot.name);
                Ok(())
            }
            Err(error) => {
                let mut errors = vec![error];
                let stuck = self.container.put_back(&Original::of(&self.steps, &self.facts), place.ifindex);
                // What could not be put back now, DEL will try again: by what the file says.
                if stuck.is_empty() {
                    errors.extend(slot.revert(directory, place).err());
                }
                errors.extend(stuck);
                Error::gather(errors)
            }
        }
    }

    fn differences(&self, call: &Call) -> Result<Vec<Difference>> {
        Ok(plan::differences(&self.config, &call.attachment.ifname, &self.facts))
    }

    /// The new mac and MTU, on the container's own interface only. `mtu` is a key of 1.1.0: results of older versions get
    /// it only where it stands already.
    fn amend(&self, call: &Call, result: &mut CniResult) {
        let netns = call.netns.as_ref().map(|n| n.display().to_string()).unwrap_or_default();
        let ours = |i: &&mut common::cni::result::Interface| i.name == call.attachment.ifname && !i.sandbox.is_empty();
        let exact = result.interfaces.iter_mut().filter(ours).any(|i| i.sandbox == netns);
        for interface in result.interfaces.iter_mut().filter(ours).filter(|i| !exact || i.sandbox == netns) {
            if let Some(mac) = &self.config.link.mac {
                interface.mac = mac_text(mac);
            }
            if let Some(mtu) = self.config.link.mtu
                && (call.version >= Version::V1_1_0 || interface.mtu != 0)
            {
                interface.mtu = mtu.into();
            }
        }
    }
}

impl Adjustment {
    /// The kernel rounds and rewrites some values; CHECK must not take that for a difference. A failure here costs CHECK its
    /// knowledge, not ADD its success.
    fn note(&self, outcome: &Outcome, mut record: Record, directory: &Directory, file: &str) {
        let addresses = outcome.lost.iter().filter(|e| e.is_global_address());
        let lost: Vec<String> = addresses.map(ToString::to_string).collect();
        if !lost.is_empty() {
            log::warn!("without IPv6, {} is gone until DEL, or until an ADD gives IPv6 again", lost.join(", "));
        }
        let news = outcome.kept.iter().filter(|(name, value)| record.note_kept(name, value)).count();
        let are_back = record.forget_awaited(&self.neighbours_back(outcome, &record));
        if (news > 0 || are_back)
            && let Err(error) = directory.write(file, &record.to_bytes())
        {
            log::warn!("{error}; CHECK will compare with the configuration's values only");
        }
    }

    /// The neighbours that are there now. An ADD that names no mac puts none back, but the one that was killed may have, or may not
    /// have got as far as to lose them.
    fn neighbours_back(&self, outcome: &Outcome, record: &Record) -> Vec<Entry> {
        if self.config.link.mac.is_some() || record.awaited_neighbours().is_empty() {
            return outcome.neighbours.clone();
        }
        self.container.neighbours(self.container.place.ifindex).unwrap_or_else(|error| {
            log::debug!("{error}");
            Vec::new()
        })
    }

    /// Nobody else's, and none of an ADD that was killed before all was back.
    fn has_no_record(&self, call: &Call) -> Result<bool> {
        let Some(directory) = Directory::open(&self.config.data_dir)? else { return Ok(true) };
        let place = &self.container.place;
        let is_unfinished = |record: &Record| record.is_of_netns(place) && !record.regaining_ipv6().is_empty();
        let own = find_record(&directory, &call.attachment, false)?;
        Ok(!own.is_some_and(|(_, record)| is_unfinished(&record))
            && records_beside(&directory, &call.attachment, place)?.is_empty())
    }
}

/// What is kept for links that get IPv6 again; the oldest know most.
fn returning<'a>(records: impl Iterator<Item = &'a Record>, regaining: &BTreeSet<u32>) -> Vec<Entry> {
    let mut returning: Vec<Entry> = Vec::new();
    for entry in records.flat_map(|record| record.ipv6_of(regaining)) {
        if !returning.iter().any(|known| known.is_same_object(&entry)) {
            returning.push(entry);
        }
    }
    returning
}

/// The records of other attachments in this namespace, the oldest first.
///
/// The files of a namespace are one group, so they are found without listing everybody's.
fn records_beside(directory: &Directory, attachment: &Attachment, place: &Place) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for name in directory.members(&place.netns)? {
        if let Stored::Bytes(bytes) = directory.read(&name)?
            && let Ok(record) = Record::parse(&bytes)
            && record.owner().is_some_and(|owner| owner != *attachment)
            && record.is_of_netns(place)
        {
            records.push(record);
        }
    }
    records.sort_by_key(Record::order);
    Ok(records)
}

/// The place of an attachment's state file, and what stands there.
struct Slot {
    name: String,
    content: Option<Vec<u8>>,
    record: Option<Record>,
    /// Why what stands there can't be read.
    spoilt: Option<String>,
    /// The namespace of what stands there, if it says which.
    group: Option<String>,
}

impl Slot {
    /// The file of the attachment if there is one, else the first place that no other attachment has.
    fn choose(directory: &Directory, attachment: &Attachment) -> Result<Slot> {
        let mut free = None;
        for name in file_names(attachment) {
            let (content, record, spoilt) = match directory.read(&name)? {
                Stored::Absent => (None, None, None),
                Stored::Spoilt(reason) if !directory.make_way(&name)? => {
                    log::warn!("state file {}: {reason}, and can't be replaced", directory.path_of(&name).display());
                    continue;
                }
                Stored::Spoilt(reason) => (None, None, Some(reason)),
                Stored::Bytes(bytes) => match Record::parse(&bytes) {
                    Ok(record) => (Some(bytes), Some(record), None),
                    Err(reason) => (Some(bytes), None, Some(reason)),
                },
            };
            let owner = record.as_ref().and_then(Record::owner);
            let group = record.as_ref().and_then(Record::place).map(|place| place.netns.clone());
            let slot = Slot { name, content, record, spoilt, group };
            match owner {
                Some(owner) if owner == *attachment => return Ok(slot),
                Some(_) => {}
                None => free = free.or(Some(slot)),
            }
        }
        free.ok_or_else(|| Error::StateFile {
            path: directory.path_of(&file_names(attachment).join(" and ")),
            reason: "something else stands in every place that this attachment's state could have".into(),
        })
    }

    /// The record to go on with: what stands there if it speaks of this very namespace, else a new one.
    ///
    /// A file of the reference does not say where its values were found. It is believed if it was written after the
    /// namespace's file came to be; an older one was left behind by an earlier container of this name. Where nobody knows
    /// since when there is the namespace, it is believed as the reference itself would.
    fn take_record(&mut self, directory: &Directory, call: &Call, adjustment: &Adjustment) -> Result<Record> {
        let place = adjustment.container.place.clone();
        let fresh = |place| Ok(Record::new(&call.attachment, place));
        let Some(record) = self.record.take() else { return fresh(place) };
        if record.owner().is_none() {
            let written = directory.modified(&self.name)?;
            let is_of_now =
                written.is_some() && adjustment.container.held_since().is_none_or(|since| written >= Some(since));
            return if is_of_now { Ok(record.adopted(&call.attachment, place)) } else { fresh(place) };
        }
        if record.is_of_netns(&place) { Ok(record.renewed(place, &adjustment.facts.indexes)) } else { fresh(place) }
    }

    /// Writes the file, and puts it among those of its namespace. It is among them only as long as it is there, and nothing has
    /// been changed before it is: what a killed call leaves of it can be neither missed nor taken for another's.
    fn fill(&self, directory: &Directory, record: &Record, place: &Place) -> Result<()> {
        let former = self.group.iter().filter(|group| **group != place.netns);
        former.into_iter().try_for_each(|group| directory.forget(group, &self.name))?;
        directory.write(&self.name, &record.to_bytes())?;
        directory.note(&place.netns, &self.name)
    }

    /// Makes the file what it was.
    fn revert(&self, directory: &Directory, place: &Place) -> Result<()> {
        if self.group.as_ref() != Some(&place.netns) {
            directory.forget(&place.netns, &self.name)?;
        }
        match &self.content {
            Some(content) => directory.write(&self.name, content)?,
            None => drop(directory.remove(&self.name)?),
        }
        self.group.iter().try_for_each(|group| directory.note(group, &self.name))
    }
}

/// Removes a record's file.
fn discard(directory: &Directory, name: &str, record: &Record) -> Result<()> {
    match record.place().map(|place| place.netns.as_str()).filter(|group| !group.is_empty()) {
        Some(group) => directory.forget(group, name)?,
        // The reference's. One of ours may have stood in its place, of which the reference has removed no more than the file.
        None => {
            for group in directory.groups()? {
                directory.forget(&group, name).unwrap_or_else(|error| log::debug!("{error}"));
            }
        }
    }
    directory.remove(name).map(drop)
}

/// Leaves the file for the next time: it speaks of what could not be put back, but holds nothing against those that go later.
fn release(directory: &Directory, name: &str, record: &Record) {
    let released = record.released();
    if released != *record {
        directory.write(name, &released.to_bytes()).unwrap_or_else(|error| log::debug!("{error}"));
    }
}

/// The attachment's record and its file; a spoilt file at the attachment's own place is removed on the way.
fn find_record(
    directory: &Directory,
    attachment: &Attachment,
    remove_spoilt: bool,
) -> Result<Option<(String, Record)>> {
    for name in file_names(attachment) {
        let spoilt = match directory.read(&name)? {
            Stored::Absent => continue,
            Stored::Spoilt(reason) => reason,
            Stored::Bytes(bytes) => match Record::parse(&bytes) {
                Ok(record) if record.belongs_to(attachment) => return Ok(Some((name, record))),
                Ok(_) => continue,
                Err(reason) => reason,
            },
        };
        if remove_spoilt {
            log::warn!("state file {}: {spoilt}; nothing can be put back from it", directory.path_of(&name).display());
            // Somebody else's directory, mostly: a container must not be kept from going by it.
            directory.remove(&name).map(drop).unwrap_or_else(|error| log::warn!("{error}"));
        }
    }
    Ok(None)
}

/// What an ADD of the attachment has written down.
pub fn saved_record(config: &Config, attachment: &Attachment) -> Result<Option<Record>> {
    let Some(directory) = Directory::open(&config.data_dir)? else { return Ok(None) };
    Ok(find_record(&directory, attachment, false)?.map(|(_, record)| record))
}

fn data_dir(config: Option<&Config>) -> &Path {
    config.map_or(Path::new(DEFAULT_DATA_DIR), |c| &c.data_dir)
}

/// DEL: puts back what was saved, and removes the file.
///
/// A value that the kernel won't take back is a warning and leaves the file for the next DEL, as in the reference: the
/// container goes in any case, and a DEL that fails for good would keep it from going.
pub fn remove(call: &Call, config: Option<&Config>) -> Result<()> {
    let Some(directory) = Directory::open(data_dir(config))? else { return Ok(()) };
    let is_ours = |owner: Option<Attachment>| owner.is_none_or(|owner| owner == call.attachment);
    remove_unfinished(&directory, file_names(&call.attachment), &is_ours)?;
    let Some((_, record)) = find_record(&directory, &call.attachment, true)? else {
        return forget_absent(&directory, call);
    };
    let _lock = lock_of(&directory, &record, Some(call))?;
    // GC may have been faster.
    let Some((name, mut record)) = find_record(&directory, &call.attachment, true)? else {
        return forget_absent(&directory, call);
    };
    let found = find_container(&record, call.netns.as_deref(), &call.attachment)?;
    let errors = match found {
        Ok(container) => {
            let others = records_beside(&directory, &call.attachment, &container.place)?;
            let held = Held::by(&others);
            put_back(&container, &mut record, (!others.is_empty()).then_some(&held), (&directory, &name))
        }
        Err(reason) => {
            log::info!("nothing is put back: {reason}");
            Vec::new()
        }
    };
    if errors.is_empty() {
        return discard(&directory, &name, &record);
    }
    release(&directory, &name, &record);
    for error in errors {
        log::warn!("{error}; {} is kept for the next DEL", directory.path_of(&name).display());
    }
    Ok(())
}

/// Files that somebody else has removed, as the reference's DEL does, are among those of their namespace no more.
fn forget_absent(directory: &Directory, call: &Call) -> Result<()> {
    let Some((device, inode)) = call.netns.as_deref().and_then(netns::identity) else { return Ok(()) };
    for name in file_names(&call.attachment) {
        if directory.read(&name)? == Stored::Absent {
            directory.forget(&group_of(device, inode), &name)?;
        }
    }
    Ok(())
}

/// Removes what killed calls have left of their changes to these files, as far as `is_due` says so by the owner; what isn't
/// whole names none. Such a call has changed nothing in the container yet: the file comes first.
fn remove_unfinished(
    directory: &Directory,
    names: impl IntoIterator<Item = String>,
    is_due: &dyn Fn(Option<Attachment>) -> bool,
) -> Result<()> {
    let is_left = |name: &String| match directory.read_unfinished(name) {
        Ok(Stored::Bytes(bytes)) => is_due(Record::parse(&bytes).ok().and_then(|record| record.owner())),
        Ok(Stored::Spoilt(_)) => is_due(None),
        Ok(Stored::Absent) | Err(_) => false,
    };
    let left = names.into_iter().filter(is_left);
    Error::gather(left.filter_map(|name| directory.remove_unfinished(&name).err()).collect())
}

/// Puts back what was saved, or what those that stay have written. `file`: where the record stands, which learns what goes on the
/// way until it is back.
fn put_back(container: &Container, record: &mut Record, held: Option<&Held>, file: (&Directory, &str)) -> Vec<Error> {
    let mut errors = Vec::new();
    let along = if held.is_none() { Ok(Vec::new()) } else { container.along_with(&record.names()) };
    // The next call finds them.
    let along = along.unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    let nothing = Held::default();
    let mut original = record.original(held.unwrap_or(&nothing), &along);
    if original.link.mac.is_some() {
        match container.neighbours(record.ifindex()).map(|going| record.await_neighbours(&going)) {
            Ok(true) => {
                original.neighbours = record.awaited_neighbours();
                // What can't be written can be put back all the same, if nobody kills the call.
                file.0.write(file.1, &record.to_bytes()).unwrap_or_else(|error| log::debug!("{error}"));
            }
            Ok(false) => {}
            Err(error) => {
                original.link.mac = None;
                errors.push(error);
            }
        }
    }
    errors.extend(container.put_back(&original, record.ifindex()));
    errors
}

/// The container of a record, at the given path or at the one that was written down; or why it is nowhere.
fn find_container(
    record: &Record,
    given: Option<&Path>,
    attachment: &Attachment,
) -> Result<std::result::Result<Container, String>> {
    let noted = record.place().map(|p| p.path.as_str()).filter(|p| !p.is_empty()).map(Path::new);
    let mut reason = "the namespace is gone".to_owned();
    for path in given.into_iter().chain(noted) {
        let Some(netns) = Netns::find(path)? else { continue };
        let container = Container::inside(netns, path, attachment)?;
        if record.is_of_netns(&container.place) {
            return Ok(Ok(container));
        }
        reason = format!("{} is another namespace now", path.display());
    }
    Ok(Err(reason))
}

/// GC: puts back what the network's attachments that are gone have changed, where their namespace lives, and removes their
/// files, and no other file. What could not be put back is an error, and its file stays for the next GC: that has nothing to put
/// back any more once the namespace is gone.
///
/// All of a namespace's dead go at once: what those that stay have set is gathered once for all of them.
pub fn collect(network: &str, live: &BTreeSet<Attachment>, config: Option<&Config>) -> Result<()> {
    let Some(directory) = Directory::open(data_dir(config))? else { return Ok(()) };
    let mut errors = Vec::new();
    let is_dead = |owner: &Attachment| owner.network == network && !live.contains(owner);
    let is_left = |owner: Option<Attachment>| owner.is_some_and(|owner| is_dead(&owner));
    errors.extend(remove_unfinished(&directory, directory.unfinished()?, &is_left).err());
    let mut namespaces: BTreeMap<Namespace, Found> = BTreeMap::new();
    for name in directory.names()?.into_iter().filter(|name| name.ends_with(".json")) {
        match read_owned(&directory, &name) {
            Ok(Some((owner, record))) => {
                let found = namespaces.entry(namespace_of(&record)).or_default();
                found.sort_in(name, owner, record, &is_dead);
            }
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    let inhabited: BTreeSet<String> =
        namespaces.iter().filter(|(_, f)| !f.staying.is_empty()).map(|((netns, _), _)| netns.clone()).collect();
    for (namespace, found) in namespaces.into_iter().filter(|(_, found)| !found.dead.is_empty()) {
        errors.extend(bury(&directory, &namespace, found, &is_dead));
    }
    errors.extend(forget_all_absent(&directory, &inhabited).err());
    Error::gather(errors)
}

/// A namespace: its file and its cookie.
type Namespace = (String, Option<u64>);

fn namespace_of(record: &Record) -> Namespace {
    let place = record.place().cloned().unwrap_or_default();
    (place.netns, place.cookie)
}

/// A file that says whose it is, and what it says.
fn read_owned(directory: &Directory, name: &str) -> Result<Option<(Attachment, Record)>> {
    let Stored::Bytes(bytes) = directory.read(name)? else { return Ok(None) };
    Ok(Record::parse(&bytes).ok().and_then(|record| Some((record.owner()?, record))))
}

/// Puts back what a namespace's dead have changed, under its lock; what has been found before that may have changed.
fn bury(
    directory: &Directory,
    namespace: &Namespace,
    found: Found,
    is_dead: &dyn Fn(&Attachment) -> bool,
) -> Vec<Error> {
    let lock = found.dead.first().map_or(Ok(None), |dead| lock_of(directory, &dead.record, None));
    let again = lock.and_then(|lock| {
        let mut names: BTreeSet<String> = found.dead.into_iter().map(|dead| dead.name).chain(found.staying).collect();
        if lock.is_some() {
            names.extend(directory.members(&namespace.0)?);
        }
        let mut found = Found::default();
        for name in names {
            if let Some((owner, record)) = read_owned(directory, &name)?
                && namespace_of(&record) == *namespace
            {
                found.sort_in(name, owner, record, is_dead);
            }
        }
        Ok((lock, found))
    });
    let (_lock, Found { mut dead, records, .. }) = match again {
        Ok(again) => again,
        Err(error) => return vec![error],
    };
    // The last first.
    dead.sort_by_key(|dead| std::cmp::Reverse(dead.record.order()));
    let held = Held::by(&records);
    let held = (!records.is_empty()).then_some(&held);
    dead.into_iter().flat_map(|dead| dead.bury(directory, held)).collect()
}

/// The attachments of a namespace.
#[derive(Default)]
struct Found {
    dead: Vec<Dead>,
    /// The files of those that stay.
    staying: Vec<String>,
    /// What they say.
    records: Vec<Record>,
}

impl Found {
    fn sort_in(&mut self, name: String, owner: Attachment, record: Record, is_dead: &dyn Fn(&Attachment) -> bool) {
        if is_dead(&owner) {
            self.dead.push(Dead { name, owner, record });
        } else {
            self.staying.push(name);
            self.records.push(record);
        }
    }
}

/// An attachment that is gone.
struct Dead {
    name: String,
    owner: Attachment,
    record: Record,
}

impl Dead {
    fn bury(mut self, directory: &Directory, held: Option<&Held>) -> Vec<Error> {
        match find_container(&self.record, None, &self.owner) {
            Ok(Ok(container)) => {
                let unable = put_back(&container, &mut self.record, held, (directory, &self.name));
                if !unable.is_empty() {
                    release(directory, &self.name, &self.record);
                    return unable;
                }
            }
            Ok(Err(reason)) => log::info!("{}: nothing is put back: {reason}", self.owner),
            Err(error) => return vec![error],
        }
        discard(directory, &self.name, &self.record).err().into_iter().collect()
    }
}

/// What is noted of files that are there no more, where a namespace has no others. A file is there before it is noted, so none of a
/// call in progress is missed.
fn forget_all_absent(directory: &Directory, inhabited: &BTreeSet<String>) -> Result<()> {
    for group in directory.groups()?.iter().filter(|group| !inhabited.contains(*group)) {
        for name in directory.members(group)? {
            if directory.read(&name)? == Stored::Absent {
                directory.forget(group, &name)?;
            }
        }
        directory.remove_empty(group)?;
    }
    Ok(())
}

fn require_sysctls() -> Result<()> {
    let (reason, next) = if !sysctl::are_there() {
        ("there is no /proc/sys/net", "mount proc with its sysctls (not with subset=pid)")
    } else if sysctl::all_read_only() {
        let writable = "run the container runtime, or the container that it runs in, with a writable /proc/sys";
        ("/proc/sys is mounted read-only", writable)
    } else {
        return Ok(());
    };
    Err(Error::NotAvailable { reason: format!("{reason}, so no sysctl can be set"), next: next.into() })
}

/// STATUS: the allowlist admits what is configured, and what ADD needs can be written.
pub fn status(config: &Config) -> Result<()> {
    let not_available = |error: Error, next: &str| Error::NotAvailable { reason: error.to_string(), next: next.into() };
    if !may_administer_networks() {
        return Err(Error::NotAvailable {
            reason: "the plugin lacks CAP_NET_ADMIN, so neither sysctls nor links can be set".into(),
            next: "run the container runtime as root, or give it CAP_NET_ADMIN".into(),
        });
    }
    if !config.sysctls.is_empty() {
        require_sysctls()?;
    }
    Netns::require_entrance()?;
    // Sysctls may also come with a call, so it warns of the list in any case.
    let list = match read_allowlist() {
        Err(error) if config.sysctls.is_empty() => {
            log::warn!("{error}");
            None
        }
        outcome => outcome?,
    };
    if let Some(list) = list {
        let change = format!("change the configuration or {}", allowlist::PATH);
        config.sysctls.iter().try_for_each(|s| plan::admit(&list, s)).map_err(|e| not_available(e, &change))?;
    }
    Directory::probe(&config.data_dir).map_err(|e| not_available(e, "make dataDir a directory, or name another one"))
}
