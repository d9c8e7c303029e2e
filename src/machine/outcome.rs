//! Refusals: outcomes, not errors. The services floor maps them to statuses in one place.

use std::collections::BTreeMap;

use crate::{
    machine::store::StoreError,
    pb::{
        command::v1::{Done, Outcome, PutBatchDone, Reason, Refusal, outcome},
        discovery::v1::{DeregisterResponse, RegisterResponse, SetInstanceStateResponse},
        event::v1::{
            AppendResponse, DeleteStreamResponse, SetStreamLimitsResponse, TrimStreamResponse,
        },
        kv::v1::{CompactResponse, DeleteRangeResponse, PutResponse, TxnResponse},
        lock::v1::{AcquireResponse, ReleaseResponse},
        session::v1::{CloseSessionResponse, OpenSessionResponse},
    },
};

/// What a command or a read comes to: a response or a refusal, unless the store fails.
pub type Decision<T> = Result<Result<T, Refusal>, StoreError>;

/// A refusal with a sentence for people.
#[must_use]
pub fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), message: message.into(), metadata: BTreeMap::new() }
}

/// The refusal of a malformed request.
pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
    refusal(Reason::InvalidArgument, message)
}

impl Refusal {
    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }
}

macro_rules! outcomes {
    ($($message:ident => $variant:ident,)*) => {
        $(impl From<$message> for Outcome {
            fn from(message: $message) -> Self {
                Self { result: Some(outcome::Result::$variant(message)) }
            }
        })*
    };
}

outcomes! {
    Refusal => Refusal,
    PutResponse => Put,
    DeleteRangeResponse => DeleteRange,
    TxnResponse => Txn,
    CompactResponse => Compact,
    OpenSessionResponse => OpenSession,
    CloseSessionResponse => CloseSession,
    AcquireResponse => Acquire,
    ReleaseResponse => Release,
    RegisterResponse => Register,
    DeregisterResponse => Deregister,
    SetInstanceStateResponse => SetInstanceState,
    AppendResponse => Append,
    Done => Done,
    PutBatchDone => PutBatch,
    SetStreamLimitsResponse => SetStreamLimits,
    TrimStreamResponse => TrimStream,
    DeleteStreamResponse => DeleteStream,
}
