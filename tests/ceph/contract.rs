//! The contract of pools, kept by Ceph pools, and what only they do.

use super::contract_cases::{Backend, CASES};
use super::support::ceph::Cluster;
use glob::Pattern;
use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::{ImageId, VolumeId};
use kvmlet::model::volume::{DiskSource, RbdSource, VolumeKind, VolumeRef};
use kvmlet::storage::{EntryKind, Keyring, Pool, RbdPool, RbdPoolSpec, StorageErrorKind, Task};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use uuid::Uuid;

/// A pool on a cluster of its own.
struct OnCeph {
    cluster: Cluster,
    folder: tempfile::TempDir,
    pool: RbdPool,
}

impl OnCeph {
    fn new() -> Self {
        let cluster = Cluster::start_with_room(8 << 30);
        let folder = tempfile::tempdir().unwrap();
        let pool = pool(&cluster, folder.path(), Duration::from_secs(3600), 1);
        pool.prepare().unwrap();
        Self {
            cluster,
            folder,
            pool,
        }
    }
}

fn pool(cluster: &Cluster, folder: &Path, trash_expiry: Duration, node: u128) -> RbdPool {
    let spec = RbdPoolSpec {
        conf: cluster.conf(),
        user: "kvmlet".to_owned(),
        keyring: Keyring::File(cluster.keyring()),
        image_pool: "images".to_owned(),
        root_pool: "vms".to_owned(),
        data_pool: "data".to_owned(),
        allowed_root_pools: vec![Pattern::new("vms-*").unwrap()],
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
    let (cluster, folder) = (&on_ceph.cluster, on_ceph.folder.path());
    let soon = pool(cluster, folder, Duration::from_secs(3), 1);
    soon.prepare().unwrap();
    let later = &on_ceph.pool;
    let place = |ceph_pool: &str| VolumeRef {
        id: VolumeId::random(),
        ceph_pool: Some(ceph_pool.to_owned()),
    };
    let mib = Bytes::mib(1);
    let (kept, short) = (place("vms"), place("data"));
    for volume in [&kept, &short] {
        later.create_empty(volume, mib, &task()).unwrap();
    }
    later.delete_volume(&kept).unwrap();
    soon.delete_volume(&short).unwrap();
    // By hand and without a time: nobody said that it may go.
    let by_hand = place("vms");
    later.create_empty(&by_hand, mib, &task()).unwrap();
    let name = format!("vms/vol-{}", by_hand.id);
    cluster.rbd(&["trash", "mv", &name]);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let gone = later.empty_trash().unwrap();
        if gone == [format!("data/vol-{}", short.id)] {
            break;
        }
        assert_eq!(gone, [""; 0]);
        assert!(std::time::Instant::now() < deadline, "it stays");
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut left = [format!("vol-{}", kept.id), format!("vol-{}", by_hand.id)];
    left.sort();
    assert_eq!(cluster.trash("vms"), left);
    assert_eq!(cluster.trash("data"), [""; 0]);
}

#[test]
fn an_image_in_the_trash_goes_after_the_last_volume_that_is_made_from_it() {
    let on_ceph = OnCeph::new();
    let (cluster, folder) = (&on_ceph.cluster, on_ceph.folder.path());
    let soon = pool(cluster, folder, Duration::from_secs(3), 1);
    soon.prepare().unwrap();
    let id = ImageId::random();
    let name = format!("images/img-{id}");
    cluster.rbd(&["create", "--size", "1M", &name]);
    cluster.rbd(&["snap", "create", "--no-progress", &format!("{name}@base")]);
    cluster.rbd(&["snap", "protect", &format!("{name}@base")]);
    let volume = VolumeRef {
        id: VolumeId::random(),
        ceph_pool: Some("vms".to_owned()),
    };
    soon.create_overlay(&volume, id, Bytes::mib(1), &task())
        .unwrap();
    // It may come back from the trash for an hour: so may its image.
    on_ceph.pool.delete_volume(&volume).unwrap();
    soon.delete_image(id).unwrap();
    assert_eq!(cluster.trash("images"), [format!("img-{id}")]);
    let old = || {
        let listed = cluster.rbd_json(&["trash", "ls", "--all", "--long", "images"]);
        listed[0]["status"].as_str().unwrap().starts_with("expired")
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !old() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        soon.empty_trash().unwrap(),
        [""; 0],
        "a volume is made from it"
    );
    let trashed = cluster.rbd_json(&["trash", "ls", "--all", "vms"]);
    let volume = format!("vms/{}", trashed[0]["id"].as_str().unwrap());
    cluster.rbd(&["trash", "rm", "--force", "--no-progress", &volume]);
    assert_eq!(soon.empty_trash().unwrap(), [name]);
    assert_eq!(cluster.trash("images"), [""; 0]);
}

#[test]
fn only_what_this_host_was_making_is_swept() {
    let on_ceph = OnCeph::new();
    let (cluster, folder) = (&on_ceph.cluster, on_ceph.folder.path());
    let other = pool(cluster, folder, Duration::ZERO, 2);
    other.prepare().unwrap();
    let tmp = |node: u128| {
        let node = Uuid::from_u128(node).simple().to_string();
        format!("tmp-{node}-img-{}", ImageId::random())
    };
    let (ours, protected, theirs) = (tmp(1), tmp(1), tmp(2));
    for name in [&ours, &protected, &theirs] {
        cluster.rbd(&["create", "--size", "1M", &format!("images/{name}")]);
    }
    let base = format!("images/{protected}@base");
    cluster.rbd(&["snap", "create", "--no-progress", &base]);
    cluster.rbd(&["snap", "protect", &base]);
    let listed = on_ceph.pool.entries().unwrap();
    let mut names: Vec<_> = listed
        .iter()
        .filter(|entry| entry.kind == EntryKind::Temporary)
        .map(|entry| entry.name.clone())
        .collect();
    names.sort();
    let mut expected = vec![format!("images/{ours}"), format!("images/{protected}")];
    expected.sort();
    assert_eq!(names, expected);
    let mut swept = on_ceph.pool.sweep_temporary(&[]).unwrap();
    swept.sort();
    assert_eq!(swept, expected);
    assert_eq!(cluster.images("images"), [theirs]);
}

#[test]
fn a_ceph_pool_is_used_if_it_is_allowed_and_there() {
    let on_ceph = OnCeph::new();
    let (cluster, pool) = (&on_ceph.cluster, &on_ceph.pool);
    let root = |name| pool.place(VolumeKind::Root, name);
    assert_eq!(root(None).unwrap().as_deref(), Some("vms"));
    assert_eq!(root(Some("vms")).unwrap().as_deref(), Some("vms"));
    assert_eq!(root(Some("vms-fast")).unwrap().as_deref(), Some("vms-fast"));
    let data = pool.place(VolumeKind::Data, None).unwrap();
    assert_eq!(data.as_deref(), Some("data"));
    let kind = |name| root(Some(name)).unwrap_err().kind();
    assert_eq!(kind("data"), StorageErrorKind::CephPoolNotAllowed);
    assert_eq!(kind("vms-new"), StorageErrorKind::CephPoolMissing);
    cluster.make_pool("vms-new");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while root(Some("vms-new")).is_err() {
        assert!(
            std::time::Instant::now() < deadline,
            "a new pool is seen at once"
        );
    }
    let names: Vec<_> = pool.ceph_pools().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["data", "images", "vms", "vms-fast", "vms-new"]);
}
