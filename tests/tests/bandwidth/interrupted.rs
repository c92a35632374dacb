//! A call that is killed between any two messages to the kernel leaves nothing that the next call can't clean.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use super::*;

impl Case {
    /// Calls a verb and kills it as it sends its `number`th message, which the kernel still works off; whether it lived to
    /// send that many.
    #[track_caller]
    fn killed(&self, verb: Verb, number: u32) -> bool {
        let target = self.container.target();
        let mut command = self.lab.host.command("strace");
        command.args(["-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e"]);
        command.arg(format!("inject=sendto:signal=KILL:when={number}")).arg(Plugin::ours("bandwidth").path());
        command.env("CNI_COMMAND", verb.as_str()).env("CNI_CONTAINERID", &target.container);
        command.env("CNI_NETNS", &target.netns).env("CNI_IFNAME", &target.ifname).env("CNI_PATH", "/");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(self.config().to_string().as_bytes()).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() || status.signal() == Some(9), "{status}");
        status.signal() == Some(9)
    }
}

impl Case {
    #[track_caller]
    fn swallows_nothing(&self) {
        let answer = self.lab.client.try_run(&format!("ping -c 1 -W 2 {}", self.container.addresses[0]));
        let shown =
            || self.tc("-s qdisc show") + &self.tc("filter show dev veth2 ingress") + &self.lab.host.run("ip link");
        assert!(answer.is_ok(), "{answer:?}, with {}", shown());
    }
}

/// Kills `verb` at each of its messages in turn, after `prepare`, and lets `after` look at what is left.
#[track_caller]
fn at_each_message(case: &Case, verb: Verb, prepare: impl Fn(), after: impl Fn(u32)) {
    for number in 1..100 {
        prepare();
        let killed = case.killed(verb, number);
        after(number);
        if !killed {
            assert!(number > 5, "{number} messages");
            return;
        }
    }
    panic!("it never ended");
}

fn cases() -> impl Iterator<Item = Case> {
    let subnets = with(limits(8_000_000, SENTINEL), "unshapedSubnets", json!(["198.51.100.0/24", "2001:db8:51::/64"]));
    [limits(10_000_000, SENTINEL), subnets].into_iter().flat_map(|keys| {
        ["", "somebody's"].map(|alias| {
            let case = Case::new(keys.clone());
            if !alias.is_empty() {
                case.lab.host.run(&format!("ip link set veth2 alias {alias}"));
            }
            case
        })
    })
}

#[test]
fn whatever_an_add_that_was_killed_has_made_del_removes() {
    for case in cases() {
        let before = case.lab.host.snapshot();
        at_each_message(
            &case,
            Verb::Add,
            || (),
            |_| {
                case.call(Verb::Del).succeeds();
                case.lab.host.assert_same_as(&before);
            },
        );
    }
}

#[test]
fn whatever_an_add_that_was_killed_has_made_the_next_completes() {
    for case in cases() {
        let before = case.lab.host.snapshot();
        at_each_message(
            &case,
            Verb::Add,
            || (),
            |_| {
                case.call(Verb::Add).succeeds();
                case.call(Verb::Check).succeeds();
                case.call(Verb::Del).succeeds();
                case.lab.host.assert_same_as(&before);
            },
        );
    }
}

#[test]
fn a_del_that_was_killed_swallows_nothing_and_is_completed_by_the_next_with_or_without_netns() {
    for case in cases() {
        let before = case.lab.host.snapshot();
        let add = || drop(case.call(Verb::Add).succeeds());
        at_each_message(&case, Verb::Del, add, |number| {
            case.swallows_nothing();
            let netns = case.container.target();
            let target = if number % 2 == 0 { netns } else { netns.without_netns() };
            case.call_with(Verb::Del, &case.config(), &target).succeeds();
            case.lab.host.assert_same_as(&before);
        });
    }
}

#[test]
fn an_add_that_was_killed_as_it_took_over_from_the_reference_or_from_somebodys_qdisc_swallows_nothing() {
    let case = Case::both(10_000_000, 400_000);
    let before = case.lab.host.snapshot();
    let old = config("1.0.0", &case.keys, Some(case.container.prev_result("1.0.0")));
    let by_the_reference = || {
        drop(Plugin::reference("bandwidth").call(&case.lab.host, Verb::Add, &old, &case.container.target()).succeeds())
    };
    let below_somebodys_qdisc = || {
        let ifb = ifb(&case.call(Verb::Add).succeeds());
        case.tc(&format!("qdisc replace dev {ifb} root handle 7: pfifo limit 100"));
    };
    let preparations: [&dyn Fn(); 2] = [&by_the_reference, &below_somebodys_qdisc];
    for prepare in preparations {
        at_each_message(&case, Verb::Add, prepare, |_| {
            case.swallows_nothing();
            case.call(Verb::Add).succeeds();
            case.swallows_nothing();
            case.call(Verb::Check).succeeds();
            case.del_leaves(&before);
        });
    }
}

#[test]
fn an_add_that_fails_as_it_takes_over_from_the_reference_leaves_that_in_force() {
    let case = Case::new(json!({"egressRate": 10_000_000, "egressBurst": 400_000}));
    let old = config("1.0.0", &case.keys, Some(case.container.prev_result("1.0.0")));
    let reference = |verb| Plugin::reference("bandwidth").call(&case.lab.host, verb, &old, &case.container.target());
    reference(Verb::Add).succeeds();
    // No priority of ours is left for what it wants to add.
    for bank in 0..16 {
        let priority = 0xf102 + bank * 0x10;
        case.tc(&format!("filter add dev veth2 ingress pref {priority} protocol ip u32 match u32 0 0 flowid 1:1"));
    }
    let before = case.lab.host.snapshot();
    case.call(Verb::Add).fails();
    case.lab.host.assert_same_as(&before);
    case.swallows_nothing();
    reference(Verb::Check).succeeds();
}

#[test]
fn an_add_that_fails_takes_back_its_own_filters_and_nobody_elses_of_the_same_priority() {
    let case = Case::new(json!({"egressRate": 10_000_000, "egressBurst": 400_000}));
    case.call(Verb::Add).succeeds();
    // In all banks but ours, and in the last only where the second and the third filter would go.
    for bank in 1..15 {
        let priority = 0xf102 + bank * 0x10;
        case.tc(&format!("filter add dev veth2 ingress pref {priority} protocol all u32 match u32 0 0 flowid 1:1"));
    }
    for (place, protocol) in [(0, "ip"), (2, "ipv6")] {
        let priority = 0xf1f0 + place;
        case.tc(&format!(
            "filter add dev veth2 ingress pref {priority} protocol {protocol} u32 match u32 0 0 flowid 1:1"
        ));
    }
    let before = case.lab.host.snapshot();
    let case = case.keyed(json!({
        "egressRate": 10_000_000, "egressBurst": 400_000, "unshapedSubnets": ["198.51.100.0/24", "203.0.113.0/24"],
    }));
    case.call(Verb::Add).fails();
    case.lab.host.assert_same_as(&before);
}
