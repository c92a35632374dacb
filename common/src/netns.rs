//! Network namespaces: opening the container's, and doing something inside it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, GetSockOpt, SockFlag, SockType, socket};
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{getpid, gettid};

use crate::cni::error::{Error, Result};
use crate::link::RouteSocket;

mod door;

/// `NSFS_MAGIC` (include/uapi/linux/magic.h).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: String,
    opened: Option<SystemTime>,
}

impl Netns {
    /// Opens the namespace at `path`, and refuses a file that is none.
    pub fn open(path: &Path) -> Result<Netns> {
        Netns::try_open(path).map_err(|why| why.about(path))
    }

    /// Opens the namespace at `path`; `None` if there is none any more. That it can't be found out is an error.
    pub fn find(path: &Path) -> Result<Option<Netns>> {
        match Netns::try_open(path) {
            Ok(netns) => Ok(Some(netns)),
            Err(why) if why.is_absence() => Ok(None),
            Err(why) => Err(why.about(path)),
        }
    }

    fn try_open(path: &Path) -> std::result::Result<Netns, Why> {
        let opened = now_as_files_have_it();
        // A pipe would wait for its writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(Why::Io)?;
        let kind = fstatfs(&file).map_err(|errno| Why::Io(errno.into()))?.filesystem_type();
        if kind != NSFS_MAGIC && kind != PROC_SUPER_MAGIC {
            return Err(Why::NoNamespace);
        }
        Ok(Netns { file, path: path.display().to_string(), opened })
    }

    /// Device and inode of the namespace's file in nsfs. Once the namespace is gone the kernel gives them to another.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let refuse = |e: std::io::Error| Error::Netns { path: self.path.clone(), reason: e.to_string() };
        self.file.metadata().map(|meta| (meta.dev(), meta.ino())).map_err(refuse)
    }

    /// Since when the namespace's file exists without a break. As long as anything holds the namespace by its file (a bind
    /// mount, a descriptor), that is since somebody held it first. `None` where nobody did: the file of a namespace in which
    /// processes only are (`/proc/PID/ns/net`) is made anew for whoever opens it (`path_from_stashed`, fs/libfs.c), and says
    /// nothing.
    pub fn held_since(&self) -> Option<SystemTime> {
        let meta = self.file.metadata().ok()?;
        let since = since_1970(meta.ctime(), meta.ctime_nsec())?;
        self.opened.is_none_or(|opened| since < opened).then_some(since)
    }

    /// The namespace of the calling thread.
    pub fn own() -> Result<Netns> {
        let opened = now_as_files_have_it();
        match door::own() {
            Ok(file) => Ok(Netns { file, path: own_file().display().to_string(), opened }),
            Err(_) => Netns::open(&own_file()),
        }
    }

    /// Runs `inside` with the calling thread in this namespace, and comes back.
    ///
    /// Sockets stay in the namespace they were opened in, so opening one is what is mostly done inside.
    /// Unix: setns(2) moves the calling thread only.
    pub fn enter<T>(&self, inside: impl FnOnce() -> Result<T>) -> Result<T> {
        self.enter_from(&Netns::own()?, inside)
    }

    /// The same for a caller that has its own namespace, `home`, open already.
    pub fn enter_from<T>(&self, home: &Netns, inside: impl FnOnce() -> Result<T>) -> Result<T> {
        self.switch()?;
        let outcome = inside();
        // Whatever followed in the wrong namespace would be done to the container instead of the host.
        home.switch().or_else(|_| home.switch())?;
        outcome
    }

    /// STATUS: whether a container's namespace could be entered and left again. The own one is entered, for which setns(2) wants
    /// the same: CAP_SYS_ADMIN, in the user namespace that it belongs to, too (`netns_install`, net/core/net_namespace.c).
    pub fn require_entrance() -> Result<()> {
        Netns::own().and_then(|own| own.switch()).map_err(|error| Error::NotAvailable {
            reason: format!("network namespaces can't be entered: {error}"),
            next: "run the container runtime as root in the host's user namespace, or give it CAP_SYS_ADMIN".into(),
        })
    }

    fn switch(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Netns {
            path: self.path.clone(),
            reason: match errno {
                Errno::EPERM => "entering it needs CAP_SYS_ADMIN; run the plugin as root".into(),
                other => other.desc().into(),
            },
        })
    }
}

/// The time by the clock from which the kernel takes the times of files (`current_time`, fs/inode.c), which goes in steps.
fn now_as_files_have_it() -> Option<SystemTime> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).ok()?;
    since_1970(now.tv_sec(), now.tv_nsec())
}

fn since_1970(seconds: i64, nanoseconds: i64) -> Option<SystemTime> {
    let duration = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(duration)
}

/// Why a namespace was not opened.
enum Why {
    Io(std::io::Error),
    NoNamespace,
}

impl Why {
    /// Whether there is no namespace at the path, in contrast to one that can't be opened now (open(2), "ERRORS").
    fn is_absence(&self) -> bool {
        use Errno::{EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENODEV, ENOENT, ENOTDIR, ENXIO};
        let of_path = [EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENODEV, ENOENT, ENOTDIR, ENXIO];
        match self {
            // Without an errno: a path with a NUL in it.
            Why::Io(error) => error.raw_os_error().is_none_or(|code| of_path.contains(&Errno::from_raw(code))),
            Why::NoNamespace => true,
        }
    }

    fn about(self, path: &Path) -> Error {
        let reason = match self {
            Why::Io(error) => error.to_string(),
            Why::NoNamespace => "it is not a network namespace".into(),
        };
        Error::Netns { path: path.display().to_string(), reason }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The directory in procfs of the calling thread, whatever the thread-group leader's namespaces are. That of the process is
/// the same for its first thread, and takes the kernel half as long: it makes a process's directories when they are asked for.
pub fn own_directory() -> &'static str {
    if gettid() == getpid() { "/proc/self" } else { "/proc/thread-self" }
}

fn own_file() -> PathBuf {
    Path::new(own_directory()).join("ns/net")
}

/// The identity of a namespace: device and inode of its file in nsfs.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h), since Linux 5.14.
#[derive(Clone, Copy)]
struct NetnsCookie;
nix::getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    nix::sys::socket::sockopt::GetStruct<u64>
);

/// The cookie of the calling thread's namespace: unlike the inode of its file, the kernel gives it to no other namespace
/// until it boots again. `None` where the kernel has none.
pub fn cookie() -> Result<Option<u64>> {
    let refuse = |errno| Error::kernel("identify", "the network namespace", errno);
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(refuse)?;
    match NetnsCookie.get(&socket) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(refuse(errno)),
    }
}

/// The index of the calling thread's namespace's interface of this name; `None` if there is none.
pub fn ifindex(ifname: &str) -> Result<Option<u32>> {
    match nix::net::if_::if_nametoindex(ifname) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(Error::kernel("look up", format!("interface {ifname}"), errno)),
    }
}

/// The name of the calling thread's namespace's interface of this index; `None` if there is none.
///
/// if_indextoname(3) has no errno for what keeps it from asking, and nix takes all that fails there for an empty name.
pub fn ifname(index: u32) -> Result<Option<String>> {
    Ok(RouteSocket::open()?.device_at(index)?.map(|device| device.name))
}

/// Fails if `path` is the plugin's own namespace. One that can't be opened passes, as in the reference: DEL comes for
/// namespaces that are gone.
pub fn refuse_own(path: Option<&Path>) -> Result<()> {
    let Some((path, theirs)) = path.and_then(|path| Some((path, identity(path)?))) else { return Ok(()) };
    if own_identity() == Some(theirs) { Err(Error::SameNetns { path: path.display().to_string() }) } else { Ok(()) }
}

fn own_identity() -> Option<(u64, u64)> {
    let by_descriptor = door::own().ok().and_then(|file| file.metadata().ok());
    by_descriptor.map(|meta| (meta.dev(), meta.ino())).or_else(|| identity(&own_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_an_index_or_there_is_none() {
        assert_eq!(ifindex("lo").unwrap(), Some(1));
        for nobody in ["no-such", "a name that is longer than the kernel takes", ""] {
            assert_eq!(ifindex(nobody).unwrap(), None, "{nobody:?}");
        }
        assert_eq!(ifname(1).unwrap().as_deref(), Some("lo"));
        assert_eq!(ifname(u32::MAX >> 1).unwrap(), None);
    }

    #[test]
    fn the_own_namespace_is_the_same_by_a_descriptor_and_by_procfs() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let version: Vec<u32> = release.split(['.', '-']).take(2).map(|number| number.parse().unwrap()).collect();
        let by_descriptor = || door::own().ok().map(|file| file.metadata().unwrap()).map(|m| (m.dev(), m.ino()));
        let here = identity(&own_file()).unwrap();
        let is_known = version >= vec![6, 11];
        assert_eq!(by_descriptor(), is_known.then_some(here));
        assert_eq!(Netns::own().unwrap().identity().unwrap(), here);
        let elsewhere = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let there = identity(&own_file()).unwrap();
            assert_eq!(by_descriptor(), is_known.then_some(there));
            there
        });
        assert_ne!(elsewhere.join().unwrap(), here);
    }

    #[test]
    fn a_namespace_keeps_its_cookie() {
        let own = cookie().unwrap();
        assert!(own.is_some_and(|cookie| cookie != 0));
        assert_eq!(cookie().unwrap(), own);
    }
}
