//! What is nearly a real call is understood, or refused in the words of the protocol; and no panic, whatever it is.
//!
//! Nothing is run and nothing opened: the plugins' libraries interpret each call as they do before they look at the host.
//! `CNI_CHAIN_MUTANTS` sets how many calls a plugin gets (default 5,000).
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use common::Plugin;
use common::cni::env::{Environment, Verb};
use common::cni::error::Error;
use common::cni::version::Version;
use netns_tests::mutation::{Random, garbled, mutant};
use netns_tests::recorded::{Call, recordings};
use serde_json::{Value, json};

/// Values of variables, some of them good.
const VALUES: [&[u8]; 20] = [
    b"",
    b" ",
    b"c1",
    b"eth0",
    b"/run/netns/x",
    b"-x",
    b"..",
    b"../../etc/passwd",
    b"a/b",
    b"a b",
    b"a\nb",
    b"a:b",
    b"0123456789abcdef",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"K=V",
    b"IgnoreUnknown=1;K8S_POD_NAME=p",
    b";;=;==;a=;=b",
    b"1",
    b"true",
];

/// A call: the variables and stdin.
type Words = (BTreeMap<String, OsString>, Vec<u8>);

fn spoilt(call: &Call, random: &mut Random) -> Words {
    let env = call.env_for("/run/netns/x").into_iter();
    let mut env: BTreeMap<String, OsString> = env.map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut config = call.config();
    // Every verb is defined in 1.1.0 only.
    if random.below(8) > 0 {
        config["cniVersion"] = "1.1.0".into();
    }
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let kind = random.below(4);
    let mut bytes = if kind == 0 { config } else { mutant(&config, random) }.to_string().into_bytes();
    if kind == 1 {
        bytes = garbled(bytes, random);
    }
    if kind != 3 {
        for _ in 0..=random.below(2) {
            let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_NETNS_OVERRIDE", "CNI_PATH"];
            let value = match random.below(8) {
                0 => vec![b'a'; 70_000],
                1 => (0..random.below(40)).map(|_| random.below(255) as u8 + 1).collect(),
                _ => random.of(&VALUES).to_vec(),
            };
            env.insert((*random.of(&names)).to_owned(), OsString::from_vec(value));
        }
    }
    (env, bytes)
}

/// Lets the plugin interpret a call; `Ok` if it understands it. Fails the test if what it says is out of protocol.
fn word_of<P: Plugin>(verb: Verb, (env, stdin): &Words) -> Result<(), Error> {
    let read = Environment::read(verb, &|name| env.get(name).cloned());
    let (call, _, prev) = read.and_then(|env| common::plugin::interpret::<P>(env, stdin))?;
    if matches!(verb, Verb::Add | Verb::Check | Verb::Del) {
        let Attached { container, ifname } = Attached::of(&call);
        let is_safe = |text: &str| !text.is_empty() && !text.contains(['/', '\0', '\n', ' ']) && text != "..";
        assert!(is_safe(container) && is_safe(ifname) && ifname.len() < 16, "{container:?} {ifname:?} were taken");
    }
    let name = &call.attachment.network;
    assert!(!name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.'), "{name:?} was taken");
    match prev.filter(|_| verb == Verb::Add) {
        Some(prev) => prev.to_document(call.version).map(drop),
        None => Ok(()),
    }
}

/// What names of files and of the kernel's are made from.
struct Attached<'a> {
    container: &'a str,
    ifname: &'a str,
}

impl<'a> Attached<'a> {
    fn of(call: &'a common::Call) -> Attached<'a> {
        Attached { container: &call.attachment.container, ifname: &call.attachment.ifname }
    }
}

fn assert_is_of_the_protocol(error: &Error) {
    let document = serde_json::to_value(error.to_document(Version::LATEST.as_str())).unwrap();
    let code = document["code"].as_u64().unwrap();
    // SPEC.md, "Error": ours begin at 100, and are about what the kernel holds, which was not asked.
    assert!((1..=99).contains(&code), "{document}");
    assert!(document["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{document}");
    assert_eq!(document["cniVersion"], "1.1.0");
}

fn mutants_are_understood_or_refused<P: Plugin>() {
    let number = std::env::var("CNI_CHAIN_MUTANTS").map_or(5_000, |v| v.parse().unwrap());
    let calls: Vec<Call> = recordings().iter().flat_map(|recording| Call::all(recording)).collect();
    let is_object = |c: &&Call| serde_json::from_str::<Value>(&c.stdin).is_ok_and(|json| json.is_object());
    let calls: Vec<&Call> =
        calls.iter().filter(|c| c.plugin == P::NAME && c.verb() == "ADD").filter(is_object).collect();
    let mut random = Random::new(0x2545_f491_4f6c_dd1d);
    let (mut told, mut longest) = (BTreeMap::<u64, usize>::new(), Duration::ZERO);
    for _ in 0..number {
        let verb = *random.of(&Verb::ALL[..5]);
        let call = *random.of(&calls);
        let words = spoilt(call, &mut random);
        let begin = Instant::now();
        let word = std::panic::catch_unwind(|| word_of::<P>(verb, &words));
        longest = longest.max(begin.elapsed());
        let story = || format!("{verb:?} {:?}\n{}", words.0, String::from_utf8_lossy(&words.1));
        let word = word.unwrap_or_else(|_| panic!("{}", story()));
        if let Err(error) = &word {
            std::panic::catch_unwind(|| assert_is_of_the_protocol(error)).unwrap_or_else(|_| panic!("{}", story()));
        }
        *told.entry(word.err().map_or(0, |error| error.code().into())).or_default() += 1;
    }
    println!("{}: {number} mutants by the code of the answer: {told:?}; the longest took {longest:?}", P::NAME);
    assert!(told.get(&0).is_some_and(|n| n * 100 > number), "hardly any was understood: {told:?}");
    assert!([4, 6, 7].iter().all(|code| told.contains_key(code)), "{told:?}");
}

#[test]
fn mutants_are_understood_or_refused_by_portmap() {
    mutants_are_understood_or_refused::<portmap::Portmap>();
}

#[test]
fn mutants_are_understood_or_refused_by_bandwidth() {
    mutants_are_understood_or_refused::<bandwidth::Bandwidth>();
}

#[test]
fn mutants_are_understood_or_refused_by_firewall() {
    mutants_are_understood_or_refused::<firewall::Firewall>();
}

#[test]
fn mutants_are_understood_or_refused_by_tuning() {
    mutants_are_understood_or_refused::<tuning::Tuning>();
}
