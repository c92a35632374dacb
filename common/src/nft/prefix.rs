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

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_a_range_and_a_range_a_subnet() {
        for (address, len, first, last) in [
            ("10.1.2.3", 8, "10.0.0.0", "10.255.255.255"),
            ("10.1.2.3", 32, "10.1.2.3", "10.1.2.3"),
            ("10.1.2.3", 0, "0.0.0.0", "255.255.255.255"),
            ("fd00::1", 64, "fd00::", "fd00::ffff:ffff:ffff:ffff"),
            ("fd00::1", 128, "fd00::1", "fd00::1"),
            ("fd00::1", 0, "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(bounds(ip(address), len), (ip(first), ip(last)));
            assert_eq!(of_range(ip(first), ip(last)), Some(len));
            assert_eq!(of_mask(&mask(ip(address), len)), Some(len));
        }
        assert_eq!(bounds(ip("10.1.2.3"), 200), (ip("10.1.2.3"), ip("10.1.2.3")));
        assert_eq!(of_range(ip("10.0.0.1"), ip("10.0.0.2")), None);
        assert_eq!(of_range(ip("10.0.0.0"), ip("10.0.0.2")), None);
        assert_eq!(of_range(ip("10.0.0.1"), ip("fd00::")), None);
        assert_eq!(of_mask(&[0xff, 0, 0xff, 0]), None);
        assert_eq!(of_mask(&[0xfd, 0]), None);
    }
}
