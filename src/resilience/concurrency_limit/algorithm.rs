//! The algorithms, each with what it remembers: from the limit and what was seen to the next limit.
//!
//! The bounds are the caller's. Latencies are nanoseconds as `f64`; a limit keeps its fraction, so
//! that small steps add up.

use crate::{
    resilience::concurrency_limit::{Aimd, Algorithm, Gradient2, Vegas},
    types::Rng,
};

/// How many samples the long average is a plain mean of, before it forgets.
const WARM_UP: u32 = 10;

/// What an algorithm judges at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The latency in nanoseconds; `None` where nothing was answered.
    pub(super) latency: Option<f64>,
    /// How many calls were in flight.
    pub(super) in_flight: f64,
    /// Whether the other side dropped a call for overload.
    pub(super) dropped: bool,
}

/// An algorithm and its memory.
#[derive(Clone, Debug)]
pub(super) enum State {
    Fixed,
    Aimd(Aimd),
    Vegas(Vegas, LeastLatency),
    Gradient2(Gradient2, LongLatency),
}

impl State {
    pub(super) fn new(algorithm: Algorithm, mut rng: Rng) -> Self {
        match algorithm {
            Algorithm::Fixed => Self::Fixed,
            Algorithm::Aimd(aimd) => Self::Aimd(aimd),
            Algorithm::Vegas(vegas) => {
                let jitter = LeastLatency::jitter(&mut rng);
                Self::Vegas(vegas, LeastLatency { nanos: None, samples: 0, jitter, rng })
            }
            Algorithm::Gradient2(gradient) => {
                Self::Gradient2(gradient, LongLatency { nanos: 0.0, samples: 0 })
            }
        }
    }

    /// The limit after what was seen, before it is drawn into its bounds.
    pub(super) fn next(&mut self, limit: f64, seen: Seen) -> f64 {
        match self {
            Self::Fixed => limit,
            Self::Aimd(aimd) => next_aimd(*aimd, limit, seen),
            Self::Vegas(vegas, least) => next_vegas(*vegas, least, limit, seen),
            Self::Gradient2(gradient, long) => next_gradient(*gradient, long, limit, seen),
        }
    }

    /// The latency that later ones are held against, in nanoseconds.
    pub(super) const fn baseline(&self) -> Option<f64> {
        match self {
            Self::Fixed | Self::Aimd(_) => None,
            Self::Vegas(_, least) => least.nanos,
            Self::Gradient2(_, long) if long.samples > 0 => Some(long.nanos),
            Self::Gradient2(..) => None,
        }
    }
}

/// Whether so little was in flight that the sample says nothing for a higher limit.
fn is_app_limited(limit: f64, seen: Seen) -> bool {
    seen.in_flight * 2.0 < limit.floor()
}

fn next_aimd(aimd: Aimd, limit: f64, seen: Seen) -> f64 {
    let late = seen.latency.is_some_and(|nanos| nanos > aimd.latency_max.as_nanos() as f64);
    if seen.dropped || late {
        (limit * aimd.backoff).floor()
    } else if is_app_limited(limit, seen) {
        limit
    } else {
        limit + 1.0
    }
}

/// The least latency seen since the last probe.
#[derive(Clone, Debug)]
pub(super) struct LeastLatency {
    nanos: Option<f64>,
    /// Since the last probe.
    samples: u64,
    /// Which share of the distance to the next probe is kept; chance spreads the probes of many.
    jitter: f64,
    rng: Rng,
}

impl LeastLatency {
    /// Evenly from 0.5 to 1.
    fn jitter(rng: &mut Rng) -> f64 {
        0.5 + (rng.next_u64() >> 11) as f64 / (1_u64 << 54) as f64
    }

    /// Takes a latency in; `true` where it became the least one, which leaves the limit alone.
    fn takes(&mut self, nanos: f64, limit: f64, probe: u32) -> bool {
        self.samples += 1;
        let probes = self.jitter * f64::from(probe) * limit <= self.samples as f64;
        if probes {
            self.jitter = Self::jitter(&mut self.rng);
            self.samples = 0;
        }
        let least = probes || self.nanos.is_none_or(|least| nanos < least);
        if least {
            self.nanos = Some(nanos);
        }
        least
    }
}

fn next_vegas(vegas: Vegas, least: &mut LeastLatency, limit: f64, seen: Seen) -> f64 {
    let step = limit.log10().floor().max(1.0);
    let mut queued = 0.0;
    if let Some(nanos) = seen.latency {
        if least.takes(nanos, limit, vegas.probe) && !seen.dropped {
            return limit;
        }
        let least = least.nanos.unwrap_or(nanos);
        queued = (limit * (1.0 - least / nanos)).ceil();
    }
    let next = if seen.dropped {
        limit - step
    } else if is_app_limited(limit, seen) {
        return limit;
    } else if queued <= step {
        limit + vegas.beta * step
    } else if queued < vegas.alpha * step {
        limit + step
    } else if queued > vegas.beta * step {
        limit - step
    } else {
        return limit;
    };
    smooth(limit, next, vegas.smoothing)
}

/// The mean latency of long: a plain mean at first, then exponential.
#[derive(Clone, Debug)]
pub(super) struct LongLatency {
    nanos: f64,
    samples: u32,
}

impl LongLatency {
    fn add(&mut self, nanos: f64, window: u32) {
        if self.samples < WARM_UP {
            self.samples += 1;
            self.nanos += (nanos - self.nanos) / f64::from(self.samples);
        } else {
            let weight = 2.0 / (f64::from(window) + 1.0);
            self.nanos += (nanos - self.nanos) * weight;
        }
    }
}

fn next_gradient(gradient: Gradient2, long: &mut LongLatency, limit: f64, seen: Seen) -> f64 {
    const LEAST: f64 = 0.5;
    let mut slope = 1.0;
    if let Some(nanos) = seen.latency {
        long.add(nanos, gradient.long_window);
        slope = (gradient.tolerance * long.nanos / nanos).clamp(LEAST, 1.0);
        // After an overload the long average comes down faster, or the limit would grow too far. Not
        // while it is a plain mean.
        if long.samples == WARM_UP && long.nanos / nanos > 2.0 {
            long.nanos *= 0.95;
        }
    }
    if seen.dropped {
        slope = LEAST;
    } else if is_app_limited(limit, seen) {
        return limit;
    }
    smooth(limit, limit * slope + f64::from(gradient.queue), gradient.smoothing)
}

fn smooth(limit: f64, next: f64, smoothing: f64) -> f64 {
    limit * (1.0 - smoothing) + next * smoothing
}
