//! Calls that need more by what they ask for.

use crate::access::stand::{OPERATOR, Stand};
use crate::support::PATIENCE;
use crate::support::api::Start;
use crate::support::refusal::Refusal;
use kvmlet::proto::v1::watch_events_response::Event as Told;
use kvmlet::proto::v1::{
    CancelOperationRequest, DeleteVmRequest, ListOperationsRequest, OperationType, StartVmRequest,
    WatchEventsRequest,
};
use tonic::Code;

fn delete(vm: &str, seconds: Option<i64>, validate_only: bool) -> DeleteVmRequest {
    DeleteVmRequest {
        vm_id: vm.to_owned(),
        retention: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        validate_only,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_deletes_with_less_retention_than_configured() {
    let stand = Stand::with(|setup, _| setup.with("vms", "retention = \"1h\"")).await;
    let image = stand.daemon.image().await;
    let local = stand.daemon.api();
    let operator = stand.operator();
    let vm = local.create(&image, Start::No).await;
    for seconds in [0, 1, 3599] {
        for validate_only in [true, false] {
            let asked = delete(&vm, Some(seconds), validate_only);
            let status = operator.vms().delete_vm(asked).await.unwrap_err();
            let refusal = Refusal::from(&status);
            assert_eq!(
                refusal.brief(),
                (Code::PermissionDenied, "NOT_ALLOWED", vec![])
            );
            assert_eq!(refusal.metadata["needs"], "admin");
            assert_eq!(refusal.metadata["role"], "operator");
        }
    }
    let answer = operator
        .vms()
        .delete_vm(delete(&vm, Some(3600), false))
        .await;
    let done = operator.outcome(answer).await.unwrap();
    assert!(done.caller.starts_with("uri:spiffe://"), "{}", done.caller);

    let vm = local.create(&image, Start::No).await;
    let answer = operator.vms().delete_vm(delete(&vm, None, false)).await;
    operator.outcome(answer).await.unwrap();

    let vm = local.create(&image, Start::No).await;
    let admin = stand.admin();
    let answer = admin.vms().delete_vm(delete(&vm, Some(0), false)).await;
    let done = admin.outcome(answer).await.unwrap();
    assert_eq!(done.caller, "dns:ops.test.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_says_on_whose_behalf_it_came_about() {
    let stand = Stand::start().await;
    let image = stand.daemon.image().await;
    let vm = stand.daemon.api().create(&image, Start::No).await;
    let follow = WatchEventsRequest::default();
    let answer = stand.viewer().nodes().watch_events(follow).await;
    let mut events = answer.unwrap().into_inner();
    let operator = stand.operator();
    let start = StartVmRequest {
        vm_id: vm,
        ..Default::default()
    };
    let answer = operator.vms().start_vm(start).await;
    let done = operator.outcome(answer).await.unwrap();
    let (mut of_vm, mut of_operation) = (0, 0);
    // The last that is told of an operation is its end.
    loop {
        let next = tokio::time::timeout(PATIENCE, events.message()).await;
        let event = next.expect("an event in time").unwrap().unwrap();
        let Some(cause) = event.cause.filter(|cause| cause.operation_id == done.id) else {
            continue;
        };
        assert_eq!(cause.caller, done.caller);
        match event.event {
            Some(Told::Vm(_)) => of_vm += 1,
            Some(Told::Operation(operation)) => {
                of_operation += 1;
                assert_eq!(operation.caller, done.caller);
                if operation.end_time.is_some() {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(of_vm > 0 && of_operation > 0);
    assert_eq!(done.caller, format!("uri:{OPERATOR}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_cancelled_by_who_could_begin_one() {
    let stand = Stand::start().await;
    let image = stand.daemon.image().await;
    stand.daemon.api().create(&image, Start::No).await;
    let all = stand
        .viewer()
        .operations()
        .list_operations(ListOperationsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .operations;
    let of = |kind: OperationType| {
        let found = all.iter().find(|operation| operation.r#type() == kind);
        found.expect("it was begun").id.clone()
    };
    let cancel = async |operation_id: String| {
        let asked = CancelOperationRequest { operation_id };
        stand.operator().operations().cancel_operation(asked).await
    };
    let refused = cancel(of(OperationType::ImportImage)).await.unwrap_err();
    assert_eq!(
        Refusal::from(&refused).brief(),
        (Code::PermissionDenied, "NOT_ALLOWED", vec![])
    );
    // It has ended, and so is answered as it is.
    cancel(of(OperationType::CreateVm)).await.unwrap();
}
