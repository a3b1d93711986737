//! Bantam against other VMMs, side by side, in one run: `make bench`. docs/bench.md explains it.
//!
//! ```text
//!   vmm/        who takes part, and how each is asked for the same machine
//!   rows/       one question each: start, boot, exits, block, memory, density
//!   engine.rs   A, B, C, A, B, C ... until the answer is narrow
//!   stats.rs    medians, paired ratios, intervals
//!   result.rs   the JSON that all reports are made from
//!   report/     tables, charts, the check against published figures
//!   lab.rs      rows that need a real KVM, on a host that has none
//! ```

#[path = "../../tests/common/mod.rs"]
mod common;
mod engine;
mod host;
mod lab;
mod process;
mod report;
mod result;
mod rows;
mod stats;
mod trace;
mod vmm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use result::{Found, Results, SCHEMA};
use rows::ROWS;
use rows::boot::IMAGES;
use rows::context::Context;

/// So much of what a failed program has said is shown; results.json has all.
const SAID_CHARS: usize = 300;

/// For each row on the wall's clock.
const SECONDS: u64 = 45;

/// Compares Bantam with other VMMs, side by side, in one run
#[derive(Debug, Parser)]
#[command(name = "compare", version)]
struct Args {
    /// Rows to measure: start, boot, exits, block, memory, density [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    only: Vec<String>,

    /// Of the boot, exits and block rows, only cases whose names begin so
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,

    /// Also measure this VMM, found on the PATH or there; or take this program for it
    #[arg(long, value_name = "NAME[=PATH]", value_parser = named_vmm)]
    vmm: Vec<vmm::Named>,

    /// Time for each row on the wall's clock
    #[arg(long, value_name = "SECONDS", default_value_t = SECONDS)]
    seconds: u64,

    /// Where results.json, results.md and the charts go [default: target/bench]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// After a short run, compare its ratios with the published ones
    #[arg(long)]
    check: bool,

    /// Make the last results the published ones (docs/numbers.json, its page and charts), and measure nothing
    #[arg(long)]
    publish: bool,

    /// Write docs/numbers.md and its charts again from docs/numbers.json, and measure nothing
    #[arg(long)]
    page: bool,

    /// Print the figures as JSON and write no files: how the lab's part is run
    #[arg(long, hide = true)]
    in_lab: bool,

    /// Where the guests are, in the lab
    #[arg(long, hide = true)]
    guests: Option<PathBuf>,

    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn named_vmm(text: &str) -> Result<vmm::Named, String> {
    let (name, path) = match text.split_once('=') {
        Some((name, path)) => (name, Some(path)),
        None => (text, None),
    };
    if name.is_empty() || path.is_some_and(str::is_empty) {
        return Err(
            "want NAME or NAME=PATH, for example firecracker=/usr/local/bin/firecracker".into(),
        );
    }
    Ok((name.into(), path.map(PathBuf::from)))
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let out = args.out.clone().unwrap_or_else(|| target.join("bench"));
    if args.publish {
        report::publish(&out.join("results.json"), root)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.page {
        report::page(root)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args
        .only
        .iter()
        .find(|name| ROWS.iter().all(|row| row.name != **name))
    {
        bail!(
            "there is no row {unknown}; there are {}",
            ROWS.map(|row| row.name).join(", ")
        );
    }
    let programs = programs(&args, &target)?;
    let (mut vmms, absent) = vmm::assemble(&programs.0, &programs.1, &args.vmm)?;
    for line in &absent {
        eprintln!("left out: {line}");
    }
    let folder = tempfile::tempdir_in(process::scratch()).context("no scratch folder")?;
    let took = choose_processors(&mut vmms, folder.path())?;
    let context = Context {
        vmms,
        case: args.case.clone(),
        folder: folder.path().into(),
        guests: args.guests.clone().unwrap_or_else(|| target.join("guest")),
        budget: Duration::from_secs(if args.check {
            args.seconds / 3
        } else {
            args.seconds
        }),
    };
    let (date, commit) = (host::date(), host::commit(root));
    if !args.in_lab && !args.check {
        // Nobody measures for twenty minutes to hear that there is no room for the results.
        report::prepare(&out)?;
    }
    let mut found = Found {
        took,
        figures: Vec::new(),
    };
    measure(&args, &context, &mut found)?;
    if args.in_lab {
        serde_json::to_writer(std::io::stdout(), &found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let results = Results {
        schema: SCHEMA,
        command: reproduce(&args),
        date,
        commit,
        host: host::facts(),
        versions: context
            .vmms
            .iter()
            .filter_map(|vmm| Some((vmm.name().into(), vmm.version.clone()?)))
            .collect(),
        took: found.took,
        figures: found.figures,
    };
    if args.check {
        return report::check::check(&results, &root.join("docs/numbers.json"));
    }
    report::write(&results, &out)?;
    Ok(ExitCode::SUCCESS)
}

/// Gives each VMM a model of the processor that it can have on this host; says and returns which.
fn choose_processors(vmms: &mut [vmm::Vmm], folder: &Path) -> Result<BTreeMap<String, String>> {
    let machine = rows::start::machine(&rows::start::payload(folder)?);
    let mut took = BTreeMap::new();
    for found in vmm::probe::choose(vmms, &machine) {
        if let Some(line) = found.line() {
            eprintln!("{line}");
        }
        if let Some(model) = found.model {
            let names = found.names.iter().map(|name| (*name).to_owned());
            took.extend(names.map(|name| (name, format!("-cpu {model}"))));
        }
    }
    Ok(took)
}

/// Bantam's binary and the floor's, as `cargo build --release` makes them.
fn programs(args: &Args, target: &Path) -> Result<(PathBuf, PathBuf)> {
    let bantam = target.join("release/bantam");
    let floor = target.join("release/examples/floor");
    let given = |name: &str| args.vmm.iter().any(|(given, _)| given == name);
    for (name, path) in [("bantam", &bantam), ("floor", &floor)] {
        if !given(name) && !path.is_file() {
            bail!("{} is not there: 'make bench' builds it", path.display());
        }
    }
    Ok((bantam, floor))
}

fn measure(args: &Args, context: &Context, all: &mut Found) -> Result<()> {
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    // What needs a real KVM goes to the lab in one go.
    let in_lab: Vec<&str> = match host::runs_linux() || args.in_lab {
        true => Vec::new(),
        false => ROWS
            .iter()
            .filter(|row| row.linux.is_some() && wanted(row.name))
            .map(|row| row.name)
            .collect(),
    };
    for row in ROWS.iter().filter(|row| wanted(row.name)) {
        for (part, is_linux) in [(row.bare, false), (row.linux, true)] {
            let Some(part) = part else { continue };
            if (is_linux && !in_lab.is_empty()) || (!is_linux && args.in_lab) {
                continue;
            }
            eprintln!(
                "measuring {}{}",
                row.name,
                if is_linux { " with Linux" } else { "" }
            );
            match part(context) {
                Ok(found) => all.figures.extend(found),
                Err(error) => eprintln!("{}: not measured: {error:#}", row.name),
            }
        }
    }
    // A lab for each question: when one has to be ended, the others' answers stay.
    for row in ROWS.iter().filter(|row| in_lab.contains(&row.name)) {
        let images: Vec<Option<&str>> = match row.images && context.case.is_none() {
            true => IMAGES.iter().map(|image| Some(image.name)).collect(),
            false => vec![context.case.as_deref()],
        };
        for (image, clock) in images
            .iter()
            .flat_map(|i| row.clocks.iter().map(move |c| (*i, *c)))
        {
            eprintln!(
                "measuring {} {} in the lab, {clock:?} time",
                row.name,
                image.unwrap_or_default()
            );
            match lab::run(row, image, context, clock) {
                Ok(found) => all.join_lab(found),
                Err(error) => eprintln!("{}: not measured: {error:#}", row.name),
            }
        }
    }
    for figure in &all.figures {
        for series in &figure.series {
            if let Some(why) = &series.missing {
                // The program's own words: nothing of them may reach a terminal as a command to it.
                let said = bantam::error::escaped(series.said.as_deref().unwrap_or_default());
                let said: String = said.chars().take(SAID_CHARS).collect();
                let dots = if said.is_empty() { "" } else { ": " };
                eprintln!(
                    "{} ({}): {}: {why}{dots}{said}",
                    figure.row, figure.case, series.vmm
                );
            }
        }
    }
    Ok(())
}

fn reproduce(args: &Args) -> String {
    let mut words = vec!["make bench".to_owned()];
    if !args.only.is_empty() {
        words.push(format!("ONLY={}", args.only.join(",")));
    }
    if args.seconds != SECONDS {
        words.push(format!("TIME={}", args.seconds));
    }
    words.join(" ")
}
