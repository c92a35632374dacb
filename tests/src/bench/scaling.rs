//! What a call costs with many attachments on the host, many ports, and many calls at the same time.

use std::io::Result;
use std::path::Path;

use serde_json::json;

use super::calls::{ports, rates, tunings};
use super::crowd::{self, Lines, Member};
use super::launch;
use super::report::{Cell, Chart, Column, Report, Series, Table};
use super::site::{Site, Subject};
use super::{Bench, Case, Contender, quantile};

/// The case.
#[derive(Debug)]
pub struct Scaling;

const EXISTING: [usize; 4] = [0, 100, 1_000, 10_000];
const PORTS: [usize; 4] = [1, 10, 100, 1_000];
const TOGETHER: [usize; 5] = [1, 5, 10, 25, 50];

/// More of them take the reference minutes a call.
const REFERENCE_EXISTING: usize = 1_000;
const REFERENCE_PORTS: usize = 100;

/// A link and an ifb each: making and removing ten thousand takes the kernel minutes.
const BANDWIDTH_EXISTING: usize = 1_000;

type Item = (&'static str, fn(&Bench, &mut Report) -> Result<()>);

const ITEMS: [Item; 6] = [
    ("existing portmap", |bench, report| existing(bench, report, subject("portmap"))),
    ("existing firewall", |bench, report| existing(bench, report, subject("firewall"))),
    ("existing tuning", |bench, report| existing(bench, report, subject("tuning"))),
    ("existing bandwidth", |bench, report| existing(bench, report, subject("bandwidth"))),
    ("ports", many_ports),
    ("together", together),
];

pub(super) fn subject(plugin: &'static str) -> Subject {
    let keys = match plugin {
        "portmap" => ports(1),
        "bandwidth" => rates(),
        "tuning" => tunings(),
        _ => json!({}),
    };
    Subject { plugin, keys }
}

impl Case for Scaling {
    fn name(&self) -> &'static str {
        "scaling"
    }

    fn title(&self) -> String {
        "What a call costs when there is much of everything".into()
    }

    fn items(&self) -> Vec<String> {
        ITEMS.iter().map(|(name, _)| (*name).into()).collect()
    }

    fn run(&self, bench: &Bench, item: &str) -> Result<Report> {
        let mut report = Report::default();
        for (_, measure) in ITEMS.iter().filter(|(name, _)| *name == item) {
            measure(bench, &mut report)?;
        }
        Ok(report)
    }
}

/// Medians of the verbs of one contender, in milliseconds, at one size.
fn medians(site: &Site, bin: &Path, subject: &Subject, verbs: &[(&str, Vec<u8>)], rounds: usize) -> Result<Vec<Cell>> {
    let mut micros = vec![Vec::new(); verbs.len()];
    for _ in 0..=rounds {
        for ((verb, config), micros) in verbs.iter().zip(&mut micros) {
            let run = site.call(bin, subject.plugin, verb, config)?;
            micros.push(if run.success { run.micros } else { f64::NAN });
        }
    }
    Ok(micros
        .into_iter()
        .map(|all| {
            // The first round warms up.
            let mut kept = all.get(1..).unwrap_or_default().to_vec();
            kept.sort_by(f64::total_cmp);
            Cell::from(quantile(&kept, 0.5) / 1e3)
        })
        .collect())
}

fn cycle(site: &Site, subject: &Subject) -> Vec<(&'static str, Vec<u8>)> {
    let config = site.config(subject).to_string().into_bytes();
    vec![("ADD", config.clone()), ("CHECK", config.clone()), ("DEL", config)]
}

fn is_ours(bench: &Bench, contender: &Contender) -> bool {
    bench.contenders.first().is_some_and(|ours| ours.bin == contender.bin)
}

fn columns(first: &str, verbs: &[&str]) -> Vec<Column> {
    let mut columns = vec![Column::number(first, "", 0), Column::text("plugins")];
    columns.extend(verbs.iter().map(|verb| Column::number(verb, "ms", 2)));
    columns
}

/// A row a size and contender becomes a line a verb and contender.
fn chart(file: &str, title: &str, x: &str, table: &Table) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for row in &table.rows {
        let [Cell::Number(size), Cell::Text(who), figures @ ..] = row.as_slice() else { continue };
        for (column, figure) in table.columns.iter().skip(2).zip(figures) {
            let (name, Cell::Number(figure)) = (format!("{who} {}", column.name), figure) else { continue };
            match series.iter_mut().find(|s| s.name == name) {
                Some(known) => known.points.push((*size, *figure)),
                None => series.push(Series::new(&name, vec![(*size, *figure)])),
            }
        }
    }
    series.sort_by(|a, b| a.name.cmp(&b.name));
    Chart::lines(file, title, (x, ""), ("median", "ms"), series).logarithmic()
}

/// ADD, CHECK, DEL and GC beside so many attachments.
fn existing(bench: &Bench, report: &mut Report, subject: Subject) -> Result<()> {
    let verbs = ["ADD", "CHECK", "DEL", "GC"];
    let title = format!("{}, beside so many attachments", subject.plugin);
    let mut table = Table::new(&title, columns("attachments", &verbs));
    let tables_grow = matches!(subject.plugin, "portmap" | "firewall");
    let takes_part = |c: &&Contender| is_ours(bench, c) || tables_grow;
    for contender in bench.contenders.iter().filter(takes_part) {
        let ours = is_ours(bench, contender);
        let most = match subject.plugin {
            "bandwidth" => BANDWIDTH_EXISTING,
            _ if ours => usize::MAX,
            _ => REFERENCE_EXISTING,
        };
        let (site, mut there, mut homes) = (Site::new(), 0, Vec::new());
        let lines = if ours { None } else { Some(Lines::of(&site, &contender.bin, &subject)?) };
        let sizes = EXISTING.into_iter().filter(|n| *n <= most);
        let progress = bench.progress(&format!("{title}: {}", contender.name), sizes.clone().max().unwrap_or_default());
        for size in sizes {
            match &lines {
                None => homes.extend(crowd::add(&site, &contender.bin, &subject, there..size, &|| progress.inc(1))?),
                Some(lines) => lines.put(&site, there..size)?,
            }
            there = size;
            let rounds = if ours { bench.rounds.min(15) } else { bench.rounds.min(3) };
            let mut row = vec![Cell::Number(size as f64), contender.name.as_str().into()];
            row.extend(medians(&site, &contender.bin, &subject, &cycle(&site, &subject), rounds)?);
            if ours {
                // By itself: what follows the look through all of it finds the processor's caches full of that.
                let calls = [("GC", crowd::all_alive(&site, &subject, size))];
                row.extend(medians(&site, &contender.bin, &subject, &calls, rounds)?);
            }
            row.resize(2 + verbs.len(), Cell::Nothing);
            table.row(row);
        }
        progress.finish_and_clear();
    }
    let file = format!("scaling-{}", subject.plugin);
    report.charts.push(chart(&file, &format!("A call {title}"), "attachments", &table));
    report.tables.push(table);
    Ok(())
}

/// ADD, CHECK and DEL of one container with so many ports.
fn many_ports(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut table = Table::new("portmap, with so many ports", columns("ports", &["ADD", "CHECK", "DEL"]));
    let progress = bench.progress("portmap, with so many ports", PORTS.len() * bench.contenders.len());
    for contender in &bench.contenders {
        let (site, ours) = (Site::new(), is_ours(bench, contender));
        for count in PORTS {
            progress.inc(1);
            if !ours && count > REFERENCE_PORTS {
                continue;
            }
            let subject = Subject { plugin: "portmap", keys: ports(count) };
            let rounds = if ours { bench.rounds.min(15) } else { 1 };
            let mut row = vec![Cell::Number(count as f64), contender.name.as_str().into()];
            row.extend(medians(&site, &contender.bin, &subject, &cycle(&site, &subject), rounds)?);
            table.row(row);
        }
    }
    progress.finish_and_clear();
    report.charts.push(chart("scaling-ports", "A call of portmap, with so many ports", "ports", &table));
    report.tables.push(table);
    Ok(())
}

/// ADD of so many containers at the same time, then DEL of all.
fn together(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut head = columns("processes", &["ADD", "DEL"]);
    head.push(Column::number("failures", "", 0));
    let mut table = Table::new("portmap, calls at the same time: until the last has ended", head);
    let progress = bench.progress("portmap, calls at the same time", TOGETHER.len() * bench.contenders.len());
    let subject = subject("portmap");
    for contender in &bench.contenders {
        let site = Site::new();
        let rounds = if is_ours(bench, contender) { bench.rounds.min(5) } else { 1 };
        for count in TOGETHER {
            let mut row = vec![Cell::Number(count as f64), contender.name.as_str().into()];
            let mut failures = 0;
            let mut micros = [Vec::new(), Vec::new()];
            for _ in 0..rounds {
                for (verb, micros) in ["ADD", "DEL"].into_iter().zip(&mut micros) {
                    let members = || (0..count).map(Member);
                    let stdins: Vec<Vec<u8>> =
                        members().map(|m| m.config(&site, &subject).to_string().into_bytes()).collect();
                    let mut commands: Vec<_> =
                        members().map(|m| m.command(&site, &contender.bin, "portmap", verb)).collect();
                    let (time, failed) = site.lab.host.inside(|| launch::timed_together(&mut commands, &stdins))?;
                    micros.push(time);
                    failures += failed;
                }
            }
            for all in &mut micros {
                all.sort_by(f64::total_cmp);
                row.push(Cell::from(quantile(all, 0.5) / 1e3));
            }
            row.push(Cell::Number(failures as f64));
            table.row(row);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let mut drawn = table.clone();
    drawn.columns.truncate(4);
    report.charts.push(chart("scaling-together", "portmap, so many calls at the same time", "processes", &drawn));
    report.tables.push(table);
    Ok(())
}
