//! The host's clock is set forward and back, while the daemon runs and over its
//! restart. Its monotonic clock goes on, as the kernel's does.

use crate::support::api::{Api, Start, force, graceful, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::refusal::{Refusal, refused};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A daemon whose clock can be set.
struct Place {
    daemon: Daemon,
    folder: TempDir,
}

/// The library that tells a process another time.
fn library() -> PathBuf {
    #[allow(clippy::disallowed_methods)] // it asks where the package has put it
    let listed = Command::new("dpkg").args(["-L", "libfaketime"]).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let mut lines = listed.lines();
    let found = lines.find(|line| line.ends_with("/libfaketimeMT.so.1"));
    found
        .expect("libfaketime is installed (scripts/setup)")
        .into()
}

impl Place {
    async fn start() -> Self {
        Self::on(Setup::default()).await
    }

    async fn on(mut setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let environment = [
            ("LD_PRELOAD", library().display().to_string()),
            (
                "FAKETIME_TIMESTAMP_FILE",
                Self::file(&folder).display().to_string(),
            ),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            (
                "FAILPOINTS_FILE",
                folder.path().join("points").display().to_string(),
            ),
        ];
        fs::write(Self::file(&folder), "+0").unwrap();
        let environment = environment.map(|(key, value)| (key.to_owned(), value));
        setup.environment.extend(environment);
        let daemon = Daemon::start(setup).await;
        Self { daemon, folder }
    }

    fn file(folder: &TempDir) -> PathBuf {
        folder.path().join("clock")
    }

    /// Sets the clock so far from the true time.
    fn set(&self, offset: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, offset).unwrap();
        fs::rename(new, Self::file(&self.folder)).unwrap();
    }

    /// Has the next operation that comes to a point wait there.
    fn hold(&self, point: &str) {
        let line = format!("{point}=1*return(hold:{})", self.held().display());
        fs::write(self.folder.path().join("points"), line).unwrap();
    }

    /// A file that is there while an operation is held, and removed to let it go on.
    fn held(&self) -> PathBuf {
        self.folder.path().join("held")
    }

    async fn until_held(&self) {
        until("the step to be held", PATIENCE, async || {
            self.held().exists().then_some(())
        })
        .await;
    }

    /// Waits until the daemon has looked at its clock and seen that.
    async fn sees(&self, words: &str) {
        until(words, PATIENCE, async || {
            self.daemon.log().contains(words).then_some(())
        })
        .await;
    }
}

impl Place {
    /// The condition of the clock, once it is such.
    async fn clock_condition(&self, sane: bool) -> Condition {
        let api = self.daemon.api();
        until("the condition of the clock", PATIENCE, async || {
            let conditions = api.node().await.conditions;
            let clock = |it: &Condition| it.r#type == "ClockSane" && it.status == sane;
            conditions.into_iter().find(clock)
        })
        .await
    }
}

async fn delete(api: &Api, vm_id: &str, retention: i64) {
    let request = DeleteVmRequest {
        vm_id: vm_id.to_owned(),
        retention: Some(prost_types::Duration {
            seconds: retention,
            nanos: 0,
        }),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(request).await).await;
}

const TEN_YEARS: i64 = 10 * 365 * 24 * 3600;

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_removes_nothing_and_one_set_right_goes_on() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let image = place.daemon.image().await;
    let deleted = api.create(&image, Start::No).await;
    let replaced = api.create(&image, Start::No).await;
    let replace = ReplaceRootVolumeRequest {
        vm_id: replaced.clone(),
        image_id: image.clone(),
        ..Default::default()
    };
    let old = api.vm(&replaced).await.unwrap().root_volume_id;
    let operation = api.done(api.vms().replace_root_volume(replace).await).await;
    delete(&api, &deleted, 3600).await;
    let files = place.daemon.pool_files();

    place.set("+3650d");
    place.sees("the clock was set forward").await;
    let doubted = place.clock_condition(false).await;
    assert_eq!(doubted.reason, "SetForward");
    assert_eq!(api.state(&deleted).await, VmState::Deleted);
    assert_eq!(place.daemon.pool_files(), files);
    let request = GetOperationRequest {
        operation_id: operation.id,
    };
    api.operations().get_operation(request).await.unwrap();
    let revert = RevertRootVolumeRequest {
        vm_id: replaced.clone(),
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert).await).await;
    assert_eq!(api.vm(&replaced).await.unwrap().root_volume_id, old);
    let recover = RecoverVmRequest {
        vm_id: deleted.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(recover).await).await;

    // Set right, what is due is removed as ever.
    place.set("+0");
    delete(&api, &deleted, 1).await;
    place.sees("the clock was set back").await;
    place.clock_condition(true).await;
    until("the end of the retention", PATIENCE, async || {
        api.vm(&deleted).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_are_not_the_clocks_and_times_are() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let image = place.daemon.image().await;
    place.hold("create-vm.define-domain.before");
    let wanted = small(&image);
    let answer = api.vms().create_vm(wanted.clone()).await.unwrap();
    let at_work = answer.into_inner();
    place.until_held().await;
    for offset in ["+3650d", "-3650d"] {
        // It is set while someone waits.
        let wait = WaitOperationRequest {
            operation_id: at_work.id.clone(),
            timeout: Some(prost_types::Duration {
                seconds: 2,
                nanos: 0,
            }),
        };
        let begin = Instant::now();
        let mut operations = api.operations();
        let waiting = operations.wait_operation(wait);
        place.set(offset);
        // By the clock that is set, it would be over at once, or in ten years.
        let told = tokio::time::timeout(PATIENCE, waiting).await;
        let told = told.expect("an answer").unwrap().into_inner();
        assert_eq!(told.state(), OperationState::Running);
        let took = begin.elapsed();
        assert!(took >= Duration::from_secs(2), "{took:?}");
    }
    // It ends ten years before it began, and all is well.
    fs::remove_file(place.held()).unwrap();
    let ended = api.ended(&at_work.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let (begun, end) = (ended.create_time.unwrap(), ended.end_time.unwrap());
    assert!(begun.seconds - end.seconds > TEN_YEARS - 3600, "{ended:?}");

    // What is made now has ids and times of its own, and lists hold all of it.
    let again = api.create(&image, Start::Yes).await;
    assert_eq!(api.state(&again).await, VmState::Running);
    let listed = api.all_operations().await;
    assert_eq!(listed.len(), 3, "{listed:?}");
    let mut ids: Vec<_> = listed.iter().map(|operation| &operation.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    let times = listed.iter().map(|o| o.create_time.unwrap().seconds);
    assert!(
        times.is_sorted_by(|a, b| a >= b),
        "newest first, by the clock"
    );
    let created = api.vm(&again).await.unwrap().create_time.unwrap();
    assert!(begun.seconds - created.seconds > TEN_YEARS - 3600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_over_a_restart_loses_nothing() {
    let mut place = Place::start().await;
    let image = place.daemon.image().await;
    let api = place.daemon.api();
    let (kept, deleted) = (
        api.create(&image, Start::No).await,
        api.create(&image, Start::No).await,
    );
    delete(&api, &deleted, 3600).await;
    place.hold("create-vm.make-volume.before");
    let wanted = CreateVmRequest {
        request_id: id(),
        ..small(&image)
    };
    let answer = api.vms().create_vm(wanted.clone()).await.unwrap();
    let at_work = answer.into_inner().id;
    place.until_held().await;
    place.daemon.kill9();
    fs::write(place.folder.path().join("points"), "").unwrap();
    place.set("-3650d");
    place.daemon.restart().await;
    let api = place.daemon.api();
    let ended = api.ended(&at_work).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let again = api.vms().create_vm(wanted.clone()).await.unwrap();
    assert_eq!(again.get_ref().id, at_work, "it is the same request");
    assert_eq!(api.state(&deleted).await, VmState::Deleted);
    // A simulated host's domains ended with it; the records have not.
    assert_eq!(api.state(&kept).await, VmState::Lost);
    let refusal = refused(
        api.vms()
            .create_vm(CreateVmRequest {
                name: "other".to_owned(),
                ..wanted
            })
            .await,
    );
    assert_eq!(refusal.reason, "REQUEST_ID_REUSED");

    // And forward again, over another restart.
    place.daemon.stop().await;
    place.set("+0");
    place.daemon.restart().await;
    let api = place.daemon.api();
    assert_eq!(api.state(&deleted).await, VmState::Deleted);
    assert!(
        api.all_operations()
            .await
            .iter()
            .any(|operation| operation.id == at_work)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_was_overtaken_is_known_though_its_overtaker_looks_older() {
    let libvirtd = Libvirtd::start();
    // The domains are there as long as anyone is connected.
    let connection = libvirtd.connect();
    let mut place = Place::on(Setup::on(libvirtd.uri())).await;
    let api = place.daemon.api();
    let vm_id = api.create(&place.daemon.image().await, Start::Yes).await;
    let stop = |stop_policy| StopVmRequest {
        vm_id: vm_id.clone(),
        stop_policy: Some(stop_policy),
        ..Default::default()
    };

    place.hold("stop-vm.stop-guest.before");
    let gentle = api.vms().stop_vm(stop(graceful())).await.unwrap();
    place.until_held().await;
    place.set("-1h");
    let forced = api.vms().stop_vm(stop(force())).await.unwrap();
    let time = |of: &tonic::Response<Operation>| of.get_ref().create_time.unwrap().seconds;
    assert!(time(&forced) < time(&gentle));
    place.daemon.kill9();
    fs::write(place.folder.path().join("points"), "").unwrap();
    place.daemon.restart().await;

    let api = place.daemon.api();
    let forced = api.ended(&forced.get_ref().id).await;
    assert_eq!(forced.state(), OperationState::Succeeded, "{forced:?}");
    let gentle = api.ended(&gentle.get_ref().id).await;
    assert_eq!(gentle.state(), OperationState::Cancelled, "{gentle:?}");
    let why = Refusal::from(gentle.error.as_ref().unwrap());
    assert_eq!(why.reason, "OVERTAKEN");
    assert_eq!(api.state(&vm_id).await, VmState::Stopped);
    drop(connection);
}
