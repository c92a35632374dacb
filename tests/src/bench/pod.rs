//! The start and the end of a whole pod: the main plugin bridge, then the four chained plugins.
//!
//! bridge is the same program for all contenders, so what differs is what the chained plugins take.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::calls::{ports, rates, tunings};
use super::report::{Cell, Chart, Column, Report, Table};
use super::{Bench, Case, Contender, launch, quantile};
use crate::chain::bridge_conf;
use crate::lab::Lab;
use crate::namespace::Netns;
use crate::plugin::Plugin;

/// The case.
#[derive(Debug)]
pub struct Pod;

const CHAINED: [&str; 4] = super::PLUGINS;

/// The end is the start backwards.
const VERBS: [&str; 2] = ["ADD", "DEL"];

struct Track<'a> {
    contender: &'a Contender,
    lab: Lab,
    netns: Netns,
    bridge: PathBuf,
    /// By plugin, bridge first, and by verb.
    micros: Vec<[Vec<f64>; 2]>,
}

impl Track<'_> {
    fn new(contender: &Contender) -> Track<'_> {
        let (lab, netns) = (Lab::without_bridge(), Netns::new("pod"));
        let bridge = Plugin::reference("bridge").path().to_owned();
        Track { contender, lab, netns, bridge, micros: vec![Default::default(); 1 + CHAINED.len()] }
    }

    fn programs(&self) -> Vec<PathBuf> {
        std::iter::once(self.bridge.clone()).chain(CHAINED.map(|plugin| self.contender.bin.join(plugin))).collect()
    }

    fn run(&mut self) -> Result<()> {
        let programs = self.programs();
        let (mut prev, mut configs) = (Value::Null, Vec::new());
        for (index, program) in programs.iter().enumerate() {
            let mut config = config(index);
            if index > 0 {
                config["prevResult"] = prev.clone();
            }
            let result = self.call(program, index, 0, &config)?;
            prev = serde_json::from_slice(&result)?;
            configs.push(config);
        }
        for (index, program) in programs.iter().enumerate().rev() {
            let mut config = configs.get(index).cloned().unwrap_or_default();
            config["prevResult"] = prev.clone();
            self.call(program, index, 1, &config)?;
        }
        Ok(())
    }

    fn call(&mut self, program: &Path, index: usize, verb: usize, config: &Value) -> Result<Vec<u8>> {
        let mut command = std::process::Command::new(program);
        let directory = self.bridge.parent().unwrap_or(Path::new("/"));
        command.env_clear().env("CNI_COMMAND", VERBS[verb]).env("CNI_CONTAINERID", "pod").env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", self.netns.path()).env("CNI_PATH", directory);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let stdin = config.to_string();
        let (run, stdout) = self.lab.host.inside(|| launch::timed_with_output(&mut command, stdin.as_bytes()))?;
        if !run.success {
            let said = String::from_utf8_lossy(&stdout).into_owned();
            return Err(Error::other(format!("{} of {}: {said}", VERBS[verb], program.display())));
        }
        self.micros[index][verb].push(run.micros);
        Ok(stdout)
    }

    /// Median in milliseconds of these plugins' times taken together, round by round.
    fn median(&self, plugins: std::ops::Range<usize>, verb: usize) -> f64 {
        let rounds = self.micros[0][verb].len();
        // The first round makes the bridge and the static chains.
        let mut sums: Vec<f64> = (1..rounds)
            .map(|round| plugins.clone().map(|plugin| self.micros[plugin][verb][round]).sum::<f64>() / 1e3)
            .collect();
        sums.sort_by(f64::total_cmp);
        quantile(&sums, 0.5)
    }
}

/// What the plugin in this place of the chain is told.
fn config(index: usize) -> Value {
    let mut config = match index {
        0 => bridge_conf("cni0", &["10.88.0.0/24", "fd00:88::/64"]),
        1 => ports(1),
        2 => rates(),
        3 => json!({}),
        _ => tunings(),
    };
    let plugins: Vec<&str> = std::iter::once("bridge").chain(CHAINED).collect();
    config["type"] = plugins[index].into();
    config["cniVersion"] = "1.0.0".into();
    config["name"] = "bench".into();
    config
}

impl Case for Pod {
    fn name(&self) -> &'static str {
        "pod"
    }

    fn title(&self) -> String {
        "The start and the end of a whole pod: bridge and four chained plugins".into()
    }

    fn items(&self) -> Vec<String> {
        vec!["whole".into()]
    }

    fn run(&self, bench: &Bench, _: &str) -> Result<Report> {
        let mut tracks: Vec<Track<'_>> = bench.contenders.iter().map(Track::new).collect();
        let rounds = bench.rounds.min(20);
        let progress = bench.progress("a whole pod", rounds);
        for _ in 0..=rounds {
            for track in &mut tracks {
                track.run()?;
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(report(&tracks))
    }
}

fn report(tracks: &[Track<'_>]) -> Report {
    let all = 1 + CHAINED.len();
    let mut steps =
        vec![("the four chained plugins", 1..all), ("the whole pod, bridge included", 0..all), ("bridge", 0..1)];
    steps.extend(CHAINED.iter().zip(1..).map(|(plugin, index)| (*plugin, index..index + 1)));
    let mut columns = vec![Column::text("step"), Column::text("plugins")];
    columns.extend(VERBS.map(|verb| Column::number(verb, "ms", 2)));
    columns.extend(VERBS.map(|verb| Column::number(&format!("{verb} × ours"), "", 1)));
    let mut table =
        Table::new("one pod after the other: one port, two limits, dual stack, two sysctls and an mtu", columns);
    for (step, plugins) in &steps {
        for track in tracks {
            let medians = [0, 1].map(|verb| track.median(plugins.clone(), verb));
            let ratio = |verb: usize| medians[verb] / tracks[0].median(plugins.clone(), verb);
            let mut row = vec![Cell::from(*step), track.contender.name.as_str().into()];
            row.extend(medians.map(Cell::from));
            row.extend([0, 1].map(|verb| Cell::from(ratio(verb))));
            table.row(row);
        }
    }
    let mut groups = Vec::new();
    for (verb, what) in [(0, "start"), (1, "end")] {
        for (step, plugins) in steps.iter().take(2) {
            let short = if plugins.start == 0 { "with bridge" } else { step };
            let medians = tracks.iter().map(|track| Some(track.median(plugins.clone(), verb))).collect();
            groups.push((format!("{what}: {short}"), medians));
        }
    }
    let names = tracks.iter().map(|track| track.contender.name.clone()).collect();
    let mut report = Report::default();
    report.charts.push(Chart::bars("pod", "Start and end of a pod", ("time", "ms"), names, groups));
    report.tables.push(table);
    report
}
