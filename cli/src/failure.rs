//! What keeps a verb from being run at all; what a plugin answers is a [`crate::process::Fault`] instead.

use std::path::{Path, PathBuf};

use common::cni::Version;

/// Why nothing was run. Every message names the object, [`Failure::next`] the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A configuration file can't be read.
    #[error("can't read {}: {reason}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word.
        reason: String,
    },
    /// A configuration can't be understood.
    #[error("{}: {reason}", .path.display())]
    BadConflist {
        /// The file it is in.
        path: PathBuf,
        /// Which key, and what is wrong with it.
        reason: String,
    },
    /// No configuration in the directory has this network name.
    #[error("no network \"{name}\" in {}", .dir.display())]
    NoSuchNetwork {
        /// The name looked for.
        name: String,
        /// The directory looked in.
        dir: PathBuf,
        /// The networks that are there.
        present: Vec<String>,
    },
    /// The plugins have no version in common with the configuration's `cniVersions`.
    #[error("no version of the conflist's cniVersions is spoken by all its plugins: {}", .spoken.join("; "))]
    NoCommonVersion {
        /// Each plugin with its versions.
        spoken: Vec<String>,
    },
    /// The configuration's version has no such verb.
    #[error("the conflist's cniVersion {version} has no {verb}")]
    VerbNotInVersion {
        /// The verb.
        verb: &'static str,
        /// The conflist's version.
        version: Version,
        /// The version that has it.
        since: Version,
    },
    /// A plugin isn't in the search path.
    #[error("plugin \"{plugin}\" {reason}")]
    NoPlugin {
        /// The `type`.
        plugin: String,
        /// Where it was looked for, or why it can't be looked for.
        reason: String,
    },
    /// The namespace isn't one.
    #[error("network namespace {}: {reason}", .path.display())]
    Netns {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A name that can't be one.
    #[error("{what} \"{name}\" is invalid: {reason}")]
    BadName {
        /// Which name.
        what: &'static str,
        /// As given.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// ADD for an attachment that is there.
    #[error("{attachment} has been added already (its result is in {})", .cached.display())]
    AlreadyAdded {
        /// network/container/ifname.
        attachment: String,
        /// The cache file.
        cached: PathBuf,
    },
    /// CHECK for an attachment that nothing is known of.
    #[error("nothing is known of {attachment}: no result in {}", .cached.display())]
    NotAdded {
        /// network/container/ifname.
        attachment: String,
        /// The cache file.
        cached: PathBuf,
    },
    /// A file of the result cache can't be used.
    #[error("result cache {}: {reason}", .path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What is the matter.
        reason: String,
    },
    /// The command line contradicts itself.
    #[error("{reason}")]
    Usage {
        /// How.
        reason: String,
    },
}

impl Failure {
    /// What to do about it.
    pub fn next(&self) -> String {
        match self {
            Failure::Unreadable { .. } => {
                "give a conflist file, or the name of a network in the directory of --conf-dir".into()
            }
            Failure::BadConflist { .. } => "correct the file; conflists/ in the project has working examples".into(),
            Failure::NoSuchNetwork { present, .. } if present.is_empty() => {
                "no configuration is there at all; give a file, or another directory by --conf-dir".into()
            }
            Failure::NoSuchNetwork { present, .. } => format!("there are: {}", present.join(", ")),
            Failure::NoCommonVersion { .. } => "lower a version in cniVersions, or install newer plugins".into(),
            Failure::VerbNotInVersion { since, .. } => {
                format!(
                    "raise the conflist's cniVersion to {since}, if all its plugins speak that (`cni-chain version`)"
                )
            }
            Failure::NoPlugin { .. } => {
                "install it, or name its directory by --path or $CNI_PATH; nothing was run".into()
            }
            Failure::Netns { path, .. } => netns_hint(path),
            Failure::BadName { .. } => {
                "names are letters, digits, '_', '.' and '-', beginning with a letter or digit".into()
            }
            Failure::AlreadyAdded { .. } => {
                "`cni-chain del` first, or add another interface by --ifname; nothing was run".into()
            }
            Failure::NotAdded { .. } => {
                "add it first; if another runtime did, give its --container-id, --ifname and --cache-dir".into()
            }
            Failure::Cache { .. } => "repair or remove the file, or give another directory by --cache-dir".into(),
            Failure::Usage { .. } => "see --help".into(),
        }
    }
}

fn netns_hint(path: &Path) -> String {
    match path.strip_prefix("/run/netns") {
        Ok(name) => format!("`ip netns add {}` makes it", name.display()),
        Err(_) => "give the path of a network namespace, or a name that `ip netns list` shows".into(),
    }
}
