//! `route_localnet` of the links to containers: on as long as somebody needs it, and never without its guard.
//!
//! A link is known by its index: the sysctl goes with it when somebody gives it another name.
//!
//! What it was before stands twice: as the comment of the chain that counts a link's users, which counts, and in a file
//! for each link, which is called by its namespace and its index: namespaces may share /run. `nft flush ruleset`, which every
//! restart of Debian's nftables service is, takes the table with the guard and the comment, and leaves the sysctl. Who next
//! finds the table gone gives every link that has a file its value back.

use std::path::Path;

use common::Result;
use common::link::RouteSocket;
use common::link::attributes::mac_text;
use common::link::device::Device;
use common::netns::{self, Netns};
use common::nft::NftSocket;
use common::store::{Directory, Stored};
use common::sysctl;

use crate::rules::{self, TABLE};

/// Where the files are; a tmpfs, as all of /run: no sysctl outlives a boot either.
const DIRECTORY: &str = "/run/cni/portmap";

/// What follows where nothing can be noted.
const WOULD_STAY_ON: &str = "after `nft flush ruleset` neither DEL nor GC would set back route_localnet";

/// More often nobody changes a link's users while another call looks at them.
const TRIES: usize = 10;

/// A link to containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its index, which the kernel gives to no other link of the namespace until the next boot, unless it is asked to.
    pub index: u32,
    /// What it is or was called.
    pub name: String,
    /// What stays of it when it gets another name; `None` where it hasn't been looked at.
    pub known_by: Option<String>,
}

impl Link {
    /// A link as the kernel has it.
    pub fn of(device: &Device) -> Link {
        Link { index: device.index, name: device.name.clone(), known_by: Some(known_by(device)) }
    }
}

fn name(link: &str) -> Option<sysctl::Name> {
    sysctl::Name::new(&format!("net/ipv4/conf/{link}/route_localnet"))
}

/// The sysctl's value on a link; `None` if there is no such link.
pub fn read(link: &str) -> Result<Option<String>> {
    let Some(name) = name(link) else { return Ok(None) };
    Ok(sysctl::read(&name)?.and_then(|content| content.value().map(str::to_owned)))
}

/// Sets the sysctl on a link; nothing where there is no such link.
pub fn write(link: &str, value: &str) -> Result<()> {
    let Some(name) = name(link) else { return Ok(()) };
    match sysctl::read(&name)? {
        // Where nothing can be written nothing has been, so undoing must not fail for that.
        Some(content) if content.value() != Some(value) => sysctl::write(&name, value),
        _ => Ok(()),
    }
}

/// Opens a link: its guard is in place. What it was is kept in a file, unless it was open.
pub fn open(link: &Link) -> Result<()> {
    let Some(sysctl) = name(&link.name) else { return Ok(()) };
    let Some(before) = read(&link.name)?.filter(|before| before != "1") else { return Ok(()) };
    let kept = OpenLinks::create().and_then(|files| files.note(link, &before));
    if let Err(error) = kept {
        log::warn!("{error}; {WOULD_STAY_ON} of {}", link.name);
    }
    sysctl::write(&sysctl, "1")
}

/// Gives a link the value that it had before.
///
/// Of a ruleset that somebody has restored after a reboot, the index is another link's: one of another name is left alone, if
/// there is no file that says that it was opened since.
pub fn close(link: &Link, before: &str) -> Result<()> {
    let files = OpenLinks::find();
    if let Some(name) = netns::ifname(link.index)? {
        let is_kept = match &files {
            Ok(Some(files)) if name != link.name => files.before(link.index)?.is_some(),
            _ => false,
        };
        if name == link.name || is_kept {
            write(&name, before)?;
        }
    }
    // The link is closed, whatever is the matter with the file.
    files?.map_or(Ok(()), |files| files.forget(link.index))
}

/// Fails if there may be files that can't be found: what stands in the place of their directory keeps ADD from noting what a link
/// was, and DEL from coming to its end. What only keeps ADD from that is a warning.
pub fn look() -> Result<()> {
    let path = Path::new(DIRECTORY);
    Directory::open(path)?;
    if let Err(error) = Directory::probe(path) {
        log::warn!("{error}; {WOULD_STAY_ON} of links that an ADD opens");
    }
    Ok(())
}

/// What a link goes back to: what is remembered of it from before the table was flushed, or else its value now.
pub fn before(link: &Link) -> Result<String> {
    let remembered = OpenLinks::find()?.map_or(Ok(None), |files| files.before(link.index))?;
    Ok(remembered.or(read(&link.name)?).unwrap_or_else(|| "0".into()))
}

/// After the table was found gone: each link that was open and has no guard by now gets its value back.
pub fn close_unguarded(socket: &mut NftSocket) -> Result<()> {
    let Some(files) = OpenLinks::find()? else { return Ok(()) };
    for index in files.indices()? {
        if is_guarded(socket, index)? {
            continue;
        }
        let name = netns::ifname(index)?.unwrap_or_default();
        if let Some(before) = files.before(index)? {
            log::warn!("route_localnet of {name} is {before} again: it was open without its guard");
            settle(socket, &Link { index, name, known_by: None }, &before)?;
        } else {
            files.forget(index)?;
        }
    }
    Ok(())
}

/// Closes a link that somebody has opened since it was closed: who saw it guarded before its users were gone.
pub fn close_again(socket: &mut NftSocket, link: &Link, before: &str) -> Result<()> {
    let Some(name) = netns::ifname(link.index)? else { return Ok(()) };
    match read(&name)? {
        Some(value) if value != before => settle(socket, link, before),
        _ => Ok(()),
    }
}

/// Opens a link that is guarded and closed all the same: a call that was killed between the sysctl and its transaction, or
/// somebody else, has closed it. It is of no one who is called about, so that it can't be opened is told and no failure.
pub fn reopen(socket: &mut NftSocket, index: u32) {
    let mut try_it = || {
        let Some(name) = netns::ifname(index)? else { return Ok(()) };
        match read(&name)? {
            Some(value) if value != "1" => settle(socket, &Link { index, name, known_by: None }, &value),
            _ => Ok(()),
        }
    };
    if let Err(error) = try_it() {
        log::warn!("127.0.0.1 may lead to no port behind the link of index {index}: {error}");
    }
}

/// Opens all such links, and closes those that are open without a user.
pub fn settle_all(socket: &mut NftSocket) -> Result<()> {
    let chains = socket.chains(&TABLE)?;
    chains.iter().filter_map(|chain| rules::loopback_index(&chain.name)).for_each(|index| reopen(socket, index));
    close_unguarded(socket)
}

/// The files of this namespace's links: what else is in the directory is another's, or nobody's of ours.
struct OpenLinks {
    directory: Directory,
    /// What their names begin with.
    prefix: String,
}

impl OpenLinks {
    fn find() -> Result<Option<OpenLinks>> {
        Directory::open(Path::new(DIRECTORY))?.map(OpenLinks::of).transpose()
    }

    fn create() -> Result<OpenLinks> {
        OpenLinks::of(Directory::create(Path::new(DIRECTORY))?)
    }

    fn of(directory: Directory) -> Result<OpenLinks> {
        // The inode may be another namespace's after this one; an older kernel tells nothing better.
        let netns = match netns::cookie()? {
            Some(cookie) => cookie,
            None => Netns::own()?.identity()?.1,
        };
        Ok(OpenLinks { directory, prefix: format!("{netns}:") })
    }

    fn file(&self, index: u32) -> String {
        format!("{}{index}", self.prefix)
    }

    fn indices(&self) -> Result<Vec<u32>> {
        let names = self.directory.names()?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(&self.prefix)?.parse().ok()).collect())
    }

    /// Notes what a link goes back to, and which link that is.
    fn note(&self, link: &Link, before: &str) -> Result<()> {
        let looked_at = match link.known_by {
            Some(_) => None,
            None => RouteSocket::open()?.device_at(link.index)?.as_ref().map(Link::of),
        };
        let Link { index, name, known_by } = looked_at.as_ref().unwrap_or(link);
        let text = format!("{before} {} {name}", known_by.as_deref().unwrap_or_default());
        self.directory.write(&self.file(*index), text.as_bytes())
    }

    /// What the link of this index goes back to, if it is the one that was noted.
    ///
    /// Only of a link that was not open there is a file: one that says else is not ours, and opens nothing, whoever could put it
    /// there.
    fn before(&self, index: u32) -> Result<Option<String>> {
        let Stored::Bytes(bytes) = self.directory.read(&self.file(index))? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        let ["0", known, name] = text.splitn(3, ' ').collect::<Vec<_>>()[..] else { return Ok(None) };
        let link = RouteSocket::open()?.device_at(index)?;
        Ok(link.filter(|link| link.name == name || known_by(link) == known).map(|_| "0".into()))
    }

    /// Removes a file. What isn't one of ours and can't be removed is passed over: nobody believes it.
    fn forget(&self, index: u32) -> Result<()> {
        let file = self.file(index);
        match self.directory.remove(&file) {
            Err(error) if matches!(self.directory.read(&file), Ok(Stored::Spoilt(_))) => {
                log::warn!("{error}; it is passed over");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }
}

/// What stays of a link when it gets another name. A bridge's address goes with its ports.
fn known_by(link: &Device) -> String {
    match link.mac {
        Some(mac) if link.kind != "bridge" => mac_text(&mac),
        _ => format!("a-{}", link.kind),
    }
}

/// Leaves a link open if it is guarded, closed if not, whatever others do meanwhile.
pub fn settle(socket: &mut NftSocket, link: &Link, before: &str) -> Result<()> {
    let mut guarded = is_guarded(socket, link.index)?;
    for _ in 0..TRIES {
        if guarded {
            open(link)?
        } else {
            close(link, before)?
        }
        // Whoever has put a guard in since then writes 1 after this; whoever did before may have been overwritten.
        let found = is_guarded(socket, link.index)?;
        if found == guarded {
            break;
        }
        guarded = found;
    }
    Ok(())
}

/// Whether somebody counts as a user of the link: then the table is there, and the guard with it.
fn is_guarded(socket: &mut NftSocket, index: u32) -> Result<bool> {
    Ok(socket.chain(&TABLE, &rules::loopback_name(index))?.is_some())
}
