//! The specification as a table: plugins × verbs × versions × conditions, each with what must come of it.
//!
//! Every combination is run through the binary as a runtime would run it. [`Condition::expect`] is total, so a new verb
//! or version can't be forgotten. The table can be pointed at any directory of plugins: what the Go reference makes of it
//! is the report in `docs/conformance.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::cni::Version;
use common::cni::env::Verb;
use serde_json::{Value, json};

use crate::lab::{Container, GATEWAY, Lab};
use crate::process;

/// The plugins of the table.
pub const PLUGINS: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

/// What must come of one combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Exit 0 and a result of the configuration's version that is equivalent to prevResult.
    Result,
    /// Exit 0 and nothing on stdout.
    Silence,
    /// Exit 0 and the list of versions, with the given one echoed.
    Versions,
    /// Exit 0, nothing on stdout, and on stderr what the program is.
    Banner,
    /// Exit 1 and one error document with this code.
    Code(u64),
}

/// One way in which a call is what it should be or isn't.
pub struct Condition {
    /// What is special about the call.
    pub name: &'static str,
    /// Changes a call that would succeed into the one that is meant.
    change: fn(&mut Request),
    expect: fn(Verb, Version) -> Expect,
}

impl Condition {
    /// What must come of it.
    pub fn expect(&self, verb: Verb, version: Version) -> Expect {
        (self.expect)(verb, version)
    }
}

/// A call before it is made.
pub struct Request {
    env: BTreeMap<&'static str, String>,
    config: Value,
    stdin: Option<Vec<u8>>,
}

impl Request {
    fn env(&mut self, name: &'static str, value: &str) {
        self.env.insert(name, value.to_owned());
    }

    fn stdin(&mut self, text: &str) {
        self.stdin = Some(text.as_bytes().to_vec());
    }

    fn key(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    /// The version that VERSION and errors must echo; `None` where the call gives none that can be read.
    fn echo(&self) -> Option<String> {
        let given = self.config["cniVersion"].as_str().filter(|v| Version::is_well_formed(v));
        given.filter(|_| self.stdin.is_none()).map(str::to_owned)
    }

    fn without(&mut self, key: &str) {
        if let Some(object) = self.config.as_object_mut() {
            object.remove(key);
        }
    }
}

/// How one combination went.
pub struct Finding {
    /// Which plugin.
    pub plugin: &'static str,
    /// Which verb.
    pub verb: Verb,
    /// The configuration's version.
    pub version: Version,
    /// Which condition.
    pub condition: &'static str,
    /// What must come of it.
    pub expected: Expect,
    /// What came, in a word; `None` if it is as expected.
    pub fault: Option<String>,
}

const fn has_verb(verb: Verb, version: Version) -> bool {
    match verb {
        Verb::Add | Verb::Del | Verb::Version => true,
        Verb::Check => version as u8 >= Version::V0_4_0 as u8,
        Verb::Gc | Verb::Status => version as u8 >= Version::V1_1_0 as u8,
    }
}

fn success(verb: Verb, version: Version) -> Expect {
    match verb {
        Verb::Version => Expect::Versions,
        _ if !has_verb(verb, version) => Expect::Code(1),
        Verb::Add => Expect::Result,
        _ => Expect::Silence,
    }
}

const fn names_a_container(verb: Verb) -> bool {
    matches!(verb, Verb::Add | Verb::Check | Verb::Del)
}

/// `code` for every verb but VERSION.
fn always(verb: Verb, version: Version, code: u64) -> Expect {
    if verb == Verb::Version { success(verb, version) } else { Expect::Code(code) }
}

/// `code` for the verbs that have a container.
fn with_container(verb: Verb, version: Version, code: u64) -> Expect {
    if names_a_container(verb) { Expect::Code(code) } else { success(verb, version) }
}

/// `code` where the verb is in the version and is one of `verbs`.
fn only(verbs: &[Verb], verb: Verb, version: Version, code: u64) -> Expect {
    if verbs.contains(&verb) && has_verb(verb, version) { Expect::Code(code) } else { success(verb, version) }
}

/// Every condition.
pub const CONDITIONS: &[Condition] = &[
    Condition { name: "a call as it should be", change: |_| {}, expect: success },
    Condition { name: "no CNI_COMMAND", change: |r| r.env("CNI_COMMAND", ""), expect: |_, _| Expect::Banner },
    Condition {
        name: "an unknown CNI_COMMAND",
        change: |r| r.env("CNI_COMMAND", "FROB"),
        expect: |_, _| Expect::Code(4),
    },
    Condition { name: "no CNI_PATH", change: |r| r.env("CNI_PATH", ""), expect: success },
    Condition {
        name: "no CNI_CONTAINERID",
        change: |r| r.env("CNI_CONTAINERID", ""),
        expect: |verb, version| with_container(verb, version, 4),
    },
    Condition {
        name: "a bad CNI_CONTAINERID",
        change: |r| r.env("CNI_CONTAINERID", "../x"),
        expect: |verb, version| with_container(verb, version, 4),
    },
    Condition {
        name: "no CNI_IFNAME",
        change: |r| r.env("CNI_IFNAME", ""),
        expect: |verb, version| with_container(verb, version, 4),
    },
    Condition {
        name: "a bad CNI_IFNAME",
        change: |r| r.env("CNI_IFNAME", "0123456789abcdef"),
        expect: |verb, version| with_container(verb, version, 4),
    },
    Condition {
        name: "no CNI_NETNS",
        change: |r| r.env("CNI_NETNS", ""),
        expect: |verb, version| match verb {
            Verb::Add | Verb::Check => Expect::Code(4),
            _ => success(verb, version),
        },
    },
    Condition {
        name: "CNI_NETNS is the host's",
        change: |r| r.env("CNI_NETNS", "/proc/self/ns/net"),
        expect: |verb, version| match verb {
            Verb::Add | Verb::Del => Expect::Code(8),
            _ => only(&[Verb::Check], verb, version, 8),
        },
    },
    Condition {
        name: "CNI_ARGS with an unknown key and IgnoreUnknown",
        change: |r| r.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=p"),
        expect: success,
    },
    Condition { name: "empty stdin", change: |r| r.stdin(""), expect: |verb, version| always(verb, version, 6) },
    Condition {
        name: "stdin is not JSON",
        change: |r| r.stdin("{\"name\":"),
        expect: |verb, version| always(verb, version, 6),
    },
    Condition {
        name: "stdin is no object",
        change: |r| r.stdin("[1]"),
        expect: |verb, version| always(verb, version, 6),
    },
    Condition { name: "no name", change: |r| r.without("name"), expect: |verb, version| always(verb, version, 7) },
    Condition {
        name: "a bad name",
        change: |r| r.key("name", json!("a/b")),
        expect: |verb, version| always(verb, version, 7),
    },
    Condition {
        name: "a cniVersion that isn't spoken",
        change: |r| r.key("cniVersion", json!("9.9.9")),
        expect: |verb, version| always(verb, version, 1),
    },
    Condition {
        name: "a cniVersion that is none",
        change: |r| r.key("cniVersion", json!("one")),
        expect: |verb, version| always(verb, version, 6),
    },
    Condition {
        name: "a cniVersion of the wrong type",
        change: |r| r.key("cniVersion", json!(1)),
        expect: |verb, version| always(verb, version, 6),
    },
    Condition {
        name: "no prevResult",
        change: |r| r.without("prevResult"),
        expect: |verb, version| only(&[Verb::Add, Verb::Check], verb, version, 7),
    },
    Condition {
        name: "prevResult without cniVersion",
        change: |r| {
            if let Some(prev) = r.config["prevResult"].as_object_mut() {
                prev.remove("cniVersion");
            }
        },
        expect: success,
    },
    Condition {
        name: "prevResult of another family",
        change: |r| {
            let other = if r.config["cniVersion"] == "0.4.0" { "1.0.0" } else { "0.4.0" };
            let family = r.config["cniVersion"].as_str().is_some_and(|v| v.starts_with("0.3"));
            r.config["prevResult"]["cniVersion"] = json!(if family { "1.0.0" } else { other });
        },
        expect: |verb, version| match verb {
            Verb::Version | Verb::Del => success(verb, version),
            _ => only(&Verb::ALL, verb, version, 7),
        },
    },
    Condition {
        name: "an address of prevResult that is none",
        change: |r| {
            let old = r.config["prevResult"].get("ip4").is_some();
            let place = if old { "/prevResult/ip4/ip" } else { "/prevResult/ips/0/address" };
            if let Some(address) = r.config.pointer_mut(place) {
                *address = json!("10.0.0.300/24");
            }
        },
        expect: |verb, version| match verb {
            Verb::Version | Verb::Del => success(verb, version),
            _ => only(&Verb::ALL, verb, version, 6),
        },
    },
    Condition {
        name: "keys in another letter case",
        change: |r| {
            let Some(object) = r.config.as_object() else { return };
            let upper =
                |(k, v): (&String, &Value)| (if k.contains('/') { k.clone() } else { k.to_uppercase() }, v.clone());
            r.config = Value::Object(object.iter().map(upper).collect());
        },
        expect: success,
    },
    Condition {
        name: "a key twice, the last is right",
        change: |r| r.stdin(&r.config.to_string().replacen('{', "{\"name\":\"/\",", 1)),
        expect: success,
    },
    Condition {
        name: "an ipam of the wrong type",
        change: |r| r.key("ipam", json!("host-local")),
        expect: |verb, version| only(&[Verb::Add, Verb::Check, Verb::Status], verb, version, 6),
    },
    Condition { name: "an unknown key", change: |r| r.key("x-vendor", json!({"any": ["thing"]})), expect: success },
    Condition {
        name: "a key of the plugin with the wrong type",
        change: |r| {
            let key = match r.config["type"].as_str() {
                Some("portmap") => "snat",
                Some("bandwidth") => "ingressRate",
                Some("firewall") => "ingressPolicy",
                _ => "sysctl",
            };
            r.key(key, json!([[]]));
        },
        expect: |verb, version| only(&[Verb::Add, Verb::Check, Verb::Status], verb, version, 6),
    },
    Condition {
        name: "a key of the plugin with a value it can't have",
        change: |r| match r.config["type"].as_str() {
            Some("portmap") => r.key("markMasqBit", json!(77)),
            Some("bandwidth") => r.key("ingressRate", json!(0)),
            Some("firewall") => r.key("ingressPolicy", json!("sometimes")),
            _ => r.key("sysctl", json!({"kernel.hostname": "x"})),
        },
        expect: |verb, version| only(&[Verb::Add, Verb::Check, Verb::Status], verb, version, 7),
    },
    Condition {
        name: "GC without cni.dev/valid-attachments",
        change: |r| r.without("cni.dev/valid-attachments"),
        expect: |verb, version| only(&[Verb::Gc], verb, version, 7),
    },
    Condition {
        name: "GC with the older cni.dev/attachments",
        change: |r| {
            let list = r.config["cni.dev/valid-attachments"].clone();
            r.without("cni.dev/valid-attachments");
            r.key("cni.dev/attachments", list);
        },
        expect: success,
    },
];

/// Every verb, DEL last: it removes what ADD has made.
const IN_TURN: [Verb; Verb::ALL.len()] = [Verb::Add, Verb::Check, Verb::Gc, Verb::Status, Verb::Version, Verb::Del];

/// The number of combinations for each plugin.
pub const fn combinations() -> usize {
    CONDITIONS.len() * Verb::ALL.len() * Version::ALL.len()
}

/// Runs the table for every plugin of every directory, side by side; in the order of the directories and [`PLUGINS`].
pub fn run_all(directories: &[PathBuf]) -> Vec<Vec<Finding>> {
    std::thread::scope(|scope| {
        let run = |bin: &Path, plugin| Bench::new(bin).run(plugin);
        let of_directory = |bin: &'_ PathBuf| PLUGINS.map(|plugin| (bin.clone(), plugin));
        let jobs: Vec<Vec<_>> = directories
            .iter()
            .map(|bin| of_directory(bin).map(|(bin, plugin)| scope.spawn(move || run(&bin, plugin))).into())
            .collect();
        let findings = |job: std::thread::ScopedJoinHandle<'_, Vec<Finding>>| {
            job.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        jobs.into_iter().map(|jobs| jobs.into_iter().flat_map(findings).collect()).collect()
    })
}

/// The table at work: one host, one container, and the directory whose plugins are tried.
pub struct Bench {
    lab: Lab,
    container: Container,
    bin: PathBuf,
}

impl Bench {
    /// A host of its own for the plugins in `bin`.
    #[track_caller]
    pub fn new(bin: &Path) -> Bench {
        let lab = Lab::new();
        let container = lab.container(2);
        Bench { lab, container, bin: bin.to_owned() }
    }

    /// Runs the whole table for one plugin.
    pub fn run(&self, plugin: &'static str) -> Vec<Finding> {
        let mut findings = Vec::new();
        for condition in CONDITIONS {
            for version in Version::ALL {
                // What the verbs before have left, so that it need not be made for each of them.
                let mut attached = false;
                for verb in IN_TURN {
                    findings.push(self.combination(plugin, condition, verb, version, &mut attached));
                }
                if attached {
                    self.detach(plugin, version);
                }
            }
        }
        findings
    }

    fn combination(
        &self,
        plugin: &'static str,
        condition: &Condition,
        verb: Verb,
        version: Version,
        attached: &mut bool,
    ) -> Finding {
        let mut request = self.request(plugin, verb, version);
        let good = self.request(plugin, Verb::Add, version);
        let prev = good.config["prevResult"].clone();
        // CHECK and DEL of something that is there.
        if matches!(verb, Verb::Check | Verb::Del) && !*attached {
            *attached = self.call(plugin, &good).status.success();
        }
        (condition.change)(&mut request);
        let outcome = self.call(plugin, &request);
        let expected = condition.expect(verb, version);
        let fault = judge(&outcome, expected, &Asked { version, plugin, prev: &prev, echo: request.echo() });
        // Some of the reference's calls act and fail.
        *attached |= verb == Verb::Add;
        if verb == Verb::Del && outcome.status.success() {
            *attached = false;
            self.clear_leftovers(plugin);
        }
        Finding { plugin, verb, version, condition: condition.name, expected, fault }
    }

    fn detach(&self, plugin: &'static str, version: Version) {
        self.call(plugin, &self.request(plugin, Verb::Del, version));
        self.clear_leftovers(plugin);
    }

    /// What the DEL of the reference's bandwidth leaves on a veth that lives on must not be counted twice.
    fn clear_leftovers(&self, plugin: &str) {
        let is_ours = self.bin == crate::plugin::directory();
        for parent in ["root", "ingress"].into_iter().filter(|_| plugin == "bandwidth" && !is_ours) {
            let _ = self.lab.host.try_run(&format!("tc qdisc del dev {} {parent}", self.container.host_ifname));
        }
    }

    fn request(&self, plugin: &str, verb: Verb, version: Version) -> Request {
        let target = self.container.target();
        let mut config = json!({
            "cniVersion": version.as_str(),
            "name": "table",
            "type": plugin,
            "prevResult": prev_result(&self.container, version),
            "cni.dev/valid-attachments": [{"containerID": target.container, "ifname": target.ifname}],
        });
        match plugin {
            "portmap" => {
                let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
                config["runtimeConfig"] = json!({"portMappings": mapping});
            }
            "bandwidth" => {
                config["ingressRate"] = json!(10_000_000);
                config["ingressBurst"] = json!(1_000_000);
            }
            "tuning" => config["sysctl"] = json!({"net.ipv4.conf.all.arp_notify": "1"}),
            _ => {}
        }
        let env = BTreeMap::from([
            ("CNI_COMMAND", verb.as_str().to_owned()),
            ("CNI_CONTAINERID", target.container.clone()),
            ("CNI_NETNS", target.netns.clone()),
            ("CNI_IFNAME", target.ifname.clone()),
            ("CNI_PATH", self.bin.display().to_string()),
        ]);
        Request { env, config, stdin: None }
    }

    fn call(&self, plugin: &str, request: &Request) -> process::Finished {
        let mut command = self.lab.host.command(self.bin.join(plugin));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(request.env.iter().filter(|(_, value)| !value.is_empty()));
        let stdin = request.stdin.clone().unwrap_or_else(|| request.config.to_string().into_bytes());
        match process::run(&mut command, &stdin, Duration::from_secs(20)) {
            Ok(finished) => finished,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The main plugin's result, in the shape of any version.
fn prev_result(container: &Container, version: Version) -> Value {
    if version >= Version::V0_3_0 {
        return container.prev_result(version.as_str());
    }
    let [v4, v6] = &container.addresses;
    json!({
        "cniVersion": version.as_str(),
        "ip4": {"ip": format!("{v4}/24"), "gateway": GATEWAY[0], "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": format!("{v6}/64"), "gateway": GATEWAY[1], "routes": [{"dst": "::/0"}]},
        "dns": {},
    })
}

/// What a call was about, as far as its answer depends on it.
struct Asked<'a> {
    version: Version,
    plugin: &'a str,
    prev: &'a Value,
    echo: Option<String>,
}

/// `None` if the outcome is what must come.
fn judge(outcome: &process::Finished, expected: Expect, asked: &Asked<'_>) -> Option<String> {
    let exit = outcome.status.code();
    let documents: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(&outcome.stdout).into_iter().collect();
    let Ok(documents) = documents else { return Some("stdout is not JSON".into()) };
    let code = documents.last().and_then(|d| d["code"].as_u64());
    let said = || match (exit, code) {
        (None, _) => "died by a signal".to_owned(),
        (Some(0), _) => "success".to_owned(),
        (Some(1), Some(code)) => format!("code {code}"),
        (Some(exit), _) => format!("exit {exit} without an error document"),
    };
    match expected {
        Expect::Code(wanted) => match documents.as_slice() {
            [error] if exit == Some(1) && code == Some(wanted) => malformed_error(error, asked.echo.as_deref()),
            [_, _, ..] => Some(format!("{} documents on stdout", documents.len())),
            _ => Some(said()),
        },
        _ if exit != Some(0) => Some(said()),
        Expect::Silence if documents.is_empty() => None,
        Expect::Silence => Some("success with a document on stdout".into()),
        Expect::Banner if !documents.is_empty() => Some("a document on stdout".into()),
        Expect::Banner if !String::from_utf8_lossy(&outcome.stderr).contains(asked.plugin) => Some("no banner".into()),
        Expect::Banner => None,
        Expect::Versions => versions_fault(documents.first(), asked.echo.as_deref()),
        Expect::Result => result_fault(&documents, asked),
    }
}

/// SPEC.md, "Error": `code` and `msg` are there, and `cniVersion` is the configuration's.
fn malformed_error(error: &Value, given: Option<&str>) -> Option<String> {
    match (error["cniVersion"].as_str(), error["msg"].is_string()) {
        (None, _) => Some("right code, no cniVersion in the error".into()),
        (_, false) => Some("no msg in the error".into()),
        (Some(named), true) if given.is_some_and(|given| given != named) => {
            Some("right code, another cniVersion in the error".into())
        }
        (Some(_), true) => None,
    }
}

fn versions_fault(document: Option<&Value>, echo: Option<&str>) -> Option<String> {
    let Some(document) = document else { return Some("no document".into()) };
    let all: Vec<&str> = Version::ALL.iter().map(|v| v.as_str()).collect();
    if document["supportedVersions"] != json!(all) {
        return Some(format!("supports {}", document["supportedVersions"]));
    }
    let echoed = document["cniVersion"].as_str().unwrap_or_default();
    echo.filter(|wanted| *wanted != echoed).map(|_| format!("always says \"{echoed}\""))
}

fn result_fault(documents: &[Value], asked: &Asked<'_>) -> Option<String> {
    let [result] = documents else { return Some(format!("{} documents on stdout", documents.len())) };
    if result["cniVersion"] != asked.version.as_str() {
        return Some(format!("result of version {}", result["cniVersion"]));
    }
    // bandwidth adds its ifb to the interfaces; everything else must be the same.
    let keys = ["ips", "ip4", "ip6", "routes", "interfaces"];
    let mut same = keys.iter().filter(|key| asked.plugin != "bandwidth" || **key != "interfaces");
    let differs = same.find(|key| result[**key] != asked.prev[**key]);
    differs.map(|key| format!("{key} differs from prevResult: {}", result[*key]))
}
