//! Root of a user namespace, for who isn't root of the machine.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

/// Whether this process may make namespaces and set them up as it is: CAP_NET_ADMIN (12) and CAP_SYS_ADMIN (21), by
/// `CapEff` of /proc/self/status (proc(5)). The user id doesn't tell: root in a container often may not.
pub(crate) fn may_make_namespaces() -> bool {
    const NEEDED: u64 = 1 << 12 | 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    effective.unwrap_or_default() & NEEDED == NEEDED
}

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
    unshare(flags).map_err(|e| match e {
        Errno::ENOSPC => refused("/proc/sys/user/max_user_namespaces is reached".into()),
        e => refused(format!("unshare: {}", e.desc())),
    })?;
    // user_namespaces(7): an unprivileged process may map its own ids, and its group only after giving up setgroups.
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|e| refused(format!("{file}: {e}")))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))?;
    // AppArmor may grant the namespace and take away what it is for (Ubuntu since 23.10).
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| refused(format!("mount in a user namespace: {}", e.desc())))
}
