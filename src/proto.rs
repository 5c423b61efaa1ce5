//! The wire types and service stubs that `build.rs` makes from `proto/`.
//!
//! Only `grpc` and `cli` speak them. The comments live in the protos.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

/// `kvmlet.v1`.
pub mod v1 {
    tonic::include_proto!("kvmlet.v1");

    /// All files of the API with their imports, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kvmlet.descriptors"));
}
