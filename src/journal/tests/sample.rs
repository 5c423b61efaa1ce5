//! Records to write, with something in every field that could get lost.

use super::super::{Journal, Loaded};
use crate::model::bytes::Bytes;
use crate::model::hardware::{Accelerator, Cpu, Firmware, Hardware};
use crate::model::ids::{ImageId, NicId, OperationId, RequestId, VmId, VolumeId};
use crate::model::image::{Image, ImageFormat, ImageState};
use crate::model::lifecycle::{Resting, Seen, StateReason};
use crate::model::nic::{Attachment, MacAddress, Nic, NicModel};
use crate::model::operation::{
    Intent, Operation, OperationState, RollbackState, StepRecord, StepState,
};
use crate::model::request::{CreateVm, HardwareWish, NewVolume};
use crate::model::time::Timestamp;
use crate::model::trace::TraceParent;
use crate::model::vm::{Hypervisor, Life, Vm};
use crate::model::volume::{Volume, VolumeAttachment, VolumeFormat, VolumeKind, VolumeQos};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) fn vm(created_by: OperationId) -> Vm {
    let (id, image_id, nic) = (VmId::random(), ImageId::random(), NicId::random());
    let root = VolumeId::random();
    Vm {
        id,
        name: "a \"name\" <with> 'quotes'\nand \u{1F600}".to_owned(),
        description: String::new(),
        labels: BTreeMap::from([("tier".to_owned(), "web".to_owned())]),
        annotations: BTreeMap::new(),
        package: "small".to_owned(),
        platform: "Linux".to_owned(),
        os: "debian".to_owned(),
        image_id,
        hardware_profile_id: None,
        hardware: Hardware {
            vcpus: 2,
            memory: Bytes::gib(1),
            cpu: Cpu::Custom("qemu64".to_owned()),
            machine: "q35".to_owned(),
            firmware: Firmware::Uefi,
            accelerator: Accelerator::Tcg,
        },
        hypervisor: Hypervisor::Qemu,
        volumes: vec![Volume {
            id: root,
            name: "root".to_owned(),
            pool: "default".to_owned(),
            ceph_pool: None,
            kind: VolumeKind::Root,
            format: VolumeFormat::Qcow2,
            image_id: Some(image_id),
            size: Bytes(u64::MAX),
            actual_size: Bytes::ZERO,
            attachment: VolumeAttachment::Attached { device_index: 0 },
            shareable: false,
            qos: VolumeQos::default(),
            delete_with_vm: true,
            create_time: Timestamp(1),
            description: String::new(),
            annotations: BTreeMap::new(),
        }],
        nics: vec![Nic {
            id: nic,
            network_id: Some("lan".to_owned()),
            mac: MacAddress::derived(nic, id),
            device_index: 0,
            model: NicModel::Virtio,
            mtu: Some(9000),
            ip_addresses: vec!["10.0.0.7".to_owned()],
            metadata: BTreeMap::new(),
            attachment: Attachment::Bridge {
                name: "br0".to_owned(),
                vlan: Some(7),
            },
        }],
        vnc: true,
        system_tags: Vec::new(),
        user_tags: vec!["a".to_owned()],
        generation: 1,
        create_time: Timestamp(1),
        update_time: Timestamp(2),
        life: Life::Deleted {
            delete_time: Timestamp(3),
            expunge_time: Timestamp(4),
        },
        seen: Seen {
            resting: Resting::Stopped,
            reason: StateReason::GuestShutdown,
        },
        last_host_id: None,
        created_by,
        created_as: CreateVm {
            vm_id: Some(id),
            name: "a".to_owned(),
            description: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            package: String::new(),
            hardware_profile_id: None,
            hardware: HardwareWish::default(),
            image_id,
            root_volume: NewVolume::default(),
            data_volumes: Vec::new(),
            nics: Vec::new(),
            vnc: true,
            system_tags: Vec::new(),
            user_tags: Vec::new(),
            platform: String::new(),
            os: String::new(),
            start: true,
        },
    }
}

pub(super) fn image() -> Image {
    Image {
        id: ImageId::random(),
        name: "debian".to_owned(),
        description: String::new(),
        labels: BTreeMap::new(),
        os: String::new(),
        platform: String::new(),
        state: ImageState::Ready,
        pool: "default".to_owned(),
        source: "https://example.org/debian.qcow2".to_owned(),
        source_format: ImageFormat::Qcow2,
        source_sha256: "00".repeat(32),
        virtual_size: Bytes::gib(2),
        actual_size: Bytes::mib(300),
        create_time: Timestamp(5),
        imported_by: OperationId::random(),
        last_use_time: None,
    }
}

/// An operation that was asked for at `create_time` and has not ended.
pub(super) fn operation(create_time: u64) -> Operation {
    Operation {
        id: OperationId::random(),
        vm_id: Some(VmId::random()),
        image_id: None,
        intent: Intent::DeleteVm {
            stop: None,
            retention: Duration::from_millis(7_500),
            was_paused: false,
        },
        state: OperationState::Running,
        rollback: RollbackState::None,
        steps: vec![StepRecord {
            name: "stop".to_owned(),
            state: StepState::Running,
            start_time: Some(Timestamp(create_time)),
            end_time: None,
        }],
        progress_percent: 10,
        request_id: Some(RequestId::random()),
        request: serde_json::json!({"call": "delete_vm", "ü": [1, null, 2.5]}),
        caller: "uid:0".to_owned(),
        create_time: Timestamp(create_time),
        start_time: None,
        end_time: None,
        error: None,
        result: None,
        power_outcome: None,
        cancelled: None,
        trace: TraceParent::new(7, 8, true).map(|parent| parent.with_state("vendor=1")),
    }
}

pub(super) fn ended(create_time: u64, end_time: u64) -> Operation {
    Operation {
        state: OperationState::Succeeded,
        end_time: Some(Timestamp(end_time)),
        ..operation(create_time)
    }
}

pub(super) fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    (dir, path)
}

pub(super) fn open(path: &Path) -> (Journal, Loaded) {
    Journal::open(path).unwrap()
}
