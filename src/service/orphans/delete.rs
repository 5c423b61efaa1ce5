//! DeleteOrphan: one operation of its own, on one task.

use super::{list, prove};
use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::ids::OrphanId;
use crate::model::operation::{Intent, Operation};
use crate::model::orphan::Orphan;
use crate::model::reason::Reason;
use crate::model::request::Envelope;
use crate::service::core::Core;
use crate::service::ending;
use crate::service::fault::internal;
use crate::service::operations::{Claim, LiveOperation, new_operation};
use crate::service::plan::{self, Plan, Run};
use crate::service::plans;
use crate::service::repeat::fingerprint;
use crate::spans;
use serde_json::json;
use std::sync::Arc;
use tracing::{Instrument, field};

/// Deletes an orphan; `generation` is as it was listed.
///
/// # Errors
/// See DeleteOrphan in the API.
pub async fn delete(
    core: &Arc<Core>,
    envelope: Envelope,
    id: OrphanId,
    generation: u64,
) -> Result<Arc<Operation>, Fault> {
    core.check_takes_requests()?;
    let core = core.clone();
    let decided = tokio::spawn(async move { decide(&core, envelope, id, generation).await });
    decided
        .await
        .map_err(|_| internal("a request's task has ended"))?
}

async fn decide(
    core: &Arc<Core>,
    envelope: Envelope,
    id: OrphanId,
    generation: u64,
) -> Result<Arc<Operation>, Fault> {
    let request = json!({ "call": "delete_orphan", "orphan_id": id, "generation": generation });
    let recorded = fingerprint(&json!({ "request": request }))?;
    let _guard = match core
        .operations
        .claim(envelope.request_id, &recorded)
        .await?
    {
        Claim::Repeat(known) => return Ok(known),
        Claim::Fresh(guard) => guard,
    };
    busy(core, id)?;
    let found = list(core).await?.into_iter().find(|o| o.id == id);
    let orphan = found.ok_or_else(|| {
        Fault::new(Reason::OrphanNotFound, format!("no orphan has the id {id}"))
            .with("orphan_id", id)
    })?;
    if orphan.generation != generation {
        return Err(stale(&orphan));
    }
    prove(core, &orphan).await?;
    let intent = Intent::DeleteOrphan {
        orphan: Box::new(orphan.clone()),
    };
    let operation = new_operation(intent, recorded, envelope.request_id, envelope.caller);
    let live = core.operations.begin(operation, Batch::new()).await?;
    // Of two that were decided on at once, the second finds the first here, and
    // its step finds what the first has left.
    let answer = live.get();
    begin(core, &orphan, live);
    Ok(answer)
}

/// Runs the plan of an orphan's removal on a task of its own.
pub fn begin(core: &Arc<Core>, orphan: &Orphan, live: Arc<LiveOperation>) {
    core.orphans.live().insert(orphan.id, live.clone());
    let span = spans::operation(&live.get());
    span.record("orphan_id", field::display(orphan.id));
    let (task, orphan) = (core.clone(), orphan.clone());
    core.tasks
        .spawn(async move { work(&task, &orphan, live).await }.instrument(span));
}

async fn work(core: &Arc<Core>, orphan: &Orphan, live: Arc<LiveOperation>) {
    let run = Run {
        core: core.clone(),
        operation: live.clone(),
    };
    if !plan::until_libvirt_is_there(&run).await {
        return;
    }
    let plan: Plan = plans::orphans::delete(orphan);
    let ended = plan::execute(&run, &plan).await;
    let Some(operation) = ending::ended(&live, &ended) else {
        return;
    };
    let (kind, pool, name) = (orphan.kind.as_str(), &orphan.pool, &orphan.name);
    match &operation.error {
        None => tracing::info!(operation_id = %operation.id, kind, pool, name, "orphan removed"),
        Some(fault) => tracing::warn!(
            operation_id = %operation.id,
            kind,
            pool,
            name,
            reason = fault.reason.as_str(),
            "operation did not succeed"
        ),
    }
    let publish = || drop(core.orphans.live().remove(&orphan.id));
    ending::record(core, &live, &operation, Batch::new, publish).await;
}

fn busy(core: &Core, id: OrphanId) -> Result<(), Fault> {
    match core.orphans.live().get(&id) {
        Some(holder) => Err(
            Fault::new(Reason::OrphanBusy, "another operation removes the orphan")
                .with("operation_id", holder.id()),
        ),
        None => Ok(()),
    }
}

/// It is not what was listed.
pub(in super::super) fn stale(orphan: &Orphan) -> Fault {
    Fault::new(
        Reason::StaleGeneration,
        "the orphan is not as it was listed; it is left as it is",
    )
    .with("orphan_id", orphan.id)
    .with("generation", orphan.generation)
}
