//! What the kernel's virtual machine runs: the loads, comparisons and actions that a rule is compiled to, and that the
//! kernel returns when it is asked what it holds.

use super::value::Value;
use super::{Element, Verdict};
use crate::cni::error::Result;

/// A 4-byte register by its number among the sixteen (NFT_REG32_00 is 0). The kernel and nft call every fourth by its
/// old 16-byte name (NFT_REG_1 … 4); the two names are one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(pub(super) u8);

impl Register {
    /// The first of all.
    pub(super) const FIRST: Register = Register(0);

    /// Bytes of all registers together.
    pub(super) const ALL_BYTES: usize = 64;

    /// The number nft uses: old names where there is one.
    pub(super) const fn number(self) -> u32 {
        let n = self.0 as u32;
        if n.is_multiple_of(4) { n / 4 + 1 } else { n + 8 }
    }

    /// From either name; NFT_REG_VERDICT (0) is none of them.
    pub(super) fn from_number(number: u32) -> Option<Register> {
        match number {
            1..=4 => u8::try_from((number - 1) * 4).ok().map(Register),
            8..=23 => u8::try_from(number - 8).ok().map(Register),
            _ => None,
        }
    }
}

/// How `cmp` and `range` compare (enum nft_cmp_ops).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Comparison {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

impl Comparison {
    pub(super) fn from_number(number: u32) -> Option<Comparison> {
        use Comparison::{AtLeast, AtMost, Equal, NotEqual};
        [Equal, NotEqual, AtMost, AtLeast].into_iter().find(|c| *c as u32 == number)
    }

    pub(super) const fn equal_unless(negated: bool) -> Comparison {
        if negated { Comparison::NotEqual } else { Comparison::Equal }
    }
}

/// Where a value is loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// NFT_META_…
    Meta(u32),
    /// NFT_PAYLOAD_…_HEADER, offset, length
    Payload { base: u32, offset: u32, len: u32 },
    /// NFT_CT_…, and IP_CT_DIR_… for what both directions have
    Ct { key: u32, direction: Option<u8> },
    /// NFT_FIB_RESULT_…, NFTA_FIB_F_…
    Fib { result: u32, flags: u32 },
}

/// Where a value is stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    /// NFT_META_…
    Meta(u32),
    /// NFT_CT_…
    Ct(u32),
}

/// Which set a lookup asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupSet {
    /// A set of the table.
    Named(String),
    /// The rule's own: its elements, sorted.
    Inline(Vec<Element>),
}

impl LookupSet {
    /// An anonymous set; the kernel keeps no order.
    pub(super) fn sorted(mut elements: Vec<Element>) -> LookupSet {
        elements.iter_mut().for_each(Element::normalise);
        elements.sort();
        elements.dedup();
        LookupSet::Inline(elements)
    }
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    Load {
        from: Source,
        to: Register,
    },
    Store {
        from: Register,
        to: Sink,
    },
    Bitwise {
        register: Register,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Compare {
        register: Register,
        how: Comparison,
        with: Vec<u8>,
    },
    Range {
        register: Register,
        how: Comparison,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Lookup {
        register: Register,
        set: LookupSet,
        into: LookupInto,
        inverted: bool,
    },
    Immediate {
        register: Register,
        value: Vec<u8>,
    },
    Dnat {
        family: u32,
        address: Register,
        port: Option<Register>,
    },
    Masquerade,
    Counter,
    Verdict(Verdict),
    /// One that nothing of ours makes, by its name.
    Foreign(String),
}

/// What a lookup's result becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookupInto {
    /// Nothing: it only tests.
    Nothing,
    /// The verdict.
    Verdict,
    /// The registers from this one on.
    Data(Register),
}

/// The values' bytes one behind the other, each field padded to a register.
pub(super) fn concatenated(values: &[Value]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.iter().map(|v| v.data_type().padded_width()).sum());
    for value in values {
        value.check()?;
        value.append_to(&mut bytes);
        // A single field keeps its own length; within a concatenation each begins at a register.
        if values.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_names_nft_gives_them() {
        assert_eq!([0, 1, 4, 5, 12, 15].map(|n| Register(n).number()), [1, 9, 2, 13, 4, 23]);
        for n in 0..16 {
            assert_eq!(Register::from_number(Register(n).number()), Some(Register(n)));
        }
        // The kernel may say NFT_REG32_00 for NFT_REG_1.
        assert_eq!(Register::from_number(8), Some(Register::FIRST));
        assert_eq!([0, 5, 24, u32::MAX].map(Register::from_number), [None; 4]);
    }
}
