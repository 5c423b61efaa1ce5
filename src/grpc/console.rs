//! `ConsoleService`.

use super::call::Call;
use super::convert::{text, time};
use super::edge::Edge;
use crate::proto::v1 as wire;
use crate::proto::v1::console_service_server::ConsoleService;
use crate::service::consoles;
use tonic::{Request, Response, Status};

/// Answers for what guests show.
pub(super) struct ConsoleCalls(pub(super) Edge);

#[tonic::async_trait]
impl ConsoleService for ConsoleCalls {
    async fn get_vnc_console(
        &self,
        request: Request<wire::GetVncConsoleRequest>,
    ) -> Result<Response<wire::VncConsole>, Status> {
        let (call, request) = Call::open("GetVncConsole", request);
        call.about(&request.vm_id);
        let edge = self.0.clone();
        call.change(async move {
            let id = text::required_id("vm_id", &request.vm_id)?;
            let access = consoles::vnc(&edge.core, id).await?;
            Ok(wire::VncConsole {
                enabled: true,
                address: access.address,
                port: access.port.into(),
                password: access.password.expose().to_owned(),
                password_expire_time: Some(time::timestamp(access.expires)),
            })
        })
        .await
    }

    async fn capture_screenshot(
        &self,
        request: Request<wire::CaptureScreenshotRequest>,
    ) -> Result<Response<wire::Screenshot>, Status> {
        let (call, request) = Call::open("CaptureScreenshot", request);
        call.about(&request.vm_id);
        call.read(async {
            let id = text::required_id("vm_id", &request.vm_id)?;
            Ok(wire::Screenshot {
                png: consoles::screenshot(&self.0.core, id).await?,
            })
        })
        .await
    }
}
