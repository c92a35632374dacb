//! A netlink socket for the kernel's smaller tables: connection tracking and sockets.
//!
//! nf_tables and rtnetlink have doors of their own ([`crate::nft`], [`crate::link`]); what is asked here are plain dumps
//! and plain deletions, one request at a time on a socket of its own, so answers need no sequence numbers.

use std::os::fd::AsRawFd;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::Socket;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::cni::error::{Error, Result};

/// How long the kernel may take for one answer, in seconds.
const PATIENCE: i64 = 10;

/// Bytes of a datagram of a dump: the kernel makes none larger than 32 KiB (netlink_dump, net/netlink/af_netlink.c).
const DATAGRAM: usize = 32 << 10;

/// A socket, and what it asks about.
pub(crate) struct Asker {
    socket: Socket,
    object: &'static str,
}

impl Asker {
    /// Opens a socket of this protocol in the calling thread's namespace.
    pub(crate) fn open(protocol: isize, object: &'static str) -> Result<Asker> {
        let socket = Socket::new(protocol).map_err(|e| Error::io("open a netlink socket for", object, &e))?;
        let asker = Asker { socket, object };
        let patience = TimeVal::new(PATIENCE, 0);
        setsockopt(&asker.socket, sockopt::ReceiveTimeout, &patience).map_err(|e| asker.refused("wait for", e))?;
        Ok(asker)
    }

    fn refused(&self, action: &'static str, errno: Errno) -> Error {
        Error::kernel(action, self.object, errno)
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, bytes: &[u8], action: &'static str) -> Result<()> {
        match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(self.refused(action, errno)),
        }
    }

    /// Receives a dump to its end; `each` gets the messages' payloads.
    pub(crate) fn dumped(&self, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.receive("list", &mut |kind, payload| match i32::from(kind) {
            libc::NLMSG_DONE => Ok(true),
            libc::NLMSG_ERROR => Err(self.refused("list", errno_of(payload))),
            _ => each(payload).map(|()| false),
        })
    }

    /// Receives this many acknowledgements; these errors are as good as success.
    pub(crate) fn acknowledged(&self, action: &'static str, number: usize, good: &[Errno]) -> Result<()> {
        let mut answers = 0;
        self.receive(action, &mut |kind, payload| {
            if i32::from(kind) == libc::NLMSG_ERROR {
                answers += 1;
                let errno = errno_of(payload);
                // Zero, which is no errno, acknowledges.
                if errno != Errno::UnknownErrno && !good.contains(&errno) {
                    return Err(self.refused(action, errno));
                }
            }
            Ok(answers == number)
        })
    }

    /// Receives until `take` says that it was the last message.
    fn receive(&self, action: &'static str, take: &mut dyn FnMut(u16, &[u8]) -> Result<bool>) -> Result<()> {
        let mut buffer = vec![0u8; DATAGRAM];
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(self.refused(action, Errno::ETIMEDOUT)),
                Err(errno) => return Err(self.refused(action, errno)),
            };
            let mut rest = buffer.get(..len).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(|_| self.refused(action, Errno::EBADMSG))?;
                if take(message.message_type(), message.payload())? {
                    return Ok(());
                }
                rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn errno_of(payload: &[u8]) -> Errno {
    Errno::from_raw(payload.first_chunk().map_or(Errno::EBADMSG as i32, |b| i32::from_ne_bytes(*b).saturating_neg()))
}

/// A message with its nlmsghdr; sequence and port numbers are 0.
pub(crate) fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let len = 16 + payload.len();
    let mut bytes = Vec::with_capacity(len.next_multiple_of(4));
    bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}
