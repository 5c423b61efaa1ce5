//! How many there may be: connections, calls, watchers. Each limit alone.

use crate::load::place::Place;
use crate::load::raw::{Came, HEADERS, RST_STREAM, SETTINGS};
use crate::support::api::Api;
use crate::support::daemon::Setup;
use crate::support::refusal::{Refusal, refused};
use crate::support::{PATIENCE, until};
use futures_util::future::join_all;
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use std::fs;
use tonic::Code;

/// Of HTTP/2: the call was not begun.
const REFUSED_STREAM: u32 = 7;

async fn node(api: &Api) -> Result<(), Refusal> {
    let answer = api.nodes().get_node(GetNodeRequest {}).await;
    answer.map(|_| ()).map_err(|status| Refusal::from(&status))
}

async fn is_refused(api: &Api, reason: &str) {
    let refusal = node(api).await.expect_err("more than there may be");
    assert_eq!(refusal.brief(), (Code::ResourceExhausted, reason, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn further_connections_are_closed_and_one_that_ends_makes_room() {
    let place = Place::with("connections = 4").await;
    let mut open = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let api = place.viewer(name).api().await.unwrap();
        node(&api).await.unwrap();
        open.push(api);
    }
    assert!(place.viewer("e").api().await.is_err());
    let page = place.page().await;
    assert!(page.closed("limit") >= 1.0, "{page:?}");
    // One more is the test's own, on the Unix socket, which has its own number.
    assert_eq!(page.connections(), 5.0);
    for api in &open {
        node(api).await.unwrap();
    }
    open.pop();
    place
        .page_with("the end of a connection", |page| page.connections() == 4.0)
        .await;
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_takes_no_more_than_his_share_of_the_connections() {
    let place = Place::with("connections_per_caller = 2").await;
    let greedy = place.viewer("greedy");
    let first = greedy.api().await.unwrap();
    let second = greedy.api().await.unwrap();
    let mut third = greedy.raw().await.unwrap();
    drop(third.greet(65_535).await);
    third.end(PATIENCE).await;
    assert!(place.page().await.closed("caller_limit") >= 1.0);
    node(&first).await.unwrap();
    node(&second).await.unwrap();
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_leave_a_quarter_of_the_calls_to_operators() {
    let place = Place::with("calls = 4\nrequest_time = \"1m\"").await;
    let (looking, doing) = (place.viewer("v"), place.operator("o"));
    let (viewer, operator) = (looking.api().await.unwrap(), doing.api().await.unwrap());
    let mut held = looking.raw().await.unwrap();
    held.greet(65_535).await.unwrap();
    for stream in [1, 3, 5] {
        held.half(stream).await.unwrap();
    }
    let page = place
        .page_with("three calls", |page| page.at_work() == 3.0)
        .await;
    assert_eq!(page.refused("TOO_MANY_CALLS"), 0.0);
    is_refused(&viewer, "TOO_MANY_CALLS").await;
    is_refused(&place.viewer("another").lazily(), "TOO_MANY_CALLS").await;
    node(&operator).await.unwrap();

    let mut last = doing.raw().await.unwrap();
    last.greet(65_535).await.unwrap();
    last.half(1).await.unwrap();
    place
        .page_with("four calls", |page| page.at_work() == 4.0)
        .await;
    is_refused(&operator, "TOO_MANY_CALLS").await;
    assert_eq!(place.page().await.refused("TOO_MANY_CALLS"), 3.0);

    drop((held, last));
    place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
    node(&viewer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_has_no_more_than_his_share_of_the_calls() {
    let place = Place::with("calls_per_caller = 2\nrequest_time = \"1m\"").await;
    let greedy = place.operator("greedy");
    let mut held = greedy.raw().await.unwrap();
    held.greet(65_535).await.unwrap();
    held.half(1).await.unwrap();
    held.half(3).await.unwrap();
    place
        .page_with("two calls", |page| page.at_work() == 2.0)
        .await;
    // On whichever connection.
    is_refused(&greedy.lazily(), "TOO_MANY_CALLS").await;
    place.serves().await;
    assert_eq!(place.page().await.refused("TOO_MANY_CALLS"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn further_calls_on_a_connection_wait_or_were_never_begun() {
    let place = Place::with("calls_per_connection = 4\nrequest_time = \"1m\"").await;
    let caller = place.viewer("v");
    let api = caller.api().await.unwrap();
    // A client that knows the limit, as it does after one call, lets them wait.
    node(&api).await.unwrap();
    for answer in join_all((0..64).map(|_| node(&api))).await {
        answer.unwrap();
    }
    let mut raw = caller.raw().await.unwrap();
    raw.greet(65_535).await.unwrap();
    let came = raw.until(PATIENCE, |came| came.is(SETTINGS)).await;
    assert_ne!(came, Came::Closed);
    for stream in [1, 3, 5, 7, 9] {
        raw.half(stream).await.unwrap();
    }
    let came = raw.until(PATIENCE, |came| came.is(RST_STREAM)).await;
    assert_eq!(came.code(), Some(REFUSED_STREAM));
    assert!(matches!(came, Came::Frame { stream: 9, .. }), "{came:?}");
    place
        .page_with("four calls", |page| page.at_work() == 4.0)
        .await;
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_are_as_many_as_there_may_be_and_no_caller_has_them_all() {
    let place = Place::start(Setup::default().with("events", "watchers = 4"), "").await;
    let watch = async |api: &Api| {
        let answer = api
            .nodes()
            .watch_events(WatchEventsRequest::default())
            .await;
        answer.map(|answer| answer.into_inner())
    };
    let greedy = place.viewer("greedy").api().await.unwrap();
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(watch(&greedy).await.unwrap());
    }
    let refusal = refused(watch(&greedy).await);
    assert_eq!(refusal.reason, "TOO_MANY_WATCHERS");
    let other = place.viewer("other").api().await.unwrap();
    open.push(watch(&other).await.unwrap());
    let refusal = refused(watch(&other).await);
    assert_eq!(
        refusal.brief(),
        (Code::ResourceExhausted, "TOO_MANY_WATCHERS", vec![])
    );
    let page = place.page().await;
    assert_eq!(page.value("kvmlet_event_watchers"), 4.0);
    assert!(page.at_work() >= 4.0);
    place.serves().await;
    drop(open);
    place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
    watch(&greedy).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_read_again_and_who_is_connected_stays() {
    let place = Place::with("calls_per_caller = 100\nrequest_time = \"4s\"").await;
    let caller = place.viewer("v");
    let api = caller.api().await.unwrap();
    node(&api).await.unwrap();
    let config = place.daemon.config();
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(
        "calls_per_caller = 100",
        "calls_per_caller = 1\nsilence = \"1s\"",
    );
    fs::write(&config, text).unwrap();
    kill(place.daemon.pid(), Signal::SIGHUP).unwrap();
    until("the limits to be read", PATIENCE, async || {
        let log = place.daemon.log();
        log.contains("limits and certificates were read again")
            .then_some(())
    })
    .await;
    let mut held = caller.raw().await.unwrap();
    held.greet(65_535).await.unwrap();
    held.half(1).await.unwrap();
    place
        .page_with("the call", |page| page.at_work() == 1.0)
        .await;
    is_refused(&api, "TOO_MANY_CALLS").await;
    // Pings come as often as before: who is new is not silent before the first one.
    let came = held.until(PATIENCE, |came| came.is(HEADERS)).await;
    assert_ne!(came, Came::Closed);
    assert_eq!(place.page().await.closed("silent"), 0.0);
    node(&api).await.unwrap();
    place.serves().await;
}
