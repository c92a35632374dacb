//! Many at once, by processes: no failure that isn't a true conflict, no duplicate, nothing left.
//!
//! `CNI_CHAIN_ATTACHMENTS` is their number (default 50).
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::scope;

use netns_tests::{Container, Lab, Outcome, Plugin, Target, Verb};
use serde_json::{Value, json};

fn attachments() -> u8 {
    std::env::var("CNI_CHAIN_ATTACHMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(50)
}

/// Two networks, turn and turn about.
fn network(n: usize) -> &'static str {
    ["one", "two"][n % 2]
}

/// Each attachment's own port, and one that it has to share with its neighbour.
fn mappings(n: usize) -> Value {
    let mapping = |host: usize, protocol: &str| json!({"hostPort": host, "containerPort": 80, "protocol": protocol});
    json!([mapping(20_000 + n, "tcp"), mapping(20_000 + n, "udp"), mapping(30_000 + n / 2, "tcp")])
}

fn config(plugin: &str, n: usize, container: &Container) -> Value {
    let mut config = match plugin {
        "portmap" => json!({"runtimeConfig": {"portMappings": mappings(n)}}),
        "bandwidth" => json!({
            "ingressRate": 10_000_000, "ingressBurst": 1_000_000, "egressRate": 10_000_000, "egressBurst": 1_000_000,
        }),
        "firewall" => json!({"ingressPolicy": "same-bridge"}),
        _ => json!({"sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400}),
    };
    config["cniVersion"] = "1.1.0".into();
    config["name"] = network(n).into();
    config["type"] = plugin.into();
    config["prevResult"] = container.prev_result("1.1.0");
    config
}

fn call(lab: &Lab, plugin: &str, verb: Verb, n: usize, container: &Container) -> Outcome {
    Plugin::ours(plugin).call(&lab.host, verb, &config(plugin, n, container), &container.target())
}

/// Calls of all of them at once; their outcomes in order.
fn all_at_once(lab: &Lab, plugin: &str, verb: Verb, containers: &[Container], whom: &[usize]) -> Vec<Outcome> {
    scope(|scope| {
        let call = |n: usize| scope.spawn(move || call(lab, plugin, verb, n, &containers[n]));
        let calls: Vec<_> = whom.iter().map(|n| call(*n)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

/// A program that does what it likes with tables of its own, until `inside` has ended.
fn beside_a_stranger<T>(lab: &Lab, inside: impl FnOnce() -> T) -> (T, usize) {
    let (done, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                lab.host.nft("table ip stranger { chain c { type filter hook forward priority 10; ip saddr 203.0.113.9 drop; }; }");
                lab.host.nft("flush table ip stranger");
                lab.host.nft("delete table ip stranger");
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Also if it fails: the other thread must come to its end.
        let value = catch_unwind(AssertUnwindSafe(inside));
        done.store(true, Ordering::Relaxed);
        let value = value.unwrap_or_else(|panic| resume_unwind(panic));
        (value, rounds.load(Ordering::Relaxed))
    })
}

fn fifty_at_once_each_get_their_own(plugin: &str) {
    let lab = Lab::new();
    let containers: Vec<Container> = (0..attachments()).map(|n| lab.container(n + 2)).collect();
    let everybody: Vec<usize> = (0..containers.len()).collect();
    // What stays once a host.
    call(&lab, plugin, Verb::Add, 0, &containers[0]).succeeds();
    call(&lab, plugin, Verb::Del, 0, &containers[0]).succeeds();
    let before = [lab.host.snapshot(), containers[0].netns.snapshot()];
    let (added, rounds) = beside_a_stranger(&lab, || {
        let added = all_at_once(&lab, plugin, Verb::Add, &containers, &everybody);
        let (admitted, refused): (Vec<usize>, Vec<usize>) = everybody.iter().partition(|n| added[**n].exit == 0);
        for n in refused {
            assert_eq!(plugin, "portmap", "{}", added[n].call());
            added[n].fails_with(100);
            assert_eq!(added[n ^ 1].exit, 0, "one of two that want the same port gets it: {}", added[n].call());
        }
        let both = admitted.iter().filter(|n| plugin == "portmap" && admitted.contains(&(**n ^ 1)));
        assert_eq!(both.count(), 0, "two have the same port");
        for outcome in all_at_once(&lab, plugin, Verb::Check, &containers, &admitted) {
            outcome.succeeds();
        }
        admitted
    });
    // A runtime sends DEL for all, also for what failed.
    for outcome in beside_a_stranger(&lab, || all_at_once(&lab, plugin, Verb::Del, &containers, &everybody)).0 {
        outcome.succeeds();
    }
    lab.host.assert_same_as(&before[0]);
    containers[0].netns.assert_same_as(&before[1]);
    println!("{plugin}: {} of {} added beside {rounds} rounds of a stranger", added.len(), containers.len());
}

#[test]
fn portmap_serves_fifty_at_once() {
    fifty_at_once_each_get_their_own("portmap");
}

#[test]
fn bandwidth_serves_fifty_at_once() {
    fifty_at_once_each_get_their_own("bandwidth");
}

#[test]
fn firewall_serves_fifty_at_once() {
    fifty_at_once_each_get_their_own("firewall");
}

#[test]
fn tuning_serves_fifty_at_once() {
    fifty_at_once_each_get_their_own("tuning");
}

/// One call is held at each of its changes, before and behind it, while another runs from its beginning to its end, or until it has to
/// wait for what the held one has locked (registers have the names of x86-64).
#[cfg(target_arch = "x86_64")]
mod held {
    use std::thread::scope;

    use netns_tests::faults::{Run, Side, changes, held, holds_a_group};
    use netns_tests::scene::{Clean, Play, Scene};
    use netns_tests::{Outcome, Target, Verb};

    /// A scene, its container's owner and the next one, who gets the same address and ports.
    struct Stage<'a> {
        scene: &'a Scene,
        clean: Clean<'a>,
        old: Target,
        new: Target,
    }

    impl<'a> Stage<'a> {
        fn of(scene: &'a Scene) -> Stage<'a> {
            let old = scene.target.clone();
            let new = Target { container: "new".into(), ..old.clone() };
            Stage { scene, clean: Clean::of(scene), old, new }
        }

        fn run<'b>(&'b self, verb: Verb, target: &'b Target) -> Run<'b> {
            Run { target, ..self.scene.run(verb) }
        }

        fn call(&self, verb: Verb, target: &Target) -> Outcome {
            self.scene.plugin.call(&self.scene.lab.host, verb, &self.scene.config, target)
        }

        /// Holds one call at each of its changes while the other is made; `before` comes before each round. What `alive` has is then
        /// as it should be, and goes with its DEL.
        #[track_caller]
        fn holds(&self, one: (Verb, &Target), other: (Verb, &Target), before: impl Fn(), alive: Option<&Target>) {
            before();
            let (all, outcome) = changes(&self.run(one.0, one.1));
            outcome.succeeds();
            let mut times_held = 0;
            for (n, side) in (0..all.len()).flat_map(|n| [(n, Side::Before), (n, Side::Behind)]) {
                for owner in [&self.old, &self.new] {
                    self.call(Verb::Del, owner).succeeds();
                }
                self.scene.reset();
                before();
                let ((met, outcome), meanwhile) = scope(|scope| {
                    let mut meanwhile = None;
                    let held = held(&self.run(one.0, one.1), n, side, &mut |process| {
                        let call = meanwhile.insert(scope.spawn(|| self.call(other.0, other.1)));
                        while !call.is_finished() && !holds_a_group(process) {
                            std::thread::yield_now();
                        }
                    });
                    (held, meanwhile.map(|call| call.join().unwrap()))
                });
                // A call that found less to do ended before.
                let (Some(met), Some(meanwhile)) = (met, meanwhile) else { continue };
                times_held += 1;
                let story = format!("{:?} held {side:?} {n} ({met}) during {:?}", one.0, other.0);
                for outcome in [Some(meanwhile), Some(outcome), alive.map(|alive| self.call(Verb::Check, alive))] {
                    let Some(outcome) = outcome else { continue };
                    assert_eq!(outcome.exit, 0, "{story}: {}", outcome.call());
                }
                if let Some(alive) = alive {
                    // A runtime may repeat it.
                    if *alive != self.old {
                        self.call(Verb::Del, &self.old).succeeds();
                        let check = self.call(Verb::Check, alive);
                        assert_eq!(check.exit, 0, "{story}, after another DEL: {}", check.call());
                    }
                    self.call(Verb::Del, alive).succeeds();
                }
                self.clean.assert(&story);
            }
            println!("{:?}: {:?} held {times_held} times during {:?}", self.scene.play, one.0, other.0);
            assert!(times_held > all.len(), "{:?} was held only {times_held} times", one.0);
        }
    }

    /// The old container's DEL comes while its address, and its ports, are given to a new one.
    fn a_late_del_takes_nothing_from_the_new_owner_of_the_address(play: Play) {
        let scene = Scene::set(play);
        let stage = Stage::of(&scene);
        let (old, new) = (&stage.old, &stage.new);
        let before = || drop(stage.call(Verb::Add, old).succeeds());
        stage.holds((Verb::Add, new), (Verb::Del, old), before, Some(new));
        stage.holds((Verb::Del, old), (Verb::Add, new), before, Some(new));
    }

    #[test]
    fn portmaps_late_del_takes_nothing_from_the_new_owner_of_the_address() {
        a_late_del_takes_nothing_from_the_new_owner_of_the_address(Play::Portmap);
    }

    #[test]
    fn firewalls_late_del_takes_nothing_from_the_new_owner_of_the_address() {
        a_late_del_takes_nothing_from_the_new_owner_of_the_address(Play::Firewall);
    }

    #[test]
    fn firewalls_late_del_takes_nothing_in_the_hosts_chains_from_the_new_owner_of_the_address() {
        a_late_del_takes_nothing_from_the_new_owner_of_the_address(Play::FirewallOfChains);
    }

    /// No runtime should, but one that lost count may.
    fn the_same_add_twice_at_once_is_one(play: Play) {
        let scene = Scene::set(play);
        let stage = Stage::of(&scene);
        stage.holds((Verb::Add, &stage.old), (Verb::Add, &stage.old), || {}, Some(&stage.old));
    }

    #[test]
    fn the_same_add_of_portmap_twice_at_once_is_one() {
        the_same_add_twice_at_once_is_one(Play::Portmap);
    }

    #[test]
    fn the_same_add_of_bandwidth_twice_at_once_is_one() {
        for play in [Play::Bandwidth, Play::BandwidthOfSubnets, Play::BandwidthInside] {
            the_same_add_twice_at_once_is_one(play);
        }
    }

    #[test]
    fn the_same_add_of_firewall_twice_at_once_is_one() {
        for play in [Play::Firewall, Play::FirewallOfChains] {
            the_same_add_twice_at_once_is_one(play);
        }
    }

    /// A runtime runs one operation at a time for a container, not for a namespace.
    #[test]
    fn tunings_containers_that_share_a_namespace_come_and_go_at_once() {
        let scene = Scene::set(Play::Tuning);
        let stage = Stage::of(&scene);
        let (old, new) = (&stage.old, &stage.new);
        let add = |target| drop(stage.call(Verb::Add, target).succeeds());
        let both = || [old, new].into_iter().for_each(add);
        stage.holds((Verb::Add, new), (Verb::Add, old), || {}, Some(new));
        stage.holds((Verb::Del, old), (Verb::Del, new), both, None);
        stage.holds((Verb::Del, old), (Verb::Add, new), || add(old), Some(new));
        stage.holds((Verb::Add, new), (Verb::Del, old), || add(old), Some(new));
    }

    #[test]
    fn the_same_add_of_tuning_twice_at_once_is_one() {
        the_same_add_twice_at_once_is_one(Play::Tuning);
    }
}

/// GC of a network, again and again, while its living come, and another network's come and go.
fn gc_beside_adds_touches_no_living(plugin: &str) {
    let lab = Lab::new();
    let containers: Vec<Container> = (0..16).map(|n| lab.container(n + 2)).collect();
    // Without the port that neighbours share.
    let of_one: Vec<usize> = (0..containers.len()).filter(|n| network(*n) == "one").collect();
    let of_two: Vec<usize> = (0..containers.len()).filter(|n| network(*n) == "two" && plugin != "portmap").collect();
    call(&lab, plugin, Verb::Add, 0, &containers[0]).succeeds();
    call(&lab, plugin, Verb::Del, 0, &containers[0]).succeeds();
    let before = lab.host.snapshot();
    let live: BTreeSet<&str> = of_one.iter().map(|n| containers[*n].id.as_str()).collect();
    let valid: Vec<Value> = live.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    let gc = json!({"cniVersion": "1.1.0", "name": "one", "type": plugin, "cni.dev/valid-attachments": valid});
    let done = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                Plugin::ours(plugin).call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
            }
        });
        let outcomes: Vec<Outcome> = [&of_one, &of_two]
            .into_iter()
            .flat_map(|whom| [Verb::Add, Verb::Check].map(|verb| all_at_once(&lab, plugin, verb, &containers, whom)))
            .flatten()
            .collect();
        done.store(true, Ordering::Relaxed);
        outcomes.iter().for_each(|outcome| drop(outcome.succeeds()));
    });
    for outcome in all_at_once(&lab, plugin, Verb::Check, &containers, &of_one) {
        outcome.succeeds();
    }
    for whom in [&of_one, &of_two] {
        for outcome in all_at_once(&lab, plugin, Verb::Del, &containers, whom) {
            outcome.succeeds();
        }
    }
    lab.host.assert_same_as(&before);
}

#[test]
fn portmaps_gc_beside_adds_touches_no_living() {
    gc_beside_adds_touches_no_living("portmap");
}

#[test]
fn bandwidths_gc_beside_adds_touches_no_living() {
    gc_beside_adds_touches_no_living("bandwidth");
}

#[test]
fn firewalls_gc_beside_adds_touches_no_living() {
    gc_beside_adds_touches_no_living("firewall");
}

#[test]
fn tunings_gc_beside_adds_touches_no_living() {
    gc_beside_adds_touches_no_living("tuning");
}
