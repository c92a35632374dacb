//! Two socket options that neither mnl nor nix has.
//!
//! # Safety
//!
//! `setsockopt` gets a live descriptor and a pointer to an `int` of the length given; the borrowed descriptor lives no
//! longer than the socket it is borrowed from.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use mnl::Socket;
use nix::libc;

/// Extended acknowledgements (Linux 4.12), and no copies of our messages within them. Without them errors say less:
/// that is no reason to fail.
pub(super) fn extended_acknowledgements(socket: &Socket) {
    let on: libc::c_int = 1;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        // SAFETY: the descriptor is live; pointer and length are of one `c_int`.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

/// The socket's descriptor, for as long as the socket lives.
pub(super) fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket holds its descriptor open until it is dropped, which the lifetime forbids meanwhile.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}
