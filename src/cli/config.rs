//! `kvmlet config`: looks at a configuration file without starting anything.

use crate::cli::fault::Fault;
use crate::cli::output::Output;
use crate::config::Config;
use crate::door::check_certificates;
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
        /// Also read the certificates that it names, as a reload does
        #[arg(long)]
        certificates: bool,
    },
}

/// Carries out a command.
pub(crate) fn run(out: &Output, command: &ConfigCommand) -> Result<(), Fault> {
    match command {
        ConfigCommand::Check {
            config,
            certificates,
        } => {
            let read = Config::load(config)
                .map_err(|faults| told(config, faults.faults().iter().map(ToString::to_string)))?;
            if let (true, Some(files)) = (*certificates, &read.api.tls) {
                check_certificates(files)
                    .map_err(|trouble| told(config, [format!("api.tls: {trouble}")].into_iter()))?;
            }
            out.line(format_args!("{}: no faults", config.display()))
        }
    }
}

/// All faults of a file, one to a line.
fn told(file: &Path, faults: impl ExactSizeIterator<Item = String>) -> Fault {
    let count = match faults.len() {
        1 => "1 fault".to_owned(),
        count => format!("{count} faults"),
    };
    let fault = Fault::usage(format!("{}: {count}", file.display()));
    faults.fold(fault, Fault::with)
}
