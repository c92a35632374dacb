//! Putting the static part of a table in, once, by whoever needs it first.
//!
//! Whether it is there is known by one look-up: the table has a set `skeleton` whose only element is a digest of the
//! skeleton. A table with another digest (an older or newer plugin's, or another configuration's) gets its static
//! chains flushed and filled anew; elements and the attachments' chains stay.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use super::dump::element_request;
use super::kernel::NftSocket;
use super::message::Message;
use super::model::{Chain, Element, Hook, Rule, Set, Skeleton, Statement, Verdict};
use super::transaction::{Command, Presence};
use super::value::{DataType, Value};
use crate::cni::error::Result;

/// Raised when the same skeleton is compiled to other expressions.
const ENCODING: u8 = 2;

impl Skeleton {
    /// The set that says which skeleton is in place.
    pub(super) fn marker_set() -> Set {
        Set::of("skeleton", [DataType::Mark]).comment("digest of the static rules")
    }

    /// Of the values themselves: printing them first takes ten times as long. The hash is a quick one, because nobody gains by
    /// two skeletons with one digest, and may change from one release to the next; then an upgraded plugin's first ADD fills the
    /// chains anew, as after any other change of them.
    fn marker(&self) -> Value {
        let mut digest = FxHasher::default();
        (ENCODING, self).hash(&mut digest);
        let digest = digest.finish();
        // Half of it is enough, and what a mark holds.
        Value::Mark((digest >> 32) as u32)
    }
}

impl Skeleton {
    /// What the kernel counts of a chain if nothing else leads there: its rules, and the rules that jump or go to it
    /// (nf_tables_newrule and nft_verdict_init, net/netfilter/nf_tables_api.c).
    pub(super) fn uses_of(&self, chain: &Chain) -> usize {
        // Nothing stands behind a verdict.
        let leads_there = |rule: &&Rule| match rule.statements.last() {
            Some(Statement::Verdict(Verdict::Jump(to) | Verdict::Goto(to))) => *to == chain.name,
            _ => false,
        };
        chain.rules.len() + self.chains.iter().flat_map(|chain| &chain.rules).filter(leads_there).count()
    }

    /// Asks whether this very skeleton is in place.
    pub(super) fn marker_request(&self) -> Result<Message> {
        element_request(&self.table, &Skeleton::marker_set().name, &[self.marker()])
    }
}

impl NftSocket {
    /// Whether this very skeleton is in place, by its marker: one look-up.
    pub fn has_skeleton(&mut self, skeleton: &Skeleton) -> Result<bool> {
        let found = self.element(&skeleton.table, &Skeleton::marker_set(), &[skeleton.marker()])?;
        Ok(found.is_some())
    }

    /// What puts the skeleton in: nothing of it is lost if it is there.
    pub(super) fn bootstrap(&mut self, skeleton: &Skeleton) -> Result<Vec<Command>> {
        let table = &skeleton.table;
        let marker = Skeleton::marker_set();
        let mut commands = vec![Command::AddTable(table.clone(), skeleton.comment.clone())];
        commands.extend(self.stale_base_chains(skeleton)?);
        commands.extend(skeleton.sets.iter().chain([&marker]).map(|set| Command::AddSet(table.clone(), set.clone())));
        for chain in &skeleton.chains {
            let bare = Chain { rules: Vec::new(), ..chain.clone() };
            commands.push(Command::AddChain(table.clone(), bare));
            if !chain.is_filled_by_attachments() {
                commands.push(Command::FlushChain(table.clone(), chain.name.clone()));
            }
        }
        // Rules jump to chains and look into sets: these come first, all of them.
        commands.extend(skeleton.chains.iter().map(|chain| Command::AddRules(table.clone(), chain.clone())));
        commands.push(Command::FlushSet(table.clone(), marker.name.clone()));
        commands.push(Command::AddElements(
            table.clone(),
            marker.name,
            Presence::Shared,
            vec![Element::key([skeleton.marker()])],
        ));
        Ok(commands)
    }

    /// The kernel can't change a base chain's hook or priority: one with another is deleted first, and so is one that
    /// another version had. (All base chains of our table are the skeleton's.)
    fn stale_base_chains(&mut self, skeleton: &Skeleton) -> Result<Vec<Command>> {
        let table = &skeleton.table;
        let mut commands = Vec::new();
        for found in self.chains(table)?.into_iter().filter(|c| c.is_base) {
            let wanted = skeleton.chains.iter().find(|c| c.name == found.name).and_then(|c| c.hook);
            let place = |hook: Hook| (hook.kind, hook.point, hook.priority);
            if wanted.is_none() || wanted.map(place) != found.hook.map(place) {
                commands.push(Command::FlushChain(table.clone(), found.name.clone()));
                commands.push(Command::DeleteChain(table.clone(), found.name));
            }
        }
        Ok(commands)
    }
}
