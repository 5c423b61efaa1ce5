//! CancelOperation, in every step of every operation: before the point of no
//! return all is undone; from it on it is refused.

use crate::ask::Ask;
use crate::support::api::{Api, Start, id};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::{Refusal, refused};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::fs;
use tempfile::TempDir;
use tonic::Code;

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It ends CANCELLED, and all is as it was before.
    Undone,
    /// It is refused, and the operation goes on.
    Refused,
}
use Then::{Refused, Undone};

/// What is asked, of a VM that was made so, at which step, and what a
/// cancellation comes to.
const STEPS: &[(Ask, &[Ask], &str, Then)] = &[
    (Ask::Create, &[], "create-vm.make-volume", Undone),
    (Ask::Create, &[], "create-vm.define-domain", Undone),
    (Ask::Create, &[], "create-vm.start-guest", Undone),
    (Ask::Start, STOPPED, "start-vm.start-guest", Refused),
    (Ask::StopGently, RUNNING, "stop-vm.stop-guest", Undone),
    (Ask::StopForce, RUNNING, "stop-vm.stop-guest", Refused),
    (Ask::Discard, SAVED, "stop-vm.discard-saved-memory", Refused),
    (Ask::Pause, RUNNING, "pause-vm.pause-guest", Refused),
    (Ask::Resume, PAUSED, "resume-vm.resume-guest", Refused),
    (Ask::Save, RUNNING, "save-vm.save-memory", Refused),
    (Ask::Reset, RUNNING, "reset-vm.reset-guest", Refused),
    (
        Ask::Reboot,
        RUNNING,
        "reboot-vm.ask-guest-to-reboot",
        Refused,
    ),
    (Ask::Describe, RUNNING, "update-vm.describe-domain", Undone),
    (Ask::Redefine, STOPPED, "update-vm.redefine-domain", Undone),
    (
        Ask::Replace,
        RUNNING,
        "replace-root-volume.make-volume",
        Undone,
    ),
    (
        Ask::Replace,
        RUNNING,
        "replace-root-volume.stop-guest",
        Undone,
    ),
    (
        Ask::Replace,
        RUNNING,
        "replace-root-volume.switch-root",
        Undone,
    ),
    (
        Ask::Replace,
        RUNNING,
        "replace-root-volume.start-guest",
        Undone,
    ),
    (
        Ask::Revert,
        REPLACED,
        "revert-root-volume.stop-guest",
        Undone,
    ),
    (
        Ask::Revert,
        REPLACED,
        "revert-root-volume.switch-root",
        Undone,
    ),
    (
        Ask::Revert,
        REPLACED,
        "revert-root-volume.start-guest",
        Undone,
    ),
    (Ask::Delete, RUNNING, "delete-vm.stop-guest", Undone),
    (Ask::Delete, RUNNING, "delete-vm.mark-deleted", Undone),
    (
        Ask::DeleteForGood,
        RUNNING,
        "delete-vm.check-power-off",
        Undone,
    ),
    (
        Ask::DeleteForGood,
        RUNNING,
        "delete-vm.mark-expunging",
        Refused,
    ),
    (Ask::Recover, DELETED, "recover-vm.check-volumes", Undone),
    (
        Ask::Recover,
        DELETED,
        "recover-vm.bring-back-domain",
        Undone,
    ),
    (Ask::Expunge, DELETED, "expunge-vm.check-power-off", Undone),
    (Ask::Expunge, DELETED, "expunge-vm.mark-expunging", Refused),
    (Ask::Expunge, DELETED, "expunge-vm.remove-domain", Refused),
    (Ask::Expunge, DELETED, "expunge-vm.remove-volume", Refused),
    (
        Ask::Expunge,
        DELETED,
        "expunge-vm.remove-console-log",
        Refused,
    ),
];
const RUNNING: &[Ask] = &[Ask::Create];
const STOPPED: &[Ask] = &[Ask::Create, Ask::StopForce];
const PAUSED: &[Ask] = &[Ask::Create, Ask::Pause];
const SAVED: &[Ask] = &[Ask::Create, Ask::Save];
const REPLACED: &[Ask] = &[Ask::Create, Ask::Replace];
const DELETED: &[Ask] = &[Ask::Create, Ask::Delete];

struct Place {
    daemon: Daemon,
    folder: TempDir,
}

impl Place {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let points = folder.path().join("points").display().to_string();
        let setup = Setup {
            environment: vec![("FAILPOINTS_FILE".to_owned(), points)],
            ..Setup::default()
        };
        let daemon = Daemon::start(setup).await;
        Self { daemon, folder }
    }

    /// Has the next operation that comes to a step wait before it.
    fn hold(&self, point: &str) {
        let held = self.folder.path().join("held");
        let line = format!("{point}.before=1*return(hold:{})\n", held.display());
        fs::write(self.folder.path().join("points"), line).unwrap();
    }

    /// Cancels an operation that is held, and lets it go on. Returns what the
    /// cancellation was answered, and how the operation ended.
    async fn cancel(&self, operation_id: &str) -> (Option<Refusal>, Operation) {
        let held = self.folder.path().join("held");
        until("the step to be held", PATIENCE, async || {
            held.exists().then_some(())
        })
        .await;
        let api = self.daemon.api();
        let request = CancelOperationRequest {
            operation_id: operation_id.to_owned(),
        };
        let refusal = match api.operations().cancel_operation(request).await {
            Ok(_) => None,
            Err(status) => Some(refused::<()>(Err(status))),
        };
        fs::remove_file(held).unwrap();
        let ended = api.ended(operation_id).await;
        fs::write(self.folder.path().join("points"), "").unwrap();
        (refusal, ended)
    }
}

/// What a VM is, apart from when it was last touched.
async fn shape(api: &Api, vm_id: &str) -> Option<Vm> {
    let mut vm = api.vm(vm_id).await.ok()?;
    vm.update_time = None;
    vm.state_reason = 0;
    for volume in &mut vm.volumes {
        volume.actual_size_bytes = 0;
    }
    Some(vm)
}

fn check(what: &str, then: Then, refusal: Option<Refusal>, ended: &Operation) {
    match then {
        Undone => {
            assert_eq!(refusal, None, "{what}");
            assert_eq!(
                ended.state(),
                OperationState::Cancelled,
                "{what}: {ended:?}"
            );
            assert_ne!(ended.rollback_state(), RollbackState::Failed, "{what}");
            let why = Refusal::from(ended.error.as_ref().unwrap());
            let told = (why.code, why.reason.as_str());
            assert_eq!(told, (Code::Cancelled, "CANCELLED_BY_CALLER"), "{what}");
        }
        Refused => {
            let refusal = refusal.unwrap_or_else(|| panic!("{what} could be cancelled"));
            let told = (refusal.code, refusal.reason.as_str());
            assert_eq!(
                told,
                (Code::FailedPrecondition, "NOT_CANCELLABLE"),
                "{what}"
            );
            assert_eq!(refusal.metadata["operation_id"], ended.id);
            assert_eq!(
                ended.state(),
                OperationState::Succeeded,
                "{what}: {ended:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_undone_or_goes_on_and_says_which() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let image = place.daemon.image().await;
    for (ask, made_by, point, then) in STEPS {
        let vm_id = id();
        for ask in *made_by {
            api.done(ask.send(&api, &vm_id, &image).await).await;
        }
        let before = (shape(&api, &vm_id).await, place.daemon.pool_files());
        place.hold(point);
        let answer = ask.send(&api, &vm_id, &image).await.unwrap();
        let (refusal, ended) = place.cancel(&answer.get_ref().id).await;
        check(point, *then, refusal, &ended);
        if *then == Undone {
            assert_eq!(place.daemon.pool_files(), before.1, "{point}");
            if *ask == Ask::Create {
                assert_eq!(api.state(&vm_id).await, VmState::Failed);
            } else {
                assert_eq!(shape(&api, &vm_id).await, before.0, "{point}");
            }
            // Asked again, it is done.
            api.done(ask.send(&api, &vm_id, &image).await).await;
        }
    }
    println!("{} steps, {} ok", STEPS.len(), STEPS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_undone_and_a_deletion_of_an_image_goes_on() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let kept = place.daemon.image().await;
    for point in ["import-image.fetch-source", "import-image.convert-image"] {
        let files = place.daemon.pool_files();
        let request = ImportImageRequest {
            image_id: id(),
            source: place
                .daemon
                .blank(&format!("{}.qcow2", id()), 1)
                .display()
                .to_string(),
            format: ImageFormat::Qcow2 as i32,
            ..Default::default()
        };
        place.hold(point);
        let answer = api.images().import_image(request.clone()).await.unwrap();
        let (refusal, ended) = place.cancel(&answer.get_ref().id).await;
        check(point, Undone, refusal, &ended);
        assert_eq!(place.daemon.pool_files(), files, "{point}");
        api.done(api.images().import_image(request).await).await;
    }
    place.hold("delete-image.remove-image");
    let request = DeleteImageRequest {
        image_id: kept.clone(),
        ..Default::default()
    };
    let answer = api.images().delete_image(request).await.unwrap();
    let (refusal, ended) = place.cancel(&answer.get_ref().id).await;
    check("delete-image.remove-image", Refused, refusal, &ended);
    let files = place.daemon.pool_files();
    assert!(files.iter().all(|file| !file.contains(&kept)), "{files:?}");
    api.create(&place.daemon.image().await, Start::No).await;
}
