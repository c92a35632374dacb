//! What else is on a host that runs containers: a policy that drops, Docker, firewalld.

use super::docker::Docker;
use crate::firewalld::Firewalld;
use crate::lab::Lab;
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
    /// With containers of its own.
    pub docker: Option<Docker>,
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
            Surroundings::DockerBefore => guests.docker = Some(Docker::start(lab, sandbox)),
            Surroundings::Firewalld => guests.firewalld = Some(Firewalld::start(&lab.host)),
        }
        guests
    }

    /// When containers run. Gives whether anything has happened.
    #[track_caller]
    pub fn change(self, lab: &Lab, sandbox: &Sandbox, guests: &mut Guests) -> bool {
        match (self, &guests.firewalld) {
            (Surroundings::DockerAfter, _) => guests.docker = Some(Docker::start(lab, sandbox)),
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
