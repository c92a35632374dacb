//! A plugin that panics whatever it is asked: how a defect of a plugin looks to a runtime, for the tests.

#![no_main]

use std::collections::BTreeSet;

use common::cni::CniResult;
use common::{Attachment, Call, Difference, Plugin, Result, State};

struct Panicking;

struct Nothing;

impl State for Nothing {
    fn apply(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn differences(&self, _: &Call) -> Result<Vec<Difference>> {
        Ok(Vec::new())
    }
}

/// Panics while it is read, which is as early as a plugin's own code can.
struct Written;

impl<'de> serde::Deserialize<'de> for Written {
    #[allow(clippy::panic)]
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> std::result::Result<Written, D::Error> {
        panic!("on purpose")
    }
}

impl Plugin for Panicking {
    const NAME: &'static str = "panicking";
    type Written = Written;
    type Config = ();
    type Facts = ();
    type State = Nothing;

    fn validate(_: Written, _: &Call) -> Result<()> {
        Ok(())
    }
    fn is_idle((): &()) -> bool {
        true
    }
    fn observe((): &(), _: &Call, _: &CniResult) -> Result<()> {
        Ok(())
    }
    fn plan((): &(), _: &Call, _: &CniResult, (): ()) -> Result<Nothing> {
        Ok(Nothing)
    }
    fn remove(_: &Call, _: Option<&()>, _: Option<&CniResult>) -> Result<()> {
        Ok(())
    }
    fn collect(_: &str, _: &BTreeSet<Attachment>, _: Option<&()>) -> Result<()> {
        Ok(())
    }
    fn status((): &()) -> Result<()> {
        Ok(())
    }
}

common::program!(Panicking);
