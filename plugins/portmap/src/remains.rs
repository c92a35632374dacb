//! What is left of records from which somebody has removed lines by hand, up to all of them.
//!
//! A port's owner stands at the port itself, too. So that what a record no longer says is found by one look through the
//! maps, which nobody takes as long as the records are whole.

use std::collections::BTreeSet;

use common::nft::records::number;
use common::nft::{ChainInfo, Element, NftSocket, RecordKey};
use common::{Attachment, Result};

use crate::record::{Record, Recorded, is_last};
use crate::rules::{self, ATTACHMENTS, Claim, TABLE};

impl Recorded {
    /// What there is of the attachment's record, whatever lines of it somebody has removed: one look through the map.
    pub fn remains(socket: &mut NftSocket, attachment: &Attachment) -> Result<Option<Recorded>> {
        let found = Recorded::scattered(socket, RecordKey::of(attachment), &attachment.label())?;
        Ok(found.filter(|r| r.record.label == attachment.label()))
    }

    /// The same where the first line is missing; where nobody has a record any more, the ports that name the attachment. Nothing
    /// if all those lines are missing that a record has as a rule, and only those of this one.
    pub fn headless(socket: &mut NftSocket, attachment: &Attachment) -> Result<Option<Recorded>> {
        let Some(attachments) = socket.chain(&TABLE, ATTACHMENTS)? else { return Ok(None) };
        if attachments.uses == 0 {
            let own = attachment.label();
            return Ok(Recorded::orphans(socket, |label| label == own)?.pop());
        }
        let has_lines = socket.has_usual_line_behind(&TABLE, RecordKey::of(attachment), 0)?;
        if has_lines { Recorded::remains(socket, attachment) } else { Ok(None) }
    }

    /// Whether no line of it is missing.
    pub fn is_whole(&self) -> bool {
        self.lines.last().is_some_and(is_last) && (0..).zip(&self.lines).all(|(n, line)| number(line) == Some(n))
    }

    /// With the ports of lines that are missing, and with this label if that line is; without one, with that of its ports.
    pub fn scattered(socket: &mut NftSocket, key: RecordKey, label: &str) -> Result<Option<Recorded>> {
        let Some(mut found) = Recorded::all(socket, |of| *of == key)?.pop() else { return Ok(None) };
        let chains = socket.chains(&TABLE)?;
        let elements = ports(socket, &chains)?;
        let record = &mut found.record;
        if record.label.is_empty() {
            let of_key = elements.iter().filter_map(|e| e.comment.as_deref()).find(|label| is_of(label, key));
            record.label = Some(label).filter(|label| !label.is_empty()).or(of_key).unwrap_or_default().to_owned();
        }
        let known: BTreeSet<Claim> = record.claims.iter().copied().collect();
        let own = elements.iter().filter(|element| element.comment.as_ref() == Some(&record.label));
        record.claims.extend(own.filter_map(Claim::of_element).filter(|claim| !known.contains(claim)));
        find_kinds(socket, &chains, record)?;
        Ok(Some(found))
    }

    /// Ports whose labels are wanted, as records without lines. A port without a label has an empty one.
    pub fn orphans(socket: &mut NftSocket, wanted: impl Fn(&str) -> bool) -> Result<Vec<Recorded>> {
        let mut orphans = Vec::new();
        let chains = socket.chains(&TABLE)?;
        for element in ports(socket, &chains)?.iter().filter(|element| wanted(label_of(element))) {
            gather(&mut orphans, element);
        }
        for orphan in &mut orphans {
            log::warn!("ports are in nobody's record: {}, of {}", orphan.record.claims.len(), orphan.record.label);
            find_kinds(socket, &chains, &mut orphan.record)?;
        }
        Ok(orphans)
    }
}

fn label_of(element: &Element) -> &str {
    element.comment.as_deref().unwrap_or_default()
}

/// Puts a port to the others that bear its label.
pub fn gather(orphans: &mut Vec<Recorded>, element: &Element) {
    let (label, Some(claim)) = (label_of(element), Claim::of_element(element)) else { return };
    match orphans.iter_mut().find(|orphan| orphan.record.label == label) {
        Some(orphan) => orphan.record.claims.push(claim),
        None => orphans.push(Recorded { record: Record::of_port(label, claim), lines: Vec::new() }),
    }
}

/// Finds the kinds of publication that the ports are in.
pub fn find_all_kinds(socket: &mut NftSocket, orphans: &mut [Recorded]) -> Result<()> {
    if orphans.is_empty() {
        return Ok(());
    }
    let chains = socket.chains(&TABLE)?;
    orphans.iter_mut().try_for_each(|orphan| find_kinds(socket, &chains, &mut orphan.record))
}

impl Record {
    fn of_port(label: &str, claim: Claim) -> Record {
        let names: Vec<&str> = label.split('/').collect();
        let attachment = match names.as_slice() {
            [network, container, ifname] => Attachment::new(*network, *container, *ifname),
            _ => Attachment::new(label, "", ""),
        };
        let key = RecordKey::of(&attachment);
        Record { key, label: label.to_owned(), origin: None, jumps: Vec::new(), claims: vec![claim], heirs: Vec::new() }
    }
}

/// All ports, of those versions, at one address and at all, that there are kinds of among the table's chains.
fn ports(socket: &mut NftSocket, chains: &[ChainInfo]) -> Result<Vec<Element>> {
    let mut all = Vec::new();
    for (version, specific) in rules::both_versions() {
        if chains.iter().any(|chain| rules::is_kind_of(&chain.name, version, specific)) {
            all.extend(socket.elements(&TABLE, &rules::ports_map(version, specific))?);
        }
    }
    Ok(all)
}

/// Whether any port is there whose owner has none of these labels. What names no owner is nobody's.
pub fn has_others_ports(socket: &mut NftSocket, chains: &[ChainInfo], labels: &BTreeSet<&str>) -> Result<bool> {
    let is_others = |label: &str| names_owner(label) && !labels.contains(label);
    Ok(ports(socket, chains)?.iter().map(label_of).any(is_others))
}

/// Whether a label names a network, a container and an interface.
pub fn names_owner(label: &str) -> bool {
    let names: Vec<&str> = label.split('/').collect();
    names.len() == 3 && names.iter().all(|name| !name.is_empty())
}

/// The kinds of publication that the record's ports are in, which its lines may not name any more.
fn find_kinds(socket: &mut NftSocket, chains: &[ChainInfo], record: &mut Record) -> Result<()> {
    for (version, specific) in rules::both_versions() {
        let keys: Vec<_> = record
            .claims
            .iter()
            .filter(|claim| claim.version() == version && claim.address.is_some() == specific)
            .map(Claim::key)
            .collect();
        let is_named = record.jumps.iter().any(|jump| rules::is_kind_of(jump, version, specific));
        if keys.is_empty() || is_named {
            continue;
        }
        for chain in chains.iter().filter(|chain| rules::is_kind_of(&chain.name, version, specific)) {
            let set = rules::kind_set(&chain.name, version, specific);
            if socket.elements_at(&TABLE, &set, &keys)?.iter().any(Option::is_some) {
                record.jumps.push(chain.name.clone());
                break;
            }
        }
    }
    Ok(())
}

/// Whether this is the label of the attachment with this key.
pub fn is_of(label: &str, key: RecordKey) -> bool {
    let names: Vec<&str> = label.split('/').collect();
    let [network, container, ifname] = names.as_slice() else { return false };
    match network.rsplit_once('~') {
        Some((_, digits)) => key.to_string().ends_with(&format!("-{digits}")),
        None => RecordKey::of(&Attachment::new(*network, *container, *ifname)) == key,
    }
}

/// The network of a label, if its name is whole there.
pub fn network_of(label: &str) -> Option<&str> {
    let (network, _) = label.split_once('/')?;
    let name = network.rsplit_once('~').map_or(network, |(name, _)| name);
    (!name.contains('~')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_tells_its_owner_s_key_and_network() {
        let id = "0123456789abcdef".repeat(4);
        for (network, is_whole) in [("net", true), ("a-network-of-26-characters", true), (&*"n".repeat(100), false)] {
            let (own, other) =
                (Attachment::new(network, &id, "0123456789abcde"), Attachment::new(network, &id, "eth1"));
            assert!(is_of(&own.label(), RecordKey::of(&own)), "{}", own.label());
            assert!(!is_of(&own.label(), RecordKey::of(&other)), "{}", own.label());
            assert_eq!(network_of(&own.label()), is_whole.then_some(network));
        }
        assert!(!is_of("", RecordKey::of(&Attachment::new("", "", ""))));
    }
}
