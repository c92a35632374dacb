//! Elements in our sets that nobody's plan has put there: a stranger's, or an old container's that had the same interface.

use std::collections::HashSet;

use common::nft::{Element, NftSocket, Value};
use common::{Difference, Result};

use crate::plan::Share;
use crate::policies::Strangers;
use crate::record::{Placed, place_name};
use crate::rules::{BRIDGE_POLICIES, PORT_GUARDS, PortGuard, TABLE};

/// What stands at an interface of the attachment's though its plan has nothing there.
pub fn at_interfaces(socket: &mut NftSocket, share: &Share) -> Result<Vec<Placed>> {
    let mut places: Vec<Placed> = Vec::new();
    for (guard, interface) in PORT_GUARDS.iter().flat_map(|g| share.interfaces.iter().map(move |i| (g, i))) {
        if !share.guards.iter().any(|(planned, ports)| planned == guard && ports.contains(interface)) {
            let stands = guard.elements(interface, &[]).into_iter();
            places.extend(stands.map(|(set, element)| (guard.table.clone(), set, element)));
        }
    }
    let asked: Vec<_> = places.iter().map(|(table, set, element)| (table, set, element.key.as_slice())).collect();
    let found = socket.elements_in(&asked)?;
    Ok(places.into_iter().zip(found).filter_map(|(place, found)| found.map(|_| place)).collect())
}

/// Addresses that may be used at an interface of the attachment's though they are none of its own. All elements of the
/// sets are looked through.
pub fn of_sources(socket: &mut NftSocket, share: &Share) -> Result<Vec<Placed>> {
    let mut strays = Vec::new();
    for guard in PORT_GUARDS {
        let planned = share.guards.iter().filter(|(planned, _)| *planned == guard).flat_map(|(_, ports)| ports);
        let at: HashSet<&String> = planned.chain(&share.interfaces).collect();
        let own: HashSet<String> = share.own_elements().iter().map(place_name).collect();
        for set in guard.source_sets() {
            for found in socket.elements(&guard.table, &set)? {
                let is_here = matches!(found.key.first(), Some(Value::Ifname(port)) if at.contains(port));
                let place = (guard.table.clone(), set.clone(), found);
                if is_here && !own.contains(&place_name(&place)) {
                    strays.push(place);
                }
            }
        }
    }
    Ok(strays)
}

/// The same without those of whoever has taken the interface over since, and will give it back.
pub fn unshared_sources(socket: &mut NftSocket, share: &Share) -> Result<Vec<Placed>> {
    let own = share.attachment.label();
    let mut strays = Vec::new();
    for (table, set, found) in of_sources(socket, share)? {
        let guard = PORT_GUARDS.into_iter().find(|guard| guard.table == table && !guard.source_sets().is_empty());
        let port = guard.and_then(|guard| Some((guard.port_set(), found.key.first()?.clone())));
        let holder = match port {
            Some((ports, port)) => socket.element(&table, &ports, &[port])?.and_then(|element| element.comment),
            None => None,
        };
        if holder.is_none() || holder.as_ref() == Some(&own) || holder != found.comment {
            strays.push((table, set, found));
        }
    }
    Ok(strays)
}

/// Whether one of these is an interface at which only some addresses may be used.
pub fn by_source(places: &[Placed]) -> bool {
    let is_of = |guard: &PortGuard, (table, set, _): &Placed| {
        !guard.source_sets().is_empty() && guard.table == *table && guard.ports == set.name
    };
    let is_port = |place: &Placed| PORT_GUARDS.iter().any(|guard| is_of(guard, place));
    places.iter().any(is_port)
}

/// Bridges that are restricted though no attachment needs it.
pub fn of_policies(socket: &mut NftSocket, share: &Share) -> Result<Vec<Placed>> {
    let (mut strays, mut strangers) = (Vec::new(), Strangers::default());
    for policy in BRIDGE_POLICIES {
        // The sets are those that any bridge is put into.
        for (set, _) in policy.elements("") {
            for found in socket.elements(&TABLE, &set)? {
                let bridge = of_bridge(&found);
                let is_own = share.policy.as_ref().is_some_and(|(p, b)| *p == policy && Some(b.as_str()) == bridge);
                let is_needed = match bridge {
                    Some(_) if is_own => true,
                    Some(bridge) => strangers.is_needed(socket, policy, bridge)?,
                    None => false,
                };
                if !is_needed {
                    strays.push((TABLE, set.clone(), found));
                }
            }
        }
    }
    Ok(strays)
}

/// The bridge that an element of a policy is about: the only one that it names.
fn of_bridge(element: &Element) -> Option<&str> {
    let (first, rest) = element.key.split_first()?;
    match first {
        Value::Ifname(name) if rest.iter().all(|other| other == first) => Some(name),
        _ => None,
    }
}

/// What CHECK says of one.
pub fn difference((table, set, element): Placed) -> Difference {
    let object = format!("element of {} {} of table {table}", set.keyword(), set.name);
    Difference::other(object, "no such element: nobody needs it", element.to_string())
}
