//! A watcher of events that checks what every reader may rely on: revisions come
//! in order, none twice, and without a filter none is missing.

use super::api::Api;
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::*;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;
use tonic::{Status, Streaming};

/// Longer than any event may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One stream, and the picture that it has drawn so far.
pub struct Watcher {
    stream: Streaming<WatchEventsResponse>,
    filtered: bool,
    in_snapshot: bool,
    /// Where it stands.
    pub at: Option<ResumePoint>,
    /// The VMs as last told.
    pub vms: BTreeMap<String, Vm>,
    /// Every element but bookmarks.
    pub seen: Vec<WatchEventsResponse>,
}

impl Watcher {
    /// Opens a stream.
    pub async fn open(api: &Api, request: WatchEventsRequest) -> Result<Self, Status> {
        let at = request.resume.clone().filter(|_| !request.snapshot);
        let filtered = request.filter.is_some();
        let stream = api.nodes().watch_events(request).await?.into_inner();
        Ok(Self {
            stream,
            filtered,
            in_snapshot: false,
            at,
            vms: BTreeMap::new(),
            seen: Vec::new(),
        })
    }

    /// From now on.
    pub async fn now(api: &Api) -> Self {
        let mut watcher = Self::open(api, WatchEventsRequest::default())
            .await
            .expect("a stream");
        let first = watcher.next().await.expect("a bookmark");
        assert!(matches!(first.event, Some(Event::Bookmark(_))), "{first:?}");
        watcher
    }

    /// After a point.
    pub async fn after(api: &Api, resume: ResumePoint) -> Self {
        let request = WatchEventsRequest {
            resume: Some(resume),
            ..Default::default()
        };
        Self::open(api, request).await.expect("a stream")
    }

    /// The next element; checks its revision.
    pub async fn next(&mut self) -> Result<WatchEventsResponse, Status> {
        let next = timeout(PATIENCE, self.stream.message())
            .await
            .expect("an event in time")?;
        let next = next.ok_or_else(|| Status::unavailable("the stream has ended"))?;
        self.take(&next);
        Ok(next)
    }

    fn take(&mut self, element: &WatchEventsResponse) {
        let event = element.event.as_ref().expect("every element has one");
        if let Some(before) = &self.at
            && before.epoch == element.epoch
            && !matches!(event, Event::Snapshot(_))
            && !self.in_snapshot
        {
            let (was, is) = (before.revision, element.revision);
            let fits = match event {
                Event::Bookmark(_) if self.filtered => is >= was,
                Event::Bookmark(_) => is == was,
                _ if self.filtered => is > was,
                _ => is == was + 1,
            };
            assert!(fits, "revision {is} after {was}: {event:?}");
        }
        self.at = Some(ResumePoint {
            epoch: element.epoch.clone(),
            revision: element.revision,
        });
        match event {
            Event::Snapshot(mark) => {
                self.in_snapshot = !mark.end;
                if self.in_snapshot {
                    self.vms.clear();
                }
            }
            Event::Vm(vm) => drop(self.vms.insert(vm.id.clone(), vm.clone())),
            Event::VmExpunged(id) => drop(self.vms.remove(id)),
            Event::Bookmark(_) => return,
            Event::Operation(_) | Event::Image(_) | Event::ImageDeleted(_) => {}
        }
        self.seen.push(element.clone());
    }

    /// Reads until an element is as wished, and returns it.
    pub async fn until(&mut self, wished: impl Fn(&Event) -> bool) -> WatchEventsResponse {
        loop {
            let next = self.next().await.expect("the stream goes on");
            if next.event.as_ref().is_some_and(&wished) {
                return next;
            }
        }
    }

    /// Reads until a VM is shown in a state.
    pub async fn until_state(&mut self, vm_id: &str, state: VmState) -> WatchEventsResponse {
        self.until(|event| matches!(event, Event::Vm(vm) if vm.id == vm_id && vm.state() == state))
            .await
    }

    /// Reads until an operation is told to have ended.
    pub async fn until_ended(&mut self, operation_id: &str) -> Operation {
        let element = self
            .until(|event| {
                matches!(event, Event::Operation(operation)
                    if operation.id == operation_id && operation.end_time.is_some())
            })
            .await;
        match element.event {
            Some(Event::Operation(operation)) => operation,
            other => panic!("not an operation: {other:?}"),
        }
    }

    /// Reads the rest, to the status that ends it.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}
