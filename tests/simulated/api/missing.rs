//! What is gone from under the daemon: an image's file, a whole pool.

use crate::support::api::Start;
use crate::support::daemon::Daemon;
use crate::support::refusal::refused;
use kvmlet::proto::v1::*;
use std::fs;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_file_is_gone_is_imported_again_and_must_be_the_same() {
    let mut daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    daemon.api().create(&image, Start::No).await;
    let before = get(&daemon, &image).await;
    daemon.stop().await;
    let file = daemon.home().join(format!("pool/images/{image}.qcow2"));
    fs::remove_file(&file).unwrap();
    daemon.restart().await;
    let lost = get(&daemon, &image).await;
    assert_eq!(lost.state(), ImageState::Lost);

    let again = |source: String| ImportImageRequest {
        image_id: image.clone(),
        source,
        format: ImageFormat::Qcow2.into(),
        ..Default::default()
    };
    let other = daemon.blank("other", 33);
    let api = daemon.api();
    let answer = api
        .images()
        .import_image(again(other.display().to_string()))
        .await;
    let refusal = api.outcome(answer).await.unwrap_err();
    assert_eq!(refusal.reason, "CHECKSUM_MISMATCH");
    assert_eq!(
        get(&daemon, &image).await.state(),
        ImageState::Lost,
        "volumes are made from it"
    );

    let answer = api
        .images()
        .import_image(again(before.source.clone()))
        .await;
    api.done(answer).await;
    let found = get(&daemon, &image).await;
    assert_eq!(found.state(), ImageState::Ready);
    assert_eq!(found.source_sha256, before.source_sha256);
    assert!(file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_mounted_is_not_made_anew_and_nothing_in_it_is_forgotten() {
    let mut daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let vm = daemon.api().create(&image, Start::No).await;
    let delete = DeleteVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    daemon
        .api()
        .done(daemon.api().vms().delete_vm(delete).await)
        .await;
    daemon.stop().await;
    let (pool, away) = (daemon.home().join("pool"), daemon.home().join("away"));
    fs::rename(&pool, &away).unwrap();
    // What is left is a mount point.
    fs::create_dir(&pool).unwrap();
    daemon.restart().await;
    let api = daemon.api();
    let pools = api
        .volumes()
        .list_pools(ListPoolsRequest {})
        .await
        .unwrap()
        .into_inner()
        .pools;
    assert!(
        !pools[0].ready && pools[0].reason.contains("mounted"),
        "{pools:?}"
    );
    assert!(pools[1].ready);
    let expunge = ExpungeVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    let answer = api.vms().expunge_vm(expunge.clone()).await;
    assert_eq!(api.outcome(answer).await.unwrap_err().reason, "POOL_AWAY");
    api.vm(&vm).await.unwrap();
    assert_eq!(
        fs::read_dir(&pool).unwrap().count(),
        0,
        "nothing was made in it"
    );

    daemon.stop().await;
    fs::remove_dir(&pool).unwrap();
    fs::rename(&away, &pool).unwrap();
    daemon.restart().await;
    let api = daemon.api();
    let found = get(&daemon, &image).await;
    assert_eq!(found.state(), ImageState::Ready);
    api.done(api.vms().expunge_vm(expunge).await).await;
    let gone = GetVmRequest { vm_id: vm };
    assert_eq!(refused(api.vms().get_vm(gone).await).code, Code::NotFound);
    assert!(fs::read_dir(pool.join("volumes")).unwrap().next().is_none());
}

async fn get(daemon: &Daemon, image: &str) -> Image {
    let request = GetImageRequest {
        image_id: image.to_owned(),
    };
    daemon
        .api()
        .images()
        .get_image(request)
        .await
        .unwrap()
        .into_inner()
}
