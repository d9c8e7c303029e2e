//! Requests as OpenTelemetry spans, in builds with the feature `otel`; nothing in others.
//!
//! A span is made when its request has ended, out of the times that were noted anyway: a request
//! that nobody records costs nothing more. What a collector does not take in time is dropped.

use crate::{
    observe::Metrics,
    server::{Error, ValidConfig, slow::Ended},
};

/// Where spans go. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans {
    #[cfg(feature = "otel")]
    exporter: Option<std::sync::Arc<otel::Exporter>>,
}

impl Spans {
    /// Sends spans to the configured collector; to nobody, where none is configured. It need not be
    /// reachable. To be called in a runtime.
    #[cfg(feature = "otel")]
    pub(crate) fn open(config: &ValidConfig) -> Result<Self, Error> {
        if config.otlp_endpoint.is_empty() {
            return Ok(Self::default());
        }
        let exporter = otel::Exporter::open(&config.otlp_endpoint, config.id)
            .map_err(|why| Error::Start(format!("--otlp-endpoint: {why}")))?;
        Ok(Self { exporter: Some(std::sync::Arc::new(exporter)) })
    }

    /// Sends spans to nobody: the configuration has no collector in this build.
    #[cfg(not(feature = "otel"))]
    #[expect(clippy::unnecessary_wraps, reason = "the build that exports can fail")]
    pub(crate) fn open(config: &ValidConfig) -> Result<Self, Error> {
        assert!(config.otlp_endpoint.is_empty(), "refused with the configuration");
        Ok(Self {})
    }

    /// Makes spans of a request that has ended.
    pub(crate) fn export(&self, metrics: &Metrics, ended: &Ended<'_>) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = &self.exporter {
            exporter.export(metrics, ended);
        }
        #[cfg(not(feature = "otel"))]
        let _ = (metrics, ended);
    }

    /// Sends what waits, within two seconds.
    pub(crate) async fn close(&self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = self.exporter.clone() {
            // The pool is gone only when the runtime is.
            let _ = tokio::task::spawn_blocking(move || exporter.close()).await;
        }
        #[cfg(not(feature = "otel"))]
        core::future::ready(()).await;
    }
}

#[cfg(feature = "otel")]
mod otel {
    use std::time::SystemTime;

    use opentelemetry::{
        Context, KeyValue,
        trace::{
            Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
            TraceId, TraceState, Tracer as _, TracerProvider as _,
        },
    };
    use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
    use opentelemetry_sdk::{
        Resource,
        trace::{SdkTracer, SdkTracerProvider},
    };
    use tonic::Code;

    use crate::{
        observe::{Metrics, TraceParent},
        server::slow::Ended,
        types::{Duration, NodeId},
    };

    /// How long the last spans may take.
    const CLOSE_LIMIT: Duration = Duration::from_secs(2);

    /// The name of the service, unless `OTEL_SERVICE_NAME` says another.
    const SERVICE: &str = "quorate";

    /// Sends spans in batches from a thread of its own.
    #[derive(Debug)]
    pub(super) struct Exporter {
        provider: SdkTracerProvider,
        tracer: SdkTracer,
    }

    impl Exporter {
        pub(super) fn open(endpoint: &str, node: NodeId) -> Result<Self, String> {
            let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
            let exporter = exporter.map_err(|error| error.to_string())?;
            let mut resource = Resource::builder()
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .with_attribute(KeyValue::new("service.instance.id", node.to_string()));
            if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
                resource = resource.with_service_name(SERVICE);
            }
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(resource.build())
                .build();
            let tracer = provider.tracer(SERVICE);
            Ok(Self { provider, tracer })
        }

        pub(super) fn export(&self, metrics: &Metrics, ended: &Ended<'_>) {
            #[expect(clippy::disallowed_methods, reason = "spans carry the wall clock's time")]
            let end = SystemTime::now();
            let start = end - ended.total;
            let parent = ended.parent.map_or_else(Context::new, remote);
            let (service, method) = (ended.method.service(), ended.method.method());
            let mut span = self
                .tracer
                .span_builder(format!("{service}/{method}"))
                .with_kind(SpanKind::Server)
                .with_start_time(start)
                .start_with_context(&self.tracer, &parent);
            if !span.is_recording() {
                return;
            }
            span.set_attribute(KeyValue::new("rpc.system", "grpc"));
            span.set_attribute(KeyValue::new("rpc.service", service.to_owned()));
            span.set_attribute(KeyValue::new("rpc.method", method.to_owned()));
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", ended.code as i64));
            if !ended.trace.subject.is_empty() {
                let about = ended.trace.subject.to_text();
                span.set_attribute(KeyValue::new("quorate.about", about));
            }
            if is_server_error(ended.code) {
                span.set_status(Status::error(ended.code.to_string()));
            }
            let within = Context::new().with_remote_span_context(span.span_context().clone());
            for (name, from, length) in ended.stages(metrics) {
                let from = start + from;
                let mut builder = self.tracer.span_builder(name).with_start_time(from);
                if name == "leader" {
                    let leader = i64::try_from(ended.trace.passed_on_to).unwrap_or(i64::MAX);
                    builder = builder.with_attributes([KeyValue::new("quorate.leader_id", leader)]);
                }
                let mut stage = builder.start_with_context(&self.tracer, &within);
                stage.end_with_timestamp(from + length);
            }
            span.end_with_timestamp(end);
        }

        pub(super) fn close(&self) {
            if let Err(error) = self.provider.shutdown_with_timeout(CLOSE_LIMIT) {
                tracing::warn!(%error, "the last spans were not taken");
            }
        }
    }

    fn remote(parent: TraceParent) -> Context {
        let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from_bytes(parent.trace_id.to_be_bytes()),
            SpanId::from_bytes(parent.parent_id.to_be_bytes()),
            flags,
            true,
            TraceState::default(),
        ))
    }

    /// The codes that OpenTelemetry counts as the server's failure.
    const fn is_server_error(code: Code) -> bool {
        matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        )
    }
}
