//! The verbs: looking up the link, making, comparing and removing.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use common::cni::result::Interface;
use common::cni::{CniResult, Difference, Error, Result};
use common::link::device::{Device, is_gone};
use common::link::{DATAGRAM_REQUESTS, Request, RouteSocket};
use common::netns::Netns;
use common::tc::{Hook, Qdisc, Shaped, Verdict};
use common::{Attachment, Call, State};

use crate::changes::{self, Made, Trust};
use crate::config::Config;
use crate::plan::{self, Facts, Lane, Owner, Shaping, Via, mac_text};
use crate::present::{HOOKS, Holder, Present, holder, is_dead_reference};

/// What is kept from looking up to making.
pub struct Door {
    /// Into the namespace of the link that carries the limits.
    socket: RouteSocket,
    /// The other end of that link, and the way there, if an earlier ADD may have put the limits on it: one that had another
    /// `inContainer`.
    left: Option<(RouteSocket, Device)>,
}

/// One attachment's limits, and the way to the kernel.
pub struct Share {
    config: Config,
    planned: RefCell<(Shaping, Facts)>,
    door: Door,
}

impl Share {
    /// What was planned, from what was meant and looked up, through which door.
    pub fn new(config: Config, shaping: Shaping, facts: Facts, door: Door) -> Share {
        Share { config, planned: RefCell::new((shaping, facts)), door }
    }

    /// Looks at what there is; and plans anew if an ifb of ours turns up that somebody has renamed.
    fn present(&self, attachment: &Attachment) -> Result<Present> {
        let socket = &self.door.socket;
        let (shaping, mut facts) = self.planned.borrow().clone();
        let mut present = Present::read(socket, facts.link.clone(), facts.named.clone(), &shaping.owner)?;
        let more = |ifb: &&Device| facts.named.iter().all(|named| named.index != ifb.index);
        let is_missing = |lane: &Lane| matches!(&lane.via, Via::Ifb { name, .. } if present.ifb(name).is_none());
        let has_no_other = present.ifbs.iter().all(|ifb| !more(&&ifb.device));
        // An earlier ADD was here, as the alias tells, and no filter leads to what it has made.
        if !facts.link.alias.is_empty() && has_no_other && shaping.lanes.iter().any(is_missing) {
            let marked = shaping.owner.marked(socket)?;
            present.look_at(socket, marked.into_iter().filter(|ifb| shaping.owner.has(ifb) && more(&ifb)))?;
        }
        let renamed: Vec<Device> = present.ifbs.iter().map(|ifb| &ifb.device).filter(more).cloned().collect();
        if !renamed.is_empty() {
            facts.named.extend(renamed);
            self.plan(attachment, facts)?;
        }
        present.look_into_queues(socket)?;
        Ok(present)
    }

    fn try_to_apply(&self, attachment: &Attachment, made: &mut Made) -> Result<()> {
        let present = self.present(attachment)?;
        let shaping = &self.planned.borrow().0;
        changes::make(&self.door.socket, &present, &changes::to_shape(shaping, &present)?, made)
    }

    /// Does it under a name that is still free, or with what another call for the same attachment has made meanwhile.
    fn apply_here(&self, call: &Call) -> Result<()> {
        let (attachment, mut made) = (&call.attachment, Made::default());
        let mut outcome = self.try_to_apply(attachment, &mut made);
        for _ in 1..TRIES {
            let Err(Error::TryAgain { what }) = &outcome else { break };
            log::debug!("once more: {what}");
            outcome = self.plan_anew(attachment).and_then(|()| self.try_to_apply(attachment, &mut made));
        }
        outcome.inspect_err(|error| made.take_back(&self.door.socket, &self.planned.borrow().0, error))
    }

    /// Removes the attachment's limits at one end.
    fn remove_at(&self, socket: &RouteSocket, link: &Device, call: &Call) -> Result<()> {
        let carrier = Carrier { link: link.clone(), certain: true };
        Error::gather(Owner::of(&call.attachment).remove_named(
            socket,
            &call.attachment,
            Some(carrier),
            Marked::Unsought { due: 0 },
        ))
    }

    /// Plans with the ifbs that the reference has made, because nothing is to take their place.
    fn plan_what_serves(&self, attachment: &Attachment) -> Result<()> {
        let facts = Facts { serving: Vec::new(), ..self.planned.borrow().1.clone() };
        if facts == self.planned.borrow().1 {
            return Ok(());
        }
        self.plan(attachment, facts)
    }

    /// Looks again at who has which name.
    fn plan_anew(&self, attachment: &Attachment) -> Result<()> {
        let Facts { link, in_container, .. } = self.planned.borrow().1.clone();
        let named = named(&self.door.socket, attachment)?;
        let facts = Facts { link, named, in_container, ..Facts::default() };
        self.plan(attachment, with_uses(facts, &self.door.socket, attachment))
    }

    fn plan(&self, attachment: &Attachment, facts: Facts) -> Result<()> {
        let shaping = plan::plan(&self.config, attachment, facts.clone())?;
        self.planned.replace((shaping, facts));
        Ok(())
    }
}

/// How often an ADD goes on because another has just taken the name it wanted, or done what it was about to do.
const TRIES: u32 = 3;

impl State for Share {
    fn apply(&self, call: &Call) -> Result<()> {
        let Some((socket, link)) = &self.door.left else { return self.apply_here(call) };
        let is_new = !self.present(&call.attachment)?.is_marked(self.planned.borrow().0.owner.mark);
        self.apply_here(call)?;
        let left = self.remove_at(socket, link, call);
        if let (Err(error), true) = (&left, is_new) {
            let mut here = self.planned.borrow().1.link.clone();
            if here.alias.is_empty() {
                here.alias = plan::label(&call.attachment);
            }
            if let Err(second) = self.remove_at(&self.door.socket, &here, call) {
                log::warn!("{second}, while taking back what was done before: {error}");
            }
        }
        left
    }

    fn differences(&self, call: &Call) -> Result<Vec<Difference>> {
        self.plan_what_serves(&call.attachment)?;
        let present = self.present(&call.attachment)?;
        let shaping = &self.planned.borrow().0;
        let mut found = differences(shaping, &present);
        let left = self.door.left.iter().filter(|(_, link)| link.alias == shaping.owner.label);
        found.extend(left.map(|(_, link)| {
            let object = format!("link {} at the other end of {}", link.name, shaping.link.name);
            Difference::other(object, "no limits", format!("those of \"{}\"", link.alias))
        }));
        Ok(found)
    }

    fn amend(&self, call: &Call, result: &mut CniResult) {
        let (shaping, facts) = &*self.planned.borrow();
        let sandbox = match &call.netns {
            Some(path) if facts.in_container => path.display().to_string(),
            _ => String::new(),
        };
        for lane in &shaping.lanes {
            if let Via::Ifb { name, mac, .. } = &lane.via {
                result.interfaces.push(Interface {
                    name: name.clone(),
                    mac: mac_text(*mac),
                    sandbox: sandbox.clone(),
                    ..Interface::default()
                });
            }
        }
    }
}

/// Finds the link that will carry the limits, and who has the names of its ifbs.
pub fn observe(config: &Config, call: &Call) -> Result<(Facts, Door)> {
    let ifname = &call.attachment.ifname;
    let netns = Netns::open(call.netns.as_deref().unwrap_or(Path::new("")))?;
    let container = RouteSocket::open_in(&netns)?;
    let inner = container.device(ifname)?.ok_or_else(|| Error::Link {
        link: ifname.clone(),
        reason: format!("it isn't in the container's namespace ({}); the plugins before must make it", path_of(call)),
    })?;
    let (link, socket, left) = if config.in_container {
        let host = RouteSocket::open()?;
        let outer = host.other_end(&inner, &netns)?;
        (inner, container, outer.map(|outer| (host, outer)))
    } else {
        let host = RouteSocket::open()?;
        let outer = host_side(&host, &inner, &netns)?;
        let had_limits = inner.alias == plan::label(&call.attachment);
        (outer, host, had_limits.then_some((container, inner)))
    };
    let named = holders(&socket, config, &call.attachment, &link)?;
    let facts = Facts { link, named, in_container: config.in_container, ..Facts::default() };
    Ok((with_uses(facts, &socket, &call.attachment), Door { socket, left }))
}

/// The links that have names which this attachment's ifbs may take: of a fresh link those that are needed, up to the
/// first that is free, and the reference's, which may have been here before; of one that has a label, as an earlier ADD may
/// have given it, all, because that may have made what is wanted no more.
fn holders(socket: &RouteSocket, config: &Config, attachment: &Attachment, link: &Device) -> Result<Vec<Device>> {
    if !link.alias.is_empty() {
        return named(socket, attachment);
    }
    let mut holders = Vec::new();
    for hook in HOOKS.into_iter().filter(|hook| *hook == Hook::Receive || config.needs_ifb(*hook)) {
        for name in plan::ifb_names(attachment, hook) {
            let Some(device) = socket.device(&name)? else { break };
            holders.push(device);
        }
    }
    Ok(holders)
}

/// Adds to what was looked up which of the ifbs without a label are in use. The link must leave those that filters of other
/// links lead to, and those that another interface's ADD is just making. That one has them down until they have their label,
/// under its own address; the reference's are up from the beginning.
fn with_uses(mut facts: Facts, socket: &RouteSocket, attachment: &Attachment) -> Facts {
    let owner = Owner::of(attachment);
    for ifb in facts.named.iter().filter(|device| device.kind == "ifb" && device.alias.is_empty()) {
        let served = redirectors(socket, std::slice::from_ref(ifb));
        let in_the_making = !ifb.up && !owner.has_mac_of(ifb);
        if served.iter().any(|other| other.index != facts.link.index) || (served.is_empty() && in_the_making) {
            facts.busy.push(ifb.index);
        }
        if served.iter().any(|link| link.index == facts.link.index) {
            facts.serving.push(ifb.index);
        }
    }
    facts
}

/// The links that have any name which this attachment's ifbs may take.
fn named(socket: &RouteSocket, attachment: &Attachment) -> Result<Vec<Device>> {
    let names = HOOKS.into_iter().flat_map(|hook| plan::ifb_names(attachment, hook));
    names.filter_map(|name| socket.device(&name).transpose()).collect()
}

fn path_of(call: &Call) -> String {
    call.netns.as_deref().unwrap_or(Path::new("")).display().to_string()
}

fn host_side(host: &RouteSocket, inner: &Device, netns: &Netns) -> Result<Device> {
    if let Some(outer) = host.other_end(inner, netns)? {
        return Ok(outer);
    }
    let reason = if inner.is_half_of_a_pair() {
        format!(
            "no veth peer of container interface {} found in host ns: its other end, index {}, is in another namespace; \
             \"inContainer\": true puts the limits on {} itself",
            inner.name,
            inner.linked.unwrap_or_default(),
            inner.name
        )
    } else {
        let kind = if inner.kind.is_empty() { "physical device" } else { &inner.kind };
        format!(
            "container interface {} has no veth peer: it is a {kind}, of which the host has no side that carries this \
             container's traffic alone; \"inContainer\": true puts the limits on {} itself",
            inner.name, inner.name
        )
    };
    Err(Error::Link { link: inner.name.clone(), reason })
}

/// Where the kernel holds something else than `shaping`.
///
/// What the reference made counts as equal where it limits equally: its filter has another priority and no cookie, its
/// hooks are a qdisc `ingress`, its ifb has no alias.
pub fn differences(shaping: &Shaping, present: &Present) -> Vec<Difference> {
    let mut found = Vec::new();
    for lane in &shaping.lanes {
        match &lane.via {
            Via::Root => found.extend(root_difference(&shaping.link.name, lane, shaping, present.root.as_ref())),
            Via::Ifb { name, mac, .. } => found.extend(ifb_differences((name, *mac), lane, shaping, present)),
        }
    }
    let dead = present.filters.iter().filter(|(_, filter)| is_dead_reference(filter));
    found.extend(dead.map(|(hook, _)| {
        let object = format!("filter of link {} on {hook}", shaping.link.name);
        Difference::other(object, "nothing that swallows packets", "a redirect of all to a link that has gone")
    }));
    // GC knows by it whose this is.
    if present.link.alias.is_empty() && present.is_marked(shaping.owner.mark) {
        found.push(Difference::missing(
            format!("alias of link {}", shaping.link.name),
            format!("\"{}\"", shaping.owner.label),
        ));
    }
    found
}

/// A bucket must be where and whose it is to be, or the next ADD would find a stranger's in its place.
fn root_difference(link: &str, lane: &Lane, shaping: &Shaping, root: Option<&Qdisc>) -> Option<Difference> {
    let object = format!("root qdisc of link {link} ({})", lane.direction);
    let expected = lane.bucket.to_string();
    let Some(qdisc) = root else { return Some(Difference::missing(object, expected)) };
    if !qdisc.bucket.is_some_and(|seen| seen.is(&lane.bucket)) || qdisc.odd_queue().is_some() {
        return Some(Difference::other(object, expected, qdisc.to_string()));
    }
    let whose = match holder(qdisc, shaping.owner.mark) {
        Holder::Ours | Holder::Reference => return None,
        Holder::Unmarked => "its owner's mark taken away",
        Holder::Another => "another attachment's mark",
        Holder::Foreign => "a handle that is not ours",
    };
    Some(Difference::other(object, expected, format!("the same with {whose} ({:x}:)", qdisc.major)))
}

fn ifb_differences((name, mac): (&str, [u8; 6]), lane: &Lane, shaping: &Shaping, present: &Present) -> Vec<Difference> {
    let object = format!("link {name} ({})", lane.direction);
    let mut found = Vec::new();
    let ifb = present.ifb(name);
    match ifb {
        None => found.push(Difference::missing(object, format!("an ifb of \"{}\"", shaping.owner.label))),
        Some(ifb) => {
            // The reference's has none, and another hardware address.
            if ifb.device.alias != shaping.owner.label && ifb.device.mac == Some(mac) {
                let expected = format!("\"{}\"", shaping.owner.label);
                found.push(Difference::missing(format!("alias of link {name} ({})", lane.direction), expected));
            }
            if !ifb.device.up {
                found.push(Difference::other(object, "up", "down"));
            }
            found.extend(root_difference(name, lane, shaping, ifb.root.as_ref()));
        }
    }
    found.extend(filter_differences(name, ifb.map(|ifb| ifb.device.index), lane, shaping, present));
    found
}

fn filter_differences(
    name: &str,
    index: Option<u32>,
    lane: &Lane,
    shaping: &Shaping,
    present: &Present,
) -> Vec<Difference> {
    let Via::Ifb { rules, .. } = &lane.via else { return Vec::new() };
    let here = || present.filters.iter().filter(|(at, _)| *at == lane.hook).map(|(_, filter)| filter);
    let object = format!("filter of link {} on {} ({})", shaping.link.name, lane.hook, lane.direction);
    let holds = |rule| here().any(|filter| changes::rule_of(filter, index.unwrap_or_default()) == Some(rule));
    let missing = rules.iter().filter(|rule| index.is_none() || !holds(**rule));
    let elsewhere = |rule: &plan::Rule| {
        here().find_map(|filter| match &filter.verdict {
            Verdict::Redirect { to, .. } if filter.matches == Some(rule.matches) && rule.limited => Some(if *to == 0 {
                "a redirect to a link that has gone".into()
            } else {
                format!("a redirect to index {to}")
            }),
            _ => None,
        })
    };
    let mut found: Vec<Difference> = missing
        .map(|rule| match elsewhere(rule) {
            Some(other) => Difference::other(&object, rule.print(name), other),
            None => Difference::missing(&object, rule.print(name)),
        })
        .collect();
    let extra = present.ours(shaping.owner.mark).filter(|(at, _)| *at == lane.hook).filter_map(|(_, filter)| {
        let rule = changes::rule_of(filter, index?)?;
        (!rules.contains(&rule)).then(|| Difference::other(&object, "nothing", rule.print(name)))
    });
    found.extend(extra);
    found
}

/// A link that carried limits, and whether that is certain: by a name alone it may be somebody else's by now.
struct Carrier {
    link: Device,
    certain: bool,
}

/// Removes what the attachment owns, in the container if it is there, and on the host.
pub fn remove(call: &Call, config: Option<&Config>, prev: Option<&CniResult>) -> Result<()> {
    let owner = Owner::of(&call.attachment);
    let is_inside = config.is_some_and(|c| c.in_container);
    let mut errors = Vec::new();
    let netns = call.netns.as_deref().map(Netns::find).transpose()?.flatten();
    let inside = match netns.as_ref().map(|netns| (netns, RouteSocket::open_in(netns))) {
        Some((netns, Ok(socket))) => Some((netns, socket)),
        Some((_, Err(error))) => {
            errors.extend(unseen(error, is_inside));
            None
        }
        None => None,
    };
    let inner = inside.as_ref().map(|(_, socket)| socket.device(&call.attachment.ifname));
    let inner = inner.transpose().unwrap_or_else(|error| {
        errors.extend(unseen(error, is_inside));
        None
    });
    let inner = inner.flatten();
    if let (Some((_, socket)), Some(inner)) = (&inside, &inner)
        && (inner.alias == owner.label || is_inside)
    {
        let carrier = Carrier { link: inner.clone(), certain: true };
        errors.extend(owner.remove_named(socket, &call.attachment, Some(carrier), Marked::Unsought { due: 0 }));
    }
    let host = RouteSocket::open()?;
    let outer = match (&inside, &inner) {
        (Some((netns, _)), Some(inner)) => host.other_end(inner, netns).ok().flatten(),
        _ => None,
    };
    let due = config.map_or(0, |config| HOOKS.into_iter().filter(|hook| config.needs_ifb(*hook)).count());
    let (carrier, marked) = match outer {
        Some(link) => (Some(Carrier { link, certain: true }), Marked::Unsought { due }),
        None => {
            let (carrier, marked) = owner.link_by_hints(&host, config, prev);
            (carrier, marked.map_or(Marked::Unsought { due }, Marked::Found))
        }
    };
    errors.extend(owner.remove_named(&host, &call.attachment, carrier, marked));
    Error::gather(errors)
}

/// What keeps DEL from looking into the container: on the host everything is found without.
fn unseen(error: Error, is_inside: bool) -> Option<Error> {
    if is_inside {
        return Some(error);
    }
    log::warn!("{error}");
    None
}

/// Removes what dead attachments of a network own on this host. What is in a container goes with its namespace.
///
/// An alias is a text that others may have written, too: what has it is taken only if it bears a mark as well.
pub fn collect(network: &str, live: &BTreeSet<Attachment>) -> Result<()> {
    let host = RouteSocket::open()?;
    let live: Vec<Owner> = live.iter().map(Owner::of).collect();
    let labels: BTreeSet<&String> = live.iter().map(|owner| &owner.label).collect();
    let devices = host.devices()?;
    let aliases: BTreeSet<&String> = devices.iter().map(|device| &device.alias).collect();
    let dead = aliases.into_iter().filter(|alias| plan::is_of_network(alias, network) && !labels.contains(alias));
    let is_being_made = |ifb: &&Device| live.iter().any(|owner| owner.has_mac_of(ifb));
    let half_made = devices.iter().filter(|ifb| plan::is_half_made(ifb, network) && !is_being_made(ifb));
    let mut redirects: Option<Option<Vec<u32>>> = None;
    let (mut errors, mut unused) = (Vec::new(), half_made.cloned().collect::<Vec<Device>>());
    for label in dead {
        let Some(owner) = Owner::of_label(label) else { continue };
        // Nobody can change an ifb's address.
        let ifbs = devices.iter().filter(|device| owner.has(device) && owner.has_mac_of(device));
        let ifbs: Vec<Device> = ifbs.cloned().collect();
        let links = devices.iter().filter(|device| device.alias == *label && device.kind != "ifb");
        let mut errors_here = Vec::new();
        let mut carriers: Vec<Option<Carrier>> =
            links.map(|link| Some(Carrier { link: link.clone(), certain: false })).collect();
        if carriers.is_empty() {
            carriers.push(None);
        }
        for carrier in carriers {
            let redirects = redirects.get_or_insert_with(|| host.redirects().ok());
            errors_here.extend(owner.clear_all(&host, &ifbs, carrier, redirects.as_deref(), Removal::Collected));
        }
        // A filter that leads to an ifb which has gone swallows every packet.
        if errors_here.is_empty() {
            unused.extend(ifbs);
        }
        errors.extend(errors_here);
    }
    errors.extend(delete(&host, &unused));
    Error::gather(errors)
}

/// The ifbs that bear the owner's mark, whatever their names.
enum Marked {
    /// All of them.
    Found(Vec<Device>),
    /// They are looked for where fewer than so many have their names.
    Unsought { due: usize },
}

/// Who removes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// DEL, which knows the attachment: what has its label is its.
    Asked,
    /// GC, which knows labels only and deletes the ifbs of all attachments together.
    Collected,
}

impl Owner {
    /// The link by what the prevResult names, else by the mark of its bucket, else by its alias; and the ifbs by their marks, if
    /// marks were looked at.
    ///
    /// All limited links are looked at only where limits were set and nothing else leads to the link: mostly it has gone
    /// with its namespace then. The kernel tells of all buckets in one answer.
    fn link_by_hints(
        &self,
        host: &RouteSocket,
        config: Option<&Config>,
        prev: Option<&CniResult>,
    ) -> (Option<Carrier>, Option<Vec<Device>>) {
        let named = prev.map(|p| p.interfaces.as_slice()).unwrap_or_default();
        let on_host = named.iter().filter(|interface| interface.sandbox.is_empty());
        let devices = on_host.filter_map(|i| Some((host.device(&i.name).ok().flatten()?, i.mac.as_str())));
        let devices: Vec<(Device, &str)> = devices.filter(|(device, _)| device.kind != "ifb").collect();
        if let Some((link, _)) = devices.iter().find(|(device, _)| device.alias == self.label) {
            return (Some(Carrier { link: link.clone(), certain: false }), None);
        }
        let Ok(shaped) = host.shaped_links() else { return (None, None) };
        let at = |shaped: &Shaped| host.device_at(shaped.index).ok().flatten();
        // The buckets of our ifbs have the mark, too.
        let marked = shaped.iter().filter(|shaped| self.mark.reads_number(shaped.mark).is_some()).filter_map(at);
        let (ifbs, links): (Vec<Device>, Vec<Device>) = marked.partition(|device| device.kind == "ifb");
        let uncertain = |link| Some(Carrier { link, certain: false });
        if let Some(link) = links.into_iter().next() {
            return (uncertain(link), Some(ifbs));
        }
        // A name may be another's by now; with the address of then it is not.
        let is_same = |(device, mac): &&(Device, &str)| {
            device.is_half_of_a_pair() && device.mac.is_some_and(|own| mac_text(own).eq_ignore_ascii_case(mac))
        };
        if let Some((link, _)) = devices.iter().find(is_same) {
            return (Some(Carrier { link: link.clone(), certain: true }), Some(ifbs));
        }
        if config.is_some_and(Config::is_idle) {
            return (None, Some(ifbs));
        }
        let is_ours = |device: &Device| device.kind != "ifb" && device.alias == self.label;
        (shaped.iter().filter_map(at).find(is_ours).and_then(uncertain), Some(ifbs))
    }

    /// The links whose buckets bear the owner's mark.
    fn marked(&self, socket: &RouteSocket) -> Result<Vec<Device>> {
        let is_marked = |shaped: &&Shaped| self.mark.reads_number(shaped.mark).is_some();
        let shaped = socket.shaped_links()?;
        shaped.iter().filter(is_marked).filter_map(|s| socket.device_at(s.index).transpose()).collect()
    }

    /// Removes everything from one namespace: the ifbs that are found by their names, and by their marks.
    fn remove_named(
        &self,
        socket: &RouteSocket,
        attachment: &Attachment,
        carrier: Option<Carrier>,
        marked: Marked,
    ) -> Vec<Error> {
        let named = match named(socket, attachment) {
            Ok(named) => named,
            Err(error) => return vec![error],
        };
        let owned = |ifb: &Device| self.owns(socket, ifb, carrier.as_ref());
        let mut ifbs: Vec<Device> = named.into_iter().filter(owned).collect();
        let marked = match marked {
            Marked::Unsought { due } if ifbs.len() < due => self.marked(socket).unwrap_or_default(),
            Marked::Unsought { .. } => Vec::new(),
            Marked::Found(marked) => marked,
        };
        let renamed =
            marked.into_iter().filter(|ifb| self.has(ifb) && ifbs.iter().all(|known| known.index != ifb.index));
        let renamed: Vec<Device> = renamed.collect();
        ifbs.extend(renamed);
        let redirects = if ifbs.is_empty() { Some(Vec::new()) } else { socket.redirects().ok() };
        self.clear_all(socket, &ifbs, carrier, redirects.as_deref(), Removal::Asked)
    }

    /// Ours by its label. One without a label is ours by its hardware address, if an ADD was cut off that was making it; or
    /// it is the reference's, unless it serves another link than ours, or is just being made for another.
    fn owns(&self, socket: &RouteSocket, ifb: &Device, carrier: Option<&Carrier>) -> bool {
        if ifb.kind != "ifb" || !ifb.alias.is_empty() {
            return self.has(ifb);
        }
        let served = redirectors(socket, std::slice::from_ref(ifb));
        let may_be_ours = match carrier.filter(|carrier| carrier.certain) {
            Some(carrier) => served.iter().all(|link| link.index == carrier.link.index),
            None => true,
        };
        may_be_ours && (ifb.up || !served.is_empty() || self.has_mac_of(ifb))
    }

    /// Clears every link that leads to these ifbs; deletes them where the attachment is known.
    ///
    /// A filter that leads to an ifb which has gone swallows every packet, so none may be left: an attachment that was added
    /// again may have two links. `redirects` are the targets of all filters here, `None` if those are not known.
    fn clear_all(
        &self,
        socket: &RouteSocket,
        ifbs: &[Device],
        carrier: Option<Carrier>,
        redirects: Option<&[u32]>,
        removal: Removal,
    ) -> Vec<Error> {
        let is_ours = |index: u32| ifbs.iter().any(|ifb| ifb.index == index);
        let with_ifbs = removal == Removal::Asked;
        let own = carrier.map(|Carrier { link, certain }| {
            let present = Present::read(socket, link.clone(), ifbs.to_vec(), self);
            (Carrier { link, certain }, present)
        });
        let led = own.as_ref().and_then(|(_, present)| present.as_ref().ok()).map_or(0, |p| p.redirects(is_ours));
        let all = redirects.map(|all| all.iter().filter(|index| is_ours(**index)).count());
        let mut others = Vec::new();
        if all.is_none_or(|all| all > led) {
            others = redirectors(socket, ifbs);
            others.retain(|link| own.as_ref().is_none_or(|(own, _)| own.link.index != link.index));
        }
        let read = |link: Device| {
            let present = Present::read(socket, link.clone(), ifbs.to_vec(), self);
            (Carrier { link, certain: false }, present)
        };
        let mut carriers: Vec<_> = others.into_iter().map(read).chain(own).collect();
        let last = carriers.pop();
        let clear = |(carrier, present): (Carrier, Result<Present>), with_ifbs| {
            self.clear(socket, carrier, present, ifbs, removal, with_ifbs)
        };
        let mut errors: Vec<Error> = carriers.into_iter().flat_map(|carrier| clear(carrier, false)).collect();
        match last {
            Some(carrier) => errors.extend(clear(carrier, with_ifbs)),
            None if with_ifbs => errors.extend(delete(socket, ifbs)),
            None => {}
        }
        errors
    }

    fn clear(
        &self,
        socket: &RouteSocket,
        Carrier { link, certain }: Carrier,
        present: Result<Present>,
        ifbs: &[Device],
        removal: Removal,
        with_ifbs: bool,
    ) -> Vec<Error> {
        let labelled = Owner::of_label(&link.alias);
        match present {
            Ok(present) => {
                let by_label = present.link.alias == self.label;
                // Others may have written an alias that looks like a label; one whose owner has nothing here is theirs.
                let anothers = labelled.filter(|_| !by_label);
                let may_be_anothers = anothers.as_ref().is_some_and(|owner| present.is_marked(owner.mark));
                let asked = removal == Removal::Asked;
                let trust = Trust {
                    unmarked: asked && (by_label || (certain && anothers.is_none())),
                    references: asked && (by_label || (certain && !may_be_anothers)),
                    label: asked,
                };
                changes::make_all(socket, &present, &changes::to_nothing(self, &present, trust, with_ifbs))
            }
            // The link has gone meanwhile, and its filters with it.
            Err(error) if is_gone(&error) => delete(socket, if with_ifbs { ifbs } else { &[] }),
            Err(error) => vec![error],
        }
    }
}

fn delete(socket: &RouteSocket, ifbs: &[Device]) -> Vec<Error> {
    let some = ifbs.chunks(DATAGRAM_REQUESTS - 1);
    some.flat_map(|ifbs| socket.change_all(&Request::delete_links(ifbs))).filter_map(Result::err).collect()
}

/// The links with a filter that leads to one of these ifbs. What can't be read, because it is just going, leads nowhere.
fn redirectors(socket: &RouteSocket, ifbs: &[Device]) -> Vec<Device> {
    if ifbs.is_empty() {
        return Vec::new();
    }
    let leads = |device: &Device| {
        let filters = HOOKS.into_iter().flat_map(|hook| socket.filters(device, hook).unwrap_or_default());
        filters.into_iter().any(|filter| match filter.verdict {
            Verdict::Redirect { to, .. } => ifbs.iter().any(|ifb| ifb.index == to),
            _ => false,
        })
    };
    let hooked = socket.shaped_links().unwrap_or_default().into_iter().filter(|shaped| shaped.hooked);
    hooked.filter_map(|shaped| socket.device_at(shaped.index).ok().flatten()).filter(leads).collect()
}

/// Whether this kernel, and this caller, can make what ADD needs. Nothing is made to find out.
pub fn status() -> Result<()> {
    Netns::require_entrance()?;
    let host = RouteSocket::open()?;
    let answers = [
        ("CONFIG_IFB", "module ifb", host.knows_ifb()),
        ("CONFIG_NET_SCH_TBF", "module sch_tbf", host.knows_qdisc("tbf")),
        ("CONFIG_NET_SCH_INGRESS", "module sch_ingress", host.knows_qdisc("clsact")),
        ("CONFIG_NET_ACT_MIRRED", "module act_mirred", host.knows_redirect()),
    ];
    for (option, module, answer) in answers {
        let (reason, next) = match answer {
            Ok(true) => continue,
            Ok(false) => {
                (format!("this kernel lacks {option}"), format!("load the {module}, or use a kernel that has it"))
            }
            Err(error) => (error.to_string(), error.details()),
        };
        return Err(Error::NotAvailable { reason, next });
    }
    Ok(())
}
