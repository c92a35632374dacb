//! The attachment's share of the firewall, from configuration, prevResult and what was looked up. Opens nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use common::cni::CniResult;
use common::nft::records;
use common::nft::{Chain, Element, IpVersion, Presence, Set, Skeleton, Table, Transaction};
use common::{Attachment, Error, Result};

use crate::config::{Backend, Config, HostChain, IngressPolicy};
use crate::record::{self, Record};
use crate::rules::{
    self, BRIDGE_SOURCES, BRIDGE_TABLE, BridgePolicy, NEIGHBOURS, PortGuard, ROUTED_SOURCES, SOURCES_TABLE, TABLE,
};

/// What was looked up on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether firewalld is to be told.
    pub firewalld: bool,
    /// The host's interfaces of prevResult that are bridges, in its order.
    pub bridges: Vec<String>,
    /// The host's ends of the container's interfaces that are ports of bridges.
    pub ports: Vec<String>,
    /// The host's end of the container's interface, if it is none.
    pub routed_port: Option<String>,
}

/// One attachment's share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Whose it is.
    pub attachment: Attachment,
    /// The container's addresses, without duplicates.
    pub addresses: Vec<IpAddr>,
    /// The zone of firewalld for them, if it is to be told.
    pub zone: Option<String>,
    /// The policy of a bridge.
    pub policy: Option<(BridgePolicy, String)>,
    /// What stands at the host's ends of its interfaces.
    pub guards: Vec<(PortGuard, Vec<String>)>,
    /// What was found while it was put in.
    pub notes: Notes,
    /// The host's interfaces of prevResult: nothing may stand at them that isn't planned.
    pub interfaces: Vec<String>,
    /// The static part.
    pub host: HostPart,
}

/// What is found out about a share only while it is put in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Whether the kernel has nothing to keep ports of one bridge apart with.
    pub without_bridge_family: bool,
    /// Whether an element of it was another attachment's before, who may need it again.
    pub shared: bool,
}

/// What the host's own filters need, once for all attachments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPart {
    /// The mark of admitted packets.
    pub mark: u32,
    /// The IP versions for which iptables' FORWARD has to accept the mark.
    pub versions: Vec<IpVersion>,
    /// Whether FORWARD is made where it isn't there.
    pub make: bool,
    /// The administrator's chain.
    pub admin_chain: String,
    /// Chains of other tables that have to accept the mark.
    pub chains: Vec<HostChain>,
}

impl HostPart {
    /// What containers with addresses of these versions need.
    pub fn of(config: &Config, firewalld: bool, versions: Vec<IpVersion>) -> HostPart {
        HostPart {
            mark: config.admit_mark,
            versions,
            make: makes_forward(config.backend, firewalld),
            admin_chain: config.admin_chain.clone(),
            chains: config.host_chains.clone(),
        }
    }

    /// The part of each IP version by itself.
    pub fn each_version(&self) -> impl Iterator<Item = (IpVersion, HostPart)> {
        self.versions.iter().map(|v| (*v, HostPart { versions: vec![*v], chains: vec![], ..self.clone() }))
    }
}

/// The plan.
pub fn plan(config: &Config, attachment: &Attachment, prev: &CniResult, facts: &Facts) -> Result<Share> {
    refuse_long_names(config, prev)?;
    let addresses: BTreeSet<IpAddr> = prev.ips.iter().map(|ip| ip.address.addr()).collect();
    let versions = IpVersion::ALL.into_iter().filter(|v| addresses.iter().any(|a| IpVersion::of(*a) == *v)).collect();
    let policy = match BridgePolicy::of(config.policy) {
        Some(policy) => Some((policy, bridge(config.policy, prev, facts)?)),
        None => None,
    };
    Ok(Share {
        attachment: attachment.clone(),
        addresses: addresses.into_iter().collect(),
        zone: facts.firewalld.then(|| config.zone.clone()),
        guards: guards(config, facts)?,
        notes: Notes::default(),
        interfaces: interfaces(prev),
        policy,
        host: HostPart::of(config, facts.firewalld, versions),
    })
}

/// What an attachment of which nothing is written down may have, by its prevResult.
/// `telling` is the configuration of who may have told firewalld.
pub fn guess(attachment: &Attachment, telling: Option<&Config>, prev: &CniResult) -> Record {
    let addresses: BTreeSet<IpAddr> = prev.ips.iter().map(|ip| ip.address.addr()).collect();
    let zone = telling.map(|config| config.zone.clone());
    Record::guessed(attachment, addresses.into_iter().collect(), &interfaces(prev), zone)
}

fn guards(config: &Config, facts: &Facts) -> Result<Vec<(PortGuard, Vec<String>)>> {
    let mut guards = Vec::new();
    let on_bridges = !facts.ports.is_empty();
    if config.policy == IngressPolicy::Isolated && on_bridges {
        guards.push((NEIGHBOURS, facts.ports.clone()));
    }
    if config.anti_spoof {
        let sources = match &facts.routed_port {
            _ if on_bridges => (BRIDGE_SOURCES, facts.ports.clone()),
            Some(port) => (ROUTED_SOURCES, vec![port.clone()]),
            None => return Err(no_port()),
        };
        guards.push(sources);
    }
    Ok(guards)
}

/// What comes from a macvlan or a device that was moved into the container can't be told from others' on this host.
fn no_port() -> Error {
    Error::UnsupportedField {
        key: "antiSpoof".into(),
        value: "true".into(),
        reason:
            "the container's interface has no other end on this host at which its source addresses could be looked \
                 at; use it behind bridge or ptp"
                .into(),
    }
}

/// With firewalld or without iptables, a FORWARD chain is used where there is one (Docker makes one beside firewalld),
/// but none is made.
fn makes_forward(backend: Backend, firewalld: bool) -> bool {
    match backend {
        Backend::Iptables => true,
        Backend::Detect => !firewalld,
        Backend::Firewalld | Backend::Nftables => false,
    }
}

/// The bridge whose policy it is: the first that is one, else the first interface, as in the reference (for ptp, that
/// is the container's own interface on the host).
fn bridge(policy: IngressPolicy, prev: &CniResult, facts: &Facts) -> Result<String> {
    let name = facts.bridges.iter().map(String::as_str).chain(on_host(prev)).next().map(str::to_owned);
    let name = name.ok_or_else(|| Error::BadPrevResult {
        reason: format!(
            "interface needs to be set for ingress policy \"{policy}\", make sure to chain \"firewall\" plugin with \
             \"bridge\""
        ),
    })?;
    Ok(name)
}

/// An error for a name that no interface can have: asked for it, the kernel would only say that it makes no sense.
pub fn refuse_long_names(config: &Config, prev: &CniResult) -> Result<()> {
    match on_host(prev).find(|name| looks_at_links(config) && name.len() > INTERFACE_NAME_MAX) {
        None => Ok(()),
        Some(name) => {
            let reason = format!("interface name \"{name}\" has more than {INTERFACE_NAME_MAX} bytes");
            Err(Error::BadPrevResult { reason })
        }
    }
}

/// Whether it matters which interfaces the container has on this host.
pub fn looks_at_links(config: &Config) -> bool {
    config.policy != IngressPolicy::Open || config.anti_spoof
}

/// The host's interfaces of prevResult.
fn on_host(prev: &CniResult) -> impl Iterator<Item = &str> {
    let named = prev.interfaces.iter().filter(|i| i.sandbox.is_empty() && !i.name.is_empty());
    named.map(|i| i.name.as_str())
}

/// Those of them that there can be.
fn interfaces(prev: &CniResult) -> Vec<String> {
    on_host(prev).filter(|name| name.len() <= INTERFACE_NAME_MAX).map(str::to_owned).collect()
}

/// IFNAMSIZ less the NUL (include/uapi/linux/if.h).
const INTERFACE_NAME_MAX: usize = 15;

impl Share {
    /// The same, knowing this. For a kernel whose nftables has no bridge family, isolation within a bridge reaches as far
    /// as net.bridge.bridge-nf-call-iptables does.
    pub fn noting(&self, notes: Notes) -> Share {
        let stays = |guard: &PortGuard| !notes.without_bridge_family || *guard != NEIGHBOURS;
        let guards = self.guards.iter().filter(|(guard, _)| stays(guard)).cloned().collect();
        Share { guards, notes, ..self.clone() }
    }

    /// The elements that are the attachment's own.
    pub fn own_elements(&self) -> Vec<(Table, Set, Element)> {
        let addresses = self.addresses.iter().map(|a| rules::address_element(*a));
        let mut elements: Vec<_> = addresses.map(|(set, element)| (TABLE, set, element)).collect();
        for (guard, port) in self.guards.iter().flat_map(|(guard, ports)| ports.iter().map(move |p| (guard, p))) {
            let of_port = guard.elements(port, &self.addresses).into_iter();
            elements.extend(of_port.map(|(set, element)| (guard.table.clone(), set, element)));
        }
        let label = self.attachment.label();
        elements.into_iter().map(|(table, set, element)| (table, set, element.comment(&label))).collect()
    }

    /// The elements that put the policy of its bridge in force: nobody's own.
    pub fn policy_elements(&self) -> Vec<(Set, Element)> {
        self.policy.iter().flat_map(|(policy, bridge)| policy.elements(bridge)).collect()
    }

    /// The chain that counts who needs that policy.
    pub fn policy_chain(&self) -> Option<Chain> {
        self.policy.as_ref().map(|(policy, bridge)| Chain::regular(policy.chain_for(bridge), vec![]))
    }

    /// What must be static in which tables.
    pub fn skeletons(&self) -> Vec<Skeleton> {
        let needs = |table: &Table| self.guards.iter().any(|(guard, _)| guard.table == *table);
        let mut skeletons = vec![rules::skeleton(self.host.mark)];
        skeletons.extend(needs(&BRIDGE_TABLE).then(rules::bridge_skeleton));
        skeletons.extend(needs(&SOURCES_TABLE).then(rules::sources_skeleton));
        skeletons
    }

    /// What makes the share where nothing of it is.
    pub fn transaction(&self) -> Transaction {
        let mut transaction = Transaction::new();
        if let Some(chain) = self.policy_chain() {
            transaction.add_chain(&TABLE, chain);
        }
        for (set, element) in self.policy_elements() {
            transaction.add_elements(&TABLE, &set.name, Presence::Shared, vec![element]);
        }
        for (table, set, element) in self.own_elements() {
            // Exclusively, so that another's is seen.
            transaction.add_elements(&table, &set.name, Presence::Exclusive, vec![element]);
        }
        transaction.add_elements(&TABLE, &records::map().name, Presence::Exclusive, record::lines(self));
        transaction
    }
}

/// The whole share for a reader: the transaction, and what others are told.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.transaction())?;
        let HostPart { mark, versions, make, admin_chain, chains } = &self.host;
        for version in versions {
            let or_make = if *make { ", made if absent" } else { ", if there" };
            writeln!(f, "host: {} filter FORWARD{or_make}: {admin_chain}, then mark {mark:#x}", version.keyword())?;
        }
        for chain in chains {
            writeln!(f, "host: {chain}: mark {mark:#x}")?;
        }
        for (zone, address) in self.zone.iter().flat_map(|z| self.addresses.iter().map(move |a| (z, a))) {
            writeln!(f, "firewalld: zone {zone}: {address}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use common::cni::env::Verb;
    use common::cni::network::Network;

    use super::*;
    use crate::config::Written;

    /// What a test directory says was looked up.
    #[derive(Default, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct WrittenFacts {
        firewalld: bool,
        bridges: Vec<String>,
        ports: Vec<String>,
        routed_port: Option<String>,
    }

    fn directories() -> Vec<PathBuf> {
        let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
        let mut all: Vec<_> = std::fs::read_dir(testdata).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    }

    /// config.json and facts.json (if anything was looked up) in, the plan's text or the error's out.
    fn outcome(directory: &Path) -> String {
        let facts = match std::fs::read(directory.join("facts.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Err(_) => WrittenFacts::default(),
        };
        let WrittenFacts { firewalld, bridges, ports, routed_port } = facts;
        let facts = Facts { firewalld, bridges, ports, routed_port };
        let planned = Network::parse(&std::fs::read(directory.join("config.json")).unwrap())
            .and_then(|json| Network::read(json, Verb::Add))
            .and_then(|network| {
                let config = network.own_keys::<Written>()?.0.validate()?;
                let attachment = Attachment::new(&network.name, "c1", "eth0");
                plan(&config, &attachment, &network.prev_result.unwrap(), &facts)
            });
        match planned {
            Ok(share) => share.to_string(),
            Err(error) => format!("error {}: {error}\n", error.code()),
        }
    }

    #[test]
    fn every_directory_of_testdata_gives_its_plan() {
        for directory in directories() {
            let found = outcome(&directory);
            let file = directory.join("plan.nft");
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&file, &found).unwrap();
            }
            let expected = std::fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(found, expected, "{} (UPDATE_GOLDEN=1 rewrites it)", file.display());
        }
    }

    #[test]
    fn the_skeletons_are_as_written_down() {
        let found = [rules::skeleton(0x1000), rules::bridge_skeleton(), rules::sources_skeleton()];
        let found: String = found.iter().map(ToString::to_string).collect();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/skeleton.nft");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &found).unwrap();
        }
        assert_eq!(found, std::fs::read_to_string(&file).unwrap_or_default(), "(UPDATE_GOLDEN=1 rewrites it)");
    }
}
