//! Stopping guests that obey, that are busy, and that don't listen.

use crate::bench::{Bench, Guest};
use crate::support::api::{force, graceful};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Asks each second; a deaf guest needs no patience.
fn within(timeout: i64, on_timeout: OnTimeout) -> StopPolicy {
    StopPolicy {
        timeout: seconds(timeout),
        resend_interval: seconds(1),
        on_timeout: on_timeout as i32,
        ..graceful()
    }
}

/// Begins to stop a guest, and returns the operation that is at work.
pub async fn begin(guest: &Guest, bench: &Bench, policy: StopPolicy) -> Operation {
    let mut vms = bench.host.daemon.api().vms();
    let answer = vms.stop_vm(guest.stop_request(Some(policy))).await;
    answer.unwrap().into_inner()
}

/// Waits until the guest has been asked.
async fn was_asked(bench: &Bench, operation: &Operation) {
    let api = bench.host.daemon.api();
    until("the guest to be asked", PATIENCE, async || {
        let request = GetOperationRequest {
            operation_id: operation.id.clone(),
        };
        let operation = api.operations().get_operation(request).await.unwrap();
        let outcome = operation.into_inner().power_outcome;
        outcome
            .is_some_and(|outcome| outcome.signals_sent > 0)
            .then_some(())
    })
    .await;
}

pub async fn a_deaf_guest_is_left_running_or_forced_as_the_policy_says(bench: &Bench) {
    let api = bench.host.daemon.api();
    let guest = bench.guest("deaf-1").await;
    guest.has_said("kind deaf up", 1).await;

    let stop = begin(&guest, bench, within(3, OnTimeout::Fail)).await;
    let ended = api.ended(&stop.id).await;
    assert_eq!(ended.state(), OperationState::Failed);
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "GUEST_DID_NOT_STOP");
    let outcome = ended.power_outcome.expect("it was asked");
    assert!(!outcome.forced && outcome.signals_sent >= 2, "{outcome:?}");
    assert_eq!(guest.state().await, VmState::Running);
    guest.has_said("power button, press 2", 1).await;

    let stop = begin(&guest, bench, within(2, OnTimeout::Force)).await;
    let ended = api.ended(&stop.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded);
    let outcome = ended.power_outcome.expect("it was stopped");
    assert_eq!(outcome.method(), PowerMethod::Force);
    assert!(outcome.forced && outcome.signals_sent >= 1, "{outcome:?}");
    guest.is(VmState::Stopped, StateReason::Operation).await;
    guest.remove().await;
}

pub async fn a_busy_guest_is_asked_again(bench: &Bench) {
    let guest = bench.guest("slow-1").await;
    guest.has_said("kind slow up", 1).await;
    let policy = StopPolicy {
        timeout: seconds(50),
        resend_interval: seconds(3),
        ..graceful()
    };
    let stop = begin(&guest, bench, policy).await;
    let ended = bench.host.daemon.api().ended(&stop.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.expect("it was stopped");
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert!(outcome.signals_sent >= 2 && !outcome.forced, "{outcome:?}");
    assert!(outcome.waited.unwrap().seconds >= 2);
    guest.remove().await;
}

pub async fn a_guest_with_an_agent_is_stopped_and_rebooted_through_it(bench: &Bench) {
    let api = bench.host.daemon.api();
    let guest = bench.guest("agent-1").await;
    guest.has_said("kind agent up", 1).await;
    let request = RebootVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().reboot_vm(request).await).await;
    guest.has_said("kind agent up", 2).await;
    guest.has_said("shutdown by agent: reboot", 1).await;

    let stop = begin(&guest, bench, graceful()).await;
    let ended = api.ended(&stop.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.expect("it was stopped");
    assert_eq!(outcome.method(), PowerMethod::GuestAgent);
    assert_eq!(guest.says("shutdown by agent: poweroff"), 1);
    guest.is(VmState::Stopped, StateReason::Operation).await;
    guest.remove().await;
}

pub async fn a_forced_stop_overtakes_a_graceful_one(bench: &Bench) {
    let api = bench.host.daemon.api();
    let guest = bench.guest("idle").await;
    let waiting = begin(&guest, bench, within(300, OnTimeout::Fail)).await;
    was_asked(bench, &waiting).await;
    assert_eq!(guest.state().await, VmState::Stopping);

    let forced = begin(&guest, bench, force()).await;
    assert_ne!(forced.id, waiting.id);
    assert_eq!(
        api.ended(&forced.id).await.state(),
        OperationState::Succeeded
    );
    let overtaken = api.ended(&waiting.id).await;
    assert_eq!(overtaken.state(), OperationState::Cancelled);
    let refusal = Refusal::from(overtaken.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "OVERTAKEN");
    guest.is(VmState::Stopped, StateReason::Operation).await;
    guest.remove().await;
}

pub async fn a_graceful_stop_can_be_cancelled(bench: &Bench) {
    let api = bench.host.daemon.api();
    let guest = bench.guest("idle").await;
    let waiting = begin(&guest, bench, within(300, OnTimeout::Force)).await;
    was_asked(bench, &waiting).await;
    let request = CancelOperationRequest {
        operation_id: waiting.id.clone(),
    };
    api.operations().cancel_operation(request).await.unwrap();
    let ended = api.ended(&waiting.id).await;
    assert_eq!(ended.state(), OperationState::Cancelled);
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "CANCELLED_BY_CALLER");
    assert_eq!(guest.state().await, VmState::Running);
    guest.remove().await;
}
