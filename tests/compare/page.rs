//! docs/numbers.md and its charts, as a stranger reads them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use libtest_mimic::Trial;

use crate::common::{root, trials};
use crate::report::{self, charts, page};
use crate::result::{Clock, Figure, OURS, Results, Series};
use crate::vmm;

pub fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 10] = [
        ("page_is_made_of_its_figures", page_is_made_of_its_figures),
        ("every_chart_is_in_the_page", every_chart_is_in_the_page),
        ("links_of_the_pages_lead_somewhere", links_lead_somewhere),
        ("legend_comes_before_the_first_table", legend_comes_first),
        (
            "factors_are_what_the_medians_say",
            factors_are_what_the_medians_say,
        ),
        ("noise_is_called_noise", noise_is_called_noise),
        (
            "crashes_of_others_are_no_text",
            crashes_of_others_are_no_text,
        ),
        ("losing_figures_are_listed", losing_figures_are_listed),
        ("a_vmm_has_one_colour", a_vmm_has_one_colour),
        (
            "charts_fit_a_screen_and_name_their_units",
            charts_fit_a_screen,
        ),
    ];
    trials::trials(None, tests)
}

fn docs() -> PathBuf {
    root().join("docs")
}

fn published() -> Results {
    report::read(&docs().join("numbers.json")).unwrap()
}

fn published_page() -> String {
    std::fs::read_to_string(docs().join("numbers.md")).unwrap()
}

fn render(results: &Results) -> String {
    page::render(results, &charts::draw(results).unwrap(), page::PUBLISHED)
}

/// What is committed is what `make bench-page` writes, to the byte, without a measurement.
fn page_is_made_of_its_figures() {
    let results = published();
    let drawn = charts::draw(&results).unwrap();
    let say = "is not made of docs/numbers.json: run 'make bench-page'";
    assert!(
        page::render(&results, &drawn, page::PUBLISHED) == published_page(),
        "docs/numbers.md {say}"
    );
    // Nor does publishing results that are published change a byte of them.
    let json = std::fs::read_to_string(docs().join("numbers.json")).unwrap();
    assert!(
        report::json(&results).unwrap() == json,
        "docs/numbers.json is not as it is written"
    );
    let mut there = Vec::new();
    for file in std::fs::read_dir(docs().join(page::CHARTS)).unwrap() {
        there.push(file.unwrap().file_name().into_string().unwrap());
    }
    let mut made = Vec::new();
    for chart in &drawn {
        let name = format!("{}.svg", chart.name);
        let file = docs().join(page::CHARTS).join(&name);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(text == chart.svg, "{} {say}", file.display());
        made.push(name);
    }
    there.sort();
    made.sort();
    assert_eq!(there, made, "charts in docs/{}", page::CHARTS);
}

fn every_chart_is_in_the_page() {
    let page = published_page();
    for file in std::fs::read_dir(docs().join(page::CHARTS)).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let link = format!("]({}/{name})", page::CHARTS);
        assert_eq!(page.matches(&link).count(), 1, "{name} in docs/numbers.md");
    }
    // All that is drawn is in the folder that was looked at.
    for file in std::fs::read_dir(docs()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(
            !name.ends_with(".svg"),
            "docs/{name} is no chart of the page"
        );
    }
}

/// Of the three pages about measuring.
fn links_lead_somewhere() {
    for name in ["numbers.md", "history.md", "bench.md"] {
        let text = std::fs::read_to_string(docs().join(name)).unwrap();
        for target in text.split("](").skip(1) {
            let target = target.split(')').next().unwrap();
            match target.split_once('#') {
                Some(("", place)) => {
                    let heading = place.replace('-', " ");
                    let mut headings = text.lines().filter(|line| line.starts_with('#'));
                    let there = headings
                        .any(|line| line.trim_start_matches(['#', ' ']).to_lowercase() == heading);
                    assert!(there, "{name}: no heading for #{place}");
                }
                _ => assert!(docs().join(target).exists(), "{name}: no {target}"),
            }
        }
    }
}

fn legend_comes_first() {
    let page = published_page();
    let at = |what: &str| {
        page.find(what)
            .unwrap_or_else(|| panic!("no {what:?} in the page"))
    };
    let table = at("\n|");
    assert!(at(report::tables::LEGEND) < table);
    assert!(at("](charts/at-a-glance.svg)") < table);
    // The first line of text says what the floor is, before anything is compared with it.
    let first = page
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("<!--"));
    assert!(first.unwrap().contains("**floor**: "), "{first:?}");
    assert_eq!(page.find("floor"), page.find("floor**: "));
}

/// Whoever divides two medians of a line finds the factor that stands there, within a tenth.
fn factors_are_what_the_medians_say() {
    let page = published_page();
    let mut checked = 0;
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [case, unit, ours, others @ ..] = cells.as_slice() else {
            continue;
        };
        let more_is_better = unit.starts_with("IOPS") || unit.starts_with("MiB/s");
        let Ok(ours) = ours.parse::<f64>() else {
            continue;
        };
        for cell in others {
            let Some((median, rest)) = cell.split_once(" (") else {
                continue;
            };
            let factor = rest
                .split('×')
                .next()
                .unwrap()
                .trim_start_matches(['*', '_']);
            let (Ok(theirs), Ok(factor)) = (median.parse::<f64>(), factor.parse::<f64>()) else {
                // A range has no quotient, and '?' is no factor.
                assert!(
                    median.contains('–') || factor.starts_with('?'),
                    "{case}: {cell}"
                );
                continue;
            };
            let quotient = if more_is_better {
                ours / theirs
            } else {
                theirs / ours
            };
            let off = quotient / factor - 1.0;
            // Printed figures are rounded.
            assert!(
                off.abs() < 0.11,
                "{case}: {ours} and {theirs} are not {factor}"
            );
            checked += 1;
        }
    }
    assert!(
        checked > 60,
        "only {checked} factors were found in the page"
    );
}

fn series(vmm: &str, samples: &[f64]) -> Series {
    Series {
        vmm: vmm.into(),
        samples: samples.into(),
        ..Series::default()
    }
}

/// Results of one figure.
fn results(lower_is_better: bool, all: Vec<Series>) -> Results {
    let mut figure = Figure {
        row: "start".into(),
        case: "the case".into(),
        unit: "ms".into(),
        lower_is_better,
        clock: Clock::Wall,
        note: String::new(),
        series: all,
    };
    figure.finish();
    Results {
        figures: vec![figure],
        ..published()
    }
}

fn line_of(page: &str, case: &str) -> String {
    let mut lines = page.lines();
    let start = format!("| {case} |");
    lines
        .find(|line| line.starts_with(&start))
        .unwrap()
        .to_owned()
}

/// Three rounds in which the machine changed: medians would say 0.42, and the rounds do not know.
fn noise_is_called_noise() {
    let ours = series(OURS, &[184.0, 58.0, 65.0]);
    let theirs = series("qemu-microvm", &[177.0, 35.0, 153.0]);
    let line = line_of(&render(&results(false, vec![ours, theirs])), "the case");
    assert!(
        line.contains("| 58.0–184 | 35.0–177 (?, 0.42–1.66) |"),
        "{line}"
    );
    // The same figures without the noise have medians, whichever way is better.
    for (lower, factor) in [(false, "_0.50×_"), (true, "**2.00×**")] {
        let ours = series(OURS, &[10.0, 10.2, 10.1]);
        let theirs = series("qemu-microvm", &[20.0, 20.4, 20.2]);
        let line = line_of(&render(&results(lower, vec![ours, theirs])), "the case");
        assert!(
            line.contains(&format!("| 10.1 | 20.2 ({factor}) |")),
            "{line}"
        );
    }
}

/// A reason, not a register dump; what the program printed stays in the results.
fn crashes_of_others_are_no_text() {
    let mut crashed = series("qemu-q35", &[]);
    crashed.missing = Some("did not boot: the guest's kernel panicked".into());
    crashed.said = Some("R14: 0000000000000000 </TASK> Kernel Offset: 0x26a00000".into());
    let page = render(&results(true, vec![series(OURS, &[1.0, 1.0]), crashed]));
    assert!(page.contains("| did not boot<sup>1</sup> |"), "{page}");
    assert!(
        page.contains("1. qemu-q35: did not boot: the guest's kernel panicked\n"),
        "{page}"
    );
    assert!(!page.contains("</TASK>"), "{page}");

    let (page, results) = (published_page(), published());
    let failures = || {
        results
            .figures
            .iter()
            .flat_map(|f| &f.series)
            .filter(|s| s.said.is_some())
    };
    assert!(failures().count() > 0, "this run had none");
    for series in failures() {
        assert!(
            series.missing.as_ref().unwrap().len() < 80,
            "{:?}",
            series.missing
        );
    }
    for sign in [
        "</TASK>",
        "Kernel Offset",
        "exit status",
        "R14:",
        "warning:",
        "last words",
    ] {
        assert!(!page.contains(sign), "{sign} is in the page");
    }
}

/// Each figure in which another is ahead stands in the list, and in its table.
fn losing_figures_are_listed() {
    let (page, results) = (published_page(), published());
    let (_, list) = page.split_once("## Where Bantam is behind").unwrap();
    let (list, _) = list.split_once("\n## ").unwrap();
    let mut losing = 0;
    for figure in &results.figures {
        for series in &figure.series {
            let Some(ratio) = series.ratio else { continue };
            let behind = match figure.lower_is_better {
                true => ratio.low > 1.0,
                false => ratio.high < 1.0,
            };
            if behind {
                losing += 1;
                let mut lines = list.lines();
                let start = format!("- **{}**:", series.vmm);
                let line = lines.find(|line| line.starts_with(&start)).unwrap();
                assert!(
                    line.contains(&format!("{}: ", figure.case)),
                    "{}: {line}",
                    figure.case
                );
                assert!(
                    page.contains(&format!("| {}", figure.case)),
                    "{}",
                    figure.case
                );
            }
        }
    }
    assert!(losing > 0, "nothing to look for");
}

/// Every element of a drawing: its name, attributes, and text.
fn elements(svg: &str) -> Vec<(&str, &str, &str)> {
    svg.split('<')
        .filter_map(|part| {
            let (head, text) = part.split_once('>')?;
            let (name, attributes) = head.split_once(' ').unwrap_or((head, ""));
            Some((name, attributes, text.trim()))
        })
        .collect()
}

fn attribute<'a>(attributes: &'a str, name: &str) -> &'a str {
    let start = format!("{name}=\"");
    let rest = attributes.split_once(&start).map_or("", |(_, rest)| rest);
    rest.split('"').next().unwrap()
}

/// In every key the mark before a VMM's name has its colour; in the chart of phases, the bar behind it.
fn a_vmm_has_one_colour() {
    let mut colours: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = 0;
    // Beside the published ones, all that could be: each in a place of its own on the chart.
    let names: Vec<&str> = vmm::TEMPLATES.iter().map(|t| t.name).collect();
    let names = [&names[..], &[vmm::FIO.name]].concat();
    let everybody = names.iter().enumerate();
    let everybody = everybody.map(|(i, name)| series(name, &[1.0 + i as f64]));
    let everybody = results(true, everybody.collect());
    let published = charts::draw(&published()).unwrap();
    for chart in published.iter().chain(&charts::draw(&everybody).unwrap()) {
        let elements = elements(&chart.svg);
        for (i, (name, attributes, text)) in elements.iter().enumerate() {
            if *name != "text" || !names.contains(text) {
                continue;
            }
            let in_key = attribute(attributes, "text-anchor") == "start";
            // An element's end is an element here as well.
            let mut neighbours: Box<dyn Iterator<Item = &(&str, &str, &str)>> = match in_key {
                true => Box::new(elements[..i].iter().rev()),
                false => Box::new(elements[i + 1..].iter()),
            };
            let shape =
                |(name, ..): &&(&str, &str, &str)| ["rect", "circle", "polygon"].contains(name);
            let mark = neighbours.find(shape).unwrap();
            let fill = attribute(mark.1, "fill").to_owned();
            let known = colours
                .entry((*text).to_owned())
                .or_insert_with(|| fill.clone());
            assert_eq!(*known, fill, "{text} in {}.svg", chart.name);
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} names were found");
    assert_eq!(colours.len(), names.len(), "{colours:?}");
    let mut different: Vec<&String> = colours.values().collect();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), colours.len(), "{colours:?}");
}

fn charts_fit_a_screen() {
    for chart in charts::draw(&published()).unwrap() {
        let elements = elements(&chart.svg);
        let (_, svg, _) = elements.iter().find(|(name, ..)| *name == "svg").unwrap();
        let size = |name| attribute(svg, name).parse::<u32>().unwrap();
        assert!(size("width") <= 900, "{}", chart.name);
        assert!(
            size("height") <= 800,
            "{}: {} pixels high",
            chart.name,
            size("height")
        );
        let texts: Vec<&str> = elements
            .iter()
            .filter(|(name, ..)| *name == "text")
            .map(|(_, _, text)| *text)
            .collect();
        let ticks = texts
            .iter()
            .filter(|text| text.starts_with(|c: char| c.is_ascii_digit()));
        assert!(ticks.count() >= 3, "{}: {texts:?}", chart.name);
        // A word of which way is better, for each axis.
        assert!(
            texts.iter().any(|text| text.contains("is better")),
            "{}",
            chart.name
        );
        let has = |word: &str| texts.iter().any(|text| text.contains(word));
        for (row, figure_word) in [
            ("boot", "virtual"),
            ("block-linux", "emulated"),
            ("boot-phases", "virtual"),
        ] {
            if chart.name == row {
                assert!(
                    has(figure_word),
                    "{} does not say {figure_word}",
                    chart.name
                );
            }
        }
        if chart.name != charts::GLANCE {
            let units = ["ms", "µs", "MiB", "IOPS", "exits"];
            assert!(
                units.iter().any(|unit| texts
                    .iter()
                    .any(|t| t.split([' ', ',', ':']).any(|w| w == *unit))),
                "{}",
                chart.name
            );
        }
        assert!(
            chart.svg.contains("prefers-color-scheme:dark"),
            "{}",
            chart.name
        );
    }
}
