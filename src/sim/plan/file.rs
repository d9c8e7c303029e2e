//! Plans as JSON lines: the settings, then faults (`{"at_ms":..,"fault":..}`) and intents
//! (`{"client":..,"think_ms":..,"do":..}`) in any mixture.

use std::{
    collections::BTreeSet,
    io::{BufRead, Write},
};

use serde_json::Value;

use crate::sim::{
    plan::{Fault, LEADER, Plan, Settings, Timed, VERSION},
    workload::{Intent, Planned},
};

/// The most nodes of a simulation.
const NODES_MAX: u64 = 7;

/// The longest span of a plan, in milliseconds.
pub(crate) const SPAN_MS_MAX: u64 = 3_600_000;
/// The longest TTL or wait of an intent.
const TTL_MS_MAX: u64 = 60_000;
/// The longest name of a key, lock, service or stream.
const NAME_BYTES_MAX: usize = 64;
/// The farthest jump of a wall clock.
const JUMP_MS_MAX: u64 = 100 * 366 * 86_400_000;
/// The most clients; the numbers above are the auditors'.
const CLIENTS_MAX: u64 = 64;
/// The most events of an append.
const EVENTS_MAX: u64 = 1_000;

/// Why a plan cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line is not what it should be.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

impl Plan {
    /// Reads JSON lines. A line that begins with `#` is a comment.
    ///
    /// # Errors
    /// Where a line is malformed, the version is unknown, or something is out of its bounds.
    pub fn read(input: impl BufRead) -> Result<Self, PlanError> {
        let mut plan: Option<Self> = None;
        for (at, line) in input.lines().enumerate() {
            let line = line?;
            let wrong = |what: String| PlanError::Line { line: at + 1, what };
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            match &mut plan {
                None => {
                    let settings = read_settings(&line).map_err(wrong)?;
                    plan = Some(Self { settings, faults: Vec::new(), intents: Vec::new() });
                }
                Some(plan) => plan.add(&line).map_err(wrong)?,
            }
        }
        let what = "a plan begins with its settings, {\"quorate_plan\":1,...}".to_owned();
        let mut plan = plan.ok_or(PlanError::Line { line: 1, what })?;
        plan.faults.sort_by_key(|timed| timed.at_ms);
        plan.check_disks().map_err(|what| PlanError::Line { line: 1, what })?;
        Ok(plan)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if value.get("fault").is_some() {
            let timed: Timed = serde_json::from_value(value).map_err(|error| error.to_string())?;
            let known = LEADER..=self.settings.nodes;
            if let Some(stranger) = timed.fault.nodes().iter().find(|node| !known.contains(node)) {
                return Err(format!("node {stranger} is none of {} nodes", self.settings.nodes));
            }
            check_fault(&timed)?;
            self.faults.push(timed);
        } else if value.get("do").is_some() {
            let planned: Planned =
                serde_json::from_value(value).map_err(|error| error.to_string())?;
            check_intent(&planned)?;
            self.intents.push(planned);
        } else {
            return Err("neither a \"fault\" nor something to \"do\"".to_owned());
        }
        Ok(())
    }

    /// A majority of disks stays whole: else nothing need hold.
    fn check_disks(&self) -> Result<(), String> {
        let lost = self.faults.iter().filter_map(|timed| match timed.fault {
            Fault::Wipe { node, .. } | Fault::BitFlip { node, .. } => Some(node),
            _ => None,
        });
        let lost = lost.collect::<BTreeSet<u64>>().len() as u64;
        if 2 * lost >= self.settings.nodes {
            return Err(format!(
                "{lost} of {} disks are lost; a majority must stay whole",
                self.settings.nodes
            ));
        }
        Ok(())
    }

    /// Writes JSON lines.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, mut out: impl Write) -> std::io::Result<()> {
        serde_json::to_writer(&mut out, &self.settings)?;
        writeln!(out)?;
        for timed in &self.faults {
            serde_json::to_writer(&mut out, timed)?;
            writeln!(out)?;
        }
        for intent in &self.intents {
            serde_json::to_writer(&mut out, intent)?;
            writeln!(out)?;
        }
        Ok(())
    }
}

fn read_settings(line: &str) -> Result<Settings, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    match value.get("quorate_plan").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            return Err(format!(
                "version {version} of the plan format is not known; this program reads version \
                 {VERSION}"
            ));
        }
        None => return Err("a plan begins with its settings, {\"quorate_plan\":1,...}".into()),
    }
    let settings: Settings = serde_json::from_value(value).map_err(|error| error.to_string())?;
    check(&settings)?;
    Ok(settings)
}

fn check_fault(timed: &Timed) -> Result<(), String> {
    if timed.at_ms > SPAN_MS_MAX || timed.fault.lasts_ms().is_some_and(|span| span > SPAN_MS_MAX) {
        return Err("at_ms and for_ms are an hour at most".into());
    }
    match timed.fault {
        Fault::Loss { percent, .. }
        | Fault::Duplicate { percent, .. }
        | Fault::Reorder { percent, .. }
            if percent > 100 =>
        {
            Err(format!("{percent} of a hundred messages"))
        }
        Fault::Delay { up_to_ms, .. } if up_to_ms > SPAN_MS_MAX => {
            Err("up_to_ms is an hour at most".into())
        }
        Fault::Jump { by_ms, .. } if by_ms.unsigned_abs() > JUMP_MS_MAX => {
            Err("by_ms is a hundred years at most, either way".into())
        }
        _ => Ok(()),
    }
}

fn check_intent(planned: &Planned) -> Result<(), String> {
    if !(1..=CLIENTS_MAX).contains(&planned.client) {
        return Err(format!("client {}; clients are 1 to {CLIENTS_MAX}", planned.client));
    }
    let span = match planned.intent {
        Intent::OpenSession { ttl_ms } | Intent::Register { ttl_ms, .. } => ttl_ms,
        Intent::Acquire { ttl_ms, wait_ms, .. } => ttl_ms.max(wait_ms),
        Intent::Append { count, .. } if count > EVENTS_MAX => {
            return Err(format!("{count} events in an append; at most {EVENTS_MAX}"));
        }
        _ => 0,
    };
    if planned.think_ms > SPAN_MS_MAX || span > TTL_MS_MAX {
        return Err("think_ms is an hour at most, ttl_ms and wait_ms a minute".into());
    }
    if names(&planned.intent).iter().any(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
        return Err(format!("names have 1 to {NAME_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// What an intent names; reading all streams names none.
fn names(intent: &Intent) -> Vec<&str> {
    match intent {
        Intent::Get { key, .. }
        | Intent::Put { key }
        | Intent::Delete { key }
        | Intent::Cas { key } => vec![key],
        Intent::PutLocked { key, lock } => vec![key, lock],
        Intent::Txn { keys } => keys.iter().map(String::as_str).collect(),
        Intent::Acquire { lock, .. }
        | Intent::GuardedWrite { lock }
        | Intent::RenewLock { lock }
        | Intent::Release { lock }
        | Intent::ReleaseWrongly { lock }
        | Intent::Describe { lock } => vec![lock],
        Intent::Register { service, .. }
        | Intent::Deregister { service }
        | Intent::Resolve { service } => vec![service],
        Intent::Append { stream, .. } => vec![stream],
        Intent::OpenSession { .. }
        | Intent::RenewSession
        | Intent::CloseSession
        | Intent::ReadStream { .. }
        | Intent::Compact { .. } => Vec::new(),
    }
}

fn check(settings: &Settings) -> Result<(), String> {
    let Settings { nodes, heartbeat_ms, election_ms, .. } = *settings;
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(format!("{nodes} nodes; a simulation has 1 to {NODES_MAX}"));
    }
    let spread = heartbeat_ms > 0 && heartbeat_ms.saturating_mul(2) <= election_ms.0;
    if !spread || election_ms.0 >= election_ms.1 || election_ms.1 > 60_000 {
        return Err("election_ms must rise from at least twice heartbeat_ms to a minute".into());
    }
    let ordered = |(from, to): (u64, u64)| from <= to && to <= 10_000_000;
    if ![settings.latency_us, settings.sync_us, settings.apply_us].into_iter().all(ordered) {
        return Err("latency_us, sync_us and apply_us rise, to ten seconds at most".into());
    }
    if settings.segment_bytes < 4_096 || settings.segment_bytes > 1 << 20 {
        return Err("segment_bytes must be from 4,096 to 1 MiB".into());
    }
    if settings.faults_until_ms > SPAN_MS_MAX || settings.readers > 16 {
        return Err("at most an hour of faults and 16 readers".into());
    }
    if settings.skew_ms.iter().any(|skew| skew.unsigned_abs() > JUMP_MS_MAX) {
        return Err("skew_ms is a hundred years at most, either way".into());
    }
    let wild = settings.drift_ppm.iter().any(|ppm| !(-500_000..=1_000_000).contains(ppm));
    if settings.retained_revisions == 0 || settings.retained_log_bytes == 0 || wild {
        return Err("retained_* must be positive, drift_ppm from -500,000 to 1,000,000".into());
    }
    Ok(())
}
