//! A, B, C, A, B, C ...: measures in turn, until the answer is narrow or the time is up.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::Failed;
use crate::result::{Clock, Figure, OURS, Series};
use crate::stats;
use crate::vmm::Vmm;

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// At least so many rounds.
    pub min_rounds: usize,
    /// At most so many.
    pub max_rounds: usize,
    /// No new round after this time; and none for a VMM that has taken as much alone.
    pub budget: Duration,
    /// Narrow enough: half of each ratio's interval, relative.
    pub spread: f64,
}

impl Effort {
    /// Virtual time repeats: a few rounds show that it does.
    pub fn virtual_time() -> Self {
        Effort {
            min_rounds: 2,
            max_rounds: 2,
            budget: Duration::from_secs(600),
            spread: 0.0,
        }
    }

    /// In the lab on the host's clock: slow, and noisy however often.
    pub fn emulated() -> Self {
        Effort {
            min_rounds: 3,
            max_rounds: 3,
            ..Effort::virtual_time()
        }
    }

    /// On the host's clock.
    pub fn wall(min_rounds: usize, budget: Duration) -> Self {
        Effort {
            min_rounds,
            max_rounds: 400,
            budget,
            spread: 0.01,
        }
    }
}

/// One sample, with what it is made of.
#[derive(Debug, Default, Clone)]
pub struct Sample {
    pub value: f64,
    pub parts: Vec<(String, f64)>,
    pub cdf: Vec<(f64, f64)>,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Sample {
            value,
            ..Sample::default()
        }
    }
}

/// What a figure is about, before there are numbers.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    pub row: &'a str,
    pub case: String,
    pub unit: &'a str,
    pub lower_is_better: bool,
    pub clock: Clock,
    pub note: &'a str,
}

/// Measures each VMM in turn. One that fails is out, and the figure says why; the others go on.
pub fn interleave(
    question: Question<'_>,
    vmms: &[Vmm],
    effort: Effort,
    mut measure: impl FnMut(&Vmm) -> Result<Sample>,
) -> Figure {
    let mut figure = Figure {
        row: question.row.into(),
        case: question.case,
        unit: question.unit.into(),
        lower_is_better: question.lower_is_better,
        clock: question.clock,
        note: question.note.into(),
        series: vmms
            .iter()
            .map(|vmm| Series {
                vmm: vmm.name().into(),
                ..Series::default()
            })
            .collect(),
    };
    let mut details: Vec<Vec<Sample>> = vec![Vec::new(); vmms.len()];
    let end = Instant::now() + effort.budget;
    let mut spent = vec![Duration::ZERO; vmms.len()];
    for round in 0..effort.max_rounds {
        if round >= effort.min_rounds && (Instant::now() > end || narrow(&figure, effort.spread)) {
            break;
        }
        // Every other round backwards, so that nobody always follows the same neighbour.
        let order: Vec<usize> = if round % 2 == 0 {
            (0..vmms.len()).collect()
        } else {
            (0..vmms.len()).rev().collect()
        };
        for index in order {
            let (Some(vmm), Some(series), Some(details), Some(spent)) = (
                vmms.get(index),
                figure.series.get_mut(index),
                details.get_mut(index),
                spent.get_mut(index),
            ) else {
                continue;
            };
            if series.missing.is_some() || *spent > effort.budget {
                continue;
            }
            let before = Instant::now();
            let measured = measure(vmm);
            *spent += before.elapsed();
            match measured {
                Ok(sample) => {
                    series.samples.push(sample.value);
                    details.push(sample);
                }
                Err(error) => fail(series, &error),
            }
        }
        let over = |(series, spent): (&Series, &Duration)| {
            series.missing.is_some() || *spent > effort.budget
        };
        if figure.series.iter().zip(&spent).all(over) {
            break;
        }
    }
    figure.finish();
    for (series, samples) in figure.series.iter_mut().zip(details) {
        describe(series, &samples);
    }
    figure
}

/// Notes why a VMM is out: the reason in plain words, and apart from it what the program printed.
fn fail(series: &mut Series, error: &anyhow::Error) {
    match error.downcast_ref::<Failed>() {
        Some(failed) => {
            series.missing = Some(failed.why.clone());
            series.said = Some(failed.said.clone());
        }
        None => series.missing = Some(format!("{error:#}")),
    }
}

/// Parts are medians of their own; of the distributions, the one of the middle sample stays.
fn describe(series: &mut Series, samples: &[Sample]) {
    let Some(first) = samples.first() else { return };
    for (name, _) in &first.parts {
        let values: Vec<f64> = samples
            .iter()
            .filter_map(|s| s.parts.iter().find(|(n, _)| n == name).map(|(_, v)| *v))
            .collect();
        if let Some(middle) = stats::median(&values) {
            series.parts.insert(name.clone(), middle);
        }
    }
    let mut sorted: Vec<&Sample> = samples.iter().collect();
    sorted.sort_by(|a, b| a.value.total_cmp(&b.value));
    if let Some(middle) = sorted.get(sorted.len() / 2) {
        series.cdf = middle.cdf.clone();
    }
}

fn narrow(figure: &Figure, spread: f64) -> bool {
    let Some(ours) = figure.series_of(OURS) else {
        return false;
    };
    figure
        .series
        .iter()
        .filter(|series| series.vmm != OURS && series.missing.is_none())
        .all(|series| {
            stats::paired_ratio(&ours.samples, &series.samples).is_some_and(|r| r.spread() < spread)
        })
}
