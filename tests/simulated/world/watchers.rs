//! Many readers, many changes, and an agent that is killed: nobody misses one.

use crate::support::api::{Api, Start, force};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::watch::Watcher;
use crate::support::{PATIENCE, thorough, until};
use kvmlet::proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const VMS: usize = 200;
const CLIENTS: usize = 20;
/// Changes by others on the host, from one kill of the agent to the next.
const CHANGES: usize = 100;
/// Longer than everything may take to come to rest.
const REST: Duration = Duration::from_secs(60);

/// What one client has at the end.
struct Picture {
    states: BTreeMap<String, VmState>,
    events: usize,
    reconnections: usize,
    snapshots: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_clients_miss_nothing_of_two_hundred_vms_while_the_agent_is_killed() {
    let seed = std::env::var("KVMLET_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed: {seed} (KVMLET_SEED)");
    let libvirtd = Libvirtd::start();
    let setup = Setup::on(libvirtd.uri()).with("events", "keep_count = 1000000");
    let mut daemon = Daemon::start(setup).await;
    let vms = Arc::new(make(&daemon).await);
    let api = daemon.api();

    let (goal, rest) = watch::channel(None::<u64>);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(follow(api.clone(), rest.clone())))
        .collect();

    let over = Arc::new(AtomicBool::new(false));
    let others = Arc::new(AtomicUsize::new(0));
    let host = {
        let (uri, vms, over, others) = (libvirtd.uri(), vms.clone(), over.clone(), others.clone());
        std::thread::spawn(move || act_on_host(&uri, &vms, seed, &over, &others))
    };
    let caller = tokio::spawn(ask(api.clone(), vms.clone(), seed, over.clone()));

    let kills = if thorough() { 8 } else { 2 };
    let mut enough = 0;
    for kill in 0..=kills {
        enough += CHANGES;
        until("enough to change on the host", PATIENCE, async || {
            (others.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
        if kill < kills {
            daemon.kill9();
            daemon.restart().await;
        }
    }
    over.store(true, Ordering::Relaxed);
    host.join().unwrap();
    let asked = caller.await.unwrap();

    let truth = until_agreement(&libvirtd, &api).await;
    let list = api.vms().list_vms(ListVmsRequest::default()).await.unwrap();
    let end = list.into_inner().resume.unwrap().revision;
    goal.send(Some(end)).unwrap();
    let mut events = 0;
    for client in clients {
        let picture = client.await.unwrap();
        assert_eq!(picture.states, truth, "as libvirt has it");
        assert!(picture.reconnections >= kills, "{}", picture.reconnections);
        assert_eq!(picture.snapshots, 0, "nothing was forgotten");
        events = events.max(picture.events);
    }
    println!(
        "{events} events to each of {CLIENTS} clients; {} changes by others on the host, {asked} by operations",
        others.load(Ordering::Relaxed)
    );
    assert!(events > VMS, "things happened");
}

/// Half of them running.
async fn make(daemon: &Daemon) -> Vec<String> {
    let image = daemon.image().await;
    let mut makers = Vec::new();
    for maker in 0..8 {
        let (api, image) = (daemon.api(), image.clone());
        makers.push(tokio::spawn(async move {
            let mut made = Vec::new();
            for number in (maker..VMS).step_by(8) {
                let start = if number % 2 == 0 {
                    Start::Yes
                } else {
                    Start::No
                };
                made.push(api.create(&image, start).await);
            }
            made
        }));
    }
    let mut vms = Vec::new();
    for maker in makers {
        vms.extend(maker.await.unwrap());
    }
    vms
}

/// Lists, watches, and goes on where it was whenever the stream ends; until it has
/// everything up to the goal.
async fn follow(api: Api, goal: watch::Receiver<Option<u64>>) -> Picture {
    let mut picture = Picture {
        states: BTreeMap::new(),
        events: 0,
        reconnections: 0,
        snapshots: 0,
    };
    let (vms, mut at) = list(&api).await;
    picture.states = vms;
    loop {
        let request = WatchEventsRequest {
            resume: Some(at.clone()),
            ..Default::default()
        };
        if let Ok(mut watcher) = Watcher::open(&api, request).await {
            // It checks that revisions go on where they ended, without a hole.
            while let Ok(element) = watcher.next().await {
                picture.events += 1;
                match element.event {
                    Some(watch_events_response::Event::Vm(vm)) => {
                        picture.states.insert(vm.id.clone(), vm.state());
                    }
                    Some(watch_events_response::Event::Snapshot(_)) => picture.snapshots += 1,
                    _ => {}
                }
                at = watcher.at.clone().unwrap();
                if goal.borrow().is_some_and(|goal| at.revision >= goal) {
                    return picture;
                }
            }
            picture.reconnections += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn list(api: &Api) -> (BTreeMap<String, VmState>, ResumePoint) {
    let mut vms = BTreeMap::new();
    let mut request = ListVmsRequest {
        page_size: 50,
        ..Default::default()
    };
    loop {
        let page = api
            .vms()
            .list_vms(request.clone())
            .await
            .unwrap()
            .into_inner();
        vms.extend(page.vms.iter().map(|vm| (vm.id.clone(), vm.state())));
        if page.next_page_token.is_empty() {
            return (vms, page.resume.unwrap());
        }
        request.page_token = page.next_page_token;
    }
}

/// As somebody with `virsh` would; what libvirt refuses is refused.
fn act_on_host(uri: &str, vms: &[String], seed: u64, over: &AtomicBool, done: &AtomicUsize) {
    virt::error::clear_error_callback();
    let mut random = StdRng::seed_from_u64(seed);
    let connection = virt::connect::Connect::open(Some(uri)).unwrap();
    while !over.load(Ordering::Relaxed) {
        let vm = &vms[random.random_range(0..vms.len())];
        let Some(domain) = Libvirtd::domain(&connection, vm) else {
            continue;
        };
        let changed = match random.random_range(0..4) {
            0 => domain.create().is_ok(),
            1 => domain.suspend().is_ok(),
            2 => domain.resume().is_ok(),
            _ => domain.destroy().is_ok(),
        };
        done.fetch_add(usize::from(changed), Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(random.random_range(1..15)));
    }
}

/// As a control plane would; what is refused is refused. Returns what was not.
async fn ask(api: Api, vms: Arc<Vec<String>>, seed: u64, over: Arc<AtomicBool>) -> usize {
    let mut random = StdRng::seed_from_u64(seed + 1);
    let mut asked = 0;
    while !over.load(Ordering::Relaxed) {
        let vm_id = vms[random.random_range(0..vms.len())].clone();
        let answer = if random.random_bool(0.5) {
            let start = StartVmRequest {
                vm_id,
                ..Default::default()
            };
            api.vms().start_vm(start).await
        } else {
            let stop = StopVmRequest {
                vm_id,
                stop_policy: Some(force()),
                ..Default::default()
            };
            api.vms().stop_vm(stop).await
        };
        asked += usize::from(answer.is_ok());
        tokio::time::sleep(Duration::from_millis(random.random_range(1..20))).await;
    }
    asked
}

/// Waits until nothing is at work and kvmlet says what libvirt does.
async fn until_agreement(libvirtd: &Libvirtd, api: &Api) -> BTreeMap<String, VmState> {
    let connection = libvirtd.connect();
    let until = Instant::now() + REST;
    loop {
        let (told, _) = list(api).await;
        let truth: BTreeMap<String, VmState> = told
            .keys()
            .map(|id| {
                let domain = Libvirtd::domain(&connection, id).expect("none was undefined");
                let (state, _) = domain.state().unwrap();
                let state = match state.known().unwrap() {
                    virt::domain::DomainState::Running => VmState::Running,
                    virt::domain::DomainState::Paused => VmState::Paused,
                    virt::domain::DomainState::Shutoff => VmState::Stopped,
                    other => panic!("libvirt says {other:?}"),
                };
                (id.clone(), state)
            })
            .collect();
        if told == truth {
            return truth;
        }
        assert!(Instant::now() < until, "kvmlet and libvirt do not agree");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
