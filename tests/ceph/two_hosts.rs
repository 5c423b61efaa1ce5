//! Two hosts of one cluster are asked for the same volume at once, as by a control plane
//! that timed out at the first and tried the next. One makes it, and nothing that the
//! other does touches it.

use crate::lab::*;
use crate::support::api::id;
use crate::support::ceph::Cluster;
use crate::support::daemon::Daemon;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, known, until};
use kvmlet::proto::v1::*;
use std::fs;
use tempfile::TempDir;

/// Here a host has seen that the volume is not there, and is about to make it.
const MAKES: &str = "create-vm.make-volume.before";

/// A host whose operations can be held and failed.
struct Host {
    daemon: Daemon,
    points: TempDir,
}

impl Host {
    async fn start(cluster: &Cluster) -> Self {
        let points = tempfile::tempdir().unwrap();
        let mut setup = setup(cluster);
        let armed = points.path().join("armed").display().to_string();
        setup
            .environment
            .push(("FAILPOINTS_FILE".to_owned(), armed));
        let daemon = started(setup).await;
        Self { daemon, points }
    }

    fn arm(&self, lines: &str) {
        fs::write(self.points.path().join("armed"), lines).unwrap();
    }

    /// Asks for a VM, and returns its operation once the volume is about to be made.
    async fn about_to_make(&self, request: CreateVmRequest, fails: &str) -> String {
        let held = self.points.path().join("held");
        let hold = format!("{MAKES}=1*return(hold:{})\n{fails}", held.display());
        self.arm(&hold);
        let answer = self.daemon.api().vms().create_vm(request).await;
        let operation = answer.unwrap().into_inner().id;
        until("the step to be held", PATIENCE, async || {
            held.exists().then_some(())
        })
        .await;
        operation
    }

    async fn goes_on(&self, operation: &str) -> Operation {
        fs::remove_file(self.points.path().join("held")).unwrap();
        self.daemon.api().ended(operation).await
    }
}

/// Two hosts that were both asked for the same volume before either had made it; the
/// first has made it.
struct Two {
    first: Host,
    second: Host,
    /// The VM of the first, and that of the second.
    vms: [String; 2],
    volume: String,
    content: Vec<u8>,
    /// How the second's operation has ended.
    ended: Operation,
}

impl Two {
    /// `fails` is armed at the second host, too.
    async fn start(cluster: &Cluster, fails: &str) -> Self {
        let (first, second) = (Host::start(cluster).await, Host::start(cluster).await);
        let (path, _) = random_image(&first.daemon, 1);
        let image = id();
        for host in [&first, &second] {
            let to = host.daemon.import_path("image.qcow2");
            fs::copy(&path, &to).unwrap();
            let request = ImportImageRequest {
                image_id: image.clone(),
                source: to.display().to_string(),
                ..importing(&host.daemon, "ceph")
            };
            let api = host.daemon.api();
            api.done(api.images().import_image(request).await).await;
        }
        let request = on_ceph(&image);
        let volume = root_of(&request);
        let other = CreateVmRequest {
            vm_id: id(),
            ..request.clone()
        };
        let vms = [request.vm_id.clone(), other.vm_id.clone()];
        let one = first.about_to_make(request, "").await;
        let two = second.about_to_make(other, fails).await;
        let made = first.goes_on(&one).await;
        assert_eq!(made.state(), OperationState::Succeeded, "{made:?}");
        let content = content(cluster, &format!("vms/vol-{volume}"));
        let ended = second.goes_on(&two).await;
        Self {
            first,
            second,
            vms,
            volume,
            content,
            ended,
        }
    }

    /// Whether the first host's volume is there; if so, its bytes must be the same.
    fn is_whole(&self, cluster: &Cluster) -> bool {
        let there = is_in(cluster, "vms", &self.volume);
        if there {
            let now = content(cluster, &format!("vms/vol-{}", self.volume));
            assert!(now == self.content, "the first host's volume was changed");
        }
        there
    }

    /// Checks that the second host has refused by name.
    fn is_refused(&self) {
        assert_eq!(
            self.ended.state(),
            OperationState::Failed,
            "{:?}",
            self.ended
        );
        let refusal = Refusal::from(self.ended.error.as_ref().unwrap());
        assert_eq!(refusal.reason, "VOLUME_EXISTS", "{refusal:?}");
        assert_eq!(refusal.metadata["volume_id"], self.volume);
    }

    /// The first host has its volume, starts it and removes it.
    async fn first_goes_on(&self, cluster: &Cluster) {
        assert!(self.is_whole(cluster));
        let api = self.first.daemon.api();
        api.start(&self.vms[0]).await.expect("it has its disk");
        api.remove(&self.vms[0]).await;
        assert!(!self.is_whole(cluster));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_hosts_makes_a_volume_and_the_other_is_refused_by_name() {
    let cluster = shared();
    let two = Two::start(cluster, "").await;
    assert!(two.is_whole(cluster));
    known::fault("two-hosts-one-volume-id", async {
        if two.ended.state() == OperationState::Succeeded {
            let vm = two.second.daemon.api().vm(&two.vms[1]).await.unwrap();
            assert_eq!(vm.root_volume_id, two.volume);
            return Err("both hosts say that the volume is theirs".to_owned());
        }
        two.is_refused();
        two.first_goes_on(cluster).await;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_undoes_leaves_the_volume_that_another_has_made() {
    let cluster = shared();
    let fails = "create-vm.define-domain.before=1*return(fail)\n";
    let two = Two::start(cluster, fails).await;
    assert_eq!(two.ended.state(), OperationState::Failed, "{:?}", two.ended);
    known::fault("two-hosts-one-volume-id", async {
        if !two.is_whole(cluster) {
            assert_eq!(two.ended.rollback_state(), RollbackState::Done);
            return Err("undoing at one host removes the volume of the other".to_owned());
        }
        two.is_refused();
        two.first_goes_on(cluster).await;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_deletes_and_expunges_leaves_the_volume_that_another_has_made() {
    let cluster = shared();
    let two = Two::start(cluster, "").await;
    assert!(two.is_whole(cluster));
    // A VM that could not be made has nothing to keep, and is gone at once.
    let api = two.second.daemon.api();
    api.delete(&two.vms[1]).await;
    if api.vm(&two.vms[1]).await.is_ok() {
        api.expunge(&two.vms[1]).await.expect("it is expunged");
    }
    known::fault("two-hosts-one-volume-id", async {
        if !two.is_whole(cluster) {
            assert_eq!(two.ended.state(), OperationState::Succeeded);
            return Err("expunging at one host removes the volume of the other".to_owned());
        }
        two.is_refused();
        two.first_goes_on(cluster).await;
        Ok(())
    })
    .await;
}
