//! Why a command failed: the line for the person, what to do about it, and the exit code.

use std::{io, path::PathBuf};

use tonic::Code;

use crate::{client, net::Fault};

/// The exit code of a lock that was lost while its command ran: 64 + ABORTED.
pub(crate) const LOCK_LOST: u8 = refused(Code::Aborted);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call was refused or got no answer.
    #[error(transparent)]
    Call(#[from] client::Error),
    /// A node in plaintext was dialled by TLS, because there was a CA that nobody named.
    #[error("{error}")]
    FoundCa {
        /// What the call ended with.
        error: client::Error,
        /// Where the CA was found.
        ca: PathBuf,
    },
    /// The command line does not make sense.
    #[error("{0}")]
    Usage(String),
    /// Something on this machine failed.
    #[error("{what}")]
    Failed {
        /// What was wrong.
        what: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
    },
    /// A key that was to be printed is absent.
    #[error("key {0:?} not found")]
    KeyNotFound(String),
    /// A lock was lost while its command ran.
    #[error("{0}")]
    LockLost(String),
    /// Nobody reads standard output any more.
    #[error("standard output was closed")]
    OutputClosed,
}

impl Error {
    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), hint: None }
    }

    pub(crate) fn with_hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), hint: Some(hint.into()) }
    }

    /// A failed write to standard output.
    pub(crate) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        Self::failed(format!("cannot write to standard output: {error}"))
    }

    /// The same error, from a command that trusted a CA that it found.
    pub(crate) fn of_found_ca(self, ca: PathBuf) -> Self {
        match self {
            Self::Call(error) if error.tls_fault() == Some(Fault::NotTls) => {
                Self::FoundCa { error, ca }
            }
            other => other,
        }
    }

    /// The exit code: 1 for a failure here, 2 for a wrong command line, 64 + the gRPC code for a
    /// refused call, 0 where the reader of the output left.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Call(error) | Self::FoundCa { error, .. } => refused(error.code()),
            Self::Usage(_) => 2,
            Self::Failed { .. } => 1,
            Self::KeyNotFound(_) => refused(Code::NotFound),
            Self::LockLost(_) => LOCK_LOST,
            Self::OutputClosed => 0,
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Call(error) => hint_of(error),
            Self::FoundCa { ca, .. } => Some(format!(
                "remove {}, which was found beside the endpoints, or give the nodes certificates",
                ca.display()
            )),
            Self::Failed { hint, .. } => hint.clone(),
            _ => None,
        }
    }

    /// Tells the person, on standard error.
    pub fn report(&self) {
        if matches!(self, Self::OutputClosed) {
            return;
        }
        eprintln!("error: {self}");
        if let Some(hint) = self.hint() {
            eprintln!("hint: {hint}");
        }
    }
}

/// The exit code of a refused call.
const fn refused(code: Code) -> u8 {
    64 + code as u8
}

/// What to do about a connection that TLS, or the lack of it, kept from being made.
fn tls_hint(fault: Fault) -> &'static str {
    match fault {
        Fault::TlsDemanded => {
            "name the CA to trust with --tls-ca FILE; `quorate up --tls` leaves it in \
             ./quorate-data/ca.pem"
        }
        Fault::NotTls => "leave out --tls-ca (QUORATE_TLS_CA), or give the nodes certificates",
        Fault::UnknownCa => "name the CA that signed the node's certificate with --tls-ca FILE",
        Fault::Expired => "renew the node's certificate; the node reads the new file by itself",
        Fault::NotYetValid => "see whether the clocks here and there are right",
        Fault::WrongName => {
            "reach the node by a name or address of its certificate, or have one made for this one"
        }
        Fault::CertificateDemanded => {
            "show one with --tls-client-cert FILE --tls-client-key FILE; the node's \
             --tls-client-ca must have signed it"
        }
        Fault::Distrusted => {
            "show a certificate for clients that the node's --tls-client-ca signed"
        }
        Fault::OwnExpired => "renew the certificate of --tls-client-cert",
        _ => "see the node's log for its side of it",
    }
}

fn hint_of(error: &client::Error) -> Option<String> {
    if let Some(fault) = error.tls_fault() {
        return Some(tls_hint(fault).to_owned());
    }
    let hint = match (error.reason(), error.code()) {
        ("", Code::Unavailable) => {
            "start a cluster with `quorate up`, or name the nodes with --endpoints"
        }
        ("NO_QUORUM" | "NOT_LEADER", _) => {
            "a majority of the nodes must be up: see `quorate status`"
        }
        ("LOCK_HELD", _) => "wait longer with --wait, or see `quorate lock describe NAME`",
        ("WRONG_FENCING_TOKEN", _) => {
            "the lock expired, was released or went to another: see `quorate lock describe NAME`"
        }
        ("WRONG_EXPECTED_VERSION", _) => {
            "read what was appended since, then append with the actual version in --expect"
        }
        ("COMPACTED", _) => "that history is gone: name a later revision, or none for the newest",
        ("STREAM_NOT_FOUND", _) => "see `quorate events streams` for those that exist",
        ("INSTANCE_NOT_FOUND", _) => "see `quorate service resolve NAME` for those that exist",
        ("OVERLOADED", _) => "try again with fewer calls at once",
        ("DRAINING", _) => "the node is stopping: name the other nodes with --endpoints",
        _ if error.outcome_unknown() => {
            "look whether it took effect before trying again, or give it more --timeout"
        }
        (_, Code::DeadlineExceeded) => "see `quorate status`, or give it more --timeout",
        (_, Code::Unimplemented) => "the node is older or newer than this program",
        _ => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: Code) -> Error {
        Error::Call(tonic::Status::new(code, "why").into())
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        assert_eq!(refusal(Code::NotFound).exit_code(), 69);
        assert_eq!(refusal(Code::FailedPrecondition).exit_code(), 73);
        assert_eq!(refusal(Code::Unavailable).exit_code(), 78);
        assert_eq!(Error::KeyNotFound("x".to_owned()).exit_code(), 69);
        assert_eq!(Error::LockLost(String::new()).exit_code(), 74);
        assert_eq!(Error::Usage(String::new()).exit_code(), 2);
        assert_eq!(Error::failed("x").exit_code(), 1);
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Error::output(&closed).exit_code(), 0);
    }

    #[test]
    fn an_absent_key_is_named_as_a_person_typed_it() {
        assert_eq!(Error::KeyNotFound("x".to_owned()).to_string(), "key \"x\" not found");
    }
}
