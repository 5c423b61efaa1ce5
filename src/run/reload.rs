//! What can be changed while the daemon runs, at SIGHUP: log level, roles, limits,
//! networks, hardware profiles and certificates; certificates also when their files
//! change.
//!
//! Invariant: all of it changes, or nothing. What can be refused is read and checked
//! first; then nothing can fail any more. Files and names are read on a thread of its
//! own: they may be slow.

use super::Log;
use super::notices::Notices;
use crate::config::Config;
use crate::pace;
use crate::service::Core;
use crate::service::current::{Offered, Reading};
use crate::service::fault::chain;
use crate::service::status_line::status_line;
use crate::shutdown::Asked;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

/// What is read again.
pub(super) struct Reload {
    pub(super) core: Arc<Core>,
    /// The file that the configuration is from; a simulated host has none.
    pub(super) path: Option<PathBuf>,
    pub(super) log: Log,
    pub(super) notices: Arc<Notices>,
}

impl Reload {
    /// Reads again when asked to, until the daemon ends. What was asked for before is
    /// not lost.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub(super) fn follow(self, asked: &Asked) -> std::io::Result<()> {
        let (ask, asks) = sync_channel(1);
        tokio::spawn(pass_on(asked.clone(), ask));
        thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || {
                loop {
                    match asks.recv_timeout(pace::certificates()) {
                        Ok(()) => self.everything(),
                        Err(RecvTimeoutError::Timeout) => drop(self.core.door.reread()),
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        Ok(())
    }

    fn everything(&self) {
        self.notices.reloading();
        if let Some(audit) = &self.log.audit {
            audit.reopen();
        }
        match &self.path {
            Some(path) => self.core.current.note(self.file(path)),
            None => tracing::info!("SIGHUP: there is no configuration file to read again"),
        }
        let status = status_line(&self.core, Duration::ZERO);
        self.notices.reloaded(&status);
    }

    fn file(&self, path: &Path) -> Reading {
        let prepared = Config::load(path)
            .map_err(|faults| {
                let told: Vec<String> = faults.faults().iter().map(ToString::to_string).collect();
                told
            })
            .and_then(|config| {
                let door = &self.core.door;
                match door.prepare(&config.api, &config.access, config.limits) {
                    Ok(prepared) => Ok((config, prepared)),
                    Err(trouble) => Err(vec![format!("api.tls: {trouble}")]),
                }
            });
        let (config, prepared) = match prepared {
            Ok(prepared) => prepared,
            Err(faults) => {
                tracing::error!(
                    path = %path.display(),
                    faults = faults.join("; "),
                    "the configuration was not read again; the former one stays in use"
                );
                let faults = faults.len();
                return Reading::Refused { faults };
            }
        };
        if let Err(error) = self.log.level.set(&config.log.level) {
            // The configuration has checked it.
            tracing::error!(error = chain(&error), "the log level stays");
        }
        self.core.door.reconfigure(prepared);
        self.core.current.offer(Offered::of(&config));
        tracing::info!(
            "log level, networks, hardware profiles, roles, limits and certificates were read again"
        );
        // Always against what the daemon was started with.
        let restart = self.core.config.needs_restart(&config);
        if !restart.is_empty() {
            tracing::warn!(
                keys = restart.join(", "),
                "what has changed in the configuration needs a restart"
            );
        }
        Reading::Read { restart }
    }
}

/// Tells the thread of each SIGHUP; it ends when the daemon does.
async fn pass_on(asked: Asked, ask: SyncSender<()>) {
    loop {
        tokio::select! {
            () = asked.reload.notified() => match ask.try_send(()) {
                // One that waits already reads what is there then.
                Ok(()) | Err(TrySendError::Full(())) => {}
                Err(TrySendError::Disconnected(())) => return,
            },
            () = asked.end.cancelled() => return,
        }
    }
}
