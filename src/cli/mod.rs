//! The administrator's client: turns arguments into calls of the API that
//! every control plane uses, and the answers into text or JSON.
//!
//! Invariant: it knows nothing that the API does not tell; it never looks at
//! the host or libvirt, and at the daemon's own files only where that is what is
//! asked for (`config`, `journal`), to read them. What `doctor` prints, another layer
//! has looked at ([`crate::doctor`]). It doesn't decide what may be done to a
//! VM: the daemon refuses, and this says so in words and with an exit code.

mod advice;
mod config;
mod connect;
mod console;
mod doctor;
mod events;
mod fault;
mod image;
mod journal;
mod json;
mod maintenance;
mod manual;
mod node;
mod operation;
mod orphan;
mod output;
mod parse;
mod plan;
mod resolve;
mod table;
mod vm;
mod vm_create;
mod vm_delete;
mod vm_power;
mod vm_root;
mod vm_show;
mod vm_update;
mod volume;
mod wait;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use connect::Server;
use fault::Fault;
use output::{Format, Output};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  kvmlet image import /var/lib/kvmlet/import/debian.qcow2 --name debian
  kvmlet vm create web1 --image debian --vcpus 2 --memory 2GiB --nic user --start
  kvmlet vm list
  kvmlet vm stop web1 --timeout 60s --on-timeout force
  kvmlet -o json vm show web1";

/// The node agent for KVM hosts, and the command to administer it
#[derive(Debug, Parser)]
#[command(
    name = "kvmlet",
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{}", fault::exit_codes()),
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: Command,
}

/// What all commands that ask the daemon have in common.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command that asks the daemon")]
struct ClientArgs {
    /// Where the daemon listens: unix:///path, https://host:port or http://host:port
    #[arg(
        long,
        global = true,
        env = "KVMLET_SERVER",
        value_name = "ADDRESS",
        default_value = connect::DEFAULT_SERVER,
        value_parser = Server::parse
    )]
    server: Server,
    #[command(flatten)]
    tls: connect::TlsArgs,
    /// How to print the answer
    #[arg(
        short = 'o',
        long = "output",
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t = Format::Table
    )]
    format: Format,
    /// Print ids only
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(ServeArgs),
    /// Virtual machines
    #[command(subcommand)]
    Vm(Box<vm::VmCommand>),
    /// Images that volumes are made from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Volumes of VMs
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Pools that hold volumes and images
    #[command(subcommand)]
    Pool(volume::PoolCommand),
    /// Operations: what was asked for, and how it goes
    #[command(subcommand)]
    Op(operation::OpCommand),
    /// Show this host: what it is and can do, its room, health and pools
    #[command(after_help = "Examples:\n  kvmlet node\n  kvmlet node maintenance on")]
    Node {
        #[command(subcommand)]
        command: Option<node::NodeCommand>,
    },
    /// Watch what happens on the host, with its causes
    #[command(after_help = "\
Examples:
  kvmlet events
  kvmlet events --vm web1 --kind vm
  kvmlet -o json events --snapshot --no-follow")]
    Events(events::EventsArgs),
    /// What is on the host and no VM or image accounts for
    #[command(subcommand)]
    Orphan(orphan::OrphanCommand),
    /// The daemon's configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// The daemon's journal, as the file that it is
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// Check this host and explain each finding; changes nothing
    Doctor(doctor::DoctorArgs),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  kvmlet completions bash > /etc/bash_completion.d/kvmlet")]
    Completions {
        /// The shell
        #[arg(value_parser = parse::shell)]
        shell: Shell,
    },
    /// Write the man pages into a folder
    // For whoever makes a package.
    #[command(hide = true, after_help = "Example:\n  kvmlet manual --to target/man")]
    Manual {
        /// The folder
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
}

/// How to run the daemon.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvmlet serve --config /etc/kvmlet/kvmlet.toml
  kvmlet serve --simulate")]
#[group(required = true, multiple = false)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run on libvirt's simulated host: nothing of this machine is touched
    #[arg(long)]
    pub simulate: bool,
}

/// Does what the arguments of this process say, as the program of this version. `serve`
/// runs the daemon and returns when it has ended; every other command is carried out
/// here.
pub fn run(version: &'static str, serve: impl FnOnce(ServeArgs) -> ExitCode) -> ExitCode {
    let mut command = command(version);
    match Cli::from_arg_matches(&command.get_matches_mut()) {
        Ok(cli) => cli.run(version, serve),
        Err(error) => error.format(&mut command).exit(),
    }
}

/// The arguments that the program of this version reads.
fn command(version: &'static str) -> clap::Command {
    Cli::command().version(version)
}

impl Cli {
    fn run(self, version: &'static str, serve: impl FnOnce(ServeArgs) -> ExitCode) -> ExitCode {
        let out = Output::new(self.client.format, self.client.quiet);
        let done = match self.command {
            Command::Serve(args) => return serve(args),
            Command::Config(command) => config::run(&out, &command),
            Command::Journal(command) => journal::run(&out, &command),
            Command::Doctor(args) => {
                let ClientArgs { server, tls, .. } = self.client;
                doctor::run(&out, server, &tls, &args, version)
            }
            Command::Completions { shell } => completions(&out, shell, version),
            Command::Manual { to } => manual::write(command(version), &to),
            command => ask(self.client, out, command, version),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                eprintln!("{fault}");
                fault.exit.into()
            }
        }
    }
}

/// Carries out a command that needs the daemon.
fn ask(
    client: ClientArgs,
    out: Output,
    command: Command,
    version: &'static str,
) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::internal(format!("can't start: {error}")))?;
    runtime.block_on(async {
        let session = connect::open(client.server, &client.tls, out, version).await?;
        match command {
            Command::Vm(command) => vm::run(&session, *command).await,
            Command::Image(command) => image::run(&session, command).await,
            Command::Volume(command) => volume::run(&session, command).await,
            Command::Pool(command) => volume::run_pool(&session, &command).await,
            Command::Op(command) => operation::run(&session, command).await,
            Command::Node { command } => node::run(&session, command).await,
            Command::Events(args) => events::watch(&session, args).await,
            Command::Orphan(command) => orphan::run(&session, command).await,
            Command::Serve(_)
            | Command::Config(_)
            | Command::Journal(_)
            | Command::Doctor(_)
            | Command::Completions { .. }
            | Command::Manual { .. } => {
                Err(Fault::internal("this command does not ask the daemon"))
            }
        }
    })
}

fn completions(out: &Output, shell: Shell, version: &'static str) -> Result<(), Fault> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(version), "kvmlet", &mut script);
    out.bytes(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_free_of_contradictions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                for child in command.get_subcommands() {
                    walk(child, &path);
                }
            } else {
                let help = command.get_after_help().map(ToString::to_string);
                assert!(
                    help.is_some_and(|text| text.contains(path.trim_start())),
                    "{path} has no example of itself"
                );
            }
        }
        walk(&Cli::command(), "");
    }
}
