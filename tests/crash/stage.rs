//! A host for one scenario after another: a daemon whose fault points can be
//! armed, on a libvirt whose domains outlive it, with a guest that nothing is
//! ever asked of.

use super::ask::Ask;
use super::sector::BootSector;
use crate::support::api::{Api, force, id};
use crate::support::ceph::{CephPools, Cluster};
use crate::support::daemon::{Daemon, Setup};
use crate::support::holdings::Looker;
use crate::support::images;
use crate::support::libvirtd::Libvirtd;
use crate::support::world::{Domain, Power, World, domains_below, domains_of};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tonic::Status;
use tonic_types::StatusExt;
use virt::connect::Connect;

/// Where libvirt keeps what it has learnt of QEMU, below its root.
const KNOWN: &str = "cache/qemu/capabilities";

/// A host for one scenario after another. Dropped in this order: the daemon must
/// not see libvirt go.
pub struct Stage {
    pub daemon: Daemon,
    pub host: Host,
    /// Its Ceph pools, if its default pool is made of such.
    pub ceph: Option<Looker>,
    /// Where points are armed and traced.
    points: TempDir,
    /// Images in the default pool.
    pub images: [String; 2],
    /// A VM that runs and that nothing is asked of.
    pub bystander: String,
}

/// What plays the host.
pub enum Host {
    /// libvirt's test driver, in a process of its own. Its domains are there as
    /// long as anyone is connected.
    Simulated(
        Connect,
        #[expect(dead_code, reason = "it ends when dropped")] Libvirtd,
    ),
    /// Real QEMU, its driver in the daemon, its files below a root.
    Qemu(TempDir),
}

impl Stage {
    /// A simulated host.
    pub async fn simulated() -> Self {
        let libvirtd = Libvirtd::start();
        let setup = Setup::on(libvirtd.uri());
        Self::open(Host::Simulated(libvirtd.connect(), libvirtd), setup, None).await
    }

    /// A simulated host on a real cluster, whose default pool is made of Ceph pools
    /// of its own: so what it must hold can be said exactly.
    pub async fn ceph(cluster: &Cluster, number: usize) -> Self {
        let libvirtd = Libvirtd::start();
        let pools = CephPools::of_their_own(number);
        pools.make_in(cluster);
        let scratch = tempfile::tempdir().unwrap();
        let mut setup = Setup::on(libvirtd.uri());
        setup.default_pool = "ceph";
        setup.more = cluster.section_of(&pools, scratch.path()) + "default = true\n";
        let looker = Looker::at(cluster, pools, scratch);
        let host = Host::Simulated(libvirtd.connect(), libvirtd);
        Self::open(host, setup, Some(looker)).await
    }

    /// A host with real QEMU. `known` is what another one has learnt of it.
    pub async fn qemu(known: Option<&Path>) -> Self {
        // Short: the paths of sockets below it end at 107 bytes.
        let root = tempfile::Builder::new()
            .prefix("kvmlet-c")
            .tempdir_in("/tmp")
            .unwrap();
        pass_through(root.path());
        if let Some(known) = known {
            let to = root.path().join(KNOWN);
            fs::create_dir_all(&to).unwrap();
            for file in fs::read_dir(known).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
        let setup = Setup::on(format!("qemu:///embed?root={}", root.path().display()));
        Self::open(Host::Qemu(root), setup, None).await
    }

    async fn open(host: Host, setup: Setup, ceph: Option<Looker>) -> Self {
        // What it does by itself would be in the way of what is asked of it.
        let mut setup = setup.at_real_pace();
        let points = tempfile::tempdir().unwrap();
        for (name, file) in [("FAILPOINTS_FILE", "armed"), ("FAILPOINTS_TRACE", "trace")] {
            let path = points.path().join(file).display().to_string();
            setup.environment.push((name.to_owned(), path));
        }
        let daemon = Daemon::start(setup).await;
        if let Host::Qemu(_) = host {
            pass_through(daemon.home());
        }
        let mut stage = Self {
            daemon,
            host,
            ceph,
            points,
            images: Default::default(),
            bystander: String::new(),
        };
        stage.cluster_answers().await;
        for index in 0..2 {
            let source = stage.source();
            stage.images[index] = stage.daemon.api().import(&source).await;
        }
        let wanted = CreateVmRequest {
            start: true,
            ..stage.small()
        };
        stage.bystander = wanted.vm_id.clone();
        stage.succeeds(&Ask::Create(Box::new(wanted))).await;
        stage
    }

    pub fn api(&self) -> Api {
        self.daemon.api()
    }

    /// What its libvirt has learnt of QEMU.
    pub fn known(&self) -> PathBuf {
        match &self.host {
            Host::Qemu(root) => root.path().join(KNOWN),
            Host::Simulated(..) => unreachable!("it has no QEMU"),
        }
    }

    /// The file of an image to import.
    pub fn source(&self) -> PathBuf {
        let name = format!("{}.qcow2", id());
        match self.host {
            Host::Simulated(..) if self.ceph.is_some() => {
                let path = self.daemon.import_path(&name);
                images::random(&path, 1);
                path
            }
            Host::Simulated(..) => self.daemon.blank(&name, 1),
            Host::Qemu(_) => {
                let path = self.daemon.import_path(&name);
                BootSector::Idle.write_disk(&path);
                path
            }
        }
    }

    /// A request for a VM of the first image.
    pub fn small(&self) -> CreateVmRequest {
        CreateVmRequest {
            vnc: Some(NewVnc { enabled: false }),
            request_id: id(),
            ..crate::support::api::small(&self.images[0])
        }
    }

    /// The domains as libvirt has them.
    pub fn domains(&self) -> BTreeMap<String, Domain> {
        match &self.host {
            Host::Simulated(connection, _) => domains_of(connection),
            Host::Qemu(root) => domains_below(root.path()),
        }
    }

    /// Everything at this moment.
    pub async fn see(&self) -> World {
        if let Host::Qemu(_) = self.host {
            self.has_one_qemu_for_each_guest().await;
        }
        World {
            ceph: self.ceph.as_ref().map(Looker::look),
            ..World::see(&self.daemon, self.domains()).await
        }
    }

    /// A driver that was killed while it started a guest may have started its QEMU and
    /// not noted it.
    async fn has_one_qemu_for_each_guest(&self) {
        // Their disks and consoles are below the daemon's directory.
        let home = format!("{}/", self.daemon.home().display());
        // One whose domain is off may be on its way out.
        until(
            "each guest to have one QEMU, and no others",
            PATIENCE,
            async || {
                let domains = self.domains();
                let with_power = domains.values().filter(|domain| domain.power != Power::Off);
                let known: BTreeSet<String> = with_power.map(|it| it.incarnation.clone()).collect();
                (qemus(&home) == known).then_some(())
            },
        )
        .await;
    }

    /// Waits until its cluster has answered, if it is on one: right after a start that
    /// may still be due, and what is asked then is refused.
    pub async fn cluster_answers(&self) {
        if self.ceph.is_none() {
            return;
        }
        let api = self.api();
        until("the cluster to answer", PATIENCE, async || {
            is_ready(&api.node().await).then_some(())
        })
        .await;
    }

    /// Waits until the agent serves, and its cluster, if it is on one, has answered.
    /// False if it dies before, as it may where points are armed.
    pub async fn serves_or_dies(&mut self) -> bool {
        let api = self.api();
        let serves = async || {
            if !matches!(api.serving("").await, Ok(true)) {
                return false;
            }
            let request = GetNodeRequest {};
            let node = api.nodes().get_node(request).await;
            self.ceph.is_none() || node.is_ok_and(|node| is_ready(node.get_ref()))
        };
        let serves = until("the daemon to serve or to die", PATIENCE, async || {
            if self.daemon.is_alive() {
                serves().await.then_some(true)
            } else {
                Some(false)
            }
        })
        .await;
        if !serves {
            self.daemon.dies(PATIENCE).await;
        }
        serves
    }

    /// Whether a call has no answer of the agent's because that was killed.
    pub async fn is_dying(&mut self, status: &Status) -> bool {
        let answered = status.get_error_details().error_info().is_some();
        !answered && self.daemon.dies(PATIENCE).await
    }

    /// Asks the agent to stop, and waits until nothing new is taken any more.
    pub async fn ask_to_stop(&self) {
        kill(self.daemon.pid(), Signal::SIGTERM).unwrap();
        let socket = self.daemon.socket();
        until("the agent to take no more calls", PATIENCE, async || {
            // A call over a new connection.
            Api::at(&socket).serving("").await.err()
        })
        .await;
    }

    /// Asks for something that must be done.
    pub async fn succeeds(&self, ask: &Ask) -> Operation {
        let api = self.api();
        api.done(ask.send(&api).await).await
    }

    /// Arms points, and no others.
    pub fn arm(&self, points: &[String]) {
        fs::write(self.points.path().join("armed"), points.join("\n")).unwrap();
    }

    /// Where a point is held as long as the file is there.
    pub fn hold(&self) -> PathBuf {
        self.points.path().join("held")
    }

    /// Forgets which points were reached.
    pub fn forget(&self) {
        let _ = fs::remove_file(self.points.path().join("trace"));
    }

    /// The points that were reached since, in order.
    pub fn trace(&self) -> Vec<String> {
        let text = fs::read_to_string(self.points.path().join("trace")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Ends the host's maintenance, and starts again what was stopped for it and
    /// nothing is ever asked of.
    pub async fn end_maintenance(&self) {
        self.succeeds(&Ask::SetMaintenance(SetMaintenanceRequest::default()))
            .await;
        let start = StartVmRequest {
            vm_id: self.bystander.clone(),
            ..Default::default()
        };
        self.succeeds(&Ask::Start(start)).await;
    }

    /// Removes a VM, whatever has become of it.
    pub async fn remove(&self, vm_id: &str) {
        let api = self.api();
        let Ok(vm) = api.vm(vm_id).await else { return };
        let ask = if vm.state() == VmState::Deleted {
            Ask::Expunge(ExpungeVmRequest {
                vm_id: vm.id,
                ..Default::default()
            })
        } else {
            Ask::Delete(DeleteVmRequest {
                vm_id: vm.id,
                stop_policy: Some(force()),
                retention: Some(prost_types::Duration::default()),
                ..Default::default()
            })
        };
        self.succeeds(&ask).await;
    }

    /// Removes an image, whatever has become of it.
    pub async fn remove_image(&self, image_id: &str) {
        let api = self.api();
        let image_id = image_id.to_owned();
        let request = GetImageRequest {
            image_id: image_id.clone(),
        };
        if api.images().get_image(request).await.is_ok() {
            let ask = Ask::DeleteImage(DeleteImageRequest {
                image_id,
                ..Default::default()
            });
            self.succeeds(&ask).await;
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let Host::Qemu(root) = &self.host else { return };
        // Its guests outlive it, which is what it is made for.
        for domain in domains_below(root.path()).values() {
            // 0 while QEMU is being started.
            if let Ok(process) = domain.incarnation.parse()
                && process > 1
            {
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
    }
}

/// Whether its cluster has answered.
fn is_ready(node: &Node) -> bool {
    let ready = |it: &Condition| it.r#type == "PoolReady/ceph" && it.status;
    node.conditions.iter().any(ready)
}

/// The processes of all QEMUs whose arguments name this.
fn qemus(named: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("/usr/bin/qemu-system") && line.contains(named) {
            found.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

/// QEMU runs as a user of its own and must get through.
fn pass_through(folder: &Path) {
    fs::set_permissions(folder, PermissionsExt::from_mode(0o711)).unwrap();
}
