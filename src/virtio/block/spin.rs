//! Whether a worker is to spin before it sleeps.
//!
//! To sleep and be woken costs a host tens of microseconds, more where its own processors are
//! virtual; a driver that kicks costs an exit on top. A worker that expects something sooner looks
//! for it instead. What it expects is the mean of what it has seen, one for each of the two that
//! it waits for: the host, while requests are in flight, and else the driver.
//!
//! A wait that was slept through looks longer than it was: the time to wake is in it. So that one
//! who sleeps can find out that it need not, a wait is spun through now and then for a trial.

use std::time::{Duration, Instant};

/// One long pause does not count for more than this.
const LONGEST: u64 = 2_000_000;
/// One of so many waits that are slept through for not much too long is a trial.
const TRIAL: u32 = 32;
/// Not much too long: so many times what is worth spinning.
const NOT_MUCH: u32 = 4;
/// A new wait's weight in the mean is one of so many.
const WEIGHT: u64 = 8;

/// Whom the worker waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Requests are in flight.
    Host,
    /// The driver is to ask for something.
    Driver,
}

/// What has been seen. Times are in nanoseconds.
#[derive(Debug)]
pub struct Spin {
    host: u64,
    driver: u64,
    /// Expected to take longer than this: sleep.
    worth: Duration,
    since: Option<(Instant, For)>,
    slept: u32,
    trial: bool,
}

impl Spin {
    /// Nothing has been seen yet: sleep. Later spin when the wait is expected to end within `worth`.
    pub fn new(worth: Duration) -> Self {
        Spin {
            worth,
            host: LONGEST,
            driver: LONGEST,
            since: None,
            slept: 0,
            trial: false,
        }
    }

    /// Whether it is ever to be done.
    pub fn is_wanted(&self) -> bool {
        !self.worth.is_zero()
    }

    /// No longer than this, whatever was expected.
    pub fn limit(&self) -> Duration {
        self.worth.saturating_add(self.worth / 4)
    }

    fn mean(&mut self, whom: For) -> &mut u64 {
        match whom {
            For::Host => &mut self.host,
            For::Driver => &mut self.driver,
        }
    }

    /// A wait begins; whether to spin.
    pub fn begin(&mut self, now: Instant, whom: For) -> bool {
        self.since = Some((now, whom));
        let mean = Duration::from_nanos(*self.mean(whom));
        self.trial = false;
        if mean >= self.worth && mean < self.worth.saturating_mul(NOT_MUCH) {
            self.slept = self.slept.wrapping_add(1);
            self.trial = self.slept.is_multiple_of(TRIAL);
        }
        mean < self.worth || self.trial
    }

    /// It is over.
    pub fn end(&mut self, now: Instant) {
        let Some((since, whom)) = self.since.take() else {
            return;
        };
        let waited = now.saturating_duration_since(since).as_nanos();
        let waited = u64::try_from(waited).unwrap_or(LONGEST).min(LONGEST);
        let learnt = self.trial && Duration::from_nanos(waited) < self.worth;
        let mean = self.mean(whom);
        let rest = mean.saturating_mul(WEIGHT.saturating_sub(1));
        *mean = match learnt {
            true => waited,
            false => rest.saturating_add(waited).checked_div(WEIGHT).unwrap_or(0),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_shows_that_waits_are_short_when_nobody_sleeps() {
        let mut spin = Spin::new(Duration::from_micros(50));
        let mut now = Instant::now();
        let mut spun = 0;
        for _ in 0..200 {
            let spins = spin.begin(now, For::Driver);
            spun += u32::from(spins);
            // 10 us, and 60 more to wake up.
            now += Duration::from_micros(if spins { 10 } else { 70 });
            spin.end(now);
        }
        assert!(spun > 100, "{spun} of 200");
    }

    #[test]
    fn trials_are_few_where_waits_are_long() {
        let mut spin = Spin::new(Duration::from_micros(50));
        let mut now = Instant::now();
        let mut spun = 0;
        for _ in 0..640 {
            spun += u32::from(spin.begin(now, For::Host));
            now += Duration::from_micros(90);
            spin.end(now);
        }
        assert!((15..=20).contains(&spun), "{spun} of 640");
        for _ in 0..64 {
            now += Duration::from_millis(1);
            spin.begin(now, For::Host);
            now += Duration::from_millis(1);
            spin.end(now);
        }
        assert!(!spin.begin(now, For::Host), "much too long is not tried");
    }

    #[test]
    fn short_waits_are_spun_through_and_long_ones_are_not() {
        let mut spin = Spin::new(Duration::from_micros(200));
        let mut now = Instant::now();
        let mut wait = |spin: &mut Spin, micros: u64, whom: For| {
            let spins = spin.begin(now, whom);
            now += Duration::from_micros(micros);
            spin.end(now);
            spins
        };
        assert!(!wait(&mut spin, 10, For::Host), "nothing is known yet");
        for _ in 0..40 {
            wait(&mut spin, 60, For::Host);
        }
        assert!(wait(&mut spin, 60, For::Host));
        assert!(!wait(&mut spin, 60, For::Driver), "each for itself");
        wait(&mut spin, 1_000_000, For::Host);
        assert!(!wait(&mut spin, 60, For::Host), "a pause ends it");
        for _ in 0..40 {
            wait(&mut spin, 60, For::Host);
        }
        assert!(wait(&mut spin, 60, For::Host), "and it comes back");
    }
}
