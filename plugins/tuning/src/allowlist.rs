//! The administrator's list of sysctls that configurations may set.
//!
//! One regular expression a line, matched anywhere in a key as it is written, as the reference does it; it is read as Go
//! would read it ([`crate::re2`]), and the engine takes linear time. Empty lines and lines that begin with `#` say nothing. A file without patterns allows nothing.

use regex::bytes::Regex;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::Look;

use crate::re2;

/// Where the list is; without the file everything is allowed. The reference's path, which no key changes.
pub const PATH: &str = "/etc/cni/tuning/allowlist.conf";

/// The patterns of the file.
#[derive(Clone, Debug, Default)]
pub struct Allowlist {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    line: usize,
    text: String,
    /// `None` where the text is no regular expression: it then matches nothing.
    regex: Option<Regex>,
    anchored: bool,
}

impl Allowlist {
    /// The patterns of a file.
    pub fn parse(content: &[u8]) -> Allowlist {
        let text = String::from_utf8_lossy(content);
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let patterns = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        Allowlist { patterns: patterns.map(|(line, text)| Pattern::new(line, text)).collect() }
    }

    /// Whether a key, as it is written, is allowed.
    pub fn admits(&self, key: &str) -> bool {
        self.patterns.iter().filter_map(|p| p.regex.as_ref()).any(|r| r.is_match(key.as_bytes()))
    }

    /// The patterns as they are written, for a message.
    pub fn texts(&self) -> Vec<&str> {
        self.patterns.iter().map(|p| p.text.as_str()).collect()
    }

    /// What an administrator should know about the list.
    pub fn warnings(&self) -> Vec<String> {
        let warning = |p: &Pattern| {
            let what = match &p.regex {
                None => "is not a regular expression and allows nothing",
                Some(_) if !p.anchored => {
                    "is not anchored: it allows every key that contains a match; begin it with ^ and end it with $"
                }
                Some(_) => return None,
            };
            Some(format!("{PATH} line {}: \"{}\" {what}", p.line, p.text))
        };
        self.patterns.iter().filter_map(warning).collect()
    }
}

impl Pattern {
    fn new(line: usize, text: &str) -> Pattern {
        let translated = re2::translate(text);
        let regex = translated.as_deref().and_then(|t| Regex::new(t).ok());
        let anchored = translated.is_some_and(|t| is_anchored(&t));
        Pattern { line, text: text.to_owned(), regex, anchored }
    }
}

/// Whether every match takes the whole key.
fn is_anchored(pattern: &str) -> bool {
    let parsed = ParserBuilder::new().utf8(false).build().parse(pattern);
    parsed.is_ok_and(|hir| {
        let properties = hir.properties();
        properties.look_set_prefix().contains(Look::Start) && properties.look_set_suffix().contains(Look::End)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_anywhere_in_the_key_as_written() {
        let list = Allowlist::parse(b"^net\\.core\\.\n  \n# net.ipv6\nconf.IFNAME\n");
        assert!(list.admits("net.core.somaxconn"));
        assert!(list.admits("net/ipv4/conf/IFNAME/rp_filter"));
        assert!(!list.admits("net/core/somaxconn"));
        assert!(!list.admits("net.ipv6.conf.all.forwarding"), "a comment allows nothing");
    }

    #[test]
    fn a_list_without_patterns_allows_nothing() {
        for content in ["", "\n\n", "# only a comment\n"] {
            assert!(!Allowlist::parse(content.as_bytes()).admits("net.core.somaxconn"));
        }
    }

    #[test]
    fn classes_are_ascii_as_in_go() {
        let list = Allowlist::parse(b"^net\\.\\w+\\.\\d$");
        assert!(list.admits("net.a.1"));
        assert!(!list.admits("net.\u{e9}.1"));
        assert!(!list.admits("net.a.\u{0661}"));
    }

    #[test]
    fn a_broken_pattern_allows_nothing_and_is_named() {
        let list = Allowlist::parse(b"net.[\n^net.core.somaxconn$\n");
        assert!(list.admits("net.core.somaxconn"));
        assert!(!list.admits("net.["));
        assert_eq!(list.warnings().len(), 1);
        assert!(list.warnings()[0].contains("line 1"), "{:?}", list.warnings());
    }

    #[test]
    fn patterns_that_are_not_anchored_are_named() {
        let warned = |pattern: &str| !Allowlist::parse(pattern.as_bytes()).warnings().is_empty();
        for anchored in
            ["^net.core.x$", "^(net.a|net.b)$", "\\Anet\\z", "^net.a$|^net.b$", "^net[$]a$", "^\\Qnet.a\\E$"]
        {
            assert!(!warned(anchored), "{anchored}");
        }
        for open in ["net.core.x", "^net.core", "core$", "^net.a|net.b$", "net\\$", "^net.a\\$", "\\Q^net.a$\\E"] {
            assert!(warned(open), "{open}");
        }
    }
}
