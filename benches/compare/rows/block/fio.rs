//! fio: its jobs, and what it reports.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::load::Load;
use crate::engine::Sample;

/// The part of `file` that fio uses, and how.
#[derive(Debug, Clone, Copy)]
pub struct Area<'a> {
    pub file: &'a str,
    pub offset: u64,
    pub bytes: u64,
    pub direct: bool,
}

/// A job file of `loads`, one after the other, of so many requests each.
pub fn jobs(area: Area<'_>, loads: &[Load], count: impl Fn(&Load) -> u32) -> String {
    let Area {
        file,
        offset,
        bytes,
        direct,
    } = area;
    let mut text = format!(
        "[global]\nioengine=io_uring\nthread\nfilename={file}\noffset={offset}\nsize={bytes}\n\
         direct={}\nnorandommap\nrandrepeat=0\ninvalidate=0\nruntime=10\n",
        u8::from(direct)
    );
    for (i, load) in loads.iter().enumerate() {
        let kind = match (load.sequential, load.write) {
            (false, false) => "randread",
            (false, true) => "randwrite",
            (true, false) => "read",
            (true, true) => "write",
        };
        text.push_str(&format!(
            "[load{i}]\nstonewall\nrw={kind}\nbs={}\niodepth={}\nio_size={}\n",
            load.bytes,
            load.depth,
            u64::from(count(load)) * u64::from(load.bytes)
        ));
    }
    text
}

/// Runs `loads` here.
pub fn run(
    fio: &Path,
    area: Area<'_>,
    loads: &[Load],
    count: impl Fn(&Load) -> u32,
) -> Result<Vec<Sample>> {
    let file = tempfile::NamedTempFile::new().context("no scratch file")?;
    std::fs::write(file.path(), jobs(area, loads, count)).context("cannot write fio's jobs")?;
    let out = Command::new(fio)
        .arg("--output-format=json")
        .arg(file.path())
        .stdin(Stdio::null())
        .output()
        .context("fio")?;
    parse(&String::from_utf8_lossy(&out.stdout), loads)
        .with_context(|| String::from_utf8_lossy(&out.stderr).trim().to_owned())
}

/// A sample for each of `loads`, from what fio printed with `--output-format=json`.
pub fn parse(text: &str, loads: &[Load]) -> Result<Vec<Sample>> {
    let json = match (text.find('{'), text.rfind('}')) {
        (Some(from), Some(to)) => text.get(from..=to).unwrap_or_default(),
        _ => bail!(
            "fio says {:?}",
            text.trim_matches(|c: char| c.is_whitespace() || c == '\0')
        ),
    };
    let report: Value =
        serde_json::from_str(json).with_context(|| format!("fio's report: {json:.200}"))?;
    loads
        .iter()
        .enumerate()
        .map(|(i, load)| {
            let job = report
                .pointer(&format!("/jobs/{i}"))
                .context("fio reports too few jobs")?;
            sample(job, load).with_context(|| load.name.to_owned())
        })
        .collect()
}

fn sample(job: &Value, load: &Load) -> Result<Sample> {
    if number(job, "/error") != 0.0 {
        bail!("fio reports error {}", number(job, "/error"));
    }
    let side = job
        .get(if load.write { "write" } else { "read" })
        .context("fio reports no requests")?;
    let count = number(side, "/total_ios");
    let iops = number(side, "/iops");
    if iops == 0.0 || count == 0.0 {
        bail!("fio did nothing");
    }
    let busy = (number(job, "/usr_cpu") + number(job, "/sys_cpu")) / 100.0;
    let seconds = number(side, "/runtime") / 1e3;
    Ok(Sample {
        value: iops * load.unit().1,
        parts: vec![
            (
                "p50 us".into(),
                number(side, "/clat_ns/percentile/50.000000") / 1e3,
            ),
            (
                "p99 us".into(),
                number(side, "/clat_ns/percentile/99.000000") / 1e3,
            ),
            (
                "host CPU us per request".into(),
                busy * seconds * 1e6 / count,
            ),
        ],
        cdf: Vec::new(),
    })
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or(0.0)
}
