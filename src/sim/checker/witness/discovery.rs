//! Discovery: what is registered and acknowledged is listed until it is taken out, or until its
//! TTL may have run out; nothing else is.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::{
    checker::{
        model::expiry_min,
        ops::{End, Op},
        witness::{
            judge::{Judge, stamp},
            timeline::{Timeline, Version},
        },
    },
    history::{Answer, Call},
};

const LISTED: &str = "listed";

/// What is known of one instance.
#[derive(Debug, Default)]
struct Instance<'a> {
    line: Timeline<'a>,
    /// Registrations and removals of unknown outcome.
    open: Vec<usize>,
}

/// Judges discovery.
pub(super) fn judge<'a>(judge: &mut Judge<'a>) {
    let mut services: BTreeMap<&'a str, BTreeMap<&'a str, Instance<'a>>> = BTreeMap::new();
    let mut resolves = Vec::new();
    for (at, op) in judge.ops.iter().enumerate() {
        let stamp = stamp(op);
        let mut changed = |service: &'a str, instance: &'a str, value: Option<&'a str>| {
            let of = services.entry(service).or_default().entry(instance).or_default();
            match stamp {
                Some(stamp) => {
                    let (at_revision, op) = (stamp.revision, Some(at));
                    let exact = true;
                    of.line.add(Version { at: at_revision, value, op, sure: true, exact });
                }
                None if !matches!(op.end, End::Refused { .. }) => of.open.push(at),
                None => {}
            }
        };
        match op.call {
            Call::Register { service, instance, .. } => changed(service, instance, Some(LISTED)),
            Call::Deregister { service, instance } => {
                changed(service, instance, None);
                if let (End::Ok(_), Some(stamp)) = (op.end, stamp) {
                    // It found what it took out.
                    resolves.push((stamp.revision.saturating_sub(1), at));
                }
            }
            Call::Resolve { .. } => resolves.extend(stamp.map(|stamp| (stamp.revision, at))),
            _ => {}
        }
    }
    resolves.sort_by_key(|(revision, at)| (*revision, judge.ops[*at].returned));
    for (revision, at) in resolves {
        check(judge, &mut services, at, revision);
    }
}

fn check<'a>(
    judge: &mut Judge<'a>,
    services: &mut BTreeMap<&'a str, BTreeMap<&'a str, Instance<'a>>>,
    at: usize,
    revision: u64,
) {
    match (judge.ops[at].call, judge.ops[at].end) {
        (Call::Resolve { service }, End::Ok(Answer::Resolved { instances, .. })) => {
            let known = services.entry(service).or_default();
            let listed: BTreeSet<&str> = instances.iter().map(String::as_str).collect();
            for name in &listed {
                check_listed(judge, known.get(name), at, revision, name);
            }
            for (name, instance) in known {
                if !listed.contains(name) {
                    check_absent(judge, instance, at, revision, name);
                }
            }
        }
        (Call::Deregister { service, instance }, _) => {
            let known = services.get(service.as_str()).and_then(|all| all.get(instance.as_str()));
            check_listed(judge, known, at, revision, instance);
        }
        _ => {}
    }
}

/// Operations of unknown outcome that may explain what was found.
fn open<'o>(
    judge: &'o Judge<'_>,
    instance: &'o Instance<'_>,
    at: usize,
    revision: u64,
) -> impl Iterator<Item = &'o Op<'o>> {
    let returned = judge.ops[at].returned;
    instance.open.iter().filter_map(move |open| {
        let op = &judge.ops[*open];
        let early = judge.floors[*open].revision <= revision;
        (op.called < returned && early && *open != at).then_some(op)
    })
}

fn check_listed(
    judge: &mut Judge<'_>,
    instance: Option<&Instance<'_>>,
    at: usize,
    revision: u64,
    name: &str,
) {
    let Some(instance) = instance else {
        let why = format!("nobody had registered {name}");
        return judge.find("discovery-gone", at, why, Vec::new());
    };
    let version = instance.line.at(revision);
    let ended = instance.line.ended(version, revision);
    let explained =
        open(judge, instance, at, revision).any(|op| matches!(op.call, Call::Register { .. }));
    if explained || (version.value.is_some() && ended.is_none()) {
        return;
    }
    let why = match (version.op, ended) {
        (_, Some(ended)) => format!("{name} was found to be gone at revision {ended}"),
        (Some(op), _) => format!("{name} was taken out by {}", judge.ops[op].words()),
        (None, _) => format!("nobody had registered {name}"),
    };
    judge.find("discovery-gone", at, why, Vec::new());
}

fn check_absent(
    judge: &mut Judge<'_>,
    instance: &mut Instance<'_>,
    at: usize,
    revision: u64,
    name: &str,
) {
    let version = instance.line.at(revision);
    let (Some(by), Some(_)) = (version.op, version.value) else { return };
    let until = judge.ops[at].return_time;
    let may_have_gone = |op: &Op<'_>| match op.call {
        Call::Register { ttl_ms, .. } => expiry_min(op.call_time, *ttl_ms) <= until,
        _ => true,
    };
    let explained =
        may_have_gone(&judge.ops[by]) || open(judge, instance, at, revision).any(may_have_gone);
    if explained {
        instance.line.end(version, revision);
        return;
    }
    let why =
        format!("{name} is missing: {}, and its time cannot have run out", judge.ops[by].words());
    judge.find("discovery-visible", at, why, vec![format!("a list with {name}")]);
}
