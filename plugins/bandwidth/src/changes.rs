//! From what the kernel holds to what it shall hold, in steps that can each be taken back.
//!
//! First everything that limits is put in place, then what limits no more is taken away: so there is no moment without a
//! limit, and a step that fails is followed by the earlier ones backwards.

use std::fmt;

use common::cni::{Error, Result};
use common::link::device::Device;
use common::link::{Request, RouteSocket};
use common::tc::{
    BUCKET_MAJORS, BucketSeen, Cookie, Filter, FilterPlace, Hook, Match, QUEUE_MAJORS, Qdisc, TokenBucket, Verdict,
};
use nix::errno::Errno;

use crate::plan::{Lane, Mark, Owner, Rule, Shaping, Via, mac_text};
use crate::present::{Holder, Ifb, Present, bank_of, choose_bank, holder};

/// A link that a change is about, by name: an ifb has no index yet when the changes are planned.
pub type Name = String;

/// A token bucket and its owner's mark.
pub type Owned = (TokenBucket, u32);

/// A token bucket that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The major number of its handle.
    major: u16,
    /// The same of what its packets wait in; 0 for the kernel's own.
    queue: u16,
    /// Itself, and its mark.
    owned: Owned,
}

impl Held {
    /// The same place with another bucket.
    fn holding(self, owned: Owned) -> Held {
        Held { owned, ..self }
    }

    /// The same place with an empty queue.
    fn renewed(self) -> Held {
        let [first, second] = QUEUE_MAJORS;
        Held { queue: if self.queue == first { second } else { first }, ..self }
    }

    /// The other place.
    fn exchanged(self) -> Held {
        let [first, second] = BUCKET_MAJORS;
        Held { major: if self.major == first { second } else { first }, queue: 0, ..self }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes an ifb, down: a queueing discipline is put on a link that is down without waiting for its packets to leave.
    MakeIfb(Name, [u8; 6], u32),
    /// Sets an ifb up, with this alias and MTU.
    RaiseIfb(Name, String, u32),
    /// Replaces a link's alias, the first, by the second.
    Label(Name, String, String),
    /// Puts a bucket at the root of a link.
    AddBucket(Name, Owned),
    /// Changes the bucket at the root of a link from the first to the second: what waits goes on waiting.
    ChangeBucket(Name, Held, Owned),
    /// Changes it likewise and gives it an empty queue: what waits is dropped, and nothing else.
    RenewBucket(Name, Held, Owned),
    /// Changes it likewise, and leaves it with an empty queue of the kernel's own, as it had before: what waits and what comes
    /// meanwhile is dropped.
    RestoreBucket(Name, Held, Owned),
    /// Puts the second bucket in the place of the first, which is not ours: what waits is dropped, and what comes meanwhile.
    ExchangeBucket(Name, Held, Owned),
    /// Puts a bucket in the place of a qdisc that somebody else has put on an ifb of ours.
    Supplant(Name, Qdisc, Owned),
    /// Gives the link its hooks.
    AddHooks,
    /// Adds a filter at a priority: through an ifb with a cookie, or passing.
    AddFilter(Hook, u16, Match, Option<(Name, Cookie)>),
    /// Deletes a filter, or all of a priority.
    DropFilters(Hook, FilterPlace),
    /// Takes the bucket of this major number from the root of a link.
    DropBucket(Name, u16),
    /// Takes the hooks from the link.
    DropHooks,
    /// Deletes an ifb.
    DropIfb(Name),
    /// Deletes several ifbs, all at once.
    DropIfbs(Vec<Name>),
}

impl Change {
    /// What takes it back; `None` for what is not taken back: deletions come last and only of what is in nobody's way.
    ///
    /// A bucket always gets an empty queue, because what came in the meantime may be larger than the former one.
    fn inverse(&self) -> Option<Change> {
        match self {
            Change::MakeIfb(name, ..) => Some(Change::DropIfb(name.clone())),
            Change::Label(name, from, to) => Some(Change::Label(name.clone(), to.clone(), from.clone())),
            Change::AddBucket(name, _) => Some(Change::DropBucket(name.clone(), FIRST_MAJOR)),
            Change::ChangeBucket(name, held, to) => Some(back(name, *held, held.holding(*to))),
            Change::RenewBucket(name, held, to) => Some(back(name, *held, held.renewed().holding(*to))),
            Change::ExchangeBucket(name, held, to) => {
                Some(Change::ExchangeBucket(name.clone(), held.exchanged().holding(*to), held.owned))
            }
            Change::AddHooks => Some(Change::DropHooks),
            Change::AddFilter(hook, priority, ..) => Some(Change::DropFilters(*hook, FilterPlace::all_of(*priority))),
            _ => None,
        }
    }

    fn is_deletion(&self) -> bool {
        matches!(
            self,
            Change::DropFilters(..)
                | Change::DropBucket(..)
                | Change::DropHooks
                | Change::DropIfb(_)
                | Change::DropIfbs(_)
        )
    }
}

/// From what there is now to what there was.
fn back(name: &str, was: Held, now: Held) -> Change {
    let to = if was.queue == 0 { Change::RestoreBucket } else { Change::RenewBucket };
    to(name.to_owned(), now, was.owned)
}

/// Under which a bucket is put where there is none.
const FIRST_MAJOR: u16 = BUCKET_MAJORS[0];

/// Under which a bucket takes the place of a qdisc: the kernel would take its own for a change of that.
fn major_beside(qdisc: &Qdisc) -> u16 {
    let [first, second] = BUCKET_MAJORS;
    if qdisc.major == first { second } else { first }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::MakeIfb(name, mac, mtu) => write!(f, "make ifb {name} mac {} mtu {mtu}", mac_text(*mac)),
            Change::RaiseIfb(name, label, mtu) => write!(f, "set {name} up, alias \"{label}\", mtu {mtu}"),
            Change::Label(name, _, to) => write!(f, "set the alias of {name} to \"{to}\""),
            Change::AddBucket(name, (bucket, _)) => write!(f, "add {bucket} to {name}"),
            Change::ChangeBucket(name, Held { owned: (from, _), .. }, (to, _)) => {
                write!(f, "change {from} of {name} to {to}")
            }
            Change::RenewBucket(name, Held { owned: (from, _), .. }, (to, _)) => {
                write!(f, "change {from} of {name}, emptied, to {to}")
            }
            Change::RestoreBucket(name, Held { owned: (from, _), .. }, (to, _)) => {
                write!(f, "change {from} of {name} back to {to}")
            }
            Change::ExchangeBucket(name, Held { owned: (from, _), .. }, (to, _)) => {
                write!(f, "exchange {from} of {name} for {to}")
            }
            Change::Supplant(name, qdisc, (bucket, _)) => write!(f, "put {bucket} in the place of {qdisc} of {name}"),
            Change::AddHooks => f.write_str("add clsact"),
            Change::AddFilter(hook, priority, matches, Some((ifb, _))) => {
                write!(f, "add {hook} filter {priority:#x} {matches} redirect to {ifb}")
            }
            Change::AddFilter(hook, priority, matches, None) => {
                write!(f, "add {hook} filter {priority:#x} {matches} pass")
            }
            Change::DropFilters(hook, place) => write!(f, "delete {hook} {place}"),
            Change::DropBucket(name, major) => write!(f, "delete the tbf {major:x}: of {name}"),
            Change::DropHooks => f.write_str("delete the hooks"),
            Change::DropIfb(name) => write!(f, "delete ifb {name}"),
            Change::DropIfbs(names) => write!(f, "delete ifbs {}", names.join(", ")),
        }
    }
}

/// What turns `present` into `shaping`.
pub fn to_shape(shaping: &Shaping, present: &Present) -> Result<Vec<Change>> {
    if present.is_anothers(shaping.owner.mark) {
        return Err(anothers(&present.link));
    }
    let exchanged = exchanges_hooks(shaping, present);
    // Of hooks that are exchanged for others, nothing stays.
    let bare = exchanged.then(|| Present { hooks: None, filters: Vec::new(), ..present.clone() });
    let hooked = bare.as_ref().unwrap_or(present);
    let (mut changes, mut filtered, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut root = None;
    let hooks_are_ours = hooked.hooks.is_none() || hooked.hooks_are_ours(shaping.owner.mark);
    for lane in &shaping.lanes {
        match &lane.via {
            Via::Root => root = root_bucket(shaping, lane.bucket, present.root.as_ref())?,
            Via::Ifb { name, mac, rules } => {
                let there = present.ifb(name).filter(|ifb| is_usable(ifb, *mac, shaping));
                let owned = (lane.bucket, shaping.owner.mark.number(hooks_are_ours));
                changes.extend(match (there, present.ifb(name)) {
                    (Some(ours), _) => ifb(shaping, ours, owned),
                    (None, stale) => new_ifb(shaping, name, *mac, owned, stale, present),
                });
                require_hook(lane.hook, shaping, hooked)?;
                let cookie = shaping.owner.mark.cookie(hooks_are_ours);
                let (add, delete) = filters(shaping, lane.hook, rules, (name, cookie), there, hooked);
                filtered.extend(add);
                last.extend(delete);
            }
        }
    }
    if shaping.link.alias.is_empty() && !shaping.lanes.is_empty() {
        changes.push(Change::Label(shaping.link.name.clone(), String::new(), shaping.owner.label.clone()));
    }
    changes.extend(root);
    changes.extend(exchanged.then_some(Change::DropHooks));
    changes.extend((hooked.hooks.is_none() && !filtered.is_empty()).then_some(Change::AddHooks));
    changes.extend(filtered);
    last.extend(no_longer(shaping, present, &changes));
    Ok(changes.into_iter().chain(last).collect())
}

fn anothers(link: &Device) -> Error {
    let owner = if link.alias.is_empty() { "another attachment" } else { &link.alias };
    Error::Link { link: link.name.clone(), reason: format!("it carries the limits of {owner}; DEL that first, or GC") }
}

/// Whether the reference's `ingress`, which has no hook for what a link transmits, must give way to a `clsact`.
fn exchanges_hooks(shaping: &Shaping, present: &Present) -> bool {
    let transmits = shaping.lanes.iter().any(|lane| lane.hook == Hook::Transmit && lane.via != Via::Root);
    transmits
        && present.hooks.as_ref().is_some_and(|q| q.kind == "ingress")
        && hooks_may_go(present, shaping.owner.mark)
}

/// Ours, even if somebody has taken its alias away.
fn is_usable(ifb: &Ifb, mac: [u8; 6], shaping: &Shaping) -> bool {
    let device = &ifb.device;
    let has_mac = !device.alias.is_empty() || device.mac == Some(mac);
    shaping.owner.has(device) && has_mac
}

fn root_bucket(shaping: &Shaping, wanted: TokenBucket, root: Option<&Qdisc>) -> Result<Option<Change>> {
    let link = &shaping.link.name;
    let wanted = (wanted, shaping.owner.mark.number(false));
    let Some(qdisc) = root else { return Ok(Some(Change::AddBucket(link.clone(), wanted))) };
    match (holder(qdisc, shaping.owner.mark), qdisc.bucket) {
        (Holder::Ours, Some(seen)) if seen.is(&wanted.0) && qdisc.odd_queue().is_none() => Ok(None),
        (Holder::Ours | Holder::Unmarked | Holder::Reference, Some(_)) => Ok(another_bucket(link, qdisc, wanted)),
        _ => Err(Error::Link {
            link: link.to_owned(),
            reason: format!(
                "its root qdisc is {qdisc}, which is somebody else's; delete it (tc qdisc del dev {link} root) or set no \
                 limit here"
            ),
        }),
    }
}

/// Bytes of the largest packet that may wait in a bucket, as the kernel counts it: as much payload as any link may be set to
/// (`GSO_MAX_SIZE`, include/linux/netdevice.h), and 86 bytes of headers for each of the segments that it will be cut into:
/// Ethernet, IPv6, TCP with timestamps, in 48 bytes at the least of options and payload (`tcp_min_snd_mss`).
///
/// What the link itself is set to (`IFLA_GSO_MAX_SIZE`) says nothing: the maker of a packet goes by his own link, which is the
/// container's end or another container's, and what is too large for the way is cut behind the bucket (`validate_xmit_skb`).
const LARGEST_PACKET: u32 = GSO_MAX_SIZE + 86 * (GSO_MAX_SIZE / (48 - 12));
const GSO_MAX_SIZE: u32 = 8 * 65_535;

fn held(qdisc: &Qdisc, seen: &BucketSeen) -> Held {
    let queue = qdisc.queue.as_ref().map_or(0, |queue| queue.major);
    Held { major: qdisc.major, queue, owned: (seen.bucket(), seen.mark) }
}

/// From one bucket to another: in place. What waits goes on waiting, unless it may be larger than the new burst, or somebody
/// has put a queue of his own there. Such a packet would never find enough tokens, and nothing behind it would ever leave:
/// packets are cut to the burst when they come, not when they go (`tbf_enqueue`, net/sched/sch_tbf.c).
///
/// The reference's gives way in any case: it is in another place than ours.
fn another_bucket(name: &str, qdisc: &Qdisc, wanted: Owned) -> Option<Change> {
    let seen = qdisc.bucket?;
    let (TokenBucket { burst, .. }, _) = wanted;
    let holds_any = burst >= LARGEST_PACKET;
    let no_smaller = seen.counting.is_plain() && seen.burst_is_at_most(burst);
    let (name, held) = (name.to_owned(), held(qdisc, &seen));
    Some(if !BUCKET_MAJORS.contains(&qdisc.major) {
        Change::ExchangeBucket(name, held, wanted)
    } else if qdisc.odd_queue().is_none() && (holds_any || no_smaller) {
        Change::ChangeBucket(name, held, wanted)
    } else {
        Change::RenewBucket(name, held, wanted)
    })
}

/// An ifb that is ours, as it is to be.
fn ifb(shaping: &Shaping, there: &Ifb, wanted: Owned) -> Vec<Change> {
    let (name, mtu) = (&there.device.name, shaping.link.mtu);
    let mut changes = Vec::new();
    match &there.root {
        None => changes.push(Change::AddBucket(name.clone(), wanted)),
        Some(qdisc) => {
            let is_as_wanted = qdisc.bucket.is_some_and(|seen| seen.is(&wanted.0) && seen.mark == wanted.1);
            if !is_as_wanted || qdisc.odd_queue().is_some() {
                let supplant = || Change::Supplant(name.clone(), qdisc.clone(), wanted);
                changes.push(another_bucket(name, qdisc, wanted).unwrap_or_else(supplant));
            }
        }
    }
    if !there.device.up || there.device.mtu != mtu || there.device.alias != shaping.owner.label {
        changes.push(Change::RaiseIfb(name.clone(), shaping.owner.label.clone(), mtu));
    }
    changes
}

/// An ifb that is not there yet. What has its name goes before, and the filters that lead there before that: to be not limited
/// for a moment is less than to be swallowed. The reference's is made anew, because its hardware address is not known to stay.
fn new_ifb(
    shaping: &Shaping,
    name: &str,
    mac: [u8; 6],
    wanted: Owned,
    stale: Option<&Ifb>,
    present: &Present,
) -> Vec<Change> {
    let mut changes = Vec::new();
    if let Some(stale) = stale {
        let leading = present.filters.iter().filter(|(_, filter)| leads_to(filter, stale.device.index));
        changes.extend(leading.map(|(hook, filter)| Change::DropFilters(*hook, filter.place)));
        changes.push(Change::DropIfb(name.to_owned()));
    }
    changes.push(Change::MakeIfb(name.to_owned(), mac, shaping.link.mtu));
    changes.push(Change::AddBucket(name.to_owned(), wanted));
    changes.push(Change::RaiseIfb(name.to_owned(), shaping.owner.label.clone(), shaping.link.mtu));
    changes
}

fn leads_to(filter: &Filter, ifb: u32) -> bool {
    matches!(&filter.verdict, Verdict::Redirect { to, .. } if *to == ifb)
}

fn require_hook(hook: Hook, shaping: &Shaping, present: &Present) -> Result<()> {
    match &present.hooks {
        Some(qdisc) if hook == Hook::Transmit && qdisc.kind != "clsact" => Err(Error::Link {
            link: shaping.link.name.clone(),
            reason: format!(
                "it has a qdisc {}, which has no hook for what the link transmits; limiting some subnets only needs a \
                 clsact in its place",
                qdisc.kind
            ),
        }),
        _ => Ok(()),
    }
}

/// The filters of a hook: none if they are there already, else all of them in a free bank, then the old ones away.
fn filters(
    shaping: &Shaping,
    hook: Hook,
    rules: &[Rule],
    through: (&str, Cookie),
    ifb: Option<&Ifb>,
    present: &Present,
) -> (Vec<Change>, Vec<Change>) {
    let old = present.our_filters(hook, shaping.owner.mark);
    let ours = present.ours(shaping.owner.mark).filter(|(at, _)| *at == hook).map(|(_, filter)| filter);
    if ifb.is_some_and(|ifb| ours.map(|f| rule_of(f, ifb.device.index)).eq(in_order(rules).map(Some))) {
        return (Vec::new(), Vec::new());
    }
    let used = present.filters.iter().filter(|(at, _)| *at == hook).map(|(_, filter)| filter.place.priority);
    let (bank, free) = choose_bank(hook, used);
    // If all banks are filled, one must go before.
    let in_the_way = |at: &&FilterPlace| !free && bank_of(hook, at.priority) == Some(bank);
    let (before, after): (Vec<FilterPlace>, Vec<FilterPlace>) = old.iter().partition(in_the_way);
    let drop = |at: Vec<FilterPlace>| at.into_iter().map(|place| Change::DropFilters(hook, place)).collect();
    let (mut add, delete): (Vec<Change>, Vec<Change>) = (drop(before), drop(after));
    let (name, cookie) = through;
    add.extend(in_order(rules).map(|rule| {
        let through = rule.limited.then(|| (name.to_owned(), cookie));
        Change::AddFilter(hook, bank + place(&rule.matches), rule.matches, through)
    }));
    (add, delete)
}

/// The place in its bank: families first, the rest last.
fn place(matches: &Match) -> u16 {
    match matches {
        Match::Subnet(_, ipnet::IpNet::V4(_)) => 0,
        Match::Subnet(_, ipnet::IpNet::V6(_)) => 1,
        Match::All => 2,
    }
}

fn in_order(rules: &[Rule]) -> impl Iterator<Item = Rule> {
    (0..crate::present::BANK_PLACES).flat_map(|at| rules.iter().copied().filter(move |r| place(&r.matches) == at))
}

/// The rule that a filter of ours is, if it is one, leading to the ifb of this index.
pub fn rule_of(filter: &Filter, ifb: u32) -> Option<Rule> {
    let matches = filter.matches?;
    match &filter.verdict {
        Verdict::Pass => Some(Rule { matches, limited: false }),
        Verdict::Redirect { to, .. } if *to == ifb => Some(Rule { matches, limited: true }),
        _ => None,
    }
}

/// What an earlier ADD has made and this one doesn't want.
fn no_longer(shaping: &Shaping, present: &Present, changes: &[Change]) -> Vec<Change> {
    let link = &shaping.link.name;
    let in_use =
        |name: &str| shaping.lanes.iter().any(|lane| matches!(&lane.via, Via::Ifb { name: used, .. } if used == name));
    let mut last = Vec::new();
    for hook in crate::present::HOOKS {
        let led = |lane: &Lane| lane.hook == hook && lane.via != Via::Root;
        if !shaping.lanes.iter().any(led) {
            let stale = present.our_filters(hook, shaping.owner.mark);
            last.extend(stale.into_iter().map(|place| Change::DropFilters(hook, place)));
        }
    }
    let hooks_in_use = shaping.lanes.iter().any(|lane| lane.via != Via::Root);
    if !hooks_in_use && hooks_may_go(present, shaping.owner.mark) {
        last.push(Change::DropHooks);
    }
    let bucket_in_use = shaping.lanes.iter().any(|lane| lane.via == Via::Root);
    let bucket_is_ours = match present.root_holder(shaping.owner.mark) {
        Some(Holder::Ours | Holder::Unmarked) => true,
        Some(Holder::Reference) => present.has_references(),
        _ => false,
    };
    if let Some(root) = present.root.as_ref().filter(|_| !bucket_in_use && bucket_is_ours) {
        last.push(Change::DropBucket(link.clone(), root.major));
    }
    let owned = |ifb: &&Ifb| shaping.owner.has(&ifb.device) || present.is_references_ifb(ifb);
    let stale = present.ifbs.iter().filter(owned).filter(|ifb| !in_use(&ifb.device.name));
    last.extend(stale.map(|ifb| Change::DropIfb(ifb.device.name.clone())));
    // A filter's deletion may already stand in the changes before, or go with its hooks.
    let with_hooks = changes.contains(&Change::DropHooks);
    let done = |change: &Change| with_hooks && matches!(change, Change::DropFilters(..));
    last.retain(|change| !changes.contains(change) && !done(change));
    last
}

/// Whether we made the hooks and nobody else has put a filter there since.
fn hooks_may_go(present: &Present, mark: Mark) -> bool {
    let ours = present.ours(mark).count();
    present.hooks.is_some() && present.hooks_are_ours(mark) && ours == present.filters.len()
}

/// How much may be taken from a link that says by no mark whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// A bucket in our place that has lost its mark.
    pub unmarked: bool,
    /// The reference's bucket.
    pub references: bool,
    /// The alias that is the owner's label, also where nothing else of his is.
    pub label: bool,
}

/// What takes away everything of an owner on a link, and, where no other link needs them, the ifbs; what bears no mark, only as
/// far as it is trusted to be his, or where the link carries a filter of his. The alias goes last: by it the next DEL finds
/// what this one may have left.
pub fn to_nothing(owner: &Owner, present: &Present, trust: Trust, with_ifbs: bool) -> Vec<Change> {
    let mark = owner.mark;
    let mut changes = Vec::new();
    if hooks_may_go(present, mark) {
        changes.push(Change::DropHooks);
    } else {
        for hook in crate::present::HOOKS {
            let ours = present.our_filters(hook, mark);
            changes.extend(ours.into_iter().map(|place| Change::DropFilters(hook, place)));
        }
    }
    let name = &present.link.name;
    let root_is_ours = match present.root_holder(mark) {
        Some(Holder::Ours) => true,
        Some(Holder::Unmarked) => trust.unmarked || present.ours(mark).next().is_some(),
        Some(Holder::Reference) => trust.references || present.ours(mark).next().is_some(),
        _ => false,
    };
    if let Some(root) = present.root.as_ref().filter(|_| root_is_ours) {
        changes.push(Change::DropBucket(name.clone(), root.major));
    }
    let unlabel = present.link.alias == owner.label && (trust.label || !changes.is_empty());
    let ifbs: Vec<Name> = present.ifbs.iter().filter(|_| with_ifbs).map(|ifb| ifb.device.name.clone()).collect();
    changes.extend((!ifbs.is_empty()).then_some(Change::DropIfbs(ifbs)));
    changes.extend(unlabel.then(|| Change::Label(name.clone(), owner.label.clone(), String::new())));
    changes
}

/// What an ADD that has come to an end before its time has made.
#[derive(Debug, Default)]
pub struct Made {
    changes: Vec<Change>,
    ifbs: Vec<Device>,
}

impl Made {
    /// Takes it back, the last first.
    pub fn take_back(self, socket: &RouteSocket, Shaping { owner, link, .. }: &Shaping, error: &Error) {
        let mut undo: Vec<Change> = self.changes.iter().rev().filter_map(Change::inverse).collect();
        if undo.iter().any(|change| matches!(change, Change::DropFilters(..)))
            && let Ok(there) = Present::read(socket, link.clone(), Vec::new(), owner)
        {
            undo = of_ours_only(undo, &there, owner.mark);
        }
        let mut hands = Hands { socket, link, ifbs: self.ifbs };
        for second in hands.make(&undo).into_iter().filter_map(Result::err) {
            log::warn!("{second}, while taking back what was done before: {error}");
        }
    }
}

/// Leaves the filters of others that share a priority with what is to go: of that then each goes by its handle, which the kernel
/// has given.
fn of_ours_only(undo: Vec<Change>, there: &Present, mark: Mark) -> Vec<Change> {
    let mut apart: Vec<Change> = Vec::new();
    for change in undo {
        let Change::DropFilters(hook, all) = change else {
            apart.push(change);
            continue;
        };
        let ours = there.our_filters(hook, mark).into_iter().filter(|place| place.priority == all.priority);
        apart.extend(ours.map(|place| Change::DropFilters(hook, place)));
    }
    apart.dedup();
    apart
}

/// Makes the changes. If one fails, those that were made stay in `made`: whoever is only overtaken by another call goes on from there.
pub fn make(socket: &RouteSocket, present: &Present, changes: &[Change], made: &mut Made) -> Result<()> {
    let mut hands = Hands::new(socket, present);
    let mut done = Vec::new();
    for together in together(changes) {
        let mut failed = None;
        for (change, outcome) in together.iter().zip(hands.make(together)) {
            match outcome {
                Ok(()) => done.push(change),
                Err(error) => {
                    // It may have been made; of an ifb that was seen.
                    if matches!(error, Error::Unanswered { .. }) && !matches!(change, Change::MakeIfb(..)) {
                        done.push(change);
                    }
                    failed = failed.or(Some(error));
                }
            }
        }
        let Some(error) = failed else { continue };
        made.changes.extend(done.into_iter().cloned());
        made.ifbs = hands.ifbs;
        return Err(error);
    }
    Ok(())
}

/// Makes all the changes, whichever fail.
pub fn make_all(socket: &RouteSocket, present: &Present, changes: &[Change]) -> Vec<Error> {
    let mut hands = Hands::new(socket, present);
    hands.make(changes).into_iter().filter_map(Result::err).collect()
}

/// The changes in groups that are sent together, so that a process that is killed leaves either all of a group or nothing:
/// never hooks without a filter, by which alone they are known to be ours. An ifb is made by itself, because the others
/// need its index; and what limits no more goes only when all that limits now has been put in place.
fn together(changes: &[Change]) -> impl Iterator<Item = &[Change]> {
    let is_ifb = |change: &Change| matches!(change, Change::MakeIfb(..));
    changes.chunk_by(move |a, b| !is_ifb(a) && !is_ifb(b) && (a.is_deletion() || !b.is_deletion()))
}

/// What the changes are made with: a socket, and the devices by name.
struct Hands<'a> {
    socket: &'a RouteSocket,
    link: &'a Device,
    ifbs: Vec<Device>,
}

impl<'a> Hands<'a> {
    fn new(socket: &'a RouteSocket, present: &'a Present) -> Hands<'a> {
        let ifbs = present.ifbs.iter().map(|ifb| ifb.device.clone()).collect();
        Hands { socket, link: &present.link, ifbs }
    }

    fn device(&self, name: &str) -> Result<&Device> {
        let mut all = self.ifbs.iter().rev().chain([self.link]);
        let missing = || Error::Link { link: name.to_owned(), reason: "it has gone".into() };
        all.find(|device| device.name == name).ok_or_else(missing)
    }

    /// Makes changes that go together; nothing is sent if one of them can't be.
    fn make(&mut self, together: &[Change]) -> Vec<Result<()>> {
        together.iter().for_each(|change| log::debug!("{change}"));
        let of_each = match together.iter().map(|change| self.requests(change)).collect::<Result<Vec<Vec<Request>>>>() {
            Ok(requests) => requests,
            Err(error) => return vec![Err(error)],
        };
        let counts: Vec<usize> = of_each.iter().map(Vec::len).collect();
        let requests: Vec<Request> = of_each.into_iter().flatten().collect();
        let mut outcomes = self.socket.change_all(&requests).into_iter();
        let whole = |(change, count): (&Change, usize)| {
            let outcome = outcomes.by_ref().take(count).reduce(|all, one| all.and(one)).unwrap_or(Ok(None));
            self.note(change, outcome)
        };
        together.iter().zip(counts).map(whole).collect()
    }

    fn requests(&self, change: &Change) -> Result<Vec<Request>> {
        let one = match change {
            Change::MakeIfb(name, mac, mtu) => Request::make_ifb(name, *mac, *mtu),
            Change::RaiseIfb(name, label, mtu) => Request::set_up(self.device(name)?, label, *mtu),
            Change::Label(name, _, alias) => Request::set_alias(self.device(name)?, alias),
            Change::AddBucket(name, (bucket, mark)) => {
                Request::add_bucket(self.device(name)?, FIRST_MAJOR, bucket, *mark)
            }
            Change::ChangeBucket(name, held, (bucket, mark)) => {
                Request::change_bucket(self.device(name)?, held.major, bucket, *mark)
            }
            Change::RenewBucket(name, held, (bucket, mark)) => {
                let device = self.device(name)?;
                // The queue goes last: what has come before may be as large as the former burst.
                return Ok(vec![
                    Request::change_bucket(device, held.major, bucket, *mark),
                    Request::renew_queue(device, held.major, held.renewed().queue, bucket.limit),
                ]);
            }
            Change::RestoreBucket(name, held, (bucket, mark)) => {
                let (device, queue) = (self.device(name)?, held.renewed().queue);
                return Ok(vec![
                    Request::renew_queue(device, held.major, queue, bucket.limit),
                    Request::delete_queue(device, held.major, queue),
                    Request::change_bucket(device, held.major, bucket, *mark),
                ]);
            }
            Change::ExchangeBucket(name, held, (bucket, mark)) => {
                Request::exchange_bucket(self.device(name)?, held.exchanged().major, bucket, *mark)
            }
            Change::AddHooks => Request::add_hooks(self.link),
            Change::Supplant(name, qdisc, (bucket, mark)) => {
                Request::exchange_bucket(self.device(name)?, major_beside(qdisc), bucket, *mark)
            }
            Change::AddFilter(hook, priority, matches, through) => {
                let to = match through {
                    Some((ifb, cookie)) => Some((self.device(ifb)?.index, *cookie)),
                    None => None,
                };
                Request::add_filter(self.link, *hook, *priority, *matches, to)
            }
            Change::DropFilters(hook, place) => Request::delete_filters(self.link, *hook, *place),
            Change::DropBucket(name, major) => Request::delete_bucket(self.device(name)?, *major),
            Change::DropHooks => Request::delete_hooks(self.link),
            Change::DropIfb(name) => return self.deletion(std::slice::from_ref(name)),
            Change::DropIfbs(names) => return self.deletion(names),
        };
        Ok(vec![one])
    }

    fn deletion(&self, ifbs: &[Name]) -> Result<Vec<Request>> {
        let devices = ifbs.iter().map(|name| self.device(name).cloned()).collect::<Result<Vec<Device>>>()?;
        Ok(Request::delete_links(&devices))
    }

    /// Keeps in mind which ifbs there are now.
    fn note(&mut self, change: &Change, outcome: Result<Option<Device>>) -> Result<()> {
        match change {
            Change::MakeIfb(name, mac, _) => {
                let made = match outcome {
                    Ok(Some(device)) => device,
                    Ok(None) => {
                        let missing = || Error::kernel("add", format!("link {name}"), Errno::ENODEV);
                        self.socket.device(name)?.ok_or_else(missing)?
                    }
                    // Whether it was made can be seen.
                    Err(error @ Error::Unanswered { .. }) => {
                        self.socket.device(name)?.filter(|device| device.mac == Some(*mac)).ok_or(error)?
                    }
                    Err(error) => return Err(just_taken(error, name)),
                };
                self.ifbs.push(made);
            }
            Change::DropIfb(name) => {
                outcome?;
                self.ifbs.retain(|device| device.name != *name);
            }
            Change::AddFilter(..) => drop(outcome.map_err(|error| shares_filters(overtaken(error), self.link))?),
            Change::AddBucket(..) | Change::AddHooks => drop(outcome.map_err(overtaken)?),
            Change::ChangeBucket(..) | Change::RenewBucket(..) => drop(outcome.map_err(withdrawn)?),
            _ => drop(outcome?),
        }
        Ok(())
    }
}

/// The name was free a moment ago: another interface of the container is being added at the same time, or the same one.
fn just_taken(error: Error, name: &str) -> Error {
    match error {
        Error::Kernel { errno: Errno::EEXIST, .. } => {
            Error::TryAgain { what: format!("link {name} is just being made by another call") }
        }
        error => error,
    }
}

/// Nothing was there a moment ago: another ADD of the same attachment has gone on with what this one has begun. To take that
/// away would take it from the other. Or it has taken away the ifb that this one relies on.
fn overtaken(error: Error) -> Error {
    match error {
        Error::Kernel { errno: Errno::EEXIST | Errno::ENODEV, .. } => Error::TryAgain { what: error.to_string() },
        error => error,
    }
}

/// It was there a moment ago: another ADD of the same attachment, which wants no limit in this place, has taken it away.
fn withdrawn(error: Error) -> Error {
    match error {
        Error::Kernel { errno: Errno::ENOENT | Errno::ENODEV, .. } => Error::TryAgain { what: error.to_string() },
        error => error,
    }
}

/// No filter of a single link can be added where several share them (`tcf_block_shared`, net/sched/cls_api.c).
fn shares_filters(error: Error, link: &Device) -> Error {
    match error {
        Error::Kernel { errno: Errno::EOPNOTSUPP, .. } => Error::Link {
            link: link.name.clone(),
            reason: format!(
                "its hooks take their filters from a block that is shared (ingress_block, egress_block), to which none for this \
                 link alone can be added; give it hooks of its own (tc qdisc del dev {} clsact)",
                link.name
            ),
        },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use common::Attachment;
    use common::tc::Queue;
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Burst, Config, Limit, Scope};
    use crate::plan::{self, Facts};
    use crate::present::HOOKS;
    use crate::state::differences;

    /// A kernel of the mind: what the changes would do to what is there.
    #[derive(Clone, Debug, PartialEq)]
    struct Kernel {
        present: Present,
        next_index: u32,
        /// How many filters there were.
        made: u32,
    }

    impl Kernel {
        fn new(hooks: Option<&str>) -> Kernel {
            let link = Device {
                index: 2,
                name: "veth".into(),
                kind: "veth".into(),
                mtu: 1500,
                header: 14,
                ..Device::default()
            };
            let hooks = hooks.map(|kind| Qdisc { kind: kind.into(), major: 0xffff, bucket: None, queue: None });
            let foreign = Filter {
                place: FilterPlace::all_of(7),
                matches: None,
                verdict: Verdict::Foreign("bpf".into()),
                is_marked: false,
            };
            let filters = hooks.iter().map(|_| (Hook::Receive, foreign.clone())).collect();
            Kernel { present: Present { link, hooks, filters, ..Present::default() }, next_index: 10, made: 0 }
        }

        fn root(&mut self, name: &str) -> &mut Option<Qdisc> {
            if name == self.present.link.name {
                return &mut self.present.root;
            }
            &mut self.present.ifbs.iter_mut().find(|ifb| ifb.device.name == name).unwrap().root
        }

        fn alias(&mut self, name: &str) -> &mut String {
            if name == self.present.link.name {
                return &mut self.present.link.alias;
            }
            &mut self.present.ifbs.iter_mut().find(|ifb| ifb.device.name == name).unwrap().device.alias
        }

        fn make(&mut self, change: &Change) {
            match change {
                Change::MakeIfb(name, mac, mtu) => {
                    assert!(self.present.ifb(name).is_none(), "EEXIST");
                    self.next_index += 1;
                    let device = Device { index: self.next_index, kind: "ifb".into(), mtu: *mtu, ..Device::default() };
                    let device = Device { name: name.clone(), mac: Some(*mac), ..device };
                    self.present.ifbs.push(Ifb { device, root: None });
                }
                Change::RaiseIfb(name, label, mtu) => {
                    let device = &mut self.present.ifbs.iter_mut().find(|ifb| ifb.device.name == *name).unwrap().device;
                    (device.up, device.mtu) = (true, *mtu);
                    device.alias.clone_from(label);
                }
                Change::Label(name, from, to) => {
                    assert_eq!(self.alias(name), from);
                    self.alias(name).clone_from(to);
                }
                Change::AddBucket(name, bucket) => {
                    assert_eq!(self.root(name).replace(tbf(FIRST_MAJOR, bucket)), None);
                }
                Change::ChangeBucket(name, held, to)
                | Change::RenewBucket(name, held, to)
                | Change::RestoreBucket(name, held, to)
                | Change::ExchangeBucket(name, held, to) => self.change_bucket(change, name, *held, to),
                Change::Supplant(name, qdisc, to) => {
                    let before = self.root(name).replace(tbf(major_beside(qdisc), to)).unwrap();
                    assert!(before == *qdisc && before.bucket.is_none());
                }
                Change::AddHooks => {
                    let clsact = Qdisc { kind: "clsact".into(), major: 0xffff, bucket: None, queue: None };
                    assert_eq!(self.present.hooks.replace(clsact), None);
                }
                Change::AddFilter(hook, priority, matches, through) => {
                    assert!(self.present.hooks.is_some(), "no hooks");
                    let verdict = match through {
                        None => Verdict::Pass,
                        Some((ifb, cookie)) => {
                            let to = self.present.ifb(ifb).unwrap().device.index;
                            Verdict::Redirect { to, cookie: cookie.to_vec() }
                        }
                    };
                    self.made += 1;
                    let place = FilterPlace { handle: self.made, ..FilterPlace::all_of(*priority) };
                    let filter = Filter { place, matches: Some(*matches), verdict, is_marked: true };
                    self.present.filters.push((*hook, filter));
                    self.present.filters.sort_by_key(|(hook, filter)| (*hook, filter.place.priority));
                }
                Change::DropFilters(hook, which) => {
                    let is_meant = |place: FilterPlace| {
                        (place.chain, place.priority) == (which.chain, which.priority)
                            && (which.handle == 0 || which.handle == place.handle)
                    };
                    self.present.filters.retain(|(at, filter)| at != hook || !is_meant(filter.place));
                }
                Change::DropBucket(name, major) => {
                    assert!(self.root(name).take().is_none_or(|qdisc| qdisc.major == *major));
                }
                Change::DropHooks => {
                    self.present.hooks = None;
                    self.present.filters.clear();
                }
                Change::DropIfb(name) => self.present.ifbs.retain(|ifb| ifb.device.name != *name),
                Change::DropIfbs(names) => self.present.ifbs.retain(|ifb| !names.contains(&ifb.device.name)),
            }
        }

        fn change_bucket(&mut self, change: &Change, name: &str, held: Held, to: &Owned) {
            let place = match change {
                Change::ChangeBucket(..) => held,
                Change::RenewBucket(..) => held.renewed(),
                Change::RestoreBucket(..) => Held { queue: 0, ..held },
                _ => held.exchanged(),
            };
            let mut after = tbf(place.major, to);
            let bfifo = |major| Queue { kind: "bfifo".into(), major, limit: Some(to.0.limit) };
            after.queue = Some(place.queue).filter(|major| *major != 0).map(bfifo);
            let before = self.root(name).replace(after).unwrap();
            let ((from, _), (to, _)) = (held.owned, to);
            assert!(before.bucket.unwrap().is(&from) && before.major == held.major, "{before} is not {from}");
            assert_eq!(before.queue.map_or(0, |queue| queue.major), held.queue);
            // What waits is no larger than the former burst, and must not be larger than the new one.
            let stalls = to.burst < from.burst.min(LARGEST_PACKET);
            assert!(!matches!(change, Change::ChangeBucket(..)) || !stalls, "{change} would stall");
        }

        /// The rate in bytes per second that a packet with this remote address gets; `None` for no limit.
        fn rate(&self, hook: Hook, remote: IpAddr) -> Option<u64> {
            let here = self.present.filters.iter().filter(|(at, _)| *at == hook).map(|(_, filter)| filter);
            let takes = |filter: &&Filter| match filter.matches {
                Some(Match::All) => true,
                Some(Match::Subnet(_, net)) => net.contains(&remote),
                None => false,
            };
            let bucket = match here.clone().find(takes).map(|filter| &filter.verdict) {
                Some(Verdict::Redirect { to, .. }) => {
                    let ifb = self.present.ifbs.iter().find(|ifb| ifb.device.index == *to);
                    let ifb = ifb.filter(|ifb| ifb.device.up).expect("a redirect to nowhere swallows packets");
                    ifb.root.as_ref()
                }
                Some(_) => None,
                None if hook == Hook::Transmit => self.present.root.as_ref(),
                None => None,
            };
            bucket.and_then(|qdisc| qdisc.bucket).map(|seen| seen.rate)
        }

        fn shape(&self, config: &Config) -> Shaping {
            let named = self.present.ifbs.iter().map(|ifb| ifb.device.clone()).collect();
            let link = self.present.link.clone();
            let led = |to: u32| self.present.filters.iter().any(|(_, filter)| leads_to(filter, to));
            let unlabelled = self.present.ifbs.iter().filter(|ifb| ifb.device.alias.is_empty());
            let serving = unlabelled.map(|ifb| ifb.device.index).filter(|index| led(*index)).collect();
            let facts = Facts { link, named, serving, in_container: config.in_container, ..Facts::default() };
            plan::plan(config, &Attachment::new("net", "c1", "eth0"), facts).unwrap()
        }
    }

    fn tbf(major: u16, (bucket, mark): &Owned) -> Qdisc {
        Qdisc { kind: "tbf".into(), major, bucket: Some(BucketSeen::of(bucket, *mark)), queue: None }
    }

    fn removal(present: &Present) -> Vec<Change> {
        let trust = Trust { unmarked: true, references: true, label: true };
        to_nothing(&Owner::of(&Attachment::new("net", "c1", "eth0")), present, trust, true)
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn configs() -> impl Strategy<Value = Config> {
        let limit = || {
            prop_oneof![Just(None), Just(Some(1_000u64)), Just(Some(1_250_000)), Just(Some(12_500_000_000))]
                .prop_map(|rate| rate.map(|rate| Limit { rate, burst: Burst::Chosen, written: Default::default() }))
        };
        let nets = || {
            prop::sample::subsequence(
                vec![net("10.0.0.0/8"), net("10.1.0.0/16"), net("fd00::/8"), net("0.0.0.0/0")],
                1..=4,
            )
        };
        let scope = prop_oneof![Just(Scope::All), nets().prop_map(Scope::Except), nets().prop_map(Scope::Only)];
        (limit(), limit(), scope).prop_map(|(ingress, egress, scope)| Config {
            ingress,
            egress,
            scope,
            latency: Duration::from_millis(25),
            in_container: false,
        })
    }

    fn remotes() -> [IpAddr; 4] {
        ["10.1.2.3", "10.200.0.1", "192.0.2.1", "fd00::1"].map(|address| address.parse().unwrap())
    }

    /// The state with the ifbs' indices left out: making one again gives it another.
    fn comparable(kernel: &Kernel) -> Present {
        let mut present = kernel.present.clone();
        let names: Vec<(u32, String)> =
            present.ifbs.iter().map(|ifb| (ifb.device.index, ifb.device.name.clone())).collect();
        for (_, filter) in &mut present.filters {
            filter.place.handle = 0;
            if let Verdict::Redirect { to, .. } = &mut filter.verdict {
                *to = names.iter().position(|(index, _)| index == to).unwrap() as u32;
            }
        }
        present.ifbs.iter_mut().for_each(|ifb| ifb.device.index = 0);
        present.ifbs.sort_by(|a, b| a.device.name.cmp(&b.device.name));
        present
    }

    proptest! {
        #[test]
        fn any_configuration_follows_any_other_without_a_moment_of_no_limit(
            configs in prop::collection::vec(configs(), 1..5),
            hooks in prop_oneof![Just(None), Just(Some("clsact"))],
        ) {
            let mut kernel = Kernel::new(hooks);
            let start = kernel.clone();
            for config in configs {
                let before = kernel.clone();
                let shaping = kernel.shape(&config);
                let changes = to_shape(&shaping, &kernel.present).unwrap();
                let mut after = kernel.clone();
                changes.iter().for_each(|change| after.make(change));
                for (done, change) in changes.iter().enumerate() {
                    kernel.make(change);
                    for (hook, remote) in HOOKS.into_iter().flat_map(|hook| remotes().map(|remote| (hook, remote))) {
                        let (old, new) = (before.rate(hook, remote), after.rate(hook, remote));
                        let now = kernel.rate(hook, remote);
                        prop_assert!(old.or(new).is_some() || now.is_none(), "{:?} of {} is exempt", hook, remote);
                        let most = old.zip(new).map(|(old, new)| old.max(new));
                        prop_assert!(most.is_none() || now.is_some_and(|now| Some(now) <= most),
                            "{:?} of {} has {:?} between {:?} and {:?} after {} of {:?}", hook, remote, now, old, new, done + 1, changes);
                    }
                }
                prop_assert_eq!(differences(&shaping, &kernel.present), Vec::new());
                let needed = shaping.lanes.iter().filter(|lane| lane.via != Via::Root).count();
                prop_assert_eq!(kernel.present.ifbs.len(), needed, "an ifb that nobody needs: {:?}", changes);
                prop_assert_eq!(to_shape(&kernel.shape(&config), &kernel.present).unwrap(), Vec::new());
            }
            removal(&kernel.present).iter().for_each(|change| kernel.make(change));
            prop_assert_eq!(kernel.present, start.present);
        }

        #[test]
        fn whatever_step_fails_what_was_done_is_taken_back(
            from in configs(), to in configs(), failing in 0usize..20, hooks in prop_oneof![Just(None), Just(Some("clsact"))],
        ) {
            let mut kernel = Kernel::new(hooks);
            for change in to_shape(&kernel.shape(&from), &kernel.present).unwrap() {
                kernel.make(&change);
            }
            let before = comparable(&kernel);
            let changes = to_shape(&kernel.shape(&to), &kernel.present).unwrap();
            // A deletion of what nobody uses any more has nothing before it that would have to be taken back.
            let constructive = changes.iter().take_while(|change| !change.is_deletion()).count();
            let done = &changes[..failing.min(constructive)];
            done.iter().for_each(|change| kernel.make(change));
            done.iter().rev().filter_map(Change::inverse).for_each(|undo| kernel.make(&undo));
            let mut after = comparable(&kernel);
            // The read-back knows a burst to a few bytes.
            prop_assert_eq!(after.root.is_some(), before.root.is_some());
            after.root.clone_from(&before.root);
            for (ifb, old) in after.ifbs.iter_mut().zip(&before.ifbs) {
                ifb.root.clone_from(&old.root);
            }
            prop_assert_eq!(after, before);
        }
    }

    #[test]
    fn a_bucket_gives_way_only_where_what_waits_may_be_larger_than_its_successor() {
        let bucket = |rate: u64| TokenBucket { rate, burst: (rate / 100).max(3028) as u32, limit: (rate / 25) as u32 };
        let stays = |from: u64, to: u64| {
            let seen = BucketSeen::of(&bucket(from), 7);
            let qdisc = Qdisc { kind: "tbf".into(), major: FIRST_MAJOR, bucket: Some(seen), queue: None };
            matches!(another_bucket("veth", &qdisc, (bucket(to), 7)), Some(Change::ChangeBucket(..)))
        };
        assert!(stays(1_250_000, 2_500_000) && stays(1_250_000, 1_250_000));
        assert!(!stays(125_000_000, 1_250_000) && !stays(2_500_000, 1_250_000));
        assert!(!stays(1_250_000_000, 125_000_000), "a packet of BIG TCP may be larger than 1.25 MB");
        assert!(stays(1_250_000_000, 200_000_000), "no packet is larger than 2 MB");
    }

    #[test]
    fn hooks_and_their_first_filter_go_together_and_what_limits_no_more_goes_last() {
        let mut kernel = Kernel::new(None);
        let limit = || Some(Limit { rate: 1_000_000, burst: Burst::Chosen, written: Default::default() });
        let config = |scope| Config {
            ingress: limit(),
            egress: limit(),
            scope,
            latency: Duration::from_millis(25),
            in_container: false,
        };
        let changes = to_shape(&kernel.shape(&config(Scope::All)), &kernel.present).unwrap();
        let groups: Vec<&[Change]> = together(&changes).collect();
        assert_eq!(groups.len(), 2, "{groups:?}");
        assert!(groups[0].len() == 1 && groups[1].contains(&Change::AddHooks), "{groups:?}");
        assert!(matches!(groups[1].last(), Some(Change::AddFilter(..))), "{groups:?}");
        changes.iter().for_each(|change| kernel.make(change));
        let changes =
            to_shape(&kernel.shape(&config(Scope::Except(vec![net("10.0.0.0/8")]))), &kernel.present).unwrap();
        let groups: Vec<&[Change]> = together(&changes).collect();
        let deletions = |group: &[Change]| group.iter().filter(|change| change.is_deletion()).count();
        let (last, before) = groups.split_last().unwrap();
        assert!(before.iter().all(|group| deletions(group) == 0) && deletions(last) == last.len(), "{groups:?}");
    }

    #[test]
    fn hooks_go_with_their_maker_even_if_somebody_has_deleted_the_filters() {
        let config = Config {
            ingress: None,
            egress: Some(Limit { rate: 1_000_000, burst: Burst::Chosen, written: Default::default() }),
            scope: Scope::All,
            latency: Duration::from_millis(25),
            in_container: false,
        };
        for somebodys in [None, Some("clsact")] {
            let mut kernel = Kernel::new(somebodys);
            kernel.present.filters.clear();
            let start = kernel.clone();
            for repaired in [false, true] {
                let add = |kernel: &mut Kernel| {
                    let changes = to_shape(&kernel.shape(&config), &kernel.present).unwrap();
                    changes.iter().for_each(|change| kernel.make(change));
                };
                add(&mut kernel);
                kernel.present.filters.clear();
                if repaired {
                    add(&mut kernel);
                }
                removal(&kernel.present).iter().for_each(|change| kernel.make(change));
                assert_eq!(kernel.present, start.present, "{somebodys:?} {repaired}");
            }
        }
    }

    #[test]
    fn an_ifb_whose_alias_was_taken_away_is_labelled_again_and_keeps_its_queue() {
        let mut kernel = Kernel::new(None);
        let config = Config {
            ingress: None,
            egress: Some(Limit { rate: 1_000_000, burst: Burst::Chosen, written: Default::default() }),
            scope: Scope::All,
            latency: Duration::from_millis(25),
            in_container: false,
        };
        for change in to_shape(&kernel.shape(&config), &kernel.present).unwrap() {
            kernel.make(&change);
        }
        kernel.present.ifbs[0].device.alias.clear();
        let changes = to_shape(&kernel.shape(&config), &kernel.present).unwrap();
        assert!(matches!(changes.as_slice(), [Change::RaiseIfb(..)]), "{changes:?}");
        // Not one that has another hardware address.
        kernel.present.ifbs[0].device.mac = Some([2; 6]);
        let changes = to_shape(&kernel.shape(&config), &kernel.present).unwrap();
        assert!(changes.iter().any(|change| matches!(change, Change::MakeIfb(..))), "{changes:?}");
    }

    #[test]
    fn the_references_hooks_give_way_where_what_the_link_transmits_needs_some() {
        let mut kernel = Kernel::new(Some("ingress"));
        kernel.present.filters.clear();
        let device = Device {
            index: 9,
            name: plan::ifb_names(&Attachment::new("net", "c1", "eth0"), Hook::Receive)[0].clone(),
            kind: "ifb".into(),
            up: true,
            mtu: 1500,
            ..Device::default()
        };
        kernel.present.ifbs.push(Ifb { device, root: None });
        let references = Filter {
            place: FilterPlace::all_of(1),
            matches: Some(Match::All),
            verdict: Verdict::Redirect { to: 9, cookie: Vec::new() },
            is_marked: false,
        };
        kernel.present.filters.push((Hook::Receive, references));
        let config = Config {
            ingress: Some(Limit { rate: 1_000_000, burst: Burst::Chosen, written: Default::default() }),
            egress: Some(Limit { rate: 1_000_000, burst: Burst::Chosen, written: Default::default() }),
            scope: Scope::Except(vec![net("10.0.0.0/8")]),
            latency: Duration::from_millis(25),
            in_container: false,
        };
        let changes = to_shape(&kernel.shape(&config), &kernel.present).unwrap();
        let exchange = together(&changes).find(|group| group.contains(&Change::DropHooks)).unwrap();
        assert!(exchange.contains(&Change::AddHooks), "both in one datagram: {exchange:?}");
        changes.iter().for_each(|change| kernel.make(change));
        assert_eq!(kernel.present.hooks.as_ref().unwrap().kind, "clsact");
        assert_eq!(differences(&kernel.shape(&config), &kernel.present), Vec::new());
    }

    #[test]
    fn an_interrupted_change_of_subnets_is_completed() {
        let mut kernel = Kernel::new(None);
        let limit = || Some(Limit { rate: 1_000_000, burst: Burst::Chosen, written: Default::default() });
        let config = |scope| Config {
            ingress: limit(),
            egress: limit(),
            scope,
            latency: Duration::from_millis(25),
            in_container: false,
        };
        let of = [Scope::All, Scope::Except(vec![net("10.0.0.0/8")]), Scope::Only(vec![net("fd00::/8")])].map(config);
        for config in of.iter().cycle().take(9) {
            let changes = to_shape(&kernel.shape(config), &kernel.present).unwrap();
            // Killed before the deletions: every bank is full.
            changes.iter().filter(|change| !change.is_deletion()).for_each(|change| kernel.make(change));
            let rest = to_shape(&kernel.shape(config), &kernel.present).unwrap();
            rest.iter().for_each(|change| kernel.make(change));
            assert_eq!(to_shape(&kernel.shape(config), &kernel.present).unwrap(), [], "{config:?}");
        }
    }
}
