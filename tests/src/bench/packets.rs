//! What a packet pays on its way: new connections and throughput, with one entry and with thousands.
//!
//! The container looked at is the newest: of linear rules, its are the last.

use std::io::{Error, Result};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::socket::{Backlog, listen};
use serde_json::json;

use super::calls::ports;
use super::crowd::Crowd;
use super::report::{Cell, Chart, Column, Report, Series, Table};
use super::site::{Site, Subject};
use super::{Bench, Case, quantile};
use crate::lab::{CLIENT, HOST};
use crate::namespace::Netns;
use crate::traffic::Proto;
use crate::traffic::throughput::throughput_via;

/// The case.
#[derive(Debug)]
pub struct Packets;

const PLUGINS: [&str; 2] = ["portmap", "firewall"];

const ENTRIES: [usize; 4] = [1, 100, 1_000, 10_000];

/// A figure is made of so many measurements, contender after contender.
const TURNS: usize = 4;

/// New connections of one.
const CONNECTIONS: usize = 500;

/// How many are made at the same time where their rate is measured.
const AT_ONCE: usize = 2;

/// Connections that wait for their acceptance at the most (net.core.somaxconn).
const ROOM: i32 = 4_096;

/// Of a throughput, in seconds.
const SECONDS: u32 = 1;

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
            format!(
                "The container is the newest of so many. The reference's other rules are put in by iptables-restore, exactly as \
                 its plugin writes them; only IPv4's, because only IPv4 is measured. Times of connections one after the other, \
                 rates of {AT_ONCE} at a time; {TURNS} turns of {CONNECTIONS} connections and of a flow of {SECONDS} s."
            ),
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
    let subject = Subject { plugin, keys: if plugin == "portmap" { ports(1) } else { json!({}) } };
    let crowds = bench.contenders.iter().map(|contender| Ok(Crowd::new(contender, &subject)?.of_ipv4()));
    let mut crowds: Vec<Crowd<'_>> = crowds.collect::<Result<_>>()?;
    if plugin == "firewall" {
        crowds.iter().for_each(|crowd| crowd.site.lab.host.drop_forwarded());
    }
    let mut series: Vec<Series> = crowds.iter().map(|crowd| Series::new(&crowd.contender.name, vec![])).collect();
    let progress = bench.progress(&format!("packets through {plugin}"), ENTRIES[3] * crowds.len());
    for entries in ENTRIES {
        for crowd in &mut crowds {
            crowd.grow(entries - 1, &|steps| progress.inc(steps as u64))?;
        }
        for ((crowd, figures), line) in crowds.iter().zip(with_containers(&crowds, &subject)?).zip(&mut series) {
            line.points.push((entries as f64, figures[0]));
            let mut row = vec![Cell::Number(entries as f64), crowd.contender.name.as_str().into()];
            row.extend(figures.map(Cell::from));
            table.row(row);
        }
    }
    progress.finish_and_clear();
    let title = format!("A new connection through {plugin}, by number of entries");
    report.charts.push(
        Chart::lines(&format!("packets-{plugin}"), &title, ("entries", ""), ("median", "µs"), series).logarithmic(),
    );
    report.tables.push(table);
    Ok(())
}

/// ADD, measure in turns, DEL: so the containers stay the newest.
fn with_containers(crowds: &[Crowd<'_>], subject: &Subject) -> Result<Vec<[f64; 4]>> {
    let ways = crowds.iter().map(|crowd| way(&crowd.site, subject)).collect::<Result<Vec<Way<'_>>>>()?;
    let call = |verb| {
        crowds.iter().try_for_each(|Crowd { site, contender, .. }| {
            let run = site.call(&contender.bin, subject.plugin, verb, site.config(subject).to_string().as_bytes())?;
            let failed = || Error::other(format!("{verb} of {} {} failed", contender.name, subject.plugin));
            if run.success { Ok(()) } else { Err(failed()) }
        })
    };
    call("ADD")?;
    let (mut micros, mut rates, mut flows) =
        (vec![Vec::new(); ways.len()], vec![0.0; ways.len()], vec![0.0; ways.len()]);
    for _ in 0..TURNS {
        for (((way, micros), rate), flow) in ways.iter().zip(&mut micros).zip(&mut rates).zip(&mut flows) {
            micros.extend(new_connections(way, 1)?.0);
            *rate += new_connections(way, AT_ONCE)?.1 / TURNS as f64;
            let throughput = throughput_via(way.from, way.to, Proto::Tcp, way.address, way.via, SECONDS);
            *flow += throughput.bits_per_second() / 1e9 / TURNS as f64;
        }
    }
    call("DEL")?;
    let figures = micros.into_iter().zip(rates).zip(flows).map(|((mut micros, rate), flow)| {
        micros.sort_by(f64::total_cmp);
        [quantile(&micros, 0.5), quantile(&micros, 0.95), rate, flow]
    });
    Ok(figures.collect())
}

fn way<'a>(site: &'a Site, subject: &Subject) -> Result<Way<'a>> {
    let (client, container) = (&site.lab.client, &site.container.netns);
    let at = |address: &str, port| -> Result<SocketAddr> {
        Ok(SocketAddr::new(address.parse().map_err(Error::other)?, port))
    };
    if subject.plugin == "portmap" {
        let address = at(&site.container.addresses[0], 80)?;
        Ok(Way { from: client, to: container, address, via: at(HOST[0], 20_000)? })
    } else {
        let address = at(CLIENT[0], 80)?;
        Ok(Way { from: container, to: client, address, via: address })
    }
}

/// How long each of many connections takes to be made, in microseconds, and how many there are in a second; so many at once.
fn new_connections(way: &Way<'_>, at_once: usize) -> Result<(Vec<f64>, f64)> {
    let listener = way.to.inside(|| TcpListener::bind(("0.0.0.0", 80)))?;
    // As many as there will be: one for which there is no room is tried again after a second.
    listen(&listener, Backlog::new(ROOM)?)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // The connection is closed at once; the last one only ends the loop.
                let _ = listener.accept();
            }
        });
        // The first ones resolve neighbours.
        let warm = connections(way, 20);
        let begun = Instant::now();
        let each = |_| scope.spawn(|| connections(way, CONNECTIONS / at_once));
        let connecting: Vec<_> = (0..at_once).map(each).collect();
        let made: Result<Vec<Vec<f64>>> = connecting
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect();
        let took = begun.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let _ = way.from.inside(|| TcpStream::connect(way.via));
        let _ = accepting.join();
        let made = warm.and(made)?.concat();
        let rate = made.len() as f64 / took;
        Ok((made, rate))
    })
}

/// Makes so many, one after the other.
fn connections(way: &Way<'_>, count: usize) -> Result<Vec<f64>> {
    way.from.inside(|| {
        let connect = |_| {
            let begun = Instant::now();
            TcpStream::connect(way.via).map(|_| begun.elapsed().as_secs_f64() * 1e6)
        };
        (0..count).map(connect).collect()
    })
}
