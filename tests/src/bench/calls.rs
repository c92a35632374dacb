//! What a call costs: time, programs, system calls and memory of each verb of each plugin.
//!
//! A scenario is a sequence of calls that leaves the laboratory as it was.

use std::io::Result;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::floor::Extent;
use super::report::{Cell, Chart, Column, Report, Table};
use super::site::{Site, Subject};
use super::{Bench, Case, PLUGINS, floor, quantile};

/// The case.
#[derive(Debug)]
pub struct Calls;

/// A sequence of calls of one plugin.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What is special about it, as `portmap, 10 ports`.
    pub name: String,
    /// Plugin and keys.
    pub subject: Subject,
    /// The verbs, in turn.
    pub verbs: &'static [&'static str],
    /// Removes by hand what DEL of some contenders leaves, so that each round begins alike.
    pub tidy: &'static [&'static str],
}

/// The reference's DEL of bandwidth leaves these on a link that stays; its next ADD would fail.
const QDISCS: &[&str] = &["tc qdisc del dev veth2 root", "tc qdisc del dev veth2 ingress"];

/// The least that could be done, by a program that starts as C programs do: the last contenders.
const FLOORS: [(&str, Extent); 2] = [("floor", Extent::Messages), ("floor and files", Extent::Files)];

const FLOOR: &str = "“floor” is a static C program that says to the kernel what our plugin says (netlink messages, \
    namespaces, sysctls) and does nothing else: exec and the kernel's own work. The messages are the plugin's own bytes, but for \
    what belongs to the moment: generations, rules' handles, indices of links. “floor and files” also does what our plugin does \
    with files: state that outlives the call, the lists of iptables-legacy's tables, whether a directory is safe. \
    Both floors start as the C library starts any static program: it asks the processor for its abilities (CPUID), and in a \
    virtual machine waits for the host each time. Our plugins don't, so a ratio may be below 1; “bare exec” shows by how much. \
    Before each turn, 10 ms pass in which the kernel clears up behind the last; so the processor begins idle, as on a node \
    where one pod starts. A contender that has taken 3 s of a scenario has no further rounds. What fails has no ratio.";

/// The kernel destroys what a DEL took behind it, on a worker, after a grace period of RCU: whoever is next in turn isn't to
/// pay for the one before.
const SETTLING: Duration = Duration::from_millis(10);

/// Beyond so many microseconds in one scenario, a slow contender has no further rounds.
const PATIENCE: f64 = 3e6;

const CYCLE: &[&str] = &["ADD", "CHECK", "DEL"];

/// What is asked of a network, and not of an attachment.
const OF_NETWORK: &[&str] = &["STATUS", "GC"];

/// Host ports from 20000 on, all led to port 80.
pub(super) fn ports(count: usize) -> Value {
    let one = |n| json!({"hostPort": 20_000 + n, "containerPort": 80, "protocol": "tcp"});
    json!({"runtimeConfig": {"portMappings": (0..count).map(one).collect::<Vec<_>>()}})
}

/// 10 Mbit/s in both directions.
pub(super) fn rates() -> Value {
    json!({"ingressRate": 10_000_000, "ingressBurst": 1_000_000, "egressRate": 10_000_000, "egressBurst": 1_000_000})
}

/// Two sysctls and a link attribute.
pub(super) fn tunings() -> Value {
    json!({"mtu": 1400, "sysctl": {"net.ipv4.conf.all.arp_notify": "1", "net.core.somaxconn": "512"}})
}

/// Everything that is measured.
pub fn scenarios() -> Vec<Scenario> {
    let scenario = |name: &str, plugin, verbs, keys| {
        let subject = Subject { plugin, keys };
        let tidy = if plugin == "bandwidth" { QDISCS } else { &[] };
        Scenario { name: name.to_owned(), subject, verbs, tidy }
    };
    let mut all = Vec::new();
    for plugin in PLUGINS {
        all.push(scenario(&format!("{plugin}, bare exec"), plugin, &["VERSION"], json!({})));
    }
    for plugin in PLUGINS {
        let keys = json!({"cniVersion": "1.1.0", "prevResult": null, "cni.dev/valid-attachments": []});
        all.push(scenario(&format!("{plugin}, network"), plugin, OF_NETWORK, keys));
    }
    all.push(scenario("portmap, no port", "portmap", &["ADD"], json!({})));
    for count in [1, 10] {
        let plural = if count == 1 { "" } else { "s" };
        all.push(scenario(&format!("portmap, {count} port{plural}"), "portmap", CYCLE, ports(count)));
    }
    all.push(scenario("bandwidth, no limit", "bandwidth", &["ADD"], json!({})));
    all.push(scenario("bandwidth, both directions", "bandwidth", CYCLE, rates()));
    all.push(scenario("firewall, dual stack", "firewall", CYCLE, json!({})));
    all.push(scenario("tuning, two sysctls and mtu", "tuning", CYCLE, tunings()));
    all
}

/// What one verb of one scenario cost one contender.
#[derive(Clone, Debug, Default)]
struct Cost {
    /// Of each run, ascending in the end.
    micros: Vec<f64>,
    peak_kib: u64,
    programs: usize,
    syscalls: usize,
    failures: usize,
    error: String,
}

impl Cost {
    /// In microseconds.
    fn median(&self) -> f64 {
        quantile(&self.micros, 0.5)
    }

    /// The same, if there is anything to compare: what fails is quick.
    fn comparable(&self) -> f64 {
        if self.failures == 0 { self.median() } else { f64::NAN }
    }
}

/// Programs that take turns, each in its own laboratory.
struct Track {
    name: String,
    kind: Kind,
    site: Site,
}

enum Kind {
    /// A directory of plugins.
    Plugins(PathBuf),
    /// The least that could be done instead of what these plugins do.
    Floor { program: PathBuf, plugins: PathBuf, extent: Extent },
}

/// What is run for a scenario: a program and what each verb gets on stdin.
struct Prepared<'a> {
    bin: &'a Path,
    program: &'a str,
    stdins: Vec<Vec<u8>>,
}

impl Track {
    fn all(bench: &Bench) -> Result<Vec<Track>> {
        let track = |name: &str, kind| Track { name: name.into(), kind, site: Site::new() };
        let mut all: Vec<Track> =
            bench.contenders.iter().map(|c| track(&c.name, Kind::Plugins(c.bin.clone()))).collect();
        if let Some(ours) = bench.contenders.first() {
            let program = floor::build()?;
            all.extend(FLOORS.map(|(name, extent)| {
                track(name, Kind::Floor { program: program.clone(), plugins: ours.bin.clone(), extent })
            }));
        }
        Ok(all)
    }

    fn prepare<'a>(&'a self, scenario: &'a Scenario) -> Result<Prepared<'a>> {
        let plugin = scenario.subject.plugin;
        let config = self.site.config(&scenario.subject).to_string().into_bytes();
        let prepared = |bin, program, stdins| Prepared { bin, program, stdins };
        match &self.kind {
            Kind::Plugins(bin) => Ok(prepared(bin, plugin, vec![config; scenario.verbs.len()])),
            Kind::Floor { program, plugins, extent } => {
                // What is said the second time: the first puts in the static chains.
                let stdins = vec![config.clone(); scenario.verbs.len()];
                self.run(
                    scenario,
                    &prepared(plugins, plugin, stdins),
                    &mut vec![Cost::default(); scenario.verbs.len()],
                )?;
                let record = |verb: &&str| self.site.record(plugins, plugin, verb, &config, *extent);
                let scripts = scenario.verbs.iter().map(record).collect::<Result<_>>()?;
                self.tidy(scenario);
                Ok(prepared(program, floor::PROGRAM, scripts))
            }
        }
    }

    /// Runs the scenario once and adds what it cost, one entry a verb.
    fn run(&self, scenario: &Scenario, prepared: &Prepared<'_>, costs: &mut [Cost]) -> Result<()> {
        for ((verb, stdin), cost) in scenario.verbs.iter().zip(&prepared.stdins).zip(costs) {
            let run = self.site.call(prepared.bin, prepared.program, verb, stdin)?;
            cost.micros.push(run.micros);
            cost.failures += usize::from(!run.success);
        }
        self.tidy(scenario);
        Ok(())
    }

    /// Runs the scenario once under a tracer.
    fn count(&self, scenario: &Scenario, prepared: &Prepared<'_>, costs: &mut [Cost]) -> Result<()> {
        for ((verb, stdin), cost) in scenario.verbs.iter().zip(&prepared.stdins).zip(costs) {
            let seen = self.site.trace(prepared.bin, prepared.program, verb, stdin, false)?;
            (cost.programs, cost.syscalls, cost.peak_kib) = (seen.programs, seen.syscalls, seen.peak_kib);
            if !seen.success {
                cost.failures += 1;
                cost.error = seen.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            }
        }
        self.tidy(scenario);
        Ok(())
    }

    fn tidy(&self, scenario: &Scenario) {
        for line in scenario.tidy {
            // Mostly there is nothing to remove.
            let _ = self.site.lab.host.try_run(line);
        }
    }
}

/// Measures a scenario for all tracks, in turns: by track, by verb.
fn measure(tracks: &[Track], scenario: &Scenario, bench: &Bench) -> Result<Vec<Vec<Cost>>> {
    let mut costs = vec![vec![Cost::default(); scenario.verbs.len()]; tracks.len()];
    let progress = bench.progress(&scenario.name, bench.rounds);
    let prepared: Vec<Prepared<'_>> = tracks.iter().map(|track| track.prepare(scenario)).collect::<Result<_>>()?;
    for ((track, prepared), cost) in tracks.iter().zip(&prepared).zip(&mut costs) {
        // The first round warms up: page cache, modules, static chains.
        track.run(scenario, prepared, &mut vec![Cost::default(); scenario.verbs.len()])?;
        track.count(scenario, prepared, cost)?;
    }
    for round in 0..bench.rounds {
        for ((track, prepared), cost) in tracks.iter().zip(&prepared).zip(&mut costs) {
            if round < 3 || cost.iter().flat_map(|c| &c.micros).sum::<f64>() < PATIENCE {
                sleep(SETTLING);
                track.run(scenario, prepared, cost)?;
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    costs.iter_mut().flatten().for_each(|cost| cost.micros.sort_by(f64::total_cmp));
    Ok(costs)
}

impl Case for Calls {
    fn name(&self) -> &'static str {
        "calls"
    }

    fn title(&self) -> String {
        "What a call costs, each by itself on an otherwise empty host".into()
    }

    fn items(&self) -> Vec<String> {
        scenarios().into_iter().map(|scenario| scenario.name).collect()
    }

    fn run(&self, bench: &Bench, item: &str) -> Result<Report> {
        let tracks = Track::all(bench)?;
        let mut report = Report::default();
        report.notes.push(FLOOR.into());
        let mut table = Table::new("each call by itself", columns());
        let mut groups = Vec::new();
        for scenario in scenarios().iter().filter(|scenario| scenario.name == item) {
            let costs = measure(&tracks, scenario, bench)?;
            report.notes.extend(complaints(&tracks, scenario, &costs));
            for (index, verb) in scenario.verbs.iter().enumerate() {
                let of_verb: Vec<&Cost> = costs.iter().filter_map(|c| c.get(index)).collect();
                rows(&mut table, &tracks, scenario, verb, &of_verb);
                let medians = of_verb.iter().map(|cost| Cell::from(cost.comparable() / 1e3).figure()).collect();
                groups.push((format!("{}: {verb}", scenario.name), medians));
            }
        }
        let names = tracks.iter().map(|track| track.name.clone()).collect();
        let title = "Median time of a call (logarithmic)";
        report.charts.push(Chart::bars("calls", title, ("time", "ms"), names, groups).logarithmic());
        report.tables.push(table);
        Ok(report)
    }
}

/// A figure of a call that failed is none: so it is said, and why.
fn complaints(tracks: &[Track], scenario: &Scenario, costs: &[Vec<Cost>]) -> Vec<String> {
    let mut said = Vec::new();
    for (track, costs) in tracks.iter().zip(costs) {
        for (verb, cost) in scenario.verbs.iter().zip(costs).filter(|(_, cost)| cost.failures > 0) {
            let error: String = cost.error.chars().take(240).collect();
            // Without the scenario: what several have in common is said once.
            said.push(format!("{} fails {verb}: `{error}`", track.name));
        }
    }
    said
}

fn columns() -> Vec<Column> {
    let mut columns: Vec<Column> = ["scenario", "verb", "plugins"].map(Column::text).into();
    columns.extend(["min", "median", "p95"].map(|name| Column::number(name, "ms", 2)));
    columns.push(Column::number("× ours", "", 2));
    columns.extend(FLOORS.map(|(name, _)| Column::number(&format!("× {name}"), "", 2)));
    columns.extend(["programs", "system calls"].map(|name| Column::number(name, "", 0)));
    columns.push(Column::number("peak memory", "MiB", 1));
    columns.extend(["rounds", "failures"].map(|name| Column::number(name, "", 0)));
    columns
}

fn rows(table: &mut Table, tracks: &[Track], scenario: &Scenario, verb: &str, costs: &[&Cost]) {
    // Ours come first, the floors last.
    let floors = costs.get(costs.len().saturating_sub(FLOORS.len())..).unwrap_or_default();
    let others: Vec<f64> = costs.iter().take(1).chain(floors).map(|cost| cost.comparable()).collect();
    for (track, cost) in tracks.iter().zip(costs) {
        let mut row: Vec<Cell> = vec![scenario.name.as_str().into(), verb.into(), track.name.as_str().into()];
        row.extend([0.0, 0.5, 0.95].map(|part| Cell::from(quantile(&cost.micros, part) / 1e3)));
        row.extend(others.iter().map(|other| Cell::from(cost.comparable() / other)));
        row.extend([cost.programs as f64, cost.syscalls as f64].map(Cell::from));
        row.extend([cost.peak_kib as f64 / 1024.0, cost.micros.len() as f64, cost.failures as f64].map(Cell::from));
        table.row(row);
    }
}
