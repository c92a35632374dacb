//! firewalld, told over D-Bus which addresses belong to which zone.
//!
//! `addSource`, `removeSource` and `querySource` of `org.fedoraproject.FirewallD1.zone` (firewalld.dbus(5)) change and
//! show the runtime configuration only, as in the reference: `firewall-cmd --reload` forgets it, CHECK sees that, and
//! the next ADD mends it. The bus is the system's, at `DBUS_SYSTEM_BUS_ADDRESS` if that is set, a Unix socket in any case.

use std::cell::OnceCell;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Difference, Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use zbus::address::Transport;
use zbus::zvariant::{DynamicType, Type};
use zbus::{Connection, Message};

use crate::config::Backend;

const NAME: &str = "org.fedoraproject.FirewallD1";
const OBJECT: &str = "/org/fedoraproject/FirewallD1";
const ZONES: &str = "org.fedoraproject.FirewallD1.zone";

/// Where the system bus listens if nothing else is said (D-Bus specification, "Well-known Message Bus Instances").
const SYSTEM_BUS: &str = "/var/run/dbus/system_bus_socket";

/// firewalld's licence to own its name on the bus. The standard bus configuration lets nobody own a name who has none,
/// so where neither file is, nothing need be asked.
const POLICIES: [&str; 2] = ["/usr/share/dbus-1/system.d/FirewallD.conf", "/etc/dbus-1/system.d/FirewallD.conf"];

/// The standard bus configuration, which denies all names by default.
const STANDARD_BUS: &str = "/usr/share/dbus-1/system.conf";

/// The longest wait for all answers together: firewalld answers nothing while it reloads.
const PATIENCE: Duration = Duration::from_secs(25);

/// A firewalld that runs.
pub struct Firewalld {
    runtime: Runtime,
    bus: Connection,
    /// Until when it is waited for: all questions together are worth one patience.
    deadline: Instant,
}

/// firewalld, looked for when it is first needed, and once.
#[derive(Default)]
pub struct Sought(OnceCell<Result<Option<Firewalld>>>);

impl Sought {
    /// The running firewalld.
    pub fn get(&self) -> Result<Option<&Firewalld>> {
        match self.0.get_or_init(Firewalld::find) {
            Ok(found) => Ok(found.as_ref()),
            Err(error) => Err(error.clone()),
        }
    }
}

/// What came of telling firewalld of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is in the zone now.
    Newly,
    /// It was.
    Already,
    /// It is in another, and stays there.
    Elsewhere,
}

impl Firewalld {
    /// The running firewalld; `None` if there is no bus, or nobody owns firewalld's name on it. Starts nothing.
    pub fn find() -> Result<Option<Firewalld>> {
        let address = bus_address()?;
        if !is_worth_asking(&address) {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("open", "an event loop", &e))?;
        let deadline = Instant::now() + PATIENCE;
        let builder = zbus::connection::Builder::address(address);
        let bus = match in_time(&runtime, deadline, || builder.build()) {
            Ok(bus) => bus,
            Err(error) if nobody_listens(&error) => return Ok(None),
            Err(error) => return Err(unreachable("the system bus can't be used", &error)),
        };
        let firewalld = Firewalld { runtime, bus, deadline };
        Ok(firewalld.has_owner()?.then_some(firewalld))
    }

    /// The running firewalld, or an error that says what to do about its absence.
    pub fn require() -> Result<Firewalld> {
        Firewalld::find()?.ok_or_else(|| Error::HostFirewall {
            firewall: "firewalld",
            reason: format!("nobody owns {NAME} on the system bus"),
            next: "start firewalld, or choose another \"backend\" (without one, firewalld is used where it runs)"
                .into(),
        })
    }

    /// Binds the address to the zone, if it is in none.
    pub fn add_source(&self, zone: &str, address: IpAddr) -> Result<Told> {
        let source = source(address);
        let action = format!("addSource({zone}, {source})");
        match self.ask::<_, String>(OBJECT, ZONES, "addSource", &(zone, source.as_str())) {
            // The answer is the zone that has it now.
            Ok(answered) if answered == zone => Ok(Told::Newly),
            Ok(answered) => Err(refused(&action, &format!("it is in zone {answered} now"))),
            Err(error) if says(&error, "ZONE_ALREADY_SET") => Ok(Told::Already),
            Err(error) if says(&error, "ZONE_CONFLICT") => Ok(Told::Elsewhere),
            Err(error) => Err(failed(&action, &error)),
        }
    }

    /// The zone that the address is bound to.
    pub fn zone_of(&self, address: IpAddr) -> Result<String> {
        let source = source(address);
        self.ask::<_, String>(OBJECT, ZONES, "getZoneOfSource", &source.as_str())
            .map_err(|error| failed(&format!("getZoneOfSource({source})"), &error))
    }

    /// The error for an address that somebody else has bound to another zone.
    pub fn conflict(zone: &str, address: IpAddr, theirs: &str) -> Error {
        let action = format!("addSource({zone}, {})", source(address));
        refused(&action, &format!("ZONE_CONFLICT: it is bound to zone {theirs}"))
    }

    /// Takes the address out of the zone; it is fine if it isn't there.
    pub fn remove_source(&self, zone: &str, address: IpAddr) -> Result<()> {
        let source = source(address);
        match self.ask::<_, String>(OBJECT, ZONES, "removeSource", &(zone, source.as_str())) {
            Ok(_) => Ok(()),
            // ZONE_CONFLICT: it is in another zone, where somebody else has put it since.
            Err(error) if ["UNKNOWN_SOURCE", "ZONE_CONFLICT", "INVALID_ZONE"].iter().any(|e| says(&error, e)) => Ok(()),
            Err(error) => Err(failed(&format!("removeSource({zone}, {source})"), &error)),
        }
    }

    /// The address as far as it isn't bound to the zone.
    pub fn difference(&self, zone: &str, address: IpAddr) -> Result<Option<Difference>> {
        let source = source(address);
        let object = format!("source {source} in firewalld's zone {zone}");
        match self.ask::<_, bool>(OBJECT, ZONES, "querySource", &(zone, source.as_str())) {
            Ok(true) => Ok(None),
            Ok(false) => Ok(Some(Difference::missing(object, "the container's address"))),
            Err(error) if says(&error, "INVALID_ZONE") => {
                Ok(Some(Difference::other(object, "the container's address", "no such zone")))
            }
            Err(error) => Err(failed(&format!("querySource({zone}, {source})"), &error)),
        }
    }

    fn has_owner(&self) -> Result<bool> {
        self.ask("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner", &NAME)
            .map_err(|e| unreachable("the system bus doesn't answer", &e))
    }

    fn ask<Q, A>(&self, object: &str, interface: &str, method: &str, question: &Q) -> zbus::Result<A>
    where
        Q: Serialize + DynamicType,
        A: DeserializeOwned + Type,
    {
        let destination = if interface == ZONES { NAME } else { interface };
        let call = self.bus.call_method(Some(destination), object, Some(interface), method, question);
        let answer: Message = in_time(&self.runtime, self.deadline, || call)?;
        answer.body().deserialize()
    }
}

/// Waits for an answer until the deadline, for one that is past not at all.
fn in_time<T, F: Future<Output = zbus::Result<T>>>(
    runtime: &Runtime,
    deadline: Instant,
    question: impl FnOnce() -> F,
) -> zbus::Result<T> {
    let late = || zbus::Error::InputOutput(Arc::new(std::io::ErrorKind::TimedOut.into()));
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(late());
    }
    runtime.block_on(async { tokio::time::timeout(left, question()).await.unwrap_or_else(|_| Err(late())) })
}

/// How the reference writes an address for a zone.
fn source(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    }
}

/// Whether firewalld may know of what no record says that it was told. Whoever doesn't ask for firewalld isn't stopped by an
/// address that no bus can have.
pub fn may_know(backend: Backend) -> bool {
    match backend {
        Backend::Iptables | Backend::Nftables => false,
        Backend::Firewalld => true,
        Backend::Detect => bus_address().inspect_err(|error| log::warn!("{error}; going on without firewalld")).is_ok(),
    }
}

/// Where the bus is. An empty variable is none, as for every other program on the bus.
///
/// firewalld is this host's, and so is its bus: a Unix socket. To look up a host's name, the C library would load whatever its
/// configuration names.
fn bus_address() -> Result<zbus::Address> {
    let address = match std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS") {
        Some(empty) if empty.is_empty() => format!("unix:path={SYSTEM_BUS}").parse(),
        _ => zbus::Address::system(),
    };
    let address = address.map_err(|e| unreachable("DBUS_SYSTEM_BUS_ADDRESS isn't an address", &e))?;
    match address.transport() {
        Transport::Unix(_) => Ok(address),
        _ => Err(unreachable("DBUS_SYSTEM_BUS_ADDRESS isn't a Unix socket (unix:path=…)", &address)),
    }
}

/// Whether firewalld could be on this bus; a few µs, where asking costs half a millisecond.
fn is_worth_asking(address: &zbus::Address) -> bool {
    if address.to_string() != format!("unix:path={SYSTEM_BUS}") {
        return true;
    }
    let exists = |path: &str| Path::new(path).exists();
    exists(SYSTEM_BUS) && (POLICIES.iter().any(|p| exists(p)) || !exists(STANDARD_BUS))
}

fn nobody_listens(error: &zbus::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match error {
        zbus::Error::InputOutput(e) | zbus::Error::Connection(e, _) => {
            matches!(e.kind(), NotFound | ConnectionRefused)
        }
        _ => false,
    }
}

/// firewalld's exceptions carry their kind at the beginning of the text: `ZONE_ALREADY_SET: '192.0.2.1' already bound`.
fn says(error: &zbus::Error, kind: &str) -> bool {
    matches!(error, zbus::Error::MethodError(_, Some(text), _) if text.starts_with(kind))
}

fn unreachable(what: &str, error: &dyn Display) -> Error {
    Error::HostFirewall {
        firewall: "firewalld",
        reason: format!("{what}: {error}"),
        next: "see that the system bus runs and DBUS_SYSTEM_BUS_ADDRESS is right, or set \"backend\" to \"iptables\" \
               or \"nftables\""
            .into(),
    }
}

fn failed(action: &str, error: &zbus::Error) -> Error {
    match error {
        zbus::Error::MethodError(_, Some(text), _) => refused(action, text),
        other => refused(action, &other.to_string()),
    }
}

fn refused(action: &str, answer: &str) -> Error {
    let next = if answer.starts_with("INVALID_ZONE") {
        "make the zone (firewall-cmd --permanent --new-zone=…; firewall-cmd --reload) or set \"firewalldZone\" to one \
         that is there"
    } else if answer.starts_with("ZONE_CONFLICT") {
        "the address is bound to another zone; `firewall-cmd --get-active-zones` shows which"
    } else {
        "look into firewalld's log (journalctl -u firewalld) and repeat the call"
    };
    Error::HostFirewall { firewall: "firewalld", reason: format!("{action}: {answer}"), next: next.into() }
}
