//! Whatever the kernel answers, a plugin does its work or says that it has not, and leaves nothing by halves.
//!
//! By default one in eleven of the points is tried: the same ones for the same program, others once it makes another number of
//! calls. `CNI_CHAIN_FAULTS=points` tries them all, with the errnos in turn, and `CNI_CHAIN_FAULTS=all` every errno at every call.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use netns_tests::faults::{Answerable, Fault, Times, Which, answered, answers};
use netns_tests::scene::{Clean, Glance, Play, Scene, same};
use netns_tests::{Outcome, Verb, of_every_play};
use nix::errno::Errno;

/// The kernel's refusals.
const ERRNOS: [Errno; 7] =
    [Errno::EEXIST, Errno::ENOENT, Errno::EBUSY, Errno::EPERM, Errno::ENOBUFS, Errno::EINTR, Errno::ERESTART];

/// Whether this point of so many is tried: one in each stride. The first in each would meet the same kinds of fault again and again,
/// because each call has about as many: so its place is mixed (Knuth, The Art of Computer Programming, 6.4: multiplicative hashing).
fn is_tried(place: usize, points: usize) -> bool {
    let mixed = ((place / stride() + points) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    place % stride() == mixed as usize % stride()
}

/// Of how many points one is tried.
fn stride() -> usize {
    match std::env::var("CNI_CHAIN_FAULTS").as_deref() {
        Ok("points" | "all") => 1,
        Ok(other) => panic!("CNI_CHAIN_FAULTS={other}: neither points nor all"),
        Err(_) => 11,
    }
}

/// What can go wrong with a call.
fn faults_of(n: usize, call: &Answerable) -> Vec<Fault> {
    let all = std::env::var("CNI_CHAIN_FAULTS").is_ok_and(|v| v == "all");
    let in_turn = |some: usize| ERRNOS.into_iter().cycle().skip(n).take(if all { ERRNOS.len() } else { some });
    // That there is nothing is no failure of a question but its answer, and whoever believes it can't be blamed.
    let is_failure = |errno: &Errno| call.is_change || *errno != Errno::ENOENT;
    // ERESTART is no answer of a system call: the kernel restarts it. What is open already is there.
    let can_be = |errno: &Errno| match errno {
        Errno::ERESTART => false,
        Errno::ENOENT | Errno::EEXIST => call.takes_a_name,
        _ => true,
    };
    let mut faults: Vec<Fault> = in_turn(1).filter(can_be).map(Fault::Fails).collect();
    if call.is_request {
        // A change is refused in every way there is.
        let few = if call.is_change { ERRNOS.len() } else { 2 };
        faults.extend(in_turn(few).filter(is_failure).map(|errno| Fault::Refused(errno, Which::First)));
        faults.push(Fault::Unanswered);
    }
    if call.is_batch {
        faults.extend(in_turn(3).filter(is_failure).map(|errno| Fault::Refused(errno, Which::Last)));
    }
    if call.is_dump {
        faults.push(Fault::Interrupted);
    }
    faults
}

/// Deceives `verb` at each call; gives the number of points, and what was wrong.
fn lied_to(play: Play, verb: Verb) -> (usize, Vec<String>) {
    let mut scene = Scene::set(play);
    let mut states = Clean::of(&scene).states().clone();
    let before = |scene: &Scene| {
        if verb != Verb::Add {
            scene.call(Verb::Add).succeeds();
        }
    };
    let listen = |_| {
        before(&scene);
        let (all, outcome) = answers(&scene.run(verb));
        outcome.succeeds();
        scene.call(Verb::Del).succeeds();
        scene.reset();
        all
    };
    // A transaction that was begun anew makes a run longer than most are.
    let all = [(); 3].map(listen).into_iter().min_by_key(Vec::len).unwrap();
    let points = all.iter().enumerate().flat_map(|(n, call)| faults_of(n, call).into_iter().map(move |f| (n, call, f)));
    let points: Vec<(usize, &Answerable, Fault)> = points.collect();
    let (mut tried, mut wrong) = (0, Vec::new());
    let chosen = (0..points.len()).filter(|place| is_tried(*place, points.len()));
    let chosen: Vec<_> = chosen.map(|place| points[place]).collect();
    for &(n, call, fault) in &chosen {
        before(&scene);
        let untouched = scene.glance();
        let (outcome, told) = answered(&scene.run(verb), fault, Times::At(n));
        let story = format!("{verb:?} with {fault:?} at {n} ({}): {}", call.what, answer(&outcome));
        if told == 0 {
            // The run that was listened to was longer, because a transaction was begun anew.
            outcome.succeeds();
            scene.call(Verb::Del).succeeds();
            scene.reset();
            continue;
        }
        tried += 1;
        let clean = Clean::with(&scene, states.clone());
        let mut judgement = judge(&clean, verb, fault, &untouched, &outcome);
        scene.call(Verb::Del).succeeds();
        judgement = judgement.and_then(|()| clean.is_clean().map_err(|e| format!("after DEL: {e}")));
        scene.reset();
        if let Err(what) = judgement {
            if !is_known(fault, call, &outcome) {
                wrong.push(format!("{story}\n  {what}"));
            }
            scene = Scene::set(play);
            states = Clean::of(&scene).states().clone();
        }
    }
    // Questions that a run asks or not, as others come and go, shift what comes behind them.
    assert!(tried * 10 >= chosen.len() * 6, "{verb:?}: only {tried} of {} points were reached", chosen.len());
    (tried, wrong)
}

/// Known and left, as docs/reliability.md says: that a file isn't there is believed.
fn is_known(fault: Fault, call: &Answerable, outcome: &Outcome) -> bool {
    fault == Fault::Fails(Errno::ENOENT) && !call.is_change && outcome.exit == 0
}

fn answer(outcome: &Outcome) -> String {
    if outcome.exit == 0 { "yes".to_owned() } else { outcome.fails().msg }
}

/// All, or nothing with an error; of DEL and GC also a part, as long as they say so.
fn judge(clean: &Clean<'_>, verb: Verb, fault: Fault, untouched: &Glance, outcome: &Outcome) -> Result<(), String> {
    let is_whole = || {
        let check = clean.scene().call(Verb::Check);
        if check.exit == 0 { Ok(()) } else { Err(format!("CHECK then says: {}", answer(&check))) }
    };
    match (verb, outcome.exit) {
        (Verb::Add, 0) => is_whole(),
        // Where the kernel's word itself got lost, the work may be done; but then all of it.
        (Verb::Add, _) if fault.loses_the_answer() => clean.is_clean().or_else(|left| is_whole().map_err(|_| left)),
        (Verb::Add, _) => clean.is_clean(),
        (Verb::Check | Verb::Status, _) => same(untouched, &clean.scene().glance()),
        // Who is told that there is nothing has nothing to remove.
        (_, 0) if matches!(fault, Fault::Refused(Errno::ENOENT, _) | Fault::Fails(Errno::ENOENT)) => Ok(()),
        // DEL warns of what it could not put back into a container, and keeps its file for the next.
        (Verb::Del, 0) if outcome.stderr.contains("for the next DEL") => Ok(()),
        (_, 0) => clean.is_clean_after(verb),
        (_, _) => Ok(()),
    }
}

fn errors_at_every_step_are_told_and_leave_the_state_as_it_was(play: Play) {
    let (mut points, mut wrong) = (Vec::new(), Vec::new());
    for verb in [Verb::Add, Verb::Check, Verb::Del, Verb::Gc, Verb::Status] {
        let (number, found) = lied_to(play, verb);
        points.push((verb, number));
        wrong.extend(found);
    }
    println!("{play:?}: deceived at {points:?}");
    assert!(wrong.is_empty(), "{} of {points:?} went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A kernel that refuses from one change on, as one without memory does, refuses to take back what was done as well.
#[test]
fn what_an_add_could_not_undo_the_next_del_does() {
    let scene = Scene::set(Play::Tuning);
    let clean = Clean::of(&scene);
    let mut left = 0;
    for n in 0..4 {
        let fault = Fault::Refused(Errno::ENOBUFS, Which::First);
        let (outcome, told) = answered(&scene.run(Verb::Add), fault, Times::FromChange(n));
        if told > 0 {
            outcome.fails();
            left += usize::from(clean.is_clean().is_err());
        }
        let del = scene.call(Verb::Del);
        del.succeeds();
        clean.assert(&format!("refused from {n} on: {}, then DEL: {}", answer(&outcome), del.stderr));
        scene.reset();
    }
    assert!(left > 0, "all was undone");
}

of_every_play! {
    errors_at_every_step_are_told_and_leave_the_state_as_it_was
}
