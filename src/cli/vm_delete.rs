//! `kvmlet vm delete|recover|expunge`.
//!
//! Invariant: nothing is removed for good without a yes, on a terminal or by
//! `--yes`; the plan is shown before the question.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::output;
use crate::cli::parse::{self, wire_duration};
use crate::cli::plan;
use crate::cli::resolve::{self, Gone};
use crate::cli::vm::{VmChange, change};
use crate::cli::vm_power::StopFirstArgs;
use crate::proto::v1::{
    DeleteVmRequest, ExpungeVmRequest, GetVmRequest, Operation, RecoverVmRequest, operation,
};
use clap::Args;
use std::io::{IsTerminal, stdin};
use std::time::Duration;

/// How to delete.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    change: VmChange,
    /// How long to keep everything; 0: not at all [default: the configured time]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    retention: Option<Duration>,
    /// With --retention 0: don't ask
    #[arg(short, long)]
    yes: bool,
    /// Check everything, change nothing, print the plan
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    stop: StopFirstArgs,
}

/// What to remove for good.
#[derive(Debug, Args)]
pub(crate) struct ExpungeArgs {
    #[command(flatten)]
    change: VmChange,
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Check everything, change nothing, print the plan
    #[arg(long)]
    dry_run: bool,
}

/// DeleteVm.
pub(crate) async fn delete(session: &Session, args: &DeleteArgs) -> Result<(), Fault> {
    let mut change = args.change.clone();
    change.vm = resolve::vm(session, &change.vm, Gone::Yields).await?;
    let request = DeleteVmRequest {
        request_id: String::new(),
        expected_generation: change.if_generation,
        vm_id: change.vm.clone(),
        stop_policy: args.stop.policy(),
        retention: args.retention.map(wire_duration),
        validate_only: true,
    };
    let for_good = args.retention == Some(Duration::ZERO);
    if for_good && !args.yes && !args.dry_run {
        may_ask()?;
        let plan = session.vms().delete_vm(request.clone()).await?.into_inner();
        confirm(session, &change.vm, &plan).await?;
    }
    change!(
        session,
        &change,
        Gone::Yields,
        delete_vm(DeleteVmRequest {
            stop_policy: request.stop_policy,
            retention: request.retention,
            validate_only: args.dry_run,
        })
    )
}

/// RecoverVm.
pub(crate) async fn recover(session: &Session, args: &VmChange) -> Result<(), Fault> {
    change!(session, args, Gone::Counts, recover_vm(RecoverVmRequest {}))
}

/// ExpungeVm.
pub(crate) async fn expunge(session: &Session, args: &ExpungeArgs) -> Result<(), Fault> {
    let mut change = args.change.clone();
    if !args.yes && !args.dry_run {
        may_ask()?;
        change.vm = resolve::vm(session, &change.vm, Gone::Counts).await?;
        let request = ExpungeVmRequest {
            request_id: String::new(),
            expected_generation: change.if_generation,
            vm_id: change.vm.clone(),
            validate_only: true,
        };
        let plan = session.vms().expunge_vm(request).await?.into_inner();
        confirm(session, &change.vm, &plan).await?;
    }
    change!(
        session,
        &change,
        Gone::Counts,
        expunge_vm(ExpungeVmRequest {
            validate_only: args.dry_run,
        })
    )
}

/// Whether there is someone to ask.
fn may_ask() -> Result<(), Fault> {
    if stdin().is_terminal() {
        Ok(())
    } else {
        Err(Fault::usage(
            "this removes the VM for good, and there is no terminal to ask on: say --yes",
        ))
    }
}

/// Shows what will be removed and asks.
async fn confirm(session: &Session, vm_id: &str, planned: &Operation) -> Result<(), Fault> {
    let request = GetVmRequest {
        vm_id: vm_id.to_owned(),
    };
    let vm = session.vms().get_vm(request).await?.into_inner();
    if let Some(operation::Result::Plan(plan)) = &planned.result {
        eprintln!("{}", plan::text(&session.out, plan));
    }
    eprint!(
        "Remove {} ({}) for good? [y/N] ",
        output::clean(&vm.name),
        output::clean(&vm.id)
    );
    // Nothing else happens meanwhile, and Ctrl-C still ends the process.
    let mut answer = String::new();
    stdin()
        .read_line(&mut answer)
        .map_err(|error| Fault::usage(format!("no answer: {error}")))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Fault::usage("nothing was removed")),
    }
}
