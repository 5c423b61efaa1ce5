//! Messages of any content, made from the descriptors: a field that is added to
//! the protos is tried from then on.

use crate::grpc::convert::{Asked, create, image, operation, page, power, root, update};
use crate::model::fault::Fault;
use crate::model::request::Caller;
use crate::proto::v1 as wire;
use proptest::prelude::*;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::LazyLock;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(wire::DESCRIPTORS).expect("build.rs wrote them"));

const ID: &str = "0123456789abcdef0123456789abcdef";

fn text(random: &mut StdRng) -> String {
    const TEXTS: [&str; 16] = [
        "",
        "",
        "a",
        ID,
        ID,
        "01234567-89ab-cdef-0123-456789abcdef",
        "00000000-0000-0000-0000-000000000000",
        "52:54:00:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "ceph::rootPoolName::vms",
        "br0",
        "hardware.vcpus",
        "<'\"&>🦀\u{202e}",
        "a\0b",
        "\u{fffe}",
        "line\nline\ttab\u{7f}",
    ];
    match random.random_range(0..20) {
        0 => "x".repeat(random.random_range(0..5000)),
        1 => "ü".repeat(random.random_range(200..300)),
        _ => TEXTS.choose(random).expect("not empty").to_string(),
    }
}

fn number(random: &mut StdRng) -> u64 {
    const NUMBERS: [u64; 12] = [
        0,
        1,
        2,
        67,
        68,
        4094,
        4095,
        65_536,
        1 << 24,
        1 << 30,
        i64::MAX as u64,
        u64::MAX,
    ];
    if random.random_bool(0.2) {
        random.random()
    } else {
        *NUMBERS.choose(random).expect("not empty")
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // any number will do
fn value(random: &mut StdRng, kind: &Kind, depth: u32) -> Value {
    match kind {
        Kind::Double => Value::F64(random.random()),
        Kind::Float => Value::F32(random.random()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(random) as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(random) as i64),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number(random) as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(random)),
        Kind::Bool => Value::Bool(random.random()),
        Kind::String => Value::String(text(random)),
        Kind::Bytes => Value::Bytes(text(random).into_bytes().into()),
        Kind::Enum(_) if random.random_bool(0.1) => Value::EnumNumber(number(random) as i32),
        Kind::Enum(_) => Value::EnumNumber(random.random_range(0..5)),
        Kind::Message(message) => Value::Message(any_message(random, message, depth + 1)),
    }
}

fn any_field(random: &mut StdRng, field: &FieldDescriptor, depth: u32) -> Value {
    let many = if random.random_bool(0.02) { 70 } else { 2 };
    if field.is_map() {
        let entry = field
            .kind()
            .as_message()
            .expect("maps are messages")
            .clone();
        let map: HashMap<MapKey, Value> = (0..random.random_range(0..=many))
            .map(|_| {
                let of = value(random, &entry.map_entry_value_field().kind(), depth);
                (MapKey::String(text(random)), of)
            })
            .collect();
        Value::Map(map)
    } else if field.is_list() {
        let kind = field.kind();
        Value::List(
            (0..random.random_range(0..=many))
                .map(|_| value(random, &kind, depth))
                .collect(),
        )
    } else {
        value(random, &field.kind(), depth)
    }
}

fn any_message(random: &mut StdRng, of: &MessageDescriptor, depth: u32) -> DynamicMessage {
    // Sparse messages get through, full ones find what is wrong.
    let usual = *[0.1, 0.7].choose(random).expect("not empty");
    let mut message = DynamicMessage::new(of.clone());
    for field in of.fields() {
        let there = if depth > 4 { 0.0 } else { usual };
        if random.random_bool(there) {
            let value = any_field(random, &field, depth);
            message.set_field(&field, value);
        }
    }
    message
}

/// A request of any content. What is needed is often right, so that what follows
/// is reached.
fn request<M: Message + Default>(name: &str, seed: u64) -> M {
    let descriptor = POOL
        .get_message_by_name(&format!("kvmlet.v1.{name}"))
        .expect(name);
    let mut random = StdRng::seed_from_u64(seed);
    let mut message = any_message(&mut random, &descriptor, 0);
    for (field, right) in [
        ("request_id", ID),
        ("vm_id", ID),
        ("image_id", ID),
        ("resource_id", ID),
        ("name", "a"),
        ("source", "/a"),
        ("page_token", ""),
    ] {
        if descriptor.get_field_by_name(field).is_some() && random.random_bool(0.9) {
            message.set_field_by_name(field, Value::String(right.to_owned()));
        }
    }
    M::decode(message.encode_to_vec().as_slice()).expect("the same message")
}

#[test]
fn the_made_messages_are_not_all_refused() {
    fn taken<M: Message + Default>(
        name: &str,
        read: fn(M, Caller) -> Result<Asked, Fault>,
    ) -> usize {
        (0..500)
            .filter(|seed| read(request(name, *seed), Caller::own("")).is_ok())
            .count()
    }
    for (name, taken) in [
        ("CreateVm", taken("CreateVmRequest", create::create_vm)),
        ("StopVm", taken("StopVmRequest", power::stop_vm)),
        (
            "SetVmPowerState",
            taken("SetVmPowerStateRequest", power::set_vm_power_state),
        ),
        (
            "ReplaceRootVolume",
            taken("ReplaceRootVolumeRequest", root::replace_root),
        ),
    ] {
        assert!(
            (10..490).contains(&taken),
            "{name}: {taken} of 500 are taken"
        );
    }
}

/// A refusal names fields, and each path begins with a field of the request.
fn check(name: &str, result: Result<(), Fault>) {
    let Err(fault) = result else { return };
    let descriptor = POOL
        .get_message_by_name(&format!("kvmlet.v1.{name}"))
        .expect(name);
    assert!(!fault.fields.is_empty(), "{name}: {fault:?}");
    for field in &fault.fields {
        let first = field.field.split(['.', '[']).next().unwrap_or_default();
        assert!(
            descriptor.get_field_by_name(first).is_some(),
            "{name}: {fault:?}"
        );
        assert!(
            field.field.chars().count() < 500 && field.problem.len() < 500,
            "{fault:?}"
        );
        assert!(!fault.message.contains(['\0', '\n']), "{fault:?}");
    }
}

fn convert<M: Message + Default>(
    name: &str,
    seed: u64,
    read: fn(M, Caller) -> Result<Asked, Fault>,
) {
    check(
        name,
        read(request(name, seed), Caller::own("uid:0")).map(drop),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_message_makes_a_conversion_panic_and_each_refusal_names_a_field(seed: u64) {
        convert("CreateVmRequest", seed, create::create_vm);
        convert("UpdateVmRequest", seed, update::update_vm);
        convert("DeleteVmRequest", seed, power::delete_vm);
        convert("RecoverVmRequest", seed, power::recover_vm);
        convert("ExpungeVmRequest", seed, power::expunge_vm);
        convert("StartVmRequest", seed, power::start_vm);
        convert("StopVmRequest", seed, power::stop_vm);
        convert("RebootVmRequest", seed, power::reboot_vm);
        convert("SetVmPowerStateRequest", seed, power::set_vm_power_state);
        convert("ReplaceRootVolumeRequest", seed, root::replace_root);
        convert("RevertRootVolumeRequest", seed, root::revert_root);
        let import = request("ImportImageRequest", seed);
        check("ImportImageRequest", image::import_image(import, Caller::own("")).map(drop));
        let list: wire::ListOperationsRequest = request("ListOperationsRequest", seed);
        check("ListOperationsRequest", operation::query(&list).map(drop));
    }

    #[test]
    fn any_page_token_is_read_or_refused(token in "\\PC{0,60}|[0-9a-f]{30,50}|[0-9a-fü]{48}") {
        drop(page::operations_after(&token));
        let show = |_: &u128| wire::Screenshot::default();
        drop(page::cut(&[1], |n| uuid::Uuid::from_u128(*n), 1, &token, show));
    }
}
