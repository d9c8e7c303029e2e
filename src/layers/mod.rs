//! Floor 2: the resilience of gRPC calls as tower layers, for any tonic client or server.
//!
//! Each layer gives one machine of [`crate::resilience`] the time and the ends of calls, and carries
//! out what it decides. A call's end is read where gRPC tells it: in headers or trailers. What a layer
//! refuses is an answer with a status and its details, so that the layers around it read it like any
//! other. Nothing here decides by itself.

pub mod circuit_breaker;
mod clock;
pub mod concurrency_limit;
pub mod deadline;
mod failure;
pub mod fallback;
mod fed;
pub mod hedge;
mod keyed;
pub mod load_shed;
mod not_sent;
mod outcome;
pub mod rate_limit;
mod refusal;
mod repeatable;
mod replay;
pub mod retry;
pub mod scope;
mod tried;

use std::{future::Future, pin::Pin};

pub use circuit_breaker::{CircuitBreaker, CircuitBreakerHandle, CircuitBreakerLayer};
pub use clock::Clock;
pub use concurrency_limit::{
    Bulkhead, BulkheadHandle, BulkheadLayer, ConcurrencyLimit, ConcurrencyLimitHandle,
    ConcurrencyLimitLayer,
};
pub use deadline::{Deadline, DeadlineLayer, Due, ServerDeadline, ServerDeadlineLayer, timeout_in};
pub use fallback::{Fallback, FallbackLayer};
pub use hedge::{Hedge, HedgeLayer};
pub use load_shed::{LoadShed, LoadShedHandle, LoadShedLayer};
pub use not_sent::NotSent;
pub use outcome::{Outcome, code_in, is_failure, observe};
pub use rate_limit::{RateLimit, RateLimitLayer};
pub use refusal::REFUSAL_DOMAIN;
pub use repeatable::Repeatable;
pub use retry::{Retry, RetryLayer};
pub use scope::Scope;
pub use tried::Tried;

/// An error of anything.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A future of anything.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
