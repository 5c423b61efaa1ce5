//! A new root whose guest does not come up: how it is told, and what is left.

use crate::api::host::Host;
use crate::support::api::{force, id};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;
use virt::sys::VIR_DOMAIN_XML_INACTIVE;

/// What happens to a guest that is watched.
#[derive(Debug, Clone, Copy)]
enum Fate {
    ShutsDown,
    QemuDies,
    LosesPower,
    StandsStill,
}

impl Fate {
    const fn problem(self) -> &'static str {
        match self {
            Self::ShutsDown => "guest_shut_down",
            Self::QemuDies => "qemu_died",
            Self::LosesPower => "power_cut",
            Self::StandsStill => "guest_stands_still",
        }
    }

    fn befalls(self, host: &Host, vm: &str) {
        let domain = host.domain(vm);
        match self {
            Self::ShutsDown => domain.shutdown().unwrap(),
            Self::QemuDies => host.libvirtd.crash(&host.connection, vm),
            Self::LosesPower => domain.destroy().unwrap(),
            Self::StandsStill => domain.suspend().unwrap(),
        }
    }

    /// How long the guest is watched: one that has lost its power is told at once.
    const fn seconds(self) -> i64 {
        match self {
            Self::ShutsDown | Self::QemuDies | Self::LosesPower => 600,
            Self::StandsStill => 5,
        }
    }
}

/// Replaces the root, and has that happen to the guest while it is watched.
async fn failed(host: &Host, vm: &str, image: &str, fate: Fate) -> Operation {
    let api = host.api();
    let request = ReplaceRootVolumeRequest {
        vm_id: vm.to_owned(),
        image_id: image.to_owned(),
        resource_id: id(),
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: HealthSign::StillRunning.into(),
            timeout: Some(prost_types::Duration {
                seconds: fate.seconds(),
                nanos: 0,
            }),
        }),
        ..Default::default()
    };
    let begun = api.vms().replace_root_volume(request).await;
    let operation = begun.unwrap().into_inner().id;
    until("the check of its health", PATIENCE, async || {
        let request = GetOperationRequest {
            operation_id: operation.clone(),
        };
        let shown = api.operations().get_operation(request).await.unwrap();
        let step = shown.into_inner().steps.pop()?;
        (step.state() == StepState::Running).then_some(())
    })
    .await;
    fate.befalls(host, vm);
    api.ended(&operation).await
}

/// The domain as it is defined, without the record that it carries.
fn definition(host: &Host, vm: &str) -> String {
    let xml = host.domain(vm).xml_desc(VIR_DOMAIN_XML_INACTIVE).unwrap();
    let (before, rest) = xml.split_once("<metadata>").unwrap();
    let (_, after) = rest.split_once("</metadata>").unwrap();
    format!("{before}{after}")
}

fn steps(operation: &Operation) -> Vec<(&str, StepState)> {
    let steps = operation.steps.iter();
    steps.map(|step| (&*step.name, step.state())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_how_the_guest_failed_and_the_old_one_runs_again() {
    let host = Host::start().await;
    let api = host.api();
    let other = host.another_image().await;
    let (vm, _) = host.vm_in(Resting::Running).await;
    let before = api.vm(&vm).await.unwrap();
    let defined = definition(&host, &vm);
    let files = host.daemon.pool_files();
    let mut told = Vec::new();
    for fate in [
        Fate::ShutsDown,
        Fate::QemuDies,
        Fate::LosesPower,
        Fate::StandsStill,
    ] {
        let operation = failed(&host, &vm, &other, fate).await;
        assert_eq!(operation.state(), OperationState::Failed, "{fate:?}");
        assert_eq!(operation.rollback_state(), RollbackState::Done, "{fate:?}");
        let error = Refusal::from(operation.error.as_ref().unwrap());
        assert_eq!(error.reason, "START_FAILED");
        assert_eq!(error.metadata["problem"], fate.problem());
        assert!(!error.metadata.contains_key("not_undone"));
        told.push(error.message);
        let started = if matches!(fate, Fate::StandsStill) {
            // It had power, which was cut to switch back.
            StepState::Undone
        } else {
            StepState::Done
        };
        assert_eq!(
            steps(&operation),
            [
                ("cache-image", StepState::Skipped),
                ("make-volume", StepState::Undone),
                ("stop-guest", StepState::Undone),
                ("switch-root", StepState::Undone),
                ("start-guest", started),
                ("check-health", StepState::Failed),
            ],
            "{fate:?}"
        );
        let after = api.vm(&vm).await.unwrap();
        assert_eq!(after.state(), VmState::Running, "{fate:?}");
        assert_eq!(after.state_reason(), StateReason::Operation, "{fate:?}");
        assert_eq!(after.root_volume_id, before.root_volume_id);
        assert_eq!(after.image_id, before.image_id);
        assert_eq!(after.volumes, before.volumes, "{fate:?}");
        assert_eq!(after.generation, before.generation);
        assert_eq!(definition(&host, &vm), defined, "{fate:?}");
        assert_eq!(host.daemon.pool_files(), files, "nothing is left");
    }
    told.dedup();
    assert_eq!(told.len(), 4, "each in words of its own: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_power_or_that_stood_still_is_so_again_after_a_check_that_failed() {
    let host = Host::start().await;
    let api = host.api();
    let other = host.another_image().await;
    for (resting, wanted) in [
        (Resting::Stopped, VmState::Stopped),
        (Resting::Crashed, VmState::Stopped),
        (Resting::Paused, VmState::Paused),
    ] {
        let (vm, _) = host.vm_in(resting).await;
        let before = api.vm(&vm).await.unwrap();
        for fate in [Fate::QemuDies, Fate::ShutsDown] {
            let operation = failed(&host, &vm, &other, fate).await;
            assert_eq!(operation.rollback_state(), RollbackState::Done);
            let after = api.vm(&vm).await.unwrap();
            assert_eq!(after.state(), wanted, "{resting:?} {fate:?}");
            assert_eq!(
                after.state_reason(),
                StateReason::Operation,
                "how the new guest ended says nothing of the old one: {resting:?} {fate:?}"
            );
            assert_eq!(after.root_volume_id, before.root_volume_id);
            assert_eq!(after.volumes, before.volumes);
        }
    }
}
