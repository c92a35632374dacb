//! The state files, and what is done with them.

use std::collections::BTreeSet;
use std::path::Path;

use common::cni::CniResult;
use common::cni::version::Version;
use common::link::attributes::mac_text;
use common::netns::Netns;
use common::store::{Directory, Stored};
use common::sysctl;
use common::{Attachment, Call, Difference, Error, Result, State};

use crate::allowlist;
use crate::config::{Config, DEFAULT_DATA_DIR};
use crate::container::{Container, Outcome, read_allowlist};
use crate::plan::{self, Facts, Step};
use crate::record::{Original, Place, Record, file_names, may_be_of};

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
}

impl State for Adjustment {
    fn apply(&self, call: &Call) -> Result<()> {
        let place = &self.container.place;
        if self.steps.is_empty() && self.others(call)?.is_empty() {
            return Ok(());
        }
        let directory = Directory::create(&self.config.data_dir)?;
        let others = records_beside(&directory, &call.attachment, place)?;
        let mut slot = Slot::choose(&directory, &call.attachment)?;
        if let Some(reason) = &slot.spoilt {
            let path = directory.path_of(&slot.name);
            log::warn!("state file {}: {reason}; it is replaced, nothing can be put back from it", path.display());
        }
        let mut record = slot.take_record(&directory, call, self)?;
        record.remember(&self.steps, &self.config.link, &self.facts, &others);
        if let Err(error) = directory.write(&slot.name, &record.to_bytes()) {
            // It may stand there whole, if only its being on the disk for good has failed.
            slot.revert(&directory).unwrap_or_else(|second| log::debug!("{second}"));
            return Err(error);
        }
        match self.container.write(&self.steps, &self.facts) {
            Ok(outcome) => {
                self.note(&outcome, record, &directory, &slot.name);
                Ok(())
            }
            Err(error) => {
                let mut errors = vec![error];
                errors.extend(self.container.put_back(&Original::of(&self.steps, &self.facts), place.ifindex));
                errors.extend(slot.revert(&directory).err());
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
            log::warn!("without IPv6, {} is lost until DEL", lost.join(", "));
        }
        let news = outcome.kept.iter().filter(|(name, value)| record.note_kept(name, value)).count();
        if news > 0
            && let Err(error) = directory.write(file, &record.to_bytes())
        {
            log::warn!("{error}; CHECK will compare with the configuration's values only");
        }
    }

    fn others(&self, call: &Call) -> Result<Vec<Record>> {
        match Directory::open(&self.config.data_dir)? {
            Some(directory) => records_beside(&directory, &call.attachment, &self.container.place),
            None => Ok(Vec::new()),
        }
    }
}

/// The records of the container's other attachments in this namespace, the oldest first.
///
/// A namespace belongs to one container (SPEC.md, "container"), so the others' files are found by its name. A runtime runs
/// one operation at a time for a container (SPEC.md, "Lifecycle & Ordering"), so they need no lock.
fn records_beside(directory: &Directory, attachment: &Attachment, place: &Place) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for name in directory.names()?.iter().filter(|name| may_be_of(&attachment.container, name)) {
        if let Stored::Bytes(bytes) = directory.read(name)?
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
}

impl Slot {
    /// The file of the attachment if there is one, else the first place that no other attachment has.
    fn choose(directory: &Directory, attachment: &Attachment) -> Result<Slot> {
        let mut free = None;
        for name in file_names(attachment) {
            let (content, record, spoilt) = match directory.read(&name)? {
                Stored::Absent => (None, None, None),
                Stored::Spoilt(reason) => (None, None, Some(reason)),
                Stored::Bytes(bytes) => match Record::parse(&bytes) {
                    Ok(record) => (Some(bytes), Some(record), None),
                    Err(reason) => (Some(bytes), None, Some(reason)),
                },
            };
            match record.as_ref().and_then(Record::owner) {
                Some(owner) if owner == *attachment => return Ok(Slot { name, content, record, spoilt }),
                Some(_) => {}
                None => free = free.or(Some(Slot { name, content, record, spoilt })),
            }
        }
        free.ok_or_else(|| Error::StateFile {
            path: directory.path_of(&file_names(attachment).join(" and ")),
            reason: "other attachments' state stands in every place that this one's could have".into(),
        })
    }

    /// The record to go on with: what stands there if it speaks of this very namespace, else a new one.
    ///
    /// A file of the reference does not say where its values were found. It is believed if it was written after the
    /// namespace's file came to be; an older one was left behind by an earlier container of this name.
    fn take_record(&mut self, directory: &Directory, call: &Call, adjustment: &Adjustment) -> Result<Record> {
        let place = adjustment.container.place.clone();
        let fresh = |place| Ok(Record::new(&call.attachment, place));
        let Some(record) = self.record.take() else { return fresh(place) };
        if record.owner().is_none() {
            let written = directory.modified(&self.name)?;
            let is_of_now = written.is_some() && written >= adjustment.container.held_since();
            return if is_of_now { Ok(record.adopted(&call.attachment, place)) } else { fresh(place) };
        }
        if record.is_of_netns(&place) { Ok(record.renewed(place, &adjustment.facts.indexes)) } else { fresh(place) }
    }

    /// Makes the file what it was.
    fn revert(&self, directory: &Directory) -> Result<()> {
        match &self.content {
            Some(content) => directory.write(&self.name, content),
            None => directory.remove(&self.name).map(drop),
        }
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
            directory.remove(&name)?;
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
    let Some((name, record)) = find_record(&directory, &call.attachment, true)? else { return Ok(()) };
    let found = find_container(&record, call.netns.as_deref(), &call.attachment)?;
    let errors = match found {
        Ok(container) => {
            let others = records_beside(&directory, &call.attachment, &container.place)?;
            put_back(&container, &record, &others)?
        }
        Err(reason) => {
            log::info!("nothing is put back: {reason}");
            Vec::new()
        }
    };
    if errors.is_empty() {
        return directory.remove(&name).map(drop);
    }
    for error in errors {
        log::warn!("{error}; {} is kept for the next DEL", directory.path_of(&name).display());
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

/// Puts back what was saved, or what those that stay have written.
fn put_back(container: &Container, record: &Record, others: &[Record]) -> Result<Vec<Error>> {
    let along = if others.is_empty() { Vec::new() } else { container.along_with(&record.names())? };
    Ok(container.put_back(&record.original(others, &along), record.ifindex()))
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

/// GC: puts back what the network's attachments that are gone have changed, the last first, where their namespace lives, and
/// removes their files, and no other file. What could not be put back is an error, and its file stays for the next GC: that has
/// nothing to put back any more once the namespace is gone.
pub fn collect(network: &str, live: &BTreeSet<Attachment>, config: Option<&Config>) -> Result<()> {
    let Some(directory) = Directory::open(data_dir(config))? else { return Ok(()) };
    let (mut records, mut errors) = (Vec::new(), Vec::new());
    for name in directory.names()?.into_iter().filter(|name| name.ends_with(".json")) {
        let content = directory.read(&name).unwrap_or_else(|error| {
            errors.push(error);
            Stored::Absent
        });
        if let Stored::Bytes(bytes) = content
            && let Ok(record) = Record::parse(&bytes)
            && let Some(owner) = record.owner()
        {
            records.push((name, owner, record));
        }
    }
    records.sort_by_key(|(_, _, record)| record.order());
    let is_dead = |owner: &Attachment| owner.network == network && !live.contains(owner);
    let is_left = |owner: Option<Attachment>| owner.is_some_and(|owner| is_dead(&owner));
    errors.extend(remove_unfinished(&directory, directory.unfinished()?, &is_left).err());
    while let Some(at) = records.iter().rposition(|(_, owner, _)| is_dead(owner)) {
        let (name, owner, record) = records.remove(at);
        match find_container(&record, None, &owner) {
            Ok(Ok(container)) => {
                let beside = records.iter().map(|(_, _, record)| record).filter(|r| r.is_of_netns(&container.place));
                let others: Vec<Record> = beside.cloned().collect();
                let unable = put_back(&container, &record, &others).unwrap_or_else(|error| vec![error]);
                if !unable.is_empty() {
                    errors.extend(unable);
                    continue;
                }
            }
            Ok(Err(reason)) => log::info!("{owner}: nothing is put back: {reason}"),
            Err(error) => {
                errors.push(error);
                continue;
            }
        }
        errors.extend(directory.remove(&name).err());
    }
    Error::gather(errors)
}

/// Whether CAP_NET_ADMIN (number 12 in linux/capability.h) is among the capabilities in force (proc(5), `CapEff`).
fn may_administer_networks() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // Who can't tell doesn't say no.
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_none_or(|bits| bits & 1 << 12 != 0)
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
    if !config.sysctls.is_empty() && sysctl::all_read_only() {
        return Err(Error::NotAvailable {
            reason: "/proc/sys is mounted read-only, so no sysctl can be set".into(),
            next: "run the container runtime, or the container that it runs in, with a writable /proc/sys".into(),
        });
    }
    if !config.sysctls.is_empty()
        && let Some(list) = read_allowlist()?
    {
        let change = format!("change the configuration or {}", allowlist::PATH);
        config.sysctls.iter().try_for_each(|s| plan::admit(&list, s)).map_err(|e| not_available(e, &change))?;
    }
    Directory::probe(&config.data_dir).map_err(|e| not_available(e, "make dataDir a directory, or name another one"))
}
