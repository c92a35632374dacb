//! What the calls cost that nobody waits for but every node makes: STATUS every few seconds, and GC of attachments that are
//! gone.

use std::io::Result;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::{Value, json};

use super::crowd;
use super::report::{Column, Report, Table};
use super::scaling::subject;
use super::site::Site;
use super::{Bench, Case, Contender, PLUGINS, quantile};

/// The case.
#[derive(Debug)]
pub struct Upkeep;

/// Attachments that are gone.
const STALE: usize = 5_000;

/// A link and an ifb each, which the kernel removes one after the other, each with a grace period.
const STALE_OF_BANDWIDTH: usize = 500;

impl Case for Upkeep {
    fn name(&self) -> &'static str {
        "upkeep"
    }

    fn title(&self) -> String {
        "STATUS, and GC of attachments that are gone".into()
    }

    fn items(&self) -> Vec<String> {
        let gc = PLUGINS.map(|plugin| format!("gc {plugin}"));
        std::iter::once("status".into()).chain(gc).collect()
    }

    fn run(&self, bench: &Bench, item: &str) -> Result<Report> {
        let mut report = Report::default();
        report.notes.push("Not of the reference, which knows neither (see calls).".into());
        let plugin = PLUGINS.into_iter().find(|plugin| item.ends_with(plugin));
        for contender in bench.contenders.iter().filter(|contender| !contender.is_reference()) {
            let measured = plugin.map_or_else(|| status(bench, contender), |plugin| gc(bench, contender, plugin))?;
            report.extend(Report { tables: vec![measured], ..Report::default() });
        }
        Ok(report)
    }
}

/// STATUS beside VERSION, which is what starting the program costs.
fn status(bench: &Bench, contender: &Contender) -> Result<Table> {
    let mut columns = vec![Column::text("plugin"), Column::text("plugins")];
    let times = ["STATUS, min", "STATUS, median", "bare exec, min", "bare exec, median"];
    columns.extend(times.map(|name| Column::number(name, "ms", 2)));
    columns.push(Column::number("system calls", "", 0));
    columns.push(Column::number("failures", "", 0));
    let mut table = Table::new("STATUS", columns);
    let rounds = bench.rounds * 5;
    for plugin in PLUGINS {
        let (site, progress) = (Site::new(), bench.progress(&format!("STATUS of {plugin}"), rounds));
        let config = of_1_1(site.config(&subject(plugin)), json!(null));
        let (mut micros, mut failures) = ([Vec::new(), Vec::new()], 0);
        // The first round warms up.
        for round in 0..=rounds {
            for (verb, micros) in ["STATUS", "VERSION"].into_iter().zip(&mut micros) {
                let run = site.call(&contender.bin, plugin, verb, &config)?;
                failures += usize::from(!run.success);
                micros.extend((round > 0).then_some(run.micros / 1e3));
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        let [status, exec] = micros.map(|mut all| {
            all.sort_by(f64::total_cmp);
            [0.0, 0.5].map(|part| quantile(&all, part))
        });
        let syscalls = site.trace(&contender.bin, plugin, "STATUS", &config, false)?.syscalls;
        let figures = [status[0], status[1], exec[0], exec[1], syscalls as f64, failures as f64];
        let cells = figures.into_iter().map(Into::into);
        table.row([plugin.into(), contender.name.as_str().into()].into_iter().chain(cells).collect::<Vec<_>>());
    }
    Ok(table)
}

/// GC of so many attachments of a network whose namespace is gone, beside one that lives, and again when there is nothing
/// left to do.
fn gc(bench: &Bench, contender: &Contender, plugin: &'static str) -> Result<Table> {
    let stale = if plugin == "bandwidth" { STALE_OF_BANDWIDTH } else { STALE };
    let rounds = if plugin == "bandwidth" { 1 } else { bench.rounds.min(3) };
    let progress = bench.progress(&format!("GC of {plugin}"), rounds * stale);
    let (mut first, mut again, mut cpu, mut failures) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let (mut site, subject) = (Site::new(), subject(plugin));
        // All in one namespace, which then goes with its links.
        let gone = site.lab.container(3);
        let living = std::mem::replace(&mut site.container, gone);
        let _homes = crowd::add(&site, &contender.bin, &subject, 0..stale, &|| progress.inc(1))?;
        drop(std::mem::replace(&mut site.container, living));
        let config = site.config(&subject).to_string().into_bytes();
        let alive = site.call(&contender.bin, plugin, "ADD", &config)?;
        let own = json!([{"containerID": site.container.id, "ifname": site.container.ifname}]);
        let list = of_1_1(site.config(&subject), own);
        let before = cpu_of_children();
        let removing = site.call(&contender.bin, plugin, "GC", &list)?;
        cpu.push(cpu_of_children() - before);
        let idle = site.call(&contender.bin, plugin, "GC", &list)?;
        first.push(removing.micros / 1e3);
        again.push(idle.micros / 1e3);
        // The living one is untouched.
        let check = site.call(&contender.bin, plugin, "CHECK", &config)?;
        failures += [alive, removing, idle, check].iter().filter(|run| !run.success).count();
    }
    progress.finish_and_clear();
    [&mut first, &mut again, &mut cpu].into_iter().for_each(|all| all.sort_by(f64::total_cmp));
    let columns = vec![
        Column::text("plugin"),
        Column::text("plugins"),
        Column::number("stale attachments", "", 0),
        Column::number("GC, min", "ms", 1),
        Column::number("GC, median", "ms", 1),
        Column::number("of the processor, median", "ms", 1),
        Column::number("GC again, median", "ms", 1),
        Column::number("failures", "", 0),
    ];
    let mut table = Table::new("GC of attachments that are gone, beside one that lives", columns);
    let times = [quantile(&first, 0.0), quantile(&first, 0.5), quantile(&cpu, 0.5), quantile(&again, 0.5)];
    let cells = std::iter::once(stale as f64).chain(times).chain([failures as f64]).map(Into::into);
    table.row([plugin.into(), contender.name.as_str().into()].into_iter().chain(cells).collect::<Vec<_>>());
    Ok(table)
}

/// Milliseconds of processor time of the programs that have ended, which a busy machine changes little.
fn cpu_of_children() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return f64::NAN };
    let millis = |time: TimeVal| time.num_microseconds() as f64 / 1e3;
    millis(usage.user_time()) + millis(usage.system_time())
}

/// The configuration of a verb that came with CNI 1.1.0.
fn of_1_1(mut config: Value, living: Value) -> Vec<u8> {
    config["cniVersion"] = "1.1.0".into();
    config["prevResult"] = Value::Null;
    config["cni.dev/valid-attachments"] = living;
    config.to_string().into_bytes()
}
