//! Where Bantam stands, on one screen: one ratio for each question that a reader comes with.

use std::fmt::Write;

use super::markdown::{columns, number};
use crate::result::{Figure, OURS, Results, Series};

/// Row and case of the figures that stand for the others.
const HEADLINES: [(&str, &str); 18] = [
    ("start", "process start to first guest byte"),
    ("boot", "ELF, 1 vCPU, quiet"),
    ("boot", "bzImage, 1 vCPU, quiet"),
    ("boot", "bzImage, 1 vCPU, quiet, first boot"),
    ("boot", "stock Debian bzImage, 1 vCPU, quiet"),
    ("exits", "PIO read, from the guest through the VMM and back"),
    ("exits", "ELF, from start to init, all"),
    ("block", "4 KiB random read, depth 1, cached"),
    ("block", "4 KiB random write, depth 32, cached"),
    ("block", "4 KiB random read, depth 1, direct"),
    ("block", "4 KiB random read, depth 32, direct"),
    ("block", "4 KiB random read, depth 32, direct, RAM"),
    ("block", "4 KiB random write, depth 32, qcow2"),
    ("block", "fio in Linux, 4 KiB random read, depth 32"),
    ("memory", "PSS less guest RAM, Linux booted, 1 disk"),
    ("memory", "program"),
    ("density", "50 machines: to the last one ready"),
    ("density", "50 machines: memory of each, less guest RAM"),
];

/// A table of Bantam's ratios to the others.
pub fn render(results: &Results) -> String {
    let figures: Vec<&Figure> = HEADLINES
        .iter()
        .filter_map(|(row, case)| {
            results
                .figures
                .iter()
                .find(|f| f.row == *row && f.case == *case)
        })
        .collect();
    let mut others = columns(&figures);
    others.retain(|name| *name != OURS);
    let mut text = String::from("### At a glance\n\n| row | case | bantam |");
    for name in &others {
        let _ = write!(text, " / {name} |");
    }
    let _ = write!(text, "\n|---|---|---:|{}\n", "---:|".repeat(others.len()));
    for figure in figures {
        let ours = figure.series_of(OURS);
        let _ = write!(
            text,
            "| {} | {} | {} |",
            figure.row,
            figure.case,
            ours.map_or_else(String::new, |series| own(figure, series))
        );
        for name in &others {
            let cell = figure
                .series_of(name)
                .map_or_else(String::new, |series| ratio(figure, series));
            let _ = write!(text, " {cell} |");
        }
        let _ = writeln!(text);
    }
    text.push_str(
        "\nBantam's figure over the other's. **Bold**: better, beyond the interval. Italic: worse, beyond it.\n",
    );
    text
}

fn own(figure: &Figure, series: &Series) -> String {
    let clock = figure.clock.suffix();
    series.median.map_or("—".into(), |median| {
        format!("{} {}{clock}", number(median), figure.unit)
    })
}

fn ratio(figure: &Figure, series: &Series) -> String {
    let Some(ratio) = &series.ratio else {
        return "—".into();
    };
    let (below, above) = (ratio.high < 1.0, ratio.low > 1.0);
    let (better, worse) = match figure.lower_is_better {
        true => (below, above),
        false => (above, below),
    };
    let digits = number(ratio.median);
    match (better, worse) {
        (true, _) => format!("**{digits}**"),
        (_, true) => format!("_{digits}_"),
        _ => digits,
    }
}
