//! Every conflist that the project gives away works: with real main plugins, with traffic, and without leftovers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use netns_tests::plugin::{cni_path, directory};
use netns_tests::{Host, Lab, Netns, Plugin, Proto, Snapshot, fetch, serve};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:90:09";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conflists").canonicalize().unwrap()
}

fn conflists() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let json = serde_json::from_slice(&std::fs::read(&path).unwrap());
        (name.clone(), json.unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    files.filter(|path| path.extension().is_some_and(|e| e == "conflist")).map(read).collect()
}

/// One conflist in the hands of `cni-chain`, on a host of its own.
struct Trial {
    lab: Lab,
    container: Netns,
    id: &'static str,
    file: PathBuf,
    list: Value,
}

impl Trial {
    fn of(file: PathBuf) -> Trial {
        let list = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        Trial { lab: Lab::without_bridge(), container: Netns::new("container"), id: "first", file, list }
    }

    fn host(&self) -> &Host {
        &self.lab.host
    }

    fn has(&self, plugin: &str) -> bool {
        self.list["plugins"].as_array().unwrap().iter().any(|p| p["type"] == plugin)
    }

    fn declares(&self, capability: &str) -> bool {
        self.list["plugins"].as_array().unwrap().iter().any(|p| p["capabilities"][capability] == true)
    }

    /// What a runtime would pass on, for the capabilities that there are.
    fn given(&self) -> Vec<&'static str> {
        let mut words = Vec::new();
        if self.declares("portMappings") {
            words.extend(["--port", "8080:80/tcp", "--port", "8080:80/udp"]);
        }
        if self.declares("bandwidth") {
            words.extend(["--ingress-rate", "50M", "--egress-rate", "50M"]);
        }
        if self.declares("mac") {
            words.extend(["--mac", MAC]);
        }
        words
    }

    fn try_run(&self, verb: &str, words: &[&str]) -> Output {
        let mut command = self.host().command(Plugin::ours("cni-chain").path());
        command.args([verb, "--json", "--path", &cni_path()]).arg(&self.file);
        command.args([self.container.path().as_str(), "--container-id", self.id]).args(words);
        command.output().unwrap()
    }

    #[track_caller]
    fn run(&self, verb: &str, words: &[&str]) -> Value {
        let output = self.try_run(verb, words);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{verb} of {}: {stdout}", self.file.display());
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report.get("remarks"), None, "{verb} of {}", self.file.display());
        report
    }

    /// What the container got is what the conflist's plugins are for.
    #[track_caller]
    fn works(&self) {
        let name = self.file.display();
        let served = serve(&self.container, 80, "from the container");
        if self.has("portmap") {
            for (proto, to) in
                Proto::ALL.into_iter().flat_map(|p| ["192.0.2.1:8080", "[2001:db8:2::1]:8080"].map(|to| (p, to)))
            {
                let reply = fetch(&self.lab.client, proto, to);
                assert_eq!(reply.map(|r| r.token), Ok("from the container".into()), "{name}: {to}/{proto}");
            }
        }
        drop(served);
        let shown = self.host().run("tc qdisc show");
        assert_eq!(shown.contains("tbf"), self.has("bandwidth"), "{name}: {shown}");
        let shown = self.container.run("ip link show eth0");
        assert_eq!(shown.contains(MAC), self.declares("mac"), "{name}: {shown}");
        for plugin in self.list["plugins"].as_array().unwrap() {
            for (key, value) in plugin["sysctl"].as_object().into_iter().flatten() {
                let shown = self.container.run(&format!("sysctl -n {key}"));
                assert_eq!(Some(shown.trim()), value.as_str(), "{name}: {key}");
            }
        }
    }

    /// ADD, traffic, CHECK, DEL and DEL again.
    #[track_caller]
    fn once(&self) {
        let added = self.run("add", &self.given());
        let ips = added["result"]["ips"].as_array().map(Vec::len);
        assert_eq!(ips, Some(2), "{}: one address of each family: {added}", self.file.display());
        self.works();
        self.run("check", &[]);
        self.run("del", &[]);
        self.run("del", &self.given());
    }

    /// Main plugins keep their bridge and our tables their skeleton, so what counts is what the second time adds.
    #[track_caller]
    fn twice(mut self) {
        // Only the firewall plugin gets a container past a host that forwards nothing.
        if self.has("firewall") {
            self.host().drop_forwarded();
        }
        self.once();
        let before = self.snapshot();
        self.id = "second";
        self.once();
        let diff = before.diff(&self.snapshot());
        let left: Vec<&str> =
            diff.lines().filter(|l| !l.starts_with("==") && !l.contains("last_reserved_ip")).collect();
        assert!(left.is_empty(), "{} leaves: {diff}", self.file.display());
    }

    /// The state when the bridge, if there is one, has noticed that its last port is gone.
    fn snapshot(&self) -> Snapshot {
        if let Some(bridge) = self.list["plugins"][0]["bridge"].as_str() {
            let line = format!("ip -o link show {bridge}");
            self.host().wait_until("the bridge is down", || self.host().run(&line).contains("NO-CARRIER"));
        }
        self.host().snapshot()
    }
}

/// One test for each file, so that they run side by side; `every_file_is_executed` minds that none is left out.
macro_rules! executed {
    ($($test:ident: $file:literal),* $(,)?) => {
        const EXECUTED: &[&str] = &[$($file),*];
        $(
            #[test]
            fn $test() {
                Trial::of(folder().join($file)).twice();
            }
        )*
    };
}

executed! {
    bridge_with_all_four_works: "10-bridge-full.conflist",
    ptp_with_ports_and_limits_works: "20-ptp-ports-limits.conflist",
    kubernetes_works: "30-kubernetes.conflist",
    isolated_works: "40-isolated.conflist",
    podman_works: "87-podman.conflist",
}

#[test]
fn every_file_is_executed() {
    let files: Vec<String> = conflists().into_keys().collect();
    assert_eq!(files, EXECUTED, "the files of conflists/ and the tests here");
}

#[test]
fn every_file_is_explained() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for file in conflists().keys() {
        assert!(readme.contains(&format!("| [`{file}`]({file}) |")), "conflists/README.md has no line on {file}");
    }
}

#[test]
fn networks_and_bridges_are_different_in_every_file() {
    let mut seen = std::collections::BTreeSet::new();
    for (file, list) in conflists() {
        let names = [&list["name"], &list["plugins"][0]["bridge"]];
        for name in names.into_iter().filter_map(Value::as_str) {
            assert!(seen.insert(name.to_owned()), "{file}: {name} is another file's as well");
        }
        let ranges = list["plugins"][0]["ipam"]["ranges"].as_array().unwrap();
        for range in ranges {
            assert!(seen.insert(range[0]["subnet"].to_string()), "{file}: {range} is another file's as well");
        }
    }
}

#[test]
fn the_entries_to_append_work_behind_a_main_plugin() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let blocks: Vec<&str> = readme.split("```json\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        let mut plugins: Vec<Value> = serde_json::from_str(&format!("[{block}]")).unwrap();
        plugins.insert(0, netns_tests::bridge_conf("cni0", &["10.89.0.0/24", "fd00:89::/64"]));
        let list = json!({"cniVersion": "1.0.0", "name": "appended", "plugins": plugins});
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("appended.conflist");
        std::fs::write(&file, list.to_string()).unwrap();
        Trial::of(file).twice();
    }
}

#[test]
fn the_executables_are_there() {
    assert!(directory().join("cni-chain").is_file(), "make build");
}
