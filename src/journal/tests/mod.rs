//! The journal on real files: records, commits, refusals.

mod crash;
mod fixture;
pub(crate) mod sample;
mod torn;

use super::{Batch, Journal, JournalError, OperationQuery, Rebuild, sibling};
use crate::model::ids::{ImageId, OperationId, RequestId};
use crate::model::maintenance::Maintenance;
use crate::model::operation::{Operation, OperationState};
use crate::model::time::Timestamp;
use rusqlite::Connection;
use sample::{ended, image, open, operation, place, vm};
use std::collections::HashSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;

#[test]
fn a_reopened_journal_holds_what_was_recorded() {
    let (_dir, path) = place();
    let (journal, empty) = open(&path);
    assert!(empty.vms.is_empty() && empty.images.is_empty() && empty.live_operations.is_empty());
    assert_eq!(empty.revision, 0);

    let (live, past) = (operation(20), ended(10, 15));
    let (one, mut two, gone) = (vm(live.id), vm(past.id), vm(past.id));
    let (kept, dropped) = (image(), image());
    journal
        .commit(
            Batch::new()
                .put_vm(&one)
                .put_vm(&two)
                .put_vm(&gone)
                .put_image(&kept)
                .put_image(&dropped)
                .put_operation(&live)
                .put_operation(&past)
                .put_revision(7),
        )
        .unwrap();
    two.generation = 2;
    journal
        .commit(
            Batch::new()
                .put_vm(&two)
                .delete_vm(gone.id)
                .delete_image(dropped.id)
                .put_revision(3),
        )
        .unwrap();
    assert_eq!(journal.integrity_check().unwrap(), Vec::<String>::new());
    drop(journal);

    let (journal, loaded) = open(&path);
    let mut expected = vec![one, two];
    expected.sort_by_key(|vm| vm.id);
    assert_eq!(loaded.vms, expected);
    assert_eq!(loaded.images, [kept]);
    assert_eq!(loaded.live_operations, [live]);
    assert_eq!((loaded.epoch, loaded.revision), (empty.epoch, 7));
    assert_eq!(journal.operation(past.id).unwrap(), Some(past));
}

#[test]
fn a_new_journal_says_so_until_it_is_told_what_became_of_the_old_one() {
    let (_dir, path) = place();
    for _ in 0..2 {
        let (journal, loaded) = open(&path);
        assert_eq!(loaded.rebuild, Some(Rebuild::Pending));
        // Other batches don't change it.
        journal.commit(Batch::new().put_revision(1)).unwrap();
    }
    let done = Rebuild::Done {
        time: Timestamp(7),
        unread_pools: vec!["fast".to_owned()],
    };
    for told in [Some(done), None] {
        let (journal, _) = open(&path);
        let batch = Batch::new().put_rebuild(told.as_ref());
        journal.commit(batch).unwrap();
        drop(journal);
        assert_eq!(open(&path).1.rebuild, told);
    }
}

#[test]
fn the_hosts_maintenance_is_kept_until_it_ends() {
    let (_dir, path) = place();
    let begun = |message: &str| {
        Some(Maintenance {
            message: message.to_owned(),
            since: Timestamp(7),
        })
    };
    assert_eq!(open(&path).1.maintenance, None);
    for told in [begun("new disks"), begun(""), None] {
        let (journal, _) = open(&path);
        let batch = Batch::new().put_maintenance(told.as_ref());
        journal.commit(batch).unwrap();
        drop(journal);
        assert_eq!(open(&path).1.maintenance, told);
    }
}

#[test]
fn a_batch_that_contradicts_the_records_leaves_nothing_of_itself() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let first = operation(1);
    journal.commit(Batch::new().put_operation(&first)).unwrap();
    let mut second = operation(2);
    second.request_id = first.request_id;
    let new = vm(second.id);
    let error = journal
        .commit(Batch::new().put_vm(&new).put_operation(&second))
        .unwrap_err();
    assert!(matches!(error, JournalError::Conflict(_)), "{error:?}");
    drop(journal);
    let (_, loaded) = open(&path);
    assert!(loaded.vms.is_empty());
    assert_eq!(loaded.live_operations, [first]);
}

#[test]
fn a_journal_is_shared_between_threads() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let journal = &journal;
            scope.spawn(move || {
                let mine = operation(number);
                journal.commit(Batch::new().put_operation(&mine)).unwrap();
                assert_eq!(journal.operation(mine.id).unwrap(), Some(mine));
            });
        }
    });
}

/// Keeps the writer busy until the returned sender is dropped.
fn hold_writer(journal: &Journal) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (holding, held) = mpsc::channel();
    journal.submit(
        Batch::new().put_revision(1),
        Box::new(move |result| {
            result.unwrap();
            holding.send(()).unwrap();
            released.recv().unwrap_err();
        }),
    );
    held.recv().unwrap();
    release
}

#[test]
fn all_that_waits_is_made_durable_by_one_commit() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let release = hold_writer(&journal);
    let before = journal.commits();
    let (answer, answers) = mpsc::channel();
    for number in 0..100 {
        let answer = answer.clone();
        journal.submit(
            Batch::new().put_operation(&operation(number)),
            Box::new(move |result| answer.send((number, result)).unwrap()),
        );
    }
    drop((release, answer));
    let order: Vec<u64> = answers
        .iter()
        .map(|(number, result)| {
            result.unwrap();
            number
        })
        .collect();
    assert_eq!(order, (0..100).collect::<Vec<_>>());
    assert_eq!(journal.commits() - before, 1);
    assert_eq!(journal.batches(), 101);
    drop(journal);
    assert_eq!(open(&path).1.live_operations.len(), 100);
}

#[test]
fn a_bad_batch_does_not_fail_those_that_wait_with_it() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let good: Vec<Operation> = (0..10).map(operation).collect();
    let mut bad = operation(99);
    bad.request_id = good[4].request_id;
    let release = hold_writer(&journal);
    let (answer, answers) = mpsc::channel();
    let mut submit = |operation: &Operation| {
        let (id, answer) = (operation.id, answer.clone());
        journal.submit(
            Batch::new().put_operation(operation),
            Box::new(move |result| answer.send((id, result)).unwrap()),
        );
    };
    good[..6].iter().for_each(&mut submit);
    submit(&bad);
    good[6..].iter().for_each(&mut submit);
    drop((release, answer));
    for (id, result) in answers {
        match result {
            Ok(()) => assert_ne!(id, bad.id),
            Err(JournalError::Conflict(_)) => assert_eq!(id, bad.id),
            Err(error) => panic!("{error:?}"),
        }
    }
    drop(journal);
    assert_eq!(open(&path).1.live_operations, good);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let release = hold_writer(&journal);
    let (answer, answers) = mpsc::channel();
    for _ in 0..=super::QUEUE {
        let answer = answer.clone();
        journal.submit(
            Batch::new().put_revision(2),
            Box::new(move |result| answer.send(result).unwrap()),
        );
    }
    // Nothing has been written, so the first answer is the refusal.
    let refused = answers.recv().unwrap();
    assert!(
        matches!(refused, Err(JournalError::Overloaded)),
        "{refused:?}"
    );
    drop((release, answer));
    assert!(answers.iter().all(|result| result.is_ok()));
}

#[test]
fn operations_are_listed_newest_first_page_by_page() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    // Three at each time, so that the id decides within a time.
    let mut all: Vec<Operation> = (0..30).map(|n| operation(n / 3)).collect();
    for (index, operation) in all.iter_mut().enumerate() {
        if index % 2 == 0 {
            operation.state = OperationState::Failed;
            operation.end_time = Some(Timestamp(100));
        }
        if index % 5 == 0 {
            operation.image_id = Some(ImageId::random());
        }
    }
    let batch = all.iter().fold(Batch::new(), Batch::put_operation);
    journal.commit(batch).unwrap();
    all.sort_by_key(|operation| std::cmp::Reverse((operation.create_time, operation.id)));

    let mut listed: Vec<Operation> = Vec::new();
    loop {
        let before = listed.last().map(|last| (last.create_time, last.id));
        let query = OperationQuery {
            before,
            limit: 7,
            ..OperationQuery::default()
        };
        let page = journal.operations(&query).unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert_eq!(listed, all);

    let find = |query: OperationQuery| {
        let limit = 100;
        journal
            .operations(&OperationQuery { limit, ..query })
            .unwrap()
    };
    let one = &all[3];
    for query in [
        OperationQuery {
            vm_id: one.vm_id,
            ..OperationQuery::default()
        },
        OperationQuery {
            request_id: one.request_id,
            ..OperationQuery::default()
        },
    ] {
        assert_eq!(find(query), std::slice::from_ref(one));
    }
    let by_image = all.iter().find(|operation| operation.image_id.is_some());
    let image_id = by_image.unwrap().image_id;
    let query = OperationQuery {
        image_id,
        ..OperationQuery::default()
    };
    assert_eq!(find(query).iter().collect::<Vec<_>>(), [by_image.unwrap()]);
    let states = vec![OperationState::Failed, OperationState::Cancelled];
    let failed = find(OperationQuery {
        states,
        ..OperationQuery::default()
    });
    assert_eq!(failed.len(), 15);
    assert!(
        failed
            .iter()
            .all(|operation| operation.state == OperationState::Failed)
    );

    let by_request = journal.operation_by_request(one.request_id.unwrap());
    assert_eq!(by_request.unwrap().as_ref(), Some(one));
    assert_eq!(journal.operation(OperationId::random()).unwrap(), None);
    assert_eq!(
        journal.operation_by_request(RequestId::random()).unwrap(),
        None
    );
}

#[test]
fn pruning_forgets_what_ended_long_ago_and_nothing_that_is_needed() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let old: Vec<Operation> = (0..1200).map(|n| ended(n, n)).collect();
    let (maker, asked_for, recent, live) = (ended(0, 1), ended(0, 1), ended(0, 5000), operation(0));
    let made = vm(maker.id);
    let batch = old.iter().fold(Batch::new(), Batch::put_operation);
    let batch = [&maker, &asked_for, &recent, &live]
        .into_iter()
        .fold(batch, Batch::put_operation)
        .put_vm(&made);
    journal.commit(batch).unwrap();

    let keep = HashSet::from([asked_for.id]);
    assert_eq!(
        journal.prune_operations(Timestamp(5000), &keep).unwrap(),
        1200
    );
    assert_eq!(journal.prune_operations(Timestamp(5000), &keep).unwrap(), 0);
    for operation in [&maker, &asked_for, &recent, &live] {
        assert!(journal.operation(operation.id).unwrap().is_some());
    }
    // Its request id is free again.
    let again = Operation {
        request_id: old[0].request_id,
        ..operation(6000)
    };
    journal.commit(Batch::new().put_operation(&again)).unwrap();
    // Once its VM's record is gone, the maker may go too.
    journal.commit(Batch::new().delete_vm(made.id)).unwrap();
    assert_eq!(journal.prune_operations(Timestamp(5000), &keep).unwrap(), 1);
    assert_eq!(journal.operation(maker.id).unwrap(), None);
}

#[test]
fn only_the_owner_can_read_the_files() {
    let (_dir, path) = place();
    drop(open(&path));
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let (journal, _) = open(&path);
    journal.commit(Batch::new().put_revision(1)).unwrap();
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mode = std::fs::metadata(sibling(&path, suffix))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

#[test]
fn a_second_daemon_is_refused_until_the_first_has_gone() {
    let (_dir, path) = place();
    let first = open(&path);
    let error = Journal::open(&path).unwrap_err();
    assert!(
        matches!(&error, JournalError::InUse(at) if *at == path),
        "{error:?}"
    );
    drop(first);
    drop(open(&path));
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let (_dir, path) = place();
    drop(open(&path));
    let newer = Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let before = std::fs::read(&path).unwrap();
    let error = Journal::open(&path).unwrap_err();
    assert!(
        matches!(
            error,
            JournalError::Newer {
                found: 99,
                known: 2
            }
        ),
        "{error:?}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn files_that_are_no_journal_are_refused_and_left_alone() {
    let (dir, path) = place();
    std::fs::write(
        &path,
        "precious text, and more than a header of it\n".repeat(40),
    )
    .unwrap();
    let other = dir.path().join("other.db");
    let connection = Connection::open(&other).unwrap();
    connection
        .execute_batch("CREATE TABLE theirs (id INTEGER)")
        .unwrap();
    drop(connection);
    for path in [&path, &other] {
        std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        let before = std::fs::read(path).unwrap();
        let error = Journal::open(path).unwrap_err();
        assert!(
            matches!(&error, JournalError::Foreign(at) if at == path),
            "{error:?}"
        );
        assert_eq!(std::fs::read(path).unwrap(), before);
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}

#[test]
fn a_record_that_cannot_be_understood_is_named() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let bad = vm(OperationId::random());
    journal.commit(Batch::new().put_vm(&bad)).unwrap();
    drop(journal);
    let connection = Connection::open(&path).unwrap();
    connection
        .execute("UPDATE vms SET record = '{\"id\": 7}'", [])
        .unwrap();
    drop(connection);
    let error = Journal::open(&path).unwrap_err();
    assert!(matches!(error, JournalError::Corrupt(_)), "{error:?}");
    assert!(error.to_string().contains(&bad.id.to_string()), "{error}");
}
