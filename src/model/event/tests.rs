//! Causes and filters.

use super::*;
use crate::model::lifecycle::Observed;

/// A VM's record, read from the JSON that the journal would have.
fn vm() -> crate::model::vm::Vm {
    crate::journal_sample::vm()
}
