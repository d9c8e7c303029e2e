//! The cursor against a source of plain numbers, with a ring as small as one likes.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::*;
use crate::{machine::Decision, types::Revision};

/// How many numbers a step of history reads.
const STEP: usize = 10;

/// A log of the numbers from 1, of which a ring keeps the last ones.
#[derive(Clone)]
pub(crate) struct Numbers {
    state: Arc<Mutex<State>>,
    head: Arc<watch::Sender<FeedHead>>,
}

struct State {
    last: u64,
    ring: u64,
    compacted: u64,
    installs: u64,
    histories: usize,
    lives: usize,
}

impl Numbers {
    pub(crate) fn new(last: u64, ring: u64) -> Self {
        let state = State { last, ring, compacted: 0, installs: 0, histories: 0, lives: 0 };
        let numbers = Self { state: Arc::new(Mutex::new(state)), head: Arc::default() };
        numbers.append(0);
        numbers
    }

    pub(crate) fn append(&self, count: u64) {
        let mut state = self.lock();
        state.last += count;
        let head = FeedHead {
            revision: Revision::new(state.last),
            installs: state.installs,
            ..FeedHead::default()
        };
        drop(state);
        self.head.send_replace(head);
    }

    fn install(&self, last: u64) {
        let mut state = self.lock();
        state.installs += 1;
        let more = last - state.last;
        drop(state);
        self.append(more);
    }

    pub(crate) fn catching_up(&self, after: u64) -> Cursor<Self> {
        Cursor::catching_up(self.clone(), self.head.subscribe(), after)
    }

    pub(crate) fn caught_up(&self, after: u64) -> Cursor<Self> {
        Cursor::caught_up(self.clone(), self.head.subscribe(), after)
    }

    /// How often history and the ring were read.
    pub(crate) fn reads(&self) -> (usize, usize) {
        let state = self.lock();
        (state.histories, state.lives)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Source for Numbers {
    type Item = u64;
    type Place = u64;
    const KIND: crate::observe::ReaderKind = crate::observe::ReaderKind::Changes;

    fn number(place: u64) -> u64 {
        place
    }

    fn history(&self, after: u64) -> Decision<Piece<Self>> {
        let mut state = self.lock();
        state.histories += 1;
        if after < state.compacted {
            return Ok(Err(refusal(Reason::Compacted, "compacted")));
        }
        let items: Vec<u64> = (after + 1..=state.last).take(STEP).collect();
        let place = items.last().copied().unwrap_or(after);
        Ok(Ok(Piece { items, place, more: place < state.last }))
    }

    fn live(&self, after: u64) -> Option<Piece<Self>> {
        let mut state = self.lock();
        state.lives += 1;
        let kept = after >= state.last.saturating_sub(state.ring);
        kept.then(|| Piece {
            items: (after + 1..=state.last).collect(),
            place: state.last,
            more: false,
        })
    }

    fn is_behind(&self, place: u64, head: &FeedHead) -> bool {
        place < head.revision.value()
    }
}

async fn next(cursor: &mut Cursor<Numbers>) -> Update<Numbers> {
    let wait = tokio::time::timeout(std::time::Duration::from_secs(10), cursor.next());
    wait.await.expect("an update comes").unwrap()
}

fn is_idle(cursor: &mut Cursor<Numbers>) -> bool {
    let mut next = std::pin::pin!(cursor.next());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    next.as_mut().poll(&mut context).is_pending()
}

#[tokio::test]
async fn history_comes_first_then_the_marker_then_live() {
    let numbers = Numbers::new(25, 100);
    let mut cursor = numbers.catching_up(3);
    for (first, last, caught_up) in [(4, 13, false), (14, 23, false), (24, 25, true)] {
        let update = next(&mut cursor).await;
        assert_eq!(update.items, (first..=last).collect::<Vec<u64>>());
        assert_eq!((update.place, update.caught_up), (last, caught_up));
    }
    assert!(is_idle(&mut cursor), "nothing more to tell");
    numbers.append(2);
    let update = next(&mut cursor).await;
    assert_eq!((update.items, update.caught_up, update.fell_behind), (vec![26, 27], false, false));
    assert_eq!(numbers.reads(), (3, 1));
}

#[tokio::test]
async fn a_reader_with_no_history_is_told_that_it_is_live() {
    let numbers = Numbers::new(5, 100);
    let update = next(&mut numbers.catching_up(5)).await;
    assert_eq!((update.items, update.place, update.caught_up), (vec![], 5, true));
    assert!(is_idle(&mut numbers.caught_up(5)), "this one was told before");
}

#[tokio::test]
async fn an_overrun_ring_sends_the_reader_back_to_history_without_loss() {
    let numbers = Numbers::new(0, 4);
    let mut cursor = numbers.caught_up(0);
    numbers.append(3);
    assert_eq!(next(&mut cursor).await.items, vec![1, 2, 3]);
    numbers.append(12);
    let update = next(&mut cursor).await;
    assert_eq!(update.items, (4..=13).collect::<Vec<u64>>());
    assert!(update.fell_behind && !update.caught_up);
    let update = next(&mut cursor).await;
    assert_eq!(update.items, vec![14, 15]);
    assert!(!update.fell_behind && update.caught_up, "told once each");
    numbers.append(1);
    assert_eq!(next(&mut cursor).await.items, vec![16]);
}

#[tokio::test]
async fn an_installed_snapshot_sends_the_reader_back_to_history() {
    let numbers = Numbers::new(2, 1_000);
    let mut cursor = numbers.caught_up(2);
    numbers.install(9);
    let update = next(&mut cursor).await;
    assert_eq!(update.items, (3..=9).collect::<Vec<u64>>());
    assert!(update.fell_behind && update.caught_up);
    assert_eq!(numbers.reads(), (1, 0), "the ring was not asked across the install");
}

#[tokio::test]
async fn history_that_is_gone_is_an_error_and_not_a_gap() {
    let numbers = Numbers::new(50, 4);
    let mut cursor = numbers.caught_up(10);
    numbers.lock().compacted = 20;
    assert_eq!(cursor.next().await.unwrap_err().code(), tonic::Code::OutOfRange);
}

#[tokio::test]
async fn a_stopped_node_ends_the_reader() {
    let numbers = Numbers::new(0, 4);
    let (head, receiver) = watch::channel(FeedHead::default());
    let mut cursor = Cursor::caught_up(numbers, receiver, 0);
    drop(head);
    assert_eq!(cursor.next().await.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_beside_a_hasty_writer_miss_nothing_and_see_nothing_twice() {
    const LAST: u64 = 20_000;
    // The writer overruns the ring, then waits until all is read, so that the reader gets live.
    let numbers = Numbers::new(0, 8);
    let mut cursor = numbers.catching_up(0);
    let read = Arc::new(AtomicU64::new(0));
    let writer = tokio::spawn({
        let (numbers, read) = (numbers.clone(), Arc::clone(&read));
        async move {
            let mut written = 0;
            for count in [1, 5, 3, 20].into_iter().cycle() {
                numbers.append(count);
                written += count;
                while count == 20 && written > read.load(Relaxed) {
                    tokio::task::yield_now().await;
                }
                if written > LAST {
                    break;
                }
            }
        }
    });
    let (mut expected, mut behind, mut lively) = (1, 0, 0);
    let mut take = |update: Update<Numbers>| {
        for item in update.items {
            assert_eq!(item, expected);
            expected += 1;
        }
        read.store(expected - 1, Relaxed);
        behind += usize::from(update.fell_behind);
        lively += usize::from(update.caught_up);
        expected <= LAST
    };
    loop {
        // A dropped call must lose nothing.
        if let Some(update) = poll_and_drop(&mut cursor)
            && !take(update)
        {
            break;
        }
        if !take(next(&mut cursor).await) {
            break;
        }
    }
    read.store(u64::MAX / 2, Relaxed);
    writer.await.unwrap();
    assert!(behind > 0 && lively > 1, "the ring was not overrun, or the reader never live");
}

/// Polls a call once and drops it; gives what it had ready.
fn poll_and_drop(cursor: &mut Cursor<Numbers>) -> Option<Update<Numbers>> {
    let mut next = std::pin::pin!(cursor.next());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match next.as_mut().poll(&mut context) {
        std::task::Poll::Ready(update) => Some(update.unwrap()),
        std::task::Poll::Pending => None,
    }
}
