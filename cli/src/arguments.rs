//! The command line, as it may be written.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::cni::Json;

use crate::capabilities::{self, Port};

/// Runs a CNI conflist by hand, the way a container runtime does.
#[derive(Debug, Parser)]
#[command(
    name = "cni-chain",
    version,
    disable_help_subcommand = true,
    after_help = "\
CONFLIST is a file (a conflist or a single configuration), or the name of a network in --conf-dir.
NETNS is a path, or a name as `ip netns` gives it.

Example:
  ip netns add demo
  cni-chain add conflists/10-bridge-full.conflist demo --port 8080:80/tcp --ingress-rate 10M
  cni-chain check conflists/10-bridge-full.conflist demo
  cni-chain del conflists/10-bridge-full.conflist demo

Exit code: 0 if everything succeeded, 1 if anything failed, 2 if the command line is wrong.
Environment: CNI_PATH, and as for cnitool NETCONFPATH, CNI_ARGS, CNI_IFNAME and CAP_ARGS; NO_COLOR."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Plugin directories, colon-separated [default: $CNI_PATH, else /opt/cni/bin:/usr/lib/cni:/usr/libexec/cni and, for
    /// bandwidth, firewall, portmap and tuning, first the directory of cni-chain if they are in it]
    #[arg(long, global = true, value_name = "DIRS")]
    pub path: Option<OsString>,
    /// Directory in which networks are looked up by name [default: $NETCONFPATH, else /etc/cni/net.d]
    #[arg(long, global = true, value_name = "DIR")]
    pub conf_dir: Option<PathBuf>,
    /// Directory of the result cache, in libcni's format
    #[arg(long, global = true, value_name = "DIR", default_value = crate::cache::DEFAULT_DIR)]
    pub cache_dir: PathBuf,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach a network namespace to a network: ADD of every plugin, in order
    Add {
        /// A conflist file, or a network's name
        conflist: String,
        /// The network namespace
        netns: PathBuf,
        /// For whom.
        #[command(flatten)]
        who: Who,
        /// What the runtime adds.
        #[command(flatten)]
        given: Given,
        /// If a plugin fails, leave what the others did, to look at it; `cni-chain del` removes it
        #[arg(long)]
        keep: bool,
    },
    /// Compare what is there with what ADD made: CHECK of every plugin
    Check {
        /// A conflist file, or a network's name
        conflist: String,
        /// The network namespace
        netns: PathBuf,
        /// For whom.
        #[command(flatten)]
        who: Who,
        /// What the runtime adds.
        #[command(flatten)]
        given: Given,
    },
    /// Detach: DEL of every plugin, in reverse order, going on after failures
    Del {
        /// A conflist file, or a network's name
        conflist: String,
        /// The network namespace; may be gone, and may be left out with --container-id
        #[arg(required_unless_present = "container_id")]
        netns: Option<PathBuf>,
        /// For whom.
        #[command(flatten)]
        who: Who,
        /// What the runtime adds.
        #[command(flatten)]
        given: Given,
    },
    /// Remove what no living attachment of the network owns: DEL of dead cached ones, then GC of every plugin (1.1.0)
    #[command(group = clap::ArgGroup::new("living").required(true))]
    Gc {
        /// A conflist file, or a network's name
        conflist: String,
        /// An attachment that is alive; repeatable
        #[arg(long, value_name = "ID:IFNAME", group = "living", value_parser = attachment)]
        live: Vec<(String, String)>,
        /// Those are alive that are in the result cache and whose network namespace still exists
        #[arg(long, group = "living")]
        from_cache: bool,
        /// None is alive: remove everything of this network
        #[arg(long, group = "living")]
        none_live: bool,
    },
    /// Ask every plugin whether ADD could succeed: STATUS (1.1.0)
    Status {
        /// A conflist file, or a network's name
        conflist: String,
    },
    /// Show this program's version, and the versions that plugins speak
    Version {
        /// A conflist file, or a network's name; without it every plugin in the search path is asked
        conflist: Option<String>,
    },
}

/// For whom.
#[derive(Debug, Args)]
pub struct Who {
    /// CNI_CONTAINERID [default: as cnitool: "cnitool-" and 20 hex digits of SHA-512 of the namespace's path]
    #[arg(long, value_name = "ID")]
    pub container_id: Option<String>,
    /// CNI_IFNAME: the interface's name in the container [default: $CNI_IFNAME, else eth0]
    #[arg(long, short = 'i', value_name = "NAME")]
    pub ifname: Option<String>,
    /// CNI_ARGS, as K8S_POD_NAME=p1;K8S_POD_NAMESPACE=default [default: $CNI_ARGS]
    #[arg(long, value_name = "K=V;K=V", value_parser = pairs)]
    pub args: Option<CniArgs>,
}

/// CNI_ARGS.
pub type CniArgs = Vec<(String, String)>;

/// Capability arguments. CHECK and DEL take those of ADD where none are given.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Capability arguments (reach only plugins that declare the capability)")]
pub struct Given {
    /// portMappings: publish a port of the container, as `8080:80`, `127.0.0.1:53:53/udp` or `[::1]:8080:80`; repeatable
    #[arg(long = "port", short = 'p', value_name = "[HOSTIP:]HOSTPORT:PORT[/PROTO]")]
    pub ports: Vec<Port>,
    /// bandwidth: limit into the container in bit/s, as 10M, 2.5G or 512Ki
    #[arg(long, value_name = "RATE", value_parser = capabilities::bits)]
    pub ingress_rate: Option<u64>,
    /// bandwidth: burst into the container in bits [default: 4294967295, as containerd: no opinion]
    #[arg(long, value_name = "BITS", value_parser = capabilities::bits, requires = "ingress_rate")]
    pub ingress_burst: Option<u64>,
    /// bandwidth: limit out of the container in bit/s
    #[arg(long, value_name = "RATE", value_parser = capabilities::bits)]
    pub egress_rate: Option<u64>,
    /// bandwidth: burst out of the container in bits
    #[arg(long, value_name = "BITS", value_parser = capabilities::bits, requires = "egress_rate")]
    pub egress_burst: Option<u64>,
    /// mac: the hardware address of the container's interface
    #[arg(long, value_parser = capabilities::mac)]
    pub mac: Option<String>,
    /// ips: an address of the container, with or without /prefix; repeatable
    #[arg(long = "ip", value_name = "ADDRESS", value_parser = capabilities::ip)]
    pub ips: Vec<String>,
    /// Any capability, its value in JSON; repeatable
    #[arg(long = "cap", value_name = "NAME=JSON", value_parser = capabilities::raw)]
    pub raw: Vec<(String, Json)>,
}

/// `ID:IFNAME`.
fn attachment(text: &str) -> Result<(String, String), String> {
    let (container, ifname) = text.split_once(':').ok_or("it has the form ID:IFNAME")?;
    crate::cache::validate(&common::Attachment::new("any", container, ifname)).map_err(|f| f.to_string())?;
    Ok((container.to_owned(), ifname.to_owned()))
}

/// `K=V;K=V`, in their order.
pub fn pairs(text: &str) -> Result<CniArgs, String> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("\"{pair}\" has no '='")),
    };
    text.split(';').filter(|p| !p.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn all_of_adds_options_are_taken() {
        let line = "cni-chain add net demo --container-id c --ifname net1 --port 8080:80 -p [::1]:53:53/udp --ingress-rate \
                    10M --egress-rate 1G --egress-burst 2M --mac 02:00:00:00:00:01 --ip 10.0.0.9 --cap x={} --args A=1;B=2 \
                    --json --path /a:/b --cache-dir /c --conf-dir /d --keep";
        let arguments = parse(line).unwrap();
        let Command::Add { who, given, keep, .. } = arguments.command else { panic!("not add") };
        assert!(keep && arguments.common.json);
        assert_eq!((given.ports.len(), given.ingress_rate, given.egress_burst), (2, Some(10_000_000), Some(2_000_000)));
        assert_eq!(who.args, Some(vec![("A".into(), "1".into()), ("B".into(), "2".into())]));
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "cni-chain",
            "cni-chain add net",
            "cni-chain del net",
            "cni-chain gc net",
            "cni-chain gc net --from-cache --none-live",
            "cni-chain gc net --live nocolon",
            "cni-chain gc net --live ../x:eth0",
            "cni-chain add net ns --ingress-burst 1M",
            "cni-chain add net ns --port 80",
            "cni-chain add net ns --args novalue",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_lost_namespace_can_be_left_out_on_del() {
        assert!(parse("cni-chain del net --container-id c").is_ok());
        assert!(parse("cni-chain gc net --live a:eth0 --live b:eth0").is_ok());
    }
}
