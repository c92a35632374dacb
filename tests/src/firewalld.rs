//! The real firewalld on a test host, on a system bus of its own.

use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;
use crate::namespace::must;

/// Where programs look for the system bus.
pub const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// Where it writes its log; every question about a source that isn't there is an error to it.
pub const LOG: &str = "/run/firewalld.log";

/// As the system's bus, without its restrictions: everybody on it is of this test.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=SOCKET</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_type="signal"/><allow send_requested_reply="true"/><allow receive_requested_reply="true"/>
<allow receive_type="method_call"/></policy></busconfig>"#;

/// A program that ends with the test, however that ends.
#[derive(Debug)]
struct Daemon(Child);

impl Daemon {
    #[track_caller]
    fn start(host: &Host, line: &str) -> Daemon {
        let mut command = host.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(line.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Daemon(must(command.spawn().map_err(|e| format!("{line}: {e}; install the packages dbus and firewalld"))))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running firewalld: nothing is forwarded from or to addresses that no zone trusts. Ends when dropped.
#[derive(Debug)]
pub struct Firewalld {
    // Dropped in this order: firewalld would complain about a bus that has gone.
    firewalld: Daemon,
    _bus: Daemon,
    address: String,
}

impl Firewalld {
    /// Starts it on the host's system bus.
    #[track_caller]
    pub fn start(host: &Host) -> Firewalld {
        Firewalld::start_at(host, SYSTEM_BUS)
    }

    /// Starts it on a bus that listens elsewhere, below /run.
    #[track_caller]
    pub fn start_at(host: &Host, socket: &str) -> Firewalld {
        host.write("/run/dbus/test.conf", BUS.replace("SOCKET", socket));
        let bus = Daemon::start(host, "dbus-daemon --nofork --nosyslog --config-file=/run/dbus/test.conf");
        host.wait_until("the bus listens", || host.try_run(&format!("test -S {socket}")).is_ok());
        let address = format!("unix:path={socket}");
        let line = format!(
            "env DBUS_SYSTEM_BUS_ADDRESS={address} firewalld --nofork --nopid --system-config=/run/firewalld-config \
             --log-target=file --log-file={LOG}"
        );
        let firewalld = Firewalld { firewalld: Daemon::start(host, &line), _bus: bus, address };
        host.wait_until("firewalld runs", || firewalld.try_command(host, "--state").is_ok());
        firewalld
    }

    /// Stops it as it stands, or lets it go on: it is on the bus and answers nothing.
    #[track_caller]
    pub fn hang(&self, stop: bool) {
        let signal = if stop { Signal::SIGSTOP } else { Signal::SIGCONT };
        must(kill(Pid::from_raw(self.firewalld.0.id().cast_signed()), signal).map_err(|e| format!("firewalld: {e}")));
    }

    /// For DBUS_SYSTEM_BUS_ADDRESS.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Runs firewall-cmd with these arguments, which must succeed.
    #[track_caller]
    pub fn command(&self, host: &Host, arguments: &str) -> String {
        must(self.try_command(host, arguments))
    }

    fn try_command(&self, host: &Host, arguments: &str) -> Result<String, String> {
        host.try_run(&format!("env DBUS_SYSTEM_BUS_ADDRESS={} firewall-cmd {arguments}", self.address))
    }
}
