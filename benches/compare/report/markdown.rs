//! Tables: a line per case, a column per VMM.

use std::fmt::Write;

use crate::result::{Clock, Figure, OURS, Results, Series};

/// All figures, with a summary on top.
pub fn render(results: &Results) -> String {
    let mut text = String::new();
    header(&mut text, results);
    let _ = write!(text, "\n{}", super::summary::render(results));
    let mut rows: Vec<&str> = Vec::new();
    for figure in &results.figures {
        if !rows.contains(&figure.row.as_str()) {
            rows.push(&figure.row);
        }
    }
    for row in rows {
        let figures: Vec<&Figure> = results.figures.iter().filter(|f| f.row == row).collect();
        let _ = writeln!(text, "\n### {row}\n");
        table(&mut text, &figures);
        parts(&mut text, &figures);
        notes(&mut text, &figures);
    }
    text
}

fn header(text: &mut String, results: &Results) {
    let fact = |name: &str| results.host.get(name).map_or("?", String::as_str);
    let _ = writeln!(
        text,
        "`{}`, {}, commit {}.\n{} x {}, {}, Linux {}, KVM by {}.",
        results.command,
        results.date,
        results.commit,
        fact("processors"),
        fact("processor"),
        fact("memory"),
        fact("kernel"),
        fact("kvm"),
    );
    for (name, version) in &results.versions {
        let _ = writeln!(text, "{name}: {version}.");
    }
}

/// The VMMs of some figures, each once, in order.
pub fn columns<'a>(figures: &[&'a Figure]) -> Vec<&'a str> {
    let mut names = Vec::new();
    for series in figures.iter().flat_map(|f| &f.series) {
        let took_part = !series.samples.is_empty() || series.missing.is_some();
        if took_part && !names.contains(&series.vmm.as_str()) {
            names.push(series.vmm.as_str());
        }
    }
    names
}

fn table(text: &mut String, figures: &[&Figure]) {
    let columns = columns(figures);
    let _ = write!(text, "| case | unit |");
    for name in &columns {
        let _ = write!(text, " {name} |");
    }
    let _ = write!(text, "\n|---|---|{}\n", "---:|".repeat(columns.len()));
    for figure in figures {
        let clock = figure.clock.suffix();
        let _ = write!(text, "| {} | {}{clock} |", figure.case, figure.unit);
        for name in &columns {
            let _ = write!(
                text,
                " {} |",
                figure.series_of(name).map_or_else(String::new, cell)
            );
        }
        let _ = writeln!(text);
    }
}

/// `12.3`, with Bantam's ratio to it and the ratio's interval.
fn cell(series: &Series) -> String {
    let Some(median) = series.median else {
        return if series.missing.is_some() {
            "—".into()
        } else {
            String::new()
        };
    };
    match &series.ratio {
        Some(r) if series.vmm != OURS => {
            format!(
                "{} (x {:.3}, {:.3}–{:.3})",
                number(median),
                r.median,
                r.low,
                r.high
            )
        }
        _ => format!("**{}**", number(median)),
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

fn parts(text: &mut String, figures: &[&Figure]) {
    for figure in figures
        .iter()
        .filter(|f| f.series.iter().any(|s| !s.parts.is_empty()))
    {
        let _ = writeln!(text, "\n{}:", figure.case);
        for series in figure.series.iter().filter(|s| !s.parts.is_empty()) {
            let mut parts: Vec<_> = series.parts.iter().collect();
            if figure.clock == Clock::None {
                parts.sort_by(|a, b| b.1.total_cmp(a.1));
            }
            let parts: Vec<String> = parts
                .iter()
                .take(8)
                .map(|(name, value)| format!("{name} {}", number(**value)))
                .collect();
            let _ = writeln!(text, "- {}: {}", series.vmm, parts.join(", "));
        }
    }
}

fn notes(text: &mut String, figures: &[&Figure]) {
    let mut lines: Vec<String> = Vec::new();
    for figure in figures {
        let missing = figure
            .series
            .iter()
            .filter_map(|s| Some(format!("{}: {}", s.vmm, s.missing.as_ref()?)));
        let note = (!figure.note.is_empty()).then(|| figure.note.clone());
        for line in note.into_iter().chain(missing) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(text);
    }
    for line in lines {
        let _ = writeln!(text, "- _{}_", line.replace('\n', " "));
    }
}
