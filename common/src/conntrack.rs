//! Connection tracking: the only door to the kernel's table of flows.
//!
//! A `nat` chain sees the first packet of a flow only. A UDP flow that began before a port was published, or that leads
//! to a container that is gone, goes on as it began for as long as somebody sends; so it must be forgotten by hand.
//!
//! The protocol is ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::libc;

use crate::cni::error::Result;
use crate::netlink::{self, Asker};
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
/// enum ctattr_tuple
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// enum ctattr_l4proto
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// CTA_FILTER_F_CTA_PROTO_NUM, CTA_FILTER_F_CTA_PROTO_DST_PORT
const BY_PROTOCOL: u32 = 1 << 3;
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
    /// Those of this transport protocol.
    pub protocol: u8,
    /// Those that were first sent to this port; `None` for any.
    pub port: Option<u16>,
}

/// How many flows this namespace has. The kernel looks through all buckets of the machine for those of one namespace,
/// which takes it some 35 ms at 262,144 of them: worth a question before.
const COUNT: &str = "net/netfilter/nf_conntrack_count";

/// Forgets the flows for which `is_stale` says so, looking through the table once for each version of IP; gives their
/// number. A flow that ends by itself in the meantime is none.
pub fn forget(interest: Interest, is_stale: &mut dyn FnMut(&Flow) -> Result<bool>) -> Result<usize> {
    let count = sysctl::Name::new(COUNT).map(|name| sysctl::read(&name)).transpose()?.flatten();
    if count.as_ref().and_then(|c| c.value()) == Some("0") {
        return Ok(0);
    }
    let door = Door(Asker::open(NETLINK_NETFILTER, "the flows of connection tracking")?);
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

struct Door(Asker);

impl Door {
    fn flows(&self, interest: Interest, each: &mut dyn FnMut(Flow) -> Result<()>) -> Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        // The kernel filters flows of one version at a time: with AF_UNSPEC, EOPNOTSUPP.
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.0.send(&request(GET, flags, family as u8, &filter(interest)), "list")?;
            self.0.dumped(&mut |payload| match flow(payload.get(4..).unwrap_or_default()) {
                Some(flow) if interest.covers(&flow.original) => each(flow),
                _ => Ok(()),
            })?;
        }
        Ok(())
    }

    fn delete(&self, flows: &[Flow]) -> Result<()> {
        let mut bytes = Vec::new();
        for flow in flows {
            let family = if flow.original.src.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            bytes.extend(request(DELETE, NLM_F_REQUEST | NLM_F_ACK, family as u8, &flow.name));
        }
        self.0.send(&bytes, "delete")?;
        // One that has ended by itself is none.
        self.0.acknowledged("delete", flows.len(), &[Errno::ENOENT])
    }
}

impl Interest {
    fn covers(self, original: &Tuple) -> bool {
        original.protocol == self.protocol && self.port.is_none_or(|port| port == original.dst_port)
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

/// What lets the kernel pass over all other flows (ctnetlink_alloc_filter).
fn filter(interest: Interest) -> Vec<u8> {
    let mut flags = BY_PROTOCOL;
    let mut proto = attribute(PROTO_NUM, &[interest.protocol]);
    if let Some(port) = interest.port {
        flags |= BY_DESTINATION_PORT;
        proto.extend(attribute(PROTO_DST_PORT, &port.to_be_bytes()));
    }
    let tuple = attribute(TUPLE_PROTO | NESTED, &proto);
    // Flags are in host order, unlike everything else.
    let flags = attribute(FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    let mut all = attribute(TUPLE_ORIG | NESTED, &tuple);
    all.extend(attribute(FILTER | NESTED, &flags));
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
