//! The host's own filters together, of both kinds of iptables and of `hostChains`: put right, compared.

use std::net::IpAddr;

use common::nft::{Command, IpVersion, NftSocket};
use common::{Difference, Result};

use crate::hostfilter::{self, FoundFilter};
use crate::legacy::{self, LegacyFilter};
use crate::plan::HostPart;
use crate::upgrade;

/// What was found in the legacy tables.
pub struct MendedLegacy {
    /// What nf_tables is left to hold.
    pub host: Vec<HostPart>,
    /// Where the reference's isolation chains are in force.
    pub isolating: Vec<IpVersion>,
}

/// Puts the static rule into the legacy tables that guard something.
pub fn mend_legacy(host: &HostPart) -> Result<MendedLegacy> {
    let mut parts = Vec::with_capacity(host.versions.len());
    let mut isolating = Vec::new();
    for (version, part) in host.each_version() {
        let filter = LegacyFilter::of(version, host);
        let Some(table) = filter.guarding_table()? else {
            parts.push(part);
            continue;
        };
        if !filter.differences(&table).is_empty() {
            filter.warn_of_obstacles(&table);
            filter.mend()?;
        }
        isolating.extend(legacy::isolates(&table).then_some(version));
        // Where iptables means iptables-legacy, a table that iptables-nft would see is used but not made.
        parts.push(HostPart { make: false, ..part });
    }
    parts.push(HostPart { versions: vec![], ..host.clone() });
    Ok(MendedLegacy { host: parts, isolating })
}

/// What puts the host's own filters right for a container that has these addresses.
pub fn mending(socket: &mut NftSocket, host: &[HostPart], own: &[IpAddr]) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for part in host {
        for (version, part) in part.each_version() {
            let found = FoundFilter::read(socket, version, &part.admin_chain)?;
            for blocked in hostfilter::dropped_before(&part, version, &found) {
                log::warn!("what is admitted is dropped: {blocked}");
            }
            if let Some(open) = hostfilter::accepted_before(&part, version, &found) {
                log::warn!("the administrator's overrides are passed over: {open}");
            }
            commands.extend(hostfilter::mending(&part, version, &found));
            if found.isolates() {
                commands.extend(upgrade::without_isolation(socket, version, own)?);
            }
        }
        for chain in &part.chains {
            let found = chain.read(socket)?;
            if let Some(blocked) = chain.dropped_before(part.mark, &found) {
                log::warn!("what is admitted is dropped: {blocked}");
            }
            commands.extend(chain.mending(part.mark, &found.rules));
        }
    }
    Ok(commands)
}

/// The IP versions that this part of the host has nothing to do with.
fn other_versions(host: &HostPart) -> Vec<IpVersion> {
    IpVersion::ALL.into_iter().filter(|version| !host.versions.contains(version)).collect()
}

/// What puts right where other marks than the host's are accepted, of the IP versions that this container hasn't: there is
/// one mark for all, and containers that have them would be cut off.
pub fn mending_of_others(socket: &mut NftSocket, host: &HostPart) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for version in other_versions(host) {
        LegacyFilter::of(version, host).mend_others()?;
        let part = HostPart { versions: vec![version], make: false, chains: vec![], ..host.clone() };
        let found = FoundFilter::read(socket, version, &host.admin_chain)?;
        commands.extend(hostfilter::mending_of_others(&part, version, &found));
    }
    Ok(commands)
}

/// Acceptances of other marks than the host's, of these IP versions.
pub fn acceptances_of_others(
    socket: &mut NftSocket,
    host: &HostPart,
    versions: &[IpVersion],
) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    for version in versions.iter().copied() {
        let legacy = LegacyFilter::of(version, host);
        all.extend(legacy.guarding_table()?.iter().flat_map(|table| legacy.accepts_others(table)));
        let found = FoundFilter::read(socket, version, &host.admin_chain)?;
        all.extend(hostfilter::acceptances_of_others(host, version, &found));
    }
    Ok(all)
}

/// What drops what is admitted of this IP version before our rules accept it.
pub fn dropped_before(socket: &mut NftSocket, host: &HostPart, version: IpVersion) -> Result<Vec<Difference>> {
    let legacy = LegacyFilter::of(version, host);
    let mut all: Vec<Difference> =
        legacy.guarding_table()?.iter().flat_map(|table| legacy.dropped_before(table)).collect();
    let found = FoundFilter::read_deeply(socket, version, &host.admin_chain)?;
    all.extend(hostfilter::dropped_before(host, version, &found));
    for chain in host.chains.iter().filter(|chain| chain.family.has(version)) {
        all.extend(chain.read_deeply(socket)?.and_then(|found| chain.dropped_before(host.mark, &found)));
    }
    Ok(all)
}

/// What CHECK says about the host's own filters.
pub fn differences(socket: &mut NftSocket, host: &HostPart) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    for (version, part) in host.each_version() {
        let filter = LegacyFilter::of(version, host);
        let guarding = filter.guarding_table()?;
        let make = part.make && guarding.is_none();
        if let Some(table) = guarding {
            all.extend(filter.differences(&table));
            all.extend(legacy::unneeded_isolation(socket, version, &table)?);
        }
        let found = FoundFilter::read_deeply(socket, version, &host.admin_chain)?;
        all.extend(hostfilter::differences(&HostPart { make, ..part }, version, &found));
        if found.isolates() && !upgrade::without_isolation(socket, version, &[])?.is_empty() {
            all.push(upgrade::left_behind(format!("chain {} FORWARD", hostfilter::filter_table(version))));
        }
    }
    for chain in &host.chains {
        all.extend(chain.differences(socket, host.mark)?);
    }
    all.extend(acceptances_of_others(socket, host, &other_versions(host))?);
    Ok(all)
}
