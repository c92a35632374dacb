//! The netlink socket: batches out, answers in.
//!
//! A batch goes out by one `sendmsg`, because the kernel takes what lies between begin and end of *one* datagram as a
//! transaction. Its last command asks for an acknowledgement: kernels before 6.10 don't acknowledge the end of a batch.

use std::cell::OnceCell;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mnl::{Bus, Socket};
use netlink_packet_core::NetlinkBuffer;
use nftnl::FinalizedBatch;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, sendmsg, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::attributes;
use super::message::{Message, RequestBuffer};
use super::option;
use crate::room::Room;

/// How long the kernel may take: a transaction waits for others' to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a dump is begun anew because the tables changed while it was read.
pub(super) const DUMP_TRIES: u32 = 50;

/// The kernel's refusal of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) errno: Errno,
    /// The number of the message it is about, if it is about one.
    pub(super) sequence: u32,
    /// The extended acknowledgement's text.
    pub(super) text: String,
    /// The extended acknowledgement's offset of the attribute at fault within the message.
    pub(super) offset: Option<u32>,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Refused {
        Refused { errno, sequence: 0, text: String::new(), offset: None }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Refused {
        Refused::from(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

/// A socket that is opened when it is first used, in the network namespace the thread is in then.
#[derive(Default)]
pub(super) struct Channel {
    socket: OnceCell<Socket>,
    room: Room,
    request: RequestBuffer,
    sequence: u32,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("open", &self.socket.get().is_some()).finish_non_exhaustive()
    }
}

/// What one datagram's message is.
enum Answer<'a> {
    /// An object, behind the nfgenmsg, and the family in that.
    Object(u8, &'a [u8]),
    /// Acknowledged, or the end of a dump.
    Done,
}

impl Channel {
    /// Opens the socket now, if it isn't open.
    pub(super) fn open(&mut self) -> Result<(), Errno> {
        if self.socket.get().is_none() {
            let socket = Socket::new(Bus::Netfilter).map_err(|e| Refused::from(e).errno)?;
            let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
            setsockopt(&Fd(&socket), sockopt::ReceiveTimeout, &patience)?;
            option::extended_acknowledgements(&socket);
            let _ = self.socket.set(socket);
        }
        Ok(())
    }

    fn socket(&mut self) -> Result<&Socket, Errno> {
        self.open()?;
        self.socket.get().ok_or(Errno::ENOTCONN)
    }

    /// Sends a batch and waits until the kernel has taken or refused it.
    ///
    /// `first` replaces the batch's own begin message, if given. `last` is the number of the last command.
    pub(super) fn commit(&mut self, batch: &FinalizedBatch, begin: Option<&[u8]>) -> Result<(), Refused> {
        let mut pages: Vec<&[u8]> = batch.iter().collect();
        if let (Some(begin), Some(first)) = (begin, pages.first_mut()) {
            let own = NetlinkBuffer::new_checked(*first).map_err(|_| Errno::EBADMSG)?.length() as usize;
            *first = first.get(own..).unwrap_or_default();
            pages.insert(0, begin);
        }
        self.send(&pages)?;
        let numbers = batch.sequence_numbers();
        let last = numbers.end.saturating_sub(1);
        let outcome =
            self.receive(|answer, sequence| (matches!(answer, Answer::Done) && sequence == last).then_some(()));
        if outcome.is_err() {
            self.forget_the_rest();
        }
        outcome
    }

    fn send(&mut self, pages: &[&[u8]]) -> Result<(), Errno> {
        let slices: Vec<IoSlice<'_>> = pages.iter().map(|page| IoSlice::new(page)).collect();
        let len: usize = pages.iter().map(|page| page.len()).sum();
        let socket = self.socket()?;
        // The kernel refuses a datagram larger than its send buffer: by default 212992 bytes, bookkeeping included.
        if len > 64 * 1024 {
            let room = len + 4096;
            // Beyond net.core.wmem_max needs CAP_NET_ADMIN in the initial user namespace.
            if setsockopt(&Fd(socket), sockopt::SndBufForce, &room).is_err() {
                setsockopt(&Fd(socket), sockopt::SndBuf, &room)?;
            }
        }
        loop {
            match sendmsg::<()>(socket.as_raw_fd(), &slices, &[], MsgFlags::empty(), None) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(sent) if sent == len => return Ok(()),
                Ok(_) => return Err(Errno::EMSGSIZE),
            }
        }
    }

    /// After a refusal, the answers to the other commands are there already: the kernel queues them all before
    /// `sendmsg` returns. They must not be taken for answers to the next request.
    fn forget_the_rest(&mut self) {
        let Some(socket) = self.socket.get() else { return };
        let mut scrap = [0u8; 512];
        loop {
            match recv(socket.as_raw_fd(), &mut scrap, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// Receives until `take` says what came of it, or the kernel refuses.
    fn receive<T>(&mut self, mut take: impl FnMut(Answer<'_>, u32) -> Option<T>) -> Result<T, Refused> {
        let socket = self.socket.get().ok_or(Errno::ENOTCONN)?;
        let mut interrupted = false;
        loop {
            let mut rest = match self.room.receive(socket.as_raw_fd()) {
                Ok(datagram) => datagram,
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                Err(errno) => return Err(errno.into()),
            };
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(|_| Errno::EBADMSG)?;
                let (sequence, payload) = (message.sequence_number(), message.payload());
                interrupted |= i32::from(message.flags()) & libc::NLM_F_DUMP_INTR != 0;
                let answer = match i32::from(message.message_type()) {
                    libc::NLMSG_ERROR => {
                        check(payload, message.flags(), sequence)?;
                        Answer::Done
                    }
                    libc::NLMSG_DONE if interrupted => return Err(Errno::EINTR.into()),
                    libc::NLMSG_DONE => {
                        check_done(payload)?;
                        Answer::Done
                    }
                    _ => Answer::Object(payload.first().copied().unwrap_or(0), payload.get(4..).unwrap_or_default()),
                };
                if let Some(value) = take(answer, sequence) {
                    return Ok(value);
                }
                rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        // Batches number their messages from 1 on: requests must not look like them.
        self.sequence = self.sequence.wrapping_add(1) | 0x4000_0000;
        self.sequence
    }

    /// Sends a request, and gives its number.
    fn request(&mut self, message: &Message) -> Result<u32, Errno> {
        let sequence = self.next_sequence();
        let mut buffer = std::mem::take(&mut self.request);
        let sent = self.send(&[buffer.write(message, sequence)]);
        self.request = buffer;
        sent.map(|()| sequence)
    }

    /// Asks for one object; `None` if there is none.
    pub(super) fn get<T>(
        &mut self,
        message: &Message,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Refused> {
        let sequence = self.request(message)?;
        let answer = self.receive(|answer, number| match answer {
            Answer::Object(_, bytes) if number == sequence => Some(read(bytes)),
            Answer::Done if number == sequence => Some(None),
            _ => None,
        });
        match answer {
            Err(refused) if refused.errno == Errno::ENOENT => Ok(None),
            other => other,
        }
    }

    /// Asks for several objects by one datagram, which the kernel answers message by message before `sendmsg` returns; in
    /// their order, `None` for those that aren't there. `read` gets the place of the one that is asked for.
    pub(super) fn get_all<T>(
        &mut self,
        messages: &[Message],
        read: impl Fn(usize, &[u8]) -> Option<T>,
    ) -> Result<Vec<Option<T>>, Refused> {
        let mut bytes = Vec::with_capacity(messages.len() * 96);
        let mut numbers = Vec::with_capacity(messages.len());
        for message in messages {
            let number = self.next_sequence();
            numbers.push(number);
            bytes.extend_from_slice(self.request.write(message, number));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let mut found: Vec<Option<T>> = messages.iter().map(|_| None).collect();
        if !messages.is_empty() {
            self.send(&[&bytes])?;
        }
        let mut unanswered = messages.len();
        while unanswered > 0 {
            let place = |number: u32| numbers.iter().position(|n| *n == number);
            let answer = self.receive(|answer, number| match (answer, place(number)) {
                (Answer::Object(_, bytes), Some(place)) => Some((place, read(place, bytes))),
                (Answer::Done, Some(place)) => Some((place, None)),
                (_, None) => None,
            });
            match answer {
                Ok((place, value)) => {
                    if let Some(slot) = found.get_mut(place) {
                        *slot = value;
                    }
                }
                Err(refused) if refused.errno == Errno::ENOENT && place(refused.sequence).is_some() => {}
                Err(refused) => {
                    self.forget_the_rest();
                    return Err(refused);
                }
            }
            unanswered -= 1;
        }
        Ok(found)
    }

    /// Asks for several objects, which the kernel sends one by one until one is missing; whether none was.
    pub(super) fn get_each(&mut self, message: &Message, mut read: impl FnMut(&[u8])) -> Result<bool, Refused> {
        let sequence = self.request(message)?;
        let end = self.receive(|answer, number| match answer {
            Answer::Object(_, bytes) if number == sequence => {
                read(bytes);
                None
            }
            Answer::Done if number == sequence => Some(()),
            _ => None,
        });
        match end {
            Ok(()) => Ok(true),
            Err(refused) if refused.errno == Errno::ENOENT => Ok(false),
            Err(refused) => Err(refused),
        }
    }

    /// Asks for all objects that the message describes. A dump during which the tables changed is repeated.
    pub(super) fn dump<T>(
        &mut self,
        message: &Message,
        read: &mut dyn FnMut(&[u8], &mut Vec<T>),
    ) -> Result<Vec<T>, Refused> {
        self.dump_families(message, &mut |_, bytes, all| read(bytes, all))
    }

    /// The same; `read` gets the number of the object's family, too.
    pub(super) fn dump_families<T>(
        &mut self,
        message: &Message,
        read: &mut impl FnMut(u8, &[u8], &mut Vec<T>),
    ) -> Result<Vec<T>, Refused> {
        for attempt in 0..DUMP_TRIES {
            let sequence = self.request(message)?;
            let mut all = Vec::new();
            let end = self.receive(|answer, number| match answer {
                Answer::Object(family, bytes) if number == sequence => {
                    read(family, bytes, &mut all);
                    None
                }
                Answer::Done if number == sequence => Some(()),
                _ => None,
            });
            match end {
                Ok(()) => return Ok(all),
                Err(refused) if refused.errno == Errno::EINTR => {
                    std::thread::sleep(pause_before_again(attempt));
                }
                Err(refused) if refused.errno == Errno::ENOENT => return Ok(Vec::new()),
                Err(refused) => return Err(refused),
            }
        }
        Err(Errno::EAGAIN.into())
    }
}

/// Before a dump is begun anew.
pub(super) fn pause_before_again(attempt: u32) -> Duration {
    Duration::from_millis(attempt.min(20).into())
}

/// nix's socket options want something with a descriptor.
struct Fd<'a>(&'a Socket);

impl std::os::fd::AsFd for Fd<'_> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        option::borrow(self.0)
    }
}

/// An NLMSG_ERROR: the errno, the head of the message it answers, and the extended acknowledgement (attributes 1: text,
/// 2: offset; include/uapi/linux/netlink.h).
fn check(payload: &[u8], flags: u16, sequence: u32) -> Result<(), Refused> {
    let code = payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    if code == 0 {
        return Ok(());
    }
    let capped = i32::from(flags) & libc::NLM_F_CAPPED != 0;
    let original = payload.get(4..8).and_then(|b| b.first_chunk()).map_or(16, |b| u32::from_ne_bytes(*b) as usize);
    let acknowledgement = match i32::from(flags) & libc::NLM_F_ACK_TLVS {
        0 => &[],
        _ => payload.get(4 + if capped { 16 } else { original }..).unwrap_or_default(),
    };
    Err(Refused {
        errno: Errno::from_raw(-code),
        sequence,
        text: attributes::find_text(acknowledgement, 1).unwrap_or_default(),
        offset: attributes::find(acknowledgement, 2).and_then(|v| v.first_chunk()).map(|b| u32::from_ne_bytes(*b)),
    })
}

/// A dump's end carries an errno as well.
fn check_done(payload: &[u8]) -> Result<(), Refused> {
    match payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b)) {
        0 => Ok(()),
        code => Err(Errno::from_raw(code.saturating_neg()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.18 to a NEWTABLE (number 2) whose name had 300 bytes, with NETLINK_EXT_ACK and NETLINK_CAP_ACK set.
    const REFUSAL: [u8; 104] = [
        0x68, 0, 0, 0, // length 104
        2, 0, 0, 3, // NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS
        2, 0, 0, 0, // number 2
        0x0d, 0x22, 0, 0, // our port
        0xde, 0xff, 0xff, 0xff, // -ERANGE
        0x48, 1, 0, 0, 0, 0x0a, 5, 4, 2, 0, 0, 0, 0, 0, 0, 0, // the head of what we sent
        0x27, 0, 1, 0, // NLMSGERR_ATTR_MSG
        b'A', b't', b't', b'r', b'i', b'b', b'u', b't', b'e', b' ', b'f', b'a', b'i', b'l', b'e', b'd', b' ', b'p',
        b'o', b'l', b'i', b'c', b'y', b' ', b'v', b'a', b'l', b'i', b'd', b'a', b't', b'i', b'o', b'n', 0,
        0, // padding
        8, 0, 2, 0, 0x14, 0, 0, 0, // NLMSGERR_ATTR_OFFS 20
        0x14, 0, 4, 0x80, 8, 0, 7, 0, 0xff, 0, 0, 0, 8, 0, 1, 0, 0x0b, 0, 0, 0, // NLMSGERR_ATTR_POLICY
    ];

    #[test]
    fn the_text_and_the_place_of_a_refusal_are_read() {
        let message = NetlinkBuffer::new_checked(&REFUSAL[..]).unwrap();
        let refused = check(message.payload(), message.flags(), message.sequence_number()).unwrap_err();
        assert_eq!(
            refused,
            Refused {
                errno: Errno::ERANGE,
                sequence: 2,
                text: "Attribute failed policy validation".into(),
                offset: Some(20),
            }
        );
    }

    #[test]
    fn an_answer_cut_short_is_no_panic() {
        for len in 0..REFUSAL.len() - 16 {
            let _ = check(&REFUSAL[16..16 + len], 0x300, 2);
            let _ = check_done(&REFUSAL[16..16 + len]);
        }
    }

    #[test]
    fn requests_are_not_numbered_like_a_batch() {
        let mut channel = Channel { sequence: u32::MAX - 1, ..Channel::default() };
        for _ in 0..4 {
            assert!(channel.next_sequence() >= 0x4000_0000);
        }
    }
}
