//! What all tests share, and a guest to watch.

use super::libvirtd::Libvirtd;
use super::receivers::Receivers;
use super::sector::BootSector;
use super::spill;
use super::support::api::{Api, force, id};
use super::support::ceph::{Cluster, PACE};
use super::support::daemon::{Daemon, Setup};
use super::support::refusal::Refusal;
use super::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::{Response, Status};

/// The longest that a guest may take to boot, translated, beside others.
const BOOT: Duration = Duration::from_secs(120);

/// Cluster, libvirt, daemon and those that it tells of changes; dropped, they end in this order: the daemon, the
/// guests with libvirt, the cluster.
pub struct Bench {
    runtime: Runtime,
    images: TempDir,
    pub daemon: Daemon,
    pub libvirtd: Libvirtd,
    pub cluster: Cluster,
    pub receivers: Receivers,
    /// The daemon's scratch folder.
    _scratch: TempDir,
}

/// One VM of a test.
pub struct Guest<'a> {
    pub id: String,
    pub bench: &'a Bench,
    api: Api,
    console: PathBuf,
}

impl Bench {
    /// Starts everything, and builds the images meanwhile.
    pub fn open() -> Self {
        let images = tempfile::tempdir().unwrap();
        let mut builds: Vec<Child> = ["1", "2"]
            .map(|version| build(images.path(), version))
            .into();
        for (name, sector) in [
            ("idle", BootSector::Idle),
            ("writer", BootSector::Writer),
            ("power-off-later", BootSector::PowerOffLater),
        ] {
            sector.write_disk(&images.path().join(format!("{name}.qcow2")));
        }
        let (cluster, libvirtd) = std::thread::scope(|scope| {
            let libvirtd = scope.spawn(Libvirtd::start);
            let cluster = Cluster::start();
            (cluster, libvirtd.join().expect("libvirt starts"))
        });
        let scratch = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let receivers = runtime.block_on(Receivers::start());
        let setup = Setup {
            launcher: spill::at_trace(),
            more: cluster.pool_section(scratch.path()) + receivers.section(),
            pace: Some(PACE),
            ..Setup::on(libvirtd.uri())
        };
        let daemon = runtime.block_on(Daemon::start(setup));
        // QEMU must get through to its console's log.
        fs::set_permissions(daemon.home(), PermissionsExt::from_mode(0o711)).unwrap();
        for build in &mut builds {
            assert!(build.wait().unwrap().success(), "tests/guest/build failed");
        }
        Self {
            runtime,
            images,
            daemon,
            libvirtd,
            cluster,
            receivers,
            _scratch: scratch,
        }
    }

    pub fn close(self) {
        let Self {
            runtime,
            daemon,
            libvirtd,
            cluster,
            ..
        } = self;
        // It talks to the daemon's connections while it goes.
        let _inside = runtime.enter();
        drop(daemon);
        drop(libvirtd);
        drop(cluster);
    }

    /// Runs one test.
    pub fn run(&self, test: impl Future<Output = ()>) {
        let _told = TellOnPanic(self);
        self.runtime.block_on(test);
    }

    /// How the daemon refuses what can't be done to a guest that runs.
    pub async fn refusals(&self, vm_id: &str) -> Vec<Status> {
        let vms = self.daemon.api().vms();
        let vm_id = vm_id.to_owned();
        let resume = ResumeVmRequest {
            vm_id: vm_id.clone(),
            expected_generation: Some(4711),
            ..Default::default()
        };
        let recover = RecoverVmRequest {
            vm_id,
            ..Default::default()
        };
        let resumed = vms.clone().resume_vm(resume).await.map(drop);
        let recovered = vms.clone().recover_vm(recover).await.map(drop);
        [resumed, recovered].map(Result::unwrap_err).into()
    }

    /// Imports an image by its name here into the cluster; one of its own for each
    /// test.
    pub async fn import(&self, name: &str) -> String {
        let api = self.daemon.api();
        let path = self.daemon.import_path(&format!("{name}-{}.qcow2", id()));
        fs::copy(self.images.path().join(format!("{name}.qcow2")), &path).unwrap();
        let request = ImportImageRequest {
            source: path.display().to_string(),
            format: ImageFormat::Qcow2 as i32,
            pool: "ceph".to_owned(),
            ..Default::default()
        };
        let answer = api.images().import_image(request).await;
        let image = ended(&api, answer).await.unwrap().image_id;
        fs::remove_file(path).unwrap();
        image
    }

    /// Makes a VM of 64 MiB in the cluster and starts it; no display, unless
    /// `change` gives it one.
    pub async fn guest(&self, image: &str, change: impl FnOnce(&mut CreateVmRequest)) -> Guest<'_> {
        let mut request = CreateVmRequest {
            vm_id: id(),
            name: "guest".to_owned(),
            hardware: Some(Hardware {
                vcpus: 1,
                memory_bytes: 128 << 20,
                ..Default::default()
            }),
            image_id: self.import(image).await,
            root_volume: Some(NewVolume {
                pool: "ceph".to_owned(),
                size_bytes: 64 << 20,
                ..Default::default()
            }),
            vnc: Some(NewVnc { enabled: false }),
            start: true,
            ..Default::default()
        };
        change(&mut request);
        let api = self.daemon.api();
        let answer = api.vms().create_vm(request).await;
        let id = ended(&api, answer).await.unwrap().vm_id;
        Guest {
            console: self.daemon.home().join(format!("console/{id}.log")),
            bench: self,
            api,
            id,
        }
    }
}

/// Starts the build of a guest that marks its disk.
fn build(folder: &Path, version: &str) -> Child {
    #[allow(clippy::disallowed_methods)] // a test builds its own guests
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/build"))
        .args(["--kind", "marker", "--version", version, "--out"])
        .arg(folder.join(format!("marker-{version}.qcow2")))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// Shows the end of the daemon's log when a test fails.
struct TellOnPanic<'a>(&'a Bench);

impl Drop for TellOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.0.daemon.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- the daemon's log ---\n{}\n---", end.join("\n"));
        }
    }
}

/// What came of a mutation: its operation if it succeeded, else how it failed. One
/// that waits for a killed QEMU to be forgotten takes its time.
pub async fn ended(
    api: &Api,
    answer: Result<Response<Operation>, Status>,
) -> Result<Operation, Operation> {
    let operation_id = answer.expect("it is not refused").into_inner().id;
    let operation = until("the operation to end", 2 * PATIENCE, async || {
        let request = WaitOperationRequest {
            operation_id: operation_id.clone(),
            timeout: Some(prost_types::Duration {
                seconds: 30,
                nanos: 0,
            }),
        };
        let answer = api.operations().wait_operation(request).await;
        let operation = answer.unwrap().into_inner();
        (operation.state >= OperationState::Succeeded as i32).then_some(operation)
    })
    .await;
    if operation.state() == OperationState::Succeeded {
        Ok(operation)
    } else {
        Err(operation)
    }
}

/// Why an operation failed.
pub fn why(operation: &Operation) -> Refusal {
    Refusal::from(operation.error.as_ref().expect("it failed"))
}

/// The name of a volume in its Ceph pool.
pub fn image_of(volume_id: &str) -> String {
    format!("vol-{volume_id}")
}

impl Guest<'_> {
    pub async fn vm(&self) -> Vm {
        self.api.vm(&self.id).await.unwrap()
    }

    /// Its root volume.
    pub async fn root(&self) -> Volume {
        let vm = self.vm().await;
        let root = vm.volumes.into_iter().find(|v| v.id == vm.root_volume_id);
        root.expect("a root")
    }

    /// Waits until GetVm says this state, with this reason.
    pub async fn is(&self, state: VmState, reason: StateReason) {
        let what = format!("{state:?} by {reason:?}");
        until(&what, PATIENCE, async || {
            let vm = self.vm().await;
            (vm.state() == state && vm.state_reason() == reason).then_some(())
        })
        .await;
    }

    /// What it wrote on its serial port.
    pub fn console(&self) -> String {
        let log = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until it has written a text so many times.
    pub async fn has_said(&self, text: &str, times: usize) {
        let deadline = Instant::now() + BOOT;
        while self.console().matches(text).count() < times {
            assert!(
                Instant::now() < deadline,
                "the guest has not said {text:?} {times} times:\n{}",
                self.console()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The lines that it wrote after a word, such as what it `left` on its disk.
    pub fn told(&self, word: &str) -> Vec<String> {
        let begin = format!("kvmlet-guest: {word} ");
        let console = self.console();
        let lines = console.lines().filter_map(|line| line.strip_prefix(&begin));
        lines.map(|line| line.trim_end().to_owned()).collect()
    }

    /// The process that runs it.
    pub fn qemu(&self) -> Pid {
        Libvirtd::qemu(&self.id).expect("it has power")
    }

    /// Its domain as it will start next, without the record that it carries.
    pub fn definition(&self) -> String {
        let xml = self
            .bench
            .libvirtd
            .virsh(&["dumpxml", "--inactive", &self.id]);
        let (before, rest) = xml.split_once("<metadata>").unwrap();
        let (_, after) = rest.split_once("</metadata>").unwrap();
        format!("{before}{after}")
    }

    /// Starts it.
    pub async fn start(&self) {
        self.try_start().await.unwrap();
    }

    pub async fn try_start(&self) -> Result<Operation, Operation> {
        let request = StartVmRequest {
            vm_id: self.id.clone(),
            ..Default::default()
        };
        ended(&self.api, self.api.vms().start_vm(request).await).await
    }

    /// Makes it STOPPED.
    pub async fn stop(&self, policy: StopPolicy) -> Operation {
        let request = StopVmRequest {
            vm_id: self.id.clone(),
            stop_policy: Some(policy),
            ..Default::default()
        };
        let operation = ended(&self.api, self.api.vms().stop_vm(request).await).await;
        let operation = operation.unwrap();
        assert_eq!(self.vm().await.state(), VmState::Stopped);
        assert_eq!(Libvirtd::qemu(&self.id), None);
        operation
    }

    /// Removes it and all of it.
    pub async fn remove(&self) {
        let request = DeleteVmRequest {
            vm_id: self.id.clone(),
            stop_policy: Some(force()),
            retention: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let answer = self.api.vms().delete_vm(request).await;
        ended(&self.api, answer).await.unwrap();
    }
}
