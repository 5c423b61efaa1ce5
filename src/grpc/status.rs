//! What a fault looks like on the wire: the only place that builds a status.
//!
//! Every status has a `google.rpc.ErrorInfo` as its first detail; bad input has
//! a BadRequest with the fields, and where trying again may help there is a
//! RetryInfo. A status travels in HTTP/2 trailers, for which clients allow few
//! KiB (8 by default), so that long texts are cut there. The error of an
//! operation travels in its message and is whole.

use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::reason::{Code, Reason};
use prost::Message;
use prost_types::Any;
use std::collections::HashMap;
use tonic::metadata::MetadataMap;
use tonic_types::pb;

/// Who speaks in an ErrorInfo.
pub(super) const DOMAIN: &str = "kvmlet";

/// Bytes of one text of a status, and of all texts of its details together.
const TEXT: usize = 512;
const TEXTS: usize = 2048;

/// A fault as the answer to a call.
pub(super) fn refusal(fault: &Fault) -> tonic::Status {
    let fault = cut(fault);
    let code = code(fault.code());
    let details = as_value(&fault).encode_to_vec().into();
    tonic::Status::with_details_and_metadata(code, fault.message, details, MetadataMap::new())
}

/// A fault as the error of an operation.
pub(super) fn as_value(fault: &Fault) -> pb::Status {
    let mut details = vec![any(
        "ErrorInfo",
        &pb::ErrorInfo {
            reason: fault.reason.as_str().to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: fault
                .metadata
                .clone()
                .into_iter()
                .collect::<HashMap<_, _>>(),
        },
    )];
    if !fault.fields.is_empty() {
        let field_violations = fault
            .fields
            .iter()
            .map(|fault| pb::bad_request::FieldViolation {
                field: fault.field.clone(),
                description: fault.problem.clone(),
                ..Default::default()
            })
            .collect();
        details.push(any("BadRequest", &pb::BadRequest { field_violations }));
    }
    if let Some(after) = fault.retry_after {
        let retry_delay = Some(super::convert::time::wire(after));
        details.push(any("RetryInfo", &pb::RetryInfo { retry_delay }));
    }
    pb::Status {
        code: code(fault.code()) as i32,
        message: fault.message.clone(),
        details,
    }
}

/// What tonic itself refuses before a service of ours is asked, in our terms.
/// `None` of codes that tonic only passes on.
pub(super) fn refused_by_transport(code: tonic::Code, largest: Bytes) -> Option<tonic::Status> {
    let fault = match code {
        // Its decoder: the bytes are not the message that the call takes.
        tonic::Code::Internal => Fault::new(Reason::FieldInvalid, "the request can't be decoded"),
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => Fault::new(
            Reason::RequestTooLarge,
            format!("the request is larger than {largest}"),
        ),
        tonic::Code::Unimplemented => Fault::new(
            Reason::NotYet,
            "this version of kvmlet does not have the call",
        ),
        tonic::Code::Ok
        | tonic::Code::Cancelled
        | tonic::Code::Unknown
        | tonic::Code::InvalidArgument
        | tonic::Code::DeadlineExceeded
        | tonic::Code::NotFound
        | tonic::Code::AlreadyExists
        | tonic::Code::PermissionDenied
        | tonic::Code::FailedPrecondition
        | tonic::Code::Aborted
        | tonic::Code::Unavailable
        | tonic::Code::DataLoss
        | tonic::Code::Unauthenticated => return None,
    };
    Some(refusal(&fault))
}

const fn code(code: Code) -> tonic::Code {
    match code {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::AlreadyExists => tonic::Code::AlreadyExists,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::Aborted => tonic::Code::Aborted,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::Unknown => tonic::Code::Unknown,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::Cancelled => tonic::Code::Cancelled,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::Unauthenticated => tonic::Code::Unauthenticated,
        Code::Unimplemented => tonic::Code::Unimplemented,
        Code::Internal => tonic::Code::Internal,
    }
}

fn any(name: &str, detail: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/google.rpc.{name}"),
        value: detail.encode_to_vec(),
    }
}

/// The fault with texts that fit into trailers. What does not fit is left out
/// from the end; the first field always fits.
fn cut(fault: &Fault) -> Fault {
    let mut fault = fault.clone();
    fault.message = short(&fault.message);
    let mut left = TEXTS;
    fault.fields = fault
        .fields
        .into_iter()
        .map(|mut field| {
            field.field = short(&field.field);
            field.problem = short(&field.problem);
            field
        })
        .take_while(|field| fits(&mut left, field.field.len() + field.problem.len()))
        .collect();
    fault.metadata = fault
        .metadata
        .into_iter()
        .map(|(key, value)| (key, short(&value)))
        .filter(|(key, value)| fits(&mut left, key.len() + value.len()))
        .collect();
    fault
}

fn fits(left: &mut usize, bytes: usize) -> bool {
    match left.checked_sub(bytes) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    }
}

fn short(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let mut end = TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::FieldFault;
    use std::time::Duration;
    use tonic_types::StatusExt;

    #[test]
    fn every_reason_becomes_a_status_with_its_code_and_an_error_info() {
        for reason in Reason::ALL {
            let status = refusal(&Fault::new(*reason, "words").with("vm_id", "x"));
            // The names are tonic's own words without the underscores.
            let name = format!("{:?}", status.code()).to_uppercase();
            assert_eq!(name, reason.code().as_str().replace('_', ""), "{reason:?}");
            let details = status.get_error_details();
            let info = details.error_info().expect("an ErrorInfo in every status");
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason.as_str(), "kvmlet")
            );
            assert_eq!(info.metadata["vm_id"], "x");
            assert_eq!(status.message(), "words");
        }
    }

    #[test]
    fn a_bad_field_is_named_in_a_bad_request_and_a_retry_has_its_delay() {
        let status = refusal(&Fault::field(
            Reason::MacInvalid,
            "nics[1].mac",
            "is all zeros",
        ));
        let details = status.get_error_details();
        let violations = &details
            .bad_request()
            .expect("a BadRequest")
            .field_violations;
        assert_eq!(violations[0].field, "nics[1].mac");
        assert_eq!(violations[0].description, "is all zeros");
        assert!(details.retry_info().is_none());

        let busy = refusal(&Fault::new(Reason::VmBusy, "held"));
        let retry = busy
            .get_error_details()
            .retry_info()
            .cloned()
            .expect("a RetryInfo");
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(200)));
    }

    #[test]
    fn the_error_of_an_operation_has_the_error_info_first_and_is_whole() {
        let fault = Fault::field(Reason::FieldInvalid, "name", "x".repeat(5000));
        let error = as_value(&fault);
        assert_eq!(error.code, tonic::Code::InvalidArgument as i32);
        assert_eq!(error.message, fault.message);
        assert!(error.details[0].type_url.ends_with("/google.rpc.ErrorInfo"));
    }

    #[test]
    fn a_status_fits_into_the_trailers_that_clients_allow() {
        let mut fault = Fault::new(Reason::ImageInUse, "ü".repeat(5000));
        for index in 0..1000 {
            fault.fields.push(FieldFault {
                field: format!("labels[{index}]"),
                problem: "ü".repeat(1000),
            });
        }
        let fault = fault.with("volumes", "v".repeat(100_000));
        let status = refusal(&fault);
        // Trailers have the details in base64 and the message percent-encoded.
        let trailers = status.details().len() * 4 / 3 + status.message().len() * 3;
        assert!(trailers < 8 << 10, "{trailers}");
        let details = status.get_error_details();
        assert!(
            !details
                .bad_request()
                .expect("fields")
                .field_violations
                .is_empty()
        );
        assert_eq!(details.error_info().expect("info").reason, "IMAGE_IN_USE");
    }
}
