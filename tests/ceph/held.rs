//! An outage in the middle of operations, with and without the daemon's own death in
//! between: afterwards each is finished, or nothing of it is left. All of them are held
//! where they are when it begins, so that one outage is that of all.

use crate::lab::*;
use crate::support::api::{Api, id};
use crate::support::ceph::Daemon as Part;
use crate::support::daemon::Daemon;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Longer than the cluster is waited for in a test.
const LONG: Duration = Duration::from_secs(180);

/// A host whose operations can be held. It gets the cluster back when the daemon is
/// gone.
struct Host {
    daemon: Daemon,
    cluster: Breakable,
    /// Of tests before it.
    others: BTreeSet<String>,
    points: PathBuf,
    image: String,
}

/// Where an operation is held.
#[derive(Debug, Clone, Copy)]
struct Held {
    ask: Ask,
    point: &'static str,
}

/// One that is held there.
struct AtWork {
    held: Held,
    /// The VM or image that it is about.
    object: String,
    /// The VM as it was before, if there was one.
    before: Option<Vm>,
    operation: String,
    /// What holds it.
    holder: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Create,
    Replace,
    Expunge,
    Import,
}

const HELD: &[Held] = &[
    Held {
        ask: Ask::Create,
        point: "create-vm.make-volume.before",
    },
    Held {
        ask: Ask::Create,
        point: "create-vm.define-domain.before",
    },
    Held {
        ask: Ask::Create,
        point: "create-vm.start-guest.before",
    },
    Held {
        ask: Ask::Replace,
        point: "replace-root-volume.make-volume.before",
    },
    Held {
        ask: Ask::Replace,
        point: "replace-root-volume.make-volume.after",
    },
    Held {
        ask: Ask::Replace,
        point: "replace-root-volume.switch-root.after",
    },
    Held {
        ask: Ask::Import,
        point: "import-image.convert-image.before",
    },
    Held {
        ask: Ask::Expunge,
        point: "expunge-vm.remove-volume.before",
    },
];

impl Host {
    async fn start() -> Self {
        let cluster = breakable().await;
        let others = volumes(&cluster);
        let points = cluster.folder().join(format!("points-{}", id()));
        let mut setup = setup(&cluster);
        let points_text = points.display().to_string();
        setup
            .environment
            .push(("FAILPOINTS_FILE".to_owned(), points_text));
        let daemon = started(setup).await;
        let image = image_on_ceph(&daemon).await;
        Self {
            daemon,
            cluster,
            others,
            points,
            image,
        }
    }

    /// Asks, and returns the operation when it is held.
    async fn hold(&self, held: Held) -> AtWork {
        let api = self.daemon.api();
        let before = self.needed(held.ask).await;
        let object = before.as_ref().map_or_else(id, |vm| vm.id.clone());
        let holder = self.cluster.folder().join(format!("held-{object}"));
        let line = format!("{}=1*return(hold:{})\n", held.point, holder.display());
        fs::write(&self.points, line).unwrap();
        let answer = match held.ask {
            Ask::Create => {
                let request = CreateVmRequest {
                    vm_id: object.clone(),
                    start: true,
                    ..on_ceph(&self.image)
                };
                api.vms().create_vm(request).await
            }
            Ask::Replace => {
                let request = ReplaceRootVolumeRequest {
                    vm_id: object.clone(),
                    image_id: self.image.clone(),
                    system_tags: tag("vms-fast"),
                    start_after: true,
                    ..Default::default()
                };
                api.vms().replace_root_volume(request).await
            }
            Ask::Expunge => {
                let request = ExpungeVmRequest {
                    vm_id: object.clone(),
                    ..Default::default()
                };
                api.vms().expunge_vm(request).await
            }
            Ask::Import => {
                let request = ImportImageRequest {
                    image_id: object.clone(),
                    ..importing(&self.daemon, "ceph")
                };
                api.images().import_image(request).await
            }
        };
        let operation = answer.unwrap().into_inner().id;
        until(held.point, PATIENCE, async || holder.exists().then_some(())).await;
        fs::write(&self.points, "").unwrap();
        AtWork {
            held,
            object,
            before,
            operation,
            holder,
        }
    }

    async fn hold_all(&self, all: impl Iterator<Item = &Held>) -> Vec<AtWork> {
        let mut at_work = Vec::new();
        for held in all {
            at_work.push(self.hold(*held).await);
        }
        at_work
    }

    /// The VM that something is asked of.
    async fn needed(&self, ask: Ask) -> Option<Vm> {
        let api = self.daemon.api();
        match ask {
            Ask::Create | Ask::Import => None,
            Ask::Replace => Some(api.made(on_ceph(&self.image)).await),
            Ask::Expunge => {
                let vm = api.made(on_ceph(&self.image)).await;
                api.delete(&vm.id).await;
                Some(vm)
            }
        }
    }

    /// The outage is noticed by an operation itself, or by the next look.
    async fn is_noticed(&self) {
        until("the outage to be noticed", PATIENCE, async || {
            (!self.daemon.api().condition("ceph").await.status).then_some(())
        })
        .await;
    }

    /// All of them end, now that the cluster is back, and what came of them is whole and
    /// recorded as it is.
    async fn all_are_whole(&self, at_work: Vec<AtWork>) {
        let api = self.daemon.api();
        for one in &at_work {
            let ended = ended(&api, &one.operation).await;
            reaches(&self.daemon).await;
            let (state, rollback) = (ended.state(), ended.rollback_state());
            println!("{:?}: {state:?} {rollback:?}", one.held);
            self.is_whole(one, &ended).await;
        }
        self.only_what_is_recorded_is_there().await;
    }

    async fn is_whole(&self, one: &AtWork, ended: &Operation) {
        let api = self.daemon.api();
        let done = ended.state() == OperationState::Succeeded;
        let (object, why) = (&one.object, format!("{:?}: {ended:?}", one.held));
        if !done {
            assert_eq!(ended.state(), OperationState::Failed, "{why}");
            assert_ne!(ended.rollback_state(), RollbackState::Failed, "{why}");
        }
        match one.held.ask {
            Ask::Create => {
                let vm = api.vm(object).await.unwrap();
                let expected = if done {
                    VmState::Running
                } else {
                    VmState::Failed
                };
                assert_eq!(vm.state(), expected, "{why}");
                let root = &vm.volumes[0];
                assert_eq!(is_in(&self.cluster, "vms", &root.id), done, "{why}");
            }
            Ask::Replace => {
                let before = one.before.as_ref().expect("there was one");
                let vm = api.vm(object).await.unwrap();
                assert_eq!(vm.root_volume_id != before.root_volume_id, done, "{why}");
            }
            // There is no way back: it is done when it is tried again.
            Ask::Expunge => {
                until("the VM to be expunged", PATIENCE, async || {
                    let _ = api.expunge(object).await;
                    api.vm(object).await.is_err().then_some(())
                })
                .await;
            }
            Ask::Import => {
                let images = self.cluster.images("images");
                assert_eq!(images.contains(&format!("img-{object}")), done, "{why}");
            }
        }
    }

    async fn only_what_is_recorded_is_there(&self) {
        let mut wanted = BTreeSet::new();
        for vm in self.daemon.api().all_vms().await {
            if vm.state() != VmState::Failed {
                let paths = vm.volumes.iter().map(|volume| volume.install_path.clone());
                wanted.extend(paths);
            }
        }
        let mut found = volumes(&self.cluster);
        found.retain(|volume| !self.others.contains(volume));
        assert_eq!(found, wanted);
    }
}

/// The operation when it has ended.
async fn ended(api: &Api, operation_id: &str) -> Operation {
    until("the operation to end", LONG, async || {
        let request = GetOperationRequest {
            operation_id: operation_id.to_owned(),
        };
        let shown = api.operations().get_operation(request).await.ok()?;
        let shown = shown.into_inner();
        (shown.state >= OperationState::Succeeded as i32).then_some(shown)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_an_outage_cuts_off_are_finished_or_undone() {
    let host = Host::start().await;
    let at_work = host.hold_all(HELD.iter()).await;
    host.cluster.freeze(Part::Osd);
    for one in &at_work {
        fs::remove_file(&one.holder).unwrap();
    }
    host.is_noticed().await;
    host.cluster.thaw(Part::Osd);
    host.all_are_whole(at_work).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_an_outage_and_a_kill_cut_off_are_finished_or_undone() {
    let mut host = Host::start().await;
    // Of the simulated host nothing outlives the daemon but what is in Ceph.
    let held = HELD
        .iter()
        .filter(|held| held.ask != Ask::Replace && !held.point.contains("start-guest"));
    let at_work = host.hold_all(held).await;
    host.cluster.freeze(Part::Osd);
    host.daemon.kill9();
    for one in &at_work {
        fs::remove_file(&one.holder).unwrap();
    }
    host.daemon.restart().await;
    host.is_noticed().await;
    host.cluster.thaw(Part::Osd);
    host.all_are_whole(at_work).await;
}
