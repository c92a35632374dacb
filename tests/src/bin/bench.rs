//! `make bench`: what the plugins cost, ours beside the reference's, as tables, as data and as pictures.
//!
//! Environment: `CASE` (`NAME` or `NAME/ITEM`; what contains it is run), `ROUNDS` (default 30), `BIN` (more directories
//! of plugins, separated by colons), `OUT` (a directory for `results.json`, a picture a chart, and a page).

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use netns_tests::bench::report::store::{Machine, Store};
use netns_tests::bench::report::{Chapter, text};
use netns_tests::bench::{Bench, Contender, chosen};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let variable = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    let rounds = variable("ROUNDS").map_or(Ok(30), |r| r.parse().map_err(|error| format!("ROUNDS={r}: {error}")))?;
    let more: Vec<PathBuf> = std::env::split_paths(&variable("BIN").unwrap_or_default())
        .filter(|dir| !dir.as_os_str().is_empty())
        .map(|dir| dir.canonicalize().unwrap_or(dir))
        .collect();
    let chosen = chosen(&variable("CASE").unwrap_or_default())?;
    let bench = Bench::new(rounds, &more);
    bench.check()?;
    let bench = bench.settle()?;
    let machine = Machine::here(versions(&bench.contenders));
    let mut store = match variable("OUT") {
        Some(out) => Some(Store::open(Path::new(&out), machine, &chosen)?),
        None => None,
    };
    for (case, items) in chosen {
        let mut measured = Vec::new();
        for item in items {
            let report = case.run(&bench, &item)?;
            measured.push((item, report));
        }
        println!("{}", text::plain(&Chapter::of(case.as_ref(), measured.iter().map(|(_, report)| report))));
        if let Some(store) = &mut store {
            store.put(case.as_ref(), rounds, &measured)?;
        }
    }
    Ok(())
}

/// Of which commit what the plugins are made of is, and whether it has been changed since; nothing outside a repository.
fn sources() -> String {
    const PATHS: [&str; 6] = ["--", "common", "plugins", "deploy", "Cargo.toml", "Cargo.lock"];
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-C", concat!(env!("CARGO_MANIFEST_DIR"), "/..")]).args(arguments).args(PATHS);
        let said = command.output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["log", "-1", "--format=%h"]).filter(|commit| !commit.is_empty()) else {
        return String::new();
    };
    let changed = git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty());
    format!(" ({commit}{})", if changed { ", changed" } else { "" })
}

/// What each contender and the tools beside them say of themselves.
fn versions(contenders: &[Contender]) -> Vec<(String, String)> {
    let said = |command: &mut Command| {
        let output = command.output().map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().unwrap_or_default().trim().to_owned()
    };
    let version = |text: String| {
        let word =
            text.split_whitespace().find(|w| w.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()));
        word.map_or(text.clone(), |w| w.trim_start_matches('v').trim_end_matches(',').to_owned())
    };
    let mut all = Vec::new();
    for contender in contenders {
        let banner = said(Command::new(contender.bin.join("portmap")).env_clear().arg("--version"));
        let mut own = banner.rsplit(' ').next().unwrap_or_default().to_owned();
        if own == "unknown" {
            // Debian's don't know.
            let package = ["-W", "-f", "${Version}", "containernetworking-plugins"];
            own = said(Command::new("dpkg-query").args(package));
        }
        if contender.is_ours() {
            own += &sources();
        }
        all.push((contender.name.clone(), own));
    }
    for (tool, option) in [("iptables", "--version"), ("nft", "--version"), ("rustc", "--version")] {
        all.push((tool.into(), version(said(Command::new(tool).arg(option)))));
    }
    all
}
