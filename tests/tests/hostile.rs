//! Nothing that comes in makes a plugin panic, speak out of protocol, or change the kernel while it says no.
//!
//! [`netns_tests::plugin::Outcome`] holds every call to the protocol: exit 0 or 1, one JSON document or none, an error
//! with code and message, no panic. Here come the inputs, and what each must be called.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use netns_tests::mutation::mutations;
use netns_tests::recorded::{Call, Stage};
use netns_tests::scene::{Clean, Play, Scene};
use netns_tests::{Host, Netns, Outcome, Plugin, Snapshot, Verb};
use serde_json::{Value, json};

const PLUGINS: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

/// A plugin with a real call of it, and a host where that call can succeed.
struct Bench {
    plugin: Plugin,
    call: Call,
    stage: Stage,
}

impl Bench {
    fn new(plugin: &str) -> Bench {
        let calls = Call::all("podman-custom");
        let of_plugin = |c: &Call| c.verb() == "ADD" && c.plugin == plugin && c.stdin.len() > 300;
        // The one with the most keys.
        let mut call = calls.into_iter().filter(of_plugin).max_by_key(|c| c.stdin.len()).unwrap();
        // Every verb is defined in 1.1.0; its results have no version in the addresses, which a plugin must ignore.
        call.stdin = call.stdin.replace("0.4.0", "1.1.0");
        let stage = Stage::set(&call);
        Bench { plugin: Plugin::ours(plugin), call, stage }
    }

    fn host(&self) -> &Host {
        &self.stage.host
    }

    fn config(&self) -> Value {
        serde_json::from_str(&self.call.stdin_for(&self.stage.container.path())).unwrap()
    }

    fn env(&self, verb: &str) -> Vec<(&str, OsString)> {
        let mut env: Vec<(&str, OsString)> = Vec::new();
        for (name, value) in self.call.env_for(&self.stage.container.path()) {
            env.push((name, if name == "CNI_COMMAND" { verb.into() } else { value.into() }));
        }
        env
    }

    fn run(&self, verb: &str, stdin: &[u8]) -> Outcome {
        self.plugin.call_with_env(self.host(), &self.env(verb), stdin)
    }

    /// Both sides of the attachment, and the host's files.
    fn state(&self) -> [Snapshot; 2] {
        [self.host().snapshot(), self.stage.container.snapshot()]
    }

    #[track_caller]
    fn assert_unchanged(&self, before: &[Snapshot; 2]) {
        self.host().assert_same_as(&before[0]);
        self.stage.container.assert_same_as(&before[1]);
    }
}

fn every_verb_but_version() -> impl Iterator<Item = &'static str> {
    Verb::ALL.into_iter().filter(|verb| *verb != Verb::Version).map(Verb::as_str)
}

/// Documents that are wrong whatever the plugin, and the code that is due.
fn garbage() -> Vec<(&'static str, Vec<u8>, u64)> {
    let nested = |open: &str, close: &str, depth: usize| (open.repeat(depth) + "1" + &close.repeat(depth)).into_bytes();
    let named = |rest: &str| format!("{{\"cniVersion\":\"1.1.0\",\"name\":\"net\",{rest}}}").into_bytes();
    vec![
        ("nothing", Vec::new(), 6),
        ("white space", b" \n\t ".to_vec(), 6),
        ("a NUL", vec![0], 6),
        ("not UTF-8", vec![0xff, 0xfe, 0x00, 0x80], 6),
        ("not UTF-8 within", b"{\"cniVersion\":\"1.1.0\",\"name\":\"\xff\"}".to_vec(), 6),
        ("a lone surrogate", br#"{"cniVersion":"1.1.0","name":"\ud800"}"#.to_vec(), 6),
        ("null", b"null".to_vec(), 6),
        ("a number", b"42".to_vec(), 6),
        ("a string", b"\"ADD\"".to_vec(), 6),
        ("an array", b"[{}]".to_vec(), 6),
        ("an open brace", b"{".to_vec(), 6),
        ("two documents", b"{\"cniVersion\":\"1.1.0\",\"name\":\"net\"}{}".to_vec(), 6),
        ("an endless number", format!("{{\"name\":1{}}}", "0".repeat(1 << 20)).into_bytes(), 6),
        ("an infinite number", named("\"x\":1e999999"), 6),
        ("deep arrays", nested("[", "]", 100_000), 6),
        ("deep objects", nested("{\"a\":", "}", 100_000), 6),
        ("deep arrays within", named(&format!("\"x\":{}1{}", "[".repeat(50_000), "]".repeat(50_000))), 6),
        ("a prevResult that is no object", named("\"prevResult\":[1]"), 6),
        ("a prevResult with nonsense", named("\"prevResult\":{\"ips\":[{\"address\":\"::x\"}]}"), 6),
        ("a cniVersion that is no string", b"{\"cniVersion\":1,\"name\":\"net\"}".to_vec(), 6),
        ("a cniVersion that is none", b"{\"cniVersion\":\"one\",\"name\":\"net\"}".to_vec(), 6),
        ("a cniVersion of tomorrow", b"{\"cniVersion\":\"9.9.9\",\"name\":\"net\"}".to_vec(), 1),
        ("no name", b"{\"cniVersion\":\"1.1.0\"}".to_vec(), 7),
        ("an empty name", b"{\"cniVersion\":\"1.1.0\",\"name\":\"\"}".to_vec(), 7),
        ("a path for a name", b"{\"cniVersion\":\"1.1.0\",\"name\":\"../../etc\"}".to_vec(), 7),
        ("a huge name that is no name", format!("{{\"name\":\"{}\"}}", "/".repeat(1 << 20)).into_bytes(), 7),
    ]
}

fn garbage_is_refused_by_its_code(plugin: &str) {
    let bench = Bench::new(plugin);
    let before = bench.state();
    for verb in every_verb_but_version() {
        for (what, stdin, code) in garbage() {
            let outcome = bench.run(verb, &stdin);
            // DEL goes on without a prevResult, so it goes on without a readable one; and without a key that no number fits.
            let is_infinite = what == "an infinite number";
            if verb == "DEL" && (is_infinite || what.contains("prevResult")) {
                outcome.succeeds();
                continue;
            }
            // So does GC, as far as to the list of the living, which is missing here.
            let code = if verb == "GC" && is_infinite { 7 } else { code };
            // A prevResult has no part in these.
            if matches!(verb, "GC" | "STATUS") && what.contains("prevResult") {
                continue;
            }
            assert_eq!(outcome.fails().code, code, "{verb} with {what}: {}", outcome.call());
        }
    }
    for (what, stdin, _) in garbage() {
        let answer = bench.run("VERSION", &stdin).succeeds();
        assert!(answer["supportedVersions"].is_array(), "VERSION with {what}: {answer}");
    }
    bench.assert_unchanged(&before);
}

fn truncations_of_a_real_config_are_refused(plugin: &str) {
    let bench = Bench::new(plugin);
    let (before, config) = (bench.state(), bench.config().to_string());
    for verb in every_verb_but_version() {
        // A step that is no divisor of anything, so that it hits every kind of place.
        let step = if verb == "ADD" { 7 } else { 61 };
        for end in (0..config.len()).step_by(step) {
            bench.run(verb, &config.as_bytes()[..end]).fails_with(6);
        }
    }
    bench.assert_unchanged(&before);
}

fn bad_environments_are_refused(plugin: &str) {
    let bench = Bench::new(plugin);
    let (before, config) = (bench.state(), bench.config().to_string());
    let long = "a".repeat(100_000);
    let bad: [(&str, &[u8]); 14] = [
        ("CNI_COMMAND", b"add"),
        ("CNI_COMMAND", b"ADD "),
        ("CNI_COMMAND", b"\xff"),
        ("CNI_COMMAND", long.as_bytes()),
        ("CNI_CONTAINERID", b""),
        ("CNI_CONTAINERID", b"../../etc/passwd"),
        ("CNI_CONTAINERID", b"-x"),
        ("CNI_CONTAINERID", b"a\nb"),
        ("CNI_CONTAINERID", b"\xff\xfe"),
        ("CNI_IFNAME", b""),
        ("CNI_IFNAME", b".."),
        ("CNI_IFNAME", b"eth0/../lo"),
        ("CNI_IFNAME", b"0123456789abcdef"),
        ("CNI_IFNAME", b"eth\x80"),
    ];
    for verb in ["ADD", "DEL", "CHECK"] {
        for (name, value) in bad {
            let mut env = bench.env(verb);
            env.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, v)| *v = OsStr::from_bytes(value).to_owned());
            bench.plugin.call_with_env(bench.host(), &env, config.as_bytes()).fails_with(4);
        }
    }
    for verb in ["ADD", "CHECK"] {
        let mut env = bench.env(verb);
        env.retain(|(name, _)| *name != "CNI_NETNS");
        bench.plugin.call_with_env(bench.host(), &env, config.as_bytes()).fails_with(4);
    }
    bench.assert_unchanged(&before);
}

/// A namespace that isn't one: whatever the plugin needs it for, ADD says no or does its part without; DEL succeeds.
fn a_netns_that_is_none_is_survived(plugin: &str) {
    let bench = Bench::new(plugin);
    let config = bench.config().to_string();
    for netns in ["/nonexistent", "/etc/passwd", "/", "relative", "/dev/null", "/proc/self/ns/mnt", "/proc/self/mem"] {
        let before = bench.state();
        let mut env = bench.env("ADD");
        env.iter_mut().filter(|(n, _)| *n == "CNI_NETNS").for_each(|(_, v)| *v = netns.into());
        let outcome = bench.plugin.call_with_env(bench.host(), &env, config.as_bytes());
        if outcome.exit != 0 {
            bench.assert_unchanged(&before);
        }
        env.iter_mut().filter(|(n, _)| *n == "CNI_COMMAND").for_each(|(_, v)| *v = "DEL".into());
        bench.plugin.call_with_env(bench.host(), &env, config.as_bytes()).succeeds();
    }
}

/// The host's own namespace would be ruined: refused before anything is done.
fn the_hosts_own_netns_is_refused(plugin: &str) {
    let bench = Bench::new(plugin);
    let (before, config) = (bench.state(), bench.config().to_string());
    for verb in ["ADD", "DEL"] {
        for netns in [bench.host().path(), "/proc/self/ns/net".to_owned(), "/proc/thread-self/ns/net".to_owned()] {
            let mut env = bench.env(verb);
            env.iter_mut().filter(|(n, _)| *n == "CNI_NETNS").for_each(|(_, v)| *v = netns.clone().into());
            bench.plugin.call_with_env(bench.host(), &env, config.as_bytes()).fails_with(8);
        }
    }
    bench.assert_unchanged(&before);
}

/// Every value of a real configuration replaced by every kind of nonsense. ADD may take it or refuse it; what it refuses
/// leaves no trace, and what it takes DEL removes.
fn nonsense_in_any_place_is_refused_without_a_trace(plugin: &str) {
    let bench = Bench::new(plugin);
    let mut refused = Vec::new();
    for mutant in mutations(&bench.config()) {
        let stdin = mutant.to_string();
        let outcome = bench.run("ADD", stdin.as_bytes());
        if outcome.exit == 0 {
            bench.run("CHECK", stdin.as_bytes());
            // With another name it is another attachment: DEL it by the mutant.
            bench.run("DEL", stdin.as_bytes()).succeeds();
        } else {
            refused.push(stdin);
        }
    }
    assert!(refused.len() > 50, "only {} of the mutants were refused", refused.len());
    let before = bench.state();
    for stdin in &refused {
        bench.run("ADD", stdin.as_bytes()).fails();
    }
    bench.assert_unchanged(&before);
    // And after all this the real thing works.
    bench.run("ADD", bench.config().to_string().as_bytes()).succeeds();
    bench.run("DEL", bench.config().to_string().as_bytes()).succeeds();
}

/// Bytes of a real configuration flipped at random, always the same.
fn flipped_bytes_are_survived(plugin: &str) {
    let bench = Bench::new(plugin);
    let config = bench.config().to_string().into_bytes();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for round in 0..200 {
        let mut bytes = config.clone();
        for _ in 0..=round % 4 {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        let verb = ["ADD", "CHECK", "DEL", "STATUS"][round % 4];
        bench.run(verb, &bytes);
        bench.run("DEL", &bytes);
    }
}

macro_rules! of_every_plugin {
    ($($promise:ident)*) => {
        $(mod $promise {
            of_every_plugin!(@ $promise: portmap bandwidth firewall tuning);
        })*
    };
    (@ $promise:ident: $($plugin:ident)*) => {
        $(#[test]
        fn $plugin() {
            super::$promise(stringify!($plugin));
        })*

        #[test]
        fn every_plugin_is_covered() {
            assert_eq!([$(stringify!($plugin)),*], super::PLUGINS);
        }
    };
}

of_every_plugin! {
    garbage_is_refused_by_its_code
    truncations_of_a_real_config_are_refused
    bad_environments_are_refused
    a_netns_that_is_none_is_survived
    the_hosts_own_netns_is_refused
    nonsense_in_any_place_is_refused_without_a_trace
    flipped_bytes_are_survived
}

/// Ways to spoil a file. What a symlink leads to, and what has another name, must stay as it is.
const SPOILERS: [&str; 7] = [
    "ln -sf /run/precious FILE",
    "ln -f /run/precious FILE",
    "truncate -s 10 FILE",
    "truncate -s 0 FILE",
    "chown 65534 FILE",
    "chmod 666 FILE",
    "mv -f /run/fifo FILE",
];

/// A state file in which somebody had his hands is neither believed nor written through, and DEL removes it.
fn a_state_file_that_is_spoilt_harms_nobody(play: Play, directory: &str) {
    let scene = Scene::set(play);
    let clean = Clean::of(&scene);
    let host = &scene.lab.host;
    for spoiler in SPOILERS {
        for verbs in [&[Verb::Del][..], &[Verb::Add, Verb::Del], &[Verb::Check, Verb::Del]] {
            scene.call(Verb::Add).succeeds();
            host.write("/run/precious", "untouched");
            host.run("mkfifo /run/fifo");
            let file = host.run(&format!("find {directory} -maxdepth 1 -type f"));
            host.run(&spoiler.replace("FILE", file.trim()));
            for verb in verbs {
                let outcome = scene.call(*verb);
                assert!(*verb == Verb::Check || outcome.exit == 0, "{spoiler}, {verb:?}: {}", outcome.call());
            }
            assert_eq!(host.read("/run/precious"), "untouched", "{spoiler}, {verbs:?}");
            host.run("rm -f /run/precious /run/fifo");
            // What the file said of the container is lost with it.
            clean.is_clean_on_host().unwrap_or_else(|left| panic!("{spoiler}, {verbs:?}: {left}"));
            scene.reset();
        }
    }
}

#[test]
fn a_state_file_of_firewall_that_is_spoilt_harms_nobody() {
    a_state_file_that_is_spoilt_harms_nobody(Play::Firewall, "/run/cni/firewall");
}

#[test]
fn a_state_file_of_tuning_that_is_spoilt_harms_nobody() {
    a_state_file_that_is_spoilt_harms_nobody(Play::Tuning, "/run/cni/tuning");
}

/// A state file with another content, which is believed only if nobody else can have written it. `befallen` brings about what makes
/// the plugin look into it.
fn a_forged_state_file_is_believed_of_its_owner_only(
    play: Play,
    directory: &str,
    [truth, forgery]: [&str; 2],
    befallen: &dyn Fn(&Scene) -> String,
) {
    for (guise, is_believed) in [("true", true), ("chown 65534 FILE", false), ("chmod 666 FILE", false)] {
        let scene = Scene::set(play);
        let host = &scene.lab.host;
        scene.call(Verb::Add).succeeds();
        let file = host.run(&format!("find {directory} -maxdepth 1 -type f"));
        let content = host.read(file.trim());
        assert!(content.contains(truth), "{content}");
        host.write(file.trim(), content.replace(truth, forgery));
        host.run(&guise.replace("FILE", file.trim()));
        let state = befallen(&scene);
        assert_eq!(state.contains(forgery), is_believed, "{play:?}, {guise}: {state}");
    }
}

#[test]
fn a_forged_state_file_of_tuning_is_believed_of_its_owner_only() {
    let befallen = |scene: &Scene| {
        scene.call(Verb::Del).succeeds();
        scene.container.netns.run("ip link show eth0").replace("mtu ", "\"mtu\": ")
    };
    let forgery = ["\"mtu\": 1500", "\"mtu\": 1234"];
    a_forged_state_file_is_believed_of_its_owner_only(Play::Tuning, "/run/cni/tuning", forgery, &befallen);
}

/// Who finds the rules flushed puts in what all had.
#[test]
fn a_forged_state_file_of_firewall_is_believed_of_its_owner_only() {
    let befallen = |scene: &Scene| {
        scene.lab.host.nft("flush ruleset");
        let other = scene.lab.container(3);
        let mut config = scene.config.clone();
        config["prevResult"] = other.prev_result("1.1.0");
        scene.plugin.call(&scene.lab.host, Verb::Add, &config, &other.target()).succeeds();
        scene.lab.host.run("nft list ruleset")
    };
    let forgery = ["10.88.0.2", "10.88.0.99"];
    a_forged_state_file_is_believed_of_its_owner_only(Play::Firewall, "/run/cni/firewall", forgery, &befallen);
}

/// A conflist as the operator's tool would be given it, with all four plugins behind a main plugin.
fn conflist() -> String {
    let bridge = json!({"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}});
    let plugins: Vec<Value> = std::iter::once(bridge).chain(PLUGINS.map(|plugin| json!({"type": plugin}))).collect();
    json!({"cniVersion": "1.1.0", "name": "net", "plugins": plugins}).to_string()
}

/// Runs cni-chain with a conflist of these bytes, which it must refuse in words and in one JSON document.
fn cni_chain_refuses(host: &Host, container: &Netns, verb: &str, conflist: &[u8]) {
    host.write("/run/hostile.conflist", conflist);
    let mut command = host.command(netns_tests::plugin::directory().join("cni-chain"));
    command.args(["--json", verb, "/run/hostile.conflist"]);
    match verb {
        "gc" => command.arg("--none-live"),
        "status" | "version" => &mut command,
        _ => command.arg(container.path()),
    };
    let done = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let input = String::from_utf8_lossy(&conflist[..conflist.len().min(300)]);
    assert_eq!(done.status.code(), Some(1), "{verb} of {input}: {stdout}{stderr}");
    let json: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{verb} of {input}: {e}: {stdout}{stderr}"));
    assert_eq!(json["ok"], false, "{verb} of {input}");
    assert!(!stderr.contains("panicked"), "{verb} of {input}: {stderr}");
}

#[test]
fn cni_chain_refuses_what_is_no_conflist() {
    let (host, container) = (Host::new(), Netns::new("container"));
    let conflist = conflist().into_bytes();
    let before = host.snapshot();
    for verb in ["add", "check", "del", "gc", "status", "version"] {
        for (_, bytes, _) in garbage() {
            // Those that are JSON lack the plugins, as a conflist.
            cni_chain_refuses(&host, &container, verb, &bytes);
        }
        for end in (0..conflist.len()).step_by(29) {
            cni_chain_refuses(&host, &container, verb, &conflist[..end]);
        }
    }
    host.inside(|| std::fs::remove_file("/run/hostile.conflist")).unwrap();
    host.assert_same_as(&before);
}

#[test]
fn without_a_command_a_plugin_says_what_it_is_and_nothing_on_stdout() {
    let (host, none) = (Host::new(), Netns::new("none"));
    let before = host.snapshot();
    for plugin in PLUGINS {
        let env = [("CNI_NETNS", none.path())];
        let outcome = Plugin::ours(plugin).call_with_env(&host, &env, b"{\"name\":\"net\"}");
        assert_eq!((outcome.exit, outcome.stdout.as_str()), (0, ""), "{plugin}");
        assert!(outcome.stderr.contains(plugin) && outcome.stderr.contains("1.1.0"), "{}", outcome.stderr);
    }
    host.assert_same_as(&before);
}

#[test]
fn a_closed_stdout_is_given_to_no_socket() {
    for plugin in PLUGINS {
        let bench = Bench::new(plugin);
        let trace = tempfile::NamedTempFile::new().unwrap();
        // The shell closes stdout; strace's own output goes into the file.
        let mut command = bench.host().command("sh");
        command.args(["-c", "exec strace -o \"$1\" -e trace=openat,socket \"$0\" >&-"]);
        command.arg(bench.plugin.path()).arg(trace.path()).envs(bench.env("ADD"));
        let stdin = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(stdin.path(), bench.config().to_string()).unwrap();
        command.stdin(std::fs::File::open(stdin.path()).unwrap());
        command.status().unwrap();
        let calls = std::fs::read_to_string(trace.path()).unwrap();
        assert!(calls.contains("AF_NETLINK"), "{plugin} opened no socket: {calls}");
        let given: Vec<&str> =
            calls.lines().filter(|call| call.starts_with("socket(") && call.ends_with("= 1")).collect();
        assert!(given.is_empty(), "{plugin}: {given:?}");
    }
}

/// `portmap` remembers what links were before it opened them: what stands there opens none, and what can't be removed stops nobody.
#[test]
fn what_lies_in_portmaps_directory_opens_no_link_and_stops_nobody() {
    let scene = Scene::set(Play::Portmap);
    let clean = Clean::of(&scene);
    let host = &scene.lab.host;
    let links = host.run("ip -o link");
    let indices: Vec<&str> = links.lines().filter_map(|line| line.split(':').next()).collect();
    scene.call(Verb::Add);
    let names = host.run("ls /run/cni/portmap");
    let (netns, _) = names.split_once(':').unwrap();
    scene.call(Verb::Del);
    let of = |plant: &str, index: &str| plant.replace("LINK", &format!("{netns}:{index}"));
    let each = |plant: &str| indices.iter().map(|index| of(plant, index)).collect::<Vec<_>>().join("; ");
    let plants = [
        each("printf '1 a-bridge cni0' > LINK"),
        each("printf '1 a-bridge cni0' > LINK; chown 65534 LINK"),
        each("printf '1 a-bridge cni0' > LINK; chmod 777 ."),
        each("mkdir -p LINK/x"),
        each("mkfifo LINK"),
        "printf 1 > all; mkdir -p sub/directory; printf 1 > 99999".to_owned(),
        of("printf '1 a-bridge cni0' > LINK", "99999"),
        of("mkdir -p LINK/x", "99998"),
        format!("printf 1 > {}", "9".repeat(250)),
    ];
    for plant in plants {
        let script = format!("set -e; mkdir -p -m 700 /run/cni/portmap; cd /run/cni/portmap; {plant}");
        host.pipe("sh", &script).unwrap();
        for verb in [Verb::Add, Verb::Check, Verb::Del, Verb::Add, Verb::Del, Verb::Gc, Verb::Gc] {
            let outcome = scene.call(verb);
            assert_eq!(outcome.exit, 0, "{verb:?} with {plant:.60}: {}", outcome.call());
        }
        host.run("rm -rf /run/cni/portmap");
        // Its sysctls are among what is looked at.
        clean.assert(&plant);
    }
}
