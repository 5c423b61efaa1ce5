//! The wire types and service stubs that `build.rs` makes from `proto/`.
//!
//! Only `grpc`, `report` and `cli` speak them. The comments live in the protos.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

pub mod json;

use std::fmt;

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

/// All but the password.
impl fmt::Debug for v1::VncConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VncConsole")
            .field("enabled", &self.enabled)
            .field("address", &self.address)
            .field("port", &self.port)
            .field("password", &"…")
            .field("password_expire_time", &self.password_expire_time)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::v1::VncConsole;

    #[test]
    fn a_console_does_not_show_its_password() {
        let console = VncConsole {
            enabled: true,
            address: "127.0.0.1".to_owned(),
            port: 5901,
            password: "abcd2345".to_owned(),
            password_expire_time: None,
        };
        let shown = format!("{console:?}");
        assert!(
            shown.contains("127.0.0.1") && shown.contains("5901"),
            "{shown}"
        );
        assert!(!shown.contains("abcd2345"), "{shown}");
    }
}
