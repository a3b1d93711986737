//! How Bantam stands to another VMM, said so that more is always better for Bantam, and so that
//! nobody who divides two figures of the page finds another number than the page has.
//!
//! A ratio is taken round by round, as both samples of a round had the same machine; the median of
//! such ratios is not the quotient of two medians. Where the machine changed much between rounds the
//! two come apart: then the page shows the samples' range instead of their median ([`value`]).

use crate::result::{Figure, OURS, Series};
use crate::stats::{self, Ratio};

/// A median stands beside a ratio only where the quotient of medians is no further from it.
pub const APART: f64 = 0.10;

/// An interval whose upper end is so many times its lower end, on both sides of 1, tells nothing.
const NOISE: f64 = 1.6;

/// Bantam is so many times better than another: above 1 it is ahead, whatever the unit.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    pub times: Ratio,
    pub verdict: Verdict,
}

/// What the interval says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All of it is above 1.
    Ahead,
    /// All of it is below 1.
    Behind,
    /// It has 1 in it.
    Even,
    /// It has 1 in it, and is too wide to call that even.
    Unknown,
}

/// How Bantam stands to the VMM of `series`; `None` where one of the two has no figure.
pub fn standing(figure: &Figure, series: &Series) -> Option<Standing> {
    let ratio = series.ratio?;
    let times = match figure.lower_is_better {
        true => Ratio {
            median: 1.0 / ratio.median,
            low: 1.0 / ratio.high,
            high: 1.0 / ratio.low,
        },
        false => ratio,
    };
    // Nobody is infinitely better; a figure of 0 is a figure without a ratio.
    let finite = [times.low, times.median, times.high]
        .iter()
        .all(|t| t.is_finite() && *t > 0.0);
    let verdict = match (times.low > 1.0, times.high < 1.0) {
        (true, _) => Verdict::Ahead,
        (_, true) => Verdict::Behind,
        _ if times.high / times.low > NOISE => Verdict::Unknown,
        _ => Verdict::Even,
    };
    finite.then_some(Standing { times, verdict })
}

impl Standing {
    /// `**15×**`, `_0.76×_`, `1.02×` or `?`.
    pub fn short(&self) -> String {
        let digits = times(self.times.median);
        match self.verdict {
            Verdict::Ahead => format!("**{digits}**"),
            Verdict::Behind => format!("_{digits}_"),
            Verdict::Even => digits,
            Verdict::Unknown => "?".into(),
        }
    }

    /// The same with its interval, where that is wide enough to be seen.
    pub fn long(&self) -> String {
        let (low, high) = (bare(self.times.low), bare(self.times.high));
        match low == high {
            true => self.short(),
            false => format!("{}, {low}–{high}", self.short()),
        }
    }
}

/// A factor, with the digits that are of use.
pub fn times(factor: f64) -> String {
    bare(factor) + "×"
}

fn bare(factor: f64) -> String {
    match factor {
        f if f >= 9.95 => format!("{f:.0}"),
        f if f >= 0.0995 => format!("{f:.2}"),
        f => format!("{f:.3}"),
    }
}

/// Three digits that matter.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// What a VMM has: its median; or, where a quotient of medians would contradict a ratio beside it,
/// its lowest and highest sample.
pub fn value(figure: &Figure, series: &Series) -> Option<String> {
    let median = series.median?;
    let end = |fraction| stats::percentile(&series.samples, fraction).map(number);
    match (is_steady(figure, series), end(0.0), end(1.0)) {
        (false, Some(low), Some(high)) if low != high => Some(format!("{low}–{high}")),
        _ => Some(number(median)),
    }
}

/// Whether the series' median may stand beside the figure's ratios.
pub fn is_steady(figure: &Figure, series: &Series) -> bool {
    !match series.vmm == OURS {
        true => figure.series.iter().any(|other| apart(figure, other)),
        false => apart(figure, series),
    }
}

/// The unit as it is written for readers; [`Clock::suffix`] says whose.
///
/// [`Clock::suffix`]: crate::result::Clock::suffix
pub fn unit(figure: &Figure) -> String {
    micro(&figure.unit)
}

/// The same for the words of a part, "p50 us".
pub fn micro(words: &str) -> String {
    let word = |word| if word == "us" { "µs" } else { word };
    words.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Whether the quotient of Bantam's median and this one is far from the ratio.
fn apart(figure: &Figure, series: &Series) -> bool {
    let ours = figure.series_of(OURS).and_then(|ours| ours.median);
    let (Some(ours), Some(theirs), Some(ratio)) = (ours, series.median, series.ratio) else {
        return false;
    };
    (ours / theirs / ratio.median - 1.0).abs() > APART
}

/// "did not boot", where the program is to blame for a missing figure, and not what it cannot be
/// asked for.
pub fn failure(series: &Series) -> Option<&str> {
    series.said.as_ref()?;
    series.missing.as_deref()?.split(": ").next()
}

/// The VMMs of some figures that have a value or the reason for none, each once, in order.
pub fn columns<'a>(figures: &[&'a Figure], with: impl Fn(&Series) -> bool) -> Vec<&'a str> {
    let mut names = Vec::new();
    for series in figures.iter().flat_map(|f| &f.series) {
        if with(series) && !names.contains(&series.vmm.as_str()) {
            names.push(series.vmm.as_str());
        }
    }
    names
}
