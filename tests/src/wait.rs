//! Waiting for a child with what it used.
//!
//! # Safety
//!
//! The one unsafe call is `wait4(2)`, which neither std nor nix has: it writes into two values on our stack, and the
//! process id is that of a child that nobody else waits for, because [`std::process::Child`] is given up to it.
#![allow(unsafe_code)]

use std::process::Child;

use nix::libc;

/// How a child ended, and what it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) exit: Option<i32>,
    /// Its largest resident set, in KiB (getrusage(2), `ru_maxrss`).
    pub(crate) max_rss_kib: i64,
}

/// Waits for `child`; must be the only one to do so.
pub(crate) fn wait(child: Child) -> std::io::Result<Ended> {
    let pid = i32::try_from(child.id()).map_err(std::io::Error::other)?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: see the head of this module.
        let waited = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
        if waited == pid {
            break;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: all-zero bytes are a valid rusage, and wait4 has filled it in.
    let usage = unsafe { usage.assume_init() };
    let exit = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    Ok(Ended { exit, max_rss_kib: usage.ru_maxrss })
}
