//! Recorded calls of real runtimes, and hosts on which they can be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::host::Host;
use crate::namespace::{End, Netns, connect};
use crate::plugin::{Outcome, Plugin};

/// Where the recordings are, one folder each.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recorded")
}

/// The recordings there are.
pub fn recordings() -> BTreeSet<String> {
    let entries = fs::read_dir(fixtures()).unwrap().flatten().filter(|entry| entry.path().is_dir());
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// One recorded call.
#[derive(Clone, Debug)]
pub struct Call {
    /// `RECORDING/NNN-PLUGIN-VERB`
    pub name: String,
    /// The plugin that was called.
    pub plugin: String,
    /// Its variables: those of CNI, in older recordings PATH too.
    pub env: BTreeMap<String, String>,
    /// Byte for byte.
    pub stdin: String,
    /// What was answered (in the fixtures: by the reference), byte for byte, if anything.
    pub stdout: Option<String>,
    /// Exit code, where it is known; the fixtures have successful calls only.
    pub exit: Option<i32>,
}

impl Call {
    /// The call whose files in `dir` begin with `stem`.
    pub fn read(dir: &Path, stem: &str) -> Call {
        let file = |kind: &str| fs::read_to_string(dir.join(format!("{stem}.{kind}")));
        let recording = dir.file_name().unwrap_or_default().to_string_lossy();
        let env = file("env").unwrap();
        let env = env.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
        Call {
            name: format!("{recording}/{stem}"),
            plugin: stem.split('-').nth(1).unwrap().to_owned(),
            env: env.collect(),
            stdin: file("stdin.json").unwrap(),
            stdout: file("stdout.json").ok(),
            exit: file("exit").ok().and_then(|code| code.trim().parse().ok()),
        }
    }

    /// The calls of one recording, in order.
    pub fn all(recording: &str) -> Vec<Call> {
        Call::all_in(&fixtures().join(recording))
    }

    /// The calls in a directory, in order.
    pub fn all_in(dir: &Path) -> Vec<Call> {
        let stems: BTreeSet<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|file| file.split_once('.').unwrap().0.to_owned())
            .collect();
        stems.iter().map(|stem| Call::read(dir, stem)).collect()
    }

    /// CNI_COMMAND.
    pub fn verb(&self) -> &str {
        &self.env["CNI_COMMAND"]
    }

    /// Plugin, container and interface: by these the ADD of a DEL is found.
    pub fn attachment(&self) -> [&str; 3] {
        [&self.plugin, &self.env["CNI_CONTAINERID"], &self.env["CNI_IFNAME"]]
    }

    /// Its stdin as JSON.
    pub fn config(&self) -> Value {
        serde_json::from_str(&self.stdin).unwrap()
    }

    /// The prevResult it was called with; null if none.
    pub fn prev_result(&self) -> Value {
        self.config()["prevResult"].clone()
    }

    /// Its stdin, with `netns` in the place of the namespace that was recorded.
    pub fn stdin_for(&self, netns: &str) -> String {
        self.relocated(&self.stdin, netns)
    }

    /// Its CNI variables, likewise.
    pub fn env_for(&self, netns: &str) -> Vec<(&str, String)> {
        let cni = self.env.iter().filter(|(name, _)| name.starts_with("CNI_"));
        cni.map(|(name, value)| (name.as_str(), self.relocated(value, netns))).collect()
    }

    /// What the reference answered, likewise.
    pub fn answer_for(&self, netns: &str) -> Value {
        let text = self.stdout.as_deref().unwrap_or_else(|| panic!("{}: the recording has no answer", self.name));
        serde_json::from_str(&self.relocated(text, netns)).unwrap()
    }

    fn relocated(&self, text: &str, netns: &str) -> String {
        let recorded = &self.env["CNI_NETNS"];
        if recorded.is_empty() { text.to_owned() } else { text.replace(recorded, netns) }
    }

    /// Repeats it with one of our plugins.
    #[track_caller]
    pub fn replay(&self, host: &Host, netns: &str) -> Outcome {
        Plugin::ours(&self.plugin).call_with_env(host, &self.env_for(netns), self.stdin_for(netns).as_bytes())
    }

    /// The CHECK that a runtime would make of this ADD with its `result`; it must succeed. Versions before 0.4.0 have none.
    #[track_caller]
    pub fn check(&self, host: &Host, netns: &str, result: &Value) {
        let mut config: Value = serde_json::from_str(&self.stdin_for(netns)).unwrap();
        if ["0.1", "0.2", "0.3"].iter().any(|old| config["cniVersion"].as_str().is_none_or(|v| v.starts_with(old))) {
            return;
        }
        config["prevResult"] = result.clone();
        let mut env = self.env_for(netns);
        env.iter_mut().filter(|(name, _)| *name == "CNI_COMMAND").for_each(|(_, verb)| *verb = "CHECK".into());
        Plugin::ours(&self.plugin).call_with_env(host, &env, config.to_string().as_bytes()).succeeds();
    }
}

/// A host and a container as the plugins before have left them.
#[derive(Debug)]
pub struct Stage {
    /// Where the plugin runs.
    pub host: Host,
    /// The container's namespace.
    pub container: Netns,
}

impl Stage {
    /// By the prevResult of `call`: the bridge, the host's end of the pair, and the container's, with its addresses.
    pub fn set(call: &Call) -> Stage {
        let stage = Stage { host: Host::new(), container: Netns::new("container") };
        let prev = call.prev_result();
        let interfaces = prev["interfaces"].as_array().unwrap();
        let of = |inside: bool| {
            let there = interfaces.iter().filter(move |i| i["sandbox"].is_string() == inside);
            there.map(|i| i["name"].as_str().unwrap()).collect::<Vec<_>>()
        };
        let (on_host, in_container) = (of(false), of(true));
        let addresses: Vec<&str> =
            prev["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
        stage.host.run(&format!("ip link add {} type bridge", on_host[0]));
        stage.host.run(&format!("ip link set {} up", on_host[0]));
        connect(End::new(&stage.host, on_host[1], &[]), End::new(&stage.container, in_container[0], &addresses));
        stage.host.run(&format!("ip link set {} master {}", on_host[1], on_host[0]));
        let mac = interfaces.iter().find(|i| i["sandbox"].is_string()).and_then(|i| i["mac"].as_str()).unwrap();
        stage.container.run(&format!("ip link set {} address {mac}", in_container[0]));
        for gateway in prev["ips"].as_array().unwrap().iter().filter_map(|ip| ip["gateway"].as_str()) {
            let prefix = addresses.iter().find(|a| a.contains(':') == gateway.contains(':')).unwrap();
            stage.host.address(on_host[0], &format!("{gateway}/{}", prefix.split_once('/').unwrap().1));
        }
        stage
    }
}
