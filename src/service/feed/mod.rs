//! The feed: every change that readers can see, as an event with a durable
//! revision.
//!
//! ```text
//!   cell, image, operation ──tell──▶ journal: next revision, fsync
//!                                       │ announce, in order
//!                                       ▼
//!                 readers ◀── ring of the last events, head
//!                    └─ what is older: from the journal
//! ```
//!
//! Invariants: what is published to readers of state is published before its event
//! is queued, so whoever lists at a revision has at least all that it tells. No
//! event is told before it is durable. Revisions have no holes. An event whose
//! write failed is told later, as its thing then is; one that was lost because the
//! agent died is told at the next start, because the journal has a digest of what
//! was told last of each thing.

mod catch_up;
mod reader;

pub use catch_up::catch_up;
pub use reader::{Item, Reader, Start};

use super::fault::chain;
use super::figures::event_seconds;
use super::operations::now;
use crate::journal::{Batch, Journal, JournalError, Told};
use crate::model::event::{self, Cause, Change, Event, Labels, Position, What};
use crate::model::ids::{ImageId, OperationId, VmId};
use crate::model::image::Image;
use crate::model::operation::Operation;
use crate::model::view::View;
use prometheus::Histogram;
use serde::Serialize;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// Operations whose callers are remembered; more than are at work or end at once.
const LATEST: usize = 4096;
/// Events that are kept in memory for those who follow closely.
const RING: usize = 512;
/// Events that may wait for the journal at once, so that those of a whole host at
/// once leave room for requests; what comes on top is told a little later.
const WAITING: usize = 512;

/// A thing that events are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Thing {
    Vm(VmId),
    Operation(OperationId),
    Image(ImageId),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(id) => write!(f, "vm/{id}"),
            Self::Operation(id) => write!(f, "operation/{id}"),
            Self::Image(id) => write!(f, "image/{id}"),
        }
    }
}

impl FromStr for Thing {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, id) = text.split_once('/').ok_or(())?;
        match kind {
            "vm" => id.parse().map(Self::Vm).map_err(drop),
            "operation" => id.parse().map(Self::Operation).map_err(drop),
            "image" => id.parse().map(Self::Image).map_err(drop),
            _ => Err(()),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// What was told last of each thing, or is on its way.
    told: HashMap<Thing, u64>,
    /// The labels that each VM was told with last.
    labels: HashMap<VmId, Labels>,
    /// What could not be written; told as it then is.
    untold: HashSet<Thing>,
    /// Who asked for the latest operations.
    callers: HashMap<OperationId, Arc<str>>,
    /// Those operations, the oldest first.
    latest: VecDeque<OperationId>,
    /// Nothing is told of VMs and images before the host was looked at.
    held: bool,
}

impl State {
    fn note_caller(&mut self, id: OperationId, caller: Arc<str>) {
        if self.callers.insert(id, caller).is_some() {
            return;
        }
        self.latest.push_back(id);
        if self.latest.len() > LATEST
            && let Some(oldest) = self.latest.pop_front()
        {
            self.callers.remove(&oldest);
        }
    }
}

/// The feed; see the module's text.
pub struct Feed {
    epoch: Uuid,
    journal: Arc<Journal>,
    state: Arc<Mutex<State>>,
    ring: Arc<Mutex<VecDeque<Event>>>,
    head: watch::Sender<u64>,
    /// Whether the first look is over.
    open: watch::Sender<bool>,
    /// Rung when something could not be written.
    failed: Arc<Notify>,
    /// Events that wait for the journal.
    waiting: Arc<AtomicUsize>,
    /// Whether the last event was written that the journal was asked to.
    writable: Arc<AtomicBool>,
    /// From a change to its event being readable.
    lag: Histogram,
    readers: Arc<AtomicUsize>,
}

impl Feed {
    /// A feed that goes on where the journal ends, and is held until
    /// [`Feed::release`].
    pub fn new(
        journal: Arc<Journal>,
        epoch: Uuid,
        revision: u64,
        told: &HashMap<String, u64>,
    ) -> Self {
        let told = told
            .iter()
            .filter_map(|(thing, digest)| Some((thing.parse().ok()?, *digest)))
            .collect();
        Self {
            epoch,
            journal,
            state: Arc::new(Mutex::new(State {
                told,
                held: true,
                ..State::default()
            })),
            ring: Arc::default(),
            head: watch::Sender::new(revision),
            open: watch::Sender::new(false),
            failed: Arc::default(),
            waiting: Arc::default(),
            writable: Arc::new(AtomicBool::new(true)),
            lag: event_seconds(),
            readers: Arc::default(),
        }
    }

    /// Where the sequence ends now.
    pub fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            revision: *self.head.borrow(),
        }
    }

    /// Waits until what readers of state see is what events tell: the first look at
    /// the host is over, or was given up.
    pub async fn settled(&self) {
        let mut open = self.open.subscribe();
        // The sender is in `self`.
        drop(open.wait_for(|open| *open).await);
    }

    /// How long events took from the change to where they can be read.
    pub fn lag(&self) -> &Histogram {
        &self.lag
    }

    /// How many readers there are now.
    pub fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    /// Tells of a VM; `before` is what was shown of it. Called while the VM's cell
    /// is locked, so that its events come in the order of its changes.
    pub(super) fn tell_vm(&self, id: VmId, before: &View, after: &Arc<View>) {
        self.vm(id, after, event::cause(before, after));
    }

    /// Tells of a VM that something happened that its record does not show.
    pub(super) fn tell_happened(&self, id: VmId, view: &Arc<View>, cause: Cause) {
        let mut state = self.state();
        if !state.held {
            // Not told twice only because nothing differs.
            state.told.remove(&Thing::Vm(id));
        }
        drop(state);
        self.vm(id, view, cause);
    }

    /// Tells of a VM as it is, where what was told of it differs.
    pub(super) fn tell_again(&self, id: VmId, view: &Arc<View>) {
        self.vm(id, view, event::cause_of_state(view));
    }

    fn vm(&self, id: VmId, view: &Arc<View>, cause: Cause) {
        let Some(vm) = &view.vm else {
            return self.gone(Thing::Vm(id), What::VmExpunged(id), cause);
        };
        let digest = digest(&view.without_measures());
        let mut state = self.state();
        if state.held {
            return;
        }
        if state.told.get(&Thing::Vm(id)) == Some(&digest) {
            state
                .labels
                .entry(id)
                .or_insert_with(|| Arc::new(vm.labels.clone()));
            return;
        }
        let labels = match state.labels.get(&id) {
            Some(known) if **known == vm.labels => known.clone(),
            _ => Arc::new(vm.labels.clone()),
        };
        let former = state.labels.insert(id, labels.clone());
        let change = Change {
            time: now(),
            cause: Some(cause),
            caller: None,
            what: What::Vm(view.clone()),
            former_labels: former.filter(|former| **former != *labels),
            labels,
        };
        self.submit(&mut state, Thing::Vm(id), Some(digest), change);
    }

    /// Tells of an image as it is; `None`: it is gone.
    pub(super) fn tell_image(&self, id: ImageId, image: Option<&Image>, cause: Cause) {
        let Some(image) = image else {
            return self.gone(Thing::Image(id), What::ImageDeleted(id), cause);
        };
        // Measured, or only noted; see [`View::without_measures`].
        let digest = digest(&Image {
            last_use_time: None,
            actual_size: crate::model::bytes::Bytes::ZERO,
            ..image.clone()
        });
        let mut state = self.state();
        if state.held || state.told.get(&Thing::Image(id)) == Some(&digest) {
            return;
        }
        let change = plain(What::Image(Arc::new(image.clone())), cause);
        self.submit(&mut state, Thing::Image(id), Some(digest), change);
    }

    /// Notes on whose behalf an operation is: what it changes is told before the
    /// operation is.
    pub(super) fn note_caller(&self, operation: &Operation) {
        let caller = operation.caller.as_str().into();
        self.state().note_caller(operation.id, caller);
    }

    /// Tells of an operation as it is.
    pub(super) fn tell_operation(&self, operation: &Arc<Operation>) {
        let mut state = self.state();
        let thing = Thing::Operation(operation.id);
        let now = digest(&**operation);
        if state.told.get(&thing) == Some(&now) {
            return;
        }
        let change = self.change(&mut state, operation);
        let digest = (!operation.ended()).then_some(now);
        self.submit(&mut state, thing, digest, change);
    }

    /// Adds to the batch that records an operation the event that tells of it.
    pub(super) fn tell_with(&self, batch: Batch, operation: &Arc<Operation>) -> Batch {
        let mut state = self.state();
        let thing = Thing::Operation(operation.id);
        let change = self.change(&mut state, operation);
        let digest = (!operation.ended()).then(|| digest(&**operation));
        match digest {
            Some(digest) => drop(state.told.insert(thing, digest)),
            None => drop(state.told.remove(&thing)),
        }
        drop(state);
        self.put(batch, thing, digest, change)
    }

    /// Forgets what was said of an operation that never came to be.
    pub(super) fn untell(&self, id: OperationId) {
        self.state().told.remove(&Thing::Operation(id));
    }

    fn change(&self, state: &mut State, operation: &Arc<Operation>) -> Change {
        let caller: Arc<str> = operation.caller.as_str().into();
        state.note_caller(operation.id, caller.clone());
        let labels = operation
            .vm_id
            .and_then(|id| state.labels.get(&id).cloned());
        Change {
            caller: Some(caller),
            labels: labels.unwrap_or_default(),
            ..plain(
                What::Operation(operation.clone()),
                Cause::operation(operation.id),
            )
        }
    }

    fn gone(&self, thing: Thing, what: What, cause: Cause) {
        let mut state = self.state();
        // What was never told of need not be taken back.
        if state.held || !state.told.contains_key(&thing) {
            return;
        }
        let mut change = plain(what, cause);
        if let Thing::Vm(id) = thing
            && let Some(labels) = state.labels.remove(&id)
        {
            change.labels = labels;
        }
        self.submit(&mut state, thing, None, change);
    }

    fn submit(&self, state: &mut State, thing: Thing, digest: Option<u64>, mut change: Change) {
        if let Some(id) = change.cause.and_then(|cause| cause.operation) {
            change.caller = state.callers.get(&id).cloned();
        }
        match digest {
            Some(digest) => drop(state.told.insert(thing, digest)),
            None => drop(state.told.remove(&thing)),
        }
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= WAITING {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            note_failure(state, thing);
            return self.failed.notify_one();
        }
        let batch = self.put(Batch::new(), thing, digest, change);
        let (kept, failed) = (self.state.clone(), self.failed.clone());
        let (waiting, writable) = (self.waiting.clone(), self.writable.clone());
        // A refusal calls back at once, from here: the state is locked.
        let refused = Arc::new(Mutex::new(Some(false)));
        let told = refused.clone();
        self.journal.submit(
            batch,
            Box::new(move |written: Result<(), JournalError>| {
                waiting.fetch_sub(1, Ordering::AcqRel);
                writable.store(written.is_ok(), Ordering::Release);
                let Err(error) = written else { return };
                tracing::debug!(error = chain(&error), %thing, "an event is not written yet");
                let mut told = lock(&told);
                if let Some(failed) = told.as_mut() {
                    *failed = true;
                    return;
                }
                note_failure(&mut lock(&kept), thing);
                failed.notify_one();
            }),
        );
        if lock(&refused).take() == Some(true) {
            note_failure(state, thing);
            self.failed.notify_one();
        }
    }

    fn put(&self, batch: Batch, thing: Thing, digest: Option<u64>, change: Change) -> Batch {
        let change = Arc::new(change);
        let (ring, head, told) = (self.ring.clone(), self.head.clone(), change.clone());
        let (lag, since) = (self.lag.clone(), Instant::now());
        let announce = move |revision| {
            let mut ring = lock(&ring);
            if ring.len() == RING {
                ring.pop_front();
            }
            ring.push_back(Event {
                revision,
                change: told,
            });
            drop(ring);
            head.send_replace(revision);
            lag.observe(since.elapsed().as_secs_f64());
        };
        let told = Told {
            thing: thing.to_string(),
            digest,
        };
        batch.put_event(&change, told, Box::new(announce))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// What is written is not what was told: it is told again, as it then is.
fn note_failure(state: &mut State, thing: Thing) {
    // Whatever it is then, it differs from this.
    state.told.insert(thing, 0);
    state.untold.insert(thing);
}

fn plain(what: What, cause: Cause) -> Change {
    Change {
        time: now(),
        cause: Some(cause),
        caller: None,
        what,
        labels: Labels::default(),
        former_labels: None,
    }
}

/// The same for equal values, in this version of kvmlet; another one may tell
/// everything anew once.
fn digest(value: &impl Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    match serde_json::to_vec(value) {
        Ok(bytes) => hasher.write(&bytes),
        Err(error) => tracing::error!(%error, "a record can't be told apart from others"),
    }
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
