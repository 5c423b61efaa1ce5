//! Bad input: each with its code, its reason and the path of its field, and
//! nothing left behind.

use crate::support::api::{Api, Start, id, small};
use crate::support::daemon::Daemon;
use crate::support::refusal::{Refusal, refused};
use kvmlet::proto::v1::*;
use tonic::Code;

mod images;

/// All that a refused request must leave as it is.
#[derive(Debug, PartialEq)]
struct Everything {
    files: Vec<String>,
    vms: Vec<Vm>,
    volumes: Vec<Volume>,
    images: Vec<Image>,
    operations: Vec<Operation>,
    foreign: u32,
}

impl Everything {
    async fn of(daemon: &Daemon) -> Self {
        let api = daemon.api();
        let all = ListVolumesRequest::default();
        let volumes = api.volumes().list_volumes(all).await.unwrap();
        let all = ListImagesRequest::default();
        let images = api.images().list_images(all).await.unwrap();
        Self {
            files: daemon.pool_files(),
            vms: api.all_vms().await,
            volumes: volumes.into_inner().volumes,
            images: images.into_inner().images,
            operations: api.all_operations().await,
            foreign: api.node().await.foreign_domains,
        }
    }
}

type Change = Box<dyn Fn(&mut CreateVmRequest)>;

struct Case {
    what: &'static str,
    change: Change,
    code: Code,
    reason: &'static str,
    fields: &'static [&'static str],
}

fn case(
    what: &'static str,
    code: Code,
    reason: &'static str,
    fields: &'static [&'static str],
    change: impl Fn(&mut CreateVmRequest) + 'static,
) -> Case {
    Case {
        what,
        change: Box::new(change),
        code,
        reason,
        fields,
    }
}

/// Cases that are refused for the value of a field.
fn invalid(
    what: &'static str,
    reason: &'static str,
    fields: &'static [&'static str],
    change: impl Fn(&mut CreateVmRequest) + 'static,
) -> Case {
    case(what, Code::InvalidArgument, reason, fields, change)
}

fn nic(network_id: &str) -> NewNic {
    NewNic {
        network_id: network_id.to_owned(),
        ..Default::default()
    }
}

fn mac(mac: &str) -> NewNic {
    NewNic {
        mac: mac.to_owned(),
        ..nic("default")
    }
}

fn root(request: &mut CreateVmRequest) -> &mut NewVolume {
    request.root_volume.get_or_insert_default()
}

fn hardware(request: &mut CreateVmRequest) -> &mut Hardware {
    request.hardware.get_or_insert_default()
}

fn ids() -> Vec<Case> {
    vec![
        invalid("a malformed id", "MALFORMED_ID", &["vm_id"], |r| {
            r.vm_id = "not-a-uuid".to_owned();
        }),
        invalid("a request id", "MALFORMED_ID", &["request_id"], |r| {
            r.request_id = "{}".to_owned();
        }),
        invalid("an id with a path", "MALFORMED_ID", &["vm_id"], |r| {
            r.vm_id = "../../etc/passwd".to_owned();
        }),
        invalid("an image id", "MALFORMED_ID", &["image_id"], |r| {
            r.image_id = "x".to_owned();
        }),
        invalid("no image", "FIELD_REQUIRED", &["image_id"], |r| {
            r.image_id = String::new();
        }),
        case(
            "an unknown image",
            Code::NotFound,
            "IMAGE_NOT_FOUND",
            &["image_id"],
            |r| r.image_id = id(),
        ),
        invalid(
            "a volume id",
            "MALFORMED_ID",
            &["root_volume.volume_id"],
            |r| root(r).volume_id = "1".to_owned(),
        ),
        invalid("a nic id", "MALFORMED_ID", &["nics[1].nic_id"], |r| {
            r.nics = vec![
                nic("default"),
                NewNic {
                    nic_id: "1".to_owned(),
                    ..nic("default")
                },
            ];
        }),
        case(
            "an unknown profile",
            Code::NotFound,
            "PROFILE_NOT_FOUND",
            &["hardware_profile_id"],
            |r| r.hardware_profile_id = "huge".to_owned(),
        ),
        case(
            "an unknown network",
            Code::NotFound,
            "NETWORK_NOT_FOUND",
            &["nics[0].network_id"],
            |r| r.nics = vec![nic("elsewhere")],
        ),
        case(
            "an unknown pool",
            Code::NotFound,
            "POOL_NOT_FOUND",
            &["root_volume.pool"],
            |r| root(r).pool = "elsewhere".to_owned(),
        ),
    ]
}

fn texts() -> Vec<Case> {
    let name = |what, name: &'static str| {
        invalid(what, "FIELD_INVALID", &["name"], move |r| {
            r.name = name.to_owned();
        })
    };
    vec![
        name("a newline", "a\nb"),
        name("NUL", "a\0b"),
        name("an escape", "\u{1b}[31m"),
        name("a noncharacter", "a\u{ffff}"),
        invalid("10,000 characters", "FIELD_INVALID", &["name"], |r| {
            r.name = "n".repeat(10_000);
        }),
        invalid("no name", "FIELD_REQUIRED", &["name"], |r| r.name.clear()),
        invalid(
            "NUL in the description",
            "FIELD_INVALID",
            &["description"],
            |r| r.description = "\0".to_owned(),
        ),
        invalid(
            "annotations of 300 KiB",
            "FIELD_INVALID",
            &["annotations"],
            |r| {
                r.annotations.insert("a".to_owned(), "a".repeat(300 << 10));
            },
        ),
        case(
            "a huge request",
            Code::ResourceExhausted,
            "REQUEST_TOO_LARGE",
            &[],
            |r| {
                r.annotations.insert("a".to_owned(), "a".repeat(5 << 20));
            },
        ),
    ]
}

fn machines() -> Vec<Case> {
    vec![
        invalid("0 vCPUs", "FIELD_REQUIRED", &["hardware.vcpus"], |r| {
            hardware(r).vcpus = 0;
        }),
        invalid("10,000 vCPUs", "FIELD_INVALID", &["hardware.vcpus"], |r| {
            hardware(r).vcpus = 10_000;
        }),
        invalid(
            "no memory",
            "FIELD_REQUIRED",
            &["hardware.memory_bytes"],
            |r| hardware(r).memory_bytes = 0,
        ),
        invalid(
            "a byte of memory",
            "FIELD_INVALID",
            &["hardware.memory_bytes"],
            |r| hardware(r).memory_bytes = 1,
        ),
        case(
            "more memory than the host",
            Code::ResourceExhausted,
            "HOST_MEMORY",
            &["hardware.memory_bytes"],
            |r| hardware(r).memory_bytes = 1 << 50,
        ),
        invalid(
            "a machine that is none",
            "FIELD_INVALID",
            &["hardware.machine"],
            |r| hardware(r).machine = "q35,accel=kvm".to_owned(),
        ),
        invalid(
            "an unknown firmware",
            "FIELD_INVALID",
            &["hardware.firmware"],
            |r| hardware(r).firmware = 77,
        ),
    ]
}

fn nics() -> Vec<Case> {
    let bad = |what, address: &'static str| {
        invalid(what, "MAC_INVALID", &["nics[0].mac"], move |r| {
            r.nics = vec![mac(address)];
        })
    };
    vec![
        bad("a multicast MAC", "01:00:5e:00:00:01"),
        bad("a broadcast MAC", "ff:ff:ff:ff:ff:ff"),
        bad("a zero MAC", "00:00:00:00:00:00"),
        bad("no MAC at all", "<mac/>"),
        case(
            "a MAC in use",
            Code::AlreadyExists,
            "MAC_IN_USE",
            &["nics[0].mac"],
            |r| r.nics = vec![mac("52:54:00:aa:bb:cc")],
        ),
        invalid("a MAC twice", "FIELD_INVALID", &["nics[1].mac"], |r| {
            r.nics = vec![mac("52:54:00:00:00:01"), mac("52:54:00:00:00:01")];
        }),
        invalid("17 interfaces", "FIELD_INVALID", &["nics"], |r| {
            r.nics = vec![nic("default"); 17];
        }),
        invalid(
            "an interface to nowhere",
            "FIELD_REQUIRED",
            &["nics[0].network_id"],
            |r| r.nics = vec![NewNic::default()],
        ),
        invalid(
            "a bridge with a path",
            "FIELD_INVALID",
            &["nics[0].bridge.name"],
            |r| {
                r.nics = vec![NewNic {
                    attachment: Some(new_nic::Attachment::Bridge(BridgeAttachment {
                        name: "../br0".to_owned(),
                        vlan: 0,
                    })),
                    ..Default::default()
                }];
            },
        ),
    ]
}

fn volumes() -> Vec<Case> {
    vec![
        case(
            "a full pool",
            Code::ResourceExhausted,
            "POOL_FULL",
            &[],
            |r| {
                root(r).size_bytes = 60 << 40;
            },
        ),
        case(
            "a pool that is full of data",
            Code::ResourceExhausted,
            "POOL_FULL",
            &[],
            |r| {
                r.data_volumes = vec![
                    NewVolume {
                        size_bytes: 60 << 40,
                        ..Default::default()
                    };
                    2
                ];
            },
        ),
        invalid(
            "an exbibyte",
            "FIELD_INVALID",
            &["root_volume.size_bytes"],
            |r| root(r).size_bytes = 1 << 60,
        ),
        invalid(
            "less than the image",
            "VOLUME_TOO_SMALL",
            &["root_volume.size_bytes"],
            |r| root(r).size_bytes = 512 << 10,
        ),
        invalid(
            "an empty volume of no size",
            "FIELD_REQUIRED",
            &["data_volumes[0].size_bytes"],
            |r| r.data_volumes = vec![NewVolume::default()],
        ),
        invalid("65 volumes", "FIELD_INVALID", &["data_volumes"], |r| {
            r.data_volumes = vec![
                NewVolume {
                    size_bytes: 1 << 20,
                    ..Default::default()
                };
                65
            ];
        }),
        invalid(
            "a qcow2 volume that is shared",
            "FIELD_INVALID",
            &["data_volumes[0].shareable"],
            |r| {
                r.data_volumes = vec![NewVolume {
                    size_bytes: 1 << 20,
                    shareable: true,
                    ..Default::default()
                }];
            },
        ),
        invalid(
            "an image twice",
            "FIELD_INVALID",
            &["root_volume.image_id"],
            |r| root(r).image_id = r.image_id.clone(),
        ),
    ]
}

fn tags() -> Vec<Case> {
    let tags = |what, reason, fields, tags: &'static [&'static str]| {
        invalid(what, reason, fields, move |r| {
            r.system_tags = tags.iter().map(ToString::to_string).collect();
        })
    };
    vec![
        tags("no tag", "TAG_MALFORMED", &["system_tags[0]"], &["fast"]),
        tags(
            "an unknown tag",
            "TAG_UNKNOWN",
            &["system_tags[0]"],
            &["disk::speed::high"],
        ),
        tags(
            "a pool that is none",
            "TAG_MALFORMED",
            &["system_tags[0]"],
            &["ceph::rootPoolName::"],
        ),
        tags(
            "a pool with an option",
            "TAG_MALFORMED",
            &["system_tags[0]"],
            &["ceph::rootPoolName::a:conf=/etc/shadow"],
        ),
        tags(
            "a tag twice",
            "TAG_DUPLICATE",
            &["system_tags[1]"],
            &["ceph::rootPoolName::a", "ceph::rootPoolName::b"],
        ),
        case(
            "a Ceph pool without Ceph",
            Code::FailedPrecondition,
            "POOL_NOT_CEPH",
            &["system_tags"],
            |r| r.system_tags = vec!["ceph::rootPoolName::fast".to_owned()],
        ),
        case(
            "a Ceph pool that is none",
            Code::FailedPrecondition,
            "POOL_NOT_CEPH",
            &["system_tags"],
            |r| r.system_tags = vec!["ceph::rootPoolName::default".to_owned()],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_creation_is_refused_by_its_field_and_leaves_nothing_behind() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let first = CreateVmRequest {
        nics: vec![mac("52:54:00:aa:bb:cc")],
        ..small(&image)
    };
    api.done(api.vms().create_vm(first.clone()).await).await;
    let before = Everything::of(&daemon).await;
    let mut wrong = Vec::new();
    let cases = [ids(), texts(), machines(), nics(), volumes(), tags()];
    for case in cases.into_iter().flatten() {
        for validate_only in [false, true] {
            let mut request = CreateVmRequest {
                validate_only,
                ..small(&image)
            };
            (case.change)(&mut request);
            let refusal = match api.vms().create_vm(request).await {
                Ok(answer) => {
                    wrong.push(format!("{}: {answer:?}", case.what));
                    continue;
                }
                Err(status) => Refusal::from(&status),
            };
            if refusal.brief() != (case.code, case.reason, case.fields.to_vec()) {
                wrong.push(format!("{}: {refusal:?}", case.what));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let taken = CreateVmRequest {
        root_volume: Some(NewVolume {
            volume_id: before.vms[0].root_volume_id.clone(),
            ..Default::default()
        }),
        ..small(&image)
    };
    let refusal = refused(api.vms().create_vm(taken).await);
    assert_eq!(
        refusal.brief(),
        (
            Code::AlreadyExists,
            "VOLUME_EXISTS",
            vec!["root_volume.volume_id"]
        )
    );
    assert_eq!(Everything::of(&daemon).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_with_anything_that_can_be_written_come_back_the_same() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    for name in [
        "\"quotes\" and 'quotes'",
        "<domain><name>&amp;</name>",
        "]]> <!-- -->",
        "emoji \u{1f600}\u{1f468}\u{200d}\u{1f469}",
        "$(reboot); `reboot` %s \\ ../..",
        "ÄÖÜ 中文 עברית",
    ] {
        let request = CreateVmRequest {
            name: name.to_owned(),
            description: format!("{name}\nand\tmore"),
            labels: [("key".to_owned(), name.to_owned())].into(),
            annotations: [(name.to_owned(), name.to_owned())].into(),
            start: true,
            ..small(&image)
        };
        api.done(api.vms().create_vm(request.clone()).await).await;
        let vm = api.vm(&request.vm_id).await.unwrap();
        assert_eq!(vm.name, name);
        assert_eq!(vm.description, request.description);
        assert_eq!(vm.labels, request.labels);
        assert_eq!(vm.annotations, request.annotations);
        assert_eq!(vm.state(), VmState::Running);
    }
}

// Of some requests the id is all there is.
#[allow(clippy::needless_update)]
#[tokio::test(flavor = "multi_thread")]
async fn every_call_refuses_malformed_and_unknown_ids() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let vm = api.create(&image, Start::No).await;
    let before = Everything::of(&daemon).await;
    macro_rules! both {
        ($($client:ident $call:ident $request:ident { $field:ident $(, $more:ident: $value:expr)* } $unknown:literal;)*) => {
            $({
                let name = stringify!($field);
                let ask = async |id: String| {
                    let request = $request { $field: id, $($more: $value,)* ..Default::default() };
                    refused(api.$client().$call(request).await)
                };
                let what = stringify!($call);
                let malformed = ask("zz".to_owned()).await;
                assert_eq!(malformed.brief(), (Code::InvalidArgument, "MALFORMED_ID", vec![name]), "{what}");
                let absent = ask(String::new()).await;
                assert_eq!(absent.brief(), (Code::InvalidArgument, "FIELD_REQUIRED", vec![name]), "{what}");
                let unknown = ask(id()).await;
                assert_eq!((unknown.code, unknown.reason.as_str()), (Code::NotFound, $unknown), "{what}");
            })*
        };
    }
    both! {
        vms get_vm GetVmRequest { vm_id } "VM_NOT_FOUND";
        vms delete_vm DeleteVmRequest { vm_id } "VM_NOT_FOUND";
        vms recover_vm RecoverVmRequest { vm_id } "VM_NOT_FOUND";
        vms expunge_vm ExpungeVmRequest { vm_id } "VM_NOT_FOUND";
        vms start_vm StartVmRequest { vm_id } "VM_NOT_FOUND";
        vms stop_vm StopVmRequest { vm_id } "VM_NOT_FOUND";
        vms reboot_vm RebootVmRequest { vm_id } "VM_NOT_FOUND";
        vms reset_vm ResetVmRequest { vm_id } "VM_NOT_FOUND";
        vms pause_vm PauseVmRequest { vm_id } "VM_NOT_FOUND";
        vms resume_vm ResumeVmRequest { vm_id } "VM_NOT_FOUND";
        vms save_vm SaveVmRequest { vm_id } "VM_NOT_FOUND";
        vms set_vm_power_state SetVmPowerStateRequest { vm_id, power_state: 1 } "VM_NOT_FOUND";
        vms replace_root_volume ReplaceRootVolumeRequest { vm_id, image_id: image.clone() } "VM_NOT_FOUND";
        vms revert_root_volume RevertRootVolumeRequest { vm_id } "VM_NOT_FOUND";
        consoles get_vnc_console GetVncConsoleRequest { vm_id } "VM_NOT_FOUND";
        consoles capture_screenshot CaptureScreenshotRequest { vm_id } "VM_NOT_FOUND";
        images get_image GetImageRequest { image_id } "IMAGE_NOT_FOUND";
        images delete_image DeleteImageRequest { image_id } "IMAGE_NOT_FOUND";
        volumes get_volume GetVolumeRequest { volume_id } "VOLUME_NOT_FOUND";
        operations get_operation GetOperationRequest { operation_id } "OPERATION_NOT_FOUND";
        operations wait_operation WaitOperationRequest { operation_id } "OPERATION_NOT_FOUND";
        operations cancel_operation CancelOperationRequest { operation_id } "OPERATION_NOT_FOUND";
    }
    let replace = ReplaceRootVolumeRequest {
        vm_id: vm,
        image_id: id(),
        ..Default::default()
    };
    let unknown = refused(api.vms().replace_root_volume(replace).await);
    assert_eq!(
        unknown.brief(),
        (Code::NotFound, "IMAGE_NOT_FOUND", vec!["image_id"])
    );
    assert_eq!(Everything::of(&daemon).await, before);
}
