//! A small file system of the test's own, that can be filled and emptied.
//!
//! It is mounted in a mount namespace that a process keeps, and daemons enter;
//! so it needs nothing of the host and ends with the test.

use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

pub(crate) struct Small {
    keeper: Child,
    folder: TempDir,
}

impl Small {
    /// Makes one of so many bytes.
    pub(crate) fn of(bytes: u64) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kvmlet-s")
            .tempdir_in("/tmp")
            .unwrap();
        let mount = format!(
            "mount -t tmpfs -o size={bytes} small {} && echo mounted && exec sleep infinity",
            folder.path().display()
        );
        #[allow(clippy::disallowed_methods)] // a test keeps its own namespace
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "unshare", "--mount"]);
        command.args(["--propagation", "private"]);
        if !Uid::effective().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let mut keeper = command
            .args(["sh", "-c", &mount])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let said = keeper.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n");
        Self { keeper, folder }
    }

    /// What a daemon is started with, so that it sees it.
    pub(crate) fn launcher(&self) -> Vec<String> {
        let keeper = self.keeper.id().to_string();
        let mut launcher = vec!["nsenter", "--target", &keeper, "--mount"];
        if !Uid::effective().is_root() {
            launcher.extend(["--user", "--preserve-credentials"]);
        }
        launcher.push("--");
        launcher.into_iter().map(str::to_owned).collect()
    }

    /// Where the daemon sees it.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the test sees it.
    pub(crate) fn seen(&self) -> PathBuf {
        let path = self.folder.path().display();
        format!("/proc/{}/root{path}", self.keeper.id()).into()
    }

    /// Fills it but for `left` bytes.
    pub(crate) fn fill(&self, left: u64) {
        fill(&self.seen(), left);
    }

    /// Makes room again.
    pub(crate) fn empty(&self) {
        fs::remove_file(self.seen().join("filler")).unwrap();
    }

    /// Every file of a folder in it and below, in order.
    pub(crate) fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.seen().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// Fills a file system but for `left` bytes, with a file `filler`.
pub(crate) fn fill(folder: &Path, left: u64) {
    let mut filler = File::options()
        .create(true)
        .append(true)
        .open(folder.join("filler"))
        .unwrap();
    loop {
        let found = statvfs(folder).unwrap();
        let free = found.blocks_available() * found.fragment_size();
        let more = free.saturating_sub(left).min(1 << 16);
        let written = filler.write(&vec![1; usize::try_from(more).unwrap()]);
        if more == 0 || written.is_err() {
            return;
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
