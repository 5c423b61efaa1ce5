//! Changes that become durable together or not at all.

use super::read::Rebuild;
use crate::model::event::{Change, Position};
use crate::model::host_run::HostRun;
use crate::model::ids::{ImageId, OperationId, VmId};
use crate::model::image::Image;
use crate::model::maintenance::Maintenance;
use crate::model::operation::{Operation, OperationState};
use crate::model::time::Timestamp;
use crate::model::vm::Vm;
use rusqlite::{Connection, params, params_from_iter};
use serde::Serialize;
use uuid::Uuid;

/// Changes that become durable together or not at all, in the given order.
#[derive(Default)]
#[must_use = "a batch does nothing until it is submitted"]
pub struct Batch {
    writes: Vec<Write>,
    announcements: Vec<Announce>,
}

/// Called with the revision that an event got, once it is durable. It is called
/// from the writer's thread, in the order of the revisions: it must neither block
/// nor panic.
pub type Announce = Box<dyn FnOnce(u64) + Send>;

/// What those who have read an event hold to be true of its thing from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Names the thing.
    pub thing: String,
    /// A digest of it as it was told; `None`: it is gone, or told for the last time.
    pub digest: Option<u64>,
}

/// One change, encoded by the caller's thread to keep the writer's short.
#[derive(Debug)]
enum Write {
    PutVm {
        id: VmId,
        created_by: OperationId,
        record: String,
    },
    DeleteVm(VmId),
    PutImage {
        id: ImageId,
        record: String,
    },
    DeleteImage(ImageId),
    PutOperation(Box<OperationRow>),
    Revision(u64),
    Rebuild(Option<String>),
    Event {
        time: i64,
        record: String,
    },
    Told(Told),
    Cursor {
        sink: String,
        position: Position,
    },
    Maintenance(Option<String>),
    Agent(String),
    HostRun(String),
    Touch,
}

/// The name under which a rebuild is kept beside epoch and revision.
pub(super) const REBUILD: &str = "rebuild";
/// The name under which the host's maintenance is kept there.
pub(super) const MAINTENANCE: &str = "maintenance";
/// The name under which it is kept there what this agent's domains are marked with.
pub(super) const AGENT: &str = "agent";

/// The name under which the host's last known run is kept there.
pub(super) const HOST_RUN: &str = "host_run";

#[derive(Debug)]
struct OperationRow {
    id: String,
    vm_id: Option<String>,
    image_id: Option<String>,
    request_id: Option<String>,
    state: &'static str,
    create_time: i64,
    end_time: Option<i64>,
    record: String,
}

impl Batch {
    /// Makes an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    fn with(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }

    /// Records a VM, in place of an earlier record of it.
    pub fn put_vm(self, vm: &Vm) -> Self {
        self.with(Write::PutVm {
            id: vm.id,
            created_by: vm.created_by,
            record: encode(vm),
        })
    }

    /// Removes a VM's record; nothing if there is none.
    pub fn delete_vm(self, id: VmId) -> Self {
        self.with(Write::DeleteVm(id))
    }

    /// Records an image, in place of an earlier record of it.
    pub fn put_image(self, image: &Image) -> Self {
        self.with(Write::PutImage {
            id: image.id,
            record: encode(image),
        })
    }

    /// Removes an image's record; nothing if there is none.
    pub fn delete_image(self, id: ImageId) -> Self {
        self.with(Write::DeleteImage(id))
    }

    /// Records an operation, in place of an earlier record of it.
    pub fn put_operation(self, operation: &Operation) -> Self {
        self.with(Write::PutOperation(Box::new(OperationRow {
            id: operation.id.to_string(),
            vm_id: operation.vm_id.map(|id| id.to_string()),
            image_id: operation.image_id.map(|id| id.to_string()),
            request_id: operation.request_id.map(|id| id.to_string()),
            state: state_name(operation.state),
            create_time: column(operation.create_time),
            end_time: operation.end_time.map(column),
            record: encode(operation),
        })))
    }

    /// Raises the recorded revision to `revision`; a lower one changes nothing.
    #[cfg(test)]
    pub(super) fn put_revision(self, revision: u64) -> Self {
        self.with(Write::Revision(revision))
    }

    /// Has the writer write something that nobody reads: who waits for it learns that
    /// the disk takes writes.
    pub fn touch(self) -> Self {
        self.with(Write::Touch)
    }

    /// Records what became of the records that were missing; `None`: nothing was.
    pub fn put_rebuild(self, rebuild: Option<&Rebuild>) -> Self {
        self.with(Write::Rebuild(rebuild.map(encode)))
    }

    /// Records what this agent's domains are marked with.
    pub fn put_agent(self, agent: Uuid) -> Self {
        self.with(Write::Agent(encode(&agent)))
    }

    /// Records the run of the host's kernel, and what became of the agent in it.
    pub fn put_host_run(self, run: &HostRun) -> Self {
        self.with(Write::HostRun(encode(run)))
    }

    /// Records the host's maintenance; `None`: there is none.
    pub fn put_maintenance(self, maintenance: Option<&Maintenance>) -> Self {
        self.with(Write::Maintenance(maintenance.map(encode)))
    }

    /// Records an event, and what it tells of its thing; it gets the next revision.
    pub fn put_event(mut self, change: &Change, told: Told, announce: Announce) -> Self {
        self.announcements.push(announce);
        self.with(Write::Event {
            time: column(change.time),
            record: encode(change),
        })
        .with(Write::Told(told))
    }

    /// Records up to where a sink's receiver has acknowledged.
    pub fn put_cursor(self, sink: &str, position: Position) -> Self {
        self.with(Write::Cursor {
            sink: sink.to_owned(),
            position,
        })
    }

    /// How many events are in it.
    pub(super) fn events(&self) -> u64 {
        u64::try_from(self.announcements.len()).unwrap_or(u64::MAX)
    }

    /// Tells the revisions of its events, of which the first got `first`.
    pub(super) fn announce(self, first: u64) {
        for (revision, announce) in (first..).zip(self.announcements) {
            announce(revision);
        }
    }

    /// Carries the changes out on `connection`, whose transaction is open. Its
    /// events get the revisions after `revision`, which is brought up to the last.
    pub(super) fn apply(
        &self,
        connection: &Connection,
        revision: &mut u64,
    ) -> rusqlite::Result<()> {
        for write in &self.writes {
            write.apply(connection, revision)?;
        }
        if self.events() > 0 {
            Write::Revision(*revision).apply(connection, revision)?;
        }
        Ok(())
    }
}

impl Write {
    fn apply(&self, connection: &Connection, next: &mut u64) -> rusqlite::Result<()> {
        let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            connection.prepare_cached(sql)?.execute(values).map(drop)
        };
        match self {
            Self::PutVm {
                id,
                created_by,
                record,
            } => run(
                "INSERT INTO vms (id, created_by, record) VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET
                     created_by = excluded.created_by, record = excluded.record",
                params![id.to_string(), created_by.to_string(), record],
            ),
            Self::DeleteVm(id) => run("DELETE FROM vms WHERE id = ?1", params![id.to_string()]),
            Self::PutImage { id, record } => run(
                "INSERT INTO images (id, record) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                params![id.to_string(), record],
            ),
            Self::DeleteImage(id) => {
                run("DELETE FROM images WHERE id = ?1", params![id.to_string()])
            }
            Self::PutOperation(row) => run(
                "INSERT INTO operations
                     (id, vm_id, image_id, request_id, state, create_time, end_time, record)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET
                     vm_id = excluded.vm_id, image_id = excluded.image_id,
                     request_id = excluded.request_id, state = excluded.state,
                     create_time = excluded.create_time, end_time = excluded.end_time,
                     record = excluded.record",
                params![
                    row.id,
                    row.vm_id,
                    row.image_id,
                    row.request_id,
                    row.state,
                    row.create_time,
                    row.end_time,
                    row.record,
                ],
            ),
            // Another value each time: SQLite writes no page that stays as it is.
            Self::Touch => run(
                "INSERT INTO meta (name, value) VALUES ('touched', 1)
                 ON CONFLICT (name) DO UPDATE SET value = (value + 1) % 1000",
                &[],
            ),
            Self::Revision(revision) => run(
                "UPDATE meta SET value = max(value, ?1) WHERE name = 'revision'",
                params![number(*revision)],
            ),
            Self::Event { time, record } => {
                *next += 1;
                run(
                    "INSERT INTO events (revision, time, record) VALUES (?1, ?2, ?3)",
                    params![number(*next), time, record],
                )
            }
            Self::Told(Told {
                thing,
                digest: Some(digest),
            }) => run(
                "INSERT INTO told (thing, digest) VALUES (?1, ?2)
                 ON CONFLICT (thing) DO UPDATE SET digest = excluded.digest",
                params![thing, digest.cast_signed()],
            ),
            Self::Told(Told {
                thing,
                digest: None,
            }) => run("DELETE FROM told WHERE thing = ?1", params![thing]),
            Self::Cursor { sink, position } => run(
                "INSERT INTO cursors (sink, epoch, revision) VALUES (?1, ?2, ?3)
                 ON CONFLICT (sink) DO UPDATE SET
                     epoch = excluded.epoch, revision = excluded.revision",
                params![sink, position.epoch.to_string(), number(position.revision)],
            ),
            Self::Rebuild(state) => keep(connection, REBUILD, state.as_ref()),
            Self::Maintenance(state) => keep(connection, MAINTENANCE, state.as_ref()),
            Self::Agent(agent) => keep(connection, AGENT, Some(agent)),
            Self::HostRun(run) => keep(connection, HOST_RUN, Some(run)),
        }
    }
}

/// Keeps a value by its name beside epoch and revision; `None`: keeps none.
fn keep(connection: &Connection, name: &str, value: Option<&String>) -> rusqlite::Result<()> {
    let (sql, values) = match value {
        Some(value) => (
            "INSERT INTO meta (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            vec![name, value],
        ),
        None => ("DELETE FROM meta WHERE name = ?1", vec![name]),
    };
    let mut statement = connection.prepare_cached(sql)?;
    statement.execute(params_from_iter(values)).map(drop)
}

pub(super) fn encode<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record).expect("records have only strings as keys of their maps")
}

/// A count as a column.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A time as a column; far beyond the year 200,000 all times are alike.
pub(super) fn column(time: Timestamp) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

/// A state's name in its column.
pub(super) const fn state_name(state: OperationState) -> &'static str {
    match state {
        OperationState::Pending => "pending",
        OperationState::Running => "running",
        OperationState::Succeeded => "succeeded",
        OperationState::Failed => "failed",
        OperationState::Cancelled => "cancelled",
    }
}
