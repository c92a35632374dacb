//! Reading tables, chains, rules, sets and elements.
//!
//! One object is asked for by its name or key, so it costs the same in a table of ten and of ten thousand. Lists are
//! dumps, repeated by the socket when the tables changed meanwhile.

use std::collections::BTreeMap;
use std::fmt;

use nix::errno::Errno;
use nix::libc;

use super::attributes::Attributes;
use super::canonical::canonical;
use super::compile::compile;
use super::decompile::{RuleText, decompile};
use super::expression::{Expression, LookupSet};
use super::kernel::NftSocket;
use super::message::Message;
use super::model::{Chain, Element, Family, Hook, Policy, Rule, Set, Skeleton, Table, Verdict};
use super::read::{self, RawRule};
use super::socket::{DUMP_TRIES, Refused, pause_before_again};
use super::value::Value;
use super::write::{self, Elements};
use super::{attributes, uapi};
use crate::cni::error::{Error, Result};

/// A chain as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// Its handle.
    pub handle: u64,
    /// What makes it a base chain; `None` also for hooks that the model has no words for.
    pub hook: Option<Hook>,
    /// Whether the kernel calls it.
    pub is_base: bool,
    /// Its comment.
    pub comment: Option<String>,
    /// How many rules it has and how many rules and elements lead to it, together.
    pub uses: u32,
}

impl ChainInfo {
    /// Whether it is a base chain that drops what none of its rules accepts.
    pub fn drops(&self) -> bool {
        self.hook.is_some_and(|hook| hook.policy == Policy::Drop)
    }
}

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its handle.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// What it is made of. Putting it into words takes more time than all else that is done with most rules.
    pub(super) expressions: Vec<Expression>,
    family: Family,
}

impl RuleInfo {
    /// The rule; `None` if it has expressions that the model has no words for.
    pub fn rule(&self) -> Option<Rule> {
        decompile(&self.expressions, self.comment.as_deref(), self.family)
    }

    /// The rule as text: nft's syntax, or the kernel's expressions where the model has no words.
    pub fn text(&self) -> String {
        let (rule, comment) = (self.rule(), self.comment.as_deref());
        RuleText { rule: rule.as_ref(), expressions: &self.expressions, comment }.to_string()
    }

    /// Whether it is this rule, as far as can be seen without the contents of anonymous sets, which nobody can change.
    pub fn looks_like(&self, rule: &Rule) -> bool {
        let anonymous = |set: &LookupSet| match set {
            LookupSet::Named(name) => name.starts_with(ANONYMOUS),
            LookupSet::Inline(_) => true,
        };
        let same = |(wanted, found): (&Expression, &Expression)| match (wanted, found) {
            (
                Expression::Lookup { register: a, set: wanted, into: b, inverted: c },
                Expression::Lookup { register, set: found, into, inverted },
            ) if anonymous(wanted) && anonymous(found) => (a, b, c) == (register, into, inverted),
            (wanted, found) => wanted == found,
        };
        rule.comment == self.comment
            && compile(rule, self.family).is_ok_and(|wanted| {
                wanted.len() == self.expressions.len() && wanted.iter().zip(&self.expressions).all(same)
            })
    }

    /// Whether it is this rule.
    pub fn is(&self, rule: &Rule) -> bool {
        rule.comment == self.comment && compile(rule, self.family).is_ok_and(|wanted| wanted == self.expressions)
    }

    /// The chain to which it leads in the end.
    pub fn target(&self) -> Option<&str> {
        match self.expressions.last() {
            Some(Expression::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => Some(chain),
            _ => None,
        }
    }

    /// The rule less the test by this extension of iptables, where the model has words for all the rest.
    pub fn without_extension(&self, extension: &str) -> Option<Rule> {
        let foreign = Expression::Foreign(format!("match {extension}"));
        let rest: Vec<_> = self.expressions.iter().filter(|e| **e != foreign).cloned().collect();
        if rest.len() == self.expressions.len() {
            return None;
        }
        decompile(&rest, self.comment.as_deref(), self.family)
    }
}

/// A set as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetInfo {
    /// The set; `None` if it has data types that the model has no words for.
    pub set: Option<Set>,
    /// Its name.
    pub name: String,
    /// Whether it is a rule's own.
    pub anonymous: bool,
}

/// What the names begin with that the kernel gives to anonymous sets: it completes `__set%d` and `__map%d`.
const ANONYMOUS: &str = "__";

/// The rules of several chains of a table, at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRules(BTreeMap<String, Vec<RuleInfo>>);

impl TableRules {
    /// A chain's rules, first to last, without the contents of anonymous sets.
    pub fn of(&self, chain: &str) -> &[RuleInfo] {
        self.0.get(chain).map_or(&[], Vec::as_slice)
    }

    /// How many rules are in a chain, and how many lead to it, but for those that do so by a verdict map.
    pub fn uses_of(&self, chain: &str) -> (u32, u32) {
        let leading = self.0.values().flatten().filter(|rule| rule.target() == Some(chain));
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        (number(self.of(chain).len()), number(leading.count()))
    }

    /// Whether the chain's rules are these and no others, as [`RuleInfo::looks_like`] says.
    pub fn look_like(&self, chain: &Chain) -> bool {
        let found = self.of(&chain.name);
        found.len() == chain.rules.len()
            && found.iter().zip(&chain.rules).all(|(found, wanted)| found.looks_like(wanted))
    }
}

/// Keys in one request: the answers, one datagram each, must fit into the socket's receive buffer (by default 212992
/// bytes, of which an answer takes some 1300).
pub const KEYS_AT_ONCE: usize = 64;

/// The families that the model knows.
const FAMILIES: [Family; 6] = [Family::Inet, Family::Ip, Family::Arp, Family::Netdev, Family::Bridge, Family::Ip6];

impl NftSocket {
    /// The number of the state that the tables of this namespace are in; every transaction raises it.
    pub fn generation(&mut self) -> Result<u32> {
        let request = request(None, libc::NFT_MSG_GETGEN, Attributes::default());
        let answer = self.channel.get(&request, |bytes| attributes::find_number(bytes, uapi::GEN_ID));
        let found = answer.map_err(refused("read", "the generation of nf_tables"))?;
        found.ok_or_else(|| Error::kernel("read", "the generation of nf_tables", Errno::ENODATA))
    }

    /// All tables of this namespace, of the families that the model knows.
    pub fn tables(&mut self) -> Result<Vec<Table>> {
        let mut tables = Vec::new();
        for family in FAMILIES {
            let request = Message { family: Some(family), ..dump(None, libc::NFT_MSG_GETTABLE, Attributes::default()) };
            let names = self.channel.dump(&request, &mut |bytes, all| {
                all.extend(attributes::find_text(bytes, uapi::table::NAME));
            });
            let names = names.map_err(refused("list", "the tables"))?;
            tables.extend(names.into_iter().map(|name| Table { family, name: name.into() }));
        }
        Ok(tables)
    }

    /// Whether there is such a table.
    pub fn has_table(&mut self, table: &Table) -> Result<bool> {
        Ok(self.is_dormant(table)?.is_some())
    }

    /// Whether the kernel passes over the table's hooks (`flags dormant`); `None` if there is no such table.
    pub fn is_dormant(&mut self, table: &Table) -> Result<Option<bool>> {
        let found = self.channel.get(&table_request(table)?, |bytes| Some(is_dormant(bytes)));
        found.map_err(refused("read", format_args!("table {table}")))
    }

    /// Whether this very skeleton is in place and in effect and its base chains have their hooks and as many rules as they
    /// should: a look-up for each of them, all in one datagram. (`nft flush table` leaves everything but the rules.)
    pub fn is_in_place(&mut self, skeleton: &Skeleton) -> Result<bool> {
        self.is_counted(skeleton, |chain| chain.hook.is_some())
    }

    /// The same, where nothing but the skeleton's own rules leads to any of its chains: then the kernel's counts tell of all of
    /// them whether a rule is missing or too many.
    pub fn is_whole(&mut self, skeleton: &Skeleton) -> Result<bool> {
        self.is_counted(skeleton, |_| true)
    }

    fn is_counted(&mut self, skeleton: &Skeleton, is_asked_for: impl Fn(&Chain) -> bool) -> Result<bool> {
        let table = &skeleton.table;
        let chains: Vec<&Chain> = skeleton.chains.iter().filter(|chain| is_asked_for(chain)).collect();
        let mut asked = vec![skeleton.marker_request()?, table_request(table)?];
        for chain in &chains {
            asked.push(chain_request(table, &chain.name)?);
        }
        let is_as_wanted = |place: usize, bytes: &[u8]| match place.checked_sub(2) {
            None if place == 0 => Some(!read::elements(bytes, &Skeleton::marker_set()).is_empty()),
            None => Some(!is_dormant(bytes)),
            Some(at) => {
                // No more of it is read than is compared: these are answers to most calls.
                let (wanted, uses) = (chains.get(at)?, attributes::find_number(bytes, uapi::chain::USE)?);
                let is_called = match wanted.hook {
                    Some(hook) => read::hook(bytes) == Some(hook),
                    None => attributes::find(bytes, uapi::chain::HOOK).is_none(),
                };
                Some(is_called && usize::try_from(uses) == Ok(skeleton.uses_of(wanted)))
            }
        };
        let found = self.channel.get_all(&asked, is_as_wanted);
        let found = found.map_err(refused("read", format_args!("table {table}")))?;
        Ok(found.into_iter().all(|as_wanted| as_wanted == Some(true)))
    }

    /// Chains by their names, without their rules, asked for by one datagram; in their order, `None` for those that
    /// aren't there.
    pub fn chains_at(&mut self, names: &[(Table, &str)]) -> Result<Vec<Option<ChainInfo>>> {
        let asked: Vec<Message> =
            names.iter().map(|(table, name)| chain_request(table, name)).collect::<Result<_>>()?;
        self.channel
            .get_all(&asked, |place, bytes| names.get(place).and_then(|(table, _)| read::chain(bytes, table)))
            .map_err(refused("read", "chains by their names"))
    }

    /// One chain, without its rules.
    pub fn chain(&mut self, table: &Table, name: &str) -> Result<Option<ChainInfo>> {
        self.channel
            .get(&chain_request(table, name)?, |bytes| read::chain(bytes, table))
            .map_err(refused("read", format_args!("chain {name} of table {table}")))
    }

    /// All chains of a table, without their rules, in the order they were made.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainInfo>> {
        let request = dump(Some(table), libc::NFT_MSG_GETCHAIN, Attributes::default());
        self.channel
            .dump(&request, &mut |bytes, all| all.extend(read::chain(bytes, table)))
            .map_err(refused("list", format_args!("the chains of table {table}")))
    }

    /// The base chains of all tables of the families that the model knows, each with its table: one dump.
    pub fn base_chains(&mut self) -> Result<Vec<(Table, ChainInfo)>> {
        let request = dump(None, libc::NFT_MSG_GETCHAIN, Attributes::default());
        self.channel
            .dump_families(&request, &mut |family, bytes, all| {
                // Most chains of a host are none of these.
                if attributes::find(bytes, uapi::chain::HOOK).is_none() {
                    return;
                }
                let family = FAMILIES.into_iter().find(|known| *known as u16 == u16::from(family));
                let (Some(family), Some(name)) = (family, attributes::find_text(bytes, uapi::chain::TABLE)) else {
                    return;
                };
                let table = Table { family, name: name.into() };
                let chain = read::chain(bytes, &table);
                all.extend(chain.map(|chain| (table, chain)));
            })
            .map_err(refused("list", "the base chains"))
    }

    /// A chain's rules, first to last, with the contents of their anonymous sets; none if there is no such chain.
    ///
    /// All is of one generation: the kernel gives an anonymous set's name to the next one as soon as it is free.
    pub fn rules(&mut self, table: &Table, chain: &str) -> Result<Vec<RuleInfo>> {
        let what = || format!("the rules of chain {chain} of table {table}");
        let mut before = None;
        for _ in 0..DUMP_TRIES {
            let request = dump(Some(table), libc::NFT_MSG_GETRULE, write::rules_of(table, chain)?);
            let mut raw = self
                .channel
                .dump(&request, &mut |bytes, all| all.extend(read::rule(bytes)))
                .map_err(|refusal| refused("list", what())(refusal))?;
            let mut dependent = false;
            for rule in &mut raw {
                dependent |= self.resolve(table, rule)?;
            }
            // Where there are such sets, all is read twice; mostly there are none, and the generation is nobody's concern.
            let now = if dependent { Some(self.generation()?) } else { None };
            if now == before || !dependent {
                return Ok(raw.into_iter().map(|rule| info(table, rule)).collect());
            }
            before = now;
        }
        Err(Error::TryAgain { what: format!("{} keep changing while they are read", what()) })
    }

    /// The rules of those chains of a table that are wanted: one look, for what a single chain's costs as long as the others
    /// have few.
    pub fn table_rules(&mut self, table: &Table, wanted: &dyn Fn(&str) -> bool) -> Result<TableRules> {
        let request = dump(Some(table), libc::NFT_MSG_GETRULE, write::rules(table)?);
        let found = self.channel.dump(&request, &mut |bytes, all| {
            let chain = attributes::find_text(bytes, uapi::rule::CHAIN).filter(|chain| wanted(chain));
            all.extend(chain.and_then(|chain| Some((chain, read::rule(bytes)?))));
        });
        let mut all = TableRules::default();
        for (chain, rule) in found.map_err(refused("list", format_args!("the rules of table {table}")))? {
            all.0.entry(chain).or_default().push(info(table, rule));
        }
        Ok(all)
    }

    /// Puts the contents of the rule's anonymous sets in their places; whether it has any.
    fn resolve(&mut self, table: &Table, rule: &mut RawRule) -> Result<bool> {
        let mut any = false;
        for expression in &mut rule.expressions {
            let Expression::Lookup { set: place @ LookupSet::Named(_), .. } = expression else { continue };
            // A named set may be called so, too: hence the flag.
            let LookupSet::Named(name) = &*place else { continue };
            if !name.starts_with(ANONYMOUS) {
                continue;
            }
            any = true;
            match self.set(table, name)? {
                Some(SetInfo { set: Some(set), anonymous: true, .. }) => {
                    *place = LookupSet::sorted(self.elements(table, &set)?);
                }
                Some(SetInfo { set: None, anonymous: true, .. }) => {
                    *expression = Expression::Foreign("lookup in a set of unknown types".to_owned());
                }
                _ => {}
            }
        }
        Ok(any)
    }

    /// A set without its elements.
    pub fn set(&mut self, table: &Table, name: &str) -> Result<Option<SetInfo>> {
        let request = request(Some(table), libc::NFT_MSG_GETSET, write::set_name(table, name)?);
        self.channel.get(&request, read::set).map_err(refused("read", format_args!("set {name} of table {table}")))
    }

    /// All sets of a table without their elements, anonymous ones included.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>> {
        let request = dump(Some(table), libc::NFT_MSG_GETSET, write::sets(table)?);
        self.channel
            .dump(&request, &mut |bytes, all| all.extend(read::set(bytes)))
            .map_err(refused("list", format_args!("the sets of table {table}")))
    }

    /// The element with this key, without reading the others; `None` also if there is no such set.
    pub fn element(&mut self, table: &Table, set: &Set, key: &[Value]) -> Result<Option<Element>> {
        let request = element_request(table, &set.name, key)?;
        let found = self.channel.get(&request, |bytes| Some(read::elements(bytes, set)));
        let what = || format!("element {} of {} {} of table {table}", Element::key(key), set.keyword(), set.name);
        let found = found.map_err(|refusal| refused("read", what())(refusal))?;
        Ok(found.and_then(|raw| read::pair_up(read::sorted(raw), set).into_iter().next()))
    }

    /// Elements of several sets by their keys, many asked for by one datagram; in their order, `None` for those that aren't
    /// there, and where there is no such set. Not for ranges.
    pub fn elements_in(&mut self, places: &[(&Table, &Set, &[Value])]) -> Result<Vec<Option<Element>>> {
        let mut all = Vec::with_capacity(places.len());
        for places in places.chunks(KEYS_AT_ONCE) {
            let asked: Vec<Message> =
                places.iter().map(|(table, set, key)| element_request(table, &set.name, key)).collect::<Result<_>>()?;
            let found = self.channel.get_all(&asked, |place, bytes| {
                let (_, set, _) = places.get(place)?;
                read::pair_up(read::elements(bytes, set), set).into_iter().next()
            });
            all.extend(found.map_err(refused("read", "elements by their keys"))?);
        }
        Ok(all)
    }

    /// The elements with these keys, in their order, up to the first that isn't there, in one request; at most as many
    /// as [`KEYS_AT_ONCE`] keys. Not for ranges.
    pub fn elements_until_missing(&mut self, table: &Table, set: &Set, keys: &[Vec<Value>]) -> Result<Vec<Element>> {
        let asked = keys.get(..KEYS_AT_ONCE).unwrap_or(keys);
        let request = elements_request(table, &set.name, asked.iter().map(Vec::as_slice))?;
        let mut found = Vec::with_capacity(asked.len());
        // The kernel stops at the first that is missing (nf_tables_getsetelem).
        let all = self.channel.get_each(&Message { flags: libc::NLM_F_ACK, ..request }, |bytes| {
            found.extend(read::pair_up(read::elements(bytes, set), set));
        });
        let what = || format!("elements of {} {} of table {table}", set.keyword(), set.name);
        let all = all.map_err(|refusal| refused("read", what())(refusal))?;
        if all && found.len() != asked.len() {
            return Err(Error::kernel("read", what(), Errno::EBADMSG));
        }
        Ok(found)
    }

    /// The elements with these keys, in their order; `None` for those that aren't there. The set's other elements cost
    /// nothing. Not for ranges.
    pub fn elements_at(&mut self, table: &Table, set: &Set, keys: &[Vec<Value>]) -> Result<Vec<Option<Element>>> {
        let mut all = Vec::with_capacity(keys.len());
        for asked in keys.chunks(KEYS_AT_ONCE) {
            let found = self.elements_until_missing(table, set, asked)?;
            // One that is missing ends a request. Asked for by one each, those behind it cost the same however many there are.
            let places: Vec<_> = asked.iter().skip(found.len() + 1).map(|key| (table, set, key.as_slice())).collect();
            let missing = (found.len() < asked.len()).then_some(None);
            all.extend(found.into_iter().map(Some).chain(missing));
            all.extend(self.elements_in(&places)?);
        }
        Ok(all)
    }

    /// The first of these elements whose key is there: who is in the way after an EEXIST.
    pub fn first_present(&mut self, table: &Table, set: &Set, elements: &[Element]) -> Result<Option<Element>> {
        for element in elements {
            let found = self.element(table, set, &element.key)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// All elements of a set, sorted by key.
    ///
    /// A hash set that has just grown is still being moved to its larger table, which changes neither the generation
    /// nor the flags of a dump: then some elements come twice and others, from one message of the dump to the next, not
    /// at all (nft_rhash_walk, net/netfilter/nft_set_hash.c, goes on at a number of elements). No element can be missed
    /// without another that comes twice, so such a dump is repeated.
    pub fn elements(&mut self, table: &Table, set: &Set) -> Result<Vec<Element>> {
        self.elements_where(table, set, |_| true)
    }

    /// The same, of those whose keys, in the kernel's form, are wanted. Not for ranges.
    pub(super) fn elements_where(
        &mut self,
        table: &Table,
        set: &Set,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Element>> {
        let what = || format!("the elements of set {} of table {table}", set.name);
        let message = dump(Some(table), libc::NFT_MSG_GETSETELEM, write::elements_of(table, &set.name)?);
        for attempt in 0..DUMP_TRIES {
            let raw = self
                .channel
                .dump(&message, &mut |bytes, all| all.extend(read::elements(bytes, set)))
                .map_err(|refusal| refused("list", what())(refusal))?;
            let mut raw = read::sorted(raw);
            if !read::has_twins(&raw) {
                raw.retain(|element| wanted(&element.key));
                return Ok(read::pair_up(raw, set));
            }
            std::thread::sleep(pause_before_again(attempt));
        }
        Err(refused("list", what())(Errno::EAGAIN.into()))
    }
}

/// The object is put into words only when there is something to say of it.
fn refused(action: &'static str, object: impl fmt::Display) -> impl FnOnce(Refused) -> Error {
    move |refused| match refused.errno {
        Errno::EAGAIN => Error::TryAgain { what: format!("{object} keeps changing while it is read") },
        errno => Error::Kernel { action, object: object.to_string(), errno, ext_ack: refused.text },
    }
}

fn info(table: &Table, rule: RawRule) -> RuleInfo {
    let RawRule { handle, comment, expressions } = rule;
    RuleInfo { handle, comment, expressions: canonical(expressions), family: table.family }
}

fn table_request(table: &Table) -> Result<Message> {
    Ok(request(Some(table), libc::NFT_MSG_GETTABLE, write::table(table, None)?))
}

fn chain_request(table: &Table, name: &str) -> Result<Message> {
    Ok(request(Some(table), libc::NFT_MSG_GETCHAIN, write::chain_name(table, name)?))
}

pub(super) fn element_request(table: &Table, set: &str, key: &[Value]) -> Result<Message> {
    elements_request(table, set, [key])
}

fn elements_request<'a>(table: &Table, set: &str, keys: impl IntoIterator<Item = &'a [Value]>) -> Result<Message> {
    let mut list = Elements::of(table, set, None)?;
    keys.into_iter().try_for_each(|key| list.ask(key))?;
    Ok(request(Some(table), libc::NFT_MSG_GETSETELEM, list.finish()?))
}

fn is_dormant(table: &[u8]) -> bool {
    attributes::find_number(table, uapi::table::FLAGS).unwrap_or_default() & uapi::table::F_DORMANT != 0
}

fn request(table: Option<&Table>, kind: i32, attributes: Attributes) -> Message {
    Message { kind, family: table.map(|t| t.family), flags: 0, attributes }
}

fn dump(table: Option<&Table>, kind: i32, attributes: Attributes) -> Message {
    Message { flags: libc::NLM_F_DUMP, ..request(table, kind, attributes) }
}
