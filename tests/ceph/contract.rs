//! The contract of pools, kept by Ceph pools, and what only they do.

use super::contract_cases::{Backend, CASES};
use super::lab::{pools_of_its_own, shared};
use super::support::PATIENCE;
use super::support::ceph::{CephPools, Cluster};
use glob::Pattern;
use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::{ImageId, VolumeId};
use kvmlet::model::volume::{DiskSource, RbdSource, VolumeKind, VolumeRef};
use kvmlet::storage::{EntryKind, Keyring, Pool, RbdPool, RbdPoolSpec, StorageErrorKind, Task};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use uuid::Uuid;

/// A pool of Ceph pools of its own.
struct OnCeph {
    cluster: &'static Cluster,
    pools: CephPools,
    folder: tempfile::TempDir,
    pool: RbdPool,
}

impl OnCeph {
    fn new() -> Self {
        let cluster = shared();
        let pools = pools_of_its_own(cluster);
        let folder = tempfile::tempdir().unwrap();
        let pool = pool(&pools, folder.path(), Duration::from_secs(3600), 1);
        pool.prepare().unwrap();
        Self {
            cluster,
            pools,
            folder,
            pool,
        }
    }
}

fn pool(pools: &CephPools, folder: &Path, trash_expiry: Duration, node: u128) -> RbdPool {
    let cluster = shared();
    let spec = RbdPoolSpec {
        conf: cluster.conf(),
        user: "kvmlet".to_owned(),
        keyring: Keyring::File(cluster.keyring()),
        image_pool: pools.images.clone(),
        root_pool: pools.roots.clone(),
        data_pool: pools.data.clone(),
        allowed_root_pools: vec![Pattern::new(&format!("{}-*", pools.roots)).unwrap()],
        trash_expiry,
        scratch: folder.join(format!("scratch-{node}")),
        node: Uuid::from_u128(node),
    };
    RbdPool::new("ceph", spec)
}

fn task() -> Task {
    Task::within(Duration::from_secs(60))
}

fn rbd_of(source: &DiskSource) -> &RbdSource {
    match source {
        DiskSource::Rbd(image) => image,
        DiskSource::File(path) => panic!("{} is no RBD image", path.display()),
    }
}

fn spec_of(source: &DiskSource) -> String {
    let image = rbd_of(source);
    let snapshot = image.snapshot.iter().map(|name| format!("@{name}"));
    format!(
        "{}/{}{}",
        image.pool,
        image.image,
        snapshot.collect::<String>()
    )
}

impl Backend for OnCeph {
    fn pool(&self) -> &dyn Pool {
        &self.pool
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn read(&self, source: &DiskSource) -> Vec<u8> {
        let export = ["export", "--no-progress", &spec_of(source), "-"];
        let output = self.cluster.rbd_output(&export);
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    fn write(&self, source: &DiskSource, offset: usize, bytes: &[u8]) {
        let file = self.folder().join("write.bytes");
        std::fs::write(&file, bytes).unwrap();
        let (length, image) = (bytes.len(), rbd_of(source));
        #[allow(clippy::disallowed_methods)] // a test writes by other means
        let written = Command::new("timeout")
            .args(["60", "qemu-io", "-f", "raw", "-c"])
            .arg(format!("write -s {} {offset} {length}", file.display()))
            .arg(format!(
                "rbd:{}/{}:conf={}",
                image.pool,
                image.image,
                self.cluster.conf().display()
            ))
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(written.success());
    }

    fn open(&self, source: &DiskSource) -> Box<dyn std::any::Any> {
        Box::new(self.cluster.watch(&spec_of(source)))
    }
}

#[test]
fn ceph_pools_keep_the_contract_of_pools() {
    let on_ceph = OnCeph::new();
    for (name, case) in CASES {
        println!("{name}");
        case(&on_ceph);
    }
}

#[test]
fn what_is_removed_waits_in_the_trash_until_its_time_is_over() {
    let on_ceph = OnCeph::new();
    let (cluster, pools) = (on_ceph.cluster, &on_ceph.pools);
    let soon = pool(pools, on_ceph.folder.path(), Duration::from_secs(3), 1);
    soon.prepare().unwrap();
    let later = &on_ceph.pool;
    let place = |ceph_pool: &str| VolumeRef {
        id: VolumeId::random(),
        ceph_pool: Some(ceph_pool.to_owned()),
    };
    let mib = Bytes::mib(1);
    let (kept, short) = (place(&pools.roots), place(&pools.data));
    for volume in [&kept, &short] {
        later.create_empty(volume, mib, &task()).unwrap();
    }
    later.delete_volume(&kept).unwrap();
    soon.delete_volume(&short).unwrap();
    // By hand and without a time: nobody said that it may go.
    let by_hand = place(&pools.roots);
    later.create_empty(&by_hand, mib, &task()).unwrap();
    let name = format!("{}/vol-{}", pools.roots, by_hand.id);
    cluster.rbd(&["trash", "mv", &name]);
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let gone = later.empty_trash().unwrap();
        if gone == [format!("{}/vol-{}", pools.data, short.id)] {
            break;
        }
        assert_eq!(gone, [""; 0]);
        assert!(std::time::Instant::now() < deadline, "it stays");
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut left = [format!("vol-{}", kept.id), format!("vol-{}", by_hand.id)];
    left.sort();
    assert_eq!(cluster.trash(&pools.roots), left);
    assert_eq!(cluster.trash(&pools.data), [""; 0]);
}

#[test]
fn an_image_in_the_trash_goes_after_the_last_volume_that_is_made_from_it() {
    let on_ceph = OnCeph::new();
    let (cluster, pools) = (on_ceph.cluster, &on_ceph.pools);
    let soon = pool(pools, on_ceph.folder.path(), Duration::from_secs(3), 1);
    soon.prepare().unwrap();
    let id = ImageId::random();
    let name = format!("{}/img-{id}", pools.images);
    cluster.rbd(&["create", "--size", "1M", &name]);
    cluster.rbd(&["snap", "create", "--no-progress", &format!("{name}@base")]);
    cluster.rbd(&["snap", "protect", &format!("{name}@base")]);
    let volume = VolumeRef {
        id: VolumeId::random(),
        ceph_pool: Some(pools.roots.clone()),
    };
    soon.create_overlay(&volume, id, Bytes::mib(1), &task())
        .unwrap();
    // It may come back from the trash for an hour: so may its image.
    on_ceph.pool.delete_volume(&volume).unwrap();
    soon.delete_image(id).unwrap();
    assert_eq!(cluster.trash(&pools.images), [format!("img-{id}")]);
    let old = || {
        let listed = cluster.rbd_json(&["trash", "ls", "--all", "--long", &pools.images]);
        listed[0]["status"].as_str().unwrap().starts_with("expired")
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while !old() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        soon.empty_trash().unwrap(),
        [""; 0],
        "a volume is made from it"
    );
    let trashed = cluster.rbd_json(&["trash", "ls", "--all", &pools.roots]);
    let volume = format!("{}/{}", pools.roots, trashed[0]["id"].as_str().unwrap());
    cluster.rbd(&["trash", "rm", "--force", "--no-progress", &volume]);
    assert_eq!(soon.empty_trash().unwrap(), [name]);
    assert_eq!(cluster.trash(&pools.images), [""; 0]);
}

#[test]
fn only_what_this_host_was_making_is_swept() {
    let on_ceph = OnCeph::new();
    let (cluster, pools) = (on_ceph.cluster, &on_ceph.pools);
    let other = pool(pools, on_ceph.folder.path(), Duration::ZERO, 2);
    other.prepare().unwrap();
    let tmp = |node: u128| {
        let node = Uuid::from_u128(node).simple().to_string();
        format!("tmp-{node}-img-{}", ImageId::random())
    };
    let (ours, protected, theirs) = (tmp(1), tmp(1), tmp(2));
    let in_images = |name: &str| format!("{}/{name}", pools.images);
    for name in [&ours, &protected, &theirs] {
        cluster.rbd(&["create", "--size", "1M", &in_images(name)]);
    }
    let base = in_images(&format!("{protected}@base"));
    cluster.rbd(&["snap", "create", "--no-progress", &base]);
    cluster.rbd(&["snap", "protect", &base]);
    let listed = on_ceph.pool.entries().unwrap();
    let mut names: Vec<_> = listed
        .iter()
        .filter(|entry| entry.kind == EntryKind::Temporary)
        .map(|entry| entry.name.clone())
        .collect();
    names.sort();
    let mut expected = vec![in_images(&ours), in_images(&protected)];
    expected.sort();
    assert_eq!(names, expected);
    let mut swept = on_ceph.pool.sweep_temporary(&[]).unwrap();
    swept.sort();
    assert_eq!(swept, expected);
    assert_eq!(cluster.images(&pools.images), [theirs]);
}

#[test]
fn a_ceph_pool_is_used_if_it_is_allowed_and_there() {
    let on_ceph = OnCeph::new();
    let (pools, pool) = (&on_ceph.pools, &on_ceph.pool);
    let new = format!("{}-new", pools.roots);
    let root = |name| pool.place(VolumeKind::Root, name);
    let is = |name, place: &str| assert_eq!(root(name).unwrap().as_deref(), Some(place));
    is(None, &pools.roots);
    is(Some(&pools.roots), &pools.roots);
    is(Some(&pools.fast), &pools.fast);
    let data = pool.place(VolumeKind::Data, None).unwrap();
    assert_eq!(data.as_ref(), Some(&pools.data));
    let kind = |name| root(Some(name)).unwrap_err().kind();
    assert_eq!(kind(&pools.data), StorageErrorKind::CephPoolNotAllowed);
    assert_eq!(kind(&new), StorageErrorKind::CephPoolMissing);
    on_ceph.cluster.make_pool(&new);
    let deadline = std::time::Instant::now() + PATIENCE;
    while root(Some(&new)).is_err() {
        assert!(
            std::time::Instant::now() < deadline,
            "a new pool is seen at once"
        );
    }
    let names: Vec<_> = pool.ceph_pools().into_iter().map(|one| one.name).collect();
    let [images, roots, fast, data] = pools.all();
    assert_eq!(names, [data, images, roots, fast, &new]);
}
