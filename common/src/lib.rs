//! What every chained CNI plugin shares: the protocol, the verbs and the doors to the kernel.
//!
//! Reading order: [`cni`] (what a runtime says and hears), [`attachment`] (who owns a thing), [`plugin`] (the traits
//! and the verbs, written once), then the doors: [`nft`], [`link`], [`tc`], [`sysctl`], [`netns`], [`store`],
//! [`conntrack`].
//!
//! A plugin is a pure function from (configuration, prevResult, a few observed facts) to one attachment's share of
//! kernel state. This crate turns that function into ADD, DEL, CHECK, GC, STATUS and VERSION.

pub mod allocator;
pub mod attachment;
pub mod cni;
pub mod conntrack;
pub mod entry;
pub mod link;
pub mod logging;
mod memory;
mod netlink;
pub mod netns;
pub mod nft;
pub mod plugin;
mod room;
pub mod sockets;
pub mod store;
pub mod sysctl;
pub mod tc;
pub mod units;

pub use attachment::Attachment;
pub use cni::error::{Difference, Error, Result};
pub use plugin::{Call, Plugin, State};
