//! Reading netlink attributes: what the kernel returns.

use netlink_packet_core::NlasIterator;

/// The attributes in `bytes`: type and value. A broken one ends the list.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).filter_map(|attribute| {
        let (kind, len) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(4..len)?))
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
