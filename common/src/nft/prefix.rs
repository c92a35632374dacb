//! Subnets as ranges and masks.

use std::net::IpAddr;

/// First and last address of a subnet; a prefix longer than the address is the address alone.
pub(super) fn bounds(address: IpAddr, prefix_len: u8) -> (IpAddr, IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
            let first = v4.to_bits() & !host;
            (IpAddr::V4(first.into()), IpAddr::V4((first | host).into()))
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
            let first = v6.to_bits() & !host;
            (IpAddr::V6(first.into()), IpAddr::V6((first | host).into()))
        }
    }
}

/// The prefix length, if a range is exactly one subnet.
pub(super) fn of_range(first: IpAddr, last: IpAddr) -> Option<u8> {
    let (bits, width) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits() ^ b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits(), 128),
        _ => return None,
    };
    let prefix_len = u8::try_from(width - (128 - bits.leading_zeros())).ok()?;
    (bounds(first, prefix_len) == (first, last)).then_some(prefix_len)
}

/// The bytes of a netmask.
pub(super) fn mask(address: IpAddr, prefix_len: u8) -> Vec<u8> {
    let bytes = if address.is_ipv4() { 4 } else { 16 };
    (0..bytes)
        .map(|i| 0xffu8.checked_shl(8 - u32::from(prefix_len.saturating_sub(i * 8).min(8))).unwrap_or(0))
        .collect()
}

/// The prefix length of a netmask; none if its bits have gaps.
pub(super) fn of_mask(mask: &[u8]) -> Option<u8> {
    let mut ones = 0u8;
    let mut ended = false;
    for byte in mask {
        let here = byte.leading_ones();
        if byte.count_ones() != here || (ended && here > 0) {
            return None;
        }
        ended |= here < 8;
        ones = ones.checked_add(u8::try_from(here).ok()?)?;
    }
    Some(ones)
}
