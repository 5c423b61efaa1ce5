//! Messages of the API that can be printed as JSON.

use crate::cli::fault::Fault;
use crate::proto::json;
pub(crate) use crate::proto::json::drop_unknown_details;
use crate::proto::v1;
use prost::Message;

/// A message of the API that can be printed.
pub(crate) trait Named {
    /// Its name in the protos, without the package.
    const NAME: &'static str;
    /// What `--quiet` prints.
    fn id(&self) -> &str;
}

macro_rules! named {
    ($($message:ident by $field:ident),* $(,)?) => {
        $(impl Named for v1::$message {
            const NAME: &'static str = stringify!($message);
            fn id(&self) -> &str {
                &self.$field
            }
        })*
    };
}
named!(
    Vm by id,
    Image by id,
    Volume by id,
    Pool by name,
    Node by id,
    Operation by id,
    Orphan by id,
    // A console has no id; its password is what a script asks for.
    VncConsole by password,
    // An event has no id; where it is in the sequence is asked for.
    WatchEventsResponse by epoch,
);

/// A message in proto3's JSON mapping, with the protos' field names; values and
/// lists are there also when empty, messages within it only when set.
pub(crate) fn value<M: Message + Named>(message: &M) -> Result<serde_json::Value, Fault> {
    json::value(M::NAME, message)
        .map_err(|error| Fault::internal(format!("can't write JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, StatusExt};
    use v1::Operation;

    #[test]
    fn json_has_the_names_of_the_protos_and_every_field() {
        let vm = v1::Vm {
            id: "x".into(),
            state: v1::VmState::Running.into(),
            create_time: Some(prost_types::Timestamp::default()),
            generation: 3,
            ..v1::Vm::default()
        };
        let value = value(&vm).expect("it is a message of the API");
        assert_eq!(value["state"], "VM_STATE_RUNNING");
        assert_eq!(value["create_time"], "1970-01-01T00:00:00Z");
        assert_eq!(value["generation"], "3");
        assert_eq!(value["current_operation_id"], "");
        assert_eq!(value["nics"], serde_json::json!([]));
    }

    #[test]
    fn json_of_a_failed_operation_has_its_details() {
        let details = ErrorDetails::with_error_info("VM_BUSY", "kvmlet", []);
        let status = tonic::Status::with_error_details(tonic::Code::Aborted, "busy", details);
        let mut status =
            tonic_types::Status::decode(status.details()).expect("tonic-types wrote them");
        status.details.push(prost_types::Any {
            type_url: "type.googleapis.com/some.Later".into(),
            value: vec![1],
        });
        let mut operation = Operation {
            error: Some(status),
            ..Operation::default()
        };
        drop_unknown_details(&mut operation);
        let value = value(&operation).expect("it is a message of the API");
        assert_eq!(value["error"]["details"][0]["reason"], "VM_BUSY");
    }
}
