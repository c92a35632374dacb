//! Starting programs in other namespaces, and never waiting for one without end.
//!
//! # Safety
//!
//! The one unsafe call is `Command::pre_exec`: between fork and exec only async-signal-safe functions may run. The
//! closure calls `setns(2)`, a plain system call, on descriptors that it owns, and allocates nothing: it turns an errno
//! into an `io::Error` by its number.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// A program that will run in the network namespace `net` and, if given, the mount namespace `mounts`.
pub(crate) fn command_in(program: impl AsRef<OsStr>, net: Arc<OwnedFd>, mounts: Option<Arc<OwnedFd>>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    let enter = move || {
        setns(&*net, CloneFlags::CLONE_NEWNET)?;
        if let Some(mounts) = &mounts {
            setns(&**mounts, CloneFlags::CLONE_NEWNS)?;
        }
        Ok(())
    };
    // SAFETY: see the head of this module.
    unsafe { command.pre_exec(enter) };
    command
}

/// The caller's PATH, with the directories of the network tools behind it: a login shell of Debian lacks them.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", std::env::var("PATH").unwrap_or_default())
}

/// What a program did.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Finished {
    /// Everything it wrote, for a message.
    pub(crate) fn output(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        format!("{}\nstdout: {}\nstderr: {}", self.status, text(&self.stdout), text(&self.stderr))
    }
}

/// Runs `command` with `stdin`, and kills it after `limit`.
pub(crate) fn run(command: &mut Command, stdin: &[u8], limit: Duration) -> Result<Finished, String> {
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|e| format!("{command:?} can't be started: {e}"))?;
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read_all(output));
        let stderr = scope.spawn(|| read_all(errors));
        scope.spawn(move || {
            // A program may well end without reading what it was given.
            let _ = input.take().map(|mut pipe| pipe.write_all(stdin));
        });
        let status = wait(&mut child, limit);
        let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        match status {
            Some(status) => Ok(Finished { status, stdout, stderr }),
            None => Err(format!("{command:?} did not end within {limit:?} and was killed")),
        }
    })
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
    bytes
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
