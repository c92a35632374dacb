//! The delivery: `deploy/install.sh`, the Makefile, the Kubernetes installer.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The five executables that are delivered.
const PROGRAMS: [&str; 5] = ["portmap", "bandwidth", "firewall", "tuning", "cni-chain"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Two directories, `from` and `to`, that go when it goes.
struct Folders(tempfile::TempDir);

impl Folders {
    fn new() -> Folders {
        let folders = Folders(tempfile::tempdir().unwrap());
        fs::create_dir(folders.from()).unwrap();
        folders
    }

    fn from(&self) -> PathBuf {
        self.0.path().join("from")
    }

    fn to(&self) -> PathBuf {
        self.0.path().join("to")
    }

    fn install(&self, names: &[&str]) -> Output {
        let mut command = Command::new("sh");
        command.arg(root().join("deploy/install.sh")).args([self.from(), self.to()]).args(names);
        command.output().unwrap()
    }

    fn installed(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.to()).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// A process that ends with the test, whatever its outcome.
struct Running(Child);

impl Running {
    fn start(sleep: &Path) -> Running {
        let mut command = Command::new(sleep);
        Running(command.arg("600").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn an_executable_that_is_running_is_replaced_and_goes_on_running() {
    let folders = Folders::new();
    fs::create_dir(folders.to()).unwrap();
    fs::copy("/bin/sleep", folders.to().join("plugin")).unwrap();
    let mut running = Running::start(&folders.to().join("plugin"));
    fs::write(folders.from().join("plugin"), "new").unwrap();

    let output = folders.install(&["plugin"]);

    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(folders.to().join("plugin")).unwrap(), "new");
    assert!(running.0.try_wait().unwrap().is_none(), "the old one was disturbed");
    assert_eq!(folders.installed(), BTreeSet::from(["plugin".to_owned()]), "nothing temporary is left");
}

#[test]
fn what_is_installed_can_be_executed_by_everyone_and_written_by_its_owner() {
    let folders = Folders::new();
    fs::write(folders.from().join("plugin"), "x").unwrap();
    fs::set_permissions(folders.from().join("plugin"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(folders.install(&["plugin"]).status.success());
    assert_eq!(folders.to().join("plugin").metadata().unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_file_that_is_the_same_already_is_left_alone() {
    let folders = Folders::new();
    fs::write(folders.from().join("plugin"), "x").unwrap();
    assert!(folders.install(&["plugin"]).status.success());
    let inode = folders.to().join("plugin").metadata().unwrap().ino();
    let output = folders.install(&["plugin"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert_eq!(folders.to().join("plugin").metadata().unwrap().ino(), inode);
}

#[test]
fn an_install_that_fails_says_so_and_leaves_nothing_temporary() {
    let folders = Folders::new();
    fs::write(folders.from().join("plugin"), "x").unwrap();
    // Opens, and fails at the first byte: the temporary file is there by then.
    symlink("/proc/self/mem", folders.from().join("unreadable")).unwrap();
    let output = folders.install(&["plugin", "unreadable"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("unreadable"), "{output:?}");
    assert_eq!(folders.installed(), BTreeSet::from(["plugin".to_owned()]));
}

#[test]
fn make_help_lists_every_command_of_the_makefile() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let phony = makefile.lines().find_map(|line| line.strip_prefix(".PHONY:")).unwrap();
    let help = Command::new("make").arg("--no-print-directory").arg("help").current_dir(root()).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for command in phony.split_whitespace() {
        assert!(help.contains(&format!("  make {command} ")), "{command} is missing in\n{help}");
    }
}

#[test]
fn whoever_delivers_executables_delivers_all_five() {
    for file in ["deploy/dist.sh", "deploy/Containerfile"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(&PROGRAMS.join(" ")), "{file} does not name {PROGRAMS:?}");
    }
}
