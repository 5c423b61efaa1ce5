//! A caller at his limit doesn't slow the others.

use crate::load::figures::latency;
use crate::load::place::Place;
use crate::load::raw;
use crate::support::PATIENCE;
use crate::support::api::{Start, force};
use crate::support::refusal::Refusal;
use futures_util::future::join_all;
use kvmlet::proto::v1::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn a_viewers_flood_delays_no_stop_of_an_operator() {
    let place = Place::with("calls_per_caller = 64").await;
    let image = place.daemon.image().await;
    let mut vms = Vec::new();
    for _ in 0..10 {
        vms.push(place.daemon.api().create(&image, Start::Yes).await);
    }
    let (over, refused) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let viewer = place.viewer("flood");
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let api = viewer.api().await.unwrap();
        let (over, refused) = (over.clone(), refused.clone());
        flood.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let calls = (0..128).map(|_| api.vms_on_a_page());
                for answer in join_all(calls).await {
                    if let Err(refusal) = answer {
                        assert_eq!(refusal.reason, "TOO_MANY_CALLS");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    place
        .page_with("the flood", |page| page.refused("TOO_MANY_CALLS") > 100.0)
        .await;
    let operator = place.operator("o").api().await.unwrap();
    let mut took = Vec::new();
    for vm_id in &vms {
        let begin = Instant::now();
        let request = StopVmRequest {
            vm_id: vm_id.clone(),
            stop_policy: Some(force()),
            ..Default::default()
        };
        let mut request = tonic::Request::new(request);
        request.set_timeout(std::time::Duration::from_secs(10));
        let answer = operator.vms().stop_vm(request).await;
        took.push(begin.elapsed());
        operator.done(answer).await;
        assert_eq!(operator.state(vm_id).await, VmState::Stopped);
    }
    over.store(true, Ordering::Relaxed);
    while let Some(flooded) = flood.join_next().await {
        flooded.unwrap();
    }
    let (many, half, most) = latency(took);
    let refused = refused.load(Ordering::Relaxed);
    eprintln!(
        "{many} stops under a flood: median {half:.1?}, longest {most:.1?}; \
         {refused} calls of the flood were refused"
    );
    assert!(refused > 0);
    place
        .page_with("no call", |page| page.at_work() == 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_after_a_thousand_refusals_loses_his_connection() {
    let place = Place::with("calls_per_connection = 100").await;
    // Without a role, and with one but for a call that there is not.
    let floods = [
        (place.caller("nobody", "x"), raw::GET_NODE, "NOT_ALLOWED"),
        (
            place.viewer("v"),
            "/kvmlet.v1.NodeService/Nothing",
            "NOT_YET",
        ),
    ];
    for (caller, path, reason) in floods {
        let before = place.page().await.closed("flood");
        let mut raw = caller.raw().await.unwrap();
        raw.greet(65_535).await.unwrap();
        let flood = async {
            for stream in raw::streams(1_000_000) {
                raw.send(&raw::call(stream, path)).await?;
                if stream % 64 == 63 {
                    raw.answered(32, PATIENCE).await;
                }
            }
            Ok::<(), std::io::Error>(())
        };
        let flooded = tokio::time::timeout(PATIENCE, flood).await;
        assert!(flooded.expect("an end in time").is_err());
        let page = place.page().await;
        assert_eq!(page.closed("flood"), before + 1.0);
        assert!(page.refused(reason) >= 1000.0, "{page:?}");
    }
    place.serves().await;
}

impl crate::support::api::Api {
    async fn vms_on_a_page(&self) -> Result<usize, Refusal> {
        let answer = self.vms().list_vms(ListVmsRequest::default()).await;
        let answer = answer.map_err(|status| Refusal::from(&status))?;
        Ok(answer.into_inner().vms.len())
    }
}
