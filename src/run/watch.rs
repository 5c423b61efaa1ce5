//! Keeps systemd told: what the daemon does, and that it lives, from the open journal
//! to the end.
//!
//! Life is proved by the runtime's own threads and by the journal: this runs among the
//! tasks that do the work, and each sign needs a read and a write of the journal that
//! come back. libvirt is not asked: its absence must not restart the agent.

use super::notices::Notices;
use crate::faultpoint;
use crate::service::Core;
use crate::service::core::Readiness;
use crate::service::status_line::status_line;
use crate::systemd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long systemd is asked to wait, each time, for the first look at the host.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the status line is looked at besides, and changes at most.
const LOOK: Duration = Duration::from_secs(1);

/// What watches; to be ended last.
pub(super) struct Watched([JoinHandle<()>; 2]);

impl Watched {
    /// Ends it.
    pub(super) fn end(self) {
        for task in self.0 {
            task.abort();
        }
    }
}

/// Begins to watch, on tasks of the runtime's: one that none of its threads turns
/// gives no sign.
pub(super) fn over(core: &Arc<Core>, notices: &Arc<Notices>) -> Watched {
    Watched([
        tokio::spawn(give_signs(core.clone())),
        tokio::spawn(tell_status(core.clone(), notices.clone())),
    ])
}

async fn give_signs(core: Arc<Core>) {
    let alive = || {
        let core = core.clone();
        async move { core.ledger.is_alive().await }
    };
    let mut readiness = core.readiness();
    // libvirt may be away for long; that is no reason to be killed.
    while *readiness.borrow_and_update() == Readiness::Starting {
        let waited = tokio::time::timeout(PATIENCE / 2, readiness.changed()).await;
        if waited.is_err() && tokio::time::timeout(PATIENCE / 2, alive()).await == Ok(true) {
            systemd::extend_timeout(PATIENCE);
        }
    }
    // Also while it stops: systemd goes on watching then.
    if let Some(timeout) = systemd::watchdog_timeout() {
        systemd::feed_watchdog(timeout, alive).await;
    }
}

async fn tell_status(core: Arc<Core>, notices: Arc<Notices>) {
    let begun = Instant::now();
    let mut readiness = core.readiness();
    let mut operations = core.operations.begun();
    let mut link = core.hypervisor.link();
    let mut readings = core.current.readings();
    loop {
        faultpoint::reach_blocking("runtime.turn");
        let told = notices.status(&status_line(&core, begun.elapsed()));
        if told {
            tokio::time::sleep(LOOK).await;
        }
        tokio::select! {
            Ok(()) = readiness.changed() => {}
            Ok(()) = operations.changed() => {}
            Ok(()) = link.changed() => {}
            Ok(()) = readings.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
