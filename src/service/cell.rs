//! One VM's record with what is seen of it, and the picture of both that readers
//! get.
//!
//! Invariant: only the VM's worker and the plan that it runs change a cell's
//! record; what is seen of the domain comes from the worker, and from the first
//! look over a new connection. Everyone may read the [`View`], which is always
//! whole.

use crate::libvirt::VncEndpoint;
use crate::model::fault::Fault;
use crate::model::ids::{OperationId, VmId, VolumeId};
use crate::model::lifecycle::{self, Observed, PauseCause, Resting, Seen, StateReason};
use crate::model::operation::OperationKind;
use crate::model::time::Timestamp;
use crate::model::vm::{Life, Vm};
use crate::service::fault::internal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// A VM as readers see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Its record; `None` before it is made and after it is expunged.
    pub vm: Option<Vm>,
    /// The operation that holds it, and what that does.
    pub current: Option<(OperationId, OperationKind)>,
    /// Where its display listens, while it has power.
    pub vnc: Option<VncEndpoint>,
    /// Whether libvirt is away.
    pub away: bool,
}

impl View {
    /// The state that the VM rests in, apart from what an operation does to it.
    pub fn resting(&self) -> Option<(Resting, StateReason)> {
        self.vm
            .as_ref()
            .map(|vm| lifecycle::resting(vm.life, vm.seen, self.away))
    }

    /// Whether the VM has power, or is about to get it.
    pub fn claims_host(&self) -> bool {
        let powered = self
            .vm
            .as_ref()
            .is_some_and(|vm| vm.seen.resting.has_power());
        let starting = matches!(
            self.current,
            Some((
                _,
                OperationKind::StartVm
                    | OperationKind::CreateVm
                    | OperationKind::ReplaceRootVolume
                    | OperationKind::RevertRootVolume
            ))
        );
        powered || starting
    }
}

/// One VM's record with what is seen of it.
#[derive(Debug)]
pub struct Cell {
    /// The VM.
    pub id: VmId,
    inner: Mutex<View>,
    view: watch::Sender<Arc<View>>,
    dirty: AtomicBool,
    bell: Notify,
    no_space: AtomicBool,
}

impl Cell {
    /// A cell with what is known at first.
    pub fn new(id: VmId, first: View) -> Self {
        Self {
            id,
            view: watch::Sender::new(Arc::new(first.clone())),
            inner: Mutex::new(first),
            dirty: AtomicBool::new(false),
            bell: Notify::new(),
            no_space: AtomicBool::new(false),
        }
    }

    /// The VM as it is now; costs a clone of an `Arc`.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The VM as it is now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// The record.
    ///
    /// # Errors
    /// `INTERNAL` if there is none; plans run only on VMs that have one.
    pub fn vm(&self) -> Result<Vm, Fault> {
        self.lock()
            .vm
            .clone()
            .ok_or_else(|| internal("a plan runs on a VM without a record"))
    }

    /// The root volume of the record.
    ///
    /// # Errors
    /// As [`Cell::vm`].
    pub fn root(&self) -> Result<Option<VolumeId>, Fault> {
        Ok(self.vm()?.root().map(|root| root.id))
    }

    /// Changes the cell and publishes it, if anything has changed.
    pub fn change(&self, change: impl FnOnce(&mut View)) {
        let mut inner = self.lock();
        let before = inner.clone();
        change(&mut inner);
        if *inner != before {
            self.view.send_replace(Arc::new(inner.clone()));
        }
    }

    /// Changes the record, if there is one, and publishes it.
    pub fn edit(&self, change: impl FnOnce(&mut Vm)) {
        self.change(|view| {
            if let Some(vm) = &mut view.vm {
                change(vm);
            }
        });
    }

    /// Takes in what is seen of the domain. Returns whether the VM's state or
    /// its reason has changed.
    pub fn observe(&self, observed: Observed, now: Timestamp) -> bool {
        let observed = self.refine(observed);
        let mut changed = false;
        self.change(|view| {
            view.away = false;
            if let Some(vm) = &mut view.vm {
                let seen = match (vm.life, observed) {
                    // It has no domain yet, or no longer: that is as it should be.
                    (Life::Making | Life::Failed | Life::Expunging, Observed::Absent) => {
                        Seen::NOTHING
                    }
                    _ => lifecycle::observe(vm.seen, observed),
                };
                if seen != vm.seen {
                    vm.seen = seen;
                    vm.update_time = now;
                    changed = true;
                }
            }
        });
        changed
    }

    /// Notes that a volume could not grow; libvirt's state only says that reading
    /// or writing failed.
    pub fn note_no_space(&self) {
        self.no_space.store(true, Ordering::Relaxed);
    }

    /// Says that the domain should be looked at. Many calls come to one look.
    pub fn touch(&self) {
        self.dirty.store(true, Ordering::Release);
        self.bell.notify_one();
    }

    /// Waits until the domain should be looked at.
    pub async fn touched(&self) {
        while !self.dirty.swap(false, Ordering::AcqRel) {
            self.bell.notified().await;
        }
    }

    /// Says that a look begins, which serves all that have asked for one.
    pub fn untouch(&self) {
        self.dirty.store(false, Ordering::Release);
    }

    /// Adds to what is seen what an event told before.
    fn refine(&self, observed: Observed) -> Observed {
        match observed {
            // Of a guest that is resumed and finds its disk full again at once,
            // libvirt does not know why it was paused: QEMU tells of errors once
            // in a second.
            Observed::Paused(PauseCause::IoError | PauseCause::Unknown)
                if self.no_space.load(Ordering::Relaxed) =>
            {
                Observed::Paused(PauseCause::NoSpace)
            }
            Observed::Paused(PauseCause::IoError) => observed,
            Observed::Absent
            | Observed::Off(_)
            | Observed::Saved
            | Observed::Running
            | Observed::Paused(
                PauseCause::Unknown
                | PauseCause::User
                | PauseCause::NoSpace
                | PauseCause::Busy
                | PauseCause::Starting
                | PauseCause::Crashed,
            ) => {
                self.no_space.store(false, Ordering::Relaxed);
                observed
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
