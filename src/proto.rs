//! The wire types and service stubs that `build.rs` makes from `proto/`.
//!
//! Only `grpc`, `report` and `cli` speak them. The comments live in the protos.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

pub mod json;

/// `kvmlet.v1`.
pub mod v1 {
    tonic::include_proto!("kvmlet.v1");

    /// All files of the API with their imports, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kvmlet.descriptors"));
}

/// `kvmlet.report.v1`: what a control plane implements, and the agent calls.
pub mod report {
    /// `kvmlet.report.v1`.
    pub mod v1 {
        tonic::include_proto!("kvmlet.report.v1");
    }
}
