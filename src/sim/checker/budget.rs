//! How long a search may take: in steps, which is the same everywhere, or until somebody says
//! stop, which is for the command line and its clock.

/// How many steps pass between two questions whether to stop.
const ASK_EVERY: u64 = 4_096;

/// What a search may still spend.
pub struct Budget<'a> {
    left: u64,
    spent: u64,
    stop: Option<Box<dyn FnMut() -> bool + 'a>>,
    stopped: bool,
}

impl core::fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Budget")
            .field("left", &self.left)
            .field("spent", &self.spent)
            .finish_non_exhaustive()
    }
}

impl<'a> Budget<'a> {
    /// So many steps; a step tries one operation in one state.
    #[must_use]
    pub fn steps(steps: u64) -> Self {
        Self { left: steps, spent: 0, stop: None, stopped: false }
    }

    /// Until `stop` says so; it is asked now and then.
    #[must_use]
    pub fn until(stop: impl FnMut() -> bool + 'a) -> Self {
        Self { left: u64::MAX, spent: 0, stop: Some(Box::new(stop)), stopped: false }
    }

    /// Spends a step; `false` where there is none left.
    pub(crate) fn spend(&mut self) -> bool {
        if self.stopped || self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.spent += 1;
        if self.spent.is_multiple_of(ASK_EVERY)
            && let Some(stop) = &mut self.stop
        {
            self.stopped = stop();
        }
        !self.stopped
    }

    /// How many steps were spent.
    #[must_use]
    pub const fn spent(&self) -> u64 {
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_after_its_steps_or_when_told() {
        let mut budget = Budget::steps(2);
        assert!(budget.spend() && budget.spend());
        assert!(!budget.spend());
        let mut asked = 0;
        let mut budget = Budget::until(|| {
            asked += 1;
            asked == 2
        });
        let steps = std::iter::repeat_with(|| budget.spend()).take_while(|more| *more).count();
        assert_eq!(u64::try_from(steps).expect("it is small"), 2 * ASK_EVERY - 1);
    }
}
