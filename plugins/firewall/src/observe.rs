//! What must be looked up on the host before planning. Changes nothing.

use common::cni::CniResult;
use common::link::RouteSocket;
use common::netns::Netns;
use common::{Call, Result};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::config::{Backend, Config, IngressPolicy};
use crate::firewalld::Firewalld;
use crate::plan::{self, Facts};

/// What was looked up, and whom it was asked of.
pub struct Observed {
    /// For the plan.
    pub facts: Facts,
    /// firewalld, if it is to be told.
    pub firewalld: Option<Firewalld>,
}

/// Looks up what the plan depends on.
pub fn observe(config: &Config, call: &Call, prev: &CniResult) -> Result<Observed> {
    plan::refuse_long_names(config, prev)?;
    let firewalld = firewalld(config.backend)?;
    let mut facts = Facts { firewalld: firewalld.is_some(), ..Facts::default() };
    if plan::looks_at_links(config) {
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
        && let Some(peer) = host_end(call, &socket)?
    {
        if is_port(&socket, &peer)? {
            facts.ports.extend(name(&peer));
        } else {
            facts.routed_port = name(&peer);
        }
    }
    Ok(())
}

fn is_of_kind(link: &LinkMessage, kinds: &[InfoKind]) -> bool {
    let of_kind = |info: &LinkInfo| matches!(info, LinkInfo::Kind(kind) if kinds.contains(kind));
    link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(of_kind)))
}

fn is_bridge(link: &LinkMessage) -> bool {
    is_of_kind(link, &[InfoKind::Bridge])
}

/// A container's port of a bridge. A bridge's way to the outside is no veth and no tap, and never taken for one.
fn is_port(socket: &RouteSocket, link: &LinkMessage) -> Result<bool> {
    let controller = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    match controller.filter(|_| is_of_kind(link, &[InfoKind::Veth, InfoKind::Tun])) {
        None => Ok(false),
        Some(index) => Ok(socket.link_by_index(index)?.is_some_and(|master| is_bridge(&master))),
    }
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The other end of a veth (IFLA_LINK): an index in whatever namespace that end is in.
fn peer_index(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// The host's end of the container's veth. Only two ends that name each other are one pair: a macvlan names its parent
/// in the same attribute, and an index of another namespace may be anything here.
fn host_end(call: &Call, socket: &RouteSocket) -> Result<Option<LinkMessage>> {
    let Some(path) = &call.netns else { return Ok(None) };
    let veth = |link: &LinkMessage| is_of_kind(link, &[InfoKind::Veth]);
    let inside = RouteSocket::open_in(&Netns::open(path)?)?;
    let Some(own) = inside.link_by_name(&call.attachment.ifname)?.filter(veth) else { return Ok(None) };
    let Some(index) = peer_index(&own) else { return Ok(None) };
    let peer = socket.link_by_index(index)?.filter(veth);
    Ok(peer.filter(|peer| peer_index(peer) == Some(own.header.index)))
}
