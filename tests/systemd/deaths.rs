//! An agent that is restarted, killed, and hung, while others call it.

use crate::host::Host;
use crate::support::api::Api;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::GetNodeRequest;
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The watchdog's time in this test; the unit's own is longer.
const WATCHDOG: Duration = Duration::from_secs(4);
/// How long systemd may take besides: for the abort that is not heard, and RestartSec.
const AFTER: Duration = Duration::from_secs(5 + 2 + 10);

/// Callers on the Unix socket, each call on a connection of its own.
pub struct Callers {
    stop: Arc<AtomicBool>,
    calling: Vec<JoinHandle<(u32, Vec<String>)>>,
}

impl Callers {
    pub fn start(socket: PathBuf, count: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let calling = (0..count).map(|_| {
            let (socket, stop) = (socket.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut made, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let api = Api::at(&socket);
                    let mut nodes = api.nodes();
                    match timeout(PATIENCE, nodes.get_node(GetNodeRequest {})).await {
                        Ok(Ok(_)) => made += 1,
                        Ok(Err(status)) => failed.push(status.to_string()),
                        Err(_) => failed.push("no answer in time".to_owned()),
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                (made, failed)
            })
        });
        Self {
            calling: calling.collect(),
            stop,
        }
    }

    /// How many calls were answered, and what the others were told.
    pub async fn end(self) -> (u32, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut made, mut failed) = (0, Vec::new());
        for caller in self.calling {
            let (some, wrong) = caller.await.unwrap();
            made += some;
            failed.extend(wrong);
        }
        (made, failed)
    }
}

/// Restarts under calls: who calls meanwhile waits, and is served.
pub async fn restarts_refuse_nobody(host: &Host) {
    let callers = Callers::start(host.socket(), 4);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        host.run("systemctl restart kvmlet");
    }
    let (made, failed) = callers.end().await;
    println!("{made} calls over 3 restarts, {} failed", failed.len());
    assert!(made > 0);
    assert_eq!(failed, Vec::<String>::new());
}

/// After SIGKILL it is back by itself, and who calls meanwhile is served.
pub async fn a_killed_agent_comes_back(host: &Host) {
    let killed = host.agent().expect("the agent runs");
    kill(killed, Signal::SIGKILL).unwrap();
    let gone = Path::new("/proc").join(killed.to_string());
    until("its end", PATIENCE, async || (!gone.exists()).then_some(())).await;
    let asked = Instant::now();
    let node = timeout(PATIENCE, host.api().node()).await.unwrap();
    println!("served {:.1} s after a kill", asked.elapsed().as_secs_f32());
    assert!(!node.id.is_empty());
    let agent = until("the agent to be up", PATIENCE, async || host.agent()).await;
    assert_ne!(agent, killed);
    assert_eq!(host.property("kvmlet", "NRestarts"), "1");
}

/// One whose threads all stand still gives no sign of life: systemd ends it and starts
/// another.
pub fn a_hung_agent_is_restarted_in_time(host: &Host) {
    let folder = "/run/systemd/system/kvmlet.service.d";
    host.run(&format!("mkdir -p {folder}"));
    fs::write(
        host.path(&format!("{folder}/watchdog.conf")),
        format!("[Service]\nWatchdogSec={}\n", WATCHDOG.as_secs()),
    )
    .unwrap();
    host.run("systemctl daemon-reload && systemctl restart kvmlet");
    let hung = host.agent().expect("the agent runs");
    // Well fed for longer than its time.
    thread::sleep(WATCHDOG + Duration::from_secs(1));
    assert_eq!(host.agent(), Some(hung));

    kill(hung, Signal::SIGSTOP).unwrap();
    let since = Instant::now();
    let other = loop {
        match host.agent() {
            Some(agent) if agent != hung => break agent,
            _ => thread::sleep(Duration::from_millis(100)),
        }
        assert!(since.elapsed() < WATCHDOG + AFTER, "{}", host.journal());
    };
    println!(
        "another agent {:.1} s after this one hung (watchdog {} s)",
        since.elapsed().as_secs_f32(),
        WATCHDOG.as_secs()
    );
    assert_ne!(other, hung);
    assert!(
        host.journal().contains("Watchdog timeout"),
        "{}",
        host.journal()
    );
    host.run(&format!(
        "rm -r {folder} && systemctl daemon-reload && systemctl restart kvmlet"
    ));
}
