//! Makes a plan smaller that breaks a rule: fewer faults and intents (delta debugging: Zeller,
//! Hildebrandt, "Simplifying and isolating failure-inducing input", TSE 2002), shorter faults, fewer
//! clients, readers and nodes, true clocks. Each step must break the same rule.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::{
    plan::{Plan, SPAN_MS_MAX, Timed},
    run::run,
    workload::Planned,
};

/// How far shrinking is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many plans were run.
    pub runs: u64,
    /// How many faults are left.
    pub faults: usize,
    /// How many intents are left.
    pub intents: usize,
}

/// A plan that breaks the same rule and of which nothing more can be taken, as far as `runs_max`
/// runs tell. `told` hears of each smaller plan; its `false` ends the search.
pub fn shrink(
    plan: &Plan,
    rule: &str,
    runs_max: u64,
    told: &mut dyn FnMut(Progress) -> bool,
) -> Plan {
    let mut search = Search { best: plan.clone(), rule, runs: 0, runs_max, told, stopped: false };
    loop {
        let before = search.best.clone();
        search.lists();
        search.settings();
        search.spans();
        search.nodes();
        if search.best == before || search.is_over() {
            return search.best;
        }
    }
}

struct Search<'a> {
    best: Plan,
    rule: &'a str,
    runs: u64,
    runs_max: u64,
    told: &'a mut dyn FnMut(Progress) -> bool,
    stopped: bool,
}

impl Search<'_> {
    const fn is_over(&self) -> bool {
        self.stopped || self.runs >= self.runs_max
    }

    /// Takes a plan over if it breaks the same rule.
    fn try_plan(&mut self, plan: Plan) -> bool {
        if plan == self.best || self.is_over() {
            return false;
        }
        self.runs += 1;
        let broken = run(&plan, false).broken;
        let same = broken.is_some_and(|broken| broken.rule == self.rule);
        if same {
            self.best = plan;
        }
        let progress = Progress {
            runs: self.runs,
            faults: self.best.faults.len(),
            intents: self.best.intents.len(),
        };
        self.stopped |= !(self.told)(progress);
        same
    }

    fn lists(&mut self) {
        self.without_chunks(
            |plan| plan.faults.clone(),
            |plan, faults: Vec<Timed>| Plan { faults, ..plan.clone() },
        );
        self.clients();
        self.without_chunks(
            |plan| plan.intents.clone(),
            |plan, intents: Vec<Planned>| Plan { intents: in_time(plan, intents), ..plan.clone() },
        );
    }

    /// Without a client, each by itself.
    fn clients(&mut self) {
        let clients: BTreeSet<u64> = self.best.intents.iter().map(|one| one.client).collect();
        for client in clients {
            let mut plan = self.best.clone();
            plan.intents.retain(|intent| intent.client != client);
            self.try_plan(plan);
        }
    }

    /// Leaves chunks out, large ones first.
    fn without_chunks<T: Clone>(
        &mut self,
        of: impl Fn(&Plan) -> Vec<T>,
        with: impl Fn(&Plan, Vec<T>) -> Plan,
    ) {
        let mut size = of(&self.best).len();
        while size > 0 {
            let mut at = 0;
            while at < of(&self.best).len() && !self.is_over() {
                let mut left = of(&self.best);
                let end = (at + size).min(left.len());
                left.drain(at..end);
                if !self.try_plan(with(&self.best, left)) {
                    at = end;
                }
            }
            size /= 2;
        }
    }

    fn settings(&mut self) {
        let with = |change: &dyn Fn(&mut Plan), best: &Plan| {
            let mut plan = best.clone();
            change(&mut plan);
            plan
        };
        let changes: [&dyn Fn(&mut Plan); 5] = [
            &|plan| plan.settings.readers = 0,
            &|plan| plan.settings.drift_ppm.fill(0),
            &|plan| plan.settings.skew_ms.fill(0),
            &|plan| plan.intents.iter_mut().for_each(|intent| intent.think_ms /= 2),
            &|plan| {
                // Nothing need happen after the last fault.
                let last = plan.faults.last().map_or(0, |timed| timed.at_ms);
                plan.settings.faults_until_ms = plan.settings.faults_until_ms.min(last + 1_000);
            },
        ];
        for change in changes {
            let plan = with(change, &self.best);
            self.try_plan(plan);
        }
    }

    /// Shorter faults, each by itself.
    fn spans(&mut self) {
        for at in 0..self.best.faults.len() {
            while let Some(span) = self.best.faults[at].fault.lasts_ms().filter(|span| *span > 0) {
                let mut plan = self.best.clone();
                plan.faults[at].fault = plan.faults[at].fault.lasting_ms(span / 2);
                if !self.try_plan(plan) {
                    break;
                }
            }
        }
    }

    fn nodes(&mut self) {
        while self.best.settings.nodes > 1 {
            let nodes = self.best.settings.nodes - 1;
            let mut plan = self.best.clone();
            plan.settings.nodes = nodes;
            plan.settings.drift_ppm.truncate(usize::try_from(nodes).unwrap_or(0));
            plan.settings.skew_ms.truncate(usize::try_from(nodes).unwrap_or(0));
            plan.faults.retain(|timed| timed.fault.nodes().iter().all(|node| *node <= nodes));
            if !self.try_plan(plan) {
                break;
            }
        }
    }
}

/// What is left of a plan's intents, each about when it was: who has less to do thinks longer.
fn in_time(plan: &Plan, left: Vec<Planned>) -> Vec<Planned> {
    let mut left = left.into_iter().peekable();
    let mut spared: BTreeMap<u64, u64> = BTreeMap::new();
    let mut out = Vec::new();
    for planned in &plan.intents {
        match left.next_if(|next| next == planned) {
            Some(mut kept) => {
                let spared = spared.remove(&kept.client).unwrap_or(0);
                kept.think_ms = kept.think_ms.saturating_add(spared).min(SPAN_MS_MAX);
                out.push(kept);
            }
            None => *spared.entry(planned.client).or_default() += planned.think_ms,
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::plan::draw;

    #[test]
    fn what_is_left_stays_about_when_it_was() {
        let plan = draw(5);
        let due = |intents: &[Planned], client: u64| -> u64 {
            let of = intents.iter().filter(|intent| intent.client == client);
            of.map(|intent| intent.think_ms).sum()
        };
        let last = plan.intents.last().expect("there are intents").clone();
        let some: Vec<Planned> = plan
            .intents
            .iter()
            .enumerate()
            .filter(|(at, _)| at % 3 == 0 || *at + 1 == plan.intents.len())
            .map(|(_, intent)| intent.clone())
            .collect();
        let kept = in_time(&plan, some.clone());
        assert_eq!(kept.len(), some.len());
        assert_eq!(due(&kept, last.client), due(&plan.intents, last.client));
    }
}
