//! Sends a change and follows its operation to the end.
//!
//! ```text
//! send ──► operation ──► WaitOperation, again and again ──► ended ──► report
//!   ▲ connection lost,        ▲ connection lost,                 │
//!   │ daemon starting         │ daemon starting                  └► exit code
//!   └── the same request_id ──┴── the same operation id
//! ```
//!
//! Invariant: nothing is asked for twice. Every change carries a request id, so
//! sending it again after the connection broke gives the same operation. What
//! the daemon itself refuses is never repeated, except while it starts or stops.

use crate::cli::connect::Session;
use crate::cli::fault::{self, Exit, Fault};
use crate::cli::json;
use crate::cli::output::{self, Output};
use crate::cli::parse;
use crate::cli::plan;
use crate::proto::v1::{
    Operation, OperationState, PowerMethod, StepState, WaitOperationRequest, operation,
};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::future::Future;
use std::io::{IsTerminal, stderr};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Response, Status};
use uuid::Uuid;

/// One long poll when nobody watches a bar.
const POLL: Duration = Duration::from_secs(30);
/// One long poll when the bar has to move.
const POLL_WITH_BAR: Duration = Duration::from_millis(500);
/// What an answer may take longer than the poll itself.
const GRACE: Duration = Duration::from_secs(15);
/// Between two tries to reach a daemon that restarts.
const PAUSE: Duration = Duration::from_millis(250);

/// How to wait for the end of an operation.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Waiting")]
pub(crate) struct WaitArgs {
    /// Print the operation's id and don't wait for its end
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Wait at most this long, such as 10m; the operation goes on
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) wait_timeout: Option<Duration>,
    /// How long to try to reach a daemon that restarts meanwhile
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::duration)]
    pub(crate) reconnect: Duration,
    /// UUID of this request; the same one again is the same operation
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<Uuid>,
}

/// Sends a change and, unless told otherwise, waits for its end and reports it.
pub(crate) async fn carry_out<F, Answer>(
    session: &Session,
    args: &WaitArgs,
    send: F,
) -> Result<(), Fault>
where
    F: Fn(String) -> Answer,
    Answer: Future<Output = Result<Response<Operation>, Status>>,
{
    let operation = submit(args, send).await?;
    if operation.id.is_empty() || has_ended(&operation) {
        return report(session, operation);
    }
    if args.no_wait {
        return accepted(session, operation);
    }
    follow(session, operation, args.wait_timeout, args.reconnect).await
}

/// Sends a change, and sends it again if the connection breaks.
pub(crate) async fn submit<F, Answer>(args: &WaitArgs, send: F) -> Result<Operation, Fault>
where
    F: Fn(String) -> Answer,
    Answer: Future<Output = Result<Response<Operation>, Status>>,
{
    let request_id = args.request_id.unwrap_or_else(Uuid::new_v4).to_string();
    let unknown = |exit| {
        Fault::new(
            exit,
            "the daemon has not answered: the request may have been taken",
        )
        .with(format!(
            "to find out: kvmlet op list --request-id {request_id}"
        ))
    };
    let work = async {
        let mut patience = Patience::new(args.reconnect);
        loop {
            match send(request_id.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if may_pass(&status) => {
                    if !patience.pause().await {
                        return Err(if fault::is_broken(&status) {
                            unknown(Exit::OutcomeUnknown)
                                .with(format!("at last: {}", status.message()))
                        } else {
                            status.into()
                        });
                    }
                }
                Err(status) => return Err(status.into()),
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = interrupt() => Err(unknown(Exit::Interrupted)),
    }
}

/// Waits until an operation has ended, then reports it.
pub(crate) async fn follow(
    session: &Session,
    operation: Operation,
    timeout: Option<Duration>,
    reconnect: Duration,
) -> Result<(), Fault> {
    let id = operation.id.clone();
    let bar = Bar::new(session);
    let ended = tokio::select! {
        ended = until_end(session, &bar, operation, timeout, reconnect) => ended,
        () = interrupt() => Err(goes_on(Exit::Interrupted, "interrupted", &id)),
    };
    bar.clear();
    report(session, ended?)
}

async fn until_end(
    session: &Session,
    bar: &Bar,
    mut operation: Operation,
    timeout: Option<Duration>,
    reconnect: Duration,
) -> Result<Operation, Fault> {
    // A time too far away to be represented is no limit at all.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut patience = Patience::new(reconnect);
    loop {
        bar.show(&operation);
        if has_ended(&operation) {
            return Ok(operation);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(goes_on(Exit::TimedOut, "not ended in time", &operation.id));
        }
        let poll = bar.poll().min(left.unwrap_or(Duration::MAX));
        let request = WaitOperationRequest {
            operation_id: operation.id.clone(),
            timeout: Some(parse::wire_duration(poll)),
        };
        let mut client = session.operations();
        let answer = tokio::time::timeout(poll + GRACE, client.wait_operation(request)).await;
        match answer {
            Ok(Ok(answer)) => {
                operation = answer.into_inner();
                patience = Patience::new(reconnect);
            }
            Ok(Err(status)) if !may_pass(&status) => return Err(status.into()),
            Ok(Err(_)) | Err(_) => {
                bar.say("waiting for the daemon to come back");
                if !patience.pause().await {
                    let id = &operation.id;
                    return Err(Fault::new(
                        Exit::Unavailable,
                        format!("the daemon no longer answers: operation {id} is on its record"),
                    )
                    .with(format!("once it is back: kvmlet op wait {id}")));
                }
            }
        }
    }
}

/// Prints an operation that nobody waits for.
fn accepted(session: &Session, operation: Operation) -> Result<(), Fault> {
    session.out.one(&operation, || operation.id.clone())
}

/// Prints how an operation ended; one that did not end as asked is a fault.
pub(crate) fn report(session: &Session, mut operation: Operation) -> Result<(), Fault> {
    let fault = Fault::of_operation(&operation);
    let out = &session.out;
    json::drop_unknown_details(&mut operation);
    if out.is_json() {
        out.one(&operation, String::new)?;
    } else if fault.is_none() {
        if let Some(operation::Result::Plan(plan)) = &operation.result {
            out.line(plan::text(out, plan))?;
        } else if out.quiet {
            out.line(output::clean(subject(&operation)))?;
        } else {
            out.line(outcome(out, &operation))?;
        }
    }
    fault.map_or(Ok(()), Err)
}

/// The id of what an operation is about.
fn subject(operation: &Operation) -> &str {
    [&operation.vm_id, &operation.image_id, &operation.orphan_id]
        .into_iter()
        .find(|id| !id.is_empty())
        .unwrap_or(&operation.id)
}

/// What came of an operation that has succeeded, in a line or two.
fn outcome(out: &Output, operation: &Operation) -> String {
    let kind = output::word(operation.r#type().as_str_name(), "OPERATION_TYPE_");
    let mut text = match &operation.result {
        Some(operation::Result::Vm(vm)) => {
            let state = output::name(vm.state().as_str_name(), "VM_STATE_");
            let until = match out.local(vm.expunge_time) {
                none if none.is_empty() => none,
                time => format!(", kept until {time}"),
            };
            format!("{kind}: {} ({}) is {state}{until}", vm.name, vm.id)
        }
        Some(operation::Result::Image(image)) => {
            let state = output::name(image.state().as_str_name(), "IMAGE_STATE_");
            format!("{kind}: {} ({}) is {state}", image.name, image.id)
        }
        Some(operation::Result::Volume(volume)) => {
            format!("{kind}: volume {} ({})", volume.name, volume.id)
        }
        Some(operation::Result::Plan(_)) | None => {
            format!("{kind}: {} done", subject(operation))
        }
    };
    text = output::clean(&text);
    if let Some(power) = &operation.power_outcome {
        let method = match power.method() {
            PowerMethod::Unspecified => None,
            PowerMethod::GuestAgent => Some("by its guest agent"),
            PowerMethod::Acpi => Some("by the ACPI power button"),
            PowerMethod::Force => Some("by cutting its power"),
            PowerMethod::Guest => Some("by itself"),
            PowerMethod::Destroyed => Some("by something else on the host"),
            PowerMethod::Crashed => Some("by a crash"),
            PowerMethod::Host => Some("with its host"),
        };
        if let Some(method) = method {
            text.push_str("\nstopped ");
            text.push_str(method);
            let signals = match power.signals_sent {
                0 => return text,
                1 => "1 signal".to_owned(),
                count => format!("{count} signals"),
            };
            let waited = power.waited.map(output::duration).unwrap_or_default();
            let after = if power.forced { " after" } else { ":" };
            text.push_str(&format!("{after} {signals}, {waited}"));
        }
    }
    text
}

/// Whether an operation is at its end.
pub(crate) fn has_ended(operation: &Operation) -> bool {
    match operation.state() {
        OperationState::Succeeded | OperationState::Failed | OperationState::Cancelled => true,
        OperationState::Unspecified | OperationState::Pending | OperationState::Running => false,
    }
}

fn goes_on(exit: Exit, why: &str, id: &str) -> Fault {
    Fault::new(exit, format!("{why}: operation {id} goes on"))
        .with(format!("to look at it: kvmlet op show {id}"))
        .with(format!("to wait for it: kvmlet op wait {id}"))
}

/// Whether the same call can succeed a moment later.
fn may_pass(status: &Status) -> bool {
    match fault::reason(status) {
        Some(reason) => matches!(reason.as_str(), "STARTING" | "STOPPING"),
        None => fault::is_broken(status) || status.code() == tonic::Code::Unavailable,
    }
}

/// Ends with the first Ctrl-C.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // No handler could be set: then Ctrl-C ends the process anyway.
        std::future::pending::<()>().await;
    }
}

/// For how long to try again.
struct Patience {
    limit: Duration,
    since: Option<Instant>,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, since: None }
    }

    /// Pauses before the next try; false when it is time to give up.
    async fn pause(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.limit {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
        true
    }
}

/// A progress bar on standard error, for people only.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(session: &Session) -> Self {
        if session.out.is_json() || session.out.quiet || !stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{spinner} [{bar:30}] {percent:>3}% {msg} {elapsed}")
                .expect("the template is well-formed")
                .progress_chars("=> "),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Some(bar))
    }

    fn poll(&self) -> Duration {
        if self.0.is_some() {
            POLL_WITH_BAR
        } else {
            POLL
        }
    }

    fn show(&self, operation: &Operation) {
        if let Some(bar) = &self.0 {
            bar.set_position(operation.progress_percent.into());
            bar.set_message(step(operation));
        }
    }

    fn say(&self, text: &'static str) {
        if let Some(bar) = &self.0 {
            bar.set_message(text);
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// What an operation is doing now.
fn step(operation: &Operation) -> String {
    let kind = output::word(operation.r#type().as_str_name(), "OPERATION_TYPE_");
    let running = operation
        .steps
        .iter()
        .find(|step| step.state() == StepState::Running);
    match running {
        Some(step) => output::clean(&format!("{kind}: {}", step.name)),
        None => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{OperationStep, OperationType, PowerOutcome, Vm, VmState};
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};

    fn refused(code: Code, reason: &str) -> Status {
        Status::with_error_details(
            code,
            "",
            ErrorDetails::with_error_info(reason, "kvmlet", []),
        )
    }

    #[test]
    fn only_a_broken_way_and_a_starting_daemon_are_tried_again() {
        assert!(may_pass(&refused(Code::Unavailable, "STARTING")));
        assert!(may_pass(&refused(Code::Unavailable, "STOPPING")));
        assert!(may_pass(&Status::from_error(Box::new(
            std::io::Error::from(std::io::ErrorKind::BrokenPipe)
        ))));
        assert!(!may_pass(&refused(Code::Unavailable, "HYPERVISOR_AWAY")));
        assert!(!may_pass(&refused(Code::Aborted, "VM_BUSY")));
        assert!(!may_pass(&refused(Code::Unknown, "OUTCOME_UNKNOWN")));
    }

    #[test]
    fn the_outcome_of_a_stop_tells_method_signals_and_time() {
        let operation = Operation {
            id: "o".into(),
            r#type: OperationType::StopVm.into(),
            state: OperationState::Succeeded.into(),
            vm_id: "v".into(),
            power_outcome: Some(PowerOutcome {
                method: PowerMethod::Acpi.into(),
                signals_sent: 2,
                waited: Some(parse::wire_duration(Duration::from_millis(12_340))),
                forced: false,
            }),
            result: Some(operation::Result::Vm(Vm {
                id: "v".into(),
                name: "web\x071".into(),
                state: VmState::Stopped.into(),
                ..Vm::default()
            })),
            ..Operation::default()
        };
        let out = Output::new(output::Format::Table, false);
        assert_eq!(
            outcome(&out, &operation),
            "stop vm: web1 (v) is STOPPED\nstopped by the ACPI power button: 2 signals, 12.3 s"
        );
    }

    #[test]
    fn a_stop_by_force_tells_of_signals_only_if_there_were_any() {
        let stopped = |signals_sent| {
            let operation = Operation {
                r#type: OperationType::StopVm.into(),
                vm_id: "v".into(),
                power_outcome: Some(PowerOutcome {
                    method: PowerMethod::Force.into(),
                    signals_sent,
                    waited: Some(parse::wire_duration(Duration::from_secs(6))),
                    forced: true,
                }),
                ..Operation::default()
            };
            outcome(&Output::new(output::Format::Table, false), &operation)
        };
        assert_eq!(stopped(0), "stop vm: v done\nstopped by cutting its power");
        assert_eq!(
            stopped(3),
            "stop vm: v done\nstopped by cutting its power after 3 signals, 6 s"
        );
    }

    #[test]
    fn the_bar_names_the_running_step() {
        let step_in = |name: &str, state: StepState| OperationStep {
            name: name.into(),
            state: state.into(),
            ..OperationStep::default()
        };
        let operation = Operation {
            r#type: OperationType::CreateVm.into(),
            steps: vec![
                step_in("make-root-volume", StepState::Done),
                step_in("define-domain", StepState::Running),
            ],
            ..Operation::default()
        };
        assert_eq!(step(&operation), "create vm: define-domain");
    }
}
