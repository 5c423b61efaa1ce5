//! Guests on RBD while libvirt is away, and while the cluster hangs.

use super::bench::{Bench, image_of};
use super::libvirtd::Libvirtd;
use super::sector::LINE;
use super::support::api::{force, graceful};
use super::support::ceph::{Cluster, Daemon};
use super::support::{PATIENCE, until};
use kvmlet::proto::v1::*;

/// That the OSD stands still; it goes on when this is dropped.
struct Frozen<'a>(&'a Cluster);

impl<'a> Frozen<'a> {
    fn now(cluster: &'a Cluster) -> Self {
        cluster.freeze(Daemon::Osd);
        Self(cluster)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.thaw(Daemon::Osd);
    }
}

pub async fn guests_go_on_without_libvirt_and_start_again_after_it(bench: &Bench) {
    let api = bench.daemon.api();
    let guest = bench.guest("marker-1", |_| {}).await;
    guest.has_said("version 1 kind marker up", 1).await;
    let qemu = guest.qemu();
    let secrets = bench.libvirtd.virsh(&["secret-list", "--ephemeral"]);
    assert_ne!(secrets, "");

    let away = bench.libvirtd.away();
    until("libvirt is away", PATIENCE, async || {
        (!api.serving("").await.unwrap()).then_some(())
    })
    .await;
    assert_eq!(guest.vm().await.state(), VmState::Unknown);
    drop(away);
    until("libvirt is back", PATIENCE, async || {
        api.serving("").await.unwrap().then_some(())
    })
    .await;
    assert_eq!(Libvirtd::qemu(&guest.id), Some(qemu));
    assert_eq!(guest.vm().await.state(), VmState::Running);

    // It has gone on: it hears its power button, and its disk is what it was.
    let stopped = guest.stop(graceful()).await;
    let outcome = stopped.power_outcome.expect("it was asked");
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    guest.has_said("powering off", 1).await;
    guest.start().await;
    guest.has_said("version 1 kind marker up", 2).await;
    assert_eq!(guest.told("found")[1], guest.told("left")[0]);
    let given = bench.libvirtd.virsh(&["secret-list", "--ephemeral"]);
    assert_eq!(given, secrets, "libvirt had lost it");
    guest.remove().await;
}

pub async fn a_guest_is_stopped_by_force_while_its_storage_hangs_and_starts_after_it(
    bench: &Bench,
) {
    let guest = bench.guest("writer", |_| {}).await;
    guest.has_said(LINE, 1).await;
    let root = format!("vms/{}", image_of(&guest.root().await.id));
    let frozen = Frozen::now(&bench.cluster);
    let stopped = guest.stop(force()).await;
    let outcome = stopped.power_outcome.expect("it was stopped");
    assert_eq!(outcome.method(), PowerMethod::Force);
    drop(frozen);
    // The killed one is among them, unless the OSD took long to go on and has forgotten
    // it meanwhile.
    let left = bench.cluster.watchers(&root);
    guest.start().await;
    guest.has_said(LINE, 2).await;
    let watchers = bench.cluster.watchers(&root);
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    assert_ne!(watchers, left);
    guest.remove().await;
}
