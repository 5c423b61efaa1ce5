//! A libvirt daemon of the test's own, unprivileged and on a socket of its own,
//! that serves the simulated driver.
//!
//! So the test can act on the same domains behind kvmlet's back, and libvirt can
//! go away and come back.

use super::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use virt::connect::Connect;
use virt::domain::Domain;

/// The daemon; it dies when dropped.
#[derive(Debug)]
pub struct Libvirtd {
    process: Option<Child>,
    home: TempDir,
}

impl Libvirtd {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        // Short: a socket's path ends at 107 bytes.
        let home = tempfile::Builder::new()
            .prefix("kvmlet-d")
            .tempdir_in("/tmp")
            .unwrap();
        if Uid::effective().is_root() {
            let nobody = User::from_name("nobody").unwrap().unwrap();
            chown(home.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
        }
        let mut daemon = Self {
            process: None,
            home,
        };
        daemon.restart();
        daemon
    }

    /// Starts it again on the same socket; its domains are gone.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "one process at a time");
        // As root it would take the host's own directories.
        #[allow(clippy::disallowed_methods)] // a test starts its own daemon
        let mut command = if Uid::effective().is_root() {
            let nobody = User::from_name("nobody").unwrap().unwrap();
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={}", nobody.uid))
                .arg(format!("--regid={}", nobody.gid))
                .args(["--clear-groups", "--pdeathsig=KILL", "/usr/sbin/libvirtd"]);
            command
        } else {
            Command::new("/usr/sbin/libvirtd")
        };
        command.env("HOME", self.home.path());
        for variable in [
            "XDG_RUNTIME_DIR",
            "XDG_CONFIG_HOME",
            "XDG_CACHE_HOME",
            "XDG_DATA_HOME",
        ] {
            command.env(variable, self.home.path());
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("libvirtd is installed (scripts/setup)");
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        // That it is not there yet is no news.
        virt::error::clear_error_callback();
        while Connect::open(Some(&self.uri())).is_err() {
            assert!(Instant::now() < deadline, "libvirtd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its URI, for kvmlet and for the test.
    pub fn uri(&self) -> String {
        format!("test+unix:///default?socket={}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("libvirt/libvirt-sock")
    }

    /// A directory that it can write to.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A connection of the test's own.
    pub fn connect(&self) -> Connect {
        Connect::open(Some(&self.uri())).expect("libvirtd answers")
    }

    /// Lets a connection look at a VM's domain, if it is defined.
    pub fn domain(connection: &Connect, vm_id: &str) -> Option<Domain> {
        connection.lookup_domain_by_uuid_string(vm_id).ok()
    }

    /// Makes a running domain crash, as a guest that panics does.
    pub fn crash(&self, connection: &Connect, vm_id: &str) {
        let to = self.home.path().join(format!("{vm_id}.core"));
        Self::domain(connection, vm_id)
            .expect("a domain")
            .core_dump(to.to_str().unwrap(), virt::sys::VIR_DUMP_CRASH)
            .expect("a domain can be made to crash");
    }

    /// Holds it or lets it go on.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.as_ref().expect("it runs").id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
    }

    /// Kills it; its domains go with it.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
