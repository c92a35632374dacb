//! The firewall plugin beside the real firewalld, on a host of its own with a bus of its own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use netns_tests::firewalld::{Firewalld, SYSTEM_BUS};
use netns_tests::lab::{CLIENT, HOST};
use netns_tests::{Container, Fetch, Lab, Netns, Outcome, Plugin, Proto, Target, Verb, serve};
use serde_json::{Value, json};

/// A lab whose host runs firewalld: nothing is forwarded from or to addresses that no zone trusts.
struct Guarded {
    lab: Lab,
    firewalld: Firewalld,
}

impl Guarded {
    #[track_caller]
    fn new() -> Guarded {
        Guarded::at(SYSTEM_BUS)
    }

    #[track_caller]
    fn at(socket: &str) -> Guarded {
        let lab = Lab::new();
        let firewalld = Firewalld::start_at(&lab.host, socket);
        Guarded { lab, firewalld }
    }

    #[track_caller]
    fn firewall_cmd(&self, arguments: &str) -> String {
        self.firewalld.command(&self.lab.host, arguments)
    }

    fn sources(&self, zone: &str) -> Vec<String> {
        let mut sources: Vec<String> =
            self.firewall_cmd(&format!("--zone={zone} --list-sources")).split_whitespace().map(str::to_owned).collect();
        sources.sort();
        sources
    }

    fn call(&self, verb: Verb, config: &Value, target: &Target) -> Outcome {
        Plugin::ours("firewall").call(&self.lab.host, verb, config, target)
    }
}

fn config(container: &Container, keys: Value) -> Value {
    let prev = container.prev_result("1.0.0");
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "firewall", "prevResult": prev});
    config.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap_or_default());
    config
}

fn at(addresses: [&str; 2], port: u16) -> [String; 2] {
    [format!("{}:{port}", addresses[0]), format!("[{}]:{port}", addresses[1])]
}

#[track_caller]
fn reaches(from: &Netns, to: &[String; 2], token: &str) {
    to.iter().for_each(|address| drop(Fetch::new(Proto::Tcp, address).expect(from, token)));
}

#[track_caller]
fn is_cut_off(from: &Netns, to: &[String; 2]) {
    to.iter().for_each(|address| drop(Fetch::new(Proto::Tcp, address).expect_nothing(from)));
}

#[test]
fn a_running_firewalld_is_told_and_a_container_gets_out() {
    let guarded = Guarded::new();
    let (_client, container) = (serve(&guarded.lab.client, 80, "client"), guarded.lab.container(2));
    let _server = serve(&container.netns, 80, "container");
    let config = config(&container, json!({}));
    is_cut_off(&container.netns, &at(CLIENT, 80));

    guarded.call(Verb::Add, &config, &container.target()).succeeds();
    guarded.call(Verb::Check, &config, &container.target()).succeeds();
    assert_eq!(guarded.sources("trusted"), ["10.88.0.2/32", "fd00:88::2/128"]);
    reaches(&container.netns, &at(CLIENT, 80), "client");
    is_cut_off(&guarded.lab.client, &at(["10.88.0.2", "fd00:88::2"], 80));
    assert!(!guarded.lab.host.run("nft list tables").contains(" filter"), "no table of iptables is made");

    guarded.call(Verb::Add, &config, &container.target()).succeeds();
    let mut bare = config.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    for _ in 0..2 {
        guarded.call(Verb::Del, &bare, &container.target().without_netns()).succeeds();
        assert_eq!(guarded.sources("trusted"), [""; 0]);
    }
    is_cut_off(&container.netns, &at(CLIENT, 80));
}

#[test]
fn a_published_port_is_reached_through_firewalld() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let _server = serve(&container.netns, 80, "container");
    guarded.lab.host.nft(
        "table inet published { chain pre { type nat hook prerouting priority dstnat;\n\
         tcp dport 8080 dnat ip to 10.88.0.2:80\n }\n }",
    );
    guarded.call(Verb::Add, &config(&container, json!({})), &container.target()).succeeds();
    Fetch::new(Proto::Tcp, &at(HOST, 8080)[0]).expect(&guarded.lab.client, "container");
}

#[test]
fn a_reload_is_seen_by_check_and_mended_by_the_next_add() {
    let guarded = Guarded::new();
    let (_client, container) = (serve(&guarded.lab.client, 80, "client"), guarded.lab.container(2));
    guarded.firewall_cmd("--permanent --new-zone=podzone");
    guarded.firewall_cmd("--permanent --zone=podzone --set-target=ACCEPT");
    guarded.firewall_cmd("--reload");
    let config = config(&container, json!({"backend": "firewalld", "firewalldZone": "podzone"}));
    guarded.call(Verb::Add, &config, &container.target()).succeeds();
    guarded.firewall_cmd("--reload");
    assert_eq!(guarded.sources("podzone"), [""; 0], "firewalld forgets its runtime configuration");
    let error = guarded.call(Verb::Check, &config, &container.target()).fails_with(101);
    assert!(error.details.contains("10.88.0.2/32") && error.details.contains("podzone"), "{error:?}");
    guarded.call(Verb::Add, &config, &container.target()).succeeds();
    guarded.call(Verb::Check, &config, &container.target()).succeeds();
    reaches(&container.netns, &at(CLIENT, 80), "client");
    guarded.call(Verb::Del, &config, &container.target()).succeeds();
    assert_eq!(guarded.sources("podzone"), [""; 0]);
}

#[test]
fn what_firewalld_refuses_is_said_and_undone() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let rules = guarded.lab.host.run("nft --stateless list tables");
    let no_zone = config(&container, json!({"firewalldZone": "nowhere"}));
    let error = guarded.call(Verb::Add, &no_zone, &container.target()).fails_with(103);
    assert!(error.msg.contains("INVALID_ZONE") && error.details.contains("firewalldZone"), "{error:?}");

    // The second address is somebody else's: the first is taken back.
    guarded.firewall_cmd("--zone=public --add-source=fd00:88::2/128");
    let error = guarded.call(Verb::Add, &config(&container, json!({})), &container.target()).fails_with(103);
    assert!(error.msg.contains("ZONE_CONFLICT"), "{error:?}");
    assert_eq!(guarded.sources("trusted"), [""; 0]);
    assert_eq!(guarded.lab.host.run("nft --stateless list tables"), rules);
}

#[test]
fn a_late_del_leaves_the_new_owner_in_its_zone() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let config = config(&container, json!({}));
    let old = Target::new("old-container", &container.netns.path(), "eth0");
    guarded.call(Verb::Add, &config, &old).succeeds();
    guarded.call(Verb::Add, &config, &container.target()).succeeds();
    guarded.call(Verb::Del, &config, &old.without_netns()).succeeds();
    assert_eq!(guarded.sources("trusted"), ["10.88.0.2/32", "fd00:88::2/128"]);
    guarded.call(Verb::Check, &config, &container.target()).succeeds();
}

#[test]
fn the_del_of_the_younger_leaves_the_elder_in_its_zone() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let config = config(&container, json!({}));
    let younger = Target::new("younger", &container.netns.path(), "eth0");
    guarded.call(Verb::Add, &config, &container.target()).succeeds();
    guarded.call(Verb::Add, &config, &younger).succeeds();
    guarded.call(Verb::Del, &config, &younger.without_netns()).succeeds();
    assert_eq!(guarded.sources("trusted"), ["10.88.0.2/32", "fd00:88::2/128"]);
    guarded.call(Verb::Check, &config, &container.target()).succeeds();
    guarded.call(Verb::Del, &config, &container.target()).succeeds();
    assert_eq!(guarded.sources("trusted"), [""; 0]);
}

#[test]
fn the_reference_s_sources_go_with_the_container() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let config = config(&container, json!({"backend": "firewalld"}));
    Plugin::reference("firewall").call(&guarded.lab.host, Verb::Add, &config, &container.target()).succeeds();
    assert_eq!(guarded.sources("trusted").len(), 2);
    guarded.call(Verb::Del, &config, &container.target()).succeeds();
    assert_eq!(guarded.sources("trusted"), [""; 0]);
}

#[test]
fn another_backend_on_a_host_with_firewalld_names_the_table_that_rejects() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let config = config(&container, json!({"backend": "iptables"}));
    let added = guarded.call(Verb::Add, &config, &container.target());
    added.succeeds();
    assert!(added.stderr.contains("inet firewalld filter_FORWARD"), "{}", added.stderr);
    assert_eq!(guarded.sources("trusted"), [""; 0]);
}

#[test]
fn a_bus_elsewhere_is_found_by_its_variable() {
    let guarded = Guarded::at("/run/dbus/elsewhere");
    let container = guarded.lab.container(2);
    let config = config(&container, json!({}));
    let target = container.target();
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", &target.container),
        ("CNI_NETNS", &target.netns),
        ("CNI_IFNAME", &target.ifname),
        ("DBUS_SYSTEM_BUS_ADDRESS", guarded.firewalld.address()),
    ];
    let plugin = Plugin::ours("firewall");
    plugin.call_with_env(&guarded.lab.host, &env, config.to_string().as_bytes()).succeeds();
    assert_eq!(guarded.sources("trusted").len(), 2);
}

#[test]
fn a_bus_that_is_no_unix_socket_is_refused_and_stops_only_who_asks_for_firewalld() {
    let lab = Lab::new();
    let container = lab.container(2);
    let target = container.target();
    for address in ["tcp:host=name.example,port=9", "tcp:host=127.0.0.1,port=9", "nonsense"] {
        let call = |command: &str, backend: &str| {
            let env = [
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", &target.container),
                ("CNI_NETNS", &target.netns),
                ("CNI_IFNAME", &target.ifname),
                ("DBUS_SYSTEM_BUS_ADDRESS", address),
            ];
            let config = config(&container, json!({"backend": backend})).to_string();
            Plugin::ours("firewall").call_with_env(&lab.host, &env, config.as_bytes())
        };
        let before = lab.host.run("nft list tables");
        let error = call("ADD", "firewalld").fails_with(103);
        assert!(error.msg.contains("DBUS_SYSTEM_BUS_ADDRESS isn't a"), "{error:?}");
        assert_eq!(lab.host.run("nft list tables"), before);
        // The second DEL has nothing left, and asks for what the reference may have told firewalld.
        for command in ["ADD", "ADD", "CHECK", "DEL", "DEL"] {
            call(command, "").succeeds();
        }
    }
}

#[test]
fn without_firewalld_only_those_fail_who_ask_for_it() {
    let lab = Lab::new();
    let container = lab.container(2);
    let before = lab.host.run("nft list tables");
    let asks = config(&container, json!({"backend": "firewalld"}));
    let error = Plugin::ours("firewall").call(&lab.host, Verb::Add, &asks, &container.target()).fails_with(103);
    assert!(error.details.contains("start firewalld"), "{error:?}");
    assert_eq!(lab.host.run("nft list tables"), before);
    let mut status = asks.clone();
    status["cniVersion"] = "1.1.0".into();
    status.as_object_mut().unwrap().remove("prevResult");
    Plugin::ours("firewall").call(&lab.host, Verb::Status, &status, &Target::new("", "", "")).fails_with(50);
    // Its runtime configuration has died with it.
    Plugin::ours("firewall").call(&lab.host, Verb::Del, &asks, &container.target()).succeeds();
    let plain = config(&container, json!({}));
    Plugin::ours("firewall").call(&lab.host, Verb::Add, &plain, &container.target()).succeeds();
}

#[test]
fn what_an_add_no_longer_has_is_taken_out_of_firewalld() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let add = |keys: Value, address: &str| {
        let mut config = config(&container, keys);
        config["prevResult"]["ips"] = json!([{"address": format!("{address}/24"), "interface": 2}]);
        guarded.call(Verb::Add, &config, &container.target()).succeeds();
        config
    };
    add(json!({}), "10.88.0.2");
    add(json!({}), "10.88.0.3");
    assert_eq!(guarded.sources("trusted"), ["10.88.0.3/32"]);
    add(json!({"firewalldZone": "internal"}), "10.88.0.3");
    assert_eq!((guarded.sources("trusted"), guarded.sources("internal")), (vec![], vec!["10.88.0.3/32".to_owned()]));
    add(json!({"backend": "iptables"}), "10.88.0.3");
    assert_eq!(guarded.sources("internal"), [""; 0]);
    // Also if the records are lost in between.
    add(json!({}), "10.88.0.3");
    guarded.lab.host.run("nft delete table inet cni_chain_firewall");
    let last = add(json!({"firewalldZone": "internal"}), "10.88.0.4");
    assert_eq!((guarded.sources("trusted"), guarded.sources("internal")), (vec![], vec!["10.88.0.4/32".to_owned()]));
    guarded.call(Verb::Del, &last, &container.target()).succeeds();
    assert_eq!(guarded.sources("internal"), [""; 0]);
}

#[test]
fn an_address_moves_to_the_zone_of_its_new_owner_and_back() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let elder = config(&container, json!({}));
    let younger = config(&container, json!({"firewalldZone": "internal"}));
    let target = Target::new("younger", &container.netns.path(), "eth0");
    let both = ["10.88.0.2/32", "fd00:88::2/128"];
    guarded.call(Verb::Add, &elder, &container.target()).succeeds();
    guarded.call(Verb::Add, &younger, &target).succeeds();
    assert_eq!((guarded.sources("trusted").len(), guarded.sources("internal")), (0, both.map(str::to_owned).to_vec()));
    guarded.call(Verb::Del, &younger, &target.without_netns()).succeeds();
    assert_eq!((guarded.sources("internal").len(), guarded.sources("trusted")), (0, both.map(str::to_owned).to_vec()));
    guarded.call(Verb::Check, &elder, &container.target()).succeeds();
    // One who tells firewalld nothing takes it over: nobody needs the source when the elder is gone.
    let silent = config(&container, json!({"backend": "iptables"}));
    guarded.call(Verb::Add, &silent, &target).succeeds();
    guarded.call(Verb::Del, &elder, &container.target().without_netns()).succeeds();
    assert_eq!(guarded.sources("trusted"), [""; 0]);
}

#[test]
fn a_firewalld_that_hangs_is_waited_for_once() {
    let guarded = Guarded::new();
    let container = guarded.lab.container(2);
    let config = config(&container, json!({}));
    guarded.call(Verb::Add, &config, &container.target()).succeeds();
    guarded.firewalld.hang(true);
    let begin = std::time::Instant::now();
    let error = guarded.call(Verb::Del, &config, &container.target()).fails_with(107);
    assert!(error.msg.contains("firewalld"), "{error:?}");
    assert!(begin.elapsed().as_secs() < 40, "one patience for both addresses: {:?}", begin.elapsed());
    guarded.firewalld.hang(false);
    guarded.call(Verb::Del, &config, &container.target()).succeeds();
    assert_eq!(guarded.sources("trusted"), [""; 0]);
}

/// Whoever is killed, or held, at its system calls (registers have the names of x86-64).
#[cfg(target_arch = "x86_64")]
mod disturbed {
    use netns_tests::faults::{Run, Side, changes, held, killed};

    use super::*;

    const SIDES: [Side; 2] = [Side::Before, Side::Behind];

    impl Guarded {
        /// Each change of a call that went well.
        fn steps(&self, plugin: &Plugin, verb: Verb, config: &Value, target: &Target) -> Vec<(usize, Side)> {
            let (all, outcome) = changes(&Run { plugin, host: &self.lab.host, verb, config, target });
            outcome.succeeds();
            (0..all.len()).flat_map(|n| SIDES.map(|side| (n, side))).collect()
        }
    }

    #[test]
    fn whatever_a_killed_add_has_told_firewalld_del_and_gc_take_back() {
        let guarded = Guarded::new();
        let (host, container) = (&guarded.lab.host, guarded.lab.container(2));
        let (config, target, plugin) = (config(&container, json!({})), container.target(), Plugin::ours("firewall"));
        let nobody = json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "cni.dev/valid-attachments": []});
        let without = json!({"cniVersion": "1.0.0", "name": "net", "type": "firewall"});
        let steps = guarded.steps(&plugin, Verb::Add, &config, &target);
        guarded.call(Verb::Del, &config, &target).succeeds();
        let mut told = 0;
        for (n, side) in steps {
            for (verb, config_of_ending) in [(Verb::Gc, &nobody), (Verb::Del, &without)] {
                let run = Run { plugin: &plugin, host, verb: Verb::Add, config: &config, target: &target };
                let met = killed(&run, n, side);
                told += usize::from(!guarded.sources("trusted").is_empty());
                guarded.call(verb, config_of_ending, &target.without_netns()).succeeds();
                assert_eq!(guarded.sources("trusted"), [""; 0], "ADD killed {side:?} {n} ({met:?}), then {verb:?}");
            }
        }
        assert!(told > 4, "firewalld was never told");
    }

    /// An ADD that gives a container another address, and is killed: the old one, the new one and both may be in the zone.
    #[test]
    fn whatever_a_killed_change_of_address_has_told_firewalld_is_taken_back() {
        let guarded = Guarded::new();
        let (host, container) = (&guarded.lab.host, guarded.lab.container(2));
        let (before, target, plugin) = (config(&container, json!({})), container.target(), Plugin::ours("firewall"));
        let mut changed = before.clone();
        changed["prevResult"]["ips"][0]["address"] = json!("10.88.0.77/24");
        let mut again = before.clone();
        again["prevResult"]["ips"][0]["address"] = json!("10.88.0.78/24");
        let nobody = json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "cni.dev/valid-attachments": []});
        let without = json!({"cniVersion": "1.0.0", "name": "net", "type": "firewall"});
        guarded.call(Verb::Add, &before, &target).succeeds();
        let steps = guarded.steps(&plugin, Verb::Add, &changed, &target);
        guarded.call(Verb::Del, &changed, &target).succeeds();
        let mut told = 0;
        let endings = [Verb::Gc, Verb::Del, Verb::Add].into_iter().cycle();
        for ((n, side), ending) in steps.into_iter().zip(endings) {
            guarded.call(Verb::Add, &before, &target).succeeds();
            let run = Run { plugin: &plugin, host, verb: Verb::Add, config: &changed, target: &target };
            let met = killed(&run, n, side);
            if ending == Verb::Add {
                // A third address: what the killed one has told is forgotten.
                guarded.call(Verb::Add, &again, &target).succeeds();
            }
            let zone = guarded.sources("trusted").join(" ");
            told += usize::from(zone.contains("10.88.0.77"));
            assert!(
                ending != Verb::Add || zone.contains("10.88.0.78") && !zone.contains("10.88.0.77"),
                "{met:?}: {zone}"
            );
            let (verb, config) = if ending == Verb::Gc { (Verb::Gc, &nobody) } else { (Verb::Del, &without) };
            guarded.call(verb, config, &target.without_netns()).succeeds();
            assert_eq!(guarded.sources("trusted"), [""; 0], "ADD killed {side:?} {n} ({met:?}), then {ending:?}");
        }
        assert!(told > 4, "firewalld was never told");
    }

    /// The old owner of an address goes while the new one comes: at each step of either.
    #[test]
    fn whoever_gets_an_address_while_its_old_owner_goes_is_in_its_zone() {
        let guarded = Guarded::new();
        let (host, container) = (&guarded.lab.host, guarded.lab.container(2));
        let (config, new, plugin) = (config(&container, json!({})), container.target(), Plugin::ours("firewall"));
        let old = Target::new("old-container", &container.netns.path(), "eth0");
        for (verb, one, meanwhile, other) in [(Verb::Add, &new, Verb::Del, &old), (Verb::Del, &old, Verb::Add, &new)] {
            guarded.call(Verb::Add, &config, &old).succeeds();
            let steps = guarded.steps(&plugin, verb, &config, one);
            guarded.call(Verb::Del, &config, &new).succeeds();
            let mut times_held = 0;
            for (n, side) in steps {
                guarded.call(Verb::Del, &config, &old).succeeds();
                guarded.call(Verb::Add, &config, &old).succeeds();
                let mut meanwhile = |_| drop(guarded.call(meanwhile, &config, other).succeeds());
                let run = Run { plugin: &plugin, host, verb, config: &config, target: one };
                let (met, outcome) = held(&run, n, side, &mut meanwhile);
                outcome.succeeds();
                // A call that found less to do ended before.
                if met.is_none() {
                    continue;
                }
                times_held += 1;
                let check = guarded.call(Verb::Check, &config, &new);
                assert_eq!(check.exit, 0, "{verb:?} held {side:?} {n} ({met:?}): {}", check.call());
                guarded.call(Verb::Del, &config, &new).succeeds();
                guarded.call(Verb::Del, &config, &old).succeeds();
                assert_eq!(guarded.sources("trusted"), [""; 0], "{verb:?} held {side:?} {n} ({met:?})");
            }
            assert!(times_held > 8, "{verb:?} was held only {times_held} times");
        }
    }
}
