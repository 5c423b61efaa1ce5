//! Maintenance that begins while a guest is being started.

use crate::support::api::{force, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::refused;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_work_ends_first_and_only_one_may_change_the_maintenance() {
    let points = tempfile::tempdir().unwrap();
    let (armed, held) = (points.path().join("armed"), points.path().join("held"));
    let mut setup = Setup::default();
    let file = ("FAILPOINTS_FILE".to_owned(), armed.display().to_string());
    setup.environment.push(file);
    let daemon = Daemon::start(setup).await;
    let api = daemon.api();
    let image = daemon.image().await;
    let line = format!(
        "create-vm.start-guest.before=1*return(hold:{})",
        held.display()
    );
    std::fs::write(&armed, line).unwrap();
    let create = CreateVmRequest {
        start: true,
        ..small(&image)
    };
    let created = api.vms().create_vm(create).await.unwrap().into_inner();
    until("the start to be held", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    let request = SetMaintenanceRequest {
        stop_policy: Some(force()),
        enabled: true,
        ..Default::default()
    };
    let begun = api.nodes().set_maintenance(request).await.unwrap();
    let begun = begun.into_inner().id;
    until("the maintenance to be on", PATIENCE, async || {
        let maintenance = api.node().await.maintenance.unwrap();
        maintenance.enabled.then_some(())
    })
    .await;
    let refusal = refused(
        api.nodes()
            .set_maintenance(SetMaintenanceRequest {
                enabled: true,
                ..Default::default()
            })
            .await,
    );
    assert_eq!(refusal.reason, "NODE_BUSY");
    assert_eq!(refusal.metadata["operation_id"], begun);
    std::fs::remove_file(&held).unwrap();
    let created = api.ended(&created.id).await;
    assert_eq!(created.state(), OperationState::Succeeded);
    assert_eq!(api.ended(&begun).await.state(), OperationState::Succeeded);
    assert_eq!(api.state(&created.vm_id).await, VmState::Stopped);
}
