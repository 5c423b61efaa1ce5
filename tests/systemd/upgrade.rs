//! From one package to the next while everything is in use.

use crate::deaths::Callers;
use crate::first_steps;
use crate::guest::Guest;
use crate::host::Host;
use crate::package::{NEXT, Packages};
use crate::receiver::{Book, serve_on};
use crate::remote::{Remote, made};
use crate::support::api::{Api, id, small};
use crate::support::watch::Watcher;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tonic::Code;

/// How many VMs are paused and resumed meanwhile.
const VMS_AT_WORK: usize = 3;

/// Operations in flight, watchers and a receiver connected: guests are untouched, each
/// operation that was accepted has ended one way or the other, watchers and the receiver
/// miss nothing.
pub async fn under_load(host: &Host, remote: &Remote, packages: &Packages, guest: &Guest) {
    let book = Arc::new(Book::default());
    let listener = host.listen("127.0.0.1:7500".parse().unwrap());
    let _receiver = serve_on(&book, listener, None);
    let file = host.path("/etc/kvmlet/kvmlet.toml");
    let config = fs::read_to_string(&file).unwrap();
    let sink = "[[report]]\nname = \"cp\"\nendpoints = [\"http://127.0.0.1:7500\"]\n\
                heartbeat = \"1s\"\n";
    fs::write(&file, format!("{config}{sink}")).unwrap();
    host.run("systemctl restart kvmlet");
    book.wait("a heartbeat", |known| known.heartbeats.last().map(|_| ()))
        .await;

    let api = remote.api(host);
    let image = api.vm(&guest.vm_id).await.unwrap().image_id;
    let before = api.node().await;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::new(AtomicU32::new(0));
    let start = resume_point(&api).await;
    let watcher = tokio::spawn(watch(api.clone(), start, stop.clone(), told.clone()));
    let callers = Callers::start(host.socket(), 2);
    let mut workers = Vec::new();
    for _ in 0..VMS_AT_WORK {
        let vm_id = made(&api, &image, None).await;
        workers.push(tokio::spawn(work(api.clone(), vm_id, stop.clone())));
    }
    let creating = tokio::spawn(create(api.clone(), image, stop.clone()));

    let mut told_before = told.load(Ordering::Relaxed);
    for (package, version) in [(&packages.next, NEXT), (&packages.now, "")] {
        until("changes before the upgrade", PATIENCE, async || {
            (told.load(Ordering::Relaxed) > told_before + 20).then_some(())
        })
        .await;
        let agent = host.agent();
        first_steps::copy(host, package, "/root/kvmlet.deb");
        host.run("apt-get install -y --allow-downgrades /root/kvmlet.deb");
        assert_ne!(host.agent(), agent, "the upgrade restarts the agent");
        let node = host.api().node().await;
        if !version.is_empty() {
            assert_eq!(node.kvmlet_version, version);
            assert_ne!(before.kvmlet_version, version);
        }
        guest.is_untouched(host);
        told_before = told.load(Ordering::Relaxed);
    }
    until("changes after the upgrade", PATIENCE, async || {
        (told.load(Ordering::Relaxed) > told_before + 20).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);

    let (mut accepted, mut refused) = (Vec::new(), BTreeMap::<String, u32>::new());
    for worker in workers.into_iter().chain([creating]) {
        let (some, wrong) = worker.await.unwrap();
        accepted.extend(some);
        for code in wrong {
            *refused.entry(code).or_default() += 1;
        }
    }
    let (mut good, mut undone) = (0, 0);
    for operation in &accepted {
        let ended = api.ended(operation).await;
        match ended.state() {
            OperationState::Succeeded => good += 1,
            _ if ended.rollback_state() != RollbackState::Failed => undone += 1,
            _ => panic!("neither done nor undone: {ended:?}"),
        }
    }
    let (calls, failed) = callers.end().await;
    println!(
        "{} operations accepted, {good} done, {undone} undone; not accepted: {refused:?}; \
         {calls} calls on the socket, {} failed",
        accepted.len(),
        failed.len()
    );
    assert!(good > 0);
    assert_eq!(
        failed,
        Vec::<String>::new(),
        "a caller of the socket was refused"
    );
    let (picture, streams, snapshots) = watcher.await.unwrap();
    println!("the watcher: {streams} streams, {snapshots} snapshots, no revision missed");
    assert!(streams > 2, "the watcher was cut off by each restart");
    assert_eq!(snapshots, 0);
    let shown: BTreeMap<String, VmState> = all(&api).await;
    let picture: BTreeMap<String, VmState> = picture
        .into_iter()
        .filter(|(id, _)| shown.contains_key(id))
        .collect();
    for (id, state) in &picture {
        assert_eq!(shown[id], *state, "the watcher's picture of {id}");
    }
    // The receiver has the same in the end, told without a snapshot but for its first.
    book.wait("the receiver's picture", |known| {
        let host = known.fleet.hosts.values().next()?;
        let picture: BTreeMap<String, VmState> = host
            .vms
            .values()
            .map(|vm| (vm.id.clone(), vm.state()))
            .collect();
        (picture == shown).then_some(())
    })
    .await;
    fs::write(&file, config).unwrap();
    host.run("systemctl restart kvmlet");
    guest.is_untouched(host);
    for vm in api.all_vms().await {
        if vm.id != guest.vm_id && vm.state() == VmState::Running {
            host.run(&format!("kvmlet vm stop {} --force", vm.id));
        }
    }
}

async fn all(api: &Api) -> BTreeMap<String, VmState> {
    let all = api.all_vms().await.into_iter();
    all.map(|vm| (vm.id.clone(), vm.state())).collect()
}

async fn resume_point(api: &Api) -> ResumePoint {
    let answer = api.vms().list_vms(ListVmsRequest::default()).await;
    answer
        .unwrap()
        .into_inner()
        .resume
        .expect("where to watch from")
}

/// Follows all changes over every restart; `Watcher` holds their revisions to be without
/// a gap. Its picture, how many streams there were, and how many snapshots.
async fn watch(
    api: Api,
    mut from: ResumePoint,
    stop: Arc<AtomicBool>,
    told: Arc<AtomicU32>,
) -> (BTreeMap<String, VmState>, u32, u32) {
    let (mut picture, mut streams, mut snapshots) = (BTreeMap::new(), 0, 0);
    loop {
        let request = WatchEventsRequest {
            resume: Some(from.clone()),
            ..Default::default()
        };
        let Ok(mut watcher) = Watcher::open(&api, request).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        streams += 1;
        // Bookmarks come every 10 s, so that this ends.
        while let Ok(element) = watcher.next().await {
            match element.event {
                Some(watch_events_response::Event::Vm(vm)) => {
                    picture.insert(vm.id.clone(), vm.state());
                }
                Some(watch_events_response::Event::Snapshot(_)) => snapshots += 1,
                Some(watch_events_response::Event::Bookmark(_)) if stop.load(Ordering::Relaxed) => {
                    return (picture, streams, snapshots);
                }
                _ => {}
            }
            told.fetch_add(1, Ordering::Relaxed);
        }
        from = watcher.at.clone().unwrap_or(from);
    }
}

/// Pauses and resumes a VM until told to stop; the ids of what was accepted, and the
/// codes of what was not.
async fn work(api: Api, vm_id: String, stop: Arc<AtomicBool>) -> (Vec<String>, Vec<String>) {
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        for state in [PowerState::Paused, PowerState::On] {
            let request = SetVmPowerStateRequest {
                vm_id: vm_id.clone(),
                power_state: state.into(),
                request_id: id(),
                ..Default::default()
            };
            // The same request again until it is answered: it is carried out once.
            loop {
                match api.vms().set_vm_power_state(request.clone()).await {
                    Ok(answer) => {
                        let operation = answer.into_inner().id;
                        finished(&api, &operation).await;
                        accepted.push(operation);
                        break;
                    }
                    Err(status) => {
                        refused.push(format!("{:?}", status.code()));
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        if status.code() != Code::Unavailable && status.code() != Code::Unknown {
                            break;
                        }
                    }
                }
            }
        }
    }
    (accepted, refused)
}

/// Makes VMs without power until told to stop.
async fn create(api: Api, image: String, stop: Arc<AtomicBool>) -> (Vec<String>, Vec<String>) {
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) && accepted.len() < 60 {
        match api.vms().create_vm(small(&image)).await {
            Ok(answer) => accepted.push(answer.into_inner().id),
            Err(status) => refused.push(format!("{:?}", status.code())),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    (accepted, refused)
}

/// Waits for an operation over restarts.
async fn finished(api: &Api, operation: &str) {
    until("an operation to end", PATIENCE, async || {
        let request = WaitOperationRequest {
            operation_id: operation.to_owned(),
            timeout: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
        };
        let answer = api.operations().wait_operation(request).await.ok()?;
        answer.into_inner().end_time.map(|_| ())
    })
    .await;
}

/// What an agent of a later version wrote is not read by guessing: this one says so, in
/// words, does not start again and again, and leaves the file and the guests as they are.
pub async fn a_newer_journal_is_refused_cleanly(host: &Host) {
    let file = "/var/lib/kvmlet/journal.db";
    let schema = host.run(&format!("sqlite3 {file} 'PRAGMA user_version'"));
    let newer: u32 = schema.parse::<u32>().unwrap() + 1;
    host.run(&format!(
        "systemctl stop kvmlet.socket kvmlet && sqlite3 {file} 'PRAGMA user_version = {newer}' && \
         sha256sum {file} >/root/journal.sum"
    ));
    let started = host.try_run("systemctl start kvmlet");
    assert_ne!(started.code, Some(0));
    assert_eq!(host.property("kvmlet", "ExecMainStatus"), "78");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(host.property("kvmlet", "ActiveState"), "failed");
    let journal = host.journal();
    println!(
        "{}",
        journal
            .lines()
            .rfind(|l| l.contains("kvmlet serve"))
            .unwrap_or(&journal)
    );
    assert!(journal.contains("newer"), "{journal}");
    host.run("sha256sum -c /root/journal.sum");
    host.run(&format!(
        "sqlite3 {file} 'PRAGMA user_version = {schema}' && systemctl start kvmlet.socket kvmlet"
    ));
    assert!(host.api().serving("").await.unwrap());
}
