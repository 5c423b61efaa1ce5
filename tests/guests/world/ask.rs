//! Everything that can be asked of a VM, as one list.

use crate::support::api::{Api, force, graceful, id, small};
use kvmlet::proto::v1::*;
use tonic::{Response, Status};

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Create,
    Start,
    StopForce,
    StopGently,
    Pause,
    Resume,
    Save,
    Discard,
    Reset,
    Reboot,
    Describe,
    Redefine,
    Replace,
    /// Keeps the former root for a second.
    ReplaceBriefly,
    Revert,
    Delete,
    Recover,
    Expunge,
    DeleteForGood,
}

impl Ask {
    /// Sends it; the answer is an operation that has begun.
    pub(crate) async fn send(
        self,
        api: &Api,
        vm_id: &str,
        image: &str,
    ) -> Result<Response<Operation>, Status> {
        let vm_id = vm_id.to_owned();
        let mut vms = api.vms();
        // Asks again and again: of several presses a guest that is being talked to
        // through a broken wire hears one.
        let gently = StopPolicy {
            resend_interval: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..graceful()
        };
        match self {
            Self::Create => {
                let request = CreateVmRequest {
                    vm_id,
                    start: true,
                    vnc: Some(NewVnc { enabled: false }),
                    hardware: Some(Hardware {
                        vcpus: 1,
                        memory_bytes: 128 << 20,
                        ..Default::default()
                    }),
                    ..small(image)
                };
                vms.create_vm(request).await
            }
            Self::Start => {
                let request = StartVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.start_vm(request).await
            }
            Self::StopForce | Self::StopGently => {
                let gently = (self == Self::StopGently).then_some(gently);
                let request = StopVmRequest {
                    vm_id,
                    stop_policy: Some(gently.unwrap_or_else(force)),
                    ..Default::default()
                };
                vms.stop_vm(request).await
            }
            Self::Pause => {
                let request = PauseVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.pause_vm(request).await
            }
            Self::Resume => {
                let request = ResumeVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.resume_vm(request).await
            }
            Self::Save => {
                let request = SaveVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.save_vm(request).await
            }
            Self::Discard => {
                let request = StopVmRequest {
                    vm_id,
                    discard_saved_memory: true,
                    ..Default::default()
                };
                vms.stop_vm(request).await
            }
            Self::Reset => {
                let request = ResetVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.reset_vm(request).await
            }
            Self::Reboot => {
                let request = RebootVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.reboot_vm(request).await
            }
            Self::Describe => {
                let vm = Vm {
                    id: vm_id,
                    name: id(),
                    ..Default::default()
                };
                vms.update_vm(update(vm, "name")).await
            }
            Self::Redefine => {
                let vm = Vm {
                    id: vm_id,
                    hardware: Some(Hardware {
                        vcpus: 2,
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                vms.update_vm(update(vm, "hardware.vcpus")).await
            }
            Self::Replace | Self::ReplaceBriefly => {
                let second = prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                };
                let request = ReplaceRootVolumeRequest {
                    vm_id,
                    image_id: image.to_owned(),
                    stop_policy: Some(force()),
                    start_after: true,
                    keep_old_for: (self == Self::ReplaceBriefly).then_some(second),
                    ..Default::default()
                };
                vms.replace_root_volume(request).await
            }
            Self::Revert => {
                let request = RevertRootVolumeRequest {
                    vm_id,
                    stop_policy: Some(force()),
                    start_after: true,
                    ..Default::default()
                };
                vms.revert_root_volume(request).await
            }
            Self::Delete | Self::DeleteForGood => {
                let request = DeleteVmRequest {
                    vm_id,
                    stop_policy: Some(force()),
                    retention: (self == Self::DeleteForGood).then(Default::default),
                    ..Default::default()
                };
                vms.delete_vm(request).await
            }
            Self::Recover => {
                let request = RecoverVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.recover_vm(request).await
            }
            Self::Expunge => {
                let request = ExpungeVmRequest {
                    vm_id,
                    ..Default::default()
                };
                vms.expunge_vm(request).await
            }
        }
    }
}

fn update(vm: Vm, path: &str) -> UpdateVmRequest {
    UpdateVmRequest {
        vm: Some(vm),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![path.to_owned()],
        }),
        ..Default::default()
    }
}
