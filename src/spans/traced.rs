//! What OpenTelemetry knows of a span: its place in a trace, and how it ended.

use crate::model::trace::TraceParent;
use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Shows that what a span is of has failed, and for which reason.
pub fn failed(span: &Span, reason: &'static str) {
    span.set_status(Status::error(reason));
}

/// Makes a span that has not begun a child of the caller's.
pub(super) fn join(span: &Span, parent: &TraceParent) {
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
pub(super) fn own(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    let span = context.span();
    let own = span.span_context();
    TraceParent::new(
        u128::from_be_bytes(own.trace_id().to_bytes()),
        u64::from_be_bytes(own.span_id().to_bytes()),
        own.is_sampled(),
    )
}
