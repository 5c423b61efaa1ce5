//! Graceful stops that the agent's own end interrupts.

use super::host::{LINE, World, image};
use crate::bench::Guest;
use crate::sector::BootSector;
use crate::support::api::graceful;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::time::Duration;

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Begins to stop a guest and waits until it was asked so many times.
pub async fn asked(world: &World, guest: &Guest, policy: StopPolicy, times: u32) -> String {
    let api = world.api();
    let answer = api.vms().stop_vm(guest.stop_request(Some(policy))).await;
    let id = answer.unwrap().into_inner().id;
    until("the guest to be asked", PATIENCE, async || {
        let request = GetOperationRequest {
            operation_id: id.clone(),
        };
        let operation = api.operations().get_operation(request).await.unwrap();
        let outcome = operation.into_inner().power_outcome?;
        (outcome.signals_sent >= times).then_some(())
    })
    .await;
    id
}

pub fn length(duration: Option<prost_types::Duration>) -> Duration {
    duration.unwrap().try_into().unwrap()
}

pub async fn a_stop_goes_on_with_the_time_that_is_left_after_a_restart(mut world: World) {
    let guest = world.guest(&world.deaf).await;
    let policy = StopPolicy {
        timeout: seconds(12),
        resend_interval: seconds(3),
        on_timeout: OnTimeout::Fail as i32,
        ..graceful()
    };
    // Asked at 0, 3 and 6 seconds.
    let stop = asked(&world, &guest, policy, 3).await;
    world.host.daemon.kill9();
    world.host.daemon.restart().await;
    let ended = world.api().ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Failed);
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "GUEST_DID_NOT_STOP");
    let outcome = ended.power_outcome.unwrap();
    assert!(outcome.signals_sent >= 4, "{outcome:?}");
    assert_eq!(
        refusal.metadata["signals_sent"],
        outcome.signals_sent.to_string()
    );
    let took = i64::max(
        ended.end_time.unwrap().seconds - ended.create_time.unwrap().seconds,
        0,
    );
    // With its whole time again it would be 18 seconds at least.
    assert!((12..17).contains(&took), "{took} s, {outcome:?}");
    let guest = world.host.guest(guest.id);
    guest.is(VmState::Running, StateReason::Operation).await;
    guest.remove().await;
}

pub async fn a_guest_that_needs_two_signals_gets_them_from_two_runs_of_the_agent(mut world: World) {
    let slow = image(&world.host, BootSector::Button(2)).await;
    let guest = world.guest(&slow).await;
    let policy = StopPolicy {
        timeout: seconds(120),
        // The agent is killed before it asks again.
        resend_interval: seconds(8),
        ..graceful()
    };
    let stop = asked(&world, &guest, policy, 1).await;
    world.host.daemon.kill9();
    world.host.daemon.restart().await;
    let ended = world.api().ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!((outcome.signals_sent, outcome.forced), (2, false));
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert!(length(outcome.waited) < Duration::from_secs(100));
    let guest = world.host.guest(guest.id);
    guest.is(VmState::Stopped, StateReason::Operation).await;

    // One that obeys is asked once.
    let guest = world.guest(&world.obedient).await;
    let stop = asked(&world, &guest, graceful(), 1).await;
    let ended = world.api().ended(&stop).await;
    assert_eq!(ended.power_outcome.unwrap().signals_sent, 1);
    assert_eq!(guest.says(LINE), 1);
}

/// The time has passed while the agent was away: the guest is asked once more, and
/// only then is the time up.
pub async fn a_guest_is_asked_once_more_before_it_is_forced_after_a_restart(mut world: World) {
    let slow = image(&world.host, BootSector::Button(2)).await;
    let guest = world.guest(&slow).await;
    let policy = StopPolicy {
        timeout: seconds(4),
        resend_interval: seconds(4),
        on_timeout: OnTimeout::Force as i32,
        ..graceful()
    };
    let stop = asked(&world, &guest, policy, 1).await;
    world.host.daemon.kill9();
    // Nothing announces that time has passed.
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.host.daemon.restart().await;
    let ended = world.api().ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(
        (outcome.signals_sent, outcome.forced),
        (2, false),
        "it obeyed"
    );
    assert!(length(outcome.waited) >= Duration::from_secs(5));
}
