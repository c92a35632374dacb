//! The door: transactions go in, tables are read.

use nix::errno::Errno;

use super::encode::{self, Encoded};
use super::model::{Element, Skeleton, Table};
use super::socket::{Channel, Refused};
use super::transaction::{Command, Transaction};
use super::{attributes, uapi};
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
    /// What it was to do: `add`, `delete`, `flush`.
    pub action: &'static str,
    /// To what: the rule, the element, …
    pub object: String,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let Refusal { errno, ext_ack, action, object, .. } = refusal;
        if errno == Errno::ERESTART {
            return Error::TryAgain { what: "the host's nftables rules keep changing".into() };
        }
        Error::Kernel { action, object, errno, ext_ack }
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

    /// Whether it is unknown what has become of it: no command was refused, and the kernel's answer got lost.
    pub fn is_unanswered(&self) -> bool {
        self.refusal().is_some_and(|r| r.command.is_none() && r.action == BEGIN && r.errno != Errno::ERESTART)
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

/// The action of a refusal that is about no command.
const BEGIN: &str = "begin";

/// How often a plan is made anew because somebody else changed the tables.
const GENERATION_TRIES: u32 = 100;

/// How often a skeleton is put in anew because somebody else changed the table at the same time.
const SKELETON_TRIES: u32 = 10;

/// A connection to nf_tables, opened when it is first used, in the network namespace the thread is in then.
///
/// Closing it waits for a grace period of the kernel (4 to 24 ms) if one of its transactions deleted something or
/// failed: never use a transaction that may fail as a question.
#[derive(Debug, Default)]
pub struct NftSocket {
    pub(super) channel: Channel,
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

    /// Sends a transaction that needs skeletons: put in, if they are missing or others, by the same transaction.
    ///
    /// A skeleton costs one look-up when it is there.
    pub fn commit_on(&mut self, skeletons: &[&Skeleton], transaction: &Transaction) -> Result<(), CommitError> {
        let mut absent = self.missing(skeletons)?;
        let mut tries = 1;
        loop {
            let mut before = Vec::new();
            for skeleton in &absent {
                before.extend(self.bootstrap(skeleton)?);
            }
            let outcome = self.commit_all(&before, transaction, None);
            let Err(CommitError::Refused(refusal)) = &outcome else { return outcome };
            let own = refusal.command.and_then(|place| transaction.commands().get(place));
            match own {
                // A table was removed between the look and the leap, and may be back already, by another call: only
                // with the skeleton in the same transaction it is certain what is missing.
                Some(command) if absent.is_empty() && refusal.errno == Errno::ENOENT && command.adds() => {
                    absent = skeletons.to_vec();
                }
                // Another call put its own version in meanwhile.
                None if !absent.is_empty()
                    && matches!(refusal.errno, Errno::ENOENT | Errno::EEXIST | Errno::EBUSY)
                    && tries < SKELETON_TRIES =>
                {
                    absent = self.missing(skeletons)?;
                }
                _ => return outcome,
            }
            tries += 1;
        }
    }

    fn missing<'a>(&mut self, skeletons: &[&'a Skeleton]) -> Result<Vec<&'a Skeleton>> {
        let mut missing = Vec::new();
        for skeleton in skeletons {
            if !self.has_skeleton(skeleton)? {
                missing.push(*skeleton);
            }
        }
        Ok(missing)
    }

    /// Reads, plans and sends until nothing changed in between: what `plan` read is what the transaction changes.
    ///
    /// `plan` may be called several times; an empty transaction ends it.
    pub fn commit_as_read<T>(
        &mut self,
        mut plan: impl FnMut(&mut NftSocket) -> Result<(Transaction, T)>,
    ) -> Result<T, CommitError> {
        let mut tries = 0;
        loop {
            let generation = self.generation()?;
            let (transaction, value) = plan(self)?;
            let outcome = self.commit_at(&transaction, generation).map(|()| value);
            tries += 1;
            match &outcome {
                // Refused before anything was tried: repeating costs no grace period.
                Err(error) if error.errno() == Some(Errno::ERESTART) && tries < GENERATION_TRIES => {}
                _ => return outcome,
            }
        }
    }

    /// Sends, once, a transaction that puts these skeletons in anew before all else. With a generation, it is refused
    /// with ERESTART if anything has changed since [`NftSocket::generation`] said this.
    pub fn commit_rebuilding(
        &mut self,
        skeletons: &[Skeleton],
        transaction: &Transaction,
        generation: Option<u32>,
    ) -> Result<(), CommitError> {
        let mut before = Vec::new();
        for skeleton in skeletons {
            before.extend(self.bootstrap(skeleton)?);
        }
        self.commit_all(&before, transaction, generation)
    }

    fn commit_all(
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
    let (action, object) = match (command, element) {
        (Some(Command::AddElements(table, set, _, all)), Some(n)) => ("add", element_text(table, set, all.get(n))),
        (Some(Command::DeleteElements(table, set, all)), Some(n)) => ("delete", element_text(table, set, all.get(n))),
        (Some(command), _) => command.subject(),
        (None, _) => (BEGIN, "an nftables transaction".to_owned()),
    };
    let command = place.and_then(|p| p.command.checked_sub(own));
    Refusal { errno: refused.errno, ext_ack: refused.text, command, element, action, object }
}

fn element_text(table: &Table, set: &str, element: Option<&Element>) -> String {
    format!("element {} of set {set} of table {table}", element.map(Element::to_string).unwrap_or_default())
}

/// The place of the element that the attribute at this offset of a message is or is within.
fn element_at(message: &[u8], offset: u32) -> Option<usize> {
    let offset = usize::try_from(offset).ok()?;
    // Behind the heads nlmsghdr and nfgenmsg: table, set, list of elements.
    let list = attributes::find(message.get(20..)?, uapi::element::LIST_ELEMENTS)?;
    let within = offset.checked_sub(list.as_ptr() as usize - message.as_ptr() as usize)?;
    let mut end = 0;
    attributes::attributes(list).position(|(_, value)| {
        end += (value.len() + 4).next_multiple_of(4);
        within < end
    })
}
