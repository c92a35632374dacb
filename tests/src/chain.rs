//! Running a whole conflist, as libcni does: plugin after plugin, each with the result of those before.

use serde_json::{Map, Value, json};

use crate::Verb;
use crate::namespace::Netns;
use crate::plugin::{Outcome, Plugin, Target};

/// A conflist with the runtime's capability arguments for one container.
#[derive(Clone, Debug)]
pub struct Chain {
    conflist: Value,
    runtime: Map<String, Value>,
    result: Option<Value>,
}

impl Chain {
    /// A conflist as it stands in a file.
    pub fn new(conflist: Value) -> Chain {
        Chain { conflist, runtime: Map::new(), result: None }
    }

    /// A conflist of these plugins.
    pub fn of(version: &str, network: &str, plugins: &[Value]) -> Chain {
        Chain::new(json!({"cniVersion": version, "name": network, "plugins": plugins}))
    }

    /// Gives every plugin that has `capability` this `runtimeConfig` value.
    pub fn runtime(mut self, capability: &str, value: Value) -> Chain {
        self.runtime.insert(capability.into(), value);
        self
    }

    /// The result of the last successful [`Chain::add`].
    pub fn result(&self) -> Option<&Value> {
        self.result.as_ref()
    }

    /// What the plugin at `index` gets on stdin.
    #[track_caller]
    pub fn config(&self, index: usize, prev: Option<&Value>) -> Value {
        let mut config = self.plugins()[index].clone();
        for key in ["cniVersion", "name"] {
            config[key] = self.conflist[key].clone();
        }
        let wanted = config["capabilities"].as_object().cloned().unwrap_or_default();
        let given = self.runtime.iter().filter(|(key, _)| wanted.get(*key) == Some(&Value::Bool(true)));
        let given: Map<String, Value> = given.map(|(k, v)| (k.clone(), v.clone())).collect();
        if !given.is_empty() {
            config["runtimeConfig"] = Value::Object(given);
        }
        if let Some(prev) = prev {
            config["prevResult"] = prev.clone();
        }
        config
    }

    /// ADD along the chain; stops at the first failure, whose outcome is the last.
    #[track_caller]
    pub fn try_add(&mut self, host: &Netns, target: &Target) -> Vec<Outcome> {
        let (mut outcomes, mut prev) = (Vec::new(), None);
        for (index, plugin) in self.executables().into_iter().enumerate() {
            let outcome = plugin.call(host, Verb::Add, &self.config(index, prev.as_ref()), target);
            let failed = outcome.exit != 0;
            prev = outcome.json.clone();
            outcomes.push(outcome);
            if failed {
                return outcomes;
            }
        }
        self.result = prev;
        outcomes
    }

    /// ADD along the chain, which must succeed; gives the final result.
    #[track_caller]
    pub fn add(&mut self, host: &Netns, target: &Target) -> Value {
        let outcomes = self.try_add(host, target);
        outcomes.iter().map(Outcome::succeeds).next_back().unwrap_or_default()
    }

    /// CHECK along the chain, each with the final result; stops at the first failure, whose outcome is the last.
    #[track_caller]
    pub fn check(&self, host: &Netns, target: &Target) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::new();
        for (index, plugin) in self.executables().into_iter().enumerate() {
            if outcomes.last().is_some_and(|last| last.exit != 0) {
                break;
            }
            outcomes.push(plugin.call(host, Verb::Check, &self.config(index, self.result.as_ref()), target));
        }
        outcomes
    }

    /// DEL along the chain in reverse order, going on after failures.
    #[track_caller]
    pub fn try_del(&self, host: &Netns, target: &Target) -> Vec<Outcome> {
        let executables = self.executables().into_iter().enumerate().rev();
        let del = |(index, plugin): (usize, Plugin)| {
            plugin.call(host, Verb::Del, &self.config(index, self.result.as_ref()), target)
        };
        executables.map(del).collect()
    }

    /// DEL along the chain in reverse order, which must succeed.
    #[track_caller]
    pub fn del(&self, host: &Netns, target: &Target) {
        for outcome in self.try_del(host, target) {
            outcome.succeeds();
        }
    }

    fn plugins(&self) -> &[Value] {
        self.conflist["plugins"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    #[track_caller]
    fn executables(&self) -> Vec<Plugin> {
        self.plugins().iter().map(|plugin| Plugin::find(plugin["type"].as_str().unwrap_or_default())).collect()
    }
}

/// The main plugin `bridge` with host-local addresses out of `subnets` (one or more, of either family), default routes
/// for each family, and its state in the host's private `/run`.
pub fn bridge_conf(bridge: &str, subnets: &[&str]) -> Value {
    let mut conf = ipam(subnets);
    conf["type"] = "bridge".into();
    conf["bridge"] = bridge.into();
    conf["isGateway"] = true.into();
    conf
}

/// The main plugin `ptp`, likewise.
pub fn ptp_conf(subnets: &[&str]) -> Value {
    let mut conf = ipam(subnets);
    conf["type"] = "ptp".into();
    conf
}

fn ipam(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    let default = |v6: bool| if v6 { json!({"dst": "::/0"}) } else { json!({"dst": "0.0.0.0/0"}) };
    let families = [false, true].into_iter().filter(|v6| subnets.iter().any(|s| s.contains(':') == *v6));
    let routes: Vec<Value> = families.map(default).collect();
    json!({"ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": "/run/cni/ipam"}})
}
