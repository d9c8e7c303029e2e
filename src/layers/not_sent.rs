//! The mark of a request that certainly never left: whoever finds it among the sources of a status
//! may send the request again, whatever it does.

use std::{error::Error, fmt, sync::Arc};

use tonic::Status;

use super::BoxError;

/// The request certainly never left: the source of statuses that say so.
#[derive(Clone, Debug)]
pub struct NotSent {
    message: Arc<str>,
    cause: Option<Arc<BoxError>>,
}

impl NotSent {
    /// UNAVAILABLE, with this mark as its source.
    #[must_use]
    pub fn status(message: Arc<str>, cause: Option<Arc<BoxError>>) -> Status {
        let mut status = Status::unavailable(message.to_string());
        status.set_source(Arc::new(Self { message, cause }));
        status
    }

    /// Whether an error, or what caused it, bears the mark.
    #[must_use]
    pub fn is_in(error: &(dyn Error + 'static)) -> bool {
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<Self>() {
                return true;
            }
            next = error.source();
        }
        false
    }
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for NotSent {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| &***cause as &(dyn Error + 'static))
    }
}
