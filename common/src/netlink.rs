//! Netlink sockets for all but nf_tables, which has a door of its own ([`crate::nft`]): datagrams out, answers in.
//!
//! A socket blocks, and no longer than [`PATIENCE`]: the kernel works a request off before `send` returns, so the answer is
//! there already, or it has been lost.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::Socket;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::cni::error::{Error, Result};
use crate::room::Room;

/// How long the kernel may take for one answer, in seconds.
const PATIENCE: i64 = 10;

/// A message as it came.
pub(crate) type Answer<'a> = NetlinkBuffer<&'a [u8]>;

/// A socket, and the room that its answers come into.
pub(crate) struct Channel(Socket, Cell<Room>);

impl Channel {
    /// Opens a socket of this protocol in the calling thread's namespace.
    pub(crate) fn open(protocol: isize) -> std::result::Result<Channel, Errno> {
        let socket = Socket::new(protocol).map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Channel(socket, Cell::default()))
    }

    /// Lets the kernel refuse what it doesn't understand of a dump's request, instead of listing more.
    pub(crate) fn check_strictly(&self) -> std::result::Result<(), Errno> {
        let set = self.0.set_netlink_get_strict_chk(true);
        set.map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, bytes: &[u8]) -> std::result::Result<(), Errno> {
        loop {
            match send(self.0.as_raw_fd(), bytes, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// Receives until `take` breaks off. ETIMEDOUT: no answer came; EINTR: what a dump describes has changed while it was
    /// made, so it is no one state.
    pub(crate) fn receive<T>(
        &self,
        take: &mut dyn FnMut(&Answer<'_>) -> ControlFlow<T>,
    ) -> std::result::Result<T, Errno> {
        let mut room = self.1.take();
        let outcome = self.receive_into(&mut room, take);
        self.1.set(room);
        outcome
    }

    fn receive_into<T>(
        &self,
        room: &mut Room,
        take: &mut dyn FnMut(&Answer<'_>) -> ControlFlow<T>,
    ) -> std::result::Result<T, Errno> {
        let mut interrupted = false;
        loop {
            let mut rest = match room.receive(self.0.as_raw_fd()) {
                Ok(datagram) => datagram,
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                Err(errno) => return Err(errno),
            };
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(|_| Errno::EBADMSG)?;
                interrupted |= i32::from(message.flags()) & libc::NLM_F_DUMP_INTR != 0;
                if interrupted && i32::from(message.message_type()) == libc::NLMSG_DONE {
                    return Err(Errno::EINTR);
                }
                if let ControlFlow::Break(value) = take(&message) {
                    return Ok(value);
                }
                rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// A socket for plain dumps and plain deletions, one request at a time, so answers need no sequence numbers; and what it
/// asks about.
pub(crate) struct Asker {
    channel: Channel,
    object: &'static str,
}

impl Asker {
    /// Opens a socket of this protocol in the calling thread's namespace.
    pub(crate) fn open(protocol: isize, object: &'static str) -> Result<Asker> {
        let channel = Channel::open(protocol).map_err(|e| Error::kernel("open a netlink socket for", object, e))?;
        Ok(Asker { channel, object })
    }

    fn refused(&self, action: &'static str, errno: Errno) -> Error {
        Error::kernel(action, self.object, errno)
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, bytes: &[u8], action: &'static str) -> Result<()> {
        self.channel.send(bytes).map_err(|errno| self.refused(action, errno))
    }

    /// Receives a dump to its end; `each` gets the messages' payloads.
    pub(crate) fn dumped(&self, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.receive("list", &mut |kind, payload| match i32::from(kind) {
            libc::NLMSG_DONE | libc::NLMSG_ERROR => match errno_of(payload) {
                None => Ok(true),
                Some(errno) => Err(self.refused("list", errno)),
            },
            _ => each(payload).map(|()| false),
        })
    }

    /// Receives this many acknowledgements; these errors are as good as success.
    pub(crate) fn acknowledged(&self, action: &'static str, number: usize, good: &[Errno]) -> Result<()> {
        let mut answers = 0;
        self.receive(action, &mut |kind, payload| {
            if i32::from(kind) == libc::NLMSG_ERROR {
                answers += 1;
                if let Some(errno) = errno_of(payload).filter(|errno| !good.contains(errno)) {
                    return Err(self.refused(action, errno));
                }
            }
            Ok(answers == number)
        })
    }

    /// Receives until `take` says that it was the last message.
    fn receive(&self, action: &'static str, take: &mut dyn FnMut(u16, &[u8]) -> Result<bool>) -> Result<()> {
        let outcome = self.channel.receive(&mut |message| match take(message.message_type(), message.payload()) {
            Ok(false) => ControlFlow::Continue(()),
            Ok(true) => ControlFlow::Break(Ok(())),
            Err(error) => ControlFlow::Break(Err(error)),
        });
        outcome.map_err(|errno| self.refused(action, errno))?
    }
}

/// The errno of an acknowledgement or of a dump's end; `None` where all went well.
pub(crate) fn errno_of(payload: &[u8]) -> Option<Errno> {
    // Kernels have ended dumps without one.
    let code = payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    (code != 0).then(|| Errno::from_raw(code.saturating_neg()))
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
