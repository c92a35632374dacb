//! Values of conditions: what nft and iptables write alike.

use std::net::IpAddr;

use common::nft::{Element, IpVersion, Pattern, Selector, SetSource, Statement, Transport, Value};

/// Why something can't be translated; it always names what.
pub(super) type Refusal = String;

/// A test of `selector` against patterns of which one must match (negated: none).
pub(super) fn test(selector: Selector, negated: bool, mut patterns: Vec<Pattern>) -> Result<Statement, Refusal> {
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
