//! STATUS can be asked every few seconds for ever: it starts nothing, changes nothing, and doesn't change its mind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Instant;

use netns_tests::{Lab, Plugin};
use serde_json::{Value, json};

/// How often it is asked.
const TIMES: usize = 1000;

/// System calls by which a program could change what outlives it, or start another one.
const CHANGING: &str = "trace=execve,execveat,fork,vfork,clone,clone3,mkdir,mkdirat,rmdir,unlink,unlinkat,rename,\
                        renameat,renameat2,link,linkat,symlink,symlinkat,truncate,ftruncate,chmod,fchmod,fchmodat,\
                        chown,fchown,fchownat,mknod,mknodat,mount,umount2,open,openat,creat,setns,unshare";

fn config(plugin: &str) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": plugin});
    match plugin {
        "bandwidth" => {
            config["ingressRate"] = json!(8_000_000);
            config["ingressBurst"] = json!(800_000);
        }
        "tuning" => config["sysctl"] = json!({"net.core.somaxconn": "512"}),
        _ => {}
    }
    config
}

fn asked(mut command: Command, config: &Value) -> Command {
    let mut stdin = tempfile::tempfile().unwrap();
    write!(stdin, "{config}").unwrap();
    stdin.rewind().unwrap();
    command.env("CNI_COMMAND", "STATUS").env("CNI_PATH", "/opt/cni/bin").stdin(stdin);
    command
}

fn can_be_asked_for_ever(plugin: &str) {
    let lab = Lab::new();
    let path = Plugin::ours(plugin).path().to_owned();
    let before = lab.host.snapshot();

    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut strace = lab.host.command("strace");
    strace.args(["-f", "-y", "-qq", "-e", CHANGING, "-o"]).arg(trace.path()).arg(&path);
    let output = asked(strace, &config(plugin)).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let calls = std::fs::read_to_string(trace.path()).unwrap();
    let own = format!("<net:[{}]>", std::fs::metadata(lab.host.path()).unwrap().ino());
    let mut lines = calls.lines();
    assert!(lines.next().unwrap().contains("execve("), "the plugin itself: {calls}");
    for line in lines {
        let only_reads = line.contains("open") && !["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|f| line.contains(f));
        // A file without a name shows whether the directory can be written, and is gone with its descriptor; what could
        // give it a name (linkat) is in the trace.
        let is_nameless = line.contains("O_TMPFILE");
        // Entering the namespace that one is in changes nothing, and shows whether another could be.
        let stays = line.contains("setns(") && line.contains(&own);
        assert!(only_reads || is_nameless || stays, "STATUS of {plugin} does this: {line}");
    }

    let begun = Instant::now();
    for n in 0..TIMES {
        let output = asked(lab.host.command(&path), &config(plugin)).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "the {n}th time: {output:?}");
    }
    println!(
        "STATUS of {plugin}: {:.2} ms, starting the program included",
        begun.elapsed().as_secs_f64() * 1e3 / TIMES as f64
    );
    lab.host.assert_same_as(&before);
}

#[test]
fn portmap_can_be_asked_for_ever() {
    can_be_asked_for_ever("portmap");
}

#[test]
fn bandwidth_can_be_asked_for_ever() {
    can_be_asked_for_ever("bandwidth");
}

#[test]
fn firewall_can_be_asked_for_ever() {
    can_be_asked_for_ever("firewall");
}

#[test]
fn tuning_can_be_asked_for_ever() {
    can_be_asked_for_ever("tuning");
}
