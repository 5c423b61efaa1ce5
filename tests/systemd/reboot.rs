//! The host itself ends, and comes up again.

use crate::first_steps;
use crate::host::Host;
use crate::support::api::Api;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{StartVmRequest, StateReason, Vm, VmState};

/// How its guests lost their power, they say after the next start.
pub async fn is_told_of_its_guests(host: &mut Host) {
    let api = serving(host).await;
    let running = |vm: &Vm| vm.state() == VmState::Running;
    let vms = api.all_vms().await;
    let vm = vms.iter().find(|vm| running(vm)).expect("a guest").clone();
    first_steps::booted(host, &vm.id).await;
    let before = std::time::SystemTime::now();
    host.reboot();
    let api = serving(host).await;
    let now = ended(&api, &vm.id).await;
    assert_eq!(now.state_reason(), StateReason::HostShutdown, "{now:?}");
    let time: std::time::SystemTime = now.update_time.unwrap().try_into().unwrap();
    assert!(time >= before, "it was before the host went down");

    let start = StartVmRequest {
        vm_id: vm.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().start_vm(start).await).await;
    host.lose_power();
    let api = serving(host).await;
    let now = ended(&api, &vm.id).await;
    assert_eq!(now.state_reason(), StateReason::HostPowerLoss, "{now:?}");
}

async fn serving(host: &Host) -> Api {
    let api = host.api();
    until("the agent to serve", PATIENCE, async || {
        matches!(api.serving("").await, Ok(true)).then_some(())
    })
    .await;
    api
}

async fn ended(api: &Api, vm_id: &str) -> Vm {
    until("the guest to be shown as off", PATIENCE, async || {
        let vm = api.vm(vm_id).await.ok()?;
        (vm.state() == VmState::Stopped).then_some(vm)
    })
    .await
}
