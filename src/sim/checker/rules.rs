//! The rules that a history is judged by, each with its name. The names are stable.

/// Each rule's name and what it demands. `docs/history.md` says the same.
pub const RULES: &[(&str, &str)] = &[
    (
        "linearizable",
        "an order of the operations explains every answer, and respects who returned before whom",
    ),
    (
        "real-time-order",
        "what returned before a call is at or below the revision of that call's answer; a write's is above",
    ),
    ("revision-unique", "one revision is one change"),
    ("read-value", "a read tells what the key held at the revision that it names"),
    ("compare-value", "a compare is judged by what the key held"),
    ("phantom-value", "nobody sees a value that nobody wrote before"),
    ("write-once", "a write happens once at most"),
    ("refused-seen", "what was refused is never seen"),
    ("stale-read-goes-back", "a client's stale reads never go back to a lower revision"),
    ("watch-order", "a watch tells revisions in ascending order, each change once"),
    ("watch-atomic", "a watch never splits a revision"),
    ("watch-gap", "a watch leaves no change of its range out"),
    ("watch-value", "a watch tells what was written at that revision"),
    ("watch-range", "a watch tells only keys of its range, and revisions after its start"),
    ("watch-progress", "after a progress notice nothing at or below its revision follows"),
    ("watch-compacted", "a watch is turned away only from what somebody compacted"),
    ("session-unique", "no two sessions have one number"),
    ("session-ended", "a session that was closed is not renewed or used"),
    ("session-lost", "a session lives for its TTL after its last renewal"),
    ("lock-token-grows", "a later grant of a lock has a larger token"),
    ("lock-token-unique", "each token of a lock is granted once"),
    ("lock-token-phantom", "nobody is told a token that was not granted"),
    ("lock-exclusive", "a lock is granted again only after a release, a closed session or its TTL"),
    ("lock-holder", "a description of a lock is true at the revision that it names"),
    ("lock-release", "a lock is released once, by the token that holds it"),
    ("lock-renewal", "a lock is renewed only while the token holds it"),
    ("lock-lost", "a holder keeps its lock until its TTL may have run out"),
    ("lock-required", "a write that requires a lock takes effect only while the token holds it"),
    ("guard-stale-token", "the guarded resource takes no token below the largest that it has seen"),
    (
        "guard-wrong-refusal",
        "the guarded resource takes a token as large as any that it can have seen",
    ),
    ("event-agree", "all are told the same event at a position, and at a version of a stream"),
    ("event-order", "a later append gets later positions"),
    ("event-dense", "versions of a stream and positions have no holes"),
    ("event-acknowledged", "an acknowledged append stands where it was acknowledged"),
    ("event-once", "an event is recorded once"),
    ("event-phantom", "nobody is told an event that nobody appended before"),
    ("event-refused", "the events of a refused append are never told"),
    ("event-lost", "a read of a stream has every event that was acknowledged before"),
    (
        "event-expected-version",
        "an append happens only at the version that it expects, and is refused only at another",
    ),
    ("subscription-gap", "a subscription begins where asked, and leaves out and repeats nothing"),
    (
        "discovery-visible",
        "a registered instance is listed until it is taken out or its TTL may have run out",
    ),
    (
        "discovery-gone",
        "an instance is not listed before it is registered or after it is taken out",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = RULES.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
