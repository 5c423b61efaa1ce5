//! A tool of Ceph's that dies with the agent in the middle of its work: the cluster
//! takes it for there for a while, and what it was making for in use.
//!
//! No fault point lies inside a tool, so a client of the test's stands in for it:
//! it has the image open with the writer's lock, and is killed while the agent is
//! dead.

use super::scenario::{Prepared, Scenario};
use super::stage::Stage;
use crate::support::PATIENCE;
use crate::support::ceph::Cluster;
use crate::support::invariants::{violations, violations_between};
use kvmlet::proto::v1::OperationState;

/// What the tool was at when it was killed.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// `qemu-img` was writing an image.
    Import,
    /// `rbd` was growing a clone.
    Growing,
}

impl Work {
    pub const ALL: [Self; 2] = [Self::Import, Self::Growing];

    const fn scenario(self) -> Scenario {
        match self {
            Self::Import => Scenario::Import,
            Self::Growing => Scenario::Create,
        }
    }

    const fn point(self) -> &'static str {
        match self {
            Self::Import => "pool.put-image.written",
            Self::Growing => "pool.create.written",
        }
    }
}

/// Kills the agent and the tool, and starts the agent again: the operation must be
/// finished, and nothing be left half made.
pub async fn killed_with_the_agent(stage: &mut Stage, cluster: &Cluster, work: Work) {
    let prepared: Prepared = work.scenario().prepare(stage).await;
    let before = stage.see().await;
    stage.arm(&[format!("{}=1*return(kill)", work.point())]);
    let api = stage.api();
    // It dies of it.
    let _ = prepared.ask.send(&api).await;
    assert!(
        stage.daemon.dies(PATIENCE).await,
        "the point was not reached"
    );
    stage.arm(&[]);
    let looker = stage.ceph.as_ref().expect("it is on Ceph");
    let made = looker.look().images.into_keys();
    let made: Vec<String> = made
        .filter(|name| {
            let known = before.ceph.as_ref().expect("it is on Ceph");
            !known.images.contains_key(name)
        })
        .collect();
    let [half] = &made[..] else {
        panic!("one thing is half made: {made:?}");
    };
    cluster.lock(half).kill9();
    stage.daemon.restart().await;
    let api = stage.api();
    let again = prepared.ask.send(&api).await.expect("a repeat is answered");
    let operation = api.ended(&again.into_inner().id).await;
    assert_eq!(
        operation.state(),
        OperationState::Succeeded,
        "{operation:?}"
    );
    let after = stage.see().await;
    let mut wrong = violations(&after);
    let about: Vec<&str> = prepared.vm.iter().map(String::as_str).collect();
    wrong.extend(violations_between(&before, &after, &about));
    assert_eq!(wrong, Vec::<String>::new());
}
