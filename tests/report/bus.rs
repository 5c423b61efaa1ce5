//! The real nats-server with JetStream, on a free port and in a folder of its own.

use crate::support::{PATIENCE, until};
use async_nats::jetstream;
use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Its binary, where Debian has it.
const PROGRAM: &str = "/usr/sbin/nats-server";

/// A server that dies with the test.
pub struct Bus {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Bus {
    pub async fn start() -> Self {
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

    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts it where it was, and waits until it serves.
    pub async fn restart(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        #[allow(clippy::disallowed_methods)] // a test starts its own server
        let process = Command::new(PROGRAM)
            .args(["--jetstream", "--addr", "127.0.0.1", "--store_dir"])
            .arg(self.folder.path())
            .args(["--port", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server is installed (scripts/setup)");
        self.process = Some(process);
        until("nats-server to serve", PATIENCE, async || {
            async_nats::connect(self.address()).await.ok()
        })
        .await;
    }

    /// Kills it with no chance to say a word.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub async fn context(&self) -> jetstream::Context {
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
