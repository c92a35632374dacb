//! The fuzzing targets hold for every seed, for every finding of earlier runs, and for what a seed can be spoilt to.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use netns_tests::fuzzed::TARGETS;
use netns_tests::mutation::mutations;
use netns_tests::recorded::{Call, fixtures, recordings};
use proptest::prelude::*;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn target(name: &str) -> fn(&[u8]) {
    TARGETS.into_iter().find(|(target, _)| *target == name).unwrap().1
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_finding_stays_mended() {
    let mut seen = 0;
    for (name, run) in TARGETS {
        let findings = fuzz().join("findings").join(name);
        for finding in if findings.exists() { files(&findings) } else { Vec::new() } {
            println!("{}", finding.display());
            run(&std::fs::read(finding).unwrap());
            seen += 1;
        }
    }
    assert!(seen > 0, "there have been findings");
}

#[test]
fn every_target_is_a_program() {
    let mut programs: Vec<String> = files(&fuzz().join("fuzz_targets"))
        .iter()
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    programs.sort();
    let mut targets = TARGETS.map(|(name, _)| name);
    targets.sort();
    assert_eq!(programs, targets);
    let script = include_str!("../fuzz.sh");
    for (name, _) in TARGETS {
        assert!(script.lines().any(|line| line.starts_with("targets=") && line.contains(name)), "fuzz.sh lacks {name}");
    }
}

#[test]
fn every_recorded_call_holds() {
    let mut calls = 0;
    for call in recordings().iter().flat_map(|recording| Call::all(recording)) {
        target(&call.plugin)(call.stdin.as_bytes());
        target("result")(call.stdout.as_deref().unwrap_or_default().as_bytes());
        target("environment")(&std::fs::read(fixtures().join(format!("{}.env", call.name))).unwrap());
        calls += 1;
    }
    assert!(calls > 100, "{calls}");
}

/// One call of each plugin, with every kind of nonsense in every place.
#[test]
fn spoilt_calls_hold() {
    for plugin in ["portmap", "bandwidth", "firewall", "tuning"] {
        let calls = Call::all("podman-custom");
        let call = calls.into_iter().filter(|c| c.plugin == plugin && c.verb() == "ADD").max_by_key(|c| c.stdin.len());
        for mutant in mutations(&call.unwrap().config()) {
            target(plugin)(mutant.to_string().as_bytes());
            target("result")(mutant["prevResult"].to_string().as_bytes());
        }
    }
}

proptest! {
    #[test]
    fn any_environment_holds(
        id in "[a-zA-Z0-9_./ -]{0,20}", ifname in ".{0,17}", args in "[A-Z=;1\\n]{0,20}", over in "(true|TRUE|1|0)?",
    ) {
        let lines = [("CONTAINERID", id), ("IFNAME", ifname), ("NETNS", "/x".into()), ("ARGS", args), ("NETNS_OVERRIDE", over)];
        let text: String = lines.iter().map(|(name, value)| format!("CNI_{name}={value}\n")).collect();
        target("environment")(text.as_bytes());
    }
}
