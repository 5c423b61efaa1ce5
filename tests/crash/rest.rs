//! At rest, the agent is started again and must show what it showed before: what it
//! has in memory is what is in its journal.
//!
//! What differs for a good reason is named here, and nothing else may.

use super::stage::Stage;
use crate::support::world::{Domain, World};
use kvmlet::proto::v1::*;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// How the agent ends before it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Asked,
    Killed,
}

/// Ends the agent and starts it again; returns what it shows otherwise since.
pub async fn started_again(stage: &mut Stage, ending: Ending) -> Vec<String> {
    let before = Reading::of(stage).await;
    match ending {
        Ending::Asked => drop(stage.daemon.stop().await),
        Ending::Killed => stage.daemon.kill9(),
    }
    stage.daemon.restart().await;
    stage.cluster_answers().await;
    let after = Reading::of(stage).await;
    let differences = before.differences(&after).into_iter();
    differences
        .map(|difference| format!("started again (it was {ending:?}), {difference}"))
        .collect()
}

/// All that reading shows.
struct Reading {
    vms: BTreeMap<String, Vm>,
    images: BTreeMap<String, Image>,
    operations: BTreeMap<String, Operation>,
    volumes: BTreeMap<String, Volume>,
    orphans: BTreeMap<String, Orphan>,
    pools: BTreeMap<String, Pool>,
    node: BTreeMap<String, Node>,
    domains: BTreeMap<String, Domain>,
    files: BTreeMap<String, String>,
    consoles: BTreeMap<String, ()>,
    in_cluster: BTreeMap<String, String>,
}

impl Reading {
    async fn of(stage: &Stage) -> Self {
        let api = stage.api();
        let world = stage.see().await;
        let volumes = ListVolumesRequest {
            page_size: 1000,
            ..Default::default()
        };
        let volumes = api.volumes().list_volumes(volumes).await.unwrap();
        let orphans = ListOrphansRequest {
            page_size: 1000,
            ..Default::default()
        };
        let orphans = api.nodes().list_orphans(orphans).await.unwrap();
        let pools = api.volumes().list_pools(ListPoolsRequest {}).await.unwrap();
        Self {
            vms: by(world.vms.values().cloned().map(vm), |vm| &vm.id),
            images: by(world.images.values().cloned().map(image), |it| &it.id),
            volumes: by(volumes.into_inner().volumes.into_iter().map(volume), |it| {
                &it.id
            }),
            orphans: by(orphans.into_inner().orphans, |it| &it.id),
            pools: by(pools.into_inner().pools.into_iter().map(pool), |it| {
                &it.name
            }),
            node: by([node(api.node().await)], |it| &it.id),
            in_cluster: in_cluster(&world),
            operations: by(world.operations, |it| &it.id),
            domains: world.domains,
            files: world.files,
            consoles: world.consoles.into_iter().map(|id| (id, ())).collect(),
        }
    }

    fn differences(&self, after: &Self) -> Vec<String> {
        let mut all = Vec::new();
        differ(&mut all, "VM", &self.vms, &after.vms);
        differ(&mut all, "image", &self.images, &after.images);
        differ(&mut all, "operation", &self.operations, &after.operations);
        differ(&mut all, "volume", &self.volumes, &after.volumes);
        differ(&mut all, "orphan", &self.orphans, &after.orphans);
        differ(&mut all, "pool", &self.pools, &after.pools);
        differ(&mut all, "node", &self.node, &after.node);
        differ(&mut all, "domain", &self.domains, &after.domains);
        differ(&mut all, "file", &self.files, &after.files);
        differ(&mut all, "console log of", &self.consoles, &after.consoles);
        differ(&mut all, "in Ceph", &self.in_cluster, &after.in_cluster);
        all
    }
}

/// Each thing by what names it.
fn by<T>(all: impl IntoIterator<Item = T>, name: impl Fn(&T) -> &String) -> BTreeMap<String, T> {
    let all = all.into_iter();
    all.map(|thing| (name(&thing).clone(), thing)).collect()
}

fn differ<T: Debug + PartialEq>(
    all: &mut Vec<String>,
    what: &str,
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
) {
    for (name, was) in before {
        let is = after.get(name);
        if is != Some(was) {
            all.push(format!("{what} {name} was\n{was:?} and is\n{is:?}"));
        }
    }
    for (name, is) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
        all.push(format!("{what} {name} was not there and is\n{is:?}"));
    }
}

/// Without what a volume takes: that is only shown, and measured now and then.
fn vm(mut vm: Vm) -> Vm {
    vm.volumes = vm.volumes.into_iter().map(volume).collect();
    vm
}

fn volume(mut volume: Volume) -> Volume {
    volume.actual_size_bytes = 0;
    volume
}

/// Without its last use, which the next sweep makes durable (see the runbook, "The
/// image cache").
fn image(mut image: Image) -> Image {
    image.last_use_time = None;
    image
}

/// Without what is free in it: other tests write on the same disks.
fn pool(mut pool: Pool) -> Pool {
    pool.free_bytes = 0;
    for pool in &mut pool.ceph_pools {
        (pool.capacity_bytes, pool.free_bytes) = (0, 0);
    }
    if pool.kind() == PoolKind::Rbd {
        // A part of what is free.
        pool.capacity_bytes = 0;
    }
    pool
}

fn node(mut node: Node) -> Node {
    node.pools = node.pools.into_iter().map(pool).collect();
    // The agent's own start, and what is counted from there on.
    node.start_time = None;
    (
        node.libvirt_calls,
        node.journal_commits,
        node.journal_batches,
    ) = (0, 0, 0);
    for condition in &mut node.conditions {
        condition.last_transition_time = None;
    }
    // What other processes of the host take.
    node.available_memory_bytes = None;
    node.huge_pages.clear();
    for numa_node in &mut node.numa_nodes {
        numa_node.huge_pages.clear();
    }
    node
}

fn in_cluster(world: &World) -> BTreeMap<String, String> {
    let Some(holdings) = &world.ceph else {
        return BTreeMap::new();
    };
    let images = holdings.images.iter();
    let images = images.map(|(name, image)| (name.clone(), format!("{image:?}")));
    let trash = holdings.trash.iter();
    let trash = trash.map(|entry| (format!("{} in the trash", entry.name), format!("{entry:?}")));
    images.chain(trash).collect()
}
