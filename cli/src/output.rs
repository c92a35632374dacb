//! What is shown: text for people, one document for programs.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use common::cni::result::Interface;
use common::cni::{CniResult, Json, Verb, Version};
use serde::Serialize;

use crate::cache;
use crate::failure::Failure;
use crate::process::{Fault, PluginError};
use crate::report::{Event, Output, Report, Step};

/// Columns that a plugin's name takes.
const NAME: usize = 11;

/// The code of our plugins for a state that differs (docs/errors.md).
const DIFFERS: u64 = 101;

/// Differences that are shown of one plugin.
const LISTED: usize = 10;

/// Columns before the continuation lines of a step.
const INDENT: &str = "      ";

/// Writes to stdout; says whether it got there. A reader that has gone (`| head`) is no failure of the verb.
#[must_use]
pub fn print(text: &str) -> bool {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("cni-chain: stdout can't be written: {error}\n"));
            false
        }
        _ => true,
    }
}

/// Writes to stderr.
pub fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// How text is shown.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    colour: bool,
}

#[derive(Clone, Copy)]
enum Colour {
    Green,
    Red,
    Yellow,
    Dim,
}

impl Text {
    /// Coloured on a terminal, unless NO_COLOR (no-color.org) or a dumb terminal forbid it.
    pub fn for_terminal(is_terminal: bool) -> Text {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        Text { colour: is_terminal && !forbidden && !dumb }
    }

    /// Never coloured.
    pub const PLAIN: Text = Text { colour: false };

    fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Green => 32,
            Colour::Red => 31,
            Colour::Yellow => 33,
            Colour::Dim => 2,
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// What is shown as soon as it happened.
    pub fn event(self, event: &Event<'_>) -> String {
        match event {
            Event::Begun(report) => heading(report),
            Event::Step(step) => self.step(step),
            Event::Undoing => "  undoing: DEL in reverse order\n".into(),
            Event::Stale(attachment) => format!("  dead: {attachment}\n"),
            Event::Collecting => "  GC of every plugin\n".into(),
        }
    }

    fn step(self, step: &Step) -> String {
        let (mark, what) = match &step.outcome {
            Ok(output) => (self.paint(Colour::Green, "✓"), came_out(step, output)),
            Err(fault) => (self.paint(Colour::Red, "✗"), self.paint(Colour::Red, &printable(&fault.to_string()))),
        };
        let took = self.paint(Colour::Dim, &format!("{:>8}", duration(step.took)));
        let mut text = format!("  {mark} {:<NAME$} {took}  {what}\n", printable(&step.plugin));
        if let Err(fault) = &step.outcome {
            text += &details(fault);
        }
        if !step.stderr.is_empty() {
            text += &self.paint(Colour::Dim, &labelled("stderr", &step.stderr));
        }
        text
    }

    /// What is shown when all is over.
    pub fn end(self, report: &Report) -> String {
        let mut text = String::new();
        for remark in &report.remarks {
            let _ = writeln!(text, "  {} {}", self.paint(Colour::Yellow, "!"), printable(remark));
        }
        if let (Some(result), Some(attachment)) = (&report.result, &report.attachment) {
            let _ = writeln!(text, "{} of {} has {}", attachment.ifname, attachment.container, addresses(result));
        }
        text
    }
}

/// The last word, on stderr: nothing if all went well.
pub fn verdict(outcome: &Result<Report, Failure>) -> String {
    let report = match outcome {
        Err(failure) => {
            return format!("cni-chain: {}\n  next: {}\n", printable(&failure.to_string()), printable(&failure.next()));
        }
        Ok(report) if report.success() => return String::new(),
        Ok(report) => report,
    };
    let failed: Vec<&str> = report.failed().map(|step| step.plugin.as_str()).collect();
    let text = match (&report.failure, failed.as_slice()) {
        (Some(failure), _) => format!("{}{} failed: {failure}", report.verb.as_str(), of(report)),
        (None, []) => format!("{}{} failed: DEL of dead attachments", report.verb.as_str(), of(report)),
        (None, failed) => format!("{}{} failed: {}", report.verb.as_str(), of(report), failed.join(", ")),
    };
    format!("cni-chain: {}\n  {}\n", printable(&text), aftermath(report))
}

fn of(report: &Report) -> String {
    if report.network.is_empty() { String::new() } else { format!(" of {}", report.network) }
}

/// What a failure left behind, and how to go on.
fn aftermath(report: &Report) -> &'static str {
    match report.verb {
        Verb::Add if report.undone.is_empty() => "next: look at what is there, then remove it by `cni-chain del`",
        Verb::Add if report.undone.iter().all(|step| step.outcome.is_ok()) => "what was done has been undone",
        Verb::Add => "undoing it failed as well; next: mend the cause, then `cni-chain del`",
        Verb::Del => "next: mend the cause and repeat; the result cache keeps what DEL needs",
        Verb::Check => "next: `cni-chain del`, then `cni-chain add`, make it anew",
        Verb::Gc => "next: mend the cause and repeat",
        Verb::Status => "next: do what the plugins say",
        Verb::Version => {
            "next: see which plugin is meant to be there; a conflist's plugins must all speak its cniVersion"
        }
    }
}

fn heading(report: &Report) -> String {
    let verb = report.verb.as_str();
    if report.verb == Verb::Version {
        let versions = format!("CNI {} to {}", Version::V0_1_0, Version::LATEST);
        return format!("cni-chain {} ({versions})\n", env!("CARGO_PKG_VERSION"));
    }
    let mut text = format!("{verb} {} (CNI {})", report.network, report.version);
    if let Some(attachment) = &report.attachment {
        let netns = report.netns.as_ref().map_or_else(|| "no namespace".into(), |n| n.display().to_string());
        let _ = write!(text, ": {} in {}, container {}", attachment.ifname, netns, attachment.container);
    }
    printable(&text) + "\n"
}

/// What a plugin's success yielded, on one line.
fn came_out(step: &Step, output: &Output) -> String {
    let mut text = match output {
        Output::Nothing => match step.verb {
            Verb::Status => "ready".into(),
            Verb::Check => "as ADD made it".into(),
            _ => "done".into(),
        },
        Output::Versions(versions) => {
            let path = step.path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
            format!("{path}  {}", versions.join(" "))
        }
        Output::Result(made) => difference(made.before.as_ref(), &made.after),
    };
    if !step.given.is_empty() {
        let _ = write!(text, "  (given {})", step.given.join(", "));
    }
    printable(&text)
}

/// What a plugin added to the result that it was given.
fn difference(before: Option<&CniResult>, after: &CniResult) -> String {
    let none = CniResult::default();
    let passed_on = before == Some(after);
    let before = before.unwrap_or(&none);
    let known = |i: &Interface| before.interfaces.iter().find(|b| b.name == i.name && b.sandbox == i.sandbox);
    let new = |in_container: bool| -> Vec<&str> {
        let wanted = |i: &&Interface| known(i).is_none() && i.sandbox.is_empty() != in_container;
        after.interfaces.iter().filter(wanted).map(|i| i.name.as_str()).collect()
    };
    let mut container: Vec<String> = new(true).into_iter().map(str::to_owned).collect();
    container.extend(after.ips.iter().filter(|ip| !before.ips.contains(ip)).map(|ip| ip.address.to_string()));
    let mut parts = vec![container.join(" ")];
    parts.extend(after.interfaces.iter().filter_map(|i| change(known(i)?, i)));
    parts.push(prefixed("host: ", &new(false).join(" ")));
    let routes = after.routes.iter().filter(|r| !before.routes.contains(r));
    parts.push(prefixed("routes: ", &routes.map(|r| r.dst.to_string()).collect::<Vec<_>>().join(" ")));
    parts.push(if before.dns == after.dns { String::new() } else { "dns changed".into() });
    parts.retain(|part| !part.is_empty());
    match parts.is_empty() {
        true if passed_on => "result passed on".into(),
        true if *after == none => "empty result".into(),
        true => "result changed".into(),
        false => parts.join("; "),
    }
}

fn prefixed(label: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{label}{text}") }
}

/// What became of an interface that was there before.
fn change(before: &Interface, after: &Interface) -> Option<String> {
    let mut changes = Vec::new();
    if before.mac != after.mac {
        changes.push(format!("mac {}", after.mac));
    }
    if before.mtu != after.mtu {
        changes.push(format!("mtu {}", after.mtu));
    }
    (!changes.is_empty()).then(|| format!("{} now {}", after.name, changes.join(", ")))
}

fn addresses(result: &CniResult) -> String {
    let one = |ip: &common::cni::result::IpConfig| match ip.gateway {
        Some(gateway) => format!("{} (gateway {gateway})", ip.address),
        None => ip.address.to_string(),
    };
    let all: Vec<String> = result.ips.iter().map(one).collect();
    if all.is_empty() { "no address".into() } else { all.join(", ") }
}

fn details(fault: &Fault) -> String {
    let mut text = String::new();
    // CHECK's message often ends with the only difference there is.
    if let Fault::Refused(error) = fault
        && !error.msg.ends_with(&error.details)
    {
        text += &labelled("details", &listed(error));
    }
    if !fault.next().is_empty() {
        text += &labelled("next", fault.next());
    }
    text
}

/// The details; the differences of our plugins' CHECK, which may be many, one on a line.
fn listed(error: &PluginError) -> String {
    if error.code != DIFFERS {
        return error.details.clone();
    }
    let all: Vec<&str> = error.details.split("; ").collect();
    let mut lines = all.iter().take(LISTED).copied().collect::<Vec<_>>().join("\n");
    if all.len() > LISTED {
        let _ = write!(lines, "\n… and {} more (--json shows them all)", all.len() - LISTED);
    }
    lines
}

/// A label, and lines beside it.
fn labelled(label: &str, lines: &str) -> String {
    let mut text = String::new();
    for (i, line) in lines.lines().enumerate() {
        let _ = writeln!(text, "{INDENT}{:<8} {}", if i == 0 { label } else { "" }, printable(line));
    }
    text
}

/// What a plugin said must not command the terminal: control characters are shown, not sent.
fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("; "),
            '\t' => safe.push(' '),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

fn duration(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1000.0;
    match ms {
        _ if ms >= 1000.0 => format!("{:.1} s", ms / 1000.0),
        _ if ms >= 100.0 => format!("{ms:.0} ms"),
        _ => format!("{ms:.1} ms"),
    }
}

/// One plugin's turn, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StepDocument<'a> {
    #[serde(rename = "type")]
    plugin: &'a str,
    verb: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    duration_ms: f64,
    #[serde(skip_serializing_if = "slice_is_empty")]
    capabilities: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supported_versions: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDocument>,
    #[serde(skip_serializing_if = "str::is_empty")]
    stderr: &'a str,
}

#[derive(Serialize)]
struct ErrorDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u64>,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    next: String,
}

/// A verb, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportDocument<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cni_chain: Option<&'static str>,
    verb: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    cni_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ifname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    plugins: Vec<StepDocument<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    undone: Vec<StepDocument<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stale: Vec<ReportDocument<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Json>,
    #[serde(skip_serializing_if = "slice_is_empty")]
    remarks: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDocument>,
}

#[derive(Serialize)]
struct FailureDocument {
    ok: bool,
    error: ErrorDocument,
}

fn slice_is_empty(slice: &&[String]) -> bool {
    slice.is_empty()
}

/// The one document of `--json`.
pub fn document(outcome: &Result<Report, Failure>) -> String {
    let json = match outcome {
        Ok(report) => serde_json::to_string_pretty(&ReportDocument::from(report)),
        Err(failure) => serde_json::to_string_pretty(&FailureDocument {
            ok: false,
            error: ErrorDocument { code: None, msg: failure.to_string(), details: String::new(), next: failure.next() },
        }),
    };
    // Serialising our own types into memory can't fail: no map has a key that isn't a string.
    json.unwrap_or_default() + "\n"
}

impl<'a> From<&'a Report> for ReportDocument<'a> {
    fn from(report: &'a Report) -> Self {
        let steps = |steps: &'a [Step]| steps.iter().map(|s| step_document(s, report.version)).collect();
        ReportDocument {
            cni_chain: (report.verb == Verb::Version).then_some(env!("CARGO_PKG_VERSION")),
            verb: report.verb.as_str(),
            ok: report.success(),
            network: &report.network,
            cni_version: report.version.as_str(),
            container_id: report.attachment.as_ref().map(|a| a.container.as_str()),
            ifname: report.attachment.as_ref().map(|a| a.ifname.as_str()),
            netns: report.netns.as_ref().map(|n| n.display().to_string()),
            plugins: steps(&report.steps),
            undone: steps(&report.undone),
            stale: report.stale.iter().map(ReportDocument::from).collect(),
            result: report.result.as_ref().and_then(|r| cache::to_json(r, report.version).ok()),
            remarks: &report.remarks,
            error: report.failure.clone().map(|msg| ErrorDocument {
                code: None,
                msg,
                details: String::new(),
                next: aftermath(report).to_owned(),
            }),
        }
    }
}

fn step_document(step: &Step, version: Version) -> StepDocument<'_> {
    let error = step.outcome.as_ref().err().map(|fault| ErrorDocument {
        next: fault.next().to_owned(),
        ..match fault {
            Fault::Refused(e) => ErrorDocument {
                code: Some(e.code),
                msg: e.msg.clone(),
                details: e.details.clone(),
                next: String::new(),
            },
            other => ErrorDocument { code: None, msg: other.to_string(), details: String::new(), next: String::new() },
        }
    });
    let (result, supported_versions) = match &step.outcome {
        Ok(Output::Result(made)) => (cache::to_json(&made.after, version).ok(), None),
        Ok(Output::Versions(versions)) => (None, Some(versions.as_slice())),
        _ => (None, None),
    };
    StepDocument {
        plugin: &step.plugin,
        verb: step.verb.as_str(),
        ok: step.outcome.is_ok(),
        path: step.path.as_ref().map(|p| p.display().to_string()),
        duration_ms: (step.took.as_secs_f64() * 1e6).round() / 1e3,
        capabilities: &step.given,
        result,
        supported_versions,
        error,
        stderr: &step.stderr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Made;

    fn result(json: &str) -> CniResult {
        CniResult::read(&serde_json::from_str(json).unwrap(), Version::LATEST).unwrap()
    }

    fn step(outcome: Result<Output, Fault>) -> Step {
        Step {
            verb: Verb::Add,
            plugin: "portmap".into(),
            path: None,
            given: vec!["portMappings".into()],
            took: Duration::from_micros(1234),
            stderr: String::new(),
            outcome,
        }
    }

    const FIRST: &str = r#"{"interfaces":[{"name":"cni0"},{"name":"eth0","mac":"a","sandbox":"/ns"}],
        "ips":[{"interface":1,"address":"10.1.0.2/24","gateway":"10.1.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}"#;

    #[test]
    fn a_line_says_what_came_out() {
        let first = result(FIRST);
        assert_eq!(difference(None, &first), "eth0 10.1.0.2/24; host: cni0; routes: 0.0.0.0/0");
        assert_eq!(difference(Some(&first), &first), "result passed on");
        let mut later = first.clone();
        later.interfaces[1].mac = "b".into();
        later.interfaces.push(Interface { name: "bwp1".into(), ..Interface::default() });
        assert_eq!(difference(Some(&first), &later), "eth0 now mac b; host: bwp1");
        assert_eq!(difference(None, &CniResult::default()), "empty result");
    }

    #[test]
    fn a_success_is_one_line() {
        let first = result(FIRST);
        let step = step(Ok(Output::Result(Box::new(Made { before: Some(first.clone()), after: first }))));
        assert_eq!(Text::PLAIN.step(&step), "  ✓ portmap       1.2 ms  result passed on  (given portMappings)\n");
    }

    #[test]
    fn a_failure_shows_all_that_the_plugin_said_and_the_next_step() {
        let error = PluginError { code: 7, msg: "bad \u{1b}[2Jkey".into(), details: "a\nb".into() };
        let step = Step { stderr: "warning".into(), ..step(Err(Fault::Refused(error))) };
        assert_eq!(
            Text::PLAIN.step(&step),
            "  ✗ portmap       1.2 ms  bad \\u{1b}[2Jkey (code 7)\n\
             \x20     details  a\n\
             \x20              b\n\
             \x20     next     correct the plugin's configuration in the conflist\n\
             \x20     stderr   warning\n"
        );
    }

    #[test]
    fn many_differences_are_a_list_that_ends() {
        let many: Vec<String> = (1..=12).map(|n| format!("chain {n}: expected it, found nothing")).collect();
        let error = PluginError { code: DIFFERS, msg: "differs".into(), details: many.join("; ") };
        let text = details(&Fault::Refused(error));
        assert_eq!(text.lines().count(), LISTED + 1, "{text}");
        assert!(text.starts_with("      details  chain 1: ") && text.contains("… and 2 more"), "{text}");
    }

    #[test]
    fn colour_is_only_for_terminals() {
        let ok = step(Ok(Output::Nothing));
        assert!(!Text::PLAIN.step(&ok).contains('\u{1b}'));
        assert!(Text { colour: true }.step(&ok).contains("\u{1b}[32m✓\u{1b}[0m"));
        assert!(!Text::for_terminal(false).colour);
    }

    #[test]
    fn durations_have_a_readable_unit() {
        let shown = |us| duration(Duration::from_micros(us));
        assert_eq!(
            [shown(40), shown(12_345), shown(250_000), shown(2_500_000)],
            ["0.0 ms", "12.3 ms", "250 ms", "2.5 s"]
        );
    }

    #[test]
    fn the_document_is_one_and_holds_the_result() {
        let mut report = Report::new(Verb::Add, "net", Version::V1_0_0);
        report.result = Some(result(FIRST));
        report.steps.push(step(Ok(Output::Nothing)));
        let json: serde_json::Value = serde_json::from_str(&document(&Ok(report))).unwrap();
        assert_eq!(json["ok"], true);
        assert_eq!(json["result"]["ips"][0]["address"], "10.1.0.2/24");
        assert_eq!(json["plugins"][0]["type"], "portmap");
        let failure = Failure::Usage { reason: "no".into() };
        let json: serde_json::Value = serde_json::from_str(&document(&Err(failure))).unwrap();
        assert_eq!((json["ok"].as_bool(), json["error"]["msg"].as_str()), (Some(false), Some("no")));
    }
}
