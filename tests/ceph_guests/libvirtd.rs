//! A libvirt daemon of the tests' own, with QEMU and with secrets.
//!
//! `tests/ceph/libvirtd` makes and ends it. It watches a pipe from this process:
//! however a test ends, also by a kill, the daemon and its guests end with it.

use super::support::PATIENCE;
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ceph/libvirtd");

/// The daemon; it ends, with its guests, when dropped.
pub struct Libvirtd {
    keeper: Child,
    folder: PathBuf,
}

/// That it is away; it is there again when this is dropped.
pub struct Away<'a>(&'a Libvirtd);

impl Libvirtd {
    pub fn start() -> Self {
        // Short: a socket's path ends at 107 bytes.
        let folder = PathBuf::from(format!("/tmp/kvmlet-libvirtd-{}", std::process::id()));
        // Of a former process with this id that was killed with its keeper.
        if folder.exists() {
            printed(&script("stop", &folder));
        }
        // A session of its own: what ends this process's group, and Ctrl-C, must
        // leave it alive to clean up.
        #[allow(clippy::disallowed_methods)] // a test starts its own libvirt
        let mut keeper = Command::new("setsid")
            .args([SCRIPT, "run"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said, "ready\n", "the libvirt daemon did not start");
        Self { keeper, folder }
    }

    /// Everything that it keeps: `etc`, `lib`, `run`, `cache`, `log`, in place of
    /// the host's folders.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn uri(&self) -> String {
        printed(&script("uri", &self.folder)).trim().to_owned()
    }

    /// Kills it; its guests go on.
    pub fn away(&self) -> Away<'_> {
        printed(&script("down", &self.folder));
        Away(self)
    }

    /// What `virsh` prints; it must succeed.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        printed(&self.virsh_output(arguments))
    }

    /// How `virsh` ends.
    pub fn virsh_output(&self, arguments: &[&str]) -> Output {
        let uri = self.uri();
        bounded("virsh")
            .args(["--quiet", "--connect", &uri])
            .args(arguments)
            .output()
            .expect("virsh is installed (scripts/setup)")
    }

    /// The process that runs a guest, by the id that it has out here.
    pub fn qemu(vm_id: &str) -> Option<Pid> {
        let name = format!("guest=kvmlet-{vm_id},");
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line);
            (line.starts_with("/usr/bin/qemu-system") && line.contains(&name))
                .then(|| entry.file_name().to_str()?.parse().ok())?
                .map(Pid::from_raw)
        })
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        // That is its order to end.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let up = script("up", &self.0.folder);
        if !std::thread::panicking() {
            printed(&up);
        }
    }
}

fn script(action: &str, folder: &Path) -> Output {
    bounded(SCRIPT).arg(action).arg(folder).output().unwrap()
}

/// A command that is killed if it takes too long.
fn bounded(program: &str) -> Command {
    #[allow(clippy::disallowed_methods)] // a test has its own tools
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", &PATIENCE.as_secs().to_string(), program])
        .stdin(Stdio::null());
    command
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}
