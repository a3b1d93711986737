//! Tables: a line per case, a column per VMM that has a figure there; and below, why one has none.

use std::fmt::Write;

use super::standing::{columns, failure, micro, number, standing, unit, value};
use crate::result::{Figure, Series};

/// How a reader reads a cell.
pub const LEGEND: &str = "\
A cell like 75 (**15×**, 13–16) says: this VMM's median is 75, and Bantam is **15 times better**; with 95 % certainty, 13 to 16
times. More than 1× is in Bantam's favour in every line, whether the unit is milliseconds or requests a second.

- **Bold**: Bantam is ahead. _Italic_: Bantam is behind. Plain: no difference could be shown.
- `?`: the samples differ too much for an answer, as the interval says.
- The factor is the median of the rounds' own factors, as all VMMs of a round are measured one right after the other. To divide two
  medians gives nearly the same: a tenth more or less at the most. `59–184` in place of a median are the lowest and the highest
  sample: there the machine changed so much from round to round that to divide medians would mislead.
- `(virtual)`: time of an emulated machine whose clock counts instructions, 1 ns each. It repeats within a percent and is no
  prediction of seconds. `(emulated)`: the host's clock in an emulated machine, a hundred times slower than a real one, and
  noisy: three samples each. Both are for comparing within their line only. Without a mark: the host's own clock.
- Without an interval: all samples agree, or there is one only.";

/// The table of some figures, and the notes below it.
pub fn render(text: &mut String, figures: &[&Figure]) {
    let mut notes = Notes::default();
    // What is true of all lines is said once, without a mark in each.
    let same = figures.first().map(|f| &f.note);
    let same = same.filter(|note| !note.is_empty() && figures.iter().all(|f| &f.note == *note));
    if let Some(note) = same {
        let _ = writeln!(text, "{}.\n", sentence(note));
    }
    let columns = columns(figures, |series| {
        !series.samples.is_empty() || failure(series).is_some()
    });
    let _ = write!(text, "| case | unit |");
    for name in &columns {
        let _ = write!(text, " {name} |");
    }
    let _ = write!(text, "\n|---|---|{}\n", "---:|".repeat(columns.len()));
    for figure in figures {
        let clock = figure.clock.suffix();
        let about = match same {
            Some(_) => String::new(),
            None => notes.mark(&figure.note),
        };
        let _ = write!(text, "| {}{about} | {}{clock} |", figure.case, unit(figure));
        for name in &columns {
            let cell = figure
                .series_of(name)
                .map(|series| cell(figure, series, &mut notes));
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        let _ = writeln!(text);
    }
    let _ = writeln!(text);
    notes.write(text);
    absent(text, figures, &columns);
    details(text, figures);
}

fn cell(figure: &Figure, series: &Series, notes: &mut Notes) -> String {
    let why = series.missing.as_ref().map_or_else(String::new, |why| {
        notes.mark(&format!("{}: {why}", series.vmm))
    });
    let Some(value) = value(figure, series) else {
        return format!("{}{why}", failure(series).unwrap_or("—"));
    };
    match standing(figure, series) {
        Some(standing) => format!("{value}{why} ({})", standing.long()),
        None => value + &why,
    }
}

/// With a capital at its beginning.
fn sentence(note: &str) -> String {
    let mut letters = note.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// Numbered notes below a table, each once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn mark(&mut self, note: &str) -> String {
        if note.is_empty() {
            return String::new();
        }
        let at = self
            .0
            .iter()
            .position(|known| known == note)
            .unwrap_or_else(|| {
                self.0.push(note.to_owned());
                self.0.len() - 1
            });
        format!("<sup>{}</sup>", at + 1)
    }

    fn write(&self, text: &mut String) {
        for (i, note) in self.0.iter().enumerate() {
            let _ = writeln!(text, "{}. {}", i + 1, note.replace('\n', " "));
        }
    }
}

/// Who is in no line of the table, and why.
fn absent(text: &mut String, figures: &[&Figure], shown: &[&str]) {
    let mut whys: Vec<String> = Vec::new();
    for series in figures.iter().flat_map(|f| &f.series) {
        let Some(why) = &series.missing else { continue };
        let line = format!("{} ({why})", series.vmm);
        if !shown.contains(&series.vmm.as_str()) && !whys.contains(&line) {
            whys.push(line);
        }
    }
    if !whys.is_empty() {
        let _ = writeln!(text, "\nNot here: {}.", whys.join(", "));
    }
}

/// What the medians are made of, folded away.
fn details(text: &mut String, figures: &[&Figure]) {
    let figures: Vec<&&Figure> = figures
        .iter()
        .filter(|f| f.series.iter().any(|s| !s.parts.is_empty()))
        .collect();
    if figures.is_empty() {
        return;
    }
    let all = || figures.iter().flat_map(|f| &f.series);
    let mut names: Vec<&str> = Vec::new();
    for name in all().flat_map(|s| s.parts.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let _ = writeln!(
        text,
        "\n<details><summary>What these are made of</summary>\n"
    );
    // A few names that all have in common are columns; reasons of exits are not.
    if names.len() <= 4 {
        let _ = writeln!(text, "| case | VMM | {} |", micro(&names.join(" | ")));
        let _ = writeln!(text, "|---|---|{}", "---:|".repeat(names.len()));
        for figure in figures {
            for series in figure.series.iter().filter(|s| !s.parts.is_empty()) {
                let cells: Vec<String> = names
                    .iter()
                    .map(|name| {
                        series
                            .parts
                            .get(*name)
                            .map_or_else(String::new, |v| number(*v))
                    })
                    .collect();
                let _ = writeln!(
                    text,
                    "| {} | {} | {} |",
                    figure.case,
                    series.vmm,
                    cells.join(" | ")
                );
            }
        }
    } else {
        for figure in figures {
            for series in figure.series.iter().filter(|s| !s.parts.is_empty()) {
                let mut parts: Vec<_> = series.parts.iter().collect();
                parts.sort_by(|a, b| b.1.total_cmp(a.1));
                let parts: Vec<String> = parts
                    .iter()
                    .take(8)
                    .map(|(name, value)| format!("{name} {value:.0}"))
                    .collect();
                let _ = writeln!(
                    text,
                    "- {}, {}: {}",
                    figure.case,
                    series.vmm,
                    parts.join(", ")
                );
            }
        }
    }
    let _ = writeln!(text, "\n</details>");
}
