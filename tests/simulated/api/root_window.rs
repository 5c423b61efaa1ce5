//! Former roots: how long each is kept, which one is switched back to, and what a
//! plan says of them.

use crate::api::host::Host;
use crate::support::api::{Api, force, id, small};
use crate::support::daemon::Daemon;
use crate::support::refusal::refused;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;
use prost_types::{Duration, Timestamp};
use std::collections::BTreeMap;

/// A VM without power whose root is replaced again and again.
struct Replaced {
    daemon: Daemon,
    image: String,
    vm: String,
}

impl Replaced {
    async fn start() -> Self {
        let daemon = Daemon::simulated().await;
        let image = daemon.image().await;
        let request = CreateVmRequest {
            data_volumes: vec![NewVolume {
                size_bytes: 2 << 20,
                delete_with_vm: Some(false),
                ..Default::default()
            }],
            ..small(&image)
        };
        let api = daemon.api();
        let vm = api.done(api.vms().create_vm(request).await).await.vm_id;
        Self { daemon, image, vm }
    }

    fn api(&self) -> Api {
        self.daemon.api()
    }

    fn request(&self, seconds: i64) -> ReplaceRootVolumeRequest {
        ReplaceRootVolumeRequest {
            vm_id: self.vm.clone(),
            image_id: self.image.clone(),
            resource_id: id(),
            keep_old_for: Some(Duration { seconds, nanos: 0 }),
            ..Default::default()
        }
    }

    /// Replaces the root and returns the new one's id.
    async fn replace(&self, keep: i64) -> String {
        let (api, request) = (self.api(), self.request(keep));
        let answer = api.vms().replace_root_volume(request.clone()).await;
        api.done(answer).await;
        assert_eq!(self.root().await, request.resource_id);
        request.resource_id
    }

    async fn revert(&self) -> Result<tonic::Response<Operation>, tonic::Status> {
        let request = RevertRootVolumeRequest {
            vm_id: self.vm.clone(),
            ..Default::default()
        };
        self.api().vms().revert_root_volume(request).await
    }

    /// Switches back and returns the root that it is then.
    async fn reverted(&self) -> String {
        self.api().done(self.revert().await).await;
        self.root().await
    }

    async fn vm(&self) -> Vm {
        self.api().vm(&self.vm).await.unwrap()
    }

    async fn root(&self) -> String {
        self.vm().await.root_volume_id
    }

    /// The former roots and until when each is kept.
    async fn kept(&self) -> BTreeMap<String, Timestamp> {
        let volumes = self.vm().await.volumes.into_iter();
        volumes
            .filter(|volume| volume.state() == VolumeState::Kept)
            .map(|volume| (volume.id, volume.expire_time.expect("a time")))
            .collect()
    }

    fn has_file(&self, volume: &str) -> bool {
        let files = self.daemon.pool_files();
        files.iter().any(|file| file.contains(volume))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_back_and_forth_leaves_the_window_as_long_as_it_was() {
    let replaced = Replaced::start().await;
    let first = replaced.root().await;
    let second = replaced.replace(3600).await;
    let until = replaced.kept().await[&first];
    for round in 0..4 {
        let (root, other) = if round % 2 == 0 {
            (&first, &second)
        } else {
            (&second, &first)
        };
        assert_eq!(replaced.reverted().await, *root);
        let kept = replaced.kept().await;
        assert_eq!(kept, BTreeMap::from([(other.clone(), until)]), "{round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_replacement_keeps_both_old_roots_and_goes_back_to_the_last() {
    let replaced = Replaced::start().await;
    let first = replaced.root().await;
    let second = replaced.replace(7200).await;
    let third = replaced.replace(3600).await;
    let kept = replaced.kept().await;
    assert_eq!(kept.len(), 2);
    let (oldest, last) = (kept[&first], kept[&second]);

    assert_eq!(replaced.reverted().await, second);
    let kept = replaced.kept().await;
    assert_eq!(
        kept,
        [(first.clone(), oldest), (third.clone(), last)].into()
    );
    assert_eq!(replaced.reverted().await, third);
    let kept = replaced.kept().await;
    assert_eq!(
        kept,
        [(first.clone(), oldest), (second.clone(), last)].into()
    );

    // Of a fourth, what it replaces is not kept, and the way back skips it.
    let fourth = replaced.replace(0).await;
    assert_eq!(replaced.reverted().await, second);
    assert_eq!(replaced.kept().await[&fourth], last);
    until(
        "the root that was not to be kept to go",
        PATIENCE,
        async || (!replaced.has_file(&third)).then_some(()),
    )
    .await;
    for root in [&first, &second, &fourth] {
        assert!(replaced.has_file(root), "{root} is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_not_to_be_kept_is_removed_by_the_sweeper_and_not_gone_back_to() {
    let replaced = Replaced::start().await;
    let first = replaced.root().await;
    replaced.replace(0).await;
    assert_eq!(refused(replaced.revert().await).reason, "NO_PREVIOUS_ROOT");
    until("the old root to go", PATIENCE, async || {
        let gone = replaced.vm().await.volumes.len() == 2 && !replaced.has_file(&first);
        gone.then_some(())
    })
    .await;
    assert_eq!(refused(replaced.revert().await).reason, "NO_PREVIOUS_ROOT");

    // The sweep that removes one leaves another that has minutes left.
    let second = replaced.root().await;
    let third = replaced.replace(300).await;
    replaced.replace(0).await;
    until("the third root to go", PATIENCE, async || {
        (!replaced.has_file(&third)).then_some(())
    })
    .await;
    assert!(replaced.has_file(&second), "it was kept for five minutes");
    assert!(replaced.kept().await.contains_key(&second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_vms_former_roots_come_back_with_the_time_that_they_had_left() {
    let replaced = Replaced::start().await;
    let api = replaced.api();
    let first = replaced.root().await;
    let second = replaced.replace(3600).await;
    let before = replaced.vm().await;
    let until = replaced.kept().await[&first];
    let request = DeleteVmRequest {
        vm_id: replaced.vm.clone(),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(request).await).await;
    let deleted = replaced.vm().await;
    assert_eq!(deleted.volumes, before.volumes, "all of it is kept");
    let request = RecoverVmRequest {
        vm_id: replaced.vm.clone(),
        ..Default::default()
    };
    let recovery = api.done(api.vms().recover_vm(request).await).await;
    let micros = |time: Timestamp| time.seconds * 1_000_000 + i64::from(time.nanos) / 1000;
    let away = micros(recovery.create_time.unwrap()) - micros(deleted.delete_time.unwrap());
    assert!(away > 0);
    let left = replaced.kept().await[&first];
    assert_eq!(micros(left), micros(until) + away);
    assert_eq!(replaced.root().await, second);
    assert_eq!(replaced.reverted().await, first);
    assert_eq!(replaced.kept().await[&second], left);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expunged_vm_takes_its_former_roots_along_and_leaves_what_is_to_be_left() {
    for retention in [0, 3600] {
        let replaced = Replaced::start().await;
        let api = replaced.api();
        let first = replaced.root().await;
        let second = replaced.replace(3600).await;
        let third = replaced.replace(7200).await;
        let data = replaced.vm().await.volumes[1].id.clone();
        let mut request = DeleteVmRequest {
            vm_id: replaced.vm.clone(),
            retention: Some(Duration {
                seconds: retention,
                nanos: 0,
            }),
            validate_only: true,
            ..Default::default()
        };
        let answer = api.vms().delete_vm(request.clone()).await;
        let plan = planned(answer.unwrap().into_inner());
        let action = if retention == 0 {
            PlanAction::Delete
        } else {
            PlanAction::Keep
        };
        let gone: Vec<_> = plan
            .items
            .iter()
            .filter(|item| item.kind == "volume")
            .map(|item| (item.action(), &*item.id, item.time.is_some()))
            .collect();
        let later = retention > 0;
        assert_eq!(gone.len(), 3);
        for root in [&first, &second, &third] {
            assert!(gone.contains(&(action, root, later)), "{gone:?}");
        }
        assert!(plan.notes.iter().any(|note| note.contains(&data)));
        request.validate_only = false;
        api.done(api.vms().delete_vm(request).await).await;
        if later {
            let request = ExpungeVmRequest {
                vm_id: replaced.vm.clone(),
                ..Default::default()
            };
            api.done(api.vms().expunge_vm(request).await).await;
        }
        for root in [&first, &second, &third] {
            assert!(!replaced.has_file(root), "{root} is gone");
        }
        assert!(replaced.has_file(&data), "it was to be left");
    }
}

fn planned(operation: Operation) -> Plan {
    assert_eq!(operation.id, "", "it is not kept");
    let Some(operation::Result::Plan(plan)) = operation.result else {
        panic!("no plan: {operation:?}");
    };
    plan
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_names_each_volume_and_what_happens_to_it_in_order() {
    let host = Host::start().await;
    let api = host.api();
    let larger = host.daemon.blank("larger.qcow2", 3);
    let larger = api.import(&larger).await;
    let (vm, _) = host.vm_in(Resting::Running).await;
    let first = api.vm(&vm).await.unwrap().root_volume_id;
    let request = ReplaceRootVolumeRequest {
        vm_id: vm.clone(),
        image_id: larger.clone(),
        resource_id: id(),
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().replace_root_volume(request.clone()).await)
        .await;
    let before = api.vm(&vm).await.unwrap();
    let files = host.daemon.pool_files();
    let second = request.resource_id.clone();

    let third = id();
    let mut request = ReplaceRootVolumeRequest {
        image_id: host.image.clone(),
        resource_id: third.clone(),
        keep_old_for: Some(Duration {
            seconds: 7200,
            nanos: 0,
        }),
        health_check: Some(HealthCheck {
            sign: HealthSign::GuestAgent.into(),
            timeout: Some(Duration {
                seconds: 90,
                nanos: 0,
            }),
        }),
        validate_only: true,
        ..request
    };
    let answer = api.vms().replace_root_volume(request.clone()).await;
    let answer = answer.unwrap().into_inner();
    let asked = answer.create_time.unwrap();
    let plan = planned(answer);
    let items: Vec<_> = plan
        .items
        .iter()
        .map(|item| (item.action(), &*item.kind, &*item.id, item.size_bytes >> 20))
        .collect();
    let domain = vm.as_str();
    assert_eq!(
        items,
        [
            (PlanAction::Make, "volume", &*third, 3),
            (PlanAction::Change, "vm", domain, 0),
            (PlanAction::Change, "domain", domain, 0),
            (PlanAction::Change, "vm", domain, 0),
            (PlanAction::Change, "vm", domain, 0),
            (PlanAction::Keep, "volume", &*first, 1),
            (PlanAction::Keep, "volume", &*second, 3),
        ]
    );
    for item in plan.items.iter().filter(|item| item.kind == "volume") {
        assert_eq!(item.pool, "default", "{item:?}");
    }
    let words: Vec<_> = plan.items.iter().map(|item| &*item.description).collect();
    assert!(words[0].contains(&host.image), "{words:?}");
    assert!(words[1].contains("its power is cut"), "{words:?}");
    assert!(words[2].contains(&third) && words[2].contains(&second));
    assert_eq!(words[3], "started");
    assert!(
        words[4].contains("agent must answer within 90 s"),
        "{words:?}"
    );
    assert!(words[5].contains("an older root"), "{words:?}");
    assert!(words[6].contains("the present root"), "{words:?}");
    let older = before.volumes.iter().find(|volume| volume.id == first);
    assert_eq!(plan.items[5].time, older.unwrap().expire_time);
    let until = plan.items[6].time.unwrap();
    assert_eq!(until.seconds, asked.seconds + 7200);

    request.keep_old_for = Some(Duration::default());
    let answer = api.vms().replace_root_volume(request).await;
    let plan = planned(answer.unwrap().into_inner());
    let last = plan.items.last().unwrap();
    assert_eq!((last.action(), &last.id), (PlanAction::Delete, &second));
    assert!(last.time.is_some());
    assert!(last.description.contains("deleted within a minute"));

    assert_eq!(api.vm(&vm).await.unwrap(), before, "nothing was changed");
    assert_eq!(host.daemon.pool_files(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_that_an_image_has_to_be_copied_to_the_roots_pool() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let another = daemon.image().await;
    let request = CreateVmRequest {
        root_volume: Some(NewVolume {
            pool: "other".to_owned(),
            ..Default::default()
        }),
        ..small(&image)
    };
    let vm = api.done(api.vms().create_vm(request).await).await.vm_id;
    let request = ReplaceRootVolumeRequest {
        vm_id: vm,
        image_id: another.clone(),
        validate_only: true,
        ..Default::default()
    };
    let answer = api.vms().replace_root_volume(request).await;
    let plan = planned(answer.unwrap().into_inner());
    let first = &plan.items[0];
    assert_eq!(
        (first.action(), &*first.kind, &*first.id, &*first.pool),
        (PlanAction::Make, "image", &*another, "other")
    );
    assert_eq!(plan.items[1].pool, "other", "it stays where it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_root_can_be_named_and_the_way_back_to_it_planned() {
    let replaced = Replaced::start().await;
    let first = replaced.root().await;
    let second = replaced.replace(3600).await;
    let third = replaced.replace(7200).await;
    let kept = replaced.kept().await;
    let request = |volume: &str, validate_only| RevertRootVolumeRequest {
        vm_id: replaced.vm.clone(),
        volume_id: volume.to_owned(),
        validate_only,
        ..Default::default()
    };
    let api = replaced.api();
    for bad in [&third, &id()] {
        let refusal = refused(api.vms().revert_root_volume(request(bad, true)).await);
        let expected = (
            tonic::Code::FailedPrecondition,
            "NO_PREVIOUS_ROOT",
            vec!["volume_id"],
        );
        assert_eq!(refusal.brief(), expected);
    }
    let planned = api.vms().revert_root_volume(request(&first, true)).await;
    let Some(operation::Result::Plan(plan)) = planned.unwrap().into_inner().result else {
        panic!("a plan");
    };
    let times: BTreeMap<_, _> = plan
        .items
        .iter()
        .filter(|item| item.kind == "volume" && item.action() == PlanAction::Keep)
        .map(|item| (item.id.clone(), item.time.unwrap()))
        .collect();
    let expected = BTreeMap::from([
        (second.clone(), kept[&second]),
        (third.clone(), kept[&first]),
    ]);
    assert_eq!(times, expected, "{plan:?}");
    assert_eq!(replaced.root().await, third, "nothing was done");
    let answer = api.vms().revert_root_volume(request(&first, false)).await;
    api.done(answer).await;
    assert_eq!(replaced.root().await, first);
    assert_eq!(replaced.kept().await, expected);
}
