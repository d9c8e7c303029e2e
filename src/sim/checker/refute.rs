//! A quick look for contradictions, before the search has to try every order to find none.
//!
//! Values that one operation alone can have written hold for a stretch of time: from a moment up to
//! the first return of those that wrote or saw it, to a moment from the last of their calls on. Two
//! such stretches of one key cannot overlap (Gibbons and Korach, "Testing shared memories", 1997).
//! What is found is certain; what is not found may still be illegal.

use std::collections::BTreeMap;

use crate::sim::checker::model::{Entry, Model};

/// What is known of one value of one key.
#[derive(Clone, Copy, Debug)]
struct Zone {
    place: u32,
    writers: u32,
    observed: bool,
    /// The first call of a writer.
    written_from: usize,
    /// The first return of an operation that wrote or saw it.
    first_return: usize,
    /// The last call of one.
    last_call: usize,
}

/// Whether what returned up to a line contradicts itself.
pub(super) fn refute<M: Model>(model: &M, entries: &[Entry<M::Op>], line: usize) -> bool {
    let zones = zones(model, entries, line);
    if zones.iter().any(|zone| zone.observed && zone.first_return < zone.written_from) {
        return true;
    }
    let mut held: BTreeMap<u32, Vec<Zone>> = BTreeMap::new();
    for zone in zones.iter().filter(|zone| zone.writers == 1 && zone.first_return != usize::MAX) {
        held.entry(zone.place).or_default().push(*zone);
    }
    held.values_mut().any(|zones| overlap(zones))
}

fn zones<M: Model>(model: &M, entries: &[Entry<M::Op>], line: usize) -> Vec<Zone> {
    let mut zones: BTreeMap<u32, Zone> = BTreeMap::new();
    let (mut needs, mut makes) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|entry| entry.called <= line) {
        needs.clear();
        makes.clear();
        let must = entry.returned <= line;
        if must {
            model.needs(&entry.op, &mut needs);
        }
        model.makes(&entry.op, &mut makes);
        let saw = needs.iter().map(|thing| (*thing, false));
        for (thing, wrote) in saw.chain(makes.iter().map(|thing| (*thing, true))) {
            let Some(place) = model.place(thing) else { continue };
            let zone = zones.entry(thing).or_insert(Zone {
                place,
                writers: 0,
                observed: false,
                written_from: usize::MAX,
                first_return: usize::MAX,
                last_call: 0,
            });
            if wrote {
                zone.writers += 1;
                zone.written_from = zone.written_from.min(entry.called);
            } else {
                zone.observed = true;
            }
            if must {
                zone.first_return = zone.first_return.min(entry.returned);
                zone.last_call = zone.last_call.max(entry.called);
            }
        }
    }
    zones.into_values().collect()
}

/// Whether two values of one key must hold at one moment.
fn overlap(zones: &mut [Zone]) -> bool {
    // Those that hold throughout a stretch, by where it begins.
    let mut stretches: Vec<(usize, usize)> = zones
        .iter()
        .filter(|zone| zone.first_return < zone.last_call)
        .map(|zone| (zone.first_return, zone.last_call))
        .collect();
    stretches.sort_unstable();
    if stretches.windows(2).any(|pair| pair[1].0 < pair[0].1) {
        return true;
    }
    // They follow each other now: another value that must hold for a moment fits in none of them.
    zones.iter().filter(|zone| zone.last_call < zone.first_return).any(|zone| {
        let before = stretches.partition_point(|(from, _)| *from < zone.last_call);
        before.checked_sub(1).is_some_and(|at| zone.first_return < stretches[at].1)
    })
}
