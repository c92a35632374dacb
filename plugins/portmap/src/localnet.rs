//! `route_localnet` of the links to containers: on as long as somebody needs it, and never without its guard.
//!
//! What it was before stands twice: as the comment of the chain that counts a link's users, which counts, and in a file
//! for each link. `nft flush ruleset`, which every restart of Debian's nftables service is, takes the table with the guard
//! and the comment, and leaves the sysctl. Who next finds the table gone gives every link that has a file its value back.

use std::path::Path;

use common::Result;
use common::nft::NftSocket;
use common::store::{Directory, Stored};
use common::sysctl;

use crate::rules::{self, TABLE};

/// Where the files are; a tmpfs, as all of /run: no sysctl outlives a boot either.
const DIRECTORY: &str = "/run/cni/portmap";

/// More often nobody changes a guard while another call looks at it.
const TRIES: usize = 10;

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
pub fn open(link: &str) -> Result<()> {
    let Some(before) = read(link)?.filter(|before| before != "1") else { return Ok(()) };
    let kept = Directory::create(Path::new(DIRECTORY)).and_then(|files| files.write(link, before.as_bytes()));
    if let Err(error) = kept {
        log::info!("if the table is flushed by hand, route_localnet of {link} will stay on: {error}");
    }
    write(link, "1")
}

/// Gives a link the value that it had before.
pub fn close(link: &str, before: &str) -> Result<()> {
    write(link, before)?;
    match Directory::open(Path::new(DIRECTORY))? {
        Some(files) => files.remove(link).map(drop),
        None => Ok(()),
    }
}

/// What a link goes back to: what is remembered of it from before the table was flushed, or else its value now.
pub fn before(link: &str) -> Result<String> {
    let remembered = Directory::open(Path::new(DIRECTORY))?.and_then(|files| remembered(&files, link));
    Ok(remembered.or(read(link)?).unwrap_or_else(|| "0".into()))
}

fn remembered(files: &Directory, link: &str) -> Option<String> {
    match files.read(link) {
        Ok(Stored::Bytes(bytes)) => String::from_utf8(bytes).ok().filter(|value| matches!(&**value, "0" | "1")),
        _ => None,
    }
}

/// After the table was found gone: each link that was open and has no guard by now gets its value back.
pub fn close_unguarded(socket: &mut NftSocket) -> Result<()> {
    let Some(files) = Directory::open(Path::new(DIRECTORY))? else { return Ok(()) };
    for link in files.names()? {
        if is_guarded(socket, &link)? {
            continue;
        }
        if let Some(before) = remembered(&files, &link) {
            log::warn!("route_localnet of {link} is {before} again: its guard was removed by somebody else");
            settle(socket, &link, &before)?;
        } else {
            files.remove(&link)?;
        }
    }
    Ok(())
}

/// Leaves a link open if it is guarded, closed if not, whatever others do meanwhile.
pub fn settle(socket: &mut NftSocket, link: &str, before: &str) -> Result<()> {
    let mut guarded = is_guarded(socket, link)?;
    for _ in 0..TRIES {
        if guarded {
            open(link)?
        } else {
            close(link, before)?
        }
        // Whoever has put a guard in since then writes 1 after this; whoever did before may have been overwritten.
        let found = is_guarded(socket, link)?;
        if found == guarded {
            break;
        }
        guarded = found;
    }
    Ok(())
}

fn is_guarded(socket: &mut NftSocket, link: &str) -> Result<bool> {
    Ok(socket.element(&TABLE, &rules::loopback_set(), &rules::loopback_element(link).key)?.is_some())
}
