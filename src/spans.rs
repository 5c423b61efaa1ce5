//! Spans of calls, operations and steps, and whose trace they are in.
//!
//! A call is a child of its caller's span, if he sent one. So is its operation, and
//! not of the call, which ends before it: what goes on after a restart of the agent
//! is in the same trace, because the operation's record has the caller's span.
//! Steps are children of their operation's span.
//!
//! It does not know where spans go, or whether they go anywhere. In a program that was
//! built without traces they are those of the log alone.

#[cfg(feature = "traces")]
mod traced;
#[cfg(not(feature = "traces"))]
#[path = "spans/untraced.rs"]
mod traced;

pub use traced::failed;

use crate::model::operation::Operation;
use crate::model::trace::TraceParent;
use traced::{join, own};
use tracing::{Span, field};

/// Opens the span of a call, and returns the span that its operation is a child of:
/// the caller's, else this one if it is exported.
pub fn call(rpc: &str, caller: &str, given: Option<TraceParent>) -> (Span, Option<TraceParent>) {
    let span = tracing::info_span!(
        parent: None,
        "call",
        rpc,
        vm_id = field::Empty,
        caller,
        trace_id = field::Empty
    );
    let parent = match given {
        Some(parent) => {
            join(&span, &parent);
            Some(parent)
        }
        None => own(&span),
    };
    if let Some(parent) = &parent {
        span.record("trace_id", parent.trace_id_text());
    }
    (span, parent)
}

/// Opens the span of an operation that begins, or goes on.
pub fn operation(of: &Operation) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "operation",
        vm_id = of.vm_id.map(field::display),
        image_id = of.image_id.map(field::display),
        orphan_id = field::Empty,
        operation_id = %of.id,
        kind = of.intent.kind().as_str(),
        trace_id = of.trace_id()
    );
    if let Some(parent) = &of.trace {
        join(&span, parent);
    }
    span
}

/// Opens the span of a step, in that of its operation.
pub fn step(name: &str) -> Span {
    tracing::debug_span!("step", step = name)
}

/// Opens the span of a step's undoing, in that of its operation.
pub fn undo(name: &str) -> Span {
    tracing::debug_span!("undo", step = name)
}
