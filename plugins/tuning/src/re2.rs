//! Go's regular expressions (RE2, <https://github.com/google/re2/wiki/Syntax>) in the syntax of the `regex` crate.
//!
//! The two engines agree on what a match is, and on most of the syntax. What differs:
//!
//! * Go's `\d`, `\w`, `\s` and `\b` are ASCII, and `\s` has no vertical tab;
//! * Go knows `\Q…\E`, octal escapes and `\p{^…}`;
//! * in a class, Go takes `[`, `&&`, `--` and `~~` for what they look like, the crate for set operations;
//! * a `{` that begins no repetition is a brace to Go and an error to the crate;
//! * what only the crate knows (`(?x)`, `\<`, `\b{start}`, `**`) is an error to Go, and so it is here.

use std::iter::Peekable;
use std::str::Chars;

/// What Go writes as `\d`, `\w` and `\s`, as the inside of a class.
const DIGIT: &str = "0-9";
const WORD: &str = "0-9A-Za-z_";
const SPACE: &str = r"\t\n\f\r ";

/// The same pattern in the `regex` crate's syntax; `None` if Go would not take it either.
pub fn translate(pattern: &str) -> Option<String> {
    let mut reader = Reader { rest: pattern.chars().peekable(), out: String::with_capacity(pattern.len() + 8) };
    let mut repeatable = true;
    while let Some(c) = reader.rest.next() {
        repeatable = reader.piece(c, repeatable)?;
    }
    Some(reader.out)
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
}

impl Reader<'_> {
    /// One piece outside of classes; says whether a repetition may follow it, which one behind a repetition may not.
    fn piece(&mut self, c: char, repeatable: bool) -> Option<bool> {
        match c {
            '\\' => self.escape(),
            '[' => self.class(),
            '(' => self.group(),
            '*' | '+' | '?' => self.repetition(&c.to_string(), repeatable),
            '{' => match self.bounds()? {
                Some(bounds) => self.repetition(&bounds, repeatable),
                None => self.literal('{'),
            },
            '.' | '^' | '$' | '|' | ')' => {
                self.out.push(c);
                Some(true)
            }
            other => self.literal(other),
        }
    }

    fn literal(&mut self, c: char) -> Option<bool> {
        let mut bytes = [0; 4];
        self.out.push_str(&regex_syntax::escape(c.encode_utf8(&mut bytes)));
        Some(true)
    }

    /// A repetition and the `?` that makes it lazy. Go refuses one of a repetition.
    fn repetition(&mut self, text: &str, repeatable: bool) -> Option<bool> {
        if !repeatable {
            return None;
        }
        self.out.push_str(text);
        if self.rest.next_if_eq(&'?').is_some() {
            self.out.push('?');
        }
        Some(false)
    }

    /// `n}`, `n,}` or `n,m}` behind a brace, at most 1000 as in Go; `Some(None)` if something else stands there.
    fn bounds(&mut self) -> Option<Option<String>> {
        let ahead: String = self.rest.clone().take_while(|c| *c != '}').take(12).collect();
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (least, most) = ahead.split_once(',').unwrap_or((&ahead, &ahead));
        if !number(least) || !(most.is_empty() || number(most)) || !self.skip(&format!("{ahead}}}")) {
            return Some(None);
        }
        let fits = |text: &str| text.is_empty() || text.parse::<u16>().is_ok_and(|n| n <= 1000);
        (fits(least) && fits(most)).then(|| Some(format!("{{{ahead}}}")))
    }

    /// Goes behind this text if it comes next.
    fn skip(&mut self, text: &str) -> bool {
        let mut ahead = self.rest.clone();
        let comes = text.chars().all(|c| ahead.next() == Some(c));
        if comes {
            self.rest = ahead;
        }
        comes
    }

    /// A group's opening: plain, named, or with Go's flags.
    fn group(&mut self) -> Option<bool> {
        self.out.push('(');
        if self.rest.next_if_eq(&'?').is_none() {
            return Some(true);
        }
        self.out.push('?');
        let named = self.skip("P<") || self.skip("<");
        if named {
            self.out.push_str("P<");
        }
        loop {
            let c = self.rest.next()?;
            self.out.push(c);
            match c {
                '>' if named => return Some(true),
                ':' | ')' if !named => return Some(true),
                'i' | 'm' | 's' | 'U' | '-' if !named => {}
                _ if named && (c.is_ascii_alphanumeric() || c == '_') => {}
                _ => return None,
            }
        }
    }

    /// What stands behind a backslash, outside of classes.
    fn escape(&mut self) -> Option<bool> {
        match self.rest.next()? {
            'Q' => self.quoted(),
            c @ ('A' | 'z') => {
                self.out.extend(['\\', c]);
                Some(true)
            }
            c @ ('b' | 'B') => {
                self.out.push_str(&format!("(?-u:\\{c})"));
                Some(true)
            }
            c => match self.set(c)? {
                Some(set) => {
                    self.out.push_str(&set);
                    Some(true)
                }
                None => {
                    let c = self.character(c)?;
                    self.literal(c)
                }
            },
        }
    }

    /// Everything up to `\E`, or to the end, for what it looks like.
    fn quoted(&mut self) -> Option<bool> {
        while !self.skip("\\E") {
            match self.rest.next() {
                Some(c) => self.literal(c)?,
                None => break,
            };
        }
        Some(true)
    }

    /// A backslash's set of characters, as a class of its own: `\d` and its like, `\p…`. `Some(None)` if it is none.
    fn set(&mut self, c: char) -> Option<Option<String>> {
        let (letters, negated) = match c {
            'd' | 'D' => (DIGIT, c == 'D'),
            'w' | 'W' => (WORD, c == 'W'),
            's' | 'S' => (SPACE, c == 'S'),
            'p' | 'P' => return self.unicode(c == 'P').map(Some),
            _ => return Some(None),
        };
        Some(Some(format!("[{}{letters}]", if negated { "^" } else { "" })))
    }

    /// `\pL`, `\p{Greek}`, `\p{^Greek}`: a general category or a script.
    fn unicode(&mut self, mut negated: bool) -> Option<String> {
        let name: String = match self.rest.next()? {
            '{' => {
                negated ^= self.rest.next_if_eq(&'^').is_some();
                let name: String = self.rest.clone().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                self.skip(&format!("{name}}}")).then_some(name)?
            }
            letter => letter.to_string(),
        };
        Some(format!("\\{}{{{name}}}", if negated { 'P' } else { 'p' }))
    }

    /// The one character that an escape stands for.
    fn character(&mut self, c: char) -> Option<char> {
        match c {
            'a' => Some('\x07'),
            'f' => Some('\x0c'),
            't' => Some('\t'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            'v' => Some('\x0b'),
            'x' => self.hexadecimal(),
            // A single digit would be a reference to a group, which neither engine has.
            '1'..='7' if !self.rest.peek().is_some_and(|next| ('0'..='7').contains(next)) => None,
            '0'..='7' => {
                let mut number = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.rest.peek().and_then(|d| d.to_digit(8)) else { break };
                    number = number * 8 + digit;
                    self.rest.next();
                }
                char::from_u32(number)
            }
            punctuation if punctuation.is_ascii() && !punctuation.is_ascii_alphanumeric() => Some(punctuation),
            _ => None,
        }
    }

    /// Two digits, or any number of them in braces.
    fn hexadecimal(&mut self) -> Option<char> {
        let digits: String = if self.rest.next_if_eq(&'{').is_some() {
            let digits: String = self.rest.clone().take_while(char::is_ascii_hexdigit).collect();
            self.skip(&format!("{digits}}}")).then_some(digits)?
        } else {
            let digits: String = self.rest.clone().take(2).collect();
            self.skip(&digits).then_some(digits).filter(|d| d.len() == 2)?
        };
        u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32)
    }

    /// A class. A `]` that comes first is a member.
    fn class(&mut self) -> Option<bool> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            match self.rest.next()? {
                ']' if !first => break,
                '[' if self.posix()? => {}
                c => self.member(c)?,
            }
            first = false;
        }
        self.out.push(']');
        Some(true)
    }

    /// `[:alpha:]` and `[:^alpha:]`, behind their bracket; whether there is one. One of another name is an error.
    fn posix(&mut self) -> Option<bool> {
        const NAMES: [&str; 14] = [
            "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
            "word", "xdigit",
        ];
        let ahead: String = self.rest.clone().collect();
        let Some((name, _)) = ahead.strip_prefix(':').and_then(|behind| behind.split_once(":]")) else {
            return Some(false);
        };
        if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return None;
        }
        self.out.push_str(&format!("[:{name}:]"));
        Some(self.skip(&format!(":{name}:]")))
    }

    /// A character of a class, or a range, or a set.
    fn member(&mut self, c: char) -> Option<()> {
        let low = match c {
            '\\' => {
                let escaped = self.rest.next()?;
                if let Some(set) = self.set(escaped)? {
                    self.out.push_str(&set);
                    return Some(());
                }
                self.character(escaped)?
            }
            plain => plain,
        };
        self.literal(low)?;
        let mut ahead = self.rest.clone();
        if ahead.next() != Some('-') || matches!(ahead.peek(), Some(']') | None) {
            return Some(());
        }
        self.rest = ahead;
        let high = match self.rest.next()? {
            '\\' => {
                let escaped = self.rest.next()?;
                self.character(escaped)?
            }
            plain => plain,
        };
        self.out.push('-');
        self.literal(high).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> Option<bool> {
        let regex = regex::bytes::Regex::new(&translate(pattern)?).ok()?;
        Some(regex.is_match(text.as_bytes()))
    }

    /// `None` is an error. Each line was put to `regexp.MatchString` of Go 1.19, except `(?<…>`, which Go has since 1.22.
    #[test]
    fn a_pattern_means_what_it_means_to_go() {
        let cases: &[(&str, &str, Option<bool>)] = &[
            (r"^net\.core\.", "net.core.somaxconn", Some(true)),
            (r"^\Qnet.core.somaxconn\E$", "net.core.somaxconn", Some(true)),
            (r"^\Qnet.core.somaxconn\E$", "netxcore.somaxconn", Some(false)),
            (r"\Qa.b", "a.b", Some(true)),
            (r"^\Qa\E+$", "aaa", Some(true)),
            (r"^[\p{L}.]+$", "net.k\u{e9}y", Some(true)),
            (r"^\pL+$", "net", Some(true)),
            (r"^\p{^Greek}$", "a", Some(true)),
            (r"^\P{Greek}$", "\u{3b1}", Some(false)),
            (r"^\p{Greek}$", "\u{3b1}", Some(true)),
            (r"\p{NoSuch}", "a", None),
            (r"^\d$", "\u{661}", Some(false)),
            (r"^[\d]$", "\u{661}", Some(false)),
            (r"^[^\D]$", "7", Some(true)),
            (r"^\w$", "\u{e9}", Some(false)),
            (r"\bnet\b", "a.net.b", Some(true)),
            (r"^\s$", "\u{b}", Some(false)),
            (r"^.$", "\u{e9}", Some(true)),
            (r"^[[a]$", "[", Some(true)),
            (r"^[a&&b]+$", "a&b", Some(true)),
            (r"^[+--]$", ",", Some(true)),
            (r"^[a~~b]$", "~", Some(true)),
            (r"^[]a]$", "]", Some(true)),
            (r"^[^]a]$", "]", Some(false)),
            (r"^[a-]$", "-", Some(true)),
            (r"^[-a]$", "-", Some(true)),
            (r"^[[:alpha:]]$", "q", Some(true)),
            (r"^[[:^alpha:]]$", "q", Some(false)),
            (r"^[[:nosuch:]]$", "q", None),
            (r"^a{2}$", "aa", Some(true)),
            (r"^a{2,}$", "aaa", Some(true)),
            (r"^a{,2}$", "a{,2}", Some(true)),
            (r"^a{x}$", "a{x}", Some(true)),
            (r"^a{$", "a{", Some(true)),
            (r"a{1001}", "a", None),
            (r"^(?i)NET\.", "net.", Some(true)),
            (r"^(?i:NET)\.", "net.", Some(true)),
            (r"^(?i)\x{212a}$", "k", Some(true)),
            (r"^(?P<first>net)$", "net", Some(true)),
            (r"^(?<first>net)$", "net", Some(true)),
            (r"^\x6eet$", "net", Some(true)),
            (r"^\156et$", "net", Some(true)),
            (r"^\x{6e}et$", "net", Some(true)),
            (r"(a)\1", "aa", None),
            (r"(?x)a b", "ab", None),
            (r"a**", "a", None),
            (r"a*?", "a", Some(true)),
            (r"a???", "a", None),
            (r"*a", "a", None),
            (r"\y", "y", None),
            (r"\Z", "Z", None),
            (r"\<net", "net", Some(false)),
            (r"\_", "_", Some(true)),
            (r"(?=a)", "a", None),
            (r"[b-a]", "a", None),
            (r"[a", "a", None),
            (r"(a", "a", None),
            (r"a)", "a", None),
            (r"a\", "a", None),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), *expected, "{pattern} on {text:?}: {:?}", translate(pattern));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_makes_it_panic(pattern in "([\\\\\\[\\](){}?*+^$|.,:<>Qpxab0-9-]|\\PC){0,20}") {
            let _ = translate(&pattern).map(|t| regex::bytes::Regex::new(&t));
        }

        #[test]
        fn a_quoted_text_matches_itself_and_nothing_else(text in "[^\\\\]{1,20}", other in "[^\\\\]{1,20}") {
            let pattern = format!("^\\Q{text}\\E$");
            proptest::prop_assert_eq!(matches(&pattern, &text), Some(true));
            proptest::prop_assert_eq!(matches(&pattern, &other), Some(text == other));
        }
    }
}
