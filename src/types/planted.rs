//! Bugs that tests plant, to see that the simulator finds them: each is one line at the place where
//! its rule is kept.
//!
//! Outside of tests nothing is ever planted: no setting and no variable can make a node misbehave.

/// A bug: the mistake that somebody could make. The numbers are those of the rules of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// The log's record of term and vote is written without the vote (13).
    VoteNotPersisted,
    /// A vote leaves before it is durable (13).
    VoteSentBeforeDurable,
    /// The vote resets whenever a member follows, also in the same term (17).
    VoteForgottenInTerm,
    /// The log says durable without a sync (13).
    AcknowledgedBeforeSync,
    /// A follower acknowledges entries that are not durable yet (13).
    AppendAcknowledgedEarly,
    /// The leader counts its own entry before `Persisted` (14).
    OwnAppendCountedEarly,
    /// An entry of an old term is committed by counting (Raft 5.4.2).
    OldTermCommittedByCount,
    /// A heartbeat's commit index is taken for what this log holds, whoever it is from.
    HeartbeatCommitsBlindly,
    /// A read is confirmed by the leader alone (12).
    ReadWithoutQuorum,
    /// A read joins the round that is under way already (12).
    ReadJoinsEarlierRound,
    /// A read is served before the first commit of the term (11).
    ReadBeforeFirstCommit,
    /// A proposal is dropped without an outcome while leadership is handed over.
    ProposalDroppedInTransfer,
    /// Every append truncates what follows, conflict or not, committed or not (17).
    AppendTruncatesAlways,
    /// A snapshot over a log that conflicts with it keeps what follows.
    SnapshotKeepsSuffix,
    /// Revisions, of which tokens are made, start anew with a snapshot.
    TokenRestartsAtSnapshot,
    /// A snapshot is loaded without the remembered requests.
    RequestsLostAtSnapshot,
    /// A request that was carried out is carried out again when it is retried (19).
    RetryAppliedTwice,
    /// An expiry carries no epoch: a renewal that comes while it is under way is acknowledged and
    /// does not void it (24).
    ExpiryWithoutEpoch,
    /// A renewal is acknowledged without a quorum (29).
    RenewalWithoutQuorum,
    /// The call that gets a lock is told twice.
    WaiterWokenTwice,
    /// A lock is released by whichever token.
    WrongTokenReleases,
    /// A watch that goes on after a revision begins one too late.
    WatchSkipsRevision,
    /// A segment that is used again shows its old records (25).
    RecycledSegmentReadAsNew,
}

/// Whether a bug is planted.
#[cfg(not(test))]
pub(crate) const fn planted(_: Planted) -> bool {
    false
}

#[cfg(test)]
pub(crate) use planting::{Planting, planted};

#[cfg(test)]
mod planting {
    use std::cell::Cell;

    use super::Planted;

    std::thread_local! {
        /// The bug of this thread: other tests run beside it.
        static BUG: Cell<Option<Planted>> = const { Cell::new(None) };
    }

    /// Whether a bug is planted.
    pub(crate) fn planted(bug: Planted) -> bool {
        BUG.get() == Some(bug)
    }

    /// A bug is planted for as long as this lives.
    #[derive(Debug)]
    pub(crate) struct Planting(());

    impl Planting {
        pub(crate) fn of(bug: Planted) -> Self {
            assert_eq!(BUG.replace(Some(bug)), None, "one bug at a time");
            Self(())
        }
    }

    impl Drop for Planting {
        fn drop(&mut self) {
            BUG.set(None);
        }
    }
}
