//! PLACEHOLDER, to be replaced: runs the daemon.

use crate::cli::ServeArgs;
use std::process::ExitCode;

/// Says that the daemon isn't part of this build and fails.
pub fn serve(_args: ServeArgs) -> ExitCode {
    eprintln!("kvmlet serve: the daemon is not part of this build");
    ExitCode::from(70)
}
