//! A test's own "host": a network namespace and, beside it, a mount namespace with private state directories.

use std::ops::Deref;

use nix::sched::CloneFlags;

use crate::mounts;
use crate::namespace::{Netns, must};

/// A host that plugins run on: own network, own `/run`, `/etc/cni`, `/var/lib/cni` and `/sys`.
///
/// Everything that [`Netns`] can do works here, inside both namespaces.
#[derive(Debug)]
pub struct Host {
    netns: Netns,
}

impl Host {
    /// A new host that forwards both families, as a container host does.
    #[track_caller]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Host {
        Host::named("host")
    }

    /// A new host; `name` is for messages.
    #[track_caller]
    pub fn named(name: &str) -> Host {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        let host = Host { netns: must(Netns::make(name, flags, mounts::prepare)) };
        host.forward(true);
        host
    }

    /// Switches forwarding of both families.
    #[track_caller]
    pub fn forward(&self, on: bool) {
        let value = if on { "1" } else { "0" };
        self.set_sysctl("net/ipv4/ip_forward", value);
        self.set_sysctl("net/ipv6/conf/all/forwarding", value);
    }

    /// Keeps connection tracking on when the last rule that needs it goes: the kernel switches it off then, and a test
    /// that looks at its entries would see them vanish for that reason.
    #[track_caller]
    pub fn keep_conntrack(&self) {
        self.nft(
            "table inet test_conntrack { chain keep { type filter hook prerouting priority 300; ct state invalid counter; }; }",
        );
    }

    /// `iptables -P FORWARD DROP` for both families.
    #[track_caller]
    pub fn drop_forwarded(&self) {
        self.drop_forwarded_by("nft");
    }

    /// The same by `iptables-nft` or `iptables-legacy`.
    #[track_caller]
    pub fn drop_forwarded_by(&self, variant: &str) {
        self.run(&format!("iptables-{variant} -w -P FORWARD DROP"));
        self.run(&format!("ip6tables-{variant} -w -P FORWARD DROP"));
    }

    /// A file as the programs on this host see it.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        let read = self.inside(|| std::fs::read_to_string(path));
        must(read.map_err(|e| format!("{path} on {}: {e}", self.name())))
    }

    /// Writes a file as the programs on this host see it, making its directories. Only below the private directories.
    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]> + Send) {
        let private = mounts::PRIVATE.iter().any(|dir| path.starts_with(&format!("{dir}/")));
        assert!(private && !path.contains("/../"), "{path} is the machine's, not this host's");
        let written = self.inside(|| {
            let parent = std::path::Path::new(path).parent().map(std::fs::create_dir_all);
            parent.unwrap_or(Ok(())).and_then(|()| std::fs::write(path, content))
        });
        must(written.map_err(|e| format!("{path} on {}: {e}", self.name())));
    }
}

impl Deref for Host {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}
