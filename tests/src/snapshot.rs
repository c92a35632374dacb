//! Everything that plugins may leave in a namespace, as text, and what has changed in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use similar::{ChangeTag, TextDiff};

use crate::host::Host;
use crate::mounts;
use crate::namespace::Netns;

/// The commands whose output is state. Counters and handles are left out, because traffic and time change them.
const LISTINGS: [&str; 13] = [
    "nft --stateless list ruleset",
    "iptables-nft-save",
    "ip6tables-nft-save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "tc qdisc show",
    "ip -d link show",
    "ip address show",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip -4 rule show",
    "ip -6 rule show",
    "bridge link show",
];

/// Sysctls below /proc/sys/net that change by themselves.
const VOLATILE: [&str; 6] =
    ["nf_conntrack_count", "random_secret", "stable_secret", "tcp_fastopen_key", "fib_multipath_hash_seed", "flush"];

/// Files that network tools write in /run whatever they are asked.
const PASSING: [&str; 2] = ["/run/xtables.lock", crate::firewalld::LOG];

/// A part of the state, for a glance at it: a whole snapshot takes a tenth of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What nf_tables holds, that of iptables-nft included.
    Rules,
    /// What iptables-legacy holds.
    LegacyRules,
    /// Links, qdiscs and filters.
    Links,
    /// Addresses and routes.
    Addresses,
    /// The sysctls of the network.
    Sysctls,
    /// Files in the private directories; directories are no state.
    Files,
}

impl Part {
    fn listings(self) -> &'static [&'static str] {
        match self {
            Part::Rules => &["nft --stateless list ruleset"],
            Part::LegacyRules => &["iptables-legacy-save", "ip6tables-legacy-save"],
            Part::Links => &["ip -d link show", "tc qdisc show"],
            Part::Addresses => &["ip address show", "ip -4 route show table all", "ip -6 route show table all"],
            Part::Sysctls | Part::Files => &[],
        }
    }
}

/// The state of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<String, String>,
}

impl Snapshot {
    /// What a reader would call it, and what it holds.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sections.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The lines that have changed from `self` to `after`, under the names of their sections; empty if none.
    pub fn diff(&self, after: &Snapshot) -> String {
        let mut out = String::new();
        let names: std::collections::BTreeSet<&String> = self.sections.keys().chain(after.sections.keys()).collect();
        for name in names {
            let text = |snapshot: &Snapshot| snapshot.sections.get(name).cloned().unwrap_or_default();
            let (old, new) = (text(self), text(after));
            if old == new {
                continue;
            }
            let _ = writeln!(out, "== {name}");
            let changes = TextDiff::from_lines(&old, &new);
            let lines: Vec<(ChangeTag, &str)> = changes
                .iter_all_changes()
                .filter(|change| change.tag() != ChangeTag::Equal)
                .map(|change| (change.tag(), change.value().trim_end()))
                .collect();
            show(&lines, &mut out);
        }
        out
    }
}

/// Lines longer than this are shown by the words that differ.
const LONG: usize = 160;

fn show(mut lines: &[(ChangeTag, &str)], out: &mut String) {
    loop {
        lines = match lines {
            [] => return,
            [(ChangeTag::Delete, old), (ChangeTag::Insert, new), rest @ ..] if old.len().min(new.len()) > LONG => {
                let _ = writeln!(out, "~ {}", words_that_differ(old, new));
                rest
            }
            [(tag, line), rest @ ..] => {
                let _ = writeln!(out, "{} {line}", if *tag == ChangeTag::Delete { '-' } else { '+' });
                rest
            }
        };
    }
}

/// `bridge … hello_time [- 200] [+ 100] …`
fn words_that_differ(old: &str, new: &str) -> String {
    let [old, new] = [old, new].map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut shown: Vec<String> = old.iter().take(1).map(|word| format!("{word} …")).collect();
    let mut before = "";
    for change in TextDiff::from_slices(&old, &new).iter_all_changes() {
        let word = *change.value_ref();
        match change.tag() {
            ChangeTag::Equal => before = word,
            tag => {
                let sign = if tag == ChangeTag::Delete { '-' } else { '+' };
                shown.push(format!("{} [{sign} {word}]", std::mem::take(&mut before)).trim().to_owned());
            }
        }
    }
    shown.join(" ")
}

impl Netns {
    /// The state of this namespace: rules, qdiscs, filters, links, addresses, routes and sysctls.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        let mut sections = BTreeMap::new();
        for listing in LISTINGS {
            let text = self.try_run(listing).unwrap_or_else(|e| absent(listing, e));
            sections.insert(listing.to_owned(), without_noise(listing, &text));
        }
        sections.insert("tc filter show".into(), self.filters());
        sections.insert("sysctl net".into(), self.inside(sysctls));
        Snapshot { sections }
    }

    /// These parts of the state of this namespace.
    #[track_caller]
    pub fn glance(&self, parts: &[Part]) -> Snapshot {
        let mut sections = BTreeMap::new();
        for listing in parts.iter().flat_map(|part| part.listings()) {
            let text = self.try_run(listing).unwrap_or_else(|e| absent(listing, e));
            sections.insert((*listing).to_owned(), without_noise(listing, &text));
        }
        if parts.contains(&Part::Links) {
            sections.insert("tc filter show".into(), self.filters());
        }
        if parts.contains(&Part::Sysctls) {
            sections.insert("sysctl net".into(), self.inside(sysctls));
        }
        if parts.contains(&Part::Files) {
            sections.insert("files".into(), self.inside(files_alone));
        }
        Snapshot { sections }
    }

    /// Fails the test, showing what has changed, unless this namespace is as it was in `before`.
    #[track_caller]
    pub fn assert_same_as(&self, before: &Snapshot) {
        let diff = before.diff(&self.snapshot());
        assert!(diff.is_empty(), "{} is not as it was before:\n{diff}", self.name());
    }

    /// Filters must be asked for by interface and parent; there are none but on qdiscs that somebody made.
    fn filters(&self) -> String {
        let qdiscs = self.run("tc qdisc show");
        let mut out = String::new();
        for qdisc in qdiscs.lines() {
            let words: Vec<&str> = qdisc.split_whitespace().collect();
            let Some(ifname) = words.iter().position(|word| *word == "dev").and_then(|at| words.get(at + 1)) else {
                continue;
            };
            let parents: &[&str] = match words.get(1).copied().unwrap_or_default() {
                "noqueue" | "pfifo_fast" | "mq" => &[],
                "ingress" => &["parent ffff:"],
                "clsact" => &["parent ffff:fff2", "parent ffff:fff3"],
                _ => &["root"],
            };
            for parent in parents {
                let shown = self.try_run(&format!("tc filter show dev {ifname} {parent}")).unwrap_or_default();
                // The kernel adds this to an action once anybody has listed the actions.
                let shown: String =
                    shown.split_inclusive('\n').filter(|line| !line.contains("used_hw_stats")).collect();
                if !shown.trim().is_empty() {
                    let _ = writeln!(out, "dev {ifname} {parent}\n{shown}");
                }
            }
        }
        out
    }
}

impl Host {
    /// The state of this host: that of its network namespace, and the files in its private directories.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Netns::snapshot(self);
        snapshot.sections.insert("files".into(), self.inside(files_alone));
        snapshot
    }

    /// Fails the test, showing what has changed, unless this host is as it was in `before`.
    #[track_caller]
    pub fn assert_same_as(&self, before: &Snapshot) {
        let diff = before.diff(&self.snapshot());
        assert!(diff.is_empty(), "{} is not as it was before:\n{diff}", self.name());
    }
}

/// Files in the private directories. Directories are no state: those of state files stay when they are empty.
fn files_alone() -> String {
    let is_file = |line: &&str| line.split(' ').nth(1).is_some_and(|mode| !mode.starts_with("40"));
    files().lines().filter(is_file).map(|line| format!("{line}\n")).collect()
}

/// A listing that this machine can't give is the same before and after; anything else that goes wrong must be seen.
#[track_caller]
fn absent(listing: &str, error: String) -> String {
    let legacy_is_missing = listing.contains("legacy") || listing.contains("tables-nft");
    assert!(legacy_is_missing, "a snapshot can't be taken: {error}");
    String::new()
}

/// A listing without what changes by itself.
fn without_noise(listing: &str, text: &str) -> String {
    let lines = text.lines().filter_map(|line| match listing.split(' ').next() {
        Some("ip" | "bridge") => settled(line),
        Some("nft" | "tc") => Some(line.to_owned()),
        _ => saved(line),
    });
    lines.fold(String::new(), |out, line| out + &line + "\n")
}

/// A line of iptables-save, without its date, and without the counters of a chain.
fn saved(line: &str) -> Option<String> {
    let dated = line.starts_with("# Generated by") || line.starts_with("# Completed on");
    let line = if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line };
    (!dated).then(|| line.to_owned())
}

/// A line of iproute2, without timers and without what follows the carrier: the kernel works that off later, up to a
/// second (net/core/link_watch.c).
///
/// `ip -d link` shows the timers of a bridge and its ports as seconds with two decimals, without a name. The width of the
/// space between words depends on them.
fn settled(line: &str) -> Option<String> {
    let is_timer = |word: &str| {
        let parts = word.split_once('.');
        parts.is_some_and(|(s, cs)| cs.len() == 2 && [s, cs].iter().all(|n| n.bytes().all(|b| b.is_ascii_digit())))
    };
    let text = line.trim_start();
    if text.starts_with("valid_lft") {
        return None;
    }
    let mut words = text.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "expires" | "state" => drop(words.next()),
            "linkdown" => {}
            timer if is_timer(timer) => {}
            flags if flags.starts_with('<') => kept.push(administrative(flags)),
            other => kept.push(other.to_owned()),
        }
    }
    Some(" ".repeat(line.len() - text.len()) + &kept.join(" "))
}

/// `<BROADCAST,UP,LOWER_UP>` without what isn't set by anybody.
fn administrative(flags: &str) -> String {
    let words = flags.trim_matches(['<', '>']).split(',');
    let kept: Vec<&str> = words.filter(|flag| !["LOWER_UP", "NO-CARRIER", "M-DOWN"].contains(flag)).collect();
    format!("<{}>", kept.join(","))
}

fn sysctls() -> String {
    let mut out = String::new();
    walk(Path::new("/proc/sys/net"), &mut |path, _| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !VOLATILE.contains(&name.as_ref()) {
            // Some can't be read, or not by everybody; they stay unreadable.
            let value = fs::read_to_string(path).unwrap_or_default();
            let _ = writeln!(out, "{} = {}", path.display(), value.trim_end().replace('\n', "\\n"));
        }
    });
    out
}

fn files() -> String {
    let mut out = String::new();
    for dir in mounts::PRIVATE {
        walk(Path::new(dir), &mut |path, meta| {
            if PASSING.iter().any(|passing| Path::new(passing) == path) {
                return;
            }
            let mode = std::os::unix::fs::MetadataExt::mode(meta);
            let content = if meta.is_file() { fs::read(path).unwrap_or_default() } else { Vec::new() };
            let _ = writeln!(out, "{} {mode:o} {:?}", path.display(), String::from_utf8_lossy(&content));
        });
    }
    out
}

/// Visits every file and directory below `dir`, in order, not following links.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata)) {
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            if !path.starts_with("/proc") {
                visit(&path, &meta);
            }
            walk(&path, visit);
        } else {
            visit(&path, &meta);
        }
    }
}
