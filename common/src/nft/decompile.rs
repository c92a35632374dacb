//! From what the kernel returns back to a rule, for people to read and for those who look into their own rules.
//!
//! It is the inverse of `compile.rs` and checked against it: what doesn't compile back to the same expressions isn't
//! given out as a rule. Comparing never depends on it.

use std::fmt;
use std::net::IpAddr;

use super::compile::compile;
use super::expression::{Comparison, Expression, LookupInto, LookupSet, Register, Sink, Source};
use super::model::{DnatTarget, Family, MarkOf, Pattern, Rule, Selector, SetSource, Statement, Transport};
use super::prefix;
use super::value::{DataType, IpVersion, Value};

/// The selectors, those for any protocol before those for one.
const SELECTORS: [Selector; 34] = {
    use IpVersion::{V4, V6};
    use Selector::*;
    [
        Nfproto,
        Protocol,
        L4proto,
        Iif,
        Oif,
        Iifname,
        Oifname,
        Iifkind,
        Mark,
        PktType,
        Skuid,
        Skgid,
        Saddr(V4),
        Saddr(V6),
        Daddr(V4),
        Daddr(V6),
        ThSport,
        ThDport,
        ArpSaddr,
        Icmpv6Type,
        NdTarget,
        CtState,
        CtStatus,
        CtMark,
        CtDirection,
        CtOriginalSaddr(V4),
        CtOriginalSaddr(V6),
        CtOriginalDaddr(V4),
        CtOriginalDaddr(V6),
        CtReplySaddr(V4),
        CtReplySaddr(V6),
        CtOriginalSport,
        CtOriginalDport,
        FibDaddrType,
    ]
};

const TRANSPORTS: [Transport; 5] =
    [Transport::Tcp, Transport::Udp, Transport::Dccp, Transport::Sctp, Transport::Udplite];

/// The rule that compiles to these expressions, as short as it can be said.
pub(super) fn decompile(expressions: &[Expression], comment: Option<&str>, family: Family) -> Option<Rule> {
    let mut reader = Reader { rest: expressions, transport: None };
    let mut statements = Vec::new();
    while !reader.rest.is_empty() {
        statements.push(reader.statement()?);
    }
    let mut rule = Rule { statements, comment: comment.map(str::to_owned) };
    if compile(&rule, family).ok()? != expressions {
        return None;
    }
    let mut place = 0;
    while place < rule.statements.len() {
        let implied = rule.statements.remove(place);
        if compile(&rule, family).ok().as_deref() != Some(expressions) {
            rule.statements.insert(place, implied);
            place += 1;
        }
    }
    Some(rule)
}

struct Reader<'a> {
    rest: &'a [Expression],
    transport: Option<u8>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a Expression> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn statement(&mut self) -> Option<Statement> {
        Some(match self.next()? {
            Expression::Counter => Statement::Counter,
            Expression::Masquerade => Statement::Masquerade,
            Expression::Verdict(verdict) => Statement::Verdict(verdict.clone()),
            Expression::Immediate { register: Register::FIRST, value } => self.immediate(value)?,
            Expression::Load { from, to: Register::FIRST } => self.loaded(*from)?,
            _ => return None,
        })
    }

    /// `meta mark set 0x1` or `dnat to 10.0.0.1:80`
    fn immediate(&mut self, value: &[u8]) -> Option<Statement> {
        match self.next()? {
            Expression::Store { to, .. } => {
                let bits = u32::from_ne_bytes(*value.first_chunk()?);
                Some(Statement::SetMark { of: mark_of(*to)?, keep: 0, bits })
            }
            Expression::Dnat { family, port: None, .. } => dnat_to(*family, value, None),
            Expression::Immediate { value: port, .. } => match self.next()? {
                Expression::Dnat { family, port: Some(_), .. } => {
                    dnat_to(*family, value, Some(u16::from_be_bytes(*port.first_chunk()?)))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn loaded(&mut self, from: Source) -> Option<Statement> {
        let mut selectors = vec![self.selector(from)?];
        while let Some(Expression::Load { from, to }) = self.rest.first() {
            if *to == Register::FIRST {
                break;
            }
            self.next();
            selectors.push(self.selector(*from)?);
        }
        match self.next()? {
            Expression::Lookup { set, into, inverted, .. } => self.lookup(selectors, set, *into, *inverted),
            other => match selectors.as_slice() {
                [one] => self.one(*one, other),
                _ => None,
            },
        }
    }

    fn selector(&self, from: Source) -> Option<Selector> {
        let of_transport = |s: Selector| {
            let transport = TRANSPORTS.into_iter().find(|t| Some(*t as u8) == self.transport)?;
            match s {
                Selector::ThSport => Some(Selector::Sport(transport)),
                Selector::ThDport => Some(Selector::Dport(transport)),
                _ => None,
            }
        };
        let all = SELECTORS.into_iter().chain([Selector::FibSaddrType]);
        let found = all.into_iter().find(|s| s.source() == from)?;
        Some(of_transport(found).unwrap_or(found))
    }

    fn lookup(
        &mut self,
        selectors: Vec<Selector>,
        set: &LookupSet,
        into: LookupInto,
        negated: bool,
    ) -> Option<Statement> {
        let set = match set {
            LookupSet::Named(name) => SetSource::Named(name.clone()),
            LookupSet::Inline(elements) => SetSource::Inline(elements.clone()),
        };
        match into {
            LookupInto::Nothing => Some(Statement::InSet { selectors, negated, set }),
            LookupInto::Verdict => Some(Statement::Vmap { selectors, map: set }),
            LookupInto::Data(_) => match self.next()? {
                Expression::Dnat { family, .. } => {
                    Some(Statement::Dnat { version: version(*family)?, target: DnatTarget::Map(selectors, set) })
                }
                _ => None,
            },
        }
    }

    /// A test or a change of one property.
    fn one(&mut self, selector: Selector, next: &Expression) -> Option<Statement> {
        let data_type = selector.data_type();
        let read = |bytes: &[u8]| Value::from_bytes(data_type, bytes);
        let (negated, pattern) = match next {
            Expression::Store { to, .. } => return copy_mark(selector, mark_of(*to)?),
            Expression::Bitwise { mask, xor, .. } => return self.masked(selector, mask, xor),
            Expression::Compare { how: Comparison::AtLeast, with: first, .. } => match self.next()? {
                Expression::Compare { how: Comparison::AtMost, with: last, .. } => {
                    (false, Pattern::Range(read(first)?, read(last)?))
                }
                _ => return None,
            },
            Expression::Compare { how, with, .. } if data_type == DataType::Ifname && with.len() < 16 => {
                (negated(*how)?, Pattern::Begins(String::from_utf8(with.clone()).ok()?))
            }
            Expression::Compare { how, with, .. } => (negated(*how)?, Pattern::Is(read(with)?)),
            Expression::Range { how, from, to, .. } => (negated(*how)?, Pattern::Range(read(from)?, read(to)?)),
            _ => return None,
        };
        if let (Selector::L4proto, false, Pattern::Is(Value::Proto(number))) = (selector, negated, &pattern) {
            self.transport = Some(*number);
        }
        Some(Statement::Match { selector, negated, pattern })
    }

    fn masked(&mut self, selector: Selector, mask: &[u8], xor: &[u8]) -> Option<Statement> {
        let read = |bytes: &[u8]| Value::from_bytes(selector.data_type(), bytes);
        let (how, with) = match self.next()? {
            Expression::Compare { how, with, .. } => (*how, with),
            Expression::Store { to, .. } => {
                let of = mark_of(*to)?;
                let (Value::Mark(keep), Value::Mark(bits)) = (read(mask)?, read(xor)?) else { return None };
                return (of.selector() == selector).then_some(Statement::SetMark { of, keep, bits });
            }
            _ => return None,
        };
        let pattern = match (selector.data_type(), read(with)?) {
            (DataType::CtState | DataType::CtStatus, _) if with.iter().all(|b| *b == 0) => {
                // Any of the bits: not equal to none of them.
                let negated = !negated(how)?;
                return Some(Statement::Match { selector, negated, pattern: Pattern::Any(read(mask)?) });
            }
            (_, Value::V4(v4)) => Pattern::Prefix(IpAddr::V4(v4), prefix::of_mask(mask)?),
            (_, Value::V6(v6)) => Pattern::Prefix(IpAddr::V6(v6), prefix::of_mask(mask)?),
            (_, value) => Pattern::Masked { mask: read(mask)?, value },
        };
        Some(Statement::Match { selector, negated: negated(how)?, pattern })
    }
}

fn negated(how: Comparison) -> Option<bool> {
    match how {
        Comparison::Equal => Some(false),
        Comparison::NotEqual => Some(true),
        Comparison::AtMost | Comparison::AtLeast => None,
    }
}

fn version(family: u32) -> Option<IpVersion> {
    IpVersion::ALL.into_iter().find(|v| u32::from(v.nfproto()) == family)
}

fn dnat_to(family: u32, address: &[u8], port: Option<u16>) -> Option<Statement> {
    let version = version(family)?;
    let address = match Value::from_bytes(version.address_type(), address)? {
        Value::V4(v4) => IpAddr::V4(v4),
        Value::V6(v6) => IpAddr::V6(v6),
        _ => return None,
    };
    Some(Statement::Dnat { version, target: DnatTarget::Address(address, port) })
}

fn mark_of(sink: Sink) -> Option<MarkOf> {
    [MarkOf::Packet, MarkOf::Connection].into_iter().find(|of| of.sink() == sink)
}

fn copy_mark(from: Selector, to: MarkOf) -> Option<Statement> {
    (to.other().selector() == from).then_some(Statement::CopyMark { to })
}

/// The rule as text: in nft's words, or in the kernel's where the model has none.
pub(super) struct RuleText<'a> {
    pub(super) rule: Option<&'a Rule>,
    pub(super) expressions: &'a [Expression],
    pub(super) comment: Option<&'a str>,
}

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rule) = self.rule {
            return rule.fmt(f);
        }
        let mut separator = "";
        for expression in self.expressions {
            write!(f, "{separator}[{expression}]")?;
            separator = " ";
        }
        match self.comment {
            Some(comment) => write!(f, "{separator}comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(selector) = SELECTORS.into_iter().find(|s| s.source() == *self) {
            return selector.fmt(f);
        }
        match self {
            Source::Meta(key) => write!(f, "meta {key}"),
            Source::Payload { base, offset, len } => write!(f, "payload {len} bytes at {base}+{offset}"),
            Source::Ct { key, direction: None } => write!(f, "ct {key}"),
            Source::Ct { key, direction: Some(direction) } => write!(f, "ct {key} of direction {direction}"),
            Source::Fib { result, flags } => write!(f, "fib {result} by {flags}"),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expression::Load { from, .. } => write!(f, "{from}"),
            Expression::Store { to: Sink::Meta(key), .. } => write!(f, "meta {key} set"),
            Expression::Store { to: Sink::Ct(key), .. } => write!(f, "ct {key} set"),
            Expression::Bitwise { mask, xor, .. } => write!(f, "& {} ^ {}", Hex(mask), Hex(xor)),
            Expression::Compare { how, with, .. } => {
                let operator = match how {
                    Comparison::Equal => "==",
                    Comparison::NotEqual => "!=",
                    Comparison::AtMost => "<=",
                    Comparison::AtLeast => ">=",
                };
                write!(f, "{operator} {}", Hex(with))
            }
            Expression::Range { from, to, .. } => write!(f, "not {}-{}", Hex(from), Hex(to)),
            Expression::Lookup { set, .. } => match set {
                LookupSet::Named(name) => write!(f, "lookup @{name}"),
                LookupSet::Inline(elements) => write!(f, "lookup {}", SetSource::Inline(elements.clone())),
            },
            Expression::Immediate { value, .. } => write!(f, "{}", Hex(value)),
            Expression::Dnat { .. } => f.write_str("dnat"),
            Expression::Masquerade => f.write_str("masquerade"),
            Expression::Counter => f.write_str("counter"),
            Expression::Verdict(verdict) => verdict.fmt(f),
            Expression::Foreign(name) => f.write_str(name),
        }
    }
}
