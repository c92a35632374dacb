//! containerd with its CRI plugin, on a host of its own: pods as kubelet would ask for them.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Deref;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::cri::{Cri, PodConfig, PodMetadata, PortMapping};
use super::{Running, Runtime, Site, Subject, recorder};
use crate::namespace::{Netns, must};
use crate::traffic::Proto;

const PRIVATE: [&str; 3] = ["/sys/fs/cgroup", "/var/lib/containerd", "/etc/containerd"];

const SOCKET: &str = "/run/containerd/containerd.sock";

/// Where it logs; not in `/run`, where a reboot would lose it.
const LOG: &str = "/etc/containerd/containerd.log";

/// No cgroups: they lie outside of every namespace here, and would stay. The rights to lower a process's OOM score are
/// missing in many a CI.
const CONFIG: &str = r#"version = 2
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "local/pause:1"
restrict_oom_score_adj = true
disable_cgroup = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "BIN"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "/etc/containerd/crun"
"#;

const CRUN: &str = "#!/bin/sh\nexec crun --cgroup-manager=disabled \"$@\"\n";

/// Builds an image of busybox alone, as `docker save` would write it, and imports it: no registry is needed.
const PAUSE: &str = r#"set -e
d=$(mktemp -d /etc/containerd/image.XXXXXX)
mkdir -p $d/root/bin $d/image
cp $(command -v busybox) $d/root/bin/busybox
ln -s busybox $d/root/bin/sleep
tar -C $d/root -cf $d/image/layer.tar .
sum=$(sha256sum $d/image/layer.tar | cut -d' ' -f1)
cat >$d/image/config.json <<END
{"architecture": "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')", "os": "linux",
 "config": {"Entrypoint": ["/bin/sleep", "infinity"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$sum"]}}
END
echo '[{"Config": "config.json", "RepoTags": ["local/pause:1"], "Layers": ["layer.tar"]}]' >$d/image/manifest.json
tar -C $d/image -cf $d/pause.tar .
ctr --namespace k8s.io images import --snapshotter native $d/pause.tar
rm -r $d
"#;

/// A host with containerd on it, and a client outside.
#[derive(Debug)]
pub struct Containerd {
    site: Site,
    /// Its socket.
    pub cri: Cri,
    daemon: RefCell<Option<Child>>,
}

impl Containerd {
    /// A running containerd with this conflist.
    #[track_caller]
    pub fn new(subject: &Subject, conflist: &Value) -> Containerd {
        let site = Site::new(subject, &PRIVATE);
        let sandbox = &site.sandbox;
        sandbox.write("/etc/containerd/config.toml", &CONFIG.replace("BIN", recorder::BIN));
        sandbox.write("/etc/cni/net.d/10-pods.conflist", &conflist.to_string());
        sandbox.write("/etc/containerd/crun", CRUN);
        sandbox.run(&["chmod", "+x", "/etc/containerd/crun"]);
        let cri = Cri::at(sandbox.path(SOCKET));
        let containerd = Containerd { site, cri, daemon: RefCell::new(None) };
        containerd.start();
        containerd.sandbox.run(&["sh", "-c", PAUSE]);
        containerd
    }

    /// Starts the daemon, and waits until it could start pods.
    #[track_caller]
    pub fn start(&self) {
        let log = must(
            File::options().create(true).append(true).open(self.sandbox.path(LOG)).map_err(|e| format!("{LOG}: {e}")),
        );
        let errors = must(log.try_clone().map_err(|e| format!("{LOG}: {e}")));
        let mut command = self.sandbox.command("sh");
        command.args(["-c", "echo $$ >/etc/containerd/containerd.pid; exec containerd"]);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let daemon = command.spawn().map_err(|e| format!("containerd: {e}; install the package containerd"));
        self.daemon.replace(Some(must(daemon)));
        self.lab.host.wait_until("containerd is ready", || self.cri.is_ready());
    }

    /// Kills the daemon as the kernel would when memory is short. What it has started lives on.
    #[track_caller]
    pub fn kill(&self) {
        self.sandbox.run(&["sh", "-c", "kill -9 $(cat /etc/containerd/containerd.pid)"]);
        // What was started is nsenter, which ends with it.
        self.daemon.take().map(|mut daemon| daemon.wait());
    }

    /// What a reboot takes away: every process, namespace, link, rule, and all of /run. What is on the disk stays.
    #[track_caller]
    pub fn reboot(&self) {
        self.kill();
        // All but the first process of the namespace and this shell.
        let script = "for p in /proc/[0-9]*; do n=${p#/proc/}; [ $n = 1 ] || [ $n = $$ ] || kill -9 $n 2>/dev/null; done\n\
                      umount /run/netns/* 2>/dev/null\n\
                      grep -o ' /run/containerd[^ ]*' /proc/mounts | xargs -r umount -l\n\
                      find /run -mindepth 1 -maxdepth 1 -not -name recorder -exec rm -rf {} +";
        self.sandbox.run(&["sh", "-c", script]);
        let host = &self.lab.host;
        host.run("nft flush ruleset");
        for link in host.run("ls /sys/class/net").split_whitespace().filter(|link| !["lo", "ext0"].contains(link)) {
            // One end of a pair takes the other with it.
            let _ = host.try_run(&format!("ip link delete {link}"));
        }
    }

    /// A running pod's namespace.
    #[track_caller]
    pub fn netns(&self, id: &str) -> Netns {
        let answer = must(self.cri.pod_status(id));
        let info: Value = serde_json::from_str(answer.info.get("info").map_or("", String::as_str)).unwrap_or_default();
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let network = namespaces.iter().find(|n| n["type"] == "network").and_then(|n| n["path"].as_str());
        // A symbolic link would lead to the machine's.
        let path = network.unwrap_or_default().replacen("/var/run/", "/run/", 1);
        let netns = self.sandbox.netns(id, &path);
        netns.settle();
        netns
    }

    /// A running pod's addresses, as kubelet is told them.
    #[track_caller]
    pub fn addresses(&self, id: &str) -> Vec<String> {
        let network = must(self.cri.pod_status(id)).status.and_then(|status| status.network).unwrap_or_default();
        std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
    }

    /// Starts a pod that must start; gives its ID.
    #[track_caller]
    pub fn run_pod(&self, pod: &Pod) -> String {
        must(self.cri.run_pod(&pod.config))
    }

    /// Stops and removes every sandbox there is, as kubelet does with what it finds.
    pub fn clean_up(&self) -> Result<(), String> {
        let ids = self.cri.pods()?;
        ids.iter().try_for_each(|id| self.cri.stop_pod(id).and_then(|()| self.cri.remove_pod(id)))
    }

    /// Stops and removes a pod.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        must(self.cri.stop_pod(id).and_then(|()| self.cri.remove_pod(id)));
    }

    /// What this host holds once a first pod has come and gone: the bridge and shared chains stay.
    #[track_caller]
    pub fn state_after_a_first(&self) -> String {
        let first = self.run_pod(&Pod::named("first").port(Proto::Tcp, 8080, 80, ""));
        self.remove(&first);
        // A shim ends behind the answer to RemovePodSandbox.
        self.await_end("containerd-shim");
        self.state()
    }
}

impl Runtime for Containerd {
    fn run(&self, name: &str, port: u16) -> Running {
        let id = self.run_pod(&Pod::named(name).port(Proto::Tcp, port, 80, ""));
        Running { netns: self.netns(&id), address: self.addresses(&id).remove(0), id }
    }

    fn remove(&self, running: &Running) {
        Containerd::remove(self, &running.id);
    }
}

impl Deref for Containerd {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.sandbox.path(LOG)).unwrap_or_default();
            log.lines().filter(|line| !line.contains("level=info")).for_each(|line| eprintln!("containerd: {line}"));
        }
    }
}

/// A pod to be.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What RunPodSandbox gets.
    pub config: PodConfig,
}

impl Pod {
    /// A pod without ports and limits.
    pub fn named(name: &str) -> Pod {
        let metadata =
            PodMetadata { name: name.into(), uid: format!("uid-{name}"), namespace: "default".into(), attempt: 0 };
        let log_directory = format!("/etc/containerd/pods/{name}");
        Pod { config: PodConfig { metadata: Some(metadata), log_directory, ..PodConfig::default() } }
    }

    /// With a `hostPort`, and `hostIP` unless empty.
    pub fn port(mut self, protocol: Proto, host: u16, container: u16, host_ip: &str) -> Pod {
        let protocol = if protocol == Proto::Tcp { 0 } else { 1 };
        let (container_port, host_port) = (container.into(), host.into());
        let mapping = PortMapping { protocol, container_port, host_port, host_ip: host_ip.into() };
        self.config.port_mappings.push(mapping);
        self
    }

    /// With an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Pod {
        self.config.annotations.insert(key.into(), value.into());
        self
    }

    /// Another sandbox of the same pod, as kubelet counts them.
    pub fn attempt(mut self, attempt: u32) -> Pod {
        self.config.metadata.iter_mut().for_each(|metadata| metadata.attempt = attempt);
        self
    }
}

/// A conflist for pods: both families, and all four plugins behind the bridge; but for `firewall` with versions before
/// 0.4.0, which the reference's doesn't speak.
pub fn conflist(version: &str) -> Value {
    let mut plugins = vec![
        json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
               "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                        "ranges": [[{"subnet": "10.44.0.0/24"}], [{"subnet": "fd00:44::/64"}]]}}),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "777"}}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "firewall"}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}}),
    ];
    plugins.retain(|plugin| version != "0.3.1" || plugin["type"] != "firewall");
    json!({"cniVersion": version, "name": "pods", "plugins": plugins})
}
