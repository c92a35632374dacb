//! Configurations as they stand on disk, read as libcni reads them, and as a plugin gets them.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use common::cni::env::is_identifier;
use common::cni::network::STDIN_MAX;
use common::cni::{Json, Version};

use crate::failure::Failure;

/// The keys of a conflist (SPEC.md, "Configuration format"); libcni takes them in exactly this case.
const KEYS: [&str; 7] =
    ["cniVersion", "cniVersions", "name", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins"];

/// One plugin of a conflist.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConf {
    /// Its `type`: the name of its executable.
    pub plugin: String,
    /// The capabilities it declares as true.
    pub capabilities: Vec<String>,
    /// Its configuration as written.
    pub json: Json,
}

/// A network: the plugins that make one attachment, in the order of ADD.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflist {
    /// The network's name.
    pub name: String,
    /// The versions it may be run with, oldest first; never empty.
    pub versions: Vec<Version>,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// Never empty.
    pub plugins: Vec<PluginConf>,
    /// The document, as it goes into the result cache.
    pub bytes: Vec<u8>,
    /// Where it was read.
    pub origin: PathBuf,
    /// What is suspicious about it, but no error.
    pub remarks: Vec<String>,
}

impl Conflist {
    /// The conflist that `reference` means: a file if it looks like a path, else a network of `dir`.
    pub fn find(reference: &str, dir: &Path) -> Result<Conflist, Failure> {
        let is_file =
            reference.contains('/') || ["conflist", "conf", "json"].iter().any(|e| has_extension(reference, e));
        if is_file { Conflist::open(Path::new(reference)) } else { Conflist::named(reference, dir) }
    }

    /// Reads one file: a conflist, or a single configuration, which becomes a list of one.
    pub fn open(path: &Path) -> Result<Conflist, Failure> {
        Conflist::parse(read_bounded(path)?, path)
    }

    /// The first configuration in `dir` with this name, conflists before single ones, by file name. A file that can't be
    /// read is passed over with a remark, where libcni gives up.
    pub fn named(name: &str, dir: &Path) -> Result<Conflist, Failure> {
        let files =
            configuration_files(dir, &["conflist"])?.into_iter().chain(configuration_files(dir, &["conf", "json"])?);
        let mut present = Vec::new();
        let mut remarks = Vec::new();
        for file in files {
            match Conflist::open(&file) {
                Ok(mut list) if list.name == name => {
                    list.remarks.splice(0..0, remarks);
                    return Ok(list);
                }
                Ok(list) => present.push(list.name),
                Err(failure) => remarks.push(format!("passed over: {failure}")),
            }
        }
        present.sort();
        present.dedup();
        Err(Failure::NoSuchNetwork { name: name.to_owned(), dir: dir.to_owned(), present })
    }

    /// Reads a document that is or was in the file `origin`.
    pub fn parse(bytes: Vec<u8>, origin: &Path) -> Result<Conflist, Failure> {
        let refuse = |reason: String| Failure::BadConflist { path: origin.to_owned(), reason };
        let json: Json = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("not JSON: {e}")))?;
        let Json::Object(pairs) = &json else {
            return Err(refuse(format!("a configuration must be an object, not {}", json.kind())));
        };
        let single = exact(pairs, "plugins").is_none() && json.get("type").is_some();
        let (pairs, bytes) = if single {
            let list = upconvert(&json);
            let bytes = serde_json::to_vec(&Json::Object(list.clone())).map_err(|e| refuse(e.to_string()))?;
            (list, bytes)
        } else {
            (pairs.clone(), bytes)
        };
        let mut list = read_list(&pairs, bytes, origin).map_err(refuse)?;
        let inlined_only = switch(&pairs, "loadOnlyInlinedPlugins").map_err(refuse)?;
        if !single && !inlined_only {
            list.plugins.append(&mut beside(origin, &list.name)?);
        }
        if list.plugins.is_empty() {
            return Err(refuse(no_plugins(origin, &list.name)));
        }
        Ok(list)
    }

    /// The capabilities that any plugin declares.
    pub fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|p| p.capabilities.iter().any(|c| c == capability))
    }
}

impl PluginConf {
    fn read(json: Json) -> Result<PluginConf, String> {
        if !matches!(json, Json::Object(_)) {
            return Err(format!("must be an object, not {}", json.kind()));
        }
        let plugin = match json.get("type") {
            Some(Json::String(plugin)) if !plugin.is_empty() => plugin.clone(),
            Some(Json::String(_)) | None => return Err("has no type".into()),
            Some(other) => return Err(format!("type must be a string, not {}", other.kind())),
        };
        let capabilities = match json.get("capabilities") {
            None | Some(Json::Null) => Vec::new(),
            Some(Json::Object(pairs)) => declared(pairs)?,
            Some(other) => return Err(format!("capabilities must be an object, not {}", other.kind())),
        };
        Ok(PluginConf { plugin, capabilities, json })
    }

    /// The configuration with these members set, in the place of any that were written, as libcni's `InjectConf` does it.
    pub fn with(&self, members: Vec<(String, Json)>) -> Json {
        let Json::Object(pairs) = &self.json else { return self.json.clone() };
        let replaced = |key: &str| members.iter().any(|(name, _)| name.eq_ignore_ascii_case(key));
        let kept = pairs.iter().filter(|(key, _)| !replaced(key)).cloned();
        Json::Object(kept.chain(members.iter().cloned()).collect())
    }
}

fn declared(pairs: &[(String, Json)]) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for (name, value) in pairs {
        names.retain(|known| known != name);
        match value {
            Json::Bool(true) => names.push(name.clone()),
            Json::Bool(false) | Json::Null => {}
            other => return Err(format!("capabilities.{name} must be a boolean, not {}", other.kind())),
        }
    }
    Ok(names)
}

fn read_list(pairs: &[(String, Json)], bytes: Vec<u8>, origin: &Path) -> Result<Conflist, String> {
    let name = match exact(pairs, "name") {
        Some(Json::String(name)) if is_identifier(name) => name.clone(),
        Some(Json::String(name)) => return Err(format!("name \"{name}\" has characters that no network name has")),
        Some(other) => return Err(format!("name must be a string, not {}", other.kind())),
        None => return Err("it has no name".into()),
    };
    let mut remarks = misread(pairs);
    let versions = versions(pairs, &mut remarks)?;
    let inlined = match exact(pairs, "plugins") {
        None => &[][..],
        Some(Json::Array(plugins)) if !plugins.is_empty() => plugins,
        Some(Json::Array(_)) => return Err("plugins is empty".into()),
        Some(other) => return Err(format!("plugins must be an array, not {}", other.kind())),
    };
    let numbered = inlined.iter().enumerate();
    let plugins: Result<_, String> =
        numbered.map(|(i, p)| PluginConf::read(p.clone()).map_err(|e| format!("plugins[{i}] {e}"))).collect();
    Ok(Conflist {
        name,
        versions,
        disable_check: switch(pairs, "disableCheck")?,
        disable_gc: switch(pairs, "disableGC")?,
        plugins: plugins?,
        bytes,
        origin: origin.to_owned(),
        remarks,
    })
}

/// The member with exactly this key, the last of several: conflists are read through a Go map, which minds the case.
fn exact<'a>(pairs: &'a [(String, Json)], key: &str) -> Option<&'a Json> {
    pairs.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v)
}

/// Keys that a person would read as one of the conflist's, and no runtime does.
fn misread(pairs: &[(String, Json)]) -> Vec<String> {
    let other_case = |key: &str| KEYS.iter().find(|known| known.eq_ignore_ascii_case(key) && **known != key);
    let remark = |(key, _): &(String, Json)| {
        other_case(key).map(|known| format!("key \"{key}\" is ignored by runtimes: it is written \"{known}\""))
    };
    pairs.iter().filter_map(remark).collect()
}

/// A boolean, or one as a string, as libcni takes it.
fn switch(pairs: &[(String, Json)], key: &str) -> Result<bool, String> {
    match exact(pairs, key) {
        None => Ok(false),
        Some(Json::Bool(value)) => Ok(*value),
        Some(Json::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Json::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(Json::String(text)) => Err(format!("{key} must be true or false, not \"{text}\"")),
        Some(other) => Err(format!("{key} must be true or false, not {}", other.kind())),
    }
}

/// The versions of `cniVersion` and `cniVersions` together; from the latter those newer than the tool are passed over, as a
/// configuration may be written for newer runtimes as well (SPEC.md, "Version considerations").
fn versions(pairs: &[(String, Json)], remarks: &mut Vec<String>) -> Result<Vec<Version>, String> {
    let mut versions = Vec::new();
    match exact(pairs, "cniVersion") {
        None => {}
        Some(Json::String(text)) if text.is_empty() => {}
        Some(Json::String(text)) => match Version::from_exact(text) {
            Some(version) => versions.push(version),
            None if exact(pairs, "cniVersions").is_some() && Version::is_well_formed(text) => {}
            None => return Err(format!("cniVersion \"{text}\" is none of {}", all_versions())),
        },
        Some(other) => return Err(format!("cniVersion must be a string, not {}", other.kind())),
    }
    match exact(pairs, "cniVersions") {
        None => {}
        Some(Json::Array(items)) => versions.extend(listed_versions(items)?),
        Some(other) => return Err(format!("cniVersions must be an array, not {}", other.kind())),
    }
    versions.sort();
    versions.dedup();
    if versions.is_empty() {
        remarks.push("it has no cniVersion this tool speaks: 0.1.0 is what that means".into());
        versions.push(Version::V0_1_0);
    }
    Ok(versions)
}

fn listed_versions(items: &[Json]) -> Result<Vec<Version>, String> {
    let mut versions = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let text = item.as_str().ok_or_else(|| format!("cniVersions[{i}] must be a string, not {}", item.kind()))?;
        match Version::from_exact(text) {
            Some(version) => versions.push(version),
            None if Version::is_well_formed(text) => {}
            None => return Err(format!("cniVersions[{i}] \"{text}\" is not a version")),
        }
    }
    Ok(versions)
}

fn all_versions() -> String {
    Version::ALL.map(Version::as_str).join(", ")
}

/// A single configuration as a list of one (libcni's `ConfListFromConf`).
fn upconvert(json: &Json) -> Vec<(String, Json)> {
    let mut list = Vec::new();
    for key in ["name", "cniVersion"] {
        list.extend(json.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    // Read again from the cache it must stay a list of one, whatever stands in the directory of the network's name.
    list.push(("loadOnlyInlinedPlugins".to_owned(), Json::Bool(true)));
    list.push(("plugins".to_owned(), Json::Array(vec![json.clone()])));
    list
}

/// The plugins in the directory beside the file that is named after the network (`loadOnlyInlinedPlugins`).
fn beside(origin: &Path, name: &str) -> Result<Vec<PluginConf>, Failure> {
    let read = |file: PathBuf| {
        let refuse = |reason: String| Failure::BadConflist { path: file.clone(), reason };
        let json: Json = serde_json::from_slice(&read_bounded(&file)?).map_err(|e| refuse(format!("not JSON: {e}")))?;
        PluginConf::read(json).map_err(refuse)
    };
    configuration_files(&plugin_dir(origin, name), &["conf"])?.into_iter().map(read).collect()
}

fn plugin_dir(origin: &Path, name: &str) -> PathBuf {
    origin.parent().unwrap_or(Path::new("")).join(name)
}

fn no_plugins(origin: &Path, name: &str) -> String {
    let dir = plugin_dir(origin, name);
    format!("it has neither \"plugins\" nor \"type\", and there is no {}/*.conf", dir.display())
}

/// The files with one of the extensions, by name; none if there is no such directory.
fn configuration_files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Failure> {
    // The current directory's listing of a file without a directory part.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Failure::Unreadable { path: dir.to_owned(), reason: e.to_string() }),
    };
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_file() && extensions.iter().any(|e| has_extension(&name, e))
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(wanted).collect();
    files.sort();
    Ok(files)
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == extension)
}

/// Reads a regular file of at most [`STDIN_MAX`] bytes; a FIFO or a device must not hang the tool.
fn read_bounded(path: &Path) -> Result<Vec<u8>, Failure> {
    let refuse = |reason: String| Failure::Unreadable { path: path.to_owned(), reason };
    let open = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = open.map_err(|e| refuse(e.to_string()))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(refuse("it is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(STDIN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| refuse(e.to_string()))?;
    if bytes.len() > STDIN_MAX {
        return Err(refuse(format!("it is larger than {STDIN_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Conflist, Failure> {
        Conflist::parse(text.as_bytes().to_vec(), Path::new("/nowhere/x.conflist"))
    }

    fn reason(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_conflist_is_read() {
        let list = parse(
            r#"{"cniVersion":"1.0.0","name":"net","disableCheck":"true","plugins":[
                {"type":"bridge","bridge":"b0"},{"type":"portmap","capabilities":{"portMappings":true,"x":false}}]}"#,
        )
        .unwrap();
        assert_eq!((list.name.as_str(), list.versions.as_slice()), ("net", &[Version::V1_0_0][..]));
        assert!(list.disable_check && !list.disable_gc);
        assert_eq!(list.plugins[1].capabilities, ["portMappings"]);
        assert!(list.declares("portMappings") && !list.declares("x"));
    }

    #[test]
    fn a_single_configuration_becomes_a_list_of_one() {
        let list = parse(r#"{"cniVersion":"0.4.0","name":"solo","type":"ptp"}"#).unwrap();
        assert_eq!((list.name.as_str(), list.plugins.len()), ("solo", 1));
        assert_eq!(
            String::from_utf8(list.bytes.clone()).unwrap(),
            r#"{"name":"solo","cniVersion":"0.4.0","loadOnlyInlinedPlugins":true,"#.to_owned()
                + r#""plugins":[{"cniVersion":"0.4.0","name":"solo","type":"ptp"}]}"#
        );
        assert_eq!(Conflist::parse(list.bytes.clone(), &list.origin).unwrap(), list);
    }

    #[test]
    fn versions_of_both_keys_count_and_unknown_newer_ones_are_passed_over() {
        let of = |keys: &str| parse(&format!(r#"{{"name":"n",{keys}"plugins":[{{"type":"t"}}]}}"#)).unwrap().versions;
        assert_eq!(of(r#""cniVersion":"0.4.0","#), [Version::V0_4_0]);
        assert_eq!(
            of(r#""cniVersion":"0.4.0","cniVersions":["9.0.0","1.1.0","1.0.0"],"#),
            [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0]
        );
        assert_eq!(of(""), [Version::V0_1_0]);
        assert!(reason(r#"{"cniVersion":"9.0.0","name":"n","plugins":[{"type":"t"}]}"#).contains("\"9.0.0\""));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        for (text, part) in [
            ("", "not JSON"),
            ("[]", "must be an object"),
            (r#"{"plugins":[{"type":"t"}]}"#, "no name"),
            (r#"{"name":"../etc","plugins":[{"type":"t"}]}"#, "\"../etc\""),
            (r#"{"name":"n","plugins":[]}"#, "plugins is empty"),
            (r#"{"name":"n","plugins":[{"type":"t"},{}]}"#, "plugins[1] has no type"),
            (r#"{"name":"n","plugins":[{"type":"t","capabilities":{"x":"y"}}]}"#, "capabilities.x"),
            (r#"{"name":"n","disableGC":3,"plugins":[{"type":"t"}]}"#, "disableGC"),
            (r#"{"name":"n"}"#, "/nowhere/n/*.conf"),
        ] {
            assert!(reason(text).contains(part), "{text}: {}", reason(text));
        }
    }

    #[test]
    fn a_key_in_another_case_is_remarked_upon() {
        let list = parse(r#"{"cniVersion":"1.0.0","name":"n","disablecheck":true,"plugins":[{"type":"t"}]}"#).unwrap();
        assert!(!list.disable_check);
        assert_eq!(list.remarks, [r#"key "disablecheck" is ignored by runtimes: it is written "disableCheck""#]);
    }

    #[test]
    fn injected_members_replace_what_was_written() {
        let conf =
            PluginConf::read(serde_json::from_str(r#"{"Name":"x","type":"t","prevResult":1}"#).unwrap()).unwrap();
        let with = conf.with(vec![("name".into(), Json::String("n".into())), ("prevResult".into(), Json::Null)]);
        assert_eq!(serde_json::to_string(&with).unwrap(), r#"{"type":"t","name":"n","prevResult":null}"#);
    }

    #[test]
    fn plugins_beside_the_conflist_are_appended_unless_only_inlined_ones_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("n")).unwrap();
        std::fs::write(dir.path().join("n/20-b.conf"), r#"{"type":"b"}"#).unwrap();
        std::fs::write(dir.path().join("n/10-a.conf"), r#"{"type":"a"}"#).unwrap();
        let file = dir.path().join("x.conflist");
        let types = |text: &str| -> Vec<String> {
            std::fs::write(&file, text).unwrap();
            Conflist::open(&file).unwrap().plugins.into_iter().map(|p| p.plugin).collect()
        };
        assert_eq!(types(r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"t"}]}"#), ["t", "a", "b"]);
        assert_eq!(types(r#"{"cniVersion":"1.1.0","name":"n"}"#), ["a", "b"]);
        assert_eq!(
            types(r#"{"cniVersion":"1.1.0","name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"t"}]}"#),
            ["t"]
        );
    }

    #[test]
    fn a_network_is_found_by_name_past_a_broken_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("00-broken.conflist"), "{").unwrap();
        std::fs::write(dir.path().join("10-a.conf"), r#"{"cniVersion":"1.0.0","name":"a","type":"t"}"#).unwrap();
        std::fs::write(dir.path().join("ignored.txt"), r#"{"name":"b","type":"t"}"#).unwrap();
        let found = Conflist::find("a", dir.path()).unwrap();
        assert_eq!(found.remarks.len(), 1);
        let missing = Conflist::find("b", dir.path()).unwrap_err();
        assert_eq!(missing.next(), "there are: a");
        assert!(matches!(Conflist::find("./b", dir.path()), Err(Failure::Unreadable { .. })));
    }

    #[test]
    fn a_fifo_in_the_place_of_a_file_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("x.conflist");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(Conflist::open(&fifo), Err(Failure::Unreadable { .. })));
    }
}
