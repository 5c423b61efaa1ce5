//! A request of any kind, that can be sent again as it was.

use crate::support::api::Api;
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
}

impl Ask {
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
        }
    }
}
