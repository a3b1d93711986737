//! What an exit costs, and how many of them a boot takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::boot::{self, IMAGES};
use super::context::{Context, bare_guest};
use super::start;
use crate::engine::{Effort, Question, Sample, interleave};
use crate::host;
use crate::process::Process;
use crate::result::{Clock, Figure};
use crate::trace::{self, Trace};
use crate::vmm::{Machine, Vmm};

const LIMIT: Duration = Duration::from_secs(30);
/// Exits in one sample: some tenths of a second on the slowest host.
const COUNT: u32 = 10_000;
/// COM1's scratch register: every VMM has it, and nothing happens behind it.
const SCRATCH_PORT: u16 = 0x3ff;

/// A loop of reads in ring 3 of a bare machine.
pub fn bare(context: &Context) -> Result<Vec<Figure>> {
    let guest = bare_guest();
    let figure = |kind: &str, note, what: fn(&Vmm) -> String| {
        let question = Question {
            row: "exits",
            case: format!("{kind} read, from the guest through the VMM and back"),
            unit: "us",
            lower_is_better: true,
            clock: Clock::Wall,
            note,
        };
        interleave(
            question,
            &context.vmms,
            Effort::wall(10, context.share(0.5)),
            |vmm| Ok(one_exit(vmm, &guest, &what(vmm))?.into()),
        )
    };
    Ok(vec![
        figure("PIO", "COM1's scratch register", |_| {
            format!("pio={SCRATCH_PORT}")
        }),
        figure("MMIO", "an address with nothing behind it", |vmm| {
            format!("mmio={}", vmm.template.mmio_probe)
        }),
    ])
}

/// Microseconds.
fn one_exit(vmm: &Vmm, guest: &Path, what: &str) -> Result<f64> {
    let machine = Machine {
        cmdline: format!("do=exits {what} count={COUNT}{}", host::ring_word()),
        ..start::machine(guest)
    };
    let mut process = Process::start(|folder| vmm.command(&machine, folder))?;
    let (from, _) = process.wait_for(b"(", LIMIT)?;
    let (to, _) = process.wait_for(b")", LIMIT)?;
    Ok((to - from).as_secs_f64() * 1e6 / f64::from(COUNT))
}

/// Exits of one boot, by reason: of the ELF image, as what a kernel does after its entry is alike.
pub fn linux(context: &Context) -> Result<Vec<Figure>> {
    let initrd = boot::make_initramfs(&context.folder, &context.guests)?;
    let image = IMAGES[0];
    let machine = boot::machine(context, image, 1, true, &initrd);
    let question = |where_to: &str| Question {
        row: "exits",
        case: format!("{}, from start to init, {where_to}", image.name),
        unit: "exits",
        lower_is_better: true,
        clock: Clock::None,
        note: "1 vCPU, quiet, by KVM's tracepoints",
    };
    let once = Effort {
        min_rounds: 1,
        max_rounds: 1,
        ..Effort::virtual_time()
    };
    // One traced boot each answers both questions.
    let mut userspace: BTreeMap<&str, Sample> = BTreeMap::new();
    let all = interleave(question("all"), &context.vmms, once, |vmm| {
        let trace = Trace::start()?;
        let timed = boot::boot(vmm, &machine)?;
        let recorded = trace.stop(trace::now())?;
        drop(timed.process);
        userspace.insert(vmm.name(), sample(recorded.userspace));
        Ok(sample(recorded.exits))
    });
    let to_the_vmm = interleave(question("to the VMM"), &context.vmms, once, |vmm| {
        userspace
            .remove(vmm.name())
            .ok_or_else(|| anyhow::anyhow!("not traced"))
    });
    Ok(vec![all, to_the_vmm])
}

fn sample(counts: BTreeMap<String, f64>) -> Sample {
    Sample {
        value: counts.values().sum(),
        parts: counts.into_iter().collect(),
        cdf: Vec::new(),
    }
}
