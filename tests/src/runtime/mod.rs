//! Real container runtimes that drive the plugins, and what must hold while they do.
//!
//! Reading order: [`claims`] (promises, each kept or broken), [`recorder`] (keeps every call), [`podman`] and
//! [`containerd`] with its [`cri`] (the runtimes), [`surroundings`] (what else filters or daemons there are on the host,
//! [`docker`] among them),
//! [`scenarios`] (what is done, in terms of claims). The tests run every scenario with our plugins and expect every claim
//! to hold; `make runtimes` runs them with any plugins and prints which do.

use std::ops::Deref;
use std::path::{Path, PathBuf};

pub mod claims;
pub mod containerd;
pub mod cri;
pub mod docker;
pub mod podman;
pub mod recorder;
pub mod scenarios;
pub mod surroundings;

use crate::lab::Lab;
use crate::namespace::Netns;
use crate::runtime::recorder::Recorder;
use crate::sandbox::Sandbox;

/// The plugins that a scenario is about, and under which name its calls are kept.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The directory of the plugins.
    pub plugins: PathBuf,
    /// The scenario's name.
    pub scenario: String,
}

impl Subject {
    /// Our plugins.
    pub fn ours(scenario: &str) -> Subject {
        Subject::at(&crate::plugin::directory(), scenario)
    }

    /// Any plugins.
    pub fn at(plugins: &Path, scenario: &str) -> Subject {
        Subject { plugins: plugins.into(), scenario: scenario.into() }
    }
}

/// A runtime for scenarios that are the same for all.
pub trait Runtime: Deref<Target = Site> {
    /// Starts a container that does nothing, whose port 80 is published over TCP.
    fn run(&self, name: &str, port: u16) -> Running;
    /// Removes it.
    fn remove(&self, running: &Running);

    /// Asks the runtime to call the plugins anew for a container that runs; gives whether it can.
    fn reload(&self, _running: &Running) -> bool {
        false
    }

    /// Where an address still stands: in rules, in firewalld's zones or in state files.
    fn traces_of(&self, address: &str) -> Option<String> {
        let listings =
            ["nft --stateless list ruleset", "iptables-legacy-save", "find /run/cni /run/cni-chain /var/lib/cni"];
        let lines = listings.map(|listing| self.lab.host.try_run(listing).unwrap_or_default()).concat();
        let is_trace =
            |line: &&str| line.split(|c: char| !(c.is_ascii_digit() || c == '.')).any(|word| word == address);
        let found: Vec<&str> = lines.lines().filter(is_trace).collect();
        if found.is_empty() { None } else { Some(found.join("\n")) }
    }
}

/// A container that runs.
#[derive(Debug)]
pub struct Running {
    /// As the runtime knows it.
    pub id: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub address: String,
}

/// A host that a runtime is on, and a client outside.
#[derive(Debug)]
pub struct Site {
    /// The host and the client.
    pub lab: Lab,
    /// What the plugins were called with.
    pub recorder: Recorder,
    /// Where the processes are.
    pub sandbox: Sandbox,
}

impl Site {
    /// A host for `subject` with an own tmpfs on each of `private`.
    #[track_caller]
    pub fn new(subject: &Subject, private: &[&str]) -> Site {
        let lab = Lab::without_bridge();
        let sandbox = Sandbox::new(&lab.host, private);
        let recorder = Recorder::new(&lab.host, &subject.plugins, &subject.scenario);
        Site { lab, recorder, sandbox }
    }

    /// What this host holds of all that is to go with a container.
    pub fn state(&self) -> String {
        state(&self.lab, &self.sandbox)
    }

    /// Waits until no process of this name is left: some end behind the answer that they have.
    #[track_caller]
    fn await_end(&self, name: &str) {
        let runs = || processes(&self.sandbox).iter().any(|comm| comm == name);
        self.lab.host.wait_until(&format!("every {name} has ended"), || !runs());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.recorder.save();
    }
}

/// What plugins and runtimes may leave on a host: rules, qdiscs, links, routes, namespaces, files, mounts and processes.
///
/// A bridge and what all containers share stay when a container goes, so this is compared with what was there after a
/// first container.
fn state(lab: &Lab, sandbox: &Sandbox) -> String {
    const LISTINGS: [&str; 11] = [
        "nft --stateless list ruleset",
        "iptables-nft-save",
        "ip6tables-nft-save",
        "iptables-legacy-save",
        "tc qdisc show",
        "ls /sys/class/net",
        "ip route show table all",
        "sysctl --values --pattern route_localnet net.ipv4",
        "find /run/cni /run/netns /var/lib/cni/results -type f",
        "find /var/lib/cni/networks -type f -not -name last_reserved_ip* -not -name lock",
        "find /var/lib/cni /run/cni-chain -mindepth 1 -maxdepth 1",
    ];
    let lines = |listing: &str| lab.host.try_run(listing).unwrap_or_default().lines().map(settled).collect::<Vec<_>>();
    let mut text = LISTINGS.map(|listing| format!("== {listing}\n{}\n", lines(listing).join("\n"))).concat();
    for (what, mut lines) in [("mounts", mounts(sandbox)), ("processes", processes(sandbox))] {
        lines.sort();
        text += &format!("== {what}\n{}\n", lines.join("\n"));
    }
    text
}

fn mounts(sandbox: &Sandbox) -> Vec<String> {
    let mounts = std::fs::read_to_string(sandbox.path("/proc/1/mounts")).unwrap_or_default();
    mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}

fn processes(sandbox: &Sandbox) -> Vec<String> {
    let comm = |entry: std::fs::DirEntry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        std::fs::read_to_string(entry.path().join("comm")).ok().map(|comm| comm.trim().to_owned())
    };
    std::fs::read_dir(sandbox.path("/proc")).into_iter().flatten().flatten().filter_map(comm).collect()
}

/// iptables-save says when it ran, and counts; a bridge without a running port has no carrier, a moment later; a bridge
/// that is made anew after a reboot has another link-local address.
fn settled(line: &str) -> String {
    let line = if line.starts_with('#') || line.starts_with("local fe80:") { "" } else { line };
    let words = line.split(" [").next().unwrap_or_default().split(' ');
    words.filter(|word| !["linkdown", ""].contains(word)).collect::<Vec<_>>().join(" ")
}
