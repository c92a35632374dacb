//! A host with a bridge, containers on it and a client machine outside, ready for a plugin to be tried.
//!
//! ```text
//!   client                      host                         containers
//!   192.0.2.2/24  ── ext0  192.0.2.1/24
//!   2001:db8:2::2/64       2001:db8:2::1/64
//!                          cni0  10.88.0.1/24      ──  eth0  10.88.0.N/24
//!                                fd00:88::1/64               fd00:88::N/64
//! ```

use serde_json::{Value, json};

use crate::host::Host;
use crate::namespace::{End, Netns, connect};
use crate::plugin::Target;

/// The host's addresses towards the client.
pub const HOST: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
/// The client's addresses.
pub const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];
/// The bridge's addresses: the containers' gateways.
pub const GATEWAY: [&str; 2] = ["10.88.0.1", "fd00:88::1"];

/// A host, a client, and as many containers as are asked for.
#[derive(Debug)]
pub struct Lab {
    /// Where plugins run.
    pub host: Host,
    /// A machine outside, whose default route is the host.
    pub client: Netns,
}

impl Lab {
    /// The host with its bridge `cni0`, and the client. No container yet.
    #[track_caller]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Lab {
        let lab = Lab::without_bridge();
        lab.host.run("ip link add cni0 type bridge");
        lab.host.run("ip link set cni0 up");
        lab.host.address("cni0", &format!("{}/24", GATEWAY[0]));
        lab.host.address("cni0", &format!("{}/64", GATEWAY[1]));
        lab
    }

    /// The host and the client only: for a main plugin that makes the rest.
    #[track_caller]
    pub fn without_bridge() -> Lab {
        let (host, client) = (Host::new(), Netns::new("client"));
        let prefixed = |[v4, v6]: [&str; 2]| [format!("{v4}/24"), format!("{v6}/64")];
        let (of_host, of_client) = (prefixed(HOST), prefixed(CLIENT));
        let of_host = of_host.each_ref().map(String::as_str);
        let of_client = of_client.each_ref().map(String::as_str);
        connect(End::new(&host, "ext0", &of_host), End::new(&client, "eth0", &of_client));
        HOST.iter().for_each(|gateway| client.route("default", gateway));
        Lab { host, client }
    }

    /// A container with the addresses ending in `n`, attached to the bridge as the bridge plugin would.
    #[track_caller]
    pub fn container(&self, n: u8) -> Container {
        let container = Container {
            netns: Netns::new(&format!("container {n}")),
            id: format!("container-{n}"),
            ifname: "eth0".into(),
            host_ifname: format!("veth{n}"),
            addresses: [format!("10.88.0.{n}"), format!("fd00:88::{n:x}")],
        };
        let [v4, v6] = &container.addresses;
        let addresses = [format!("{v4}/24"), format!("{v6}/64")];
        let addresses = addresses.each_ref().map(String::as_str);
        connect(End::new(&self.host, &container.host_ifname, &[]), End::new(&container.netns, "eth0", &addresses));
        self.host.run(&format!("ip link set {} master cni0", container.host_ifname));
        GATEWAY.iter().for_each(|gateway| container.netns.route("default", gateway));
        // The kernel's own come behind a queue of work, which waits on a busy machine.
        self.host.settle();
        container.netns.settle();
        container
    }
}

/// A container's network, as the plugins before ours in the chain have left it.
#[derive(Debug)]
pub struct Container {
    /// Its namespace.
    pub netns: Netns,
    /// CNI_CONTAINERID.
    pub id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// The host's end of its veth pair.
    pub host_ifname: String,
    /// IPv4 and IPv6, without prefix length.
    pub addresses: [String; 2],
}

impl Container {
    /// What a runtime would name in CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME.
    pub fn target(&self) -> Target {
        Target::new(&self.id, &self.netns.path(), &self.ifname)
    }

    /// The bridge plugin's result, in the shape of `version` (0.3.0 or newer).
    pub fn prev_result(&self, version: &str) -> Value {
        let [v4, v6] = &self.addresses;
        let mut ips = json!([
            {"interface": 2, "address": format!("{v4}/24"), "gateway": GATEWAY[0]},
            {"interface": 2, "address": format!("{v6}/64"), "gateway": GATEWAY[1]},
        ]);
        if version.starts_with("0.") {
            ips[0]["version"] = "4".into();
            ips[1]["version"] = "6".into();
        }
        json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "cni0", "mac": "02:00:00:00:88:01"},
                {"name": self.host_ifname, "mac": "02:00:00:00:88:02"},
                {"name": self.ifname, "mac": "02:00:00:00:88:03", "sandbox": self.netns.path()},
            ],
            "ips": ips,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dns": {},
        })
    }
}
