//! What a receiver that is there gets: hello, a snapshot, changes, heartbeats; and
//! again from where it was after the agent was killed.

use crate::report::ask::{describe, same_picture, settled, vm};
use crate::report::receiver::{Book, Sockets, serve, sink};
use crate::support::api::Start;
use crate::support::daemon::{Daemon, Setup};
use kvmlet::proto::v1::watch_events_response::Event;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const ACK: Duration = Duration::from_secs(30);

fn setup(more: String) -> Setup {
    Setup {
        more,
        ..Setup::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_greeted_and_gets_a_snapshot_and_then_every_change() {
    let sockets = Sockets::new();
    let (book, place) = (Arc::new(Book::default()), sockets.place("cp"));
    let _server = serve(&book, &place);
    let daemon = Daemon::start(setup(sink(&[&place], ACK))).await;
    let api = daemon.api();

    let hello = book
        .wait("hello", |known| known.hellos.first().cloned())
        .await;
    let node = api.node().await;
    assert_eq!(hello.node_id, node.id);
    assert_eq!(hello.hostname, node.hostname);
    assert_eq!(hello.kvmlet_version, node.kvmlet_version);
    assert_eq!(hello.labels, node.labels);
    assert_eq!(hello.capabilities, ["qcow2", "test"]);
    assert_eq!(hello.acknowledged, None);

    let image = daemon.image().await;
    let running = api.create(&image, Start::Yes).await;
    let stopped = api.create(&image, Start::No).await;
    let at = settled(&daemon).await;
    assert_eq!(at.epoch, hello.epoch);
    {
        let known = book.known();
        let host = &known.fleet.hosts[&node.id];
        assert!(host.vms.contains_key(&running) && host.vms.contains_key(&stopped));
        assert_eq!(known.marks().len(), 2, "one snapshot, from begin to end");
        assert!(known.marks().iter().all(|mark| !mark.forced));
        let first = known.used[0];
        assert!(
            known.used.iter().copied().eq(first..=at.revision),
            "{:?}",
            known.used
        );
    }
    same_picture(&book, &api).await;

    let heartbeat = book
        .wait("a heartbeat that knows of the VMs", |known| {
            let last = known.heartbeats.last()?;
            let node = last.node.as_ref()?;
            // One that was sent while all of that happened knows less.
            let knows = last.head.as_ref()?.revision >= at.revision;
            (knows && node.vm_counts.get("RUNNING") == Some(&1)).then(|| last.clone())
        })
        .await;
    // What is learnt of the guest by itself may have been told since.
    let head = heartbeat.head.unwrap();
    assert!(
        head.epoch == at.epoch && head.revision >= at.revision,
        "{head:?}"
    );
    let conditions = heartbeat.node.unwrap().conditions;
    let sink = conditions.iter().find(|c| c.r#type == "SinkReady/cp");
    assert!(sink.unwrap().status);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_does_not_come_again_after_the_agent_was_killed() {
    let sockets = Sockets::new();
    let (book, place) = (Arc::new(Book::default()), sockets.place("cp"));
    // It has no say of its own: the agent's cursor alone counts.
    book.trusting.store(true, Ordering::Relaxed);
    let _server = serve(&book, &place);
    let mut daemon = Daemon::start(setup(sink(&[&place], ACK))).await;
    vm(&daemon).await;
    let at = settled(&daemon).await;
    daemon.kill9();
    daemon.restart().await;
    daemon.image().await;
    let end = settled(&daemon).await;
    assert!(end.revision > at.revision);

    let known = book.known();
    assert_eq!(known.hellos.len(), 2);
    assert_eq!(known.hellos[1].acknowledged, Some(at.clone()));
    let changes: Vec<u64> = known
        .of(2)
        .iter()
        .filter(|event| !matches!(event.event, Some(Event::Bookmark(_))))
        .map(|event| event.revision)
        .collect();
    assert!(
        changes.iter().copied().eq(at.revision + 1..=end.revision),
        "no snapshot, nothing twice, nothing lost after {}: {changes:?}",
        at.revision
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_has_less_than_it_acknowledged_is_obeyed() {
    let sockets = Sockets::new();
    let (book, place) = (Arc::new(Book::default()), sockets.place("cp"));
    let server = serve(&book, &place);
    let daemon = Daemon::start(setup(sink(&[&place], ACK))).await;
    let vm_id = vm(&daemon).await;
    settled(&daemon).await;
    drop(server);
    // As one that was restored from a backup: five changes are gone.
    let node = book.known().hellos[0].node_id.clone();
    let from = {
        let mut known = book.known();
        let host = known.fleet.hosts.get_mut(&node).unwrap();
        let point = host.known.as_mut().unwrap();
        point.revision -= 5;
        point.revision
    };
    let server = serve(&book, &place);
    describe(&daemon.api(), &vm_id, "after the backup").await;
    settled(&daemon).await;
    {
        let known = book.known();
        let changes = known.of(known.hellos.len());
        assert_eq!(changes[0].revision, from + 1);
    }
    // And one that has nothing at all gets a snapshot.
    drop(server);
    let empty = Arc::new(Book::default());
    let _server = serve(&empty, &place);
    describe(&daemon.api(), &vm_id, "after the loss").await;
    settled(&daemon).await;
    same_picture(&empty, &daemon.api()).await;
    assert!(!empty.known().marks()[0].forced, "it was asked for");
}
