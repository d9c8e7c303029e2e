//! Keeps a flood of strangers from filling a disk with log lines.
//!
//! A token bucket per listener: a burst of lines, then one a second; how many were left out is told
//! with the next line.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// How many lines may come at once.
const BURST: u32 = 20;

/// How many lines a second there are room for after that.
const PER_SECOND: f64 = 1.0;

#[derive(Debug)]
pub(super) struct LogLimit {
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
    left_out: u64,
}

impl LogLimit {
    pub(super) fn new(now: Instant) -> Self {
        let bucket = Bucket { tokens: f64::from(BURST), filled: now, left_out: 0 };
        Self { bucket: Mutex::new(bucket) }
    }

    /// Whether there is room for a line; then how many were left out since the last one.
    pub(super) fn pass(&self, now: Instant) -> Option<u64> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = now.duration_since(bucket.filled).as_secs_f64() * PER_SECOND;
        bucket.filled = now;
        bucket.tokens = (bucket.tokens + gained).min(f64::from(BURST));
        if bucket.tokens < 1.0 {
            bucket.left_out += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        Some(std::mem::take(&mut bucket.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Duration;

    #[test]
    fn a_flood_is_counted_and_not_written() {
        let now = Instant::now();
        let limit = LogLimit::new(now);
        let lines = (0..1_000).filter(|_| limit.pass(now).is_some()).count();
        assert_eq!(lines, 20);
        let later = now + Duration::from_secs(1);
        assert_eq!(limit.pass(later), Some(980), "the next line tells of the others");
        assert_eq!(limit.pass(later), None);
    }
}
