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
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::nft::{IpVersion, NftSocket};
use common::{Difference, Error, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::config::FORWARD_CHAIN;
use crate::hostfilter::{ADMIN_COMMENT, JUMP_COMMENT};
use crate::plan::HostPart;
use crate::rules::ACCEPT_COMMENT;
use crate::upgrade::{self, Goes, ISOLATION};
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

/// Something that a legacy filter table lacks, or has and must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    ForwardChain,
    AdminChain,
    Jump,
    AdminJump,
    Accept,
    /// An accepting rule with these tests: in front of the administrator's chain, or for another mark.
    Without(String),
}

/// The legacy filter table, if it is in use and something in its FORWARD may drop, or the administrator has his chain there.
pub fn guarding_table(version: IpVersion, admin_chain: &str) -> Result<Option<FilterTable>> {
    let guards = |table: &FilterTable| {
        let forward = table.chain("FORWARD");
        table.chain(admin_chain).is_some()
            || forward.is_some_and(|c| c.policy != Some(Verdict::Accept) || !c.rules.is_empty())
    };
    Ok(table_in_use(version)?.filter(guards))
}

/// The legacy filter table, if it is in use. It is looked up in the list of tables first: asking for a table that isn't
/// there would make it.
fn table_in_use(version: IpVersion) -> Result<Option<FilterTable>> {
    if !kernel::is_in_use(version)? {
        return Ok(None);
    }
    let table = FilterTable::parse(version, &kernel::read_filter(version)?).ok_or_else(|| Error::HostFirewall {
        firewall: "iptables-legacy",
        reason: format!("the filter table of {} can't be understood", kernel::program(version)),
        next: "please report it with the output of iptables-legacy-save".into(),
    })?;
    Ok(Some(table))
}

/// An error if something is missing in a legacy table and nothing is there to put it in.
pub fn can_mend(version: IpVersion, host: &HostPart) -> Result<()> {
    let filter = LegacyFilter::of(version, host);
    let Some(table) = filter.guarding_table()? else { return Ok(()) };
    let needs = filter.needs(&table);
    if needs.is_empty() || find_restore(version).is_some() {
        return Ok(());
    }
    Err(filter.failed(&no_restore(version), &needs))
}

fn no_restore(version: IpVersion) -> String {
    format!("there is no {}-legacy-restore to put in what is missing", kernel::base_name(version))
}

impl<'a> LegacyFilter<'a> {
    /// What the host's part asks of it.
    pub fn of(version: IpVersion, host: &'a HostPart) -> LegacyFilter<'a> {
        LegacyFilter { version, admin_chain: &host.admin_chain, mark: host.mark }
    }
}

impl LegacyFilter<'_> {
    /// The table, if it guards something.
    pub fn guarding_table(&self) -> Result<Option<FilterTable>> {
        guarding_table(self.version, self.admin_chain)
    }

    /// What ADD would have put in and isn't there, or would have taken out.
    pub fn differences(&self, table: &FilterTable) -> Vec<Difference> {
        let differences = self.needs(table).into_iter().map(|need| self.difference(&need));
        differences.chain(self.dropped_before(table)).chain(self.accepted_before(table)).collect()
    }

    /// A rule that accepts everything before the administrator's chain is asked.
    fn accepted_before(&self, table: &FilterTable) -> Option<Difference> {
        let ours = table.rules(FORWARD_CHAIN);
        let admin_at = ours.iter().position(|rule| rule.jumps_to(self.admin_chain))?;
        let at = ours.iter().take(admin_at).position(|rule| accepts(rule) && rule.is_unconditional())?;
        let object = format!("chain {FORWARD_CHAIN} of {} -t filter", kernel::program(self.version));
        let expected = format!("nothing that accepts all in front of the jump to {}", self.admin_chain);
        Some(Difference::other(object, expected, format!("rule {}: -j ACCEPT", at + 1)))
    }

    /// What ADD says of what others have put in front of ours, and leaves to them.
    pub fn warn_of_obstacles(&self, table: &FilterTable) {
        for blocked in self.dropped_before(table) {
            log::warn!("what is admitted is dropped: {blocked}");
        }
        if let Some(open) = self.accepted_before(table) {
            log::warn!("the administrator's overrides are passed over: {open}");
        }
    }

    /// Acceptances of marks that are not this one.
    pub fn accepts_others(&self, table: &FilterTable) -> Vec<Difference> {
        self.outdated(table).map(|tests| self.difference(&Need::Without(tests))).collect()
    }

    fn difference(&self, need: &Need) -> Difference {
        let program = kernel::program(self.version);
        match need {
            Need::Without(_) => {
                let object = format!("chain {FORWARD_CHAIN} of {program} -t filter");
                let expected = format!("only mark {:#x} accepted, behind {}", self.mark, self.admin_chain);
                Difference::other(object, expected, self.line(need).replacen("-D", "-A", 1))
            }
            lacks => Difference::missing(format!("{program} -t filter"), self.line(lacks)),
        }
    }

    /// Rules that drop what is admitted before ours accepts it.
    pub fn dropped_before(&self, table: &FilterTable) -> Vec<Difference> {
        let in_front = |chain: &str, is_wanted: &dyn Fn(&Rule) -> bool| {
            let rules = table.rules(chain);
            let wanted = rules.iter().position(is_wanted)?;
            // What the administrator's own chain does is his business.
            let ends = |rule: &Rule| !rule.jumps_to(self.admin_chain) && table.lets_nothing_past(rule);
            let (at, rule) = rules.iter().take(wanted).enumerate().find(|(_, rule)| ends(rule))?;
            let object = format!("chain {chain} of {} -t filter", kernel::program(self.version));
            let expected = format!("nothing that drops all in front of rule {} (ours)", wanted + 1);
            Some(Difference::other(object, expected, format!("rule {}: {rule}", at + 1)))
        };
        let jump = in_front("FORWARD", &|rule| rule.jumps_to(FORWARD_CHAIN));
        let accept = in_front(FORWARD_CHAIN, &|rule| self.is_accepted_by(rule));
        jump.into_iter().chain(accept).collect()
    }

    fn is_accepted_by(&self, rule: &Rule) -> bool {
        rule.tests_mark_only(self.mark) && accepts(rule)
    }

    /// The tests of acceptances of ours for other marks.
    fn outdated(&self, table: &FilterTable) -> impl Iterator<Item = String> {
        let is_ours = |rule: &&Rule| accepts(rule) && rule.comment().as_deref() == Some(ACCEPT_COMMENT);
        let others = table.rules(FORWARD_CHAIN).iter().filter(is_ours);
        let others = others.filter(|rule| rule.sole_mark().is_some_and(|mark| mark != self.mark));
        others.filter_map(Rule::tests_in_words)
    }

    /// Puts in what isn't there, and takes out what must not be.
    pub fn mend(&self) -> Result<()> {
        let _ours_alone = lock()?;
        // Another ADD may have done it while we waited.
        let Some(table) = self.guarding_table()? else { return Ok(()) };
        self.bring_about(&self.needs(&table), |table| self.needs(table))
    }

    /// Sees that no other mark is accepted, where there is nothing else to do. Whether there was any.
    pub fn mend_others(&self) -> Result<()> {
        let accepted = |table: &FilterTable| !self.accepts_others(table).is_empty();
        if self.guarding_table()?.is_some_and(|table| accepted(&table)) { self.mend() } else { Ok(()) }
    }

    fn bring_about(&self, needs: &[Need], look_again: impl Fn(&FilterTable) -> Vec<Need>) -> Result<()> {
        if needs.is_empty() {
            return Ok(());
        }
        log::info!("{} needs {} lines of ours: executing its restore", kernel::program(self.version), needs.len());
        run_restore(self.version, &self.script(needs)).map_err(|refused| match refused {
            Refused::Locked(what) => Error::TryAgain { what },
            Refused::Failed(reason) => self.failed(&reason, needs),
        })?;
        let still = self.guarding_table()?.map(|table| look_again(&table)).unwrap_or_default();
        if still.is_empty() {
            Ok(())
        } else {
            Err(self.failed("it reported success, but the rules aren't there", &still))
        }
    }

    /// In the order in which they are to be put right.
    fn needs(&self, table: &FilterTable) -> Vec<Need> {
        let ours = table.rules(FORWARD_CHAIN);
        let admin_at = ours.iter().position(|rule| rule.jumps_to(self.admin_chain));
        let behind_admin = ours.iter().skip(admin_at.map_or(0, |at| at + 1)).any(|rule| self.is_accepted_by(rule));
        let misplaced = ours.iter().take(admin_at.unwrap_or(0)).filter(|rule| self.is_accepted_by(rule));
        let gone = misplaced.filter_map(Rule::tests_in_words).chain(self.outdated(table));
        let mut needs: Vec<Need> = gone.map(Need::Without).collect();
        let wanted = [
            (Need::ForwardChain, table.chain(FORWARD_CHAIN).is_some()),
            (Need::AdminChain, table.chain(self.admin_chain).is_some()),
            (Need::Jump, table.rules("FORWARD").iter().any(|rule| rule.jumps_to(FORWARD_CHAIN))),
            (Need::AdminJump, admin_at.is_some()),
            (Need::Accept, behind_admin),
        ];
        needs.extend(wanted.into_iter().filter_map(|(need, is_there)| (!is_there).then_some(need)));
        needs
    }

    /// A line for `iptables-restore`; a rule's is what follows `iptables` on a command line, too.
    fn line(&self, need: &Need) -> String {
        let LegacyFilter { admin_chain, mark, .. } = self;
        match need {
            Need::ForwardChain => format!(":{FORWARD_CHAIN} - [0:0]"),
            Need::AdminChain => format!(":{admin_chain} - [0:0]"),
            Need::Jump => format!("-I FORWARD 1 -m comment --comment \"{JUMP_COMMENT}\" -j {FORWARD_CHAIN}"),
            Need::AdminJump => {
                format!("-I {FORWARD_CHAIN} 1 -m comment --comment \"{ADMIN_COMMENT}\" -j {admin_chain}")
            }
            Need::Accept => format!(
                "-A {FORWARD_CHAIN} -m mark --mark {mark:#x}/{mark:#x} -m comment --comment \"{ACCEPT_COMMENT}\" -j ACCEPT"
            ),
            // By its tests, not by its number, which another's change may have moved; of several alike the first goes.
            Need::Without(tests) => format!("-D {FORWARD_CHAIN} {tests} -j ACCEPT"),
        }
    }

    fn script(&self, needs: &[Need]) -> String {
        let lines: String = needs.iter().map(|need| self.line(need) + "\n").collect();
        script(&lines)
    }

    fn failed(&self, reason: &str, needs: &[Need]) -> Error {
        let program = kernel::program(self.version);
        let by_hand = |need: &Need| match need {
            Need::ForwardChain => format!("{program} -N {FORWARD_CHAIN}"),
            Need::AdminChain => format!("{program} -N {}", self.admin_chain),
            rule => format!("{program} {}", self.line(rule)),
        };
        let commands: Vec<String> = needs.iter().map(by_hand).collect();
        Error::HostFirewall {
            firewall: "iptables-legacy",
            reason: reason.to_owned(),
            next: format!("put it in by hand: {}", commands.join("; ")),
        }
    }
}

fn accepts(rule: &Rule) -> bool {
    rule.target == Target::Verdict(Verdict::Accept)
}

fn script(lines: &str) -> String {
    format!("*filter\n{lines}COMMIT\n")
}

/// Why `iptables-legacy-restore` has changed nothing.
enum Refused {
    /// Somebody holds the lock of xtables, or has changed the table at the same time.
    Locked(String),
    Failed(String),
}

/// The exit status of iptables for what may go well another time (`RESOURCE_PROBLEM`, include/xtables.h).
const RESOURCE_PROBLEM: i32 = 4;

/// The table is replaced as a whole or not at all.
fn run_restore(version: IpVersion, script: &str) -> Result<(), Refused> {
    let program = find_restore(version).ok_or_else(|| Refused::Failed(no_restore(version)))?;
    let refuse = |e: std::io::Error| Refused::Failed(format!("{}: {e}", program.display()));
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
    let reason = format!("{} failed ({}): {said}", program.display(), done.status);
    let again = done.status.code() == Some(RESOURCE_PROBLEM);
    Err(if again { Refused::Locked(reason) } else { Refused::Failed(reason) })
}

/// Takes out the rules of the reference for addresses that `goes` says yes to, and its isolation chains if nobody needs
/// them. Where none are, which is everywhere once its time is over, nothing is executed.
pub fn remove_reference_rules(socket: &mut NftSocket, version: IpVersion, goes: &mut Goes<'_>) -> Result<()> {
    let Some(table) = table_in_use(version)? else { return Ok(()) };
    if leftovers(socket, &table, version, goes)?.is_empty() {
        return Ok(());
    }
    let _ours_alone = lock()?;
    let Some(table) = table_in_use(version)? else { return Ok(()) };
    let lines = leftovers(socket, &table, version, goes)?;
    if lines.is_empty() {
        return Ok(());
    }
    run_restore(version, &script(&(lines.join("\n") + "\n"))).map_err(|refused| match refused {
        Refused::Locked(what) => Error::TryAgain { what },
        Refused::Failed(reason) => Error::HostFirewall {
            firewall: "iptables-legacy",
            reason,
            next: format!("take out by hand what the reference plugin has left behind: {}", lines.join("; ")),
        },
    })
}

/// Whether the reference's isolation chains are in force.
pub fn isolates(table: &FilterTable) -> bool {
    let [first, _] = ISOLATION;
    table.rules("FORWARD").iter().any(|rule| rule.jumps_to(first))
}

/// What is to be said of them where they are in force and nobody needs them.
pub fn unneeded_isolation(
    socket: &mut NftSocket,
    version: IpVersion,
    table: &FilterTable,
) -> Result<Option<Difference>> {
    if !isolates(table) || leftovers(socket, table, version, &mut |_, _| Ok(false))?.is_empty() {
        return Ok(None);
    }
    Ok(Some(upgrade::left_behind(format!("chain FORWARD of {} -t filter", kernel::program(version)))))
}

/// The lines for `iptables-restore` that take them out.
fn leftovers(
    socket: &mut NftSocket,
    table: &FilterTable,
    version: IpVersion,
    goes: &mut Goes<'_>,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut stay = Vec::new();
    let rules = table.rules(FORWARD_CHAIN);
    for (address, is_reply) in rules.iter().filter_map(|rule| rule.of_the_reference(version)) {
        if !goes(socket, address)? {
            stay.push(address);
        } else if is_reply {
            let states = "-m conntrack --ctstate RELATED,ESTABLISHED";
            lines.push(format!("-D {FORWARD_CHAIN} -d {address} {states} -j ACCEPT"));
        } else {
            lines.push(format!("-D {FORWARD_CHAIN} -s {address} -j ACCEPT"));
        }
    }
    let are_there = ISOLATION.iter().all(|name| table.chain(name).is_some());
    if are_there && !upgrade::needs_isolation(socket, &stay)? {
        lines.extend(isolation_lines(table));
    }
    Ok(lines)
}

fn isolation_lines(table: &FilterTable) -> Vec<String> {
    let [first, _] = ISOLATION;
    let rules = table.rules("FORWARD");
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
