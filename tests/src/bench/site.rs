//! A contender's laboratory: a host, a container, and the calls a runtime would make there.

use std::collections::BTreeMap;
use std::io::Result;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::floor::{self, Extent};
use super::launch::{self, Run};
use super::trace::{self, Traced};
use crate::lab::{Container, Lab};

/// The version the configurations are of.
pub const VERSION: &str = "1.0.0";

/// The network the calls are for.
pub const NETWORK: &str = "bench";

/// What is said to one plugin.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name, as a configuration's `type`.
    pub plugin: &'static str,
    /// Its own keys.
    pub keys: Value,
}

/// A host and one container.
#[derive(Debug)]
pub struct Site {
    /// The host and the machine outside.
    pub lab: Lab,
    /// The container.
    pub container: Container,
}

impl Site {
    /// A fresh host with a container.
    pub fn new() -> Site {
        let lab = Lab::new();
        let container = lab.container(2);
        Site { lab, container }
    }

    /// What the plugin gets on stdin.
    pub fn config(&self, subject: &Subject) -> Value {
        let prev = self.container.prev_result(VERSION);
        let mut config = json!({"cniVersion": VERSION, "name": NETWORK, "type": subject.plugin, "prevResult": prev});
        for (key, value) in subject.keys.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    /// The plugin of a directory with the environment of a call.
    pub fn command(&self, bin: &Path, plugin: &str, verb: &str) -> Command {
        let target = self.container.target();
        let mut command = Command::new(bin.join(plugin));
        command.env_clear().envs(BTreeMap::from([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &target.container),
            ("CNI_NETNS", &target.netns),
            ("CNI_IFNAME", &target.ifname),
            ("CNI_PATH", &bin.display().to_string()),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ]));
        command
    }

    /// Calls a plugin once and takes the time.
    pub fn call(&self, bin: &Path, plugin: &str, verb: &str, config: &[u8]) -> Result<Run> {
        self.lab.host.inside(|| launch::timed(&mut self.command(bin, plugin, verb), config))
    }

    /// Calls a plugin once and counts what it does; `verbatim` also records it.
    pub fn trace(&self, bin: &Path, plugin: &str, verb: &str, stdin: &[u8], verbatim: bool) -> Result<Traced> {
        self.lab.host.inside(|| trace::trace(&mut self.command(bin, plugin, verb), stdin, verbatim))
    }

    /// Records what a plugin says to the kernel, for a floor.
    pub fn record(&self, bin: &Path, plugin: &str, verb: &str, stdin: &[u8], extent: Extent) -> Result<Vec<u8>> {
        let seen = self.trace(bin, plugin, verb, stdin, true)?;
        let index_of = |name: &str| self.lab.host.inside(|| nix::net::if_::if_nametoindex(name).ok());
        Ok(floor::script(&seen, extent, &index_of))
    }
}

impl Default for Site {
    fn default() -> Site {
        Site::new()
    }
}
