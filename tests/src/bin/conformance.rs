//! `make conformance BIN=…`: the specification's table, run against directories of plugins, as Markdown on stdout or
//! in the file `OUT`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use common::cni::Version;
use common::cni::env::Verb;
use netns_tests::conformance::{CONDITIONS, Expect, Finding, PLUGINS, run_all};
use netns_tests::plugin::{banner, directory};

fn main() -> std::io::Result<()> {
    let mut directories: Vec<PathBuf> = vec![directory()];
    directories.extend(std::env::args_os().skip(1).map(PathBuf::from));
    let titles = directories.iter().map(|bin| banner(bin));
    let page = page(&titles.zip(run_all(&directories)).collect::<Vec<_>>());
    match std::env::var_os("OUT").filter(|out| !out.is_empty()) {
        Some(out) => std::fs::write(out, page),
        None => {
            print!("{page}");
            Ok(())
        }
    }
}

fn page(runs: &[(String, Vec<Finding>)]) -> String {
    let mut page = String::from(INTRODUCTION);
    for (title, findings) in runs {
        for plugin in PLUGINS {
            let of_plugin = || findings.iter().filter(|f| f.plugin == plugin);
            let good = of_plugin().filter(|f| f.fault.is_none()).count();
            let _ = writeln!(page, "| {title} | {plugin} | {} | {good} |", of_plugin().count());
        }
    }
    runs.iter().for_each(|(title, findings)| write_faults(&mut page, title, findings));
    page
}

const INTRODUCTION: &str = "# Conformance

Plugins × verbs × versions × conditions, each run through the executable as a runtime would run it, and held against the
specification (SPEC.md of CNI 1.1.0) and, where it is silent, against what libcni does. The table is
[`tests/src/conformance.rs`](../tests/src/conformance.rs); a combination without an expectation can't be written there. This
page is what `make conformance BIN=/usr/lib/cni OUT=docs/conformance.md` writes on Debian 12 with the package
`containernetworking-plugins` (1.1.1).

Not every difference is a fault of the reference: Debian's release is older than CNI 1.1.0, code 999 is its word for every error
of a plugin's own, and CNI_PATH is required by its library though not by the specification.

| plugins | plugin | combinations | as specified |
|---|---|---:|---:|
";

/// Faults of one kind, wherever they came.
#[derive(Default)]
struct Kind<'a> {
    combinations: usize,
    plugins: BTreeSet<&'a str>,
    verbs: BTreeSet<&'a str>,
    versions: BTreeSet<String>,
    conditions: BTreeSet<&'a str>,
}

fn write_faults(page: &mut String, title: &str, findings: &[Finding]) {
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
    let _ =
        writeln!(page, "\n## {title}: {}", if kinds.is_empty() { "everything as specified" } else { "what differs" });
    if !kinds.is_empty() {
        page.push_str("\n| due | came | combinations | plugins | verbs | versions | conditions |\n");
        page.push_str("|---|---|---:|---|---|---|---|\n");
    }
    let mut rows: Vec<_> = kinds.into_iter().collect();
    rows.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.combinations));
    for ((due, fault), kind) in rows {
        let _ = writeln!(
            page,
            "| {due} | {} | {} | {} | {} | {} | {} |",
            fault.replace('|', "\\|"),
            kind.combinations,
            listed(kind.plugins.iter(), PLUGINS.len()),
            listed(kind.verbs.iter(), Verb::ALL.len()),
            listed(kind.versions.iter(), Version::ALL.len()),
            listed(kind.conditions.iter(), CONDITIONS.len()),
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

/// All of them, or "all" if there are no more.
fn listed<T: ToString>(items: impl ExactSizeIterator<Item = T>, of: usize) -> String {
    if items.len() == of {
        return "all".into();
    }
    let items: Vec<String> = items.map(|i| i.to_string()).collect();
    let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN { format!("{shown} and {} more", items.len() - SHOWN) } else { shown }
}

/// How many are named before the rest is only counted.
const SHOWN: usize = 6;
