//! The life of a VM whose disks are in Ceph, and of the images they are made from.

use crate::lab::*;
use crate::support::api::{Start, id, small};
use crate::support::daemon::Daemon;
use crate::support::images::qemu_img;
use crate::support::libvirtd::Libvirtd;
use crate::support::refusal::refused;
use crate::support::{PATIENCE, known, thorough, until};
use kvmlet::proto::v1::*;
use serde_json::Value;
use tonic::Code;

/// What is in a pool's trash under this name: how `rbd` shows it.
fn trashed(ceph_pool: &str, name: &str) -> Option<Value> {
    let list = shared().rbd_json(&["trash", "ls", "--all", "--long", "--pool", ceph_pool]);
    let list = list.as_array().expect("a list").clone();
    list.into_iter().find(|item| item["name"] == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_on_ceph_and_goes_to_the_trash() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let request = CreateVmRequest {
        start: true,
        data_volumes: vec![
            data(3),
            NewVolume {
                delete_with_vm: Some(false),
                ..data(2)
            },
        ],
        ..on_ceph(&image)
    };
    let vm = api.made(request).await;
    assert_eq!(vm.state(), VmState::Running);
    let places: Vec<_> = vm
        .volumes
        .iter()
        .map(|volume| (volume.ceph_pool.as_str(), volume.size_bytes / MIB))
        .collect();
    assert_eq!(places, [("vms", 1), ("data", 3), ("data", 2)]);
    let all_there = || {
        let mut volumes = vm.volumes.iter();
        volumes.all(|volume| is_in(cluster, &volume.ceph_pool, &volume.id))
    };
    assert!(all_there());
    api.stop(&vm.id).await;
    api.start(&vm.id).await.expect("it is started");

    api.delete(&vm.id).await;
    assert_eq!(api.state(&vm.id).await, VmState::Deleted);
    assert!(all_there());
    let recover = RecoverVmRequest {
        vm_id: vm.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(recover).await).await;
    let recovered = api.vm(&vm.id).await.unwrap();
    assert_eq!(recovered.state(), VmState::Stopped);
    let ids = |vm: &Vm| -> Vec<String> { vm.volumes.iter().map(|v| v.id.clone()).collect() };
    assert_eq!(ids(&recovered), ids(&vm));
    api.start(&vm.id).await.expect("it is started");

    api.remove(&vm.id).await;
    assert_eq!(refused(api.vm(&vm.id).await).reason, "VM_NOT_FOUND");
    for volume in &vm.volumes[..2] {
        assert!(!is_in(cluster, &volume.ceph_pool, &volume.id));
        let gone = trashed(&volume.ceph_pool, &format!("vol-{}", volume.id));
        let gone = gone.expect("it is in the trash");
        let status = gone["status"].as_str().unwrap();
        assert!(status.starts_with("protected until "), "{gone}");
    }
    let kept = &vm.volumes[2];
    assert!(
        is_in(cluster, "data", &kept.id),
        "it was not to go with its VM"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_trash_what_is_removed_is_gone() {
    let cluster = shared();
    let mut setup = setup(cluster);
    setup.more = setup
        .more
        .replace("trash_expiry = \"1h\"", "trash_expiry = \"0s\"");
    let daemon = started(setup).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    api.remove(&vm.id).await;
    let root = format!("vol-{}", vm.root_volume_id);
    assert!(!is_in(cluster, "vms", &vm.root_volume_id));
    assert_eq!(trashed("vms", &root), None);
    let request = DeleteImageRequest {
        image_id: image.clone(),
        ..Default::default()
    };
    api.done(api.images().delete_image(request).await).await;
    let name = format!("img-{image}");
    assert!(!cluster.images("images").contains(&name));
    assert_eq!(trashed("images", &name), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_had_its_time_in_the_trash_is_removed_by_the_daemon() {
    let cluster = shared();
    let mut setup = setup(cluster);
    // It looks every 300 s, or every 30 s.
    let patience = if thorough() {
        setup = setup.at_real_pace();
        10 * PATIENCE
    } else {
        setup.pace = Some(0.1);
        2 * PATIENCE
    };
    let daemon = started(setup).await;
    let (due, later) = (format!("vol-{}", id()), format!("vol-{}", id()));
    for (name, end) in [(&due, "1 second"), (&later, "1 hour")] {
        let name = format!("vms/{name}");
        cluster.rbd(&["create", "--size", "1M", &name]);
        cluster.rbd(&["trash", "mv", "--expires-at", end, &name]);
    }
    until("it to be removed for ever", patience, async || {
        let log = daemon.log();
        let mut told = log
            .lines()
            .filter(|line| line.contains("it has had its time in the trash"));
        told.any(|line| line.contains(&due)).then_some(())
    })
    .await;
    assert_eq!(trashed("vms", &due), None);
    assert!(trashed("vms", &later).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_as_large_as_it_was_asked_for_whatever_its_image_is() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let mut request = on_ceph(&image);
    request.root_volume.as_mut().unwrap().size_bytes = 7 * MIB + 1;
    let vm = api.made(request).await;
    assert_eq!(vm.volumes[0].size_bytes, 8 * MIB);
    let info = cluster.rbd_json(&["info", &format!("vms/vol-{}", vm.root_volume_id)]);
    assert_eq!(info["size"], 8 * MIB);
    let replace = |size_policy: SizePolicy, size_bytes| ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: image.clone(),
        size_policy: size_policy as i32,
        size_bytes,
        ..Default::default()
    };
    for (policy, asked, mib) in [
        (SizePolicy::KeepLarger, 0, 8),
        (SizePolicy::Exact, 9 * MIB, 9),
        (SizePolicy::Image, 0, 1),
    ] {
        let now = api.replaced(replace(policy, asked)).await;
        assert_eq!(now.volumes[0].size_bytes, mib * MIB, "{policy:?}");
        let info = cluster.rbd_json(&["info", &format!("vms/vol-{}", now.root_volume_id)]);
        assert_eq!(info["size"], mib * MIB, "{policy:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_from_files_to_ceph_byte_for_byte() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let (source, bytes) = random_image(&daemon, 6);
    let image = api.import(&source).await;
    let blank = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&blank)).await;
    let replace = ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: image.clone(),
        system_tags: tag("vms-fast"),
        ..Default::default()
    };
    let replaced = api.replaced(replace).await;
    let root = format!("vms-fast/vol-{}", replaced.root_volume_id);
    assert!(content(cluster, &root) == bytes, "the root differs");
    let cached = cluster.rbd_json(&["snap", "ls", &format!("images/img-{image}")]);
    assert_eq!(cached[0]["name"], "base", "{cached}");
    assert_eq!(cached[0]["protected"], "true", "{cached}");
    let parent = &cluster.rbd_json(&["info", &root])["parent"];
    assert_eq!(parent["image"], format!("img-{image}"), "it is a clone");
    // The next one finds it there.
    let another = CreateVmRequest {
        system_tags: tag("vms-fast"),
        ..small(&image)
    };
    let operation = api.done(api.vms().create_vm(another).await).await;
    let cache = &operation.steps[0];
    assert_eq!(
        (cache.name.as_str(), cache.state()),
        ("cache-image", StepState::Skipped)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_from_ceph_to_files_byte_for_byte() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let (source, bytes) = random_image(&daemon, 6);
    let request = ImportImageRequest {
        source: source.display().to_string(),
        ..importing(&daemon, "ceph")
    };
    let image = api.done(api.images().import_image(request).await).await;
    let image = image.image_id;
    assert!(content(cluster, &format!("images/img-{image}@base")) == bytes);
    let vm_id = api.create(&image, Start::Yes).await;
    let vm = api.vm(&vm_id).await.unwrap();
    assert_eq!(
        (
            vm.volumes[0].pool.as_str(),
            vm.volumes[0].ceph_pool.as_str()
        ),
        ("default", "")
    );
    let file = daemon.home().join("pool").join(&vm.volumes[0].install_path);
    let raw = daemon.home().join("back.raw");
    let (from, to) = (file.to_str().unwrap(), raw.to_str().unwrap());
    qemu_img(&["convert", "-U", "-q", "-f", "qcow2", "-O", "raw", from, to]);
    assert!(std::fs::read(&raw).unwrap() == bytes, "the root differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_volume_that_somebody_has_is_refused_and_the_volume_not_touched() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    // A clone of the same image and as large, too: it is not ours all the same.
    let (foreign, alike) = (id(), id());
    let file = daemon.home().join("content");
    std::fs::write(&file, vec![7; 3 << 20]).unwrap();
    let spec = |id: &str| format!("vms/vol-{id}");
    cluster.rbd(&[
        "import",
        "--no-progress",
        file.to_str().unwrap(),
        &spec(&foreign),
    ]);
    let base = format!("images/img-{image}@base");
    cluster.rbd(&[
        "clone",
        "--rbd-default-clone-format",
        "2",
        &base,
        &spec(&alike),
    ]);
    for taken in [&foreign, &alike] {
        let before = cluster.rbd(&["info", &spec(taken)]);
        let bytes = content(cluster, &spec(taken));
        let create = CreateVmRequest {
            root_volume: Some(NewVolume {
                volume_id: taken.clone(),
                pool: "ceph".to_owned(),
                ..Default::default()
            }),
            ..small(&image)
        };
        let refusal = refused(api.vms().create_vm(create).await);
        let expected = (
            Code::AlreadyExists,
            "VOLUME_EXISTS",
            vec!["root_volume.volume_id"],
        );
        assert_eq!(refusal.brief(), expected);
        let replace = ReplaceRootVolumeRequest {
            vm_id: vm.id.clone(),
            image_id: image.clone(),
            resource_id: taken.clone(),
            ..Default::default()
        };
        let refusal = refused(api.vms().replace_root_volume(replace).await);
        let expected = (Code::AlreadyExists, "VOLUME_EXISTS", vec!["resource_id"]);
        assert_eq!(refusal.brief(), expected);
        assert_eq!(&refusal.metadata["volume_id"], taken);
        assert_eq!(cluster.rbd(&["info", &spec(taken)]), before);
        assert!(content(cluster, &spec(taken)) == bytes);
    }
    assert_eq!(api.all_vms().await, [vm]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_not_deleted_while_clones_of_it_exist() {
    let cluster = shared();
    let (one, other) = (host(cluster).await, host(cluster).await);
    let api = one.api();
    let request = importing(&one, "ceph");
    let image = request.image_id.clone();
    api.done(api.images().import_image(request.clone()).await)
        .await;
    let name = format!("img-{image}");
    let vm = api.made(on_ceph(&image)).await;
    let delete = |validate_only| DeleteImageRequest {
        image_id: image.clone(),
        validate_only,
        ..Default::default()
    };
    let in_use = async |volume: &str| {
        for validate_only in [true, false] {
            let refusal = refused(api.images().delete_image(delete(validate_only)).await);
            let expected = (Code::FailedPrecondition, "IMAGE_IN_USE", vec![]);
            assert_eq!(refusal.brief(), expected);
            assert_eq!(refusal.metadata["volumes"], volume);
        }
        assert!(cluster.images("images").contains(&name));
        let request = GetImageRequest {
            image_id: image.clone(),
        };
        let shown = api.images().get_image(request).await.unwrap().into_inner();
        assert_eq!(shown.state(), ImageState::Ready);
    };
    in_use(&vm.root_volume_id).await;
    api.remove(&vm.id).await;

    // Of another host, in whose records this one can't look.
    let its_source = other.blank("its.qcow2", 1);
    let request = ImportImageRequest {
        source: its_source.display().to_string(),
        ..request
    };
    let its = other.api();
    its.done(its.images().import_image(request).await).await;
    let its_vm = its.made(on_ceph(&image)).await;
    in_use(&its_vm.root_volume_id).await;
    its.remove(&its_vm.id).await;

    // What is in the trash does not hold it.
    api.done(api.images().delete_image(delete(false)).await)
        .await;
    assert!(!cluster.images("images").contains(&name));
    let gone = trashed("images", &name).expect("it is in the trash");
    let status = gone["status"].as_str().unwrap();
    assert!(status.starts_with("protected until "), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_import_the_same_image_at_the_same_time_and_both_have_it() {
    let cluster = shared();
    let (one, other) = (host(cluster).await, host(cluster).await);
    let image = id();
    let request = |daemon: &Daemon| ImportImageRequest {
        image_id: image.clone(),
        ..importing(daemon, "ceph")
    };
    let (a, b) = (one.api(), other.api());
    let (mut images_a, mut images_b) = (a.images(), b.images());
    let (first, second) = tokio::join!(
        images_a.import_image(request(&one)),
        images_b.import_image(request(&other)),
    );
    tokio::join!(a.done(first), b.done(second));
    // And a third that comes later.
    let third = host(cluster).await;
    let c = third.api();
    c.done(c.images().import_image(request(&third)).await).await;
    for daemon in [&one, &other, &third] {
        let api = daemon.api();
        let request = GetImageRequest {
            image_id: image.clone(),
        };
        let shown = api.images().get_image(request).await.unwrap().into_inner();
        assert_eq!(shown.state(), ImageState::Ready);
        assert_eq!(shown.virtual_size_bytes, MIB);
        assert_eq!(shown.source_sha256.len(), 64, "{shown:?}");
        api.made(on_ceph(&image)).await;
    }
    let there = cluster.images("images");
    let there = there.iter().filter(|name| name.contains(&image));
    let (left, whole): (Vec<_>, Vec<_>) = there.partition(|name| name.starts_with("tmp-"));
    assert_eq!(whole, [&format!("img-{image}")]);
    let nothing = if left.is_empty() {
        Ok(())
    } else {
        Err(format!("{left:?} is left of an import that has succeeded"))
    };
    known::by_chance("two-hosts-leave-a-temporary-image", nothing);

    // The image under an id is what it is: one of another size is another.
    let fourth = host(cluster).await;
    let d = fourth.api();
    let larger = ImportImageRequest {
        source: fourth.blank("larger.qcow2", 2).display().to_string(),
        ..request(&fourth)
    };
    let answer = d.images().import_image(larger).await;
    let refusal = d.outcome(answer).await.expect_err("it is another image");
    assert_eq!(refusal.reason, "IMAGE_EXISTS");
    assert!(cluster.images("images").contains(&format!("img-{image}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_host_has_or_is_making_is_no_orphan_and_not_swept() {
    let cluster = shared();
    let (one, other) = (host(cluster).await, host(cluster).await);
    let image = image_on_ceph(&other).await;
    let its = other.api().made(on_ceph(&image)).await;
    let api = one.api();
    let (own, theirs) = (api.node().await.id, other.api().node().await.id);
    let making = |node: &str| format!("tmp-{}-img-{}", node.replace('-', ""), id());
    let (own, theirs) = (making(&own), making(&theirs));
    for name in [&own, &theirs] {
        cluster.rbd(&["create", "--size", "1M", &format!("images/{name}")]);
    }
    let request = ListOrphansRequest {
        page_size: 1000,
        ..Default::default()
    };
    let orphans = api.nodes().list_orphans(request).await;
    let orphans = orphans.unwrap().into_inner().orphans;
    let named: Vec<_> = orphans
        .iter()
        .filter(|orphan| orphan.pool == "ceph")
        .map(|orphan| orphan.name.as_str())
        .collect();
    assert_eq!(named, [&format!("images/{own}")]);
    let one = tokio::sync::Mutex::new(one);
    // At a start that finds the cluster within its first seconds.
    until("its own to be swept", PATIENCE, async || {
        let mut one = one.lock().await;
        one.kill9();
        one.restart().await;
        reaches(&one).await;
        (!cluster.images("images").contains(&own)).then_some(())
    })
    .await;
    let left = cluster.images("images");
    assert!(left.contains(&theirs) && left.contains(&format!("img-{image}")));
    assert!(is_in(cluster, "vms", &its.root_volume_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_lost_is_rebuilt_with_the_volumes_in_ceph() {
    let cluster = shared();
    let libvirtd = Libvirtd::start();
    let mut setup = setup(cluster);
    setup.uri = libvirtd.uri();
    // Its domains live as long as somebody is connected.
    let _connection = libvirtd.connect();
    let mut daemon = started(setup).await;
    let image = image_on_ceph(&daemon).await;
    let request = CreateVmRequest {
        start: true,
        data_volumes: vec![data(2)],
        ..on_ceph(&image)
    };
    let before = daemon.api().made(request).await;
    let replace = ReplaceRootVolumeRequest {
        vm_id: before.id.clone(),
        image_id: image.clone(),
        system_tags: tag("vms-fast"),
        stop_policy: Some(crate::support::api::force()),
        start_after: true,
        ..Default::default()
    };
    let before = daemon.api().replaced(replace).await;
    daemon.kill9();
    daemon.lose_journal();
    daemon.restart().await;
    reaches(&daemon).await;
    let api = daemon.api();
    let after = api.vm(&before.id).await.unwrap();
    assert_eq!(after.state(), VmState::Running);
    let places = |vm: &Vm| -> Vec<_> {
        let volumes = vm.volumes.iter();
        volumes
            .map(|v| (v.id.clone(), v.install_path.clone(), v.state()))
            .collect()
    };
    assert_eq!(places(&after), places(&before));
    assert_eq!(after.volumes.len(), 3, "root, data, the former root");
    for volume in &after.volumes {
        assert!(is_in(cluster, &volume.ceph_pool, &volume.id));
    }
    api.stop(&after.id).await;
    let revert = RevertRootVolumeRequest {
        vm_id: after.id.clone(),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert).await).await;
    let back = api.vm(&after.id).await.unwrap();
    assert_eq!(back.volumes[0].ceph_pool, "vms");
    // The image is known again, too.
    api.made(on_ceph(&image)).await;
}
