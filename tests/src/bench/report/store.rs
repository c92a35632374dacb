//! A directory with results: `results.json`, a picture a chart, and a page with all of it.
//!
//! A case that is run again replaces its own results only, so a long benchmark can be run case by case.

use std::fs;
use std::io::Result;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Report, plot, text};

/// What the figures were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Linux.
    pub kernel: String,
    /// As /proc/cpuinfo names it.
    pub cpu: String,
    /// How many.
    pub cores: usize,
    /// /etc/os-release.
    pub system: String,
    /// The measured programs and the tools beside them, with their versions.
    pub versions: Vec<(String, String)>,
}

/// All that is in `results.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Results {
    results: Vec<Stored>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    machine: Machine,
    rounds: usize,
    #[serde(flatten)]
    report: Report,
}

/// Puts reports into the directory and makes its page anew; `order` is that of the cases.
pub fn store(dir: &Path, machine: &Machine, rounds: usize, reports: Vec<Report>, order: &[&str]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let file = dir.join("results.json");
    let mut all: Results = match fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => Results::default(),
    };
    for report in reports {
        for chart in &report.charts {
            fs::write(dir.join(format!("{}.svg", chart.file)), plot::svg(chart)?)?;
        }
        all.results.retain(|stored| stored.report.case != report.case);
        all.results.push(Stored { machine: machine.clone(), rounds, report });
    }
    all.results.sort_by_key(|stored| order.iter().position(|case| *case == stored.report.case));
    fs::write(file, serde_json::to_string_pretty(&all)? + "\n")?;
    fs::write(dir.join("README.md"), page(&all))
}

fn page(all: &Results) -> String {
    let mut page = String::from(
        "# Figures\n\nWritten by `make bench OUT=docs/bench`; the figures are in `results.json` too. Times are wall-clock \
         times from before fork to after wait. Contenders take turns within a run.\n",
    );
    let mut machine = None;
    for stored in &all.results {
        if machine != Some(&stored.machine) {
            page += &machine_text(&stored.machine);
            machine = Some(&stored.machine);
        }
        page += "\n";
        page += &text::markdown(&stored.report);
    }
    page
}

fn machine_text(machine: &Machine) -> String {
    let versions: Vec<String> = machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!(
        "\nMeasured on {} cores ({}), Linux {}, {}; {}.\n",
        machine.cores,
        machine.cpu,
        machine.kernel,
        machine.system,
        versions.join(", ")
    )
}

impl Machine {
    /// This one, with these versions.
    pub fn here(versions: Vec<(String, String)>) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            let value = line.trim_start_matches(|c| c != ':' && c != '=');
            value.trim_matches([':', '=', ' ', '"', '\t']).to_owned()
        };
        let cpuinfo = read("/proc/cpuinfo");
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: [value(&cpuinfo, "vendor_id"), value(&cpuinfo, "model name")].join(" "),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            system: value(&read("/etc/os-release"), "PRETTY_NAME"),
            versions,
        }
    }
}
