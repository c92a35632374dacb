//! `make conformance BIN=…`: the specification's table, run against directories of plugins, as Markdown on stdout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use netns_tests::conformance::{Bench, Expect, Finding, PLUGINS};
use netns_tests::plugin::{banner, directory};

fn main() {
    let mut directories: Vec<PathBuf> = vec![directory()];
    directories.extend(std::env::args_os().skip(1).map(PathBuf::from));
    println!("# Conformance\n");
    println!("Plugins × verbs × versions × conditions, run through the binaries (`make conformance BIN=…`).\n");
    println!("| directory | plugin | combinations | as specified |\n|---|---|---:|---:|");
    let runs: Vec<(String, Vec<Finding>)> = directories.iter().map(|d| (banner(d), run(d))).collect();
    for (title, findings) in &runs {
        for plugin in PLUGINS {
            let of_plugin = || findings.iter().filter(|f| f.plugin == plugin);
            let good = of_plugin().filter(|f| f.fault.is_none()).count();
            println!("| {title} | {plugin} | {} | {good} |", of_plugin().count());
        }
    }
    for (title, findings) in &runs {
        print_faults(title, findings);
    }
}

fn run(bin: &Path) -> Vec<Finding> {
    let bench = Bench::new(bin);
    PLUGINS.iter().flat_map(|plugin| bench.run(plugin)).collect()
}

/// Faults of one kind, wherever they came.
#[derive(Default)]
struct Kind<'a> {
    combinations: usize,
    plugins: BTreeSet<&'a str>,
    verbs: BTreeSet<&'a str>,
    versions: BTreeSet<String>,
    conditions: BTreeSet<&'a str>,
}

fn print_faults(title: &str, findings: &[Finding]) {
    let mut kinds: BTreeMap<(String, &str), Kind<'_>> = BTreeMap::new();
    for finding in findings {
        let Some(fault) = &finding.fault else { continue };
        let kind = kinds.entry((expectation(finding.expected), fault)).or_default();
        kind.combinations += 1;
        kind.plugins.insert(finding.plugin);
        kind.verbs.insert(finding.verb.as_str());
        kind.versions.insert(finding.version.to_string());
        kind.conditions.insert(finding.condition);
    }
    println!("\n## {title}: {}\n", if kinds.is_empty() { "everything as specified" } else { "what differs" });
    if !kinds.is_empty() {
        println!(
            "| due | came | combinations | plugins | verbs | versions | conditions |\n|---|---|---:|---|---|---|---|"
        );
    }
    let mut rows: Vec<_> = kinds.into_iter().collect();
    rows.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.combinations));
    for ((due, fault), kind) in rows {
        println!(
            "| {due} | {} | {} | {} | {} | {} | {} |",
            fault.replace('|', "\\|"),
            kind.combinations,
            listed(kind.plugins.iter(), 4),
            listed(kind.verbs.iter(), 6),
            listed(kind.versions.iter(), 7),
            listed(kind.conditions.iter(), 3),
        );
    }
}

fn expectation(expected: Expect) -> String {
    match expected {
        Expect::Result => "a result".into(),
        Expect::Silence => "success".into(),
        Expect::Versions => "every version, the given one echoed".into(),
        Expect::Banner => "what the program is, on stderr".into(),
        Expect::Code(code) => format!("error {code}"),
    }
}

/// The first `most` of them, and how many more there are.
fn listed<T: ToString>(items: impl ExactSizeIterator<Item = T>, most: usize) -> String {
    let more = items.len().saturating_sub(most);
    let shown: Vec<String> = items.take(most).map(|i| i.to_string()).collect();
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{tail}", shown.join(", "))
}
