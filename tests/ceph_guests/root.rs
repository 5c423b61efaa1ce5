//! Replacing what a guest on RBD boots from, and going back.

use super::bench::{Bench, ended, image_of, why};
use super::sector::LINE;
use super::support::api::{force, graceful, id};
use kvmlet::proto::v1::*;

const FAST: &str = "ceph::rootPoolName::vms-fast";

pub async fn a_root_goes_to_another_ceph_pool_by_its_tag_and_comes_back_with_its_bytes(
    bench: &Bench,
) {
    let api = bench.daemon.api();
    let cluster = &bench.cluster;
    let second = bench.import("marker-2").await;
    let guest = bench
        .guest("marker-1", |request| {
            request.data_volumes = [8, 16]
                .map(|mib| NewVolume {
                    pool: "ceph".to_owned(),
                    size_bytes: mib << 20,
                    ..Default::default()
                })
                .into();
            request.nics = ["52:54:00:ab:cf:01", "52:54:00:ab:cf:02"]
                .map(|mac| NewNic {
                    mac: mac.to_owned(),
                    attachment: Some(new_nic::Attachment::User(UserAttachment {})),
                    ..Default::default()
                })
                .into();
            request.vnc = Some(NewVnc { enabled: true });
        })
        .await;
    guest.has_said("version 1 kind marker up", 1).await;
    assert_eq!(guest.told("found"), ["nothing"]);
    let (before, old) = (guest.vm().await, guest.root().await);
    let defined = guest.definition();
    for needed in [
        "<address type='pci'",
        "<graphics type='vnc'",
        "<boot order='1'/>",
        &format!("<uuid>{}</uuid>", guest.id),
        &format!("name='vms/{}'", image_of(&old.id)),
    ] {
        assert!(defined.contains(needed), "{needed} is not in {defined}");
    }
    assert_eq!(old.ceph_pool, "vms", "the default pool for roots");
    assert!(cluster.images("vms").contains(&image_of(&old.id)));

    let replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: second,
        resource_id: id(),
        system_tags: vec![FAST.to_owned()],
        stop_policy: Some(graceful()),
        start_after: true,
        ..Default::default()
    };
    let answer = api.vms().replace_root_volume(replace.clone()).await;
    let operation = ended(&api, answer).await.unwrap();
    let outcome = operation.power_outcome.expect("it was stopped for it");
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    guest.has_said("version 2 kind marker up", 1).await;
    assert_eq!(guest.told("found"), ["nothing", "nothing"], "a fresh disk");
    let (vm, new) = (guest.vm().await, guest.root().await);
    assert_eq!(
        (&*new.id, &*new.ceph_pool),
        (&*replace.resource_id, "vms-fast")
    );
    assert!(cluster.images("vms-fast").contains(&image_of(&new.id)));
    assert!(cluster.images("vms").contains(&image_of(&old.id)), "kept");
    let (old_place, new_place) = (
        format!("name='vms/{}'", image_of(&old.id)),
        format!("name='vms-fast/{}'", image_of(&new.id)),
    );
    let running = bench.libvirtd.virsh(&["dumpxml", &guest.id]);
    assert!(running.contains(&new_place), "{running}");
    assert!(!running.contains(&old_place), "{running}");
    // The root's place and its serial number: nothing else.
    let wanted = defined
        .replace(&old_place, &new_place)
        .replace(&old.id, &new.id);
    assert_ne!(wanted, defined);
    assert_eq!(guest.definition(), wanted);
    assert_eq!(vm.nics, before.nics);
    assert_eq!(vm.vnc.as_ref().map(|vnc| vnc.enabled), Some(true));
    assert_eq!(vm.hardware, before.hardware);
    let data = |vm: &Vm| -> Vec<Volume> {
        let volumes = vm.volumes.iter().cloned();
        volumes
            .filter(|v| v.kind() == VolumeKind::Data)
            .map(|volume| Volume {
                // Counted by the cluster, now and then.
                actual_size_bytes: 0,
                ..volume
            })
            .collect()
    };
    assert_eq!(data(&vm).len(), 2);
    assert_eq!(data(&vm), data(&before));

    let revert = RevertRootVolumeRequest {
        vm_id: guest.id.clone(),
        stop_policy: Some(graceful()),
        start_after: true,
        ..Default::default()
    };
    let answer = api.vms().revert_root_volume(revert).await;
    ended(&api, answer).await.unwrap();
    guest.has_said("version 1 kind marker up", 2).await;
    let (found, left) = (guest.told("found"), guest.told("left"));
    assert_eq!(found[2], left[0], "the bytes of its first boot");
    assert!(left[2].ends_with("of version 1 at boot 2"), "{left:?}");
    assert_eq!(guest.definition(), defined, "all is as it was");
    let root = guest.root().await;
    assert_eq!((&*root.id, &*root.ceph_pool), (&*old.id, "vms"));
    assert_eq!(data(&guest.vm().await), data(&before));
    guest.remove().await;
    for pool in ["vms", "vms-fast"] {
        let images = cluster.images(pool);
        for root in [&old, &new] {
            assert!(!images.contains(&image_of(&root.id)), "{images:?}");
        }
    }
}

pub async fn a_new_root_that_does_not_stay_up_is_switched_back_to_the_old_ceph_pool(bench: &Bench) {
    let api = bench.daemon.api();
    let power_off = bench.import("power-off-later").await;
    let guest = bench.guest("idle", |_| {}).await;
    guest.has_said(LINE, 1).await;
    let (before, root) = (guest.vm().await, guest.root().await);
    let defined = guest.definition();
    let replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: power_off,
        resource_id: id(),
        system_tags: vec![FAST.to_owned()],
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: HealthSign::StillRunning as i32,
            timeout: Some(prost_types::Duration {
                seconds: 600,
                nanos: 0,
            }),
        }),
        ..Default::default()
    };
    let answer = api.vms().replace_root_volume(replace.clone()).await;
    let operation = ended(&api, answer).await.unwrap_err();
    assert_eq!(operation.state(), OperationState::Failed);
    assert_eq!(operation.rollback_state(), RollbackState::Done);
    let failed = why(&operation);
    assert_eq!(
        (&*failed.reason, &*failed.metadata["problem"]),
        ("START_FAILED", "guest_shut_down")
    );
    guest.is(VmState::Running, StateReason::Operation).await;
    // Its own, that of the new root twice, and its own again.
    guest.has_said(LINE, 4).await;
    let back = guest.root().await;
    assert_eq!((&*back.id, &*back.ceph_pool), (&*root.id, "vms"));
    assert_eq!(guest.vm().await.generation, before.generation);
    assert_eq!(guest.definition(), defined);
    let running = bench.libvirtd.virsh(&["dumpxml", &guest.id]);
    let place = format!("name='vms/{}'", image_of(&root.id));
    assert!(running.contains(&place), "{running}");
    let image = image_of(&replace.resource_id);
    assert!(!bench.cluster.images("vms-fast").contains(&image));
    assert!(bench.cluster.trash("vms-fast").contains(&image));
    guest.remove().await;
}
