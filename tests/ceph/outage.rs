//! Ceph fails, in each of its ways: what needs it ends in time with the reason, what
//! does not goes on, and afterwards all is as before.

use crate::lab::*;
use crate::support::api::{Api, Start, id};
use crate::support::ceph::{Daemon as Part, USER};
use crate::support::daemon::Daemon;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::Code;

/// Well under a minute, on a machine that does much else.
const IN_TIME: Duration = Duration::from_secs(50);

/// VMs on the cluster, made while it was well. It gets the cluster back when the daemon
/// is gone.
struct Host {
    daemon: Daemon,
    cluster: Breakable,
    /// Of tests before it.
    others: BTreeSet<String>,
    /// Held in the pool of files, and cached on Ceph.
    image: String,
    running: Vm,
    stopped: Vm,
    deleted: Vm,
}

impl Host {
    async fn start() -> Self {
        let cluster = breakable().await;
        let others = everything(&cluster).into_iter().collect();
        let daemon = host(&cluster).await;
        let api = daemon.api();
        let image = daemon.image().await;
        let running = CreateVmRequest {
            start: true,
            ..on_ceph(&image)
        };
        let running = api.made(running).await;
        let stopped = api.made(on_ceph(&image)).await;
        let deleted = api.made(on_ceph(&image)).await;
        api.delete(&deleted.id).await;
        Self {
            daemon,
            cluster,
            others,
            image,
            running,
            stopped,
            deleted,
        }
    }

    /// Each call that needs Ceph, as a task of its own, and when it has ended.
    fn ask_everything(&self) -> Vec<(&'static str, JoinHandle<(Refusal, Duration)>)> {
        let (api, image) = (self.daemon.api(), self.image.clone());
        let (stopped, deleted) = (self.stopped.id.clone(), self.deleted.id.clone());
        let import = importing(&self.daemon, "ceph");
        let timed = |what, ask: std::pin::Pin<Box<dyn Future<Output = Refusal> + Send>>| {
            let task = async move {
                let begin = Instant::now();
                (ask.await, begin.elapsed())
            };
            (what, tokio::spawn(task))
        };
        let mut asked = Vec::new();
        for _ in 0..20 {
            let (api, request) = (api.clone(), on_ceph(&image));
            asked.push(timed(
                "CreateVm",
                Box::pin(async move { api.not_made(request).await }),
            ));
        }
        let replace = ReplaceRootVolumeRequest {
            vm_id: self.running.id.clone(),
            image_id: image,
            resource_id: id(),
            stop_policy: Some(crate::support::api::force()),
            ..Default::default()
        };
        let (a, b, c, d) = (api.clone(), api.clone(), api.clone(), api);
        asked.push(timed(
            "ReplaceRootVolume",
            Box::pin(async move { a.not_replaced(replace).await }),
        ));
        asked.push(timed(
            "StartVm",
            Box::pin(async move { b.start(&stopped).await.expect_err("it is away") }),
        ));
        asked.push(timed(
            "ExpungeVm",
            Box::pin(async move { c.expunge(&deleted).await.expect_err("it is away") }),
        ));
        asked.push(timed(
            "ImportImage",
            Box::pin(async move {
                let answer = d.images().import_image(import).await;
                d.outcome(answer).await.expect_err("it is away")
            }),
        ));
        asked
    }

    /// Each of them has been refused, in time.
    async fn all_refused(
        asked: Vec<(&'static str, JoinHandle<(Refusal, Duration)>)>,
        code: Code,
        reason: &str,
    ) {
        for (what, asked) in asked {
            let (refusal, took) = asked.await.unwrap();
            assert_eq!(
                (refusal.code, refusal.reason.as_str()),
                (code, reason),
                "{what}: {refusal:?}"
            );
            assert_eq!(refusal.metadata["pool"], "ceph", "{what}");
            assert!(took < IN_TIME, "{what} took {took:?}");
        }
    }

    /// A VM on files goes through its life.
    async fn a_vm_on_files_lives(&self) {
        let api = self.daemon.api();
        let vm_id = api.create(&self.image, Start::Yes).await;
        let replace = ReplaceRootVolumeRequest {
            vm_id: vm_id.clone(),
            image_id: self.image.clone(),
            stop_policy: Some(crate::support::api::force()),
            start_after: true,
            ..Default::default()
        };
        api.replaced(replace).await;
        api.stop(&vm_id).await;
        api.start(&vm_id).await.expect("it is started");
        let other = self.daemon.image().await;
        api.create(&other, Start::No).await;
        api.remove(&vm_id).await;
    }

    /// It was looked for once more, when nobody else asked, and did not answer.
    async fn is_looked_for_in_vain(&self) {
        let failed = || self.daemon.log().matches("pool call failed").count();
        let before = failed();
        until("a look in vain", PATIENCE, async || {
            (failed() > before).then_some(())
        })
        .await;
    }

    async fn is_ready(&self) -> Option<()> {
        let condition = self.daemon.api().condition("ceph").await;
        condition.status.then_some(())
    }

    async fn is_not_ready(&self, words: &str) {
        until("the pool to be not ready", PATIENCE, async || {
            let condition = self.daemon.api().condition("ceph").await;
            let told = condition.message.contains(words) && condition.reason == "NotUsable";
            (!condition.status && told).then_some(())
        })
        .await;
        assert!(self.daemon.api().serving("").await.unwrap());
    }

    /// Whatever was asked in vain is done when it is asked again.
    async fn all_is_well(&self) {
        let api = self.daemon.api();
        until("the pool to be ready again", PATIENCE, || self.is_ready()).await;
        api.start(&self.stopped.id).await.expect("it is started");
        let replace = ReplaceRootVolumeRequest {
            vm_id: self.stopped.id.clone(),
            image_id: self.image.clone(),
            system_tags: tag("vms-fast"),
            stop_policy: Some(crate::support::api::force()),
            start_after: true,
            ..Default::default()
        };
        api.replaced(replace).await;
        let made = (0..10).map(|_| {
            let (api, request) = (api.clone(), on_ceph(&self.image));
            tokio::spawn(async move { api.made(request).await.id })
        });
        for made in made.collect::<Vec<_>>() {
            let vm_id = made.await.unwrap();
            api.remove(&vm_id).await;
        }
        image_on_ceph(&self.daemon).await;
        until(
            "what was deleted to be expunged",
            PATIENCE,
            async || match api.vm(&self.deleted.id).await {
                Ok(_) => {
                    let _ = api.expunge(&self.deleted.id).await;
                    None
                }
                Err(_) => Some(()),
            },
        )
        .await;
        self.nothing_is_left_over().await;
    }

    /// Each volume in the cluster is one of a VM that is there.
    async fn nothing_is_left_over(&self) {
        let api = self.daemon.api();
        let failed = api.all_vms().await;
        for vm in failed.iter().filter(|vm| vm.state() == VmState::Failed) {
            api.delete(&vm.id).await;
            let _ = api.expunge(&vm.id).await;
        }
        let mut wanted = BTreeSet::new();
        for vm in api.all_vms().await {
            let volumes = vm.volumes.iter().filter(|volume| volume.pool == "ceph");
            wanted.extend(volumes.map(|volume| volume.install_path.clone()));
        }
        let mut found = volumes(&self.cluster);
        found.retain(|volume| !self.others.contains(volume));
        assert_eq!(found, wanted);
        let mut half_made = self.cluster.images("images");
        half_made.retain(|name| {
            name.starts_with("tmp-") && !self.others.contains(&format!("images/{name}"))
        });
        assert_eq!(half_made, [""; 0]);
    }
}

/// Part of the cluster hangs: everything that needs it is refused in time, and
/// nothing else notices.
async fn something_hangs(part: Part) {
    let host = Host::start().await;
    let api = host.daemon.api();
    host.cluster.freeze(part);
    let asked = host.ask_everything();
    host.a_vm_on_files_lives().await;
    // The power of a guest is taken whatever its disks do.
    let running = api.vm(&host.running.id).await.unwrap();
    let hang = asked.iter().filter(|(_, task)| !task.is_finished()).count();
    assert!(
        hang > 0,
        "the VM on files was done while others waited for Ceph"
    );
    if running.state() != VmState::Stopped {
        stop_at_last(&api, &host.running.id).await;
    }
    Host::all_refused(asked, Code::Unavailable, "POOL_AWAY").await;
    assert_eq!(api.state(&host.running.id).await, VmState::Stopped);
    host.is_looked_for_in_vain().await;
    host.is_not_ready("does not answer").await;
    // It stays so, and who asks now is told at once.
    host.a_vm_on_files_lives().await;
    let again = host.ask_everything();
    Host::all_refused(again, Code::Unavailable, "POOL_AWAY").await;
    assert!(host.is_ready().await.is_none(), "it is still frozen");
    host.cluster.thaw(part);
    host.all_is_well().await;
}

/// Stops a VM by force, as soon as nothing else holds it.
async fn stop_at_last(api: &Api, vm_id: &str) {
    until("the VM to be stopped", PATIENCE, async || {
        let request = StopVmRequest {
            vm_id: vm_id.to_owned(),
            stop_policy: Some(crate::support::api::force()),
            ..Default::default()
        };
        let answer = api.vms().stop_vm(request).await;
        api.outcome(answer).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn osds_that_hang_hold_up_only_what_needs_them() {
    something_hangs(Part::Osd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_that_hang_hold_up_only_what_needs_them() {
    something_hangs(Part::Mon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_on_ceph_is_stopped_while_the_cluster_hangs() {
    let host = Host::start().await;
    host.cluster.freeze(Part::Osd);
    let api = host.daemon.api();
    let (asker, request) = (host.daemon.api(), on_ceph(&host.image));
    let hangs = tokio::spawn(async move { asker.not_made(request).await });
    api.stop(&host.running.id).await;
    assert!(!hangs.is_finished(), "it was stopped while others waited");
    assert_eq!(api.state(&host.running.id).await, VmState::Stopped);
    assert_eq!(hangs.await.unwrap().reason, "POOL_AWAY");
    host.cluster.thaw(Part::Osd);
    until("the pool to be ready", PATIENCE, || host.is_ready()).await;
    api.start(&host.running.id).await.expect("it is started");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_told_as_such_and_a_restored_one_noticed() {
    let host = Host::start().await;
    host.cluster.revoke_key(USER);
    let asked = host.ask_everything();
    host.a_vm_on_files_lives().await;
    Host::all_refused(asked, Code::PermissionDenied, "POOL_DENIED").await;
    host.is_not_ready("refuses the user").await;
    host.cluster.restore_key(USER);
    host.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_without_its_cluster_and_serves_the_vms_on_files() {
    let mut host = Host::start().await;
    for part in [Part::Osd, Part::Mon] {
        host.daemon.kill9();
        host.cluster.freeze(part);
        host.daemon.restart().await;
        host.is_not_ready("").await;
        host.a_vm_on_files_lives().await;
        let stopped = host.daemon.api().vm(&host.stopped.id).await.unwrap();
        assert_eq!(
            stopped.volumes, host.stopped.volumes,
            "known without asking"
        );
        host.cluster.thaw(part);
        until("the pool to be ready", PATIENCE, || host.is_ready()).await;
        host.daemon.api().made(on_ceph(&host.image)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_a_full_pool_is_refused_until_there_is_room() {
    let host = Host::start().await;
    let api = host.daemon.api();
    let to_remove = api.made(on_ceph(&host.image)).await;
    // What a daemon knows of a pool is some seconds old: it learns it either way.
    for pool in ["vms", "images"] {
        host.cluster.make_full(pool);
    }
    let begin = Instant::now();
    let refusal = api.not_made(on_ceph(&host.image)).await;
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::ResourceExhausted, "POOL_FULL")
    );
    let replace = ReplaceRootVolumeRequest {
        vm_id: host.stopped.id.clone(),
        image_id: host.image.clone(),
        ..Default::default()
    };
    let refusal = api.not_replaced(replace).await;
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::ResourceExhausted, "POOL_FULL")
    );
    let answer = api
        .images()
        .import_image(importing(&host.daemon, "ceph"))
        .await;
    let refusal = api.outcome(answer).await.expect_err("there is no room");
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::ResourceExhausted, "POOL_FULL")
    );
    assert!(begin.elapsed() < 3 * IN_TIME);
    assert!(host.is_ready().await.is_some(), "it is there, only full");
    host.a_vm_on_files_lives().await;
    // Another pool of the same cluster has room.
    let elsewhere = CreateVmRequest {
        system_tags: tag("vms-fast"),
        ..on_ceph(&host.image)
    };
    api.made(elsewhere).await;
    // Even what goes to the trash needs some room in a pool: nothing is removed
    // without its time there.
    api.delete(&to_remove.id).await;
    let refusal = api.expunge(&to_remove.id).await;
    let refusal = refusal.expect_err("there is no room for the trash");
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::ResourceExhausted, "POOL_FULL")
    );
    assert!(is_in(&host.cluster, "vms", &to_remove.root_volume_id));
    assert!(host.is_ready().await.is_some(), "it is there, only full");
    for pool in ["vms", "images"] {
        host.cluster.quota(pool, 0);
    }
    until("the pool to be known to have room", PATIENCE, async || {
        let answer = api.vms().create_vm(on_ceph(&host.image)).await;
        api.outcome(answer).await.ok()
    })
    .await;
    // The sweeper tries the same by itself, and may be the first.
    until("the VM to be expunged", PATIENCE, async || {
        match api.expunge(&to_remove.id).await {
            Ok(_) => Some(()),
            Err(refusal) => match refusal.reason.as_str() {
                "VM_NOT_FOUND" => Some(()),
                "VM_BUSY" => None,
                other => panic!("there is room: {other}"),
            },
        }
    })
    .await;
    assert!(!is_in(&host.cluster, "vms", &to_remove.root_volume_id));
    host.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceph_pool_that_was_removed_is_told_by_name_and_its_vms_can_be_removed() {
    let host = Host::start().await;
    let api = host.daemon.api();
    let fast = CreateVmRequest {
        system_tags: tag("vms-fast"),
        ..on_ceph(&host.image)
    };
    let vm = api.made(fast.clone()).await;
    host.cluster.remove_pool("vms-fast");
    let again = CreateVmRequest {
        vm_id: id(),
        root_volume: None,
        ..fast
    };
    let refusal = api.not_made(again).await;
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::NotFound, "CEPH_POOL_NOT_FOUND")
    );
    let refusal = api.start(&vm.id).await.expect_err("its disk is gone");
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::NotFound, "CEPH_POOL_NOT_FOUND")
    );
    assert!(host.is_ready().await.is_some(), "the others are there");
    api.made(on_ceph(&host.image)).await;
    // Another root, in a pool that is there, brings the VM back.
    let replace = ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: host.image.clone(),
        system_tags: tag("vms"),
        start_after: true,
        ..Default::default()
    };
    api.replaced(replace).await;
    api.remove(&vm.id).await;
    host.cluster.make_pool("vms-fast");
}
