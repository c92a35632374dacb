//! What is read of a link.
//!
//! The kernel tells 1.5 kB of each: every counter and setting of IPv6, of its bridge, of its driver. Turning all that into values
//! took a tenth of an ADD, and failed altogether where one of them was new to the crate that does it. So only what somebody
//! here reads is turned into values; who wants another attribute adds it here.

use netlink_packet_core::{DecodeError, NlaBuffer, NlasIterator, Parseable, ParseableParametrized};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkHeader, LinkInfo, LinkMessage};
use nix::libc;

/// Bytes of `struct ifinfomsg` (rtnetlink(7)).
const HEADER: usize = 16;

const READ: [u16; 10] = [
    libc::IFLA_ADDRESS,
    libc::IFLA_IFNAME,
    libc::IFLA_MTU,
    libc::IFLA_LINK,
    libc::IFLA_MASTER,
    libc::IFLA_TXQLEN,
    libc::IFLA_IFALIAS,
    libc::IFLA_LINK_NETNSID,
    libc::IFLA_MIN_MTU,
    libc::IFLA_MAX_MTU,
];

/// The link that an `RTM_NEWLINK` with this payload describes.
pub(super) fn link(payload: &[u8]) -> Result<LinkMessage, DecodeError> {
    let mut link = LinkMessage::default();
    link.header = LinkHeader::parse(payload)?;
    for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            libc::IFLA_LINKINFO => link.attributes.push(LinkAttribute::LinkInfo(kind(&attribute)?)),
            kind if READ.contains(&kind) => {
                link.attributes.push(LinkAttribute::parse_with_param(&attribute, link.header.interface_family)?);
            }
            _ => {}
        }
    }
    Ok(link)
}

/// Of what a driver says of its link, what kind it is.
fn kind(info: &NlaBuffer<&[u8]>) -> Result<Vec<LinkInfo>, DecodeError> {
    let mut kinds = Vec::new();
    for attribute in NlasIterator::new(info.value()) {
        let attribute = attribute?;
        if attribute.kind() == libc::IFLA_INFO_KIND {
            kinds.push(LinkInfo::Kind(InfoKind::parse(&attribute)?));
        }
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use netlink_packet_route::link::{InfoBridge, InfoData, InfoPortKind, LinkFlags, State};

    use super::*;

    fn payload(link: &LinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; link.buffer_len()];
        link.emit(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_read_comes_out_as_it_went_in_and_the_rest_stays_behind() {
        let read = vec![
            LinkAttribute::IfName("br0".into()),
            LinkAttribute::IfAlias("pods/web/eth0".into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::MinMtu(68),
            LinkAttribute::MaxMtu(65535),
            LinkAttribute::TxQueueLen(1000),
            LinkAttribute::Link(4),
            LinkAttribute::LinkNetNsId(2),
            LinkAttribute::Controller(7),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        let mut expected = LinkMessage::default();
        expected.header.index = 3;
        expected.header.flags = LinkFlags::Up | LinkFlags::Promisc;
        expected.attributes = read.clone();
        let mut told = expected.clone();
        told.attributes.insert(0, LinkAttribute::OperState(State::Up));
        told.attributes.pop();
        told.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::Priority(1)])),
            LinkInfo::PortKind(InfoPortKind::Bond),
        ]));
        assert_eq!(link(&payload(&told)).unwrap(), expected);
    }

    #[test]
    fn an_attribute_that_the_crate_cannot_read_is_no_obstacle() {
        let mut plain = LinkMessage::default();
        plain.attributes = vec![LinkAttribute::IfName("eth0".into())];
        let mut bytes = payload(&plain);
        // Settings of IPv6 that are three bytes long.
        let spoilt = [7u8, 0, 26, 0x80, 1, 2, 3, 0];
        bytes.extend(spoilt);
        assert!(LinkMessage::parse(&bytes).is_err());
        assert_eq!(link(&bytes).unwrap(), plain);
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let mut whole = LinkMessage::default();
        whole.attributes = vec![LinkAttribute::IfName("eth0".into())];
        let bytes = payload(&whole);
        for len in [0, HEADER - 1, HEADER + 5] {
            assert!(link(bytes.get(..len).unwrap()).is_err(), "{len} bytes");
        }
    }
}
