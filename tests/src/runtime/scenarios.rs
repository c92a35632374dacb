//! What the runtimes are asked to do, and what must hold meanwhile.

use serde_json::json;

use super::claims::Claims;
use super::containerd::{Containerd, Pod, conflist};
use super::podman::{Podman, default_network, network};
use super::surroundings::{Guests, Surroundings};
use super::{Running, Runtime, Subject};
use crate::namespace::Netns;
use crate::traffic::throughput::throughput;
use crate::traffic::{Fetch, Proto, Server, serve};

/// A scenario by its name.
pub struct Scenario {
    /// As its test is called.
    pub name: &'static str,
    /// What is done.
    pub play: fn(&Subject, &mut Claims),
}

impl Scenario {
    /// Plays it with the plugins of a directory.
    pub fn play(&self, plugins: &std::path::Path) -> Claims {
        let mut claims = Claims::default();
        let subject = Subject::at(plugins, self.name);
        let mut inner = Claims::default();
        claims.runs("the scenario comes to its end", || (self.play)(&subject, &mut inner));
        inner.absorb(claims)
    }
}

macro_rules! scenarios {
    ($($name:ident: $play:expr;)*) => {
        /// All of them, in the order of a report.
        pub const ALL: &[Scenario] = &[$(Scenario { name: stringify!($name), play: $play }),*];
    };
}

scenarios! {
    podman_publishes_ports: podman_ports;
    podman_restarts_and_reloads: podman_restart;
    podman_refuses_a_taken_port: podman_taken_port;
    podman_limits_a_network: podman_limits;
    podman_on_an_open_host: |s, c| podman_in(s, c, Surroundings::Open);
    podman_where_iptables_nft_drops: |s, c| podman_in(s, c, Surroundings::DropNft);
    podman_where_iptables_legacy_drops: |s, c| podman_in(s, c, Surroundings::DropLegacy);
    podman_beside_a_docker_that_was_first: |s, c| podman_in(s, c, Surroundings::DockerBefore);
    podman_beside_a_docker_that_comes_later: |s, c| podman_in(s, c, Surroundings::DockerAfter);
    podman_beside_firewalld: |s, c| podman_in(s, c, Surroundings::Firewalld);
    containerd_with_cni_version_0_3_1: |s, c| containerd_pods(s, c, "0.3.1");
    containerd_with_cni_version_0_4_0: |s, c| containerd_pods(s, c, "0.4.0");
    containerd_with_cni_version_1_0_0: |s, c| containerd_pods(s, c, "1.0.0");
    containerd_is_killed_while_a_pod_starts: containerd_killed_in_add;
    containerd_is_killed_while_a_pod_stops: containerd_killed_in_del;
    containerd_after_a_reboot: containerd_reboot;
    containerd_on_an_open_host: |s, c| containerd_in(s, c, Surroundings::Open);
    containerd_where_iptables_nft_drops: |s, c| containerd_in(s, c, Surroundings::DropNft);
    containerd_where_iptables_legacy_drops: |s, c| containerd_in(s, c, Surroundings::DropLegacy);
    containerd_beside_a_docker_that_was_first: |s, c| containerd_in(s, c, Surroundings::DockerBefore);
    containerd_beside_a_docker_that_comes_later: |s, c| containerd_in(s, c, Surroundings::DockerAfter);
    containerd_beside_firewalld: |s, c| containerd_in(s, c, Surroundings::Firewalld);
}

fn tcp(address: &str) -> Fetch {
    Fetch::new(Proto::Tcp, address)
}

fn udp(address: &str) -> Fetch {
    Fetch::new(Proto::Udp, address)
}

const LEFT_AS_BEFORE: &str =
    "nothing is left and nothing else is gone: rules, qdiscs, links, routes, files, mounts, processes";

fn podman_ports(subject: &Subject, claims: &mut Claims) {
    let podman = Podman::new(subject, &[default_network(), network("second", "10.77.0", &[])]);
    let (host, client) = (&podman.lab.host, &podman.lab.client);
    let before = podman.state_after_a_first("podman");
    let web = podman.start("web", "-p 8080:80 -p 127.0.0.1:8081:80 -p 5353:53/udp -p 9000-9010:9000-9010/udp");
    let _servers = [serve(&web, 80, "web"), serve(&web, 53, "dns"), serve(&web, 9005, "range")];
    let neighbour = podman.start("neighbour", "");
    let address = format!("{}:80", podman.address("web"));

    claims.answers("-p 8080:80 from another machine", tcp("192.0.2.1:8080"), client, "web");
    claims.answers("-p 5353:53/udp from another machine", udp("192.0.2.1:5353"), client, "dns");
    claims.answers("-p 9000-9010:9000-9010/udp from another machine", udp("192.0.2.1:9005"), client, "range");
    claims.is_silent("-p 127.0.0.1:8081:80 not from another machine", tcp("192.0.2.1:8081"), client);
    claims.answers("-p 8080:80 from the host, at its address", tcp("192.0.2.1:8080"), host, "web");
    claims.answers("-p 8080:80 from the host, at 127.0.0.1", tcp("127.0.0.1:8080"), host, "web");
    claims.answers("-p 127.0.0.1:8081:80 from the host", tcp("127.0.0.1:8081"), host, "web");
    claims.answers("-p 8080:80 from another container", tcp("192.0.2.1:8080"), &neighbour, "web");
    claims.answers("-p 8080:80 from the container itself", tcp("192.0.2.1:8080"), &web, "web");
    claims.answers("container to container, directly", tcp(&address), &neighbour, "web");

    podman.remove("web");
    claims.is_silent("after podman rm -f nobody answers another machine", tcp("192.0.2.1:8080"), client);
    claims.is_silent("after podman rm -f nobody answers the host", tcp("127.0.0.1:8081"), host);
    podman.remove("neighbour");
    claims.is_unchanged(LEFT_AS_BEFORE, &before, || podman.state());

    let both = podman.start("both", "--network podman,second -p 8080:80");
    let _server = serve(&both, 80, "both");
    claims.answers("--network A,B -p 8080:80 from another machine", tcp("192.0.2.1:8080"), client, "both");
    claims.runs("podman network disconnect A", || podman.podman("network disconnect podman both"));
    claims.answers("-p 8080:80 when B is left", tcp("192.0.2.1:8080"), client, "both");
    claims.runs("podman network connect A", || podman.podman("network connect podman both"));
    claims.answers("-p 8080:80 when A is back", tcp("192.0.2.1:8080"), client, "both");
    podman.remove("both");
    claims.is_silent("after podman rm -f of both nobody answers", tcp("192.0.2.1:8080"), client);
    claims.no_call_failed(&podman.recorder);
}

fn podman_restart(subject: &Subject, claims: &mut Claims) {
    let podman = Podman::new(subject, &[default_network()]);
    let client = &podman.lab.client;
    let before = podman.state_after_a_first("podman");
    podman.start("web", "-p 8080:80");
    podman.podman("restart --time 0 web");
    let web = podman.netns("web");
    let server = serve(&web, 80, "restarted");
    claims.answers("the published port after podman restart", tcp("192.0.2.1:8080"), client, "restarted");
    drop(server);
    let _server = serve(&web, 80, "reloaded");
    claims.runs("podman network reload with everything in place", || podman.podman("network reload web"));
    claims.answers("the published port after podman network reload", tcp("192.0.2.1:8080"), client, "reloaded");
    podman.podman("stop --time 0 web");
    claims.is_silent("after podman stop nobody answers", tcp("192.0.2.1:8080"), client);
    podman.podman("start web");
    let web = podman.netns("web");
    let server = serve(&web, 80, "started");
    claims.answers("the published port after podman start", tcp("192.0.2.1:8080"), client, "started");
    drop(server);
    podman.remove("web");
    claims.is_unchanged(LEFT_AS_BEFORE, &before, || podman.state());
    claims.no_call_failed(&podman.recorder);

    podman.start("web", "-p 8080:80");
    // Somebody flushes everything; `podman network reload` is the cure that its manual page names.
    podman.lab.host.run("nft flush ruleset");
    claims.runs("podman network reload after nft flush ruleset", || podman.podman("network reload web"));
    let _server = serve(&podman.netns("web"), 80, "flushed");
    claims.answers("the published port after both", tcp("192.0.2.1:8080"), client, "flushed");
    podman.remove("web");
    claims.is_silent("after podman rm -f nobody answers", tcp("192.0.2.1:8080"), client);
}

fn podman_taken_port(subject: &Subject, claims: &mut Claims) {
    let podman = Podman::new(subject, &[default_network()]);
    let host = &podman.lab.host;
    podman.state_after_a_first("podman");
    let web = podman.start("web", "-p 8080:80");
    let _server = serve(&web, 80, "web");
    // While it lives podman itself refuses.
    podman.kill_conmon("web");
    let before = podman.state();
    let refused = podman.try_podman("run -d --name thief -p 8080:80 box /bin/sleep infinity");
    claims.note("a second container does not get the port", refused.map_or(Ok(()), |id| Err(format!("{id} started"))));
    claims.answers("its owner goes on", tcp("127.0.0.1:8080"), host, "web");
    let _ = podman.try_podman("rm --force thief");
    claims.answers("its owner goes on when the second is gone", tcp("127.0.0.1:8080"), host, "web");
    claims.is_unchanged("nothing of the second is left", &before, || podman.state());
}

fn podman_limits(subject: &Subject, claims: &mut Claims) {
    let rates = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}, "ingressRate": 20_000_000,
                       "ingressBurst": 2_000_000, "egressRate": 10_000_000, "egressBurst": 1_000_000});
    let podman = Podman::new(subject, &[default_network(), network("limited", "10.89.0", &[rates])]);
    let client = &podman.lab.client;
    let before = podman.state_after_a_first("limited");
    let slow = podman.start("slow", "--network limited -p 8080:80 --mac-address 02:00:00:00:00:07");
    let _server = serve(&slow, 80, "slow");
    let into = throughput(client, &slow, Proto::Tcp, &format!("{}:5001", podman.address("slow")), 3);
    let out = throughput(&slow, client, Proto::Tcp, "192.0.2.2:5001", 3);
    claims.is_limited("a limit of 20 Mbit/s into the container", &into, 20e6, 20e6);
    claims.is_limited("a limit of 10 Mbit/s out of the container", &out, 10e6, 10e6);
    claims.answers("a published port of a limited network", tcp("192.0.2.1:8080"), client, "slow");
    let somaxconn = slow.sysctl("net/core/somaxconn");
    claims.note("a sysctl in the container", if somaxconn == "777" { Ok(()) } else { Err(somaxconn) });
    let link = slow.run("ip link show dev eth0");
    claims.note("--mac-address", if link.contains("02:00:00:00:00:07") { Ok(()) } else { Err(link) });
    podman.remove("slow");
    claims.is_unchanged(LEFT_AS_BEFORE, &before, || podman.state());
    claims.no_call_failed(&podman.recorder);
}

fn podman_in(subject: &Subject, claims: &mut Claims, surroundings: Surroundings) {
    live_in(&Podman::new(subject, &[default_network()]), claims, surroundings);
}

fn containerd_in(subject: &Subject, claims: &mut Claims, surroundings: Surroundings) {
    let mut conflist = conflist("1.0.0");
    if surroundings == Surroundings::Firewalld {
        // A reload of firewalld flushes the tables of iptables, and the bridge plugin then fails DEL for want of its
        // masquerading chain, so that the pod can't be stopped any more. Here nobody needs it.
        conflist["plugins"][0]["ipMasq"] = false.into();
    }
    live_in(&Containerd::new(subject, &conflist), claims, surroundings);
}

/// Containers that come before and after a host's filter changes.
fn live_in(runtime: &dyn Runtime, claims: &mut Claims, surroundings: Surroundings) {
    let (lab, sandbox) = (&runtime.lab, &runtime.sandbox);
    let mut guests = surroundings.prepare(lab, sandbox);
    let _outside = serve(&lab.client, 80, "outside");
    let first = runtime.run("first", 8080);
    let _servers = [serve(&first.netns, 80, "first"), serve(&lab.host, 81, "host")];
    reaches_and_is_reached(claims, runtime, "", &first, 8080, "first");
    let mut dockers = dockers_container(runtime, &guests);
    if surroundings.drops_from_the_start() {
        let direct = tcp(&format!("{}:80", first.address));
        claims.is_silent("a container's own address stays shut for other machines", direct, &lab.client);
    }
    if surroundings.change(lab, sandbox, &mut guests) {
        let published = tcp("192.0.2.1:8080");
        claims.answers("afterwards: the published port of before", published, &lab.client, "first");
        if !surroundings.forgets() || runtime.reload(&first) {
            let out = tcp("192.0.2.2:80");
            claims.answers("afterwards: a container of before to another machine", out, &first.netns, "outside");
        }
        let second = runtime.run("second", 8082);
        let _server = serve(&second.netns, 80, "second");
        reaches_and_is_reached(claims, runtime, "afterwards: ", &second, 8082, "second");
        dockers = dockers.or_else(|| dockers_container(runtime, &guests));
        beside_dockers(claims, runtime, "afterwards: ", &second, dockers.as_ref());
        runtime.remove(&second);
    } else {
        beside_dockers(claims, runtime, "", &first, dockers.as_ref());
    }
    runtime.remove(&first);
    if dockers.is_some() {
        let published = tcp(&format!("192.0.2.1:{DOCKERS}"));
        claims.answers("when it is gone Docker's container goes on", published, &lab.client, "docker's");
    }
    claims.is_silent("when it is gone nobody answers", tcp("192.0.2.1:8080"), &lab.client);
    let traces = runtime.traces_of(&first.address);
    claims.note("when it is gone no rule, source or file has its address", traces.map_or(Ok(()), Err));
    claims.no_call_failed(&runtime.recorder);
}

fn reaches_and_is_reached(
    claims: &mut Claims,
    runtime: &dyn Runtime,
    when: &str,
    running: &Running,
    port: u16,
    token: &str,
) {
    let (lab, published) = (&runtime.lab, tcp(&format!("192.0.2.1:{port}")));
    let mut answers = |what: &str, fetch: &Fetch, from: &Netns, token: &str| {
        claims.answers(&format!("{when}{what}"), fetch.clone(), from, token);
    };
    answers("a published port from another machine", &published, &lab.client, token);
    answers("a published port from the host", &published, &lab.host, token);
    answers("a published port from the container itself", &published, &running.netns, token);
    answers("a container to another machine", &tcp("192.0.2.2:80"), &running.netns, "outside");
}

/// The port that Docker publishes.
const DOCKERS: u16 = 9090;

/// A container of Docker's with a published port, and its server, if there is a Docker.
fn dockers_container(runtime: &dyn Runtime, guests: &Guests) -> Option<(Netns, Server)> {
    let netns = guests.docker.as_ref()?.publish(&runtime.sandbox, DOCKERS);
    let server = serve(&netns, 80, "docker's");
    Some((netns, server))
}

/// Ours and Docker's container with their published ports, side by side.
fn beside_dockers(
    claims: &mut Claims,
    runtime: &dyn Runtime,
    when: &str,
    ours: &Running,
    dockers: Option<&(Netns, Server)>,
) {
    let Some((netns, _)) = dockers else { return };
    let published = tcp(&format!("192.0.2.1:{DOCKERS}"));
    let mut answers = |what: &str, from: &Netns, port: &Fetch, token: &str| {
        claims.answers(&format!("{when}{what}"), port.clone(), from, token);
    };
    answers("Docker's published port from another machine", &runtime.lab.client, &published, "docker's");
    answers("Docker's published port from a container", &ours.netns, &published, "docker's");
    answers("a published port from Docker's container", netns, &tcp("192.0.2.1:8080"), "first");
}

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

fn web_pod() -> Pod {
    Pod::named("web")
        .port(Proto::Tcp, 8080, 80, "")
        .port(Proto::Udp, 5353, 53, "")
        .port(Proto::Tcp, 8081, 80, "127.0.0.1")
        .port(Proto::Tcp, 8082, 80, "192.0.2.1")
        .annotation(INGRESS, "20M")
        .annotation(EGRESS, "10M")
}

fn containerd_pods(subject: &Subject, claims: &mut Claims, version: &str) {
    let containerd = Containerd::new(subject, &conflist(version));
    let (host, client, cri) = (&containerd.lab.host, &containerd.lab.client, &containerd.cri);
    let before = containerd.state_after_a_first();
    let id = containerd.run_pod(&web_pod());
    let web = containerd.netns(&id);
    let servers = [serve(&web, 80, "web"), serve(&web, 53, "dns")];
    let bare = containerd.run_pod(&Pod::named("bare").annotation(EGRESS, "10M"));
    let neighbour = containerd.netns(&bare);

    claims.answers("hostPort, tcp, from another machine", tcp("192.0.2.1:8080"), client, "web");
    claims.answers("hostPort, tcp, IPv6, from another machine", tcp("[2001:db8:2::1]:8080"), client, "web");
    claims.answers("hostPort, udp, from another machine", udp("192.0.2.1:5353"), client, "dns");
    claims.answers("hostPort, udp, IPv6, from another machine", udp("[2001:db8:2::1]:5353"), client, "dns");
    claims.answers("hostPort with hostIP 192.0.2.1 from another machine", tcp("192.0.2.1:8082"), client, "web");
    claims.is_silent("hostPort with hostIP 127.0.0.1 not from another machine", tcp("192.0.2.1:8081"), client);
    claims.answers("hostPort with hostIP 127.0.0.1 from the host", tcp("127.0.0.1:8081"), host, "web");
    claims.is_silent("hostPort with hostIP 192.0.2.1 not at 127.0.0.1", tcp("127.0.0.1:8082"), host);
    claims.answers("hostPort from the host", tcp("192.0.2.1:8080"), host, "web");
    claims.answers("hostPort from another pod", tcp("192.0.2.1:8080"), &neighbour, "web");
    claims.answers("hostPort from the pod itself", tcp("192.0.2.1:8080"), &web, "web");
    let address = &containerd.addresses(&id)[0];
    let into = throughput(client, &web, Proto::Tcp, &format!("{address}:5001"), 3);
    let out = throughput(&web, client, Proto::Tcp, "192.0.2.2:5001", 3);
    claims.is_limited("ingress-bandwidth 20M, from the first second on", &into, 20e6, 20e6);
    claims.is_limited("egress-bandwidth 10M, from the first second on", &out, 10e6, 10e6);
    drop(servers);

    claims.note("StopPodSandbox", cri.stop_pod(&id));
    claims.is_silent("after StopPodSandbox nobody answers", tcp("192.0.2.1:8080"), client);
    claims.note("StopPodSandbox once more", cri.stop_pod(&id));
    claims.note("RemovePodSandbox", cri.remove_pod(&id));
    claims.note("RemovePodSandbox once more", cri.remove_pod(&id));
    containerd.remove(&bare);
    claims.is_unchanged(LEFT_AS_BEFORE, &before, || containerd.state());
    claims.no_call_failed(&containerd.recorder);
}

/// The daemon dies when portmap has done its work, so that nobody ever hears of it.
fn containerd_killed_in_add(subject: &Subject, claims: &mut Claims) {
    let containerd = Containerd::new(subject, &conflist("1.0.0"));
    let (host, client) = (&containerd.lab.host, &containerd.lab.client);
    let before = containerd.state_after_a_first();
    containerd.recorder.hold(host, "portmap", "ADD");
    let started = std::thread::scope(|scope| {
        let starting = scope.spawn(|| containerd.cri.run_pod(&web_pod().config));
        containerd.recorder.await_held(host);
        containerd.kill();
        containerd.recorder.release(host);
        starting.join().unwrap_or_else(|_| Err("it panicked".into()))
    });
    assert!(started.is_err(), "the pod was started by a containerd that is dead");
    containerd.start();
    claims.note("the sandboxes of before are cleaned up", containerd.clean_up());
    // kubelet tries again.
    let id = containerd.cri.run_pod(&web_pod().attempt(1).config);
    claims.note("the pod's next sandbox gets the same host ports", id.clone());
    if let Ok(id) = id {
        let _server = serve(&containerd.netns(&id), 80, "again");
        claims.answers("hostPort from another machine", tcp("192.0.2.1:8080"), client, "again");
        claims.answers("hostPort, IPv6, from another machine", tcp("[2001:db8:2::1]:8080"), client, "again");
    }
    claims.note("the last sandbox is cleaned up", containerd.clean_up());
    claims.is_silent("afterwards nobody answers", tcp("192.0.2.1:8080"), client);
    claims.is_unchanged(LEFT_AS_BEFORE, &before, || containerd.state());
}

/// The daemon dies when portmap has taken its rules away and the plugins before it haven't been called.
fn containerd_killed_in_del(subject: &Subject, claims: &mut Claims) {
    let containerd = Containerd::new(subject, &conflist("1.0.0"));
    let (host, client) = (&containerd.lab.host, &containerd.lab.client);
    let before = containerd.state_after_a_first();
    let id = containerd.run_pod(&web_pod());
    containerd.recorder.hold(host, "portmap", "DEL");
    std::thread::scope(|scope| {
        scope.spawn(|| containerd.cri.stop_pod(&id));
        containerd.recorder.await_held(host);
        containerd.kill();
        containerd.recorder.release(host);
    });
    containerd.start();
    claims.note("StopPodSandbox after the restart", containerd.cri.stop_pod(&id));
    claims.note("RemovePodSandbox", containerd.cri.remove_pod(&id));
    claims.is_silent("afterwards nobody answers", tcp("192.0.2.1:8080"), client);
    claims.is_unchanged(LEFT_AS_BEFORE, &before, || containerd.state());
    claims.no_call_failed(&containerd.recorder);
}

/// containerd finds its disk as it was, and nothing else: no namespace, no rule, no /run.
fn containerd_reboot(subject: &Subject, claims: &mut Claims) {
    let containerd = Containerd::new(subject, &conflist("1.0.0"));
    let client = &containerd.lab.client;
    let before = containerd.state_after_a_first();
    let lost = containerd.run_pod(&web_pod());
    containerd.reboot();
    containerd.start();
    // kubelet starts the pod anew before it cleans up.
    let id = containerd.cri.run_pod(&web_pod().attempt(1).config);
    claims.note("a new sandbox gets the host ports", id.clone());
    claims.note("StopPodSandbox of the lost one", containerd.cri.stop_pod(&lost));
    claims.note("RemovePodSandbox of the lost one", containerd.cri.remove_pod(&lost));
    if let Ok(id) = id {
        let _server = serve(&containerd.netns(&id), 80, "again");
        claims.answers("hostPort from another machine", tcp("192.0.2.1:8080"), client, "again");
        containerd.remove(&id);
    }
    claims.is_silent("afterwards nobody answers", tcp("192.0.2.1:8080"), client);
    claims.is_unchanged(LEFT_AS_BEFORE, &before, || containerd.state());
    claims.no_call_failed(&containerd.recorder);
}
