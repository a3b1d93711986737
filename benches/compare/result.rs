//! What a run has found: the JSON that everything else is made from. docs/bench.md documents it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::{self, Ratio};

/// Goes up when a reader of older files would misread newer ones.
pub const SCHEMA: u32 = 1;

/// Whose numbers stand over the others' in a ratio.
pub const OURS: &str = "bantam";

/// One run of the harness.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The command line that makes them again.
    pub command: String,
    /// UTC, RFC 3339.
    pub date: String,
    /// Commit of the source, with `-dirty` where files differ from it.
    pub commit: String,
    /// Processor, kernel, KVM, memory.
    pub host: BTreeMap<String, String>,
    /// Version of each VMM and tool.
    pub versions: BTreeMap<String, String>,
    /// What a VMM had to be given on this host, where there was a choice: QEMU's model of the processor.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub took: BTreeMap<String, String>,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// What the rows of a run, or of a part of it in the lab, have found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Found {
    /// As in [`Results`].
    pub took: BTreeMap<String, String>,
    /// As in [`Results`].
    pub figures: Vec<Figure>,
}

impl Found {
    /// Adds what the lab has found; that a VMM was given something else there is said as well.
    pub fn join_lab(&mut self, lab: Found) {
        for (name, took) in lab.took {
            if self.took.get(&name) != Some(&took) {
                self.took.insert(format!("{name} in the lab"), took);
            }
        }
        self.figures.extend(lab.figures);
    }
}

/// Whose clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The host's.
    Wall,
    /// The lab's: a nanosecond is an instruction.
    Virtual,
    /// The host's, in the lab: an emulated processor, times as noisy as the host.
    Emulated,
    /// No time at all: bytes, counts.
    None,
}

impl Clock {
    /// Behind a unit, where the clock is not a reader's own.
    pub fn suffix(self) -> &'static str {
        match self {
            Clock::Virtual => " (virtual)",
            Clock::Emulated => " (emulated)",
            Clock::Wall | Clock::None => "",
        }
    }
}

/// One question, and each VMM's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// `start`, `boot`, `exits`, `block`, `memory`, `density`.
    pub row: String,
    /// Which case of it.
    pub case: String,
    /// Of the samples.
    pub unit: String,
    /// Less is better.
    pub lower_is_better: bool,
    /// What the unit was measured with.
    pub clock: Clock,
    /// What a reader should know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// One per VMM, Bantam's first.
    pub series: Vec<Series>,
}

/// One VMM's samples.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Series {
    /// `bantam`, `qemu-microvm` ...
    pub vmm: String,
    /// Every one, in the order of the rounds.
    pub samples: Vec<f64>,
    /// The middle one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median: Option<f64>,
    /// Bantam's sample over this VMM's, round by round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// Why there are no samples, or no more of them, in plain words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// What the program printed when it failed, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// What the median is made of: phases of a boot, exits by reason, percentiles.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, f64>,
    /// A distribution: values with the fraction at or below each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdf: Vec<(f64, f64)>,
}

impl Figure {
    /// Computes medians and ratios from the samples.
    pub fn finish(&mut self) {
        let ours = self
            .series_of(OURS)
            .map(|s| s.samples.clone())
            .unwrap_or_default();
        for series in &mut self.series {
            series.median = stats::median(&series.samples);
            series.ratio = (series.vmm != OURS)
                .then(|| stats::paired_ratio(&ours, &series.samples))
                .flatten();
        }
    }

    /// The series of one VMM.
    pub fn series_of(&self, vmm: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.vmm == vmm)
    }
}
