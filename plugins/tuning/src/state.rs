//! The container's namespace, the state files and the allowlist: all that this plugin opens.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use common::cni::CniResult;
use common::cni::env::Verb;
use common::cni::version::Version;
use common::link::RouteSocket;
use common::link::attributes::{LinkAttributes, LinkFacts, mac_text};
use common::netns::{Netns, identity};
use common::store::{Directory, Stored};
use common::sysctl::{self, Content, Key, Name};
use common::{Attachment, Call, Difference, Error, Result, State};

use crate::allowlist::{self, Allowlist};
use crate::config::{Config, DEFAULT_DATA_DIR};
use crate::plan::{self, Facts, Found, Step};
use crate::record::{Original, Place, Record, file_names};

/// An open container: its namespace, and its interface if attributes of it are concerned.
pub struct Container {
    netns: Netns,
    identity: String,
    ifname: String,
    socket: Option<RouteSocket>,
}

impl Container {
    /// Opens the namespace of a call, and a socket in it if `with_link`.
    pub fn open(call: &Call, with_link: bool) -> Result<Container> {
        let path = call.netns.as_deref().unwrap_or(Path::new(""));
        Container::inside(Netns::open(path)?, path, call, with_link)
    }

    fn inside(netns: Netns, path: &Path, call: &Call, with_link: bool) -> Result<Container> {
        let socket = if with_link { Some(RouteSocket::open_in(&netns)?) } else { None };
        let (device, inode) = identity(path).unwrap_or_default();
        Ok(Container { netns, identity: format!("{device}:{inode}"), ifname: call.attachment.ifname.clone(), socket })
    }

    /// Looks up whatever the plan depends on. Changes nothing.
    pub fn observe(&self, config: &Config, call: &Call) -> Result<Facts> {
        let adding = call.verb == Verb::Add;
        let keys = config.sysctls.iter().map(|s| &s.key);
        let mut sysctls: Vec<Found> =
            self.netns.enter(|| keys.clone().map(|key| find(key, adding)).collect::<Result<_>>())?;
        for (key, found) in keys.zip(&mut sysctls) {
            if let Found::Missing { on_host } = found {
                *on_host = first_existing(key)?.map(|(name, _)| name);
            }
        }
        Ok(Facts {
            link: self.link()?,
            sysctls,
            allowlist: if adding && !config.sysctls.is_empty() { read_allowlist()? } else { None },
            record: if adding { None } else { saved_record(config, &call.attachment)? },
        })
    }

    fn link(&self) -> Result<Option<LinkFacts>> {
        self.socket.as_ref().map_or(Ok(None), |socket| socket.link_facts(&self.ifname))
    }

    fn set_link(&self, index: u32, wanted: &LinkAttributes) -> Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        socket.set_link_attributes(index, &self.ifname, wanted).map_err(|error| match (&error, &wanted.mac) {
            // eth_prepare_mac_addr_change (net/ethernet/eth.c): a driver without IFF_LIVE_ADDR_CHANGE.
            (Error::Kernel { errno: nix::errno::Errno::EBUSY, .. }, Some(mac)) => Error::Link {
                link: self.ifname.clone(),
                reason: format!(
                    "its hardware address can't become {} while it is up: give the address to the plugin that makes \
                     the interface, before it brings it up",
                    mac_text(mac)
                ),
            },
            _ => error,
        })
    }

    /// Writes the steps in order; on failure says how many were tried, the failed one included.
    fn write(&self, steps: &[Step], index: u32) -> std::result::Result<(), (usize, Error)> {
        let write = |step: &Step| match step {
            Step::Link { after, .. } => self.set_link(index, after),
            Step::Sysctl { name, after, .. } => write_sysctl(name, after),
        };
        let all = || {
            let first_failure = steps.iter().enumerate().find_map(|(at, s)| write(s).err().map(|e| (at + 1, e)));
            Ok(first_failure.map_or(Ok(()), Err))
        };
        self.netns.enter(all).unwrap_or_else(|error| Err((steps.len(), error)))
    }

    /// Puts everything back: the MTU, the sysctls from the last to the first, the other attributes; then once more those
    /// sysctls that the handler of another one has changed again (`conf.all.forwarding` writes every interface's).
    ///
    /// What is gone needs nothing put back. `ifindex`: the interface that was meant, if that is known.
    fn put_back(&self, original: &Original, ifindex: Option<u32>) -> Vec<Error> {
        let link = match self.link() {
            Ok(link) => link.filter(|l| ifindex.is_none_or(|meant| meant == l.index)),
            Err(error) => return vec![error],
        };
        let missing = link.as_ref().map(|l| original.link.missing_in(&l.attributes)).unwrap_or_default();
        let index = link.map_or(0, |l| l.index);
        if original.sysctls.is_empty() {
            return self.put_back_link(index, &missing);
        }
        let (mtu, others) = missing.split_mtu();
        let mut errors = self.put_back_link(index, &mtu);
        let _ = self.put_back_sysctls(original.sysctls.iter().rev());
        errors.extend(self.put_back_link(index, &others));
        errors.extend(self.put_back_sysctls(original.sysctls.iter()));
        errors
    }

    /// With one message; attribute by attribute if the kernel refuses that, because it stops at the first it refuses.
    fn put_back_link(&self, index: u32, missing: &LinkAttributes) -> Vec<Error> {
        match self.set_link(index, missing) {
            Ok(()) => Vec::new(),
            Err(_) => missing.one_by_one().iter().filter_map(|one| self.set_link(index, one).err()).collect(),
        }
    }

    fn put_back_sysctls<'a>(&self, sysctls: impl Iterator<Item = &'a (Name, String)>) -> Vec<Error> {
        let put_back = |(name, before): &(Name, String)| match sysctl::read(name)? {
            Some(Content::Value(value)) if value == *before => Ok(()),
            None => Ok(()),
            Some(_) => sysctl::write(name, before),
        };
        let all = || Ok(sysctls.filter_map(|s| put_back(s).err()).collect());
        self.netns.enter(all).unwrap_or_else(|error| vec![error])
    }

    /// What the kernel made of the sysctls that were written.
    fn kept(&self, steps: &[Step]) -> Result<Vec<(Name, String)>> {
        let names = steps.iter().filter_map(|step| match step {
            Step::Sysctl { name, .. } => Some(name),
            Step::Link { .. } => None,
        });
        let value = |name: &Name| match sysctl::read(name) {
            Ok(Some(Content::Value(value))) => Some(Ok((name.clone(), value))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        self.netns.enter(|| names.filter_map(value).collect())
    }
}

/// The first name of a key that exists in the calling thread's namespace.
fn first_existing(key: &Key) -> Result<Option<(Name, Content)>> {
    for name in key.names() {
        if let Some(content) = sysctl::read(name)? {
            return Ok(Some((name.clone(), content)));
        }
    }
    Ok(None)
}

fn find(key: &Key, to_write: bool) -> Result<Found> {
    let Some((name, content)) = first_existing(key)? else { return Ok(Found::Missing { on_host: None }) };
    if !to_write {
        return Ok(Found::There { name, content, followers: Vec::new() });
    }
    match sysctl::writable(&name) {
        Ok(()) => {}
        Err(Error::Kernel { errno, .. }) => return Ok(Found::Locked { name, reason: errno.to_string() }),
        Err(error) => return Err(error),
    }
    let mut followers = Vec::new();
    for follower in sysctl::followers(&name) {
        if let Some(Content::Value(value)) = sysctl::read(&follower)? {
            followers.push((follower, value));
        }
    }
    Ok(Found::There { name, content, followers })
}

/// Writes a sysctl; a value that the kernel does not take is the configuration's fault.
fn write_sysctl(name: &Name, value: &str) -> Result<()> {
    use nix::errno::Errno::{EEXIST, EINVAL, ENOENT, ERANGE};
    sysctl::write(name, value).map_err(|error| match error {
        Error::Kernel { errno: errno @ (EINVAL | ERANGE | ENOENT | EEXIST), .. } => Error::UnsupportedField {
            key: format!("sysctl {name}"),
            value: format!("\"{value}\""),
            reason: format!("the kernel refuses the value: {errno}"),
        },
        other => other,
    })
}

/// The administrator's list, if there is one.
fn read_allowlist() -> Result<Option<Allowlist>> {
    match std::fs::read(allowlist::PATH) {
        Ok(content) => {
            let list = Allowlist::parse(&content);
            list.warnings().iter().for_each(|warning| log::warn!("{warning}"));
            Ok(Some(list))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", allowlist::PATH, &error)),
    }
}

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
        if self.steps.is_empty() {
            return Ok(());
        }
        let directory = Directory::create(&self.config.data_dir)?;
        let mut slot = Slot::choose(&directory, &call.attachment)?;
        let ifindex = self.facts.link.as_ref().map(|l| l.index);
        let place = Place { netns: self.container.identity.clone(), ifindex };
        let mut record = slot.take_record(&place).unwrap_or_else(|| Record::new(&call.attachment, place));
        record.remember(&self.steps, ifindex);
        directory.write(&slot.name, &record.to_bytes())?;
        if let Err((tried, error)) = self.container.write(&self.steps, ifindex.unwrap_or_default()) {
            let tried = self.steps.get(..tried).unwrap_or_default();
            let mut errors = vec![error];
            errors.extend(self.container.put_back(&Original::of(tried), ifindex));
            errors.extend(slot.revert(&directory).err());
            return Error::gather(errors);
        }
        self.note_kept(record, &directory, &slot.name);
        Ok(())
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
    /// The kernel rounds and rewrites some values; CHECK must not take that for a difference. A failure here costs CHECK
    /// its knowledge, not ADD its success.
    fn note_kept(&self, mut record: Record, directory: &Directory, file: &str) {
        let outcome = self.container.kept(&self.steps).and_then(|kept| {
            let news = kept.iter().filter(|(name, value)| record.note_kept(name, value)).count();
            if news == 0 { Ok(()) } else { directory.write(file, &record.to_bytes()) }
        });
        if let Err(error) = outcome {
            log::warn!("{error}; CHECK will compare with the configuration's values only");
        }
    }
}

/// The place of an attachment's state file, and what stands there.
struct Slot {
    name: String,
    content: Option<Vec<u8>>,
    record: Option<Record>,
}

impl Slot {
    /// The file of the attachment if there is one, else the first place that no other attachment has.
    ///
    /// A file of the reference has no owner: it is what an earlier container of this name left behind.
    fn choose(directory: &Directory, attachment: &Attachment) -> Result<Slot> {
        let mut free = None;
        for name in file_names(attachment) {
            let (content, record) = match directory.read(&name)? {
                Stored::Absent => (None, None),
                Stored::Spoilt(_) => (None, None),
                Stored::Bytes(bytes) => {
                    let record = Record::parse(&bytes).ok();
                    (Some(bytes), record)
                }
            };
            match record.as_ref().and_then(Record::owner) {
                Some(owner) if owner == *attachment => return Ok(Slot { name, content, record }),
                Some(_) => {}
                None => free = free.or(Some(Slot { name, content, record: None })),
            }
        }
        free.ok_or_else(|| Error::StateFile {
            path: directory.path_of(&file_names(attachment).join(" and ")),
            reason: "other attachments' state stands in every place that this one's could have".into(),
        })
    }

    /// The record, if it speaks of this very place: of an earlier container's interface there is nothing to keep.
    fn take_record(&mut self, place: &Place) -> Option<Record> {
        let same_link = |r: &Record| r.ifindex().is_none() || place.ifindex.is_none() || r.ifindex() == place.ifindex;
        self.record.take().filter(|r| r.is_of_netns(&place.netns) && same_link(r))
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

fn saved_record(config: &Config, attachment: &Attachment) -> Result<Option<Record>> {
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
    let Some((name, record)) = find_record(&directory, &call.attachment, true)? else { return Ok(()) };
    let errors = put_back_if_there(call, &record)?;
    if errors.is_empty() {
        return directory.remove(&name).map(drop);
    }
    for error in errors {
        log::warn!("{error}; {} is kept for the next DEL", directory.path_of(&name).display());
    }
    Ok(())
}

/// Puts back what was saved, unless the namespace it was found in is gone.
fn put_back_if_there(call: &Call, record: &Record) -> Result<Vec<Error>> {
    let original = record.original();
    let Some(path) = call.netns.as_deref() else { return Ok(Vec::new()) };
    // A namespace that can't be opened is gone: nothing is left to put back.
    let Ok(netns) = Netns::open(path) else { return Ok(Vec::new()) };
    let container = Container::inside(netns, path, call, !original.link.is_empty())?;
    if !record.is_of_netns(&container.identity) {
        return Ok(Vec::new());
    }
    Ok(container.put_back(&original, record.ifindex()))
}

/// GC: removes the files of the network's attachments that are gone, and no other file.
pub fn collect(network: &str, live: &BTreeSet<Attachment>, config: Option<&Config>) -> Result<()> {
    let Some(directory) = Directory::open(data_dir(config))? else { return Ok(()) };
    let is_dead = |name: &str| {
        let Ok(Stored::Bytes(bytes)) = directory.read(name) else { return false };
        let owner = Record::parse(&bytes).ok().and_then(|record| record.owner());
        owner.is_some_and(|o| o.network == network && !live.contains(&o))
    };
    let names = directory.names()?;
    let dead = names.iter().filter(|name| name.ends_with(".json") && is_dead(name));
    Error::gather(dead.filter_map(|name| directory.remove(name).err()).collect())
}

/// STATUS: the allowlist admits what is configured, and what ADD needs can be written.
pub fn status(config: &Config) -> Result<()> {
    let not_available = |error: Error, next: &str| Error::NotAvailable { reason: error.to_string(), next: next.into() };
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
