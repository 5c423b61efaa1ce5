//! Which run of the host's kernel this is, and how the last one ended.
//!
//! Guests end with their host, and libvirt then knows no more of it than that they are
//! off. So the journal has the kernel's name for its run, and how the agent ended in it:
//! an agent that is ended while the host shuts down notes that, and one that was not
//! ended at all was cut off with its host.

use super::core::Core;
use super::gate::Lane;
use super::operations::now;
use crate::journal::Batch;
use crate::model::host_run::{HostEnd, HostRun, LastSeen};
use crate::storage::{Task, ask};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// The longest that systemd may take to say whether the host shuts down, and the journal
/// to record it: the end of the agent waits for both.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the journal has of the host's runs.
#[derive(Debug, Default)]
pub struct Known(Mutex<Option<HostRun>>);

impl Known {
    /// Of what the journal held.
    pub const fn new(recorded: Option<HostRun>) -> Self {
        Self(Mutex::new(recorded))
    }

    fn get(&self) -> Option<HostRun> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    fn set(&self, run: HostRun) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
    }
}

/// How the host's last run ended, if the present one is another. `None` once this one is
/// recorded.
pub(super) fn last_end(core: &Core) -> Option<HostEnd> {
    core.host_run.get()?.ended(core.node.boot_id())
}

/// The present run, to be recorded with what the guests are found to be; `None` if it is.
pub(super) fn present(core: &Core) -> Option<HostRun> {
    let run = HostRun {
        boot_id: core.node.boot_id().to_owned(),
        agent: LastSeen::Running,
        time: now(),
    };
    let same = |known: HostRun| known.boot_id == run.boot_id && known.agent == run.agent;
    (!core.host_run.get().is_some_and(same)).then_some(run)
}

/// Notes that the present run is recorded.
pub(super) fn note(core: &Core, run: HostRun) {
    core.host_run.set(run);
}

/// Records that the agent ends, and whether the host does. What can't be recorded is
/// logged: the guests are said to have lost their power with the host then.
pub async fn record_end(core: &Core) {
    // Before the guests were looked at, the end of the last run is still to be told.
    if present(core).is_some() {
        return;
    }
    let asked = core.gate.run(Lane::Storage, PATIENCE, is_host_stopping);
    let agent = match asked.await {
        Ok(true) => LastSeen::EndedWithHost,
        Ok(false) | Err(_) => LastSeen::Ended,
    };
    let run = HostRun {
        boot_id: core.node.boot_id().to_owned(),
        agent,
        time: now(),
    };
    let batch = Batch::new().put_host_run(&run);
    match timeout(PATIENCE, core.ledger.commit(batch)).await {
        Ok(Ok(())) => core.host_run.set(run),
        Ok(Err(_)) | Err(_) => tracing::warn!("how the agent ended could not be recorded"),
    }
}

/// Whether the host is shutting down, as systemd says. Without systemd nobody knows.
fn is_host_stopping() -> bool {
    // As sd_booted(3) finds out.
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    let answer = ask("systemctl", &["is-system-running"], &Task::within(PATIENCE));
    match answer {
        Ok(answer) => answer.printed.trim() == "stopping",
        Err(error) => {
            tracing::warn!(%error, "systemd did not say whether the host shuts down");
            false
        }
    }
}
