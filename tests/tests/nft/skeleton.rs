//! The static part is put in once, renewed when it has changed, and costs nothing when it is there.

use common::nft::*;
use netns_tests::Netns;

use super::{TABLE, attachment, ports_map, ruleset, small};

#[test]
fn a_skeleton_that_is_there_is_not_sent_again() {
    let netns = Netns::new("nft");
    netns.inside(|| {
        let mut nft = NftSocket::new();
        assert!(!nft.has_skeleton(&small()).unwrap());
        nft.commit_on(&[&small()], &attachment("a", [1])).unwrap();
        assert!(nft.has_skeleton(&small()).unwrap());
        let generation = nft.generation().unwrap();
        nft.commit_on(&[&small()], &Transaction::new()).unwrap();
        assert_eq!(nft.generation().unwrap(), generation, "nothing was sent");
        let handles = netns.run("nft -a list chain inet t hostports");
        nft.commit_on(&[&small()], &attachment("b", [2])).unwrap();
        assert_eq!(netns.run("nft -a list chain inet t hostports"), handles, "the rules are the same ones");
    });
}

#[test]
fn another_version_renews_the_static_part_and_keeps_the_rest() {
    let netns = Netns::new("nft");
    let mut newer = small();
    newer.chains[0].rules.insert(0, Rule::new([Statement::Counter]));
    newer.chains[1] =
        Chain::base("prerouting", HookKind::Nat, HookPoint::Prerouting, -90, newer.chains[1].rules.clone());
    newer.chains.push(Chain::base("output", HookKind::Nat, HookPoint::Output, -90, vec![]));
    newer.sets.push(Set::of("more", [DataType::Mark]));
    netns.inside(|| {
        let mut nft = NftSocket::new();
        let mut once = None;
        for skeleton in [&small(), &newer, &small(), &newer] {
            let n = u16::try_from(nft.elements(&TABLE, &ports_map()).unwrap().len()).unwrap() + 1;
            nft.commit_on(&[skeleton], &attachment(&format!("a{n}"), [n])).unwrap();
            assert_eq!(nft.differences(skeleton).unwrap(), []);
            assert_eq!(nft.elements(&TABLE, &ports_map()).unwrap().len(), usize::from(n));
            for chain in 1..=n {
                assert_eq!(nft.rules(&TABLE, &format!("a{chain}")).unwrap().len(), 1);
            }
            let base: Vec<String> =
                nft.chains(&TABLE).unwrap().into_iter().filter(|c| c.is_base).map(|c| c.name).collect();
            assert_eq!(base.len(), skeleton.chains.len() - 1, "no hook of the other version is left: {base:?}");
            once.get_or_insert_with(|| ruleset(&netns));
        }
    });
}

#[test]
fn a_chain_that_was_flushed_by_hand_comes_back_with_another_version_only() {
    let netns = Netns::new("nft");
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&small()], &Transaction::new()).unwrap();
        netns.nft("flush chain inet t hostports");
        nft.commit_on(&[&small()], &Transaction::new()).unwrap();
        assert_eq!(nft.differences(&small()).unwrap().len(), 1, "CHECK says so");
        netns.nft("flush set inet t skeleton");
        nft.commit_on(&[&small()], &Transaction::new()).unwrap();
        assert_eq!(nft.differences(&small()).unwrap(), []);
    });
}

#[test]
fn a_flushed_ruleset_is_no_obstacle() {
    let netns = Netns::new("nft");
    netns.inside(|| {
        let mut nft = NftSocket::new();
        for _ in 0..3 {
            nft.commit_on(&[&small()], &attachment("a", 1..=3)).unwrap();
            netns.nft("flush ruleset");
        }
    });
}

#[test]
fn a_refused_transaction_leaves_no_skeleton() {
    let netns = Netns::new("nft");
    let mut transaction = attachment("a", [1]);
    transaction.push(Command::DeleteChain(TABLE, "none".into()));
    let error = netns.inside(|| NftSocket::new().commit_on(&[&small()], &transaction).unwrap_err());
    assert_eq!(error.refusal().unwrap().command, Some(2), "counted without the skeleton's commands");
    assert_eq!(ruleset(&netns), "");
}

#[test]
fn two_skeletons_go_in_together() {
    let netns = Netns::new("nft");
    let bridge = Skeleton {
        table: Table::new(Family::Bridge, "t"),
        comment: None,
        sets: vec![Set::vmap("links", [DataType::Ifname])],
        chains: vec![Chain::base("forwarding", HookKind::Filter, HookPoint::Forward, -200, vec![])],
    };
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&small(), &bridge], &attachment("a", [1])).unwrap();
        assert!(nft.has_skeleton(&small()).unwrap() && nft.has_skeleton(&bridge).unwrap());
    });
}
