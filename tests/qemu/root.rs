//! Replacing what a guest boots from, and going back.

use super::bench::Bench;
use super::support::api::{force, graceful};
use super::support::refusal::refused;
use kvmlet::proto::v1::*;

pub async fn a_replaced_root_boots_the_new_image_and_a_reverted_one_the_old(bench: &Bench) {
    let api = bench.host.daemon.api();
    let second = bench.import(&bench.host, "acpi-2").await;
    let guest = bench.guest("acpi-1").await;
    guest.has_said("version 1 kind acpi up", 1).await;
    let old = guest.vm().await.root_volume_id;

    let mut replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: second.clone(),
        start_after: true,
        ..Default::default()
    };
    let refusal = refused(api.vms().replace_root_volume(replace.clone()).await);
    assert_eq!(refusal.code, tonic::Code::FailedPrecondition);
    assert_eq!(guest.state().await, VmState::Running);

    replace.stop_policy = Some(graceful());
    let operation = api.done(api.vms().replace_root_volume(replace).await).await;
    let outcome = operation.power_outcome.expect("it was stopped for it");
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    guest.has_said("version 2 kind acpi up", 1).await;
    let vm = guest.vm().await;
    assert_ne!(vm.root_volume_id, old);
    assert_eq!(vm.image_id, second);
    assert!(
        vm.volumes.iter().any(|volume| volume.id == old),
        "the old root is kept: {:?}",
        vm.volumes
    );

    // By force, from a guest that stands still.
    let pause = PauseVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().pause_vm(pause).await).await;
    let revert = RevertRootVolumeRequest {
        vm_id: guest.id.clone(),
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert).await).await;
    assert_eq!(guest.vm().await.root_volume_id, old);
    guest.has_said("version 1 kind acpi up", 2).await;
    guest.remove().await;
    let files = bench.host.files();
    assert!(
        !files.iter().any(|file| file.contains(&old)),
        "no root of it is left: {files:?}"
    );
}
