//! The share in the kernel and in firewalld: put in, compared.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use common::cni::Difference;
use common::nft::{Chain, Command, CommitError, Element, NftSocket, Presence, RuleInfo, Skeleton, Table, Transaction};
use common::{Call, Error, Result, State};
use nix::errno::Errno;

use crate::firewalld::Firewalld;
use crate::guards::{self, Scope};
use crate::hostfilter::{self, FoundFilter};
use crate::legacy::{self, LegacyFilter};
use crate::plan::{HostPart, Share};
use crate::record::{self, Record, RecordedChain};
use crate::removal;
use crate::rules::{BRIDGE_TABLE, PORT_GUARDS};

/// How often a transaction is thought out anew because somebody else's came between the look and the leap.
const TRIES: u32 = 50;

/// The share and whoever has to be told of it.
pub struct Placed {
    /// The plan.
    pub share: Share,
    /// firewalld, if it is to be told.
    pub firewalld: Option<Firewalld>,
}

impl State for Placed {
    fn apply(&self, _call: &Call) -> Result<()> {
        // What is static may stay if something fails later; so it comes first.
        let host = mend_legacy(&self.share.host)?;
        let told = self.tell_firewalld()?;
        let mut socket = NftSocket::new();
        let installed = match install(&mut socket, &self.share, &host) {
            Err(error) if is_about_bridges(&error) => {
                log::warn!("{error}; within the bridge, containers are isolated only by bridge-nf-call-iptables");
                install(&mut socket, &self.share.without_bridge_family(), &host)
            }
            outcome => outcome,
        };
        let mended = installed.inspect_err(|_| self.untell_firewalld(&told))?;
        self.name_guards(&mut socket, mended)
    }

    fn differences(&self, _call: &Call) -> Result<Vec<Difference>> {
        let mut socket = NftSocket::new();
        let mut all = share_differences(&mut socket, &self.share)?;
        all.extend(host_differences(&mut socket, &self.share.host)?);
        for (firewalld, zone, address) in self.sources() {
            all.extend(firewalld.difference(zone, address)?);
        }
        Ok(all)
    }
}

impl Placed {
    /// What firewalld has to know.
    fn sources(&self) -> impl Iterator<Item = (&Firewalld, &str, IpAddr)> {
        let told = self.firewalld.iter().zip(&self.share.zone);
        told.flat_map(|(firewalld, zone)| self.share.addresses.iter().map(move |a| (firewalld, zone.as_str(), *a)))
    }

    /// Tells firewalld; gives what it didn't know. A failure leaves it knowing what it knew.
    fn tell_firewalld(&self) -> Result<Vec<IpAddr>> {
        let mut told = Vec::new();
        for (firewalld, zone, address) in self.sources() {
            match firewalld.add_source(zone, address) {
                Ok(true) => told.push(address),
                Ok(false) => {}
                Err(error) => {
                    self.untell_firewalld(&told);
                    return Err(error);
                }
            }
        }
        Ok(told)
    }

    /// Says who else will drop what is admitted now. All chains are looked at when something static was missing, as
    /// after boot; else the usual ones.
    fn name_guards(&self, socket: &mut NftSocket, thoroughly: bool) -> Result<()> {
        let scope = Scope { host: &self.share.host, firewalld: self.firewalld.is_some() };
        let guards = if thoroughly { guards::all(socket, scope)? } else { guards::usual(socket, scope)? };
        for guard in guards {
            let level = if guard.certainly { log::Level::Warn } else { log::Level::Info };
            log::log!(level, "{guard}, also this container's; {}", guard.remedy());
        }
        Ok(())
    }

    fn untell_firewalld(&self, told: &[IpAddr]) {
        for (firewalld, zone, address) in self.sources().filter(|(_, _, address)| told.contains(address)) {
            if let Err(error) = firewalld.remove_source(zone, address) {
                log::warn!("undoing: {error}");
            }
        }
    }
}

/// The bridge family's nftables is a part of the kernel that may be left out (CONFIG_NF_TABLES_BRIDGE).
fn is_about_bridges(error: &Error) -> bool {
    let absent = [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT];
    matches!(error, Error::Kernel { errno, object, .. }
        if absent.contains(errno) && object.contains(&BRIDGE_TABLE.to_string()))
}

/// Puts the static rule into the legacy tables that guard something; gives what nf_tables is left to hold.
fn mend_legacy(host: &HostPart) -> Result<Vec<HostPart>> {
    let mut parts = Vec::with_capacity(host.versions.len());
    for (version, part) in host.each_version() {
        let Some(table) = legacy::guarding_table(version)? else {
            parts.push(part);
            continue;
        };
        let filter = LegacyFilter { version, admin_chain: &host.admin_chain, mark: host.mark };
        if !filter.differences(&table).is_empty() {
            filter.mend()?;
        }
        // Where iptables means iptables-legacy, a table that iptables-nft would see is used but not made.
        parts.push(HostPart { make: false, ..part });
    }
    parts.push(HostPart { versions: vec![], ..host.clone() });
    Ok(parts)
}

/// What is to be sent, and whether it was thought out from the whole of somebody else's tables: then nothing there may
/// have changed in between.
struct Changes {
    rebuilding: Vec<Skeleton>,
    transaction: Transaction,
    guarded: bool,
}

/// Puts the share in; whether something static was missing.
fn install(socket: &mut NftSocket, share: &Share, host: &[HostPart]) -> Result<bool> {
    let mut mended = false;
    repeat(|| {
        let generation = socket.generation()?;
        let Changes { rebuilding, transaction, guarded } = changes(socket, share, host)?;
        mended = guarded || !rebuilding.is_empty();
        socket.commit_rebuilding(&rebuilding, &transaction, guarded.then_some(generation))
    })?;
    Ok(mended)
}

/// Does it again as long as somebody else comes between.
pub fn repeat(mut attempt: impl FnMut() -> Result<(), CommitError>) -> Result<()> {
    for n in 0..TRIES {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if is_contention(&error) => {
                log::debug!("attempt {n}: {error:?}");
                sleep(Duration::from_micros(u64::from(n * n) * 50));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::TryAgain { what: "the host's nftables rules keep changing".into() })
}

/// EEXIST: what was absent has come; ENOENT: what was there has gone; EBUSY: it has got a user; ERESTART: anything.
fn is_contention(error: &CommitError) -> bool {
    let errno = error.errno();
    errno.is_some_and(|e| [Errno::EEXIST, Errno::ENOENT, Errno::EBUSY, Errno::ERESTART].contains(&e))
}

fn changes(socket: &mut NftSocket, share: &Share, host: &[HostPart]) -> Result<Changes> {
    let record = Record::read(socket, &share.attachment.key())?;
    let rebuilding = damaged_skeletons(socket, share, record.is_some())?;
    let mut transaction = Transaction::new();
    if let Some(record) = &record {
        drop_stale(socket, share, record, &mut transaction)?;
    }
    let elements = missing_elements(socket, share, &mut transaction)?;
    for (table, chain) in share.chains() {
        add_chain(socket, &table, chain, &mut transaction)?;
    }
    for (table, set, element) in elements {
        // Exclusively, so that of two calls which found it absent one looks again.
        transaction.add_elements(&table, set, Presence::Exclusive, vec![element]);
    }
    let mut guarded = false;
    if let Some(record) = &record {
        guarded = removal::release_stale_policies(socket, share, record, &mut transaction)?;
    }
    let mending = host_mending(socket, host)?;
    guarded |= !mending.is_empty();
    mending.into_iter().for_each(|command| {
        transaction.push(command);
    });
    Ok(Changes { rebuilding, transaction, guarded })
}

/// The skeletons that aren't in place. An attachment's first ADD is content with a quick look; one that finds its own
/// share there is a repair, and looks at every rule.
fn damaged_skeletons(socket: &mut NftSocket, share: &Share, thoroughly: bool) -> Result<Vec<Skeleton>> {
    let mut damaged = Vec::new();
    for skeleton in share.skeletons() {
        let whole = socket.is_in_place(&skeleton)? && (!thoroughly || socket.differences(&skeleton)?.is_empty());
        if !whole {
            damaged.push(skeleton);
        }
    }
    Ok(damaged)
}

/// Addresses and ports that the attachment had at an earlier ADD and no longer has, and chains it no longer needs.
fn drop_stale(socket: &mut NftSocket, share: &Share, record: &Record, transaction: &mut Transaction) -> Result<()> {
    let wanted = share.elements();
    for element in record.elements() {
        let is_wanted =
            wanted.iter().any(|(t, map, e)| *t == element.table && *map == element.map && e.key == element.key.key);
        if !is_wanted && element.is_owned(socket)? {
            transaction.delete_elements(&element.table, element.map, vec![element.key]);
        }
    }
    let chains = share.chains();
    for RecordedChain { table, name, .. } in &record.chains {
        if !chains.iter().any(|(t, chain)| t == table && chain.name == *name) {
            transaction.remove_chain(table, name);
        }
    }
    Ok(())
}

/// The elements that aren't there; those of a former owner are taken from it first, together with its rules for them,
/// so that its late DEL finds nothing in its record that is no longer its own.
fn missing_elements(
    socket: &mut NftSocket,
    share: &Share,
    transaction: &mut Transaction,
) -> Result<Vec<(Table, &'static str, Element)>> {
    let mut missing = Vec::new();
    for (table, map, element) in share.elements() {
        let key = Element::key(element.key.clone());
        match socket.element(&table, &record::set_named(map), &key.key)? {
            Some(found) if found.data == element.data => continue,
            Some(_) => take_over(socket, &table, map, key, transaction)?,
            None => {}
        }
        missing.push((table, map, element));
    }
    Ok(missing)
}

fn take_over(
    socket: &mut NftSocket,
    table: &Table,
    map: &'static str,
    key: Element,
    transaction: &mut Transaction,
) -> Result<()> {
    let owner = record::owner_of(socket, table, map, &key)?;
    transaction.delete_elements(table, map, vec![key.clone()]);
    let is_attachment = |chain: &String| PORT_GUARDS.iter().any(|guard| chain.starts_with(guard.prefix));
    let Some(owner) = owner.filter(is_attachment) else { return Ok(()) };
    log::info!("{key} is taken over from chain {owner}, whose container should be gone");
    for (handle, rule) in record::rules_of(socket, table, &owner)?.unwrap_or_default() {
        if rule.is_some_and(|rule| record::concerns(&rule, &key)) {
            transaction.delete_rule(table, &owner, handle);
        }
    }
    Ok(())
}

/// The chain as it should be, if it isn't.
fn add_chain(socket: &mut NftSocket, table: &Table, chain: Chain, transaction: &mut Transaction) -> Result<()> {
    match socket.chain(table, &chain.name)? {
        None => {
            transaction.add_chain(table, chain);
        }
        Some(_) if is_same(&socket.rules(table, &chain.name)?, &chain) => {}
        Some(_) => {
            transaction.push(Command::FlushChain(table.clone(), chain.name.clone()));
            transaction.add_chain(table, chain);
        }
    }
    Ok(())
}

fn is_same(found: &[RuleInfo], chain: &Chain) -> bool {
    found.iter().map(|info| info.rule.as_ref()).eq(chain.rules.iter().map(Some))
}

fn host_mending(socket: &mut NftSocket, host: &[HostPart]) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for part in host {
        for (version, part) in part.each_version() {
            let found = FoundFilter::read(socket, version, &part.admin_chain)?;
            commands.extend(hostfilter::mending(&part, version, &found));
        }
        for chain in &part.chains {
            let found = chain.read(socket)?;
            commands.extend(chain.mending(part.mark, &found));
        }
    }
    Ok(commands)
}

fn share_differences(socket: &mut NftSocket, share: &Share) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    let record = Record::read(socket, &share.attachment.key())?;
    let reduced = record.is_some_and(|r| r.is_without_bridge_family()).then(|| share.without_bridge_family());
    let share = reduced.as_ref().unwrap_or(share);
    for skeleton in share.skeletons() {
        all.extend(socket.differences(&skeleton)?);
    }
    for (table, chain) in share.chains() {
        all.extend(socket.chain_differences(&table, &chain)?);
    }
    for (table, map, element) in share.elements() {
        all.extend(socket.element_differences(&table, &record::set_named(map), &[element])?);
    }
    Ok(all)
}

/// What CHECK and STATUS say about the host's own filters.
pub fn host_differences(socket: &mut NftSocket, host: &HostPart) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    for (version, part) in host.each_version() {
        let guarding = legacy::guarding_table(version)?;
        let make = part.make && guarding.is_none();
        if let Some(table) = guarding {
            let filter = LegacyFilter { version, admin_chain: &host.admin_chain, mark: host.mark };
            all.extend(filter.differences(&table));
        }
        let found = FoundFilter::read(socket, version, &host.admin_chain)?;
        all.extend(hostfilter::differences(&HostPart { make, ..part }, version, &found));
    }
    for chain in &host.chains {
        let found = chain.read(socket)?;
        all.extend(chain.difference(host.mark, &found));
    }
    Ok(all)
}
