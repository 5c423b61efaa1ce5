//! What is counted while it happens: how operations end, and how long the journal
//! takes.
//!
//! All that can be read from the state of things is not counted here.

use crate::model::operation::{Operation, OperationKind, OperationState};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, exponential_buckets,
};
use std::time::Duration;

/// Seconds: from a request that only changes a record to an import of an hour.
const OPERATION_SECONDS: (f64, f64, usize) = (0.01, 3.0, 13);
/// Seconds: from a fast disk to one that is about to fail.
const COMMIT_SECONDS: (f64, f64, usize) = (0.0005, 2.0, 14);

/// How operations have ended since the start.
#[derive(Debug, Clone)]
pub struct OperationFigures {
    /// How many, by type and result.
    pub ended: IntCounterVec,
    /// How long they were at work, by type.
    pub seconds: HistogramVec,
}

impl Default for OperationFigures {
    fn default() -> Self {
        let ended = IntCounterVec::new(
            Opts::new(
                "kvmlet_operations_total",
                "Operations that have ended since the start, by how; already: there was nothing to do.",
            ),
            &["type", "result"],
        )
        .expect("the name and the labels are valid");
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "kvmlet_operation_duration_seconds",
                "How long operations were at work, from their record to their end.",
            )
            .buckets(buckets(OPERATION_SECONDS)),
            &["type"],
        )
        .expect("the name and the labels are valid");
        // From zero on: the first failure of a kind must be seen as a change.
        for kind in OperationKind::ALL {
            for result in ["succeeded", "failed", "cancelled", "already"] {
                ended.with_label_values(&[kind.as_str(), result]);
            }
        }
        Self { ended, seconds }
    }
}

impl OperationFigures {
    /// Notes an end.
    pub(super) fn note(&self, operation: &Operation, took: Duration) {
        let result = match operation.state {
            OperationState::Succeeded => "succeeded",
            OperationState::Failed => "failed",
            OperationState::Cancelled => "cancelled",
            OperationState::Pending | OperationState::Running => return,
        };
        let kind = operation.intent.kind().as_str();
        self.ended.with_label_values(&[kind, result]).inc();
        self.seconds
            .with_label_values(&[kind])
            .observe(took.as_secs_f64());
    }

    /// Notes a request for what was there already.
    pub(super) fn note_already(&self, operation: &Operation) {
        let kind = operation.intent.kind().as_str();
        self.ended.with_label_values(&[kind, "already"]).inc();
    }
}

/// How long the journal's commits take.
pub(super) fn commit_seconds() -> Histogram {
    let options = HistogramOpts::new(
        "kvmlet_journal_commit_duration_seconds",
        "How long commits of the journal took, each with its fsync.",
    );
    Histogram::with_opts(options.buckets(buckets(COMMIT_SECONDS)))
        .expect("the name and the buckets are valid")
}

/// How long events take from the change to where they can be read.
pub(super) fn event_seconds() -> Histogram {
    let options = HistogramOpts::new(
        "kvmlet_event_lag_seconds",
        "From a change to its event being durable and readable.",
    );
    Histogram::with_opts(options.buckets(buckets(COMMIT_SECONDS)))
        .expect("the name and the buckets are valid")
}

fn buckets((first, factor, count): (f64, f64, usize)) -> Vec<f64> {
    exponential_buckets(first, factor, count).expect("the first and the factor grow")
}
