//! The way of an event: to a bare callback of libvirt's, and to a gRPC watcher.
//!
//! Both hear of the same change; what counts is how much later the watcher hears.

use crate::host::Failure;
use crate::{Api, ms, percentiles};
use kvmlet::libvirt::{Callbacks, DomainChange, Host, Owner};
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::{EventFilter, EventKind, VmState, WatchEventsRequest};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;
use virt::connect::Connect;

const PATIENCE: Duration = Duration::from_secs(10);
/// Events that may wait to be looked at; one is caused at a time.
const WAITING: usize = 64;
/// Events before those that count.
/// The listener has no domains.
const NOBODY: Owner = Owner {
    node: Uuid::nil(),
    agent: Uuid::nil(),
};
const WARM_UP: usize = 10;

pub(crate) async fn compare(api: &Api, uri: &str, vm: &str, count: usize) -> Result<(), Failure> {
    let (bare, mut heard_bare) = mpsc::channel(WAITING);
    let id: kvmlet::model::ids::VmId = vm.parse()?;
    let parsed = uri.parse()?;
    let callbacks = Callbacks {
        on_event: Arc::new(move |event| {
            let halted = matches!(event.what, DomainChange::Suspended(_));
            if event.id == id && (halted || event.what == DomainChange::Resumed) {
                // The receiver ends with the bench.
                let _ = bare.try_send((halted, Instant::now()));
            }
        }),
        on_close: Arc::new(|_| {}),
    };
    let host = tokio::task::block_in_place(|| Host::open(&parsed, NOBODY, 1, callbacks))?;

    let request = WatchEventsRequest {
        filter: Some(EventFilter {
            vm_ids: vec![vm.to_owned()],
            kinds: vec![EventKind::Vm.into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut stream = api.nodes().watch_events(request).await?.into_inner();
    let (watcher, mut heard_watcher) = mpsc::channel(WAITING);
    let reader = tokio::spawn(async move {
        while let Ok(Some(element)) = stream.message().await {
            if let Some(Event::Vm(vm)) = element.event
                && matches!(vm.state(), VmState::Paused | VmState::Running)
            {
                let _ = watcher.try_send((vm.state() == VmState::Paused, Instant::now()));
            }
        }
    });

    let connection = Connect::open(Some(uri))?;
    let domain = connection.lookup_domain_by_uuid_string(vm)?;
    let (mut bare_times, mut watcher_times, mut later) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..count + WARM_UP {
        let halt = round % 2 == 0;
        let begin = Instant::now();
        tokio::task::block_in_place(|| {
            if halt {
                domain.suspend()
            } else {
                domain.resume()
            }
        })?;
        let bare = heard(&mut heard_bare, halt, "libvirt's callback").await?;
        let watcher = heard(&mut heard_watcher, halt, "the watcher").await?;
        if round >= WARM_UP {
            bare_times.push(bare - begin);
            watcher_times.push(watcher - begin);
            later.push(watcher.saturating_duration_since(bare));
        }
    }
    reader.abort();
    drop(host);
    println!("  events, from the call that causes them: median, 99 %");
    for (name, times) in [
        ("bare callback of libvirt's", &mut bare_times),
        ("gRPC watcher", &mut watcher_times),
        ("watcher after callback", &mut later),
    ] {
        let (median, most) = percentiles(times);
        println!(
            "    {name:<33} {:>8.2} ms  {:>8.2} ms",
            ms(median),
            ms(most)
        );
    }
    Ok(())
}

async fn heard(
    from: &mut mpsc::Receiver<(bool, Instant)>,
    halt: bool,
    who: &str,
) -> Result<Instant, Failure> {
    loop {
        let event = timeout(PATIENCE, from.recv())
            .await
            .map_err(|_| format!("{who} has heard nothing"))?;
        match event {
            Some((halted, at)) if halted == halt => return Ok(at),
            Some(_) => {}
            None => return Err(format!("{who} has gone").into()),
        }
    }
}
