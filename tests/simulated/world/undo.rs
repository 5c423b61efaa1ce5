//! The journal's file system fills up while an operation is being undone. The end of the
//! operation is not told before it can be written, and when there is room again, the
//! operation is undone.

use crate::support::api::{Api, Start, force};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::refusal::{Refusal, refused};
use crate::support::small::Small;
use crate::support::{PATIENCE, known, until};
use kvmlet::proto::v1::*;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;
use virt::connect::Connect;

/// How many writes are asked for, and refused, after the undoing has come to its own
/// write: by then that was refused, too, as often as it is tried.
const LATER: usize = 100;

/// A daemon whose journal's file system can be filled.
struct Place {
    daemon: Daemon,
    small: Small,
    points: TempDir,
    /// A VM that has no power, to have something recorded of.
    stopped: String,
    image: String,
    // The domains outlive the daemon as long as somebody is connected.
    connection: Connect,
    _libvirtd: Libvirtd,
}

impl Place {
    async fn start() -> Self {
        // So small that SQLite never writes over the start of its log: once the file
        // system is full, nothing more can be written.
        let small = Small::of(4 << 20);
        let libvirtd = Libvirtd::start();
        let points = tempfile::tempdir().unwrap();
        let setup = Setup {
            launcher: small.launcher(),
            journal: Some(small.path().join("journal.db")),
            environment: [("FAILPOINTS_FILE", "armed"), ("FAILPOINTS_TRACE", "trace")]
                .map(|(name, file)| {
                    let path = points.path().join(file);
                    (name.to_owned(), path.display().to_string())
                })
                .to_vec(),
            ..Setup::on(libvirtd.uri())
        };
        let daemon = Daemon::start(setup).await;
        let image = daemon.image().await;
        let stopped = daemon.api().create(&image, Start::No).await;
        Self {
            daemon,
            small,
            points,
            stopped,
            image,
            connection: libvirtd.connect(),
            _libvirtd: libvirtd,
        }
    }

    fn api(&self) -> Api {
        self.daemon.api()
    }

    fn held(&self) -> PathBuf {
        self.points.path().join("held")
    }

    fn arm(&self, lines: &str) {
        fs::write(self.points.path().join("armed"), lines).unwrap();
    }

    /// Has an operation fail after this step, and held before the first undo.
    fn fail_after(&self, step: &str) {
        let held = self.held().display().to_string();
        self.arm(&format!(
            "{step}.after=1*return(fail)\n{step}.undo=1*return(hold:{held})\n"
        ));
    }

    /// Fills the journal's file system while the undoing is held, and lets that go on.
    async fn fill(&self) {
        until("the undoing to be held", PATIENCE, async || {
            self.held().exists().then_some(())
        })
        .await;
        self.small.fill(0);
        self.record_is_refused().await;
        self.arm("");
        fs::remove_file(self.held()).unwrap();
    }

    /// Asks for something that would only be recorded.
    async fn record_is_refused(&self) {
        let stop = StopVmRequest {
            vm_id: self.stopped.clone(),
            ..Default::default()
        };
        let refusal = refused(self.api().vms().stop_vm(stop).await);
        assert_eq!(refusal.reason, "JOURNAL_UNAVAILABLE");
        assert_eq!(refusal.metadata["problem"], "full");
    }

    /// Waits until the undoing has reached a point so many times, after which it writes,
    /// and has been refused. The operation must not be told as ended.
    async fn undoes(&self, operation_id: &str, point: &str, times: usize) {
        until("the undoing to write", PATIENCE, async || {
            let trace = fs::read_to_string(self.points.path().join("trace")).unwrap();
            (trace.lines().filter(|line| *line == point).count() >= times).then_some(())
        })
        .await;
        for _ in 0..LATER {
            self.record_is_refused().await;
        }
        let request = GetOperationRequest {
            operation_id: operation_id.to_owned(),
        };
        let told = self.api().operations().get_operation(request).await;
        let told = told.unwrap().into_inner();
        assert_eq!(told.state(), OperationState::Running, "{told:?}");
        assert_eq!(told.end_time, None);
    }

    /// Makes room and returns how the operation ends, which names the first cause.
    async fn ends(&self, operation_id: &str) -> (Operation, Refusal) {
        self.small.empty();
        let ended = self.api().ended(operation_id).await;
        assert_eq!(ended.state(), OperationState::Failed, "{ended:?}");
        let refusal = Refusal::from(ended.error.as_ref().unwrap());
        assert_eq!(refusal.reason, "INTERNAL", "{refusal:?}");
        (ended, refusal)
    }

    /// Makes a VM that runs, and begins to replace its root, which fails at its end.
    /// Returns the VM as it was, and the operation.
    async fn replaces(&self) -> (Vm, String) {
        let api = self.api();
        let vm_id = api.create(&self.image, Start::Yes).await;
        let before = api.vm(&vm_id).await.unwrap();
        self.fail_after("replace-root-volume.start-guest");
        let replace = ReplaceRootVolumeRequest {
            vm_id,
            image_id: self.image.clone(),
            stop_policy: Some(force()),
            start_after: true,
            ..Default::default()
        };
        let answer = api.vms().replace_root_volume(replace).await;
        (before, answer.unwrap().into_inner().id)
    }

    /// Checks that a VM runs on the root volume that it had.
    async fn is_back(&self, before: &Vm) {
        let vm = self.api().vm(&before.id).await.unwrap();
        assert_eq!(vm.state(), VmState::Running);
        assert_eq!(vm.root_volume_id, before.root_volume_id);
        assert_eq!(vm.volumes.len(), 1, "the new root is gone: {vm:?}");
        assert_eq!(vm.current_operation_id, "");
        let domain = Libvirtd::domain(&self.connection, &vm.id).expect("a domain");
        assert!(domain.is_active().unwrap());
        let xml = domain.xml_desc(0).unwrap();
        assert!(xml.contains(&before.root_volume_id), "{xml}");
    }
}

/// Reached once on the way to the new root, and again on the way back.
const SWITCHES: &str = "replace-root-volume.switch-root.defined";

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_undone_on_a_full_journal_has_its_guest_run_on_the_old_root() {
    let place = Place::start().await;
    let (before, operation) = place.replaces().await;
    place.fill().await;
    place.undoes(&operation, SWITCHES, 2).await;
    let (ended, _) = place.ends(&operation).await;
    assert_eq!(ended.rollback_state(), RollbackState::Done, "{ended:?}");
    place.is_back(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_while_it_undoes_on_a_full_journal_undoes_at_its_next_start() {
    let mut place = Place::start().await;
    let (before, operation) = place.replaces().await;
    place.fill().await;
    place.undoes(&operation, SWITCHES, 2).await;
    place.daemon.kill9();
    place.daemon.restart().await;
    place.undoes(&operation, SWITCHES, 3).await;
    let (ended, _) = place.ends(&operation).await;
    assert_eq!(ended.rollback_state(), RollbackState::Done, "{ended:?}");
    place.is_back(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_maintenance_that_is_undone_on_a_full_journal_is_over() {
    let place = Place::start().await;
    let api = place.api();
    place.fail_after("set-maintenance.set-maintenance");
    let request = SetMaintenanceRequest {
        enabled: true,
        message: "new disks".to_owned(),
        ..Default::default()
    };
    let answer = api.nodes().set_maintenance(request).await;
    let operation = answer.unwrap().into_inner().id;
    place.fill().await;
    let undoes = "set-maintenance.set-maintenance.undo";
    place.undoes(&operation, undoes, 1).await;
    let (ended, refusal) = place.ends(&operation).await;
    let enabled = api.node().await.maintenance.unwrap().enabled;
    known::fault("journal-full-while-undoing", async {
        if ended.rollback_state() == RollbackState::Failed {
            assert_eq!(refusal.metadata["not_undone"], "set-maintenance");
            assert!(enabled);
            return Err("undoing was given up, and the host stays in maintenance".to_owned());
        }
        assert_eq!(ended.rollback_state(), RollbackState::Done, "{ended:?}");
        assert!(!enabled);
        Ok(())
    })
    .await;
    let request = SetMaintenanceRequest::default();
    api.done(api.nodes().set_maintenance(request).await).await;
    api.create(&place.image, Start::Yes).await;
}
