//! What is counted at the door.

use crate::model::reason::Reason;
use prometheus::{IntCounterVec, Opts};

/// Why a connection is closed.
const CONNECTION_REASONS: [&str; 7] = [
    "limit",
    "caller_limit",
    "handshake",
    "unidentified",
    SILENT,
    UNREAD,
    FLOOD,
];
/// Nothing came any more.
pub(super) const SILENT: &str = "silent";
/// Answers were not read.
pub(super) const UNREAD: &str = "unread";
/// Calls were refused, and more came.
pub(super) const FLOOD: &str = "flood";
/// Why calls are refused at the door, for the most part.
const CALL_REASONS: [Reason; 3] = [
    Reason::NotAuthenticated,
    Reason::NotAllowed,
    Reason::TooManyCalls,
];

/// What is counted at the door.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Connections that were closed at the door, by why.
    pub connections_refused: IntCounterVec,
    /// Calls that were refused before a service was asked, by reason.
    pub calls_refused: IntCounterVec,
}

impl Default for Figures {
    fn default() -> Self {
        let counter = |name, help| {
            IntCounterVec::new(Opts::new(name, help), &["reason"])
                .expect("the name and the label are valid")
        };
        let figures = Self {
            connections_refused: counter(
                "kvmlet_connections_refused_total",
                "Connections that were closed at the door, by why.",
            ),
            calls_refused: counter(
                "kvmlet_calls_refused_total",
                "Calls that were refused before they were looked into, by reason.",
            ),
        };
        // From zero on: the first one must be seen as a change.
        for reason in CONNECTION_REASONS {
            figures.connections_refused.with_label_values(&[reason]);
        }
        for reason in CALL_REASONS {
            let figures = &figures.calls_refused;
            figures.with_label_values(&[reason.as_str()]);
        }
        figures
    }
}
