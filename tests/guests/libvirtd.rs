//! A libvirt daemon of the test's own with real QEMU, so that the test can act
//! behind kvmlet's back.
//!
//! It takes the host's paths, but in a mount namespace where they lead into a
//! directory of the test's: neither sees the other. That needs root.

// Each test binary uses its own part of it.
#![allow(dead_code)]

use super::support::PATIENCE;
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use virt::connect::Connect;
use virt::domain::Domain;

/// The host's paths, and what they are called here.
const PATHS: [(&str, &str); 5] = [
    ("/etc/libvirt", "etc"),
    ("/var/lib/libvirt", "lib"),
    ("/var/cache/libvirt", "cache"),
    ("/var/log/libvirt", "log"),
    ("/run/libvirt", "run"),
];

pub struct Libvirtd {
    process: Option<Child>,
    pub home: TempDir,
}

impl Libvirtd {
    /// Starts one that knows already what another driver has learnt of QEMU.
    pub fn start(known: &Path) -> Self {
        Self::start_with(Some(known))
    }

    /// Starts one, which looks at QEMU itself if it knows nothing of it.
    pub fn start_with(known: Option<&Path>) -> Self {
        let home = tempfile::Builder::new()
            .prefix("kvmlet-l")
            .tempdir_in("/tmp")
            .unwrap();
        fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for (_, name) in PATHS {
            fs::create_dir(home.path().join(name)).unwrap();
        }
        if let Some(known) = known {
            super::bench::copy_known(known, &home.path().join("cache/qemu/capabilities"));
        }
        let conf = format!(
            "unix_sock_dir = \"{}\"\nauth_unix_rw = \"none\"\n",
            home.path().display()
        );
        fs::write(home.path().join("etc/libvirtd.conf"), conf).unwrap();
        // There is no virtlogd.
        fs::write(
            home.path().join("etc/qemu.conf"),
            "stdio_handler = \"file\"\n",
        )
        .unwrap();
        let mut daemon = Self {
            process: None,
            home,
        };
        daemon.restart();
        daemon
    }

    /// Starts it; the domains that ran go on.
    pub fn restart(&mut self) {
        let mut script = String::new();
        for (path, name) in PATHS {
            let own = self.home.path().join(name);
            script += &format!(
                "mkdir -p {path} && mount --bind {} {path} && ",
                own.display()
            );
        }
        let pid = self.home.path().join("libvirtd.pid");
        script += &format!("exec /usr/sbin/libvirtd --pid-file {}", pid.display());
        let log = fs::File::create(self.home.path().join("libvirtd.log")).unwrap();
        #[allow(clippy::disallowed_methods)] // a test starts its own daemon
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        while Connect::open(Some(&self.uri())).is_err() {
            assert!(Instant::now() < deadline, "libvirtd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has it look at QEMU, for others that start with what it knows.
    pub fn learn(&self) {
        let connection = Connect::open(Some(&self.uri())).unwrap();
        connection.capabilities().unwrap();
    }

    /// Where it keeps what it has learnt of QEMU.
    pub fn known(&self) -> PathBuf {
        self.home.path().join("cache/qemu/capabilities")
    }

    /// Its process; of no use once it was killed.
    pub fn pid(&self) -> Pid {
        let process = self.process.as_ref().expect("it runs");
        Pid::from_raw(i32::try_from(process.id()).unwrap())
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("libvirt-sock")
    }

    /// Kills it; its domains go on.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Does something to a domain, as an administrator would with virsh.
    pub fn by_hand(&self, vm_id: &str, act: impl FnOnce(&Domain)) {
        let connection = Connect::open(Some(&self.uri())).unwrap();
        act(&connection.lookup_domain_by_uuid_string(vm_id).unwrap());
    }

    /// Asks the QEMU of a domain itself, over its monitor.
    pub fn ask_qemu(&self, vm_id: &str, command: &str) -> serde_json::Value {
        #[allow(clippy::disallowed_methods)] // the bindings leave this call out
        let output = Command::new("virsh")
            .args(["--connect", &self.uri(), "qemu-monitor-command", vm_id])
            .arg(format!("{{\"execute\":\"{command}\"}}"))
            .stdin(Stdio::null())
            .output()
            .expect("virsh is installed (scripts/setup)");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        self.kill9();
    }
}
