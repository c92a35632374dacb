//! One meaning, one form: newer nfts write some tests in a shorter way than we do.
//!
//! A table that was saved by `nft list` and put back by `nft -f` is full of these, and still says the same:
//!
//! * a subnet at a byte's boundary is a load of the first bytes only (nft 0.9.9 and newer): `ip saddr 10.0.0.0/8`;
//! * two ports are one load of both (nft 1.0.3 and newer): `tcp sport 1 tcp dport 2`.

use nix::libc;

use super::expression::{Comparison, Expression, Register, Source};

/// Offset and length of each address in the IP headers.
const ADDRESSES: [(u32, u32); 4] = [(12, 4), (16, 4), (8, 16), (24, 16)];

/// Expressions as `compile.rs` would have made them.
pub(super) fn canonical(expressions: Vec<Expression>) -> Vec<Expression> {
    let mut out = Vec::with_capacity(expressions.len());
    let mut rest = expressions.into_iter().peekable();
    while let Some(expression) = rest.next() {
        let long = match (&expression, rest.peek()) {
            (
                Expression::Load { from, to: Register::FIRST },
                Some(Expression::Compare { register: Register::FIRST, how, with }),
            ) => subnet(*from, *how, with).or_else(|| ports(*from, *how, with)),
            _ => None,
        };
        match long {
            Some(long) => {
                rest.next();
                out.extend(long);
            }
            None => out.push(expression),
        }
    }
    out
}

fn load(base: u32, offset: u32, len: u32) -> Expression {
    Expression::Load { from: Source::Payload { base, offset, len }, to: Register::FIRST }
}

fn compare(how: Comparison, with: Vec<u8>) -> Expression {
    Expression::Compare { register: Register::FIRST, how, with }
}

/// The first bytes of an address: all of it, masked.
fn subnet(from: Source, how: Comparison, with: &[u8]) -> Option<Vec<Expression>> {
    let Source::Payload { base, offset, len } = from else { return None };
    let (_, whole) = ADDRESSES.into_iter().find(|(start, whole)| *start == offset && len < *whole)?;
    let matches = matches!(how, Comparison::Equal | Comparison::NotEqual) && with.len() == len as usize;
    if base != libc::NFT_PAYLOAD_NETWORK_HEADER as u32 || !matches {
        return None;
    }
    let filled = |first: &[u8]| {
        let mut bytes = first.to_vec();
        bytes.resize(whole as usize, 0);
        bytes
    };
    let (mask, xor) = (filled(&vec![0xff; with.len()]), filled(&[]));
    let masked = Expression::Bitwise { register: Register::FIRST, mask, xor };
    Some(vec![load(base, offset, whole), masked, compare(how, filled(with))])
}

/// Both ports: one after the other. (Being unequal to both at once is something else.)
fn ports(from: Source, how: Comparison, with: &[u8]) -> Option<Vec<Expression>> {
    let base = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
    let (source, destination) = with.split_at_checked(2)?;
    let both = from == Source::Payload { base, offset: 0, len: 4 } && how == Comparison::Equal;
    both.then(|| {
        vec![load(base, 0, 2), compare(how, source.to_vec()), load(base, 2, 2), compare(how, destination.to_vec())]
    })
}
