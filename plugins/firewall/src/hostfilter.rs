//! What the host's own filters need to let admitted packets through: once a host, not once a container.
//!
//! ```text
//! table ip filter (and ip6), as iptables-nft keeps it
//!   FORWARD      … -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
//!   CNI-FORWARD  -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
//!                (the reference's rules, one or two an address, as long as containers of its time live)
//!                -m mark --mark 0x1000/0x1000 -m comment --comment "CNI firewall plugin: admitted" -j ACCEPT
//!   CNI-ADMIN    the administrator's
//! ```
//!
//! Tables, chains and rules are encoded as iptables-nft would write them, so `iptables-save`, `-S`, `-C` and `-D` go on
//! working: plain chains, a counter in each rule, a comparison of the mark. The comments are nft's own (userdata), which
//! iptables reads and compares like its `-m comment`, and which need no extension in the kernel. Rules that iptables
//! itself has written or restored count as well.

use common::nft::{
    Chain, ChainInfo, Command, Family, HookKind, HookPoint, IpVersion, NftSocket, Position, Rule, RuleInfo, Statement,
    Table, Verdict,
};
use common::{Difference, Result};

use crate::config::FORWARD_CHAIN;
use crate::obstacles::{End, Surroundings};
use crate::plan::HostPart;
use crate::rules::{ACCEPT_COMMENT, accept_rule};
use crate::upgrade::ISOLATION;

/// The reference's comment on the jump from FORWARD.
pub const JUMP_COMMENT: &str = "CNI firewall plugin rules";

/// The reference's comment on the jump to the administrator's chain.
pub const ADMIN_COMMENT: &str = "CNI firewall plugin admin overrides";

/// iptables' chain at the forward hook.
const FORWARD: &str = "FORWARD";

/// iptables' filter table of one IP version.
pub const fn filter_table(version: IpVersion) -> Table {
    match version {
        IpVersion::V4 => Table::new(Family::Ip, "filter"),
        IpVersion::V6 => Table::new(Family::Ip6, "filter"),
    }
}

/// A rule that was found, as far as the model has words for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRule {
    /// Its handle.
    pub handle: u64,
    rule: Option<Rule>,
    /// What it does with every packet, if it has no condition.
    pub end: Option<End>,
}

impl From<RuleInfo> for FoundRule {
    fn from(info: RuleInfo) -> FoundRule {
        FoundRule { handle: info.handle, end: End::of(&info), rule: info.rule() }
    }
}

impl FoundRule {
    /// Whether it may accept a packet, or lead it to where one may.
    pub fn may_accept(&self) -> bool {
        let leads_on = |statement: &Statement| match statement {
            Statement::Verdict(verdict) => !matches!(verdict, Verdict::Drop | Verdict::Return | Verdict::Continue),
            statement => matches!(statement, Statement::Vmap { .. }),
        };
        match (&self.end, &self.rule) {
            (Some(End::Refuses(_)), _) => false,
            (_, rule) => rule.as_ref().is_none_or(|rule| rule.statements.iter().any(leads_on)),
        }
    }

    /// What it tests and does; counting aside.
    fn does(&self, wanted: &[Statement]) -> bool {
        self.rule.as_ref().is_some_and(|rule| rule.statements.iter().filter(|s| **s != Statement::Counter).eq(wanted))
    }

    fn jumps_to(&self, chain: &str) -> bool {
        self.does(&[Statement::jump(chain)])
    }

    /// Whether it is the accepting rule for this mark.
    pub fn accepts(&self, mark: u32) -> bool {
        self.does(&[Statement::has_mark(mark), Statement::ACCEPT])
    }

    /// Whether it is of ours, for another mark.
    pub fn is_outdated(&self, mark: u32) -> bool {
        let comment = self.rule.as_ref().and_then(|rule| rule.comment.as_deref());
        comment == Some(ACCEPT_COMMENT) && !self.accepts(mark)
    }
}

/// What an iptables filter table holds of what concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundFilter {
    /// FORWARD's rules, if there is such a chain.
    pub forward: Option<Vec<FoundRule>>,
    /// CNI-FORWARD's.
    pub ours: Option<Vec<FoundRule>>,
    /// Whether the administrator's chain is there.
    pub admin: bool,
    /// What becomes of what doesn't come to our rules.
    pub around: Surroundings,
}

impl FoundFilter {
    /// Reads the table.
    pub fn read(socket: &mut NftSocket, version: IpVersion, admin_chain: &str) -> Result<FoundFilter> {
        let table = filter_table(version);
        let names = [FORWARD, FORWARD_CHAIN, admin_chain].map(|name| (table.clone(), name));
        let mut chains = socket.chains_at(&names)?.into_iter();
        let mut next = || chains.next().flatten();
        // Without FORWARD nothing leads to the others, but they may be there, and the administrator's rules in them.
        let (forward, ours, admin) = (next(), next(), next());
        let mut rules_if = |there: bool, chain| there.then(|| rules(socket, &table, chain)).transpose();
        let policy_drops = forward.as_ref().is_some_and(ChainInfo::drops);
        let forward = rules_if(forward.is_some(), FORWARD)?;
        let ours = rules_if(ours.is_some(), FORWARD_CHAIN)?;
        let around = Surroundings::of(policy_drops, forward.as_deref().unwrap_or_default());
        Ok(FoundFilter { forward, ours, admin: admin.is_some(), around })
    }

    /// Reads the table, and where rules without a condition lead to.
    pub fn read_deeply(socket: &mut NftSocket, version: IpVersion, admin_chain: &str) -> Result<FoundFilter> {
        let mut found = FoundFilter::read(socket, version, admin_chain)?;
        let rules = found.forward.iter().chain(&found.ours).flatten();
        found.around.follow(socket, &filter_table(version), rules, &[FORWARD_CHAIN, admin_chain])?;
        Ok(found)
    }

    /// Whether the reference's isolation chains are in force.
    pub fn isolates(&self) -> bool {
        let [first, _] = ISOLATION;
        self.forward.iter().flatten().any(|rule| rule.jumps_to(first))
    }

    /// Whether marks other than this one are accepted by rules of ours.
    fn accepts_others(&self, mark: u32) -> bool {
        self.ours.iter().flatten().any(|rule| rule.is_outdated(mark))
    }
}

fn rules(socket: &mut NftSocket, table: &Table, chain: &str) -> Result<Vec<FoundRule>> {
    Ok(socket.rules(table, chain)?.into_iter().map(FoundRule::from).collect())
}

/// Something that isn't as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    ForwardChain,
    OurChain,
    AdminChain,
    Jump,
    AdminJump,
    Accept,
    /// An accepting rule in front of the administrator's chain, or for another mark.
    Without(u64),
}

/// What `found` lacks, in the order in which it is to be put right.
fn needs(host: &HostPart, found: &FoundFilter) -> Vec<Need> {
    if found.forward.is_none() && !host.make {
        return Vec::new();
    }
    let forward = found.forward.as_deref().unwrap_or_default();
    let ours = found.ours.as_deref().unwrap_or_default();
    let admin_at = ours.iter().position(|r| r.jumps_to(&host.admin_chain));
    let behind_admin = ours.iter().skip(admin_at.map_or(0, |at| at + 1)).any(|r| r.accepts(host.mark));
    let misplaced = ours.iter().take(admin_at.unwrap_or(0)).filter(|r| r.accepts(host.mark));
    let outdated = ours.iter().filter(|r| r.is_outdated(host.mark));
    let mut needs: Vec<Need> = misplaced.chain(outdated).map(|r| Need::Without(r.handle)).collect();
    let wanted = [
        (Need::ForwardChain, found.forward.is_some()),
        (Need::OurChain, found.ours.is_some()),
        (Need::AdminChain, found.admin),
        (Need::Jump, forward.iter().any(|r| r.jumps_to(FORWARD_CHAIN))),
        (Need::AdminJump, admin_at.is_some()),
        (Need::Accept, behind_admin),
    ];
    needs.extend(wanted.into_iter().filter_map(|(need, is_there)| (!is_there).then_some(need)));
    needs
}

/// What puts one iptables filter table right, to be sent with the attachment's own share.
pub fn mending(host: &HostPart, version: IpVersion, found: &FoundFilter) -> Vec<Command> {
    let table = filter_table(version);
    let needs = needs(host, found);
    let mut commands = Vec::with_capacity(needs.len() + 1);
    if needs.contains(&Need::ForwardChain) {
        commands.push(Command::AddTable(table.clone(), None));
    }
    commands.extend(needs.into_iter().map(|need| command(host, &table, need)));
    commands
}

/// What puts it right if it accepts another mark, for containers that this host's part knows nothing of.
pub fn mending_of_others(host: &HostPart, version: IpVersion, found: &FoundFilter) -> Vec<Command> {
    if found.accepts_others(host.mark) { mending(host, version, found) } else { Vec::new() }
}

fn command(host: &HostPart, table: &Table, need: Need) -> Command {
    let chain = |name: &str| Command::AddChain(table.clone(), Chain::regular(name, vec![]));
    let rule = |chain: &str, at, rule| Command::AddRule(table.clone(), chain.to_owned(), at, rule);
    match need {
        Need::ForwardChain => {
            Command::UseChain(table.clone(), Chain::base(FORWARD, HookKind::Filter, HookPoint::Forward, 0, vec![]))
        }
        Need::OurChain => chain(FORWARD_CHAIN),
        Need::AdminChain => chain(&host.admin_chain),
        Need::Jump => rule(FORWARD, Position::Top, jump_rule(FORWARD_CHAIN, JUMP_COMMENT)),
        Need::AdminJump => rule(FORWARD_CHAIN, Position::Top, jump_rule(&host.admin_chain, ADMIN_COMMENT)),
        Need::Accept => rule(FORWARD_CHAIN, Position::End, accept_rule(host.mark)),
        Need::Without(handle) => Command::DeleteRule(table.clone(), FORWARD_CHAIN.to_owned(), handle),
    }
}

fn jump_rule(chain: &str, comment: &str) -> Rule {
    Rule::new([Statement::Counter, Statement::jump(chain)]).comment(comment)
}

/// A rule that lets nothing come to the one that is wanted, if there is one in front of it. What stands in the
/// administrator's own chain is his business.
pub fn in_front(
    object: String,
    rules: &[FoundRule],
    around: &Surroundings,
    is_wanted: impl Fn(&FoundRule) -> bool,
) -> Option<Difference> {
    let wanted = rules.iter().position(is_wanted)?;
    let mut before = rules.iter().take(wanted).enumerate();
    let (at, end) =
        before.find(|(_, r)| around.lets_nothing_past(r)).and_then(|(at, r)| Some((at, r.end.as_ref()?)))?;
    let expected = format!("nothing that drops all in front of rule {} (ours)", wanted + 1);
    Some(Difference::other(object, expected, format!("rule {}: {end}", at + 1)))
}

/// Rules of one iptables filter table that drop what is admitted before ours accepts it.
pub fn dropped_before(host: &HostPart, version: IpVersion, found: &FoundFilter) -> Vec<Difference> {
    let table = filter_table(version);
    let object = |chain: &str| format!("chain {table} {chain}");
    let forward = found.forward.as_deref().unwrap_or_default();
    let ours = found.ours.as_deref().unwrap_or_default();
    let before = [
        in_front(object(FORWARD), forward, &found.around, |r| r.jumps_to(FORWARD_CHAIN)),
        in_front(object(FORWARD_CHAIN), ours, &found.around, |r| r.accepts(host.mark)),
    ];
    before.into_iter().flatten().collect()
}

/// A rule of CNI-FORWARD that accepts everything before the administrator's chain is asked.
pub fn accepted_before(host: &HostPart, version: IpVersion, found: &FoundFilter) -> Option<Difference> {
    let ours = found.ours.as_deref().unwrap_or_default();
    let admin_at = ours.iter().position(|r| r.jumps_to(&host.admin_chain))?;
    let at = ours.iter().take(admin_at).position(|r| r.end == Some(End::Accepts))?;
    let expected = format!("nothing that accepts all in front of the jump to {}", host.admin_chain);
    let object = format!("chain {} {FORWARD_CHAIN}", filter_table(version));
    Some(Difference::other(object, expected, format!("rule {}: accept", at + 1)))
}

/// What CHECK says about one iptables filter table.
pub fn differences(host: &HostPart, version: IpVersion, found: &FoundFilter) -> Vec<Difference> {
    let differences = needs(host, found).into_iter().map(|need| difference(host, version, need));
    let before = dropped_before(host, version, found).into_iter().chain(accepted_before(host, version, found));
    differences.chain(before).collect()
}

/// Acceptances of marks that are not the host's.
pub fn acceptances_of_others(host: &HostPart, version: IpVersion, found: &FoundFilter) -> Vec<Difference> {
    let others = found.ours.iter().flatten().filter(|rule| rule.is_outdated(host.mark));
    others.map(|rule| difference(host, version, Need::Without(rule.handle))).collect()
}

fn difference(host: &HostPart, version: IpVersion, need: Need) -> Difference {
    let table = filter_table(version);
    let (object, expected) = match need {
        Need::ForwardChain => (FORWARD, "iptables' base chain".to_owned()),
        Need::OurChain => (FORWARD_CHAIN, "the chain".to_owned()),
        Need::AdminChain => (host.admin_chain.as_str(), "the administrator's chain".to_owned()),
        Need::Jump => (FORWARD, jump_rule(FORWARD_CHAIN, JUMP_COMMENT).to_string()),
        Need::AdminJump => (FORWARD_CHAIN, jump_rule(&host.admin_chain, ADMIN_COMMENT).to_string()),
        Need::Accept => (FORWARD_CHAIN, accept_rule(host.mark).to_string()),
        Need::Without(handle) => {
            let object = format!("rule {handle} of chain {table} {FORWARD_CHAIN}");
            let expected = format!("nothing: only mark {:#x} is accepted, behind {}", host.mark, host.admin_chain);
            return Difference::other(object, expected, "another accepting rule of ours");
        }
    };
    Difference::missing(format!("chain {table} {object}"), expected)
}

/// For tests of what was found.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn found(handle: u64, rule: Rule) -> FoundRule {
        FoundRule { handle, rule: Some(rule), end: None }
    }

    pub(crate) fn refusing(handle: u64) -> FoundRule {
        FoundRule { end: Some(End::Refuses("counter drop".into())), ..found(handle, Rule::new([Statement::DROP])) }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{found, refusing};
    use super::*;

    fn host() -> HostPart {
        HostPart {
            mark: 0x1000,
            versions: IpVersion::ALL.into(),
            make: true,
            admin_chain: "CNI-ADMIN".into(),
            chains: vec![],
        }
    }

    fn complete() -> FoundFilter {
        FoundFilter {
            forward: Some(vec![found(9, jump_rule("CNI-FORWARD", "whatever"))]),
            ours: Some(vec![found(4, jump_rule("CNI-ADMIN", ADMIN_COMMENT)), found(5, accept_rule(0x1000))]),
            admin: true,
            around: Surroundings::default(),
        }
    }

    fn text(host: &HostPart, found: &FoundFilter) -> Vec<String> {
        mending(host, IpVersion::V4, found).iter().map(Command::to_string).collect()
    }

    #[test]
    fn an_empty_host_gets_all_in_the_reference_s_order() {
        let jump = |to: &str, comment: &str| format!("counter packets 0 bytes 0 jump {to} comment \"{comment}\"");
        assert_eq!(
            text(&host(), &FoundFilter::default()),
            [
                "add table ip filter".to_owned(),
                "add chain ip filter FORWARD { type filter hook forward priority 0; }".into(),
                "add chain ip filter CNI-FORWARD".into(),
                "add chain ip filter CNI-ADMIN".into(),
                format!("insert rule ip filter FORWARD {}", jump("CNI-FORWARD", JUMP_COMMENT)),
                format!("insert rule ip filter CNI-FORWARD {}", jump("CNI-ADMIN", ADMIN_COMMENT)),
                "add rule ip filter CNI-FORWARD meta mark & 0x00001000 == 0x00001000 counter packets 0 bytes 0 accept \
                 comment \"CNI firewall plugin: admitted\""
                    .into(),
            ]
        );
    }

    #[test]
    fn nothing_is_done_where_all_is_there() {
        assert_eq!(text(&host(), &complete()), [""; 0]);
        assert_eq!(differences(&host(), IpVersion::V4, &complete()), []);
    }

    #[test]
    fn no_forward_chain_is_made_where_none_is_wanted() {
        let host = HostPart { make: false, ..host() };
        assert_eq!(text(&host, &FoundFilter::default()), [""; 0]);
        let there = FoundFilter { forward: Some(vec![]), ..FoundFilter::default() };
        assert_eq!(text(&host, &there).len(), 5, "but one that is there is used");
    }

    #[test]
    fn each_loss_is_named_and_mended_alone() {
        let mut flushed = complete();
        flushed.ours = Some(vec![]);
        assert_eq!(text(&host(), &flushed).len(), 2);
        let mut unhooked = complete();
        unhooked.forward = Some(vec![]);
        assert_eq!(text(&host(), &unhooked).len(), 1);
        assert!(differences(&host(), IpVersion::V4, &unhooked)[0].to_string().contains("ip filter FORWARD"));
    }

    #[test]
    fn acceptance_stands_behind_the_administrators_chain() {
        let mut swapped = complete();
        swapped.ours.as_mut().unwrap().reverse();
        let commands = text(&host(), &swapped);
        assert_eq!(commands[0], "delete rule ip filter CNI-FORWARD handle 5");
        assert!(commands[1].starts_with("add rule ip filter CNI-FORWARD meta mark"), "{commands:?}");
        assert_eq!(commands.len(), 2);
    }

    #[test]
    fn a_rule_that_drops_all_in_front_of_ours_is_named_and_left_to_who_has_put_it_there() {
        let mut blocked = complete();
        blocked.forward.as_mut().unwrap().insert(0, refusing(1));
        blocked.ours.as_mut().unwrap().insert(1, refusing(2));
        let told: Vec<String> = differences(&host(), IpVersion::V4, &blocked).iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("chain ip filter FORWARD") && told[0].contains("rule 1: counter drop"), "{told:?}");
        assert!(
            told[1].contains("chain ip filter CNI-FORWARD") && told[1].contains("rule 2: counter drop"),
            "{told:?}"
        );
        assert_eq!(text(&host(), &blocked), [""; 0]);
        let mut behind = complete();
        behind.forward.as_mut().unwrap().push(refusing(1));
        behind.ours.as_mut().unwrap().push(refusing(2));
        assert_eq!(differences(&host(), IpVersion::V4, &behind), []);
    }

    #[test]
    fn the_acceptance_of_a_former_mark_goes() {
        let mut changed = complete();
        changed.ours.as_mut().unwrap().push(found(6, accept_rule(0x10)));
        assert_eq!(text(&host(), &changed), ["delete rule ip filter CNI-FORWARD handle 6"]);
    }

    #[test]
    fn another_administrators_chain_is_jumped_to_as_well() {
        let other = HostPart { admin_chain: "MINE".into(), ..host() };
        let there = FoundFilter { admin: false, ..complete() };
        let commands = text(&other, &there);
        assert_eq!(commands[0], "add chain ip filter MINE");
        assert!(commands[1].starts_with("insert rule ip filter CNI-FORWARD counter"), "{commands:?}");
        assert_eq!(commands.len(), 2);
    }
}
