//! From the model to the attributes of the kernel's messages: tables, chains, sets, rules, elements.

use nix::libc;

use super::attributes::Attributes;
use super::compile::compile;
use super::expression::{Expression, LookupInto, LookupSet, Sink, Source, concatenated};
use super::model::{Chain, Data, Element, Hook, HookKind, Policy, Rule, Set, SetData, Table, Verdict};
use super::uapi::expression as attribute;
use super::uapi::{self, data, element as elem, set as set_uapi, verdict};
use super::userdata;
use super::value::{DataType, Value};
use crate::cni::error::{Error, Result};

/// Bytes of a name without its NUL (NFT_NAME_MAXLEN).
const NAME_MAX: usize = 255;

/// `NFT_DATA_VALUE_MAXLEN`: what a comparison, a key or a map's value may have.
const DATA_MAX: usize = 64;

/// Refuses what can't be the name of a table, chain or set.
fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX {
        let what = format!("nft name \"{name}\": it has {} bytes, from 1 to {NAME_MAX} are possible", name.len());
        return Err(Error::Internal { what });
    }
    if name.bytes().any(|byte| byte == 0) {
        return Err(Error::Internal { what: format!("nft name {name:?}: it has a NUL in it") });
    }
    Ok(())
}

impl Attributes {
    fn name(&mut self, kind: u16, name: &str) -> Result<()> {
        check_name(name)?;
        self.text(kind, name);
        Ok(())
    }

    /// A register's contents.
    fn contents(&mut self, kind: u16, bytes: &[u8]) -> Result<()> {
        if bytes.len() > DATA_MAX {
            let what = format!("{} bytes for an nft register, at most {DATA_MAX} fit", bytes.len());
            return Err(Error::Internal { what });
        }
        self.nested(kind, |contents| {
            contents.value(data::VALUE, bytes);
            Ok(())
        })
    }

    fn verdict(&mut self, kind: u16, of: &Verdict) -> Result<()> {
        self.nested(kind, |contents| {
            contents.nested(data::VERDICT, |verdict| {
                verdict.number(data::VERDICT_CODE, code(of));
                of.chain().map_or(Ok(()), |chain| verdict.name(data::VERDICT_CHAIN, chain))
            })
        })
    }
}

/// The code of a verdict.
fn code(of: &Verdict) -> u32 {
    match of {
        Verdict::Accept => verdict::ACCEPT,
        Verdict::Drop => verdict::DROP,
        Verdict::Return => verdict::RETURN,
        Verdict::Continue => verdict::CONTINUE,
        Verdict::Jump(_) => verdict::JUMP,
        Verdict::Goto(_) => verdict::GOTO,
    }
}

/// A table.
pub(super) fn table(table: &Table, comment: Option<&str>) -> Result<Attributes> {
    let mut all = Attributes::new();
    all.name(uapi::table::NAME, &table.name)?;
    if let Some(text) = comment {
        all.value(uapi::table::USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
    }
    Ok(all)
}

/// A chain by its name.
pub(super) fn chain_name(table: &Table, chain: &str) -> Result<Attributes> {
    let mut all = Attributes::new();
    all.name(uapi::chain::TABLE, &table.name)?;
    all.name(uapi::chain::NAME, chain)?;
    Ok(all)
}

/// A chain without its rules, and without its policy if it keeps the one it has.
pub(super) fn chain(table: &Table, chain: &Chain, with_policy: bool) -> Result<Attributes> {
    let mut all = chain_name(table, &chain.name)?;
    if let Some(Hook { kind, point, priority, policy }) = chain.hook {
        all.nested(uapi::chain::HOOK, |hook| {
            hook.number(uapi::chain::HOOK_NUMBER, point as u32);
            hook.number(uapi::chain::HOOK_PRIORITY, priority.cast_unsigned());
            Ok(())
        })?;
        if with_policy {
            all.number(uapi::chain::POLICY, policy_code(policy));
        }
        all.text(uapi::chain::TYPE, kind_name(kind));
    }
    if let Some(text) = &chain.comment {
        all.value(uapi::chain::USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
    }
    Ok(all)
}

fn kind_name(kind: HookKind) -> &'static str {
    match kind {
        HookKind::Filter => "filter",
        HookKind::Nat => "nat",
        HookKind::Route => "route",
    }
}

fn policy_code(policy: Policy) -> u32 {
    match policy {
        Policy::Accept => verdict::ACCEPT,
        Policy::Drop => verdict::DROP,
    }
}

/// The rules of a table, whatever their chains.
pub(super) fn rules(table: &Table) -> Result<Attributes> {
    let mut all = Attributes::new();
    all.name(uapi::rule::TABLE, &table.name)?;
    Ok(all)
}

/// The rules of a chain.
pub(super) fn rules_of(table: &Table, chain: &str) -> Result<Attributes> {
    let mut all = rules(table)?;
    all.name(uapi::rule::CHAIN, chain)?;
    Ok(all)
}

/// What a rule does, and its comment. `send_set` sends an anonymous set and says which number it has got within the transaction.
pub(super) fn rule(
    all: &mut Attributes,
    table: &Table,
    rule: &Rule,
    send_set: &mut dyn FnMut(&[Element], LookupInto) -> Result<u32>,
) -> Result<()> {
    if let Some(text) = &rule.comment {
        all.value(uapi::rule::USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
    }
    let expressions = compile(rule, table.family)?;
    if expressions.is_empty() {
        return Ok(());
    }
    all.nested(uapi::rule::EXPRESSIONS, |list| {
        for expression in expressions {
            let set_id = match &expression {
                Expression::Lookup { set: LookupSet::Inline(elements), into, .. } => send_set(elements, *into)?,
                _ => 0,
            };
            list.nested(uapi::LIST_ELEMENT, |one| {
                one.text(uapi::EXPR_NAME, name(&expression));
                one.nested(uapi::EXPR_DATA, |data| parameters(data, &expression, set_id))
            })?;
        }
        Ok(())
    })
}

/// The sets of a table.
pub(super) fn sets(table: &Table) -> Result<Attributes> {
    let mut all = Attributes::new();
    all.name(set_uapi::TABLE, &table.name)?;
    Ok(all)
}

/// A set by its name.
pub(super) fn set_name(table: &Table, set: &str) -> Result<Attributes> {
    let mut all = sets(table)?;
    all.name(set_uapi::NAME, set)?;
    Ok(all)
}

/// A set; the number by which a rule of the same transaction refers to it, and the number of elements, if it is a rule's own.
pub(super) fn set(table: &Table, set: &Set, id: u32, own: Option<usize>) -> Result<Attributes> {
    let mut all = set_name(table, &set.name)?;
    let (key_type, key_len) = type_and_len(&set.key)?;
    let constant = own.map_or(0, |_| set_uapi::F_ANONYMOUS | set_uapi::F_CONSTANT);
    all.number(set_uapi::FLAGS, set_flags(set) | constant);
    all.number(set_uapi::KEY_TYPE, key_type);
    all.number(set_uapi::KEY_LEN, key_len);
    let data = match &set.data {
        SetData::None => None,
        // The kernel ignores a verdict's length.
        SetData::Verdict => Some((set_uapi::DATA_VERDICT, 0)),
        SetData::Values(types) => Some(type_and_len(types)?),
    };
    if let Some((data_type, data_len)) = data {
        all.number(set_uapi::DATA_TYPE, data_type);
        all.number(set_uapi::DATA_LEN, data_len);
    }
    all.number(set_uapi::ID, id);
    if let Some(elements) = own {
        all.nested(set_uapi::DESCRIPTION, |description| {
            description.number(set_uapi::DESCRIPTION_SIZE, u32::try_from(elements).unwrap_or(u32::MAX));
            Ok(())
        })?;
    }
    all.value(set_uapi::USERDATA, &userdata::of_set(set));
    Ok(all)
}

fn set_flags(set: &Set) -> u32 {
    let map = if set.data == SetData::None { 0 } else { set_uapi::F_MAP };
    let interval = if set.interval { set_uapi::F_INTERVAL } else { 0 };
    map | interval
}

/// The bits that a concatenation shifts its fields' types by (TYPE_BITS, nftables include/datatype.h).
pub(super) const TYPE_BITS: u32 = 6;

/// The type and length of these fields in NFTA_SET_KEY_TYPE and NFTA_SET_KEY_LEN.
fn type_and_len(types: &[DataType]) -> Result<(u32, u32)> {
    Ok(match types {
        [one] => (*one as u32, one.width() as u32),
        // The types of more fields don't fit the 32 bits that tell nft how to print them.
        [] | [_, _, _, _, _, _, ..] => {
            return Err(Error::Internal {
                what: format!("nft: a key of {} fields, from 1 to 5 are possible", types.len()),
            });
        }
        many => {
            many.iter().fold((0, 0), |(id, len), one| (id << TYPE_BITS | *one as u32, len + one.padded_width() as u32))
        }
    })
}

/// The name that the kernel completes with a number.
pub(super) fn inline_name(into: LookupInto) -> &'static str {
    if into == LookupInto::Nothing { "__set%d" } else { "__map%d" }
}

/// As the kernel calls it.
fn name(expression: &Expression) -> &str {
    match expression {
        Expression::Load { from: Source::Meta(_), .. } | Expression::Store { to: Sink::Meta(_), .. } => "meta",
        Expression::Load { from: Source::Ct { .. }, .. } | Expression::Store { to: Sink::Ct(_), .. } => "ct",
        Expression::Load { from: Source::Payload { .. }, .. } => "payload",
        Expression::Load { from: Source::Fib { .. }, .. } => "fib",
        Expression::Bitwise { .. } => "bitwise",
        Expression::Compare { .. } => "cmp",
        Expression::Range { .. } => "range",
        Expression::Lookup { .. } => "lookup",
        Expression::Immediate { .. } | Expression::Verdict(_) => "immediate",
        Expression::Dnat { .. } => "nat",
        Expression::Masquerade => "masq",
        Expression::Counter => "counter",
        Expression::Foreign(name) => name,
    }
}

fn parameters(data: &mut Attributes, expression: &Expression, set_id: u32) -> Result<()> {
    match expression {
        Expression::Load { from, to } => load(data, *from, to.number()),
        Expression::Store { from, to: Sink::Meta(key) } => {
            data.number(attribute::META_KEY, *key);
            data.number(attribute::META_SREG, from.number());
        }
        Expression::Store { from, to: Sink::Ct(key) } => {
            data.number(attribute::CT_KEY, *key);
            data.number(attribute::CT_SREG, from.number());
        }
        Expression::Bitwise { register, mask, xor } => {
            data.number(attribute::BITWISE_SREG, register.number());
            data.number(attribute::BITWISE_DREG, register.number());
            data.number(attribute::BITWISE_LEN, mask.len() as u32);
            data.contents(attribute::BITWISE_MASK, mask)?;
            data.contents(attribute::BITWISE_XOR, xor)?;
        }
        Expression::Compare { register, how, with } => {
            data.number(attribute::CMP_SREG, register.number());
            data.number(attribute::CMP_OP, *how as u32);
            data.contents(attribute::CMP_DATA, with)?;
        }
        Expression::Range { register, how, from, to } => {
            data.number(attribute::RANGE_SREG, register.number());
            data.number(attribute::RANGE_OP, *how as u32);
            data.contents(attribute::RANGE_FROM_DATA, from)?;
            data.contents(attribute::RANGE_TO_DATA, to)?;
        }
        Expression::Lookup { register, set, into, inverted } => {
            data.number(attribute::LOOKUP_SREG, register.number());
            lookup(data, set, *into, *inverted, set_id)?;
        }
        Expression::Immediate { register, value } => {
            data.number(attribute::IMMEDIATE_DREG, register.number());
            data.contents(attribute::IMMEDIATE_DATA, value)?;
        }
        Expression::Verdict(verdict) => {
            data.number(attribute::IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32);
            data.verdict(attribute::IMMEDIATE_DATA, verdict)?;
        }
        Expression::Dnat { family, address, port } => {
            data.number(attribute::NAT_TYPE, libc::NFT_NAT_DNAT as u32);
            data.number(attribute::NAT_FAMILY, *family);
            data.number(attribute::NAT_REG_ADDR_MIN, address.number());
            if let Some(port) = port {
                data.number(attribute::NAT_REG_PROTO_MIN, port.number());
            }
        }
        Expression::Masquerade | Expression::Counter => {}
        Expression::Foreign(name) => {
            return Err(Error::Internal { what: format!("nft: the expression \"{name}\" can be read only") });
        }
    }
    Ok(())
}

fn load(data: &mut Attributes, from: Source, to: u32) {
    match from {
        Source::Meta(key) => {
            data.number(attribute::META_KEY, key);
            data.number(attribute::META_DREG, to);
        }
        Source::Payload { base, offset, len } => {
            data.number(attribute::PAYLOAD_DREG, to);
            data.number(attribute::PAYLOAD_BASE, base);
            data.number(attribute::PAYLOAD_OFFSET, offset);
            data.number(attribute::PAYLOAD_LEN, len);
        }
        Source::Ct { key, direction } => {
            data.number(attribute::CT_KEY, key);
            data.number(attribute::CT_DREG, to);
            if let Some(direction) = direction {
                data.value(attribute::CT_DIRECTION, &[direction]);
            }
        }
        Source::Fib { result, flags } => {
            data.number(attribute::FIB_FLAGS, flags);
            data.number(attribute::FIB_RESULT, result);
            data.number(attribute::FIB_DREG, to);
        }
    }
}

fn lookup(data: &mut Attributes, set: &LookupSet, into: LookupInto, inverted: bool, set_id: u32) -> Result<()> {
    match into {
        LookupInto::Nothing => {}
        LookupInto::Verdict => data.number(attribute::LOOKUP_DREG, libc::NFT_REG_VERDICT as u32),
        LookupInto::Data(first) => data.number(attribute::LOOKUP_DREG, first.number()),
    }
    match set {
        LookupSet::Named(name) => data.name(attribute::LOOKUP_SET, name)?,
        LookupSet::Inline(_) => {
            data.text(attribute::LOOKUP_SET, inline_name(into));
            data.number(attribute::LOOKUP_SET_ID, set_id);
        }
    }
    if inverted {
        data.number(attribute::LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV as u32);
    }
    Ok(())
}

/// As many elements as go into one message.
pub(super) struct Elements {
    all: Attributes,
    /// Where their list begins.
    list: usize,
    count: u16,
}

impl Elements {
    /// Of this set; a rule's own set is told by its number.
    pub(super) fn of(table: &Table, set: &str, id: Option<u32>) -> Result<Elements> {
        let mut all = Attributes::new();
        all.name(elem::LIST_SET, set)?;
        if let Some(id) = id {
            all.number(elem::LIST_SET_ID, id);
        }
        all.name(elem::LIST_TABLE, &table.name)?;
        let list = all.open();
        Ok(Elements { all, list, count: 0 })
    }

    /// Their bytes.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// One whole element. In a set of ranges a range is two of the kernel's: its first key, and the key behind its last with
    /// the flag of an end; a single key is a range of one, and a range up to the last key of all has no end.
    pub(super) fn add(&mut self, element: &Element, interval: bool) -> Result<()> {
        self.push(&element.key, Some(element))?;
        self.end(element, interval)
    }

    /// One that is only named by its key: to be deleted.
    pub(super) fn delete(&mut self, element: &Element, interval: bool) -> Result<()> {
        self.push(&element.key, None)?;
        self.end(element, interval)
    }

    /// One that is only named by its key: to be asked for.
    pub(super) fn ask(&mut self, key: &[Value]) -> Result<()> {
        self.push(key, None)
    }

    fn push(&mut self, key: &[Value], whole: Option<&Element>) -> Result<()> {
        self.count += 1;
        self.all.nested(self.count, |one| {
            one.contents(elem::KEY, &concatenated(key)?)?;
            let Some(Element { data, comment, .. }) = whole else { return Ok(()) };
            match data {
                None => {}
                Some(Data::Verdict(verdict)) => one.verdict(elem::DATA, verdict)?,
                Some(Data::Values(values)) => one.contents(elem::DATA, &concatenated(values)?)?,
            }
            if let Some(text) = comment {
                one.value(elem::USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
            }
            Ok(())
        })
    }

    fn end(&mut self, element: &Element, interval: bool) -> Result<()> {
        let last = element.upper.as_ref().or(element.key.first()).filter(|_| interval);
        let Some(end) = last.and_then(|last| successor(&last.bytes())) else { return Ok(()) };
        self.count += 1;
        self.all.nested(self.count, |one| {
            one.number(elem::FLAGS, elem::F_INTERVAL_END);
            one.contents(elem::KEY, &end)
        })
    }

    /// As they go into a message.
    pub(super) fn finish(mut self) -> Result<Attributes> {
        self.all.close(self.list, elem::LIST_ELEMENTS)?;
        Ok(self.all)
    }
}

/// All elements of a set.
pub(super) fn elements_of(table: &Table, set: &str) -> Result<Attributes> {
    let mut all = Attributes::new();
    all.name(elem::LIST_SET, set)?;
    all.name(elem::LIST_TABLE, &table.name)?;
    Ok(all)
}

/// The next key in the order of the kernel's comparison, byte by byte.
pub(super) fn successor(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_key_carries_over() {
        assert_eq!(successor(&[1, 0xff]), Some(vec![2, 0]));
        assert_eq!(successor(&[0xff, 0xff]), None);
    }

    #[test]
    fn what_the_kernel_has_no_room_for_is_refused() {
        let mut all = Attributes::new();
        assert!(all.contents(1, &[0; DATA_MAX]).is_ok());
        assert!(all.contents(1, &[0; DATA_MAX + 1]).is_err());
        for name in ["", "a\0b", &"n".repeat(NAME_MAX + 1)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name(&"n".repeat(NAME_MAX)).is_ok());
    }
}
