//! Golden plans: a directory in `testdata/` is a test.
//!
//! * `stdin.json`: what the runtime writes;
//! * `facts.json`: the call (`verb`, `ifname`, `args`), and what is found in the namespace (`link`, `sysctls`, `host`,
//!   `locked`, `awaited`, `followers`), the administrator's `allowlist` and the `record` of an earlier ADD;
//! * `plan.txt`: what ADD writes, line by line, or what CHECK finds, or the error.
//!
//! `UPDATE_GOLDEN=1` writes `plan.txt` anew; look at the difference before believing it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;

use common::cni::Network;
use common::cni::env::{Args, Verb};
use common::link::attributes::{LinkAttributes, LinkFacts};
use common::sysctl::{Content, Key, Name};
use common::{Attachment, Call, Plugin, Result};
use serde_json::Value;
use tuning::Tuning;
use tuning::allowlist::Allowlist;
use tuning::config::{Config, parse_mac};
use tuning::plan::{self, Facts, Found};
use tuning::record::Record;

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
        Ok(lines) if lines.is_empty() => "nothing\n".into(),
        Ok(lines) => lines.join("\n") + "\n",
        Err(error) => format!("error {}: {error}\n", error.code()),
    }
}

fn try_plan(stdin: &[u8], facts: &Value) -> Result<Vec<String>> {
    let text = |key: &str, default: &str| facts[key].as_str().unwrap_or(default).to_owned();
    let verb = Verb::from_command(&text("verb", "ADD")).unwrap();
    let network = Network::read(Network::parse(stdin)?, verb)?;
    let (written, misspelt) = network.own_keys()?;
    let ifname = text("ifname", "eth0");
    let call = Call {
        verb,
        attachment: Attachment::new(network.name.clone(), "c1", ifname.clone()),
        netns: Some("/run/netns/c1".into()),
        args: Args::parse(&text("args", "")),
        version: network.version,
    };
    let config = Tuning::validate(written, &call)?;
    let mut lines: Vec<String> = misspelt.iter().map(|m| format!("warning: {m}")).collect();
    if Tuning::is_idle(&config) {
        return Ok(lines);
    }
    let facts = facts_of(&config, facts);
    match verb {
        Verb::Add => lines.extend(plan::steps(&config, &ifname, &facts)?.iter().map(ToString::to_string)),
        _ => lines.extend(plan::differences(&config, &ifname, &facts).iter().map(ToString::to_string)),
    }
    Ok(lines)
}

fn facts_of(config: &Config, facts: &Value) -> Facts {
    Facts {
        link: facts.get("link").filter(|link| link.is_object()).map(link_facts),
        sysctls: config.sysctls.iter().map(|s| found(&s.key, facts)).collect(),
        allowlist: facts["allowlist"].as_str().map(|text| Allowlist::parse(text.as_bytes())),
        record: facts.get("record").map(|record| Record::parse(record.to_string().as_bytes()).unwrap()),
        ..Facts::default()
    }
}

fn link_facts(link: &Value) -> LinkFacts {
    let number = |key: &str| link[key].as_u64().map(|n| u32::try_from(n).unwrap());
    LinkFacts {
        index: 3,
        attributes: LinkAttributes {
            mac: link["mac"].as_str().map(|text| parse_mac(text).unwrap()),
            mtu: number("mtu"),
            promisc: link["promisc"].as_bool(),
            allmulti: link["allmulti"].as_bool(),
            tx_queue_len: number("txQLen"),
        },
        min_mtu: number("minMtu"),
        max_mtu: number("maxMtu"),
    }
}

/// `null` for a sysctl without a value, `false` for one that can only be written.
fn found(key: &Key, facts: &Value) -> Found {
    let first_in = |list: &str| key.names().iter().find(|name| facts[list].get(name.as_str()).is_some()).cloned();
    if let Some(name) = first_in("locked") {
        let reason = facts["locked"][name.as_str()].as_str().unwrap().to_owned();
        return Found::Locked { name, reason, on_host_too: false };
    }
    if let Some(name) = first_in("awaited") {
        return Found::Awaited { name };
    }
    let Some(name) = first_in("sysctls") else { return Found::Missing { on_host: first_in("host") } };
    let content = match &facts["sysctls"][name.as_str()] {
        Value::String(text) => Content::Value(text.clone()),
        Value::Bool(_) => Content::WriteOnly,
        _ => Content::Unset,
    };
    let followers = facts["followers"][name.as_str()].as_object().into_iter().flatten();
    let follower = |(name, value): (&String, &Value)| (Name::new(name).unwrap(), value.as_str().unwrap().to_owned());
    Found::There { content, followers: followers.map(follower).collect(), name }
}
