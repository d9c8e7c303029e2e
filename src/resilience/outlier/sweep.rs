//! Who is an outlier among the counts of one interval: the two algorithms of gRFC A50.
//!
//! Pure functions from counts to places in the list, worst first. A50 leaves the order open; this
//! one spends a scarce share of ejections on those that need it most. Nobody is ejected here.

use crate::resilience::outlier::{FailurePercentage, SuccessRate, tally::Counts};

impl Counts {
    const fn total(self) -> u64 {
        self.successes.saturating_add(self.failures)
    }

    fn success_share(self) -> f64 {
        self.successes as f64 / self.total() as f64
    }
}

/// A50, "Success rate algorithm", steps 1 to 3.3 without the draw.
pub(super) fn by_success_rate(rule: &SuccessRate, counts: &[Counts]) -> Vec<usize> {
    let judged = with_volume(rule.request_volume, rule.minimum_hosts, counts);
    if judged.is_empty() {
        return judged;
    }
    let size = judged.len() as f64;
    let share = |place: &usize| counts[*place].success_share();
    let mean = judged.iter().map(share).sum::<f64>() / size;
    // Of all hosts, not of a sample of them, as in Envoy.
    let variance = judged.iter().map(|place| (share(place) - mean).powi(2)).sum::<f64>() / size;
    let least = mean - variance.sqrt() * (f64::from(rule.stdev_factor) / 1_000.0);
    worst_first(judged, counts, |counts| counts.success_share() < least)
}

/// A50, "Failure percentage algorithm", steps 1 to 2.3 without the draw. A share equal to the
/// threshold is not above it: A50's algorithm, where its table of parameters says otherwise.
pub(super) fn by_failure_percentage(rule: &FailurePercentage, counts: &[Counts]) -> Vec<usize> {
    let judged = with_volume(rule.request_volume, rule.minimum_hosts, counts);
    let above = |counts: Counts| {
        u128::from(counts.failures) * 100 > u128::from(rule.threshold) * u128::from(counts.total())
    };
    worst_first(judged, counts, above)
}

/// The hosts that had enough calls; nobody where too few had.
fn with_volume(request_volume: u32, minimum_hosts: u32, counts: &[Counts]) -> Vec<usize> {
    let enough = |place: &usize| counts[*place].total() >= u64::from(request_volume);
    let judged: Vec<_> = (0..counts.len()).filter(enough).collect();
    if judged.len() < minimum_hosts as usize { Vec::new() } else { judged }
}

fn worst_first(
    mut judged: Vec<usize>,
    counts: &[Counts],
    is_outlier: impl Fn(Counts) -> bool,
) -> Vec<usize> {
    judged.retain(|place| is_outlier(counts[*place]));
    let share = |place: &usize| counts[*place].success_share();
    judged.sort_by(|left, right| share(left).total_cmp(&share(right)));
    judged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(u64, u64)]) -> Vec<Counts> {
        pairs.iter().map(|&(successes, failures)| Counts { successes, failures }).collect()
    }

    #[test]
    fn a_host_far_below_the_mean_is_an_outlier_by_success_rate() {
        let rule = SuccessRate::default();
        // Mean 0.9, deviation 0.2: the least is 0.52.
        let clear = counts(&[(100, 0), (100, 0), (50, 50), (100, 0), (100, 0)]);
        assert_eq!(by_success_rate(&rule, &clear), [2]);
        // All alike are no outliers, however bad.
        let alike = counts(&[(10, 90); 6]);
        assert_eq!(by_success_rate(&rule, &alike), [0; 0]);
    }

    #[test]
    fn hosts_with_few_calls_are_not_judged_and_too_few_hosts_neither() {
        let rule = SuccessRate::default();
        let thin = counts(&[(100, 0), (100, 0), (49, 50), (100, 0), (100, 0)]);
        assert_eq!(by_success_rate(&rule, &thin), [0; 0], "only four have the volume");
        let six = counts(&[(100, 0), (100, 0), (0, 99), (100, 0), (100, 0), (100, 0)]);
        assert_eq!(by_success_rate(&rule, &six), [0; 0], "the bad one has not");

        let rule = FailurePercentage::default();
        let four = counts(&[(0, 50), (50, 0), (50, 0), (50, 0), (49, 0)]);
        assert_eq!(by_failure_percentage(&rule, &four), [0; 0]);
        let five = counts(&[(0, 50), (50, 0), (50, 0), (50, 0), (50, 0)]);
        assert_eq!(by_failure_percentage(&rule, &five), [0]);
    }

    #[test]
    fn a_share_of_failures_must_be_above_the_threshold() {
        let rule = FailurePercentage::default();
        let at = counts(&[(15, 85), (14, 86), (0, 100), (100, 0), (100, 0)]);
        assert_eq!(by_failure_percentage(&rule, &at), [2, 1], "the worst first");
    }
}
