//! The journal's file: `kvmlet journal` on sound, damaged and living ones, and the
//! daemon on one that was torn.

use crate::support::api::{Start, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use kvmlet::proto::v1::*;
use rusqlite::Connection;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tonic::Code;

const V1: &str = include_str!("../fixtures/journal/v1.sql");

#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }
}

/// Runs `kvmlet journal` on a file.
fn journal(words: &[&str], path: &Path) -> Ended {
    #[allow(clippy::disallowed_methods)] // the command under test, as a person runs it
    let output = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(words)
        .arg("--path")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn check(path: &Path) -> Ended {
    journal(&["journal", "check"], path)
}

/// A journal of version 1 with every kind of record, changed by some SQL.
fn fixture(change: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a journal?.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(V1).unwrap();
    connection.execute_batch(change).unwrap();
    // As the daemon leaves it.
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .unwrap();
    (dir, path)
}

/// Every file of a directory with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn a_sound_journal_has_no_problems_and_is_not_changed_by_looking() {
    let (dir, path) = fixture("");
    let before = files(dir.path());
    let ended = check(&path);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        ended.lines(),
        [
            "schema 1 (the daemon brings it to 2 when it starts), 20 VMs, 8 images, 103 operations, 23 of them unfinished"
        ]
    );
    let ended = journal(&["-o", "json", "journal", "check"], &path);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&told["schema"], &told["vms"]), (&1.into(), &20.into()));
    assert_eq!(told["problems"], Value::Array(Vec::new()));

    let export = || journal(&["journal", "export"], &path);
    let ended = export();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for line in ended.lines() {
        let object: Value = serde_json::from_str(line).unwrap();
        *kinds
            .entry(object["kind"].as_str().unwrap().to_owned())
            .or_default() += 1;
        if object["kind"] != "journal" {
            assert_eq!(object["id"], object["record"]["id"]);
        }
    }
    let expected = [("image", 8), ("journal", 1), ("operation", 103), ("vm", 20)];
    assert_eq!(
        kinds,
        expected
            .map(|(kind, count)| (kind.to_owned(), count))
            .into()
    );
    assert_eq!(export().stdout, ended.stdout, "the same each time");
    assert_eq!(files(dir.path()), before, "nothing was written");
}

#[test]
fn everything_that_is_wrong_is_told_on_a_line_of_its_own() {
    // Each wrong thing, and what is told of it.
    let wrongs = [
        (
            "UPDATE vms SET record = '{\"id\": 7}' WHERE id LIKE '%01'",
            "vm 10010000-0000-4000-8000-000000000001: the record can't be read",
        ),
        (
            "DELETE FROM operations WHERE id = '10050000-0000-4000-8000-000000000001'",
            "the operation 10050000-0000-4000-8000-000000000001 that made it is not recorded",
        ),
        (
            "UPDATE vms SET record = replace(record, '10030000-0000-4000-8000-00000000000b', '10030000-0000-4000-8000-000000000001')",
            "its volume 10030000-0000-4000-8000-000000000001 is that of vm",
        ),
        (
            "UPDATE vms SET record = replace(record, '10040000-0000-4000-8000-000000000002', '10040000-0000-4000-8000-000000000003')",
            "its network interface 10040000-0000-4000-8000-000000000003 is that of vm",
        ),
        (
            "DELETE FROM images WHERE id = '10020000-0000-4000-8000-000000000002'",
            "the image 10020000-0000-4000-8000-000000000002 of its volume",
        ),
        (
            "UPDATE operations SET state = 'succeeded' WHERE state = 'running'",
            "column state contradicts the record",
        ),
        (
            "UPDATE operations SET end_time = 1 WHERE end_time IS NULL",
            "column end_time contradicts the record",
        ),
        (
            "UPDATE vms SET created_by = id",
            "column created_by contradicts the record",
        ),
        (
            "DELETE FROM vms WHERE record LIKE '%\"life\":\"making\"%'",
            "is not recorded",
        ),
        (
            "DELETE FROM operations WHERE record LIKE '%\"type\":\"create_vm\"%' AND end_time IS NULL",
            "is being made by no operation",
        ),
        (
            "DELETE FROM operations WHERE image_id IS NOT NULL AND end_time IS NULL",
            "no operation imports or deletes it",
        ),
        (
            "DROP INDEX operations_request;
             UPDATE operations SET request_id = '10080000-0000-4000-8000-000000000001',
                 record = json_set(record, '$.request_id', '10080000-0000-4000-8000-000000000001')
                 WHERE id LIKE '10050000%'",
            "its request id is that of operation",
        ),
        (
            "DROP INDEX operations_live",
            "schema: operations_live is not as version 1 has it",
        ),
        (
            "DELETE FROM meta WHERE name = 'epoch'",
            "epoch can't be read",
        ),
        (
            "UPDATE meta SET value = -1 WHERE name = 'revision'",
            "revision can't be read",
        ),
        (
            "UPDATE meta SET value = 'maybe' WHERE name = 'rebuild'",
            "the state of its rebuild",
        ),
        (
            "INSERT INTO meta (name, value) VALUES ('maintenance', 'maybe')",
            "the state of its maintenance",
        ),
    ];
    for (wrong, told) in wrongs {
        let (dir, path) = fixture(wrong);
        let before = files(dir.path());
        let ended = check(&path);
        assert_eq!(ended.code, Some(1), "{wrong}: {ended:?}");
        assert!(
            ended.lines().iter().any(|line| line.contains(told)),
            "{wrong}: {}",
            ended.stdout
        );
        assert!(ended.stderr.contains("problem"), "{}", ended.stderr);
        assert_eq!(files(dir.path()), before);
    }
}

#[test]
fn a_damaged_file_is_told_and_read_as_far_as_it_goes() {
    let (dir, path) = fixture("");
    let whole = fs::read(&path).unwrap();
    let pages = whole.len() / 4096;
    // The head of each page is what says how to read it.
    let (mut told, mut tried) = (0, 0);
    // The first ones are the roots of the tables and indices.
    for page in (1..16).chain((16..pages).step_by(9)) {
        tried += 1;
        let mut damaged = whole.clone();
        for byte in &mut damaged[page * 4096..page * 4096 + 16] {
            *byte ^= 0xff;
        }
        fs::write(&path, &damaged).unwrap();
        let ended = check(&path);
        assert!(matches!(ended.code, Some(0 | 1)), "page {page}: {ended:?}");
        told += usize::from(ended.code == Some(1));
        let export = journal(&["journal", "export"], &path);
        assert!(
            matches!(export.code, Some(0 | 1)),
            "page {page}: {export:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), damaged, "nothing was repaired");
    }
    // What lies in the middle of a long record can be any text.
    assert!(told > 15, "{told} of {tried} damaged pages are told");

    for length in [100, 4096, whole.len() / 2, whole.len() - 4096] {
        fs::write(&path, &whole[..length]).unwrap();
        let ended = check(&path);
        assert_eq!(ended.code, Some(1), "cut at {length}: {ended:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_journal_or_a_newer_one_is_said_to_be_so() {
    let (dir, path) = fixture("PRAGMA user_version = 99");
    let ended = check(&path);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("schema 99") && ended.stderr.contains("newer"),
        "{ended:?}"
    );
    let missing = dir.path().join("missing.db");
    let ended = check(&missing);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(!missing.exists(), "nothing is made");
    let text = dir.path().join("text");
    fs::write(&text, "precious text\n".repeat(100)).unwrap();
    for words in [["journal", "check"], ["journal", "export"]] {
        let ended = journal(&words, &text);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("not a journal"), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_in_use_can_be_looked_at_and_the_daemon_does_not_notice() {
    let mut daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let path = daemon.home().join("journal.db");
    let api = daemon.api();
    let load = tokio::spawn(async move {
        for _ in 0..40 {
            api.create(&image, Start::Yes).await;
        }
    });
    let mut looks = 0;
    while !load.is_finished() {
        let (checked, exported) =
            tokio::task::block_in_place(|| (check(&path), journal(&["journal", "export"], &path)));
        assert_eq!(checked.code, Some(0), "{checked:?}");
        assert_eq!(exported.code, Some(0), "{exported:?}");
        looks += 1;
    }
    load.await.unwrap();
    assert!(looks > 0);
    assert!(!daemon.log().contains("journal write failed"));
    let ended = check(&path);
    assert!(ended.stdout.contains("40 VMs, 1 images"), "{ended:?}");

    // Killed, it leaves its log, and what is only in that is read, too.
    daemon.kill9();
    let log = daemon.home().join("journal.db-wal");
    let before = (fs::read(&path).unwrap(), fs::read(&log).unwrap());
    assert!(!before.1.is_empty());
    let ended = check(&path);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("40 VMs, 1 images"), "{ended:?}");
    assert_eq!((fs::read(&path).unwrap(), fs::read(&log).unwrap()), before);
    daemon.restart().await;
    assert_eq!(daemon.api().all_vms().await.len(), 40);
    daemon.stop().await;
    // The path may be found by the configuration as well.
    #[allow(clippy::disallowed_methods)] // the command under test
    let status = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(["-q", "journal", "check", "--config"])
        .arg(daemon.config())
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_does_not_start_on_a_damaged_journal_and_says_what_to_do() {
    let libvirtd = Libvirtd::start();
    // Its domains last as long as anyone is connected.
    let connection = libvirtd.connect();
    let mut daemon = Daemon::start(Setup::on(libvirtd.uri())).await;
    let image = daemon.image().await;
    let vm = daemon.api().create(&image, Start::Yes).await;
    daemon.stop().await;
    let path = daemon.home().join("journal.db");
    let mut damaged = fs::read(&path).unwrap();
    // The root page of a table.
    damaged[4096..4200].fill(0xff);
    fs::write(&path, &damaged).unwrap();
    let (code, words) = daemon.second(|text| text);
    assert_eq!(code, Some(78), "trying again does not help: {words}");
    for said in ["damaged", "kvmlet journal check", "-wal", "backup"] {
        assert!(words.contains(said), "{said}: {words}");
    }
    assert_eq!(fs::read(&path).unwrap(), damaged, "it is left as it is");

    // A log without its file is not thrown away either.
    fs::rename(&path, daemon.home().join("moved")).unwrap();
    let log = daemon.home().join("journal.db-wal");
    fs::write(&log, "what may be the only copy").unwrap();
    let (code, words) = daemon.second(|text| text);
    assert_eq!(code, Some(78), "{words}");
    assert!(words.contains("journal.db-wal is there"), "{words}");
    assert!(log.exists() && !path.exists());
    fs::remove_file(&log).unwrap();

    daemon.restart().await;
    assert_eq!(daemon.api().state(&vm).await, VmState::Running);
    assert!(Libvirtd::domain(&connection, &vm).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_on_a_torn_journal_knows_what_was_durable_and_ends_the_rest() {
    let libvirtd = Libvirtd::start();
    // Its domains last as long as anyone is connected.
    let connection = libvirtd.connect();
    let mut daemon = Daemon::start(Setup::on(libvirtd.uri())).await;
    let image = daemon.image().await;
    let known = daemon.api().create(&image, Start::Yes).await;
    let (path, log) = (
        daemon.home().join("journal.db"),
        daemon.home().join("journal.db-wal"),
    );
    let before = fs::read(&log).unwrap().len();
    let request = CreateVmRequest {
        request_id: crate::support::api::id(),
        start: true,
        ..small(&image)
    };
    let api = daemon.api();
    let made = api.done(api.vms().create_vm(request.clone()).await).await;
    daemon.kill9();
    let (main, whole) = (fs::read(&path).unwrap(), fs::read(&log).unwrap());
    assert!(whole.len() > before, "it was written to the end of the log");
    let process = Libvirtd::domain(&connection, &made.vm_id).unwrap().id();

    let sectors: Vec<usize> = (before..=whole.len()).step_by(512).collect();
    let mut seen = [0; 2];
    // A dozen of them, the last one among them.
    for cut in sectors.iter().rev().step_by(sectors.len().div_ceil(12)) {
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(daemon.home().join(format!("journal.db{suffix}")));
        }
        fs::write(&path, &main).unwrap();
        fs::write(&log, &whole[..*cut]).unwrap();
        daemon.restart().await;
        let api = daemon.api();
        assert_eq!(api.state(&known).await, VmState::Running);
        let get = GetOperationRequest {
            operation_id: made.id.clone(),
        };
        match api.operations().get_operation(get).await {
            // It was durable, and goes on: all of it is done already.
            Ok(_) => {
                let ended = api.ended(&made.id).await;
                assert_eq!(ended.state(), OperationState::Succeeded, "cut at {cut}");
                assert_eq!(api.state(&made.vm_id).await, VmState::Running);
                let again = api.vms().create_vm(request.clone()).await.unwrap();
                assert_eq!(again.get_ref().id, made.id, "the same request");
                seen[1] += 1;
            }
            // It was not: its domain is nobody's, is told, and is not touched.
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound);
                let vm = api.vm(&made.vm_id).await.unwrap_err();
                assert_eq!(vm.code(), Code::NotFound);
                seen[0] += 1;
            }
        }
        let found = Libvirtd::domain(&connection, &made.vm_id).unwrap();
        assert_eq!(found.id(), process, "its guest went on, cut at {cut}");
        daemon.kill9();
        let ended = check(&path);
        assert_eq!(ended.code, Some(0), "cut at {cut}: {ended:?}");
    }
    println!(
        "{} cuts: not there {}, there {}",
        seen[0] + seen[1],
        seen[0],
        seen[1]
    );
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
