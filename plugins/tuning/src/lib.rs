//! The `tuning` plugin: sysctls and link attributes inside a container's network namespace, all of them or none, and
//! back as they were when the container goes.
//!
//! Reading order: [`config`] (what may be written and what is meant), [`plan`] (what to write, in which order),
//! [`record`] (what was there before), [`container`] (the namespace), [`state`] (the state files), [`allowlist`] and
//! [`re2`].

use std::collections::BTreeSet;

use common::cni::CniResult;
use common::cni::env::Verb;
use common::{Attachment, Call, Plugin, Result};

pub mod allowlist;
pub mod config;
pub mod container;
pub mod plan;
pub mod re2;
pub mod record;
pub mod state;

use config::{Config, Written};
use container::Container;
use plan::Facts;
use state::{Adjustment, Claim};

/// The plugin.
#[derive(Debug)]
pub struct Tuning;

impl Plugin for Tuning {
    const NAME: &'static str = "tuning";
    type Written = Written;
    type Config = Config;
    type Facts = (Container, Facts, Option<Claim>);
    type State = Adjustment;

    fn validate(written: Written, call: &Call) -> Result<Config> {
        Config::validate(written, call)
    }

    fn is_idle(config: &Config) -> bool {
        config.is_idle()
    }

    fn observe(config: &Config, call: &Call, _prev: &CniResult) -> Result<Self::Facts> {
        let container = Container::of_call(call)?;
        let claim = if call.verb == Verb::Add { Claim::of_add(config, &container)? } else { None };
        let mut facts = container.observe(config, call)?;
        if config.link.mac.is_some()
            && let Some(claim) = &claim
        {
            let awaited = state::awaited_neighbours(claim, &call.attachment, &container.place)?;
            for entry in awaited {
                if !facts.neighbours.iter().any(|known| known.is_same_object(&entry)) {
                    facts.neighbours.push(entry);
                }
            }
        }
        if call.verb != Verb::Add {
            facts.record = state::saved_record(config, &call.attachment)?;
        }
        Ok((container, facts, claim))
    }

    fn plan(config: &Config, call: &Call, _prev: &CniResult, facts: Self::Facts) -> Result<Adjustment> {
        let (container, facts, claim) = facts;
        let ifname = &call.attachment.ifname;
        // CHECK wants to name everything that is wrong, not to fail at the first.
        let steps = if call.verb == Verb::Add { plan::steps(config, ifname, &facts)? } else { Vec::new() };
        Ok(Adjustment { config: config.clone(), facts, steps, container, claim })
    }

    fn remove(call: &Call, config: Option<&Config>, _prev: Option<&CniResult>) -> Result<()> {
        state::remove(call, config)
    }

    fn collect(network: &str, live: &BTreeSet<Attachment>, config: Option<&Config>) -> Result<()> {
        state::collect(network, live, config)
    }

    fn status(config: &Config) -> Result<()> {
        state::status(config)
    }
}
