//! How many instructions a call needs in user space: a figure that is the same on a busy machine as on a quiet one.
//!
//! Counted by callgrind (valgrind(1)): it emulates one and the same processor everywhere, and the kernel's work is not
//! in it. What still differs between runs is the length of paths and the kernel's numbers: less than one in a hundred.

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::calls::{ports, rates, tunings};
use super::launch;
use super::site::{Site, Subject};

/// A call may need so many times its budget before it counts as a regression.
pub const TOLERANCE: f64 = 1.10;

/// What each call may need, as it is kept in the repository.
pub type Budgets = BTreeMap<String, Budget>;

/// What one call may need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// In user space, from exec to exit.
    pub instructions: u64,
    /// Why it is this number and not the one before.
    pub reason: String,
}

/// Counts every verb of every plugin of a directory; the keys are as `portmap ADD`.
pub fn count(bin: &Path) -> Result<BTreeMap<String, u64>> {
    let subjects = [("bandwidth", rates()), ("firewall", json!({})), ("portmap", ports(1)), ("tuning", tunings())];
    let mut counted = BTreeMap::new();
    for (plugin, keys) in subjects {
        let (site, subject) = (Site::new(), Subject { plugin, keys });
        let config = site.config(&subject).to_string();
        for verb in ["ADD", "DEL"] {
            // The static part of the tables is put in by a host's first ADD only.
            site.call(bin, plugin, verb, config.as_bytes())?;
        }
        for verb in ["VERSION", "STATUS", "ADD", "CHECK", "GC", "DEL"] {
            let stdin =
                if matches!(verb, "GC" | "STATUS") { without_container(&site, &subject) } else { config.clone() };
            counted.insert(format!("{plugin} {verb}"), instructions(&site, bin, plugin, verb, &stdin)?);
        }
    }
    Ok(counted)
}

/// GC and STATUS are about a network; its one attachment lives.
fn without_container(site: &Site, subject: &Subject) -> String {
    let mut config = site.config(subject);
    config["cniVersion"] = "1.1.0".into();
    config["prevResult"] = Value::Null;
    let container = &site.container;
    config["cni.dev/valid-attachments"] = json!([{"containerID": container.id, "ifname": container.ifname}]);
    config.to_string()
}

fn instructions(site: &Site, bin: &Path, plugin: &str, verb: &str, stdin: &str) -> Result<u64> {
    let plain = site.command(bin, plugin, verb);
    let said = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(format!("--log-file={}", said.path().display()));
    command.arg(plain.get_program()).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // The log is opened inside the host's mount namespace, where the directory for temporary files is the same.
    let run = site.lab.host.inside(|| launch::timed(&mut command, stdin.as_bytes()))?;
    let log = std::fs::read_to_string(said.path())?;
    let collected = log.lines().find_map(|line| line.split_once("Collected :")).map(|(_, number)| number.trim());
    match collected.and_then(|number| number.parse().ok()) {
        Some(number) if run.success => Ok(number),
        _ => Err(Error::other(format!("{plugin} {verb} failed under callgrind:\n{log}"))),
    }
}
