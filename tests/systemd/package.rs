//! The packages under test: of the program that is built, and of one of a later version.

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
    /// Makes both, once for all tests.
    pub fn build() -> Self {
        static BUILT: OnceLock<Packages> = OnceLock::new();
        BUILT
            .get_or_init(|| Packages {
                now: package(env!("CARGO_BIN_EXE_kvmlet")),
                next: package(&next_program()),
            })
            .clone()
    }
}

/// The program of the next version: what `KVMLET_NEXT_PROGRAM` names, so that whoever
/// runs the tests can build it before; else it is made now, which waits while cargo
/// builds something else.
fn next_program() -> String {
    std::env::var("KVMLET_NEXT_PROGRAM").unwrap_or_else(|_| script("next-program", &[NEXT]))
}

fn package(program: &str) -> PathBuf {
    let out = project().join("target/package/tests");
    let out = out.to_str().unwrap();
    let said = script("package", &["--deb", "--program", program, "--out", out]);
    PathBuf::from(said.lines().last().expect("it prints where it is"))
}

/// What a script of the project printed.
fn script(name: &str, arguments: &[&str]) -> String {
    outside(
        project().join("scripts").join(name).to_str().unwrap(),
        arguments,
    )
}
