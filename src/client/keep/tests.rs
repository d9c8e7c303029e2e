//! The task of a handle in virtual time, with renewals that go as a script says.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::{
    sync::mpsc,
    time::{advance, timeout},
};

use super::*;

const TTL: Duration = Duration::from_secs(30);

/// When something with this TTL is not claimed any more.
const VALID: Duration = Duration::from_millis(28_500);

/// What a timer may be late.
const TICK: Duration = Duration::from_millis(1);

/// How one renewal goes.
enum Turn {
    Confirm,
    Refuse,
    Fail,
    Hang,
}

/// Renews as its script says, and hangs once it is through.
struct Scripted {
    turns: Mutex<VecDeque<Turn>>,
    /// When each renewal was sent.
    sent: mpsc::UnboundedSender<time::Instant>,
    /// How often it was ended.
    ended: mpsc::UnboundedSender<()>,
    end_hangs: bool,
}

struct Seen {
    sent: mpsc::UnboundedReceiver<time::Instant>,
    ended: mpsc::UnboundedReceiver<()>,
}

impl Renewable for Arc<Scripted> {
    type Ended = u64;

    async fn renew(&self, _: Duration) -> Result<Option<Duration>, Error> {
        let _ = self.sent.send(time::Instant::now());
        let turn = self.turns.lock().expect("no test panics with it").pop_front();
        match turn.unwrap_or(Turn::Hang) {
            Turn::Confirm => Ok(Some(TTL)),
            Turn::Refuse => Err(Error::invalid("gone")),
            Turn::Fail => Err(Error::broken("no answer")),
            Turn::Hang => std::future::pending().await,
        }
    }

    fn is_gone(error: &Error) -> bool {
        error.message() == "gone"
    }

    async fn end(&self) -> Result<u64, Error> {
        let _ = self.ended.send(());
        if self.end_hangs {
            std::future::pending::<()>().await;
        }
        Ok(7)
    }
}

type Handle = Kept<Arc<Scripted>>;

fn keep(turns: impl IntoIterator<Item = Turn>, end_hangs: bool) -> (Handle, Seen) {
    let ((sent, was_sent), (ended, was_ended)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let turns = Mutex::new(turns.into_iter().collect());
    let thing = Arc::new(Scripted { turns, sent, ended, end_hangs });
    let clock = Clock::start();
    let lease = Lease::confirmed_since(chance(), clock.now(), Some(TTL));
    (Kept::start(thing, lease, clock), Seen { sent: was_sent, ended: was_ended })
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_for_as_long_as_the_renewals_are_confirmed() {
    let (kept, mut seen) = keep((0..5).map(|_| Turn::Confirm), false);
    let begin = time::Instant::now();
    let (mut confirmed, mut last) = (begin, begin);
    for _ in 0..6 {
        confirmed = last;
        last = seen.sent.recv().await.expect("the task runs");
        assert!(kept.claim().is_valid());
        assert!(last - confirmed >= TTL / 4 && last - confirmed <= TTL / 3 + TICK);
    }
    // The sixth is not answered.
    let lost = kept.claim().lost().await;
    assert!(matches!(lost, Loss::Lapsed { .. }), "{lost}");
    assert!(!kept.claim().is_valid());
    assert!(time::Instant::now() - confirmed <= VALID + TICK);
}

#[tokio::test(start_paused = true)]
async fn without_confirmation_it_is_lost_at_its_time_and_neither_sooner_nor_later() {
    let (kept, _seen) = keep([Turn::Fail, Turn::Fail, Turn::Hang], false);
    let valid_until = kept.claim().valid_until();
    assert_eq!(valid_until - time::Instant::now(), VALID);
    let lost = kept.claim().lost();
    let until_then = timeout(VALID - Duration::from_millis(5), lost).await;
    assert!(until_then.is_err() && kept.claim().is_valid(), "it is held until its time");
    let lost = kept.claim().lost().await;
    assert!(
        matches!(&lost, Loss::Lapsed { last: Some(e) } if e.message() == "no answer"),
        "{lost}"
    );
    assert!(!kept.claim().is_valid());
    let late = time::Instant::now() - valid_until;
    assert!(late <= TICK, "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_renewal_loses_it_at_once() {
    let (kept, mut seen) = keep([Turn::Confirm, Turn::Refuse], false);
    let lost = kept.claim().lost().await;
    assert!(matches!(&lost, Loss::Refused(error) if error.message() == "gone"), "{lost}");
    assert!(!kept.claim().is_valid() && kept.claim().valid_until() <= time::Instant::now());
    assert!(matches!(kept.claim().lost().await, Loss::Refused(_)), "whoever asks later is told");
    let error = kept.end().await.expect_err("it is gone");
    assert_eq!(error.message(), "gone");
    assert!(seen.ended.try_recv().is_err(), "what is gone is not ended");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_claims_nothing_before_any_task_ran() {
    let (kept, _seen) = keep([Turn::Confirm, Turn::Confirm], false);
    tokio::task::yield_now().await;
    let lost = kept.claim().lost();
    // The clock jumps; no task gets its turn before the questions.
    let jump = advance(VALID);
    tokio::pin!(jump);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let _ = jump.as_mut().poll(&mut context);
    assert!(!kept.claim().is_valid());
    assert!(matches!(kept.claim().loss(), Some(Loss::Lapsed { .. })));
    tokio::pin!(lost);
    assert!(lost.as_mut().poll(&mut context).is_ready(), "it is told from the clock");
    jump.await;
    // The renewal that comes now is too late, though the script confirms it.
    assert!(timeout(TTL, kept.claim().lost()).await.is_ok());
    assert!(!kept.claim().is_valid());
}

#[tokio::test(start_paused = true)]
async fn dropping_it_ends_it_in_the_background_also_while_a_renewal_hangs() {
    let (kept, mut seen) = keep([Turn::Hang], false);
    seen.sent.recv().await.expect("a renewal is under way");
    let lost = kept.claim().lost();
    drop(kept);
    assert!(matches!(lost.await, Loss::Released));
    seen.ended.recv().await.expect("the task ends it");
    assert!(seen.ended.recv().await.is_none(), "once, and the task is gone");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_hangs_holds_nobody_up() {
    let (kept, mut seen) = keep([], true);
    let claim = kept.claim().clone();
    drop(kept);
    assert!(!claim.is_valid(), "from the drop on");
    seen.ended.recv().await.expect("the task tries");

    let (kept, mut seen) = keep([], true);
    let claim = kept.claim().clone();
    assert!(timeout(TTL, kept.end()).await.is_err(), "who waits for it does so in vain");
    assert!(!claim.is_valid());
    seen.ended.recv().await.expect("the task tries");
    assert!(seen.ended.try_recv().is_err(), "once");
}

#[tokio::test(start_paused = true)]
async fn what_lapsed_may_still_be_there_and_is_ended() {
    let (kept, mut seen) = keep([], false);
    assert!(matches!(kept.claim().lost().await, Loss::Lapsed { .. }));
    assert_eq!(kept.end().await.expect("the cluster had it still"), 7);
    assert!(seen.ended.try_recv().is_ok());
}

#[test]
fn without_its_runtime_it_lapses_and_can_be_dropped() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let first = runtime().expect("a runtime");
    let (kept, mut seen) = first.block_on(async { keep([], false) });
    let claim = kept.claim().clone();
    drop(first);
    assert!(claim.is_valid(), "the clock alone tells");
    let second = runtime().expect("a runtime");
    assert!(second.block_on(kept.end()).is_err(), "nobody is left to do it, and nobody hangs");
    assert!(!claim.is_valid());
    assert!(seen.ended.try_recv().is_err());
}
