//! The gRPC edge: lets callers in, checks the form of what they ask, and answers
//! in the words of the contract.
//!
//! Invariant: a handler is convert, one call, convert; every answer that is no
//! success has one of the documented reasons ([`status`] is the only place that
//! builds one). Deliberately not here: what a request comes to (that is
//! [`crate::service`]), and any knowledge of libvirt, pools or the journal.

mod access;
mod audit;
mod call;
mod console;
mod convert;
mod edge;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod health;
mod image;
mod node;
mod operation;
mod server;
mod status;
mod trace;
mod vm;
mod volume;
mod watch;

/// The model as the wire shows it, for those who send it elsewhere.
pub(crate) mod wire {
    pub(crate) use super::convert::event::{resume_point, shown as event};
    pub(crate) use super::convert::node::shown as node;
}

pub use server::serve;
