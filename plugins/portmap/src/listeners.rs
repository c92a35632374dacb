//! Processes of the host that listen on a published port: from now on, what comes there goes to the container.

use std::collections::BTreeSet;

use common::Result;
use common::sockets::{self, Listener};

use crate::config::Protocol;
use crate::rules::Claim;

/// Warns of them. It is no error, because it is no conflict that the kernel knows: the reference takes the port silently.
pub fn warn_of(claims: &[Claim]) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let of_protocol: Vec<&Claim> = claims.iter().filter(|c| c.protocol == protocol).collect();
        if of_protocol.is_empty() {
            continue;
        }
        match in_the_way(protocol, &of_protocol) {
            Ok(listeners) => listeners.iter().for_each(|l| warn(protocol, l)),
            Err(error) => log::info!("whether a process listens on a published port is unknown: {error}"),
        }
    }
}

fn in_the_way(protocol: Protocol, claims: &[&Claim]) -> Result<Vec<Listener>> {
    let ports: BTreeSet<u16> = claims.iter().map(|c| c.port).collect();
    let mut listeners = sockets::listeners(protocol.number())?;
    listeners.retain(|listener| {
        ports.contains(&listener.address.port())
            && claims.iter().any(|c| listener.covers(c.address, c.target.is_ipv4(), c.port))
    });
    Ok(listeners)
}

fn warn(protocol: Protocol, listener: &Listener) {
    let process = listener.process().unwrap_or_else(|| "a process".into());
    log::warn!(
        "{process} listens on {protocol} {}; what comes to that port goes to the container instead, as long as it is \
         published",
        listener.address
    );
}
