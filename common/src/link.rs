//! rtnetlink: the only door to links, addresses, routes and queueing disciplines.

pub mod attributes;
pub mod device;

use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::errno::Errno;
use rtnetlink::Handle;
use tokio::runtime::Runtime;

use crate::cni::error::{Error, Result};
use crate::netns::Netns;

/// One rtnetlink socket, in the namespace in which it was opened.
pub struct RouteSocket {
    runtime: Runtime,
    handle: Handle,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> Result<RouteSocket> {
        let refuse = |e: std::io::Error| Error::io("open", "an rtnetlink socket", &e);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(refuse)?;
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection().map_err(refuse)?;
            runtime.spawn(connection);
            handle
        };
        Ok(RouteSocket { runtime, handle })
    }

    /// Opens a socket in another namespace.
    pub fn open_in(netns: &Netns) -> Result<RouteSocket> {
        netns.enter(RouteSocket::open)
    }

    /// The typed requests of the rtnetlink crate.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for a typed request of the rtnetlink crate.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
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
        let mut handle = self.handle.clone();
        self.runtime.block_on(async {
            let mut answers = handle.request(request).map_err(|e| failed(action, object, &e))?;
            let mut gathered = Vec::new();
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => gathered.push(inner),
                    NetlinkPayload::Error(error) => match error.code {
                        None => {}
                        Some(code) => return Err(refused(action, object, code.get())),
                    },
                    _ => {}
                }
            }
            Ok(gathered)
        })
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

fn refused(action: &'static str, object: &str, code: i32) -> Error {
    Error::kernel(action, object, Errno::from_raw(code.saturating_abs()))
}

/// The kernel's answer behind an error of the rtnetlink crate.
pub fn failed(action: &'static str, object: &str, error: &rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => refused(action, object, message.raw_code()),
        _ => Error::kernel(action, object, Errno::EIO),
    }
}
