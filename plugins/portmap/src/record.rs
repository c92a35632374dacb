//! Records: what each attachment owns, as the kernel holds it.

use common::nft::{ChainInfo, Element, NftSocket, Set};
use common::{Attachment, Result};

use crate::origin::Origin;
use crate::rules::{self, Claim, RECORD_PREFIX, TABLE};

/// A record as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The chain's name.
    pub name: String,
    /// The owner's label.
    pub label: String,
    /// Since when, and how to tell whether the owner is alive.
    pub origin: Option<Origin>,
    /// The chains of shared things it counts in.
    pub jumps: Vec<String>,
    /// The ports.
    pub claims: Vec<Claim>,
}

impl Recorded {
    /// The record of this name, if there is one.
    pub fn read(socket: &mut NftSocket, name: &str) -> Result<Option<Recorded>> {
        match socket.chain(&TABLE, name)? {
            Some(chain) => Recorded::of(socket, chain).map(Some),
            None => Ok(None),
        }
    }

    /// The record that is this chain.
    pub fn of(socket: &mut NftSocket, chain: ChainInfo) -> Result<Recorded> {
        let mut recorded = Recorded {
            label: chain.comment.unwrap_or_default(),
            name: chain.name,
            origin: None,
            jumps: Vec::new(),
            claims: Vec::new(),
        };
        for info in socket.rules(&TABLE, &recorded.name)? {
            let Some(rule) = &info.rule else { continue };
            match rules::jump_target(rule) {
                Some(rules::ATTACHMENTS) => recorded.origin = info.comment.as_deref().and_then(Origin::read),
                Some(shared) => recorded.jumps.push(shared.to_owned()),
                None => recorded.claims.extend(Claim::from_record(rule)),
            }
        }
        Ok(recorded)
    }

    /// The record of the owner that an element names, if it can be found.
    pub fn of_label(socket: &mut NftSocket, label: &str) -> Result<Option<Recorded>> {
        if let [network, container, ifname] = label.split('/').collect::<Vec<_>>().as_slice() {
            let name = rules::record_name(&Attachment::new(*network, *container, *ifname));
            if let Some(recorded) = Recorded::read(socket, &name)? {
                return Ok(Some(recorded));
            }
        }
        // A label that had to be shortened does not give the name.
        let is_it = |c: &ChainInfo| c.name.starts_with(RECORD_PREFIX) && c.comment.as_deref() == Some(label);
        match socket.chains(&TABLE)?.into_iter().find(is_it) {
            Some(chain) => Recorded::of(socket, chain).map(Some),
            None => Ok(None),
        }
    }

    /// All its elements, set by set.
    pub fn elements(&self) -> Vec<(Set, Vec<Element>)> {
        rules::elements(&self.label, &self.claims, &self.jumps)
    }
}
