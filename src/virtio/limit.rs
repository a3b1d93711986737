//! Rate limits: a token bucket for requests and one for bytes.
//!
//! A bucket fills with tokens at the rate, and holds no more than what comes in a short time (`BURST`).
//! A request may begin when the bucket is not empty, even if it takes more tokens than there are. The
//! bucket then has a debt, and nothing begins until that has been paid. So a request of any size is
//! done at some time, and the rate is kept over any time that is much longer than the burst.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// How long a bucket takes to fill: a full one holds what comes in this time.
const BURST: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    tokens: f64,
}

impl Bucket {
    fn new(per_second: u64) -> Self {
        let per_second = per_second as f64;
        Bucket {
            per_second,
            tokens: Bucket::burst(per_second),
        }
    }

    /// What a full bucket holds: at least one token, as a slow rate would round down to none.
    fn burst(per_second: f64) -> f64 {
        (per_second * BURST.as_secs_f64()).max(1.0)
    }

    fn fill(&mut self, passed: Duration) {
        let full = Bucket::burst(self.per_second);
        self.tokens = (self.tokens + self.per_second * passed.as_secs_f64()).min(full);
    }

    /// How long until something may be taken.
    fn wait(&self) -> Duration {
        if self.tokens > 0.0 {
            return Duration::ZERO;
        }
        // Rounded up: a timer that ends a little too early would have to be set again and again.
        Duration::from_secs_f64((-self.tokens / self.per_second).min(3600.0))
            + Duration::from_micros(1)
    }
}

/// The limits of one device, which all of its queues share.
#[derive(Debug)]
pub struct Limiter(Mutex<Buckets>);

#[derive(Debug)]
struct Buckets {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    at: Instant,
}

impl Limiter {
    /// Limits of so many requests and bytes a second; `None` when there are none.
    pub fn new(requests: Option<u64>, bytes: Option<u64>) -> Option<Self> {
        (requests.is_some() || bytes.is_some()).then(|| {
            Limiter(Mutex::new(Buckets {
                requests: requests.map(Bucket::new),
                bytes: bytes.map(Bucket::new),
                at: Instant::now(),
            }))
        })
    }

    /// Whether a request may begin at the time `now`; if not, how long to wait.
    pub fn ready(&self, now: Instant) -> Result<(), Duration> {
        let mut buckets = lock(&self.0);
        let passed = now.saturating_duration_since(buckets.at);
        buckets.at = now.max(buckets.at);
        let mut wait = Duration::ZERO;
        let Buckets {
            requests, bytes, ..
        } = &mut *buckets;
        for bucket in [requests, bytes].into_iter().flatten() {
            bucket.fill(passed);
            wait = wait.max(bucket.wait());
        }
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Counts a request of `len` bytes that has begun.
    pub fn take(&self, len: u64) {
        self.take_as(1, len);
    }

    /// Counts a request that is worth so many, and so many bytes.
    pub fn take_as(&self, requests: u64, len: u64) {
        let mut buckets = lock(&self.0);
        if let Some(bucket) = &mut buckets.requests {
            bucket.tokens -= requests as f64;
        }
        if let Some(bucket) = &mut buckets.bytes {
            bucket.tokens -= len as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of `len` bytes, as many as are allowed in 10 s of a clock of our own.
    fn count(limiter: &Limiter, len: u64) -> u64 {
        let start = Instant::now();
        let end = start + Duration::from_secs(10);
        let (mut now, mut done) = (start, 0);
        while now < end {
            match limiter.ready(now) {
                Ok(()) => {
                    limiter.take(len);
                    done += 1;
                }
                Err(wait) => now += wait,
            }
        }
        done
    }

    #[test]
    fn rates_hold_within_a_percent() {
        for rate in [1, 10, 1000, 250_000] {
            let limiter = Limiter::new(Some(rate), None).unwrap();
            let done = count(&limiter, 4096) as f64;
            let wanted = 10.0 * rate as f64;
            assert!(
                (done - wanted).abs() <= wanted * 0.01 + 1.0,
                "{rate}: {done}"
            );
        }
        for len in [512, 4096, 1 << 20] {
            let rate = 10 << 20;
            let limiter = Limiter::new(None, Some(rate)).unwrap();
            let done = (count(&limiter, len) * len) as f64;
            let wanted = 10.0 * rate as f64;
            assert!((done - wanted).abs() <= wanted * 0.02, "{len}: {done}");
        }
    }

    #[test]
    fn the_tighter_of_two_limits_holds() {
        let limiter = Limiter::new(Some(100), Some(1 << 30)).unwrap();
        let done = count(&limiter, 4096);
        assert!((990..=1010).contains(&done), "{done}");
    }

    #[test]
    fn a_request_larger_than_a_second_is_done_and_waited_for() {
        let limiter = Limiter::new(None, Some(1 << 20)).unwrap();
        let now = Instant::now();
        assert!(limiter.ready(now).is_ok());
        limiter.take(32 << 20);
        let wait = limiter.ready(now).unwrap_err();
        assert!(wait > Duration::from_secs(31) && wait < Duration::from_secs(33));
        assert!(limiter.ready(now + wait).is_ok());
    }
}
