//! SetMaintenance: whether the host takes new guests. One operation of its own, on
//! one task, and one at a time.
//!
//! Invariant: from the end of the step `set-maintenance` on, no guest is admitted
//! that was not published before: so whoever then looks for guests finds all.

use super::admission::stop_policy;
use super::core::Core;
use super::ending;
use super::fault::internal;
use super::operations::{Claim, LiveOperation, new_operation};
use super::plan::{self, Run};
use super::plans;
use super::repeat::fingerprint;
use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::maintenance::Maintenance;
use crate::model::operation::{Intent, Operation};
use crate::model::request::{Envelope, SetMaintenance};
use crate::spans;
use serde_json::json;
use std::sync::Arc;
use tracing::Instrument;

/// Begins or ends maintenance of the host.
///
/// # Errors
/// See SetMaintenance in the API.
pub async fn set(
    core: &Arc<Core>,
    envelope: Envelope,
    wish: SetMaintenance,
) -> Result<Arc<Operation>, Fault> {
    core.check_takes_requests()?;
    let core = core.clone();
    let decided = tokio::spawn(async move { decide(&core, envelope, wish).await });
    decided
        .await
        .map_err(|_| internal("a request's task has ended"))?
}

async fn decide(
    core: &Arc<Core>,
    envelope: Envelope,
    wish: SetMaintenance,
) -> Result<Arc<Operation>, Fault> {
    let recorded = fingerprint(&json!({ "request": &wish }))?;
    let _guard = match core
        .operations
        .claim(envelope.request_id, &recorded)
        .await?
    {
        Claim::Repeat(known) => return Ok(known),
        Claim::Fresh(guard) => guard,
    };
    let stop = wish
        .stop_policy
        .map(|wish| stop_policy(Some(wish), &core.config.vms));
    let nothing = Intent::SetMaintenance {
        before: None,
        after: None,
        stop,
    };
    let mut operation = new_operation(nothing, recorded, envelope.request_id, envelope.caller);
    core.node.hold_maintenance(operation.id)?;
    // From here on no other changes it.
    let before = core.node.maintenance();
    let since = before
        .as_ref()
        .map_or(operation.create_time, |before| before.since);
    let after = wish.message.map(|message| Maintenance { message, since });
    operation.intent = Intent::SetMaintenance {
        before,
        after,
        stop,
    };
    match core.operations.begin(operation, Batch::new()).await {
        Ok(live) => {
            let answer = live.get();
            begin(core, live);
            Ok(answer)
        }
        Err(fault) => {
            core.node.release_maintenance();
            Err(fault)
        }
    }
}

/// Goes on with an operation that a former run of the agent began.
pub fn resume(core: &Arc<Core>, operation: Operation) {
    // A journal of this agent's has one at most.
    if let Err(busy) = core.node.hold_maintenance(operation.id) {
        tracing::error!(operation_id = %operation.id, why = busy.message, "two operations change the maintenance");
    }
    begin(core, core.operations.resume(operation));
}

fn begin(core: &Arc<Core>, live: Arc<LiveOperation>) {
    let span = spans::operation(&live.get());
    let task = core.clone();
    core.tasks
        .spawn(async move { work(&task, live).await }.instrument(span));
}

async fn work(core: &Arc<Core>, live: Arc<LiveOperation>) {
    let Intent::SetMaintenance {
        before,
        after,
        stop,
    } = live.get().intent.clone()
    else {
        return;
    };
    let run = Run {
        core: core.clone(),
        operation: live.clone(),
    };
    // What its VMs are is not known before.
    if live.is_resumed() && stop.is_some() && !plan::until_libvirt_is_there(&run).await {
        return;
    }
    let plan = plans::maintenance::set(before, after, stop);
    let ended = plan::execute(&run, &plan).await;
    let Some(operation) = ending::ended(&live, &ended) else {
        return;
    };
    let enabled = core.node.maintenance().is_some();
    match &operation.error {
        None => tracing::info!(operation_id = %operation.id, enabled, "maintenance was set"),
        Some(fault) => tracing::warn!(
            operation_id = %operation.id,
            enabled,
            reason = fault.reason.as_str(),
            "operation did not succeed"
        ),
    }
    let publish = || core.node.release_maintenance();
    ending::record(core, &live, &operation, Batch::new, publish).await;
}
