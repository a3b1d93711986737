//! A driver in ring 3 of a bare machine, beside fio on the host.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::fio::{self, Area};
use super::{LOADS, Load};
use crate::engine::{Effort, Question, Sample, interleave};
use crate::host;
use crate::process::Process;
use crate::result::{Clock, Figure};
use crate::rows::{Context, start};
use crate::vmm::{self, DiskKind, Machine, Vmm};

const DISK_BYTES: u64 = 256 << 20;
/// fio counts milliseconds: it runs so many times longer.
const LONGER: u32 = 10;
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the row.
pub fn bare(context: &Context) -> Result<Vec<Figure>> {
    let guest = crate::rows::bare_guest();
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
    let qcow2 = make_qcow2(&disk)?;
    for kind in [DiskKind::Cached, DiskKind::Direct, DiskKind::Qcow2] {
        for load in LOADS {
            let case = format!("{}, {}", load.name, kind.name());
            if !context.wants(&case) {
                continue;
            }
            let image = if kind == DiskKind::Qcow2 {
                &qcow2
            } else {
                &disk
            };
            let question = Question {
                row: "block",
                case,
                unit: load.unit().0,
                lower_is_better: false,
                clock: Clock::Wall,
                note: "virtio-mmio, polled used ring; fio: io_uring on the same file, on the host",
            };
            let effort = Effort::wall(5, context.share(1.0 / 18.0));
            figures.push(interleave(
                question,
                &contestants,
                effort,
                |vmm| match vmm.name() {
                    "fio" if kind == DiskKind::Qcow2 => bail!("knows no qcow2"),
                    "fio" => on_host(vmm, &disk, load, kind == DiskKind::Direct),
                    _ => in_guest(vmm, &guest, image, load, kind),
                },
            ));
            eprintln!(
                "{}",
                figures.last().map(crate::rows::summary).unwrap_or_default()
            );
        }
    }
    let _ = (std::fs::remove_file(disk), std::fs::remove_file(qcow2));
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

/// The same disk as a qcow2 image, made by qemu-img.
fn make_qcow2(raw: &Path) -> Result<PathBuf> {
    let path = raw.with_extension("qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([raw, &path])
        .output()
        .context("qemu-img")?;
    if !made.status.success() {
        bail!("qemu-img: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(path)
}

fn in_guest(vmm: &Vmm, guest: &Path, disk: &Path, load: Load, kind: DiskKind) -> Result<Sample> {
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
        disk_kind: kind,
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
        value: f64::from(load.count) / (report.ticks / hz) * load.unit().1,
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
fn on_host(vmm: &Vmm, disk: &Path, load: Load, direct: bool) -> Result<Sample> {
    let area = Area {
        file: &disk.display().to_string(),
        offset: 0,
        bytes: DISK_BYTES,
        direct,
    };
    let mut samples = fio::run(&vmm.program, area, &[load], |load| load.count * LONGER)?;
    samples.pop().context("no sample")
}
