//! Real runtimes drive the chain: every scenario, with our plugins.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use netns_tests::plugin::{cni_path, directory};
use netns_tests::recorded::Call;
use netns_tests::runtime::claims::Claims;
use netns_tests::runtime::containerd::{Containerd, Pod};
use netns_tests::runtime::podman::{Podman, default_network};
use netns_tests::runtime::{Subject, recorder, scenarios};
use netns_tests::{Fetch, Proto, serve};

/// The versions that the fixtures were recorded with.
const RECORDED: [[&str; 2]; 2] = [["podman", "4.3.1"], ["containerd", "1.6.20"]];

/// Plays a scenario, and holds the shapes of its calls against the fixtures.
fn play(name: &str) {
    let scenario = scenarios::ALL.iter().find(|scenario| scenario.name == name).unwrap();
    scenario.play(&directory()).assert_kept();
    let calls = Call::all_in(&recorder::kept(name));
    assert!(!calls.is_empty(), "no call was recorded");
    let unknown: Vec<&str> = recorder::unknown(&calls).into_iter().map(|call| call.name.as_str()).collect();
    let [runtime, version] = RECORDED.into_iter().find(|[runtime, _]| name.starts_with(runtime)).unwrap();
    let said = std::process::Command::new(runtime).arg("--version").output().unwrap();
    if String::from_utf8_lossy(&said.stdout).contains(version) {
        assert!(unknown.is_empty(), "calls of a shape that no fixture has (see tests/fixtures/README.md): {unknown:?}");
    }
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            play(stringify!($name));
        })*

        #[test]
        fn every_scenario_is_played() {
            let all: BTreeSet<&str> = scenarios::ALL.iter().map(|scenario| scenario.name).collect();
            assert_eq!(all, BTreeSet::from([$(stringify!($name)),*]));
        }
    };
}

scenarios! {
    podman_publishes_ports
    podman_restarts_and_reloads
    podman_refuses_a_taken_port
    podman_limits_a_network
    podman_on_an_open_host
    podman_where_iptables_nft_drops
    podman_where_iptables_legacy_drops
    podman_beside_a_docker_that_was_first
    podman_beside_a_docker_that_comes_later
    podman_beside_firewalld
    containerd_with_cni_version_0_3_1
    containerd_with_cni_version_0_4_0
    containerd_with_cni_version_1_0_0
    containerd_is_killed_while_a_pod_starts
    containerd_is_killed_while_a_pod_stops
    containerd_after_a_reboot
    containerd_on_an_open_host
    containerd_where_iptables_nft_drops
    containerd_where_iptables_legacy_drops
    containerd_beside_a_docker_that_was_first
    containerd_beside_a_docker_that_comes_later
    containerd_beside_firewalld
}

#[test]
fn cni_chain_checks_and_removes_what_podman_has_added() {
    let podman = Podman::new(&Subject::ours("podman_and_cni_chain"), &[default_network()]);
    let before = podman.state_after_a_first("podman");
    let web = podman.start("web", "-p 8080:80 -p 127.0.0.1:53:53/udp --mac-address 02:00:00:00:00:07");
    let id = podman.podman("inspect --format {{.Id}} web");
    let netns = podman.podman("inspect --format {{.NetworkSettings.SandboxKey}} web");
    let program = directory().join("cni-chain");
    let cni_chain = |verb: &str, rest: &[&str]| {
        let path = cni_path();
        let words = [program.to_str().unwrap_or_default(), verb, "podman", "--container-id", &id, "--path", &path];
        podman.sandbox.try_run(&[&words[..], rest].concat())
    };
    let checked = cni_chain("check", &[&netns]);
    assert!(checked.is_ok(), "{checked:?}");
    web.set_sysctl("net/core/somaxconn", "1");
    let checked = cni_chain("check", &[&netns]);
    assert!(checked.as_ref().is_err_and(|said| said.contains("expected \"777\", found \"1\"")), "{checked:?}");
    // Its namespace is in the cache as well.
    let removed = cni_chain("del", &[]);
    assert!(removed.is_ok(), "{removed:?}");
    podman.remove("web");
    let mut claims = Claims::default();
    claims.is_unchanged("nothing is left", &before, || podman.state());
    claims.assert_kept();
}

/// The file of `conflists/` of this name.
fn shipped(name: &str) -> serde_json::Value {
    let path = format!("{}/../conflists/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn podman_and_containerd_publish_ports_in_both_families_by_the_conflists_that_are_shipped_for_them() {
    let mut claims = Claims::default();
    let published = |address: &str| Fetch::new(Proto::Tcp, &format!("{address}:8080"));
    let [v4, v6] = [published("192.0.2.1"), published("[2001:db8:2::1]")];

    let podman = Podman::new(&Subject::ours("podman_with_the_shipped_conflist"), &[shipped("87-podman.conflist")]);
    let before = podman.state_after_a_first("podman");
    let web = podman.start("web", "-p 8080:80");
    let server = serve(&web, 80, "podman's");
    claims.answers("podman, IPv4", v4.clone(), &podman.lab.client, "podman's");
    claims.answers("podman, IPv6", v6.clone(), &podman.lab.client, "podman's");
    drop(server);
    podman.remove("web");
    claims.is_unchanged("podman leaves nothing", &before, || podman.state());

    let subject = Subject::ours("containerd_with_the_shipped_conflist");
    let containerd = Containerd::new(&subject, &shipped("30-kubernetes.conflist"));
    let before = containerd.state_after_a_first();
    let rate = "kubernetes.io/ingress-bandwidth";
    let id = containerd.run_pod(&Pod::named("web").port(Proto::Tcp, 8080, 80, "").annotation(rate, "20M"));
    let server = serve(&containerd.netns(&id), 80, "containerd's");
    claims.answers("containerd, IPv4", v4, &containerd.lab.client, "containerd's");
    claims.answers("containerd, IPv6", v6, &containerd.lab.client, "containerd's");
    drop(server);
    let qdiscs = containerd.lab.host.run("tc qdisc show");
    claims.note("containerd's annotation", if qdiscs.contains("rate 20Mbit") { Ok(()) } else { Err(qdiscs) });
    containerd.remove(&id);
    claims.is_unchanged("containerd leaves nothing", &before, || containerd.state());
    claims.assert_kept();
}
