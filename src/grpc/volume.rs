//! `VolumeService`.

use super::call::Call;
use super::convert::{page, text, volume};
use super::edge::Edge;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, VmId, VolumeId};
use crate::model::reason::Reason;
use crate::proto::v1 as wire;
use crate::proto::v1::volume_service_server::VolumeService;
use crate::service::volumes;
use tonic::{Request, Response, Status};

/// Answers for volumes and pools.
pub(super) struct VolumeCalls(pub(super) Edge);

#[tonic::async_trait]
impl VolumeService for VolumeCalls {
    async fn get_volume(
        &self,
        request: Request<wire::GetVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let (call, request) = Call::open("GetVolume", request);
        call.read(async {
            let id: VolumeId = text::required_id("volume_id", &request.volume_id)?;
            volumes::list(&self.0.core)
                .iter()
                .find(|view| view.volume.id == id)
                .map(|view| volume::shown(view.vm_id, &view.volume, view.pending))
                .ok_or_else(|| {
                    Fault::new(Reason::VolumeNotFound, format!("no volume has the id {id}"))
                        .with("volume_id", id)
                })
        })
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<wire::ListVolumesRequest>,
    ) -> Result<Response<wire::ListVolumesResponse>, Status> {
        let (call, mut request) = Call::open("ListVolumes", request);
        call.about(&request.vm_id);
        call.read(async {
            request.page_size = self.0.page_size(request.page_size)?;
            let vm: Option<VmId> = text::id("vm_id", &request.vm_id)?;
            let image: Option<ImageId> = text::id("image_id", &request.image_id)?;
            let mut all = volumes::list(&self.0.core);
            all.retain(|view| {
                vm.is_none_or(|vm| view.vm_id == vm)
                    && image.is_none_or(|image| view.volume.image_id == Some(image))
                    && (request.pool.is_empty() || view.volume.pool == request.pool)
            });
            all.sort_by_key(|view| view.volume.id);
            let page = page::cut(
                &all,
                |view| view.volume.id.0,
                request.page_size,
                &request.page_token,
                |view| volume::shown(view.vm_id, &view.volume, view.pending),
            )?;
            Ok(wire::ListVolumesResponse {
                volumes: page.items,
                next_page_token: page.next,
            })
        })
        .await
    }

    async fn list_pools(
        &self,
        request: Request<wire::ListPoolsRequest>,
    ) -> Result<Response<wire::ListPoolsResponse>, Status> {
        let (call, wire::ListPoolsRequest {}) = Call::open("ListPools", request);
        call.read(async {
            let pools = volumes::pools(&self.0.core)
                .iter()
                .map(volume::shown_pool)
                .collect();
            Ok(wire::ListPoolsResponse { pools })
        })
        .await
    }
}
