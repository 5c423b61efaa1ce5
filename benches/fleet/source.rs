//! A made-up host with one VM, whose events are kept in memory.

use async_trait::async_trait;
use kvmlet::proto::report::v1::Hello;
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::{Node, ResumePoint, SnapshotMark, Vm, VmState, WatchEventsResponse};
use kvmlet::report::sinks::{Begin, Events, Problem, Source};
use std::collections::VecDeque;
use std::time::SystemTime;
use tokio::sync::watch;
use uuid::Uuid;

/// A made-up host.
pub(crate) struct Synthetic {
    node: String,
    epoch: String,
    vm: Vm,
    /// The newest revision and when it was made.
    head: watch::Sender<(u64, SystemTime)>,
}

impl Synthetic {
    pub(crate) fn new(number: usize) -> Self {
        let vm = Vm {
            id: Uuid::new_v4().to_string(),
            name: format!("vm-{number}"),
            state: VmState::Running.into(),
            ..Vm::default()
        };
        Self {
            node: Uuid::new_v4().to_string(),
            epoch: Uuid::new_v4().to_string(),
            vm,
            head: watch::Sender::new((1, SystemTime::now())),
        }
    }

    /// Something changes.
    pub(crate) fn change(&self) {
        self.head.send_modify(|(revision, time)| {
            *revision += 1;
            *time = SystemTime::now();
        });
    }

    fn at(&self, revision: u64, time: SystemTime, event: Event) -> WatchEventsResponse {
        WatchEventsResponse {
            epoch: self.epoch.clone(),
            revision,
            time: Some(time.into()),
            event: Some(event),
            ..WatchEventsResponse::default()
        }
    }
}

/// Where a reader is.
struct Reading {
    epoch: String,
    vm: Vm,
    at: u64,
    ready: VecDeque<WatchEventsResponse>,
    head: watch::Receiver<(u64, SystemTime)>,
}

#[async_trait]
impl Source for Synthetic {
    fn open(&self, begin: Begin) -> Box<dyn Events> {
        let head = self.head.subscribe();
        let (revision, time) = *self.head.borrow();
        let mut ready = VecDeque::new();
        let at = match begin {
            Begin::After(point) => point.revision,
            Begin::Snapshot => {
                let mark = |end| Event::Snapshot(SnapshotMark { end, forced: false });
                for event in [mark(false), Event::Vm(self.vm.clone()), mark(true)] {
                    ready.push_back(self.at(revision, time, event));
                }
                revision
            }
        };
        Box::new(Reading {
            epoch: self.epoch.clone(),
            vm: self.vm.clone(),
            at,
            ready,
            head,
        })
    }

    fn head(&self) -> ResumePoint {
        ResumePoint {
            epoch: self.epoch.clone(),
            revision: self.head.borrow().0,
        }
    }

    fn node(&self) -> Node {
        Node {
            id: self.node.clone(),
            ..Node::default()
        }
    }

    fn hello(&self, acknowledged: Option<ResumePoint>) -> Hello {
        Hello {
            node_id: self.node.clone(),
            epoch: self.epoch.clone(),
            acknowledged,
            head_revision: self.head.borrow().0,
            ..Hello::default()
        }
    }

    async fn keep(&self, _sink: &str, _cursor: &ResumePoint) -> Result<(), Problem> {
        Ok(())
    }
}

#[async_trait]
impl Events for Reading {
    async fn next(&mut self) -> Result<WatchEventsResponse, Problem> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let (head, time) = *self.head.borrow_and_update();
            if self.at < head {
                self.at += 1;
                return Ok(WatchEventsResponse {
                    epoch: self.epoch.clone(),
                    revision: self.at,
                    time: Some(time.into()),
                    event: Some(Event::Vm(self.vm.clone())),
                    ..WatchEventsResponse::default()
                });
            }
            if self.head.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
