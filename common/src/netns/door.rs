//! The door to the own network namespace: a descriptor of the own thread (pidfd_open(2)), asked for its namespace
//! (`PIDFD_GET_NET_NAMESPACE`, include/uapi/linux/pidfd.h; since Linux 6.11).
//!
//! `/proc/self/ns/net` says the same. But the kernel makes a process's directories in procfs when somebody first asks for one,
//! and takes them away with the process: 25 of the 550 µs that it takes to exec a plugin, most of which ask for nothing else there.
//!
//! # Safety
//!
//! The two unsafe calls to the kernel get numbers only, no addresses. What each returns is a new descriptor that nobody else
//! has, close-on-exec, so it may be owned.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{getpid, gettid};

/// The kernel refuses any other argument, and takes one as wide as an address.
const NOTHING: libc::c_ulong = 0;

/// The namespace's file, as open(2) of `/proc/thread-self/ns/net` gives it; an older kernel refuses.
pub(super) fn own() -> nix::Result<File> {
    let thread = gettid();
    let flags = if thread == getpid() { 0 } else { libc::PIDFD_THREAD };
    // SAFETY: see the head of this module.
    let thread = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, thread.as_raw(), flags) })?;
    let thread = RawFd::try_from(thread).map_err(|_| Errno::EBADF)?;
    // SAFETY: see the head of this module.
    let thread = unsafe { OwnedFd::from_raw_fd(thread) };
    // SAFETY: see the head of this module.
    let namespace = Errno::result(unsafe { libc::ioctl(thread.as_raw_fd(), libc::PIDFD_GET_NET_NAMESPACE, NOTHING) })?;
    // SAFETY: see the head of this module.
    Ok(unsafe { File::from_raw_fd(namespace) })
}
