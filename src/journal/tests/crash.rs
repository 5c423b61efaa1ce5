//! The journal when the daemon is killed and when the disk is full.

use super::sample::{image, open, operation, place, vm};
use crate::journal::{Batch, Journal, JournalError, sibling};
use crate::model::ids::{ImageId, OperationId};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

#[test]
fn a_copy_of_the_files_taken_while_it_is_open_is_complete() {
    let (dir, path) = place();
    let (journal, _) = open(&path);
    let recorded = vm(OperationId::random());
    journal.commit(Batch::new().put_vm(&recorded)).unwrap();
    // What the disk holds if the power fails now: no close, no checkpoint.
    let copy = dir.path().join("copy.db");
    for suffix in ["", "-wal"] {
        std::fs::copy(sibling(&path, suffix), sibling(&copy, suffix)).unwrap();
    }
    assert_eq!(open(&copy).1.vms, [recorded]);
}

/// Tells the child of the next test where to write.
const VICTIM: &str = "KVMLET_TEST_JOURNAL";

fn write_until_killed(path: &Path) -> ! {
    let (journal, _) = open(path);
    let mut out = std::io::stdout().lock();
    for number in 0.. {
        let (operation, image) = (operation(number), image());
        let batch = Batch::new().put_operation(&operation).put_image(&image);
        journal.commit(batch).unwrap();
        writeln!(out, "durable {} {}", operation.id, image.id).unwrap();
        out.flush().unwrap();
    }
    unreachable!("there are many numbers")
}

#[test]
fn what_was_answered_before_a_kill_is_there_after_it() {
    // The child is this very test again, with somewhere to write.
    if let Some(path) = std::env::var_os(VICTIM) {
        write_until_killed(Path::new(&path));
    }
    let (_dir, path) = place();
    let mut acknowledged: Vec<(OperationId, ImageId)> = Vec::new();
    for round in 1..=3 {
        #[allow(clippy::disallowed_methods)] // this very test program, to be killed
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("journal::tests::crash::what_was_answered_before_a_kill_is_there_after_it")
            .args(["--exact", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answered = || {
            let line = lines.next()?.unwrap();
            let words = line.split_once("durable ")?.1.split_once(' ')?;
            Some((words.0.parse().unwrap(), words.1.parse().unwrap()))
        };
        let mut seen = 0;
        while seen < 20 * round {
            if let Some(ids) = answered() {
                acknowledged.push(ids);
                seen += 1;
            } else {
                assert!(
                    child.try_wait().unwrap().is_none(),
                    "the child ended by itself"
                );
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said between the last look and its death counts too.
        while let Some(ids) = answered() {
            acknowledged.push(ids);
        }
    }
    let (journal, loaded) = open(&path);
    let operations: HashSet<_> = loaded.live_operations.iter().map(|o| o.id).collect();
    let images: HashSet<_> = loaded.images.iter().map(|i| i.id).collect();
    for (operation, image) in &acknowledged {
        assert!(operations.contains(operation) && images.contains(image));
    }
    // Batches are whole: as many of one kind as of the other.
    assert_eq!(operations.len(), images.len());
    assert_eq!(journal.integrity_check().unwrap(), Vec::<String>::new());
}

/// A file system of its own, unmounted when it goes.
struct SmallDisk(TempDir);

impl SmallDisk {
    #[allow(clippy::disallowed_methods)] // mount(8): a test has no other way to fill a disk
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "kvmlet-test"])
            .arg(dir.path())
            .status()
            .expect("mount(8) is installed");
        assert!(mounted.success(), "this test mounts a tmpfs and needs root");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    #[allow(clippy::disallowed_methods)] // umount(8)
    fn drop(&mut self) {
        // Lazily: a child that another test is just starting may still hold
        // copies of this process's files.
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status()
            .is_ok_and(|status| status.success());
        assert!(
            unmounted || std::thread::panicking(),
            "{} stays mounted",
            self.0.path().display()
        );
    }
}

/// Fills the file system that `path` is on.
fn fill(path: &Path) {
    let mut filler = std::fs::File::create(path).unwrap();
    for size in [4096, 1] {
        while filler.write_all(&vec![0; size]).is_ok() {}
    }
}

#[test]
fn a_full_disk_fails_batches_and_room_heals_the_journal() {
    let disk = SmallDisk::new();
    let path = disk.0.path().join("journal.db");
    let filler = disk.0.path().join("filler");
    let (journal, _) = open(&path);
    let before = vm(OperationId::random());
    journal.commit(Batch::new().put_vm(&before)).unwrap();
    fill(&filler);
    // The log may still have room in its last blocks.
    let mut durable = vec![before];
    let error = loop {
        let next = vm(OperationId::random());
        match journal.commit(Batch::new().put_vm(&next)) {
            Ok(()) => durable.push(next),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, JournalError::Full(_)), "{error:?}");
    let again = journal.commit(Batch::new().put_vm(&vm(OperationId::random())));
    assert!(matches!(again, Err(JournalError::Full(_))), "{again:?}");
    // Reading goes on.
    assert_eq!(journal.operation(OperationId::random()).unwrap(), None);

    std::fs::remove_file(&filler).unwrap();
    let after = vm(OperationId::random());
    journal.commit(Batch::new().put_vm(&after)).unwrap();
    durable.push(after);
    drop(journal);

    let (journal, loaded) = open(&path);
    durable.sort_by_key(|vm| vm.id);
    assert_eq!(loaded.vms, durable);
    assert_eq!(journal.integrity_check().unwrap(), Vec::<String>::new());
    drop(journal);
    drop(disk);
}

#[test]
fn a_journal_on_a_full_disk_says_so() {
    let disk = SmallDisk::new();
    fill(&disk.0.path().join("filler"));
    let error = Journal::open(&disk.0.path().join("journal.db")).unwrap_err();
    assert!(matches!(error, JournalError::Full(_)), "{error:?}");
}
