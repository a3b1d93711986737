//! From the start of the process to the guest's /init, with Linux.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::context::{Context, succeed, summary};
use crate::engine::{Effort, Question, Sample, interleave};
use crate::host::{self, Lab};
use crate::process::{Failed, Process, STUCK};
use crate::result::{Clock, Figure, OURS};
use crate::trace::{self, Trace};
use crate::vmm::{DiskKind, Machine, Vmm};

/// For one boot. In virtual time a second is a billion instructions, a few seconds of the host's.
const LIMIT: Duration = Duration::from_secs(15);
/// What /init sends (benches/guests/init.rs).
const INIT: u8 = 2;

/// An image and how it is entered.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    pub name: &'static str,
    file: &'static str,
    bzimage: bool,
    pvh: bool,
    /// Also measured with a full console, and in phases: not where that says the same again (how
    /// a kernel is entered makes no difference to what it prints), or does not come to an end in
    /// virtual time (the stock kernel).
    console: bool,
}

/// In the order of the tables.
pub const IMAGES: [Image; 4] = [
    Image {
        name: "ELF",
        file: "vmlinux",
        bzimage: false,
        pvh: false,
        console: true,
    },
    Image {
        name: "PVH",
        file: "vmlinux",
        bzimage: false,
        pvh: true,
        console: false,
    },
    Image {
        name: "bzImage",
        file: "bzImage.lz4",
        bzimage: true,
        pvh: false,
        console: true,
    },
    Image {
        name: "stock Debian bzImage",
        file: "stock/vmlinuz",
        bzimage: true,
        pvh: false,
        console: false,
    },
];

impl Image {
    /// Its file among what build.sh has made.
    pub fn path(&self, guests: &Path) -> PathBuf {
        guests.join(self.file)
    }
}

/// What a row that boots Linux needs in the lab.
pub fn lab_files(context: &Context) -> Result<Vec<PathBuf>> {
    let mut files: Vec<_> = IMAGES.iter().map(|i| i.path(&context.guests)).collect();
    files.push(make_initramfs(&context.folder, &context.guests)?);
    Ok(files)
}

/// Bantam keeps an unpacked kernel only when its image was not changed a moment ago; in the lab,
/// which has just started, all files were.
const SETTLE: Duration = Duration::from_secs(3);

/// A boot by a VMM that has never seen the image.
const FIRST: &str = "1 vCPU, quiet, first boot";

/// Runs the row.
pub fn linux(context: &Context) -> Result<Vec<Figure>> {
    let initrd = make_initramfs(&context.folder, &context.guests)?;
    if clock() != Clock::Wall {
        std::thread::sleep(SETTLE);
    }
    let mut figures = Vec::new();
    for image in IMAGES {
        let kinds = [
            ("1 vCPU, quiet", 1, true),
            (FIRST, 1, true),
            ("1 vCPU, full console", 1, false),
            ("4 vCPU, quiet", 4, true),
        ];
        if image.bzimage && context.wants_any(image.name) {
            // Only Bantam keeps what it has unpacked. If it cannot boot, the figures will say so.
            let machine = machine(context, image, 1, true, &initrd);
            for vmm in context.vmms.iter().filter(|vmm| vmm.name() == OURS) {
                let _ = boot(vmm, &machine);
            }
        }
        for (kind, cpus, quiet) in kinds {
            // Virtual time stands still when several vCPUs share QEMU's only emulated processor.
            let apart = clock() != Clock::Wall && (cpus > 1) != (clock() == Clock::Emulated);
            // Only a packed kernel is something to learn about.
            let alike = (kind == FIRST && !image.bzimage) || (!image.console && !quiet);
            let case = format!("{}, {kind}", image.name);
            if apart || alike || !context.wants(&case) {
                continue;
            }
            let mut machine = machine(context, image, cpus, quiet, &initrd);
            if kind == FIRST {
                machine.cache = None;
            }
            let question = Question {
                row: "boot",
                case,
                unit: "ms",
                lower_is_better: true,
                clock: clock(),
                note: "process start to /init; QEMU enters an ELF kernel by PVH; Bantam unpacks a bzImage the first time and then finds it in its cache",
            };
            let figure = interleave(question, &context.vmms, effort(context), |vmm| {
                Ok((boot(vmm, &machine)?.init.as_secs_f64() * 1e3).into())
            });
            eprintln!("{}", summary(&figure));
            figures.push(figure);
        }
        let case = format!("{}, phases", image.name);
        if clock() != Clock::Emulated && image.console && context.wants(&case) {
            figures.push(phases(context, image, &initrd));
        }
    }
    Ok(figures)
}

/// In virtual time a few rounds, else as many as there is time for.
fn effort(context: &Context) -> Effort {
    match clock() {
        Clock::Virtual => Effort::virtual_time(),
        Clock::Emulated => Effort::emulated(),
        _ => Effort::wall(5, context.share(1.0 / 4.0)),
    }
}

/// The clock of the rows with Linux.
pub fn clock() -> Clock {
    match host::lab() {
        None => Clock::Wall,
        Some(Lab::Virtual) => Clock::Virtual,
        Some(Lab::Emulated) => Clock::Emulated,
    }
}

/// A machine that boots `image` to our /init.
pub fn machine(context: &Context, image: Image, cpus: u32, quiet: bool, initrd: &Path) -> Machine {
    // The defaults of `bantam run`, given to all: nobody waits for what the line can spare.
    let mut cmdline = String::from("console=ttyS0 panic=-1 8250.nr_uarts=1 reboot=t");
    if quiet {
        cmdline.push_str(" quiet");
    }
    Machine {
        kernel: image.path(&context.guests),
        bzimage: image.bzimage,
        pvh: image.pvh,
        initrd: Some(initrd.into()),
        cmdline,
        cpus,
        memory_mib: 256,
        disks: Vec::new(),
        disk_kind: DiskKind::Cached,
        cache: Some(context.folder.clone()),
    }
}

/// Moments of a boot, from the start of the process.
pub struct Timed {
    pub process: Process,
    pub first_byte: Duration,
    pub init: Duration,
}

/// Boots `machine` until its /init has spoken. It goes on to run until the result is dropped.
pub fn boot(vmm: &Vmm, machine: &Machine) -> Result<Timed> {
    let mut process = Process::start(|folder| vmm.command(machine, folder))?;
    let started = process.started();
    let mut first_byte = None;
    let mut tail = Vec::new();
    let end = process.read_until(LIMIT, |at, byte| {
        first_byte.get_or_insert(at);
        tail.push(byte);
        byte == INIT
    });
    let end = end.map_err(|error| did_not_boot(error, &tail))?;
    Ok(Timed {
        process,
        first_byte: first_byte.unwrap_or(end) - started,
        init: end - started,
    })
}

/// How the reason begins when /init has not spoken.
const NO_BOOT: &str = "did not boot";

/// How much of a guest's output is kept with a failure: its end.
const LAST_WORDS: usize = 4000;

/// What the console says in the end, and what that means for somebody who reads the page. The last one
/// is there with CONFIG_RANDOMIZE_BASE only, but at the very end.
const SIGNS: [(&str, &str); 3] = [
    (
        "Attempted to kill init",
        "the guest's first program was killed",
    ),
    ("Kernel panic", "the guest's kernel panicked"),
    ("Kernel Offset:", "the guest's kernel panicked"),
];

/// A failure to boot, with what the guest had printed.
fn did_not_boot(error: anyhow::Error, printed: &[u8]) -> anyhow::Error {
    let failed = match error.downcast::<Failed>() {
        Ok(failed) => failed,
        Err(other) => return other,
    };
    let end = printed.len().saturating_sub(LAST_WORDS);
    let words = String::from_utf8_lossy(printed.get(end..).unwrap_or_default()).into_owned();
    let sign = SIGNS.iter().find(|(sign, _)| words.contains(sign));
    let why = match sign {
        Some((_, meaning)) => format!("{NO_BOOT}: {meaning}"),
        None => failed.why.replace(STUCK, NO_BOOT),
    };
    Failed {
        why,
        said: format!("{}; the console's end: {words:?}", failed.said),
    }
    .into()
}

/// One traced boot each: when the kernel was entered, when it first printed, when init came.
fn phases(context: &Context, image: Image, initrd: &Path) -> Figure {
    let machine = machine(context, image, 1, false, initrd);
    let question = Question {
        row: "boot",
        case: format!("{}, phases", image.name),
        unit: "ms",
        lower_is_better: true,
        clock: clock(),
        note: "full console, 1 vCPU, with KVM's tracepoints on: process start to the first KVM entry, to the first console byte, to /init",
    };
    let once = Effort {
        min_rounds: 1,
        max_rounds: 1,
        ..Effort::virtual_time()
    };
    interleave(question, &context.vmms, once, |vmm| {
        let trace = Trace::start()?;
        let before = trace::now();
        let timed = boot(vmm, &machine)?;
        let recorded = trace.stop(trace::now())?;
        drop(timed.process);
        let Some(entry) = recorded.first_entry else {
            bail!("the trace has no entry into the guest")
        };
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let (entry, console, init) = (
            ms(entry.saturating_sub(before)),
            ms(timed.first_byte),
            ms(timed.init),
        );
        Ok(Sample {
            value: init,
            parts: vec![
                ("1 VMM ready".into(), entry),
                ("2 to the first console byte".into(), console - entry),
                ("3 to init".into(), init - console),
            ],
            cdf: Vec::new(),
        })
    })
}

/// Builds /init and packs it, unless that is there already (in the lab, it comes from outside).
pub fn make_initramfs(folder: &Path, guests: &Path) -> Result<PathBuf> {
    let archive = guests.join("bench-initramfs.cpio");
    if host::lab().is_some() {
        return Ok(archive);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/guests/init.rs");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc
        .args([
            "--edition",
            "2024",
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "relocation-model=static",
        ])
        .args([
            "-C",
            "link-arg=-nostdlib",
            "-C",
            "link-arg=-static",
            "-C",
            "strip=symbols",
        ])
        .arg("-o")
        .arg(folder.join("init"))
        .arg(source);
    succeed(&mut rustc, "build /init")?;
    // A file system of one file; the folder's name in it is all the kernel needs besides.
    let mut pack = Command::new("sh");
    pack.args([
        "-c",
        "echo init | cpio --quiet --reproducible -o -H newc -R 0:0 >\"$0\"",
        &archive.display().to_string(),
    ])
    .current_dir(folder);
    succeed(&mut pack, "pack the initramfs")?;
    Ok(archive)
}
