//! Random sequences of calls: after each, the kernel and the files hold exactly what a model says.
//!
//! The model knows no plugin from inside. What an attachment alone leaves on a host is learned at the beginning, as a set
//! of lines; what is there at any time must be what each living attachment leaves, and nothing else.
//!
//! `CNI_CHAIN_MODEL_CASES` is the number of sequences for each plugin (default 12, of up to 30 steps each); a sequence
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
}

const ATTACHMENTS: usize = 4;
const VARIANTS: usize = 2;

fn steps(flushes: bool) -> impl Strategy<Value = Vec<Step>> {
    let attachment = 0..ATTACHMENTS;
    let step = prop_oneof![
        6 => (attachment.clone(), 0..VARIANTS).prop_map(|(a, v)| Step::Add(a, v)),
        4 => attachment.clone().prop_map(Step::Del),
        2 => attachment.prop_map(Step::Check),
        1 => (0..2usize, any::<u8>()).prop_map(|(n, live)| Step::Gc(n, live)),
        u32::from(flushes) => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..30)
}

/// Four attachments on two networks.
struct World {
    plugin: &'static str,
    lab: Lab,
    containers: Vec<Container>,
    parts: &'static [Part],
}

impl World {
    fn new(plugin: &'static str) -> World {
        let lab = Lab::new();
        let containers = (0..ATTACHMENTS).map(|n| lab.container(u8::try_from(n).unwrap() + 2)).collect();
        let parts: &[Part] = match plugin {
            "bandwidth" => &[Part::Links],
            "tuning" => &[Part::Files],
            _ => &[Part::Rules],
        };
        World { plugin, lab, containers, parts }
    }

    fn network(attachment: usize) -> &'static str {
        ["one", "two"][attachment % 2]
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
            ("firewall", _) => json!({"ingressPolicy": "same-bridge"}),
            ("bandwidth", 0) => json!({"ingressRate": 8_000_000, "ingressBurst": 800_000}),
            ("bandwidth", _) => {
                json!({"ingressRate": 9_000_000, "ingressBurst": 900_000, "egressRate": 8_000_000, "egressBurst": 800_000})
            }
            (_, 0) => json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "78"}}),
            (_, _) => json!({"mtu": 1300, "sysctl": {"net.core.somaxconn": "77"}}),
        }
    }

    fn call(&self, verb: Verb, attachment: usize, variant: usize) -> Outcome {
        let container = &self.containers[attachment];
        let mut config = self.keys(attachment, variant);
        config["cniVersion"] = "1.1.0".into();
        config["name"] = World::network(attachment).into();
        config["type"] = self.plugin.into();
        config["prevResult"] = container.prev_result("1.1.0");
        Plugin::ours(self.plugin).call(&self.lab.host, verb, &config, &container.target())
    }

    fn gc(&self, network: usize, live: &BTreeSet<usize>) -> Outcome {
        let name = World::network(network);
        let of_network = live.iter().filter(|a| World::network(**a) == name);
        let valid: Vec<Value> = of_network
            .map(|a| json!({"containerID": self.containers[*a].id, "ifname": self.containers[*a].ifname}))
            .collect();
        let config = json!({
            "cniVersion": "1.1.0", "name": name, "type": self.plugin, "cni.dev/valid-attachments": valid,
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
                let elements = elements.map(|line| without_what_passes(line.trim_matches([' ', ',', '"'])));
                lines.extend(elements.filter(|line| !line.is_empty()).map(|line| format!("{name}: {line}")));
            }
        }
        lines
    }

    /// As if it were another container.
    fn renew(&self, attachment: usize) {
        if self.plugin == "tuning" {
            let netns = &self.containers[attachment].netns;
            netns.run("ip link set eth0 mtu 1500");
            netns.set_sysctl("net/core/somaxconn", "4096");
        }
    }

    fn clear(&self) {
        for attachment in 0..ATTACHMENTS {
            self.call(Verb::Del, attachment, 0).succeeds();
            self.renew(attachment);
        }
        self.lab.host.nft("flush ruleset");
        self.lab.host.run("rm -rf /run/cni");
    }
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

/// What is expected to be there.
struct Model<'a> {
    world: &'a World,
    nothing: BTreeSet<String>,
    settled: BTreeSet<String>,
    /// What each attachment leaves in each variant.
    shares: BTreeMap<(usize, usize), BTreeSet<String>>,
    /// Who lives, and in which variant.
    living: BTreeMap<usize, usize>,
    /// Whose share a stranger has taken away.
    flushed: BTreeSet<usize>,
    /// Whether anything static is there.
    is_settled: bool,
}

impl<'a> Model<'a> {
    fn learn(world: &'a World) -> Model<'a> {
        world.clear();
        let nothing = world.lines();
        let mut shares = BTreeMap::new();
        for (attachment, variant) in (0..ATTACHMENTS).flat_map(|a| (0..VARIANTS).map(move |v| (a, v))) {
            world.call(Verb::Add, attachment, variant).succeeds();
            shares.insert((attachment, variant), world.lines());
            world.call(Verb::Del, attachment, variant).succeeds();
        }
        let settled = world.lines();
        Model { world, nothing, settled, shares, living: BTreeMap::new(), flushed: BTreeSet::new(), is_settled: false }
    }

    fn begin(&mut self) {
        self.world.clear();
        self.living.clear();
        self.flushed.clear();
        self.is_settled = false;
    }

    /// Links that have limits don't look as they do without, so what is under a share is taken from it alone.
    fn expected(&self) -> BTreeSet<String> {
        let base = if self.is_settled { &self.settled } else { &self.nothing };
        let mut expected = base.clone();
        for (attachment, variant) in &self.living {
            if self.flushed.contains(attachment) {
                continue;
            }
            let share = &self.shares[&(*attachment, *variant)];
            expected.retain(|line| share.contains(line) || !self.settled.contains(line));
            expected.extend(share.difference(&self.settled).cloned());
        }
        expected
    }

    fn is_taken(&self, attachment: usize, variant: usize) -> bool {
        let others = self.living.iter().filter(|(other, _)| **other != attachment && !self.flushed.contains(other));
        self.world.plugin == "portmap" && variant == 1 && others.into_iter().any(|(_, v)| *v == 1)
    }

    fn take(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Add(attachment, variant) => {
                let outcome = self.world.call(Verb::Add, attachment, variant);
                if self.is_taken(attachment, variant) {
                    return expect(&outcome, Some(100));
                }
                self.living.insert(attachment, variant);
                self.is_settled = true;
                self.flushed.remove(&attachment);
                if self.world.plugin == "firewall" {
                    // Whoever finds the tables gone puts in what all had.
                    self.flushed.clear();
                }
                expect(&outcome, None)
            }
            Step::Del(attachment) => {
                let variant = self.living.remove(&attachment).unwrap_or_default();
                self.flushed.remove(&attachment);
                expect(&self.world.call(Verb::Del, attachment, variant), None)
            }
            Step::Check(attachment) => {
                let variant = self.living.get(&attachment).copied();
                let there = variant.is_some() && !self.flushed.contains(&attachment);
                // What a stranger flushes of the host's filters, and what one has in the container, is another matter.
                let outcome = self.world.call(Verb::Check, attachment, variant.unwrap_or_default());
                expect(&outcome, if there { None } else { Some(101) })
            }
            Step::Gc(network, live) => {
                let name = World::network(network);
                let dies = |a: &usize| World::network(*a) == name && live & (1 << a) == 0;
                let alive: BTreeSet<usize> = self.living.keys().copied().filter(|a| !dies(a)).collect();
                self.living.retain(|a, _| !dies(a));
                self.flushed.retain(|a| !dies(a));
                let outcome = self.world.gc(network, &alive);
                // What was in a container goes with it.
                (0..ATTACHMENTS).filter(|a| dies(a)).for_each(|a| self.world.renew(a));
                expect(&outcome, None)
            }
            Step::Flush => {
                self.world.lab.host.nft("flush ruleset");
                self.flushed = self.living.keys().copied().collect();
                self.is_settled = false;
                Ok(())
            }
        }
    }

    fn look(&self) -> Result<(), String> {
        let (expected, found) = (self.expected(), self.world.lines());
        if expected == found {
            return Ok(());
        }
        let list = |of: &BTreeSet<String>, without: &BTreeSet<String>, sign: char| -> String {
            of.difference(without).map(|line| format!("{sign} {line}\n")).collect()
        };
        Err(format!("{}{}", list(&expected, &found, '-'), list(&found, &expected, '+')))
    }
}

fn expect(outcome: &Outcome, code: Option<u64>) -> Result<(), String> {
    let found = (outcome.exit != 0).then(|| outcome.fails().code);
    if found == code { Ok(()) } else { Err(format!("expected {code:?}, found {found:?}: {}", outcome.call())) }
}

fn the_kernel_holds_what_the_model_says(plugin: &'static str) {
    let cases = std::env::var("CNI_CHAIN_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let world = World::new(plugin);
    let model = RefCell::new(Model::learn(&world));
    let taken = RefCell::new(0);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let flushes = matches!(plugin, "portmap" | "firewall");
    let outcome = TestRunner::new(config).run(&steps(flushes), |steps| {
        let mut model = model.borrow_mut();
        model.begin();
        for (n, step) in steps.iter().enumerate() {
            *taken.borrow_mut() += 1;
            let judged = model.take(*step).and_then(|()| model.look());
            judged.map_err(|what| TestCaseError::fail(format!("step {n}, {step:?}: {what}")))?;
        }
        Ok(())
    });
    println!("{plugin}: {} steps", taken.borrow());
    world.clear();
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
