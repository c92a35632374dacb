//! A plugin killed at any of its system calls, or told lies about any of them.
//!
//! The program is the one that is installed: it runs under ptrace(2). What is counted begins when it reads its stdin, so
//! the loader's and the allocator's own calls are not among it.
//!
//! * [`changes`] lists the calls that change something which outlives the program, and [`killed`] kills it just before
//!   or just behind any of them; [`held`] holds it there while something else is done.
//! * [`answers`] lists the calls that can fail, and [`answered`] lets any of them fail: with an errno of its own, or, of a
//!   netlink request, with a refusal by the kernel, an answer that never comes, or a dump that was interrupted.
//!
//! A refusal is a real one, and so changes nothing: the request is spoilt on its way to the kernel, and only the errno in
//! the answer is another.
//!
//! Registers have the names of x86-64.

mod calls;
mod trace;

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use serde_json::Value;

use crate::Verb;
use crate::namespace::{Netns, must};
use crate::plugin::{Outcome, Plugin, Target};
use calls::{Message, Sockets, datagram_sent, fallible, messages, places};
use trace::{Call, Deed, Meddler};

/// Which plugin is called, where, and with what.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// The program.
    pub plugin: &'a Plugin,
    /// Where it runs.
    pub host: &'a Netns,
    /// What for.
    pub verb: Verb,
    /// Its stdin.
    pub config: &'a Value,
    /// Its environment.
    pub target: &'a Target,
}

/// On which side of a call the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The call has not been made.
    Before,
    /// The call has been made, and the program doesn't know.
    Behind,
}

/// A lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call isn't made and fails with this.
    Fails(Errno),
    /// The kernel refuses a message of the request with this: the first one, or the last of a batch.
    Refused(Errno, Which),
    /// The request is worked off, but the answer never comes.
    Unanswered,
    /// The dump says that it was interrupted.
    Interrupted,
}

impl Fault {
    /// Whether the kernel may have done what it was asked for, though nobody hears of it.
    pub fn loses_the_answer(self) -> bool {
        matches!(self, Fault::Unanswered)
    }
}

/// Which message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first.
    First,
    /// The last.
    Last,
    /// The first and the last.
    Both,
}

/// How often a lie is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// At this call only, counted from nought.
    At(usize),
    /// At these two of the requests that change something.
    AtChanges(usize, usize),
    /// At this one of the requests that change something and at all behind it.
    FromChange(usize),
    /// Whenever it can be.
    Always,
}

/// A call that can fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answerable {
    /// What it is, in words.
    pub what: String,
    /// Whether it finds or makes something by its name.
    pub takes_a_name: bool,
    /// Whether it is a request by netlink.
    pub is_request: bool,
    /// Whether it changes something.
    pub is_change: bool,
    /// Whether it asks for several messages of which only one is first.
    pub is_batch: bool,
    /// Whether it asks for a dump.
    pub is_dump: bool,
}

/// The calls that change something, in order, and what came of the run.
#[track_caller]
pub fn changes(run: &Run<'_>) -> (Vec<String>, Outcome) {
    let mut killer = Killer { at: None, seen: Vec::new(), watch: Watch::default() };
    let outcome = run.traced(&mut killer);
    (killer.seen, outcome.expect("nobody has killed it"))
}

/// Kills the program at its `n`th change; gives what it was, `None` if it ended before.
#[track_caller]
pub fn killed(run: &Run<'_>, n: usize, side: Side) -> Option<String> {
    let mut killer = Killer { at: Some((n, side)), seen: Vec::new(), watch: Watch::default() };
    match run.traced(&mut killer) {
        Some(_) => None,
        None => killer.seen.pop(),
    }
}

/// What is done while a program is held, which is given.
pub type Meanwhile<'a> = dyn FnMut(Pid) + Send + 'a;

/// Holds the program at its `n`th change while something else is done; gives what the change was, `None` if it ended
/// before, and what came of the run.
#[track_caller]
pub fn held(run: &Run<'_>, n: usize, side: Side, meanwhile: &mut Meanwhile<'_>) -> (Option<String>, Outcome) {
    let killer = Killer { at: Some((n, side)), seen: Vec::new(), watch: Watch::default() };
    let mut holder = Holder { killer, meanwhile, met: None };
    let outcome = run.traced(&mut holder);
    (holder.met, outcome.expect("nobody has killed it"))
}

/// Whether a process holds the lock of a group of state files: others have to wait for it then (proc(5), `fdinfo`).
pub fn holds_a_group(process: Pid) -> bool {
    let opened = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let mut groups = opened
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path.display().to_string().contains("/.in-")));
    groups.any(|fd| {
        let info = format!("/proc/{process}/fdinfo/{}", fd.file_name().display());
        std::fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK"))
    })
}

/// The calls that can fail, in order, and what came of the run.
#[track_caller]
pub fn answers(run: &Run<'_>) -> (Vec<Answerable>, Outcome) {
    let mut liar = Liar::new(None);
    let outcome = run.traced(&mut liar);
    (liar.seen, outcome.expect("nobody has killed it"))
}

/// Tells the program a lie; gives what came of it, and how often it was told.
#[track_caller]
pub fn answered(run: &Run<'_>, fault: Fault, times: Times) -> (Outcome, usize) {
    let mut liar = Liar::new(Some((fault, times)));
    let outcome = run.traced(&mut liar);
    (outcome.expect("nobody has killed it"), liar.told)
}

/// The most memory that the program ever had resident, in KiB (proc(5), `VmHWM`), and what came of the run.
#[track_caller]
pub fn peak_memory(run: &Run<'_>) -> (u64, Outcome) {
    peak_memory_with(run, run.config.to_string().as_bytes())
}

/// The same with another stdin than the run's configuration.
#[track_caller]
pub fn peak_memory_with(run: &Run<'_>, stdin: &[u8]) -> (u64, Outcome) {
    let mut scale = Scale(0);
    let outcome = run.traced_with(stdin, &mut scale);
    (scale.0, outcome.expect("nobody has killed it"))
}

struct Scale(u64);

impl Meddler for Scale {
    fn enter(&mut self, call: &Call) -> Deed {
        if call.number == libc::SYS_exit_group {
            let status = std::fs::read_to_string(format!("/proc/{}/status", call.pid)).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok());
            self.0 = self.0.max(kib.unwrap_or_default());
        }
        Deed::Go
    }

    fn leave(&mut self, _: &Call, _: &mut i64) -> Deed {
        Deed::Go
    }
}

impl Run<'_> {
    /// `None` if it was killed.
    #[track_caller]
    fn traced(&self, meddler: &mut (dyn Meddler + Send)) -> Option<Outcome> {
        self.traced_with(self.config.to_string().as_bytes(), meddler)
    }

    #[track_caller]
    fn traced_with(&self, stdin: &[u8], meddler: &mut (dyn Meddler + Send)) -> Option<Outcome> {
        let env = self.target.environment(self.verb.as_str());
        let mut command = self.plugin.command(self.host, &env);
        let done = must(trace::run(&mut command, stdin, meddler));
        let alive = std::os::unix::process::ExitStatusExt::signal(&done.status).is_none();
        alive.then(|| self.plugin.outcome(done, &env, stdin))
    }
}

/// Knows the program's sockets, and who it is: not a program that it starts.
#[derive(Default)]
struct Watch {
    sockets: Sockets,
    program: Option<Pid>,
}

impl Watch {
    /// Whether the call counts.
    fn enter(&mut self, call: &Call) -> bool {
        if call.number == libc::SYS_read && call.fd() == 0 {
            self.program.get_or_insert(call.pid);
        }
        self.program == Some(call.pid)
    }

    /// Whether the call, which has ended, counts.
    fn leave(&mut self, call: &Call, result: i64) -> bool {
        self.sockets.learn(call, result);
        self.program == Some(call.pid)
    }
}

struct Killer {
    at: Option<(usize, Side)>,
    seen: Vec<String>,
    watch: Watch,
}

impl Killer {
    fn ends(&self, side: Side) -> Deed {
        if self.at == Some((self.seen.len().wrapping_sub(1), side)) { Deed::Kill } else { Deed::Go }
    }
}

impl Meddler for Killer {
    fn enter(&mut self, call: &Call) -> Deed {
        let counts = self.watch.enter(call);
        match self.watch.sockets.change(call).filter(|_| counts) {
            Some(change) => {
                self.seen.push(change);
                self.ends(Side::Before)
            }
            None => Deed::Go,
        }
    }

    fn leave(&mut self, call: &Call, result: &mut i64) -> Deed {
        // Asked before: a descriptor that is closed leads nowhere.
        let is_change = self.watch.sockets.change(call).is_some();
        let is_change = self.watch.leave(call, *result) && is_change;
        if is_change { self.ends(Side::Behind) } else { Deed::Go }
    }
}

struct Holder<'a> {
    killer: Killer,
    meanwhile: &'a mut Meanwhile<'a>,
    met: Option<String>,
}

impl Holder<'_> {
    fn hold(&mut self, deed: Deed, process: Pid) -> Deed {
        if !matches!(deed, Deed::Kill) {
            return deed;
        }
        if self.met.is_none() {
            self.met = self.killer.seen.last().cloned();
            (self.meanwhile)(process);
        }
        Deed::Go
    }
}

impl Meddler for Holder<'_> {
    fn enter(&mut self, call: &Call) -> Deed {
        let deed = self.killer.enter(call);
        self.hold(deed, call.pid)
    }

    fn leave(&mut self, call: &Call, result: &mut i64) -> Deed {
        let deed = self.killer.leave(call, result);
        self.hold(deed, call.pid)
    }
}

struct Liar {
    lie: Option<(Fault, Times)>,
    seen: Vec<Answerable>,
    told: usize,
    watch: Watch,
    /// Descriptors on which the next answer is to be falsified.
    spoilt: BTreeSet<i32>,
}

impl Liar {
    fn new(lie: Option<(Fault, Times)>) -> Liar {
        Liar { lie, seen: Vec::new(), told: 0, watch: Watch::default(), spoilt: BTreeSet::new() }
    }

    /// The lie that is due at this call, which is the last that was seen.
    fn due(&self) -> Option<Fault> {
        let (fault, times) = self.lie?;
        let this = self.seen.last()?;
        let is_one = |call: &&Answerable| call.is_change && call.is_request;
        let change = || self.seen.iter().filter(is_one).count() - 1;
        let is_due = match times {
            Times::At(n) => n == self.seen.len() - 1,
            Times::AtChanges(one, other) => is_one(&this) && [one, other].contains(&change()),
            Times::FromChange(n) => is_one(&this) && change() >= n,
            Times::Always => true,
        };
        // A run may differ from the one that was listened to: what can't happen to this call is not told of it.
        let fits = match fault {
            Fault::Fails(_) => true,
            Fault::Refused(..) | Fault::Unanswered => this.is_request,
            Fault::Interrupted => this.is_dump,
        };
        (is_due && fits).then_some(fault)
    }

    fn tell(&mut self, call: &Call, fault: Fault) -> Deed {
        self.told += 1;
        match fault {
            Fault::Fails(errno) => return Deed::Answer(-i64::from(errno as i32)),
            Fault::Refused(_, which) => spoil(call, which),
            Fault::Unanswered | Fault::Interrupted => {}
        }
        self.spoilt.insert(call.fd());
        Deed::Go
    }
}

impl Meddler for Liar {
    fn enter(&mut self, call: &Call) -> Deed {
        if !self.watch.enter(call) {
            return Deed::Go;
        }
        let receives = matches!(call.number, libc::SYS_recvfrom | libc::SYS_recvmsg);
        if receives && self.spoilt.contains(&call.fd()) && matches!(self.lie, Some((Fault::Unanswered, _))) {
            self.spoilt.remove(&call.fd());
            return Deed::Answer(-i64::from(libc::EAGAIN));
        }
        let Some(what) = fallible(call, &self.watch.sockets) else { return Deed::Go };
        let is_netlink = self.watch.sockets.of(call).is_some_and(|kind| kind.is_netlink());
        let is_request = is_netlink && matches!(call.number, libc::SYS_sendto | libc::SYS_sendmsg);
        let sent = if is_request { messages(&datagram_sent(call).concat()) } else { Vec::new() };
        self.seen.push(Answerable {
            takes_a_name: calls::takes_a_name(call.number),
            what,
            is_change: self.watch.sockets.change(call).is_some(),
            is_request,
            is_batch: sent.len() > 3,
            is_dump: sent.iter().any(Message::is_dump),
        });
        self.due().map_or(Deed::Go, |fault| self.tell(call, fault))
    }

    fn leave(&mut self, call: &Call, result: &mut i64) -> Deed {
        self.watch.leave(call, *result);
        let receives = matches!(call.number, libc::SYS_recvfrom | libc::SYS_recvmsg);
        if receives && *result > 0 && self.spoilt.contains(&call.fd()) {
            let told = match self.lie {
                Some((Fault::Refused(errno, _), _)) => replace_errno(call, *result as usize, errno),
                Some((Fault::Interrupted, _)) => mark_interrupted(call, *result as usize),
                _ => false,
            };
            if told {
                self.spoilt.remove(&call.fd());
            }
        }
        Deed::Go
    }
}

/// Makes the kernel refuse a message of the request: its type becomes one that its subsystem doesn't have.
fn spoil(call: &Call, which: Which) {
    let parts = datagram_sent(call);
    let all: Vec<Message> = messages(&parts.concat());
    let mut commands = all.iter().filter(|m| !m.is_bracket());
    let chosen = match which {
        Which::First => [commands.next(), None],
        Which::Last => [commands.next_back(), None],
        Which::Both => [commands.next(), commands.next_back()],
    };
    for message in chosen.into_iter().flatten() {
        // The low byte of the type: a request's family of types stays.
        let mut at = message.offset + 4;
        for ((address, len), part) in places(call).into_iter().zip(&parts) {
            if at < part.len() {
                call.write(address + at as u64, &[0xff]);
                break;
            }
            at -= len;
        }
    }
}

/// The first part of what was received: our programs use no more.
fn received(call: &Call, len: usize) -> (u64, Vec<u8>) {
    let Some((address, room)) = places(call).first().copied() else { return (0, Vec::new()) };
    (address, call.read(address, len.min(room)))
}

/// Gives each refusal in an answer this errno; whether there was one.
fn replace_errno(call: &Call, len: usize, errno: Errno) -> bool {
    let (address, bytes) = received(call, len);
    let refusals: Vec<Message> = messages(&bytes)
        .into_iter()
        .filter(|m| i32::from(m.kind) == libc::NLMSG_ERROR && bytes[m.offset + 16..m.offset + 20] != [0; 4])
        .collect();
    for refusal in &refusals {
        call.write(address + refusal.offset as u64 + 16, &(-(errno as i32)).to_ne_bytes());
    }
    !refusals.is_empty()
}

/// Marks every part of a dump as interrupted; whether its end was among them.
fn mark_interrupted(call: &Call, len: usize) -> bool {
    let (address, bytes) = received(call, len);
    let mut ended = false;
    for message in messages(&bytes).into_iter().filter(|m| i32::from(m.flags) & libc::NLM_F_MULTI != 0) {
        let flags = message.flags | libc::NLM_F_DUMP_INTR as u16;
        call.write(address + message.offset as u64 + 6, &flags.to_ne_bytes());
        ended |= i32::from(message.kind) == libc::NLMSG_DONE;
    }
    ended
}
