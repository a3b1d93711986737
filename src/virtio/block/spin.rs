//! Whether to spin before sleeping, for a worker that has a thread of its own.
//!
//! To sleep and be woken costs a host tens of microseconds, more where its own processors are
//! virtual; a driver that kicks costs an exit on top. A worker that expects something sooner looks
//! for it instead. What it expects is the mean of what it has seen, one for each of the two that
//! it waits for: the host, while requests are in flight, and else the driver.

use std::time::{Duration, Instant};

/// Expected to take longer than this: sleep. Above what a fast disk takes, with the time to wake on
/// top: a wait that was slept through has that in it, and must not be a reason to sleep again.
const WORTH_SPINNING: u64 = 200_000;
/// No longer than this, whatever was expected.
pub const LIMIT: Duration = Duration::from_micros(250);
/// One long pause does not count for more than this.
const LONGEST: u64 = 2_000_000;
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
    since: Option<(Instant, For)>,
}

impl Spin {
    /// Nothing has been seen yet: sleep.
    pub fn new() -> Self {
        Spin {
            host: LONGEST,
            driver: LONGEST,
            since: None,
        }
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
        *self.mean(whom) < WORTH_SPINNING
    }

    /// It is over.
    pub fn end(&mut self, now: Instant) {
        let Some((since, whom)) = self.since.take() else {
            return;
        };
        let waited = now.saturating_duration_since(since).as_nanos();
        let waited = u64::try_from(waited).unwrap_or(LONGEST).min(LONGEST);
        let mean = self.mean(whom);
        let rest = mean.saturating_mul(WEIGHT.saturating_sub(1));
        *mean = rest.saturating_add(waited).checked_div(WEIGHT).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_are_spun_through_and_long_ones_are_not() {
        let mut spin = Spin::new();
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
