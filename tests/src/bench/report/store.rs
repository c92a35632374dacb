//! A directory with results: `results.json`, a picture a chart, and a page with all of it.
//!
//! An item that is run again replaces its own results only, so a long benchmark can be run bit by bit.

use std::fs::{self, File};
use std::io::{Error, Result};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::{Case, Chosen, cases};
use super::{Chapter, Report, plot, text};

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

/// What was measured of one item.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    case: String,
    item: String,
    machine: Machine,
    rounds: usize,
    #[serde(flatten)]
    report: Report,
}

/// The directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    machine: Machine,
    all: Results,
}

impl Store {
    /// Reads what is there already. What is about to be measured, the items of each case, must go with the others of the
    /// same case: their figures are compared.
    pub fn open(dir: &Path, machine: Machine, about: &[Chosen]) -> Result<Store> {
        let told = |path: &Path, error: Error| Error::new(error.kind(), format!("OUT: {}: {error}", path.display()));
        fs::create_dir_all(dir).map_err(|error| told(dir, error))?;
        let file = dir.join(FILE);
        // Now, not when everything has been measured.
        let opened = File::options().read(true).append(true).create(true).open(&file);
        let text = opened.and_then(std::io::read_to_string).map_err(|error| told(&file, error))?;
        let all: Results = match text.trim() {
            "" => Results::default(),
            json => serde_json::from_str(json)
                .map_err(|error| told(&file, Error::other(format!("{error}; remove it to begin anew"))))?,
        };
        let stays = |stored: &&Stored| {
            about.iter().any(|(case, items)| case.name() == stored.case && !items.contains(&stored.item))
        };
        match all.results.iter().filter(stays).find(|stored| stored.machine != machine) {
            None => Ok(Store { dir: dir.to_owned(), machine, all }),
            Some(other) => Err(told(
                &file,
                Error::other(format!(
                    "its {}/{} was measured on another machine or with other plugins; measure all of {} again or name another \
                     directory",
                    other.case, other.item, other.case
                )),
            )),
        }
    }

    /// Puts in what the items of a case said, instead of what they said before, and makes the page anew.
    pub fn put(&mut self, case: &dyn Case, rounds: usize, measured: &[(String, Report)]) -> Result<()> {
        let is_measured = |stored: &Stored| measured.iter().any(|(item, _)| *item == stored.item);
        self.all.results.retain(|stored| stored.case != case.name() || !is_measured(stored));
        self.all.results.extend(measured.iter().map(|(item, report)| Stored {
            case: case.name().into(),
            item: item.clone(),
            machine: self.machine.clone(),
            rounds,
            report: report.clone(),
        }));
        let order: Vec<(&str, String)> = cases_with_items();
        let place =
            |stored: &Stored| order.iter().position(|(case, item)| *case == stored.case && *item == stored.item);
        // What is measured no more.
        self.all.results.retain(|stored| place(stored).is_some());
        self.all.results.sort_by_key(place);
        fs::write(self.dir.join(FILE), serde_json::to_string_pretty(&self.all)? + "\n")?;
        self.draw()
    }

    /// The page and the pictures.
    fn draw(&self) -> Result<()> {
        let mut page = String::from(HEAD);
        let mut machine = None;
        for case in cases() {
            let mut stored = self.all.results.iter().filter(|stored| stored.case == case.name()).peekable();
            let Some(first) = stored.peek() else { continue };
            if machine != Some(&first.machine) {
                page += &machine_text(&first.machine);
                machine = Some(&first.machine);
            }
            let chapter = Chapter::of(case.as_ref(), stored.map(|stored| &stored.report));
            for chart in &chapter.report.charts {
                fs::write(self.dir.join(format!("{}.svg", chart.file)), plot::svg(chart)?)?;
            }
            page += "\n";
            page += &text::markdown(&chapter);
        }
        fs::write(self.dir.join("README.md"), page)
    }
}

const FILE: &str = "results.json";

const HEAD: &str = "# Figures\n\nWritten by `make bench OUT=docs/bench`; the figures are in `results.json` too. Times are \
    wall-clock times from before fork to after wait. Contenders take turns within a run. All executables are copied before, so that the page cache keeps them alike.\n";

/// Everything that can be measured, in the order of the page.
fn cases_with_items() -> Vec<(&'static str, String)> {
    cases().iter().flat_map(|case| case.items().into_iter().map(|item| (case.name(), item))).collect()
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::chosen;
    use super::super::{Cell, Chart, Column, Table};
    use super::*;

    fn machine(kernel: &str) -> Machine {
        let text = String::new;
        Machine { kernel: kernel.into(), cpu: text(), cores: 2, system: text(), versions: vec![] }
    }

    fn said(item: &str, figure: f64) -> (String, Report) {
        let mut report = Report { notes: vec!["one note".into()], ..Report::default() };
        let mut table = Table::new("the table", vec![Column::text("limit"), Column::number("mean", "%", 1)]);
        table.row([item.into(), Cell::Number(figure)]);
        report.tables.push(table);
        let bars = Chart::bars("bars", "bars", ("", ""), vec!["ours".into()], vec![(item.into(), vec![Some(figure)])]);
        report.charts.push(bars);
        (item.into(), report)
    }

    fn page(dir: &Path) -> String {
        fs::read_to_string(dir.join("README.md")).unwrap()
    }

    #[test]
    fn an_item_that_is_run_again_replaces_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let about = chosen("shaping-tcp-ingress").unwrap();
        let case = about.first().unwrap().0.as_ref();
        let mut store = Store::open(dir.path(), machine("a"), &about).unwrap();
        store.put(case, 30, &[said("1G", 1.0), said("10M", 2.0)]).unwrap();
        let again = chosen("shaping-tcp-ingress/1G").unwrap();
        let mut store = Store::open(dir.path(), machine("a"), &again).unwrap();
        store.put(case, 30, &[said("1G", 3.0)]).unwrap();
        let page = page(dir.path());
        let expected = "one note\n\n![bars](bars.svg)\n\n**the table**\n\n| limit | mean (%) |\n|:--|--:|\n| 10M | 2.0 |\n| 1G | 3.0 |\n";
        assert!(page.ends_with(expected), "{page}");
        let picture = fs::read_to_string(dir.path().join("bars.svg")).unwrap();
        assert!(picture.contains("10M") && picture.contains("1G"), "{picture}");
    }

    #[test]
    fn figures_of_another_machine_do_not_get_into_one_table() {
        let dir = tempfile::tempdir().unwrap();
        let all = chosen("shaping-tcp-ingress").unwrap();
        let case = all.first().unwrap().0.as_ref();
        let items = case.items();
        let mut store = Store::open(dir.path(), machine("a"), &all).unwrap();
        store.put(case, 30, &items.iter().map(|item| said(item, 1.0)).collect::<Vec<_>>()).unwrap();
        let one = chosen("shaping-tcp-ingress/1G").unwrap();
        let refused = Store::open(dir.path(), machine("b"), &one).unwrap_err().to_string();
        assert!(refused.contains("its shaping-tcp-ingress/none was measured on another machine"), "{refused}");
        // All of them may be, and another case.
        Store::open(dir.path(), machine("b"), &all).unwrap();
        Store::open(dir.path(), machine("b"), &chosen("pod").unwrap()).unwrap();
    }

    #[test]
    fn what_is_not_ours_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{}").unwrap();
        let refused = Store::open(dir.path(), machine("a"), &[]).unwrap_err().to_string();
        assert!(refused.contains("results.json: missing field `results`"), "{refused}");
        assert!(refused.ends_with("remove it to begin anew"), "{refused}");
    }
}
