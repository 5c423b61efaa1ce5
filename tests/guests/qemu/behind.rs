//! What others on the host do to a VM, behind kvmlet's back.

use crate::bench::{Bench, Host, request};
use crate::libvirtd::Libvirtd;
use kvmlet::proto::v1::*;

const LINE: &str = "kvmlet test guest";

pub async fn what_is_done_behind_kvmlets_back_is_told_as_it_is(bench: &Bench) {
    let mut libvirtd = Libvirtd::start(&bench.host.known());
    let host = Host::on(&libvirtd).await;
    let api = host.daemon.api();
    let image = bench.import(&host, "idle").await;
    let guest = host.create(request(&image)).await;
    let start = StartVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };

    libvirtd.by_hand(&guest.id, |domain| domain.suspend().unwrap());
    guest.is(VmState::Paused, StateReason::PausedOnHost).await;
    libvirtd.by_hand(&guest.id, |domain| domain.resume().unwrap());
    guest.has_state(VmState::Running).await;
    libvirtd.by_hand(&guest.id, |domain| domain.destroy().unwrap());
    guest.is(VmState::Stopped, StateReason::Destroyed).await;
    libvirtd.by_hand(&guest.id, |domain| domain.create().unwrap());
    guest.is(VmState::Running, StateReason::StartedOnHost).await;
    libvirtd.by_hand(&guest.id, |domain| domain.destroy().unwrap());
    guest.is(VmState::Stopped, StateReason::Destroyed).await;
    libvirtd.by_hand(&guest.id, |domain| domain.undefine().unwrap());
    guest.is(VmState::Lost, StateReason::DomainMissing).await;
    let operations = api.all_operations().await;
    let own = operations.iter().filter(|o| o.vm_id == guest.id).count();
    assert_eq!(own, 1, "none but the one that made it");

    let recover = RecoverVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(recover).await).await;
    let lines = guest.says(LINE);
    api.done(api.vms().start_vm(start).await).await;
    guest.has_said(LINE, lines + 1).await;

    // libvirt dies, and the guest does not.
    let lines = guest.says(LINE);
    let [process] = host.qemus()[..] else {
        panic!("one guest, one process: {:?}", host.qemus());
    };
    libvirtd.kill9();
    guest
        .is(VmState::Unknown, StateReason::HypervisorAway)
        .await;
    libvirtd.restart();
    guest.has_state(VmState::Running).await;
    assert_eq!(host.qemus(), [process]);
    assert_eq!(guest.says(LINE), lines, "it has not noticed");
    guest.remove().await;
    assert!(host.qemus().is_empty());
}
