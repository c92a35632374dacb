//! podman with its CNI backend drives the chain: published ports, limits, restart, reload, removal.

use netns_tests::plugin::cni_path;
use netns_tests::sandbox::Sandbox;
use netns_tests::traffic::{Fetch, Proto};
use netns_tests::{Lab, Netns, serve, throughput};
use serde_json::{Value, json};

/// A host with podman on it, a client outside, and an image that needs no registry.
struct Podman {
    lab: Lab,
    sandbox: Sandbox,
}

const PRIVATE: [&str; 5] = ["/sys/fs/cgroup", "/etc/containers", "/var/lib/containers", "/var/tmp", "/run/lock"];

impl Podman {
    fn new(networks: &[Value]) -> Podman {
        let lab = Lab::without_bridge();
        let sandbox = Sandbox::new(&lab.host, &PRIVATE);
        let dirs: Vec<String> = cni_path().split(':').map(|dir| format!("{dir:?}")).collect();
        sandbox.write(
            "/etc/containers/containers.conf",
            &format!(
                "[containers]\ncgroups = \"disabled\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"crun\"\n\
                 events_logger = \"file\"\n[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{}]\n\
                 network_config_dir = \"/etc/cni/net.d\"\n",
                dirs.join(", ")
            ),
        );
        sandbox.write(
            "/etc/containers/storage.conf",
            "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\n\
             graphroot = \"/var/lib/containers/storage\"\n",
        );
        sandbox.write("/etc/containers/policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#);
        for network in networks {
            let name = network["name"].as_str().unwrap_or_default();
            sandbox.write(&format!("/etc/cni/net.d/{name}.conflist"), &network.to_string());
        }
        let podman = Podman { lab, sandbox };
        podman.import_image();
        podman
    }

    /// What this host holds once a first container on `network` has come and gone: bridges and shared chains stay.
    fn state_after_a_first(&self, network: &str) -> String {
        self.start("first", &format!("--network {network} -p 8080:80"));
        self.remove("first");
        state(&self.lab)
    }

    /// An image of busybox alone.
    fn import_image(&self) {
        let script = "set -e; d=$(mktemp -d); mkdir $d/bin; cp /bin/busybox $d/bin/; ln -s busybox $d/bin/sleep; \
                      tar -C $d -c . | podman import - box; rm -r $d";
        self.sandbox.run(&["sh", "-c", script]);
    }

    fn podman(&self, line: &str) -> String {
        let words: Vec<&str> = std::iter::once("podman").chain(line.split_whitespace()).collect();
        self.sandbox.run(&words).trim().to_owned()
    }

    /// Starts a container that does nothing but be there; gives its namespace.
    fn start(&self, name: &str, options: &str) -> Netns {
        self.podman(&format!("run -d --name {name} {options} box /bin/sleep infinity"));
        self.netns(name)
    }

    fn netns(&self, name: &str) -> Netns {
        let path = self.podman(&format!("inspect --format {{{{.NetworkSettings.SandboxKey}}}} {name}"));
        let netns = self.sandbox.netns(name, &path);
        netns.settle();
        netns
    }

    fn address(&self, name: &str) -> String {
        self.podman(&format!(
            "inspect --format {{{{range.NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}} {name}"
        ))
    }

    fn remove(&self, name: &str) {
        self.podman(&format!("rm --force --time 0 {name}"));
    }
}

fn network(name: &str, subnet: &str, more: &[Value]) -> Value {
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

fn default_network() -> Value {
    network("podman", "10.88.0", &[])
}

/// Everything that plugins make for one container; what podman and the bridge keep for themselves is left out.
fn state(lab: &Lab) -> String {
    let listings = [
        "nft --stateless list ruleset",
        "iptables-nft-save",
        "ip6tables-nft-save",
        "tc qdisc show",
        "ls /sys/class/net",
        "find /run/cni /var/lib/cni/results -type f",
        "find /var/lib/cni/networks -type f -not -name last_reserved_ip* -not -name lock",
    ];
    let lines =
        |listing: &str| lab.host.try_run(listing).unwrap_or_default().lines().map(without_time).collect::<Vec<_>>();
    listings.map(|listing| format!("== {listing}\n{}\n", lines(listing).join("\n"))).concat()
}

/// iptables-save says when it ran, and counts.
fn without_time(line: &str) -> String {
    let line = if line.starts_with('#') { "" } else { line };
    line.split(" [").next().unwrap_or_default().to_owned()
}

#[test]
fn published_ports_answer_from_everywhere_until_the_container_is_removed() {
    let podman = Podman::new(&[default_network()]);
    let lab = &podman.lab;
    lab.host.drop_forwarded();
    let before = podman.state_after_a_first("podman");
    let web = podman.start("web", "-p 8080:80 -p 127.0.0.1:8081:80 -p 5353:53/udp -p 9000-9010:9000-9010/udp");
    let _servers = [serve(&web, 80, "web"), serve(&web, 53, "dns")];

    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "web");
    Fetch::new(Proto::Udp, "192.0.2.1:5353").expect(&lab.client, "dns");
    Fetch::new(Proto::Tcp, "192.0.2.1:8081").expect_nothing(&lab.client);
    Fetch::new(Proto::Tcp, "127.0.0.1:8080").expect(&lab.host, "web");
    Fetch::new(Proto::Tcp, "127.0.0.1:8081").expect(&lab.host, "web");
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&web, "web");
    let neighbour = podman.start("neighbour", "");
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&neighbour, "web");
    Fetch::new(Proto::Tcp, &format!("{}:80", podman.address("web"))).expect(&neighbour, "web");

    podman.remove("web");
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect_nothing(&lab.client);
    podman.remove("neighbour");
    assert_eq!(state(lab), before, "something is left, or more than its own is gone");
}

#[test]
fn restart_and_reload_keep_published_ports() {
    let podman = Podman::new(&[default_network()]);
    let lab = &podman.lab;
    let before = podman.state_after_a_first("podman");
    podman.start("web", "-p 8080:80");
    podman.podman("restart --time 0 web");
    let web = podman.netns("web");
    {
        let _server = serve(&web, 80, "restarted");
        Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "restarted");
    }
    // Somebody flushes everything; `podman network reload` is the cure that its manual page names.
    lab.host.run("nft flush ruleset");
    podman.podman("network reload web");
    let _server = serve(&web, 80, "reloaded");
    Fetch::new(Proto::Tcp, "192.0.2.1:8080").expect(&lab.client, "reloaded");
    podman.remove("web");
    // The bridge's own masquerade chain was flushed for good; ours must be as after any other container.
    let ours = |state: &str| state.lines().filter(|line| line.contains("podman/")).count();
    assert_eq!(ours(&state(lab)), ours(&before), "something is left");
}

#[test]
fn a_port_that_is_taken_is_refused_and_its_owner_goes_on() {
    let podman = Podman::new(&[default_network()]);
    let lab = &podman.lab;
    let web = podman.start("web", "-p 127.0.0.1:8080:80");
    let _server = serve(&web, 80, "web");
    // podman itself holds the port by a listening socket only where it forwards itself; the chain must refuse.
    let refused = podman.sandbox.try_run(&[
        "podman",
        "run",
        "-d",
        "--name",
        "thief",
        "-p",
        "127.0.0.1:8080:80",
        "box",
        "/bin/sleep",
        "infinity",
    ]);
    assert!(refused.is_err(), "a second container got the same port");
    Fetch::new(Proto::Tcp, "127.0.0.1:8080").expect(&lab.host, "web");
    let _ = podman.sandbox.try_run(&["podman", "rm", "--force", "thief"]);
    Fetch::new(Proto::Tcp, "127.0.0.1:8080").expect(&lab.host, "web");
}

#[test]
fn a_limited_network_is_limited_in_both_directions() {
    let rates = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}, "ingressRate": 20_000_000,
                       "ingressBurst": 4_294_967_295_u64, "egressRate": 10_000_000, "egressBurst": 4_294_967_295_u64});
    let podman = Podman::new(&[default_network(), network("limited", "10.89.0", &[rates])]);
    let lab = &podman.lab;
    let before = podman.state_after_a_first("limited");
    let slow = podman.start("slow", "--network limited -p 8080:80");
    let into = throughput(&lab.client, &slow, Proto::Tcp, &format!("{}:5001", podman.address("slow")), 3);
    let out = throughput(&slow, &lab.client, Proto::Tcp, "192.0.2.2:5001", 3);
    for (measured, limit) in [(&into, 20e6), (&out, 10e6)] {
        let rate = measured.bits_per_second();
        assert!((0.85 * limit..=1.08 * limit).contains(&rate), "{rate:.0} bit/s under a limit of {limit:.0}");
    }
    assert_eq!(slow.sysctl("net/core/somaxconn"), "777");
    podman.remove("slow");
    assert_eq!(state(lab), before, "something is left, or more than its own is gone");
}

#[test]
fn cni_chain_checks_and_removes_what_podman_has_added() {
    let podman = Podman::new(&[default_network()]);
    let before = podman.state_after_a_first("podman");
    let web = podman.start("web", "-p 8080:80 -p 127.0.0.1:53:53/udp --mac-address 02:00:00:00:00:07");
    let id = podman.podman("inspect --format {{.Id}} web");
    let netns = podman.podman("inspect --format {{.NetworkSettings.SandboxKey}} web");
    let program = netns_tests::plugin::directory().join("cni-chain");
    let cni_chain = |verb: &str, rest: &[&str]| {
        let path = cni_path();
        let words = [program.to_str().unwrap_or_default(), verb, "podman", "--container-id", &id, "--path", &path];
        podman.sandbox.try_run(&[&words[..], rest].concat())
    };
    let checked = cni_chain("check", &[&netns]);
    assert!(checked.is_ok(), "{checked:?}");
    web.set_sysctl("net/core/somaxconn", "1");
    let checked = cni_chain("check", &[&netns]);
    assert!(checked.as_ref().is_err_and(|said| said.contains("expected \"777\", found \"1\"")), "{checked:?}");
    // Its namespace is in the cache as well.
    let removed = cni_chain("del", &[]);
    assert!(removed.is_ok(), "{removed:?}");
    assert_eq!(state(&podman.lab), before, "something is left");
    podman.remove("web");
}
