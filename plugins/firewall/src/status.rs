//! Whether ADD can succeed on this host, and whether what it admits gets through.

use common::nft::{IpVersion, NftSocket};
use common::{Error, Result};

use crate::config::Config;
use crate::guards::{self, Scope};
use crate::legacy;
use crate::observe;
use crate::plan::HostPart;
use crate::rules::TABLE;

/// STATUS.
pub fn status(config: &Config) -> Result<()> {
    let unavailable = |error: Error| Error::NotAvailable { reason: error.to_string(), next: error.details() };
    let firewalld = observe::firewalld(config.backend).map_err(unavailable)?.is_some();
    let mut socket = NftSocket::new();
    socket.has_table(&TABLE).map_err(unavailable)?;
    let host = HostPart::of(config, firewalld, IpVersion::ALL.into());
    for chain in &host.chains {
        chain.read(&mut socket).map_err(unavailable)?;
    }
    for (version, part) in host.each_version() {
        legacy::can_mend(version, &part).map_err(unavailable)?;
    }
    let guards = guards::all(&mut socket, Scope { host: &host, firewalld })?;
    match guards.iter().find(|guard| guard.certainly) {
        Some(guard) => Err(Error::LimitedConnectivity { reason: guard.to_string(), next: guard.remedy() }),
        None => Ok(()),
    }
}
