//! What went wrong: words for people, an exit code for scripts.
//!
//! Invariant: every way to fail comes out of here, so the table of exit codes
//! in `kvmlet --help` is the whole truth. It doesn't log and doesn't print.

use crate::cli::advice;
use crate::cli::output;
use crate::proto::v1::{Operation, OperationState, RollbackState};
use std::error::Error;
use std::fmt;
use std::process::ExitCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, RpcStatusExt, StatusExt};

/// What the exit code of the command says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The operation ended FAILED or CANCELLED, or what was checked is not well.
    Failed = 1,
    /// Bad arguments, or bad input to the daemon.
    Usage = 2,
    /// No such VM, image, volume or operation.
    NotFound = 3,
    /// Not in this state, not while another operation runs, or not by you.
    Refused = 4,
    /// Memory, vCPUs, space or the queue are used up.
    NoResources = 5,
    /// The daemon, or what it needs, is away.
    Unavailable = 6,
    /// The time to wait is over; the operation goes on.
    TimedOut = 7,
    /// It may have happened.
    OutcomeUnknown = 8,
    /// A fault of kvmlet, or of this command's surroundings.
    Internal = 70,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    const ALL: [Self; 10] = [
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Refused,
        Self::NoResources,
        Self::Unavailable,
        Self::TimedOut,
        Self::OutcomeUnknown,
        Self::Internal,
        Self::Interrupted,
    ];

    /// The number that the process ends with.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Failed => "the operation failed or was cancelled, or a check found problems",
            Self::Usage => "usage, or bad input",
            Self::NotFound => "no such VM, image, volume or operation",
            Self::Refused => "refused: by its state, by another operation, or not allowed",
            Self::NoResources => "no memory, vCPUs or space, or the queue is full",
            Self::Unavailable => "the daemon can't be reached, or what it needs is away",
            Self::TimedOut => "timed out waiting; the operation goes on",
            Self::OutcomeUnknown => "the outcome is unknown: look before trying again",
            Self::Internal => "internal fault",
            Self::Interrupted => "interrupted; an operation that has begun goes on",
        }
    }

    /// What a refused or failed call means for the caller.
    const fn of(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::Usage,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition
            | Code::Aborted
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated => Self::Refused,
            Code::ResourceExhausted => Self::NoResources,
            Code::Unavailable => Self::Unavailable,
            Code::DeadlineExceeded => Self::TimedOut,
            // The call was sent and was given up on the way.
            Code::Unknown | Code::Cancelled => Self::OutcomeUnknown,
            // Ok as an error is nobody's contract.
            Code::Ok | Code::Internal | Code::DataLoss | Code::Unimplemented => Self::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table of exit codes for the help text.
pub(crate) fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n    0  done");
    for exit in Exit::ALL {
        text.push_str(&format!("\n  {:>3}  {}", exit.code(), exit.meaning()));
    }
    text
}

/// Why the command could not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Fault {
    /// What to end with.
    pub(crate) exit: Exit,
    message: String,
    details: Vec<String>,
}

impl Fault {
    /// A fault with its message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// The person's input is at fault.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// kvmlet itself, or what surrounds this command, is at fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Internal, message)
    }

    /// What went wrong, in one line.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Adds a line: more about it, or what to do.
    #[must_use]
    pub(crate) fn with(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// Why an operation did not end as asked; `None` if it did, or still runs.
    pub(crate) fn of_operation(operation: &Operation) -> Option<Self> {
        let word = match operation.state() {
            OperationState::Failed => "failed",
            OperationState::Cancelled => "was cancelled",
            OperationState::Unspecified
            | OperationState::Pending
            | OperationState::Running
            | OperationState::Succeeded => return None,
        };
        let kind = output::word(operation.r#type().as_str_name(), "OPERATION_TYPE_");
        let mut fault = Self::new(Exit::Failed, format!("{kind} {word}"));
        if let Some(error) = &operation.error {
            if !error.message.is_empty() {
                fault.message = format!("{kind} {word}: {}", error.message);
            }
            let details = error.get_error_details();
            if reason_of(&details) == Some("OUTCOME_UNKNOWN") {
                fault.exit = Exit::OutcomeUnknown;
            }
            fault.describe(&details);
        }
        let undone = match operation.rollback_state() {
            RollbackState::Unspecified => None,
            RollbackState::None => Some("nothing was undone"),
            RollbackState::RollingBack => Some("it is being undone"),
            RollbackState::Done => Some("it was undone: all is as before"),
            RollbackState::Failed => Some("it could not be undone in full"),
        };
        if let Some(undone) = undone {
            fault.details.push(format!("undoing: {undone}"));
        }
        fault.details.push(format!(
            "operation: {id} (kvmlet op show {id})",
            id = operation.id
        ));
        Some(fault)
    }

    /// Adds what the details of a status say, and what can be done about it.
    fn describe(&mut self, details: &ErrorDetails) {
        if let Some(bad) = details.bad_request() {
            for violation in &bad.field_violations {
                // The message says it already where it is the only one.
                let (field, what) = (&violation.field, &violation.description);
                if self.message != format!("{field} {what}") {
                    self.details.push(format!("field {field}: {what}"));
                }
            }
        }
        if let Some(error) = details.error_info() {
            self.details.push(format!("reason: {}", error.reason));
            let mut metadata: Vec<_> = error.metadata.iter().collect();
            metadata.sort();
            let has_fields = details.bad_request().is_some();
            for (key, value) in metadata {
                if key == "instead" || (key == "field" && has_fields) {
                    continue;
                }
                self.details.push(format!("{key}: {value}"));
            }
            let hints = advice::lines(error).into_iter();
            self.details
                .extend(hints.map(|hint| format!("hint: {hint}")));
        }
        if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
            self.details
                .push(format!("try again in {}", output::duration(delay)));
        }
    }
}

impl From<Status> for Fault {
    /// For a call that changes nothing, or that the daemon itself answered: a
    /// change whose way broke has to say more (see [`wait`](super::wait)).
    fn from(status: Status) -> Self {
        if is_broken(&status) {
            return Self::new(
                Exit::Unavailable,
                format!("lost the connection to the daemon: {}", status.message()),
            )
            .with("hint: does it run? systemctl status kvmlet");
        }
        let message = if status.message().is_empty() {
            status.code().description().to_owned()
        } else {
            status.message().to_owned()
        };
        let mut fault = Self::new(Exit::of(status.code()), message);
        if status.code() == Code::Unimplemented && reason(&status).is_none() {
            fault = fault.with(
                "this daemon does not have that call: compare kvmlet --version with kvmlet node",
            );
        }
        fault.describe(&status.get_error_details());
        fault
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", output::clean(&self.message))?;
        for line in &self.details {
            write!(f, "\n  {}", output::clean(line))?;
        }
        Ok(())
    }
}

/// The reason in a status of the daemon; `None` in one that was made on the
/// way, for the daemon puts one in each.
pub(crate) fn reason(status: &Status) -> Option<String> {
    reason_of(&status.get_error_details()).map(str::to_owned)
}

/// Whether a call failed because of the way to the daemon, not by its answer.
pub(crate) fn is_broken(status: &Status) -> bool {
    reason(status).is_none() && status.source().is_some()
}

fn reason_of(details: &ErrorDetails) -> Option<&str> {
    details.error_info().map(|info| info.reason.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grpc_code_has_its_exit_code() {
        let expected = [
            (Code::Ok, 70),
            (Code::Cancelled, 8),
            (Code::Unknown, 8),
            (Code::InvalidArgument, 2),
            (Code::DeadlineExceeded, 7),
            (Code::NotFound, 3),
            (Code::AlreadyExists, 4),
            (Code::PermissionDenied, 4),
            (Code::ResourceExhausted, 5),
            (Code::FailedPrecondition, 4),
            (Code::Aborted, 4),
            (Code::OutOfRange, 2),
            (Code::Unimplemented, 70),
            (Code::Internal, 70),
            (Code::Unavailable, 6),
            (Code::DataLoss, 70),
            (Code::Unauthenticated, 4),
        ];
        for (code, exit) in expected {
            assert_eq!(Exit::of(code).code(), exit, "{code:?}");
        }
    }

    #[test]
    fn a_lost_connection_is_not_taken_for_an_answer() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let fault = Fault::from(Status::from_error(Box::new(reset)));
        assert_eq!(fault.exit, Exit::Unavailable);

        let details = ErrorDetails::with_error_info("OUTCOME_UNKNOWN", "kvmlet", []);
        let fault = Fault::from(Status::with_error_details(Code::Unknown, "sent", details));
        assert_eq!(fault.exit, Exit::OutcomeUnknown);
    }

    #[test]
    fn a_failed_operation_tells_its_reason_its_undoing_and_its_id() {
        let mut details = ErrorDetails::with_error_info(
            "GUEST_DID_NOT_STOP",
            "kvmlet",
            [("signals".to_owned(), "7".to_owned())],
        );
        details.add_bad_request_violation("stop_policy.timeout", "too\x1b[31m short");
        let operation = Operation {
            id: "0b0e".into(),
            r#type: crate::proto::v1::OperationType::StopVm.into(),
            state: OperationState::Failed.into(),
            rollback_state: RollbackState::None.into(),
            error: Some(rpc_status(Code::FailedPrecondition, "still runs", &details)),
            ..Operation::default()
        };
        let fault = Fault::of_operation(&operation).expect("it failed");
        assert_eq!(fault.exit, Exit::Failed);
        assert_eq!(
            fault.to_string(),
            "error: stop vm failed: still runs\n  \
             field stop_policy.timeout: too[31m short\n  \
             reason: GUEST_DID_NOT_STOP\n  \
             signals: 7\n  \
             hint: Ask again with more time, or stop it by force.\n  \
             hint: kvmlet vm stop VM --force\n  \
             undoing: nothing was undone\n  \
             operation: 0b0e (kvmlet op show 0b0e)"
        );
    }

    #[test]
    fn an_unknown_outcome_is_told_from_a_failure() {
        let details = ErrorDetails::with_error_info("OUTCOME_UNKNOWN", "kvmlet", []);
        let operation = Operation {
            state: OperationState::Failed.into(),
            error: Some(rpc_status(Code::Unknown, "", &details)),
            ..Operation::default()
        };
        let fault = Fault::of_operation(&operation).expect("it failed");
        assert_eq!(fault.exit, Exit::OutcomeUnknown);
    }

    /// What the daemon puts into an operation: the same bytes as in a trailer.
    fn rpc_status(code: Code, message: &str, details: &ErrorDetails) -> tonic_types::Status {
        let status = Status::with_error_details(code, message, details.clone());
        prost::Message::decode(status.details()).expect("tonic-types wrote them")
    }
}
