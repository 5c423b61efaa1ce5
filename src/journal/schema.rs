//! The journal's tables, and the way from each older version to the newest.
//!
//! A migration is never changed once it was released; a new one is added.
//! `application_id` says that the file is ours, `user_version` how many
//! migrations it has seen; both change in the migration's own transaction.

use super::batch::{REBUILD, encode};
use super::error::JournalError;
use super::read::Rebuild;
use rusqlite::{Connection, TransactionBehavior};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use uuid::Uuid;

/// "kvml", in the header of the file, where `file(1)` finds it too.
const APPLICATION_ID: i64 = 0x6b76_6d6c;

/// The statements that lead from one version to the next.
pub(super) type Migration = &'static str;

/// The statements that lead from version `index` to the next.
///
/// Ids are hyphenated text and times microseconds, so that an administrator
/// can read them with `sqlite3`. Columns beside `record` repeat what is
/// searched for; the record alone is the truth.
pub(super) const MIGRATIONS: &[Migration] = &[
    "
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value ANY NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE vms (
        id TEXT PRIMARY KEY,
        created_by TEXT NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX vms_created_by ON vms (created_by);

    CREATE TABLE images (
        id TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) STRICT;

    CREATE TABLE operations (
        id TEXT PRIMARY KEY,
        vm_id TEXT,
        image_id TEXT,
        request_id TEXT,
        state TEXT NOT NULL,
        create_time INTEGER NOT NULL,
        end_time INTEGER,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX operations_newest ON operations (create_time, id);
    CREATE INDEX operations_of_vm ON operations (vm_id, create_time, id)
        WHERE vm_id IS NOT NULL;
    CREATE INDEX operations_of_image ON operations (image_id, create_time, id)
        WHERE image_id IS NOT NULL;
    CREATE UNIQUE INDEX operations_request ON operations (request_id)
        WHERE request_id IS NOT NULL;
    CREATE INDEX operations_ended ON operations (end_time) WHERE end_time IS NOT NULL;
    CREATE INDEX operations_live ON operations (create_time, id) WHERE end_time IS NULL;
",
    "
    CREATE TABLE events (
        revision INTEGER PRIMARY KEY,
        time INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;

    -- What those who have read all events hold to be true: a digest of the last
    -- one of each thing.
    CREATE TABLE told (
        thing TEXT PRIMARY KEY,
        digest INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- How far each sink's receiver has acknowledged.
    CREATE TABLE cursors (
        sink TEXT PRIMARY KEY,
        epoch TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
];

/// The version that this program writes.
pub(super) fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).expect("a handful")
}

/// Makes sure that the file is a journal that this program can use, or empty.
/// Returns its version, and has changed nothing.
///
/// # Errors
/// `Foreign` and `Newer`; else what SQLite says.
pub(super) fn recognise(connection: &Connection, path: &Path) -> Result<i64, JournalError> {
    let (ours, version) = identify(connection).map_err(|error| match error {
        // Whatever that file is, no journal begins like it.
        JournalError::Corrupt(_) => JournalError::Foreign(path.to_owned()),
        other => other,
    })?;
    if !ours {
        return Err(JournalError::Foreign(path.to_owned()));
    }
    if version > newest() {
        return Err(JournalError::Newer {
            found: version,
            known: newest(),
        });
    }
    Ok(version)
}

/// Sets up the connection that writes, and brings a file of the given version
/// to the newest one.
///
/// # Errors
/// What SQLite says; `Io` where the file system can't hold a journal.
pub(super) fn prepare(connection: &mut Connection, version: i64) -> Result<(), JournalError> {
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(JournalError::Io(std::io::Error::other(format!(
            "the file system supports no write-ahead log (journal mode stays {mode})"
        ))));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The log is cut back to this after a burst.
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    migrate(connection, MIGRATIONS, version)
}

/// The names of what is missing, changed or added in a file of the given version.
///
/// # Errors
/// What SQLite says.
pub(super) fn differences(
    connection: &Connection,
    version: i64,
) -> Result<Vec<String>, JournalError> {
    let mut wanted = Connection::open_in_memory()?;
    let known = usize::try_from(version)
        .ok()
        .and_then(|version| MIGRATIONS.get(..version))
        .unwrap_or(MIGRATIONS);
    migrate(&mut wanted, known, 0)?;
    let (wanted, found) = (objects(&wanted)?, objects(connection)?);
    let names: BTreeSet<&String> = wanted.keys().chain(found.keys()).collect();
    let differs = |name: &&&String| wanted.get(**name) != found.get(**name);
    Ok(names
        .iter()
        .filter(differs)
        .map(|name| (*name).clone())
        .collect())
}

/// Tables and indices, each with the statement that makes it.
fn objects(connection: &Connection) -> Result<BTreeMap<String, String>, JournalError> {
    let mut statement =
        connection.prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether the file is empty or ours, and its version.
fn identify(connection: &Connection) -> Result<(bool, i64), JournalError> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let empty = application == 0 && version == 0 && tables == 0;
    Ok((empty || application == APPLICATION_ID, version))
}

/// Takes a file from the version `from` through all `migrations` that it has not
/// seen, each in a transaction of its own: one that fails or is cut off leaves the
/// version before it.
///
/// # Errors
/// `Corrupt` for a version that never existed; what SQLite says.
pub(super) fn migrate(
    connection: &mut Connection,
    migrations: &[Migration],
    from: i64,
) -> Result<(), JournalError> {
    let unseen = usize::try_from(from)
        .ok()
        .and_then(|from| migrations.get(from..))
        .ok_or_else(|| JournalError::Corrupt(format!("schema {from} never existed")))?;
    for (version, migration) in (from..).zip(unseen) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        if version == 0 {
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.execute(
                "INSERT INTO meta (name, value) VALUES ('epoch', ?1), ('revision', 0)",
                [Uuid::new_v4().hyphenated().to_string()],
            )?;
            // Whether there was another one before, only the host can tell.
            transaction.execute(
                "INSERT INTO meta (name, value) VALUES (?1, ?2)",
                [REBUILD, &encode(&Rebuild::Pending)],
            )?;
        }
        transaction.pragma_update(None, "user_version", version + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(connection: &Connection) -> Vec<String> {
        let mut statement = connection
            .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
            .unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn every_older_version_becomes_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = dir.path().join("fresh.db");
        let mut expected = Connection::open(&fresh).unwrap();
        prepare(&mut expected, 0).unwrap();
        for version in 1..=newest() {
            let path = dir.path().join(format!("{version}.db"));
            let mut old = Connection::open(&path).unwrap();
            let seen = usize::try_from(version).unwrap();
            migrate(&mut old, &MIGRATIONS[..seen], 0).unwrap();
            let found = recognise(&old, &path).unwrap();
            assert_eq!(found, version);
            prepare(&mut old, found).unwrap();
            assert_eq!(recognise(&old, &path).unwrap(), newest());
            assert_eq!(schema(&old), schema(&expected), "from version {version}");
        }
    }
}
