//! Limits that are changed while they are at work.

use std::time::Duration;

use netns_tests::lab::CLIENT;
use netns_tests::traffic::wire::throughput_on_the_wire;

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

/// What the sockets and the link of a namespace may have under way: a packet's bytes, a buffer's to receive and to send.
fn allow(end: &Netns, packet: u32, rmem: &str, wmem: &str) {
    end.run(&format!("ip link set eth0 gso_max_size {packet}"));
    for (key, bytes) in [("rmem", rmem), ("wmem", wmem)] {
        end.pipe(&format!("tee /proc/sys/net/ipv4/tcp_{key}"), bytes).unwrap();
    }
}

/// The container's end of a pair and other containers' may allow larger packets than the host's end says (BIG TCP).
#[test]
fn a_limit_that_is_lowered_while_larger_packets_wait_than_the_link_would_make_lets_traffic_through() {
    let direction = |direction: &str| {
        let measured = lowered_under_load(1_000_000_000, 150_000_000, |case| {
            let ends =
                [(&case.container.netns, &case.container.addresses[1]), (&case.lab.client, &CLIENT[1].to_owned())];
            let [container, client] = ends;
            let ((from, _), (to, address)) =
                if direction == "ingress" { (client, container) } else { (container, client) };
            let flow = |seconds| throughput(from, to, Proto::Tcp, &format!("[{address}]:5001"), seconds);

            ends.iter().for_each(|(end, _)| allow(end, 262_144, "4096 6000000 32000000", "4096 4000000 32000000"));
            let under_way = flow(3);
            let since: u64 = under_way.buckets[10..].iter().sum();
            assert!(since > 0, "{direction}: nothing after the limit was lowered: {under_way:?}");
            // When a flow of such packets finds its pace again after it has lost most of them is TCP's affair. An ordinary one
            // stands behind the same queue.
            ends.iter().for_each(|(end, _)| allow(end, 65_536, "4096 131072 6291456", "4096 16384 4194304"));
            flow(3)
        });
        let last: u64 = measured.buckets[20..].iter().sum();
        let share = last as f64 * 8.0 / (150e6 * TCP_SHARE);
        assert!((0.5..1.2).contains(&share), "{direction}: {share:.2} of the rate: {measured:?}");
    };
    ["ingress", "egress"].into_iter().for_each(direction);
}

#[test]
fn limits_from_64_kilobits_to_a_gigabit_hold_from_the_first_second() {
    for (rate, proto, share, seconds) in [
        (64_000, Proto::Udp, UDP_SHARE, 5),
        (1_000_000, Proto::Udp, UDP_SHARE, 3),
        (100_000_000, Proto::Tcp, TCP_SHARE, 2),
        (1_000_000_000, Proto::Tcp, TCP_SHARE, 2),
    ] {
        let case = Case::both(rate, SENTINEL);
        case.call(Verb::Add).succeeds();
        for measured in [case.ingress(proto, seconds), case.egress(proto, seconds)] {
            let of_rate = |bits: f64| bits / (rate as f64 * share);
            let (mean, first) = (of_rate(measured.bits_per_second()), of_rate(measured.first_second()));
            // Two frames of burst are more than a hundredth of a slow second; and the receiver's clock begins with the first.
            let room = 3.0 * 1514.0 * 8.0 / rate as f64;
            assert!((0.5..1.03 + room / f64::from(seconds)).contains(&mean), "{rate}: {mean:.3}: {measured:?}");
            assert!(first <= 1.10 + room, "{rate}: the first second has {first:.3}: {measured:?}");
        }
    }
}

/// On the wire, because TCP gives its reader at once what a lost segment has held up.
#[test]
fn no_second_of_a_tcp_flow_has_more_than_the_rate_and_the_burst_on_the_wire() {
    for rate in [1_000_000, 10_000_000] {
        let case = Case::both(rate, SENTINEL);
        case.call(Verb::Add).succeeds();
        let into = (&case.lab.client, &case.container.netns, format!("{}:5001", case.container.addresses[0]));
        let out = (&case.container.netns, &case.lab.client, "192.0.2.2:5001".to_owned());
        for (from, to, address) in [into, out] {
            let frames = throughput_on_the_wire(from, to, Proto::Tcp, &address, 4);
            let share = |bits: f64| bits / rate as f64;
            let (mean, fullest) = (share(frames.bits_per_second()), share(frames.fullest_second()));
            // Two frames, or 10 ms, and half a hundredth for a timer that is late and makes up for it.
            let burst = (2.0 * 1514.0 * 8.0 / rate as f64).max(0.01);
            assert!((0.3..1.0 + burst).contains(&mean), "{rate}: {mean:.3} of the rate");
            assert!(fullest < 1.005 + burst, "{rate}: the fullest second has {fullest:.3} of the rate");
        }
    }
}
