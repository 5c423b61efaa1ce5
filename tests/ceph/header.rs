//! A raw disk that begins with the header of a qcow2 file stays a raw disk
//! (CVE-2026-24708): what a guest writes is never asked what it is.

use crate::lab::*;
use crate::planted::{headers, write};
use crate::support::api::{Start, id, small};

use crate::support::images::qemu_img;
use kvmlet::proto::v1::*;
use std::fs;

/// What the header names: a file with this in it, which must be seen nowhere.
const SECRET: &str = "the secret of another file";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_a_qcow2_header_onto_its_disk_gains_nothing() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let secret = daemon.home().join("secret");
    fs::write(&secret, SECRET.repeat(1000)).unwrap();
    let (source, bytes) = random_image(&daemon, 2);
    let request = ImportImageRequest {
        source: source.display().to_string(),
        ..importing(&daemon, "ceph")
    };
    let image = api.done(api.images().import_image(request).await).await;
    let image = image.image_id;
    for header in headers(daemon.home(), &secret) {
        let request = CreateVmRequest {
            data_volumes: vec![data(2)],
            ..on_ceph(&image)
        };
        let vm = api.made(request).await;
        let root = format!("vms/vol-{}", vm.root_volume_id);
        let more = format!("data/vol-{}", vm.volumes[1].id);
        for volume in [&root, &more] {
            write(cluster, volume, &header);
        }
        let mut expected = bytes.clone();
        expected[..header.len()].copy_from_slice(&header);
        let unchanged = |when: &str| {
            assert!(content(cluster, &root) == expected, "{when}");
            assert!(content(cluster, &more).starts_with(&header), "{when}");
        };
        unchanged("written");
        api.start(&vm.id).await.expect("it is started");
        unchanged("started");
        api.stop(&vm.id).await;
        let replace = ReplaceRootVolumeRequest {
            vm_id: vm.id.clone(),
            image_id: image.clone(),
            size_policy: SizePolicy::Exact as i32,
            size_bytes: 4 * MIB,
            ..Default::default()
        };
        let replaced = api.replaced(replace).await;
        unchanged("kept beside a new root");
        let fresh = content(cluster, &format!("vms/vol-{}", replaced.root_volume_id));
        assert!(fresh[..bytes.len()] == bytes, "the image is as it was");
        let revert = RevertRootVolumeRequest {
            vm_id: vm.id.clone(),
            ..Default::default()
        };
        api.done(api.vms().revert_root_volume(revert).await).await;
        let back = api.vm(&vm.id).await.unwrap();
        assert_eq!(back.root_volume_id, vm.root_volume_id);
        assert_eq!(back.volumes[0].size_bytes, 2 * MIB);
        assert_eq!(back.volumes[0].format(), VolumeFormat::Raw);
        unchanged("reverted");
        api.start(&vm.id).await.expect("it is started");
        unchanged("started again");
        api.remove(&vm.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_disk_begins_with_a_qcow2_header_is_taken_for_its_bytes() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let secret = daemon.home().join("secret");
    fs::write(&secret, SECRET.repeat(1000)).unwrap();
    for header in headers(daemon.home(), &secret) {
        let mut bytes = header;
        bytes.resize(2 << 20, 5);
        let raw = daemon.import_path(&format!("{}.raw", id()));
        let packed = raw.with_extension("qcow2");
        fs::write(&raw, &bytes).unwrap();
        let (from, to) = (raw.to_str().unwrap(), packed.to_str().unwrap());
        qemu_img(&["convert", "-q", "-f", "raw", "-O", "qcow2", from, to]);

        let refused = ImportImageRequest {
            source: raw.display().to_string(),
            format: ImageFormat::Raw as i32,
            ..importing(&daemon, "ceph")
        };
        let answer = api.images().import_image(refused).await;
        let refusal = api.outcome(answer).await.expect_err("it is refused");
        assert_eq!(refusal.metadata["problem"], "not_raw", "{refusal:?}");

        // From Ceph to files, and from files to Ceph.
        for pool in ["ceph", ""] {
            let request = ImportImageRequest {
                source: packed.display().to_string(),
                ..importing(&daemon, pool)
            };
            let image = api.done(api.images().import_image(request).await).await;
            let image = image.image_id;
            let vm = api.made(on_ceph(&image)).await;
            let root = format!("vms/vol-{}", vm.root_volume_id);
            assert!(content(cluster, &root) == bytes, "{pool}: on Ceph");
            let on_files = CreateVmRequest {
                start: true,
                ..small(&image)
            };
            let vm = api.made(on_files).await;
            let file = daemon.home().join("pool").join(&vm.volumes[0].install_path);
            let back = daemon.home().join("back.raw");
            let (from, to) = (file.to_str().unwrap(), back.to_str().unwrap());
            qemu_img(&["convert", "-q", "-U", "-f", "qcow2", "-O", "raw", from, to]);
            assert!(fs::read(&back).unwrap() == bytes, "{pool}: on files");
        }
    }
    let of_pools = daemon.pool_files();
    for file in of_pools {
        let path = daemon.home().join(file);
        let found = fs::read(path).unwrap();
        let secret = SECRET.as_bytes();
        assert!(!found.windows(secret.len()).any(|part| part == secret));
    }
    let vm_id = api.create(&daemon.image().await, Start::Yes).await;
    assert_eq!(api.state(&vm_id).await, VmState::Running);
}
