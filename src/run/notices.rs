//! What systemd was told, so that it is told in the right order: that the daemon is up
//! once, and that it reads its configuration only while it is up.
//!
//! Invariant: READY is never sent before the first look at the host, and each
//! RELOADING is followed by READY or STOPPING.

use crate::systemd;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Up,
    Reloading,
    Stopping,
}

#[derive(Debug, Default)]
struct Told {
    phase: Phase,
    status: String,
}

/// Tells systemd.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<Told>);

impl Notices {
    /// Says that the daemon is up, once.
    pub(super) fn ready(&self, status: &str) {
        let mut told = self.told();
        if told.phase == Phase::Starting {
            told.phase = Phase::Up;
            systemd::ready(status);
            status.clone_into(&mut told.status);
        }
    }

    /// Shows a line, if it is another one than before; returns whether it was. During
    /// a reload its own line stays.
    pub(super) fn status(&self, status: &str) -> bool {
        let mut told = self.told();
        if told.phase == Phase::Reloading || told.status == status {
            return false;
        }
        systemd::status(status);
        status.clone_into(&mut told.status);
        true
    }

    /// Says that the configuration is read again. Nothing, while the daemon starts or
    /// stops: READY would have to follow.
    pub(super) fn reloading(&self) {
        let mut told = self.told();
        if told.phase == Phase::Up {
            told.phase = Phase::Reloading;
            systemd::reloading("reading the configuration again");
        }
    }

    /// Says that the configuration was read, whatever came of it.
    pub(super) fn reloaded(&self, status: &str) {
        let mut told = self.told();
        if told.phase == Phase::Reloading {
            told.phase = Phase::Up;
            systemd::ready(status);
            status.clone_into(&mut told.status);
        }
    }

    /// Says that the daemon ends.
    pub(super) fn stopping(&self, status: &str) {
        let mut told = self.told();
        told.phase = Phase::Stopping;
        systemd::stopping(status);
        status.clone_into(&mut told.status);
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
