//! What the reference plugin has left behind on this host, for containers that outlived the change of the executable.
//!
//! Its rules name addresses, not containers: `-s IP -j ACCEPT` and `-d IP -m conntrack --ctstate RELATED,ESTABLISHED
//! -j ACCEPT` in CNI-FORWARD, one of each for an address. They go with the container that has the address, or, by GC, as
//! soon as one of ours has it. The CNI-ISOLATION chains would go on separating bridges whatever our policies say, so they go as
//! soon as nobody needs them: with an ADD, a DEL or GC. It is the same in the tables of iptables-nft and of iptables-legacy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::link::RouteSocket;
use common::nft::{
    Command, IpVersion, NftSocket, Pattern, RuleInfo, Selector, Statement, Table, Transaction, Value, Verdict,
};
use common::{Difference, Error, Result};

use crate::config::{Config, FORWARD_CHAIN};
use crate::firewalld::Firewalld;
use crate::hostfilter::filter_table;
use crate::legacy;
use crate::record;
use crate::state::repeat;

/// The reference's chains for `ingressPolicy`; the first jumps to the second.
pub const ISOLATION: [&str; 2] = ["CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"];

/// Removes the reference's rules for these addresses, of which the container had no other share.
pub fn remove_rules_for(socket: &mut NftSocket, addresses: &BTreeSet<IpAddr>) -> Result<()> {
    let concerned = |version: &IpVersion| addresses.iter().any(|a| IpVersion::of(*a) == *version);
    let versions: Vec<IpVersion> = IpVersion::ALL.into_iter().filter(concerned).collect();
    remove_rules(socket, &versions, &mut |_, address| Ok(addresses.contains(&address)))
}

/// Removes the reference's rules for addresses that attachments of ours have by now.
pub fn remove_superseded_rules(socket: &mut NftSocket) -> Result<()> {
    remove_rules(socket, &IpVersion::ALL, &mut record::is_ours)
}

/// Who says which of the reference's rules go, by their addresses.
pub type Goes<'a> = dyn FnMut(&mut NftSocket, IpAddr) -> Result<bool> + 'a;

fn remove_rules(socket: &mut NftSocket, versions: &[IpVersion], goes: &mut Goes<'_>) -> Result<()> {
    let mut errors = Vec::new();
    for version in versions.iter().copied() {
        errors.extend(remove_where(socket, version, goes).err());
        errors.extend(legacy::remove_reference_rules(socket, version, goes).err());
    }
    Error::gather(errors)
}

/// Whether somebody needs the reference's isolation chains: an address for which it has a rule, that is none of ours, and
/// that is on an interface in a network namespace to which this host has a link. (A rule may have outlived its container: the
/// reference's DEL does nothing without `prevResult`.) What can't be found out is a reason to leave them.
pub fn needs_isolation(socket: &mut NftSocket, addresses: &[IpAddr]) -> Result<bool> {
    let mut theirs = Vec::new();
    for address in addresses {
        if !record::is_ours(socket, *address)? {
            theirs.push(address);
        }
    }
    if theirs.is_empty() {
        return Ok(false);
    }
    let alive = RouteSocket::open().and_then(|socket| socket.addresses_elsewhere());
    Ok(alive.inspect_err(|error| log::debug!("{error}")).map_or(true, |alive| theirs.iter().any(|a| alive.contains(a))))
}

/// What takes the reference's isolation chains away, if nobody needs them besides a container that is ours with these
/// addresses.
pub fn without_isolation(socket: &mut NftSocket, version: IpVersion, own: &[IpAddr]) -> Result<Vec<Command>> {
    let table = filter_table(version);
    let rules = socket.rules(&table, FORWARD_CHAIN)?;
    let theirs: Vec<IpAddr> = rules.iter().filter_map(address_of).filter(|address| !own.contains(address)).collect();
    let mut transaction = Transaction::new();
    if !needs_isolation(socket, &theirs)? {
        remove_isolation(socket, &table, &mut transaction)?;
    }
    Ok(transaction.commands().to_vec())
}

/// What CHECK says of isolation chains that nobody needs.
pub fn left_behind(object: String) -> Difference {
    let [first, _] = ISOLATION;
    let expected = format!("no jump to {first}: no container of the reference plugin's is left");
    Difference::other(object, expected, format!("a jump to {first}"))
}

/// Takes addresses out of firewalld's zone that the reference has put there: those that no attachment has now. For who may have
/// told firewalld of them.
pub fn forget_sources(socket: &mut NftSocket, config: &Config, addresses: &BTreeSet<IpAddr>) -> Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let Some(firewalld) = Firewalld::find()? else { return Ok(()) };
    let forgotten = addresses.iter().map(|address| {
        if record::is_ours(socket, *address)? { Ok(()) } else { firewalld.remove_source(&config.zone, *address) }
    });
    Error::gather(forgotten.filter_map(Result::err).collect())
}

fn remove_where(socket: &mut NftSocket, version: IpVersion, goes: &mut Goes<'_>) -> Result<()> {
    let table = filter_table(version);
    let [first, _] = ISOLATION;
    repeat(|| {
        let there = socket.chains_at(&[(table.clone(), FORWARD_CHAIN), (table.clone(), first)])?;
        let [ours, isolation] = there.as_slice() else { return Ok(()) };
        let mut transaction = Transaction::new();
        let mut stay = Vec::new();
        let rules = if ours.is_some() { socket.rules(&table, FORWARD_CHAIN)? } else { Vec::new() };
        for info in rules {
            let Some(address) = address_of(&info) else { continue };
            if goes(socket, address)? {
                transaction.delete_rule(&table, FORWARD_CHAIN, info.handle);
            } else {
                stay.push(address);
            }
        }
        if isolation.is_some() && !needs_isolation(socket, &stay)? {
            remove_isolation(socket, &table, &mut transaction)?;
        }
        socket.commit(&transaction)
    })
}

/// The chains and the jumps to the first, unless somebody else has rules that lead to them.
fn remove_isolation(socket: &mut NftSocket, table: &Table, transaction: &mut Transaction) -> Result<()> {
    let found = socket.chains_at(&ISOLATION.map(|chain| (table.clone(), chain)))?;
    let [Some(first), Some(second)] = found.as_slice() else { return Ok(()) };
    let jumps_to = |rules: &[RuleInfo], chain: &str| rules.iter().filter(|r| r.target() == Some(chain)).count();
    let mut forward = socket.rules(table, "FORWARD")?;
    forward.retain(|info| is_only(info, &Statement::jump(&first.name)));
    let (of_first, of_second) = (socket.rules(table, &first.name)?, socket.rules(table, &second.name)?);
    let known = [forward.len() + of_first.len(), jumps_to(&of_first, &second.name) + of_second.len()];
    if [first.uses, second.uses].map(usize::try_from) != known.map(Ok) {
        log::info!("the chains {ISOLATION:?} of table {table} stay: somebody else's rules lead to them");
        return Ok(());
    }
    for info in forward {
        transaction.delete_rule(table, "FORWARD", info.handle);
    }
    for chain in ISOLATION {
        transaction.push(Command::FlushChain(table.clone(), chain.to_owned()));
    }
    for chain in ISOLATION {
        transaction.push(Command::DeleteChain(table.clone(), chain.to_owned()));
    }
    Ok(())
}

fn is_only(info: &RuleInfo, wanted: &Statement) -> bool {
    info.rule().is_some_and(|rule| rule.statements.iter().filter(|s| **s != Statement::Counter).eq([wanted]))
}

/// The address of one of the reference's rules.
fn address_of(info: &RuleInfo) -> Option<IpAddr> {
    let with_state = info.without_extension("conntrack");
    let has_state = with_state.is_some();
    let rule = info.rule().or(with_state).filter(|rule| rule.comment.is_none())?;
    let mut statements = rule.statements.iter().filter(|s| **s != Statement::Counter);
    let (selector, address) = match statements.next()? {
        Statement::Match { selector, negated: false, pattern: Pattern::Is(value) } => {
            (selector, record::address(value)?)
        }
        _ => return None,
    };
    let mut rest = statements.peekable();
    let replies = Statement::ct_state(Value::ESTABLISHED | Value::RELATED);
    let has_state = has_state || rest.next_if(|s| **s == replies).is_some();
    let ours = match selector {
        Selector::Saddr(_) => !has_state,
        Selector::Daddr(_) => has_state,
        _ => false,
    };
    (ours && rest.eq([&Statement::Verdict(Verdict::Accept)])).then_some(address)
}
