//! State files: what must outlive a call and has no place in the kernel.
//!
//! Files are 0600 in a 0700 directory and change as a whole: a nameless file (`O_TMPFILE`, open(2)), fsync, a temporary
//! name, rename, fsync of the directory. So what has a temporary name is whole, too, unless the file system knows no
//! nameless files; a program that is killed in between leaves it there, and whoever removes the file removes it as well.
//! A directory in which somebody else can give names to files, or which somebody else can exchange as a whole, is not used for
//! new ones: what stands there could be another's.
//! Files that belong together are found without listing all the others: a hidden directory beside them has an empty file of the
//! same name for each ([`Directory::note`]). Who works on the files of a group holds its lock ([`Directory::lock`]): a flock(2) on that
//! directory, which the kernel takes back from a program that is killed.
//! The directory is opened once and everything in it relative to that descriptor and without following a symlink. A file
//! that is no regular file, or that somebody else could have written, is spoilt: its content is never believed.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat, mknodat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};
use nix::unistd::{AccessFlags, UnlinkatFlags, access, geteuid, linkat, unlinkat};

use crate::cni::error::{Error, Result};

/// Bytes of a state file that are read; one of ours takes a few hundred.
const FILE_MAX: u64 = 1 << 20;

/// Bytes of a file name (`NAME_MAX`, include/uapi/linux/limits.h), less what the temporary name adds.
pub const NAME_MAX: usize = 255 - TEMPORARY.0.len() - TEMPORARY.1.len();

/// How often what others undo is done again: a group's directory, a temporary name.
const TRIES: u32 = 100;

/// How long a group's lock is waited for: far longer than any call holds it, far shorter than a runtime waits for a call.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// How long it takes until the lock is asked for again, at first and at most.
const LOCK_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

/// What a temporary file's name has before and after the name that it will get.
const TEMPORARY: (&str, &str) = (".", ".new");

/// What the name of a group's directory begins with.
const GROUP: &str = ".in-";

/// What was found under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nothing.
    Absent,
    /// A file of ours.
    Bytes(Vec<u8>),
    /// Something whose content can't be believed, and why.
    Spoilt(String),
}

/// A directory of state files.
#[derive(Debug)]
pub struct Directory {
    handle: Rc<OwnedFd>,
    path: PathBuf,
    /// Whether it is known, or was told, who else can exchange what is in it.
    is_looked_at: Cell<bool>,
    /// How long the next lock is waited for.
    patience: Cell<Duration>,
}

/// What has come of asking for a lock.
enum Attempt {
    Locked(Flock<OwnedFd>),
    /// Somebody else has it.
    Busy,
    /// The directory is not the one in place any more.
    Gone,
}

/// A group that is locked until this goes; it goes with it if it has no files then.
#[derive(Debug)]
pub struct GroupLock {
    parent: Rc<OwnedFd>,
    directory: String,
    /// Closed last.
    _flock: Flock<OwnedFd>,
}

impl Drop for GroupLock {
    fn drop(&mut self) {
        if let Err(errno) = remove_directory(&self.parent, &self.directory) {
            log::debug!("{} can't be removed: {}", self.directory, errno.desc());
        }
    }
}

impl Directory {
    /// Opens a directory; `None` if there is none. Of one in which somebody else can exchange files it is warned when something
    /// is found in it: what has to be removed may be there.
    pub fn open(path: &Path) -> Result<Option<Directory>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_CLOEXEC);
        match options.open(path) {
            Ok(file) => {
                let (handle, path) = (Rc::new(file.into()), path.to_owned());
                let (is_looked_at, patience) = (Cell::new(false), Cell::new(LOCK_WAIT));
                Ok(Some(Directory { handle, path, is_looked_at, patience }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(path, format!("the directory can't be opened: {error}"))),
        }
    }

    /// Opens a directory for new files, and makes it with its parents if there is none.
    pub fn create(path: &Path) -> Result<Directory> {
        refuse_exposed(path)?;
        if let Some(directory) = Directory::open(path)? {
            directory.is_looked_at.set(true);
            return Ok(directory);
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| unusable(path, format!("the directory can't be made: {error}")))?;
        // Where anybody may make files, somebody else may have been faster.
        refuse_exposed(path)?;
        Directory::open(path)?.ok_or_else(|| unusable(path, "the directory vanished".into()))
    }

    /// Warns, once, if somebody else can exchange what is in it.
    fn look_at(&self) {
        if self.is_looked_at.replace(true) {
            return;
        }
        if let Some(reason) = exposure(&self.path) {
            log::warn!("{}: {reason}", self.path.display());
        }
    }

    /// Fails if no file could be made in a directory of this path, or the directory itself could not be made. Leaves nothing
    /// behind: what is made for the question has no name (`O_TMPFILE`, open(2)).
    pub fn probe(path: &Path) -> Result<()> {
        let refuse =
            |at: &Path, reason: &str| Err(unusable(path, format!("nothing can be made in {}: {reason}", at.display())));
        refuse_exposed(path)?;
        let nearest =
            path.ancestors().find(|p| !matches!(p.symlink_metadata(), Err(e) if e.kind() == ErrorKind::NotFound));
        let nearest = nearest.filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if nearest == path {
            Directory::open(path)?;
        }
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE | nix::libc::O_CLOEXEC);
        match options.open(nearest).map_err(errno_of) {
            Ok(_) => Ok(()),
            // A file system that knows no nameless files may be a remote one, which takes others; the kernel's own do not.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR) => match statfs(nearest).map(|fs| fs.filesystem_type()) {
                Ok(PROC_SUPER_MAGIC | SYSFS_MAGIC) => refuse(nearest, "it is the kernel's own"),
                Ok(_) => access(nearest, AccessFlags::W_OK | AccessFlags::X_OK).or_else(|e| refuse(nearest, e.desc())),
                Err(errno) => refuse(nearest, errno.desc()),
            },
            Err(errno) => refuse(nearest, errno.desc()),
        }
    }

    /// The path of the file of this name.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Result<Stored> {
        self.read_at(checked(name)?)
    }

    /// Reads what a program that was killed has left of its change to a file.
    pub fn read_unfinished(&self, name: &str) -> Result<Stored> {
        self.read_at(&temporary(name)?)
    }

    fn read_at(&self, name: &str) -> Result<Stored> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = match openat(&self.handle, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => return Ok(Stored::Absent),
            Err(Errno::ELOOP) => return Ok(Stored::Spoilt("it is a symbolic link".into())),
            // A socket, or a device without a driver.
            Err(Errno::ENXIO | Errno::ENODEV) => return Ok(Stored::Spoilt("it is not a regular file".into())),
            Err(errno) => return Err(self.failed(name, "it can't be opened", errno)),
        };
        self.look_at();
        let refuse = |error: std::io::Error| unusable(&self.path_of(name), format!("it can't be read: {error}"));
        let meta = file.metadata().map_err(refuse)?;
        if !meta.is_file() {
            return Ok(Stored::Spoilt("it is not a regular file".into()));
        }
        if (meta.uid() != geteuid().as_raw() && meta.uid() != 0) || meta.mode() & 0o022 != 0 {
            return Ok(Stored::Spoilt("somebody else can write it".into()));
        }
        let mut bytes = Vec::new();
        let mut limited = file.take(FILE_MAX + 1);
        limited.read_to_end(&mut bytes).map_err(refuse)?;
        if bytes.len() as u64 > FILE_MAX {
            return Ok(Stored::Spoilt(format!("it is larger than {FILE_MAX} bytes")));
        }
        Ok(Stored::Bytes(bytes))
    }

    /// When a file was written last; `None` if there is none.
    pub fn modified(&self, name: &str) -> Result<Option<SystemTime>> {
        match fstatat(&self.handle, checked(name)?, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(time_of(stat.st_mtime, stat.st_mtime_nsec)),
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(None),
            Err(errno) => Err(self.failed(name, "it can't be looked at", errno)),
        }
    }

    /// Replaces a file as a whole: a reader, or a machine that loses power, sees the old content or the new.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_over(name, bytes, true).map(drop)
    }

    /// Writes a file whose name is nobody's yet; says `false`, and changes nothing, if something has the name.
    pub fn write_new(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        self.write_over(name, bytes, false)
    }

    fn write_over(&self, name: &str, bytes: &[u8], replaces: bool) -> Result<bool> {
        let temporary = temporary(name)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(unusable(&self.path_of(name), format!("it would be larger than {FILE_MAX} bytes")));
        }
        let mut put = self.put(name, &temporary, bytes, replaces);
        for _ in 1..TRIES {
            match put {
                // Who writes the same file at the same time has the same temporary name: it has taken this one for what a crash left
                // behind, has put it in place itself, or has the name now.
                Err(Errno::ENOENT | Errno::EEXIST) if replaces => put = self.put(name, &temporary, bytes, replaces),
                _ => break,
            }
        }
        match put.and_then(|()| nix::unistd::fsync(self.handle.as_fd())) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) if !replaces => Ok(false),
            Err(errno) => {
                let _ = unlink(&self.handle, &temporary);
                Err(self.failed(name, "it can't be written", errno))
            }
        }
    }

    fn put(&self, name: &str, temporary: &str, bytes: &[u8], replaces: bool) -> nix::Result<()> {
        let (flags, mode) = (OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::S_IRUSR | Mode::S_IWUSR);
        match openat(&self.handle, ".", flags | OFlag::O_TMPFILE, mode) {
            Ok(nameless) => {
                let file = filled(nameless, bytes)?;
                match self.link(&file, name) {
                    Err(Errno::EEXIST) if replaces => {}
                    outcome => return outcome,
                }
                self.clear(temporary)?;
                self.link(&file, temporary)?;
            }
            // A file system, or a kernel, that knows no nameless files.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                if !replaces {
                    match fstatat(&self.handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                        Err(Errno::ENOENT) => {}
                        outcome => return outcome.and(Err(Errno::EEXIST)),
                    }
                }
                self.clear(temporary)?;
                let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                filled(openat(&self.handle, temporary, flags, mode)?, bytes)?;
            }
            Err(errno) => return Err(errno),
        }
        renameat(&self.handle, temporary, &self.handle, name)
    }

    /// Removes what a crash left behind; the name must then be new and no symlink.
    fn clear(&self, temporary: &str) -> nix::Result<()> {
        match unlink(&self.handle, temporary) {
            Err(Errno::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }

    /// Gives a nameless file a name that is nobody's yet.
    fn link(&self, file: &File, name: &str) -> nix::Result<()> {
        match linkat(file, "", &self.handle, name, AtFlags::AT_EMPTY_PATH) {
            // Without CAP_DAC_READ_SEARCH; with it the way through procfs is spared.
            Err(Errno::ENOENT) => {
                let open = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(AT_FDCWD, open.as_str(), &self.handle, name, AtFlags::AT_SYMLINK_FOLLOW)
            }
            outcome => outcome,
        }
    }

    /// Removes what a program that was killed has left of its change to a file.
    pub fn remove_unfinished(&self, name: &str) -> Result<()> {
        match unlink(&self.handle, &temporary(name)?) {
            // A directory with something in it was never left by us.
            Ok(()) | Err(Errno::ENOENT | Errno::ENAMETOOLONG | Errno::ENOTEMPTY) => Ok(()),
            Err(errno) => Err(self.failed(name, "its temporary file can't be removed", errno)),
        }
    }

    /// Whether a file could be written under this name: not over a directory. An empty one is removed.
    pub fn make_way(&self, name: &str) -> Result<bool> {
        match unlinkat(&self.handle, checked(name)?, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EBUSY) => Ok(false),
            Err(errno) => Err(self.failed(name, "it can't be removed", errno)),
        }
    }

    /// Removes a file, or whatever stands under its name but for a directory with something in it; says whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool> {
        self.remove_unfinished(name)?;
        match unlink(&self.handle, name) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(false),
            Err(errno) => Err(self.failed(name, "it can't be removed", errno)),
        }
    }

    /// The names of the files that there are, in no order; temporary and hidden ones are left out.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.entries()?.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    /// The names of the files that were noted as one group, in no order; some may be gone. Where others can add directories to
    /// this one, some may never have been noted: a name is no more than a hint at what to read here.
    pub fn members(&self, group: &str) -> Result<Vec<String>> {
        let names = self.listed(&self.path.join(group_name(group)?))?;
        Ok(names.into_iter().filter(|name| checked(name).is_ok()).collect())
    }

    /// Notes that a file belongs to a group.
    pub fn note(&self, group: &str, name: &str) -> Result<()> {
        let (group, name) = (group_name(group)?, checked(name)?);
        let make = |at: &OwnedFd, name: &str| mknodat(at, name, SFlag::S_IFREG, Mode::S_IRUSR | Mode::S_IWUSR, 0);
        // Whoever takes the last of a group away takes its directory away as well.
        for _ in 0..TRIES {
            let made = match mkdirat(&self.handle, group.as_str(), Mode::S_IRWXU) {
                // One's own, which nobody else can exchange.
                Ok(()) => make(&self.handle, &format!("{group}/{name}")),
                Err(Errno::EEXIST) => match self.open_group(&group)? {
                    Some(handle) => make(&handle, name),
                    None => Err(Errno::ENOENT),
                },
                Err(errno) => return Err(self.failed(&group, "it can't be made", errno)),
            };
            match made {
                Ok(()) | Err(Errno::EEXIST) => return Ok(()),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(self.failed(&group, &format!("{name} can't be noted in it"), errno)),
            }
        }
        Err(unusable(&self.path_of(&group), "it is removed again and again".into()))
    }

    /// Takes a file out of its group.
    pub fn forget(&self, group: &str, name: &str) -> Result<()> {
        let (directory, name) = (group_name(group)?, checked(name)?);
        let handle = match self.open_group(&directory) {
            Err(error) if self.is_anothers(&directory) => {
                log::debug!("{error}");
                None
            }
            outcome => outcome?,
        };
        let Some(handle) = handle else { return Ok(()) };
        match unlink(&handle, name) {
            Ok(()) | Err(Errno::ENOENT) => self.remove_empty(group),
            Err(errno) => Err(self.failed(&directory, &format!("{name} can't be removed from it"), errno)),
        }
    }

    /// Removes a group that has no files. One that is locked is left to whoever has it locked: others would lock another
    /// directory of this name.
    pub fn remove_empty(&self, group: &str) -> Result<()> {
        let directory = group_name(group)?;
        let lock = match self.open_group(&directory) {
            Ok(None) => return Ok(()),
            Ok(Some(handle)) => self.try_lock(&directory, handle)?,
            // What is no directory of ours is no lock of anybody's.
            Err(error) if self.is_anothers(&directory) => {
                log::debug!("{error}");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Attempt::Locked(_lock) = lock else { return Ok(()) };
        match remove_directory(&self.handle, &directory) {
            Ok(()) => Ok(()),
            Err(errno) => Err(self.failed(&directory, "it can't be removed", errno)),
        }
    }

    /// Locks a group, with or without files, against everybody else who asks for its lock; waits for it, but not for ever. Once
    /// that has been in vain, this directory's other locks are not waited for: a call that takes one after the other would
    /// outlast a runtime's patience.
    pub fn lock(&self, group: &str) -> Result<GroupLock> {
        let directory = group_name(group)?;
        let since = Instant::now();
        let (mut pause, longest) = LOCK_PAUSE;
        loop {
            let handle = match self.open_group(&directory)? {
                Some(handle) => Some(handle),
                None => match mkdirat(&self.handle, directory.as_str(), Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => self.open_group(&directory)?,
                    Err(errno) => return Err(self.failed(&directory, "it can't be made", errno)),
                },
            };
            let attempt = handle.map_or(Ok(Attempt::Gone), |handle| self.try_lock(&directory, handle))?;
            if let Attempt::Locked(flock) = attempt {
                return Ok(GroupLock { parent: Rc::clone(&self.handle), directory, _flock: flock });
            }
            let is_busy = matches!(attempt, Attempt::Busy);
            // A directory that has gone is nobody's.
            let patience = if is_busy { self.patience.get() } else { LOCK_WAIT };
            if since.elapsed() >= patience {
                self.patience.set(Duration::ZERO);
                let path = self.path_of(&directory);
                let path = path.display();
                let what = match patience.as_secs() {
                    0 => format!("another call holds the lock of {path}; fuser(1) tells which"),
                    waited => format!("another call has held the lock of {path} for {waited} s; fuser(1) tells which"),
                };
                return Err(Error::TryAgain { what });
            }
            if is_busy {
                std::thread::sleep(pause);
                pause = longest.min(pause * 2);
            }
        }
    }

    /// Locks a group's open directory if nobody else has, and if it has not been removed meanwhile.
    fn try_lock(&self, group: &str, handle: OwnedFd) -> Result<Attempt> {
        let flock = match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
            Ok(flock) => flock,
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Ok(Attempt::Busy),
            Err((_, errno)) => return Err(self.failed(group, "it can't be locked", errno)),
        };
        let failed = |errno| self.failed(group, "it can't be looked at", errno);
        let locked = fstat(&*flock).map_err(failed)?;
        match fstatat(&self.handle, group, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino) => Ok(Attempt::Locked(flock)),
            Ok(_) | Err(Errno::ENOENT) => Ok(Attempt::Gone),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// The groups that there are, in no order.
    pub fn groups(&self) -> Result<Vec<String>> {
        let entries = self.entries()?;
        Ok(entries.iter().filter_map(|name| name.strip_prefix(GROUP)).map(str::to_owned).collect())
    }

    /// A group's directory; one that somebody else has made is none.
    fn open_group(&self, group: &str) -> Result<Option<OwnedFd>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let failed = |errno| self.failed(group, "it can't be opened", errno);
        let handle = match openat(&self.handle, group, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        let stat = fstat(&handle).map_err(failed)?;
        match exposure_of(stat.st_uid, stat.st_mode) {
            None => Ok(Some(handle)),
            Some(reason) => Err(unusable(&self.path_of(group), format!("the directory {reason}; remove it"))),
        }
    }

    /// Whether somebody else has put this where a group's directory should be: then it holds nothing of ours. That it can't be found
    /// out says nothing.
    fn is_anothers(&self, group: &str) -> bool {
        let found = fstatat(&self.handle, group, AtFlags::AT_SYMLINK_NOFOLLOW);
        let kind = |mode| SFlag::from_bits_truncate(mode) & SFlag::S_IFMT;
        found.is_ok_and(|stat| kind(stat.st_mode) != SFlag::S_IFDIR || exposure_of(stat.st_uid, stat.st_mode).is_some())
    }

    /// The names of the files of whose change something was left by a program that was killed.
    pub fn unfinished(&self) -> Result<Vec<String>> {
        let unfinished = |entry: &String| {
            let name = entry.strip_prefix(TEMPORARY.0)?.strip_suffix(TEMPORARY.1)?;
            checked(name).ok().map(str::to_owned)
        };
        Ok(self.entries()?.iter().filter_map(unfinished).collect())
    }

    fn entries(&self) -> Result<Vec<String>> {
        self.listed(&self.path)
    }

    fn listed(&self, path: &Path) -> Result<Vec<String>> {
        let refuse = |error: std::io::Error| unusable(path, format!("the directory can't be listed: {error}"));
        let entries = match std::fs::read_dir(path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            outcome => outcome.map_err(refuse)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that isn't UTF-8 was never written by us.
            names.extend(entry.map_err(refuse)?.file_name().into_string());
        }
        if !names.is_empty() {
            self.look_at();
        }
        Ok(names)
    }

    fn failed(&self, name: &str, what: &str, errno: Errno) -> Error {
        unusable(&self.path_of(name), format!("{what}: {}", errno.desc()))
    }
}

/// What is to be done about an exposed directory.
const MEND: &str = "make it root's with mode 0700, or name another one";

fn refuse_exposed(path: &Path) -> Result<()> {
    exposure(path).map_or(Ok(()), |reason| Err(unusable(path, format!("{reason}; {MEND}"))))
}

/// How somebody else could exchange a file in the directory of this path, or a directory on the way to it; `None` if nobody can,
/// as far as there is one. Every step of the way is looked at, those of symbolic links too, and only where the step before was
/// found safe: so nobody can exchange it afterwards.
fn exposure(path: &Path) -> Option<String> {
    let mut at = std::path::absolute(path).ok()?;
    let mut steps = reversed(&at);
    let mut links = 0;
    while let Some(step) = steps.pop() {
        match step.as_encoded_bytes() {
            b"/" => {
                at = PathBuf::from("/");
                continue;
            }
            b".." => {
                at.pop();
                continue;
            }
            b"." => continue,
            _ => at.push(&step),
        }
        let Ok(meta) = at.symlink_metadata() else { return None };
        if meta.is_symlink() {
            links += 1;
            if is_another_users(meta.uid()) {
                return Some(format!("{} is a symbolic link of another user's", at.display()));
            }
            // Opening it will fail (path_resolution(7)).
            let target = at.read_link().ok().filter(|_| links <= 40)?;
            at.pop();
            steps.extend(reversed(&target));
        } else if let Some(reason) = exposure_of(meta.uid(), meta.mode()) {
            let beyond = !steps.is_empty();
            return Some(if beyond {
                format!("above it, {} {reason}", at.display())
            } else {
                format!("the directory {reason}")
            });
        }
    }
    None
}

/// The steps of a path, the first one last; the root is one.
fn reversed(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|step| OsStr::to_owned(step.as_os_str())).collect()
}

fn is_another_users(owner: u32) -> bool {
    owner != 0 && owner != geteuid().as_raw()
}

/// How others than the caller and root can change what a directory of this owner and mode holds. With the sticky bit they can
/// add files to it, which are not believed, and neither exchange nor remove ours (inode(7)).
fn exposure_of(owner: u32, mode: u32) -> Option<&'static str> {
    let sticky = mode & 0o1000 != 0;
    match owner {
        other if is_another_users(other) => Some("belongs to another user"),
        _ if mode & 0o022 != 0 && !sticky => Some("can be written by others, who could exchange what is in it"),
        _ => None,
    }
}

/// An open file with these contents, on disk.
fn filled(file: OwnedFd, bytes: &[u8]) -> nix::Result<File> {
    let mut file = File::from(file);
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(errno_of).map(|()| file)
}

/// Removes what has this name in a directory, but for a directory that has something in it.
fn unlink(directory: &OwnedFd, name: &str) -> nix::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(directory, name, UnlinkatFlags::RemoveDir),
        outcome => outcome,
    }
}

/// Removes a directory if there is nothing in it.
fn remove_directory(parent: &OwnedFd, name: &str) -> nix::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::ENOTDIR) => Ok(()),
        outcome => outcome,
    }
}

/// A name is one step: it can't lead out of the directory, and it can't be a temporary one.
fn checked(name: &str) -> Result<&str> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(unusable(Path::new(name), "this can't be the name of a state file".into()));
    }
    Ok(name)
}

/// The name of a group's directory, which is one step, too.
fn group_name(group: &str) -> Result<String> {
    if group.is_empty() || group.contains(['/', '\0']) {
        return Err(unusable(Path::new(group), "this can't be the name of a group of state files".into()));
    }
    Ok(format!("{GROUP}{group}"))
}

fn temporary(name: &str) -> Result<String> {
    Ok(format!("{}{}{}", TEMPORARY.0, checked(name)?, TEMPORARY.1))
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::StateFile { path: path.to_owned(), reason }
}

/// Seconds and nanoseconds since 1970.
fn time_of(seconds: i64, nanoseconds: i64) -> Option<SystemTime> {
    let since_1970 = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since_1970)
}

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn directory() -> (tempfile::TempDir, Directory) {
        let outer = tempfile::tempdir().unwrap();
        let directory = Directory::create(&outer.path().join("run/state")).unwrap();
        (outer, directory)
    }

    #[test]
    fn a_new_file_takes_the_place_of_none() {
        let (_outer, directory) = directory();
        assert!(directory.write_new("a.json", b"one").unwrap());
        assert!(!directory.write_new("a.json", b"two").unwrap());
        assert_eq!(directory.read("a.json").unwrap(), Stored::Bytes(b"one".to_vec()));
        assert_eq!(directory.unfinished().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn all_who_write_a_file_at_once_come_to_their_end() {
        let (_outer, directory) = directory();
        let path = directory.path.as_path();
        let write = |n: u8| {
            let own = Directory::open(path).unwrap().unwrap();
            (0..500).try_for_each(|_| own.write("a.json", &[n; 64]))
        };
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3).map(|n| scope.spawn(move || write(n))).collect();
            for writer in writers {
                writer.join().unwrap().unwrap();
            }
        });
        let Stored::Bytes(bytes) = directory.read("a.json").unwrap() else { panic!("nothing that can be believed") };
        assert!((0..3).any(|n| bytes == [n; 64]), "{bytes:?}");
        assert_eq!(directory.unfinished().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_file_comes_back_until_it_is_removed() {
        let (_outer, directory) = directory();
        assert_eq!(directory.read("a.json").unwrap(), Stored::Absent);
        directory.write("a.json", b"one").unwrap();
        directory.write("a.json", b"two").unwrap();
        assert_eq!(directory.read("a.json").unwrap(), Stored::Bytes(b"two".to_vec()));
        assert_eq!(directory.names().unwrap(), ["a.json"]);
        assert!(directory.remove("a.json").unwrap());
        assert!(!directory.remove("a.json").unwrap());
        assert!(directory.names().unwrap().is_empty());
    }

    #[test]
    fn files_are_0600_and_directories_0700() {
        let (outer, directory) = directory();
        directory.write("a.json", b"x").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory.path_of("a.json")), 0o600);
        assert_eq!(mode(&outer.path().join("run/state")), 0o700);
        assert_eq!(mode(&outer.path().join("run")), 0o700);
    }

    #[test]
    fn a_symlink_is_neither_read_nor_written_through() {
        let (outer, directory) = directory();
        let target = outer.path().join("target");
        std::fs::write(&target, "untouched").unwrap();
        symlink(&target, directory.path_of("a.json")).unwrap();
        symlink(&target, directory.path_of(".a.json.new")).unwrap();
        assert!(matches!(directory.read("a.json").unwrap(), Stored::Spoilt(_)));
        directory.write("a.json", b"mine").unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
        assert_eq!(directory.read("a.json").unwrap(), Stored::Bytes(b"mine".to_vec()));
        symlink(&target, directory.path_of("b.json")).unwrap();
        assert!(directory.remove("b.json").unwrap());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
    }

    #[test]
    fn what_others_could_have_written_is_spoilt() {
        let (_outer, directory) = directory();
        directory.write("a.json", b"x").unwrap();
        let open_to_all = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(directory.path_of("a.json"), open_to_all).unwrap();
        assert!(matches!(directory.read("a.json").unwrap(), Stored::Spoilt(_)));
    }

    #[test]
    fn a_directory_that_others_can_write_takes_no_new_files() {
        let (outer, directory) = directory();
        directory.write("a.json", b"x").unwrap();
        let chmod = |mode| std::fs::set_permissions(&directory.path, std::fs::Permissions::from_mode(mode)).unwrap();
        for (mode, is_used) in [(0o777, false), (0o770, false), (0o702, false), (0o1777, true), (0o755, true)] {
            chmod(mode);
            assert_eq!(Directory::create(&directory.path).is_ok(), is_used, "{mode:o}");
            assert_eq!(Directory::probe(&directory.path).is_ok(), is_used, "{mode:o}");
            assert!(Directory::open(&directory.path).unwrap().unwrap().remove("b.json").is_ok(), "{mode:o}");
        }
        // One that others could put their own in the place of.
        std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Directory::create(&outer.path().join("new/below")).is_err());
        assert!(!outer.path().join("new").exists());
        assert!(exposure_of(65534, 0o700).is_some() && exposure_of(0, 0o700).is_none());
    }

    #[test]
    fn what_is_no_file_is_spoilt_and_never_blocks() {
        let (_outer, directory) = directory();
        nix::unistd::mkfifo(&directory.path_of("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        std::fs::create_dir(directory.path_of("dir")).unwrap();
        let large = vec![b' '; usize::try_from(FILE_MAX).unwrap() + 1];
        assert!(directory.write("large", &large).is_err());
        std::fs::write(directory.path_of("large"), &large).unwrap();
        for name in ["fifo", "dir", "large"] {
            assert!(matches!(directory.read(name).unwrap(), Stored::Spoilt(_)), "{name}");
        }
    }

    #[test]
    fn a_probe_says_whether_a_file_could_be_made_and_makes_none() {
        let (outer, directory) = directory();
        let file = outer.path().join("file");
        std::fs::write(&file, "").unwrap();
        for fine in [directory.path.clone(), outer.path().join("not/yet/there")] {
            Directory::probe(&fine).unwrap();
        }
        for impossible in ["/proc/nowhere", "/sys/nowhere", "/proc/sys/net"] {
            assert!(Directory::probe(Path::new(impossible)).is_err(), "{impossible}");
        }
        assert!(Directory::probe(&file).is_err());
        assert!(Directory::probe(&file.join("below")).is_err());
        let left: Vec<_> = std::fs::read_dir(outer.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(directory.names().unwrap().is_empty());
    }

    #[test]
    fn a_file_says_when_it_was_written() {
        let (_outer, directory) = directory();
        assert_eq!(directory.modified("a.json").unwrap(), None);
        directory.write("a.json", b"x").unwrap();
        let age = directory.modified("a.json").unwrap().unwrap().elapsed().unwrap();
        assert!(age.as_secs() < 3600, "{age:?}");
    }

    #[test]
    fn what_was_left_of_a_change_can_be_judged_and_removed() {
        let (_outer, directory) = directory();
        directory.write("b.json", b"whole").unwrap();
        for (name, content) in [("a.json", "left"), ("b.json", "left, too")] {
            std::fs::write(directory.path_of(&format!(".{name}.new")), content).unwrap();
        }
        let mut unfinished = directory.unfinished().unwrap();
        unfinished.sort();
        assert_eq!(unfinished, ["a.json", "b.json"]);
        assert_eq!(directory.read_unfinished("a.json").unwrap(), Stored::Bytes(b"left".to_vec()));
        assert_eq!(directory.names().unwrap(), ["b.json"]);
        directory.remove_unfinished("a.json").unwrap();
        directory.remove_unfinished("a.json").unwrap();
        directory.remove("b.json").unwrap();
        assert!(directory.unfinished().unwrap().is_empty());
    }

    #[test]
    fn files_of_a_group_are_found_without_the_others() {
        let (outer, directory) = directory();
        assert!(directory.members("4:1").unwrap().is_empty());
        directory.forget("4:1", "a.json").unwrap();
        for (group, name) in [("4:1", "a.json"), ("4:1", "b.json"), ("4:1", "b.json"), ("4:2", "a.json")] {
            directory.write(name, b"x").unwrap();
            directory.note(group, name).unwrap();
        }
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        assert_eq!(sorted(directory.members("4:1").unwrap()), ["a.json", "b.json"]);
        assert_eq!(sorted(directory.groups().unwrap()), ["4:1", "4:2"]);
        assert_eq!(sorted(directory.names().unwrap()), ["a.json", "b.json"]);
        assert!(directory.unfinished().unwrap().is_empty());
        for (group, name) in [("4:1", "a.json"), ("4:1", "a.json"), ("4:1", "b.json"), ("4:2", "a.json")] {
            directory.forget(group, name).unwrap();
        }
        assert!(directory.groups().unwrap().is_empty());
        std::fs::create_dir(directory.path_of(".in-4:1")).unwrap();
        directory.remove_empty("4:1").unwrap();
        directory.remove_empty("4:1").unwrap();
        assert!(directory.groups().unwrap().is_empty());
        for group in ["", "a/b", "../x", "a\0b"] {
            assert!(directory.note(group, "a.json").is_err() && directory.members(group).is_err(), "{group:?}");
        }
        symlink(outer.path(), directory.path_of(".in-4:3")).unwrap();
        assert!(directory.note("4:3", "a.json").is_err() && directory.forget("4:3", "a.json").is_ok());
        assert!(!outer.path().join("a.json").exists());
    }

    #[test]
    fn a_group_is_locked_by_one_at_a_time_and_goes_with_the_lock() {
        let (_outer, directory) = directory();
        let lock = directory.lock("4:1").unwrap();
        let again = || directory.try_lock(".in-4:1", directory.open_group(".in-4:1").unwrap().unwrap()).unwrap();
        assert!(matches!(again(), Attempt::Busy));
        // It is not taken away below whoever has it locked.
        directory.remove_empty("4:1").unwrap();
        directory.forget("4:1", "a.json").unwrap();
        assert_eq!(directory.groups().unwrap(), ["4:1"]);
        let open = || directory.open_group(".in-4:1").unwrap().unwrap();
        let [late, later] = [open(), open()];
        drop(lock);
        assert!(directory.groups().unwrap().is_empty());
        // Who has opened it before it went has locked nothing.
        assert!(matches!(directory.try_lock(".in-4:1", late).unwrap(), Attempt::Gone));
        let lock = directory.lock("4:1").unwrap();
        // Nor when there is another of this name by now.
        assert!(matches!(directory.try_lock(".in-4:1", later).unwrap(), Attempt::Gone));
        directory.note("4:1", "a.json").unwrap();
        drop(lock);
        assert_eq!(directory.members("4:1").unwrap(), ["a.json"]);
        assert!(matches!(again(), Attempt::Locked(_)));
    }

    #[test]
    fn once_a_lock_has_been_waited_for_in_vain_the_next_is_not_waited_for() {
        let (_outer, directory) = directory();
        let other = Directory::open(&directory.path).unwrap().unwrap();
        let _held = ["4:1", "4:2"].map(|group| other.lock(group).unwrap());
        directory.patience.set(Duration::from_secs(1));
        let refused = |group| directory.lock(group).unwrap_err().to_string();
        let (first, second) = (refused("4:1"), refused("4:2"));
        assert!(first.contains(".in-4:1 for 1 s;"), "{first}");
        assert!(second.contains("holds the lock of") && second.contains(".in-4:2;"), "{second}");
        // One that nobody holds is had all the same.
        directory.lock("4:3").unwrap();
    }

    #[test]
    fn a_name_is_one_step() {
        let (_outer, directory) = directory();
        for name in ["", ".", "..", "../a", "a/b", ".hidden", "a\0b"] {
            assert!(directory.write(name, b"x").is_err(), "{name:?}");
            assert!(directory.read(name).is_err(), "{name:?}");
            assert!(directory.remove(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_longest_name_fits_and_a_longer_one_is_an_error() {
        let (_outer, directory) = directory();
        let longest = "n".repeat(NAME_MAX);
        directory.write(&longest, b"x").unwrap();
        assert!(directory.remove(&longest).unwrap());
        assert!(directory.write(&"n".repeat(256), b"x").is_err());
        assert_eq!(directory.read(&"n".repeat(256)).unwrap(), Stored::Absent);
        assert!(directory.names().unwrap().is_empty());
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
        let (_outer, directory) = directory();
        std::fs::create_dir(directory.path_of("taken")).unwrap();
        std::fs::write(directory.path_of("taken").join("x"), "").unwrap();
        assert!(directory.write("taken", b"x").is_err());
        let left: Vec<_> = std::fs::read_dir(&directory.path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["taken"]);
    }
}
