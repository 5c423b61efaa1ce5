//! Operations: waited for, cancelled, repeated, listed, and only tried out.

use crate::support::api::{Api, Start, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::refused;
use crate::support::watch::Watcher;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::*;
use std::net::TcpListener;
use std::time::Duration;
use tonic::Code;

/// A daemon and an import that goes on for as long as it is let: its server
/// takes the call and never answers.
struct Endless {
    daemon: Daemon,
    operation: String,
    _server: TcpListener,
}

impl Endless {
    async fn start() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", server.local_addr().unwrap());
        let allowed = format!("allowed_url_prefixes = [\"{url}\"]");
        let daemon = Daemon::start(Setup::default().with("images", allowed)).await;
        let request = ImportImageRequest {
            source: format!("{url}image"),
            format: ImageFormat::Qcow2 as i32,
            ..Default::default()
        };
        let answer = daemon.api().images().import_image(request).await;
        let operation = answer.unwrap().into_inner().id;
        let api = daemon.api();
        until("the import to begin", PATIENCE, async || {
            let operation = get(&api, &operation).await;
            (operation.state() == OperationState::Running).then_some(())
        })
        .await;
        Self {
            daemon,
            operation,
            _server: server,
        }
    }
}

async fn get(api: &Api, id: &str) -> Operation {
    let request = GetOperationRequest {
        operation_id: id.to_owned(),
    };
    let answer = api.operations().get_operation(request).await;
    answer.unwrap().into_inner()
}

fn wait(id: &str, timeout: Duration) -> WaitOperationRequest {
    WaitOperationRequest {
        operation_id: id.to_owned(),
        timeout: Some(prost_types::Duration::try_from(timeout).unwrap()),
    }
}

fn cancel(id: &str) -> CancelOperationRequest {
    CancelOperationRequest {
        operation_id: id.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_times_out_returns_the_operation_as_it_is() {
    let endless = Endless::start().await;
    let api = endless.daemon.api();
    let request = wait(&endless.operation, Duration::from_millis(100));
    let operation = api.operations().wait_operation(request).await.unwrap();
    assert_eq!(operation.get_ref().state(), OperationState::Running);
    assert_eq!(operation.get_ref().error, None);
    assert_eq!(operation.get_ref().end_time, None);
    let too_long = wait(&endless.operation, Duration::from_secs(3600));
    let refusal = refused(api.operations().wait_operation(too_long).await);
    assert_eq!(refusal.fields, ["timeout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_told_again_only_if_it_has_changed() {
    let endless = Endless::start().await;
    let api = endless.daemon.api();
    let begin = ResumePoint {
        revision: 0,
        ..Watcher::now(&api).await.at.unwrap()
    };
    let mut watcher = Watcher::after(&api, begin).await;
    // How it gets on is looked at once from each bookmark to the next.
    let mut bookmarks = 0;
    while bookmarks < 4 {
        let next = watcher.next().await.unwrap();
        bookmarks += usize::from(matches!(next.event, Some(Event::Bookmark(_))));
    }
    let told = watcher.seen.iter().filter_map(|event| match &event.event {
        Some(Event::Operation(operation)) => Some(operation),
        _ => None,
    });
    let told: Vec<&Operation> = told.collect();
    assert_eq!(told.last().unwrap().state(), OperationState::Running);
    let again = told.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(again, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_wait_and_a_cancellation_reaches_them_all() {
    let endless = Endless::start().await;
    let waiters: Vec<_> = (0..1000)
        .map(|number| {
            let api = if number % 500 == 0 {
                Api::at(&endless.daemon.socket())
            } else {
                endless.daemon.api()
            };
            let request = wait(&endless.operation, PATIENCE);
            tokio::spawn(async move { api.operations().wait_operation(request).await })
        })
        .collect();
    let api = Api::at(&endless.daemon.socket());
    let asked = api
        .operations()
        .cancel_operation(cancel(&endless.operation))
        .await
        .unwrap();
    assert_eq!(asked.get_ref().id, endless.operation);
    for waiter in waiters {
        let operation = waiter.await.unwrap().unwrap().into_inner();
        assert_eq!(operation.state(), OperationState::Cancelled);
        let refusal = crate::support::refusal::Refusal::from(&operation.error.unwrap());
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::Cancelled, "CANCELLED_BY_CALLER")
        );
    }
    // Once more: it is returned as it is.
    let again = api
        .operations()
        .cancel_operation(cancel(&endless.operation))
        .await
        .unwrap();
    assert_eq!(again.get_ref().state(), OperationState::Cancelled);
    let files = endless.daemon.pool_files();
    assert!(files.iter().all(|file| !file.contains("tmp/")), "{files:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_asked_to_stop_does_not_wait_for_those_who_wait() {
    let mut endless = Endless::start().await;
    let api = endless.daemon.api();
    let request = wait(&endless.operation, Duration::from_secs(600));
    let waiter = tokio::spawn(async move { api.operations().wait_operation(request).await });
    let took = endless.daemon.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    // It is told something, and not left hanging.
    drop(waiter.await.unwrap());
    endless.daemon.restart().await;
    let api = endless.daemon.api();
    let operation = get(&api, &endless.operation).await;
    assert_eq!(operation.end_time, None, "it goes on: {operation:?}");
    api.operations()
        .cancel_operation(cancel(&endless.operation))
        .await
        .unwrap();
    let ended = api.ended(&endless.operation).await;
    assert_eq!(ended.state(), OperationState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_generation_is_refused_and_the_present_one_taken() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let vm = api.create(&daemon.image().await, Start::No).await;
    let generation = api.vm(&vm).await.unwrap().generation;
    let start = |expected| StartVmRequest {
        vm_id: vm.clone(),
        expected_generation: Some(expected),
        ..Default::default()
    };
    let refusal = refused(api.vms().start_vm(start(generation + 1)).await);
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::Aborted, "STALE_GENERATION")
    );
    assert_eq!(refusal.metadata["generation"], generation.to_string());
    api.done(api.vms().start_vm(start(generation)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_finds_its_operation_also_after_a_restart() {
    let mut daemon = Daemon::simulated().await;
    let vm = daemon.api().create(&daemon.image().await, Start::Yes).await;
    let request = StopVmRequest {
        request_id: id(),
        vm_id: vm.clone(),
        ..Default::default()
    };
    let api = daemon.api();
    let first = api.done(api.vms().stop_vm(request.clone()).await).await;
    assert_eq!(first.request_id, request.request_id);
    assert_eq!(
        first.caller,
        "uid:0".replace('0', &nix::unistd::geteuid().to_string())
    );
    let outcome = first.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert!(outcome.signals_sent >= 1 && !outcome.forced, "{outcome:?}");
    let again = api.done(api.vms().stop_vm(request.clone()).await).await;
    assert_eq!(again, first);
    daemon.stop().await;
    daemon.restart().await;
    let api = daemon.api();
    let again = api.done(api.vms().stop_vm(request.clone()).await).await;
    assert_eq!(again, first, "though the VM is LOST by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_listed_newest_first_in_pages_that_stay() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let vm = api.create(&daemon.image().await, Start::No).await;
    let request = || StopVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    for _ in 0..6 {
        api.done(api.vms().stop_vm(request()).await).await;
    }
    let all: Vec<String> = api
        .all_operations()
        .await
        .into_iter()
        .filter(|operation| operation.vm_id == vm)
        .map(|operation| operation.id)
        .collect();
    assert_eq!(all.len(), 7);
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = ListOperationsRequest {
            page_size: 3,
            page_token,
            vm_id: vm.clone(),
            ..Default::default()
        };
        let page = api.operations().list_operations(page).await.unwrap();
        let page = page.into_inner();
        seen.extend(page.operations.into_iter().map(|operation| operation.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        // Those begun later do not come in between.
        api.done(api.vms().stop_vm(request()).await).await;
    }
    assert_eq!(seen, all);
    let failed = ListOperationsRequest {
        states: vec![OperationState::Failed as i32],
        ..Default::default()
    };
    let failed = api.operations().list_operations(failed).await.unwrap();
    assert!(failed.get_ref().operations.is_empty());
}

/// What a request that is only tried out says, having done nothing.
async fn plan(
    daemon: &Daemon,
    before: &(Vec<String>, Vec<Vm>, Vec<Operation>),
    answer: Result<tonic::Response<Operation>, tonic::Status>,
) -> Vec<(PlanAction, String)> {
    let operation = answer.unwrap().into_inner();
    assert_eq!(operation.id, "");
    assert_eq!(operation.state(), OperationState::Succeeded);
    assert_eq!(&everything(daemon).await, before);
    match operation.result {
        Some(operation::Result::Plan(plan)) => plan
            .items
            .into_iter()
            .map(|item| (item.action(), item.kind))
            .collect(),
        other => panic!("no plan: {other:?}"),
    }
}

async fn everything(daemon: &Daemon) -> (Vec<String>, Vec<Vm>, Vec<Operation>) {
    let api = daemon.api();
    (
        daemon.pool_files(),
        api.all_vms().await,
        api.all_operations().await,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_tried_out_returns_a_plan_and_leaves_nothing() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let (image, other) = (daemon.image().await, daemon.image().await);
    let vm_id = api.create(&image, Start::No).await;
    let deleted = api.create(&image, Start::No).await;
    let request = DeleteVmRequest {
        vm_id: deleted.clone(),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(request).await).await;
    let unused = daemon.image().await;
    let before = everything(&daemon).await;
    let has = |plan: &[(PlanAction, String)], action: PlanAction, kind: &str| {
        let found = plan.iter().any(|(a, k)| *a == action && k == kind);
        assert!(found, "{action:?} {kind} is not in {plan:?}");
    };
    let create = CreateVmRequest {
        request_id: id(),
        validate_only: true,
        start: true,
        data_volumes: vec![NewVolume {
            size_bytes: 1 << 20,
            ..Default::default()
        }],
        ..small(&image)
    };
    let made = plan(&daemon, &before, api.vms().create_vm(create).await).await;
    has(&made, PlanAction::Make, "vm");
    let volumes = made.iter().filter(|(_, kind)| kind == "volume").count();
    assert_eq!(volumes, 2);
    let replace = ReplaceRootVolumeRequest {
        vm_id: vm_id.clone(),
        image_id: other.clone(),
        validate_only: true,
        ..Default::default()
    };
    let replaced = api.vms().replace_root_volume(replace).await;
    let replaced = plan(&daemon, &before, replaced).await;
    has(&replaced, PlanAction::Make, "volume");
    has(&replaced, PlanAction::Keep, "volume");
    has(&replaced, PlanAction::Change, "domain");
    let delete = DeleteVmRequest {
        vm_id: vm_id.clone(),
        validate_only: true,
        ..Default::default()
    };
    let kept = plan(&daemon, &before, api.vms().delete_vm(delete).await).await;
    has(&kept, PlanAction::Keep, "vm");
    has(&kept, PlanAction::Keep, "volume");
    let expunge = ExpungeVmRequest {
        vm_id: deleted,
        validate_only: true,
        ..Default::default()
    };
    let gone = plan(&daemon, &before, api.vms().expunge_vm(expunge).await).await;
    has(&gone, PlanAction::Delete, "vm");
    has(&gone, PlanAction::Delete, "domain");
    has(&gone, PlanAction::Delete, "volume");
    let delete = DeleteImageRequest {
        image_id: unused,
        validate_only: true,
        ..Default::default()
    };
    let gone = plan(&daemon, &before, api.images().delete_image(delete).await).await;
    has(&gone, PlanAction::Delete, "image");
}
