//! What is recorded, read back.

use super::batch::{AGENT, HOST_RUN, MAINTENANCE, REBUILD, column, state_name};
use super::error::JournalError;
use crate::model::event::{Change, Event, Position};
use crate::model::host_run::HostRun;
use crate::model::ids::{ImageId, OperationId, RequestId, VmId};
use crate::model::image::Image;
use crate::model::maintenance::Maintenance;
use crate::model::operation::{Operation, OperationState};
use crate::model::time::Timestamp;
use crate::model::vm::Vm;
use rusqlite::{Connection, OptionalExtension, ToSql, params_from_iter};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// What a journal held when it was opened.
#[derive(Debug)]
pub struct Loaded {
    /// Names this journal: another one after its file was lost, and with it
    /// the meaning of revisions.
    pub epoch: Uuid,
    /// The highest revision that was recorded.
    pub revision: u64,
    /// All VMs.
    pub vms: Vec<Vm>,
    /// All images.
    pub images: Vec<Image>,
    /// The operations that have not ended, oldest first.
    pub live_operations: Vec<Operation>,
    /// What became of the records that this journal did not have when it was
    /// made; `None` when nothing was missing.
    pub rebuild: Option<Rebuild>,
    /// What those who have read all events hold to be true: each thing with its
    /// digest.
    pub told: HashMap<String, u64>,
    /// How far each sink's receiver has acknowledged.
    pub cursors: HashMap<String, Position>,
    /// The host's maintenance, if it is in one.
    pub maintenance: Option<Maintenance>,
    /// What this agent's domains are marked with; `None` in a journal that no version
    /// with marks has used.
    pub agent: Option<Uuid>,
    /// The last known run of the host's kernel, and what became of the agent in it.
    pub host_run: Option<HostRun>,
}

/// What becomes of the records that a journal did not have when it was made.
///
/// Kept in the journal itself, so that an agent that ends before the host was
/// looked at finds it still to be done, and so that it is never done twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rebuild {
    /// The journal is new, and what the host has of kvmlet's is not known yet.
    Pending,
    /// What the host had of kvmlet's was recorded anew.
    Done {
        /// When.
        time: Timestamp,
        /// The pools that could not be read then: their images are unknown.
        unread_pools: Vec<String>,
    },
}

/// Which operations to list. Every set field narrows the choice.
#[derive(Debug, Clone, Default)]
pub struct OperationQuery {
    /// Those of this VM.
    pub vm_id: Option<VmId>,
    /// Those of this image.
    pub image_id: Option<ImageId>,
    /// The one that this request made.
    pub request_id: Option<RequestId>,
    /// Those in one of these states; empty: in any.
    pub states: Vec<OperationState>,
    /// Those that come after this one in the list: where a page ended.
    pub before: Option<(Timestamp, OperationId)>,
    /// At most this many; zero: none.
    pub limit: usize,
}

pub(super) fn load(connection: &Connection) -> Result<Loaded, JournalError> {
    // One transaction, so that all parts are of one moment.
    let transaction = connection.unchecked_transaction()?;
    let meta = |name: &str| {
        transaction.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
            row.get::<_, rusqlite::types::Value>(0)
        })
    };
    let epoch = match meta("epoch")? {
        rusqlite::types::Value::Text(text) => Uuid::try_parse(&text).ok(),
        _ => None,
    };
    let revision = match meta("revision")? {
        rusqlite::types::Value::Integer(number) => u64::try_from(number).ok(),
        _ => None,
    };
    let (Some(epoch), Some(revision)) = (epoch, revision) else {
        return Err(JournalError::Corrupt(
            "its epoch or revision is none".to_owned(),
        ));
    };
    Ok(Loaded {
        rebuild: kept(&transaction, REBUILD)?,
        maintenance: kept(&transaction, MAINTENANCE)?,
        agent: kept(&transaction, AGENT)?,
        host_run: kept(&transaction, HOST_RUN)?,
        told: told(&transaction)?,
        cursors: cursors(&transaction)?,
        epoch,
        revision,
        vms: records(
            &transaction,
            "vm",
            "SELECT id, record FROM vms ORDER BY id",
            &[],
        )?,
        images: records(
            &transaction,
            "image",
            "SELECT id, record FROM images ORDER BY id",
            &[],
        )?,
        live_operations: records(
            &transaction,
            "operation",
            "SELECT id, record FROM operations WHERE end_time IS NULL ORDER BY create_time, id",
            &[],
        )?,
    })
}

/// What is kept as JSON by its name beside epoch and revision.
fn kept<T: DeserializeOwned>(
    connection: &Connection,
    name: &str,
) -> Result<Option<T>, JournalError> {
    let text: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
            row.get(0)
        })
        .optional()?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| JournalError::Corrupt(format!("the state of its {name}: {error}")))
}

pub(super) fn operation(
    connection: &Connection,
    id: OperationId,
) -> Result<Option<Operation>, JournalError> {
    let sql = "SELECT id, record FROM operations WHERE id = ?1";
    Ok(records(connection, "operation", sql, &[&id.to_string()])?.pop())
}

pub(super) fn operation_by_request(
    connection: &Connection,
    id: RequestId,
) -> Result<Option<Operation>, JournalError> {
    let sql = "SELECT id, record FROM operations WHERE request_id = ?1";
    Ok(records(connection, "operation", sql, &[&id.to_string()])?.pop())
}

pub(super) fn operations(
    connection: &Connection,
    query: &OperationQuery,
) -> Result<Vec<Operation>, JournalError> {
    let mut conditions = vec!["1".to_owned()];
    let mut values: Vec<Box<dyn ToSql>> = Vec::new();
    let ids = [
        ("vm_id", query.vm_id.map(|id| id.to_string())),
        ("image_id", query.image_id.map(|id| id.to_string())),
        ("request_id", query.request_id.map(|id| id.to_string())),
    ];
    for (column, id) in ids {
        if let Some(id) = id {
            conditions.push(format!("{column} = ?"));
            values.push(Box::new(id));
        }
    }
    if !query.states.is_empty() {
        let marks = vec!["?"; query.states.len()].join(", ");
        conditions.push(format!("state IN ({marks})"));
        for state in &query.states {
            values.push(Box::new(state_name(*state)));
        }
    }
    if let Some((time, id)) = query.before {
        conditions.push("(create_time, id) < (?, ?)".to_owned());
        values.push(Box::new(column(time)));
        values.push(Box::new(id.to_string()));
    }
    values.push(Box::new(i64::try_from(query.limit).unwrap_or(i64::MAX)));
    let sql = format!(
        "SELECT id, record FROM operations WHERE {}
         ORDER BY create_time DESC, id DESC LIMIT ?",
        conditions.join(" AND ")
    );
    let values: Vec<&dyn ToSql> = values.iter().map(AsRef::as_ref).collect();
    records(connection, "operation", &sql, &values)
}

/// The events after a revision, in order, at most so many.
pub(super) fn events(
    connection: &Connection,
    after: u64,
    limit: usize,
) -> Result<Vec<Event>, JournalError> {
    let mut statement = connection.prepare_cached(
        "SELECT revision, record FROM events WHERE revision > ?1 ORDER BY revision LIMIT ?2",
    )?;
    let (after, limit) = (
        i64::try_from(after).unwrap_or(i64::MAX),
        i64::try_from(limit).unwrap_or(i64::MAX),
    );
    let mut rows = statement.query([after, limit])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let revision = u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default();
        let record = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        let change: Change = serde_json::from_str(record)
            .map_err(|error| JournalError::Corrupt(format!("the event {revision}: {error}")))?;
        events.push(Event {
            revision,
            change: Arc::new(change),
        });
    }
    Ok(events)
}

fn told(connection: &Connection) -> Result<HashMap<String, u64>, JournalError> {
    let mut statement = connection.prepare("SELECT thing, digest FROM told")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn cursors(connection: &Connection) -> Result<HashMap<String, Position>, JournalError> {
    let mut statement = connection.prepare("SELECT sink, epoch, revision FROM cursors")?;
    let rows = statement.query_map([], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, i64>(2)?,
        ))
    })?;
    let mut cursors = HashMap::new();
    for row in rows {
        let (sink, epoch, revision) = row?;
        // One that can't be read is none: its receiver gets a snapshot.
        if let (Ok(epoch), Ok(revision)) = (Uuid::try_parse(&epoch), u64::try_from(revision)) {
            cursors.insert(sink, Position { epoch, revision });
        }
    }
    Ok(cursors)
}

/// What is wrong with the file, in SQLite's words; nothing if all is well.
pub(super) fn integrity_check(connection: &Connection) -> Result<Vec<String>, JournalError> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    let mut problems = rows.collect::<Result<Vec<_>, _>>()?;
    problems.retain(|problem| problem != "ok");
    Ok(problems)
}

/// Fails with what is wrong with the file's pages, if anything is. Reads all of
/// them, but compares no index with its table.
pub(super) fn quick_check(connection: &Connection) -> Result<(), JournalError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" {
        Ok(())
    } else {
        Err(JournalError::Corrupt(found))
    }
}

/// The records that a statement with the columns `id, record` finds.
fn records<T: DeserializeOwned>(
    connection: &Connection,
    kind: &str,
    sql: &str,
    values: &[&dyn ToSql],
) -> Result<Vec<T>, JournalError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let record = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        records.push(serde_json::from_str(record).map_err(|error| {
            let id = row.get::<_, String>(0).unwrap_or_default();
            JournalError::Corrupt(format!("the record of the {kind} {id}: {error}"))
        })?);
    }
    Ok(records)
}
