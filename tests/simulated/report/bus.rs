//! The real nats-server with JetStream, on a free port and in a folder of its own.

use crate::support::{PATIENCE, until};
use async_nats::jetstream;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Where its binary may be; not everyone's PATH has the first.
const PROGRAMS: [&str; 3] = [
    "/usr/sbin/nats-server",
    "/usr/bin/nats-server",
    "/usr/local/bin/nats-server",
];

/// A server that dies with the test.
pub(crate) struct Bus {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Bus {
    pub(crate) async fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut bus = Self {
            folder: tempfile::Builder::new()
                .prefix("kvmlet-n")
                .tempdir_in("/tmp")
                .unwrap(),
            port: free.local_addr().unwrap().port(),
            process: None,
        };
        drop(free);
        bus.restart().await;
        bus
    }

    pub(crate) fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts it where it was, and waits until it serves.
    pub(crate) async fn restart(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let program = PROGRAMS.iter().find(|program| Path::new(program).exists());
        let program = program.expect("nats-server is installed (scripts/setup)");
        #[allow(clippy::disallowed_methods)] // a test starts its own server
        let process = Command::new(program)
            .args(["--jetstream", "--addr", "127.0.0.1", "--store_dir"])
            .arg(self.folder.path())
            .args(["--port", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        until("nats-server to serve", PATIENCE, async || {
            async_nats::connect(self.address()).await.ok()
        })
        .await;
    }

    /// Kills it with no chance to say a word.
    pub(crate) fn kill9(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub(crate) async fn context(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.address()).await.unwrap())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}
