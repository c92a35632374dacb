//! What others have put into our table: it is nobody's but ours, so whatever is there and not ours is in the way.
//!
//! The rules of the base chains are compared with the skeleton's. Here are those chains that attachments fill, where each
//! rule must be one that an attachment of ours needs.

use std::collections::BTreeSet;

use common::nft::{NftSocket, Rule, RuleInfo, Skeleton, TableRules};
use common::{Difference, Result};

use crate::rules::{self, ATTACHMENTS, HOSTPORTS, MASQUERADE, TABLE};

/// More often the tables don't change while somebody looks.
const TRIES: usize = 20;

/// What is expected of others.
const NOTHING: &str = "nothing of others";

/// A chain that attachments fill, with what doesn't belong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Its name.
    pub chain: &'static str,
    /// Those of its rules that are ours.
    pub own: Vec<RuleInfo>,
    /// The others.
    pub foreign: Vec<RuleInfo>,
}

impl Filled {
    /// As it is now.
    pub fn read(socket: &mut NftSocket, chain: &'static str) -> Result<Filled> {
        Ok(Filled::of(chain, socket.rules(&TABLE, chain)?))
    }

    fn of(chain: &'static str, rules: Vec<RuleInfo>) -> Filled {
        let mut led_to = BTreeSet::new();
        let mut is_own = |info: &RuleInfo| {
            let wanted = info.target().and_then(|target| entrance(chain, target));
            // A second one changes nothing, and would be in the way when the last attachment goes.
            wanted.is_some_and(|wanted| info.is(&wanted)) && led_to.insert(info.target().map(str::to_owned))
        };
        let (own, foreign) = rules.into_iter().partition(|info| is_own(info));
        Filled { chain, own, foreign }
    }

    /// Those that packets come to, and the one whose uses are counted; with the rules of other chains that are wanted, which
    /// come by the same look.
    ///
    /// While the kernel puts a transaction in force, a list may have rules of before beside those of after it: what looks
    /// foreign is looked at again until it stays.
    pub fn all(socket: &mut NftSocket, wanted: &dyn Fn(&str) -> bool) -> Result<(Vec<Filled>, TableRules)> {
        const FILLED: [&str; 3] = [HOSTPORTS, MASQUERADE, ATTACHMENTS];
        let mut read = || -> Result<(Vec<Filled>, TableRules)> {
            let rules = socket.table_rules(&TABLE, &|chain| FILLED.contains(&chain) || wanted(chain))?;
            let of = |chain: &'static str| Filled::of(chain, rules.of(chain).to_vec());
            Ok((FILLED.map(of).into(), rules))
        };
        let mut all = read()?;
        for _ in 0..TRIES {
            if all.0.iter().all(|chain| chain.foreign.is_empty()) {
                break;
            }
            let again = read()?;
            if again == all {
                break;
            }
            all = again;
        }
        Ok(all)
    }

    /// Says in the log what was removed.
    pub fn warn(&self) {
        for info in &self.foreign {
            log::warn!(
                "a rule of somebody else was removed from chain {} of table {TABLE}: {}",
                self.chain,
                info.text()
            );
        }
    }

    /// Whether one of our rules leads to this chain.
    pub fn leads_to(&self, chain: &str) -> bool {
        self.own.iter().any(|info| info.target() == Some(chain))
    }
}

/// The only rule by which packets of `parent` may come to `chain`.
fn entrance(parent: &str, chain: &str) -> Option<Rule> {
    match parent {
        HOSTPORTS => rules::kind_entrance(chain),
        MASQUERADE => rules::mark_entrance(chain),
        _ => None,
    }
}

/// Everything in the table that isn't ours and that a packet, or DEL, could meet.
pub fn differences(socket: &mut NftSocket, skeleton: &Skeleton) -> Result<Vec<Difference>> {
    let mut differences = Vec::new();
    for Filled { chain, foreign, .. } in Filled::all(socket, &|_| false)?.0 {
        let object = format!("rule of chain {chain} of table {TABLE}");
        differences.extend(foreign.into_iter().map(|info| Difference::other(&object, NOTHING, info.text())));
    }
    differences.extend(hooks(socket, skeleton)?);
    Ok(differences)
}

/// Base chains that the skeleton hasn't.
pub fn hooks(socket: &mut NftSocket, skeleton: &Skeleton) -> Result<Vec<Difference>> {
    let mut differences = Vec::new();
    for chain in socket.chains(&TABLE)?.into_iter().filter(|chain| chain.is_base) {
        if !skeleton.chains.iter().any(|own| own.name == chain.name) {
            let hook = chain.hook.map_or_else(|| "a hook".to_owned(), |hook| hook.to_string());
            differences.push(Difference::other(format!("chain {} of table {TABLE}", chain.name), NOTHING, hook));
        }
    }
    Ok(differences)
}
