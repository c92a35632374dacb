//! Runs CNI configurations the way a runtime does: what libcni is to Go programs, for the operator's tool and for tests.
//!
//! Reading order: [`conflist`] (what is to be run), [`capabilities`] (what the runtime adds to it), [`search`] (where the
//! plugins are), [`process`] (one plugin's execution, bounded and judged), [`cache`] (what CHECK and DEL remember of ADD,
//! in libcni's format), [`chain`] (the verbs over all of these), [`report`] (what came out). [`arguments`], [`commands`]
//! and [`output`] are the command line on top.

pub mod arguments;
pub mod cache;
pub mod capabilities;
pub mod chain;
pub mod commands;
pub mod conflist;
pub mod failure;
pub mod output;
pub mod process;
pub mod report;
pub mod search;

pub use cache::Cache;
pub use chain::{Attaching, Runtime};
pub use conflist::Conflist;
pub use failure::Failure;
pub use report::{Event, Report, Step};
pub use search::SearchPath;
