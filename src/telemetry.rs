//! Where log events go.
//!
//! Under systemd they go to the system's journal with their fields, so that
//! `journalctl KVMLET_VM_ID=…` finds them; else they are lines on stderr.
//! It sets up the process-wide subscriber once and decides nothing about what
//! is logged; that no secret is, is up to those who log.

use crate::config::{LogSettings, LogTarget};
use std::ffi::OsStr;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

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
    /// The process has a subscriber already.
    #[error("the log is set up already")]
    Twice(#[from] TryInitError),
}

/// Sends all log events of this process where the settings say. To be called
/// once, before anything is logged.
///
/// # Errors
/// If the journal was asked for by name and can't be reached, or at the second
/// call.
pub fn start(settings: &LogSettings) -> Result<(), TelemetryError> {
    let registry = tracing_subscriber::registry().with(EnvFilter::try_new(&settings.level)?);
    if goes_to_journald(settings.target) {
        let layer = tracing_journald::layer()
            .map_err(TelemetryError::Journald)?
            .with_field_prefix(Some(FIELD_PREFIX.to_owned()))
            .with_syslog_identifier("kvmlet".to_owned());
        registry.with(layer).try_init()?;
    } else {
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        registry.with(layer).try_init()?;
    }
    Ok(())
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
        assert!(matches!(
            start(&settings),
            Ok(()) | Err(TelemetryError::Twice(_))
        ));
        assert!(matches!(start(&settings), Err(TelemetryError::Twice(_))));
    }
}
