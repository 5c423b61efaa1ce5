//! A file system of the test's own that can hang, as one does whose server does not
//! answer: every access waits until it goes on.
//!
//! It is ext4 in a file, served through FUSE by a process that can be stopped. It is
//! mounted in a mount namespace that daemons enter, so it needs nothing of the host but
//! `/dev/fuse`. It ends with the test: its connection is aborted, which fails whatever
//! still waits for it. A process that waits for a file system can't always be killed.

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::minor;
use nix::unistd::{Pid, Uid};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Makes the file system in $1, mounts it, and becomes the process that serves it.
///
/// The kernel caches no names and attributes, so every access reaches that process.
const SERVE: &str = r#"
set -e
cd "$1"
mkdir disk connections
mount -t fusectl none connections
truncate -s 64M image
mke2fs -q -F -t ext4 -O ^has_journal image
(
    until mountpoint -q disk; do sleep 0.02; done
    echo mounted
) &
exec fuse2fs -f image disk -o rw,attr_timeout=0,entry_timeout=0,negative_timeout=0 2>log >&2
"#;

pub(crate) struct Fuse {
    server: Child,
    folder: TempDir,
    /// The kernel's number for its connection to the server.
    connection: u64,
}

impl Fuse {
    /// Makes one of 64 MiB.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kvmlet-f")
            .tempdir_in("/tmp")
            .unwrap();
        #[allow(clippy::disallowed_methods)] // a test has its own file system
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "unshare", "--mount"]);
        command.args(["--propagation", "private"]);
        if !Uid::effective().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let mut server = command
            .args(["sh", "-c", SERVE, "sh"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let said = server.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        assert_eq!(line, "mounted\n", "{log}");
        let mut disk = Self {
            server,
            folder,
            connection: 0,
        };
        disk.connection = minor(fs::metadata(disk.seen("disk")).unwrap().dev());
        assert_eq!(disk.waiting(), 0);
        disk
    }

    /// What a daemon is started with, so that it sees it.
    pub(crate) fn launcher(&self) -> Vec<String> {
        let server = self.server.id().to_string();
        let mut launcher = vec!["nsenter", "--target", &server, "--mount"];
        if !Uid::effective().is_root() {
            launcher.extend(["--user", "--preserve-credentials"]);
        }
        launcher.push("--");
        launcher.into_iter().map(str::to_owned).collect()
    }

    /// Where the daemon sees it.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Lets every access wait from now on.
    pub(crate) fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on, and what waits with it.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// How many accesses wait for it.
    pub(crate) fn waiting(&self) -> u32 {
        let text = fs::read_to_string(self.control("waiting")).unwrap();
        text.trim().parse().unwrap()
    }

    fn control(&self, file: &str) -> PathBuf {
        self.seen(&format!("connections/{}/{file}", self.connection))
    }

    /// A part of its folder, as it is seen from outside its namespace.
    fn seen(&self, part: &str) -> PathBuf {
        let folder: &Path = self.folder.path();
        let server = self.server.id();
        format!("/proc/{server}/root{}/{part}", folder.display()).into()
    }

    fn signal(&self, signal: Signal) {
        let server = i32::try_from(self.server.id()).unwrap();
        kill(Pid::from_raw(server), signal).unwrap();
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Before the server goes: its namespace goes with it.
        let _ = fs::write(self.control("abort"), "1");
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
