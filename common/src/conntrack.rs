//! Connection tracking: the only door to the kernel's table of flows.
//!
//! A `nat` chain sees the first packet of a flow only. A UDP flow that began before a port was published, or that leads
//! to a container that is gone, goes on as it began for as long as somebody sends; so it must be forgotten by hand.
//!
//! The protocol is ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::libc;

use crate::cni::error::Result;
use crate::netlink::{self, Asker};
use crate::nft::IpVersion;
use crate::sysctl;

/// NFNL_SUBSYS_CTNETLINK << 8
const SUBSYSTEM: u16 = 1 << 8;
/// IPCTNL_MSG_CT_GET
const GET: u16 = SUBSYSTEM | 1;
/// IPCTNL_MSG_CT_DELETE
const DELETE: u16 = SUBSYSTEM | 2;

/// enum ctattr_type
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// Since Linux 5.8; older kernels send every flow, which is then sorted out here.
const FILTER: u16 = 25;
/// enum ctattr_filter
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
/// enum ctattr_tuple
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// enum ctattr_l4proto
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// CTA_FILTER_F_CTA_IP_SRC and so on
const BY_SOURCE: u32 = 1 << 0;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_SOURCE_PORT: u32 = 1 << 4;
const BY_DESTINATION_PORT: u32 = 1 << 5;

const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// Deletions in one datagram: their acknowledgements must fit into the receive buffer, 768 bytes of it each.
const AT_ONCE: usize = 64;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Whence.
    pub src: IpAddr,
    /// Whither.
    pub dst: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The source port; 0 where the protocol has none.
    pub src_port: u16,
    /// The destination port; 0 where the protocol has none.
    pub dst_port: u16,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// As its first packet came.
    pub original: Tuple,
    /// As answers to it come: from whom it was led to, to whom it was made to look.
    pub reply: Tuple,
    /// The attributes that name it to the kernel, as it wrote them: tuple, zone, id.
    name: Vec<u8>,
}

impl Flow {
    /// Whether its destination was changed on the way.
    pub fn is_led_elsewhere(&self) -> bool {
        (self.original.dst, self.original.dst_port) != (self.reply.src, self.reply.src_port)
    }
}

/// Which flows are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Those of this version of IP: the kernel filters one at a time (with AF_UNSPEC, EOPNOTSUPP).
    pub version: IpVersion,
    /// Those of this transport protocol.
    pub protocol: u8,
    /// Those that were first sent to this port; `None` for any.
    pub port: Option<u16>,
}

/// Flows that were led from one place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Led {
    /// The transport protocol's number.
    pub protocol: u8,
    /// What they were first sent to; `None` for any address.
    pub address: Option<IpAddr>,
    /// The port that they were first sent to.
    pub port: u16,
    /// Where they were led; of the flows' version of IP.
    pub target: IpAddr,
    /// The port there.
    pub target_port: u16,
}

/// How many flows this namespace has.
const COUNT: &str = "net/netfilter/nf_conntrack_count";

/// A dump locks every bucket of the machine's table, which takes 10 to 35 ms at 262,144 of them (ctnetlink_dump_table); a
/// deletion by filter passes over empty ones, 0.13 ms (nf_ct_iterate_cleanup_net). Each flow costs both some 0.5 µs,
/// and that is the unit here (Linux 6.18).
const DUMP: usize = 20_000;
const DELETION: usize = 250;

fn count() -> Result<usize> {
    let count = sysctl::Name::new(COUNT).map(|name| sysctl::read(&name)).transpose()?.flatten();
    // Where there is no such file there may be flows all the same.
    Ok(count.as_ref().and_then(|c| c.value()?.parse().ok()).unwrap_or(usize::MAX))
}

fn open() -> Result<Door> {
    Asker::open(NETLINK_NETFILTER, "the flows of connection tracking").map(Door)
}

/// Forgets the flows for which `is_stale` says so, looking through the table once; gives their number. A flow that ends
/// by itself in the meantime is none.
pub fn forget(interest: Interest, is_stale: &mut dyn FnMut(&Flow) -> Result<bool>) -> Result<usize> {
    if count()? == 0 {
        return Ok(0);
    }
    let door = open()?;
    let mut stale = Vec::new();
    door.flows(interest, &mut |flow| {
        if is_stale(&flow)? {
            stale.push(flow);
        }
        Ok(())
    })?;
    for some in stale.chunks(AT_ONCE) {
        door.delete(some)?;
    }
    Ok(stale.len())
}

/// Forgets flows of one protocol and version that were led so. The kernel looks for them itself, once for each entry,
/// where that is the cheaper way and it can: not for IPv6, because Linux (6.18 at least) takes equal addresses for
/// different ones in a filter and different ones for equal (ctnetlink_filter_match_tuple), and not where deletions can't be
/// filtered yet (EOPNOTSUPP).
pub fn forget_led(all: &[Led]) -> Result<()> {
    let Some(first) = all.first() else { return Ok(()) };
    let flows = count()?;
    if flows == 0 {
        return Ok(());
    }
    let deletions = all.len().saturating_mul(flows.saturating_add(DELETION));
    if first.target.is_ipv4() && deletions < flows.saturating_add(DUMP) {
        let door = open()?;
        let all_deleted = all.iter().try_for_each(|led| door.delete_led(led));
        if all_deleted.is_ok() {
            return Ok(());
        }
    }
    let wanted: BTreeSet<Led> = all.iter().copied().collect();
    let mut ports = all.iter().map(|led| led.port);
    // The kernel can look for one port; several take one look through all of the protocol.
    let port = ports.next().filter(|first| ports.all(|port| port == *first));
    let interest = Interest { version: IpVersion::of(first.target), protocol: first.protocol, port };
    forget(interest, &mut |flow| {
        let Tuple { protocol, dst, dst_port: port, .. } = flow.original;
        let (target, target_port) = (flow.reply.src, flow.reply.src_port);
        let led = |address| Led { protocol, address, port, target, target_port };
        Ok(wanted.contains(&led(Some(dst))) || wanted.contains(&led(None)))
    })
    .map(drop)
}

struct Door(Asker);

impl Door {
    fn flows(&self, interest: Interest, each: &mut dyn FnMut(Flow) -> Result<()>) -> Result<()> {
        let original = Side { protocol: interest.protocol, dst_port: interest.port, ..Side::default() };
        let filter = filter(&original, None);
        self.0.send(&request(GET, NLM_F_REQUEST | NLM_F_DUMP, family(interest.version), &filter), "list")?;
        self.0.dumped(&mut |payload| match flow(payload.get(4..).unwrap_or_default()) {
            Some(flow) if interest.covers(&flow.original) => each(flow),
            _ => Ok(()),
        })
    }

    fn delete_led(&self, led: &Led) -> Result<()> {
        let Led { protocol, address, port, target, target_port } = *led;
        let original = Side { protocol, dst: address, dst_port: Some(port), ..Side::default() };
        let reply = Side { protocol, src: Some(target), src_port: Some(target_port), ..Side::default() };
        let filter = filter(&original, Some(&reply));
        let family = family(IpVersion::of(target));
        self.0.send(&request(DELETE, NLM_F_REQUEST | NLM_F_ACK, family, &filter), "delete")?;
        self.0.acknowledged("delete", 1, &[Errno::ENOENT])
    }

    fn delete(&self, flows: &[Flow]) -> Result<()> {
        let mut bytes = Vec::new();
        for flow in flows {
            let family = family(IpVersion::of(flow.original.src));
            bytes.extend(request(DELETE, NLM_F_REQUEST | NLM_F_ACK, family, &flow.name));
        }
        self.0.send(&bytes, "delete")?;
        // One that has ended by itself is none.
        self.0.acknowledged("delete", flows.len(), &[Errno::ENOENT])
    }
}

impl Interest {
    fn covers(self, original: &Tuple) -> bool {
        let version = IpVersion::of(original.dst);
        (original.protocol, version) == (self.protocol, self.version)
            && self.port.is_none_or(|port| port == original.dst_port)
    }
}

/// A message with its nfgenmsg: NFNETLINK_V0, resource 0.
fn request(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    netlink::message(kind, flags, &[&[family, 0, 0, 0], attributes].concat())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = value.len() + 4;
    let mut bytes = Vec::with_capacity(len.next_multiple_of(4));
    bytes.extend(u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

fn family(version: IpVersion) -> u8 {
    (match version {
        IpVersion::V4 => libc::AF_INET,
        IpVersion::V6 => libc::AF_INET6,
    }) as u8
}

/// What one direction's tuple must have.
#[derive(Default)]
struct Side {
    protocol: u8,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    src_port: Option<u16>,
    dst_port: Option<u16>,
}

impl Side {
    /// The tuple as an attribute, and which parts of it count.
    fn attribute(&self, kind: u16) -> (Vec<u8>, u32) {
        let mut flags = BY_PROTOCOL;
        let (mut ip, mut proto) = (Vec::new(), attribute(PROTO_NUM, &[self.protocol]));
        // CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST
        for (address, v4, v6, flag) in [(self.src, 1, 3, BY_SOURCE), (self.dst, 2, 4, BY_DESTINATION)] {
            ip.extend(match address {
                None => continue,
                Some(IpAddr::V4(address)) => attribute(v4, &address.octets()),
                Some(IpAddr::V6(address)) => attribute(v6, &address.octets()),
            });
            flags |= flag;
        }
        let ports =
            [(self.src_port, PROTO_SRC_PORT, BY_SOURCE_PORT), (self.dst_port, PROTO_DST_PORT, BY_DESTINATION_PORT)];
        for (port, kind, flag) in ports {
            let Some(port) = port else { continue };
            proto.extend(attribute(kind, &port.to_be_bytes()));
            flags |= flag;
        }
        let ip = if ip.is_empty() { ip } else { attribute(TUPLE_IP | NESTED, &ip) };
        (attribute(kind | NESTED, &[ip, attribute(TUPLE_PROTO | NESTED, &proto)].concat()), flags)
    }
}

/// What lets the kernel pass over all other flows (ctnetlink_alloc_filter).
fn filter(original: &Side, reply: Option<&Side>) -> Vec<u8> {
    let (mut all, flags) = original.attribute(TUPLE_ORIG);
    // Flags are in host order, unlike everything else.
    let mut filter = attribute(FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    if let Some(reply) = reply {
        let (tuple, flags) = reply.attribute(TUPLE_REPLY);
        all.extend(tuple);
        filter.extend(attribute(FILTER_REPLY_FLAGS, &flags.to_ne_bytes()));
    }
    all.extend(attribute(FILTER | NESTED, &filter));
    all
}

/// The attributes in `bytes`: type, value, and the whole as it stands.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).filter_map(|attribute| {
        let (kind, len) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(4..len)?))
    })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

fn flow(bytes: &[u8]) -> Option<Flow> {
    let mut name = Vec::with_capacity(96);
    for (kind, value) in attributes(bytes) {
        match kind {
            TUPLE_ORIG => name.extend(attribute(kind | NESTED, value)),
            ZONE | ID => name.extend(attribute(kind, value)),
            _ => {}
        }
    }
    Some(Flow { original: tuple(find(bytes, TUPLE_ORIG)?)?, reply: tuple(find(bytes, TUPLE_REPLY)?)?, name })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (find(bytes, TUPLE_IP)?, find(bytes, TUPLE_PROTO)?);
    // CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST
    let v4 = |kind| Some(IpAddr::V4(Ipv4Addr::from(*find(ip, kind)?.first_chunk::<4>()?)));
    let v6 = |kind| Some(IpAddr::V6(Ipv6Addr::from(*find(ip, kind)?.first_chunk::<16>()?)));
    let port = |kind| find(proto, kind).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b));
    Some(Tuple {
        src: v4(1).or_else(|| v6(3))?,
        dst: v4(2).or_else(|| v6(4))?,
        protocol: *find(proto, PROTO_NUM)?.first()?,
        src_port: port(PROTO_SRC_PORT),
        dst_port: port(PROTO_DST_PORT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nft add rule inet x c ip daddr 127.0.0.1 udp dport 5353 dnat ip to 127.0.0.2:53`, one datagram sent to
    /// 127.0.0.1:5353, then `strace -v -xx conntrack -L -p udp` (Linux 6.18): the attributes behind the nfgenmsg.
    const LED_TO_127_0_0_2: &[u8] = b"\
        \x34\x00\x01\x80\x14\x00\x01\x80\x08\x00\x01\x00\x7f\x00\x00\x01\x08\x00\x02\x00\x7f\x00\x00\x01\
        \x1c\x00\x02\x80\x05\x00\x01\x00\x11\x00\x00\x00\x06\x00\x02\x00\x9d\xb1\x00\x00\x06\x00\x03\x00\x14\xe9\x00\x00\
        \x34\x00\x02\x80\x14\x00\x01\x80\x08\x00\x01\x00\x7f\x00\x00\x02\x08\x00\x02\x00\x7f\x00\x00\x01\
        \x1c\x00\x02\x80\x05\x00\x01\x00\x11\x00\x00\x00\x06\x00\x02\x00\x00\x35\x00\x00\x06\x00\x03\x00\x9d\xb1\x00\x00\
        \x08\x00\x03\x00\x00\x00\x01\xa8\x08\x00\x08\x00\x00\x00\x00\x00\x08\x00\x0c\x00\x1d\x11\x90\xfa\
        \x08\x00\x0b\x00\x00\x00\x00\x01\x08\x00\x07\x00\x00\x00\x00\x1d";

    #[test]
    fn a_flow_is_read_as_the_kernel_wrote_it() {
        let flow = flow(LED_TO_127_0_0_2).unwrap();
        let [one, two] = [1, 2].map(|n| IpAddr::from([127, 0, 0, n]));
        assert_eq!(flow.original, Tuple { src: one, dst: one, protocol: 17, src_port: 40369, dst_port: 5353 });
        assert_eq!(flow.reply, Tuple { src: two, dst: one, protocol: 17, src_port: 53, dst_port: 40369 });
        assert!(flow.is_led_elsewhere());
        // Tuple and id, byte for byte.
        assert_eq!(flow.name.get(..52), LED_TO_127_0_0_2.get(..52));
        assert_eq!(flow.name.get(52..), Some(b"\x08\x00\x0c\x00\x1d\x11\x90\xfa".as_slice()));
    }

    #[test]
    fn no_truncated_answer_is_a_flow_or_a_panic() {
        for len in 0..104 {
            assert_eq!(flow(&LED_TO_127_0_0_2[..len]), None, "{len}");
        }
    }
}
