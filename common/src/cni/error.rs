//! Every failure there is, each with its code, one sentence and the next step.
//!
//! Codes 1 to 99 are the specification's (SPEC.md, "Error"); from 100 on they are ours:
//!
//! | code | meaning |
//! |---|---|
//! | 1 | the configuration's `cniVersion` isn't spoken, or has no such verb |
//! | 2 | a key is understood but its value can't be honoured here |
//! | 4 | an environment variable is missing or bad |
//! | 5 | stdin can't be read |
//! | 6 | stdin isn't JSON, or a value has the wrong type |
//! | 7 | the configuration is invalid |
//! | 8 | CNI_NETNS is the plugin's own network namespace (libcni's `ErrInvalidNetNS`) |
//! | 11 | try again later |
//! | 50 | STATUS: ADD can't succeed here |
//! | 51 | STATUS: ADD succeeds, but some containers would have limited connectivity |
//! | 100 | a host port is taken by another attachment |
//! | 101 | CHECK: the state differs from what ADD would make now |
//! | 102 | the kernel refused an operation |
//! | 103 | the host's firewall can't be told |
//! | 104 | the container's network namespace can't be opened or entered |
//! | 105 | a network interface isn't there, or isn't of a usable kind |
//! | 106 | a state file can't be read or written |
//! | 107 | several things failed (GC, DEL) |
//! | 108 | the plugin is given too little memory |
//! | 199 | a defect of the plugin |

use std::fmt;
use std::path::PathBuf;

use nix::errno::Errno;
use serde::Serialize;

use super::version::Version;

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One place where the kernel's state is not what ADD would make: what CHECK found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The object, as an operator would name it: `chain dnat-… in table inet cni_portmap`.
    pub object: String,
    /// What ADD would have made.
    pub expected: String,
    /// What is there; "nothing" if nothing is.
    pub found: String,
}

impl Difference {
    /// An object that should exist and doesn't.
    pub fn missing(object: impl Into<String>, expected: impl Into<String>) -> Self {
        Difference { object: object.into(), expected: expected.into(), found: "nothing".into() }
    }

    /// An object that exists with another content.
    pub fn other(object: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Difference { object: object.into(), expected: expected.into(), found: found.into() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.object, self.expected, self.found)
    }
}

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration asks for a version that isn't spoken.
    #[error("incompatible CNI versions: the configuration's cniVersion is \"{config}\"")]
    IncompatibleVersion {
        /// `cniVersion` as written.
        config: String,
    },
    /// The verb came later than the configuration's version.
    #[error("config version does not allow {verb}: cniVersion {version} has no such verb")]
    VerbNotInVersion {
        /// The verb.
        verb: &'static str,
        /// The configuration's version.
        version: Version,
    },
    /// A key is understood, its value can't be honoured here.
    #[error("unsupported value in the configuration: {key} = {value}: {reason}")]
    UnsupportedField {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Why not.
        reason: String,
    },
    /// Variables that the verb needs aren't there.
    #[error("required env variables [{}] missing", .variables.join(","))]
    MissingEnvironment {
        /// Their names.
        variables: Vec<&'static str>,
    },
    /// A variable has a value it can't have.
    #[error("invalid value in {variable}: \"{value}\": {reason}")]
    InvalidEnvironment {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// CNI_COMMAND is none of the verbs.
    #[error("unknown CNI_COMMAND: {command}")]
    UnknownCommand {
        /// What it is.
        command: String,
    },
    /// Stdin can't be read.
    #[error("error reading from stdin: {reason}")]
    Stdin {
        /// The system's word.
        reason: String,
    },
    /// Stdin is not JSON.
    #[error("error unmarshalling network config: {reason}")]
    NotJson {
        /// Where and why.
        reason: String,
    },
    /// A key's value is not of its type.
    #[error("failed to parse network configuration: {key}: {reason}")]
    WrongType {
        /// The key, dotted.
        key: String,
        /// What it is and what it should be.
        reason: String,
    },
    /// A version that isn't a version.
    #[error("could not parse the configuration's cniVersion \"{version}\"")]
    MalformedVersion {
        /// As written.
        version: String,
    },
    /// The configuration has no `name`.
    #[error("missing network name")]
    MissingName,
    /// A key has a value it can't have.
    #[error("invalid configuration: {key} = {value}: {reason}")]
    InvalidConfig {
        /// The key, dotted.
        key: String,
        /// Its value as written.
        value: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A chained plugin without a plugin before it.
    #[error("must be called as chained plugin: the configuration has no prevResult")]
    MissingPrevResult,
    /// prevResult can't be understood in the configuration's version.
    #[error("could not parse prevResult: {reason}")]
    BadPrevResult {
        /// Why.
        reason: String,
    },
    /// CNI_NETNS is the host's own namespace.
    #[error("plugin's netns and netns from CNI_NETNS should not be the same: {path}")]
    SameNetns {
        /// CNI_NETNS.
        path: String,
    },
    /// Something else is in the way just now.
    #[error("{what}; try again later")]
    TryAgain {
        /// What is in the way.
        what: String,
    },
    /// STATUS: ADD can't succeed.
    #[error("the plugin is not available: {reason}")]
    NotAvailable {
        /// Why.
        reason: String,
        /// What to do.
        next: String,
    },
    /// STATUS: ADD succeeds, with limits.
    #[error("containers would have limited connectivity: {reason}")]
    LimitedConnectivity {
        /// Why.
        reason: String,
        /// What to do.
        next: String,
    },
    /// Another attachment has the host port.
    #[error("host port {claim} is taken by {owner}")]
    PortTaken {
        /// The port, as `8080/tcp` or `192.0.2.1:8080/tcp`.
        claim: String,
        /// Who has it.
        owner: String,
    },
    /// CHECK found other state.
    #[error("the state differs from what ADD would make: {}", first_of(.differences))]
    StateDiffers {
        /// What differs.
        differences: Vec<Difference>,
    },
    /// The kernel said no.
    #[error("the kernel refused to {action} {object}: {errno}")]
    Kernel {
        /// What was asked: `add`, `delete`, `list`.
        action: &'static str,
        /// On what.
        object: String,
        /// Its answer.
        errno: Errno,
        /// The text of its extended acknowledgement; empty if there was none.
        ext_ack: String,
    },
    /// The kernel's answer was not received, so it may have done what was asked.
    #[error("the kernel's answer to the request to {action} {object} was not received: {errno}")]
    Unanswered {
        /// What was asked.
        action: &'static str,
        /// On what.
        object: String,
        /// What receiving it came to.
        errno: Errno,
    },
    /// The host's firewall can't be told.
    #[error("the host's firewall ({firewall}) can't be told: {reason}")]
    HostFirewall {
        /// Which: `firewalld`, `iptables-legacy`.
        firewall: &'static str,
        /// What happened.
        reason: String,
        /// What to do.
        next: String,
    },
    /// The container's namespace isn't there.
    #[error("failed to open netns \"{path}\": {reason}")]
    Netns {
        /// CNI_NETNS.
        path: String,
        /// Why.
        reason: String,
    },
    /// An interface isn't there, or not of a usable kind.
    #[error("interface {link}: {reason}")]
    Link {
        /// Its name or index.
        link: String,
        /// What is the matter.
        reason: String,
    },
    /// A state file can't be used.
    #[error("state file {}: {reason}", .path.display())]
    StateFile {
        /// The file.
        path: PathBuf,
        /// What is the matter.
        reason: String,
    },
    /// An allocation failed. No plugin makes this one: who could has no memory for it (`memory.rs`).
    #[error("out of memory: an allocation of the plugin failed")]
    OutOfMemory,
    /// A defect of ours: a panic.
    #[error("internal error: {what}")]
    Internal {
        /// The panic's message and place.
        what: String,
    },
    /// Several things failed; the rest was done.
    #[error("{} failures, the first: {}", .errors.len(), first_of(.errors))]
    Several {
        /// Each.
        errors: Vec<Error>,
    },
}

fn first_of<T: fmt::Display>(all: &[T]) -> String {
    all.first().map(T::to_string).unwrap_or_default()
}

impl Error {
    /// The code that the runtime sees.
    pub const fn code(&self) -> u32 {
        match self {
            Error::IncompatibleVersion { .. } | Error::VerbNotInVersion { .. } => 1,
            Error::UnsupportedField { .. } => 2,
            Error::MissingEnvironment { .. } | Error::InvalidEnvironment { .. } | Error::UnknownCommand { .. } => 4,
            Error::Stdin { .. } => 5,
            Error::NotJson { .. } | Error::WrongType { .. } | Error::MalformedVersion { .. } => 6,
            Error::MissingName
            | Error::InvalidConfig { .. }
            | Error::MissingPrevResult
            | Error::BadPrevResult { .. } => 7,
            Error::SameNetns { .. } => 8,
            Error::TryAgain { .. } => 11,
            Error::NotAvailable { .. } => 50,
            Error::LimitedConnectivity { .. } => 51,
            Error::PortTaken { .. } => 100,
            Error::StateDiffers { .. } => 101,
            Error::Kernel { .. } | Error::Unanswered { .. } => 102,
            Error::HostFirewall { .. } => 103,
            Error::Netns { .. } => 104,
            Error::Link { .. } => 105,
            Error::StateFile { .. } => 106,
            Error::Several { .. } => 107,
            Error::OutOfMemory => 108,
            Error::Internal { .. } => 199,
        }
    }

    /// What the runtime shows below the message: the whole story and the next step; empty if `msg` says all.
    pub fn details(&self) -> String {
        match self {
            Error::IncompatibleVersion { config } => {
                let supported: Vec<String> = Version::ALL.iter().map(|v| format!("\"{v}\"")).collect();
                format!("config is \"{config}\", plugin supports [{}]", supported.join(" "))
            }
            Error::VerbNotInVersion { .. } => {
                "CHECK needs cniVersion 0.4.0 or newer, GC and STATUS need 1.1.0; raise the conflist's cniVersion"
                    .into()
            }
            Error::MissingPrevResult => {
                "put a main plugin (bridge, ptp, macvlan, …) before this one in the conflist's plugins".into()
            }
            Error::PortTaken { .. } => {
                "publish another host port, or remove the other container first; `cni-chain gc` removes claims whose \
                 container is gone"
                    .into()
            }
            Error::StateDiffers { differences } => lines(differences),
            Error::Kernel { errno, ext_ack, .. } => kernel_details(*errno, ext_ack),
            Error::NotAvailable { next, .. }
            | Error::LimitedConnectivity { next, .. }
            | Error::HostFirewall { next, .. } => next.clone(),
            Error::Netns { .. } => "the runtime must pass the path of a network namespace in CNI_NETNS".into(),
            Error::SameNetns { .. } => {
                "nothing was changed; a container in the host's network namespace takes no chained plugins \
                 (CNI_NETNS_OVERRIDE=1 skips this check)"
                    .into()
            }
            Error::Unanswered { .. } => "whether it was done is unknown; repeat the call".into(),
            Error::OutOfMemory => {
                "stderr may say how much was asked for; what was done so far stays: a repeated ADD completes it, DEL removes \
                 it; raise the limit of memory (RLIMIT_AS, RLIMIT_DATA, the cgroup's), or publish fewer ports in one call"
                    .into()
            }
            Error::Internal { .. } => "this is a defect of the plugin; please report it with the configuration".into(),
            Error::Several { errors } => {
                let all: Vec<String> = errors.iter().map(|e| format!("{e}: {}", e.details())).collect();
                lines(&all)
            }
            _ => String::new(),
        }
    }

    /// One error of many: `Ok` of none, the error of one, [`Error::Several`] of more.
    pub fn gather(errors: Vec<Error>) -> Result<()> {
        let mut errors = errors;
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several { errors }),
        }
    }

    /// A refused configuration value.
    pub fn invalid(key: impl Into<String>, value: impl fmt::Display, reason: impl Into<String>) -> Error {
        Error::InvalidConfig { key: key.into(), value: value.to_string(), reason: reason.into() }
    }

    /// A kernel refusal without an extended acknowledgement.
    pub fn kernel(action: &'static str, object: impl Into<String>, errno: Errno) -> Error {
        Error::Kernel { action, object: object.into(), errno, ext_ack: String::new() }
    }

    /// A kernel refusal behind an I/O error.
    pub fn io(action: &'static str, object: impl Into<String>, error: &std::io::Error) -> Error {
        Error::kernel(action, object, Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
    }

    /// The document for stdout; `version` is the one that the configuration names.
    pub fn to_document<'a>(&self, version: &'a str) -> ErrorDocument<'a> {
        ErrorDocument { cni_version: version, code: self.code(), msg: self.to_string(), details: self.details() }
    }
}

fn lines<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}

fn kernel_details(errno: Errno, ext_ack: &str) -> String {
    let next = match errno {
        Errno::EPERM | Errno::EACCES => "the plugin needs CAP_NET_ADMIN in the host's user namespace; run it as root",
        Errno::ENOBUFS | Errno::ENOMEM => "the kernel is out of memory for this; free some or ask for less at once",
        Errno::EMSGSIZE => {
            "the request is larger than a socket's send buffer may be here; raise net.core.wmem_max, or ask for less at once"
        }
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
            "this kernel lacks the feature; load or build in its module"
        }
        Errno::EBUSY | Errno::EAGAIN | Errno::ETIMEDOUT => {
            "another program is changing the same state; repeat the call"
        }
        Errno::ENODEV => "the interface has gone; the container is probably being deleted",
        Errno::EROFS => {
            "it is mounted read-only here; mount it read-write, or run the plugin in the host's mount namespace"
        }
        Errno::EINVAL | Errno::ERANGE => "the kernel takes no such value here; its log (dmesg) may say why",
        Errno::EMFILE | Errno::ENFILE => "raise the limit of open files (RLIMIT_NOFILE, fs.file-max)",
        Errno::ENOSPC | Errno::EDQUOT => "there is no room left for it; free some",
        _ => "",
    };
    match (ext_ack.is_empty(), next.is_empty()) {
        (true, _) => format!("errno {}: {next}", errno as i32).trim_end_matches([':', ' ']).to_owned(),
        (false, true) => format!("errno {}, the kernel adds: {ext_ack}", errno as i32),
        (false, false) => format!("errno {}, the kernel adds: {ext_ack}; {next}", errno as i32),
    }
}

/// A CNI error as it stands on stdout.
#[derive(Debug, Serialize)]
pub struct ErrorDocument<'a> {
    /// The same as in the configuration.
    #[serde(rename = "cniVersion")]
    pub cni_version: &'a str,
    /// See the table of [`crate::cni::error`].
    pub code: u32,
    /// One sentence.
    pub msg: String,
    /// The story and the next step.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_can_change_is_told_behind_the_kernel_s_errno() {
        let told = |errno| Error::kernel("write", "sysctl net/ipv4/ip_forward", errno).details();
        let of_each = [
            (Errno::EPERM, "CAP_NET_ADMIN"),
            (Errno::EROFS, "mount it read-write"),
            (Errno::EINVAL, "dmesg"),
            (Errno::EMFILE, "RLIMIT_NOFILE"),
            (Errno::ENOSPC, "no room left"),
        ];
        for (errno, word) in of_each {
            let told = told(errno);
            assert!(told.starts_with(&format!("errno {}: ", errno as i32)) && told.contains(word), "{told}");
        }
        // Where nothing is known, nothing is made up.
        assert_eq!(told(Errno::EIO), "errno 5");
    }
}
