//! The packages under test.

use crate::host::{outside, project};
use std::path::PathBuf;
use std::sync::OnceLock;

/// The version that an upgrade goes to.
pub const NEXT: &str = "99.1.0";

/// Two of them, of which one is newer.
#[derive(Debug, Clone)]
pub struct Packages {
    pub now: PathBuf,
    pub next: PathBuf,
}

impl Packages {
    /// Builds both, once for all tests.
    pub fn build() -> Self {
        static BUILT: OnceLock<Packages> = OnceLock::new();
        BUILT.get_or_init(build).clone()
    }
}

fn build() -> Packages {
    let script = project().join("scripts/package");
    let deb = |version: &[&str]| {
        let out = project().join("target/package/tests");
        let out = out.to_str().unwrap();
        let mut arguments = vec!["--deb", "--profile", "dev", "--out", out];
        arguments.extend(version);
        let said = outside(script.to_str().unwrap(), &arguments);
        let path = said.lines().last().expect("it prints where they are");
        PathBuf::from(path)
    };
    Packages {
        now: deb(&[]),
        next: deb(&["--version", NEXT]),
    }
}
