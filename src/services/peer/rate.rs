//! How fast snapshots go out: a token bucket, kept as the time at which it is full again.
//!
//! It never looks at a clock and never waits: it takes the time and says how long to wait.

use crate::types::{Duration, Instant};

/// How long the bucket takes to fill: what may go at once after a rest, in time.
const BURST: Duration = Duration::from_millis(50);

/// Lets so many bytes a second through, on average.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes a second; 0 lets everything through.
    rate: u64,
    /// When what was taken is paid for.
    paid_at: Instant,
}

impl Bucket {
    /// A full bucket of `rate` bytes a second; 0 is without a limit.
    pub(super) const fn new(rate: u64) -> Self {
        Self { rate, paid_at: Instant::ZERO }
    }

    /// Takes `bytes` and says how long to wait before they may go. A piece larger than the bucket
    /// goes as a whole, and those after it wait for it.
    pub(super) fn take(&mut self, now: Instant, bytes: usize) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let due = self.paid_at;
        // A rest earns no more than the bucket holds.
        let burst = u64::try_from(BURST.as_nanos()).expect("it is short");
        let earliest = Instant::from_nanos(now.as_nanos().saturating_sub(burst));
        self.paid_at = due.max(earliest).after(cost);
        due.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(millis: u64) -> Instant {
        Instant::ZERO.after(Duration::from_millis(1_000 + millis))
    }

    #[test]
    fn what_goes_through_keeps_to_the_rate() {
        let mut bucket = Bucket::new(10 * MIB);
        let (mut now, mut sent) = (ms(0), 0);
        while now < ms(10_000) {
            now = now.after(bucket.take(now, 256 << 10));
            sent += 256 << 10;
        }
        let most = 100 * MIB + (10 * MIB / 20) + (512 << 10);
        assert!((99 * MIB..=most).contains(&sent), "{sent} bytes in 10 s");
    }

    #[test]
    fn a_rest_earns_a_burst_and_no_more() {
        let mut bucket = Bucket::new(MIB);
        assert_eq!(bucket.take(ms(0), 1 << 20), Duration::ZERO, "a full bucket");
        assert_eq!(bucket.take(ms(0), 1), Duration::from_millis(950), "less the burst");
        // After a minute of rest: one second's worth is still a second's worth.
        assert_eq!(bucket.take(ms(60_000), 1 << 20), Duration::ZERO);
        assert!(bucket.take(ms(60_000), 1) >= Duration::from_millis(950));
    }

    #[test]
    fn two_who_send_share_the_rate() {
        let mut bucket = Bucket::new(MIB);
        bucket.take(ms(0), 1 << 20);
        let one = bucket.take(ms(0), 1 << 20);
        let other = bucket.take(ms(0), 1 << 20);
        assert_eq!(other - one, Duration::from_secs(1));
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut bucket = Bucket::new(0);
        assert!((0..100).all(|_| bucket.take(ms(0), usize::MAX).is_zero()));
    }
}
