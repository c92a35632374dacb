//! Where the kernel's tables are not what a plan says: what CHECK reports.
//!
//! Rules are compared by what they are compiled to, expression by expression, with the contents of their anonymous sets;
//! counters' values and handles don't count.

use super::compile::compile;
use super::dump::{ChainInfo, RuleInfo};
use super::kernel::NftSocket;
use super::model::{Chain, Element, Rule, Set, Skeleton, Table};
use super::userdata::comment_end;
use crate::cni::error::{Difference, Result};

impl NftSocket {
    /// Where the static part of a table differs: hooks, sets and rules. Elements aren't part of it.
    pub fn differences(&mut self, skeleton: &Skeleton) -> Result<Vec<Difference>> {
        let table = &skeleton.table;
        let object = format!("table {table}");
        let mut differences = Vec::new();
        match self.is_dormant(table)? {
            None => return Ok(vec![Difference::missing(object, "the table")]),
            Some(true) => differences.push(Difference::other(object, "a table in effect", "flags dormant")),
            Some(false) => {}
        }
        for set in &skeleton.sets {
            differences.extend(self.set_difference(table, set)?);
        }
        for chain in &skeleton.chains {
            if !chain.is_filled_by_attachments() {
                differences.extend(self.chain_differences(table, chain)?);
            } else if self.chain(table, &chain.name)?.is_none() {
                differences.push(Difference::missing(format!("chain {} of table {table}", chain.name), "the chain"));
            }
        }
        differences.extend(self.foreign_hooks(skeleton)?);
        Ok(differences)
    }

    /// Base chains that somebody has added: packets meet them.
    fn foreign_hooks(&mut self, skeleton: &Skeleton) -> Result<Vec<Difference>> {
        let Skeleton { table, chains, .. } = skeleton;
        let is_foreign = |found: &ChainInfo| found.is_base && chains.iter().all(|chain| chain.name != found.name);
        let foreign = self.chains(table)?.into_iter().filter(is_foreign);
        let told = foreign.map(|found| {
            let hook = found.hook.map_or_else(|| "a hook".to_owned(), |hook| hook.to_string());
            Difference::other(format!("chain {} of table {table}", found.name), "no such chain", hook)
        });
        Ok(told.collect())
    }

    fn set_difference(&mut self, table: &Table, wanted: &Set) -> Result<Option<Difference>> {
        let object = format!("{} {} of table {table}", wanted.keyword(), wanted.name);
        let Some(found) = self.set(table, &wanted.name)? else {
            return Ok(Some(Difference::missing(object, wanted.signature())));
        };
        let same = |set: &Set| set.signature() == wanted.signature();
        Ok(match found.set {
            Some(set) if same(&set) => None,
            Some(set) => Some(Difference::other(object, wanted.signature(), set.signature())),
            None => Some(Difference::other(object, wanted.signature(), "a set of other types")),
        })
    }

    /// Where one chain differs: its hook, its comment (if it should have one) and its rules.
    pub fn chain_differences(&mut self, table: &Table, wanted: &Chain) -> Result<Vec<Difference>> {
        let object = format!("chain {} of table {table}", wanted.name);
        let Some(found) = self.chain(table, &wanted.name)? else {
            return Ok(vec![Difference::missing(object, "the chain")]);
        };
        let mut differences = Vec::new();
        differences.extend(hook_difference(&object, wanted, &found));
        differences.extend(comment_difference(&object, wanted.comment.as_deref(), found.comment.as_deref()));
        let found = self.rules(table, &wanted.name)?;
        rule_differences(&object, table, &wanted.rules, &found, &mut differences)?;
        Ok(differences)
    }

    /// Which of these elements are missing or lead elsewhere. They are looked up by their keys: the set's other elements
    /// cost nothing. Not for ranges.
    pub fn element_differences(&mut self, table: &Table, set: &Set, wanted: &[Element]) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        let keys: Vec<_> = wanted.iter().map(|element| element.key.clone()).collect();
        for (element, found) in wanted.iter().zip(self.elements_at(table, set, &keys)?) {
            let mut wanted = element.clone();
            wanted.normalise();
            let same = |f: &Element| f.data == wanted.data && (f.comment == wanted.comment || wanted.comment.is_none());
            if found.as_ref().is_some_and(same) {
                continue;
            }
            let object = format!("element of {} {} of table {table}", set.keyword(), set.name);
            differences.push(match found {
                None => Difference::missing(object, wanted.to_string()),
                Some(found) => Difference::other(object, wanted.to_string(), found.to_string()),
            });
        }
        Ok(differences)
    }
}

fn hook_difference(object: &str, wanted: &Chain, found: &ChainInfo) -> Option<Difference> {
    if wanted.hook == found.hook && wanted.hook.is_some() == found.is_base {
        return None;
    }
    let expected = wanted.hook.map_or_else(|| "no hook".to_owned(), |hook| hook.to_string());
    let there = match (&found.hook, found.is_base) {
        (Some(hook), _) => hook.to_string(),
        (None, true) => "another hook".to_owned(),
        (None, false) => "no hook".to_owned(),
    };
    Some(Difference::other(object, expected, there))
}

fn comment_difference(object: &str, wanted: Option<&str>, found: Option<&str>) -> Option<Difference> {
    // Kernels before 5.10 keep none: its absence alone is no fault.
    let (wanted, found) = (wanted?, found?);
    let wanted = wanted.get(..comment_end(wanted)).unwrap_or_default();
    let quoted = |text: &str| format!("comment \"{text}\"");
    (found != wanted).then(|| Difference::other(object, quoted(wanted), quoted(found)))
}

/// What is between the rules that agree at the top and those that agree at the end, one against one.
fn rule_differences(
    object: &str,
    table: &Table,
    wanted: &[Rule],
    found: &[RuleInfo],
    differences: &mut Vec<Difference>,
) -> Result<()> {
    let compiled: Vec<_> = wanted.iter().map(|rule| compile(rule, table.family)).collect::<Result<_>>()?;
    let comment = |rule: &Rule| rule.comment.as_ref().map(|c| c.get(..comment_end(c)).unwrap_or_default().to_owned());
    let same = |((rule, expressions), there): &((&Rule, &Vec<_>), &RuleInfo)| {
        **expressions == there.expressions && comment(rule) == there.comment
    };
    let pairs = || wanted.iter().zip(&compiled);
    let top = pairs().zip(found).take_while(same).count();
    let most = wanted.len().min(found.len()) - top;
    let end = pairs().rev().zip(found.iter().rev()).take(most).take_while(same).count();
    let mut expected = wanted.iter().take(wanted.len() - end).skip(top);
    let mut there = found.iter().take(found.len() - end).skip(top);
    let rule = format!("rule of {object}");
    loop {
        differences.push(match (expected.next(), there.next()) {
            (Some(a), Some(b)) => Difference::other(&rule, a.to_string(), b.text()),
            (Some(a), None) => Difference::missing(&rule, a.to_string()),
            (None, Some(b)) => Difference::other(&rule, "nothing", b.text()),
            (None, None) => return Ok(()),
        });
    }
}
