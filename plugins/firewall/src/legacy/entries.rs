//! A legacy table's entries, read (`struct ipt_entry`, `struct ip6t_entry`: include/uapi/linux/netfilter_ipv4/ip_tables.h,
//! …_ipv6/ip6_tables.h, netfilter/x_tables.h).
//!
//! A table is one run of entries, each with the offset of the next. A built-in chain begins where the table's head says
//! (`hook_entry`) and ends with its policy (`underflow`); a user's chain begins with an entry whose target is `ERROR` and
//! carries its name. A verdict that isn't negative is a jump to the entry at that offset.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use common::nft::IpVersion;

use super::kernel::RawTable;

/// A filter table, as far as we look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterTable {
    chains: Vec<Chain>,
}

/// One chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// A built-in chain's.
    pub(super) policy: Option<Verdict>,
    pub(super) rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// What it tests of addresses, interfaces, protocol and fragments (`struct ipt_ip`, `struct ip6t_ip6`).
    header: Vec<u8>,
    matches: Vec<Match>,
    pub(super) target: Target,
    /// Whether a jump doesn't come back (`-g`).
    is_goto: bool,
}

/// An extension's test: its name, revision and data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Match {
    name: String,
    revision: u8,
    data: Vec<u8>,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Verdict(Verdict),
    Jump(String),
    /// LOG, REJECT, …
    Extension(String),
}

/// What it does, as after `iptables`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Verdict(verdict) => write!(f, "-j {}", format!("{verdict:?}").to_uppercase()),
            Target::Jump(name) if self.is_goto => write!(f, "-g {name}"),
            Target::Jump(name) | Target::Extension(name) => write!(f, "-j {name}"),
        }
    }
}

/// A final verdict, or the end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Queue,
}

/// Where the fields of an entry are.
struct Layout {
    /// Bytes of what is tested in the packet's header, without padding.
    header: usize,
    /// `target_offset`, followed by `next_offset`.
    offsets_at: usize,
    /// Bytes of an entry before its matches.
    entry: usize,
    /// Where the flags are, and the one of them that says that a jump doesn't come back (`IPT_F_GOTO`, `IP6T_F_GOTO`).
    goto: (usize, u8),
}

impl Layout {
    const fn of(version: IpVersion) -> Layout {
        match version {
            IpVersion::V4 => Layout { header: 84, offsets_at: 88, entry: 112, goto: (82, 2) },
            IpVersion::V6 => Layout { header: 133, offsets_at: 140, entry: 168, goto: (131, 4) },
        }
    }
}

/// Bytes of `struct xt_entry_match` and `struct xt_entry_target`: size, `name[29]`, revision.
const EXTENSION_HEAD: usize = 32;

/// NF_INET_FORWARD, and its neighbours in the filter table.
const HOOKS: [(usize, &str); 3] = [(1, "INPUT"), (2, "FORWARD"), (3, "OUTPUT")];

/// Where `hook_entry` and `underflow` are in `struct ipt_getinfo`.
const HOOK_ENTRY_AT: usize = 36;
const UNDERFLOW_AT: usize = 56;

impl FilterTable {
    /// Reads a table; `None` if it contradicts itself.
    pub fn parse(version: IpVersion, raw: &RawTable) -> Option<FilterTable> {
        let layout = Layout::of(version);
        let entries = entries(&layout, &raw.entries)?;
        let builtin = |(hook, name): (usize, &'static str)| {
            let begin = word(&raw.info, HOOK_ENTRY_AT + 4 * hook)?;
            let policy = word(&raw.info, UNDERFLOW_AT + 4 * hook)?;
            Some((begin, (name, policy)))
        };
        let builtins: BTreeMap<u32, (&str, u32)> = HOOKS.into_iter().filter_map(builtin).collect();
        let names = chain_names(&entries, &builtins);
        let mut table = FilterTable::default();
        for (offset, entry) in &entries {
            if let Some((name, _)) = builtins.get(offset) {
                table.chains.push(Chain { name: (*name).to_owned(), policy: None, rules: vec![] });
            }
            if let Some(name) = entry.chain_begins() {
                table.chains.push(Chain { name, policy: None, rules: vec![] });
                continue;
            }
            let chain = table.chains.last_mut()?;
            let rule = entry.rule(&layout, &names)?;
            match (&rule.target, builtins.values().any(|(_, policy)| policy == offset)) {
                (Target::Verdict(verdict), true) => chain.policy = Some(*verdict),
                _ => chain.rules.push(rule),
            }
        }
        table.chains.iter_mut().filter(|c| c.policy.is_none()).for_each(|chain| {
            // The last entry of a user's chain is the return that every chain ends with.
            chain.rules.pop();
        });
        Some(table)
    }

    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// The rules of a chain; none if there is no such chain.
    pub(super) fn rules(&self, name: &str) -> &[Rule] {
        self.chain(name).map(|chain| chain.rules.as_slice()).unwrap_or_default()
    }

    /// Whether FORWARD drops what none of its rules has accepted.
    pub(super) fn drops_the_rest(&self) -> bool {
        let policy = self.chain("FORWARD").and_then(|chain| chain.policy);
        policy == Some(Verdict::Drop) || self.refuses_all("FORWARD", DEPTH)
    }

    /// Whether no packet gets past this rule of FORWARD's or of a chain that it jumps to.
    pub(super) fn lets_nothing_past(&self, rule: &Rule) -> bool {
        let ends = match &rule.target {
            Target::Verdict(Verdict::Return) => self.drops_the_rest(),
            Target::Jump(chain) if rule.is_goto && !self.may_accept(chain) && self.drops_the_rest() => true,
            _ => self.refuses(rule, DEPTH),
        };
        ends && rule.is_unconditional()
    }

    /// Whether the chain drops or rejects every packet that comes to it, but what its conditions let go before.
    fn refuses_all(&self, chain: &str, depth: usize) -> bool {
        let ends = |rule: &&Rule| match &rule.target {
            Target::Verdict(_) => true,
            Target::Jump(_) => rule.is_goto || self.refuses(rule, depth),
            Target::Extension(name) => name == REJECT,
        };
        let mut rules = self.rules(chain).iter().filter(|rule| rule.is_unconditional());
        rules.find(ends).is_some_and(|rule| self.refuses(rule, depth))
    }

    fn refuses(&self, rule: &Rule, depth: usize) -> bool {
        match &rule.target {
            Target::Verdict(verdict) => *verdict == Verdict::Drop,
            Target::Extension(name) => name == REJECT,
            // The kernel takes no loops; these bytes might have one.
            Target::Jump(chain) => depth > 0 && self.refuses_all(chain, depth - 1),
        }
    }

    fn may_accept(&self, chain: &str) -> bool {
        let may = |rule: &Rule| match &rule.target {
            Target::Verdict(verdict) => matches!(verdict, Verdict::Accept | Verdict::Queue),
            Target::Jump(_) => true,
            Target::Extension(_) => false,
        };
        self.rules(chain).iter().any(may)
    }
}

/// The target that rejects.
const REJECT: &str = "REJECT";

/// How far jumps are followed.
const DEPTH: usize = 8;

impl Rule {
    /// Whether every packet meets its target.
    pub(super) fn is_unconditional(&self) -> bool {
        !self.tests_header() && self.matches.iter().all(|m| m.name == "comment")
    }

    /// Whether every packet that comes to it goes on in this chain.
    pub(super) fn jumps_to(&self, chain: &str) -> bool {
        self.is_unconditional() && matches!(&self.target, Target::Jump(to) if to == chain)
    }

    /// Whether it tests that the bits of `mark` are set, and nothing else.
    pub(super) fn tests_mark_only(&self, mark: u32) -> bool {
        self.sole_mark() == Some(mark)
    }

    /// The bits that it tests to be set, if it tests nothing else.
    pub(super) fn sole_mark(&self) -> Option<u32> {
        let mut tests = self.matches.iter().filter(|m| m.name != "comment");
        let mark = tests.next()?.mark()?;
        (tests.next().is_none() && !self.tests_header()).then_some(mark)
    }

    /// Its tests as `iptables-restore` reads them, if they are of marks and comments only.
    pub(super) fn tests_in_words(&self) -> Option<String> {
        let words = |one: &Match| match one.name.as_str() {
            "comment" => one
                .comment()
                .filter(|c| !c.contains(['"', '\n', '\\']))
                .map(|c| format!("-m comment --comment \"{c}\"")),
            _ => one.mark().map(|mark| format!("-m mark --mark {mark:#x}/{mark:#x}")),
        };
        let all: Option<Vec<String>> = self.matches.iter().map(words).collect();
        all.filter(|_| !self.tests_header()).map(|all| all.join(" "))
    }

    fn tests_header(&self) -> bool {
        self.header.iter().any(|byte| *byte != 0)
    }

    /// The one address that is all it tests of the header, and whether it is the destination.
    fn sole_address(&self, version: IpVersion) -> Option<(IpAddr, bool)> {
        // Source, destination, and a mask for each.
        let (fields, rest) = self.header.split_at_checked(4 * version.address_len())?;
        let fields: Vec<&[u8]> = fields.chunks(version.address_len()).collect();
        let all = |bytes: &[u8], value: u8| bytes.iter().all(|byte| *byte == value);
        let [source, destination, source_mask, destination_mask] = *fields.as_slice() else { return None };
        let is_destination = match (source_mask, destination_mask) {
            (mask, none) if all(mask, 0xff) && all(none, 0) => false,
            (none, mask) if all(mask, 0xff) && all(none, 0) => true,
            _ => return None,
        };
        let bytes = if is_destination { destination } else { source };
        let address = match version {
            IpVersion::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
            IpVersion::V6 => IpAddr::from(*bytes.first_chunk::<16>()?),
        };
        all(rest, 0).then_some((address, is_destination))
    }

    /// The address that one of the reference's two rules is about, and whether it is the one for replies.
    pub(super) fn of_the_reference(&self, version: IpVersion) -> Option<(IpAddr, bool)> {
        let (address, is_destination) = self.sole_address(version)?;
        let tests: Vec<&str> = self.matches.iter().map(|m| m.name.as_str()).collect();
        let wanted: &[&str] = if is_destination { &["conntrack"] } else { &[] };
        (tests == wanted && self.target == Target::Verdict(Verdict::Accept)).then_some((address, is_destination))
    }

    /// Its comment, if it has one.
    pub(super) fn comment(&self) -> Option<String> {
        self.matches.iter().find_map(Match::comment)
    }
}

impl Match {
    fn comment(&self) -> Option<String> {
        (self.name == "comment").then(|| text(&self.data, 0, self.data.len()))
    }

    /// The bits that must be set, of a test for nothing else (`struct xt_mark_mtinfo1`: mark, mask, invert).
    fn mark(&self) -> Option<u32> {
        let (mark, mask) = (word(&self.data, 0)?, word(&self.data, 4)?);
        let is_plain = self.name == "mark" && self.revision == 1 && mark == mask && self.data.get(8) == Some(&0);
        is_plain.then_some(mark)
    }
}

/// The bytes of one entry.
struct Entry<'a> {
    bytes: &'a [u8],
    target_at: usize,
}

fn entries<'a>(layout: &Layout, mut bytes: &'a [u8]) -> Option<BTreeMap<u32, Entry<'a>>> {
    let mut found = BTreeMap::new();
    let mut offset = 0u32;
    while !bytes.is_empty() {
        let target_at = usize::from(half(bytes, layout.offsets_at)?);
        let len = half(bytes, layout.offsets_at + 2)?;
        if target_at < layout.entry || usize::from(len) < target_at + EXTENSION_HEAD {
            return None;
        }
        let (entry, rest) = bytes.split_at_checked(len.into())?;
        found.insert(offset, Entry { bytes: entry, target_at });
        offset = offset.checked_add(len.into())?;
        bytes = rest;
    }
    Some(found)
}

/// A jump goes to the entry behind the one that carries the chain's name.
fn chain_names(entries: &BTreeMap<u32, Entry<'_>>, builtins: &BTreeMap<u32, (&str, u32)>) -> BTreeMap<u32, String> {
    let begins = entries.iter().filter_map(|(offset, entry)| {
        let len = u32::try_from(entry.bytes.len()).ok()?;
        Some((offset.checked_add(len)?, entry.chain_begins()?))
    });
    begins.chain(builtins.iter().map(|(offset, (name, _))| (*offset, (*name).to_owned()))).collect()
}

impl Entry<'_> {
    /// The name of the user's chain that begins here; the table's very last entry looks like one named `ERROR`.
    fn chain_begins(&self) -> Option<String> {
        let target = self.bytes.get(self.target_at..)?;
        (text(target, 2, 29) == "ERROR").then(|| text(target, EXTENSION_HEAD, 30))
    }

    fn rule(&self, layout: &Layout, names: &BTreeMap<u32, String>) -> Option<Rule> {
        let mut matches = Vec::new();
        let mut rest = self.bytes.get(layout.entry..self.target_at)?;
        while !rest.is_empty() {
            let len = usize::from(half(rest, 0)?);
            if len < EXTENSION_HEAD {
                return None;
            }
            let (extension, behind) = rest.split_at_checked(len)?;
            let data = extension.get(EXTENSION_HEAD..)?.to_vec();
            matches.push(Match { name: text(extension, 2, 29), revision: *extension.get(31)?, data });
            rest = behind;
        }
        let mut header = self.bytes.get(..layout.header)?.to_vec();
        let (at, flag) = layout.goto;
        let flags = header.get_mut(at)?;
        let is_goto = *flags & flag != 0;
        // It is no test.
        *flags &= !flag;
        Some(Rule { header, matches, target: self.target(names)?, is_goto })
    }

    fn target(&self, names: &BTreeMap<u32, String>) -> Option<Target> {
        let target = self.bytes.get(self.target_at..)?;
        let name = text(target, 2, 29);
        if !name.is_empty() {
            return Some(Target::Extension(name));
        }
        // Standard verdicts are -NF_… - 1 (include/uapi/linux/netfilter.h), and RETURN is -NF_REPEAT - 1.
        let verdict = word(target, EXTENSION_HEAD)?.cast_signed();
        Some(match verdict {
            -1 => Target::Verdict(Verdict::Drop),
            -2 => Target::Verdict(Verdict::Accept),
            -4 => Target::Verdict(Verdict::Queue),
            -5 => Target::Verdict(Verdict::Return),
            offset => match names.get(&u32::try_from(offset).ok()?) {
                Some(name) => Target::Jump(name.clone()),
                // A rule without a target goes on to the next entry, which begins no chain.
                None => Target::Extension(String::new()),
            },
        })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// A name, up to its NUL.
fn text(bytes: &[u8], at: usize, most: usize) -> String {
    let field = bytes.get(at..).unwrap_or_default();
    let field = field.get(..most).unwrap_or(field);
    String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 entry of `struct ipt_entry`, matches and target given as bytes.
    fn entry(header: [u8; 84], matches: &[u8], target: &[u8]) -> Vec<u8> {
        let target_at = 112 + matches.len();
        let mut bytes = header.to_vec();
        bytes.extend([0; 4]);
        bytes.extend(u16::try_from(target_at).unwrap().to_ne_bytes());
        bytes.extend(u16::try_from(target_at + target.len()).unwrap().to_ne_bytes());
        bytes.extend([0; 20]);
        bytes.extend(matches);
        bytes.extend(target);
        bytes
    }

    fn extension(name: &str, revision: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(EXTENSION_HEAD + data.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(name.bytes().chain(std::iter::repeat(0)).take(29));
        bytes.push(revision);
        bytes.extend(data);
        bytes
    }

    fn verdict(code: i32) -> Vec<u8> {
        let mut data = code.to_ne_bytes().to_vec();
        data.extend([0; 4]);
        extension("", 0, &data)
    }

    /// FORWARD (policy DROP) jumps to CNI-FORWARD, which accepts a mark.
    fn table() -> RawTable {
        let mark = |mark: u32| {
            let mut data = mark.to_ne_bytes().repeat(2);
            data.extend([0; 8]);
            extension("mark", 1, &data)
        };
        let mut name = b"CNI-FORWARD".to_vec();
        name.resize(32, 0);
        let plain = [0; 84];
        let input = entry(plain, &[], &verdict(-2));
        let policy = entry(plain, &[], &verdict(-1));
        let output = entry(plain, &[], &verdict(-2));
        let head = entry(plain, &[], &extension("ERROR", 0, &name));
        let jump_len = entry(plain, &extension("comment", 0, &[0; 256]), &verdict(0)).len();
        let forward_at = input.len();
        let body_at = forward_at + jump_len + policy.len() + output.len() + head.len();
        let jump = entry(plain, &extension("comment", 0, &[0; 256]), &verdict(i32::try_from(body_at).unwrap()));
        let accept = entry(plain, &mark(0x1000), &verdict(-2));
        let end = entry(plain, &[], &verdict(-5));
        let mut info = vec![0; 84];
        let mut set = |at: usize, value: usize| {
            info[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_ne_bytes());
        };
        let policy_at = forward_at + jump_len;
        let output_at = policy_at + policy.len();
        for (hook, begin, last) in [(1, 0, 0), (2, forward_at, policy_at), (3, output_at, output_at)] {
            set(HOOK_ENTRY_AT + 4 * hook, begin);
            set(UNDERFLOW_AT + 4 * hook, last);
        }
        let entries = [input, jump, policy, output, head, accept, end].concat();
        RawTable { info, entries }
    }

    #[test]
    fn chains_rules_and_policies_are_read() {
        let table = FilterTable::parse(IpVersion::V4, &table()).unwrap();
        let forward = table.chain("FORWARD").unwrap();
        assert_eq!(forward.policy, Some(Verdict::Drop));
        assert_eq!(forward.rules.len(), 1);
        assert!(forward.rules[0].is_unconditional());
        assert_eq!(forward.rules[0].target, Target::Jump("CNI-FORWARD".into()));
        let ours = table.chain("CNI-FORWARD").unwrap();
        assert_eq!((ours.policy, ours.rules.len()), (None, 1));
        assert!(ours.rules[0].tests_mark_only(0x1000) && !ours.rules[0].tests_mark_only(0x2000));
        assert!(!ours.rules[0].is_unconditional());
        assert_eq!(table.chain("INPUT").unwrap().policy, Some(Verdict::Accept));
    }

    #[test]
    fn a_rule_of_the_reference_is_known_by_its_one_address() {
        let rule = |header: Vec<u8>, names: &[&str]| Rule {
            header,
            matches: names.iter().map(|n| Match { name: (*n).into(), revision: 3, data: vec![] }).collect(),
            target: Target::Verdict(Verdict::Accept),
            is_goto: false,
        };
        let header = |fields: [[u8; 4]; 4]| {
            let mut bytes = fields.concat();
            bytes.resize(84, 0);
            bytes
        };
        let (ip, any, all) = ([10, 88, 0, 2], [0; 4], [255; 4]);
        let address: IpAddr = ip.into();
        let from = header([ip, any, all, any]);
        let to = header([any, ip, any, all]);
        let v4 = IpVersion::V4;
        assert_eq!(rule(from.clone(), &[]).of_the_reference(v4), Some((address, false)));
        assert_eq!(rule(to.clone(), &["conntrack"]).of_the_reference(v4), Some((address, true)));
        assert_eq!(rule(to.clone(), &[]).of_the_reference(v4), None);
        assert_eq!(rule(from.clone(), &["comment"]).of_the_reference(v4), None);
        assert_eq!(rule(header([ip, ip, all, all]), &[]).of_the_reference(v4), None);
        assert_eq!(rule(header([ip, any, [255, 255, 255, 0], any]), &[]).of_the_reference(v4), None);
        let mut of_tcp = from;
        of_tcp[80] = 6;
        assert_eq!(rule(of_tcp, &[]).of_the_reference(v4), None);
    }

    fn to(target: Target) -> Rule {
        Rule { header: vec![0; 84], matches: vec![], target, is_goto: false }
    }

    fn jump(chain: &str) -> Rule {
        to(Target::Jump(chain.into()))
    }

    fn going(chain: &str) -> Rule {
        Rule { is_goto: true, ..jump(chain) }
    }

    fn ending(verdict: Verdict) -> Rule {
        to(Target::Verdict(verdict))
    }

    #[test]
    fn what_lets_nothing_past_is_known_by_where_it_leads() {
        let chain = |name: &str, policy, rules| Chain { name: name.into(), policy, rules };
        let some = |rule: Rule| Rule { header: vec![1; 84], ..rule };
        let table = |policy| FilterTable {
            chains: vec![
                chain("FORWARD", Some(policy), vec![]),
                chain("EMPTY", None, vec![]),
                chain("DROPS", None, vec![some(ending(Verdict::Accept)), jump("REJECTS")]),
                chain(
                    "REJECTS",
                    None,
                    vec![to(Target::Extension("LOG".into())), to(Target::Extension("REJECT".into()))],
                ),
                chain("RETURNS", None, vec![ending(Verdict::Return), ending(Verdict::Drop)]),
                chain("ACCEPTS", None, vec![some(ending(Verdict::Accept))]),
                chain("LOOP", None, vec![jump("LOOP")]),
            ],
        };
        for policy in [Verdict::Drop, Verdict::Accept] {
            let (table, by_policy) = (table(policy), policy == Verdict::Drop);
            for (rule, ends) in [
                (ending(Verdict::Drop), true),
                (some(ending(Verdict::Drop)), false),
                (ending(Verdict::Accept), false),
                (ending(Verdict::Return), by_policy),
                (jump("DROPS"), true),
                (going("DROPS"), true),
                (some(jump("DROPS")), false),
                (jump("RETURNS"), false),
                (jump("EMPTY"), false),
                (going("EMPTY"), by_policy),
                (going("RETURNS"), by_policy),
                (going("ACCEPTS"), false),
                (jump("LOOP"), false),
                (jump("NOWHERE"), false),
            ] {
                assert_eq!(table.lets_nothing_past(&rule), ends, "{policy:?} {rule}");
            }
        }
    }

    #[test]
    fn a_jump_that_does_not_come_back_is_no_condition() {
        let mut header = [0; 84];
        header[82] = 2;
        let bytes = entry(header, &[], &verdict(0));
        let entries = entries(&Layout::of(IpVersion::V4), &bytes).unwrap();
        let names = BTreeMap::from([(0, "XX".to_owned())]);
        let rule = entries[&0].rule(&Layout::of(IpVersion::V4), &names).unwrap();
        assert!(rule.is_unconditional());
        assert_eq!(rule.to_string(), "-g XX");
    }

    #[test]
    fn tests_of_marks_and_comments_can_be_said_again() {
        let comment = |text: &str| Match { name: "comment".into(), revision: 0, data: text.as_bytes().to_vec() };
        let mark = |mask: u32| {
            let data = [4u32.to_ne_bytes(), mask.to_ne_bytes(), [0; 4]].concat();
            Match { name: "mark".into(), revision: 1, data }
        };
        let with = |matches| Rule { matches, ..ending(Verdict::Accept) };
        let said = with(vec![comment("a b"), mark(4)]).tests_in_words();
        assert_eq!(said.as_deref(), Some("-m comment --comment \"a b\" -m mark --mark 0x4/0x4"));
        for unsaid in [with(vec![mark(6)]), with(vec![comment("a\"b")])] {
            assert_eq!(unsaid.tests_in_words(), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_reading_panic(info: Vec<u8>, entries: Vec<u8>, v6: bool) {
            let version = if v6 { IpVersion::V6 } else { IpVersion::V4 };
            let _ = FilterTable::parse(version, &RawTable { info, entries });
        }

        #[test]
        fn a_damaged_table_is_refused_or_read_without_panic(at: usize, byte: u8, cut: usize, of_info: bool) {
            let mut raw = table();
            let bytes = if of_info { &mut raw.info } else { &mut raw.entries };
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(len - cut % 8);
            let _ = FilterTable::parse(IpVersion::V4, &raw);
        }
    }
}
