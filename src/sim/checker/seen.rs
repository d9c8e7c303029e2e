//! What a search has been to: which operations were done in which state.
//!
//! Kept under a hash, compared in full. The operations that must happen are kept from the first
//! one on that is not done, so that an entry stays as small as clients are concurrent.

use core::hash::{Hash, Hasher};

use crate::types::Rng;

/// A set of operations done, those that must happen and those that may apart.
#[derive(Debug)]
pub(crate) struct Done {
    required: Vec<u64>,
    optional: Vec<u64>,
    /// Each entry's place: of those that must happen the number, of the others its complement.
    place: Vec<Result<u32, u32>>,
    /// All below this word are done.
    base: usize,
    /// No word from here on has anything done.
    end: usize,
    hash: u64,
}

impl Done {
    /// Nothing done of entries of which some must happen.
    pub(crate) fn new(required: impl Iterator<Item = bool>) -> Self {
        let (mut must, mut may) = (0_u32, 0_u32);
        let place: Vec<_> = required
            .map(|required| {
                let count = if required { &mut must } else { &mut may };
                *count += 1;
                if required { Ok(*count - 1) } else { Err(*count - 1) }
            })
            .collect();
        Self {
            required: vec![0; must as usize / 64 + 1],
            optional: vec![0; (may as usize).div_ceil(64)],
            place,
            base: 0,
            end: 0,
            hash: 0,
        }
    }

    pub(crate) fn is_set(&self, entry: usize) -> bool {
        let (words, at) = match self.place[entry] {
            Ok(at) => (&self.required, at),
            Err(at) => (&self.optional, at),
        };
        words[at as usize / 64] & (1 << (at % 64)) != 0
    }

    pub(crate) fn set(&mut self, entry: usize) {
        match self.place[entry] {
            Ok(at) => {
                let word = at as usize / 64;
                self.required[word] |= 1 << (at % 64);
                self.hash ^= mix(u64::from(at));
                self.end = self.end.max(word + 1);
                while self.required[self.base] == u64::MAX {
                    self.base += 1;
                }
            }
            Err(at) => self.optional[at as usize / 64] |= 1 << (at % 64),
        }
    }

    pub(crate) fn unset(&mut self, entry: usize) {
        match self.place[entry] {
            Ok(at) => {
                let word = at as usize / 64;
                self.required[word] &= !(1 << (at % 64));
                self.hash ^= mix(u64::from(at));
                self.base = self.base.min(word);
                while self.end > 0 && self.required[self.end - 1] == 0 {
                    self.end -= 1;
                }
            }
            Err(at) => self.optional[at as usize / 64] &= !(1 << (at % 64)),
        }
    }

    fn window(&self) -> &[u64] {
        &self.required[self.base..self.end.max(self.base)]
    }
}

/// Even bits of a number, the same everywhere.
const fn mix(number: u64) -> u64 {
    Rng::new(number).next_u64()
}

/// A hash that is the same everywhere.
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

/// A place of the search.
#[derive(Debug)]
struct Place<S> {
    hash: u64,
    base: usize,
    window: Box<[u64]>,
    state: S,
    /// The sets of optional operations it was reached with; none contains another.
    used: Vec<Box<[u64]>>,
}

/// The places that a search has been to.
#[derive(Debug)]
pub(crate) struct Seen<S> {
    places: Vec<Place<S>>,
    /// Open addressing: 0 is free, else a place's number and one.
    table: Vec<u32>,
}

impl<S> Default for Seen<S> {
    fn default() -> Self {
        Self { places: Vec::new(), table: vec![0; 1024] }
    }
}

impl<S: Clone + Eq + Hash> Seen<S> {
    /// Whether this is new: not reached before with as few optional operations.
    pub(crate) fn insert(&mut self, done: &Done, state: &S) -> bool {
        let mut hasher = Mixer(done.hash);
        state.hash(&mut hasher);
        let hash = hasher.finish();
        let mut slot = self.slot(hash);
        while let Some(at) = self.table[slot].checked_sub(1) {
            let place = &mut self.places[at as usize];
            if place.hash == hash
                && place.base == done.base
                && *place.window == *done.window()
                && place.state == *state
            {
                return add(&mut place.used, &done.optional);
            }
            slot = (slot + 1) % self.table.len();
        }
        self.places.push(Place {
            hash,
            base: done.base,
            window: done.window().into(),
            state: state.clone(),
            used: vec![done.optional.as_slice().into()],
        });
        self.table[slot] = u32::try_from(self.places.len()).expect("memory ends before");
        if self.places.len() * 2 > self.table.len() {
            self.grow();
        }
        true
    }

    fn slot(&self, hash: u64) -> usize {
        usize::try_from(hash & (self.table.len() as u64 - 1)).expect("it is below the length")
    }

    fn grow(&mut self) {
        self.table = vec![0; self.table.len() * 2];
        for at in 0..self.places.len() {
            let mut slot = self.slot(self.places[at].hash);
            while self.table[slot] > 0 {
                slot = (slot + 1) % self.table.len();
            }
            self.table[slot] = u32::try_from(at + 1).expect("memory ends before");
        }
    }
}

/// Adds a set unless one within it is there; those that it lies within go.
fn add(sets: &mut Vec<Box<[u64]>>, new: &[u64]) -> bool {
    let within = |a: &[u64], b: &[u64]| a.iter().zip(b).all(|(a, b)| a & !b == 0);
    if sets.iter().any(|set| within(set, new)) {
        return false;
    }
    sets.retain(|set| !within(new, set));
    sets.push(new.into());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_new_until_reached_with_as_few_optional_operations() {
        let mut done = Done::new([true, false, false, true].into_iter());
        let mut seen = Seen::default();
        done.set(0);
        done.set(1);
        assert!(seen.insert(&done, &7_u32), "never seen");
        assert!(seen.insert(&done, &8_u32), "another state");
        done.set(2);
        assert!(!seen.insert(&done, &7), "only more optional ones");
        done.unset(1);
        assert!(seen.insert(&done, &7), "others");
        done.unset(2);
        assert!(seen.insert(&done, &7), "fewer");
        done.set(1);
        assert!(!seen.insert(&done, &7));
        done.set(3);
        assert!(seen.insert(&done, &7), "more of those that must happen");
    }

    #[test]
    fn many_places_are_told_apart() {
        let mut seen = Seen::default();
        let mut done = Done::new((0..3_000).map(|_| true));
        for entry in 0..3_000 {
            done.set(entry);
            assert!(seen.insert(&done, &0_u8));
            assert!(!seen.insert(&done, &0_u8));
        }
        for entry in (0..3_000).rev() {
            assert!(!seen.insert(&done, &0_u8));
            done.unset(entry);
        }
        assert!(seen.insert(&done, &0_u8), "nothing done");
    }
}
