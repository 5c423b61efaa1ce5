//! The agent's own events as a source for sinks, and the start of all sinks that
//! are configured.

use super::grpc::GrpcSink;
use super::nats::NatsSink;
use super::runner::Runner;
use super::{Begin, Events, Problem, Sink, Source};
use crate::config::{Pace, PoolBackend};
use crate::grpc::wire;
use crate::journal::Batch;
use crate::model::event::{Filter, Position};
use crate::proto::report::v1::Hello;
use crate::proto::v1::{Node, ResumePoint, WatchEventsResponse};
use crate::service::Core;
use crate::service::feed::{Reader, Start};
use crate::service::node::describe;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// Serves every configured sink until the agent stops, from where each one's
/// receiver was. Returns at once; [`Core::tasks`] has the tasks.
pub fn start(core: &Arc<Core>, cursors: &HashMap<String, Position>) {
    let serve = |name: &String, kind, pace, sink: Arc<dyn Sink>| {
        let cursor = cursors.get(name).copied();
        let first = sink.endpoints().first().cloned().unwrap_or_default();
        let slot = core.sinks.add(name.clone(), kind, first, cursor);
        let runner = Runner {
            name: name.clone(),
            sink,
            source: Arc::new(Feed(core.clone())),
            slot,
            cursor: cursor.map(wire::resume_point),
            pace,
        };
        core.tasks.spawn(run(core.clone(), runner));
    };
    for settings in &core.config.report {
        let sink = Arc::new(GrpcSink::new(settings, core.node.version()));
        serve(&settings.name, "grpc", settings.pace, sink);
    }
    for settings in &core.config.nats {
        let pace: Pace = settings.pace;
        let sink = Arc::new(NatsSink::new(settings.clone()));
        serve(&settings.name, "nats", pace, sink);
    }
}

async fn run(core: Arc<Core>, runner: Runner) {
    let stop = core.stopping.clone();
    // Before that there is nothing to tell, and the host has no name.
    tokio::select! {
        () = stop.cancelled() => {}
        () = core.feed.settled() => runner.run(stop.clone()).await,
    }
}

/// The feed as a source.
struct Feed(Arc<Core>);

#[async_trait]
impl Source for Feed {
    fn open(&self, begin: Begin) -> Box<dyn Events> {
        let resume = match begin {
            Begin::Snapshot => None,
            Begin::After(point) => Some(Position {
                // What is no epoch is none of ours, and is answered so.
                epoch: Uuid::try_parse(&point.epoch).unwrap_or_default(),
                revision: point.revision,
            }),
        };
        let start = Start {
            snapshot: resume.is_none(),
            resume,
            filter: Filter::default(),
        };
        Box::new(FeedEvents {
            reader: Reader::new(&self.0, start),
            core: self.0.clone(),
        })
    }

    fn head(&self) -> ResumePoint {
        wire::resume_point(self.0.feed.position())
    }

    fn node(&self) -> Node {
        wire::node(describe(&self.0))
    }

    fn hello(&self, acknowledged: Option<ResumePoint>) -> Hello {
        let node = self.node();
        let head = self.head();
        let pools = self.0.config.pools.iter().map(|pool| match pool.backend {
            PoolBackend::Qcow2 => "qcow2".to_owned(),
            PoolBackend::Rbd(_) => "rbd".to_owned(),
        });
        let mut capabilities: Vec<String> = pools.chain([node.accelerator]).collect();
        capabilities.sort_unstable();
        capabilities.dedup();
        Hello {
            node_id: node.id,
            hostname: node.hostname,
            epoch: head.epoch,
            kvmlet_version: node.kvmlet_version,
            capabilities,
            labels: node.labels,
            acknowledged,
            head_revision: head.revision,
        }
    }

    async fn keep(&self, sink: &str, cursor: &ResumePoint) -> Result<(), Problem> {
        let epoch = Uuid::try_parse(&cursor.epoch)
            .map_err(|error| Problem::from_error("the epoch", &error))?;
        let position = Position {
            epoch,
            revision: cursor.revision,
        };
        self.0
            .ledger
            .commit(Batch::new().put_cursor(sink, position))
            .await
            .map_err(|fault| Problem::new(fault.message))
    }
}

struct FeedEvents {
    core: Arc<Core>,
    reader: Reader,
}

#[async_trait]
impl Events for FeedEvents {
    async fn next(&mut self) -> Result<WatchEventsResponse, Problem> {
        match self.reader.next().await {
            Ok(item) => Ok(wire::event(&item, &self.core)),
            Err(fault) => Err(Problem::new(fault.message)),
        }
    }
}
