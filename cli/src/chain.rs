//! The verbs over a whole conflist, as libcni runs them (SPEC.md, "Section 2: Execution Protocol").
//!
//! ```text
//! ADD     p1 ─result→ p2 ─result→ … pn ─result→ cache        a failure: DEL pn … p1, without prevResult
//! CHECK   cache ─result→ p1, p2, … pn                        all, whatever one says
//! DEL     cache ─result→ pn, … p2, p1, cache entry           all, whatever one says
//! GC      DEL of each dead cache entry; then p1, … pn
//! STATUS  p1, … pn
//! ```
//!
//! Two things are done otherwise than by libcni, as they are by the runtimes above it: a failed ADD is undone, and DEL goes
//! on after a failure.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Attachment;
use common::cni::{CniResult, Json, Verb, Version};
use common::netns::{self, Netns};

use crate::cache::{self, Cache, Entry};
use crate::capabilities::Capabilities;
use crate::conflist::{Conflist, PluginConf};
use crate::failure::Failure;
use crate::process::{self, Fault};
use crate::report::{Event, Made, Output, Report, Step};
use crate::search::SearchPath;

/// Who is told what happens while it happens.
pub type Watch<'a> = &'a mut dyn FnMut(Event<'_>);

/// What a runtime is: plugins, and a memory of what they did.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where the plugins are.
    pub search: SearchPath,
    /// What CHECK and DEL remember of ADD.
    pub cache: Cache,
    /// The plugins' environment besides the CNI_* variables.
    pub environment: Vec<(OsString, OsString)>,
}

/// For whom a conflist is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Attaching {
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS; DEL can do without.
    pub netns: Option<PathBuf>,
    /// CNI_ARGS, in their order.
    pub args: Vec<(String, String)>,
    /// What the runtime adds to the configuration.
    pub capabilities: Capabilities,
}

impl Attaching {
    /// An attachment without arguments and capabilities, the container named after its namespace.
    pub fn to(netns: impl Into<PathBuf>, ifname: &str) -> Attaching {
        let netns = netns.into();
        Attaching {
            container: container_of(&netns),
            ifname: ifname.to_owned(),
            netns: Some(netns),
            args: Vec::new(),
            capabilities: Capabilities::default(),
        }
    }

    fn on(&self, network: &str) -> Attachment {
        Attachment::new(network, &self.container, &self.ifname)
    }
}

/// The container id that cnitool gives to a namespace: `cnitool-` and the first ten bytes of SHA-512 of its path, in hex.
pub fn container_of(netns: &Path) -> String {
    common::attachment::reference_hash_name(28, "cnitool-", &netns.to_string_lossy())
}

/// Everything that goes into one plugin's execution.
struct Turn<'a> {
    verb: Verb,
    list: &'a str,
    version: Version,
    conf: &'a PluginConf,
    attaching: Option<&'a Attaching>,
    prev: Option<&'a (CniResult, Json)>,
    valid: Option<&'a Json>,
}

impl Runtime {
    /// The conflist that an attachment was added with, for when its file is gone.
    pub fn conflist_of_add(&self, network: &str, who: &Attaching) -> Option<Conflist> {
        let entry = self.cache.load(&who.on(network)).ok()??;
        let origin = self.cache.path(&entry.attachment).ok()?;
        Conflist::parse(entry.config, &origin).ok().filter(|list| list.name == network)
    }

    /// A runtime with this process's environment.
    pub fn new(search: SearchPath, cache: Cache) -> Runtime {
        Runtime { search, cache, environment: process::inherited() }
    }

    /// The version a conflist is run with: of those it offers the highest that all its plugins speak. Plugins are asked only
    /// if there is a choice.
    pub fn version(&self, list: &Conflist) -> Result<Version, Failure> {
        if let [only] = list.versions.as_slice() {
            return Ok(*only);
        }
        let mut spoken = Vec::new();
        for conf in &list.plugins {
            let step = self.ask_version(&conf.plugin, &self.search.find(&conf.plugin)?);
            match step.outcome {
                Ok(Output::Versions(versions)) => spoken.push((&conf.plugin, versions)),
                // One that doesn't say is taken to speak them all; ADD will tell.
                _ => continue,
            }
        }
        let by_all = |v: &Version| spoken.iter().all(|(_, versions)| versions.iter().any(|s| s == v.as_str()));
        let shown =
            || spoken.iter().map(|(plugin, versions)| format!("{plugin} speaks {}", versions.join(", "))).collect();
        list.versions.iter().rev().copied().find(by_all).ok_or_else(|| Failure::NoCommonVersion { spoken: shown() })
    }

    /// ADD. A failure undoes what was done, unless it is to be kept for inspection.
    pub fn add(&self, list: &Conflist, who: &Attaching, keep: bool, watch: Watch<'_>) -> Result<Report, Failure> {
        let attachment = who.on(&list.name);
        let cached = self.cache.path(&attachment)?;
        self.find_all(list)?;
        let version = self.version(list)?;
        open_netns(who.netns.as_deref())?;
        if self.cache.load(&attachment)?.is_some() {
            return Err(Failure::AlreadyAdded { attachment: attachment.to_string(), cached });
        }
        self.cache.prepare()?;
        let mut report = begin(Verb::Add, list, version, Some(who), watch);
        report.remarks.extend(undeclared(list, &who.capabilities));
        report.result = self.add_each(list, who, &mut report, watch);
        if let Some(result) = &report.result {
            let entry = entry(list, who, cache::to_json(result, version).unwrap_or_default());
            report.failure = self.cache.store(&entry).err().map(|f| format!("{f}; without it CHECK can't work"));
        }
        if !report.success() && !keep {
            report.result = None;
            self.undo(list, who, &mut report, watch);
        }
        Ok(report)
    }

    /// Each plugin's ADD, up to the first failure; the last one's result if there was none.
    fn add_each(&self, list: &Conflist, who: &Attaching, report: &mut Report, watch: Watch<'_>) -> Option<CniResult> {
        let mut prev: Option<(CniResult, Json)> = None;
        for conf in &list.plugins {
            let turn = Turn { prev: prev.as_ref(), ..turn(Verb::Add, list, report.version, conf, Some(who)) };
            let step = self.take(&turn);
            watch(Event::Step(&step));
            let after = match &step.outcome {
                Ok(Output::Result(made)) => Some(made.after.clone()),
                _ => None,
            };
            report.steps.push(step);
            let after = after?;
            let json = cache::to_json(&after, report.version).unwrap_or_default();
            prev = Some((after, json));
        }
        prev.map(|(result, _)| result)
    }

    /// DEL of the whole chain after a failed ADD, without a prevResult, as runtimes do it.
    fn undo(&self, list: &Conflist, who: &Attaching, report: &mut Report, watch: Watch<'_>) {
        watch(Event::Undoing);
        for conf in list.plugins.iter().rev() {
            let step = self.take(&turn(Verb::Del, list, report.version, conf, Some(who)));
            watch(Event::Step(&step));
            report.undone.push(step);
        }
    }

    /// CHECK, of every plugin.
    pub fn check(&self, list: &Conflist, who: &Attaching, watch: Watch<'_>) -> Result<Report, Failure> {
        let attachment = who.on(&list.name);
        let cached = self.cache.path(&attachment)?;
        open_netns(who.netns.as_deref())?;
        let entry = self.cache.load(&attachment)?;
        let entry =
            entry.ok_or_else(|| Failure::NotAdded { attachment: attachment.to_string(), cached: cached.clone() })?;
        let (list, changed) = of_add(list, Some(&entry));
        let (list, who) = (list.as_ref(), &remembered(who, &entry));
        self.find_all(list)?;
        let version = self.version(list)?;
        require(version, Verb::Check, Version::V0_4_0)?;
        let mut report = begin(Verb::Check, list, version, Some(who), watch);
        report.remarks.extend(changed);
        if list.disable_check {
            report.remarks.push("the conflist says disableCheck: no plugin was asked".into());
            return Ok(report);
        }
        let prev = entry.result_in(version).map_err(|reason| Failure::Cache { path: cached, reason })?;
        for conf in &list.plugins {
            let turn = Turn { prev: Some(&prev), ..turn(Verb::Check, list, version, conf, Some(who)) };
            let step = self.take(&turn);
            watch(Event::Step(&step));
            report.steps.push(step);
        }
        Ok(report)
    }

    /// DEL, of every plugin in reverse order, whatever one of them says. What is remembered of ADD is forgotten only if
    /// all succeeded, so that the repeated DEL has it again.
    pub fn del(&self, list: &Conflist, who: &Attaching, watch: Watch<'_>) -> Result<Report, Failure> {
        let attachment = who.on(&list.name);
        cache::validate(&attachment)?;
        let (entry, is_remembered, mut remarks) = match self.cache.load(&attachment) {
            Ok(entry) => (entry.clone(), entry.is_some(), Vec::new()),
            // A spoilt file is forgotten as well: it would be in the way of the next ADD.
            Err(failure) => (None, true, vec![format!("{failure}; DEL goes on without a prevResult")]),
        };
        let (list, changed) = of_add(list, entry.as_ref());
        let list = list.as_ref();
        remarks.extend(changed);
        let version = self.version(list)?;
        let who = &entry.as_ref().map_or_else(|| who.clone(), |entry| remembered(who, entry));
        let prev = match entry.as_ref().filter(|_| version >= Version::V0_4_0).map(|e| e.result_in(version)) {
            Some(Err(reason)) => {
                remarks.push(format!("the cached result can't be used: {reason}; DEL goes on without a prevResult"));
                None
            }
            Some(Ok(prev)) => Some(prev),
            None => None,
        };
        let mut report = begin(Verb::Del, list, version, Some(who), watch);
        report.remarks.append(&mut remarks);
        for conf in list.plugins.iter().rev() {
            let turn = Turn { prev: prev.as_ref(), ..turn(Verb::Del, list, version, conf, Some(who)) };
            let step = self.take(&turn);
            watch(Event::Step(&step));
            report.steps.push(step);
        }
        if report.success() && is_remembered {
            report.failure = self.cache.remove(&attachment).err().map(|f| f.to_string());
        }
        Ok(report)
    }

    /// GC: DEL for what the cache knows and `live` doesn't, then each plugin's own.
    pub fn gc(&self, list: &Conflist, live: &BTreeSet<(String, String)>, watch: Watch<'_>) -> Result<Report, Failure> {
        self.find_all(list)?;
        let version = self.version(list)?;
        require(version, Verb::Gc, Version::V1_1_0)?;
        let mut report = begin(Verb::Gc, list, version, None, watch);
        if list.disable_gc {
            report.remarks.push("the conflist says disableGC: nothing was collected".into());
            return Ok(report);
        }
        for entry in self.cache.of_network(&list.name)? {
            let Attachment { container, ifname, .. } = &entry.attachment;
            if live.contains(&(container.clone(), ifname.clone())) {
                continue;
            }
            watch(Event::Stale(&entry.attachment));
            let steps: Watch<'_> = &mut |event| {
                if let Event::Step(_) = event {
                    watch(event)
                }
            };
            report.stale.push(self.del(list, &recalled(&entry), steps)?);
        }
        watch(Event::Collecting);
        let valid = valid_attachments(live);
        for conf in &list.plugins {
            let turn = Turn { valid: Some(&valid), ..turn(Verb::Gc, list, version, conf, None) };
            let step = self.take_if(self.speaks(&conf.plugin, version), &turn);
            watch(Event::Step(&step));
            report.steps.push(step);
        }
        Ok(report)
    }

    /// The attachments that the cache knows and whose namespace still is one, or can't be told.
    pub fn living(&self, network: &str) -> Result<BTreeSet<(String, String)>, Failure> {
        let is_alive = |e: &Entry| e.namespace().is_none_or(|netns| !matches!(Netns::find(&netns), Ok(None)));
        let entries = self.cache.all_of_network(network)?.into_iter().filter(is_alive);
        Ok(entries.map(|e| (e.attachment.container, e.attachment.ifname)).collect())
    }

    /// STATUS of every plugin. Before 1.1.0 there is none, and libcni takes such a network for ready: then each plugin is
    /// asked by VERSION whether it speaks the conflist's version.
    pub fn status(&self, list: &Conflist, watch: Watch<'_>) -> Result<Report, Failure> {
        let version = self.version(list)?;
        let mut report = begin(Verb::Status, list, version, None, watch);
        if version < Version::V1_1_0 {
            report.remarks.push(format!(
                "cniVersion {version} has no STATUS (1.1.0 brought it): only the plugins' presence and versions were looked at"
            ));
        }
        for conf in &list.plugins {
            let mut step = self.speaks(&conf.plugin, version);
            if version >= Version::V1_1_0 {
                step = self.take_if(step, &turn(Verb::Status, list, version, conf, None));
            }
            watch(Event::Step(&step));
            report.steps.push(step);
        }
        Ok(report)
    }

    /// VERSION of every plugin of a conflist, which must speak its version.
    pub fn versions_of(&self, list: &Conflist, watch: Watch<'_>) -> Report {
        let lowest = list.versions.first().copied().unwrap_or(Version::V0_1_0);
        let version = self.version(list).unwrap_or(lowest);
        let mut report = begin(Verb::Version, list, version, None, watch);
        for conf in &list.plugins {
            let step = self.speaks(&conf.plugin, version);
            watch(Event::Step(&step));
            report.steps.push(step);
        }
        report
    }

    /// VERSION of every executable in the search path.
    pub fn versions(&self, watch: Watch<'_>) -> Report {
        let mut report = Report::new(Verb::Version, "", Version::LATEST);
        watch(Event::Begun(&report));
        for (name, path) in self.search.every() {
            let step = self.ask_version(&name, &path);
            watch(Event::Step(&step));
            report.steps.push(step);
        }
        report
    }

    fn find_all(&self, list: &Conflist) -> Result<(), Failure> {
        list.plugins.iter().try_for_each(|conf| self.search.find(&conf.plugin).map(drop))
    }

    /// One plugin's VERSION, failing if `version` is not among its answers.
    fn speaks(&self, plugin: &str, version: Version) -> Step {
        let mut step = match self.search.find(plugin) {
            Ok(path) => self.ask_version(plugin, &path),
            Err(failure) => not_found(Verb::Version, plugin, &failure),
        };
        if let Ok(Output::Versions(spoken)) = &step.outcome
            && !spoken.iter().any(|v| v == version.as_str())
        {
            step.outcome = Err(Fault::ForeignVersion { wanted: version, spoken: spoken.clone() });
        }
        step
    }

    /// VERSION, with the placeholders that libcni puts into the other variables.
    fn ask_version(&self, plugin: &str, path: &Path) -> Step {
        let mut environment = self.environment.clone();
        let dummies = ["CNI_NETNS", "CNI_IFNAME", "CNI_PATH"].map(|name| (name.into(), "dummy".into()));
        environment.extend(dummies);
        environment.push(("CNI_COMMAND".into(), Verb::Version.as_str().into()));
        let stdin = format!(r#"{{"cniVersion":"{}"}}"#, Version::LATEST);
        let ended = process::execute(path, &environment, stdin.as_bytes());
        finish(Verb::Version, plugin, path, Vec::new(), ended, read_versions)
    }

    /// A verb that older plugins don't know: what they say to it ("missing containerID") would only mislead.
    fn take_if(&self, speaks: Step, turn: &Turn<'_>) -> Step {
        match speaks.outcome {
            Err(Fault::ForeignVersion { .. }) => Step { verb: turn.verb, ..speaks },
            _ => self.take(turn),
        }
    }

    /// One plugin's turn.
    fn take(&self, turn: &Turn<'_>) -> Step {
        let path = match self.search.find(&turn.conf.plugin) {
            Ok(path) => path,
            Err(failure) => return not_found(turn.verb, &turn.conf.plugin, &failure),
        };
        let given = turn.attaching.map(|who| who.capabilities.declared_by(&turn.conf.capabilities)).unwrap_or_default();
        let names = given.iter().map(|(name, _)| name.clone()).collect();
        let configuration = turn.configuration(given);
        let ended = process::execute(&path, &self.environment_of(turn), configuration.as_bytes());
        finish(turn.verb, &turn.conf.plugin, &path, names, ended, |ended| turn.read(ended))
    }

    fn environment_of(&self, turn: &Turn<'_>) -> Vec<(OsString, OsString)> {
        let mut environment = self.environment.clone();
        let mut set = |name: &str, value: OsString| environment.push((name.into(), value));
        set("CNI_COMMAND", turn.verb.as_str().into());
        set("CNI_PATH", self.search.as_cni_path());
        if let Some(who) = turn.attaching {
            let args: Vec<String> = who.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
            set("CNI_CONTAINERID", who.container.clone().into());
            set("CNI_NETNS", who.netns.clone().unwrap_or_default().into());
            set("CNI_IFNAME", who.ifname.clone().into());
            set("CNI_ARGS", args.join(";").into());
        }
        environment
    }
}

impl Turn<'_> {
    /// The plugin's stdin: its configuration with what libcni injects.
    fn configuration(&self, given: Vec<(String, Json)>) -> String {
        let text = |text: &str| Json::String(text.to_owned());
        let mut members =
            vec![("cniVersion".to_owned(), text(self.version.as_str())), ("name".to_owned(), text(self.list))];
        if let Some((_, prev)) = self.prev {
            members.push(("prevResult".to_owned(), prev.clone()));
        }
        if !given.is_empty() {
            members.push(("runtimeConfig".to_owned(), Json::Object(given)));
        }
        if let Some(valid) = self.valid {
            // The second is what the specification called it at first; libcni writes both.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                members.push((key.to_owned(), valid.clone()));
            }
        }
        // Serialising JSON into memory can't fail.
        serde_json::to_string(&self.conf.with(members)).unwrap_or_default()
    }

    /// What the verb's success must look like.
    fn read(&self, ended: &process::Ended) -> Result<Output, Fault> {
        if self.verb != Verb::Add {
            return ended.success().map(|_| Output::Nothing);
        }
        let json = ended.document()?;
        let bad = |reason: String| Fault::BadOutput { reason, printed: process::quoted(ended.stdout()) };
        let after = CniResult::read(&json, self.version).map_err(|e| {
            bad(format!("what it printed is no result: {}", e.to_string().replace("prevResult", "result")))
        })?;
        cache::to_json(&after, self.version)
            .map_err(|e| bad(format!("its result doesn't fit the conflist's version: {e}")))?;
        Ok(Output::Result(Box::new(Made { before: self.prev.map(|(result, _)| result.clone()), after })))
    }
}

fn turn<'a>(
    verb: Verb,
    list: &'a Conflist,
    version: Version,
    conf: &'a PluginConf,
    attaching: Option<&'a Attaching>,
) -> Turn<'a> {
    Turn { verb, list: &list.name, version, conf, attaching, prev: None, valid: None }
}

fn begin(verb: Verb, list: &Conflist, version: Version, who: Option<&Attaching>, watch: Watch<'_>) -> Report {
    let mut report = Report::new(verb, &list.name, version);
    report.attachment = who.map(|who| who.on(&list.name));
    report.netns = who.and_then(|who| who.netns.clone());
    report.remarks.extend(list.remarks.iter().cloned());
    watch(Event::Begun(&report));
    report
}

fn not_found(verb: Verb, plugin: &str, failure: &Failure) -> Step {
    Step {
        verb,
        plugin: plugin.to_owned(),
        path: None,
        given: Vec::new(),
        took: Duration::ZERO,
        stderr: String::new(),
        outcome: Err(Fault::NotFound { reason: failure.to_string() }),
    }
}

fn finish(
    verb: Verb,
    plugin: &str,
    path: &Path,
    given: Vec<String>,
    ended: Result<process::Ended, Fault>,
    read: impl FnOnce(&process::Ended) -> Result<Output, Fault>,
) -> Step {
    let (took, stderr, outcome) = match ended {
        Ok(ended) => (ended.took, ended.stderr.clone(), read(&ended)),
        Err(fault) => (Duration::ZERO, String::new(), Err(fault)),
    };
    Step { verb, plugin: plugin.to_owned(), path: Some(path.to_owned()), given, took, stderr, outcome }
}

fn read_versions(ended: &process::Ended) -> Result<Output, Fault> {
    let json = ended.document()?;
    let versions: Vec<String> = match json.get("supportedVersions") {
        Some(Json::Array(items)) => items.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    if versions.is_empty() {
        let reason = "its answer to VERSION has no supportedVersions".into();
        return Err(Fault::BadOutput { reason, printed: process::quoted(ended.stdout()) });
    }
    Ok(Output::Versions(versions))
}

fn require(version: Version, verb: Verb, since: Version) -> Result<(), Failure> {
    if version < since { Err(Failure::VerbNotInVersion { verb: verb.as_str(), version, since }) } else { Ok(()) }
}

/// Fails unless there is a namespace other than the tool's own.
fn open_netns(path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else {
        return Err(Failure::Usage { reason: "the verb needs a network namespace".into() });
    };
    let refuse = |e: common::Error| Failure::Netns {
        path: path.to_owned(),
        reason: match e {
            common::Error::Netns { reason, .. } => reason,
            other => other.to_string(),
        },
    };
    Netns::open(path).map_err(refuse)?;
    netns::refuse_own(Some(path)).map_err(refuse)
}

fn undeclared(list: &Conflist, capabilities: &Capabilities) -> Vec<String> {
    let nobody = capabilities.names().filter(|name| !list.declares(name));
    let remark = |name: &str| {
        format!(
            "no plugin of {} declares the capability \"{name}\", so its value reaches nobody; add \
             \"capabilities\": {{\"{name}\": true}} to the plugin that should get it",
            list.name
        )
    };
    nobody.map(remark).collect()
}

fn entry(list: &Conflist, who: &Attaching, result: Json) -> Entry {
    Entry {
        attachment: who.on(&list.name),
        config: list.bytes.clone(),
        netns: who.netns.as_deref().unwrap_or(Path::new("")).to_string_lossy().into_owned(),
        args: who.args.clone(),
        capabilities: who.capabilities.clone(),
        result,
    }
}

/// The conflist that ADD was run with, and a remark if the given one is another by now: what ADD made is what CHECK must
/// compare with and DEL must remove.
fn of_add<'a>(list: &'a Conflist, entry: Option<&Entry>) -> (Cow<'a, Conflist>, Option<String>) {
    let Some(entry) = entry.filter(|e| !e.config.is_empty() && e.config != list.bytes) else {
        return (Cow::Borrowed(list), None);
    };
    match Conflist::parse(entry.config.clone(), &list.origin) {
        Ok(cached) if cached.name == list.name => {
            let remark = "the conflist was changed since ADD; the plugins get it as it was then, from the result cache";
            (Cow::Owned(cached), Some(remark.into()))
        }
        _ => (Cow::Borrowed(list), Some("the conflist in the result cache can't be used; the given one is".into())),
    }
}

/// What wasn't said this time is taken from ADD (libcni's `getCachedConfig`).
fn remembered(who: &Attaching, entry: &Entry) -> Attaching {
    let cached = recalled(entry);
    Attaching {
        container: who.container.clone(),
        ifname: who.ifname.clone(),
        netns: who.netns.clone().or(cached.netns),
        args: if who.args.is_empty() { cached.args } else { who.args.clone() },
        capabilities: if who.capabilities.is_empty() { cached.capabilities } else { who.capabilities.clone() },
    }
}

fn recalled(entry: &Entry) -> Attaching {
    Attaching {
        container: entry.attachment.container.clone(),
        ifname: entry.attachment.ifname.clone(),
        netns: entry.namespace(),
        args: entry.args.clone(),
        capabilities: entry.capabilities.clone(),
    }
}

fn valid_attachments(live: &BTreeSet<(String, String)>) -> Json {
    let text = |text: &String| Json::String(text.clone());
    let one = |(container, ifname): &(String, String)| {
        Json::Object(vec![("containerID".to_owned(), text(container)), ("ifname".to_owned(), text(ifname))])
    };
    Json::Array(live.iter().map(one).collect())
}
