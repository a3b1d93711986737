//! What a VMM takes besides its guest's RAM, and how large its program is.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::{self, IMAGES};
use super::context::Context;
use crate::engine::{Effort, Question, Sample, interleave};
use crate::process::scratch;
use crate::result::{Clock, Figure};
use crate::vmm::Vmm;

const DISK_BYTES: u64 = 16 << 20;
/// After /init has spoken, until what the boot has set off is over.
const SETTLE: Duration = Duration::from_millis(300);

/// The programs.
pub fn bare(context: &Context) -> Result<Vec<Figure>> {
    let once = Effort {
        min_rounds: 1,
        max_rounds: 1,
        ..Effort::virtual_time()
    };
    let question = |case: &str, note| Question {
        row: "memory",
        case: case.into(),
        unit: "MiB",
        lower_is_better: true,
        clock: Clock::None,
        note,
    };
    Ok(vec![
        interleave(
            question("program", "the file, stripped"),
            &context.vmms,
            once,
            |vmm| Ok((std::fs::metadata(&vmm.program)?.len() as f64 / 1048576.0).into()),
        ),
        interleave(
            question(
                "program with its libraries",
                "shared libraries count whole, firmware does not count",
            ),
            &context.vmms,
            once,
            |vmm| Ok((with_libraries(vmm)? as f64 / 1048576.0).into()),
        ),
    ])
}

fn with_libraries(vmm: &Vmm) -> Result<u64> {
    let out = Command::new("ldd")
        .arg(&vmm.program)
        .output()
        .context("ldd")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    let len = |path: &str| std::fs::metadata(path).map_or(0, |meta| meta.len());
    Ok(std::fs::metadata(&vmm.program)?.len() + libraries.map(len).sum::<u64>())
}

/// PSS less guest RAM, with Linux booted.
pub fn linux(context: &Context) -> Result<Vec<Figure>> {
    let initrd = boot::make_initramfs(&context.folder, &context.guests)?;
    let folder = tempfile::tempdir_in(scratch()).context("no scratch folder")?;
    let disks: Vec<PathBuf> = (0..8)
        .map(|i| folder.path().join(format!("disk{i}")))
        .collect();
    for disk in &disks {
        File::create(disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| format!("{}", disk.display()))?;
    }
    let mut figures = Vec::new();
    for count in [1, 8] {
        let mut machine = boot::machine(context, IMAGES[0], 1, true, &initrd);
        machine.disks = disks.iter().take(count).cloned().collect();
        let question = Question {
            row: "memory",
            case: format!(
                "PSS less guest RAM, Linux booted, {count} disk{}",
                if count == 1 { "" } else { "s" }
            ),
            unit: "MiB",
            lower_is_better: true,
            clock: Clock::None,
            note: "256 MiB, 1 vCPU; pages of files that are shared count by their share",
        };
        let few = Effort {
            min_rounds: 2,
            max_rounds: 2,
            ..Effort::virtual_time()
        };
        figures.push(interleave(question, &context.vmms, few, |vmm| {
            let timed = boot::boot(vmm, &machine)?;
            std::thread::sleep(SETTLE);
            let pss = timed.process.pss(u64::from(machine.memory_mib) << 20)?;
            let mib = |bytes: u64| bytes as f64 / 1048576.0;
            Ok(Sample {
                value: mib(pss.all.saturating_sub(pss.guest_ram)),
                parts: vec![("guest RAM touched".into(), mib(pss.guest_ram))],
                cdf: Vec::new(),
            })
        }));
    }
    Ok(figures)
}
