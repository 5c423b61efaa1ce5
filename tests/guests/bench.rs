//! Daemons on real QEMU, images to boot, and guests to watch.

use super::libvirtd::Libvirtd;
use super::sector::BootSector;
use super::support::api::{Api, force, id};
use super::support::daemon::{Daemon, Setup};
use super::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Where libvirt keeps what it has learnt of QEMU, below its root.
const KNOWN: &str = "cache/qemu/capabilities";

/// The longest that a guest may take to boot, translated, beside others.
pub const BOOT: Duration = Duration::from_secs(300);

/// What all tests share.
pub struct Bench {
    runtime: Runtime,
    images: TempDir,
    /// The daemon that no test ends.
    pub host: Host,
}

/// A daemon with a libvirt driver of its own; its guests end with it.
pub struct Host {
    pub daemon: Daemon,
    root: TempDir,
}

/// One VM of a test.
pub struct Guest {
    pub id: String,
    api: Api,
    console: PathBuf,
    root: PathBuf,
}

impl Bench {
    /// Builds the images and starts the daemon.
    pub fn open() -> Self {
        let images = tempfile::tempdir().unwrap();
        let mut builds: Vec<Child> = [
            ("acpi", "1"),
            ("acpi", "2"),
            ("deaf", "1"),
            ("slow", "1"),
            ("agent", "1"),
            ("mute", "1"),
        ]
        .map(|(kind, version)| build(images.path(), kind, version))
        .into();
        for (name, sector) in [
            ("idle", BootSector::Idle),
            ("idle-too", BootSector::Idle),
            ("power-off", BootSector::PowerOff),
            ("power-off-later", BootSector::PowerOffLater),
            ("restart-later", BootSector::RestartLater),
            ("panic-later", BootSector::PanicLater),
            ("chatter", BootSector::Chatter),
        ] {
            sector.write_disk(&images.path().join(format!("{name}.qcow2")));
        }
        let runtime = Runtime::new().unwrap();
        let host = runtime.block_on(Host::start(None));
        for build in &mut builds {
            assert!(build.wait().unwrap().success(), "tests/guest/build failed");
        }
        Self {
            runtime,
            images,
            host,
        }
    }

    pub fn close(self) {
        let Self { runtime, host, .. } = self;
        // It talks to the daemon's connections while it goes.
        let _inside = runtime.enter();
        drop(host);
    }

    /// Runs one test.
    pub fn run(&self, test: impl Future<Output = ()>) {
        let _told = TellOnPanic(self);
        self.runtime.block_on(test);
    }

    /// Another daemon, for a test that ends it.
    pub async fn another(&self) -> Host {
        Host::start(Some(&self.host)).await
    }

    /// Makes and starts a VM without a display on the shared daemon.
    pub async fn guest(&self, image: &str) -> Guest {
        self.guest_with(image, |_| {}).await
    }

    pub async fn guest_with(
        &self,
        image: &str,
        change: impl FnOnce(&mut CreateVmRequest),
    ) -> Guest {
        let image = self.import(&self.host, image).await;
        let mut request = request(&image);
        change(&mut request);
        self.host.create(request).await
    }

    /// Imports an image by its name here; a copy of its own for each test.
    pub async fn import(&self, host: &Host, name: &str) -> String {
        let file = format!("{name}.qcow2");
        let path = host.daemon.import_path(&format!("{}-{file}", id()));
        fs::copy(self.images.path().join(file), &path).unwrap();
        let image = host.daemon.api().import(&path).await;
        fs::remove_file(path).unwrap();
        image
    }
}

/// Starts the build of an image.
pub fn build(folder: &Path, kind: &str, version: &str) -> Child {
    #[allow(clippy::disallowed_methods)] // a test builds its own guests
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/build"))
        .args(["--kind", kind, "--version", version, "--out"])
        .arg(folder.join(format!("{kind}-{version}.qcow2")))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// Shows the end of the shared daemon's log when a test fails.
struct TellOnPanic<'a>(&'a Bench);

impl Drop for TellOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.0.host.daemon.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- the shared daemon's log ---\n{}\n---", end.join("\n"));
        }
    }
}

/// A request for a small VM that is started, without a display: two daemons
/// that look for a free port at the same moment find the same one.
pub fn request(image_id: &str) -> CreateVmRequest {
    CreateVmRequest {
        vm_id: id(),
        name: "guest".to_owned(),
        hardware: Some(Hardware {
            vcpus: 1,
            memory_bytes: 128 << 20,
            ..Default::default()
        }),
        image_id: image_id.to_owned(),
        vnc: Some(NewVnc { enabled: false }),
        start: true,
        ..Default::default()
    }
}

impl Host {
    /// Starts one; the second one needn't look at QEMU, if it knows a first.
    async fn start(first: Option<&Self>) -> Self {
        // Short: the paths of sockets below it end at 107 bytes.
        let root = tempfile::Builder::new()
            .prefix("kvmlet-q")
            .tempdir_in("/tmp")
            .unwrap();
        pass_through(root.path());
        if let Some(first) = first {
            copy_known(&first.known(), &root.path().join(KNOWN));
        }
        let uri = format!("qemu:///embed?root={}", root.path().display());
        let setup = Setup::on(uri)
            .with("vnc", "password_ttl = \"6s\"")
            .with("vms", "console_max = \"64 KiB\"");
        let daemon = Daemon::start(setup).await;
        pass_through(daemon.home());
        Self { daemon, root }
    }

    /// Starts one on a libvirt daemon.
    pub async fn on(libvirtd: &Libvirtd) -> Self {
        Self::with(Setup::on(libvirtd.uri())).await
    }

    /// Starts one on a libvirt daemon that the set-up names.
    pub async fn with(setup: Setup) -> Self {
        let daemon = Daemon::start(setup).await;
        pass_through(daemon.home());
        let root = tempfile::tempdir().unwrap();
        Self { daemon, root }
    }

    /// What libvirt has learnt of QEMU.
    pub fn known(&self) -> PathBuf {
        self.root.path().join(KNOWN)
    }

    /// Makes a VM.
    pub async fn create(&self, request: CreateVmRequest) -> Guest {
        let api = self.daemon.api();
        let answer = api.vms().create_vm(request).await;
        let id = api.done(answer).await.vm_id;
        self.guest(id)
    }

    /// A VM that is there already, seen through the daemon as it is now.
    pub fn guest(&self, id: String) -> Guest {
        Guest {
            api: self.daemon.api(),
            console: self.daemon.home().join(format!("console/{id}.log")),
            root: self.root.path().to_owned(),
            id,
        }
    }

    /// How many files of UEFI variables there are.
    pub fn nvram_files(&self) -> usize {
        fs::read_dir(self.root.path().join("lib/qemu/nvram")).map_or(0, Iterator::count)
    }

    /// Every QEMU process of this daemon.
    pub fn qemus(&self) -> Vec<Pid> {
        // Its guests' disks are in a pool of its own daemon.
        let pool = format!("{}/", self.daemon.home().display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.starts_with("/usr/bin/qemu-system") && line.contains(&pool) {
                let name = entry.file_name();
                found.extend(name.to_string_lossy().parse().map(Pid::from_raw));
            }
        }
        found
    }

    /// Everything that VMs and images leave in the pools.
    pub fn files(&self) -> Vec<String> {
        let mut files = self.daemon.pool_files();
        files.retain(|file| !file.ends_with(".kvmlet.lock"));
        files
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its guests would outlive it, which is what it is made for.
        if !std::thread::panicking() {
            self.daemon.kill9();
        }
        for process in self.qemus() {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

/// Saves a driver the seconds that it takes to learn what QEMU can do.
pub fn copy_known(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// QEMU runs as a user of its own and must get through.
fn pass_through(folder: &Path) {
    fs::set_permissions(folder, PermissionsExt::from_mode(0o711)).unwrap();
}

impl Guest {
    pub async fn vm(&self) -> Vm {
        self.api.vm(&self.id).await.unwrap()
    }

    pub async fn state(&self) -> VmState {
        self.vm().await.state()
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

    /// Waits until GetVm says this state.
    pub async fn has_state(&self, state: VmState) {
        until(&format!("{state:?}"), PATIENCE, async || {
            (self.state().await == state).then_some(())
        })
        .await;
    }

    /// What it wrote on its serial port.
    pub fn console(&self) -> String {
        let log = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    pub fn console_bytes(&self) -> u64 {
        fs::metadata(&self.console).map_or(0, |file| file.len())
    }

    /// How often a text is in what it wrote.
    pub fn says(&self, text: &str) -> usize {
        self.console().matches(text).count()
    }

    /// Waits until it has written a text so many times.
    pub async fn has_said(&self, text: &str, times: usize) {
        let deadline = Instant::now() + BOOT;
        while self.says(text) < times {
            assert!(
                Instant::now() < deadline,
                "the guest has not said {text:?} {times} times:\n{}",
                self.console()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The process that runs it.
    pub fn qemu(&self) -> Pid {
        let file = self.root.join(format!("run/qemu/kvmlet-{}.pid", self.id));
        let text = fs::read_to_string(file).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }

    /// What that process was started with.
    pub fn command_line(&self) -> Vec<String> {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", self.qemu())).unwrap();
        line.split_terminator('\0').map(str::to_owned).collect()
    }

    /// Whether that process was given an option whose value starts so.
    pub fn has_option(&self, option: &str, value: &str) -> bool {
        let line = self.command_line();
        let mut pairs = line.windows(2);
        pairs.any(|pair| pair[0] == option && pair[1].starts_with(value))
    }

    fn definition_file(&self) -> PathBuf {
        let file = format!("etc/qemu/kvmlet-{}.xml", self.id);
        self.root.join(file)
    }

    /// Whether libvirt has a domain of it.
    pub fn is_defined(&self) -> bool {
        self.definition_file().exists()
    }

    /// Its domain as libvirt keeps it, with every choice of libvirt's, but without
    /// the record that it carries and the password of its locked display, which
    /// nobody is told and which is another each time.
    pub fn definition(&self) -> String {
        let xml = fs::read_to_string(self.definition_file()).unwrap();
        let (before, rest) = xml.split_once("<metadata>").unwrap();
        let (_, after) = rest.split_once("</metadata>").unwrap();
        let Some((middle, locked)) = after.split_once(" passwd='") else {
            return format!("{before}{after}");
        };
        let (_, after) = locked.split_once('\'').unwrap();
        assert!(after.starts_with(" passwdValidTo='1970-01-01T00:00:00'"));
        format!("{before}{middle}{after}")
    }

    /// Starts it.
    pub async fn start(&self) {
        let request = StartVmRequest {
            vm_id: self.id.clone(),
            ..Default::default()
        };
        self.api.done(self.api.vms().start_vm(request).await).await;
    }

    pub fn stop_request(&self, policy: Option<StopPolicy>) -> StopVmRequest {
        StopVmRequest {
            vm_id: self.id.clone(),
            stop_policy: policy,
            ..Default::default()
        }
    }

    /// Makes it STOPPED, whatever it does.
    pub async fn force_off(&self) {
        let request = self.stop_request(Some(force()));
        self.api.done(self.api.vms().stop_vm(request).await).await;
    }

    /// Removes it and all of it.
    pub async fn remove(&self) {
        let request = DeleteVmRequest {
            vm_id: self.id.clone(),
            stop_policy: Some(force()),
            retention: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        self.api.done(self.api.vms().delete_vm(request).await).await;
    }
}
