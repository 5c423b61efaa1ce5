//! Messages of the API as JSON: proto3's own mapping with the field names of the
//! protos, made from the descriptors, so that no message needs code here.
//!
//! In that mapping 64-bit numbers are strings and enums are their full names.

use crate::cli::fault::Fault;
use crate::proto::v1::{self, Operation};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use std::fmt;
use std::sync::LazyLock;

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

/// All messages of the API, with those that an error may carry.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool =
        DescriptorPool::decode(v1::DESCRIPTORS).expect("build.rs wrote valid descriptors");
    let details = prost_types::FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .expect("tonic-types ships valid descriptors");
    for file in details.file {
        // Here and there Status and Any come under another file name.
        let known = file.message_type.iter().any(|message| {
            let name = format!("{}.{}", file.package(), message.name());
            pool.get_message_by_name(&name).is_some()
        });
        if !known {
            pool.add_file_descriptor_proto(file)
                .expect("the imports of the details are there");
        }
    }
    pool
});

/// A message in proto3's JSON mapping, with the protos' field names; values and
/// lists are there also when empty, messages within it only when set.
pub(crate) fn value<M: Message + Named>(message: &M) -> Result<serde_json::Value, Fault> {
    let fault = |error: &dyn fmt::Display| Fault::internal(format!("can't write JSON: {error}"));
    let descriptor = POOL
        .get_message_by_name(&format!("kvmlet.v1.{}", M::NAME))
        .ok_or_else(|| fault(&M::NAME))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| fault(&error))?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| fault(&error))
}

/// Drops error details that this build has no descriptor of; JSON can't hold
/// them.
pub(crate) fn drop_unknown_details(operation: &mut Operation) {
    if let Some(error) = &mut operation.error {
        error.details.retain(|detail| {
            let name = detail.type_url.rsplit('/').next().unwrap_or_default();
            POOL.get_message_by_name(name).is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, StatusExt};

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
