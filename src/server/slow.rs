//! The log line of a request that took long: which one, how long, and where its time went.
//!
//! Streams and calls that wait for their turn take long by their nature and are not told. Values
//! are never told. Of a flood of slow requests some are told and the others counted.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use tonic::Code;

use crate::{
    observe::{MethodMetrics, Metrics, Trace, TraceParent},
    types::Duration,
};

/// How many lines are written in a second at most.
const LINES_PER_SECOND_MAX: u32 = 10;

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) method: &'a MethodMetrics,
    pub(crate) code: Code,
    pub(crate) started: Instant,
    pub(crate) total: Duration,
    pub(crate) trace: &'a Trace,
    /// What the caller said that it is part of.
    pub(crate) parent: Option<TraceParent>,
    pub(crate) nature: Nature,
}

/// How long a method takes by its nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// It is answered as soon as the work is done.
    Prompt,
    /// It may wait for others, as an acquire does.
    Parked,
    /// It is open for as long as its caller likes.
    Stream,
}

impl Ended<'_> {
    /// From its arrival until the node took the call.
    pub(crate) fn before(&self) -> Option<Duration> {
        self.trace.taken.map(|taken| taken.saturating_duration_since(self.started))
    }

    /// From there being something to answer until the answer left.
    pub(crate) fn answer(&self) -> Option<Duration> {
        let known = self.before()? + self.trace.settled?;
        // A read's index was there first, and was applied after.
        let applied = self.trace.confirm.and(self.trace.apply).unwrap_or_default();
        Some(self.total.saturating_sub(known + applied))
    }

    /// What this node's own disk took, beside the way to a majority: until the batch was complete,
    /// and its write and fsync.
    pub(crate) fn disk(&self, metrics: &Metrics) -> Option<(Duration, Duration)> {
        let here = self.trace.passed_on_to == 0 && self.trace.confirm.is_none();
        let handed = self.trace.sent.filter(|_| here)?;
        let batch = metrics.wal_batch_at(handed)?;
        Some((batch.append.saturating_sub(handed.since(batch.handed)), batch.fsync))
    }

    /// The stages that are known: name, when each began after the request did, and its length.
    #[cfg(feature = "otel")]
    pub(crate) fn stages(&self, metrics: &Metrics) -> Vec<(&'static str, Duration, Duration)> {
        let trace = self.trace;
        let (Some(before), Some(queue)) = (self.before(), trace.queue) else { return Vec::new() };
        let sent = before + queue;
        let mut stages = vec![("queue", before, queue)];
        if let Some((append, fsync)) = self.disk(metrics) {
            stages.push(("append", sent, append));
            stages.push(("fsync", sent + append, fsync));
        }
        let way = if trace.passed_on_to == 0 { "replicate" } else { "leader" };
        let way = trace.replicate.map(|span| (way, span));
        let mut at = sent;
        for (name, span) in [way, trace.confirm.map(|span| ("read index", span))]
            .into_iter()
            .chain([trace.apply.map(|span| ("apply", span))])
            .chain([self.answer().map(|span| ("answer", span))])
            .flatten()
        {
            stages.push((name, at, span));
            at += span;
        }
        stages
    }

    /// The stage that it did not get beyond; `None` where it has its answer.
    pub(crate) const fn unfinished(&self) -> Option<&'static str> {
        match self.trace {
            Trace { settled: Some(_), .. } | Trace { taken: None, .. } => None,
            Trace { sent: None, .. } => Some("queue"),
            Trace { passed_on_to: 0, .. } => Some("replicate"),
            _ => Some("leader"),
        }
    }
}

/// Writes the lines.
#[derive(Debug)]
pub(crate) struct SlowLog {
    /// Zero is off.
    threshold: Duration,
    budget: Mutex<Budget>,
}

#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl SlowLog {
    /// Tells requests that take at least this long; zero tells none.
    pub(crate) fn new(threshold: Duration) -> Self {
        Self { threshold, budget: Mutex::default() }
    }

    /// Tells the request, if it was slow.
    pub(crate) fn tell(&self, metrics: &Metrics, ended: &Ended<'_>) {
        if self.threshold.is_zero() || ended.total < self.threshold {
            return;
        }
        let long = match ended.nature {
            Nature::Prompt => false,
            Nature::Parked => ended.trace.waited || ended.trace.settled.is_none(),
            Nature::Stream => true,
        };
        if long {
            return;
        }
        let now = ended.started + ended.total;
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = budget.take(now);
        drop(budget);
        if let Some(left_out) = left_out {
            write(metrics, ended, left_out);
        }
    }
}

impl Budget {
    /// Room for a line, with how many were left out since the last; `None` where there is none.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let fresh = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1));
        if fresh {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES_PER_SECOND_MAX {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(core::mem::take(&mut self.left_out))
    }
}

fn write(metrics: &Metrics, ended: &Ended<'_>, left_out: u64) {
    let trace = ended.trace;
    let passed_on = trace.passed_on_to != 0;
    let (leader, here) = if passed_on { (trace.replicate, None) } else { (None, trace.replicate) };
    let disk = ended.disk(metrics);
    let subject = (!trace.subject.is_empty()).then(|| trace.subject.to_text());
    let trace_id = ended.parent.map(|parent| format!("{:032x}", parent.trace_id));
    tracing::warn!(
        method = format!("{}/{}", ended.method.service(), ended.method.method()),
        code = MethodMetrics::code_name(ended.code as usize),
        about = subject,
        total_ms = ms(ended.total),
        before_ms = ended.before().map(ms),
        queue_ms = trace.queue.map(ms),
        passed_on_to = passed_on.then_some(trace.passed_on_to),
        leader_ms = leader.map(ms),
        append_ms = disk.map(|(append, _)| ms(append)),
        fsync_ms = disk.map(|(_, fsync)| ms(fsync)),
        replicate_ms = here.map(ms),
        read_index_ms = trace.confirm.map(ms),
        apply_ms = trace.apply.map(ms),
        answer_ms = ended.answer().map(ms),
        unfinished = ended.unfinished(),
        trace_id,
        left_out = (left_out > 0).then_some(left_out),
        "slow request"
    );
}

/// Milliseconds with microseconds behind the point.
fn ms(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, MutexGuard},
    };

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::{
        observe::{Subject, WalBatch},
        types::Instant as Stamp,
    };

    /// Lines of this thread.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    struct Line<'a>(MutexGuard<'a, Vec<u8>>);

    impl io::Write for Line<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Line<'a>;

        fn make_writer(&'a self) -> Line<'a> {
            Line(self.0.lock().expect("no writer panicked"))
        }
    }

    /// What is logged when a request with this trace ends after `total`.
    fn told(
        log: &SlowLog,
        metrics: &Metrics,
        trace: &Trace,
        total: Duration,
        nature: Nature,
    ) -> String {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().json().with_writer(lines.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let method = metrics.method("quorate.kv.v1.KvService", "Put");
            let started = trace.taken.unwrap_or_else(Instant::now) - Duration::from_millis(1);
            let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
            let code = Code::Ok;
            let ended = Ended { method: &method, code, started, total, trace, parent, nature };
            log.tell(metrics, &ended);
        });
        let bytes = lines.0.lock().expect("no writer panicked").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn written() -> Trace {
        let millis = Duration::from_millis;
        Trace {
            subject: Subject::new(b"k"),
            taken: Some(Instant::now()),
            queue: Some(millis(2)),
            sent: Some(Stamp::from_nanos(5_000_000)),
            replicate: Some(millis(30)),
            apply: Some(millis(4)),
            settled: Some(millis(36)),
            ..Trace::default()
        }
    }

    #[test]
    fn a_slow_write_says_where_its_time_went() {
        let (log, metrics) = (SlowLog::new(Duration::from_millis(40)), Metrics::new());
        metrics.observe_wal_batch(WalBatch {
            handed: Stamp::from_nanos(4_000_000),
            handed_last: Stamp::from_nanos(5_000_000),
            append: Duration::from_millis(7),
            fsync: Duration::from_millis(9),
            ..WalBatch::default()
        });
        let line = told(&log, &metrics, &written(), Duration::from_millis(40), Nature::Prompt);
        let line: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
        let fields = &line["fields"];
        assert_eq!(line["level"], "WARN");
        assert_eq!(fields["message"], "slow request");
        assert_eq!(fields["method"], "quorate.kv.v1.KvService/Put");
        assert_eq!((&fields["code"], &fields["about"]), (&"OK".into(), &"k".into()));
        assert_eq!(fields["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        let spans = [
            ("total", 40.0),
            ("before", 1.0),
            ("queue", 2.0),
            ("append", 6.0),
            ("fsync", 9.0),
            ("replicate", 30.0),
            ("apply", 4.0),
            ("answer", 3.0),
        ];
        for (name, span) in spans {
            assert_eq!(fields[format!("{name}_ms")], span, "{name} in {fields}");
        }
        for absent in ["passed_on_to", "leader_ms", "read_index_ms", "unfinished", "left_out"] {
            assert!(fields[absent].is_null(), "{absent} in {fields}");
        }
    }

    #[test]
    fn a_write_that_was_passed_on_names_the_leader() {
        let (log, metrics) = (SlowLog::new(Duration::from_nanos(1)), Metrics::new());
        let trace = Trace { passed_on_to: 2, ..written() };
        let line = told(&log, &metrics, &trace, Duration::from_millis(40), Nature::Prompt);
        assert!(line.contains("\"passed_on_to\":2,\"leader_ms\":30.0"), "{line}");
        assert!(!line.contains("fsync_ms") && !line.contains("replicate_ms"), "{line}");
        let unanswered = Trace { settled: None, replicate: None, apply: None, ..trace };
        let line = told(&log, &metrics, &unanswered, Duration::from_millis(40), Nature::Prompt);
        assert!(line.contains("\"unfinished\":\"leader\""), "{line}");
    }

    #[test]
    fn what_is_quick_or_waits_by_its_nature_is_not_told() {
        let metrics = Metrics::new();
        let log = SlowLog::new(Duration::from_millis(50));
        assert_eq!(told(&log, &metrics, &written(), Duration::from_millis(49), Nature::Prompt), "");
        let log = SlowLog::new(Duration::ZERO);
        assert_eq!(
            told(&log, &metrics, &written(), Duration::from_secs(9), Nature::Prompt),
            "",
            "off"
        );
        let log = SlowLog::new(Duration::from_nanos(1));
        let in_line = Trace { waited: true, ..written() };
        assert_eq!(told(&log, &metrics, &in_line, Duration::from_secs(9), Nature::Parked), "");
        assert_ne!(
            told(&log, &metrics, &written(), Duration::from_secs(9), Nature::Parked),
            "",
            "at once"
        );
        for trace in [Trace::default(), written()] {
            let long = Duration::from_secs(9);
            assert_eq!(told(&log, &metrics, &trace, long, Nature::Stream), "", "streams never");
        }
    }

    #[test]
    fn of_a_flood_some_are_told_and_the_others_counted() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let told = (0..25).filter(|_| budget.take(now).is_some()).count();
        assert_eq!(told, 10);
        assert_eq!(budget.take(now + Duration::from_secs(1)), Some(15));
        assert_eq!(budget.take(now + Duration::from_secs(1)), Some(0));
    }
}
