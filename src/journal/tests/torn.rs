//! The last write to the journal, cut anywhere: what was answered before is whole,
//! and the last batch is whole or absent.
//!
//! Power that fails while a write is at work leaves any part of it on the disk: it
//! ends early, or it is as long as it was to be and holds zeroes or anything else.
//! Each 512 bytes is where a disk may stop.

use super::super::{Batch, Journal, sibling};
use super::sample::{ended, image, open, operation, place, vm};
use crate::journal::Loaded;
use crate::model::operation::Operation;
use std::path::{Path, PathBuf};

/// What a disk may stop at.
const SECTOR: usize = 512;

/// What is behind the last byte that reached the disk.
#[derive(Debug, Clone, Copy)]
enum Tail {
    /// The file is shorter.
    Missing,
    /// The file has its length, and nothing was written.
    Zeroes,
    /// Whatever was on the disk before.
    Garbage,
}

impl Tail {
    const ALL: [Self; 3] = [Self::Missing, Self::Zeroes, Self::Garbage];

    fn of(self, whole: &[u8], cut: usize) -> Vec<u8> {
        let mut torn = whole[..cut].to_vec();
        let rest = whole.len() - cut;
        match self {
            Self::Missing => {}
            Self::Zeroes => torn.resize(whole.len(), 0),
            // The same for each run: a failure can be looked at again.
            Self::Garbage => torn.extend((0..rest).scan(0x9e37_79b9_u32, |seed, _| {
                *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Some(seed.to_be_bytes()[0])
            })),
        }
        torn
    }
}

/// The parts of a journal's file, as a disk holds them.
#[derive(Clone)]
struct Files {
    main: Vec<u8>,
    log: Vec<u8>,
}

impl Files {
    fn read(path: &Path) -> Self {
        Self {
            main: std::fs::read(path).unwrap(),
            log: std::fs::read(sibling(path, "-wal")).unwrap_or_default(),
        }
    }

    /// Opens a journal of these files in a new directory.
    fn open(&self) -> (tempfile::TempDir, PathBuf, Journal, Loaded) {
        let (dir, path) = place();
        std::fs::write(&path, &self.main).unwrap();
        std::fs::write(sibling(&path, "-wal"), &self.log).unwrap();
        let (journal, loaded) = open(&path);
        (dir, path, journal, loaded)
    }
}

/// A batch with a VM, an image and an operation, large enough for many pages.
fn batch(number: u64) -> (Operation, Batch) {
    let operation = operation(number);
    let mut vm = vm(operation.id);
    vm.description = "d".repeat(4_000);
    let batch = Batch::new()
        .put_vm(&vm)
        .put_image(&image())
        .put_operation(&operation)
        .put_revision(number);
    (operation, batch)
}

/// How many batches are whole; fails if one is half there.
fn whole(loaded: &Loaded, journal: &Journal, batches: &[Operation]) -> usize {
    assert_eq!(journal.integrity_check().unwrap(), Vec::<String>::new());
    let count = loaded.live_operations.len();
    assert_eq!(loaded.vms.len(), count, "as many VMs as operations");
    assert_eq!(loaded.images.len(), count, "as many images as operations");
    assert_eq!(
        loaded.live_operations,
        batches[..count],
        "the first ones, in order"
    );
    assert_eq!(loaded.revision, u64::try_from(count).unwrap());
    for operation in &loaded.live_operations {
        assert!(loaded.vms.iter().any(|vm| vm.created_by == operation.id));
    }
    count
}

#[test]
fn a_log_cut_at_any_sector_of_its_last_batch_has_that_batch_whole_or_not_at_all() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let mut batches = Vec::new();
    for number in 1..=5 {
        let (operation, batch) = batch(number);
        journal.commit(batch).unwrap();
        batches.push(operation);
    }
    let before = Files::read(&path);
    let (last, changes) = batch(6);
    journal.commit(changes).unwrap();
    batches.push(last);
    // As the disk has it if the power fails now: nothing was closed.
    let after = Files::read(&path);
    drop(journal);
    assert_eq!(before.main, after.main, "only the log was written");
    assert!(after.log.starts_with(&before.log) && after.log.len() > before.log.len());

    let mut cuts = 0;
    for cut in (before.log.len()..=after.log.len()).step_by(SECTOR) {
        for tail in Tail::ALL {
            let torn = Files {
                log: tail.of(&after.log, cut),
                ..after.clone()
            };
            let (_dir, path, journal, loaded) = torn.open();
            let found = whole(&loaded, &journal, &batches);
            let complete = cut == after.log.len();
            assert_eq!(
                found,
                if complete { 6 } else { 5 },
                "cut at {cut}, {tail:?}"
            );
            // It goes on from there, and what it writes now is found again.
            let (next, changes) = batch(u64::try_from(found).unwrap() + 1);
            journal.commit(changes).unwrap();
            drop(journal);
            let again = [&batches[..found], &[next]].concat();
            let (journal, loaded) = open(&path);
            assert_eq!(whole(&loaded, &journal, &again), found + 1);
            cuts += 1;
        }
    }
    println!("{cuts} cuts, {cuts} ok");
    assert!(
        cuts > 60,
        "the last batch takes more than a few pages: {cuts}"
    );
}

#[test]
fn a_file_cut_at_any_sector_while_its_log_is_folded_into_it_loses_nothing() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let mut batches = Vec::new();
    for number in 1..=6 {
        let (operation, batch) = batch(number);
        journal.commit(batch).unwrap();
        batches.push(operation);
    }
    let before = Files::read(&path);
    // Closing writes the pages of the log into the file, and removes the log when
    // that is on the disk.
    drop(journal);
    let folded = Files::read(&path);
    assert!(folded.log.is_empty() && folded.main.len() > before.main.len());

    let mut cuts = 0;
    for cut in (0..=folded.main.len()).step_by(SECTOR) {
        // Pages that are not written yet are as they were.
        let mut mixed = folded.main[..cut].to_vec();
        mixed.extend(before.main.get(cut..).unwrap_or_default());
        for main in [mixed.clone(), {
            let mut longer = mixed;
            longer.resize(folded.main.len(), 0);
            longer
        }] {
            let torn = Files {
                main,
                log: before.log.clone(),
            };
            let (_dir, _, journal, loaded) = torn.open();
            assert_eq!(whole(&loaded, &journal, &batches), 6, "cut at {cut}");
            cuts += 1;
        }
    }
    println!("{cuts} cuts, {cuts} ok");
}

#[test]
fn a_log_cut_within_a_group_of_batches_has_all_of_them_or_none() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let before = Files::read(&path);
    let release = super::hold_writer(&journal);
    let (answer, answers) = std::sync::mpsc::channel();
    for number in 0..20 {
        let answer = answer.clone();
        journal.submit(
            Batch::new().put_operation(&ended(number, number + 1)),
            Box::new(move |result| answer.send(result).unwrap()),
        );
    }
    drop((release, answer));
    assert!(answers.iter().all(|result| result.is_ok()));
    let after = Files::read(&path);
    drop(journal);
    let listed = |journal: &Journal| {
        let query = crate::journal::OperationQuery {
            limit: 100,
            ..Default::default()
        };
        journal.operations(&query).unwrap().len()
    };
    for cut in (before.log.len()..=after.log.len()).step_by(SECTOR) {
        for tail in Tail::ALL {
            let torn = Files {
                log: tail.of(&after.log, cut),
                ..after.clone()
            };
            let (_dir, _, journal, _) = torn.open();
            let found = listed(&journal);
            let complete = cut == after.log.len();
            assert_eq!(
                found,
                if complete { 20 } else { 0 },
                "cut at {cut}, {tail:?}"
            );
        }
    }
}
