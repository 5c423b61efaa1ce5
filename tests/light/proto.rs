//! The contract against its own rules: what every comment must say, which
//! reasons it may name, and how enums begin.

use kvmlet::model::reason::Reason;
use kvmlet::proto::v1::DESCRIPTORS;
use prost::Message;
use prost_types::{EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The numbers of the fields that a path in the source information is made of
/// (google/protobuf/descriptor.proto).
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const METHODS: i32 = 2;
const FIELDS: i32 = 2;
const VALUES: i32 = 2;

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("build.rs wrote it");
    let ours: Vec<_> = set
        .file
        .into_iter()
        .filter(|file| file.package().starts_with("kvmlet."))
        .collect();
    assert_eq!(ours.len(), 11, "all files of the contract are compiled in");
    ours
}

fn index(at: usize) -> i32 {
    i32::try_from(at).expect("few")
}

/// The comments of a file by the paths of what they are about.
fn comments(file: &FileDescriptorProto) -> HashMap<Vec<i32>, String> {
    let source = file
        .source_code_info
        .as_ref()
        .expect("comments are compiled in");
    source
        .location
        .iter()
        .map(|location| {
            (
                location.path.clone(),
                location.leading_comments().to_owned(),
            )
        })
        .collect()
}

/// Every RPC with its comment.
fn rpcs() -> Vec<(String, String)> {
    let mut rpcs = Vec::new();
    for file in files() {
        let comments = comments(&file);
        for (s, service) in file.service.iter().enumerate() {
            for (m, method) in service.method.iter().enumerate() {
                let path = vec![SERVICES, index(s), METHODS, index(m)];
                let comment = comments.get(&path).cloned().unwrap_or_default();
                rpcs.push((format!("{}.{}", service.name(), method.name()), comment));
            }
        }
    }
    assert_eq!(rpcs.len(), 36, "all services are compiled in");
    rpcs
}

/// The words of a text that are written like reasons.
fn shouted(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.contains('_') && word.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter(|word| word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn every_rpc_says_what_when_repeat_returns_and_reasons_in_this_order() {
    for (rpc, comment) in rpcs() {
        let mut last = 0;
        for part in ["When: ", "Repeat: ", "Returns: ", "Reasons: "] {
            // A part may begin a line or follow another on it.
            let text = comment.replace('\n', " ");
            let at = text
                .find(part)
                .unwrap_or_else(|| panic!("{rpc} does not say {part:?}"));
            assert!(
                at > last,
                "{rpc}: {part:?} is out of order, or nothing comes before it"
            );
            last = at;
        }
    }
}

#[test]
fn every_reason_that_the_protos_name_exists() {
    let reasons: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    for (rpc, comment) in rpcs() {
        let (_, named) = comment.split_once("Reasons: ").expect("see the test above");
        for word in shouted(named) {
            assert!(
                reasons.contains(word.as_str()),
                "{rpc} names {word}, which is no reason"
            );
        }
    }
}

#[test]
fn every_shouted_word_in_a_comment_is_a_reason_or_a_value_of_an_enum() {
    let mut known: HashSet<String> = Reason::ALL
        .iter()
        .map(|reason| reason.as_str().to_owned())
        .collect();
    for file in files() {
        for found in enums(&file) {
            let prefix = prefix(found.name());
            for value in &found.value {
                known.insert(value.name().to_owned());
                known.insert(value.name().trim_start_matches(&prefix).to_owned());
            }
        }
    }
    for file in files() {
        for comment in comments(&file).values() {
            for word in shouted(comment) {
                assert!(
                    known.contains(&word),
                    "{}: {word} is nowhere defined",
                    file.name()
                );
            }
        }
    }
}

#[test]
fn every_enum_begins_with_unspecified_and_its_values_with_its_name() {
    for file in files() {
        for found in enums(&file) {
            let prefix = prefix(found.name());
            let zero = &found.value[0];
            assert_eq!(
                (zero.number(), zero.name()),
                (0, format!("{prefix}UNSPECIFIED").as_str())
            );
            for value in &found.value {
                assert!(value.name().starts_with(&prefix), "{}", value.name());
            }
        }
    }
}

#[test]
fn everything_in_the_contract_has_a_comment() {
    for file in files() {
        let comments = comments(&file);
        let check = |path: Vec<i32>, name: String| {
            let comment = comments.get(&path).map_or("", |comment| comment.trim());
            assert!(
                !comment.is_empty(),
                "{}: {name} has no comment",
                file.name()
            );
        };
        for (s, service) in file.service.iter().enumerate() {
            check(vec![SERVICES, index(s)], service.name().to_owned());
        }
        for (m, message) in file.message_type.iter().enumerate() {
            check(vec![MESSAGES, index(m)], message.name().to_owned());
            for (f, field) in message.field.iter().enumerate() {
                let path = vec![MESSAGES, index(m), FIELDS, index(f)];
                check(path, format!("{}.{}", message.name(), field.name()));
            }
        }
        for (e, found) in file.enum_type.iter().enumerate() {
            check(vec![ENUMS, index(e)], found.name().to_owned());
            for (v, value) in found.value.iter().enumerate() {
                check(
                    vec![ENUMS, index(e), VALUES, index(v)],
                    value.name().to_owned(),
                );
            }
        }
    }
}

fn enums(file: &FileDescriptorProto) -> impl Iterator<Item = &EnumDescriptorProto> {
    file.enum_type.iter().chain(
        file.message_type
            .iter()
            .flat_map(|message| &message.enum_type),
    )
}

/// `VmState` → `VM_STATE_`.
fn prefix(name: &str) -> String {
    let mut prefix = String::new();
    for (at, c) in name.chars().enumerate() {
        if at > 0 && c.is_ascii_uppercase() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    prefix + "_"
}
