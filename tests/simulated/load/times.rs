//! How long things may take: handshakes, requests, answers, silence. Each limit
//! alone; and what may take as long as it likes.

use crate::load::place::Place;
use crate::load::raw::{self, Came, GOAWAY, HEADERS, LIST_VMS};
use crate::support::api::{Start, small};
use crate::support::daemon::Setup;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_end_is_answered_and_its_call_ends() {
    let place = Place::with("request_time = \"1s\"").await;
    let mut raw = place.viewer("v").raw().await.unwrap();
    raw.greet(65_535).await.unwrap();
    raw.half(1).await.unwrap();
    let came = raw.until(PATIENCE, |came| came.is(HEADERS)).await;
    assert_ne!(came, Came::Closed);
    let page = place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
    assert_eq!(page.refused("DEADLINE_PASSED"), 1.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_given_up() {
    let place = Place::with("request_time = \"1s\"").await;
    let mut silent = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
    assert_eq!(silent.read(&mut [0; 64]).await.unwrap_or(0), 0);
    assert_eq!(place.page().await.closed("handshake"), 1.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_keep_nobody_out() {
    let place = Place::with("connections = 32\nrequest_time = \"1m\"").await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(("127.0.0.1", place.port)).await.unwrap());
    }
    place.serves().await;
    let page = place
        .page_with("the oldest to give way", |page| {
            page.closed("handshake") >= 84.0
        })
        .await;
    assert!(page.connections() <= 32.0, "{page:?}");
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answer_is_cut_off_and_his_calls_end() {
    let place = Place::with("answer_time = \"1s\"").await;
    let mut raw = place.viewer("v").raw().await.unwrap();
    // Nothing may be sent.
    raw.greet(0).await.unwrap();
    for stream in raw::streams(8) {
        raw.send(&raw::call(stream, raw::GET_NODE)).await.unwrap();
    }
    raw.end(PATIENCE).await;
    let page = place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
    assert_eq!(page.closed("unread"), 1.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_one_byte_of_an_answer_has_not_read_it() {
    let place = Place::with("answer_time = \"1s\"").await;
    let mut raw = place.viewer("v").raw().await.unwrap();
    raw.greet(1).await.unwrap();
    raw.send(&raw::call(1, raw::GET_NODE)).await.unwrap();
    raw.end(PATIENCE).await;
    assert_eq!(place.page().await.closed("unread"), 1.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_what_the_kernel_holds_for_him_is_cut_off() {
    // None of the calls is too many.
    let limits = "calls_per_caller = 1500\ncalls_per_connection = 3000\nanswer_time = \"1s\"";
    let place = Place::with(limits).await;
    let image = place.daemon.image().await;
    for _ in 0..10 {
        place.daemon.api().create(&image, Start::No).await;
    }
    let before = place.page().await.connections();
    let mut raw = place.viewer("v").raw().await.unwrap();
    raw.greet(1 << 30).await.unwrap();
    // Nothing is read; at some point nothing is taken here either.
    let open = raw::frame(8, 0, 0, &(1u32 << 30).to_be_bytes());
    raw.send(&open).await.unwrap();
    for stream in raw::streams(1500) {
        // It may have ended by then.
        if raw.send(&raw::call(stream, LIST_VMS)).await.is_err() {
            break;
        }
    }
    let page = place
        .page_with("its end, and that of its calls", |page| {
            page.connections() == before && page.at_work() == 0.0
        })
        .await;
    assert!(page.closed("unread") >= 1.0, "{page:?}");
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_no_ping_or_never_begins_is_cut_off_and_who_is_idle_is_not() {
    let place = Place::with("silence = \"1s\"").await;
    let idle = place.viewer("idle").api().await.unwrap();
    idle.node().await;
    let mut mute = place.viewer("mute").raw().await.unwrap();
    mute.greet(65_535).await.unwrap();
    let mut never = place.viewer("never").raw().await.unwrap();
    mute.end(PATIENCE).await;
    never.end(PATIENCE).await;
    let page = place
        .page_with("their end", |page| page.connections() == 2.0)
        .await;
    assert!(page.closed("silent") >= 1.0, "{page:?}");
    // On the connection that it had.
    idle.node().await;
    assert_eq!(place.page().await.connections(), 2.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_without_end_do_not_grow_what_waits_to_be_sent() {
    let place = Place::with("answer_time = \"1s\"").await;
    let mut raw = place.viewer("v").raw().await.unwrap();
    raw.greet(65_535).await.unwrap();
    let (before, _) = crate::load::figures::memory(&place.daemon);
    let pings = raw::frame(raw::PING, 0, 0, &[7; 8]).repeat(1000);
    let flood = async {
        // 170 MB, if somebody takes them.
        for _ in 0..10_000 {
            raw.send(&pings).await?;
        }
        Ok::<(), std::io::Error>(())
    };
    let flooded = tokio::time::timeout(PATIENCE, flood).await;
    assert!(flooded.expect("an end in time").is_err());
    let (_, most) = crate::load::figures::memory(&place.daemon);
    assert!(most < before + 64, "{before} MiB, then {most} MiB");
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_taken_back_at_once_end_the_connection() {
    let place = Place::with("").await;
    let mut raw = place.viewer("v").raw().await.unwrap();
    raw.greet(65_535).await.unwrap();
    let mut storm = Vec::new();
    for stream in raw::streams(2000) {
        storm.extend(raw::headers(stream, LIST_VMS, &[]));
        storm.extend(raw::reset(stream));
    }
    drop(raw.send(&storm).await);
    let came = raw.until(PATIENCE, |came| came.is(GOAWAY)).await;
    // ENHANCE_YOUR_CALM.
    assert!(came == Came::Closed || came.code() == Some(11), "{came:?}");
    place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_an_operation_takes_longer_than_an_answer_may() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("held");
    let point = format!(
        "create-vm.make-volume.before=1*return(hold:{})",
        at.display()
    );
    let setup = Setup {
        environment: vec![("FAILPOINTS".to_owned(), point)],
        ..Setup::default()
    };
    let limits = "answer_time = \"1s\"\nrequest_time = \"1s\"\nsilence = \"1s\"";
    let place = Place::start(setup, limits).await;
    let image = place.daemon.image().await;
    let api = place.operator("o").api().await.unwrap();
    let answer = api.vms().create_vm(small(&image)).await;
    let operation_id = answer.unwrap().into_inner().id;
    until("the step to be held", PATIENCE, async || {
        at.exists().then_some(())
    })
    .await;
    let before = place.page().await.connections();
    let begin = Instant::now();
    let request = WaitOperationRequest {
        operation_id: operation_id.clone(),
        timeout: Some(prost_types::Duration {
            seconds: 3,
            nanos: 0,
        }),
    };
    let answer = api.operations().wait_operation(request).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(3));
    assert!(answer.get_ref().end_time.is_none());
    std::fs::remove_file(&at).unwrap();
    api.ended(&operation_id).await;
    let page = place.page().await;
    assert_eq!(page.connections(), before);
    assert_eq!((page.closed("unread"), page.closed("silent")), (0.0, 0.0));
}
