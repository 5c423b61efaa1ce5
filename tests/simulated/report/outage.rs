//! Receivers that die, come back, are elsewhere, or say nothing.

use crate::report::ask::{condition, describe, kept, same_picture, settled, vm};
use crate::report::receiver::{Book, Place, Sockets, serve, sink};
use crate::support::api::{Api, Start};
use crate::support::daemon::{Daemon, Setup};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::watch_events_response::Event;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const ACK: Duration = Duration::from_secs(30);

fn setup(places: &[&Place], ack_timeout: Duration) -> Setup {
    Setup {
        more: sink(places, ack_timeout),
        ..Setup::default()
    }
}

/// Changes VMs until told to stop; returns how often.
async fn keep_changing(api: Api, vm_id: String, stop: Arc<std::sync::atomic::AtomicBool>) -> u32 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        describe(&api, &vm_id, &format!("change {count}")).await;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_killed_again_and_again_misses_nothing_and_sees_it_in_order() {
    let sockets = Sockets::new();
    let (book, place) = (Arc::new(Book::default()), sockets.place("cp"));
    let mut server = Some(serve(&book, &place));
    let daemon = Daemon::start(setup(&[&place], ACK)).await;
    let vm_id = vm(&daemon).await;
    let stop = Arc::default();
    let changing = tokio::spawn(keep_changing(daemon.api(), vm_id, Arc::clone(&stop)));
    for round in 1..=4 {
        // In the middle of things: as soon as it has got some more.
        let enough = book.known().used.len() + 20;
        book.wait("more changes", |known| {
            (known.used.len() > enough).then_some(())
        })
        .await;
        drop(server.take());
        server = Some(serve(&book, &place));
        book.wait("the next hello", |known| {
            (known.hellos.len() > round).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(changing.await.unwrap() > 0);
    let end = settled(&daemon).await;
    {
        let known = book.known();
        let first = known.used[0];
        assert!(
            known.used.iter().copied().eq(first..=end.revision),
            "each change once and in order: {:?}",
            known.used
        );
        // And what came in each stream came in order, without a hole.
        for stream in 1..=known.hellos.len() {
            let of_stream: Vec<u64> = known
                .of(stream)
                .iter()
                .filter(|e| !matches!(e.event, Some(Event::Bookmark(_) | Event::Snapshot(_))))
                .filter(|e| e.cause.is_some())
                .map(|event| event.revision)
                .collect();
            let steps = of_stream.windows(2).all(|pair| pair[1] == pair[0] + 1);
            assert!(steps, "stream {stream}: {of_stream:?}");
        }
    }
    same_picture(&book, &daemon.api()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_endpoint_fails_the_next_one_is_called() {
    let sockets = Sockets::new();
    let (one, two) = (sockets.place("one"), sockets.place("two"));
    // Two servers of one control plane: what they know is the same.
    let book = Arc::new(Book::default());
    let first = serve(&book, &two);
    let daemon = Daemon::start(setup(&[&one, &two], ACK)).await;
    let vm_id = vm(&daemon).await;
    settled(&daemon).await;
    drop(first);
    let _second = serve(&book, &one);
    describe(&daemon.api(), &vm_id, "after the failover").await;
    settled(&daemon).await;
    {
        let known = book.known();
        let first = known.used[0];
        assert!(
            known
                .used
                .iter()
                .copied()
                .eq(first..=*known.used.last().unwrap())
        );
    }
    let condition = condition(&daemon.api(), "cp").await;
    assert!(condition.status, "{condition:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_acknowledges_nothing_halts_the_sending_and_nothing_else() {
    let sockets = Sockets::new();
    let (book, place) = (Arc::new(Book::default()), sockets.place("cp"));
    let _server = serve(&book, &place);
    let daemon = Daemon::start(setup(&[&place], Duration::from_secs(2))).await;
    let api = daemon.api();
    let vm_id = vm(&daemon).await;
    let before = settled(&daemon).await;
    // Nor does it say in another way what it has.
    book.trusting.store(true, Ordering::Relaxed);
    book.silent.store(true, Ordering::Relaxed);
    let mut count = 0;
    while kept(daemon.home()).1 < before.revision + 400 {
        count += 1;
        describe(&api, &vm_id, &format!("change {count}")).await;
    }
    // It is called anew, and no stream has more than may be unacknowledged.
    let streams = book.known().hellos.len();
    book.wait("two more hellos", |known| {
        (known.hellos.len() > streams + 1).then_some(())
    })
    .await;
    {
        let known = book.known();
        let change = |e: &&&kvmlet::proto::v1::WatchEventsResponse| {
            e.revision > before.revision && e.cause.is_some()
        };
        for stream in 1..=known.hellos.len() {
            let sent = known.of(stream).iter().filter(change).count();
            assert!(sent <= 256, "stream {stream} has {sent}");
        }
    }
    let told = until("the problem to be told", PATIENCE, async || {
        let condition = condition(&api, "cp").await;
        Some(condition.message).filter(|message| !message.is_empty())
    })
    .await;
    assert_eq!(told, "acknowledged nothing in time");
    book.silent.store(false, Ordering::Relaxed);
    settled(&daemon).await;
    same_picture(&book, &api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_longer_than_events_are_kept_gets_the_state_of_everything() {
    let sockets = Sockets::new();
    let (book, place) = (Arc::new(Book::default()), sockets.place("cp"));
    let server = serve(&book, &place);
    let mut daemon = Daemon::start(setup(&[&place], ACK).with("events", "keep_count = 10")).await;
    let api = daemon.api();
    let image = daemon.image().await;
    let stays = api.create(&image, Start::No).await;
    let goes = api.create(&image, Start::No).await;
    let before = settled(&daemon).await;
    drop(server);
    let request = kvmlet::proto::v1::DeleteVmRequest {
        vm_id: goes.clone(),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(request).await).await;
    let request = kvmlet::proto::v1::ExpungeVmRequest {
        vm_id: goes.clone(),
        ..Default::default()
    };
    api.done(api.vms().expunge_vm(request).await).await;
    for count in 0..20 {
        describe(&api, &stays, &format!("change {count}")).await;
    }
    until("old events to be forgotten", PATIENCE, async || {
        (kept(daemon.home()).0 > before.revision + 1).then_some(())
    })
    .await;
    // In memory there are some more.
    daemon.kill9();
    daemon.restart().await;
    let _server = serve(&book, &place);
    settled(&daemon).await;
    {
        let known = book.known();
        let marks = known.marks();
        assert_eq!(marks.len(), 4, "a second snapshot");
        assert!(marks[2].forced, "which nobody asked for");
        let node = known.hellos[0].node_id.clone();
        assert!(!known.fleet.hosts[&node].vms.contains_key(&goes));
    }
    same_picture(&book, &daemon.api()).await;
}
