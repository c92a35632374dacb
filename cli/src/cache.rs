//! What CHECK and DEL need of ADD: the result cache, in libcni's format and place, so that either can use the other's.
//!
//! `DIR/results/NETWORK-CONTAINER-IFNAME` holds one JSON document (libcni's `cachedInfo`):
//! `{"kind":"cniCacheV1","containerId","config" (base64),"ifName","networkName","netns","cniArgs":[[k,v]],
//! "capabilityArgs":{…},"result":{…}}`. Before 2019 it was the result alone; that is read as well.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::Attachment;
use common::cni::env::{is_identifier, validate_ifname};
use common::cni::{CniResult, Json, Version};
use serde::{Deserialize, Serialize};

use crate::capabilities::Capabilities;
use crate::failure::Failure;

/// libcni's default.
pub const DEFAULT_DIR: &str = "/var/lib/cni";

/// The only kind there is (libcni's `CNICacheV1`).
const KIND: &str = "cniCacheV1";

/// Bytes of a cache file that are read at the most: result and configuration of 16 MiB each, the latter as base64.
const FILE_MAX: u64 = 40 << 20;

/// The directory of cached results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    dir: PathBuf,
}

/// What was remembered of one ADD.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Whose.
    pub attachment: Attachment,
    /// The conflist's bytes.
    pub config: Vec<u8>,
    /// CNI_NETNS; empty where an older libcni (before 1.2) wrote it.
    pub netns: String,
    /// CNI_ARGS, in their order.
    pub args: Vec<(String, String)>,
    /// What the runtime added.
    pub capabilities: Capabilities,
    /// The last plugin's result.
    pub result: Json,
}

/// The file's members, as libcni names and orders them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    kind: String,
    #[serde(rename = "containerId")]
    container: String,
    config: Option<String>,
    #[serde(rename = "ifName")]
    ifname: String,
    #[serde(rename = "networkName")]
    network: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(rename = "cniArgs", skip_serializing_if = "Vec::is_empty")]
    args: Vec<(String, String)>,
    #[serde(rename = "capabilityArgs", skip_serializing_if = "is_empty")]
    capabilities: Json,
    #[serde(skip_serializing_if = "is_empty")]
    result: Json,
}

fn is_empty(json: &Json) -> bool {
    match json {
        Json::Null => true,
        Json::Object(pairs) => pairs.is_empty(),
        _ => false,
    }
}

impl Entry {
    /// The container's namespace: as remembered, else the sandbox that the result's interface is in.
    pub fn namespace(&self) -> Option<PathBuf> {
        if !self.netns.is_empty() {
            return Some(PathBuf::from(&self.netns));
        }
        let Some(Json::Array(interfaces)) = self.result.get("interfaces") else { return None };
        let ours = |i: &&Json| i.get("name").and_then(Json::as_str) == Some(&self.attachment.ifname);
        let sandbox = interfaces.iter().filter(ours).find_map(|i| i.get("sandbox").and_then(Json::as_str));
        sandbox.filter(|sandbox| sandbox.starts_with('/')).map(PathBuf::from)
    }

    /// The result as a prevResult of `version`: the cached one may be of another, when the conflist was changed since.
    pub fn result_in(&self, version: Version) -> Result<(CniResult, Json), String> {
        let own = self.result.get("cniVersion").and_then(Json::as_str).and_then(Version::from_exact);
        let result = CniResult::read(&self.result, own.unwrap_or(version)).map_err(|e| e.to_string())?;
        let document = to_json(&result, version)?;
        Ok((result, document))
    }
}

/// A result's document in the shape of `version`.
pub fn to_json(result: &CniResult, version: Version) -> Result<Json, String> {
    let document = result.to_document(version).map_err(|e| e.to_string())?;
    let bytes = serde_json::to_vec(&document).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

impl Cache {
    /// The cache under `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Cache {
        Cache { dir: dir.into() }
    }

    fn results(&self) -> PathBuf {
        self.dir.join("results")
    }

    /// The file of an attachment. Its names are validated here, so that none leads out of the directory.
    pub fn path(&self, attachment: &Attachment) -> Result<PathBuf, Failure> {
        validate(attachment)?;
        let Attachment { network, container, ifname } = attachment;
        Ok(self.results().join(format!("{network}-{container}-{ifname}")))
    }

    /// Makes sure that results can be stored, before anything is done that would have to be remembered.
    pub fn prepare(&self) -> Result<(), Failure> {
        let results = self.results();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&results);
        made.map_err(|e| Failure::Cache { path: results, reason: e.to_string() })
    }

    /// Remembers an entry: whole or not at all, readable for the owner alone.
    pub fn store(&self, entry: &Entry) -> Result<PathBuf, Failure> {
        let path = self.path(&entry.attachment)?;
        let refuse = |e: std::io::Error| Failure::Cache { path: path.clone(), reason: e.to_string() };
        let bytes = serde_json::to_vec(&Written::from(entry)).map_err(|e| refuse(e.into()))?;
        static STORED: AtomicU32 = AtomicU32::new(0);
        let turn = STORED.fetch_add(1, Ordering::Relaxed);
        let temporary = self.results().join(format!(".cni-chain.{}.{turn}", std::process::id()));
        let written = write_new(&temporary, &bytes).and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(e) = written {
            let _ = std::fs::remove_file(&temporary);
            return Err(refuse(e));
        }
        // The rename survives a crash once the directory is on disk; if that can't be had, the file is there all the same.
        let _ = File::open(self.results()).and_then(|dir| dir.sync_all());
        Ok(path)
    }

    /// What is remembered of an attachment.
    pub fn load(&self, attachment: &Attachment) -> Result<Option<Entry>, Failure> {
        let path = self.path(attachment)?;
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let refuse = |reason: String| Failure::Cache { path: path.clone(), reason };
        let json: Json = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("not JSON: {e}")))?;
        let entry = Entry::read(&json, Some(attachment)).map_err(refuse)?;
        // `a-b` + `c` and `a` + `b-c` share a file name.
        if entry.attachment != *attachment {
            return Err(refuse(format!("it belongs to {}, not to {attachment}", entry.attachment)));
        }
        Ok(Some(entry))
    }

    /// Forgets an attachment; nothing to forget is success.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), Failure> {
        let path = self.path(attachment)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Failure::Cache { path, reason: e.to_string() }),
            _ => Ok(()),
        }
    }

    /// Everything that is remembered of one network, by file name; files that can't be read, as those of other formats, are
    /// passed over.
    pub fn of_network(&self, network: &str) -> Result<Vec<Entry>, Failure> {
        let files = self.files(network)?;
        let read = files.iter().filter_map(|path| self.read(path, network).transpose()?.ok());
        Ok(read.collect())
    }

    /// The same where whoever is not in it counts as dead: fails if there is a file that may be of this network and can't be
    /// read.
    pub fn all_of_network(&self, network: &str) -> Result<Vec<Entry>, Failure> {
        let files = self.files(network)?;
        files.iter().filter_map(|path| self.read(path, network).transpose()).collect()
    }

    /// The files that may be of this network: names can have a hyphen in them.
    fn files(&self, network: &str) -> Result<Vec<PathBuf>, Failure> {
        let results = self.results();
        let refuse = |e: std::io::Error| Failure::Cache { path: results.clone(), reason: e.to_string() };
        let entries = match std::fs::read_dir(&results) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            outcome => outcome.map_err(refuse)?,
        };
        let prefix = format!("{network}-");
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(refuse)?;
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    /// What stands in this file; `None` if it is another network's, isn't where it belongs, or has gone meanwhile.
    fn read(&self, path: &Path, network: &str) -> Result<Option<Entry>, Failure> {
        let refuse = |reason: String| Failure::Cache { path: path.to_owned(), reason };
        let Some(bytes) = read(path)? else { return Ok(None) };
        let json = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("not JSON: {e}")))?;
        let entry = Entry::read(&json, None).map_err(refuse)?;
        let stands_right = self.path(&entry.attachment).is_ok_and(|p| p == path);
        Ok((entry.attachment.network == network && stands_right).then_some(entry))
    }
}

impl Entry {
    /// From a file's document; `of` is whose it must be, if that is known: the legacy format doesn't say.
    fn read(json: &Json, of: Option<&Attachment>) -> Result<Entry, String> {
        if !matches!(json, Json::Object(_)) {
            return Err(format!("it must be an object, not {}", json.kind()));
        }
        if let (None, Some(attachment)) = (json.get("kind"), of) {
            return Ok(Entry::legacy(attachment, json));
        }
        let mut ignored = Vec::new();
        let written: Written = json.read(&mut ignored).map_err(|e| e.to_string())?;
        if written.kind != KIND {
            return Err(format!("its kind is \"{}\", not \"{KIND}\"", written.kind));
        }
        let config = STANDARD.decode(written.config.unwrap_or_default()).map_err(|e| format!("config: {e}"))?;
        Ok(Entry {
            attachment: Attachment::new(written.network, written.container, written.ifname),
            config,
            netns: written.netns,
            args: written.args,
            capabilities: Capabilities::from_json(written.capabilities)?,
            result: written.result,
        })
    }

    fn legacy(attachment: &Attachment, result: &Json) -> Entry {
        Entry {
            attachment: attachment.clone(),
            config: Vec::new(),
            netns: String::new(),
            args: Vec::new(),
            capabilities: Capabilities::default(),
            result: result.clone(),
        }
    }
}

impl From<&Entry> for Written {
    fn from(entry: &Entry) -> Written {
        Written {
            kind: KIND.into(),
            container: entry.attachment.container.clone(),
            config: Some(STANDARD.encode(&entry.config)),
            ifname: entry.attachment.ifname.clone(),
            network: entry.attachment.network.clone(),
            netns: entry.netns.clone(),
            args: entry.args.clone(),
            capabilities: entry.capabilities.to_json(),
            result: entry.result.clone(),
        }
    }
}

/// Refuses names that the protocol doesn't allow.
pub fn validate(attachment: &Attachment) -> Result<(), Failure> {
    let identifier = |what, name: &str| {
        let reason = "it begins with a letter or digit, then letters, digits, '_', '.' and '-' follow".into();
        if is_identifier(name) { Ok(()) } else { Err(Failure::BadName { what, name: name.to_owned(), reason }) }
    };
    identifier("network name", &attachment.network)?;
    identifier("container id", &attachment.container)?;
    validate_ifname(&attachment.ifname).map_err(|reason| Failure::BadName {
        what: "interface name",
        name: attachment.ifname.clone(),
        reason,
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // Left by a process with the same id that was killed; O_EXCL never follows a symlink.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The bytes of a regular file, never through a symlink; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let refuse = |reason: String| Failure::Cache { path: path.to_owned(), reason };
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(refuse(e.to_string())),
    };
    let meta = file.metadata().map_err(|e| refuse(e.to_string()))?;
    if !meta.is_file() || meta.len() > FILE_MAX {
        return Err(refuse(format!("it is no regular file of at most {FILE_MAX} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(|e| refuse(e.to_string()))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What libcni 1.1 writes for `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}` with one port:
    /// Go's encoding/json of `cachedInfo`, members in the order of the struct, maps by key.
    const OF_LIBCNI: &str = concat!(
        r#"{"kind":"cniCacheV1","containerId":"c1","config":"eyJjbmlWZXJzaW9uIjoiMS4wLjAiLCJuYW1lIjoibmV0IiwicGx1Z2lu"#,
        r#"cyI6W3sidHlwZSI6ImJyaWRnZSJ9XX0=","ifName":"eth0","networkName":"net","netns":"/var/run/netns/cni-1","#,
        r#""cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAME","p1"]],"capabilityArgs":{"portMappings":[{"HostPort":8080,"#,
        r#""ContainerPort":80,"Protocol":"tcp","HostIP":""}]},"result":{"cniVersion":"1.0.0","dns":{},"#,
        r#""interfaces":[{"mac":"12:dc:04:cf:71:6b","name":"cni0"},{"name":"eth0","sandbox":"/var/run/netns/cni-1"}],"#,
        r#""ips":[{"address":"10.44.0.2/24","gateway":"10.44.0.1","interface":1}],"routes":[{"dst":"0.0.0.0/0"}]}}"#
    );

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("cni"));
        cache.prepare().unwrap();
        (dir, cache)
    }

    #[test]
    fn what_libcni_wrote_is_read_and_written_back_byte_by_byte() {
        let (_dir, cache) = cache();
        let attachment = Attachment::new("net", "c1", "eth0");
        let path = cache.path(&attachment).unwrap();
        assert!(path.ends_with("cni/results/net-c1-eth0"));
        std::fs::write(&path, OF_LIBCNI).unwrap();
        let entry = cache.load(&attachment).unwrap().unwrap();
        assert_eq!(entry.config, br#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#);
        assert_eq!(entry.netns, "/var/run/netns/cni-1");
        assert_eq!(entry.args[1], ("K8S_POD_NAME".into(), "p1".into()));
        assert_eq!(entry.result_in(Version::V1_0_0).unwrap().0.ips.len(), 1);

        cache.remove(&attachment).unwrap();
        assert_eq!(cache.load(&attachment).unwrap(), None);
        cache.store(&entry).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), OF_LIBCNI);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    /// What podman 4.3.1 left in /var/lib/cni/results after
    /// `podman run -d --name web -p 8080:80 -p 127.0.0.1:53:53/udp --mac-address 02:00:00:00:00:07 …`.
    const OF_PODMAN: &str = include_str!("../testdata/podman-4.3.1.cache.json");

    #[test]
    fn what_podman_wrote_is_read_and_written_back_byte_by_byte() {
        let (_dir, cache) = cache();
        let id = "66f251f34aa50978e76c4e0ffcc02045c98dd4f578533765ae82879dd019c2ac";
        let attachment = Attachment::new("podman", id, "eth0");
        let path = cache.path(&attachment).unwrap();
        std::fs::write(&path, OF_PODMAN).unwrap();
        let entry = cache.load(&attachment).unwrap().unwrap();
        assert!(entry.config.starts_with(br#"{"cniVersion":"0.4.0","name":"podman","plugins":[{"bridge""#));
        assert_eq!(entry.capabilities.names().collect::<Vec<_>>(), ["aliases", "portMappings"]);
        assert_eq!(entry.netns, "");
        let sandbox = "/run/netns/netns-6cab6122-3f76-bbd1-414c-b6ce3bb7eb69";
        assert_eq!(entry.namespace().as_deref(), Some(Path::new(sandbox)));
        cache.store(&entry).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), OF_PODMAN);
    }

    #[test]
    fn a_cached_result_follows_the_conflists_version() {
        let entry = Entry::read(&serde_json::from_str(OF_LIBCNI).unwrap(), None).unwrap();
        let (_, old) = entry.result_in(Version::V0_4_0).unwrap();
        assert_eq!(old.get("cniVersion").and_then(Json::as_str), Some("0.4.0"));
        assert!(serde_json::to_string(&old).unwrap().contains(r#""version":"4""#));
    }

    #[test]
    fn the_format_before_2019_is_read() {
        let (_dir, cache) = cache();
        let attachment = Attachment::new("net", "c1", "eth0");
        let legacy = r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}}"#;
        std::fs::write(cache.path(&attachment).unwrap(), legacy).unwrap();
        let entry = cache.load(&attachment).unwrap().unwrap();
        assert_eq!(entry.result_in(Version::V0_4_0).unwrap().0.ips.len(), 1);
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let (_dir, cache) = cache();
        for (network, container, ifname) in [
            ("../x", "c", "eth0"),
            ("n", "../../c", "eth0"),
            ("n", "c", "../e"),
            ("n", "c", ".."),
            ("", "c", "e"),
            ("n", "", "e"),
            ("n", "c", ""),
        ] {
            let attachment = Attachment::new(network, container, ifname);
            assert!(matches!(cache.path(&attachment), Err(Failure::BadName { .. })), "{attachment}");
            assert!(cache.remove(&attachment).is_err());
        }
    }

    #[test]
    fn a_symlink_is_neither_read_nor_written_through() {
        let (dir, cache) = cache();
        let attachment = Attachment::new("net", "c1", "eth0");
        let victim = dir.path().join("victim");
        std::fs::write(&victim, OF_LIBCNI).unwrap();
        let path = cache.path(&attachment).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(matches!(cache.load(&attachment), Err(Failure::Cache { .. })));

        let entry = Entry::read(&serde_json::from_str(OF_LIBCNI).unwrap(), None).unwrap();
        let changed = Entry { netns: "/other".into(), ..entry };
        cache.store(&changed).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), OF_LIBCNI);
        assert_eq!(cache.load(&attachment).unwrap(), Some(changed));
    }

    #[test]
    fn names_that_join_to_the_same_file_are_not_confused() {
        let (_dir, cache) = cache();
        let entry = Entry::read(&serde_json::from_str(OF_LIBCNI).unwrap(), None).unwrap();
        cache.store(&Entry { attachment: Attachment::new("a-b", "c", "e"), ..entry }).unwrap();
        let error = cache.load(&Attachment::new("a", "b-c", "e")).unwrap_err();
        assert!(error.to_string().ends_with("it belongs to a-b/c/e, not to a/b-c/e"), "{error}");
    }

    #[test]
    fn a_networks_attachments_are_listed_and_foreign_files_passed_over() {
        let (_dir, cache) = cache();
        let entry = Entry::read(&serde_json::from_str(OF_LIBCNI).unwrap(), None).unwrap();
        for (network, container) in [("net", "c2"), ("net", "c1"), ("other", "c1")] {
            cache.store(&Entry { attachment: Attachment::new(network, container, "eth0"), ..entry.clone() }).unwrap();
        }
        std::fs::write(cache.results().join("net-c9-eth0"), "garbage").unwrap();
        std::fs::write(cache.results().join("elsewhere"), OF_LIBCNI).unwrap();
        let listed: Vec<String> =
            cache.of_network("net").unwrap().into_iter().map(|e| e.attachment.to_string()).collect();
        assert_eq!(listed, ["net/c1/eth0", "net/c2/eth0"]);
        assert!(Cache::new("/nonexistent").of_network("net").unwrap().is_empty());
    }

    #[test]
    fn where_the_missing_are_dead_none_is_passed_over() {
        let (_dir, cache) = cache();
        let entry = Entry::read(&serde_json::from_str(OF_LIBCNI).unwrap(), None).unwrap();
        cache.store(&Entry { attachment: Attachment::new("net", "c1", "eth0"), ..entry }).unwrap();
        std::fs::write(cache.results().join("other-c9-eth0"), "garbage").unwrap();
        assert_eq!(cache.all_of_network("net").unwrap().len(), 1);
        std::fs::write(cache.results().join("net-c9-eth0"), "garbage").unwrap();
        let error = cache.all_of_network("net").unwrap_err().to_string();
        assert!(error.contains("results/net-c9-eth0: not JSON"), "{error}");
    }

    #[test]
    fn spoilt_files_are_named_not_trusted() {
        let (_dir, cache) = cache();
        let attachment = Attachment::new("net", "c1", "eth0");
        for spoilt in ["", "[]", r#"{"kind":"cniCacheV2"}"#, r#"{"kind":"cniCacheV1","config":"%"}"#] {
            std::fs::write(cache.path(&attachment).unwrap(), spoilt).unwrap();
            assert!(cache.load(&attachment).is_err(), "{spoilt}");
        }
    }
}
