//! iptables-legacy: the filter tables that nf_tables can't reach.
//!
//! Where such a table is in use (alternatives switched, an older host), the one static rule has to be in it as well.
//! The table is read natively; only where something is missing the host's own `iptables-legacy-restore` is executed to
//! put it in: there is no other maintained writer of that format. Once a boot and family, under the lock of xtables. What
//! the reference has left behind there goes the same way, once a container of its time.

mod entries;
mod kernel;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::nft::IpVersion;
use common::{Difference, Error, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::config::FORWARD_CHAIN;
use crate::hostfilter::{ADMIN_COMMENT, JUMP_COMMENT};
use crate::plan::HostPart;
use crate::rules::ACCEPT_COMMENT;
use crate::upgrade::ISOLATION;
use entries::{Rule, Target, Verdict};

pub use entries::FilterTable;

/// Serialises our own look-then-write; xtables' own lock is taken by the program we execute, so it can't be held here.
const LOCK: &str = "/run/cni/firewall.lock";

/// Seconds that `iptables-legacy-restore` waits for the lock of xtables.
const LOCK_PATIENCE: &str = "5";

/// What a legacy filter table must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyFilter<'a> {
    /// Of which IP version.
    pub version: IpVersion,
    /// The administrator's chain.
    pub admin_chain: &'a str,
    /// The mark of admitted packets.
    pub mark: u32,
}

/// Something that a legacy filter table lacks, in the words of `iptables-restore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    ForwardChain,
    AdminChain,
    Jump,
    AdminJump,
    Accept,
}

/// The legacy filter table, if it is in use and something in its FORWARD may drop.
///
/// It is looked up in the list of tables first: asking for a table that isn't there would make it.
pub fn guarding_table(version: IpVersion) -> Result<Option<FilterTable>> {
    if !kernel::is_in_use(version)? {
        return Ok(None);
    }
    let table = FilterTable::parse(version, &kernel::read_filter(version)?).ok_or_else(|| Error::HostFirewall {
        firewall: "iptables-legacy",
        reason: format!("the filter table of {} can't be understood", kernel::program(version)),
        next: "please report it with the output of iptables-legacy-save".into(),
    })?;
    Ok(table
        .chain("FORWARD")
        .is_some_and(|c| c.policy != Some(Verdict::Accept) || !c.rules.is_empty())
        .then_some(table))
}

/// An error if something is missing in a legacy table and nothing is there to put it in.
pub fn can_mend(version: IpVersion, host: &HostPart) -> Result<()> {
    let Some(table) = guarding_table(version)? else { return Ok(()) };
    let filter = LegacyFilter { version, admin_chain: &host.admin_chain, mark: host.mark };
    let missing = filter.missing(&table);
    if missing.is_empty() || find_restore(version).is_some() {
        return Ok(());
    }
    Err(filter.failed(&no_restore(version), &missing))
}

fn no_restore(version: IpVersion) -> String {
    format!("there is no {}-legacy-restore to put in what is missing", kernel::base_name(version))
}

impl LegacyFilter<'_> {
    /// What ADD would have put in and isn't there.
    pub fn differences(&self, table: &FilterTable) -> Vec<Difference> {
        let program = kernel::program(self.version);
        let lacks = |missing: Missing| Difference::missing(format!("{program} -t filter"), self.line(missing));
        let missing = self.missing(table).into_iter().map(lacks);
        missing.chain(self.dropped_before(table)).collect()
    }

    /// Rules that drop what is admitted before ours accepts it.
    fn dropped_before(&self, table: &FilterTable) -> Vec<Difference> {
        let in_front = |chain: &str, is_wanted: &dyn Fn(&Rule) -> bool| {
            let rules = table.chain(chain)?.rules.as_slice();
            let wanted = rules.iter().position(is_wanted)?;
            let (at, rule) = rules.iter().take(wanted).enumerate().find(|(_, rule)| rule.refuses_all())?;
            let object = format!("chain {chain} of {} -t filter", kernel::program(self.version));
            let expected = format!("nothing that drops all in front of rule {} (ours)", wanted + 1);
            Some(Difference::other(object, expected, format!("rule {}: {}", at + 1, rule.target)))
        };
        let jump = in_front("FORWARD", &|rule| rule.jumps_to(FORWARD_CHAIN));
        let accept = in_front(FORWARD_CHAIN, &|rule| self.is_accepted_by(rule));
        jump.into_iter().chain(accept).collect()
    }

    fn is_accepted_by(&self, rule: &Rule) -> bool {
        rule.tests_mark_only(self.mark) && rule.target == Target::Verdict(Verdict::Accept)
    }

    /// Puts in what isn't there.
    pub fn mend(&self) -> Result<()> {
        let _ours_alone = lock()?;
        // Another ADD may have done it while we waited.
        let Some(table) = guarding_table(self.version)? else { return Ok(()) };
        let missing = self.missing(&table);
        if missing.is_empty() {
            return Ok(());
        }
        log::info!("{} lacks {} lines of ours: executing its restore", kernel::program(self.version), missing.len());
        self.restore(&missing)?;
        let still = guarding_table(self.version)?.map(|t| self.missing(&t)).unwrap_or_default();
        if still.is_empty() {
            Ok(())
        } else {
            Err(self.failed("it reported success, but the rules aren't there", &still))
        }
    }

    fn missing(&self, table: &FilterTable) -> Vec<Missing> {
        let has_rule = |chain: &str, wanted: &dyn Fn(&Rule) -> bool| {
            table.chain(chain).is_some_and(|chain| chain.rules.iter().any(wanted))
        };
        [
            (Missing::ForwardChain, table.chain(FORWARD_CHAIN).is_some()),
            (Missing::AdminChain, table.chain(self.admin_chain).is_some()),
            (Missing::Jump, has_rule("FORWARD", &|r| r.jumps_to(FORWARD_CHAIN))),
            (Missing::AdminJump, has_rule(FORWARD_CHAIN, &|r| r.jumps_to(self.admin_chain))),
            (Missing::Accept, has_rule(FORWARD_CHAIN, &|r| self.is_accepted_by(r))),
        ]
        .into_iter()
        .filter_map(|(missing, is_there)| (!is_there).then_some(missing))
        .collect()
    }

    /// A line for `iptables-restore`; a rule's is what follows `iptables` on a command line, too.
    fn line(&self, missing: Missing) -> String {
        let LegacyFilter { admin_chain, mark, .. } = self;
        match missing {
            Missing::ForwardChain => format!(":{FORWARD_CHAIN} - [0:0]"),
            Missing::AdminChain => format!(":{admin_chain} - [0:0]"),
            Missing::Jump => format!("-I FORWARD 1 -m comment --comment \"{JUMP_COMMENT}\" -j {FORWARD_CHAIN}"),
            Missing::AdminJump => {
                format!("-I {FORWARD_CHAIN} 1 -m comment --comment \"{ADMIN_COMMENT}\" -j {admin_chain}")
            }
            Missing::Accept => format!(
                "-A {FORWARD_CHAIN} -m mark --mark {mark:#x}/{mark:#x} -m comment --comment \"{ACCEPT_COMMENT}\" -j ACCEPT"
            ),
        }
    }

    /// All lines at once.
    fn restore(&self, missing: &[Missing]) -> Result<()> {
        run_restore(self.version, &self.script(missing)).map_err(|reason| self.failed(&reason, missing))
    }

    fn script(&self, missing: &[Missing]) -> String {
        let lines: String = missing.iter().map(|m| self.line(*m) + "\n").collect();
        script(&lines)
    }

    fn failed(&self, reason: &str, missing: &[Missing]) -> Error {
        let program = kernel::program(self.version);
        let by_hand = |missing: &Missing| match missing {
            Missing::ForwardChain => format!("{program} -N {FORWARD_CHAIN}"),
            Missing::AdminChain => format!("{program} -N {}", self.admin_chain),
            rule => format!("{program} {}", self.line(*rule)),
        };
        let commands: Vec<String> = missing.iter().map(by_hand).collect();
        Error::HostFirewall {
            firewall: "iptables-legacy",
            reason: reason.to_owned(),
            next: format!("put it in by hand: {}", commands.join("; ")),
        }
    }
}

fn script(lines: &str) -> String {
    format!("*filter\n{lines}COMMIT\n")
}

/// The table is replaced as a whole or not at all. Gives the reason of a failure.
fn run_restore(version: IpVersion, script: &str) -> Result<(), String> {
    let program = find_restore(version).ok_or_else(|| no_restore(version))?;
    let refuse = |e: std::io::Error| format!("{}: {e}", program.display());
    let mut child = Command::new(&program)
        .args(["--noflush", "--wait", LOCK_PATIENCE])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(refuse)?;
    // Where it ended before it had read everything, its status says more than the broken pipe.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let done = child.wait_with_output().map_err(refuse)?;
    if done.status.success() {
        return written.map_err(refuse);
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
    Err(format!("{} failed ({}): {said}", program.display(), done.status))
}

/// Takes out the rules of the reference for addresses that `goes` says yes to, and its isolation chains with the last of
/// them. Where none are, which is everywhere once its time is over, nothing is executed.
pub fn remove_reference_rules(version: IpVersion, goes: &mut dyn FnMut(IpAddr) -> Result<bool>) -> Result<()> {
    let Some(table) = guarding_table(version)? else { return Ok(()) };
    if leftovers(&table, version, goes)?.is_empty() {
        return Ok(());
    }
    let _ours_alone = lock()?;
    let Some(table) = guarding_table(version)? else { return Ok(()) };
    let lines = leftovers(&table, version, goes)?;
    if lines.is_empty() {
        return Ok(());
    }
    run_restore(version, &script(&(lines.join("\n") + "\n"))).map_err(|reason| Error::HostFirewall {
        firewall: "iptables-legacy",
        reason,
        next: format!("take out by hand what the reference plugin has left behind: {}", lines.join("; ")),
    })
}

/// The lines for `iptables-restore` that take them out.
fn leftovers(
    table: &FilterTable,
    version: IpVersion,
    goes: &mut dyn FnMut(IpAddr) -> Result<bool>,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut stays = false;
    let rules = table.chain(FORWARD_CHAIN).map(|chain| chain.rules.as_slice()).unwrap_or_default();
    for (address, is_reply) in rules.iter().filter_map(|rule| rule.of_the_reference(version)) {
        if !goes(address)? {
            stays = true;
        } else if is_reply {
            let states = "-m conntrack --ctstate RELATED,ESTABLISHED";
            lines.push(format!("-D {FORWARD_CHAIN} -d {address} {states} -j ACCEPT"));
        } else {
            lines.push(format!("-D {FORWARD_CHAIN} -s {address} -j ACCEPT"));
        }
    }
    if !lines.is_empty() && !stays && ISOLATION.iter().all(|name| table.chain(name).is_some()) {
        lines.extend(isolation_lines(table));
    }
    Ok(lines)
}

fn isolation_lines(table: &FilterTable) -> Vec<String> {
    let [first, _] = ISOLATION;
    let rules = table.chain("FORWARD").map(|chain| chain.rules.as_slice()).unwrap_or_default();
    let jumps = rules.iter().filter(|r| r.jumps_to(first));
    let unhook = |rule: &Rule| match rule.comment().filter(|c| !c.contains(['"', '\n', '\\'])) {
        Some(comment) => format!("-D FORWARD -m comment --comment \"{comment}\" -j {first}"),
        None => format!("-D FORWARD -j {first}"),
    };
    let empty = |option: &'static str| ISOLATION.into_iter().map(move |chain| format!("{option} {chain}"));
    jumps.map(unhook).chain(empty("-F")).chain(empty("-X")).collect()
}

fn lock() -> Result<Flock<File>> {
    let path = Path::new(LOCK);
    let refuse = |reason: String| Error::StateFile { path: path.into(), reason };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| refuse(e.to_string()))?;
    }
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| refuse(e.to_string()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| refuse(errno.desc().to_owned()))
}

/// `iptables-legacy-restore`, else an `iptables-restore` that says it is the legacy one (before 1.8 there was no other,
/// and it didn't say).
fn find_restore(version: IpVersion) -> Option<PathBuf> {
    let base = kernel::base_name(version);
    let legacy = in_path(&format!("{base}-legacy-restore"));
    legacy.or_else(|| in_path(&format!("{base}-restore")).filter(|program| is_legacy(program)))
}

fn is_legacy(program: &Path) -> bool {
    let said = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    said.is_ok_and(|said| said.status.success() && !String::from_utf8_lossy(&said.stdout).contains("nf_tables"))
}

/// Runtimes don't always have the administrator's directories in their PATH.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let absolute = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    absolute.chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}
