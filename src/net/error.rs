//! Why certificates cannot be used: each text names the file and what is wrong with it.

use std::path::PathBuf;

/// Why certificates cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or does not hold what it should.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// PEM that did not come from a file does not hold what it should.
    #[error("the {what}: {why}")]
    Pem {
        /// Which part: CA, certificate or key.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Each part is well formed, but they do not go together.
    #[error("{0}")]
    Unfit(String),
}
