//! Every plugin × verb × version × condition is as the specification has it.

use std::collections::BTreeMap;

use netns_tests::conformance::{Bench, PLUGINS};
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
