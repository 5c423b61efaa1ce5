//! `kvmlet vm start|stop|reboot|reset|pause|resume|save|power`, and how a guest
//! is stopped before something else is done to its VM.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::parse::{self, wire_duration};
use crate::cli::resolve::Gone;
use crate::cli::vm::{VmChange, change};
use crate::proto::v1::{
    self, PauseVmRequest, PowerState, RebootVmRequest, ResetVmRequest, ResumeVmRequest,
    SaveVmRequest, SetVmPowerStateRequest, StartVmRequest, StopMode, StopPolicy, StopVmRequest,
};
use clap::{Args, ValueEnum};
use std::time::Duration;

/// How to start.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    change: VmChange,
    /// If it is SAVED: give up the saved memory and start afresh
    #[arg(long)]
    discard_saved_memory: bool,
}

/// How to stop.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    change: VmChange,
    /// Cut the power: the guest is not asked
    #[arg(long, conflicts_with_all = ["timeout", "resend", "on_timeout"])]
    force: bool,
    /// How long to wait for the guest [default: the configured time]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<Duration>,
    /// Ask the guest again this often [default: the configured time]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    resend: Option<Duration>,
    /// What to do when the guest did not stop in time
    #[arg(long, value_enum, default_value_t = OnTimeout::Fail)]
    on_timeout: OnTimeout,
    /// If it is SAVED: give up the saved memory, so that it is STOPPED
    #[arg(long)]
    discard_saved_memory: bool,
}

/// How to stop a VM that has power, before something else is done to it.
#[derive(Debug, Args)]
#[command(next_help_heading = "If the VM has power")]
pub(crate) struct StopFirstArgs {
    /// Stop it: ask the guest, or cut its power
    #[arg(long, value_enum, value_name = "HOW")]
    stop: Option<Mode>,
    /// How long to wait for the guest [default: the configured time]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "stop")]
    stop_timeout: Option<Duration>,
    /// Ask the guest again this often [default: the configured time]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "stop")]
    stop_resend: Option<Duration>,
    /// What to do when the guest did not stop in time [default: fail]
    #[arg(long, value_enum, requires = "stop")]
    on_timeout: Option<OnTimeout>,
}

impl StopFirstArgs {
    /// The policy, if one was asked for.
    pub(crate) fn policy(&self) -> Option<StopPolicy> {
        Some(StopPolicy {
            mode: self.stop?.wire().into(),
            timeout: self.stop_timeout.map(wire_duration),
            resend_interval: self.stop_resend.map(wire_duration),
            on_timeout: self.on_timeout.map_or(0, |what| what.wire().into()),
        })
    }
}

/// How to stop a guest.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Mode {
    /// Ask the guest
    Graceful,
    /// Cut its power
    Force,
}

impl Mode {
    pub(crate) fn wire(self) -> StopMode {
        match self {
            Self::Graceful => StopMode::Graceful,
            Self::Force => StopMode::Force,
        }
    }
}

/// What to do when a guest did not stop in time.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnTimeout {
    /// Leave it running and fail
    Fail,
    /// Cut its power
    Force,
}

impl OnTimeout {
    pub(crate) fn wire(self) -> v1::OnTimeout {
        match self {
            Self::Fail => v1::OnTimeout::Fail,
            Self::Force => v1::OnTimeout::Force,
        }
    }
}

/// Which power state to bring a VM to.
#[derive(Debug, Args)]
pub(crate) struct PowerArgs {
    #[command(flatten)]
    change: VmChange,
    /// The wished state
    #[arg(value_enum)]
    state: Wish,
    /// With off: ask the guest instead of cutting its power
    #[arg(long)]
    graceful: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wish {
    /// Running: starts, resumes or restores
    On,
    /// Without power
    Off,
    /// Standing still
    Paused,
}

/// StartVm.
pub(crate) async fn start(session: &Session, args: &StartArgs) -> Result<(), Fault> {
    change!(
        session,
        &args.change,
        Gone::Yields,
        start_vm(StartVmRequest {
            discard_saved_memory: args.discard_saved_memory,
        })
    )
}

/// StopVm.
pub(crate) async fn stop(session: &Session, args: &StopArgs) -> Result<(), Fault> {
    let policy = if args.force {
        StopPolicy {
            mode: StopMode::Force.into(),
            ..StopPolicy::default()
        }
    } else {
        StopPolicy {
            mode: StopMode::Graceful.into(),
            timeout: args.timeout.map(wire_duration),
            resend_interval: args.resend.map(wire_duration),
            on_timeout: args.on_timeout.wire().into(),
        }
    };
    change!(
        session,
        &args.change,
        Gone::Yields,
        stop_vm(StopVmRequest {
            stop_policy: Some(policy),
            discard_saved_memory: args.discard_saved_memory,
        })
    )
}

/// RebootVm.
pub(crate) async fn reboot(session: &Session, args: &VmChange) -> Result<(), Fault> {
    change!(session, args, Gone::Yields, reboot_vm(RebootVmRequest {}))
}

/// ResetVm.
pub(crate) async fn reset(session: &Session, args: &VmChange) -> Result<(), Fault> {
    change!(session, args, Gone::Yields, reset_vm(ResetVmRequest {}))
}

/// PauseVm.
pub(crate) async fn pause(session: &Session, args: &VmChange) -> Result<(), Fault> {
    change!(session, args, Gone::Yields, pause_vm(PauseVmRequest {}))
}

/// ResumeVm.
pub(crate) async fn resume(session: &Session, args: &VmChange) -> Result<(), Fault> {
    change!(session, args, Gone::Yields, resume_vm(ResumeVmRequest {}))
}

/// SaveVm.
pub(crate) async fn save(session: &Session, args: &VmChange) -> Result<(), Fault> {
    change!(session, args, Gone::Yields, save_vm(SaveVmRequest {}))
}

/// SetVmPowerState.
pub(crate) async fn set(session: &Session, args: &PowerArgs) -> Result<(), Fault> {
    if args.graceful && args.state != Wish::Off {
        return Err(Fault::usage("--graceful is for off"));
    }
    let power_state = match args.state {
        Wish::On => PowerState::On,
        Wish::Off => PowerState::Off,
        Wish::Paused => PowerState::Paused,
    };
    change!(
        session,
        &args.change,
        Gone::Yields,
        set_vm_power_state(SetVmPowerStateRequest {
            power_state: power_state.into(),
            graceful_shutdown: args.graceful,
        })
    )
}
