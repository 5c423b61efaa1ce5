//! The daemon with Ceph, on a real cluster and a simulated libvirt.
//!
//! Tests that break nothing have one cluster together; those that do have another one
//! each for as long as they run (`lab.rs`).

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
mod two_hosts;

use support::ceph::Daemon;

#[tokio::test]
async fn an_osd_that_was_ended_comes_back_with_its_data_and_so_does_a_monitor() {
    let cluster = lab::breakable().await;
    let before: Vec<u8> = (0..6 << 20).map(|_| rand::random::<u8>()).collect();
    let file = cluster.folder().join("content");
    std::fs::write(&file, &before).unwrap();
    let (base, clone) = (format!("images/{}", support::api::id()), support::api::id());
    let snapshot = format!("{base}@ready");
    cluster.rbd(&["import", "--no-progress", file.to_str().unwrap(), &base]);
    cluster.rbd(&["snap", "create", "--no-progress", &snapshot]);
    let clone = format!("data/{clone}");
    cluster.rbd(&[
        "clone",
        "--rbd-default-clone-format",
        "2",
        &snapshot,
        &clone,
    ]);
    for daemon in [Daemon::Osd, Daemon::Mgr, Daemon::Mon] {
        cluster.kill(daemon);
        cluster.up(daemon);
    }
    assert!(lab::content(&cluster, &clone) == before, "the data changed");
    cluster.rbd(&["rm", "--no-progress", &clone]);
    cluster.rbd(&["snap", "rm", "--no-progress", &snapshot]);
    cluster.rbd(&["rm", "--no-progress", &base]);
}
