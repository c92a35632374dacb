//! The door to the legacy tables: getsockopt(2) with IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES
//! (include/uapi/linux/netfilter_ipv4/ip_tables.h; the IPv6 ones have the same numbers and layouts).
//!
//! # Safety
//!
//! The one unsafe call is getsockopt(2) itself, on a socket that is open, with a pointer to and the length of one
//! buffer that lives through the call. The kernel writes at most that many bytes. Nothing is cast: what comes back is
//! bytes, read by [`super::entries`] with bounds checked.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use common::nft::IpVersion;
use common::{Error, Result, netns};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;

/// `struct ipt_getinfo`: `name[32]`, `valid_hooks`, `hook_entry[5]`, `underflow[5]`, `num_entries`, `size`.
const INFO_LEN: usize = 84;
/// Where `size` is in it.
const INFO_SIZE_AT: usize = 80;
/// `struct ipt_get_entries`: `name[32]`, `size`, and the entries at the next multiple of 8.
pub(super) const ENTRIES_AT: usize = 40;
/// Bytes of a table that are read: a hundred thousand rules take about 30 MiB.
const TABLE_MAX: usize = 256 << 20;

/// A table as the kernel gives it.
pub struct RawTable {
    /// `struct ipt_getinfo`
    pub info: Vec<u8>,
    /// The entries alone.
    pub entries: Vec<u8>,
}

/// What its commands are called on hosts that have both.
pub(super) const fn program(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "iptables-legacy",
        IpVersion::V6 => "ip6tables-legacy",
    }
}

pub(super) const fn base_name(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "iptables",
        IpVersion::V6 => "ip6tables",
    }
}

/// Whether the filter table is there in this network namespace. Without the kernel's module there is no list.
pub(super) fn is_in_use(version: IpVersion) -> Result<bool> {
    let list = match version {
        IpVersion::V4 => "net/ip_tables_names",
        IpVersion::V6 => "net/ip6_tables_names",
    };
    let list = format!("{}/{list}", netns::own_directory());
    // Through `take` the file isn't asked for its size, which procfs doesn't know.
    match File::open(&list).and_then(|file| io::read_to_string(file.take(u64::MAX))) {
        Ok(names) => Ok(names.lines().any(|name| name == "filter")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", list, &error)),
    }
}

/// Reads the filter table; again if it changes between the question for its size and that for its content.
pub(super) fn read_filter(version: IpVersion) -> Result<RawTable> {
    let family = match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    };
    let object = || format!("the filter table of {}", program(version));
    let failed = |errno| Error::kernel("read", object(), errno);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).map_err(failed)?;
    for _ in 0..10 {
        let mut info = named_buffer(INFO_LEN);
        get(socket.as_fd(), version, GET_INFO, &mut info).map_err(failed)?;
        let size = info.get(INFO_SIZE_AT..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b));
        let len = usize::try_from(size).ok().filter(|len| *len <= TABLE_MAX).ok_or_else(|| failed(Errno::EFBIG))?;
        let mut entries = named_buffer(ENTRIES_AT + len);
        if let Some(field) = entries.get_mut(32..36) {
            field.copy_from_slice(&size.to_ne_bytes());
        }
        match get(socket.as_fd(), version, GET_ENTRIES, &mut entries) {
            Ok(()) => return Ok(RawTable { info, entries: entries.split_off(ENTRIES_AT) }),
            // The table has another size by now.
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(Error::TryAgain { what: format!("{} is being changed all the time", object()) })
}

/// Both structures begin with the table's name.
fn named_buffer(len: usize) -> Vec<u8> {
    let mut buffer = b"filter".to_vec();
    buffer.resize(len, 0);
    buffer
}

fn get(socket: BorrowedFd<'_>, version: IpVersion, option: libc::c_int, buffer: &mut [u8]) -> Result<(), Errno> {
    let level = match version {
        IpVersion::V4 => libc::IPPROTO_IP,
        IpVersion::V6 => libc::IPPROTO_IPV6,
    };
    let mut len = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EFBIG)?;
    // SAFETY: the socket is open, `buffer` and `len` live through the call, and `len` is the buffer's length.
    let answer =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut len) };
    Errno::result(answer).map(drop)
}
