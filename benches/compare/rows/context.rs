//! What every row works with, and what more than one of them does.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::result::Figure;
use crate::vmm::Vmm;

/// One part of a row, or something it needs.
pub type Part<T = Figure> = fn(&Context) -> Result<Vec<T>>;

/// What every row works with.
#[derive(Debug)]
pub struct Context {
    /// Who takes part, Bantam first.
    pub vmms: Vec<Vmm>,
    /// Scratch files of this run: payloads, disk images.
    pub folder: PathBuf,
    /// What `resources/guest/build.sh` has made.
    pub guests: PathBuf,
    /// Time for one row on the wall's clock.
    pub budget: Duration,
    /// Only cases whose names begin so.
    pub case: Option<String>,
}

impl Context {
    /// Whether `case` is to be measured.
    pub fn wants(&self, case: &str) -> bool {
        self.case
            .as_ref()
            .is_none_or(|wanted| case.starts_with(wanted))
    }

    /// Whether a case whose name begins with `start` may be wanted.
    pub fn wants_any(&self, start: &str) -> bool {
        self.case
            .as_ref()
            .is_none_or(|wanted| wanted.starts_with(start) || start.starts_with(wanted.as_str()))
    }

    /// A fraction of the row's time.
    pub fn share(&self, fraction: f64) -> Duration {
        self.budget.mul_f64(fraction)
    }
}

/// The guest of tests/guests/, built.
pub fn bare_guest() -> PathBuf {
    crate::common::guest::elf().to_owned()
}

/// A figure on one line, for the one who waits.
pub fn summary(figure: &Figure) -> String {
    let values: Vec<String> = figure
        .series
        .iter()
        .filter_map(|s| Some(format!("{} {:.2}", s.vmm, s.median?)))
        .collect();
    format!("  {}: {} {}", figure.case, values.join(", "), figure.unit)
}

/// Runs a command that makes something; its complaint when it fails.
pub fn succeed(command: &mut Command, what: &str) -> Result<()> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot {what}: {command:?}"))?;
    if !out.status.success() {
        bail!(
            "cannot {what}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}
