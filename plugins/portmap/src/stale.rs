//! Flows that connection tracking would go on leading past a new mapping, or to a removed one.

use common::nft::NftSocket;

use crate::record::Recorded;
use crate::rules::Claim;

/// After ADD.
pub fn forget_after_add(_socket: &mut NftSocket, _claims: &[Claim], _before: Option<&Recorded>) {}

/// After DEL.
pub fn forget_after_del(_removed: &[Recorded]) {}
