//! What a call costs with many attachments on the host, many ports, and many calls at the same time.

use std::io::Result;
use std::path::Path;

use serde_json::json;

use super::calls::{ports, rates, tunings};
use super::crowd::{self, Crowd, Member};
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

const EXISTING_NOTE: &str = "Beside others: the reference's are put in by iptables-restore, exactly as its plugin writes them, and \
    no more than 1,000 of them, because its calls then take seconds; its bandwidth and tuning keep nothing that grows with others. \
    No more than 1,000 of bandwidth's: with ten thousand links the kernel takes minutes. “fails” is a call that fails.";

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

/// One contender's place of measurement.
struct Place<'a> {
    site: &'a Site,
    bin: &'a Path,
    /// Verbs and what they get on stdin.
    calls: Vec<(&'static str, Vec<u8>)>,
    rounds: usize,
}

/// Medians of the calls of each, in milliseconds, measured in turns: a round of each after the other.
fn medians(plugin: &str, places: &[Place<'_>]) -> Result<Vec<Vec<Cell>>> {
    let mut micros: Vec<Vec<Vec<f64>>> = places.iter().map(|place| vec![Vec::new(); place.calls.len()]).collect();
    let most = places.iter().map(|place| place.rounds).max().unwrap_or_default();
    for round in 0..=most {
        for (place, micros) in places.iter().zip(&mut micros).filter(|(place, _)| round <= place.rounds) {
            for ((verb, config), micros) in place.calls.iter().zip(micros) {
                let run = place.site.call(place.bin, plugin, verb, config)?;
                micros.push(if run.success { run.micros } else { f64::NAN });
            }
        }
    }
    Ok(micros.into_iter().map(|calls| calls.into_iter().map(median).collect()).collect())
}

/// The first round warms up. What fails now and then has no figure, either.
fn median(micros: Vec<f64>) -> Cell {
    let mut kept = micros.get(1..).unwrap_or_default().to_vec();
    if kept.iter().any(|time| time.is_nan()) {
        return "fails".into();
    }
    kept.sort_by(f64::total_cmp);
    Cell::from(quantile(&kept, 0.5) / 1e3)
}

fn cycle(site: &Site, subject: &Subject) -> Vec<(&'static str, Vec<u8>)> {
    let config = site.config(subject).to_string().into_bytes();
    vec![("ADD", config.clone()), ("CHECK", config.clone()), ("DEL", config)]
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

/// Where the calls of a contender are measured, the reference's less often.
fn place<'a>(bench: &Bench, crowd: &'a Crowd<'_>, calls: Vec<(&'static str, Vec<u8>)>) -> Place<'a> {
    let most = if crowd.contender.is_reference() { 3 } else { 15 };
    Place { site: &crowd.site, bin: &crowd.contender.bin, calls, rounds: bench.rounds.min(most) }
}

/// ADD, CHECK, DEL and GC beside so many attachments.
fn existing(bench: &Bench, report: &mut Report, subject: Subject) -> Result<()> {
    let verbs = ["ADD", "CHECK", "DEL", "GC"];
    let title = format!("{}, beside so many attachments", subject.plugin);
    let mut table = Table::new(&title, columns("attachments", &verbs));
    report.notes.push(EXISTING_NOTE.into());
    let tables_grow = matches!(subject.plugin, "portmap" | "firewall");
    let takes_part = |c: &&Contender| !c.is_reference() || tables_grow;
    let crowds = bench.contenders.iter().filter(takes_part).map(|contender| Crowd::new(contender, &subject));
    let mut crowds: Vec<Crowd<'_>> = crowds.collect::<Result<_>>()?;
    let most = if subject.plugin == "bandwidth" { BANDWIDTH_EXISTING } else { usize::MAX };
    let sizes = EXISTING.into_iter().filter(|size| *size <= most);
    let progress = bench.progress(&title, sizes.clone().max().unwrap_or_default() * crowds.len());
    for size in sizes {
        crowds.retain(|crowd| crowd.can_grow(size) && !(crowd.contender.is_reference() && size > REFERENCE_EXISTING));
        for crowd in &mut crowds {
            crowd.grow(size, &|steps| progress.inc(steps as u64))?;
        }
        let attachment =
            crowds.iter().map(|crowd| place(bench, crowd, cycle(&crowd.site, &subject))).collect::<Vec<_>>();
        // By itself: what follows the look through all of it finds the processor's caches full of that.
        let gc = |crowd: &Crowd<'_>| vec![("GC", crowd::all_alive(&crowd.site, &subject, size))];
        let network = crowds.iter().map(|crowd| place(bench, crowd, gc(crowd))).collect::<Vec<_>>();
        let measured = medians(subject.plugin, &attachment)?.into_iter().zip(medians(subject.plugin, &network)?);
        for (crowd, (mut figures, gc)) in crowds.iter().zip(measured) {
            figures.extend(gc);
            let head = [Cell::Number(size as f64), crowd.contender.name.as_str().into()];
            table.row(head.into_iter().chain(figures).collect::<Vec<_>>());
        }
    }
    progress.finish_and_clear();
    let file = format!("scaling-{}", subject.plugin);
    report.charts.push(chart(&file, &format!("A call of {title}"), "attachments", &table));
    report.tables.push(table);
    Ok(())
}

/// ADD, CHECK and DEL of one container with so many ports.
fn many_ports(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut table = Table::new("portmap, with so many ports", columns("ports", &["ADD", "CHECK", "DEL"]));
    report
        .notes
        .push(format!("The reference takes a second a hundred ports, so it has no more than {REFERENCE_PORTS}, once."));
    let progress = bench.progress("portmap, with so many ports", PORTS.len());
    let sites: Vec<(&Contender, Site)> = bench.contenders.iter().map(|contender| (contender, Site::new())).collect();
    for count in PORTS {
        let subject = Subject { plugin: "portmap", keys: ports(count) };
        let taking_part = || sites.iter().filter(|(c, _)| !c.is_reference() || count <= REFERENCE_PORTS);
        let place = |(contender, site): &'_ (&Contender, Site)| {
            let most = if contender.is_reference() { 1 } else { 15 };
            (contender.bin.clone(), cycle(site, &subject), bench.rounds.min(most))
        };
        let prepared: Vec<_> = taking_part().map(place).collect();
        let places = taking_part().zip(&prepared).map(|((_, site), (bin, calls, rounds))| Place {
            site,
            bin,
            calls: calls.clone(),
            rounds: *rounds,
        });
        let measured = medians(subject.plugin, &places.collect::<Vec<_>>())?;
        for ((contender, _), figures) in taking_part().zip(measured) {
            let head = [Cell::Number(count as f64), contender.name.as_str().into()];
            table.row(head.into_iter().chain(figures).collect::<Vec<_>>());
        }
        progress.inc(1);
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
    report.notes.push("Calls at the same time: five rounds, the reference one.".into());
    let progress = bench.progress("portmap, calls at the same time", TOGETHER.len());
    let subject = subject("portmap");
    let sites: Vec<(&Contender, Site)> = bench.contenders.iter().map(|contender| (contender, Site::new())).collect();
    for count in TOGETHER {
        let mut of_each: Vec<([Vec<f64>; 2], usize)> = vec![Default::default(); sites.len()];
        for round in 0..bench.rounds.min(5) {
            let turns = sites.iter().zip(&mut of_each).filter(|((c, _), _)| round == 0 || !c.is_reference());
            for ((contender, site), (micros, failures)) in turns {
                for (verb, micros) in ["ADD", "DEL"].into_iter().zip(micros) {
                    let (time, failed) = all_at_once(site, contender, &subject, verb, count)?;
                    micros.push(time);
                    *failures += failed;
                }
            }
        }
        for ((contender, _), (micros, failures)) in sites.iter().zip(of_each) {
            let figures = micros.map(|mut all| {
                all.sort_by(f64::total_cmp);
                Cell::from(quantile(&all, 0.5) / 1e3)
            });
            let head = [Cell::Number(count as f64), contender.name.as_str().into()];
            table.row(head.into_iter().chain(figures).chain([Cell::Number(failures as f64)]).collect::<Vec<_>>());
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let mut drawn = table.clone();
    drawn.columns.truncate(4);
    report.charts.push(chart("scaling-together", "portmap, so many calls at the same time", "processes", &drawn));
    report.tables.push(table);
    Ok(())
}

/// Microseconds until the last has ended, and how many failed.
fn all_at_once(
    site: &Site,
    contender: &Contender,
    subject: &Subject,
    verb: &str,
    count: usize,
) -> Result<(f64, usize)> {
    let members = || (0..count).map(Member);
    let stdins: Vec<Vec<u8>> = members().map(|m| m.config(site, subject).to_string().into_bytes()).collect();
    let mut commands: Vec<_> = members().map(|m| m.command(site, &contender.bin, subject.plugin, verb)).collect();
    site.lab.host.inside(|| launch::timed_together(&mut commands, &stdins))
}
