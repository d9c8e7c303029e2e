//! What a caller says of a request: that being carried out twice is as good as once.
//!
//! Whoever sends requests again asks for it. Nothing here knows what a request does.

use http::request::Parts;

/// Whether a request does no harm when it is carried out twice: it only reads, or it carries an id
/// by which the other side knows it again. Put it into the extensions of a request, where it goes
/// before what a layer was told of the path.
///
/// ```
/// use quorate::layers::Repeatable;
///
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(Repeatable(true));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeatable(pub bool);

/// Says by the path of a call, as `/quorate.kv.v1.KvService/Range`, whether it is repeatable.
pub(super) type ByPath = dyn Fn(&str) -> bool + Send + Sync;

/// Whether a request is repeatable: as it says itself, else as its path says, else not.
pub(super) fn is_repeatable(parts: &Parts, by_path: Option<&ByPath>) -> bool {
    match parts.extensions.get() {
        Some(Repeatable(said)) => *said,
        None => by_path.is_some_and(|by_path| by_path(parts.uri.path())),
    }
}
