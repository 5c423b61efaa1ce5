//! Operations: those at work, in memory; those that ended, in the journal.
//!
//! Invariants: an operation is durable before anyone is told its id; its end is
//! durable before anyone is told of it. A request id belongs to one request for
//! as long as its operation is kept.

use super::feed::Feed;
use super::figures::OperationFigures;
use super::ledger::Ledger;
use super::plan::injected;
use super::repeat::repeat;
use crate::faultpoint;
use crate::journal::Batch;
pub use crate::journal::OperationQuery;
use crate::model::fault::Fault;
use crate::model::ids::{OperationId, RequestId};
use crate::model::operation::{Operation, OperationState, RollbackState};
use crate::model::reason::Reason;
use crate::model::request::Caller;
use crate::model::time::Timestamp;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The present, from the system's clock.
pub fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// An operation at work.
#[derive(Debug)]
pub struct LiveOperation {
    state: watch::Sender<Arc<Operation>>,
    phase: Mutex<Phase>,
    cancel: CancellationToken,
    /// The same as `cancel`, for blocking calls.
    cancelled: Arc<AtomicBool>,
    /// A former run of the agent began it, and may have got anywhere.
    resumed: bool,
    /// One write of it at a time, so that none brings back what a later one has
    /// changed; true once its end is durable.
    written: tokio::sync::Mutex<bool>,
    /// When this run of the agent took it in.
    begun: Instant,
}

#[derive(Debug, Clone)]
enum Phase {
    Open,
    Cancelled(Fault),
    PastReturn,
}

impl LiveOperation {
    fn new(operation: Operation, resumed: bool) -> Self {
        let cancel = CancellationToken::new();
        let phase = match &operation.cancelled {
            Some(why) => {
                cancel.cancel();
                Phase::Cancelled(why.clone())
            }
            None => Phase::Open,
        };
        Self {
            resumed,
            cancelled: Arc::new(AtomicBool::new(operation.cancelled.is_some())),
            state: watch::Sender::new(Arc::new(operation)),
            phase: Mutex::new(phase),
            cancel,
            written: tokio::sync::Mutex::default(),
            begun: Instant::now(),
        }
    }

    /// The operation as it is now.
    pub fn get(&self) -> Arc<Operation> {
        self.state.borrow().clone()
    }

    /// Its id.
    pub fn id(&self) -> OperationId {
        self.state.borrow().id
    }

    /// Changes the operation and tells those who wait.
    pub fn change(&self, change: impl FnOnce(&mut Operation)) {
        self.state
            .send_modify(|operation| change(Arc::make_mut(operation)));
    }

    /// Asks it to end early.
    ///
    /// # Errors
    /// `NOT_CANCELLABLE` past its point of no return.
    pub fn cancel(&self, why: Fault) -> Result<(), Fault> {
        let mut phase = lock(&self.phase);
        match &*phase {
            Phase::Open => {
                *phase = Phase::Cancelled(why);
                self.cancelled.store(true, Ordering::Relaxed);
                self.cancel.cancel();
                Ok(())
            }
            Phase::Cancelled(_) => Ok(()),
            Phase::PastReturn => Err(Fault::new(
                Reason::NotCancellable,
                "the operation is past its point of no return and goes on",
            )
            .with("operation_id", self.id())),
        }
    }

    /// Why it was asked to end early, if it was.
    pub fn cancelled(&self) -> Option<Fault> {
        match &*lock(&self.phase) {
            Phase::Cancelled(why) => Some(why.clone()),
            Phase::Open | Phase::PastReturn => None,
        }
    }

    /// Whether it can't be cancelled or undone any more.
    pub fn is_past_return(&self) -> bool {
        matches!(*lock(&self.phase), Phase::PastReturn)
    }

    /// Whether a former run of the agent began it.
    pub const fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Resolves when it is asked to end early.
    pub async fn cancellation(&self) {
        self.cancel.cancelled().await;
    }

    /// Set when it is asked to end early, for blocking calls.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// Says that it has come to its end although it was asked to end early: what
    /// it was for has happened, and can't be taken back.
    pub fn outrun_cancellation(&self) {
        *lock(&self.phase) = Phase::PastReturn;
    }

    /// Passes the point of no return.
    ///
    /// # Errors
    /// The cancellation, if that came first.
    pub fn pass_point_of_no_return(&self) -> Result<(), Fault> {
        let mut phase = lock(&self.phase);
        match &*phase {
            Phase::Cancelled(why) => Err(why.clone()),
            Phase::Open | Phase::PastReturn => {
                *phase = Phase::PastReturn;
                Ok(())
            }
        }
    }
}

#[derive(Debug, Default)]
struct Live {
    by_id: HashMap<OperationId, Arc<LiveOperation>>,
    by_request: HashMap<RequestId, OperationId>,
    /// Requests that are being decided on: no operation yet, maybe never one.
    claimed: HashMap<RequestId, (Value, watch::Receiver<()>)>,
}

/// All operations.
pub struct Operations {
    ledger: Arc<Ledger>,
    feed: Arc<Feed>,
    live: Mutex<Live>,
    /// How many are at work.
    count: watch::Sender<usize>,
    stopping: CancellationToken,
    /// How operations have ended since the start.
    pub figures: OperationFigures,
}

/// What a request id comes to.
pub enum Claim<'a> {
    /// It is new; the guard keeps others with the same id waiting.
    Fresh(Option<ClaimGuard<'a>>),
    /// It is a repeat of the request that this operation is for.
    Repeat(Arc<Operation>),
}

enum Tried<'a> {
    Live(Arc<Operation>),
    Wait(watch::Receiver<()>),
    Mine(ClaimGuard<'a>),
}

/// Keeps a request id for one request until its operation is there.
pub struct ClaimGuard<'a> {
    operations: &'a Operations,
    id: RequestId,
    _done: watch::Sender<()>,
}

impl Drop for ClaimGuard<'_> {
    fn drop(&mut self) {
        lock(&self.operations.live).claimed.remove(&self.id);
    }
}

impl Operations {
    /// No operations at work yet.
    pub fn new(ledger: Arc<Ledger>, feed: Arc<Feed>, stopping: CancellationToken) -> Self {
        Self {
            ledger,
            feed,
            count: watch::Sender::new(0),
            live: Mutex::default(),
            stopping,
            figures: OperationFigures::default(),
        }
    }

    /// Claims a request id for a request. Of callers that come at once with the
    /// same id, one goes on and the others wait for what comes of it.
    ///
    /// # Errors
    /// `REQUEST_ID_REUSED`, naming the first field that differs;
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn claim(&self, id: Option<RequestId>, request: &Value) -> Result<Claim<'_>, Fault> {
        let Some(id) = id else {
            return Ok(Claim::Fresh(None));
        };
        loop {
            match self.try_claim(id, request)? {
                Tried::Live(known) => return Ok(Claim::Repeat(known)),
                // Ends with an error when the other's guard is dropped.
                Tried::Wait(mut waiting) => while waiting.changed().await.is_ok() {},
                Tried::Mine(guard) => {
                    return match self.ledger.operation_by_request(id).await? {
                        Some(known) => repeat(id, &known.request, request)
                            .map(|()| Claim::Repeat(Arc::new(known))),
                        None => Ok(Claim::Fresh(Some(guard))),
                    };
                }
            }
        }
    }

    fn try_claim(&self, id: RequestId, request: &Value) -> Result<Tried<'_>, Fault> {
        let mut live = lock(&self.live);
        // First: the operation of a request that is still being decided on may
        // be here already, and not be durable yet.
        if let Some((claimed, waiting)) = live.claimed.get(&id) {
            return repeat(id, claimed, request).map(|()| Tried::Wait(waiting.clone()));
        }
        if let Some(known) = live.by_request.get(&id).and_then(|at| live.by_id.get(at)) {
            let known = known.get();
            return repeat(id, &known.request, request).map(|()| Tried::Live(known));
        }
        let (done, waiting) = watch::channel(());
        live.claimed.insert(id, (request.clone(), waiting));
        Ok(Tried::Mine(ClaimGuard {
            operations: self,
            id,
            _done: done,
        }))
    }

    /// Takes in an operation that is about to be made durable.
    fn open(&self, operation: Operation) -> Arc<LiveOperation> {
        self.take_in(operation, false)
    }

    /// Takes in an operation that a former run of the agent began.
    pub fn resume(&self, operation: Operation) -> Arc<LiveOperation> {
        self.feed.note_caller(&operation);
        self.take_in(operation, true)
    }

    fn take_in(&self, operation: Operation, resumed: bool) -> Arc<LiveOperation> {
        let mut live = lock(&self.live);
        let id = operation.id;
        if let Some(request) = operation.request_id {
            live.by_request.insert(request, id);
        }
        let opened = Arc::new(LiveOperation::new(operation, resumed));
        live.by_id.insert(id, opened.clone());
        self.count.send_replace(live.by_id.len());
        opened
    }

    /// Takes an operation out: it has ended durably, or was never durable.
    pub fn close(&self, id: OperationId) {
        let mut live = lock(&self.live);
        if let Some(closed) = live.by_id.remove(&id)
            && let Some(request) = closed.get().request_id
        {
            live.by_request.remove(&request);
        }
        self.count.send_replace(live.by_id.len());
    }

    /// Makes blocking calls of all operations return early, without cancelling
    /// the operations: the agent stops, and they go on after its next start.
    pub fn halt(&self) {
        for live in lock(&self.live).by_id.values() {
            live.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// How many are at work, now and later.
    pub fn begun(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Those that are at work, the oldest first.
    pub fn all_live(&self) -> Vec<Arc<LiveOperation>> {
        let mut all: Vec<_> = lock(&self.live).by_id.values().cloned().collect();
        all.sort_by_key(|live| live.id());
        all
    }

    /// How many are at work.
    pub fn live_count(&self) -> usize {
        lock(&self.live).by_id.len()
    }

    /// Makes an operation and records it, with other changes, as one.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`; then there is no such operation.
    pub async fn begin(
        &self,
        operation: Operation,
        batch: Batch,
    ) -> Result<Arc<LiveOperation>, Fault> {
        let kind = operation.intent.kind().as_str();
        let batch = batch.put_operation(&operation);
        injected(faultpoint::reach(&format!("{kind}.begin.before")).await)?;
        let opened = self.open(operation);
        // Both or none: an operation that began was told of.
        let batch = self.feed.tell_with(batch, &opened.get());
        match self.ledger.commit(batch).await {
            Ok(()) => {
                faultpoint::reach(&format!("{kind}.begin.after")).await;
                Ok(opened)
            }
            Err(fault) => {
                self.feed.untell(opened.id());
                self.close(opened.id());
                Err(fault)
            }
        }
    }

    /// Records an operation that was over when it began, and tells of it.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`; then there is no such operation.
    pub async fn record_ended(&self, operation: &Arc<Operation>) -> Result<(), Fault> {
        let batch = Batch::new().put_operation(operation);
        let batch = self.feed.tell_with(batch, operation);
        self.ledger.commit(batch).await
    }

    /// Records the end of an operation, with other changes, as one; then calls
    /// `publish`, and then tells those who wait, so that they find everything as
    /// the operation left it.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`; then nothing has changed, and the operation is
    /// shown at work, which is what it is until its end is recorded.
    pub async fn end(
        &self,
        live: &LiveOperation,
        ended: Operation,
        changes: Batch,
        publish: impl FnOnce(),
    ) -> Result<(), Fault> {
        let kind = ended.intent.kind().as_str();
        faultpoint::reach(&format!("{kind}.end.before")).await;
        let mut written = live.written.lock().await;
        self.ledger.commit(changes.put_operation(&ended)).await?;
        *written = true;
        self.figures.note(&ended, live.begun.elapsed());
        faultpoint::reach(&format!("{kind}.end.after")).await;
        publish();
        live.change(|operation| *operation = ended);
        self.feed.tell_operation(&live.get());
        self.close(live.id());
        Ok(())
    }

    /// Returns an operation.
    ///
    /// # Errors
    /// `OPERATION_NOT_FOUND`, `JOURNAL_UNAVAILABLE`.
    pub async fn get(&self, id: OperationId) -> Result<Arc<Operation>, Fault> {
        if let Some(live) = self.live(id) {
            return Ok(live.get());
        }
        self.ledger
            .operation(id)
            .await?
            .map(Arc::new)
            .ok_or_else(|| not_found(id))
    }

    /// Waits until an operation has ended, or `timeout` from now, or until the
    /// agent stops.
    ///
    /// # Errors
    /// `OPERATION_NOT_FOUND`, `JOURNAL_UNAVAILABLE`.
    pub async fn wait(&self, id: OperationId, timeout: Duration) -> Result<Arc<Operation>, Fault> {
        let Some(live) = self.live(id) else {
            return self.get(id).await;
        };
        let mut state = live.state.subscribe();
        // Past the timeout, or when the agent stops, it is returned as it is.
        tokio::select! {
            _ = state.wait_for(|operation| operation.ended()) => {}
            () = tokio::time::sleep(timeout) => {}
            () = self.stopping.cancelled() => {}
        }
        Ok(live.get())
    }

    /// Asks an operation to end early; one that has ended is returned as it is.
    ///
    /// # Errors
    /// `OPERATION_NOT_FOUND`, `NOT_CANCELLABLE`, `JOURNAL_UNAVAILABLE`.
    pub async fn cancel(&self, id: OperationId) -> Result<Arc<Operation>, Fault> {
        let Some(live) = self.live(id) else {
            return self.get(id).await;
        };
        let why = Fault::new(Reason::CancelledByCaller, "CancelOperation ended it");
        live.cancel(why)?;
        live.change(|operation| operation.cancelled = live.cancelled());
        // Whoever is told so finds it so after a restart, too.
        self.record(&live).await?;
        faultpoint::reach("cancel.recorded").await;
        Ok(live.get())
    }

    /// Makes an operation at work durable as it is now. Nothing, once it has ended.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn record(&self, live: &LiveOperation) -> Result<(), Fault> {
        let ended = live.written.lock().await;
        if *ended {
            return Ok(());
        }
        let batch = Batch::new().put_operation(&live.get());
        self.ledger.commit(batch).await
    }

    /// Lists operations, newest first, and says where the next page begins.
    /// What is at work is shown as it is now.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn list(&self, mut query: OperationQuery) -> Result<OperationPage, Fault> {
        let (states, limit) = (query.states.clone(), query.limit);
        // The journal has live operations as they began; in which state they are
        // now is only known here.
        if states.iter().any(|state| !state.ended()) {
            query.states = vec![OperationState::Pending, OperationState::Running];
            query
                .states
                .extend(states.iter().copied().filter(|state| state.ended()));
        }
        query.limit = limit.saturating_add(1);
        let mut listed = self.ledger.operations(query).await?;
        let more = listed.len() > limit;
        listed.truncate(limit);
        let next = listed
            .last()
            .filter(|_| more)
            .map(|last| (last.create_time, last.id));
        let operations = listed
            .into_iter()
            .map(|operation| match self.live(operation.id) {
                Some(live) => live.get(),
                None => Arc::new(operation),
            })
            .filter(|operation| states.is_empty() || states.contains(&operation.state))
            .collect();
        Ok(OperationPage { operations, next })
    }

    fn live(&self, id: OperationId) -> Option<Arc<LiveOperation>> {
        lock(&self.live).by_id.get(&id).cloned()
    }
}

/// A page of operations.
#[derive(Debug)]
pub struct OperationPage {
    /// Newest first.
    pub operations: Vec<Arc<Operation>>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<(Timestamp, OperationId)>,
}

/// A new operation that has not begun. Ids are time-ordered.
pub fn new_operation(
    intent: crate::model::operation::Intent,
    request: Value,
    request_id: Option<RequestId>,
    caller: Caller,
) -> Operation {
    Operation {
        id: OperationId(Uuid::now_v7()),
        vm_id: None,
        image_id: None,
        intent,
        state: OperationState::Pending,
        rollback: RollbackState::None,
        steps: Vec::new(),
        progress_percent: 0,
        request_id,
        request,
        caller: caller.name,
        create_time: now(),
        start_time: None,
        end_time: None,
        error: None,
        result: None,
        power_outcome: None,
        cancelled: None,
        trace: caller.trace,
    }
}

fn not_found(id: OperationId) -> Fault {
    Fault::new(
        Reason::OperationNotFound,
        format!("no operation has the id {id}"),
    )
    .with("operation_id", id)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
