//! What is looked up on this host before planning.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::cni::CniResult;
use common::link::RouteSocket;
use common::nft::{Family, NftSocket, Statement, Table};
use common::{Call, Error, Result};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use crate::config::{Config, Mark, Masquerade};
use crate::liveness;
use crate::localnet::Link;
use crate::rules::{Facts, LOOPBACK_INDEX};

/// The mark of kube-proxy's chain `KUBE-MARK-MASQ`, which its `--iptables-masquerade-bit` (14) sets.
const KUBE_MARK_MASQ: (&str, u32) = ("KUBE-MARK-MASQ", 0x4000);

/// Looks up what the plan depends on.
pub fn facts(config: &Config, call: &Call, prev: &CniResult) -> Result<Facts> {
    let route = RouteSocket::open()?;
    let on_interface = |ip: &&common::cni::result::IpConfig| prev.is_on(ip, &call.attachment.ifname);
    let v4 = prev.ips.iter().filter(on_interface).map(|ip| ip.address.addr()).find(IpAddr::is_ipv4);
    let (link, unreachable) = match v4 {
        Some(address) if config.masquerade != Masquerade::Nobody => match route_to(&route, address)? {
            Some(found) => (link_of(&route, &found)?, None),
            None => (None, Some(address)),
        },
        _ => (None, None),
    };
    let external_mark = match &config.mark {
        Mark::As(chain) if config.masquerade != Masquerade::Nobody => external_mark(chain)?,
        _ => None,
    };
    Ok(Facts { link, unreachable, external_mark, origin: liveness::origin(&route, call, prev)? })
}

/// The route that the routing tables have for `address`; `None` if it can't be reached.
pub fn route_to(route: &RouteSocket, address: IpAddr) -> Result<Option<RouteMessage>> {
    let query = match address {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
    };
    match route.request(RouteNetlinkMessage::GetRoute(query), 0, "get", &format!("route to {address}")) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })),
        Err(Error::Kernel {
            errno: Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The link through which a route leads; `None` if that is to this host itself.
fn link_of(route: &RouteSocket, found: &RouteMessage) -> Result<Option<Link>> {
    let index = found.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let Some(index) = index.filter(|index| *index != LOOPBACK_INDEX) else { return Ok(None) };
    Ok(route.device_at(index)?.as_ref().map(Link::of))
}

/// The bits that a chain of iptables sets, as far as that can be seen: iptables-nft keeps it in nf_tables.
fn external_mark(chain: &str) -> Result<Option<u32>> {
    let nat = Table::new(Family::Ip, "nat");
    let rules = NftSocket::open()?.rules(&nat, chain)?;
    let seen = rules.iter().filter_map(|info| info.rule()).flat_map(|rule| rule.statements).find_map(|s| match s {
        // `keep` has the bits that a mark may have from before: those that are turned over are set in half of all cases.
        Statement::SetMark { keep, bits, .. } => Some(bits & !keep).filter(|set| *set != 0),
        _ => None,
    });
    let known = (chain == KUBE_MARK_MASQ.0).then_some(KUBE_MARK_MASQ.1);
    let mark = seen.or(known);
    if mark.is_none() {
        log::info!(
            "what chain {chain} of iptables sets can't be read; packets are masqueraded by our own mark instead"
        );
    }
    Ok(mark)
}
