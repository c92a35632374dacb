//! What is nearly a real call is understood, or refused in the words of the protocol; and no panic, whatever it is.
//!
//! Nothing is run and nothing opened: the plugins' libraries interpret each call as they do before they look at the host.
//! `CNI_CHAIN_MUTANTS` sets how many calls a plugin gets (default 5,000). One in five hundred has a list of megabytes.
//!
//! What each takes of memory is counted by the allocator of this program, and held against its length. A call that takes a minute of
//! the processor hangs: it ends the program with its story.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::Plugin;
use common::cni::decode::MEMORY_MAX;
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
    if random.below(500) == 0 {
        bytes = swollen(&bytes, random);
    }
    (env, bytes)
}

/// `bytes` with one of its lists or objects filled up to megabytes, if it has any.
fn swollen(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let places: Vec<usize> = (0..bytes.len()).filter(|at| matches!(bytes[*at], b'[' | b'{')).collect();
    if places.is_empty() {
        return bytes.to_vec();
    }
    let at = *random.of(&places);
    let entries: [&[u8]; 4] = if bytes[at] == b'[' {
        [b"0,", b"{},", b"\"a\",", b"[{}],"]
    } else {
        [b"\"\":0,", b"\"a\":{},", b"\"mac\":1,", b"\"x\":[],"]
    };
    let number = [1_000, 100_000, 1_000_000][random.below(3)];
    let (head, tail) = bytes.split_at(at + 1);
    [head, &random.of(&entries).repeat(number), tail].concat()
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
    let (mut told, mut longest, mut largest) = (BTreeMap::<u64, usize>::new(), Duration::ZERO, 0);
    let watch = Watch::over_this_thread();
    for _ in 0..number {
        let verb = *random.of(&Verb::ALL[..5]);
        let call = *random.of(&calls);
        let words = spoilt(call, &mut random);
        let story = || {
            let stdin = words.1.get(..10_000).unwrap_or(&words.1);
            format!("{verb:?} {:?}\n{}", words.0, String::from_utf8_lossy(stdin))
        };
        watch.begin(story());
        let begin = Instant::now();
        let (word, taken) = memory::taken_by(|| std::panic::catch_unwind(|| word_of::<P>(verb, &words)));
        longest = longest.max(begin.elapsed());
        largest = largest.max(taken);
        let length = words.1.len() + words.0.values().map(|value| value.len()).sum::<usize>();
        // What a byte of JSON becomes at the most, of which no more than the bound of a whole document: the values, and what is made of them.
        let most = (64 << 10) + (length * 64).min(MEMORY_MAX + (16 << 20));
        assert!(taken <= most, "{taken} bytes of memory for {length} of input: {}", story());
        let word = word.unwrap_or_else(|_| panic!("{}", story()));
        if let Err(error) = &word {
            std::panic::catch_unwind(|| assert_is_of_the_protocol(error)).unwrap_or_else(|_| panic!("{}", story()));
        }
        *told.entry(word.err().map_or(0, |error| error.code().into())).or_default() += 1;
    }
    println!(
        "{}: {number} mutants by the code of the answer: {told:?}; the longest took {longest:?}, the largest {largest} bytes",
        P::NAME
    );
    assert!(told.get(&0).is_some_and(|n| n * 100 > number), "hardly any was understood: {told:?}");
    assert!([4, 6, 7].iter().all(|code| told.contains_key(code)), "{told:?}");
}

/// Memory by the count of the allocator. `unsafe` because an allocator is.
#[allow(unsafe_code)]
mod memory {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<usize> = const { Cell::new(0) };
        static MOST: Cell<usize> = const { Cell::new(0) };
    }

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    fn add(bytes: usize) {
        let now = NOW.get().wrapping_add(bytes);
        NOW.set(now);
        // Below nought is what another thread had allocated.
        if now < usize::MAX / 2 {
            MOST.set(MOST.get().max(now));
        }
    }

    // SAFETY: all is the system's; the counts are cells of the thread that need no memory of their own.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            add(layout.size());
            // SAFETY: what the caller promises is what the system asks for.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
            NOW.set(NOW.get().wrapping_sub(layout.size()));
            // SAFETY: what the caller promises is what the system asks for.
            unsafe { System.dealloc(place, layout) }
        }

        unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            NOW.set(NOW.get().wrapping_sub(layout.size()));
            add(size);
            // SAFETY: what the caller promises is what the system asks for.
            unsafe { System.realloc(place, layout, size) }
        }
    }

    /// What `work` gives, and the most bytes that this thread had allocated meanwhile beyond those of before.
    pub(super) fn taken_by<T>(work: impl FnOnce() -> T) -> (T, usize) {
        let before = NOW.get();
        MOST.set(before);
        let done = work();
        (done, MOST.get().saturating_sub(before))
    }
}

/// Notices a call that takes a minute of the processor. Others may have it as long as they like.
struct Watch {
    current: Arc<Mutex<(u64, String)>>,
}

impl Watch {
    fn over_this_thread() -> Watch {
        let current = Arc::new(Mutex::new((0, String::new())));
        let worker = format!("/proc/self/task/{}/stat", nix::unistd::gettid());
        let watched = Arc::downgrade(&current);
        std::thread::spawn(move || {
            let mut since = (0, 0);
            while let Some(current) = watched.upgrade() {
                let number = current.lock().unwrap().0;
                let ticks = std::fs::read_to_string(&worker).map_or(0, |stat| ticks(&stat));
                if since.0 != number {
                    since = (number, ticks);
                } else if ticks - since.1 > 60 * 100 {
                    eprintln!("a call hangs: {}", current.lock().unwrap().1);
                    std::process::abort();
                }
                drop(current);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Watch { current }
    }

    fn begin(&self, story: String) {
        let mut current = self.current.lock().unwrap();
        *current = (current.0 + 1, story);
    }
}

/// Hundredths of a second that a thread has run (proc(5), `utime` and `stime`).
fn ticks(stat: &str) -> u64 {
    let behind = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    behind.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
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
