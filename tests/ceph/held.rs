//! An outage in the middle of an operation, with and without the daemon's own death
//! in between: afterwards it is finished, or nothing of it is left.

use crate::lab::*;
use crate::support::api::{Api, id};
use crate::support::ceph::{Cluster, Daemon as Part};
use crate::support::daemon::Daemon;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Longer than the cluster is waited for in a test.
const LONG: Duration = Duration::from_secs(180);

/// A host whose operations can be held.
struct Host {
    cluster: Cluster,
    daemon: Daemon,
    points: PathBuf,
    image: String,
    vm: Vm,
}

/// An operation that is held at a point.
#[derive(Debug, Clone, Copy)]
struct Held {
    ask: Ask,
    point: &'static str,
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
        let cluster = Cluster::start();
        let points = cluster.folder().join("points");
        let mut setup = setup(&cluster);
        let points_text = points.display().to_string();
        setup
            .environment
            .push(("FAILPOINTS_FILE".to_owned(), points_text));
        let daemon = started(setup).await;
        let image = image_on_ceph(&daemon).await;
        let api = daemon.api();
        let vm = api.made(on_ceph(&image)).await;
        Self {
            cluster,
            daemon,
            points,
            image,
            vm,
        }
    }

    /// Asks, and returns the operation when it is held, with what holds it. The VM or
    /// image that it is about has this id.
    async fn hold(&self, held: Held, object: &str) -> (String, PathBuf) {
        let api = self.daemon.api();
        let path = self.cluster.folder().join(format!("held-{object}"));
        let line = format!("{}=1*return(hold:{})\n", held.point, path.display());
        fs::write(&self.points, line).unwrap();
        let answer = match held.ask {
            Ask::Create => {
                let request = CreateVmRequest {
                    vm_id: object.to_owned(),
                    start: true,
                    ..on_ceph(&self.image)
                };
                api.vms().create_vm(request).await
            }
            Ask::Replace => {
                let request = ReplaceRootVolumeRequest {
                    vm_id: object.to_owned(),
                    image_id: self.image.clone(),
                    system_tags: tag("vms-fast"),
                    start_after: true,
                    ..Default::default()
                };
                api.vms().replace_root_volume(request).await
            }
            Ask::Expunge => {
                let request = ExpungeVmRequest {
                    vm_id: object.to_owned(),
                    ..Default::default()
                };
                api.vms().expunge_vm(request).await
            }
            Ask::Import => {
                let request = ImportImageRequest {
                    image_id: object.to_owned(),
                    ..importing(&self.daemon, "ceph")
                };
                api.images().import_image(request).await
            }
        };
        let operation = answer.unwrap().into_inner().id;
        until(held.point, PATIENCE, async || path.exists().then_some(())).await;
        fs::write(&self.points, "").unwrap();
        (operation, path)
    }

    /// What the operation is asked about: the VM that there is, or something new.
    async fn object(&self, ask: Ask) -> String {
        match ask {
            Ask::Create | Ask::Import => id(),
            Ask::Replace => self.vm.id.clone(),
            Ask::Expunge => {
                let api = self.daemon.api();
                let vm = api.made(on_ceph(&self.image)).await;
                api.delete(&vm.id).await;
                vm.id
            }
        }
    }

    /// What came of it is whole, and recorded as it is.
    async fn is_whole(&self, held: Held, object: &str, ended: &Operation) {
        let api = self.daemon.api();
        let done = ended.state() == OperationState::Succeeded;
        let why = format!("{held:?}: {ended:?}");
        if !done {
            assert_eq!(ended.state(), OperationState::Failed, "{why}");
            assert_ne!(ended.rollback_state(), RollbackState::Failed, "{why}");
        }
        match held.ask {
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
                let vm = api.vm(object).await.unwrap();
                assert_eq!(vm.root_volume_id != self.vm.root_volume_id, done, "{why}");
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
        self.only_what_is_recorded_is_there(&api, &why).await;
    }

    async fn only_what_is_recorded_is_there(&self, api: &Api, why: &str) {
        let mut wanted: Vec<String> = Vec::new();
        for vm in api.all_vms().await {
            if vm.state() != VmState::Failed {
                let paths = vm.volumes.iter().map(|volume| volume.install_path.clone());
                wanted.extend(paths);
            }
        }
        wanted.sort();
        let mut found: Vec<String> = Vec::new();
        for pool in ["data", "vms", "vms-fast"] {
            let images = self.cluster.images(pool);
            found.extend(images.iter().map(|image| format!("{pool}/{image}")));
        }
        found.sort();
        assert_eq!(found, wanted, "{why}");
    }

    /// Brings the VM back to where it was.
    async fn reset(&self, held: Held, object: &str) {
        let api = self.daemon.api();
        match held.ask {
            Ask::Create => {
                api.delete(object).await;
                let _ = api.expunge(object).await;
            }
            Ask::Replace => {
                let vm = api.vm(object).await.unwrap();
                if vm.state() != VmState::Stopped {
                    api.stop(object).await;
                }
                if vm.root_volume_id != self.vm.root_volume_id {
                    let revert = RevertRootVolumeRequest {
                        vm_id: object.to_owned(),
                        ..Default::default()
                    };
                    api.done(api.vms().revert_root_volume(revert).await).await;
                }
            }
            Ask::Expunge | Ask::Import => {}
        }
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
async fn an_operation_that_an_outage_cuts_off_is_finished_or_undone() {
    let host = Host::start().await;
    for &held in HELD {
        let object = host.object(held.ask).await;
        let (operation, holder) = host.hold(held, &object).await;
        host.cluster.freeze(Part::Osd);
        fs::remove_file(holder).unwrap();
        // Noticed by the operation itself, or by the next look.
        until("the outage to be noticed", PATIENCE, async || {
            (!host.daemon.api().condition("ceph").await.status).then_some(())
        })
        .await;
        host.cluster.thaw(Part::Osd);
        let ended = ended(&host.daemon.api(), &operation).await;
        reaches(&host.daemon).await;
        println!("{held:?}: {:?} {:?}", ended.state(), ended.rollback_state());
        host.is_whole(held, &object, &ended).await;
        host.reset(held, &object).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_an_outage_and_a_kill_cut_off_is_finished_or_undone() {
    let mut host = Host::start().await;
    // Of the simulated host nothing outlives the daemon but what is in Ceph.
    let held = HELD
        .iter()
        .filter(|held| held.ask != Ask::Replace && !held.point.contains("start-guest"));
    for &held in held {
        let object = host.object(held.ask).await;
        let (operation, holder) = host.hold(held, &object).await;
        host.cluster.freeze(Part::Osd);
        host.daemon.kill9();
        fs::remove_file(holder).unwrap();
        host.daemon.restart().await;
        until("the outage to be noticed", PATIENCE, async || {
            (!host.daemon.api().condition("ceph").await.status).then_some(())
        })
        .await;
        host.cluster.thaw(Part::Osd);
        let ended = ended(&host.daemon.api(), &operation).await;
        reaches(&host.daemon).await;
        println!("{held:?}: {:?} {:?}", ended.state(), ended.rollback_state());
        host.is_whole(held, &object, &ended).await;
        if held.ask == Ask::Create {
            host.reset(held, &object).await;
        }
    }
}
