//! Sysctls below `/proc/sys/net`: keys as people write them, and the only door to the files.
//!
//! `/proc/sys/net` shows the namespace of the thread that opens a file (fs/proc/proc_sysctl.c, net/sysctl_net.c), so
//! everything here speaks of the calling thread's namespace: go through [`crate::netns::Netns::enter`] first for
//! another one.
//!
//! A key comes from a configuration and is treated as hostile: it can name nothing but a file below `/proc/sys/net`,
//! every directory on the way is opened without following a symlink, and what is opened must be procfs.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::cni::error::{Error, Result};

/// The directory under which every name lies.
const ROOT: &str = "/proc/sys";

/// The placeholder for CNI_IFNAME in a key, as in the reference.
pub const PLACEHOLDER: &str = "IFNAME";

/// Bytes of a value that are read at first, and if that was too little. Nearly all are a number; the kernel's longest is a
/// list of every second port (`ip_local_reserved_ports`), about 190 KiB.
const VALUE_SIZES: [usize; 3] = [128, 8 << 10, 1 << 20];

/// The name of a sysctl: its path below `/proc/sys`, beginning with `net/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// A name from its path below `/proc/sys`, as `net/ipv4/ip_forward`.
    pub fn new(path: &str) -> Option<Name> {
        let parts: Vec<&str> = path.split('/').collect();
        Name::from_parts(&parts)
    }

    fn from_parts<T: AsRef<str>>(parts: &[T]) -> Option<Name> {
        let is_plain = |p: &T| !matches!(p.as_ref(), "" | "." | "..") && !p.as_ref().contains(['/', '\0']);
        let below_net = parts.len() >= 2 && parts.first().is_some_and(|p| p.as_ref() == "net");
        let joined: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        (below_net && parts.iter().all(is_plain)).then(|| Name(joined.join("/")))
    }

    /// The path below `/proc/sys`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The interface of whose sysctls this is one, as `eth0` of `net/ipv4/conf/eth0/rp_filter`; `None` where it is the
    /// namespace's.
    pub fn interface(&self) -> Option<&str> {
        self.scope().filter(|scope| !matches!(*scope, "all" | "default"))
    }

    /// The same sysctl of another interface, of `all` or of `default`.
    pub fn of(&self, scope: &str) -> Option<Name> {
        let mut parts: Vec<&str> = self.0.split('/').collect();
        self.scope()?;
        *parts.get_mut(3)? = scope;
        Name::from_parts(&parts)
    }

    /// Where it belongs when several are written, because of [`followers`]: what changes every interface's goes before
    /// what changes new interfaces', and that before one interface's.
    pub fn rank(&self) -> u8 {
        match self.scope() {
            Some("all") => 0,
            None if self.0 == "net/ipv4/ip_forward" => 0,
            Some("default") => 1,
            _ => 2,
        }
    }

    /// The fourth part of `net/<family>/{conf,neigh}/<scope>/<leaf>`.
    fn scope(&self) -> Option<&str> {
        let mut parts = self.0.split('/').skip(2);
        let (table, scope, _leaf) = (parts.next()?, parts.next()?, parts.next()?);
        matches!(table, "conf" | "neigh").then_some(scope)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key as a configuration writes it, and the names it may mean, the likeliest first.
///
/// sysctl(8) lets the first separator decide: after a slash, dots are part of a name; after a dot, slashes are dots.
/// The reference turns every dot into a slash. The two differ only for interface names with a dot in them (VLANs), and
/// there only one of the names can exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    written: String,
    names: Vec<Name>,
}

impl Key {
    /// Reads a key; `ifname` takes the place of every [`PLACEHOLDER`].
    pub fn parse(written: &str, ifname: &str) -> std::result::Result<Key, String> {
        let aside = || Err(format!("invalid net sysctl key: \"{written}\": \".\" and \"..\" are not taken"));
        if written.split('/').any(|step| matches!(step, "." | "..")) {
            return aside();
        }
        let mut names: Vec<Name> = Vec::new();
        for text in [written.to_owned(), shield_dotted_ifname(written, ifname)] {
            let strict = split_as_sysctl8(&text);
            if strict.iter().any(|part| part == ".." || part == ".") {
                return aside();
            }
            for parts in [strict, split_everywhere(&text)] {
                let filled: Vec<String> = parts.iter().map(|p| p.replace(PLACEHOLDER, ifname)).collect();
                match Name::from_parts(&filled) {
                    Some(name) if !names.contains(&name) => names.push(name),
                    _ => {}
                }
            }
        }
        // "net/..." would be a file's name that is nothing but dots.
        let says_which = written.split(['.', '/']).filter(|part| !part.is_empty()).count() > 1;
        if names.is_empty() || !says_which {
            return Err(format!(
                "invalid net sysctl key: \"{written}\": only keys below net can be set in a container's network \
                 namespace, as net.core.somaxconn"
            ));
        }
        Ok(Key { written: written.to_owned(), names })
    }

    /// The key as written.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// What it may mean; the first that exists is meant.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// Whether both keys mean one file, however they are written.
    pub fn means_the_same(&self, other: &Key) -> bool {
        let flat = |key: &Key| key.names.first().map(|n| n.0.replace('.', "/"));
        flat(self) == flat(other)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// sysctl(8), "variable": the first separator decides what dots and slashes are.
fn split_as_sysctl8(text: &str) -> Vec<String> {
    match text.chars().find(|c| matches!(c, '.' | '/')) {
        Some('.') => text.split('.').filter(|p| !p.is_empty()).map(|p| p.replace('/', ".")).collect(),
        _ => text.split('/').filter(|p| !p.is_empty()).map(str::to_owned).collect(),
    }
}

/// As the reference does it: every dot and every slash separates, empty parts vanish.
fn split_everywhere(text: &str) -> Vec<String> {
    text.split(['.', '/']).filter(|p| !p.is_empty()).map(str::to_owned).collect()
}

/// Puts the placeholder where a key spells out an interface name that has dots in it.
fn shield_dotted_ifname(written: &str, ifname: &str) -> String {
    if !ifname.contains('.') {
        return written.to_owned();
    }
    written.replace(&format!(".{ifname}."), &format!(".{PLACEHOLDER}."))
}

/// What a file of a sysctl can do for its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// It has this value, without the newline at the end.
    Value(String),
    /// It has no value until somebody writes one, and can't go back to that (`net.ipv6.conf.*.stable_secret`).
    Unset,
    /// It is a directory: others are below it.
    Directory,
    /// It can be written only: writing it does something, there is no value to keep (`net.ipv4.route.flush`).
    WriteOnly,
}

impl Content {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&str> {
        match self {
            Content::Value(text) => Some(text),
            Content::Unset | Content::Directory | Content::WriteOnly => None,
        }
    }
}

/// Reads a sysctl; `None` if there is none of this name in the calling thread's namespace.
pub fn read(name: &Name) -> Result<Option<Content>> {
    let file = match open_file(name, OFlag::O_RDONLY) {
        Ok(file) => file,
        Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => {
            return if are_there() { Ok(None) } else { Err(missing(name, errno)) };
        }
        // proc_sys_permission (fs/proc/proc_sysctl.c).
        Err(Errno::EACCES) if open_file(name, OFlag::O_WRONLY).is_ok() => {
            return Ok(Some(Content::WriteOnly));
        }
        Err(errno) => return Err(refused("read", name, errno)),
    };
    content(file.into(), name).map(Some)
}

/// Whether there are sysctls at all.
pub fn are_there() -> bool {
    std::fs::exists(format!("{ROOT}/net")).unwrap_or(false)
}

/// There is no such sysctl, because there are none at all.
fn missing(name: &Name, errno: Errno) -> Error {
    let hint = format!("there is no {ROOT}/net: mount proc with its sysctls (not with subset=pid)");
    Error::Kernel { action: "read", object: object(name), errno, ext_ack: hint }
}

/// Reads a sysctl that can be written, too; `None` if it can't, or isn't there: [`read`] and [`writable`] tell why.
pub fn read_writable(name: &Name) -> Result<Option<Content>> {
    open_file(name, OFlag::O_RDWR).ok().map(|file| content(file.into(), name)).transpose()
}

/// Writes a sysctl, and reads what it holds then; `None` if it has gone.
pub fn write_and_read(name: &Name, value: &str) -> Result<Option<Content>> {
    let Ok(file) = open_file(name, OFlag::O_RDWR).map(File::from) else {
        write(name, value)?;
        return read(name);
    };
    put(&file, name, value)?;
    content(file, name).map(Some)
}

fn content(file: File, name: &Name) -> Result<Content> {
    match read_whole(file, name) {
        Ok(value) => {
            let text = String::from_utf8_lossy(&value);
            Ok(Content::Value(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
        }
        Err(error) if error.raw_os_error() == Some(Errno::EISDIR as i32) => Ok(Content::Directory),
        // addrconf_sysctl_stable_secret (net/ipv6/addrconf.c) answers so while there is no secret.
        Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(Content::Unset),
        Err(error) => Err(Error::io("read", object(name), &error)),
    }
}

/// The kernel gives to the first read(2) what fits, and to the next nothing or garbage (`proc_do_large_bitmap` in
/// kernel/sysctl.c): a value that fills the buffer is read again, from the beginning, into a larger one.
fn read_whole(mut file: File, name: &Name) -> std::io::Result<Vec<u8>> {
    let mut value = Vec::new();
    for size in VALUE_SIZES {
        value.resize(size, 0);
        let length = file.read_at(&mut value, 0)?;
        value.truncate(length);
        if length < size {
            break;
        }
        file = File::from(open_file(name, OFlag::O_RDONLY)?);
    }
    Ok(value)
}

/// The sysctls that the kernel writes too when `name` is written, as they are in the calling thread's namespace.
///
/// * What is written to `all` goes to every interface: `inet_forward_change` (net/ipv4/devinet.c);
///   `addrconf_fixup_forwarding`, `addrconf_disable_ipv6` and their like (net/ipv6/addrconf.c).
/// * What is written to IPv4's `default` goes to every interface that has no address yet (`devinet_copy_dflt_conf`,
///   net/ipv4/devinet.c).
/// * An interface on which IPv6 is switched on again gets its own MTU for that of IPv6 (`addrconf_notify`,
///   net/ipv6/addrconf.c).
/// * A secret switches its interface to addresses made from it (`addrconf_sysctl_stable_secret`).
/// * Some settings have two files in two units.
pub fn followers(name: &Name) -> Result<Vec<Name>> {
    let mut names = beside(name);
    for spread in spreads(name) {
        names.extend(spread.names()?);
    }
    names.retain(|n| n != name);
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether `follower`, an interface's, is one of the [`followers`] that `name` has wherever there is such an interface.
pub fn reaches(name: &Name, follower: &Name) -> bool {
    let of_interface = |spread: &Spread<'_>| follower.interface().and_then(|interface| spread.name_in(interface));
    name != follower && spreads(name).iter().any(|spread| of_interface(spread).as_ref() == Some(follower))
}

/// A leaf that is written in every directory of a table.
struct Spread<'a> {
    table: &'static str,
    leaf: &'a str,
    /// Not in those of `all` and `default`.
    in_interfaces_only: bool,
}

impl Spread<'_> {
    fn name_in(&self, directory: &str) -> Option<Name> {
        Name::new(&format!("net/{}/{directory}/{}", self.table, self.leaf))
    }

    fn names(&self) -> Result<Vec<Name>> {
        let names =
            listed(&format!("net/{}", self.table))?.into_iter().filter_map(|directory| self.name_in(&directory));
        Ok(names.filter(|name| !self.in_interfaces_only || name.interface().is_some()).collect())
    }
}

/// What writing `name` writes in many directories.
fn spreads(name: &Name) -> Vec<Spread<'_>> {
    const V6: [&str; 5] =
        ["forwarding", "force_forwarding", "disable_policy", "addr_gen_mode", "ignore_routes_with_linkdown"];
    let parts: Vec<&str> = name.0.split('/').collect();
    let spread = |table, leaf, in_interfaces_only| Spread { table, leaf, in_interfaces_only };
    match parts.as_slice() {
        ["net", "ipv4", "ip_forward"] | ["net", "ipv4", "conf", "all", "forwarding"] => {
            vec![spread("ipv4/conf", "forwarding", false)]
        }
        ["net", "ipv6", "conf", "all", leaf @ "disable_ipv6"] => {
            vec![spread("ipv6/conf", leaf, false), spread("ipv6/conf", "mtu", true)]
        }
        ["net", "ipv6", "conf", "all", leaf] if V6.contains(leaf) => vec![spread("ipv6/conf", leaf, false)],
        ["net", "ipv4", "conf", "default", leaf] if *leaf != "forwarding" => vec![spread("ipv4/conf", leaf, true)],
        ["net", "ipv6", "conf", "default", "stable_secret"] => vec![spread("ipv6/conf", "addr_gen_mode", true)],
        _ => Vec::new(),
    }
}

/// What writing `name` writes besides, in no more than one place each.
fn beside(name: &Name) -> Vec<Name> {
    let parts: Vec<&str> = name.0.split('/').collect();
    match parts.as_slice() {
        ["net", "ipv4", "ip_forward"] | ["net", "ipv4", "conf", "all", "forwarding"] => {
            ["net/ipv4/ip_forward", "net/ipv4/conf/all/accept_redirects"].into_iter().filter_map(Name::new).collect()
        }
        ["net", "ipv6", "conf", "default", "stable_secret"]
        | ["net", "ipv6", "conf", "all" | "default", "disable_ipv6"] => Vec::new(),
        ["net", "ipv6", "conf", interface, "disable_ipv6"] => {
            Name::from_parts(&["net", "ipv6", "conf", interface, "mtu"]).into_iter().collect()
        }
        [directory @ .., leaf] => {
            let twin = twin(leaf).and_then(|twin| Name::new(&format!("{}/{twin}", directory.join("/"))));
            twin.into_iter().collect()
        }
        [] => Vec::new(),
    }
}

/// What is in a directory below `/proc/sys`; nothing where there is none, as for IPv6 on an interface that hasn't got it.
fn listed(directory: &str) -> Result<Vec<String>> {
    let failed = |error: std::io::Error| Error::io("list", format!("sysctls below {directory}"), &error);
    let entries = match std::fs::read_dir(format!("{ROOT}/{directory}")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        outcome => outcome.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

/// The other file of a setting that has two, or the one that is changed along with it.
fn twin(leaf: &str) -> Option<&'static str> {
    const TWINS: [(&str, &str); 5] = [
        ("base_reachable_time", "base_reachable_time_ms"),
        ("retrans_time", "retrans_time_ms"),
        ("unres_qlen", "unres_qlen_bytes"),
        ("gc_min_interval", "gc_min_interval_ms"),
        ("pm_type", "path_manager"),
    ];
    let other = |(a, b): (&'static str, &'static str)| match leaf {
        _ if leaf == a => Some(b),
        _ if leaf == b => Some(a),
        _ => None,
    };
    TWINS.into_iter().find_map(other).or((leaf == "stable_secret").then_some("addr_gen_mode"))
}

/// Every sysctl of an interface's own for IPv6, which the kernel forgets when IPv6 is taken from the interface
/// (`addrconf_ifdown`, net/ipv6/addrconf.c).
pub fn of_ipv6(interface: &str) -> Result<Vec<Name>> {
    let mut names = Vec::new();
    for table in ["conf", "neigh"] {
        let leaves = listed(&format!("net/ipv6/{table}/{interface}"))?;
        names.extend(leaves.iter().filter_map(|leaf| Name::from_parts(&["net", "ipv6", table, interface, leaf])));
    }
    names.sort();
    Ok(names)
}

/// Whether `/proc/sys` is mounted read-only, as it is inside most containers: then no sysctl can be written.
pub fn all_read_only() -> bool {
    statvfs(ROOT).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
}

/// Whether the kernel would let the caller write this sysctl; nothing is written.
pub fn writable(name: &Name) -> Result<()> {
    open_file(name, OFlag::O_WRONLY).map(drop).map_err(|errno| refused("write", name, errno))
}

/// Whether this sysctl, as the calling thread's namespace has it, is one that nobody can write.
pub fn is_read_only(name: &Name) -> bool {
    let file = open_file(name, OFlag::O_RDONLY);
    file.and_then(|file| fstat(&file)).is_ok_and(|stat| stat.st_mode & 0o222 == 0)
}

/// Writes a sysctl in the calling thread's namespace. Only long lists take more than one write(2): the kernel says how much
/// of them it took.
///
/// An empty value is written as a newline: a write of no bytes never reaches the kernel's handler.
pub fn write(name: &Name, value: &str) -> Result<()> {
    let file = open_file(name, OFlag::O_WRONLY).map_err(|errno| refused("write", name, errno))?;
    put(&file.into(), name, value)
}

fn put(mut file: &File, name: &Name, value: &str) -> Result<()> {
    let bytes = if value.is_empty() { b"\n" } else { value.as_bytes() };
    file.write_all(bytes).map_err(|error| Error::io("write", object(name), &error))
}

/// Whether two values are one to the kernel: number by number, whatever the white space and the base.
pub fn same_value(ours: &str, kernels: &str) -> bool {
    let (mut a, mut b) = (ours.split_whitespace(), kernels.split_whitespace());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(x), Some(y)) if x == y || (number(x).is_some() && number(x) == y.parse().ok()) => {}
            _ => return false,
        }
    }
}

/// A number as the kernel reads it: `simple_strtoul` with base 0, so hexadecimal after 0x and octal after 0.
fn number(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (base, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (16, hex),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    let plain = digits.bytes().all(|b| b.is_ascii_alphanumeric());
    i128::from_str_radix(digits, base).ok().filter(|_| plain).map(|n| sign * n)
}

/// Opens the file and refuses a symlink anywhere on the way (ELOOP or ENOTDIR).
fn open_file(name: &Name, access: OFlag) -> nix::Result<OwnedFd> {
    let flags = access | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = match openat2(AT_FDCWD, format!("{ROOT}/{name}").as_str(), how) {
        // Linux before 5.6.
        Err(Errno::ENOSYS) => open_stepwise(name, flags),
        outcome => outcome,
    }?;
    // Something mounted over the file would be anything but a sysctl.
    if fstatfs(&file)?.filesystem_type() == PROC_SUPER_MAGIC { Ok(file) } else { Err(Errno::EXDEV) }
}

/// The same without openat2(2).
fn open_stepwise(name: &Name, flags: OFlag) -> nix::Result<OwnedFd> {
    let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut directory = open(ROOT, step, Mode::empty())?;
    let mut parts = name.0.split('/').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_some() {
            directory = openat(&directory, part, step, Mode::empty())?;
            continue;
        }
        return openat(&directory, part, flags, Mode::empty());
    }
    Err(Errno::ENOENT)
}

fn object(name: &Name) -> String {
    format!("sysctl {name}")
}

fn refused(action: &'static str, name: &Name, errno: Errno) -> Error {
    Error::kernel(action, object(name), errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(written: &str, ifname: &str) -> Vec<String> {
        Key::parse(written, ifname).unwrap().names().iter().map(|n| n.as_str().to_owned()).collect()
    }

    #[test]
    fn dots_and_slashes_separate_as_in_sysctl8() {
        assert_eq!(names("net.core.somaxconn", "eth0"), ["net/core/somaxconn"]);
        assert_eq!(names("net/core/somaxconn", "eth0"), ["net/core/somaxconn"]);
        assert_eq!(names("net/ipv4/conf/eth0.100/rp_filter", "eth0")[0], "net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(names("net.ipv4.conf.eth0/100.rp_filter", "eth0")[0], "net/ipv4/conf/eth0.100/rp_filter");
    }

    #[test]
    fn kernels_without_openat2_open_the_same() {
        let name = Name::new("net/ipv4/ip_forward").unwrap();
        assert!(open_file(&name, OFlag::O_RDONLY).is_ok());
        assert!(open_stepwise(&name, OFlag::O_RDONLY).is_ok());
        let missing = Name::new("net/ipv4/no_such").unwrap();
        assert_eq!(open_file(&missing, OFlag::O_RDONLY).unwrap_err(), Errno::ENOENT);
        assert_eq!(open_stepwise(&missing, OFlag::O_RDONLY).unwrap_err(), Errno::ENOENT);
    }

    #[test]
    fn a_key_that_the_reference_understands_keeps_its_meaning() {
        for written in ["net.ipv4/conf.all/rp_filter", "/net/ipv4/conf/all/rp_filter", "net..ipv4.conf.all.rp_filter"] {
            assert!(names(written, "eth0").contains(&"net/ipv4/conf/all/rp_filter".to_owned()), "{written}");
        }
    }

    #[test]
    fn the_placeholder_stands_anywhere_and_takes_names_with_dots() {
        for written in ["net.ipv4.conf.IFNAME.rp_filter", "net/ipv4/conf/IFNAME/rp_filter"] {
            assert_eq!(names(written, "eth0.100"), ["net/ipv4/conf/eth0.100/rp_filter"], "{written}");
        }
        assert_eq!(names("net.x.IFNAME.IFNAME", "e"), ["net/x/e/e"]);
    }

    #[test]
    fn the_own_interface_may_be_spelled_out_with_its_dots() {
        let found = names("net.ipv4.conf.eth0.100.rp_filter", "eth0.100");
        assert!(found.contains(&"net/ipv4/conf/eth0.100/rp_filter".to_owned()), "{found:?}");
    }

    #[test]
    fn no_key_leads_out_of_net() {
        for written in [
            "",
            "net",
            "net.",
            "net/",
            "net/...",
            "kernel.hostname",
            "kernel/net/x",
            "vm.net",
            "/",
            ".",
            "net/../kernel/hostname",
            "net/ipv4/../../kernel/hostname",
            "net.//.kernel.hostname",
            "net/./core/somaxconn",
            "../net/core/somaxconn",
            "./net/core/somaxconn",
            "net.core/../somaxconn",
            "../../etc/passwd",
            "net/core/x\0y",
            "Net.core.somaxconn",
        ] {
            assert!(Key::parse(written, "eth0").is_err(), "{written:?}: {:?}", Key::parse(written, "eth0"));
        }
    }

    #[test]
    fn keys_written_differently_mean_the_same() {
        let key = |text| Key::parse(text, "eth0.1").unwrap();
        assert!(key("net.core.somaxconn").means_the_same(&key("net/core/somaxconn")));
        assert!(key("net.ipv4.conf.IFNAME.rp_filter").means_the_same(&key("net/ipv4/conf/eth0.1/rp_filter")));
        assert!(key("net.ipv4.conf.IFNAME.rp_filter").means_the_same(&key("net.ipv4.conf.eth0.1.rp_filter")));
        assert!(!key("net.core.somaxconn").means_the_same(&key("net.core.txrehash")));
    }

    #[test]
    fn a_name_says_whose_it_is() {
        let name = |text| Name::new(text).unwrap();
        for (text, interface, rank) in [
            ("net/ipv4/conf/eth0.1/rp_filter", Some("eth0.1"), 2),
            ("net/ipv6/neigh/eth0/retrans_time_ms", Some("eth0"), 2),
            ("net/mpls/conf/eth0/input", Some("eth0"), 2),
            ("net/ipv6/conf/all/forwarding", None, 0),
            ("net/ipv4/ip_forward", None, 0),
            ("net/ipv4/neigh/default/unres_qlen", None, 1),
            ("net/core/somaxconn", None, 2),
            ("net/ipv4/conf/eth0", None, 2),
        ] {
            assert_eq!((name(text).interface(), name(text).rank()), (interface, rank), "{text}");
        }
        let of_eth0 = name("net/ipv6/conf/eth0/accept_ra");
        assert_eq!(of_eth0.of("default"), Some(name("net/ipv6/conf/default/accept_ra")));
        assert_eq!(name("net/core/somaxconn").of("default"), None);
    }

    #[test]
    fn what_the_kernel_changes_along_is_known() {
        let follows = |leader: &str, follower: &str| {
            followers(&Name::new(leader).unwrap()).unwrap().contains(&Name::new(follower).unwrap())
        };
        for (leader, follower) in [
            ("net/ipv4/ip_forward", "net/ipv4/conf/lo/forwarding"),
            ("net/ipv4/ip_forward", "net/ipv4/conf/all/accept_redirects"),
            ("net/ipv4/conf/all/forwarding", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/default/rp_filter", "net/ipv4/conf/lo/rp_filter"),
            ("net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/lo/disable_ipv6"),
            ("net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/lo/mtu"),
            ("net/ipv6/conf/lo/disable_ipv6", "net/ipv6/conf/lo/mtu"),
            ("net/ipv6/conf/lo/stable_secret", "net/ipv6/conf/lo/addr_gen_mode"),
            ("net/ipv4/neigh/lo/unres_qlen", "net/ipv4/neigh/lo/unres_qlen_bytes"),
            ("net/ipv4/neigh/lo/unres_qlen_bytes", "net/ipv4/neigh/lo/unres_qlen"),
            ("net/ipv6/neigh/lo/retrans_time_ms", "net/ipv6/neigh/lo/retrans_time"),
            ("net/mptcp/pm_type", "net/mptcp/path_manager"),
        ] {
            assert!(follows(leader, follower), "{leader} {follower}");
        }
        for (leader, other) in [
            ("net/core/somaxconn", "net/core/somaxconn"),
            ("net/ipv4/conf/default/rp_filter", "net/ipv4/conf/all/rp_filter"),
            ("net/ipv4/conf/all/rp_filter", "net/ipv4/conf/lo/rp_filter"),
            ("net/ipv4/conf/lo/forwarding", "net/ipv4/ip_forward"),
            ("net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/all/mtu"),
            ("net/ipv6/conf/default/disable_ipv6", "net/ipv6/conf/default/mtu"),
        ] {
            assert!(!follows(leader, other), "{leader} {other}");
        }
    }

    #[test]
    fn what_is_written_everywhere_reaches_interfaces_that_are_not_there_yet() {
        let reaches = |leader: &str, other: &str| reaches(&Name::new(leader).unwrap(), &Name::new(other).unwrap());
        assert!(reaches("net/ipv6/conf/all/forwarding", "net/ipv6/conf/nosuch0/forwarding"));
        assert!(reaches("net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/nosuch0/mtu"));
        assert!(reaches("net/ipv4/conf/default/rp_filter", "net/ipv4/conf/nosuch0/rp_filter"));
        for (leader, other) in [
            ("net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/forwarding"),
            ("net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"),
            ("net/ipv6/conf/all/forwarding", "net/ipv4/conf/nosuch0/forwarding"),
            ("net/ipv6/conf/all/hop_limit", "net/ipv6/conf/nosuch0/hop_limit"),
            ("net/ipv6/conf/nosuch0/disable_ipv6", "net/ipv6/conf/nosuch0/mtu"),
        ] {
            assert!(!reaches(leader, other), "{leader} {other}");
        }
    }

    #[test]
    fn values_compare_by_value() {
        for (ours, kernels) in [
            ("4096 131072 6291456", "4096\t131072\t6291456"),
            (" 1 ", "1"),
            ("0x10", "16"),
            ("010", "8"),
            ("-1", "-1"),
            ("cubic", "cubic"),
            ("", ""),
            ("0", "0"),
        ] {
            assert!(same_value(ours, kernels), "{ours:?} {kernels:?}");
        }
        for (ours, kernels) in
            [("1", "2"), ("1 2", "1"), ("1", "1 2"), ("12", "1 2"), ("cubic", "reno"), ("", "0"), ("0x", "0")]
        {
            assert!(!same_value(ours, kernels), "{ours:?} {kernels:?}");
        }
    }

    #[test]
    fn a_sysctl_of_the_calling_thread_is_read() {
        let name = Name::new("net/core/somaxconn").unwrap();
        let content = read(&name).unwrap().unwrap();
        assert!(content.value().unwrap().parse::<u32>().is_ok(), "{content:?}");
        assert_eq!(read(&Name::new("net/core").unwrap()).unwrap(), Some(Content::Directory));
        assert_eq!(read(&Name::new("net/core/no_such_thing").unwrap()).unwrap(), None);
        assert_eq!(read(&Name::new("net/core/somaxconn/deeper").unwrap()).unwrap(), None);
    }

    #[test]
    fn the_longest_value_arrives_whole() {
        let range = read(&Name::new("net/ipv4/tcp_mem").unwrap()).unwrap().unwrap();
        assert_eq!(range.value().unwrap().split_whitespace().count(), 3);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_stays_below_net(written in "(net)?[./]?[a-zIFNAME./\\x00 ]{0,30}", ifname in "[a-z.]{1,15}") {
            let Ok(key) = Key::parse(&written, &ifname) else { return Ok(()) };
            for name in key.names() {
                let parts: Vec<&str> = name.as_str().split('/').collect();
                proptest::prop_assert!(parts.len() >= 2 && parts[0] == "net", "{name}");
                proptest::prop_assert!(parts.iter().all(|p| !matches!(*p, "" | "." | "..") && !p.contains('\0')), "{name}");
            }
        }

        #[test]
        fn a_value_is_the_same_as_itself_in_any_white_space(words in proptest::collection::vec("[0-9a-fx-]{1,12}", 0..5)) {
            proptest::prop_assert!(same_value(&words.join(" "), &words.join("\t")));
        }
    }
}
