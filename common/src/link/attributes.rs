//! The attributes of a link that can be changed while it lives, read and set together.

use std::fmt;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use rtnetlink::LinkUnspec;

use super::RouteSocket;
use crate::cni::error::Result;

/// Attributes of a link; one that is `None` is not known, or not to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkAttributes {
    /// The hardware address (`IFLA_ADDRESS`).
    pub mac: Option<Vec<u8>>,
    /// In bytes (`IFLA_MTU`).
    pub mtu: Option<u32>,
    /// Promiscuous at the administrator's wish (`IFF_PROMISC`); a sniffer's or a bridge's wish is a counter beside it
    /// (`IFLA_PROMISCUITY`, `__dev_change_flags` in net/core/dev.c).
    pub promisc: Option<bool>,
    /// Takes every multicast frame at the administrator's wish (`IFF_ALLMULTI`).
    pub allmulti: Option<bool>,
    /// Length of the transmit queue in packets (`IFLA_TXQLEN`).
    pub tx_queue_len: Option<u32>,
}

/// What the kernel says of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its index in its namespace.
    pub index: u32,
    /// All its attributes.
    pub attributes: LinkAttributes,
    /// The least MTU its driver takes, in bytes; `None` where the driver doesn't say (`IFLA_MIN_MTU`).
    pub min_mtu: Option<u32>,
    /// The greatest MTU its driver takes, in bytes; `None` where the driver doesn't say (`IFLA_MAX_MTU`).
    pub max_mtu: Option<u32>,
}

/// What a generic function makes of each attribute of two.
macro_rules! each_of {
    ($pick:ident, $ours:expr, $theirs:expr) => {
        LinkAttributes {
            mac: $pick(&$ours.mac, &$theirs.mac),
            mtu: $pick(&$ours.mtu, &$theirs.mtu),
            promisc: $pick(&$ours.promisc, &$theirs.promisc),
            allmulti: $pick(&$ours.allmulti, &$theirs.allmulti),
            tx_queue_len: $pick(&$ours.tx_queue_len, &$theirs.tx_queue_len),
        }
    };
}

impl LinkAttributes {
    /// Whether nothing is known, or nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == LinkAttributes::default()
    }

    /// Those of these attributes that `other` does not have.
    pub fn missing_in(&self, other: &LinkAttributes) -> LinkAttributes {
        fn unless<T: Clone + PartialEq>(ours: &Option<T>, theirs: &Option<T>) -> Option<T> {
            ours.clone().filter(|_| ours != theirs)
        }
        each_of!(unless, self, other)
    }

    /// Those of these attributes that `other` doesn't give.
    pub fn not_given_in(&self, other: &LinkAttributes) -> LinkAttributes {
        fn unless<T: Clone>(ours: &Option<T>, theirs: &Option<T>) -> Option<T> {
            ours.clone().filter(|_| theirs.is_none())
        }
        each_of!(unless, self, other)
    }

    /// The values that `other` has for the attributes that are given here.
    pub fn values_in(&self, other: &LinkAttributes) -> LinkAttributes {
        fn if_given<T: Clone>(ours: &Option<T>, theirs: &Option<T>) -> Option<T> {
            ours.as_ref().and(theirs.clone())
        }
        each_of!(if_given, self, other)
    }

    /// The MTU alone, and the others.
    pub fn split_mtu(self) -> (LinkAttributes, LinkAttributes) {
        let mtu = LinkAttributes { mtu: self.mtu, ..LinkAttributes::default() };
        (mtu, LinkAttributes { mtu: None, ..self })
    }

    /// Each given attribute alone.
    pub fn one_by_one(&self) -> Vec<LinkAttributes> {
        let none = LinkAttributes::default();
        let each = [
            LinkAttributes { mac: self.mac.clone(), ..none.clone() },
            LinkAttributes { mtu: self.mtu, ..none.clone() },
            LinkAttributes { promisc: self.promisc, ..none.clone() },
            LinkAttributes { allmulti: self.allmulti, ..none.clone() },
            LinkAttributes { tx_queue_len: self.tx_queue_len, ..none },
        ];
        each.into_iter().filter(|a| !a.is_empty()).collect()
    }

    /// These attributes, and `other`'s where these are not given.
    pub fn or(self, other: LinkAttributes) -> LinkAttributes {
        LinkAttributes {
            mac: self.mac.or(other.mac),
            mtu: self.mtu.or(other.mtu),
            promisc: self.promisc.or(other.promisc),
            allmulti: self.allmulti.or(other.allmulti),
            tx_queue_len: self.tx_queue_len.or(other.tx_queue_len),
        }
    }
}

impl fmt::Display for LinkAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: &bool| if *on { "on" } else { "off" };
        let given = [
            self.mac.as_deref().map(|mac| format!("mac {}", mac_text(mac))),
            self.mtu.map(|mtu| format!("mtu {mtu}")),
            self.promisc.as_ref().map(|on| format!("promisc {}", switch(on))),
            self.allmulti.as_ref().map(|on| format!("allmulti {}", switch(on))),
            self.tx_queue_len.map(|length| format!("txQLen {length}")),
        ];
        f.write_str(&given.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// A hardware address as the kernel and `ip link` write it.
pub fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

impl From<&LinkMessage> for LinkFacts {
    fn from(link: &LinkMessage) -> Self {
        let flag = |flag| Some(link.header.flags.contains(flag));
        let mut facts = LinkFacts { index: link.header.index, ..LinkFacts::default() };
        facts.attributes.promisc = flag(LinkFlags::Promisc);
        facts.attributes.allmulti = flag(LinkFlags::Allmulti);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Address(mac) => facts.attributes.mac = Some(mac.clone()),
                LinkAttribute::Mtu(mtu) => facts.attributes.mtu = Some(*mtu),
                LinkAttribute::TxQueueLen(length) => facts.attributes.tx_queue_len = Some(*length),
                // 0 means that the driver sets no bound.
                LinkAttribute::MinMtu(mtu) => facts.min_mtu = Some(*mtu).filter(|m| *m != 0),
                LinkAttribute::MaxMtu(mtu) => facts.max_mtu = Some(*mtu).filter(|m| *m != 0),
                _ => {}
            }
        }
        facts
    }
}

impl RouteSocket {
    /// What the kernel says of the link of this name; `None` if there is none.
    pub fn link_facts(&self, name: &str) -> Result<Option<LinkFacts>> {
        Ok(self.link_by_name(name)?.as_ref().map(LinkFacts::from))
    }

    /// What the kernel says of the link of this index; `None` if there is none.
    pub fn link_facts_at(&self, index: u32) -> Result<Option<LinkFacts>> {
        Ok(self.link_by_index(index)?.as_ref().map(LinkFacts::from))
    }

    /// Sets the given attributes with one message; the others stay.
    ///
    /// The kernel takes the attributes one after the other and does not go back when it refuses one (`do_setlink` in
    /// net/core/rtnetlink.c), so the caller has to.
    pub fn set_link_attributes(&self, index: u32, name: &str, wanted: &LinkAttributes) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut link = LinkUnspec::new_with_index(index);
        if let Some(on) = wanted.promisc {
            link = link.promiscuous(on);
        }
        if let Some(on) = wanted.allmulti {
            link = link.allmulticast(on);
        }
        if let Some(mac) = &wanted.mac {
            link = link.address(mac.clone());
        }
        if let Some(mtu) = wanted.mtu {
            link = link.mtu(mtu);
        }
        if let Some(length) = wanted.tx_queue_len {
            link = link.txqueuelen(length);
        }
        let object = format!("link {name} to {wanted}");
        self.request(RouteNetlinkMessage::SetLink(link.build()), 0, "change", &object).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_missing() {
        let wanted = LinkAttributes { mtu: Some(1400), promisc: Some(true), ..LinkAttributes::default() };
        let there =
            LinkAttributes { mtu: Some(1400), promisc: Some(false), allmulti: Some(true), ..Default::default() };
        assert_eq!(wanted.missing_in(&there), LinkAttributes { promisc: Some(true), ..Default::default() });
        assert!(wanted.missing_in(&wanted).is_empty());
    }

    #[test]
    fn values_are_taken_for_the_given_attributes_only() {
        let wanted = LinkAttributes { mtu: Some(1400), mac: Some(vec![2; 6]), ..LinkAttributes::default() };
        let there = LinkAttributes { mtu: Some(1500), allmulti: Some(true), ..LinkAttributes::default() };
        assert_eq!(wanted.values_in(&there), LinkAttributes { mtu: Some(1500), ..LinkAttributes::default() });
    }

    #[test]
    fn a_bound_of_nought_is_no_bound() {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::MinMtu(68), LinkAttribute::MaxMtu(0)];
        let facts = LinkFacts::from(&link);
        assert_eq!((facts.min_mtu, facts.max_mtu), (Some(68), None));
    }
}
