//! `make bench`: what the plugins cost, ours and others', in the same run. Nothing here passes or fails by time.
//!
//! Reading order: [`Case`] and [`Bench`] below, [`report`] (what a case hands back: plain data, which is printed, stored
//! and drawn in one place), [`site`] (a contender's laboratory), [`launch`] (running a program and taking the time),
//! [`trace`] (counting what it does), [`floor`] (the least
//! that it could do), [`instructions`] (the gate of CI), then the cases: [`pod`], [`calls`], [`packets`], [`scaling`] (with
//! a [`crowd`]), [`upkeep`], [`shaping`].
//!
//! # To add a case
//!
//! 1. A module here with a type that implements [`Case`]:
//!
//! ```
//! use netns_tests::bench::report::{Cell, Chart, Column, Report, Series, Table};
//! use netns_tests::bench::{Bench, Case};
//!
//! struct Shaping;
//!
//! impl Case for Shaping {
//!     fn name(&self) -> &'static str {
//!         "shaping"
//!     }
//!     fn title(&self) -> String {
//!         "Whether a limit limits".into()
//!     }
//!     fn items(&self) -> Vec<String> {
//!         vec!["1M".into(), "10M".into()]
//!     }
//!     fn run(&self, bench: &Bench, item: &str) -> std::io::Result<Report> {
//!         let mut report = Report::default();
//!         let mut table = Table::new("accuracy", vec![Column::text("rate"), Column::number("mean", "Mbit/s", 2)]);
//!         // … measure this item, for each of bench.contenders …
//!         table.row([item.into(), Cell::Number(9.97)]);
//!         report.tables.push(table);
//!         let series = vec![Series::new("ours", vec![(0.0, 9.9), (0.1, 10.0)])];
//!         let (file, title) = (format!("shaping-{item}"), format!("A pod of {item}bit/s"));
//!         report.charts.push(Chart::lines(&file, &title, ("time", "s"), ("rate", "Mbit/s"), series));
//!         Ok(report)
//!     }
//! }
//! ```
//!
//! 2. A line in [`cases`]. That is all: `make bench CASE=shaping` (or `CASE=shaping/10M`: only the items whose name
//!    contains that) runs it, and with `OUT=docs/bench` its tables and plots get into `docs/bench/README.md`. What several
//!    items say under one title, with one head, becomes one table.
//!
//! Whatever a case makes, it makes in namespaces that go with it. Contenders take turns (A B A B …), so that a change
//! of the machine's mood hits all of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::plugin::{Plugin, directory};
use crate::traffic::Proto;
use report::Report;
use shaping::Direction;

pub mod calls;
pub mod crowd;
pub mod floor;
pub mod instructions;
pub mod launch;
pub mod packets;
pub mod pod;
pub mod report;
pub mod scaling;
pub mod shaping;
pub mod site;
pub mod trace;
pub mod upkeep;

/// Everything that can be measured, in the order of the report.
pub fn cases() -> Vec<Box<dyn Case>> {
    vec![
        Box::new(pod::Pod),
        Box::new(calls::Calls),
        Box::new(scaling::Scaling),
        Box::new(upkeep::Upkeep),
        Box::new(packets::Packets),
        Box::new(shaping::Picture),
        Box::new(shaping::Accuracy(Proto::Tcp, Direction::Ingress)),
        Box::new(shaping::Accuracy(Proto::Tcp, Direction::Egress)),
        Box::new(shaping::Accuracy(Proto::Udp, Direction::Ingress)),
        Box::new(shaping::Accuracy(Proto::Udp, Direction::Egress)),
        Box::new(shaping::Wait),
    ]
}

/// One subject of measurement.
pub trait Case {
    /// What `CASE=` chooses it by.
    fn name(&self) -> &'static str;

    /// One line.
    fn title(&self) -> String;

    /// What can be measured by itself, in the order of the report.
    fn items(&self) -> Vec<String>;

    /// Measures one of the items.
    fn run(&self, bench: &Bench, item: &str) -> std::io::Result<Report>;
}

/// A case, and those of its items that are to be measured.
pub type Chosen = (Box<dyn Case>, Vec<String>);

/// Those of the cases and of their items that contain what was asked for: `NAME` or `NAME/ITEM`.
pub fn chosen(asked: &str) -> Result<Vec<Chosen>, String> {
    let (name, item) = asked.split_once('/').unwrap_or((asked, ""));
    let named: Vec<Box<dyn Case>> = cases().into_iter().filter(|case| case.name().contains(name)).collect();
    if named.is_empty() {
        let names: Vec<&str> = cases().iter().map(|case| case.name()).collect();
        return Err(format!("no case is called “{name}”; there are: {}", names.join(", ")));
    }
    let there: Vec<String> = named.iter().map(|case| format!("{}: {}", case.name(), case.items().join("; "))).collect();
    let with_items = named.into_iter().map(|case| {
        let items: Vec<String> = case.items().into_iter().filter(|i| i.contains(item)).collect();
        (case, items)
    });
    let chosen: Vec<_> = with_items.filter(|(_, items)| !items.is_empty()).collect();
    if chosen.is_empty() {
        return Err(format!("no item is called “{item}”; there are, of {}", there.join("\n  of ")));
    }
    Ok(chosen)
}

/// A directory of plugins, and what to call it.
#[derive(Clone, Debug)]
pub struct Contender {
    /// In the head of a table.
    pub name: String,
    /// Where its plugins are.
    pub bin: PathBuf,
}

/// What a run of the benchmark was asked for.
#[derive(Debug)]
pub struct Bench {
    /// Ours first, then the reference's, then the directories given.
    pub contenders: Vec<Contender>,
    /// How often a call is repeated.
    pub rounds: usize,
}

impl Bench {
    /// `more` are directories of plugins.
    pub fn new(rounds: usize, more: &[PathBuf]) -> Bench {
        let mut contenders = vec![Contender { name: OURS.into(), bin: directory() }];
        let reference = Plugin::reference("portmap").path().parent().map(Path::to_owned);
        contenders.extend(reference.map(|bin| Contender { name: REFERENCE.into(), bin }));
        contenders.extend(more.iter().map(|dir| Contender { name: short_name(dir, more), bin: dir.clone() }));
        Bench { contenders, rounds }
    }

    /// Copies everybody's executables, and measures the copies. How large the pieces are in which the page cache keeps a file,
    /// which is decided while it is written, is a tenth of the time of a short program.
    pub fn settle(mut self) -> std::io::Result<Bench> {
        for (number, contender) in self.contenders.iter_mut().enumerate() {
            let dir = workshop().join(number.to_string());
            std::fs::create_dir_all(&dir)?;
            for plugin in PLUGINS {
                let (from, to) = (contender.bin.join(plugin), dir.join(plugin));
                // Not into the old one, whose pieces would stay.
                std::fs::remove_file(&to).or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
                std::fs::write(&to, std::fs::read(&from)?)?;
                std::fs::set_permissions(&to, std::fs::metadata(&from)?.permissions())?;
            }
            contender.bin = dir;
        }
        Ok(self)
    }

    /// What keeps it from being run, if anything does: told before anything is measured.
    pub fn check(&self) -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("plugins change network namespaces: run it as root".into());
        }
        if self.rounds == 0 {
            return Err("ROUNDS=0: nothing would be measured".into());
        }
        for Contender { name, bin } in &self.contenders {
            for plugin in PLUGINS {
                let path = bin.join(plugin);
                if !path.is_file() {
                    return Err(format!(
                        "{name}: {} is missing; each directory needs all four plugins",
                        path.display()
                    ));
                }
            }
        }
        Ok(())
    }

    /// A bar of so many steps on the terminal; nothing in a pipe.
    pub fn progress(&self, what: &str, steps: usize) -> ProgressBar {
        // Hidden by indicatif itself where stderr is no terminal.
        let bar = ProgressBar::with_draw_target(u64::try_from(steps).ok(), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg:40!} {bar:30} {pos}/{len} {elapsed} of about {duration}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(250));
        bar.set_message(what.to_owned());
        bar
    }
}

/// Where what a benchmark makes lies; it stays there.
pub(crate) fn workshop() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../build/bench")).to_owned()
}

/// What ours are called.
const OURS: &str = "ours";

/// What the distribution's are called.
const REFERENCE: &str = "reference";

/// The plugins, in the order of the tables.
const PLUGINS: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

impl Contender {
    /// Whether they are this build's.
    pub fn is_ours(&self) -> bool {
        self.name == OURS
    }

    /// Whether they are the distribution's.
    pub fn is_reference(&self) -> bool {
        self.name == REFERENCE
    }
}

/// A directory's last part, if no other's is the same.
fn short_name(dir: &Path, all: &[PathBuf]) -> String {
    let alike = all.iter().filter(|other| other.file_name() == dir.file_name()).count();
    match dir.file_name() {
        Some(last) if alike == 1 && last != OURS && last != REFERENCE => last.to_string_lossy().into_owned(),
        _ => dir.display().to_string(),
    }
}

/// A quantile (0 to 1) of samples in ascending order; between two of them where it falls there.
pub fn quantile(ascending: &[f64], part: f64) -> f64 {
    let at = ascending.len().saturating_sub(1) as f64 * part;
    let [below, above] = [at.floor(), at.ceil()].map(|at| ascending.get(at as usize).copied().unwrap_or(f64::NAN));
    below + (above - below) * at.fract()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{chosen, quantile, short_name};

    #[test]
    fn a_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(quantile(&[1.0, 3.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 9.0], 0.5), 2.0);
        assert_eq!([0.0, 1.0].map(|part| quantile(&[1.0, 2.0, 9.0], part)), [1.0, 9.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn directories_have_short_names_that_tell_them_apart() {
        let all = ["/a/bin", "/b/bin", "/c/old"].map(std::path::PathBuf::from);
        assert_eq!(all.each_ref().map(|dir| short_name(dir, &all)), ["/a/bin", "/b/bin", "old"]);
    }

    #[test]
    fn a_case_and_an_item_are_chosen_by_a_part_of_their_names() {
        let names = |asked| -> Vec<String> {
            let all = chosen(asked).unwrap();
            all.iter().map(|(case, items)| format!("{}: {}", case.name(), items.join("; "))).collect()
        };
        assert_eq!(names("pod"), ["pod: whole"]);
        assert_eq!(names("shaping-tcp/1G"), ["shaping-tcp-ingress: 1G", "shaping-tcp-egress: 1G"]);
        assert_eq!(names("calls/10 ports"), ["calls: portmap, 10 ports"]);
        assert_eq!(names("").len(), super::cases().len());
    }

    #[test]
    fn what_is_not_there_is_told_with_what_there_is() {
        let refused = |asked| chosen(asked).err().unwrap();
        assert!(refused("pdo").starts_with("no case is called “pdo”; there are: pod, calls, "));
        let told = "no item is called “2G”; there are, of shaping-udp-ingress: none; 1M; 10M; 100M; 1G\n  of shaping-udp-egress";
        assert!(refused("shaping-udp/2G").starts_with(told), "{}", refused("shaping-udp/2G"));
    }
}
