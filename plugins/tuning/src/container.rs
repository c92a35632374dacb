//! The container's namespace: looking, writing, and putting back.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

use common::cni::env::Verb;
use common::link::RouteSocket;
use common::link::attributes::{LinkAttributes, LinkFacts, mac_text};
use common::link::ipv6::Entry;
use common::netns::{self, Netns};
use common::sysctl::{self, Content, Key, Name};
use common::{Attachment, Call, Error, Result};

use crate::allowlist::{self, Allowlist};
use crate::config::Config;
use crate::plan::{self, Facts, Found, Step};
use crate::record::{Former, Original, Place};

/// An open container: its namespace, and which of its interfaces is concerned.
pub struct Container {
    netns: Netns,
    home: Netns,
    /// Where it is.
    pub place: Place,
    ifname: String,
    socket: OnceCell<RouteSocket>,
}

/// What has come of writing.
pub struct Outcome {
    /// What the sysctls hold then, and those that the kernel changed along with them.
    pub kept: Vec<(Name, String)>,
    /// The IPv6 addresses and routes of interfaces that have no IPv6 any more.
    pub lost: Vec<Entry>,
    /// The neighbours that went with the hardware address and are back, or come back with IPv6.
    pub neighbours: Vec<Entry>,
}

impl Container {
    /// Opens the namespace of a call.
    pub fn of_call(call: &Call) -> Result<Container> {
        let path = call.netns.as_deref().unwrap_or(Path::new(""));
        Container::inside(Netns::open(path)?, path, &call.attachment)
    }

    /// The container of an attachment in an open namespace.
    pub fn inside(netns: Netns, path: &Path, attachment: &Attachment) -> Result<Container> {
        let ifname = attachment.ifname.clone();
        let home = Netns::own()?;
        let (cookie, ifindex) = netns.enter_from(&home, || Ok((netns::cookie()?, netns::ifindex(&ifname)?)))?;
        let (device, inode) = netns.identity()?;
        let place = Place { netns: group_of(device, inode), cookie, path: path.display().to_string(), ifindex };
        Ok(Container { netns, home, place, ifname, socket: OnceCell::new() })
    }

    /// Since when the namespace's file has been held; `None` if that can't be known.
    pub fn held_since(&self) -> Option<std::time::SystemTime> {
        self.netns.held_since()
    }

    fn enter<T>(&self, inside: impl FnOnce() -> Result<T>) -> Result<T> {
        self.netns.enter_from(&self.home, inside)
    }

    fn socket(&self) -> Result<&RouteSocket> {
        if self.socket.get().is_none() {
            let _ = self.socket.set(self.enter(RouteSocket::open)?);
        }
        self.socket.get().ok_or_else(|| Error::Internal { what: "a socket that was opened is gone".into() })
    }

    /// Looks up whatever the plan depends on, but for the record. Changes nothing.
    pub fn observe(&self, config: &Config, call: &Call) -> Result<Facts> {
        let adding = call.verb == Verb::Add;
        let link = if config.link.is_empty() { None } else { self.link()? };
        let awaits = adding && plan::gains_ipv6(config, link.as_ref());
        let mut facts = self.enter(|| self.sysctls(config, adding, awaits))?;
        for (setting, found) in config.sysctls.iter().zip(&mut facts.sysctls) {
            match found {
                Found::Missing { on_host } => *on_host = first_existing(&setting.key)?.map(|(name, _)| name),
                Found::Locked { name, on_host_too, .. } => *on_host_too = sysctl::is_read_only(name),
                _ => {}
            }
        }
        facts.link = link;
        if !adding {
            return Ok(facts);
        }
        if !config.sysctls.is_empty() {
            facts.allowlist = read_allowlist()?;
        }
        facts.readdressed = plan::readdressed(&facts.sysctls);
        facts.loses_ipv6 = plan::losing_ipv6(config, &self.ifname, facts.link.as_ref(), &facts.sysctls);
        let mtu = facts.link.as_ref().and_then(|l| l.attributes.mtu);
        if let (Some(link), Some(mac)) = (&facts.link, &config.link.mac)
            && link.attributes.mac.as_ref() != Some(mac)
        {
            facts.neighbours = self.socket()?.static_neighbours(&[link.index])?;
        }
        facts.indexes = self.place.ifindex.map(|index| (self.ifname.clone(), index)).into_iter().collect();
        let others = others_concerned(&facts);
        let changes_mtu = config.link.mtu.is_some() && config.link.mtu != mtu;
        if changes_mtu || !others.is_empty() {
            self.enter(|| {
                if changes_mtu {
                    let vanish = config.link.mtu.is_some_and(|mtu| mtu < plan::IPV6_MIN_MTU);
                    let own_mtu = || Name::new(&format!("net/ipv6/conf/{}/mtu", self.ifname)).into_iter().collect();
                    let along = if vanish { sysctl::of_ipv6(&self.ifname)? } else { own_mtu() };
                    facts.along_with_mtu = values(along.into_iter())?;
                }
                for interface in others {
                    facts.indexes.extend(netns::ifindex(&interface)?.map(|index| (interface, index)));
                }
                Ok(())
            })?;
        }
        self.find_ipv6(&mut facts)?;
        Ok(facts)
    }

    /// What is to come back of the interfaces that lose IPv6, or get other addresses.
    fn find_ipv6(&self, facts: &mut Facts) -> Result<()> {
        let index = |interface: &String| facts.indexes.get(interface).copied();
        let losing: Vec<u32> = facts.loses_ipv6.iter().filter_map(index).collect();
        let all: Vec<u32> = facts.readdressed.iter().filter_map(index).chain(losing.iter().copied()).collect();
        if !all.is_empty() {
            facts.ipv6 = self.socket()?.ipv6_of(&all)?;
            facts.ipv6.retain(|entry| entry.is_the_kernels_own() || losing.contains(&entry.link));
        }
        require_giving_back(facts, &[])
    }

    fn sysctls(&self, config: &Config, adding: bool, awaits: bool) -> Result<Facts> {
        let mut sysctls = Vec::with_capacity(config.sysctls.len());
        for setting in &config.sysctls {
            let found = find(&setting.key, adding)?;
            let awaited = match found {
                Found::Missing { .. } if awaits => self.awaited(&setting.key)?,
                _ => None,
            };
            sysctls.push(awaited.map_or(found, |name| Found::Awaited { name }));
        }
        Ok(Facts { sysctls, ..Facts::default() })
    }

    /// A sysctl that the interface will have with IPv6: the loopback interface has it.
    fn awaited(&self, key: &Key) -> Result<Option<Name>> {
        for name in key.names() {
            let of_link = name.interface() == Some(&self.ifname) && name.as_str().starts_with("net/ipv6/");
            if of_link
                && let Some(model) = name.of("lo")
                && sysctl::read(&model)?.is_some()
                && sysctl::writable(&model).is_ok()
            {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    fn link(&self) -> Result<Option<LinkFacts>> {
        self.socket()?.link_facts(&self.ifname)
    }

    fn set_link(&self, index: u32, wanted: &LinkAttributes) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        self.socket()?.set_link_attributes(index, &self.ifname, wanted).map_err(|error| match (&error, &wanted.mac) {
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

    /// The static neighbours that the interface loses if it gets another hardware address. `ifindex`: which is meant, if that is
    /// known.
    pub fn neighbours(&self, ifindex: Option<u32>) -> Result<Vec<Entry>> {
        let index = match ifindex {
            Some(index) => Some(index),
            None => self.link()?.map(|link| link.index),
        };
        index.map_or(Ok(Vec::new()), |index| self.socket()?.static_neighbours(&[index]))
    }

    /// Puts back neighbours that went with the hardware address; those in IPv6 don't come back where it has gone, too, and are returned.
    fn put_back_neighbours(&self, neighbours: &[Entry]) -> Result<Vec<Entry>> {
        let (ipv6, ipv4): (Vec<&Entry>, Vec<&Entry>) = neighbours.iter().partition(|entry| entry.is_ipv6s());
        let mut errors = if ipv4.is_empty() {
            Vec::new()
        } else {
            self.socket().map_or_else(|error| vec![error], |socket| socket.put_back_neighbours(&ipv4))
        };
        let ipv6: Vec<Entry> = ipv6.into_iter().cloned().collect();
        let lost = self.put_back_ipv6(&ipv6).unwrap_or_else(|error| {
            errors.push(error);
            Vec::new()
        });
        Error::gather(errors).map(|()| lost)
    }

    /// Writes the steps in order, and gives back to interfaces that have IPv6 in the end what they lost on the way, and what they
    /// had lost before (`returning`).
    pub fn write(&self, steps: &[Step], facts: &Facts, returning: &[Entry]) -> Result<Outcome> {
        let index = facts.link.as_ref().map_or(0, |l| l.index);
        let mut kept = Vec::new();
        for group in steps.chunk_by(|a, b| matches!((a, b), (Step::Sysctl { .. }, Step::Sysctl { .. }))) {
            match group {
                [Step::Link { after, .. }] => self.set_link(index, after)?,
                sysctls => kept.extend(self.enter(|| write_together(sysctls))?),
            }
        }
        let mut neighbours = facts.neighbours.clone();
        let absent = self.put_back_neighbours(&neighbours)?;
        // What goes with IPv6 now comes back with IPv6.
        neighbours.retain(|entry| !absent.contains(entry) || facts.ipv6.contains(entry));
        let lost = self.put_back_ipv6(&facts.ipv6)?;
        self.put_back_ipv6(returning)?;
        let mut followers: Vec<Name> = steps.iter().flat_map(Step::followers).map(|(name, _)| name.clone()).collect();
        followers.retain(|name| kept.iter().all(|(known, _)| known != name));
        if !followers.is_empty() {
            kept.extend(self.enter(|| values(followers.into_iter()))?);
        }
        Ok(Outcome { kept, lost, neighbours })
    }

    /// Puts everything back: the link, then the sysctls from the last to the first; then again those that the handler of
    /// another one has changed (`conf.all.forwarding` writes every interface's); then IPv6 addresses and routes.
    ///
    /// What is gone needs nothing put back. `ifindex`: the interface that was meant, if that is known.
    pub fn put_back(&self, original: &Original, ifindex: Option<u32>) -> Vec<Error> {
        let mut errors =
            if original.link.is_empty() { Vec::new() } else { self.put_back_link(&original.link, ifindex) };
        if !original.sysctls.is_empty() {
            match self.put_back_all_sysctls(&original.sysctls) {
                Ok(refused) => {
                    errors.extend(refused.into_iter().filter_map(|(s, e)| self.put_back_bounded(s, e).err()))
                }
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.put_back_neighbours(&original.neighbours).err());
        errors.extend(self.put_back_ipv6(&original.ipv6).err());
        errors.extend(self.remove_other_addresses(original).err());
        errors
    }

    /// What the kernel has made of another hardware address, or in another way, and what it does not take away itself.
    fn remove_other_addresses(&self, original: &Original) -> Result<()> {
        if original.own_addresses.is_empty() {
            return Ok(());
        }
        let links: Vec<u32> = original.own_addresses.iter().copied().collect();
        let mut now = self.socket()?.ipv6_of(&links)?;
        now.retain(|entry| entry.is_the_kernels_own() && !original.ipv6.iter().any(|old| old.is_same_object(entry)));
        Error::gather(self.socket()?.remove_addresses(&now))
    }

    /// With one message; attribute by attribute if the kernel refuses that, because it stops at the first it refuses.
    fn put_back_link(&self, original: &LinkAttributes, ifindex: Option<u32>) -> Vec<Error> {
        // By its index, where that is known: it may have been given another name.
        let link = match ifindex {
            Some(index) => self.socket().and_then(|socket| socket.link_facts_at(index)),
            None => self.link(),
        };
        let link = match link {
            Ok(Some(link)) => link,
            Ok(None) => return Vec::new(),
            Err(error) => return vec![error],
        };
        let missing = original.missing_in(&link.attributes);
        match self.set_link(link.index, &missing) {
            Ok(()) => Vec::new(),
            Err(_) => missing.one_by_one().iter().filter_map(|one| self.set_link(link.index, one).err()).collect(),
        }
    }

    /// From the last to the first, then from the first to the last until all hold: one that is written late, because it was refused
    /// at first, may change others that were back. Gives those that could not be put back, and why.
    fn put_back_all_sysctls<'a>(&self, sysctls: &'a [Former]) -> Result<Vec<(&'a Former, Error)>> {
        self.enter(|| {
            put_back_sysctls(sysctls.iter().rev());
            let mut refused = Vec::new();
            for _ in 0..LATE_ROUNDS {
                let (changed, still) = put_back_sysctls(sysctls.iter());
                refused = still;
                if !changed {
                    break;
                }
            }
            Ok(refused)
        })
    }

    /// The MTU of IPv6 can't be greater than the interface's (`addrconf_sysctl_mtu`, net/ipv6/addrconf.c). That is another
    /// attachment's or somebody else's wish by now, so it goes back as far as that lets it.
    fn put_back_bounded(&self, former: &Former, refusal: Error) -> Result<()> {
        let is_bound = matches!(refusal, Error::Kernel { errno: nix::errno::Errno::EINVAL, .. })
            && plan::changes_with_mtu(former.name.as_str(), plan::IPV6_MIN_MTU);
        if !is_bound {
            return Err(refusal);
        }
        let Some(name) = self.enter(|| present_name(former))? else { return Ok(()) };
        let link = name.interface().map_or(Ok(None), |interface| self.socket()?.link_facts(interface))?;
        let mtu = link.and_then(|link| link.attributes.mtu);
        match mtu.filter(|mtu| former.value.parse::<u32>().is_ok_and(|wanted| wanted > *mtu)) {
            Some(mtu) => self.enter(|| sysctl::write(&name, &mtu.to_string())),
            None => Err(refusal),
        }
    }

    /// Puts addresses and routes back on the links that have IPv6; those of the others are returned.
    fn put_back_ipv6(&self, entries: &[Entry]) -> Result<Vec<Entry>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut has_ipv6: BTreeMap<u32, bool> = BTreeMap::new();
        for entry in entries {
            if has_ipv6.contains_key(&entry.link) {
                continue;
            }
            let name = self.socket()?.device_at(entry.link)?.map(|d| d.name).unwrap_or_default();
            let switch = Name::new(&format!("net/ipv6/conf/{name}/disable_ipv6"));
            let off = |name: &Name| sysctl::read(name);
            let value = switch.map_or(Ok(None), |name| self.enter(|| off(&name)))?;
            has_ipv6.insert(entry.link, value.as_ref().and_then(Content::value) == Some("0"));
        }
        let (there, lost): (Vec<&Entry>, Vec<&Entry>) =
            entries.iter().partition(|e| has_ipv6.get(&e.link).copied().unwrap_or_default());
        Error::gather(self.socket()?.put_back_ipv6(&there))?;
        Ok(lost.into_iter().cloned().collect())
    }

    /// What the kernel changes along with these sysctls, by now.
    pub fn along_with(&self, names: &[Name]) -> Result<Vec<Name>> {
        self.enter(|| {
            let followers: Vec<Vec<Name>> = names.iter().map(sysctl::followers).collect::<Result<_>>()?;
            Ok(followers.concat())
        })
    }
}

/// Fails if a later failure could not be undone: a sysctl that takes addresses and routes from an interface, or makes it others,
/// takes no capability, but giving them back and removing the others takes CAP_NET_ADMIN. So does giving back what an earlier one
/// took (`returning`).
pub fn require_giving_back(facts: &Facts, returning: &[Entry]) -> Result<()> {
    let losing = facts.ipv6.iter().chain(returning).next().map(|entry| entry.link);
    let losing = facts.indexes.iter().find(|(_, index)| Some(**index) == losing).map(|(name, _)| name);
    let Some(link) = losing.or(facts.readdressed.first()) else { return Ok(()) };
    if may_administer_networks() {
        return Ok(());
    }
    let reason = "its IPv6 addresses and routes could not be put back without CAP_NET_ADMIN; run the plugin as root";
    Err(Error::Link { link: link.clone(), reason: reason.into() })
}

/// Whether CAP_NET_ADMIN (number 12 in linux/capability.h) is among the capabilities in force (proc(5), `CapEff`).
pub fn may_administer_networks() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // Who can't tell doesn't say no.
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_none_or(|bits| bits & 1 << 12 != 0)
}

/// A namespace's file, as a record names it and as the files of a namespace are found by.
pub fn group_of(device: u64, inode: u64) -> String {
    format!("{device}:{inode}")
}

/// How often sysctls are put back at most, after the first time. Nearly always it finds nothing left to do.
const LATE_ROUNDS: usize = 3;

/// Says whether there was anything to write that the kernel took, and which could not be put back, and why.
fn put_back_sysctls<'a>(sysctls: impl Iterator<Item = &'a Former>) -> (bool, Vec<(&'a Former, Error)>) {
    let put_back = |former: &Former| {
        let Some(name) = present_name(former)? else { return Ok(false) };
        match sysctl::read(&name)? {
            Some(Content::Value(value)) if value == former.value => Ok(false),
            None => Ok(false),
            Some(_) => sysctl::write(&name, &former.value).map(|()| true),
        }
    };
    let (mut changed, mut refused) = (false, Vec::new());
    for former in sysctls {
        match put_back(former) {
            Ok(written) => changed |= written,
            Err(error) => refused.push((former, error)),
        }
    }
    (changed, refused)
}

/// The sysctl's name by now: its interface may have been given another one. `None` if the interface is gone.
fn present_name(former: &Former) -> Result<Option<Name>> {
    let Some(meant) = former.ifindex else { return Ok(Some(former.name.clone())) };
    match former.name.interface() {
        None => Ok(None),
        Some(interface) if netns::ifindex(interface)? == Some(meant) => Ok(Some(former.name.clone())),
        Some(_) => {
            let name = netns::ifname(meant)?.and_then(|now| former.name.of(&now));
            Ok(name.filter(|name| name.interface().is_some()))
        }
    }
}

/// The values of those sysctls that have one.
fn values(names: impl Iterator<Item = Name>) -> Result<Vec<(Name, String)>> {
    let mut values = Vec::new();
    for name in names {
        if let Some(Content::Value(value)) = sysctl::read(&name)? {
            values.push((name, value));
        }
    }
    Ok(values)
}

/// The interfaces whose sysctls change and whose indexes aren't known yet.
fn others_concerned(facts: &Facts) -> BTreeSet<String> {
    let followed = facts.sysctls.iter().flat_map(|found| match found {
        Found::There { name, followers, .. } => std::iter::once(name).chain(followers.iter().map(|(n, _)| n)).collect(),
        _ => Vec::new(),
    });
    let concerned = followed.filter_map(Name::interface).chain(facts.loses_ipv6.iter().map(String::as_str));
    concerned.filter(|interface| !facts.indexes.contains_key(*interface)).map(str::to_owned).collect()
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
    if to_write
        && let Some(name) = key.names().first()
        && let Some(content) = sysctl::read_writable(name)?
    {
        return there(name.clone(), content);
    }
    let Some((name, content)) = first_existing(key)? else { return Ok(Found::Missing { on_host: None }) };
    if content == Content::Directory {
        return Ok(Found::Directory { name });
    }
    if !to_write {
        return Ok(Found::There { name, content, followers: Vec::new() });
    }
    match sysctl::writable(&name) {
        Ok(()) => {}
        Err(Error::Kernel { errno, .. }) => {
            return Ok(Found::Locked { name, reason: errno.to_string(), on_host_too: false });
        }
        Err(error) => return Err(error),
    }
    there(name, content)
}

fn there(name: Name, content: Content) -> Result<Found> {
    let followers = values(sysctl::followers(&name)?.into_iter())?;
    Ok(Found::There { name, content, followers })
}

/// A sysctl that was written: what was meant, and what the kernel made of it.
struct Written<'a> {
    name: &'a Name,
    value: &'a str,
    held: Option<String>,
}

/// Writes sysctls in order. One that the kernel refuses is tried again behind the others, because its bounds may be among
/// them; one that a later one has changed is written again. All hold in the end, and what the kernel made of them is returned,
/// or it is an error.
fn write_together(steps: &[Step]) -> Result<Vec<(Name, String)>> {
    let mut waiting: Vec<(&Name, &str)> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Sysctl { name, after, .. } => Some((name, after.as_str())),
            Step::Link { .. } => None,
        })
        .collect();
    let mut written = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let number = waiting.len();
        let mut refusals = Vec::new();
        let mut refused = Vec::new();
        for (name, value) in waiting {
            match write_sysctl(name, value) {
                Ok(held) => {
                    held.iter().try_for_each(|held| took_all(name, value, held))?;
                    written.push(Written { name, value, held });
                }
                Err(error @ Error::UnsupportedField { .. }) => {
                    refusals.push(error);
                    refused.push((name, value));
                }
                Err(error) => return Err(error),
            }
        }
        if refused.len() == number {
            return Err(refusals.swap_remove(0));
        }
        waiting = refused;
    }
    agree(&written)?;
    Ok(written.into_iter().filter_map(|w| w.held.map(|held| (w.name.clone(), held))).collect())
}

/// Of several numbers the kernel takes as many as the sysctl has, and says nothing about the rest (`__do_proc_dointvec` in
/// kernel/sysctl.c).
fn took_all(name: &Name, value: &str, held: &str) -> Result<()> {
    let numbers = |text: &str| text.split_whitespace().count();
    let has_dropped = numbers(held) < numbers(value) && sysctl::same_value(&first(value, numbers(held)), held);
    if !has_dropped || !held.split_whitespace().all(|number| number.parse::<i64>().is_ok()) {
        return Ok(());
    }
    Err(Error::UnsupportedField {
        key: format!("sysctl {name}"),
        value: format!("\"{value}\""),
        reason: format!("the kernel takes {} of these numbers and drops the others", numbers(held)),
    })
}

fn first(value: &str, words: usize) -> String {
    value.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

fn held(name: &Name) -> Result<Option<String>> {
    Ok(sysctl::read(name)?.as_ref().and_then(Content::value).map(str::to_owned))
}

/// Writes again what another one's handler has overwritten, until all hold what they held when they were written.
fn agree(written: &[Written<'_>]) -> Result<()> {
    let overwritten = || -> Result<Vec<&Written<'_>>> {
        let mut lost = Vec::new();
        for one in written {
            if held(one.name)? != one.held {
                lost.push(one);
            }
        }
        Ok(lost)
    };
    if written.len() < 2 {
        return Ok(());
    }
    for _ in written {
        let lost = overwritten()?;
        if lost.is_empty() {
            return Ok(());
        }
        lost.iter().try_for_each(|one| write_sysctl(one.name, one.value).map(drop))?;
    }
    let Some(one) = overwritten()?.first().copied() else { return Ok(()) };
    write_sysctl(one.name, one.value)?;
    let Some(other) = overwritten()?.first().copied() else { return Ok(()) };
    Err(Error::UnsupportedField {
        key: format!("sysctl {}", one.name),
        value: format!("\"{}\"", one.value),
        reason: format!("it can't hold beside {} = \"{}\": writing either changes the other", other.name, other.value),
    })
}

/// Writes a sysctl and gives what it holds then; a value that the kernel does not take is the configuration's fault.
fn write_sysctl(name: &Name, value: &str) -> Result<Option<String>> {
    use nix::errno::Errno::{EEXIST, EINVAL, ENOENT, ERANGE};
    let written = sysctl::write_and_read(name, value).map_err(|error| match error {
        Error::Kernel { errno: errno @ (EINVAL | ERANGE | ENOENT | EEXIST), .. } => Error::UnsupportedField {
            key: format!("sysctl {name}"),
            value: format!("\"{value}\""),
            reason: format!("the kernel refuses the value: {errno}"),
        },
        other => other,
    })?;
    Ok(written.as_ref().and_then(Content::value).map(str::to_owned))
}

/// The administrator's list, if there is one.
pub fn read_allowlist() -> Result<Option<Allowlist>> {
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
