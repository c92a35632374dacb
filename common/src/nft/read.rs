//! From the kernel's messages to the model. Whatever the model has no words for is kept out of it, never guessed.

use super::attributes::{attributes, find, find_long, find_number, find_text};
use super::dump::{ChainInfo, SetInfo};
use super::expression::{Comparison, Expression, LookupInto, LookupSet, Register, Sink, Source};
use super::model::{Data, Element, Hook, HookKind, HookPoint, MarkOf, Policy, Set, SetData, Table, Verdict};
use super::value::{DataType, Value};
use super::write::TYPE_BITS;
use super::{uapi, userdata};

/// A chain, if it is of this table.
pub(super) fn chain(bytes: &[u8], table: &Table) -> Option<ChainInfo> {
    if find_text(bytes, uapi::chain::TABLE)? != table.name {
        return None;
    }
    let comment = find(bytes, uapi::chain::USERDATA);
    Some(ChainInfo {
        name: find_text(bytes, uapi::chain::NAME)?,
        handle: find_long(bytes, uapi::chain::HANDLE)?,
        hook: hook(bytes),
        is_base: find(bytes, uapi::chain::HOOK).is_some(),
        comment: comment.and_then(|data| userdata::find_comment(uapi::userdata::COMMENT, data)),
        uses: find_number(bytes, uapi::chain::USE).unwrap_or(0),
    })
}

/// What makes a chain a base chain, as far as the model has words for it.
pub(super) fn hook(bytes: &[u8]) -> Option<Hook> {
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let hook = find(bytes, uapi::chain::HOOK)?;
    let number = find_number(hook, uapi::chain::HOOK_NUMBER)?;
    let kind = match find_text(bytes, uapi::chain::TYPE)?.as_str() {
        "filter" => HookKind::Filter,
        "nat" => HookKind::Nat,
        "route" => HookKind::Route,
        _ => return None,
    };
    Some(Hook {
        kind,
        point: [Prerouting, Input, Forward, Output, Postrouting].into_iter().find(|p| *p as u32 == number)?,
        priority: find_number(hook, uapi::chain::HOOK_PRIORITY)?.cast_signed(),
        policy: match find_number(bytes, uapi::chain::POLICY)? {
            uapi::verdict::ACCEPT => Policy::Accept,
            uapi::verdict::DROP => Policy::Drop,
            _ => return None,
        },
    })
}

/// A rule before its anonymous sets' contents are read: a lookup names every set.
pub(super) struct RawRule {
    pub(super) handle: u64,
    pub(super) comment: Option<String>,
    pub(super) expressions: Vec<Expression>,
}

pub(super) fn rule(bytes: &[u8]) -> Option<RawRule> {
    let comment = find(bytes, uapi::rule::USERDATA);
    let mut comment = comment.and_then(|data| userdata::find_comment(uapi::userdata::COMMENT, data));
    let mut expressions = Vec::new();
    for (_, one) in attributes(find(bytes, uapi::rule::EXPRESSIONS).unwrap_or_default()) {
        let name = find_text(one, uapi::EXPR_NAME).unwrap_or_default();
        let data = find(one, uapi::EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "match" if let Some(text) = iptables_comment(data) => comment = comment.or(Some(text)),
            "target" if let Some(mark) = iptables_mark(data) => expressions.extend(mark),
            _ => expressions.push(expression(name, data)),
        }
    }
    Some(RawRule { handle: find_long(bytes, uapi::rule::HANDLE)?, comment, expressions })
}

/// NFTA_MATCH_NAME and NFTA_TARGET_NAME (include/uapi/linux/netfilter/nf_tables_compat.h)
const EXTENSION_NAME: u16 = 1;
/// NFTA_MATCH_REV and NFTA_TARGET_REV
const EXTENSION_REVISION: u16 = 2;
/// NFTA_MATCH_INFO and NFTA_TARGET_INFO
const EXTENSION_INFO: u16 = 3;

/// The text of a rule's comment as iptables-nft writes it: an expression of its own that tests nothing.
fn iptables_comment(data: &[u8]) -> Option<String> {
    (find_text(data, EXTENSION_NAME)? == "comment").then(|| find_text(data, EXTENSION_INFO)).flatten()
}

/// The target `MARK` as iptables-nft writes it, in the kernel's own words: `struct xt_mark_tginfo2`
/// (include/uapi/linux/netfilter/xt_mark.h). The mark becomes `mark & ~mask ^ bits`, which is what a bitwise expression says.
fn iptables_mark(data: &[u8]) -> Option<Vec<Expression>> {
    let is_mark = find_text(data, EXTENSION_NAME)? == "MARK" && find_number(data, EXTENSION_REVISION)? == 2;
    let info = find(data, EXTENSION_INFO).filter(|_| is_mark)?;
    let (bits, mask) = (info.get(..4)?.to_vec(), info.get(4..8)?);
    let mark = MarkOf::Packet;
    let stored = Expression::Store { from: Register::FIRST, to: mark.sink() };
    // A mark of which nothing stays isn't loaded.
    if mask.iter().all(|byte| *byte == 0xff) {
        return Some(vec![Expression::Immediate { register: Register::FIRST, value: bits }, stored]);
    }
    let loaded = Expression::Load { from: mark.selector().source(), to: Register::FIRST };
    let mask = mask.iter().map(|byte| !byte).collect();
    Some(vec![loaded, Expression::Bitwise { register: Register::FIRST, mask, xor: bits }, stored])
}

fn expression(name: String, data: &[u8]) -> Expression {
    let known = match name.as_str() {
        "meta" => meta(data),
        "ct" => ct(data),
        "payload" => payload(data),
        "fib" => fib(data),
        "bitwise" => bitwise(data),
        "cmp" => compare(data),
        "range" => range(data),
        "lookup" => lookup(data),
        "immediate" => immediate(data),
        "nat" => nat(data),
        // Port ranges and random flags (attributes 1 to 3) aren't ours.
        "masq" => attributes(data).all(|(_, v)| v.iter().all(|b| *b == 0)).then_some(Expression::Masquerade),
        "counter" => Some(Expression::Counter),
        _ => None,
    };
    known.unwrap_or_else(|| match (name.as_str(), find_text(data, EXTENSION_NAME)) {
        ("match" | "target", Some(extension)) => Expression::Foreign(format!("{name} {extension}")),
        _ => Expression::Foreign(name),
    })
}

fn register(data: &[u8], attribute: u16) -> Option<Register> {
    Register::from_number(find_number(data, attribute)?)
}

fn value(data: &[u8], attribute: u16) -> Option<Vec<u8>> {
    find(find(data, attribute)?, uapi::data::VALUE).map(<[u8]>::to_vec)
}

/// NFTA_META_DREG 1, KEY 2, SREG 3
fn meta(data: &[u8]) -> Option<Expression> {
    let key = find_number(data, 2)?;
    load_or_store(data, (1, 3), Source::Meta(key), Sink::Meta(key))
}

/// NFTA_CT_DREG 1, KEY 2, DIRECTION 3, SREG 4
fn ct(data: &[u8]) -> Option<Expression> {
    let key = find_number(data, 2)?;
    let direction = find(data, 3).and_then(|v| v.first().copied());
    load_or_store(data, (1, 4), Source::Ct { key, direction }, Sink::Ct(key))
}

fn load_or_store(data: &[u8], (into, out): (u16, u16), from: Source, to: Sink) -> Option<Expression> {
    match (register(data, into), register(data, out)) {
        (Some(register), None) => Some(Expression::Load { from, to: register }),
        (None, Some(register)) => Some(Expression::Store { from: register, to }),
        _ => None,
    }
}

/// NFTA_PAYLOAD_DREG 1, BASE 2, OFFSET 3, LEN 4; SREG 5 for writing, which isn't ours
fn payload(data: &[u8]) -> Option<Expression> {
    let from =
        Source::Payload { base: find_number(data, 2)?, offset: find_number(data, 3)?, len: find_number(data, 4)? };
    Some(Expression::Load { from, to: register(data, 1)? })
}

/// NFTA_FIB_DREG 1, RESULT 2, FLAGS 3
fn fib(data: &[u8]) -> Option<Expression> {
    let from = Source::Fib { result: find_number(data, 2)?, flags: find_number(data, 3)? };
    Some(Expression::Load { from, to: register(data, 1)? })
}

/// NFTA_BITWISE_SREG 1, DREG 2, LEN 3, MASK 4, XOR 5, OP 6 (0 is mask and xor)
fn bitwise(data: &[u8]) -> Option<Expression> {
    let (from, to) = (register(data, 1)?, register(data, 2)?);
    let plain = from == to && find_number(data, 6).unwrap_or(0) == 0;
    plain.then_some(Expression::Bitwise { register: to, mask: value(data, 4)?, xor: value(data, 5)? })
}

/// NFTA_CMP_SREG 1, OP 2, DATA 3
fn compare(data: &[u8]) -> Option<Expression> {
    let how = Comparison::from_number(find_number(data, 2)?)?;
    Some(Expression::Compare { register: register(data, 1)?, how, with: value(data, 3)? })
}

/// NFTA_RANGE_SREG 1, OP 2, FROM 3, TO 4
fn range(data: &[u8]) -> Option<Expression> {
    let how = Comparison::from_number(find_number(data, 2)?)?;
    Some(Expression::Range { register: register(data, 1)?, how, from: value(data, 3)?, to: value(data, 4)? })
}

/// NFTA_LOOKUP_SET 1, SREG 2, DREG 3, SET_ID 4, FLAGS 5 (1 is inverted)
fn lookup(data: &[u8]) -> Option<Expression> {
    let into = match find_number(data, 3) {
        None => LookupInto::Nothing,
        Some(0) => LookupInto::Verdict,
        Some(number) => LookupInto::Data(Register::from_number(number)?),
    };
    let set = LookupSet::Named(find_text(data, 1)?);
    let inverted = find_number(data, 5).unwrap_or(0) & 1 != 0;
    Some(Expression::Lookup { register: register(data, 2)?, set, into, inverted })
}

/// NFTA_IMMEDIATE_DREG 1, DATA 2
fn immediate(data: &[u8]) -> Option<Expression> {
    let contents = find(data, 2)?;
    match find_number(data, 1)? {
        0 => Some(Expression::Verdict(verdict(find(contents, uapi::data::VERDICT)?)?)),
        number => {
            let value = find(contents, uapi::data::VALUE)?.to_vec();
            Some(Expression::Immediate { register: Register::from_number(number)?, value })
        }
    }
}

/// NFTA_NAT_TYPE 1 (1 is dnat), FAMILY 2, ADDR_MIN 3, ADDR_MAX 4, PROTO_MIN 5, PROTO_MAX 6, FLAGS 7.
///
/// The kernel returns each maximum even where it is the minimum, and flags 1 and 2 that say as much as the registers.
fn nat(data: &[u8]) -> Option<Expression> {
    let (address, port) = (register(data, 3)?, register(data, 5));
    let single = register(data, 4).is_none_or(|r| r == address) && register(data, 6) == register(data, 6).and(port);
    let ours = find_number(data, 1)? == 1 && single && find_number(data, 7).unwrap_or(0) & !3 == 0;
    ours.then_some(Expression::Dnat { family: find_number(data, 2)?, address, port })
}

fn verdict(data: &[u8]) -> Option<Verdict> {
    let chain = || find_text(data, uapi::data::VERDICT_CHAIN);
    Some(match find_number(data, uapi::data::VERDICT_CODE)? {
        uapi::verdict::ACCEPT => Verdict::Accept,
        uapi::verdict::DROP => Verdict::Drop,
        uapi::verdict::CONTINUE => Verdict::Continue,
        uapi::verdict::RETURN => Verdict::Return,
        uapi::verdict::JUMP => Verdict::Jump(chain()?),
        uapi::verdict::GOTO => Verdict::Goto(chain()?),
        _ => return None,
    })
}

pub(super) fn set(bytes: &[u8]) -> Option<SetInfo> {
    let name = find_text(bytes, uapi::set::NAME)?;
    let flags = find_number(bytes, uapi::set::FLAGS).unwrap_or(0);
    let words = || {
        let data = match find_number(bytes, uapi::set::DATA_TYPE) {
            None => SetData::None,
            Some(uapi::set::DATA_VERDICT) => SetData::Verdict,
            Some(id) => SetData::Values(data_types(id)?),
        };
        let known = uapi::set::F_ANONYMOUS | uapi::set::F_CONSTANT | uapi::set::F_INTERVAL | uapi::set::F_MAP;
        let comment = find(bytes, uapi::set::USERDATA);
        (flags & !known == 0).then_some(Set {
            name: name.clone(),
            key: data_types(find_number(bytes, uapi::set::KEY_TYPE)?)?,
            data,
            interval: flags & uapi::set::F_INTERVAL != 0,
            comment: comment.and_then(|data| userdata::find_comment(uapi::userdata::SET_COMMENT, data)),
        })
    };
    Some(SetInfo { set: words(), anonymous: flags & uapi::set::F_ANONYMOUS != 0, name: name.clone() })
}

/// The fields of a concatenation's type.
fn data_types(mut id: u32) -> Option<Vec<DataType>> {
    let mut types = Vec::new();
    while id != 0 {
        types.push(DataType::from_id(id & ((1 << TYPE_BITS) - 1))?);
        id >>= TYPE_BITS;
    }
    types.reverse();
    (!types.is_empty()).then_some(types)
}

/// An element as it is stored; a range is two.
pub(super) struct RawElement {
    pub(super) key: Vec<u8>,
    is_end: bool,
    data: Option<Data>,
    comment: Option<String>,
}

/// The elements in one message.
pub(super) fn elements(bytes: &[u8], set: &Set) -> Vec<RawElement> {
    let list = find(bytes, uapi::element::LIST_ELEMENTS).unwrap_or_default();
    attributes(list).filter_map(|(_, one)| element(one, set)).collect()
}

fn element(bytes: &[u8], set: &Set) -> Option<RawElement> {
    let contents = find(bytes, uapi::element::DATA);
    let data = match &set.data {
        SetData::None => None,
        SetData::Verdict => contents.and_then(|c| verdict(find(c, uapi::data::VERDICT)?)).map(Data::Verdict),
        SetData::Values(types) => contents.and_then(|c| values(types, find(c, uapi::data::VALUE)?)).map(Data::Values),
    };
    let comment = find(bytes, uapi::element::USERDATA);
    Some(RawElement {
        key: value(bytes, uapi::element::KEY)?,
        is_end: find_number(bytes, uapi::element::FLAGS).unwrap_or(0) & uapi::element::F_INTERVAL_END != 0,
        data,
        comment: comment.and_then(|data| userdata::find_comment(uapi::userdata::COMMENT, data)),
    })
}

fn values(types: &[DataType], mut bytes: &[u8]) -> Option<Vec<Value>> {
    types
        .iter()
        .map(|one| {
            let value = Value::from_bytes(*one, bytes)?;
            bytes = bytes.get(one.padded_width()..).unwrap_or_default();
            Some(value)
        })
        .collect()
}

/// By key; the end of one range before the start of the next.
pub(super) fn sorted(mut raw: Vec<RawElement>) -> Vec<RawElement> {
    raw.sort_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
    raw
}

/// Whether one of the sorted elements is listed twice.
pub(super) fn has_twins(sorted: &[RawElement]) -> bool {
    sorted.windows(2).any(|pair| matches!(pair, [a, b] if a.key == b.key && a.is_end == b.is_end))
}

/// Elements of the model: of the sorted ones, the first of a range with its last.
pub(super) fn pair_up(raw: Vec<RawElement>, set: &Set) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::with_capacity(raw.len());
    let mut open = raw.iter().peekable();
    while let Some(one) = open.next() {
        if one.is_end {
            continue;
        }
        let Some(key) = values(&set.key, &one.key) else { continue };
        let upper = set.interval.then(|| match open.peek() {
            Some(end) => predecessor(&end.key),
            None => vec![0xff; one.key.len()],
        });
        let upper = upper.and_then(|bytes| values(&set.key, &bytes)?.into_iter().next());
        // A range of one is shown and compared as what it is.
        let upper = upper.filter(|last| Some(last) != key.first());
        elements.push(Element { key, upper, data: one.data.clone(), comment: one.comment.clone() });
    }
    elements
}

fn predecessor(key: &[u8]) -> Vec<u8> {
    let mut before = key.to_vec();
    for byte in before.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            break;
        }
    }
    before
}

impl DataType {
    fn from_id(id: u32) -> Option<DataType> {
        use DataType::*;
        let all = [
            NfProto,
            Ipv4Addr,
            Ipv6Addr,
            EtherAddr,
            EtherType,
            InetProto,
            InetService,
            Mark,
            IfaceIndex,
            Uid,
            Gid,
            CtState,
            CtDir,
            CtStatus,
            PktType,
            FibAddrType,
            Ifname,
        ];
        all.into_iter().find(|t| *t as u32 == id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ports() -> Set {
        Set::vmap("ports", [DataType::InetProto, DataType::InetService])
    }

    /// Attributes nested at random: nearer to what a reader looks into than random bytes are.
    fn attributes() -> impl Strategy<Value = Vec<u8>> {
        let leaf = proptest::collection::vec(any::<u8>(), 0..24);
        leaf.prop_recursive(5, 64, 6, |inner| {
            proptest::collection::vec((0u16..14, inner), 0..6).prop_map(|list| {
                let mut bytes = Vec::new();
                for (kind, value) in list {
                    bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
                    bytes.extend(kind.to_ne_bytes());
                    bytes.extend(&value);
                    bytes.resize(bytes.len().next_multiple_of(4), 0);
                }
                bytes
            })
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_panic(bytes in attributes()) {
            let _ = chain(&bytes, &Table::new(super::super::Family::Inet, "t"));
            let _ = set(&bytes);
            let _ = pair_up(sorted(elements(&bytes, &ports())), &ports());
            let _ = pair_up(sorted(elements(&bytes, &ports().interval())), &ports().interval());
            if let Some(rule) = rule(&bytes) {
                let _ = super::super::canonical::canonical(rule.expressions);
            }
        }

        #[test]
        fn each_expression_is_read_without_panic(bytes in attributes(), name in 0usize..12) {
            let names = [
                "meta", "ct", "payload", "fib", "bitwise", "cmp", "range", "lookup", "immediate", "nat", "masq", "counter",
            ];
            let _ = (iptables_comment(&bytes), iptables_mark(&bytes));
            let found = vec![expression(names[name].to_owned(), &bytes)];
            let found = super::super::canonical::canonical(found);
            let _ = super::super::decompile::decompile(&found, None, super::super::Family::Inet);
        }
    }
}
