//! The journal's file looked at from outside the daemon, also while one runs.
//!
//! Invariant: nothing of what is recorded is changed, migrated or repaired, and a
//! daemon that has the file open neither waits nor fails. The one thing that may
//! be written is the shared index of the write-ahead log (`-shm`), which holds no
//! records.

use super::error::JournalError;
use super::read::Rebuild;
use super::{MAINTENANCE, REBUILD, schema, sibling};
use crate::model::maintenance::Maintenance;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A journal's file, opened to be read, as it was at one moment.
pub(super) struct Outside {
    pub(super) connection: Connection,
    /// The schema that the file says it has.
    pub(super) schema: i64,
}

impl Outside {
    /// Opens the file at `path`; it must be there.
    ///
    /// # Errors
    /// `Io` if there is none, `Foreign` and `Newer`, and what SQLite says.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        std::fs::metadata(path)?;
        let connection = connect(path)?;
        connection.busy_timeout(super::BUSY)?;
        // All that follows is of one moment, whatever a daemon writes meanwhile.
        connection.execute_batch("BEGIN")?;
        let schema = schema::recognise(&connection, path)?;
        if schema == 0 {
            return Err(JournalError::Foreign(path.to_owned()));
        }
        Ok(Self { connection, schema })
    }

    /// What is recorded under a name beside the tables of records.
    pub(super) fn meta(
        &self,
        name: &str,
    ) -> Result<Option<rusqlite::types::Value>, rusqlite::Error> {
        self.connection
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
                row.get(0)
            })
            .optional()
    }

    /// The state of the rebuild, if one is recorded.
    pub(super) fn rebuild(&self) -> Result<Option<Rebuild>, JournalError> {
        self.kept(REBUILD)
    }

    /// The host's maintenance, if it is in one.
    pub(super) fn maintenance(&self) -> Result<Option<Maintenance>, JournalError> {
        self.kept(MAINTENANCE)
    }

    fn kept<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, JournalError> {
        let corrupt =
            |why: String| JournalError::Corrupt(format!("the state of its {name}: {why}"));
        match self.meta(name)? {
            None => Ok(None),
            Some(rusqlite::types::Value::Text(text)) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|error| corrupt(error.to_string())),
            Some(_) => Err(corrupt("is no text".to_owned())),
        }
    }
}

/// The schema of the journal at `path`, and the newest one that this program knows.
///
/// # Errors
/// `Io` if there is none or it can't be read, `Foreign`, `Newer`, and what SQLite says.
pub fn schema_of(path: &Path) -> Result<(i64, i64), JournalError> {
    let outside = Outside::open(path)?;
    Ok((outside.schema, schema::newest()))
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    // Whoever has it open has an index of its log; closed well, it has neither.
    // Then SQLite would make both, and leave them.
    let closed = ["-wal", "-shm"]
        .iter()
        .all(|suffix| !sibling(path, suffix).exists());
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            byte => write!(uri, "%{byte:02x}").expect("a String takes all"),
        }
    }
    uri.push_str(if closed {
        "?mode=ro&immutable=1"
    } else {
        "?mode=ro"
    });
    Connection::open_with_flags(uri, flags)
}

/// Writes everything that a journal holds, one JSON object for each record, in an
/// order that is the same each time: the journal itself, VMs and images by id,
/// operations by time and id, events by revision, cursors of sinks by name. It holds
/// no passwords.
///
/// A record that is no JSON is written as the text that it is, under `unreadable`.
///
/// # Errors
/// As for opening it; and where the file can't be read any further, or `each`
/// fails: what came before has been written then.
pub fn export<E: From<JournalError>>(
    path: &Path,
    mut each: impl FnMut(&Value) -> Result<(), E>,
) -> Result<(), E> {
    let outside = Outside::open(path)?;
    let meta = |name| -> Result<Value, JournalError> {
        Ok(match outside.meta(name)? {
            Some(rusqlite::types::Value::Text(text)) => text.into(),
            Some(rusqlite::types::Value::Integer(number)) => number.into(),
            _ => Value::Null,
        })
    };
    each(&json!({
        "kind": "journal",
        "schema": outside.schema,
        "epoch": meta("epoch")?,
        "revision": meta("revision")?,
        "rebuild": outside.rebuild()?,
        "maintenance": outside.maintenance()?,
    }))?;
    let mut tables = vec![
        ("vm", "SELECT id, record FROM vms ORDER BY id"),
        ("image", "SELECT id, record FROM images ORDER BY id"),
        (
            "operation",
            "SELECT id, record FROM operations ORDER BY create_time, id",
        ),
    ];
    // The first version had no events.
    if outside.schema > 1 {
        tables.push((
            "event",
            "SELECT CAST(revision AS TEXT), record FROM events ORDER BY revision",
        ));
        tables.push((
            "cursor",
            "SELECT sink, json_object('epoch', epoch, 'revision', revision) FROM cursors
             ORDER BY sink",
        ));
    }
    for (kind, sql) in tables {
        let mut statement = outside
            .connection
            .prepare(sql)
            .map_err(JournalError::from)?;
        let mut rows = statement.query([]).map_err(JournalError::from)?;
        while let Some(row) = rows.next().map_err(JournalError::from)? {
            let text = |column| -> Result<String, JournalError> {
                let value = row.get_ref(column)?;
                let bytes = value.as_bytes().map_err(rusqlite::Error::from)?;
                Ok(String::from_utf8_lossy(bytes).into_owned())
            };
            let (id, record) = (text(0)?, text(1)?);
            each(&match serde_json::from_str::<Value>(&record) {
                Ok(record) => json!({ "kind": kind, "id": id, "record": record }),
                Err(_) => json!({ "kind": kind, "id": id, "unreadable": record }),
            })?;
        }
    }
    Ok(())
}
