//! What `cni-chain` does with a conflist, seen by plugins that write down everything they are told.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use netns_tests::Netns;
use serde_json::{Value, json};

/// A directory of plugins that log each call, beside a cache and a conflist.
struct Stage {
    dir: tempfile::TempDir,
    netns: Netns,
}

/// What a call of `cni-chain` gave.
struct Done {
    output: Output,
}

impl Done {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout).unwrap_or_else(|e| panic!("not one document: {e}: {}", self.text()))
    }

    #[track_caller]
    fn exits(self, code: i32) -> Done {
        assert_eq!(self.output.status.code(), Some(code), "{}", self.text());
        assert!(!self.text().contains("panicked"), "{}", self.text());
        self
    }

    fn text(&self) -> String {
        let stdout = String::from_utf8_lossy(&self.output.stdout);
        format!("{stdout}\n--- stderr\n{}", String::from_utf8_lossy(&self.output.stderr))
    }
}

const ALL_VERSIONS: &str = r#"["0.3.1","0.4.0","1.0.0","1.1.0"]"#;

/// Prints a result with one more address than it was given interfaces; enough to tell the plugins of a chain apart.
fn adds_interface(name: &str) -> String {
    format!(r#"echo '{{"cniVersion":"1.1.0","interfaces":[{{"name":"{name}"}}],"ips":[{{"address":"10.0.0.2/24"}}]}}'"#)
}

impl Stage {
    fn new() -> Stage {
        let stage = Stage { dir: tempfile::tempdir().unwrap(), netns: Netns::new("container") };
        std::fs::create_dir(stage.path("bin")).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin that logs, then runs `add` for ADD and `other` for all but VERSION.
    fn plugin(&self, name: &str, add: &str, other: &str) {
        self.speaking(name, ALL_VERSIONS, add, other);
    }

    fn speaking(&self, name: &str, versions: &str, add: &str, other: &str) {
        let dir = self.dir.path().display();
        let script = format!(
            "#!/bin/sh\n\
             cat > {dir}/$CNI_COMMAND.{name}.stdin\n\
             env | sort > {dir}/$CNI_COMMAND.{name}.env\n\
             echo \"$CNI_COMMAND {name}\" >> {dir}/log\n\
             case $CNI_COMMAND in\n\
             VERSION) echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":{versions}}}' ;;\n\
             ADD) {add} ;;\n\
             *) {other} ;;\n\
             esac\n"
        );
        let path = self.path("bin").join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Three plugins that succeed, and their conflist.
    fn three(&self, version: &str) {
        for name in ["first", "second", "third"] {
            self.plugin(name, &adds_interface(name).replace("1.1.0", version), "true");
        }
        self.conflist(&json!({"cniVersion": version, "name": "net", "plugins": [
            {"type": "first", "own": 1}, {"type": "second", "capabilities": {"portMappings": true}}, {"type": "third"},
        ]}));
    }

    fn conflist(&self, list: &Value) {
        std::fs::write(self.path("net.conflist"), list.to_string()).unwrap();
    }

    fn run(&self, verb: &str, rest: &[&str]) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cni-chain"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("SECRET", "s")
            .env("CNI_CHAIN_LOG", "info");
        command.env("CNI_CONTAINERID", "of-someone-else").env("TRACEPARENT", "00-a-b-01");
        command.arg(verb).arg("--path").arg(self.path("bin")).arg("--cache-dir").arg(self.path("cache"));
        command.arg(self.path("net.conflist")).args(rest);
        Done { output: command.output().unwrap() }
    }

    fn on_netns(&self, verb: &str, rest: &[&str]) -> Done {
        let netns = self.netns.path();
        let words: Vec<&str> =
            [netns.as_str(), "--container-id", "c1"].into_iter().chain(rest.iter().copied()).collect();
        self.run(verb, &words)
    }

    /// The calls since the last look, without VERSION.
    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("log"));
        log.lines().filter(|l| !l.starts_with("VERSION")).map(str::to_owned).collect()
    }

    #[track_caller]
    fn stdin(&self, verb: &str, plugin: &str) -> Value {
        let text = std::fs::read_to_string(self.path(&format!("{verb}.{plugin}.stdin"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn environment(&self, verb: &str, plugin: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(&format!("{verb}.{plugin}.env"))).unwrap();
        let of_sh = ["PWD=", "_=", "SHLVL=", "OLDPWD="];
        text.lines().filter(|l| !of_sh.iter().any(|s| l.starts_with(s))).map(str::to_owned).collect()
    }

    fn cached(&self) -> PathBuf {
        self.path("cache/results/net-c1-eth0")
    }
}

#[test]
fn add_passes_each_result_on_and_remembers_the_last() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let done = stage.on_netns("add", &["--json", "--port", "8080:80", "--args", "B=2;A=1"]).exits(0);
    assert_eq!(stage.log(), ["ADD first", "ADD second", "ADD third"]);

    let first = stage.stdin("ADD", "first");
    assert_eq!(first, json!({"type": "first", "own": 1, "cniVersion": "1.0.0", "name": "net"}));
    let second = stage.stdin("ADD", "second");
    assert_eq!(second["prevResult"]["interfaces"][0]["name"], "first");
    assert_eq!(second["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
    let third = stage.stdin("ADD", "third");
    assert_eq!(third["prevResult"]["interfaces"][0]["name"], "second");
    assert_eq!(third.get("runtimeConfig"), None, "it declares no capability");

    assert_eq!(done.json()["result"]["interfaces"][0]["name"], "third");
    let cached: Value = serde_json::from_slice(&std::fs::read(stage.cached()).unwrap()).unwrap();
    assert_eq!((&cached["kind"], &cached["containerId"]), (&json!("cniCacheV1"), &json!("c1")));
    assert_eq!(cached["result"]["interfaces"][0]["name"], "third");
    assert_eq!(cached["cniArgs"], json!([["B", "2"], ["A", "1"]]));
    assert_eq!(cached["capabilityArgs"]["portMappings"][0]["containerPort"], 80);
}

#[test]
fn plugins_see_only_the_environment_of_the_protocol() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.on_netns("add", &["--ifname", "net1", "--args", "A=1;B=2"]).exits(0);
    let expected: Vec<String> = [
        "CNI_ARGS=A=1;B=2".into(),
        "CNI_CHAIN_LOG=info".into(),
        "CNI_COMMAND=ADD".into(),
        "CNI_CONTAINERID=c1".into(),
        "CNI_IFNAME=net1".into(),
        format!("CNI_NETNS={}", stage.netns.path()),
        format!("CNI_PATH={}", stage.path("bin").display()),
        format!("PATH={}", std::env::var("PATH").unwrap()),
        "TRACEPARENT=00-a-b-01".into(),
    ]
    .into();
    assert_eq!(stage.environment("ADD", "first"), expected);
}

#[test]
fn check_and_del_get_the_last_result_and_what_add_was_given() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.on_netns("add", &["--port", "8080:80"]).exits(0);
    stage.log();
    stage.on_netns("check", &[]).exits(0);
    assert_eq!(stage.log(), ["CHECK first", "CHECK second", "CHECK third"]);
    stage.on_netns("del", &[]).exits(0);
    assert_eq!(stage.log(), ["DEL third", "DEL second", "DEL first"]);
    for verb in ["CHECK", "DEL"] {
        assert_eq!(stage.stdin(verb, "first")["prevResult"]["interfaces"][0]["name"], "third", "{verb}");
        assert_eq!(stage.stdin(verb, "second")["runtimeConfig"]["portMappings"][0]["hostPort"], 8080, "{verb}");
    }
    assert!(!stage.cached().exists());
    stage.on_netns("del", &[]).exits(0);
    assert_eq!(stage.stdin("DEL", "first").get("prevResult"), None, "nothing is remembered any more");
}

#[test]
fn del_goes_on_after_failures_reports_all_and_can_be_repeated() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.on_netns("add", &[]).exits(0);
    let fails = r#"echo '{"code":11,"msg":"busy"}'; exit 1"#;
    stage.plugin("third", "true", fails);
    stage.plugin("second", "true", "echo oops; exit 3");
    stage.log();
    let done = stage.on_netns("del", &["--json"]).exits(1);
    assert_eq!(stage.log(), ["DEL third", "DEL second", "DEL first"]);
    let json = done.json();
    assert_eq!(json["plugins"][0]["error"], json!({"code": 11, "msg": "busy", "next": "repeat the command"}));
    assert!(json["plugins"][1]["error"]["msg"].as_str().unwrap().contains("oops"), "{json}");
    assert_eq!(json["plugins"][2]["ok"], true);
    assert!(stage.cached().exists(), "the repeated DEL needs it");

    let text = stage.on_netns("del", &[]).exits(1).text();
    assert!(text.contains("DEL of net failed: third, second"), "{text}");
    stage.plugin("third", "true", "true");
    stage.plugin("second", "true", "true");
    stage.on_netns("del", &[]).exits(0);
    assert!(stage.stdin("DEL", "second").get("prevResult").is_some());
    assert!(!stage.cached().exists());
}

#[test]
fn a_failed_add_names_the_plugin_and_undoes_the_chain_in_reverse() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let fails =
        r#"echo "second: looked here" >&2; echo '{"code":100,"msg":"port taken","details":"by another"}'; exit 1"#;
    stage.plugin("second", fails, "true");
    let text = stage.on_netns("add", &[]).exits(1).text();
    for part in ["✗ second", "port taken (code 100)", "by another", "second: looked here", "has been undone"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(stage.log(), ["ADD first", "ADD second", "DEL third", "DEL second", "DEL first"]);
    assert_eq!(stage.stdin("DEL", "first").get("prevResult"), None);
    assert!(!stage.cached().exists());

    stage.on_netns("add", &["--keep"]).exits(1);
    assert_eq!(stage.log(), ["ADD first", "ADD second"]);
}

#[test]
fn a_missing_plugin_is_found_out_before_anything_is_run() {
    let stage = Stage::new();
    stage.three("1.0.0");
    std::fs::remove_file(stage.path("bin/third")).unwrap();
    let text = stage.on_netns("add", &[]).exits(1).text();
    assert!(text.contains("plugin \"third\" is not in") && text.contains("nothing was run"), "{text}");
    assert_eq!(stage.log(), [""; 0]);
    stage.on_netns("del", &[]).exits(1);
    assert_eq!(stage.log(), ["DEL second", "DEL first"], "DEL removes what it can");
}

#[test]
fn a_second_add_would_break_the_first_and_is_refused() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.on_netns("add", &[]).exits(0);
    stage.log();
    let text = stage.on_netns("add", &[]).exits(1).text();
    assert!(text.contains("net/c1/eth0 has been added already"), "{text}");
    assert_eq!(stage.log(), [""; 0]);
    stage.on_netns("add", &["--ifname", "eth1"]).exits(0);
}

#[test]
fn check_asks_all_and_says_which_differ() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let text = stage.on_netns("check", &[]).exits(1).text();
    assert!(text.contains("nothing is known of net/c1/eth0"), "{text}");
    stage.on_netns("add", &[]).exits(0);
    stage.plugin("first", "true", r#"echo '{"code":101,"msg":"differs"}'; exit 1"#);
    stage.log();
    let text = stage.on_netns("check", &[]).exits(1).text();
    assert!(text.contains("CHECK of net failed: first"), "{text}");
    assert_eq!(stage.log(), ["CHECK first", "CHECK second", "CHECK third"]);
}

#[test]
fn verbs_are_refused_where_the_version_has_none() {
    let stage = Stage::new();
    stage.three("0.3.1");
    stage.on_netns("add", &[]).exits(0);
    let text = stage.on_netns("check", &[]).exits(1).text();
    assert!(text.contains("0.3.1 has no CHECK") && text.contains("raise the conflist's cniVersion to 0.4.0"), "{text}");
    let text = stage.run("gc", &["--none-live"]).exits(1).text();
    assert!(text.contains("has no GC") && text.contains("to 1.1.0"), "{text}");
    stage.log();
    stage.on_netns("del", &[]).exits(0);
    assert_eq!(stage.stdin("DEL", "first").get("prevResult"), None, "before 0.4.0 DEL has none");
    assert!(!stage.cached().exists());
    let text = stage.run("status", &[]).exits(0).text();
    assert!(text.contains("0.3.1 has no STATUS"), "{text}");
    assert_eq!(stage.log(), ["DEL third", "DEL second", "DEL first"]);
}

#[test]
fn check_and_del_use_the_conflist_that_add_was_run_with() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.on_netns("add", &[]).exits(0);
    stage.conflist(&json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "first", "own": 2}]}));
    stage.log();
    let text = stage.on_netns("del", &[]).exits(0).text();
    assert!(text.contains("changed since ADD"), "{text}");
    assert_eq!(stage.log(), ["DEL third", "DEL second", "DEL first"]);
    assert_eq!(stage.stdin("DEL", "first")["own"], 1);
}

#[test]
fn a_network_whose_conflist_is_gone_can_still_be_removed() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.on_netns("add", &[]).exits(0);
    std::fs::remove_file(stage.path("net.conflist")).unwrap();
    stage.log();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-chain"));
    command.args(["del", "net", "--container-id", "c1", "--conf-dir"]).arg(stage.path("nothing-here"));
    command.arg("--path").arg(stage.path("bin")).arg("--cache-dir").arg(stage.path("cache"));
    Done { output: command.output().unwrap() }.exits(0);
    assert_eq!(stage.log(), ["DEL third", "DEL second", "DEL first"]);
    assert!(stage.environment("DEL", "first").contains(&format!("CNI_NETNS={}", stage.netns.path())));
}

#[test]
fn the_version_is_the_highest_that_all_plugins_speak() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.speaking("second", r#"["0.4.0","1.0.0"]"#, &adds_interface("second").replace("1.1.0", "1.0.0"), "true");
    let list = |versions: &[&str]| {
        json!({"cniVersion": "0.4.0", "cniVersions": versions, "name": "net", "plugins": [
            {"type": "first"}, {"type": "second"}, {"type": "third"}]})
    };
    stage.conflist(&list(&["1.1.0", "1.0.0", "9.0.0"]));
    let done = stage.on_netns("add", &["--json"]).exits(0);
    assert_eq!(done.json()["cniVersion"], "1.0.0");
    assert_eq!(stage.stdin("ADD", "first")["cniVersion"], "1.0.0");
    stage.on_netns("del", &[]).exits(0);

    stage.speaking("second", r#"["0.2.0"]"#, "true", "true");
    let text = stage.on_netns("add", &[]).exits(1).text();
    assert!(text.contains("second speaks 0.2.0"), "{text}");
}

#[test]
fn gc_dels_dead_attachments_then_tells_every_plugin_who_lives() {
    let stage = Stage::new();
    stage.three("1.1.0");
    let gone = Netns::new("gone");
    stage.on_netns("add", &[]).exits(0);
    stage.run("add", &[&gone.path(), "--container-id", "c2"]).exits(0);
    drop(gone);
    stage.log();
    let done = stage.run("gc", &["--from-cache", "--json"]).exits(0);
    assert_eq!(stage.log(), ["DEL third", "DEL second", "DEL first", "GC first", "GC second", "GC third"]);
    let live = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let stdin = stage.stdin("GC", "second");
    assert_eq!((&stdin["cni.dev/valid-attachments"], &stdin["cni.dev/attachments"]), (&live, &live));
    assert_eq!(stdin.get("prevResult"), None);
    assert!(!stage.environment("GC", "second").iter().any(|l| l.starts_with("CNI_CONTAINERID")));
    assert_eq!(done.json()["stale"][0]["containerId"], "c2");
    assert!(stage.cached().exists());

    stage.run("gc", &["--live", "c1:eth0", "--live", "c9:eth0"]).exits(0);
    assert_eq!(stage.stdin("GC", "first")["cni.dev/valid-attachments"].as_array().unwrap().len(), 2);
    assert!(stage.cached().exists());
    stage.run("gc", &["--none-live"]).exits(0);
    assert_eq!(stage.stdin("GC", "first")["cni.dev/valid-attachments"], json!([]));
    assert!(!stage.cached().exists());
}

#[test]
fn what_the_conflist_switches_off_is_not_called() {
    let stage = Stage::new();
    stage.three("1.1.0");
    stage.conflist(&json!({"cniVersion": "1.1.0", "name": "net", "disableCheck": true, "disableGC": "true",
        "plugins": [{"type": "first"}]}));
    stage.on_netns("add", &[]).exits(0);
    stage.log();
    let text = stage.on_netns("check", &[]).exits(0).text() + &stage.run("gc", &["--none-live"]).exits(0).text();
    assert!(text.contains("disableCheck") && text.contains("disableGC"), "{text}");
    assert_eq!(stage.log(), [""; 0]);
    assert!(stage.cached().exists());
}

#[test]
fn status_asks_every_plugin() {
    let stage = Stage::new();
    stage.three("1.1.0");
    stage.plugin("second", "true", r#"echo '{"code":50,"msg":"no nf_tables","details":"load it"}'; exit 1"#);
    let done = stage.run("status", &["--json"]).exits(1);
    assert_eq!(stage.log(), ["STATUS first", "STATUS second", "STATUS third"]);
    assert_eq!(done.json()["plugins"][1]["error"]["code"], 50);
    let text = stage.run("status", &[]).exits(1).text();
    assert!(text.contains("✓ first") && text.contains("ready") && text.contains("load it"), "{text}");

    stage.speaking("second", r#"["1.0.0"]"#, "true", r#"echo '{"code":3,"msg":"missing containerID"}'; exit 1"#);
    stage.log();
    for (verb, rest) in [("status", &[][..]), ("gc", &["--none-live"])] {
        let text = stage.run(verb, rest).exits(1).text();
        assert!(text.contains("doesn't speak the conflist's cniVersion 1.1.0; it speaks 1.0.0"), "{text}");
    }
    assert_eq!(stage.log(), ["STATUS first", "STATUS third", "GC first", "GC third"]);
}

#[test]
fn versions_are_shown_of_a_conflist_and_of_the_search_path() {
    let stage = Stage::new();
    stage.three("1.1.0");
    stage.speaking("second", r#"["1.0.0"]"#, "true", "true");
    let done = stage.run("version", &["--json"]).exits(1);
    assert!(done.json()["plugins"][1]["error"]["msg"].as_str().unwrap().contains("doesn't speak the conflist's"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-chain"));
    command.args(["version", "--json", "--path"]).arg(stage.path("bin"));
    let json = Done { output: command.output().unwrap() }.exits(0).json();
    assert_eq!(json["plugins"][1]["supportedVersions"], json!(["1.0.0"]));
    assert_eq!(json["cniChain"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn an_answer_that_is_no_result_is_the_plugins_fault() {
    let stage = Stage::new();
    stage.three("1.0.0");
    for (answer, part) in [
        ("true", "must print a document"),
        ("echo '{\"ips\":[{\"address\":\"nonsense\"}]}'", "no result: "),
        ("echo '{\"cniVersion\":\"0.4.0\"}'", "its cniVersion is \\\"0.4.0\\\""),
        ("echo '{}{}'", "not JSON"),
        ("kill -9 $$", "was killed by SIGKILL"),
        ("yes", "more than 16777216 bytes"),
    ] {
        stage.plugin("second", answer, "true");
        let done = stage.on_netns("add", &["--json"]).exits(1);
        let text = done.text();
        assert!(text.contains(part), "{answer}: {text}");
        assert_eq!(done.json()["plugins"][1]["ok"], false);
    }
}

#[test]
fn an_undeclared_capability_is_remarked_upon() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let text = stage.on_netns("add", &["--mac", "02:00:00:00:00:01"]).exits(0).text();
    assert!(text.contains("declares the capability \"mac\""), "{text}");
}

#[test]
fn a_namespace_that_is_none_is_refused_before_anything_is_run() {
    let stage = Stage::new();
    stage.three("1.0.0");
    for (netns, part) in [
        ("no-such-namespace", "`ip netns add no-such-namespace` makes it"),
        ("/etc/passwd", "it is not a network namespace"),
        ("/proc/self/ns/net", "should not be the same"),
    ] {
        let text = stage.run("add", &[netns]).exits(1).text();
        assert!(text.contains(part), "{netns}: {text}");
    }
    assert_eq!(stage.log(), [""; 0]);
    stage.run("del", &["no-such-namespace"]).exits(0);
    assert_eq!(stage.log().len(), 3, "DEL comes for namespaces that are gone");
}

#[test]
fn a_wrong_command_line_exits_with_2_and_is_a_document_too() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let done = stage.on_netns("add", &["--port", "80", "--json"]).exits(2);
    assert!(done.json()["error"]["msg"].as_str().unwrap().contains("hostPort:containerPort"));
    stage.on_netns("add", &["--cap", "mac=1", "--mac", "02:00:00:00:00:01"]).exits(2);
}

#[test]
fn a_name_that_could_leave_the_cache_is_refused() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let netns = stage.netns.path();
    for verb in ["add", "check", "del"] {
        stage.run(verb, &[&netns, "--container-id", "../../x"]).exits(1);
        stage.on_netns(verb, &["--ifname", "../x"]).exits(1);
    }
    assert_eq!(stage.log(), [""; 0]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let line = format!(
        "{} version --path {} {} | true; test ${{PIPESTATUS[0]}} = 0",
        env!("CARGO_BIN_EXE_cni-chain"),
        stage.path("bin").display(),
        stage.path("net.conflist").display(),
    );
    let output = Command::new("bash").arg("-c").arg(line).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let stage = Stage::new();
    stage.three("1.0.0");
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for words in [&["version", "--json"][..], &["version"], &["--help"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cni-chain"));
        command.args(words).arg("--path").arg(stage.path("bin")).stdout(full());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("stdout can't be written"), "{words:?}");
    }
}

#[test]
fn a_spoilt_cache_file_is_forgotten_by_a_del_that_succeeds() {
    let stage = Stage::new();
    stage.three("1.0.0");
    stage.on_netns("add", &[]).exits(0);
    std::fs::write(stage.cached(), "{").unwrap();
    stage.on_netns("del", &[]).exits(0);
    assert!(!stage.cached().exists(), "it would be in the way of the next ADD");
    stage.on_netns("add", &[]).exits(0);
}

#[test]
fn libcnis_cache_is_enough_to_remove_what_it_added() {
    let stage = Stage::new();
    stage.three("1.0.0");
    std::fs::create_dir_all(stage.path("cache/results")).unwrap();
    // As libcni writes it: the members in its order, the configuration in base64, containerd's capital keys.
    let config = std::fs::read(stage.path("net.conflist")).unwrap();
    let cached = format!(
        concat!(
            r#"{{"kind":"cniCacheV1","containerId":"c1","config":"{}","ifName":"eth0","networkName":"net","#,
            r#""netns":"/gone","capabilityArgs":{{"portMappings":[{{"HostPort":81,"ContainerPort":80}}]}},"#,
            r#""result":{{"cniVersion":"1.0.0","dns":{{}},"ips":[{{"address":"10.0.0.7/24"}}]}}}}"#
        ),
        base64(&config)
    );
    std::fs::write(stage.cached(), cached).unwrap();
    stage.run("del", &["--container-id", "c1"]).exits(0);
    assert_eq!(stage.stdin("DEL", "second")["prevResult"]["ips"][0]["address"], "10.0.0.7/24");
    assert_eq!(stage.stdin("DEL", "second")["runtimeConfig"]["portMappings"][0]["HostPort"], 81);
    assert!(stage.environment("DEL", "first").contains(&"CNI_NETNS=/gone".to_owned()));
    assert!(!stage.cached().exists());
}

/// By coreutils, so that the test doesn't take the tool's own word for it.
fn base64(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = Command::new("base64").arg("-w0").arg(Path::new(file.path())).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
