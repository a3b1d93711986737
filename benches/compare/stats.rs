//! What can be said of a handful of noisy samples.

use serde::{Deserialize, Serialize};

/// Resamples for an interval; enough that its ends move by less than they mean.
const RESAMPLES: usize = 2000;

/// A ratio with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The median of the paired ratios.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Ratio {
    /// Half the interval's width, relative to the median.
    pub fn spread(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }

    /// Whether two intervals have nothing in common, even when each is taken to be at least
    /// `slack` (relative) wide on both sides.
    pub fn apart(&self, other: &Ratio, slack: f64) -> bool {
        let low = |r: &Ratio| r.low.min(r.median * (1.0 - slack));
        let high = |r: &Ratio| r.high.max(r.median * (1.0 + slack));
        low(self) > high(other) || low(other) > high(self)
    }
}

/// The middle of `samples`; `None` without any.
pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 0.5)
}

/// The value below which `fraction` of the samples lie, with linear interpolation.
pub fn percentile(samples: &[f64], fraction: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = fraction * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (
        sorted.get(at.floor() as usize)?,
        sorted.get(at.ceil() as usize)?,
    );
    Some(below + (above - below) * at.fract())
}

/// The median of `ours[i] / theirs[i]`, with a 95 % bootstrap interval (percentile method). Both
/// samples of a pair were taken in the same round, so what disturbs the machine for longer than a
/// round disturbs both.
pub fn paired_ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter(|(_, b)| **b > 0.0)
        .map(|(a, b)| a / b)
        .collect();
    let middle = median(&ratios)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut medians = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let resample: Vec<f64> = (0..ratios.len())
            .filter_map(|_| ratios.get(random.below(ratios.len())).copied())
            .collect();
        medians.extend(median(&resample));
    }
    Some(Ratio {
        median: middle,
        low: percentile(&medians, 0.025)?,
        high: percentile(&medians, 0.975)?,
    })
}

/// xorshift64*: the same numbers in every run, so that a result can be computed again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        (number % bound.max(1) as u64) as usize
    }
}
