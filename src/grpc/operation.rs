//! `OperationService`.

use super::access::{needed_to_cancel, not_allowed};
use super::call::Call;
use super::convert::{operation, page, text, time};
use super::edge::Edge;
use crate::model::ids::OperationId;
use crate::proto::v1 as wire;
use crate::proto::v1::operation_service_server::OperationService;
use std::ops::RangeInclusive;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How long WaitOperation waits if it is not told.
const WAIT: Duration = Duration::from_secs(30);
/// How long it may be told to wait.
const WAITS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);

/// Answers for operations.
pub(super) struct OperationCalls(pub(super) Edge);

#[tonic::async_trait]
impl OperationService for OperationCalls {
    async fn get_operation(
        &self,
        request: Request<wire::GetOperationRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let (call, request) = Call::open("GetOperation", request);
        call.read(async {
            let id = text::required_id("operation_id", &request.operation_id)?;
            let found = self.0.core.operations.get(id).await?;
            Ok(self.0.operation(&found))
        })
        .await
    }

    async fn list_operations(
        &self,
        request: Request<wire::ListOperationsRequest>,
    ) -> Result<Response<wire::ListOperationsResponse>, Status> {
        let (call, mut request) = Call::open("ListOperations", request);
        call.about(&request.vm_id);
        call.read(async {
            request.page_size = self.0.page_size(request.page_size)?;
            let listed = self
                .0
                .core
                .operations
                .list(operation::query(&request)?)
                .await?;
            let all = &listed.operations;
            let operations = page::fitting(all.iter().map(|one| self.0.operation(one)));
            // Of those that did not fit, the next page begins with the first.
            let cut = all
                .get(operations.len())
                .and(all.get(operations.len().saturating_sub(1)));
            let next = cut.map_or(listed.next, |last| Some((last.create_time, last.id)));
            Ok(wire::ListOperationsResponse {
                operations,
                next_page_token: page::operations_token(next),
            })
        })
        .await
    }

    async fn wait_operation(
        &self,
        request: Request<wire::WaitOperationRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let (call, request) = Call::open("WaitOperation", request);
        call.read(async {
            let id: OperationId = text::required_id("operation_id", &request.operation_id)?;
            let timeout = time::duration("timeout", request.timeout, &WAITS)?.unwrap_or(WAIT);
            let operations = &self.0.core.operations;
            // A server that stops does not let its callers wait out their time.
            let found = tokio::select! {
                found = operations.wait(id, timeout) => found?,
                () = self.0.stop.cancelled() => operations.get(id).await?,
            };
            Ok(self.0.operation(&found))
        })
        .await
    }

    async fn cancel_operation(
        &self,
        request: Request<wire::CancelOperationRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let (call, request) = Call::open("CancelOperation", request);
        call.on(&request.operation_id);
        let (edge, role) = (self.0.clone(), call.caller().role);
        call.change(async move {
            let id = text::required_id("operation_id", &request.operation_id)?;
            let kind = edge.core.operations.get(id).await?.intent.kind();
            let needs = needed_to_cancel(kind);
            if role < needs {
                return Err(not_allowed("CancelOperation", needs, Some(role)));
            }
            let cancelled = edge.core.operations.cancel(id).await?;
            Ok(edge.operation(&cancelled))
        })
        .await
    }
}
