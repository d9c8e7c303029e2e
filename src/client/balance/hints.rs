//! What a caller may tell the balancer of one call: put into the extensions of a
//! [`tonic::Request`]. And what the balancer tells the caller of the answer.

use std::sync::Arc;

use http::Extensions;

/// The key by which the consistent-hash policies choose: calls with the same key go to the same
/// endpoint while that can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKey(pub u64);

impl HashKey {
    /// The key of some bytes, such as a user's name: their XXH3 hash.
    #[must_use]
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(bytes.as_ref()))
    }
}

/// Whether this call waits until an endpoint can be called, however long that takes; bound it by a
/// deadline. Otherwise it fails as soon as all endpoints have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitForReady(pub bool);

/// The address to choose if it can be called, whatever the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefer(pub Arc<str>);

/// Addresses to choose only where there is nothing else: those that an earlier attempt failed at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Avoid(pub Vec<Arc<str>>);

/// Which endpoint gave an answer; in the extensions of the [`tonic::Response`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedBy {
    /// The endpoint's id.
    pub id: Arc<str>,
    /// Its address.
    pub address: Arc<str>,
}

/// The hints of one call, borrowed from wherever they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hints<'a> {
    pub(crate) key: Option<u64>,
    /// Absent is the balancer's default.
    pub(crate) wait_for_ready: Option<bool>,
    pub(crate) prefer: Option<&'a str>,
    pub(crate) avoid: &'a [Arc<str>],
}

impl<'a> Hints<'a> {
    pub(super) fn of(extensions: &'a Extensions) -> Self {
        Self {
            key: extensions.get::<HashKey>().map(|key| key.0),
            wait_for_ready: extensions.get::<WaitForReady>().map(|waits| waits.0),
            prefer: extensions.get::<Prefer>().map(|Prefer(address)| &**address),
            avoid: extensions.get::<Avoid>().map(|avoid| &*avoid.0).unwrap_or_default(),
        }
    }
}
