//! Running a plugin as a runtime does, and holding every single call to the protocol.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Verb;
use crate::namespace::{Netns, must};
use crate::process;

/// Longest run of a plugin.
const LIMIT: Duration = Duration::from_secs(60);

/// Where Debian, and most others, put the main plugins; `CNI_PLUGINS` goes before.
const MAIN_PLUGIN_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Whom a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_NETNS; empty for none.
    pub netns: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_ARGS; empty for none.
    pub args: String,
}

impl Target {
    /// A target without CNI_ARGS.
    pub fn new(container: &str, netns: &str, ifname: &str) -> Target {
        Target { container: container.into(), netns: netns.into(), ifname: ifname.into(), args: String::new() }
    }

    /// The same without its namespace, as runtimes send DEL when it is gone.
    pub fn without_netns(&self) -> Target {
        Target { netns: String::new(), ..self.clone() }
    }

    /// The CNI variables of a call.
    pub(crate) fn environment(&self, command: &str) -> [(&'static str, String); 6] {
        [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", self.container.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.ifname.clone()),
            ("CNI_ARGS", self.args.clone()),
            ("CNI_PATH", cni_path()),
        ]
    }

    /// The same with CNI_ARGS.
    pub fn with_args(&self, args: &str) -> Target {
        Target { args: args.into(), ..self.clone() }
    }
}

/// An executable that speaks CNI.
#[derive(Clone, Debug)]
pub struct Plugin {
    path: PathBuf,
}

impl Plugin {
    /// One of this project's, from `CNI_CHAIN_BIN`, else from `bin/` of the workspace.
    #[track_caller]
    pub fn ours(name: &str) -> Plugin {
        let dir = directory();
        let path = dir.join(name);
        assert!(
            path.is_file(),
            "{} does not exist: run `make build` first, or set CNI_CHAIN_BIN to the directory of the plugins",
            path.display()
        );
        Plugin { path }
    }

    /// A main or reference plugin of `containernetworking-plugins`, from `CNI_PLUGINS` or the usual places.
    #[track_caller]
    pub fn reference(name: &str) -> Plugin {
        let found = reference_dirs().into_iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        let path = found.unwrap_or_else(|| {
            panic!(
                "plugin {name} not found in CNI_PLUGINS, {}: install the package containernetworking-plugins",
                MAIN_PLUGIN_DIRS.join(", ")
            )
        });
        Plugin { path }
    }

    /// Ours if there is one of this name, else the reference's.
    #[track_caller]
    pub fn find(name: &str) -> Plugin {
        let path = directory().join(name);
        if path.is_file() { Plugin { path } } else { Plugin::reference(name) }
    }

    /// The executable.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls it on `host` with a configuration.
    #[track_caller]
    pub fn call(&self, host: &Netns, verb: Verb, config: &Value, target: &Target) -> Outcome {
        self.call_raw(host, verb.as_str(), config.to_string().as_bytes(), target)
    }

    /// Calls it on `host` with anything at all for verb and stdin.
    #[track_caller]
    pub fn call_raw(&self, host: &Netns, command: &str, stdin: &[u8], target: &Target) -> Outcome {
        self.call_with_env(host, &target.environment(command), stdin)
    }

    /// Calls it on `host` by a program that gives it less than it would have: `prlimit`, `setpriv`, `unshare`, …
    #[track_caller]
    pub fn call_under(&self, wrapper: &[&str], host: &Netns, verb: Verb, config: &Value, target: &Target) -> Outcome {
        let (env, stdin) = (target.environment(verb.as_str()), config.to_string());
        let mut command = self.command(host, &env);
        if let [program, arguments @ ..] = wrapper {
            let plain = std::mem::replace(&mut command, host.command(program));
            command.args(arguments).arg(plain.get_program());
            for (name, value) in plain.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
        }
        self.outcome(must(process::run(&mut command, stdin.as_bytes(), LIMIT)), &env, stdin.as_bytes())
    }

    /// Calls it on `host` with exactly these CNI variables.
    #[track_caller]
    pub fn call_with_env(&self, host: &Netns, env: &[(&str, impl AsRef<OsStr>)], stdin: &[u8]) -> Outcome {
        let done = must(process::run(&mut self.command(host, env), stdin, LIMIT));
        self.outcome(done, env, stdin)
    }

    /// It, ready to run on `host` with exactly these CNI variables.
    pub(crate) fn command(&self, host: &Netns, env: &[(&str, impl AsRef<OsStr>)]) -> Command {
        let mut command = host.command(&self.path);
        let inherited = std::env::vars_os().map(|(name, _)| name);
        for name in inherited.filter(|name| name.to_string_lossy().starts_with("CNI_")) {
            command.env_remove(name);
        }
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// What came of a run, held to the protocol.
    #[track_caller]
    pub(crate) fn outcome(&self, done: process::Finished, env: &[(&str, impl AsRef<OsStr>)], stdin: &[u8]) -> Outcome {
        let call = format!(
            "{} with {}\nstdin: {}\n{}",
            self.path.display(),
            env.iter().map(|(k, v)| format!("{k}={}", v.as_ref().display())).collect::<Vec<_>>().join(" "),
            String::from_utf8_lossy(&stdin[..stdin.len().min(4000)]),
            done.output()
        );
        let speaks = env.iter().any(|(name, value)| *name == "CNI_COMMAND" && !value.as_ref().is_empty());
        if speaks { Outcome::checked(done, call, self.is_ours()) } else { Outcome::unchecked(done, call) }
    }

    /// The reference breaks the protocol in places (no `cniVersion` in errors): only ours are held to all of it.
    fn is_ours(&self) -> bool {
        self.path.starts_with(directory())
    }
}

/// The directory of this project's executables.
pub fn directory() -> PathBuf {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../bin");
    let dir = std::env::var_os("CNI_CHAIN_BIN").filter(|dir| !dir.is_empty()).map_or(built.into(), PathBuf::from);
    dir.canonicalize().unwrap_or(dir)
}

/// What the plugins of a directory call themselves, as the head of a column.
pub fn banner(bin: &Path) -> String {
    let output = std::process::Command::new(bin.join("portmap")).env_clear().output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stderr).into_owned()).unwrap_or_default();
    let name = text.lines().next().unwrap_or_default();
    let version = name.strip_prefix("CNI portmap plugin").unwrap_or(name).trim().to_owned();
    let own = bin == directory();
    format!("{} {version}", if own { "cni-chain" } else { "other plugins" })
}

fn reference_dirs() -> Vec<PathBuf> {
    let given = std::env::var_os("CNI_PLUGINS").unwrap_or_default();
    let given = std::env::split_paths(&given).filter(|dir| !dir.as_os_str().is_empty());
    given.chain(MAIN_PLUGIN_DIRS.map(PathBuf::from)).collect()
}

/// CNI_PATH as a runtime would have it: ours before the reference's.
pub fn cni_path() -> String {
    let dirs = std::iter::once(directory()).chain(reference_dirs());
    std::env::join_paths(dirs).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A CNI error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// SPEC.md, "Error"; from 100 on the plugin's own.
    pub code: u64,
    /// One sentence.
    pub msg: String,
    /// The story and the next step; may be empty.
    pub details: String,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// 0 or 1.
    pub exit: i32,
    /// The one document on stdout, if any.
    pub json: Option<Value>,
    /// As written.
    pub stdout: String,
    /// As written.
    pub stderr: String,
    call: String,
}

impl Outcome {
    fn unchecked(done: process::Finished, call: String) -> Outcome {
        let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
        Outcome {
            exit: done.status.code().unwrap_or(-1),
            json: serde_json::from_str(&stdout).ok(),
            stdout,
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
            call,
        }
    }

    /// Every call: exit code 0 or 1; stdout empty or exactly one JSON document; exit 1 with an error document and exit
    /// 0 without.
    #[track_caller]
    fn checked(done: process::Finished, call: String, strictly: bool) -> Outcome {
        let outcome = Outcome::unchecked(done, call);
        let call = &outcome.call;
        assert!(matches!(outcome.exit, 0 | 1), "the exit code is neither 0 nor 1: {call}");
        assert!(outcome.stdout.trim().is_empty() || outcome.json.is_some(), "stdout isn't one JSON document: {call}");
        let code = outcome.json.as_ref().and_then(|json| json.get("code"));
        assert_eq!(outcome.exit == 1, code.is_some(), "an error document goes with exit 1 and nothing else: {call}");
        if code.is_some() {
            let json = outcome.json.as_ref().unwrap_or(&Value::Null);
            assert!(json["code"].is_u64() && json["msg"].is_string(), "an error has a code and a msg: {call}");
            assert!(!strictly || json["cniVersion"].is_string(), "an error has a cniVersion: {call}");
        }
        assert!(!outcome.stderr.contains("panicked at"), "it panicked: {call}");
        outcome
    }

    /// The whole call, for a message.
    pub fn call(&self) -> &str {
        &self.call
    }

    /// Fails the test unless the call succeeded; gives the result (null where the verb has none).
    #[track_caller]
    pub fn succeeds(&self) -> Value {
        assert_eq!(self.exit, 0, "it must succeed: {}", self.call);
        self.json.clone().unwrap_or_default()
    }

    /// Fails the test unless the call failed; gives the error.
    #[track_caller]
    pub fn fails(&self) -> CniError {
        assert_eq!(self.exit, 1, "it must fail: {}", self.call);
        let json = self.json.clone().unwrap_or_default();
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        CniError { code: json["code"].as_u64().unwrap_or_default(), msg: text("msg"), details: text("details") }
    }

    /// Fails the test unless the call failed with this code; gives the error.
    #[track_caller]
    pub fn fails_with(&self, code: u64) -> CniError {
        let error = self.fails();
        assert_eq!(error.code, code, "another error code is due: {}", self.call);
        error
    }
}
