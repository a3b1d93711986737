//! SVG charts: a bar per VMM with the samples' interval, stacked bars for the phases of a boot,
//! and the distribution of latencies.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::markdown::number;
use crate::result::{Figure, Results, Series};
use crate::stats;

const WIDTH: u32 = 760;
const BAR: u32 = 30;
const COLORS: [RGBColor; 6] = [
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0x1b, 0x6c, 0xa8),
    RGBColor(0x6a, 0xa8, 0xd0),
    RGBColor(0x52, 0x8c, 0x3c),
    RGBColor(0x7b, 0x52, 0x9e),
];

/// Draws what there is to draw; how many charts that were.
pub fn draw(results: &Results, folder: &Path) -> Result<usize> {
    let of = |row: &str| {
        results
            .figures
            .iter()
            .filter(move |f| f.row == row)
            .collect::<Vec<_>>()
    };
    let mut drawn = 0;
    for row in ["start", "boot", "exits", "block", "memory", "density"] {
        let figures: Vec<&Figure> = of(row)
            .into_iter()
            .filter(|f| !f.case.contains("phases") && f.series.iter().any(|s| s.median.is_some()))
            .collect();
        if !figures.is_empty() {
            bars(&figures, row, &folder.join(format!("{row}.svg")))
                .map_err(|e| anyhow!("{row}.svg: {e}"))?;
            drawn += 1;
        }
    }
    let phases: Vec<&Figure> = of("boot")
        .into_iter()
        .filter(|f| f.case.contains("phases"))
        .collect();
    if !phases.is_empty() {
        stacked(&phases, &folder.join("boot-phases.svg"))
            .map_err(|e| anyhow!("boot-phases.svg: {e}"))?;
        drawn += 1;
    }
    let latencies: Vec<&Figure> = of("block")
        .into_iter()
        .filter(|f| f.series.iter().filter(|s| !s.cdf.is_empty()).count() > 1)
        .collect();
    if !latencies.is_empty() {
        cdfs(&latencies, &folder.join("block-latency.svg"))
            .map_err(|e| anyhow!("block-latency.svg: {e}"))?;
        drawn += 1;
    }
    Ok(drawn)
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn color(index: usize) -> RGBColor {
    COLORS.get(index % COLORS.len()).copied().unwrap_or(BLACK)
}

fn measured(figure: &Figure) -> Vec<(usize, &Series)> {
    figure
        .series
        .iter()
        .enumerate()
        .filter(|(_, s)| s.median.is_some())
        .collect()
}

/// One group of bars under the other; each group has its own scale, as units and sizes differ.
fn bars(figures: &[&Figure], title: &str, path: &Path) -> Drawn {
    let lines: u32 = figures.iter().map(|f| measured(f).len() as u32 + 1).sum();
    let root = SVGBackend::new(path, (WIDTH, 50 + lines * BAR)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (12, 12), ("sans-serif", 22)))?;
    let mut y = 46;
    for figure in figures {
        let series = measured(figure);
        let largest = series
            .iter()
            .filter_map(|(_, s)| high(s))
            .fold(f64::MIN_POSITIVE, f64::max);
        let better = if figure.lower_is_better {
            "less is better"
        } else {
            "more is better"
        };
        root.draw(&Text::new(
            format!("{} ({}, {better})", figure.case, figure.unit),
            (12, y + 8),
            ("sans-serif", 14),
        ))?;
        y += BAR as i32;
        for (index, series) in series {
            let Some(median) = series.median else {
                continue;
            };
            let x = |value: f64| 140 + (value / largest * 480.0) as i32;
            root.draw(&Text::new(
                series.vmm.clone(),
                (20, y + 6),
                ("sans-serif", 13),
            ))?;
            root.draw(&Rectangle::new(
                [(140, y + 4), (x(median), y + 22)],
                color(index).filled(),
            ))?;
            let (Some(low), Some(high)) = (low(series), high(series)) else {
                continue;
            };
            root.draw(&PathElement::new(
                [(x(low), y + 13), (x(high), y + 13)],
                BLACK.stroke_width(2),
            ))?;
            root.draw(&Text::new(
                number(median),
                (x(high.max(median)) + 8, y + 6),
                ("sans-serif", 13),
            ))?;
            y += BAR as i32;
        }
    }
    root.present()?;
    Ok(())
}

fn low(series: &Series) -> Option<f64> {
    stats::percentile(&series.samples, 0.1)
}

fn high(series: &Series) -> Option<f64> {
    stats::percentile(&series.samples, 0.9)
}

/// The phases of a boot, one bar per VMM.
fn stacked(figures: &[&Figure], path: &Path) -> Drawn {
    let lines: u32 = figures.iter().map(|f| measured(f).len() as u32 + 1).sum();
    let root = SVGBackend::new(path, (WIDTH, 80 + lines * BAR)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(
        "phases of a boot, ms",
        (12, 12),
        ("sans-serif", 22),
    ))?;
    let all = || figures.iter().flat_map(|f| &f.series);
    let largest = all()
        .filter_map(|s| s.median)
        .fold(f64::MIN_POSITIVE, f64::max);
    if let Some(first) = all().find(|s| !s.parts.is_empty()) {
        let mut x = 140;
        for (index, name) in first.parts.keys().enumerate() {
            let name = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            root.draw(&Rectangle::new(
                [(x, 46), (x + 14, 60)],
                color(index * 2).filled(),
            ))?;
            root.draw(&Text::new(
                name.to_owned(),
                (x + 20, 46),
                ("sans-serif", 13),
            ))?;
            x += 200;
        }
    }
    let mut y = 74;
    for figure in figures {
        root.draw(&Text::new(
            figure.case.replace(", phases", ""),
            (12, y + 8),
            ("sans-serif", 14),
        ))?;
        y += BAR as i32;
        for (_, series) in measured(figure) {
            root.draw(&Text::new(
                series.vmm.clone(),
                (20, y + 6),
                ("sans-serif", 13),
            ))?;
            let mut from = 0.0;
            let x = |value: f64| 140 + (value / largest * 540.0) as i32;
            for (index, part) in series.parts.values().enumerate() {
                root.draw(&Rectangle::new(
                    [(x(from), y + 4), (x(from + part), y + 22)],
                    color(index * 2).filled(),
                ))?;
                from += part;
            }
            root.draw(&Text::new(
                number(from),
                (x(from) + 8, y + 6),
                ("sans-serif", 13),
            ))?;
            y += BAR as i32;
        }
    }
    root.present()?;
    Ok(())
}

/// How many requests took no longer than ... one small chart for each load.
fn cdfs(figures: &[&Figure], path: &Path) -> Drawn {
    let rows = figures.len().div_ceil(2);
    let root = SVGBackend::new(path, (WIDTH * 2, rows as u32 * 300)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, figure) in root.split_evenly((rows, 2)).iter().zip(figures) {
        let points = || {
            figure
                .series
                .iter()
                .flat_map(|s| s.cdf.iter())
                .filter(|(_, fraction)| *fraction > 0.0005 && *fraction < 0.9995)
                .map(|(us, _)| *us)
        };
        let (from, to) = (
            points().fold(f64::MAX, f64::min).max(0.1),
            points().fold(1.0, f64::max),
        );
        let mut chart = ChartBuilder::on(area)
            .caption(&figure.case, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(40)
            .build_cartesian_2d((from..to).log_scale(), 0.0..1.0)?;
        chart
            .configure_mesh()
            .x_desc("us")
            .x_labels(6)
            .x_label_formatter(&|us| super::markdown::number(*us))
            .y_label_formatter(&|y| format!("{:.0} %", y * 100.0))
            .draw()?;
        for (index, series) in figure
            .series
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.cdf.is_empty())
        {
            chart
                .draw_series(LineSeries::new(
                    series.cdf.iter().copied(),
                    color(index).stroke_width(2),
                ))?
                .label(series.vmm.clone())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], color(index).stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()?;
    }
    root.present()?;
    Ok(())
}
