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

use crate::changes;
use crate::config::Config;
use crate::plan::{self, Facts, Lane, Mark, Shaping, Via, mac_text};
use crate::present::{HOOKS, Present, is_dead_reference};

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

    fn present(&self) -> Result<Present> {
        let facts = &self.planned.borrow().1;
        Present::read(&self.door.socket, facts.link.clone(), facts.named.clone())
    }

    fn try_to_apply(&self) -> Result<()> {
        let present = self.present()?;
        let shaping = &self.planned.borrow().0;
        changes::make(&self.door.socket, &present, &changes::to_shape(shaping, &present)?)
    }

    /// Does it under a name that is still free.
    fn apply_here(&self, call: &Call) -> Result<()> {
        for _ in 1..NAME_TRIES {
            match self.try_to_apply() {
                Err(Error::TryAgain { what }) => log::debug!("once more: {what}"),
                outcome => return outcome,
            }
            self.plan_anew(&call.attachment)?;
        }
        self.try_to_apply()
    }

    /// Removes the attachment's limits at one end.
    fn remove_at(&self, socket: &RouteSocket, link: &Device, call: &Call) -> Result<()> {
        let carrier = Carrier { link: link.clone(), certain: true };
        Error::gather(Owner::of(&call.attachment).remove_named(socket, &call.attachment, Some(carrier)))
    }

    /// Looks again at who has which name.
    fn plan_anew(&self, attachment: &Attachment) -> Result<()> {
        let Facts { link, in_container, .. } = self.planned.borrow().1.clone();
        let named = named(&self.door.socket, attachment)?;
        let busy = busy(&self.door.socket, attachment, &named, &link);
        let facts = Facts { link, named, busy, in_container };
        let shaping = plan::plan(&self.config, attachment, facts.clone())?;
        self.planned.replace((shaping, facts));
        Ok(())
    }
}

/// How often an ADD goes on with another name because another has just taken the one it wanted.
const NAME_TRIES: u32 = 3;

impl State for Share {
    fn apply(&self, call: &Call) -> Result<()> {
        let Some((socket, link)) = &self.door.left else { return self.apply_here(call) };
        let is_new = !self.present()?.is_marked(self.planned.borrow().0.mark);
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

    fn differences(&self, _: &Call) -> Result<Vec<Difference>> {
        let shaping = &self.planned.borrow().0;
        let mut found = differences(shaping, &self.present()?);
        let left = self.door.left.iter().filter(|(_, link)| link.alias == shaping.label);
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
    let busy = busy(&socket, &call.attachment, &named, &link);
    Ok((Facts { link, named, busy, in_container: config.in_container }, Door { socket, left }))
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

/// The indices of the ifbs without a label that `link` must leave: those that filters of other links lead to, and those
/// that another interface's ADD is just making. That one has them down until they have their label, under its own address;
/// the reference's are up from the beginning.
fn busy(socket: &RouteSocket, attachment: &Attachment, named: &[Device], link: &Device) -> Vec<u32> {
    let own = HOOKS.map(|hook| plan::mac(attachment, hook));
    let is_busy = |ifb: &&Device| {
        let served = redirectors(socket, std::slice::from_ref(*ifb));
        let in_the_making = !ifb.up && ifb.mac.is_none_or(|mac| !own.contains(&mac));
        served.iter().any(|other| other.index != link.index) || (served.is_empty() && in_the_making)
    };
    let unlabelled = named.iter().filter(|device| device.kind == "ifb" && device.alias.is_empty());
    unlabelled.filter(is_busy).map(|ifb| ifb.index).collect()
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
            Via::Root => found.extend(root_difference(&shaping.link.name, lane, present.root.as_ref())),
            Via::Ifb { name, mac, .. } => found.extend(ifb_differences((name, *mac), lane, shaping, present)),
        }
    }
    let dead = present.filters.iter().filter(|(_, filter)| is_dead_reference(filter));
    found.extend(dead.map(|(hook, _)| {
        let object = format!("filter of link {} on {hook}", shaping.link.name);
        Difference::other(object, "nothing that swallows packets", "a redirect of all to a link that has gone")
    }));
    // GC knows by it whose this is.
    if present.link.alias.is_empty() && present.is_marked(shaping.mark) {
        found.push(Difference::missing(
            format!("alias of link {}", shaping.link.name),
            format!("\"{}\"", shaping.label),
        ));
    }
    found
}

fn root_difference(link: &str, lane: &Lane, root: Option<&Qdisc>) -> Option<Difference> {
    let object = format!("root qdisc of link {link} ({})", lane.direction);
    match root {
        None => Some(Difference::missing(object, lane.bucket.to_string())),
        Some(qdisc) if qdisc.bucket.is_some_and(|seen| seen.is(&lane.bucket)) => None,
        Some(qdisc) => Some(Difference::other(object, lane.bucket.to_string(), qdisc.to_string())),
    }
}

fn ifb_differences((name, mac): (&str, [u8; 6]), lane: &Lane, shaping: &Shaping, present: &Present) -> Vec<Difference> {
    let object = format!("link {name} ({})", lane.direction);
    let mut found = Vec::new();
    let ifb = present.ifb(name);
    match ifb {
        None => found.push(Difference::missing(object, format!("an ifb of \"{}\"", shaping.label))),
        Some(ifb) => {
            // The reference's has none, and another hardware address.
            if ifb.device.alias != shaping.label && ifb.device.mac == Some(mac) {
                let expected = format!("\"{}\"", shaping.label);
                found.push(Difference::missing(format!("alias of link {name} ({})", lane.direction), expected));
            }
            if !ifb.device.up {
                found.push(Difference::other(object, "up", "down"));
            }
            found.extend(root_difference(name, lane, ifb.root.as_ref()));
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
    let extra = present.ours(shaping.mark).filter(|(at, _)| *at == lane.hook).filter_map(|(_, filter)| {
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
        errors.extend(owner.remove_named(socket, &call.attachment, Some(carrier)));
    }
    let host = RouteSocket::open()?;
    let outer = match (&inside, &inner) {
        (Some((netns, _)), Some(inner)) => host.other_end(inner, netns).ok().flatten(),
        _ => None,
    };
    let carrier = match outer {
        Some(link) => Some(Carrier { link, certain: true }),
        None => owner.link_by_hints(&host, config, prev).map(|link| Carrier { link, certain: false }),
    };
    errors.extend(owner.remove_named(&host, &call.attachment, carrier));
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
pub fn collect(network: &str, live: &BTreeSet<Attachment>) -> Result<()> {
    let host = RouteSocket::open()?;
    let live: BTreeSet<String> = live.iter().map(plan::label).collect();
    let devices = host.devices()?;
    let aliases: BTreeSet<&String> = devices.iter().map(|device| &device.alias).collect();
    let dead = aliases.into_iter().filter(|alias| plan::is_of_network(alias, network) && !live.contains(*alias));
    let (mut errors, mut unused) = (Vec::new(), Vec::new());
    for label in dead {
        let Some(mark) = Mark::of_label(label) else { continue };
        let owned = devices.iter().filter(|device| device.alias == *label).cloned();
        let (ifbs, links): (Vec<Device>, Vec<Device>) = owned.partition(|device| device.kind == "ifb");
        let carrier = links.into_iter().next().map(|link| Carrier { link, certain: false });
        let cleared = Owner { label: label.clone(), mark }.clear_all(&host, &ifbs, carrier, false);
        // A filter that leads to an ifb which has gone swallows every packet.
        if cleared.is_empty() {
            unused.extend(ifbs);
        }
        errors.extend(cleared);
    }
    errors.extend(delete(&host, &unused));
    Error::gather(errors)
}

/// Whose things are to be removed.
struct Owner {
    label: String,
    mark: Mark,
}

impl Owner {
    fn of(attachment: &Attachment) -> Owner {
        Owner { label: plan::label(attachment), mark: Mark::of(attachment) }
    }

    /// The link by what the prevResult names, else by the mark of its bucket, else by its alias.
    ///
    /// All limited links are looked at only where limits were set and nothing else leads to the link: mostly it has gone
    /// with its namespace then. The kernel tells of all buckets in one answer.
    fn link_by_hints(&self, host: &RouteSocket, config: Option<&Config>, prev: Option<&CniResult>) -> Option<Device> {
        let named = prev.map(|p| p.interfaces.as_slice()).unwrap_or_default();
        let on_host = named.iter().filter(|interface| interface.sandbox.is_empty());
        let mut devices = on_host.filter_map(|interface| host.device(&interface.name).ok().flatten());
        let is_ours = |device: &Device| device.kind != "ifb" && device.alias == self.label;
        if let Some(device) = devices.find(is_ours) {
            return Some(device);
        }
        let shaped = host.shaped_links().ok()?;
        let at = |shaped: &Shaped| host.device_at(shaped.index).ok().flatten();
        // The buckets of our ifbs have the mark, too.
        let mut marked = shaped.iter().filter(|shaped| self.mark.reads_number(shaped.mark).is_some()).filter_map(at);
        if let Some(device) = marked.find(|device| device.kind != "ifb") {
            return Some(device);
        }
        if config.is_some_and(Config::is_idle) {
            return None;
        }
        shaped.iter().filter_map(at).find(is_ours)
    }

    /// Removes everything from one namespace, finding the ifbs by their names.
    fn remove_named(&self, socket: &RouteSocket, attachment: &Attachment, carrier: Option<Carrier>) -> Vec<Error> {
        match named(socket, attachment) {
            Ok(named) => {
                let own = HOOKS.map(|hook| plan::mac(attachment, hook));
                let owned = |ifb: &Device| self.owns(socket, ifb, &own, carrier.as_ref());
                let ifbs: Vec<Device> = named.into_iter().filter(owned).collect();
                self.clear_all(socket, &ifbs, carrier, true)
            }
            Err(error) => vec![error],
        }
    }

    /// Ours by its label. One without a label is ours by its hardware address, if an ADD was cut off that was making it; or
    /// it is the reference's, unless it serves another link than ours, or is just being made for another.
    fn owns(&self, socket: &RouteSocket, ifb: &Device, own: &[[u8; 6]], carrier: Option<&Carrier>) -> bool {
        if ifb.kind != "ifb" || !ifb.alias.is_empty() {
            return ifb.kind == "ifb" && ifb.alias == self.label;
        }
        let served = redirectors(socket, std::slice::from_ref(ifb));
        let may_be_ours = match carrier.filter(|carrier| carrier.certain) {
            Some(carrier) => served.iter().all(|link| link.index == carrier.link.index),
            None => true,
        };
        may_be_ours && (ifb.up || !served.is_empty() || ifb.mac.is_some_and(|mac| own.contains(&mac)))
    }

    /// Clears every link that leads to these ifbs; deletes them only `with_ifbs`.
    fn clear_all(
        &self,
        socket: &RouteSocket,
        ifbs: &[Device],
        carrier: Option<Carrier>,
        with_ifbs: bool,
    ) -> Vec<Error> {
        // A filter that leads to an ifb which has gone swallows every packet, so none may be left.
        let others =
            |ifbs| redirectors(socket, ifbs).into_iter().map(|link| Carrier { link, certain: false }).collect();
        let mut carriers: Vec<Carrier> = carrier.map_or_else(|| others(ifbs), |carrier| vec![carrier]);
        let last = carriers.pop();
        let mut errors: Vec<Error> =
            carriers.into_iter().flat_map(|carrier| self.clear(socket, carrier, ifbs, false)).collect();
        match last {
            Some(carrier) => errors.extend(self.clear(socket, carrier, ifbs, with_ifbs)),
            None if with_ifbs => errors.extend(delete(socket, ifbs)),
            None => {}
        }
        errors
    }

    fn clear(&self, socket: &RouteSocket, carrier: Carrier, ifbs: &[Device], with_ifbs: bool) -> Vec<Error> {
        let alias = &carrier.link.alias;
        let is_anothers = *alias != self.label && Mark::of_label(alias).is_some();
        let link_is_ours = *alias == self.label || (carrier.certain && !is_anothers);
        match Present::read(socket, carrier.link, ifbs.to_vec()) {
            Ok(present) => {
                let changes = changes::to_nothing(&self.label, self.mark, &present, link_is_ours, with_ifbs);
                changes::make_all(socket, &present, &changes)
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
