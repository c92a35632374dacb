//! What the kernel holds on a link and on the ifbs beside it.

use common::cni::Result;
use common::link::RouteSocket;
use common::link::device::{Device, is_gone};
use common::tc::{BUCKET_MAJORS, Filter, Hook, Match, Qdisc, REFERENCE_MAJOR, Verdict};

use crate::plan::Mark;

/// Both hooks of a link.
pub const HOOKS: [Hook; 2] = [Hook::Receive, Hook::Transmit];

/// Where our filters go in the order in which a hook asks them: behind those of everybody else, because a packet that has
/// been redirected passes no further filter, not even when it comes back. Two banks a hook, so that a new list of subnets
/// is complete before the old one goes. No priority is in both hooks: u32 keeps the filters of a clsact's two hooks
/// together and lists those of equal priority in either (`u32_walk`, net/sched/cls_u32.c).
const fn banks(hook: Hook) -> [u16; 2] {
    match hook {
        Hook::Receive => [0xf100, 0xf110],
        Hook::Transmit => [0xf200, 0xf210],
    }
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
    /// The ifbs that have one of our names.
    pub ifbs: Vec<Ifb>,
}

/// An ifb that has one of our names.
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
        0 if qdisc.major == REFERENCE_MAJOR && !seen.for_a_link_layer => Holder::Reference,
        _ if !BUCKET_MAJORS.contains(&qdisc.major) => Holder::Foreign,
        0 => Holder::Unmarked,
        number if mark.reads_number(number).is_some() => Holder::Ours,
        _ => Holder::Another,
    }
}

impl Present {
    /// Looks at `link` and at the ifbs among `named`.
    pub fn read(socket: &RouteSocket, link: Device, named: Vec<Device>) -> Result<Present> {
        let root = socket.root_qdisc(&link)?;
        let hooks = socket.hook_qdisc(&link)?;
        let mut filters = Vec::new();
        if let Some(qdisc) = &hooks {
            let there = if qdisc.kind == "clsact" { &HOOKS[..] } else { &[Hook::Receive] };
            for hook in there {
                filters.extend(socket.filters(&link, *hook)?.into_iter().map(|filter| (*hook, filter)));
            }
        }
        let mut ifbs = Vec::new();
        for device in named.into_iter().filter(|device| device.kind == "ifb") {
            match socket.root_qdisc(&device) {
                Ok(root) => ifbs.push(Ifb { root, device }),
                // Another interface's DEL has just taken it.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Present { link, root, hooks, filters, ifbs })
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
            Verdict::Pass => filter.is_marked && bank_of(hook, filter.priority).is_some(),
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

    /// The priorities at which a hook has filters of ours, the last asked first: while they are deleted in this order,
    /// what is exempt stays so.
    pub fn our_priorities(&self, hook: Hook, mark: Mark) -> Vec<u16> {
        let mut priorities: Vec<u16> = self.ours(mark).filter(|(at, _)| *at == hook).map(|(_, f)| f.priority).collect();
        priorities.sort_unstable_by(|a, b| b.cmp(a));
        priorities.dedup();
        priorities
    }
}

/// Whether a filter is what the reference's DEL leaves on a link that lives on: everything that comes in vanishes in it.
pub fn is_dead_reference(filter: &Filter) -> bool {
    match &filter.verdict {
        Verdict::Redirect { to: 0, cookie } => {
            cookie.is_empty() && filter.priority == 1 && filter.matches == Some(Match::All)
        }
        _ => false,
    }
}

/// The bank of a hook that a priority belongs to.
pub fn bank_of(hook: Hook, priority: u16) -> Option<u16> {
    banks(hook).into_iter().find(|bank| (*bank..*bank + BANK_PLACES).contains(&priority))
}

/// The bank for new filters of a hook, and whether it has none at these priorities.
pub fn choose_bank(hook: Hook, used: impl Iterator<Item = u16> + Clone) -> (u16, bool) {
    let [first, second] = banks(hook);
    let is_free = |bank: u16| used.clone().all(|priority| bank_of(hook, priority) != Some(bank));
    if is_free(first) { (first, true) } else { (second, is_free(second)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::Attachment;
    use common::tc::{BucketSeen, TokenBucket};

    #[test]
    fn a_bucket_is_known_by_its_place_and_its_mark_and_the_references_by_what_tc_never_leaves_out() {
        let mark = Mark::of(&Attachment::new("net", "c1", "eth0"));
        let another = Mark::of(&Attachment::new("net", "c2", "eth0"));
        let whose = |major: u16, number: u32, for_a_link_layer: bool| {
            let bucket = TokenBucket { rate: 1_250_000, burst: 50_000, limit: 81_250 };
            let seen = BucketSeen { for_a_link_layer, ..BucketSeen::of(&bucket, number) };
            holder(&Qdisc { kind: "tbf".into(), major, bucket: Some(seen) }, mark)
        };
        for major in BUCKET_MAJORS {
            assert_eq!([false, true].map(|hooks| whose(major, mark.number(hooks), true)), [Holder::Ours; 2]);
            assert_eq!([false, true].map(|hooks| whose(major, another.number(hooks), true)), [Holder::Another; 2]);
            assert_eq!(whose(major, 0, true), Holder::Unmarked);
        }
        assert_eq!(whose(REFERENCE_MAJOR, 0, false), Holder::Reference);
        assert_eq!(whose(REFERENCE_MAJOR, 0, true), Holder::Foreign);
        assert_eq!(whose(2, 0, false), Holder::Foreign);
        assert_eq!(holder(&Qdisc { kind: "htb".into(), major: 0x6277, bucket: None }, mark), Holder::Foreign);
    }
}
