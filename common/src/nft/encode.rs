//! From the model to libnftnl's objects and messages.

use std::ffi::{CStr, CString};

use netlink_packet_core::NetlinkBuffer;
use nftnl::nftnl_sys as sys;
use nftnl::{Batch, FinalizedBatch, MsgType};
use nix::libc;

use super::compile::compile;
use super::expression::{Expression, LookupInto, LookupSet, Register, Sink, Source, concatenated};
use super::message::{Body, Message};
use super::model::{Chain, Data, Element, Hook, HookKind, Policy, Rule, Set, SetData, Table, Verdict};
use super::object::{ChainObject, ElementObject, ExpressionObject, RuleObject, SetObject, TableObject};
use super::transaction::{Command, Position, Presence};
use super::uapi::{element as elem, set as set_uapi, verdict};
use super::value::{DataType, Value};
use super::{uapi, userdata};
use crate::cni::error::{Error, Result};

/// Bytes of a name without its NUL (NFT_NAME_MAXLEN).
pub(super) const NAME_MAX: usize = 255;

/// Bytes of one message's elements: their list is one attribute, whose length has 16 bits.
pub(super) const ELEMENTS_MAX_BYTES: usize = 60_000;

/// The bits that a concatenation shifts its fields' types by (TYPE_BITS, nftables include/datatype.h).
pub(super) const TYPE_BITS: u32 = 6;

pub(super) fn c_string(name: &str) -> Result<CString> {
    if name.is_empty() || name.len() > NAME_MAX {
        let what = format!("nft name \"{name}\": it has {} bytes, from 1 to {NAME_MAX} are possible", name.len());
        return Err(Error::Internal { what });
    }
    CString::new(name).map_err(|_| Error::Internal { what: format!("nft name {name:?}: it has a NUL in it") })
}

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

/// What one message of a batch is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The place of its command among the commands.
    pub(super) command: usize,
    /// If it carries elements: the place of the first among the command's, and how many.
    pub(super) elements: Option<(usize, usize)>,
}

/// A transaction as a batch.
pub(super) struct Encoded {
    pub(super) batch: FinalizedBatch,
    /// One for each message, in order.
    places: Vec<Place>,
}

impl Encoded {
    /// What the message with this number is about.
    pub(super) fn place(&self, sequence: u32) -> Option<Place> {
        let numbers = self.batch.sequence_numbers();
        // Since Linux 6.10 begin and end have numbers as well, because nftnl asks for their acknowledgement.
        let around = numbers.len().saturating_sub(self.places.len());
        let first = numbers.start + u32::try_from(around / 2).unwrap_or(0);
        self.places.get(usize::try_from(sequence.checked_sub(first)?).ok()?).copied()
    }

    /// The message with this number, as it was sent.
    pub(super) fn message(&self, sequence: u32) -> Option<&[u8]> {
        let found = self.batch.iter().find_map(|page| messages(page).find(|m| m.sequence_number() == sequence));
        found.map(NetlinkBuffer::into_inner)
    }
}

/// The messages of a page of a batch.
fn messages(page: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = page;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let len = message.length() as usize;
        let own = NetlinkBuffer::new_checked(rest.get(..len)?).ok()?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(own)
    })
}

/// The begin message of a batch that is to be refused unless the tables are in this generation (NFNL_BATCH_GENID,
/// include/uapi/linux/netfilter/nfnetlink.h). It stands in for the one of `nftnl::Batch`, which has no generation.
pub(super) fn begin(generation: u32) -> Vec<u8> {
    const LEN: u32 = 28;
    let mut bytes = Vec::with_capacity(LEN as usize);
    bytes.extend(LEN.to_ne_bytes());
    bytes.extend(0x10u16.to_ne_bytes()); // NFNL_MSG_BATCH_BEGIN
    bytes.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes.extend([0; 8]); // no number: the batch's own numbers are about its commands; port of the kernel
    bytes.extend([0, 0]); // AF_UNSPEC, NFNETLINK_V0
    bytes.extend((libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes());
    bytes.extend(8u16.to_ne_bytes());
    bytes.extend((libc::NFNL_BATCH_GENID as u16).to_ne_bytes());
    bytes.extend(generation.to_be_bytes());
    bytes
}

/// Makes a batch of commands.
struct Encoder {
    batch: Batch,
    places: Vec<Place>,
    /// One message is held back, because the last one of all asks for an acknowledgement.
    held: Option<Message>,
    command: usize,
    /// Numbers the rules' anonymous sets within the transaction.
    next_set_id: u32,
}

/// Encodes a transaction; `None` if it does nothing.
pub(super) fn encode(commands: &[&Command]) -> Result<Option<Encoded>> {
    let places = Vec::with_capacity(commands.len());
    let mut encoder = Encoder { batch: Batch::new(), places, held: None, command: 0, next_set_id: 1 };
    for (place, command) in commands.iter().enumerate() {
        encoder.command = place;
        encoder.command(command)?;
    }
    let Some(mut last) = encoder.held else { return Ok(None) };
    last.flags |= libc::NLM_F_ACK;
    encoder.batch.add(&last, MsgType::Add);
    Ok(Some(Encoded { batch: encoder.batch.finalize(), places: encoder.places }))
}

impl Encoder {
    fn send(&mut self, table: &Table, kind: i32, flags: i32, body: Body) {
        self.send_elements(table, kind, flags, body, None);
    }

    fn send_elements(&mut self, table: &Table, kind: i32, flags: i32, body: Body, elements: Option<(usize, usize)>) {
        let message = Message { kind, family: Some(table.family), flags, body };
        if let Some(before) = self.held.replace(message) {
            self.batch.add(&before, MsgType::Add);
        }
        self.places.push(Place { command: self.command, elements });
    }

    fn command(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::AddTable(table, comment) => {
                let object = table_object(table, comment.as_deref())?;
                // As nft does: a table that is there and dormant wakes up.
                object.number(sys::NFTNL_TABLE_FLAGS, 0);
                let body = Body::Table(object);
                self.send(table, libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, body);
            }
            Command::DeleteTable(table) => {
                self.send(table, libc::NFT_MSG_DELTABLE, 0, Body::Table(table_object(table, None)?));
            }
            Command::AddSet(table, set) => {
                let object = set_object(table, &c_string(&set.name)?, set, 0)?;
                self.send(table, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, Body::Set(object));
            }
            Command::DeleteSet(table, set) => {
                self.send(table, libc::NFT_MSG_DELSET, 0, Body::Set(set_name_object(table, set)?));
            }
            Command::FlushSet(table, set) => {
                self.send(table, libc::NFT_MSG_DELSETELEM, 0, Body::Elements(set_name_object(table, set)?));
            }
            Command::AddChain(table, chain) => {
                let object = chain_object(table, chain)?;
                if let Some(Hook { policy, .. }) = chain.hook {
                    object.number(sys::NFTNL_CHAIN_POLICY, policy_code(policy));
                }
                self.send(table, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, Body::Chain(object));
                self.add_rules(table, chain)?;
            }
            Command::UseChain(table, chain) => {
                let body = Body::Chain(chain_object(table, chain)?);
                self.send(table, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, body);
            }
            Command::AddRules(table, chain) => self.add_rules(table, chain)?,
            Command::DeleteChain(table, chain) => {
                self.send(table, libc::NFT_MSG_DELCHAIN, 0, Body::Chain(chain_name_object(table, chain)?));
            }
            Command::FlushChain(table, chain) => {
                self.send(table, libc::NFT_MSG_DELRULE, 0, Body::Rule(rule_object(table, chain)?));
            }
            Command::AddRule(table, chain, position, rule) => self.add_rule(table, chain, *position, rule)?,
            Command::DeleteRule(table, chain, handle) => {
                let object = rule_object(table, chain)?;
                object.handle(sys::NFTNL_RULE_HANDLE, *handle);
                self.send(table, libc::NFT_MSG_DELRULE, 0, Body::Rule(object));
            }
            Command::AddElements(table, set, presence, elements) => {
                let exclusive = if *presence == Presence::Exclusive { libc::NLM_F_EXCL } else { 0 };
                let head = || set_name_object(table, set);
                self.elements(table, libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | exclusive, &head, elements)?;
            }
            Command::DeleteElements(table, set, elements) => {
                let head = || set_name_object(table, set);
                self.elements(table, libc::NFT_MSG_DELSETELEM, 0, &head, elements)?;
            }
        }
        Ok(())
    }

    fn add_rules(&mut self, table: &Table, chain: &Chain) -> Result<()> {
        chain.rules.iter().try_for_each(|rule| self.add_rule(table, &chain.name, Position::End, rule))
    }

    fn add_rule(&mut self, table: &Table, chain: &str, position: Position, rule: &Rule) -> Result<()> {
        let object = rule_object(table, chain)?;
        let flags = match position {
            Position::Top | Position::Before(_) => 0,
            Position::End | Position::After(_) => libc::NLM_F_APPEND,
        };
        if let Position::Before(handle) | Position::After(handle) = position {
            object.handle(sys::NFTNL_RULE_POSITION, handle);
        }
        for expression in compile(rule, table.family)? {
            let set_id = match &expression {
                Expression::Lookup { set: LookupSet::Inline(elements), into, .. } => {
                    self.inline_set(table, elements, *into)?
                }
                _ => 0,
            };
            object.push(expression_object(&expression, set_id)?);
        }
        if let Some(text) = &rule.comment {
            object.userdata(sys::NFTNL_RULE_USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
        }
        self.send(table, libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | flags, Body::Rule(object));
        Ok(())
    }

    /// Sends a rule's anonymous set and its elements; the rule refers to it by the number that comes back.
    fn inline_set(&mut self, table: &Table, elements: &[Element], into: LookupInto) -> Result<u32> {
        let id = self.next_set_id;
        self.next_set_id += 1;
        let set = inline_description(elements, into)?;
        let name = inline_name(into);
        let object = set_object(table, name, &set, id)?;
        let constant = set_flags(&set) | set_uapi::F_ANONYMOUS | set_uapi::F_CONSTANT;
        object.number(sys::NFTNL_SET_FLAGS, constant);
        object.number(sys::NFTNL_SET_DESC_SIZE, u32::try_from(elements.len()).unwrap_or(u32::MAX));
        self.send(table, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, Body::Set(object));
        let head = || {
            let head = set_name_object(table, &name.to_string_lossy())?;
            head.number(sys::NFTNL_SET_ID, id);
            Ok(head)
        };
        self.elements(table, libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, &head, elements)?;
        Ok(id)
    }

    /// The elements, over as many messages as they need.
    fn elements(
        &mut self,
        table: &Table,
        kind: i32,
        flags: i32,
        head: &dyn Fn() -> Result<SetObject>,
        elements: &[Element],
    ) -> Result<()> {
        let mut object = head()?;
        let (mut bytes, mut first) = (0, 0);
        // In a set of ranges a single key is a range of one.
        let interval = elements.iter().any(|e| e.upper.is_some());
        let whole = kind == libc::NFT_MSG_NEWSETELEM;
        for (place, element) in elements.iter().enumerate() {
            // An upper bound: attribute headers, key (an interval has a second), data, padding.
            let size = 96
                + 2 * element.key.iter().map(|v| v.data_type().padded_width()).sum::<usize>()
                + element.data.as_ref().map_or(0, data_size)
                + element.comment.as_ref().map_or(0, |c| c.len().min(super::model::COMMENT_MAX));
            if bytes + size > ELEMENTS_MAX_BYTES {
                let full = std::mem::replace(&mut object, head()?);
                self.send_elements(table, kind, flags, Body::Elements(full), Some((first, place - first)));
                (bytes, first) = (0, place);
            }
            bytes += size;
            push_element(&object, element, whole, interval)?;
        }
        if bytes > 0 {
            self.send_elements(table, kind, flags, Body::Elements(object), Some((first, elements.len() - first)));
        }
        Ok(())
    }
}

fn data_size(data: &Data) -> usize {
    match data {
        Data::Verdict(verdict) => verdict.chain().map_or(0, str::len),
        Data::Values(values) => values.iter().map(|v| v.data_type().padded_width()).sum(),
    }
}

/// The name that the kernel completes with a number.
fn inline_name(into: LookupInto) -> &'static CStr {
    if into == LookupInto::Nothing { c"__set%d" } else { c"__map%d" }
}

/// What an anonymous set is, by its elements.
fn inline_description(elements: &[Element], into: LookupInto) -> Result<Set> {
    let types = |values: &[Value]| values.iter().map(Value::data_type).collect::<Vec<_>>();
    let mixed = || Error::Internal { what: "nft: the elements of an anonymous map lead to different things".into() };
    let first = elements.first().ok_or_else(mixed)?;
    let data = match (&first.data, into) {
        (None, LookupInto::Nothing) => SetData::None,
        (Some(Data::Verdict(_)), LookupInto::Verdict) => SetData::Verdict,
        (Some(Data::Values(values)), LookupInto::Data(_)) => SetData::Values(types(values)),
        _ => return Err(mixed()),
    };
    let alike = |e: &Element| match (&e.data, &data) {
        (None, SetData::None) | (Some(Data::Verdict(_)), SetData::Verdict) => true,
        (Some(Data::Values(values)), SetData::Values(wanted)) => types(values) == *wanted,
        _ => false,
    };
    if !elements.iter().all(alike) {
        return Err(mixed());
    }
    let interval = elements.iter().any(|e| e.upper.is_some());
    Ok(Set { data, interval, ..Set::of(String::new(), types(&first.key)) })
}

pub(super) fn table_object(table: &Table, comment: Option<&str>) -> Result<TableObject> {
    let object = TableObject::new();
    object.string(sys::NFTNL_TABLE_NAME, &c_string(&table.name)?);
    if let Some(text) = comment {
        object.userdata(sys::NFTNL_TABLE_USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
    }
    Ok(object)
}

pub(super) fn chain_name_object(table: &Table, chain: &str) -> Result<ChainObject> {
    let object = ChainObject::new();
    object.string(sys::NFTNL_CHAIN_TABLE, &c_string(&table.name)?);
    object.string(sys::NFTNL_CHAIN_NAME, &c_string(chain)?);
    Ok(object)
}

fn policy_code(policy: Policy) -> u32 {
    match policy {
        Policy::Accept => verdict::ACCEPT,
        Policy::Drop => verdict::DROP,
    }
}

/// A chain without its policy and its rules.
fn chain_object(table: &Table, chain: &Chain) -> Result<ChainObject> {
    let object = chain_name_object(table, &chain.name)?;
    if let Some(Hook { kind, point, priority, policy: _ }) = chain.hook {
        let kind = match kind {
            HookKind::Filter => c"filter",
            HookKind::Nat => c"nat",
            HookKind::Route => c"route",
        };
        object.string(sys::NFTNL_CHAIN_TYPE, kind);
        object.number(sys::NFTNL_CHAIN_HOOKNUM, point as u32);
        object.priority(priority);
    }
    if let Some(text) = &chain.comment {
        object.userdata(sys::NFTNL_CHAIN_USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
    }
    Ok(object)
}

/// The rules of a table, whatever their chains.
pub(super) fn rules_object(table: &Table) -> Result<RuleObject> {
    let object = RuleObject::new();
    object.string(sys::NFTNL_RULE_TABLE, &c_string(&table.name)?);
    Ok(object)
}

pub(super) fn rule_object(table: &Table, chain: &str) -> Result<RuleObject> {
    let object = rules_object(table)?;
    object.string(sys::NFTNL_RULE_CHAIN, &c_string(chain)?);
    Ok(object)
}

pub(super) fn set_name_object(table: &Table, set: &str) -> Result<SetObject> {
    let object = SetObject::new();
    object.string(sys::NFTNL_SET_TABLE, &c_string(&table.name)?);
    object.string(sys::NFTNL_SET_NAME, &c_string(set)?);
    Ok(object)
}

fn set_flags(set: &Set) -> u32 {
    let map = if set.data == SetData::None { 0 } else { set_uapi::F_MAP };
    let interval = if set.interval { set_uapi::F_INTERVAL } else { 0 };
    map | interval
}

fn set_object(table: &Table, name: &CStr, set: &Set, id: u32) -> Result<SetObject> {
    let object = set_name_object(table, &name.to_string_lossy())?;
    let (key_type, key_len) = type_and_len(&set.key)?;
    object.number(sys::NFTNL_SET_FLAGS, set_flags(set));
    object.number(sys::NFTNL_SET_KEY_TYPE, key_type);
    object.number(sys::NFTNL_SET_KEY_LEN, key_len);
    object.number(sys::NFTNL_SET_ID, id);
    match &set.data {
        SetData::None => {}
        SetData::Verdict => {
            object.number(sys::NFTNL_SET_DATA_TYPE, set_uapi::DATA_VERDICT);
            // The kernel ignores a verdict's length.
            object.number(sys::NFTNL_SET_DATA_LEN, 0);
        }
        SetData::Values(types) => {
            let (data_type, data_len) = type_and_len(types)?;
            object.number(sys::NFTNL_SET_DATA_TYPE, data_type);
            object.number(sys::NFTNL_SET_DATA_LEN, data_len);
        }
    }
    object.userdata(sys::NFTNL_SET_USERDATA, &userdata::of_set(set));
    Ok(object)
}

/// A range becomes two elements: its first key, and the key behind its last with the flag of an end. A range up to the
/// last key of all has no end.
fn push_element(object: &SetObject, element: &Element, whole: bool, interval: bool) -> Result<()> {
    object.push(element_object(element, whole)?);
    let last = element.upper.as_ref().or(element.key.first()).filter(|_| interval);
    if let Some(end) = last.and_then(|last| successor(&last.bytes())) {
        let closing = ElementObject::new();
        closing.data(sys::NFTNL_SET_ELEM_KEY, &end)?;
        closing.number(sys::NFTNL_SET_ELEM_FLAGS, elem::F_INTERVAL_END);
        object.push(closing);
    }
    Ok(())
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

/// An element that is only named: to be asked for or deleted.
pub(super) fn key_object(key: &[Value]) -> Result<ElementObject> {
    let object = ElementObject::new();
    object.data(sys::NFTNL_SET_ELEM_KEY, &concatenated(key)?)?;
    Ok(object)
}

fn element_object(element: &Element, whole: bool) -> Result<ElementObject> {
    let object = key_object(&element.key)?;
    if !whole {
        return Ok(object);
    }
    match &element.data {
        None => {}
        Some(Data::Verdict(verdict)) => {
            object.number(sys::NFTNL_SET_ELEM_VERDICT, verdict_code(verdict));
            if let Some(chain) = verdict.chain() {
                object.string(sys::NFTNL_SET_ELEM_CHAIN, &c_string(chain)?);
            }
        }
        Some(Data::Values(values)) => {
            object.data(sys::NFTNL_SET_ELEM_DATA, &concatenated(values)?)?;
        }
    }
    if let Some(text) = &element.comment {
        object.userdata(sys::NFTNL_SET_ELEM_USERDATA, &userdata::comment(uapi::userdata::COMMENT, text));
    }
    Ok(object)
}

fn verdict_code(of: &Verdict) -> u32 {
    match of {
        Verdict::Accept => verdict::ACCEPT,
        Verdict::Drop => verdict::DROP,
        Verdict::Return => verdict::RETURN,
        Verdict::Continue => verdict::CONTINUE,
        Verdict::Jump(_) => verdict::JUMP,
        Verdict::Goto(_) => verdict::GOTO,
    }
}

fn expression_object(expression: &Expression, set_id: u32) -> Result<ExpressionObject> {
    let new = ExpressionObject::new;
    Ok(match expression {
        Expression::Load { from, to } => load_object(*from, *to),
        Expression::Store { from, to: Sink::Meta(key) } => {
            new(c"meta").number(sys::NFTNL_EXPR_META_KEY, *key).number(sys::NFTNL_EXPR_META_SREG, from.number())
        }
        Expression::Store { from, to: Sink::Ct(key) } => {
            new(c"ct").number(sys::NFTNL_EXPR_CT_KEY, *key).number(sys::NFTNL_EXPR_CT_SREG, from.number())
        }
        Expression::Bitwise { register, mask, xor } => new(c"bitwise")
            .number(sys::NFTNL_EXPR_BITWISE_SREG, register.number())
            .number(sys::NFTNL_EXPR_BITWISE_DREG, register.number())
            .number(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
            .data(sys::NFTNL_EXPR_BITWISE_MASK, mask)?
            .data(sys::NFTNL_EXPR_BITWISE_XOR, xor)?,
        Expression::Compare { register, how, with } => new(c"cmp")
            .number(sys::NFTNL_EXPR_CMP_SREG, register.number())
            .number(sys::NFTNL_EXPR_CMP_OP, *how as u32)
            .data(sys::NFTNL_EXPR_CMP_DATA, with)?,
        Expression::Range { register, how, from, to } => new(c"range")
            .number(sys::NFTNL_EXPR_RANGE_SREG, register.number())
            .number(sys::NFTNL_EXPR_RANGE_OP, *how as u32)
            .data(sys::NFTNL_EXPR_RANGE_FROM_DATA, from)?
            .data(sys::NFTNL_EXPR_RANGE_TO_DATA, to)?,
        Expression::Lookup { register, set, into, inverted } => {
            lookup_object(*register, set, *into, *inverted, set_id)?
        }
        Expression::Immediate { register, value } => new(c"immediate")
            .number(sys::NFTNL_EXPR_IMM_DREG, register.number())
            .data(sys::NFTNL_EXPR_IMM_DATA, value)?,
        Expression::Dnat { family, address, port } => {
            let nat = new(c"nat")
                .number(sys::NFTNL_EXPR_NAT_TYPE, libc::NFT_NAT_DNAT as u32)
                .number(sys::NFTNL_EXPR_NAT_FAMILY, *family)
                .number(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, address.number());
            match port {
                Some(port) => nat.number(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, port.number()),
                None => nat,
            }
        }
        Expression::Masquerade => new(c"masq"),
        Expression::Counter => new(c"counter"),
        Expression::Verdict(verdict) => {
            let immediate = new(c"immediate")
                .number(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
                .number(sys::NFTNL_EXPR_IMM_VERDICT, verdict_code(verdict));
            match verdict.chain() {
                Some(chain) => immediate.string(sys::NFTNL_EXPR_IMM_CHAIN, &c_string(chain)?),
                None => immediate,
            }
        }
        Expression::Foreign(name) => {
            return Err(Error::Internal { what: format!("nft: the expression \"{name}\" can be read only") });
        }
    })
}

fn load_object(from: Source, to: Register) -> ExpressionObject {
    let new = ExpressionObject::new;
    match from {
        Source::Meta(key) => {
            new(c"meta").number(sys::NFTNL_EXPR_META_KEY, key).number(sys::NFTNL_EXPR_META_DREG, to.number())
        }
        Source::Payload { base, offset, len } => new(c"payload")
            .number(sys::NFTNL_EXPR_PAYLOAD_DREG, to.number())
            .number(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
            .number(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .number(sys::NFTNL_EXPR_PAYLOAD_LEN, len),
        Source::Ct { key, direction } => {
            let ct = new(c"ct").number(sys::NFTNL_EXPR_CT_KEY, key).number(sys::NFTNL_EXPR_CT_DREG, to.number());
            match direction {
                Some(direction) => ct.byte(sys::NFTNL_EXPR_CT_DIR, direction),
                None => ct,
            }
        }
        Source::Fib { result, flags } => new(c"fib")
            .number(sys::NFTNL_EXPR_FIB_RESULT, result)
            .number(sys::NFTNL_EXPR_FIB_FLAGS, flags)
            .number(sys::NFTNL_EXPR_FIB_DREG, to.number()),
    }
}

fn lookup_object(
    register: Register,
    set: &LookupSet,
    into: LookupInto,
    inverted: bool,
    set_id: u32,
) -> Result<ExpressionObject> {
    let lookup = ExpressionObject::new(c"lookup").number(sys::NFTNL_EXPR_LOOKUP_SREG, register.number());
    let lookup = match into {
        LookupInto::Nothing => lookup,
        LookupInto::Verdict => lookup.number(sys::NFTNL_EXPR_LOOKUP_DREG, libc::NFT_REG_VERDICT as u32),
        LookupInto::Data(first) => lookup.number(sys::NFTNL_EXPR_LOOKUP_DREG, first.number()),
    };
    let lookup = match set {
        LookupSet::Named(name) => lookup.string(sys::NFTNL_EXPR_LOOKUP_SET, &c_string(name)?),
        LookupSet::Inline(_) => {
            lookup.string(sys::NFTNL_EXPR_LOOKUP_SET, inline_name(into)).number(sys::NFTNL_EXPR_LOOKUP_SET_ID, set_id)
        }
    };
    Ok(if inverted { lookup.number(sys::NFTNL_EXPR_LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV as u32) } else { lookup })
}

#[cfg(test)]
mod tests {
    use super::super::Family;
    use super::*;

    const TABLE: Table = Table::new(Family::Inet, "t");

    fn encoded(commands: &[Command]) -> Encoded {
        encode(&commands.iter().collect::<Vec<_>>()).unwrap().unwrap()
    }

    /// Before Linux 6.10 nobody else does, and whoever waits for an answer waits for ever.
    #[test]
    fn the_last_command_asks_for_an_answer() {
        let chain = |name: &str| Command::FlushChain(TABLE, name.into());
        let encoded = encoded(&[Command::AddTable(TABLE, None), chain("a"), chain("b")]);
        let all: Vec<_> = encoded.batch.iter().flat_map(messages).collect();
        let asks: Vec<bool> = all.iter().map(|m| i32::from(m.flags()) & libc::NLM_F_ACK != 0).skip(1).take(3).collect();
        assert_eq!(asks, [false, false, true]);
    }

    #[test]
    fn each_message_knows_its_command_and_elements() {
        let elements: Vec<Element> = (0..3000).map(|port| Element::key([Value::Port(port)])).collect();
        let encoded = encoded(&[
            Command::AddTable(TABLE, None),
            Command::AddElements(TABLE, "s".into(), Presence::Shared, elements),
            Command::DeleteTable(TABLE),
        ]);
        let first = encoded.batch.iter().flat_map(messages).nth(1).unwrap().sequence_number();
        let places: Vec<Place> = (first..).map_while(|sequence| encoded.place(sequence)).collect();
        assert_eq!((places[0].command, places[0].elements), (0, None));
        assert_eq!(places.last().map(|p| (p.command, p.elements)), Some((2, None)));
        let mut next = 0;
        for place in &places[1..places.len() - 1] {
            let (start, count) = place.elements.unwrap();
            assert_eq!((place.command, start), (1, next));
            next += count;
        }
        assert_eq!(next, 3000);
        assert!(places.len() > 4, "elements are spread over several messages");
        assert_eq!(encoded.place(0).map(|p| p.command), None, "the begin message is about no command");
    }

    #[test]
    fn the_next_key_carries_over() {
        assert_eq!(successor(&[1, 0xff]), Some(vec![2, 0]));
        assert_eq!(successor(&[0xff, 0xff]), None);
    }
}
