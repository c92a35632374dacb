//! Random sequences of calls: after each, the kernel and the files hold exactly what a model says.
//!
//! The model knows no plugin from inside. What an attachment alone leaves on a host is learned at the beginning, as a set
//! of lines; what is there at any time must be what each living attachment leaves, and nothing else. Some share an interface:
//! a value that several set in their container is the last ADD's, of those that live, and the original when all have gone.
//!
//! `CNI_CHAIN_MODEL_CASES` is the number of sequences for each plugin (default 12, of up to 26 steps each); a sequence
//! that fails is shortened to the shortest that does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use netns_tests::snapshot::Part;
use netns_tests::{Container, Lab, Outcome, Plugin, Target, Verb};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

/// A step. Attachments and variants of their configuration by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The first one or again, with the same configuration or another.
    Add(usize, usize),
    /// The first one, again, or of somebody who was never there.
    Del(usize),
    Check(usize),
    /// Of a network, while those live whose bit is set.
    Gc(usize, u8),
    /// `nft flush ruleset`
    Flush,
    /// A stranger removes this line of an attachment's record.
    Cut(usize, usize),
}

#[derive(Debug)]
struct Attachment {
    container: &'static str,
    network: &'static str,
    /// Whose interface it has.
    netns: usize,
}

const fn attachment(container: &'static str, network: &'static str, netns: usize) -> Attachment {
    Attachment { container, network, netns }
}

/// One container that is on two networks by one interface, another that shares its namespace, and two for themselves.
const ATTACHMENTS: [Attachment; 5] = [
    attachment("twice", "one", 0),
    attachment("twice", "two", 0),
    attachment("beside", "one", 0),
    attachment("apart", "two", 1),
    attachment("alone", "one", 2),
];
const NETWORKS: [&str; 2] = ["one", "two"];
const NAMESPACES: usize = 3;

/// How many configurations an attachment may have.
fn variants(plugin: &str) -> usize {
    if plugin == "tuning" { 3 } else { 2 }
}

/// Whether attachments of both networks may need one bridge's policy. Who loses the line that counts it is not found by the other
/// network's: that is promised to nobody (docs/firewall.md).
fn shares_a_policy(variant: Option<usize>) -> bool {
    variant == Some(1)
}

/// In the end all go, each by DEL or GC, whichever comes first.
fn steps(flushes: bool, cuts: bool, variants: usize) -> impl Strategy<Value = Vec<Step>> {
    let attachment = 0..ATTACHMENTS.len();
    let ends = attachment.clone().map(Step::Del).chain((0..NETWORKS.len()).map(|n| Step::Gc(n, 0)));
    let ends = Just(ends.collect::<Vec<Step>>()).prop_shuffle();
    let step = prop_oneof![
        6 => (attachment.clone(), 0..variants).prop_map(|(a, v)| Step::Add(a, v)),
        4 => attachment.clone().prop_map(Step::Del),
        2 => attachment.clone().prop_map(Step::Check),
        1 => (0..NETWORKS.len(), any::<u8>()).prop_map(|(n, live)| Step::Gc(n, live)),
        u32::from(flushes) => Just(Step::Flush),
        3 * u32::from(cuts) => (attachment, 0..3usize).prop_map(|(a, line)| Step::Cut(a, line)),
    ];
    (prop::collection::vec(step, 1..20), ends).prop_map(|(steps, ends)| [steps, ends].concat())
}

struct World {
    plugin: &'static str,
    lab: Lab,
    containers: Vec<Container>,
    parts: &'static [Part],
}

impl World {
    fn new(plugin: &'static str) -> World {
        let lab = Lab::new();
        let containers: Vec<Container> = (0..NAMESPACES).map(|n| lab.container(u8::try_from(n).unwrap() + 2)).collect();
        if plugin == "tuning" {
            // Other than that of `all` before and after: whoever loses it is found out.
            containers.iter().for_each(|c| c.netns.set_sysctl("net/ipv6/conf/eth0/forwarding", "1"));
        }
        let parts: &[Part] = match plugin {
            "bandwidth" => &[Part::Links],
            "tuning" => &[Part::Files],
            _ => &[Part::Rules],
        };
        World { plugin, lab, containers, parts }
    }

    fn keys(&self, attachment: usize, variant: usize) -> Value {
        let mapping = |port: usize| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"});
        match (self.plugin, variant) {
            // The second variant's port is wanted by all.
            ("portmap", 0) => {
                json!({"runtimeConfig": {"portMappings": [mapping(20_000 + attachment), mapping(20_100 + attachment)]}})
            }
            ("portmap", _) => {
                json!({"runtimeConfig": {"portMappings": [mapping(20_000 + attachment), mapping(20_999)]}})
            }
            ("firewall", 0) => json!({}),
            // What goes by the host's end of the link is the last ADD's alone.
            ("firewall", _) if ATTACHMENTS[attachment].netns > 0 => {
                json!({"ingressPolicy": "isolated", "antiSpoof": true})
            }
            ("firewall", _) => json!({"ingressPolicy": "same-bridge"}),
            ("bandwidth", 0) => json!({"ingressRate": 8_000_000, "ingressBurst": 800_000}),
            ("bandwidth", _) => {
                json!({"ingressRate": 9_000_000, "ingressBurst": 900_000, "egressRate": 8_000_000, "egressBurst": 800_000})
            }
            (_, 0) => json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "78"}}),
            // It changes the interface's own, if that has IPv6.
            (_, 1) => json!({"sysctl": {"net.ipv6.conf.all.forwarding": "1"}}),
            // Below 1280 bytes an interface has no IPv6.
            (_, _) => {
                json!({"mtu": 1200, "sysctl": {"net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_notify": "1"}})
            }
        }
    }

    fn call(&self, verb: Verb, attachment: usize, variant: usize) -> Outcome {
        let Attachment { container, network, netns } = ATTACHMENTS[attachment];
        let interface = &self.containers[netns];
        let mut config = self.keys(attachment, variant);
        config["cniVersion"] = "1.1.0".into();
        config["name"] = network.into();
        config["type"] = self.plugin.into();
        config["prevResult"] = interface.prev_result("1.1.0");
        // An interface may be shared, addresses are not.
        config["prevResult"]["ips"][0]["address"] = format!("10.88.0.{}/24", 20 + attachment).into();
        config["prevResult"]["ips"][1]["address"] = format!("fd00:88::{}/64", 20 + attachment).into();
        let target = Target::new(container, &interface.netns.path(), &interface.ifname);
        Plugin::ours(self.plugin).call(&self.lab.host, verb, &config, &target)
    }

    fn gc(&self, network: usize, live: &BTreeSet<usize>) -> Outcome {
        let of_network = live.iter().map(|a| &ATTACHMENTS[*a]).filter(|a| a.network == NETWORKS[network]);
        let valid: Vec<Value> = of_network
            .map(|a| json!({"containerID": a.container, "ifname": self.containers[a.netns].ifname}))
            .collect();
        let config = json!({
            "cniVersion": "1.1.0", "name": NETWORKS[network], "type": self.plugin, "cni.dev/valid-attachments": valid,
        });
        Plugin::ours(self.plugin).call(&self.lab.host, Verb::Gc, &config, &Target::new("", "", ""))
    }

    /// What is on the host, as lines in no order; elements are lines of their own.
    fn lines(&self) -> BTreeSet<String> {
        let glance = self.lab.host.glance(self.parts);
        let mut lines = BTreeSet::new();
        for (name, text) in glance.sections() {
            for line in text.lines() {
                let elements = line.trim().trim_start_matches("elements = {").trim_end_matches('}').split("\", ");
                let elements = elements.map(|line| match name {
                    "files" => owner(line),
                    _ => without_what_passes(line.trim_matches([' ', ',', '"'])),
                });
                lines.extend(elements.filter(|line| !line.is_empty()).map(|line| format!("{name}: {line}")));
            }
        }
        lines
    }

    /// What a container's attachments may set in it, by namespace and key.
    fn values(&self) -> Values {
        let mut values = Values::new();
        for (n, container) in self.containers.iter().enumerate().filter(|_| self.plugin == "tuning") {
            let link = container.netns.run("ip link show dev eth0");
            let mtu = link.split_once(" mtu ").and_then(|(_, after)| after.split(' ').next()).unwrap_or_default();
            values.insert((n, "mtu"), mtu.to_owned());
            let keys = [
                "net/core/somaxconn",
                "net/ipv4/conf/eth0/arp_notify",
                "net/ipv6/conf/eth0/mtu",
                "net/ipv6/conf/all/forwarding",
            ];
            for key in keys {
                let value = container.netns.inside(|| std::fs::read_to_string(format!("/proc/sys/{key}")));
                values.insert((n, key), value.unwrap_or_default().trim().to_owned());
            }
        }
        values
    }

    /// Takes away what is static, and what a flush has made nobody's.
    fn wipe(&self) {
        self.lab.host.nft("flush ruleset");
        self.lab.host.run("rm -rf /run/cni");
    }

    /// What must be as it was when everybody has gone, and takes too long to be looked at after each step.
    fn whole(&self) -> BTreeSet<String> {
        let in_containers: &[Part] = match self.plugin {
            "tuning" => &[Part::Links, Part::Addresses, Part::Sysctls],
            _ => &[],
        };
        let containers = self.containers.iter().map(|container| (&container.netns, in_containers));
        let mut lines = BTreeSet::new();
        for (netns, parts) in containers.chain([(&*self.lab.host, &[Part::Sysctls][..])]) {
            netns.settle();
            let glance = netns.glance(parts);
            let all = glance.sections().flat_map(|(_, text)| text.lines());
            lines.extend(all.map(|line| format!("{}: {line}", netns.name())));
        }
        lines
    }
}

type Values = BTreeMap<(usize, &'static str), String>;

/// Whose a state file is: the rest of it, and its name, depends on who else has one.
fn owner(file: &str) -> String {
    let file = file.replace("\\n", "").replace(['\\', ' '], "");
    let owner = file.split_once("\"owner\":{").and_then(|(_, after)| after.split('}').next());
    owner.unwrap_or_default().to_owned()
}

/// Times, numbers that the kernel gives, and hardware addresses of its choice.
fn without_what_passes(line: &str) -> String {
    let is_time = |word: &str| word.len() == 20 && word.ends_with('Z') && word.contains('T');
    let mut words: Vec<&str> = line.split_whitespace().filter(|word| !is_time(word)).collect();
    if words.first().is_some_and(|w| w.strip_suffix(':').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))) {
        words.remove(0);
    }
    // A bucket whose queue was renewed has one that is seen; what a sysctl was before depends on who flushed what.
    if words.starts_with(&["qdisc", "bfifo"]) {
        words.clear();
    }
    if let Some(at) = words.iter().position(|word| word.ends_with("route_localnet")) {
        words.remove(at + 1);
    }
    if words.first() == Some(&"index") {
        words.clear();
    }
    words.join(" ")
}

/// What an attachment leaves in a variant, if it is alone.
struct Share {
    /// On the host.
    lines: BTreeSet<String>,
    /// In its container.
    values: Values,
    /// On the host, when it has gone.
    settled: BTreeSet<String>,
}

/// What is expected to be there.
struct Model {
    world: World,
    nothing: BTreeSet<String>,
    originals: Values,
    shares: BTreeMap<(usize, usize), Share>,
    /// Who lives, and in which variant.
    living: BTreeMap<usize, usize>,
    /// Who has set what in a container, the last ADD's at the end.
    set: Vec<(usize, Values)>,
    /// Of whose records a stranger has removed lines.
    cut: BTreeSet<usize>,
    /// Whose share a stranger has taken away.
    flushed: BTreeSet<usize>,
    /// What is there whoever lives.
    settled: BTreeSet<String>,
    /// [`World::whole`], before the case.
    whole: BTreeSet<String>,
}

impl Model {
    fn learn(plugin: &'static str) -> Model {
        let world = World::new(plugin);
        let (nothing, originals, whole) = (world.lines(), world.values(), world.whole());
        let mut shares = BTreeMap::new();
        for (attachment, variant) in (0..ATTACHMENTS.len()).flat_map(|a| (0..variants(plugin)).map(move |v| (a, v))) {
            world.wipe();
            world.call(Verb::Add, attachment, variant).succeeds();
            let (lines, mut values) = (world.lines(), world.values());
            values.retain(|key, value| *value != originals[key]);
            world.call(Verb::Del, attachment, variant).succeeds();
            shares.insert((attachment, variant), Share { lines, values, settled: world.lines() });
        }
        let (living, set, cut, flushed, settled) = Default::default();
        Model { world, nothing, originals, shares, living, set, cut, flushed, settled, whole }
    }

    /// Nobody lives, but what is static may be there.
    fn begin(&mut self) {
        self.world.wipe();
        self.settled.clear();
    }

    /// Links that have limits don't look as they do without, so what is under a share is taken from it alone.
    fn expected(&self) -> BTreeSet<String> {
        let mut expected = &self.nothing | &self.settled;
        for (attachment, variant) in self.living.iter().filter(|(attachment, _)| !self.flushed.contains(attachment)) {
            let Share { lines, settled, .. } = &self.shares[&(*attachment, *variant)];
            expected.retain(|line| lines.contains(line) || !settled.contains(line));
            expected.extend(lines.difference(settled).cloned());
        }
        expected
    }

    fn expected_values(&self) -> Values {
        let set = self.set.iter().flat_map(|(_, values)| values.clone());
        self.originals.clone().into_iter().chain(set).collect()
    }

    /// Those that have what this one wants: the port, or the link.
    fn rivals(&self, attachment: usize, variant: usize) -> impl Iterator<Item = &'static Attachment> {
        let there = self.living.iter().filter(move |(other, _)| **other != attachment && !self.flushed.contains(other));
        there.filter_map(move |(other, v)| {
            let other = &ATTACHMENTS[*other];
            let is_rival = match self.world.plugin {
                "portmap" => variant == 1 && *v == 1,
                "bandwidth" => other.netns == ATTACHMENTS[attachment].netns,
                _ => false,
            };
            is_rival.then_some(other)
        })
    }

    /// One container may want one port on two networks: the second waits for it.
    fn waits(&self, attachment: usize, variant: usize) -> bool {
        self.rivals(attachment, variant).any(|other| other.container == ATTACHMENTS[attachment].container)
    }

    /// The code that refuses it.
    fn refusal(&self, attachment: usize, variant: usize) -> Option<u64> {
        match self.world.plugin {
            "portmap" => self
                .rivals(attachment, variant)
                .any(|other| other.container != ATTACHMENTS[attachment].container)
                .then_some(100),
            _ => self.rivals(attachment, variant).next().map(|_| 105),
        }
    }

    fn goes(&mut self, attachment: usize) {
        self.living.remove(&attachment);
        self.cut.remove(&attachment);
        self.flushed.remove(&attachment);
        self.set.retain(|(who, _)| *who != attachment);
    }

    fn take(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Add(attachment, variant) => {
                let outcome = self.world.call(Verb::Add, attachment, variant);
                let refusal = self.refusal(attachment, variant);
                if refusal.is_some() {
                    return expect(&outcome, refusal);
                }
                self.living.insert(attachment, variant);
                self.cut.remove(&attachment);
                self.set.push((attachment, self.shares[&(attachment, variant)].values.clone()));
                // Whoever finds the tables gone puts in what all had.
                let mends = self.world.plugin == "firewall";
                for (who, variant) in self.living.iter().filter(|(who, _)| mends || **who == attachment) {
                    self.settled.extend(self.shares[&(*who, *variant)].settled.iter().cloned());
                    self.flushed.remove(who);
                }
                expect(&outcome, None)
            }
            Step::Del(attachment) => {
                let variant = self.living.get(&attachment).copied().unwrap_or_default();
                self.goes(attachment);
                expect(&self.world.call(Verb::Del, attachment, variant), None)
            }
            Step::Check(attachment) => {
                let is_whole = !self.flushed.contains(&attachment) && !self.lacks_a_line(attachment);
                let lives = self.living.contains_key(&attachment) && is_whole;
                let variant = self.living.get(&attachment).copied().unwrap_or_default();
                let (values, wanted) = (self.expected_values(), &self.shares[&(attachment, variant)].values);
                // Values that are as wished for are so whoever has set them.
                let there = (lives || self.world.plugin == "tuning") && wanted.iter().all(|(k, v)| values[k] == *v);
                // What a stranger flushes of the host's filters, and what one has in the container, is another matter.
                let outcome = self.world.call(Verb::Check, attachment, variant);
                expect(&outcome, if there { None } else { Some(101) })
            }
            Step::Gc(network, live) => {
                let dies = |a: &usize| ATTACHMENTS[*a].network == NETWORKS[network] && live & (1 << a) == 0;
                (0..ATTACHMENTS.len()).filter(dies).for_each(|a| self.goes(a));
                expect(&self.world.gc(network, &self.living.keys().copied().collect()), None)
            }
            Step::Flush => {
                self.world.lab.host.nft("flush ruleset");
                self.flushed = self.living.keys().copied().collect();
                self.cut.clear();
                self.settled.clear();
                Ok(())
            }
            Step::Cut(attachment, line) => {
                let variant = self.living.get(&attachment).copied();
                if line == 0 && shares_a_policy(variant) {
                    return Ok(());
                }
                let keys = self.record(attachment, variant);
                let key = keys.iter().find(|key| key.ends_with(&format!(" . 0x{line:08x}")));
                if let Some(key) = key.filter(|_| !self.flushed.contains(&attachment)) {
                    let element = format!("delete element inet cni_chain_firewall records {{ {key} }}");
                    // One that is cut may have lost it already.
                    let _ = self.world.lab.host.try_run(&format!("nft {element}"));
                    self.cut.insert(attachment);
                }
                Ok(())
            }
        }
    }

    /// Whether a line that a stranger has cut is still missing: an ADD that finds a table gone puts in what all others have.
    fn lacks_a_line(&self, attachment: usize) -> bool {
        if !self.cut.contains(&attachment) {
            return false;
        }
        let lines = self.world.lines();
        let found: BTreeSet<&str> = lines.iter().filter_map(|line| record_key(line)).collect();
        let record = self.record(attachment, self.living.get(&attachment).copied());
        !record.iter().all(|key| found.contains(key.as_str()))
    }

    /// The keys of an attachment's record, in this variant.
    fn record(&self, attachment: usize, variant: Option<usize>) -> BTreeSet<String> {
        let Some(share) = variant.and_then(|variant| self.shares.get(&(attachment, variant))) else {
            return BTreeSet::new();
        };
        share.lines.iter().filter_map(|line| record_key(line)).map(str::to_owned).collect()
    }

    /// Without the lines of records that a stranger has cut.
    fn uncut(&self, mut lines: BTreeSet<String>) -> BTreeSet<String> {
        let cut: BTreeSet<String> =
            self.cut.iter().flat_map(|a| self.record(*a, self.living.get(a).copied())).collect();
        lines.retain(|line| record_key(line).is_none_or(|key| !cut.contains(key)));
        lines
    }

    fn look(&self) -> Result<(), String> {
        let (values, found) = (self.expected_values(), self.world.values());
        if values != found {
            return Err(format!("expected {values:?}, found {found:?}"));
        }
        // How it is noted who waits for what is the plugin's own affair.
        if self.living.iter().any(|(a, v)| !self.flushed.contains(a) && self.waits(*a, *v)) {
            Ok(())
        } else {
            same(&self.uncut(self.expected()), &self.uncut(self.world.lines()))
        }
    }
}

/// The key of a record's line, if it is one: five words.
fn record_key(line: &str) -> Option<&str> {
    let (_, element) = line.split_once(": ")?;
    let key = element.split(" comment").next()?.split(" :").next()?.trim();
    let words: Vec<&str> = key.split(" . ").collect();
    (words.len() == 5 && words.iter().all(|word| word.starts_with("0x"))).then_some(key)
}

fn same(expected: &BTreeSet<String>, found: &BTreeSet<String>) -> Result<(), String> {
    let list = |of: &BTreeSet<String>, without: &BTreeSet<String>, sign: char| -> String {
        of.difference(without).map(|line| format!("{sign} {line}\n")).collect()
    };
    let differences = list(expected, found, '-') + &list(found, expected, '+');
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}

fn expect(outcome: &Outcome, code: Option<u64>) -> Result<(), String> {
    let found = (outcome.exit != 0).then(|| outcome.fails().code);
    if found == code { Ok(()) } else { Err(format!("expected {code:?}, found {found:?}: {}", outcome.call())) }
}

fn the_kernel_holds_what_the_model_says(plugin: &'static str) {
    let cases = std::env::var("CNI_CHAIN_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let model = RefCell::new(Model::learn(plugin));
    let taken = RefCell::new(0);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let flushes = matches!(plugin, "portmap" | "firewall");
    let steps = steps(flushes, plugin == "firewall", variants(plugin));
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        let mut model = model.borrow_mut();
        model.begin();
        let judged = steps.iter().enumerate().try_for_each(|(n, step)| {
            *taken.borrow_mut() += 1;
            let judged = model.take(*step).and_then(|()| model.look());
            judged.map_err(|what| format!("step {n}, {step:?}: {what}"))
        });
        let at_the_end = || {
            let whole = model.world.whole();
            // What a sysctl of the host was goes with the rules.
            if steps.contains(&Step::Flush) { Ok(whole) } else { same(&model.whole, &whole).map(|()| whole) }
        };
        let ended = judged.and_then(|()| at_the_end());
        // A case that failed may have left anything.
        ended.map(|whole| model.whole = whole).map_err(|what| {
            *model = Model::learn(plugin);
            TestCaseError::fail(what)
        })
    });
    println!("{plugin}: {} steps", taken.borrow());
    if let Err(error) = outcome {
        panic!("{plugin}: {error}");
    }
}

#[test]
fn portmap_holds_what_the_model_says() {
    the_kernel_holds_what_the_model_says("portmap");
}

#[test]
fn bandwidth_holds_what_the_model_says() {
    the_kernel_holds_what_the_model_says("bandwidth");
}

#[test]
fn firewall_holds_what_the_model_says() {
    the_kernel_holds_what_the_model_says("firewall");
}

#[test]
fn tuning_holds_what_the_model_says() {
    the_kernel_holds_what_the_model_says("tuning");
}
