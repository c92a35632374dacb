//! The harness of the integration tests: hosts, containers and clients as network namespaces, and traffic between them.
//!
//! Reading order: [`namespace`] (a namespace held by this process alone), [`host`] (one that also has its own `/run`,
//! `/etc/cni` and `/var/lib/cni`), [`lab`] (a host with a client and containers, ready to use), [`traffic`] (servers
//! that answer with a token, throughput), [`plugin`] (running a plugin as a runtime does), [`chain`] (running a whole
//! conflist), [`recorded`] (what real runtimes have called), [`mutation`] (configurations that are nearly real ones),
//! [`snapshot`] (what a namespace holds, and what has changed in it), [`scene`] (a plugin with a configuration that makes
//! it do all that it can), [`faults`] (a plugin killed or deceived at any of its system calls), [`sandbox`] and
//! [`firewalld`] (daemons on a test host), [`runtime`] (real container runtimes), [`trace`] (what is said to
//! the kernel), [`schema`] (the JSON Schemas of the
//! configurations), [`conformance`] and [`mod@bench`] (the specification's table and the times beside the reference).
//!
//! ```no_run
//! use netns_tests::{Lab, Plugin, Proto, Verb, fetch, serve};
//! use serde_json::json;
//!
//! let lab = Lab::new();
//! let container = lab.container(2);
//! let _server = serve(&container.netns, 80, "hello");
//! let config = json!({
//!     "cniVersion": "1.0.0", "name": "net", "type": "portmap",
//!     "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
//!     "prevResult": container.prev_result("1.0.0"),
//! });
//! let before = lab.host.snapshot();
//! Plugin::ours("portmap").call(&lab.host, Verb::Add, &config, &container.target()).succeeds();
//! let reply = fetch(&lab.client, Proto::Tcp, "192.0.2.1:8080").unwrap();
//! assert_eq!(reply.token, "hello");
//! Plugin::ours("portmap").call(&lab.host, Verb::Del, &config, &container.target()).succeeds();
//! lab.host.assert_same_as(&before);
//! ```
//!
//! Nothing of this leaves a trace: a namespace is held by file descriptors of the test process, so it goes when the
//! process goes, however that happens. Nothing here skips: where a namespace can't be had, the test fails and says why.
//!
//! The harness panics where it can't go on, because that is how a test fails.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

pub mod bench;
pub mod chain;
pub mod conformance;
#[cfg(target_arch = "x86_64")]
pub mod faults;
pub mod firewalld;
pub mod fuzzed;
pub mod host;
pub mod lab;
pub mod mutation;
pub mod namespace;
pub mod plugin;
pub mod recorded;
pub mod runtime;
pub mod sandbox;
pub mod scene;
pub mod schema;
pub mod snapshot;
pub mod trace;
pub mod traffic;

mod mounts;
mod process;

pub use chain::{Chain, bridge_conf, ptp_conf};
pub use common::cni::env::Verb;
pub use host::Host;
pub use lab::{Container, Lab};
pub use namespace::{End, Netns, connect};
pub use plugin::{CniError, Outcome, Plugin, Target};
pub use snapshot::Snapshot;
pub use traffic::throughput::{Measured, throughput};
pub use traffic::{Fetch, NoReply, Proto, Reply, Server, fetch, serve};
