//! Golden plans: a directory in `testdata/` is a test.
//!
//! * `stdin.json`: what the runtime writes;
//! * `facts.json`: the call (`container`, `ifname`), the `link` that will carry the limits, and who has names that its
//!   ifbs might take (`named`: name, kind, alias);
//! * `plan.txt`: what the kernel shall hold, or the error.
//!
//! `UPDATE_GOLDEN=1` writes `plan.txt` anew; look at the difference before believing it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;

use bandwidth::Bandwidth;
use bandwidth::plan::{self, Facts, Shaping};
use common::cni::env::{Args, Verb};
use common::cni::{Network, Result};
use common::link::device::{Device, ETHERNET_HEADER};
use common::{Attachment, Call, Plugin};
use serde_json::Value;

#[test]
fn every_case_gives_its_plan() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut cases: Vec<_> = fs::read_dir(&testdata).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    let wrong: Vec<String> = cases.iter().filter_map(|case| compare(case)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn compare(case: &Path) -> Option<String> {
    let read = |file: &str| {
        let path = case.join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let (stdin, facts) = (read("stdin.json"), read("facts.json"));
    let got = plan_of(stdin.as_bytes(), &serde_json::from_str(&facts).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(case.join("plan.txt"), &got).unwrap();
    }
    let expected = read("plan.txt");
    (got != expected).then(|| format!("== {}\n-- expected\n{expected}-- got\n{got}", case.display()))
}

fn plan_of(stdin: &[u8], facts: &Value) -> String {
    match try_plan(stdin, facts) {
        Ok((warnings, None)) => warnings + "nothing\n",
        Ok((warnings, Some(shaping))) => warnings + &shaping.to_string(),
        Err(error) => format!("error {}: {error}\n", error.code()),
    }
}

fn try_plan(stdin: &[u8], facts: &Value) -> Result<(String, Option<Shaping>)> {
    let network = Network::read(Network::parse(stdin)?, Verb::Add)?;
    let (written, misspelt) = network.own_keys()?;
    let text = |key: &str, default: &str| facts[key].as_str().unwrap_or(default).to_owned();
    let call = Call {
        verb: Verb::Add,
        attachment: Attachment::new(network.name.clone(), text("container", "c1"), text("ifname", "eth0")),
        netns: Some("/run/netns/c1".into()),
        args: Args::default(),
        version: network.version,
    };
    let config = Bandwidth::validate(written, &call)?;
    let warnings: String = misspelt.iter().map(|m| format!("warning: {m}\n")).collect();
    if Bandwidth::is_idle(&config) {
        return Ok((warnings, None));
    }
    let link = &facts["link"];
    let named = facts["named"].as_array().cloned().unwrap_or_default();
    let facts = Facts {
        link: Device {
            mtu: u32::try_from(link["mtu"].as_u64().unwrap_or(1500)).unwrap(),
            header: ETHERNET_HEADER,
            index: 7,
            ..device(link)
        },
        named: named.iter().map(device).collect(),
        in_container: config.in_container,
        ..Facts::default()
    };
    plan::plan(&config, &call.attachment, facts).map(|shaping| (warnings, Some(shaping)))
}

fn device(json: &Value) -> Device {
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    Device { name: text("name"), kind: text("kind"), alias: text("alias"), ..Device::default() }
}
