//! A scale: where a value is between two pixels, which values get a tick, and what is written there.

/// Values further apart than this need logarithms to be seen side by side.
const NEEDS_LOG: f64 = 5.0;
/// Fewer decades than this get ticks at 2 and 5 as well.
const FEW_DECADES: f64 = 3.2;

/// A scale from `low` to `high`.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// Around all of `values`, which are above 0: logarithmic where they need it, else from 0.
    pub fn around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().fold(f64::MAX, f64::min).max(1e-9);
        let most = values.fold(least, f64::max);
        match most / least > NEEDS_LOG {
            true => Axis {
                low: step_down(least * 0.95),
                high: step_up(most * 1.05),
                log: true,
            },
            false => Axis::from_zero(most),
        }
    }

    /// Linear, from 0 to where `most` has room.
    pub fn from_zero(most: f64) -> Self {
        Axis {
            low: 0.0,
            high: most * 1.12,
            log: false,
        }
    }

    /// Whether distances are factors.
    pub fn is_log(&self) -> bool {
        self.log
    }

    /// The place of `value` between 0 and 1.
    pub fn place(&self, value: f64) -> f64 {
        let place = match self.log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        place.clamp(0.0, 1.0)
    }

    /// Values with a tick.
    pub fn ticks(&self) -> Vec<f64> {
        let slack = 1e-9;
        if !self.log {
            let step = step_up(self.high / 7.0);
            return (0..20)
                .map(|i| f64::from(i) * step)
                .take_while(|tick| *tick <= self.high * (1.0 + slack))
                .collect();
        }
        let steps: &[f64] = match (self.high / self.low).log10() < FEW_DECADES {
            true => &[1.0, 2.0, 5.0],
            false => &[1.0],
        };
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        decades
            .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
            .filter(|tick| *tick >= self.low * (1.0 - slack) && *tick <= self.high * (1.0 + slack))
            .collect()
    }
}

/// The next of 1, 2, 5, 10, 20 ... from `value` on.
fn step_up(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|step| step * decade)
        .find(|step| *step >= value * (1.0 - 1e-9))
        .unwrap_or(value)
}

/// The one before, down to `value`.
fn step_down(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0]
        .iter()
        .map(|step| step * decade)
        .find(|step| *step <= value * (1.0 + 1e-9))
        .unwrap_or(value)
}

/// What is written at a tick.
pub fn label(tick: f64) -> String {
    // Sums of steps are not exact.
    let tick = (tick * 1e6).round() / 1e6;
    match tick {
        t if t >= 1e6 => format!("{} M", t / 1e6),
        t if t >= 1e4 => format!("{} k", t / 1e3),
        t => format!("{t}"),
    }
}
