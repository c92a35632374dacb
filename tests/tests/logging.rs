//! What a plugin writes besides its answer: one line of JSON a call, and never into a file that isn't meant.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use netns_tests::{Host, Outcome, Plugin};
use serde_json::{Value, json};

const CONFIG: &str =
    r#"{"cniVersion":"1.1.0","name":"net","type":"tuning","prevResult":{"ips":[{"address":"10.0.0.2/24"}]}}"#;

fn call(host: &Host, log: &str, verb: &str, stdin: &str, more: &[(&str, &str)]) -> Outcome {
    let mut env = vec![
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/gone"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_CHAIN_LOG_FILE", log),
    ];
    env.extend(more);
    Plugin::ours("tuning").call_with_env(host, &env, stdin.as_bytes())
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_call_appends_one_line_that_says_who_what_and_how() {
    let (host, dir) = (Host::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("calls.log");
    let log = path.to_str().unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0";
    call(&host, log, "ADD", CONFIG, &[("CNI_ARGS", args), ("TRACEPARENT", trace)]).succeeds();
    call(&host, log, "ADD", &CONFIG.replace("prevResult", "x-none"), &[("TRACEPARENT", "")]).fails_with(7);
    call(&host, log, "FROB", CONFIG, &[]).fails_with(4);
    call(&host, log, "VERSION", "", &[]).succeeds();

    let mut lines = lines(&path);
    assert_eq!(lines.len(), 4);
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        let since = line.remove("time").and_then(|t| t.as_f64()).unwrap();
        assert!(since > 1.7e9, "seconds since the epoch: {since}");
        assert!(line.remove("duration_us").unwrap().is_u64());
    }
    assert_eq!(
        lines[0],
        json!({"plugin": "tuning", "verb": "ADD", "network": "net", "container": "c1", "ifname": "eth0",
               "pod": "shop/cart-0", "traceparent": trace, "outcome": "ok"})
    );
    assert_eq!((&lines[1]["outcome"], &lines[1]["code"]), (&json!("error"), &json!(7)));
    assert!(lines[1].get("traceparent").is_none(), "{}", lines[1]);
    assert!(lines[1]["msg"].as_str().unwrap().starts_with("must be called as chained plugin"));
    assert_eq!((&lines[2]["verb"], &lines[2]["code"]), (&json!("FROB"), &json!(4)));
    assert_eq!(lines[3], json!({"plugin": "tuning", "verb": "VERSION", "outcome": "ok"}));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn lines_of_calls_at_the_same_time_do_not_mix() {
    let (host, dir) = (Host::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("calls.log");
    // Long, so that a line written in pieces would be torn.
    let name = "p".repeat(60_000);
    let args = format!("IgnoreUnknown=1;K8S_POD_NAME={name}");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    call(&host, path.to_str().unwrap(), "DEL", CONFIG, &[("CNI_ARGS", &args)]).succeeds();
                }
            });
        }
    });
    let lines = lines(&path);
    assert_eq!(lines.len(), 40);
    assert!(lines.iter().all(|line| line["pod"] == name.as_str() && line["outcome"] == "ok"));
}

/// The call is what matters: it succeeds, with a warning on stderr, and what the name leads to stays as it is.
#[test]
fn a_log_file_that_could_be_a_trap_is_left_alone() {
    let (host, dir) = (Host::new(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("victim"), "untouched").unwrap();
    symlink(at("victim"), at("symlink")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    std::fs::hard_link(at("victim"), at("hardlink")).unwrap();
    host.run(&format!("mkfifo {}", at("fifo").display()));
    std::fs::write(at("foreign"), "untouched").unwrap();
    std::os::unix::fs::chown(at("foreign"), Some(65534), Some(65534)).unwrap();
    let mut traps: Vec<String> = ["symlink", "dangling", "hardlink", "fifo", "foreign", "", "no/such/directory"]
        .map(|name| at(name).display().to_string())
        .into();
    traps.extend(["relative.log".to_owned(), "/dev/null".to_owned(), "/".to_owned()]);
    for trap in &traps {
        let outcome = call(&host, trap, "DEL", CONFIG, &[]);
        outcome.succeeds();
        assert!(outcome.stderr.contains("warn: CNI_CHAIN_LOG_FILE"), "{trap}: {}", outcome.call());
    }
    for name in ["victim", "foreign"] {
        assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "untouched");
    }
    assert!(!at("nowhere").exists());
}

#[test]
fn stderr_is_as_loud_as_it_was_asked_to_be() {
    let host = Host::new();
    let misspelt = CONFIG.replace("\"type\"", "\"sysctll\":{},\"type\"");
    for (level, speaks) in [("", true), ("warn", true), ("error", false), ("off", false), ("nonsense", true)] {
        let outcome = call(&host, "", "ADD", &misspelt, &[("CNI_CHAIN_LOG", level)]);
        outcome.succeeds();
        assert_eq!(outcome.stderr.contains("was \"sysctl\" meant?"), speaks, "{level:?}: {}", outcome.stderr);
        let is_told = outcome.stderr.contains("warn: CNI_CHAIN_LOG is \"nonsense\"; it can be off, error, warn");
        assert_eq!(is_told, level == "nonsense", "{level:?}: {}", outcome.stderr);
    }
}

/// Neither a closed stderr nor one that is full is a reason to fail, or to panic.
#[test]
fn a_stderr_that_cannot_be_written_changes_nothing() {
    let host = Host::new();
    let path = Plugin::ours("tuning").path().display().to_string();
    for redirection in ["2>&-", "2>/dev/full"] {
        let mut command = host.command("sh");
        let output = command.args(["-c", &format!("exec {path} {redirection}")]).env_remove("CNI_COMMAND").output();
        let output = output.unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{redirection}: {output:?}");
    }
}
