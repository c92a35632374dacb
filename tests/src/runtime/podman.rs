//! podman with its CNI backend, on a host of its own, with an image that needs no registry.

use std::ops::Deref;

use serde_json::{Value, json};

use super::{Running, Runtime, Site, Subject, recorder};
use crate::namespace::Netns;

/// A host with podman on it, and a client outside.
#[derive(Debug)]
pub struct Podman {
    site: Site,
}

const PRIVATE: [&str; 5] = ["/sys/fs/cgroup", "/etc/containers", "/var/lib/containers", "/var/tmp", "/run/lock"];

/// No cgroups: they lie outside of every namespace here, and would stay.
const CONTAINERS_CONF: &str = r#"[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
runtime = "crun"
events_logger = "file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["BIN"]
network_config_dir = "/etc/cni/net.d"
"#;

const STORAGE_CONF: &str = r#"[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"#;

impl Podman {
    /// podman with these networks.
    #[track_caller]
    pub fn new(subject: &Subject, networks: &[Value]) -> Podman {
        let site = Site::new(subject, &PRIVATE);
        let sandbox = &site.sandbox;
        sandbox.write("/etc/containers/containers.conf", &CONTAINERS_CONF.replace("BIN", recorder::BIN));
        sandbox.write("/etc/containers/storage.conf", STORAGE_CONF);
        sandbox.write("/etc/containers/policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#);
        for network in networks {
            let name = network["name"].as_str().unwrap_or_default();
            sandbox.write(&format!("/etc/cni/net.d/{name}.conflist"), &network.to_string());
        }
        let podman = Podman { site };
        podman.import_image();
        podman
    }

    /// An image of busybox alone.
    fn import_image(&self) {
        let script = "set -e; d=$(mktemp -d); mkdir $d/bin; cp $(command -v busybox) $d/bin/busybox; \
                      ln -s busybox $d/bin/sleep; tar -C $d -c . | podman import - box; rm -r $d";
        self.sandbox.run(&["sh", "-c", script]);
    }

    /// Runs a podman command, split at white space, that must succeed; gives its stdout.
    #[track_caller]
    pub fn podman(&self, line: &str) -> String {
        crate::namespace::must(self.try_podman(line))
    }

    /// Runs a podman command; gives its stdout, or all that it said.
    pub fn try_podman(&self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = std::iter::once("podman").chain(line.split_whitespace()).collect();
        self.sandbox.try_run(&words).map(|out| out.trim().to_owned())
    }

    /// Starts a container that does nothing but be there; gives its namespace.
    #[track_caller]
    pub fn start(&self, name: &str, options: &str) -> Netns {
        self.podman(&format!("run -d --name {name} {options} box /bin/sleep infinity"));
        self.netns(name)
    }

    /// A container's namespace.
    #[track_caller]
    pub fn netns(&self, name: &str) -> Netns {
        let path = self.podman(&format!("inspect --format {{{{.NetworkSettings.SandboxKey}}}} {name}"));
        let netns = self.sandbox.netns(name, &path);
        netns.settle();
        netns
    }

    /// A container's IPv4 address.
    #[track_caller]
    pub fn address(&self, name: &str) -> String {
        self.podman(&format!(
            "inspect --format {{{{range.NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}} {name}"
        ))
    }

    /// `podman rm --force`
    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.podman(&format!("rm --force --time 0 {name}"));
    }

    /// Kills the process that podman leaves with a container, and that holds its published ports by listening sockets.
    #[track_caller]
    pub fn kill_conmon(&self, name: &str) {
        let pid = self.podman(&format!("inspect --format {{{{.State.ConmonPid}}}} {name}"));
        self.sandbox.run(&["kill", "-9", &pid]);
    }

    /// What this host holds once a first container on `network` has come and gone: bridges and shared chains stay.
    #[track_caller]
    pub fn state_after_a_first(&self, network: &str) -> String {
        self.start("first", &format!("--network {network} -p 8080:80"));
        self.remove("first");
        self.await_end("conmon");
        self.state()
    }
}

impl Runtime for Podman {
    fn run(&self, name: &str, port: u16) -> Running {
        let netns = self.start(name, &format!("-p {port}:80"));
        Running { id: name.into(), netns, address: self.address(name) }
    }

    fn remove(&self, running: &Running) {
        Podman::remove(self, &running.id);
    }

    fn reload(&self, running: &Running) -> bool {
        self.podman(&format!("network reload {}", running.id));
        true
    }
}

impl Deref for Podman {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

/// A network in the shape that podman gives its own, with more plugins behind.
pub fn network(name: &str, subnet: &str, more: &[Value]) -> Value {
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": format!("cni-{name}"), "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
                 "ranges": [[{"subnet": format!("{subnet}.0/24"), "gateway": format!("{subnet}.1")}]]},
    })];
    plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    plugins.push(json!({"type": "firewall", "backend": ""}));
    plugins.push(json!({"type": "tuning", "capabilities": {"mac": true}, "sysctl": {"net.core.somaxconn": "777"}}));
    plugins.extend(more.iter().cloned());
    json!({"cniVersion": "0.4.0", "name": name, "plugins": plugins})
}

/// podman's default network.
pub fn default_network() -> Value {
    network("podman", "10.88.0", &[])
}
