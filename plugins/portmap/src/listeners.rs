//! Processes of the host that listen on a published port: from outside, nobody reaches them any more.

use crate::rules::Claim;

/// Warns of them.
pub fn warn_of(_claims: &[Claim]) {}
