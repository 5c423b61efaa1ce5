//! `ImageService`.

use super::call::Call;
use super::convert::{image, page, text};
use super::edge::Edge;
use crate::proto::v1 as wire;
use crate::proto::v1::image_service_server::ImageService;
use crate::service::images;
use tonic::{Request, Response, Status};

/// Answers for images.
pub(super) struct ImageCalls(pub(super) Edge);

#[tonic::async_trait]
impl ImageService for ImageCalls {
    async fn import_image(
        &self,
        request: Request<wire::ImportImageRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let (call, request) = Call::open("ImportImage", request);
        let (edge, caller) = (self.0.clone(), call.caller());
        call.change(async move {
            let (envelope, import) = image::import_image(request, caller)?;
            let operation = images::import(&edge.core, envelope, import).await?;
            Ok(edge.operation(&operation))
        })
        .await
    }

    async fn get_image(
        &self,
        request: Request<wire::GetImageRequest>,
    ) -> Result<Response<wire::Image>, Status> {
        let (call, request) = Call::open("GetImage", request);
        call.read(async {
            let core = &self.0.core;
            let found = core
                .images
                .get(text::required_id("image_id", &request.image_id)?)?;
            Ok(image::shown(&found, core.vms.volumes_of_image(found.id)))
        })
        .await
    }

    async fn list_images(
        &self,
        request: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        let (call, mut request) = Call::open("ListImages", request);
        call.read(async {
            request.page_size = self.0.page_size(request.page_size)?;
            let core = &self.0.core;
            let mut all = core.images.list();
            all.retain(|image| page::has_labels(&image.labels, &request.labels));
            let page = page::cut(
                &all,
                |image| image.id.0,
                request.page_size,
                &request.page_token,
                |found| image::shown(found, core.vms.volumes_of_image(found.id)),
            )?;
            Ok(wire::ListImagesResponse {
                images: page.items,
                next_page_token: page.next,
            })
        })
        .await
    }

    async fn delete_image(
        &self,
        request: Request<wire::DeleteImageRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let (call, request) = Call::open("DeleteImage", request);
        call.on(&request.image_id);
        let (edge, caller) = (self.0.clone(), call.caller());
        call.change(async move {
            let (envelope, id) = image::delete_image(&request, caller)?;
            let operation = images::delete(&edge.core, envelope, id).await?;
            Ok(edge.operation(&operation))
        })
        .await
    }
}
