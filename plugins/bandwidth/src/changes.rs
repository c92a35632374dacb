//! From what the kernel holds to what it shall hold, in steps that can each be taken back.
//!
//! First everything that limits is put in place, then what limits no more is taken away: so there is no moment without a
//! limit, and a step that fails is followed by the earlier ones backwards.

use std::fmt;

use common::cni::{Error, Result};
use common::link::RouteSocket;
use common::link::device::Device;
use common::tc::{BUCKET_MAJOR, Cookie, Filter, Hook, Match, Qdisc, TokenBucket, Verdict};
use nix::errno::Errno;

use crate::plan::{Lane, Mark, Rule, Shaping, Via, mac_text};
use crate::present::{Ifb, Present, bank_of, choose_bank};

/// A link that a change is about, by name: an ifb has no index yet when the changes are planned.
pub type Name = String;

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
    AddBucket(Name, TokenBucket),
    /// Changes the bucket at the root of a link from the first to the second.
    ChangeBucket(Name, TokenBucket, TokenBucket),
    /// Gives the link its hooks.
    AddHooks,
    /// Adds a filter at a priority: through an ifb with a cookie, or passing.
    AddFilter(Hook, u16, Match, Option<(Name, Cookie)>),
    /// Deletes all filters of a priority.
    DropFilters(Hook, u16),
    /// Takes the bucket from the root of a link.
    DropBucket(Name),
    /// Takes the hooks from the link.
    DropHooks,
    /// Deletes an ifb.
    DropIfb(Name),
}

impl Change {
    /// What takes it back; `None` for what is not taken back: deletions come last and only of what is in nobody's way.
    fn inverse(&self) -> Option<Change> {
        match self {
            Change::MakeIfb(name, ..) => Some(Change::DropIfb(name.clone())),
            Change::Label(name, from, to) => Some(Change::Label(name.clone(), to.clone(), from.clone())),
            Change::AddBucket(name, _) => Some(Change::DropBucket(name.clone())),
            Change::ChangeBucket(name, from, to) => Some(Change::ChangeBucket(name.clone(), *to, *from)),
            Change::AddHooks => Some(Change::DropHooks),
            Change::AddFilter(hook, priority, ..) => Some(Change::DropFilters(*hook, *priority)),
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::MakeIfb(name, mac, mtu) => write!(f, "make ifb {name} mac {} mtu {mtu}", mac_text(*mac)),
            Change::RaiseIfb(name, label, mtu) => write!(f, "set {name} up, alias \"{label}\", mtu {mtu}"),
            Change::Label(name, _, to) => write!(f, "set the alias of {name} to \"{to}\""),
            Change::AddBucket(name, bucket) => write!(f, "add {bucket} to {name}"),
            Change::ChangeBucket(name, from, to) => write!(f, "change {from} of {name} to {to}"),
            Change::AddHooks => f.write_str("add clsact"),
            Change::AddFilter(hook, priority, matches, Some((ifb, _))) => {
                write!(f, "add {hook} filter {priority:#x} {matches} redirect to {ifb}")
            }
            Change::AddFilter(hook, priority, matches, None) => {
                write!(f, "add {hook} filter {priority:#x} {matches} pass")
            }
            Change::DropFilters(hook, priority) => write!(f, "delete {hook} filters {priority:#x}"),
            Change::DropBucket(name) => write!(f, "delete the tbf of {name}"),
            Change::DropHooks => f.write_str("delete clsact"),
            Change::DropIfb(name) => write!(f, "delete ifb {name}"),
        }
    }
}

/// What turns `present` into `shaping`.
pub fn to_shape(shaping: &Shaping, present: &Present) -> Result<Vec<Change>> {
    let (mut changes, mut last) = (Vec::new(), Vec::new());
    let mut hooks_are_ours = present.hooks.is_some() && present.hooks_are_ours(shaping.mark);
    for lane in &shaping.lanes {
        match &lane.via {
            Via::Root => changes.extend(root_bucket(&shaping.link.name, lane.bucket, present.root.as_ref())?),
            Via::Ifb { name, mac, rules } => {
                let there = present.ifb(name).filter(|ifb| is_usable(ifb, &shaping.label));
                changes.extend(ifb(shaping, name, *mac, lane.bucket, present.ifb(name), there.is_some()));
                if present.hooks.is_none() && !changes.contains(&Change::AddHooks) {
                    hooks_are_ours = true;
                    changes.push(Change::AddHooks);
                }
                require_hook(lane.hook, shaping, present)?;
                let cookie = shaping.mark.cookie(hooks_are_ours);
                let (add, delete) = filters(shaping, lane.hook, rules, (name, cookie), there, present);
                changes.extend(add);
                last.extend(delete);
            }
        }
    }
    if shaping.link.alias.is_empty() && !shaping.lanes.is_empty() {
        changes.push(Change::Label(shaping.link.name.clone(), String::new(), shaping.label.clone()));
    }
    last.extend(no_longer(shaping, present, &changes));
    Ok(changes.into_iter().chain(last).collect())
}

/// Ours, and without a qdisc that somebody else has put there.
fn is_usable(ifb: &Ifb, label: &str) -> bool {
    ifb.device.alias == label && ifb.root.as_ref().is_none_or(is_bucket)
}

fn is_bucket(qdisc: &Qdisc) -> bool {
    qdisc.bucket.is_some() && qdisc.major == BUCKET_MAJOR
}

fn root_bucket(link: &str, wanted: TokenBucket, root: Option<&Qdisc>) -> Result<Option<Change>> {
    match root {
        None => Ok(Some(Change::AddBucket(link.to_owned(), wanted))),
        Some(Qdisc { bucket: Some(seen), major: BUCKET_MAJOR, .. }) if seen.is(&wanted) => Ok(None),
        Some(Qdisc { bucket: Some(seen), major: BUCKET_MAJOR, .. }) => {
            Ok(Some(Change::ChangeBucket(link.to_owned(), seen.bucket(), wanted)))
        }
        Some(other) => Err(Error::Link {
            link: link.to_owned(),
            reason: format!(
                "its root qdisc is {other}, which is somebody else's; delete it (tc qdisc del dev {link} root) or set no \
                 limit here"
            ),
        }),
    }
}

/// An ifb of the reference's has no alias: it is made anew, because its hardware address is not known to stay.
fn ifb(
    shaping: &Shaping,
    name: &str,
    mac: [u8; 6],
    bucket: TokenBucket,
    there: Option<&Ifb>,
    usable: bool,
) -> Vec<Change> {
    let mtu = shaping.link.mtu;
    let Some(there) = there.filter(|_| usable) else {
        let stale = there.map(|_| Change::DropIfb(name.to_owned()));
        let new = [
            Change::MakeIfb(name.to_owned(), mac, mtu),
            Change::AddBucket(name.to_owned(), bucket),
            Change::RaiseIfb(name.to_owned(), shaping.label.clone(), mtu),
        ];
        return stale.into_iter().chain(new).collect();
    };
    let mut changes = Vec::new();
    match &there.root {
        None => changes.push(Change::AddBucket(name.to_owned(), bucket)),
        Some(Qdisc { bucket: Some(seen), .. }) if !seen.is(&bucket) => {
            changes.push(Change::ChangeBucket(name.to_owned(), seen.bucket(), bucket));
        }
        Some(_) => {}
    }
    if !there.device.up || there.device.mtu != mtu {
        changes.push(Change::RaiseIfb(name.to_owned(), shaping.label.clone(), mtu));
    }
    changes
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
    let old = present.our_priorities(hook, shaping.mark);
    let ours = present.ours(shaping.mark).filter(|(at, _)| *at == hook).map(|(_, filter)| filter);
    if ifb.is_some_and(|ifb| ours.map(|f| rule_of(f, ifb.device.index)).eq(in_order(rules).map(Some))) {
        return (Vec::new(), Vec::new());
    }
    let used = present.filters.iter().filter(|(at, _)| *at == hook).map(|(_, filter)| filter.priority);
    let (bank, free) = choose_bank(hook, used);
    // An ADD that was killed may have left both banks filled; then one must go before.
    let (before, after): (Vec<u16>, Vec<u16>) = old.iter().partition(|at| !free && bank_of(hook, **at) == Some(bank));
    let drop = |at: Vec<u16>| at.into_iter().map(|priority| Change::DropFilters(hook, priority)).collect();
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
            let stale = present.our_priorities(hook, shaping.mark);
            last.extend(stale.into_iter().map(|priority| Change::DropFilters(hook, priority)));
        }
    }
    let hooks_in_use = shaping.lanes.iter().any(|lane| lane.via != Via::Root);
    if !hooks_in_use && hooks_may_go(present, shaping.mark) {
        last.push(Change::DropHooks);
    }
    let bucket_in_use = shaping.lanes.iter().any(|lane| lane.via == Via::Root);
    if !bucket_in_use && present.root.as_ref().is_some_and(is_bucket) && is_known(present, shaping) {
        last.push(Change::DropBucket(link.clone()));
    }
    let stale = present.ifbs.iter().filter(|ifb| ifb.device.alias == shaping.label && !in_use(&ifb.device.name));
    last.extend(stale.map(|ifb| Change::DropIfb(ifb.device.name.clone())));
    // A filter's deletion may already stand in the changes before.
    last.retain(|change| !changes.contains(change));
    last
}

/// Whether the link shows that an earlier ADD was about it.
fn is_known(present: &Present, shaping: &Shaping) -> bool {
    present.link.alias == shaping.label || present.ours(shaping.mark).next().is_some()
}

/// Whether we made the hooks and nobody else has put a filter there since.
fn hooks_may_go(present: &Present, mark: Mark) -> bool {
    let ours = present.ours(mark).count();
    present.hooks_are_ours(mark) && ours == present.filters.len()
}

/// What takes away everything of `label` and `mark` on a link; a bucket at its root only if that is known to be ours,
/// because the link is, or because it carries a filter of ours.
pub fn to_nothing(label: &str, mark: Mark, present: &Present, link_is_ours: bool) -> Vec<Change> {
    let root_is_ours = link_is_ours || present.ours(mark).next().is_some();
    let mut changes = Vec::new();
    let drop_hooks = hooks_may_go(present, mark);
    if drop_hooks {
        changes.push(Change::DropHooks);
    } else {
        for hook in crate::present::HOOKS {
            let ours = present.our_priorities(hook, mark);
            changes.extend(ours.into_iter().map(|priority| Change::DropFilters(hook, priority)));
        }
    }
    let name = &present.link.name;
    if root_is_ours && present.root.as_ref().is_some_and(is_bucket) {
        changes.push(Change::DropBucket(name.clone()));
    }
    if present.link.alias == label {
        changes.push(Change::Label(name.clone(), label.to_owned(), String::new()));
    }
    changes
}

/// Makes the changes, or, if one fails, takes back those before it.
pub fn make(socket: &RouteSocket, present: &Present, changes: &[Change]) -> Result<()> {
    let mut hands = Hands::new(socket, present);
    for (done, change) in changes.iter().enumerate() {
        log::debug!("{change}");
        let Err(error) = hands.make(change) else { continue };
        for undo in changes.iter().take(done).rev().filter_map(Change::inverse) {
            log::debug!("undo: {undo}");
            if let Err(second) = hands.make(&undo) {
                log::warn!("{second}, while taking back what was done before: {error}");
            }
        }
        return Err(error);
    }
    Ok(())
}

/// Makes all the changes, whichever fail.
pub fn make_all(socket: &RouteSocket, present: &Present, changes: &[Change]) -> Vec<Error> {
    let mut hands = Hands::new(socket, present);
    let make = |change: &Change| {
        log::debug!("{change}");
        hands.make(change).err()
    };
    changes.iter().filter_map(make).collect()
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

    fn make(&mut self, change: &Change) -> Result<()> {
        let socket = self.socket;
        match change {
            Change::MakeIfb(name, mac, mtu) => {
                let made = socket.make_ifb(name, *mac, *mtu);
                self.ifbs.push(made.map_err(|error| just_taken(error, name))?);
            }
            Change::RaiseIfb(name, label, mtu) => socket.set_up(self.device(name)?, label, *mtu)?,
            Change::Label(name, _, alias) => socket.set_alias(self.device(name)?, alias)?,
            Change::AddBucket(name, bucket) => socket.add_bucket(self.device(name)?, bucket)?,
            Change::ChangeBucket(name, _, bucket) => socket.change_bucket(self.device(name)?, bucket)?,
            Change::AddHooks => socket.add_hooks(self.link)?,
            Change::AddFilter(hook, priority, matches, through) => {
                let to = match through {
                    Some((ifb, cookie)) => Some((self.device(ifb)?.index, *cookie)),
                    None => None,
                };
                socket.add_filter(self.link, *hook, *priority, *matches, to)?;
            }
            Change::DropFilters(hook, priority) => socket.delete_filters(self.link, *hook, *priority)?,
            Change::DropBucket(name) => socket.delete_bucket(self.device(name)?)?,
            Change::DropHooks => socket.delete_hooks(self.link)?,
            Change::DropIfb(name) => {
                let device = self.device(name)?;
                socket.delete_link(device.index, &device.name)?;
                self.ifbs.retain(|device| device.name != *name);
            }
        }
        Ok(())
    }
}

/// The name was free a moment ago: another interface of the container is being added at the same time.
fn just_taken(error: Error, name: &str) -> Error {
    match error {
        Error::Kernel { errno: Errno::EEXIST, .. } => {
            Error::TryAgain { what: format!("link {name} is just being made by another call") }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use common::Attachment;
    use common::tc::BucketSeen;
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
            let hooks = hooks.map(|kind| Qdisc { kind: kind.into(), major: 0xffff, bucket: None });
            let foreign = Filter { priority: 7, matches: None, verdict: Verdict::Foreign("bpf".into()) };
            let filters = hooks.iter().map(|_| (Hook::Receive, foreign.clone())).collect();
            Kernel { present: Present { link, hooks, filters, ..Present::default() }, next_index: 10 }
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
            let tbf =
                |bucket| Some(Qdisc { kind: "tbf".into(), major: BUCKET_MAJOR, bucket: Some(BucketSeen::of(bucket)) });
            match change {
                Change::MakeIfb(name, _, mtu) => {
                    assert!(self.present.ifb(name).is_none(), "EEXIST");
                    self.next_index += 1;
                    let device = Device { index: self.next_index, kind: "ifb".into(), mtu: *mtu, ..Device::default() };
                    self.present.ifbs.push(Ifb { device: Device { name: name.clone(), ..device }, root: None });
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
                Change::AddBucket(name, bucket) => assert_eq!(self.root(name).replace(tbf(bucket).unwrap()), None),
                Change::ChangeBucket(name, from, to) => {
                    let before = std::mem::replace(self.root(name), tbf(to)).unwrap();
                    assert!(before.bucket.unwrap().is(from), "{before} is not {from}");
                }
                Change::AddHooks => {
                    let clsact = Qdisc { kind: "clsact".into(), major: 0xffff, bucket: None };
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
                    let filter = Filter { priority: *priority, matches: Some(*matches), verdict };
                    self.present.filters.push((*hook, filter));
                    self.present.filters.sort_by_key(|(hook, filter)| (*hook, filter.priority));
                }
                Change::DropFilters(hook, priority) => {
                    self.present.filters.retain(|(at, filter)| (*at, filter.priority) != (*hook, *priority));
                }
                Change::DropBucket(name) => *self.root(name) = None,
                Change::DropHooks => {
                    self.present.hooks = None;
                    self.present.filters.clear();
                }
                Change::DropIfb(name) => self.present.ifbs.retain(|ifb| ifb.device.name != *name),
            }
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
            let facts = Facts { link: self.present.link.clone(), named, in_container: config.in_container };
            plan::plan(config, &Attachment::new("net", "c1", "eth0"), facts).unwrap()
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn configs() -> impl Strategy<Value = Config> {
        let limit = || {
            prop_oneof![Just(None), Just(Some(1_000u64)), Just(Some(1_250_000)), Just(Some(12_500_000_000))]
                .prop_map(|rate| rate.map(|rate| Limit { rate, burst: Burst::Chosen, key: String::new() }))
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

    fn is_deletion(change: &Change) -> bool {
        use Change::{DropBucket, DropFilters, DropHooks, DropIfb};
        matches!(change, DropFilters(..) | DropBucket(_) | DropHooks | DropIfb(_))
    }

    /// The state with the ifbs' indices left out: making one again gives it another.
    fn comparable(kernel: &Kernel) -> Present {
        let mut present = kernel.present.clone();
        let names: Vec<(u32, String)> =
            present.ifbs.iter().map(|ifb| (ifb.device.index, ifb.device.name.clone())).collect();
        for (_, filter) in &mut present.filters {
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
                prop_assert_eq!(to_shape(&kernel.shape(&config), &kernel.present).unwrap(), Vec::new());
            }
            let label = plan::label(&Attachment::new("net", "c1", "eth0"));
            let mark = Mark::of(&Attachment::new("net", "c1", "eth0"));
            let removal = to_nothing(&label, mark, &kernel.present, true);
            removal.iter().for_each(|change| kernel.make(change));
            kernel.present.ifbs.retain(|ifb| ifb.device.alias != label);
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
            let constructive = changes.iter().take_while(|change| !is_deletion(change)).count();
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
    fn an_interrupted_change_of_subnets_is_completed() {
        let mut kernel = Kernel::new(None);
        let limit = || Some(Limit { rate: 1_000_000, burst: Burst::Chosen, key: String::new() });
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
            changes.iter().filter(|change| !is_deletion(change)).for_each(|change| kernel.make(change));
            let rest = to_shape(&kernel.shape(config), &kernel.present).unwrap();
            rest.iter().for_each(|change| kernel.make(change));
            assert_eq!(to_shape(&kernel.shape(config), &kernel.present).unwrap(), [], "{config:?}");
        }
    }
}
