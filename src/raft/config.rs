//! How a group behaves, and what it is given at a start. Nothing here changes while it runs.

use crate::{
    raft::{Entry, HardState, Membership},
    types::{Duration, LogIndex, LogTime, NodeId, Term},
};

/// How a group behaves. All members should agree, but safety does not hang on it; only
/// `early_vote` must be `false` on every member where any leader serves reads by lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who this member is.
    pub id: NodeId,
    /// How often a leader speaks up. Default 50 ms.
    pub heartbeat_interval: Duration,
    /// The shortest silence after which a follower campaigns, and how long a follower that heard
    /// its leader refuses others its vote. Default 300 ms.
    pub election_timeout_min: Duration,
    /// The longest such silence, and how long a leader leads without hearing from a quorum.
    /// Default 600 ms.
    pub election_timeout_max: Duration,
    /// How many append messages may be unanswered for each member. Default 128.
    pub inflight_messages_max: usize,
    /// How many bytes of entries may be unanswered for each member. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// How many bytes of entries one append message carries; a larger entry travels alone.
    /// Default 1 MiB.
    pub append_bytes_max: usize,
    /// How many entries one append message carries. Default 4,096.
    pub append_entries_max: usize,
    /// How many bytes of entries are handed out to be applied in one piece. Default 1 MiB.
    pub apply_bytes_max: usize,
    /// How many bytes of entries may wait for their commit before proposals are refused.
    /// Default 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Whether a broken connection to the leader may shorten an election; must be `false` where
    /// lease reads are allowed. Default `true`.
    pub early_vote: bool,
    /// Where this member's chance comes from; give each member another one.
    pub seed: u64,
}

impl Config {
    /// The defaults for a member, with its id as the seed.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self { id, seed: id.value(), ..Self::default() }
    }

    /// Checks that the figures fit together.
    ///
    /// # Errors
    /// The first figure that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |wrong: bool, error| if wrong { Err(error) } else { Ok(()) };
        refuse(self.id.is_zero(), ConfigError::NoId)?;
        refuse(self.heartbeat_interval.is_zero(), ConfigError::NoHeartbeat)?;
        let silence = self.heartbeat_interval.saturating_mul(2);
        refuse(self.election_timeout_min < silence, ConfigError::ElectionTooShort)?;
        let no_spread = self.election_timeout_max <= self.election_timeout_min;
        refuse(no_spread, ConfigError::ElectionNotSpread)?;
        let sizes = [
            self.inflight_messages_max,
            self.inflight_bytes_max,
            self.append_bytes_max,
            self.append_entries_max,
            self.apply_bytes_max,
            self.uncommitted_bytes_max,
        ];
        refuse(sizes.contains(&0), ConfigError::NoRoom)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: NodeId::ZERO,
            heartbeat_interval: Duration::from_millis(50),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(600),
            inflight_messages_max: 128,
            inflight_bytes_max: 8 << 20,
            append_bytes_max: 1 << 20,
            append_entries_max: 4_096,
            apply_bytes_max: 1 << 20,
            uncommitted_bytes_max: 64 << 20,
            early_vote: true,
            seed: 0,
        }
    }
}

/// Why a [`Config`] cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// 0 is nobody.
    #[error("the node id is 0, which is nobody")]
    NoId,
    /// A leader would never rest.
    #[error("the heartbeat interval is zero")]
    NoHeartbeat,
    /// One lost heartbeat would start an election.
    #[error("the election timeout is below two heartbeat intervals")]
    ElectionTooShort,
    /// Members would campaign at the same time again and again.
    #[error("the largest election timeout is not above the smallest")]
    ElectionNotSpread,
    /// Nothing would ever be sent or applied.
    #[error("a limit in bytes, entries or messages is zero")]
    NoRoom,
}

/// What the disk gave back at a start. All of it is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Term, vote and the commit index known at the last write.
    pub hard: HardState,
    /// The last index that the log no longer holds; zero for a whole log. Where the state was
    /// installed from a snapshot and the log did not learn of it, the driver gives the snapshot's
    /// index and term here: entries that do not connect to it are dropped.
    pub purged_index: LogIndex,
    /// That entry's term.
    pub purged_term: Term,
    /// That entry's log time.
    pub last_time: LogTime,
    /// The entries, with consecutive indexes.
    pub entries: Vec<Entry>,
    /// How far the state machine had applied; at least `purged_index`.
    pub applied: LogIndex,
    /// The membership in force at `applied`.
    pub membership: Membership,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let good = Config::new(NodeId::new(1));
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(Config::default().validate(), Err(ConfigError::NoId));
        let bad = Config { election_timeout_max: good.election_timeout_min, ..good.clone() };
        assert_eq!(bad.validate(), Err(ConfigError::ElectionNotSpread));
        let bad = Config { heartbeat_interval: good.election_timeout_min, ..good.clone() };
        assert_eq!(bad.validate(), Err(ConfigError::ElectionTooShort));
        let bad = Config { heartbeat_interval: Duration::ZERO, ..good.clone() };
        assert_eq!(bad.validate(), Err(ConfigError::NoHeartbeat));
        let bad = Config { apply_bytes_max: 0, ..good };
        assert_eq!(bad.validate(), Err(ConfigError::NoRoom));
    }
}
