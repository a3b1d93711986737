//! A driver in ring 3 of a bare machine, beside fio on the host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::fio::{self, Area};
use super::images::{DISK_BYTES, Images};
use super::load::{LOADS, Load};
use crate::engine::{Effort, Question, Sample, interleave};
use crate::host;
use crate::process::Process;
use crate::result::{Clock, Figure};
use crate::rows::context::{Context, bare_guest, summary};
use crate::rows::start;
use crate::vmm::{self, DiskKind, Machine, Vmm};

/// fio counts milliseconds, and may find all in the page cache.
const FIO_LONGER: u32 = 4;
/// More cases than other rows have, so the row is longer: a sixth of its time for each.
const SHARE: f64 = 1.0 / 6.0;
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the row.
pub fn bare(context: &Context) -> Result<Vec<Figure>> {
    let guest = bare_guest();
    let mut contestants = context.vmms.clone();
    if let Some(program) = vmm::find_program("fio") {
        contestants.push(Vmm::new(&vmm::FIO, program)?);
    } else {
        eprintln!("left out: fio is not installed");
    }
    let images = Images::make(&context.guests)?;
    let kinds = [
        DiskKind::Cached,
        DiskKind::Direct,
        DiskKind::Ram,
        DiskKind::Qcow2,
    ];
    let mut figures = Vec::new();
    for kind in kinds {
        for load in LOADS {
            let load = load.times(times(kind));
            let case = format!("{}, {}", load.name, kind.name());
            if !context.wants(&case) {
                continue;
            }
            let question = Question {
                row: "block",
                case,
                unit: load.unit().0,
                lower_is_better: false,
                clock: Clock::Wall,
                note: "virtio-mmio, polled used ring, the VMM's vCPU and other threads on different processors; fio: io_uring on the same file, on the host",
            };
            let effort = Effort::wall(5, context.share(SHARE));
            let figure = interleave(question, &contestants, effort, |vmm| {
                let image = images.of(kind)?;
                match vmm.name() {
                    "fio" if kind == DiskKind::Qcow2 => bail!("knows no qcow2"),
                    "fio" => on_host(vmm, image, load, kind != DiskKind::Cached),
                    _ => in_guest(vmm, &guest, image, load, kind),
                }
            });
            eprintln!("{}", summary(&figure));
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// So many times the requests of a load: where they are quick, the start of a run, when threads have
/// just woken, would be much of it.
fn times(kind: DiskKind) -> u32 {
    match kind {
        DiskKind::Cached | DiskKind::Direct => 2,
        DiskKind::Qcow2 => 4,
        DiskKind::Ram => 8,
    }
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
    process.wait_for(b"<place>", LIMIT)?;
    process.pin(is_vcpu)?;
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
        .filter(|(name, _)| !is_vcpu(name))
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

/// Bantam's and Firecracker's `vcpu0`, QEMU's `CPU 0/KVM`.
fn is_vcpu(name: &str) -> bool {
    name.contains("vcpu") || name.starts_with("CPU ")
}

/// The same load on the same file without a VMM: the limit.
fn on_host(vmm: &Vmm, disk: &Path, load: Load, direct: bool) -> Result<Sample> {
    let area = Area {
        file: &disk.display().to_string(),
        offset: 0,
        bytes: DISK_BYTES,
        direct,
    };
    let mut samples = fio::run(&vmm.program, area, &[load], |load| load.count * FIO_LONGER)?;
    samples.pop().context("no sample")
}
