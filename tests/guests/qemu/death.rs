//! The agent ends, by force or not: what its guests notice of it, which is nothing, and
//! what it knows of them at its next start.
//!
//! What becomes of operations is the crash matrix's (`tests/crash`), but for guests that
//! it does not have: one that is being watched, one that does not obey.

use crate::bench::{Bench, Host, request};
use crate::support::api::{force, graceful};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};

const LINE: &str = "kvmlet test guest";

/// Whether a process runs; one that has ended and is not collected does not.
fn runs(process: nix::unistd::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, state)| !state.starts_with('Z'))
}

pub async fn guests_outlive_the_agent_and_are_known_again(bench: &Bench) {
    let mut host = bench.another().await;
    let image = bench.import(&host, "idle").await;
    let later = bench.import(&host, "power-off-later").await;
    let idle = host.create(request(&image)).await;
    idle.has_said(LINE, 1).await;
    let process = idle.qemu();

    // Asked to end, with nothing to hurry for.
    host.daemon.stop().await;
    assert!(runs(process), "QEMU ended with the agent");
    host.daemon.restart().await;
    let idle = host.guest(idle.id);
    assert_eq!(idle.state().await, VmState::Running);

    // Killed, while one guest powers itself off and another one's QEMU dies.
    let crashed = host.create(request(&image)).await;
    let off = host.create(request(&later)).await;
    let (victim, ending) = (crashed.qemu(), off.qemu());
    off.has_said(LINE, 1).await;
    host.daemon.kill9();
    kill(victim, Signal::SIGKILL).unwrap();
    // Its second line is the last it does.
    off.has_said(LINE, 2).await;
    until("the killed QEMU to end", PATIENCE, async || {
        (!runs(victim)).then_some(())
    })
    .await;
    assert!(runs(process), "QEMU ended with the agent");
    assert!(runs(ending), "nobody is there to end it");
    host.daemon.restart().await;

    let [idle, crashed, off] = [idle.id, crashed.id, off.id].map(|id| host.guest(id));
    assert_eq!(idle.state().await, VmState::Running);
    assert_eq!(idle.qemu(), process);
    assert_eq!(idle.says(LINE), 1, "it has not noticed");
    crashed.is(VmState::Crashed, StateReason::Crashed).await;
    off.is(VmState::Stopped, StateReason::GuestShutdown).await;
    assert_eq!(host.qemus(), [process]);
    let api = host.daemon.api();
    let request = GetVncConsoleRequest {
        vm_id: idle.id.clone(),
    };
    // Events still come in, and calls go out.
    api.consoles().get_vnc_console(request).await.unwrap_err();
    idle.force_off().await;
    idle.is(VmState::Stopped, StateReason::Operation).await;
}

/// Waits until so many steps of an operation have ended, or all of it.
async fn has_come_to(host: &Host, operation_id: &str, steps: usize) {
    let api = host.daemon.api();
    until("the operation to get on", PATIENCE, async || {
        let request = GetOperationRequest {
            operation_id: operation_id.to_owned(),
        };
        let operation = api.operations().get_operation(request).await.unwrap();
        let operation = operation.into_inner();
        let ended = operation
            .steps
            .iter()
            .filter(|step| step.end_time.is_some());
        let over = operation.state >= OperationState::Succeeded as i32;
        (over || ended.count() >= steps).then_some(())
    })
    .await;
}

/// Kills the agent when an operation has come so far, starts it again, and
/// returns the operation when it has ended.
async fn killed_at(host: &mut Host, operation_id: &str, steps: usize) -> Operation {
    has_come_to(host, operation_id, steps).await;
    host.daemon.kill9();
    host.daemon.restart().await;
    host.daemon.api().ended(operation_id).await
}

pub async fn a_guest_that_runs_on_its_new_root_is_not_stopped_again(bench: &Bench) {
    let mut host = bench.another().await;
    let image = bench.import(&host, "idle").await;
    let other = bench.import(&host, "idle-too").await;
    let guest = host.create(request(&image)).await;
    guest.has_said(LINE, 1).await;
    let replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: other,
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: HealthSign::StillRunning as i32,
            timeout: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
        }),
        ..Default::default()
    };
    let api = host.daemon.api();
    let answer = api.vms().replace_root_volume(replace).await.unwrap();
    let operation = answer.into_inner().id;
    guest.has_said(LINE, 2).await;
    let process = guest.qemu();
    // The last step, which watches the guest, is at work.
    let operation = killed_at(&mut host, &operation, 5).await;

    let guest = host.guest(guest.id);
    assert_eq!(
        operation.state(),
        OperationState::Succeeded,
        "{operation:?}"
    );
    assert_eq!(guest.qemu(), process, "the guest went on");
    assert_eq!(guest.says(LINE), 2);
    guest.remove().await;
}

pub async fn an_agent_killed_while_it_stops_a_guest_ends_the_operation_later(bench: &Bench) {
    let mut host = bench.another().await;
    let image = bench.import(&host, "idle").await;
    let guest = host.create(request(&image)).await;
    guest.has_said(LINE, 1).await;
    let policy = StopPolicy {
        timeout: Some(prost_types::Duration {
            seconds: 4,
            nanos: 0,
        }),
        on_timeout: OnTimeout::Force as i32,
        ..graceful()
    };
    let mut vms = host.daemon.api().vms();
    let answer = vms.stop_vm(guest.stop_request(Some(policy))).await;
    let stop = answer.unwrap().into_inner().id;
    let operation = killed_at(&mut host, &stop, 0).await;
    assert_eq!(
        operation.state(),
        OperationState::Succeeded,
        "{operation:?}"
    );
    assert!(operation.power_outcome.unwrap().forced);
    let guest = host.guest(guest.id);
    guest.is(VmState::Stopped, StateReason::Operation).await;
    assert!(host.qemus().is_empty());
}
