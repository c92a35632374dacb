//! Netlink attributes: what the kernel returns, and what it is told.

use crate::cni::error::{Error, Result};

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

/// Says that an attribute has others in it.
const NESTED: u16 = 0x8000;

/// Words that there is room for from the beginning: more than most messages have.
const USUAL_WORDS: usize = 128;

/// Attributes for the kernel, one behind the other. Each begins at a word and is filled up to one.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u32>);

impl Attributes {
    /// None yet.
    pub(super) fn new() -> Attributes {
        Attributes(Vec::with_capacity(USUAL_WORDS))
    }

    /// As they stand in a message.
    pub(super) fn words(&self) -> &[u32] {
        &self.0
    }

    /// Their bytes.
    pub(super) fn len(&self) -> usize {
        self.0.len() * 4
    }

    /// Any bytes, at most 65,531.
    pub(super) fn value(&mut self, kind: u16, value: &[u8]) {
        let (words, rest) = value.as_chunks();
        self.0.push(head(kind, value.len()));
        self.0.extend(words.iter().map(|word| u32::from_ne_bytes(*word)));
        if !rest.is_empty() {
            self.rest(rest);
        }
    }

    /// A number, in network order.
    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.0.push(head(kind, 4));
        self.0.push(number.to_be());
    }

    /// A 64-bit number, in network order.
    pub(super) fn long(&mut self, kind: u16, number: u64) {
        self.value(kind, &number.to_be_bytes());
    }

    /// A string, with its NUL.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let (words, rest) = text.as_bytes().as_chunks();
        self.0.push(head(kind, text.len() + 1));
        self.0.extend(words.iter().map(|word| u32::from_ne_bytes(*word)));
        self.rest(rest);
    }

    /// Attributes within one.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes) -> Result<()>) -> Result<()> {
        let start = self.open();
        fill(self)?;
        self.close(start, kind)
    }

    /// From here on they are within one that [`Attributes::close`] ends.
    pub(super) fn open(&mut self) -> usize {
        self.0.push(0);
        self.0.len() - 1
    }

    /// Ends the one that began there.
    pub(super) fn close(&mut self, start: usize, kind: u16) -> Result<()> {
        let len = (self.0.len() - start - 1) * 4;
        if len > usize::from(u16::MAX) - 4 {
            return Err(Error::Internal { what: format!("{len} bytes for a netlink attribute, at most 65531 fit") });
        }
        if let Some(word) = self.0.get_mut(start) {
            *word = head(NESTED | kind, len);
        }
        Ok(())
    }

    /// Less than a word.
    fn rest(&mut self, bytes: &[u8]) {
        let mut word = [0; 4];
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.0.push(u32::from_ne_bytes(word));
    }
}

/// An attribute's length, these 4 bytes included, and its type.
fn head(kind: u16, len: usize) -> u32 {
    let ([len, other_len], [kind, other_kind]) = ((len as u16 + 4).to_ne_bytes(), kind.to_ne_bytes());
    u32::from_ne_bytes([len, other_len, kind, other_kind])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut all = Attributes::new();
        all.number(1, 258);
        let filled = all.nested(2, |within| {
            within.text(1, "abc");
            within.text(2, "abcd");
            within.value(3, &[7]);
            within.value(4, &[1, 2, 3, 4]);
            Ok(())
        });
        filled.unwrap();
        let bytes: Vec<u8> = all.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!((bytes.len(), all.len()), (8 + 4 + (8 + 12 + 8 + 8), bytes.len()));
        // What has others in it says so.
        assert_eq!(bytes.get(8..12), Some(&[40, 0, 2, 0x80][..]));
        let within = find(&bytes, 2).unwrap();
        assert_eq!((find_number(&bytes, 1), find_text(within, 1).as_deref()), (Some(258), Some("abc")));
        assert_eq!((find_text(within, 2).as_deref(), find(within, 2)), (Some("abcd"), Some(&b"abcd\0"[..])));
        assert_eq!((find(within, 3), find(within, 4)), (Some(&[7][..]), Some(&[1, 2, 3, 4][..])));
        assert_eq!(attributes(within).count(), 4);
    }

    #[test]
    fn what_is_longer_than_its_length_can_say_is_refused() {
        let of = |words: usize| {
            Attributes::new().nested(1, |all| {
                (0..words).for_each(|_| all.value(1, &[]));
                Ok(())
            })
        };
        assert!(of(65_532 / 4 - 1).is_ok());
        assert!(of(65_532 / 4).is_err());
    }

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
