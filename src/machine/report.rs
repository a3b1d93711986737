//! `--dry-run`: the machine as it would be, in a form to read and to compare.

use std::fmt::{self, Write};

use super::plan::Plan;
use crate::arch::x86_64::{e820, layout};
use crate::board::Placed;
use crate::board::place::Range;
use crate::boot::bzimage::Compression;
use crate::boot::kernel::KernelFormat;
use crate::config::Console;
use crate::error::escaped;
use crate::memory::Backing;

/// The whole report.
pub fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write_all(&mut text, plan);
    text
}

fn write_all(out: &mut String, plan: &Plan) -> fmt::Result {
    let placement = &plan.placement;
    writeln!(out, "cpus      {}", plan.config.topology)?;
    let backing = match plan.config.memory_backing {
        Backing::Thp => "",
        Backing::Hugetlbfs => " of hugetlbfs",
        Backing::Shared => " as a memfd",
    };
    writeln!(out, "memory    {} MiB{backing}", plan.config.memory >> 20)?;
    let format = match &plan.kernel.format {
        KernelFormat::Elf(elf) if elf.header.is_some() => {
            "bzImage, unpacked by the host".to_owned()
        }
        KernelFormat::Elf(_) => "ELF".to_owned(),
        KernelFormat::BzImage(image) if image.compression == Compression::Absent => {
            "bzImage".to_owned()
        }
        KernelFormat::BzImage(image) => format!("bzImage ({})", image.compression.name()),
    };
    writeln!(
        out,
        "kernel    {} ({format}, {})",
        escaped(plan.config.boot.path().display()),
        placement.protocol.name()
    )?;
    writeln!(out, "entry     {:#x}", placement.entry)?;
    if let Some(initrd) = &plan.initrd {
        writeln!(
            out,
            "initrd    {} ({} bytes)",
            escaped(initrd.source().path().display()),
            initrd.len()
        )?;
    }
    let mut console = match &plan.config.console {
        Console::Stdio(_) => "standard input and output".to_owned(),
        Console::None => "none".to_owned(),
        Console::Pty => "a new pseudo-terminal".to_owned(),
        Console::File { path, max: None } => escaped(path.display()),
        Console::File {
            path,
            max: Some(max),
        } => format!(
            "{}, at most {max} bytes; what was in it before goes to {}",
            escaped(path.display()),
            escaped(Console::old(path).display())
        ),
    };
    if plan.hvc {
        console.push_str(", ttyS0 until the guest uses hvc0");
    }
    writeln!(out, "console   {console}")?;
    if let Some(limit) = plan.config.time_limit {
        writeln!(out, "limit     {} s", limit.as_secs_f64())?;
    }
    if plan.config.reboot {
        writeln!(out, "reboot    starts the machine again")?;
    }
    if let Some(uuid) = plan.config.uuid {
        writeln!(out, "uuid      {uuid}")?;
    }
    let credentials = &plan.config.credentials;
    if !credentials.is_empty() {
        // Their values are secrets.
        let names: Vec<&str> = credentials.iter().map(|one| one.name.as_str()).collect();
        writeln!(out, "creds     {}", escaped(names.join(", ")))?;
    }
    writeln!(out, "cmdline   {}", escaped(&plan.cmdline))?;
    write_memory(out, plan)?;
    write_devices(out, plan)
}

fn write_memory(out: &mut String, plan: &Plan) -> fmt::Result {
    let mut lines: Vec<(u64, u64, String)> = e820::map(plan.config.memory)
        .into_iter()
        .map(|e| {
            let kind = match e.kind {
                e820::Kind::Ram => "RAM",
                e820::Kind::Reserved => "reserved",
            };
            (e.start, e.end(), kind.to_owned())
        })
        .collect();
    for segment in &plan.placement.segments {
        let end = segment.address.saturating_add(segment.memory_len);
        lines.push((segment.address, end, "  kernel".into()));
    }
    if let Some(initrd) = &plan.initrd {
        let start = initrd.address();
        lines.push((start, start.saturating_add(initrd.len()), "  initrd".into()));
    }
    lines.push((layout::ACPI_TABLES, layout::SMBIOS, "  ACPI tables".into()));
    lines.push((
        layout::SMBIOS,
        layout::RESET_VECTOR,
        "  SMBIOS tables".into(),
    ));
    lines.sort_by_key(|line| line.0);
    writeln!(out, "\nmemory map")?;
    for (start, end, what) in lines {
        writeln!(
            out,
            "  {start:#012x}-{:#012x}  {what}",
            end.saturating_sub(1)
        )?;
    }
    Ok(())
}

fn write_devices(out: &mut String, plan: &Plan) -> fmt::Result {
    writeln!(out, "\ndevices")?;
    for Placed { place, part } in plan.board.parts() {
        let (first, count) = place.range.bounds();
        let last = first.saturating_add(count).saturating_sub(1);
        let range = match place.range {
            Range::Ports(..) => format!("port {first:#x}-{last:#x}"),
            Range::Page(..) => format!("{first:#x}-{last:#x}"),
        };
        let irq = place
            .gsi
            .map_or_else(|| "-".to_owned(), |gsi| format!("irq {gsi}"));
        writeln!(out, "  {range:<24}{irq:<8}{}", part.describe(&place.name))?;
    }
    Ok(())
}
