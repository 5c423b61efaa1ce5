//! What the agent tells others by itself.
//!
//! Deliberately not here: what there is to tell. That is [`crate::service`], and
//! how it looks on the wire is `grpc`'s.

pub mod metrics;
pub mod sinks;
