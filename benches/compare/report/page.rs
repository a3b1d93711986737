//! The page: docs/numbers.md, all of it, from the results. The same results give the same bytes.

use std::fmt::Write;

use super::charts::{Chart, GLANCE, LATENCY};
use super::groups::sections;
use super::{summary, tables};
use crate::result::Results;

/// The published page and its results, without their endings.
pub const PUBLISHED: &str = "numbers";
/// Where the charts are, from the page.
pub const CHARTS: &str = "charts";

/// The page of `name`.json, with its `charts`.
pub fn render(results: &Results, charts: &[Chart], name: &str) -> String {
    let mut text = String::new();
    let published = name == PUBLISHED;
    if published {
        text.push_str(
            "<!-- Written by `make bench-publish` from numbers.json; `make bench-page` writes it again. Do not edit. -->\n",
        );
    }
    text.push_str(
        "# Numbers\n\n\
         Bantam beside QEMU, and beside the **floor**: the shortest program that brings a guest to run on KVM, a bare minimum with \
         no VMM around it.\n",
    );
    let lead = summary::lead(results);
    if !lead.is_empty() {
        let _ = writeln!(text, "{lead}");
    }
    text.push_str("Where it loses, below 1×, is [listed as well](#where-bantam-is-behind)");
    text.push_str(match published {
        true => {
            "; how the figures came about is in [history.md](history.md), how to measure in [bench.md](bench.md).\n"
        }
        false => ".\n",
    });
    chart(&mut text, charts, GLANCE);
    let _ = write!(
        text,
        "\n## How to read this page\n\n{}\n\n## At a glance\n\nBantam's median, and how many times better that is than the other's.\n\n{}",
        tables::LEGEND,
        summary::table(results)
    );
    let _ = writeln!(text, "\n## Where Bantam is behind\n\n{}", behind(results));
    for section in sections(results) {
        let _ = write!(text, "\n## {}\n\n{}\n", section.title, section.about);
        chart(&mut text, charts, section.name);
        if section.name == "block" {
            chart(&mut text, charts, LATENCY);
        }
        let _ = writeln!(text);
        tables::render(&mut text, &section.figures);
    }
    run(&mut text, results, name);
    text
}

/// What stands for all of it on a terminal.
pub fn short(results: &Results) -> String {
    format!(
        "{}\nBehind:\n\n{}",
        summary::table(results),
        behind(results)
    )
}

fn behind(results: &Results) -> String {
    let list = summary::behind(results);
    match list.is_empty() {
        true => "Nowhere in these figures.".into(),
        false => format!(
            "Every figure in which another is ahead by more than chance (Bantam's figure to the other's):\n\n{}",
            list.trim_end()
        ),
    }
}

fn chart(text: &mut String, charts: &[Chart], name: &str) {
    if let Some(chart) = charts.iter().find(|chart| chart.name == name) {
        let _ = writeln!(text, "\n![{}]({CHARTS}/{name}.svg)", chart.title);
    }
}

/// What was measured, where and with what.
fn run(text: &mut String, results: &Results, name: &str) {
    let fact = |name: &str| results.host.get(name).map_or("?", String::as_str);
    let _ = write!(
        text,
        "\n## The run\n\n`{}`, {}, commit {}; every sample is in [{name}.json]({name}.json). The host: {} processors ({}), {}, \
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
}
