//! Who may make which call, and how much at once: asked before a service is.
//!
//! Invariant: no call reaches a service without a rule in the [`table`], a caller
//! who is known, and a role that the rule takes. What the transport refuses by
//! itself (a message that can't be decoded or is too large, a call that does not
//! exist) gets its reason here like everything else.

mod body;
mod layer;
mod stream;
pub(in crate::grpc) mod table;

pub(super) use layer::Guard;

use super::audit::Entry;
use crate::door::Stranger;
use crate::model::access::Role;
use crate::model::fault::Fault;
use crate::model::operation::OperationKind;
use crate::model::reason::Reason;
use std::sync::Arc;

/// A caller who was let in, as the handlers find him with his request.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    /// His name.
    pub(super) name: Arc<str>,
    /// What he may do.
    pub(super) role: Role,
    /// What is recorded of the call, if something is.
    pub(super) entry: Option<Arc<Entry>>,
}

/// The name of the call that an operation began with.
fn rpc_of(kind: OperationKind) -> String {
    format!("{kind:?}")
}

/// Who may cancel an operation: who may begin one.
pub(super) fn needed_to_cancel(kind: OperationKind) -> Role {
    table::needs(&rpc_of(kind))
}

/// Whether a caller with this role may make a call.
///
/// # Errors
/// `NOT_ALLOWED`.
fn unless_allowed(rule: &table::Rule, role: Option<Role>) -> Result<Role, Fault> {
    match role {
        Some(role) if role >= rule.needs => Ok(role),
        has => Err(not_allowed(rule.rpc, rule.needs, has)),
    }
}

/// The refusal of a caller whom nobody knows.
fn stranger(why: Stranger) -> Fault {
    let words = match why {
        Stranger::Expired => "the caller's certificate has expired",
        Stranger::Distrusted => "the caller's certificate is trusted no more",
        Stranger::Nameless => "nobody knows who the caller is",
    };
    Fault::new(Reason::NotAuthenticated, words)
}

/// The refusal of a caller whose role does not do.
pub(super) fn not_allowed(rpc: &str, needs: Role, has: Option<Role>) -> Fault {
    let has = has.map_or("none", Role::as_str);
    Fault::new(
        Reason::NotAllowed,
        format!(
            "{rpc} needs the role {}; the caller's is {has}",
            needs.as_str()
        ),
    )
    .with("needs", needs.as_str())
    .with("role", has)
}
