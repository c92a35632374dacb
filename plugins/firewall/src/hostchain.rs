//! `hostChains`: chains of other tables that get the one accepting rule.

use common::nft::{ChainInfo, Command, Family, HookPoint, IpVersion, NftSocket, Position, Table};
use common::{Difference, Error, Result};

use crate::config::{HostChain, HostFamily};
use crate::hostfilter::{FoundRule, in_front};
use crate::obstacles::Surroundings;
use crate::rules::{ACCEPT_COMMENT, CLEAR, DECIDE, accept_rule};

/// What such a chain holds of what concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundChain {
    /// Its rules.
    pub rules: Vec<FoundRule>,
    /// What becomes of what doesn't come to our rule.
    pub around: Surroundings,
}

/// An error if one of these isn't there, or is where no packet bears the mark: all are asked for by one datagram.
pub fn look(socket: &mut NftSocket, chains: &[HostChain]) -> Result<()> {
    if chains.is_empty() {
        return Ok(());
    }
    let names: Vec<(Table, &str)> = chains.iter().map(|chain| (chain.table(), chain.chain.as_str())).collect();
    for (chain, found) in chains.iter().zip(socket.chains_at(&names)?) {
        match found {
            None => return Err(chain.absent()),
            Some(found) => place_fault(&found).map_or(Ok(()), |fault| Err(chain.refused(fault)))?,
        }
    }
    Ok(())
}

/// What puts right where base chains of others accept another mark: of containers whose files are lost nobody knows in which
/// chains they have it.
pub fn mending_of_others(socket: &mut NftSocket, mark: u32) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for (table, info) in socket.base_chains()? {
        let is_at_forward = info.hook.is_some_and(|hook| hook.point == HookPoint::Forward);
        let Some(chain) = HostChain::at(&table, &info.name).filter(|_| is_at_forward) else { continue };
        let rules = socket.rules(&table, &info.name)?;
        if rules.iter().all(|rule| rule.comment.as_deref() != Some(ACCEPT_COMMENT)) {
            continue;
        }
        let found: Vec<FoundRule> = rules.into_iter().map(FoundRule::from).collect();
        if found.iter().any(|rule| rule.is_outdated(mark)) {
            commands.extend(chain.mending(mark, &found));
        }
    }
    Ok(commands)
}

/// Why an accepting rule has no effect in a chain. Of two base chains with one priority the one that was made last comes
/// first, so those of our own are no places either. Where a chain that is none of the kernel's is called, is not known.
fn place_fault(found: &ChainInfo) -> Option<String> {
    if !found.is_base {
        return None;
    }
    match found.hook.filter(|hook| hook.point == HookPoint::Forward) {
        None => Some("it is not at the forward hook, where packets bear the mark".into()),
        Some(hook) if hook.priority <= DECIDE || hook.priority >= CLEAR => Some(format!(
            "it has priority {}, and packets bear the mark only behind priority {DECIDE} and before {CLEAR}",
            hook.priority
        )),
        Some(_) => None,
    }
}

impl HostFamily {
    /// Whether its chains see packets of this IP version.
    pub fn has(self, version: IpVersion) -> bool {
        match self {
            HostFamily::Inet => true,
            HostFamily::Ip => version == IpVersion::V4,
            HostFamily::Ip6 => version == IpVersion::V6,
        }
    }
}

impl HostChain {
    /// The chain of this name, if it can be one.
    fn at(table: &Table, name: &str) -> Option<HostChain> {
        let family = match table.family {
            Family::Inet => HostFamily::Inet,
            Family::Ip => HostFamily::Ip,
            Family::Ip6 => HostFamily::Ip6,
            _ => return None,
        };
        Some(HostChain { family, table: table.name.clone().into_owned(), chain: name.to_owned() })
    }

    /// Its table.
    pub fn table(&self) -> Table {
        let family = match self.family {
            HostFamily::Inet => Family::Inet,
            HostFamily::Ip => Family::Ip,
            HostFamily::Ip6 => Family::Ip6,
        };
        Table { family, name: self.table.clone().into() }
    }

    fn refused(&self, reason: impl Into<String>) -> Error {
        Error::UnsupportedField { key: "hostChains".into(), value: format!("\"{self}\""), reason: reason.into() }
    }

    fn absent(&self) -> Error {
        self.refused("there is no such chain on this host (`nft list chains` shows those that are)")
    }

    /// What it holds; an error if there is no such chain.
    pub fn read(&self, socket: &mut NftSocket) -> Result<FoundChain> {
        let table = self.table();
        let rules: Vec<FoundRule> = socket.rules(&table, &self.chain)?.into_iter().map(FoundRule::from).collect();
        // One without rules may be none at all.
        if rules.is_empty() && socket.chain(&table, &self.chain)?.is_none() {
            return Err(self.absent());
        }
        Ok(FoundChain { around: Surroundings::of(false, &rules), rules })
    }

    /// What puts it right.
    pub fn mending(&self, mark: u32, found: &[FoundRule]) -> Vec<Command> {
        let outdated = found.iter().filter(|r| r.is_outdated(mark));
        let mut commands: Vec<Command> =
            outdated.map(|r| Command::DeleteRule(self.table(), self.chain.clone(), r.handle)).collect();
        if !found.iter().any(|r| r.accepts(mark)) {
            commands.push(Command::AddRule(self.table(), self.chain.clone(), Position::Top, accept_rule(mark)));
        }
        commands
    }

    /// What CHECK says about it.
    pub fn differences(&self, socket: &mut NftSocket, mark: u32) -> Result<Vec<Difference>> {
        let object = format!("chain {self}");
        let Some(info) = socket.chain(&self.table(), &self.chain)? else {
            return Ok(vec![Difference::missing(object, "the chain, with a rule that accepts what is admitted")]);
        };
        let place =
            place_fault(&info).map(|fault| Difference::other(object, "a chain where packets bear the mark", fault));
        let found = self.read_all(socket, &info)?;
        Ok(place.into_iter().chain(self.difference(mark, &found)).collect())
    }

    /// What it holds, with the chains that its rules without a condition lead to; `None` if there is no such chain.
    pub fn read_deeply(&self, socket: &mut NftSocket) -> Result<Option<FoundChain>> {
        let info = socket.chain(&self.table(), &self.chain)?;
        info.map(|info| self.read_all(socket, &info)).transpose()
    }

    fn read_all(&self, socket: &mut NftSocket, info: &ChainInfo) -> Result<FoundChain> {
        let table = self.table();
        let rules: Vec<FoundRule> = socket.rules(&table, &self.chain)?.into_iter().map(FoundRule::from).collect();
        let mut around = Surroundings::of(info.drops(), &rules);
        around.follow(socket, &table, rules.iter(), &[])?;
        Ok(FoundChain { rules, around })
    }

    fn difference(&self, mark: u32, found: &FoundChain) -> Vec<Difference> {
        let outdated = found.rules.iter().filter(|rule| rule.is_outdated(mark));
        let outdated = outdated.map(|rule| {
            let object = format!("rule {} of chain {self}", rule.handle);
            Difference::other(
                object,
                format!("nothing: only mark {mark:#x} is accepted"),
                "another accepting rule of ours",
            )
        });
        let mut all: Vec<Difference> = outdated.collect();
        if !found.rules.iter().any(|r| r.accepts(mark)) {
            all.push(Difference::missing(format!("chain {self}"), accept_rule(mark).to_string()));
        }
        all.extend(self.dropped_before(mark, found));
        all
    }

    /// A rule of it that drops what is admitted before ours accepts it.
    pub fn dropped_before(&self, mark: u32, found: &FoundChain) -> Option<Difference> {
        in_front(format!("chain {self}"), &found.rules, &found.around, |r| r.accepts(mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostfilter::testing::{found, refusing};

    fn forward() -> HostChain {
        "inet filter forward".parse().unwrap()
    }

    #[test]
    fn a_rule_that_drops_all_in_front_of_ours_is_named() {
        let of = |rules: Vec<FoundRule>| FoundChain { around: Surroundings::of(false, &rules), rules };
        let accepts = || found(7, accept_rule(0x1000));
        assert_eq!(forward().difference(0x1000, &of(vec![refusing(1), accepts()])).len(), 1);
        assert_eq!(forward().difference(0x1000, &of(vec![accepts(), refusing(1)])), []);
    }

    #[test]
    fn the_acceptance_of_a_former_mark_goes() {
        let commands = forward().mending(0x1000, &[found(7, accept_rule(0x10))]);
        assert_eq!(commands[0].to_string(), "delete rule inet filter forward handle 7");
        assert_eq!(commands.len(), 2);
    }
}
