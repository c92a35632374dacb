//! `make bench`: what a call costs, ours beside the reference's, as a table.
//!
//! Environment: `CASE` (only scenarios whose name contains it), `ROUNDS` (default 30), `BIN` (more directories of
//! plugins, separated by colons), `OUT` (a file for the results as JSON).

use std::error::Error;
use std::path::{Path, PathBuf};

use netns_tests::bench::{Contender, Cost, Scenario, Track, measure, scenarios};
use netns_tests::plugin::{Plugin, directory};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let variable = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    let rounds = variable("ROUNDS").map_or(Ok(30), |r| r.parse())?;
    let case = variable("CASE").unwrap_or_default();
    let contenders = contenders(variable("BIN"));
    let tracks: Vec<Track> = contenders.iter().map(Track::new).collect();
    print_head(&contenders);
    let mut results = Vec::new();
    for scenario in scenarios().iter().filter(|s| s.name.contains(&case)) {
        let costs = measure(&tracks, scenario, rounds)?;
        print_rows(scenario, &costs);
        results.push(as_json(scenario, &contenders, &costs));
    }
    if let Some(out) = variable("OUT") {
        let document = json!({"machine": machine(), "rounds": rounds, "results": results});
        std::fs::write(out, serde_json::to_string_pretty(&document)? + "\n")?;
    }
    Ok(())
}

fn contenders(more: Option<String>) -> Vec<Contender> {
    let mut all = vec![Contender { name: "ours".into(), bin: directory() }];
    let reference = Plugin::reference("portmap").path().parent().map(Path::to_owned);
    all.extend(reference.map(|bin| Contender { name: "reference".into(), bin }));
    for dir in std::env::split_paths(&more.unwrap_or_default()).filter(|d| d != &PathBuf::new()) {
        all.push(Contender { name: dir.display().to_string(), bin: dir });
    }
    all
}

fn print_head(contenders: &[Contender]) {
    println!("times in ms: min / median / p95; × = median over ours; prog = programs executed; calls = system calls\n");
    print!("{:<28} {:<7}", "scenario", "verb");
    for contender in contenders {
        print!(" | {:<57}", contender.name);
    }
    println!();
}

fn print_rows(scenario: &Scenario, costs: &[Vec<Cost>]) {
    for (index, verb) in scenario.verbs.iter().enumerate() {
        print!("{:<28} {verb:<7}", scenario.name);
        let ours = costs.first().and_then(|c| c.get(index)).map_or(f64::NAN, |c| c.quantile(0.5));
        for cost in costs.iter().filter_map(|c| c.get(index)) {
            let [min, median, p95] = [0.0, 0.5, 0.95].map(|part| cost.quantile(part) / 1e3);
            let ratio = cost.quantile(0.5) / ours;
            let failed = if cost.failures > 0 { format!(" {} FAILED", cost.failures) } else { String::new() };
            print!(
                " | {min:6.2} {median:6.2} {p95:6.2} {ratio:5.1}× {:3} prog {:6} calls {:3} MiB{failed}",
                cost.programs,
                cost.syscalls,
                cost.max_rss_kib / 1024,
            );
        }
        println!();
    }
}

fn as_json(scenario: &Scenario, contenders: &[Contender], costs: &[Vec<Cost>]) -> Value {
    let per_contender = contenders.iter().zip(costs).map(|(contender, costs)| {
        let verbs = scenario.verbs.iter().zip(costs).map(|(verb, cost)| {
            json!({"verb": verb, "min_us": cost.quantile(0.0), "median_us": cost.quantile(0.5),
                   "p95_us": cost.quantile(0.95), "programs": cost.programs, "syscalls": cost.syscalls,
                   "max_rss_kib": cost.max_rss_kib, "failures": cost.failures})
        });
        json!({"contender": contender.name, "verbs": verbs.collect::<Vec<_>>()})
    });
    json!({"scenario": scenario.name, "plugin": scenario.plugin, "contenders": per_contender.collect::<Vec<_>>()})
}

/// What the figures were measured on.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    json!({"kernel": read("/proc/sys/kernel/osrelease").trim(), "cpu": model.trim_start_matches(['\t', ' ', ':']),
           "cores": std::thread::available_parallelism().map_or(0, usize::from)})
}
