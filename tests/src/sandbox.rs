//! A test host that runs daemons and containers of its own: besides network and mounts it has its own processes.
//!
//! The processes live in a PID namespace whose first process dies with the test, and everything in it dies with that
//! one (pid_namespaces(7)); so nothing outlives a test, however it ends.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::host::Host;
use crate::namespace::{Netns, must};
use crate::process;

/// Longest run of a runtime's command.
const LIMIT: Duration = Duration::from_secs(120);

/// A PID, IPC and UTS namespace on a [`Host`], with a mount namespace below the host's.
#[derive(Debug)]
pub struct Sandbox {
    first: Child,
    /// The first process inside, as the machine numbers it.
    pid: u32,
}

impl Sandbox {
    /// Makes the namespaces on `host`, with an own tmpfs on each of `private`.
    #[track_caller]
    pub fn new(host: &Host, private: &[&str]) -> Sandbox {
        let mut command = host.command("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork"]);
        command.args(["--kill-child", "--mount-proc"]);
        // A shell reaps what is handed to it as the first process; the loop is for tests that kill all others.
        command.args(["sh", "-c", "while :; do sleep infinity & wait; done"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let first = must(command.spawn().map_err(|e| format!("unshare: {e}")));
        let children = format!("/proc/{0}/task/{0}/children", first.id());
        let mut pid = None;
        host.wait_until("the sandbox's first process", || {
            let listed = std::fs::read_to_string(&children).unwrap_or_default();
            pid = listed.split_whitespace().next().and_then(|p| p.parse().ok()).filter(|pid| is_shell(*pid));
            pid.is_some()
        });
        let sandbox = Sandbox { first, pid: pid.unwrap_or_default() };
        for dir in private {
            sandbox.run(&["mkdir", "-p", dir]);
            sandbox.run(&["mount", "-t", "tmpfs", "tmpfs", dir]);
        }
        sandbox
    }

    /// A program inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--net", "--ipc", "--uts", program]);
        command
    }

    /// Runs a program inside that must succeed; gives its stdout.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        must(self.try_run(words))
    }

    /// Runs a program inside; gives its stdout, or all that it said.
    pub fn try_run(&self, words: &[&str]) -> Result<String, String> {
        let (program, arguments) = words.split_first().ok_or("no program")?;
        let mut command = self.command(program);
        command.args(arguments);
        let done = process::run(&mut command, b"", LIMIT)?;
        if done.status.success() {
            Ok(String::from_utf8_lossy(&done.stdout).into_owned())
        } else {
            Err(format!("{}: {}", words.join(" "), done.output()))
        }
    }

    /// A file or directory inside, as this process reaches it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    /// Writes a file inside, making its directories.
    #[track_caller]
    pub fn write(&self, inside: &str, content: &str) {
        let path = self.path(inside);
        let parent = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        must(parent.and_then(|()| std::fs::write(&path, content)).map_err(|e| format!("{inside}: {e}")));
    }

    /// A network namespace that has a name inside.
    #[track_caller]
    pub fn netns(&self, name: &str, inside: &str) -> Netns {
        let file = must(File::open(self.path(inside)).map_err(|e| format!("{inside}: {e}")));
        Netns::held(name, file)
    }
}

fn is_shell(pid: u32) -> bool {
    // Until it has exec'ed the shell, /proc is not mounted anew yet.
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sh")
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}
