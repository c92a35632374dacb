//! Limits that are changed while they are at work.

use std::time::Duration;

use super::*;

/// Lowers both limits while a flow fills the queue; what the flow got in each 100 ms.
fn lowered_under_load(from: u64, to: u64, flow: impl Fn(&Case) -> Measured + Sync) -> Measured {
    let case = Case::both(from, SENTINEL);
    case.call(Verb::Add).succeeds();
    let lower = config("1.1.0", &limits(to, SENTINEL), Some(case.container.prev_result("1.1.0")));
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| flow(&case));
        std::thread::sleep(Duration::from_millis(700));
        case.call_with(Verb::Add, &lower, &case.container.target()).succeeds();
        let measured = flow.join().unwrap();
        case.call_with(Verb::Check, &lower, &case.container.target()).succeeds();
        measured
    })
}

/// What waited when a limit was lowered may be larger than the new burst. It must not stand in the way for good.
#[test]
fn a_limit_that_is_lowered_under_load_lets_traffic_through_at_its_rate() {
    for (from, to) in [(1_000_000_000, 10_000_000), (100_000_000, 20_000_000)] {
        for _ in 0..2 {
            for direction in ["ingress", "egress"] {
                let measured = lowered_under_load(from, to, |case| match direction {
                    "ingress" => case.ingress(Proto::Tcp, 4),
                    _ => case.egress(Proto::Tcp, 4),
                });
                // TCP may first have to wait for its timer, which has learnt from the queue that was there.
                let last: u64 = measured.buckets[30..].iter().sum();
                let share = last as f64 * 8.0 / (to as f64 * TCP_SHARE);
                assert!(
                    (0.5..1.2).contains(&share),
                    "{direction}, {from} to {to}: {share:.2} of the rate: {measured:?}"
                );
            }
        }
    }
}
