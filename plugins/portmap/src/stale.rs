//! UDP flows that connection tracking would go on leading past a new mapping, or to a removed one.
//!
//! TCP needs none of this: a connection that leads nowhere ends, and the next begins with a packet that the rules see.
//! A failure is told in the log only, as in the reference: the ports themselves are in place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::Result;
use common::conntrack::{self, Flow, Interest};
use common::link::RouteSocket;
use common::nft::NftSocket;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use crate::config::Protocol;
use crate::record::Recorded;
use crate::rules::{Claim, TABLE};

/// What a flow was sent to, of all this host's addresses or of one.
type Key = (Option<IpAddr>, u16);

/// The UDP claims by what is sent to, apart for both versions because a wildcard of one isn't the other's.
fn udp(claims: &[Claim]) -> BTreeMap<(bool, Key), Claim> {
    let udp = claims.iter().filter(|c| c.protocol == Protocol::Udp);
    udp.map(|c| ((c.target.is_ipv4(), (c.address, c.port)), *c)).collect()
}

fn interest(claims: &BTreeMap<(bool, Key), Claim>) -> Interest {
    let ports: BTreeSet<u16> = claims.values().map(|c| c.port).collect();
    // The kernel can look for one port; several take one look through all of UDP.
    let port = if ports.len() == 1 { ports.first().copied() } else { None };
    Interest { protocol: Protocol::Udp.number(), port }
}

/// After ADD: flows to a port that is published now, and that don't lead to the container.
pub fn forget_after_add(socket: &mut NftSocket, claims: &[Claim], before: Option<&Recorded>) {
    let now = udp(claims);
    let mut locals = None;
    let kept: BTreeSet<&Claim> = claims.iter().collect();
    let gone = before.iter().flat_map(|b| &b.record.claims).filter(|c| !kept.contains(c));
    let gone: Vec<Claim> = gone.copied().collect();
    let gone = udp(&gone);
    if now.is_empty() && gone.is_empty() {
        return;
    }
    let all = now.iter().chain(&gone).map(|(key, claim)| (*key, *claim)).collect();
    let forgotten = conntrack::forget(interest(&all), &mut |flow| {
        Ok(leads_to_one_of(&gone, flow) || bypasses(socket, &now, &mut locals, flow)?)
    });
    tell(forgotten, "bypassed a new host port");
}

/// After DEL: flows to a container that is gone.
pub fn forget_after_del(removed: &[Recorded]) {
    let claims: Vec<Claim> = removed.iter().flat_map(|r| r.record.claims.iter().copied()).collect();
    let gone = udp(&claims);
    if gone.is_empty() {
        return;
    }
    tell(
        conntrack::forget(interest(&gone), &mut |flow| Ok(leads_to_one_of(&gone, flow))),
        "led to a removed host port",
    );
}

fn tell(forgotten: Result<usize>, what: &str) {
    match forgotten {
        Ok(0) => {}
        Ok(number) => log::info!("forgot {number} UDP flows that {what}"),
        Err(error) => log::warn!("UDP flows that {what} could not be forgotten: {error}"),
    }
}

/// Whether the flow was led to a container by one of these claims.
fn leads_to_one_of(claims: &BTreeMap<(bool, Key), Claim>, flow: &Flow) -> bool {
    let leads = |key: Key| {
        let claim = claims.get(&(flow.original.dst.is_ipv4(), key));
        claim.is_some_and(|c| (c.target, c.target_port) == (flow.reply.src, flow.reply.src_port))
    };
    leads((Some(flow.original.dst), flow.original.dst_port)) || leads((None, flow.original.dst_port))
}

/// Whether the flow would lead to a container of these claims, were it to begin now, and doesn't.
fn bypasses(
    socket: &mut NftSocket,
    claims: &BTreeMap<(bool, Key), Claim>,
    locals: &mut Option<BTreeSet<IpAddr>>,
    flow: &Flow,
) -> Result<bool> {
    let (dst, port) = (flow.original.dst, flow.original.dst_port);
    let found = |key: Key| claims.get(&(dst.is_ipv4(), key));
    let (claim, everywhere) = match (found((Some(dst), port)), found((None, port))) {
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
