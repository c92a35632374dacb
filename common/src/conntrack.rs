//! Connection tracking: the only door to the kernel's table of flows.
//!
//! A `nat` chain sees the first packet of a flow only. A UDP flow that began before a port was published, or that leads
//! to a container that is gone, goes on as it began for as long as somebody sends; so it must be forgotten by hand.
//!
//! The protocol is ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c).

use std::io::Read;
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
/// CTA_FILTER_ORIG_FLAGS
const FILTER_ORIG_FLAGS: u16 = 1;
/// enum ctattr_tuple
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const TUPLE_ZONE: u16 = 3;
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
pub struct Interest<'a> {
    /// Those of these versions of IP: the kernel filters one at a time (with AF_UNSPEC, EOPNOTSUPP).
    pub versions: &'a [IpVersion],
    /// Those of this transport protocol.
    pub protocol: u8,
    /// Those that were first sent to this port; `None` for any.
    pub port: Option<u16>,
}

/// How many flows this namespace has.
const COUNT: &str = "net/netfilter/nf_conntrack_count";

/// The flows as text. Kernels may be built without it (`CONFIG_NF_CONNTRACK_PROCFS`), netlink tells the same.
const LISTING: &str = "/proc/thread-self/net/nf_conntrack";

/// Up to how many flows the text is the faster way. A dump locks every bucket of the machine's table, however few flows
/// there are (ctnetlink_dump_table): 11 to 17 ms at 262,144 buckets. The text passes over empty ones (ct_get_next), 0.2 ms,
/// but each flow costs some 2 µs more (Linux 6.18).
const LISTING_MOST: usize = 5000;

fn count() -> Result<usize> {
    let count = sysctl::Name::new(COUNT).map(|name| sysctl::read(&name)).transpose()?.flatten();
    // Where there is no such file there may be flows all the same.
    Ok(count.as_ref().and_then(|c| c.value()?.parse().ok()).unwrap_or(usize::MAX))
}

/// Bytes of a line of the listing, roughly.
const LINE: usize = 192;

fn listing(count: usize) -> std::io::Result<String> {
    let mut text = String::with_capacity((count + 16) * LINE);
    std::fs::File::open(LISTING)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Forgets the flows for which `is_stale` says so, looking through the table once; gives their number. A flow that ends
/// by itself in the meantime is none.
///
/// The kernel could delete by filter without telling first. But it takes equal IPv6 addresses for different ones there
/// and different ones for equal (ctnetlink_filter_match_tuple, Linux 6.18), and a filter has no words for "leads elsewhere".
pub fn forget(interest: Interest<'_>, is_stale: &mut dyn FnMut(&Flow) -> Result<bool>) -> Result<usize> {
    let count = count()?;
    if count == 0 {
        return Ok(0);
    }
    let mut stale = Vec::new();
    let mut look = |flow: Flow| {
        if interest.covers(&flow.original) && is_stale(&flow)? {
            stale.push(flow);
        }
        Ok(())
    };
    let listing = (count <= LISTING_MOST).then(|| listing(count)).and_then(std::io::Result::ok);
    let mut door = None;
    match listing {
        Some(text) => text.lines().filter_map(|line| listed(line, interest)).try_for_each(&mut look)?,
        None => door.insert(Door::open()?).flows(interest, &mut look)?,
    }
    if !stale.is_empty() {
        let door = door.map_or_else(Door::open, Ok)?;
        stale.chunks(AT_ONCE).try_for_each(|some| door.delete(some))?;
    }
    Ok(stale.len())
}

struct Door(Asker);

impl Door {
    fn open() -> Result<Door> {
        Asker::open(NETLINK_NETFILTER, "the flows of connection tracking").map(Door)
    }

    fn flows(&self, interest: Interest<'_>, each: &mut dyn FnMut(Flow) -> Result<()>) -> Result<()> {
        interest.versions.iter().try_for_each(|version| {
            let filter = filter(interest.protocol, interest.port);
            self.0.send(&request(GET, NLM_F_REQUEST | NLM_F_DUMP, family(*version), &filter), "list")?;
            self.0.dumped(&mut |payload| flow(payload.get(4..).unwrap_or_default()).map_or(Ok(()), &mut *each))
        })
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

impl Interest<'_> {
    fn covers(self, original: &Tuple) -> bool {
        original.protocol == self.protocol
            && self.versions.contains(&IpVersion::of(original.dst))
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

impl Tuple {
    /// As an attribute, within `zone` if that goes by direction.
    fn attribute(&self, kind: u16, zone: Option<u16>) -> Vec<u8> {
        let address = |v4, v6, address| match address {
            IpAddr::V4(address) => attribute(v4, &address.octets()),
            IpAddr::V6(address) => attribute(v6, &address.octets()),
        };
        // CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_IP_V4_DST, CTA_IP_V6_DST
        let ip = [address(1, 3, self.src), address(2, 4, self.dst)].concat();
        let ports = [(PROTO_SRC_PORT, self.src_port), (PROTO_DST_PORT, self.dst_port)];
        let proto = ports.into_iter().fold(attribute(PROTO_NUM, &[self.protocol]), |mut all, (kind, port)| {
            all.extend(attribute(kind, &port.to_be_bytes()));
            all
        });
        let zone = zone.map(|zone| attribute(TUPLE_ZONE, &zone.to_be_bytes())).unwrap_or_default();
        let all = [attribute(TUPLE_IP | NESTED, &ip), attribute(TUPLE_PROTO | NESTED, &proto), zone];
        attribute(kind | NESTED, &all.concat())
    }
}

/// What lets the kernel pass over all other flows (ctnetlink_alloc_filter).
fn filter(protocol: u8, port: Option<u16>) -> Vec<u8> {
    let mut proto = attribute(PROTO_NUM, &[protocol]);
    let mut flags = BY_PROTOCOL;
    if let Some(port) = port {
        proto.extend(attribute(PROTO_DST_PORT, &port.to_be_bytes()));
        flags |= BY_DESTINATION_PORT;
    }
    // Flags are in host order, unlike everything else.
    let flags = attribute(FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    let tuple = attribute(TUPLE_ORIG | NESTED, &attribute(TUPLE_PROTO | NESTED, &proto));
    [tuple, attribute(FILTER | NESTED, &flags)].concat()
}

/// A line of the listing (ct_seq_show, net/netfilter/nf_conntrack_standalone.c), if it is of interest:
/// `ipv4     2 udp      17 29 src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… mark=0 zone=0 use=2`.
fn listed(line: &str, interest: Interest<'_>) -> Option<Flow> {
    let mut words = line.split_ascii_whitespace();
    let protocol = words.nth(3)?.parse().ok().filter(|protocol| *protocol == interest.protocol)?;
    let (mut sources, mut destinations, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    let (mut zone, mut original_zone) = (None, None);
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        match key {
            "src" => sources.push(value.parse::<IpAddr>().ok()?),
            "dst" => destinations.push(value.parse::<IpAddr>().ok()?),
            "sport" | "dport" => ports.push(value.parse::<u16>().ok()?),
            "zone" => zone = value.parse::<u16>().ok().filter(|zone| *zone != 0),
            "zone-orig" => original_zone = value.parse::<u16>().ok(),
            _ => {}
        }
    }
    let tuple = |n: usize| {
        let port = |at: usize| ports.get(at).copied().unwrap_or(0);
        let (src, dst) = (*sources.get(n)?, *destinations.get(n)?);
        Some(Tuple { src, dst, protocol, src_port: port(2 * n), dst_port: port(2 * n + 1) })
    };
    let (original, reply) = (tuple(0).filter(|original| interest.covers(original))?, tuple(1)?);
    let mut name = original.attribute(TUPLE_ORIG, original_zone);
    name.extend(zone.map(|zone| attribute(ZONE, &zone.to_be_bytes())).unwrap_or_default());
    Some(Flow { original, reply, name })
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

    /// `cat /proc/net/nf_conntrack` of the same flow in zone 5, and of one over IPv6 whose answers are in no zone.
    #[test]
    fn a_listed_flow_has_the_same_name() {
        let line = "ipv4     2 udp      17 29 src=127.0.0.1 dst=127.0.0.1 sport=40369 dport=5353 [UNREPLIED] \
                    src=127.0.0.2 dst=127.0.0.1 sport=53 dport=40369 mark=0 zone=5 use=2";
        let all = Interest { versions: &IpVersion::ALL, protocol: 17, port: None };
        let (found, told) = (listed(line, all).unwrap(), flow(LED_TO_127_0_0_2).unwrap());
        assert_eq!((found.original, found.reply), (told.original, told.reply));
        assert_eq!(found.name.get(..52), told.name.get(..52), "the tuple, byte for byte");
        assert_eq!(found.name.get(52..), Some(b"\x06\x00\x12\x00\x00\x05\x00\x00".as_slice()));
        let line = "ipv6     10 udp      17 29 src=0000:0000:0000:0000:0000:0000:0000:0001 \
                    dst=2001:0db8:0000:0000:0000:0000:0000:0002 sport=42084 dport=53 zone-orig=6 packets=1 bytes=49 \
                    src=2001:0db8:0000:0000:0000:0000:0000:0002 dst=0000:0000:0000:0000:0000:0000:0000:0001 sport=53 \
                    dport=42084 packets=0 bytes=0 [ASSURED] mark=0 use=2";
        for none in [
            Interest { versions: &[IpVersion::V4], ..all },
            Interest { protocol: 6, ..all },
            Interest { port: Some(54), ..all },
        ] {
            assert_eq!(listed(line, none), None);
        }
        let found = listed(line, Interest { port: Some(53), ..all }).unwrap();
        let [src, dst] = ["::1", "2001:db8::2"].map(|a| a.parse().unwrap());
        assert_eq!(found.original, Tuple { src, dst, protocol: 17, src_port: 42084, dst_port: 53 });
        assert!(!found.is_led_elsewhere());
        assert_eq!(found.name.last_chunk(), Some(b"\x06\x00\x03\x00\x00\x06\x00\x00"));
        assert_eq!(found.name.first(), Some(&84));
        for garbage in
            ["", "ipv4", "ipv4 2 udp 17 29", "ipv4 2 udp 17 29 src=x dst=y", "unknown 2 gre 47 29 src=1.2.3.4"]
        {
            assert_eq!(listed(garbage, all), None, "{garbage}");
        }
    }

    #[test]
    fn no_truncated_answer_is_a_flow_or_a_panic() {
        for len in 0..104 {
            assert_eq!(flow(&LED_TO_127_0_0_2[..len]), None, "{len}");
        }
    }
}
