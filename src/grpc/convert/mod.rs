//! Between the wire and the model.
//!
//! Wire to model: the form of every field is checked here, once, and a field
//! that is wrong is named by its path. Whether a thing that a field names exists
//! is not asked here; that is the service's matter. Model to wire: total, a full
//! match wherever the model has a choice.

pub(super) mod create;
pub(crate) mod event;
pub(super) mod hardware;
pub(super) mod host;
pub(super) mod image;
pub(super) mod nic;
pub(crate) mod node;
pub(super) mod operation;
pub(super) mod orphan;
pub(super) mod page;
pub(super) mod power;
pub(super) mod root;
#[cfg(test)]
mod tests;
pub(super) mod text;
pub(super) mod time;
pub(super) mod update;
pub(super) mod vm;
pub(super) mod volume;

use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::reason::Reason;
use crate::model::request::{Caller, Envelope, VmRequest};

/// What is asked of a VM, by whom.
#[derive(Debug)]
pub(super) struct Asked {
    /// Which VM; `None` of CreateVm, whose request has it.
    pub(super) vm_id: Option<VmId>,
    /// Who asks.
    pub(super) envelope: Envelope,
    /// What.
    pub(super) request: VmRequest,
}

/// A field with a value that it can't have.
pub(super) fn invalid(field: &str, problem: impl Into<String>) -> Fault {
    Fault::field(Reason::FieldInvalid, field, problem)
}

/// A field that is needed and absent.
fn required(field: &str) -> Fault {
    Fault::field(Reason::FieldRequired, field, "is required")
}

/// A value of an enum that this version does not know.
fn unknown_value(field: &str, value: i32) -> Fault {
    invalid(field, format!("has no value {value}"))
}

/// The envelope of a mutation; `request_id` is absent when it is empty.
fn envelope(
    request_id: &str,
    expected_generation: Option<u64>,
    validate_only: bool,
    caller: Caller,
) -> Result<Envelope, Fault> {
    Ok(Envelope {
        request_id: text::id("request_id", request_id)?,
        expected_generation,
        caller,
        validate_only,
    })
}
