//! One VM and one operation, however often and from however many CreateVm is
//! called.

use crate::api::host::Host;
use crate::support::api::{Api, Start, id, small};
use crate::support::daemon::Daemon;
use crate::support::refusal::refused;
use kvmlet::proto::v1::*;
use std::collections::BTreeSet;
use tonic::Code;

const CALLERS: usize = 20;

/// The ids of operation and VM that many callers at once are told.
async fn at_once(api: &Api, request: &CreateVmRequest) -> BTreeSet<(String, String)> {
    let calls: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (api, request) = (api.clone(), request.clone());
            tokio::spawn(async move {
                let operation = api.vms().create_vm(request).await.unwrap().into_inner();
                (operation.id, operation.vm_id)
            })
        })
        .collect();
    let mut told = BTreeSet::new();
    for call in calls {
        told.insert(call.await.unwrap());
    }
    told
}

/// There is one VM and one creation, and both can be found.
async fn one_of_each(api: &Api, operation: &str, vm: &str, request_id: &str) {
    let ended = api.ended(operation).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let vms: Vec<String> = api.all_vms().await.into_iter().map(|vm| vm.id).collect();
    assert_eq!(vms, [vm]);
    assert_eq!(api.vm(vm).await.unwrap().volumes.len(), 1);
    let made: Vec<String> = api
        .all_operations()
        .await
        .into_iter()
        .filter(|operation| operation.r#type() == OperationType::CreateVm)
        .map(|operation| operation.id)
        .collect();
    assert_eq!(made, [operation]);
    if !request_id.is_empty() {
        let found = api
            .operations()
            .list_operations(ListOperationsRequest {
                request_id: request_id.to_owned(),
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner()
            .operations;
        assert_eq!(found, [ended]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_callers_with_one_vm_id_make_one_vm() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let request = small(&daemon.image().await);
    let told = at_once(&api, &request).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let (operation, vm) = told.first().unwrap();
    assert_eq!(*vm, request.vm_id);
    one_of_each(&api, operation, vm, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_an_orphan_is_refused_and_the_orphan_is_left_alone() {
    let host = Host::start().await;
    let api = host.api();
    let request = CreateVmRequest {
        start: true,
        ..small(&host.image)
    };
    let vm = &request.vm_id;
    let xml = format!(
        "<domain type='test'><name>kvmlet-{vm}</name><uuid>{vm}</uuid>\
         <memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"
    );
    let orphan = host.connection.define_domain_xml(&xml).unwrap();
    orphan.create().unwrap();
    let refusal = refused(api.vms().create_vm(request.clone()).await);
    assert_eq!(
        refusal.brief(),
        (Code::FailedPrecondition, "DOMAIN_FOREIGN", vec!["vm_id"])
    );
    assert!(orphan.is_active().unwrap());
    assert!(api.all_vms().await.is_empty());
    assert!(
        host.daemon
            .pool_files()
            .iter()
            .all(|file| !file.contains("volumes/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_callers_with_one_request_id_make_one_vm() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let request = CreateVmRequest {
        request_id: id(),
        vm_id: String::new(),
        ..small(&daemon.image().await)
    };
    let told = at_once(&api, &request).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let (operation, vm) = told.first().unwrap();
    one_of_each(&api, operation, vm, &request.request_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_right_after_the_answer_leaves_one_vm_and_one_operation() {
    let mut host = Host::start().await;
    let request = CreateVmRequest {
        request_id: id(),
        start: true,
        ..small(&host.image)
    };
    let answer = host.api().vms().create_vm(request.clone()).await;
    host.daemon.kill9();
    let first = answer.unwrap().into_inner();
    host.daemon.restart().await;
    let api = host.api();
    let again = api.vms().create_vm(request.clone()).await.unwrap();
    assert_eq!(again.get_ref().id, first.id);
    one_of_each(&api, &first.id, &request.vm_id, &request.request_id).await;
    assert_eq!(api.state(&request.vm_id).await, VmState::Running);
    assert!(host.domain(&request.vm_id).is_active().unwrap());
    let without = CreateVmRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let again = api.vms().create_vm(without).await.unwrap();
    assert_eq!(again.get_ref().id, first.id, "by its id alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_request_with_the_same_ids_is_told_the_first_field_that_differs() {
    let mut daemon = Daemon::simulated().await;
    let api = daemon.api();
    let request = CreateVmRequest {
        request_id: id(),
        ..small(&daemon.image().await)
    };
    api.done(api.vms().create_vm(request.clone()).await).await;
    let other = CreateVmRequest {
        name: "other".to_owned(),
        ..request.clone()
    };
    let check = async |api: &Api| {
        let reused = refused(api.vms().create_vm(other.clone()).await);
        assert_eq!(
            (reused.code, reused.reason.as_str()),
            (Code::AlreadyExists, "REQUEST_ID_REUSED")
        );
        assert_eq!(reused.metadata["field"], "name");
        let exists = refused(
            api.vms()
                .create_vm(CreateVmRequest {
                    request_id: String::new(),
                    ..other.clone()
                })
                .await,
        );
        assert_eq!(
            (exists.code, exists.reason.as_str()),
            (Code::AlreadyExists, "VM_EXISTS")
        );
        assert_eq!(exists.metadata["field"], "name");
        assert_eq!(exists.metadata["vm_id"], request.vm_id);
        let stop = StopVmRequest {
            request_id: request.request_id.clone(),
            vm_id: request.vm_id.clone(),
            ..Default::default()
        };
        let reused = refused(api.vms().stop_vm(stop).await);
        assert_eq!(reused.reason, "REQUEST_ID_REUSED", "also by another call");
    };
    check(&api).await;
    daemon.kill9();
    daemon.restart().await;
    check(&daemon.api()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_without_hyphens_name_the_same_vm() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let vm = api.create(&daemon.image().await, Start::No).await;
    let short = vm.replace('-', "").to_uppercase();
    assert_eq!(api.vm(&short).await.unwrap().id, vm);
}
