//! What a rule does with every packet that comes to it, and so whether anything comes to ours behind it.

use std::collections::BTreeMap;
use std::fmt;

use common::Result;
use common::nft::{NftSocket, RuleInfo, Statement, Table, Verdict};

use crate::guards;
use crate::hostfilter::FoundRule;

/// What a rule without a condition does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It drops or rejects; the rule as text.
    Refuses(String),
    /// `accept`
    Accepts,
    /// `return`
    Returns,
    /// `jump`
    Jumps(String),
    /// `goto`
    GoesTo(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Refuses(text) => f.write_str(text),
            End::Accepts => f.write_str("accept"),
            End::Returns => f.write_str("return"),
            End::Jumps(chain) => write!(f, "jump {chain}"),
            End::GoesTo(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl End {
    /// What the rule does, if it has no condition and does anything with the packet.
    pub fn of(info: &RuleInfo) -> Option<End> {
        let Some(rule) = info.rule() else { return guards::rejects_all(info).then(|| End::Refuses(info.text())) };
        let mut statements = rule.statements.iter().filter(|s| **s != Statement::Counter);
        let (Some(Statement::Verdict(verdict)), None) = (statements.next(), statements.next()) else { return None };
        match verdict {
            Verdict::Accept => Some(End::Accepts),
            Verdict::Drop => Some(End::Refuses(info.text())),
            Verdict::Return => Some(End::Returns),
            Verdict::Continue => None,
            Verdict::Jump(chain) => Some(End::Jumps(chain.clone())),
            Verdict::Goto(chain) => Some(End::GoesTo(chain.clone())),
        }
    }

    /// The chain that it leads to.
    fn chain(&self) -> Option<&str> {
        match self {
            End::Jumps(chain) | End::GoesTo(chain) => Some(chain),
            _ => None,
        }
    }
}

/// How far jumps are followed. The kernel takes 16, and nobody writes them.
const DEPTH: usize = 8;

/// What has to be known besides a base chain's rules to say what becomes of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether the base chain drops what none of its rules accepts.
    pub drops_the_rest: bool,
    /// The chains that rules without a condition lead to, as far as they were read.
    chains: BTreeMap<String, Vec<FoundRule>>,
}

impl Surroundings {
    /// Those of a base chain with this policy.
    pub fn of(policy_drops: bool, rules: &[FoundRule]) -> Surroundings {
        let refuses = rules.iter().any(|rule| matches!(rule.end, Some(End::Refuses(_))));
        Surroundings { drops_the_rest: policy_drops || refuses, chains: BTreeMap::new() }
    }

    /// Reads the chains that these rules of a table lead to without a condition, but the ones that are known.
    pub fn follow<'a>(
        &mut self,
        socket: &mut NftSocket,
        table: &Table,
        rules: impl Iterator<Item = &'a FoundRule>,
        known: &[&str],
    ) -> Result<()> {
        let led_to = |rule: &FoundRule| rule.end.as_ref().and_then(End::chain).map(str::to_owned);
        let mut next: Vec<String> = rules.filter_map(led_to).collect();
        while let Some(chain) = next.pop() {
            if known.contains(&chain.as_str()) || self.chains.contains_key(&chain) {
                continue;
            }
            let rules: Vec<FoundRule> = socket.rules(table, &chain)?.into_iter().map(FoundRule::from).collect();
            next.extend(rules.iter().filter_map(led_to));
            self.chains.insert(chain, rules);
        }
        Ok(())
    }

    /// Whether no packet gets past the rule, nor is accepted by it.
    pub fn lets_nothing_past(&self, rule: &FoundRule) -> bool {
        match &rule.end {
            None | Some(End::Accepts) => false,
            Some(End::Returns) => self.drops_the_rest,
            Some(End::GoesTo(chain)) if self.drops_the_rest && !self.may_accept(chain) => true,
            Some(end) => self.refuses(end, DEPTH),
        }
    }

    /// Whether it drops or rejects every packet, but what conditions let go before.
    pub fn refuses(&self, end: &End, depth: usize) -> bool {
        match end {
            End::Refuses(_) => true,
            End::Accepts | End::Returns => false,
            End::Jumps(chain) | End::GoesTo(chain) => depth > 0 && self.refuses_all(chain, depth - 1),
        }
    }

    fn refuses_all(&self, chain: &str, depth: usize) -> bool {
        let ends = |end: &&End| !matches!(end, End::Jumps(_)) || self.refuses(end, depth);
        let rules = self.chains.get(chain).map(Vec::as_slice).unwrap_or_default();
        rules.iter().filter_map(|rule| rule.end.as_ref()).find(ends).is_some_and(|end| self.refuses(end, depth))
    }

    /// Also if nothing is known of it.
    fn may_accept(&self, chain: &str) -> bool {
        self.chains.get(chain).is_none_or(|rules| rules.iter().any(FoundRule::may_accept))
    }

    /// Whether the last of a base chain's rules lets nothing past.
    pub fn end_refuses(&self, rules: &[FoundRule]) -> bool {
        rules.last().and_then(|rule| rule.end.as_ref()).is_some_and(|end| self.refuses(end, DEPTH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostfilter::testing::found;
    use common::nft::Rule;

    fn rule(end: End) -> FoundRule {
        let verdict = match &end {
            End::Refuses(_) => Verdict::Drop,
            End::Accepts => Verdict::Accept,
            End::Returns => Verdict::Return,
            End::Jumps(chain) => Verdict::Jump(chain.clone()),
            End::GoesTo(chain) => Verdict::Goto(chain.clone()),
        };
        let mut rule = found(1, Rule::new([Statement::Verdict(verdict)]));
        rule.end = Some(end);
        rule
    }

    #[test]
    fn what_lets_nothing_past_is_known_by_where_it_leads() {
        let (jump, goto) = (|chain: &str| End::Jumps(chain.into()), |chain: &str| End::GoesTo(chain.into()));
        let refuse = || End::Refuses("drop".into());
        let chains = [
            ("empty", vec![]),
            ("drops", vec![jump("empty"), jump("ends")]),
            ("ends", vec![refuse()]),
            ("returns", vec![End::Returns, refuse()]),
            ("accepts", vec![End::Accepts]),
            ("loop", vec![jump("loop")]),
        ];
        let chains: BTreeMap<String, Vec<FoundRule>> =
            chains.into_iter().map(|(name, ends)| (name.into(), ends.into_iter().map(rule).collect())).collect();
        for drops_the_rest in [true, false] {
            let around = Surroundings { drops_the_rest, chains: chains.clone() };
            for (end, nothing) in [
                (refuse(), true),
                (End::Accepts, false),
                (End::Returns, drops_the_rest),
                (jump("drops"), true),
                (goto("drops"), true),
                (jump("returns"), false),
                (goto("returns"), drops_the_rest),
                (jump("empty"), false),
                (goto("empty"), drops_the_rest),
                (goto("accepts"), false),
                (jump("loop"), false),
                (goto("unread"), false),
            ] {
                let text = end.to_string();
                assert_eq!(around.lets_nothing_past(&rule(end)), nothing, "{text}, {drops_the_rest}");
            }
        }
    }
}
