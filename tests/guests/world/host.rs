//! A libvirtd with real QEMU that may be killed at any call, the daemon on it,
//! and two guests that must not notice.

use super::wire::{Cut, Wire};
use crate::bench::{self, Guest};
use crate::libvirtd::Libvirtd;
use crate::sector::BootSector;
use crate::support::api::{Api, id};
use crate::support::daemon::Setup;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use virt::connect::Connect;

/// What every guest writes when it boots.
pub const LINE: &str = "kvmlet test guest";

/// Dropped in this order: the daemon must not see libvirt go.
pub struct World {
    pub host: bench::Host,
    pub wire: Wire,
    pub libvirtd: Libvirtd,
    /// Images of a guest that hears nothing, and of one that obeys its button.
    pub deaf: String,
    pub obedient: String,
}

impl World {
    /// Starts all of it.
    pub async fn start(known: Option<&Path>) -> Self {
        Self::start_with(known, |setup| setup).await
    }

    /// Starts all of it, with further lines of configuration.
    pub async fn start_with(known: Option<&Path>, change: impl FnOnce(Setup) -> Setup) -> Self {
        let libvirtd = Libvirtd::start_with(known);
        let wire = Wire::to(libvirtd.socket());
        let mut setup = Setup::on(wire.uri());
        let points = wire.folder().join("points");
        setup
            .environment
            .push(("FAILPOINTS_FILE".to_owned(), points.display().to_string()));
        let host = bench::Host::with(change(setup)).await;
        let deaf = image(&host, BootSector::Idle).await;
        let obedient = image(&host, BootSector::Button(1)).await;
        Self {
            host,
            wire,
            libvirtd,
            deaf,
            obedient,
        }
    }

    pub fn api(&self) -> Api {
        self.host.daemon.api()
    }

    /// The file that names the fault points that are armed.
    pub fn points(&self) -> PathBuf {
        self.wire.folder().join("points")
    }

    /// A guest that runs and has booted.
    pub async fn guest(&self, image: &str) -> Guest {
        let guest = self.host.create(bench::request(image)).await;
        guest.has_said(LINE, 1).await;
        guest
    }

    /// The process that runs a VM.
    pub fn qemu(&self, vm_id: &str) -> Option<Pid> {
        let name = format!("guest=kvmlet-{vm_id}");
        self.host.qemus().into_iter().find(|process| {
            let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&name)
        })
    }

    /// What libvirt itself says of a VM, in the words of the API; `None` if it
    /// has no domain.
    pub fn truth(&self, vm_id: &str) -> Option<VmState> {
        // Not over the wire.
        let connection = Connect::open(Some(&self.libvirtd.uri())).unwrap();
        virt::error::clear_error_callback();
        let domain = connection.lookup_domain_by_uuid_string(vm_id).ok()?;
        let (state, _) = domain.state().unwrap();
        let state = state.known().expect("a state that the bindings know");
        Some(match state {
            virt::domain::DomainState::Running
            | virt::domain::DomainState::Blocked
            // Its QEMU is still there.
            | virt::domain::DomainState::Shutdown => VmState::Running,
            virt::domain::DomainState::Paused => VmState::Paused,
            virt::domain::DomainState::Shutoff if domain.has_managed_save(0).unwrap() => {
                VmState::Saved
            }
            virt::domain::DomainState::Shutoff => VmState::Stopped,
            other => panic!("libvirt says {other:?}"),
        })
    }

    /// Waits until a trap has sprung.
    pub async fn sprung(&self, trap: &Receiver<()>) {
        until("the call to come by", PATIENCE, async || {
            match trap.try_recv() {
                Ok(()) => Some(()),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => panic!("another trap was set"),
            }
        })
        .await;
    }

    /// Kills libvirtd at the next of these calls.
    pub fn cut(&self, procedures: &'static [u32], cut: Cut) -> Receiver<()> {
        self.wire.cut(procedures, cut, self.libvirtd.pid())
    }

    /// Waits until kvmlet and libvirt say the same of a VM.
    pub async fn agrees(&self, vm_id: &str) -> VmState {
        until("agreement with libvirt", PATIENCE, async || {
            let told = self.api().state(vm_id).await;
            let truth = self.truth(vm_id)?;
            let same = match told {
                VmState::Crashed | VmState::Deleted => truth == VmState::Stopped,
                told => told == truth,
            };
            same.then_some(told)
        })
        .await
    }
}

/// Makes an image of a boot sector and imports it.
pub async fn image(host: &bench::Host, sector: BootSector) -> String {
    let path = host.daemon.import_path(&format!("{}.qcow2", id()));
    sector.write_disk(&path);
    host.daemon.api().import(&path).await
}

/// Builds an image of a Linux guest of this kind (tests/guest) and imports it.
pub async fn linux(host: &bench::Host, kind: &str) -> String {
    let path = host.daemon.import_path(&format!("{}.qcow2", id()));
    let folder = path.parent().unwrap();
    let built = bench::build(folder, kind, "1").wait().unwrap();
    assert!(built.success(), "tests/guest/build failed");
    std::fs::rename(folder.join(format!("{kind}-1.qcow2")), &path).unwrap();
    host.daemon.api().import(&path).await
}
