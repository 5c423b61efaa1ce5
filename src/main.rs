//! The `kvmlet` command: the daemon (`kvmlet serve`) and its administrator's
//! client in one binary.
//!
//! Only this file knows the program's version; the library is told. So a build of
//! another version compiles this file again, and not the library.

use std::process::ExitCode;

/// What the program says it is: the package's version, unless who builds it says
/// another (`scripts/package --version`).
const VERSION: &str = match option_env!("KVMLET_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

fn main() -> ExitCode {
    kvmlet::cli::run(VERSION, |args| kvmlet::run::serve(args, VERSION))
}
