//! UDP flows that connection tracking would go on leading past a new mapping, or to a removed one.
//!
//! TCP needs none of this: a connection that leads nowhere ends, and the next begins with a packet that the rules see.
//! A failure is told in the log only, as in the reference: the ports themselves are in place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::Result;
use common::conntrack::{self, Flow, Interest, Led};
use common::link::RouteSocket;
use common::nft::{IpVersion, NftSocket};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use crate::config::Protocol;
use crate::record::Recorded;
use crate::rules::{Claim, TABLE};

/// What a flow was sent to, of all this host's addresses or of one.
type Key = (Option<IpAddr>, u16);

/// The UDP claims of one version of IP.
fn udp(claims: impl IntoIterator<Item = Claim>, version: IpVersion) -> Vec<Claim> {
    claims.into_iter().filter(|c| c.protocol == Protocol::Udp && c.version() == version).collect()
}

fn led(claim: &Claim) -> Led {
    let Claim { address, protocol, port, target, target_port } = *claim;
    Led { protocol: protocol.number(), address, port, target, target_port }
}

/// After ADD: flows to a port that is published now, and that don't lead to the container.
pub fn forget_after_add(socket: &mut NftSocket, claims: &[Claim], before: Option<&Recorded>) {
    let kept: BTreeSet<&Claim> = claims.iter().collect();
    let gone = before.iter().flat_map(|b| &b.record.claims).filter(|c| !kept.contains(c)).copied();
    forget_gone(gone.collect());
    for version in IpVersion::ALL {
        let now: BTreeMap<Key, Claim> =
            udp(claims.iter().copied(), version).into_iter().map(|c| ((c.address, c.port), c)).collect();
        let mut ports = now.values().map(|c| c.port);
        let Some(first) = ports.next() else { continue };
        // The kernel can look for one port; several take one look through all of UDP.
        let port = ports.all(|port| port == first).then_some(first);
        let interest = Interest { version, protocol: Protocol::Udp.number(), port };
        let mut locals = None;
        let forgotten = conntrack::forget(interest, &mut |flow| bypasses(socket, &now, &mut locals, flow));
        tell(forgotten.map(drop), "bypass a new host port");
    }
}

/// After DEL: flows to a container that is gone.
pub fn forget_after_del(removed: &[Recorded]) {
    forget_gone(removed.iter().flat_map(|r| r.record.claims.iter().copied()).collect());
}

fn forget_gone(claims: Vec<Claim>) {
    for version in IpVersion::ALL {
        let gone: Vec<Led> = udp(claims.iter().copied(), version).iter().map(led).collect();
        tell(conntrack::forget_led(&gone), "lead to a removed host port");
    }
}

fn tell(forgotten: Result<()>, what: &str) {
    if let Err(error) = forgotten {
        log::warn!("UDP flows that {what} could not be forgotten: {error}");
    }
}

/// Whether the flow would lead to a container of these claims, were it to begin now, and doesn't.
fn bypasses(
    socket: &mut NftSocket,
    claims: &BTreeMap<Key, Claim>,
    locals: &mut Option<BTreeSet<IpAddr>>,
    flow: &Flow,
) -> Result<bool> {
    let (dst, port) = (flow.original.dst, flow.original.dst_port);
    let (claim, everywhere) = match (claims.get(&(Some(dst), port)), claims.get(&(None, port))) {
        (Some(specific), _) => (specific, false),
        (None, Some(wildcard)) => (wildcard, true),
        (None, None) => return Ok(false),
    };
    if (claim.target, claim.target_port) == (flow.reply.src, flow.reply.src_port) {
        return Ok(false);
    }
    if everywhere {
        // Somebody else's port at this one address goes first.
        let specific = Claim { address: Some(dst), ..*claim };
        if socket.element(&TABLE, &specific.map(), &specific.key())?.is_some() {
            return Ok(false);
        }
    }
    if dst.is_loopback() {
        return Ok(true);
    }
    let locals = match locals {
        Some(locals) => locals,
        None => locals.insert(local_addresses()?),
    };
    // What merely passes through this host isn't for it.
    Ok(locals.contains(&dst))
}

fn local_addresses() -> Result<BTreeSet<IpAddr>> {
    let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let dump = netlink_packet_core::NLM_F_DUMP;
    let answers = RouteSocket::open()?.request(query, dump, "list", "this host's addresses")?;
    let of = |message: AddressMessage| {
        message.attributes.into_iter().find_map(|attribute| match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end's (include/uapi/linux/if_addr.h).
            AddressAttribute::Local(address) => Some(address),
            _ => None,
        })
    };
    let plain = |message: &AddressMessage| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => {
                let address = plain(&message);
                of(message).or(address)
            }
            _ => None,
        })
        .collect())
}
