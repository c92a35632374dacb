//! Whether the owner of a record is still there, and how a later call will be able to tell.

use std::fs::{File, symlink_metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use common::cni::CniResult;
use common::link::RouteSocket;
use common::netns::{self, Netns};
use common::{Call, Result};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use nix::time::{ClockId, clock_gettime};

use crate::origin::{NetnsFile, Origin, Trace, id_of};

/// Kept in the kernel; another one after each boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The first digits of this boot's id; empty where there is none.
fn boot() -> String {
    let mut digits = [0; 8];
    let read = File::open(BOOT_ID).and_then(|mut id| id.read_exact(&mut digits));
    read.ok().and_then(|()| String::from_utf8(digits.to_vec()).ok()).unwrap_or_default()
}

/// The origin of an attachment that is added now.
pub fn origin(route: &RouteSocket, call: &Call, prev: &CniResult) -> Result<Origin> {
    let id = id_of(&call.attachment.container);
    Ok(Origin { since: now(), boot: boot(), id, trace: trace(route, call, prev)? })
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

/// Whether the origin is from before the last boot. Another boot's id alone doesn't say so: a container manager may show an
/// id of its own to what runs in it (systemd-nspawn(1) does).
fn is_from_before_the_last_boot(origin: &Origin) -> bool {
    let boot = boot();
    if boot.is_empty() || origin.boot.is_empty() || origin.boot == boot {
        return false;
    }
    let up = clock_gettime(ClockId::CLOCK_BOOTTIME).ok().and_then(|up| u64::try_from(up.tv_sec()).ok());
    up.is_some_and(|up| origin.since < now().saturating_sub(up))
}

fn trace(route: &RouteSocket, call: &Call, prev: &CniResult) -> Result<Trace> {
    // Main plugins name the host's end of the veth pair after the bridge, if there is one.
    for interface in prev.interfaces.iter().rev().filter(|i| i.sandbox.is_empty()) {
        match route.link_by_name(&interface.name)? {
            Some(link) if is_veth(&link) => return Ok(Trace::Link(interface.name.clone(), link.header.index)),
            _ => {}
        }
    }
    let Some(path) = &call.netns else { return Ok(Trace::None) };
    // A process may be gone while its namespace lives on.
    if path.starts_with("/proc") {
        return Ok(Trace::None);
    }
    match (netns::identity(path), path.parent().and_then(identity), path.to_str()) {
        (Some((_, inode)), Some(directory), Some(text)) => {
            Ok(Trace::Netns(NetnsFile { inode, directory, path: text.to_owned() }))
        }
        _ => Ok(Trace::None),
    }
}

fn is_veth(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth))),
        _ => false,
    })
}

/// Why the owner is certainly gone; `None` if it may be there.
pub fn why_dead(origin: &Origin) -> Result<Option<String>> {
    if is_from_before_the_last_boot(origin) {
        return Ok(Some("it is from before the last boot".into()));
    }
    match &origin.trace {
        Trace::None => Ok(None),
        Trace::Link(name, index) => {
            let gone = RouteSocket::open()?.link_by_index(*index)?.is_none();
            Ok(gone.then(|| format!("its interface {name} is gone")))
        }
        Trace::Netns(file) => Ok(is_gone(file).then(|| format!("its network namespace {} is gone", file.path))),
    }
}

/// The file is gone, or holds another namespace. In another mount namespace a mount may be missing: where the directory is
/// another, or the file holds no namespace at all, nothing is proven.
fn is_gone(file: &NetnsFile) -> bool {
    let path = Path::new(&file.path);
    if path.parent().and_then(identity) != Some(file.directory) {
        return false;
    }
    match Netns::find(path) {
        Ok(Some(netns)) => netns.identity().is_ok_and(|(_, inode)| inode != file.inode),
        Ok(None) => symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound),
        Err(_) => false,
    }
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(directory).ok().map(|meta| (meta.dev(), meta.ino()))
}
