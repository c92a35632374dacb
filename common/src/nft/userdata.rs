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
