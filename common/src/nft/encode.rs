//! From a transaction to a batch of messages.

use netlink_packet_core::NetlinkBuffer;
use nftnl::{Batch, FinalizedBatch, MsgType};
use nix::libc;

use super::attributes::Attributes;
use super::expression::LookupInto;
use super::message::Message;
use super::model::{Chain, Data, Element, Rule, Set, SetData, Table};
use super::transaction::{Command, Position, Presence};
use super::uapi;
use super::value::Value;
use super::write::{self, Elements, inline_name};
use crate::cni::error::{Error, Result};

/// Bytes of one message's elements: their list is one attribute, whose length has 16 bits.
pub(super) const ELEMENTS_MAX_BYTES: usize = 60_000;

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
    fn send(&mut self, table: &Table, kind: i32, flags: i32, attributes: Attributes) {
        self.send_elements(table, kind, flags, attributes, None);
    }

    fn send_elements(
        &mut self,
        table: &Table,
        kind: i32,
        flags: i32,
        attributes: Attributes,
        elements: Option<(usize, usize)>,
    ) {
        let message = Message { kind, family: Some(table.family), flags, attributes };
        if let Some(before) = self.held.replace(message) {
            self.batch.add(&before, MsgType::Add);
        }
        self.places.push(Place { command: self.command, elements });
    }

    fn command(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::AddTable(table, comment) => {
                let mut all = write::table(table, comment.as_deref())?;
                // As nft does: a table that is there and dormant wakes up.
                all.number(uapi::table::FLAGS, 0);
                self.send(table, libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, all);
            }
            Command::DeleteTable(table) => self.send(table, libc::NFT_MSG_DELTABLE, 0, write::table(table, None)?),
            Command::AddSet(table, set) => {
                self.send(table, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, write::set(table, set, 0, None)?);
            }
            Command::DeleteSet(table, set) => {
                self.send(table, libc::NFT_MSG_DELSET, 0, write::set_name(table, set)?);
            }
            Command::FlushSet(table, set) => {
                self.send(table, libc::NFT_MSG_DELSETELEM, 0, write::elements_of(table, set)?);
            }
            Command::AddChain(table, chain) => {
                self.send(table, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, write::chain(table, chain, true)?);
                self.add_rules(table, chain)?;
            }
            Command::UseChain(table, chain) => {
                self.send(table, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, write::chain(table, chain, false)?);
            }
            Command::AddRules(table, chain) => self.add_rules(table, chain)?,
            Command::DeleteChain(table, chain) => {
                self.send(table, libc::NFT_MSG_DELCHAIN, 0, write::chain_name(table, chain)?);
            }
            Command::FlushChain(table, chain) => {
                self.send(table, libc::NFT_MSG_DELRULE, 0, write::rules_of(table, chain)?);
            }
            Command::AddRule(table, chain, position, rule) => self.add_rule(table, chain, *position, rule)?,
            Command::DeleteRule(table, chain, handle) => {
                let mut all = write::rules_of(table, chain)?;
                all.long(uapi::rule::HANDLE, *handle);
                self.send(table, libc::NFT_MSG_DELRULE, 0, all);
            }
            Command::AddElements(table, set, presence, elements) => {
                let exclusive = if *presence == Presence::Exclusive { libc::NLM_F_EXCL } else { 0 };
                let list = || Elements::of(table, set, None);
                self.elements(table, libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | exclusive, &list, elements)?;
            }
            Command::DeleteElements(table, set, elements) => {
                let list = || Elements::of(table, set, None);
                self.elements(table, libc::NFT_MSG_DELSETELEM, 0, &list, elements)?;
            }
        }
        Ok(())
    }

    fn add_rules(&mut self, table: &Table, chain: &Chain) -> Result<()> {
        chain.rules.iter().try_for_each(|rule| self.add_rule(table, &chain.name, Position::End, rule))
    }

    fn add_rule(&mut self, table: &Table, chain: &str, position: Position, rule: &Rule) -> Result<()> {
        let mut all = write::rules_of(table, chain)?;
        let flags = match position {
            Position::Top | Position::Before(_) => 0,
            Position::End | Position::After(_) => libc::NLM_F_APPEND,
        };
        if let Position::Before(handle) | Position::After(handle) = position {
            all.long(uapi::rule::POSITION, handle);
        }
        write::rule(&mut all, table, rule, &mut |elements, into| self.inline_set(table, elements, into))?;
        self.send(table, libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | flags, all);
        Ok(())
    }

    /// Sends a rule's anonymous set and its elements; the rule refers to it by the number that comes back.
    fn inline_set(&mut self, table: &Table, elements: &[Element], into: LookupInto) -> Result<u32> {
        let id = self.next_set_id;
        self.next_set_id += 1;
        let set = inline_description(elements, into)?;
        let all = write::set(table, &set, id, Some(elements.len()))?;
        self.send(table, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, all);
        let list = || Elements::of(table, &set.name, Some(id));
        self.elements(table, libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, &list, elements)?;
        Ok(id)
    }

    /// The elements, over as many messages as they need.
    fn elements(
        &mut self,
        table: &Table,
        kind: i32,
        flags: i32,
        empty: &dyn Fn() -> Result<Elements>,
        elements: &[Element],
    ) -> Result<()> {
        let mut list = empty()?;
        let mut first = 0;
        // In a set of ranges a single key is a range of one.
        let interval = elements.iter().any(|e| e.upper.is_some());
        let whole = kind == libc::NFT_MSG_NEWSETELEM;
        for (place, element) in elements.iter().enumerate() {
            if list.len() + size_at_most(element) > ELEMENTS_MAX_BYTES {
                let full = std::mem::replace(&mut list, empty()?).finish()?;
                self.send_elements(table, kind, flags, full, Some((first, place - first)));
                first = place;
            }
            if whole { list.add(element, interval)? } else { list.delete(element, interval)? }
        }
        if !elements.is_empty() {
            self.send_elements(table, kind, flags, list.finish()?, Some((first, elements.len() - first)));
        }
        Ok(())
    }
}

/// Bytes that an element takes at the most: attribute headers, key (an interval has a second), data, padding.
fn size_at_most(element: &Element) -> usize {
    96 + 2 * element.key.iter().map(|v| v.data_type().padded_width()).sum::<usize>()
        + element.data.as_ref().map_or(0, data_size)
        + element.comment.as_ref().map_or(0, |c| c.len().min(super::model::COMMENT_MAX))
}

fn data_size(data: &Data) -> usize {
    match data {
        Data::Verdict(verdict) => verdict.chain().map_or(0, str::len),
        Data::Values(values) => values.iter().map(|v| v.data_type().padded_width()).sum(),
    }
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
    Ok(Set { data, interval, ..Set::of(inline_name(into), types(&first.key)) })
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
        let elements: Vec<Element> = (0..16000).map(|port| Element::key([Value::Port(port)])).collect();
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
        assert_eq!(next, 16000);
        assert!(places.len() > 4, "elements are spread over several messages");
        assert_eq!(encoded.place(0).map(|p| p.command), None, "the begin message is about no command");
    }
}
