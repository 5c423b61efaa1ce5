//! The embedded driver that all tests share, and the domains on it.

use super::guest::{BootSector, LINE, until};
use kvmlet::libvirt::{
    Callbacks, DiskCache, DiskSpec, DomainAccelerator, DomainChange, DomainEvent, DomainSpec,
    DomainState, Host, HypervisorUri, Metadata, Owner, PanicDevice, Power, VncSpec,
};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::hardware::{Cpu, Firmware};
use kvmlet::model::ids::{VmId, VolumeId};
use kvmlet::model::volume::{DiskSource, VolumeFormat, VolumeQos};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// What the tests' domains are marked with.
pub(crate) const OWNER: Owner = Owner {
    node: Uuid::from_u128(0x6e6f_6465),
    agent: Uuid::from_u128(0x0061_6765_6e74),
};

/// Every event so far, in order.
#[derive(Default)]
struct Log {
    events: Mutex<Vec<DomainEvent>>,
    grown: Condvar,
}

/// One embedded driver, in a directory of its own.
pub(crate) struct Bench {
    pub(crate) host: Host,
    root: PathBuf,
    log: Arc<Log>,
}

/// A domain of one test, removed when the test ends, however it ends.
pub(crate) struct Vm<'a> {
    pub(crate) id: VmId,
    pub(crate) spec: DomainSpec,
    pub(crate) console: PathBuf,
    bench: &'a Bench,
}

impl Bench {
    /// Opens the driver, with several connections to the same root.
    pub(crate) fn open() -> Self {
        let root = PathBuf::from(format!("/tmp/kvmlet-t{}", std::process::id()));
        std::fs::create_dir(&root).unwrap();
        // Started by root, libvirt gives QEMU a user of its own.
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        let uri: HypervisorUri = format!("qemu:///embed?root={}", root.display())
            .parse()
            .unwrap();
        let log = Arc::new(Log::default());
        let heard = Arc::clone(&log);
        let callbacks = Callbacks {
            on_event: Arc::new(move |event| {
                heard.events.lock().unwrap().push(event);
                heard.grown.notify_all();
            }),
            on_close: Arc::new(|reason| panic!("the embedded driver went away: {reason:?}")),
        };
        Self {
            host: Host::open(&uri, OWNER, 3, callbacks).unwrap(),
            root,
            log,
        }
    }

    /// Removes every domain, closes the driver, removes its directory.
    pub(crate) fn close(self) {
        for domain in self.host.list().unwrap() {
            self.host.destroy(domain.id).unwrap();
            self.host.undefine(domain.id).unwrap();
        }
        self.host.close();
        std::fs::remove_dir_all(self.root).unwrap();
    }

    pub(crate) fn define(&self, guest: BootSector) -> Vm<'_> {
        self.define_as(guest, |_| {})
    }

    pub(crate) fn define_as(
        &self,
        guest: BootSector,
        change: impl FnOnce(&mut DomainSpec),
    ) -> Vm<'_> {
        let id = VmId::random();
        let disk = self.root.join(format!("{id}.qcow2"));
        guest.write_disk(&disk);
        let mut spec = self.spec(id, &disk);
        change(&mut spec);
        self.host.define(&spec).unwrap();
        Vm {
            id,
            console: spec.console_log.clone(),
            spec,
            bench: self,
        }
    }

    fn spec(&self, id: VmId, disk: &Path) -> DomainSpec {
        DomainSpec {
            id,
            name: format!("kvmlet-{id}"),
            title: "a <VM> & its \"name\"".to_owned(),
            description: "two\nlines".to_owned(),
            metadata: Metadata {
                id,
                generation: 1,
                record: "{}".to_owned(),
            },
            accelerator: DomainAccelerator::Tcg,
            arch: "x86_64".to_owned(),
            emulator: None,
            machine: "q35".to_owned(),
            firmware: Firmware::Bios,
            vcpus: 1,
            memory: Bytes::mib(64),
            cpu: Cpu::Auto,
            disks: vec![DiskSpec {
                index: 0,
                source: DiskSource::File(disk.to_owned()),
                format: VolumeFormat::Qcow2,
                backing: None,
                serial: VolumeId::random().to_string(),
                cache: DiskCache::Writeback,
                shareable: false,
                read_only: false,
                qos: VolumeQos {
                    bytes_per_second: 100_000_000,
                    iops: 1000,
                    ..VolumeQos::default()
                },
            }],
            nics: Vec::new(),
            vnc: Some(VncSpec {
                listen: "127.0.0.1".parse().unwrap(),
            }),
            panic: Some(PanicDevice::Isa),
            console_log: self.root.join(format!("{id}.console")),
        }
    }

    fn name(id: VmId) -> String {
        format!("kvmlet-{id}")
    }

    /// The process that runs a domain.
    pub(crate) fn qemu(&self, id: VmId) -> Pid {
        let file = self.root.join(format!("run/qemu/{}.pid", Self::name(id)));
        let text = std::fs::read_to_string(file).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }

    /// The definition as libvirt keeps it on disk.
    pub(crate) fn definition(&self, id: VmId) -> String {
        let file = self.root.join(format!("etc/qemu/{}.xml", Self::name(id)));
        std::fs::read_to_string(file).unwrap()
    }

    /// How many files hold UEFI variables of a domain.
    pub(crate) fn nvram_files(&self, id: VmId) -> usize {
        std::fs::read_dir(self.root.join("lib/qemu/nvram"))
            .unwrap()
            .filter(|file| {
                let name = file.as_ref().unwrap().file_name();
                name.to_string_lossy().starts_with(&Self::name(id))
            })
            .count()
    }
}

impl Vm<'_> {
    pub(crate) fn state(&self) -> DomainState {
        self.bench.host.get(self.id).unwrap().unwrap()
    }

    pub(crate) fn power(&self) -> Power {
        self.bench.host.power(self.id).unwrap()
    }

    /// Waits until an event of this domain has been heard.
    pub(crate) fn expect(&self, what: &DomainChange) {
        let heard = |events: &mut Vec<DomainEvent>| {
            !events.iter().any(|e| e.id == self.id && e.what == *what)
        };
        let events = self.bench.log.events.lock().unwrap();
        let (events, waited) = self
            .bench
            .log
            .grown
            .wait_timeout_while(events, Duration::from_secs(60), heard)
            .unwrap_or_else(PoisonError::into_inner);
        let mine: Vec<_> = events.iter().filter(|e| e.id == self.id).cloned().collect();
        drop(events);
        assert!(!waited.timed_out(), "no event {what:?} among {mine:?}");
    }

    /// How often the guest has written its line.
    pub(crate) fn console_lines(&self) -> usize {
        let log = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&log).matches(LINE).count()
    }

    /// Waits until the guest has written its line `times` times.
    pub(crate) fn wait_for_console(&self, times: usize) {
        until("the guest's line on its console", || {
            self.console_lines() >= times
        });
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // Not unwrapped: the test that failed is the one to report.
        let _ = self.bench.host.destroy(self.id);
        let _ = self.bench.host.undefine(self.id);
    }
}
