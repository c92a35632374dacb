//! The IPv6 addresses, routes and static neighbours of links, kept so that they can come back.
//!
//! The kernel drops them when IPv6 is switched off on a link, or the link's MTU falls below 1280 (`addrconf_ifdown`,
//! net/ipv6/addrconf.c), and makes only its own anew. What is kept is the kernel's own message, less what belongs to the
//! moment.

use std::fmt;

use netlink_packet_core::{
    NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime};

use super::neighbour::{described, neighbour_entry};
use super::{Request, RouteSocket};
use crate::cni::error::{Error, Result};

/// An address, a route or a neighbour of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) message: RouteNetlinkMessage,
    /// The index of the link.
    pub link: u32,
}

impl Entry {
    /// The kernel's message, with its header.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(self.message.clone()));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// Reads what [`Entry::to_bytes`] has written; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Entry> {
        let NetlinkPayload::InnerMessage(message) = NetlinkMessage::deserialize(bytes).ok()?.payload else {
            return None;
        };
        match message {
            RouteNetlinkMessage::NewAddress(address) => address_entry(address, |_| true),
            RouteNetlinkMessage::NewRoute(route) => route_entries(&route, |_| true).into_iter().next(),
            RouteNetlinkMessage::NewNeighbour(neighbour) => neighbour_entry(neighbour, |_| true),
            _ => None,
        }
    }

    /// Whether it is an address beyond the link: one that a container is known by.
    pub fn is_global_address(&self) -> bool {
        matches!(&self.message, RouteNetlinkMessage::NewAddress(a) if u8::from(a.header.scope) == 0)
    }

    /// Whether it is an address that the kernel makes for its link itself (since Linux 5.18 it says so, `IFA_PROTO`).
    pub fn is_the_kernels_own(&self) -> bool {
        let says_so = |a: &AddressAttribute| matches!(a, AddressAttribute::Protocol(AddressProtocol::LinkLocal));
        matches!(&self.message, RouteNetlinkMessage::NewAddress(a) if a.attributes.iter().any(says_so))
    }

    /// Whether both are one address or neighbour, whatever else is said of it; of routes, whether they are equal.
    pub fn is_same_object(&self, other: &Entry) -> bool {
        let is_route = |e: &Entry| matches!(e.message, RouteNetlinkMessage::NewRoute(_));
        match (is_route(self), is_route(other)) {
            (false, false) => self.link == other.link && self.to_string() == other.to_string(),
            _ => self == other,
        }
    }

    /// Whether it belongs to IPv6: a neighbour may be IPv4's.
    pub fn is_ipv6s(&self) -> bool {
        !matches!(&self.message, RouteNetlinkMessage::NewNeighbour(n) if n.header.family != AddressFamily::Inet6)
    }

    fn has_gateway(&self) -> bool {
        let is_gateway = |a: &RouteAttribute| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
        match &self.message {
            RouteNetlinkMessage::NewRoute(route) => route.attributes.iter().any(|attribute| match attribute {
                RouteAttribute::MultiPath(hops) => hops.iter().flat_map(|hop| &hop.attributes).any(is_gateway),
                other => is_gateway(other),
            }),
            _ => false,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            RouteNetlinkMessage::NewAddress(address) => {
                let ip = address.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Address(ip) => Some(ip.to_string()),
                    _ => None,
                });
                write!(f, "{}/{}", ip.unwrap_or_default(), address.header.prefix_len)
            }
            RouteNetlinkMessage::NewRoute(route) => {
                let text = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
                    route.attributes.iter().find_map(wanted).map(|address| match address {
                        RouteAddress::Inet6(ip) => ip.to_string(),
                        other => format!("{other:?}"),
                    })
                };
                let to = text(|a| if let RouteAttribute::Destination(to) = a { Some(to) } else { None });
                write!(f, "{}/{}", to.as_deref().unwrap_or("::"), route.header.destination_prefix_length)?;
                let via = text(|a| if let RouteAttribute::Gateway(via) = a { Some(via) } else { None });
                via.map_or(Ok(()), |via| write!(f, " via {via}"))
            }
            RouteNetlinkMessage::NewNeighbour(neighbour) => f.write_str(&described(neighbour)),
            _ => Ok(()),
        }
    }
}

/// An address, without what the kernel knows of it just now, but with what is left of its lifetimes. One that the kernel has
/// made for a while (a router's, a temporary one of it) is a router's to give again.
fn address_entry(mut address: AddressMessage, of: impl Fn(u32) -> bool) -> Option<Entry> {
    let link = address.header.index;
    let is_v6 = address.header.family == AddressFamily::Inet6;
    let flags = flags_of(&address);
    let is_routers = |a: &AddressAttribute| {
        matches!(a, AddressAttribute::Protocol(AddressProtocol::RouterAnnouncement))
            || flags.intersects(AddressFlags::Managetempaddr | AddressFlags::Secondary)
    };
    let is_passing = !flags.contains(AddressFlags::Permanent) && address.attributes.iter().any(is_routers);
    if !is_v6 || !of(link) || is_passing {
        return None;
    }
    let is_for_ever = |info: &CacheInfo| info.ifa_valid == FOR_EVER && info.ifa_preferred == FOR_EVER;
    address.attributes.retain(|a| !matches!(a, AddressAttribute::CacheInfo(info) if is_for_ever(info)));
    Some(Entry { message: RouteNetlinkMessage::NewAddress(address), link })
}

/// A lifetime that never ends (`INFINITY_LIFE_TIME`, include/net/addrconf.h).
const FOR_EVER: u32 = u32::MAX;

/// Hundredths of a second since the machine began, as the kernel counts the ages of addresses.
fn uptime() -> u32 {
    let hundredths = |now: TimeSpec| now.num_milliseconds() / 10;
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| u32::try_from(hundredths(now)).unwrap_or(u32::MAX))
}

/// Writes down when lifetimes were what they are, in the place of when the kernel began to count them.
fn stamped(mut entry: Entry, now: u32) -> Entry {
    if let RouteNetlinkMessage::NewAddress(address) = &mut entry.message {
        for attribute in &mut address.attributes {
            if let AddressAttribute::CacheInfo(info) = attribute {
                (info.cstamp, info.tstamp) = (0, now);
            }
        }
    }
    entry
}

/// The address with what is left of its lifetimes by now; `None` if it has ended.
fn aged(mut address: AddressMessage, now: u32) -> Option<AddressMessage> {
    for attribute in &mut address.attributes {
        if let AddressAttribute::CacheInfo(info) = attribute {
            let passed = now.saturating_sub(info.tstamp) / 100;
            let left = |seconds: u32| if seconds == FOR_EVER { FOR_EVER } else { seconds.saturating_sub(passed) };
            (info.ifa_valid, info.ifa_preferred) = (left(info.ifa_valid), left(info.ifa_preferred));
            if info.ifa_valid == 0 {
                return None;
            }
        }
    }
    Some(address)
}

fn flags_of(address: &AddressMessage) -> AddressFlags {
    let given = address.attributes.iter().find_map(|a| match a {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    given.unwrap_or(AddressFlags::from_bits_retain(address.header.flags.bits().into()))
}

fn with_flags(mut address: AddressMessage, flags: AddressFlags) -> RouteNetlinkMessage {
    address.header.flags = AddressHeaderFlags::from_bits_retain((flags.bits() & 0xff) as u8);
    address.attributes.retain(|a| !matches!(a, AddressAttribute::Flags(_)));
    address.attributes.push(AddressAttribute::Flags(flags));
    RouteNetlinkMessage::NewAddress(address)
}

/// A route's share of each of its links. The kernel makes its own again, a router gives its own again, and those that end
/// by themselves or belong to a nexthop object are nobody's to keep.
fn route_entries(route: &RouteMessage, of: impl Fn(u32) -> bool) -> Vec<Entry> {
    let passing = [RouteProtocol::Kernel, RouteProtocol::Ra, RouteProtocol::IcmpRedirect];
    let is_passing = |a: &RouteAttribute| match a {
        RouteAttribute::CacheInfo(info) => info.expires != 0,
        RouteAttribute::NhId(_) => true,
        _ => false,
    };
    let header = &route.header;
    if header.address_family != AddressFamily::Inet6
        || header.flags.contains(RouteFlags::Cloned)
        || passing.contains(&header.protocol)
        || route.attributes.iter().any(is_passing)
    {
        return Vec::new();
    }
    let mut bare = route.clone();
    bare.header.flags &= RouteFlags::Onlink;
    bare.attributes.retain(|a| !matches!(a, RouteAttribute::CacheInfo(_) | RouteAttribute::MultiPath(_)));
    let entry = |message: RouteMessage, link| Entry { message: RouteNetlinkMessage::NewRoute(message), link };
    let mut entries = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(link) if of(*link) => entries.push(entry(bare.clone(), *link)),
            RouteAttribute::MultiPath(hops) => {
                for hop in hops.iter().filter(|hop| of(hop.interface_index)) {
                    let (mut share, mut hop) = (bare.clone(), hop.clone());
                    hop.flags &= RouteNextHopFlags::Onlink;
                    let link = hop.interface_index;
                    share.attributes.push(RouteAttribute::MultiPath(vec![hop]));
                    entries.push(entry(share, link));
                }
            }
            _ => {}
        }
    }
    entries
}

impl RouteSocket {
    /// The IPv6 addresses, routes and static neighbours of some links.
    pub fn ipv6_of(&self, links: &[u32]) -> Result<Vec<Entry>> {
        let of = |link: u32| links.contains(&link);
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet6;
        let addresses = self.request(RouteNetlinkMessage::GetAddress(query), NLM_F_DUMP, "list", "IPv6 addresses")?;
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet6;
        let routes = self.request(RouteNetlinkMessage::GetRoute(query), NLM_F_DUMP, "list", "IPv6 routes")?;
        let (mut entries, now) = (Vec::new(), uptime());
        for answer in addresses.into_iter().chain(routes) {
            match answer {
                RouteNetlinkMessage::NewAddress(address) => {
                    entries.extend(address_entry(address, of).map(|entry| stamped(entry, now)));
                }
                RouteNetlinkMessage::NewRoute(route) => entries.extend(route_entries(&route, of)),
                _ => {}
            }
        }
        entries.extend(self.static_ipv6_neighbours(links)?);
        Ok(entries)
    }

    /// Takes addresses away; those that are gone already are as good.
    pub fn remove_addresses(&self, addresses: &[Entry]) -> Vec<Error> {
        let requests = addresses.iter().filter_map(|entry| match &entry.message {
            RouteNetlinkMessage::NewAddress(address) => {
                let message = RouteNetlinkMessage::DelAddress(address.clone());
                let request = Request::new(message, 0, "remove", format!("{entry} at link {}", entry.link));
                Some(request.content_with(&[Errno::EADDRNOTAVAIL, Errno::ENODEV]))
            }
            _ => None,
        });
        self.change_all(&requests.collect::<Vec<_>>()).into_iter().filter_map(Result::err).collect()
    }

    /// Puts addresses, routes and neighbours back; those that are there already are as good, and so are those whose time has passed.
    pub fn put_back_ipv6(&self, entries: &[&Entry]) -> Vec<Error> {
        let is_address = |e: &&&Entry| matches!(e.message, RouteNetlinkMessage::NewAddress(_));
        // The kernel lists the newest first, and chooses source addresses in that order.
        let addresses = entries.iter().rev().filter(is_address);
        let mut errors: Vec<Error> = addresses.filter_map(|e| self.put_back_one(e).err()).collect();
        let is_neighbour = |e: &&&Entry| matches!(e.message, RouteNetlinkMessage::NewNeighbour(_));
        let neighbours: Vec<&Entry> = entries.iter().filter(is_neighbour).copied().collect();
        errors.extend(self.put_back_neighbours(&neighbours));
        let mut routes: Vec<&&Entry> = entries.iter().filter(|e| !is_address(e) && !is_neighbour(e)).collect();
        routes.sort_by_key(|e| e.has_gateway());
        // A gateway may be reached by a route that comes later.
        loop {
            let number = routes.len();
            let mut refused = Vec::new();
            routes.retain(|e| self.put_back_one(e).map_err(|error| refused.push(error)).is_err());
            if routes.is_empty() || routes.len() == number {
                errors.extend(refused);
                return errors;
            }
        }
    }

    /// An address that had passed duplicate address detection is usable at once: it is added without, and gets its own flags
    /// then. A route's share joins the shares that are there.
    fn put_back_one(&self, entry: &Entry) -> Result<()> {
        let object = format!("{entry} at link {}", entry.link);
        let tolerated = |error: Error| match error {
            Error::Kernel { errno: Errno::EEXIST, .. } => Ok(Vec::new()),
            other => Err(other),
        };
        let RouteNetlinkMessage::NewAddress(address) = &entry.message else {
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            return self.request(entry.message.clone(), flags, "put back", &object).or_else(tolerated).map(drop);
        };
        let Some(address) = aged(address.clone(), uptime()) else { return Ok(()) };
        let flags = flags_of(&address);
        let unproven = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Nodad;
        let first = if flags.intersects(unproven) { flags } else { flags | AddressFlags::Nodad };
        let new = NLM_F_CREATE | NLM_F_EXCL;
        match self.request(with_flags(address.clone(), first), new, "put back", &object) {
            Ok(_) if first != flags => {
                self.request(with_flags(address.clone(), flags), NLM_F_REPLACE, "put back", &object).map(drop)
            }
            outcome => outcome.or_else(tolerated).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_over_two_links_is_kept_by_link_and_comes_back() {
        use netlink_packet_route::route::RouteNextHop;
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet6("fe80::1".parse().unwrap()))];
            hop
        };
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.destination_prefix_length = 64;
        route.header.protocol = RouteProtocol::Static;
        route.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet6("fd00:9::".parse().unwrap())),
            RouteAttribute::MultiPath(vec![hop(3), hop(4)]),
        ];
        let entries = route_entries(&route, |link| link == 4);
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].link, entries[0].to_string()), (4, "fd00:9::/64".into()));
        assert!(entries[0].has_gateway());
        assert_eq!(Entry::from_bytes(&entries[0].to_bytes()), Some(entries[0].clone()));
        route.header.protocol = RouteProtocol::Kernel;
        assert!(route_entries(&route, |_| true).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = Entry::from_bytes(&bytes).map(|e| e.to_string());
        }
    }
}
