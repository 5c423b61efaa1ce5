//! Each way of getting a field wrong.

use crate::grpc::convert::{create, image, operation, page, power, root, text, time, update};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::{Accelerator, Cpu, Firmware};
use crate::model::ids::OperationId;
use crate::model::nic::{Attachment, NicModel};
use crate::model::reason::Reason;
use crate::model::request::{
    CreateVm, HardwareWish, ReplaceRoot, SizePolicy, StopWish, VmChanges, VmRequest,
};
use crate::model::stop::OnTimeout;
use crate::model::time::Timestamp;
use crate::proto::v1 as wire;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

const ID: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

fn wire_create() -> wire::CreateVmRequest {
    wire::CreateVmRequest {
        name: "a \"vm\" <&> 🦀".to_owned(),
        image_id: ID.to_owned(),
        ..Default::default()
    }
}

fn read_create(change: impl FnOnce(&mut wire::CreateVmRequest)) -> Result<CreateVm, Fault> {
    let mut given = wire_create();
    change(&mut given);
    match create::create_vm(given, "uid:0".to_owned())?.request {
        VmRequest::CreateVm(create) => Ok(*create),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(reason: Reason, field: &str, change: impl FnOnce(&mut wire::CreateVmRequest)) -> String {
    let fault = read_create(change).expect_err("a fault");
    assert_eq!(
        (fault.reason, fault.fields[0].field.as_str()),
        (reason, field),
        "{fault:?}"
    );
    fault.message
}

fn hardware(given: wire::Hardware) -> impl FnOnce(&mut wire::CreateVmRequest) {
    move |create| create.hardware = Some(given)
}

fn nic(given: wire::NewNic) -> impl FnOnce(&mut wire::CreateVmRequest) {
    move |create| {
        let fine = wire::NewNic {
            network_id: "lan".to_owned(),
            ..Default::default()
        };
        create.nics = vec![fine, given];
    }
}

fn one(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

#[test]
fn what_is_absent_takes_the_defaults_that_the_protos_name() {
    let create = read_create(|_| {}).unwrap();
    assert_eq!(create.name, "a \"vm\" <&> 🦀");
    assert_eq!(create.hardware, HardwareWish::default());
    assert!(create.vnc && create.root_volume.delete_with_vm && !create.start);
    assert_eq!((create.vm_id, create.hardware_profile_id), (None, None));
}

#[test]
fn ids_are_read_in_both_spellings_and_refused_otherwise() {
    let create = read_create(|c| c.vm_id = OTHER.to_owned()).unwrap();
    assert_eq!(create.vm_id.unwrap().to_string(), OTHER);
    for bad in [
        "x",
        "{0123456789abcdef0123456789abcdef}",
        "00000000-0000-0000-0000-000000000000",
    ] {
        refused(Reason::MalformedId, "vm_id", |c| c.vm_id = bad.to_owned());
        refused(Reason::MalformedId, "request_id", |c| {
            c.request_id = bad.to_owned()
        });
        refused(Reason::MalformedId, "image_id", |c| {
            c.image_id = bad.to_owned()
        });
    }
    refused(Reason::FieldRequired, "image_id", |c| c.image_id.clear());
    refused(Reason::MalformedId, "root_volume.volume_id", |c| {
        c.root_volume = Some(wire::NewVolume {
            volume_id: "x".to_owned(),
            ..Default::default()
        });
    });
}

#[test]
fn names_have_1_to_255_characters_that_xml_can_carry() {
    refused(Reason::FieldRequired, "name", |c| c.name.clear());
    for bad in [
        "a\0", "a\nb", "a\tb", "\u{7f}", "\u{85}", "\u{fffe}", "\u{ffff}",
    ] {
        let message = refused(Reason::FieldInvalid, "name", |c| c.name = bad.to_owned());
        assert!(message.contains("U+"), "{message}");
    }
    refused(Reason::FieldInvalid, "name", |c| c.name = "x".repeat(256));
    refused(Reason::FieldInvalid, "name", |c| {
        c.name = "x".repeat(10_000)
    });
    assert!(
        read_create(|c| c.name = "🦀".repeat(255)).is_ok(),
        "characters, not bytes"
    );
}

#[test]
fn descriptions_may_have_lines() {
    assert!(read_create(|c| c.description = "a\n\tb".to_owned()).is_ok());
    refused(Reason::FieldInvalid, "description", |c| {
        c.description = "a\rb".to_owned()
    });
    refused(Reason::FieldInvalid, "description", |c| {
        c.description = "x".repeat(4097)
    });
}

#[test]
fn labels_and_carried_values_have_their_limits() {
    refused(Reason::FieldInvalid, "labels[\"a b\"]", |c| {
        c.labels = one("a b", "")
    });
    refused(Reason::FieldInvalid, "labels[\"\"]", |c| {
        c.labels = one("", "x")
    });
    refused(Reason::FieldInvalid, "labels[\"a\"]", |c| {
        c.labels = one("a", &"x".repeat(256))
    });
    refused(Reason::FieldInvalid, "labels[\"a\"]", |c| {
        c.labels = one("a", "x\ny")
    });
    refused(Reason::FieldInvalid, "labels", |c| {
        c.labels = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
    });
    assert!(read_create(|c| c.labels = one("team.io/Name_1-x", "")).is_ok());

    refused(Reason::FieldInvalid, "annotations", |c| {
        c.annotations = one("a", &"x".repeat(256 << 10));
    });
    refused(Reason::FieldInvalid, "annotations[\"\"]", |c| {
        c.annotations = one("", "x")
    });
    refused(Reason::FieldInvalid, "annotations[\"a\"]", |c| {
        c.annotations = one("a", "\u{ffff}")
    });
    let kept = read_create(|c| c.annotations = one("any key\n", "{\"a\": 1}\r\n")).unwrap();
    assert_eq!(kept.annotations["any key\n"], "{\"a\": 1}\r\n");
}

#[test]
fn tags_are_few_short_and_of_a_known_form() {
    refused(Reason::TagUnknown, "system_tags[0]", |c| {
        c.system_tags = vec!["ephemeral::a::b".to_owned()];
    });
    refused(Reason::TagMalformed, "system_tags[0]", |c| {
        c.system_tags = vec!["x".to_owned()]
    });
    refused(Reason::FieldInvalid, "user_tags", |c| {
        c.user_tags = vec!["x".to_owned(); 65]
    });
    refused(Reason::FieldInvalid, "user_tags[1]", |c| {
        c.user_tags = vec!["x".to_owned(), "x".repeat(256)];
    });
    refused(Reason::FieldRequired, "user_tags[0]", |c| {
        c.user_tags = vec![String::new()]
    });
}

#[test]
fn hardware_is_checked_field_by_field() {
    let mib = 1 << 20;
    for memory_bytes in [1, 15 * mib, 16 * mib + 1, u64::MAX, u64::MAX - (mib - 1)] {
        let given = wire::Hardware {
            memory_bytes,
            ..Default::default()
        };
        refused(
            Reason::FieldInvalid,
            "hardware.memory_bytes",
            hardware(given),
        );
    }
    let mode = |cpu_mode: i32, cpu_model: &str| {
        let cpu_model = cpu_model.to_owned();
        hardware(wire::Hardware {
            cpu_mode,
            cpu_model,
            ..Default::default()
        })
    };
    refused(Reason::FieldInvalid, "hardware.cpu_mode", mode(99, ""));
    refused(Reason::FieldInvalid, "hardware.cpu_mode", mode(-1, ""));
    refused(Reason::FieldRequired, "hardware.cpu_model", mode(4, ""));
    refused(Reason::FieldInvalid, "hardware.cpu_model", mode(4, "a,b"));
    refused(
        Reason::FieldInvalid,
        "hardware.cpu_model",
        mode(1, "qemu64"),
    );
    refused(
        Reason::FieldInvalid,
        "hardware.cpu_model",
        mode(0, "qemu64"),
    );
    let machine = wire::Hardware {
        machine: "q35,x".to_owned(),
        ..Default::default()
    };
    refused(Reason::FieldInvalid, "hardware.machine", hardware(machine));
    let firmware = wire::Hardware {
        firmware: 3,
        ..Default::default()
    };
    refused(
        Reason::FieldInvalid,
        "hardware.firmware",
        hardware(firmware),
    );
    let accelerator = wire::Hardware {
        accelerator: 3,
        ..Default::default()
    };
    refused(
        Reason::FieldInvalid,
        "hardware.accelerator",
        hardware(accelerator),
    );

    let all = wire::Hardware {
        vcpus: 10_000, // how many are too many is the host's to say
        memory_bytes: 16 * mib,
        cpu_mode: wire::CpuMode::Custom.into(),
        cpu_model: "EPYC-Milan".to_owned(),
        machine: "pc-q35-9.2".to_owned(),
        firmware: wire::Firmware::Uefi.into(),
        accelerator: wire::Accelerator::Tcg.into(),
    };
    let wish = read_create(hardware(all)).unwrap().hardware;
    assert_eq!(
        (wish.vcpus, wish.memory_bytes),
        (Some(10_000), Some(Bytes::mib(16)))
    );
    assert_eq!(wish.cpu, Some(Cpu::Custom("EPYC-Milan".to_owned())));
    assert_eq!(wish.machine.as_deref(), Some("pc-q35-9.2"));
    assert_eq!(wish.firmware, Some(Firmware::Uefi));
    assert_eq!(wish.accelerator, Some(Accelerator::Tcg));
}

#[test]
fn volumes_are_checked_and_none_is_named_twice() {
    refused(Reason::FieldInvalid, "root_volume.image_id", |c| {
        c.root_volume = Some(wire::NewVolume {
            image_id: ID.to_owned(),
            ..Default::default()
        });
    });
    refused(Reason::FieldInvalid, "root_volume.size_bytes", |c| {
        c.root_volume = Some(wire::NewVolume {
            size_bytes: u64::MAX,
            ..Default::default()
        });
    });
    refused(Reason::FieldInvalid, "root_volume.qos.iops", |c| {
        let qos = Some(wire::VolumeQos {
            bytes_per_second: 1,
            iops: u64::MAX,
            ..Default::default()
        });
        c.root_volume = Some(wire::NewVolume {
            qos,
            ..Default::default()
        });
    });
    refused(
        Reason::FieldInvalid,
        "root_volume.qos.bytes_per_second",
        |c| {
            let qos = Some(wire::VolumeQos {
                bytes_per_second: 1,
                write_bytes_per_second: 1,
                ..Default::default()
            });
            c.root_volume = Some(wire::NewVolume {
                qos,
                ..Default::default()
            });
        },
    );
    refused(Reason::FieldRequired, "data_volumes[0].size_bytes", |c| {
        c.data_volumes = vec![wire::NewVolume::default()];
    });
    let data = wire::NewVolume {
        size_bytes: 1,
        volume_id: ID.to_owned(),
        ..Default::default()
    };
    refused(Reason::FieldInvalid, "data_volumes[1].volume_id", |c| {
        c.data_volumes = vec![data.clone(), data.clone()];
    });
    refused(Reason::FieldInvalid, "data_volumes[0].volume_id", |c| {
        c.root_volume = Some(wire::NewVolume {
            volume_id: ID.to_owned(),
            ..Default::default()
        });
        c.data_volumes = vec![data.clone()];
    });
    refused(Reason::FieldInvalid, "data_volumes", |c| {
        c.data_volumes = vec![
            wire::NewVolume {
                size_bytes: 1,
                ..Default::default()
            };
            65
        ];
    });
    let kept = wire::NewVolume {
        delete_with_vm: Some(false),
        ..data
    };
    let create = read_create(|c| c.data_volumes = vec![kept]).unwrap();
    assert!(!create.data_volumes[0].delete_with_vm);
}

#[test]
fn network_interfaces_are_checked_field_by_field() {
    let lan = || wire::NewNic {
        network_id: "lan".to_owned(),
        ..Default::default()
    };
    refused(
        Reason::FieldRequired,
        "nics[1].network_id",
        nic(wire::NewNic::default()),
    );
    let user = wire::new_nic::Attachment::User(wire::UserAttachment {});
    refused(
        Reason::FieldInvalid,
        "nics[1].network_id",
        nic(wire::NewNic {
            attachment: Some(user),
            ..lan()
        }),
    );
    for mac in ["x", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        let mac = mac.to_owned();
        refused(
            Reason::MacInvalid,
            "nics[1].mac",
            nic(wire::NewNic { mac, ..lan() }),
        );
    }
    for mtu in [1, 67, 65_536] {
        refused(
            Reason::FieldInvalid,
            "nics[1].mtu",
            nic(wire::NewNic { mtu, ..lan() }),
        );
    }
    refused(
        Reason::FieldInvalid,
        "nics[1].model",
        nic(wire::NewNic { model: 9, ..lan() }),
    );
    refused(Reason::FieldInvalid, "nics[1].ip_addresses", {
        nic(wire::NewNic {
            ip_addresses: vec!["::1".to_owned(); 65],
            ..lan()
        })
    });
    refused(Reason::FieldInvalid, "nics[1].metadata", {
        nic(wire::NewNic {
            metadata: one("a", &"x".repeat(16 << 10)),
            ..lan()
        })
    });
    refused(Reason::FieldInvalid, "nics", |c| c.nics = vec![lan(); 17]);
    let twice = wire::NewNic {
        mac: "52:54:00:00:00:01".to_owned(),
        ..lan()
    };
    refused(Reason::FieldInvalid, "nics[1].mac", |c| {
        c.nics = vec![twice.clone(), twice]
    });
    let twice = wire::NewNic {
        nic_id: ID.to_owned(),
        ..lan()
    };
    refused(Reason::FieldInvalid, "nics[1].nic_id", |c| {
        c.nics = vec![twice.clone(), twice]
    });
    let made = read_create(nic(wire::NewNic { mtu: 9000, ..lan() })).unwrap();
    assert_eq!((made.nics[1].mtu, made.nics[0].mtu), (Some(9000), None));
    assert_eq!(made.nics[1].model, NicModel::Virtio);
}

#[test]
fn bridges_and_libvirt_networks_have_possible_names() {
    let bridge = |name: &str, vlan| {
        let name = name.to_owned();
        nic(wire::NewNic {
            attachment: Some(wire::new_nic::Attachment::Bridge(wire::BridgeAttachment {
                name,
                vlan,
            })),
            ..Default::default()
        })
    };
    refused(Reason::FieldRequired, "nics[1].bridge.name", bridge("", 0));
    for name in ["a/b", "a b", "a:b", "sixteen-letters-", "..", "br\u{a0}0"] {
        refused(Reason::FieldInvalid, "nics[1].bridge.name", bridge(name, 0));
    }
    for vlan in [4095, 65_537] {
        refused(
            Reason::FieldInvalid,
            "nics[1].bridge.vlan",
            bridge("br0", vlan),
        );
    }
    let made = read_create(bridge("br0", 4094)).unwrap();
    let expected = Attachment::Bridge {
        name: "br0".to_owned(),
        vlan: Some(4094),
    };
    assert_eq!(made.nics[1].attachment, Some(expected));

    let network = |name: &str| {
        let name = name.to_owned();
        nic(wire::NewNic {
            attachment: Some(wire::new_nic::Attachment::LibvirtNetwork(
                wire::LibvirtNetworkAttachment { name },
            )),
            ..Default::default()
        })
    };
    refused(
        Reason::FieldRequired,
        "nics[1].libvirt_network.name",
        network(""),
    );
    refused(
        Reason::FieldInvalid,
        "nics[1].libvirt_network.name",
        network("a/b"),
    );
    refused(
        Reason::FieldInvalid,
        "nics[1].libvirt_network.name",
        network("a\nb"),
    );
}

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
    match update::update_vm(given, "uid:0".to_owned())?.request {
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
    let no_vm = update::update_vm(wire::UpdateVmRequest::default(), String::new()).unwrap_err();
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
    match power::stop_vm(given, "uid:0".to_owned())?.request {
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
            String::new(),
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
        power::set_vm_power_state(given, String::new()).unwrap_err()
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
    match root::replace_root(given, "uid:0".to_owned())?.request {
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
        let fault = image::import_image(given, String::new()).unwrap_err();
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
    let (_, import) = image::import_image(given, String::new()).unwrap();
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
