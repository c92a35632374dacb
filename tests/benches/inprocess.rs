//! `make microbench`: what happens within the process: reading a call, planning, encoding. No kernel, no exec.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::ffi::OsString;

use common::cni::env::{Environment, Verb};
use common::link::attributes::{LinkAttributes, LinkFacts};
use common::link::device::Device;
use common::nft::{Command, Element, Family, Presence, Skeleton, Table, Transaction, Value};
use common::plugin::{Plugin, interpret};
use common::sysctl::{Content, Name};
use portmap::localnet::Link;
use portmap::origin::{Origin, Trace};
use portmap::rules::Facts;
use serde_json::{Value as Json, json};

fn main() {
    divan::main();
}

fn environment() -> Environment {
    let lookup = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => "ADD",
            "CNI_CONTAINERID" => "container-1",
            "CNI_NETNS" => "/run/netns/none",
            "CNI_IFNAME" => "eth0",
            _ => return None,
        };
        Some(OsString::from(value))
    };
    Environment::read(Verb::Add, &lookup).unwrap()
}

fn stdin(plugin: &str, keys: &Json) -> Vec<u8> {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": plugin,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth2"}, {"name": "eth0", "sandbox": "/run/netns/none"}],
            "ips": [{"interface": 2, "address": "10.88.0.2/24"}, {"interface": 2, "address": "fd00:88::2/64"}],
        },
    });
    for (key, value) in keys.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config.to_string().into_bytes()
}

fn ports(count: usize) -> Json {
    let one = |n| json!({"hostPort": 20_000 + n, "containerPort": 80, "protocol": "tcp"});
    json!({"runtimeConfig": {"portMappings": (0..count).map(one).collect::<Vec<_>>()}})
}

fn rates() -> Json {
    json!({"ingressRate": 10_000_000, "ingressBurst": 1_000_000, "egressRate": 20_000_000, "egressBurst": 2_000_000})
}

fn tunings() -> Json {
    json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "512"}})
}

fn parse<P: Plugin>(bencher: divan::Bencher<'_, '_>, keys: &Json) {
    let bytes = stdin(P::NAME, keys);
    bencher.bench(|| interpret::<P>(environment(), &bytes).unwrap().2);
}

#[divan::bench(args = [1, 100, 1_000])]
fn parse_portmap(bencher: divan::Bencher<'_, '_>, count: usize) {
    parse::<portmap::Portmap>(bencher, &ports(count));
}

#[divan::bench]
fn parse_bandwidth(bencher: divan::Bencher<'_, '_>) {
    parse::<bandwidth::Bandwidth>(bencher, &rates());
}

#[divan::bench]
fn parse_firewall(bencher: divan::Bencher<'_, '_>) {
    parse::<firewall::Firewall>(bencher, &json!({"ingressPolicy": "same-bridge"}));
}

#[divan::bench]
fn parse_tuning(bencher: divan::Bencher<'_, '_>) {
    parse::<tuning::Tuning>(bencher, &tunings());
}

#[divan::bench(args = [1, 100, 1_000])]
fn plan_portmap(bencher: divan::Bencher<'_, '_>, count: usize) {
    let bytes = stdin("portmap", &ports(count));
    let (call, config, prev) = interpret::<portmap::Portmap>(environment(), &bytes).unwrap();
    let prev = prev.unwrap();
    let link = Link { index: 5, name: "cni0".into(), known_by: None };
    let origin =
        Origin { since: 1_790_942_400, boot: "1a2b3c4d".into(), id: None, trace: Trace::Link("veth1".into(), 7) };
    bencher
        .with_inputs(|| Facts { link: Some(link.clone()), origin: origin.clone(), ..Default::default() })
        .bench_values(|facts| portmap::rules::plan(&config, &call, &prev, facts).unwrap());
}

#[divan::bench]
fn plan_bandwidth(bencher: divan::Bencher<'_, '_>) {
    let (call, config, _) = interpret::<bandwidth::Bandwidth>(environment(), &stdin("bandwidth", &rates())).unwrap();
    let link =
        Device { index: 7, name: "veth2".into(), kind: "veth".into(), mtu: 1500, header: 14, ..Device::default() };
    let facts = bandwidth::plan::Facts { link, ..Default::default() };
    bencher
        .with_inputs(|| facts.clone())
        .bench_values(|facts| bandwidth::plan::plan(&config, &call.attachment, facts).unwrap());
}

#[divan::bench]
fn plan_firewall(bencher: divan::Bencher<'_, '_>) {
    let bytes = stdin("firewall", &json!({"ingressPolicy": "same-bridge"}));
    let (call, config, prev) = interpret::<firewall::Firewall>(environment(), &bytes).unwrap();
    let prev = prev.unwrap();
    let facts = firewall::plan::Facts { bridges: vec!["cni0".into()], ..Default::default() };
    bencher.bench(|| firewall::plan::plan(&config, &call.attachment, &prev, &facts).unwrap());
}

#[divan::bench]
fn plan_tuning(bencher: divan::Bencher<'_, '_>) {
    let (_, config, _) = interpret::<tuning::Tuning>(environment(), &stdin("tuning", &tunings())).unwrap();
    let attributes = LinkAttributes { mtu: Some(1500), ..LinkAttributes::default() };
    let found = tuning::plan::Found::There {
        name: Name::new("net/core/somaxconn").unwrap(),
        content: Content::Value("4096".into()),
        followers: vec![],
    };
    let facts = tuning::plan::Facts {
        link: Some(LinkFacts { index: 2, attributes, ..LinkFacts::default() }),
        sysctls: vec![found],
        ..Default::default()
    };
    bencher.bench(|| tuning::plan::steps(&config, "eth0", &facts).unwrap());
}

/// The static part of a table, as a host's first ADD sends it.
fn encode(bencher: divan::Bencher<'_, '_>, skeleton: Skeleton) {
    let mut transaction = Transaction::new();
    let table = skeleton.table;
    transaction.push(Command::AddTable(table.clone(), skeleton.comment));
    for set in skeleton.sets {
        transaction.push(Command::AddSet(table.clone(), set));
    }
    for chain in skeleton.chains {
        transaction.add_chain(&table, chain);
    }
    bencher.bench(|| transaction.encoded().unwrap());
}

#[divan::bench]
fn encode_rules_of_portmap(bencher: divan::Bencher<'_, '_>) {
    encode(bencher, portmap::rules::skeleton(0));
}

#[divan::bench]
fn encode_rules_of_firewall(bencher: divan::Bencher<'_, '_>) {
    encode(bencher, firewall::rules::skeleton(0x10000));
}

#[divan::bench(args = [1, 100, 1_000])]
fn encode_elements(bencher: divan::Bencher<'_, '_>, count: u16) {
    let table = Table::new(Family::Inet, "bench");
    let elements: Vec<Element> = (0..count).map(|port| Element::key([Value::Port(port)])).collect();
    let mut transaction = Transaction::new();
    transaction.add_elements(&table, "ports", Presence::Exclusive, elements);
    bencher.bench(|| transaction.encoded().unwrap());
}
