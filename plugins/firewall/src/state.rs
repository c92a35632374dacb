//! The share in the kernel and in firewalld: put in, compared.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use common::cni::Difference;
use common::nft::records;
use common::nft::{Command, CommitError, Element, NftSocket, Presence, RecordKey, Skeleton, Transaction};
use common::{Call, Error, Result, State};
use nix::errno::Errno;

use crate::firewalld::{Firewalld, Told};
use crate::guards::{self, Scope};
use crate::host::{self, MendedLegacy};
use crate::hostchain;
use crate::legacy;
use crate::others::Others;
use crate::plan::{HostPart, Notes, Share};
use crate::policies;
use crate::record::{self, Holder, Placed as Place, Record};
use crate::removal::{self, Heirs};
use crate::rules::{BRIDGE_TABLE, TABLE};
use crate::stored::{Opened, Shelf, Source};
use crate::strays;

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
        let mut socket = NftSocket::new();
        hostchain::look(&mut socket, &self.share.host.chains)?;
        // What is static may stay if something fails later; so it comes first.
        let MendedLegacy { host, isolating } = host::mend_legacy(&self.share.host)?;
        let noted = self.note();
        let told = self.tell_firewalld(&mut socket).inspect_err(|_| noted.take_back())?;
        let installed = match install(&mut socket, &self.share, &host, noted.found_a_file()) {
            Err(error) if is_about_bridges(&error) => {
                log::warn!("{error}; within the bridge, containers are isolated only by bridge-nf-call-iptables");
                let notes = Notes { without_bridge_family: true, ..self.share.notes };
                install(&mut socket, &self.share.noting(notes), &host, noted.found_a_file())
            }
            outcome => outcome,
        };
        let installed = installed.inspect_err(|_| {
            self.untell_firewalld(&told);
            noted.take_back();
        })?;
        self.tell_again(&told);
        for version in isolating {
            if let Err(error) = legacy::remove_reference_rules(&mut socket, version, &mut |_, _| Ok(false)) {
                log::warn!("{error}; {}", error.details());
            }
        }
        let has_looked = installed.has_looked || !matches!(noted, Noted::Nothing);
        if let Err(error) = keep(&mut socket, installed.share, &host, has_looked) {
            log::warn!("{error}; after `nft flush ruleset` only this container's own ADD would bring its share back");
        }
        if let Err(error) = self.name_guards(&mut socket) {
            log::warn!("{error}; who else drops what is admitted now could not be looked up");
        }
        Ok(())
    }

    fn differences(&self, _call: &Call) -> Result<Vec<Difference>> {
        let mut socket = NftSocket::new();
        let mut all = share_differences(&mut socket, &self.share)?;
        all.extend(host::differences(&mut socket, &self.share.host)?);
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
    fn tell_firewalld(&self, socket: &mut NftSocket) -> Result<Vec<Moved>> {
        let mut told = Vec::new();
        for (firewalld, zone, address) in self.sources() {
            match tell(socket, firewalld, zone, address) {
                Ok(moved) => told.extend(moved),
                Err(error) => {
                    self.untell_firewalld(&told);
                    return Err(error);
                }
            }
        }
        Ok(told)
    }

    /// Where firewalld is told, the file comes first: of an ADD that is killed behind that, DEL and GC find in the file what
    /// firewalld has to forget.
    fn note(&self) -> Noted {
        if self.sources().next().is_none() {
            return Noted::Nothing;
        }
        let key = RecordKey::of(&self.share.attachment);
        let sources: BTreeSet<Source> = self.sources().map(|(_, zone, address)| (zone.to_owned(), address)).collect();
        let former = Shelf::open().ok().flatten().and_then(|shelf| shelf.read_telling(key));
        let noted = match former {
            // A file that is there says what the former ADD has told, and goes on saying it.
            Some((share, telling)) => {
                let known: BTreeSet<Source> = Record::of(&share).sources().chain(telling.iter().cloned()).collect();
                if sources.is_subset(&known) {
                    return Noted::Already;
                }
                let more = telling.union(&sources).cloned().collect();
                Shelf::put_telling(&share, more).map(|()| Noted::Over(Box::new(share), telling))
            }
            None => Shelf::put_telling(&self.share, sources).map(|()| Noted::File(key)),
        };
        match noted {
            Ok(noted) => noted,
            Err(error) => {
                log::warn!("{error}; if this call is killed, firewalld keeps the container's addresses");
                Noted::Nothing
            }
        }
    }

    /// What firewalld knew already may have been a former owner's of the address, whose DEL has taken it out since: now
    /// that the address is known to be this container's, no DEL does.
    fn tell_again(&self, told: &[Moved]) {
        for (firewalld, zone, address) in self.sources() {
            if told.iter().all(|moved| moved.address != address)
                && let Err(error) = firewalld.add_source(zone, address)
            {
                log::warn!("{error}");
            }
        }
    }

    /// Says who else will drop what is admitted now.
    fn name_guards(&self, socket: &mut NftSocket) -> Result<()> {
        let scope = Scope { host: &self.share.host, firewalld: self.firewalld.is_some() };
        for guard in guards::all(socket, scope)? {
            let level = if guard.certainly { log::Level::Warn } else { log::Level::Info };
            log::log!(level, "{guard}, also this container's; {}", guard.remedy());
        }
        Ok(())
    }

    fn untell_firewalld(&self, told: &[Moved]) {
        for (firewalld, zone, address) in self.sources() {
            let Some(moved) = told.iter().find(|moved| moved.address == address) else { continue };
            let undone = firewalld.remove_source(zone, address).and_then(|()| match &moved.from {
                Some(former) => firewalld.add_source(former, address).map(drop),
                None => Ok(()),
            });
            if let Err(error) = undone {
                log::warn!("undoing: {error}");
            }
        }
    }
}

/// What has become of the attachment's file before firewalld was told.
enum Noted {
    /// Nothing; it wasn't looked for.
    Nothing,
    /// Nothing: it was there, and says all that firewalld is told.
    Already,
    /// It was written.
    File(RecordKey),
    /// It was there, and was written over: what it said.
    Over(Box<Share>, BTreeSet<Source>),
}

impl Noted {
    /// Whether there is one of a former ADD.
    fn found_a_file(&self) -> bool {
        matches!(self, Noted::Already | Noted::Over(..))
    }

    fn take_back(&self) {
        let undone = match self {
            Noted::Nothing | Noted::Already => Ok(()),
            Noted::File(key) => Shelf::open().and_then(|shelf| shelf.map_or(Ok(()), |shelf| shelf.remove(*key))),
            Noted::Over(share, telling) => Shelf::put_telling(share, telling.clone()),
        };
        if let Err(error) = undone {
            log::warn!("undoing: {error}");
        }
    }
}

/// An address that firewalld has in a zone by us.
struct Moved {
    address: IpAddr,
    /// The zone in which it was before.
    from: Option<String>,
}

/// Tells firewalld of one address; `None` if it knew. One that an attachment of ours has told it for another zone moves; what
/// anybody else has bound stays.
fn tell(socket: &mut NftSocket, firewalld: &Firewalld, zone: &str, address: IpAddr) -> Result<Option<Moved>> {
    match firewalld.add_source(zone, address)? {
        Told::Newly => return Ok(Some(Moved { address, from: None })),
        Told::Already => return Ok(None),
        Told::Elsewhere => {}
    }
    let theirs = firewalld.zone_of(address)?;
    if !record::have_told(socket, &theirs, address)? {
        return Err(Firewalld::conflict(zone, address, &theirs));
    }
    firewalld.remove_source(&theirs, address)?;
    match firewalld.add_source(zone, address) {
        Ok(Told::Newly | Told::Already) => Ok(Some(Moved { address, from: Some(theirs) })),
        Ok(Told::Elsewhere) => Err(Firewalld::conflict(zone, address, &theirs)),
        Err(error) => {
            if let Err(again) = firewalld.add_source(&theirs, address) {
                log::warn!("undoing: {again}");
            }
            Err(error)
        }
    }
}

/// The bridge family's nftables is a part of the kernel that may be left out (CONFIG_NF_TABLES_BRIDGE).
fn is_about_bridges(error: &Error) -> bool {
    let absent = [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT];
    matches!(error, Error::Kernel { errno, object, .. }
        if absent.contains(errno) && object.contains(&BRIDGE_TABLE.to_string()))
}

/// What is to be sent, and whether it was thought out from what others have made: then nothing may have changed in
/// between.
#[derive(Default)]
pub struct Changes {
    /// What is static and has to be put in anew.
    pub rebuilding: Vec<Skeleton>,
    /// The rest.
    pub transaction: Transaction,
    /// Whether nothing may have changed since the look.
    pub guarded: bool,
    /// Those to whom something is left of whom only the file says that they claim it.
    left_to: Vec<Record>,
}

/// Puts the share in.
///
/// Where a table of ours is gone or another, somebody may have flushed the host's rules: then the shares of all others
/// are put in again as well. The file of a former ADD is looked at if there is a record, or if it is known to be there.
fn install(socket: &mut NftSocket, share: &Share, host: &[HostPart], has_file: bool) -> Result<Installed> {
    let mut others = None;
    match install_with(socket, share, host, &mut others, has_file) {
        Err(error) if others.as_ref().is_some_and(|others| !others.is_empty()) => {
            log::warn!("{error}; other containers' shares come back only with an ADD of their own");
            install_with(socket, share, host, &mut Some(Others::default()), has_file)
        }
        outcome => outcome,
    }
}

/// Writes a share down that is in the kernel.
///
/// A file that is there though no record was tells what a former ADD has put in: it is overwritten only when what of that isn't
/// wanted any more has gone. That it is there is learnt by the attempt to make it, so that a first ADD has nothing to ask.
fn keep(socket: &mut NftSocket, mut share: Share, host: &[HostPart], has_looked: bool) -> Result<()> {
    if !has_looked {
        if Shelf::put_first(&share)? {
            return Ok(());
        }
        let former = Shelf::open()?.and_then(|shelf| shelf.read(RecordKey::of(&share.attachment)));
        if former.is_some_and(|former| record::lines(&former) != record::lines(&share)) {
            match install(socket, &share, host, true) {
                Ok(installed) => share = installed.share,
                Err(error) => {
                    log::warn!("{error}; what only a former ADD has put in goes with the container's DEL");
                    return Ok(());
                }
            }
        }
    }
    Shelf::put(&share)
}

/// What an ADD has put in.
struct Installed {
    /// With what was found out about it.
    share: Share,
    /// Whether the file of a former ADD was looked at.
    has_looked: bool,
}

fn install_with(
    socket: &mut NftSocket,
    share: &Share,
    host: &[HostPart],
    others: &mut Option<Others>,
    has_file: bool,
) -> Result<Installed> {
    let mut installed = Installed { share: share.clone(), has_looked: false };
    let (mut is_cut, mut lacking, mut left_to) = (false, false, Vec::new());
    repeat(|| {
        let generation = socket.generation()?;
        let key = RecordKey::of(&share.attachment);
        let mut record = Record::read(socket, key)?;
        installed = Installed { share: share.clone(), has_looked: has_file || is_cut || record.is_some() };
        let opened = if installed.has_looked || share.zone.is_some() { open_shelf() } else { Ok(None) };
        if installed.has_looked {
            let shelf = Shelf::within(&opened);
            let known = removal::known_whole(socket, &share.attachment, record, shelf, is_cut)?;
            record = known.map(|known| known.record);
        }
        // First, because without the record nobody would know what firewalld must forget.
        removal::forget_stale_sources(socket, share, record.as_ref(), &opened)?;
        let damaged = damaged_skeletons(socket, &share.skeletons(), lacking || record.is_some())?;
        let former = record.as_ref().map(|record| (record, &opened));
        let changes = changes(socket, &mut installed.share, former, damaged, host, others)?;
        left_to = changes.left_to;
        let generation = changes.guarded.then_some(generation);
        let outcome = socket.commit_rebuilding(&changes.rebuilding, &changes.transaction, generation);
        is_cut = outcome.as_ref().is_err_and(is_about_records);
        // Somebody has taken a set away into which no rule looks: the quick look passes over that.
        lacking |= outcome.as_ref().is_err_and(|error| error.errno() == Some(Errno::ENOENT));
        outcome
    })?;
    if !left_to.is_empty()
        && let Err(error) = removal::settle(socket, &Shelf::open(), left_to)
    {
        // The share is in place.
        log::warn!("{error}; what was left to somebody who has gone meanwhile goes with GC");
    }
    Ok(installed)
}

fn open_shelf() -> Opened {
    Shelf::open().inspect_err(|error| {
        log::warn!("{error}; what a former ADD of this container has put in is known from the record only");
    })
}

/// Whether a line was in the way: of a record of which somebody has removed a line by hand, those behind it aren't seen.
fn is_about_records(error: &CommitError) -> bool {
    let map = format!("set {} of", records::map().name);
    error.refusal().is_some_and(|refusal| refusal.errno == Errno::EEXIST && refusal.object.contains(&map))
}

/// Does it again as long as somebody else comes between; and once if the kernel's answer got lost, because what has become
/// of it is seen by what is there. What it was in the end that came between is told.
pub fn repeat(mut attempt: impl FnMut() -> Result<(), CommitError>) -> Result<()> {
    let (mut unanswered, mut n) = (false, 0);
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if error.is_unanswered() && !unanswered => unanswered = true,
            Err(error) if is_contention(&error) && n < TRIES => {
                log::debug!("attempt {n}: {error:?}");
                sleep(Duration::from_micros(u64::from(n * n) * 50));
                n += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// EEXIST: what was absent has come; ENOENT: what was there has gone; EBUSY: it has got a user; ERESTART: anything.
fn is_contention(error: &CommitError) -> bool {
    let errno = error.errno();
    errno.is_some_and(|e| [Errno::EEXIST, Errno::ENOENT, Errno::EBUSY, Errno::ERESTART].contains(&e))
}

/// What makes the share that of the plan; notes in it what is found out.
fn changes(
    socket: &mut NftSocket,
    share: &mut Share,
    former: Option<(&Record, &Opened)>,
    rebuilding: Vec<Skeleton>,
    host: &[HostPart],
    others: &mut Option<Others>,
) -> Result<Changes> {
    let mut changes = Changes { rebuilding, ..Changes::default() };
    let record = former.map(|(record, _)| record);
    let others =
        if changes.rebuilding.is_empty() { None } else { Some(others.get_or_insert_with(|| Others::of(share))) };
    share.notes.shared |= record.is_some_and(|record| record.notes.shared);
    share.notes.shared |= others.as_ref().is_some_and(|others| others.claim_any_of(share));
    if let Some(former) = former {
        let any_stale = drop_stale(socket, share, former, &mut changes)?;
        changes.guarded |= any_stale;
    }
    changes.guarded |= drop_strays(socket, share, record.is_some(), &mut changes.transaction)?;
    add_shared(share, &mut changes.transaction);
    let any_taken = add_own(socket, share, &mut changes.transaction)?;
    changes.guarded |= any_taken;
    if any_taken || record.is_some() {
        let found = strays::of_sources(socket, share)?;
        changes.guarded |= take_out(found, &mut changes.transaction);
    }
    share.notes.shared |= any_taken;
    changes.guarded |= add_record(share, record, &mut changes.transaction);
    if let Some(record) = record {
        policies::clear_chain(socket, share, &mut changes.transaction)?;
        changes.guarded |= policies::release_stale(socket, share, record, &mut changes.transaction)?;
    }
    let mut mending = host::mending(socket, host, &share.addresses)?;
    if record.is_some() || others.is_some() {
        mending.extend(host::mending_of_others(socket, &share.host)?);
    }
    if let Some(others) = others {
        changes.guarded |= !others.is_empty();
        others.put_in(socket, share, &mut changes)?;
        mending.extend(others.host_mending(socket));
        mending.extend(hostchain::mending_of_others(socket, share.host.mark)?);
    }
    changes.guarded |= !mending.is_empty();
    let mut sent: Vec<Command> = Vec::new();
    for command in mending {
        // What several need is put in once.
        if !sent.contains(&command) {
            sent.push(command.clone());
            changes.transaction.push(command);
        }
    }
    Ok(changes)
}

/// The skeletons that aren't in place. An attachment's first ADD is content with a quick look, which counts the rules of every
/// chain (nothing but rules leads to those of ours); one that finds its own record there is a repair, and looks at every rule.
pub fn damaged_skeletons(socket: &mut NftSocket, skeletons: &[Skeleton], thoroughly: bool) -> Result<Vec<Skeleton>> {
    let mut damaged = Vec::new();
    for skeleton in skeletons {
        let whole = socket.is_whole(skeleton)? && (!thoroughly || socket.differences(skeleton)?.is_empty());
        if !whole {
            damaged.push(skeleton.clone());
        }
    }
    Ok(damaged)
}

/// Addresses and ports that the attachment had at an earlier ADD and no longer has. Whether there were any.
fn drop_stale(
    socket: &mut NftSocket,
    share: &Share,
    (record, opened): (&Record, &Opened),
    changes: &mut Changes,
) -> Result<bool> {
    let wanted = Record::of(share);
    let held = record.held_elements(socket)?.into_iter();
    let own = held.filter(|(place, holder)| *holder == Holder::Itself && !wanted.claims(place));
    let stale: Vec<_> = own.map(|(place, _)| place).collect();
    if stale.is_empty() {
        return Ok(false);
    }
    let heirs = Heirs::of(socket, std::iter::once(record), opened)?;
    stale.iter().for_each(|place| heirs.pass_on(place, &mut changes.transaction));
    changes.left_to = heirs.by_file;
    Ok(true)
}

/// What would restrict the container though it isn't planned. Whether there was any. An attachment's first ADD looks at
/// its own interfaces only.
fn drop_strays(socket: &mut NftSocket, share: &Share, thoroughly: bool, transaction: &mut Transaction) -> Result<bool> {
    let mut found = strays::at_interfaces(socket, share)?;
    if thoroughly {
        found.extend(strays::of_policies(socket, share)?);
    } else if strays::by_source(&found) {
        found.extend(strays::of_sources(socket, share)?);
    }
    Ok(take_out(found, transaction))
}

/// Takes out what isn't in the transaction already: what the attachment's own former ADD has put there is dropped as stale.
/// Whether there was any.
fn take_out(mut found: Vec<Place>, transaction: &mut Transaction) -> bool {
    found.retain(|(table, set, element)| {
        let deletes = |command: &Command| match command {
            Command::DeleteElements(t, s, elements) => {
                t == table && *s == set.name && elements.iter().any(|e| e.key == element.key)
            }
            _ => false,
        };
        !transaction.commands().iter().any(deletes)
    });
    for (table, set, element) in &found {
        log::info!("{element} is taken out of set {} of table {table}: nobody needs it", set.name);
        transaction.delete_elements(table, &set.name, vec![element.clone()]);
    }
    !found.is_empty()
}

/// What it needs together with others; nothing happens to what is there.
pub fn add_shared(share: &Share, transaction: &mut Transaction) {
    if let Some(chain) = share.policy_chain() {
        transaction.add_chain(&TABLE, chain);
    }
    for (set, element) in share.policy_elements() {
        transaction.add_elements(&TABLE, &set.name, Presence::Shared, vec![element]);
    }
}

/// The elements that aren't there; those of a former owner are taken from it, so that its late DEL finds nothing that is
/// still its own. Whether any were.
fn add_own(socket: &mut NftSocket, share: &Share, transaction: &mut Transaction) -> Result<bool> {
    let mut any_taken = false;
    let own = share.own_elements();
    let asked: Vec<_> = own.iter().map(|(table, set, element)| (table, set, element.key.as_slice())).collect();
    let all_found = socket.elements_in(&asked)?;
    for ((table, set, element), found) in own.into_iter().zip(all_found) {
        if let Some(found) = found {
            if found.comment == element.comment {
                continue;
            }
            let owner = found.comment.as_deref().unwrap_or("somebody");
            log::info!("{} is taken over from {owner}", Element::key(element.key.clone()));
            transaction.delete_elements(&table, &set.name, vec![Element::key(element.key.clone())]);
            any_taken = true;
        }
        // Exclusively, so that of two calls which found it absent one looks again.
        transaction.add_elements(&table, &set.name, Presence::Exclusive, vec![element]);
    }
    Ok(any_taken)
}

/// The record as it should be, if it isn't. Whether there was another.
pub fn add_record(share: &Share, found: Option<&Record>, transaction: &mut Transaction) -> bool {
    let lines = record::lines(share);
    let there = found.map(|record| record.lines.as_slice()).unwrap_or_default();
    if there == lines {
        return false;
    }
    let map = records::map().name;
    transaction.delete_elements(&TABLE, &map, there.to_vec());
    transaction.add_elements(&TABLE, &map, Presence::Exclusive, lines);
    !there.is_empty()
}

fn share_differences(socket: &mut NftSocket, share: &Share) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    let record = Record::read(socket, RecordKey::of(&share.attachment))?;
    let share = &share.noting(record.as_ref().map(|record| record.notes).unwrap_or_default());
    for skeleton in share.skeletons() {
        all.extend(socket.differences(&skeleton)?);
    }
    if let Some(chain) = share.policy_chain() {
        all.extend(socket.chain_differences(&TABLE, &chain)?);
    }
    let lines = record::lines(share);
    for line in record.iter().flat_map(|record| record.lines.iter().skip(lines.len())) {
        let object = format!("map {} of table {TABLE}", records::map().name);
        all.push(Difference::other(object, "no such line", line.to_string()));
    }
    all.extend(socket.element_differences(&TABLE, &records::map(), &lines)?);
    for (set, element) in share.policy_elements() {
        all.extend(socket.element_differences(&TABLE, &set, &[element])?);
    }
    for place in share.own_elements() {
        let (table, set, element) = &place;
        let differences = socket.element_differences(table, set, std::slice::from_ref(element))?;
        if !differences.is_empty() && !is_shared(socket, &place)? {
            all.extend(differences);
        }
    }
    let mut strays = vec![strays::at_interfaces(socket, share)?, strays::of_policies(socket, share)?];
    if share.guards.iter().any(|(guard, _)| !guard.source_sets().is_empty()) {
        strays.push(strays::unshared_sources(socket, share)?);
    }
    all.extend(strays.into_iter().flatten().map(strays::difference));
    Ok(all)
}

/// Whether the element is there, and of somebody who will give it back.
fn is_shared(socket: &mut NftSocket, place: &Place) -> Result<bool> {
    let (table, set, element) = place;
    match socket.element(table, set, &element.key)?.and_then(|found| found.comment) {
        Some(holder) => record::is_shared(socket, place, &holder),
        None => Ok(false),
    }
}
