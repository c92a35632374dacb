//! The static neighbours of links, kept so that they can come back.
//!
//! The kernel drops all neighbours of a link, those that somebody has made for good too, when the link gets another hardware
//! address (`neigh_changeaddr`, net/core/neighbour.c), and those of IPv6, with the addresses that it answers for, when that is
//! taken from the link (`neigh_ifdown`).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::ipv6::Entry;
use super::{Request, RouteSocket};
use crate::cni::error::{Error, Result};

/// A neighbour that stays until somebody removes it, or an address that the link answers for, without what the kernel knows of it
/// just now.
pub(super) fn neighbour_entry(mut neighbour: NeighbourMessage, of: impl Fn(u32) -> bool) -> Option<Entry> {
    let link = neighbour.header.ifindex;
    let stays = neighbour.header.state == NeighbourState::Permanent || is_proxy(&neighbour);
    if !stays || !of(link) {
        return None;
    }
    neighbour.attributes.retain(|a| !matches!(a, NeighbourAttribute::CacheInfo(_) | NeighbourAttribute::Probes(_)));
    Some(Entry { message: RouteNetlinkMessage::NewNeighbour(neighbour), link })
}

fn is_proxy(neighbour: &NeighbourMessage) -> bool {
    neighbour.header.flags.contains(NeighbourFlags::Proxy)
}

/// In words.
pub(super) fn described(neighbour: &NeighbourMessage) -> String {
    let address = neighbour.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(ip.to_string()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(ip.to_string()),
        _ => None,
    });
    let what = if is_proxy(neighbour) { "proxy for" } else { "neighbour" };
    format!("{what} {}", address.unwrap_or_default())
}

impl RouteSocket {
    /// The static neighbours of some links, in IPv4 and IPv6.
    pub fn static_neighbours(&self, links: &[u32]) -> Result<Vec<Entry>> {
        self.neighbours(AddressFamily::Unspec, NeighbourFlags::empty(), links)
    }

    /// Those in IPv6, and the addresses that the links answer for.
    pub(super) fn static_ipv6_neighbours(&self, links: &[u32]) -> Result<Vec<Entry>> {
        let mut entries = self.neighbours(AddressFamily::Inet6, NeighbourFlags::empty(), links)?;
        entries.extend(self.neighbours(AddressFamily::Inet6, NeighbourFlags::Proxy, links)?);
        Ok(entries)
    }

    fn neighbours(&self, family: AddressFamily, flags: NeighbourFlags, links: &[u32]) -> Result<Vec<Entry>> {
        let mut query = NeighbourMessage::default();
        (query.header.family, query.header.flags) = (family, flags);
        let answers = self.request(RouteNetlinkMessage::GetNeighbour(query), NLM_F_DUMP, "list", "neighbours")?;
        let neighbours = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        });
        Ok(neighbours.filter_map(|neighbour| neighbour_entry(neighbour, |link| links.contains(&link))).collect())
    }

    /// Puts neighbours back, in the place of what the kernel may have learnt meanwhile; but one that somebody has made for good
    /// meanwhile stays, and of a link that has gone there is nothing to put back.
    pub fn put_back_neighbours(&self, neighbours: &[&Entry]) -> Vec<Error> {
        if neighbours.is_empty() {
            return Vec::new();
        }
        let links: Vec<u32> = neighbours.iter().map(|entry| entry.link).collect();
        let there = match self.static_neighbours(&links) {
            Ok(there) => there,
            Err(error) => return vec![error],
        };
        let request = |entry: &&Entry| {
            let object = format!("{entry} at link {}", entry.link);
            let request = Request::new(entry.message.clone(), NLM_F_CREATE | NLM_F_REPLACE, "put back", object);
            request.content_with(&[Errno::ENODEV])
        };
        let absent = neighbours.iter().filter(|entry| !there.iter().any(|other| other.is_same_object(entry)));
        let requests: Vec<Request> = absent.map(request).collect();
        self.change_all(&requests).into_iter().filter_map(Result::err).collect()
    }
}
