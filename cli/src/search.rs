//! Where plugins are looked for.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Where distributions put plugins: the CNI convention, Debian, Fedora.
pub const USUAL: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// The plugins that belong to this tool.
pub const OURS: [&str; 4] = ["bandwidth", "firewall", "portmap", "tuning"];

/// The directories of plugins, in the order they are searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPath {
    /// Searched for every plugin, and given to the plugins as CNI_PATH.
    dirs: Vec<PathBuf>,
    /// Searched before the others, but only for our own plugins: a directory like /usr/sbin holds programs (`bridge`)
    /// that only share their name with a plugin.
    beside: Option<PathBuf>,
}

impl SearchPath {
    /// Exactly these directories, colon-separated.
    pub fn exactly(path: &OsStr) -> SearchPath {
        let dirs = std::env::split_paths(path).filter(|d| !d.as_os_str().is_empty()).collect();
        SearchPath { dirs, beside: None }
    }

    /// The usual directories; our own plugins first from the directory of this program, if all four are there.
    pub fn usual(program: Option<&Path>) -> SearchPath {
        let beside =
            program.and_then(Path::parent).filter(|dir| OURS.iter().all(|name| is_executable(&dir.join(name))));
        SearchPath { dirs: USUAL.map(PathBuf::from).into(), beside: beside.map(Path::to_owned) }
    }

    /// What is asked for by `--path`, else by `$CNI_PATH`, else the usual.
    pub fn chosen(given: Option<&OsStr>, environment: Option<&OsStr>, program: Option<&Path>) -> SearchPath {
        match given.or(environment.filter(|e| !e.is_empty())) {
            Some(path) => SearchPath::exactly(path),
            None => SearchPath::usual(program),
        }
    }

    /// The executable of a plugin `type`, as libcni's `FindInPath` looks for it.
    pub fn find(&self, plugin: &str) -> Result<PathBuf, Failure> {
        let refuse = |reason: String| Failure::NoPlugin { plugin: plugin.to_owned(), reason };
        if plugin.is_empty() || plugin.contains('/') || plugin == "." || plugin == ".." {
            return Err(refuse("has a type that is no file name: a type names an executable, without a path".into()));
        }
        let mut unusable = None;
        for dir in self.for_plugin(plugin) {
            let path = dir.join(plugin);
            if is_executable(&path) {
                return Ok(path);
            }
            if unusable.is_none() && path.is_file() {
                unusable = Some(path);
            }
        }
        match unusable {
            Some(path) => Err(refuse(format!("can't be run: {} is not executable", path.display()))),
            None => Err(refuse(format!("is not in {}", self.shown(plugin)))),
        }
    }

    /// Every executable there is, by name; of several with one name the one that would be run.
    pub fn every(&self) -> Vec<(String, PathBuf)> {
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        let ours = self.beside.iter().flat_map(|dir| OURS.map(|name| (name.to_owned(), dir.join(name))));
        let others = self.dirs.iter().flat_map(|dir| executables(dir));
        for (name, path) in ours.chain(others) {
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, path));
            }
        }
        found.sort();
        found
    }

    /// The value of CNI_PATH.
    pub fn as_cni_path(&self) -> OsString {
        std::env::join_paths(&self.dirs).unwrap_or_default()
    }

    fn for_plugin(&self, plugin: &str) -> impl Iterator<Item = &PathBuf> {
        self.beside.iter().filter(move |_| OURS.contains(&plugin)).chain(&self.dirs)
    }

    fn shown(&self, plugin: &str) -> String {
        let dirs: Vec<String> = self.for_plugin(plugin).map(|d| d.display().to_string()).collect();
        if dirs.is_empty() { "an empty search path".into() } else { dirs.join(", ") }
    }
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The executables of one directory; this tool itself is no plugin.
fn executables(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, path)| name != "cni-chain" && !name.starts_with('.') && is_executable(path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, mode: u32) {
        let path = dir.join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_path_that_is_given_is_the_only_one() {
        let chosen = SearchPath::chosen(Some(OsStr::new("/a:/b")), Some(OsStr::new("/c")), None);
        assert_eq!(chosen.dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        let chosen = SearchPath::chosen(None, Some(OsStr::new("/c")), None);
        assert_eq!(chosen.as_cni_path(), "/c");
        let usual = SearchPath::chosen(None, Some(OsStr::new("")), None);
        assert_eq!(usual.as_cni_path(), "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni");
    }

    #[test]
    fn a_program_that_only_shares_a_plugins_name_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        for name in OURS.into_iter().chain(["bridge-like"]) {
            put(dir.path(), name, 0o755);
        }
        let path = SearchPath::usual(Some(&dir.path().join("cni-chain")));
        assert_eq!(path.find("portmap").unwrap(), dir.path().join("portmap"));
        assert!(path.find("bridge-like").is_err());

        std::fs::remove_file(dir.path().join("tuning")).unwrap();
        let path = SearchPath::usual(Some(&dir.path().join("cni-chain")));
        assert_eq!(path.beside, None, "a lone `firewall` beside the tool need not be the plugin");
    }

    #[test]
    fn a_type_never_leaves_the_search_path() {
        let path = SearchPath::exactly(OsStr::new("/bin"));
        for hostile in ["", "..", ".", "../bin/sh", "/bin/sh", "sub/sh"] {
            assert!(path.find(hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn the_first_executable_wins_and_an_unusable_one_is_named() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(a.path(), "x", 0o644);
        put(b.path(), "x", 0o755);
        put(a.path(), "y", 0o644);
        let joined = std::env::join_paths([a.path(), b.path()]).unwrap();
        let path = SearchPath::exactly(&joined);
        assert_eq!(path.find("x").unwrap(), b.path().join("x"));
        assert!(path.find("y").unwrap_err().to_string().ends_with("y is not executable"));
        assert_eq!(path.every(), [("x".to_owned(), b.path().join("x"))]);
    }
}
