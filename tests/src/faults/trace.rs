//! Running a program under ptrace(2), so that each of its system calls can be seen, refused, answered falsely, or be its
//! last.
//!
//! # Safety
//!
//! The one unsafe call is `Command::pre_exec`: between fork and exec only async-signal-safe functions may run. The
//! closure calls `ptrace(PTRACE_TRACEME)`, a plain system call, and allocates nothing: it turns an errno into an
//! `io::Error` by its number.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::c_long;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::Finished;

/// Longest run of a traced program.
const LIMIT: Duration = Duration::from_secs(120);

/// A system call of the traced program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) pid: Pid,
    /// Its number (`SYS_…`).
    pub(super) number: c_long,
    pub(super) arguments: [u64; 6],
}

impl Call {
    pub(super) fn fd(&self) -> i32 {
        self.arguments[0] as i32
    }

    /// Memory of the program.
    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = File::open(format!("/proc/{}/mem", self.pid));
        // A path may end before the page does that is asked for.
        let read = memory.and_then(|memory| memory.read_at(&mut bytes, address)).unwrap_or_default();
        bytes.truncate(read);
        bytes
    }

    /// Overwrites memory of the program.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        let memory = File::options().write(true).open(format!("/proc/{}/mem", self.pid));
        memory.and_then(|memory| memory.write_all_at(bytes, address)).expect("memory of the traced program");
    }
}

/// What is to become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// It goes on.
    Go,
    /// The program is killed here.
    Kill,
    /// The call is not made, and this is its result: an errno if negative.
    Answer(i64),
}

/// Who decides.
pub(super) trait Meddler {
    /// A call begins.
    fn enter(&mut self, call: &Call) -> Deed;

    /// A call has ended with `result`, which may be changed; [`Deed::Answer`] has no meaning here.
    fn leave(&mut self, call: &Call, result: &mut i64) -> Deed;
}

#[derive(Default)]
struct Tracee {
    /// The call that it is in, and its result if it isn't made.
    inside: Option<(Call, Option<i64>)>,
}

/// Runs `command` with `stdin` to its end, asking `meddler` about each of its calls.
pub(super) fn run(command: &mut Command, stdin: &[u8], meddler: &mut (dyn Meddler + Send)) -> Result<Finished, String> {
    // The tracer is the thread that forks, and only it may wait.
    std::thread::scope(|scope| {
        let traced = scope.spawn(|| trace(command, stdin, meddler));
        traced.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn trace(command: &mut Command, stdin: &[u8], meddler: &mut dyn Meddler) -> Result<Finished, String> {
    let told = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    let file = || tempfile::tempfile().map_err(told("temporary file"));
    let (mut input, output, errors) = (file()?, file()?, file()?);
    input.write_all(stdin).and_then(|()| input.seek(SeekFrom::Start(0))).map_err(told("stdin"))?;
    let duplicate = |file: &File| file.try_clone().map_err(told("temporary file"));
    command.stdin(input).stdout(duplicate(&output)?).stderr(duplicate(&errors)?);
    // SAFETY: see the head of this module.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
    let child = command.spawn().map_err(|e| format!("{command:?} can't be started: {e}"))?;
    let main = Pid::from_raw(i32::try_from(child.id()).map_err(|e| e.to_string())?);
    let (ended, end) = mpsc::channel::<()>();
    let status = std::thread::scope(|scope| {
        scope.spawn(move || {
            if end.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(main, Signal::SIGKILL);
            }
        });
        let status = follow(main, meddler);
        drop(ended);
        status
    });
    let status = status.map_err(|e| format!("ptrace of {command:?}: {e}"))?;
    Ok(Finished { status, stdout: content(output)?, stderr: content(errors)? })
}

fn content(mut file: File) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|e| e.to_string())
}

/// Follows the program and whatever it starts until all have ended; gives the program's status.
fn follow(main: Pid, meddler: &mut dyn Meddler) -> nix::Result<ExitStatus> {
    let any_of_ours = Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD);
    waitpid(main, any_of_ours)?;
    let children = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACECLONE;
    let rest = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC;
    ptrace::setoptions(main, children | rest)?;
    ptrace::syscall(main, None)?;
    let mut tracees: HashMap<Pid, Tracee> = HashMap::from([(main, Tracee::default())]);
    let mut status = ExitStatus::from_raw(0);
    loop {
        let goes_on = match waitpid(None::<Pid>, any_of_ours) {
            Err(Errno::ECHILD) => return Ok(status),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(WaitStatus::Exited(pid, code)) => {
                status = if pid == main { ExitStatus::from_raw(code << 8) } else { status };
                continue;
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                status = if pid == main { ExitStatus::from_raw(signal as i32) } else { status };
                continue;
            }
            Ok(WaitStatus::PtraceSyscall(pid)) => match stopped(pid, tracees.entry(pid).or_default(), meddler) {
                Ok(Deed::Kill) => kill(main, Signal::SIGKILL),
                Ok(_) => ptrace::syscall(pid, None),
                Err(errno) => Err(errno),
            },
            Ok(WaitStatus::PtraceEvent(pid, ..)) => ptrace::syscall(pid, None),
            // A new child begins with a SIGSTOP that is no one's wish.
            Ok(WaitStatus::Stopped(pid, signal)) => {
                let is_new = !tracees.contains_key(&pid);
                tracees.entry(pid).or_default();
                ptrace::syscall(pid, (!is_new).then_some(signal))
            }
            Ok(_) => continue,
        };
        match goes_on {
            // It has been killed meanwhile: its end is reported next.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A tracee has stopped at the beginning or the end of a call.
fn stopped(pid: Pid, tracee: &mut Tracee, meddler: &mut dyn Meddler) -> nix::Result<Deed> {
    let mut registers = ptrace::getregs(pid)?;
    let Some((call, answer)) = tracee.inside.take() else {
        let arguments = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        let call = Call { pid, number: registers.orig_rax as c_long, arguments };
        let deed = meddler.enter(&call);
        let answer = if let Deed::Answer(result) = deed { Some(result) } else { None };
        if deed != Deed::Go {
            registers.orig_rax = u64::MAX;
            ptrace::setregs(pid, registers)?;
        }
        tracee.inside = Some((call, answer));
        return Ok(deed);
    };
    let before = registers.rax as i64;
    let mut result = answer.unwrap_or(before);
    let deed = meddler.leave(&call, &mut result);
    if result != before {
        registers.rax = result as u64;
        ptrace::setregs(pid, registers)?;
    }
    Ok(deed)
}
