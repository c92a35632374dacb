//! What must be looked up on the host before planning. Changes nothing.

use common::cni::CniResult;
use common::link::RouteSocket;
use common::netns::Netns;
use common::{Call, Result};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::config::{Backend, Config, IngressPolicy};
use crate::firewalld::Firewalld;
use crate::plan::Facts;

/// What was looked up, and whom it was asked of.
pub struct Observed {
    /// For the plan.
    pub facts: Facts,
    /// firewalld, if it is to be told.
    pub firewalld: Option<Firewalld>,
}

/// Looks up what the plan depends on.
pub fn observe(config: &Config, call: &Call, prev: &CniResult) -> Result<Observed> {
    let firewalld = firewalld(config.backend)?;
    let mut facts = Facts { firewalld: firewalld.is_some(), ..Facts::default() };
    if config.policy != IngressPolicy::Open {
        look_at_links(call, prev, &mut facts)?;
        if config.policy == IngressPolicy::Isolated && facts.ports.is_empty() && !facts.bridges.is_empty() {
            log::warn!(
                "no port of {} is known for this container: within the bridge it is isolated only as far as \
                 net.bridge.bridge-nf-call-iptables reaches",
                facts.bridges.join(", ")
            );
        }
    }
    Ok(Observed { facts, firewalld })
}

/// The firewalld that is to be told, if one is.
pub fn firewalld(backend: Backend) -> Result<Option<Firewalld>> {
    match backend {
        Backend::Iptables | Backend::Nftables => Ok(None),
        Backend::Firewalld => Firewalld::require().map(Some),
        // As in the reference: who doesn't ask for firewalld isn't stopped by a broken bus.
        Backend::Detect => Ok(Firewalld::find()
            .inspect_err(|error| log::warn!("{error}; going on without firewalld"))
            .unwrap_or_default()),
    }
}

/// Which of the host's interfaces of prevResult are bridges, and which are ports of one. If no port is named there, the
/// other end of the container's interface is looked for.
fn look_at_links(call: &Call, prev: &CniResult, facts: &mut Facts) -> Result<()> {
    let socket = RouteSocket::open()?;
    for interface in prev.interfaces.iter().filter(|i| i.sandbox.is_empty() && !i.name.is_empty()) {
        let Some(link) = socket.link_by_name(&interface.name)? else { continue };
        if is_bridge(&link) {
            facts.bridges.push(interface.name.clone());
        } else if is_port(&socket, &link)? {
            facts.ports.push(interface.name.clone());
        }
    }
    if facts.ports.is_empty()
        && let Some(index) = peer_index(call)?
        && let Some(peer) = socket.link_by_index(index)?
        && is_port(&socket, &peer)?
    {
        facts.ports.extend(name(&peer));
    }
    Ok(())
}

fn is_bridge(link: &LinkMessage) -> bool {
    let of_kind = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Bridge));
    link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(of_kind)))
}

fn is_port(socket: &RouteSocket, link: &LinkMessage) -> Result<bool> {
    let controller = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    let Some(index) = controller else { return Ok(false) };
    Ok(socket.link_by_index(index)?.is_some_and(|master| is_bridge(&master)))
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The index on the host of the other end of the container's interface (IFLA_LINK of a veth).
fn peer_index(call: &Call) -> Result<Option<u32>> {
    let Some(path) = &call.netns else { return Ok(None) };
    let inside = RouteSocket::open_in(&Netns::open(path)?)?;
    let link = inside.link_by_name(&call.attachment.ifname)?;
    Ok(link.and_then(|link| {
        link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        })
    }))
}
