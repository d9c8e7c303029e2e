//! Floor 2: what a node tells of itself: metrics as typed functions, and where a request's time went.
//!
//! Every node has a [`Metrics`] of its own; there is no global registry, so that several nodes live
//! in one process. Whoever measures calls a function with units in its type, never a metric by name.

mod connections;
mod histogram;
mod methods;
mod metrics;
mod overload;
mod process;
mod readers;
mod snapshots;
mod stages;
mod trace_parent;

pub use methods::MethodMetrics;
pub use metrics::{CONTENT_TYPE, Metrics, Queue};
pub use overload::OverloadReading;
pub use readers::{Reader, ReaderKind};
pub use stages::{ReadStage, Stage, Subject, Trace, WalBatch, note, traced};
pub use trace_parent::{MalformedTraceParent, TRACEPARENT, TraceParent};
