//! Userdata: what nft keeps with an object for people. A list of type, length, value; comments end with a NUL.

use super::Set;
use super::model::{COMMENT_MAX, SetData};
use super::uapi::userdata;
use super::value::DataType;

/// Where a comment is cut: at a NUL, which would end it for every reader, and at the last character boundary within
/// what nft takes.
pub(super) fn comment_end(text: &str) -> usize {
    let mut end = text.find('\0').unwrap_or(text.len()).min(COMMENT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

/// A comment, cut to what nft takes.
pub(super) fn comment(kind: u8, text: &str) -> Vec<u8> {
    let text = text.get(..comment_end(text)).unwrap_or_default();
    let mut bytes = Vec::with_capacity(text.len() + 3);
    bytes.push(kind);
    bytes.push(u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The comment among an object's userdata.
pub(super) fn find_comment(kind: u8, mut bytes: &[u8]) -> Option<String> {
    while let [this, len, rest @ ..] = bytes {
        let (value, behind) = rest.split_at_checked(usize::from(*len))?;
        if *this == kind {
            let text = value.split(|b| *b == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = behind;
    }
    None
}

/// nft's BYTEORDER_HOST_ENDIAN and BYTEORDER_BIG_ENDIAN; a concatenation has none.
fn byte_order(types: &[DataType]) -> u32 {
    match types {
        [DataType::Ipv4Addr | DataType::Ipv6Addr | DataType::InetService | DataType::InetProto] => 2,
        [DataType::EtherAddr | DataType::EtherType] => 2,
        [_] => 1,
        _ => 0,
    }
}

/// What nft needs to print a set's keys and values: without it, names of interfaces come out empty.
pub(super) fn of_set(set: &Set) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    let mut put = |kind: u8, order: u32| {
        bytes.extend([kind, 4]);
        bytes.extend(order.to_ne_bytes());
    };
    put(userdata::SET_KEY_BYTE_ORDER, byte_order(&set.key));
    if let SetData::Values(types) = &set.data {
        put(userdata::SET_DATA_BYTE_ORDER, byte_order(types));
    }
    if let Some(text) = &set.comment {
        bytes.extend(comment(userdata::SET_COMMENT, text));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_comment_is_what_nft_writes() {
        // nft --debug=netlink add rule … comment "rule c"
        assert_eq!(comment(userdata::COMMENT, "rule c"), b"\x00\x07rule c\x00");
    }

    #[test]
    fn the_set_comment_is_found_behind_what_nft_puts_before_it() {
        // Of `map ports4 { type inet_proto . inet_service : verdict; comment "hi"; }` by nft 1.0.6: byte orders, typeof,
        // comment.
        let bytes = b"\x00\x04\x00\x00\x00\x00\x01\x04\x00\x00\x00\x00\x03\x08\x00\x04\x0d\x00\x00\x00\x01\x00\
                      \x06\x04\x00\x00\x00\x00\x07\x03hi\x00";
        assert_eq!(find_comment(userdata::SET_COMMENT, bytes).as_deref(), Some("hi"));
        assert_eq!(find_comment(99, bytes), None);
    }

    proptest! {
        #[test]
        fn comments_come_back_cut(text in any::<String>()) {
            let found = find_comment(0, &comment(0, &text)).unwrap();
            prop_assert!(text.starts_with(&found) && found.len() <= COMMENT_MAX);
            prop_assert!(found.len() > COMMENT_MAX - 4 || text.split('\0').next() == Some(&found));
        }

        #[test]
        fn any_userdata_is_read_without_panic(kind: u8, bytes: Vec<u8>) {
            let _ = find_comment(kind, &bytes);
        }
    }
}
