//! Promises about a runtime and its plugins, each kept or broken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use similar::{ChangeTag, TextDiff};

use super::recorder::Recorder;
use crate::namespace::{Netns, SETTLE_LIMIT};
use crate::traffic::Fetch;
use crate::traffic::throughput::Measured;

/// A promise and, if it is broken, what was seen instead.
#[derive(Clone, Debug)]
pub struct Claim {
    /// A sentence, the same for every kind of plugins.
    pub promise: String,
    /// What was seen.
    pub fault: Option<String>,
}

/// What a scenario has found so far.
#[derive(Debug, Default)]
pub struct Claims {
    list: Vec<Claim>,
}

impl Claims {
    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.list.iter()
    }

    /// Notes how a promise came out.
    pub fn note<T>(&mut self, promise: &str, outcome: Result<T, String>) {
        self.list.push(Claim { promise: promise.into(), fault: outcome.err() });
    }

    /// One that is kept if `code` comes to its end: for steps of the harness, which panic.
    pub fn runs<T>(&mut self, promise: &str, code: impl FnOnce() -> T) -> Option<T> {
        let outcome = catch_unwind(AssertUnwindSafe(code)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
        });
        let (value, fault) = match outcome {
            Ok(value) => (Some(value), None),
            Err(fault) => (None, Some(fault)),
        };
        self.list.push(Claim { promise: promise.into(), fault });
        value
    }

    /// `token` comes back.
    pub fn answers(&mut self, promise: &str, fetch: Fetch, from: &Netns, token: &str) {
        let outcome = match fetch.from(from) {
            Ok(reply) if reply.token == token => Ok(()),
            Ok(reply) => Err(format!("{fetch} from {}: {token:?} expected, came {reply:?}", from.name())),
            Err(error) => Err(format!("{fetch} from {}: {error}", from.name())),
        };
        self.note(promise, outcome);
    }

    /// Nobody answers.
    pub fn is_silent(&mut self, promise: &str, fetch: Fetch, from: &Netns) {
        let answer = fetch.clone().within(crate::traffic::BRIEFLY).from(from);
        self.note(promise, answer.map_or(Ok(()), |reply| Err(format!("{fetch} from {}: {reply:?}", from.name()))));
    }

    /// The flow was held to this rate in bit/s from its first byte on, but for a burst in bits.
    pub fn is_limited(&mut self, promise: &str, flow: &Measured, rate: f64, burst: f64) {
        self.note(promise, flow.limited(rate, burst));
    }

    /// Nothing has come, nothing has gone, once everything has come to rest: processes end behind an answer.
    pub fn is_unchanged(&mut self, promise: &str, before: &str, now: impl Fn() -> String) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let mut changed = changes(before, &now());
        while !changed.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            changed = changes(before, &now());
        }
        self.note(promise, if changed.is_empty() { Ok(()) } else { Err(changed) });
    }

    /// No plugin has failed in any call.
    pub fn no_call_failed(&mut self, recorder: &Recorder) {
        let failures = recorder.failures();
        self.note(
            "no call of a plugin has failed",
            if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) },
        );
    }

    /// These, then the others.
    pub fn absorb(mut self, others: Claims) -> Claims {
        self.list.extend(others.list);
        self
    }

    /// Fails the test unless every promise was kept.
    #[track_caller]
    pub fn assert_kept(&self) {
        let broken = self.list.iter().filter_map(|c| c.fault.as_ref().map(|f| format!("✗ {}: {f}", c.promise)));
        let broken: Vec<String> = broken.collect();
        assert!(broken.is_empty(), "{} of {} claims are broken:\n{}", broken.len(), self.list.len(), broken.join("\n"));
        assert!(!self.list.is_empty(), "the scenario claims nothing");
    }
}

fn changes(before: &str, after: &str) -> String {
    let diff = TextDiff::from_lines(before, after);
    let changed = diff.iter_all_changes().filter(|change| change.tag() != ChangeTag::Equal);
    changed.map(|change| format!("{}{}", change.tag(), change.value())).collect()
}
