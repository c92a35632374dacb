//! Reading netlink attributes: what the kernel returns.

/// Flags of an attribute's type: NLA_F_NESTED and NLA_F_NET_BYTEORDER (include/uapi/linux/netlink.h).
const TYPE_FLAGS: u16 = 0xc000;

/// The attributes in `bytes`: type and value. A broken one ends the list.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [len, other_len, kind, other_kind] = *rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([len, other_len]));
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([kind, other_kind]) & !TYPE_FLAGS, value))
    })
}

/// The first attribute of this type.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A string without its NUL.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// A string attribute.
pub(super) fn find_text(bytes: &[u8], kind: u16) -> Option<String> {
    find(bytes, kind).map(text)
}

/// nf_tables' numbers are in network order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// A number attribute.
pub(super) fn find_number(bytes: &[u8], kind: u16) -> Option<u32> {
    number(find(bytes, kind)?)
}

/// A 64-bit number attribute.
pub(super) fn find_long(bytes: &[u8], kind: u16) -> Option<u64> {
    find(bytes, kind)?.first_chunk().map(|b| u64::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, len: u16, value: &[u8]) -> Vec<u8> {
        [&len.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    }

    #[test]
    fn values_come_without_padding_and_types_without_flags() {
        let bytes = [attribute(0x8001, 7, b"abc\0"), attribute(2, 8, &[0, 0, 1, 0]), attribute(3, 4, b"")].concat();
        let found: Vec<(u16, &[u8])> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &b"abc"[..]), (2, &[0, 0, 1, 0][..]), (3, &[][..])]);
        assert_eq!((find_number(&bytes, 2), find_text(&bytes, 1).as_deref()), (Some(256), Some("abc")));
    }

    #[test]
    fn a_broken_one_ends_the_list() {
        let whole = attribute(1, 5, &[9, 0, 0, 0]);
        for broken in [attribute(2, 3, b""), attribute(2, 9, &[0; 4]), vec![8, 0, 2]] {
            let bytes = [whole.clone(), broken, whole.clone()].concat();
            let found: Vec<(u16, &[u8])> = attributes(&bytes).collect();
            assert_eq!(found.first(), Some(&(1, &[9u8][..])));
            assert!(found.len() < 3, "{found:?}");
        }
        // The last one needs no padding.
        assert_eq!(attributes(whole.get(..5).unwrap()).count(), 1);
    }
}
