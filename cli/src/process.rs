//! One execution of one plugin: spawned with nothing but what the protocol gives it, its output bounded, its end judged.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::cni::{Json, Version};
use nix::sys::signal::Signal;
use serde::Serialize;

/// Bytes of a plugin's stdout that are read; then the pipe is closed.
const STDOUT_MAX: usize = 16 << 20;

/// Bytes of a plugin's stderr that are kept; the rest is read and forgotten, so that the plugin can go on.
const STDERR_MAX: usize = 64 << 10;

/// Bytes of unintelligible output that an error quotes.
const QUOTED: usize = 400;

/// Where a plugin's helpers (iptables, nft) are looked for if the tool itself has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How an execution ended.
#[derive(Debug)]
pub struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    overflowed: bool,
    /// What it said on stderr, as far as it was kept.
    pub stderr: String,
    /// From before exec to after exit.
    pub took: Duration,
}

/// A CNI error as a plugin printed it (SPEC.md, "Error").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PluginError {
    /// Its code.
    pub code: u64,
    /// Its sentence.
    pub msg: String,
    /// Its details; often empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Why a plugin's execution counts as failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It isn't in the search path.
    NotFound {
        /// Where it was looked for.
        reason: String,
    },
    /// It doesn't speak the conflist's version.
    ForeignVersion {
        /// What it would have to speak.
        wanted: Version,
        /// What it speaks.
        spoken: Vec<String>,
    },
    /// It can't be executed.
    NotStarted {
        /// The system's word.
        reason: String,
    },
    /// It says so itself.
    Refused(PluginError),
    /// It failed without a CNI error.
    Unexplained {
        /// Exit code.
        code: i32,
        /// What it printed instead, quoted.
        printed: String,
    },
    /// It was ended by a signal.
    Killed {
        /// Which.
        signal: String,
        /// What it had printed, quoted.
        printed: String,
    },
    /// It exited with 0, and what it printed is not what the verb must print.
    BadOutput {
        /// What is wrong with it.
        reason: String,
        /// What it printed, quoted.
        printed: String,
    },
    /// It printed more than any result is long.
    TooMuch,
}

impl Fault {
    /// The next step, if there is one beyond what the message says.
    pub fn next(&self) -> &'static str {
        match self {
            Fault::NotFound { .. } => "install it, or name its directory by --path or $CNI_PATH",
            Fault::ForeignVersion { .. } => "lower the conflist's cniVersion, or install a newer plugin",
            Fault::NotStarted { .. } => "is it an executable for this machine? run it by hand",
            Fault::Refused(error) => match error.code {
                1 => "`cni-chain version CONFLIST` shows which versions its plugins speak",
                2 | 6 | 7 => "correct the plugin's configuration in the conflist",
                11 => "repeat the command",
                _ => "",
            },
            Fault::Unexplained { .. } | Fault::Killed { .. } | Fault::BadOutput { .. } | Fault::TooMuch => {
                "the plugin breaks the protocol: report it to its authors, with its stderr"
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NotFound { reason } => f.write_str(reason),
            Fault::ForeignVersion { wanted, spoken } => {
                write!(f, "doesn't speak the conflist's cniVersion {wanted}; it speaks {}", spoken.join(" "))
            }
            Fault::NotStarted { reason } => write!(f, "can't be executed: {reason}"),
            Fault::Refused(error) => write!(f, "{} (code {})", error.msg, error.code),
            Fault::Unexplained { code, printed } => {
                write!(f, "exited with {code} and {printed} instead of a CNI error")
            }
            Fault::Killed { signal, printed } => write!(f, "was killed by {signal}, after {printed}"),
            Fault::BadOutput { reason, printed } => write!(f, "succeeded, but {reason}; it printed {printed}"),
            Fault::TooMuch => write!(f, "printed more than {STDOUT_MAX} bytes"),
        }
    }
}

/// The environment of every plugin: what its helpers need, and what our own plugins know beyond the protocol.
pub fn inherited() -> Vec<(OsString, OsString)> {
    let is_ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CNI_CHAIN_LOG")
            || matches!(&*name, "PATH" | "TRACEPARENT" | "CNI_NETNS_OVERRIDE" | "DBUS_SYSTEM_BUS_ADDRESS")
    };
    let mut kept: Vec<(OsString, OsString)> = std::env::vars_os().filter(|(name, _)| is_ours(name)).collect();
    if !kept.iter().any(|(name, _)| name == "PATH") {
        kept.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    kept
}

/// Executes `path` with exactly this environment and stdin, and waits for its end.
pub fn execute(path: &Path, environment: &[(OsString, OsString)], stdin: &[u8]) -> Result<Ended, Fault> {
    let begun = Instant::now();
    let refuse = |e: io::Error| Fault::NotStarted { reason: e.to_string() };
    let mut child = spawn(path, environment).map_err(refuse)?;
    let (mut to, mut from, mut aside) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = std::thread::scope(|scope| {
        // A plugin that doesn't read its stdin (EPIPE) may still answer, so its answer is what counts.
        scope.spawn(|| to.take().map(|mut pipe| pipe.write_all(stdin)));
        let aside = scope.spawn(|| aside.as_mut().map(|pipe| read_all(pipe, STDERR_MAX, true)));
        let stdout = from.take().map(|mut pipe| read_all(&mut pipe, STDOUT_MAX, false));
        (stdout, aside.join().ok().flatten())
    });
    let status = child.wait().map_err(refuse)?;
    let (stdout, overflowed) = stdout.unwrap_or_default();
    let (stderr, cut) = stderr.unwrap_or_default();
    let mut stderr = String::from_utf8_lossy(&stderr).trim_end().to_owned();
    if cut {
        stderr.push_str("\n… (the rest of its stderr is left out)");
    }
    Ok(Ended { status, stdout, overflowed, stderr, took: begun.elapsed() })
}

fn spawn(path: &Path, environment: &[(OsString, OsString)]) -> io::Result<Child> {
    let mut command = Command::new(path);
    command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attempts = 0;
    loop {
        match command.spawn() {
            // The file is being replaced by an installer at this moment; libcni waits for it as well.
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && attempts < 20 => {
                attempts += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            outcome => return outcome,
        }
    }
}

/// At most `most` bytes, and whether there were more; these are read and forgotten if `drain`, else the pipe is closed.
fn read_all(pipe: &mut impl Read, most: usize, drain: bool) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    // What was read before an error is still worth judging.
    let _ = pipe.by_ref().take(most as u64).read_to_end(&mut bytes);
    let mut next = [0u8; 1];
    let more = bytes.len() == most && matches!(pipe.read(&mut next), Ok(1));
    if more && drain {
        let _ = io::copy(pipe, &mut io::sink());
    }
    (bytes, more)
}

impl Ended {
    /// What the plugin printed, whatever it is.
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// What the plugin printed, if it succeeded.
    pub fn success(&self) -> Result<&[u8], Fault> {
        if self.overflowed {
            return Err(Fault::TooMuch);
        }
        if let Some(signal) = self.status.signal() {
            let name = Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.to_string());
            return Err(Fault::Killed { signal: name, printed: quoted(&self.stdout) });
        }
        match self.status.code() {
            Some(0) => Ok(&self.stdout),
            code => Err(self.failure(code.unwrap_or(-1))),
        }
    }

    /// What the plugin printed, as JSON, if it succeeded; an answer that isn't is a fault.
    pub fn document(&self) -> Result<Json, Fault> {
        let stdout = self.success()?;
        let bad = |reason: String| Fault::BadOutput { reason, printed: quoted(stdout) };
        if stdout.iter().all(u8::is_ascii_whitespace) {
            return Err(bad("the verb must print a document".into()));
        }
        serde_json::from_slice(stdout).map_err(|e| bad(format!("what it printed is not JSON ({e})")))
    }

    fn failure(&self, code: i32) -> Fault {
        // The Go plugins print two documents when they find out too late that they failed: the last one counts.
        let documents = serde_json::Deserializer::from_slice(&self.stdout).into_iter::<Json>();
        match documents.last() {
            Some(Ok(last)) => PluginError::read(&last)
                .map_or_else(|| Fault::Unexplained { code, printed: quoted(&self.stdout) }, Fault::Refused),
            _ => Fault::Unexplained { code, printed: quoted(&self.stdout) },
        }
    }
}

impl PluginError {
    fn read(json: &Json) -> Option<PluginError> {
        let text = |key| json.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        let code = match json.get("code") {
            Some(Json::Number(n)) => n.as_u64()?,
            _ => return None,
        };
        Some(PluginError { code, msg: text("msg"), details: text("details") })
    }
}

/// Output for an error message: whole if short, in quotes.
pub fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if text.is_empty() {
        return "nothing on stdout".into();
    }
    let head: String = text.chars().take(QUOTED).collect();
    let more = if head.len() < text.len() { " …" } else { "" };
    format!("\"{}\"{more} on stdout", head.escape_debug())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    struct Script {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    fn script(body: &str) -> Script {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Script { _dir: dir, path }
    }

    fn run(body: &str, stdin: &[u8]) -> Ended {
        execute(&script(body).path, &[("PATH".into(), DEFAULT_PATH.into())], stdin).unwrap()
    }

    #[test]
    fn only_the_given_environment_arrives() {
        let ended = run("cat >/dev/null; env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=", b"");
        assert_eq!(String::from_utf8_lossy(ended.success().unwrap()).trim(), format!("PATH={DEFAULT_PATH}"));
    }

    #[test]
    fn a_cni_error_is_recognised_even_behind_another_document() {
        let error = |body| run(body, b"").success().unwrap_err();
        let expected = PluginError { code: 7, msg: "no".into(), details: "d".into() };
        assert_eq!(error(r#"echo '{"code":7,"msg":"no","details":"d"}'; exit 1"#), Fault::Refused(expected.clone()));
        assert_eq!(error(r#"echo '{"ips":[]}{"code":7,"msg":"no","details":"d"}'; exit 1"#), Fault::Refused(expected));
    }

    #[test]
    fn garbage_signals_and_silence_are_told_apart() {
        let error = |body| run(body, b"").success().unwrap_err().to_string();
        assert_eq!(error("echo oops; exit 3"), r#"exited with 3 and "oops" on stdout instead of a CNI error"#);
        assert_eq!(error("exit 2"), "exited with 2 and nothing on stdout instead of a CNI error");
        assert_eq!(error("kill -SEGV $$"), "was killed by SIGSEGV, after nothing on stdout");
        assert_eq!(error(r#"printf '{"ips":[]}'; exit 1"#).matches("instead of a CNI error").count(), 1);
        let printed = run("printf '\\033[31mred'", b"").document().unwrap_err().to_string();
        assert!(printed.contains("not JSON") && printed.contains(r"\u{1b}[31mred"), "{printed}");
        assert!(run("true", b"").document().unwrap_err().to_string().contains("must print a document"));
    }

    #[test]
    fn endless_output_ends() {
        assert_eq!(run("yes", b"").success().unwrap_err(), Fault::TooMuch);
        let ended = run("yes | head -c 1000000 >&2; echo '{}'", b"");
        assert!(ended.document().is_ok());
        assert!(ended.stderr.len() < 70_000 && ended.stderr.ends_with("is left out)"));
    }

    #[test]
    fn a_plugin_that_reads_nothing_still_answers() {
        let megabytes = vec![b' '; 4 << 20];
        assert!(run("echo '{}'", &megabytes).document().is_ok());
    }

    #[test]
    fn what_cannot_be_executed_is_no_panic() {
        let fault = execute(Path::new("/nonexistent/plugin"), &[], b"").unwrap_err();
        assert!(fault.to_string().starts_with("can't be executed: No such file"), "{fault}");
    }
}
