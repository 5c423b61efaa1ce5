//! `kvmlet op`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::json::drop_unknown_details;
use crate::cli::output;
use crate::cli::parse;
use crate::cli::plan;
use crate::cli::resolve::{self, Gone};
use crate::cli::table::{Sheet, Table};
use crate::cli::wait;
use crate::proto::v1::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, Operation, OperationState,
    PowerMethod, RollbackState, operation,
};
use clap::{Args, Subcommand};
use std::time::Duration;
use uuid::Uuid;

/// Commands on operations.
#[derive(Debug, Subcommand)]
pub(crate) enum OpCommand {
    /// List operations, newest first
    #[command(after_help = "Example:\n  kvmlet op list --vm web1 --state running")]
    List(ListArgs),
    /// Show one operation with its steps
    #[command(after_help = "Example:\n  kvmlet op show 0b0e1c52")]
    Show {
        /// The operation's id, or the beginning of it
        operation: String,
    },
    /// Wait for the end of an operation, and end as it did
    #[command(after_help = "Example:\n  kvmlet op wait 0b0e1c52 --timeout 5m")]
    Wait {
        /// The operation's id, or the beginning of it
        operation: String,
        /// Wait at most this long; the operation goes on
        #[arg(long, visible_alias = "wait-timeout", value_name = "DURATION", value_parser = parse::duration)]
        timeout: Option<Duration>,
        /// How long to try to reach a daemon that restarts meanwhile
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::duration)]
        reconnect: Duration,
    },
    /// Ask a running operation to stop and to undo what it did
    #[command(after_help = "Example:\n  kvmlet op cancel 0b0e1c52")]
    Cancel {
        /// The operation's id, or the beginning of it
        operation: String,
    },
}

/// Which operations to list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only of this VM
    #[arg(long)]
    vm: Option<String>,
    /// Only of this image
    #[arg(long)]
    image: Option<String>,
    /// Only in this state, such as running (may be repeated)
    #[arg(long = "state", value_parser = state_filter)]
    states: Vec<OperationState>,
    /// Only the one with this request id
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,
    /// At most this many
    #[arg(short = 'n', long, default_value_t = 50)]
    limit: u32,
}

fn state_filter(text: &str) -> Result<OperationState, String> {
    let name = format!("OPERATION_STATE_{}", text.to_ascii_uppercase());
    OperationState::from_str_name(&name)
        .filter(|state| *state != OperationState::Unspecified)
        .ok_or_else(|| "expected pending, running, succeeded, failed or cancelled".into())
}

/// Carries out a command.
pub(crate) async fn run(session: &Session, command: OpCommand) -> Result<(), Fault> {
    match command {
        OpCommand::List(args) => list(session, args).await,
        OpCommand::Show { operation } => {
            let operation = get(session, &operation).await?;
            session
                .out
                .one(&operation, || sheet(session, &operation).to_string())
        }
        OpCommand::Wait {
            operation,
            timeout,
            reconnect,
        } => {
            let operation = get(session, &operation).await?;
            wait::follow(session, operation, timeout, reconnect).await
        }
        OpCommand::Cancel { operation } => {
            let operation_id = resolve::operation(session, &operation).await?;
            let request = CancelOperationRequest { operation_id };
            let mut operation = session
                .operations()
                .cancel_operation(request)
                .await?
                .into_inner();
            drop_unknown_details(&mut operation);
            session.out.one(&operation, || {
                if wait::has_ended(&operation) {
                    format!("{} has ended: {}", operation.id, state(&operation))
                } else {
                    format!(
                        "{id} is asked to stop; to wait for it: kvmlet op wait {id}",
                        id = operation.id
                    )
                }
            })
        }
    }
}

async fn get(session: &Session, wanted: &str) -> Result<Operation, Fault> {
    let operation_id = resolve::operation(session, wanted).await?;
    let request = GetOperationRequest { operation_id };
    let answer = session.operations().get_operation(request).await?;
    let mut operation = answer.into_inner();
    drop_unknown_details(&mut operation);
    Ok(operation)
}

async fn list(session: &Session, args: ListArgs) -> Result<(), Fault> {
    let vm_id = match &args.vm {
        Some(vm) => resolve::vm(session, vm, Gone::Yields).await?,
        None => String::new(),
    };
    let image_id = match &args.image {
        Some(image) => resolve::image(session, image).await?,
        None => String::new(),
    };
    let mut request = ListOperationsRequest {
        vm_id,
        image_id,
        request_id: args.request_id.map(|id| id.to_string()).unwrap_or_default(),
        states: args.states.iter().map(|&state| state.into()).collect(),
        ..ListOperationsRequest::default()
    };
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut operations: Vec<Operation> = Vec::new();
    while operations.len() < limit {
        let left = u32::try_from(limit - operations.len()).unwrap_or(resolve::PAGE);
        request.page_size = left.min(resolve::PAGE);
        let mut client = session.operations();
        let page = client.list_operations(request.clone()).await?.into_inner();
        operations.extend(page.operations);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    operations.truncate(limit);
    operations.iter_mut().for_each(drop_unknown_details);
    session.out.many(&operations, || {
        let mut table = Table::new(&["ID", "WHAT", "STATE", "DONE", "OF", "BY", "ASKED", "TOOK"]);
        for operation in &operations {
            let of = if operation.vm_id.is_empty() {
                &operation.image_id
            } else {
                &operation.vm_id
            };
            table.row([
                operation.id.clone(),
                kind(operation),
                state(operation).to_owned(),
                format!("{}%", operation.progress_percent),
                of.clone(),
                operation.caller.clone(),
                session.out.relative(operation.create_time),
                took(operation.start_time, operation.end_time),
            ]);
        }
        table
    })
}

fn sheet(session: &Session, operation: &Operation) -> Sheet {
    let out = &session.out;
    let mut sheet = Sheet::default();
    sheet.add("id", &operation.id);
    sheet.add("what", kind(operation));
    sheet.add(
        "state",
        format!("{}, {}%", state(operation), operation.progress_percent),
    );
    let undoing = output::word(operation.rollback_state().as_str_name(), "ROLLBACK_STATE_");
    if operation.rollback_state() != RollbackState::None {
        sheet.add("undoing", undoing);
    }
    sheet.add("VM", &operation.vm_id);
    sheet.add("image", &operation.image_id);
    sheet.add("asked by", &operation.caller);
    sheet.add("request id", &operation.request_id);
    sheet.add("asked", out.local(operation.create_time));
    sheet.add("begun", out.local(operation.start_time));
    sheet.add("ended", out.local(operation.end_time));
    sheet.add("took", took(operation.start_time, operation.end_time));
    if let Some(power) = &operation.power_outcome
        && power.method() != PowerMethod::Unspecified
    {
        sheet.add(
            "guest stopped",
            format!(
                "{}, {} signals, {}{}",
                output::word(power.method().as_str_name(), "POWER_METHOD_"),
                power.signals_sent,
                power.waited.map(output::duration).unwrap_or_default(),
                if power.forced { ", forced" } else { "" }
            ),
        );
    }
    if let Some(fault) = Fault::of_operation(operation) {
        sheet.add("why", fault);
    }
    if let Some(operation::Result::Plan(plan)) = &operation.result {
        sheet.add("plan", plan::text(out, plan));
    }
    let mut steps = Table::new(&["STEP", "STATE", "TOOK"]);
    for step in &operation.steps {
        steps.row([
            step.name.clone(),
            output::word(step.state().as_str_name(), "STEP_STATE_"),
            took(step.start_time, step.end_time),
        ]);
    }
    sheet.table("steps", steps);
    sheet
}

fn kind(operation: &Operation) -> String {
    output::word(operation.r#type().as_str_name(), "OPERATION_TYPE_")
}

fn state(operation: &Operation) -> &'static str {
    output::name(operation.state().as_str_name(), "OPERATION_STATE_")
}

/// The time between two times; nothing if one is missing.
fn took(start: Option<prost_types::Timestamp>, end: Option<prost_types::Timestamp>) -> String {
    let (Some(start), Some(end)) = (start, end) else {
        return String::new();
    };
    let nanos = |time: prost_types::Timestamp| {
        i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
    };
    let span = u64::try_from(nanos(end) - nanos(start)).unwrap_or(0);
    output::duration(Duration::from_nanos(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_named_in_any_case() {
        assert_eq!(state_filter("Running"), Ok(OperationState::Running));
        assert!(state_filter("unspecified").is_err());
        assert!(state_filter("done").is_err());
    }

    #[test]
    fn the_time_that_a_step_took_is_told_in_seconds() {
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        assert_eq!(took(at(10, 900_000_000), at(12, 150_000_000)), "1.3 s");
        assert_eq!(took(at(10, 0), None), "");
        assert_eq!(took(at(10, 0), at(9, 0)), "0 s");
    }
}
