//! A plugin with a configuration that makes it do all that it can, on a host where that succeeds.

use serde_json::{Value, json};

use crate::Verb;
use crate::lab::{Container, Lab};
use crate::plugin::{Outcome, Plugin, Target};
use crate::snapshot::{Part, Snapshot};

/// The name of the network.
pub const NETWORK: &str = "net";

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Play {
    /// Ports of both versions of IP, some on one address, with all that snat needs.
    Portmap,
    /// Limits both ways.
    Bandwidth,
    /// Limits both ways for some subnets only.
    BandwidthOfSubnets,
    /// Limits both ways, kept inside the container.
    BandwidthInside,
    /// An isolated container on a host whose iptables drop what is forwarded.
    Firewall,
    /// A container that may send only as itself, on a host that drops what is forwarded in a chain of its own.
    FirewallOfChains,
    /// The first on a host with iptables-legacy.
    FirewallLegacy,
    /// Sysctls and every attribute of the link.
    Tuning,
}

impl Play {
    /// All of them.
    pub const ALL: [Play; 8] = [
        Play::Portmap,
        Play::Bandwidth,
        Play::BandwidthOfSubnets,
        Play::BandwidthInside,
        Play::Firewall,
        Play::FirewallOfChains,
        Play::FirewallLegacy,
        Play::Tuning,
    ];

    /// The plugin that plays.
    pub fn plugin(self) -> &'static str {
        match self {
            Play::Portmap => "portmap",
            Play::Bandwidth | Play::BandwidthOfSubnets | Play::BandwidthInside => "bandwidth",
            Play::Firewall | Play::FirewallOfChains | Play::FirewallLegacy => "firewall",
            Play::Tuning => "tuning",
        }
    }

    /// Its own keys.
    fn keys(self) -> Value {
        let limits = json!({"ingressRate": 10_000_000, "ingressBurst": 1_000_000, "egressRate": 20_000_000, "egressBurst": 2_000_000});
        match self {
            Play::Portmap => json!({"snat": true, "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
                {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
                {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "2001:db8:2::1"},
            ]}}),
            Play::Bandwidth => json!({"runtimeConfig": {"bandwidth": limits}}),
            Play::BandwidthOfSubnets => json!({
                "runtimeConfig": {"bandwidth": limits}, "unshapedSubnets": ["10.0.0.0/8", "fd00::/8"],
            }),
            Play::BandwidthInside => json!({"runtimeConfig": {"bandwidth": limits}, "inContainer": true}),
            Play::Firewall | Play::FirewallLegacy => json!({"ingressPolicy": "isolated"}),
            Play::FirewallOfChains => json!({
                "ingressPolicy": "same-bridge", "antiSpoof": true, "hostChains": ["inet host forward"],
            }),
            Play::Tuning => json!({
                "sysctl": {
                    "net.core.somaxconn": "500",
                    "net.ipv4.conf.IFNAME.arp_filter": "1",
                    "net.ipv6.conf.all.forwarding": "1",
                },
                "mac": "02:00:00:00:aa:01", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 500,
            }),
        }
    }

    /// Where the plugin leaves something on the host.
    fn on_host(self) -> &'static [Part] {
        match self {
            Play::Portmap => &[Part::Rules, Part::Sysctls, Part::Files],
            Play::Bandwidth | Play::BandwidthOfSubnets | Play::BandwidthInside => &[Part::Links],
            Play::Firewall | Play::FirewallOfChains => &[Part::Rules, Part::Files],
            Play::FirewallLegacy => &[Part::Rules, Part::LegacyRules, Part::Files],
            Play::Tuning => &[Part::Files],
        }
    }

    /// Where the plugin leaves something in the container.
    fn in_container(self) -> &'static [Part] {
        match self {
            Play::Tuning => &[Part::Links, Part::Sysctls],
            Play::BandwidthInside => &[Part::Links],
            _ => &[],
        }
    }
}

/// A plugin, its host, and a container of it.
#[derive(Debug)]
pub struct Scene {
    /// What is played.
    pub play: Play,
    /// The program.
    pub plugin: Plugin,
    /// Host and client.
    pub lab: Lab,
    /// The container.
    pub container: Container,
    /// The configuration.
    pub config: Value,
    /// CNI_CONTAINERID and so on.
    pub target: Target,
    /// The container's hardware address.
    mac: String,
}

/// The state of host and container, in part.
pub type Glance = [Snapshot; 2];

impl Scene {
    /// Sets it.
    #[track_caller]
    pub fn set(play: Play) -> Scene {
        let lab = Lab::new();
        let container = lab.container(2);
        let mut config = json!({
            "cniVersion": "1.1.0", "name": NETWORK, "type": play.plugin(),
            "prevResult": container.prev_result("1.1.0"),
        });
        for (key, value) in play.keys().as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let target = container.target();
        let link = container.netns.run("ip link show dev eth0");
        let mac =
            link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap_or_default().to_owned();
        let scene = Scene { play, plugin: Plugin::ours(play.plugin()), lab, container, config, target, mac };
        scene.prepare();
        scene
    }

    /// What the host has of its own.
    fn prepare(&self) {
        match self.play {
            Play::Firewall => self.lab.host.drop_forwarded(),
            Play::FirewallOfChains => {
                self.lab.host.nft("add table inet host");
                self.lab.host.nft("add chain inet host forward { type filter hook forward priority 0; policy drop; }");
            }
            Play::FirewallLegacy => {
                self.lab.host.run("iptables-legacy -w -P FORWARD DROP");
                self.lab.host.run("ip6tables-legacy -w -P FORWARD DROP");
            }
            // Other than what goes with that of `all`: whoever loses it is found out.
            Play::Tuning => self.container.netns.set_sysctl("net/ipv6/conf/eth0/forwarding", "1"),
            _ => {}
        }
    }

    /// Takes away what is put in once a host and stays.
    #[track_caller]
    pub fn reset(&self) {
        if self.play == Play::Tuning {
            self.renew_container();
        }
        if self.play.plugin() != "firewall" {
            return;
        }
        self.lab.host.nft("flush ruleset");
        self.lab.host.run("rm -rf /run/cni");
        for family in ["iptables-legacy", "ip6tables-legacy"] {
            if self.play == Play::FirewallLegacy {
                self.lab.host.run(&format!("{family} -w -F"));
                self.lab.host.run(&format!("{family} -w -X"));
            }
        }
        self.prepare();
    }

    /// As if the container were another one: what a call that was disturbed has left.
    fn renew_container(&self) {
        let netns = &self.container.netns;
        netns.run(&format!(
            "ip link set eth0 address {} mtu 1500 promisc off allmulticast off txqueuelen 1000",
            self.mac
        ));
        for key in ["net/ipv6/conf/all/forwarding", "net/ipv4/conf/eth0/arp_filter"] {
            netns.set_sysctl(key, "0");
        }
        netns.set_sysctl("net/core/somaxconn", "4096");
        self.prepare();
    }

    /// Calls the plugin.
    #[track_caller]
    pub fn call(&self, verb: Verb) -> Outcome {
        self.plugin.call(&self.lab.host, verb, self.config_for(verb), &self.target)
    }

    /// The configuration; GC's says that nobody lives.
    pub fn config_for(&self, verb: Verb) -> &Value {
        static NOBODY: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
        match verb {
            Verb::Gc => NOBODY.get_or_init(
                || json!({"cniVersion": "1.1.0", "name": NETWORK, "type": "any", "cni.dev/valid-attachments": []}),
            ),
            _ => &self.config,
        }
    }

    /// A run of the plugin, to be disturbed.
    #[cfg(target_arch = "x86_64")]
    pub fn run(&self, verb: Verb) -> crate::faults::Run<'_> {
        let config = self.config_for(verb);
        crate::faults::Run { plugin: &self.plugin, host: &self.lab.host, verb, config, target: &self.target }
    }

    /// The state of whatever the plugin touches.
    #[track_caller]
    pub fn glance(&self) -> Glance {
        [self.lab.host.glance(self.play.on_host()), self.container.netns.glance(self.play.in_container())]
    }
}

/// What is clean: as it was before the first ADD, or as an ADD and a DEL leave a host.
#[derive(Debug)]
pub struct Clean<'a> {
    scene: &'a Scene,
    states: [Glance; 2],
}

impl<'a> Clean<'a> {
    /// Learns it: sets and resets the scene.
    #[track_caller]
    pub fn of(scene: &'a Scene) -> Clean<'a> {
        let virgin = scene.glance();
        scene.call(Verb::Add).succeeds();
        scene.call(Verb::Check).succeeds();
        scene.call(Verb::Del).succeeds();
        let settled = scene.glance();
        scene.reset();
        assert_eq!(same(&virgin, &scene.glance()), Ok(()), "after the reset");
        Clean { scene, states: [virgin, settled] }
    }

    /// What was learned earlier.
    pub fn with(scene: &'a Scene, states: [Glance; 2]) -> Clean<'a> {
        Clean { scene, states }
    }

    /// The scene.
    pub fn scene(&self) -> &Scene {
        self.scene
    }

    /// What was learned.
    pub fn states(&self) -> &[Glance; 2] {
        &self.states
    }

    /// Fails the test unless it is clean.
    ///
    /// What is put in once a host may be there in part: one program's rules, or one version's of IP.
    #[track_caller]
    pub fn assert(&self, story: &str) {
        self.is_clean().unwrap_or_else(|what| panic!("{story}: {what}"));
    }

    /// What isn't, if it isn't.
    pub fn is_clean(&self) -> Result<(), String> {
        self.is_clean_after(Verb::Del)
    }

    /// What this verb should have removed and hasn't: GC finds no limits that are inside a container, whose namespace nobody
    /// tells it.
    pub fn is_clean_after(&self, verb: Verb) -> Result<(), String> {
        self.is_clean_on(if verb == Verb::Gc && self.scene.play == Play::BandwidthInside { 1 } else { 2 })
    }

    /// What is left on the host, whatever has become of the container.
    pub fn is_clean_on_host(&self) -> Result<(), String> {
        self.is_clean_on(1)
    }

    fn is_clean_on(&self, sides: usize) -> Result<(), String> {
        let now = self.scene.glance();
        let is_clean = |side: usize| {
            let known = self.states.each_ref().map(|state| state[side].sections().collect::<Vec<_>>());
            now[side].sections().enumerate().all(|(n, section)| known.iter().any(|state| state[n] == section))
        };
        if (0..sides).all(is_clean) { Ok(()) } else { same(&self.states[1], &now) }
    }
}

/// What has changed, if anything has.
pub fn same(before: &Glance, after: &Glance) -> Result<(), String> {
    let diffs = [before[0].diff(&after[0]), before[1].diff(&after[1])];
    match diffs.each_ref().map(String::as_str) {
        ["", ""] => Ok(()),
        [host, container] => Err(format!("on the host\n{host}in the container\n{container}")),
    }
}

/// A test of each promise, a function of a [`Play`], for every play there is.
#[macro_export]
macro_rules! of_every_play {
    ($($promise:ident)*) => {
        $(mod $promise {
            $crate::of_every_play!(@ $promise:
                portmap Portmap, bandwidth Bandwidth, bandwidth_of_subnets BandwidthOfSubnets, bandwidth_inside BandwidthInside,
                firewall Firewall, firewall_of_chains FirewallOfChains, firewall_legacy FirewallLegacy, tuning Tuning);
        })*
    };
    (@ $promise:ident: $($name:ident $play:ident),*) => {
        $(#[test]
        fn $name() {
            super::$promise(netns_tests::scene::Play::$play);
        })*

        #[test]
        fn every_play_is_covered() {
            use netns_tests::scene::Play;
            assert_eq!([$(Play::$play),*], Play::ALL);
        }
    };
}
