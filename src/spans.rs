//! Spans of calls, operations and steps, and whose trace they are in.
//!
//! A call is a child of its caller's span, if he sent one. So is its operation, and
//! not of the call, which ends before it: what goes on after a restart of the agent
//! is in the same trace, because the operation's record has the caller's span.
//! Steps are children of their operation's span.
//!
//! It does not know where spans go, or whether they go anywhere.

use crate::model::operation::Operation;
use crate::model::trace::TraceParent;
use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

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

/// Shows that what a span is of has failed, and for which reason.
pub fn failed(span: &Span, reason: &'static str) {
    span.set_status(Status::error(reason));
}

/// Makes a span that has not begun a child of the caller's.
fn join(span: &Span, parent: &TraceParent) {
    let flags = if parent.is_sampled() {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::default()
    };
    let context = SpanContext::new(
        TraceId::from(parent.trace_id()),
        SpanId::from(parent.span_id()),
        flags,
        true,
        parent.state().parse::<TraceState>().unwrap_or_default(),
    );
    // An error: spans are not exported, so there is nothing to be a child.
    drop(span.set_parent(Context::new().with_remote_span_context(context)));
}

/// A span, as its children name it; `None` if spans are not exported.
fn own(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    let span = context.span();
    let own = span.span_context();
    TraceParent::new(
        u128::from_be_bytes(own.trace_id().to_bytes()),
        u64::from_be_bytes(own.span_id().to_bytes()),
        own.is_sampled(),
    )
}
