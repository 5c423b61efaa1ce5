//! What an operation undoes while an administrator is at its VM.

use super::admin::{define, domain, qemu_img, shows, source, virsh};
use super::ask::Ask;
use super::host::{LINE, World, image};
use crate::sector::BootSector;
use crate::support::api::force;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::fs;

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub async fn a_snapshot_of_a_root_that_fails_its_health_check_is_left_as_it_is(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let name = domain(&guest.id);
    let old = source(&world, &name);
    let short = image(&world.host, BootSector::PowerOffLater).await;
    let replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: short,
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: HealthSign::StillRunning as i32,
            timeout: seconds(30),
        }),
        ..Default::default()
    };
    let operation = api.vms().replace_root_volume(replace).await.unwrap();
    guest.has_said(LINE, 2).await;
    let new = source(&world, &name);
    let over = world.host.daemon.home().join("over.qcow2");
    let spec = format!("vda,file={}", over.display());
    let words = [
        "--disk-only",
        "--atomic",
        "--no-metadata",
        "--diskspec",
        &spec,
    ];
    virsh(
        &world,
        &[&["snapshot-create-as", &name, "over"], &words[..]].concat(),
    );

    let ended = api.ended(&operation.get_ref().id).await;
    assert_eq!(ended.state(), OperationState::Failed, "{ended:?}");
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.metadata["problem"], "guest_shut_down");
    assert!(refusal.metadata["not_undone"].contains("switch-root"));
    // What the guest wrote is where it is, and the VM says what stands in the way.
    assert_eq!(source(&world, &name), over);
    assert!(old.exists() && new.exists() && over.exists());
    shows(&guest, Some(VmConditionType::Drifted)).await;
    let vm = guest.vm().await;
    assert!(
        new.ends_with(format!("{}.qcow2", vm.root_volume_id)),
        "{vm:?}"
    );
    let revert = Ask::Revert.send(&api, &guest.id, "").await;
    let refusal = Refusal::from(&revert.unwrap_err());
    assert_eq!(refusal.reason, "DOMAIN_DRIFTED");

    // Once it is taken back, the old root is.
    qemu_img(&["commit", "-q", over.to_str().unwrap()]);
    let xml = virsh(&world, &["dumpxml", "--inactive", &name]);
    let xml = xml.replace(over.to_str().unwrap(), new.to_str().unwrap());
    define(&world, &xml);
    shows(&guest, None).await;
    api.done(Ask::Revert.send(&api, &guest.id, "").await).await;
    assert_eq!(source(&world, &name), old);
    guest.has_said(LINE, 3).await;
    guest.remove().await;
}

/// Somebody edits the definition while the root is switched, and saves what was there
/// before.
pub async fn a_root_that_was_put_back_meanwhile_is_not_told_as_replaced(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let name = domain(&guest.id);
    let root = guest.vm().await.root_volume_id;
    let (old, file) = (
        virsh(&world, &["dumpxml", "--inactive", "--security-info", &name]),
        source(&world, &name),
    );
    let held = world.host.daemon.home().join("held");
    let point = format!(
        "replace-root-volume.start-guest.before=1*return(hold:{})\n",
        held.display()
    );
    fs::write(world.points(), point).unwrap();
    let replace = Ask::Replace.send(&api, &guest.id, &world.obedient).await;
    until("the root to be switched", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    assert_ne!(source(&world, &name), file);
    define(&world, &old);
    fs::remove_file(held).unwrap();

    let ended = api.ended(&replace.unwrap().get_ref().id).await;
    assert_eq!(ended.state(), OperationState::Failed, "{ended:?}");
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "DOMAIN_DRIFTED", "{refusal:?}");
    // It is undone: the guest has its old root, and so has the record.
    guest.has_said(LINE, 2).await;
    assert_eq!(guest.vm().await.root_volume_id, root);
    assert_eq!(source(&world, &name), file);
    guest.has_state(VmState::Running).await;
    shows(&guest, None).await;
    guest.remove().await;
}
