//! The private file systems of a test host: nothing that a plugin or a network tool writes reaches the machine.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// Directories that a test host has for itself, empty at first.
pub(crate) const PRIVATE: [&str; 3] = ["/run", "/var/lib/cni", "/etc/cni"];

/// Sets up the mount namespace of the calling thread. Must have been unshared.
pub(crate) fn prepare() -> Result<(), String> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|e| format!("mount --make-rprivate /: {e}"))?;
    for dir in PRIVATE {
        if !Path::new(dir).is_dir() {
            mirror_parent(dir)?;
        }
        tmpfs(dir)?;
    }
    // /sys/class/net shows the namespace that the sysfs was mounted in (sysfs(5)).
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)
        .map_err(|e| format!("fresh sysfs on /sys: {e}"))
}

fn tmpfs(dir: &str) -> Result<(), String> {
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .map_err(|e| format!("tmpfs on {dir}: {e}"))
}

/// Makes `dir` exist without writing to the machine: its parent becomes a tmpfs with everything that is in it bound
/// back, and an empty `dir` beside.
fn mirror_parent(dir: &str) -> Result<(), String> {
    let parent = Path::new(dir).parent().and_then(Path::to_str).ok_or("no parent")?;
    let error = |what: &Path, e: std::io::Error| format!("mirror of {}: {e}", what.display());
    let old = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECTORY.bits())
        .open(parent)
        .map_err(|e| error(Path::new(parent), e))?;
    let below_new = format!("/proc/thread-self/fd/{}", old.as_raw_fd());
    let entries: Vec<_> = fs::read_dir(parent).and_then(Iterator::collect).map_err(|e| error(Path::new(parent), e))?;
    tmpfs(parent)?;
    for entry in entries {
        let (kind, new) = (entry.file_type().map_err(|e| error(&entry.path(), e))?, entry.path());
        let old = Path::new(&below_new).join(entry.file_name());
        let made = if kind.is_symlink() {
            fs::read_link(&old).and_then(|target| symlink(target, &new))
        } else {
            let point = if kind.is_dir() { fs::create_dir(&new) } else { fs::write(&new, "") };
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            point.and_then(|()| Ok(mount(Some(&old), &new, None::<&str>, bind, None::<&str>)?))
        };
        made.map_err(|e| error(&new, e))?;
    }
    fs::create_dir(dir).map_err(|e| error(Path::new(dir), e))
}
