//! The values that packets, keys and elements are made of, each with nft's data type, its bytes and its text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cni::error::{Error, Result};

/// IPv4 or IPv6: what is otherwise equal differs in this only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Both.
    pub const ALL: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

    /// The version of an address.
    pub fn of(address: IpAddr) -> IpVersion {
        if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
    }

    /// nft's word for it: `ip` or `ip6`.
    pub const fn keyword(self) -> &'static str {
        match self {
            IpVersion::V4 => "ip",
            IpVersion::V6 => "ip6",
        }
    }

    /// ETH_P_IP or ETH_P_IPV6 (include/uapi/linux/if_ether.h).
    pub const fn ether_type(self) -> u16 {
        match self {
            IpVersion::V4 => 0x0800,
            IpVersion::V6 => 0x86dd,
        }
    }

    /// NFPROTO_IPV4 or NFPROTO_IPV6 (include/uapi/linux/netfilter.h).
    pub const fn nfproto(self) -> u8 {
        match self {
            IpVersion::V4 => 2,
            IpVersion::V6 => 10,
        }
    }

    /// The data type of its addresses.
    pub const fn address_type(self) -> DataType {
        match self {
            IpVersion::V4 => DataType::Ipv4Addr,
            IpVersion::V6 => DataType::Ipv6Addr,
        }
    }

    /// Bytes of an address.
    pub const fn address_len(self) -> usize {
        self.address_type().width()
    }
}

/// nft's data types, by the numbers user space stores in NFTA_SET_KEY_TYPE (nftables, include/datatype.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DataType {
    /// `nf_proto`: the family of a packet.
    NfProto = 2,
    /// `ipv4_addr`.
    Ipv4Addr = 7,
    /// `ipv6_addr`.
    Ipv6Addr = 8,
    /// `ether_addr`.
    EtherAddr = 9,
    /// `ether_type`.
    EtherType = 10,
    /// `inet_proto`: the transport protocol's number.
    InetProto = 12,
    /// `inet_service`: a port.
    InetService = 13,
    /// `mark`.
    Mark = 19,
    /// `iface_index`.
    IfaceIndex = 20,
    /// `uid`.
    Uid = 24,
    /// `gid`.
    Gid = 25,
    /// `ct_state`.
    CtState = 26,
    /// `ct_dir`.
    CtDir = 27,
    /// `ct_status`.
    CtStatus = 28,
    /// `icmpv6_type`.
    Icmpv6Type = 29,
    /// `pkt_type`.
    PktType = 31,
    /// `fib_addrtype`.
    FibAddrType = 38,
    /// `ifname`.
    Ifname = 41,
}

impl DataType {
    /// Bytes of a value.
    pub const fn width(self) -> usize {
        match self {
            DataType::NfProto | DataType::InetProto | DataType::CtDir | DataType::PktType | DataType::Icmpv6Type => 1,
            DataType::InetService | DataType::EtherType => 2,
            DataType::EtherAddr => 6,
            DataType::Ipv6Addr | DataType::Ifname => 16,
            _ => 4,
        }
    }

    /// Bytes it takes within a concatenation, where each field begins at a 4-byte register.
    pub const fn padded_width(self) -> usize {
        self.width().next_multiple_of(4)
    }

    /// nft's word in `type …`.
    pub const fn name(self) -> &'static str {
        match self {
            DataType::NfProto => "nf_proto",
            DataType::Ipv4Addr => "ipv4_addr",
            DataType::Ipv6Addr => "ipv6_addr",
            DataType::EtherAddr => "ether_addr",
            DataType::EtherType => "ether_type",
            DataType::InetProto => "inet_proto",
            DataType::InetService => "inet_service",
            DataType::Mark => "mark",
            DataType::IfaceIndex => "iface_index",
            DataType::Uid => "uid",
            DataType::Gid => "gid",
            DataType::CtState => "ct_state",
            DataType::CtDir => "ct_dir",
            DataType::CtStatus => "ct_status",
            DataType::Icmpv6Type => "icmpv6_type",
            DataType::PktType => "pkt_type",
            DataType::FibAddrType => "fib_addrtype",
            DataType::Ifname => "ifname",
        }
    }
}

/// One value of one data type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// A packet's family.
    Nfproto(IpVersion),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// A hardware address.
    Ether([u8; 6]),
    /// An EtherType.
    Protocol(u16),
    /// A transport protocol's number (6 is TCP).
    Proto(u8),
    /// A port.
    Port(u16),
    /// A packet's or connection's mark, or a mask over one.
    Mark(u32),
    /// An interface's index.
    Ifindex(u32),
    /// An interface's name, at most 15 bytes, taken literally.
    Ifname(String),
    /// A user's number.
    Uid(u32),
    /// A group's number.
    Gid(u32),
    /// Bits of `ct state`: [`Value::ESTABLISHED`] and so on.
    CtState(u32),
    /// Bits of `ct status`: [`Value::DNAT`] and so on.
    CtStatus(u32),
    /// `ct direction`: false is original, true is reply.
    CtReply(bool),
    /// The type of an ICMPv6 message (RFC 4861: 133 to 137).
    Icmpv6Type(u8),
    /// `meta pkttype` (PACKET_HOST 0, PACKET_BROADCAST 1, PACKET_MULTICAST 2, PACKET_OTHERHOST 3).
    PktType(u8),
    /// An address's type in the routing tables (RTN_LOCAL 2, …).
    AddrType(u32),
}

impl Value {
    /// Bits of `ct state` (NF_STATE_BIT, include/uapi/linux/netfilter/nf_conntrack_common.h).
    pub const INVALID: u32 = 1;
    /// See [`Value::INVALID`].
    pub const ESTABLISHED: u32 = 2;
    /// See [`Value::INVALID`].
    pub const RELATED: u32 = 4;
    /// See [`Value::INVALID`].
    pub const NEW: u32 = 8;
    /// See [`Value::INVALID`].
    pub const UNTRACKED: u32 = 64;
    /// `ct status`: the source was changed (IPS_SRC_NAT).
    pub const SNAT: u32 = 1 << 4;
    /// `ct status`: the destination was changed (IPS_DST_NAT).
    pub const DNAT: u32 = 1 << 5;
    /// RTN_LOCAL (include/uapi/linux/rtnetlink.h).
    pub const LOCAL: Value = Value::AddrType(2);

    /// An address of either version.
    pub fn ip(address: IpAddr) -> Value {
        match address {
            IpAddr::V4(v4) => Value::V4(v4),
            IpAddr::V6(v6) => Value::V6(v6),
        }
    }

    /// Its data type.
    pub const fn data_type(&self) -> DataType {
        match self {
            Value::Nfproto(_) => DataType::NfProto,
            Value::V4(_) => DataType::Ipv4Addr,
            Value::V6(_) => DataType::Ipv6Addr,
            Value::Ether(_) => DataType::EtherAddr,
            Value::Protocol(_) => DataType::EtherType,
            Value::Proto(_) => DataType::InetProto,
            Value::Port(_) => DataType::InetService,
            Value::Mark(_) => DataType::Mark,
            Value::Ifindex(_) => DataType::IfaceIndex,
            Value::Ifname(_) => DataType::Ifname,
            Value::Uid(_) => DataType::Uid,
            Value::Gid(_) => DataType::Gid,
            Value::CtState(_) => DataType::CtState,
            Value::CtStatus(_) => DataType::CtStatus,
            Value::CtReply(_) => DataType::CtDir,
            Value::Icmpv6Type(_) => DataType::Icmpv6Type,
            Value::PktType(_) => DataType::PktType,
            Value::AddrType(_) => DataType::FibAddrType,
        }
    }

    /// A name that is too long would be cut to another's; one with a NUL, too.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Value::Ifname(name) if !(1..=15).contains(&name.len()) || name.contains('\0') => Err(Error::Link {
                link: name.clone(),
                reason: "an interface's name has 1 to 15 bytes, none of them a NUL".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Its bytes as a register holds them: addresses and ports in network order, the kernel's own numbers in host
    /// order, names filled up with NUL.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        match self {
            Value::Nfproto(version) => bytes.push(version.nfproto()),
            Value::V4(address) => bytes.extend(address.octets()),
            Value::V6(address) => bytes.extend(address.octets()),
            Value::Ether(address) => bytes.extend(address),
            Value::Proto(number) | Value::PktType(number) | Value::Icmpv6Type(number) => bytes.push(*number),
            Value::CtReply(reply) => bytes.push(u8::from(*reply)),
            Value::Port(number) | Value::Protocol(number) => bytes.extend(number.to_be_bytes()),
            Value::Ifname(name) => {
                let end = bytes.len() + DataType::Ifname.width();
                bytes.extend(name.bytes().take(DataType::Ifname.width() - 1));
                bytes.resize(end, 0);
            }
            Value::Mark(number)
            | Value::Ifindex(number)
            | Value::Uid(number)
            | Value::Gid(number)
            | Value::CtState(number)
            | Value::CtStatus(number)
            | Value::AddrType(number) => bytes.extend(number.to_ne_bytes()),
        }
    }

    /// Its bytes alone.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        self.append_to(&mut bytes);
        bytes
    }

    /// The value of this type that these bytes are; surplus bytes (the padding of a concatenation) are ignored.
    pub fn from_bytes(data_type: DataType, bytes: &[u8]) -> Option<Value> {
        let word = || Some(u32::from_ne_bytes(*bytes.first_chunk()?));
        let byte = || bytes.first().copied();
        Some(match data_type {
            DataType::NfProto => Value::Nfproto(IpVersion::ALL.into_iter().find(|v| Some(v.nfproto()) == byte())?),
            DataType::Ipv4Addr => Value::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
            DataType::Ipv6Addr => Value::V6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)),
            DataType::EtherAddr => Value::Ether(*bytes.first_chunk()?),
            DataType::EtherType => Value::Protocol(u16::from_be_bytes(*bytes.first_chunk()?)),
            DataType::InetProto => Value::Proto(byte()?),
            DataType::InetService => Value::Port(u16::from_be_bytes(*bytes.first_chunk()?)),
            DataType::Mark => Value::Mark(word()?),
            DataType::IfaceIndex => Value::Ifindex(word()?),
            DataType::Ifname => {
                let name = bytes.split(|b| *b == 0).next().unwrap_or_default();
                Value::Ifname(String::from_utf8_lossy(name.get(..15).unwrap_or(name)).into_owned())
            }
            DataType::Uid => Value::Uid(word()?),
            DataType::Gid => Value::Gid(word()?),
            DataType::CtState => Value::CtState(word()?),
            DataType::CtStatus => Value::CtStatus(word()?),
            DataType::CtDir => Value::CtReply(byte()? != 0),
            DataType::Icmpv6Type => Value::Icmpv6Type(byte()?),
            DataType::PktType => Value::PktType(byte()?),
            DataType::FibAddrType => Value::AddrType(word()?),
        })
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Value {
        Value::ip(address)
    }
}

/// Names as nft prints them without looking into /etc/protocols of the host: the ones every system has.
const PROTOCOLS: [(u8, &str); 10] = [
    (1, "icmp"),
    (2, "igmp"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (132, "sctp"),
    (136, "udplite"),
];

const STATES: [(u32, &str); 5] = [
    (Value::INVALID, "invalid"),
    (Value::NEW, "new"),
    (Value::ESTABLISHED, "established"),
    (Value::RELATED, "related"),
    (Value::UNTRACKED, "untracked"),
];

const STATUSES: [(u32, &str); 8] = [
    (1, "expected"),
    (2, "seen-reply"),
    (4, "assured"),
    (8, "confirmed"),
    (Value::SNAT, "snat"),
    (Value::DNAT, "dnat"),
    (1 << 9, "dying"),
    (1 << 6, "seq-adjust"),
];

const ADDRESS_TYPES: [&str; 12] = [
    "unspec",
    "unicast",
    "local",
    "broadcast",
    "anycast",
    "multicast",
    "blackhole",
    "unreachable",
    "prohibit",
    "throw",
    "nat",
    "xresolve",
];

/// The protocol's name, if it has one everywhere.
pub fn protocol_name(number: u8) -> Option<&'static str> {
    PROTOCOLS.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nfproto(IpVersion::V4) => f.write_str("ipv4"),
            Value::Nfproto(IpVersion::V6) => f.write_str("ipv6"),
            Value::V4(address) => address.fmt(f),
            Value::V6(address) => address.fmt(f),
            Value::Ether([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Value::Protocol(number) => match number {
                0x0800 => f.write_str("ip"),
                0x0806 => f.write_str("arp"),
                0x86dd => f.write_str("ip6"),
                other => write!(f, "0x{other:04x}"),
            },
            Value::Proto(number) => match protocol_name(*number) {
                Some(name) => f.write_str(name),
                None => number.fmt(f),
            },
            Value::Port(port) => port.fmt(f),
            Value::Mark(bits) => write!(f, "0x{bits:08x}"),
            Value::Ifname(name) => write!(f, "\"{name}\""),
            Value::Ifindex(number) | Value::Uid(number) | Value::Gid(number) => number.fmt(f),
            Value::CtState(bits) => bits_by_name(f, *bits, &STATES),
            Value::CtStatus(bits) => bits_by_name(f, *bits, &STATUSES),
            Value::CtReply(reply) => f.write_str(if *reply { "reply" } else { "original" }),
            Value::Icmpv6Type(number) => match number {
                133 => f.write_str("nd-router-solicit"),
                134 => f.write_str("nd-router-advert"),
                135 => f.write_str("nd-neighbor-solicit"),
                136 => f.write_str("nd-neighbor-advert"),
                137 => f.write_str("nd-redirect"),
                other => other.fmt(f),
            },
            Value::PktType(kind) => match kind {
                0 => f.write_str("host"),
                1 => f.write_str("broadcast"),
                2 => f.write_str("multicast"),
                3 => f.write_str("other"),
                more => more.fmt(f),
            },
            Value::AddrType(number) => match usize::try_from(*number).ok().and_then(|n| ADDRESS_TYPES.get(n)) {
                Some(name) => f.write_str(name),
                None => number.fmt(f),
            },
        }
    }
}

fn bits_by_name(f: &mut fmt::Formatter<'_>, bits: u32, names: &[(u32, &str)]) -> fmt::Result {
    let known = names.iter().fold(0, |all, (bit, _)| all | bit);
    if bits == 0 || bits & !known != 0 {
        return write!(f, "0x{bits:x}");
    }
    let mut separator = "";
    for (_, name) in names.iter().filter(|(bit, _)| bits & bit != 0) {
        write!(f, "{separator}{name}")?;
        separator = ",";
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_their_bytes() {
        for value in [
            Value::Nfproto(IpVersion::V6),
            Value::V4(Ipv4Addr::new(192, 0, 2, 1)),
            Value::V6(Ipv6Addr::LOCALHOST),
            Value::Ether([1, 2, 3, 4, 5, 6]),
            Value::Protocol(0x86dd),
            Value::Proto(132),
            Value::Port(8080),
            Value::Mark(0x2000),
            Value::Ifindex(7),
            Value::Ifname("veth0".into()),
            Value::Ifname("fifteen-letters".into()),
            Value::Uid(0),
            Value::Gid(1000),
            Value::CtState(Value::ESTABLISHED | Value::RELATED),
            Value::CtStatus(Value::DNAT),
            Value::CtReply(true),
            Value::Icmpv6Type(136),
            Value::PktType(2),
            Value::LOCAL,
        ] {
            let mut bytes = value.bytes();
            assert_eq!(bytes.len(), value.data_type().width(), "{value}");
            bytes.extend([0xff; 3]);
            assert_eq!(Value::from_bytes(value.data_type(), &bytes), Some(value));
        }
    }

    #[test]
    fn too_few_bytes_are_no_value() {
        assert_eq!(Value::from_bytes(DataType::Ipv6Addr, &[0; 15]), None);
        assert_eq!(Value::from_bytes(DataType::InetService, &[0]), None);
        assert_eq!(Value::from_bytes(DataType::NfProto, &[7]), None);
    }

    #[test]
    fn ports_and_marks_have_the_byte_order_of_their_registers() {
        assert_eq!(Value::Port(0x1f90).bytes(), [0x1f, 0x90]);
        assert_eq!(Value::Mark(0x2000).bytes(), 0x2000u32.to_ne_bytes());
    }
}
