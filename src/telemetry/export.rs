//! Spans on their way to a collector, as OTLP over gRPC.
//!
//! Invariant: nothing waits for the collector. Spans that have ended wait in a
//! bounded queue, which a thread of its own sends from; what does not fit is dropped.
//! Only spans are sent: log lines stay in the log.

use crate::config::TraceSettings;
use opentelemetry::trace::{SpanKind, TracerProvider};
use opentelemetry::{KeyValue, StringValue, Value};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::transport::ClientTlsConfig;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::{Layer, Registry};
use uuid::Uuid;

/// Spans that wait to be sent at most.
const QUEUE: usize = 4096;
/// How long a span waits for others to be sent with.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why spans can't be sent.
pub use opentelemetry_otlp::ExporterBuildError as CollectorError;

/// What sends spans.
pub(super) struct Spans(SdkTracerProvider);

impl Spans {
    /// Sends to the collector from now on. It tries the first connection when there is
    /// something to send. Needs tokio's runtime to be entered.
    ///
    /// # Errors
    /// If the endpoint is none; the configuration refuses such.
    pub(super) fn to(
        endpoint: &str,
        settings: &TraceSettings,
        node: Option<Uuid>,
        version: &'static str,
    ) -> Result<Self, CollectorError> {
        provider(endpoint, settings, resource(node, version)).map(Self)
    }

    /// Takes this program's spans to the collector.
    pub(super) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let ours = FilterFn::new(|meta| meta.is_span() && meta.target().starts_with("kvmlet"));
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("kvmlet"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // Steps are below what the log has.
            .with_filter(ours.with_max_level_hint(LevelFilter::DEBUG))
            .boxed()
    }

    /// Sends what there is, and takes no more. Blocks, for `patience` at most.
    pub(super) fn end(self, patience: Duration) {
        if let Err(error) = self.0.shutdown_with_timeout(patience) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

fn provider(
    endpoint: &str,
    settings: &TraceSettings,
    resource: Resource,
) -> Result<SdkTracerProvider, CollectorError> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(PATIENCE);
    if endpoint.starts_with("https:") {
        exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
    }
    let exporter = Exporter {
        collector: exporter.build()?,
        away: AtomicBool::new(false),
    };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_scheduled_delay(PAUSE)
        .build();
    let sampler = Sampler::TraceIdRatioBased(settings.sample_ratio);
    Ok(SdkTracerProvider::builder()
        .with_span_processor(
            BatchSpanProcessor::builder(exporter)
                .with_batch_config(batches)
                .build(),
        )
        .with_sampler(Sampler::ParentBased(Box::new(sampler)))
        .with_resource(resource)
        .build())
}

/// Who sends.
fn resource(node: Option<Uuid>, version: &'static str) -> Resource {
    let mut attributes = vec![
        KeyValue::new("service.name", "kvmlet"),
        KeyValue::new("service.version", version),
    ];
    if let Some(node) = node {
        attributes.push(KeyValue::new("service.instance.id", node.to_string()));
    }
    if let Ok(name) = nix::unistd::gethostname() {
        let name = name.to_string_lossy().into_owned();
        attributes.push(KeyValue::new("host.name", name));
    }
    Resource::builder_empty()
        .with_attributes(attributes)
        .build()
}

/// The collector, and whether it has taken what came last.
#[derive(Debug)]
struct Exporter {
    collector: opentelemetry_otlp::SpanExporter,
    away: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(name);
        let sent = self.collector.export(batch).await;
        let was_away = self.away.swap(sent.is_err(), Ordering::Relaxed);
        // Once for each time that it is away: there are batches every second.
        match &sent {
            Err(error) if !was_away => {
                tracing::warn!(%error, "the collector of traces does not take spans; they are dropped");
            }
            Ok(()) if was_away => tracing::info!("the collector of traces takes spans again"),
            Ok(()) | Err(_) => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.collector.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.collector.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.collector.set_resource(resource);
    }
}

/// Gives a span the name of what it is of, as those who look at traces expect; in the
/// log, spans of a kind have one name.
fn name(span: &mut SpanData) {
    let attribute = |key: &str| -> Option<StringValue> {
        let found = span.attributes.iter().find(|own| own.key.as_str() == key)?;
        match &found.value {
            Value::String(text) => Some(text.clone()),
            _ => None,
        }
    };
    let (kind, named) = match span.name.as_ref() {
        "call" => (SpanKind::Server, attribute("rpc")),
        "operation" => (SpanKind::Internal, attribute("kind")),
        "step" => (SpanKind::Internal, attribute("step")),
        "undo" => (
            SpanKind::Internal,
            attribute("step").map(|step| format!("undo {step}").into()),
        ),
        _ => return,
    };
    span.span_kind = kind;
    if let Some(named) = named {
        span.name = named.to_string().into();
    }
    // It is the span's own already.
    span.attributes.retain(|own| own.key.as_str() != "trace_id");
}
