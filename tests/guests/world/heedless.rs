//! Guests whose agent takes the request to shut down and does nothing. libvirt's call
//! hangs for a minute then, and nothing else may.

use super::host::{LINE, World, linux};
use super::stop::{asked, length, seconds};
use crate::bench::{self, Guest};
use crate::support::api::graceful;
use crate::support::refusal::Refusal;
use kvmlet::proto::v1::*;
use std::time::{Duration, Instant};

/// What is granted to a busy machine. libvirt gives an agent up after 60 s.
const SLACK: Duration = Duration::from_secs(10);

/// What a guest of the kind says once its agent is there, and when it was asked by it.
const UP: &str = "kind heedless up";
const IGNORED: &str = "shutdown by agent: poweroff ignored";

/// Asks by agent, and not again within the time.
fn within(timeout: i64, on_timeout: OnTimeout) -> StopPolicy {
    StopPolicy {
        timeout: seconds(timeout),
        resend_interval: seconds(60),
        on_timeout: on_timeout as i32,
        ..graceful()
    }
}

/// Makes a VM without waiting for its guest.
async fn guest(world: &World, image: &str) -> Guest {
    world.host.create(bench::request(image)).await
}

/// How long an operation took in all.
fn took(operation: &Operation) -> Duration {
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time.unwrap();
        Duration::new(
            u64::try_from(time.seconds).unwrap(),
            u32::try_from(time.nanos).unwrap(),
        )
    };
    time(operation.end_time).saturating_sub(time(operation.create_time))
}

pub async fn the_times_of_a_stop_hold_whatever_the_agent_does(world: World) {
    let api = world.api();
    let image = linux(&world.host, "heedless").await;
    let guest = guest(&world, &image).await;
    guest.has_said(UP, 1).await;

    let stop = asked(&world, &guest, within(4, OnTimeout::Fail), 1).await;
    let ended = api.ended(&stop).await;
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "GUEST_DID_NOT_STOP");
    assert!(took(&ended) < Duration::from_secs(4) + SLACK, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::GuestAgent);
    assert_eq!((outcome.signals_sent, outcome.forced), (1, false));
    guest.has_said(IGNORED, 1).await;
    guest.is(VmState::Running, StateReason::Operation).await;

    // The agent's call still hangs, so the next stop presses the button at once.
    let stop = asked(&world, &guest, within(50, OnTimeout::Fail), 1).await;
    let ended = api.ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert_eq!((outcome.signals_sent, outcome.forced), (1, false));
    assert_eq!(guest.says(IGNORED), 1);

    guest.start().await;
    guest.has_said(UP, 2).await;
    let stop = asked(&world, &guest, within(4, OnTimeout::Force), 1).await;
    let ended = api.ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert!(took(&ended) < Duration::from_secs(4) + SLACK, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Force);
    assert_eq!((outcome.signals_sent, outcome.forced), (1, true));
    guest.is(VmState::Stopped, StateReason::Operation).await;

    // Without it, the button is the second signal.
    guest.start().await;
    guest.has_said(UP, 3).await;
    let policy = StopPolicy {
        resend_interval: seconds(3),
        ..within(50, OnTimeout::Fail)
    };
    let stop = asked(&world, &guest, policy, 1).await;
    let ended = api.ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert!(outcome.signals_sent >= 2 && !outcome.forced, "{outcome:?}");
    assert!(length(outcome.waited) >= Duration::from_secs(3));
    assert_eq!(guest.says(IGNORED), 3);

    // The restart that is asked for is asked for, however long it takes.
    guest.start().await;
    guest.has_said(UP, 4).await;
    let request = RebootVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    let done = api.done(api.vms().reboot_vm(request).await).await;
    assert!(took(&done) < Duration::from_secs(20) + SLACK, "{done:?}");
    guest.has_said("shutdown by agent: reboot ignored", 1).await;
    guest.remove().await;
}

pub async fn agents_that_do_nothing_hold_up_no_other_vm(mut world: World) {
    let api = world.api();
    let image = linux(&world.host, "heedless").await;
    let mut heedless = Vec::new();
    for _ in 0..6 {
        heedless.push(guest(&world, &image).await);
    }
    let obedient = guest(&world, &linux(&world.host, "agent").await).await;
    for guest in &heedless {
        guest.has_said(UP, 1).await;
    }
    obedient.has_said("kind agent up", 1).await;

    let mut stops = Vec::new();
    for guest in &heedless {
        stops.push(asked(&world, guest, within(600, OnTimeout::Fail), 1).await);
    }
    for guest in &heedless {
        guest.has_said(IGNORED, 1).await;
    }
    let begun = Instant::now();
    let other = world.guest(&world.deaf).await;
    assert!(begun.elapsed() < 2 * SLACK, "{:?}", begun.elapsed());
    // Their agents are asked as before.
    let stop = asked(&world, &obedient, within(50, OnTimeout::Fail), 1).await;
    let ended = api.ended(&stop).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::GuestAgent);
    assert_eq!(outcome.signals_sent, 1);

    // Forced stops overtake.
    for (guest, overtaken) in heedless.iter().zip(&stops).take(3) {
        let begun = Instant::now();
        guest.force_off().await;
        assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
        let overtaken = api.ended(overtaken).await;
        let refusal = Refusal::from(overtaken.error.as_ref().unwrap());
        assert_eq!(refusal.reason, "OVERTAKEN");
    }

    // Who was asked by its agent by a former run has its button pressed by the next.
    world.host.daemon.kill9();
    world.host.daemon.restart().await;
    for stop in stops.iter().skip(3) {
        let ended = world.api().ended(stop).await;
        assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
        let outcome = ended.power_outcome.unwrap();
        assert_eq!(outcome.method(), PowerMethod::Acpi);
        assert_eq!((outcome.signals_sent, outcome.forced), (2, false));
    }
    for guest in heedless.into_iter().chain([obedient, other]) {
        world.host.guest(guest.id).remove().await;
    }
    assert!(world.host.qemus().is_empty(), "{LINE}");
}
