//! A plugin that is given no memory says so.
//!
//! Where an allocation fails, Rust's standard library, the crate nftnl and [`crate::nft`] call abort(3): nothing that takes
//! memory can be done any more, so nothing can be undone either. A runtime would get a signal and no document. Here the signal
//! gets a handler that writes one, which was made when the plugin was compiled, and exits with 1. That costs one system call a
//! process, and nothing an allocation, as an allocator of our own would.
//!
//! What had been done by then stays, as it does after SIGKILL: a repeated ADD completes it, DEL and GC remove it.
//!
//! # Safety
//!
//! The handler calls write(2) and _exit(2) only, which a handler may (signal-safety(7)), with the address and length of one
//! static text. It takes no lock, allocates nothing, and does not return.
#![allow(unsafe_code)]

use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// [`Error::OutOfMemory`](crate::Error::OutOfMemory) in the newest version; nobody can be asked for the configuration's any more.
const DOCUMENT: &str = r#"{
    "cniVersion": "1.1.0",
    "code": 108,
    "msg": "out of memory: an allocation of the plugin failed",
    "details": "stderr may say how much was asked for; what was done so far stays: a repeated ADD completes it, DEL removes it; raise the limit of memory (RLIMIT_AS, RLIMIT_DATA, the cgroup's), or publish fewer ports in one call"
}"#;

/// From here on a failed allocation is told on stdout.
pub(crate) fn tell_of_exhaustion() {
    let action = SigAction::new(SigHandler::Handler(tell), SaFlags::empty(), SigSet::empty());
    // SAFETY: see the head of this module.
    let _ = unsafe { sigaction(Signal::SIGABRT, &action) };
}

extern "C" fn tell(_: c_int) {
    // SAFETY: see the head of this module.
    unsafe {
        libc::write(libc::STDOUT_FILENO, DOCUMENT.as_ptr().cast(), DOCUMENT.len());
        libc::_exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::DOCUMENT;
    use crate::Error;
    use crate::cni::Version;

    #[test]
    fn the_document_is_that_of_the_error() {
        let document = Error::OutOfMemory.to_document(Version::LATEST.as_str());
        let written: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(written, serde_json::to_value(document).unwrap());
    }
}
