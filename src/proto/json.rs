//! Messages of the API as JSON: proto3's own mapping with the field names of the
//! protos, made from the descriptors, so that no message needs code here.
//!
//! In that mapping 64-bit numbers are strings and enums are their full names.

use super::v1::{DESCRIPTORS, Operation};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use std::sync::LazyLock;

/// Why a message can't be written as JSON.
pub type JsonError = Box<dyn std::error::Error + Send + Sync>;

/// All messages of the API, with those that an error may carry.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::decode(DESCRIPTORS).expect("build.rs wrote valid descriptors");
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

/// A message of `kvmlet.v1` called `name` in proto3's JSON mapping, with the
/// protos' field names; values and lists are there also when empty, messages
/// within it only when set.
///
/// # Errors
/// If there is no such message, or it has what JSON can't hold.
pub fn value(name: &str, message: &impl Message) -> Result<serde_json::Value, JsonError> {
    let descriptor = POOL
        .get_message_by_name(&format!("kvmlet.v1.{name}"))
        .ok_or_else(|| format!("there is no message {name}"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false);
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// Drops error details that this build has no descriptor of; JSON can't hold
/// them.
pub fn drop_unknown_details(operation: &mut Operation) {
    if let Some(error) = &mut operation.error {
        error.details.retain(|detail| {
            let name = detail.type_url.rsplit('/').next().unwrap_or_default();
            POOL.get_message_by_name(name).is_some()
        });
    }
}
