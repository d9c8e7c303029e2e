//! What the clients of a soak share: the stop, and what happened in each minute.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{client, types::Duration};

/// How long a client waits after an error, so that a refusal does not become a storm.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// What the report is divided into.
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// The kinds of operations, in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Put,
    Get,
    LockPair,
    Append,
    WatchedChange,
    SubscribedEvent,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Put => "puts",
            Self::Get => "gets",
            Self::LockPair => "lockPairs",
            Self::Append => "appends",
            Self::WatchedChange => "watchedChanges",
            Self::SubscribedEvent => "subscribedEvents",
        }
    }
}

/// One minute.
#[derive(Clone, Debug)]
pub(super) struct Minute {
    /// Microseconds of the calls; what streams deliver has none.
    pub(super) latencies: Histogram<u64>,
    pub(super) operations: BTreeMap<Kind, u64>,
    /// By gRPC code and reason.
    pub(super) errors: BTreeMap<String, u64>,
    /// The longest time between two calls that were answered.
    pub(super) longest_pause: Duration,
    pub(super) kills: u64,
    /// Kilobytes of every node at each look.
    pub(super) resident: Vec<u64>,
}

impl Minute {
    fn new() -> Self {
        Self {
            latencies: Histogram::new(3).expect("three digits are allowed"),
            operations: BTreeMap::new(),
            errors: BTreeMap::new(),
            longest_pause: Duration::ZERO,
            kills: 0,
            resident: Vec::new(),
        }
    }
}

/// What happened. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    started: Instant,
    stop: CancellationToken,
    minutes: Arc<Mutex<Noted>>,
}

#[derive(Debug, Default)]
struct Noted {
    minutes: Vec<Minute>,
    answered: Duration,
}

impl Tally {
    pub(super) fn new() -> Self {
        let minutes = Arc::new(Mutex::new(Noted::default()));
        Self { started: Instant::now(), stop: CancellationToken::new(), minutes }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Carries out one call and takes note of its outcome; after an error it pauses.
    pub(super) async fn call<T>(
        &self,
        kind: Kind,
        call: impl Future<Output = Result<T, client::Error>>,
    ) -> Result<T, client::Error> {
        let began = Instant::now();
        let outcome = call.await;
        match &outcome {
            Ok(_) => self.answered(kind, began.elapsed()),
            Err(error) => self.fail(error).await,
        }
        outcome
    }

    fn answered(&self, kind: Kind, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let now = self.elapsed();
        self.note(|minute, answered| {
            minute.latencies.record(micros.max(1)).expect("the histogram grows");
            *minute.operations.entry(kind).or_default() += 1;
            minute.longest_pause = minute.longest_pause.max(now.saturating_sub(*answered));
            *answered = now.max(*answered);
        });
    }

    /// Takes note of a failure, and pauses.
    pub(super) async fn fail(&self, error: &client::Error) {
        self.failed(error);
        sleep_until(Instant::now() + PAUSE_AFTER_ERROR).await;
    }

    /// Takes note of what a stream delivered.
    pub(super) fn delivered(&self, kind: Kind, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.note(|minute, _| *minute.operations.entry(kind).or_default() += count);
    }

    pub(super) fn failed(&self, error: &client::Error) {
        let class = match error.reason() {
            "" => format!("{:?}", error.code()),
            reason => format!("{:?} {reason}", error.code()),
        };
        self.note(|minute, _| *minute.errors.entry(class).or_default() += 1);
    }

    pub(super) fn killed(&self) {
        self.note(|minute, _| minute.kills += 1);
    }

    pub(super) fn resident(&self, kilobytes: impl IntoIterator<Item = u64>) {
        self.note(|minute, _| minute.resident.extend(kilobytes));
    }

    pub(super) fn minutes(&self) -> Vec<Minute> {
        self.minutes.lock().unwrap_or_else(PoisonError::into_inner).minutes.clone()
    }

    fn note(&self, note: impl FnOnce(&mut Minute, &mut Duration)) {
        let number = self.elapsed().as_secs() / MINUTE.as_secs();
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let mut noted = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        let Noted { minutes, answered } = &mut *noted;
        while minutes.len() <= number {
            minutes.push(Minute::new());
        }
        note(&mut minutes[number], answered);
    }
}
