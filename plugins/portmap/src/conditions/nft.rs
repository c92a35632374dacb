//! Conditions in nft's words (nft(8), "PAYLOAD EXPRESSION", "META EXPRESSIONS", "CONNTRACK EXPRESSIONS").

use common::nft::{IpVersion, Pattern, Selector, Statement, Transport, Value};

use super::value::{self, Refusal};

/// Translates the words of a condition.
pub(super) fn parse(text: &str, version: IpVersion) -> Result<Vec<Statement>, Refusal> {
    let tokens = tokens(text)?;
    let mut words = Words { rest: &tokens, version };
    let mut statements = Vec::new();
    while !words.rest.is_empty() {
        statements.push(words.statement()?);
    }
    Ok(statements)
}

/// Words, with `{`, `}`, `,`, `&`, `!=` and `==` on their own and quotes taken off.
fn tokens(text: &str) -> Result<Vec<String>, Refusal> {
    let mut tokens = Vec::new();
    let mut word = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let own = match c {
            '{' | '}' | ',' | '&' => Some(c.to_string()),
            '!' | '=' if rest.peek() == Some(&'=') => {
                rest.next();
                Some(format!("{c}="))
            }
            '"' => {
                let quoted: String = rest.by_ref().take_while(|c| *c != '"').collect();
                Some(quoted)
            }
            _ => None,
        };
        if own.is_none() && !c.is_whitespace() {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        tokens.extend(own);
    }
    if !word.is_empty() {
        tokens.push(word);
    }
    Ok(tokens)
}

struct Words<'a> {
    rest: &'a [String],
    version: IpVersion,
}

impl<'a> Words<'a> {
    fn peek(&self) -> &'a str {
        self.rest.first().map(String::as_str).unwrap_or_default()
    }

    /// The next word; the empty string at the end.
    fn next(&mut self) -> &'a str {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                first
            }
            None => "",
        }
    }

    fn skip(&mut self, word: &str) -> bool {
        let is_next = self.peek() == word;
        if is_next {
            self.next();
        }
        is_next
    }

    fn statement(&mut self) -> Result<Statement, Refusal> {
        let selector = self.selector()?;
        if matches!(selector, Selector::Mark | Selector::CtMark) && (self.skip("&") || self.skip("and")) {
            return self.masked(selector);
        }
        let negated = self.operator();
        let listed = self.skip("{");
        let mut texts = vec![self.value(selector)?];
        while self.skip(",") {
            texts.push(self.value(selector)?);
        }
        if listed && !self.skip("}") {
            return Err(format!("the list that {{ begins behind {selector} has no end"));
        }
        if !listed && texts.len() > 1 && selector != Selector::CtState {
            return Err(format!("several values of {selector} must stand in {{ }}"));
        }
        if selector == Selector::CtState {
            return value::test(selector, negated, vec![value::states(&texts.join(","))?]);
        }
        let patterns = texts.into_iter().map(|t| self.pattern(selector, t)).collect::<Result<Vec<_>, _>>()?;
        value::test(selector, negated, patterns)
    }

    /// `!=` or `ne`; `==` and `eq` may be left out.
    fn operator(&mut self) -> bool {
        if self.skip("==") || self.skip("eq") {
            return false;
        }
        self.skip("!=") || self.skip("ne")
    }

    fn value(&mut self, selector: Selector) -> Result<&'a str, Refusal> {
        match self.next() {
            "" | "}" | "{" | "," | "&" => Err(format!("{selector} needs a value, and {{ }} at least one")),
            text => Ok(text),
        }
    }

    fn masked(&mut self, selector: Selector) -> Result<Statement, Refusal> {
        let mask = value::number(self.value(selector)?)?;
        let negated = self.operator();
        let value = value::number(self.value(selector)?)?;
        let pattern = Pattern::Masked { mask: Value::Mark(mask), value: Value::Mark(value) };
        value::test(selector, negated, vec![pattern])
    }

    fn selector(&mut self) -> Result<Selector, Refusal> {
        let first = self.next();
        match first {
            "ip" | "ip6" => self.ip(first),
            "tcp" => self.port(Selector::Sport(Transport::Tcp), Selector::Dport(Transport::Tcp), first),
            "udp" => self.port(Selector::Sport(Transport::Udp), Selector::Dport(Transport::Udp), first),
            "sctp" => self.port(Selector::Sport(Transport::Sctp), Selector::Dport(Transport::Sctp), first),
            "dccp" => self.port(Selector::Sport(Transport::Dccp), Selector::Dport(Transport::Dccp), first),
            "th" => self.port(Selector::ThSport, Selector::ThDport, first),
            "ct" => match self.next() {
                "state" => Ok(Selector::CtState),
                "mark" => Ok(Selector::CtMark),
                other => Err(unknown(&["ct", other])),
            },
            "fib" => match (self.next(), self.next()) {
                ("daddr", "type") => Ok(Selector::FibDaddrType),
                ("saddr", "type") => Ok(Selector::FibSaddrType),
                (a, b) => Err(unknown(&["fib", a, b])),
            },
            "meta" => {
                let key = self.next();
                meta(key).ok_or_else(|| unknown(&["meta", key]))
            }
            // nft takes these without `meta`.
            "iif" | "iifname" | "oif" | "oifname" | "mark" | "skuid" | "skgid" | "pkttype" => {
                meta(first).ok_or_else(|| unknown(&[first]))
            }
            other => Err(unknown(&[other])),
        }
    }

    fn ip(&mut self, keyword: &str) -> Result<Selector, Refusal> {
        if keyword != self.version.keyword() {
            return Err(format!("\"{keyword}\" is the other version of IP, so no packet could ever match"));
        }
        match self.next() {
            "saddr" => Ok(Selector::Saddr(self.version)),
            "daddr" => Ok(Selector::Daddr(self.version)),
            "protocol" if self.version == IpVersion::V4 => Ok(Selector::L4proto),
            other => Err(unknown(&[keyword, other])),
        }
    }

    fn port(&mut self, source: Selector, destination: Selector, keyword: &str) -> Result<Selector, Refusal> {
        match self.next() {
            "sport" => Ok(source),
            "dport" => Ok(destination),
            other => Err(unknown(&[keyword, other])),
        }
    }

    fn pattern(&self, selector: Selector, text: &str) -> Result<Pattern, Refusal> {
        let is = |value: Value| Ok(Pattern::Is(value));
        match selector {
            Selector::Saddr(_) | Selector::Daddr(_) => value::address(text, self.version),
            Selector::Sport(_) | Selector::Dport(_) | Selector::ThSport | Selector::ThDport => {
                value::ports(text, '-', false)
            }
            Selector::Iifname | Selector::Oifname => value::interface(text, '*'),
            Selector::L4proto => is(Value::Proto(value::protocol(text)?)),
            Selector::Nfproto => match text {
                "ipv4" => is(Value::Nfproto(IpVersion::V4)),
                "ipv6" => is(Value::Nfproto(IpVersion::V6)),
                other => Err(unknown(&["meta nfproto", other])),
            },
            Selector::Mark | Selector::CtMark => is(Value::Mark(value::number(text)?)),
            Selector::Skuid => is(Value::Uid(value::number(text)?)),
            Selector::Skgid => is(Value::Gid(value::number(text)?)),
            Selector::PktType => value::packet_type(text),
            Selector::FibDaddrType | Selector::FibSaddrType => value::address_type(text),
            other => Err(unknown(&[&other.to_string(), text])),
        }
    }
}

/// The key behind `meta`. Interfaces are always compared by name: an index would mean another interface after it was
/// made anew.
fn meta(key: &str) -> Option<Selector> {
    Some(match key {
        "iif" | "iifname" => Selector::Iifname,
        "oif" | "oifname" => Selector::Oifname,
        "l4proto" => Selector::L4proto,
        "nfproto" => Selector::Nfproto,
        "mark" => Selector::Mark,
        "skuid" => Selector::Skuid,
        "skgid" => Selector::Skgid,
        "pkttype" => Selector::PktType,
        _ => return None,
    })
}

fn unknown(words: &[&str]) -> Refusal {
    let words: Vec<&str> = words.iter().copied().filter(|w| !w.is_empty()).collect();
    format!("the nft expression \"{}\" can't be translated", words.join(" "))
}
