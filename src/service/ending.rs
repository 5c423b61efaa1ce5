//! How an operation ends: what its record says then, and that it is written.

use super::core::Core;
use super::operations::{LiveOperation, now};
use super::plan::Ended;
use crate::journal::Batch;
use crate::model::operation::{Operation, OperationState};
use crate::model::stop::PowerOutcome;
use crate::pace;
use std::time::Duration;

/// How long to wait before an end that could not be written is written again; twice
/// as long each time, up to what is in `pace`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The operation as its plan ended it; `None` if it goes on after the next start.
pub(super) fn ended(live: &LiveOperation, ended: &Ended) -> Option<Operation> {
    let mut operation = Operation::clone(&live.get());
    operation.end_time = Some(now());
    (operation.state, operation.error) = match ended {
        Ended::Succeeded => (OperationState::Succeeded, None),
        Ended::Failed(fault) => (OperationState::Failed, Some(fault.clone())),
        Ended::Cancelled(fault) => (OperationState::Cancelled, Some(fault.clone())),
        Ended::Halted => return None,
    };
    if operation.state == OperationState::Succeeded {
        operation.progress_percent = 100;
        if live.is_resumed() && operation.intent.cuts_power() {
            // The agent's end has cut it off, maybe before it was told; the guest was
            // then found to be off.
            operation.power_outcome.get_or_insert(PowerOutcome::FORCED);
        }
    }
    Some(operation)
}

/// Records an end, and what changes with it, however long the journal can't be
/// written; the operation is shown at work until then. If the agent stops first, its
/// plan is run again at the next start, and finds all done.
pub(super) async fn record(
    core: &Core,
    live: &LiveOperation,
    ended: &Operation,
    changes: impl Fn() -> Batch,
    publish: impl Fn(),
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let told = core
            .operations
            .end(live, ended.clone(), changes(), &publish);
        if told.await.is_ok() {
            return;
        }
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(pace::unwritten_end());
    }
}
