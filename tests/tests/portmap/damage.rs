//! What others do to the table: it costs nobody else a port, opens nothing, and goes.

use super::*;

/// A container's first ADD, which has nothing of its own to compare with, says yes only if packets come through.
#[test]
fn a_first_add_works_whatever_was_done_to_the_table_before() {
    let damages = [
        (
            "another rule in the place of each of ours",
            "flush chain TABLE prerouting; add rule TABLE prerouting counter; add rule TABLE prerouting counter",
        ),
        (
            "a rule of ours in the other's place",
            "flush chain TABLE output; add rule TABLE output ip daddr 127.0.0.0/8 return",
        ),
        (
            "a hook in another place",
            "delete chain TABLE output; add chain TABLE output { type nat hook output priority 77; }; add rule TABLE output fib daddr type local jump hostports",
        ),
        (
            "a chain that drops",
            "add chain TABLE loopback_guard { type filter hook prerouting priority -300; policy drop; }",
        ),
        ("another guard", "flush chain TABLE loopback_forged; add rule TABLE loopback_forged accept"),
    ];
    for (what, text) in damages {
        let lab = Lab::new();
        let (first, next) = (lab.container(2), lab.container(3));
        let _server = serve(&next.netns, 80, "next");
        add(&lab, &first, &port(8080, 80));
        lab.host.nft(&text.replace("TABLE", TABLE));
        add(&lab, &next, &port(9090, 80));
        check(&lab, &next, &port(9090, 80));
        assert!(!rules(&lab).contains("counter"), "{what}: {}", rules(&lab));
        all_reach(&lab.client, &["192.0.2.1:9090"], "next");
        all_reach(&lab.host, &["192.0.2.1:9090", "127.0.0.1:9090"], "next");
    }
}
