//! The daemon with Ceph, on a real cluster and a simulated libvirt; and the cluster
//! itself: that it is one, and that it breaks as these tests say.

// Clippy knows `#[test]`s, but not what they share.
#![allow(clippy::unwrap_used)]

mod contract;
#[path = "../contract/mod.rs"]
mod contract_cases;
#[path = "../support/mod.rs"]
mod support;

mod doctor;
mod guards;
mod header;
mod held;
mod lab;
mod life;
mod outage;
#[allow(unreachable_pub)]
mod planted;
mod secrets;
mod spill;
mod tag;

use support::ceph::{Cluster, Daemon, USER};

/// What an image of random bytes has to give back.
fn fill_image(cluster: &Cluster, image: &str) -> Vec<u8> {
    let content: Vec<u8> = (0..6 << 20).map(|_| rand::random::<u8>()).collect();
    let file = cluster.folder().join("content");
    std::fs::write(&file, &content).unwrap();
    cluster.rbd(&["import", "--no-progress", file.to_str().unwrap(), image]);
    content
}

fn content(cluster: &Cluster, image: &str) -> Vec<u8> {
    let output = cluster.rbd_output(&["export", "--no-progress", image, "-"]);
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn the_cluster_knows_its_pools_and_lets_kvmlet_in() {
    let cluster = Cluster::start();
    for pool in ["images", "vms", "vms-fast", "data"] {
        assert_eq!(cluster.images(pool), [""; 0]);
        assert_eq!(cluster.trash(pool), [""; 0]);
    }
    cluster.rbd(&["create", "--size", "8M", "vms/one"]);
    cluster.rbd(&["create", "--size", "8M", "vms/two"]);
    cluster.rbd(&["trash", "mv", "vms/two"]);
    assert_eq!(cluster.images("vms"), ["one"]);
    assert_eq!(cluster.trash("vms"), ["two"]);
    let keyring = cluster.keyring();
    let as_kvmlet = ["--name", USER, "--keyring", keyring.to_str().unwrap()];
    let seen = cluster.rbd(&[&as_kvmlet[..], &["ls", "vms"]].concat());
    assert_eq!(seen, "one\n");

    let folder = cluster.folder().to_owned();
    drop(cluster);
    assert!(!folder.exists(), "the cluster leaves its folder");
}

#[test]
fn two_clusters_run_side_by_side() {
    let (one, other) = (Cluster::start(), Cluster::start());
    one.rbd(&["create", "--size", "8M", "vms/here"]);
    assert_eq!(one.images("vms"), ["here"]);
    assert_eq!(other.images("vms"), [""; 0]);
}

#[test]
fn a_client_that_has_an_image_open_is_seen_with_its_address() {
    let cluster = Cluster::start();
    cluster.rbd(&["create", "--size", "8M", "vms/open"]);
    assert_eq!(cluster.watchers("vms/open"), [""; 0]);
    let watcher = cluster.watch("vms/open");
    assert!(watcher.address().starts_with("127.0.0.1:"), "{watcher:?}");
    assert_eq!(cluster.watchers("vms/open"), [watcher.address()]);
    let address = watcher.address().to_owned();
    watcher.kill9();
    let seen = cluster.watchers("vms/open");
    assert_eq!(seen, [address], "a killed client is not gone at once");

    cluster.rbd(&["create", "--size", "8M", "vms/closed"]);
    drop(cluster.watch("vms/closed"));
    assert_eq!(cluster.watchers("vms/closed"), [""; 0]);
}

#[test]
fn a_pool_over_its_quota_is_full_until_the_quota_is_lifted() {
    let cluster = Cluster::start();
    assert!(!cluster.is_full("vms"));
    cluster.make_full("vms");
    assert!(cluster.is_full("vms"));
    assert!(!cluster.is_full("vms-fast"));
    cluster.quota("vms", 0);
    assert!(!cluster.is_full("vms"));
    cluster.fill("vms", 20 << 20);
}

#[test]
fn an_osd_that_was_ended_comes_back_with_its_data() {
    let cluster = Cluster::start();
    let before = fill_image(&cluster, "images/base");
    cluster.rbd(&["snap", "create", "--no-progress", "images/base@ready"]);
    cluster.rbd(&[
        "clone",
        "--rbd-default-clone-format",
        "2",
        "images/base@ready",
        "vms/clone",
    ]);
    cluster.kill(Daemon::Osd);
    cluster.up(Daemon::Osd);
    assert!(content(&cluster, "vms/clone") == before, "the data changed");
    assert_eq!(cluster.images("vms"), ["clone"]);
}

#[test]
fn a_frozen_osd_goes_on_with_its_data() {
    let cluster = Cluster::start();
    let before = fill_image(&cluster, "vms/disk");
    cluster.freeze(Daemon::Osd);
    cluster.thaw(Daemon::Osd);
    assert!(content(&cluster, "vms/disk") == before, "the data changed");
}

#[test]
fn monitor_and_manager_come_back_after_a_kill() {
    let cluster = Cluster::start();
    cluster.rbd(&["create", "--size", "8M", "vms/disk"]);
    cluster.kill(Daemon::Mgr);
    cluster.up(Daemon::Mgr);
    cluster.kill(Daemon::Mon);
    cluster.up(Daemon::Mon);
    cluster.freeze(Daemon::Mon);
    cluster.thaw(Daemon::Mon);
    assert_eq!(cluster.images("vms"), ["disk"]);
}

#[test]
fn a_user_whose_key_is_revoked_is_refused_until_it_is_restored() {
    let cluster = Cluster::start();
    let keyring = cluster.keyring();
    let listing = [
        "--name",
        USER,
        "--keyring",
        keyring.to_str().unwrap(),
        "ls",
        "vms",
    ];
    assert!(cluster.rbd_output(&listing).status.success());
    cluster.revoke_key(USER);
    assert!(!cluster.rbd_output(&listing).status.success());
    cluster.restore_key(USER);
    assert!(cluster.rbd_output(&listing).status.success());
    cluster.rbd(&[&listing[..4], &["create", "--size", "8M", "vms/allowed"]].concat());
}

#[test]
fn pools_come_and_go() {
    let cluster = Cluster::start();
    cluster.make_pool("more");
    cluster.rbd(&["create", "--size", "8M", "more/disk"]);
    assert_eq!(cluster.images("more"), ["disk"]);
    cluster.remove_pool("more");
    assert!(!cluster.rbd_output(&["ls", "more"]).status.success());
}
