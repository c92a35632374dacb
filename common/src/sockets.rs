//! Sockets of this host's own processes: who listens on a port.
//!
//! The protocol is sock_diag(7), which can be asked for listening sockets alone; `/proc/net/tcp` would list every
//! connection of the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::libc;

use crate::cni::error::Result;
use crate::netlink::{Asker, message};

/// SOCK_DIAG_BY_FAMILY (include/uapi/linux/sock_diag.h)
const BY_FAMILY: u16 = 20;

/// A socket that waits for whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// The number of its inode, by which `/proc/PID/fd` knows it.
    pub inode: u32,
}

impl Listener {
    /// Whether packets to this port of `address` (of all addresses, if it is none) could be for it.
    pub fn covers(&self, address: Option<IpAddr>, is_v4: bool, port: u16) -> bool {
        // A socket at `::` mostly takes IPv4 too (ipv6(7), IPV6_V6ONLY).
        let of_version = self.address.is_ipv4() == is_v4 || self.address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let of_address = address.is_none_or(|a| self.address.ip().is_unspecified() || self.address.ip() == a);
        of_version && of_address && self.address.port() == port
    }

    /// The process that has it open, as `name (pid)`, if there is one that can be seen.
    ///
    /// This looks through all processes' descriptors: only for a message.
    pub fn process(&self) -> Option<String> {
        let wanted = format!("socket:[{}]", self.inode);
        for process in std::fs::read_dir("/proc").ok()?.flatten() {
            let name = process.file_name();
            let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
            let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
            let has_it = |fd: std::fs::DirEntry| {
                std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str().to_str() == Some(&wanted))
            };
            if descriptors.flatten().any(has_it) {
                let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("{} ({pid})", comm.trim_end()));
            }
        }
        None
    }
}

/// The sockets that wait for connections (TCP) or aren't connected (UDP), of both versions of IP.
pub fn listeners(protocol: u8) -> Result<Vec<Listener>> {
    // TCP_LISTEN, and TCP_CLOSE, which is what an unconnected UDP socket is in (include/net/tcp_states.h).
    let states: u32 = if i32::from(protocol) == libc::IPPROTO_TCP { 1 << 10 } else { 1 << 7 };
    let asker = Asker::open(NETLINK_SOCK_DIAG, "this host's sockets")?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // struct inet_diag_req_v2: family, protocol, no extensions, states, an empty struct inet_diag_sockid.
        let mut query = vec![family as u8, protocol, 0, 0];
        query.extend(states.to_ne_bytes());
        query.extend([0; 48]);
        asker.send(&message(BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &query), "list")?;
        asker.dumped(&mut |payload| {
            found.extend(listener(payload));
            Ok(())
        })?;
    }
    Ok(found)
}

/// struct inet_diag_msg: family, state, timer, retransmissions; sockid: source port at 4, source address at 8; inode at
/// 68.
fn listener(bytes: &[u8]) -> Option<Listener> {
    let address = bytes.get(8..24)?;
    let ip = match i32::from(*bytes.first()?) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?)),
        _ => IpAddr::V6(Ipv6Addr::from(*address.first_chunk::<16>()?)),
    };
    let port = u16::from_be_bytes(*bytes.get(4..6)?.first_chunk()?);
    let inode = u32::from_ne_bytes(*bytes.get(68..72)?.first_chunk()?);
    Some(Listener { address: SocketAddr::new(ip, port), inode })
}
