//! Results for readers: JSON, the page, charts; and against those that were published.
//!
//! ```text
//!   standing.rs   how Bantam stands to another: a factor, its interval, what may be said of it
//!   groups.rs     the sections of the page
//!   summary.rs    all on one screen, and what Bantam is behind in
//!   tables.rs     every figure
//!   charts/       the same to look at
//!   page.rs       all of that as one page
//!   check.rs      a fresh run against the published one
//! ```

pub mod charts;
pub mod check;
pub mod groups;
pub mod page;
pub mod standing;
pub mod summary;
pub mod tables;

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::result::Results;
use page::{CHARTS, PUBLISHED};

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

/// What Bantam is ahead and behind in to standard output, and everything into `out`.
pub fn write(results: &Results, out: &Path) -> Result<()> {
    put(&out.join("results.json"), &json(results)?)?;
    write_page(results, out, "results")?;
    println!("{}", page::short(results));
    println!(
        "\nresults.md (every figure), results.json (every sample) and charts are in {}",
        out.display()
    );
    Ok(())
}

/// Makes the results file `from` the published one.
pub fn publish(from: &Path, root: &Path) -> Result<()> {
    let docs = root.join("docs");
    put(&docs.join("numbers.json"), &json(&read(from)?)?)?;
    page(root)
}

/// Writes the page and its charts again from the published results.
pub fn page(root: &Path) -> Result<()> {
    let docs = root.join("docs");
    write_page(&read(&docs.join("numbers.json"))?, &docs, PUBLISHED)?;
    println!("docs/numbers.md and docs/{CHARTS} are written from docs/numbers.json");
    Ok(())
}

/// The results file.
pub fn json(results: &Results) -> Result<String> {
    Ok(serde_json::to_string_pretty(results)? + "\n")
}

/// The page of the file `name`.json, with its charts.
fn write_page(results: &Results, folder: &Path, name: &str) -> Result<()> {
    let charts = charts::draw(results)?;
    let place = folder.join(CHARTS);
    std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    // A chart of an earlier run that this one has no figures for would stay otherwise.
    for old in std::fs::read_dir(&place).into_iter().flatten().flatten() {
        if old.path().extension().is_some_and(|end| end == "svg") {
            let _ = std::fs::remove_file(old.path());
        }
    }
    for chart in &charts {
        put(&place.join(format!("{}.svg", chart.name)), &chart.svg)?;
    }
    let text = page::render(results, &charts, name);
    put(&folder.join(format!("{name}.md")), &text)
}

fn put(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
