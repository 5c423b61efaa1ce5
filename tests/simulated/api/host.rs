//! A daemon on a libvirtd of its own: VMs in every state, and a hand behind
//! kvmlet's back.

use crate::support::api::{Api, Start, force, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;
use virt::connect::Connect;
use virt::domain::Domain;

/// Dropped in this order: the daemon must not see libvirt go.
pub(crate) struct Host {
    pub(crate) daemon: Daemon,
    pub(crate) image: String,
    pub(crate) connection: Connect,
    pub(crate) libvirtd: Libvirtd,
}

impl Host {
    pub(crate) async fn start() -> Self {
        let libvirtd = Libvirtd::start();
        let daemon = Daemon::start(Setup::on(libvirtd.uri())).await;
        let image = daemon.image().await;
        Self {
            image,
            connection: libvirtd.connect(),
            daemon,
            libvirtd,
        }
    }

    pub(crate) fn api(&self) -> Api {
        self.daemon.api()
    }

    /// The VM's domain, as libvirt has it.
    pub(crate) fn domain(&self, vm_id: &str) -> Domain {
        Libvirtd::domain(&self.connection, vm_id).expect("a domain")
    }

    pub(crate) fn has_domain(&self, vm_id: &str) -> bool {
        Libvirtd::domain(&self.connection, vm_id).is_some()
    }

    /// Makes a VM that rests in `state`; all but UNKNOWN, which no single VM is.
    pub(crate) async fn vm_in(&self, state: Resting) -> (String, CreateVmRequest) {
        let api = self.api();
        let powered = match state {
            Resting::Running | Resting::Paused | Resting::Saved | Resting::Crashed => Start::Yes,
            _ => Start::No,
        };
        let mut request = small(&self.image);
        request.start = powered == Start::Yes;
        let vm_id = request.vm_id.clone();
        if state == Resting::Failed {
            self.fail_to_create(&request).await;
            return (vm_id, request);
        }
        api.done(api.vms().create_vm(request.clone()).await).await;
        let vm = vm_id.clone();
        match state {
            Resting::Stopped | Resting::Running | Resting::Unknown | Resting::Failed => {}
            Resting::Paused => {
                let request = PauseVmRequest {
                    vm_id: vm,
                    ..Default::default()
                };
                api.done(api.vms().pause_vm(request).await).await;
            }
            Resting::Saved => {
                let request = SaveVmRequest {
                    vm_id: vm,
                    ..Default::default()
                };
                api.done(api.vms().save_vm(request).await).await;
            }
            Resting::Deleted => {
                let request = DeleteVmRequest {
                    vm_id: vm,
                    stop_policy: Some(force()),
                    ..Default::default()
                };
                api.done(api.vms().delete_vm(request).await).await;
            }
            Resting::Crashed => self.libvirtd.crash(&self.connection, &vm),
            Resting::Lost => self.domain(&vm).undefine().unwrap(),
        }
        self.wait_for(&vm_id, wire(state)).await;
        (vm_id, request)
    }

    /// A creation that libvirt refuses: a domain of someone else's has the name.
    async fn fail_to_create(&self, request: &CreateVmRequest) {
        let xml = format!(
            "<domain type='test'><name>kvmlet-{name}</name>\
             <memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>",
            name = request.vm_id
        );
        let foreign = self.connection.define_domain_xml(&xml).unwrap();
        let api = self.api();
        let refusal = api
            .outcome(api.vms().create_vm(request.clone()).await)
            .await
            .expect_err("the name is taken on the host");
        assert_ne!(refusal.reason, "INTERNAL", "{refusal:?}");
        foreign.undefine().unwrap();
        assert_eq!(api.state(&request.vm_id).await, VmState::Failed);
    }

    pub(crate) async fn wait_for(&self, vm_id: &str, state: VmState) -> Vm {
        let api = self.api();
        until(state.as_str_name(), PATIENCE, async || {
            let vm = api.vm(vm_id).await.unwrap();
            (vm.state() == state).then_some(vm)
        })
        .await
    }

    /// Another image, as large as the first.
    pub(crate) async fn another_image(&self) -> String {
        let path = self.daemon.blank(&format!("{}.qcow2", id()), 1);
        self.api().import(&path).await
    }
}

/// A resting state on the wire.
pub(crate) fn wire(state: Resting) -> VmState {
    VmState::from_str_name(&format!("VM_STATE_{}", state.as_str())).expect("the same names")
}
