//! What is said besides the answer: lines on stderr, and one JSON line a call in a file.
//!
//! Runtimes show a plugin's stderr only when it failed, so stderr is quiet by default: warnings and errors.
//! `CNI_CHAIN_LOG` sets the level (off, error, warn, info, debug, trace), `CNI_CHAIN_LOG_FILE` names a file to which
//! every call appends one JSON line.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};
use nix::libc;
use nix::unistd::geteuid;
use serde::Serialize;

use crate::cni::error::Error;
use crate::plugin::Call;

struct Stderr {
    plugin: &'static str,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let _ = writeln!(std::io::stderr(), "{}: {level}: {}", self.plugin, record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts logging for the plugin; a level that isn't one means the default, and is told.
pub fn init(plugin: &'static str) {
    let wanted = std::env::var_os("CNI_CHAIN_LOG").filter(|level| !level.is_empty());
    let level = wanted.as_ref().map(|level| level.to_str().and_then(|level| level.parse().ok()));
    if log::set_boxed_logger(Box::new(Stderr { plugin })).is_ok() {
        log::set_max_level(level.flatten().unwrap_or(LevelFilter::Warn));
    }
    if let (Some(wanted), Some(None)) = (wanted, level) {
        let wanted = wanted.to_string_lossy();
        log::warn!("CNI_CHAIN_LOG is \"{}\"; it can be off, error, warn, info, debug or trace", wanted.escape_debug());
    }
}

/// One line of the log file.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Seconds since the epoch.
    time: f64,
    plugin: &'static str,
    verb: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    container: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ifname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    duration_us: u64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg: Option<String>,
}

/// What is remembered of a call until it ends.
#[derive(Debug)]
pub struct CallRecord {
    plugin: &'static str,
    verb: String,
    call: Option<Call>,
    begun: Instant,
}

impl CallRecord {
    /// Begins with the verb as it was asked for.
    pub fn begin(plugin: &'static str, verb: &str) -> Self {
        CallRecord { plugin, verb: verb.to_owned(), call: None, begun: Instant::now() }
    }

    /// Adds for whom, once that is known.
    pub fn concerns(&mut self, call: &Call) {
        self.call = Some(call.clone());
    }

    /// Ends with the outcome, and appends the line if a file is named.
    pub fn end(self, error: Option<&Error>) {
        let Some(path) = std::env::var_os("CNI_CHAIN_LOG_FILE").filter(|p| !p.is_empty()) else { return };
        if let Err(failure) = append(Path::new(&path), &self.line(error)) {
            log::warn!("CNI_CHAIN_LOG_FILE {}: {failure}", path.to_string_lossy());
        }
    }

    fn line(&self, error: Option<&Error>) -> String {
        let call = self.call.as_ref();
        let line = Line {
            time: SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs_f64()).unwrap_or_default(),
            plugin: self.plugin,
            verb: &self.verb,
            network: call.map(|c| c.attachment.network.as_str()).unwrap_or_default(),
            container: call.map(|c| c.attachment.container.as_str()).unwrap_or_default(),
            ifname: call.map(|c| c.attachment.ifname.as_str()).unwrap_or_default(),
            pod: call.and_then(pod),
            traceparent: std::env::var("TRACEPARENT").ok().filter(|parent| !parent.is_empty()),
            duration_us: u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            outcome: if error.is_some() { "error" } else { "ok" },
            code: error.map(Error::code),
            msg: error.map(Error::to_string),
        };
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }
}

fn pod(call: &Call) -> Option<String> {
    let name = call.args.get("K8S_POD_NAME")?;
    Some(match call.args.get("K8S_POD_NAMESPACE") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    })
}

/// One write(2) with O_APPEND, so that the lines of parallel calls don't mix.
///
/// Never through a symbolic link, into a second name of somebody's file, or into what may block or belongs to another user:
/// the directory may be one that others can write, as /tmp.
fn append(path: &Path, line: &str) -> std::io::Result<()> {
    const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let refuse = |reason: &'static str| Err(std::io::Error::other(reason));
    if !path.is_absolute() {
        return refuse("it must be an absolute path: a plugin's working directory is nobody's promise");
    }
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(FLAGS).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return refuse("it is not a regular file");
    }
    if meta.nlink() != 1 || (meta.uid() != geteuid().as_raw() && meta.uid() != 0) {
        return refuse("it is somebody else's file");
    }
    let written = file.write(line.as_bytes())?;
    if written == line.len() { Ok(()) } else { refuse("the line was cut short") }
}
