//! `route_localnet` of the links to containers: on as long as somebody needs it, and never without its guard.
//!
//! A link is known by its index: the sysctl goes with it when somebody gives it another name.
//!
//! What it was before stands twice: as the comment of the chain that counts a link's users, which counts, and in a file
//! for each link, which is called by its index. `nft flush ruleset`, which every restart of Debian's nftables service is, takes the table with the guard
//! and the comment, and leaves the sysctl. Who next finds the table gone gives every link that has a file its value back.

use std::path::Path;

use common::Result;
use common::nft::NftSocket;
use common::store::{Directory, Stored};
use common::{netns, sysctl};

use crate::rules::{self, TABLE};

/// Where the files are; a tmpfs, as all of /run: no sysctl outlives a boot either.
const DIRECTORY: &str = "/run/cni/portmap";

/// More often nobody changes a link's users while another call looks at them.
const TRIES: usize = 10;

/// A link to containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its index, which no other link of the namespace gets until the next boot.
    pub index: u32,
    /// What it is or was called.
    pub name: String,
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
    let file = link.index.to_string();
    let kept = Directory::create(Path::new(DIRECTORY)).and_then(|files| files.write(&file, before.as_bytes()));
    if let Err(error) = kept {
        log::info!("if the table is flushed by hand, route_localnet of {} will stay on: {error}", link.name);
    }
    sysctl::write(&sysctl, "1")
}

/// Gives a link the value that it had before.
///
/// Of a ruleset that somebody has restored after a reboot, the index is another link's: one of another name is left alone, if
/// there is no file that says that it was opened since.
pub fn close(link: &Link, before: &str) -> Result<()> {
    let files = Directory::open(Path::new(DIRECTORY))?;
    if let Some(name) = netns::ifname(link.index)? {
        let is_kept = match &files {
            Some(files) if name != link.name => remembered(files, link.index)?.is_some(),
            _ => false,
        };
        if name == link.name || is_kept {
            write(&name, before)?;
        }
    }
    files.map_or(Ok(()), |files| forget(&files, &link.index.to_string()))
}

/// Removes a file. What isn't one of ours and can't be removed is passed over: nobody believes it.
fn forget(files: &Directory, file: &str) -> Result<()> {
    match files.remove(file) {
        Err(error) if matches!(files.read(file), Ok(Stored::Spoilt(_))) => {
            log::warn!("{error}; it is passed over");
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

/// What a link goes back to: what is remembered of it from before the table was flushed, or else its value now.
pub fn before(link: &Link) -> Result<String> {
    let files = Directory::open(Path::new(DIRECTORY))?;
    let remembered = files.map_or(Ok(None), |files| remembered(&files, link.index))?;
    Ok(remembered.or(read(&link.name)?).unwrap_or_else(|| "0".into()))
}

/// Only of a link that was not open there is a file: one that says else is not ours, and opens nothing, whoever could put it there.
fn remembered(files: &Directory, index: u32) -> Result<Option<String>> {
    Ok(match files.read(&index.to_string())? {
        Stored::Bytes(bytes) if bytes == b"0" => Some("0".into()),
        _ => None,
    })
}

/// After the table was found gone: each link that was open and has no guard by now gets its value back.
pub fn close_unguarded(socket: &mut NftSocket) -> Result<()> {
    let Some(files) = Directory::open(Path::new(DIRECTORY))? else { return Ok(()) };
    for file in files.names()? {
        // What else is there is nobody's of ours.
        let Ok(index) = file.parse() else { continue };
        if is_guarded(socket, index)? {
            continue;
        }
        let name = netns::ifname(index)?.unwrap_or_default();
        if let Some(before) = remembered(&files, index)? {
            log::warn!("route_localnet of {name} is {before} again: its guard was removed by somebody else");
            settle(socket, &Link { index, name }, &before)?;
        } else {
            forget(&files, &file)?;
        }
    }
    Ok(())
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
