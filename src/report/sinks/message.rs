//! An event as a message on a bus: CloudEvents 1.0 in binary mode, on a subject
//! that says what it is about.

use super::Problem;
use crate::config::Encoding;
use crate::proto::json;
use crate::proto::v1::watch_events_response::Event;
use crate::proto::v1::{Operation, WatchEventsResponse};

/// What a bus is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Where it is published.
    pub subject: String,
    /// What a bus drops repeats by.
    pub id: String,
    /// The attributes of the CloudEvent, each with its name in a header.
    pub headers: Vec<(&'static str, String)>,
    /// The event.
    pub data: Vec<u8>,
}

/// Makes messages of one host's events.
#[derive(Debug, Clone)]
pub struct Writer {
    /// What each subject begins with.
    pub prefix: String,
    /// The host.
    pub node: String,
    /// How the data is written.
    pub encoding: Encoding,
}

/// What an event is about and what it is called.
struct Topic {
    /// What follows the host in the subject.
    subject: String,
    /// What it is about, as the CloudEvent has it.
    about: String,
    /// What the type has between prefix and version.
    kind: &'static str,
}

impl Topic {
    fn new(thing: &str, id: &str, kind: &'static str, last: &str) -> Self {
        Self {
            subject: format!("{thing}.{id}.{last}"),
            about: format!("{thing}/{id}"),
            kind,
        }
    }
}

impl Writer {
    /// The message of an event; `None` for what a bus has no use of.
    ///
    /// # Errors
    /// If it can't be written in the encoding.
    pub fn message(
        &self,
        event: &WatchEventsResponse,
        in_snapshot: bool,
    ) -> Result<Option<Message>, Problem> {
        let Some(topic) = topic(event) else {
            return Ok(None);
        };
        let (epoch, revision) = (&event.epoch, event.revision);
        // The members of a snapshot and its marks share a revision.
        let shared = in_snapshot || matches!(event.event, Some(Event::Snapshot(_)));
        let (id, dedup) = if shared {
            let about = &topic.about;
            let member = format!("{}-{}", topic.kind, about.replace('/', "-"));
            (
                format!("{epoch}/{revision}/{about}"),
                format!("{epoch}-{revision}-{member}"),
            )
        } else {
            (format!("{epoch}/{revision}"), format!("{epoch}-{revision}"))
        };
        let mut headers = self.attributes(id, &topic);
        if let Some(time) = &event.time {
            headers.push(("ce-time", time.to_string()));
        }
        if in_snapshot {
            headers.push(("ce-kvmletsnapshot", "true".to_owned()));
        }
        Ok(Some(Message {
            subject: format!("{}.{}.{}", self.prefix, self.node, topic.subject),
            id: dedup,
            headers,
            data: self.encoded("WatchEventsResponse", event)?,
        }))
    }

    /// The message of a heartbeat.
    ///
    /// # Errors
    /// If it can't be written in the encoding.
    pub fn heartbeat(
        &self,
        node: &crate::proto::v1::Node,
        head: &crate::proto::v1::ResumePoint,
        time: prost_types::Timestamp,
    ) -> Result<Message, Problem> {
        let topic = Topic {
            subject: "node.heartbeat".to_owned(),
            about: format!("node/{}", self.node),
            kind: "node.heartbeat",
        };
        let id = format!("{}/{}/heartbeat/{time}", head.epoch, head.revision);
        let mut headers = self.attributes(id.clone(), &topic);
        headers.push(("ce-time", time.to_string()));
        Ok(Message {
            subject: format!("{}.{}.{}", self.prefix, self.node, topic.subject),
            id,
            headers,
            data: self.encoded("Node", node)?,
        })
    }

    fn attributes(&self, id: String, topic: &Topic) -> Vec<(&'static str, String)> {
        let content = match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/protobuf",
        };
        vec![
            ("ce-specversion", "1.0".to_owned()),
            ("ce-id", id),
            ("ce-source", format!("/kvmlet/nodes/{}", self.node)),
            ("ce-type", format!("dev.kvmlet.{}.v1", topic.kind)),
            ("ce-subject", topic.about.clone()),
            ("content-type", content.to_owned()),
        ]
    }

    fn encoded<M: prost::Message + Clone + Writable>(
        &self,
        name: &str,
        message: &M,
    ) -> Result<Vec<u8>, Problem> {
        match self.encoding {
            Encoding::Protobuf => Ok(message.encode_to_vec()),
            Encoding::Json => {
                let value = json::value(name, &message.clone().writable());
                value
                    .map(|value| value.to_string().into_bytes())
                    .map_err(|error| Problem::new(format!("can't be written as JSON: {error}")))
            }
        }
    }
}

/// What can be made fit for JSON.
trait Writable {
    /// Without what JSON can't hold.
    fn writable(self) -> Self;
}

impl Writable for WatchEventsResponse {
    fn writable(mut self) -> Self {
        if let Some(Event::Operation(operation)) = &mut self.event {
            json::drop_unknown_details(operation);
        }
        self
    }
}

impl Writable for crate::proto::v1::Node {
    fn writable(self) -> Self {
        self
    }
}

fn topic(event: &WatchEventsResponse) -> Option<Topic> {
    Some(match event.event.as_ref()? {
        Event::Vm(vm) => Topic::new("vm", &vm.id, "vm.state", "state"),
        Event::VmExpunged(id) => Topic::new("vm", id, "vm.expunged", "expunged"),
        Event::Image(image) => Topic::new("image", &image.id, "image.state", "state"),
        Event::ImageDeleted(id) => Topic::new("image", id, "image.deleted", "deleted"),
        Event::Operation(operation) => of_operation(operation),
        Event::Snapshot(mark) if mark.end => Topic {
            subject: "snapshot.end".to_owned(),
            about: "snapshot/end".to_owned(),
            kind: "snapshot.end",
        },
        Event::Snapshot(_) => Topic {
            subject: "snapshot.begin".to_owned(),
            about: "snapshot/begin".to_owned(),
            kind: "snapshot.begin",
        },
        Event::Bookmark(_) => return None,
    })
}

/// With the thing that it changes, so that who follows one thing gets all of it in
/// order.
fn of_operation(operation: &Operation) -> Topic {
    let (thing, id) = match (&operation.vm_id, &operation.image_id) {
        (vm, _) if !vm.is_empty() => ("vm", vm),
        (_, image) if !image.is_empty() => ("image", image),
        _ => ("operation", &operation.id),
    };
    Topic {
        about: format!("operation/{}", operation.id),
        ..Topic::new(thing, id, "operation.state", "operation")
    }
}
