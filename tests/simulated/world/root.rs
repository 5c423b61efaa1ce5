//! A way back that does not lead all the way: what is shown, and what is left.

use crate::support::PATIENCE;
use crate::support::api::{Start, force, id};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::Refusal;
use crate::support::until;
use kvmlet::proto::v1::*;

/// A replacement whose guest comes up without an agent, and whose undoing finds
/// the point armed.
async fn half_undone(point: &str) -> (Daemon, Vm, Vm, Operation) {
    let setup = Setup {
        environment: vec![("FAILPOINTS".to_owned(), format!("{point}=1*return(fail)"))],
        ..Setup::default().at_real_pace()
    };
    let daemon = Daemon::start(setup).await;
    let api = daemon.api();
    let image = daemon.image().await;
    let another = daemon.image().await;
    let vm = api.create(&image, Start::Yes).await;
    let before = api.vm(&vm).await.unwrap();
    let request = ReplaceRootVolumeRequest {
        vm_id: vm.clone(),
        image_id: another,
        resource_id: id(),
        stop_policy: Some(force()),
        start_after: true,
        keep_old_for: Some(prost_types::Duration::default()),
        health_check: Some(HealthCheck {
            sign: HealthSign::GuestAgent.into(),
            timeout: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
        }),
        ..Default::default()
    };
    let begun = api.vms().replace_root_volume(request).await;
    let operation = api.ended(&begun.unwrap().into_inner().id).await;
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(operation.state(), OperationState::Failed);
    assert_eq!(operation.rollback_state(), RollbackState::Failed);
    (daemon, before, after, operation)
}

fn states(operation: &Operation) -> Vec<(&str, StepState)> {
    let steps = operation.steps.iter();
    steps.map(|step| (&*step.name, step.state())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_guest_that_can_not_be_started_again_is_off_on_its_old_root_and_told_so() {
    let (daemon, before, after, operation) =
        half_undone("replace-root-volume.stop-guest.undo").await;
    let error = Refusal::from(operation.error.as_ref().unwrap());
    assert_eq!(error.reason, "START_FAILED", "why it was undone");
    assert_eq!(error.metadata["problem"], "guest_agent_silent");
    assert_eq!(error.metadata["not_undone"], "stop-guest");
    assert_eq!(
        states(&operation),
        [
            ("cache-image", StepState::Skipped),
            ("make-volume", StepState::Undone),
            ("stop-guest", StepState::UndoFailed),
            ("switch-root", StepState::Undone),
            ("start-guest", StepState::Undone),
            ("check-health", StepState::Failed),
        ]
    );
    assert_eq!(after.state(), VmState::Stopped);
    assert_eq!(after.state_reason(), StateReason::StartFailed);
    assert_eq!(after.root_volume_id, before.root_volume_id);
    assert_eq!(after.volumes, before.volumes, "the new root is gone");
    let api = daemon.api();
    let start = StartVmRequest {
        vm_id: after.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().start_vm(start).await).await;
    assert_eq!(api.state(&after.id).await, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_can_not_be_switched_back_stays_and_both_are_known() {
    let (daemon, before, after, operation) =
        half_undone("replace-root-volume.switch-root.undo").await;
    let error = Refusal::from(operation.error.as_ref().unwrap());
    assert_eq!(
        error.metadata["not_undone"],
        "switch-root,stop-guest,make-volume"
    );
    assert_eq!(after.state(), VmState::Stopped);
    assert_ne!(after.root_volume_id, before.root_volume_id);
    let files = daemon.pool_files();
    for volume in &after.volumes {
        assert!(files.iter().any(|file| file.contains(&volume.id)));
    }
    let mut volumes = after.volumes.iter();
    let old = volumes.find(|v| v.id == before.root_volume_id).unwrap();
    assert_eq!(old.state(), VolumeState::Kept);
    let asked = operation.create_time.unwrap().seconds;
    assert!(
        old.expire_time.unwrap().seconds >= asked + 24 * 3600,
        "what ran before is not given up for what does not: {old:?}"
    );
    // The way on that the runbook tells.
    let api = daemon.api();
    let revert = RevertRootVolumeRequest {
        vm_id: after.id.clone(),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert).await).await;
    let back = api.vm(&after.id).await.unwrap();
    assert_eq!(back.state(), VmState::Running);
    assert_eq!(back.root_volume_id, before.root_volume_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_that_can_not_be_removed_is_known_and_removed_later() {
    let (daemon, before, after, operation) =
        half_undone("replace-root-volume.make-volume.undo").await;
    let error = Refusal::from(operation.error.as_ref().unwrap());
    assert_eq!(error.metadata["not_undone"], "make-volume");
    assert_eq!(after.state(), VmState::Running, "it ran before");
    assert_eq!(after.root_volume_id, before.root_volume_id);
    assert_eq!(after.volumes.len(), 2);
    let left = &after.volumes[1].id;
    let api = daemon.api();
    until("the sweeper to remove it", PATIENCE, async || {
        let gone = api.vm(&after.id).await.unwrap().volumes == before.volumes
            && !daemon.pool_files().iter().any(|file| file.contains(left));
        gone.then_some(())
    })
    .await;
}
