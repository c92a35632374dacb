//! What was there before ADD, as it stands in a state file.
//!
//! The file is the reference's, `<dataDir>/<containerID>_<ifname>.json`, with its keys `mac`, `promisc`, `mtu`,
//! `allmulti` and `txQLen`, so either plugin restores what the other saved; ours adds keys that the reference ignores.
//!
//! What was saved first stays: a repeated ADD and a second tuning in the same chain find values that are ours already.
//! Whichever of them is deleted first puts back the original, and the others find nothing left to do.
//!
//! Several attachments of one container may set the same thing. Each of their records then has the same original, taken
//! over from the one before, and what each has written and when, key by key: a repeated ADD is the last to have written what
//! it writes, not what an earlier one of the same attachment has. Whoever goes leaves (or puts back) what the last of those
//! that stay has written; the last one to go puts back the original. So the order of going does not matter, and no record is
//! ever changed by another attachment.
//!
//! The kernel changes sysctls along with an interface's MTU. Whoever finds the MTU set already writes nothing, so nothing changes
//! along, but he may be the last to put it back: so he takes over what the others know of those sysctls, too.

use std::collections::{BTreeMap, BTreeSet};

use common::cni::Json;
use common::link::attributes::{LinkAttributes, mac_text};
use common::link::ipv6::Entry;
use common::sysctl::{Name, reaches, same_value};
use common::{Attachment, store};
use serde::{Deserialize, Serialize};

use crate::config::parse_mac;
use crate::plan::{Facts, IPV6_MIN_MTU, Step, changes_with_mtu, is_about_addresses, makes_no_addresses};

/// The content of a state file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Record {
    /// What the link's attributes were: the reference's keys, which stand beside the others in the file.
    #[serde(flatten, skip_deserializing)]
    before: Attributes,
    /// Whose it is; the reference does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
    /// Where the values were found; the reference does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    /// When this was written, among the records of a namespace: the greater, the later. It counts for whatever says nothing
    /// else.
    order: u64,
    /// What the link's attributes were set to.
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<Attributes>,
    /// What others of them were set to before that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Earlier>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sysctls: Vec<Saved>,
    /// IPv6 addresses and routes that the kernel drops with what was written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ipv6: Vec<Dropped>,
    /// Static neighbours that the kernel drops with the hardware address, until they are back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    neighbours: Vec<Dropped>,
    /// The links to which an ADD is giving IPv6 again, until what is kept for them is back.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    regaining: BTreeSet<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Owner {
    network: String,
    container: String,
    ifname: String,
}

/// The namespace and the interface in which values were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Place {
    /// Device and inode of the namespace's file in nsfs, as `4:4026532001`.
    pub netns: String,
    /// The kernel's number of the namespace, which no other gets; absent where the kernel has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
    /// Where the namespace was found, for GC.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The interface's index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ifindex: Option<u32>,
}

impl Place {
    /// Whether both are in one namespace.
    pub fn is_same_netns(&self, other: &Place) -> bool {
        self.netns == other.netns && (self.cookie.is_none() || other.cookie.is_none() || self.cookie == other.cookie)
    }

    fn may_be_same_link(&self, other: &Place) -> bool {
        self.ifindex.is_none() || other.ifindex.is_none() || self.ifindex == other.ifindex
    }
}

/// Link attributes as they stand in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Attributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue_len: Option<u32>,
}

impl From<&Attributes> for LinkAttributes {
    /// Values that can't be ones are left out.
    fn from(written: &Attributes) -> LinkAttributes {
        LinkAttributes {
            mac: written.mac.as_deref().and_then(|text| parse_mac(text).ok()),
            mtu: written.mtu.filter(|mtu| *mtu != 0),
            promisc: written.promisc,
            allmulti: written.allmulti,
            tx_queue_len: written.tx_queue_len,
        }
    }
}

impl From<&LinkAttributes> for Attributes {
    fn from(link: &LinkAttributes) -> Attributes {
        Attributes {
            mac: link.mac.as_deref().map(mac_text),
            promisc: link.promisc,
            mtu: link.mtu,
            allmulti: link.allmulti,
            tx_queue_len: link.tx_queue_len,
        }
    }
}

/// What link attributes were set to by an earlier ADD, as far as no later one of the attachment's has set them again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Earlier {
    order: u64,
    set: Attributes,
}

/// One sysctl.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Saved {
    name: String,
    /// When it was written, if that was before the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<u64>,
    /// The index of the interface whose sysctl it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    ifindex: Option<u32>,
    /// What it held; absent if it held nothing that could be put back.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    /// What was written last; absent if the kernel wrote it along with another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
    /// What the kernel made of it, where that is another value (it rounds times, joins ranges, …).
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

impl Saved {
    /// What ADD left there.
    fn held(&self) -> Option<&String> {
        self.kept.as_ref().or(self.written.as_ref())
    }
}

/// An address or a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Dropped {
    /// For the reader.
    what: String,
    /// The kernel's message in hexadecimal digits.
    message: String,
}

impl From<&Entry> for Dropped {
    fn from(entry: &Entry) -> Dropped {
        let message = entry.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Dropped { what: entry.to_string(), message }
    }
}

impl Dropped {
    fn entry(&self) -> Option<Entry> {
        let digits = self.message.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
        let bytes: Option<Vec<u8>> = digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect();
        Entry::from_bytes(&bytes?)
    }
}

/// One sysctl to put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// Which.
    pub name: Name,
    /// To what.
    pub value: String,
    /// The index of the interface whose sysctl was meant, if it is known.
    pub ifindex: Option<u32>,
}

/// The values to put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// Of the link.
    pub link: LinkAttributes,
    /// Of the sysctls, in the order in which they were changed.
    pub sysctls: Vec<Former>,
    /// Addresses and routes.
    pub ipv6: Vec<Entry>,
    /// Neighbours that go, or have gone, with a hardware address.
    pub neighbours: Vec<Entry>,
    /// The links on which, of the addresses that the kernel makes itself, there shall be those in `ipv6` and no others.
    pub own_addresses: BTreeSet<u32>,
}

/// When a sysctl was set, and whether it was written itself, which counts of two that are equally old; and to what.
type HeldValue = ((u64, bool), String);

/// What those that stay have set: of each key, what was written last.
#[derive(Clone, Debug, Default)]
pub struct Held {
    links: BTreeMap<u32, LinkAttributes>,
    /// By name, and by the index of the interface whose it is.
    sysctls: BTreeMap<String, BTreeMap<Option<u32>, HeldValue>>,
    /// The links of which they have said how they come by their addresses.
    addressed: BTreeSet<u32>,
}

impl Held {
    /// What these have set.
    pub fn by<'a>(records: impl IntoIterator<Item = &'a Record>) -> Held {
        let mut held = Held::default();
        let mut links: Vec<(u64, u32, LinkAttributes)> = Vec::new();
        for record in records {
            let earlier = record.earlier.iter().map(|e| (e.order, &e.set));
            let sets = earlier.chain(record.set.as_ref().map(|set| (record.order, set)));
            links.extend(record.ifindex().into_iter().flat_map(|i| sets.clone().map(move |(o, s)| (o, i, s.into()))));
            for saved in &record.sysctls {
                held.take(saved, saved.order.unwrap_or(record.order));
            }
        }
        links.sort_by_key(|(order, _, _)| *order);
        for (_, index, set) in links {
            let before = held.links.remove(&index).unwrap_or_default();
            held.links.insert(index, set.or(before));
        }
        held
    }

    fn take(&mut self, saved: &Saved, order: u64) {
        let Some(value) = saved.held() else { return };
        if is_about_addresses(&saved.name) {
            self.addressed.extend(saved.ifindex);
        }
        let order = (order, saved.written.is_some());
        let of_name = self.sysctls.entry(saved.name.clone()).or_default();
        match of_name.get(&saved.ifindex) {
            Some((later, _)) if *later > order => {}
            _ => drop(of_name.insert(saved.ifindex, (order, value.clone()))),
        }
    }

    fn link(&self, index: Option<u32>) -> LinkAttributes {
        index.and_then(|index| self.links.get(&index)).cloned().unwrap_or_default()
    }

    /// Without an index, that of any interface of the name.
    fn sysctl(&self, name: &str, ifindex: Option<u32>) -> Option<&String> {
        let of_name = self.sysctls.get(name)?;
        let found = match ifindex {
            Some(_) => of_name.get(&ifindex),
            None => of_name.values().max_by_key(|(order, _)| *order),
        };
        found.map(|(_, value)| value)
    }
}

impl Original {
    /// What these steps would change.
    pub fn of(steps: &[Step], facts: &Facts) -> Original {
        let own_addresses = links_with_own_addresses(&facts.ipv6);
        let (ipv6, neighbours) = (facts.ipv6.clone(), facts.neighbours.clone());
        let mut original = Original { ipv6, neighbours, own_addresses, ..Original::default() };
        for step in steps {
            if let Step::Link { before, .. } = step {
                original.link = original.link.or(before.clone());
            }
            for (name, before) in step.changed() {
                if before.is_some_and(|value| makes_no_addresses(name.as_str(), value)) {
                    original.own_addresses.extend(name.interface().and_then(|i| facts.indexes.get(i)));
                }
                if let Some(value) = before.filter(|_| original.sysctls.iter().all(|known| known.name != *name)) {
                    original.sysctls.push(Former { name: name.clone(), value: value.clone(), ifindex: None });
                }
            }
        }
        original
    }
}

/// The MTU of IPv6 on an interface that gets this one; below 1280 bytes there is no IPv6.
fn ipv6_mtu(mtu: u32) -> Option<String> {
    (mtu >= IPV6_MIN_MTU).then(|| mtu.to_string())
}

/// The links of which an address is known that the kernel has made: so all of those it had are.
fn links_with_own_addresses(entries: &[Entry]) -> BTreeSet<u32> {
    entries.iter().filter(|entry| entry.is_the_kernels_own()).map(|entry| entry.link).collect()
}

impl Record {
    /// The record of the first ADD of an attachment.
    pub fn new(owner: &Attachment, place: Place) -> Record {
        let mut record = Record { place: Some(place), ..Record::default() };
        record.own(owner);
        record
    }

    fn own(&mut self, owner: &Attachment) {
        let Attachment { network, container, ifname } = owner.clone();
        self.owner = Some(Owner { network, container, ifname });
    }

    /// Reads a file; keys match in any case and unknown ones are ignored, as the reference would.
    pub fn parse(bytes: &[u8]) -> Result<Record, String> {
        let json: Json = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        // One after the other: what serde flattens it reads without the names of the keys, so in one case only.
        let before = json.read(&mut Vec::new()).map_err(|e| e.to_string())?;
        let record: Record = json.read(&mut Vec::new()).map_err(|e| e.to_string())?;
        Ok(Record { before, ..record })
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
        // Strings, numbers and booleans into memory: nothing of this can fail.
        let _ = self.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
        out
    }

    /// Whether it is `attachment`'s; a file of the reference has no owner and is taken at its name.
    pub fn belongs_to(&self, attachment: &Attachment) -> bool {
        self.owner().is_none_or(|owner| owner == *attachment)
    }

    /// Whose it is, if it says so.
    pub fn owner(&self) -> Option<Attachment> {
        self.owner.as_ref().map(|o| Attachment::new(o.network.clone(), o.container.clone(), o.ifname.clone()))
    }

    /// Where the values were found; the reference does not say.
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// When it was written last, among the records of its namespace: the greater, the later.
    pub fn order(&self) -> u64 {
        self.order
    }

    /// Whether the values may have been found in this namespace.
    pub fn is_of_netns(&self, place: &Place) -> bool {
        self.place.as_ref().is_none_or(|p| p.is_same_netns(place))
    }

    /// The index of the interface whose attributes were changed, if it is known.
    pub fn ifindex(&self) -> Option<u32> {
        self.place.as_ref().and_then(|place| place.ifindex)
    }

    /// A record of the reference, found to be of this attachment and this place.
    ///
    /// The kernel has changed the interface's IPv6 MTU along with the MTU (`addrconf_notify` in net/ipv6/addrconf.c) and will
    /// again with the original one, so what it holds by now is none.
    pub fn adopted(mut self, owner: &Attachment, place: Place) -> Record {
        self.own(owner);
        if self.before.mtu.is_some() {
            let name = format!("net/ipv6/conf/{}/mtu", owner.ifname);
            self.sysctls.push(Saved { name, ifindex: place.ifindex, ..Saved::default() });
        }
        self.place = Some(place);
        self
    }

    /// The record as of now, in the same namespace: of interfaces that are not the same any more there is nothing to keep.
    pub fn renewed(mut self, place: Place, indexes: &BTreeMap<String, u32>) -> Record {
        let same_link = self.place.as_ref().is_none_or(|old| old.may_be_same_link(&place));
        if !same_link {
            self.before = Attributes::default();
            self.set = None;
            self.earlier = Vec::new();
            let old = self.ifindex();
            self.ipv6.retain(|d| d.entry().is_some_and(|e| Some(e.link) != old));
            self.neighbours = Vec::new();
            self.regaining.retain(|link| Some(*link) != old);
        }
        self.sysctls.retain(|s| {
            let now = Name::new(&s.name).and_then(|n| n.interface().and_then(|i| indexes.get(i)).copied());
            s.ifindex.is_none() || now.is_none() || s.ifindex == now
        });
        let ifindex = place.ifindex.or(self.ifindex());
        self.place = Some(Place { ifindex, ..place });
        self
    }

    /// Adds what `steps` will change, and what `claimed` link attributes are asked for; what was saved before stays, here or
    /// in the records of the container's `others`, the oldest first.
    pub fn remember(&mut self, steps: &[Step], claimed: &LinkAttributes, facts: &Facts, others: &[Record]) {
        let found = Original::of(steps, facts).link;
        let now = facts.link.as_ref().map(|l| claimed.values_in(&l.attributes)).unwrap_or_default();
        let theirs = self.on_this_link(others).map(|r| r.link_original());
        let inherited = theirs.fold(LinkAttributes::default(), LinkAttributes::or);
        let mut written = LinkAttributes::default();
        for step in steps {
            if let Step::Link { after, .. } = step {
                written = written.or(after.clone());
            }
        }
        if !others.is_empty() {
            written = written.or(claimed.clone());
        }
        let first = written.values_in(&inherited).or(found).or(written.values_in(&now));
        self.before = Attributes::from(&self.link_original().or(first));
        let order = others.iter().map(Record::order).max().map_or(self.order, |o| self.order.max(o + 1));
        self.advance(order, &written);
        let set = written.or(self.set.as_ref().map(LinkAttributes::from).unwrap_or_default());
        self.set = Some(Attributes::from(&set)).filter(|_| !set.is_empty());
        // It asks what was known before.
        let absent: Vec<Saved> = steps.iter().flat_map(|step| self.absent_followers(step, others)).collect();
        self.remember_ipv6(steps, claimed, facts, others, &absent);
        self.await_neighbours(&facts.neighbours);
        for step in steps {
            self.remember_sysctls(step, facts, others);
        }
        self.take_over_absent(absent);
        if let Some(mtu) = claimed.mtu.filter(|_| !others.is_empty()) {
            let is_written = steps.iter().any(|step| matches!(step, Step::Link { after, .. } if after.mtu.is_some()));
            self.take_over_with_mtu(mtu, is_written, others);
        }
    }

    /// What was set before stays as old as it is, but for what is `written` now.
    fn advance(&mut self, order: u64, written: &LinkAttributes) {
        if order == self.order {
            return;
        }
        let former = std::mem::replace(&mut self.order, order);
        for saved in &mut self.sysctls {
            saved.order = saved.order.or(Some(former));
        }
        self.earlier.extend(self.set.take().map(|set| Earlier { order: former, set }));
        for earlier in &mut self.earlier {
            let set = LinkAttributes::from(&earlier.set).not_given_in(written);
            earlier.set = Attributes::from(&set);
        }
        self.earlier.retain(|earlier| earlier.set != Attributes::default());
    }

    /// Where IPv6 is off already, only the one who switched it off knows what there was; where the kernel has made addresses in
    /// another's way, only the one who said so knows those before.
    fn remember_ipv6(
        &mut self,
        steps: &[Step],
        claimed: &LinkAttributes,
        facts: &Facts,
        others: &[Record],
        absent: &[Saved],
    ) {
        if facts.ipv6.is_empty() && others.iter().all(|r| r.ipv6.is_empty()) {
            return;
        }
        let entries = |record: &Record| record.ipv6.iter().filter_map(Dropped::entry).collect::<Vec<_>>();
        let theirs: Vec<Entry> = others.iter().flat_map(entries).collect();
        let mut known = links_with_own_addresses(&theirs);
        known.extend(links_with_own_addresses(&entries(self)));
        let saved = others.iter().chain([&*self]).flat_map(|record| &record.sysctls);
        let made_none = |s: &&Saved| s.before.as_ref().is_some_and(|before| makes_no_addresses(&s.name, before));
        known.extend(saved.filter(made_none).filter_map(|s| s.ifindex));
        let switches = |(name, _): (&Name, _)| name.as_str().ends_with("/disable_ipv6");
        let holds_off =
            claimed.mtu.is_some_and(|mtu| mtu < IPV6_MIN_MTU) || steps.iter().flat_map(Step::changed).any(switches);
        let mut concerned = links_with_own_addresses(&facts.ipv6);
        concerned.extend(facts.readdressed.iter().filter_map(|interface| facts.indexes.get(interface)));
        concerned.extend(absent.iter().filter(|s| is_about_addresses(&s.name)).filter_map(|s| s.ifindex));
        let found = facts.ipv6.iter().filter(|e| !(e.is_the_kernels_own() && known.contains(&e.link)));
        let inherited = theirs.iter().filter(|e| holds_off || (e.is_the_kernels_own() && concerned.contains(&e.link)));
        for entry in found.chain(inherited) {
            if !entries(self).iter().any(|old| old.is_same_object(entry)) {
                self.ipv6.push(Dropped::from(entry));
            }
        }
    }

    /// What IPv6 was known to have, before anybody took it away, on these links; the kernel makes its own addresses anew.
    pub fn ipv6_of(&self, links: &BTreeSet<u32>) -> Vec<Entry> {
        let dropped = self.ipv6.iter().filter_map(Dropped::entry);
        dropped.filter(|entry| links.contains(&entry.link) && !entry.is_the_kernels_own()).collect()
    }

    /// Notes neighbours that are about to go with a hardware address: should the call be killed, the next one puts them back. One
    /// that has been made anew since is what it is now. Says whether that is news.
    pub fn await_neighbours(&mut self, going: &[Entry]) -> bool {
        let known = self.awaited_neighbours();
        let news: Vec<&Entry> = going.iter().filter(|entry| !known.contains(entry)).collect();
        let is_outdated =
            |old: &Dropped| old.entry().is_some_and(|old| news.iter().any(|new| new.is_same_object(&old)));
        self.neighbours.retain(|old| !is_outdated(old));
        self.neighbours.extend(news.iter().map(|entry| Dropped::from(*entry)));
        !news.is_empty()
    }

    /// The neighbours that a call that was killed may not have put back.
    pub fn awaited_neighbours(&self) -> Vec<Entry> {
        self.neighbours.iter().filter_map(Dropped::entry).collect()
    }

    /// Notes the links that are about to have IPv6 again: should the call be killed, the next one puts back what is kept for them.
    pub fn await_ipv6(&mut self, regaining: BTreeSet<u32>) {
        self.regaining.extend(regaining);
    }

    /// The links that a call that was killed may have given IPv6 without what is kept for them.
    pub fn regaining_ipv6(&self) -> &BTreeSet<u32> {
        &self.regaining
    }

    /// Links that have IPv6 again have all of it, and these neighbours are back: whoever removes something from now on shall not see it
    /// again. Says whether anything was awaited of that.
    pub fn forget_awaited(&mut self, back: &[Entry]) -> bool {
        let awaited = self.neighbours.len();
        self.neighbours.retain(|d| !d.entry().is_some_and(|old| back.iter().any(|entry| entry.is_same_object(&old))));
        (self.neighbours.len() < awaited) | !std::mem::take(&mut self.regaining).is_empty()
    }

    fn remember_sysctls(&mut self, step: &Step, facts: &Facts, others: &[Record]) {
        for (name, before) in step.changed() {
            let ifindex = name.interface().and_then(|i| facts.indexes.get(i)).copied();
            let inherited = others.iter().find_map(|r| r.saved(name, ifindex));
            let (written, kept) = match step {
                Step::Sysctl { name: own, after, .. } if own == name => (Some(after.clone()), None),
                // Switching IPv6 off leaves its MTU as it is; switching it on again does not.
                Step::Sysctl { .. } if changes_with_mtu(name.as_str(), IPV6_MIN_MTU) => (None, before.cloned()),
                Step::Sysctl { after, .. } => (None, Some(after.clone())),
                Step::Link { after, .. } => (None, after.mtu.and_then(ipv6_mtu)),
            };
            match self.sysctls.iter_mut().find(|s| s.name == name.as_str()) {
                Some(saved) if written.is_some() => (saved.written, saved.kept, saved.order) = (written, None, None),
                Some(saved) => (saved.kept, saved.order) = (kept, None),
                None => self.sysctls.push(Saved {
                    name: name.as_str().to_owned(),
                    order: None,
                    ifindex,
                    before: inherited.map_or(before, |saved| saved.before.as_ref()).cloned(),
                    written,
                    kept,
                }),
            }
        }
    }

    /// What a step would change, too, had its interface IPv6 now: whoever takes it away keeps that, and the interface may get it back
    /// before this attachment goes and changes it along.
    fn absent_followers(&self, step: &Step, others: &[Record]) -> Vec<Saved> {
        let Step::Sysctl { name: leader, after, .. } = step else { return Vec::new() };
        // One interface's, or the namespace's alone, which are most of them.
        if leader.rank() > 1 {
            return Vec::new();
        }
        let is_absent = |saved: &&Saved| {
            let follows = Name::new(&saved.name).is_some_and(|name| reaches(leader, &name));
            follows && saved.ifindex.is_some() && step.changed().all(|(name, _)| name.as_str() != saved.name)
        };
        // Switching IPv6 on and off leaves nothing of its MTU to hold.
        let is_held = |saved: &Saved| !saved.name.ends_with("/mtu");
        let saved = others.iter().chain([self]).flat_map(|record| &record.sysctls).filter(is_absent);
        let taken = |saved: &Saved| Saved {
            order: None,
            written: None,
            kept: is_held(saved).then(|| after.clone()),
            ..saved.clone()
        };
        saved.map(taken).collect()
    }

    /// As if they had been there; the oldest come first and know most.
    fn take_over_absent(&mut self, absent: Vec<Saved>) {
        for saved in absent {
            match self.sysctls.iter_mut().find(|own| own.name == saved.name) {
                Some(own) if saved.kept.is_some() => (own.kept, own.order) = (saved.kept, None),
                Some(_) => {}
                None => self.sysctls.push(saved),
            }
        }
    }

    /// Takes over from others what changes along with an MTU that is claimed. If it is not written, the interface having it
    /// already, that is as old as it is with the last of them: what somebody has set since stays the later.
    fn take_over_with_mtu(&mut self, mtu: u32, is_written: bool, others: &[Record]) {
        let Some(ifindex) = self.ifindex() else { return };
        let follows = |saved: &Saved| saved.ifindex == Some(ifindex) && changes_with_mtu(&saved.name, mtu);
        let mut known: BTreeMap<&str, (bool, u64, &Saved)> = BTreeMap::new();
        for other in others {
            for saved in other.sysctls.iter().filter(|saved| follows(saved)) {
                let order = saved.order.unwrap_or(other.order);
                let theirs = (saved.written.is_none(), order, saved);
                let best = known.entry(&saved.name).or_insert(theirs);
                if (theirs.0, theirs.1) > (best.0, best.1) {
                    *best = theirs;
                }
            }
        }
        for (_, order, saved) in known.into_values() {
            if self.sysctls.iter().all(|own| own.name != saved.name) {
                self.sysctls.push(Saved { order: Some(order), written: None, kept: None, ..saved.clone() });
            }
        }
        for own in self.sysctls.iter_mut().filter(|own| own.written.is_none() && follows(own)) {
            own.kept = ipv6_mtu(mtu);
            own.order = own.order.filter(|_| !is_written);
        }
    }

    /// The record of an attachment that has gone without everything being put back: what it found, and nothing that it has set.
    pub fn released(&self) -> Record {
        let released = |saved: &Saved| Saved { order: None, written: None, kept: None, ..saved.clone() };
        let sysctls = self.sysctls.iter().map(released).collect();
        Record { set: None, earlier: Vec::new(), sysctls, ..self.clone() }
    }

    fn on_this_link<'a>(&'a self, others: &'a [Record]) -> impl DoubleEndedIterator<Item = &'a Record> {
        let same = |r: &&Record| r.ifindex().is_some() && r.ifindex() == self.ifindex();
        others.iter().filter(same)
    }

    fn saved(&self, name: &Name, ifindex: Option<u32>) -> Option<&Saved> {
        self.sysctls.iter().find(|s| s.name == name.as_str() && s.ifindex == ifindex)
    }

    fn link_original(&self) -> LinkAttributes {
        LinkAttributes::from(&self.before)
    }

    /// Notes what a sysctl holds after ADD; says whether that is news.
    pub fn note_kept(&mut self, name: &Name, kernels: &str) -> bool {
        let Some(saved) = self.sysctls.iter_mut().find(|s| s.name == name.as_str()) else { return false };
        let as_written = saved.written.as_deref().is_some_and(|written| same_value(written, kernels));
        let new = (!as_written).then(|| kernels.to_owned());
        let changed = saved.kept != new;
        saved.kept = new;
        changed
    }

    /// Whether `value` is what the kernel made of `written`.
    pub fn kept_as(&self, name: &Name, written: &str, value: &str) -> bool {
        let saved = self.sysctls.iter().find(|s| s.name == name.as_str());
        saved.is_some_and(|s| s.written.as_deref() == Some(written) && s.kept.as_deref() == Some(value))
    }

    /// Which sysctls it has.
    pub fn names(&self) -> Vec<Name> {
        self.sysctls.iter().filter_map(|s| Name::new(&s.name)).collect()
    }

    /// What there is to put back when this attachment goes and others stay, who have set what is `held`. `along`: what the
    /// kernel changes along with this record's sysctls, by now.
    ///
    /// Values that can't be ones are left out.
    pub fn original(&self, held: &Held, along: &[Name]) -> Original {
        let theirs = held.link(self.ifindex());
        let link = self.link_original();
        let own = self.sysctls.iter().filter_map(|s| {
            let value = held.sysctl(&s.name, s.ifindex).cloned().or(s.before.clone())?;
            Some(Former { name: Name::new(&s.name)?, value, ifindex: s.ifindex })
        });
        let own: Vec<Former> = own.collect();
        let foreign = along.iter().filter(|n| self.sysctls.iter().all(|s| s.name != n.as_str()));
        let foreign = foreign.filter_map(|name| {
            let value = held.sysctl(name.as_str(), None)?.clone();
            Some(Former { name: name.clone(), value, ifindex: None })
        });
        let ipv6: Vec<Entry> = self.ipv6.iter().filter_map(Dropped::entry).collect();
        let mut own_addresses = links_with_own_addresses(&ipv6);
        let without = own.iter().filter(|former| makes_no_addresses(former.name.as_str(), &former.value));
        own_addresses.extend(without.filter_map(|former| former.ifindex));
        own_addresses.retain(|link| !held.addressed.contains(link));
        let (link, sysctls) = (link.values_in(&theirs).or(link), foreign.chain(own).collect());
        Original { link, sysctls, own_addresses, ipv6, neighbours: self.awaited_neighbours() }
    }
}

/// The names under which an attachment's file may stand: the reference's, and one of its own in case another attachment
/// has the first (two networks with one interface name, or `a_b` + `c` and `a` + `b_c`) or it would be too long.
pub fn file_names(attachment: &Attachment) -> Vec<String> {
    let shared = format!("{}_{}.json", attachment.container, attachment.ifname);
    let own = format!("{}.json", attachment.key());
    [shared, own].into_iter().filter(|name| name.len() <= store::NAME_MAX && !name.starts_with('.')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn sysctl(key: &str, before: &str, after: &str) -> Step {
        Step::Sysctl { name: name(key), before: Some(before.into()), after: after.into(), followers: Vec::new() }
    }

    fn mtu(before: u32, after: u32) -> Step {
        let mtu = |mtu| LinkAttributes { mtu: Some(mtu), ..LinkAttributes::default() };
        Step::Link { before: mtu(before), after: mtu(after), followers: Vec::new() }
    }

    fn place(netns: &str, cookie: Option<u64>) -> Place {
        Place { netns: netns.into(), cookie, path: String::new(), ifindex: Some(3) }
    }

    fn record() -> Record {
        Record::new(&Attachment::new("net", "c1", "eth0"), place("4:1", Some(7)))
    }

    fn remembering(steps: &[Step], others: &[Record]) -> Record {
        let mut record = record();
        record.remember(steps, &LinkAttributes::default(), &Facts::default(), others);
        record
    }

    fn remember(record: &mut Record, steps: &[Step]) {
        record.remember(steps, &LinkAttributes::default(), &Facts::default(), &[]);
    }

    fn value(original: &Original, key: &str) -> Option<String> {
        original.sysctls.iter().find(|s| s.name.as_str() == key).map(|s| s.value.clone())
    }

    #[test]
    fn a_file_of_the_reference_is_read() {
        let theirs = r#"{"mac":"02:00:00:00:00:01","promisc":true,"mtu":1500,"allmulti":false,"txQLen":0}"#;
        let record = Record::parse(theirs.as_bytes()).unwrap();
        let link = LinkAttributes {
            mac: Some(vec![2, 0, 0, 0, 0, 1]),
            mtu: Some(1500),
            promisc: Some(true),
            allmulti: Some(false),
            tx_queue_len: Some(0),
        };
        assert_eq!(record.original(&Held::default(), &[]), Original { link, ..Original::default() });
        assert!(record.belongs_to(&Attachment::new("any", "c", "e")) && record.is_of_netns(&place("4:1", None)));
    }

    #[test]
    fn keys_match_in_any_case() {
        let file = r#"{"MTU":1500,"TXQLEN":7,"Set":{"Mtu":1400},"ORDER":3,"Sysctls":[{"Name":"net/core/somaxconn","BEFORE":"1"}]}"#;
        let record = Record::parse(file.as_bytes()).unwrap();
        let original = record.original(&Held::default(), &[]);
        assert_eq!((original.link.mtu, original.link.tx_queue_len, record.order()), (Some(1500), Some(7), 3));
        assert_eq!(value(&original, "net/core/somaxconn"), Some("1".into()));
        assert_eq!(record.set.and_then(|set| set.mtu), Some(1400));
    }

    #[test]
    fn a_file_of_ours_comes_back() {
        let mut record = remembering(&[mtu(1500, 1400), sysctl("net/core/somaxconn", "4096", "1")], &[]);
        assert!(record.note_kept(&name("net/core/somaxconn"), "01x"));
        assert_eq!(Record::parse(&record.to_bytes()), Ok(record.clone()));
        assert!(!record.belongs_to(&Attachment::new("other", "c1", "eth0")));
        assert!(!record.is_of_netns(&place("4:2", Some(7))));
        assert!(!record.is_of_netns(&place("4:1", Some(8))), "the inode has been given to another namespace");
        assert!(record.is_of_netns(&place("4:1", None)));
        assert_eq!(record.ifindex(), Some(3));
    }

    #[test]
    fn what_was_saved_first_stays() {
        let mut record = remembering(&[mtu(1500, 1400), sysctl("net/core/somaxconn", "4096", "1")], &[]);
        let first = record.original(&Held::default(), &[]);
        remember(&mut record, &[mtu(1400, 1300), sysctl("net/core/somaxconn", "1", "2")]);
        assert_eq!(record.original(&Held::default(), &[]), first);
    }

    #[test]
    fn a_sysctl_that_is_written_and_follows_another_is_put_back_once() {
        let followers = vec![(name("net/ipv4/conf/eth0/forwarding"), "1".to_owned())];
        let all = Step::Sysctl {
            name: name("net/ipv4/conf/all/forwarding"),
            before: Some("0".into()),
            after: "1".into(),
            followers,
        };
        let steps = [all, sysctl("net/ipv4/conf/eth0/forwarding", "1", "0")];
        let record = remembering(&steps, &[]);
        assert_eq!(record.original(&Held::default(), &[]), Original::of(&steps, &Facts::default()));
        assert_eq!(record.original(&Held::default(), &[]).sysctls.len(), 2);
    }

    #[test]
    fn what_the_kernel_made_of_a_value_is_known_for_that_value_only() {
        let mut record = record();
        let ports = name("net/ipv4/ip_local_reserved_ports");
        remember(&mut record, &[sysctl(ports.as_str(), "", "8080,8081")]);
        assert!(record.note_kept(&ports, "8080-8081"));
        assert!(record.kept_as(&ports, "8080,8081", "8080-8081"));
        assert!(!record.kept_as(&ports, "8080,8082", "8080-8081"));
        assert!(!record.kept_as(&ports, "8080,8081", "8080"));
        remember(&mut record, &[sysctl(ports.as_str(), "8080-8081", "9000")]);
        assert!(!record.note_kept(&ports, "9000"), "what was kept of the old value is forgotten");
        assert!(!record.kept_as(&ports, "9000", "8080-8081"));
    }

    #[test]
    fn whoever_goes_first_leaves_what_the_other_has_set_and_the_last_puts_back_the_original() {
        let key = "net/core/somaxconn";
        let first = remembering(&[mtu(1500, 1400), sysctl(key, "4096", "1")], &[]);
        let second = remembering(&[mtu(1400, 1300), sysctl(key, "1", "2")], std::slice::from_ref(&first));
        assert!(second.order() > first.order());
        let gone = |record: &Record, others: &[&Record]| {
            let original = record.original(&Held::by(others.iter().copied()), &[]);
            (value(&original, key).unwrap(), original.link.mtu.unwrap())
        };
        assert_eq!(gone(&first, &[&second]), ("2".into(), 1300));
        assert_eq!(gone(&second, &[&first]), ("1".into(), 1400));
        assert_eq!(gone(&first, &[]), ("4096".into(), 1500));
        assert_eq!(gone(&second, &[]), ("4096".into(), 1500));
    }

    #[test]
    fn what_the_first_found_without_a_value_gets_none_from_the_second() {
        let key = "net/ipv6/conf/all/stable_secret";
        let unset = Step::Sysctl { name: name(key), before: None, after: "::1".into(), followers: Vec::new() };
        let first = remembering(&[unset], &[]);
        let second = remembering(&[sysctl(key, "::1", "::2")], &[first]);
        assert_eq!(value(&second.original(&Held::default(), &[]), key), None);
    }

    #[test]
    fn what_another_holds_is_kept_when_the_kernel_changes_it_along() {
        let of_eth1 = name("net/ipv4/conf/eth1/forwarding");
        let other = remembering(&[sysctl(of_eth1.as_str(), "0", "1")], &[]);
        let record = remembering(&[sysctl("net/ipv4/ip_forward", "0", "1")], &[]);
        let original = record.original(&Held::by([&other]), std::slice::from_ref(&of_eth1));
        assert_eq!(value(&original, of_eth1.as_str()), Some("1".into()));
    }

    #[test]
    fn of_another_interface_only_the_namespaces_own_is_kept() {
        let mut facts = Facts::default();
        facts.indexes.insert("eth0".into(), 3);
        let mut record = record();
        let steps =
            [mtu(1500, 1400), sysctl("net/core/somaxconn", "9", "1"), sysctl("net/ipv4/conf/eth0/tag", "0", "1")];
        record.remember(&steps, &LinkAttributes::default(), &facts, &[]);
        let now = Place { ifindex: Some(8), ..place("4:1", Some(7)) };
        let renewed = record.renewed(now, &BTreeMap::from([("eth0".to_owned(), 8)]));
        let original = renewed.original(&Held::default(), &[]);
        assert!(original.link.is_empty());
        assert_eq!(original.sysctls.len(), 1, "{original:?}");
        assert_eq!(renewed.ifindex(), Some(8));
    }

    #[test]
    fn a_key_is_as_old_as_its_last_writing_whatever_its_record_has_written_since() {
        let key = "net/core/somaxconn";
        let mut first = remembering(&[mtu(1500, 1400), sysctl(key, "4096", "1")], &[]);
        let second = remembering(&[mtu(1400, 1300), sysctl(key, "1", "2")], std::slice::from_ref(&first));
        let mut again = |steps: &[Step]| {
            first.remember(steps, &LinkAttributes::default(), &Facts::default(), std::slice::from_ref(&second));
            first = Record::parse(&first.to_bytes()).unwrap();
            let third = remembering(&[mtu(1300, 1350), sysctl(key, "2", "3")], &[first.clone(), second.clone()]);
            let original = third.original(&Held::by([&first, &second]), &[]);
            (value(&original, key).unwrap(), original.link.mtu.unwrap())
        };
        assert_eq!(again(&[sysctl("net/ipv4/ip_default_ttl", "64", "60")]), ("2".into(), 1300));
        assert_eq!(again(&[mtu(1300, 1450)]), ("2".into(), 1450));
        assert_eq!(again(&[sysctl(key, "2", "5")]), ("5".into(), 1450));
        assert!(first.earlier.is_empty() || first.earlier.len() == 1, "{first:?}");
    }

    #[test]
    fn what_changes_along_with_an_mtu_is_known_to_whoever_finds_it_set() {
        let of_ipv6 = |leaf: &str| name(&format!("net/ipv6/conf/eth0/{leaf}"));
        let mut facts = Facts::default();
        facts.indexes.insert("eth0".into(), 3);
        let link = |mtu| LinkAttributes { mtu: Some(mtu), ..LinkAttributes::default() };
        let add = |record: &mut Record, now: u32, claimed: u32, found: &[(&str, &str)], others: &[Record]| {
            let followers = found.iter().map(|(leaf, value)| (of_ipv6(leaf), (*value).to_owned())).collect();
            let step = Step::Link { before: link(now), after: link(claimed), followers };
            let steps = if now == claimed { Vec::new() } else { vec![step] };
            record.remember(&steps, &link(claimed), &facts, others);
        };
        let back = |record: &Record, others: &[&Record]| {
            let original = record.original(&Held::by(others.iter().copied()), &[]);
            let value = |leaf| value(&original, of_ipv6(leaf).as_str()).unwrap_or_default();
            (original.link.mtu.unwrap(), value("mtu"), value("hop_limit"))
        };
        let is = |mtu: u32, ipv6: &str, hops: &str| (mtu, ipv6.to_owned(), hops.to_owned());

        let [mut first, mut second, mut third] = [record(), record(), record()];
        add(&mut first, 1500, 1400, &[("mtu", "1300")], &[]);
        add(&mut second, 1400, 1400, &[], std::slice::from_ref(&first));
        assert_eq!(back(&first, &[&second]), is(1400, "1400", ""));
        assert_eq!(back(&second, &[]), is(1500, "1300", ""));
        // What was written since, itself, stays.
        third.remember(&[sysctl("net/ipv6/conf/eth0/mtu", "1400", "1350")], &link(1400), &facts, &[first.clone()]);
        add(&mut second, 1400, 1400, &[], &[first.clone(), third.clone()]);
        assert_eq!(back(&first, &[&second, &third]), is(1400, "1350", ""));
        assert_eq!(back(&third, &[&second, &first]), is(1400, "1400", ""));

        let [mut first, mut second, mut third] = [record(), record(), record()];
        add(&mut first, 1500, 1200, &[("hop_limit", "33"), ("mtu", "1300")], &[]);
        add(&mut second, 1200, 1000, &[], std::slice::from_ref(&first));
        assert_eq!(back(&first, &[&second]), is(1000, "1300", "33"), "they are gone");
        assert_eq!(back(&second, &[]), is(1500, "1300", "33"));
        // It makes IPv6 come again, with the kernel's own values.
        add(&mut third, 1000, 1400, &[], &[first.clone(), second.clone()]);
        assert_eq!(back(&second, &[&third]), is(1400, "1400", "33"));
        assert_eq!(back(&third, &[]), is(1500, "1300", ""));
    }

    #[test]
    fn what_could_not_be_put_back_holds_nothing_and_is_put_back_later() {
        let mut released = remembering(&[mtu(1500, 1400), sysctl("net/core/somaxconn", "4096", "1")], &[]);
        remember(&mut released, &[sysctl("net/core/somaxconn", "1", "2")]);
        released = released.released();
        assert_eq!(Record::parse(&released.to_bytes()), Ok(released.clone()));
        let next = remembering(&[mtu(1400, 1300), sysctl("net/core/somaxconn", "2", "3")], &[released.clone()]);
        for (record, other) in [(&next, &released), (&released, &record())] {
            let original = record.original(&Held::by([other]), &[]);
            assert_eq!((value(&original, "net/core/somaxconn"), original.link.mtu), (Some("4096".into()), Some(1500)));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Record::parse(&bytes).map(|record| record.original(&Held::default(), &[]));
        }
    }
}
