//! What a packet pays on its way: new connections and throughput, with one entry and with thousands.
//!
//! The container looked at is the newest: of linear rules, its are the last.

use std::io::{Error, Result};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::calls::ports;
use super::crowd::{self, Lines};
use super::report::{Cell, Chart, Column, Report, Series, Table};
use super::site::{Site, Subject};
use super::{Bench, Case, Contender, quantile};
use crate::lab::{CLIENT, HOST};
use crate::namespace::Netns;
use crate::traffic::Proto;
use crate::traffic::throughput::throughput_via;

/// The case.
#[derive(Debug)]
pub struct Packets;

const PLUGINS: [&str; 2] = ["portmap", "firewall"];

const ENTRIES: [usize; 4] = [1, 100, 1_000, 10_000];

/// New connections a figure is made of.
const CONNECTIONS: usize = 2_000;

/// Of a throughput, in seconds.
const SECONDS: u32 = 2;

/// Where who listens, and whom the others ask.
struct Way<'a> {
    from: &'a Netns,
    to: &'a Netns,
    /// Of the listener.
    address: SocketAddr,
    /// What is asked.
    via: SocketAddr,
}

impl Case for Packets {
    fn name(&self) -> &'static str {
        "packets"
    }

    fn title(&self) -> String {
        "What a packet pays: new connections and throughput, by number of entries".into()
    }

    fn items(&self) -> Vec<String> {
        PLUGINS.map(String::from).into()
    }

    fn run(&self, bench: &Bench, item: &str) -> Result<Report> {
        let mut report = Report::default();
        report.notes.push(
            "The container is the newest of so many. The reference's other rules are put in by iptables-restore, exactly as \
             its plugin writes them; only IPv4's, because only IPv4 is measured."
                .into(),
        );
        for plugin in PLUGINS.into_iter().filter(|plugin| *plugin == item) {
            measure(bench, &mut report, plugin)?;
        }
        Ok(report)
    }
}

fn measure(bench: &Bench, report: &mut Report, plugin: &'static str) -> Result<()> {
    let mut columns = vec![Column::number("entries", "", 0), Column::text("plugins")];
    columns.extend(["median", "p95"].map(|name| Column::number(&format!("new connection, {name}"), "µs", 1)));
    columns.push(Column::number("new connections", "1/s", 0));
    columns.push(Column::number("throughput", "Gbit/s", 2));
    let mut table = Table::new(&format!("through {plugin}"), columns);
    let mut series = Vec::new();
    for contender in &bench.contenders {
        let mut line = Series::new(&contender.name, vec![]);
        let subject = Subject { plugin, keys: if plugin == "portmap" { ports(1) } else { json!({}) } };
        let (site, mut there) = (Site::new(), 1);
        if plugin == "firewall" {
            site.lab.host.drop_forwarded();
        }
        let is_ours = bench.contenders.first().is_some_and(|ours| ours.bin == contender.bin);
        let lines = if is_ours { None } else { Some(Lines::of(&site, &contender.bin, &subject)?.of_ipv4()) };
        let progress = bench.progress(&format!("packets through {plugin}: {}", contender.name), ENTRIES[3]);
        for entries in ENTRIES {
            match &lines {
                None => drop(crowd::add(&site, &contender.bin, &subject, there - 1..entries - 1, &|| progress.inc(1))?),
                Some(lines) => lines.put(&site, there - 1..entries - 1)?,
            }
            there = entries;
            let figures = with_container(&site, contender, &subject)?;
            line.points.push((entries as f64, figures[0]));
            let mut row = vec![Cell::Number(entries as f64), contender.name.as_str().into()];
            row.extend(figures.map(Cell::from));
            table.row(row);
        }
        progress.finish_and_clear();
        series.push(line);
    }
    let title = format!("A new connection through {plugin}, by number of entries");
    report.charts.push(
        Chart::lines(&format!("packets-{plugin}"), &title, ("entries", ""), ("median", "µs"), series).logarithmic(),
    );
    report.tables.push(table);
    Ok(())
}

/// ADD, measure, DEL: so the container stays the newest.
fn with_container(site: &Site, contender: &Contender, subject: &Subject) -> Result<[f64; 4]> {
    let config = site.config(subject).to_string();
    let call = |plugin, verb, config: &str| {
        let run = site.call(&contender.bin, plugin, verb, config.as_bytes())?;
        if run.success { Ok(()) } else { Err(Error::other(format!("{verb} of {} {plugin} failed", contender.name))) }
    };
    let (client, container) = (&site.lab.client, &site.container.netns);
    let at = |address: &str, port| -> Result<SocketAddr> {
        Ok(SocketAddr::new(address.parse().map_err(Error::other)?, port))
    };
    let way = if subject.plugin == "portmap" {
        let address = at(&site.container.addresses[0], 80)?;
        Way { from: client, to: container, address, via: at(HOST[0], 20_000)? }
    } else {
        let address = at(CLIENT[0], 80)?;
        Way { from: container, to: client, address, via: address }
    };
    call(subject.plugin, "ADD", &config)?;
    let mut micros = new_connections(&way)?;
    let seconds = micros.iter().sum::<f64>() / 1e6;
    micros.sort_by(f64::total_cmp);
    let flow = throughput_via(way.from, way.to, Proto::Tcp, way.address, way.via, SECONDS);
    call(subject.plugin, "DEL", &config)?;
    let rate = micros.len() as f64 / seconds;
    Ok([quantile(&micros, 0.5), quantile(&micros, 0.95), rate, flow.bits_per_second() / 1e9])
}

/// How long each of many connections takes to be made, one after the other, in microseconds.
fn new_connections(way: &Way<'_>) -> Result<Vec<f64>> {
    let listener = way.to.inside(|| TcpListener::bind(("0.0.0.0", 80)))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // The connection is closed at once; the last one only ends the loop.
                let _ = listener.accept();
            }
        });
        let made = way.from.inside(|| {
            let connect = || {
                let begun = Instant::now();
                TcpStream::connect(way.via).map(|_| begun.elapsed().as_secs_f64() * 1e6)
            };
            // The first ones resolve neighbours.
            for _ in 0..20 {
                connect()?;
            }
            (0..CONNECTIONS).map(|_| connect()).collect::<Result<Vec<f64>>>()
        });
        stop.store(true, Ordering::Relaxed);
        let _ = way.from.inside(|| TcpStream::connect(way.via));
        let _ = accepting.join();
        made
    })
}
