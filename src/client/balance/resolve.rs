//! Where endpoints come from: resolvers tell whole lists, and the balancer is fed the difference as
//! [`tower::discover`] knows it.
//!
//! A resolver that fails says so and is asked again; what it told last stays in force meanwhile.

mod dns;
mod registry;
mod subset;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pub use dns::Dns;
pub use registry::Registry;
pub use subset::Subset;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tower::discover::Change;

use crate::client::{Error, balance::Endpoint};

/// How many changes wait for the balancer to take them.
const CHANGES_WAITING_MAX: usize = 64;

/// Tells the endpoints of one service.
pub trait Resolver: fmt::Debug + Send + 'static {
    /// All endpoints: at first at once, and then each time they may have changed. Stays pending
    /// where nothing will change any more.
    ///
    /// An error leaves what was told before in force. The resolver is asked again, so it paces
    /// itself.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Endpoint>, Error>> + Send;
}

/// A list that never changes.
#[derive(Clone, Debug)]
pub struct Static(Option<Vec<Endpoint>>);

impl Static {
    /// These endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        Self(Some(endpoints.into_iter().collect()))
    }

    /// The endpoints at these addresses.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where one is not `host:port`.
    pub fn parse<I>(addresses: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        addresses.into_iter().map(Endpoint::new).collect::<Result<Vec<_>, _>>().map(Self::new)
    }
}

impl Resolver for Static {
    async fn next(&mut self) -> Result<Vec<Endpoint>, Error> {
        match self.0.take() {
            Some(endpoints) => Ok(endpoints),
            None => std::future::pending().await,
        }
    }
}

/// The endpoints that a resolver tells, as a stream of what changes: by the blanket implementation
/// a [`tower::discover::Discover`] whose keys are the endpoints' ids.
///
/// The resolver runs in a task of its own until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Discovered {
    changes: mpsc::Receiver<Result<Change<Arc<str>, Endpoint>, Error>>,
}

impl Discovered {
    /// Starts to ask `resolver`. Must be called inside a tokio runtime.
    pub fn new<R: Resolver>(resolver: R) -> Self {
        let (told, changes) = mpsc::channel(CHANGES_WAITING_MAX);
        tokio::spawn(async move {
            tokio::select! {
                () = tell(resolver, &told) => {}
                () = told.closed() => {}
            }
        });
        Self { changes }
    }
}

async fn tell<R: Resolver>(
    mut resolver: R,
    told: &mpsc::Sender<Result<Change<Arc<str>, Endpoint>, Error>>,
) {
    let mut known: BTreeMap<Arc<str>, Endpoint> = BTreeMap::new();
    loop {
        let changes = match resolver.next().await {
            Ok(endpoints) => {
                let changes = difference(&mut known, endpoints);
                // Nothing to tell, and still an answer: who waits for a first endpoint is to know.
                if known.is_empty() && changes.is_empty() {
                    let nobody = Error::unresolved("no endpoint is known".to_owned());
                    if told.send(Err(nobody)).await.is_err() {
                        return;
                    }
                }
                changes
            }
            Err(error) => {
                if told.send(Err(error)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        for change in changes {
            if told.send(Ok(change)).await.is_err() {
                return;
            }
        }
    }
}

/// What has to be told of a list, given what was told before. Of two endpoints with one id the
/// later counts.
fn difference(
    known: &mut BTreeMap<Arc<str>, Endpoint>,
    endpoints: Vec<Endpoint>,
) -> Vec<Change<Arc<str>, Endpoint>> {
    let mut order: Vec<Arc<str>> = Vec::with_capacity(endpoints.len());
    let mut now: BTreeMap<Arc<str>, Endpoint> = BTreeMap::new();
    for endpoint in endpoints {
        let id = Arc::clone(endpoint.shared_id());
        if now.insert(Arc::clone(&id), endpoint).is_none() {
            order.push(id);
        }
    }
    let mut changes = Vec::new();
    // First what comes, so that there is never nothing while one list takes another's place.
    for id in order {
        let endpoint = &now[&id];
        if known.get(&id) != Some(endpoint) {
            changes.push(Change::Insert(id, endpoint.clone()));
        }
    }
    changes.extend(known.keys().filter(|id| !now.contains_key(*id)).cloned().map(Change::Remove));
    *known = now;
    changes
}

impl Stream for Discovered {
    type Item = Result<Change<Arc<str>, Endpoint>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.changes.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Endpoint {
        Endpoint::new(address).expect("it is well formed")
    }

    fn words(changes: Vec<Change<Arc<str>, Endpoint>>) -> Vec<String> {
        let word = |change: Change<Arc<str>, Endpoint>| match change {
            Change::Insert(id, endpoint) => format!("+{id}@{}", endpoint.address()),
            Change::Remove(id) => format!("-{id}"),
        };
        changes.into_iter().map(word).collect()
    }

    #[test]
    fn of_a_list_only_the_difference_is_told_and_what_comes_goes_first() {
        let mut known = BTreeMap::new();
        let first = vec![endpoint("b:1"), endpoint("a:1")];
        assert_eq!(words(difference(&mut known, first.clone())), ["+b:1@b:1", "+a:1@a:1"]);
        assert_eq!(words(difference(&mut known, first)), Vec::<String>::new());
        let second = vec![endpoint("a:1").with_weight(3), endpoint("c:1")];
        assert_eq!(words(difference(&mut known, second)), ["+a:1@a:1", "+c:1@c:1", "-b:1"]);
    }

    #[test]
    fn of_two_with_one_id_the_later_counts() {
        let twice = vec![endpoint("a:1").with_id("x"), endpoint("b:1").with_id("x")];
        assert_eq!(words(difference(&mut BTreeMap::new(), twice)), ["+x@b:1"]);
    }
}
