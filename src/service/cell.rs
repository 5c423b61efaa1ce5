//! One VM's record with what is seen of it, and the picture of both that readers
//! get.
//!
//! Invariant: only the VM's worker and the plan that it runs change a cell's
//! record; what is seen of the domain comes from the worker, and from the first
//! look over a new connection. Everyone may read the [`View`], which is always
//! whole.

use crate::model::fault::Fault;
use crate::model::host_run::HostEnd;
use crate::model::ids::{OperationId, VmId, VolumeId};
use crate::model::lifecycle::{self, Observed, PauseCause, Seen, StateReason};
use crate::model::operation::OperationKind;
use crate::model::time::Timestamp;
use crate::model::view::{Condition, View};
use crate::model::vm::{Life, Vm};
use crate::service::fault::internal;
use crate::service::feed::Feed;
use crate::service::operations::now;
use crate::service::restarts::Restarts;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};

/// One VM's record with what is seen of it.
pub struct Cell {
    /// The VM.
    pub id: VmId,
    feed: Arc<Feed>,
    /// The same that is published.
    inner: Mutex<Arc<View>>,
    view: watch::Sender<Arc<View>>,
    dirty: AtomicBool,
    /// Its definition should be looked at, too.
    examine: AtomicBool,
    bell: Notify,
    no_space: AtomicBool,
    panicked: AtomicBool,
    looked: AtomicBool,
    guest_asked: AtomicBool,
    restarts: Mutex<Restarts>,
}

impl Cell {
    /// A cell with what is known at first, and the feed that its changes go to.
    pub fn new(id: VmId, first: View, feed: Arc<Feed>) -> Self {
        let first = Arc::new(first);
        Self {
            id,
            feed,
            view: watch::Sender::new(first.clone()),
            inner: Mutex::new(first),
            dirty: AtomicBool::new(false),
            examine: AtomicBool::new(true),
            bell: Notify::new(),
            no_space: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            looked: AtomicBool::new(false),
            guest_asked: AtomicBool::new(false),
            restarts: Mutex::default(),
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

    /// The record, if there is one: a VM that is being decided on has none yet, and one
    /// that is expunged none any more.
    pub fn record(&self) -> Option<Vm> {
        self.lock().vm.clone()
    }

    /// The record.
    ///
    /// # Errors
    /// `INTERNAL` if there is none; plans run only on VMs that have one.
    pub fn vm(&self) -> Result<Vm, Fault> {
        self.record()
            .ok_or_else(|| internal("a plan runs on a VM without a record"))
    }

    /// The root volume of the record.
    ///
    /// # Errors
    /// As [`Cell::vm`].
    pub fn root(&self) -> Result<Option<VolumeId>, Fault> {
        Ok(self.vm()?.root().map(|root| root.id))
    }

    /// Changes the cell and publishes it, if anything has changed; then tells of it.
    pub fn change(&self, change: impl FnOnce(&mut View)) {
        let mut inner = self.lock();
        let before = inner.clone();
        let mut next = View::clone(&before);
        change(&mut next);
        let vm = next.vm.as_ref();
        if !vm.is_some_and(|vm| vm.seen.resting.has_power()) {
            next.addresses.clear();
        }
        if next != *before {
            let after = Arc::new(next);
            *inner = after.clone();
            if let Some((id, OperationKind::RebootVm | OperationKind::ResetVm)) = after.current
                && before.current != after.current
            {
                lock(&self.restarts).ask(id, Instant::now());
            }
            self.view.send_replace(after.clone());
            self.feed.tell_vm(self.id, &before, &after);
        }
    }

    /// Tells that the guest has restarted.
    pub fn tell_restart(&self) {
        let _order = self.lock();
        let cause = lock(&self.restarts).restarted(Instant::now());
        self.feed.tell_happened(self.id, &self.view(), cause);
    }

    /// Notes that an operation presses the power button to restart the guest.
    pub fn note_restart_press(&self, id: OperationId) {
        lock(&self.restarts).press(id);
    }

    /// Notes that the guest is asked to shut down, or is reset: libvirt restarts it no
    /// more once it has shut down.
    pub fn forget_restart_press(&self) {
        lock(&self.restarts).forget_press();
    }

    /// Notes that the guest was given power.
    pub fn note_start(&self) {
        self.forget_restart_press();
        self.panicked.store(false, Ordering::Release);
    }

    /// Tells of the VM as it is, if what was told differs.
    pub fn tell_again(&self) {
        let _order = self.lock();
        self.feed.tell_again(self.id, &self.view());
    }

    /// Notes that its domain and its display were looked at.
    pub fn note_look(&self) {
        self.looked.store(true, Ordering::Release);
    }

    /// Notes that its addresses were asked for.
    pub fn note_guest_asked(&self) {
        self.guest_asked.store(true, Ordering::Release);
    }

    /// Whether all that is to be seen of it was looked at once.
    pub fn was_looked_at(&self) -> bool {
        let powered = |vm: &Vm| vm.seen.resting.has_power();
        let asked = self.guest_asked.load(Ordering::Acquire)
            || !self.view().vm.as_ref().is_some_and(powered);
        asked && self.looked.load(Ordering::Acquire)
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
            view.drop_outlived();
            view.note_by_state(now);
        });
        changed
    }

    /// Takes in that the host has ended and come up again. Returns whether the guest had
    /// power until then.
    pub fn end_with_host(&self, end: HostEnd, now: Timestamp) -> bool {
        let mut changed = false;
        self.change(|view| {
            if let Some(vm) = &mut view.vm {
                let seen = lifecycle::end_with_host(vm.seen, end.reason);
                changed = seen != vm.seen;
                if changed {
                    vm.seen = seen;
                    vm.update_time = end.time.unwrap_or(now);
                }
            }
        });
        changed
    }

    /// Whether the guest is without power since its host ended.
    pub fn has_ended_with_host(&self) -> bool {
        self.view().vm.as_ref().is_some_and(|vm| {
            matches!(
                vm.seen.reason,
                StateReason::HostShutdown | StateReason::HostPowerLoss | StateReason::HostRestarted
            )
        })
    }

    /// Notes that a volume could not grow; libvirt's state only says that reading
    /// or writing failed.
    pub fn note_no_space(&self) {
        self.no_space.store(true, Ordering::Relaxed);
    }

    /// Notes that the guest's kernel has panicked; libvirt's state does not tell a panic
    /// from QEMU's death.
    pub fn note_panic(&self) {
        self.panicked.store(true, Ordering::Release);
    }

    /// Whether the guest's kernel has panicked since it was started last, as far as
    /// this run of the agent was told.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }

    /// Says that the domain should be looked at. Many calls come to one look.
    pub fn touch(&self) {
        self.dirty.store(true, Ordering::Release);
        self.bell.notify_one();
    }

    /// Says that the domain should be looked at with its definition.
    pub fn touch_definition(&self) {
        self.examine.store(true, Ordering::Release);
        self.touch();
    }

    /// Whether its definition should be looked at; from here on no longer.
    pub fn is_to_be_examined(&self) -> bool {
        self.examine.swap(false, Ordering::AcqRel)
    }

    /// Notes whether a condition holds: with these details, or not.
    pub fn note(&self, condition: Condition, details: Vec<String>) {
        self.change(|view| view.note(condition, details, now()));
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

    fn lock(&self) -> MutexGuard<'_, Arc<View>> {
        lock(&self.inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
