//! Counting what a program does: programs executed, system calls, peak memory, and what it says to the kernel.
//!
//! By ptrace(2), because a stopped tracee can be looked at when it is about to exit: `VmHWM` is of the program alone,
//! whereas `ru_maxrss` of wait4(2) includes what the parent had before exec (`setmax_mm_hiwater_rss` in fs/exec.c).
//!
//! # Safety
//!
//! Two unsafe things: `Command::pre_exec`, whose closure makes one ptrace(2) call and allocates nothing; and reading the
//! union in `ptrace_syscall_info`, whose member is chosen by its `op` (ptrace(2), PTRACE_GET_SYSCALL_INFO).
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::launch::stdin_of;

/// What a program did, its children included.
#[derive(Clone, Debug, Default)]
pub struct Traced {
    /// Whether it ended with exit code 0.
    pub success: bool,
    /// What it wrote.
    pub stdout: String,
    /// Programs executed, itself included.
    pub programs: usize,
    /// System calls begun.
    pub syscalls: usize,
    /// Largest resident set of any of them, in KiB.
    pub peak_kib: u64,
    /// System calls that concern files, sockets and namespaces, in order; only if asked for.
    pub calls: Vec<Syscall>,
}

/// A system call that has returned.
#[derive(Clone, Debug)]
pub struct Syscall {
    /// `SYS_…`.
    pub number: i64,
    /// As given.
    pub arguments: [u64; 6],
    /// What came back: negative for an errno.
    pub returned: i64,
    /// The path it names, or the bytes it sends or has received.
    pub data: Vec<u8>,
}

/// Runs `command` with this on stdin, in the caller's namespaces; `verbatim` also records the calls themselves.
pub fn trace(command: &mut Command, stdin: &[u8], verbatim: bool) -> Result<Traced> {
    let mut stdout = tempfile::tempfile()?;
    command.stdin(stdin_of(stdin)?).stdout(stdout.try_clone()?).stderr(Stdio::null());
    // SAFETY: see the head of this module.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Error::from)) };
    let first = Pid::from_raw(command.spawn()?.id().try_into().map_err(Error::other)?);
    // traceme(2) stops it behind its first exec.
    waitpid(first, None)?;
    let all = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEEXIT
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(first, all)?;
    ptrace::syscall(first, None)?;
    let seen = Traced { programs: 1, ..Traced::default() };
    let mut tracer = Tracer { first, verbatim, seen, begun: HashMap::new() };
    tracer.begun.insert(first, None);
    tracer.run()?;
    stdout.seek(SeekFrom::Start(0))?;
    stdout.read_to_string(&mut tracer.seen.stdout)?;
    Ok(tracer.seen)
}

struct Tracer {
    first: Pid,
    verbatim: bool,
    seen: Traced,
    /// The call each known process or thread is in.
    begun: HashMap<Pid, Option<Syscall>>,
}

impl Tracer {
    fn run(&mut self) -> Result<()> {
        // This thread's children only: others have children of their own.
        let ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitpid(None, Some(ours)) {
                Ok(status) => self.take(status)?,
                Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn take(&mut self, status: WaitStatus) -> Result<()> {
        let (pid, signal) = match status {
            WaitStatus::PtraceSyscall(pid) => (pid, self.syscall(pid)),
            WaitStatus::PtraceEvent(pid, _, event) => (pid, self.event(pid, event)),
            // The first stop of a new process is ptrace's doing.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) if !self.begun.contains_key(&pid) => {
                self.begun.insert(pid, None);
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::Exited(pid, code) => {
                self.seen.success |= pid == self.first && code == 0;
                return Ok(());
            }
            _ => return Ok(()),
        };
        match ptrace::syscall(pid, signal) {
            // Killed meanwhile: its end will be told.
            Err(Errno::ESRCH) => Ok(()),
            other => other.map_err(Error::from),
        }
    }

    fn event(&mut self, pid: Pid, event: i32) -> Option<Signal> {
        match event {
            libc::PTRACE_EVENT_EXEC => self.seen.programs += 1,
            libc::PTRACE_EVENT_EXIT => self.seen.peak_kib = self.seen.peak_kib.max(peak_kib(pid)),
            _ => {}
        }
        None
    }

    fn syscall(&mut self, pid: Pid) -> Option<Signal> {
        let info = ptrace::syscall_info(pid).ok()?;
        if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            // SAFETY: see the head of this module.
            let entry = unsafe { info.u.entry };
            self.seen.syscalls += 1;
            if !self.verbatim {
                return None;
            }
            let number = i64::try_from(entry.nr).unwrap_or(-1);
            let mut call = Syscall { number, arguments: entry.args, returned: 0, data: Vec::new() };
            call.data = given(pid, &call);
            self.begun.insert(pid, Some(call));
        } else if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            // SAFETY: see the head of this module.
            let exit = unsafe { info.u.exit };
            if let Some(mut call) = self.begun.insert(pid, None).flatten().filter(|c| is_told(c.number)) {
                call.returned = exit.sval;
                call.data.extend(received(pid, &call));
                self.seen.calls.push(call);
            }
        }
        None
    }
}

/// Peak resident set, from proc_pid_status(5).
fn peak_kib(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

fn is_told(number: i64) -> bool {
    [
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_close,
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_socket,
        libc::SYS_ioctl,
        libc::SYS_setns,
        libc::SYS_statx,
        libc::SYS_fsync,
        libc::SYS_linkat,
        libc::SYS_unlinkat,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
    ]
    .contains(&number)
}

/// What the call gives the kernel.
fn given(pid: Pid, call: &Syscall) -> Vec<u8> {
    let [_, second, third, fourth, ..] = call.arguments;
    let path = |at| memory(pid, at, 4096).split(|b| *b == 0).next().unwrap_or_default().to_vec();
    match call.number {
        libc::SYS_openat | libc::SYS_openat2 | libc::SYS_statx => path(second),
        libc::SYS_unlinkat | libc::SYS_mkdirat | libc::SYS_mknodat => path(second),
        libc::SYS_linkat => path(fourth),
        libc::SYS_write | libc::SYS_sendto => memory(pid, second, third),
        libc::SYS_sendmsg => vectors(pid, second).into_iter().flat_map(|(at, len)| memory(pid, at, len)).collect(),
        _ => Vec::new(),
    }
}

/// What the kernel has given.
fn received(pid: Pid, call: &Syscall) -> Vec<u8> {
    let Ok(mut left) = u64::try_from(call.returned) else { return Vec::new() };
    match call.number {
        libc::SYS_recvfrom => memory(pid, call.arguments[1], left),
        libc::SYS_recvmsg => {
            let mut bytes = Vec::new();
            for (at, len) in vectors(pid, call.arguments[1]) {
                bytes.extend(memory(pid, at, len.min(left)));
                left -= len.min(left);
            }
            bytes
        }
        _ => Vec::new(),
    }
}

/// The iovec array of a struct msghdr: pointer and count stand at 16 and 24 (64-bit; recvmsg(2)).
fn vectors(pid: Pid, header: u64) -> Vec<(u64, u64)> {
    let words = |at, count| -> Vec<u64> {
        let bytes = memory(pid, at, 8 * count);
        bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect()
    };
    match words(header + 16, 2)[..] {
        [at, count] => words(at, 2 * count).as_chunks::<2>().0.iter().map(|[at, len]| (*at, *len)).collect(),
        _ => Vec::new(),
    }
}

/// As much of the tracee's memory as there is from here on.
fn memory(pid: Pid, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len.min(16 << 20)).unwrap_or_default()];
    let read = File::open(format!("/proc/{pid}/mem")).and_then(|mem| mem.read_at(&mut bytes, at));
    bytes.truncate(read.unwrap_or_default());
    bytes
}
