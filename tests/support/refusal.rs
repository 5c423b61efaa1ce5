//! What a refusal says, from a status or from an operation's error.

use std::collections::BTreeMap;
use std::time::Duration;
use tonic::Code;
use tonic_types::{ErrorDetails, RpcStatusExt, StatusExt};

/// A refusal, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    pub reason: String,
    pub message: String,
    /// The paths of the bad fields.
    pub fields: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub retry: Option<Duration>,
}

impl Refusal {
    fn new(code: Code, message: &str, details: &ErrorDetails) -> Self {
        let info = details
            .error_info()
            .unwrap_or_else(|| panic!("no ErrorInfo in {code:?}: {message}"));
        assert_eq!(info.domain, "kvmlet");
        assert!(!message.is_empty());
        Self {
            code,
            reason: info.reason.clone(),
            message: message.to_owned(),
            fields: details
                .bad_request()
                .map(|bad| {
                    bad.field_violations
                        .iter()
                        .map(|field| field.field.clone())
                        .collect()
                })
                .unwrap_or_default(),
            metadata: info.metadata.clone().into_iter().collect(),
            retry: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }

    /// Code, reason and bad fields, which is what most tests look at.
    pub fn brief(&self) -> (Code, &str, Vec<&str>) {
        let fields = self.fields.iter().map(String::as_str).collect();
        (self.code, &self.reason, fields)
    }
}

impl From<&tonic::Status> for Refusal {
    fn from(status: &tonic::Status) -> Self {
        Self::new(
            status.code(),
            status.message(),
            &status.get_error_details(),
        )
    }
}

impl From<&tonic_types::pb::Status> for Refusal {
    fn from(status: &tonic_types::pb::Status) -> Self {
        Self::new(
            Code::from_i32(status.code),
            &status.message,
            &status.get_error_details(),
        )
    }
}

/// The refusal that a call must have ended with.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> Refusal {
    match answer {
        Ok(answer) => panic!("was not refused: {answer:?}"),
        Err(status) => Refusal::from(&status),
    }
}
