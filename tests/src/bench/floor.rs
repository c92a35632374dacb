//! The floor: what a call costs at the least.
//!
//! What a plugin says to the kernel is recorded once (its netlink messages, its sysctls, its changes of namespace), and a
//! program that does nothing else, `floor.c`, says it again: the same bytes, the same number of answers awaited.
//!
//! With what it does with files besides (state, lists of the kernel's, whether a path is safe), that is the least that a plugin can
//! do that keeps its promises: [`Extent::Files`].
//!
//! It opens its sockets with the same options. Three things in the bytes belong to the moment: a batch's generation number is
//! left out; a rule that is deleted by its
//! handle goes by emptying its chain; and a link that is to be made asks for the index that it got when the bytes were
//! recorded, because later messages name it.

use std::collections::HashMap;
use std::io::{Error, Result};
use std::path::PathBuf;
use std::process::Command;

use nix::libc;

use super::trace::{Syscall, Traced};

/// The name of the program in the directory of [`build`].
pub const PROGRAM: &str = "floor";

/// Compiles the program; gives the directory it is in.
pub fn build() -> Result<PathBuf> {
    let dir = super::workshop();
    std::fs::create_dir_all(&dir)?;
    // Another run may be using it.
    let made = dir.join(format!("{PROGRAM}-{}", std::process::id()));
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-static", "-Wl,-z,noseparate-code", "-o"])
        .arg(&made)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/bench/floor.c"));
    let done = cc.output()?;
    if !done.status.success() {
        return Err(Error::other(String::from_utf8_lossy(&done.stderr).into_owned()));
    }
    std::fs::rename(made, dir.join(PROGRAM))?;
    Ok(dir)
}

/// As floor.c numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Socket = 1,
    Send,
    Receive,
    Open,
    Setns,
    Write,
    Read,
    Close,
    Refused,
    Absent,
    Stat,
    Sync,
    Link,
    Unlink,
    MakeDirectory,
    MakeNode,
    OwnNetns,
}

/// How a file is opened. What openat2(2) opens is a sysctl.
fn flags(call: &Syscall) -> u32 {
    if call.number == libc::SYS_openat { call.arguments[2] as u32 } else { libc::O_RDWR as u32 }
}

struct Step {
    kind: Kind,
    slot: u32,
    argument: u32,
    data: Vec<u8>,
}

/// A descriptor of the recorded program.
#[derive(Clone, Default)]
struct Descriptor {
    slot: u32,
    path: Vec<u8>,
    is_socket: bool,
}

/// How much is said again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Netlink, namespaces, sysctls.
    Messages,
    /// Other files, too.
    Files,
}

/// The script that says again what was recorded; `index_of` gives the index of a link that was made meanwhile.
pub fn script(seen: &Traced, extent: Extent, index_of: &dyn Fn(&str) -> Option<u32>) -> Vec<u8> {
    let mut recorder = Recorder { steps: vec![], open: HashMap::new(), slots: 0, refused: 0, index_of, extent };
    seen.calls.iter().for_each(|call| recorder.take(call));
    let mut steps = recorder.steps;
    steps.push(Step { kind: Kind::Refused, slot: 0, argument: recorder.refused, data: vec![] });
    // A file counts if a namespace was entered by it, or if it is a sysctl that was read or written.
    let used = |slot, kinds: &[Kind]| steps.iter().any(|step| step.slot == slot && kinds.contains(&step.kind));
    let counts = |step: &Step| {
        used(step.slot, &[Kind::Setns])
            || step.data.starts_with(b"/proc/sys/") && used(step.slot, &[Kind::Read, Kind::Write])
    };
    let opened = steps.iter().filter(|step| matches!(step.kind, Kind::Open | Kind::OwnNetns));
    let left_out: Vec<u32> =
        opened.filter(|step| extent == Extent::Messages && !counts(step)).map(|step| step.slot).collect();
    steps.iter().filter(|step| !left_out.contains(&step.slot)).flat_map(bytes).collect()
}

fn bytes(step: &Step) -> Vec<u8> {
    let len = u32::try_from(step.data.len()).unwrap_or(u32::MAX);
    let mut bytes: Vec<u8> =
        [step.kind as u32, step.slot, step.argument, len].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(&step.data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

struct Recorder<'a> {
    steps: Vec<Step>,
    open: HashMap<u64, Descriptor>,
    slots: u32,
    refused: u32,
    index_of: &'a dyn Fn(&str) -> Option<u32>,
    extent: Extent,
}

impl Recorder<'_> {
    fn take(&mut self, call: &Syscall) {
        if self.extent == Extent::Files {
            self.take_file(call);
        }
        if call.returned < 0 {
            return;
        }
        let [first, second, third, fourth, ..] = call.arguments;
        match call.number {
            libc::SYS_socket if first == libc::AF_NETLINK as u64 => {
                let slot = self.opened(call, Descriptor { is_socket: true, ..Descriptor::default() });
                self.step(Kind::Socket, slot, third as u32, vec![]);
            }
            libc::SYS_openat | libc::SYS_openat2 => {
                let path = self.absolute(first, &call.data);
                let slot = self.opened(call, Descriptor { path: path.clone(), ..Descriptor::default() });
                self.step(Kind::Open, slot, flags(call), [&path[..], b"\0"].concat());
            }
            libc::SYS_ioctl if second == libc::PIDFD_GET_NET_NAMESPACE => {
                let slot = self.opened(call, Descriptor::default());
                self.step(Kind::OwnNetns, slot, 0, vec![]);
            }
            libc::SYS_sendto | libc::SYS_sendmsg => {
                let data = messages(&call.data).into_iter().flat_map(|m| self.timeless(m)).collect();
                self.with(first, true, Kind::Send, data);
            }
            libc::SYS_recvfrom if fourth & libc::MSG_PEEK as u64 == 0 => self.received(first, &call.data),
            libc::SYS_recvmsg if third & libc::MSG_PEEK as u64 == 0 => self.received(first, &call.data),
            libc::SYS_setns => self.with(first, false, Kind::Setns, vec![]),
            libc::SYS_read | libc::SYS_pread64 => self.with(first, false, Kind::Read, vec![]),
            libc::SYS_write => self.with(first, false, Kind::Write, call.data.clone()),
            libc::SYS_close => {
                if let Some(descriptor) = self.open.remove(&first) {
                    self.step(Kind::Close, descriptor.slot, 0, vec![]);
                }
            }
            _ => {}
        }
    }

    /// What concerns files that need not be opened by this program.
    fn take_file(&mut self, call: &Syscall) {
        let [first, _, third, ..] = call.arguments;
        let path = [&self.absolute(first, &call.data)[..], b"\0"].concat();
        match call.number {
            libc::SYS_openat | libc::SYS_openat2 if call.returned < 0 => self.step(Kind::Absent, 0, flags(call), path),
            _ if call.returned < 0 => {}
            libc::SYS_statx if call.data.is_empty() => self.with(first, false, Kind::Stat, vec![]),
            libc::SYS_statx => self.step(Kind::Stat, 0, third as u32, path),
            libc::SYS_fsync => self.with(first, false, Kind::Sync, vec![]),
            libc::SYS_linkat => {
                let path = [&self.absolute(third, &call.data)[..], b"\0"].concat();
                self.with(first, false, Kind::Link, path);
            }
            libc::SYS_unlinkat => self.step(Kind::Unlink, 0, third as u32, path),
            libc::SYS_mkdirat => self.step(Kind::MakeDirectory, 0, third as u32, path),
            libc::SYS_mknodat => self.step(Kind::MakeNode, 0, third as u32, path),
            _ => {}
        }
    }

    fn step(&mut self, kind: Kind, slot: u32, argument: u32, data: Vec<u8>) {
        self.steps.push(Step { kind, slot, argument, data });
    }

    fn opened(&mut self, call: &Syscall, descriptor: Descriptor) -> u32 {
        self.slots += 1;
        self.open.insert(call.returned as u64, Descriptor { slot: self.slots, ..descriptor });
        self.slots
    }

    /// A step on a descriptor, if it is one of this kind.
    fn with(&mut self, descriptor: u64, is_socket: bool, kind: Kind, data: Vec<u8>) {
        let known = self.open.get(&descriptor).filter(|d| d.is_socket == is_socket).map(|d| d.slot);
        if let Some(slot) = known {
            self.step(kind, slot, 0, data);
        }
    }

    fn received(&mut self, socket: u64, data: &[u8]) {
        let refusals =
            messages(data).into_iter().filter(|m| kind_of(m) == libc::NLMSG_ERROR as u16 && word(m, 16) != 0);
        self.refused += refusals.count() as u32;
        self.with(socket, true, Kind::Receive, vec![]);
    }

    fn absolute(&self, directory: u64, path: &[u8]) -> Vec<u8> {
        match self.open.get(&directory) {
            Some(descriptor) if !path.starts_with(b"/") => [&descriptor.path[..], b"/", path].concat(),
            _ => path.to_vec(),
        }
    }

    /// The message without what belongs to the moment it was recorded in.
    fn timeless(&self, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        let flags = word(&message, 4) >> 16;
        match kind_of(&message) {
            // NFNL_MSG_BATCH_BEGIN: only its nfgenmsg stays.
            0x10 if message.len() == 28 && word(&message, 16) >> 16 == 0x0a00 => {
                message.truncate(20);
                message[0] = 20;
            }
            NFT_DELRULE => message = without_handle(&message),
            libc::RTM_NEWLINK if flags & libc::NLM_F_CREATE as u32 != 0 && word(&message, 20) == 0 => {
                if let Some(index) = name_in(&message).and_then(|name| (self.index_of)(&name)) {
                    message[20..24].copy_from_slice(&index.to_ne_bytes());
                }
            }
            _ => {}
        }
        message
    }
}

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELRULE
const NFT_DELRULE: u16 = 0x0a08;

/// IFLA_IFNAME (3) behind nlmsghdr and ifinfomsg.
fn name_in(message: &[u8]) -> Option<String> {
    let (_, name) = attributes(message.get(32..)?).into_iter().find(|(kind, _)| *kind == 3)?;
    Some(String::from_utf8_lossy(name.get(4..)?).trim_end_matches('\0').to_owned())
}

/// Without NFTA_RULE_HANDLE (3) behind nlmsghdr and nfgenmsg.
fn without_handle(message: &[u8]) -> Vec<u8> {
    let (head, rest) = message.split_at(20.min(message.len()));
    let mut kept = head.to_vec();
    for (_, attribute) in attributes(rest).into_iter().filter(|(kind, _)| *kind != 3) {
        kept.extend(attribute);
        kept.resize(kept.len().next_multiple_of(4), 0);
    }
    let len = kept.len() as u32;
    kept[..4].copy_from_slice(&len.to_ne_bytes());
    kept
}

/// Kind and bytes of each attribute, its head included.
fn attributes(mut rest: &[u8]) -> Vec<(u8, &[u8])> {
    let mut all = Vec::new();
    while rest.len() >= 4 {
        let len = (word(rest, 0) as u16 as usize).clamp(4, rest.len());
        all.push((rest[2], &rest[..len]));
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
}

fn kind_of(message: &[u8]) -> u16 {
    word(message, 4) as u16
}

/// The netlink messages of a datagram.
fn messages(mut datagram: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while datagram.len() >= 16 {
        let len = (word(datagram, 0) as usize).clamp(16, datagram.len());
        let end = len.next_multiple_of(4).min(datagram.len());
        all.push(&datagram[..end]);
        datagram = &datagram[end..];
    }
    all
}
