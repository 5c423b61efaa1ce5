//! There is no room for a guest's memory, or for what it writes.

use super::ask::Ask;
use super::host::{LINE, World, image};
use crate::bench;
use crate::sector::BootSector;
use crate::support::api::{graceful, id};
use crate::support::refusal::{Refusal, refused};
use crate::support::small::fill;
use kvmlet::proto::v1::*;
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command where libvirtd and QEMU see its effect.
fn inside(libvirtd: Pid, script: &str) {
    #[allow(clippy::disallowed_methods)] // a test mounts its own file system
    let done = Command::new("nsenter")
        .args([
            "--mount",
            "--target",
            &libvirtd.to_string(),
            "sh",
            "-c",
            script,
        ])
        .status()
        .unwrap();
    assert!(done.success(), "{script}");
}

/// A file in the mount namespace of libvirtd, as the test sees it.
fn seen(libvirtd: Pid, path: &Path) -> PathBuf {
    format!("/proc/{libvirtd}/root{}", path.display()).into()
}

pub async fn a_guest_whose_memory_finds_no_room_goes_on(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let process = world.qemu(&guest.id);
    let libvirtd = world.libvirtd.pid();
    let folder = "/var/lib/libvirt/qemu/save";
    inside(
        libvirtd,
        &format!("mkdir -p {folder} && mount -t tmpfs -o size=64k small {folder}"),
    );
    let answer = Ask::Save.send(&api, &guest.id, "").await.unwrap();
    let ended = api.ended(&answer.get_ref().id).await;
    assert_eq!(ended.state(), OperationState::Failed, "{ended:?}");
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "SAVE_FAILED", "{refusal:?}");
    assert!(!refusal.message.contains('/'), "{refusal:?}");
    assert_eq!(world.agrees(&guest.id).await, VmState::Running);
    assert_eq!(world.qemu(&guest.id), process);
    assert_eq!(guest.says(LINE), 1, "it has not noticed");
    let left: Vec<_> = fs::read_dir(seen(libvirtd, Path::new(folder)))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    inside(libvirtd, &format!("umount {folder}"));
    api.done(Ask::Save.send(&api, &guest.id, "").await).await;
    assert_eq!(world.agrees(&guest.id).await, VmState::Saved);
    guest.remove().await;
}

pub async fn a_guest_whose_disk_finds_no_room_is_paused_and_goes_on_later(mut world: World) {
    let libvirtd = world.libvirtd.pid();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    inside(
        libvirtd,
        &format!(
            "mount -t tmpfs -o size=48m,mode=711 small {}",
            path.display()
        ),
    );
    let setup = world.host.daemon.setup_mut();
    setup.more = format!(
        "[[pools]]\nname = \"small\"\nkind = \"qcow2\"\npath = \"{}/pool\"\n",
        path.display()
    );
    let enter = [
        "nsenter",
        "--mount",
        "--target",
        &libvirtd.to_string(),
        "--",
    ];
    setup.launcher = enter.map(str::to_owned).into();
    world.host.daemon.stop().await;
    world.host.daemon.restart().await;
    let api = world.api();
    let writer = image(&world.host, BootSector::Writer).await;
    let request = CreateVmRequest {
        start: false,
        root_volume: Some(NewVolume {
            pool: "small".to_owned(),
            size_bytes: 40 << 20,
            ..Default::default()
        }),
        ..bench::request(&writer)
    };
    let guest = world.host.create(request).await;
    let seen = seen(libvirtd, path);
    fill(&seen, 1 << 20);
    guest.start().await;
    guest.is(VmState::Paused, StateReason::NoSpace).await;
    let process = world.qemu(&guest.id);
    let refusal = refused(
        api.vms()
            .stop_vm(guest.stop_request(Some(graceful())))
            .await,
    );
    assert_eq!(refusal.reason, "WRONG_STATE");
    assert_eq!(refusal.metadata["instead"], "ResumeVm,StopVm");
    // Resumed without room, it is paused again.
    let answer = Ask::Resume.send(&api, &guest.id, "").await.unwrap();
    let ended = api.ended(&answer.get_ref().id).await;
    if ended.state() != OperationState::Succeeded {
        // It had gone so far as to be seen to be paused again.
        let refusal = Refusal::from(ended.error.as_ref().unwrap());
        assert_eq!(refusal.reason, "RESUME_FAILED");
    }
    guest.is(VmState::Paused, StateReason::NoSpace).await;
    fs::remove_file(seen.join("filler")).unwrap();
    api.done(Ask::Resume.send(&api, &guest.id, &id()).await)
        .await;
    guest.has_state(VmState::Running).await;
    assert_eq!(world.qemu(&guest.id), process);
    assert_eq!(guest.says(LINE), 1, "it has not noticed");
    guest.remove().await;
    // The daemon still holds it, and both end with the test.
    inside(libvirtd, &format!("umount --lazy {}", path.display()));
}
