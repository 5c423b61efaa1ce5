//! `kvmlet vm`: its commands, and which file carries out which.

use crate::cli::connect::Session;
use crate::cli::console;
use crate::cli::fault::Fault;
use crate::cli::vm_create::{self, CreateArgs};
use crate::cli::vm_delete::{self, DeleteArgs, ExpungeArgs};
use crate::cli::vm_power::{self, PowerArgs, StartArgs, StopArgs};
use crate::cli::vm_root::{self, ReplaceRootArgs, RevertRootArgs};
use crate::cli::vm_show::{self, ListArgs};
use crate::cli::vm_update::{self, UpdateArgs};
use crate::cli::wait::WaitArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Commands on VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// List VMs
    #[command(after_help = "\
Examples:
  kvmlet vm list
  kvmlet vm list --all --label tier=web --state running")]
    List(ListArgs),
    /// Show one VM with its volumes and network interfaces
    #[command(after_help = "\
Examples:
  kvmlet vm show web1
  kvmlet -o json vm show web1")]
    Show {
        /// The VM's id, the beginning of it, or its name
        vm: String,
    },
    /// Make a VM
    #[command(after_help = vm_create::EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Change a VM's name, texts, labels, tags or hardware
    #[command(after_help = "\
Examples:
  kvmlet vm update web1 --name web2 --label tier=front --remove-label old
  kvmlet vm update web1 --vcpus 4 --memory 8GiB        (while STOPPED)")]
    Update(Box<UpdateArgs>),
    /// Give a VM power; one that is SAVED is restored
    #[command(after_help = "Example:\n  kvmlet vm start web1")]
    Start(StartArgs),
    /// Stop a guest, gracefully or by force
    #[command(after_help = "\
Examples:
  kvmlet vm stop web1
  kvmlet vm stop web1 --timeout 60s --resend 10s --on-timeout force
  kvmlet vm stop web1 --force")]
    Stop(StopArgs),
    /// Ask the guest to restart itself
    #[command(after_help = "Example:\n  kvmlet vm reboot web1")]
    Reboot(VmChange),
    /// Press the reset button: the guest is not asked
    #[command(after_help = "Example:\n  kvmlet vm reset web1")]
    Reset(VmChange),
    /// Pause the guest's vCPUs
    #[command(after_help = "Example:\n  kvmlet vm pause web1")]
    Pause(VmChange),
    /// Let the guest's processors go on
    #[command(after_help = "Example:\n  kvmlet vm resume web1")]
    Resume(VmChange),
    /// Write the guest's memory to a file and take its power; start restores
    #[command(after_help = "Example:\n  kvmlet vm save web1")]
    Save(VmChange),
    /// Bring a VM to a wished power state, whatever it is in now
    #[command(after_help = "\
Examples:
  kvmlet vm power web1 on
  kvmlet vm power web1 off --graceful")]
    Power(PowerArgs),
    /// Give a VM a new root volume; the old one is kept for a while
    #[command(after_help = "\
Examples:
  kvmlet vm replace-root web1 --image debian-13
  kvmlet vm replace-root web1 --image debian-13 --stop graceful --dry-run
  kvmlet vm replace-root web1 --image debian-13 --stop graceful --start --health guest-agent=90s")]
    ReplaceRoot(ReplaceRootArgs),
    /// Switch back to the root volume that was last replaced
    #[command(after_help = "Example:\n  kvmlet vm revert-root web1 --stop graceful --start")]
    RevertRoot(RevertRootArgs),
    /// Take a VM out of use; everything of it is kept for a while
    #[command(after_help = "\
Examples:
  kvmlet vm delete web1 --stop graceful
  kvmlet vm delete web1 --retention 30d --dry-run")]
    Delete(DeleteArgs),
    /// Bring a deleted VM back exactly as it was
    #[command(after_help = "Example:\n  kvmlet vm recover 0b0e1c52")]
    Recover(VmChange),
    /// Remove a deleted VM for good
    #[command(after_help = "Example:\n  kvmlet vm expunge 0b0e1c52")]
    Expunge(ExpungeArgs),
    /// Set a fresh VNC password and tell how to connect
    #[command(after_help = "Example:\n  kvmlet vm console web1")]
    Console {
        /// The VM's id, the beginning of it, or its name
        vm: String,
    },
    /// Save a picture of a VM's display
    #[command(after_help = "Example:\n  kvmlet vm screenshot web1 -O web1.png")]
    Screenshot {
        /// The VM's id, the beginning of it, or its name
        vm: String,
        /// The PNG file to write; - is standard output
        #[arg(short = 'O', long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// What every change of one VM takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct VmChange {
    /// The VM's id, the beginning of it, or its name
    pub(crate) vm: String,
    /// Refuse if the VM's generation is another
    #[arg(long, value_name = "NUMBER")]
    pub(crate) if_generation: Option<u64>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Sends a change of one VM and follows it: the request's common fields come
/// from the [`VmChange`], the others are given.
macro_rules! change {
    ($session:expr, $change:expr, $gone:expr, $call:ident($request:ident { $($field:ident: $value:expr),* $(,)? })) => {{
        let (session, change) = ($session, $change);
        let vm_id = $crate::cli::resolve::vm(session, &change.vm, $gone).await?;
        $crate::cli::wait::carry_out(session, &change.wait, |request_id| {
            let mut client = session.vms();
            let request = $request {
                request_id,
                expected_generation: change.if_generation,
                vm_id: vm_id.clone(),
                $($field: $value,)*
            };
            async move { client.$call(request).await }
        })
        .await
    }};
}
pub(crate) use change;

/// Carries out a command.
pub(crate) async fn run(session: &Session, command: VmCommand) -> Result<(), Fault> {
    match command {
        VmCommand::List(args) => vm_show::list(session, args).await,
        VmCommand::Show { vm } => vm_show::show(session, &vm).await,
        VmCommand::Create(args) => vm_create::run(session, *args).await,
        VmCommand::Update(args) => vm_update::run(session, *args).await,
        VmCommand::Start(args) => vm_power::start(session, &args).await,
        VmCommand::Stop(args) => vm_power::stop(session, &args).await,
        VmCommand::Reboot(change) => vm_power::reboot(session, &change).await,
        VmCommand::Reset(change) => vm_power::reset(session, &change).await,
        VmCommand::Pause(change) => vm_power::pause(session, &change).await,
        VmCommand::Resume(change) => vm_power::resume(session, &change).await,
        VmCommand::Save(change) => vm_power::save(session, &change).await,
        VmCommand::Power(args) => vm_power::set(session, &args).await,
        VmCommand::ReplaceRoot(args) => vm_root::replace(session, &args).await,
        VmCommand::RevertRoot(args) => vm_root::revert(session, &args).await,
        VmCommand::Delete(args) => vm_delete::delete(session, &args).await,
        VmCommand::Recover(change) => vm_delete::recover(session, &change).await,
        VmCommand::Expunge(args) => vm_delete::expunge(session, &args).await,
        VmCommand::Console { vm } => console::show(session, &vm).await,
        VmCommand::Screenshot { vm, file } => console::screenshot(session, &vm, &file).await,
    }
}
