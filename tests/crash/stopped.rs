//! The agent is asked to stop while an undoing waits for somebody else.
//!
//! A volume that a client has open can't be removed from a cluster before that has
//! gone. An agent that stops meanwhile has to leave the rest of the undoing to its next
//! start, as it does with everything else that is at work.

use super::scenario::Scenario;
use super::stage::Stage;
use crate::support::PATIENCE;
use crate::support::ceph::Cluster;
use crate::support::invariants::violations;
use crate::support::refusal::Refusal;
use crate::support::until;
use kvmlet::proto::v1::*;

/// The volume is made, its step fails, another client has it open, and the agent is
/// asked to stop when it is about to remove it. Once the client has gone and the agent
/// is started again, nothing may be left. An error tells that the undoing was given up.
pub async fn while_a_volume_is_in_use(stage: &mut Stage, cluster: &Cluster) -> Result<(), String> {
    let prepared = Scenario::Create.prepare(stage).await;
    let before = stage.see().await;
    let hold = stage.hold();
    stage.arm(&[
        "create-vm.make-volume.after=1*return(fail)".to_owned(),
        format!(
            "create-vm.make-volume.undo=1*return(hold:{})",
            hold.display()
        ),
    ]);
    let api = stage.api();
    let asked = prepared.ask.send(&api).await.expect("it may be asked");
    until("the undoing to begin", PATIENCE, async || {
        hold.exists().then_some(())
    })
    .await;
    let known = before.ceph.expect("it is on Ceph").images;
    let now = stage.see().await.ceph.expect("it is on Ceph").images;
    let made: Vec<&String> = now
        .keys()
        .filter(|name| !known.contains_key(*name))
        .collect();
    let [made] = &made[..] else {
        panic!("one volume is made: {made:?}");
    };
    let client = cluster.lock(made);
    stage.ask_to_stop().await;
    std::fs::remove_file(&hold).unwrap();
    let status = stage.daemon.end().await;
    assert_eq!(status.code(), Some(0), "{status}");
    drop(client);
    stage.arm(&[]);
    stage.daemon.restart().await;
    stage.cluster_answers().await;
    let operation = stage.api().ended(&asked.into_inner().id).await;
    let error = operation.error.as_ref().map(Refusal::from);
    let error = error.expect("a step has failed");
    assert_eq!(error.reason, "INTERNAL", "{operation:?}");
    if operation.rollback_state() == RollbackState::Failed {
        assert_eq!(error.metadata["not_undone"], "make-volume");
        return Err("make-volume is not undone, and it will not be tried again".to_owned());
    }
    assert_eq!(operation.rollback_state(), RollbackState::Done);
    assert_eq!(violations(&stage.see().await), Vec::<String>::new());
    Ok(())
}
