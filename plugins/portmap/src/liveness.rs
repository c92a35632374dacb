//! Whether the owner of a record is still there, and how a later call will be able to tell.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use common::cni::CniResult;
use common::link::RouteSocket;
use common::{Call, Result, netns};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::origin::{Origin, Trace};

/// Kept in the kernel; another one after each boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The first digits of this boot's id; empty where there is none.
fn boot() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default().chars().take(8).collect()
}

/// The origin of an attachment that is added now.
pub fn origin(route: &RouteSocket, call: &Call, prev: &CniResult) -> Result<Origin> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default();
    Ok(Origin { since, boot: boot(), trace: trace(route, call, prev)? })
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
    match (netns::identity(path), path.to_str()) {
        // A process may be gone while its namespace lives on.
        (Some((_, inode)), Some(text)) if !path.starts_with("/proc") => Ok(Trace::Netns(inode, text.to_owned())),
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
    let boot = boot();
    if !boot.is_empty() && !origin.boot.is_empty() && origin.boot != boot {
        return Ok(Some("it is from before the last boot".into()));
    }
    match &origin.trace {
        Trace::None => Ok(None),
        Trace::Link(name, index) => {
            let gone = RouteSocket::open()?.link_by_index(*index)?.is_none();
            Ok(gone.then(|| format!("its interface {name} is gone")))
        }
        Trace::Netns(inode, path) => {
            Ok(netns_is_gone(*inode, Path::new(path)).then(|| format!("its network namespace {path} is gone")))
        }
    }
}

/// The file is gone, or holds another namespace. Where even its directory can't be seen, this process may be in another
/// mount namespace than the one that made it: that proves nothing.
fn netns_is_gone(inode: u64, path: &Path) -> bool {
    match netns::identity(path) {
        Some((_, found)) => found != inode,
        None => {
            let missing = std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound);
            missing && path.parent().is_some_and(Path::is_dir)
        }
    }
}
