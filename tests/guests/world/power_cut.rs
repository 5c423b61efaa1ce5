//! The host ends under its guests, and comes up again. Here that is a libvirt daemon that
//! loses its guests and all that it had in memory, and another name for the kernel's run.

use super::admin::{domain, virsh};
use super::ask::Ask;
use super::host::World;
use super::stop::asked;
use crate::bench::Guest;
use crate::support::api::graceful;
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use std::fs;

/// Ends the host, and brings it up under another name of its run.
async fn restart(world: &mut World, boot_id: &str) {
    let qemus = world.host.qemus();
    world.libvirtd.kill9();
    for qemu in qemus {
        kill(qemu, Signal::SIGKILL).unwrap();
    }
    // It is on a tmpfs.
    let run = world.libvirtd.home.path().join("run");
    fs::remove_dir_all(&run).unwrap();
    fs::create_dir(&run).unwrap();
    world.libvirtd.restart();
    let file = world.host.daemon.home().join("boot_id");
    fs::write(&file, format!("{boot_id}\n")).unwrap();
    let mount = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$0\" \"$@\"",
        file.display()
    );
    let launcher = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
    let setup = world.host.daemon.setup_mut();
    setup.launcher = launcher.map(str::to_owned).to_vec();
    setup.launcher.push(mount);
    world.host.daemon.restart().await;
}

async fn how(guest: &Guest) -> (VmState, StateReason) {
    let vm = guest.vm().await;
    (vm.state(), vm.state_reason())
}

pub async fn guests_that_ended_with_their_host_say_so(mut world: World) {
    let (running, stopping) = (
        world.guest(&world.deaf).await,
        world.guest(&world.deaf).await,
    );
    let (off, saved) = (
        world.guest(&world.deaf).await,
        world.guest(&world.deaf).await,
    );
    off.force_off().await;
    let api = world.api();
    api.done(Ask::Save.send(&api, &saved.id, "").await).await;
    let stop = asked(&world, &stopping, graceful(), 1).await;

    // Its power is lost.
    world.host.daemon.kill9();
    restart(&mut world, "first").await;
    let again = |world: &World, guests: [Guest; 4]| guests.map(|it| world.host.guest(it.id));
    let guests = again(&world, [running, stopping, off, saved]);
    let [running, stopping, off, saved] = &guests;
    let lost = (VmState::Stopped, StateReason::HostPowerLoss);
    assert_eq!(how(running).await, lost);
    assert_eq!(how(off).await, (VmState::Stopped, StateReason::Operation));
    assert_eq!(saved.state().await, VmState::Saved);
    let ended = world.api().ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Host, "{outcome:?}");
    assert!(!outcome.forced && outcome.signals_sent > 0, "{outcome:?}");
    assert_eq!(stopping.state().await, VmState::Stopped);

    // It stays so while the host goes on, whatever becomes of the agent.
    let [running, stopping, off, saved] = guests;
    world.host.daemon.kill9();
    world.host.daemon.restart().await;
    let running = world.host.guest(running.id);
    assert_eq!(how(&running).await, lost);
    running.start().await;
    assert_eq!(
        how(&running).await,
        (VmState::Running, StateReason::Operation)
    );

    // The agent was stopped before: how the host ended, nobody knows. What libvirt starts
    // by itself runs again.
    let guests = again(&world, [running, stopping, off, saved]);
    guests[1].start().await;
    virsh(&world, &["autostart", &domain(&guests[1].id)]);
    world.host.daemon.stop().await;
    restart(&mut world, "second").await;
    let [running, stopping, off, saved] = again(&world, guests);
    assert_eq!(
        how(&running).await,
        (VmState::Stopped, StateReason::HostRestarted)
    );
    stopping
        .is(VmState::Running, StateReason::StartedOnHost)
        .await;
    for guest in [running, stopping, off, saved] {
        guest.remove().await;
    }
}
