//! Guests whose kernel panics.

use super::root::problem;
use crate::bench::Bench;
use crate::sector::LINE;
use crate::support::api::{force, id};
use crate::support::watch::Watcher;
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::*;

pub async fn a_guest_that_panics_has_crashed_and_can_be_started(bench: &Bench) {
    let api = bench.host.daemon.api();
    let mut watcher = Watcher::now(&api).await;
    let guest = bench.guest("panic-later").await;
    assert!(guest.has_option("-device", "{\"driver\":\"pvpanic\""));
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    guest.has_said(LINE.trim(), 2).await;
    let first = watcher
        .until(|event| {
            matches!(event, Event::Vm(vm) if vm.id == guest.id
                && vm.state_reason() == StateReason::Crashed)
        })
        .await;
    let cause = first.cause.unwrap();
    assert_eq!(cause.kind(), CauseKind::Guest);
    assert_eq!(cause.detail(), CauseDetail::Crash);
    guest.start().await;
    guest.is(VmState::Running, StateReason::Operation).await;
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    guest.remove().await;
}

pub async fn a_new_root_that_panics_is_switched_back_at_once(bench: &Bench) {
    let api = bench.host.daemon.api();
    let panics = bench.import(&bench.host, "panic-later").await;
    let guest = bench.guest("idle").await;
    guest.has_said(LINE.trim(), 1).await;
    let before = guest.vm().await;
    for sign in [HealthSign::StillRunning, HealthSign::GuestAgent] {
        let replace = ReplaceRootVolumeRequest {
            vm_id: guest.id.clone(),
            image_id: panics.clone(),
            resource_id: id(),
            stop_policy: Some(force()),
            start_after: true,
            health_check: Some(HealthCheck {
                sign: sign.into(),
                // A check that waits for its end does not end within this test.
                timeout: Some(prost_types::Duration {
                    seconds: 600,
                    nanos: 0,
                }),
            }),
            ..Default::default()
        };
        let answer = api.vms().replace_root_volume(replace).await;
        let ended = api.ended(&answer.unwrap().into_inner().id).await;
        assert_eq!(problem(&ended), "guest_panicked", "{ended:?}");
        assert_eq!(ended.rollback_state(), RollbackState::Done);
        guest.is(VmState::Running, StateReason::Operation).await;
        assert_eq!(guest.vm().await.root_volume_id, before.root_volume_id);
    }
    guest.remove().await;
}
