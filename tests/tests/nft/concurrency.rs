//! Many calls at once: as if they had come one after the other.

use std::sync::Barrier;

use common::nft::*;
use netns_tests::Netns;
use nix::errno::Errno;

use super::{TABLE, attachment, ports_map, small, tcp};

const AT_ONCE: u16 = 20;

/// Runs `what` on many threads inside, all at the same time, and gives the outcomes.
fn at_once<T: Send + 'static>(netns: &Netns, what: impl Fn(u16) -> T + Send + Sync + Copy + 'static) -> Vec<T> {
    let start: &'static Barrier = Box::leak(Box::new(Barrier::new(usize::from(AT_ONCE))));
    let threads: Vec<_> = (0..AT_ONCE)
        .map(|n| {
            netns.spawn(move || {
                start.wait();
                what(n)
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

#[test]
fn the_first_calls_of_all_make_one_skeleton() {
    let netns = Netns::new("nft");
    let outcomes = at_once(&netns, |n| {
        NftSocket::new().commit_on(&[&small()], &attachment(&format!("a{n}"), n * 10 + 1..n * 10 + 10))
    });
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    netns.inside(|| {
        let mut nft = NftSocket::new();
        assert_eq!(nft.differences(&small()).unwrap(), [], "no rule is there twice");
        assert_eq!(nft.elements(&TABLE, &ports_map()).unwrap().len(), usize::from(AT_ONCE) * 9);
    });
}

#[test]
fn one_of_many_gets_the_port() {
    let netns = Netns::new("nft");
    netns.inside(|| NftSocket::new().commit_on(&[&small()], &Transaction::new()).unwrap());
    let outcomes = at_once(&netns, |n| {
        let mut nft = NftSocket::new();
        match nft.commit_on(&[&small()], &attachment(&format!("a{n}"), [8080])) {
            Ok(()) => None,
            Err(error) => {
                assert_eq!(error.errno(), Some(Errno::EEXIST), "{error:?}");
                Some(nft.element(&TABLE, &ports_map(), &tcp(8080)).unwrap().unwrap().comment.unwrap())
            }
        }
    });
    let winner = outcomes.iter().position(Option::is_none).unwrap();
    let owner = format!("net/a{winner}/eth0");
    assert_eq!(outcomes.iter().filter(|o| o.as_ref() == Some(&owner)).count(), usize::from(AT_ONCE) - 1);
    let chains = netns.inside(|| NftSocket::new().chains(&TABLE).unwrap());
    assert_eq!(chains.iter().filter(|c| c.comment.is_some()).count(), 1, "the losers left nothing: {chains:?}");
}

#[test]
fn no_update_is_lost_between_reading_and_sending() {
    let netns = Netns::new("nft");
    netns.inside(|| NftSocket::new().commit_on(&[&small()], &Transaction::new()).unwrap());
    // Each takes the first free port: without the generation, many would take the same.
    let outcomes = at_once(&netns, |n| {
        NftSocket::new().commit_as_read(|nft| {
            let free = nft.elements(&TABLE, &ports_map())?.len() as u16 + 1;
            Ok((attachment(&format!("a{n}"), [free]), free))
        })
    });
    let mut taken: Vec<u16> = outcomes.into_iter().map(Result::unwrap).collect();
    taken.sort_unstable();
    assert_eq!(taken, (1..=AT_ONCE).collect::<Vec<_>>());
}

#[test]
fn comings_and_goings_leave_nothing() {
    let netns = Netns::new("nft");
    netns.inside(|| NftSocket::new().commit_on(&[&small()], &Transaction::new()).unwrap());
    at_once(&netns, |n| {
        let mut nft = NftSocket::new();
        let name = format!("a{n}");
        let ports: Vec<u16> = (n * 10 + 1..n * 10 + 10).collect();
        for _ in 0..5 {
            nft.commit_on(&[&small()], &attachment(&name, ports.clone())).unwrap();
            let wanted: Vec<Element> =
                ports.iter().map(|p| Element::verdict(tcp(*p), Verdict::Jump(name.clone()))).collect();
            assert_eq!(nft.element_differences(&TABLE, &ports_map(), &wanted).unwrap(), []);
            assert_eq!(nft.rules(&TABLE, &name).unwrap().len(), 1);
            let mut transaction = Transaction::new();
            transaction.delete_elements(&TABLE, "ports", wanted);
            transaction.remove_chain(&TABLE, &name);
            nft.commit(&transaction).unwrap();
        }
    });
    netns.inside(|| {
        let mut nft = NftSocket::new();
        assert_eq!(nft.elements(&TABLE, &ports_map()).unwrap(), []);
        assert_eq!(nft.chains(&TABLE).unwrap().len(), 2);
    });
}

/// An anonymous set gets the name that another has just given back: who reads a chain while it is being replaced must
/// not take another's set for the chain's.
#[test]
fn a_chain_is_read_whole_while_it_is_replaced() {
    let netns = Netns::new("nft");
    let chain = |n: u16| {
        let ports = [Selector::L4proto, Selector::ThDport];
        let set = SetSource::Inline(vec![Element::key(tcp(n)), Element::key([Value::Proto(17), Value::Port(n)])]);
        let rule = Rule::new([Statement::InSet { selectors: ports.to_vec(), negated: false, set }]);
        Chain::regular(format!("a{n}"), vec![rule; 10])
    };
    netns.inside(|| {
        let mut transaction = Transaction::new();
        transaction.push(Command::AddTable(TABLE, None));
        for n in 0..AT_ONCE {
            transaction.add_chain(&TABLE, chain(n));
        }
        NftSocket::new().commit(&transaction).unwrap();
    });
    at_once(&netns, move |n| {
        let mut nft = NftSocket::new();
        for round in 0..40 {
            if n < AT_ONCE / 4 {
                let mut transaction = Transaction::new();
                let other = (n + round) % AT_ONCE;
                transaction.push(Command::FlushChain(TABLE, format!("a{other}")));
                transaction.push(Command::AddRules(TABLE, chain(other)));
                nft.commit(&transaction).unwrap();
            } else {
                let other = (n + round) % 3;
                assert_eq!(nft.chain_differences(&TABLE, &chain(other)).unwrap(), []);
            }
        }
    });
}

#[test]
fn adding_survives_tables_that_vanish() {
    let netns = Netns::new("nft");
    let outcomes = at_once(&netns, |n| {
        let mut nft = NftSocket::new();
        if n % 10 == 0 {
            let mut transaction = Transaction::new();
            transaction.destroy_table(&TABLE);
            (0..10).map(|_| nft.commit(&transaction)).collect()
        } else {
            (0..10u16)
                .map(|i| nft.commit_on(&[&small()], &attachment(&format!("a{n}-{i}"), [n * 10 + i])))
                .collect::<Vec<_>>()
        }
    });
    for outcome in outcomes.into_iter().flatten() {
        assert_eq!(outcome, Ok(()));
    }
}
