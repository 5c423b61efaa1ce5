//! How large things may be: requests, headers, pages, what waits. Each limit alone.

use crate::load::place::Place;
use crate::load::raw::{
    self, CONTINUATION, Came, DATA, END_HEADERS, END_STREAM, GET_VM, HEADERS, LIST_VMS,
};
use crate::support::PATIENCE;
use crate::support::api::{Start, small};
use crate::support::daemon::Setup;
use crate::support::refusal::{Refusal, refused};
use futures_util::future::join_all;
use kvmlet::proto::v1::*;
use tonic::Code;
use tonic::metadata::MetadataValue;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_refused_and_the_connection_stays() {
    let place = Place::with("request_size = \"64 KiB\"").await;
    let api = place.viewer("v").api().await.unwrap();
    let asked = async |length: usize| {
        let vm_id = "x".repeat(length);
        refused(api.vms().get_vm(GetVmRequest { vm_id }).await)
    };
    let refusal = asked(100_000).await;
    let expected = (Code::ResourceExhausted, "REQUEST_TOO_LARGE", vec![]);
    assert_eq!(refusal.brief(), expected);
    assert_eq!(asked(60_000).await.code, Code::InvalidArgument);
    // What is said to come is not made room for.
    let mut raw = place.viewer("v").raw().await.unwrap();
    raw.greet(65_535).await.unwrap();
    raw.half(1).await.unwrap();
    let giant = [0, 0xff, 0xff, 0xff, 0xff];
    raw.send(&raw::frame(DATA, 0, 1, &giant)).await.unwrap();
    let came = raw.until(PATIENCE, |came| came.is(HEADERS)).await;
    assert_ne!(came, Came::Closed);
    place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_being_read_have_so_much_memory_and_not_more() {
    let limits = "request_size = \"1 MiB\"\nrequest_memory = \"1 MiB\"\nrequest_time = \"1m\"";
    let place = Place::with(limits).await;
    let mut many = Vec::new();
    // Requests of 1 MiB, each as far as it is sent without being asked for more.
    let part = [&[0, 0, 0x0f, 0xff, 0xff][..], &[b'x'; 15_000]].concat();
    for _ in 0..24 {
        let mut raw = place.viewer("v").raw().await.unwrap();
        raw.greet(65_535).await.unwrap();
        raw.half(1).await.unwrap();
        raw.send(&raw::frame(DATA, 0, 1, &part)).await.unwrap();
        for _ in 0..3 {
            let more = raw::frame(DATA, 0, 1, &[b'x'; 15_000]);
            raw.send(&more).await.unwrap();
        }
        many.push(raw);
    }
    let page = place
        .page_with("a refusal", |page| page.refused("TOO_MANY_CALLS") > 0.0)
        .await;
    assert!(page.at_work() > 10.0, "{page:?}");
    drop(many);
    place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
    // All of it is free again.
    let api = place.viewer("v").api().await.unwrap();
    let vm_id = "x".repeat(900_000);
    let refusal = refused(api.vms().get_vm(GetVmRequest { vm_id }).await);
    assert_eq!(refusal.code, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_too_large_end_the_call_and_ones_without_end_the_connection() {
    let place = Place::with("header_size = \"4 KiB\"").await;
    let api = place.viewer("v").api().await.unwrap();
    let asked = async |length: usize| {
        let mut request = tonic::Request::new(GetNodeRequest {});
        let value = MetadataValue::try_from("x".repeat(length)).unwrap();
        request.metadata_mut().insert("x-padding", value);
        api.nodes().get_node(request).await
    };
    asked(2_000).await.unwrap();
    asked(6_000).await.unwrap_err();
    asked(2_000).await.unwrap();

    let mut bomb = place.viewer("v").raw().await.unwrap();
    bomb.greet(65_535).await.unwrap();
    let block = raw::block(GET_VM, &[]);
    bomb.send(&raw::frame(HEADERS, 0, 1, &block)).await.unwrap();
    let mut more = Vec::new();
    raw::field(&mut more, "x-padding", &"x".repeat(8_000));
    let more = raw::frame(CONTINUATION, 0, 1, &more);
    // 80 MB, if somebody takes them.
    for _ in 0..10_000 {
        if bomb.send(&more).await.is_err() {
            break;
        }
    }
    bomb.end(PATIENCE).await;
    assert_eq!(place.page().await.at_work(), 0.0);
    place.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_no_more_than_it_may_have_and_more_is_not_asked_for() {
    let place = Place::with("page_size = 2").await;
    let image = place.daemon.image().await;
    for _ in 0..3 {
        place.daemon.api().create(&image, Start::No).await;
    }
    let api = place.viewer("v").api().await.unwrap();
    let mut request = ListVmsRequest {
        page_size: 3,
        ..Default::default()
    };
    let refusal = refused(api.vms().list_vms(request.clone()).await);
    assert_eq!(refusal.fields, ["page_size"]);
    request.page_size = 0;
    let page = api.vms().list_vms(request.clone()).await.unwrap();
    assert_eq!(page.get_ref().vms.len(), 2, "nothing is asked for");
    request.page_size = 2;
    let page = api.vms().list_vms(request.clone()).await.unwrap();
    let page = page.into_inner();
    assert_eq!(page.vms.len(), 2);
    request.page_token = page.next_page_token;
    let page = api.vms().list_vms(request).await.unwrap().into_inner();
    assert_eq!((page.vms.len(), page.next_page_token.as_str()), (1, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_would_wait_too_long_are_refused_and_reads_go_on() {
    let place = Place::start(Setup::default().with("operations", "queue = 2"), "").await;
    let image = place.daemon.image().await;
    let api = place.operator("o").api().await.unwrap();
    let created = join_all((0..60).map(|_| api.create_outcome(&image)));
    let viewer = place.viewer("v").api().await.unwrap();
    let read = join_all((0..60).map(|_| viewer.node()));
    let (created, _) = tokio::join!(created, read);
    let refused: Vec<_> = created
        .iter()
        .filter_map(|one| one.as_ref().err())
        .collect();
    assert!(!refused.is_empty() && refused.len() < 60, "{refused:?}");
    for refusal in refused {
        assert_eq!(
            refusal.brief(),
            (Code::ResourceExhausted, "QUEUE_FULL", vec![])
        );
        assert!(refusal.retry.is_some());
    }
    place.serves().await;
}

impl crate::support::api::Api {
    async fn create_outcome(&self, image: &str) -> Result<Operation, Refusal> {
        let answer = self.vms().create_vm(small(image)).await;
        self.outcome(answer).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_what_is_refused_does_not_fill_the_log() {
    let place = Place::with("").await;
    let mut raw = place.viewer("v").raw().await.unwrap();
    raw.greet(65_535).await.unwrap();
    let mut sent = Vec::new();
    for stream in raw::streams(100) {
        sent.extend(raw::call(stream, "/kvmlet.v1.VmService/Nothing"));
    }
    for stream in raw::streams(200).skip(100) {
        // No message at all.
        sent.extend(raw::frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &raw::block(LIST_VMS, &[]),
        ));
    }
    raw.send(&sent).await.unwrap();
    assert_eq!(raw.answered(200, PATIENCE).await, 200);
    let log = place.daemon.log();
    let told = log.lines().filter(|line| line.contains("call refused"));
    let (info, debug): (Vec<_>, Vec<_>) = told.partition(|line| line.contains(" INFO "));
    assert!(info.len() <= 5, "{info:?}");
    assert!(debug.len() > 100, "{}", debug.len());
    place.serves().await;
}
