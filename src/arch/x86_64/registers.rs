//! The state in which a boot protocol wants the first CPU, and the tables in memory it needs.
//!
//! Two states serve all protocols:
//!
//! | | paging | CS | entry register |
//! |---|---|---|---|
//! | 64-bit Linux (boot.rst, "64-bit Boot Protocol") | 4 GiB identity-mapped | 64-bit, 0x10 | RSI = zero page |
//! | PVH (Xen, docs/misc/pvh.pandoc) | off | 32-bit flat | EBX = start info |
//! | 32-bit Linux (boot.rst, "32-bit Boot Protocol") | off | 32-bit flat, 0x10 | ESI = zero page |
//!
//! The other CPUs wait for INIT and SIPI, as on a PC; KVM's local APIC sees to that.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// A page directory entry that maps 2 MiB itself.
const LARGE: u64 = 1 << 7;

/// `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol, and a TSS behind them.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// How the CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Long mode, the first 4 GiB mapped one to one.
    Long,
    /// Protected mode, flat segments, no paging.
    Protected,
}

/// Where the first CPU starts, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Mode of the CPU.
    pub mode: Mode,
    /// First instruction.
    pub rip: u64,
    /// The zero page for a Linux protocol.
    pub rsi: u64,
    /// The start info for PVH.
    pub rbx: u64,
}

/// Types of segment descriptors, for CPUs that are told them without a GDT look-up.
#[derive(Debug, Clone, Copy)]
struct Segment {
    selector: u16,
    kind: u8,
    is_code_or_data: bool,
    long: bool,
    limit: u32,
}

const fn code(mode: Mode) -> Segment {
    Segment {
        selector: BOOT_CS,
        kind: 0xb, // execute, read, accessed
        is_code_or_data: true,
        long: matches!(mode, Mode::Long),
        limit: 0xffff_ffff,
    }
}

const DATA: Segment = Segment {
    selector: BOOT_DS,
    kind: 0x3, // read, write, accessed
    is_code_or_data: true,
    long: false,
    limit: 0xffff_ffff,
};

const TSS: Segment = Segment {
    selector: BOOT_TSS,
    kind: 0xb, // busy TSS
    is_code_or_data: false,
    long: false,
    limit: 0x67,
};

impl Segment {
    fn page_granular(self) -> bool {
        self.limit > 0xf_ffff
    }

    /// The 8-byte descriptor (Intel SDM 3A, 3.4.5).
    fn descriptor(self) -> u64 {
        let limit = u64::from(if self.page_granular() {
            self.limit >> 12
        } else {
            self.limit
        });
        let access = u64::from(self.kind) | u64::from(self.is_code_or_data) << 4 | 1 << 7;
        let default_big = self.is_code_or_data && !self.long;
        let flags = u64::from(self.long) << 1
            | u64::from(default_big) << 2
            | u64::from(self.page_granular()) << 3;
        limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
    }

    fn kvm(self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: self.limit,
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: (self.is_code_or_data && !self.long).into(),
            s: self.is_code_or_data.into(),
            l: self.long.into(),
            g: self.page_granular().into(),
            ..Default::default()
        }
    }
}

/// General registers at entry.
pub fn general(entry: Entry) -> kvm_regs {
    kvm_regs {
        rflags: RFLAGS,
        rip: entry.rip,
        rsi: entry.rsi,
        rbx: entry.rbx,
        ..Default::default()
    }
}

/// Puts the special registers into the state for `mode`; the APIC base and the like stay.
pub fn special(sregs: &mut kvm_sregs, mode: Mode) {
    let data = DATA.kvm();
    sregs.cs = code(mode).kvm();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = TSS.kvm();
    sregs.gdt = kvm_dtable {
        base: layout::GDT,
        limit: (GDT_ENTRIES * 8 - 1) as u16,
        ..Default::default()
    };
    // The protocols forbid interrupts until the guest has an IDT of its own.
    sregs.idt = kvm_dtable {
        base: layout::IDT,
        limit: 7,
        ..Default::default()
    };
    match mode {
        Mode::Protected => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
        Mode::Long => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
}

const GDT_ENTRIES: usize = 5;

/// Writes the GDT and, for long mode, the page tables.
///
/// # Errors
/// When the guest has no RAM where [`layout`] puts them.
pub fn write_tables(memory: &GuestMemoryMmap, mode: Mode) -> Result<(), GuestMemoryError> {
    let gdt: [u64; GDT_ENTRIES] = [
        0,
        0,
        code(mode).descriptor(),
        DATA.descriptor(),
        TSS.descriptor(),
    ];
    for (entry, at) in gdt.iter().zip((layout::GDT..).step_by(8)) {
        memory.write_obj(*entry, GuestAddress(at))?;
    }
    memory.write_obj(0u64, GuestAddress(layout::IDT))?;
    if mode == Mode::Long {
        write_page_tables(memory)?;
    }
    Ok(())
}

/// ```text
///   PML4[0] ─▶ PDPT[0..4] ─▶ four page directories of 512 pages of 2 MiB = 4 GiB
/// ```
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const PAGE: u64 = 0x1000;
    const LARGE_PAGE: u64 = 2 << 20;
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4 + PAGE;
    let directories = pdpt + PAGE;
    let table = PRESENT | WRITABLE;
    memory.write_obj(pdpt | table, GuestAddress(pml4))?;
    for i in 0..4 {
        let directory = directories + i * PAGE;
        memory.write_obj(directory | table, GuestAddress(pdpt + i * 8))?;
    }
    // One write of 16 KiB: 2048 writes of 8 bytes take longer than all else here.
    let mut entries = Vec::with_capacity(4 * PAGE as usize);
    for i in 0..2048u64 {
        entries.extend_from_slice(&((i * LARGE_PAGE) | table | LARGE).to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(directories))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_boot_protocol() {
        assert_eq!(code(Mode::Long).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(code(Mode::Protected).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(DATA.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(TSS.descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_first_4_gib_are_mapped_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x100000)]).unwrap();
        write_tables(&memory, Mode::Long).unwrap();
        let read = |addr: u64| memory.read_obj::<u64>(GuestAddress(addr)).unwrap();
        let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        for addr in [0u64, 0x20_0000, 0xd000_0000, 0xffff_ffff] {
            let pdpt = frame(read(layout::PAGE_TABLES));
            let pd = frame(read(pdpt + (addr >> 30) * 8));
            let page = read(pd + (addr >> 21 & 511) * 8);
            assert_eq!(frame(page), addr & !0x1f_ffff);
            assert_eq!(
                page & (PRESENT | WRITABLE | LARGE),
                PRESENT | WRITABLE | LARGE
            );
        }
        assert_eq!(read(layout::PAGE_TABLES_END), 0);
        assert_eq!(
            read(layout::GDT + 4 * 8),
            TSS.descriptor(),
            "not overwritten"
        );
    }

    #[test]
    fn protected_mode_has_no_paging() {
        let mut sregs = kvm_sregs::default();
        special(&mut sregs, Mode::Protected);
        assert_eq!(sregs.cr0 & CR0_PG, 0);
        assert_eq!((sregs.cs.db, sregs.cs.l), (1, 0));
        special(&mut sregs, Mode::Long);
        assert_eq!((sregs.cs.db, sregs.cs.l), (0, 1));
        assert_eq!(sregs.tr.s, 0);
    }
}
