//! The firewall plugin: a container's traffic passes whatever filter the host has, exactly as far as the policy says.
//!
//! Reading order: [`config`] (what is meant), [`rules`] (what a packet meets, and why), [`plan`] (an attachment's share),
//! [`hostfilter`], [`hostchain`], [`obstacles`], [`legacy`], [`host`] and [`firewalld`] (what the host's own firewalls
//! need), [`record`] (what an attachment owns, read back), [`state`], [`removal`] and [`policies`] (in and out of the kernel),
//! [`stored`] and [`others`] (after a flush of all rules), [`strays`], [`guards`], [`status`], [`upgrade`].

pub mod config;
pub mod firewalld;
pub mod guards;
pub mod host;
pub mod hostchain;
pub mod hostfilter;
pub mod legacy;
pub mod observe;
pub mod obstacles;
pub mod others;
pub mod plan;
pub mod policies;
pub mod record;
pub mod removal;
pub mod rules;
pub mod state;
pub mod status;
pub mod stored;
pub mod strays;
pub mod upgrade;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::cni::CniResult;
use common::nft::NftSocket;
use common::{Attachment, Call, Error, Plugin, Result};

use crate::config::{Config, Written};
use crate::observe::Observed;
use crate::state::Placed;

/// The plugin.
pub struct Firewall;

impl Plugin for Firewall {
    const NAME: &'static str = "firewall";
    type Written = Written;
    type Config = Config;
    type Facts = Observed;
    type State = Placed;

    fn validate(written: Written, _call: &Call) -> Result<Config> {
        written.validate()
    }

    fn is_idle(_config: &Config) -> bool {
        false
    }

    fn observe(config: &Config, call: &Call, prev: &CniResult) -> Result<Observed> {
        observe::observe(config, call, prev)
    }

    fn plan(config: &Config, call: &Call, prev: &CniResult, observed: Observed) -> Result<Placed> {
        let share = plan::plan(config, &call.attachment, prev, &observed.facts)?;
        Ok(Placed { share, firewalld: observed.firewalld })
    }

    fn remove(call: &Call, config: Option<&Config>, prev: Option<&CniResult>) -> Result<()> {
        let mut socket = NftSocket::new();
        let telling = config.filter(|config| firewalld::may_know(config.backend));
        let guessed = prev.map(|prev| plan::guess(&call.attachment, telling, prev));
        let removed = removal::remove(&mut socket, &call.attachment, guessed.as_ref());
        let ours: BTreeSet<IpAddr> = removed.iter().flatten().copied().collect();
        let hinted = prev.iter().flat_map(|prev| &prev.ips).map(|ip| ip.address.addr()).collect();
        let rules = upgrade::remove_rules_for(&mut socket, &(&ours | &hinted));
        // What still has its record is left to the next DEL.
        let foreign = telling.filter(|_| removed.is_ok());
        let sources = foreign.map_or(Ok(()), |config| upgrade::forget_sources(&mut socket, config, &(&hinted - &ours)));
        Error::gather([removed.map(drop), rules, sources].into_iter().filter_map(Result::err).collect())
    }

    fn collect(network: &str, live: &BTreeSet<Attachment>, _config: Option<&Config>) -> Result<()> {
        let mut socket = NftSocket::new();
        let collected = removal::collect(&mut socket, network, live);
        let superseded = upgrade::remove_superseded_rules(&mut socket);
        Error::gather([collected, superseded].into_iter().filter_map(Result::err).collect())
    }

    fn status(config: &Config) -> Result<()> {
        status::status(config)
    }
}
