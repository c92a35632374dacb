//! What a call costs, ours and others', in the same run.
//!
//! Each contender has a laboratory of its own, and the contenders take turns (A B A B …), so that a change of the
//! machine's mood hits all of them. A scenario is a sequence of calls that leaves the laboratory as it was. Nothing here
//! passes or fails by time.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use crate::lab::{Container, Lab};
use crate::wait;

/// A directory of plugins, and what to call it.
#[derive(Clone, Debug)]
pub struct Contender {
    /// In the table's head.
    pub name: String,
    /// Where its plugins are.
    pub bin: PathBuf,
}

/// A sequence of calls of one plugin.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What is special about it, as `portmap, 10 ports`.
    pub name: String,
    /// The plugin.
    pub plugin: &'static str,
    /// The verbs, in turn.
    pub verbs: &'static [&'static str],
    keys: Value,
}

const CYCLE: &[&str] = &["ADD", "CHECK", "DEL"];

/// Everything that is measured.
pub fn scenarios() -> Vec<Scenario> {
    let scenario = |name: &str, plugin, verbs, keys| Scenario { name: name.to_owned(), plugin, verbs, keys };
    let ports = |count: u32| {
        let one = |n| json!({"hostPort": 20_000 + n, "containerPort": 80, "protocol": "tcp"});
        json!({"runtimeConfig": {"portMappings": (0..count).map(one).collect::<Vec<_>>()}})
    };
    let mut all = vec![
        scenario("bare exec", "portmap", &["VERSION"], json!({})),
        scenario("portmap, no port", "portmap", &["ADD"], json!({})),
    ];
    for count in [1, 10, 100, 1000] {
        let plural = if count == 1 { "" } else { "s" };
        all.push(scenario(&format!("portmap, {count} port{plural}"), "portmap", CYCLE, ports(count)));
    }
    let rates = json!({"ingressRate": 10_000_000, "ingressBurst": 1_000_000, "egressRate": 10_000_000,
                       "egressBurst": 1_000_000});
    all.push(scenario("bandwidth, no limit", "bandwidth", &["ADD"], json!({})));
    all.push(scenario("bandwidth, both directions", "bandwidth", CYCLE, rates));
    all.push(scenario("firewall, dual stack", "firewall", CYCLE, json!({})));
    all.push(scenario(
        "tuning, two sysctls and mtu",
        "tuning",
        CYCLE,
        json!({"mtu": 1400, "sysctl": {"net.ipv4.conf.all.arp_notify": "1", "net.core.somaxconn": "512"}}),
    ));
    all
}

/// What one verb of one scenario cost one contender.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cost {
    /// Wall-clock time of each run, from before fork to after wait, in microseconds, ascending.
    pub micros: Vec<f64>,
    /// Largest resident set of the program, in KiB.
    pub max_rss_kib: i64,
    /// Programs executed, the plugin itself included.
    pub programs: usize,
    /// System calls of all of them.
    pub syscalls: usize,
    /// Calls that did not succeed.
    pub failures: usize,
}

impl Cost {
    /// The value below which `part` (0 to 1) of the runs are.
    pub fn quantile(&self, part: f64) -> f64 {
        let last = self.micros.len().saturating_sub(1);
        let at = ((last as f64) * part).round() as usize;
        self.micros.get(at.min(last)).copied().unwrap_or(f64::NAN)
    }
}

/// A contender in its own laboratory.
pub struct Track {
    contender: Contender,
    lab: Lab,
    container: Container,
}

impl Track {
    /// A laboratory for the contender.
    pub fn new(contender: &Contender) -> Track {
        let lab = Lab::new();
        let container = lab.container(2);
        Track { contender: contender.clone(), lab, container }
    }

    fn config(&self, scenario: &Scenario) -> Value {
        let mut config = json!({"cniVersion": "1.0.0", "name": "bench", "type": scenario.plugin,
                                "prevResult": self.container.prev_result("1.0.0")});
        for (key, value) in scenario.keys.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    fn env(&self, verb: &str) -> BTreeMap<&'static str, String> {
        let target = self.container.target();
        BTreeMap::from([
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", target.container),
            ("CNI_NETNS", target.netns),
            ("CNI_IFNAME", target.ifname),
            ("CNI_PATH", self.contender.bin.display().to_string()),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ])
    }

    /// Runs the scenario once and adds what it cost to `costs`, one entry a verb.
    pub fn run(&self, scenario: &Scenario, costs: &mut [Cost]) -> std::io::Result<()> {
        let program = self.contender.bin.join(scenario.plugin);
        let stdin = self.config(scenario).to_string();
        self.lab.host.inside(|| {
            for (verb, cost) in scenario.verbs.iter().zip(costs) {
                let mut command = Command::new(&program);
                command.env_clear().envs(self.env(verb));
                let (micros, ended) = timed(&mut command, &stdin)?;
                cost.micros.push(micros);
                cost.max_rss_kib = cost.max_rss_kib.max(ended.max_rss_kib);
                cost.failures += usize::from(ended.exit != Some(0));
            }
            Ok(())
        })
    }

    /// Runs the scenario once under strace(1) and counts programs and system calls.
    pub fn count(&self, scenario: &Scenario, costs: &mut [Cost]) -> std::io::Result<()> {
        let program = self.contender.bin.join(scenario.plugin);
        let stdin = self.config(scenario).to_string();
        self.lab.host.inside(|| {
            for (verb, cost) in scenario.verbs.iter().zip(costs) {
                let trace = tempfile::NamedTempFile::new()?;
                let mut command = Command::new("strace");
                command.args(["-f", "-qq", "-s", "0", "-o"]).arg(trace.path()).arg(&program);
                command.env_clear().envs(self.env(verb));
                timed(&mut command, &stdin)?;
                (cost.programs, cost.syscalls) = counted(trace.path())?;
            }
            Ok(())
        })
    }
}

fn timed(command: &mut Command, stdin: &str) -> std::io::Result<(f64, wait::Ended)> {
    let mut file = tempfile::tempfile()?;
    file.write_all(stdin.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    command.stdin(file).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let child = command.spawn()?;
    let ended = wait::wait(child)?;
    Ok((begun.elapsed().as_secs_f64() * 1e6, ended))
}

/// Programs executed and system calls made, from a trace of strace.
fn counted(trace: &Path) -> std::io::Result<(usize, usize)> {
    let text = String::from_utf8_lossy(&std::fs::read(trace)?).into_owned();
    let calls = || text.lines().filter(|line| !line.contains("resumed>") && line.contains('('));
    let programs = calls().filter(|line| line.contains("execve(") && line.trim_end().ends_with("= 0")).count();
    Ok((programs, calls().count()))
}

/// Measures `scenario` for all contenders, in turns.
pub fn measure(tracks: &[Track], scenario: &Scenario, rounds: usize) -> std::io::Result<Vec<Vec<Cost>>> {
    let mut costs = vec![vec![Cost::default(); scenario.verbs.len()]; tracks.len()];
    for (track, cost) in tracks.iter().zip(&mut costs) {
        // The first round warms up: page cache, modules, static chains.
        let mut warm = vec![Cost::default(); scenario.verbs.len()];
        track.run(scenario, &mut warm)?;
        track.count(scenario, cost)?;
    }
    for _ in 0..rounds {
        for (track, cost) in tracks.iter().zip(&mut costs) {
            track.run(scenario, cost)?;
        }
    }
    for cost in costs.iter_mut().flatten() {
        cost.micros.sort_by(f64::total_cmp);
    }
    Ok(costs)
}
