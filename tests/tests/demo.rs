//! `make demo` keeps its word: every claim on its screen is true, for root and for who isn't.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use netns_tests::plugin::directory;

fn run(mut command: Command) -> (Output, String) {
    let done = command.env("CNI_CHAIN_BIN", directory()).env("NO_COLOR", "1").output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (done, said)
}

#[test]
fn every_claim_of_the_demo_is_true() {
    let (done, said) = run(Command::new(env!("CARGO_BIN_EXE_demo")));
    assert!(done.status.success(), "{said}");
    assert!(said.contains("claims are true") && !said.contains('✘'), "{said}");
    assert!(!said.contains('\u{1b}'), "colours although this is no terminal");
}

#[test]
fn without_capabilities_the_demo_works_or_says_why_not_in_one_sentence() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_demo")]);
    let (done, said) = run(command);
    if done.status.success() {
        assert!(said.contains("claims are true") && !said.contains('✘'), "{said}");
    } else {
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.starts_with("demo: ") && said.trim().lines().count() == 1 && said.contains("root"), "{said}");
    }
}
