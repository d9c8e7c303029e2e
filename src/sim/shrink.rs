//! Makes a plan smaller that breaks a rule: fewer faults and intents (delta debugging: Zeller,
//! Hildebrandt, "Simplifying and isolating failure-inducing input", TSE 2002), shorter faults, fewer
//! clients, readers and nodes, true clocks. Each step must break the same rule.

use crate::sim::{
    plan::{Plan, Timed},
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
        self.without_chunks(
            |plan| plan.intents.clone(),
            |plan, intents: Vec<Planned>| Plan { intents, ..plan.clone() },
        );
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
