//! A request of any kind, that can be sent again as it was.

use crate::support::api::{Api, id};
use kvmlet::proto::v1::*;
use tonic::{Response, Status};

/// A mutation.
#[derive(Debug, Clone)]
pub enum Ask {
    Create(Box<CreateVmRequest>),
    Update(Box<UpdateVmRequest>),
    Delete(DeleteVmRequest),
    Recover(RecoverVmRequest),
    Expunge(ExpungeVmRequest),
    Start(StartVmRequest),
    Stop(StopVmRequest),
    Reboot(RebootVmRequest),
    Reset(ResetVmRequest),
    Pause(PauseVmRequest),
    Resume(ResumeVmRequest),
    Save(SaveVmRequest),
    Replace(Box<ReplaceRootVolumeRequest>),
    Revert(RevertRootVolumeRequest),
    Import(Box<ImportImageRequest>),
    DeleteImage(DeleteImageRequest),
    DeleteOrphan(DeleteOrphanRequest),
    SetMaintenance(SetMaintenanceRequest),
}

impl Ask {
    /// Changes the hardware of a VM, or else its name.
    pub fn update(
        vm_id: String,
        request_id: String,
        name: String,
        hardware: Option<Hardware>,
    ) -> Self {
        let path = if hardware.is_some() {
            "hardware"
        } else {
            "name"
        };
        Self::Update(Box::new(UpdateVmRequest {
            request_id,
            vm: Some(Vm {
                id: vm_id,
                name,
                hardware,
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![path.to_owned()],
            }),
            ..Default::default()
        }))
    }

    /// The same as a request of its own.
    #[must_use]
    pub fn anew(&self) -> Self {
        let mut anew = self.clone();
        let request_id = id();
        match &mut anew {
            Self::Create(request) => request.request_id = request_id,
            Self::Update(request) => request.request_id = request_id,
            Self::Delete(request) => request.request_id = request_id,
            Self::Recover(request) => request.request_id = request_id,
            Self::Expunge(request) => request.request_id = request_id,
            Self::Start(request) => request.request_id = request_id,
            Self::Stop(request) => request.request_id = request_id,
            Self::Reboot(request) => request.request_id = request_id,
            Self::Reset(request) => request.request_id = request_id,
            Self::Pause(request) => request.request_id = request_id,
            Self::Resume(request) => request.request_id = request_id,
            Self::Save(request) => request.request_id = request_id,
            Self::Replace(request) => request.request_id = request_id,
            Self::Revert(request) => request.request_id = request_id,
            Self::Import(request) => request.request_id = request_id,
            Self::DeleteImage(request) => request.request_id = request_id,
            Self::DeleteOrphan(request) => request.request_id = request_id,
            Self::SetMaintenance(request) => request.request_id = request_id,
        }
        anew
    }

    /// Sends it.
    pub async fn send(&self, api: &Api) -> Result<Response<Operation>, Status> {
        let (mut vms, mut images) = (api.vms(), api.images());
        match self.clone() {
            Self::Create(request) => vms.create_vm(*request).await,
            Self::Update(request) => vms.update_vm(*request).await,
            Self::Delete(request) => vms.delete_vm(request).await,
            Self::Recover(request) => vms.recover_vm(request).await,
            Self::Expunge(request) => vms.expunge_vm(request).await,
            Self::Start(request) => vms.start_vm(request).await,
            Self::Stop(request) => vms.stop_vm(request).await,
            Self::Reboot(request) => vms.reboot_vm(request).await,
            Self::Reset(request) => vms.reset_vm(request).await,
            Self::Pause(request) => vms.pause_vm(request).await,
            Self::Resume(request) => vms.resume_vm(request).await,
            Self::Save(request) => vms.save_vm(request).await,
            Self::Replace(request) => vms.replace_root_volume(*request).await,
            Self::Revert(request) => vms.revert_root_volume(request).await,
            Self::Import(request) => images.import_image(*request).await,
            Self::DeleteImage(request) => images.delete_image(request).await,
            Self::DeleteOrphan(request) => api.nodes().delete_orphan(request).await,
            Self::SetMaintenance(request) => api.nodes().set_maintenance(request).await,
        }
    }
}
