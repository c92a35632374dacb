//! Values of conditions: what nft and iptables write alike.

use std::net::IpAddr;

use common::nft::{Element, IpVersion, Pattern, Selector, SetSource, Statement, Transport, Value};

/// Why something can't be translated; it always names what.
pub(super) type Refusal = String;

/// A test of `selector` against patterns of which one must match (negated: none).
pub(super) fn test(selector: Selector, negated: bool, patterns: Vec<Pattern>) -> Result<Statement, Refusal> {
    let mut patterns = without_overlaps(patterns);
    match patterns.len() {
        0 => Err(format!("{selector} needs a value")),
        1 => patterns
            .pop()
            .map(|pattern| Statement::Match { selector, negated, pattern })
            .ok_or_else(|| format!("{selector} needs a value")),
        _ => {
            let ranges = patterns.iter().any(|p| !matches!(p, Pattern::Is(_)));
            let elements = patterns.into_iter().map(|p| element(p, ranges)).collect::<Result<Vec<_>, _>>()?;
            Ok(Statement::InSet { selectors: vec![selector], negated, set: SetSource::Inline(elements) })
        }
    }
}

/// The same patterns, none within another or next to it: a set of the kernel's takes no key twice, and takes the end of
/// one range for the end of all that it lies in.
fn without_overlaps(patterns: Vec<Pattern>) -> Vec<Pattern> {
    let Some(mut bounded) = patterns.iter().map(|p| Some((bounds(p)?, p))).collect::<Option<Vec<_>>>() else {
        let mut different: Vec<Pattern> = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            if !different.contains(&pattern) {
                different.push(pattern);
            }
        }
        return different;
    };
    let listed = bounded.iter().all(|(_, pattern)| matches!(pattern, Pattern::Is(_)));
    bounded.sort_by_key(|((first, last), _)| (*first, std::cmp::Reverse(*last)));
    let mut merged: Vec<(u128, u128, Pattern)> = Vec::with_capacity(bounded.len());
    for ((first, last), pattern) in bounded {
        match merged.last_mut() {
            Some((_, end, _)) if last <= *end => {}
            Some((start, end, whole)) if !listed && first <= end.saturating_add(1) => {
                *end = last;
                *whole = range(pattern, *start, last);
            }
            _ => merged.push((first, last, pattern.clone())),
        }
    }
    merged.into_iter().map(|(_, _, pattern)| pattern).collect()
}

/// The first and the last of an address's or a port's values, as numbers.
fn bounds(pattern: &Pattern) -> Option<(u128, u128)> {
    let number = |value: &Value| match value {
        Value::V4(v4) => Some(v4.to_bits().into()),
        Value::V6(v6) => Some(v6.to_bits()),
        Value::Port(port) => Some((*port).into()),
        _ => None,
    };
    match pattern {
        Pattern::Is(value) => Some((number(value)?, number(value)?)),
        Pattern::Range(first, last) => Some((number(first)?, number(last)?)),
        Pattern::Prefix(address, len) => {
            let full = if address.is_ipv4() { 32 } else { 128 };
            let host = 1u128.checked_shl(full - u32::from(*len).min(full)).map_or(u128::MAX, |size| size - 1);
            let first = number(&(*address).into())? & !host;
            Some((first, first | host))
        }
        Pattern::Masked { .. } | Pattern::Begins(_) | Pattern::Any(_) => None,
    }
}

/// From one number to another, of the same type as this pattern. All come from values of the type, so all fit.
fn range(like: &Pattern, first: u128, last: u128) -> Pattern {
    let value = |number: u128| match like {
        Pattern::Is(Value::Port(_)) | Pattern::Range(Value::Port(_), _) => {
            Value::Port(u16::try_from(number).unwrap_or(u16::MAX))
        }
        Pattern::Is(Value::V4(_)) | Pattern::Range(Value::V4(_), _) | Pattern::Prefix(IpAddr::V4(_), _) => {
            Value::V4(u32::try_from(number).unwrap_or(u32::MAX).into())
        }
        _ => Value::V6(number.into()),
    };
    Pattern::Range(value(first), value(last))
}

/// In a set with ranges every element is one.
fn element(pattern: Pattern, as_range: bool) -> Result<Element, Refusal> {
    match pattern {
        Pattern::Is(value) if as_range => Ok(Element::range(value.clone(), value)),
        Pattern::Is(value) => Ok(Element::key([value])),
        Pattern::Range(first, last) => Ok(Element::range(first, last)),
        Pattern::Prefix(address, len) => Ok(Element::prefix(address, len)),
        Pattern::Begins(name) => Err(format!("\"{name}*\" can't stand in a list; give it alone")),
        Pattern::Masked { .. } | Pattern::Any(_) => Err("a masked value can't stand in a list".into()),
    }
}

/// An address of `version`, with a prefix length, a netmask, or a second address for a range.
pub(super) fn address(text: &str, version: IpVersion) -> Result<Pattern, Refusal> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (one_address(first, version)?, one_address(last, version)?);
        if first > last {
            return Err(format!("\"{text}\": the range ends before it begins"));
        }
        return Ok(Pattern::Range(first.into(), last.into()));
    }
    let Some((network, mask)) = text.split_once('/') else {
        return one_address(text, version).map(|a| Pattern::Is(a.into()));
    };
    let network = one_address(network, version)?;
    let full = if network.is_ipv4() { 32 } else { 128 };
    let len = match mask.parse::<u8>() {
        Ok(len) if len <= full => len,
        _ => netmask(mask, version).ok_or_else(|| format!("\"{mask}\" is no prefix length or contiguous netmask"))?,
    };
    Ok(if len == full { Pattern::Is(network.into()) } else { Pattern::Prefix(network, len) })
}

fn one_address(text: &str, version: IpVersion) -> Result<IpAddr, Refusal> {
    match text.parse::<IpAddr>() {
        Ok(address) if IpVersion::of(address) == version => Ok(address),
        Ok(_) => Err(format!("\"{text}\" is an address of the other version of IP, so no packet could ever match")),
        Err(_) => Err(format!("\"{text}\" is no address; names aren't looked up")),
    }
}

/// The prefix length of a netmask whose ones are all in front.
fn netmask(text: &str, version: IpVersion) -> Option<u8> {
    let (bits, width) = match text.parse().ok()? {
        IpAddr::V4(mask) if version == IpVersion::V4 => (u128::from(mask.to_bits()) << 96, 32),
        IpAddr::V6(mask) if version == IpVersion::V6 => (mask.to_bits(), 128),
        _ => return None,
    };
    let len = bits.leading_ones();
    (bits.checked_shl(len).unwrap_or(0) == 0 && len <= width).then(|| u8::try_from(len).ok())?
}

/// A port, or two with `separator` between them; iptables leaves out the first or the last port there is.
pub(super) fn ports(text: &str, separator: char, open_ended: bool) -> Result<Pattern, Refusal> {
    let port = |text: &str, default: u16| match text.parse::<u16>() {
        Ok(port) => Ok(port),
        Err(_) if text.is_empty() && open_ended => Ok(default),
        Err(_) => Err(format!("\"{text}\" is no port number; names of services aren't looked up")),
    };
    let Some((first, last)) = text.split_once(separator) else {
        return port(text, 0)
            .and_then(|p| if text.is_empty() { Err("a port is missing".into()) } else { Ok(p) })
            .map(|p| Pattern::Is(Value::Port(p)));
    };
    let (first, last) = (port(first, 0)?, port(last, u16::MAX)?);
    if first > last {
        return Err(format!("\"{text}\": the range ends before it begins"));
    }
    Ok(Pattern::Range(Value::Port(first), Value::Port(last)))
}

/// An interface's name; one that ends in `wildcard` stands for all that begin so.
pub(super) fn interface(text: &str, wildcard: char) -> Result<Pattern, Refusal> {
    let (name, begins) = match text.strip_suffix(wildcard) {
        Some(name) => (name, true),
        None => (text, false),
    };
    // IFNAMSIZ is 16 with the NUL.
    let is_name = name.len() <= 15 && !name.chars().any(|c| c.is_whitespace() || matches!(c, '/' | '*' | '"' | '\0'));
    match (is_name, begins) {
        (true, true) if !name.is_empty() => Ok(Pattern::Begins(name.to_owned())),
        (true, false) if !name.is_empty() => Ok(Pattern::Is(Value::Ifname(name.to_owned()))),
        _ => Err(format!("\"{text}\" is no interface name")),
    }
}

/// A transport protocol by name or number.
pub(super) fn protocol(text: &str) -> Result<u8, Refusal> {
    let known =
        (0..=u8::MAX).find(|n| common::nft::value::protocol_name(*n).is_some_and(|p| p.eq_ignore_ascii_case(text)));
    match known.or_else(|| text.parse().ok()) {
        Some(number) => Ok(number),
        None => Err(format!("\"{text}\" is no protocol that is known here; give its number")),
    }
}

/// The transport with ports that has this number.
pub(super) fn transport(number: u8) -> Option<Transport> {
    use Transport::{Dccp, Sctp, Tcp, Udp, Udplite};
    [Tcp, Udp, Dccp, Sctp, Udplite].into_iter().find(|t| *t as u8 == number)
}

/// A number, in decimal or with 0x in hexadecimal.
pub(super) fn number(text: &str) -> Result<u32, Refusal> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("\"{text}\" is no number of 32 bits"))
}

/// States of a connection, with commas between them.
pub(super) fn states(text: &str) -> Result<Pattern, Refusal> {
    let bit = |name: &str| match name.trim().to_ascii_lowercase().as_str() {
        "invalid" => Ok(Value::INVALID),
        "new" => Ok(Value::NEW),
        "established" => Ok(Value::ESTABLISHED),
        "related" => Ok(Value::RELATED),
        "untracked" => Ok(Value::UNTRACKED),
        other => Err(format!("\"{other}\" is no state of a connection that is known here")),
    };
    let bits = text.split(',').map(bit).try_fold(0, |all, bit| bit.map(|b| all | b))?;
    Ok(Pattern::Any(Value::CtState(bits)))
}

/// A type of address in the routing tables, by nft's and iptables' names.
pub(super) fn address_type(text: &str) -> Result<Pattern, Refusal> {
    let kind = (0..12)
        .map(Value::AddrType)
        .find(|v| v.to_string().eq_ignore_ascii_case(text))
        .ok_or_else(|| format!("\"{text}\" is no type of address that is known here"))?;
    Ok(Pattern::Is(kind))
}

/// A packet's type on its link, by nft's and iptables' names.
pub(super) fn packet_type(text: &str) -> Result<Pattern, Refusal> {
    let kind = match text.to_ascii_lowercase().as_str() {
        "host" | "unicast" => 0,
        "broadcast" => 1,
        "multicast" => 2,
        "other" | "otherhost" => 3,
        _ => return Err(format!("\"{text}\" is no type of packet that is known here")),
    };
    Ok(Pattern::Is(Value::PktType(kind)))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    /// Whether a statement's test holds for a number, as the kernel would say; its ranges must not overlap or touch.
    fn holds(statement: &Statement, number: u128) -> bool {
        let within = |pattern: &Pattern| bounds(pattern).is_some_and(|(first, last)| (first..=last).contains(&number));
        match statement {
            Statement::Match { negated, pattern, .. } => within(pattern) != *negated,
            Statement::InSet { negated, set: SetSource::Inline(elements), .. } => {
                let as_patterns: Vec<Pattern> = elements
                    .iter()
                    .map(|e| match &e.upper {
                        Some(upper) => Pattern::Range(e.key[0].clone(), upper.clone()),
                        None => Pattern::Is(e.key[0].clone()),
                    })
                    .collect();
                let mut all: Vec<_> = as_patterns.iter().filter_map(bounds).collect();
                all.sort_unstable();
                let are_ranges = elements.iter().any(|e| e.upper.is_some());
                assert!(all.windows(2).all(|pair| pair[0].1 + u128::from(are_ranges) < pair[1].0), "{statement}");
                as_patterns.iter().any(within) != *negated
            }
            other => panic!("{other}"),
        }
    }

    fn ports_pattern() -> impl Strategy<Value = Pattern> {
        let edge = prop_oneof![any::<u16>(), 0u16..4, u16::MAX - 4..=u16::MAX, 1000u16..1010];
        (edge.clone(), edge).prop_map(|(a, b)| match a == b {
            true => Pattern::Is(Value::Port(a)),
            false => Pattern::Range(Value::Port(a.min(b)), Value::Port(a.max(b))),
        })
    }

    fn network() -> impl Strategy<Value = Pattern> {
        let address = prop_oneof![any::<u32>(), 0u32..4, u32::MAX - 4..=u32::MAX, 0x0a00_0000u32..0x0a00_0200];
        (address, 0u8..=32).prop_map(|(address, len)| match len {
            32 => Pattern::Is(Value::V4(address.into())),
            len => Pattern::Prefix(Ipv4Addr::from(address).into(), len),
        })
    }

    proptest! {
        #[test]
        fn a_list_of_ports_holds_for_those_in_it(
            list in proptest::collection::vec(ports_pattern(), 1..6), negated: bool, ports: [u16; 8],
        ) {
            let statement = test(Selector::ThSport, negated, list.clone()).unwrap();
            let edges = list.iter().filter_map(bounds).flat_map(|(a, b)| [a, b, a.saturating_sub(1), (b + 1).min(0xffff)]);
            for port in edges.chain(ports.map(u128::from)).chain([0, 0xffff]) {
                let listed = list.iter().filter_map(bounds).any(|(first, last)| (first..=last).contains(&port));
                prop_assert_eq!(holds(&statement, port), listed != negated, "{} for {}", statement, port);
            }
        }

        #[test]
        fn a_list_of_networks_holds_for_those_in_it(list in proptest::collection::vec(network(), 1..6), negated: bool) {
            let statement = test(Selector::Saddr(IpVersion::V4), negated, list.clone()).unwrap();
            let last = u128::from(u32::MAX);
            let edges = list.iter().filter_map(bounds).flat_map(|(a, b)| [a, b, a.saturating_sub(1), (b + 1).min(last)]);
            for address in edges.chain([0, last]) {
                let listed = list.iter().filter_map(bounds).any(|(first, last)| (first..=last).contains(&address));
                prop_assert_eq!(holds(&statement, address), listed != negated, "{} for {}", statement, address);
            }
        }
    }

    #[test]
    fn bounds_of_a_prefix_are_its_first_and_last_address() {
        let of = |text: &str| {
            bounds(&address(text, if text.contains(':') { IpVersion::V6 } else { IpVersion::V4 }).unwrap())
        };
        assert_eq!(of("0.0.0.0/0"), Some((0, u32::MAX.into())));
        assert_eq!(of("192.0.2.77/24"), Some((0xc000_0200, 0xc000_02ff)));
        assert_eq!(of("::/0"), Some((0, u128::MAX)));
        assert_eq!(of("ffff::/16").map(|(_, last)| last), Some(u128::MAX));
    }
}
