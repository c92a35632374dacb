//! A network namespace that exists as long as this process holds it.
//!
//! It is made on a thread of its own by `unshare(2)` and kept as a descriptor of `/proc/thread-self/ns/net`
//! (namespaces(7)): no name in the file system, no bind mount, so nothing stays behind even after SIGKILL.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::process::{self, Finished};

/// Longest run of a network tool.
const TOOL_LIMIT: Duration = Duration::from_secs(30);

/// Longest wait for a state that must come about by itself: against hanging, not a measure; a machine may be very busy.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A network namespace, with or without a mount namespace beside it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    net: Arc<OwnedFd>,
    mounts: Option<Arc<OwnedFd>>,
}

impl Netns {
    /// A new namespace with `lo` up and without duplicate address detection, so that no address is ever tentative.
    ///
    /// `name` is for messages only.
    #[track_caller]
    pub fn new(name: &str) -> Netns {
        must(Netns::make(name, CloneFlags::CLONE_NEWNET, || Ok(())))
    }

    /// The namespace this process lives in. For looking only.
    pub fn of_this_process() -> Netns {
        let net = File::open("/proc/self/ns/net").expect("/proc/self/ns/net");
        Netns { name: "the machine".into(), net: Arc::new(net.into()), mounts: None }
    }

    /// A namespace that somebody else made, kept by its open file.
    pub(crate) fn held(name: &str, file: File) -> Netns {
        Netns { name: name.into(), net: Arc::new(file.into()), mounts: None }
    }

    /// Makes namespaces on a fresh thread; `prepare` runs inside.
    pub(crate) fn make(
        name: &str,
        flags: CloneFlags,
        prepare: impl FnOnce() -> Result<(), String> + Send,
    ) -> Result<Netns, String> {
        let netns = on_own_thread(|| {
            unshare(flags).map_err(|e| cannot_make(name, e))?;
            prepare().map_err(|e| format!("the mounts of test namespace {name} can't be set up: {e}"))?;
            let open = |kind: &str| {
                let path = format!("/proc/thread-self/ns/{kind}");
                File::open(&path).map(|f| Arc::new(OwnedFd::from(f))).map_err(|e| format!("{path}: {e}"))
            };
            let mounts = flags.contains(CloneFlags::CLONE_NEWNS).then(|| open("mnt")).transpose()?;
            Ok::<_, String>(Netns { name: name.to_owned(), net: open("net")?, mounts })
        })?;
        netns.run("ip link set lo up");
        for scope in ["all", "default"] {
            // Absent where IPv6 is switched off at boot; a test that needs it will say so.
            let _ = netns.try_set_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
        }
        Ok(netns)
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that a child process can open: for CNI_NETNS.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// A program that will run inside. The working directory is `/` where there is a mount namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        process::command_in(program, self.net.clone(), self.mounts.clone())
    }

    /// Runs Rust code inside, on a thread of its own; sockets made there stay there.
    pub fn inside<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        on_own_thread(|| {
            self.enter();
            code()
        })
    }

    /// Starts a thread inside that may outlive this value; the namespace lives on with it.
    pub fn spawn<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let here = Netns { name: self.name.clone(), net: self.net.clone(), mounts: self.mounts.clone() };
        std::thread::spawn(move || {
            here.enter();
            drop(here);
            code()
        })
    }

    /// Moves the calling thread. Only for threads that end inside.
    fn enter(&self) {
        let moved = setns(&*self.net, CloneFlags::CLONE_NEWNET).and_then(|()| match &self.mounts {
            // setns(2): a thread that shares its file system attributes can't change its mount namespace.
            Some(mounts) => unshare(CloneFlags::CLONE_FS).and_then(|()| setns(&**mounts, CloneFlags::CLONE_NEWNS)),
            None => Ok(()),
        });
        moved.unwrap_or_else(|e| panic!("can't enter test namespace {}: {e}", self.name));
    }

    /// Runs a command line, split at white space, that must succeed; gives its stdout.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        must(self.try_run(line))
    }

    /// Runs a command line, split at white space; its stdout, or a text with all it said.
    pub fn try_run(&self, line: &str) -> Result<String, String> {
        self.pipe(line, "")
    }

    /// Like [`Netns::try_run`], with something on stdin.
    pub fn pipe(&self, line: &str, stdin: &str) -> Result<String, String> {
        let done = self.finish(line, stdin)?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        Err(format!("in {}: `{line}` failed: {}", self.name, done.output()))
    }

    fn finish(&self, line: &str, stdin: &str) -> Result<Finished, String> {
        let mut words = line.split_whitespace();
        let program = words.next().ok_or("an empty command line")?;
        process::run(self.command(program).args(words), stdin.as_bytes(), TOOL_LIMIT)
    }

    /// Applies an nft script.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        must(self.pipe("nft -f -", &format!("{script}\n")));
    }

    /// A sysctl by its path below /proc/sys, e.g. `net/ipv4/ip_forward`.
    #[track_caller]
    pub fn sysctl(&self, key: &str) -> String {
        let read = self.inside(|| std::fs::read_to_string(format!("/proc/sys/{key}")));
        must(read.map_err(|e| format!("sysctl {key} in {}: {e}", self.name))).trim_end().to_owned()
    }

    /// Sets a sysctl by its path below /proc/sys.
    #[track_caller]
    pub fn set_sysctl(&self, key: &str, value: &str) {
        must(self.try_set_sysctl(key, value));
    }

    fn try_set_sysctl(&self, key: &str, value: &str) -> Result<(), String> {
        self.inside(|| std::fs::write(format!("/proc/sys/{key}"), value))
            .map_err(|e| format!("sysctl {key}={value} in {}: {e}", self.name))
    }

    /// Whether there is an interface of this name.
    pub fn has_link(&self, ifname: &str) -> bool {
        self.try_run(&format!("ip link show dev {ifname}")).is_ok()
    }

    /// Adds an address, usable at once.
    #[track_caller]
    pub fn address(&self, ifname: &str, address: &str) {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.run(&format!("ip address add {address} dev {ifname}{nodad}"));
    }

    /// Adds a route; `destination` may be `default` (then of the gateway's family).
    #[track_caller]
    pub fn route(&self, destination: &str, gateway: &str) {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        self.run(&format!("ip {family} route add {destination} via {gateway}"));
    }

    /// Waits until no IPv6 address is tentative: before that none of them answers.
    #[track_caller]
    pub fn settle(&self) {
        self.wait_until("no IPv6 address is tentative", || self.run("ip -6 address show tentative").trim().is_empty());
    }

    /// Waits until `condition` holds, and fails after [`SETTLE_LIMIT`].
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        while !condition() {
            assert!(Instant::now() < deadline, "in {}: waited {SETTLE_LIMIT:?} in vain until {what}", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Fails the test at the caller's line. (A closure in `unwrap_or_else` would name its own line.)
#[track_caller]
pub(crate) fn must<T>(result: Result<T, impl std::fmt::Display>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// Runs `code` on a new thread, so that what it does to its namespaces ends with it; a panic goes on here.
fn on_own_thread<T: Send>(code: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(code).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

fn cannot_make(name: &str, errno: nix::Error) -> String {
    let next = match errno {
        nix::Error::EPERM => "tests in network namespaces need root (CAP_SYS_ADMIN): run them as root",
        nix::Error::ENOSPC => "the limit in /proc/sys/user/max_net_namespaces is reached",
        nix::Error::EINVAL => "this kernel has no network namespaces (CONFIG_NET_NS)",
        _ => "see unshare(2)",
    };
    format!("test namespace {name} can't be made: {errno}; {next}")
}

/// One end of a [`connect`]ion.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub netns: &'a Netns,
    /// What it is called.
    pub ifname: &'a str,
    /// With prefix lengths.
    pub addresses: &'a [&'a str],
}

impl<'a> End<'a> {
    /// An end.
    pub fn new(netns: &'a Netns, ifname: &'a str, addresses: &'a [&'a str]) -> End<'a> {
        End { netns, ifname, addresses }
    }
}

/// Lays a veth pair between two namespaces, brings it up and gives it addresses.
#[track_caller]
pub fn connect(a: End<'_>, b: End<'_>) {
    a.netns.run(&format!("ip link add {} type veth peer name {} netns {}", a.ifname, b.ifname, b.netns.path()));
    for end in [a, b] {
        end.netns.run(&format!("ip link set {} up", end.ifname));
        for address in end.addresses {
            end.netns.address(end.ifname, address);
        }
    }
}
