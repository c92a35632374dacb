//! nf_tables: a model that prints as nft syntax, and the only door to the kernel's tables.

pub mod model;
mod prefix;
mod print;
pub mod transaction;
pub mod value;

pub use model::{
    Chain, Data, DnatTarget, Element, Family, Hook, HookKind, HookPoint, MarkOf, Pattern, Policy, Rule, Selector, Set,
    SetData, SetSource, Skeleton, Statement, Table, Transport, Verdict,
};
pub use transaction::{Command, Position, Presence, Transaction};
pub use value::{DataType, IpVersion, Value};
