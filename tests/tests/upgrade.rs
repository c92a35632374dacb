//! The state of another time: after a reboot, of the Go reference, and for the Go reference.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use netns_tests::scene::{NETWORK, Play, Scene};
use netns_tests::{Plugin, Snapshot, Target, Verb};
use serde_json::{Value, json};

/// Lines that name the container, its addresses, or what is made for it alone.
fn traces(snapshot: &Snapshot) -> Vec<String> {
    let names = ["container-2", "10.88.0.2", "fd00:88::2", "bwp", "CNI-DN-", " tbf ", "clsact", "qdisc ingress"];
    let mut found = Vec::new();
    for (name, text) in snapshot.sections() {
        let is_trace = |line: &str| {
            let ends = |at: usize| !line[at..].starts_with(|c: char| c.is_ascii_hexdigit());
            names
                .iter()
                .any(|n| line.match_indices(n).any(|(at, _)| n.ends_with(['-', ' ', 'p']) || ends(at + n.len())))
        };
        for line in text.lines().filter(|line| is_trace(line)) {
            found.push(format!("{name}: {}", line.trim()));
        }
    }
    found
}

/// In words of the age of Debian's reference: no 1.1.0, and no isolation within a bridge.
fn config(scene: &Scene) -> Value {
    let mut config = scene.config.clone();
    if scene.play == Play::Firewall {
        config["ingressPolicy"] = "same-bridge".into();
    }
    config["cniVersion"] = "1.0.0".into();
    config["prevResult"] = scene.container.prev_result("1.0.0");
    config
}

fn state(scene: &Scene) -> Snapshot {
    scene.lab.host.snapshot()
}

/// The kernel forgets everything, the file system nothing; the container is made anew under its old name.
fn a_reboot_between_add_and_anything_is_survived(play: Play) {
    for verbs in [&[Verb::Add, Verb::Check, Verb::Del][..], &[Verb::Del], &[Verb::Gc]] {
        let mut scene = Scene::set(play);
        scene.call(Verb::Add).succeeds();
        scene.lab.host.nft("flush ruleset");
        scene.lab.host.run("ip link delete veth2");
        for link in scene.lab.host.run("ip -brief link show type ifb").lines() {
            scene.lab.host.run(&format!("ip link delete {}", link.split_whitespace().next().unwrap()));
        }
        scene.container = scene.lab.container(2);
        scene.target = scene.container.target();
        scene.config["prevResult"] = scene.container.prev_result("1.1.0");
        let container = scene.container.netns.snapshot();
        for verb in verbs {
            let outcome = scene.call(*verb);
            assert_eq!(outcome.exit, 0, "{play:?} {verb:?} of {verbs:?}: {}", outcome.call());
        }
        let left = traces(&state(&scene));
        assert!(left.is_empty(), "{play:?} {verbs:?}: {left:#?}");
        scene.container.netns.assert_same_as(&container);
    }
}

#[test]
fn portmap_survives_a_reboot() {
    a_reboot_between_add_and_anything_is_survived(Play::Portmap);
}

#[test]
fn bandwidth_survives_a_reboot() {
    a_reboot_between_add_and_anything_is_survived(Play::Bandwidth);
}

#[test]
fn firewall_survives_a_reboot() {
    a_reboot_between_add_and_anything_is_survived(Play::Firewall);
}

#[test]
fn tuning_survives_a_reboot() {
    a_reboot_between_add_and_anything_is_survived(Play::Tuning);
}

const SWAPPED: [Play; 4] = [Play::Portmap, Play::Bandwidth, Play::Firewall, Play::Tuning];

/// The container was added by the reference; the binaries are swapped; DEL is ours.
#[test]
fn what_the_reference_has_made_goes_with_our_del() {
    for play in SWAPPED {
        let scene = Scene::set(play);
        let (config, reference) = (config(&scene), Plugin::reference(play.plugin()));
        let before = scene.container.netns.snapshot();
        reference.call(&scene.lab.host, Verb::Add, &config, &scene.target).succeeds();
        assert!(!traces(&state(&scene)).is_empty(), "{play:?}");
        scene.plugin.call(&scene.lab.host, Verb::Del, &config, &scene.target).succeeds();
        let left = traces(&state(&scene));
        assert!(left.is_empty(), "{play:?}: {left:#?}");
        // The reference puts no sysctl back, nor can anybody who doesn't know what they were.
        if play != Play::Tuning {
            scene.container.netns.assert_same_as(&before);
        }
    }
}

/// The container was added by us; the binaries are swapped back; the reference's DEL says yes and does no harm to a
/// neighbour; and where ours come again, everything goes.
#[test]
fn the_references_del_does_no_harm_to_what_is_ours() {
    for play in SWAPPED {
        let scene = Scene::set(play);
        let (config, reference) = (config(&scene), Plugin::reference(play.plugin()));
        let neighbour = scene.lab.container(3);
        let mut of_neighbour = config.clone();
        of_neighbour["prevResult"] = neighbour.prev_result("1.0.0");
        if play == Play::Portmap {
            of_neighbour["runtimeConfig"] =
                json!({"portMappings": [{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]});
        }
        let call = |plugin: &Plugin, verb| plugin.call(&scene.lab.host, verb, &config, &scene.target);
        call(&scene.plugin, Verb::Add).succeeds();
        scene.plugin.call(&scene.lab.host, Verb::Add, &of_neighbour, &neighbour.target()).succeeds();
        call(&reference, Verb::Del).succeeds();
        let check = scene.plugin.call(&scene.lab.host, Verb::Check, &of_neighbour, &neighbour.target());
        assert_eq!(check.exit, 0, "{play:?}: {}", check.call());
        call(&scene.plugin, Verb::Del).succeeds();
        scene.plugin.call(&scene.lab.host, Verb::Del, &of_neighbour, &neighbour.target()).succeeds();
        let left = traces(&state(&scene));
        assert!(left.is_empty(), "{play:?}: {left:#?}");
    }
}

/// GC of ours on a host whose containers the reference has added: the living keep everything, whichever network GC is for; of the
/// dead goes what says whose it is, which is portmap's only; and the runtime's DEL takes the rest.
#[test]
fn our_gc_spares_what_the_reference_has_made_for_the_living() {
    for play in SWAPPED {
        let scene = Scene::set(play);
        let (config, reference) = (config(&scene), Plugin::reference(play.plugin()));
        // What is put in once a host, so that it makes no difference.
        scene.call(Verb::Add).succeeds();
        scene.call(Verb::Del).succeeds();
        reference.call(&scene.lab.host, Verb::Add, &config, &scene.target).succeeds();
        let made = state(&scene);
        let gc = |network: &str, living: Value| {
            let nobody = Target::new("", "", "");
            let config = json!({
                "cniVersion": "1.1.0", "name": network, "type": play.plugin(), "cni.dev/valid-attachments": living,
            });
            scene.plugin.call(&scene.lab.host, Verb::Gc, &config, &nobody).succeeds();
        };
        gc(NETWORK, json!([{"containerID": scene.target.container, "ifname": scene.target.ifname}]));
        gc("another", json!([]));
        scene.lab.host.assert_same_as(&made);
        gc(NETWORK, json!([]));
        assert_eq!(traces(&state(&scene)).is_empty(), play == Play::Portmap, "{play:?}");
        scene.plugin.call(&scene.lab.host, Verb::Del, &config, &scene.target).succeeds();
        let left = traces(&state(&scene));
        assert!(left.is_empty(), "{play:?}: {left:#?}");
    }
}
