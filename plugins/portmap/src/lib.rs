//! The portmap plugin: host ports led to a container's ports.
//!
//! Reading order: [`config`] (the keys), [`rules`] (what a published port is made of, with the way of a packet),
//! [`state`] (ADD and CHECK in the kernel), [`removal`] (DEL and GC), [`conflict`] (a port that somebody has),
//! [`heirs`] (a port that one container wants twice).

use std::collections::BTreeSet;

use common::cni::CniResult;
use common::nft::records::NetworkKey;
use common::nft::{NftSocket, RecordKey};
use common::{Attachment, Call, Error, Plugin, Result};

pub mod conditions;
pub mod config;
pub mod conflict;
pub mod foreign;
pub mod heirs;
pub mod leftovers;
pub mod listeners;
pub mod liveness;
pub mod localnet;
pub mod observe;
pub mod origin;
pub mod publication;
pub mod record;
pub mod remains;
pub mod removal;
pub mod rules;
pub mod stale;
pub mod state;
pub mod transact;

use config::{Config, Written};
use record::Recorded;
use removal::Removed;
use rules::{Facts, Share};

/// The plugin.
#[derive(Debug)]
pub struct Portmap;

impl Plugin for Portmap {
    const NAME: &'static str = "portmap";
    type Written = Written;
    type Config = Config;
    type Facts = Facts;
    type State = Share;

    fn validate(written: Written, call: &Call) -> Result<Config> {
        Config::validate(written, call)
    }

    fn is_idle(config: &Config) -> bool {
        config.mappings.is_none()
    }

    fn observe(config: &Config, call: &Call, prev: &CniResult) -> Result<Facts> {
        observe::facts(config, call, prev)
    }

    fn plan(config: &Config, call: &Call, prev: &CniResult, facts: Facts) -> Result<Share> {
        rules::plan(config, call, prev, facts)
    }

    fn remove(call: &Call, _config: Option<&Config>, prev: Option<&CniResult>) -> Result<()> {
        let mut socket = NftSocket::open()?;
        let removed = state::remove_own(&mut socket, &call.attachment);
        let own = removed.and_then(Removed::settle);
        let left = leftovers::remove(&mut socket, &call.attachment, prev);
        Error::gather([own, left].into_iter().filter_map(Result::err).collect())
    }

    fn collect(network: &str, live_attachments: &BTreeSet<Attachment>, _config: Option<&Config>) -> Result<()> {
        let of_network = NetworkKey::of(network);
        let live: BTreeSet<RecordKey> = live_attachments.iter().map(RecordKey::of).collect();
        let mut socket = NftSocket::open()?;
        let labels: BTreeSet<String> = live_attachments.iter().map(Attachment::label).collect();
        let removed = removal::remove(&mut socket, |socket| {
            let mut dead = Recorded::all(socket, |key| of_network.has(key) && !live.contains(key))?;
            for damaged in dead.iter_mut().filter(|recorded| !recorded.is_whole()) {
                if let Some(whole) = Recorded::scattered(socket, damaged.record.key, "")? {
                    *damaged = whole;
                }
            }
            let recorded = dead.iter().map(|recorded| recorded.record.label.clone());
            let known: BTreeSet<String> = labels.iter().cloned().chain(recorded).collect();
            // What names no owner is nobody's, on whatever network. One whose name had to be cut may be another.
            let is_due = |label: &str| remains::network_of(label) == Some(network) || !remains::names_owner(label);
            dead.extend(Recorded::orphans(socket, |label| is_due(label) && !known.contains(label))?);
            Ok(dead)
        });
        let own = removed.and_then(Removed::settle);
        // What could not be closed just now still has its guard, and must not be opened for that.
        let links = if own.is_ok() { localnet::settle_all(&mut socket) } else { Ok(()) };
        let left = leftovers::collect(&mut socket, network, live_attachments);
        Error::gather([own, links, left].into_iter().filter_map(Result::err).collect())
    }

    fn status(_config: &Config) -> Result<()> {
        let asked = NftSocket::open().and_then(|mut socket| socket.generation());
        // A name that is always there: what is looked at is whether there are sysctls to read at all.
        let asked = asked.and_then(|_| localnet::read("all"));
        asked.map_err(|error| Error::NotAvailable { reason: error.to_string(), next: error.details() })?;
        let next = "remove what stands there: ADD can't note there what a link was, and DEL doesn't come to its end";
        localnet::look().map_err(|error| Error::NotAvailable { reason: error.to_string(), next: next.into() })
    }
}
