//! Every error there is comes out of a real executable, with its code and its words.
//!
//! The table below is complete: it makes a `match` over [`Error`], so a variant without a line doesn't compile. What the
//! documentation says of codes and words is held against the same table.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Seek, Write};
use std::process::Command;

use common::cni::Error;
use netns_tests::faults::{Fault, Run, Times, answered};
use netns_tests::lab::Container;
use netns_tests::trace::{Sent, sent};
use netns_tests::{Lab, Outcome, Plugin, Target, Verb};
use serde_json::{Value, json};

/// A host with one container, where a plugin is called in ways that must fail.
struct Stage {
    lab: Lab,
    container: Container,
}

/// What a call was answered: code, msg and details.
struct Answer {
    code: u64,
    msg: String,
    details: String,
}

impl From<Outcome> for Answer {
    #[track_caller]
    fn from(outcome: Outcome) -> Answer {
        let error = outcome.fails();
        Answer { code: error.code, msg: error.msg, details: error.details }
    }
}

impl Answer {
    /// Of a program that was started in a way that [`Plugin`] doesn't know.
    #[track_caller]
    fn of(command: &mut Command) -> Answer {
        let output = command.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
        let json: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
        assert!(json["cniVersion"].is_string(), "{json}");
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        Answer { code: json["code"].as_u64().unwrap(), msg: text("msg"), details: text("details") }
    }
}

impl Stage {
    fn new() -> Stage {
        let lab = Lab::new();
        let container = lab.container(2);
        Stage { lab, container }
    }

    fn config(&self, plugin: &str, keys: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": plugin, "prevResult": self.container.prev_result("1.1.0"),
        });
        keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        config
    }

    fn call(&self, plugin: &str, verb: Verb, keys: Value) -> Outcome {
        let config = self.config(plugin, keys);
        Plugin::ours(plugin).call(&self.lab.host, verb, &config, &self.container.target())
    }

    fn call_raw(&self, command: &str, stdin: &[u8]) -> Outcome {
        Plugin::ours("portmap").call_raw(&self.lab.host, command, stdin, &self.container.target())
    }

    fn call_for(&self, plugin: &str, verb: Verb, keys: Value, target: &Target) -> Outcome {
        Plugin::ours(plugin).call(&self.lab.host, verb, &self.config(plugin, keys), target)
    }

    /// A call through another program (strace, setpriv), with `stdin` as a file.
    fn command(&self, through: &[&str], plugin: &str, verb: Verb, stdin: &[u8]) -> Command {
        let path = Plugin::ours(plugin).path().to_owned();
        let (program, words) = match through.split_first() {
            Some((program, words)) => (program.into(), words),
            None => (path.clone(), through),
        };
        let mut command = self.lab.host.command(program);
        command.args(words);
        if !through.is_empty() {
            command.arg(path);
        }
        let target = self.container.target();
        command
            .env("CNI_COMMAND", verb.as_str())
            .env("CNI_CONTAINERID", target.container)
            .env("CNI_NETNS", target.netns)
            .env("CNI_IFNAME", target.ifname);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(stdin).unwrap();
        file.rewind().unwrap();
        command.stdin(file);
        command
    }
}

fn ports() -> Value {
    json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}})
}

/// Variants, the code and some words of each, and the call that produces it.
macro_rules! errors {
    ($($variant:ident $code:literal $words:literal => $produce:expr;)*) => {
        /// Makes a variant without a line above a compile error.
        const fn _complete(error: &Error) {
            match error {
                $(Error::$variant { .. } => {})*
            }
        }

        const TABLE: &[(&str, u64, &str)] = &[$((stringify!($variant), $code, $words)),*];

        $(#[test]
        #[allow(non_snake_case)]
        fn $variant() {
            let produce: fn(&Stage) -> Answer = $produce;
            let answer = produce(&Stage::new());
            assert_eq!(answer.code, $code, "{}: {}", answer.msg, answer.details);
            assert!(answer.msg.contains($words), "{:?} is not in {:?}", $words, answer.msg);
            assert!(!answer.msg.contains('\n'), "one sentence: {:?}", answer.msg);
            if NEXT_STEP.contains(&$code) {
                assert!(!answer.details.is_empty(), "{}: no next step", answer.msg);
            }
        })*
    };
}

/// The codes whose cause isn't plain from `msg`.
const NEXT_STEP: [u64; 11] = [1, 8, 50, 51, 100, 101, 102, 103, 104, 108, 199];

errors! {
    IncompatibleVersion 1 "incompatible CNI versions" => |s| {
        s.call("portmap", Verb::Add, json!({"cniVersion": "9.9.9"})).into()
    };
    VerbNotInVersion 1 "config version does not allow GC" => |s| {
        s.call("portmap", Verb::Gc, json!({"cniVersion": "1.0.0"})).into()
    };
    UnsupportedField 2 "unsupported value in the configuration: sysctl" => |s| {
        s.call("tuning", Verb::Add, json!({"sysctl": {"net.ipv4.conf.all.rp_filter": "loose"}})).into()
    };
    MissingEnvironment 4 "required env variables [CNI_CONTAINERID] missing" => |s| {
        let target = Target { container: String::new(), ..s.container.target() };
        s.call_for("portmap", Verb::Add, json!({}), &target).into()
    };
    InvalidEnvironment 4 "invalid value in CNI_IFNAME" => |s| {
        let target = Target { ifname: "a/b".into(), ..s.container.target() };
        s.call_for("portmap", Verb::Add, json!({}), &target).into()
    };
    UnknownCommand 4 "unknown CNI_COMMAND: FROB" => |s| s.call_raw("FROB", b"{}").into();
    Stdin 5 "error reading from stdin" => |s| {
        let mut command = s.command(&[], "portmap", Verb::Add, b"");
        Answer::of(command.stdin(std::fs::File::open("/").unwrap()))
    };
    NotJson 6 "error unmarshalling network config" => |s| s.call_raw("ADD", b"{").into();
    WrongType 6 "failed to parse network configuration: snat" => |s| {
        s.call("portmap", Verb::Add, json!({"snat": "yes"})).into()
    };
    MalformedVersion 6 "could not parse the configuration's cniVersion" => |s| {
        s.call("portmap", Verb::Add, json!({"cniVersion": "one"})).into()
    };
    MissingName 7 "missing network name" => |s| s.call("portmap", Verb::Add, json!({"name": ""})).into();
    InvalidConfig 7 "invalid configuration: markMasqBit = 32" => |s| {
        s.call("portmap", Verb::Add, json!({"markMasqBit": 32})).into()
    };
    MissingPrevResult 7 "must be called as chained plugin" => |s| {
        s.call("portmap", Verb::Add, json!({"prevResult": null})).into()
    };
    BadPrevResult 7 "could not parse prevResult" => |s| {
        s.call("portmap", Verb::Add, json!({"prevResult": {"cniVersion": "0.4.0"}})).into()
    };
    SameNetns 8 "plugin's netns and netns from CNI_NETNS should not be the same" => |s| {
        let target = Target { netns: s.lab.host.path(), ..s.container.target() };
        s.call_for("portmap", Verb::Add, ports(), &target).into()
    };
    TryAgain 11 "; try again later" => refused_for_ever;
    NotAvailable 50 "the plugin is not available" => |s| {
        s.lab.host.write("/run/occupied", "");
        s.call("tuning", Verb::Status, json!({"dataDir": "/run/occupied"})).into()
    };
    LimitedConnectivity 51 "containers would have limited connectivity" => |s| {
        s.lab.host.nft("table inet mine { chain forward { type filter hook forward priority filter; policy drop; }; }");
        s.call("firewall", Verb::Status, json!({})).into()
    };
    PortTaken 100 "host port 8080/tcp is taken by container container-2" => |s| {
        s.call("portmap", Verb::Add, ports()).succeeds();
        let other = s.lab.container(3);
        let config = json!({"prevResult": other.prev_result("1.1.0"), "runtimeConfig": ports()["runtimeConfig"]});
        s.call_for("portmap", Verb::Add, config, &other.target()).into()
    };
    StateDiffers 101 "the state differs from what ADD would make" => |s| {
        let keys = || json!({"sysctl": {"net.core.somaxconn": "512"}});
        s.call("tuning", Verb::Add, keys()).succeeds();
        s.container.netns.set_sysctl("net/core/somaxconn", "513");
        let answer: Answer = s.call("tuning", Verb::Check, keys()).into();
        assert!(answer.details.contains("512") && answer.details.contains("513"), "{}", answer.details);
        answer
    };
    Kernel 102 "the kernel refused to" => |s| {
        let stdin = s.config("portmap", ports()).to_string();
        let unprivileged = ["setpriv", "--bounding-set=-net_admin"];
        let answer = Answer::of(&mut s.command(&unprivileged, "portmap", Verb::Add, stdin.as_bytes()));
        assert!(answer.details.contains("errno 1"), "{}", answer.details);
        answer
    };
    Unanswered 102 "the kernel's answer to the request to" => |s| {
        let plugin = Plugin::ours("bandwidth");
        let config = s.config("bandwidth", json!({"ingressRate": 8000, "ingressBurst": 8000}));
        let target = s.container.target();
        let run = Run { plugin: &plugin, host: &s.lab.host, verb: Verb::Add, config: &config, target: &target };
        answered(&run, Fault::Unanswered, Times::Always).0.into()
    };
    HostFirewall 103 "the host's firewall (firewalld) can't be told" => |s| {
        s.call("firewall", Verb::Add, json!({"backend": "firewalld"})).into()
    };
    Netns 104 "failed to open netns" => |s| {
        let target = Target { netns: "/run/no-such-netns".into(), ..s.container.target() };
        s.call_for("tuning", Verb::Add, json!({"mtu": 1400}), &target).into()
    };
    Link 105 "interface " => |s| {
        let target = Target { ifname: "eth7".into(), ..s.container.target() };
        s.call_for("bandwidth", Verb::Add, json!({"ingressRate": 8000, "ingressBurst": 8000}), &target).into()
    };
    StateFile 106 "state file /run/occupied" => |s| {
        s.lab.host.write("/run/occupied", "");
        s.call("tuning", Verb::Add, json!({"dataDir": "/run/occupied", "mtu": 1400})).into()
    };
    Several 107 "2 failures, the first" => two_files_that_stay;
    OutOfMemory 108 "out of memory" => |s| {
        let mapping = |port: usize| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"});
        let every = json!({"portMappings": (1..=65_535).map(mapping).collect::<Vec<_>>()});
        let stdin = s.config("portmap", json!({"runtimeConfig": every})).to_string();
        Answer::of(&mut s.command(&["prlimit", "--data=16777216"], "portmap", Verb::Add, stdin.as_bytes()))
    };
    Internal 199 "internal error" => |s| {
        // No input is known that makes one of the four panic, so there is a plugin that always does.
        let through = ["sh", "-c", concat!("exec ", env!("CARGO_BIN_EXE_panicking"))];
        let answer = Answer::of(&mut s.command(&through, "portmap", Verb::Add, b"{\"name\": \"net\"}"));
        assert!(answer.msg.contains("on purpose") && answer.msg.contains("panicking.rs"), "{}", answer.msg);
        answer
    };
}

/// A kernel that answers each transaction with ERESTART, as if somebody else were always faster: strace(1) puts that answer
/// in the place of the kernel's.
fn refused_for_ever(stage: &Stage) -> Answer {
    let stdin = stage.config("portmap", ports()).to_string();
    let through = |words: &[&str]| {
        let words = [&["strace", "-f", "-qq"], words].concat();
        stage.command(&words, "portmap", Verb::Add, stdin.as_bytes())
    };
    // The first one makes the table too, so it isn't like the others.
    for _ in 0..2 {
        stage.call("portmap", Verb::Del, ports()).succeeds();
        stage.call("portmap", Verb::Add, ports()).succeeds();
    }
    stage.call("portmap", Verb::Del, ports()).succeeds();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let path = trace.path().to_str().unwrap();
    assert!(through(&["-e", "trace=sendmsg", "-o", path]).output().unwrap().status.success());
    stage.call("portmap", Verb::Del, ports()).succeeds();

    let sent = sent(&std::fs::read_to_string(path).unwrap());
    let transaction = sent.iter().position(|s| *s == Sent::Transaction).unwrap();
    let begun = sent[..transaction].iter().rposition(|s| *s == Sent::Generation).unwrap();
    // Every attempt asks the same questions before its transaction.
    let inject = format!("inject=sendmsg:error=ERESTART:when={}+{}", transaction + 1, transaction - begun + 1);
    Answer::of(&mut through(&["-o", "/dev/null", "-e", &inject]))
}

/// Two state files that can't be removed, because something is mounted on them: GC goes on after the first, says both, and
/// removes the third.
fn two_files_that_stay(stage: &Stage) -> Answer {
    for (id, mtu) in [("one", 1400), ("two", 1401), ("three", 1402)] {
        let target = Target { container: id.into(), ..stage.container.target() };
        stage.call_for("tuning", Verb::Add, json!({"mtu": mtu}), &target).succeeds();
    }
    let files = || stage.lab.host.run("ls /run/cni/tuning");
    let all = files();
    let names: Vec<&str> = all.lines().collect();
    assert_eq!(names.len(), 3, "{all}");
    for name in &names[..2] {
        stage.lab.host.run(&format!("mount --bind /run/cni/tuning/{name} /run/cni/tuning/{name}"));
    }
    let answer: Answer = stage.call("tuning", Verb::Gc, json!({"cni.dev/valid-attachments": []})).into();
    for name in &names[..2] {
        assert!(answer.details.contains(name), "{}", answer.details);
    }
    assert_eq!(files().lines().collect::<Vec<_>>(), names[..2], "the third is gone");
    answer
}

const SOURCE: &str = include_str!("../../common/src/cni/error.rs");
const PAGE: &str = include_str!("../../docs/errors.md");

/// The longest piece of each variant's message that is the same in every case.
fn messages() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = SOURCE.lines();
    while let Some(line) = lines.next() {
        let Some(message) = line.trim().strip_prefix("#[error(\"") else { continue };
        let message = message.replace("\\\"", "'");
        let message = message.split('"').next().unwrap();
        let pieces =
            message.split(['{', '}']).step_by(2).map(|piece| piece.trim_matches([' ', ':', ';', ',', '\'', '(']));
        let piece = pieces.max_by_key(|piece| piece.len()).unwrap().to_owned();
        let variant = lines.next().unwrap().trim().trim_end_matches([' ', '{', ',']).to_owned();
        found.push((variant, piece));
    }
    found
}

#[test]
fn the_page_has_every_message_in_the_row_of_its_code() {
    let rows: Vec<(u64, &str)> = PAGE
        .lines()
        .filter_map(|line| Some((line.strip_prefix("| ")?.split(" |").next()?.parse().ok()?, line)))
        .collect();
    let messages = messages();
    assert_eq!(messages.len(), TABLE.len());
    for (variant, code, _) in TABLE {
        let (_, message) = messages.iter().find(|(v, _)| v == variant).unwrap();
        let (_, row) =
            rows.iter().find(|(c, _)| c == code).unwrap_or_else(|| panic!("docs/errors.md has no code {code}"));
        assert!(row.contains(message.as_str()), "docs/errors.md lacks {message:?} ({variant}) in the row of {code}");
    }
    for (code, _) in rows {
        assert!(TABLE.iter().any(|(_, c, _)| *c == code), "docs/errors.md has a code {code} that no error has");
    }
}

#[test]
fn the_table_at_the_top_of_the_enum_has_every_code() {
    let head: Vec<u64> =
        SOURCE.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" |").next()?.parse().ok()).collect();
    let mut codes: Vec<u64> = TABLE.iter().map(|(_, code, _)| *code).collect();
    codes.dedup();
    assert_eq!(head, codes);
}
