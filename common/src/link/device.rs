//! A link as a plugin needs to know it, and the small things done to one.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;
use rtnetlink::{LinkIfb, LinkMessageBuilder, LinkUnspec};
use std::os::fd::{AsFd, AsRawFd};

use super::{Request, RouteSocket};
use crate::cni::error::{Error, Result};
use crate::netns::Netns;

/// Bytes of link-layer header and of a VLAN tag before what the MTU counts.
pub const ETHERNET_HEADER: u32 = 14;

/// What the kernel says of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `ifb`, `macvlan`, …; empty for a physical device.
    pub kind: String,
    /// `IFLA_IFALIAS`; empty if there is none.
    pub alias: String,
    /// In bytes, without the link-layer header.
    pub mtu: u32,
    /// Bytes of link-layer header that a queueing discipline counts on top of the MTU (`hard_header_len`).
    pub header: u32,
    /// Administratively up.
    pub up: bool,
    /// Its hardware address, if that is of six bytes.
    pub mac: Option<[u8; 6]>,
    /// `IFLA_LINK`: the index of the peer or of the lower device.
    pub linked: Option<u32>,
    /// `IFLA_LINK_NETNSID`: where that is; `None` if it is in the same namespace.
    pub linked_netns: Option<i32>,
}

impl Device {
    /// Whether it is one end of a pair whose other end carries the same packets: what a container's host side is.
    pub fn is_half_of_a_pair(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit")
    }

    /// Bytes of its longest frame as a queueing discipline counts it (`psched_mtu`, include/net/pkt_sched.h).
    pub fn frame(&self) -> u32 {
        self.mtu.saturating_add(self.header)
    }
}

impl From<&LinkMessage> for Device {
    fn from(message: &LinkMessage) -> Device {
        let mut device = Device {
            index: message.header.index,
            header: if message.header.link_layer_type == LinkLayerType::Ether { ETHERNET_HEADER } else { 0 },
            up: message.header.flags.contains(LinkFlags::Up),
            ..Device::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => device.alias.clone_from(alias),
                LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
                LinkAttribute::Address(mac) => device.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Link(index) if *index != 0 => device.linked = Some(*index),
                LinkAttribute::LinkNetNsId(id) => device.linked_netns = Some(*id),
                LinkAttribute::LinkInfo(infos) => device.kind = kind_of(infos).unwrap_or_default(),
                _ => {}
            }
        }
        device
    }
}

fn kind_of(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

impl RouteSocket {
    /// What the kernel says of the link of this name, if there is one.
    pub fn device(&self, name: &str) -> Result<Option<Device>> {
        Ok(self.link_by_name(name)?.as_ref().map(Device::from))
    }

    /// What the kernel says of the link of this index, if there is one.
    pub fn device_at(&self, index: u32) -> Result<Option<Device>> {
        Ok(self.link_by_index(index)?.as_ref().map(Device::from))
    }

    /// Every link of the namespace.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let without_counters = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        let query = LinkMessageBuilder::<LinkUnspec>::new().append_extra_attribute(without_counters);
        let answers = self.request(RouteNetlinkMessage::GetLink(query.build()), NLM_F_DUMP, "list", "links")?;
        Ok(answers.iter().filter_map(as_device).collect())
    }

    /// Whether this kernel can make an ifb. Asks for one that can't be: with a hardware address of five bytes.
    pub fn knows_ifb(&self) -> Result<bool> {
        let builder = LinkMessageBuilder::<LinkIfb>::new_with_info_kind(InfoKind::Ifb).address(vec![2, 0, 0, 0, 0]);
        let request = RouteNetlinkMessage::NewLink(builder.build());
        match self.request(request, NLM_F_CREATE | NLM_F_EXCL, "try", "kind ifb") {
            Err(Error::Kernel { errno: Errno::EOPNOTSUPP, .. }) => Ok(false),
            Err(Error::Kernel { errno: Errno::EINVAL, .. }) => Ok(true),
            outcome => outcome.map(|_| true),
        }
    }

    /// The id by which this socket's namespace knows another; `None` if it doesn't.
    pub fn netns_id(&self, netns: &Netns) -> Result<Option<i32>> {
        let mut query = NsidMessage::default();
        let fd = u32::try_from(netns.as_fd().as_raw_fd()).unwrap_or(u32::MAX);
        query.attributes.push(NsidAttribute::Fd(fd));
        let answers = self.request(RouteNetlinkMessage::GetNsId(query), 0, "get", "the id of a network namespace")?;
        let id = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewNsId(message) => message.attributes.iter().find_map(|a| match a {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            }),
            _ => None,
        };
        Ok(answers.iter().find_map(id))
    }

    /// The other end, in this socket's namespace, of the pair of which `inner` is the end in `netns`; `None` if that is
    /// somewhere else.
    ///
    /// An index says little by itself: the same number stands for other links in other namespaces, and `IFLA_LINK` of a
    /// macvlan is its lower device. So the link found must point back, to the same index and the same namespace.
    pub fn other_end(&self, inner: &Device, netns: &Netns) -> Result<Option<Device>> {
        let (true, Some(index), Some(_)) = (inner.is_half_of_a_pair(), inner.linked, inner.linked_netns) else {
            return Ok(None);
        };
        let Some(outer) = self.device_at(index)? else { return Ok(None) };
        if !outer.is_half_of_a_pair() || outer.linked != Some(inner.index) || outer.linked_netns.is_none() {
            return Ok(None);
        }
        Ok((outer.linked_netns == self.netns_id(netns)?).then_some(outer))
    }
}

impl Request {
    /// Makes an intermediate functional block: down, without a queue of its own, and with the hardware address given here,
    /// so that no daemon takes it for a random one and changes it (systemd's `MACAddressPolicy`). Since Linux 6.2 the kernel
    /// answers with the link.
    pub fn make_ifb(name: &str, mac: [u8; 6], mtu: u32) -> Request {
        let message = LinkIfb::new(name).address(mac.to_vec()).mtu(mtu).txqueuelen(0).build();
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        Request::new(RouteNetlinkMessage::NewLink(message), flags, "add", format!("link {name} of kind ifb"))
    }

    /// Gives a link an alias; an empty one takes it away.
    pub fn set_alias(device: &Device, alias: &str) -> Request {
        let message = LinkUnspec::new_with_index(device.index).alias(alias).build();
        Request::new(RouteNetlinkMessage::SetLink(message), 0, "set", format!("the alias of link {}", device.name))
    }

    /// Sets a link up, with an alias and an MTU.
    pub fn set_up(device: &Device, alias: &str, mtu: u32) -> Request {
        let message = LinkUnspec::new_with_index(device.index).up().alias(alias).mtu(mtu).build();
        Request::new(RouteNetlinkMessage::SetLink(message), 0, "set up", format!("link {}", device.name))
    }

    /// Deletes links; what has gone already is as good.
    ///
    /// Several are put into a group of their own (`IFLA_GROUP`) and go by that all at once, because for each deletion the kernel
    /// waits until its processors have come past (`rcu_barrier` in `netdev_run_todo`), 20 ms and more. No more than
    /// [`super::DATAGRAM_REQUESTS`] less one should go together: so no kill comes between the joining and the deletion.
    pub fn delete_links(devices: &[Device]) -> Vec<Request> {
        let named = |device: &Device| format!("link {}", device.name);
        let delete = |message, object| {
            let request = Request::new(RouteNetlinkMessage::DelLink(message), 0, "delete", object);
            request.content_with(&[Errno::ENODEV])
        };
        let (first, more) = match devices {
            [] => return Vec::new(),
            [only] => return vec![delete(LinkUnspec::new_with_index(only.index).build(), named(only))],
            [first, more @ ..] => (first, more),
        };
        // An index is nobody else's, and no number this high is written by hand.
        let group = || LinkAttribute::Group(1 << 30 | first.index);
        let join = |device: &Device| {
            let message = LinkUnspec::new_with_index(device.index).append_extra_attribute(group()).build();
            let request = Request::new(RouteNetlinkMessage::SetLink(message), 0, "delete", named(device));
            request.content_with(&[Errno::ENODEV])
        };
        let mut requests: Vec<Request> = devices.iter().map(join).collect();
        let message = LinkMessageBuilder::<LinkUnspec>::new().append_extra_attribute(group()).build();
        requests.push(delete(message, format!("{} and {} more", named(first), more.len())));
        requests
    }
}

/// Whether an error says that the link has gone, and with it all that was on it.
pub fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Kernel { errno: Errno::ENODEV | Errno::ENXIO, .. })
}

fn as_device(answer: &RouteNetlinkMessage) -> Option<Device> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Device::from(message)),
        _ => None,
    }
}
