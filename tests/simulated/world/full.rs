//! File systems fill up: a pool's, before, during and after each step that writes
//! to it, and the journal's.

use crate::support::api::{Api, Start, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::{Refusal, refused};
use crate::support::small::Small;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tonic::{Code, Response, Status};

/// A daemon with a small pool, and fault points to fill it at.
struct Place {
    daemon: Daemon,
    small: Small,
    image: String,
}

impl Place {
    async fn start() -> Self {
        let small = Small::of(32 << 20);
        let pool = format!(
            "[[pools]]\nname = \"small\"\nkind = \"qcow2\"\npath = \"{}/pool\"\n",
            small.path().display()
        );
        let points = small.seen().join("points");
        let setup = Setup {
            launcher: small.launcher(),
            more: pool,
            environment: vec![(
                "FAILPOINTS_FILE".to_owned(),
                small.path().join("points").display().to_string(),
            )],
            ..Setup::default()
        };
        fs::write(points, "").unwrap();
        let daemon = Daemon::start(setup).await;
        let image = daemon.image().await;
        Self {
            daemon,
            small,
            image,
        }
    }

    /// Sends a request; fills the pool when it has come to a point; returns how it
    /// ended, and makes room again.
    async fn filled_at(
        &self,
        point: &str,
        answer: impl Future<Output = Result<Response<Operation>, Status>>,
    ) -> Operation {
        let held = self.small.path().join("held");
        let points = format!("{point}=1*return(hold:{})\n", held.display());
        fs::write(self.small.seen().join("points"), points).unwrap();
        let operation = answer.await.unwrap().into_inner();
        let held: PathBuf = self.small.seen().join("held");
        until(point, PATIENCE, async || held.exists().then_some(())).await;
        self.small.fill(0);
        fs::remove_file(held).unwrap();
        let ended = self.daemon.api().ended(&operation.id).await;
        self.small.empty();
        fs::write(self.small.seen().join("points"), "").unwrap();
        ended
    }

    fn files(&self) -> (Vec<PathBuf>, Vec<String>) {
        (self.small.files("pool"), self.daemon.pool_files())
    }

    /// A request for a VM whose root is in the small pool.
    fn wanted(&self) -> CreateVmRequest {
        CreateVmRequest {
            root_volume: Some(NewVolume {
                pool: "small".to_owned(),
                ..Default::default()
            }),
            ..small(&self.image)
        }
    }
}

fn ran_full(operation: &Operation, point: &str) {
    assert_eq!(
        operation.state(),
        OperationState::Failed,
        "{point}: {operation:?}"
    );
    assert_ne!(operation.rollback_state(), RollbackState::Failed, "{point}");
    let refusal = Refusal::from(operation.error.as_ref().unwrap());
    assert_eq!(
        refusal.code,
        Code::ResourceExhausted,
        "{point}: {refusal:?}"
    );
    assert_eq!(refusal.reason, "POOL_FULL", "{point}");
    assert!(refusal.message.contains("space"), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_full_refuses_and_one_that_fills_up_undoes() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let none = place.files();

    // Before: refused.
    place.small.fill(0);
    let refusal = refused(api.vms().create_vm(place.wanted()).await);
    assert_eq!(
        refusal.brief(),
        (Code::ResourceExhausted, "POOL_FULL", vec![])
    );
    place.small.empty();
    assert_eq!(place.files(), none);

    // During: undone.
    for point in [
        "create-vm.cache-image.before",
        "create-vm.make-volume.before",
        "pool.create.begun",
    ] {
        let wanted = place.wanted();
        let mut vms = api.vms();
        let ended = place.filled_at(point, vms.create_vm(wanted.clone())).await;
        ran_full(&ended, point);
        assert_eq!(api.state(&wanted.vm_id).await, VmState::Failed);
        let mut left = place.files();
        // A cache keeps what it has.
        left.0
            .retain(|path| !path.to_string_lossy().contains(&place.image));
        assert_eq!(left, none, "{point}");
        // The same request again, with room.
        api.done(api.vms().create_vm(wanted.clone()).await).await;
        let delete = DeleteVmRequest {
            vm_id: wanted.vm_id,
            retention: Some(Default::default()),
            ..Default::default()
        };
        api.done(api.vms().delete_vm(delete).await).await;
    }

    // After: what is written is there.
    for point in ["pool.create.written", "create-vm.make-volume.after"] {
        let mut vms = api.vms();
        let ended = place.filled_at(point, vms.create_vm(place.wanted())).await;
        assert_eq!(
            ended.state(),
            OperationState::Succeeded,
            "{point}: {ended:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_finds_its_pool_full_leaves_the_old_root() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let wanted = place.wanted();
    api.done(api.vms().create_vm(wanted.clone()).await).await;
    let (files, before) = (place.files(), api.vm(&wanted.vm_id).await.unwrap());
    let replace = || ReplaceRootVolumeRequest {
        vm_id: wanted.vm_id.clone(),
        image_id: place.image.clone(),
        ..Default::default()
    };
    place.small.fill(0);
    let refusal = refused(api.vms().replace_root_volume(replace()).await);
    assert_eq!(refusal.reason, "POOL_FULL");
    place.small.empty();
    for point in [
        "replace-root-volume.make-volume.before",
        "pool.create.begun",
    ] {
        let mut vms = api.vms();
        let ended = place
            .filled_at(point, vms.replace_root_volume(replace()))
            .await;
        ran_full(&ended, point);
        assert_eq!(place.files(), files, "{point}");
        let vm = api.vm(&wanted.vm_id).await.unwrap();
        assert_eq!(vm.root_volume_id, before.root_volume_id);
        assert_eq!(vm.volumes.len(), 1, "{vm:?}");
    }
    api.done(api.vms().replace_root_volume(replace()).await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_finds_its_pool_full_leaves_nothing() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let files = place.small.files("pool");
    let import = || ImportImageRequest {
        image_id: id(),
        source: place
            .daemon
            .blank(&format!("{}.qcow2", id()), 1)
            .display()
            .to_string(),
        format: ImageFormat::Qcow2 as i32,
        pool: "small".to_owned(),
        ..Default::default()
    };
    for point in [
        "import-image.fetch-source.before",
        "import-image.convert-image.before",
        "pool.put-image.begun",
    ] {
        let request = import();
        let mut images = api.images();
        let ended = place
            .filled_at(point, images.import_image(request.clone()))
            .await;
        ran_full(&ended, point);
        assert_eq!(place.small.files("pool"), files, "{point}");
        api.done(api.images().import_image(request.clone()).await)
            .await;
        let delete = DeleteImageRequest {
            image_id: request.image_id,
            ..Default::default()
        };
        api.done(api.images().delete_image(delete).await).await;
        assert_eq!(place.small.files("pool"), files, "{point}");
    }
}

/// A daemon whose journal is in a file system of its own.
async fn with_journal(small: &Small) -> Daemon {
    let setup = Setup {
        launcher: small.launcher(),
        journal: Some(small.path().join("journal.db")),
        environment: vec![(
            "FAILPOINTS_FILE".to_owned(),
            small.path().join("points").display().to_string(),
        )],
        ..Setup::default()
    };
    Daemon::start(setup).await
}

async fn writable(api: &Api) -> bool {
    let node = api.node().await;
    let condition = node
        .conditions
        .iter()
        .find(|c| c.r#type == "JournalWritable");
    condition.unwrap().status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_gives_no_false_answer_and_works_again_by_itself() {
    let small = Small::of(4 << 20);
    let daemon = with_journal(&small).await;
    let api = daemon.api();
    let image = daemon.image().await;
    let vm = api.create(&image, Start::No).await;
    let start = |request_id: &str| StartVmRequest {
        vm_id: vm.clone(),
        request_id: request_id.to_owned(),
        ..Default::default()
    };

    // One is at work when it fills up.
    let held = small.seen().join("held");
    let hold = small.path().join("held").display().to_string();
    let point = format!("create-vm.define-domain.before=1*return(hold:{hold})\n");
    fs::write(small.seen().join("points"), point).unwrap();
    let wanted = crate::support::api::small(&image);
    let answer = api.vms().create_vm(wanted.clone()).await;
    let at_work = answer.unwrap().into_inner();
    until("the step to be held", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    small.fill(0);
    // What is in the journal's log already is written over: so until it is full.
    let request_id = id();
    let refusal = until("a refusal", PATIENCE, async || {
        let stop = StopVmRequest {
            vm_id: vm.clone(),
            ..Default::default()
        };
        // Already there: only recorded.
        let answer = api.vms().stop_vm(stop).await;
        answer.err().map(|status| Refusal::from(&status))
    })
    .await;
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::Unavailable, "JOURNAL_UNAVAILABLE")
    );
    assert_eq!(refusal.metadata["problem"], "full");
    assert!(refusal.retry.is_some());
    let refusal = refused(api.vms().start_vm(start(&request_id)).await);
    assert_eq!(refusal.reason, "JOURNAL_UNAVAILABLE");
    assert!(!writable(&api).await);

    // Nothing was done of what was refused, and reads go on.
    assert_eq!(api.state(&vm).await, VmState::Stopped);
    assert_eq!(api.vm(&vm).await.unwrap().current_operation_id, "");
    api.all_operations().await;
    fs::remove_file(&held).unwrap();
    // The one at work has done its work, and does not say so yet.
    let wait = WaitOperationRequest {
        operation_id: at_work.id.clone(),
        timeout: Some(prost_types::Duration {
            seconds: 3,
            nanos: 0,
        }),
    };
    let told = api.operations().wait_operation(wait).await.unwrap();
    assert_eq!(told.get_ref().state(), OperationState::Running);
    assert_eq!(told.get_ref().end_time, None);

    small.empty();
    let ended = api.ended(&at_work.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    until("the condition", PATIENCE, async || {
        writable(&api).await.then_some(())
    })
    .await;
    // The same id is free for the same request: it was never taken.
    api.done(api.vms().start_vm(start(&request_id)).await).await;
    assert_eq!(api.state(&vm).await, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_while_the_journal_filled_up_is_known_after_a_restart() {
    let small = Small::of(8 << 20);
    let mut daemon = with_journal(&small).await;
    let image = daemon.image().await;
    let api = daemon.api();
    let mut vms = Vec::new();
    for _ in 0..4 {
        vms.push(api.create(&image, Start::No).await);
    }
    // Requests go on while the file system fills up and is emptied.
    let mut answered: BTreeMap<String, String> = BTreeMap::new();
    let mut refusals = 0;
    for round in 0..6 {
        if round % 2 == 0 {
            small.fill(8 << 10);
        } else {
            small.empty();
        }
        for number in 0..40 {
            let request_id = id();
            let vm_id = vms[number % vms.len()].clone();
            let answer = if number / vms.len() % 2 == 0 {
                let request = StartVmRequest {
                    vm_id,
                    request_id: request_id.clone(),
                    ..Default::default()
                };
                api.vms().start_vm(request).await
            } else {
                let request = StopVmRequest {
                    vm_id,
                    request_id: request_id.clone(),
                    stop_policy: Some(crate::support::api::force()),
                    ..Default::default()
                };
                api.vms().stop_vm(request).await
            };
            match answer {
                Ok(operation) => {
                    answered.insert(operation.into_inner().id, request_id);
                }
                Err(status) => {
                    let refusal = Refusal::from(&status);
                    let known = ["JOURNAL_UNAVAILABLE", "VM_BUSY"];
                    assert!(known.contains(&refusal.reason.as_str()), "{refusal:?}");
                    refusals += usize::from(refusal.reason == known[0]);
                }
            }
        }
    }
    assert!(refusals > 0, "it was never full");
    daemon.kill9();
    daemon.restart().await;
    let api = daemon.api();
    for (operation_id, request_id) in &answered {
        let request = GetOperationRequest {
            operation_id: operation_id.clone(),
        };
        let operation = api.operations().get_operation(request).await;
        let operation = operation.unwrap().into_inner();
        assert_eq!(&operation.request_id, request_id);
        api.ended(operation_id).await;
    }
    println!("{} answered, {refusals} refused", answered.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_on_a_full_journal_reads_and_waits_for_room() {
    let small = Small::of(4 << 20);
    let mut daemon = with_journal(&small).await;
    let api = daemon.api();
    let vm = api.create(&daemon.image().await, Start::No).await;
    let held = small.seen().join("held");
    let hold = small.path().join("held").display().to_string();
    let point = format!("create-vm.define-domain.before=1*return(hold:{hold})\n");
    fs::write(small.seen().join("points"), point).unwrap();
    let wanted = crate::support::api::small(&daemon.image().await);
    let answer = api.vms().create_vm(wanted.clone()).await;
    let at_work = answer.unwrap().into_inner().id;
    until("the step to be held", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    daemon.kill9();
    fs::remove_file(&held).unwrap();
    fs::write(small.seen().join("points"), "").unwrap();
    small.fill(0);
    daemon.restart().await;
    let api = daemon.api();
    api.vm(&vm).await.unwrap();
    small.empty();
    let ended = api.ended(&at_work).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert_eq!(api.state(&wanted.vm_id).await, VmState::Stopped);
}
