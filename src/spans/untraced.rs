//! Spans in a program that was built without traces: they have a place in the log, and
//! in no trace.

use crate::model::trace::TraceParent;
use tracing::Span;

/// Shows nobody that what a span is of has failed; the log has it.
pub fn failed(_: &Span, _: &'static str) {}

/// Leaves a span without a parent.
pub(super) fn join(_: &Span, _: &TraceParent) {}

/// No span has a name that others could know.
pub(super) fn own(_: &Span) -> Option<TraceParent> {
    None
}
