//! The limit of a pool's images: least recently used first, never one that
//! something needs.

use crate::support::api::{Api, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::images::qemu_img;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::BTreeSet;
use std::fs;
use tonic::Code;

/// Room for two images of 2 MiB with their tables, and not for three.
const LIMIT: &str = "image_cache_max = \"6 MiB\"";

async fn limited() -> Daemon {
    Daemon::start(Setup::default().with("other", LIMIT)).await
}

/// The request for an image of 2 MiB of data.
fn import(daemon: &Daemon, pool: &str) -> ImportImageRequest {
    let id = id();
    let (raw, path) = (daemon.import_path("raw"), daemon.import_path(&id));
    fs::write(&raw, vec![7; 2 << 20]).unwrap();
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", from, to]);
    ImportImageRequest {
        image_id: id,
        source: to.to_owned(),
        format: ImageFormat::Qcow2 as i32,
        pool: pool.to_owned(),
        ..Default::default()
    }
}

async fn imported(daemon: &Daemon, pool: &str) -> Result<String, Refusal> {
    let api = daemon.api();
    let answer = api.images().import_image(import(daemon, pool)).await;
    Ok(api.outcome(answer).await?.image_id)
}

async fn image(api: &Api, image_id: &str) -> Option<Image> {
    let request = GetImageRequest {
        image_id: image_id.to_owned(),
    };
    let answer = api.images().get_image(request).await;
    answer.ok().map(tonic::Response::into_inner)
}

/// Makes a VM whose root is in the limited pool.
async fn vm(api: &Api, image_id: &str) -> Result<String, Refusal> {
    let mut request = small(image_id);
    request.root_volume = Some(NewVolume {
        pool: "other".to_owned(),
        ..Default::default()
    });
    Ok(api.outcome(api.vms().create_vm(request).await).await?.vm_id)
}

async fn expunge(api: &Api, vm_id: &str) {
    let request = DeleteVmRequest {
        vm_id: vm_id.to_owned(),
        retention: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(request).await).await;
}

/// The images whose files are in the limited pool.
fn files(daemon: &Daemon) -> BTreeSet<String> {
    let files = daemon.pool_files().into_iter();
    files
        .filter_map(|file| {
            let name = file.strip_prefix("other/images/")?;
            Some(name.strip_suffix(".qcow2")?.to_owned())
        })
        .collect()
}

fn set<const N: usize>(ids: [&String; N]) -> BTreeSet<String> {
    ids.into_iter().cloned().collect()
}

async fn evictions(api: &Api) -> Vec<Operation> {
    let mut operations = api.all_operations().await;
    operations.retain(|operation| operation.caller == "kvmlet:image-cache");
    operations
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_image_makes_room_and_one_in_use_never_does() {
    let daemon = limited().await;
    let api = daemon.api();
    let a = imported(&daemon, "other").await.unwrap();
    let b = imported(&daemon, "other").await.unwrap();
    assert_eq!(image(&api, &a).await.unwrap().last_use_time, None);
    let used = vm(&api, &a).await.unwrap();
    let shown = image(&api, &a).await.unwrap();
    assert!(shown.last_use_time.is_some());
    assert_eq!(shown.volume_count, 1);
    expunge(&api, &used).await;

    let c = imported(&daemon, "other").await.unwrap();
    assert_eq!(image(&api, &b).await, None, "it was never used");
    assert_eq!(files(&daemon), set([&a, &c]));
    let made_room = evictions(&api).await;
    assert_eq!(made_room.len(), 1);
    assert_eq!(made_room[0].r#type(), OperationType::DeleteImage);
    assert_eq!(made_room[0].image_id, b);

    // A deleted VM's image is needed to recover it.
    let kept = vm(&api, &a).await.unwrap();
    let request = DeleteVmRequest {
        vm_id: kept.clone(),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(request).await).await;
    vm(&api, &c).await.unwrap();
    let refusal = imported(&daemon, "other").await.unwrap_err();
    assert_eq!(
        refusal.brief(),
        (Code::ResourceExhausted, "IMAGE_CACHE_FULL", vec![])
    );
    assert_eq!(refusal.metadata["pool"], "other");
    assert_eq!(files(&daemon), set([&a, &c]));
    assert_eq!(evictions(&api).await.len(), 1);

    // Another pool has no limit.
    for _ in 0..3 {
        imported(&daemon, "default").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_makes_room_for_another_and_the_image_stays() {
    let daemon = limited().await;
    let api = daemon.api();
    let mut images = Vec::new();
    for _ in 0..3 {
        images.push(imported(&daemon, "default").await.unwrap());
    }
    for image in &images[..2] {
        let used = vm(&api, image).await.unwrap();
        expunge(&api, &used).await;
    }
    assert_eq!(files(&daemon), set([&images[0], &images[1]]));
    vm(&api, &images[2]).await.unwrap();
    assert_eq!(files(&daemon), set([&images[1], &images[2]]));
    assert_eq!(evictions(&api).await, []);
    vm(&api, &images[0]).await.unwrap();
    assert_eq!(files(&daemon), set([&images[0], &images[2]]));
    let refusal = vm(&api, &images[1]).await.unwrap_err();
    assert_eq!(refusal.reason, "IMAGE_CACHE_FULL");
    for id in &images {
        let image = image(&api, id).await.unwrap();
        assert_eq!(image.state(), ImageState::Ready);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_room_is_made_the_files_are_those_of_the_records() {
    let mut daemon = limited().await;
    let api = daemon.api();
    let a = imported(&daemon, "other").await.unwrap();
    let b = imported(&daemon, "other").await.unwrap();
    let request = import(&daemon, "other");
    let asked = api.images().import_image(request.clone()).await;
    let asked = asked.unwrap().into_inner();
    until("room to be made", PATIENCE, async || {
        (!evictions(&api).await.is_empty()).then_some(())
    })
    .await;
    daemon.kill9();
    daemon.restart().await;
    let api = daemon.api();
    let ended = api.ended(&asked.id).await;
    for operation in evictions(&api).await {
        api.ended(&operation.id).await;
    }
    let mut recorded = BTreeSet::new();
    for id in [&a, &b, &request.image_id] {
        if let Some(image) = image(&api, id).await {
            assert_eq!(image.state(), ImageState::Ready, "{image:?}");
            recorded.insert(id.clone());
        }
    }
    assert_eq!(files(&daemon), recorded);
    assert_eq!(
        recorded.contains(&request.image_id),
        ended.state() == OperationState::Succeeded,
        "{ended:?}"
    );
    assert!(!recorded.contains(&a), "it was the oldest");
}
