//! The daemon as a process: its start, its end, its socket.

use crate::support::api::Start;
use crate::support::daemon::Daemon;
use kvmlet::proto::v1::VmState;
use std::os::unix::fs::PermissionsExt;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_started_and_there_after_a_restart() {
    let mut daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let vm = daemon.api().create(&image, Start::Yes).await;
    assert_eq!(daemon.api().state(&vm).await, VmState::Running);
    daemon.stop().await;
    daemon.restart().await;
    // The simulated host went with the process.
    assert_eq!(daemon.api().state(&vm).await, VmState::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_mode_lets_only_owner_and_group_in() {
    let daemon = Daemon::simulated().await;
    let mode = daemon.socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
}
