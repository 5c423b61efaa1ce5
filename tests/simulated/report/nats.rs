//! What a stream of JetStream has when the server was killed while VMs changed.

use crate::report::ask::{describe, kept, vm};
use crate::report::bus::Bus;
use crate::support::daemon::{Daemon, Setup};
use crate::support::{PATIENCE, until};
use futures_util::StreamExt;
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::{DESCRIPTORS, Node, WatchEventsResponse};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use std::collections::HashSet;

/// What is stored.
struct Stored {
    subject: String,
    id: String,
    headers: async_nats::HeaderMap,
    event: WatchEventsResponse,
}

impl Stored {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.as_str())
    }
}

fn sink(bus: &Bus, encoding: &str) -> String {
    format!(
        "\n[[nats]]\nname = \"bus\"\nservers = [\"{}\"]\ncreate_stream = true\n\
         encoding = \"{encoding}\"\nheartbeat = \"1s\"\n",
        bus.address()
    )
}

/// Everything that the stream has, in its order.
async fn stored(bus: &Bus, encoding: &str) -> Vec<Stored> {
    let stream = bus.context().await.get_stream("KVMLET").await.unwrap();
    let state = stream.cached_info().state.clone();
    let mut all = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let id = message.headers.get("Nats-Msg-Id").unwrap().to_string();
        all.push(Stored {
            subject: message.subject.to_string(),
            id,
            headers: message.headers.clone(),
            event: decoded("WatchEventsResponse", encoding, &message.payload),
        });
    }
    all
}

/// Data as a consumer reads it: with the descriptors that the protos make.
fn decoded<M: Message + Default>(name: &str, encoding: &str, data: &[u8]) -> M {
    if encoding == "protobuf" {
        return M::decode(data).unwrap();
    }
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let descriptor = pool
        .get_message_by_name(&format!("kvmlet.v1.{name}"))
        .unwrap();
    let mut json = serde_json::Deserializer::from_slice(data);
    let dynamic = DynamicMessage::deserialize(descriptor, &mut json).unwrap();
    json.end().unwrap();
    M::decode(dynamic.encode_to_vec().as_slice()).unwrap()
}

/// Changes a VM while the server is killed and started again, and compares what is
/// stored with what happened.
async fn nothing_is_lost_or_twice(encoding: &str) {
    let mut bus = Bus::start().await;
    let setup = Setup {
        more: sink(&bus, encoding),
        ..Setup::default()
    };
    let daemon = Daemon::start(setup).await;
    let api = daemon.api();
    let vm_id = vm(&daemon).await;
    for round in 0..3 {
        let changes = {
            let (api, vm_id) = (api.clone(), vm_id.clone());
            tokio::spawn(async move {
                for count in 0..15 {
                    describe(&api, &vm_id, &format!("change {round}.{count}")).await;
                }
            })
        };
        let wanted = kept(daemon.home()).1 + 20;
        until("some changes", PATIENCE, async || {
            (kept(daemon.home()).1 >= wanted).then_some(())
        })
        .await;
        bus.kill9();
        bus.restart().await;
        changes.await.unwrap();
    }
    let newest = kept(daemon.home()).1;
    until("everything to be stored", PATIENCE, async || {
        let cursor = crate::report::ask::cursor(daemon.home(), "bus")?;
        (cursor.revision >= newest).then_some(())
    })
    .await;

    let all = stored(&bus, encoding).await;
    let ids: HashSet<&str> = all.iter().map(|stored| stored.id.as_str()).collect();
    assert_eq!(ids.len(), all.len(), "each once");
    let node = api.node().await.id;
    let changes: Vec<&Stored> = all
        .iter()
        .filter(|stored| !matches!(stored.event.event, Some(Event::Snapshot(_))))
        .filter(|stored| stored.header("ce-kvmletsnapshot").is_empty())
        .collect();
    let first = changes[0].event.revision;
    let revisions: Vec<u64> = changes.iter().map(|stored| stored.event.revision).collect();
    let last = *revisions.last().unwrap();
    assert!(last >= newest, "up to {newest}");
    assert!(
        revisions.iter().copied().eq(first..=last),
        "every revision, in order: {revisions:?}"
    );
    assert!(matches!(all[0].event.event, Some(Event::Snapshot(_))));
    assert_eq!(all[0].subject, format!("kvmlet.{node}.snapshot.begin"));
    for stored in changes {
        let event = &stored.event;
        assert_eq!(stored.id, format!("{}-{}", event.epoch, event.revision));
        assert_eq!(stored.header("ce-specversion"), "1.0");
        assert_eq!(
            stored.header("ce-id"),
            format!("{}/{}", event.epoch, event.revision)
        );
        assert_eq!(stored.header("ce-source"), format!("/kvmlet/nodes/{node}"));
        let (subject, kind) = match event.event.as_ref().unwrap() {
            Event::Vm(vm) => (format!("vm.{}.state", vm.id), "vm.state"),
            Event::Image(image) => (format!("image.{}.state", image.id), "image.state"),
            Event::Operation(operation) if operation.vm_id.is_empty() => (
                format!("image.{}.operation", operation.image_id),
                "operation.state",
            ),
            Event::Operation(operation) => (
                format!("vm.{}.operation", operation.vm_id),
                "operation.state",
            ),
            other => panic!("nothing else happened: {other:?}"),
        };
        assert_eq!(stored.subject, format!("kvmlet.{node}.{subject}"));
        assert_eq!(stored.header("ce-type"), format!("dev.kvmlet.{kind}.v1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_json_a_stream_has_every_change_once_and_in_order_whatever_the_server_does() {
    nothing_is_lost_or_twice("json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_protobuf_a_stream_has_every_change_once_and_in_order_whatever_the_server_does() {
    nothing_is_lost_or_twice("protobuf").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_are_heard_and_not_stored() {
    let bus = Bus::start().await;
    let client = async_nats::connect(bus.address()).await.unwrap();
    let mut heartbeats = client.subscribe("kvmlet.*.node.heartbeat").await.unwrap();
    client.flush().await.unwrap();
    let setup = Setup {
        more: sink(&bus, "json"),
        ..Setup::default()
    };
    let daemon = Daemon::start(setup).await;
    let heard = tokio::time::timeout(PATIENCE, heartbeats.next()).await;
    let message = heard.unwrap().unwrap();
    let node: Node = decoded("Node", "json", &message.payload);
    assert_eq!(node.id, daemon.api().node().await.id);
    let all = stored(&bus, "json").await;
    assert!(
        all.iter()
            .all(|stored| !stored.subject.contains("heartbeat"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_missing_is_told_and_made_only_if_that_is_wanted() {
    let bus = Bus::start().await;
    let setup = Setup {
        more: sink(&bus, "json").replace("create_stream = true\n", ""),
        ..Setup::default()
    };
    let daemon = Daemon::start(setup).await;
    let api = daemon.api();
    until("the problem to be told", PATIENCE, async || {
        let condition = crate::report::ask::condition(&api, "bus").await;
        condition.message.contains("no stream found").then_some(())
    })
    .await;
    assert!(bus.context().await.get_stream("KVMLET").await.is_err());
}
