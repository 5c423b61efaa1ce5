//! Journals that earlier versions wrote: read, brought to the newest schema, and
//! nothing in them lost.
//!
//! `tests/fixtures/journal/v1.sql` holds every kind of record, and every value of
//! every enum in one. It is never changed: journals like it are on hosts.

use super::super::schema::{self, Migration};
use super::super::{Journal, audit};
use super::sample::{open, place};
use crate::journal::{JournalError, Rebuild};
use crate::model::ids::{OperationId, VmId};
use crate::model::image::Image;
use crate::model::lifecycle::{Resting, StateReason};
use crate::model::operation::{Intent, Operation};
use crate::model::vm::{Life, Vm};
use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const V1: &str = include_str!("../../../tests/fixtures/journal/v1.sql");

fn write_v1(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(V1).unwrap();
    connection
}

/// The records of a table: their ids with the text that they are.
fn texts(connection: &Connection, table: &str) -> Vec<(String, String)> {
    let mut statement = connection
        .prepare(&format!("SELECT id, record FROM {table} ORDER BY id"))
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

/// Asserts that everything that a record said is said again by what it was read as.
fn nothing_is_lost<T: DeserializeOwned + Serialize>(id: &str, text: &str) {
    fn covers(whole: &Value, part: &Value, at: &str) {
        match (whole, part) {
            (Value::Object(whole), Value::Object(part)) => {
                for (key, value) in part {
                    let at = format!("{at}.{key}");
                    covers(whole.get(key).unwrap_or(&Value::Null), value, &at);
                }
            }
            (Value::Array(whole), Value::Array(part)) if whole.len() == part.len() => {
                for (index, (whole, part)) in whole.iter().zip(part).enumerate() {
                    covers(whole, part, &format!("{at}[{index}]"));
                }
            }
            (whole, part) => assert_eq!(whole, part, "{at}"),
        }
    }
    let written: Value = serde_json::from_str(text).unwrap();
    let read: T = serde_json::from_str(text).unwrap_or_else(|error| {
        panic!(
            "{id} is in journals and can't be read any more (has a new field no default?): {error}"
        )
    });
    covers(&serde_json::to_value(read).unwrap(), &written, id);
}

#[test]
fn every_record_of_version_1_is_read_and_nothing_in_it_is_lost() {
    let (_dir, path) = place();
    let connection = write_v1(&path);
    for (id, text) in texts(&connection, "vms") {
        nothing_is_lost::<Vm>(&format!("vm {id}"), &text);
    }
    for (id, text) in texts(&connection, "images") {
        nothing_is_lost::<Image>(&format!("image {id}"), &text);
    }
    for (id, text) in texts(&connection, "operations") {
        nothing_is_lost::<Operation>(&format!("operation {id}"), &text);
    }
}

#[test]
fn a_journal_of_version_1_is_opened_with_the_values_that_are_in_it() {
    let (_dir, path) = place();
    drop(write_v1(&path));
    assert_eq!(audit(&path).unwrap().problems, Vec::<String>::new());
    let (journal, loaded) = open(&path);
    assert_eq!(loaded.revision, 42);
    assert!(matches!(loaded.rebuild, Some(Rebuild::Done { .. })));
    assert_eq!((loaded.vms.len(), loaded.images.len()), (20, 8));
    assert_eq!(loaded.live_operations.len(), 23);

    let id: VmId = "10010000-0000-4000-8000-000000000002".parse().unwrap();
    let vm = loaded.vms.iter().find(|vm| vm.id == id).unwrap();
    assert_eq!(vm.name, "a \"name\" <with> 'quotes'\nand \u{1F600}");
    assert_eq!(vm.labels["tier"], "wéb 'x' \"y\"");
    assert_eq!(
        (vm.generation, vm.create_time.0),
        (2, 1_700_000_001_000_001)
    );
    assert_eq!(vm.volumes[0].size.get(), u64::MAX);
    assert_eq!(vm.kept_roots().len(), 1);
    assert_eq!(
        (vm.seen.resting, vm.seen.reason),
        (Resting::Running, StateReason::Operation)
    );
    assert!(matches!(vm.life, Life::Deleted { .. }));
    let id: OperationId = "10050000-0000-4000-8000-000000000002".parse().unwrap();
    let made = journal.operation(id).unwrap().unwrap();
    assert_eq!(vm.created_by, made.id);
    assert_eq!(made.intent, Intent::CreateVm { start: false });
    assert_eq!(journal.integrity_check().unwrap(), Vec::<String>::new());
    drop(journal);

    // A second look changes nothing, nor does opening it again.
    let before = everything(&path);
    let (journal, again) = open(&path);
    drop(journal);
    assert_eq!(again.vms, loaded.vms);
    assert_eq!(again.live_operations, loaded.live_operations);
    assert_eq!(everything(&path), before);
}

fn everything(path: &Path) -> String {
    let connection = Connection::open(path).unwrap();
    let mut text = String::new();
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    text.push_str(&format!("{version}\n"));
    for table in ["vms", "images", "operations"] {
        for (id, record) in texts(&connection, table) {
            text.push_str(&format!("{table} {id} {record}\n"));
        }
    }
    text
}

/// What was in use when version 1 was: if one of these words is gone from the
/// fixture, it proves less than it says.
#[test]
fn the_fixture_has_every_value_that_version_1_could_have() {
    let mut words = BTreeSet::new();
    fn walk(value: &Value, words: &mut BTreeSet<String>) {
        match value {
            Value::String(text) => drop(words.insert(text.clone())),
            Value::Array(values) => values.iter().for_each(|value| walk(value, words)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    words.insert(key.clone());
                    walk(value, words);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let (_dir, path) = place();
    let connection = write_v1(&path);
    for table in ["vms", "images", "operations"] {
        for (_, text) in texts(&connection, table) {
            walk(&serde_json::from_str(&text).unwrap(), &mut words);
        }
    }
    let wanted = "
        making present failed deleted expunging  kvm qemu test
        stopped running paused saved crashed lost unknown
        none operation guest_shutdown destroyed start_failed paused_on_host io_error no_space
        hypervisor_busy domain_missing hypervisor_away create_failed started_on_host journal_lost
        attached kept root data qcow2 raw
        bridge libvirt_network user virtio e1000 e1000e rtl8139
        auto host_passthrough host_model maximum custom bios uefi tcg
        importing ready deleting
        create_vm update_vm delete_vm recover_vm expunge_vm start_vm stop_vm reboot_vm reset_vm
        pause_vm resume_vm save_vm set_vm_power_state replace_root_volume revert_root_volume
        import_image delete_image
        pending succeeded cancelled rolling_back done skipped undoing undone undo_failed
        vm image plan make change delete keep
        force graceful fail guest_agent acpi still_running
        OUTCOME_UNKNOWN VM_BUSY REQUEST_ID_REUSED INTERNAL";
    for word in wanted.split_whitespace() {
        assert!(words.contains(word), "{word} is not in the fixture");
    }
}

/// A later schema, as one will come: a table more, a column more, records changed.
const NEXT: Migration = "
    CREATE TABLE notes (vm_id TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT;
    ALTER TABLE vms ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
    UPDATE vms SET generation = json_extract(record, '$.generation');
    INSERT INTO notes SELECT id, json_extract(record, '$.name') FROM vms;
";

fn version(connection: &Connection) -> i64 {
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap()
}

#[test]
fn the_way_to_a_later_schema_keeps_every_record() {
    let (_dir, path) = place();
    let mut connection = write_v1(&path);
    let before: Vec<_> = ["vms", "images", "operations"]
        .map(|table| texts(&connection, table))
        .into();
    let later = [schema::MIGRATIONS, &[NEXT]].concat();
    let from = version(&connection);
    schema::migrate(&mut connection, &later, from).unwrap();
    assert_eq!(version(&connection), i64::try_from(later.len()).unwrap());
    let after: Vec<_> = ["vms", "images", "operations"]
        .map(|table| texts(&connection, table))
        .into();
    assert_eq!(after, before);
    let notes: i64 = connection
        .query_row(
            "SELECT count(*) FROM notes JOIN vms ON vms.id = vm_id WHERE generation > 0",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(notes, 20);
    // Again: nothing is left to do.
    let from = version(&connection);
    schema::migrate(&mut connection, &later, from).unwrap();
    assert_eq!(version(&connection), i64::try_from(later.len()).unwrap());
    drop(connection);
    // And this program leaves it to the one that wrote it.
    let error = Journal::open(&path).unwrap_err();
    assert!(matches!(error, JournalError::Newer { .. }), "{error:?}");
    let error = audit(&path).unwrap_err();
    assert!(matches!(error, JournalError::Newer { .. }), "{error:?}");
}

#[test]
fn a_migration_that_ends_half_way_leaves_the_older_schema() {
    // As if the agent died at each statement: what follows it fails.
    let [first, second] = [&schema::MIGRATIONS[..1], &schema::MIGRATIONS[..2]];
    let statements: Vec<&str> = schema::MIGRATIONS[1]
        .split_inclusive(';')
        .filter(|statement| !statement.trim().is_empty())
        .collect();
    for cut in 0..=statements.len() {
        let (_dir, path) = place();
        let mut connection = write_v1(&path);
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .unwrap();
        let before = schema_and_records(&connection);
        let half = format!("{} SELECT no_such_function();", statements[..cut].concat());
        let half: &'static str = half.leak();
        let later = [first, &[half]].concat();
        let from = version(&connection);
        schema::migrate(&mut connection, &later, from).unwrap_err();
        assert_eq!(version(&connection), from);
        assert_eq!(schema_and_records(&connection), before, "cut at {cut}");
        // The next start does it whole.
        schema::migrate(&mut connection, second, from).unwrap();
        assert_eq!(version(&connection), from + 1);
    }
}

#[test]
fn power_lost_before_a_migration_is_complete_leaves_the_older_schema() {
    let (dir, path) = place();
    let mut connection = write_v1(&path);
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .unwrap();
    let before = schema_and_records(&connection);
    let from = version(&connection);
    let log = super::super::sibling(&path, "-wal");
    let old_log = std::fs::metadata(&log).map_or(0, |log| log.len());
    schema::migrate(&mut connection, &schema::MIGRATIONS[..2], from).unwrap();
    let written = std::fs::read(&log).unwrap();
    let mut whole = 0;
    for cut in (usize::try_from(old_log).unwrap()..=written.len()).step_by(512) {
        let copy = dir.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::write(super::super::sibling(&copy, "-wal"), &written[..cut]).unwrap();
        let found = Connection::open(&copy).unwrap();
        if version(&found) == from {
            assert_eq!(schema_and_records(&found), before, "cut at {cut}");
        } else {
            whole += 1;
        }
        drop(found);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(super::super::sibling(&copy, suffix));
        }
    }
    assert!(whole <= 9, "only with its last page: {whole}");
}

fn schema_and_records(connection: &Connection) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for table in ["vms", "images", "operations"] {
        all.extend(texts(connection, table));
    }
    all
}
