//! What can be changed while the daemon runs: roles, limits and certificates, at
//! SIGHUP; certificates also when their files change.
//!
//! Files and names are read on a thread of its own: they may be slow.

use crate::config::Config;
use crate::door::Door;
use crate::shutdown::Asked;
use crate::telemetry::AuditFile;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// What is read again.
pub(super) struct Reload {
    pub(super) door: Arc<Door>,
    pub(super) config: Config,
    /// The file that the configuration is from; a simulated host has none.
    pub(super) path: Option<PathBuf>,
    pub(super) audit: Option<AuditFile>,
}

impl Reload {
    /// Reads again when asked to, until the daemon ends.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub(super) fn follow(self, asked: &Asked) -> std::io::Result<()> {
        let (ask, asks) = sync_channel(1);
        tokio::spawn(pass_on(asked.clone(), ask));
        thread::Builder::new()
            .name("reload".to_owned())
            .spawn(move || {
                let mut reload = self;
                loop {
                    match asks.recv_timeout(LOOK) {
                        Ok(()) => reload.everything(),
                        Err(RecvTimeoutError::Timeout) => drop(reload.door.reread()),
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        Ok(())
    }

    fn everything(&mut self) {
        if let Some(audit) = &self.audit {
            audit.reopen();
        }
        match self.path.clone() {
            Some(path) => self.file(&path),
            None => tracing::info!("SIGHUP: there is no configuration file to read again"),
        }
    }

    fn file(&mut self, path: &Path) {
        let config = match Config::load(path) {
            Ok(config) => config,
            Err(faults) => {
                tracing::error!(
                    path = %path.display(),
                    faults = %faults.to_string().replace('\n', "; "),
                    "the configuration was not read again; the former one stays in use"
                );
                return;
            }
        };
        let done = self
            .door
            .reconfigure(&config.api, &config.access, config.limits);
        match done {
            Ok(()) => tracing::info!("roles, limits and certificates were read again"),
            Err(error) => tracing::error!(
                error,
                "roles and limits were read again, certificates were not"
            ),
        }
        self.config.access = config.access.clone();
        self.config.limits = config.limits;
        self.config.api.tls.clone_from(&config.api.tls);
        self.config.api.plaintext_role = config.api.plaintext_role;
        if self.config != config {
            tracing::warn!("what else has changed in the configuration needs a restart");
        }
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
