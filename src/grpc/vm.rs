//! `VmService`.

use super::call::Call;
use super::convert::{self, Asked, create, page, power, root, text, update};
use super::edge::Edge;
use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::request::Caller;
use crate::proto::v1 as wire;
use crate::proto::v1::vm_service_server::VmService;
use crate::service::vms;
use tonic::{Request, Response, Status};

/// Answers for VMs.
pub(super) struct VmCalls(pub(super) Edge);

type Answer<T> = Result<Response<T>, Status>;

impl VmCalls {
    /// What every mutation is: converts, asks the VM's worker, converts.
    async fn ask<T: Send + 'static>(
        &self,
        rpc: &'static str,
        request: Request<T>,
        vm_id: fn(&T) -> &str,
        read: fn(T, Caller) -> Result<Asked, Fault>,
    ) -> Answer<wire::Operation> {
        let (call, request) = Call::open(rpc, request);
        call.about(vm_id(&request));
        let (edge, caller) = (self.0.clone(), call.caller());
        call.change(async move {
            let asked = read(request, caller)?;
            let operation =
                vms::request(&edge.core, asked.vm_id, asked.envelope, asked.request).await?;
            Ok(edge.operation(&operation))
        })
        .await
    }
}

#[tonic::async_trait]
impl VmService for VmCalls {
    async fn get_vm(&self, request: Request<wire::GetVmRequest>) -> Answer<wire::Vm> {
        let (call, request) = Call::open("GetVm", request);
        call.about(&request.vm_id);
        call.read(async {
            let id: VmId = text::required_id("vm_id", &request.vm_id)?;
            let view = self.0.core.vms.get(id)?;
            // Without a record it is being made and not durable yet, or gone.
            convert::vm::shown(&view, self.0.host()).ok_or_else(|| vms::not_found(id))
        })
        .await
    }

    async fn list_vms(
        &self,
        request: Request<wire::ListVmsRequest>,
    ) -> Answer<wire::ListVmsResponse> {
        let (call, mut request) = Call::open("ListVms", request);
        call.read(async {
            request.page_size = self.0.page_size(request.page_size)?;
            // Until then, what is shown is not what events tell.
            self.0.core.feed.settled().await;
            // Before the list, which so has at least all up to it.
            let at = self.0.core.feed.position();
            let (token, at) = page::list_token(&request.page_token, at)?;
            let states = convert::vm::States::read(&request.states, request.show_deleted)?;
            let mut views = self.0.core.vms.list();
            views.retain(|view| {
                convert::vm::state(view).is_some_and(|state| states.take(state))
                    && view
                        .vm
                        .as_ref()
                        .is_some_and(|vm| page::has_labels(&vm.labels, &request.labels))
            });
            let host = self.0.host();
            let page = page::cut(
                &views,
                |view| convert::vm::id(view),
                request.page_size,
                token,
                // All of them have a record, or they would have no state.
                |view| convert::vm::shown(view, host).unwrap_or_default(),
            )?;
            Ok(wire::ListVmsResponse {
                vms: page.items,
                next_page_token: page::next_list_token(page.next, at),
                total_size: page.total,
                resume: Some(convert::event::resume_point(at)),
            })
        })
        .await
    }

    async fn create_vm(&self, request: Request<wire::CreateVmRequest>) -> Answer<wire::Operation> {
        self.ask("CreateVm", request, |r| &r.vm_id, create::create_vm)
            .await
    }

    async fn update_vm(&self, request: Request<wire::UpdateVmRequest>) -> Answer<wire::Operation> {
        self.ask(
            "UpdateVm",
            request,
            |r| r.vm.as_ref().map_or("", |vm| &vm.id),
            update::update_vm,
        )
        .await
    }

    async fn delete_vm(&self, request: Request<wire::DeleteVmRequest>) -> Answer<wire::Operation> {
        self.ask("DeleteVm", request, |r| &r.vm_id, power::delete_vm)
            .await
    }

    async fn recover_vm(
        &self,
        request: Request<wire::RecoverVmRequest>,
    ) -> Answer<wire::Operation> {
        self.ask("RecoverVm", request, |r| &r.vm_id, power::recover_vm)
            .await
    }

    async fn expunge_vm(
        &self,
        request: Request<wire::ExpungeVmRequest>,
    ) -> Answer<wire::Operation> {
        self.ask("ExpungeVm", request, |r| &r.vm_id, power::expunge_vm)
            .await
    }

    async fn start_vm(&self, request: Request<wire::StartVmRequest>) -> Answer<wire::Operation> {
        self.ask("StartVm", request, |r| &r.vm_id, power::start_vm)
            .await
    }

    async fn stop_vm(&self, request: Request<wire::StopVmRequest>) -> Answer<wire::Operation> {
        self.ask("StopVm", request, |r| &r.vm_id, power::stop_vm)
            .await
    }

    async fn reboot_vm(&self, request: Request<wire::RebootVmRequest>) -> Answer<wire::Operation> {
        self.ask("RebootVm", request, |r| &r.vm_id, power::reboot_vm)
            .await
    }

    async fn reset_vm(&self, request: Request<wire::ResetVmRequest>) -> Answer<wire::Operation> {
        self.ask("ResetVm", request, |r| &r.vm_id, power::reset_vm)
            .await
    }

    async fn pause_vm(&self, request: Request<wire::PauseVmRequest>) -> Answer<wire::Operation> {
        self.ask("PauseVm", request, |r| &r.vm_id, power::pause_vm)
            .await
    }

    async fn resume_vm(&self, request: Request<wire::ResumeVmRequest>) -> Answer<wire::Operation> {
        self.ask("ResumeVm", request, |r| &r.vm_id, power::resume_vm)
            .await
    }

    async fn save_vm(&self, request: Request<wire::SaveVmRequest>) -> Answer<wire::Operation> {
        self.ask("SaveVm", request, |r| &r.vm_id, power::save_vm)
            .await
    }

    async fn set_vm_power_state(
        &self,
        request: Request<wire::SetVmPowerStateRequest>,
    ) -> Answer<wire::Operation> {
        self.ask(
            "SetVmPowerState",
            request,
            |r| &r.vm_id,
            power::set_vm_power_state,
        )
        .await
    }

    async fn replace_root_volume(
        &self,
        request: Request<wire::ReplaceRootVolumeRequest>,
    ) -> Answer<wire::Operation> {
        self.ask(
            "ReplaceRootVolume",
            request,
            |r| &r.vm_id,
            root::replace_root,
        )
        .await
    }

    async fn revert_root_volume(
        &self,
        request: Request<wire::RevertRootVolumeRequest>,
    ) -> Answer<wire::Operation> {
        self.ask("RevertRootVolume", request, |r| &r.vm_id, root::revert_root)
            .await
    }
}
