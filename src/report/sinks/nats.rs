//! NATS with JetStream: what the stream has stored is acknowledged.
//!
//! Changes are published one at a time: two at once could be stored in the wrong
//! order when a server fails between them. The members of a snapshot have no order
//! and are not held back so.
//!
//! The client's own reconnecting is not relied on: whatever ends a connection ends
//! the link, and what was not acknowledged is published again, with the same id.

use super::grpc::read;
use super::message::{Message, Writer};
use super::{Link, Problem, Sink, Wish};
use crate::config::{NatsLogin, NatsSettings};
use crate::proto::report::v1::Hello;
use crate::proto::v1::watch_events_response::Event as Told;
use crate::proto::v1::{Node, ResumePoint, WatchEventsResponse};
use async_nats::jetstream::context::{Context, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config as Stream, StorageType};
use async_nats::{Client, ConnectOptions, Event, HeaderMap};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Members of a snapshot that may be on their way.
const MEMBERS: usize = 256;
/// How often the server is asked whether it lives.
const PING: Duration = Duration::from_secs(10);
/// For how long the stream drops what it has already, where it is made here.
const DUPLICATES: Duration = Duration::from_secs(600);
/// For how long the stream keeps messages, where it is made here.
const KEPT: Duration = Duration::from_secs(7 * 86400);

/// A NATS server, or several of one cluster.
#[derive(Debug)]
pub struct NatsSink {
    settings: NatsSettings,
}

impl NatsSink {
    /// The one that is configured so.
    pub fn new(settings: NatsSettings) -> Self {
        Self { settings }
    }

    async fn options(&self) -> Result<ConnectOptions, Problem> {
        let settings = &self.settings;
        let mut options = ConnectOptions::new()
            .name("kvmlet")
            .ping_interval(PING)
            .ignore_discovered_servers()
            // The runner begins anew itself.
            .max_reconnects(1);
        if let Some(tls) = &settings.tls {
            options = options.add_root_certificates(tls.ca_file.clone());
            if let Some((cert, key)) = &tls.own {
                options = options.add_client_certificate(cert.clone(), key.clone());
            }
        }
        match &settings.login {
            NatsLogin::None => Ok(options),
            NatsLogin::Credentials(path) => options
                .credentials(text(&read(path).await?, "the file of credentials")?)
                .map_err(|error| Problem::from_error(&path.display().to_string(), &error)),
            NatsLogin::User {
                name,
                password_file,
            } => {
                let password = read(password_file).await?;
                let password = text(&password, "the password")?.trim_end_matches('\n');
                Ok(options.user_and_password(name.clone(), password.to_owned()))
            }
        }
    }

    async fn make_stream(&self, context: &Context) -> Result<(), Problem> {
        let prefix = &self.settings.subject_prefix;
        // Heartbeats are not stored.
        let subjects = ["vm", "image", "operation", "snapshot"]
            .map(|thing| format!("{prefix}.*.{thing}.>"))
            .to_vec();
        let stream = Stream {
            name: self.settings.stream.clone(),
            subjects,
            storage: StorageType::File,
            duplicate_window: DUPLICATES,
            max_age: KEPT,
            ..Stream::default()
        };
        context
            .get_or_create_stream(stream)
            .await
            .map(drop)
            .map_err(|error| Problem::from_error("the stream", &error))
    }
}

/// A secret as text; the problem does not quote it.
fn text<'a>(secret: &'a [u8], what: &str) -> Result<&'a str, Problem> {
    str::from_utf8(secret).map_err(|_| Problem::new(format!("{what} is no text")))
}

#[async_trait]
impl Sink for NatsSink {
    fn endpoints(&self) -> &[String] {
        &self.settings.servers
    }

    async fn connect(
        &self,
        endpoint: &str,
        hello: Hello,
    ) -> Result<(Box<dyn Link>, Wish), Problem> {
        let (tell, lost) = watch::channel(false);
        let options = self.options().await?.event_callback(move |event| {
            if matches!(event, Event::Disconnected | Event::Closed) {
                tell.send_replace(true);
            }
            async {}
        });
        let client = options
            .connect(endpoint)
            .await
            .map_err(|error| Problem::from_error("can't connect", &error))?;
        let mut context = async_nats::jetstream::new(client.clone());
        context.set_timeout(self.settings.pace.ack_timeout);
        if self.settings.create_stream {
            self.make_stream(&context).await?;
        }
        let link = NatsLink {
            writer: Writer {
                prefix: self.settings.subject_prefix.clone(),
                node: hello.node_id,
                encoding: self.settings.encoding,
            },
            stream: self.settings.stream.clone(),
            client,
            context,
            lost,
            pending: FuturesOrdered::new(),
            stored: VecDeque::new(),
            in_snapshot: false,
        };
        // A bus does not know what it has of whom.
        Ok((Box::new(link), Wish::GoOn))
    }
}

/// Storing one message; what it comes to if that works.
type Storing = BoxFuture<'static, Result<ResumePoint, Problem>>;

/// A connection.
struct NatsLink {
    writer: Writer,
    stream: String,
    client: Client,
    context: Context,
    /// True once the connection was lost.
    lost: watch::Receiver<bool>,
    pending: FuturesOrdered<Storing>,
    /// Stored, and not yet told.
    stored: VecDeque<ResumePoint>,
    in_snapshot: bool,
}

impl NatsLink {
    /// Waits until at most so many messages are on their way.
    async fn await_room(&mut self, most: usize) -> Result<(), Problem> {
        while self.pending.len() > most {
            let point = self.next_stored().await?;
            self.stored.push_back(point);
        }
        Ok(())
    }

    /// Waits until the oldest message on its way is stored; for ever if there is
    /// none.
    async fn next_stored(&mut self) -> Result<ResumePoint, Problem> {
        let lost = self.lost.wait_for(|lost| *lost);
        if self.pending.is_empty() {
            drop(lost.await);
            return Err(Problem::new("the connection was lost"));
        }
        tokio::select! {
            stored = self.pending.next() => match stored {
                Some(stored) => stored,
                None => Err(Problem::new("nothing was on its way")),
            },
            _ = lost => Err(Problem::new("the connection was lost")),
        }
    }

    async fn publish(&mut self, message: Message, point: ResumePoint) -> Result<(), Problem> {
        let subject = message.subject.clone();
        let sent = self
            .context
            .send_publish(subject.clone(), self.outgoing(&message, Size::Whole))
            .await;
        let sent = match sent {
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                tracing::warn!(
                    subject,
                    "an event is too large for the bus; only that it happened is told"
                );
                let cut = self.outgoing(&message, Size::Empty);
                self.context.send_publish(subject, cut).await
            }
            sent => sent,
        };
        let acknowledged = sent.map_err(|error| Problem::from_error("can't publish", &error))?;
        self.pending.push_back(Box::pin(async move {
            match acknowledged.await {
                Ok(_) => Ok(point),
                Err(error) => Err(Problem::from_error("was not stored", &error)),
            }
        }));
        Ok(())
    }

    fn outgoing(&self, message: &Message, size: Size) -> PublishMessage {
        let mut headers = header_map(message);
        let data = match size {
            Size::Whole => message.data.clone(),
            Size::Empty => {
                headers.insert("ce-kvmletcut", "true");
                Vec::new()
            }
        };
        PublishMessage::build()
            .headers(headers)
            .message_id(&message.id)
            .expected_stream(&self.stream)
            .payload(data.into())
    }
}

/// How much of an event is sent.
#[derive(Clone, Copy)]
enum Size {
    Whole,
    /// The attributes alone.
    Empty,
}

fn header_map(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        headers.insert(*name, value.as_str());
    }
    headers
}

#[async_trait]
impl Link for NatsLink {
    async fn send(&mut self, event: WatchEventsResponse) -> Result<(), Problem> {
        let mark = match &event.event {
            Some(Told::Snapshot(mark)) => Some(mark.end),
            _ => None,
        };
        let member = self.in_snapshot && mark.is_none();
        self.await_room(if member { MEMBERS } else { 0 }).await?;
        let message = self.writer.message(&event, member)?;
        if let Some(end) = mark {
            self.in_snapshot = !end;
        }
        let Some(message) = message else {
            return Ok(());
        };
        // Of a snapshot, only its end says where the reader is then.
        let revision = if self.in_snapshot { 0 } else { event.revision };
        let point = ResumePoint {
            epoch: event.epoch,
            revision,
        };
        self.publish(message, point).await
    }

    async fn heartbeat(&mut self, node: Node, head: ResumePoint) -> Result<(), Problem> {
        let time = prost_types::Timestamp::from(SystemTime::now());
        let message = self.writer.heartbeat(&node, &head, time)?;
        let headers = header_map(&message);
        self.client
            .publish_with_headers(message.subject, headers, message.data.into())
            .await
            .map_err(|error| Problem::from_error("can't publish", &error))
    }

    async fn acknowledged(&mut self) -> Result<ResumePoint, Problem> {
        match self.stored.pop_front() {
            Some(point) => Ok(point),
            None => self.next_stored().await,
        }
    }
}
