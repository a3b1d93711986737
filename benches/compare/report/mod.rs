//! Results for readers: JSON, Markdown, charts; and against those that were published.

mod charts;
mod check;
mod markdown;
mod summary;

use std::path::Path;

use anyhow::{Context as _, Result};

pub use check::check;

use crate::result::Results;

/// Between these lines of docs/numbers.md stands what [`publish`] writes.
const BEGIN: &str = "<!-- measured: written by `make bench-publish` -->";
const END: &str = "<!-- end of measured -->";

/// What a whole run writes, and some more.
const ROOM: usize = 2 << 20;

/// Reads a results file.
pub fn read(path: &Path) -> Result<Results> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a results file", path.display()))
}

/// Makes sure that `out` can be written to.
pub fn prepare(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let probe = tempfile::NamedTempFile::new_in(out)
        .with_context(|| format!("cannot write to {}", out.display()))?;
    put(probe.path(), &" ".repeat(ROOM))
}

/// The tables to standard output, and everything into `out`.
pub fn write(results: &Results, out: &Path) -> Result<()> {
    let tables = markdown::render(results);
    println!("{tables}");
    put(
        &out.join("results.json"),
        &serde_json::to_string_pretty(results)?,
    )?;
    put(&out.join("results.md"), &tables)?;
    let charts = charts::draw(results, out)?;
    println!(
        "results.json, results.md and {charts} charts are in {}",
        out.display()
    );
    Ok(())
}

/// Makes `results` the published ones.
pub fn publish(results: &Results, root: &Path) -> Result<()> {
    let page = root.join("docs/numbers.md");
    let text = std::fs::read_to_string(&page)
        .with_context(|| format!("cannot read {}", page.display()))?;
    let (before, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("{}: no line {BEGIN}", page.display()))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{}: no line {END}", page.display()))?;
    put(
        &root.join("docs/numbers.json"),
        &(serde_json::to_string_pretty(results)? + "\n"),
    )?;
    put(
        &page,
        &format!(
            "{before}{BEGIN}\n\n{}\n{END}{after}",
            markdown::render(results)
        ),
    )?;
    charts::draw(results, &root.join("docs"))?;
    println!("published: docs/numbers.md, docs/numbers.json and charts");
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
