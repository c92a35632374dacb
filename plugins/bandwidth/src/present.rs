//! What the kernel holds on a link and on the ifbs beside it.

use common::cni::Result;
use common::link::RouteSocket;
use common::link::device::{Device, is_gone};
use common::tc::{BUCKET_MAJORS, Filter, FilterPlace, Hook, Match, Qdisc, REFERENCE_MAJOR, Verdict};

use crate::plan::{Mark, Owner};

/// Both hooks of a link.
pub const HOOKS: [Hook; 2] = [Hook::Receive, Hook::Transmit];

/// Where our filters go in the order in which a hook asks them: behind those of everybody else, because a packet that has
/// been redirected passes no further filter, not even when it comes back. Several banks a hook, so that a new list of subnets
/// is complete before the old one goes, and one is free also where others have filters here. No priority is in both hooks:
/// u32 keeps the filters of a clsact's two hooks together and lists those of equal priority in either (`u32_walk`,
/// net/sched/cls_u32.c).
fn banks(hook: Hook) -> impl Iterator<Item = u16> {
    let first = match hook {
        Hook::Receive => 0xf100,
        Hook::Transmit => 0xf200,
    };
    (0..16).map(move |number| first + number * 0x10)
}

/// Filters of one priority are of one protocol, so a bank has a place for each.
pub const BANK_PLACES: u16 = 3;

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// The link that carries, or carried, the limits.
    pub link: Device,
    /// At its root.
    pub root: Option<Qdisc>,
    /// What carries its hooks.
    pub hooks: Option<Qdisc>,
    /// All filters in its hooks, others' included.
    pub filters: Vec<(Hook, Filter)>,
    /// The ifbs that have one of our names, and ours under other names.
    pub ifbs: Vec<Ifb>,
}

/// An ifb that has one of our names, or is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ifb {
    /// Itself.
    pub device: Device,
    /// At its root.
    pub root: Option<Qdisc>,
}

/// Whose the token bucket at the root of a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This attachment's, by its mark.
    Ours,
    /// In our place, without a mark: somebody has changed it by hand.
    Unmarked,
    /// The reference's, of whichever attachment.
    Reference,
    /// Another attachment's.
    Another,
    /// Somebody else's: of another kind, in another place, or in the reference's and made by tc(8).
    Foreign,
}

/// Whose a root qdisc is, as the attachment of this mark sees it.
pub fn holder(qdisc: &Qdisc, mark: Mark) -> Holder {
    let Some(seen) = qdisc.bucket else { return Holder::Foreign };
    match seen.mark {
        0 if qdisc.major == REFERENCE_MAJOR && seen.counting.link_layer == 0 => Holder::Reference,
        _ if !BUCKET_MAJORS.contains(&qdisc.major) => Holder::Foreign,
        0 => Holder::Unmarked,
        number if mark.reads_number(number).is_some() => Holder::Ours,
        _ => Holder::Another,
    }
}

impl Present {
    /// Looks at `link`, at the ifbs among `named`, and at those of the owner to which his filters lead, whatever their names.
    pub fn read(socket: &RouteSocket, link: Device, named: Vec<Device>, owner: &Owner) -> Result<Present> {
        let root = socket.root_qdisc(&link)?;
        let hooks = socket.hook_qdisc(&link)?;
        let mut filters = Vec::new();
        if let Some(qdisc) = &hooks {
            let there = if qdisc.kind == "clsact" { &HOOKS[..] } else { &[Hook::Receive] };
            for hook in there {
                filters.extend(socket.filters(&link, *hook)?.into_iter().map(|filter| (*hook, filter)));
            }
        }
        let mut present = Present { link, root, hooks, filters, ifbs: Vec::new() };
        present.look_at(socket, named)?;
        for index in present.led_elsewhere(owner.mark) {
            let led_to = socket.device_at(index)?.filter(|device| owner.has(device));
            present.look_at(socket, led_to)?;
        }
        Ok(present)
    }

    /// Looks at the ifbs among these.
    pub fn look_at(&mut self, socket: &RouteSocket, devices: impl IntoIterator<Item = Device>) -> Result<()> {
        for device in devices.into_iter().filter(|device| device.kind == "ifb") {
            match socket.root_qdisc(&device) {
                Ok(root) => self.ifbs.push(Ifb { root, device }),
                // Another interface's DEL has just taken it.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Looks at what the buckets' packets wait in, if there are any buckets.
    pub fn look_into_queues(&mut self, socket: &RouteSocket) -> Result<()> {
        let of_ifbs = self.ifbs.iter_mut().map(|ifb| (&ifb.device, &mut ifb.root));
        for (device, root) in of_ifbs.chain([(&self.link, &mut self.root)]) {
            if let Some(qdisc) = root {
                qdisc.queue = socket.queue(device, qdisc)?;
            }
        }
        Ok(())
    }

    /// The indices of the links to which filters with this mark lead, and that have not been looked at.
    fn led_elsewhere(&self, mark: Mark) -> Vec<u32> {
        let led = |(_, filter): &(Hook, Filter)| match &filter.verdict {
            Verdict::Redirect { to, cookie } if *to != 0 && mark.reads(cookie).is_some() => Some(*to),
            _ => None,
        };
        let is_known = |index: &u32| self.ifbs.iter().any(|ifb| ifb.device.index == *index);
        let mut indices: Vec<u32> = self.filters.iter().filter_map(led).filter(|index| !is_known(index)).collect();
        indices.dedup();
        indices
    }

    /// How many filters lead to such indices.
    pub fn redirects(&self, which: impl Fn(u32) -> bool) -> usize {
        let leads = |filter: &Filter| matches!(filter.verdict, Verdict::Redirect { to, .. } if which(to));
        self.filters.iter().filter(|(_, filter)| leads(filter)).count()
    }

    /// The ifb of this name.
    pub fn ifb(&self, name: &str) -> Option<&Ifb> {
        self.ifbs.iter().find(|ifb| ifb.device.name == name)
    }

    /// Whose the qdisc at the root is.
    pub fn root_holder(&self, mark: Mark) -> Option<Holder> {
        self.root.as_ref().map(|qdisc| holder(qdisc, mark))
    }

    /// Whether another attachment has limits on this link.
    pub fn is_anothers(&self, mark: Mark) -> bool {
        let anothers = |filter: &Filter| match &filter.verdict {
            Verdict::Redirect { cookie, .. } => mark.is_anothers(cookie),
            _ => false,
        };
        self.root_holder(mark) == Some(Holder::Another) || self.filters.iter().any(|(_, filter)| anothers(filter))
    }

    /// The filters that are ours: by their cookie, by their place, or because they are the reference's.
    pub fn ours(&self, mark: Mark) -> impl Iterator<Item = &(Hook, Filter)> {
        self.filters.iter().filter(move |(hook, filter)| self.is_ours(*hook, filter, mark))
    }

    fn is_ours(&self, hook: Hook, filter: &Filter, mark: Mark) -> bool {
        match &filter.verdict {
            Verdict::Redirect { cookie, .. } => {
                mark.reads(cookie).is_some() || self.is_references(filter) || is_dead_reference(filter)
            }
            // Whoever names no priority is given one just below the lowest, which may be in our bank.
            Verdict::Pass => filter.is_marked && bank_of(hook, filter.place.priority).is_some(),
            Verdict::Foreign(_) => false,
        }
    }

    /// Whether a filter is the reference's for this attachment: it leads to the ifb, and has no cookie.
    fn is_references(&self, filter: &Filter) -> bool {
        match &filter.verdict {
            Verdict::Redirect { to, cookie } => {
                cookie.is_empty() && self.ifbs.iter().any(|ifb| ifb.device.index == *to)
            }
            _ => false,
        }
    }

    /// Whether the reference's limits are in force on this link.
    pub fn has_references(&self) -> bool {
        self.filters.iter().any(|(_, filter)| self.is_references(filter))
    }

    /// Whether an ifb has no label, and filters of this link's lead to it.
    pub fn is_references_ifb(&self, ifb: &Ifb) -> bool {
        let leads = |filter: &Filter| match &filter.verdict {
            Verdict::Redirect { to, cookie } => *to == ifb.device.index && cookie.is_empty(),
            _ => false,
        };
        ifb.device.alias.is_empty() && self.filters.iter().any(|(_, filter)| leads(filter))
    }

    /// Whether the hooks were made by us, or by the reference, so that they go when our filters go.
    pub fn hooks_are_ours(&self, mark: Mark) -> bool {
        let by_filter = self.ours(mark).any(|(_, filter)| match &filter.verdict {
            Verdict::Redirect { cookie, .. } => cookie.is_empty() || mark.reads(cookie) == Some(true),
            _ => false,
        });
        let number = |ifb: &Ifb| ifb.root.as_ref().and_then(|qdisc| qdisc.bucket).map(|seen| seen.mark);
        let by_bucket = |ifb: &Ifb| number(ifb).and_then(|number| mark.reads_number(number)) == Some(true);
        by_filter || (self.hooks.is_some() && self.ifbs.iter().any(by_bucket))
    }

    /// Whether something on the link says by a mark that it is this attachment's, as the reference's does not.
    pub fn is_marked(&self, mark: Mark) -> bool {
        let by_filter = |filter: &Filter| match &filter.verdict {
            Verdict::Redirect { cookie, .. } => mark.reads(cookie).is_some(),
            _ => false,
        };
        self.root_holder(mark) == Some(Holder::Ours) || self.filters.iter().any(|(_, filter)| by_filter(filter))
    }

    /// Our filters in a hook, the last asked first: while they are deleted in this order, what is exempt stays so. Those of a
    /// priority go together, unless somebody else has one there.
    pub fn our_filters(&self, hook: Hook, mark: Mark) -> Vec<FilterPlace> {
        let here = || self.filters.iter().filter(|(at, _)| *at == hook).map(|(_, filter)| filter);
        let is_shared = |of: &FilterPlace| {
            let mut same = here().filter(|f| (f.place.chain, f.place.priority) == (of.chain, of.priority));
            same.any(|filter| !self.is_ours(hook, filter, mark))
        };
        let place = |filter: &Filter| match filter.place {
            place if is_shared(&place) => place,
            FilterPlace { chain, priority, .. } => FilterPlace { chain, ..FilterPlace::all_of(priority) },
        };
        let mut places: Vec<FilterPlace> =
            here().filter(|filter| self.is_ours(hook, filter, mark)).map(place).collect();
        places.sort_by_key(|place| std::cmp::Reverse((place.priority, place.chain, place.handle)));
        places.dedup();
        places
    }
}

/// Whether a filter is what the reference's DEL leaves on a link that lives on: everything that comes in vanishes in it.
pub fn is_dead_reference(filter: &Filter) -> bool {
    match &filter.verdict {
        Verdict::Redirect { to: 0, cookie } => {
            cookie.is_empty() && filter.place.priority == 1 && filter.matches == Some(Match::All)
        }
        _ => false,
    }
}

/// The bank of a hook that a priority belongs to.
pub fn bank_of(hook: Hook, priority: u16) -> Option<u16> {
    banks(hook).find(|bank| (*bank..*bank + BANK_PLACES).contains(&priority))
}

/// The bank for new filters of a hook, and whether it has none at these priorities.
pub fn choose_bank(hook: Hook, used: impl Iterator<Item = u16> + Clone) -> (u16, bool) {
    let is_free = |bank: &u16| used.clone().all(|priority| bank_of(hook, priority) != Some(*bank));
    let last = banks(hook).last().unwrap_or_default();
    banks(hook).find(is_free).map_or((last, false), |bank| (bank, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::Attachment;
    use common::tc::{BucketSeen, Counting, TokenBucket};

    #[test]
    fn a_bucket_is_known_by_its_place_and_its_mark_and_the_references_by_what_tc_never_leaves_out() {
        let mark = Mark::of(&Attachment::new("net", "c1", "eth0"));
        let another = Mark::of(&Attachment::new("net", "c2", "eth0"));
        let whose = |major: u16, number: u32, for_a_link_layer: bool| {
            let counting = Counting { link_layer: for_a_link_layer.into(), ..Counting::default() };
            let bucket = TokenBucket { rate: 1_250_000, burst: 50_000, limit: 81_250 };
            let seen = BucketSeen { counting, ..BucketSeen::of(&bucket, number) };
            holder(&Qdisc { kind: "tbf".into(), major, bucket: Some(seen), queue: None }, mark)
        };
        for major in BUCKET_MAJORS {
            assert_eq!([false, true].map(|hooks| whose(major, mark.number(hooks), true)), [Holder::Ours; 2]);
            assert_eq!([false, true].map(|hooks| whose(major, another.number(hooks), true)), [Holder::Another; 2]);
            assert_eq!(whose(major, 0, true), Holder::Unmarked);
        }
        assert_eq!(whose(REFERENCE_MAJOR, 0, false), Holder::Reference);
        assert_eq!(whose(REFERENCE_MAJOR, 0, true), Holder::Foreign);
        assert_eq!(whose(2, 0, false), Holder::Foreign);
        assert_eq!(
            holder(&Qdisc { kind: "htb".into(), major: 0x6277, bucket: None, queue: None }, mark),
            Holder::Foreign
        );
    }
}
