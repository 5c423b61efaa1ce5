//! Where it is recorded who changed what: under systemd in the journal, by an
//! identifier of its own; else on stderr with the log; and in a file, if one is
//! configured. The level of the log does not matter.

use super::{FIELD_PREFIX, TelemetryError, goes_to_journald};
use crate::config::{AuditSettings, LogSettings};
use crate::pace;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tracing::Metadata;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{Layer, Registry};

/// What these records are marked with.
const TARGET: &str = "kvmlet::audit";
/// Records that wait for a slow disk; further ones are only in the log.
const WAITING: usize = 4096;

/// Whether it is a record of who changed what.
pub(super) fn is_audit(record: &Metadata<'_>) -> bool {
    record.target() == TARGET
}

type Layers = Vec<Box<dyn Layer<Registry> + Send + Sync>>;

/// Where these records go.
pub(super) fn layers(
    log: &LogSettings,
    settings: &AuditSettings,
) -> Result<(Layers, Option<AuditFile>), TelemetryError> {
    let own = if goes_to_journald(log.target) {
        tracing_journald::layer()
            .map_err(TelemetryError::Journald)?
            .with_field_prefix(Some(FIELD_PREFIX.to_owned()))
            .with_syslog_identifier("kvmlet-audit".to_owned())
            .with_filter(filter_fn(is_audit))
            .boxed()
    } else {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_filter(filter_fn(is_audit))
            .boxed()
    };
    let Some(path) = &settings.file else {
        return Ok((vec![own], None));
    };
    let file = AuditFile::open(path.clone()).map_err(TelemetryError::Audit)?;
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false)
        .with_writer(file.clone())
        .with_filter(filter_fn(is_audit))
        .boxed();
    Ok((vec![own, lines], Some(file)))
}

enum Order {
    Write(Vec<u8>),
    Reopen,
    Flush(SyncSender<()>),
}

/// The file of records. Written on a thread of its own, so that a slow disk holds
/// up no call.
#[derive(Clone)]
pub struct AuditFile {
    orders: SyncSender<Order>,
    lost: Arc<Mutex<u64>>,
}

impl AuditFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = append(&path)?;
        let (orders, waiting) = sync_channel(WAITING);
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(&path, file, &waiting))?;
        Ok(Self {
            orders,
            lost: Arc::default(),
        })
    }

    /// Opens the file anew, after it was moved away.
    pub fn reopen(&self) {
        drop(self.orders.try_send(Order::Reopen));
    }

    /// Waits until everything is written, for `patience` at most.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if self.orders.try_send(Order::Flush(done)).is_ok() {
            // Nobody is there any more who could be told.
            let _ = written.recv_timeout(patience);
        }
    }

    fn add(&self, line: &[u8]) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if *lost > 0 {
            let note = format!("{{\"message\":\"{lost} records were lost\"}}\n");
            if self.orders.try_send(Order::Write(note.into())).is_ok() {
                *lost = 0;
            }
        }
        if self.orders.try_send(Order::Write(line.to_vec())).is_err() {
            *lost += 1;
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn write(path: &PathBuf, file: File, orders: &Receiver<Order>) {
    let mut file = Some(file);
    while let Ok(order) = orders.recv() {
        match order {
            Order::Write(line) => {
                let mut failed = false;
                while let Err(error) = put(path, &mut file, &line) {
                    if !failed {
                        tracing::error!(path = %path.display(), %error, "the audit file can't be written");
                        failed = true;
                    }
                    file = None;
                    thread::sleep(pace::audit());
                }
            }
            Order::Reopen => file = None,
            // Nobody may be waiting any more.
            Order::Flush(done) => drop(done.try_send(())),
        }
    }
}

fn put(path: &PathBuf, file: &mut Option<File>, line: &[u8]) -> io::Result<()> {
    let open = match file {
        Some(open) => open,
        None => file.insert(append(path)?),
    };
    open.write_all(line)
}

impl<'a> MakeWriter<'a> for AuditFile {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// One record on its way to the file.
pub struct Line<'a>(&'a AuditFile);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The whole record comes at once.
        self.0.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let file = AuditFile::open(path.clone()).unwrap();
        file.add(b"one\n");
        file.flush(Duration::from_secs(20));
        let moved = folder.path().join("audit.log.1");
        std::fs::rename(&path, &moved).unwrap();
        file.add(b"two\n");
        file.reopen();
        file.add(b"three\n");
        file.flush(Duration::from_secs(20));
        assert_eq!(std::fs::read(&moved).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
