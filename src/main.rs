//! The `kvmlet` command: the daemon (`kvmlet serve`) and its administrator's
//! client in one binary.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    kvmlet::cli::Cli::parse().run(kvmlet::run::serve)
}
