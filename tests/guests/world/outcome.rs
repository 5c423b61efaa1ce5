//! What has ended a guest while it was being stopped.

use super::host::World;
use super::stop::{asked, seconds};
use crate::bench::Guest;
use crate::support::api::graceful;
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use virt::domain::Domain;

/// A way to end a guest behind kvmlet's back, and what it is told as.
type End = (fn(&World, &Guest), PowerMethod, VmState);

const ENDS: [End; 2] = [
    (destroy, PowerMethod::Destroyed, VmState::Stopped),
    (kill_qemu, PowerMethod::Crashed, VmState::Crashed),
];

fn destroy(world: &World, guest: &Guest) {
    let destroy = |domain: &Domain| domain.destroy().unwrap();
    world.libvirtd.by_hand(&guest.id, destroy);
}

fn kill_qemu(world: &World, guest: &Guest) {
    kill(world.qemu(&guest.id).unwrap(), Signal::SIGKILL).unwrap();
}

pub async fn a_stop_says_what_has_really_ended_the_guest(world: World) {
    let guest = world.guest(&world.deaf).await;
    for (end, method, state) in ENDS {
        let stop = asked(&world, &guest, graceful(), 1).await;
        end(&world, &guest);
        let ended = world.api().ended(&stop).await;
        assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
        let outcome = ended.power_outcome.unwrap();
        assert_eq!(outcome.method(), method, "{outcome:?}");
        assert!(!outcome.forced && outcome.signals_sent > 0, "{outcome:?}");
        guest.has_state(state).await;
        guest.start().await;
    }
    guest.remove().await;
}

pub async fn an_end_that_came_while_the_agent_was_away_is_told_as_what_it_was(mut world: World) {
    let mut guest = world.guest(&world.deaf).await;
    let policy = StopPolicy {
        resend_interval: seconds(1),
        ..graceful()
    };
    for (end, method, state) in ENDS {
        // With the second signal, the first one is in the journal.
        let stop = asked(&world, &guest, policy, 2).await;
        world.host.daemon.kill9();
        end(&world, &guest);
        world.host.daemon.restart().await;
        let ended = world.api().ended(&stop).await;
        assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
        let outcome = ended.power_outcome.unwrap();
        assert_eq!(outcome.method(), method, "{outcome:?}");
        assert!(!outcome.forced && outcome.signals_sent > 0, "{outcome:?}");
        guest = world.host.guest(guest.id);
        guest.has_state(state).await;
        guest.start().await;
    }
    guest.remove().await;
}
