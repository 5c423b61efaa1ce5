//! Maintenance: what it refuses, what it lets go on, whom it stops, and that it is
//! still there when the agent comes back.

use crate::api::host::{Host, wire};
use crate::support::api::{Api, Start, force, graceful, id, small};
use crate::support::daemon::Daemon;
use crate::support::refusal::{Refusal, refused};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;

fn begin(message: &str) -> SetMaintenanceRequest {
    SetMaintenanceRequest {
        enabled: true,
        message: message.to_owned(),
        ..Default::default()
    }
}

async fn set(api: &Api, request: SetMaintenanceRequest) -> Operation {
    api.done(api.nodes().set_maintenance(request).await).await
}

fn condition(node: &Node, kind: &str) -> Condition {
    let found = node.conditions.iter().find(|it| it.r#type == kind);
    found.expect("it is told").clone()
}

/// A graceful stop that a simulated guest does not hear of in its time.
fn brief() -> StopPolicy {
    StopPolicy {
        timeout: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..graceful()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_bring_a_guest_is_refused_and_all_else_goes_on() {
    let host = Host::start().await;
    let api = host.api();
    let (stopped, _) = host.vm_in(Resting::Stopped).await;
    let (running, _) = host.vm_in(Resting::Running).await;
    let (paused, _) = host.vm_in(Resting::Paused).await;
    let (deleted, _) = host.vm_in(Resting::Deleted).await;
    let (saved, _) = host.vm_in(Resting::Saved).await;
    let other = host.another_image().await;
    let done = set(&api, begin("new disks")).await;
    assert_eq!(done.r#type(), OperationType::SetMaintenance);
    let steps: Vec<_> = done.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["set-maintenance"]);

    let mut vms = api.vms();
    let start = |vm_id: &str| StartVmRequest {
        vm_id: vm_id.to_owned(),
        ..Default::default()
    };
    let on = |vm_id: &str| SetVmPowerStateRequest {
        vm_id: vm_id.to_owned(),
        power_state: PowerState::On as i32,
        ..Default::default()
    };
    let replace = |vm_id: &str, start_after| ReplaceRootVolumeRequest {
        vm_id: vm_id.to_owned(),
        image_id: other.clone(),
        stop_policy: Some(force()),
        start_after,
        ..Default::default()
    };
    let refusals = [
        vms.create_vm(small(&host.image)).await,
        vms.create_vm(CreateVmRequest {
            validate_only: true,
            ..small(&host.image)
        })
        .await,
        vms.start_vm(start(&stopped)).await,
        vms.start_vm(start(&saved)).await,
        vms.set_vm_power_state(on(&stopped)).await,
        vms.replace_root_volume(replace(&running, true)).await,
    ];
    for answer in refusals {
        let refusal = refused(answer);
        assert_eq!(refusal.reason, "NODE_IN_MAINTENANCE");
        assert_eq!(refusal.code, tonic::Code::FailedPrecondition);
        assert_eq!(refusal.metadata["message"], "new disks");
    }
    // It has power already; it is resumed; it is only brought back; it stays off.
    api.done(vms.start_vm(start(&running)).await).await;
    api.done(vms.set_vm_power_state(on(&paused)).await).await;
    let recover = RecoverVmRequest {
        vm_id: deleted,
        ..Default::default()
    };
    api.done(vms.recover_vm(recover).await).await;
    api.done(vms.replace_root_volume(replace(&stopped, false)).await)
        .await;
    assert_eq!(api.state(&running).await, VmState::Running);
    assert_eq!(api.state(&paused).await, wire(Resting::Running));

    set(&api, SetMaintenanceRequest::default()).await;
    api.done(vms.start_vm(start(&stopped)).await).await;
    let revert = RevertRootVolumeRequest {
        vm_id: stopped.clone(),
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    set(&api, begin("")).await;
    let refusal = refused(vms.revert_root_volume(revert).await);
    assert_eq!(refusal.reason, "NODE_IN_MAINTENANCE");
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_is_told_and_outlives_the_agent() {
    let mut daemon = Daemon::simulated().await;
    let api = daemon.api();
    let before = api.node().await;
    assert_eq!(before.maintenance, Some(Maintenance::default()));
    assert!(condition(&before, "Schedulable").status);

    let request = SetMaintenanceRequest {
        request_id: id(),
        ..begin("new disks")
    };
    let first = set(&api, request.clone()).await;
    let told = api.node().await;
    let maintenance = told.maintenance.clone().expect("it is told");
    assert!(maintenance.enabled);
    assert_eq!(maintenance.message, "new disks");
    let schedulable = condition(&told, "Schedulable");
    assert!(!schedulable.status);
    assert_eq!(
        (schedulable.reason.as_str(), schedulable.message.as_str()),
        ("Maintenance", "new disks")
    );
    assert_eq!(schedulable.last_transition_time, maintenance.start_time);
    assert!(api.serving("").await.unwrap(), "the agent is well");

    daemon.kill9();
    daemon.restart().await;
    let api = daemon.api();
    let after = api.node().await;
    assert_eq!(after.maintenance, told.maintenance);
    let since = condition(&after, "Schedulable").last_transition_time;
    assert_eq!(since, maintenance.start_time);
    assert_eq!(set(&api, request.clone()).await.id, first.id);
    let other = SetMaintenanceRequest {
        message: "no disks".to_owned(),
        ..request
    };
    let refusal = refused(api.nodes().set_maintenance(other).await);
    assert_eq!(refusal.reason, "REQUEST_ID_REUSED");
    assert_eq!(refusal.metadata["field"], "message");

    // Another message does not make it begin anew.
    set(&api, begin("old disks")).await;
    let changed = api.node().await.maintenance.expect("it is told");
    assert_eq!(changed.message, "old disks");
    assert_eq!(changed.start_time, maintenance.start_time);
    set(&api, SetMaintenanceRequest::default()).await;
    // What is so already is a success.
    set(&api, SetMaintenanceRequest::default()).await;
    assert_eq!(api.node().await.maintenance, Some(Maintenance::default()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_guest_is_stopped_by_an_operation_of_its_own() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let mut running = Vec::new();
    for _ in 0..5 {
        running.push(api.create(&image, Start::Yes).await);
    }
    let off = api.create(&image, Start::No).await;
    let request = SetMaintenanceRequest {
        stop_policy: Some(force()),
        ..begin("")
    };
    let done = set(&api, request).await;
    let steps: Vec<_> = done.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["set-maintenance", "stop-vms"]);
    for vm_id in &running {
        assert_eq!(api.state(vm_id).await, VmState::Stopped);
    }
    let mut stops: Vec<Operation> = api.all_operations().await;
    stops.retain(|operation| operation.r#type() == OperationType::StopVm);
    let mut stopped: Vec<_> = stops.iter().map(|stop| stop.vm_id.clone()).collect();
    stopped.sort();
    running.sort();
    assert_eq!(stopped, running, "and {off} was not asked");
    assert!(stops.iter().all(|stop| stop.caller == done.caller));
    let node = api.node().await;
    assert_eq!(node.vm_counts["STOPPED"], 6);
    assert_eq!(node.capacity.unwrap().promised_vcpus, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_stop_is_named_and_the_host_stays_in_maintenance() {
    let host = Host::start().await;
    let api = host.api();
    let (running, _) = host.vm_in(Resting::Running).await;
    // A paused guest hears nothing.
    let (paused, _) = host.vm_in(Resting::Paused).await;
    let request = |on_timeout: OnTimeout| SetMaintenanceRequest {
        stop_policy: Some(StopPolicy {
            on_timeout: on_timeout as i32,
            ..brief()
        }),
        ..begin("new disks")
    };
    let answer = api.nodes().set_maintenance(request(OnTimeout::Fail)).await;
    let operation = api.ended(&answer.unwrap().into_inner().id).await;
    assert_eq!(operation.state(), OperationState::Failed);
    assert_eq!(operation.rollback_state(), RollbackState::None);
    let refusal = Refusal::from(operation.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "GUEST_DID_NOT_STOP");
    assert_eq!(refusal.metadata["vm_ids"], paused);
    assert_eq!(api.state(&running).await, VmState::Stopped);
    assert_eq!(api.state(&paused).await, VmState::Paused);
    assert!(api.node().await.maintenance.unwrap().enabled);

    // Asked again, it goes on with those that are left.
    set(&api, request(OnTimeout::Force)).await;
    assert_eq!(api.state(&paused).await, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_says_too_much_is_refused() {
    let daemon = Daemon::simulated().await;
    let mut nodes = daemon.api().nodes();
    let ends_with_policy = SetMaintenanceRequest {
        stop_policy: Some(force()),
        ..Default::default()
    };
    let refusal = refused(nodes.set_maintenance(ends_with_policy).await);
    assert_eq!(refusal.reason, "FIELD_INVALID");
    let no_mode = SetMaintenanceRequest {
        stop_policy: Some(StopPolicy::default()),
        ..begin("")
    };
    let refusal = refused(nodes.set_maintenance(no_mode).await);
    assert_eq!(refusal.reason, "FIELD_REQUIRED");
    let refusal = refused(nodes.set_maintenance(begin(&"x".repeat(256))).await);
    assert_eq!(refusal.reason, "FIELD_INVALID");
}
