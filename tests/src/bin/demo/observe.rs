//! What works, seen from the client, from the container and from the host.

use std::collections::BTreeMap;

use netns_tests::traffic::{BRIEFLY, PATIENCE};
use netns_tests::{Fetch, Lab, Netns, Proto, lab, throughput};

use crate::screen::Screen;
use crate::{LIMITS, PORTS, TOKENS};

/// Seconds of one throughput measurement.
const SECONDS: u32 = 2;

/// A token, or why none came.
pub(crate) type Answer = Result<String, String>;

/// Everything the demo measures, at one time. Answers come by protocol and family, as [`each`] orders them.
pub(crate) struct Observed {
    published: Vec<Answer>,
    outwards: Vec<Answer>,
    direct: Vec<Answer>,
    into: f64,
    out: f64,
    sysctls: Vec<String>,
}

impl Observed {
    /// Looks from everywhere. Where `admitted`, answers are waited for; elsewhere their absence is.
    pub(crate) fn now(lab: &Lab, container: &Netns, admitted: bool, sysctls: &[(String, String)]) -> Observed {
        let addresses = addresses(container);
        // Between host and container, where no firewall is in the way before.
        let into = throughput(&lab.host, container, Proto::Tcp, &at(&addresses[0], 5001), SECONDS);
        let out = throughput(container, &lab.host, Proto::Tcp, &at(lab::HOST[0], 5001), SECONDS);
        Observed {
            published: ask(&lab.client, &each(&lab::HOST, PORTS.0), admitted),
            outwards: ask(container, &each(&lab::CLIENT, PORTS.1), admitted),
            direct: ask(&lab.client, &each(&addresses, PORTS.1), false),
            into: into.bits_per_second(),
            out: out.bits_per_second(),
            sysctls: sysctls.iter().map(|(key, _)| container.sysctl(&key.replace('.', "/"))).collect(),
        }
    }

    /// Shows `self` beside `after`, and claims that the difference is the one the chain was to make.
    pub(crate) fn compare(&self, after: &Observed, wanted: &[(String, String)], screen: &Screen) {
        screen.columns("before", "after");
        let answers = [
            ("client → host:8080", &self.published, &after.published, Some(TOKENS.0)),
            ("container → client", &self.outwards, &after.outwards, Some(TOKENS.1)),
            ("client → container directly", &self.direct, &after.direct, None),
        ];
        for (way, before, after, token) in answers {
            for ((label, before), after) in labels().iter().zip(before).zip(after) {
                let is_true = before.is_err() && after.as_ref().ok().map(String::as_str) == token;
                screen.row(&format!("{way}  {label}"), &shown(before), &shown(after), is_true);
            }
        }
        let limits = [("into", self.into, after.into, LIMITS.0), ("out of", self.out, after.out, LIMITS.1)];
        for (way, before, after, limit) in limits {
            // The limit holds from the first byte on, and it is made use of.
            let bits = f64::from(limit) * 1e6;
            let is_true = (0.6 * bits..1.15 * bits).contains(&after) && before > 2.0 * bits;
            screen.row(&format!("{way} the container, limit {limit}M"), &rate(before), &rate(after), is_true);
        }
        for ((before, after), (key, wanted)) in self.sysctls.iter().zip(&after.sysctls).zip(wanted) {
            let is_true = after == wanted && before != wanted;
            screen.row(&format!("{key} in the container"), before, after, is_true);
        }
    }
}

/// Where the published port doesn't answer, and how.
pub(crate) fn lost(client: &Netns) -> Vec<(String, String)> {
    let answers = ask(client, &each(&lab::HOST, PORTS.0), false);
    labels().into_iter().zip(answers).filter_map(|(label, answer)| answer.err().map(|why| (label, why))).collect()
}

/// [`lost`], for the reader.
pub(crate) fn summary(lost: &[(String, String)]) -> String {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (label, why) in lost {
        reasons.entry(why).or_default().push(label);
    }
    let all: Vec<String> = reasons.iter().map(|(why, labels)| format!("{}: {why}", labels.join(", "))).collect();
    if all.is_empty() { "everything answers".into() } else { all.join("; ") }
}

/// Asks everywhere at once.
fn ask(from: &Netns, places: &[(Proto, String)], admitted: bool) -> Vec<Answer> {
    let limit = if admitted { PATIENCE } else { BRIEFLY };
    let question = |(proto, address): &(Proto, String)| Fetch::new(*proto, address).within(limit).from(from);
    std::thread::scope(|scope| {
        let asking: Vec<_> = places.iter().map(|place| scope.spawn(move || question(place))).collect();
        let answers = asking.into_iter().map(|thread| thread.join().expect("a question panicked"));
        answers.map(|answer| answer.map(|reply| reply.token).map_err(|error| error.to_string())).collect()
    })
}

fn shown(answer: &Answer) -> String {
    answer.as_ref().map_or_else(Clone::clone, |token| format!("\"{token}\""))
}

fn rate(bits: f64) -> String {
    if bits >= 1e9 { format!("{:.1} Gbit/s", bits / 1e9) } else { format!("{:.1} Mbit/s", bits / 1e6) }
}

/// Every protocol at every address.
fn each(addresses: &[impl AsRef<str>], port: u16) -> Vec<(Proto, String)> {
    let of = |proto: Proto| addresses.iter().map(move |address| (proto, at(address.as_ref(), port)));
    Proto::ALL.into_iter().flat_map(of).collect()
}

/// The order of [`each`], for the reader.
fn labels() -> Vec<String> {
    let of = |proto: Proto| ["IPv4", "IPv6"].map(|family| format!("{proto} {family}"));
    Proto::ALL.into_iter().flat_map(of).collect()
}

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The container's global addresses: IPv4, then IPv6.
fn addresses(container: &Netns) -> Vec<String> {
    let shown = container.run("ip -o address show dev eth0 scope global");
    let addresses = shown.lines().filter_map(|line| line.split_whitespace().nth(3));
    let mut addresses: Vec<String> = addresses.filter_map(|a| a.split('/').next()).map(str::to_owned).collect();
    addresses.sort_by_key(|address| address.contains(':'));
    assert_eq!(addresses.len(), 2, "the container should have an IPv4 and an IPv6 address:\n{shown}");
    addresses
}
