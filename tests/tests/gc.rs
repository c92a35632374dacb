//! GC removes all that is stale in one transaction, and only that.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Seek, Write};

use netns_tests::trace::{Sent, sent};
use netns_tests::{Lab, Plugin, Target, Verb};
use serde_json::{Value, json};

/// Attachments that are gone.
const STALE: usize = 40;

fn config(plugin: &str, n: usize, prev: &Value) -> Value {
    let mut prev = prev.clone();
    prev["ips"] = json!([{"interface": 2, "address": format!("10.88.1.{n}/16"), "gateway": "10.88.0.1"}]);
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": plugin, "prevResult": prev});
    match plugin {
        "portmap" => {
            let mapping = json!({"hostPort": 10_000 + n, "containerPort": 80, "protocol": "tcp"});
            config["runtimeConfig"] = json!({"portMappings": [mapping]});
        }
        // Each another one, so that each has something to put back.
        "tuning" => config["mtu"] = json!(1400 + n),
        _ => {}
    }
    config
}

/// ADDs many attachments, lets GC keep one of them under strace(1), and counts the kernel transactions.
fn goes_in_one_transaction(plugin: &str, what_remains: &str) -> usize {
    let lab = Lab::new();
    let container = lab.container(2);
    let (prev, target) = (container.prev_result("1.1.0"), container.target());
    let named = |n: usize| Target { container: format!("c{n}"), ..target.clone() };
    let executable = Plugin::ours(plugin);
    executable.call(&lab.host, Verb::Add, &config(plugin, 0, &prev), &named(0)).succeeds();
    let one = lab.host.run(what_remains);
    for n in 1..=STALE {
        executable.call(&lab.host, Verb::Add, &config(plugin, n, &prev), &named(n)).succeeds();
    }
    assert_ne!(lab.host.run(what_remains), one);

    let stdin = json!({"cniVersion": "1.1.0", "name": "net", "type": plugin,
                       "cni.dev/valid-attachments": [{"containerID": "c0", "ifname": "eth0"}]});
    let mut file = tempfile::tempfile().unwrap();
    write!(file, "{stdin}").unwrap();
    file.rewind().unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut strace = lab.host.command("strace");
    strace.args(["-f", "-qq", "-e", "trace=sendmsg", "-o"]).arg(trace.path()).arg(executable.path());
    let output = strace.env("CNI_COMMAND", "GC").stdin(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lab.host.run(what_remains), one, "what is alive remains, and nothing else");
    let sent = sent(&std::fs::read_to_string(trace.path()).unwrap());
    sent.into_iter().filter(|s| *s == Sent::Transaction).count()
}

#[test]
fn of_portmap() {
    assert_eq!(goes_in_one_transaction("portmap", "nft list table inet cni_chain_portmap"), 1);
}

#[test]
fn of_firewall() {
    assert_eq!(goes_in_one_transaction("firewall", "nft list table inet cni_chain_firewall"), 1);
}

#[test]
fn of_tuning_which_has_files_only() {
    assert_eq!(goes_in_one_transaction("tuning", "ls /run/cni/tuning"), 0);
}
