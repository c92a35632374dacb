//! Every plugin × verb × version × condition is as the specification has it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use netns_tests::conformance::{Bench, PLUGINS, combinations};
use netns_tests::plugin::directory;

fn every_combination(plugin: &'static str) {
    let findings = Bench::new(&directory()).run(plugin);
    let mut faults: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for finding in &findings {
        if let Some(fault) = &finding.fault {
            let what = format!(
                "{} {}: expected {:?}, got {fault}",
                finding.verb.as_str(),
                finding.condition,
                finding.expected
            );
            faults.entry(what).or_default().push(finding.version.to_string());
        }
    }
    let lines: Vec<String> =
        faults.iter().map(|(what, versions)| format!("{what} ({})", versions.join(", "))).collect();
    assert!(
        lines.is_empty(),
        "{plugin}: {} of {} combinations differ:\n{}",
        lines.len(),
        findings.len(),
        lines.join("\n")
    );
}

#[test]
fn portmap_is_as_the_specification_has_it() {
    every_combination("portmap");
}

#[test]
fn bandwidth_is_as_the_specification_has_it() {
    every_combination("bandwidth");
}

#[test]
fn firewall_is_as_the_specification_has_it() {
    every_combination("firewall");
}

#[test]
fn tuning_is_as_the_specification_has_it() {
    every_combination("tuning");
}

#[test]
fn no_plugin_is_left_out() {
    assert_eq!(PLUGINS, ["portmap", "bandwidth", "firewall", "tuning"]);
}

/// The page is the table's: as many combinations, all of ours as specified, and the reference beside them.
#[test]
fn the_page_is_of_this_table() {
    let page = include_str!("../../docs/conformance.md");
    let rows: Vec<Vec<&str>> = page.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for plugin in PLUGINS {
        let mut of_plugin = rows.iter().filter(|row| row.len() == 6 && row[2] == plugin);
        let (ours, theirs) = (of_plugin.next().unwrap(), of_plugin.next().unwrap());
        let all = combinations().to_string();
        assert!(ours[1].starts_with("cni-chain "), "{ours:?}");
        assert_eq!((ours[3], ours[4]), (all.as_str(), all.as_str()), "{plugin}: run make conformance, see the page");
        assert!(theirs[1].starts_with("other plugins "), "{theirs:?}");
        assert_eq!(theirs[3], all, "{plugin}: run make conformance, see the page");
    }
}
