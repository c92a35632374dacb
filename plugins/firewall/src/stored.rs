//! What has been put in, kept beside the kernel: `nft flush ruleset`, which every restart of Debian's nftables service is,
//! takes our tables away with all the others, and the shares of all containers with them.
//!
//! The kernel's record stays the one that counts. What is here is read where a record, or a line of it, may be gone: an ADD that
//! finds a table gone brings all shares back; DEL, GC and a repeated ADD learn what to remove, who else needs a policy, and who gets
//! an address back. The directory doesn't outlive a boot.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use common::nft::{IpVersion, RecordKey};
use common::store::{Directory, Stored};
use common::{Attachment, Result};
use serde::{Deserialize, Serialize};

use crate::config::HostChain;
use crate::plan::{HostPart, Notes, Share};
use crate::rules::{BRIDGE_POLICIES, PORT_GUARDS};

/// Where it is; a tmpfs, as all of /run.
const DIRECTORY: &str = "/run/cni/firewall";

/// A share as it is written down, by the names it has in the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    network: String,
    container: String,
    ifname: String,
    addresses: Vec<IpAddr>,
    zone: Option<String>,
    /// The set of the policy, and the bridge.
    policy: Option<(String, String)>,
    /// The name of each guard, and its ports.
    guards: Vec<(String, Vec<String>)>,
    without_bridge_family: bool,
    shared: bool,
    mark: u32,
    v4: bool,
    v6: bool,
    make: bool,
    admin_chain: String,
    host_chains: Vec<String>,
    /// What an ADD that has not come to its end is about to tell firewalld.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    telling: BTreeSet<Source>,
}

/// An address that firewalld has in a zone.
pub type Source = (String, IpAddr);

impl From<&Share> for Written {
    fn from(share: &Share) -> Written {
        let Share { attachment, host, .. } = share;
        Written {
            network: attachment.network.clone(),
            container: attachment.container.clone(),
            ifname: attachment.ifname.clone(),
            addresses: share.addresses.clone(),
            zone: share.zone.clone(),
            policy: share.policy.as_ref().map(|(policy, bridge)| (policy.set.to_owned(), bridge.clone())),
            guards: share.guards.iter().map(|(guard, ports)| (guard.name.to_owned(), ports.clone())).collect(),
            without_bridge_family: share.notes.without_bridge_family,
            shared: share.notes.shared,
            mark: host.mark,
            v4: host.versions.contains(&IpVersion::V4),
            v6: host.versions.contains(&IpVersion::V6),
            make: host.make,
            admin_chain: host.admin_chain.clone(),
            host_chains: host.chains.iter().map(HostChain::to_string).collect(),
            telling: BTreeSet::new(),
        }
    }
}

impl Written {
    /// The share; `None` for what this version doesn't know.
    fn read(self) -> Option<Share> {
        let policy = match self.policy {
            None => None,
            Some((set, bridge)) => Some((BRIDGE_POLICIES.into_iter().find(|p| p.set == set)?, bridge)),
        };
        let guard = |(name, ports): (String, Vec<String>)| {
            Some((PORT_GUARDS.into_iter().find(|guard| guard.name == name)?, ports))
        };
        let versions = [(IpVersion::V4, self.v4), (IpVersion::V6, self.v6)];
        Some(Share {
            attachment: Attachment::new(self.network, self.container, self.ifname),
            addresses: self.addresses,
            zone: self.zone,
            policy,
            guards: self.guards.into_iter().map(guard).collect::<Option<_>>()?,
            notes: Notes { without_bridge_family: self.without_bridge_family, shared: self.shared },
            interfaces: Vec::new(),
            host: HostPart {
                mark: self.mark,
                versions: versions.into_iter().filter(|(_, has)| *has).map(|(version, _)| version).collect(),
                make: self.make,
                admin_chain: self.admin_chain,
                chains: self.host_chains.iter().filter_map(|chain| chain.parse().ok()).collect(),
            },
        })
    }
}

/// The shelf, or why it can't be opened: what is in the kernel goes all the same, and then it is told.
pub type Opened = Result<Option<Shelf>>;

/// The place where shares are kept, a file each, named by its record's key.
#[derive(Debug)]
pub struct Shelf {
    directory: Directory,
}

impl Shelf {
    /// The shelf, if it could be opened and is there.
    pub fn within(opened: &Opened) -> Option<&Shelf> {
        opened.as_ref().ok().and_then(Option::as_ref)
    }

    /// The shelf, if anything was ever put there.
    pub fn open() -> Result<Option<Shelf>> {
        Ok(Directory::open(Path::new(DIRECTORY))?.map(|directory| Shelf { directory }))
    }

    /// Fails if there may be shares that can't be found. What only keeps ADD from putting one there is a warning.
    pub fn look() -> Result<()> {
        Shelf::open()?;
        if let Err(error) = Directory::probe(Path::new(DIRECTORY)) {
            log::warn!("{error}; after `nft flush ruleset` a container's share would come back only with its own ADD");
        }
        Ok(())
    }

    /// Puts a share there.
    pub fn put(share: &Share) -> Result<()> {
        Shelf::put_telling(share, BTreeSet::new())
    }

    /// The same, of an attachment that should have none there; `false`, and nothing is changed, if something is there.
    pub fn put_first(share: &Share) -> Result<bool> {
        let bytes = serde_json::to_vec(&Written::from(share)).unwrap_or_default();
        Directory::create(Path::new(DIRECTORY))?.write_new(&RecordKey::of(&share.attachment).to_string(), &bytes)
    }

    /// Puts a share there while firewalld is told of these sources.
    pub fn put_telling(share: &Share, telling: BTreeSet<Source>) -> Result<()> {
        let bytes = serde_json::to_vec(&Written { telling, ..Written::from(share) }).unwrap_or_default();
        Directory::create(Path::new(DIRECTORY))?.write(&RecordKey::of(&share.attachment).to_string(), &bytes)
    }

    /// The share of the attachment with this key. One that can't be read is none.
    pub fn read(&self, key: RecordKey) -> Option<Share> {
        self.read_telling(key).map(|(share, _)| share)
    }

    /// The same with the sources that an ADD which has not come to its end may have told firewalld.
    pub fn read_telling(&self, key: RecordKey) -> Option<(Share, BTreeSet<Source>)> {
        self.look_up(key).unwrap_or_else(|error| {
            log::warn!("{error}; it is passed over");
            None
        })
    }

    /// The same where it matters whether there is none or it can't be read. One that is spoilt is none.
    pub fn look_up(&self, key: RecordKey) -> Result<Option<(Share, BTreeSet<Source>)>> {
        let name = key.to_string();
        let spoilt = |reason: String| {
            log::warn!("{}: {reason}; it is passed over", self.directory.path_of(&name).display());
            Ok(None)
        };
        let bytes = match self.directory.read(&name)? {
            Stored::Bytes(bytes) => bytes,
            Stored::Absent => return Ok(None),
            Stored::Spoilt(reason) => return spoilt(reason),
        };
        let mut written = match serde_json::from_slice::<Written>(&bytes) {
            Ok(written) => written,
            Err(error) => return spoilt(error.to_string()),
        };
        let telling = std::mem::take(&mut written.telling);
        match written.read().filter(|share| RecordKey::of(&share.attachment) == key) {
            Some(share) => Ok(Some((share, telling))),
            None => spoilt("it is not of this attachment".into()),
        }
    }

    /// Whether an ADD which has not come to its end may have told firewalld of this source.
    pub fn is_telling(&self, source: &Source) -> Result<bool> {
        let told = |key| self.read_telling(key).is_some_and(|(_, telling)| telling.contains(source));
        Ok(self.keys()?.into_iter().any(told))
    }

    /// Takes it away.
    pub fn remove(&self, key: RecordKey) -> Result<()> {
        self.directory.remove(&key.to_string()).map(drop)
    }

    /// The keys of all. What else lies there is nobody's share.
    pub fn keys(&self) -> Result<BTreeSet<RecordKey>> {
        Ok(self.directory.names()?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The shares of these attachments, in no order; no other's file is opened. One that can't be read is an error: what it needs
    /// would be taken away.
    pub fn of(&self, is_wanted: impl Fn(&RecordKey) -> bool) -> Result<Vec<Share>> {
        let shares = self.keys()?.into_iter().filter(is_wanted).map(|key| self.look_up(key));
        shares.filter_map(|share| share.map(|found| found.map(|(share, _)| share)).transpose()).collect()
    }

    /// All shares, the latest first.
    pub fn all(&self) -> Result<Vec<Share>> {
        let time = |name: &String| {
            let modified = self.directory.path_of(name).symlink_metadata().and_then(|meta| meta.modified());
            modified.unwrap_or(std::time::UNIX_EPOCH)
        };
        let mut names = self.directory.names()?;
        names.sort_by_cached_key(|name| std::cmp::Reverse(time(name)));
        Ok(names.iter().filter_map(|name| self.read(name.parse().ok()?)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{BRIDGE_SOURCES, NEIGHBOURS, SAME_BRIDGE};

    fn share() -> Share {
        Share {
            attachment: Attachment::new("n", "c", "eth0"),
            addresses: vec!["10.88.0.2".parse().unwrap(), "fd00:88::2".parse().unwrap()],
            zone: Some("trusted".into()),
            policy: Some((SAME_BRIDGE, "cni0".into())),
            guards: vec![(NEIGHBOURS, vec!["veth2".into()]), (BRIDGE_SOURCES, vec!["veth2".into()])],
            notes: Notes { without_bridge_family: true, shared: true },
            interfaces: vec![],
            host: HostPart {
                mark: 16,
                versions: vec![IpVersion::V6],
                make: true,
                admin_chain: "MINE".into(),
                chains: vec!["inet filter forward".parse().unwrap()],
            },
        }
    }

    #[test]
    fn a_share_comes_back_as_it_was_written() {
        let bytes = serde_json::to_vec(&Written::from(&share())).unwrap();
        let written: Written = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(written.read(), Some(share()));
    }

    #[test]
    fn a_share_of_another_version_is_none() {
        let mut written = Written::from(&share());
        written.guards[0].0 = "whatever".into();
        assert_eq!(written.clone().read(), None);
        written.guards.clear();
        written.policy = Some(("whatever".into(), "cni0".into()));
        assert_eq!(written.read(), None);
    }
}
