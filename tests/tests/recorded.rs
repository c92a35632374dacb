//! What real runtimes have sent, byte for byte, to our plugins: they must understand it and answer what the reference
//! answered.
//!
//! Every ADD runs on a host of its own with the interfaces that its prevResult speaks of; only the path of the
//! container's namespace differs from the recording.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use netns_tests::firewalld::Firewalld;
use netns_tests::recorded::{Call, Stage, recordings};
use netns_tests::{Host, Netns};
use serde_json::Value;

/// A stage with what else was on the recorded host: firewalld, and the zone it is asked for.
struct Scene {
    stage: Stage,
    _firewalld: Option<Firewalld>,
}

impl Scene {
    fn set(call: &Call) -> Scene {
        let stage = Stage::set(call);
        let asks = call.config()["backend"] == "firewalld";
        let firewalld = asks.then(|| {
            let firewalld = Firewalld::start(&stage.host);
            let zone = call.config()["firewalldZone"].as_str().unwrap().to_owned();
            firewalld.command(&stage.host, &format!("--permanent --new-zone={zone}"));
            firewalld.command(&stage.host, "--reload");
            firewalld
        });
        Scene { stage, _firewalld: firewalld }
    }
}

/// Holds our result against the reference's: equal as JSON, but for an empty `dns`, which newer reference versions
/// leave out, and for the interface that bandwidth adds, whose name and address are its own; it must exist as it says.
fn assert_equivalent(call: &Call, stage: &Stage, ours: &Value) {
    let mut theirs = call.answer_for(&stage.container.path());
    let mut ours = ours.clone();
    for result in [&mut theirs, &mut ours] {
        if result["dns"] == serde_json::json!({}) {
            result.as_object_mut().unwrap().remove("dns");
        }
    }
    let known = call.prev_result()["interfaces"].as_array().unwrap().len();
    let added = |result: &mut Value| result["interfaces"].as_array_mut().unwrap().split_off(known);
    let (of_theirs, of_ours) = (added(&mut theirs), added(&mut ours));
    assert_eq!(ours, theirs, "{}: another result than the reference's", call.name);
    assert_eq!(of_ours.len(), of_theirs.len(), "{}: other interfaces than the reference's: {of_ours:?}", call.name);
    for interface in of_ours {
        let (name, mac) = (interface["name"].as_str().unwrap(), interface["mac"].as_str().unwrap());
        let link = stage.host.run(&format!("ip -d link show dev {name}"));
        assert!(link.contains("ifb") && link.contains(mac), "{}: {interface} is not there: {link}", call.name);
        assert!(interface.get("sandbox").is_none(), "{}: {interface} is on the host", call.name);
    }
}

fn replay_add(call: &Call) {
    let scene = Scene::set(call);
    let (host, path) = (&scene.stage.host, scene.stage.container.path());
    let result = call.replay(host, &path).succeeds();
    assert_equivalent(call, &scene.stage, &result);
    // A runtime that lost the answer asks again.
    assert_equivalent(call, &scene.stage, &call.replay(host, &path).succeeds());
    call.check(host, &path, &result);
}

/// The DEL as it was recorded, after its ADD if that was recorded too; and once more, as containerd does it.
fn replay_del(call: &Call, add: Option<&Call>) {
    let Some(add) = add else {
        let (host, container) = (Host::new(), Netns::new("container"));
        let before = host.snapshot();
        call.replay(&host, &container.path()).succeeds();
        host.assert_same_as(&before);
        return;
    };
    let scene = Scene::set(add);
    let (host, path) = (&scene.stage.host, scene.stage.container.path());
    let before = host.snapshot();
    add.replay(host, &path).succeeds();
    for _ in 0..2 {
        call.replay(host, &path).succeeds();
        let left = before.diff(&host.snapshot());
        for trace in traces(add) {
            assert!(!left.contains(&trace), "{}: {trace} is left behind:\n{left}", call.name);
        }
    }
}

/// By what a thing that belongs to the container would be recognised.
fn traces(add: &Call) -> Vec<String> {
    let prev = add.prev_result();
    let ips = prev["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap());
    let addresses = ips.map(|address| address.split_once('/').unwrap().0.to_owned());
    let container = add.env["CNI_CONTAINERID"].chars().take(20).collect();
    let veth = prev["interfaces"][1]["name"].as_str().unwrap().to_owned();
    addresses.chain([container, veth]).collect()
}

fn replay(recording: &str) {
    let calls = Call::all(recording);
    for (index, call) in calls.iter().enumerate() {
        match call.verb() {
            "ADD" => replay_add(call),
            "DEL" => {
                let before = &calls[..index];
                let add = before.iter().rev().find(|c| c.verb() == "ADD" && c.attachment() == call.attachment());
                replay_del(call, add);
            }
            "VERSION" => {
                let answer = call.replay(&Host::new(), "dummy").succeeds();
                let theirs: Value = serde_json::from_str(call.stdout.as_deref().unwrap()).unwrap();
                assert_eq!(answer["cniVersion"], theirs["cniVersion"], "{}", call.name);
                let speaks = answer["supportedVersions"].as_array().unwrap();
                let spoke = theirs["supportedVersions"].as_array().unwrap();
                assert!(spoke.iter().all(|v| speaks.contains(v)), "{}: {answer} lacks some of {theirs}", call.name);
            }
            other => panic!("{}: {other} has no replay", call.name),
        }
    }
}

macro_rules! recordings {
    ($($test:ident: $recording:literal)*) => {
        $(#[test]
        fn $test() {
            replay($recording);
        })*

        #[test]
        fn every_recording_is_replayed() {
            assert_eq!(recordings(), BTreeSet::from([$($recording.to_owned()),*]));
        }
    };
}

recordings! {
    containerd_with_version_0_3_1: "containerd-0.3.1"
    containerd_with_version_0_4_0: "containerd-0.4.0"
    containerd_with_version_1_0_0: "containerd-1.0.0"
    podman_with_hand_written_networks: "podman-custom"
    podman_with_its_default_network: "podman-default"
    podman_beside_firewalld: "podman-firewalld"
    podman_on_a_host_that_drops_forwarded: "podman-fwdrop"
    podman_reloading_its_network: "podman-reload"
    containerd_after_a_reboot: "containerd-after-a-reboot"
    containerd_is_killed_while_a_pod_starts: "containerd-is-killed-while-a-pod-starts"
    containerd_with_cni_version_0_3_1: "containerd-with-cni-version-0-3-1"
    containerd_with_cni_version_0_4_0: "containerd-with-cni-version-0-4-0"
    containerd_with_cni_version_1_0_0: "containerd-with-cni-version-1-0-0"
    podman_beside_a_docker_that_comes_later: "podman-beside-a-docker-that-comes-later"
    podman_when_firewalld_reloads: "podman-beside-firewalld"
    podman_limits_a_network: "podman-limits-a-network"
    podman_publishes_ports: "podman-publishes-ports"
    podman_refuses_a_taken_port: "podman-refuses-a-taken-port"
}
