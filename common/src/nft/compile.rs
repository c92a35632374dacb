//! From a rule to the expressions that the kernel runs: what nft's linearisation does.
//!
//! The expressions are those of an old nft, so that old and new ones list them: no trimmed loads for byte-aligned
//! prefixes, no combined port pairs, classic registers.

use std::net::IpAddr;

use nix::libc;

use super::expression::{Comparison, Expression, LookupInto, LookupSet, Register, Sink, Source};
use super::model::{DnatTarget, Family, MarkOf, Pattern, Rule, Selector, SetSource, Statement, Verdict};
use super::uapi;
use super::value::{DataType, IpVersion, Value};
use super::{Element, prefix};
use crate::cni::error::{Error, Result};

const NETWORK: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
const TRANSPORT: u32 = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
/// NFT_FIB_RESULT_ADDRTYPE
const FIB_ADDRESS_TYPE: u32 = 3;
/// NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
/// IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY
const ORIGINAL: Option<u8> = Some(0);
const REPLY: Option<u8> = Some(1);

impl Selector {
    /// What it is: an address, a port, …
    pub const fn data_type(self) -> DataType {
        match self {
            Selector::Nfproto => DataType::NfProto,
            Selector::Protocol => DataType::EtherType,
            Selector::L4proto => DataType::InetProto,
            Selector::Iif | Selector::Oif => DataType::IfaceIndex,
            Selector::Iifname | Selector::Oifname | Selector::Iifkind => DataType::Ifname,
            Selector::Mark | Selector::CtMark => DataType::Mark,
            Selector::PktType => DataType::PktType,
            Selector::Skuid => DataType::Uid,
            Selector::Skgid => DataType::Gid,
            Selector::Saddr(version)
            | Selector::Daddr(version)
            | Selector::CtOriginalSaddr(version)
            | Selector::CtOriginalDaddr(version)
            | Selector::CtReplySaddr(version) => version.address_type(),
            Selector::ThSport
            | Selector::ThDport
            | Selector::Sport(_)
            | Selector::Dport(_)
            | Selector::CtOriginalSport
            | Selector::CtOriginalDport => DataType::InetService,
            Selector::ArpSaddr => DataType::Ipv4Addr,
            Selector::Icmpv6Type => DataType::Icmpv6Type,
            Selector::NdTarget => DataType::Ipv6Addr,
            Selector::CtState => DataType::CtState,
            Selector::CtStatus => DataType::CtStatus,
            Selector::CtDirection => DataType::CtDir,
            Selector::FibDaddrType | Selector::FibSaddrType => DataType::FibAddrType,
        }
    }

    pub(super) const fn source(self) -> Source {
        const fn meta(key: i32) -> Source {
            Source::Meta(key as u32)
        }
        const fn ct(key: i32, direction: Option<u8>) -> Source {
            Source::Ct { key: key as u32, direction }
        }
        const fn port(offset: u32) -> Source {
            Source::Payload { base: TRANSPORT, offset, len: 2 }
        }
        match self {
            Selector::Nfproto => meta(libc::NFT_META_NFPROTO),
            Selector::Protocol => meta(libc::NFT_META_PROTOCOL),
            Selector::L4proto => meta(libc::NFT_META_L4PROTO),
            Selector::Iif => meta(libc::NFT_META_IIF),
            Selector::Oif => meta(libc::NFT_META_OIF),
            Selector::Iifname => meta(libc::NFT_META_IIFNAME),
            Selector::Oifname => meta(libc::NFT_META_OIFNAME),
            Selector::Iifkind => Source::Meta(uapi::META_IIFKIND),
            Selector::Mark => meta(libc::NFT_META_MARK),
            Selector::PktType => meta(libc::NFT_META_PKTTYPE),
            Selector::Skuid => meta(libc::NFT_META_SKUID),
            Selector::Skgid => meta(libc::NFT_META_SKGID),
            Selector::Saddr(IpVersion::V4) => Source::Payload { base: NETWORK, offset: 12, len: 4 },
            Selector::Daddr(IpVersion::V4) => Source::Payload { base: NETWORK, offset: 16, len: 4 },
            Selector::Saddr(IpVersion::V6) => Source::Payload { base: NETWORK, offset: 8, len: 16 },
            Selector::Daddr(IpVersion::V6) => Source::Payload { base: NETWORK, offset: 24, len: 16 },
            Selector::ThSport | Selector::Sport(_) => port(0),
            Selector::ThDport | Selector::Dport(_) => port(2),
            // ar_sip of struct arphdr for Ethernet and IPv4 (include/uapi/linux/if_arp.h).
            Selector::ArpSaddr => Source::Payload { base: NETWORK, offset: 14, len: 4 },
            Selector::Icmpv6Type => Source::Payload { base: TRANSPORT, offset: 0, len: 1 },
            // RFC 4861, 4.3 and 4.4: type, code, checksum, flags, target.
            Selector::NdTarget => Source::Payload { base: TRANSPORT, offset: 8, len: 16 },
            Selector::CtState => ct(libc::NFT_CT_STATE, None),
            Selector::CtStatus => ct(libc::NFT_CT_STATUS, None),
            Selector::CtMark => ct(libc::NFT_CT_MARK, None),
            Selector::CtDirection => ct(libc::NFT_CT_DIRECTION, None),
            Selector::CtOriginalSaddr(IpVersion::V4) => ct(libc::NFT_CT_SRC_IP, ORIGINAL),
            Selector::CtOriginalSaddr(IpVersion::V6) => ct(libc::NFT_CT_SRC_IP6, ORIGINAL),
            Selector::CtOriginalDaddr(IpVersion::V4) => ct(libc::NFT_CT_DST_IP, ORIGINAL),
            Selector::CtOriginalDaddr(IpVersion::V6) => ct(libc::NFT_CT_DST_IP6, ORIGINAL),
            Selector::CtReplySaddr(IpVersion::V4) => ct(libc::NFT_CT_SRC_IP, REPLY),
            Selector::CtReplySaddr(IpVersion::V6) => ct(libc::NFT_CT_SRC_IP6, REPLY),
            Selector::CtOriginalSport => ct(libc::NFT_CT_PROTO_SRC, ORIGINAL),
            Selector::CtOriginalDport => ct(libc::NFT_CT_PROTO_DST, ORIGINAL),
            Selector::FibDaddrType => Source::Fib { result: FIB_ADDRESS_TYPE, flags: FIB_DADDR },
            Selector::FibSaddrType => Source::Fib { result: FIB_ADDRESS_TYPE, flags: FIB_SADDR },
        }
    }
}

/// The expressions of a rule in a table of this family.
pub(super) fn compile(rule: &Rule, family: Family) -> Result<Vec<Expression>> {
    // In a table of one IP version, packets of the other never come, and nft leaves the test out.
    let version = match family {
        Family::Ip => Some(IpVersion::V4),
        Family::Ip6 => Some(IpVersion::V6),
        Family::Inet | Family::Arp | Family::Netdev | Family::Bridge => None,
    };
    let mut compiler =
        Compiler { out: Vec::with_capacity(rule.statements.len() * 3), family, version, transport: None };
    for statement in &rule.statements {
        compiler.statement(statement)?;
    }
    // NFT_RULE_MAXEXPRS
    if compiler.out.len() > 128 {
        return Err(refuse(rule, "it has more than the 128 expressions that the kernel takes"));
    }
    Ok(compiler.out)
}

fn refuse(what: impl std::fmt::Display, why: &str) -> Error {
    Error::Internal { what: format!("nft rule \"{what}\": {why}") }
}

/// What is already tested in this rule need not be tested again.
struct Compiler {
    out: Vec<Expression>,
    family: Family,
    version: Option<IpVersion>,
    transport: Option<u8>,
}

impl Compiler {
    fn statement(&mut self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::Match { selector, negated, pattern } => self.test(*selector, *negated, pattern)?,
            Statement::InSet { selectors, negated, set } => {
                self.lookup(selectors, set, LookupInto::Nothing, *negated)?;
            }
            Statement::Vmap { selectors, map } => self.lookup(selectors, map, LookupInto::Verdict, false)?,
            Statement::Dnat { version, target } => self.dnat(*version, target)?,
            Statement::Masquerade => self.out.push(Expression::Masquerade),
            Statement::SetMark { of, keep, bits } => self.set_mark(*of, *keep, *bits),
            Statement::CopyMark { to } => {
                self.load_mark(to.other());
                self.out.push(Expression::Store { from: Register::FIRST, to: to.sink() });
            }
            Statement::Counter => self.out.push(Expression::Counter),
            Statement::Verdict(verdict) => self.out.push(Expression::Verdict(verdict.clone())),
        }
        Ok(())
    }

    fn dependencies(&mut self, selector: Selector) {
        if let Some(version) = selector.version()
            && self.version != Some(version)
        {
            self.version = Some(version);
            // Below the IP hooks a frame's family is the bridge's or the device's: what it carries is in its head.
            let (selector, value) = match self.family {
                Family::Bridge | Family::Netdev => (Selector::Protocol, Value::Protocol(version.ether_type())),
                Family::Inet | Family::Ip | Family::Ip6 | Family::Arp => (Selector::Nfproto, Value::Nfproto(version)),
            };
            self.load(selector.source());
            self.compare(Comparison::Equal, value.bytes());
        }
        if let Some(transport) = selector.transport()
            && self.transport != Some(transport as u8)
        {
            self.transport = Some(transport as u8);
            self.load(Selector::L4proto.source());
            self.compare(Comparison::Equal, vec![transport as u8]);
        }
    }

    fn load(&mut self, from: Source) {
        self.out.push(Expression::Load { from, to: Register::FIRST });
    }

    fn compare(&mut self, how: Comparison, with: Vec<u8>) {
        self.out.push(Expression::Compare { register: Register::FIRST, how, with });
    }

    fn mask(&mut self, mask: Vec<u8>) {
        let xor = vec![0; mask.len()];
        self.out.push(Expression::Bitwise { register: Register::FIRST, mask, xor });
    }

    fn test(&mut self, selector: Selector, negated: bool, pattern: &Pattern) -> Result<()> {
        check_types(selector, pattern)?;
        self.dependencies(selector);
        self.load(selector.source());
        let equal = Comparison::equal_unless(negated);
        match pattern {
            Pattern::Is(value) => {
                self.compare(equal, value.bytes());
                self.remember(selector, negated, value);
            }
            Pattern::Masked { mask, value } => {
                self.mask(mask.bytes());
                self.compare(equal, value.bytes());
            }
            Pattern::Prefix(address, len) => {
                let mask = prefix::mask(*address, *len);
                if mask.iter().any(|byte| *byte != 0xff) {
                    self.mask(mask);
                }
                self.compare(equal, Value::ip(prefix::bounds(*address, *len).0).bytes());
            }
            Pattern::Begins(name) => self.compare(equal, name.as_bytes().to_vec()),
            Pattern::Range(first, last) if first == last => self.compare(equal, first.bytes()),
            Pattern::Range(first, last) if negated => self.out.push(Expression::Range {
                register: Register::FIRST,
                how: Comparison::NotEqual,
                from: first.bytes(),
                to: last.bytes(),
            }),
            Pattern::Range(first, last) => {
                self.compare(Comparison::AtLeast, first.bytes());
                self.compare(Comparison::AtMost, last.bytes());
            }
            Pattern::Any(bits) => {
                self.mask(bits.bytes());
                self.compare(Comparison::equal_unless(!negated), vec![0; bits.data_type().width()]);
            }
        }
        Ok(())
    }

    /// A test written out tells as much as one that was implied.
    fn remember(&mut self, selector: Selector, negated: bool, value: &Value) {
        match (selector, value) {
            (Selector::Nfproto, Value::Nfproto(version)) if !negated => self.version = Some(*version),
            (Selector::Protocol, Value::Protocol(number)) if !negated => {
                self.version = IpVersion::ALL.into_iter().find(|v| v.ether_type() == *number).or(self.version);
            }
            (Selector::L4proto, Value::Proto(number)) if !negated => self.transport = Some(*number),
            _ => {}
        }
    }

    fn load_all(&mut self, selectors: &[Selector]) -> Result<()> {
        for selector in selectors {
            self.dependencies(*selector);
        }
        let mut register = 0;
        for selector in selectors {
            self.out.push(Expression::Load { from: selector.source(), to: Register(register) });
            // At most 64 bytes of registers, so the division always fits.
            register += u8::try_from(selector.data_type().padded_width() / 4).unwrap_or(u8::MAX);
            if usize::from(register) * 4 > Register::ALL_BYTES {
                return Err(refuse(selector, "the key is longer than the 64 bytes of registers"));
            }
        }
        Ok(())
    }

    fn lookup(&mut self, selectors: &[Selector], set: &SetSource, into: LookupInto, inverted: bool) -> Result<()> {
        self.load_all(selectors)?;
        let set = match set {
            SetSource::Named(name) => LookupSet::Named(name.clone()),
            SetSource::Inline(elements) => inline(selectors, elements)?,
        };
        self.out.push(Expression::Lookup { register: Register::FIRST, set, into, inverted });
        Ok(())
    }

    fn dnat(&mut self, version: IpVersion, target: &DnatTarget) -> Result<()> {
        let behind_the_address = Register(if version == IpVersion::V4 { 1 } else { 4 });
        let port = match target {
            DnatTarget::Address(address, port) => {
                if IpVersion::of(*address) != version {
                    return Err(refuse(address, "dnat to an address of the other IP version"));
                }
                let value = Value::ip(*address).bytes();
                self.out.push(Expression::Immediate { register: Register::FIRST, value });
                port.map(|port| {
                    let value = port.to_be_bytes().to_vec();
                    self.out.push(Expression::Immediate { register: Register(4), value });
                    Register(4)
                })
            }
            DnatTarget::Map(selectors, map) => {
                self.lookup(selectors, map, LookupInto::Data(Register::FIRST), false)?;
                Some(behind_the_address)
            }
        };
        let family = u32::from(version.nfproto());
        self.out.push(Expression::Dnat { family, address: Register::FIRST, port });
        Ok(())
    }

    fn load_mark(&mut self, of: MarkOf) {
        self.load(of.selector().source());
    }

    fn set_mark(&mut self, of: MarkOf, keep: u32, bits: u32) {
        if keep == 0 {
            self.out.push(Expression::Immediate { register: Register::FIRST, value: bits.to_ne_bytes().to_vec() });
        } else {
            self.load_mark(of);
            let mask = (keep & !bits).to_ne_bytes().to_vec();
            let xor = bits.to_ne_bytes().to_vec();
            self.out.push(Expression::Bitwise { register: Register::FIRST, mask, xor });
        }
        self.out.push(Expression::Store { from: Register::FIRST, to: of.sink() });
    }
}

impl MarkOf {
    pub(super) const fn selector(self) -> Selector {
        match self {
            MarkOf::Packet => Selector::Mark,
            MarkOf::Connection => Selector::CtMark,
        }
    }

    pub(super) const fn sink(self) -> Sink {
        match self {
            MarkOf::Packet => Sink::Meta(libc::NFT_META_MARK as u32),
            MarkOf::Connection => Sink::Ct(libc::NFT_CT_MARK as u32),
        }
    }
}

/// A rule's own set; its elements' keys must be what is looked up.
fn inline(selectors: &[Selector], elements: &[Element]) -> Result<LookupSet> {
    let types: Vec<DataType> = selectors.iter().map(|s| s.data_type()).collect();
    match elements.iter().find(|e| !e.key.iter().map(Value::data_type).eq(types.iter().copied())) {
        Some(odd) => Err(refuse(odd, "an element's key has other types than what is looked up")),
        None if elements.is_empty() => Err(refuse("{ }", "an anonymous set has no elements")),
        None => Ok(LookupSet::sorted(elements.to_vec())),
    }
}

fn check_types(selector: Selector, pattern: &Pattern) -> Result<()> {
    let wanted = selector.data_type();
    let of = |address: &IpAddr| IpVersion::of(*address).address_type();
    let fits = match pattern {
        Pattern::Is(value) | Pattern::Any(value) => value.data_type() == wanted,
        Pattern::Masked { mask: a, value: b } | Pattern::Range(a, b) => {
            a.data_type() == wanted && b.data_type() == wanted
        }
        Pattern::Prefix(address, _) => of(address) == wanted,
        Pattern::Begins(name) => wanted == DataType::Ifname && (1..=15).contains(&name.len()),
    };
    match pattern {
        Pattern::Is(value) | Pattern::Any(value) => value.check()?,
        Pattern::Masked { mask: a, value: b } | Pattern::Range(a, b) => {
            a.check()?;
            b.check()?;
        }
        Pattern::Prefix(..) | Pattern::Begins(_) => {}
    }
    if fits { Ok(()) } else { Err(refuse(selector, "it is compared with a value of another type")) }
}

impl Verdict {
    /// The chain it leads to.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}
