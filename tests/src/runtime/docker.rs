//! dockerd beside a runtime, and a container of its own with a published port.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::namespace::{Netns, must};
use crate::sandbox::Sandbox;

/// A running dockerd; it ends with its sandbox.
#[derive(Debug)]
pub struct Docker {
    _daemon: Child,
}

/// No cgroups can be made here.
const CRUN: &str = "#!/bin/sh\nexec crun --cgroup-manager=disabled \"$@\"\n";

const CONFIG: &str =
    r#"{"runtimes": {"without-cgroups": {"path": "/etc/docker/crun"}}, "default-runtime": "without-cgroups"}"#;

/// A root file system of busybox alone.
const BOX: &str = "set -e; d=$(mktemp -d /var/lib/docker/box.XXXXXX); mkdir $d/bin; cp $(command -v busybox) $d/bin/sleep; \
                   tar -C $d -cf /var/lib/docker/box.tar .; rm -r $d";

impl Docker {
    /// dockerd with everything it writes on tmpfs, and a read-only view of the cgroups, without which it doesn't start.
    #[track_caller]
    pub fn start(lab: &Lab, sandbox: &Sandbox) -> Docker {
        for dir in ["/var/lib/docker", "/etc/docker"] {
            sandbox.run(&["mkdir", "-p", dir]);
            sandbox.run(&["mount", "-t", "tmpfs", "tmpfs", dir]);
        }
        mount_cgroups(sandbox);
        sandbox.write("/etc/docker/crun", CRUN);
        sandbox.run(&["chmod", "+x", "/etc/docker/crun"]);
        sandbox.write("/etc/docker/daemon.json", CONFIG);
        // Only where it has to switch forwarding on does it set the policy DROP, as on a host that nobody has prepared.
        lab.host.forward(false);
        let mut command = sandbox.command("dockerd");
        command.args("--data-root /var/lib/docker --exec-root /run/docker --pidfile /run/docker.pid".split(' '));
        command.args("--host unix:///run/docker.sock --storage-driver vfs".split(' '));
        let output = std::fs::File::create(sandbox.path("/run/docker.log"));
        let log = must(output.map_err(|e| format!("/run/docker.log: {e}")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = must(command.spawn().map_err(|e| format!("dockerd: {e}; install the package docker.io")));
        lab.host.wait_until("dockerd answers", || ask(sandbox, "GET /_ping", "", &[]).is_ok_and(|body| body == "OK"));
        let policy = lab.host.run("iptables-nft -S FORWARD");
        assert!(policy.contains("-P FORWARD DROP"), "dockerd has not set its policy: {policy}");
        lab.host.forward(true);
        Docker { _daemon: daemon }
    }

    /// Starts a container whose port 80 is published over TCP; gives its namespace.
    #[track_caller]
    pub fn publish(&self, sandbox: &Sandbox, port: u16) -> Netns {
        sandbox.run(&["sh", "-c", BOX]);
        let image = must(std::fs::read(sandbox.path("/var/lib/docker/box.tar")).map_err(|e| format!("box.tar: {e}")));
        must(ask(sandbox, "POST /images/create?fromSrc=-&repo=box&tag=1", "application/x-tar", &image));
        let container = json!({
            "Image": "box:1", "Cmd": ["/bin/sleep", "infinity"], "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": port.to_string()}]}, "CgroupnsMode": "host"},
        });
        let json = |text: String| serde_json::from_str::<Value>(&text).map_err(|e| format!("{e}: {text}"));
        let body = container.to_string();
        let made = ask(sandbox, "POST /containers/create", "application/json", body.as_bytes()).and_then(json);
        let id = must(made)["Id"].as_str().unwrap_or_default().to_owned();
        must(ask(sandbox, &format!("POST /containers/{id}/start"), "", &[]));
        let seen = must(ask(sandbox, &format!("GET /containers/{id}/json"), "", &[]).and_then(json));
        let netns = sandbox.netns("docker's", &format!("/proc/{}/ns/net", seen["State"]["Pid"]));
        netns.settle();
        netns
    }
}

/// One request to Docker's API, in whichever version it speaks; gives the body of a good answer, else all that was said.
fn ask(sandbox: &Sandbox, what: &str, kind: &str, body: &[u8]) -> Result<String, String> {
    let asked = || {
        let mut socket = UnixStream::connect(sandbox.path("/run/docker.sock"))?;
        let head = format!("{what} HTTP/1.0\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes())?;
        socket.write_all(body)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().map_err(|e: std::io::Error| format!("{what}: {e}"))?;
    let good = answer.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) if good => Ok(body.to_owned()),
        _ => Err(format!("{what}: {answer}")),
    }
}

/// The hierarchies that this machine has, whichever version; nothing can be made in them.
#[track_caller]
fn mount_cgroups(sandbox: &Sandbox) {
    let own = must(std::fs::read_to_string("/proc/self/cgroup"));
    let controllers: Vec<&str> = own.lines().filter_map(|line| line.split(':').nth(1)).collect();
    let version_1 = controllers.iter().filter(|c| !c.is_empty() && !c.contains('='));
    for controller in version_1.clone() {
        let dir = format!("/sys/fs/cgroup/{controller}");
        sandbox.run(&["mkdir", &dir]);
        sandbox.run(&["mount", "-t", "cgroup", "-o", &format!("ro,{controller}"), "cgroup", &dir]);
    }
    if version_1.count() == 0 {
        sandbox.run(&["mount", "-t", "cgroup2", "-o", "ro", "cgroup2", "/sys/fs/cgroup"]);
    }
}
