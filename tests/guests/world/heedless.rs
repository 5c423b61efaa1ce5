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

/// How a stop by this policy ended.
async fn stopped(world: &World, guest: &Guest, policy: StopPolicy) -> Operation {
    let stop = asked(world, guest, policy, 1).await;
    world.api().ended(&stop).await
}

pub async fn agents_that_do_nothing_bend_no_time_and_hold_up_no_other_vm(mut world: World) {
    let api = world.api();
    let image = linux(&world.host, "heedless").await;
    let mut heedless = Vec::new();
    for _ in 0..7 {
        heedless.push(guest(&world, &image).await);
    }
    let obedient = guest(&world, &linux(&world.host, "agent").await).await;
    for guest in &heedless {
        guest.has_said(UP, 1).await;
    }
    obedient.has_said("kind agent up", 1).await;
    let [failed, forced, pressed, restarted, waiting @ ..] = &heedless[..] else {
        unreachable!("there are seven")
    };

    // These hang from now on: for libvirt's minute, or as long as the stop goes on.
    let mut stops = Vec::new();
    for guest in waiting {
        stops.push(asked(&world, guest, within(600, OnTimeout::Fail), 1).await);
    }
    // The restart that is asked for is asked for, however long it takes.
    let request = RebootVmRequest {
        vm_id: restarted.id.clone(),
        ..Default::default()
    };
    let done = api.done(api.vms().reboot_vm(request).await).await;
    assert!(took(&done) < Duration::from_secs(20) + SLACK, "{done:?}");
    restarted
        .has_said("shutdown by agent: reboot ignored", 1)
        .await;
    let ended = stopped(&world, failed, within(4, OnTimeout::Fail)).await;
    let refusal = Refusal::from(ended.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "GUEST_DID_NOT_STOP");
    assert!(took(&ended) < Duration::from_secs(4) + SLACK, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::GuestAgent);
    assert_eq!((outcome.signals_sent, outcome.forced), (1, false));
    failed.is(VmState::Running, StateReason::Operation).await;
    for guest in waiting.iter().chain([failed]) {
        guest.has_said(IGNORED, 1).await;
    }

    // No other VM waits for that, neither for its start nor for its own agent.
    let begun = Instant::now();
    let other = world.guest(&world.deaf).await;
    assert!(begun.elapsed() < 2 * SLACK, "{:?}", begun.elapsed());
    let ended = stopped(&world, &obedient, within(50, OnTimeout::Fail)).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::GuestAgent);
    assert_eq!(outcome.signals_sent, 1);

    // The agent's call still hangs, so the next stop presses the button at once.
    let ended = stopped(&world, failed, within(50, OnTimeout::Fail)).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert_eq!((outcome.signals_sent, outcome.forced), (1, false));
    assert_eq!(failed.says(IGNORED), 1);

    // The time of a stop that forces holds.
    let ended = stopped(&world, forced, within(4, OnTimeout::Force)).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert!(took(&ended) < Duration::from_secs(4) + SLACK, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Force);
    assert_eq!((outcome.signals_sent, outcome.forced), (1, true));
    forced.is(VmState::Stopped, StateReason::Operation).await;

    // The button is the second signal.
    let policy = StopPolicy {
        resend_interval: seconds(3),
        ..within(50, OnTimeout::Fail)
    };
    let ended = stopped(&world, pressed, policy).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert!(outcome.signals_sent >= 2 && !outcome.forced, "{outcome:?}");
    assert!(length(outcome.waited) >= Duration::from_secs(3));
    assert_eq!(pressed.says(IGNORED), 1);

    // A forced stop overtakes.
    let begun = Instant::now();
    waiting[0].force_off().await;
    assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
    let overtaken = api.ended(&stops[0]).await;
    let refusal = Refusal::from(overtaken.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "OVERTAKEN");

    // Who was asked by its agent by a former run has its button pressed by the next.
    world.host.daemon.kill9();
    world.host.daemon.restart().await;
    for stop in stops.iter().skip(1) {
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
