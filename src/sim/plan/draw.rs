//! Draws a plan from a seed: swarm testing. Each fault family is on or off, from a chance of its
//! own, because a run with everything at once never gets as far as a run with three things.

use crate::{
    sim::{
        plan::{DiskFault, Fault, FaultFamily, LEADER, Plan, Settings, Timed, VERSION},
        workload::{Family, Intent, Planned, RENEWED_TTL_MS, Shape, generate},
    },
    types::Rng,
};

/// How often the client renews that does nothing else.
const RENEWALS: u64 = 150;
/// When the faults begin: the cluster is founded by then.
const FAULTS_FROM_MS: u64 = 1_500;

/// Draws the plan of a seed.
#[must_use]
pub fn draw(seed: u64) -> Plan {
    let root = Rng::new(seed);
    let settings = settings(seed, &mut root.stream("settings"));
    let families = families(&mut root.stream("families"));
    let mut faults = Vec::new();
    for &family in &families {
        let mut rng = root.stream(&format!("faults {family:?}"));
        let heavy = families.len() < 4;
        for _ in 0..1 + rng.below(if heavy { 8 } else { 4 }) {
            let span = settings.faults_until_ms.saturating_sub(FAULTS_FROM_MS).max(1);
            let at_ms = FAULTS_FROM_MS + rng.below(span);
            let fault = fault(family, &settings, &mut rng);
            faults.extend(fault.map(|fault| Timed { at_ms, fault }));
        }
    }
    let company = in_company(&faults, &families, &settings, &mut root.stream("company"));
    faults.extend(company);
    spare_a_majority(&settings, &mut faults);
    faults.sort_by_key(|timed| timed.at_ms);
    let mut intents =
        generate(&shape(&settings, &mut root.stream("shape")), &mut root.stream("intents"));
    in_bursts(&mut intents, &mut root.stream("bursts"));
    at_the_edge(&mut intents, &mut root.stream("edge"));
    intents.extend(keeper(&intents, &settings, &mut root.stream("keeper")));
    Plan { settings, faults, intents }
}

fn settings(seed: u64, rng: &mut Rng) -> Settings {
    let nodes = [3, 3, 3, 3, 5, 5, 1, 2, 4][pick(rng, 9)];
    let one_of = |rng: &mut Rng, of: &[u64]| of[pick(rng, of.len())];
    let latency = one_of(rng, &[50, 200, 1_000, 5_000]);
    let sync = one_of(rng, &[50, 500, 2_000, 10_000]);
    let apply = one_of(rng, &[20, 200, 2_000]);
    let heartbeat_ms = one_of(rng, &[50, 50, 100]);
    let clocks = rng.below(2) == 0;
    let mut each = |bound: u64| -> Vec<i64> {
        let one = |rng: &mut Rng| rng.below(2 * bound + 1).cast_signed() - bound.cast_signed();
        (0..nodes).map(|_| if clocks { one(rng) } else { 0 }).collect()
    };
    let (drift_ppm, skew_ms) = (each(20_000), each(10_000));
    Settings {
        quorate_plan: VERSION,
        seed,
        nodes,
        readers: rng.below(3),
        faults_until_ms: 29_500 + rng.below(5_000),
        heartbeat_ms,
        election_ms: (heartbeat_ms * 6, heartbeat_ms * 12),
        retained_log_bytes: one_of(rng, &[10, 10, 1_000, 64_000, 1 << 20]),
        segment_bytes: one_of(rng, &[4_096, 8_192, 32_768, 262_144]),
        retained_revisions: one_of(rng, &[10, 50, 100_000]),
        latency_us: (latency, latency * 4),
        sync_us: (sync, sync * 4),
        apply_us: (apply, apply * 4),
        drift_ppm,
        skew_ms,
        near_leader: rng.below(2) == 0,
    }
}

/// What goes wrong comes in company: now and then a node is struck again soon.
fn in_company(
    faults: &[Timed],
    families: &[FaultFamily],
    settings: &Settings,
    rng: &mut Rng,
) -> Vec<Timed> {
    let mut company = Vec::new();
    for Timed { at_ms, fault: first } in faults {
        let [node] = first.nodes()[..] else { continue };
        if rng.below(3) > 0 {
            continue;
        }
        let family = families[pick(rng, families.len())];
        let crash = families.contains(&FaultFamily::Crash) && rng.below(2) == 0;
        let family = if crash { FaultFamily::Crash } else { family };
        let at_ms = at_ms + rng.below(2_000);
        let Some(mut fault) = fault(family, settings, rng) else { continue };
        if let [again] = &mut fault.nodes_mut()[..] {
            **again = node;
        }
        if !fault.loses_disk() {
            company.push(Timed { at_ms, fault });
        }
    }
    company
}

/// In every other plan clients do most of what they want without a thought, and rest between.
fn in_bursts(intents: &mut [Planned], rng: &mut Rng) {
    if rng.below(2) == 0 {
        return;
    }
    for intent in intents {
        intent.think_ms = if rng.below(4) > 0 { rng.below(4) } else { 4 * intent.think_ms };
    }
}

/// In every other plan sessions are renewed again when they are about to expire, or have just.
fn at_the_edge(intents: &mut Vec<Planned>, rng: &mut Rng) {
    if rng.below(2) == 0 {
        return;
    }
    for mut planned in core::mem::take(intents) {
        if let Intent::OpenSession { ttl_ms } = &mut planned.intent {
            *ttl_ms = RENEWED_TTL_MS;
        }
        let client = planned.client;
        let again = matches!(planned.intent, Intent::RenewSession).then_some(Intent::RenewSession);
        intents.push(planned);
        let think_ms = RENEWED_TTL_MS - 30 + rng.below(60);
        intents.extend(again.map(|intent| Planned { client, think_ms, intent }));
    }
}

/// Where there are sessions, one more client does nothing but keep one alive.
fn keeper(intents: &[Planned], settings: &Settings, rng: &mut Rng) -> Vec<Planned> {
    if !intents.iter().any(|planned| matches!(planned.intent, Intent::RenewSession)) {
        return Vec::new();
    }
    let client = 1 + intents.iter().map(|planned| planned.client).max().unwrap_or(0);
    let think_ms_max = 2 * settings.faults_until_ms / RENEWALS;
    let renewal =
        |_| Planned { client, think_ms: rng.below(think_ms_max), intent: Intent::RenewSession };
    (0..RENEWALS).map(renewal).collect()
}

fn families(rng: &mut Rng) -> Vec<FaultFamily> {
    FaultFamily::ALL.into_iter().filter(|_| rng.below(2) == 0).collect()
}

fn shape(settings: &Settings, rng: &mut Rng) -> Shape {
    let mut families: Vec<Family> = Family::ALL.into_iter().filter(|_| rng.below(2) == 0).collect();
    if families.is_empty() {
        families.push(Family::ALL[pick(rng, Family::ALL.len())]);
    }
    let clients = [2, 3, 4, 5, 6, 8, 12][pick(rng, 7)];
    let intents = 300 + rng.below(200);
    // As many as fit before the faults stop, were every call answered at once.
    let think_ms_max = 2 * settings.faults_until_ms * clients / intents;
    Shape { families, clients, intents, names: 1 + rng.below(4), think_ms_max }
}

fn pick(rng: &mut Rng, len: usize) -> usize {
    usize::try_from(rng.below(len as u64)).expect("it was a length")
}

fn fault(family: FaultFamily, settings: &Settings, rng: &mut Rng) -> Option<Fault> {
    let nodes = settings.nodes;
    let most = if family == FaultFamily::Partition { 3 } else { 2 };
    let aimed = rng.below(4) < most && family != FaultFamily::LostDisk;
    let node = if aimed { LEADER } else { 1 + rng.below(nodes) };
    let other = 1 + (node + rng.below(nodes.saturating_sub(1).max(1))) % nodes;
    // Mostly short, so that much happens; sometimes longer than any patience.
    let for_ms = match rng.below(4) {
        0 => rng.below(100),
        1 => rng.below(700),
        2 => rng.below(3_000),
        _ => rng.below(8_000),
    };
    let percent = 1 + rng.below(40);
    let alone = nodes == 1;
    Some(match family {
        FaultFamily::Crash => Fault::Crash { node, for_ms },
        FaultFamily::Kill => Fault::Kill { node, for_ms },
        FaultFamily::Pause => Fault::Pause { node, for_ms },
        FaultFamily::LostDisk if rng.below(2) == 0 => Fault::Wipe { node, for_ms },
        FaultFamily::LostDisk => Fault::BitFlip { node, for_ms },
        FaultFamily::Disk => {
            use DiskFault::{Full, Sync, SyncDirectory, Write};
            let kind = [Write, Sync, SyncDirectory, Full][pick(rng, 4)];
            Fault::Disk { node, kind, after: rng.below(30), for_ms }
        }
        FaultFamily::Stall => match rng.below(3) {
            0 => Fault::Stall { node, for_ms },
            1 => Fault::SlowApply { node, for_ms },
            _ => Fault::Short { node, for_ms },
        },
        _ if alone && !matches!(family, FaultFamily::Clock | FaultFamily::Transfer) => return None,
        FaultFamily::Partition => {
            let side = (1..=nodes).filter(|_| rng.below(2) == 0).collect();
            let side = if aimed { vec![LEADER] } else { side };
            // Often long enough for another to be elected, and not much longer.
            let for_ms = if rng.below(2) == 0 { 300 + rng.below(1_200) } else { for_ms };
            Fault::Partition { side, for_ms, silent: rng.below(2) == 0 }
        }
        FaultFamily::OneWay => Fault::OneWay { from: node, to: other, for_ms },
        FaultFamily::Break => Fault::Break { a: node, b: other },
        FaultFamily::Loss => Fault::Loss { percent, for_ms },
        FaultFamily::Duplicate => Fault::Duplicate { percent, for_ms },
        FaultFamily::Reorder => Fault::Reorder { percent, for_ms },
        FaultFamily::Delay => Fault::Delay { up_to_ms: 1 + rng.below(400), for_ms },
        FaultFamily::Clock => {
            Fault::Jump { node, by_ms: rng.below(120_000).cast_signed() - 60_000 }
        }
        FaultFamily::Transfer => Fault::Transfer { to: node },
    })
}

/// Disks are lost for good: never so many that a majority is not whole.
fn spare_a_majority(settings: &Settings, faults: &mut Vec<Timed>) {
    let most = (settings.nodes as usize - 1) / 2;
    let mut lost = std::collections::BTreeSet::new();
    faults.retain(|timed| {
        timed.fault.nodes().iter().all(|&node| {
            let loses = timed.fault.loses_disk();
            !loses || lost.contains(&node) || (lost.len() < most && lost.insert(node))
        })
    });
}
