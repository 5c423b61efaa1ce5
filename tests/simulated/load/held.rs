//! The load that a host holds: 500 connections, 200 calls a second, and 50 of the
//! callers abuse it.

use crate::load::abuse::{self, Kind, Seen};
use crate::load::callers::{self, Known, Member, Outcome};
use crate::load::figures::{descriptors, latency, memory};
use crate::load::place::Place;
use crate::support::api::{Api, Start};
use crate::support::daemon::Setup;
use crate::support::{PATIENCE, thorough, until};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const VMS: usize = 50;
const VIEWERS: usize = 10;
const OPERATORS: usize = 5;
/// With those who abuse it: 500.
const CONNECTIONS: usize = 450;
const WATCHERS: usize = 10;
const CALLS_A_SECOND: u32 = 200;
/// How long all call at a time. With those who abuse it, so often that each of those has
/// met an end of it.
const LASTS: Duration = Duration::from_secs(5);
const MOST_ROUNDS: u32 = 30;
/// What it may take more under abuse than with the connections alone, in MiB.
const MORE_MEMORY: u64 = 256;

/// Shorter and fewer than by default: all of them are to be met within the test, and
/// by a daemon that is not optimised.
const LIMITS: &str = "request_time = \"5s\"\nanswer_time = \"5s\"\ncalls_per_caller = 48";

async fn known(place: &Place) -> Known {
    let (api, image) = (place.daemon.api(), place.daemon.image().await);
    let made = stream::iter(0..VMS).map(|_| api.create(&image, Start::No));
    let vms: Vec<String> = made.buffer_unordered(8).collect().await;
    let operations = api.newest_operations(20).await;
    Known {
        vms: Arc::new(vms),
        operations: Arc::new(Mutex::new(
            operations.into_iter().map(|one| one.id).collect(),
        )),
    }
}

/// Connects all who mean well: of the operators each has a VM of its own.
async fn connected(place: &Place, known: &Known) -> Vec<Member> {
    let viewers: Vec<_> = (0..VIEWERS)
        .map(|n| place.viewer(&format!("v{n}")))
        .collect();
    let operators: Vec<_> = (0..OPERATORS)
        .map(|n| place.operator(&format!("o{n}")))
        .collect();
    let members = stream::iter(0..CONNECTIONS).map(async |index: usize| {
        let vm = known.vms.get(index).cloned();
        let caller = match vm {
            Some(_) => &operators[index % OPERATORS],
            None => &viewers[index % VIEWERS],
        };
        Member {
            api: caller.api().await.unwrap(),
            vm,
            seed: index as u64,
        }
    });
    members.buffer_unordered(16).collect().await
}

/// How many rounds there are at least.
fn rounds() -> u32 {
    if thorough() { 6 } else { 2 }
}

/// Those who abuse it, at once, until the end. On a thread of their own: what holds
/// up the others is to be the daemon, and not the test.
fn abused(place: &Place, end: CancellationToken, seen: Arc<Mutex<Seen>>) -> JoinHandle<()> {
    let mut abusers = Vec::new();
    for (kind, many) in abuse::ALL {
        let role = match kind {
            Kind::Stranger => "nobody",
            _ => "viewer",
        };
        let caller = place.caller(role, &format!("{kind:?}"));
        for _ in 0..many {
            abusers.push((kind, caller.clone()));
        }
    }
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let abusers = abusers
            .into_iter()
            .map(|(kind, caller)| abuse::abuse(kind, caller, &end, &seen));
        runtime.block_on(join_all(abusers));
    })
}

fn watched(members: &[Member]) -> JoinSet<tonic::Status> {
    let apis = members.iter().rev().take(WATCHERS);
    apis.map(|member| callers::watch(member.api.clone()))
        .collect()
}

fn told(what: &str, outcome: Outcome, lasted: Duration) {
    let (calls, half, most) = latency(outcome.took);
    let a_second = calls as f64 / lasted.as_secs_f64();
    eprintln!(
        "{what}: {calls} calls, {a_second:.0} a second, median {half:.1?}, 99 % within {most:.1?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_connections_and_fifty_abusers_bring_no_error_to_the_others() {
    let place = Place::start(Setup::default(), LIMITS).await;
    let known = known(&place).await;
    let descriptors_before = descriptors(&place.daemon);
    let (alone, _) = memory(&place.daemon);
    let members = connected(&place, &known).await;
    let mut watches = watched(&members);
    place
        .page_with("all connections", |page| {
            page.connections() >= CONNECTIONS as f64
        })
        .await;
    let (connected, _) = memory(&place.daemon);

    let quiet = callers::all_call(&members, &known, CALLS_A_SECOND, LASTS).await;
    assert!(quiet.errors.is_empty(), "{:?}", quiet.errors);
    told("without abusers", quiet, LASTS);
    let (called, _) = memory(&place.daemon);

    let (end, seen) = (CancellationToken::new(), Arc::new(Mutex::new(Seen::new())));
    let abusers = abused(&place, end.clone(), seen.clone());
    for round in 1.. {
        let loaded = callers::all_call(&members, &known, CALLS_A_SECOND, LASTS).await;
        assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
        told("with abusers", loaded, LASTS);
        let page = place.page().await;
        let refused = page.refused("TOO_MANY_CALLS") > 0.0 && page.closed("unread") > 0.0;
        let not_met = not_met(&seen.lock().unwrap());
        if round >= rounds() && refused && not_met.is_empty() {
            break;
        }
        assert!(
            round < MOST_ROUNDS,
            "not refused: {not_met:?}, the daemon has: {:?}",
            page.refusals()
        );
    }
    end.cancel();
    abusers.join().unwrap();
    assert!(watches.try_join_next().is_none(), "a watcher was cut off");
    let (_, most) = memory(&place.daemon);
    let seen = seen.lock().unwrap().clone();
    eprintln!("abusers saw: {seen:?}");
    let kept = seen.keys().find(|(_, word)| word == "not refused");
    assert_eq!(kept, None);

    watches.shutdown().await;
    drop(members);
    let left = until("all connections to end", PATIENCE, async || {
        let left = descriptors(&place.daemon);
        (left <= descriptors_before + 10).then_some(left)
    })
    .await;
    place
        .page_with("no call", |page| {
            page.at_work() == 0.0 && page.connections() <= 2.0
        })
        .await;
    let (after, _) = memory(&place.daemon);
    eprintln!(
        "memory: {alone} MiB alone, {connected} MiB with {CONNECTIONS} connections, {called} MiB \
         after calls, {most} MiB at most, {after} MiB after; descriptors: {descriptors_before} \
         before, {left} after"
    );
    assert!(most < connected + MORE_MEMORY, "{most} MiB");
    place.serves().await;
    assert_eq!(still_works(&place.daemon.api()).await, VMS);
}

/// Those who abuse it and have not met an end of it.
fn not_met(seen: &Seen) -> Vec<Kind> {
    let met = |kind: Kind| {
        let words = match kind {
            // What is within the limits is done; that they were met, the page tells.
            Kind::Flood => "answered",
            Kind::Stranger => "NOT_ALLOWED",
            Kind::Large => "REQUEST_TOO_LARGE",
            Kind::Slow => "refused",
            // It does not look; that it was closed, the page tells.
            Kind::Deaf => return true,
            Kind::HalfOpen
            | Kind::OldProtocol
            | Kind::NoWindow
            | Kind::Resets
            | Kind::Pings
            | Kind::Headers
            | Kind::Reconnect
            | Kind::Garbage => "closed",
        };
        seen.contains_key(&(kind, words.to_owned()))
    };
    let kinds = abuse::ALL.into_iter().map(|(kind, _)| kind);
    kinds.filter(|kind| !met(*kind)).collect()
}

async fn still_works(api: &Api) -> usize {
    let vms = api.all_vms().await;
    vms.iter()
        .filter(|vm| vm.current_operation_id.is_empty())
        .count()
}
