//! Plans: what an operation does, as steps that measure and then act.
//!
//! ```text
//!   for each step:   is_done? ── yes ─▶ skipped
//!                       │ no
//!                      run ── fails ─▶ is_done after all? ── no ─▶ undo this
//!                       │                                          and those before
//!                     done
//! ```
//!
//! Invariant: every step can be run again from the start, because it looks
//! before it acts; so a plan that was cut off anywhere is simply run again. The
//! one kind that can't be repeated (pressing a reset button) says so and is
//! recorded before it acts.
//!
//! What a step made is not undone while a later one that could not be undone
//! still uses it: a disk is not removed under its domain.
//!
//! Once a step that is a point of no return begins, nothing is undone any more:
//! the plan goes forward, now or after the next start of the agent.

use super::core::Core;
use super::fault::chain;
use super::hypervisor::Link;
use super::operations::{LiveOperation, now};
use crate::faultpoint::{self, Injected};
use crate::model::fault::Fault;
use crate::model::operation::{OperationState, RollbackState, StepRecord, StepState};
use crate::model::reason::{Code, Reason};
use crate::spans;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tracing::{Instrument, Span};

/// How long a step waits for libvirt to come back before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a step whose outcome was not known is tried in all.
const TRIES: u32 = 3;

/// What a step works with.
pub struct Run {
    /// Everything else.
    pub core: Arc<Core>,
    /// The operation that it is a step of.
    pub operation: Arc<LiveOperation>,
}

/// What came of undoing a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// There was nothing to undo.
    Nothing,
    /// Something was undone.
    Something,
}

/// One step of a plan.
#[async_trait]
pub trait Step: Send + Sync {
    /// Its stable name, lower-case with hyphens.
    fn name(&self) -> &'static str;

    /// Measures whether what it does is done already.
    async fn is_done(&self, run: &Run) -> Result<bool, Fault>;

    /// Does it.
    async fn run(&self, run: &Run) -> Result<(), Fault>;

    /// Takes back what it did, wholly or half; measures first, like the rest.
    async fn undo(&self, run: &Run) -> Result<Undone, Fault>;

    /// Whether there is no way back once it begins.
    fn is_point_of_no_return(&self) -> bool {
        false
    }

    /// Whether what the steps before it made is in use as long as this one is not
    /// undone: then it is not taken away under it.
    fn holds_earlier(&self) -> bool {
        false
    }

    /// Whether it may be done twice.
    fn is_repeatable(&self) -> bool {
        true
    }
}

/// The steps of an operation, in order.
pub type Plan = Vec<Box<dyn Step>>;

/// How the run of a plan ended.
#[derive(Debug)]
pub enum Ended {
    /// All steps are done.
    Succeeded,
    /// A step failed.
    Failed(Fault),
    /// It was asked to end early, and did.
    Cancelled(Fault),
    /// The agent stops; the plan is run again after its next start.
    Halted,
}

/// Runs a plan, or goes on with one that was cut off.
pub async fn execute(run: &Run, plan: &Plan) -> Ended {
    let ended = go_through(run, plan).await;
    if let Ended::Failed(fault) | Ended::Cancelled(fault) = &ended {
        spans::failed(&Span::current(), fault.reason.as_str());
    }
    ended
}

async fn go_through(run: &Run, plan: &Plan) -> Ended {
    let operation = &run.operation;
    let was_undoing = operation.get().rollback == RollbackState::RollingBack;
    let interrupted: Vec<StepRecord> = operation.get().steps.clone();
    operation.change(|operation| {
        operation.state = OperationState::Running;
        operation.start_time.get_or_insert_with(now);
        operation.steps = plan
            .iter()
            .map(|step| StepRecord {
                name: step.name().to_owned(),
                state: StepState::Pending,
                start_time: None,
                end_time: None,
            })
            .collect();
    });
    if was_undoing {
        let fault = operation.get().error.clone().unwrap_or_else(|| {
            Fault::new(
                Reason::Internal,
                "the operation was being undone when the agent ended",
            )
        });
        return undo(run, plan, plan.len(), fault, true).await;
    }
    // How far a former run got is not known, so all of it is measured.
    let begun = |count| {
        if operation.is_resumed() {
            plan.len()
        } else {
            count
        }
    };
    for (index, step) in plan.iter().enumerate() {
        if run.core.stopping.is_cancelled() {
            return Ended::Halted;
        }
        // Passing the point of no return and being cancelled exclude each other.
        let early = if step.is_point_of_no_return() {
            operation.pass_point_of_no_return().err()
        } else {
            operation.cancelled()
        };
        if let Some(why) = early {
            return undo(run, plan, begun(index), why, false).await;
        }
        mark(run, index, StepState::Running);
        let cut_off = interrupted
            .get(index)
            .is_some_and(|step| step.state == StepState::Running);
        let span = spans::step(step.name());
        let attempted = attempt(run, step.as_ref(), cut_off);
        match in_span(span, attempted).await {
            Ok(state) => {
                mark(run, index, state);
                progress(run, index + 1, 0.0);
            }
            Err(_) if run.core.stopping.is_cancelled() && operation.cancelled().is_none() => {
                return Ended::Halted;
            }
            Err(fault) => {
                mark(run, index, StepState::Failed);
                if operation.is_past_return() {
                    return Ended::Failed(fault);
                }
                let why = operation.cancelled().unwrap_or(fault);
                return undo(run, plan, begun(index + 1), why, false).await;
            }
        }
    }
    // Whoever cancelled it until now was told that it would be undone.
    match operation.pass_point_of_no_return() {
        Ok(()) => Ended::Succeeded,
        Err(why) => undo(run, plan, plan.len(), why, false).await,
    }
}

/// Does a part of an operation in a span of its own.
async fn in_span<T>(span: Span, part: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let done = part.instrument(span.clone()).await;
    if let Err(fault) = &done {
        spans::failed(&span, fault.reason.as_str());
    }
    done
}

/// Measures, acts, and where the outcome is not known, measures again.
async fn attempt(run: &Run, step: &dyn Step, cut_off: bool) -> Result<StepState, Fault> {
    if cut_off && !step.is_repeatable() {
        return Err(Fault::new(
            Reason::OutcomeUnknown,
            "the agent ended while it was sent; whether it was done is not known",
        ));
    }
    for last in (0..TRIES).map(|attempt| attempt + 1 == TRIES) {
        match once(run, step).await {
            Ok(state) => return Ok(state),
            Err(fault) => {
                tracing::warn!(step = step.name(), error = chain(&fault), "step failed");
                let again = match fault.code() {
                    Code::Unknown => step.is_repeatable(),
                    Code::Unavailable => fault.reason == Reason::HypervisorAway,
                    _ => false,
                };
                // What was cut off by an end of the agent deserves more patience than a
                // request that was just made: a host's start is when a cluster is slow.
                let cluster = cluster_away(run, &fault).filter(|_| run.operation.is_resumed());
                let back = match cluster {
                    Some(pool) => !last && cluster_is_back(run, &pool).await,
                    None => !last && again && libvirt_is_back(run).await,
                };
                if !back {
                    return Err(fault);
                }
            }
        }
    }
    Err(Fault::new(
        Reason::OutcomeUnknown,
        "whether it was done is not known",
    ))
}

/// Measures, and acts if it is not done yet.
async fn once(run: &Run, step: &dyn Step) -> Result<StepState, Fault> {
    run.reach(&format!("{}.before", step.name())).await?;
    if step.is_done(run).await? {
        return Ok(StepState::Skipped);
    }
    if let Some(why) = run.operation.cancelled() {
        // While it was measured: nothing has been done yet.
        return Err(why);
    }
    if !step.is_repeatable() {
        record(run).await?;
        run.reach(&format!("{}.recorded", step.name())).await?;
    }
    step.run(run).await?;
    run.reach(&format!("{}.after", step.name())).await?;
    Ok(StepState::Done)
}

/// Waits for libvirt, for a while.
async fn libvirt_is_back(run: &Run) -> bool {
    let mut link = run.core.hypervisor.link();
    let up = link.wait_for(|link| *link == Link::Up);
    tokio::select! {
        up = tokio::time::timeout(PATIENCE, up) => matches!(up, Ok(Ok(_))),
        () = run.core.stopping.cancelled() => false,
        () = run.operation.cancellation() => false,
    }
}

/// Waits for a cluster, for a while.
async fn cluster_is_back(run: &Run, pool: &str) -> bool {
    tokio::select! {
        back = run.core.pools.until_back(pool, &run.core.stopping) => back,
        () = tokio::time::sleep(PATIENCE) => false,
        () = run.operation.cancellation() => false,
    }
}

/// Makes the operation's steps durable as they are now.
async fn record(run: &Run) -> Result<(), Fault> {
    run.core.operations.record(&run.operation).await
}

/// Undoes the first `count` steps, last first. `begun`: a former run of the agent
/// has begun to, so that finding nothing to undo does not mean that there was
/// nothing.
async fn undo(run: &Run, plan: &Plan, count: usize, why: Fault, begun: bool) -> Ended {
    let operation = &run.operation;
    operation.change(|operation| {
        operation.rollback = RollbackState::RollingBack;
        operation.error = Some(why.clone());
    });
    if let Err(fault) = record(run).await {
        // Undoing measures too: without the record, the next start undoes again.
        tracing::warn!(error = chain(&fault), "undoing without a record of it");
    }
    let mut undone = begun;
    let mut left = Vec::new();
    for (index, step) in plan.iter().enumerate().take(count).rev() {
        let before = run.operation.get().steps.get(index).cloned();
        mark(run, index, StepState::Undoing);
        match undo_step(run, step.as_ref()).await {
            Some(Ok(Undone::Something)) => {
                undone = true;
                mark(run, index, StepState::Undone);
            }
            // It is shown as it was: failed, or found to need nothing.
            Some(Ok(Undone::Nothing)) => restore(run, index, before),
            Some(Err(fault)) => {
                tracing::error!(
                    step = step.name(),
                    error = chain(&fault),
                    "step can't be undone"
                );
                mark(run, index, StepState::UndoFailed);
                left.push(step.name());
                if step.holds_earlier() {
                    left.extend(done_before(run, plan, index));
                    break;
                }
            }
            None => return Ended::Halted,
        }
    }
    let mut why = why;
    operation.change(|operation| {
        operation.rollback = if !left.is_empty() {
            RollbackState::Failed
        } else if undone {
            RollbackState::Done
        } else {
            RollbackState::None
        };
    });
    if !left.is_empty() {
        why = why.with("not_undone", left.join(","));
    }
    if why.code() == Code::Cancelled {
        Ended::Cancelled(why)
    } else {
        Ended::Failed(why)
    }
}

/// The steps before one that were done, last first.
fn done_before(run: &Run, plan: &Plan, index: usize) -> Vec<&'static str> {
    let steps = &run.operation.get().steps;
    plan.iter()
        .zip(steps)
        .take(index)
        .rev()
        .filter(|(_, record)| record.state == StepState::Done)
        .map(|(step, _)| step.name())
        .collect()
}

/// Undoes one step; waits for libvirt or a cluster as long as it is away, because
/// what is half done is better finished late than left. `None` if the agent stops.
async fn undo_step(run: &Run, step: &dyn Step) -> Option<Result<Undone, Fault>> {
    let mut tries = 0;
    loop {
        let undone = in_span(spans::undo(step.name()), undo_once(run, step)).await;
        let Err(fault) = &undone else {
            return Some(undone);
        };
        if let Some(pool) = cluster_away(run, fault) {
            tracing::warn!(step = step.name(), pool, "undoing waits for a pool");
            if !run.core.pools.until_back(&pool, &run.core.stopping).await {
                return None;
            }
            continue;
        }
        let again = matches!(fault.code(), Code::Unknown | Code::Unavailable);
        tries += 1;
        if !again || tries >= TRIES {
            return Some(undone);
        }
        tracing::warn!(
            step = step.name(),
            error = chain(fault),
            "undoing is tried again"
        );
        if !until_libvirt_is_there(run).await {
            return None;
        }
    }
}

/// The pool that a fault is about, if its cluster is away or shuts kvmlet out. A
/// folder that is away is no such: nobody knows whether its file system comes back.
fn cluster_away(run: &Run, fault: &Fault) -> Option<String> {
    if !matches!(fault.reason, Reason::PoolAway | Reason::PoolDenied) {
        return None;
    }
    let pool = fault.metadata.get("pool")?;
    let entry = run.core.pools.get(pool)?;
    entry.pool.is_shared().then(|| pool.clone())
}

/// Undoes one step.
async fn undo_once(run: &Run, step: &dyn Step) -> Result<Undone, Fault> {
    run.reach(&format!("{}.undo", step.name())).await?;
    let undone = step.undo(run).await?;
    run.reach(&format!("{}.undone", step.name())).await?;
    Ok(undone)
}

/// Waits for libvirt as long as it takes. False if the agent stops.
pub async fn until_libvirt_is_there(run: &Run) -> bool {
    let mut link = run.core.hypervisor.link();
    tokio::select! {
        up = link.wait_for(|link| *link == Link::Up) => up.is_ok(),
        () = run.core.stopping.cancelled() => false,
    }
}

/// Shows where a step stands.
fn mark(run: &Run, index: usize, state: StepState) {
    run.operation.change(|operation| {
        let Some(step) = operation.steps.get_mut(index) else {
            return;
        };
        step.state = state;
        match state {
            StepState::Running => step.start_time = Some(now()),
            StepState::Pending | StepState::Undoing => {}
            StepState::Done
            | StepState::Skipped
            | StepState::Failed
            | StepState::Undone
            | StepState::UndoFailed => step.end_time = Some(now()),
        }
    });
}

/// Shows a step as it was.
fn restore(run: &Run, index: usize, before: Option<StepRecord>) {
    run.operation.change(|operation| {
        if let (Some(step), Some(before)) = (operation.steps.get_mut(index), before) {
            *step = before;
        }
    });
}

/// Shows how far the plan has come: whole steps, and a part of the running one
/// (0 to 1). Never 100: that is for the end.
pub fn progress(run: &Run, whole: usize, part: f64) {
    run.operation.change(|operation| {
        let steps = operation.steps.len().max(1);
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        // a handful of steps, and clamped to 0..=99
        let percent =
            ((whole as f64 + part.clamp(0.0, 1.0)) / steps as f64 * 100.0).clamp(0.0, 99.0) as u8;
        operation.progress_percent = operation.progress_percent.max(percent);
    });
}

impl Run {
    /// Reaches a fault point of this operation, such as `switch-root.defined`.
    ///
    /// # Errors
    /// What a test has armed the point with.
    pub async fn reach(&self, point: &str) -> Result<(), Fault> {
        let kind = self.operation.get().intent.kind().as_str();
        injected(faultpoint::reach(&format!("{kind}.{point}")).await)
    }
}

/// The fault that a test has armed a point with.
///
/// # Errors
/// That fault.
pub fn injected(injected: Option<Injected>) -> Result<(), Fault> {
    let (reason, words) = match injected {
        None => return Ok(()),
        Some(Injected::Fail) => (Reason::Internal, "a fault point"),
        Some(Injected::Unknown) => (Reason::OutcomeUnknown, "a fault point"),
        Some(Injected::Away) => (Reason::HypervisorAway, "a fault point"),
    };
    Err(Fault::new(reason, words))
}
