//! Understanding system calls: which change something, which carry the kernel's answers, and what is in them.

use std::collections::HashMap;

use nix::libc::{self, c_long};

use super::trace::Call;

/// What a descriptor of the program leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketKind {
    domain: i32,
    protocol: i32,
}

impl SocketKind {
    pub(super) fn is_netlink(self) -> bool {
        self.domain == libc::AF_NETLINK
    }

    fn name(self) -> &'static str {
        match (self.domain, self.protocol) {
            (libc::AF_NETLINK, libc::NETLINK_ROUTE) => "rtnetlink",
            (libc::AF_NETLINK, libc::NETLINK_NETFILTER) => "nfnetlink",
            (libc::AF_NETLINK, libc::NETLINK_SOCK_DIAG) => "sock_diag",
            (libc::AF_UNIX, _) => "unix socket",
            _ => "socket",
        }
    }

    /// Whether a request of this type changes something. What isn't known counts as a change.
    fn is_change(self, message: &Message) -> bool {
        match (self.protocol, message.kind >> 8, message.kind & 0xff) {
            (libc::NETLINK_SOCK_DIAG, ..) => false,
            // RTM_NEW…, RTM_DEL…, RTM_GET…, RTM_SET…: in fours.
            (libc::NETLINK_ROUTE, _, kind) => kind % 4 != 2,
            // NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END.
            (libc::NETLINK_NETFILTER, 0, 0x10 | 0x11) => false,
            // IPCTNL_MSG_CT_GET
            (libc::NETLINK_NETFILTER, 1, 1) => false,
            // NFT_MSG_GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETGEN, GETOBJ
            (libc::NETLINK_NETFILTER, 10, 1 | 4 | 7 | 10 | 13 | 16 | 19) => false,
            _ => true,
        }
    }
}

/// The head of a netlink message within a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Of its header, from the datagram's beginning.
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) kind: u16,
    pub(super) flags: u16,
}

impl Message {
    /// Whether it begins or ends a batch of nf_tables.
    pub(super) fn is_bracket(&self) -> bool {
        matches!(self.kind, 0x10 | 0x11)
    }

    pub(super) fn is_dump(&self) -> bool {
        i32::from(self.flags) & libc::NLM_F_DUMP == libc::NLM_F_DUMP
    }
}

/// The messages of a netlink datagram.
pub(super) fn messages(datagram: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Some(head) = datagram.get(offset..offset + 16) {
        let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if len < 16 {
            break;
        }
        let [kind, flags] = [4, 6].map(|at| u16::from_ne_bytes([head[at], head[at + 1]]));
        found.push(Message { offset, len, kind, flags });
        offset += len.next_multiple_of(4);
    }
    found
}

/// What a program's descriptors lead to, as far as they are sockets.
#[derive(Debug, Default)]
pub(super) struct Sockets(HashMap<i32, SocketKind>);

impl Sockets {
    /// Learns from a call that has ended.
    pub(super) fn learn(&mut self, call: &Call, result: i64) {
        match call.number {
            libc::SYS_socket if result >= 0 => {
                let kind = SocketKind { domain: call.arguments[0] as i32, protocol: call.arguments[2] as i32 };
                self.0.insert(result as i32, kind);
            }
            libc::SYS_close => drop(self.0.remove(&call.fd())),
            _ => {}
        }
    }

    pub(super) fn of(&self, call: &Call) -> Option<SocketKind> {
        self.0.get(&call.fd()).copied()
    }

    /// What the call changes, in words; `None` if nothing that outlives the program.
    pub(super) fn change(&self, call: &Call) -> Option<String> {
        let path = |at: usize| text(call, call.arguments[at]);
        let flags = |at: usize| call.arguments[at] as i32;
        let makes = |flags: i32| flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
        match call.number {
            libc::SYS_sendto | libc::SYS_sendmsg => self.sent(call),
            libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev => written(call),
            libc::SYS_linkat => Some(format!("link {}", path(3))),
            libc::SYS_open if makes(flags(1)) => Some(format!("create {}", path(0))),
            libc::SYS_openat if makes(flags(2)) => Some(format!("create {}", path(1))),
            libc::SYS_mkdir | libc::SYS_unlink | libc::SYS_rmdir | libc::SYS_rename | libc::SYS_chmod => {
                Some(format!("{} {}", name(call.number), path(0)))
            }
            libc::SYS_mkdirat
            | libc::SYS_unlinkat
            | libc::SYS_renameat
            | libc::SYS_renameat2
            | libc::SYS_fchmodat
            | libc::SYS_fchownat => Some(format!("{} {}", name(call.number), path(1))),
            libc::SYS_fsync
            | libc::SYS_fdatasync
            | libc::SYS_ftruncate
            | libc::SYS_fchmod
            | libc::SYS_fchown
            | libc::SYS_execve
            | libc::SYS_vfork
            | libc::SYS_fork => Some(name(call.number)),
            // A thread is not a program.
            libc::SYS_clone if call.arguments[0] as i32 & libc::CLONE_THREAD == 0 => Some("clone".into()),
            libc::SYS_clone3 => Some("clone3".into()),
            _ => None,
        }
    }

    fn sent(&self, call: &Call) -> Option<String> {
        let kind = self.of(call)?;
        if !kind.is_netlink() {
            return Some(format!("send on {}", kind.name()));
        }
        let all = messages(&datagram_sent(call).concat());
        let changes: Vec<String> = all.iter().filter(|m| kind.is_change(m)).map(|m| format!("{:#x}", m.kind)).collect();
        (!changes.is_empty()).then(|| format!("send on {}: {}", kind.name(), changes.join(" ")))
    }
}

/// A write to a file; standard output and error, and what wakes a thread, change nothing.
fn written(call: &Call) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{}/fd/{}", call.pid, call.fd())).unwrap_or_default();
    let to = link.to_string_lossy().into_owned();
    // The number of a pipe, or of a nameless file, is never the same.
    let kind = to.split([':', '#']).next().unwrap_or_default();
    (!matches!(call.fd(), 1 | 2) && kind != "anon_inode").then(|| format!("write to {kind}"))
}

/// The parts of the datagram that `sendto` or `sendmsg` is to send.
pub(super) fn datagram_sent(call: &Call) -> Vec<Vec<u8>> {
    places(call).into_iter().map(|(address, len)| call.read(address, len)).collect()
}

/// Where the parts of a datagram stand, and their lengths.
pub(super) fn places(call: &Call) -> Vec<(u64, usize)> {
    match call.number {
        libc::SYS_sendto | libc::SYS_recvfrom | libc::SYS_read => vec![(call.arguments[1], call.arguments[2] as usize)],
        _ => {
            // struct msghdr: name, namelen, iov at 16, iovlen at 24; struct iovec: base, len.
            let word = |bytes: &[u8], at: usize| {
                bytes.get(at..at + 8).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b))
            };
            let head = call.read(call.arguments[1], 56);
            let parts = call.read(word(&head, 16), word(&head, 24) as usize * 16);
            parts.chunks_exact(16).map(|part| (word(part, 0), word(part, 8) as usize)).collect()
        }
    }
}

fn text(call: &Call, address: u64) -> String {
    let bytes = call.read(address, 256);
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The calls that can fail and whose result a program has to look at. Memory, clocks and signals are left out.
const FALLIBLE: [(c_long, &str); 41] = [
    (libc::SYS_read, "read"),
    (libc::SYS_pread64, "pread"),
    (libc::SYS_write, "write"),
    (libc::SYS_pwrite64, "pwrite"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_open, "open"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_openat2, "openat2"),
    (libc::SYS_stat, "stat"),
    (libc::SYS_fstat, "fstat"),
    (libc::SYS_lstat, "lstat"),
    (libc::SYS_newfstatat, "fstatat"),
    (libc::SYS_statx, "statx"),
    (libc::SYS_fstatfs, "fstatfs"),
    (libc::SYS_statfs, "statfs"),
    (libc::SYS_getdents64, "getdents"),
    (libc::SYS_socket, "socket"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_recvfrom, "recvfrom"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_setsockopt, "setsockopt"),
    (libc::SYS_getsockname, "getsockname"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_getsockopt, "getsockopt"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_access, "access"),
    (libc::SYS_faccessat, "faccessat"),
    (libc::SYS_faccessat2, "faccessat2"),
    (libc::SYS_readlink, "readlink"),
];

/// Calls with a path as their first argument.
const OF_PATHS: [c_long; 8] = [
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_access,
    libc::SYS_readlink,
];

/// Calls with a path as their second argument.
const OF_PATHS_AT: [c_long; 12] = [
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
];

pub(super) fn takes_a_name(number: c_long) -> bool {
    OF_PATHS.contains(&number) || OF_PATHS_AT.contains(&number)
}

pub(super) fn name(number: c_long) -> String {
    let known = FALLIBLE.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("system call {number}"), |(_, name)| (*name).to_owned())
}

/// What the call is about, in words, if it is one that can fail.
pub(super) fn fallible(call: &Call, sockets: &Sockets) -> Option<String> {
    let (_, name) = FALLIBLE.iter().find(|(known, _)| *known == call.number)?;
    let object = match sockets.of(call) {
        _ if OF_PATHS.contains(&call.number) => text(call, call.arguments[0]),
        _ if OF_PATHS_AT.contains(&call.number) => text(call, call.arguments[1]),
        _ if call.number == libc::SYS_socket => String::new(),
        Some(kind) if kind.is_netlink() && matches!(call.number, libc::SYS_sendto | libc::SYS_sendmsg) => {
            let kinds = messages(&datagram_sent(call).concat()).into_iter().map(|m| format!("{:#x}", m.kind));
            format!("{} {}", kind.name(), kinds.collect::<Vec<_>>().join(" "))
        }
        Some(kind) => kind.name().to_owned(),
        None => format!("descriptor {}", call.fd()),
    };
    // What goes to the runtime is no business of the kernel's.
    let is_output = matches!(call.number, libc::SYS_write | libc::SYS_writev) && matches!(call.fd(), 1 | 2);
    (!is_output).then(|| format!("{name} {object}").trim_end().to_owned())
}
