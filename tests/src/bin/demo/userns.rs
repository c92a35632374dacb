//! Root of a user namespace, for who isn't root of the machine.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

/// Makes the caller root of a new user namespace, with network and mount namespaces that belong to it.
///
/// The process must have one thread (unshare(2)). The error is one sentence for the user.
pub(crate) fn become_root() -> Result<(), String> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let refused = |why: String| {
        format!(
            "the demo needs network namespaces, and this kernel grants them to root only ({why}): run it as root, e.g. \
             `sudo make demo`"
        )
    };
    unshare(flags).map_err(|e| refused(format!("unshare: {}", e.desc())))?;
    // user_namespaces(7): an unprivileged process may map its own ids, and its group only after giving up setgroups.
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|e| refused(format!("{file}: {e}")))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}
