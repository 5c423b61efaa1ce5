//! Telling what could not be told when it happened: at the start, and after the
//! journal could not be written.

use super::{Thing, lock, note_failure};
use crate::model::event::Cause;
use crate::model::reason::Reason;
use crate::service::core::Core;
use crate::service::hypervisor::Link;
use crate::service::sweeper;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long the first look at the host may take before VMs are told to be UNKNOWN.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// How long the displays and addresses of running VMs may take to be read after it;
/// those that come later are told as changes.
const DETAILS: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(5);
/// When what could not be written is tried again.
const AGAIN: Duration = Duration::from_millis(20);
const AGAIN_LAST: Duration = Duration::from_secs(1);
/// How often the progress of operations is told.
const PROGRESS: Duration = Duration::from_secs(1);

/// Opens the feed after the first look at the host, and from then on tells what is
/// left over, and how operations get on, until the agent stops.
pub async fn catch_up(core: Arc<Core>) {
    tokio::select! {
        () = core.stopping.cancelled() => {}
        () = work(&core) => {}
    }
}

async fn work(core: &Core) {
    sweeper::forget_events(core).await;
    let mut link = core.hypervisor.link();
    let up = link.wait_for(|link| *link == Link::Up);
    if tokio::time::timeout(FIRST_LOOK, up).await.is_ok() {
        until_details_are_read(core).await;
    }
    release(core).await;
    tokio::join!(tell_left_over(core), tell_progress(core));
}

async fn until_details_are_read(core: &Core) {
    let until = Instant::now() + DETAILS;
    while Instant::now() < until && core.vms.cells().iter().any(|cell| !cell.was_looked_at()) {
        tokio::time::sleep(TICK).await;
    }
}

/// Compares what was told with what is, tells the differences, and opens the feed.
async fn release(core: &Core) {
    let told: Vec<Thing> = {
        let mut state = core.feed.state();
        state.held = false;
        state.told.keys().copied().collect()
    };
    for cell in core.vms.cells() {
        cell.tell_again();
    }
    for image in core.images.list() {
        core.images.tell(image.id, Cause::AGENT);
    }
    for thing in told {
        tell(core, thing).await;
    }
    core.feed.open.send_replace(true);
}

/// Tells of a thing as it is, if that differs from what was told.
async fn tell(core: &Core, thing: Thing) {
    match thing {
        Thing::Vm(id) => match core.vms.cell(id) {
            Some(cell) => cell.tell_again(),
            None => core.feed.tell_again(id, &Arc::default()),
        },
        Thing::Image(id) => core.images.tell(id, Cause::AGENT),
        Thing::Operation(id) => match core.operations.get(id).await {
            Ok(operation) => core.feed.tell_operation(&operation),
            // It never came to be, or was forgotten since.
            Err(fault) if fault.reason == Reason::OperationNotFound => core.feed.untell(id),
            Err(_) => {
                note_failure(&mut core.feed.state(), thing);
                core.feed.failed.notify_one();
            }
        },
    }
}

/// Tells again what could not be written.
async fn tell_left_over(core: &Core) {
    let feed = &core.feed;
    let mut pause = AGAIN;
    loop {
        feed.failed.notified().await;
        tokio::time::sleep(pause).await;
        let left: Vec<Thing> = lock(&feed.state).untold.drain().collect();
        for thing in left {
            tell(core, thing).await;
        }
        // A full disk is asked once a second.
        pause = if feed.writable.load(Ordering::Acquire) {
            AGAIN
        } else {
            (pause * 2).min(AGAIN_LAST)
        };
    }
}

/// Tells of operations at work that have changed since they were told of.
async fn tell_progress(core: &Core) {
    let mut began = core.operations.begun();
    loop {
        // While none is at work, this costs nothing.
        if began.wait_for(|live| *live > 0).await.is_err() {
            return;
        }
        tokio::time::sleep(PROGRESS).await;
        for live in core.operations.all_live() {
            core.feed.tell_operation(&live.get());
        }
    }
}
