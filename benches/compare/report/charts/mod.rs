//! SVG charts: one that shows all at a glance, and one for each section of the page.
//!
//! ```text
//!   mod.rs     which charts there are, and what is on them
//!   plot.rs    panels of lines of marks over an axis
//!   axis.rs    a scale, its ticks and their labels
//!   style.rs   a colour and a shape for each VMM, everywhere the same; light and dark pages
//! ```

mod axis;
mod phases;
mod plot;
mod style;

use anyhow::{Result, anyhow};

use super::groups::{Section, is_phases, sections};
use super::standing::{is_steady, standing, unit};
use super::summary;
use crate::result::{Clock, Figure, OURS, Results, Series};
use crate::stats;
use plot::{Line, Mark, Panel, Plot};

/// The chart at the top.
pub const GLANCE: &str = "at-a-glance";
/// The chart of how long requests take.
pub const LATENCY: &str = "block-latency";

/// A chart.
#[derive(Debug)]
pub struct Chart {
    /// Of its file, without `.svg`.
    pub name: &'static str,
    /// For who cannot see it.
    pub title: String,
    pub svg: String,
}

/// Draws what there is to draw.
pub fn draw(results: &Results) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    let mut add = |name, plot: Option<Plot>| -> Result<()> {
        if let Some(plot) = plot {
            charts.push(Chart {
                name,
                title: plot.title.clone(),
                svg: plot.draw().map_err(|e| anyhow!("{name}.svg: {e}"))?,
            });
        }
        Ok(())
    };
    add(GLANCE, glance(results))?;
    for section in sections(results) {
        if section.figures.iter().all(|f| is_phases(f)) {
            continue;
        }
        add(section.name, medians(&section))?;
        if section.name == "block" {
            add(LATENCY, latencies(&section))?;
        }
    }
    for section in sections(results) {
        if section.figures.iter().all(|f| is_phases(f)) {
            let svg =
                phases::draw(&section.figures).map_err(|e| anyhow!("{}.svg: {e}", section.name))?;
            charts.push(Chart {
                name: section.name,
                title: phases::TITLE.into(),
                svg,
            });
        }
    }
    Ok(charts)
}

/// How many times better Bantam is, for each headline and VMM.
fn glance(results: &Results) -> Option<Plot> {
    let mut lines = Vec::new();
    for headline in summary::headlines(results) {
        let figure = headline.figure;
        let marks = figure.series.iter().filter_map(|series| {
            let times = standing(figure, series)?.times;
            Some(Mark {
                vmm: series.vmm.clone(),
                low: times.low,
                at: Some(times.median),
                high: times.high,
            })
        });
        let clock = figure.clock.suffix();
        lines.push(Line {
            label: format!("{}{clock}", headline.words),
            marks: marks.collect(),
        });
    }
    lines.retain(|line| !line.marks.is_empty());
    (!lines.is_empty()).then(|| Plot {
        title: "How many times better is Bantam than each of these?".into(),
        panels: vec![Panel {
            heading: String::new(),
            unit: "×",
            from_one: true,
            lines,
        }],
    })
}

/// Every VMM's median, with the tenth and the ninetieth hundredth of its samples; or, where no median
/// can stand beside the ratios, all of its samples' range.
fn medians(section: &Section<'_>) -> Option<Plot> {
    let mark = |figure: &Figure, series: &Series| {
        let end = |fraction| stats::percentile(&series.samples, fraction);
        let steady = is_steady(figure, series);
        Some(Mark {
            vmm: series.vmm.clone(),
            low: end(if steady { 0.1 } else { 0.0 })?,
            at: series.median.filter(|_| steady),
            high: end(if steady { 0.9 } else { 1.0 })?,
        })
    };
    plot(section, section.title.to_owned(), "", mark, &|figure| {
        (unit(figure), figure.lower_is_better)
    })
}

/// From the time that half of the requests take no longer than, to that of 99 in 100.
fn latencies(section: &Section<'_>) -> Option<Plot> {
    let mark = |_: &Figure, series: &Series| {
        let part = |name| series.parts.get(name).copied();
        let (half, most) = (part("p50 us")?, part("p99 us")?);
        Some(Mark {
            vmm: series.vmm.clone(),
            low: half,
            at: Some(half),
            high: most,
        })
    };
    plot(
        section,
        "How long a request takes".into(),
        "mark: half of the requests take no longer; end of the line: 99 of 100; ",
        mark,
        &|_| ("µs".into(), true),
    )
}

/// A panel for each unit and clock, a line for each figure.
fn plot(
    section: &Section<'_>,
    title: String,
    about: &str,
    mark: impl Fn(&Figure, &Series) -> Option<Mark>,
    unit: &dyn Fn(&Figure) -> (String, bool),
) -> Option<Plot> {
    let mut panels: Vec<Panel> = Vec::new();
    for figure in &section.figures {
        let marks = figure
            .series
            .iter()
            .filter_map(|series| mark(figure, series));
        let mut marks: Vec<Mark> = marks.collect();
        // Nothing is to be seen of what all have none of, and a logarithm has no zero.
        marks.retain(|mark| mark.low > 0.0);
        let comparable = marks.len() > 1 || marks.iter().any(|mark| mark.vmm == OURS);
        if marks.is_empty() || !comparable {
            continue;
        }
        let (unit, less) = unit(figure);
        let time = match figure.clock {
            Clock::Virtual => ", virtual time",
            Clock::Emulated => ", emulated machine",
            Clock::Wall | Clock::None => "",
        };
        let better = if less { "less" } else { "more" };
        let heading = format!("{about}{unit}{time}: {better} is better");
        let line = Line {
            label: figure.case.clone(),
            marks,
        };
        match panels.iter_mut().find(|panel| panel.heading == heading) {
            Some(panel) => panel.lines.push(line),
            None => panels.push(Panel {
                heading,
                unit: "",
                from_one: false,
                lines: vec![line],
            }),
        }
    }
    (!panels.is_empty()).then_some(Plot { title, panels })
}
