//! nf_tables: a model that prints as nft syntax, and the only door to the kernel's tables.

mod attributes;
mod canonical;
mod compare;
mod compile;
mod decompile;
mod dump;
mod encode;
mod expression;
pub mod kernel;
mod message;
pub mod model;
mod object;
mod option;
mod prefix;
mod print;
mod read;
mod skeleton;
mod socket;
pub mod transaction;
mod uapi;
mod userdata;
pub mod value;

pub use dump::{ChainInfo, RuleInfo, SetInfo};
pub use kernel::{CommitError, NftSocket, Refusal};
pub use model::{
    Chain, Data, DnatTarget, Element, Family, Hook, HookKind, HookPoint, MarkOf, Pattern, Policy, Rule, Selector, Set,
    SetData, SetSource, Skeleton, Statement, Table, Transport, Verdict,
};
pub use transaction::{Command, Position, Presence, Transaction};
pub use value::{DataType, IpVersion, Value};
