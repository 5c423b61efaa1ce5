//! WatchEvents: nothing missing, nothing twice, whatever is restarted.

use crate::api::host::Host;
use crate::support::api::{Api, Start, force, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::refused;
use crate::support::watch::Watcher;
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::*;
use std::collections::HashMap;
use std::time::Duration;
use tonic::Code;

const SIMULATED: &str = "test:///default";

fn stop(vm: &str) -> StopVmRequest {
    StopVmRequest {
        vm_id: vm.to_owned(),
        stop_policy: Some(force()),
        ..Default::default()
    }
}

async fn relabel(api: &Api, vm: &str, labels: &[(&str, &str)]) -> String {
    let request = UpdateVmRequest {
        vm: Some(Vm {
            id: vm.to_owned(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["labels".to_owned()],
        }),
        ..Default::default()
    };
    api.done(api.vms().update_vm(request).await).await.id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_told_from_its_beginning_to_its_end_with_its_vm() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let mut watcher = Watcher::now(&api).await;
    let vm = api.create(&image, Start::Yes).await;
    let operation = api.done(api.vms().stop_vm(stop(&vm)).await).await;
    let told = watcher.until_ended(&operation.id).await;
    assert_eq!(told, operation, "the event has the operation whole");
    assert_eq!(watcher.vms[&vm], api.vm(&vm).await.unwrap());

    let of_stop: Vec<&WatchEventsResponse> = watcher
        .seen
        .iter()
        .filter(|event| {
            event
                .cause
                .as_ref()
                .is_some_and(|cause| cause.operation_id == operation.id)
        })
        .collect();
    let states: Vec<&str> = of_stop
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Vm(vm)) => Some(vm.state().as_str_name()),
            _ => None,
        })
        .collect();
    assert_eq!(states.first(), Some(&"VM_STATE_STOPPING"));
    assert_eq!(states.last(), Some(&"VM_STATE_STOPPED"));
    assert!(of_stop.iter().all(|event| {
        let cause = event.cause.as_ref().expect("filtered by it");
        cause.kind() == CauseKind::Operation && event.time.is_some()
    }));
    // Its end comes after the VM that it left.
    assert!(matches!(
        of_stop.last().and_then(|event| event.event.as_ref()),
        Some(Event::Operation(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn to_watch_after_a_list_misses_nothing() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let first = api.create(&image, Start::Yes).await;
    let request = ListVmsRequest {
        page_size: 1,
        ..Default::default()
    };
    let page = api
        .vms()
        .list_vms(request.clone())
        .await
        .unwrap()
        .into_inner();
    let second = api.create(&image, Start::No).await;
    let third = api.create(&image, Start::No).await;
    // The next page is from later, and says from where the whole list is true.
    let next = ListVmsRequest {
        page_token: format!(
            "{}{:016x}",
            first.replace('-', ""),
            page.resume.as_ref().unwrap().revision
        ),
        ..request
    };
    let later = api.vms().list_vms(next).await.unwrap().into_inner();
    assert_eq!(later.resume, page.resume);
    let mut watcher = Watcher::after(&api, page.resume.unwrap()).await;
    watcher.until_state(&second, VmState::Stopped).await;
    watcher.until_state(&third, VmState::Stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_goes_on_where_it_was_after_the_agent_was_killed() {
    let mut daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let mut watcher = Watcher::now(&api).await;
    let vm = api.create(&image, Start::No).await;
    watcher.until_state(&vm, VmState::Stopped).await;
    let at = watcher.at.clone().unwrap();
    relabel(&api, &vm, &[("a", "1")]).await;
    daemon.kill9();
    let status = watcher.end().await;
    assert!(
        matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled
        ),
        "{status:?}"
    );
    daemon.restart().await;
    let api = daemon.api();
    let mut again = Watcher::after(&api, at).await;
    let told = again
        .until(|event| matches!(event, Event::Vm(vm) if vm.labels.contains_key("a")))
        .await;
    assert!(
        !again
            .seen
            .iter()
            .any(|event| matches!(event.event, Some(Event::Snapshot(_))))
    );
    assert!(told.revision > 0);
    // The simulated host has gone with the agent: that is told, too.
    let lost = again.until_state(&vm, VmState::Lost).await;
    let cause = lost.cause.unwrap();
    assert_eq!(
        (cause.kind(), cause.detail()),
        (CauseKind::Host, CauseDetail::Undefine)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_again_tells_nothing_twice() {
    let mut host = Host::start().await;
    let mut before = Watcher::now(&host.api()).await;
    let (vm, _) = host.vm_in(Resting::Stopped).await;
    let (running, _) = host.vm_in(Resting::Running).await;
    // What a list shows may be told after that.
    for (id, state) in [(&vm, VmState::Stopped), (&running, VmState::Running)] {
        before
            .until(|event| {
                matches!(event, Event::Vm(vm) if vm.id == *id
                    && vm.state() == state
                    && vm.current_operation_id.is_empty())
            })
            .await;
    }
    let (at, mut told): (_, HashMap<String, Vm>) =
        (before.at.unwrap(), before.vms.into_iter().collect());
    host.daemon.kill9();
    host.daemon.restart().await;
    let api = host.api();
    // Before that, it compares what was told with what is.
    Watcher::now(&api).await;
    let mut watcher = Watcher::after(&api, at).await;
    let changed = relabel(&api, &vm, &[("a", "1")]).await;
    watcher.until_ended(&changed).await;
    for event in &watcher.seen {
        if let Some(Event::Vm(vm)) = &event.event {
            let before = told.insert(vm.id.clone(), vm.clone());
            assert_ne!(before.as_ref(), Some(vm), "{event:?}");
        }
    }
    assert_eq!(told[&vm].labels["a"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_for_good_is_told() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let vm = api.create(&image, Start::No).await;
    let mut watcher = Watcher::now(&api).await;
    let delete = DeleteVmRequest {
        vm_id: vm.clone(),
        retention: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    let deleted = api.done(api.vms().delete_vm(delete).await).await;
    watcher
        .until(|event| matches!(event, Event::VmExpunged(id) if *id == vm))
        .await;
    watcher.until_ended(&deleted.id).await;
    let delete = DeleteImageRequest {
        image_id: image.clone(),
        ..Default::default()
    };
    api.done(api.images().delete_image(delete).await).await;
    watcher
        .until(|event| matches!(event, Event::Image(told) if told.state() == ImageState::Deleting))
        .await;
    watcher
        .until(|event| matches!(event, Event::ImageDeleted(id) if *id == image))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_has_everything_once_and_changes_follow_it() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let (one, two) = (
        api.create(&image, Start::Yes).await,
        api.create(&image, Start::No).await,
    );
    let request = WatchEventsRequest {
        snapshot: true,
        ..Default::default()
    };
    let mut watcher = Watcher::open(&api, request).await.unwrap();
    watcher
        .until(|event| matches!(event, Event::Snapshot(mark) if mark.end))
        .await;
    assert_eq!(watcher.vms.len(), 2);
    assert_eq!(watcher.vms[&one], api.vm(&one).await.unwrap());
    assert_eq!(watcher.vms[&two], api.vm(&two).await.unwrap());
    let marks: Vec<(bool, bool)> = watcher
        .seen
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Snapshot(mark)) => Some((mark.end, mark.forced)),
            _ => None,
        })
        .collect();
    assert_eq!(marks, [(false, false), (true, false)]);
    let images = watcher
        .seen
        .iter()
        .filter(|event| matches!(event.event, Some(Event::Image(_))));
    assert_eq!(images.count(), 1);
    relabel(&api, &two, &[("a", "1")]).await;
    watcher
        .until(|event| matches!(event, Event::Vm(vm) if vm.labels.contains_key("a")))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_point_that_is_too_old_or_of_another_epoch_gets_a_marked_snapshot() {
    let setup = Setup::on(SIMULATED).with("events", "keep_count = 5");
    let mut daemon = Daemon::start(setup).await;
    let api = daemon.api();
    let image = daemon.image().await;
    let vm = api.create(&image, Start::No).await;
    let start = Watcher::now(&api).await.at.unwrap();
    for round in 0..10 {
        relabel(&api, &vm, &[("round", &round.to_string())]).await;
    }
    let forced = async |api: &Api, resume: ResumePoint| {
        let mut watcher = Watcher::after(api, resume).await;
        let first = watcher.next().await.unwrap();
        match first.event {
            Some(Event::Snapshot(mark)) => assert!(mark.forced && !mark.end),
            other => panic!("not a snapshot: {other:?}"),
        }
        watcher
            .until(|event| matches!(event, Event::Snapshot(mark) if mark.end))
            .await;
        assert_eq!(watcher.vms[&vm].labels["round"], "9");
        watcher.at.clone().unwrap()
    };
    let other = ResumePoint {
        epoch: id(),
        ..start.clone()
    };
    forced(&api, other).await;
    let beyond = ResumePoint {
        revision: start.revision + 1_000_000,
        ..start.clone()
    };
    let head = forced(&api, beyond).await;

    // A start forgets what need not be kept.
    daemon.stop().await;
    daemon.restart().await;
    let api = daemon.api();
    let mut watcher = Watcher::after(&api, head).await;
    watcher.until_state(&vm, VmState::Lost).await;
    forced_after_restart(&api, start, &vm).await;
}

async fn forced_after_restart(api: &Api, old: ResumePoint, vm: &str) {
    let mut watcher = Watcher::after(api, old).await;
    let first = watcher.next().await.unwrap();
    assert!(
        matches!(first.event, Some(Event::Snapshot(mark)) if mark.forced),
        "{:?}",
        watcher.seen
    );
    watcher
        .until(|event| matches!(event, Event::Snapshot(mark) if mark.end))
        .await;
    assert_eq!(watcher.vms[vm].state(), VmState::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_takes_vms_by_id_and_label_and_kinds() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let (web, db) = (
        api.create(&image, Start::No).await,
        api.create(&image, Start::No).await,
    );
    relabel(&api, &web, &[("tier", "web")]).await;
    relabel(&api, &db, &[("tier", "db")]).await;
    let from = Watcher::now(&api).await.at;
    let filtered = async |filter: EventFilter| {
        let request = WatchEventsRequest {
            resume: from.clone(),
            filter: Some(filter),
            ..Default::default()
        };
        Watcher::open(&api, request).await.unwrap()
    };
    let mut by_label = filtered(EventFilter {
        labels: HashMap::from([("tier".to_owned(), "web".to_owned())]),
        ..Default::default()
    })
    .await;
    let mut by_id = filtered(EventFilter {
        vm_ids: vec![db.clone()],
        kinds: vec![EventKind::Vm.into()],
        ..Default::default()
    })
    .await;
    relabel(&api, &db, &[("tier", "db"), ("x", "1")]).await;
    let left = relabel(&api, &web, &[("tier", "none")]).await;
    let unseen = relabel(&api, &web, &[("tier", "none"), ("x", "1")]).await;
    relabel(&api, &db, &[("tier", "web")]).await;

    // The VM that is no longer selected is told once more, so.
    let last = by_label
        .until(
            |event| matches!(event, Event::Vm(vm) if vm.id == web && vm.labels["tier"] == "none"),
        )
        .await;
    assert_eq!(last.cause.unwrap().operation_id, left);
    by_label
        .until(|event| matches!(event, Event::Vm(vm) if vm.id == db && vm.labels["tier"] == "web"))
        .await;
    assert!(!by_label.seen.iter().any(
        |event| matches!(&event.event, Some(Event::Operation(operation)) if operation.id == unseen)
    ));
    by_id
        .until(|event| matches!(event, Event::Vm(vm) if vm.labels["tier"] == "web"))
        .await;
    assert!(
        by_id
            .seen
            .iter()
            .all(|event| matches!(&event.event, Some(Event::Vm(vm)) if vm.id == db))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_their_field() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let with = |resume: Option<ResumePoint>, filter: Option<EventFilter>| WatchEventsRequest {
        resume,
        filter,
        snapshot: false,
    };
    let point = |epoch: &str| {
        Some(ResumePoint {
            epoch: epoch.to_owned(),
            revision: 1,
        })
    };
    let filter = |vm_ids: Vec<String>, kinds: Vec<i32>| {
        Some(EventFilter {
            vm_ids,
            kinds,
            ..Default::default()
        })
    };
    for (request, field, reason) in [
        (with(point("x"), None), "resume.epoch", "MALFORMED_ID"),
        (with(point(""), None), "resume.epoch", "FIELD_REQUIRED"),
        (
            with(None, filter(vec![id(), "x".to_owned()], vec![])),
            "filter.vm_ids[1]",
            "MALFORMED_ID",
        ),
        (
            with(None, filter(vec![], vec![0])),
            "filter.kinds[0]",
            "FIELD_INVALID",
        ),
        (
            with(None, filter(vec![], vec![99])),
            "filter.kinds[0]",
            "FIELD_INVALID",
        ),
        (
            with(None, filter((0..1001).map(|_| id()).collect(), vec![])),
            "filter.vm_ids",
            "FIELD_INVALID",
        ),
    ] {
        let refusal = refused(api.nodes().watch_events(request).await.map(|_| ()));
        assert_eq!(refusal.reason, reason);
        assert_eq!(refusal.fields, [field]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_cut_off_with_a_reason_and_can_resume() {
    let setup = Setup::on(SIMULATED).with("events", "slow_reader = \"1s\"\nwatchers = 2");
    let daemon = Daemon::start(setup).await;
    let api = daemon.api();
    let image = daemon.image().await;
    // Events of some size, so that the transport's buffers are full soon.
    let request = CreateVmRequest {
        annotations: HashMap::from([("big".to_owned(), "x".repeat(200 << 10))]),
        ..small(&image)
    };
    let vm = request.vm_id.clone();
    api.done(api.vms().create_vm(request).await).await;
    let mut slow = Watcher::now(&daemon.api()).await;
    let mut quick = Watcher::now(&api).await;
    let third = refused(
        api.nodes()
            .watch_events(WatchEventsRequest::default())
            .await
            .map(|_| ()),
    );
    assert_eq!(
        (third.code, third.reason.as_str()),
        (Code::ResourceExhausted, "TOO_MANY_WATCHERS")
    );

    let reader = tokio::spawn(async move {
        quick
            .until(|event| matches!(event, Event::Vm(vm) if vm.labels.get("round").map(String::as_str) == Some("39")))
            .await;
    });
    for round in 0..40 {
        relabel(&api, &vm, &[("round", &round.to_string())]).await;
    }
    // The other one has not waited for it.
    reader.await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let status = slow.end().await;
    let refusal = refused::<()>(Err(status));
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::Aborted, "READER_TOO_SLOW")
    );
    let mut again = Watcher::after(&api, slow.at.unwrap()).await;
    again
        .until(|event| matches!(event, Event::Vm(vm) if vm.labels.get("round").map(String::as_str) == Some("39")))
        .await;
}
