//! The whole chain at work: a container behind a host that drops what it forwards, and a client machine.
//!
//! Everything happens in namespaces of the demo's own. Every claim on the screen is measured, and one that isn't true
//! makes the exit code 1.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod observe;
mod sabotage;
mod screen;
mod userns;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use netns_tests::{Lab, Netns, Proto, Server, Snapshot, lab, plugin, serve};
use observe::Observed;
use screen::Screen;
use serde_json::{Value, json};

/// Below the workspace.
const CONFLIST: &str = "conflists/10-bridge-full.conflist";
/// The same, main plugin only; in the private `/run` of the demo's host.
const MAIN_PLUGIN_ALONE: &str = "/run/demo/main-plugin-alone.conflist";
/// What the container and the client answer with.
const TOKENS: (&str, &str) = ("hello from inside the container", "hello from the client");
/// The published port, and the container's.
const PORTS: (u16, u16) = (8080, 80);
/// Mbit/s into and out of the container.
const LIMITS: (u32, u32) = (20, 10);

fn main() -> ExitCode {
    let begun = Instant::now();
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        eprintln!("\ndemo: {}", text.unwrap_or("it failed"));
        std::process::exit(1);
    }));
    let machine = userns::may_make_namespaces().then(Netns::of_this_process);
    if machine.is_none()
        && let Err(why) = userns::become_root()
    {
        eprintln!("demo: {why}");
        return ExitCode::FAILURE;
    }
    let before = machine.as_ref().map(Netns::snapshot);
    let screen = Screen::new();
    Demo::set_up(&screen).run();
    if let (Some(machine), Some(before)) = (machine, before) {
        screen.step("The machine this ran on");
        claim_unchanged(&screen, "its rules, links, routes, qdiscs and sysctls", &before.diff(&machine.snapshot()));
    }
    if screen.verdict(begun.elapsed()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn claim_unchanged(screen: &Screen, what: &str, diff: &str) {
    screen.claim(what, if diff.is_empty() { "as before" } else { "changed:" }, diff.is_empty());
    screen.output(diff);
}

/// The players.
struct Demo<'a> {
    screen: &'a Screen,
    lab: Lab,
    container: Netns,
    conflist: Value,
    file: PathBuf,
}

impl<'a> Demo<'a> {
    fn set_up(screen: &'a Screen) -> Demo<'a> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(CONFLIST);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{CONFLIST}: {e}"));
        let conflist = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{CONFLIST}: {e}"));
        let file = file.canonicalize().unwrap_or(file);
        Demo { screen, lab: Lab::without_bridge(), container: Netns::new("container"), conflist, file }
    }

    fn run(&self) {
        self.the_players();
        let _client = serve(&self.lab.client, PORTS.1, TOKENS.1);
        let before = self.the_main_plugin_alone();
        let clean = self.the_static_part();
        let _server = self.the_whole_chain(&before);
        self.check();
        self.a_broken_rule();
        self.del(&clean);
    }

    fn the_players(&self) {
        let Demo { screen, lab, .. } = self;
        screen.step("A host that drops what it would forward, a client beyond it, a container without a network");
        let [client, host] = [lab::CLIENT, lab::HOST].map(|[v4, v6]| format!("{v4}, {v6}"));
        screen.say(&format!("client  {client}\nhost    {host}"));
        lab.host.drop_forwarded();
        for tool in ["iptables", "ip6tables"] {
            let rules = lab.host.run(&format!("{tool} -S FORWARD"));
            screen.claim(&format!("{tool} -S FORWARD"), rules.trim(), rules.trim() == "-P FORWARD DROP");
        }
    }

    fn the_main_plugin_alone(&self) -> Observed {
        let Demo { screen, lab, container, .. } = self;
        screen.step("Before: the container with its main plugin alone");
        let mut alone = self.conflist.clone();
        alone["plugins"] = json!([alone["plugins"][0]]);
        lab.host.write(MAIN_PLUGIN_ALONE, alone.to_string());
        let alone = Path::new(MAIN_PLUGIN_ALONE);
        self.must(self.cni_chain("add", alone, &[]));
        let _server = serve(container, PORTS.1, TOKENS.0);
        screen.say("(what works now is the column \"before\" below)");
        let before = Observed::now(lab, container, false, &self.sysctls());
        self.must(self.cni_chain("del", alone, &[]));
        before
    }

    /// The first container of a host has the plugins lay their static rules, the same for any number of containers; they
    /// stay. So one comes and goes before the proof that another leaves nothing.
    fn the_static_part(&self) -> Snapshot {
        let pristine = self.lab.host.snapshot();
        let first = Netns::new("first container");
        let options = self.given();
        for verb in ["add", "del"] {
            let given = if verb == "add" { options.as_slice() } else { &[] };
            let (worked, said) = self.run_cni_chain(verb, &self.file, &first, "first", given);
            assert!(worked, "a first container: cni-chain {verb} failed: {said}");
        }
        let clean = self.lab.host.snapshot();
        let rules = static_rules(&pristine.diff(&clean));
        self.screen.say(&format!("(a first container came and went; static rules stay: {rules})"));
        clean
    }

    /// What a runtime would give the plugins that ask for it.
    fn given(&self) -> Vec<String> {
        let ports = Proto::ALL.map(|proto| format!("--port={}:{}/{proto}", PORTS.0, PORTS.1));
        let rates = [format!("--ingress-rate={}M", LIMITS.0), format!("--egress-rate={}M", LIMITS.1)];
        ports.into_iter().chain(rates).collect()
    }

    /// The container's server goes on, so that only the rules decide who is answered.
    fn the_whole_chain(&self, before: &Observed) -> Server {
        let Demo { screen, lab, container, .. } = self;
        screen.step("After: portmap, firewall, bandwidth and tuning appended");
        self.must(self.cni_chain("add", &self.file, &self.given()));
        let server = serve(container, PORTS.1, TOKENS.0);
        let after = Observed::now(lab, container, true, &self.sysctls());
        before.compare(&after, &self.sysctls(), screen);
        server
    }

    fn check(&self) {
        self.screen.step("CHECK");
        let checked = self.cni_chain("check", &self.file, &[]);
        self.screen.claim("CHECK finds everything in place", exit_code(&checked), checked.is_ok());
    }

    /// Takes the published port away behind the plugin's back.
    fn a_broken_rule(&self) {
        let Demo { screen, lab, .. } = self;
        screen.step("A rule broken on purpose");
        let ruleset = lab.host.run("nft -j -a list ruleset");
        let line = sabotage::command_against(&ruleset, PORTS.0);
        let line = line.unwrap_or_else(|| panic!("nothing in the host's rules mentions port {}", PORTS.0));
        screen.command(&line);
        lab.host.run(&line);
        let lost = observe::lost(&lab.client);
        screen.claim("client → host:8080 has lost one way", &observe::summary(&lost), lost.len() == 1);
        let checked = self.cni_chain("check", &self.file, &[]);
        let names_it = checked.as_ref().is_err_and(|said| said.contains(&PORTS.0.to_string()));
        screen.claim("CHECK fails and names the port", exit_code(&checked), names_it);
    }

    fn del(&self, clean: &Snapshot) {
        let Demo { screen, lab, container, .. } = self;
        screen.step("DEL");
        let deleted = self.cni_chain("del", &self.file, &[]);
        screen.claim("DEL succeeds, broken rule or not", exit_code(&deleted), deleted.is_ok());
        let lost = observe::lost(&lab.client);
        screen.claim("client → host:8080 has lost every way", &observe::summary(&lost), lost.len() == 4);
        let gone = !container.has_link("eth0");
        screen.claim("the container's interface", if gone { "gone" } else { "still there" }, gone);
        let left = clean.diff(&lab.host.snapshot());
        claim_unchanged(screen, "the host's rules, qdiscs, links, sysctls and files", &without_ipams_memory(&left));
    }

    fn must<T>(&self, result: Result<T, String>) -> T {
        // What cni-chain said is on the screen already.
        result.unwrap_or_else(|_| panic!("cni-chain failed, so there is nothing more to show"))
    }

    /// Runs cni-chain for the container and shows it; what it said, as success or failure.
    fn cni_chain(&self, verb: &str, conflist: &Path, given: &[String]) -> Result<String, String> {
        let workspace = self.file.ancestors().nth(2).unwrap_or(&self.file);
        let shown = conflist.strip_prefix(workspace).unwrap_or(conflist).display();
        let options = given.join(" ").replace('=', " ");
        self.screen.command(format!("cni-chain {verb} {shown} CONTAINER {options}").trim_end());
        let (worked, said) = self.run_cni_chain(verb, conflist, &self.container, "demo", given);
        let said = said.replace(&self.container.path(), "CONTAINER");
        self.screen.output(&said);
        self.container.settle();
        if worked { Ok(said) } else { Err(said) }
    }

    fn run_cni_chain(&self, verb: &str, file: &Path, netns: &Netns, id: &str, given: &[String]) -> (bool, String) {
        let mut command = self.lab.host.command(plugin::directory().join("cni-chain"));
        command.arg(verb).arg(file).arg(netns.path()).args(["--container-id", id]).args(given);
        let done = command.env("CNI_PATH", plugin::cni_path()).output().unwrap_or_else(|e| panic!("cni-chain: {e}"));
        (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    }

    /// The sysctls that the conflist asks tuning for.
    fn sysctls(&self) -> Vec<(String, String)> {
        let plugins = self.conflist["plugins"].as_array().cloned().unwrap_or_default();
        let wanted = plugins.iter().filter_map(|plugin| plugin["sysctl"].as_object()).flatten();
        wanted.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    }
}

/// The tables that were added, and the jumps from iptables' own chains.
fn static_rules(diff: &str) -> String {
    let table = |line: &str| line.strip_prefix("+ table ").map(|table| table.trim_end_matches([' ', '{']).to_owned());
    let jump = |line: &str| {
        let words = line.strip_prefix("+ -A FORWARD ")?;
        words.rsplit_once("-j ").map(|(_, chain)| format!("iptables FORWARD -j {chain}"))
    };
    let parts: BTreeSet<String> = diff.lines().filter_map(|line| table(line).or_else(|| jump(line))).collect();
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

fn exit_code(outcome: &Result<String, String>) -> &'static str {
    if outcome.is_ok() { "exit code 0" } else { "exit code 1" }
}

/// Without the file in which host-local, the main plugin's IPAM, remembers the last address it gave.
fn without_ipams_memory(diff: &str) -> String {
    let lines: Vec<&str> = diff.lines().filter(|line| !line.contains("/last_reserved_ip.")).collect();
    if lines.iter().all(|line| line.starts_with("== ")) { String::new() } else { lines.join("\n") }
}
