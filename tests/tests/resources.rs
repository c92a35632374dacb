//! With too little of something an error says of what, and nothing is left; with little of it all goes well.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use netns_tests::scene::{Clean, Glance, Play, Scene, same};
use netns_tests::{CniError, Lab, Plugin, Verb, of_every_play};
use serde_json::{Value, json};

const PLAYS: [Play; 5] = [Play::Portmap, Play::Bandwidth, Play::BandwidthOfSubnets, Play::Firewall, Play::Tuning];

#[track_caller]
fn assert_same(before: &Glance, after: &Glance, what: &str) {
    assert_eq!(same(before, after), Ok(()), "{what}");
}

/// ADD with less than it needs: it fails, nothing is left, and without the want it succeeds.
#[track_caller]
fn refused(scene: &Scene, wrapper: &[&str]) -> CniError {
    let before = scene.glance();
    let outcome = scene.plugin.call_under(wrapper, &scene.lab.host, Verb::Add, &scene.config, &scene.target);
    let error = outcome.fails();
    assert_same(&before, &scene.glance(), outcome.call());
    scene.call(Verb::Add).succeeds();
    scene.call(Verb::Check).succeeds();
    scene.call(Verb::Del).succeeds();
    error
}

#[track_caller]
fn says(error: &CniError, words: &[&str]) {
    let text = format!("{} {}", error.msg, error.details);
    assert!(words.iter().any(|word| text.contains(word)), "none of {words:?} is in: {text}");
}

#[test]
fn sixteen_descriptors_are_enough() {
    for play in PLAYS {
        let scene = Scene::set(play);
        for verb in [Verb::Add, Verb::Check, Verb::Add, Verb::Del, Verb::Gc, Verb::Status] {
            let (host, config) = (&scene.lab.host, scene.config_for(verb));
            let outcome = scene.plugin.call_under(&["prlimit", "--nofile=16"], host, verb, config, &scene.target);
            assert_eq!(outcome.exit, 0, "{play:?} {verb:?}: {}", outcome.call());
        }
    }
}

/// Those of stdin, stdout and stderr, and few more: enough, or an error that says so.
#[test]
fn too_few_descriptors_are_told() {
    for play in PLAYS {
        let scene = Scene::set(play);
        let before = scene.glance();
        let mut told = 0;
        for most in 4..12 {
            let limit = format!("--nofile={most}");
            let wrapper = ["prlimit", limit.as_str()];
            let outcome = scene.plugin.call_under(&wrapper, &scene.lab.host, Verb::Add, &scene.config, &scene.target);
            if outcome.exit == 0 {
                scene.call(Verb::Check).succeeds();
                scene.call(Verb::Del).succeeds();
                continue;
            }
            told += 1;
            says(&outcome.fails(), &["EMFILE", "Too many open files"]);
            // Whoever has no descriptor to look with whether all is undone keeps the file for DEL.
            if play == Play::Tuning {
                scene.call(Verb::Del).succeeds();
            }
            assert_same(&before, &scene.glance(), outcome.call());
        }
        assert!(told > 0 || play == Play::Firewall, "{play:?} needs no descriptors");
    }
}

#[test]
fn a_missing_capability_is_told() {
    for play in PLAYS {
        let error =
            refused(&Scene::set(play), &["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
        says(&error, &["CAP_NET_ADMIN"]);
    }
}

/// A shell that makes a directory read-only for the plugin alone.
fn read_only(directory: &str) -> [String; 5] {
    let script = format!(
        "mkdir -p {directory} && mount --bind {directory} {directory} && mount -o remount,bind,ro {directory} && exec \"$0\""
    );
    ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned)
}

#[test]
fn a_read_only_proc_sys_is_told() {
    let wrapper = read_only("/proc/sys");
    let wrapper = wrapper.each_ref().map(String::as_str);
    for play in [Play::Tuning, Play::Portmap] {
        let error = refused(&Scene::set(play), &wrapper);
        says(&error, &["read-only", "Read-only", "EROFS"]);
    }
}

#[test]
fn a_read_only_state_directory_is_told() {
    let wrapper = read_only("/run/cni/tuning");
    let wrapper = wrapper.each_ref().map(String::as_str);
    let error = refused(&Scene::set(Play::Tuning), &wrapper);
    assert_eq!(error.code, 106, "{error:?}");
    says(&error, &["Read-only", "read-only"]);
}

/// Whether a program can be started at all under this limit: what comes before its first line is the C library's.
fn starts(scene: &Scene, limit: &str) -> bool {
    let mut command = scene.lab.host.command("prlimit");
    command.arg(limit).arg(scene.plugin.path()).arg("--version").output().is_ok_and(|done| done.status.success())
}

/// Gives `verb` more memory each time until it succeeds: whatever it had before, it says what it lacks, and DEL cleans up.
fn tells_of_its_memory(clean: &Clean<'_>, resource: &str, step: usize, verb: Verb) -> usize {
    let scene = clean.scene();
    let limits = (1..).map(|n| format!("--{resource}={}", n * step));
    let mut told = 0;
    for limit in limits.skip_while(|limit| !starts(scene, limit)) {
        if verb != Verb::Add {
            scene.call(Verb::Add).succeeds();
        }
        let before = scene.glance();
        let (host, config) = (&scene.lab.host, scene.config_for(verb));
        let outcome = scene.plugin.call_under(&["prlimit", &limit], host, verb, config, &scene.target);
        if outcome.exit == 0 {
            scene.call(Verb::Del).succeeds();
            scene.reset();
            return told;
        }
        told += 1;
        // A program that is started has no more: the kernel may kill it before it can say anything.
        says(&outcome.fails(), &["memory", "ENOMEM", "iptables-legacy-restore failed"]);
        if matches!(verb, Verb::Check | Verb::Status) {
            assert_same(&before, &scene.glance(), outcome.call());
        }
        scene.call(Verb::Del).succeeds();
        clean.assert(&format!("{verb:?} under {limit}: {}", outcome.call()));
        scene.reset();
    }
    told
}

/// With a small configuration, for which two plugins need hardly more than the C library does, and with a large one.
fn too_little_memory_is_told(play: Play) {
    let small = &[Verb::Add, Verb::Check, Verb::Del, Verb::Gc, Verb::Status][..];
    for (padding, verbs) in [(0, small), (256 << 10, &[Verb::Add, Verb::Del])] {
        let mut scene = Scene::set(play);
        scene.config["padding"] = "x".repeat(padding).into();
        let clean = Clean::of(&scene);
        for resource in ["data", "as"] {
            let told = verbs
                .iter()
                .map(|verb| (*verb, tells_of_its_memory(&clean, resource, (32 << 10) + padding / 8, *verb)));
            let told: Vec<(Verb, usize)> = told.collect();
            println!("{play:?} with {padding} bytes more: RLIMIT_{} told {told:?} times", resource.to_uppercase());
            assert!(padding == 0 || told[0].1 > 0, "{play:?}'s ADD needs no memory");
        }
    }
}

of_every_play! {
    too_little_memory_is_told
}

/// What a plugin may lack, how, and the words that say it.
fn lacks() -> Vec<(&'static str, Vec<String>, &'static [&'static str])> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let without = |capability: &str| words(&["setpriv", "--bounding-set", capability, "--inh-caps", capability]);
    vec![
        ("CAP_NET_ADMIN", without("-net_admin"), &["CAP_NET_ADMIN"]),
        ("CAP_SYS_ADMIN", without("-sys_admin"), &["CAP_SYS_ADMIN"]),
        ("the host's user namespace", words(&["unshare", "--user", "--map-root-user"]), &["CAP_", "ermission denied"]),
        ("a /proc/sys to write", read_only("/proc/sys").to_vec(), &["ead-only", "EROFS"]),
        ("a /run/cni to write", read_only("/run/cni").to_vec(), &["ead-only", "EROFS"]),
        ("a sixth descriptor", words(&["prlimit", "--nofile=5"]), &["EMFILE", "Too many open files"]),
    ]
}

/// A verb that says yes has done its work, and one that says no says what it lacks. ADD, CHECK and STATUS have changed nothing then;
/// and once nothing is lacking DEL cleans up.
fn what_is_lacking_is_told(play: Play) {
    let scene = Scene::set(play);
    let clean = Clean::of(&scene);
    for (what, wrapper, words) in lacks() {
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let mut told = Vec::new();
        for verb in [Verb::Add, Verb::Check, Verb::Del, Verb::Gc, Verb::Status] {
            if verb != Verb::Add {
                scene.call(Verb::Add).succeeds();
            }
            let before = scene.glance();
            let (host, config) = (&scene.lab.host, scene.config_for(verb));
            let outcome = scene.plugin.call_under(&wrapper, host, verb, config, &scene.target);
            if outcome.exit != 0 {
                told.push(verb);
                says(&outcome.fails(), words);
            }
            match (verb, outcome.exit) {
                (Verb::Add, 0) => drop(scene.call(Verb::Check).succeeds()),
                (Verb::Del, 0) if outcome.stderr.contains("for the next DEL") => {}
                (Verb::Del | Verb::Gc, 0) => clean.is_clean_after(verb).unwrap(),
                (Verb::Del | Verb::Gc, _) => {}
                // A file of no content, by which calls wait for each other, is put in once a host.
                (Verb::Add, _) => clean.assert(outcome.call()),
                _ => assert_same(&before, &scene.glance(), outcome.call()),
            }
            scene.call(Verb::Del).succeeds();
            clean.assert(&format!("{verb:?} without {what}: {}", outcome.call()));
            scene.reset();
        }
        println!("{play:?} without {what}: {told:?} can't");
        if what.starts_with("CAP_") || what.starts_with("the host") {
            assert_eq!(told.contains(&Verb::Add), told.contains(&Verb::Status), "{play:?} without {what}: {told:?}");
        }
    }
}

of_every_play! {
    what_is_lacking_is_told
}

/// A container, and what publishes so many ports of it. The container must live on: its links go some time after it.
fn ports(lab: &Lab, number: usize) -> (netns_tests::Container, Value) {
    let container = lab.container(2);
    let mapping = |n: usize| {
        let port = n % 65_535 + 1;
        json!({"hostPort": port, "containerPort": port, "protocol": "tcp", "hostIP": format!("127.0.0.{}", n / 65_535 + 1)})
    };
    let config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap",
        "runtimeConfig": {"portMappings": (0..number).map(mapping).collect::<Vec<_>>()},
        "prevResult": container.prev_result("1.1.0"),
    });
    (container, config)
}

#[test]
fn every_port_can_be_published_and_goes_with_del() {
    let lab = Lab::new();
    let (container, config) = ports(&lab, 65_535);
    let before = lab.host.snapshot();
    let portmap = Plugin::ours("portmap");
    for verb in [Verb::Add, Verb::Check, Verb::Add, Verb::Del] {
        portmap.call(&lab.host, verb, &config, &container.target()).succeeds();
    }
    lab.host.assert_same_as(&before);
}

#[test]
fn too_little_memory_for_every_port_is_told() {
    let lab = Lab::new();
    let (container, config) = ports(&lab, 65_535);
    let before = lab.host.snapshot();
    let portmap = Plugin::ours("portmap");
    let mut told = 0;
    for mib in (8..).step_by(8) {
        let limit = format!("--data={}", mib << 20);
        let outcome = portmap.call_under(&["prlimit", &limit], &lab.host, Verb::Add, &config, &container.target());
        if outcome.exit == 0 {
            println!("told {told} times, up to {mib} MiB");
            break;
        }
        told += 1;
        says(&outcome.fails(), &["memory", "ENOMEM"]);
        portmap.call(&lab.host, Verb::Del, &config, &container.target()).succeeds();
        lab.host.assert_same_as(&before);
    }
    assert!(told > 0);
    portmap.call(&lab.host, Verb::Del, &config, &container.target()).succeeds();
    lab.host.assert_same_as(&before);
}

#[test]
fn more_mappings_than_there_are_ports_are_refused() {
    let lab = Lab::new();
    let (container, config) = ports(&lab, 1);
    let before = lab.host.snapshot();
    let one = config["runtimeConfig"]["portMappings"][0].to_string();
    let refused = |many: usize| {
        let config = config.to_string().replace(&one, &vec![one.as_str(); many].join(","));
        Plugin::ours("portmap").call_raw(&lab.host, "ADD", config.as_bytes(), &container.target()).fails()
    };
    let error = refused(3 * 65_535 + 1);
    assert_eq!(error.code, 7, "{error:?}");
    assert!(error.msg.contains("runtimeConfig.portMappings = more than 196605 entries"), "{error:?}");
    // More than is read at all.
    let error = refused(1_000_000);
    assert_eq!(error.code, 5, "{error:?}");
    assert!(error.msg.contains("16777216 bytes"), "{error:?}");
    lab.host.assert_same_as(&before);
}

/// write(2) to a file that would grow beyond it raises SIGXFSZ.
#[test]
fn files_that_may_not_grow_are_told() {
    let wrapper = ["prlimit", "--fsize=0"];
    says(&refused(&Scene::set(Play::Tuning), &wrapper), &["EFBIG", "File too large"]);
    // What `firewall` writes is a second copy.
    let scene = Scene::set(Play::Firewall);
    let clean = Clean::of(&scene);
    let outcome = scene.plugin.call_under(&wrapper, &scene.lab.host, Verb::Add, &scene.config, &scene.target);
    assert_eq!(outcome.exit, 0, "{}", outcome.call());
    scene.call(Verb::Del).succeeds();
    clean.assert("firewall");
}

/// `mount -o subset=pid`, as hardened services have it.
#[test]
fn a_proc_without_sysctls_is_told() {
    let script = "mount -t proc -o subset=pid proc /proc && exec \"$0\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script];
    for play in [Play::Tuning, Play::Portmap] {
        let scene = Scene::set(play);
        says(&refused(&scene, &wrapper), &["there is no /proc/sys/net"]);
        for script in [script, "umount --lazy /proc && exec \"$0\""] {
            let wrapper = ["unshare", "--mount", "sh", "-c", script];
            let config = scene.config_for(Verb::Status);
            let outcome = scene.plugin.call_under(&wrapper, &scene.lab.host, Verb::Status, config, &scene.target);
            let error = outcome.fails();
            assert_eq!(error.code, 50);
            says(&error, &["there is no /proc/sys/net"]);
        }
        // DEL must not take away what guards a value that it can't put back.
        let clean = Clean::of(&scene);
        scene.call(Verb::Add).succeeds();
        if play == Play::Portmap {
            let config = scene.config_for(Verb::Del);
            let outcome = scene.plugin.call_under(&wrapper, &scene.lab.host, Verb::Del, config, &scene.target);
            says(&outcome.fails(), &["there is no /proc/sys/net"]);
            let left = scene.lab.host.run("nft list table inet cni_chain_portmap");
            let is_guarded = left.contains("chain loopback_guard") && left.contains(": goto loopback-");
            assert!(is_guarded && !left.contains("8080"), "{left}");
        }
        scene.call(Verb::Del).succeeds();
        clean.assert(play.plugin());
    }
}

/// Without CAP_NET_ADMIN in the host's user namespace no socket takes more than `net.core.wmem_max` says (socket(7)), and a transaction
/// is one datagram.
#[test]
fn a_batch_that_no_socket_takes_is_told() {
    let host = netns_tests::Host::new();
    let mapping = |n: usize| json!({"hostPort": n % 65_535 + 1, "containerPort": 80, "protocol": if n < 65_535 { "tcp" } else { "udp" }});
    let config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap",
        "runtimeConfig": {"portMappings": (0..131_070).map(mapping).collect::<Vec<_>>()},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]},
    });
    let target = netns_tests::Target::new("c1", "/nonexistent", "eth0");
    let wrapper = ["unshare", "--user", "--map-root-user", "--net"];
    let outcome = Plugin::ours("portmap").call_under(&wrapper, &host, Verb::Add, &config, &target);
    let most: u64 = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
    // The transaction has more than 8 MiB, and the kernel doubles what it is told.
    assert!(outcome.exit == 1 || most > 4 << 20, "{}", outcome.call());
    if outcome.exit == 1 {
        says(&outcome.fails(), &["raise net.core.wmem_max"]);
    }
}

/// Lists that no machine has use for are refused by their key, in bounded time, and DEL goes on all the same.
#[test]
fn too_many_of_anything_are_refused() {
    let sysctls = (0..100_000).map(|n| (format!("net.a{n}"), json!("1"))).collect::<serde_json::Map<_, _>>();
    let lists: [(Play, &str, Value, &str); 4] = [
        (Play::Portmap, "conditionsV4", vec![json!("-p tcp"); 100_000].into(), "100000 conditions"),
        (Play::Portmap, "runtimeConfig", json!({"portMappings": vec![json!({}); 1_000_000]}), "more than 196605"),
        (Play::BandwidthOfSubnets, "unshapedSubnets", vec![json!("10.0.0.0/8"); 100_000].into(), "100000 subnets"),
        (Play::Tuning, "sysctl", sysctls.into(), "100000"),
    ];
    for (play, key, list, reason) in lists {
        let mut scene = Scene::set(play);
        let before = scene.glance();
        scene.config[key] = list;
        let error = scene.call(Verb::Add).fails_with(7);
        let text = &error.msg;
        assert!(text.contains(key) && text.contains(reason) && text.len() < 500, "{text}");
        scene.call(Verb::Del).succeeds();
        assert_same(&before, &scene.glance(), key);
    }
}

/// Ten megabytes that mean nothing are read, and no more.
#[test]
fn ten_megabytes_are_read() {
    for play in PLAYS {
        let mut scene = Scene::set(play);
        let clean = Clean::of(&scene).states().clone();
        scene.config["padding"] = "x".repeat(10 << 20).into();
        for verb in [Verb::Add, Verb::Check, Verb::Del] {
            scene.call(verb).succeeds();
        }
        Clean::with(&scene, clean).assert(play.plugin());
    }
}

#[cfg(target_arch = "x86_64")]
mod memory {
    use netns_tests::Verb;
    use netns_tests::faults::{Run, answers, peak_memory, peak_memory_with};
    use netns_tests::scene::{Play, Scene};
    use serde_json::{Value, json};

    use super::{PLAYS, ports};
    use netns_tests::{Lab, Plugin};

    /// In KiB: 6 MiB for what is released. An executable that isn't optimised maps more of itself.
    fn most(plugin: &Plugin) -> u64 {
        let is_released = plugin.path().metadata().unwrap().len() < 4 << 20;
        if is_released { 6 << 10 } else { 16 << 10 }
    }

    #[test]
    fn a_small_configuration_takes_little_memory() {
        for play in PLAYS {
            let scene = Scene::set(play);
            for verb in [Verb::Add, Verb::Check, Verb::Del, Verb::Gc, Verb::Status, Verb::Version] {
                let (peak, outcome) = peak_memory(&scene.run(verb));
                assert_eq!(outcome.exit, 0, "{}", outcome.call());
                println!("{play:?} {verb:?}: {peak} KiB");
                assert!(peak > 0 && peak <= most(&scene.plugin), "{play:?} {verb:?}: {peak} KiB");
            }
        }
    }

    /// The configuration with as many of `entry` in a list at `at`, a JSON pointer, as 15 MB take.
    fn with_a_long_list(scene: &Scene, at: &str, entry: &str) -> Vec<u8> {
        let mut config = scene.config.clone();
        let (parent, key) = at.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = json!(["LIST"]);
        let list = vec![entry; 15_000_000 / (entry.len() + 1)].join(",");
        config.to_string().replace("\"LIST\"", &list).into_bytes()
    }

    /// 16 MiB of input, 96 MiB of values and what a program takes anyway: whatever comes.
    fn what_nobody_has_takes_bounded_memory(play: Play) {
        let nested = vec![r#"{"":{"":0}}"#; 100_000].join(",");
        let strings = vec![r#""a""#; 150_000].join(",");
        let (nested, strings) = (format!("[{nested}]"), format!("[{strings}]"));
        let lists = [
            ("/prevResult/interfaces", r#"{"name":"x","mac":"02:00:00:00:00:01"}"#, Some("prevResult.interfaces")),
            ("/prevResult/ips", r#"{"address":"10.0.0.2/24"}"#, Some("prevResult.ips")),
            ("/prevResult/routes", r#"{"dst":"10.0.0.0/8"}"#, Some("prevResult.routes")),
            ("/ipMasq", "{}", None),
            ("/padding", "0", None),
            ("/padding", nested.as_str(), None),
            ("/padding", strings.as_str(), None),
        ];
        let scene = Scene::set(play);
        let clean = super::Clean::of(&scene);
        for (at, entry, key) in &lists {
            let config = with_a_long_list(&scene, at, entry);
            for verb in [Verb::Add, Verb::Del] {
                let (peak, outcome) = peak_memory_with(&scene.run(verb), &config);
                println!("{play:?} {verb:?} with {at} full of {}: {peak} KiB", entry.get(..9).unwrap_or(entry));
                assert!(peak <= 128 << 10, "{play:?} {verb:?} with {at} full of {entry:.9}: {peak} KiB");
                match (verb, key) {
                    (Verb::Add, Some(key)) => {
                        let error = outcome.fails_with(7);
                        assert!(error.msg.contains(key) && error.msg.contains("more than 196605"), "{error:?}");
                    }
                    (Verb::Del, Some(_)) => drop(outcome.succeeds()),
                    // Nobody needs it; but there may be no room left for what somebody needs.
                    _ => assert!(outcome.exit == 0 || outcome.fails().msg.contains("96 MiB"), "{}", outcome.call()),
                }
            }
            scene.call(Verb::Del).succeeds();
            clean.assert(at);
        }
    }

    netns_tests::of_every_play! {
        what_nobody_has_takes_bounded_memory
    }

    /// More objects in the place of mappings than there are ports are passed over: what they would take is never there.
    #[test]
    fn a_million_mappings_take_no_memory() {
        let scene = Scene::set(Play::Portmap);
        let config = with_a_long_list(&scene, "/runtimeConfig/portMappings", "{}");
        let (peak, outcome) = peak_memory_with(&scene.run(Verb::Add), &config);
        assert!(outcome.fails_with(7).msg.contains("runtimeConfig.portMappings = more than 196605"));
        println!("{peak} KiB");
        assert!(peak <= 32 << 10, "{peak} KiB");
    }

    #[test]
    fn memory_grows_with_the_configuration_and_no_faster() {
        let peaks = [8_000, 16_000, 32_000].map(|number| {
            let lab = Lab::new();
            let (container, config) = ports(&lab, number);
            let target = container.target();
            let plugin = Plugin::ours("portmap");
            let run = Run { plugin: &plugin, host: &lab.host, verb: Verb::Add, config: &config, target: &target };
            let (peak, outcome) = peak_memory(&run);
            outcome.succeeds();
            plugin.call(&lab.host, Verb::Del, &config, &target).succeeds();
            peak
        });
        println!("8, 16, 32 thousand mappings: {peaks:?} KiB");
        let [first, second] = [peaks[1] - peaks[0], peaks[2] - peaks[1]];
        // Twice the mappings, twice the memory; buffers that double make it uneven.
        assert!(second < first * 3, "{peaks:?}");
    }

    /// What a verb costs in calls, which don't depend on the load of the machine.
    #[track_caller]
    fn calls(run: &Run<'_>) -> usize {
        let (calls, outcome) = answers(run);
        outcome.succeeds();
        calls.len()
    }

    /// A container with many ports gets others, or another network, or follows one that is gone: the kernel is asked for many
    /// at once, and each owner once.
    #[test]
    fn work_grows_with_the_ports_and_no_faster() {
        const NUMBER: usize = 1_000;
        let lab = Lab::new();
        let (container, all) = ports(&lab, NUMBER);
        let with = |change: &dyn Fn(usize, &mut Value)| {
            let mut config = all.clone();
            let mappings = config["runtimeConfig"]["portMappings"].as_array_mut().unwrap();
            mappings.iter_mut().enumerate().for_each(|(n, mapping)| change(n, mapping));
            config
        };
        // No two are neighbours, so that the record is long.
        let scattered = with(&|n, mapping| mapping["containerPort"] = json!(n * 7_919 % 65_535 + 1));
        let others = with(&|n, mapping| {
            (mapping["containerPort"], mapping["protocol"]) = (json!(n * 7_907 % 65_535 + 1), json!("udp"));
        });
        let mut one = all.clone();
        one["runtimeConfig"]["portMappings"].as_array_mut().unwrap().truncate(1);
        let mut second = others.clone();
        second["name"] = json!("net2");
        let portmap = Plugin::ours("portmap");
        let (target, follower) =
            (container.target(), netns_tests::Target::new("other", &container.netns.path(), "eth0"));
        let of = |verb, config| Run { plugin: &portmap, host: &lab.host, verb, config, target: &target };
        let add = |config| of(Verb::Add, config);
        calls(&add(&one));
        // The more the longer; an answer for each port, and for each line of a record, is one call.
        let seen = [
            ("from one port to many", NUMBER, calls(&add(&scattered))),
            ("again", 4 * NUMBER, calls(&add(&scattered))),
            ("to others", 4 * NUMBER, calls(&add(&others))),
            ("the same on a second network", 4 * NUMBER, calls(&add(&second))),
            ("CHECK of the second", 8 * NUMBER, calls(&of(Verb::Check, &second))),
            ("who follows", 6 * NUMBER, calls(&Run { target: &follower, ..add(&others) })),
            ("DEL", 4 * NUMBER, calls(&Run { target: &follower, ..of(Verb::Del, &others) })),
        ];
        println!("{seen:?}");
        for (what, most, calls) in seen {
            assert!(calls < most, "{what}: {calls} calls for {NUMBER} ports");
        }
    }
}
