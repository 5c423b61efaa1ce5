//! Where log events and spans go.
//!
//! Under systemd they go to the system's journal with their fields, so that
//! `journalctl KVMLET_VM_ID=…` finds them; else they are lines on stderr.
//! Spans go to a collector as well, if one is configured.
//! It sets up the process-wide subscriber once and decides nothing about what
//! is logged; that no secret is, is up to those who log.

mod audit;
#[cfg(feature = "traces")]
mod export;
#[cfg(not(feature = "traces"))]
#[path = "no_export.rs"]
mod export;

pub use audit::AuditFile;
pub use export::CollectorError;

use crate::config::{AuditSettings, LogSettings, LogTarget, TraceSettings};
use export::Spans;
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::time::Duration;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};
use uuid::Uuid;

/// Prefix of the fields in the system's journal: `KVMLET_VM_ID`.
const FIELD_PREFIX: &str = "KVMLET";

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is no filter; the configuration refuses such values.
    #[error("the log level is not a filter")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// The system's journal can't be reached.
    #[error("the system's journal can't be reached")]
    Journald(#[source] std::io::Error),
    /// The file of the audit log can't be opened.
    #[error("the audit file can't be opened")]
    Audit(#[source] std::io::Error),
    /// The collector's address is none; the configuration refuses such values.
    #[error("traces can't be sent to the collector")]
    Collector(#[from] CollectorError),
    /// The process has a subscriber already.
    #[error("the log is set up already")]
    Twice(#[from] TryInitError),
}

/// What is on its way out.
#[must_use]
pub struct Telemetry {
    spans: Option<Spans>,
    /// The file of the audit log, if there is one.
    pub audit: Option<AuditFile>,
    /// How much is logged.
    pub level: Level,
}

/// How much is logged; can be changed at any time.
#[derive(Debug, Clone)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Logs by this filter from now on.
    ///
    /// # Errors
    /// If it is none; the configuration refuses such values. The former one stays.
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = EnvFilter::try_new(filter)?;
        // Fails only when the subscriber has gone, at the end of the process.
        drop(self.0.reload(filter));
        Ok(())
    }
}

impl Telemetry {
    /// Writes and sends what there is, and takes no more spans. Blocks, for twice
    /// `patience` at most.
    pub fn end(self, patience: Duration) {
        if let Some(audit) = self.audit {
            audit.flush(patience);
        }
        if let Some(spans) = self.spans {
            spans.end(patience);
        }
    }
}

/// Sends all log events and spans of this process where the settings say, spans in
/// the name of `node`, by a program of this `version`. To be called once, before anything is logged; with a
/// collector, where tokio's runtime is entered.
///
/// # Errors
/// If the journal was asked for by name and can't be reached, or at the second
/// call. Never because a collector is away.
pub fn start(
    log: &LogSettings,
    audit: &AuditSettings,
    traces: &TraceSettings,
    node: Option<Uuid>,
    version: &'static str,
) -> Result<Telemetry, TelemetryError> {
    let spans = match &traces.endpoint {
        Some(endpoint) => Some(Spans::to(endpoint, traces, node, version)?),
        None => None,
    };
    let (mut layers, audit) = audit::layers(log, audit)?;
    let (filter, level) = reload::Layer::new(EnvFilter::try_new(&log.level)?);
    layers.push(lines(log, filter)?);
    layers.extend(spans.as_ref().map(Spans::layer));
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(Telemetry {
        spans,
        audit,
        level: Level(level),
    })
}

/// The log.
fn lines(
    settings: &LogSettings,
    level: reload::Layer<EnvFilter, Registry>,
) -> Result<Box<dyn Layer<Registry> + Send + Sync>, TelemetryError> {
    let audited = filter_fn(|record| !audit::is_audit(record));
    let filter = level.and(audited);
    Ok(if goes_to_journald(settings.target) {
        let layer = tracing_journald::layer()
            .map_err(TelemetryError::Journald)?
            .with_field_prefix(Some(FIELD_PREFIX.to_owned()))
            .with_syslog_identifier("kvmlet".to_owned());
        layer.with_filter(filter).boxed()
    } else {
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        layer.with_filter(filter).boxed()
    })
}

fn goes_to_journald(target: LogTarget) -> bool {
    match target {
        LogTarget::Journald => true,
        LogTarget::Stderr => false,
        LogTarget::Auto => {
            let stderr = nix::sys::stat::fstat(std::io::stderr());
            let stream = std::env::var_os("JOURNAL_STREAM");
            stderr.is_ok_and(|stat| is_stream(stream.as_deref(), stat.st_dev, stat.st_ino))
        }
    }
}

/// Whether `JOURNAL_STREAM` names this file. The variable alone proves nothing:
/// it is inherited by programs whose stderr went elsewhere.
fn is_stream(stream: Option<&OsStr>, device: u64, inode: u64) -> bool {
    stream
        .and_then(OsStr::to_str)
        .and_then(|stream| stream.split_once(':'))
        .is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_used_only_if_stderr_itself_leads_there() {
        let is = |stream: &str| is_stream(Some(OsStr::new(stream)), 8, 4711);
        assert!(is("8:4711"));
        for other in ["8:4712", "9:4711", "8", "", ":", "8:4711x"] {
            assert!(!is(other), "{other:?}");
        }
        assert!(!is_stream(None, 8, 4711));
        assert!(goes_to_journald(LogTarget::Journald));
        assert!(!goes_to_journald(LogTarget::Stderr));
    }

    #[test]
    fn the_log_is_set_up_once() {
        let settings = LogSettings {
            level: "error".to_owned(),
            target: LogTarget::Stderr,
        };
        let traces = TraceSettings::default();
        let start = || start(&settings, &AuditSettings::default(), &traces, None, "0");
        assert!(matches!(start(), Ok(_) | Err(TelemetryError::Twice(_))));
        assert!(matches!(start(), Err(TelemetryError::Twice(_))));
    }
}
