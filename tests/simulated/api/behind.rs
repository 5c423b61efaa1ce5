//! What happens behind kvmlet's back is told truly and soon, and no operation
//! is made up for it.

use crate::api::host::Host;
use crate::support::until;
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::{StateReason, VmState};
use std::time::Duration;

/// How soon the truth must be told.
const SOON: Duration = Duration::from_secs(1);

async fn tells(host: &Host, vm: &str, state: VmState, reason: StateReason) {
    let api = host.api();
    let what = format!("{} with {}", state.as_str_name(), reason.as_str_name());
    until(&what, SOON, async || {
        let vm = api.vm(vm).await.unwrap();
        (vm.state() == state && vm.state_reason() == reason).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_by_hand_is_told_within_a_second_and_no_operation_is_invented() {
    let host = Host::start().await;
    let mut vms = Vec::new();
    for _ in 0..4 {
        vms.push(host.vm_in(Resting::Running).await.0);
    }
    let operations = host.api().all_operations().await;
    let [a, b, c, d] = [0, 1, 2, 3].map(|at: usize| vms[at].as_str());

    host.domain(a).destroy().unwrap();
    tells(&host, a, VmState::Stopped, StateReason::Destroyed).await;
    host.domain(a).create().unwrap();
    tells(&host, a, VmState::Running, StateReason::StartedOnHost).await;
    host.domain(a).suspend().unwrap();
    tells(&host, a, VmState::Paused, StateReason::PausedOnHost).await;
    host.domain(a).resume().unwrap();
    tells(&host, a, VmState::Running, StateReason::Unspecified).await;

    // As if the guest had done it itself.
    host.domain(b).shutdown().unwrap();
    tells(&host, b, VmState::Stopped, StateReason::GuestShutdown).await;
    host.domain(b).undefine().unwrap();
    tells(&host, b, VmState::Lost, StateReason::DomainMissing).await;

    host.libvirtd.crash(&host.connection, c);
    tells(&host, c, VmState::Crashed, StateReason::Crashed).await;

    // It goes on without a definition, and is gone when its power is.
    host.domain(d).undefine().unwrap();
    host.domain(d).destroy().unwrap();
    tells(&host, d, VmState::Lost, StateReason::DomainMissing).await;

    assert_eq!(host.api().all_operations().await, operations);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_vm_comes_back_from_the_record_as_it_was() {
    let host = Host::start().await;
    let api = host.api();
    let (vm, _) = host.vm_in(Resting::Lost).await;
    let before = api.vm(&vm).await.unwrap();
    let request = kvmlet::proto::v1::RecoverVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(request).await).await;
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(after.state(), VmState::Stopped);
    assert_eq!(after.volumes, before.volumes);
    assert_eq!(after.nics, before.nics);
    assert!(host.has_domain(&vm));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_domain_is_counted_and_left_alone() {
    let host = Host::start().await;
    // The simulated host has a running domain of its own.
    assert_eq!(host.api().node().await.foreign_domains, 1);
    assert_eq!(host.api().all_vms().await, []);
    let foreign = host.connection.lookup_domain_by_name("test").unwrap();
    assert!(foreign.is_active().unwrap());
}
