//! Why `up` started nothing or gave up: one line that names what stands in the way, and the way out.

/// Why `up` started nothing or gave up. Its text is one line.
#[derive(Debug, thiserror::Error)]
#[error("{what}; {way_out}")]
pub struct Error {
    what: String,
    way_out: String,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { what: what.into(), way_out: way_out.into() }
    }
}
