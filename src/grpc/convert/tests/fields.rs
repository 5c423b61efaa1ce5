//! Each way of getting a field wrong in the requests other than CreateVm.

use super::create::{ID, OTHER, one};
use crate::grpc::convert::{image, operation, page, power, root, text, time, update};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::Firmware;
use crate::model::ids::OperationId;
use crate::model::reason::Reason;
use crate::model::request::{
    Caller, HardwareWish, ReplaceRoot, SizePolicy, StopWish, VmChanges, VmRequest,
};
use crate::model::stop::OnTimeout;
use crate::model::time::Timestamp;
use crate::proto::v1 as wire;
use std::time::Duration;
use uuid::Uuid;

fn read_update(paths: &[&str], vm: wire::Vm) -> Result<VmChanges, Fault> {
    let given = wire::UpdateVmRequest {
        vm: Some(wire::Vm {
            id: ID.to_owned(),
            ..vm
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    };
    match update::update_vm(given, Caller::own("uid:0"))?.request {
        VmRequest::UpdateVm(changes) => Ok(*changes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_update_takes_what_its_mask_names_and_nothing_else() {
    let vm = wire::Vm {
        name: "new".to_owned(),
        os: "Linux".to_owned(),
        description: "not looked at\0".to_owned(),
        ..Default::default()
    };
    let changes = read_update(&["name", "os", "platform"], vm).unwrap();
    assert_eq!(changes.name.as_deref(), Some("new"));
    assert_eq!(changes.os.as_deref(), Some("Linux"));
    assert_eq!(changes.platform.as_deref(), Some(""));
    assert_eq!(changes.description, None);
    assert!(!changes.changes_hardware());
}

#[test]
fn an_update_of_one_field_of_the_hardware_wishes_just_that() {
    let vm = wire::Vm {
        hardware: Some(wire::Hardware {
            vcpus: 4,
            memory_bytes: 1 << 30,
            ..Default::default()
        }),
        ..Default::default()
    };
    let wish = |paths: &[&str]| read_update(paths, vm.clone()).unwrap().hardware.unwrap();
    let only = HardwareWish {
        memory_bytes: Some(Bytes::gib(1)),
        ..Default::default()
    };
    assert_eq!(wish(&["hardware.memory_bytes"]), only);
    let both = HardwareWish {
        vcpus: Some(4),
        ..only
    };
    assert_eq!(wish(&["hardware"]), both);
    let reset = HardwareWish {
        firmware: Some(Firmware::Bios),
        ..both
    };
    assert_eq!(wish(&["hardware.firmware", "hardware"]), reset);
    assert_eq!(wish(&["hardware", "hardware.firmware"]), reset);
    let fault = read_update(&["hardware.vcpus"], wire::Vm::default()).unwrap_err();
    assert_eq!(fault.fields[0].field, "vm.hardware.vcpus");
}

#[test]
fn an_update_without_a_known_path_is_refused() {
    let refused = |paths: &[&str], reason, field: &str| {
        let fault = read_update(paths, wire::Vm::default()).unwrap_err();
        assert_eq!(
            (fault.reason, fault.fields[0].field.as_str()),
            (reason, field),
            "{fault:?}"
        );
        fault.message
    };
    refused(&[], Reason::FieldRequired, "update_mask");
    for path in [
        "state",
        "*",
        "hardware.",
        "hardware.x",
        "id",
        "",
        "hardware.vcpus.x",
    ] {
        let message = refused(&[path], Reason::FieldInvalid, "update_mask.paths[0]");
        assert!(message.contains(&format!("{path:?}")), "{message}");
    }
    refused(&["name"], Reason::FieldRequired, "vm.name");
    refused(
        &["description", "hardware"],
        Reason::FieldRequired,
        "vm.hardware",
    );
    refused(
        &["hardware_profile_id"],
        Reason::FieldRequired,
        "vm.hardware_profile_id",
    );
    let no_vm = update::update_vm(wire::UpdateVmRequest::default(), Caller::own("")).unwrap_err();
    assert_eq!(
        (no_vm.reason, no_vm.fields[0].field.as_str()),
        (Reason::FieldRequired, "vm")
    );
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn read_stop(policy: wire::StopPolicy) -> Result<StopWish, Fault> {
    let given = wire::StopVmRequest {
        vm_id: ID.to_owned(),
        stop_policy: Some(policy),
        ..Default::default()
    };
    match power::stop_vm(given, Caller::own("uid:0"))?.request {
        VmRequest::StopVm { stop_policy, .. } => Ok(stop_policy.expect("it was given")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stop_policy_says_which_and_its_times_are_sane() {
    let graceful = wire::StopPolicy {
        mode: wire::StopMode::Graceful.into(),
        ..Default::default()
    };
    let refused = |policy: wire::StopPolicy, reason, field: &str| {
        let fault = read_stop(policy).unwrap_err();
        assert_eq!(
            (fault.reason, fault.fields[0].field.as_str()),
            (reason, field),
            "{fault:?}"
        );
    };
    refused(
        wire::StopPolicy::default(),
        Reason::FieldRequired,
        "stop_policy.mode",
    );
    let unknown = wire::StopPolicy {
        mode: 7,
        ..Default::default()
    };
    refused(unknown, Reason::FieldInvalid, "stop_policy.mode");
    let unknown = wire::StopPolicy {
        on_timeout: 7,
        ..graceful
    };
    refused(unknown, Reason::FieldInvalid, "stop_policy.on_timeout");
    for timeout in [
        seconds(-1),
        seconds(0),
        seconds(86_401),
        seconds(i64::MIN),
        seconds(i64::MAX),
    ] {
        let policy = wire::StopPolicy {
            timeout,
            ..graceful
        };
        refused(policy, Reason::FieldInvalid, "stop_policy.timeout");
    }
    for nanos in [-1, 1_000_000_000, i32::MIN] {
        let timeout = Some(prost_types::Duration { seconds: 1, nanos });
        let policy = wire::StopPolicy {
            timeout,
            ..graceful
        };
        refused(policy, Reason::FieldInvalid, "stop_policy.timeout");
    }
    let hasty = wire::StopPolicy {
        resend_interval: seconds(0),
        ..graceful
    };
    refused(hasty, Reason::FieldInvalid, "stop_policy.resend_interval");
    let force = wire::StopPolicy {
        mode: wire::StopMode::Force.into(),
        ..Default::default()
    };
    let both = wire::StopPolicy {
        timeout: seconds(5),
        ..force
    };
    refused(both, Reason::FieldInvalid, "stop_policy.timeout");

    assert_eq!(read_stop(force).unwrap(), StopWish::Force);
    assert_eq!(
        read_stop(wire::StopPolicy {
            timeout: seconds(5),
            ..graceful
        })
        .unwrap(),
        StopWish::Graceful {
            timeout: Some(Duration::from_secs(5)),
            resend_interval: None,
            on_timeout: OnTimeout::Fail,
        }
    );
}

#[test]
fn a_retention_may_be_zero_and_not_negative() {
    let read = |retention| {
        let vm_id = ID.to_owned();
        power::delete_vm(
            wire::DeleteVmRequest {
                vm_id,
                retention,
                ..Default::default()
            },
            Caller::own(""),
        )
    };
    let VmRequest::DeleteVm { retention, .. } = read(seconds(0)).unwrap().request else {
        panic!("a DeleteVm");
    };
    assert_eq!(retention, Some(Duration::ZERO));
    for bad in [seconds(-1), seconds(i64::MAX)] {
        assert_eq!(read(bad).unwrap_err().fields[0].field, "retention");
    }
}

#[test]
fn a_power_state_must_be_said() {
    let read = |power_state| {
        let vm_id = ID.to_owned();
        let given = wire::SetVmPowerStateRequest {
            vm_id,
            power_state,
            ..Default::default()
        };
        power::set_vm_power_state(given, Caller::own("")).unwrap_err()
    };
    assert_eq!(read(0).reason, Reason::FieldRequired);
    assert_eq!(read(9).reason, Reason::FieldInvalid);
    assert_eq!(read(9).fields[0].field, "power_state");
}

fn read_replace(
    change: impl FnOnce(&mut wire::ReplaceRootVolumeRequest),
) -> Result<ReplaceRoot, Fault> {
    let mut given = wire::ReplaceRootVolumeRequest {
        vm_id: ID.to_owned(),
        image_id: OTHER.to_owned(),
        ..Default::default()
    };
    change(&mut given);
    match root::replace_root(given, Caller::own("uid:0"))?.request {
        VmRequest::ReplaceRootVolume(replace) => Ok(*replace),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_replacement_of_the_root_is_checked_field_by_field() {
    let refused = |reason, field: &str, change: fn(&mut wire::ReplaceRootVolumeRequest)| {
        let fault = read_replace(change).unwrap_err();
        assert_eq!(
            (fault.reason, fault.fields[0].field.as_str()),
            (reason, field),
            "{fault:?}"
        );
    };
    refused(Reason::FieldRequired, "vm_id", |r| r.vm_id.clear());
    refused(Reason::FieldRequired, "image_id", |r| r.image_id.clear());
    refused(Reason::MalformedId, "resource_id", |r| {
        r.resource_id = "x".to_owned()
    });
    refused(Reason::FieldRequired, "size_bytes", |r| r.size_policy = 3);
    refused(Reason::FieldInvalid, "size_bytes", |r| r.size_bytes = 1);
    refused(Reason::FieldInvalid, "size_policy", |r| r.size_policy = 4);
    refused(Reason::FieldInvalid, "keep_old_for", |r| {
        r.keep_old_for = seconds(-5)
    });
    refused(Reason::TagUnknown, "system_tags[0]", |r| {
        r.system_tags = vec!["a::b".to_owned()]
    });
    refused(Reason::FieldRequired, "health_check.sign", |r| {
        r.health_check = Some(wire::HealthCheck::default());
    });
    refused(Reason::FieldRequired, "health_check.timeout", |r| {
        r.health_check = Some(wire::HealthCheck {
            sign: 1,
            timeout: None,
        });
    });
    refused(Reason::FieldInvalid, "health_check", |r| {
        r.health_check = Some(wire::HealthCheck {
            sign: 1,
            timeout: seconds(5),
        });
    });
    assert_eq!(
        read_replace(|_| {}).unwrap().size_policy,
        SizePolicy::KeepLarger
    );
}

#[test]
fn an_import_is_checked_field_by_field() {
    let refused = |reason, field: &str, change: fn(&mut wire::ImportImageRequest)| {
        let mut given = wire::ImportImageRequest {
            source: "/images/a.qcow2".to_owned(),
            ..Default::default()
        };
        change(&mut given);
        let fault = image::import_image(given, Caller::own("")).unwrap_err();
        assert_eq!(
            (fault.reason, fault.fields[0].field.as_str()),
            (reason, field),
            "{fault:?}"
        );
    };
    refused(Reason::FieldRequired, "source", |i| i.source.clear());
    refused(Reason::FieldInvalid, "source", |i| i.source.push('\0'));
    refused(Reason::FieldInvalid, "format", |i| i.format = 3);
    refused(Reason::FieldInvalid, "sha256", |i| {
        i.sha256 = "0".repeat(63)
    });
    refused(Reason::FieldInvalid, "sha256", |i| {
        i.sha256 = "g".repeat(64)
    });
    refused(Reason::MalformedId, "image_id", |i| {
        i.image_id = "x".to_owned()
    });
    refused(Reason::FieldInvalid, "labels[\" \"]", |i| {
        i.labels = one(" ", "")
    });
    let given = wire::ImportImageRequest {
        source: "/images/a.qcow2".to_owned(),
        sha256: "AB".repeat(32),
        ..Default::default()
    };
    let (_, import) = image::import_image(given, Caller::own("")).unwrap();
    assert_eq!(import.sha256, Some("ab".repeat(32)));
}

#[test]
fn pages_follow_one_another_and_other_tokens_are_refused() {
    let all: Vec<u128> = (1..=5).collect();
    let show = |n: &u128| wire::Hardware {
        vcpus: u32::try_from(*n).unwrap(),
        ..Default::default()
    };
    let cut = |size, token: &str| {
        let page = page::cut(&all, |n| Uuid::from_u128(*n), size, token, show)?;
        let numbers: Vec<u32> = page.items.iter().map(|item| item.vcpus).collect();
        Ok::<_, Fault>((numbers, page.next, page.total))
    };
    let (first, next, total) = cut(2, "").unwrap();
    assert_eq!((first, total), (vec![1, 2], 5));
    let (second, next, _) = cut(2, &next).unwrap();
    assert_eq!(second, [3, 4]);
    let (last, next, _) = cut(2, &next).unwrap();
    assert_eq!((last, next.as_str()), (vec![5], ""));
    assert_eq!(cut(0, "").unwrap().0.len(), 5);
    assert_eq!(cut(5, "").unwrap().1, "");
    assert_eq!(cut(1001, "").unwrap_err().fields[0].field, "page_size");
    for token in ["x", "0123", ID.to_uppercase().trim_end_matches('F')] {
        let fault = cut(2, token).unwrap_err();
        assert_eq!(
            (fault.reason, fault.fields[0].field.as_str()),
            (Reason::FieldInvalid, "page_token")
        );
        assert!(page::operations_after(token).is_err());
    }
    let at = Some((Timestamp(12_345), OperationId(Uuid::from_u128(7))));
    assert_eq!(
        page::operations_after(&page::operations_token(at)).unwrap(),
        at
    );
    assert_eq!(page::operations_after("").unwrap(), None);
}

#[test]
fn a_page_is_no_larger_than_clients_take_and_has_one_at_least() {
    let all: Vec<u128> = (1..=5).collect();
    let page = |mib: usize, token: &str| {
        let show = |_: &u128| wire::Screenshot {
            png: vec![0; mib << 20],
        };
        let page = page::cut(&all, |n| Uuid::from_u128(*n), 0, token, show).unwrap();
        (page.items.len(), page.next)
    };
    let (taken, next) = page(1, "");
    assert_eq!(taken, 2, "two and their lengths; three are more than 3 MiB");
    assert_eq!(page(1, &next).0, 2);
    let (taken, next) = page(8, "");
    assert_eq!((taken, next.is_empty()), (1, false));
}

#[test]
fn a_list_of_operations_is_checked() {
    let read = |change: fn(&mut wire::ListOperationsRequest)| {
        let mut given = wire::ListOperationsRequest::default();
        change(&mut given);
        operation::query(&given).map_err(|fault| fault.fields[0].field.clone())
    };
    assert_eq!(read(|_| {}).unwrap().limit, 100);
    assert_eq!(
        read(|l| l.states = vec![1, 1, 3, 1]).unwrap().states.len(),
        2
    );
    assert_eq!(read(|l| l.states = vec![1, 0]).unwrap_err(), "states[1]");
    assert_eq!(read(|l| l.states = vec![99]).unwrap_err(), "states[0]");
    assert_eq!(read(|l| l.vm_id = "x".to_owned()).unwrap_err(), "vm_id");
    assert_eq!(read(|l| l.page_size = 5000).unwrap_err(), "page_size");
}

#[test]
fn a_wait_is_at_most_as_long_as_allowed() {
    let allowed = Duration::ZERO..=Duration::from_secs(600);
    let read = |given| time::duration("timeout", given, &allowed);
    assert_eq!(read(None).unwrap(), None);
    assert_eq!(read(seconds(600)).unwrap(), Some(Duration::from_secs(600)));
    assert_eq!(read(seconds(601)).unwrap_err().reason, Reason::FieldInvalid);
    let _: Option<OperationId> = text::id("operation_id", "").unwrap();
}
