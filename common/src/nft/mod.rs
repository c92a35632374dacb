//! nf_tables: a model that prints as nft syntax, and the only door to the kernel's tables.
//!
//! ```text
//!  plan (pure)                    │ door
//!  Table Chain Rule Set Element   │  encode: compile (rule → expressions), write (→ attributes)
//!    Skeleton  Transaction ───────┼──► batch (nftnl) ► socket (mnl) ───► kernel
//!       │ Display                 │                                        │
//!       ▼                         │  compare ◄── dump ◄── read, canonical ◄┘
//!   what `nft list` prints        │     │          └──► decompile: for people
//!                                 │     └──► Vec<Difference>
//! ```
//!
//! Reading order: [`value`] and [`model`] (what can be said), `print.rs` (how it looks), [`transaction`] (what is sent),
//! `expression.rs` and `compile.rs` (what the kernel runs), `write.rs` and `encode.rs` (into messages), [`kernel`] (the door),
//! `skeleton.rs` (the static part, put in once), [`records`] (what each attachment owns), `dump.rs` and `read.rs` (reading
//! back), `compare.rs` (CHECK).
//! Unsafe code is in `message.rs` and `option.rs`, each under its reasons.
//!
//! Everything of ours in the kernel is one [`Skeleton`] a table, and for each attachment elements. An ADD is
//! a look-up ([`NftSocket::commit_on`] asks whether the skeleton is there) and one batch:
//!
//! ```no_run
//! use common::nft::*;
//!
//! const TABLE: Table = Table::new(Family::Inet, "example");
//! let ports = Set::vmap("ports", [DataType::InetProto, DataType::InetService]);
//! let look = Statement::vmap([Selector::L4proto, Selector::ThDport], "ports");
//! let skeleton = Skeleton {
//!     table: TABLE,
//!     comment: None,
//!     sets: vec![ports.clone()],
//!     chains: vec![Chain::base("prerouting", HookKind::Nat, HookPoint::Prerouting, -95, vec![Rule::new([look])])],
//! };
//!
//! let version = IpVersion::V4;
//! let target = DnatTarget::Address("10.88.0.2".parse()?, Some(80));
//! let mut add = Transaction::new();
//! add.add_chain(&TABLE, Chain::regular("dnat-1", vec![Rule::new([
//!     Statement::is(Selector::L4proto, Value::Proto(6)), // dnat to a port needs it
//!     Statement::Dnat { version, target },
//! ])]));
//! let key = [Value::Proto(6), Value::Port(8080)];
//! let claim = Element::verdict(key.clone(), Verdict::Jump("dnat-1".into())).comment("net/container/eth0");
//! add.add_elements(&TABLE, "ports", Presence::Exclusive, vec![claim]);
//!
//! let mut nft = NftSocket::new();
//! if let Err(CommitError::Refused(refusal)) = nft.commit_on(&[&skeleton], &add)
//!     && refusal.errno == nix::errno::Errno::EEXIST
//! {
//!     let owner = nft.element(&TABLE, &ports, &key)?;
//!     println!("taken by {:?}", owner.and_then(|e| e.comment));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
mod option;
mod prefix;
mod print;
mod read;
pub mod records;
mod skeleton;
mod socket;
pub mod transaction;
mod uapi;
mod userdata;
pub mod value;
mod write;

pub use dump::{ChainInfo, KEYS_AT_ONCE, RuleInfo, SetInfo, TableRules};
pub use kernel::{CommitError, NftSocket, Refusal};
pub use model::{
    Chain, Data, DnatTarget, Element, Family, Hook, HookKind, HookPoint, MarkOf, Pattern, Policy, Rule, Selector, Set,
    SetData, SetSource, Skeleton, Statement, Table, Transport, Verdict,
};
pub use records::RecordKey;
pub use transaction::{Command, Position, Presence, Transaction};
pub use value::{DataType, IpVersion, Value};
