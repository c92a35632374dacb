//! The environment that a runtime execs a plugin with, validated per verb.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::error::{Error, Result};

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Apply.
    Add,
    /// Remove.
    Del,
    /// Compare.
    Check,
    /// Remove what no live attachment owns.
    Gc,
    /// Say whether ADD could succeed.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Verb; 6] = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status, Verb::Version];

    /// As CNI_COMMAND has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }

    /// The verb of CNI_COMMAND, if it is one.
    pub fn from_command(command: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|v| v.as_str() == command)
    }

    const fn concerns_a_container(self) -> bool {
        matches!(self, Verb::Add | Verb::Del | Verb::Check)
    }
}

/// The environment of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// CNI_COMMAND.
    pub verb: Verb,
    /// CNI_CONTAINERID; empty where the verb has none.
    pub container: String,
    /// CNI_NETNS; DEL may come without.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME; empty where the verb has none.
    pub ifname: String,
    /// CNI_ARGS.
    pub args: Args,
    /// CNI_NETNS_OVERRIDE: the container may be in the plugin's own namespace.
    pub netns_override: bool,
}

impl Environment {
    /// Reads and validates what `verb` needs, in the order of the reference: a bad value fails at once, missing ones are
    /// gathered. `lookup` is the process environment, or a test's.
    pub fn read(verb: Verb, lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Environment> {
        let mut missing = Vec::new();
        let mut need = |name: &'static str| -> Result<String> {
            let value = text(name, lookup)?;
            if value.is_empty() && verb.concerns_a_container() && !(name == NETNS && verb == Verb::Del) {
                missing.push(name);
            }
            Ok(value)
        };
        let container = need(CONTAINER)?;
        if verb.concerns_a_container() && !container.is_empty() && !is_identifier(&container) {
            return Err(Error::InvalidEnvironment {
                variable: CONTAINER,
                value: container,
                reason: "invalid characters in containerID: it begins with a letter or digit, then letters, digits, \
                         '_', '.' and '-' follow"
                    .into(),
            });
        }
        let netns = need(NETNS)?;
        let ifname = need(IFNAME)?;
        if verb.concerns_a_container() && !ifname.is_empty() {
            validate_ifname(&ifname).map_err(|reason| Error::InvalidEnvironment {
                variable: IFNAME,
                value: ifname.clone(),
                reason,
            })?;
        }
        if !missing.is_empty() {
            return Err(Error::MissingEnvironment { variables: missing });
        }
        let over = text("CNI_NETNS_OVERRIDE", lookup)?;
        Ok(Environment {
            verb,
            container,
            netns: if netns.is_empty() { None } else { Some(PathBuf::from(netns)) },
            ifname,
            args: Args::parse(&text("CNI_ARGS", lookup)?),
            netns_override: over.eq_ignore_ascii_case("true") || over == "1",
        })
    }
}

const CONTAINER: &str = "CNI_CONTAINERID";
const NETNS: &str = "CNI_NETNS";
const IFNAME: &str = "CNI_IFNAME";

fn text(variable: &'static str, lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<String> {
    lookup(variable).unwrap_or_default().into_string().map_err(|raw| Error::InvalidEnvironment {
        variable,
        value: raw.to_string_lossy().into_owned(),
        reason: "it is not UTF-8".into(),
    })
}

/// Whether `text` can name a container or a network: `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$` (SPEC.md, "Parameters").
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether `name` can name a network interface, by the kernel's `dev_valid_name` (net/core/dev.c) as libcni reads it, and can be
/// shown.
pub fn validate_ifname(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("interface name is empty".into());
    }
    if name.len() > 15 {
        return Err("interface name is longer than 15 bytes".into());
    }
    if name == "." || name == ".." {
        return Err("interface name is . or ..".into());
    }
    if name.chars().any(|c| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
        return Err("interface name contains / or : or whitespace characters".into());
    }
    // The kernel would take it, but it would get into comments and aliases that people list, and act on their terminals.
    if name.chars().any(char::is_control) {
        return Err("interface name contains a control character".into());
    }
    Ok(())
}

/// CNI_ARGS: `KEY=VALUE;KEY=VALUE`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pairs: BTreeMap<String, String>,
    malformed: Option<String>,
}

impl Args {
    /// Splits the pairs. One without `=` is remembered, not refused: only who reads the arguments may care
    /// ([`Args::well_formed`]).
    pub fn parse(text: &str) -> Args {
        let mut args = Args::default();
        for pair in text.split(';').filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some((key, value)) => drop(args.pairs.insert(key.to_owned(), value.to_owned())),
                None => args.malformed = args.malformed.or_else(|| Some(pair.to_owned())),
            }
        }
        args
    }

    /// Fails if any pair had no `=`, as libcni's `LoadArgs` does.
    pub fn well_formed(&self) -> Result<&Args> {
        match &self.malformed {
            None => Ok(self),
            Some(pair) => Err(Error::InvalidEnvironment {
                variable: "CNI_ARGS",
                value: pair.clone(),
                reason: "invalid pair: it has no '='".into(),
            }),
        }
    }

    /// The value of one key, in exactly this case.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str)
    }

    /// All pairs, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(verb: Verb, vars: &[(&str, &str)]) -> Result<Environment> {
        let vars: BTreeMap<String, String> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Environment::read(verb, &move |name| vars.get(name).map(OsString::from))
    }

    #[test]
    fn missing_variables_are_gathered() {
        let error = read(Verb::Add, &[("CNI_NETNS", "/x")]).unwrap_err();
        assert_eq!(error.to_string(), "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing");
        assert_eq!(error.code(), 4);
    }

    #[test]
    fn del_needs_no_netns_and_nothing_needs_cni_path() {
        let env = read(Verb::Del, &[("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")]).unwrap();
        assert_eq!(env.netns, None);
        assert!(read(Verb::Gc, &[]).is_ok());
    }

    #[test]
    fn a_bad_name_fails_before_a_missing_one_is_reported() {
        for (id, ifname) in [
            ("a b", "eth0"),
            ("-a", "eth0"),
            ("é", "eth0"),
            ("c", "a/b"),
            ("c", ".."),
            ("c", "0123456789abcdef"),
            ("c", "e\u{1b}c"),
        ] {
            let error = read(Verb::Add, &[("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)]).unwrap_err();
            assert!(matches!(error, Error::InvalidEnvironment { .. }), "{id} {ifname}: {error}");
        }
    }

    #[test]
    fn version_ignores_what_podman_puts_into_the_variables() {
        let vars = [("CNI_CONTAINERID", ""), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
        assert!(read(Verb::Version, &vars).is_ok());
    }

    #[test]
    fn args_are_pairs() {
        let args = Args::parse("IgnoreUnknown=1;MAC=02:00:00:00:00:01;EMPTY=");
        assert_eq!(args.get("MAC"), Some("02:00:00:00:00:01"));
        assert_eq!(args.get("EMPTY"), Some(""));
        assert_eq!(Args::parse("a=1;novalue").well_formed().unwrap_err().code(), 4);
    }
}
