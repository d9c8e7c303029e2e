//! Where the time of a request goes: the stages of a write and of a linearizable read.
//!
//! A request's stages are noted in its own task while it is served, without a lock or an allocation;
//! whoever serves it opens a trace with [`traced`] and gets it back at the end. Nothing here decides.

use core::cell::RefCell;
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::MetricType,
};
use tokio::time::Instant as Moment;

use crate::{
    observe::histogram::{Histogram, TIMES},
    types::{Duration, Instant},
};

/// How many of the log's latest batches are remembered.
const WAL_BATCHES_MAX: usize = 512;

/// A stage of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the call's arrival at the node until it is proposed, or passed on to the leader.
    Queue,
    /// From the proposal until the entry stands in the batch that is written next.
    Append,
    /// The write and fsync of that batch.
    Fsync,
    /// From the proposal until a majority has it, as the leader sees it.
    Replicate,
    /// From the commit until this node has applied it.
    Apply,
    /// From then until the answer left the server.
    Answer,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Queue, Self::Append, Self::Fsync, Self::Replicate, Self::Apply, Self::Answer];

    const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Append => "append",
            Self::Fsync => "fsync",
            Self::Replicate => "replicate",
            Self::Apply => "apply",
            Self::Answer => "answer",
        }
    }
}

/// A stage of a linearizable read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStage {
    /// As with a write.
    Queue,
    /// Until the leader gave an index that a majority confirmed.
    Confirm,
    /// Until this node has applied that index, where it had not.
    Apply,
}

impl ReadStage {
    const ALL: [Self; 3] = [Self::Queue, Self::Confirm, Self::Apply];

    const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Confirm => "confirm",
            Self::Apply => "apply",
        }
    }
}

/// One histogram for each stage.
#[derive(Clone, Debug)]
pub(crate) struct Staged<const N: usize> {
    names: [&'static str; N],
    histograms: [Histogram; N],
}

impl Staged<6> {
    pub(crate) fn writes() -> Self {
        Self::new(Stage::ALL.map(Stage::name))
    }

    pub(crate) const fn of(&self, stage: Stage) -> &Histogram {
        &self.histograms[stage as usize]
    }
}

impl Staged<3> {
    pub(crate) fn reads() -> Self {
        Self::new(ReadStage::ALL.map(ReadStage::name))
    }

    pub(crate) const fn of_read(&self, stage: ReadStage) -> &Histogram {
        &self.histograms[stage as usize]
    }
}

impl<const N: usize> Staged<N> {
    fn new(names: [&'static str; N]) -> Self {
        Self { names, histograms: core::array::from_fn(|_| Histogram::new(&TIMES)) }
    }
}

impl<const N: usize> EncodeMetric for Staged<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> core::fmt::Result {
        for (name, histogram) in self.names.iter().zip(&self.histograms) {
            histogram.encode_row(&mut encoder, &[("stage", *name)])?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// What one write and fsync of the log took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalBatch {
    /// When its first part was handed to the writer.
    pub handed: Instant,
    /// When its last part was.
    pub handed_last: Instant,
    /// From the first part's handing over until the batch was complete.
    pub append: Duration,
    /// The write and fsync.
    pub fsync: Duration,
    /// How many entries it held.
    pub entries: usize,
    /// How many bytes were written.
    pub bytes: u64,
}

/// The latest batches, for whoever asks what a slow write waited for.
#[derive(Debug, Default)]
pub(crate) struct WalBatches(Mutex<VecDeque<WalBatch>>);

impl WalBatches {
    pub(crate) fn push(&self, batch: WalBatch) {
        let mut batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.len() == WAL_BATCHES_MAX {
            batches.pop_front();
        }
        batches.push_back(batch);
    }

    /// The batch that what was handed over at this time is in.
    pub(crate) fn at(&self, handed: Instant) -> Option<WalBatch> {
        let batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |batch: &&WalBatch| batch.handed <= handed && handed <= batch.handed_last;
        batches.iter().rev().find(holds).copied()
    }
}

/// The most bytes of a key or name that a trace holds.
const SUBJECT_BYTES_MAX: usize = 32;

/// The beginning of the key or name that a request is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    bytes: [u8; SUBJECT_BYTES_MAX],
    length: usize,
}

impl Subject {
    /// The beginning of `name`.
    #[must_use]
    pub fn new(name: &[u8]) -> Self {
        let mut bytes = [0; SUBJECT_BYTES_MAX];
        let kept = name.len().min(SUBJECT_BYTES_MAX);
        bytes[..kept].copy_from_slice(&name[..kept]);
        Self { bytes, length: name.len() }
    }

    /// For a log line: what is not printable is escaped, what was cut is told by `...`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let kept = &self.bytes[..self.length.min(SUBJECT_BYTES_MAX)];
        let cut = if self.length > SUBJECT_BYTES_MAX { "..." } else { "" };
        format!("{}{cut}", kept.escape_ascii())
    }

    /// Whether nothing was noted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// Where the time of one request went, as far as this node knows. Spans that are not known are
/// `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// What the request is about.
    pub subject: Subject,
    /// When the node took the call; `None` where the request did not need the node's log.
    pub taken: Option<Moment>,
    /// From then until it was proposed or passed on.
    pub queue: Option<Duration>,
    /// The leader that it was passed on to; 0 is this node.
    pub passed_on_to: u64,
    /// When it was proposed or passed on, by the node's clock.
    pub sent: Option<Instant>,
    /// From then until it was committed, as this node learned it.
    pub replicate: Option<Duration>,
    /// From the commit, or from the confirmed read index, until it was applied here.
    pub apply: Option<Duration>,
    /// From proposing until the leader's read index was confirmed; only for reads.
    pub confirm: Option<Duration>,
    /// From taking until there was something to answer.
    pub settled: Option<Duration>,
    /// Whether it waited for others by its nature, as in a lock's line.
    pub waited: bool,
}

tokio::task_local! {
    static TRACE: RefCell<Trace>;
}

/// Serves a request with a trace of its own, and gives the trace back with the answer.
pub async fn traced<T>(serve: impl Future<Output = T>) -> (T, Trace) {
    let serve = async {
        let answer = serve.await;
        (answer, TRACE.with(|trace| *trace.borrow()))
    };
    TRACE.scope(RefCell::default(), serve).await
}

/// Notes something in the trace of the request that this task serves, where it serves one.
pub fn note(change: impl FnOnce(&mut Trace)) {
    // Outside of a request nobody wants to know.
    let _ = TRACE.try_with(|trace| change(&mut trace.borrow_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_finds_what_was_noted_in_it_and_nothing_else() {
        note(|_| panic!("no request is served"));
        let (answer, trace) = traced(async {
            tokio::task::yield_now().await;
            note(|trace| trace.queue = Some(Duration::from_millis(3)));
            note(|trace| trace.subject = Subject::new(b"k\xff"));
            7
        })
        .await;
        assert_eq!((answer, trace.queue), (7, Some(Duration::from_millis(3))));
        assert_eq!(trace.subject.to_text(), "k\\xff");
        assert_eq!(traced(async {}).await.1, Trace::default());
    }

    #[test]
    fn a_long_name_is_cut_and_says_so() {
        assert_eq!(Subject::new(&[b'a'; 40]).to_text(), "a".repeat(32) + "...");
        assert_eq!(Subject::new(&[b'a'; 32]).to_text(), "a".repeat(32));
        assert!(Subject::new(b"").is_empty());
    }

    #[test]
    fn a_batch_is_found_by_when_a_part_of_it_was_handed_over() {
        let batches = WalBatches::default();
        for n in 1..=WAL_BATCHES_MAX as u64 + 1 {
            let at = Instant::from_nanos;
            let (handed, handed_last) = (at(n * 10), at(n * 10 + 5));
            batches.push(WalBatch { handed, handed_last, entries: 3, ..WalBatch::default() });
        }
        let at = |nanos| batches.at(Instant::from_nanos(nanos)).map(|batch| batch.handed);
        assert_eq!(at(30), Some(Instant::from_nanos(30)));
        assert_eq!(at(35), Some(Instant::from_nanos(30)));
        assert_eq!(at(36), None);
        assert_eq!(at(10), None, "only the latest are kept");
    }
}
