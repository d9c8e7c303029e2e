//! One machine for all calls, or one for each key of theirs, in bounded number.
//!
//! An idle machine is as good as a new one, so it is dropped where room is needed. Where all are in
//! use, the calls of further keys share one. Nothing here knows what the machines do.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Request;
use tonic::body::Body;

use crate::types::Instant;

/// Tells the key of a request.
pub(super) type KeyOf = Arc<dyn for<'a> Fn(&'a Request<Body>) -> Cow<'a, str> + Send + Sync>;

/// The most keys, unless told otherwise.
pub(super) const KEYS_MAX: usize = 1_024;

/// How often idle machines are looked for, at most: a flood of new keys must not make each call
/// walk over all.
const SWEEP: Duration = Duration::from_millis(100);

/// What can be dropped unseen.
pub(super) trait Idle {
    /// Whether a new one would do as well.
    fn is_idle(&self, now: Instant) -> bool;
}

/// The machines of one layer.
pub(super) struct Keyed<M> {
    key_of: Option<KeyOf>,
    keys_max: usize,
    /// Without keys the only one; else that of the calls whose key found no room.
    shared: Arc<M>,
    machines: Mutex<Machines<M>>,
}

struct Machines<M> {
    by_key: HashMap<Arc<str>, Arc<M>>,
    sweep_at: Instant,
}

impl<M: Idle> Keyed<M> {
    pub(super) fn new(key_of: Option<KeyOf>, keys_max: usize, shared: Arc<M>) -> Self {
        let machines = Machines { by_key: HashMap::new(), sweep_at: Instant::ZERO };
        Self { key_of, keys_max, shared, machines: Mutex::new(machines) }
    }

    /// The machine of a request's key; `make` makes one for a new key.
    pub(super) fn of(
        &self,
        request: &Request<Body>,
        now: Instant,
        make: impl FnOnce(&Arc<str>) -> Arc<M>,
    ) -> Arc<M> {
        let Some(key_of) = &self.key_of else { return Arc::clone(&self.shared) };
        let key = key_of(request);
        let mut machines = self.machines();
        if let Some(machine) = machines.by_key.get(&*key) {
            return Arc::clone(machine);
        }
        if machines.by_key.len() >= self.keys_max && now >= machines.sweep_at {
            // A machine that somebody else holds has calls under way.
            machines.by_key.retain(|_, of| Arc::strong_count(of) > 1 || !of.is_idle(now));
            machines.sweep_at = now.after(SWEEP);
        }
        if machines.by_key.len() >= self.keys_max {
            return Arc::clone(&self.shared);
        }
        let key: Arc<str> = key.into();
        let machine = make(&key);
        machines.by_key.insert(key, Arc::clone(&machine));
        machine
    }

    /// That of a key, if there is one.
    pub(super) fn get(&self, key: &str) -> Option<Arc<M>> {
        self.machines().by_key.get(key).cloned()
    }

    /// That of all calls, or of the calls whose key found no room.
    pub(super) const fn shared(&self) -> &Arc<M> {
        &self.shared
    }

    /// The shared one and all with a key, in no order.
    pub(super) fn all(&self) -> Vec<Arc<M>> {
        let mut all = vec![Arc::clone(&self.shared)];
        all.extend(self.machines().by_key.values().cloned());
        all
    }

    /// How many keys have a machine.
    pub(super) fn len(&self) -> usize {
        self.machines().by_key.len()
    }

    fn machines(&self) -> MutexGuard<'_, Machines<M>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Idle> fmt::Debug for Keyed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("keys", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    #[derive(Default)]
    struct Machine(AtomicBool);

    impl Idle for Machine {
        fn is_idle(&self, _: Instant) -> bool {
            !self.0.load(Relaxed)
        }
    }

    fn path(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).expect("a path")
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_idle_ones_make_room() {
        let key_of: KeyOf = Arc::new(|request| request.uri().path().into());
        let keyed = Keyed::new(Some(key_of), 2, Arc::new(Machine::default()));
        let at = |millis| Instant::ZERO.after(Duration::from_millis(millis));
        let of = |name, now| keyed.of(&path(name), now, |_| Arc::new(Machine::default()));
        let a = of("/a", at(1));
        a.0.store(true, Relaxed);
        let b = of("/b", at(1));
        assert!(Arc::ptr_eq(&a, &of("/a", at(1))) && !Arc::ptr_eq(&a, &b));
        assert!(Arc::ptr_eq(&of("/c", at(1)), keyed.shared()), "both are in use");
        drop((a, b));
        assert!(Arc::ptr_eq(&of("/c", at(2)), keyed.shared()), "it was just looked for idle ones");
        assert!(!Arc::ptr_eq(&of("/c", at(101)), keyed.shared()));
        assert!(keyed.get("/a").is_some() && keyed.get("/b").is_none(), "the idle one went");
        assert_eq!((keyed.len(), keyed.all().len()), (2, 3));
    }

    #[test]
    fn without_keys_there_is_one() {
        let keyed = Keyed::new(None, KEYS_MAX, Arc::new(Machine::default()));
        let one = keyed.of(&path("/a"), Instant::ZERO, |_| unreachable!("there is one"));
        assert!(Arc::ptr_eq(&one, keyed.shared()));
    }
}
