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
//!     fn run(&self, bench: &Bench) -> std::io::Result<Report> {
//!         let mut report = Report::new(self.name(), "Whether a limit limits");
//!         let mut table = Table::new("accuracy", vec![Column::text("rate"), Column::number("mean", "Mbit/s", 2)]);
//!         let rates = [1, 10].map(|rate| format!("{rate}M"));
//!         for rate in bench.chosen(self, &rates, String::as_str) {
//!             // … measure, for each of bench.contenders …
//!             table.row([rate.as_str().into(), Cell::Number(9.97)]);
//!         }
//!         report.tables.push(table);
//!         let series = vec![Series::new("ours", vec![(0.0, 9.9), (0.1, 10.0)])];
//!         report.charts.push(Chart::lines("shaping", "A 10 Mbit/s pod", ("time", "s"), ("rate", "Mbit/s"), series));
//!         Ok(report)
//!     }
//! }
//! ```
//!
//! 2. A line in [`cases`]. That is all: `make bench CASE=shaping` (or `CASE=shaping/10M`: only the items whose name
//!    contains that) runs it, and with `OUT=docs/bench` its tables and plots get into `docs/bench/README.md`.
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
    /// What `CASE=` chooses it by; also the stem of its files.
    fn name(&self) -> &'static str;

    /// Measures.
    fn run(&self, bench: &Bench) -> std::io::Result<Report>;
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
    case: String,
    item: String,
}

impl Bench {
    /// `case` is `NAME` or `NAME/ITEM`, where each part chooses what contains it; `more` are directories of plugins.
    pub fn new(case: &str, rounds: usize, more: &[PathBuf]) -> Bench {
        let (case, item) = case.split_once('/').unwrap_or((case, ""));
        let mut contenders = vec![Contender { name: "ours".into(), bin: directory() }];
        let reference = Plugin::reference("portmap").path().parent().map(Path::to_owned);
        contenders.extend(reference.map(|bin| Contender { name: "reference".into(), bin }));
        contenders.extend(more.iter().map(|dir| Contender { name: dir.display().to_string(), bin: dir.clone() }));
        Bench { contenders, rounds, case: case.to_owned(), item: item.to_owned() }
    }

    /// The cases that were asked for.
    pub fn cases(&self) -> Vec<Box<dyn Case>> {
        cases().into_iter().filter(|case| case.name().contains(&self.case)).collect()
    }

    /// Those of the items of a case that were asked for.
    pub fn chosen<'a, T>(&self, case: &dyn Case, items: &'a [T], name: impl Fn(&T) -> &str) -> Vec<&'a T> {
        debug_assert!(case.name().contains(&self.case), "a case that was not asked for");
        items.iter().filter(|item| name(item).contains(&self.item)).collect()
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

/// A quantile (0 to 1) of samples in ascending order.
pub fn quantile(ascending: &[f64], part: f64) -> f64 {
    let last = ascending.len().saturating_sub(1);
    let at = ((last as f64) * part).round() as usize;
    ascending.get(at.min(last)).copied().unwrap_or(f64::NAN)
}
