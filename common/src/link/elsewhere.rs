//! What is in the network namespaces that links of this one lead to, without entering them.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::RouteSocket;
use crate::cni::error::{Error, Result};

impl RouteSocket {
    /// The addresses of all namespaces in which a veth of this one, or another kind of pair, has its other end
    /// (IFLA_LINK_NETNSID, IFA_TARGET_NETNSID; since Linux 5.0).
    pub fn addresses_elsewhere(&self) -> Result<HashSet<IpAddr>> {
        // Without it the kernel would pass over the namespace that is asked for, and list its own addresses.
        self.channel.check_strictly().map_err(|errno| Error::kernel("ask strictly of", "rtnetlink", errno))?;
        let get_links = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = self.request(get_links, NLM_F_DUMP, "list", "the links")?;
        let namespaces: BTreeSet<i32> = links.iter().filter_map(other_end).collect();
        let mut addresses = HashSet::new();
        let families = [AddressFamily::Inet, AddressFamily::Inet6];
        for (namespace, family) in namespaces.into_iter().flat_map(|n| families.map(|family| (n, family))) {
            let mut query = AddressMessage::default();
            query.header.family = family;
            query.attributes.push(AddressAttribute::TargetNetNsId(namespace));
            let get = RouteNetlinkMessage::GetAddress(query);
            let found = self.request(get, NLM_F_DUMP, "list", "the addresses of another namespace")?;
            addresses.extend(found.into_iter().flat_map(of_message));
        }
        Ok(addresses)
    }
}

fn other_end(message: &RouteNetlinkMessage) -> Option<i32> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(id) => Some(*id),
        _ => None,
    })
}

/// The interface's own address; with a peer's, that is another attribute (IFA_LOCAL).
fn of_message(message: RouteNetlinkMessage) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(address) = message else { return None };
    let of = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some((true, *address)),
        AddressAttribute::Address(address) => Some((false, *address)),
        _ => None,
    };
    address.attributes.iter().filter_map(of).max_by_key(|(is_local, _)| *is_local).map(|(_, address)| address)
}
