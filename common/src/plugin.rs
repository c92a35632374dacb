//! The verbs, written once, over what a plugin is: configuration, plan and state.
//!
//! ```text
//!            stdin + env                observed facts
//!                 │                           │
//!   Written ──validate──► Config ──plan──► State ──apply──► kernel        ADD
//!                                            └────differences──►          CHECK
//!   Attachment ─────────remove──────────────────────────► kernel          DEL
//!   network + live attachments ──collect────────────────► kernel          GC
//! ```

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::attachment::Attachment;
use crate::cni::env::{Args, Environment, Verb, is_identifier, validate_ifname};
use crate::cni::network::{self, Network, STDIN_MAX, ValidAttachment};
use crate::cni::{CniResult, Difference, Error, Json, Result, Version};
use crate::entry;
use crate::logging::CallRecord;
use crate::netns;

/// One call of a runtime, as far as it is not configuration.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is asked.
    pub verb: Verb,
    /// For whom; container and ifname are empty for GC and STATUS.
    pub attachment: Attachment,
    /// The container's namespace; DEL may come without.
    pub netns: Option<PathBuf>,
    /// CNI_ARGS.
    pub args: Args,
    /// The version of the configuration.
    pub version: Version,
}

/// One attachment's share of kernel state.
pub trait State {
    /// Makes the kernel hold exactly this share: all of it, or on failure what was there before. Repeatable.
    fn apply(&self, call: &Call) -> Result<()>;

    /// Where the kernel holds something else. Changes nothing.
    fn differences(&self, call: &Call) -> Result<Vec<Difference>>;

    /// Writes into the result what this share adds to it.
    fn amend(&self, _call: &Call, _result: &mut CniResult) {}
}

/// A chained plugin.
pub trait Plugin {
    /// Its name, which is its `type` in a conflist.
    const NAME: &'static str;
    /// Its keys as they may be written.
    type Written: DeserializeOwned;
    /// What was meant by them: a value that can't be wrong.
    type Config;
    /// What must be looked up on this host before planning.
    type Facts;
    /// What it makes.
    type State: State;

    /// From what was written to what was meant. Opens nothing.
    fn validate(written: Self::Written, call: &Call) -> Result<Self::Config>;

    /// Whether the configuration asks for nothing: then ADD passes prevResult on and no socket is opened.
    fn is_idle(config: &Self::Config) -> bool;

    /// Looks up what the plan depends on. Changes nothing.
    fn observe(config: &Self::Config, call: &Call, prev: &CniResult) -> Result<Self::Facts>;

    /// The attachment's share. Pure.
    fn plan(config: &Self::Config, call: &Call, prev: &CniResult, facts: Self::Facts) -> Result<Self::State>;

    /// Removes whatever the attachment owns; nothing to remove is success. The configuration is there if it is valid,
    /// the prevResult if the runtime still had it: hints, not needs.
    fn remove(call: &Call, config: Option<&Self::Config>, prev: Option<&CniResult>) -> Result<()>;

    /// Removes whatever attachments of `network` own that are not among the living.
    fn collect(network: &str, live: &BTreeSet<Attachment>, config: Option<&Self::Config>) -> Result<()>;

    /// Whether ADD can succeed here and now. No side effect.
    fn status(config: &Self::Config) -> Result<()>;
}

/// What goes back to the runtime.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The one document for stdout; DEL, CHECK, GC and STATUS have none when they succeed.
    pub stdout: String,
    /// Whether the verb succeeded.
    pub success: bool,
}

/// The whole program: environment and stdin in, stdout and exit code out; gives whether the verb succeeded.
pub fn run<P: Plugin>() -> bool {
    crate::logging::init(P::NAME);
    print_panics_as_errors();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let lookup = |name: &str| std::env::var_os(name);
    let wants_banner = arguments.iter().any(|a| matches!(a.as_str(), "--help" | "-h" | "--version" | "-V"));
    if wants_banner || lookup("CNI_COMMAND").is_none_or(|c| c.is_empty()) {
        print_banner(P::NAME);
        return true;
    }
    let answer = answer::<P>(&lookup, &mut read_stdin);
    let written = entry::stdout().write_all(answer.stdout.as_bytes());
    if let Err(error) = &written {
        log::error!("the answer can't be written to stdout: {error}; what was done stays, and DEL removes it");
    }
    answer.success && written.is_ok()
}

/// Answers one call; `stdin` is asked once.
pub fn answer<P: Plugin>(
    lookup: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn FnMut() -> Result<Vec<u8>>,
) -> Answer {
    let command = lookup("CNI_COMMAND").unwrap_or_default().to_string_lossy().into_owned();
    let mut record = CallRecord::begin(P::NAME, &command);
    // It is read before anything is looked at, because an error names the version that stands in it, too.
    let config = stdin().and_then(|bytes| match Verb::from_command(&command) {
        Some(Verb::Del | Verb::Gc) => Network::parse_whatever_its_numbers(&bytes),
        _ => Network::parse(&bytes),
    });
    let named = config.as_ref().ok().and_then(network::named_version).map(str::to_owned);
    let version = named.as_deref().unwrap_or(Version::LATEST.as_str());
    let outcome = dispatch::<P>(&command, lookup, config, version, &mut record);
    record.end(outcome.as_ref().err());
    match outcome {
        Ok(stdout) => Answer { stdout, success: true },
        Err(error) => Answer { stdout: to_json(&error.to_document(version)), success: false },
    }
}

fn dispatch<P: Plugin>(
    command: &str,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    config: Result<Json>,
    version: &str,
    record: &mut CallRecord,
) -> Result<String> {
    let Some(verb) = Verb::from_command(command) else {
        return Err(Error::UnknownCommand { command: command.to_owned() });
    };
    if verb == Verb::Version {
        return Ok(version_document(version));
    }
    let env = Environment::read(verb, lookup)?;
    let own_netns_allowed = env.netns_override;
    let (net, call) = receive(env, config?)?;
    record.concerns(&call);
    if !own_netns_allowed && matches!(verb, Verb::Add | Verb::Check | Verb::Del) {
        netns::refuse_own(call.netns.as_deref())?;
    }
    match verb {
        Verb::Add => add::<P>(&net, &call),
        Verb::Del => del::<P>(&net, &call),
        Verb::Check => check::<P>(&net, &call),
        Verb::Gc => gc::<P>(&net, &call),
        Verb::Status => configured::<P>(&net, &call).and_then(|c| P::status(&c)).map(|()| String::new()),
        Verb::Version => Ok(String::new()),
    }
}

/// Reads a call from its environment and configuration.
fn receive(env: Environment, config: Json) -> Result<(Network, Call)> {
    let net = Network::read(config, env.verb)?;
    let call = Call {
        verb: env.verb,
        attachment: Attachment::new(net.name.clone(), env.container, env.ifname),
        netns: env.netns,
        args: env.args,
        version: net.version,
    };
    Ok((net, call))
}

/// What a plugin would make of a call before it looks at the host: the call, what was meant by the configuration, and
/// the prevResult. Opens nothing; fuzzing and tools use it.
pub fn interpret<P: Plugin>(env: Environment, stdin: &[u8]) -> Result<(Call, P::Config, Option<CniResult>)> {
    let (net, call) = receive(env, Network::parse(stdin)?)?;
    let config = configured::<P>(&net, &call)?;
    Ok((call, config, net.prev_result))
}

fn configured<P: Plugin>(net: &Network, call: &Call) -> Result<P::Config> {
    let (written, misspelt) = net.own_keys::<P::Written>()?;
    for key in misspelt {
        log::warn!("{key}");
    }
    P::validate(written, call)
}

fn add<P: Plugin>(net: &Network, call: &Call) -> Result<String> {
    let config = configured::<P>(net, call)?;
    let mut result = net.prev_result.clone().ok_or(Error::MissingPrevResult)?;
    // A result that can't be written in this version must be found out before anything is changed.
    result.to_document(net.version)?;
    if P::is_idle(&config) {
        return match net.prev_result_as_written() {
            Some(json) => Ok(to_json(&json)),
            None => Ok(to_json(&result.to_document(net.version)?)),
        };
    }
    let facts = P::observe(&config, call, &result)?;
    let state = P::plan(&config, call, &result, facts)?;
    state.apply(call)?;
    state.amend(call, &mut result);
    Ok(to_json(&result.to_document(net.version)?))
}

fn check<P: Plugin>(net: &Network, call: &Call) -> Result<String> {
    let config = configured::<P>(net, call)?;
    let prev = net.prev_result.as_ref().ok_or(Error::MissingPrevResult)?;
    if P::is_idle(&config) {
        return Ok(String::new());
    }
    let facts = P::observe(&config, call, prev)?;
    let differences = P::plan(&config, call, prev, facts)?.differences(call)?;
    if differences.is_empty() { Ok(String::new()) } else { Err(Error::StateDiffers { differences }) }
}

fn del<P: Plugin>(net: &Network, call: &Call) -> Result<String> {
    let config = config_as_hint::<P>(net, call);
    P::remove(call, config.as_ref(), net.prev_result.as_ref()).map(|()| String::new())
}

fn gc<P: Plugin>(net: &Network, call: &Call) -> Result<String> {
    let Some(valid) = &net.valid_attachments else {
        return Err(Error::invalid(
            "cni.dev/valid-attachments",
            "(absent)",
            "GC needs the list of living attachments; an empty list removes all of this network",
        ));
    };
    let live = valid.iter().enumerate().map(|(place, one)| living(&net.name, place, one));
    let live: BTreeSet<Attachment> = live.collect::<Result<_>>()?;
    let config = config_as_hint::<P>(net, call);
    P::collect(&net.name, &live, config.as_ref()).map(|()| String::new())
}

/// One of the living. An entry that can be nobody's is an error: whoever it was to name would be taken for dead.
fn living(network: &str, place: usize, one: &ValidAttachment) -> Result<Attachment> {
    let refuse = |key: &str, value: &str, reason: &str| {
        Err(Error::invalid(format!("cni.dev/valid-attachments.{place}.{key}"), format!("\"{value}\""), reason))
    };
    if !is_identifier(&one.container) {
        return refuse("containerID", &one.container, "no container has such an id; nothing was removed");
    }
    match validate_ifname(&one.ifname) {
        Err(reason) => refuse("ifname", &one.ifname, &format!("{reason}; nothing was removed")),
        Ok(()) => Ok(Attachment::new(network, one.container.as_str(), one.ifname.as_str())),
    }
}

/// DEL and GC must go on where the configuration has become invalid since ADD: with those of its keys that can be read.
fn config_as_hint<P: Plugin>(net: &Network, call: &Call) -> Option<P::Config> {
    let error = match configured::<P>(net, call) {
        Ok(config) => return Some(config),
        Err(error) => error,
    };
    log::warn!("{error}; removing what the attachment owns all the same");
    P::validate(net.readable_keys::<P::Written>()?, call).ok()
}

#[derive(Serialize)]
struct VersionDocument<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    #[serde(rename = "supportedVersions")]
    supported_versions: [&'static str; Version::ALL.len()],
}

/// SPEC.md, "VERSION Success": the version given on stdin comes back.
fn version_document(given: &str) -> String {
    let document = VersionDocument { cni_version: given, supported_versions: Version::ALL.map(Version::as_str) };
    serde_json::to_string(&document).unwrap_or_default() + "\n"
}

fn to_json<T: Serialize>(document: &T) -> String {
    let mut out = Vec::with_capacity(1024);
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut out, serde_json::ser::PrettyFormatter::with_indent(b"    "));
    // Serialising our own types into memory can't fail: no map has a key that isn't a string.
    let _ = document.serialize(&mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

fn read_stdin() -> Result<Vec<u8>> {
    let stdin = entry::stdin();
    if stdin.is_terminal() {
        return Err(Error::Stdin { reason: "it is a terminal; the network configuration is expected there".into() });
    }
    let mut bytes = Vec::with_capacity(4096);
    let limit = STDIN_MAX as u64 + 1;
    (&*stdin).take(limit).read_to_end(&mut bytes).map_err(|e| Error::Stdin { reason: e.to_string() })?;
    if bytes.len() > STDIN_MAX {
        return Err(Error::Stdin { reason: format!("the network configuration is larger than {STDIN_MAX} bytes") });
    }
    Ok(bytes)
}

/// Says what this is; a stderr that can't be written is no reason to fail.
fn print_banner(name: &str) {
    let versions: Vec<&str> = Version::ALL.iter().map(|v| v.as_str()).collect();
    let lines = [
        format!("CNI {name} plugin {}", env!("CARGO_PKG_VERSION")),
        format!("CNI protocol versions supported: {}", versions.join(", ")),
    ];
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
}

/// A panic is a defect, but the runtime still gets a document it can read and exit code 1.
fn print_panics_as_errors() {
    std::panic::set_hook(Box::new(|info| {
        let error = Error::Internal { what: info.to_string().lines().collect::<Vec<_>>().join(" ") };
        let _ = entry::stdout().write_all(to_json(&error.to_document(Version::LATEST.as_str())).as_bytes());
        std::process::exit(1);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    /// A plugin that only records what it is asked for.
    struct Recorder;

    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Written {
        work: bool,
        refuse: bool,
    }

    struct Share;

    static ASKED: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn asked(what: impl Into<String>) {
        ASKED.lock().unwrap().push(what.into());
    }

    impl State for Share {
        fn apply(&self, call: &Call) -> Result<()> {
            asked(format!("apply {}", call.attachment));
            Ok(())
        }
        fn differences(&self, _: &Call) -> Result<Vec<Difference>> {
            Ok(vec![Difference::missing("thing", "one")])
        }
        fn amend(&self, _: &Call, result: &mut CniResult) {
            result.dns.domain = "amended".into();
        }
    }

    impl Plugin for Recorder {
        const NAME: &'static str = "recorder";
        type Written = Written;
        type Config = bool;
        type Facts = ();
        type State = Share;

        fn validate(written: Written, _: &Call) -> Result<bool> {
            if written.refuse { Err(Error::invalid("refuse", true, "it is set")) } else { Ok(written.work) }
        }
        fn is_idle(work: &bool) -> bool {
            !work
        }
        fn observe(_: &bool, _: &Call, _: &CniResult) -> Result<()> {
            Ok(())
        }
        fn plan(_: &bool, _: &Call, _: &CniResult, _: ()) -> Result<Share> {
            Ok(Share)
        }
        fn remove(call: &Call, config: Option<&bool>, _: Option<&CniResult>) -> Result<()> {
            asked(format!("remove {} {config:?}", call.attachment));
            Ok(())
        }
        fn collect(network: &str, live: &BTreeSet<Attachment>, _: Option<&bool>) -> Result<()> {
            asked(format!("collect {network} {}", live.len()));
            Ok(())
        }
        fn status(_: &bool) -> Result<()> {
            Ok(())
        }
    }

    fn call(verb: &str, config: &str, more: &[(&str, &str)]) -> (Answer, Vec<String>) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap();
        let mut vars = BTreeMap::from([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/no/such/netns"),
            ("CNI_IFNAME", "eth0"),
        ]);
        vars.extend(more.iter().copied());
        ASKED.lock().unwrap().clear();
        let answer =
            answer::<Recorder>(&|name| vars.get(name).map(OsString::from), &mut || Ok(config.as_bytes().to_vec()));
        (answer, ASKED.lock().unwrap().clone())
    }

    fn code(answer: &Answer) -> u64 {
        assert!(!answer.success);
        let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        assert!(json["cniVersion"].is_string() && !json["msg"].as_str().unwrap().is_empty(), "{json}");
        json["code"].as_u64().unwrap()
    }

    const PREV: &str = r#""prevResult":{"ips":[{"address":"10.0.0.2/24"}]}"#;

    fn config(version: &str, keys: &str) -> String {
        format!(r#"{{"cniVersion":"{version}","name":"net","type":"recorder",{keys}}}"#)
    }

    #[test]
    fn add_applies_and_amends_the_result() {
        let (answer, asked) = call("ADD", &config("1.1.0", &format!(r#""work":true,{PREV}"#)), &[]);
        assert!(answer.success);
        assert!(answer.stdout.contains("amended"));
        assert_eq!(asked, ["apply net/c1/eth0"]);
    }

    #[test]
    fn an_idle_add_passes_the_prev_result_on() {
        let (answer, asked) = call("ADD", &config("1.1.0", PREV), &[]);
        let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!(json, serde_json::json!({"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}));
        assert!(asked.is_empty());
    }

    #[test]
    fn a_result_that_this_version_cannot_write_changes_nothing() {
        let (answer, asked) = call("ADD", &config("0.2.0", r#""work":true,"prevResult":{"dns":{}}"#), &[]);
        assert_eq!(code(&answer), 7);
        assert!(asked.is_empty());
    }

    #[test]
    fn del_needs_neither_prev_result_nor_a_valid_configuration() {
        let bare = config("1.0.0", r#""refuse":true,"prevResult":{"cniVersion":"0.2.0"}"#);
        let (answer, asked) = call("DEL", &bare, &[("CNI_NETNS", "")]);
        assert_eq!(answer, Answer { stdout: String::new(), success: true });
        assert_eq!(asked, ["remove net/c1/eth0 None"]);
    }

    #[test]
    fn del_goes_by_the_keys_that_can_be_read() {
        let keys = config("1.0.0", r#""refuse":"maybe","work":true"#);
        let (answer, asked) = call("DEL", &keys, &[]);
        assert_eq!(answer, Answer { stdout: String::new(), success: true });
        assert_eq!(asked, ["remove net/c1/eth0 Some(true)"]);
    }

    #[test]
    fn what_a_runtime_writes_for_others_has_its_type_all_the_same() {
        let cases = [
            (r#""ipam":"x""#, "ipam"),
            (r#""ipam":{"type":1}"#, "ipam.type"),
            (r#""dns":"x""#, "dns"),
            (r#""dns":{"search":"x"}"#, "dns.search"),
            (r#""capabilities":[]"#, "capabilities"),
            (r#""capabilities":{"mac":1}"#, "capabilities.mac"),
            (r#""Type":5"#, "type"),
        ];
        for (keys, named) in cases {
            let config = config("1.1.0", &format!(r#""cni.dev/valid-attachments":[],{PREV},{keys}"#));
            for verb in ["ADD", "CHECK", "STATUS"] {
                let (answer, _) = call(verb, &config, &[]);
                assert_eq!(code(&answer), 6, "{verb} {keys}");
                assert!(answer.stdout.contains(&format!("configuration: {named}: ")), "{}", answer.stdout);
            }
            for verb in ["DEL", "GC"] {
                let (answer, asked) = call(verb, &config, &[]);
                assert!(answer.success && asked.len() == 1, "{verb} {keys}: {}", answer.stdout);
            }
        }
        for keys in
            [r#""dns":{"nameservers":[null]}"#, r#""capabilities":{"mac":null}"#, r#""ipam":null"#, r#""args":[1]"#]
        {
            assert!(call("ADD", &config("1.1.0", &format!("{PREV},{keys}")), &[]).0.success, "{keys}");
        }
        for needed in [r#""name":5"#, r#""cniVersion":5"#, r#""cni.dev/valid-attachments":{}"#] {
            for verb in ["DEL", "GC"] {
                let (answer, asked) = call(verb, &config("1.1.0", &format!(r#""ipam":"x",{needed}"#)), &[]);
                assert_eq!(code(&answer), 6, "{verb} {needed}");
                assert!(asked.is_empty());
            }
        }
    }

    #[test]
    fn an_error_names_the_version_of_the_configuration_whatever_is_wrong() {
        type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);
        let cases: [Case; 6] = [
            ("FROB", r#"{"cniVersion":"0.3.1"}"#, &[], "0.3.1"),
            ("ADD", r#"{"cniVersion":"0.4.0"}"#, &[("CNI_IFNAME", "")], "0.4.0"),
            ("DEL", r#"{"CNIVERSION":"1.0.0"}"#, &[("CNI_CONTAINERID", "a/b")], "1.0.0"),
            ("ADD", r#"{"cniVersion":"9.9.9","name":"n"}"#, &[], "9.9.9"),
            ("ADD", r#"{"cniVersion":"one","name":"n"}"#, &[], "1.1.0"),
            ("ADD", "{", &[("CNI_IFNAME", "")], "1.1.0"),
        ];
        for (verb, config, env, version) in cases {
            let (answer, _) = call(verb, config, env);
            let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
            assert_eq!(json["cniVersion"], version, "{verb} {config}");
        }
    }

    #[test]
    fn check_lists_the_differences() {
        let (answer, _) = call("CHECK", &config("1.0.0", &format!(r#""work":true,{PREV}"#)), &[]);
        assert_eq!(code(&answer), 101);
        assert!(answer.stdout.contains("thing: expected one, found nothing"), "{}", answer.stdout);
    }

    #[test]
    fn gc_reads_both_spellings_and_refuses_none() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let config = config("1.1.0", &format!(r#""{key}":[{{"containerID":"a","ifname":"eth0"}}]"#));
            let (answer, asked) = call("GC", &config, &[]);
            assert!(answer.success, "{}", answer.stdout);
            assert_eq!(asked, ["collect net 1"]);
        }
        let names_nobody =
            ["{}", r#"{"containerID":"a"}"#, r#"{"containerID":"../a","ifname":"eth0"}"#, "null", r#"["a","eth0"]"#];
        for one in names_nobody {
            let keys = format!(r#""cni.dev/valid-attachments":[{{"containerID":"b","ifname":"eth0"}},{one}]"#);
            let (answer, asked) = call("GC", &config("1.1.0", &keys), &[]);
            assert!([6, 7].contains(&code(&answer)), "{}", answer.stdout);
            assert!(asked.is_empty(), "{one}");
        }
        let (answer, asked) = call("GC", &config("1.1.0", r#""work":true"#), &[]);
        assert_eq!(code(&answer), 7);
        assert!(asked.is_empty());
    }

    #[test]
    fn the_own_namespace_is_refused_before_anything_is_done() {
        let keys = config("1.0.0", &format!(r#""work":true,{PREV}"#));
        let own = [("CNI_NETNS", "/proc/thread-self/ns/net")];
        let (answer, asked) = call("ADD", &keys, &own);
        assert_eq!(code(&answer), 8);
        assert!(asked.is_empty());
        let over = [("CNI_NETNS", "/proc/thread-self/ns/net"), ("CNI_NETNS_OVERRIDE", "True")];
        assert!(call("ADD", &keys, &over).0.success);
    }

    #[test]
    fn errors_come_in_the_order_of_the_reference() {
        type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], u64);
        let cases: &[Case] = &[
            ("FROB", "{", &[], 4),
            ("ADD", "{", &[("CNI_IFNAME", "")], 4),
            ("ADD", "{", &[], 6),
            ("ADD", "[]", &[], 6),
            ("ADD", r#"{"cniVersion":"9.9.9"}"#, &[], 7),
            ("ADD", r#"{"cniVersion":"9.9.9","name":"a/b"}"#, &[], 7),
            ("ADD", r#"{"cniVersion":"9.9.9","name":"net"}"#, &[], 1),
            ("ADD", r#"{"cniVersion":"x","name":"net"}"#, &[], 6),
            ("ADD", r#"{"cniVersion":1,"name":"net"}"#, &[], 6),
            ("CHECK", r#"{"cniVersion":"0.3.1","name":"net"}"#, &[], 1),
            ("GC", r#"{"cniVersion":"1.0.0","name":"net"}"#, &[], 1),
            ("STATUS", r#"{"cniVersion":"1.0.0","name":"net"}"#, &[], 1),
            ("ADD", r#"{"cniVersion":"1.0.0","name":"net"}"#, &[], 7),
            ("ADD", r#"{"cniVersion":"1.0.0","name":"net","work":"yes"}"#, &[], 6),
            ("ADD", r#"{"cniVersion":"1.0.0","name":"net","prevResult":{"cniVersion":"0.4.0"}}"#, &[], 7),
        ];
        for (verb, config, env, expected) in cases {
            let (answer, asked) = call(verb, config, env);
            assert_eq!(code(&answer), *expected, "{verb} {config}: {}", answer.stdout);
            assert!(asked.is_empty());
        }
    }

    #[test]
    fn version_echoes_what_it_was_asked_with() {
        for (stdin, echo) in [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0"), ("{", "1.1.0")] {
            let (answer, _) = call("VERSION", stdin, &[]);
            let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
            assert_eq!(json["cniVersion"], echo);
            assert_eq!(json["supportedVersions"].as_array().unwrap().len(), 7);
        }
    }

    #[test]
    fn deep_nesting_is_an_error_like_any_other() {
        let deep = format!("{}{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        assert_eq!(code(&call("ADD", &deep, &[]).0), 6);
    }
}
