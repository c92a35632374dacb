//! Traffic control: token buckets, the hook for filters, and filters that send packets through another link.
//!
//! netlink-packet-route knows most of it; the options of `tbf` are written and read here, because it doesn't.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, Nla, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMessage, TcActionMessageAttribute, TcActionMessageFlags,
    TcActionMessageFlagsWithSelector, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use nix::errno::Errno;

use crate::cni::error::{Error, Result};
use crate::link::device::Device;
use crate::link::{Request, RouteSocket};
use crate::units::{BitRate, Bytes, TICK_NS, bytes_in, transmission_time};

/// A token bucket filter (tc-tbf(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate: u64,
    /// Size of the bucket in bytes.
    pub burst: u32,
    /// Bytes that may wait for tokens.
    pub limit: u32,
}

impl fmt::Display for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (burst, limit) = (Bytes(self.burst.into()), Bytes(self.limit.into()));
        write!(f, "tbf rate {} burst {burst} limit {limit}", BitRate(self.rate.saturating_mul(8)))
    }
}

/// A token bucket as the kernel gives it back: the burst only as a time, and that only modulo 2³² ticks (275 s).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketSeen {
    /// Bytes per second.
    pub rate: u64,
    /// Time to fill the bucket, in ticks of 64 ns, modulo 2³².
    pub buffer: u32,
    /// Bytes that may wait for tokens.
    pub limit: u32,
    /// Its maker's mark; 0 if it has none.
    pub mark: u32,
    /// How it counts a packet.
    pub counting: Counting,
}

/// How a token bucket counts packets, beside their bytes (`struct tc_ratespec`, include/uapi/linux/pkt_sched.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counting {
    /// The kind of link that its maker has named, as tc(8) always does, and the reference never; 0 if none.
    pub link_layer: u8,
    /// Bytes that are added to each packet.
    pub overhead: u16,
    /// Bytes that a packet counts at the least.
    pub mpu: u16,
    /// Bytes per second that no two packets may exceed (`peakrate`); 0 if there is no such rate.
    pub peak_rate: u32,
}

impl Counting {
    /// Of the buckets that are made here.
    const OURS: Counting = Counting { link_layer: LINKLAYER_ETHERNET, overhead: 0, mpu: 0, peak_rate: 0 };

    /// Whether each packet counts as its bytes on an Ethernet, as is meant where nothing is said.
    pub fn is_plain(&self) -> bool {
        Counting { link_layer: LINKLAYER_ETHERNET, ..*self } == Counting::OURS && self.link_layer <= LINKLAYER_ETHERNET
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            (u64::from(self.overhead), "overhead"),
            (u64::from(self.mpu), "mpu"),
            (if self.link_layer > LINKLAYER_ETHERNET { self.link_layer.into() } else { 0 }, "linklayer"),
        ];
        said.iter().filter(|(value, _)| *value != 0).try_for_each(|(value, key)| write!(f, " {key} {value}"))?;
        if self.peak_rate == 0 {
            return Ok(());
        }
        write!(f, " peakrate {}", BitRate(u64::from(self.peak_rate).saturating_mul(8)))
    }
}

impl BucketSeen {
    /// What the kernel would give back of `bucket` with this mark.
    pub fn of(bucket: &TokenBucket, mark: u32) -> BucketSeen {
        let ticks = transmission_time(bucket.rate, bucket.burst) / TICK_NS;
        // The kernel's field is that narrow: `opt.buffer = PSCHED_NS2TICKS(q->buffer)` in tbf_dump.
        let buffer = (ticks & u64::from(u32::MAX)) as u32;
        BucketSeen { rate: bucket.rate, buffer, limit: bucket.limit, mark, counting: Counting::OURS }
    }

    /// Whether this is `bucket`, whosoever's.
    ///
    /// The burst may differ by a microsecond's worth and one part in a million: the reference counts it in whole
    /// microseconds.
    pub fn is(&self, bucket: &TokenBucket) -> bool {
        let expected = BucketSeen::of(bucket, 0);
        let apart = self.buffer.wrapping_sub(expected.buffer);
        let apart = apart.min(expected.buffer.wrapping_sub(self.buffer));
        let is_near = apart <= 16 + expected.buffer / 1_000_000;
        self.rate == expected.rate && self.limit == expected.limit && is_near && self.counting.is_plain()
    }

    /// Whether it is certain that the burst is no greater than this one, to a tick's worth. It is known modulo 275 s only,
    /// but no bucket is made with a limit below its burst.
    pub fn burst_is_at_most(&self, burst: u32) -> bool {
        let wraps_at = bytes_in(self.rate, (1 << 32) * TICK_NS);
        let no_longer = u64::from(self.buffer) <= transmission_time(self.rate, burst) / TICK_NS;
        self.limit <= burst || (no_longer && u64::from(self.limit) < wraps_at)
    }

    /// The bucket, its burst as near as it can be told.
    pub fn bucket(&self) -> TokenBucket {
        let burst = bytes_in(self.rate, (u64::from(self.buffer) + 1) * TICK_NS - 1);
        TokenBucket { rate: self.rate, burst: u32::try_from(burst).unwrap_or(u32::MAX), limit: self.limit }
    }
}

/// A queueing discipline that someone has put on a link; the kernel's defaults don't count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// `tbf`, `htb`, `clsact`, …
    pub kind: String,
    /// Its handle's major number.
    pub major: u16,
    /// If it is a token bucket: which.
    pub bucket: Option<BucketSeen>,
    /// What its packets wait in, if it has been looked at and is not the kernel's own.
    pub queue: Option<Queue>,
}

/// What the packets of a token bucket wait in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// `bfifo`, …
    pub kind: String,
    /// Its handle's major number.
    pub major: u16,
    /// Bytes that may wait, of a `bfifo`.
    pub limit: Option<u32>,
}

impl Qdisc {
    /// The queue that somebody else has put there: one that is not as good as what the kernel puts there, which keeps bytes in
    /// the order in which they came, up to the bucket's own limit.
    pub fn odd_queue(&self) -> Option<&Queue> {
        let is_odd = |queue: &&Queue| queue.kind != QUEUE || queue.limit != self.bucket.map(|seen| seen.limit);
        self.queue.as_ref().filter(is_odd)
    }
}

impl fmt::Display for Qdisc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bucket {
            Some(seen) => write!(f, "{}{}", seen.bucket(), seen.counting)?,
            None => write!(f, "{} {:x}:", self.kind, self.major)?,
        }
        self.odd_queue().iter().try_for_each(|queue| write!(f, " above {} {:x}:", queue.kind, queue.major))
    }
}

/// A link with something of traffic control on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaped {
    /// The link's index.
    pub index: u32,
    /// Whether it is the hooks, or a token bucket at its root.
    pub hooked: bool,
    /// The mark of the token bucket; 0 if it has none.
    pub mark: u32,
}

/// The handles under which token buckets are made: `6277:` ("bw" in ASCII), and `6278:`, where
/// that is taken. Not `1:`, which is the reference's, and what people write who make one by hand.
pub const BUCKET_MAJORS: [u16; 2] = [0x6277, 0x6278];

/// The handles of the queues below them where the kernel's own has given way to an empty one: `6271:` ("bq") and `6272:`, in
/// turn.
pub const QUEUE_MAJORS: [u16; 2] = [0x6271, 0x6272];

/// The handle under which the reference makes its token buckets.
pub const REFERENCE_MAJOR: u16 = 1;

/// Where a filter sees a link's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What the link receives (tc's `ingress`).
    Receive,
    /// What the link is about to transmit (tc's `egress`; needs a `clsact`).
    Transmit,
}

impl Hook {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Hook::Receive => TcHandle::MIN_INGRESS,
            Hook::Transmit => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Receive => "ingress",
            Hook::Transmit => "egress",
        })
    }
}

/// Which address of a packet is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

/// Which packets a filter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// Every packet of every protocol.
    All,
    /// Those with an address in a subnet.
    Subnet(Side, IpNet),
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::All => f.write_str("all"),
            Match::Subnet(Side::Source, net) => write!(f, "src {net}"),
            Match::Subnet(Side::Destination, net) => write!(f, "dst {net}"),
        }
    }
}

/// `ETH_P_ALL`, `ETH_P_IP` and `ETH_P_IPV6` (include/uapi/linux/if_ether.h).
const ETH_P: [u16; 3] = [0x0003, 0x0800, 0x86dd];

impl Match {
    /// The protocol that a filter for this is bound to.
    fn protocol(&self) -> u16 {
        let [all, v4, v6] = ETH_P;
        match self {
            Match::All => all,
            Match::Subnet(_, IpNet::V4(_)) => v4,
            Match::Subnet(_, IpNet::V6(_)) => v6,
        }
    }

    /// The 32 bit words to compare, from the network header on.
    fn keys(&self) -> Vec<TcU32Key> {
        let (offset, address, mask): (i32, Vec<u8>, Vec<u8>) = match self {
            Match::All => return vec![TcU32Key::default()],
            Match::Subnet(side, IpNet::V4(net)) => (
                if *side == Side::Source { 12 } else { 16 },
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
            ),
            Match::Subnet(side, IpNet::V6(net)) => (
                if *side == Side::Source { 8 } else { 24 },
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
            ),
        };
        let words = address.chunks(4).zip(mask.chunks(4)).zip((offset..).step_by(4));
        let keys: Vec<TcU32Key> =
            words.map(|((a, m), off)| key(big_endian(m), big_endian(a), off)).filter(|k| k.mask != 0).collect();
        // A /0 is every packet of its family; the word that isn't compared still tells which side was meant.
        if keys.is_empty() { vec![key(0, 0, offset)] } else { keys }
    }

    /// What a selector compares, if it is one of ours.
    fn of(protocol: u16, keys: &[TcU32Key]) -> Option<Match> {
        let [all, v4, v6] = ETH_P;
        let blank = keys.iter().all(|k| k.mask == 0);
        if protocol == all {
            return blank.then_some(Match::All);
        }
        let (bytes, source, destination) = match protocol {
            p if p == v4 => (4, 12, 16),
            p if p == v6 => (16, 8, 24),
            _ => return None,
        };
        let first = keys.first().map(|k| k.off)?;
        let (side, base) = if first < destination { (Side::Source, source) } else { (Side::Destination, destination) };
        let (mut address, mut mask) = (0u128, 0u128);
        for key in keys.iter().filter(|k| k.mask != 0) {
            let below = i32::checked_sub(bytes - 4, key.off.checked_sub(base)?)?;
            let shift = u32::try_from(below).ok().filter(|s| *s < 16)? * 8;
            address |= u128::from(key.val) << shift;
            mask |= u128::from(key.mask) << shift;
        }
        let (address, mask) = if bytes == 4 {
            let word = |value| u32::try_from(value).ok().map(Ipv4Addr::from).map(IpAddr::from);
            (word(address)?, word(mask)?)
        } else {
            (Ipv6Addr::from(address).into(), Ipv6Addr::from(mask).into())
        };
        IpNet::with_netmask(address, mask).ok().map(|net| Match::Subnet(side, net))
    }
}

fn big_endian(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn key(mask: u32, val: u32, off: i32) -> TcU32Key {
    let mut key = TcU32Key::default();
    (key.mask, key.val, key.off) = (mask, val, off);
    key
}

/// Bytes that a filter's action carries for whoever made it (`TCA_ACT_COOKIE`).
pub type Cookie = [u8; 16];

/// What a filter does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes on, and no later filter sees it.
    Pass,
    /// It is sent through the link of this index, as if that transmitted it; 0 where that link has gone.
    Redirect {
        /// The link's index.
        to: u32,
        /// The maker's mark; empty if there is none.
        cookie: Vec<u8>,
    },
    /// Something that isn't made here.
    Foreign(String),
}

/// By what a filter in a hook is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterPlace {
    /// A hook begins with chain 0; another is come to by a filter's `goto` only.
    pub chain: u32,
    /// Filters are asked in ascending order of this.
    pub priority: u16,
    /// The link-layer protocol of its packets (`ETH_P_*`).
    pub protocol: u16,
    /// Its number among those of its priority; 0 stands for all of them, whosoever's.
    pub handle: u32,
}

impl FilterPlace {
    /// All filters of a priority.
    pub fn all_of(priority: u16) -> FilterPlace {
        FilterPlace { priority, ..FilterPlace::default() }
    }
}

impl fmt::Display for FilterPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.handle {
            0 => write!(f, "filters {:#x}", self.priority)?,
            handle => write!(f, "filter {:#x} handle {handle:#x}", self.priority)?,
        }
        if self.chain == 0 { Ok(()) } else { write!(f, " of chain {}", self.chain) }
    }
}

/// A filter on a link's hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Where it is.
    pub place: FilterPlace,
    /// Which packets; `None` for a filter that can't be made here, or that no packet comes to: in another chain, or in a table
    /// that is not its priority's first.
    pub matches: Option<Match>,
    /// What with them.
    pub verdict: Verdict,
    /// Whether it bears the class by which filters that are made here are known. Its number means nothing else.
    pub is_marked: bool,
}

/// The class of a filter that is made here: `bw`, as the buckets' handles. At a hook nobody looks for a class; without one a
/// selector is not terminal for tc's older kernels.
const FILTER_CLASS: TcHandle = TcHandle { major: BUCKET_MAJORS[0], minor: 1 };

impl RouteSocket {
    /// The qdisc at the root of a link, unless it is the kernel's default.
    pub fn root_qdisc(&self, device: &Device) -> Result<Option<Qdisc>> {
        self.qdisc(device, TcHandle::ROOT)
    }

    /// The qdisc that carries a link's hooks: `clsact`, or `ingress`, which has [`Hook::Receive`] only.
    pub fn hook_qdisc(&self, device: &Device) -> Result<Option<Qdisc>> {
        self.qdisc(device, TcHandle::CLSACT)
    }

    fn qdisc(&self, device: &Device, parent: TcHandle) -> Result<Option<Qdisc>> {
        let query = message(device, parent, TcHandle::UNSPEC);
        let object = format!("the qdisc of link {}", device.name);
        // Without NLM_F_ECHO a GET of one qdisc is acknowledged but never answered (qdisc_notify, net/sched/sch_api.c).
        let flags = NLM_F_ECHO | NLM_F_ACK;
        match self.request(RouteNetlinkMessage::GetQueueDiscipline(query), flags, "get", &object) {
            Ok(answers) => Ok(answers.iter().find_map(as_qdisc)),
            Err(Error::Kernel { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The indices of all links that carry a hook, or one of our token buckets. The kernel tells of no link that has its
    /// default qdisc, so this is cheaper by far than a list of links.
    pub fn shaped_links(&self) -> Result<Vec<Shaped>> {
        let query = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let answers = self.request(query, NLM_F_DUMP, "list", "qdiscs")?;
        Ok(answers.iter().filter_map(as_shaped).collect())
    }

    /// The filters in a hook of a link, in the order in which they are asked.
    pub fn filters(&self, device: &Device, hook: Hook) -> Result<Vec<Filter>> {
        let query = message(device, hook.parent(), TcHandle::UNSPEC);
        let object = format!("the {hook} filters of link {}", device.name);
        let request = RouteNetlinkMessage::GetTrafficFilter(query);
        match self.request(request, NLM_F_DUMP, "list", &object) {
            Ok(answers) => Ok(filters_of(&answers)),
            Err(Error::Kernel { errno: Errno::ENODEV, .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The indices of the links to which filters of this namespace redirect: one for each filter, whichever link has it.
    pub fn redirects(&self) -> Result<Vec<u32>> {
        let mut action = TcAction::default();
        action.attributes = vec![TcActionAttribute::Kind(TcActionMirror::KIND.into())];
        let many = TcActionMessageFlagsWithSelector::new(TcActionMessageFlags::LargeDump);
        let mut query = TcActionMessage::default();
        query.attributes = vec![TcActionMessageAttribute::Actions(vec![action]), TcActionMessageAttribute::Flags(many)];
        let answers = self.request(RouteNetlinkMessage::GetTrafficAction(query), NLM_F_DUMP, "list", "redirects")?;
        Ok(answers.iter().flat_map(actions_of).filter_map(target_of).collect())
    }

    /// What the packets of a token bucket wait in, if that is not the kernel's own, of which it tells nobody
    /// (`TCQ_F_INVISIBLE`).
    pub fn queue(&self, device: &Device, above: &Qdisc) -> Result<Option<Queue>> {
        if above.bucket.is_none() {
            return Ok(None);
        }
        let query = message(device, queue_of(above.major), TcHandle::UNSPEC);
        let object = format!("the qdisc below {:x}: of link {}", above.major, device.name);
        match self.request(RouteNetlinkMessage::GetQueueDiscipline(query), NLM_F_ECHO | NLM_F_ACK, "get", &object) {
            Ok(answers) => Ok(answers.iter().find_map(as_queue)),
            Err(Error::Kernel { errno: Errno::ENOENT | Errno::EINVAL | Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn as_queue(answer: &RouteNetlinkMessage) -> Option<Queue> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
    let Qdisc { kind, major, .. } = as_qdisc(answer)?;
    let limit = if kind == QUEUE { queue_limit(message) } else { None };
    Some(Queue { kind, major, limit })
}

/// The kind of qdisc that a token bucket's packets wait in (`tbf_change`, net/sched/sch_tbf.c).
const QUEUE: &str = "bfifo";

/// The class of a token bucket, below which that is.
fn queue_of(major: u16) -> TcHandle {
    TcHandle { major, minor: 1 }
}

/// `struct tc_fifo_qopt` is the limit in bytes, and nothing else.
fn queue_limit(message: &TcMessage) -> Option<u32> {
    options_of(message).iter().find_map(|option| match option {
        TcOption::Other(bare) => {
            let mut value = vec![0; bare.value_len()];
            bare.emit_value(&mut value);
            value.try_into().ok().map(u32::from_ne_bytes)
        }
        _ => None,
    })
}

impl Request {
    /// Puts a token bucket at the root of a link that has none, with its maker's mark.
    pub fn add_bucket(device: &Device, major: u16, bucket: &TokenBucket, mark: u32) -> Request {
        put_bucket(device, major, bucket, mark, NLM_F_CREATE | NLM_F_EXCL, "add")
    }

    /// Changes the token bucket at the root of a link in place: what waits in it goes on waiting.
    pub fn change_bucket(device: &Device, major: u16, bucket: &TokenBucket, mark: u32) -> Request {
        put_bucket(device, major, bucket, mark, NLM_F_REPLACE, "change")
    }

    /// Gives the token bucket at the root of a link an empty queue of this handle and limit in bytes, in the place of the one that
    /// it has, whose handle is another: what waits there is dropped, and nothing that comes meanwhile (`tbf_graft`,
    /// net/sched/sch_tbf.c).
    pub fn renew_queue(device: &Device, bucket_major: u16, major: u16, limit: u32) -> Request {
        let mut request = message(device, queue_of(bucket_major), TcHandle { major, minor: 0 });
        let options = TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, limit.to_ne_bytes().to_vec()));
        request.attributes = vec![TcAttribute::Kind(QUEUE.into()), options];
        let object = format!("the queue of the tbf of link {}", device.name);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        Request::new(RouteNetlinkMessage::NewQueueDiscipline(request), flags, "renew", object)
    }

    /// Takes from the token bucket at the root of a link the queue of this handle. What comes is dropped until the bucket is
    /// changed: then the kernel gives it one of its own again (`tbf_change`).
    pub fn delete_queue(device: &Device, bucket_major: u16, major: u16) -> Request {
        let request = message(device, queue_of(bucket_major), TcHandle { major, minor: 0 });
        let object = format!("the queue of the tbf of link {}", device.name);
        Request::new(RouteNetlinkMessage::DelQueueDiscipline(request), 0, "delete", object)
    }

    /// Puts a token bucket in the place of the one at the root of a link, which has another major number. What waited in
    /// the old one is dropped, and what comes while the link has none, for some ms: the kernel waits between the two until its
    /// processors have come past (`dev_deactivate`, called by `qdisc_graft` in net/sched/sch_api.c).
    pub fn exchange_bucket(device: &Device, major: u16, bucket: &TokenBucket, mark: u32) -> Request {
        put_bucket(device, major, bucket, mark, NLM_F_CREATE | NLM_F_REPLACE, "exchange")
    }

    /// Takes the token bucket of this major number from the root of a link; none there is as good.
    pub fn delete_bucket(device: &Device, major: u16) -> Request {
        let request = message(device, TcHandle::ROOT, TcHandle { major, minor: 0 });
        let object = format!("the tbf of link {}", device.name);
        Request::new(RouteNetlinkMessage::DelQueueDiscipline(request), 0, "delete", object).content_with(ABSENCE)
    }

    /// Gives a link its hooks.
    pub fn add_hooks(device: &Device) -> Request {
        let mut request = message(device, TcHandle::CLSACT, TcHandle { major: TcHandle::CLSACT.major, minor: 0 });
        request.attributes = vec![TcAttribute::Kind("clsact".into())];
        let object = format!("qdisc clsact on link {}", device.name);
        Request::new(RouteNetlinkMessage::NewQueueDiscipline(request), NLM_F_CREATE | NLM_F_EXCL, "add", object)
    }

    /// Takes the hooks, and every filter in them, from a link; none there is as good.
    pub fn delete_hooks(device: &Device) -> Request {
        let request = message(device, TcHandle::CLSACT, TcHandle { major: TcHandle::CLSACT.major, minor: 0 });
        let object = format!("the hooks of link {}", device.name);
        Request::new(RouteNetlinkMessage::DelQueueDiscipline(request), 0, "delete", object).content_with(ABSENCE)
    }

    /// Adds a filter behind those of the same priority.
    pub fn add_filter(device: &Device, hook: Hook, priority: u16, matches: Match, to: Redirect) -> Request {
        let mut request = message(device, hook.parent(), TcHandle::UNSPEC);
        request.header.info = u32::from(priority) << 16 | u32::from(matches.protocol().to_be());
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        selector.keys = matches.keys();
        selector.nkeys = u8::try_from(selector.keys.len()).unwrap_or(u8::MAX);
        let mut options = vec![TcOption::U32(TcFilterU32Option::Selector(selector))];
        options.push(TcOption::U32(TcFilterU32Option::ClassId(FILTER_CLASS)));
        if let Some((index, cookie)) = to {
            options.push(TcOption::U32(TcFilterU32Option::Action(vec![redirect(index, cookie)])));
        }
        request.attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.into()), TcAttribute::Options(options)];
        let object = format!("filter {priority} ({matches}) on {hook} of link {}", device.name);
        Request::new(RouteNetlinkMessage::NewTrafficFilter(request), NLM_F_CREATE | NLM_F_EXCL, "add", object)
    }

    /// Deletes a filter, or all of one priority; none there is as good.
    pub fn delete_filters(device: &Device, hook: Hook, place: FilterPlace) -> Request {
        let mut request = message(device, hook.parent(), TcHandle::from(place.handle));
        request.header.info = u32::from(place.priority) << 16 | u32::from(place.protocol.to_be());
        if place.handle != 0 {
            request.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.into()));
        }
        if place.chain != 0 {
            request.attributes.push(TcAttribute::Chain(place.chain));
        }
        let object = format!("{place} on {hook} of link {}", device.name);
        Request::new(RouteNetlinkMessage::DelTrafficFilter(request), 0, "delete", object).content_with(ABSENCE)
    }
}

fn put_bucket(
    device: &Device,
    major: u16,
    bucket: &TokenBucket,
    mark: u32,
    flags: u16,
    action: &'static str,
) -> Request {
    let mut request = message(device, TcHandle::ROOT, TcHandle { major, minor: 0 });
    request.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(bucket_options(bucket, mark))];
    let object = format!("qdisc {bucket} on link {}", device.name);
    Request::new(RouteNetlinkMessage::NewQueueDiscipline(request), flags, action, object)
}

impl RouteSocket {
    /// Whether this kernel knows a kind of qdisc. Asks the loopback link for one that can't be: with an empty table of
    /// sizes, which is found out after the kind and before anything is made (`qdisc_create`, net/sched/sch_api.c).
    pub fn knows_qdisc(&self, kind: &str) -> Result<bool> {
        let parent = if kind == "clsact" { TcHandle::CLSACT } else { TcHandle::ROOT };
        let mut request = message(&loopback(), parent, TcHandle::UNSPEC);
        request.attributes = vec![TcAttribute::Kind(kind.into()), TcAttribute::Stab(Vec::new())];
        let request = RouteNetlinkMessage::NewQueueDiscipline(request);
        known(self.request(request, NLM_F_CREATE | NLM_F_EXCL, "try", &format!("qdisc {kind}")))
    }

    /// Whether this kernel can redirect to another link. Asks for an action without its parameters.
    pub fn knows_redirect(&self) -> Result<bool> {
        let mut action = TcAction::default();
        action.attributes = vec![TcActionAttribute::Kind(TcActionMirror::KIND.into())];
        let mut request = TcActionMessage::default();
        request.attributes = vec![TcActionMessageAttribute::Actions(vec![action])];
        let request = RouteNetlinkMessage::NewTrafficAction(request);
        known(self.request(request, NLM_F_CREATE | NLM_F_EXCL, "try", "action mirred"))
    }
}

/// The loopback link has this index in every namespace.
fn loopback() -> Device {
    Device { index: 1, name: "lo".into(), ..Device::default() }
}

/// ENOENT names an unknown kind; EINVAL the flaw that the request was given; EEXIST a qdisc that is there already.
fn known<T>(outcome: Result<T>) -> Result<bool> {
    match outcome {
        Err(Error::Kernel { errno: Errno::ENOENT, .. }) => Ok(false),
        Err(Error::Kernel { errno: Errno::EINVAL | Errno::EEXIST, .. }) => Ok(true),
        outcome => outcome.map(|_| true),
    }
}

/// Through which link, by its index, a filter sends its packets, with its maker's mark; `None` lets them pass.
pub type Redirect = Option<(u32, Cookie)>;

/// What the kernel says, by version, where there is nothing to delete.
const ABSENCE: &[Errno] = &[Errno::ENOENT, Errno::EINVAL, Errno::ENODEV];

fn message(device: &Device, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(i32::try_from(device.index).unwrap_or(i32::MAX));
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

fn redirect(index: u32, cookie: Cookie) -> TcAction {
    let mut parameters = TcMirror::default();
    parameters.generic.action = TcActionType::Stolen;
    parameters.eaction = TcMirrorActionType::EgressRedir;
    parameters.ifindex = index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters))]),
        TcActionAttribute::Cookie(cookie.to_vec()),
    ];
    action
}

fn as_qdisc(answer: &RouteNetlinkMessage) -> Option<Qdisc> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
    let kind = kind_of(message)?;
    // Handle 0 is the kernel's own default, which gives way to anything.
    let major = Some(message.header.handle.major).filter(|major| *major != 0)?;
    let bucket = if kind == "tbf" { options_of(message).iter().find_map(bucket_seen) } else { None };
    Some(Qdisc { kind, major, bucket, queue: None })
}

fn as_shaped(answer: &RouteNetlinkMessage) -> Option<Shaped> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
    let index = u32::try_from(message.header.index).ok()?;
    let hooked = message.header.parent == TcHandle::CLSACT;
    let bucket = as_qdisc(answer).filter(|qdisc| BUCKET_MAJORS.contains(&qdisc.major)).and_then(|qdisc| qdisc.bucket);
    (hooked || bucket.is_some()).then_some(Shaped { index, hooked, mark: bucket.map_or(0, |bucket| bucket.mark) })
}

fn kind_of(message: &TcMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}

fn options_of(message: &TcMessage) -> &[TcOption] {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options.as_slice()),
        _ => None,
    });
    options.unwrap_or_default()
}

/// The filters of a list. Each priority has tables of filters, the newest first, of which packets come to the oldest only: from
/// there another filter may lead to the others (`u32_init` and `u32_walk`, net/sched/cls_u32.c).
fn filters_of(answers: &[RouteNetlinkMessage]) -> Vec<Filter> {
    let mut tables: Vec<FilterPlace> = Vec::new();
    let mut filters = Vec::new();
    for answer in answers {
        match as_filter(answer) {
            Some(Entry::Filter(filter)) => filters.push(filter),
            Some(Entry::Table(table)) => tables.push(table),
            None => {}
        }
    }
    for Filter { place, matches, .. } in &mut filters {
        let of_same = |table: &&FilterPlace| (table.chain, table.priority) == (place.chain, place.priority);
        let first = tables.iter().rev().find(of_same).map(|table| table.handle);
        if place.chain != 0 || first.is_some_and(|first| first != place.handle & U32_TABLE) {
            *matches = None;
        }
    }
    filters
}

/// The bits of a u32 filter's handle that tell its table (`TC_U32_HTID`, include/uapi/linux/pkt_cls.h).
const U32_TABLE: u32 = 0xfff0_0000;

/// What stands in a list of filters.
enum Entry {
    Filter(Filter),
    /// One of u32's tables of filters.
    Table(FilterPlace),
}

fn as_filter(answer: &RouteNetlinkMessage) -> Option<Entry> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return None };
    let kind = kind_of(message)?;
    // Only a filter itself and a table have options, a priority's own entry has none.
    let options = Some(options_of(message)).filter(|options| !options.is_empty())?;
    let place = FilterPlace {
        chain: message.attributes.iter().find_map(chain_of).unwrap_or_default(),
        priority: u16::try_from(message.header.info >> 16).ok()?,
        protocol: u16::from_be((message.header.info & 0xffff) as u16),
        handle: u32::from(message.header.handle.major) << 16 | u32::from(message.header.handle.minor),
    };
    if kind != TcFilterU32::KIND {
        return Some(Entry::Filter(Filter { place, matches: None, verdict: Verdict::Foreign(kind), is_marked: false }));
    }
    let (mut matches, mut verdict, mut real, mut is_marked) = (None, Verdict::Pass, false, false);
    for option in options {
        match option {
            TcOption::U32(TcFilterU32Option::Selector(selector)) => {
                real = true;
                matches = Match::of(place.protocol, &selector.keys);
            }
            TcOption::U32(TcFilterU32Option::Action(actions)) => verdict = verdict_of(actions),
            TcOption::U32(TcFilterU32Option::ClassId(class)) => is_marked = *class == FILTER_CLASS,
            _ => {}
        }
    }
    Some(if real { Entry::Filter(Filter { place, matches, verdict, is_marked }) } else { Entry::Table(place) })
}

fn chain_of(attribute: &TcAttribute) -> Option<u32> {
    match attribute {
        TcAttribute::Chain(chain) => Some(*chain),
        _ => None,
    }
}

fn actions_of(answer: &RouteNetlinkMessage) -> Vec<&TcAction> {
    // A list comes under the number of its question (`tc_dump_action`, net/sched/act_api.c).
    let (RouteNetlinkMessage::GetTrafficAction(message) | RouteNetlinkMessage::NewTrafficAction(message)) = answer
    else {
        return Vec::new();
    };
    let lists = message.attributes.iter().filter_map(|attribute| match attribute {
        TcActionMessageAttribute::Actions(actions) => Some(actions),
        _ => None,
    });
    lists.flatten().collect()
}

fn target_of(action: &TcAction) -> Option<u32> {
    action.attributes.iter().find_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => options.iter().find_map(redirect_target),
        _ => None,
    })
}

/// The first action decides: a redirected packet never reaches a second one.
fn verdict_of(actions: &[TcAction]) -> Verdict {
    let Some(action) = actions.first() else { return Verdict::Pass };
    let (mut target, mut cookie, mut kind) = (None, Vec::new(), String::new());
    for attribute in &action.attributes {
        match attribute {
            TcActionAttribute::Kind(k) => kind.clone_from(k),
            TcActionAttribute::Cookie(bytes) => cookie.clone_from(bytes),
            TcActionAttribute::Options(options) => target = target.or(options.iter().find_map(redirect_target)),
            _ => {}
        }
    }
    match target {
        Some(to) => Verdict::Redirect { to, cookie },
        None => Verdict::Foreign(kind),
    }
}

fn redirect_target(option: &TcActionOption) -> Option<u32> {
    match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters))
            if parameters.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(parameters.ifindex)
        }
        _ => None,
    }
}

/// `TCA_OPTIONS` (include/uapi/linux/rtnetlink.h), for a qdisc whose options are a bare structure.
const TCA_OPTIONS: u16 = 2;

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64` and `TCA_TBF_BURST` (include/uapi/linux/pkt_sched.h).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;

/// Offsets in `struct tc_tbf_qopt`: `tc_ratespec` rate (12 bytes, of which the rate is the last four), the same for the
/// peak rate, then limit, buffer and mtu.
const QOPT_LEN: usize = 36;
const QOPT_LINKLAYER: usize = 1;
const QOPT_OVERHEAD: usize = 2;
const QOPT_MPU: usize = 6;
const QOPT_RATE: usize = 8;
const QOPT_LIMIT: usize = 24;
const QOPT_BUFFER: usize = 28;
const QOPT_MTU: usize = 32;
const QOPT_PEAK: usize = 20;

/// `TC_LINKLAYER_ETHERNET`: with it the kernel wants no rate table.
const LINKLAYER_ETHERNET: u8 = 1;

/// The bits that tell the link layer (include/uapi/linux/pkt_sched.h).
const TC_LINKLAYER_MASK: u8 = 0x0f;

/// The mark stands in `mtu`, which belongs to the peak rate: without one the kernel keeps it, gives it back and never uses
/// it (`tbf_change` and `tbf_dump`, net/sched/sch_tbf.c).
fn bucket_options(bucket: &TokenBucket, mark: u32) -> Vec<TcOption> {
    let mut qopt = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    for word in [rate, 0, 0, 0, bucket.limit, BucketSeen::of(bucket, mark).buffer, mark] {
        qopt.extend(word.to_ne_bytes());
    }
    let mut options = vec![(TCA_TBF_PARMS, qopt), (TCA_TBF_BURST, bucket.burst.to_ne_bytes().to_vec())];
    if bucket.rate > u64::from(rate) || rate == u32::MAX {
        options.push((TCA_TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()));
    }
    options.into_iter().map(|(kind, bytes)| TcOption::Other(DefaultNla::new(kind, bytes))).collect()
}

/// Reads the options of a tbf, which come as one unparsed attribute holding all of them.
fn bucket_seen(option: &TcOption) -> Option<BucketSeen> {
    let TcOption::Other(nest) = option else { return None };
    let mut value = vec![0; nest.value_len()];
    nest.emit_value(&mut value);
    let (mut seen, mut wide) = (None, None);
    for attribute in NlasIterator::new(&value).flatten() {
        let bytes = attribute.value();
        match attribute.kind() {
            TCA_TBF_PARMS if bytes.len() >= QOPT_LEN => {
                let word = |at: usize| bytes.get(at..at + 4).and_then(|w| w.try_into().ok()).map(u32::from_ne_bytes);
                let (rate, buffer, limit) = (word(QOPT_RATE)?, word(QOPT_BUFFER)?, word(QOPT_LIMIT)?);
                let half = |at: usize| bytes.get(at..at + 2).and_then(|h| h.try_into().ok()).map(u16::from_ne_bytes);
                let counting = Counting {
                    link_layer: bytes.get(QOPT_LINKLAYER)? & TC_LINKLAYER_MASK,
                    overhead: half(QOPT_OVERHEAD)?,
                    mpu: half(QOPT_MPU)?,
                    peak_rate: word(QOPT_PEAK)?,
                };
                let mark = if counting.peak_rate == 0 { word(QOPT_MTU)? } else { 0 };
                seen = Some(BucketSeen { rate: rate.into(), buffer, limit, mark, counting });
            }
            TCA_TBF_RATE64 => wide = bytes.try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    seen.map(|seen| BucketSeen { rate: wide.unwrap_or(seen.rate), ..seen })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{Emitable, Parseable};
    use proptest::prelude::*;

    /// Bytes as strace shows them.
    fn bytes(text: &str) -> Vec<u8> {
        text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    }

    /// `strace -e trace=sendmsg -e write=3 tc qdisc add dev v0 root handle 1: tbf rate 40gbit burst 50000 limit 81250`
    /// of iproute2 6.1.0, without the table of rates: the options as we have to write them.
    const WRITTEN_BY_TC: &str = "
        28 00 01 00                                      40 bytes of TCA_TBF_PARMS
        03 01 00 00 ff ff 00 00 ff ff ff ff              rate: cell_log, linklayer, …, and too great for 32 bits
        00 00 00 00 00 00 00 00 00 00 00 00              no peakrate
        62 3d 01 00                                      limit 81250
        ab 00 00 00                                      buffer
        00 00 00 00                                      mtu
        08 00 06 00 50 c3 00 00                          TCA_TBF_BURST 50000
        0c 00 04 00 00 f2 05 2a 01 00 00 00              TCA_TBF_RATE64 5000000000";

    fn without_comments(text: &str) -> Vec<u8> {
        let columns = text.lines().map(|line| line.get(..line.len().min(57)).unwrap_or_default());
        bytes(&columns.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_bucket_is_written_as_tc_writes_it() {
        let bucket = TokenBucket { rate: 5_000_000_000, burst: 50_000, limit: 81_250 };
        let options = bucket_options(&bucket, 0);
        let mut ours = vec![0; options.as_slice().buffer_len()];
        options.as_slice().emit(&mut ours);
        let mut theirs = without_comments(WRITTEN_BY_TC);
        // cell_log belongs to the table; cell_align is -1 for the same reason.
        (theirs[4], theirs[8], theirs[9]) = (0, 0, 0);
        // tc reckons the buffer in whole microseconds and a tick of 1/15.625 of one; the kernel takes TCA_TBF_BURST.
        theirs[32] = ours[32];
        assert_eq!(ours, theirs);
    }

    /// The kernel's answer (Linux 6.18) to `tc qdisc show` for it.
    const ANSWER: &str = "
        00 00 00 00 02 00 00 00                          tcm_family, tcm_ifindex 2
        00 00 01 00 ff ff ff ff 02 00 00 00              handle 1:, parent root, 2 references
        08 00 01 00 74 62 66 00                          TCA_KIND tbf
        38 00 02 00                                      TCA_OPTIONS
        28 00 01 00                                      TCA_TBF_PARMS
        00 01 00 00 00 00 00 00 ff ff ff ff
        00 00 00 00 00 00 00 00 00 00 00 00
        62 3d 01 00 9c 00 00 00 00 00 00 00              limit 81250, buffer 156 ticks, mtu
        0c 00 04 00 00 f2 05 2a 01 00 00 00              TCA_TBF_RATE64 5000000000
        05 00 0c 00 00 00 00 00                          TCA_HW_OFFLOAD";

    #[test]
    fn a_bucket_is_read_as_the_kernel_writes_it() {
        let message = TcMessage::parse(&without_comments(ANSWER)).unwrap();
        let qdisc = as_qdisc(&RouteNetlinkMessage::NewQueueDiscipline(message)).unwrap();
        let seen = BucketSeen::of(&TokenBucket { rate: 5_000_000_000, burst: 50_000, limit: 81_250 }, 0);
        assert_eq!(seen.buffer, 156);
        assert_eq!(qdisc, Qdisc { kind: "tbf".into(), major: 1, bucket: Some(seen), queue: None });
        assert!(seen.is(&TokenBucket { rate: 5_000_000_000, burst: 50_000, limit: 81_250 }));
    }

    #[test]
    fn another_rate_burst_or_limit_is_another_bucket() {
        let bucket = TokenBucket { rate: 1_250_000, burst: 50_000, limit: 81_250 };
        let seen = BucketSeen::of(&bucket, 7);
        assert!(seen.is(&bucket));
        for other in [
            TokenBucket { rate: 1_250_001, ..bucket },
            TokenBucket { burst: 50_010, ..bucket },
            TokenBucket { burst: 49_990, ..bucket },
            TokenBucket { limit: 81_251, ..bucket },
        ] {
            assert!(!seen.is(&other), "{other}");
        }
        assert_eq!(seen.bucket().to_string(), bucket.to_string());
        let odd = [
            (Counting { overhead: 1, ..Counting::OURS }, " overhead 1"),
            (Counting { mpu: 1000, ..Counting::OURS }, " mpu 1000"),
            (Counting { peak_rate: 1_250_000, ..Counting::OURS }, " peakrate 10Mbit"),
            (Counting { link_layer: 2, ..Counting::OURS }, " linklayer 2"),
        ];
        for (counting, said) in odd {
            assert!(!BucketSeen { counting, ..seen }.is(&bucket) && counting.to_string() == said, "{counting}");
        }
        assert!(BucketSeen { counting: Counting::default(), ..seen }.is(&bucket), "the reference names no link layer");
    }

    #[test]
    fn a_burst_that_may_have_wrapped_is_not_known_to_be_small() {
        let at_most = |rate: u64, burst: u32, most: u32| {
            let limit = u32::try_from(rate / 40 + u64::from(burst)).unwrap();
            BucketSeen::of(&TokenBucket { rate, burst, limit }, 1).burst_is_at_most(most)
        };
        assert!(at_most(1_250_000, 50_000, 50_000) && at_most(125_000_000, 1_250_000, 1_250_000));
        assert!(!at_most(1_250_000, 50_000, 49_999));
        // 343.6 MB are 275 s at 10 Mbit/s: this one reads back as 163 kB.
        assert!(!at_most(1_250_000, 343_760_000, 10_000_000));
    }

    fn subnets() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u32>(), 0u8..=32).prop_map(|(a, l)| IpNet::new(Ipv4Addr::from(a).into(), l).unwrap().trunc());
        let v6 = (any::<u128>(), 0u8..=128).prop_map(|(a, l)| IpNet::new(Ipv6Addr::from(a).into(), l).unwrap().trunc());
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn a_match_is_read_back_as_it_was_written(net in subnets(), source: bool) {
            let side = if source { Side::Source } else { Side::Destination };
            let written = Match::Subnet(side, net);
            prop_assert_eq!(Match::of(written.protocol(), &written.keys()), Some(written));
        }

        /// Against reckoning in 128 bits: the buffer is the burst's time in ticks, modulo 2³².
        #[test]
        fn a_buffer_is_the_bursts_time(rate in 1u64..20_000_000_000_000, burst: u32) {
            let seen = BucketSeen::of(&TokenBucket { rate, burst, limit: 0 }, 0);
            let ticks = u128::from(burst) * 1_000_000_000 / u128::from(rate) / u128::from(TICK_NS);
            let apart = ticks.wrapping_sub(seen.buffer.into()) & u128::from(u32::MAX);
            let apart = apart.min((1 << 32) - apart);
            prop_assert!(apart <= 1 + (ticks >> 29), "{} and {ticks}", seen.buffer);
        }

        #[test]
        fn selectors_of_others_never_panic(
            protocol in prop_oneof![Just(3u16), Just(0x800), Just(0x86dd), any::<u16>()],
            keys in prop::collection::vec((any::<u32>(), any::<u32>(), any::<i32>()), 0..6),
        ) {
            let keys: Vec<TcU32Key> = keys.into_iter().map(|(mask, val, off)| key(mask, val, off)).collect();
            let _ = Match::of(protocol, &keys);
        }
    }

    #[test]
    fn everything_is_a_match_of_its_own() {
        assert_eq!(Match::of(Match::All.protocol(), &Match::All.keys()), Some(Match::All));
        assert_eq!(Match::of(0x0806, &Match::All.keys()), None, "ARP alone is not everything");
    }
}
