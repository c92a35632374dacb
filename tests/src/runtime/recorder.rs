//! Stands between a runtime and the plugins under test, and keeps every call: stdin, variables and answer.
//!
//! The runtime's plugin directory holds the main plugins as links and, in the place of each plugin under test, a script
//! that writes the call down and passes it on. [`Recorder::hold`] stops such a call after its work is done and before the
//! runtime hears of it: there a runtime is killed.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::host::Host;
use crate::namespace::must;
use crate::plugin::Plugin;
use crate::recorded::{self, Call};

/// The plugins under test.
pub const PLUGINS: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

/// What stands before and below them.
const MAIN_PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];

/// The runtime's plugin directory, on the test host.
pub const BIN: &str = "/run/recorder/bin";

const CALLS: &str = "/run/recorder/calls";

/// `date` makes the names sort in calling order: a runtime calls one plugin of a chain after the other.
const SCRIPT: &str = r#"#!/bin/sh
at=/run/recorder/calls/$(date +%s%N)-PLUGIN-$CNI_COMMAND
env | grep -E '^CNI_(ARGS|COMMAND|CONTAINERID|IFNAME|NETNS|PATH)=' | sort >"$at.env"
cat >"$at.stdin.json"
REAL <"$at.stdin.json" >"$at.stdout.json" 2>"$at.stderr"
status=$?
echo $status >"$at.exit"
if rm "/run/recorder/hold/PLUGIN-$CNI_COMMAND" 2>/dev/null; then
    : >/run/recorder/held
    while [ -e /run/recorder/held ]; do sleep 0.02; done
fi
cat "$at.stderr" >&2
cat "$at.stdout.json"
exit $status
"#;

/// The recording scripts on one test host.
#[derive(Debug)]
pub struct Recorder {
    /// The directory is on the host's own `/run`: from here it is reached by a descriptor only.
    calls: fs::File,
    scenario: String,
}

impl Recorder {
    /// Lays out [`BIN`] on `host` for the plugins in `directory`; `scenario` names the recording.
    #[track_caller]
    pub fn new(host: &Host, directory: &Path, scenario: &str) -> Recorder {
        for plugin in PLUGINS {
            let real = directory.join(plugin);
            assert!(real.is_file(), "{} does not exist", real.display());
            let script = SCRIPT.replace("PLUGIN", plugin).replace("REAL", &real.display().to_string());
            host.write(&format!("{BIN}/{plugin}"), script);
            host.run(&format!("chmod +x {BIN}/{plugin}"));
        }
        for plugin in MAIN_PLUGINS {
            host.run(&format!("ln -s {} {BIN}/{plugin}", Plugin::reference(plugin).path().display()));
        }
        host.run(&format!("mkdir -p {CALLS} /run/recorder/hold"));
        let calls = host.inside(|| fs::File::open(CALLS));
        Recorder { calls: must(calls.map_err(|e| format!("{CALLS}: {e}"))), scenario: scenario.into() }
    }

    /// The next call of this plugin with this verb will do its work, and its answer will be held back.
    #[track_caller]
    pub fn hold(&self, host: &Host, plugin: &str, verb: &str) {
        host.write(&format!("/run/recorder/hold/{plugin}-{verb}"), "");
    }

    /// Waits until a call is held.
    #[track_caller]
    pub fn await_held(&self, host: &Host) {
        host.wait_until("a call is held", || host.try_run("test -e /run/recorder/held").is_ok());
    }

    /// Lets it go on.
    #[track_caller]
    pub fn release(&self, host: &Host) {
        host.run("rm /run/recorder/held");
    }

    /// Every call so far that has been answered, in calling order.
    pub fn calls(&self) -> Vec<Call> {
        let calls = PathBuf::from(format!("/proc/self/fd/{}", self.calls.as_raw_fd()));
        let names = fs::read_dir(&calls).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let stems: BTreeSet<String> = names.filter_map(|name| name.strip_suffix(".exit").map(str::to_owned)).collect();
        stems.iter().map(|stem| Call::read(&calls, stem)).collect()
    }

    /// How the answered calls ended that failed: plugin, verb and what was said.
    pub fn failures(&self) -> Vec<String> {
        let failed = |call: &Call| call.exit.is_some_and(|exit| exit != 0);
        let said = |call: &Call| call.stdout.clone().unwrap_or_default();
        self.calls().iter().filter(|call| failed(call)).map(|call| format!("{}: {}", call.name, said(call))).collect()
    }

    /// Writes all calls to [`kept`], in the form of the fixtures.
    pub fn save(&self) {
        let dir = kept(&self.scenario);
        let _ = fs::remove_dir_all(&dir);
        for (n, call) in self.calls().iter().enumerate() {
            let (plugin, verb) = (&call.plugin, call.verb());
            let write =
                |kind: &str, text: &str| fs::write(dir.join(format!("{:03}-{plugin}-{verb}.{kind}", n + 1)), text);
            let env: String = call.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            let written = fs::create_dir_all(&dir).and_then(|()| write("env", &env));
            let written = written.and_then(|()| write("stdin.json", &call.stdin));
            let answer = call.stdout.as_deref().filter(|text| !text.is_empty());
            let written = written.and_then(|()| answer.map_or(Ok(()), |text| write("stdout.json", text)));
            written.unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        }
    }
}

/// Where a scenario's calls are kept: `build/recorded/SCENARIO`, or below `CNI_CHAIN_RECORD`.
pub fn kept(scenario: &str) -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../build/recorded");
    let root = std::env::var_os("CNI_CHAIN_RECORD").filter(|dir| !dir.is_empty());
    root.map_or(default.into(), PathBuf::from).join(scenario)
}

/// Which of the calls have a shape that no fixture has, each shape once.
pub fn unknown(calls: &[Call]) -> Vec<&Call> {
    let known = recorded::recordings().into_iter().flat_map(|name| Call::all(&name)).map(|call| shape(&call));
    let mut seen: BTreeSet<String> = known.collect();
    calls.iter().filter(|call| seen.insert(shape(call))).collect()
}

/// What a plugin can tell apart in a call, but for names, numbers and addresses.
pub fn shape(call: &Call) -> String {
    let value = |name: &str| call.env.get(name).map_or("", String::as_str);
    let netns = match value("CNI_NETNS") {
        "" => "empty",
        path if path.starts_with('/') => "path",
        other => other,
    };
    let mut args: Vec<&str> = value("CNI_ARGS").split(';').map(|pair| pair.split('=').next().unwrap_or("")).collect();
    args.sort_unstable();
    let stdin = skeleton("", &call.config());
    format!("{} {} netns={netns} args={args:?} {stdin}", call.plugin, call.verb())
}

fn skeleton(key: &str, value: &Value) -> String {
    match value {
        Value::Object(map) => {
            // An empty dns is left out by newer plugins, written by older ones.
            let told = map.iter().filter(|(k, v)| *k != "dns" || v.as_object().is_none_or(|dns| !dns.is_empty()));
            let members: BTreeSet<String> = told.map(|(k, v)| format!("{k}:{}", skeleton(k, v))).collect();
            format!("{{{}}}", members.into_iter().collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            let kinds: BTreeSet<String> = items.iter().map(|item| skeleton("", item)).collect();
            format!("[{}]", kinds.into_iter().collect::<Vec<_>>().join(","))
        }
        // These are what the call is about; of other texts only whether there is one.
        Value::String(text) if ["cniVersion", "type", "protocol", "Protocol"].contains(&key) => text.clone(),
        Value::String(text) if text.is_empty() => "\"\"".into(),
        Value::String(_) => "text".into(),
        Value::Number(n) if n.as_u64() == Some(0) => "0".into(),
        Value::Number(_) => "number".into(),
        other => other.to_string(),
    }
}
