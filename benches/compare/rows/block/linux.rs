//! fio in Linux: its root file system and the area it tests are one disk, so that no machine can
//! confuse two.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::fio::{self, Area};
use super::load::{LOADS, Load};
use crate::engine::{Effort, Question, Sample, interleave};
use crate::host;
use crate::process::{Failed, Process};
use crate::result::{Clock, Figure};
use crate::rows::boot::{self, IMAGES};
use crate::rows::context::{Context, succeed, summary};
use crate::vmm::{self, Vmm};

/// The disk, among what build.sh has made.
const ROOT_DISK: &str = "bench-fio.img";
/// Where on it the tested area begins: behind the file system.
const AREA_AT: u64 = 192 << 20;
const AREA_BYTES: u64 = 48 << 20;
/// Where the guest puts fio's report, behind the area: 40 KiB would take long over a console.
const REPORT_AT: u64 = AREA_AT + AREA_BYTES;
const REPORT_BYTES: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(40);
/// ETX, when the report is there: no kernel prints it.
const END: &[u8] = b"\x03";

/// The first process: fio, its report onto the disk, and waiting for the harness to end it.
fn init() -> String {
    format!(
        r"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs tmp /tmp
cd /tmp
fio --output-format=json /jobs >report 2>&1
/bin/busybox dd if=report of=/dev/vda bs=4096 seek={} conv=notrunc,fsync 2>/dev/null
/bin/busybox printf '\003'
while :; do /bin/busybox sleep 1000; done
",
        REPORT_AT / 4096
    )
}

/// Runs the row.
pub fn linux(context: &Context) -> Result<Vec<Figure>> {
    let disk = context.guests.join(ROOT_DISK);
    if host::lab().is_none() {
        make_root_disk(&context.guests)?;
    }
    let mut contestants = context.vmms.clone();
    if let Some(program) = vmm::find_program("fio") {
        contestants.push(Vmm::new(&vmm::FIO, program)?);
    }
    let effort = match boot::clock() {
        Clock::Wall => Effort::wall(5, context.share(1.0 / 6.0)),
        _ => Effort::emulated(),
    };
    // One boot answers for all loads; the n-th sample of each is from the n-th boot.
    let mut boots: HashMap<&str, Vec<Result<Vec<Sample>>>> = HashMap::new();
    let mut figures = Vec::new();
    for (i, load) in LOADS.iter().enumerate() {
        let question = Question {
            row: "block",
            case: format!("fio in Linux, {}", load.name),
            unit: load.unit().0,
            lower_is_better: false,
            clock: boot::clock(),
            note: "direct in the guest, cached on the host, 1 vCPU; beside it the host's own fio on the same file",
        };
        let mut rounds: HashMap<&str, usize> = HashMap::new();
        let figure = interleave(question, &contestants, effort, |vmm| {
            let round = rounds.entry(vmm.name()).or_default();
            let known = boots.entry(vmm.name()).or_default();
            if known.len() <= *round {
                let samples = match vmm.name() {
                    "fio" => on_host(vmm, &disk),
                    _ => in_guest(context, vmm, &disk),
                };
                known.push(samples);
            }
            let samples = known.get(*round).context("no sample")?;
            *round += 1;
            match samples {
                Ok(samples) => samples.get(i).cloned().context("no sample"),
                Err(error) => match error.downcast_ref::<Failed>() {
                    Some(failed) => Err(failed.clone().into()),
                    None => bail!("{error:#}"),
                },
            }
        });
        eprintln!("{}", summary(&figure));
        figures.push(figure);
    }
    Ok(figures)
}

fn in_guest(context: &Context, vmm: &Vmm, disk: &Path) -> Result<Vec<Sample>> {
    let mut machine = boot::machine(context, IMAGES[0], 1, true, Path::new(""));
    machine.initrd = None;
    machine.cmdline.push_str(" root=/dev/vda ro init=/init");
    machine.disks = vec![disk.into()];
    let file = File::options()
        .read(true)
        .write(true)
        .open(disk)
        .with_context(|| disk.display().to_string())?;
    let mut report = vec![0; REPORT_BYTES as usize];
    file.write_all_at(&report, REPORT_AT)
        .context("cannot clear the report")?;
    let mut process = Process::start(|folder| vmm.command(&machine, folder))?;
    process.wait_for(END, LIMIT)?;
    file.read_exact_at(&mut report, REPORT_AT)
        .context("cannot read the report")?;
    let mut samples = fio::parse(&String::from_utf8_lossy(&report), &LOADS)?;
    // The guest's CPU time is not the host's.
    for sample in &mut samples {
        sample.parts.retain(|(name, _)| !name.starts_with("host"));
    }
    Ok(samples)
}

fn on_host(vmm: &Vmm, disk: &Path) -> Result<Vec<Sample>> {
    let file = disk.display().to_string();
    let count = count(host::lab().is_some());
    fio::run(&vmm.program, area(&file, false), &LOADS, count)
}

fn area(file: &str, direct: bool) -> Area<'_> {
    Area {
        file,
        offset: AREA_AT,
        bytes: AREA_BYTES,
        direct,
    }
}

/// The lab's processor is a hundred times slower.
fn count(in_lab: bool) -> impl Fn(&Load) -> u32 {
    move |load| if in_lab { load.count / 10 } else { load.count }
}

/// What the row needs in the lab.
pub fn lab_files(context: &Context) -> Result<Vec<PathBuf>> {
    let mut files = vec![make_root_disk(&context.guests)?];
    files.extend(vmm::find_program("fio"));
    files.push(IMAGES[0].path(&context.guests));
    Ok(files)
}

/// Makes the disk: a file system with busybox, fio and its libraries, and behind it the area.
fn make_root_disk(guests: &Path) -> Result<PathBuf> {
    let disk = guests.join(ROOT_DISK);
    let fio = vmm::find_program("fio").context("fio is not installed")?;
    let tree = tempfile::tempdir().context("no scratch folder")?;
    for folder in ["proc", "sys", "dev", "tmp"] {
        fs::create_dir(tree.path().join(folder)).with_context(|| folder.to_owned())?;
    }
    put(tree.path(), Path::new("/bin/busybox"))?;
    put(tree.path(), &fio)?;
    let out = Command::new("ldd").arg(&fio).output().context("ldd")?;
    let text = String::from_utf8_lossy(&out.stdout);
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        put(tree.path(), Path::new(library))?;
    }
    // The disk for the lab is made outside of it.
    let count = count(!host::runs_linux());
    let jobs = fio::jobs(area("/dev/vda", true), &LOADS, count);
    fs::write(tree.path().join("jobs"), jobs).context("cannot write fio's jobs")?;
    let init = tree.path().join("init");
    fs::write(&init, self::init()).context("cannot write /init")?;
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .context("/init")?;
    let _ = fs::remove_file(&disk);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-O",
            "^has_journal",
            "-d",
        ])
        .arg(tree.path())
        .arg(&disk)
        .arg(format!("{}k", AREA_AT >> 10))
        // Debian keeps it where ordinary users do not look.
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    succeed(&mut mke2fs, "make fio's disk")?;
    fill(&disk)?;
    Ok(disk)
}

/// Copies `file` to its own place below `tree`.
fn put(tree: &Path, file: &Path) -> Result<()> {
    let at = tree.join(file.strip_prefix("/").unwrap_or(file));
    let folder = at.parent().unwrap_or(tree);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::copy(file, &at).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

/// Writes the area, so that reading it is not reading a hole.
fn fill(disk: &Path) -> Result<()> {
    let mut random = File::open("/dev/urandom")
        .context("/dev/urandom")?
        .take(AREA_BYTES);
    let mut file = File::options()
        .write(true)
        .open(disk)
        .context("fio's disk")?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(AREA_AT)).context("fio's disk")?;
    std::io::copy(&mut random, &mut file).context("cannot fill fio's disk")?;
    Ok(())
}
