//! Where Bantam stands, on one screen: a paragraph, one figure for each question that a reader comes
//! with, and the list of what it is behind in.

use std::fmt::Write;

use super::standing::{Verdict, columns, failure, standing, times, unit, value};
use crate::result::{Figure, OURS, Results, Series};

/// A figure that stands for others.
#[derive(Debug)]
pub struct Headline<'a> {
    /// What it is about, for somebody who knows no case by name.
    pub words: &'static str,
    pub figure: &'a Figure,
}

/// Row, case, and what that is in plain words.
const HEADLINES: [(&str, &str, &str); 18] = [
    (
        "start",
        "process start to first guest byte",
        "Start a guest of four instructions",
    ),
    (
        "density",
        "50 machines: to the last one ready",
        "Start fifty of them",
    ),
    ("boot", "ELF, 1 vCPU, quiet", "Boot Linux, ELF kernel"),
    (
        "boot",
        "bzImage, 1 vCPU, quiet",
        "Boot Linux, bzImage seen before",
    ),
    (
        "boot",
        "bzImage, 1 vCPU, quiet, first boot",
        "Boot Linux, bzImage never seen",
    ),
    (
        "boot",
        "stock Debian bzImage, 1 vCPU, quiet",
        "Boot Debian's stock kernel",
    ),
    ("exits", "ELF, from start to init, all", "Exits in a boot"),
    (
        "exits",
        "PIO read, from the guest through the VMM and back",
        "One exit to the VMM",
    ),
    (
        "memory",
        "PSS less guest RAM, Linux booted, 1 disk",
        "Memory besides the guest's, Linux",
    ),
    (
        "density",
        "50 machines: memory of each, less guest RAM",
        "Memory of each of fifty machines",
    ),
    ("memory", "program", "Size of the program"),
    (
        "block",
        "4 KiB random read, depth 1, cached",
        "Read 4 KiB, one by one, page cache",
    ),
    (
        "block",
        "4 KiB random write, depth 32, cached",
        "Write 4 KiB, 32 at once, page cache",
    ),
    (
        "block",
        "4 KiB random read, depth 1, direct",
        "Read 4 KiB, one by one, direct",
    ),
    (
        "block",
        "4 KiB random read, depth 32, direct",
        "Read 4 KiB, 32 at once, direct",
    ),
    (
        "block",
        "4 KiB random read, depth 32, direct, RAM",
        "Read 4 KiB, 32 at once, disk in RAM",
    ),
    (
        "block",
        "4 KiB random write, depth 32, qcow2",
        "Write 4 KiB, 32 at once, qcow2",
    ),
    (
        "block",
        "fio in Linux, 4 KiB random read, depth 32",
        "fio in Linux, read 4 KiB, 32 at once",
    ),
];

/// Those headlines whose figures there are.
pub fn headlines(results: &Results) -> Vec<Headline<'_>> {
    HEADLINES
        .iter()
        .filter_map(|(row, case, words)| {
            let figure = results
                .figures
                .iter()
                .find(|f| f.row == *row && f.case == *case)?;
            Some(Headline { words, figure })
        })
        .collect()
}

/// Who Bantam is compared with in some figures, by name.
pub fn others<'a>(figures: &[&'a Figure]) -> Vec<&'a str> {
    let mut names = columns(figures, |series| series.ratio.is_some());
    names.retain(|name| *name != OURS);
    names
}

/// What the paragraph at the top names, each with the figure that it is of.
const CLAIMS: [(&str, &str, &str); 4] = [
    (
        "start",
        "process start to first guest byte",
        "at starting a guest",
    ),
    ("boot", "ELF, 1 vCPU, quiet", "at booting a small Linux"),
    (
        "memory",
        "PSS less guest RAM, Linux booted, 1 disk",
        "in memory besides the guest's own",
    ),
    (
        "block",
        "4 KiB random read, depth 32, direct",
        "at reading a disk past the page cache",
    ),
];

/// Whom the paragraph is about: QEMU's smallest machine.
const RIVAL: &str = "qemu-microvm";

/// One sentence, made of the figures; nothing where there are none.
pub fn lead(results: &Results) -> String {
    let claim = |(row, case, words): &(&str, &str, &str)| {
        let mut figures = results.figures.iter();
        let figure = figures.find(|f| f.row == *row && f.case == *case)?;
        let standing = standing(figure, figure.series_of(RIVAL)?)?;
        Some(format!("{words} {}", standing.short()))
    };
    let claims: Vec<String> = CLAIMS.iter().filter_map(claim).collect();
    match claims.is_empty() {
        true => String::new(),
        false => format!(
            "How many times better Bantam is than QEMU's smallest machine (`{RIVAL}`): {}.",
            claims.join(", ")
        ),
    }
}

/// A table of the headlines.
pub fn table(results: &Results) -> String {
    let headlines = headlines(results);
    let figures: Vec<&Figure> = headlines.iter().map(|h| h.figure).collect();
    let others = others(&figures);
    let mut text = String::from("| question | Bantam |");
    for name in &others {
        let _ = write!(text, " than {name} |");
    }
    let _ = write!(text, "\n|---|---:|{}\n", "---:|".repeat(others.len()));
    for Headline { words, figure } in &headlines {
        let ours = figure.series_of(OURS);
        let ours = ours.and_then(|series| value(figure, series));
        let ours = ours.map_or("—".into(), |ours| {
            format!("{ours} {}{}", unit(figure), figure.clock.suffix())
        });
        let _ = write!(text, "| {words} | {ours} |");
        for name in &others {
            let _ = write!(text, " {} |", to(figure, figure.series_of(name)));
        }
        let _ = writeln!(text);
    }
    text
}

fn to(figure: &Figure, series: Option<&Series>) -> String {
    let Some(series) = series else {
        return String::new();
    };
    match (standing(figure, series), failure(series)) {
        (Some(standing), _) => standing.short(),
        (None, Some(short)) => short.into(),
        (None, None) => String::new(),
    }
}

/// Where Bantam is behind, of all figures: by the VMM that is ahead, the furthest first.
pub fn behind(results: &Results) -> String {
    let figures: Vec<&Figure> = results.figures.iter().collect();
    let mut text = String::new();
    for name in others(&figures) {
        let mut cases: Vec<(f64, String)> = Vec::new();
        for figure in &figures {
            let Some(series) = figure.series_of(name) else {
                continue;
            };
            let (Some(standing), Some(ours), Some(theirs)) = (
                standing(figure, series),
                figure.series_of(OURS).and_then(|ours| value(figure, ours)),
                value(figure, series),
            ) else {
                continue;
            };
            if standing.verdict == Verdict::Behind {
                let case = format!(
                    "{}: {} ({} to {} {}{})",
                    figure.case,
                    times(standing.times.median),
                    ours,
                    theirs,
                    unit(figure),
                    figure.clock.suffix(),
                );
                cases.push((standing.times.median, case));
            }
        }
        cases.sort_by(|a, b| a.0.total_cmp(&b.0));
        let cases: Vec<String> = cases.into_iter().map(|(_, case)| case).collect();
        if !cases.is_empty() {
            let _ = writeln!(text, "- **{name}**: {}.", cases.join("; "));
        }
    }
    text
}
