//! Whether a limit limits: accuracy from the first second on, the wait in a full queue, and the picture of it.
//!
//! All with the burst that containerd fills in where nobody has set one, in both directions, each measurement with a host
//! and a container of its own.

use std::io::{Error, Result};
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::report::{Cell, Chart, Column, Report, Series, Table};
use super::site::{Site, Subject};
use super::{Bench, Case, Contender, quantile};
use crate::lab::CLIENT;
use crate::namespace::Netns;
use crate::traffic::Proto;
use crate::traffic::throughput::{BUCKET, Measured, throughput};
use crate::traffic::wire::{Frames, throughput_on_the_wire};

/// Accuracy with TCP, or with UDP, in one direction.
#[derive(Debug)]
pub struct Accuracy(pub Proto, pub Direction);

/// The wait in a full queue.
#[derive(Debug)]
pub struct Wait;

/// The first seconds of a limited container, as a picture.
#[derive(Debug)]
pub struct Picture;

/// containerd's filler, in bits.
const FILLER: u64 = u32::MAX as u64;

/// What is measured: bits per second.
const RATES: [(&str, u64); 5] =
    [("1M", 1_000_000), ("10M", 10_000_000), ("100M", 100_000_000), ("1G", 1_000_000_000), ("4G", 4_000_000_000)];

/// The item that has no limit.
const UNLIMITED: &str = "none";

/// The fastest that a flow of single datagrams is tried at: a core can send no more of them.
const FASTEST_UDP: u64 = 1_000_000_000;

/// Where the first flow goes.
const PORT: u16 = 5001;

/// Of a measurement of accuracy.
const SECONDS: u32 = 5;

/// Towards the container, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards it.
    Ingress,
    /// From it.
    Egress,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// A container whose traffic is limited by one contender.
struct Limited(Site);

impl Limited {
    fn new(bin: &Path, rate: u64) -> Result<Limited> {
        let site = Site::new();
        let subject = Subject { plugin: "bandwidth", keys: both(rate) };
        let config = site.config(&subject).to_string();
        let run = site.call(bin, subject.plugin, "ADD", config.as_bytes())?;
        if !run.success {
            return Err(Error::other(format!("ADD of {} failed", bin.display())));
        }
        Ok(Limited(site))
    }

    /// One flow by TCP as fast as it goes, as its receiver sees it.
    fn flow(&self, direction: Direction, port: u16, seconds: u32) -> Measured {
        let (from, to, address) = self.ends(direction, port);
        throughput(from, to, Proto::Tcp, &address, seconds)
    }

    /// One flow as fast as it goes, as the receiver's link sees it.
    fn frames(&self, proto: Proto, direction: Direction) -> Frames {
        let (from, to, address) = self.ends(direction, PORT);
        throughput_on_the_wire(from, to, proto, &address, SECONDS)
    }

    fn ends(&self, direction: Direction, port: u16) -> (&Netns, &Netns, String) {
        let (outside, inside) = (&self.0.lab.client, &self.0.container.netns);
        match direction {
            Direction::Ingress => (outside, inside, format!("{}:{port}", self.0.container.addresses[0])),
            Direction::Egress => (inside, outside, format!("{}:{port}", CLIENT[0])),
        }
    }

    /// Round-trip times from the machine outside to the container, in milliseconds, ascending.
    fn round_trips(&self, count: u32) -> Result<Vec<f64>> {
        let line = format!("ping -n -i 0.05 -c {count} -W 10 {}", self.0.container.addresses[0]);
        let shown = self.0.lab.client.try_run(&line).map_err(Error::other)?;
        let time = |line: &str| line.split_once("time=")?.1.split_whitespace().next()?.parse::<f64>().ok();
        let mut times: Vec<f64> = shown.lines().filter_map(time).collect();
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

fn both(rate: u64) -> Value {
    json!({"ingressRate": rate, "ingressBurst": FILLER, "egressRate": rate, "egressBurst": FILLER})
}

/// Of the configured rate, in per cent: the mean, the fullest second, the first second.
fn shares(frames: &Frames, rate: u64) -> [f64; 3] {
    let of_rate = |bits: f64| bits / rate as f64 * 100.0;
    [frames.bits_per_second(), frames.fullest_second(), frames.first_second()].map(of_rate)
}

impl Case for Accuracy {
    fn name(&self) -> &'static str {
        match (self.0, self.1) {
            (Proto::Tcp, Direction::Ingress) => "shaping-tcp-ingress",
            (Proto::Tcp, Direction::Egress) => "shaping-tcp-egress",
            (Proto::Udp, Direction::Ingress) => "shaping-udp-ingress",
            (Proto::Udp, Direction::Egress) => "shaping-udp-egress",
        }
    }

    fn title(&self) -> String {
        format!("Accuracy of a limit: {} {}", self.0, self.1.name())
    }

    fn items(&self) -> Vec<String> {
        let fastest = if self.0 == Proto::Udp { FASTEST_UDP } else { u64::MAX };
        let rates = RATES.into_iter().filter(|(_, rate)| *rate <= fastest);
        std::iter::once(UNLIMITED).chain(rates.map(|(name, _)| name)).map(String::from).collect()
    }

    fn run(&self, bench: &Bench, item: &str) -> Result<Report> {
        match RATES.into_iter().find(|(name, _)| *name == item) {
            Some((name, rate)) => self.limited(bench, name, rate),
            None => Ok(self.unlimited()),
        }
    }
}

impl Accuracy {
    /// What such a flow reaches on this machine.
    fn unlimited(&self) -> Report {
        let mut report = Report::default();
        let columns = vec![Column::text("limit"), Column::number("throughput", "Gbit/s", 2)];
        let mut table = Table::new("Without any limit", columns);
        let reached = Limited(Site::new()).frames(self.0, self.1).bits_per_second();
        table.row([UNLIMITED.into(), Cell::from(reached / 1e9)]);
        report.tables.push(table);
        report
    }

    fn limited(&self, bench: &Bench, name: &str, rate: u64) -> Result<Report> {
        let mut report = Report::default();
        report.notes.push(format!(
            "One flow for {SECONDS} s, first second included, with containerd's filler of 4294967295 bits for the burst. \
             Per cent of the configured rate: the frames that came in by the receiver's link, with all headers; the fullest \
             second is the fullest of all, wherever it begins. A rate that the machine doesn't reach says nothing of the mean."
        ));
        let mut columns = vec![Column::text("limit")];
        for contender in &bench.contenders {
            let column = |what: &str| Column::number(&format!("{}: {what}", contender.name), "%", 1);
            columns.extend(["mean", "fullest second", "first second"].map(column));
        }
        let mut table = Table::new("Throughput", columns);
        let bar = bench.progress(&format!("{} at {name}", self.name()), bench.contenders.len());
        let mut row: Vec<Cell> = vec![name.into()];
        for contender in &bench.contenders {
            let frames = Limited::new(&contender.bin, rate)?.frames(self.0, self.1);
            row.extend(shares(&frames, rate).map(Cell::from));
            bar.inc(1);
        }
        bar.finish_and_clear();
        table.row(row);
        report.tables.push(table);
        Ok(report)
    }
}

/// Of the limit under which the wait is measured.
const WAIT_RATE: u64 = 100_000_000;

/// Round trips while the queue is full.
const PINGS: u32 = 40;

/// TCP flows that fill it: one alone stops growing long before it is full, when it sees its round trips become longer.
const FLOWS: u16 = 8;

impl Case for Wait {
    fn name(&self) -> &'static str {
        "shaping-latency"
    }

    fn title(&self) -> String {
        "The wait in a full queue of 100 Mbit/s".into()
    }

    fn items(&self) -> Vec<String> {
        ["idle", "ingress", "egress"].map(String::from).into()
    }

    fn run(&self, bench: &Bench, item: &str) -> Result<Report> {
        let mut report = Report::default();
        report.notes.push(
            format!(
            "Round trips of ping(8) from outside, idle and behind {FLOWS} TCP flows that fill the queue and have run for 3 s. The \
             configured latency is 25 ms; with the burst that is chosen here, 10 ms at the rate, a packet may wait 35 ms. The \
             reference's queue is as long as the burst it was given. Pings that were dropped do not count."
        ));
        let times = ["median", "95 %", "longest"].map(|what| Column::number(what, "ms", 2));
        let head = [Column::text("flow"), Column::text("plugin")].into_iter().chain(times);
        let mut table = Table::new("Round trips", head.collect());
        let bar = bench.progress(&format!("{} {item}", self.name()), bench.contenders.len());
        for contender in &bench.contenders {
            let limited = Limited::new(&contender.bin, WAIT_RATE)?;
            let times = match item {
                "ingress" => loaded(&limited, Direction::Ingress)?,
                "egress" => loaded(&limited, Direction::Egress)?,
                _ => limited.round_trips(PINGS)?,
            };
            let quantiles = [0.5, 0.95, 1.0].map(|part| Cell::from(quantile(&times, part)));
            let head = [Cell::from(item), contender.name.as_str().into()];
            table.row(head.into_iter().chain(quantiles).collect::<Vec<_>>());
            bar.inc(1);
        }
        bar.finish_and_clear();
        report.tables.push(table);
        Ok(report)
    }
}

fn loaded(limited: &Limited, direction: Direction) -> Result<Vec<f64>> {
    thread::scope(|scope| {
        for port in PORT..PORT + FLOWS {
            scope.spawn(move || limited.flow(direction, port, 6));
        }
        thread::sleep(Duration::from_secs(3));
        limited.round_trips(PINGS)
    })
}

/// Seconds that the picture shows.
const PICTURED: u32 = 8;

impl Case for Picture {
    fn name(&self) -> &'static str {
        "shaping-picture"
    }

    fn title(&self) -> String {
        "The first seconds of a 10 Mbit/s pod".into()
    }

    fn items(&self) -> Vec<String> {
        vec!["10M".into()]
    }

    fn run(&self, bench: &Bench, _: &str) -> Result<Report> {
        let mut report = Report::default();
        report.notes.push(
            "A TCP flow into a container that is limited to 10 Mbit/s as containerd asks for it, each 100 ms. The reference \
             takes containerd's filler, 537 MB, for a burst; its arithmetic wraps around and leaves 193 MB, which pass \
             before the limit begins."
                .into(),
        );
        let bar = bench.progress(self.name(), bench.contenders.len());
        let series = bench.contenders.iter().map(|contender| {
            let line = pictured(contender);
            bar.inc(1);
            line
        });
        let series = series.collect::<Result<Vec<Series>>>()?;
        bar.finish_and_clear();
        let axes = (("time", "s"), ("payload received", "Mbit/s"));
        let title = "A pod limited to 10 Mbit/s: what it receives in each 100 ms";
        let mut chart = Chart::lines("shaping-10M", title, axes.0, axes.1, series);
        chart.y.logarithmic = true;
        report.charts.push(chart);
        Ok(report)
    }
}

fn pictured(contender: &Contender) -> Result<Series> {
    let measured = Limited::new(&contender.bin, 10_000_000)?.flow(Direction::Ingress, PORT, PICTURED);
    let width = BUCKET.as_secs_f64();
    let megabits = |bytes: u64| bytes as f64 * 8.0 / width / 1e6;
    let points = measured.buckets.iter().enumerate().map(|(at, bytes)| (at as f64 * width, megabits(*bytes)));
    Ok(Series::new(&contender.name, points.collect()))
}
