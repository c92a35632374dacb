//! Ports as people write them: `8080:80/tcp`, `192.0.2.1:5353:53/udp`, `20000-20999:1000-1999/tcp`.
//!
//! A record's lines hold an attachment's ports so, behind the container's address: a container with a thousand ports in
//! a row needs one line.

use std::fmt::{self, Write};
use std::net::IpAddr;

use crate::config::Protocol;
use crate::rules::Claim;

/// Ports in a row that lead to ports in a row, or all to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    first: Claim,
    last_port: u16,
    last_target_port: u16,
}

impl Publication {
    /// Whether the claim is the next of this row; then it is part of it.
    fn takes(&mut self, next: &Claim) -> bool {
        let Publication { first, last_port, last_target_port } = *self;
        let same_kind = (first.address, first.protocol, first.target) == (next.address, next.protocol, next.target);
        let to_one = last_target_port == first.target_port && next.target_port == first.target_port;
        let step = u32::from(next.target_port) == u32::from(last_target_port) + 1;
        let in_step = last_target_port - first.target_port == last_port - first.port && step;
        if !same_kind || u32::from(next.port) != u32::from(last_port) + 1 || !(to_one || in_step) {
            return false;
        }
        (self.last_port, self.last_target_port) = (next.port, next.target_port);
        true
    }

    fn claims(self) -> impl Iterator<Item = Claim> {
        let Publication { first, last_port, last_target_port } = self;
        let step = u16::from(last_target_port != first.target_port);
        (first.port..=last_port).map(move |port| Claim {
            port,
            target_port: first.target_port.saturating_add(step * (port - first.port)),
            ..first
        })
    }

    /// Reads what is printed, of the container at `target`.
    fn read(text: &str, target: IpAddr) -> Option<Publication> {
        let (text, protocol) = text.rsplit_once('/')?;
        let protocol = Protocol::ALL.into_iter().find(|p| p.name() == protocol)?;
        let (text, target_ports) = text.rsplit_once(':')?;
        let (address, ports) = match text.rsplit_once(':') {
            Some((address, ports)) => (Some(address.trim_matches(['[', ']']).parse().ok()?), ports),
            None => (None, text),
        };
        let ((port, last_port), (target_port, last_target_port)) = (row(ports)?, row(target_ports)?);
        let length = last_port.checked_sub(port)?;
        let target_length = last_target_port.checked_sub(target_port)?;
        let first = Claim { address, protocol, port, target, target_port };
        (target_length == 0 || target_length == length).then_some(Publication { first, last_port, last_target_port })
    }
}

fn row(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

impl fmt::Display for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Publication { first, last_port, last_target_port } = self;
        match first.address {
            None => {}
            Some(IpAddr::V4(v4)) => write!(f, "{v4}:")?,
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]:")?,
        }
        write!(f, "{}", first.port)?;
        if *last_port != first.port {
            write!(f, "-{last_port}")?;
        }
        write!(f, ":{}", first.target_port)?;
        if *last_target_port != first.target_port {
            write!(f, "-{last_target_port}")?;
        }
        write!(f, "/{}", first.protocol)
    }
}

/// The claims as lines of at most `most` bytes, each beginning with the container's address.
pub fn lines(claims: &[Claim], most: usize) -> Vec<String> {
    let mut sorted = claims.to_vec();
    sorted.sort_by_key(|c| (c.target, c.address, c.protocol, c.port));
    let mut rows: Vec<Publication> = Vec::new();
    for claim in &sorted {
        if !rows.last_mut().is_some_and(|row| row.takes(claim)) {
            rows.push(Publication { first: *claim, last_port: claim.port, last_target_port: claim.target_port });
        }
    }
    let mut lines: Vec<String> = Vec::new();
    let mut target = None;
    for row in rows {
        let text = row.to_string();
        match lines.last_mut().filter(|line| target == Some(row.first.target) && line.len() + 1 + text.len() <= most) {
            Some(line) => {
                let _ = write!(line, " {text}");
            }
            None => lines.push(format!("{} {text}", row.first.target)),
        }
        target = Some(row.first.target);
    }
    lines
}

/// The claims that a line stands for; what isn't one is left out.
pub fn read(line: &str) -> Vec<Claim> {
    let mut words = line.split(' ');
    let Some(target) = words.next().and_then(|word| word.parse().ok()) else { return Vec::new() };
    words.filter_map(|word| Publication::read(word, target)).flat_map(Publication::claims).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(address: Option<&str>, port: u16, target: &str, target_port: u16) -> Claim {
        let address = address.map(|a| a.parse().unwrap());
        Claim { address, protocol: Protocol::Tcp, port, target: target.parse().unwrap(), target_port }
    }

    fn sorted(mut claims: Vec<Claim>) -> Vec<Claim> {
        claims.sort();
        claims
    }

    fn read_all(lines: &[String]) -> Vec<Claim> {
        sorted(lines.iter().flat_map(|line| read(line)).collect())
    }

    #[test]
    fn ports_in_a_row_are_one_word() {
        let mut claims: Vec<Claim> = (0..1000).map(|i| claim(None, 20000 + i, "10.88.0.2", 1000 + i)).collect();
        claims.extend((0..3).map(|i| claim(None, 8080 + i, "10.88.0.2", 80)));
        claims.push(claim(Some("192.0.2.1"), 8080, "10.88.0.2", 80));
        claims.push(claim(Some("2001:db8::1"), 8080, "fd00:88::2", 80));
        assert_eq!(
            lines(&claims, 120),
            [
                "10.88.0.2 8080-8082:80/tcp 20000-20999:1000-1999/tcp 192.0.2.1:8080:80/tcp",
                "fd00:88::2 [2001:db8::1]:8080:80/tcp",
            ]
        );
        assert_eq!(read_all(&lines(&claims, 120)), sorted(claims));
    }

    #[test]
    fn what_does_not_go_on_begins_anew() {
        let claims = [(1, 1), (2, 2), (3, 2), (4, 3), (6, 5), (65534, 65535), (65535, 1)]
            .map(|(port, target_port)| claim(None, port, "10.88.0.2", target_port));
        let expected = "10.88.0.2 1-2:1-2/tcp 3-4:2-3/tcp 6:5/tcp 65534:65535/tcp 65535:1/tcp";
        assert_eq!(lines(&claims, 120), [expected]);
        assert_eq!(read(expected), claims);
    }

    #[test]
    fn garbage_is_no_claim() {
        for line in [
            "",
            "x",
            "10.88.0.2",
            "10.88.0.2 ",
            "10.88.0.2 80",
            "10.88.0.2 80/tcp",
            "10.88.0.2 80:80/icmp",
            "10.88.0.2 2-1:80/tcp",
            "10.88.0.2 1-5:80-82/tcp",
            "10.88.0.2 70000:80/tcp",
            "10.88.0.2 x:80:80/tcp",
            "since 2026-10-02T12:00:00Z boot 1a2b3c4d",
        ] {
            assert_eq!(read(line), [], "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_claims_come_back_from_lines_that_are_short(
            ports in proptest::collection::btree_map((0..4u8, 1..=u16::MAX), 1..=u16::MAX, 0..200),
        ) {
            let claims: Vec<Claim> = ports
                .into_iter()
                .map(|((kind, port), target)| match kind {
                    0 => claim(None, port, "10.88.0.2", target),
                    1 => claim(Some("255.255.255.255"), port, "10.88.0.2", port),
                    2 => claim(None, port, "fd00::2", 80),
                    _ => claim(Some("2001:db8:1111:2222:3333:4444:5555:6666"), port, "fd00::2", target),
                })
                .collect();
            let lines = lines(&claims, 120);
            proptest::prop_assert!(lines.iter().all(|line| line.len() <= 120), "{lines:?}");
            proptest::prop_assert_eq!(read_all(&lines), sorted(claims));
        }
    }
}
