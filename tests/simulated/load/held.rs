//! The load that a host holds: 500 connections, 200 calls a second, and 50 of the
//! callers abuse it.

use crate::load::abuse::{self, Kind, Seen};
use crate::load::callers::{self, Known, Member, Outcome};
use crate::load::figures::{descriptors, latency, memory};
use crate::load::place::Place;
use crate::support::api::{Api, Start};
use crate::support::daemon::Setup;
use crate::support::{PATIENCE, until};
use futures_util::{StreamExt, stream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::Instant;

const VMS: usize = 50;
const VIEWERS: usize = 10;
const OPERATORS: usize = 5;
/// With those who abuse it: 500.
const CONNECTIONS: usize = 450;
const WATCHERS: usize = 10;
const CALLS_A_SECOND: u32 = 200;
const BEFORE: Duration = Duration::from_secs(10);
const LASTS: Duration = Duration::from_secs(30);
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

/// Those who abuse it, at once, until the end. On a thread of their own: what holds
/// up the others is to be the daemon, and not the test.
fn abused(place: &Place, end: Instant) -> JoinHandle<Seen> {
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
        runtime.block_on(async {
            let abusers: JoinSet<Seen> = abusers
                .into_iter()
                .map(|(kind, caller)| abuse::abuse(kind, caller, end))
                .collect();
            let mut seen = Seen::new();
            for (what, count) in abusers.join_all().await.into_iter().flatten() {
                *seen.entry(what).or_default() += count;
            }
            seen
        })
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

    let quiet = callers::all_call(&members, &known, CALLS_A_SECOND, BEFORE).await;
    assert!(quiet.errors.is_empty(), "{:?}", quiet.errors);
    told("without abusers", quiet, BEFORE);
    let (called, _) = memory(&place.daemon);

    let abusers = abused(&place, Instant::now() + LASTS);
    let loaded = callers::all_call(&members, &known, CALLS_A_SECOND, LASTS).await;
    assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
    told("with abusers", loaded, LASTS);
    let seen = abusers.join().unwrap();
    assert!(watches.try_join_next().is_none(), "a watcher was cut off");
    let page = place.page().await;
    let (_, most) = memory(&place.daemon);
    eprintln!("abusers saw: {seen:?}");
    eprintln!("the daemon refused: {:?}", page.refusals());
    all_were_refused(&seen);
    assert!(page.refused("TOO_MANY_CALLS") > 0.0);
    assert!(page.closed("unread") > 0.0);

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

/// Everyone who abused it has met an end of it.
fn all_were_refused(seen: &Seen) {
    for (kind, _) in abuse::ALL {
        let words = match kind {
            // What is within the limits is done; that they were met, the page tells.
            Kind::Flood => "answered",
            Kind::Stranger => "NOT_ALLOWED",
            Kind::Large => "REQUEST_TOO_LARGE",
            Kind::Slow => "refused",
            // It does not look; that it was closed, the page tells.
            Kind::Deaf => continue,
            Kind::HalfOpen
            | Kind::OldProtocol
            | Kind::NoWindow
            | Kind::Resets
            | Kind::Pings
            | Kind::Headers
            | Kind::Reconnect
            | Kind::Garbage => "closed",
        };
        assert!(
            seen.contains_key(&(kind, words.to_owned())),
            "{kind:?}: {seen:?}"
        );
    }
    let kept = seen.keys().find(|(_, word)| word == "not refused");
    assert_eq!(kept, None);
}

async fn still_works(api: &Api) -> usize {
    let vms = api.all_vms().await;
    vms.iter()
        .filter(|vm| vm.current_operation_id.is_empty())
        .count()
}
