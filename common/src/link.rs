//! rtnetlink: the only door to links, addresses, routes and queueing disciplines.
//!
//! The requests are built by the `rtnetlink` crate. They are sent by a blocking socket of our own, because the crate's
//! asynchronous connection ends its stream of answers alike when a datagram is lost and when there is nothing to say, and
//! takes an interrupted dump for a whole one.

pub mod attributes;
pub mod device;
mod elsewhere;
mod excerpt;
pub mod ipv6;
pub mod neighbour;

use std::cell::Cell;
use std::ops::ControlFlow;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::libc;
use rtnetlink::LinkUnspec;

use self::device::Device;
use crate::cni::error::{Error, Result};
use crate::netlink::{Answer, Channel, errno_of};
use crate::netns::Netns;

/// How often a dump is begun anew because what it describes changed while it was made.
const DUMP_TRIES: u32 = 50;

/// One rtnetlink socket, in the namespace in which it was opened.
pub struct RouteSocket {
    channel: Channel,
    sequence: Cell<u32>,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> Result<RouteSocket> {
        let channel =
            Channel::open(NETLINK_ROUTE).map_err(|errno| Error::kernel("open", "an rtnetlink socket", errno))?;
        Ok(RouteSocket { channel, sequence: Cell::new(0) })
    }

    /// Opens a socket in another namespace.
    pub fn open_in(netns: &Netns) -> Result<RouteSocket> {
        netns.enter(RouteSocket::open)
    }

    /// Sends one request and gathers the answers up to the acknowledgement or the end of the dump.
    ///
    /// `flags` are added to `NLM_F_REQUEST`; without `NLM_F_DUMP`, `NLM_F_ACK` is added too, because a GET of one object
    /// may otherwise never be answered.
    pub fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: &'static str,
        object: &str,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let request = Request::new(message, flags, action, object);
        for _ in 0..DUMP_TRIES {
            match self.ask(std::slice::from_ref(&request)).pop() {
                Some(Err(No::Refused(Errno::EINTR) | No::Lost(Errno::EINTR))) => {}
                Some(Err(no)) => return Err(no.about(action, object)),
                Some(Ok(answers)) => return Ok(answers),
                None => return Ok(Vec::new()),
            }
        }
        Err(Error::TryAgain { what: format!("{object}: they keep changing while the kernel lists them") })
    }

    /// Sends one change and waits for its acknowledgement; a link that it made comes back.
    pub fn change(&self, request: Request) -> Result<Option<Device>> {
        self.change_all(std::slice::from_ref(&request)).pop().unwrap_or(Ok(None))
    }

    /// Sends changes as one datagram, which the kernel works off, one after the other, before the call returns: so a signal
    /// ends this process before the first or after the last of them. One that fails doesn't keep it from the next.
    pub fn change_all(&self, requests: &[Request]) -> Vec<Result<Option<Device>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for some in requests.chunks(DATAGRAM_REQUESTS) {
            let answers = self.ask(some).into_iter();
            outcomes.extend(some.iter().zip(answers).map(|(request, answer)| match answer {
                Ok(answers) => Ok(answers.into_iter().find_map(as_link).as_ref().map(Device::from)),
                Err(No::Refused(errno)) if request.good.contains(&errno) => Ok(None),
                Err(no) => Err(no.about(request.action, &request.object)),
            }));
        }
        outcomes
    }

    /// Sends requests in one datagram, each under a number of its own, so that nothing that is left of an earlier one is
    /// taken for its answer; gives an answer for each.
    fn ask(&self, requests: &[Request]) -> Vec<Answers> {
        let first = self.sequence.get().wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence.set(self.sequence.get().wrapping_add(1));
            request.write(self.sequence.get(), &mut bytes);
        }
        let mut pending: Vec<Pending> = requests.iter().map(|_| Pending::default()).collect();
        let received = self.channel.send(&bytes).and_then(|()| {
            self.channel.receive(&mut |answer| {
                let number = answer.sequence_number().wrapping_sub(first);
                if let Some(pending) = usize::try_from(number).ok().and_then(|at| pending.get_mut(at)) {
                    pending.take(answer);
                }
                if pending.iter().all(|p| p.end.is_some()) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        let silence = received.err().unwrap_or(Errno::EBADMSG);
        let word = |pending: Pending| match pending.end {
            Some(Ok(())) => Ok(pending.gathered),
            Some(Err(errno)) => Err(No::Refused(errno)),
            None => Err(No::Lost(silence)),
        };
        pending.into_iter().map(word).collect()
    }

    /// The link of this name in the socket's namespace.
    pub fn link_by_name(&self, name: &str) -> Result<Option<LinkMessage>> {
        self.one_link(LinkUnspec::new_with_name(name).build(), name)
    }

    /// The link of this index in the socket's namespace.
    pub fn link_by_index(&self, index: u32) -> Result<Option<LinkMessage>> {
        self.one_link(LinkUnspec::new_with_index(index).build(), &format!("index {index}"))
    }

    /// Without its statistics: they are a third of the answer, and nobody here reads them.
    fn one_link(&self, mut query: LinkMessage, object: &str) -> Result<Option<LinkMessage>> {
        query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.request(RouteNetlinkMessage::GetLink(query), 0, "get", &format!("link {object}")) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(Error::Kernel { errno: Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Requests in one datagram at the most: their acknowledgements must find room in the socket's receive buffer.
pub const DATAGRAM_REQUESTS: usize = 64;

/// A request that can be sent together with others.
#[derive(Debug)]
pub struct Request {
    message: NetlinkMessage<RouteNetlinkMessage>,
    action: &'static str,
    object: String,
    good: &'static [Errno],
}

impl Request {
    /// `flags` are added to `NLM_F_REQUEST`, and `NLM_F_ACK` where it is no dump.
    pub fn new(message: RouteNetlinkMessage, flags: u16, action: &'static str, object: impl Into<String>) -> Request {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        if flags & NLM_F_DUMP != NLM_F_DUMP {
            message.header.flags |= NLM_F_ACK;
        }
        Request { message, action, object: object.into(), good: &[] }
    }

    /// The same, to which these answers are as good as success.
    pub fn content_with(self, good: &'static [Errno]) -> Request {
        Request { good, ..self }
    }

    fn write(&self, sequence: u32, bytes: &mut Vec<u8>) {
        let mut message = self.message.clone();
        message.header.sequence_number = sequence;
        message.finalize();
        let begin = bytes.len();
        bytes.resize(begin + message.buffer_len().next_multiple_of(4), 0);
        if let Some(room) = bytes.get_mut(begin..begin + message.buffer_len()) {
            message.serialize(room);
        }
    }
}

/// What the kernel had to say to one request.
type Answers = std::result::Result<Vec<RouteNetlinkMessage>, No>;

/// Why a request has no good answer.
#[derive(Clone, Copy)]
enum No {
    /// The kernel has refused it.
    Refused(Errno),
    /// Its answer was not received: the kernel may have done it.
    Lost(Errno),
}

impl No {
    fn about(self, action: &'static str, object: &str) -> Error {
        match self {
            No::Refused(errno) => Error::kernel(action, object, errno),
            No::Lost(errno) => Error::Unanswered { action, object: object.to_owned(), errno },
        }
    }
}

/// What has come of an answer so far, and how it ended.
#[derive(Default)]
struct Pending {
    gathered: Vec<RouteNetlinkMessage>,
    end: Option<std::result::Result<(), Errno>>,
}

impl Pending {
    fn take(&mut self, answer: &Answer<'_>) {
        match i32::from(answer.message_type()) {
            libc::NLMSG_DONE | libc::NLMSG_ERROR => self.end = Some(errno_of(answer.payload()).map_or(Ok(()), Err)),
            _ => match value(answer) {
                Ok(inner) => self.gathered.extend(inner),
                // One of many, which the crate has no words for, is not one of ours.
                Err(error) if answer.flags() & NLM_F_MULTIPART != 0 => log::debug!("skipped: {error}"),
                Err(_) => self.end = Some(Err(Errno::EBADMSG)),
            },
        }
    }
}

/// The value of a message of rtnetlink.
fn value(answer: &Answer<'_>) -> std::result::Result<Option<RouteNetlinkMessage>, DecodeError> {
    if answer.message_type() == libc::RTM_NEWLINK {
        return excerpt::link(answer.payload()).map(RouteNetlinkMessage::NewLink).map(Some);
    }
    let bytes = answer.clone().into_inner();
    let bytes = bytes.get(..answer.length() as usize).unwrap_or_default();
    match NetlinkMessage::deserialize(bytes)?.payload {
        NetlinkPayload::InnerMessage(inner) => Ok(Some(inner)),
        _ => Ok(None),
    }
}

fn as_link(answer: RouteNetlinkMessage) -> Option<LinkMessage> {
    match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that isn't there, as often as one socket is asked: each answer goes with its question.
    #[test]
    fn what_the_kernel_refuses_is_an_error_with_its_errno() {
        let socket = RouteSocket::open().unwrap();
        let query = LinkUnspec::new_with_index(u32::MAX >> 1).build();
        for _ in 0..3 {
            let asked = socket.request(RouteNetlinkMessage::GetLink(query.clone()), 0, "get", "link 9");
            assert_eq!(asked, Err(Error::kernel("get", "link 9", Errno::ENODEV)));
            assert_eq!(socket.link_by_index(1).unwrap().unwrap().header.index, 1);
        }
    }

    #[test]
    fn a_dump_is_gathered_to_its_end() {
        let query = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = RouteSocket::open().unwrap().request(query, NLM_F_DUMP, "list", "links").unwrap();
        assert!(links.iter().any(|l| matches!(l, RouteNetlinkMessage::NewLink(l) if l.header.index == 1)), "lo");
    }

    #[test]
    fn of_requests_sent_together_each_gets_its_own_answer() {
        let socket = RouteSocket::open().unwrap();
        let get = |index: u32| {
            let query = LinkUnspec::new_with_index(index).build();
            Request::new(RouteNetlinkMessage::GetLink(query), 0, "get", format!("link {index}"))
        };
        let nowhere = u32::MAX >> 1;
        // More than one datagram takes.
        let indices: Vec<u32> = [1, nowhere, 1, nowhere].into_iter().cycle().take(DATAGRAM_REQUESTS + 2).collect();
        let requests: Vec<Request> = indices.iter().map(|index| get(*index)).collect();
        let outcomes = socket.change_all(&requests);
        assert_eq!(outcomes.len(), indices.len());
        for (index, outcome) in indices.into_iter().zip(outcomes) {
            match outcome {
                Ok(link) => assert_eq!(link.unwrap().index, index),
                Err(error) => assert_eq!(error, Error::kernel("get", format!("link {nowhere}"), Errno::ENODEV)),
            }
        }
        assert!(socket.change(get(nowhere).content_with(&[Errno::ENODEV])).unwrap().is_none());
    }
}
