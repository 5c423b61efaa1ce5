//! What a control plane knows of its hosts from what their agents report: the part
//! of a receiver that any receiver needs. It is pure; a real one keeps it in a
//! database, in the same transaction as what it makes of it.
//!
//! Three rules make it right, whatever is lost or comes twice:
//!
//! 1. What is not in a snapshot is gone when the snapshot ends.
//! 2. Outside of a snapshot, a change whose revision is not after the last one is
//!    known already.
//! 3. Acknowledge what is kept, and a snapshot only as a whole.

use kvmlet::proto::report::v1::{Heartbeat, Hello, Welcome};
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::{Node, ResumePoint, Vm, WatchEventsResponse};
use std::collections::BTreeMap;

/// All hosts, by the ids of their nodes.
#[derive(Debug, Default, Clone)]
pub struct Fleet {
    pub hosts: BTreeMap<String, Host>,
}

/// One host.
#[derive(Debug, Default, Clone)]
pub struct Host {
    pub hostname: String,
    /// Up to where everything is known; absent before the first snapshot has ended.
    pub known: Option<ResumePoint>,
    pub vms: BTreeMap<String, Vm>,
    /// The snapshot that is arriving.
    arriving: Option<BTreeMap<String, Vm>>,
    /// What the last heartbeat told.
    pub node: Option<Node>,
    /// Which of its streams is the current one, and whether it is open.
    pub stream: u64,
    pub online: bool,
}

/// What an event came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is kept: acknowledge this, and tell whom it concerns.
    Kept(ResumePoint),
    /// It was known already: acknowledge it, and do nothing else.
    Known(ResumePoint),
    /// A part of a snapshot, or nothing: no answer.
    Nothing,
}

impl Fleet {
    /// A host calls. What is known of it decides from where it sends; one that is
    /// new here sends everything. Returns the number of its stream, too.
    pub fn hello(&mut self, hello: &Hello) -> (u64, Welcome) {
        let host = self.hosts.entry(hello.node_id.clone()).or_default();
        host.hostname.clone_from(&hello.hostname);
        // Half a snapshot is of no use: the whole comes again.
        host.arriving = None;
        host.stream += 1;
        host.online = true;
        let welcome = Welcome {
            resume: host.known.clone(),
            full_snapshot: host.known.is_none(),
        };
        (host.stream, welcome)
    }

    /// A stream has ended. A later one of the same host goes on.
    pub fn bye(&mut self, node_id: &str, stream: u64) {
        if let Some(host) = self.current(node_id, stream) {
            host.online = false;
        }
    }

    /// A host says that it lives. False if the stream is not the current one.
    pub fn heartbeat(&mut self, node_id: &str, stream: u64, heartbeat: Heartbeat) -> bool {
        let Some(host) = self.current(node_id, stream) else {
            return false;
        };
        host.node = heartbeat.node;
        true
    }

    /// Something changed on a host. `None` if the stream is not the current one.
    pub fn event(
        &mut self,
        node_id: &str,
        stream: u64,
        event: WatchEventsResponse,
    ) -> Option<Outcome> {
        Some(self.current(node_id, stream)?.take(event))
    }

    fn current(&mut self, node_id: &str, stream: u64) -> Option<&mut Host> {
        let host = self.hosts.get_mut(node_id)?;
        (host.stream == stream).then_some(host)
    }
}

impl Host {
    fn take(&mut self, told: WatchEventsResponse) -> Outcome {
        let point = ResumePoint {
            epoch: told.epoch,
            revision: told.revision,
        };
        let event = told.event;
        if let Some(Event::Snapshot(mark)) = &event {
            if !mark.end {
                self.arriving = Some(BTreeMap::new());
                return Outcome::Nothing;
            }
            // Rule 1. An end without a beginning would be a fault of the agent's.
            let Some(whole) = self.arriving.take() else {
                return Outcome::Nothing;
            };
            self.vms = whole;
            self.known = Some(point.clone());
            return Outcome::Kept(point);
        }
        if let Some(Event::Bookmark(_)) = event {
            return Outcome::Nothing;
        }
        if let Some(arriving) = &mut self.arriving {
            apply(arriving, event);
            return Outcome::Nothing;
        }
        // Rule 2.
        if let Some(known) = &self.known
            && known.epoch == point.epoch
            && point.revision <= known.revision
        {
            return Outcome::Known(point);
        }
        apply(&mut self.vms, event);
        self.known = Some(point.clone());
        Outcome::Kept(point)
    }
}

/// Each event has its thing whole, so there is nothing to compute.
fn apply(vms: &mut BTreeMap<String, Vm>, event: Option<Event>) {
    match event {
        Some(Event::Vm(vm)) => {
            vms.insert(vm.id.clone(), vm);
        }
        Some(Event::VmExpunged(id)) => {
            vms.remove(&id);
        }
        // This one looks after VMs only; and what a later agent tells that this
        // build does not know must be acknowledged all the same.
        _ => {}
    }
}
