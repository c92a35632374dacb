//! Wherever a plugin is killed, nothing is lost and nothing is left.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use netns_tests::faults::{Side, changes, killed};
use netns_tests::scene::{Clean, Play, Scene};
use netns_tests::{Verb, of_every_play};

/// What may come after a call that came to nothing.
const ENDINGS: [&[Verb]; 3] = [&[Verb::Add, Verb::Check, Verb::Del], &[Verb::Del], &[Verb::Gc]];

/// Kills `verb` at each of its changes and lets each ending follow; gives the number of points.
fn killed_anywhere(scene: &Scene, clean: &Clean<'_>, verb: Verb) -> usize {
    let before = || {
        if verb != Verb::Add {
            scene.call(Verb::Add).succeeds();
        }
    };
    let after = || {
        scene.call(Verb::Del).succeeds();
        scene.reset();
    };
    before();
    let (all, outcome) = changes(&scene.run(verb));
    outcome.succeeds();
    after();
    let mut points = 0;
    for (n, side) in (0..all.len()).flat_map(|n| [(n, Side::Before), (n, Side::Behind)]) {
        let mut was_killed = true;
        for ending in ENDINGS {
            before();
            // How often a sysctl is written can depend on what was there; a run may end before.
            let met = killed(&scene.run(verb), n, side);
            was_killed &= met.is_some();
            let story = format!("{verb:?} killed {side:?} {n} ({met:?}), then {ending:?}");
            for next in ending {
                let outcome = scene.call(*next);
                assert_eq!(outcome.exit, 0, "{story}: {next:?}: {}", outcome.call());
            }
            let last = ending.last().copied().unwrap_or(Verb::Del);
            clean.is_clean_after(last).unwrap_or_else(|what| panic!("{story}: {what}"));
            after();
        }
        points += usize::from(was_killed);
    }
    points
}

fn killed_at_every_step_nothing_is_left(play: Play) {
    let scene = Scene::set(play);
    let clean = Clean::of(&scene);
    let points = [Verb::Add, Verb::Del, Verb::Gc].map(|verb| (verb, killed_anywhere(&scene, &clean, verb)));
    let changes = |verb: Verb| play != Play::BandwidthInside || verb != Verb::Gc;
    let is_idle = points.iter().any(|(verb, number)| *number == 0 && changes(*verb));
    assert!(!is_idle, "{play:?}: a verb that changes nothing: {points:?}");
    println!("{play:?}: killed at {points:?}, each followed by {} endings", ENDINGS.len());
}

of_every_play! {
    killed_at_every_step_nothing_is_left
}
