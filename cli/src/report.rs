//! What came out of a verb, for whoever shows it or asserts on it.

use std::path::PathBuf;
use std::time::Duration;

use common::Attachment;
use common::cni::{CniResult, Verb, Version};

use crate::process::Fault;

/// One plugin's turn.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it was asked.
    pub verb: Verb,
    /// Its `type`.
    pub plugin: String,
    /// Its executable; `None` if there is none.
    pub path: Option<PathBuf>,
    /// The capabilities it was given values for.
    pub given: Vec<String>,
    /// From before exec to after exit.
    pub took: Duration,
    /// What it said on stderr.
    pub stderr: String,
    /// What came out.
    pub outcome: Result<Output, Fault>,
}

/// What a plugin's success yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// DEL, CHECK, GC and STATUS have no document.
    Nothing,
    /// ADD: the result.
    Result(Box<Made>),
    /// VERSION: what it speaks.
    Versions(Vec<String>),
}

/// What a plugin made of the result that it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// prevResult.
    pub before: Option<CniResult>,
    /// What it printed.
    pub after: CniResult,
}

/// A whole verb.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was asked.
    pub verb: Verb,
    /// Of which network; empty for a VERSION without a conflist.
    pub network: String,
    /// The version it was run with.
    pub version: Version,
    /// For whom, unless it concerns the network as a whole.
    pub attachment: Option<Attachment>,
    /// The container's namespace.
    pub netns: Option<PathBuf>,
    /// The plugins' turns, in order.
    pub steps: Vec<Step>,
    /// After a failed ADD: the DELs that undid it.
    pub undone: Vec<Step>,
    /// GC: the DELs of cached attachments that are dead.
    pub stale: Vec<Report>,
    /// ADD: the last plugin's result.
    pub result: Option<CniResult>,
    /// What should be known, but failed nothing.
    pub remarks: Vec<String>,
    /// A failure outside the plugins, after some of them were run.
    pub failure: Option<String>,
}

impl Report {
    /// A report of nothing yet.
    pub fn new(verb: Verb, network: &str, version: Version) -> Report {
        Report {
            verb,
            network: network.to_owned(),
            version,
            attachment: None,
            netns: None,
            steps: Vec::new(),
            undone: Vec::new(),
            stale: Vec::new(),
            result: None,
            remarks: Vec::new(),
            failure: None,
        }
    }

    /// The plugins that failed, in the order they were run.
    pub fn failed(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.outcome.is_err())
    }

    /// Whether everything succeeded that the verb is about.
    pub fn success(&self) -> bool {
        self.failure.is_none() && self.failed().next().is_none() && self.stale.iter().all(Report::success)
    }
}

/// What happens while a verb runs, as soon as it is known.
#[derive(Debug)]
pub enum Event<'a> {
    /// The verb, network, version and attachment are known; nothing has run.
    Begun(&'a Report),
    /// A plugin's turn is over.
    Step(&'a Step),
    /// ADD failed; what follows are the DELs that undo it.
    Undoing,
    /// GC found a dead attachment; what follows are its DELs.
    Stale(&'a Attachment),
    /// GC comes to the plugins' own GC.
    Collecting,
}
