//! Plans as text: every directory of `testdata` is a test.
//!
//! A case has `config.json` (what stands on stdin), perhaps `facts.json` (what was observed), and either
//! `expected.nft` (the plan) or `expected.error` (the message). `UPDATE_GOLDEN=1` writes the expected files anew.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use common::cni::env::{Args, Verb};
use common::cni::network::Network;
use common::{Attachment, Call, Result};
use portmap::config::Config;
use portmap::localnet::Link;
use portmap::origin::{Origin, Trace};
use portmap::rules::{Facts, plan};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WrittenFacts {
    link: Option<String>,
    external_mark: Option<u32>,
}

fn planned(case: &Path) -> Result<String> {
    let net = Network::read(Network::parse(&fs::read(case.join("config.json")).unwrap())?, Verb::Add)?;
    let call = Call {
        verb: Verb::Add,
        attachment: Attachment::new(net.name.clone(), "container-1", "eth0"),
        netns: None,
        args: Args::default(),
        version: net.version,
    };
    let (written, misspelt) = net.own_keys()?;
    assert_eq!(misspelt, [], "{}", case.display());
    let config = Config::validate(written, &call)?;
    let facts: WrittenFacts =
        fs::read(case.join("facts.json")).map(|f| serde_json::from_slice(&f).unwrap()).unwrap_or_default();
    let origin =
        Origin { since: 1_790_942_400, boot: "1a2b3c4d".into(), id: None, trace: Trace::Link("veth1".into(), 7) };
    let link = facts.link.map(|name| Link { index: 5, name, known_by: None });
    let facts = Facts { link, external_mark: facts.external_mark, origin, ..Facts::default() };
    plan(&config, &call, &net.prev_result.unwrap(), facts).map(|share| share.to_string())
}

#[test]
fn every_case_gives_its_plan() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() > 10, "cases are missing");
    let mut differing = Vec::new();
    for case in cases {
        let (name, text) = match planned(&case) {
            Ok(plan) => ("expected.nft", plan),
            Err(error) => ("expected.error", format!("{} {error}\n", error.code())),
        };
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let _ = fs::remove_file(case.join("expected.nft"));
            let _ = fs::remove_file(case.join("expected.error"));
            fs::write(case.join(name), &text).unwrap();
        }
        // Putting such a rule in would cost more with every mapping on the host.
        assert!(!text.contains(" map @"), "a rule of an attachment looks into a map: {text}");
        let expected = fs::read_to_string(case.join(name)).unwrap_or_default();
        if text != expected {
            differing.push(format!("== {}\n-- expected {name}\n{expected}-- got\n{text}", case.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// The table itself, as `nft list table` shows it.
#[test]
fn the_table_without_attachments_is_as_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/skeleton.nft");
    let text = portmap::rules::skeleton(portmap::config::PRIORITY).to_string();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap());
}
