//! What the reference plugin has left behind on this host, for containers that outlived the change of the executable.
//!
//! Its rules name addresses, not containers: `-s IP -j ACCEPT` and `-d IP -m conntrack --ctstate RELATED,ESTABLISHED
//! -j ACCEPT` in CNI-FORWARD, one of each for an address. They go with the container that has the address, or, by GC, as
//! soon as one of ours has it. When the last of them goes, nobody needs the CNI-ISOLATION chains any more either. It is the
//! same in the tables of iptables-nft and of iptables-legacy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::nft::{
    Command, IpVersion, NftSocket, Pattern, RuleInfo, Selector, Statement, Table, Transaction, Value, Verdict,
};
use common::{Error, Result};

use crate::config::{Backend, Config, FORWARD_CHAIN};
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
    let versions = IpVersion::ALL.into_iter().filter(concerned);
    let removed = versions.flat_map(|version| {
        let by_nft = remove_where(socket, version, &mut |_, address| Ok(addresses.contains(&address)));
        [by_nft, legacy::remove_reference_rules(version, &mut |address| Ok(addresses.contains(&address)))]
    });
    Error::gather(removed.filter_map(Result::err).collect())
}

/// Removes the reference's rules for addresses that attachments of ours have by now.
pub fn remove_superseded_rules(socket: &mut NftSocket) -> Result<()> {
    let removed = IpVersion::ALL.into_iter().flat_map(|version| {
        let by_nft = remove_where(socket, version, &mut record::is_ours);
        [by_nft, legacy::remove_reference_rules(version, &mut |address| record::is_ours(socket, address))]
    });
    Error::gather(removed.filter_map(Result::err).collect())
}

/// Takes addresses out of firewalld's zone that the reference has put there: those that no attachment has now.
pub fn forget_sources(socket: &mut NftSocket, config: &Config, addresses: &BTreeSet<IpAddr>) -> Result<()> {
    if addresses.is_empty() || !matches!(config.backend, Backend::Detect | Backend::Firewalld) {
        return Ok(());
    }
    let Some(firewalld) = Firewalld::find()? else { return Ok(()) };
    let forgotten = addresses.iter().map(|address| {
        if record::is_ours(socket, *address)? { Ok(()) } else { firewalld.remove_source(&config.zone, *address) }
    });
    Error::gather(forgotten.filter_map(Result::err).collect())
}

fn remove_where(
    socket: &mut NftSocket,
    version: IpVersion,
    goes: &mut dyn FnMut(&mut NftSocket, IpAddr) -> Result<bool>,
) -> Result<()> {
    let table = filter_table(version);
    repeat(|| {
        if socket.chain(&table, FORWARD_CHAIN)?.is_none() {
            return Ok(());
        }
        let mut transaction = Transaction::new();
        let mut stays = false;
        for info in socket.rules(&table, FORWARD_CHAIN)? {
            let Some(address) = address_of(&info) else { continue };
            if goes(socket, address)? {
                transaction.delete_rule(&table, FORWARD_CHAIN, info.handle);
            } else {
                stays = true;
            }
        }
        if !transaction.is_empty() && !stays {
            remove_isolation(socket, &table, &mut transaction)?;
        }
        socket.commit(&transaction)
    })
}

fn remove_isolation(socket: &mut NftSocket, table: &Table, transaction: &mut Transaction) -> Result<()> {
    let [first, second] = ISOLATION;
    if socket.chain(table, first)?.is_none() || socket.chain(table, second)?.is_none() {
        return Ok(());
    }
    for info in socket.rules(table, "FORWARD")? {
        if is_only(&info, &Statement::jump(first)) {
            transaction.delete_rule(table, "FORWARD", info.handle);
        }
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
