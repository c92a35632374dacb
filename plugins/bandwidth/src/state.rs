//! The verbs: looking up the link, making, comparing and removing.

use std::collections::BTreeSet;
use std::path::Path;

use common::cni::result::Interface;
use common::cni::{CniResult, Difference, Error, Result};
use common::link::RouteSocket;
use common::link::device::{Device, is_gone};
use common::netns::Netns;
use common::tc::{Qdisc, Verdict};
use common::{Attachment, Call, State};

use crate::changes;
use crate::config::Config;
use crate::plan::{self, Facts, Lane, Mark, Shaping, Via, mac_text};
use crate::present::{HOOKS, Present};

/// The socket into the namespace of the link that carries the limits, kept from looking up to making.
pub struct Door(RouteSocket);

/// One attachment's limits, and the way to the kernel.
pub struct Share {
    shaping: Shaping,
    facts: Facts,
    door: Door,
}

impl Share {
    /// What was planned, from what was looked up, through which door.
    pub fn new(shaping: Shaping, facts: Facts, door: Door) -> Share {
        Share { shaping, facts, door }
    }

    fn present(&self) -> Result<Present> {
        Present::read(&self.door.0, self.facts.link.clone(), self.facts.named.clone())
    }
}

impl State for Share {
    fn apply(&self, _: &Call) -> Result<()> {
        let present = self.present()?;
        changes::make(&self.door.0, &present, &changes::to_shape(&self.shaping, &present)?)
    }

    fn differences(&self, _: &Call) -> Result<Vec<Difference>> {
        Ok(differences(&self.shaping, &self.present()?))
    }

    fn amend(&self, call: &Call, result: &mut CniResult) {
        let sandbox = match &call.netns {
            Some(path) if self.facts.in_container => path.display().to_string(),
            _ => String::new(),
        };
        for lane in &self.shaping.lanes {
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
    let (link, socket) = if config.in_container {
        (inner, container)
    } else {
        let host = RouteSocket::open()?;
        (host_side(&host, &inner, &netns)?, host)
    };
    let named = holders(&socket, config, &call.attachment, &link)?;
    Ok((Facts { link, named, in_container: config.in_container }, Door(socket)))
}

/// The links that have names which this attachment's ifbs may take: of a fresh link those that are needed, up to the
/// first that is free; of one that has a label, as an earlier ADD may have given it, all, because that may have made what is wanted no more.
fn holders(socket: &RouteSocket, config: &Config, attachment: &Attachment, link: &Device) -> Result<Vec<Device>> {
    if !link.alias.is_empty() {
        return named(socket, attachment);
    }
    let mut holders = Vec::new();
    for hook in HOOKS.into_iter().filter(|hook| config.needs_ifb(*hook)) {
        for name in plan::ifb_names(attachment, hook) {
            let Some(device) = socket.device(&name)? else { break };
            holders.push(device);
        }
    }
    Ok(holders)
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
            Via::Ifb { name, .. } => found.extend(ifb_differences(name, lane, shaping, present)),
        }
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

fn ifb_differences(name: &str, lane: &Lane, shaping: &Shaping, present: &Present) -> Vec<Difference> {
    let object = format!("link {name} ({})", lane.direction);
    let mut found = Vec::new();
    let ifb = present.ifb(name);
    match ifb {
        None => found.push(Difference::missing(object, format!("an ifb of \"{}\"", shaping.label))),
        Some(ifb) => {
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
    let owner = Owner { label: plan::label(&call.attachment), mark: Mark::of(&call.attachment) };
    let mut errors = Vec::new();
    let netns = call.netns.as_deref().and_then(|path| Netns::open(path).ok());
    let inside = netns.as_ref().and_then(|netns| Some((netns, RouteSocket::open_in(netns).ok()?)));
    let inner = inside.as_ref().and_then(|(_, socket)| socket.device(&call.attachment.ifname).ok().flatten());
    if let (Some((_, socket)), Some(inner)) = (&inside, &inner)
        && (inner.alias == owner.label || config.is_some_and(|c| c.in_container))
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

/// Removes what dead attachments of a network own on this host. What is in a container goes with its namespace.
pub fn collect(network: &str, live: &BTreeSet<Attachment>) -> Result<()> {
    let host = RouteSocket::open()?;
    let live: BTreeSet<String> = live.iter().map(plan::label).collect();
    let devices = host.devices()?;
    let aliases: BTreeSet<&String> = devices.iter().map(|device| &device.alias).collect();
    let dead = aliases.into_iter().filter(|alias| plan::is_of_network(alias, network) && !live.contains(*alias));
    let mut errors = Vec::new();
    for label in dead {
        let Some(mark) = Mark::of_label(label) else { continue };
        let owned = devices.iter().filter(|device| device.alias == *label).cloned();
        let (ifbs, links): (Vec<Device>, Vec<Device>) = owned.partition(|device| device.kind == "ifb");
        let carrier = links.into_iter().next().map(|link| Carrier { link, certain: false });
        errors.extend(Owner { label: label.clone(), mark }.remove_all(&host, &ifbs, carrier));
    }
    Error::gather(errors)
}

/// Whose things are to be removed.
struct Owner {
    label: String,
    mark: Mark,
}

impl Owner {
    /// The link by what the prevResult names, else by its alias.
    ///
    /// All limited links are looked at only where limits were set and nothing else leads to the link: mostly it has gone
    /// with its namespace then.
    fn link_by_hints(&self, host: &RouteSocket, config: Option<&Config>, prev: Option<&CniResult>) -> Option<Device> {
        let named = prev.map(|p| p.interfaces.as_slice()).unwrap_or_default();
        let on_host = named.iter().filter(|interface| interface.sandbox.is_empty());
        let mut devices = on_host.filter_map(|interface| host.device(&interface.name).ok().flatten());
        let is_ours = |device: &Device| device.kind != "ifb" && device.alias == self.label;
        if let Some(device) = devices.find(is_ours) {
            return Some(device);
        }
        if config.is_some_and(Config::is_idle) {
            return None;
        }
        let shaped = host.shaped_links().ok()?.into_iter();
        shaped.filter_map(|shaped| host.device_at(shaped.index).ok().flatten()).find(is_ours)
    }

    /// Removes everything from one namespace, finding the ifbs by their names.
    fn remove_named(&self, socket: &RouteSocket, attachment: &Attachment, carrier: Option<Carrier>) -> Vec<Error> {
        match named(socket, attachment) {
            Ok(named) => {
                let owned = |ifb: &Device| self.owns(socket, ifb, carrier.as_ref());
                let ifbs: Vec<Device> = named.into_iter().filter(owned).collect();
                self.remove_all(socket, &ifbs, carrier)
            }
            Err(error) => vec![error],
        }
    }

    /// Ours by its label; or the reference's, which has no label, unless it serves another link than ours.
    fn owns(&self, socket: &RouteSocket, ifb: &Device, carrier: Option<&Carrier>) -> bool {
        if ifb.kind != "ifb" || !ifb.alias.is_empty() {
            return ifb.kind == "ifb" && ifb.alias == self.label;
        }
        let serves = redirectors(socket, std::slice::from_ref(ifb));
        match carrier.filter(|carrier| carrier.certain) {
            Some(carrier) => serves.iter().all(|link| link.index == carrier.link.index),
            None => true,
        }
    }

    fn remove_all(&self, socket: &RouteSocket, ifbs: &[Device], carrier: Option<Carrier>) -> Vec<Error> {
        let mut errors = match carrier {
            Some(carrier) => self.clear(socket, carrier, ifbs),
            // A filter that leads to an ifb which has gone swallows every packet, so none may be left.
            None => {
                let links = redirectors(socket, ifbs).into_iter();
                links.flat_map(|link| self.clear(socket, Carrier { link, certain: false }, ifbs)).collect()
            }
        };
        errors.extend(ifbs.iter().filter_map(|ifb| socket.delete_link(ifb.index, &ifb.name).err()));
        errors
    }

    fn clear(&self, socket: &RouteSocket, carrier: Carrier, ifbs: &[Device]) -> Vec<Error> {
        let link_is_ours = carrier.certain || carrier.link.alias == self.label;
        match Present::read(socket, carrier.link, ifbs.to_vec()) {
            Ok(present) => {
                let changes = changes::to_nothing(&self.label, self.mark, &present, link_is_ours);
                changes::make_all(socket, &present, &changes)
            }
            Err(error) if is_gone(&error) => Vec::new(),
            Err(error) => vec![error],
        }
    }
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
