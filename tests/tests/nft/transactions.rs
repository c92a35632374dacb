//! All of it or nothing, and a refusal says which command it is about.

use std::net::Ipv4Addr;

use common::Error;
use common::nft::*;
use netns_tests::Netns;
use nix::errno::Errno;

use super::{TABLE, attachment, ports_map, ruleset, small, tcp, v4};

/// A namespace with the small skeleton and attachment `a` on ports 1 to 3.
fn prepared() -> Netns {
    let netns = Netns::new("nft");
    netns.inside(|| NftSocket::new().commit_on(&[&small()], &attachment("a", 1..=3)).unwrap());
    netns
}

/// Commits what must be refused; the tables must be as they were.
fn refused(netns: &Netns, transaction: &Transaction) -> Refusal {
    let before = ruleset(netns);
    let outcome = netns.inside(|| NftSocket::new().commit(transaction));
    assert_eq!(ruleset(netns), before, "{transaction}");
    match outcome {
        Err(CommitError::Refused(refusal)) => refusal,
        other => panic!("{other:?} from\n{transaction}"),
    }
}

#[test]
fn a_taken_key_is_refused_and_named_and_nothing_is_left() {
    let netns = prepared();
    let transaction = attachment("b", [10, 11, 2, 12]);
    let refusal = refused(&netns, &transaction);
    assert_eq!((refusal.errno, refusal.command, refusal.element), (Errno::EEXIST, Some(1), Some(2)));
    assert_eq!(
        Error::from(refusal).to_string(),
        "the kernel refused to add element tcp . 2 comment \"net/b/eth0\" : jump b of set ports of table inet t: \
         EEXIST: File exists"
    );
    let owner = netns.inside(|| {
        let elements: Vec<Element> = [10, 11, 2, 12].map(|p| Element::key(tcp(p))).into();
        NftSocket::new().first_present(&TABLE, &ports_map(), &elements).unwrap().unwrap()
    });
    assert_eq!(owner, Element::verdict(tcp(2), Verdict::Jump("a".into())).comment("net/a/eth0"));
}

#[test]
fn a_shared_key_may_be_there_with_the_same_data_only() {
    let netns = prepared();
    let share = |to: &str| {
        let mut transaction = Transaction::new();
        let element = Element::verdict(tcp(1), Verdict::Jump(to.into())).comment("another comment");
        transaction.push(Command::AddChain(TABLE, Chain::regular(to, vec![])));
        transaction.add_elements(&TABLE, "ports", Presence::Shared, vec![element]);
        transaction
    };
    let before = ruleset(&netns);
    netns.inside(|| NftSocket::new().commit(&share("a")).unwrap());
    assert_eq!(ruleset(&netns), before, "the first comment stays");
    assert_eq!(refused(&netns, &share("b")).errno, Errno::EEXIST);
}

#[test]
fn a_chain_that_is_only_used_keeps_its_policy() {
    let netns = Netns::new("nft");
    let table = Table::new(Family::Ip, "filter");
    let forward = || Chain::base("FORWARD", HookKind::Filter, HookPoint::Forward, 0, vec![]);
    let mut transaction = Transaction::new();
    transaction.push(Command::AddTable(table.clone(), None));
    transaction.push(Command::UseChain(table.clone(), forward()));
    let policy = || {
        let found = netns.inside(|| NftSocket::new().chain(&table, "FORWARD").unwrap());
        found.unwrap().hook.unwrap().policy
    };
    netns.inside(|| NftSocket::new().commit(&transaction).unwrap());
    assert_eq!(policy(), Policy::Accept);
    netns.run("nft add chain ip filter FORWARD { policy drop ; }");
    netns.inside(|| NftSocket::new().commit(&transaction).unwrap());
    assert_eq!(policy(), Policy::Drop);
}

#[test]
fn an_element_may_change_owner_in_one_transaction() {
    let netns = prepared();
    let mut transaction = Transaction::new();
    transaction.delete_elements(&TABLE, "ports", vec![Element::key(tcp(1))]);
    for command in attachment("b", [1]).commands() {
        transaction.push(command.clone());
    }
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit(&transaction).unwrap();
        let found = nft.element(&TABLE, &ports_map(), &tcp(1)).unwrap().unwrap();
        assert_eq!(found.data, Some(Data::Verdict(Verdict::Jump("b".into()))));
    });
}

#[test]
fn the_command_that_fails_is_named() {
    let rule = |chain: &str| Rule::new([Statement::jump(chain)]);
    let cases: Vec<(Command, Errno, &str)> = vec![
        (Command::DeleteChain(TABLE, "none".into()), Errno::ENOENT, "delete chain none of table inet t"),
        (Command::FlushChain(TABLE, "none".into()), Errno::ENOENT, "flush chain none of table inet t"),
        (Command::DeleteChain(TABLE, "a".into()), Errno::EBUSY, "delete chain a of table inet t"),
        (Command::DeleteSet(TABLE, "none".into()), Errno::ENOENT, "delete set none of table inet t"),
        (
            Command::DeleteRule(TABLE, "hostports".into(), 999),
            Errno::ENOENT,
            "delete rule 999 of chain hostports of table inet t",
        ),
        (
            Command::AddRule(TABLE, "hostports".into(), Position::End, rule("none")),
            Errno::ENOENT,
            "add rule jump none to chain hostports of table inet t",
        ),
        (
            Command::AddElements(TABLE, "none".into(), Presence::Shared, vec![Element::key([Value::Port(1)])]),
            Errno::ENOENT,
            "add element 1 of set none of table inet t",
        ),
        (
            Command::DeleteElements(TABLE, "ports".into(), vec![Element::key(tcp(1)), Element::key(tcp(77))]),
            Errno::ENOENT,
            "delete element tcp . 77 of set ports of table inet t",
        ),
        (
            Command::AddSet(TABLE, Set::vmap("ports", [DataType::Ipv4Addr])),
            Errno::EEXIST,
            "add map ports of table inet t",
        ),
        (
            Command::AddChain(TABLE, Chain::base("prerouting", HookKind::Nat, HookPoint::Prerouting, -94, vec![])),
            Errno::EOPNOTSUPP,
            "add chain prerouting of table inet t",
        ),
        (
            // A loop of jumps.
            Command::AddRule(TABLE, "a".into(), Position::End, rule("hostports")),
            Errno::EMLINK,
            "add rule jump hostports to chain a of table inet t",
        ),
        (Command::DeleteTable(Table::new(Family::Ip, "none")), Errno::ENOENT, "delete table ip none"),
    ];
    let netns = prepared();
    for (command, errno, object) in cases {
        let mut transaction = attachment("b", 10..=12);
        transaction.push(command);
        transaction.push(Command::FlushChain(TABLE, "b".into()));
        let refusal = refused(&netns, &transaction);
        let said = format!("{} {}", refusal.action, refusal.object);
        assert_eq!((refusal.errno, said.as_str()), (errno, object));
        assert_eq!(refusal.command, Some(2), "{object}");
    }
}

#[test]
fn what_can_not_be_sent_is_refused_before_anything_is_sent() {
    let named = |name: String| Command::AddChain(TABLE, Chain::regular(name, vec![]));
    let with = |statement: Statement| Command::AddChain(TABLE, Chain::regular("c", vec![Rule::new([statement])]));
    let version = IpVersion::V4;
    let cases = [
        named("c".repeat(256)),
        named(String::new()),
        named("a\0b".into()),
        with(Statement::is(Selector::Mark, Value::Port(1))),
        with(Statement::is(Selector::Iifname, Value::Ifname("0123456789abcdef".into()))),
        with(Statement::is(Selector::Iifname, Value::Ifname(String::new()))),
        with(Statement::matches(Selector::Iifname, Pattern::Begins("0123456789abcdef".into()))),
        with(Statement::Dnat { version, target: DnatTarget::Address("fd00::1".parse().unwrap(), None) }),
        with(Statement::Vmap { selectors: vec![Selector::Mark], map: SetSource::Inline(vec![]) }),
        with(Statement::vmap([Selector::Daddr(IpVersion::V6); 5], "ports")),
        Command::AddChain(TABLE, Chain::regular("c", vec![Rule::new(vec![Statement::Counter; 129])])),
        Command::AddSet(TABLE, Set::of("s", [DataType::Mark; 6])),
        Command::AddElements(
            TABLE,
            "ports".into(),
            Presence::Shared,
            vec![Element::key([Value::Ifname("n\0".into())])],
        ),
    ];
    let netns = prepared();
    let before = ruleset(&netns);
    for command in cases {
        let mut transaction = attachment("b", [10]);
        transaction.push(command);
        let outcome = netns.inside(|| NftSocket::new().commit(&transaction));
        assert!(matches!(outcome, Err(CommitError::Unsendable(_))), "{outcome:?} {transaction}");
    }
    assert_eq!(ruleset(&netns), before);
}

#[test]
fn nothing_to_send_opens_nothing() {
    let mut nft = NftSocket::new();
    nft.commit(&Transaction::new()).unwrap();
    assert!(format!("{nft:?}").contains("open: false"), "{nft:?}");
}

#[test]
fn a_changed_generation_is_refused_and_a_plan_made_anew() {
    let netns = prepared();
    netns.inside(|| {
        let mut nft = NftSocket::new();
        let generation = nft.generation().unwrap();
        nft.commit_at(&attachment("b", [10]), generation).unwrap();
        let error = nft.commit_at(&attachment("c", [11]), generation).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ERESTART));
        assert_eq!(Error::from(error).code(), 11);
        assert!(nft.chain(&TABLE, "c").unwrap().is_none());

        let mut rounds = 0;
        let answer = nft.commit_as_read(|_| {
            rounds += 1;
            if rounds < 4 {
                NftSocket::new().commit(&attachment(&format!("other{rounds}"), [20 + rounds])).unwrap();
            }
            Ok((attachment("c", [11]), rounds))
        });
        assert_eq!(answer, Ok(4));
        assert!(nft.chain(&TABLE, "c").unwrap().is_some());
    });
}

/// The kernel moves the elements of a set that has grown to a larger hash table in the background, and says nothing of
/// it to whoever lists them meanwhile. The table doubles when more than three quarters of it are taken.
#[test]
fn a_set_that_has_just_grown_is_read_whole() {
    let netns = Netns::new("nft");
    let list_and_compare = |last: u16| {
        let elements = NftSocket::new().elements(&TABLE, &ports_map()).unwrap();
        let ports: Vec<&[Value]> = elements.iter().map(|element| element.key.as_slice()).collect();
        let expected: Vec<_> = (1..=last).map(tcp).collect();
        assert!(ports == expected, "not each of {last} elements is listed once");
    };
    netns.inside(|| {
        let mut nft = NftSocket::new();
        for _ in 0..20 {
            nft.commit_on(&[&small()], &attachment("a", [1])).unwrap();
            let mut last = 1;
            for full in (3..12).map(|doublings| 3 << doublings) {
                let more = (last + 1..=full + 1).map(|port| Element::verdict(tcp(port), Verdict::Drop)).collect();
                let mut transaction = Transaction::new();
                transaction.add_elements(&TABLE, "ports", Presence::Exclusive, more);
                nft.commit(&transaction).unwrap();
                last = full + 1;
                // By more than one, so that it isn't only the processor on which the elements would have to be moved.
                std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(|| list_and_compare(last)))));
            }
            nft.commit(Transaction::new().push(Command::DeleteTable(TABLE))).unwrap();
        }
    });
}

#[test]
fn a_socket_goes_on_after_a_refusal() {
    let netns = prepared();
    netns.inside(|| {
        let mut nft = NftSocket::new();
        for round in 0..3 {
            let mut bad = Transaction::new();
            for port in 100..200 {
                // Every one of them is answered: none of the answers may be taken for the next one.
                bad.push(Command::DeleteElements(TABLE, "ports".into(), vec![Element::key(tcp(port))]));
            }
            let error = nft.commit(&bad).unwrap_err();
            assert_eq!(error.refusal().unwrap().command, Some(0));
            nft.commit(&attachment(&format!("b{round}"), [10 + round])).unwrap();
            assert!(nft.element(&TABLE, &ports_map(), &tcp(10 + round)).unwrap().is_some());
        }
    });
}

/// All 65,535 ports of one protocol, and a batch of a few megabytes.
#[test]
fn all_ports_go_in_and_out_by_one_transaction() {
    let netns = Netns::new("nft");
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&small()], &attachment("a", 1..=65535)).unwrap();
        let elements = nft.elements(&TABLE, &ports_map()).unwrap();
        assert_eq!(elements.len(), 65535);
        assert_eq!(elements[8079], Element::verdict(tcp(8080), Verdict::Jump("a".into())).comment("net/a/eth0"));

        // One more that is taken, at the very end: named, and nothing of it stays.
        let mut more: Vec<Element> =
            (1..=65535).map(|p| Element::verdict([Value::Proto(17), Value::Port(p)], Verdict::Drop)).collect();
        more.push(Element::verdict(tcp(1), Verdict::Drop));
        let mut transaction = Transaction::new();
        transaction.add_elements(&TABLE, "ports", Presence::Exclusive, more);
        let error = nft.commit(&transaction).unwrap_err();
        assert_eq!(error.refusal().map(|r| (r.errno, r.element)), Some((Errno::EEXIST, Some(65535))));

        let mut transaction = Transaction::new();
        transaction.delete_elements(&TABLE, "ports", (1..=65535).map(|p| Element::key(tcp(p))).collect());
        transaction.remove_chain(&TABLE, "a");
        nft.commit(&transaction).unwrap();
        assert_eq!(nft.elements(&TABLE, &ports_map()).unwrap(), []);
    });
}

#[test]
fn an_anonymous_map_takes_a_thousand_ports() {
    let netns = Netns::new("nft");
    let to = |port: u16| Element::values(tcp(port), [v4("10.88.0.2"), Value::Port(port)]);
    let selectors = vec![Selector::L4proto, Selector::ThDport];
    let elements: Vec<Element> = (1..=5000).map(to).collect();
    let target = DnatTarget::Map(selectors, SetSource::Inline(elements));
    let chain = Chain::regular("c", vec![Rule::new([Statement::Dnat { version: IpVersion::V4, target }])]);
    netns.inside(|| {
        let mut nft = NftSocket::new();
        let mut transaction = Transaction::new();
        transaction.push(Command::AddTable(TABLE, None));
        transaction.add_chain(&TABLE, chain.clone());
        nft.commit(&transaction).unwrap();
        assert_eq!(nft.rules(&TABLE, "c").unwrap()[0].rule().as_ref(), chain.rules.first());
        assert_eq!(nft.chain_differences(&TABLE, &chain).unwrap(), []);
    });
}

#[test]
fn long_comments_are_cut_to_what_nft_takes() {
    let netns = Netns::new("nft");
    let long = "ä".repeat(100);
    let cut = "ä".repeat(62);
    let skeleton = Skeleton {
        comment: Some(long.clone()),
        sets: vec![ports_map().comment(&long)],
        chains: vec![Chain::regular("c", vec![Rule::new([Statement::Counter]).comment(&long)]).comment(&long)],
        ..small()
    };
    let mut transaction = Transaction::new();
    let element = Element::verdict(tcp(1), Verdict::Drop).comment(&long);
    transaction.add_elements(&TABLE, "ports", Presence::Exclusive, vec![element.clone()]);
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&skeleton], &transaction).unwrap();
        assert_eq!(nft.differences(&skeleton).unwrap(), []);
        assert_eq!(nft.element_differences(&TABLE, &ports_map(), &[element]).unwrap(), []);
        assert_eq!(nft.chain(&TABLE, "c").unwrap().unwrap().comment, Some(cut.clone()));
    });
    let listing = netns.run("nft list ruleset");
    assert_eq!(listing.matches(&format!("comment \"{cut}\"")).count(), 5, "{listing}");
    // What nft prints it also takes.
    netns.nft(&format!("flush ruleset; {listing}"));
}

#[test]
fn other_tables_are_never_touched() {
    let netns = Netns::new("nft");
    let foreign = "table ip t { map ports { type inet_proto . inet_service : verdict; elements = { tcp . 1 : drop } }; \
                   chain hostports { tcp dport 1 drop; }; chain a { counter; }; }; \
                   table inet other { chain prerouting { type nat hook prerouting priority -95; }; chain a { accept; }; }";
    netns.nft(foreign);
    let before = ruleset(&netns);
    netns.inside(|| {
        let mut nft = NftSocket::new();
        nft.commit_on(&[&small()], &attachment("a", 1..=3)).unwrap();
        nft.commit_on(&[&Skeleton { comment: Some("2".into()), ..small() }], &attachment("b", 4..=5)).unwrap();
        let mut transaction = Transaction::new();
        transaction.delete_elements(&TABLE, "ports", (1..=3).map(|p| Element::key(tcp(p))).collect());
        transaction.remove_chain(&TABLE, "a");
        nft.commit(&transaction).unwrap();
        let mut transaction = Transaction::new();
        transaction.destroy_table(&TABLE);
        nft.commit(&transaction).unwrap();
        // It is gone: that is what was asked for.
        nft.commit(&transaction).unwrap();
    });
    assert_eq!(ruleset(&netns), before);
}

#[test]
fn rules_are_put_where_they_are_wanted() {
    let netns = prepared();
    let mark = |n: u32| Rule::new([Statement::is(Selector::Mark, Value::Mark(n))]);
    let marks = |nft: &mut NftSocket| -> Vec<(u64, String)> {
        nft.rules(&TABLE, "a").unwrap().into_iter().map(|r| (r.handle, r.text())).collect()
    };
    netns.inside(|| {
        let mut nft = NftSocket::new();
        let mut transaction = Transaction::new();
        transaction.add_rule(&TABLE, "a", Position::End, mark(5)).add_rule(&TABLE, "a", Position::Top, mark(1));
        nft.commit(&transaction).unwrap();
        let counter = marks(&mut nft)[1].0;
        let mut transaction = Transaction::new();
        transaction.add_rule(&TABLE, "a", Position::Before(counter), mark(2));
        transaction.add_rule(&TABLE, "a", Position::After(counter), mark(4));
        transaction.delete_rule(&TABLE, "a", counter);
        nft.commit(&transaction).unwrap();
        let texts: Vec<String> = marks(&mut nft).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, [1, 2, 4, 5].map(|n| format!("meta mark 0x{n:08x}")));
    });
}

#[test]
fn the_use_counter_counts_what_leads_to_a_chain() {
    let netns = prepared();
    netns.inside(|| {
        let info = NftSocket::new().chain(&TABLE, "a").unwrap().unwrap();
        assert_eq!(info.uses, 4, "one rule and three elements");
        assert_eq!(info.comment.as_deref(), Some("net/a/eth0"));
    });
}

#[test]
fn what_is_absent_is_read_as_nothing() {
    let netns = Netns::new("nft");
    netns.inside(|| {
        let mut nft = NftSocket::new();
        for table in [TABLE, Table::new(Family::Ip, "none")] {
            assert!(!nft.has_table(&table).unwrap());
            assert_eq!(nft.chain(&table, "c").unwrap(), None);
            assert_eq!(nft.chains(&table).unwrap(), []);
            assert_eq!(nft.rules(&table, "c").unwrap(), []);
            assert_eq!(nft.sets(&table).unwrap(), []);
            assert_eq!(nft.set(&table, "ports").unwrap(), None);
            assert_eq!(nft.element(&table, &ports_map(), &tcp(1)).unwrap(), None);
            assert_eq!(nft.elements(&table, &ports_map()).unwrap(), []);
        }
        assert_eq!(nft.tables().unwrap(), []);
        nft.commit_on(&[&small()], &Transaction::new()).unwrap();
        assert_eq!(nft.element(&TABLE, &ports_map(), &tcp(1)).unwrap(), None);
        assert_eq!(nft.rules(&TABLE, "none").unwrap(), []);
    });
}

#[test]
fn an_address_of_either_version_is_an_element() {
    let netns = Netns::new("nft");
    let set = Set::of("hosts", [DataType::Ipv4Addr, DataType::Ipv6Addr]);
    let key = [Value::V4(Ipv4Addr::LOCALHOST), v4("fd00::1")];
    netns.inside(|| {
        let mut nft = NftSocket::new();
        let mut transaction = Transaction::new();
        transaction.push(Command::AddTable(TABLE, None));
        transaction.push(Command::AddSet(TABLE, set.clone()));
        transaction.add_elements(&TABLE, "hosts", Presence::Exclusive, vec![Element::key(key.clone())]);
        nft.commit(&transaction).unwrap();
        assert_eq!(nft.element(&TABLE, &set, &key).unwrap(), Some(Element::key(key.clone())));
    });
}
