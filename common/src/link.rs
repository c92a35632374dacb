//! rtnetlink: the only door to links, addresses, routes and queueing disciplines.

pub mod attributes;
pub mod device;

use std::cell::Cell;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::libc;

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
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        if flags & NLM_F_DUMP != NLM_F_DUMP {
            request.header.flags |= NLM_F_ACK;
        }
        for _ in 0..DUMP_TRIES {
            match self.ask(&mut request) {
                Err(Errno::EINTR) => {}
                outcome => return outcome.map_err(|errno| Error::kernel(action, object, errno)),
            }
        }
        Err(Error::TryAgain { what: format!("{object}: they keep changing while the kernel lists them") })
    }

    /// Sends it under a number of its own, so that nothing that is left of an earlier one is taken for its answer.
    fn ask(
        &self,
        request: &mut NetlinkMessage<RouteNetlinkMessage>,
    ) -> std::result::Result<Vec<RouteNetlinkMessage>, Errno> {
        self.sequence.set(self.sequence.get().wrapping_add(1));
        request.header.sequence_number = self.sequence.get();
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.channel.send(&bytes)?;
        let mut gathered = Vec::new();
        self.channel.receive(&mut |answer| match self.take(answer, &mut gathered) {
            Ok(false) => ControlFlow::Continue(()),
            Ok(true) => ControlFlow::Break(Ok(())),
            Err(errno) => ControlFlow::Break(Err(errno)),
        })??;
        Ok(gathered)
    }

    /// Whether this message ends the answer.
    fn take(&self, answer: &Answer<'_>, gathered: &mut Vec<RouteNetlinkMessage>) -> std::result::Result<bool, Errno> {
        if answer.sequence_number() != self.sequence.get() {
            return Ok(false);
        }
        match i32::from(answer.message_type()) {
            libc::NLMSG_DONE | libc::NLMSG_ERROR => match errno_of(answer.payload()) {
                None => Ok(true),
                Some(errno) => Err(errno),
            },
            _ => {
                let bytes = answer.clone().into_inner();
                let bytes = bytes.get(..answer.length() as usize).ok_or(Errno::EBADMSG)?;
                match NetlinkMessage::deserialize(bytes).map(|message| message.payload) {
                    Ok(NetlinkPayload::InnerMessage(inner)) => gathered.push(inner),
                    Ok(_) => {}
                    // One of many, which the crate has no words for, is not one of ours.
                    Err(error) if answer.flags() & NLM_F_MULTIPART != 0 => log::debug!("skipped: {error}"),
                    Err(_) => return Err(Errno::EBADMSG),
                }
                Ok(false)
            }
        }
    }

    /// The link of this name in the socket's namespace.
    pub fn link_by_name(&self, name: &str) -> Result<Option<LinkMessage>> {
        let mut query = LinkMessage::default();
        query.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(query, name)
    }

    /// The link of this index in the socket's namespace.
    pub fn link_by_index(&self, index: u32) -> Result<Option<LinkMessage>> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        self.one_link(query, &format!("index {index}"))
    }

    fn one_link(&self, query: LinkMessage, object: &str) -> Result<Option<LinkMessage>> {
        match self.request(RouteNetlinkMessage::GetLink(query), 0, "get", &format!("link {object}")) {
            Ok(answers) => Ok(answers.into_iter().find_map(|a| match a {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })),
            Err(Error::Kernel { errno: Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that isn't there, as often as one socket is asked: each answer goes with its question.
    #[test]
    fn what_the_kernel_refuses_is_an_error_with_its_errno() {
        let socket = RouteSocket::open().unwrap();
        let mut query = LinkMessage::default();
        query.header.index = u32::MAX >> 1;
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
}
