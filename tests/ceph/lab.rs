//! A daemon with a pool on a cluster, and short ways to say what a test wants of
//! the two; and the clusters that tests share.

use crate::support::api::{Api, id, small};
use crate::support::ceph::{CephPools, Cluster, PACE};
use crate::support::daemon::{Daemon, Setup};
use crate::support::images::qemu_img;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) const MIB: u64 = 1 << 20;

/// The cluster of all tests that don't break it. It ends with this process, whose
/// pipe it watches.
pub(crate) fn shared() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

/// Ceph pools that no other test uses, for one that tells all that is in its own.
pub(crate) fn pools_of_its_own(cluster: &Cluster) -> CephPools {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let pools = CephPools::of_their_own(COUNT.fetch_add(1, Ordering::Relaxed));
    pools.make_in(cluster);
    pools
}

/// A cluster that a test may break, alone. It is to leave it as it was, but for what is
/// in its pools: the next test gets it. One that fails takes its cluster along.
#[derive(Debug)]
pub(crate) struct Breakable {
    cluster: Option<Cluster>,
    _turn: SemaphorePermit<'static>,
}

/// Those that no test has now; they end with this process.
static WHOLE: Mutex<Vec<Cluster>> = Mutex::new(Vec::new());
/// How many tests may break one at the same time.
static TURNS: Semaphore = Semaphore::const_new(2);

pub(crate) async fn breakable() -> Breakable {
    let turn = TURNS.acquire().await.expect("it is never closed");
    let whole = WHOLE.lock().unwrap().pop();
    Breakable {
        cluster: Some(whole.unwrap_or_else(Cluster::start)),
        _turn: turn,
    }
}

impl Deref for Breakable {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
            .as_ref()
            .expect("it has it until it is dropped")
    }
}

impl Drop for Breakable {
    fn drop(&mut self) {
        let cluster = self.cluster.take();
        if !std::thread::panicking() {
            WHOLE.lock().unwrap().extend(cluster);
        }
    }
}

/// A host of its own with the pool `ceph`, not the default one, on a cluster.
pub(crate) fn setup(cluster: &Cluster) -> Setup {
    let node = id();
    // In a folder that is not there either, as on a fresh host.
    let scratch = cluster.folder().join(format!("scratch-{node}/ceph"));
    Setup {
        more: cluster.pool_section(&scratch),
        pace: Some(PACE),
        ..Setup::default()
    }
    .with("node", format!("id = \"{node}\""))
}

/// Such a host on a simulated libvirt.
pub(crate) async fn host(cluster: &Cluster) -> Daemon {
    started(setup(cluster)).await
}

/// Starts a daemon, and waits until it has reached the cluster, too.
pub(crate) async fn started(setup: Setup) -> Daemon {
    let daemon = Daemon::start(setup).await;
    reaches(&daemon).await;
    daemon
}

/// Waits until a daemon has reached the cluster: it serves without one, too.
pub(crate) async fn reaches(daemon: &Daemon) {
    until("the daemon to reach the cluster", PATIENCE, async || {
        daemon.api().condition("ceph").await.status.then_some(())
    })
    .await;
}

/// The tag for a root in this Ceph pool.
pub(crate) fn tag(ceph_pool: &str) -> Vec<String> {
    vec![format!("ceph::rootPoolName::{ceph_pool}")]
}

/// A small VM whose root is in the pool `ceph`, with an id for it.
pub(crate) fn on_ceph(image_id: &str) -> CreateVmRequest {
    CreateVmRequest {
        root_volume: Some(NewVolume {
            volume_id: id(),
            pool: "ceph".to_owned(),
            ..Default::default()
        }),
        ..small(image_id)
    }
}

/// The id that a request gives its root volume.
pub(crate) fn root_of(request: &CreateVmRequest) -> String {
    request.root_volume.as_ref().unwrap().volume_id.clone()
}

/// A data volume in the pool `ceph`.
pub(crate) fn data(mib: u64) -> NewVolume {
    NewVolume {
        volume_id: id(),
        pool: "ceph".to_owned(),
        size_bytes: mib * MIB,
        ..Default::default()
    }
}

/// Makes a qcow2 image of random bytes to import, and returns where it is and what
/// is in it.
pub(crate) fn random_image(daemon: &Daemon, mib: usize) -> (PathBuf, Vec<u8>) {
    let content: Vec<u8> = (0..mib << 20).map(|_| rand::random::<u8>()).collect();
    let raw = daemon.import_path(&format!("{}.raw", id()));
    let path = raw.with_extension("qcow2");
    fs::write(&raw, &content).unwrap();
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu_img(&["convert", "-q", "-f", "raw", "-O", "qcow2", from, to]);
    (path, content)
}

/// The request to import an image into a pool.
pub(crate) fn importing(daemon: &Daemon, pool: &str) -> ImportImageRequest {
    let source = daemon.blank(&format!("{}.qcow2", id()), 1);
    ImportImageRequest {
        image_id: id(),
        source: source.display().to_string(),
        format: ImageFormat::Qcow2 as i32,
        pool: pool.to_owned(),
        ..Default::default()
    }
}

/// Imports a blank image of 1 MiB into the pool `ceph`, and returns its id.
pub(crate) async fn image_on_ceph(daemon: &Daemon) -> String {
    let api = daemon.api();
    let request = importing(daemon, "ceph");
    api.done(api.images().import_image(request).await)
        .await
        .image_id
}

/// What a volume or image of the cluster holds.
pub(crate) fn content(cluster: &Cluster, image: &str) -> Vec<u8> {
    let output = cluster.rbd_output(&["export", "--no-progress", image, "-"]);
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// What is in the pools for volumes, and not in their trash.
pub(crate) fn volumes(cluster: &Cluster) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for pool in ["data", "vms", "vms-fast"] {
        let images = cluster.images(pool);
        all.extend(images.iter().map(|image| format!("{pool}/{image}")));
    }
    all
}

/// Everything in the cluster's pools for volumes and images, also in their trash.
pub(crate) fn everything(cluster: &Cluster) -> Vec<String> {
    let mut all = Vec::new();
    for pool in cluster.ceph(&["osd", "pool", "ls"]).lines() {
        let (images, trash) = (cluster.images(pool), cluster.trash(pool));
        all.extend(images.iter().map(|image| format!("{pool}/{image}")));
        all.extend(trash.iter().map(|image| format!("{pool} trash {image}")));
    }
    all
}

/// Whether the volume is in the Ceph pool.
pub(crate) fn is_in(cluster: &Cluster, ceph_pool: &str, volume_id: &str) -> bool {
    cluster
        .images(ceph_pool)
        .contains(&format!("vol-{volume_id}"))
}

/// Shorter ways to ask.
pub(crate) trait Asks {
    async fn made(&self, request: CreateVmRequest) -> Vm;
    async fn not_made(&self, request: CreateVmRequest) -> Refusal;
    async fn replaced(&self, request: ReplaceRootVolumeRequest) -> Vm;
    async fn not_replaced(&self, request: ReplaceRootVolumeRequest) -> Refusal;
    async fn start(&self, vm_id: &str) -> Result<Operation, Refusal>;
    async fn stop(&self, vm_id: &str) -> Operation;
    async fn delete(&self, vm_id: &str);
    async fn expunge(&self, vm_id: &str) -> Result<Operation, Refusal>;
    async fn remove(&self, vm_id: &str);
    async fn condition(&self, pool: &str) -> Condition;
}

impl Asks for Api {
    async fn made(&self, request: CreateVmRequest) -> Vm {
        let vm_id = request.vm_id.clone();
        self.done(self.vms().create_vm(request).await).await;
        self.vm(&vm_id).await.unwrap()
    }

    async fn not_made(&self, request: CreateVmRequest) -> Refusal {
        let answer = self.vms().create_vm(request).await;
        self.outcome(answer).await.expect_err("it is refused")
    }

    async fn replaced(&self, request: ReplaceRootVolumeRequest) -> Vm {
        let vm_id = request.vm_id.clone();
        self.done(self.vms().replace_root_volume(request).await)
            .await;
        self.vm(&vm_id).await.unwrap()
    }

    async fn not_replaced(&self, request: ReplaceRootVolumeRequest) -> Refusal {
        let answer = self.vms().replace_root_volume(request).await;
        self.outcome(answer).await.expect_err("it is refused")
    }

    async fn start(&self, vm_id: &str) -> Result<Operation, Refusal> {
        let request = StartVmRequest {
            vm_id: vm_id.to_owned(),
            ..Default::default()
        };
        self.outcome(self.vms().start_vm(request).await).await
    }

    async fn stop(&self, vm_id: &str) -> Operation {
        let request = StopVmRequest {
            vm_id: vm_id.to_owned(),
            stop_policy: Some(crate::support::api::force()),
            ..Default::default()
        };
        self.done(self.vms().stop_vm(request).await).await
    }

    async fn delete(&self, vm_id: &str) {
        let request = DeleteVmRequest {
            vm_id: vm_id.to_owned(),
            stop_policy: Some(crate::support::api::force()),
            ..Default::default()
        };
        self.done(self.vms().delete_vm(request).await).await;
    }

    async fn expunge(&self, vm_id: &str) -> Result<Operation, Refusal> {
        let request = ExpungeVmRequest {
            vm_id: vm_id.to_owned(),
            ..Default::default()
        };
        self.outcome(self.vms().expunge_vm(request).await).await
    }

    async fn remove(&self, vm_id: &str) {
        self.delete(vm_id).await;
        self.expunge(vm_id).await.expect("it is expunged");
    }

    async fn condition(&self, pool: &str) -> Condition {
        let kind = format!("PoolReady/{pool}");
        let node = self.node().await;
        let found = node.conditions.into_iter().find(|c| c.r#type == kind);
        found.expect("a condition of each pool")
    }
}
