//! A refusal or failure as a value: what the caller is told, and no more.

use super::reason::{Code, Reason};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Why a request was refused or an operation failed, in the caller's terms.
///
/// Holds no host path, XML or tool output: those go to the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Which of the documented reasons.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
    /// The offending fields with what is wrong with each, for bad input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldFault>,
    /// Values for programs, such as `operation_id`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// When trying again may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldFault {
    /// The field's path in the request, such as `nics[1].mac`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Fault {
    /// A fault with nothing but a reason and a sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after = match reason.code() {
            Code::Unavailable => Some(Duration::from_secs(1)),
            Code::Aborted => Some(Duration::from_millis(200)),
            Code::ResourceExhausted
                if matches!(reason, Reason::QueueFull | Reason::TooManyCalls) =>
            {
                Some(Duration::from_secs(1))
            }
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::Internal => None,
        };
        Self {
            reason,
            message: message.into(),
            fields: Vec::new(),
            metadata: BTreeMap::new(),
            retry_after,
        }
    }

    /// A fault about one field: the message is the path and the problem.
    pub fn field(reason: Reason, field: impl Into<String>, problem: impl Into<String>) -> Self {
        let (field, problem) = (field.into(), problem.into());
        let mut fault = Self::new(reason, format!("{field} {problem}"));
        fault.metadata.insert("field".to_owned(), field.clone());
        fault.fields.push(FieldFault { field, problem });
        fault
    }

    /// Adds a value for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// The kind of error it is.
    pub const fn code(&self) -> Code {
        self.reason.code()
    }
}
