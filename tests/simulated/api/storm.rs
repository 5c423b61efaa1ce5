//! Many callers at once: nothing hangs, everything ends, and in the end kvmlet
//! and libvirt agree.

use crate::api::host::Host;
use crate::support::api::{Api, Start, force};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, thorough, until};
use kvmlet::proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const CALLERS: u64 = 50;
const VMS: usize = 20;

/// Asks something of a VM, at random.
async fn act(
    api: &Api,
    random: &mut StdRng,
    vm_id: String,
) -> Result<tonic::Response<Operation>, tonic::Status> {
    let mut vms = api.vms();
    macro_rules! plain {
        ($call:ident, $request:ident) => {
            vms.$call($request {
                vm_id,
                ..Default::default()
            })
            .await
        };
    }
    match random.random_range(0..10) {
        0 | 1 => plain!(start_vm, StartVmRequest),
        2 => plain!(stop_vm, StopVmRequest),
        3 => {
            vms.stop_vm(StopVmRequest {
                vm_id,
                stop_policy: Some(force()),
                ..Default::default()
            })
            .await
        }
        4 => plain!(pause_vm, PauseVmRequest),
        5 => plain!(resume_vm, ResumeVmRequest),
        6 => plain!(reset_vm, ResetVmRequest),
        7 => plain!(save_vm, SaveVmRequest),
        8 => plain!(reboot_vm, RebootVmRequest),
        _ => {
            let wished = [PowerState::On, PowerState::Off, PowerState::Paused];
            vms.set_vm_power_state(SetVmPowerStateRequest {
                vm_id,
                power_state: wished[random.random_range(0..3)] as i32,
                graceful_shutdown: random.random(),
                ..Default::default()
            })
            .await
        }
    }
}

/// How often each of them asks.
fn calls() -> u64 {
    if thorough() { 200 } else { 20 }
}

async fn caller(api: Api, vms: Vec<String>, seed: u64) -> BTreeMap<String, u64> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..calls() {
        let vm = vms[random.random_range(0..vms.len())].clone();
        let outcome = match act(&api, &mut random, vm).await {
            Err(status) => Err(Refusal::from(&status)),
            // Not everyone waits for what they asked for.
            Ok(_) if random.random_ratio(1, 4) => continue,
            answer => api.outcome(answer).await,
        };
        let word = match outcome {
            Ok(_) => "done".to_owned(),
            Err(refusal) => {
                let expected = ["WRONG_STATE", "VM_BUSY", "QUEUE_FULL", "OVERTAKEN"];
                assert!(expected.contains(&refusal.reason.as_str()), "{refusal:?}");
                refusal.reason
            }
        };
        *seen.entry(word).or_default() += 1;
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_on_twenty_vms_end_in_agreement_with_libvirt() {
    let seed = std::env::var("KVMLET_STORM_SEED")
        .ok()
        .map_or_else(rand::random, |seed| seed.parse::<u64>().unwrap());
    eprintln!("KVMLET_STORM_SEED={seed}");
    let host = Host::start().await;
    let mut vms = Vec::new();
    for _ in 0..VMS {
        vms.push(host.api().create(&host.image, Start::No).await);
    }
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            // Some on one connection, some on their own.
            let api = if number % 2 == 0 {
                host.api()
            } else {
                Api::at(&host.daemon.socket())
            };
            let seed = seed.wrapping_add(number);
            tokio::spawn(caller(api, vms.clone(), seed))
        })
        .collect();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for caller in callers {
        for (word, count) in caller.await.unwrap() {
            *seen.entry(word).or_default() += count;
        }
    }
    eprintln!("{seen:?}");
    assert!(seen["done"] > 100, "{seen:?}");

    let api = host.api();
    until("every operation to end", PATIENCE, async || {
        let request = ListOperationsRequest {
            states: vec![
                OperationState::Pending as i32,
                OperationState::Running as i32,
            ],
            ..Default::default()
        };
        let open = api.operations().list_operations(request).await.unwrap();
        open.get_ref().operations.is_empty().then_some(())
    })
    .await;
    for vm in vms {
        let domain = host.domain(&vm);
        let truth = match domain.info().unwrap().state.to_raw() {
            virt::sys::VIR_DOMAIN_RUNNING => VmState::Running,
            virt::sys::VIR_DOMAIN_PAUSED => VmState::Paused,
            virt::sys::VIR_DOMAIN_SHUTOFF if domain.has_managed_save(0).unwrap() => VmState::Saved,
            virt::sys::VIR_DOMAIN_SHUTOFF => VmState::Stopped,
            state => panic!("a domain in state {state}"),
        };
        let told = api.vm(&vm).await.unwrap();
        assert_eq!(told.state(), truth, "seed {seed}: {told:?}");
        assert_eq!(told.current_operation_id, "");
    }
}
