//! Everything that can be wrong with a journal, told without changing anything.
//!
//! SQLite looks at the file, serde at each record, and this at what the records
//! say of one another. It says nothing about the host: whether domains and files
//! are there is the daemon's to find out.

use super::batch::{column, state_name};
use super::error::JournalError;
use super::outside::Outside;
use super::read::Rebuild;
use super::schema;
use crate::model::ids::{ImageId, NicId, OperationId, RequestId, VmId, VolumeId};
use crate::model::image::{Image, ImageState};
use crate::model::operation::{Intent, Operation};
use crate::model::vm::{Life, Vm};
use rusqlite::Row;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::path::Path;

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// The schema that the file has.
    pub schema: i64,
    /// The newest schema that this program knows; the daemon brings the file to it.
    pub newest_schema: i64,
    /// Names the journal.
    pub epoch: String,
    /// Records of VMs.
    pub vms: usize,
    /// Records of images.
    pub images: usize,
    /// Records of operations.
    pub operations: usize,
    /// Those among them that have not ended.
    pub unfinished: usize,
    /// What is wrong, a sentence each; nothing if all is well.
    pub problems: Vec<String>,
}

/// What the records say, to be compared with one another.
#[derive(Default)]
struct Records {
    vms: BTreeMap<VmId, Vm>,
    images: BTreeMap<ImageId, Image>,
    /// Every operation.
    operations: HashSet<OperationId>,
    requests: HashMap<RequestId, OperationId>,
    /// The unfinished ones.
    live: Vec<Operation>,
    /// Whether images may be unknown because their pool could not be read.
    unread_pools: bool,
}

/// Looks at everything in the journal at `path`, also while a daemon uses it.
/// Takes time in proportion to the file.
///
/// # Errors
/// If it can't be opened or is no journal, or one of a newer version. What is
/// wrong inside it is in the answer.
pub fn audit(path: &Path) -> Result<Audit, JournalError> {
    let outside = Outside::open(path)?;
    let mut audit = Audit {
        schema: outside.schema,
        newest_schema: schema::newest(),
        ..Audit::default()
    };
    audit.check_file(&outside);
    let mut records = Records::default();
    audit.check_meta(&outside, &mut records);
    audit.read_vms(&outside, &mut records);
    audit.read_images(&outside, &mut records);
    audit.read_operations(&outside, &mut records);
    audit.compare_vms(&records);
    audit.compare_images(&records);
    audit.compare_operations(&records);
    Ok(audit)
}

impl Audit {
    fn problem(&mut self, what: impl Into<String>) {
        self.problems.push(what.into());
    }

    fn check_file(&mut self, outside: &Outside) {
        match super::read::integrity_check(&outside.connection) {
            Ok(found) => self
                .problems
                .extend(found.into_iter().map(|problem| format!("file: {problem}"))),
            Err(error) => self.problem(format!("file: {error}")),
        }
        match schema::differences(&outside.connection, outside.schema) {
            Ok(found) => {
                self.problems.extend(found.into_iter().map(|name| {
                    format!("schema: {name} is not as version {} has it", outside.schema)
                }))
            }
            Err(error) => self.problem(format!("schema: {error}")),
        }
    }

    fn check_meta(&mut self, outside: &Outside, records: &mut Records) {
        use rusqlite::types::Value;
        match outside.meta("epoch") {
            Ok(Some(Value::Text(epoch))) if uuid::Uuid::try_parse(&epoch).is_ok() => {
                self.epoch = epoch;
            }
            _ => self.problem("the journal's epoch can't be read"),
        }
        if !matches!(outside.meta("revision"), Ok(Some(Value::Integer(0..)))) {
            self.problem("the journal's revision can't be read");
        }
        match outside.rebuild() {
            Ok(rebuild) => {
                records.unread_pools = matches!(
                    rebuild,
                    Some(Rebuild::Done { unread_pools, .. }) if !unread_pools.is_empty()
                );
            }
            Err(error) => self.problem(error.to_string()),
        }
        if let Err(error) = outside.maintenance() {
            self.problem(error.to_string());
        }
    }

    /// Reads the records of one table; `take` gets each row with its record, and
    /// says which of its columns don't repeat it.
    fn read<T: DeserializeOwned>(
        &mut self,
        outside: &Outside,
        (kind, sql): (&str, &str),
        mut take: impl FnMut(&Row<'_>, T) -> rusqlite::Result<Vec<&'static str>>,
    ) -> usize {
        let mut count = 0;
        let mut problems = Vec::new();
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = outside.connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                count += 1;
                let id = row.get::<_, String>(0).unwrap_or_default();
                let record = row.get::<_, String>(1);
                match record.map(|record| serde_json::from_str(&record)) {
                    Ok(Ok(record)) => {
                        for column in take(row, record)? {
                            problems.push(format!(
                                "{kind} {id}: column {column} contradicts the record"
                            ));
                        }
                    }
                    Ok(Err(error)) => {
                        problems.push(format!("{kind} {id}: the record can't be read: {error}"));
                    }
                    Err(error) => {
                        problems.push(format!("{kind} {id}: the record is no text: {error}"));
                    }
                }
            }
            Ok(())
        };
        if let Err(error) = read() {
            problems.push(format!("{kind} records can't all be read: {error}"));
        }
        self.problems.append(&mut problems);
        count
    }

    fn read_vms(&mut self, outside: &Outside, records: &mut Records) {
        let sql = "SELECT id, record, created_by FROM vms ORDER BY id";
        self.vms = self.read(outside, ("vm", sql), |row, vm: Vm| {
            let mut wrong = Vec::new();
            differs(&mut wrong, "id", row.get(0)?, vm.id);
            differs(&mut wrong, "created_by", row.get(2)?, vm.created_by);
            records.vms.insert(vm.id, vm);
            Ok(wrong)
        });
    }

    fn read_images(&mut self, outside: &Outside, records: &mut Records) {
        let sql = "SELECT id, record FROM images ORDER BY id";
        self.images = self.read(outside, ("image", sql), |row, image: Image| {
            let mut wrong = Vec::new();
            differs(&mut wrong, "id", row.get(0)?, image.id);
            records.images.insert(image.id, image);
            Ok(wrong)
        });
    }

    fn read_operations(&mut self, outside: &Outside, records: &mut Records) {
        let sql = "SELECT id, record, vm_id, image_id, request_id, state, create_time, end_time
                   FROM operations ORDER BY create_time, id";
        let mut twice = Vec::new();
        self.operations = self.read(outside, ("operation", sql), |row, operation: Operation| {
            let mut wrong = Vec::new();
            differs(&mut wrong, "id", row.get(0)?, operation.id);
            let optional: [(&'static str, Option<String>, Option<String>); 3] = [
                (
                    "vm_id",
                    row.get(2)?,
                    operation.vm_id.map(|id| id.to_string()),
                ),
                (
                    "image_id",
                    row.get(3)?,
                    operation.image_id.map(|id| id.to_string()),
                ),
                (
                    "request_id",
                    row.get(4)?,
                    operation.request_id.map(|id| id.to_string()),
                ),
            ];
            wrong.extend(
                optional
                    .into_iter()
                    .filter(|(_, column, record)| column != record)
                    .map(|(name, ..)| name),
            );
            differs(
                &mut wrong,
                "state",
                row.get(5)?,
                state_name(operation.state),
            );
            if row.get::<_, i64>(6)? != column(operation.create_time) {
                wrong.push("create_time");
            }
            let end: Option<i64> = row.get(7)?;
            if end != operation.end_time.map(column) || end.is_some() != operation.ended() {
                wrong.push("end_time");
            }
            if let Some(request) = operation.request_id
                && let Some(other) = records.requests.insert(request, operation.id)
            {
                twice.push(format!(
                    "operation {}: its request id is that of operation {other}, too",
                    operation.id
                ));
            }
            records.operations.insert(operation.id);
            if !operation.ended() {
                records.live.push(operation);
            }
            Ok(wrong)
        });
        self.problems.append(&mut twice);
        self.unfinished = records.live.len();
    }

    fn compare_vms(&mut self, records: &Records) {
        let mut volumes: HashMap<VolumeId, VmId> = HashMap::new();
        let mut nics: HashMap<NicId, VmId> = HashMap::new();
        for vm in records.vms.values() {
            let id = vm.id;
            if vm.root().is_none() {
                self.problem(format!("vm {id}: has no root volume"));
            }
            if !records.operations.contains(&vm.created_by) {
                self.problem(format!(
                    "vm {id}: the operation {} that made it is not recorded",
                    vm.created_by
                ));
            }
            if vm.life == Life::Making && !made_by_unfinished(records, id) {
                self.problem(format!("vm {id}: is being made by no operation"));
            }
            for volume in &vm.volumes {
                if !volume.shareable
                    && let Some(other) = volumes.insert(volume.id, id)
                {
                    self.problem(format!(
                        "vm {id}: its volume {} is that of vm {other}, too",
                        volume.id
                    ));
                }
                if let Some(image) = volume.image_id
                    && !records.images.contains_key(&image)
                    && !records.unread_pools
                {
                    self.problem(format!(
                        "vm {id}: the image {image} of its volume {} is not recorded",
                        volume.id
                    ));
                }
            }
            for nic in &vm.nics {
                if let Some(other) = nics.insert(nic.id, id) {
                    self.problem(format!(
                        "vm {id}: its network interface {} is that of vm {other}, too",
                        nic.id
                    ));
                }
            }
        }
    }

    fn compare_images(&mut self, records: &Records) {
        for image in records.images.values() {
            let id = image.id;
            if !records.operations.contains(&image.imported_by) {
                self.problem(format!(
                    "image {id}: the operation {} that imported it is not recorded",
                    image.imported_by
                ));
            }
            let at_work = records
                .live
                .iter()
                .any(|operation| operation.image_id == Some(id));
            match image.state {
                ImageState::Importing | ImageState::Deleting if !at_work => {
                    self.problem(format!("image {id}: no operation imports or deletes it"));
                }
                ImageState::Importing
                | ImageState::Deleting
                | ImageState::Ready
                | ImageState::Lost => {}
            }
        }
    }

    fn compare_operations(&mut self, records: &Records) {
        let mut holders: HashMap<VmId, usize> = HashMap::new();
        for operation in &records.live {
            let id = operation.id;
            match (operation.vm_id, operation.image_id) {
                (Some(vm), _) => {
                    if !records.vms.contains_key(&vm) {
                        self.problem(format!("operation {id}: its vm {vm} is not recorded"));
                    }
                    *holders.entry(vm).or_default() += 1;
                }
                (None, Some(image)) => {
                    if !records.images.contains_key(&image) {
                        self.problem(format!("operation {id}: its image {image} is not recorded"));
                    }
                }
                (None, None)
                    if matches!(
                        operation.intent,
                        Intent::DeleteOrphan { .. } | Intent::SetMaintenance { .. }
                    ) => {}
                (None, None) => self.problem(format!("operation {id}: is about nothing")),
            }
        }
        let mut holders: Vec<_> = holders.into_iter().collect();
        holders.sort();
        for (vm, count) in holders {
            // A forced stop may wait for the graceful one that it overtakes.
            if count > 2 {
                self.problem(format!("vm {vm}: {count} operations hold it"));
            }
        }
    }
}

fn made_by_unfinished(records: &Records, vm: VmId) -> bool {
    records.live.iter().any(|operation| {
        operation.vm_id == Some(vm) && matches!(operation.intent, Intent::CreateVm { .. })
    })
}

fn differs(
    wrong: &mut Vec<&'static str>,
    name: &'static str,
    column: String,
    record: impl Display,
) {
    if column != record.to_string() {
        wrong.push(name);
    }
}
