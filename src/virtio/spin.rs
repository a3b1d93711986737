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
const LONGEST: Duration = Duration::from_millis(5);
/// One of so many waits that are slept through for not much too long is a trial.
const TRIAL: u32 = 32;
/// Not much too long: less than so many times what is worth spinning.
const NOT_MUCH: u32 = 4;
/// A new wait's weight in the mean is one of so many.
const WEIGHT: u32 = 8;

/// Whom the worker waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Requests are in flight.
    Host,
    /// The driver is to ask for something.
    Driver,
}

/// How a wait is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Slept,
    Spun,
    Trial,
}

/// What is known of waits for one of the two.
#[derive(Debug)]
struct Seen {
    mean: Duration,
    slept: u32,
}

/// What has been seen, and the wait that goes on.
#[derive(Debug)]
pub struct Spin {
    host: Seen,
    driver: Seen,
    /// Expected to take longer than this: sleep.
    worth: Duration,
    wait: Option<(Instant, For, How)>,
}

impl Spin {
    /// Nothing has been seen yet: sleep. Later spin when the wait is expected to end within `worth`.
    pub fn new(worth: Duration) -> Self {
        let seen = || Seen {
            mean: LONGEST,
            slept: 0,
        };
        Spin {
            host: seen(),
            driver: seen(),
            worth,
            wait: None,
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

    #[cfg(test)]
    pub(super) fn has_slept(&self) -> bool {
        matches!(self.wait, Some((_, _, How::Slept)))
    }

    #[cfg(test)]
    pub(super) fn expect(&mut self, whom: For, mean: Duration) {
        self.seen(whom).mean = mean;
    }

    fn seen(&mut self, whom: For) -> &mut Seen {
        match whom {
            For::Host => &mut self.host,
            For::Driver => &mut self.driver,
        }
    }

    /// A wait begins, or goes on after somebody was woken for nothing; whether to spin, if that is
    /// `allowed` at all.
    pub fn begin(&mut self, now: Instant, whom: For, allowed: bool) -> bool {
        let worth = self.worth;
        let not_much = worth.saturating_mul(NOT_MUCH);
        let seen = self.seen(whom);
        let how = if !allowed {
            How::Slept
        } else if seen.mean < worth {
            How::Spun
        } else if seen.mean < not_much {
            seen.slept = seen.slept.wrapping_add(1);
            match seen.slept.is_multiple_of(TRIAL) {
                true => How::Trial,
                false => How::Slept,
            }
        } else {
            How::Slept
        };
        let since = match self.wait {
            Some((since, before, _)) if before == whom => since,
            _ => now,
        };
        self.wait = Some((since, whom, how));
        how != How::Slept
    }

    /// It is over: there is something to do.
    pub fn end(&mut self, now: Instant) {
        let Some((since, whom, how)) = self.wait.take() else {
            return;
        };
        let waited = now.saturating_duration_since(since).min(LONGEST);
        let worth = self.worth;
        let seen = self.seen(whom);
        let mean = seen.mean.saturating_mul(WEIGHT.saturating_sub(1));
        let mean = mean.saturating_add(waited).checked_div(WEIGHT);
        let mean = mean.unwrap_or(waited);
        seen.mean = match how {
            How::Trial if waited < worth => waited,
            _ => mean,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits as in life, and counts those that were spun through.
    struct Life {
        spin: Spin,
        now: Instant,
    }

    impl Life {
        fn new(worth: u64) -> Self {
            Life {
                spin: Spin::new(Duration::from_micros(worth)),
                now: Instant::now(),
            }
        }

        /// A wait of `micros`, and `to_wake` more when it is slept through.
        fn wait(&mut self, whom: For, micros: u64, to_wake: u64) -> u32 {
            let spins = self.spin.begin(self.now, whom, true);
            let slept = if spins { 0 } else { to_wake };
            self.now += Duration::from_micros(micros + slept);
            self.spin.end(self.now);
            u32::from(spins)
        }
    }

    #[test]
    fn short_waits_are_spun_through_and_long_ones_are_not() {
        let mut life = Life::new(200);
        assert_eq!(life.wait(For::Host, 10, 0), 0, "nothing is known yet");
        for _ in 0..60 {
            life.wait(For::Host, 60, 0);
        }
        assert_eq!(life.wait(For::Host, 60, 0), 1);
        assert_eq!(life.wait(For::Driver, 60, 0), 0, "each for itself");
        life.wait(For::Host, 1_000_000, 0);
        assert_eq!(life.wait(For::Host, 60, 0), 0, "a pause ends it");
        for _ in 0..60 {
            life.wait(For::Host, 60, 0);
        }
        assert_eq!(life.wait(For::Host, 60, 0), 1, "and it comes back");
    }

    #[test]
    fn a_trial_shows_that_waits_are_short_when_nobody_sleeps() {
        let mut life = Life::new(50);
        let spun: u32 = (0..200).map(|_| life.wait(For::Driver, 10, 60)).sum();
        assert!(spun > 100, "{spun} of 200");
    }

    #[test]
    fn each_of_the_two_has_its_trials() {
        // They alternate, as with one request at a time; for the driver it is not worth it.
        for first in [false, true] {
            let mut life = Life::new(50);
            if first {
                life.wait(For::Driver, 100, 60);
            }
            let mut spun = 0;
            for _ in 0..300 {
                spun += life.wait(For::Host, 10, 60);
                life.wait(For::Driver, 100, 60);
            }
            assert!(spun > 200, "{spun} of 300");
        }
    }

    #[test]
    fn trials_are_few_where_waits_are_long() {
        let mut life = Life::new(50);
        let spun: u32 = (0..640).map(|_| life.wait(For::Host, 90, 0)).sum();
        assert!((15..=20).contains(&spun), "{spun} of 640");
        let mut idle = Life::new(1000);
        let spun: u32 = (0..640).map(|_| idle.wait(For::Driver, 9000, 0)).sum();
        assert_eq!(spun, 0, "much too long is not tried");
    }

    #[test]
    fn a_pause_now_and_then_does_not_end_it() {
        let mut life = Life::new(50);
        for _ in 0..64 {
            life.wait(For::Driver, 10, 60);
        }
        let spun: u32 = (0..400)
            .map(|n| life.wait(For::Driver, if n % 10 == 0 { 100 } else { 10 }, 60))
            .sum();
        assert!(spun > 300, "{spun} of 400");
    }

    #[test]
    fn who_is_woken_for_nothing_goes_on_waiting() {
        let mut life = Life::new(50);
        for _ in 0..640 {
            life.spin.begin(life.now, For::Host, true);
            life.now += Duration::from_micros(5);
            life.wait(For::Host, 400, 0);
        }
        assert!(!life.spin.begin(life.now, For::Host, true));
        assert!(life.spin.host.mean > Duration::from_micros(300));
    }
}
