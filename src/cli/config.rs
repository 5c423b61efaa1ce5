//! `kvmlet config`: looks at a configuration file without starting anything.

use crate::cli::fault::Fault;
use crate::cli::output::Output;
use crate::config::{Config, ConfigFaults};
use clap::Subcommand;
use std::path::{Path, PathBuf};

/// Commands on the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Tell every fault of a configuration file
    #[command(after_help = "Example:\n  kvmlet config check --config /etc/kvmlet/kvmlet.toml")]
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/kvmlet/kvmlet.toml")]
        config: PathBuf,
    },
}

/// Carries out a command.
pub(crate) fn run(out: &Output, command: &ConfigCommand) -> Result<(), Fault> {
    match command {
        ConfigCommand::Check { config } => {
            Config::load(config).map_err(|faults| told(config, &faults))?;
            out.line(format_args!("{}: no faults", config.display()))
        }
    }
}

/// All faults of a file, one to a line.
fn told(file: &Path, faults: &ConfigFaults) -> Fault {
    let count = match faults.faults().len() {
        1 => "1 fault".to_owned(),
        count => format!("{count} faults"),
    };
    let fault = Fault::usage(format!("{}: {count}", file.display()));
    faults
        .faults()
        .iter()
        .fold(fault, |fault, one| fault.with(one.to_string()))
}
