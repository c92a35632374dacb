//! The start of the executables: `common/src/entry/start.rs`, and where it takes the place of glibc's.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::fs;
use std::io::{Seek, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netns_tests::{Lab, Plugin, Verb};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

const PLUGINS: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `deploy/knows-start.sh` says of this C library.
fn is_known(libc: &Path) -> bool {
    Command::new("sh").arg(root().join("deploy/knows-start.sh")).arg(libc).status().unwrap().success()
}

/// The one that executables are linked with here, if nobody has named another.
fn own_libc() -> PathBuf {
    let asked = Command::new("cc").arg("-print-file-name=libc.a").output().unwrap();
    PathBuf::from(String::from_utf8(asked.stdout).unwrap().trim())
}

/// What a program has done by the time it exits.
#[derive(Debug)]
struct Walked {
    instructions: usize,
    /// How often it executed CPUID.
    questions: usize,
    /// What glibc checks the stack by, and hides its pointers with: `fs:[0x28]` and `fs:[0x30]`.
    guards: [i64; 2],
}

/// Lets a plugin tell its version, one instruction at a time.
fn walk(plugin: &Path) -> Walked {
    let mut config = tempfile::tempfile().unwrap();
    config.write_all(br#"{"cniVersion": "1.0.0"}"#).unwrap();
    config.rewind().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -STOP $$; exec \"$0\""]).arg(plugin).env("CNI_COMMAND", "VERSION");
    let mut child = shell.stdin(config).stdout(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    ptrace::seize(pid, Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_EXITKILL).unwrap();
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    let mut walked = Walked { instructions: 0, questions: 0, guards: [0; 2] };
    let mut is_plugin = false;
    loop {
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceEvent(_, _, nix::libc::PTRACE_EVENT_EXEC) => is_plugin = true,
            WaitStatus::PtraceEvent(_, _, nix::libc::PTRACE_EVENT_EXIT) => {
                let base = ptrace::getregs(pid).unwrap().fs_base;
                walked.guards = [0x28, 0x30].map(|at| ptrace::read(pid, (base + at) as *mut _).unwrap());
                ptrace::cont(pid, None).unwrap();
                assert!(child.wait().unwrap().success(), "{} doesn't tell its version", plugin.display());
                return walked;
            }
            WaitStatus::Stopped(_, signal) if is_plugin && signal != Signal::SIGTRAP => {
                panic!("{} gets {signal} after {walked:?}", plugin.display())
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => panic!("{} has ended unseen", plugin.display()),
            _ => {}
        }
        if is_plugin {
            let at = ptrace::getregs(pid).unwrap().rip;
            let [first, second, ..] = ptrace::read(pid, at as *mut _).unwrap().to_le_bytes();
            walked.instructions += 1;
            walked.questions += usize::from([first, second] == [0x0f, 0xa2]);
            ptrace::step(pid, None).unwrap();
        } else {
            ptrace::cont(pid, None).unwrap();
        }
    }
}

#[test]
fn only_a_start_that_is_not_known_asks_the_processor() {
    // A dynamic one is started by the dynamic linker, which asks, too.
    let dynamic = Command::new("ldd").arg(Plugin::ours("tuning").path()).output().unwrap().status.success();
    let known = is_known(&own_libc()) && !dynamic;
    for name in PLUGINS {
        let walked = walk(Plugin::ours(name).path());
        assert!(walked.instructions > 10_000, "{name}: {walked:?}");
        assert_eq!(walked.questions == 0, known, "{name}: {walked:?}");
    }
}

#[test]
fn each_process_has_guards_of_its_own() {
    let plugin = Plugin::ours("tuning");
    let [one, other] = [(); 2].map(|()| walk(plugin.path()).guards);
    for (place, (a, b)) in one.into_iter().zip(other).enumerate() {
        assert!(a != 0 && b != 0 && a != b, "guard {place}: {a:#x}, {b:#x}");
    }
    // A string that runs over the end of its place can't copy it.
    assert_eq!([one, other].map(|[stack, _]| stack & 0xff), [0, 0]);
}

/// An archive in a directory, whose start has these names: each with the letter that nm(1) gives it.
fn archive(directory: &Path, names: &[(&str, &str)]) -> PathBuf {
    let mut source = String::new();
    for (name, letter) in names {
        let section = |section: &str| format!(".{section}\n.globl {name}\n{name}: .quad 0\n");
        source += &match *letter {
            "T" => section("text"),
            "D" => section("data"),
            "B" => section("bss"),
            "U" => format!(".data\n.quad {name}\n"),
            "w" => format!(".weak {name}\n.data\n.quad {name}\n"),
            other => panic!("{name} {other}"),
        };
    }
    let file = directory.join("start.s");
    fs::write(&file, source).unwrap();
    let object = directory.join("libc-start.o");
    assert!(Command::new("cc").arg("-c").arg(&file).arg("-o").arg(&object).status().unwrap().success());
    let archive = directory.join("libc.a");
    let _ = fs::remove_file(&archive);
    assert!(Command::new("ar").arg("rcs").arg(&archive).arg(&object).status().unwrap().success());
    archive
}

#[test]
fn debian_s_are_known() {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let has = |line: &str| release.lines().any(|l| l == line);
    let supported = has("ID=debian") && ["12", "13"].iter().any(|n| has(&format!("VERSION_ID=\"{n}\"")));
    assert!(is_known(&own_libc()) || !supported, "{}", own_libc().display());
}

#[test]
fn a_start_is_known_by_all_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    assert_eq!(fs::read_dir(root().join("deploy/glibc-start")).unwrap().count(), 2);
    for version in fs::read_dir(root().join("deploy/glibc-start")).unwrap() {
        let list = fs::read_to_string(version.unwrap().path()).unwrap();
        let names: Vec<(&str, &str)> = list.lines().map(|line| line.split_once(' ').unwrap()).collect();
        assert!(is_known(&archive(directory, &names)), "{list}");

        let more = [&names[..], &[("_dl_cet_setup_features", "U")]].concat();
        assert!(!is_known(&archive(directory, &more)), "one more");
        let fewer = names.get(1..).unwrap();
        assert!(!is_known(&archive(directory, fewer)), "one less");
        let elsewhere: Vec<_> =
            names.iter().map(|&(name, at)| (name, if name == "_dl_aux_init" { "T" } else { at })).collect();
        assert!(!is_known(&archive(directory, &elsewhere)), "one defined");
    }
    assert!(!is_known(&directory.join("none")));
    fs::write(directory.join("libc.a"), "!<arch>\n").unwrap();
    assert!(!is_known(&directory.join("libc.a")), "an empty archive");
}

#[test]
fn large_pieces_are_copied_whole() {
    // From three quarters of a mebibyte on glibc copies in another way, and in a third from sixteen times that on; stdin
    // may have no more than 16 MiB.
    let lab = Lab::new();
    let container = lab.container(2);
    for kib in [1, 700, 1100, 3000, 14_000] {
        let mut domain = String::new();
        while domain.len() < kib << 10 {
            write!(domain, "{:x}.", domain.len()).unwrap();
        }
        for name in PLUGINS {
            let mut prev = container.prev_result("1.0.0");
            prev["dns"] = json!({"domain": domain});
            let config = json!({"cniVersion": "1.0.0", "name": "net", "type": name, "prevResult": prev});
            let result = Plugin::ours(name).call(&lab.host, Verb::Add, &config, &container.target()).succeeds();
            assert!(result["dns"]["domain"] == domain.as_str(), "{name}, {kib} KiB");
        }
    }
}
