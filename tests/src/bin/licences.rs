//! The licences of what the executables contain: `check` them against `.deny.toml`, or print the `notices`.
//!
//! Reads what cargo-deny reads, so that a machine without it checks licences and sources all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::Deserialize;
use spdx::expression::Expression;
use spdx::{Licensee, ParseMode};

/// How the names of files with a licence text begin, in capitals.
const LICENCE_FILES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What is distributed; everything reached from here by normal dependencies is linked in.
const DISTRIBUTED: [&str; 5] = ["portmap", "bandwidth", "firewall", "tuning", "cni-chain"];

/// Linked in although no crate: name, licence and where its text lies, the command that tells the version.
const NATIVE: [(&str, &str, &[&str]); 4] = [
    ("libnftnl", "GPL-2.0-or-later (GPL-2.0.txt)", &["pkg-config", "--modversion", "libnftnl"]),
    ("libmnl", "LGPL-2.1-or-later (LGPL-2.1.txt)", &["pkg-config", "--modversion", "libmnl"]),
    ("GNU C library", "LGPL-2.1-or-later (LGPL-2.1.txt)", &["getconf", "GNU_LIBC_VERSION"]),
    ("Rust standard library", "MIT OR Apache-2.0, The Rust Project Developers", &["rustc", "--version"]),
];

/// The package version of the libmnl.a that `deploy/setup.sh` has fetched, if it had to.
const FETCHED_LIBMNL: &str = "build/native/libmnl.version";

/// `cargo metadata --format-version 1`, as far as it is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    #[serde(default)]
    authors: Vec<String>,
    /// Nothing for a member of the workspace.
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
    dependencies: Vec<Declared>,
}

/// A dependency as a package declares it.
#[derive(Deserialize)]
struct Declared {
    name: String,
    optional: bool,
}

impl Package {
    fn only_tests_need(&self, dependency: &Package) -> bool {
        self.source.is_none() && self.dependencies.iter().any(|d| d.name == dependency.name && d.optional)
    }
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `build`, `dev`, or nothing for a normal dependency.
    kind: Option<String>,
}

/// `.deny.toml`, as far as it is read here.
#[derive(Deserialize)]
struct Policy {
    graph: Graph,
    licenses: Licences,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Sources {
    #[serde(rename = "allow-registry")]
    allow_registry: Vec<String>,
}

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("check") => check(),
        Some("notices") => notices().map(|text| print!("{text}")),
        _ => Err("usage: licences check|notices".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("licences: {error}");
            ExitCode::FAILURE
        }
    }
}

fn policy() -> Outcome<Policy> {
    Ok(toml::from_str(&std::fs::read_to_string(root().join(".deny.toml"))?)?)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn metadata(platform: &str) -> Outcome<Metadata> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", platform])
        .current_dir(root())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn check() -> Outcome<()> {
    let policy = policy()?;
    let mut complaints = BTreeSet::new();
    let mut used = BTreeSet::new();
    for platform in &policy.graph.targets {
        for package in metadata(platform)?.packages.iter().filter(|p| p.source.is_some()) {
            complaints.extend(complaint(&policy, package, &mut used)?);
        }
    }
    let idle = policy.licenses.exceptions.iter().filter(|e| !used.contains(&e.name));
    complaints.extend(idle.map(|e| format!("the exception for {} in .deny.toml is not needed", e.name)));
    if complaints.is_empty() {
        return Ok(());
    }
    Err(complaints.into_iter().collect::<Vec<_>>().join("\nlicences: ").into())
}

/// Why `package` is against the policy; the exception it needs, if any, goes to `used`.
fn complaint(policy: &Policy, package: &Package, used: &mut BTreeSet<String>) -> Outcome<Option<String>> {
    let named = format!("{} {}", package.name, package.version);
    let source = package.source.as_deref().unwrap_or_default();
    if !policy.sources.allow_registry.iter().any(|r| source.strip_prefix("registry+") == Some(r)) {
        return Ok(Some(format!("{named} comes from {source}, which .deny.toml does not allow")));
    }
    let Some(licence) = &package.license else {
        return Ok(Some(format!("{named} names no licence")));
    };
    if is_satisfied(licence, &policy.licenses.allow)? {
        return Ok(None);
    }
    for exception in policy.licenses.exceptions.iter().filter(|e| e.name == package.name) {
        used.insert(exception.name.clone());
        if is_satisfied(licence, &exception.allow)? {
            return Ok(None);
        }
    }
    Ok(Some(format!("{named} is under {licence}, which .deny.toml does not allow")))
}

/// Whether the licences in `allowed` suffice for an expression as crates write it, such as `MIT/Apache-2.0`.
fn is_satisfied(expression: &str, allowed: &[String]) -> Outcome<bool> {
    let allowed = allowed.iter().map(|name| Licensee::parse(name)).collect::<Result<Vec<_>, _>>();
    let allowed = allowed.map_err(|e| e.to_string())?;
    let expression = Expression::parse_mode(expression, ParseMode::LAX).map_err(|e| e.to_string())?;
    Ok(expression.evaluate(|wanted| allowed.iter().any(|licence| licence.satisfies(wanted))))
}

/// The packages compiled for what is distributed: no procedural macros, build scripts or tests.
///
/// The linker leaves out what is never called, so this names rather too many than too few. Optional dependencies of our
/// own are for the tests.
fn linked(metadata: &Metadata) -> Vec<&Package> {
    let packages: BTreeMap<&str, &Package> = metadata.packages.iter().map(|p| (p.id.as_str(), p)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|n| (n.id.as_str(), n)).collect();
    let is_distributed = |p: &&Package| p.source.is_none() && DISTRIBUTED.contains(&p.name.as_str());
    let mut waiting: Vec<&str> = metadata.packages.iter().filter(is_distributed).map(|p| p.id.as_str()).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        let is_macro =
            packages.get(id).is_none_or(|p| p.targets.iter().any(|t| t.kind.iter().any(|k| k == "proc-macro")));
        if is_macro || !seen.insert(id) {
            continue;
        }
        let normal = |d: &&Dependency| d.dep_kinds.iter().any(|k| k.kind.is_none());
        let is_optional = |to: &&str| match (packages.get(id), packages.get(to)) {
            (Some(package), Some(dependency)) => package.only_tests_need(dependency),
            _ => false,
        };
        let dependencies = nodes.get(id).into_iter().flat_map(|n| n.deps.iter().filter(normal));
        waiting.extend(dependencies.map(|d| d.pkg.as_str()).filter(|to| !is_optional(to)));
    }
    let mut linked: Vec<&Package> = seen.iter().filter_map(|id| packages.get(id).copied()).collect();
    linked.retain(|p| p.source.is_some());
    linked.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    linked
}

/// The notices: what is linked in, under which licence, and each licence text once with the crates that carry it.
fn notices() -> Outcome<String> {
    let platform = policy()?.graph.targets.into_iter().next().ok_or("no [graph] targets in .deny.toml")?;
    let metadata = metadata(&platform)?;
    let mut text = String::from("Third-party software in the cni-chain executables\n\n");
    for (name, licence, command) in NATIVE {
        writeln!(text, "{name} ({}): {licence}", native_version(name, command)?)?;
    }
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in linked(&metadata) {
        let named = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("no licence named");
        writeln!(text, "{named}: {licence}{}", authors(package))?;
        for body in licence_texts(package)? {
            texts.entry(body).or_default().insert(named.clone());
        }
    }
    for (body, carriers) in texts {
        let carriers = carriers.into_iter().collect::<Vec<_>>().join(", ");
        write!(text, "\n{}\n{carriers}\n\n{}\n", "=".repeat(80), body.trim_end())?;
    }
    Ok(text)
}

fn authors(package: &Package) -> String {
    if package.authors.is_empty() { String::new() } else { format!("; {}", package.authors.join(", ")) }
}

fn native_version(name: &str, command: &[&str]) -> Outcome<String> {
    let fetched = std::fs::read_to_string(root().join(FETCHED_LIBMNL));
    if let ("libmnl", Ok(version)) = (name, fetched) {
        return Ok(format!("Debian {}", version.trim()));
    }
    let [program, arguments @ ..] = command else { return Err("no command".into()) };
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        return Err(format!("{} can't tell the version of {name}", command.join(" ")).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn licence_texts(package: &Package) -> Outcome<Vec<String>> {
    let Some(folder) = package.manifest_path.parent() else { return Ok(Vec::new()) };
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.file_type()?.is_file() && LICENCE_FILES.iter().any(|start| name.starts_with(start)) {
            texts.push(String::from_utf8_lossy(&std::fs::read(entry.path())?).replace('\r', ""));
        }
    }
    texts.sort();
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_its_own_policy() {
        check().unwrap();
    }

    #[test]
    fn apache_alone_is_refused_because_it_does_not_go_together_with_the_gpl_version_2() {
        let allow = policy().unwrap().licenses.allow;
        assert!(!is_satisfied("Apache-2.0", &allow).unwrap());
        assert!(!is_satisfied("MIT AND Apache-2.0", &allow).unwrap());
        assert!(is_satisfied("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", &allow).unwrap());
        assert!(is_satisfied("MIT/Apache-2.0", &allow).unwrap());
    }

    #[test]
    fn a_crate_from_elsewhere_than_the_registry_is_refused() {
        let package = Package {
            id: String::new(),
            name: "stray".into(),
            version: "1.0.0".into(),
            license: Some("MIT".into()),
            authors: Vec::new(),
            source: Some("git+https://example.org/stray".into()),
            manifest_path: PathBuf::new(),
            targets: Vec::new(),
            dependencies: Vec::new(),
        };
        let complaint = complaint(&policy().unwrap(), &package, &mut BTreeSet::new()).unwrap().unwrap();
        assert!(complaint.contains("stray 1.0.0 comes from git+https://example.org/stray"), "{complaint}");
    }

    #[test]
    fn what_is_linked_in_is_noticed_and_what_only_builds_it_is_not() {
        let platform = &policy().unwrap().graph.targets[0];
        let metadata = metadata(platform).unwrap();
        let names: BTreeSet<&str> = linked(&metadata).iter().map(|p| p.name.as_str()).collect();
        for linked_in in ["nftnl-sys", "mnl-sys", "serde_json", "netlink-packet-route"] {
            assert!(names.contains(linked_in), "{linked_in} is missing in {names:?}");
        }
        for building_only in ["serde_derive", "thiserror-impl", "pkg-config", "spdx", "tempfile", "common"] {
            assert!(!names.contains(building_only), "{building_only} is not linked in");
        }
    }
}
