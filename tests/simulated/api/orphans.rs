//! What no record accounts for: listed with why, removed one by one, and only
//! when nothing uses it.

use crate::api::host::Host;
use crate::support::api::{Api, Start, force, id};
use crate::support::images::qemu_img;
use crate::support::libvirtd::Libvirtd;
use crate::support::refusal::{Refusal, refused};
use kvmlet::proto::v1::*;
use std::fs;
use std::path::{Path, PathBuf};
use tonic::Code;

async fn list(api: &Api) -> Vec<Orphan> {
    let request = ListOrphansRequest {
        page_size: 1000,
        ..Default::default()
    };
    let answer = api.nodes().list_orphans(request).await;
    answer.expect("orphans can be listed").into_inner().orphans
}

/// The one orphan of this kind and name.
async fn one(api: &Api, kind: OrphanKind, name: &str) -> Orphan {
    let all = list(api).await;
    let mut found = all
        .iter()
        .filter(|orphan| orphan.kind() == kind && orphan.name == name);
    match (found.next(), found.next()) {
        (Some(orphan), None) => orphan.clone(),
        _ => panic!("no one {kind:?} {name}: {all:#?}"),
    }
}

async fn of_kind(api: &Api, kind: OrphanKind) -> Vec<Orphan> {
    let mut all = list(api).await;
    all.retain(|orphan| orphan.kind() == kind);
    all
}

fn naming(orphan: &Orphan) -> DeleteOrphanRequest {
    DeleteOrphanRequest {
        request_id: String::new(),
        orphan_id: orphan.id.clone(),
        generation: orphan.generation,
    }
}

async fn delete(api: &Api, orphan: &Orphan) -> Result<Operation, Refusal> {
    api.outcome(api.nodes().delete_orphan(naming(orphan)).await)
        .await
}

/// Makes a volume in a pool that nobody knows of.
fn stray_volume(home: &Path) -> (String, PathBuf) {
    let name = format!("volumes/{}.qcow2", id());
    let path = home.join("pool").join(&name);
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    (name, path)
}

/// Defines a domain of somebody else's with a disk.
fn foreign_domain(host: &Host, disk: &Path) -> virt::domain::Domain {
    let xml = format!(
        "<domain type='test'><name>theirs</name><memory unit='MiB'>16</memory>\
         <os><type>hvm</type></os><devices><disk type='file' device='disk'>\
         <driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/>\
         </disk></devices></domain>",
        disk.display()
    );
    host.connection.define_domain_xml(&xml).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_record_leaves_is_shown_and_removed_one_by_one() {
    let host = Host::start().await;
    let api = host.api();
    let vm = api.create(&host.image, Start::No).await;
    let root = api.vm(&vm).await.unwrap().root_volume_id;
    let file = format!("volumes/{root}.qcow2");
    let path = host.daemon.home().join("pool").join(&file);
    assert!(
        list(&api).await.iter().all(|orphan| orphan.foreign),
        "all there is has a record"
    );

    // As if the record were lost: everything else of the VM is there.
    let xml = host.domain(&vm).xml_desc(0).unwrap();
    let kept = host.daemon.home().join("kept");
    fs::rename(&path, &kept).unwrap();
    let request = DeleteVmRequest {
        vm_id: vm.clone(),
        stop_policy: Some(force()),
        retention: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(request).await).await;
    fs::rename(&kept, &path).unwrap();
    let domain = host.connection.define_domain_xml(&xml).unwrap();

    let volume = one(&api, OrphanKind::Volume, &file).await;
    assert_eq!(volume.pool, "default");
    assert_eq!(volume.image_id, host.image);
    assert!(volume.size_bytes > 0 && volume.modify_time.is_some() && !volume.foreign);
    assert!(volume.evidence.contains(&host.image), "{volume:?}");
    let orphan = one(&api, OrphanKind::Domain, &format!("kvmlet-{vm}")).await;
    assert_eq!(orphan.vm_id, vm);
    assert!(orphan.modify_time.is_some(), "its record tells its age");

    let refusal = delete(&api, &volume).await.unwrap_err();
    assert_eq!(
        refusal.brief(),
        (Code::FailedPrecondition, "ORPHAN_IN_USE", vec![])
    );
    assert!(refusal.message.contains(&vm), "{refusal:?}");

    domain.create().unwrap();
    let refusal = delete(&api, &orphan).await.unwrap_err();
    assert_eq!(refusal.brief(), (Code::Aborted, "STALE_GENERATION", vec![]));
    let running = one(&api, OrphanKind::Domain, &format!("kvmlet-{vm}")).await;
    assert_eq!(running.id, orphan.id);
    let refusal = delete(&api, &running).await.unwrap_err();
    assert_eq!(refusal.reason, "ORPHAN_IN_USE");
    assert!(domain.is_active().unwrap(), "what has power keeps it");
    domain.destroy().unwrap();

    let done = delete(&api, &orphan).await.expect("it is as it was");
    assert_eq!(done.r#type(), OperationType::DeleteOrphan);
    assert_eq!(done.orphan_id, orphan.id);
    assert!(!host.has_domain(&vm));
    assert!(path.exists(), "a domain's volumes stay");
    let volume = one(&api, OrphanKind::Volume, &file).await;
    delete(&api, &volume).await.expect("nothing uses it now");
    assert!(!path.exists());

    // The image is recorded, so that it is DeleteImage's to remove.
    let unused = of_kind(&api, OrphanKind::UnusedImage).await;
    assert_eq!(unused.len(), 1);
    assert_eq!(unused[0].image_id, host.image);
    let refusal = delete(&api, &unused[0]).await.unwrap_err();
    assert_eq!(refusal.reason, "ORPHAN_RECORDED");
    assert_eq!(refusal.metadata["instead"], "DeleteImage");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_foreign_is_listed_as_such_and_never_touched() {
    let host = Host::start().await;
    let api = host.api();
    let file = host.daemon.home().join("pool/volumes/notes.txt");
    fs::write(&file, "mine").unwrap();
    let foreign = [
        one(&api, OrphanKind::ForeignFile, "volumes/notes.txt").await,
        one(&api, OrphanKind::ForeignDomain, "test").await,
    ];
    let operations = api.all_operations().await.len();
    for orphan in &foreign {
        assert!(orphan.foreign);
        let refusal = delete(&api, orphan).await.unwrap_err();
        assert_eq!(
            refusal.brief(),
            (Code::FailedPrecondition, "ORPHAN_FOREIGN", vec![])
        );
    }
    assert_eq!(api.all_operations().await.len(), operations);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    let theirs = host.connection.lookup_domain_by_name("test").unwrap();
    assert!(theirs.is_active().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_below_the_disk_of_a_foreign_domain_is_not_removed() {
    let host = Host::start().await;
    let api = host.api();
    let (name, path) = stray_volume(host.daemon.home());
    let orphan = one(&api, OrphanKind::Volume, &name).await;
    let overlay = host.daemon.home().join("theirs.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        path.to_str().unwrap(),
        overlay.to_str().unwrap(),
    ]);
    // By another way to the same file, too.
    let link = host.daemon.home().join("link.qcow2");
    std::os::unix::fs::symlink(&overlay, &link).unwrap();
    for disk in [&path, &overlay, &link] {
        let domain = foreign_domain(&host, disk);
        let refusal = delete(&api, &orphan).await.unwrap_err();
        assert_eq!(refusal.reason, "ORPHAN_IN_USE", "{}", disk.display());
        assert!(refusal.message.contains("theirs"), "{refusal:?}");
        domain.undefine().unwrap();
    }
    // An overlay in the pool itself needs it as well.
    let (above, above_path) = stray_volume(host.daemon.home());
    fs::rename(&overlay, &above_path).unwrap();
    assert_eq!(
        delete(&api, &orphan).await.unwrap_err().reason,
        "ORPHAN_IN_USE"
    );
    let above = one(&api, OrphanKind::Volume, &above).await;
    delete(&api, &above).await.expect("nothing is above it");
    delete(&api, &orphan)
        .await
        .expect("nothing is above it now");
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_is_of_what_was_listed_and_is_repeated_by_its_request_id() {
    let host = Host::start().await;
    let api = host.api();
    let (name, path) = stray_volume(host.daemon.home());
    let orphan = one(&api, OrphanKind::Volume, &name).await;
    assert_eq!(
        one(&api, OrphanKind::Volume, &name).await,
        orphan,
        "it is the same as long as nothing happens"
    );
    // Another file under the same name.
    fs::remove_file(&path).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "2M"]);
    let refusal = delete(&api, &orphan).await.unwrap_err();
    assert_eq!(refusal.reason, "STALE_GENERATION");
    assert!(path.exists());

    let missing = DeleteOrphanRequest {
        generation: 0,
        ..naming(&orphan)
    };
    let refusal = refused(api.nodes().delete_orphan(missing).await);
    assert_eq!(
        refusal.brief(),
        (Code::InvalidArgument, "FIELD_REQUIRED", vec!["generation"])
    );

    let orphan = one(&api, OrphanKind::Volume, &name).await;
    let request = DeleteOrphanRequest {
        request_id: id(),
        ..naming(&orphan)
    };
    let first = api
        .done(api.nodes().delete_orphan(request.clone()).await)
        .await;
    assert!(!path.exists());
    let again = api
        .done(api.nodes().delete_orphan(request.clone()).await)
        .await;
    assert_eq!(again, first);
    let other = DeleteOrphanRequest {
        orphan_id: id(),
        ..request
    };
    let refusal = refused(api.nodes().delete_orphan(other).await);
    assert_eq!(refusal.reason, "REQUEST_ID_REUSED");
    assert_eq!(refusal.metadata["field"], "orphan_id");
    let refusal = delete(&api, &orphan).await.unwrap_err();
    assert_eq!(
        refusal.brief(),
        (Code::NotFound, "ORPHAN_NOT_FOUND", vec![])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn half_made_files_and_logs_of_gone_vms_are_shown_and_those_at_work_are_not() {
    let host = Host::start().await;
    let api = host.api();
    let vm = api.create(&host.image, Start::No).await;
    let home = host.daemon.home();
    let (gone, half) = (id(), format!("volume-{}-x.qcow2", id()));
    fs::write(home.join(format!("console/{vm}.log")), "login:").unwrap();
    fs::write(home.join(format!("console/{gone}.log")), "login:").unwrap();
    fs::write(home.join("pool/tmp").join(&half), "half").unwrap();

    let logs = of_kind(&api, OrphanKind::ConsoleLog).await;
    assert_eq!(logs.len(), 1, "{logs:?}");
    assert_eq!(logs[0].vm_id, gone);
    delete(&api, &logs[0]).await.expect("nobody writes to it");
    assert!(!home.join(format!("console/{gone}.log")).exists());
    assert!(home.join(format!("console/{vm}.log")).exists());

    let temporary = one(&api, OrphanKind::Temporary, &format!("tmp/{half}")).await;
    delete(&api, &temporary).await.expect("nobody makes it");
    assert_eq!(of_kind(&api, OrphanKind::Temporary).await, []);
    assert!(!home.join("pool/tmp").join(&half).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_image_is_shown_when_no_volume_of_its_pool_needs_it() {
    let host = Host::start().await;
    let api = host.api();
    let mut request = crate::support::api::small(&host.image);
    request.root_volume = Some(NewVolume {
        pool: "other".to_owned(),
        ..Default::default()
    });
    let vm = api
        .done(api.vms().create_vm(request.clone()).await)
        .await
        .vm_id;
    assert_eq!(of_kind(&api, OrphanKind::CachedImage).await, []);
    let expunge = DeleteVmRequest {
        vm_id: vm,
        retention: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(expunge).await).await;
    let copies = of_kind(&api, OrphanKind::CachedImage).await;
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert_eq!(
        (copies[0].pool.as_str(), &copies[0].image_id),
        ("other", &host.image)
    );
    delete(&api, &copies[0]).await.expect("nothing needs it");
    assert_eq!(of_kind(&api, OrphanKind::CachedImage).await, []);
    request.vm_id = id();
    api.done(api.vms().create_vm(request).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_orphans_go_on_where_the_last_one_ended() {
    let host = Host::start().await;
    let api = host.api();
    for _ in 0..5 {
        stray_volume(host.daemon.home());
    }
    let all = list(&api).await;
    assert!(all.len() >= 6);
    let mut paged = Vec::new();
    let mut token = String::new();
    loop {
        let request = ListOrphansRequest {
            page_size: 2,
            page_token: token,
        };
        let page = api
            .nodes()
            .list_orphans(request)
            .await
            .unwrap()
            .into_inner();
        assert!(page.orphans.len() <= 2);
        paged.extend(page.orphans);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all);
    let request = ListOrphansRequest {
        page_size: 2,
        page_token: "nonsense".to_owned(),
    };
    let refusal = refused(api.nodes().list_orphans(request).await);
    assert_eq!(refusal.reason, "FIELD_INVALID");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_was_answered_is_finished_though_the_agent_is_killed() {
    let mut host = Host::start().await;
    let (name, path) = stray_volume(host.daemon.home());
    let orphan = one(&host.api(), OrphanKind::Volume, &name).await;
    let request = DeleteOrphanRequest {
        request_id: id(),
        ..naming(&orphan)
    };
    let api = host.api();
    let asked = api.nodes().delete_orphan(request.clone()).await;
    host.daemon.kill9();
    let asked = asked.unwrap().into_inner();
    host.daemon.restart().await;
    let ended = host.api().ended(&asked.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert!(!path.exists());
    let again = host.api().nodes().delete_orphan(request).await;
    assert_eq!(again.unwrap().into_inner().id, asked.id);
    assert!(Libvirtd::domain(&host.connection, &asked.id).is_none());
}
