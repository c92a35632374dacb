//! Conditions as arguments of iptables (iptables(8), iptables-extensions(8)).

use common::nft::{IpVersion, Pattern, Selector, Statement, Transport, Value};

use super::value::{self, Refusal};

/// Match extensions whose options are all translated or meaningless here.
const KNOWN_MODULES: [&str; 13] = [
    "tcp",
    "udp",
    "sctp",
    "multiport",
    "mark",
    "connmark",
    "conntrack",
    "state",
    "iprange",
    "addrtype",
    "owner",
    "comment",
    "pkttype",
];

type Patterns = Result<Vec<Pattern>, Refusal>;

/// Translates the arguments of a condition.
pub(super) fn parse(text: &str, version: IpVersion) -> Result<Vec<Statement>, Refusal> {
    let words = words(text);
    let mut arguments = Arguments { rest: &words, glued: None, version, module: "", transport: None };
    let mut statements = Vec::new();
    while !arguments.rest.is_empty() {
        statements.extend(arguments.option()?);
    }
    Ok(statements)
}

/// Words as a shell would part them, as far as quotes go.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let parts = |word: String| match word.split_once('=').filter(|_| word.starts_with("--")) {
        Some((option, value)) => vec![option.to_owned(), value.to_owned()],
        None => vec![word],
    };
    words.into_iter().flat_map(parts).collect()
}

/// Several arguments as one text: a value keeps its blanks.
pub(super) fn joined(arguments: &[String]) -> String {
    let quoted = |word: &str| match word.starts_with(['-', '!']) || !word.contains(char::is_whitespace) {
        true => word.to_owned(),
        false if word.contains('"') => format!("'{word}'"),
        false => format!("\"{word}\""),
    };
    arguments.iter().map(|argument| quoted(argument.trim())).collect::<Vec<_>>().join(" ")
}

struct Arguments<'a> {
    rest: &'a [String],
    version: IpVersion,
    /// The value that stands within the word of its option, as in `-ieth0`.
    glued: Option<&'a str>,
    /// The last module named: `--mark` is of two.
    module: &'a str,
    /// The protocol that `-p` has asked for, or the module that there is for one: where the reference puts its conditions,
    /// `-p` stands already and can't be repeated.
    transport: Option<Transport>,
}

/// A short option with its value in one word.
fn glued(word: &str) -> Option<(&str, &str)> {
    let is_short = word.strip_prefix('-').is_some_and(|rest| rest.starts_with(['s', 'd', 'i', 'o', 'p', 'm']));
    word.split_at_checked(2).filter(|(_, value)| is_short && !value.is_empty())
}

impl<'a> Arguments<'a> {
    fn next(&mut self) -> Option<&'a str> {
        if let Some(value) = self.glued.take() {
            return Some(value);
        }
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn peek(&self) -> Option<&'a str> {
        self.glued.or(self.rest.first().map(String::as_str))
    }

    fn value(&mut self, option: &str) -> Result<&'a str, Refusal> {
        self.next().filter(|v| !v.is_empty()).ok_or_else(|| format!("the iptables option {option} needs a value"))
    }

    /// One option with its value; `None` if it says nothing about packets.
    fn option(&mut self) -> Result<Option<Statement>, Refusal> {
        let mut option = self.next().unwrap_or_default();
        let negated = option == "!";
        if negated {
            option = self.next().unwrap_or_default();
        }
        if let Some((short, value)) = glued(option) {
            (option, self.glued) = (short, Some(value));
        }
        match option {
            "-m" | "--match" if !negated => self.match_module().map(|()| None),
            "--comment" if !negated => self.value(option).map(|_| None),
            "-4" | "--ipv4" if self.version == IpVersion::V4 => Ok(None),
            "-6" | "--ipv6" if self.version == IpVersion::V6 => Ok(None),
            "-p" | "--protocol" | "--proto" if !negated && self.peek().is_some_and(|p| p == "all" || p == "0") => {
                self.value(option).map(|_| None)
            }
            _ => {
                let (selector, patterns) = self.test(option, negated)?;
                value::test(selector, negated, patterns).map(Some)
            }
        }
    }

    fn match_module(&mut self) -> Result<(), Refusal> {
        let module = self.value("-m")?;
        if !KNOWN_MODULES.contains(&module) {
            return Err(format!("the iptables match extension \"{module}\" can't be translated"));
        }
        self.module = module;
        let of_protocol = matches!(module, "tcp" | "udp" | "sctp").then(|| value::protocol(module)).transpose()?;
        if let Some(transport) = of_protocol.and_then(value::transport) {
            if self.transport.is_some_and(|asked| asked != transport) {
                return Err(format!("the iptables match extension \"{module}\" is of another protocol than -p"));
            }
            self.transport = Some(transport);
        }
        Ok(())
    }

    fn test(&mut self, option: &str, negated: bool) -> Result<(Selector, Vec<Pattern>), Refusal> {
        let version = self.version;
        let one = |pattern: Result<Pattern, Refusal>| pattern.map(|p| vec![p]);
        let addresses = |text: &str| text.split(',').map(|a| value::address(a, version)).collect::<Patterns>();
        let ports = |text: &str| text.split(',').map(|p| value::ports(p, ':', false)).collect::<Patterns>();
        Ok(match option {
            "-s" | "--source" | "--src" => (Selector::Saddr(version), addresses(self.value(option)?)?),
            "-d" | "--destination" | "--dst" => (Selector::Daddr(version), addresses(self.value(option)?)?),
            "--src-range" => (Selector::Saddr(version), one(value::address(self.value(option)?, version))?),
            "--dst-range" => (Selector::Daddr(version), one(value::address(self.value(option)?, version))?),
            "-i" | "--in-interface" => (Selector::Iifname, one(value::interface(self.value(option)?, '+'))?),
            "-o" | "--out-interface" => (Selector::Oifname, one(value::interface(self.value(option)?, '+'))?),
            "-p" | "--protocol" | "--proto" => (Selector::L4proto, vec![self.protocol(option, negated)?]),
            "--sport" | "--source-port" => (self.sport(option)?, one(value::ports(self.value(option)?, ':', true))?),
            "--dport" | "--destination-port" => {
                (self.dport(option)?, one(value::ports(self.value(option)?, ':', true))?)
            }
            "--sports" | "--source-ports" => (self.sport(option)?, ports(self.value(option)?)?),
            "--dports" | "--destination-ports" => (self.dport(option)?, ports(self.value(option)?)?),
            "--mark" => (self.marked(), vec![mark(self.value(option)?)?]),
            "--ctstate" | "--state" => (Selector::CtState, one(value::states(self.value(option)?))?),
            "--src-type" => (Selector::FibSaddrType, one(value::address_type(self.value(option)?))?),
            "--dst-type" => (Selector::FibDaddrType, one(value::address_type(self.value(option)?))?),
            "--pkt-type" => (Selector::PktType, one(value::packet_type(self.value(option)?))?),
            "--uid-owner" => (Selector::Skuid, vec![Pattern::Is(Value::Uid(value::number(self.value(option)?)?))]),
            "--gid-owner" => (Selector::Skgid, vec![Pattern::Is(Value::Gid(value::number(self.value(option)?)?))]),
            "" => return Err("an iptables option is missing behind \"!\"".into()),
            other => return Err(format!("the iptables option \"{other}\" can't be translated")),
        })
    }

    fn protocol(&mut self, option: &str, negated: bool) -> Result<Pattern, Refusal> {
        let number = value::protocol(self.value(option)?)?;
        self.transport = value::transport(number).filter(|_| !negated);
        Ok(Pattern::Is(Value::Proto(number)))
    }

    fn sport(&self, option: &str) -> Result<Selector, Refusal> {
        self.port(option, Selector::ThSport, Selector::Sport)
    }

    fn dport(&self, option: &str) -> Result<Selector, Refusal> {
        self.port(option, Selector::ThDport, Selector::Dport)
    }

    /// multiport's is of whatever protocol has been published.
    fn port(&self, option: &str, any: Selector, of: fn(Transport) -> Selector) -> Result<Selector, Refusal> {
        let any = (self.module == "multiport").then_some(any);
        self.transport.map(of).or(any).ok_or_else(|| port_without_protocol(option))
    }

    fn marked(&self) -> Selector {
        if self.module == "connmark" { Selector::CtMark } else { Selector::Mark }
    }
}

fn port_without_protocol(option: &str) -> Refusal {
    format!("the iptables option {option} needs -p tcp, udp or sctp, -m tcp, udp or sctp, or -m multiport before it")
}

/// `value` or `value/mask`.
fn mark(text: &str) -> Result<Pattern, Refusal> {
    let Some((value, mask)) = text.split_once('/') else {
        return value::number(text).map(|v| Pattern::Is(Value::Mark(v)));
    };
    Ok(Pattern::Masked { mask: Value::Mark(value::number(mask)?), value: Value::Mark(value::number(value)?) })
}
