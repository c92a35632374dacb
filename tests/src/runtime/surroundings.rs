//! What else is on a host that runs containers: a policy that drops, Docker, firewalld.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use crate::firewalld::Firewalld;
use crate::lab::Lab;
use crate::namespace::must;
use crate::sandbox::Sandbox;

/// A kind of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surroundings {
    /// Nothing filters.
    Open,
    /// `iptables -P FORWARD DROP`, kept in nf_tables.
    DropNft,
    /// The same in the old tables, which nf_tables can't reach.
    DropLegacy,
    /// Docker was there when the first container came. It sets `FORWARD DROP`.
    DockerBefore,
    /// Docker comes when containers run already.
    DockerAfter,
    /// firewalld, which is told to reload when containers run already.
    Firewalld,
}

/// Daemons that end with the test.
#[derive(Debug, Default)]
pub struct Guests {
    firewalld: Option<Firewalld>,
    _docker: Option<Child>,
}

impl Surroundings {
    /// All of them.
    pub const ALL: [Surroundings; 6] = [
        Surroundings::Open,
        Surroundings::DropNft,
        Surroundings::DropLegacy,
        Surroundings::DockerBefore,
        Surroundings::DockerAfter,
        Surroundings::Firewalld,
    ];

    /// Before the first container.
    #[track_caller]
    pub fn prepare(self, lab: &Lab, sandbox: &Sandbox) -> Guests {
        let mut guests = Guests::default();
        match self {
            Surroundings::Open | Surroundings::DockerAfter => {}
            Surroundings::DropNft => lab.host.drop_forwarded_by("nft"),
            Surroundings::DropLegacy => lab.host.drop_forwarded_by("legacy"),
            Surroundings::DockerBefore => guests._docker = Some(start_docker(lab, sandbox)),
            Surroundings::Firewalld => guests.firewalld = Some(Firewalld::start(&lab.host)),
        }
        guests
    }

    /// When containers run. Gives whether anything has happened.
    #[track_caller]
    pub fn change(self, lab: &Lab, sandbox: &Sandbox, guests: &mut Guests) -> bool {
        match (self, &guests.firewalld) {
            (Surroundings::DockerAfter, _) => guests._docker = Some(start_docker(lab, sandbox)),
            (Surroundings::Firewalld, Some(firewalld)) => drop(firewalld.command(&lab.host, "--reload")),
            _ => return false,
        }
        true
    }

    /// Whether it drops or rejects already when the first container comes.
    pub fn drops_from_the_start(self) -> bool {
        !matches!(self, Surroundings::Open | Surroundings::DockerAfter)
    }

    /// Whether it forgets at the change what `firewall` has told it: a container gets out again after its next ADD.
    pub fn forgets(self) -> bool {
        self == Surroundings::Firewalld
    }
}

/// dockerd with everything it writes on tmpfs, and a read-only view of the cgroups, without which it doesn't start.
#[track_caller]
fn start_docker(lab: &Lab, sandbox: &Sandbox) -> Child {
    for dir in ["/var/lib/docker", "/etc/docker"] {
        sandbox.run(&["mkdir", "-p", dir]);
        sandbox.run(&["mount", "-t", "tmpfs", "tmpfs", dir]);
    }
    mount_cgroups(sandbox);
    // Only where it has to switch forwarding on does it set the policy DROP, as on a host that nobody has prepared.
    lab.host.forward(false);
    let mut command = sandbox.command("dockerd");
    command.args("--data-root /var/lib/docker --exec-root /run/docker --pidfile /run/docker.pid".split(' '));
    command.args("--host unix:///run/docker.sock --storage-driver vfs".split(' '));
    let output = std::fs::File::create(sandbox.path("/run/docker.log"));
    let log = must(output.map_err(|e| format!("/run/docker.log: {e}")));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let docker = must(command.spawn().map_err(|e| format!("dockerd: {e}; install the package docker.io")));
    lab.host.wait_until("dockerd answers", || answers(sandbox));
    let policy = lab.host.run("iptables-nft -S FORWARD");
    assert!(policy.contains("-P FORWARD DROP"), "dockerd has not set its policy: {policy}");
    lab.host.forward(true);
    docker
}

/// `GET /_ping` of Docker's API.
fn answers(sandbox: &Sandbox) -> bool {
    let asked = UnixStream::connect(sandbox.path("/run/docker.sock")).and_then(|mut socket| {
        socket.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    });
    asked.is_ok_and(|answer| answer.ends_with("OK"))
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
