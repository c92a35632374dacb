//! What the Go reference plugin has left for containers that it served, so that binaries can be swapped on a live node.
//!
//! Its iptables backend makes a chain `CNI-DN-…` for each network and container in the tables `nat`, reached from
//! `CNI-HOSTPORT-DNAT` by rules whose comment says `dnat name: "NETWORK" id: "CONTAINER"`; iptables-nft keeps all that in
//! nf_tables. (iptables-legacy does not: those chains stay until the next boot.) Its nftables backend makes rules whose
//! comment is the container's id in tables `cni_hostport`. What all containers share there is left alone.

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;

use common::attachment::reference_hash_name;
use common::cni::CniResult;
use common::nft::{Family, NftSocket, RuleInfo, Table, Transaction};
use common::{Attachment, Result};

use crate::transact::{came_too_late, transact};

/// The chain that leads to each container's chain.
const DISPATCH: &str = "CNI-HOSTPORT-DNAT";
/// The chains with rules of containers in the tables of the nftables backend.
const RULE_CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];
/// Where libcni keeps the results of all attachments that it has added and not deleted, unless a runtime says otherwise.
const RESULT_CACHE: &str = "/var/lib/cni/results";

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

const fn nat(family: Family) -> Table {
    Table::new(family, "nat")
}

const fn hostport(family: Family) -> Table {
    Table::new(family, "cni_hostport")
}

/// The name of the chain that the reference makes for a container on a network (`genDnatChain` in its portmap.go).
fn chain_name(network: &str, container: &str) -> String {
    reference_hash_name(28, "CNI-DN-", &format!("{network}{container}"))
}

/// Removes what the reference left for this container on this network.
///
/// The comments of its nftables backend don't name the network. With a prevResult the container's addresses tell its
/// networks apart; without one the container is going altogether.
pub fn remove(socket: &mut NftSocket, attachment: &Attachment, prev: Option<&CniResult>) -> Result<()> {
    let chain = chain_name(&attachment.network, &attachment.container);
    let addresses: Vec<IpAddr> = prev.iter().flat_map(|p| &p.ips).map(|ip| ip.address.addr()).collect();
    let own = |info: &RuleInfo| {
        info.comment.as_deref() == Some(&attachment.container)
            && (addresses.is_empty() || addresses.iter().any(|a| mentions(info, *a)))
    };
    sweep(socket, &mut |socket, transaction| {
        for family in FAMILIES {
            if socket.chain(&nat(family), &chain)?.is_some() {
                remove_chain(socket, family, &chain, transaction)?;
            }
            remove_rules(socket, family, &own, transaction)?;
        }
        Ok(())
    })
}

/// Removes what the reference left for containers that aren't among the living of this network.
pub fn collect(socket: &mut NftSocket, network: &str, live: &BTreeSet<Attachment>) -> Result<()> {
    let living: BTreeSet<&str> = live.iter().map(|a| a.container.as_str()).collect();
    let dead = |info: &RuleInfo| {
        info.comment.as_deref().is_some_and(|id| !living.contains(id) && is_in_no_network(Path::new(RESULT_CACHE), id))
    };
    sweep(socket, &mut |socket, transaction| {
        for family in FAMILIES {
            let mut chains = BTreeSet::new();
            for info in socket.rules(&nat(family), DISPATCH)? {
                let owner = info.comment.as_deref().and_then(owner_in_comment);
                if let Some((name, id)) = owner.filter(|(name, id)| *name == network && !living.contains(id)) {
                    chains.insert(chain_name(name, id));
                }
            }
            for chain in chains {
                remove_chain(socket, family, &chain, transaction)?;
            }
            remove_rules(socket, family, &dead, transaction)?;
        }
        Ok(())
    })
}

/// Sends what `gather` gathers, if there is anything.
fn sweep(socket: &mut NftSocket, gather: &mut dyn FnMut(&mut NftSocket, &mut Transaction) -> Result<()>) -> Result<()> {
    transact(socket, |socket, generation| {
        let mut transaction = Transaction::new();
        gather(socket, &mut transaction)?;
        match socket.commit_at(&transaction, generation) {
            Ok(()) => Ok(ControlFlow::Break(())),
            Err(error) if came_too_late(&error) => Ok(ControlFlow::Continue(())),
            Err(error) => Err(error.into()),
        }
    })
}

fn remove_chain(socket: &mut NftSocket, family: Family, chain: &str, transaction: &mut Transaction) -> Result<()> {
    let table = nat(family);
    // The rules have matches of xtables, so the model has no words for them.
    let jump = format!("jump {chain}");
    let leads = |text: &str| text.split(['[', ']']).any(|part| part == jump) || text.ends_with(&jump);
    for info in socket.rules(&table, DISPATCH)?.iter().filter(|info| leads(&info.text())) {
        transaction.delete_rule(&table, DISPATCH, info.handle);
    }
    if socket.chain(&table, chain)?.is_some() {
        transaction.remove_chain(&table, chain);
        log::info!("removed chain {chain} of table {table}, which the reference plugin had left");
    }
    Ok(())
}

fn remove_rules(
    socket: &mut NftSocket,
    family: Family,
    is_due: &dyn Fn(&RuleInfo) -> bool,
    transaction: &mut Transaction,
) -> Result<()> {
    let table = hostport(family);
    let [first, ..] = RULE_CHAINS;
    if socket.chain(&table, first)?.is_none() {
        return Ok(());
    }
    for chain in RULE_CHAINS {
        for info in socket.rules(&table, chain)?.iter().filter(|info| is_due(info)) {
            transaction.delete_rule(&table, chain, info.handle);
            log::info!(
                "removed a rule of chain {chain} of table {table}, which the reference plugin had left: {}",
                info.text()
            );
        }
    }
    Ok(())
}

/// Network and container of a comment of the iptables backend. Neither can have a quotation mark in it.
fn owner_in_comment(comment: &str) -> Option<(&str, &str)> {
    let (name, id) = comment.strip_prefix("dnat name: \"")?.split_once("\" id: \"")?;
    Some((name, id.strip_suffix('"')?))
}

/// Whether the rule is about this address: as nft would write it, or as its bytes where the model has no words.
fn mentions(info: &RuleInfo, address: IpAddr) -> bool {
    let octets: Vec<u8> = match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    };
    let hex = octets.iter().fold(String::from("0x"), |text, byte| format!("{text}{byte:02x}"));
    let text = address.to_string();
    info.text().split(|c: char| c.is_whitespace() || matches!(c, '[' | ']' | '"')).any(|word| {
        let without_port = if address.is_ipv4() { word.split(':').next().unwrap_or_default() } else { word };
        without_port == text || word == hex
    })
}

/// Whether libcni knows of no attachment of this container to any network. Where it keeps no results at all, nothing is
/// known.
fn is_in_no_network(cache: &Path, container: &str) -> bool {
    // NETWORK-CONTAINER-IFNAME
    let part = format!("-{container}-");
    let has_it = |entry: std::io::Result<DirEntry>| entry.map(|e| e.file_name().to_string_lossy().contains(&part));
    // Of a list that breaks off the rest may name it.
    std::fs::read_dir(cache).is_ok_and(|mut entries| entries.all(|entry| has_it(entry).is_ok_and(|has| !has)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_has_the_reference_s_name() {
        let id = "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y";
        assert_eq!(chain_name("test", id), "CNI-DN-67e92b96e692a494b6b85");
    }

    #[test]
    fn the_owner_is_read_from_the_comment() {
        assert_eq!(owner_in_comment("dnat name: \"full\" id: \"11f6\""), Some(("full", "11f6")));
        for other in ["", "CNI portfwd masquerade mark", "dnat name: \"full\" id: \"11f6...", "dnat name: \"x\""] {
            assert_eq!(owner_in_comment(other), None, "{other}");
        }
    }

    #[test]
    fn a_container_is_in_no_network_only_if_the_cache_can_tell() {
        let dir = std::env::temp_dir().join(format!("portmap-cache-{}", std::process::id()));
        assert!(!is_in_no_network(&dir, "c1"), "there is no cache");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("net-c1-eth0"), "").unwrap();
        assert!(!is_in_no_network(&dir, "c1"));
        assert!(is_in_no_network(&dir, "c2"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
