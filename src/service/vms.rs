//! All VMs: who owns each, and the way in for requests and readers.

use super::cell::Cell;
use super::core::Core;
use super::operations::{Claim, LiveOperation};
use super::repeat::fingerprint;
use super::worker::{self, Asked, Incoming};
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, VmId};
use crate::model::operation::Operation;
use crate::model::reason::Reason;
use crate::model::request::{Envelope, VmRequest};
use crate::model::view::View;
use crate::service::fault::internal;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};

/// A VM and the way to its worker.
#[derive(Clone)]
struct Owned {
    cell: Arc<Cell>,
    queue: mpsc::Sender<Incoming>,
}

/// All VMs.
pub struct Vms {
    owned: RwLock<BTreeMap<VmId, Owned>>,
    /// Held while VMs are compared with one another and the outcome published.
    pub admission: Mutex<()>,
    waiting: Arc<Semaphore>,
    may_wait: usize,
}

impl Vms {
    /// No VMs yet; at most `queue` requests may wait in all.
    pub fn new(queue: usize) -> Self {
        Self {
            owned: RwLock::default(),
            admission: Mutex::default(),
            waiting: Arc::new(Semaphore::new(queue)),
            may_wait: queue,
        }
    }

    /// How many requests wait to be decided on, and how many may.
    pub fn waiting(&self) -> (usize, usize) {
        let free = self.waiting.available_permits();
        (self.may_wait.saturating_sub(free), self.may_wait)
    }

    /// Returns one VM as it is now.
    ///
    /// # Errors
    /// `VM_NOT_FOUND`.
    pub fn get(&self, id: VmId) -> Result<Arc<View>, Fault> {
        self.cell(id)
            .map(|cell| cell.view())
            .filter(|view| view.vm.is_some())
            .ok_or_else(|| not_found(id))
    }

    /// Lists all VMs as they are now, by id.
    pub fn list(&self) -> Vec<Arc<View>> {
        let owned = self.owned.read().unwrap_or_else(PoisonError::into_inner);
        owned
            .values()
            .map(|owned| owned.cell.view())
            .filter(|view| view.vm.is_some())
            .collect()
    }

    /// How many volumes are made from an image, kept roots included.
    pub fn volumes_of_image(&self, image: ImageId) -> usize {
        self.list()
            .iter()
            .filter_map(|view| view.vm.as_ref())
            .flat_map(|vm| &vm.volumes)
            .filter(|volume| volume.image_id == Some(image))
            .count()
    }

    /// The cell of a VM.
    pub fn cell(&self, id: VmId) -> Option<Arc<Cell>> {
        let owned = self.owned.read().unwrap_or_else(PoisonError::into_inner);
        owned.get(&id).map(|owned| owned.cell.clone())
    }

    /// All cells.
    pub fn cells(&self) -> Vec<Arc<Cell>> {
        let owned = self.owned.read().unwrap_or_else(PoisonError::into_inner);
        owned.values().map(|owned| owned.cell.clone()).collect()
    }

    /// Forgets a VM that is gone for good, or never came to be.
    pub fn forget(&self, id: VmId) {
        let mut owned = self.owned.write().unwrap_or_else(PoisonError::into_inner);
        owned.remove(&id);
    }

    /// Has a VM's worker look and remove what has had its time. A worker with a
    /// full queue is asked again at the next sweep.
    pub fn tidy(&self, id: VmId) {
        if let Some(owned) = self.owned(id) {
            drop(owned.queue.try_send(Incoming::Tidy));
        }
    }

    fn owned(&self, id: VmId) -> Option<Owned> {
        let owned = self.owned.read().unwrap_or_else(PoisonError::into_inner);
        owned.get(&id).cloned()
    }
}

/// Takes a VM in and starts its worker, which first goes on with `unfinished`.
pub fn adopt(core: &Arc<Core>, first: View, id: VmId, unfinished: Option<Arc<LiveOperation>>) {
    let mut owned = core
        .vms
        .owned
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    owned
        .entry(id)
        .or_insert_with(|| start(core, Cell::new(id, first, core.feed.clone()), unfinished));
}

fn start(core: &Arc<Core>, cell: Cell, unfinished: Option<Arc<LiveOperation>>) -> Owned {
    let cell = Arc::new(cell);
    let (queue, incoming) = mpsc::channel(core.config.operations.queue_per_vm);
    core.tasks.spawn(worker::run(
        core.clone(),
        cell.clone(),
        incoming,
        unfinished,
    ));
    Owned { cell, queue }
}

/// Asks something of a VM. `vm_id` is `None` only for CreateVm.
///
/// Goes on when the caller goes away: what is decided is then found by the
/// request id, or on the VM.
///
/// # Errors
/// See the API.
pub async fn request(
    core: &Arc<Core>,
    vm_id: Option<VmId>,
    envelope: Envelope,
    request: VmRequest,
) -> Result<Arc<Operation>, Fault> {
    core.check_takes_requests()?;
    let waiting = core
        .vms
        .waiting
        .clone()
        .try_acquire_owned()
        .map_err(|_| Fault::new(Reason::QueueFull, "too many requests wait already"))?;
    let core = core.clone();
    let decided = tokio::spawn(async move {
        let answer = decide(&core, vm_id, envelope, request).await;
        drop(waiting);
        answer
    });
    decided
        .await
        .map_err(|_| internal("a request's task has ended"))?
}

async fn decide(
    core: &Arc<Core>,
    vm_id: Option<VmId>,
    envelope: Envelope,
    request: VmRequest,
) -> Result<Arc<Operation>, Fault> {
    let recorded = fingerprint(&serde_json::json!({
        "vm_id": vm_id,
        "expected_generation": envelope.expected_generation,
        "request": &request,
    }))?;
    let request_id = if envelope.validate_only {
        None
    } else {
        envelope.request_id
    };
    let guard = match core.operations.claim(request_id, &recorded).await? {
        Claim::Repeat(known) => return Ok(known),
        Claim::Fresh(guard) => guard,
    };
    let id = match (&request, vm_id) {
        (VmRequest::CreateVm(create), _) => create.vm_id.unwrap_or_else(VmId::random),
        (_, Some(id)) => id,
        (_, None) => return Err(internal("a request names no VM")),
    };
    let creates = matches!(request, VmRequest::CreateVm(_));
    let answer = loop {
        let owned = match core.vms.owned(id) {
            Some(owned) => owned,
            None if creates => {
                adopt(
                    core,
                    View {
                        away: !core.hypervisor.is_up(),
                        ..View::default()
                    },
                    id,
                    None,
                );
                continue;
            }
            None => return Err(not_found(id)),
        };
        let (reply, answer) = oneshot::channel();
        let asked = Asked {
            envelope: envelope.clone(),
            recorded: recorded.clone(),
            request: request.clone(),
            reply,
        };
        match owned.queue.try_send(Incoming::Asked(Box::new(asked))) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(Fault::new(
                    Reason::QueueFull,
                    "too many requests wait for this VM",
                ));
            }
            // Workers end with the agent, and there will be no other.
            Err(mpsc::error::TrySendError::Closed(_)) if core.stopping.is_cancelled() => {
                return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
            }
            // Its worker has just ended: the VM is gone, or was never made.
            Err(mpsc::error::TrySendError::Closed(_)) => {
                tokio::task::yield_now().await;
                continue;
            }
        }
        match answer.await {
            Ok(answer) => break answer,
            // The worker ended with the request in its queue.
            Err(_) if core.stopping.is_cancelled() => {
                break Err(Fault::new(Reason::Stopping, "the agent is stopping"));
            }
            Err(_) => {}
        }
    };
    drop(guard);
    answer
}

/// No VM has this id.
pub fn not_found(id: VmId) -> Fault {
    Fault::new(Reason::VmNotFound, format!("no VM has the id {id}")).with("vm_id", id)
}
