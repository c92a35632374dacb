//! Many attachments on one host, beside the one that is looked at.
//!
//! They are made by calls of the plugin. Those of plugins that write iptables' tables would take an hour that way: one is made by
//! the plugin, and the others by iptables-restore(8) of exactly the lines that it has added, with other names, ports and addresses.

use std::io::{Error, Result};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Contender;
use super::calls::ports;
use super::launch::{self, stdin_of};
use super::site::{Site, Subject};
use crate::namespace::Netns;

/// One attachment of many; 0 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member(pub usize);

impl Member {
    /// CNI_CONTAINERID.
    pub fn id(self) -> String {
        format!("pod-{}", self.0)
    }

    /// Its addresses; none of them answers.
    pub fn addresses(self) -> [String; 2] {
        [format!("10.89.{}.{}", self.0 / 250, self.0 % 250 + 1), format!("fd00:89::{:x}", self.0 + 1)]
    }

    /// The port of the host that leads to it.
    pub fn host_port(self) -> usize {
        30_000 + self.0
    }

    /// Its interface in the container's namespace, which all share, and the host's end.
    fn links(self, plugin: &str) -> Option<[String; 2]> {
        // Only bandwidth changes a link.
        (plugin == "bandwidth").then(|| [format!("eth{}", self.0 + 1), format!("many{}", self.0)])
    }

    /// What a plugin gets on stdin for it.
    pub fn config(self, site: &Site, subject: &Subject) -> Value {
        let mut config = site.config(subject);
        let [v4, v6] = self.addresses();
        config["prevResult"]["ips"][0]["address"] = format!("{v4}/24").into();
        config["prevResult"]["ips"][1]["address"] = format!("{v6}/64").into();
        if let Some([inside, outside]) = self.links(subject.plugin) {
            config["prevResult"]["interfaces"][1]["name"] = outside.into();
            config["prevResult"]["interfaces"][2]["name"] = inside.into();
        }
        if subject.plugin == "portmap" {
            config["runtimeConfig"]["portMappings"] = ports(1)["runtimeConfig"]["portMappings"].clone();
            config["runtimeConfig"]["portMappings"][0]["hostPort"] = self.host_port().into();
        }
        config
    }

    /// A call for it.
    pub fn command(self, site: &Site, bin: &Path, plugin: &str, verb: &str) -> Command {
        let mut command = site.command(bin, plugin, verb);
        command.env("CNI_CONTAINERID", self.id());
        if let Some([inside, _]) = self.links(plugin) {
            command.env("CNI_IFNAME", inside);
        }
        command
    }
}

/// A list for GC in which all of them, and the container looked at, live.
pub fn all_alive(site: &Site, subject: &Subject, members: usize) -> Vec<u8> {
    let pods = (0..members).map(|n| {
        let ifname =
            Member(n).links(subject.plugin).map_or_else(|| site.container.ifname.clone(), |[inside, _]| inside);
        json!({"containerID": Member(n).id(), "ifname": ifname})
    });
    let own = json!({"containerID": site.container.id, "ifname": site.container.ifname});
    let mut config = site.config(subject);
    config["cniVersion"] = "1.1.0".into();
    config["prevResult"] = Value::Null;
    config["cni.dev/valid-attachments"] = pods.chain([own]).collect::<Vec<_>>().into();
    config.to_string().into_bytes()
}

/// So many share a container's namespace, where a plugin looks at what others have set there.
const AT_HOME: usize = 50;

/// A contender's host, with more and more attachments beside the one that is looked at.
#[derive(Debug)]
pub struct Crowd<'a> {
    /// Whose plugins.
    pub contender: &'a Contender,
    /// The host, and the container that is looked at.
    pub site: Site,
    subject: &'a Subject,
    /// What makes another attachment without its plugin, where that writes iptables' tables.
    lines: Option<Lines>,
    /// Namespaces of attachments that need one.
    homes: Vec<Netns>,
    there: usize,
    /// Of calls so far.
    took: Duration,
}

/// A contender whose calls would take longer than this for a step gets no further.
const PATIENCE: Duration = Duration::from_secs(60);

impl<'a> Crowd<'a> {
    /// A host without any others yet.
    pub fn new(contender: &'a Contender, subject: &'a Subject) -> Result<Crowd<'a>> {
        let site = Site::new();
        let writes_tables = !contender.is_ours() && matches!(subject.plugin, "portmap" | "firewall");
        let lines = if writes_tables { Lines::of(&site, &contender.bin, subject)? } else { None };
        Ok(Crowd { contender, site, subject, lines, homes: vec![], there: 0, took: Duration::ZERO })
    }

    /// Leaves out what is of IPv6.
    pub fn of_ipv4(mut self) -> Crowd<'a> {
        self.lines = self.lines.map(Lines::of_ipv4);
        self
    }

    /// Whether it would come to so many in a time that is worth it.
    pub fn can_grow(&self, size: usize) -> bool {
        let each = self.took / u32::try_from(self.there.max(1)).unwrap_or(u32::MAX);
        let more = u32::try_from(size.saturating_sub(self.there)).unwrap_or(u32::MAX);
        self.lines.is_some() || self.contender.is_ours() || each.saturating_mul(more) < PATIENCE
    }

    /// Makes it so many; `step` is told how many more there are.
    pub fn grow(&mut self, size: usize, step: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let (members, begun) = (self.there..size, Instant::now());
        match &self.lines {
            Some(lines) => {
                lines.put(&self.site, members.clone())?;
                step(members.len());
            }
            None => self.homes.extend(add(&self.site, &self.contender.bin, self.subject, members, &|| step(1))?),
        }
        self.took += begun.elapsed();
        self.there = size;
        Ok(())
    }
}

/// Makes these by calls of the plugin; `step` is told after each. Those of `tuning` have namespaces of their own, to be kept.
pub fn add(
    site: &Site,
    bin: &Path,
    subject: &Subject,
    members: std::ops::Range<usize>,
    step: &(dyn Fn() + Sync),
) -> Result<Vec<Netns>> {
    let homes = if subject.plugin == "tuning" { homes(members.len()) } else { Vec::new() };
    let links: Vec<String> = members
        .clone()
        .filter_map(|n| Member(n).links(subject.plugin))
        .map(|[inside, outside]| {
            format!("link add {outside} up type veth peer name {inside} netns {}\n", site.container.netns.path())
        })
        .collect();
    site.lab.host.pipe("ip -batch -", &links.concat()).map_err(Error::other)?;
    site.lab.host.inside(|| {
        for (place, member) in members.map(Member).enumerate() {
            let config = member.config(site, subject).to_string();
            let mut command = member.command(site, bin, subject.plugin, "ADD");
            if let Some(home) = homes.get(place / AT_HOME) {
                command.env("CNI_NETNS", home.path());
            }
            let run = launch::timed(&mut command, config.as_bytes())?;
            if !run.success {
                return Err(Error::other(format!("ADD of {} failed: {config}", member.id())));
            }
            step();
        }
        Ok(())
    })?;
    Ok(homes)
}

/// Namespaces for so many attachments, each with an interface to be tuned.
fn homes(members: usize) -> Vec<Netns> {
    let home = |_| {
        let netns = Netns::new("home");
        netns.run("ip link add eth0 type bridge");
        netns
    };
    (0..members.div_ceil(AT_HOME)).map(home).collect()
}

/// What one ADD of the reference adds to the host's tables, by family.
#[derive(Debug)]
struct Lines {
    /// (program, table, lines)
    added: Vec<(&'static str, String, Vec<String>)>,
}

const SAVERS: [(&str, &str); 2] = [("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore")];

impl Lines {
    /// Calls ADD for the first member, and looks at what it adds. If that is nothing, it has gone again.
    fn of(site: &Site, bin: &Path, subject: &Subject) -> Result<Option<Lines>> {
        let config = Member(0).config(site, subject).to_string();
        let call = |verb| {
            let mut command = Member(0).command(site, bin, subject.plugin, verb);
            site.lab.host.inside(|| launch::timed(&mut command, config.as_bytes()))
        };
        call("ADD")?;
        call("DEL")?;
        let before = SAVERS.map(|(save, _)| site.lab.host.try_run(save).unwrap_or_default());
        call("ADD")?;
        let mut added = Vec::new();
        for ((save, restore), before) in SAVERS.into_iter().zip(before) {
            let mut table = String::new();
            let mut lines: Vec<(String, String)> = Vec::new();
            for line in site.lab.host.try_run(save).map_err(Error::other)?.lines() {
                if let Some(name) = line.strip_prefix('*') {
                    table = name.to_owned();
                } else if line.starts_with([':', '-']) && !before.contains(line) {
                    lines.push((table.clone(), line.to_owned()));
                }
            }
            for name in ["filter", "nat"] {
                let of_table: Vec<String> =
                    lines.iter().filter(|(table, _)| table == name).map(|(_, line)| line.clone()).collect();
                added.push((restore, name.to_owned(), of_table));
            }
        }
        if added.iter().all(|(_, _, lines)| lines.is_empty()) {
            call("DEL")?;
            return Ok(None);
        }
        Ok(Some(Lines { added }))
    }

    /// Only those of IPv4.
    fn of_ipv4(mut self) -> Lines {
        self.added.retain(|(restore, _, _)| *restore == SAVERS[0].1);
        self
    }

    /// Puts in the same for these members; the first is there already.
    fn put(&self, site: &Site, members: std::ops::Range<usize>) -> Result<()> {
        for (restore, table, lines) in self.added.iter().filter(|(_, _, lines)| !lines.is_empty()) {
            let mut text = format!("*{table}\n");
            for declared in [true, false] {
                for member in members.clone().filter(|n| *n > 0).map(Member) {
                    for line in lines.iter().filter(|line| line.starts_with(':') == declared) {
                        text += &line_for(line, member);
                        text.push('\n');
                    }
                }
            }
            text += "COMMIT\n";
            let mut command = site.lab.host.command(restore);
            let done = command.arg("--noflush").stdin(stdin_of(text.as_bytes())?).output()?;
            if !done.status.success() {
                return Err(Error::other(format!("{restore}: {}", String::from_utf8_lossy(&done.stderr))));
            }
        }
        Ok(())
    }
}

/// A line of the first member, for another.
fn line_for(line: &str, member: Member) -> String {
    let [old, new] = [Member(0), member].map(|m| {
        let [v4, v6] = m.addresses();
        [v4, v6, m.host_port().to_string(), format!("\\\"{}\\\"", m.id())]
    });
    let line = old.iter().zip(&new).fold(line.to_owned(), |line, (old, new)| line.replace(old.as_str(), new));
    // The attachment's own chain has a hash in its name.
    let words = line.split(' ').map(|word| match word.trim_start_matches(':').starts_with("CNI-DN-") {
        true => format!("{}CNI-DN-bench{:012}", if word.starts_with(':') { ":" } else { "" }, member.0),
        false => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}
