//! Maintenance of the host: a time in which it takes no new guests.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A time in which the host takes no new guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// Why, in the words of who asked for it; may be empty.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}
