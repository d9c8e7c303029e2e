//! What a soak found, for people and as JSON, and whether it is good.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    cli::{
        Error, OutputFormat,
        bench::{
            report::micros,
            soak::{
                proof::Wrongs,
                tally::{MINUTE, Minute},
            },
        },
        show::Show,
        table::{Table, span_text},
    },
    types::Duration,
};

/// By how many percent the median of the last third of the run may lie above that of the middle
/// third, for memory to count as flat.
pub(super) const GROWTH_PERCENT_MAX: u64 = 15;

/// Shorter runs are still warming up in their middle third, and are not judged.
const JUDGED_FROM: Duration = Duration::from_secs(300);

/// What a soak found.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) elapsed: Duration,
    pub(super) clients: u64,
    pub(super) minutes: Vec<Minute>,
    pub(super) memory: Memory,
    pub(super) disk_bytes: u64,
    pub(super) acknowledged: u64,
    pub(super) wrongs: Wrongs,
}

/// Resident memory over the run, a median of all nodes' figures for the middle and the last third.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    middle: u64,
    last: u64,
    highest: u64,
    judged: bool,
}

impl Memory {
    /// Takes samples as (time since the start, kilobytes).
    pub(super) fn of(samples: &[(Duration, u64)], elapsed: Duration) -> Self {
        let within = |from: Duration, until: Duration| {
            let inside = samples.iter().filter(|(at, _)| *at >= from && *at < until);
            median(inside.map(|(_, kilobytes)| *kilobytes).collect())
        };
        let third = elapsed / 3;
        Self {
            middle: within(third, third * 2),
            last: within(third * 2, Duration::MAX),
            highest: samples.iter().map(|(_, kilobytes)| *kilobytes).max().unwrap_or_default(),
            judged: elapsed >= JUDGED_FROM && !samples.is_empty(),
        }
    }

    fn is_flat(self) -> bool {
        self.last * 100 <= self.middle * (100 + GROWTH_PERCENT_MAX)
    }

    fn verdict(self) -> &'static str {
        match (self.judged, self.is_flat()) {
            (false, _) => "not judged",
            (true, true) => "flat",
            (true, false) => "not flat",
        }
    }
}

impl Report {
    /// What should hold and does not.
    pub(super) fn broken(&self) -> Option<String> {
        let first = self.wrongs.0.iter().next();
        if let Some((what, count)) = first {
            return Some(format!("{count} {what}"));
        }
        if self.acknowledged == 0 {
            return Some("no write was acknowledged".to_owned());
        }
        let Memory { middle, last, judged, .. } = self.memory;
        let grown = judged && !self.memory.is_flat();
        grown.then(|| format!("memory is not flat: {} after {}", mb(last), mb(middle)))
    }

    pub(super) fn print(&self, show: Show) -> Result<(), Error> {
        match show.format {
            OutputFormat::Table => self.people(show),
            OutputFormat::Json => show.line(&format!("{:#}", self.json())),
            OutputFormat::Jsonl => show.line(&self.json().to_string()),
        }
    }

    fn people(&self, show: Show) -> Result<(), Error> {
        let elapsed = span_text(self.elapsed);
        show.line(&format!("bench soak: {} clients, {elapsed}", self.clients))?;
        let mut table = Table::new(&[
            "MINUTE", "CALLS/S", "P50", "P99", "MAX", "PAUSE", "KILLS", "ERRORS", "RSS", "RSS MAX",
        ]);
        for (number, minute) in (1_u64..).zip(&self.minutes) {
            let at = |percentile| micros(minute.latencies.value_at_percentile(percentile));
            table.row([
                number.into(),
                format!("{:.0}", self.rate(number, minute)).into(),
                at(50.0).into(),
                at(99.0).into(),
                at(100.0).into(),
                span_text(minute.longest_pause).into(),
                minute.kills.into(),
                minute.errors.values().sum::<u64>().into(),
                mb(median(minute.resident.clone())).into(),
                mb(minute.resident.iter().copied().max().unwrap_or_default()).into(),
            ]);
        }
        show.shown(&table.into())?;
        let told: Vec<_> =
            self.operations().iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        show.line(&format!("operations    {}", told.join(", ")))?;
        let errors = self.errors();
        let errors: Vec<_> =
            errors.iter().map(|(class, count)| format!("{class} {count}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        show.line(&format!("errors        {errors}"))?;
        let Memory { middle, last, highest, .. } = self.memory;
        show.line(&format!(
            "memory        {}: median {} in the middle third, {} in the last, {} at most; at most \
             {GROWTH_PERCENT_MAX} % more is flat",
            self.memory.verdict(),
            mb(middle),
            mb(last),
            mb(highest),
        ))?;
        show.line(&format!("on disk       {}", mb(self.disk_bytes / 1024)))?;
        let wrongs: Vec<_> = self.wrongs.0.iter().map(|(what, n)| format!("{n} {what}")).collect();
        let wrongs = if wrongs.is_empty() { "nothing wrong".to_owned() } else { wrongs.join(", ") };
        show.line(&format!("checked       {} acknowledged writes: {wrongs}", self.acknowledged))
    }

    fn json(&self) -> Value {
        let minutes: Vec<_> =
            (1_u64..).zip(&self.minutes).map(|(n, m)| self.minute(n, m)).collect();
        json!({
            "bench": "soak",
            "clients": self.clients,
            "seconds": self.elapsed.as_secs_f64(),
            "minutes": minutes,
            "operations": self.operations(),
            "errorsByClass": self.errors(),
            "memory": {
                "verdict": self.memory.verdict(),
                "middleThirdKilobytes": self.memory.middle,
                "lastThirdKilobytes": self.memory.last,
                "highestKilobytes": self.memory.highest,
                "growthPercentMax": GROWTH_PERCENT_MAX,
            },
            "diskBytes": self.disk_bytes,
            "acknowledged": self.acknowledged,
            "wrong": self.wrongs.0,
        })
    }

    fn minute(&self, number: u64, minute: &Minute) -> Value {
        let at = |percentile| minute.latencies.value_at_percentile(percentile);
        json!({
            "minute": number,
            "callsPerSecond": self.rate(number, minute).round(),
            "latencyMicros": { "p50": at(50.0), "p99": at(99.0), "max": at(100.0) },
            "longestPauseMillis": u64::try_from(minute.longest_pause.as_millis()).ok(),
            "kills": minute.kills,
            "errorsByClass": minute.errors,
            "residentKilobytes": {
                "median": median(minute.resident.clone()),
                "max": minute.resident.iter().max(),
            },
        })
    }

    /// Calls a second; the last minute may be short.
    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a rate for people")]
    fn rate(&self, number: u64, minute: &Minute) -> f64 {
        let before = MINUTE.as_secs_f64() * (number - 1) as f64;
        let lasted = (self.elapsed.as_secs_f64() - before).clamp(1.0, MINUTE.as_secs_f64());
        minute.latencies.len() as f64 / lasted
    }

    fn operations(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for (kind, count) in self.minutes.iter().flat_map(|minute| &minute.operations) {
            *all.entry(kind.name()).or_default() += count;
        }
        all
    }

    fn errors(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (class, count) in self.minutes.iter().flat_map(|minute| &minute.errors) {
            *all.entry(class.as_str()).or_default() += count;
        }
        all
    }
}

/// The middle one; 0 of nothing.
fn median(mut figures: Vec<u64>) -> u64 {
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

fn mb(kilobytes: u64) -> String {
    format!("{} MB", (kilobytes * 1_024).div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(third: [u64; 3], elapsed: u64) -> Memory {
        let elapsed = Duration::from_secs(elapsed);
        let at = |number: u32| elapsed * number / 9;
        let samples: Vec<_> =
            (0..9_u32).map(|n| (at(n), third[usize::try_from(n / 3).unwrap()])).collect();
        Memory::of(&samples, elapsed)
    }

    #[test]
    fn memory_is_flat_where_the_last_third_is_like_the_middle_one() {
        assert_eq!(memory([10, 100, 115], 600).verdict(), "flat");
        assert_eq!(memory([10, 100, 116], 600).verdict(), "not flat");
        assert_eq!(memory([500, 100, 90], 600).verdict(), "flat");
        assert_eq!(memory([10, 100, 200], 60).verdict(), "not judged");
        assert_eq!(Memory::of(&[], Duration::from_secs(600)).verdict(), "not judged");
    }

    #[test]
    fn a_wrong_breaks_a_soak_and_so_does_one_that_wrote_nothing() {
        let report = |acknowledged, wrong| {
            let mut wrongs = Wrongs::default();
            wrongs.add("keys missing", wrong);
            Report {
                elapsed: Duration::from_secs(600),
                clients: 6,
                minutes: Vec::new(),
                memory: memory([1, 1, 1], 600),
                disk_bytes: 0,
                acknowledged,
                wrongs,
            }
        };
        assert_eq!(report(9, 0).broken(), None);
        assert_eq!(report(9, 2).broken().as_deref(), Some("2 keys missing"));
        assert_eq!(report(0, 0).broken().as_deref(), Some("no write was acknowledged"));
    }
}
