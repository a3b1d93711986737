//! The way to ring 3, with all ports open: where a guest runs at native speed even on hosts that
//! emulate its ring 0 (PVM).

use core::arch::asm;

use crate::entry::{MOST, stack_top};
use crate::io::{write_u64, write_word};

/// 0x08 kernel code; 0x10 is what SYSEXIT counts from: 64-bit user code at + 32, stack at + 40;
/// from 0x40 on, a descriptor of the TSS for each processor, as one that is loaded is marked as busy.
#[repr(C, align(16))]
struct Gdt([u64; GDT_ENTRIES]);

const GDT_ENTRIES: usize = 8 + 2 * MOST as usize;

static mut GDT: Gdt = Gdt({
    let mut entries = [0; GDT_ENTRIES];
    entries[1] = 0x00af_9b00_0000_ffff;
    entries[6] = 0x00af_fb00_0000_ffff;
    entries[7] = 0x00cf_f300_0000_ffff;
    entries
});

/// A 64-bit TSS with its I/O permission bitmap (Intel SDM 3A, 8.7): all ports are open. PVM does not
/// keep the I/O privilege level of ring 3, so the bitmap is what counts there.
const TSS_BYTES: usize = 104 + 8192 + 8;

#[repr(C, align(4096))]
struct Tss([u8; TSS_BYTES]);

static mut TSS: Tss = Tss([0; TSS_BYTES]);
const FIRST_TSS: u16 = 0x40;
const TSS_BITMAP_AT: u64 = 102;

const SYSENTER_CS: u32 = 0x174;
const USER_CODE: u64 = 0x33;
const USER_DATA: u64 = 0x3b;

#[repr(C, align(4096))]
struct Tables([u64; 6 * 512]);

static mut TABLES: Tables = Tables([0; 6 * 512]);

/// Goes on in `main` in ring 3 with I/O privilege level 3, the first 4 GiB mapped one to one, on processor
/// `number`, which `main` is told. The first processor does this first.
///
/// KVM's instruction emulator knows no IRET to another ring, but SYSEXIT; AMD's processors know no SYSEXIT in
/// long mode. So `line`, the command line, says `ring=iret` where the processor itself does it.
pub fn enter(number: u64, main: extern "C" fn(u64) -> !, line: &[u8]) -> ! {
    let by_sysexit = !line.split(|b| *b == b' ').any(|w| w == b"ring=iret");
    let stack_top = stack_top(number);
    let tables = (&raw const TABLES) as u64;
    if number == 0 {
        write_u64(tables, tables + 0x1007);
        let mut i = 0;
        while i < 4 {
            write_u64(tables + 0x1000 + 8 * i, (tables + 0x2000 + 0x1000 * i) | 7);
            i += 1;
        }
        i = 0;
        while i < 4 * 512 {
            write_u64(tables + 0x2000 + 8 * i, i << 21 | 0x87);
            i += 1;
        }
    }
    let selector = FIRST_TSS + 16 * number as u16;
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    let gdt_at = (&raw const GDT) as u64;
    let tss = (&raw const TSS) as u64;
    write_word(tss + TSS_BITMAP_AT, 104);
    // Base in pieces, limit, "available 64-bit TSS, present"; it lies below 4 GiB.
    let limit = TSS_BYTES as u64 - 1;
    let low = limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    write_u64(gdt_at + u64::from(selector), low);
    write_u64(gdt_at + u64::from(selector) + 8, 0);
    let gdt = Pointer(GDT_ENTRIES as u16 * 8 - 1, gdt_at);
    unsafe {
        asm!(
            "mov cr3, {}", "lgdt [{}]", "ltr {:x}",
            in(reg) tables, in(reg) &gdt, in(reg) selector
        );
        if by_sysexit {
            asm!(
                "wrmsr",
                "push 0x3002",
                "popfq",
                "mov rdx, {main}",
                "mov rcx, {stack}",
                ".byte 0x48, 0x0f, 0x35", // sysexitq
                in("ecx") SYSENTER_CS,
                in("eax") 0x10,
                in("edx") 0,
                in("rdi") number,
                main = in(reg) main,
                stack = in(reg) stack_top - 8,
                options(noreturn)
            )
        }
        asm!(
            "push {data}",
            "push {stack}",
            "push 0x3002",
            "push {code}",
            "push {main}",
            "iretq",
            data = in(reg) USER_DATA,
            stack = in(reg) stack_top - 8,
            code = in(reg) USER_CODE,
            main = in(reg) main,
            in("rdi") number,
            options(noreturn)
        )
    }
}
