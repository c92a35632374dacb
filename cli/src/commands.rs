//! From the command line to the verbs, and from their reports to the exit code.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::cni::Json;

use crate::arguments::{Arguments, Command, Common, Given, Who, pairs};
use crate::cache::Cache;
use crate::capabilities::{self, Capabilities, Limit};
use crate::chain::{Attaching, Runtime, Watch, container_of};
use crate::conflist::Conflist;
use crate::failure::Failure;
use crate::output::{self, Text};
use crate::report::Report;
use crate::search::SearchPath;

/// Where networks are looked up by name unless told otherwise, as all runtimes do it.
const CONF_DIR: &str = "/etc/cni/net.d";

/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";

/// Exit code of a wrong command line, as clap has it.
const USAGE: u8 = 2;

/// The whole program.
pub fn run(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line: Vec<OsString> = line.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&line) {
        Ok(arguments) => arguments,
        Err(error) => return misused(&error, line.iter().any(|word| word == "--json")),
    };
    if arguments.common.json {
        let outcome = execute(&arguments, &mut |_| {});
        let said = output::print(&output::document(&outcome));
        return if said { code(&outcome) } else { ExitCode::FAILURE };
    }
    let text = Text::for_terminal(std::io::stdout().is_terminal());
    let mut said = true;
    let outcome = execute(&arguments, &mut |event| said = said && output::print(&text.event(&event)));
    if let Ok(report) = &outcome {
        said = said && output::print(&text.end(report));
    }
    output::complain(&output::verdict(&outcome));
    if said { code(&outcome) } else { ExitCode::FAILURE }
}

fn code(outcome: &Result<Report, Failure>) -> ExitCode {
    match outcome {
        Ok(report) if report.success() => ExitCode::SUCCESS,
        Err(Failure::Usage { .. }) => ExitCode::from(USAGE),
        _ => ExitCode::FAILURE,
    }
}

/// A command line that clap refuses, or that asks for help.
fn misused(error: &clap::Error, json: bool) -> ExitCode {
    let said = if error.use_stderr() && json {
        let failure = Failure::Usage { reason: error.to_string().trim_end().to_owned() };
        output::print(&output::document(&Err(failure)))
    } else if error.use_stderr() {
        output::complain(&error.to_string());
        true
    } else {
        output::print(&error.to_string())
    };
    if !said {
        return ExitCode::FAILURE;
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn execute(arguments: &Arguments, watch: Watch<'_>) -> Result<Report, Failure> {
    let common = &arguments.common;
    let search = SearchPath::chosen(
        common.path.as_deref(),
        std::env::var_os("CNI_PATH").as_deref(),
        std::env::current_exe().ok().as_deref(),
    );
    let runtime = Runtime::new(search, Cache::new(&common.cache_dir));
    let dir = conf_dir(common);
    match &arguments.command {
        Command::Add { conflist, netns, who, given, keep } => {
            let list = Conflist::find(conflist, &dir)?;
            runtime.add(&list, &attaching(Some(netns), who, given)?, *keep, watch)
        }
        Command::Check { conflist, netns, who, given } => {
            let who = attaching(Some(netns), who, given)?;
            runtime.check(&find_or_recall(&runtime, conflist, &dir, &who)?, &who, watch)
        }
        Command::Del { conflist, netns, who, given } => {
            let who = attaching(netns.as_deref(), who, given)?;
            runtime.del(&find_or_recall(&runtime, conflist, &dir, &who)?, &who, watch)
        }
        Command::Gc { conflist, live, from_cache, .. } => {
            let list = Conflist::find(conflist, &dir)?;
            let live: BTreeSet<_> =
                if *from_cache { runtime.living(&list.name)? } else { live.iter().cloned().collect() };
            runtime.gc(&list, &live, watch)
        }
        Command::Status { conflist } => runtime.status(&Conflist::find(conflist, &dir)?, watch),
        Command::Version { conflist: None } => Ok(runtime.versions(watch)),
        Command::Version { conflist: Some(conflist) } => {
            Ok(runtime.versions_of(&Conflist::find(conflist, &dir)?, watch))
        }
    }
}

fn conf_dir(common: &Common) -> PathBuf {
    let environment = || std::env::var_os("NETCONFPATH").filter(|d| !d.is_empty()).map(PathBuf::from);
    common.conf_dir.clone().or_else(environment).unwrap_or_else(|| CONF_DIR.into())
}

/// CHECK and DEL of a network whose conflist is gone use the one that ADD left in the cache.
fn find_or_recall(runtime: &Runtime, reference: &str, dir: &Path, who: &Attaching) -> Result<Conflist, Failure> {
    match Conflist::find(reference, dir) {
        Err(failure @ Failure::NoSuchNetwork { .. }) => {
            let mut list = runtime.conflist_of_add(reference, who).ok_or(failure)?;
            list.remarks.push(format!("{} has no such network any more; ADD's conflist is used", dir.display()));
            Ok(list)
        }
        outcome => outcome,
    }
}

fn attaching(netns: Option<&Path>, who: &Who, given: &Given) -> Result<Attaching, Failure> {
    let netns = netns.map(absolute).transpose()?;
    let container = match (&who.container_id, &netns) {
        (Some(id), _) => id.clone(),
        (None, Some(netns)) => container_of(netns),
        (None, None) => return Err(Failure::Usage { reason: "give NETNS or --container-id".into() }),
    };
    let args = match (&who.args, variable("CNI_ARGS")) {
        (Some(args), _) => args.clone(),
        (None, Some(text)) => pairs(&text).map_err(|e| Failure::Usage { reason: format!("CNI_ARGS: {e}") })?,
        (None, None) => Vec::new(),
    };
    let ifname = who.ifname.clone().or_else(|| variable("CNI_IFNAME")).unwrap_or_else(|| "eth0".into());
    Ok(Attaching { container, ifname, netns, args, capabilities: capabilities(given)? })
}

/// A name is one of `ip netns`; a path is made absolute by the text alone, as cnitool does it for its container ids.
fn absolute(netns: &Path) -> Result<PathBuf, Failure> {
    let is_name = netns.components().count() == 1 && !netns.has_root() && !matches!(netns.to_str(), Some("." | ".."));
    let path = if is_name { Path::new(NETNS_DIR).join(netns) } else { netns.to_owned() };
    let unusable = |reason: String| Failure::Netns { path: path.clone(), reason };
    if netns.as_os_str().is_empty() {
        return Err(unusable("its name is empty".into()));
    }
    std::path::absolute(&path).map_err(|e| unusable(e.to_string()))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// CAP_ARGS, then the options in the place of its values; an option and `--cap` for the same thing contradict each other.
fn capabilities(given: &Given) -> Result<Capabilities, Failure> {
    let usage = |reason: String| Failure::Usage { reason };
    let mut all = match variable("CAP_ARGS") {
        None => Capabilities::default(),
        Some(text) => serde_json::from_str(&text)
            .map_err(|e| e.to_string())
            .and_then(Capabilities::from_json)
            .map_err(|e| usage(format!("CAP_ARGS: {e}")))?,
    };
    let mut named: Vec<(String, Json)> = Vec::new();
    if !given.ports.is_empty() {
        named.push(("portMappings".into(), capabilities::port_mappings(&given.ports)));
    }
    let limit = |rate: Option<u64>, burst| rate.map(|rate| Limit { rate, burst });
    let (ingress, egress) =
        (limit(given.ingress_rate, given.ingress_burst), limit(given.egress_rate, given.egress_burst));
    if ingress.is_some() || egress.is_some() {
        named.push(("bandwidth".into(), capabilities::bandwidth(ingress, egress)));
    }
    named.extend(given.mac.iter().map(|mac| ("mac".into(), Json::String(mac.clone()))));
    if !given.ips.is_empty() {
        named.push(("ips".into(), Json::Array(given.ips.iter().cloned().map(Json::String).collect())));
    }
    named.extend(given.raw.iter().cloned());
    let mut seen = BTreeSet::new();
    if let Some((name, _)) = named.iter().find(|(name, _)| !seen.insert(name.clone())) {
        return Err(usage(format!("capability \"{name}\" is given twice")));
    }
    named.into_iter().for_each(|(name, value)| all.set(name, value));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_ip_netns_and_a_path_is_made_absolute_by_its_text() {
        let read = |text: &str| absolute(Path::new(text)).unwrap();
        assert_eq!(read("demo"), Path::new("/run/netns/demo"));
        assert_eq!(read("/var/run/netns/demo"), Path::new("/var/run/netns/demo"));
        assert_eq!(read("./demo"), std::env::current_dir().unwrap().join("demo"));
        assert!(absolute(Path::new("")).is_err());
    }

    #[test]
    fn containers_are_named_as_cnitool_names_them() {
        // printf /run/netns/demo | sha512sum | cut -c1-20
        assert_eq!(container_of(Path::new("/run/netns/demo")), "cnitool-78367785f8561ce49ede");
    }

    #[test]
    fn the_options_become_capabilities() {
        let given = Given {
            ports: vec!["8080:80".parse().unwrap()],
            egress_rate: Some(1000),
            raw: vec![("x".into(), Json::Bool(true))],
            ..Given::default()
        };
        assert_eq!(
            serde_json::to_string(&capabilities(&given).unwrap().to_json()).unwrap(),
            r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],"#.to_owned()
                + r#""bandwidth":{"egressRate":1000,"egressBurst":4294967295},"x":true}"#
        );
        let twice = Given { mac: Some("a".into()), raw: vec![("mac".into(), Json::Null)], ..Given::default() };
        assert!(matches!(capabilities(&twice), Err(Failure::Usage { .. })));
    }
}
