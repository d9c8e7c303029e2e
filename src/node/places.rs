//! Where each open call stands: a place that the caller claims, the driver stamps, and the caller
//! reads when it has its answer.
//!
//! No lock and no allocation for a call. Without a free place a call goes on without stamps.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::types::{Instant, NodeId};

/// How many calls have a place at the same time; 32 bytes each.
const PLACES: u64 = 4_096;
/// How many places a call tries.
const TRIES: u64 = 4;

/// A call's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaceId(u16);

impl PlaceId {
    /// None at all.
    pub(crate) const NONE: Self = Self(u16::MAX);
}

/// What a call asks for, as far as its stages differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SentKind {
    Write,
    Read,
    Other,
}

/// A call that was proposed or passed on in this turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) place: PlaceId,
    pub(crate) leader: NodeId,
    pub(crate) kind: SentKind,
}

#[derive(Debug, Default)]
struct Place {
    /// The call that has it; 0 is none.
    sequence: AtomicU64,
    taken: AtomicU64,
    sent: AtomicU64,
    leader: AtomicU64,
}

/// All places.
#[derive(Debug)]
pub(crate) struct Places(Box<[Place]>);

impl Default for Places {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Place::default()).collect())
    }
}

impl Places {
    /// Claims a place for a call that was taken at this time.
    pub(crate) fn claim(&self, sequence: u64, taken: Instant) -> PlaceId {
        for n in 0..TRIES {
            let index = (sequence + n * (PLACES / TRIES)) % PLACES;
            let index = u16::try_from(index).expect("there are fewer places");
            let place = &self.0[usize::from(index)];
            if place.sequence.compare_exchange(0, sequence, Relaxed, Relaxed).is_ok() {
                place.taken.store(taken.as_nanos(), Relaxed);
                place.sent.store(0, Relaxed);
                return PlaceId(index);
            }
        }
        PlaceId::NONE
    }

    /// The call was proposed or passed on; returns when it was taken.
    pub(crate) fn stamp(&self, sent: Sent, now: Instant) -> Option<Instant> {
        let place = self.0.get(usize::from(sent.place.0))?;
        place.leader.store(sent.leader.value(), Relaxed);
        place.sent.store(now.as_nanos(), Relaxed);
        Some(Instant::from_nanos(place.taken.load(Relaxed)))
    }

    /// When the call was sent last, and to whom.
    pub(crate) fn sent(&self, place: PlaceId) -> Option<(Instant, NodeId)> {
        let place = self.0.get(usize::from(place.0))?;
        let sent = Some(place.sent.load(Relaxed)).filter(|sent| *sent != 0)?;
        Some((Instant::from_nanos(sent), NodeId::new(place.leader.load(Relaxed))))
    }

    /// The call has ended. A driver that has yet to send it may stamp the place's next call: then
    /// that one's stages are told wrongly, and nothing else is.
    pub(crate) fn give_back(&self, place: PlaceId) {
        if let Some(place) = self.0.get(usize::from(place.0)) {
            place.sequence.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_call_keeps_its_place_while_others_come_and_go() {
        let places = Places::default();
        let at = Instant::from_nanos;
        let slow = places.claim(1, at(5));
        assert_eq!(places.sent(slow), None);
        let sent = Sent { place: slow, leader: NodeId::new(2), kind: SentKind::Write };
        assert_eq!(places.stamp(sent, at(9)), Some(at(5)));
        for sequence in 2..3 * PLACES {
            let place = places.claim(sequence, at(6));
            assert_ne!(place, slow);
            places.give_back(place);
        }
        assert_eq!(places.sent(slow), Some((at(9), NodeId::new(2))));
        places.give_back(slow);
        assert_eq!(places.sent(places.claim(1 + PLACES, at(7))), None, "not the stamp of before");
    }

    #[test]
    fn without_a_free_place_a_call_goes_unstamped() {
        let places = Places::default();
        let claimed = (1..=PLACES).filter(|n| places.claim(*n, Instant::ZERO) != PlaceId::NONE);
        assert_eq!(claimed.count(), 4_096);
        assert_eq!(places.claim(9_999, Instant::ZERO), PlaceId::NONE);
        assert_eq!(places.sent(PlaceId::NONE), None);
        places.give_back(PlaceId::NONE);
    }
}
