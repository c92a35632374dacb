//! The door: transactions go in, tables are read.

use std::fmt;

use nix::errno::Errno;
use nix::libc;

use super::decompile::{RuleText, decompile};
use super::encode::{self, Encoded};
use super::expression::{Expression, LookupSet};
use super::message::{Body, Message};
use super::model::{Element, Family, Hook, Rule, Set, Skeleton, Table};
use super::object::{ChainObject, SetObject};
use super::read::{self, RawRule};
use super::socket::{Channel, Refused};
use super::transaction::{Command, Transaction};
use super::uapi;
use crate::cni::error::{Error, Result};

/// Why a transaction came to nothing. The tables are as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kernel's answer: EEXIST for an element that is there, ENOENT for what isn't, ERESTART for a generation that
    /// has passed, EBUSY for what is in use.
    pub errno: Errno,
    /// The text of its extended acknowledgement; mostly empty.
    pub ext_ack: String,
    /// The place in the transaction of the command that failed, if it is about one.
    pub command: Option<usize>,
    /// The place of the element within that command, if it is about one.
    pub element: Option<usize>,
    /// The command, or the element, as text.
    pub object: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.object, self.errno.desc(), self.ext_ack)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let Refusal { errno, ext_ack, object, .. } = refusal;
        if errno == Errno::ERESTART {
            return Error::TryAgain { what: "the host's nftables rules keep changing".into() };
        }
        Error::Kernel { action: "carry out", object, errno, ext_ack }
    }
}

/// Why a commit failed: it wasn't a transaction that can be sent, or the kernel refused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitError {
    /// The kernel refused.
    Refused(Refusal),
    /// It could not be encoded: nothing was sent.
    Unsendable(Error),
}

impl CommitError {
    /// The kernel's answer, if it was asked.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            CommitError::Refused(refusal) => Some(refusal),
            CommitError::Unsendable(_) => None,
        }
    }

    /// The kernel's errno, if it was asked.
    pub fn errno(&self) -> Option<Errno> {
        self.refusal().map(|r| r.errno)
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Error {
        match error {
            CommitError::Refused(refusal) => refusal.into(),
            CommitError::Unsendable(error) => error,
        }
    }
}

impl From<Error> for CommitError {
    fn from(error: Error) -> CommitError {
        CommitError::Unsendable(error)
    }
}

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

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its handle.
    pub handle: u64,
    /// The rule; `None` if it has expressions that the model has no words for.
    pub rule: Option<Rule>,
    /// Its comment.
    pub comment: Option<String>,
    /// The rule as text: nft's syntax, or the kernel's expressions where the model has no words.
    pub text: String,
    /// What it is made of.
    pub(super) expressions: Vec<super::expression::Expression>,
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

/// A connection to nf_tables, opened when it is first used, in the network namespace the thread is in then.
///
/// Closing it waits for a grace period of the kernel (4 to 24 ms) if one of its transactions deleted something or
/// failed: never use a transaction that may fail as a question.
#[derive(Debug, Default)]
pub struct NftSocket {
    channel: Channel,
}

impl NftSocket {
    /// A socket that isn't open yet.
    pub fn new() -> NftSocket {
        NftSocket::default()
    }

    /// Opens it now: in the namespace the thread is in.
    pub fn open() -> Result<NftSocket> {
        let mut socket = NftSocket::new();
        socket.channel.open().map_err(|errno| Error::kernel("open", "a netlink socket to nf_tables", errno))?;
        Ok(socket)
    }

    /// Sends a transaction; an empty one costs nothing.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.commit_all(&[], transaction, None)
    }

    /// Sends a transaction that is refused with ERESTART if anything in this namespace's tables has changed since
    /// [`NftSocket::generation`] said this.
    pub fn commit_at(&mut self, transaction: &Transaction, generation: u32) -> Result<(), CommitError> {
        self.commit_all(&[], transaction, Some(generation))
    }

    /// Sends a transaction that needs the skeleton: put in, if it is missing or another, by the same transaction.
    ///
    /// The skeleton costs one look-up when it is there.
    pub fn commit_on(&mut self, skeleton: &Skeleton, transaction: &Transaction) -> Result<(), CommitError> {
        for _ in 0..3 {
            let (missing, before) = match self.has_skeleton(skeleton)? {
                true => (false, Vec::new()),
                false => (true, self.bootstrap(skeleton)?),
            };
            match self.commit_all(&before, transaction, None) {
                // The whole table was removed between the look and the leap.
                Err(CommitError::Refused(r))
                    if r.errno == Errno::ENOENT && !missing && !self.has_skeleton(skeleton)? => {}
                // Another call changed the static base chains at the same time.
                Err(CommitError::Refused(r))
                    if missing
                        && matches!(r.errno, Errno::ENOENT | Errno::EEXIST | Errno::EBUSY)
                        && r.command.is_none() => {}
                outcome => return outcome,
            }
        }
        Err(Error::TryAgain { what: format!("table {} keeps being removed", skeleton.table) }.into())
    }

    pub(super) fn commit_all(
        &mut self,
        before: &[Command],
        transaction: &Transaction,
        generation: Option<u32>,
    ) -> Result<(), CommitError> {
        let commands: Vec<&Command> = before.iter().chain(transaction.commands()).collect();
        let Some(encoded) = encode::encode(&commands)? else { return Ok(()) };
        let begin = generation.map(encode::begin);
        self.channel
            .commit(&encoded.batch, begin.as_deref())
            .map_err(|refused| CommitError::Refused(refusal(refused, &encoded, &commands, before.len())))
    }

    fn refused(action: &'static str, object: impl fmt::Display) -> impl FnOnce(Refused) -> Error {
        let object = object.to_string();
        move |refused| match refused.errno {
            Errno::EAGAIN => Error::TryAgain { what: format!("{object} keeps changing while it is read") },
            errno => Error::Kernel { action, object, errno, ext_ack: refused.text },
        }
    }

    /// The number of the state that the tables of this namespace are in; every transaction raises it.
    pub fn generation(&mut self) -> Result<u32> {
        let request = request(None, libc::NFT_MSG_GETGEN, Body::None);
        let answer = self.channel.get(&request, |bytes| super::attributes::find_number(bytes, uapi::GEN_ID));
        let found = answer.map_err(Self::refused("read", "the generation of nf_tables"))?;
        found.ok_or_else(|| Error::kernel("read", "the generation of nf_tables", Errno::ENODATA))
    }

    /// All tables of this namespace, of the families that the model knows.
    pub fn tables(&mut self) -> Result<Vec<Table>> {
        let mut tables = Vec::new();
        let all = [Family::Inet, Family::Ip, Family::Arp, Family::Netdev, Family::Bridge, Family::Ip6];
        for family in all {
            let request = Message { family: Some(family), ..dump(None, libc::NFT_MSG_GETTABLE, Body::None) };
            let names = self.channel.dump(&request, &mut |bytes, all| {
                all.extend(super::attributes::find_text(bytes, uapi::table::NAME));
            });
            let names = names.map_err(Self::refused("list", "the tables"))?;
            tables.extend(names.into_iter().map(|name| Table { family, name: name.into() }));
        }
        Ok(tables)
    }

    /// A table's comment; `None` if there is no such table.
    pub fn table(&mut self, table: &Table) -> Result<Option<Option<String>>> {
        let body = Body::Table(encode::table_object(table, None)?);
        self.channel
            .get(&request(Some(table), libc::NFT_MSG_GETTABLE, body), |bytes| Some(read::table_comment(bytes)))
            .map_err(Self::refused("read", format_args!("table {table}")))
    }

    /// One chain, without its rules.
    pub fn chain(&mut self, table: &Table, name: &str) -> Result<Option<ChainInfo>> {
        let body = Body::Chain(encode::chain_name_object(table, name)?);
        self.channel
            .get(&request(Some(table), libc::NFT_MSG_GETCHAIN, body), |bytes| read::chain(bytes, table))
            .map_err(Self::refused("read", format_args!("chain {name} of table {table}")))
    }

    /// All chains of a table, without their rules, in the order they were made.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainInfo>> {
        let request = dump(Some(table), libc::NFT_MSG_GETCHAIN, Body::Chain(ChainObject::new()));
        self.channel
            .dump(&request, &mut |bytes, all| all.extend(read::chain(bytes, table)))
            .map_err(Self::refused("list", format_args!("the chains of table {table}")))
    }

    /// A chain's rules, first to last, with the contents of their anonymous sets; none if there is no such chain.
    pub fn rules(&mut self, table: &Table, chain: &str) -> Result<Vec<RuleInfo>> {
        let body = Body::Rule(encode::rule_object(table, chain)?);
        let raw = self
            .channel
            .dump(&dump(Some(table), libc::NFT_MSG_GETRULE, body), &mut |bytes, all| all.extend(read::rule(bytes)))
            .map_err(Self::refused("list", format_args!("the rules of chain {chain} of table {table}")))?;
        raw.into_iter().map(|rule| self.resolve(table, rule)).collect()
    }

    /// Reads the contents of the rule's anonymous sets.
    fn resolve(&mut self, table: &Table, raw: RawRule) -> Result<RuleInfo> {
        let RawRule { handle, comment, mut expressions } = raw;
        for expression in &mut expressions {
            let Expression::Lookup { set: LookupSet::Named(name), .. } = expression else { continue };
            // The kernel completes `__set%d` and `__map%d`; nobody else's names begin so, but that is only a custom.
            if !name.starts_with("__") {
                continue;
            }
            let Some(SetInfo { set, anonymous: true, .. }) = self.set(table, name)? else { continue };
            *expression = match set {
                Some(set) => {
                    let elements = self.elements(table, &set)?;
                    let Expression::Lookup { set: place, .. } = expression else { continue };
                    *place = LookupSet::sorted(elements);
                    continue;
                }
                None => Expression::Foreign(format!("lookup @{name}")),
            };
        }
        let rule = decompile(&expressions, comment.as_deref(), encode::only_version(table.family));
        let text = RuleText { rule: rule.as_ref(), expressions: &expressions, comment: comment.as_deref() }.to_string();
        Ok(RuleInfo { handle, rule, comment, text, expressions })
    }

    /// A set without its elements.
    pub fn set(&mut self, table: &Table, name: &str) -> Result<Option<SetInfo>> {
        let body = Body::Set(encode::set_name_object(table, name)?);
        self.channel
            .get(&request(Some(table), libc::NFT_MSG_GETSET, body), read::set)
            .map_err(Self::refused("read", format_args!("set {name} of table {table}")))
    }

    /// All sets of a table without their elements, anonymous ones included.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>> {
        let object = SetObject::new();
        object.string(nftnl::nftnl_sys::NFTNL_SET_TABLE, &encode::c_string(&table.name)?);
        self.channel
            .dump(&dump(Some(table), libc::NFT_MSG_GETSET, Body::Set(object)), &mut |bytes, all| {
                all.extend(read::set(bytes));
            })
            .map_err(Self::refused("list", format_args!("the sets of table {table}")))
    }

    /// The element with this key, without reading the others; `None` also if there is no such set.
    pub fn element(&mut self, table: &Table, set: &Set, element: &Element) -> Result<Option<Element>> {
        let object = encode::set_name_object(table, &set.name)?;
        object.push(encode::element_object(element, false)?);
        let found = self
            .channel
            .get(&request(Some(table), libc::NFT_MSG_GETSETELEM, Body::Elements(object)), |bytes| {
                Some(read::elements(bytes, set))
            })
            .map_err(Self::refused("read", format_args!("element {element} of set {} of table {table}", set.name)))?;
        Ok(found.and_then(|raw| read::pair_up(raw, set).into_iter().next()))
    }

    /// All elements of a set, sorted by key.
    pub fn elements(&mut self, table: &Table, set: &Set) -> Result<Vec<Element>> {
        let body = Body::Elements(encode::set_name_object(table, &set.name)?);
        let raw = self
            .channel
            .dump(&dump(Some(table), libc::NFT_MSG_GETSETELEM, body), &mut |bytes, all| {
                all.extend(read::elements(bytes, set));
            })
            .map_err(Self::refused("list", format_args!("the elements of set {} of table {table}", set.name)))?;
        Ok(read::pair_up(raw, set))
    }
}

fn request(table: Option<&Table>, kind: i32, body: Body) -> Message {
    Message { kind, family: table.map(|t| t.family), flags: libc::NLM_F_ACK, body }
}

fn dump(table: Option<&Table>, kind: i32, body: Body) -> Message {
    Message { flags: libc::NLM_F_DUMP, ..request(table, kind, body) }
}

/// What the kernel refused, in terms of the caller's commands: those before `own` were put before them.
fn refusal(refused: Refused, encoded: &Encoded, commands: &[&Command], own: usize) -> Refusal {
    let place = encoded.place(refused.sequence);
    let command = place.and_then(|p| commands.get(p.command));
    let element = place.and_then(|p| {
        let (first, count) = p.elements?;
        let behind = if count == 1 { 0 } else { element_at(encoded.message(refused.sequence)?, refused.offset?)? };
        Some(first + behind)
    });
    let object = match (command, element) {
        (Some(Command::AddElements(table, set, _, all) | Command::DeleteElements(table, set, all)), Some(n)) => {
            format!("element {} of set {set} of table {table}", all.get(n).map(Element::to_string).unwrap_or_default())
        }
        (Some(command), _) => first_line(command),
        (None, _) => "the nftables transaction".to_owned(),
    };
    let command = place.and_then(|p| p.command.checked_sub(own));
    Refusal { errno: refused.errno, ext_ack: refused.text, command, element, object }
}

/// A command may be as long as 65535 elements.
fn first_line(command: &Command) -> String {
    let text = command.to_string();
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{} …", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

/// The place of the element that the attribute at this offset of a message is or is within.
fn element_at(message: &[u8], offset: u32) -> Option<usize> {
    let offset = usize::try_from(offset).ok()?;
    // Behind the heads nlmsghdr and nfgenmsg: table, set, list of elements.
    let list = super::attributes::find(message.get(20..)?, uapi::element::LIST_ELEMENTS)?;
    let within = offset.checked_sub(list.as_ptr() as usize - message.as_ptr() as usize)?;
    let mut end = 0;
    super::attributes::attributes(list).position(|(_, value)| {
        end += (value.len() + 4).next_multiple_of(4);
        within < end
    })
}
