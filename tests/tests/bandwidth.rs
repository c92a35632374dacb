//! The bandwidth plugin in namespaces, with real traffic.

use netns_tests::{Container, Lab, Measured, Outcome, Plugin, Proto, Target, Verb, throughput};
use serde_json::{Value, json};

/// containerd's filler for a burst that nobody has set.
const SENTINEL: u64 = u32::MAX as u64;

/// Payload of a full TCP segment over its frame with header: 1448 of 1514 bytes.
const TCP_SHARE: f64 = 1448.0 / 1514.0;

/// Payload of the harness's datagrams over their frames: 1400 of 1442 bytes.
const UDP_SHARE: f64 = 1400.0 / 1442.0;

/// A lab with one container and a configuration for it.
struct Case {
    lab: Lab,
    container: Container,
    keys: Value,
}

impl Case {
    #[track_caller]
    fn new(keys: Value) -> Case {
        let lab = Lab::new();
        let container = lab.container(2);
        Case { lab, container, keys }
    }

    fn both(rate: u64, burst: u64) -> Case {
        Case::new(json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}))
    }

    fn config(&self) -> Value {
        config(&self.keys, Some(self.container.prev_result("1.1.0")))
    }

    #[track_caller]
    fn call(&self, verb: Verb) -> Outcome {
        self.call_with(verb, &self.config(), &self.container.target())
    }

    #[track_caller]
    fn call_with(&self, verb: Verb, config: &Value, target: &Target) -> Outcome {
        Plugin::ours("bandwidth").call(&self.lab.host, verb, config, target)
    }


    fn in_container(&self) -> String {
        format!("{}:5001", self.container.addresses[0])
    }

    #[track_caller]
    fn ingress(&self, proto: Proto, seconds: u32) -> Measured {
        throughput(&self.lab.client, &self.container.netns, proto, &self.in_container(), seconds)
    }

    #[track_caller]
    fn egress(&self, proto: Proto, seconds: u32) -> Measured {
        throughput(&self.container.netns, &self.lab.client, proto, "192.0.2.2:5002", seconds)
    }
}

fn config(keys: &Value, prev: Option<Value>) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"});
    let object = config.as_object_mut().unwrap();
    object.extend(keys.as_object().cloned().unwrap_or_default());
    object.extend(prev.map(|prev| ("prevResult".to_string(), prev)));
    config
}

/// The name of the ifb in a result.
fn ifb(result: &Value) -> String {
    let interfaces = result["interfaces"].as_array().unwrap();
    let ifb = interfaces.iter().find(|i| i["name"].as_str().unwrap().starts_with("bwp"));
    ifb.unwrap_or_else(|| panic!("no ifb in {result}"))["name"].as_str().unwrap().to_owned()
}

#[track_caller]
fn holds(measured: &Measured, rate: f64, share: f64) {
    let (mean, first) = (measured.bits_per_second() / (rate * share), measured.first_second() / (rate * share));
    assert!((0.93..=1.03).contains(&mean), "mean is {mean:.3} of the wire rate: {measured:?}");
    assert!(first <= 1.10, "the first second has {first:.3} of the wire rate: {measured:?}");
}

#[test]
fn a_limit_holds_in_both_directions_from_the_first_second_with_the_runtimes_filler_burst() {
    let case = Case::both(10_000_000, SENTINEL);
    case.call(Verb::Add).succeeds();
    holds(&case.ingress(Proto::Tcp, 3), 10e6, TCP_SHARE);
    holds(&case.egress(Proto::Tcp, 3), 10e6, TCP_SHARE);
    holds(&case.ingress(Proto::Udp, 3), 10e6, UDP_SHARE);
    holds(&case.egress(Proto::Udp, 3), 10e6, UDP_SHARE);
}

#[test]
fn del_restores_the_host_and_may_be_repeated() {
    let case = Case::both(10_000_000, 400_000);
    let before = case.lab.host.snapshot();
    let result = case.call(Verb::Add).succeeds();
    assert!(case.lab.host.has_link(&ifb(&result)));
    case.call(Verb::Check).succeeds();
    case.call(Verb::Del).succeeds();
    case.lab.host.assert_same_as(&before);
    case.call(Verb::Del).succeeds();
    case.lab.host.assert_same_as(&before);
}
