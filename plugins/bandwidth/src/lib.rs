//! The bandwidth plugin: what a container sends and receives stays below a rate.
//!
//! Reading order: [`config`] (what may be written and what it means), [`plan`] (what the kernel shall hold; the picture
//! is there), [`present`] (what it holds), [`changes`] (from the one to the other), [`state`] (the verbs).

pub mod changes;
pub mod config;
pub mod plan;
pub mod present;
pub mod state;

use std::collections::BTreeSet;

use common::cni::{CniResult, Result};
use common::{Attachment, Call, Plugin};

/// The plugin.
#[derive(Debug)]
pub struct Bandwidth;

impl Plugin for Bandwidth {
    const NAME: &'static str = "bandwidth";
    type Written = config::Written;
    type Config = config::Config;
    type Facts = (plan::Facts, state::Door);
    type State = state::Share;

    fn validate(written: Self::Written, _: &Call) -> Result<Self::Config> {
        written.validate()
    }

    fn is_idle(config: &Self::Config) -> bool {
        config.is_idle()
    }

    fn observe(config: &Self::Config, call: &Call, _: &CniResult) -> Result<Self::Facts> {
        state::observe(config, call)
    }

    fn plan(config: &Self::Config, call: &Call, _: &CniResult, (facts, door): Self::Facts) -> Result<Self::State> {
        let shaping = plan::plan(config, &call.attachment, facts.clone())?;
        Ok(state::Share::new(config.clone(), shaping, facts, door))
    }

    fn remove(call: &Call, config: Option<&Self::Config>, prev: Option<&CniResult>) -> Result<()> {
        state::remove(call, config, prev)
    }

    fn collect(network: &str, live: &BTreeSet<Attachment>, _: Option<&Self::Config>) -> Result<()> {
        state::collect(network, live)
    }

    fn status(_: &Self::Config) -> Result<()> {
        state::status()
    }
}
