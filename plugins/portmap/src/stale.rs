//! UDP flows that connection tracking would go on leading past a new mapping, or to a removed one.
//!
//! TCP needs none of this: a connection that leads nowhere ends, and the next begins with a packet that the rules see.
//! A failure is told in the log only, as in the reference: the ports themselves are in place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::Result;
use common::conntrack::{self, Flow, Interest};
use common::link::RouteSocket;
use common::nft::{IpVersion, NftSocket};
use netlink_packet_route::route::RouteType;

use crate::config::Protocol;
use crate::observe::route_to;
use crate::record::Recorded;
use crate::rules::{Claim, TABLE};

/// What a flow was sent to: its version of IP, of all this host's addresses or one, and the port.
type Key = (IpVersion, Option<IpAddr>, u16);

/// The UDP claims by what is sent to them.
fn udp<'a>(claims: impl IntoIterator<Item = &'a Claim>) -> BTreeMap<Key, Vec<Claim>> {
    let mut all: BTreeMap<Key, Vec<Claim>> = BTreeMap::new();
    for claim in claims.into_iter().filter(|c| c.protocol == Protocol::Udp) {
        all.entry((claim.version(), claim.address, claim.port)).or_default().push(*claim);
    }
    all
}

/// After ADD: flows to a port that is published now, and that don't lead to the container; flows that lead to a port that it
/// had before, or that a dead one had whose ports were taken from it.
pub fn forget_after_add(socket: &mut NftSocket, claims: &[Claim], gone: &[Recorded]) {
    let kept: BTreeSet<&Claim> = claims.iter().collect();
    let gone = udp(gone.iter().flat_map(|r| &r.record.claims).filter(|c| !kept.contains(c)));
    let now = udp(claims);
    let mut locals = Locals::default();
    let interesting = gone.keys().chain(now.keys());
    let is_stale = &mut |flow: &Flow| Ok(leads_to(&gone, flow) || bypasses(socket, &now, &mut locals, flow)?);
    tell(forget(interesting, is_stale), "bypass a new host port");
}

/// After DEL: flows to a container that is gone.
pub fn forget_after_del(removed: &[Recorded]) {
    let gone = udp(removed.iter().flat_map(|r| &r.record.claims));
    tell(forget(gone.keys(), &mut |flow| Ok(leads_to(&gone, flow))), "lead to a removed host port");
}

/// Forgets UDP flows, in one look at them.
fn forget<'a>(keys: impl Iterator<Item = &'a Key>, is_stale: &mut dyn FnMut(&Flow) -> Result<bool>) -> Result<()> {
    let (mut versions, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for (version, _, port) in keys {
        versions.insert(*version);
        ports.insert(*port);
    }
    if ports.is_empty() {
        return Ok(());
    }
    let versions: Vec<IpVersion> = versions.into_iter().collect();
    // The kernel can look for one port; several take one look through all of UDP.
    let port = ports.pop_first().filter(|_| ports.is_empty());
    let interest = Interest { versions: &versions, protocol: Protocol::Udp.number(), port };
    conntrack::forget(interest, is_stale).map(drop)
}

fn tell(forgotten: Result<()>, what: &str) {
    if let Err(error) = forgotten {
        log::warn!("UDP flows that {what} could not be forgotten: {error}");
    }
}

/// The claims that what was sent where the flow was sent to may have been led by: at one address, at all.
fn at<'a>(claims: &'a BTreeMap<Key, Vec<Claim>>, flow: &Flow) -> [&'a [Claim]; 2] {
    let (dst, port) = (flow.original.dst, flow.original.dst_port);
    [Some(dst), None].map(|address| claims.get(&(IpVersion::of(dst), address, port)).map_or(&[][..], Vec::as_slice))
}

fn is_target(claim: &Claim, flow: &Flow) -> bool {
    (claim.target, claim.target_port) == (flow.reply.src, flow.reply.src_port)
}

/// Whether one of these claims led the flow.
fn leads_to(claims: &BTreeMap<Key, Vec<Claim>>, flow: &Flow) -> bool {
    at(claims, flow).into_iter().flatten().any(|claim| is_target(claim, flow))
}

/// Whether the flow would lead to a container of these claims, were it to begin now, and doesn't.
fn bypasses(
    socket: &mut NftSocket,
    claims: &BTreeMap<Key, Vec<Claim>>,
    locals: &mut Locals,
    flow: &Flow,
) -> Result<bool> {
    let [specific, wildcard] = at(claims, flow).map(|found| found.first());
    let Some(claim) = specific.or(wildcard).filter(|claim| !is_target(claim, flow)) else { return Ok(false) };
    let dst = flow.original.dst;
    if specific.is_none() {
        // Somebody else's port at this one address goes first.
        let specific = Claim { address: Some(dst), ..*claim };
        if socket.element(&TABLE, &specific.map(), &specific.key())?.is_some() {
            return Ok(false);
        }
    }
    // Another attachment of the same container may have the port.
    let there = socket.element(&TABLE, &claim.map(), &claim.key())?;
    if there.and_then(|element| Claim::of_element(&element)).is_some_and(|there| is_target(&there, flow)) {
        return Ok(false);
    }
    // What merely passes through this host isn't for it.
    locals.has(dst)
}

/// Which addresses are this host's own, asked once each: configured ones, and those that a route makes local
/// (`ip route add local 203.0.113.0/24 dev lo`).
#[derive(Default)]
struct Locals {
    route: Option<RouteSocket>,
    known: BTreeMap<IpAddr, bool>,
}

impl Locals {
    fn has(&mut self, address: IpAddr) -> Result<bool> {
        if let Some(known) = self.known.get(&address) {
            return Ok(*known);
        }
        let route = match &self.route {
            Some(route) => route,
            None => self.route.insert(RouteSocket::open()?),
        };
        let found = route_to(route, address)?;
        let is_local = found.is_some_and(|found| found.header.kind == RouteType::Local);
        self.known.insert(address, is_local);
        Ok(is_local)
    }
}
