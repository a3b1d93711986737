//! The page: docs/numbers.md, all of it, from the results. The same results give the same bytes.

use std::fmt::Write;

use super::charts::{Chart, GLANCE, LATENCY};
use super::groups::sections;
use super::{summary, tables};
use crate::result::{OURS, Results};

/// Where the charts are, from the page.
pub const CHARTS: &str = "charts";

/// The page with its `charts`.
pub fn render(results: &Results, charts: &[Chart]) -> String {
    let mut text = String::from(
        "<!-- Written by `make bench-publish` from numbers.json; `make bench-page` writes it again. Do not edit. -->\n\
         # Numbers\n\n\
         Bantam beside QEMU, and beside the **floor**: the shortest program that brings a guest to run on KVM, a bare minimum with \
         no VMM around it.\n",
    );
    let lead = summary::lead(results);
    if !lead.is_empty() {
        let _ = writeln!(text, "{lead}");
    }
    text.push_str(
        "Where Bantam loses is [listed as well](#where-bantam-is-behind); how the figures came about is in \
         [history.md](history.md), how to measure in [bench.md](bench.md).\n",
    );
    chart(&mut text, charts, GLANCE);
    let _ = write!(
        text,
        "\n## How to read this page\n\n{}\n\n## At a glance\n\nBantam's median, and how many times better that is than the other's.\n\n{}",
        tables::LEGEND,
        summary::table(results)
    );
    let behind = summary::behind(results);
    let _ = writeln!(text, "\n## Where Bantam is behind\n");
    match behind.is_empty() {
        true => text.push_str("Nowhere in these figures.\n"),
        false => {
            text.push_str(
                "Every figure of this page in which another is ahead by more than chance (Bantam's figure to the other's):\n\n",
            );
            text.push_str(&behind);
        }
    }
    for section in sections(results) {
        let _ = write!(text, "\n## {}\n\n{}\n", section.title, section.about);
        chart(&mut text, charts, section.name);
        if section.name == "block" {
            chart(&mut text, charts, LATENCY);
        }
        let _ = writeln!(text);
        tables::render(&mut text, &section.figures);
    }
    run(&mut text, results);
    text
}

fn chart(text: &mut String, charts: &[Chart], name: &str) {
    if let Some(chart) = charts.iter().find(|chart| chart.name == name) {
        let _ = writeln!(text, "\n![{}]({CHARTS}/{name}.svg)", chart.title);
    }
}

/// What was measured, where and with what.
fn run(text: &mut String, results: &Results) {
    let fact = |name: &str| results.host.get(name).map_or("?", String::as_str);
    let _ = write!(
        text,
        "\n## The run\n\n`{}`, {}, commit {}; every sample is in [numbers.json](numbers.json). The host: {} processors ({}), {}, \
         Linux {}, KVM by {}.\n\n",
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
        let took = results
            .took
            .get(name)
            .map_or_else(String::new, |took| format!(", with `{took}`"));
        let _ = writeln!(text, "- {name}: {version}{took}");
    }
    // What a VMM took elsewhere than on the host, in the lab.
    for (name, took) in &results.took {
        if !results.versions.contains_key(name) {
            let _ = writeln!(text, "- {name}: `{took}`");
        }
    }
    let _ = writeln!(
        text,
        "\nBantam's name in tables and charts is `{OURS}`. The other names are explained in [bench.md](bench.md)."
    );
}
