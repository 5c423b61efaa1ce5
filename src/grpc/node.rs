//! `NodeService`.

use super::call::Call;
use super::convert::{event, host, node, orphan};
use super::edge::Edge;
use super::watch::{self, Watch};
use crate::proto::v1 as wire;
use crate::proto::v1::node_service_server::NodeService;
use crate::service::node::describe;
use crate::service::{maintenance, orphans};
use tonic::{Request, Response, Status};

/// Answers for the host itself.
pub(super) struct NodeCalls(pub(super) Edge);

#[tonic::async_trait]
impl NodeService for NodeCalls {
    async fn get_node(
        &self,
        request: Request<wire::GetNodeRequest>,
    ) -> Result<Response<wire::Node>, Status> {
        let (call, wire::GetNodeRequest {}) = Call::open("GetNode", request);
        call.read(async { Ok(node::shown(describe(&self.0.core))) })
            .await
    }

    type WatchEventsStream = Watch;

    async fn watch_events(
        &self,
        request: Request<wire::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let (call, request) = Call::open("WatchEvents", request);
        call.read(async { watch::open(&self.0, event::start(request)?) })
            .await
    }

    async fn list_orphans(
        &self,
        request: Request<wire::ListOrphansRequest>,
    ) -> Result<Response<wire::ListOrphansResponse>, Status> {
        let (call, mut request) = Call::open("ListOrphans", request);
        call.read(async {
            request.page_size = self.0.page_size(request.page_size)?;
            let asked = orphan::list(&request)?;
            let all = orphans::list(&self.0.core).await?;
            Ok(orphan::page(&all, &asked))
        })
        .await
    }

    async fn delete_orphan(
        &self,
        request: Request<wire::DeleteOrphanRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let (call, request) = Call::open("DeleteOrphan", request);
        call.on(&request.orphan_id);
        let (edge, caller) = (self.0.clone(), call.caller());
        call.change(async move {
            let (envelope, id, generation) = orphan::delete(&request, caller)?;
            let operation = orphans::delete(&edge.core, envelope, id, generation).await?;
            Ok(edge.operation(&operation))
        })
        .await
    }

    async fn set_maintenance(
        &self,
        request: Request<wire::SetMaintenanceRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let (call, request) = Call::open("SetMaintenance", request);
        let (edge, caller) = (self.0.clone(), call.caller());
        call.change(async move {
            let (envelope, wish) = host::set_maintenance(request, caller)?;
            let operation = maintenance::set(&edge.core, envelope, wish).await?;
            Ok(edge.operation(&operation))
        })
        .await
    }
}
