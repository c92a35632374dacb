//! What is sent to the kernel: all of it or nothing.

use super::encode;
use super::model::{Chain, Element, Rule, Set, Table};
use crate::cni::error::Result;

/// Where in its chain a rule goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// First.
    Top,
    /// Last.
    End,
    /// Before the rule with this handle.
    Before(u64),
    /// After the rule with this handle.
    After(u64),
}

/// What happens if the element is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The same key with the same data is fine (the comment that is there stays); other data fails with EEXIST.
    Shared,
    /// Fails with EEXIST in any case.
    Exclusive,
}

/// One step of a transaction. Adding what is there with the same properties is no error, except where [`Presence`]
/// says so; deleting what is absent fails the whole transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `add table`
    AddTable(Table, Option<String>),
    /// `delete table` with all it holds
    DeleteTable(Table),
    /// `add set`, `add map`
    AddSet(Table, Set),
    /// `delete set`
    DeleteSet(Table, String),
    /// `flush set`: all elements
    FlushSet(Table, String),
    /// `add chain`, then `add rule` for each of its rules
    AddChain(Table, Chain),
    /// `add chain` in somebody else's table: without a policy, so that a chain that is there keeps its own. One that is
    /// made accepts. No rules.
    UseChain(Table, Chain),
    /// `add rule` for each of a chain's rules; the chain is there already
    AddRules(Table, Chain),
    /// `delete chain`; it must be empty and nothing may jump to it any more
    DeleteChain(Table, String),
    /// `flush chain`: all its rules
    FlushChain(Table, String),
    /// `add rule`, `insert rule`
    AddRule(Table, String, Position, Rule),
    /// `delete rule` by handle
    DeleteRule(Table, String, u64),
    /// `add element`
    AddElements(Table, String, Presence, Vec<Element>),
    /// `delete element`, by key
    DeleteElements(Table, String, Vec<Element>),
}

impl Command {
    /// What it does, in a word, and to what.
    pub fn subject(&self) -> (&'static str, String) {
        match self {
            Command::AddTable(table, _) => ("add", format!("table {table}")),
            Command::DeleteTable(table) => ("delete", format!("table {table}")),
            Command::AddSet(table, set) => ("add", format!("{} {} of table {table}", set.keyword(), set.name)),
            Command::DeleteSet(table, set) => ("delete", format!("set {set} of table {table}")),
            Command::FlushSet(table, set) => ("flush", format!("set {set} of table {table}")),
            Command::AddChain(table, chain) | Command::UseChain(table, chain) => {
                ("add", format!("chain {} of table {table}", chain.name))
            }
            Command::AddRules(table, chain) => ("add", format!("the rules of chain {} of table {table}", chain.name)),
            Command::DeleteChain(table, chain) => ("delete", format!("chain {chain} of table {table}")),
            Command::FlushChain(table, chain) => ("flush", format!("chain {chain} of table {table}")),
            Command::AddRule(table, chain, _, rule) => {
                ("add", format!("rule {rule} to chain {chain} of table {table}"))
            }
            Command::DeleteRule(table, chain, handle) => {
                ("delete", format!("rule {handle} of chain {chain} of table {table}"))
            }
            Command::AddElements(table, set, ..) => ("add", format!("elements to set {set} of table {table}")),
            Command::DeleteElements(table, set, _) => ("delete", format!("elements of set {set} of table {table}")),
        }
    }
}

impl Command {
    /// Whether it adds: then it fails for want of what it is added to.
    pub(super) fn adds(&self) -> bool {
        match self {
            Command::AddTable(..)
            | Command::AddSet(..)
            | Command::AddChain(..)
            | Command::UseChain(..)
            | Command::AddRules(..)
            | Command::AddRule(..)
            | Command::AddElements(..) => true,
            Command::DeleteTable(..)
            | Command::DeleteSet(..)
            | Command::FlushSet(..)
            | Command::DeleteChain(..)
            | Command::FlushChain(..)
            | Command::DeleteRule(..)
            | Command::DeleteElements(..) => false,
        }
    }
}

/// An ordered list of commands that take effect together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    commands: Vec<Command>,
}

impl Transaction {
    /// One that does nothing yet.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// The netlink messages that a commit would send, for measuring; empty if it would send none.
    pub fn encoded(&self) -> Result<Vec<u8>> {
        let commands: Vec<&Command> = self.commands.iter().collect();
        let encoded = encode::encode(&commands)?;
        Ok(encoded.iter().flat_map(|encoded| encoded.batch.iter()).flatten().copied().collect())
    }

    /// Appends a command.
    pub fn push(&mut self, command: Command) -> &mut Transaction {
        self.commands.push(command);
        self
    }

    /// The commands, in order.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// `add table` and `delete table`: it is gone afterwards, whether it was there or not.
    pub fn destroy_table(&mut self, table: &Table) -> &mut Transaction {
        self.push(Command::AddTable(table.clone(), None));
        self.push(Command::DeleteTable(table.clone()))
    }

    /// `add chain` with its rules.
    pub fn add_chain(&mut self, table: &Table, chain: Chain) -> &mut Transaction {
        self.push(Command::AddChain(table.clone(), chain))
    }

    /// `flush chain` and `delete chain`: fails if the chain is absent, and so undoes all the rest.
    pub fn remove_chain(&mut self, table: &Table, chain: &str) -> &mut Transaction {
        self.push(Command::FlushChain(table.clone(), chain.to_owned()));
        self.push(Command::DeleteChain(table.clone(), chain.to_owned()))
    }

    /// `add element`; nothing for an empty list.
    pub fn add_elements(
        &mut self,
        table: &Table,
        set: &str,
        presence: Presence,
        elements: Vec<Element>,
    ) -> &mut Transaction {
        if !elements.is_empty() {
            self.push(Command::AddElements(table.clone(), set.to_owned(), presence, elements));
        }
        self
    }

    /// `delete element`; nothing for an empty list.
    pub fn delete_elements(&mut self, table: &Table, set: &str, elements: Vec<Element>) -> &mut Transaction {
        if !elements.is_empty() {
            self.push(Command::DeleteElements(table.clone(), set.to_owned(), elements));
        }
        self
    }

    /// `add rule`, `insert rule`.
    pub fn add_rule(&mut self, table: &Table, chain: &str, position: Position, rule: Rule) -> &mut Transaction {
        self.push(Command::AddRule(table.clone(), chain.to_owned(), position, rule))
    }

    /// `delete rule` by handle.
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) -> &mut Transaction {
        self.push(Command::DeleteRule(table.clone(), chain.to_owned(), handle))
    }
}
