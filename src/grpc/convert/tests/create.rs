//! Each way of getting a field of CreateVm wrong, with its path.

use crate::grpc::convert::create;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::{Accelerator, Cpu, Firmware};
use crate::model::nic::{Attachment, NicModel};
use crate::model::reason::Reason;
use crate::model::request::{Caller, CreateVm, HardwareWish, VmRequest};
use crate::proto::v1 as wire;
use std::collections::HashMap;

pub(super) const ID: &str = "0123456789abcdef0123456789abcdef";
pub(super) const OTHER: &str = "11111111-2222-3333-4444-555555555555";

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
    match create::create_vm(given, Caller::own("uid:0"))?.request {
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

pub(super) fn one(key: &str, value: &str) -> HashMap<String, String> {
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
