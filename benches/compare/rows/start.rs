//! From the start of the process to the first byte of a guest that prints at its first instruction.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::context::Context;
use crate::engine::{Effort, Question, interleave};
use crate::process::Process;
use crate::result::{Clock, Figure};
use crate::vmm::{DiskKind, Machine, Vmm};

const LIMIT: Duration = Duration::from_secs(10);

/// Runs the row.
pub fn run(context: &Context) -> Result<Vec<Figure>> {
    let machine = machine(&payload(&context.folder)?);
    let question = Question {
        row: "start",
        case: "process start to first guest byte".into(),
        unit: "ms",
        lower_is_better: true,
        clock: Clock::Wall,
        note: "a guest of four instructions, 128 MiB, 1 vCPU, no disk",
    };
    let effort = Effort::wall(15, context.share(1.0));
    Ok(vec![interleave(question, &context.vmms, effort, |vmm| {
        Ok(once(vmm, &machine)?.into())
    })])
}

/// The machine that all rows of tiny guests start from.
pub fn machine(kernel: &Path) -> Machine {
    Machine {
        kernel: kernel.into(),
        bzimage: false,
        pvh: false,
        initrd: None,
        cmdline: String::new(),
        cpus: 1,
        memory_mib: 128,
        disks: Vec::new(),
        disk_kind: DiskKind::Cached,
        cache: None,
    }
}

fn once(vmm: &Vmm, machine: &Machine) -> Result<f64> {
    let mut process = Process::start(|folder| vmm.command(machine, folder))?;
    let started = process.started();
    let (at, _) = process.wait_for(b"!", LIMIT)?;
    Ok((at - started).as_secs_f64() * 1e3)
}

/// Writes the guest: an ELF file with a PVH note, whose code means the same in 32-bit protected
/// mode (where PVH enters) and in long mode (where the Linux protocol does).
pub fn payload(folder: &Path) -> Result<PathBuf> {
    const BASE: u64 = 0x10_0000;
    const CODE: [u8; 10] = [
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'!', // mov al, '!'
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ];
    // ELF header, two program headers, the note, the code; all of it is loaded.
    let note_at = 64 + 2 * 56;
    let note: Vec<u8> = [4u32, 4, 18] // lengths of name and value; XEN_ELFNOTE_PHYS32_ENTRY
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .chain(*b"Xen\0")
        .chain(((BASE + note_at + 20) as u32).to_le_bytes())
        .collect();
    let code_at = note_at + note.len() as u64;
    let len = code_at + CODE.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    elf.extend((BASE + code_at).to_le_bytes()); // e_entry
    elf.extend(64u64.to_le_bytes()); // e_phoff
    elf.extend(0u64.to_le_bytes()); // e_shoff
    elf.extend(0u32.to_le_bytes()); // e_flags
    for field in [64u16, 56, 2, 64, 0, 0] {
        elf.extend(field.to_le_bytes()); // sizes and counts
    }
    for (kind, offset, len) in [(1u32, 0, len), (4, note_at, note.len() as u64)] {
        elf.extend(kind.to_le_bytes()); // PT_LOAD, PT_NOTE
        elf.extend(7u32.to_le_bytes());
        for field in [offset, BASE + offset, BASE + offset, len, len, 4] {
            elf.extend(field.to_le_bytes());
        }
    }
    elf.extend(note);
    elf.extend(CODE);
    let path = folder.join("start.elf");
    std::fs::write(&path, elf).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
