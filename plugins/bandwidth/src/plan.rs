//! From the configuration and a few facts to what the kernel shall hold. Opens nothing.
//!
//! ```text
//!  host's veth                                             container's eth0
//!    transmits ── root qdisc tbf ─────────────────────────►  ingress
//!    receives  ◄───────────────────────────────────────────  egress
//!       └─ clsact, filter: redirect ─► ifb ── root qdisc tbf ─► back into the stack
//! ```
//!
//! A link's qdisc acts on what the link transmits. So one direction takes a token bucket at the link's root, and the
//! other is led through an ifb, which transmits it. Where only some subnets are meant, the transmitting direction is led
//! through an ifb, too: then exempt traffic meets no qdisc at all, and there is no class to fall through.
//!
//! With `inContainer` the same is done to the container's own interface, which transmits egress and receives ingress.

use std::fmt;

use common::Attachment;
use common::attachment::reference_hash_name;
use common::cni::{Error, Result};
use common::link::device::Device;
use common::tc::{Cookie, Hook, Match, Side, TokenBucket};
use common::units::bytes_in;
use ipnet::IpNet;

use crate::config::{Burst, Config, Limit, Scope};
use crate::present::HOOKS;

/// A direction as the container sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the container.
    Ingress,
    /// From the container.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// What was looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The link that will carry the limits.
    pub link: Device,
    /// The links that already have one of the names in [`ifb_names`], and ifbs of this attachment's under other names.
    pub named: Vec<Device>,
    /// The indices of those among them that have no label and must be left all the same: they serve another link, or
    /// another call is just making them.
    pub busy: Vec<u32>,
    /// The indices of those among them that have no label and that this link's own filters lead to.
    pub serving: Vec<u32>,
    /// Whether the link is in the container's namespace.
    pub in_container: bool,
}

/// One attachment's limits as kernel objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shaping {
    /// Who owns all this.
    pub owner: Owner,
    /// The link that carries the limits.
    pub link: Device,
    /// One for each direction that is limited.
    pub lanes: Vec<Lane>,
}

/// The way of one direction's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// As the container sees it.
    pub direction: Direction,
    /// As the link sees it.
    pub hook: Hook,
    /// How fast.
    pub bucket: TokenBucket,
    /// Where the bucket is.
    pub via: Via,
}

/// Where a lane's bucket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// At the root of the link itself.
    Root,
    /// At the root of an ifb, to which filters redirect.
    Ifb {
        /// Its name.
        name: String,
        /// Its hardware address: the same whenever it is made for this attachment.
        mac: [u8; 6],
        /// What goes through it.
        rules: Vec<Rule>,
    },
}

/// One filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Which packets.
    pub matches: Match,
    /// Whether they go through the ifb, or pass unlimited.
    pub limited: bool,
}

/// Time of traffic at full rate that a chosen bucket holds, in nanoseconds. It bridges the time until a busy host looks
/// at the queue again, and no second can hold more than 101 % of the rate.
const CHOSEN_TIME: u64 = 10_000_000;

/// Frames that a chosen bucket holds at the least: with room for one only, tokens that accrue while it leaves are lost.
const CHOSEN_FRAMES: u32 = 2;

/// Frames that may wait at the least where the burst is chosen. With fewer, TCP loses so many at once that it has to wait
/// for its timer: at 256 kbit/s, where 25 ms hold half a frame, that cost a fifth of the rate.
const CHOSEN_QUEUE: u64 = 4;

/// What the kernel shall hold for `attachment`.
pub fn plan(config: &Config, attachment: &Attachment, facts: Facts) -> Result<Shaping> {
    let owner = Owner::of(attachment);
    let mut lanes = Vec::new();
    for hook in [Hook::Transmit, Hook::Receive] {
        let Some(limit) = config.limit_at(hook) else { continue };
        let inwards = (hook == Hook::Transmit) != config.in_container;
        let direction = if inwards { Direction::Ingress } else { Direction::Egress };
        let via = if config.needs_ifb(hook) {
            let name = choose_name(attachment, hook, &owner, &facts)?;
            Via::Ifb { name, mac: owner.mac(hook), rules: rules(&config.scope, direction) }
        } else {
            Via::Root
        };
        lanes.push(Lane { direction, hook, bucket: bucket(limit, config, &facts.link)?, via });
    }
    Ok(Shaping { owner, link: facts.link, lanes })
}

fn bucket(limit: &Limit, config: &Config, link: &Device) -> Result<TokenBucket> {
    let burst = match limit.burst {
        Burst::Bytes(bytes) if bytes < link.frame() => {
            let least = u64::from(link.frame()) * 8;
            let reason = format!(
                "it holds no full packet of {} (MTU {}), so none would ever pass; the smallest useful value is {least} bits",
                link.name, link.mtu
            );
            let (key, bits) = &limit.written;
            return Err(Error::invalid(key, format!("{bits} bits"), reason));
        }
        Burst::Bytes(bytes) => bytes,
        Burst::Chosen => chosen_burst(limit.rate, link.frame()),
    };
    // As tc(8) reckons `latency`, and the reference. The kernel's field has 32 bits: beyond, the wait is shorter.
    let latency = u64::try_from(config.latency.as_nanos()).unwrap_or(u64::MAX);
    let waiting = bytes_in(limit.rate, latency);
    let waiting = match limit.burst {
        Burst::Bytes(_) => waiting,
        Burst::Chosen => waiting.max(u64::from(link.frame()) * CHOSEN_QUEUE),
    };
    let limit_bytes = waiting.saturating_add(burst.into());
    Ok(TokenBucket { rate: limit.rate, burst, limit: u32::try_from(limit_bytes).unwrap_or(u32::MAX) })
}

/// The bucket, in bytes, for a rate in bytes per second and a link whose longest frame has so many bytes.
pub fn chosen_burst(rate: u64, frame: u32) -> u32 {
    let by_rate = u32::try_from(bytes_in(rate, CHOSEN_TIME)).unwrap_or(u32::MAX);
    by_rate.max(frame.saturating_mul(CHOSEN_FRAMES))
}

/// The filters of a direction. The remote side is the sender of what comes in and the receiver of what goes out.
fn rules(scope: &Scope, direction: Direction) -> Vec<Rule> {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let each = |nets: &[IpNet], limited: bool| -> Vec<Rule> {
        nets.iter().map(|net| Rule { matches: Match::Subnet(side, *net), limited }).collect()
    };
    let rest = Rule { matches: Match::All, limited: true };
    match scope {
        Scope::All => vec![rest],
        Scope::Except(nets) => each(nets, false).into_iter().chain([rest]).collect(),
        Scope::Only(nets) => each(nets, true),
    }
}

/// The names that an attachment's ifb for a hook may have, best first.
///
/// What a link receives goes through the ifb that the reference would make, under its name, because operators and an
/// upgrade look for it there. That name leaves out the interface, so the second interface of a container on a network
/// finds it taken; then, and for what a link transmits, the name is made of all three names.
pub fn ifb_names(attachment: &Attachment, hook: Hook) -> Vec<String> {
    let Attachment { network, container, .. } = attachment;
    let digits = attachment.key();
    match hook {
        Hook::Receive => {
            let reference = reference_hash_name(15, "bwp", &format!("{network}{container}"));
            vec![reference, reference_hash_name(15, "bwp", &digits)]
        }
        Hook::Transmit => vec![reference_hash_name(15, "bwt", &digits)],
    }
}

/// A name that is ours already, else that of our ifb for this hook which somebody has renamed, else the first that is free or
/// held by an ifb that may go at once. The reference's goes only after another has taken its place: its name is taken if there
/// is no other.
fn choose_name(attachment: &Attachment, hook: Hook, owner: &Owner, facts: &Facts) -> Result<String> {
    let names = ifb_names(attachment, hook);
    let holder = |name: &String| facts.named.iter().find(|device| device.name == *name);
    let labelled = |h: &Device| {
        let has_mac = h.mac == Some(owner.mac(hook)) && !facts.busy.contains(&h.index);
        h.kind == "ifb" && (h.alias == owner.label || has_mac)
    };
    let ours = names.iter().find(|name| holder(name).is_some_and(labelled));
    let renamed = || {
        let is_for_hook = |h: &&Device| labelled(h) && h.mac == Some(owner.mac(hook));
        facts.named.iter().find(is_for_hook).map(|device| &device.name)
    };
    let gives_way = |h: &Device| h.kind == "ifb" && h.alias.is_empty() && !facts.busy.contains(&h.index);
    let serves = |h: &Device| facts.serving.contains(&h.index) && h.mac != Some(owner.mac(hook));
    let free = || names.iter().find(|name| holder(name).is_none_or(|h| gives_way(h) && !serves(h)));
    let freed = || names.iter().find(|name| holder(name).is_some_and(gives_way));
    if let Some(name) = ours.or_else(renamed).or_else(free).or_else(freed) {
        return Ok(name.clone());
    }
    let whose = |h: &Device| if h.alias.is_empty() { h.name.clone() } else { format!("{} ({})", h.name, h.alias) };
    let holders: Vec<String> = names.iter().filter_map(holder).map(whose).collect();
    Err(Error::Link {
        link: names.join(", "),
        reason: format!("the name for the ifb is taken by another: {}; delete that link", holders.join(", ")),
    })
}

/// By what the things of an attachment are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The alias of its links.
    pub label: String,
    /// The same in the room that a filter's cookie has, and a bucket's mark.
    pub mark: Mark,
    /// The hardware addresses of its ifbs, in the order of [`HOOKS`].
    pub macs: [[u8; 6]; 2],
}

impl Owner {
    /// By the attachment itself.
    pub fn of(attachment: &Attachment) -> Owner {
        Owner::of_key(label(attachment), &attachment.key())
    }

    /// By a link's alias, if that is a label as [`label`] makes it; others may write the like.
    pub fn of_label(label: &str) -> Option<Owner> {
        if let Some((_, key)) = label.split_once(' ') {
            return Attachment::is_key(key).then(|| Owner::of_key(label.to_owned(), key));
        }
        let mut names = label.split('/');
        let (network, container, ifname) = (names.next()?, names.next()?, names.next()?);
        let is_whole = names.next().is_none();
        is_whole.then(|| Owner::of_key(label.to_owned(), &Attachment::new(network, container, ifname).key()))
    }

    fn of_key(label: String, key: &str) -> Owner {
        Owner { label, mark: Mark::of_key(key), macs: HOOKS.map(|hook| mac(key, hook)) }
    }

    /// The hardware address of its ifb for a hook.
    pub fn mac(&self, hook: Hook) -> [u8; 6] {
        let [receive, transmit] = self.macs;
        if hook == Hook::Receive { receive } else { transmit }
    }

    /// Whether a link has the hardware address of one of its ifbs.
    pub fn has_mac_of(&self, device: &Device) -> bool {
        device.mac.is_some_and(|mac| self.macs.contains(&mac))
    }

    /// Whether a link is one of its ifbs, whatever its name: by its alias, or, where somebody has taken that away or replaced it,
    /// or an ADD was cut off before, by its address.
    pub fn has(&self, device: &Device) -> bool {
        device.kind == "ifb" && (device.alias == self.label || self.has_mac_of(device))
    }
}

/// The label of an attachment's links: readable, and never the same for two attachments.
///
/// A label that had to be shortened is followed by the key. The kernel takes up to 255 bytes (`IFALIASZ`).
pub fn label(attachment: &Attachment) -> String {
    let (label, whole) = (attachment.label(), attachment.to_string());
    if label == whole { label } else { format!("{label} {}", attachment.key()) }
}

/// Whether `label` is that of an attachment of `network`.
pub fn is_of_network(label: &str, network: &str) -> bool {
    match label.split_once(' ') {
        Some((_, key)) => key.split_once('-').is_some_and(|(first, _)| first == Attachment::network_key(network)),
        None => label.split_once('/').is_some_and(|(first, _)| first == network),
    }
}

/// An attachment in the room of a filter's cookie: 13 hex digits of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark([u8; 13]);

impl Mark {
    /// The mark of an attachment.
    pub fn of(attachment: &Attachment) -> Mark {
        Mark::of_key(&attachment.key())
    }

    fn of_key(key: &str) -> Mark {
        let digits = key.split_once('-').map(|(_, own)| own.bytes()).into_iter().flatten();
        let mut mark = [b'0'; 13];
        mark.iter_mut().zip(digits).for_each(|(place, digit)| *place = digit);
        Mark(mark)
    }

    /// The same in the room that a token bucket has: never 0, which is no mark. The bucket of an ifb that is fed by hooks
    /// says as well whether those are ours: so that is known even if somebody has deleted the filters.
    pub fn number(&self, hooks_are_ours: bool) -> u32 {
        let digits = self.0.iter().take(8).filter_map(|digit| char::from(*digit).to_digit(16));
        let number = digits.fold(0, |number, digit| number << 4 | digit) & !HOOKS_ARE_OURS;
        number.max(1) | if hooks_are_ours { HOOKS_ARE_OURS } else { 0 }
    }

    /// Whether a bucket with this number is ours, and then whether the hooks are.
    pub fn reads_number(&self, number: u32) -> Option<bool> {
        [false, true].into_iter().find(|ours| self.number(*ours) == number)
    }

    /// The cookie of a filter: `bw`, whether the hooks are ours as well (`h`) or were there before (`-`), the mark.
    pub fn cookie(&self, hooks_are_ours: bool) -> Cookie {
        let mut cookie = [0; 16];
        let bytes = [b'b', b'w', if hooks_are_ours { b'h' } else { b'-' }].into_iter().chain(self.0);
        cookie.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        cookie
    }

    /// Whether a filter with this cookie is another attachment's.
    pub fn is_anothers(&self, cookie: &[u8]) -> bool {
        cookie.starts_with(b"bw") && cookie.len() == size_of::<Cookie>() && self.reads(cookie).is_none()
    }

    /// Whether a filter with this cookie is ours, and then whether the hooks are.
    pub fn reads(&self, cookie: &[u8]) -> Option<bool> {
        [false, true].into_iter().find(|ours| self.cookie(*ours) == cookie)
    }
}

/// The bit of a bucket's mark that says so.
const HOOKS_ARE_OURS: u32 = 1 << 31;

/// A unicast address, locally administered (IEEE 802: bit 0 clear, bit 1 set in the first byte), made of the key: three bytes
/// of the network's half, three of the other.
fn mac(key: &str, hook: Hook) -> [u8; 6] {
    let (network, own) = key.split_once('-').unwrap_or_default();
    let bytes = |digits: &str, skipped: usize| {
        let digit = |at: usize| digits.as_bytes().get(at).and_then(|byte| char::from(*byte).to_digit(16)).unwrap_or(0);
        [0, 2, 4].map(|at| (digit(skipped + at) << 4 | digit(skipped + at + 1)) as u8)
    };
    let [a, b, c] = bytes(network, 0);
    let [d, e, f] = bytes(own, if hook == Hook::Receive { 0 } else { 6 });
    [a & 0xfc | 0x02, b, c, d, e, f]
}

/// Whether an ifb is one that an ADD on this network was making when it was cut off: down, without its label, under a name and
/// an address as they are given here.
pub fn is_half_made(ifb: &Device, network: &str) -> bool {
    let digits = ifb.name.strip_prefix("bwp").or_else(|| ifb.name.strip_prefix("bwt"));
    let is_named = digits.is_some_and(|d| d.len() == 12 && d.bytes().all(|b| b.is_ascii_hexdigit()));
    let [a, b, c, ..] = mac(&Attachment::new(network, "", "").key(), Hook::Receive);
    let is_unfinished = ifb.kind == "ifb" && ifb.alias.is_empty() && !ifb.up;
    is_unfinished && is_named && ifb.mac.is_some_and(|mac| mac.starts_with(&[a, b, c]))
}

/// A hardware address in its usual form.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl fmt::Display for Shaping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "link {} index {} alias \"{}\"", self.link.name, self.link.index, self.owner.label)?;
        self.lanes.iter().try_for_each(|lane| lane.print(&self.link.name, f))
    }
}

impl Lane {
    fn print(&self, link: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.direction)?;
        match &self.via {
            Via::Root => writeln!(f, "  qdisc root of {link}: {}", self.bucket),
            Via::Ifb { name, mac, rules } => {
                writeln!(f, "  ifb {name} mac {}", mac_text(*mac))?;
                writeln!(f, "  qdisc root of {name}: {}", self.bucket)?;
                rules.iter().try_for_each(|rule| writeln!(f, "  filter {} of {link}: {}", self.hook, rule.print(name)))
            }
        }
    }
}

impl Rule {
    /// `all redirect to bwp…`, `dst 10.0.0.0/8 pass`.
    pub fn print(&self, ifb: &str) -> String {
        if self.limited { format!("{} redirect to {ifb}", self.matches) } else { format!("{} pass", self.matches) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn limited(rate: u64, burst: Burst, latency: Duration, mtu: u32) -> Result<TokenBucket> {
        let limit = Limit { rate, burst, written: ("ingressBurst".into(), 0) };
        let config = Config { ingress: Some(limit), egress: None, scope: Scope::All, latency, in_container: false };
        let link = Device { mtu, header: 14, ..Device::default() };
        let facts = Facts { link, ..Facts::default() };
        Ok(plan(&config, &Attachment::new("n", "c", "e"), facts)?.lanes[0].bucket)
    }

    proptest! {
        /// Against reckoning in 128 bits: nothing wraps, whatever the numbers.
        #[test]
        fn buckets_are_what_wide_arithmetic_makes_them(
            rate in prop_oneof![1u64..20_000_000_000, 1u64..],
            bytes in 1514u32..u32::MAX,
            ms in 1u64..10_000,
        ) {
            let latency = Duration::from_millis(ms);
            let bucket = limited(rate, Burst::Bytes(bytes), latency, 1500).unwrap();
            let waiting = u128::from(rate) * u128::from(ms) / 1000 + u128::from(bytes);
            prop_assert_eq!(u128::from(bucket.limit), waiting.min(u32::MAX.into()));
            prop_assert_eq!((bucket.rate, bucket.burst), (rate, bytes));
        }

        #[test]
        fn a_chosen_bucket_holds_two_frames_and_no_more_than_a_hundredth_of_a_second_else(
            rate in prop_oneof![1u64..20_000_000_000, 1u64..], mtu in 68u32..65_536,
        ) {
            let frame = u128::from(mtu) + 14;
            let bucket = limited(rate, Burst::Chosen, Duration::from_millis(25), mtu).unwrap();
            let expected = (u128::from(rate) / 100).max(2 * frame).min(u32::MAX.into());
            prop_assert_eq!(u128::from(bucket.burst), expected);
            let waiting = (u128::from(rate) * 25 / 1000).max(4 * frame) + expected;
            prop_assert_eq!(u128::from(bucket.limit), waiting.min(u32::MAX.into()));
        }

        #[test]
        fn a_burst_is_refused_exactly_where_it_holds_no_frame(bytes in 0u32..20_000, mtu in 68u32..9_001) {
            let outcome = limited(1_000_000, Burst::Bytes(bytes), Duration::from_millis(25), mtu);
            prop_assert_eq!(outcome.is_err(), bytes < mtu + 14);
        }

        #[test]
        fn labels_and_marks_tell_attachments_apart(
            network in "[a-z]{1,3}|[a-z]{100,200}", container in "[a-z]{1,3}|[a-z]{100,200}", other in "[a-z]{1,3}",
        ) {
            let attachment = Attachment::new(&*network, &*container, "eth0");
            let label = label(&attachment);
            prop_assert!(label.len() < 256);
            prop_assert!(is_of_network(&label, &network));
            prop_assert_eq!(is_of_network(&label, &other), other == network);
            prop_assert_eq!(Owner::of_label(&label), Some(Owner::of(&attachment)));
            prop_assert_ne!(Mark::of(&attachment), Mark::of(&Attachment::new(&*network, &*container, "eth1")));
        }
    }

    #[test]
    fn refusals_say_what_was_written_and_what_is_there() {
        let attachment = Attachment::new("n", "c", "e");
        let limit = Limit { rate: 1_000_000, burst: Burst::Bytes(0), written: ("egressBurst".into(), 7) };
        let latency = Duration::from_millis(25);
        let config = Config { ingress: None, egress: Some(limit), scope: Scope::All, latency, in_container: false };
        let refused = |named: Vec<Device>| {
            let link = Device { mtu: 1500, header: 14, ..Device::default() };
            plan(&config, &attachment, Facts { link, named, ..Facts::default() }).unwrap_err().to_string()
        };
        assert!(refused(Vec::new()).contains("egressBurst = 7 bits"), "{}", refused(Vec::new()));
        let [first, second] = ifb_names(&attachment, Hook::Receive).try_into().unwrap();
        let holder =
            |name: &String, alias: &str| Device { name: name.clone(), alias: alias.into(), ..Device::default() };
        let taken = refused(vec![holder(&first, ""), holder(&second, "uplink")]);
        assert!(taken.contains(&format!("is taken by another: {first}, {second} (uplink);")), "{taken}");
    }

    #[test]
    fn a_cookie_is_read_by_its_owner_only() {
        let (a, b) = (Attachment::new("n", "c", "eth0"), Attachment::new("n", "c", "eth1"));
        for ours in [false, true] {
            assert_eq!(Mark::of(&a).reads(&Mark::of(&a).cookie(ours)), Some(ours));
            assert_eq!(Mark::of(&b).reads(&Mark::of(&a).cookie(ours)), None);
            assert!(Mark::of(&b).is_anothers(&Mark::of(&a).cookie(ours)));
            assert!(!Mark::of(&a).is_anothers(&Mark::of(&a).cookie(ours)));
        }
        assert_eq!(Mark::of(&a).reads(&[]), None);
        assert!(!Mark::of(&a).is_anothers(&[]));
        for ours in [false, true] {
            assert_eq!(Mark::of(&a).reads_number(Mark::of(&a).number(ours)), Some(ours));
            assert_eq!(Mark::of(&b).reads_number(Mark::of(&a).number(ours)), None);
        }
        assert_eq!(Mark::of(&a).reads_number(0), None);
    }

    #[test]
    fn an_ifb_is_known_by_its_address_alone_and_so_is_its_network() {
        let owner = |network: &str, container: &str| Owner::of(&Attachment::new(network, container, "eth0"));
        let ours = owner("net", "c1");
        let made = |hook: Hook| Device {
            name: "bwp0123456789ab".into(),
            kind: "ifb".into(),
            mac: Some(ours.mac(hook)),
            ..Device::default()
        };
        assert_ne!(ours.mac(Hook::Receive), ours.mac(Hook::Transmit));
        for ifb in HOOKS.map(made) {
            assert_eq!(ifb.mac.unwrap()[0] & 3, 2, "unicast, locally administered");
            assert!(ours.has(&ifb) && !owner("net", "c2").has(&ifb) && !owner("net2", "c1").has(&ifb));
            assert!(is_half_made(&ifb, "net") && !is_half_made(&ifb, "net2"));
            let others = [
                Device { up: true, ..ifb.clone() },
                Device { alias: "net/c1/eth0".into(), ..ifb.clone() },
                Device { name: "bwp0".into(), ..ifb.clone() },
                Device { name: "bwx0123456789ab".into(), ..ifb.clone() },
                Device { kind: "veth".into(), ..ifb.clone() },
                Device { mac: Some([2, 0, 0, 1, 2, 3]), ..ifb },
            ];
            assert!(others.iter().all(|other| !is_half_made(other, "net")));
        }
    }

    #[test]
    fn labels_of_others_are_of_no_network() {
        for alias in ["", "uplink", "net", "a b", "/"] {
            assert!(!is_of_network(alias, "net"), "{alias}");
        }
        assert_eq!(Owner::of_label("uplink"), None);
        assert_eq!(Owner::of_label("a/b/c/d"), None);
    }
}
