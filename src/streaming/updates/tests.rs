//! The stream around a cursor: bounded, and ended by whoever may end it.

use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::*;
use crate::{streaming::cursor::tests::Numbers, wire::status::reason};

const PATIENCE: Duration = Duration::from_secs(10);

fn terms() -> Terms {
    Terms { drain: CancellationToken::new(), deadline: None, permit: None, metrics: Metrics::new() }
}

/// A response: the items, the place, and whether it is a marker of the live end.
type Response = (Vec<u64>, u64, bool);

fn stream(terms: Terms, opening: Vec<Response>, cursor: Cursor<Numbers>) -> Updates<Response> {
    follow(terms, opening, cursor, |update| (update.items, update.place, update.caught_up))
}

async fn next(updates: &mut Updates<Response>) -> Result<Response, Status> {
    let next = tokio::time::timeout(PATIENCE, updates.next());
    next.await.expect("a response comes").expect("the stream goes on")
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition comes about");
}

#[tokio::test]
async fn the_opening_comes_before_what_the_cursor_delivers() {
    let numbers = Numbers::new(2, 100);
    let mut updates = stream(terms(), vec![(vec![], 2, true)], numbers.caught_up(2));
    assert_eq!(next(&mut updates).await.unwrap(), (vec![], 2, true));
    numbers.append(1);
    assert_eq!(next(&mut updates).await.unwrap(), (vec![3], 3, false));
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_a_few_responses_and_holds_up_nobody() {
    let numbers = Numbers::new(10_000, 4);
    let mut updates = stream(terms(), Vec::new(), numbers.catching_up(0));
    until(|| numbers.reads().0 == QUEUED_RESPONSES_MAX).await;
    for _ in 0..1_000 {
        numbers.append(1);
        tokio::task::yield_now().await;
    }
    assert_eq!(numbers.reads(), (QUEUED_RESPONSES_MAX, 0), "nothing is read without room for it");
    let mut expected = 1;
    while expected <= 11_000 {
        for item in next(&mut updates).await.unwrap().0 {
            assert_eq!(item, expected);
            expected += 1;
        }
    }
}

#[tokio::test]
async fn draining_ends_the_stream_after_what_was_produced() {
    let numbers = Numbers::new(35, 4);
    let terms = terms();
    let drain = terms.drain.clone();
    let mut updates = stream(terms, Vec::new(), numbers.catching_up(0));
    until(|| updates.queue.len() == QUEUED_RESPONSES_MAX).await;
    drain.cancel();
    assert_eq!(next(&mut updates).await.unwrap().1, 10);
    assert_eq!(next(&mut updates).await.unwrap().1, 20);
    let end = next(&mut updates).await.unwrap_err();
    assert_eq!((end.code(), reason(&end)), (Code::Unavailable, Some(Reason::Draining)));
    assert!(updates.next().await.is_none(), "the end is told once");
}

#[tokio::test]
async fn the_deadline_ends_the_stream() {
    let deadline = Some(Instant::now() + Duration::from_millis(30));
    let numbers = Numbers::new(0, 4);
    let mut updates = stream(Terms { deadline, ..terms() }, Vec::new(), numbers.caught_up(0));
    let end = next(&mut updates).await.unwrap_err();
    assert_eq!(end.code(), Code::DeadlineExceeded);
    assert!(Some(Instant::now()) >= deadline, "not before its time");
}

#[tokio::test]
async fn a_caller_that_left_frees_its_place() {
    let places = Arc::new(Semaphore::new(1));
    let permit = Some(Arc::new(Arc::clone(&places).try_acquire_owned().unwrap()));
    let numbers = Numbers::new(0, 4);
    let updates = stream(Terms { permit, ..terms() }, Vec::new(), numbers.caught_up(0));
    assert_eq!(places.available_permits(), 0);
    drop(updates);
    until(|| places.available_permits() == 1).await;
}

#[tokio::test]
async fn a_producers_own_end_ends_the_stream() {
    let mut updates = updates(terms(), async |queue: mpsc::Sender<Response>| {
        queue.send((vec![1], 1, false)).await.unwrap();
        Ok(())
    });
    assert_eq!(next(&mut updates).await.unwrap().1, 1);
    assert!(updates.next().await.is_none());
}

#[tokio::test]
async fn a_producer_that_dies_is_an_error_and_not_an_end() {
    let mut updates = updates(terms(), async |_queue: mpsc::Sender<Response>| panic!("on purpose"));
    assert_eq!(next(&mut updates).await.unwrap_err().code(), Code::Internal);
}

/// A source where everything passes by and nothing concerns the reader.
mod unconcerned {
    use tokio::sync::watch;

    use super::*;
    use crate::{machine::Decision, node::FeedHead, streaming::steps::Piece, types::Revision};

    #[derive(Clone)]
    struct Nothing(watch::Receiver<FeedHead>);

    impl Source for Nothing {
        type Item = u64;
        type Place = u64;
        const KIND: crate::observe::ReaderKind = crate::observe::ReaderKind::Changes;

        fn number(place: u64) -> u64 {
            place
        }

        fn history(&self, after: u64) -> Decision<Piece<Self>> {
            Ok(Ok(Piece { items: Vec::new(), place: after, more: false }))
        }

        fn live(&self, _after: u64) -> Option<Piece<Self>> {
            let place = self.0.borrow().revision.value();
            Some(Piece { items: Vec::new(), place, more: false })
        }

        fn is_behind(&self, place: u64, head: &FeedHead) -> bool {
            place < head.revision.value()
        }
    }

    #[tokio::test]
    async fn a_reader_that_nothing_concerns_is_told_how_far_it_is() {
        let (sender, head) = watch::channel(FeedHead::default());
        let cursor = Cursor::caught_up(Nothing(head.clone()), head, 0);
        let respond = |update: Update<_>| (update.items, update.place, false);
        let pace = Duration::from_millis(5);
        let mut updates = follow_paced(terms(), Vec::new(), cursor, respond, pace);
        let quiet = tokio::time::timeout(4 * pace, updates.next()).await;
        assert!(quiet.is_err(), "nothing moved, nothing is told");
        sender.send_replace(FeedHead { revision: Revision::new(7), ..FeedHead::default() });
        assert_eq!(next(&mut updates).await.unwrap(), (vec![], 7, false));
    }
}
