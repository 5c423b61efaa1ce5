//! Reading: free of libvirt, and what it says of images, volumes and pools.

use crate::support::api::{Start, force, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::refused;
use kvmlet::proto::v1::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_reads_make_no_libvirt_call() {
    let daemon = Daemon::start(Setup::default().at_real_pace()).await;
    let api = daemon.api();
    let vm = api.create(&daemon.image().await, Start::Yes).await;
    let operation = api.all_operations().await[0].id.clone();
    // The sweeper looks every half minute and may come in between, but not
    // every time.
    let mut counts = Vec::new();
    for _ in 0..5 {
        let before = api.node().await.libvirt_calls;
        for _ in 0..200 {
            api.vm(&vm).await.unwrap();
            api.all_vms().await;
            let request = GetOperationRequest {
                operation_id: operation.clone(),
            };
            api.operations().get_operation(request).await.unwrap();
            let request = ListVolumesRequest::default();
            api.volumes().list_volumes(request).await.unwrap();
            api.node().await;
        }
        let after = api.node().await.libvirt_calls;
        assert!(before > 0);
        counts.push(after - before);
        if after == before {
            return;
        }
    }
    panic!("libvirt calls during reads: {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_is_not_deleted_and_its_volumes_are_named() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let (image, other) = (daemon.image().await, daemon.image().await);
    let request = CreateVmRequest {
        data_volumes: vec![
            NewVolume {
                image_id: image.clone(),
                pool: "other".to_owned(),
                ..Default::default()
            },
            NewVolume {
                size_bytes: 3 << 20,
                ..Default::default()
            },
        ],
        ..small(&image)
    };
    api.done(api.vms().create_vm(request.clone()).await).await;
    let vm = api.vm(&request.vm_id).await.unwrap();
    assert_eq!(vm.volumes.len(), 3);

    let delete = |image: &str| DeleteImageRequest {
        image_id: image.to_owned(),
        ..Default::default()
    };
    let refusal = refused(api.images().delete_image(delete(&image)).await);
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::FailedPrecondition, "IMAGE_IN_USE")
    );
    let mut named: Vec<&str> = refusal.metadata["volumes"].split(',').collect();
    named.sort_unstable();
    let mut used = [vm.volumes[0].id.as_str(), vm.volumes[1].id.as_str()];
    used.sort_unstable();
    assert_eq!(named, used);

    api.done(api.images().delete_image(delete(&other)).await)
        .await;
    let gone = refused(api.images().delete_image(delete(&other)).await);
    assert_eq!(gone.reason, "IMAGE_NOT_FOUND");

    let list = async |request: ListVolumesRequest| {
        let answer = api.volumes().list_volumes(request).await.unwrap();
        let volumes = answer.into_inner().volumes;
        volumes
            .into_iter()
            .map(|volume| volume.pool)
            .collect::<Vec<_>>()
    };
    let of_image = list(ListVolumesRequest {
        image_id: image.clone(),
        ..Default::default()
    })
    .await;
    assert_eq!(of_image.len(), 2);
    let in_other = list(ListVolumesRequest {
        pool: "other".to_owned(),
        ..Default::default()
    })
    .await;
    assert_eq!(in_other, ["other"]);
    let of_no_vm = list(ListVolumesRequest {
        vm_id: id(),
        ..Default::default()
    })
    .await;
    assert!(of_no_vm.is_empty());
    for volume in &vm.volumes {
        let request = GetVolumeRequest {
            volume_id: volume.id.clone(),
        };
        let found = api.volumes().get_volume(request).await.unwrap();
        assert_eq!(found.get_ref(), volume);
        assert!(
            daemon
                .pool_files()
                .iter()
                .any(|file| file.contains(&volume.id))
        );
    }
    let pools = api.volumes().list_pools(ListPoolsRequest {}).await.unwrap();
    let names: Vec<_> = pools
        .get_ref()
        .pools
        .iter()
        .map(|pool| &pool.name)
        .collect();
    assert_eq!(names, ["default", "other"]);
    assert!(pools.get_ref().pools.iter().all(|pool| pool.ready));
    assert!(pools.get_ref().pools[0].default);

    let at_once = DeleteVmRequest {
        vm_id: request.vm_id.clone(),
        retention: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(at_once).await).await;
    api.done(api.images().delete_image(delete(&image)).await)
        .await;
    let left = daemon.pool_files();
    assert!(left.iter().all(|file| !file.contains("qcow2")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_its_mask_names_and_nothing_else() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let vm = api.create(&daemon.image().await, Start::No).await;
    let before = api.vm(&vm).await.unwrap();
    let update = |paths: &[&str], wanted: Vm| UpdateVmRequest {
        vm: Some(Vm {
            id: vm.clone(),
            ..wanted
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    };
    let wanted = Vm {
        name: "new".to_owned(),
        description: "not asked for".to_owned(),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        hardware: Some(Hardware {
            vcpus: 2,
            memory_bytes: 64 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    let masked = update(&["name", "labels", "hardware.vcpus"], wanted.clone());
    api.done(api.vms().update_vm(masked).await).await;
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(after.name, "new");
    assert_eq!(after.labels, wanted.labels);
    assert_eq!(after.description, before.description);
    let hardware = after.hardware.clone().unwrap();
    assert_eq!((hardware.vcpus, hardware.memory_bytes), (2, 16 << 20));
    assert_eq!(after.generation, before.generation + 1);

    let profile = Vm {
        hardware_profile_id: "larger".to_owned(),
        ..Default::default()
    };
    api.done(
        api.vms()
            .update_vm(update(&["hardware_profile_id"], profile))
            .await,
    )
    .await;
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(after.hardware.clone().unwrap().memory_bytes, 32 << 20);
    // Named and empty: taken away.
    api.done(
        api.vms()
            .update_vm(update(&["labels"], Vm::default()))
            .await,
    )
    .await;
    assert!(api.vm(&vm).await.unwrap().labels.is_empty());

    for (paths, reason, field) in [
        (&["id"][..], "FIELD_INVALID", "update_mask.paths[0]"),
        (&["name", "state"], "FIELD_INVALID", "update_mask.paths[1]"),
        (&["*"], "FIELD_INVALID", "update_mask.paths[0]"),
        (&[], "FIELD_REQUIRED", "update_mask"),
    ] {
        let refusal = refused(api.vms().update_vm(update(paths, wanted.clone())).await);
        assert_eq!(
            refusal.brief(),
            (Code::InvalidArgument, reason, vec![field]),
            "{paths:?}"
        );
    }
    let empty = refused(api.vms().update_vm(update(&["name"], Vm::default())).await);
    assert_eq!(empty.brief().1, "FIELD_REQUIRED");
    assert_eq!(empty.fields, ["vm.name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_narrowed_and_cut_into_pages() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let mut made = Vec::new();
    for number in 0..5 {
        let request = CreateVmRequest {
            labels: [("parity".to_owned(), (number % 2).to_string())].into(),
            start: number == 0,
            ..small(&image)
        };
        made.push(request.vm_id.clone());
        api.done(api.vms().create_vm(request).await).await;
    }
    made.sort();
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListVmsRequest {
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let page = api.vms().list_vms(request).await.unwrap().into_inner();
        assert_eq!(page.total_size, 5);
        seen.extend(page.vms.into_iter().map(|vm| vm.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, made);
    let count = async |request: ListVmsRequest| {
        let answer = api.vms().list_vms(request).await.unwrap();
        answer.into_inner().vms.len()
    };
    let odd = ListVmsRequest {
        labels: [("parity".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(count(odd).await, 2);
    let running = ListVmsRequest {
        states: vec![VmState::Running as i32],
        ..Default::default()
    };
    assert_eq!(count(running).await, 1);
    let delete = DeleteVmRequest {
        vm_id: made[0].clone(),
        stop_policy: Some(force()),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(delete).await).await;
    assert_eq!(count(ListVmsRequest::default()).await, 4);
    let too_many = ListVmsRequest {
        page_size: 1001,
        ..Default::default()
    };
    let refusal = refused(api.vms().list_vms(too_many).await);
    assert_eq!(refusal.fields, ["page_size"]);
    let token = ListVmsRequest {
        page_token: "'; drop table vms".to_owned(),
        ..Default::default()
    };
    let refusal = refused(api.vms().list_vms(token).await);
    assert_eq!(refusal.fields, ["page_token"]);
}
