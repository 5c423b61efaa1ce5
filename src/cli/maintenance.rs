//! `kvmlet node maintenance`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::parse::{self, wire_duration};
use crate::cli::vm_power::{Mode, OnTimeout};
use crate::cli::wait::{self, WaitArgs};
use crate::proto::v1::{SetMaintenanceRequest, StopPolicy};
use clap::{Args, Subcommand};
use std::time::Duration;

/// Commands on the host's maintenance.
#[derive(Debug, Subcommand)]
pub(crate) enum MaintenanceCommand {
    /// Take no new guests from now on
    #[command(after_help = "\
Examples:
  kvmlet node maintenance on --message 'new disks'
  kvmlet node maintenance on --stop-vms --timeout 5m --on-timeout force
  kvmlet node maintenance on --stop-vms force")]
    On(OnArgs),
    /// Take new guests again; none is started by that
    #[command(after_help = "Example:\n  kvmlet node maintenance off")]
    Off {
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// How to begin.
#[derive(Debug, Args)]
pub(crate) struct OnArgs {
    /// Why, for those who are refused
    #[arg(short, long, default_value_t, hide_default_value = true)]
    message: String,
    /// Stop every VM that has power: ask the guests, or cut their power
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        num_args = 0..=1,
        default_missing_value = "graceful"
    )]
    stop_vms: Option<Mode>,
    /// How long to wait for each guest [default: the configured time]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "stop_vms")]
    timeout: Option<Duration>,
    /// What to do with a guest that did not stop in time [default: fail]
    #[arg(long, value_enum, requires = "stop_vms")]
    on_timeout: Option<OnTimeout>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Carries out a command.
pub(crate) async fn run(session: &Session, command: MaintenanceCommand) -> Result<(), Fault> {
    let (request, wait) = match command {
        MaintenanceCommand::On(args) => {
            let stop_policy = args.stop_vms.map(|mode| StopPolicy {
                mode: mode.wire().into(),
                timeout: args.timeout.map(wire_duration),
                resend_interval: None,
                on_timeout: args.on_timeout.map_or(0, |what| what.wire().into()),
            });
            let request = SetMaintenanceRequest {
                request_id: String::new(),
                enabled: true,
                message: args.message,
                stop_policy,
            };
            (request, args.wait)
        }
        MaintenanceCommand::Off { wait } => (SetMaintenanceRequest::default(), wait),
    };
    wait::carry_out(session, &wait, |request_id| {
        let mut client = session.node();
        let request = SetMaintenanceRequest {
            request_id,
            ..request.clone()
        };
        async move { client.set_maintenance(request).await }
    })
    .await
}
