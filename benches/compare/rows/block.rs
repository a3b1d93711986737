//! What a disk gives: a driver in ring 3 of a bare machine, beside fio on the host.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Context, start};
use crate::engine::{Effort, Question, Sample, interleave};
use crate::host;
use crate::process::Process;
use crate::result::{Clock, Figure};
use crate::vmm::{self, Machine, Vmm};

const DISK_BYTES: u64 = 256 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// One kind of load.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    bytes: u32,
    depth: u32,
    sequential: bool,
    count: u32,
}

const LOADS: [Load; 6] = [
    Load {
        name: "4 KiB random read, depth 1",
        write: false,
        bytes: 4096,
        depth: 1,
        sequential: false,
        count: 3000,
    },
    Load {
        name: "4 KiB random write, depth 1",
        write: true,
        bytes: 4096,
        depth: 1,
        sequential: false,
        count: 3000,
    },
    Load {
        name: "4 KiB random read, depth 32",
        write: false,
        bytes: 4096,
        depth: 32,
        sequential: false,
        count: 20_000,
    },
    Load {
        name: "4 KiB random write, depth 32",
        write: true,
        bytes: 4096,
        depth: 32,
        sequential: false,
        count: 20_000,
    },
    Load {
        name: "1 MiB sequential read",
        write: false,
        bytes: 1 << 20,
        depth: 4,
        sequential: true,
        count: 400,
    },
    Load {
        name: "1 MiB sequential write",
        write: true,
        bytes: 1 << 20,
        depth: 4,
        sequential: true,
        count: 400,
    },
];

/// Runs the row.
pub fn bare(context: &Context) -> Result<Vec<Figure>> {
    let guest = super::bare_guest();
    let disk = make_disk(&context.guests)?;
    let mut contestants = context.vmms.clone();
    if let Some(program) = vmm::find_program("fio") {
        contestants.push(Vmm {
            template: &vmm::FIO,
            program,
        });
    } else {
        eprintln!("left out: fio is not installed");
    }
    let mut figures = Vec::new();
    for direct in [false, true] {
        for load in LOADS {
            let cache = if direct { "direct" } else { "cached" };
            let (unit, scale) = match load.sequential {
                true => ("MiB/s", f64::from(load.bytes) / 1048576.0),
                false => ("IOPS", 1.0),
            };
            let question = Question {
                row: "block",
                case: format!("{}, {cache}", load.name),
                unit,
                lower_is_better: false,
                clock: Clock::Wall,
                note: "virtio-mmio, polled used ring; fio: io_uring on the same file, on the host",
            };
            let effort = Effort::wall(5, context.share(1.0 / 12.0));
            figures.push(interleave(question, &contestants, effort, |vmm| {
                let mut sample = match vmm.name() {
                    "fio" => fio(vmm, &disk, load, direct)?,
                    _ => in_guest(vmm, &guest, &disk, load, direct)?,
                };
                sample.value *= scale;
                Ok(sample)
            }));
            eprintln!("{}", figures.last().map(super::summary).unwrap_or_default());
        }
    }
    let _ = std::fs::remove_file(disk);
    Ok(figures)
}

/// A file of random bytes: nothing that a file system would leave out.
fn make_disk(beside: &Path) -> Result<PathBuf> {
    let path = beside.join("bench-disk.raw");
    let mut bytes = vec![0u8; 1 << 20];
    let mut random = 1u64;
    let mut file =
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    for _ in 0..DISK_BYTES >> 20 {
        for chunk in bytes.chunks_exact_mut(8) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            chunk.copy_from_slice(&random.to_le_bytes());
        }
        file.write_all(&bytes)
            .with_context(|| format!("cannot fill {}", path.display()))?;
    }
    file.sync_all()
        .with_context(|| format!("cannot fill {}", path.display()))?;
    Ok(path)
}

fn in_guest(vmm: &Vmm, guest: &Path, disk: &Path, load: Load, direct: bool) -> Result<Sample> {
    let Some((base, step, places)) = vmm.template.virtio_mmio else {
        bail!("no virtio-mmio disk for the driver")
    };
    let words = [
        format!("do=disk base={base} step={step} places={places}"),
        format!(
            "bytes={} depth={} count={}",
            load.bytes, load.depth, load.count
        ),
        format!(
            "{}{}",
            if load.write { "write " } else { "" },
            if load.sequential { "sequential" } else { "" }
        ),
    ];
    let machine = Machine {
        cmdline: words.join(" ") + host::ring_word(),
        disks: vec![disk.into()],
        direct,
        ..start::machine(guest)
    };
    let mut process = Process::start(|folder| vmm.command(&machine, folder))?;
    process.wait_for(b"(", LIMIT)?;
    let before = io_threads(&process);
    let (_, text) = process.wait_for(b")", LIMIT)?;
    let spent = io_threads(&process).saturating_sub(before);
    let report = Report::parse(&String::from_utf8_lossy(&text)).context("the guest's report")?;
    if report.failed > 0 {
        bail!("{} of {} requests failed", report.failed, load.count);
    }
    let hz = host::tsc_hz_cached();
    let us = |ticks: f64| ticks / hz * 1e6;
    let cdf: Vec<(f64, f64)> = report
        .cdf()
        .into_iter()
        .map(|(ticks, fraction)| (us(ticks), fraction))
        .collect();
    Ok(Sample {
        value: f64::from(load.count) / (report.ticks / hz),
        parts: vec![
            ("p50 us".into(), at(&cdf, 0.5)),
            ("p99 us".into(), at(&cdf, 0.99)),
            (
                "host CPU us per request".into(),
                spent.as_secs_f64() * 1e6 / f64::from(load.count),
            ),
        ],
        cdf,
    })
}

/// CPU time of all threads but the vCPUs, which spin in the guest's driver.
fn io_threads(process: &Process) -> Duration {
    process
        .cpu_time()
        .into_values()
        .filter(|(name, _)| !name.contains("vcpu") && !name.starts_with("CPU "))
        .map(|(_, time)| time)
        .sum()
}

/// What the guest prints: `ticks=N failed=N bucket:count ...`.
struct Report {
    ticks: f64,
    failed: u64,
    buckets: Vec<(u32, u64)>,
}

impl Report {
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim_end_matches(')');
        let mut report = Report {
            ticks: 0.0,
            failed: 0,
            buckets: Vec::new(),
        };
        for word in text.split_whitespace() {
            if let Some(ticks) = word.strip_prefix("ticks=") {
                report.ticks = ticks.parse()?;
            } else if let Some(failed) = word.strip_prefix("failed=") {
                report.failed = failed.parse()?;
            } else if let Some((bucket, count)) = word.split_once(':') {
                report.buckets.push((bucket.parse()?, count.parse()?));
            } else {
                bail!("it says {text:?}");
            }
        }
        if report.ticks == 0.0 {
            bail!("it says {text:?}");
        }
        Ok(report)
    }

    /// Each bucket's lower end in ticks, with the fraction of requests that took no longer.
    fn cdf(&self) -> Vec<(f64, f64)> {
        let total: u64 = self.buckets.iter().map(|(_, count)| count).sum();
        let mut seen = 0;
        self.buckets
            .iter()
            .map(|(bucket, count)| {
                seen += count;
                let (power, fine) = (bucket / 32, bucket % 32);
                let ticks = 2f64.powi(power as i32) * (1.0 + f64::from(fine) / 32.0);
                (ticks, seen as f64 / total.max(1) as f64)
            })
            .collect()
    }
}

fn at(cdf: &[(f64, f64)], fraction: f64) -> f64 {
    cdf.iter()
        .find(|(_, f)| *f >= fraction)
        .map_or(0.0, |(value, _)| *value)
}

/// The same load on the same file without a VMM: the limit.
fn fio(vmm: &Vmm, disk: &Path, load: Load, direct: bool) -> Result<Sample> {
    let kind = match (load.sequential, load.write) {
        (false, false) => "randread",
        (false, true) => "randwrite",
        (true, false) => "read",
        (true, true) => "write",
    };
    let out = Command::new(&vmm.program)
        .args([
            "--name=limit",
            "--ioengine=io_uring",
            "--output-format=json",
            "--thread",
        ])
        .arg(format!("--filename={}", disk.display()))
        .arg(format!("--rw={kind}"))
        .arg(format!("--bs={}", load.bytes))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--size={DISK_BYTES}"))
        .arg(format!("--number_ios={}", load.count))
        .arg("--loops=10")
        .arg(format!("--direct={}", u8::from(direct)))
        .args(["--norandommap", "--randrepeat=0", "--invalidate=0"])
        .output()
        .context("fio")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let json = text
        .find('{')
        .and_then(|at| text.get(at..))
        .unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(json)
        .with_context(|| format!("fio: {}", String::from_utf8_lossy(&out.stderr).trim()))?;
    let job = report.pointer("/jobs/0").context("fio reports no job")?;
    let side = job
        .get(if load.write { "write" } else { "read" })
        .context("fio reports no requests")?;
    let number = |value: &serde_json::Value, path: &str| {
        value
            .pointer(path)
            .and_then(serde_json::Value::as_f64)
            .unwrap_or(0.0)
    };
    let (iops, runtime) = (number(side, "/iops"), number(side, "/runtime") / 1e3);
    let busy = (number(job, "/usr_cpu") + number(job, "/sys_cpu")) / 100.0;
    if iops == 0.0 {
        bail!(
            "fio did nothing: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(Sample {
        value: iops,
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
                busy * runtime * 1e6 / (iops * runtime).max(1.0),
            ),
        ],
        cdf: Vec::new(),
    })
}
