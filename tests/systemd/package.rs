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
        // As from a shell: what cargo tells a test would make much be built again.
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        let home = format!("HOME={}", std::env::var("HOME").unwrap());
        let mut arguments = vec!["-i", &path, &home, script.to_str().unwrap()];
        arguments.extend(["--deb", "--profile", "dev", "--out", out]);
        arguments.extend(version);
        let said = outside("env", &arguments);
        let path = said.lines().last().expect("it prints where they are");
        PathBuf::from(path)
    };
    Packages {
        now: deb(&[]),
        next: deb(&["--version", NEXT]),
    }
}
