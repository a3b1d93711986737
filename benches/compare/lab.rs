//! Rows that boot Linux, on a host whose KVM cannot: this program again, inside the lab, in
//! virtual time. Its figures come back as JSON on its output.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::host::Lab;
use crate::result::Found;
use crate::rows::Row;
use crate::rows::context::Context;

/// Virtual time may stop, and what does not stop is done by then.
const VIRTUAL_LIMIT_SECONDS: u32 = 150;
const EMULATED_LIMIT_SECONDS: u32 = 300;
const ATTEMPTS: u32 = 4;
/// How the line with the figures begins.
const FIGURES: &str = r#"{"took":"#;
/// Files for QEMU: its firmware, as Debian's packages lay it out.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

/// Measures a row in the lab, its cases that begin with `case`. In virtual time a guest now and
/// then locks up under QEMU's emulated SVM, and time with it: then the lab is ended, and once more.
pub fn run(row: &Row, case: Option<&str>, context: &Context, clock: Lab) -> Result<Found> {
    let files = (row.lab_files)(context)?;
    let mut attempt = 1;
    loop {
        match once(row.name, &files, case, context, clock) {
            Err(error) if attempt < ATTEMPTS => eprintln!("  again: {error:#}"),
            result => return result,
        }
        attempt += 1;
    }
}

fn once(
    row: &str,
    files: &[PathBuf],
    case: Option<&str>,
    context: &Context,
    clock: Lab,
) -> Result<Found> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("resources/lab/lab");
    let this = std::env::current_exe().context("where is this program?")?;
    let mut command = Command::new(&lab);
    let limit = match clock {
        Lab::Virtual => {
            command.arg("--icount");
            VIRTUAL_LIMIT_SECONDS
        }
        Lab::Emulated => EMULATED_LIMIT_SECONDS,
    };
    let (name, value) = clock.variable();
    command.env(name, value);
    command.args(["--memory", "6144", "--time-limit", &limit.to_string()]);
    let mut with = files.to_vec();
    with.push(this.clone());
    with.extend(context.vmms.iter().map(|vmm| vmm.program.clone()));
    with.extend(
        FIRMWARE
            .iter()
            .map(PathBuf::from)
            .filter(|folder| folder.is_dir()),
    );
    with.sort();
    with.dedup();
    for path in with {
        if !path.exists() {
            bail!("{} is not there: 'make guests' builds it", path.display());
        }
        command.arg("--with").arg(path);
    }
    command
        .arg("--")
        .arg(&this)
        .args(["--in-lab", "--only", row]);
    command.arg("--guests").arg(&context.guests);
    if let Some(case) = case {
        command.args(["--case", case]);
    }
    for vmm in &context.vmms {
        command
            .arg("--vmm")
            .arg(format!("{}={}", vmm.name(), vmm.program.display()));
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", lab.display()))?;
    // Its progress comes on the same stream; the figures are the last line.
    let mut json = String::new();
    for line in BufReader::new(child.stdout.take().context("no stdout")?).lines() {
        let line = line.context("cannot read the lab's output")?;
        if line.starts_with(FIGURES) {
            json = line;
        } else {
            eprintln!("{line}");
        }
    }
    let status = child.wait().context("cannot wait for the lab")?;
    if !status.success() {
        bail!("the lab ended with {status}");
    }
    serde_json::from_str(&json).with_context(|| format!("not figures: {json:.200}"))
}
